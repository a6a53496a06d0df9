package rangestate

import (
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// A version that is always there is always found, also while newer ones come and
// go over it and so move it between 'c' and 'v'.
func TestReadsOfMovingVersions(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	op := s.put(1, "k", 10)
	res := s.ok(op)
	id := storage.VersionID{Seq: storage.Seq(res.VersionSeq), Nonce: res.VersionNonce}
	chunk := storage.ChunkID(op.Row.Data.Chunks[0].Id)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			v, err := NewView(s.db, testGroup)
			if err != nil {
				t.Errorf("view: %v", err)
				return
			}
			if _, err := v.Object(1, "k", &id); err != nil {
				t.Errorf("version: %v", err)
				return
			}
			if _, err := v.Object(1, "k", nil); err != nil && !errs.Is(err, errs.IsDeleteMarker) {
				t.Errorf("current: %v", err)
				return
			}
			if _, err := v.VersionBySeq(1, "k", id.Seq); err != nil {
				t.Errorf("by sequence: %v", err)
				return
			}
			if ok, err := v.Refers(storage.Owner{Bucket: 1, Key: "k"}, chunk); err != nil || !ok {
				t.Errorf("refers: %v, %v", ok, err)
				return
			}
			page, err := v.ListVersions(1, "", "", "", nil, 10)
			latest, mine := 0, 0
			for _, r := range page.Rows {
				if r.Row.NoncurrentMs == 0 {
					latest++
				}
				if r.Row.Seq == uint64(id.Seq) {
					mine++
				}
			}
			if err != nil || latest != 1 || mine != 1 {
				t.Errorf("versions: %v latest, %d of ours, %v", latest, mine, err)
				return
			}
			latest, mine = 0, 0
			_, err = v.Lifecycle(1, nil, 10, func(r *LifecycleRow) (bool, error) {
				if r.Newest {
					latest++
				}
				if r.Object.Seq == uint64(id.Seq) && r.Only == r.Newest {
					mine++
				}
				return true, nil
			})
			if err != nil || latest != 1 || mine != 1 {
				t.Errorf("lifecycle: %v latest, %d of ours, %v", latest, mine, err)
				return
			}
		}
	}()
	for i := range 1500 {
		var top *metapb.RangeResult
		if i%2 == 0 {
			top = s.ok(s.put(1, "k", 10))
		} else {
			top = s.ok(s.delete(1, "k")).Entries[0]
		}
		s.ok(s.deleteVersion(1, "k", storage.VersionID{Seq: storage.Seq(top.VersionSeq), Nonce: top.VersionNonce}))
		if i%100 == 99 {
			op := &metapb.DropGarbageOp{}
			for _, g := range s.garbageRows() {
				op.Ids = append(op.Ids, &metapb.GarbageID{Seq: uint64(g.Seq), N: g.N})
			}
			s.ok(op)
			s.now += retentionMS + 1
			s.ok(&metapb.SweepOp{})
		}
	}
	close(stop)
	<-stopped
}
