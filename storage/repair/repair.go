// Package repair brings redundancy back. It holds four workers, each to be run by
// a worker.Runner and independent of the others:
//
//   - Rows: shards that missed their write's quorum, as recorded in repair rows by
//     the same command as the write.
//   - Healer: shards that reads found missing or corrupt.
//   - Resync: what a drive lacks that was away or replaced by an empty one, as recorded
//     by dirty slots of placement groups.
//   - Scrub: everything else, found by slowly reading all there is; and orphans.
//
// They share some rules. "Done" means verified: a shard counts as repaired after
// Plane.Rebuild read it back, and only then a row or a slot is changed. Nothing is
// removed to repair something; the one removal in this package is that of orphans
// (see Scrub). An item that cannot be repaired is skipped, named in the status and
// tried again after a growing back-off; it never keeps others waiting. Every worker
// may be stopped or killed anywhere: all it does may be repeated.
//
// A Gone answer means that the chunk was removed by a committed delete while we
// worked on it. That is fine and ends the work on it.
package repair

import (
	"context"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Plane is the data plane as the workers see it: chunkio.Plane.
type Plane interface {
	// Rebuild makes the shards with these indexes, in every stripe of the chunk, from
	// the others, appends them to the placement group's present drives, reads them back
	// and verifies them. Shards that are there and good are left as they are.
	// Errors: Gone (chunk removed); Unavailable (fewer than k good shards of a stripe
	// can be read now); what appending answers. After an error some shards may have been rebuilt.
	Rebuild(ctx context.Context, owner storage.Owner, ref *metapb.ChunkRef, indexes []int) error
	// Remove makes every drive of the chunks' placement groups record that the chunks
	// are removed. done: all did. It may be repeated.
	Remove(ctx context.Context, refs []*metapb.ChunkRef) (done bool, err error)
}

// Referrer answers whether a chunk is anybody's, and what it is.
//
// A frame's header says whose it is for good, but about the layout it says only
// what was meant when it was written: a write that had to move on to another placement
// group cuts the chunk it leaves to the stripes that were durable, and the row tells
// the shorter length. Frames of stripes behind it stay with the chunk and mean nothing.
type Referrer interface {
	// Refers reads, linearizably in the range of the owner's key, whether any row
	// names the chunk: a version, a part of a completed upload or of one in progress or doomed,
	// or a garbage row. timeMS is the range time in the same view. A bucket that does not
	// exist refers to nothing. On an error nothing is known.
	Refers(ctx context.Context, owner storage.Owner, chunk storage.ChunkID) (refers bool, timeMS int64, err error)
	// Ref reads, linearizably, the reference by which a version or part of the owner's
	// key names the chunk; nil if none does.
	Ref(ctx context.Context, owner storage.Owner, chunk storage.ChunkID) (*metapb.ChunkRef, error)
}

// Stores finds a drive's shards: nil if the drive cannot be reached. Drives should implement storage.HeaderReader, too.
type Stores func(storage.DriveID) storage.ShardStore

// headerOf reads a shard's header.
func headerOf(ctx context.Context, s storage.ShardStore, id storage.ShardID) (storage.ShardHeader, error) {
	hr, ok := s.(storage.HeaderReader)
	if !ok {
		return storage.ShardHeader{}, errs.New(errs.NotImplemented, "repair.header", id.String(), "this drive cannot tell what a shard is")
	}
	return hr.Header(ctx, id)
}

// refOf is the reference that a row would hold to the chunk of a shard.
func refOf(h *storage.ShardHeader, epoch storage.Epoch) *metapb.ChunkRef {
	return &metapb.ChunkRef{
		Id: h.ID.Chunk[:], Pg: uint32(h.ID.PG), Epoch: uint64(epoch),
		K: uint32(h.Layout.Scheme.K), M: uint32(h.Layout.Scheme.M),
		StripeBytes: uint32(h.Layout.StripeBytes), Length: uint64(h.Layout.Length),
	}
}

// stripesOf is how many stripes a reference tells of.
func stripesOf(ref *metapb.ChunkRef) int {
	l := storage.Layout{Scheme: storage.Scheme{K: uint8(ref.K), M: uint8(ref.M)}, StripeBytes: int(ref.StripeBytes), Length: int64(ref.Length)}
	if l.StripeBytes <= 0 {
		return 0
	}
	return l.Stripes()
}

// active reports whether the system group takes the drive for one that reads and writes.
func active(t *cluster.Topology, id storage.DriveID) bool {
	d, ok := t.Drives[id]
	return ok && d.State == cluster.DriveActive
}

// indexesOf are the set bits, in order.
func indexesOf(bits uint64) (out []int) {
	for i := range 64 {
		if bits&(1<<i) != 0 {
			out = append(out, i)
		}
	}
	return out
}
