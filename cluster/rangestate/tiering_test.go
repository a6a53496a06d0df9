package rangestate

import (
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// tiered puts an object of INTELLIGENT_TIERING and answers its version's id.
func (s *store) tiered(key string) *storage.VersionID {
	s.t.Helper()
	put := s.put(1, key, 10)
	put.Row.Attributes = &metapb.Attributes{StorageClass: "INTELLIGENT_TIERING"}
	put.Row.Tiering = &metapb.Tiering{Tier: metapb.Tiering_ARCHIVE, AccessedMs: 1 << 60} // a new version is frequent
	return versionIn(s.ok(put))
}

func touch(key string, v *storage.VersionID, at int64) *metapb.TouchEntry {
	return &metapb.TouchEntry{Bucket: 1, Key: []byte(key), VersionSeq: uint64(v.Seq), VersionNonce: v.Nonce, AccessedMs: at}
}

// change is a change of the tier of a version, with its data as it is.
func (s *store) change(key string, v *storage.VersionID, to metapb.Tiering_Tier) *metapb.RewriteDataOp {
	s.t.Helper()
	row := got(s.view().VersionBySeq(1, storage.Key(key), v.Seq))
	op := &metapb.RewriteDataOp{
		Bucket: 1, Key: []byte(key), VersionSeq: row.Seq, WriteId: row.WriteId, Generation: row.Data.Generation, Data: row.Data,
		ConfigGeneration: 1, Tier: &metapb.ChangeTier{To: to, IfAccessedMs: row.GetTiering().GetAccessedMs()},
	}
	for _, c := range row.Data.Chunks {
		op.Kept = append(op.Kept, c.Id)
	}
	return op
}

func TestTouch(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	old, id := s.tiered("k"), s.tiered("k")
	plain := versionIn(s.ok(s.put(1, "plain", 10)))
	row := func(key string, v *storage.VersionID) *metapb.ObjectRow {
		t.Helper()
		return got(s.view().VersionBySeq(1, storage.Key(key), v.Seq))
	}
	if r := row("k", id); r.Tiering != nil || LastAccess(r) != r.ModifiedMs {
		t.Fatal(r)
	}
	made := row("k", id).ModifiedMs
	s.now += 1000
	gone := &storage.VersionID{Seq: 1 << 40, Nonce: 1}
	wrong := &storage.VersionID{Seq: id.Seq, Nonce: id.Nonce + 1}
	before := row("plain", plain)
	res := s.ok(&metapb.TouchOp{Entries: []*metapb.TouchEntry{
		touch("k", id, made+700), touch("k", old, made+300), touch("plain", plain, s.now), touch("gone", gone, s.now), touch("k", wrong, s.now),
		{Bucket: 9, Key: []byte("k"), VersionSeq: 1, AccessedMs: 5},
	}})
	if len(res.Entries) != 6 || len(res.Ranges) != 0 {
		t.Fatal(res)
	}
	for _, e := range res.Entries {
		if !e.Ok {
			t.Error(e)
		}
	}
	check := func(v *storage.VersionID, want int64) {
		t.Helper()
		r := row("k", v)
		if LastAccess(r) != want || r.GetTiering().GetTier() != metapb.Tiering_FREQUENT || r.ModifiedMs > made || r.Data.Generation != 1 {
			t.Errorf("%v, want access %d", r, want)
		}
	}
	check(id, made+700)
	check(old, made+300)
	if !row("plain", plain).EqualVT(before) {
		t.Error("a version of another class was touched")
	}
	for _, at := range []int64{made + 600, made + 700, 1} { // never lower, however often
		s.ok(&metapb.TouchOp{Entries: []*metapb.TouchEntry{touch("k", id, at)}})
		check(id, made+700)
	}
	s.ok(&metapb.TouchOp{Entries: []*metapb.TouchEntry{touch("k", id, s.now+1e9)}}) // not ahead of the range
	check(id, s.now)
}

// What lies in a child is sent there; the rest of a command is done.
func TestTouchAcrossSplit(t *testing.T) {
	f := newFamily(t)
	f.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	a, z := f.tiered("a"), f.tiered("z")
	child := f.split(testGroup, 1, "m")
	f.now += 1000
	cmd := f.command(&metapb.TouchOp{Entries: []*metapb.TouchEntry{touch("z", z, f.now), touch("a", a, f.now)}})
	res := f.in(testGroup, cmd)
	if !res.Ok || len(res.Entries) != 2 || errs.Kind(res.Entries[0].Kind) != errs.WrongRange || !res.Entries[1].Ok || len(res.Ranges) != 2 || res.Ranges[1].Id != uint64(child) {
		t.Fatal(res)
	}
	if res := f.in(child, cmd); !res.Ok || !res.Entries[0].Ok || errs.Kind(res.Entries[1].Kind) != errs.WrongRange {
		t.Fatal(res)
	}
	for g, key := range map[*View]string{f.viewOf(testGroup): "a", f.viewOf(child): "z"} {
		if row := got(g.Object(1, storage.Key(key), nil)); LastAccess(row) != f.now {
			t.Error(key, row)
		}
	}
}

func TestChangeTier(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	id := s.tiered("k")
	s.tiered("k") // id is noncurrent
	row := func() *metapb.ObjectRow { return got(s.view().VersionBySeq(1, "k", id.Seq)) }
	before := row()
	op := s.change("k", id, metapb.Tiering_INFREQUENT)
	cmd := s.command(op)
	if res := s.apply(cmd); !res.Ok {
		t.Fatal(res)
	}
	want := before.CloneVT()
	want.Tiering = &metapb.Tiering{Tier: metapb.Tiering_INFREQUENT}
	want.Data.Generation++
	if !row().EqualVT(want) {
		t.Fatalf("%v, want %v", row(), want)
	}
	if c := s.counter("INTELLIGENT_TIERING"); c.Objects != 1 || c.Versions != 1 {
		t.Error(c)
	}
	if res := s.apply(cmd); !res.Ok || !row().EqualVT(want) { // a repeat
		t.Fatal(res, row())
	}
	wantKind(t, s.do(op.CloneVT()), errs.Conflict, false) // another generation of the data

	// It was read since that was decided.
	late := s.change("k", id, metapb.Tiering_ARCHIVE_INSTANT)
	fresh := s.chunk(10)
	late.Data = &metapb.Data{Chunks: []*metapb.ChunkRef{fresh}}
	late.Release, late.Kept = row().Data.Chunks, nil
	s.now += 1000
	s.ok(&metapb.TouchOp{Entries: []*metapb.TouchEntry{touch("k", id, s.now)}})
	wantKind(t, s.do(late), errs.Conflict, true)
	if row().Tiering.Tier != metapb.Tiering_INFREQUENT {
		t.Fatal(row())
	}
	// The configuration that was decided by may be ahead of the row, and not behind it.
	ahead := s.change("k", id, metapb.Tiering_ARCHIVE)
	ahead.ConfigGeneration = 2
	s.ok(ahead)
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 3, Versioning: metapb.Versioning_VERSIONING_ENABLED}})
	behind := s.change("k", id, metapb.Tiering_DEEP_ARCHIVE)
	behind.ConfigGeneration = 2
	wantKind(t, s.do(behind), errs.Conflict, false)
	if row().Tiering.Tier != metapb.Tiering_ARCHIVE || row().Tiering.AccessedMs != s.now {
		t.Fatal(row())
	}
	plain := versionIn(s.ok(s.put(1, "plain", 10)))
	other := s.change("plain", plain, metapb.Tiering_INFREQUENT)
	other.ConfigGeneration = 3
	wantKind(t, s.do(other), errs.Conflict, false) // not of the class
	for name, bad := range map[string]func(*metapb.RewriteDataOp){
		"unknown tier":     func(op *metapb.RewriteDataOp) { op.Tier.To = 9 },
		"class and tier":   func(op *metapb.RewriteDataOp) { op.StorageClass = "GLACIER" },
		"no configuration": func(op *metapb.RewriteDataOp) { op.ConfigGeneration = 0 },
	} {
		op := s.change("k", id, metapb.Tiering_FREQUENT)
		op.ConfigGeneration = 3
		bad(op)
		if res := s.do(op); res.Ok || errs.Kind(res.Kind) != errs.InvalidArgument {
			t.Error(name, res)
		}
	}
}

