package rangestate

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// TestBulkSeeks: a long bulk command reads in another way than short ones, and decides the same.
func TestBulkSeeks(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, versioning := range []metapb.Versioning{metapb.Versioning_VERSIONING_NEVER, metapb.Versioning_VERSIONING_ENABLED, metapb.Versioning_VERSIONING_SUSPENDED} {
		for range 20 {
			long, short := ruled(t, versioning, false), ruled(t, versioning, false)
			var all []*metapb.DeleteEntry
			for i := range 30 {
				key := fmt.Sprintf("k%02d", i)
				if i%5 == 0 {
					key += "\x00\xff"
				}
				var ids []*metapb.RangeResult
				for range rnd.IntN(4) {
					op := long.put(1, key)
					short.ok(&metapb.PutObjectOp{Bucket: 1, Key: op.Key, Row: op.Row.CloneVT()})
					ids = append(ids, long.ok(op))
				}
				for range 1 + rnd.IntN(3) { // several of a key come one after the other, and see what those before did
					e := &metapb.DeleteEntry{Key: []byte(key), MarkerNonce: 7}
					if len(ids) > 0 && rnd.IntN(3) > 0 {
						id := ids[rnd.IntN(len(ids))]
						e.HasVersion, e.VersionSeq, e.VersionNonce = true, id.VersionSeq, id.VersionNonce
						if id.NullVersion {
							e.VersionSeq, e.VersionNonce = 0, 0
						}
					}
					all = append(all, e)
				}
			}
			if rnd.IntN(2) == 0 {
				rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			}
			// Those of a key run together, so that is the order of the short ones, too.
			var keys []string
			byKey := map[string][]int{}
			for i, e := range all {
				if byKey[string(e.Key)] == nil {
					keys = append(keys, string(e.Key))
				}
				byKey[string(e.Key)] = append(byKey[string(e.Key)], i)
			}
			got := long.ok(&metapb.DeleteObjectsOp{Bucket: 1, Owner: "me", Entries: all}).Entries
			for _, key := range keys {
				for _, i := range byKey[key] {
					res := short.do(&metapb.DeleteObjectsOp{Bucket: 1, Owner: "me", Entries: all[i : i+1]})
					want := res.Entries[0]
					want.TimeMs, got[i].TimeMs = 0, 0
					if !got[i].EqualVT(want) {
						t.Fatalf("entry %d, %v: %v, one by one %v", i, all[i], got[i], want)
					}
				}
			}
			rows := func(s *store) (out [][2]string) {
				for _, kv := range dump(t, s.db) {
					if kv[0][0] == kindCurrent || kv[0][0] == kindVersion || kv[0][0] == kindNull {
						out = append(out, kv)
					}
				}
				return out
			}
			if long.view().Seq() != short.view().Seq() {
				t.Fatal(long.view().Seq(), short.view().Seq())
			}
			if a, b := len(rows(long)), len(rows(short)); a != b {
				t.Fatalf("%d rows, one by one %d", a, b)
			}
		}
	}
}

// TestBulkAgain: outcomes of a long command are found when it comes again.
func TestBulkAgain(t *testing.T) {
	s := ruled(t, metapb.Versioning_VERSIONING_NEVER, false)
	op := &metapb.DeleteObjectsOp{Bucket: 1}
	for i := range 100 {
		key := fmt.Sprintf("k%02d", i*7%100)
		s.ok(s.put(1, key))
		op.Entries = append(op.Entries, &metapb.DeleteEntry{Key: []byte(key)})
	}
	cmd := s.command(op)
	first := s.apply(cmd)
	s.ok(s.put(1, "k50"))
	again := s.apply(cmd)
	for i, r := range again.Entries {
		if !r.Ok || errs.Kind(r.Kind) != 0 || !first.Entries[i].Ok {
			t.Fatal(i, r)
		}
	}
	if row, err := s.view().Object(1, "k50", nil); err != nil || row == nil {
		t.Fatal("a repeat deleted what came later", err)
	}
}
