package rangestate

import (
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

const (
	current    = metapb.ExpireEntry_CURRENT
	noncurrent = metapb.ExpireEntry_NONCURRENT
	lastMarker = metapb.ExpireEntry_MARKER
	unfinished = metapb.ExpireEntry_UPLOAD
)

// expiry is an Expire with one entry.
func expiry(bucket, generation uint64, what metapb.ExpireEntry_What, key string, seq uint64) *metapb.ExpireOp {
	return &metapb.ExpireOp{Bucket: bucket, ConfigGeneration: generation, Entries: []*metapb.ExpireEntry{{What: what, Key: []byte(key), VersionSeq: seq}}}
}

// ruled is bucket 1 at generation 1.
func ruled(t *testing.T, v metapb.Versioning, lock bool) *store {
	s := newStore(t)
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 1, Versioning: v, ObjectLock: lock}})
	return s
}

// expire expires one thing of bucket 1 at generation 1, which a result names.
func (s *store) expire(what metapb.ExpireEntry_What, key string, named *metapb.RangeResult) *metapb.RangeResult {
	s.t.Helper()
	op := expiry(1, 1, what, key, named.VersionSeq)
	op.Entries[0].VersionNonce, op.Entries[0].MarkerNonce, op.Entries[0].MarkerOwner = named.VersionNonce, 77, "rules"
	return s.ok(op).Entries[0]
}

// keeps runs fn, after which all rows but outcomes, the clock and range time in it must be as they were.
func (s *store) keeps(what string, fn func()) {
	s.t.Helper()
	rows := func() (out [][2]string) {
		for _, kv := range dump(s.t, s.db) {
			if kv[0][0] != kindOutcome && kv[0] != string(appendGroup(nil, testGroup, subClock)) {
				out = append(out, kv)
			}
		}
		return out
	}
	before, seq := rows(), s.view().Seq()
	fn()
	sameDump(s.t, what, rows(), before)
	if got := s.view().Seq(); got != seq {
		s.t.Errorf("%s: the sequence went from %d to %d", what, seq, got)
	}
}

// stale checks that the expiry is a Conflict of its entry alone and changes nothing.
func (s *store) stale(what string, kind metapb.ExpireEntry_What, key string, named *metapb.RangeResult) {
	s.t.Helper()
	s.keeps(what, func() {
		if res := s.expire(kind, key, named); res.Ok || errs.Kind(res.Kind) != errs.Conflict {
			s.t.Errorf("%s: %v", what, res)
		}
	})
}

// counter is what the range counts of a class besides what only rises: see counted.
func (s *store) counter(class string) *metapb.CounterRow {
	s.t.Helper()
	c := s.counted(0, class)
	c.EarlyHi, c.EarlyLo, c.RestoredBytes = 0, 0, 0
	return c
}

// counted is what the range counts of a class, of all buckets or just one.
func (s *store) counted(bucket storage.BucketID, class string) *metapb.CounterRow {
	s.t.Helper()
	all, err := s.view().Counters()
	if err != nil {
		s.t.Fatal(err)
	}
	sum := &metapb.CounterRow{}
	for _, c := range all {
		if string(c.Class) == class && (bucket == 0 || c.Bucket == bucket) {
			AddCounters(sum, c.Row)
		}
	}
	return sum
}

func (s *store) putClass(key, class string, sizes ...int) (*metapb.PutObjectOp, *metapb.RangeResult) {
	s.t.Helper()
	op := s.put(1, key, sizes...)
	op.Row.Attributes = &metapb.Attributes{StorageClass: class}
	return op, s.ok(op.CloneVT())
}

