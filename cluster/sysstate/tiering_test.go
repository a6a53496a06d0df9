package sysstate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// TestTieringConfigurations: they come and go one by one, each a decision of the bucket's.
func TestTieringConfigurations(t *testing.T) {
	s := newSim(t)
	s.ok(create("b", "ann"))
	put := func(id string, days uint32) *metapb.SetBucketConfigOp {
		return &metapb.SetBucketConfigOp{Bucket: 1, Tiering: &metapb.SetTiering{Put: &metapb.TieringConfig{Id: id, ArchiveDays: days}}}
	}
	remove := func(id string) *metapb.SetBucketConfigOp {
		return &metapb.SetBucketConfigOp{Bucket: 1, Tiering: &metapb.SetTiering{Remove: id}}
	}
	s.refused(errs.BucketBusy, put("early", 1))
	s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: metapb.BucketState_BUCKET_CREATING, To: metapb.BucketState_BUCKET_ACTIVE})
	want := func(want ...string) {
		t.Helper()
		row, err := BucketByID(s.db, 1)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, c := range row.Tiering {
			got = append(got, fmt.Sprint(c.Id, c.ArchiveDays))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	}
	for i, op := range []*metapb.SetBucketConfigOp{put("m", 1), put("z", 2), put("a", 3), put("m", 4)} {
		b := s.ok(op).Bucket
		if b.Tiering != nil || b.Generation != uint64(3+i) {
			t.Fatal(b)
		}
		if rows, err := PendingBuckets(s.db, 0, 10); err != nil || len(rows) != 1 || rows[0].Tiering != nil {
			t.Fatal(rows, err)
		}
		s.ok(&metapb.BucketRowsDoneOp{Bucket: 1, Generation: b.Generation})
	}
	want("a3", "m4", "z2")
	s.refused(errs.NotFound, remove("b"))
	s.refused(errs.InvalidArgument, &metapb.SetBucketConfigOp{Bucket: 1, Tiering: &metapb.SetTiering{}})
	s.refused(errs.InvalidArgument, put("", 1))
	s.refused(errs.EntityTooLarge, put(strings.Repeat("x", tieringBytesMax), 1))
	want("a3", "m4", "z2")
	s.ok(remove("m"))
	want("a3", "z2")
	for i := range tieringMax - 2 {
		s.ok(put(fmt.Sprintf("n%04d", i), 1))
	}
	s.refused(errs.EntityTooLarge, put("one more", 1))
	s.ok(put("n0500", 2)) // takes a place that there is
	s.ok(remove("a"))
	s.ok(put("one more", 1))
}
