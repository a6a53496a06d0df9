package drive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"
	"cairn/storage/vfsx"
)

// scratch is what a read needs for a moment.
type scratch struct {
	key []byte
	buf []byte // a block of which the caller wants a part

	medium bool // not what a cache remembers
}

// errMoved says that the shard lies elsewhere by now: look again.
var errMoved = errors.New("drive: the shard was moved")

// ReadAt implements storage.ShardStore: one lookup, one pread straight into p of the whole blocks in it, and
// one each of a block at its ends of which it has a part.
func (d *Drive) ReadAt(_ context.Context, id storage.ShardID, off int, p []byte) error {
	return d.read(&id, off, p, false)
}

var _ storage.MediumReader = (*Drive)(nil)

// ReadMedium implements storage.MediumReader.
func (d *Drive) ReadMedium(_ context.Context, id storage.ShardID, off int, p []byte) error {
	return d.read(&id, off, p, true)
}

func (d *Drive) read(id *storage.ShardID, off int, p []byte, medium bool) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.gate.leave()
	s := d.scratch.Get().(*scratch)
	s.key, s.medium = appendShardKey(s.key[:0], id), medium
	err := d.readOnce(s, id, off, p)
	for tries := 0; err == errMoved && tries < 10; tries++ {
		err = d.readOnce(s, id, off, p)
	}
	d.scratch.Put(s)
	return err
}

func (d *Drive) readOnce(s *scratch, id *storage.ShardID, off int, p []byte) error {
	const op = "drive.read"
	v, closeRow, ok, err := d.index.get(s.key)
	if err != nil {
		return d.readFailed(op, err)
	}
	if !ok {
		return d.notFound(op, id)
	}
	defer closeRow()
	at, sums, err := parseShardRow(v)
	if err != nil {
		return d.readFailed(op, err)
	}
	if off < 0 || off+len(p) > int(at.payload) {
		return errs.Newf(errs.InvalidArgument, op, id.String(), "bytes %d to %d of a shard of %d", off, off+len(p), at.payload)
	}
	if len(p) == 0 {
		return nil
	}
	e, err := d.extents.acquire(at.extent)
	if err != nil || e == nil {
		return d.unreadable(s, id, at, err)
	}
	defer d.extents.release(e)
	if bad, err := readBlocks(s, e.file, at, sums, off, p); err != nil {
		return d.unreadable(s, id, at, err)
	} else if bad >= 0 {
		return d.damaged(s, id, at, fmt.Errorf("block %d does not match its checksum", bad))
	}
	return nil
}

// readBlocks fills p with the payload's bytes from off on. Every block that holds some of them is verified: the first
// that does not match its checksum is answered, else -1.
func readBlocks(s *scratch, f vfsx.File, at location, sums []byte, off int, p []byte) (bad int, err error) {
	payload := int(at.payload)
	for len(p) > 0 {
		first := off / storage.BlockBytes
		begin := first * storage.BlockBytes
		blocks, n := p, len(p)
		if off+n != payload {
			n -= n % storage.BlockBytes // the last block as far as it is wanted comes next
		}
		whole := off == begin && n > 0
		if whole {
			blocks = p[:n]
		} else {
			if s.buf == nil {
				s.buf = make([]byte, storage.BlockBytes)
			}
			blocks = s.buf[:min(payload-begin, storage.BlockBytes)]
		}
		from := int64(at.off) + int64(at.header) + int64(begin)
		if s.medium {
			f.Forget(from, int64(len(blocks)))
			defer f.Forget(from, int64(len(blocks))) // what is hot lies in the cache; what was only checked need not
		}
		if got, err := f.ReadAt(blocks, from); err != nil && got < len(blocks) {
			return -1, err
		}
		if bad := extent.Verify(sums, first, blocks); bad >= 0 {
			return bad, nil
		}
		if !whole {
			n = copy(p, blocks[off-begin:])
		}
		p, off = p[n:], off+n
	}
	return -1, nil
}

// notFound is Gone or NotFound.
func (d *Drive) notFound(op string, id *storage.ShardID) error {
	_, removed, err := d.index.number(appendChunkKey(nil, rowTombstone, id.PG, &id.Chunk))
	if err != nil {
		return d.readFailed(op, err)
	}
	if removed {
		return errs.New(errs.Gone, op, id.String(), "the chunk was removed")
	}
	return errs.New(errs.NotFound, op, id.String(), "")
}