// hold writes a legal hold straight into the current version's row, as a bucket whose object lock is gone might have it.
func (s *store) hold(key string) {
	s.t.Helper()
	row, err := s.view().Object(1, storage.Key(key), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	row.Attributes = &metapb.Attributes{LegalHold: true}
	raw, err := row.MarshalVT()
	if err == nil {
		err = s.db.Set(appendRaw(nil, kindCurrent, 1, key), raw, pebble.NoSync)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func TestExpireCurrent(t *testing.T) {
	t.Run("never versioned", func(t *testing.T) {
		s := ruled(t, 0, false)
		_, first := s.putClass("k", "STANDARD_IA", 10)
		put, second := s.putClass("k", "GLACIER_IR", 20)
		s.stale("the version before", current, "k", first)
		wrong := second.CloneVT()
		wrong.VersionNonce++
		s.stale("another nonce", current, "k", wrong)
		s.stale("noncurrent", noncurrent, "k", second)
		s.stale("marker", lastMarker, "k", second)
		cmd := s.command(expiry(1, 1, current, "k", second.VersionSeq))
		cmd.GetExpire().Entries[0].VersionNonce = second.VersionNonce
		res := s.apply(cmd)
		if !res.Ok || !res.Entries[0].Ok || res.Entries[0].DeleteMarker {
			t.Fatal(res)
		}
		g := s.garbageRows()
		if len(g) != 2 || g[0].Row.StorageClass != "STANDARD_IA" || g[1].Row.StorageClass != "GLACIER_IR" || string(g[1].Row.Chunks[0].Id) != string(put.Row.Data.Chunks[0].Id) {
			t.Fatal(g)
		}
		if c := s.counter("GLACIER_IR"); c.SizeVT() != 0 {
			t.Fatal(c)
		}
		// The command comes again after the key was written anew: it is answered, and nothing happens.
		s.putClass("k", "", 30)
		s.keeps("a repeat", func() {
			if again := s.apply(cmd); !sameEntries(again, res) {
				t.Fatal(again)
			}
		})
	})
	t.Run("enabled", func(t *testing.T) {
		s := ruled(t, metapb.Versioning_VERSIONING_ENABLED, true)
		_, v := s.putClass("k", "STANDARD_IA", 10)
		s.ok(update("k", versionIn(v), true)) // a marker over it takes nothing away
		res := s.expire(current, "k", v)
		if !res.Ok || !res.DeleteMarker || res.VersionNonce != 77 || !res.Versioned || res.NullVersion {
			t.Fatal(res)
		}
		row, err := s.view().Object(1, "k", nil)
		if !errs.Is(err, errs.IsDeleteMarker) || row.Owner != "rules" || row.Nonce != 77 || row.Seq != res.VersionSeq || row.NoncurrentMs != 0 {
			t.Fatal(row, err)
		}
		if row, err = s.view().Object(1, "k", versionIn(v)); err != nil || row.NoncurrentMs != s.now || len(s.garbageRows()) != 0 {
			t.Fatal(row, err)
		}
		if c := s.counter("STANDARD_IA"); c.Versions != 1 || c.Objects != 0 || c.Bytes != 10 || s.counter("STANDARD").Markers != 1 {
			t.Fatal(c)
		}
		s.stale("once more", current, "k", v)
		s.stale("the marker", current, "k", res)
	})
	t.Run("suspended", func(t *testing.T) {
		s := ruled(t, metapb.Versioning_VERSIONING_SUSPENDED, false)
		_, v := s.putClass("k", "STANDARD_IA", 10)
		s.hold("k")
		if res := s.expire(current, "k", v); errs.Kind(res.Kind) != errs.ObjectLocked {
			t.Fatal(res)
		}
		_, w := s.putClass("l", "STANDARD_IA", 20)
		res := s.expire(current, "l", w)
		if !res.Ok || !res.DeleteMarker || !res.NullVersion || res.VersionSeq == w.VersionSeq {
			t.Fatal(res)
		}
		if g := s.garbageRows(); len(g) != 1 || g[0].Row.StorageClass != "STANDARD_IA" {
			t.Fatal(g)
		}
		if c := s.counter("STANDARD_IA"); c.Objects != 1 || c.Bytes != 10 {
			t.Fatal(c)
		}
	})
	t.Run("suspended since", func(t *testing.T) {
		// The null marker takes the place of an older null version, unless that is locked.
		s := ruled(t, 0, false)
		s.putClass("k", "", 10)
		s.putClass("l", "", 10)
		s.hold("l")
		s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 2, Versioning: metapb.Versioning_VERSIONING_ENABLED}})
		_, k := s.putClass("k", "", 10)
		_, l := s.putClass("l", "", 10)
		s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 3, Versioning: metapb.Versioning_VERSIONING_SUSPENDED}})
		op := expiry(1, 3, current, "k", k.VersionSeq)
		op.Entries[0].VersionNonce = k.VersionNonce
		op.Entries = append(op.Entries, &metapb.ExpireEntry{What: current, Key: []byte("l"), VersionSeq: l.VersionSeq, VersionNonce: l.VersionNonce})
		res := s.ok(op)
		if !res.Entries[0].Ok || errs.Kind(res.Entries[1].Kind) != errs.ObjectLocked {
			t.Fatal(res)
		}
		page, err := s.view().ListVersions(1, "", "", "", nil, 10)
		if err != nil || len(page.Rows) != 4 || !page.Rows[0].Row.DeleteMarker || !page.Rows[0].Row.NullVersion || page.Rows[1].Row.Seq != k.VersionSeq {
			t.Fatal(page, err)
		}
	})
}

