package drive

import (
	"context"
	"errors"
	"io"

	"cairn/storage"
	"cairn/storage/extent"
)

// Mismatch is a disagreement between the index and the extents.
type Mismatch struct {
	ID     storage.ShardID
	Extent uint32
	Off    int64
	Detail string
}

// CrossCheck compares index and extents and calls fn
// for every live frame without a row, every row without its frame, and every damaged range.
func (d *Drive) CrossCheck(ctx context.Context, fn func(Mismatch) error) error {
	err := d.Scan(ctx, func(f FrameInfo) error {
		switch {
		case f.Err != nil:
			return fn(Mismatch{f.Header.ID, f.Extent, f.Off, f.Err.Error()})
		case !f.Indexed:
			return fn(Mismatch{f.Header.ID, f.Extent, f.Off, "the index lacks this frame"})
		}
		return nil
	})
	if err != nil {
		return err
	}
	key := []byte{rowShard}
	for key != nil {
		if ctx.Err() != nil {
			return d.ctxError(ctx)
		}
		var found []Mismatch
		if key, found, err = d.checkRows(key); err != nil {
			return err
		}
		for _, m := range found {
			if err := fn(m); err != nil {
				return err
			}
		}
	}
	return nil
}

type shardRow struct {
	id storage.ShardID
	at location
}

// checkRows compares a page of rows, from key on, with the headers they refer to, and answers where the next page begins.
func (d *Drive) checkRows(key []byte) (next []byte, found []Mismatch, err error) {
	if err := d.enter(); err != nil {
		return nil, nil, err
	}
	defer d.gate.leave()
	var page []shardRow
	err = d.index.each(key, rowEnd(rowShard), func(k, v []byte) (bool, error) {
		id, err := parseShardKey(k)
		if err != nil {
			return false, err
		}
		at, _, err := parseShardRow(v)
		page = append(page, shardRow{id, at})
		return len(page) < listPage, err
	})
	if err != nil {
		return nil, nil, d.readFailed("drive.check", err)
	}
	for _, row := range page {
		detail := d.checkRow(row)
		if detail == "" {
			continue
		}
		// Or was it moved or removed just now?
		at, ok, err := d.index.location(appendShardKey(nil, &row.id))
		if err != nil {
			return nil, nil, d.readFailed("drive.check", err)
		}
		if ok && at == row.at {
			found = append(found, Mismatch{row.id, row.at.extent, int64(row.at.off), detail})
		}
	}
	if len(page) == listPage {
		next = append(appendShardKey(nil, &page[len(page)-1].id), 0)
	}
	return next, found, nil
}

// checkRow says what is wrong with the frame that a row refers to, or nothing.
func (d *Drive) checkRow(row shardRow) string {
	e, err := d.extents.acquire(row.at.extent)
	if err != nil || e == nil {
		return "the index refers to an extent that is missing"
	}
	defer d.extents.release(e)
	b := make([]byte, row.at.header)
	if _, err := e.file.ReadAt(b, int64(row.at.off)); err != nil && !errors.Is(err, io.EOF) {
		return "the frame can't be read: " + err.Error()
	}
	h, err := extent.ParseHeader(b, e.salt, int64(row.at.off))
	switch {
	case err != nil:
		return "the index refers to bytes that are no frame: " + err.Error()
	case h.Shard.ID != row.id || h.PayloadLen != int(row.at.payload) || h.Bytes != int(row.at.header):
		return "the index refers to another frame"
	}
	return ""
}