// A restore from an archive tier has no end, and ends with the change of the tier.
func TestRestoreFromTier(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	id := s.tiered("k")
	row := func() *metapb.ObjectRow { return got(s.view().Object(1, "k", id)) }
	ask := func(in int64, tier string) *metapb.RangeResult {
		return s.do(update("k", id, &metapb.Restore{ReadyMs: s.now + in, Tier: tier}))
	}
	wantKind(t, ask(10, TierBulk), errs.InvalidObjectState, false)
	s.ok(s.change("k", id, metapb.Tiering_ARCHIVE))
	if !Archived(row()) || Readable(row(), 1<<60) {
		t.Fatal(row())
	}
	if res := s.do(update("k", id, &metapb.Restore{ReadyMs: s.now + 1, ExpiresMs: s.now + 2, Tier: TierBulk})); res.Ok || errs.Kind(res.Kind) != errs.InvalidArgument {
		t.Fatal(res)
	}
	decided := s.change("k", id, metapb.Tiering_DEEP_ARCHIVE)
	if res := ask(5000, TierBulk); !res.Ok || res.Restored {
		t.Fatal(res)
	}
	wantKind(t, s.do(decided), errs.Conflict, false) // it was asked for since
	wantKind(t, ask(5000, TierBulk), errs.RestoreInProgress, false)
	if res := ask(3000, TierStandard); !res.Ok {
		t.Fatal(res)
	}
	ready := s.now + 3000
	if r := row(); Readable(r, ready-1) || TierOf(r, ready-1) != metapb.Tiering_ARCHIVE || !Readable(r, ready) || !Readable(r, 1<<60) || TierOf(r, ready) != metapb.Tiering_FREQUENT || LastAccess(r) < ready {
		t.Fatal(r)
	}
	s.now = ready
	wantKind(t, ask(3000, TierExpedited), errs.InvalidObjectState, false)
	s.ok(s.change("k", id, metapb.Tiering_FREQUENT))
	if r := row(); r.Restore != nil || Archived(r) || !Readable(r, 0) {
		t.Fatal(r)
	}
	// Another class has no tiers, and the class begins anew.
	s.ok(s.change("k", id, metapb.Tiering_DEEP_ARCHIVE))
	s.ok(update("k", id, &metapb.Restore{ReadyMs: s.now + 5000, Tier: TierBulk}))
	op := s.change("k", id, metapb.Tiering_FREQUENT)
	op.Tier, op.StorageClass = nil, "DEEP_ARCHIVE"
	wantKind(t, s.do(op), errs.Conflict, false) // it is on its way back
	s.now += 5000
	op = s.change("k", id, metapb.Tiering_FREQUENT)
	op.Tier, op.StorageClass = nil, "DEEP_ARCHIVE"
	s.ok(op)
	if r := row(); r.Tiering != nil || r.Restore != nil || !Archived(r) {
		t.Fatal(r)
	}
	s.now += 1000
	in := s.change("k", id, metapb.Tiering_FREQUENT)
	in.Tier, in.StorageClass, in.TagsHash = nil, "INTELLIGENT_TIERING", TagsHash([]*metapb.KV{{Name: "gone", Value: "by now"}})
	wantKind(t, s.do(in), errs.Conflict, false)
	in = s.change("k", id, metapb.Tiering_FREQUENT)
	in.Tier, in.StorageClass = nil, "INTELLIGENT_TIERING"
	s.ok(in)
	if r := row(); r.Tiering.GetTier() != metapb.Tiering_FREQUENT || LastAccess(r) != s.now {
		t.Fatal(r)
	}
}
