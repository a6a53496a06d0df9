package rangestate

import (
	"math"
	"math/big"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

const aDay = int64(dayMS)

// byteMS is what a range counts as taken away early of a class, in byte-milliseconds.
func (s *store) byteMS(bucket storage.BucketID, class string) string {
	s.t.Helper()
	return earlyText(s.counted(bucket, class))
}

func earlyText(c *metapb.CounterRow) string {
	n := new(big.Int).SetUint64(c.EarlyHi)
	return n.Lsh(n, 64).Or(n, new(big.Int).SetUint64(c.EarlyLo)).String()
}

func times(n ...int64) string {
	out := big.NewInt(1)
	for _, i := range n {
		out.Mul(out, big.NewInt(i))
	}
	return out.String()
}

func TestEarlyByClass(t *testing.T) {
	for class, days := range map[string]int64{"": 0, "STANDARD": 0, "REDUCED_REDUNDANCY": 0, "INTELLIGENT_TIERING": 0,
		"STANDARD_IA": 30, "ONEZONE_IA": 30, "GLACIER_IR": 90, "GLACIER": 90, "DEEP_ARCHIVE": 180} {
		row := &metapb.ObjectRow{ModifiedMs: 1000, Attributes: &metapb.Attributes{StorageClass: class}}
		for _, c := range []struct{ now, day, want int64 }{
			{1000, 0, days * aDay}, {1001, 0, max(days*aDay-1, 0)}, {1000 + days*aDay - 1, 0, min(days, 1)}, {1000 + days*aDay, 0, 0}, {math.MaxInt64 / 2, 0, 0},
			{999, 0, days * aDay}, // a version is never owed more than its minimum
			{1000, 1000, days * 1000}, {1000 + days*1000, 1000, 0}, {1000, aDay + 1, days * aDay}, {1000, -5, days * aDay},
		} {
			if got := EarlyMS(row, c.now, c.day); got != c.want {
				t.Errorf("%s at %d with days of %d: %d, want %d", class, c.now, c.day, got, c.want)
			}
		}
		row.DeleteMarker = true
		if got := EarlyMS(row, 1000, 0); got != 0 {
			t.Errorf("a marker of %s owes %d", class, got)
		}
	}
}

// What ends or leaves a class before its time is counted, however it ends, and nothing else is.
func TestEarlyCounted(t *testing.T) {
	s := ruled(t, 0, false)
	s.putClass("k", "STANDARD_IA", 10)
	s.now += 10 * aDay
	_, v := s.putClass("k", "GLACIER_IR", 7) // overwritten after 10 of 30 days
	if got, want := s.byteMS(1, "STANDARD_IA"), times(10, 20, aDay); got != want {
		t.Errorf("overwritten: %s, want %s", got, want)
	}
	s.now += 5 * aDay
	row := got(s.view().Object(1, "k", nil))
	s.ok(&metapb.RewriteDataOp{
		Bucket: 1, Key: []byte("k"), VersionSeq: v.VersionSeq, WriteId: row.WriteId, Generation: 1, Data: &metapb.Data{Chunks: row.Data.Chunks},
		StorageClass: "GLACIER", ConfigGeneration: 1,
	})
	if got, want := s.byteMS(1, "GLACIER_IR"), times(7, 85, aDay); got != want {
		t.Errorf("moved: %s, want %s", got, want)
	}
	s.now += 80 * aDay // since the move, not since it was made
	s.ok(s.delete(1, "k"))
	if got, want := s.byteMS(1, "GLACIER"), times(7, 10, aDay); got != want {
		t.Errorf("deleted after a move: %s, want %s", got, want)
	}
	s.putClass("k", "DEEP_ARCHIVE", 3)
	s.now += 180 * aDay
	s.ok(s.delete(1, "k"))
	if c := s.counted(1, "DEEP_ARCHIVE"); c.SizeVT() != 0 {
		t.Errorf("deleted in time: %v", c)
	}
	// A delete marker on top takes nothing away; an upload that is aborted was never stored.
	s.bucket(2, metapb.Versioning_VERSIONING_ENABLED)
	op := s.put(2, "k", 5)
	op.Row.Attributes = &metapb.Attributes{StorageClass: "STANDARD_IA"}
	res := s.ok(op)
	s.ok(s.delete(2, "k"))
	up := s.ok(&metapb.CreateUploadOp{Bucket: 2, Key: []byte("p"), Row: &metapb.UploadRow{Nonce: 5, WriteId: s.id16(), Attributes: &metapb.Attributes{StorageClass: "STANDARD_IA"}}})
	s.ok(&metapb.AbortUploadOp{Bucket: 2, Key: []byte("p"), UploadSeq: up.VersionSeq, UploadNonce: 5})
	if got := s.byteMS(2, "STANDARD_IA"); got != "0" {
		t.Errorf("a delete marker or an aborted upload: %s", got)
	}
	// A refusal counts nothing, and a repeat nothing more. The length of the day is the command's.
	if res := s.do(s.deleteVersion(2, "k", storage.VersionID{Seq: storage.Seq(res.VersionSeq), Nonce: res.VersionNonce + 1})); !res.Ok {
		t.Fatal(res)
	}
	cmd := s.command(s.deleteVersion(2, "k", *versionIn(res)))
	cmd.DayMs = 1000
	s.now += 10_000
	s.apply(cmd.CloneVT())
	s.apply(cmd.CloneVT())
	if got, want := s.byteMS(2, "STANDARD_IA"), times(5, 20, 1000); got != want {
		t.Errorf("with short days: %s, want %s", got, want)
	}
}

// Petabytes don't fit into 64 bits of byte-milliseconds.
func TestEarlyIsLarge(t *testing.T) {
	c, want := &metapb.CounterRow{}, new(big.Int)
	for range 1000 {
		AddEarly(c, 50<<40, uint64(180*aDay))
		want.Add(want, new(big.Int).Mul(big.NewInt(50<<40), big.NewInt(180*aDay)))
	}
	sum := &metapb.CounterRow{}
	AddCounters(sum, c)
	AddCounters(sum, c)
	if got := earlyText(sum); got != want.Lsh(want, 1).String() || c.EarlyHi == 0 {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestRestoredCounted(t *testing.T) {
	s := ruled(t, 0, false)
	s.archive("k", "GLACIER") // 10 bytes
	ask := func(tier string, ready int64) *metapb.RangeResult {
		return s.do(&metapb.UpdateVersionOp{Bucket: 1, Key: []byte("k"), Change: &metapb.UpdateVersionOp_Restore{Restore: &metapb.Restore{
			ReadyMs: s.now + ready, ExpiresMs: s.now + ready + 1000, Tier: tier,
		}}})
	}
	steps := []struct {
		what  string
		pass  int64
		tier  string
		ready int64
		kind  errs.Kind
		want  uint64
	}{
		{"begun", 0, TierBulk, 500, 0, 10}, {"a slower one", 0, TierBulk, 500, errs.RestoreInProgress, 10}, {"upgraded", 0, TierExpedited, 100, 0, 10},
		{"extended", 200, TierBulk, 500, 0, 10}, {"begun again", 100_000, TierBulk, 500, 0, 20},
	}
	for _, c := range steps {
		s.now += c.pass
		if res := ask(c.tier, c.ready); errs.Kind(res.Kind) != c.kind {
			t.Fatalf("%s: %v", c.what, res)
		}
		if got := s.counted(1, "GLACIER").RestoredBytes; got != c.want {
			t.Errorf("%s: %d bytes, want %d", c.what, got, c.want)
		}
	}
}

// What a dropped bucket owed stays counted, and none of its rows stay.
func TestDroppedBucketsCount(t *testing.T) {
	s := newStore(t)
	for b := uint64(1); b <= 3; b++ {
		s.bucket(b, 0)
		op := s.put(b, "k", 10)
		op.Row.Attributes = &metapb.Attributes{StorageClass: "GLACIER"}
		s.ok(op)
		s.ok(s.delete(b, "k"))
	}
	for b := uint64(1); b <= 2; b++ {
		if res := s.ok(&metapb.FenceBucketOp{Bucket: b, Generation: 50}); !res.Empty {
			t.Fatal(res)
		}
		s.ok(&metapb.DropBucketOp{Bucket: b, Generation: 50})
	}
	all, err := s.view().Counters()
	if err != nil || len(all) != 2 || all[0].Bucket != 0 || all[1].Bucket != 3 {
		t.Fatalf("%v, %v", all, err)
	}
	if got, want := earlyText(all[0].Row), times(2, 10, 90, aDay); got != want || all[0].Class != "GLACIER" {
		t.Errorf("%s, want %s", got, want)
	}
}

// Counters are sums over ranges: a child begins at nothing, and what it adds is its own.
func TestSplitCountsOn(t *testing.T) {
	f := newFamily(t)
	f.bucket(1, 0)
	put := func(key string) {
		op := f.put(1, key, 10)
		op.Row.Attributes = &metapb.Attributes{StorageClass: "STANDARD_IA"}
		f.ok(op)
	}
	put("a")
	put("z")
	f.ok(f.delete(1, "a"))
	child := f.split(testGroup, 1, "m")
	if cs, err := f.viewOf(child).Counters(); err != nil || len(cs) != 0 {
		t.Fatal(cs, err)
	}
	f.now += aDay
	if res := f.in(child, f.command(f.delete(1, "z"))); !res.Ok {
		t.Fatal(res)
	}
	sum := &metapb.CounterRow{}
	for g := range f.machines {
		for _, c := range got(f.viewOf(g).Counters()) {
			AddCounters(sum, c.Row)
		}
	}
	if want := times(10, 59, aDay); earlyText(sum) != want || sum.Objects != 0 || sum.Bytes != 0 {
		t.Errorf("%v, want %s", sum, want)
	}
}