// TestExpireTags: what was decided by tags that are others by now does not happen.
func TestExpireTags(t *testing.T) {
	for _, v := range []metapb.Versioning{metapb.Versioning_VERSIONING_NEVER, metapb.Versioning_VERSIONING_ENABLED} {
		s := ruled(t, v, false)
		tagged := func(value string) []*metapb.KV { return []*metapb.KV{{Name: "keep", Value: value}} }
		op := s.put(1, "k")
		op.Row.Attributes = &metapb.Attributes{Tags: tagged("short")}
		named := s.ok(op)
		entry := expiry(1, 1, current, "k", named.VersionSeq)
		entry.Entries[0].VersionNonce, entry.Entries[0].TagsHash = named.VersionNonce, TagsHash(tagged("short"))
		s.ok(&metapb.UpdateVersionOp{Bucket: 1, Key: []byte("k"), Change: &metapb.UpdateVersionOp_Tags{Tags: &metapb.Tags{Tags: tagged("long")}}})
		s.keeps("other tags", func() {
			if res := s.ok(entry).Entries[0]; res.Ok || errs.Kind(res.Kind) != errs.Conflict {
				t.Error(res)
			}
		})
		s.ok(&metapb.UpdateVersionOp{Bucket: 1, Key: []byte("k"), Change: &metapb.UpdateVersionOp_Tags{Tags: &metapb.Tags{Tags: tagged("short")}}})
		if res := s.ok(entry).Entries[0]; !res.Ok {
			t.Error(res)
		}
	}
	if TagsHash(nil) != 0 || TagsHash([]*metapb.KV{{Name: "a", Value: "b"}}) == TagsHash([]*metapb.KV{{Name: "ab"}}) {
		t.Error("the hash of tags")
	}
}

func TestExpireNoncurrent(t *testing.T) {
	s := ruled(t, metapb.Versioning_VERSIONING_ENABLED, true)
	put := func(a *metapb.Attributes) *metapb.RangeResult {
		op := s.put(1, "k", 10)
		op.Row.Attributes = a
		return s.ok(op)
	}
	plain := put(&metapb.Attributes{StorageClass: "GLACIER_IR"})
	governed := put(&metapb.Attributes{LockMode: governance, LockUntilMs: s.now + 1000})
	complied := put(&metapb.Attributes{LockMode: compliance, LockUntilMs: s.now + 1000})
	held := put(&metapb.Attributes{LegalHold: true})
	marker := s.ok(s.delete(1, "k")).Entries[0]
	s.stale("the newest is a marker", noncurrent, "k", marker)
	last := put(nil)
	s.stale("the current version", noncurrent, "k", last)
	s.stale("no marker", lastMarker, "k", plain)
	s.stale("no current version", current, "k", plain)
	s.stale("another key", noncurrent, "k2", plain)
	wrong := plain.CloneVT()
	wrong.VersionNonce++
	s.stale("another nonce", noncurrent, "k", wrong)
	for name, v := range map[string]*metapb.RangeResult{"governed": governed, "complied": complied, "held": held} {
		s.keeps(name, func() {
			if res := s.expire(noncurrent, "k", v); errs.Kind(res.Kind) != errs.ObjectLocked {
				t.Errorf("%s: %v", name, res)
			}
		})
	}
	res := s.expire(noncurrent, "k", plain)
	if !res.Ok || res.DeleteMarker || res.VersionSeq != plain.VersionSeq || !res.Versioned {
		t.Error(res)
	}
	if g := s.garbageRows(); len(g) != 1 || g[0].Row.StorageClass != "GLACIER_IR" || s.counter("GLACIER_IR").SizeVT() != 0 {
		t.Error(g)
	}
	s.stale("again", noncurrent, "k", plain)
	if res := s.expire(noncurrent, "k", marker); !res.Ok || !res.DeleteMarker {
		t.Error("a noncurrent marker:", res)
	}
	s.now += 1000 // a retention ends by range time
	for name, v := range map[string]*metapb.RangeResult{"governed": governed, "complied": complied} {
		if res := s.expire(noncurrent, "k", v); !res.Ok {
			t.Errorf("%s, over: %v", name, res)
		}
	}
	if row, err := s.view().Object(1, "k", nil); err != nil || row.Seq != last.VersionSeq || s.counter("STANDARD").Versions != 1 {
		t.Error(row, err)
	}
}

