package storage

import (
	"context"
	"time"
)

// ShardHeader says what a shard is; it is written with the bytes, so that a
// drive explains itself without any index or metadata.
type ShardHeader struct {
	ID     ShardID
	Epoch  Epoch // of the placement group, as the writer knew it
	Owner  Owner
	Layout Layout // of the whole chunk as far as known: Length is 0 while a chunk is still being written
}

// ShardStore is one drive as the data plane sees it: implemented by a local
// drive (storage/drive) and, over RPC, by a remote one. All methods are safe for
// concurrent use, honour ctx, and answer errors of package errs. A call may
// return early when ctx ends while the drive goes on; buffers are then still
// in use until the drive is done, so callers hand in buffers through
// AppendBuffer-style ownership: see Append.
type ShardStore interface {
	// Append makes one shard durable: on nil its bytes survive power loss.
	// The payload (1 byte to a few MiB) is read-only and belongs to the store
	// until done is called; done is called exactly once, possibly after Append
	// has returned with ctx's error. done may be nil.
	//
	// Appending a shard that is there already with the same bytes and owner is
	// answered nil. Errors: StaleEpoch; Gone (chunk removed); DriveFull;
	// DriveFailed (also for every later call); Conflict (there with other bytes).
	// After any error but StaleEpoch, Gone, DriveFull and Conflict the shard may or may not be durable.
	Append(ctx context.Context, h ShardHeader, payload []byte, done func()) error

	// ReadAt fills p with the shard's bytes from off on; every checksum block it
	// touches is verified before it returns nil. p belongs to the caller again
	// when ReadAt returns: a store that cannot stop an I/O waits for it. A caller that wants to
	// hedge runs it in a goroutine of its own with a buffer of its own.
	// Errors: NotFound, Gone, Corrupt (names the extent), DriveFailed,
	// InvalidArgument (off+len(p) past the shard's end); Busy and Unavailable say
	// nothing of the shard: it can't be read now.
	ReadAt(ctx context.Context, id ShardID, off int, p []byte) error

	// Remove marks chunks as removed, durably, and frees their space soon after:
	// from then on their shards are Gone and appends of them are refused. Chunks
	// the drive never held are recorded too (for TombstoneTTL at least), so that a late append or
	// a repair cannot bring them back. Idempotent.
	Remove(ctx context.Context, chunks []ChunkRemoval) error

	// List calls fn for every live shard of a placement group whose chunk is >= from,
	// in order of (chunk, stripe, index), until fn returns false. Pages inside: holds no lock while fn runs.
	List(ctx context.Context, pg PGID, from ChunkID, fn func(ShardInfo) bool) error

	// SetEpochs raises the epochs of placement groups, durably; lower ones than
	// known are ignored. After a start a drive refuses appends (StaleEpoch)
	// to groups whose epoch it has not been told since.
	SetEpochs(ctx context.Context, epochs map[PGID]Epoch) error
}

// TombstoneTTL is how long a drive remembers that a chunk was removed, longer than any append of it can be under way.
const TombstoneTTL = 48 * time.Hour

// ChunkRemoval names a chunk to remove in the placement group it lies in.
type ChunkRemoval struct {
	PG    PGID
	Chunk ChunkID
}

// ShardInfo is what a drive's index knows of a live shard.
type ShardInfo struct {
	ID    ShardID
	Bytes int
}

// HeaderReader is an optional ability of a ShardStore: resync and scrub ask what
// a shard is where no row tells them, and the checker whose it is.
type HeaderReader interface {
	// Header is the header of a live shard as it was written with its bytes, read
	// from where the bytes lie (not from an index) with its checksum verified. Errors as of ReadAt.
	Header(ctx context.Context, id ShardID) (ShardHeader, error)
}

// MediumReader is an optional ability of a ShardStore: who checks a drive wants what lies on it, not what a cache remembers of it.
type MediumReader interface {
	// ReadMedium is ReadAt past the caches that there may be.
	ReadMedium(ctx context.Context, id ShardID, off int, p []byte) error
}

// AsyncAppender is an optional ability of a ShardStore whose appends wait in a
// queue anyway: it spares the caller a goroutine for each shard.
type AsyncAppender interface {
	// AppendAsync is Append without waiting. It never blocks and calls done exactly once, from
	// any goroutine, possibly before it returns, with what Append would have
	// answered; from then on the store neither reads nor holds the payload. done does not
	// block and may call AppendAsync. A full queue is answered Busy at once; Append would wait.
	AppendAsync(h ShardHeader, payload []byte, done func(error))
}
