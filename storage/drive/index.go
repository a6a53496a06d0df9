package drive

import (
	"encoding/binary"
	"errors"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// The rows of the index; see the package doc.
const (
	rowIdentity  = 'i'
	rowShard     = 's'
	rowTombstone = 't'
	rowEpoch     = 'e'
	rowExtent    = 'x'
	rowClear     = 'q'
	rowBad       = 'b'

	rowVersion = 1

	shardKeyBytes = 24
	chunkKeyBytes = 21 // the prefix of a chunk's shards, and a tombstone's key
)

var errRow = errs.New(errs.Corrupt, "drive.index", "", "a row of the index can't be read")

// place is where a frame lies.
type place struct {
	extent uint32
	off    uint32 // of the frame
}

func (p place) after(o place) bool {
	return p.extent > o.extent || p.extent == o.extent && p.off > o.off
}

// location is where a shard lies and how long it is.
type location struct {
	place
	header  uint16 // bytes
	payload uint32 // bytes
}

// frameBytes is the length of the frame.
func (l location) frameBytes() int64 { return int64(l.header) + int64(extent.Padded(int(l.payload))) }

func appendShardKey(dst []byte, id *storage.ShardID) []byte {
	dst = appendChunkKey(dst, rowShard, id.PG, &id.Chunk)
	dst = binary.BigEndian.AppendUint16(dst, id.Stripe)
	return append(dst, id.Index)
}

// appendChunkKey is a tombstone's key, or with rowShard the prefix of the chunk's shards.
func appendChunkKey(dst []byte, row byte, pg storage.PGID, chunk *storage.ChunkID) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, row), uint32(pg))
	return append(dst, chunk[:]...)
}

func parseShardKey(k []byte) (id storage.ShardID, err error) {
	if len(k) != shardKeyBytes {
		return id, errRow
	}
	return storage.ShardID{
		PG:     storage.PGID(binary.BigEndian.Uint32(k[1:])),
		Chunk:  storage.ChunkID(k[5:21]),
		Stripe: binary.BigEndian.Uint16(k[21:]),
		Index:  k[23],
	}, nil
}

func numberKey(row byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{row}, n)
}

// keyNumber is the number in a key made by numberKey.
func keyNumber(k []byte) uint32 {
	if len(k) < 5 {
		return 0
	}
	return binary.BigEndian.Uint32(k[1:])
}

func clearKey(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{rowClear}, n) }

// clearNumber is the number in a key made by clearKey.
func clearNumber(k []byte) uint64 {
	if len(k) < 9 {
		return 0
	}
	return binary.BigEndian.Uint64(k[1:])
}

func badKey(p place) []byte {
	return binary.BigEndian.AppendUint32(numberKey(rowBad, p.extent), p.off)
}

// rowEnd is the first key behind all rows of a kind.
func rowEnd(row byte) []byte { return []byte{row + 1} }

func appendShardRow(dst []byte, l location, sums []byte) []byte {
	dst = binary.LittleEndian.AppendUint16(append(dst, rowVersion), l.header)
	dst = binary.LittleEndian.AppendUint32(dst, l.extent)
	dst = binary.LittleEndian.AppendUint32(dst, l.off)
	dst = binary.LittleEndian.AppendUint32(dst, l.payload)
	return append(dst, sums...)
}

func parseShardRow(v []byte) (l location, sums []byte, err error) {
	if len(v) < 15 || v[0] != rowVersion {
		return l, nil, errRow
	}
	l = location{
		place:   place{binary.LittleEndian.Uint32(v[3:]), binary.LittleEndian.Uint32(v[7:])},
		header:  binary.LittleEndian.Uint16(v[1:]),
		payload: binary.LittleEndian.Uint32(v[11:]),
	}
	if sums = v[15:]; len(sums) != 4*extent.Blocks(int(l.payload)) {
		return l, nil, errRow
	}
	return l, sums, nil
}

func appendNumberRow(dst []byte, n uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(dst, rowVersion), n)
}

func parseNumberRow(v []byte) (uint64, error) {
	if len(v) != 9 || v[0] != rowVersion {
		return 0, errRow
	}
	return binary.LittleEndian.Uint64(v[1:]), nil
}

// dead is a row of the clear queue: a frame that nothing refers to.
type dead struct {
	place
	bytes   uint32
	sinceMS int64
}

func (c dead) row() []byte {
	b := binary.LittleEndian.AppendUint32([]byte{rowVersion}, c.extent)
	b = binary.LittleEndian.AppendUint32(b, c.off)
	b = binary.LittleEndian.AppendUint32(b, c.bytes)
	return binary.LittleEndian.AppendUint64(b, uint64(c.sinceMS))
}

func parseDead(v []byte) (c dead, err error) {
	if len(v) != 21 || v[0] != rowVersion {
		return c, errRow
	}
	c.extent, c.off = binary.LittleEndian.Uint32(v[1:]), binary.LittleEndian.Uint32(v[5:])
	c.bytes, c.sinceMS = binary.LittleEndian.Uint32(v[9:]), int64(binary.LittleEndian.Uint64(v[13:]))
	return c, nil
}