func TestExpireMarker(t *testing.T) {
	s := ruled(t, metapb.Versioning_VERSIONING_ENABLED, false)
	v := s.ok(s.put(1, "k", 10))
	first := s.ok(s.delete(1, "k")).Entries[0]
	s.stale("over a version", lastMarker, "k", first)
	second := s.ok(s.delete(1, "k")).Entries[0]
	s.stale("under another", lastMarker, "k", first)
	s.stale("over another", lastMarker, "k", second)
	// One command takes all of a key, in its order.
	op := &metapb.ExpireOp{Bucket: 1, ConfigGeneration: 1}
	for _, e := range []struct {
		what  metapb.ExpireEntry_What
		named *metapb.RangeResult
	}{{lastMarker, second}, {noncurrent, v}, {noncurrent, first}, {lastMarker, second}, {lastMarker, second}} {
		op.Entries = append(op.Entries, &metapb.ExpireEntry{What: e.what, Key: []byte("k"), VersionSeq: e.named.VersionSeq, VersionNonce: e.named.VersionNonce})
	}
	res := s.ok(op)
	for i, ok := range []bool{false, true, true, true, false} {
		if e := res.Entries[i]; e.Ok != ok || !ok && errs.Kind(e.Kind) != errs.Conflict || ok && e.VersionSeq != op.Entries[i].VersionSeq {
			t.Errorf("entry %d: %v", i, e)
		}
	}
	if all, err := s.view().Counters(); err != nil || len(all) != 0 {
		t.Error(all, err)
	}
	marker := s.ok(s.delete(1, "k")).Entries[0]
	s.ok(s.put(1, "k", 10))
	s.stale("under a version", lastMarker, "k", marker)
}

func TestExpireUpload(t *testing.T) {
	s := ruled(t, 0, false)
	up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("k"), Row: &metapb.UploadRow{
		WriteId: s.id16(), Attributes: &metapb.Attributes{StorageClass: "STANDARD_IA"},
	}})
	part := s.part("k", up.VersionSeq, 1, 10)
	s.ok(part.CloneVT())
	s.ok(s.part("k", up.VersionSeq, 1, 20)) // takes the first one's place
	if g := s.garbageRows(); len(g) != 1 || g[0].Row.StorageClass != "STANDARD_IA" || s.counter("STANDARD_IA").UploadBytes != 20 {
		t.Fatal(g)
	}
	wrong := up.CloneVT()
	wrong.VersionNonce++
	s.stale("another nonce", unfinished, "k", wrong)
	s.stale("a version", noncurrent, "k", up)
	if res := s.expire(unfinished, "k", up); !res.Ok {
		t.Fatal(res)
	}
	s.stale("again", unfinished, "k", up)
	if d, err := s.view().Doomed(nil, 10); err != nil || len(d) != 1 || d[0].Row.UploadSeq != up.VersionSeq || s.counter("STANDARD_IA").SizeVT() != 0 {
		t.Fatal(d, err)
	}
	expandAll(s, 0)
	if g := s.garbageRows(); len(g) != 2 {
		t.Fatal(g)
	}
}

