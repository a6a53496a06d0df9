package drive

import (
	"context"
	"fmt"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"
)

var _ storage.HeaderReader = (*Drive)(nil)

// Header implements storage.HeaderReader: the header as it lies before the
// shard's bytes in the extent. One that is damaged is remembered like a damaged
// shard, so that an append heals it.
func (d *Drive) Header(_ context.Context, id storage.ShardID) (storage.ShardHeader, error) {
	if err := d.enter(); err != nil {
		return storage.ShardHeader{}, err
	}
	defer d.gate.leave()
	s := d.scratch.Get().(*scratch)
	defer d.scratch.Put(s)
	s.key = appendShardKey(s.key[:0], &id)
	h, err := d.headerOnce(s, &id)
	for tries := 0; err == errMoved && tries < 10; tries++ {
		h, err = d.headerOnce(s, &id)
	}
	return h, err
}

func (d *Drive) headerOnce(s *scratch, id *storage.ShardID) (h storage.ShardHeader, err error) {
	at, ok, err := d.index.location(s.key)
	if err != nil {
		return h, d.readFailed("drive.header", err)
	}
	if !ok {
		return h, d.notFound("drive.header", id)
	}
	e, err := d.extents.acquire(at.extent)
	if err != nil || e == nil {
		return h, d.unreadable(s, id, at, err)
	}
	defer d.extents.release(e)
	b := make([]byte, at.header)
	if n, err := e.file.ReadAt(b, int64(at.off)); err != nil && n < len(b) {
		return h, d.unreadable(s, id, at, err)
	}
	f, err := extent.ParseHeader(b, e.salt, int64(at.off))
	switch {
	case err != nil:
		return h, d.damaged(s, id, at, err)
	case f.Type != extent.Shard || !f.Known:
		return h, errs.Newf(errs.NotImplemented, "drive.header", id.String(), "written by a later release")
	case f.Shard.ID != *id:
		return h, d.damaged(s, id, at, fmt.Errorf("the frame is of %v", f.Shard.ID))
	}
	return f.Shard, nil
}
