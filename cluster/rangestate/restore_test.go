package rangestate

import (
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// archive puts an object of a class and answers its version's id.
func (s *store) archive(key, class string) *storage.VersionID {
	s.t.Helper()
	put := s.put(1, key, 10)
	put.Row.Attributes = &metapb.Attributes{StorageClass: class}
	put.Row.Restore = &metapb.Restore{ReadyMs: 1, ExpiresMs: 1 << 60} // a new version never has one
	return versionIn(s.ok(put))
}

func TestRestore(t *testing.T) {
	const h = 3600 * 1000
	type r struct {
		ready, expires int64 // from now on
		tier           string
	}
	for _, c := range []struct {
		name  string
		had   *r // asked for 1 ms ago
		asked r
		want  *r // besides the time of the request
		again bool
		kind  errs.Kind
	}{
		{name: "the first", asked: r{5 * h, 24 * h, TierStandard}, want: &r{5 * h, 24 * h, TierStandard}},
		{name: "readable, longer", had: &r{0, 24 * h, TierBulk}, asked: r{5 * h, 48 * h, TierStandard}, want: &r{0, 48 * h, TierBulk}, again: true},
		{name: "readable, shorter", had: &r{-1, 24 * h, TierBulk}, asked: r{5 * h, 6 * h, TierStandard}, want: &r{-1, 6 * h, TierBulk}, again: true},
		{name: "readable for a moment yet", had: &r{-2, 1, TierBulk}, asked: r{5 * h, 6 * h, TierBulk}, want: &r{-2, 6 * h, TierBulk}, again: true},
		{name: "expired now", had: &r{-2, 0, TierExpedited}, asked: r{5 * h, 6 * h, TierBulk}, want: &r{5 * h, 6 * h, TierBulk}},
		{name: "faster", had: &r{5 * h, 24 * h, TierStandard}, asked: r{h, 48 * h, TierExpedited}, want: &r{h, 24 * h, TierExpedited}},
		{name: "somewhat faster", had: &r{12 * h, 24 * h, TierBulk}, asked: r{5 * h, 48 * h, TierStandard}, want: &r{5 * h, 24 * h, TierStandard}},
		{name: "faster, and ready now", had: &r{1, 24 * h, TierBulk}, asked: r{0, 48 * h, TierStandard}, want: &r{0, 24 * h, TierStandard}},
		{name: "faster, and too late for that", had: &r{h, 24 * h, TierBulk}, asked: r{h, 24 * h, TierExpedited}, kind: errs.RestoreInProgress},
		{name: "the same tier", had: &r{5 * h, 24 * h, TierStandard}, asked: r{h, 24 * h, TierStandard}, kind: errs.RestoreInProgress},
		{name: "slower", had: &r{5 * h, 24 * h, TierStandard}, asked: r{h, 24 * h, TierBulk}, kind: errs.RestoreInProgress},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
			id := s.archive("k", "GLACIER")
			s.archive("k", "DEEP_ARCHIVE") // its own
			before := got(s.view().Object(1, "k", id))
			if before.Restore != nil || Readable(before, s.now) {
				t.Fatalf("put as restored: %v", before)
			}
			now := s.now + h
			pb := func(r *r) *metapb.Restore {
				return &metapb.Restore{ReadyMs: now + r.ready, ExpiresMs: now + r.expires, Tier: r.tier}
			}
			if c.had != nil {
				s.now = now - 1
				s.ok(update("k", id, pb(c.had)))
				before.Restore = pb(c.had)
				before.Restore.RequestedMs = now - 1
			}
			s.now = now
			cmd := s.command(update("k", id, pb(&c.asked)))
			res := s.apply(cmd)
			if res.Ok != (c.kind == 0) || res.Kind != uint32(c.kind) || res.Restored != c.again || res.Ok && *versionIn(res) != *id {
				t.Errorf("answered %v", res)
			}
			if c.want != nil {
				requested := now
				if c.had != nil && c.had.expires > 0 {
					requested--
				}
				before.Restore = pb(c.want)
				before.Restore.RequestedMs = requested
			}
			check := func() {
				t.Helper()
				if after := got(s.view().Object(1, "k", id)); !after.EqualVT(before) {
					t.Errorf("%v, want %v", after, before)
				}
			}
			check()
			if n := got(s.view().Object(1, "k", nil)); n.Restore != nil {
				t.Errorf("the newest version was restored: %v", n)
			}
			// A repeat is answered from its outcome, whatever it would mean now.
			s.now += 9 * 60 * 1000
			if again := s.apply(cmd); again.Ok != res.Ok || again.Kind != res.Kind || again.Restored != res.Restored {
				t.Errorf("the repeat is answered %v, the first was %v", again, res)
			}
			check()
		})
	}
}

