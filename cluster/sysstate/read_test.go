package sysstate

import (
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// TestReadsWhileRowsChange reads over a store that changes meanwhile, as a leader's
// and a follower's readers do: an answer is of one moment.
func TestReadsWhileRowsChange(t *testing.T) {
	s := newSim(t)
	if _, err := EncodeTopology(s.db); err != nil {
		t.Fatal(err)
	}
	var name, account, pending, topology int
	reads := []func(r pebble.Reader) error{
		func(r pebble.Reader) error {
			b, err := BucketByName(r, "photos")
			if err == nil && b.Name == "photos" {
				name++
			}
			if errs.Is(err, errs.NoSuchBucket) {
				err = nil
			}
			return err
		},
		func(r pebble.Reader) error {
			page, _, err := ListBuckets(r, "ann", "", "", 10)
			account += len(page)
			return err
		},
		func(r pebble.Reader) error {
			page, err := PendingBuckets(r, 0, 10)
			pending += len(page)
			return err
		},
		func(r pebble.Reader) error {
			st, err := Topology(r)
			if err == nil {
				topology++
				if len(st.Drives) < 3 {
					t.Error("a topology without drives")
				}
			}
			return err
		},
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for _, read := range reads {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := read(s.db); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 1500 {
		id := s.ok(create("photos", "ann")).Bucket.Id
		s.ok(&metapb.SetBucketStateOp{Bucket: id, From: bCreating, To: bActive})
		s.ok(&metapb.SetBucketStateOp{Bucket: id, From: bActive, To: bDeleting})
		s.ok(&metapb.RemoveBucketOp{Bucket: id})
	}
	close(stop)
	wg.Wait()
	t.Log("read: by name", name, "by account", account, "pending", pending, "topologies", topology)
}