// What was decided by a configuration that is not the bucket's any more is not done, now or when the command comes again.
func TestExpireConfiguration(t *testing.T) {
	s := ruled(t, metapb.Versioning_VERSIONING_ENABLED, false)
	a, b := s.ok(s.put(1, "a", 10)), s.ok(s.put(1, "b", 10))
	all := func(generation uint64) *metapb.RangeCommand {
		return s.command(&metapb.ExpireOp{Bucket: 1, ConfigGeneration: generation, Entries: []*metapb.ExpireEntry{
			{What: current, Key: []byte("b"), VersionSeq: b.VersionSeq, VersionNonce: b.VersionNonce},
			{What: current, Key: []byte("a"), VersionSeq: a.VersionSeq, VersionNonce: a.VersionNonce},
			{What: current, Key: []byte("b"), VersionSeq: b.VersionSeq, VersionNonce: b.VersionNonce},
		}})
	}
	refused := func(what string, cmd *metapb.RangeCommand) {
		t.Helper()
		s.keeps(what, func() {
			res := s.apply(cmd)
			if res.Ok || errs.Kind(res.Kind) != errs.Conflict || len(res.Entries) != 3 {
				t.Errorf("%s: %v", what, res)
			}
			for _, e := range res.Entries {
				if e.Ok || errs.Kind(e.Kind) != errs.Conflict {
					t.Errorf("%s: %v", what, e)
				}
			}
		})
	}
	early := all(2)
	refused("a newer one", early)
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 2, Versioning: metapb.Versioning_VERSIONING_ENABLED}})
	refused("the first answer stands", early)
	refused("an older one", all(1))
	res := s.apply(all(2))
	if !res.Ok || !res.Entries[0].Ok || !res.Entries[1].Ok || errs.Kind(res.Entries[2].Kind) != errs.Conflict {
		t.Fatal(res)
	}
	if res.Entries[0].VersionSeq >= res.Entries[1].VersionSeq {
		t.Error("not in order:", res)
	}
	s.ok(&metapb.FenceBucketOp{Bucket: 5, Generation: 4})
	for what, op := range map[string]*metapb.ExpireOp{"fenced": expiry(5, 4, current, "k", 1), "no row": expiry(6, 1, current, "k", 1)} {
		s.keeps(what, func() { s.refused(errs.Conflict, op) })
	}
	s.ok(&metapb.DropBucketOp{Bucket: 5, Generation: 4})
	s.keeps("dropped", func() { s.refused(errs.Conflict, expiry(5, 4, current, "k", 1)) })
}

// Entries that a split sends elsewhere are repeated there under the same id; nothing is done twice.
func TestExpireOverASplit(t *testing.T) {
	f := newFamily(t)
	f.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 2, Generation: 1, Versioning: metapb.Versioning_VERSIONING_ENABLED}})
	op := &metapb.ExpireOp{Bucket: 2, ConfigGeneration: 1}
	for _, k := range []string{"a", "y", "b", "z"} {
		v := f.ok(f.put(2, k, 1))
		op.Entries = append(op.Entries, &metapb.ExpireEntry{What: current, Key: []byte(k), VersionSeq: v.VersionSeq, VersionNonce: v.VersionNonce, MarkerNonce: f.id()})
	}
	before, after := f.command(op), f.command(op)
	half := before.CloneVT()
	half.GetExpire().Entries = half.GetExpire().Entries[1:2]
	first := f.in(testGroup, half) // y goes before the split
	child := f.split(testGroup, 2, "m")
	res := f.in(testGroup, before)
	if !res.Ok || len(res.Entries) != 4 || len(res.Ranges) != 2 {
		t.Fatal(res)
	}
	for i, wrong := range []bool{false, true, false, true} {
		if e := res.Entries[i]; e.Ok == wrong || wrong && errs.Kind(e.Kind) != errs.WrongRange {
			t.Errorf("entry %d: %v", i, e)
		}
	}
	if res = f.in(child, before); !res.Entries[1].EqualVT(first.Entries[0]) || !res.Entries[3].Ok || errs.Kind(res.Entries[0].Kind) != errs.WrongRange {
		t.Error(res)
	}
	if again := f.in(child, before); !sameEntries(again, res) {
		t.Error(again)
	}
	for g, mine := range map[string]int{"parent": 0, "child": 1} {
		in := testGroup
		if g == "child" {
			in = child
		}
		if res := f.in(in, after); errs.Kind(res.Entries[mine].Kind) != errs.Conflict || errs.Kind(res.Entries[1-mine].Kind) != errs.WrongRange || !res.Ok {
			t.Errorf("%s: %v", g, res)
		}
	}
	if c := f.sum(); c.Objects != 0 || c.Versions != 4 {
		t.Error(c)
	}
	only := f.command(expiry(2, 9, current, "z", 1))
	if res := f.in(testGroup, only); errs.Kind(res.Kind) != errs.WrongRange {
		t.Error(res)
	}
}

