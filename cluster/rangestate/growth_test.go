package rangestate

import (
	"testing"

	"cairn/cluster"
	"cairn/proto/metapb"
)

// What a full drive refuses, and what it must not: removals, and all that makes them possible.
func TestGrowth(t *testing.T) {
	del := func(versions ...bool) *metapb.RangeCommand {
		op := &metapb.DeleteObjectsOp{Bucket: 1}
		for _, v := range versions {
			op.Entries = append(op.Entries, &metapb.DeleteEntry{Key: []byte("k"), HasVersion: v})
		}
		return &metapb.RangeCommand{Op: &metapb.RangeCommand_DeleteObjects{DeleteObjects: op}}
	}
	expire := func(what ...metapb.ExpireEntry_What) *metapb.RangeCommand {
		op := &metapb.ExpireOp{Bucket: 1}
		for _, w := range what {
			op.Entries = append(op.Entries, &metapb.ExpireEntry{Key: []byte("k"), What: w})
		}
		return &metapb.RangeCommand{Op: &metapb.RangeCommand_Expire{Expire: op}}
	}
	for _, c := range []struct {
		name string
		cmd  *metapb.RangeCommand
		want cluster.Growth
	}{
		{"put", &metapb.RangeCommand{Op: &metapb.RangeCommand_PutObject{PutObject: &metapb.PutObjectOp{}}}, cluster.GrowthLarge},
		{"upload", &metapb.RangeCommand{Op: &metapb.RangeCommand_CreateUpload{CreateUpload: &metapb.CreateUploadOp{}}}, cluster.GrowthLarge},
		{"part", &metapb.RangeCommand{Op: &metapb.RangeCommand_PutPart{PutPart: &metapb.PutPartOp{}}}, cluster.GrowthLarge},
		{"complete", &metapb.RangeCommand{Op: &metapb.RangeCommand_CompleteUpload{CompleteUpload: &metapb.CompleteUploadOp{}}}, cluster.GrowthLarge},
		{"abort", &metapb.RangeCommand{Op: &metapb.RangeCommand_AbortUpload{AbortUpload: &metapb.AbortUploadOp{}}}, cluster.GrowthNone},
		{"delete of versions", del(true, true), cluster.GrowthNone},
		{"delete of a key", del(true, false), cluster.GrowthSmall},
		{"expiry of a version", expire(metapb.ExpireEntry_NONCURRENT, metapb.ExpireEntry_MARKER, metapb.ExpireEntry_UPLOAD), cluster.GrowthNone},
		{"expiry of a key", expire(metapb.ExpireEntry_NONCURRENT, metapb.ExpireEntry_CURRENT), cluster.GrowthSmall},
		{"tags", &metapb.RangeCommand{Op: &metapb.RangeCommand_UpdateVersion{UpdateVersion: &metapb.UpdateVersionOp{
			Change: &metapb.UpdateVersionOp_Tags{Tags: &metapb.Tags{}},
		}}}, cluster.GrowthLarge},
		{"legal hold", &metapb.RangeCommand{Op: &metapb.RangeCommand_UpdateVersion{UpdateVersion: &metapb.UpdateVersionOp{
			Change: &metapb.UpdateVersionOp_LegalHold{LegalHold: true},
		}}}, cluster.GrowthSmall},
		{"restore", &metapb.RangeCommand{Op: &metapb.RangeCommand_UpdateVersion{UpdateVersion: &metapb.UpdateVersionOp{
			Change: &metapb.UpdateVersionOp_Restore{Restore: &metapb.Restore{}},
		}}}, cluster.GrowthSmall},
		{"garbage", &metapb.RangeCommand{Op: &metapb.RangeCommand_DropGarbage{DropGarbage: &metapb.DropGarbageOp{}}}, cluster.GrowthNone},
		{"repair", &metapb.RangeCommand{Op: &metapb.RangeCommand_RewriteData{RewriteData: &metapb.RewriteDataOp{}}}, cluster.GrowthNone},
		{"split", &metapb.RangeCommand{Op: &metapb.RangeCommand_Split{Split: &metapb.SplitOp{}}}, cluster.GrowthNone},
	} {
		b, err := c.cmd.MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if got := New(2).Growth(b); got != c.want {
			t.Errorf("%s: growth %d, want %d", c.name, got, c.want)
		}
	}
	if got := New(2).Growth([]byte{0xff}); got != cluster.GrowthNone {
		t.Errorf("nonsense: growth %d", got)
	}
}
