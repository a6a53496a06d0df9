package drive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"
	"cairn/storage/vfsx"

	"github.com/cockroachdb/pebble/v2"
)

// BadRange is a range of an extent that recovery stepped over, since it is neither a valid frame nor zeros.
type BadRange struct {
	Extent uint32
	Off    int64
	Bytes  int64
	// Tail: nothing in the range was known to be synced, so most likely it is
	// what a crash left of a batch that nobody was told is durable. Otherwise
	// something that was durable is damaged.
	Tail   bool
	Reason string
}

// openIndex opens the index, or an empty one in place of one that can't be read or is another drive's.
func (d *Drive) openIndex() error {
	dir := d.fs.PathJoin(d.dir, indexName)
	marker := d.fs.PathJoin(d.dir, rebuildName)
	if _, err := d.fs.Stat(d.fs.PathJoin(d.dir, extentsName)); err != nil {
		return errs.New(errs.DriveFailed, "drive.open", d.dir, "the extents folder is missing")
	}
	_, err := d.fs.Stat(marker)
	if err == nil {
		d.log.Warn("the index was found rotten: rebuilding it from the extents")
		if err := d.fs.RemoveAll(dir); err != nil {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for range 2 {
		ours := false
		if d.index, err = openIndex(d); err == nil {
			if ours, err = d.index.ours(d.identity.DriveID); ours && err == nil {
				break
			}
			err = errors.Join(err, errors.New("the index is of another drive"), d.index.db.Close())
			d.index = nil
		}
		if isSystemError(err) {
			return err
		}
		d.log.Warn("the index can't be used: rebuilding it from the extents", "err", err)
		if err := d.fs.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if err := d.fs.Remove(marker); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// isSystemError reports whether an error is the operating system's, which a new index would not mend.
func isSystemError(err error) bool {
	var no syscall.Errno
	return errors.As(err, &no) && no != syscall.ENOENT
}

// recover reads the index's rows and what lies behind them in the extents.
func (d *Drive) recover() error {
	if err := d.loadRows(); err != nil {
		return err
	}
	numbers, err := d.extentFiles()
	if err != nil {
		return err
	}
	rc := recovery{d: d, w: d.writer}
	if err := rc.lost(numbers); err != nil {
		return err
	}
	for _, number := range numbers {
		if err := rc.extent(number); err != nil {
			return fmt.Errorf("extent %s: %w", extent.Name(number), err)
		}
	}
	if d.writer.recent.floor, err = d.index.youngest(); err != nil {
		return err
	}
	d.writer.recent.chunks = nil
	if rc.frames > 0 {
		d.log.Info("recovered what the index did not hold", "frames", rc.frames, "skipped", rc.skipped)
	}
	return nil
}

// loadRows fills in memory what the index holds of extents, epochs and queues.
func (d *Drive) loadRows() error {
	w := d.writer
	err := d.index.each([]byte{rowExtent}, rowEnd(rowExtent), func(k, v []byte) (bool, error) {
		x, err := parseExtentRow(v)
		if err != nil || len(k) != 5 {
			return false, errors.Join(err, errRow)
		}
		number := keyNumber(k)
		d.extents.add(number, x, nil)
		w.next = max(w.next, number+1)
		return true, nil
	})
	if err != nil {
		return err
	}
	err = d.index.each([]byte{rowEpoch}, rowEnd(rowEpoch), func(k, v []byte) (bool, error) {
		e, err := parseNumberRow(v)
		w.known[storage.PGID(keyNumber(k))] = storage.Epoch(e)
		return true, err
	})
	if err != nil {
		return err
	}
	return d.index.each([]byte{rowClear}, rowEnd(rowClear), func(k, _ []byte) (bool, error) {
		w.nextClear = clearNumber(k)
		return true, nil
	})
}

// extentFiles are the numbers of the extents in the folder, in order.
func (d *Drive) extentFiles() ([]uint32, error) {
	names, err := d.fs.List(d.fs.PathJoin(d.dir, extentsName))
	if err != nil {
		return nil, err
	}
	var numbers []uint32
	for _, name := range names {
		if n, ok := extent.ParseName(name); ok {
			numbers = append(numbers, n)
			d.writer.next = max(d.writer.next, n+1)
		} else {
			d.log.Warn("a file that is no extent among the extents", "name", name)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// recovery brings the index up to the extents. It does so with the writer's
// means, before the writer runs: each frame is one batch with its extent's
// row, so that a crash in the midst of it does no harm.
type recovery struct {
	d       *Drive
	w       *writer
	frames  int
	skipped int
}

// extent recovers one file.
func (rc *recovery) extent(number uint32) error {
	d := rc.d
	e := d.extents.get(number)
	f, err := d.fs.OpenFile(d.extentPath(number))
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if e == nil {
		if e, err = rc.unknown(number, f, fi.Size()); e == nil || err != nil {
			return err
		}
	}
	if e.sealed.Load() {
		if fi.Size() < e.size.Load() {
			d.log.Error("an extent is shorter than it was", "extent", number, "bytes", fi.Size(), "was", e.size.Load())
		}
		return nil
	}
	if err := rc.replay(e, f, fi.Size()); err != nil {
		return err
	}
	e.sealed.Store(true)
	rc.w.touch(e)
	return rc.commit()
}

// unknown reads the header of a file that the index does not know. nil without an error: there is nothing in it to recover.
func (rc *recovery) unknown(number uint32, f vfsx.File, size int64) (*extentState, error) {
	b := make([]byte, min(size, fileHeaderBytes))
	if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	h, err := extent.ParseFileHeader(b)
	switch {
	case err == nil && h.Drive != rc.d.identity.DriveID:
		err = errs.Newf(errs.Foreign, "", "", "it is of drive %s", h.Drive.Short())
	case err == nil && h.Number != number:
		err = errs.Newf(errs.Foreign, "", "", "it is extent %d under another name", h.Number)
	case err == nil:
		return rc.d.extents.add(number, extentRow{salt: h.Salt, size: fileHeaderBytes}, nil), nil
	}
	if errors.Is(err, extent.ErrVersion) {
		return nil, err // not ours to judge
	}
	if size <= fileHeaderBytes && errors.Is(err, extent.ErrDamaged) {
		// A crash while it was begun: no frame is written before the header is durable.
		return nil, rc.d.fs.Remove(rc.d.extentPath(number))
	}
	return nil, rc.bad(BadRange{Extent: number, Bytes: size, Reason: err.Error()})
}

// pendingFrame is a frame that is not known to be synced yet.
type pendingFrame struct {
	off    int64
	header extent.Header
}

// replay enters the frames behind e's size.
func (rc *recovery) replay(e *extentState, f vfsx.File, fileSize int64) error {
	s := extent.NewScanner(f, e.salt, e.size.Load(), fileSize)
	var pending []pendingFrame // of one batch
	var damage []BadRange
	durable := e.size.Load()
	for {
		fr, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if fr.Damage != nil {
			damage = append(damage, BadRange{e.number, fr.Off, fr.Bytes, true, fr.Damage.Error()})
			continue
		}
		if fr.Header.Durable > durable {
			durable = fr.Header.Durable
			if err := rc.enterPending(e, f, pending, false, &damage); err != nil {
				return err
			}
			pending = pending[:0]
		}
		h := fr.Header
		h.Sums = slices.Clone(h.Sums)
		pending = append(pending, pendingFrame{fr.Off, h})
	}
	if err := rc.enterPending(e, f, pending, true, &damage); err != nil {
		return err
	}
	for _, b := range damage {
		b.Tail = b.Off >= durable
		if err := rc.bad(b); err != nil {
			return err
		}
	}
	return nil
}

// enterPending enters frames; with verify only those whose payload is whole.
func (rc *recovery) enterPending(e *extentState, f vfsx.File, frames []pendingFrame, verify bool, damage *[]BadRange) error {
	for i := range frames {
		p := &frames[i]
		var payload []byte
		if verify || p.header.Type != extent.Shard {
			payload = make([]byte, p.header.PayloadLen)
			_, err := f.ReadAt(payload, p.off+int64(p.header.Bytes))
			if err := unlessLost(err); err != nil {
				return err
			}
			if err == nil && p.header.Known && extent.Verify(p.header.Sums, 0, payload) >= 0 {
				err = errors.New("the payload does not match its checksums")
			}
			if err != nil {
				*damage = append(*damage, BadRange{e.number, p.off, p.header.FrameBytes(), true, err.Error()})
				continue
			}
		}
		if err := rc.enter(e, p.off, &p.header, payload); err != nil {
			return err
		}
		e.size.Store(p.off + p.header.FrameBytes())
		rc.w.touch(e)
		if err := rc.commit(); err != nil {
			return err
		}
		rc.frames++
	}
	return nil
}

// enter puts one frame into the index.
func (rc *recovery) enter(e *extentState, off int64, h *extent.Header, payload []byte) error {
	if h.Type == extent.Shard && h.Known {
		return rc.shard(e, off, h)
	}
	e.addOthers(h.FrameBytes(), rc.d.cfg.Now().UnixMilli())
	switch {
	case !h.Known:
		rc.d.log.Warn("a frame that only a later release understands", "extent", e.number, "off", off, "type", h.Type)
	case h.Type == extent.Tombstones:
		ts, err := extent.ParseTombstones(payload)
		if err != nil {
			return rc.bad(BadRange{e.number, off, h.FrameBytes(), false, err.Error()})
		}
		return rc.w.putLists(ts, nil)
	case h.Type == extent.Epochs:
		es, err := extent.ParseEpochs(payload)
		if err != nil {
			return rc.bad(BadRange{e.number, off, h.FrameBytes(), false, err.Error()})
		}
		return rc.w.putLists(nil, es)
	}
	return nil
}

// shard enters a shard's frame, unless its chunk was removed or a later frame of it is known.
func (rc *recovery) shard(e *extentState, off int64, h *extent.Header) error {
	w, id := rc.w, h.Shard.ID
	at := location{place{e.number, uint32(off)}, uint16(h.Bytes), uint32(h.PayloadLen)}
	_, removed, err := rc.d.index.number(appendChunkKey(nil, rowTombstone, id.PG, &id.Chunk))
	if err != nil {
		return err
	}
	was, exists, err := rc.d.index.location(appendShardKey(nil, &id))
	if err != nil {
		return err
	}
	other := rc.d.extents.get(was.extent)
	lost := exists && (other == nil || other.missing.Load())
	switch {
	case exists && was.place == at.place:
		return nil
	case removed, exists && !lost && was.after(at.place):
		return w.queueDead(at.place, at.frameBytes())
	}
	return w.putShard(id, at, h.Sums, was, exists)
}

func (rc *recovery) commit() error {
	err := rc.w.commitRows()
	rc.w.rows.Reset()
	return err
}

// bad remembers and reports a range that was skipped.
func (rc *recovery) bad(b BadRange) error {
	if len(b.Reason) > 200 {
		b.Reason = b.Reason[:200]
	}
	rc.skipped++
	rc.d.log.Warn("skipped in recovery", "extent", b.Extent, "off", b.Off, "bytes", b.Bytes, "tail", b.Tail, "reason", b.Reason)
	return rc.d.index.db.Set(badKey(place{b.Extent, uint32(b.Off)}), badRow(b), pebble.NoSync)
}

// lost finds extents that the index knows and the folder lacks.
func (rc *recovery) lost(numbers []uint32) error {
	for _, e := range rc.d.extents.all() {
		if _, ok := slices.BinarySearch(numbers, e.number); ok {
			continue
		}
		if e.liveFrames.Load() == 0 {
			rc.d.extents.drop(e.number)
			if err := rc.d.index.db.Delete(numberKey(rowExtent, e.number), pebble.NoSync); err != nil {
				return err
			}
			continue
		}
		e.missing.Store(true)
		e.sealed.Store(true)
		rc.d.log.Error("an extent is missing: its shards are lost", "extent", e.number, "shards", e.liveFrames.Load())
		if err := rc.bad(BadRange{Extent: e.number, Bytes: e.size.Load(), Reason: "the extent is missing"}); err != nil {
			return err
		}
	}
	return nil
}

// Bad lists what recovery skipped, in this start and in earlier ones as far as the extents are still there.
func (d *Drive) Bad() ([]BadRange, error) {
	if err := d.enter(); err != nil {
		return nil, err
	}
	defer d.gate.leave()
	var bad []BadRange
	err := d.index.each([]byte{rowBad}, rowEnd(rowBad), func(k, v []byte) (bool, error) {
		b, err := parseBad(k, v)
		bad = append(bad, b)
		return true, err
	})
	if err != nil {
		return nil, d.readFailed("drive.bad", err)
	}
	return bad, nil
}