// A transition changes where the bytes lie and the class, and nothing else.
func TestTransition(t *testing.T) {
	s := ruled(t, metapb.Versioning_VERSIONING_ENABLED, true)
	put := s.put(1, "k", 10, 20)
	put.Row.Attributes = &metapb.Attributes{
		ContentType: "text/plain", User: []*metapb.KV{{Name: "a", Value: "b"}}, Tags: []*metapb.KV{{Name: "t", Value: "v"}},
		LockMode: governance, LockUntilMs: s.now + 100000, LegalHold: true,
	}
	put.Row.Checksums = []*metapb.Checksum{{Algorithm: metapb.ChecksumAlgorithm_CRC32C, Value: []byte("1234")}}
	v := versionIn(s.ok(put.CloneVT()))
	get := func() *metapb.ObjectRow {
		t.Helper()
		row, err := s.view().Object(1, "k", v)
		if err != nil {
			t.Fatal(err)
		}
		return row
	}
	// Through classes, as the current version and as a noncurrent one, and back to STANDARD, which is stored as none.
	for i, c := range []struct{ class, stored, from string }{
		{"STANDARD_IA", "STANDARD_IA", "STANDARD"}, {"GLACIER_IR", "GLACIER_IR", "STANDARD_IA"}, {"STANDARD", "", "GLACIER_IR"}, {"STANDARD", "", "STANDARD"},
	} {
		if i == 1 {
			s.ok(s.delete(1, "k"))
		}
		s.now += 1000
		was := get()
		op := &metapb.RewriteDataOp{
			Bucket: 1, Key: []byte("k"), VersionSeq: was.Seq, WriteId: was.WriteId, Generation: was.Data.Generation,
			Data: &metapb.Data{Chunks: []*metapb.ChunkRef{s.chunk(10), was.Data.Chunks[1]}}, Release: was.Data.Chunks[:1],
			StorageClass: c.class, ConfigGeneration: 1,
		}
		s.ok(op.CloneVT())
		is := get()
		want := was.CloneVT()
		if want.Attributes.StorageClass = c.stored; c.class != c.from {
			want.ClassSinceMs = s.now
		}
		want.Data.Chunks, want.Data.Generation = op.Data.Chunks, was.Data.Generation+1
		if !is.EqualVT(want) {
			t.Errorf("%v\nbecame %v", was, is)
		}
		g := s.garbageRows()
		if len(g) != i+1 || g[i].Row.StorageClass != c.from || len(g[i].Row.Chunks) != 1 {
			t.Errorf("freed %v, want class %s", g, c.from)
		}
		sum := &metapb.CounterRow{Objects: 1, Bytes: 30}
		if i > 0 {
			sum = &metapb.CounterRow{Versions: 1, Bytes: 30}
		}
		if c.stored == "" && i > 0 {
			sum.Markers = 1
		}
		if got := s.counter(c.class); !got.EqualVT(sum) {
			t.Errorf("class %s counts %v, want %v", c.class, got, sum)
		}
		if left := s.counter(c.from); c.from != c.class && (left.Objects != 0 || left.Versions != 0 || left.Bytes != 0) {
			t.Errorf("class %s still counts %v", c.from, left)
		}
	}
}

// A transition is refused like any rewrite that comes too late if the rules are others by now.
func TestTransitionConfiguration(t *testing.T) {
	s := ruled(t, 0, false)
	put := s.put(1, "k", 10, 20)
	v := s.ok(put.CloneVT())
	op := func(generation uint64) *metapb.RewriteDataOp {
		return &metapb.RewriteDataOp{
			Bucket: 1, Key: []byte("k"), VersionSeq: v.VersionSeq, WriteId: put.Row.WriteId, Generation: 1,
			Data: &metapb.Data{Chunks: []*metapb.ChunkRef{s.chunk(10), put.Row.Data.Chunks[1]}}, Release: put.Row.Data.Chunks[:1],
			Kept: [][]byte{put.Row.Data.Chunks[1].Id}, StorageClass: "GLACIER_IR", ConfigGeneration: generation,
		}
	}
	late := op(2)
	wantKind(t, s.do(late.CloneVT()), errs.Conflict, true)
	g := s.garbageRows()
	if len(g) != 1 || len(g[0].Row.Chunks) != 1 || string(g[0].Row.Chunks[0].Id) != string(late.Data.Chunks[0].Id) || g[0].Row.StorageClass != "GLACIER_IR" {
		t.Fatal(g)
	}
	if row, err := s.view().Object(1, "k", nil); err != nil || row.Data.Generation != 1 || row.GetAttributes().GetStorageClass() != "" {
		t.Fatal(row, err)
	}
	// A part's rewrite may be bound to the configuration too.
	row := bigObject(s, 3, 0)
	part, err := s.view().Part(1, "big", storage.Seq(row.Data.UploadSeq), 3)
	if err != nil {
		t.Fatal(err)
	}
	move := &metapb.RewriteDataOp{
		Bucket: 1, Key: []byte("big"), UploadSeq: row.Data.UploadSeq, Part: 3, WriteId: part.WriteId, Generation: part.Data.Generation,
		Data: &metapb.Data{Chunks: []*metapb.ChunkRef{s.chunk(10)}}, Release: part.Data.Chunks, ConfigGeneration: 2,
	}
	wantKind(t, s.do(move.CloneVT()), errs.Conflict, true)
	move.ConfigGeneration, move.Data.Chunks[0] = 1, s.chunk(10)
	s.ok(move)
	s.ok(op(1))
	// What comes after the transition is counted, and freed, by the class there is then.
	s.ok(s.put(1, "k", 5))
	if g = s.garbageRows(); g[len(g)-1].Row.StorageClass != "GLACIER_IR" || len(g[len(g)-1].Row.Chunks) != 2 || s.counter("GLACIER_IR").SizeVT() != 0 {
		t.Error(g[len(g)-1], s.counter("GLACIER_IR"))
	}
}