// unreadable sorts an I/O error of a read: errMoved if the shard lies elsewhere or
// nowhere by now; Busy or Unavailable if the error says nothing of the shard; else as damaged.
// A nil cause says that the extent is not known.
func (d *Drive) unreadable(s *scratch, id *storage.ShardID, at location, cause error) error {
	if cause == nil {
		cause = fmt.Errorf("the extent is missing: %w", os.ErrNotExist)
	}
	return d.failedRead(s, id, at, cause, lossKind(cause))
}

// damaged is unreadable for bytes that were read and are not those written.
func (d *Drive) damaged(s *scratch, id *storage.ShardID, at location, cause error) error {
	return d.failedRead(s, id, at, cause, errs.Corrupt)
}

// lossKind is what an I/O error says of the bytes to be read: Corrupt if they are
// lost, Busy if there was no descriptor or memory to read them, Unavailable if nothing is known.
func lossKind(err error) errs.Kind {
	switch {
	case vfsx.IsLoss(err):
		return errs.Corrupt
	case vfsx.IsShortage(err):
		return errs.Busy
	}
	return errs.Unavailable
}

// failedRead answers a read that got no or wrong bytes; what is Corrupt is remembered, so that an append heals it.
func (d *Drive) failedRead(s *scratch, id *storage.ShardID, at location, cause error, kind errs.Kind) error {
	now, ok, err := d.index.location(s.key)
	if err != nil {
		return d.readFailed("drive.read", err)
	}
	if !ok || now != at {
		return errMoved
	}
	if !errors.Is(cause, io.EOF) && !errors.Is(cause, os.ErrNotExist) {
		// An I/O error of a drive that is gone is no news of the shard.
		if err := d.Check(); err != nil {
			return err
		}
	}
	detail := fmt.Sprintf("can't be read now from %s", d.extentPath(at.extent))
	if kind == errs.Corrupt {
		d.bad.add(*id, at.place)
		detail = fmt.Sprintf("damaged at %d of %s", at.off, d.extentPath(at.extent))
	}
	return &errs.Error{Kind: kind, Op: "drive.read", Subject: id.String(), Detail: detail, Err: cause}
}

// listPage is how many shards List reads at once.
const listPage = 512

// List implements storage.ShardStore.
func (d *Drive) List(ctx context.Context, pg storage.PGID, from storage.ChunkID, fn func(storage.ShardInfo) bool) error {
	lower := appendChunkKey(nil, rowShard, pg, &from)
	upper := rowEnd(rowShard)
	if pg+1 != 0 {
		upper = numberKey(rowShard, uint32(pg+1))
	}
	page := make([]storage.ShardInfo, 0, listPage)
	for {
		if err := ctx.Err(); err != nil {
			return d.ctxError(ctx)
		}
		if err := d.listPage(lower, upper, &page); err != nil {
			return err
		}
		for _, info := range page {
			if !fn(info) {
				return nil
			}
		}
		if len(page) < listPage {
			return nil
		}
		lower = append(appendShardKey(nil, &page[len(page)-1].ID), 0) // the key behind the last
	}
}

func (d *Drive) listPage(lower, upper []byte, page *[]storage.ShardInfo) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.gate.leave()
	*page = (*page)[:0]
	err := d.index.each(lower, upper, func(k, v []byte) (bool, error) {
		id, err := parseShardKey(k)
		if err != nil {
			return false, err
		}
		l, _, err := parseShardRow(v)
		*page = append(*page, storage.ShardInfo{ID: id, Bytes: int(l.payload)})
		return len(*page) < listPage, err
	})
	if err != nil {
		return d.readFailed("drive.list", err)
	}
	return nil
}

// badShardsMax bounds what is remembered of damaged shards; those beyond are found again by the next read.
const badShardsMax = 64 << 10

// badShards are the shards whose last read failed, and where they lie.
type badShards struct {
	mu     sync.Mutex
	places map[storage.ShardID]place
}

func (b *badShards) add(id storage.ShardID, p place) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.places == nil {
		b.places = map[storage.ShardID]place{}
	}
	if len(b.places) < badShardsMax {
		b.places[id] = p
	}
}

func (b *badShards) has(id storage.ShardID, p place) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok := b.places[id]
	return ok && at == p
}

func (b *badShards) forget(id storage.ShardID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.places, id)
}

func (b *badShards) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.places)
}
