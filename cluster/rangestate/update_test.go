package rangestate

import (
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

func update(key string, v *storage.VersionID, change any) *metapb.UpdateVersionOp {
	op := &metapb.UpdateVersionOp{Bucket: 1, Key: []byte(key)}
	if v != nil {
		op.HasVersion, op.VersionSeq, op.VersionNonce = true, uint64(v.Seq), v.Nonce
	}
	switch c := change.(type) {
	case []*metapb.KV:
		op.Change = &metapb.UpdateVersionOp_Tags{Tags: &metapb.Tags{Tags: c}}
	case *metapb.Retention:
		op.Change = &metapb.UpdateVersionOp_Retention{Retention: c}
	case *metapb.Restore:
		op.Change = &metapb.UpdateVersionOp_Restore{Restore: c}
	case bool:
		op.Change = &metapb.UpdateVersionOp_LegalHold{LegalHold: c}
	}
	return op
}

func versionIn(r *metapb.RangeResult) *storage.VersionID {
	return &storage.VersionID{Seq: storage.Seq(r.VersionSeq), Nonce: r.VersionNonce}
}

// refused is do for what must be refused with a kind.
func (s *store) refused(kind errs.Kind, op any) *metapb.RangeResult {
	s.t.Helper()
	res := s.do(op)
	if res.Ok || errs.Kind(res.Kind) != kind {
		s.t.Errorf("%v: answered %v, want %s", op, res, kind)
	}
	return res
}

func TestRetention(t *testing.T) {
	s := newStore(t)
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 1, Versioning: metapb.Versioning_VERSIONING_ENABLED, ObjectLock: true}})
	const none, gov, comp = "", governance, compliance
	for _, c := range []struct {
		name       string
		oldMode    string
		old        int64 // ms from now on
		mode       string
		until      int64
		ok, bypass bool // allowed without a bypass, with one
	}{
		{"first", none, 0, gov, 1000, true, true},
		{"longer", gov, 1000, gov, 1001, true, true},
		{"the same", gov, 1000, gov, 1000, true, true},
		{"shorter", gov, 1000, gov, 999, false, true},
		{"removed", gov, 1000, none, 0, false, true},
		{"stricter", gov, 1000, comp, 2000, false, true},
		{"expired, removed", gov, -1, none, 0, true, true},
		{"expired, stricter", gov, 0, comp, 1000, true, true},
		{"compliance longer", comp, 1000, comp, 1001, true, true},
		{"compliance shorter", comp, 1000, comp, 999, false, false},
		{"compliance removed", comp, 1000, none, 0, false, false},
		{"compliance weaker", comp, 1000, gov, 9999, false, false},
		{"compliance expired", comp, 0, gov, 1000, true, true},
	} {
		for _, bypass := range []bool{false, true} {
			put := s.put(1, c.name, 10)
			if c.oldMode != none {
				put.Row.Attributes = &metapb.Attributes{LockMode: c.oldMode, LockUntilMs: s.now + c.old}
			}
			v := versionIn(s.ok(put))
			r := &metapb.Retention{Mode: c.mode, BypassGovernance: bypass}
			if c.mode != none {
				r.UntilMs = s.now + c.until
			}
			wantMode, wantUntil := c.mode, r.UntilMs
			if want := c.ok && !bypass || c.bypass && bypass; want {
				s.ok(update(c.name, v, r))
			} else {
				wantMode, wantUntil = c.oldMode, s.now+c.old
				s.refused(errs.ObjectLocked, update(c.name, v, r))
			}
			row, err := s.view().Object(1, storage.Key(c.name), v)
			if err != nil || row.Attributes.GetLockMode() != wantMode || row.Attributes.GetLockUntilMs() != wantUntil {
				t.Errorf("%s, bypass %v: %v, %v", c.name, bypass, row, err)
			}
		}
	}
	for _, bad := range []*metapb.Retention{{Mode: gov}, {UntilMs: 1}, {Mode: "LEGAL", UntilMs: 1}, nil} {
		op := update("first", nil, bad)
		if bad == nil {
			op.Change = nil
		}
		s.refused(errs.InvalidArgument, op)
	}
}

// Whatever of a version changes, and wherever it lies: its data, times and place do not, and a rewrite of its data that read it
// before finds it as it was.
func TestUpdateInPlace(t *testing.T) {
	s := newStore(t)
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 1}})
	put := func() (*metapb.PutObjectOp, *storage.VersionID) {
		op := s.put(1, "k", 1000)
		return op, versionIn(s.ok(op))
	}
	_, null := put()
	*null = storage.VersionID{}
	s.refused(errs.InvalidRequest, update("k", nil, true)) // no object lock yet
	s.ok(update("k", null, []*metapb.KV{{Name: "never"}}))
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 2, Versioning: metapb.Versioning_VERSIONING_ENABLED, ObjectLock: true}})
	old, v1 := put()
	cur, v2 := put()
	s.refused(errs.NoSuchKey, update("other", nil, true))
	s.refused(errs.NoSuchVersion, update("k", &storage.VersionID{Seq: v1.Seq, Nonce: v1.Nonce + 1}, true))
	for _, c := range []struct {
		put *metapb.PutObjectOp
		id  *storage.VersionID
	}{{nil, null}, {old, v1}, {cur, v2}} {
		before, err := s.view().Object(1, "k", c.id)
		if err != nil {
			t.Fatal(err)
		}
		s.now += 1000
		tags := []*metapb.KV{{Name: "a", Value: "b"}}
		for _, change := range []any{tags, true, false, &metapb.Retention{Mode: governance, UntilMs: s.now + 1000}} {
			if res := s.ok(update("k", c.id, change)); res.VersionSeq != before.Seq || res.NullVersion != before.NullVersion || res.ModifiedMs != before.ModifiedMs || !res.Versioned {
				t.Errorf("%v is answered %v", change, res)
			}
		}
		before.Attributes = &metapb.Attributes{Tags: tags, LockMode: governance, LockUntilMs: s.now + 1000}
		if after, err := s.view().Object(1, "k", c.id); err != nil || !after.EqualVT(before) {
			t.Errorf("%v\nbecame %v, %v", before, after, err)
		}
		if c.put != nil {
			s.ok(&metapb.RewriteDataOp{
				Bucket: 1, Key: []byte("k"), VersionSeq: before.Seq, WriteId: c.put.Row.WriteId, Generation: 1,
				Data: &metapb.Data{Chunks: []*metapb.ChunkRef{s.chunk(1000)}}, Release: c.put.Row.Data.Chunks,
			})
		}
		if res := s.ok(s.deleteVersion(1, "k", *c.id)).Entries[0]; errs.Kind(res.Kind) != errs.ObjectLocked {
			t.Errorf("what is retained now was deleted: %v", res)
		}
	}
	// Without a version it is the newest, which may be a marker: it says which.
	marker := s.ok(s.delete(1, "k")).Entries[0]
	s.now += 1000
	for _, id := range []*storage.VersionID{nil, versionIn(marker)} {
		res := s.refused(errs.IsDeleteMarker, update("k", id, true))
		if res.VersionSeq != marker.VersionSeq || res.VersionNonce != marker.VersionNonce || res.ModifiedMs != s.now-1000 || !res.Versioned {
			t.Errorf("a marker is answered %v", res)
		}
	}
}
