// Package drive is one drive: a directory on one file system that keeps shards
// durable. A Drive is a storage.ShardStore.
//
// # On disk
//
//	drive.json           who this drive is (Identity); its inode is the proof that the directory is still the one opened
//	drive.lock           held by the process that has the drive open
//	extents/%08x.extent  shards, tombstones and epochs; the format is package extent's
//	index/               a Pebble without a WAL that finds a shard in the extents
//	index.rebuild        if there, the index is rotten and built anew at the next Open
//	raftlog/, state/     of the metadata plane; not touched here
//
// The extents are the truth and the index can be lost. Numbers in the index's
// values are little endian, in its keys big endian; a value begins with a version (1).
//
//	'i'                                -> drive id (16): whose index this is
//	's' pg(4) chunk(16) stripe(2) i(1) -> header length (2), extent (4), frame offset (4), payload length (4), CRC32C of each block (4 each)
//	't' pg(4) chunk(16)                -> when it was removed, unix ms (8)
//	'e' pg(4)                          -> epoch (8)
//	'x' extent(4)                      -> flags (1: sealed), salt (8), size (8), live bytes (8), live frames (8), bytes of other frames (8), when the last of them was written (8)
//	'q' number(8)                      -> extent (4), offset (4), length (4), since unix ms (8): a dead frame that still lies in its extent
//	'b' extent(4) offset(4)            -> length (8), tail (1), reason (text): a range skipped in recovery
//
// # Writing
//
// One goroutine, the writer, takes what waits in a bounded queue, writes it to
// the open extent with one gathered write and one sync, looks that the directory
// and the file are still there, enters it in the index, and answers. Callers
// have computed checksums and headers before; the payload is not copied. A write
// or sync that fails fails the drive for good, but for a write that finds no
// space: the extent is sealed at its last good byte and the appends answer DriveFull.
//
// The batch that enters frames in the index also sets the size in the extent's
// row. Since batches of a Pebble without WAL survive as a prefix, after a
// crash that row says exactly from where on the extent must be read again.
//
// # Recovery
//
// Open reads what lies behind the rows' sizes. A frame known to be synced (a
// later frame says so) is taken by its header; the others, those of the last
// batch, are taken if their payload is whole. Whatever is not a valid frame is
// stepped over, remembered and reported by Bad. All extents found are sealed, and
// the next write begins a new one: nothing is ever written behind bytes that a crash left.
// Of two frames of one shard the later one counts; a chunk with a tombstone has none.
//
// # Removing
//
// Remove writes a tombstone frame, then takes the shards' rows out and puts
// their places in the queue 'q'. The keeper makes holes of them (or, where the file
// system can't, writes zeros), syncs the extents, and only then forgets the
// queue's rows. So while the bytes of a removed shard can still be found, so can its
// tombstone: tombstones are dropped only when they are older than
// storage.TombstoneTTL and than everything in the queue, and a compaction copies
// the ones not dropped. An extent with little alive in it is compacted: what lives is
// appended to the open extent and the file unlinked. A reader that comes late to a
// place looks in the index again.
package drive