// A multipart object's version and one in its row change their class alone.
func TestTransitionWithoutChunks(t *testing.T) {
	s := ruled(t, 0, false)
	big := bigObject(s, 3, 0)
	put := s.put(1, "tiny")
	put.Row.Data, put.Row.Size = &metapb.Data{Inline: []byte("tiny")}, 4
	tiny := s.ok(put.CloneVT())
	of := func(row *metapb.ObjectRow, key string, seq uint64, d *metapb.Data) *metapb.RewriteDataOp {
		return &metapb.RewriteDataOp{Bucket: 1, Key: []byte(key), VersionSeq: seq, WriteId: row.WriteId, Generation: 1, Data: d, StorageClass: "ONEZONE_IA", ConfigGeneration: 1}
	}
	parts := func(upload uint64, n uint32) *metapb.Data { return &metapb.Data{UploadSeq: upload, Parts: n} }
	up, n := big.Data.UploadSeq, big.Data.Parts
	chunked, _ := s.data(4)
	for what, op := range map[string]*metapb.RewriteDataOp{
		"other upload":   of(big, "big", big.Seq, parts(up+1, n)),
		"fewer parts":    of(big, "big", big.Seq, parts(up, n-1)),
		"no parts":       of(big, "big", big.Seq, &metapb.Data{}),
		"other bytes":    of(put.Row, "tiny", tiny.VersionSeq, &metapb.Data{Inline: []byte("Tiny")}),
		"no bytes":       of(put.Row, "tiny", tiny.VersionSeq, &metapb.Data{}),
		"into chunks":    of(put.Row, "tiny", tiny.VersionSeq, chunked),
		"into an upload": of(put.Row, "tiny", tiny.VersionSeq, parts(up, n)),
	} {
		s.keeps(what, func() { s.refused(errs.InvalidArgument, op) })
	}
	s.ok(of(big, "big", big.Seq, parts(up, n)))
	s.ok(of(put.Row, "tiny", tiny.VersionSeq, &metapb.Data{Inline: []byte("tiny")}))
	for key, old := range map[storage.Key]*metapb.ObjectRow{"big": big, "tiny": put.Row} {
		row, err := s.view().Object(1, key, nil)
		if err != nil || row.Attributes.StorageClass != "ONEZONE_IA" || row.Data.Generation != 2 || string(row.Data.Inline) != string(old.Data.Inline) || row.Data.UploadSeq != old.Data.UploadSeq || row.Data.Parts != old.Data.Parts {
			t.Error(row, err)
		}
	}
	if c := s.counter("ONEZONE_IA"); c.Objects != 2 || c.Bytes != int64(big.Size)+4 || s.counter("STANDARD").SizeVT() != 0 || len(s.garbageRows()) != 0 {
		t.Error(c, s.garbageRows())
	}
	segs, serr := s.view().Segments(1, "big", big, 0, int64(big.Size), 1<<20)
	if serr != nil || len(segs) != 3 {
		t.Error(segs, serr)
	}
}

// sameEntries reports whether two results have the same entries.
func sameEntries(a, b *metapb.RangeResult) bool {
	return slices.EqualFunc(a.Entries, b.Entries, func(x, y *metapb.RangeResult) bool { return x.EqualVT(y) })
}
