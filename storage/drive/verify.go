package drive

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"
)

// FrameInfo is a shard's frame as it lies in an extent, or a damaged range.
type FrameInfo struct {
	Extent  uint32
	Off     int64 // of the frame in the extent
	Bytes   int64 // of the whole frame or range
	Payload int   // bytes of the shard; 0 for a damaged range
	Header  storage.ShardHeader
	Indexed bool  // the index refers to this frame
	Err     error // Corrupt: the shard or the range can't be read as it was written
}

// Scan reads all extents from end to end and calls fn for every live shard
// found in the files, its checksums verified, and for every damaged range but those that a
// crash left (BadRange.Tail). The index is asked only which frames are dead:
// removed, or replaced by a later one. Writes go on meanwhile; what was there
// when Scan began is seen, what comes later may be. An error of fn ends the scan and is answered; so does one
// that says nothing of the bytes (Busy: no descriptors; Unavailable). fn may keep the info.
func (d *Drive) Scan(ctx context.Context, fn func(FrameInfo) error) error {
	tails, err := d.tails()
	if err != nil {
		return err
	}
	s := frameScan{d: d, tails: tails, fn: fn}
	moves, limit := d.counters.moves.Load(), d.end0()
	var pos position
	for {
		e := d.extents.from(pos.number)
		if e == nil {
			return nil
		}
		if e.number > pos.number {
			pos = position{e.number, fileHeaderBytes}
		}
		sealed, size := e.sealed.Load(), e.size.Load()
		if size > pos.off {
			if err := s.extent(ctx, e, pos.off, size); err != nil {
				return err
			}
			pos.off = size
		}
		if pos.number > limit.number || pos.number == limit.number && pos.off >= limit.off {
			now := d.counters.moves.Load()
			if now == moves {
				return nil
			}
			// A compaction has moved frames, perhaps from before us to behind the limit.
			moves, limit = now, d.end0()
		}
		if sealed {
			pos = position{e.number + 1, fileHeaderBytes}
		}
	}
}

// position is how far a scan has come.
type position struct {
	number uint32
	off    int64
}

// end0 is where the last extent ends now.
func (d *Drive) end0() (p position) {
	if all := d.extents.all(); len(all) > 0 {
		last := all[len(all)-1]
		p = position{last.number, last.size.Load()}
	}
	return p
}

// tails are the known ranges that crashes left.
func (d *Drive) tails() (map[place]int64, error) {
	bad, err := d.Bad()
	if err != nil {
		return nil, err
	}
	tails := map[place]int64{}
	for _, b := range bad {
		if b.Tail {
			tails[place{b.Extent, uint32(b.Off)}] = b.Bytes
		}
	}
	return tails, nil
}

type frameScan struct {
	d     *Drive
	tails map[place]int64
	fn    func(FrameInfo) error
	buf   []byte
}

// extent scans a part of one extent.
func (s *frameScan) extent(ctx context.Context, e *extentState, from, to int64) error {
	if err := s.d.enter(); err != nil {
		return err
	}
	a, err := s.d.extents.acquire(e.number)
	s.d.gate.leave()
	if err != nil || a == nil {
		if s.d.extents.get(e.number) == nil {
			return nil // compacted away
		}
		if err := unlessLost(err); err != nil {
			return errs.Wrap(lossKind(err), "drive.scan", s.d.extentPath(e.number), err)
		}
		return s.fn(FrameInfo{Extent: e.number, Off: from, Bytes: to - from,
			Err: errs.Wrap(errs.Corrupt, "drive.scan", s.d.extentPath(e.number), errors.Join(err, errors.New("the extent can't be opened")))})
	}
	defer s.d.extents.release(a)
	sc := extent.NewScanner(a.file, e.salt, from, to)
	for {
		if ctx.Err() != nil {
			return s.d.ctxError(ctx)
		}
		fr, err := sc.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = s.frame(a, &fr)
		}
		if err != nil {
			return err
		}
	}
}