func got[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// What is archived is read from when it is ready until before it expires, and whatever is not, always.
func TestReadable(t *testing.T) {
	row := func(class string) *metapb.ObjectRow {
		return &metapb.ObjectRow{Attributes: &metapb.Attributes{StorageClass: class}, Restore: &metapb.Restore{ReadyMs: 10, ExpiresMs: 20}}
	}
	for class, archived := range map[string]bool{
		"": false, "STANDARD": false, "STANDARD_IA": false, "ONEZONE_IA": false, "GLACIER_IR": false, "INTELLIGENT_TIERING": false,
		"REDUCED_REDUNDANCY": false, "GLACIER": true, "DEEP_ARCHIVE": true,
	} {
		if Archived(row(class)) != archived {
			t.Errorf("%q: archived %v", class, !archived)
		}
		for now, readable := range map[int64]bool{9: !archived, 10: true, 19: true, 20: !archived} {
			if Readable(row(class), now) != readable {
				t.Errorf("%q at %d: readable %v", class, now, !readable)
			}
		}
	}
	if never := (&metapb.ObjectRow{Attributes: &metapb.Attributes{StorageClass: "GLACIER"}}); Readable(never, 0) {
		t.Error("readable without a restore")
	}
	if Archived(nil) || Archived(&metapb.ObjectRow{}) || Archived(&metapb.ObjectRow{DeleteMarker: true, Attributes: &metapb.Attributes{StorageClass: "GLACIER"}}) {
		t.Error("archived without an archive")
	}
}

func TestRestoreRefused(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	good := &metapb.Restore{ReadyMs: s.now + 1, ExpiresMs: s.now + 2, Tier: TierBulk}
	id := s.archive("k", "GLACIER")
	for _, bad := range []*metapb.Restore{
		nil, {}, {ReadyMs: 0, ExpiresMs: 5, Tier: TierBulk}, {ReadyMs: -1, ExpiresMs: 5, Tier: TierBulk}, {ReadyMs: 5, ExpiresMs: 5, Tier: TierBulk},
		{ReadyMs: 5, ExpiresMs: 4, Tier: TierBulk}, {ReadyMs: 4, ExpiresMs: 5}, {ReadyMs: 4, ExpiresMs: 5, Tier: "bulk"},
		{RequestedMs: 1, ReadyMs: 4, ExpiresMs: 5, Tier: TierBulk},
	} {
		s.refused(errs.InvalidArgument, update("k", id, bad))
	}
	for class, name := range map[string]string{"": "STANDARD", "STANDARD_IA": "STANDARD_IA", "GLACIER_IR": "GLACIER_IR"} {
		v := s.archive("other", class)
		if res := s.refused(errs.InvalidObjectState, update("other", v, good)); res.StorageClass != name {
			t.Errorf("%q: answered %v", class, res)
		}
		if row := got(s.view().Object(1, "other", v)); row.Restore != nil {
			t.Errorf("%q was restored", class)
		}
	}
	s.refused(errs.NoSuchKey, update("none", nil, good))
	s.refused(errs.NoSuchVersion, update("k", &storage.VersionID{Seq: id.Seq, Nonce: id.Nonce + 1}, good))
	marker := s.ok(s.delete(1, "k")).Entries[0]
	if res := s.refused(errs.IsDeleteMarker, update("k", nil, good)); *versionIn(res) != *versionIn(marker) {
		t.Errorf("a marker is answered %v", res)
	}
	s.ok(update("k", id, good)) // below the marker
}

// A restore stays with its version: when that moves to another archive class or among the versions, and in listings.
func TestRestoreStays(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	put := s.put(1, "k", 1000)
	put.Row.Attributes = &metapb.Attributes{StorageClass: "GLACIER"}
	id := versionIn(s.ok(put))
	want := &metapb.Restore{ReadyMs: s.now + 1000, ExpiresMs: s.now + 5000, Tier: TierExpedited}
	s.ok(update("k", nil, want))
	want.RequestedMs = s.now
	check := func(what, class string) {
		t.Helper()
		row := got(s.view().Object(1, "k", id))
		page := got(s.view().ListVersions(1, "", "", "", nil, 10))
		listed := page.Rows[len(page.Rows)-1].Row
		for _, r := range []*metapb.ObjectRow{row, listed} {
			if !r.Restore.EqualVT(want) || r.Attributes.StorageClass != class || r.Etag != put.Row.Etag || r.ModifiedMs != row.ModifiedMs {
				t.Errorf("%s: %v", what, r)
			}
		}
	}
	check("asked for", "GLACIER")
	s.ok(&metapb.RewriteDataOp{
		Bucket: 1, Key: []byte("k"), VersionSeq: uint64(id.Seq), WriteId: put.Row.WriteId, Generation: 1,
		Data: &metapb.Data{Chunks: []*metapb.ChunkRef{s.chunk(1000)}}, Release: put.Row.Data.Chunks,
		StorageClass: "DEEP_ARCHIVE", ConfigGeneration: 1,
	})
	check("moved", "DEEP_ARCHIVE")
	s.archive("k", "")
	check("noncurrent", "DEEP_ARCHIVE")
	s.now += 1000
	extended := &metapb.Restore{ReadyMs: s.now + 1, ExpiresMs: s.now + 100000, Tier: TierBulk}
	if res := s.ok(update("k", id, extended)); !res.Restored {
		t.Errorf("answered %v", res)
	}
	want.ExpiresMs = extended.ExpiresMs
	check("extended", "DEEP_ARCHIVE")
}