// extentRow is what the index knows of an extent.
type extentRow struct {
	sealed     bool
	salt       uint64
	size       int64 // end of the last frame entered in the index
	live       int64 // bytes of frames that the index refers to
	liveFrames int64
	others     int64 // bytes of frames that are no shards
	othersMS   int64 // when the last of them was written, unix ms
}

func (x extentRow) encode() []byte {
	b := make([]byte, 0, 50)
	b = append(b, rowVersion, 0)
	if x.sealed {
		b[1] = 1
	}
	b = binary.LittleEndian.AppendUint64(b, x.salt)
	for _, n := range []int64{x.size, x.live, x.liveFrames, x.others, x.othersMS} {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	return b
}

func parseExtentRow(v []byte) (x extentRow, err error) {
	if len(v) != 50 || v[0] != rowVersion {
		return x, errRow
	}
	n := func(at int) int64 { return int64(binary.LittleEndian.Uint64(v[at:])) }
	return extentRow{v[1]&1 != 0, uint64(n(2)), n(10), n(18), n(26), n(34), n(42)}, nil
}

func badRow(r BadRange) []byte {
	b := binary.LittleEndian.AppendUint64([]byte{rowVersion}, uint64(r.Bytes))
	tail := byte(0)
	if r.Tail {
		tail = 1
	}
	return append(append(b, tail), r.Reason...)
}

func parseBad(k, v []byte) (r BadRange, err error) {
	if len(k) != 9 || len(v) < 10 || v[0] != rowVersion {
		return r, errRow
	}
	return BadRange{
		Extent: binary.BigEndian.Uint32(k[1:]),
		Off:    int64(binary.BigEndian.Uint32(k[5:])),
		Bytes:  int64(binary.LittleEndian.Uint64(v[1:])),
		Tail:   v[9] == 1,
		Reason: string(v[10:]),
	}, nil
}

// index is the Pebble of a drive. Whoever uses it has entered the drive's gate,
// or is the writer or the keeper, which end before it is closed.
type index struct {
	db *pebble.DB
}

// openIndex opens or creates the index in dir.
func openIndex(d *Drive) (*index, error) {
	opts := &pebble.Options{
		FS:                         &indexFS{FS: d.fs, d: d},
		DisableWAL:                 true, // the extents are the log
		Cache:                      d.cfg.Cache,
		FileCache:                  d.cfg.FileCache,
		FormatMajorVersion:         pebble.FormatWALSyncChunks, // pinned; raised a release after all can read it
		MemTableSize:               uint64(d.cfg.MemTableBytes),
		Logger:                     indexLogger{d},
		MaxOpenFiles:               256,
		CompactionConcurrencyRange: func() (int, int) { return 1, 1 },
		EventListener: &pebble.EventListener{
			// Runs under Pebble's lock: must not wait.
			BackgroundError: func(err error) { d.indexError(err) },
			DataCorruption:  func(i pebble.DataCorruptionInfo) { d.indexRotten(i.Details) },
		},
	}
	opts.Experimental.CompactionScheduler = d.cfg.Scheduler
	if opts.Experimental.CompactionScheduler == nil {
		opts.Experimental.CompactionScheduler = &scheduler{}
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(10) // every append asks for a shard that is not there
	}
	// Ids and checksums don't compress.
	opts.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionNone })
	db, err := pebble.Open(d.fs.PathJoin(d.dir, indexName), opts)
	if err != nil {
		return nil, err
	}
	return &index{db: db}, nil
}

// get is pebble's Get with a missing row as ok = false. The value is valid until close.
func (ix *index) get(key []byte) (v []byte, close func() error, ok bool, err error) {
	v, closer, err := ix.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, err
	}
	return v, closer.Close, true, nil
}

// location finds a shard; key is its row's key.
func (ix *index) location(key []byte) (l location, ok bool, err error) {
	v, closer, err := ix.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return l, false, nil
	}
	if err != nil {
		return l, false, err
	}
	l, _, err = parseShardRow(v)
	return l, err == nil, errors.Join(err, closer.Close())
}

// number reads a row that holds a number.
func (ix *index) number(key []byte) (n uint64, ok bool, err error) {
	v, closer, err := ix.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	n, err = parseNumberRow(v)
	return n, err == nil, errors.Join(err, closer.Close())
}

// each calls fn for the rows in [from, to) until fn answers false; k and v are valid only within.
func (ix *index) each(from, to []byte, fn func(k, v []byte) (bool, error)) error {
	it, err := ix.db.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return err
	}
	more := true
	for ok := it.First(); ok && more && err == nil; ok = it.Next() {
		var v []byte
		if v, err = it.ValueAndErr(); err == nil {
			more, err = fn(it.Key(), v)
		}
	}
	return errors.Join(err, it.Error(), it.Close())
}

// ours checks whose index this is, and makes an empty one this drive's.
func (ix *index) ours(id storage.DriveID) (bool, error) {
	v, close, ok, err := ix.get([]byte{rowIdentity})
	if err != nil {
		return false, err
	}
	if ok {
		same := len(v) == 17 && v[0] == rowVersion && storage.DriveID(v[1:]) == id
		return same, close()
	}
	return true, ix.db.Set([]byte{rowIdentity}, append([]byte{rowVersion}, id[:]...), pebble.NoSync)
}