// frame reports one frame, if it is alive. The gate is not held while fn runs.
func (s *frameScan) frame(e *extentState, fr *extent.Frame) error {
	info := FrameInfo{Extent: e.number, Off: fr.Off, Bytes: fr.Bytes}
	if fr.Damage != nil {
		if s.tail(e, fr) {
			return nil
		}
		dead, err := s.clearing(e, fr)
		if dead || err != nil {
			return err
		}
		info.Err = errs.Wrap(errs.Corrupt, "drive.scan", s.d.extentPath(e.number), fr.Damage)
		return s.fn(info)
	}
	if fr.Header.Type != extent.Shard || !fr.Header.Known {
		return nil
	}
	info.Header, info.Payload = fr.Header.Shard, fr.Header.PayloadLen
	live, err := s.live(&info)
	if err != nil || !live {
		return err
	}
	if !info.Indexed {
		if s.tail(e, fr) {
			return nil // its header outlived the crash, its payload did not
		}
		// The scanner reads ahead. A frame dead for long may have been made a hole
		// since, and its tombstone dropped after that: look again.
		_, err := extent.NewScanner(e.file, e.salt, fr.Off, fr.Off+fr.Bytes).Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	cause, err := s.check(e, fr)
	if err != nil {
		return errs.Wrap(lossKind(err), "drive.scan", s.d.extentPath(e.number), err)
	}
	if cause != nil {
		// It may have been removed or moved, and made a hole, just now.
		if live, err := s.live(&info); err != nil || !live {
			return err
		}
		info.Err = errs.Wrap(errs.Corrupt, "drive.scan", s.d.extentPath(e.number), cause)
		if info.Indexed {
			s.d.bad.add(info.Header.ID, place{e.number, uint32(fr.Off)})
		}
	}
	return s.fn(info)
}

// tail reports whether fr is known as what a crash left of a batch nobody was told of.
func (s *frameScan) tail(e *extentState, fr *extent.Frame) bool {
	return s.tails[place{e.number, uint32(fr.Off)}] == fr.Bytes
}

// clearing reports whether a damaged range is what is left of dead frames of
// which holes are made: it lies in the clear queue, or is gone by now.
func (s *frameScan) clearing(e *extentState, fr *extent.Frame) (bool, error) {
	if err := s.d.enter(); err != nil {
		return false, err
	}
	defer s.d.gate.leave()
	var queued []dead
	err := s.d.index.each([]byte{rowClear}, rowEnd(rowClear), func(_, v []byte) (bool, error) {
		c, err := parseDead(v)
		if c.extent == e.number {
			queued = append(queued, c)
		}
		return true, err
	})
	if err != nil {
		return false, s.d.readFailed("drive.scan", err)
	}
	slices.SortFunc(queued, func(a, b dead) int { return cmp.Compare(a.off, b.off) })
	off := fr.Off
	for _, c := range queued {
		if int64(c.off) <= off {
			off = max(off, int64(c.off)+int64(c.bytes))
		}
	}
	if off >= fr.Off+fr.Bytes || s.d.extents.get(e.number) != e {
		return true, nil // the extent may have been compacted away meanwhile, and the queue's rows with it
	}
	_, err = extent.NewScanner(e.file, e.salt, fr.Off, fr.Off+fr.Bytes).Next()
	if errors.Is(err, io.EOF) {
		return true, nil
	}
	return false, err
}

// live asks the index about a frame.
func (s *frameScan) live(info *FrameInfo) (bool, error) {
	if err := s.d.enter(); err != nil {
		return false, err
	}
	defer s.d.gate.leave()
	id := &info.Header.ID
	at, ok, err := s.d.index.location(appendShardKey(nil, id))
	if err != nil {
		return false, s.d.readFailed("drive.scan", err)
	}
	if ok {
		info.Indexed = at.place == place{info.Extent, uint32(info.Off)}
		return info.Indexed, nil
	}
	info.Indexed = false
	_, removed, err := s.d.index.number(appendChunkKey(nil, rowTombstone, id.PG, &id.Chunk))
	if err != nil {
		return false, s.d.readFailed("drive.scan", err)
	}
	return !removed, nil
}

// check reads the payload and answers what is wrong with it. With err nothing is known.
func (s *frameScan) check(e *extentState, fr *extent.Frame) (cause, err error) {
	n := fr.Header.PayloadLen
	if cap(s.buf) < n {
		s.buf = make([]byte, n)
	}
	p, off := s.buf[:n], fr.Off+int64(fr.Header.Bytes)
	e.file.Forget(off, int64(n)) // what counts is what lies on the medium
	defer e.file.Forget(off, int64(n))
	if got, err := e.file.ReadAt(p, off); err != nil && got < n {
		return err, unlessLost(err)
	}
	if extent.Verify(fr.Header.Sums, 0, p) >= 0 {
		return errors.New("the shard does not match its checksums"), nil
	}
	return nil, nil
}
