package drive

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cairn/storage/errs"
	"cairn/storage/extent"
	"cairn/storage/vfsx"

	"github.com/cockroachdb/pebble/v2"
)

const (
	cleanRowsMax   = 4096 // of the clear queue in one step
	moveBytesMax   = 4 << 20
	oldRowsMax     = 4096 // tombstones looked at in one step
	moveHeadroom   = 8 << 20
	flushWait      = 10 * time.Second
	compactMinimum = 64 << 10 // bytes that a compaction must win
	compactRetry   = 10 * time.Minute
)

// keeper is the one goroutine that works in the background: it flushes the
// index, clears what was removed, drops old tombstones and compacts extents. It
// sleeps while there is nothing to do. All of its writing but holes goes through the writer.
type keeper struct {
	d      *Drive
	ctx    context.Context
	cancel context.CancelFunc
	ended  chan struct{}
	begun  atomic.Bool
	wake   chan struct{}

	unflushed atomic.Int64
	due       struct {
		sync.Mutex
		flush, clean, old, again time.Time // when there is something to do; zero: nothing
		compact                  bool
	}
}

func newKeeper(d *Drive) *keeper {
	k := &keeper{d: d, ended: make(chan struct{}), wake: make(chan struct{}, 1)}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

// end stops the keeper, if it ever began.
func (k *keeper) end() {
	k.cancel()
	if k.begun.Load() {
		<-k.ended
	}
}

func (k *keeper) poked() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// set moves a deadline that is not set, and wakes the keeper.
func (k *keeper) set(at *time.Time, after time.Duration) {
	k.due.Lock()
	fresh := at.IsZero()
	if fresh {
		*at = time.Now().Add(after)
	}
	k.due.Unlock()
	if fresh {
		k.poked()
	}
}

// appended counts bytes that the index has not flushed.
func (k *keeper) appended(n int64) {
	if k.unflushed.Add(n) >= k.d.cfg.FlushBytes {
		k.due.Lock()
		k.due.flush = time.Now()
		k.due.Unlock()
		k.poked()
		return
	}
	k.set(&k.due.flush, k.d.cfg.FlushAfter)
}

func (k *keeper) pokeClean() { k.set(&k.due.clean, k.d.cfg.CleanAfter) }
func (k *keeper) pokeOld()   { k.set(&k.due.old, k.d.cfg.MaintenanceEvery) }

// poke has the keeper look for extents to compact.
func (k *keeper) poke() {
	k.due.Lock()
	k.due.compact = true
	k.due.Unlock()
	k.poked()
}

// run works until the keeper is ended or the drive fails.
func (k *keeper) run() {
	defer close(k.ended)
	k.poke()
	k.set(&k.due.clean, 0)
	k.set(&k.due.old, 0)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := k.work()
		if !next.IsZero() {
			timer.Reset(time.Until(next))
		} else {
			timer.Stop()
		}
		select {
		case <-k.ctx.Done():
			return
		case <-k.d.failed:
			return
		case <-k.wake:
		case <-timer.C:
		}
	}
}

// work does what is due and answers when something will be; zero: nothing is known.
func (k *keeper) work() (next time.Time) {
	k.step("flushing the index", k.take(&k.due.flush), k.flush)
	k.step("clearing what was removed", k.take(&k.due.clean), k.clean)
	k.step("dropping old tombstones", k.take(&k.due.old), k.dropOld)
	again := k.take(&k.due.again)
	k.due.Lock()
	compact := k.due.compact || again
	k.due.compact = false
	k.due.Unlock()
	k.step("compacting", compact, k.compact)

	k.due.Lock()
	defer k.due.Unlock()
	if k.due.compact {
		return time.Now()
	}
	for _, at := range []time.Time{k.due.flush, k.due.clean, k.due.old, k.due.again} {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// take reports whether a deadline has passed, and unsets it.
func (k *keeper) take(at *time.Time) bool {
	k.due.Lock()
	defer k.due.Unlock()
	if at.IsZero() || time.Now().Before(*at) {
		return false
	}
	*at = time.Time{}
	return true
}

func (k *keeper) step(what string, due bool, fn func() error) {
	if !due || k.ctx.Err() != nil || k.d.Failed() != nil {
		return
	}
	if err := fn(); err != nil && k.ctx.Err() == nil && k.d.Failed() == nil {
		k.d.log.Warn("drive: "+what, "err", err)
	}
}

func (k *keeper) flush() error {
	k.unflushed.Store(0)
	// Not waited for: on a full disk it goes on only when what follows has made room.
	_, err := k.d.index.db.AsyncFlush()
	return err
}

// flushNow waits for a flush, but not for ever: there may be no space for it.
func (k *keeper) flushNow() error {
	ctx, cancel := context.WithTimeout(k.ctx, flushWait)
	defer cancel()
	if !k.d.flushIndex(ctx) {
		return errs.New(errs.Timeout, "drive.keeper", k.d.dir, "the index can't be flushed")
	}
	return nil
}

// job runs fn in the writer, between two batches.
func (k *keeper) job(fn func() error) error {
	r := k.d.newRequest(kindJob)
	r.job = fn
	return k.d.do(k.ctx, r)
}

// clean clears the dead frames in the queue, a bounded number at a time. Those of
// an extent that fails stay in the queue.
func (k *keeper) clean() (err error) {
	for from := []byte{rowClear}; from != nil && k.ctx.Err() == nil && k.d.Failed() == nil; {
		next, cerr := k.cleanSome(from)
		from, err = next, errors.Join(err, cerr)
	}
	if err != nil {
		// Try again, but not at once: it may be a full disk.
		k.set(&k.due.clean, time.Second)
	}
	k.poke()
	return err
}

type clearRow struct {
	key []byte
	dead
}

// cleanSome clears a page of the queue and answers where the next one begins; nil: this was the last one.
func (k *keeper) cleanSome(from []byte) (next []byte, err error) {
	var rows []clearRow
	err = k.d.index.each(from, rowEnd(rowClear), func(key, v []byte) (bool, error) {
		c, err := parseDead(v)
		rows = append(rows, clearRow{slices.Clone(key), c})
		return len(rows) < cleanRowsMax, err
	})
	if err != nil {
		return nil, k.d.readFailed("drive.clean", err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	if len(rows) == cleanRowsMax {
		next = append(slices.Clone(rows[len(rows)-1].key), 0)
	}
	// A hole half made by a crash looks like damage. With the queue durable it
	// is known for what it is, and recovery does not read there any more.
	if err := k.flushNow(); err != nil {
		return nil, err
	}
	slices.SortFunc(rows, func(a, b clearRow) int {
		return cmp.Or(cmp.Compare(a.extent, b.extent), cmp.Compare(a.off, b.off))
	})
	b := k.d.index.db.NewBatch()
	defer b.Close()
	for i := 0; i < len(rows); {
		j := i
		for j < len(rows) && rows[j].extent == rows[i].extent {
			j++
		}
		if cerr := k.clearExtent(rows[i:j]); cerr != nil {
			err = errors.Join(err, cerr)
			i = j
			continue
		}
		for ; i < j; i++ {
			if err := b.Delete(rows[i].key, nil); err != nil {
				return nil, err
			}
		}
	}
	if !b.Empty() {
		if err := b.Commit(pebble.NoSync); err != nil {
			return nil, k.d.readFailed("drive.clean", err)
		}
	}
	return next, err
}

// clearExtent makes holes of dead frames of one extent and syncs it. It uses a
// file of its own: if the sync fails, the writer's sync of the same file must learn of it too.
func (k *keeper) clearExtent(rows []clearRow) error {
	if k.d.extents.get(rows[0].extent) == nil {
		return nil // unlinked, and its frames with it
	}
	f, err := k.d.fs.OpenFile(k.d.extentPath(rows[0].extent))
	if errors.Is(err, os.ErrNotExist) {
		return k.d.Check()
	}
	if err != nil {
		return err
	}
	defer f.Close()
	for i := 0; i < len(rows); {
		off, end := int64(rows[i].off), int64(rows[i].off)+int64(rows[i].bytes)
		for i++; i < len(rows) && int64(rows[i].off) <= end; i++ {
			end = max(end, int64(rows[i].off)+int64(rows[i].bytes))
		}
		if err := clearRange(f, off, end-off); err != nil {
			return err
		}
	}
	if err := f.SyncData(); err != nil {
		k.d.Fail(err)
		return err
	}
	return nil
}

// clearRange makes n bytes at off read as no frame: as zeros if holes can be made.
func clearRange(f vfsx.File, off, n int64) error {
	err := f.PunchHole(off, n)
	if !errors.Is(err, vfsx.ErrUnsupported) {
		return err
	}
	// Only compaction gives the space back here.
	zeros := make([]byte, min(n, 1<<20))
	for ; n > 0; n, off = n-int64(len(zeros)), off+int64(len(zeros)) {
		zeros = zeros[:min(n, int64(len(zeros)))]
		if _, err := f.WriteV(off, [][]byte{zeros}); err != nil {
			return err
		}
	}
	return nil
}

// dropOld drops the tombstones that nothing needs any more.
func (k *keeper) dropOld() error {
	d := k.d
	// A dead frame still lies in its extent while the queue holds it: so does what is younger.
	horizon := d.cfg.Now().Add(-d.cfg.TombstoneTTL).UnixMilli()
	err := d.index.each([]byte{rowClear}, rowEnd(rowClear), func(_, v []byte) (bool, error) {
		c, err := parseDead(v)
		horizon = min(horizon, c.sinceMS-1)
		return true, err
	})
	if err != nil {
		return d.readFailed("drive.tombstones", err)
	}
	left, from := int64(0), []byte{rowTombstone}
	for from != nil && k.ctx.Err() == nil {
		var old [][]byte
		seen := 0
		var last []byte
		err := d.index.each(from, rowEnd(rowTombstone), func(key, v []byte) (bool, error) {
			at, err := parseNumberRow(v)
			if int64(at) <= horizon {
				old = append(old, slices.Clone(key))
			} else {
				left++
			}
			seen++
			last = append(last[:0], key...)
			return seen < oldRowsMax, err
		})
		if err != nil {
			return d.readFailed("drive.tombstones", err)
		}
		if err := k.job(func() error { return d.writer.forget(old, horizon) }); err != nil {
			return err
		}
		from = nil
		if seen == oldRowsMax {
			from = append(last, 0)
		}
	}
	d.counters.tombstones.Store(left)
	if left > 0 || k.onlyTombstones() {
		k.pokeOld()
	}
	k.poke() // extents may hold nothing but them
	return nil
}

// onlyTombstones reports whether some sealed extent holds nothing but tombstones: it goes when they are old, which after a start
// is later than that of the tombstones themselves.
func (k *keeper) onlyTombstones() bool {
	for _, e := range k.d.extents.all() {
		if e.sealed.Load() && e.live.Load() == 0 && e.others.Load() > 0 {
			return true
		}
	}
	return false
}

// forget deletes tombstones, if they are still as old as they were. It runs in the writer.
func (w *writer) forget(keys [][]byte, horizon int64) error {
	b := w.d.index.db.NewBatch()
	defer b.Close()
	for _, key := range keys {
		at, ok, err := w.d.index.number(key)
		if err != nil {
			return w.d.readFailed("drive.tombstones", err)
		}
		if ok && int64(at) <= horizon {
			if err := b.Delete(key, nil); err != nil {
				return err
			}
		}
	}
	if b.Empty() {
		return nil
	}
	return b.Commit(pebble.NoSync)
}

// compact rewrites the extents that are worth it, those with the least alive
// first. One that fails is passed over for a while: the others go on.
func (k *keeper) compact() error {
	for k.ctx.Err() == nil && k.d.Failed() == nil {
		e := k.candidate()
		if e == nil {
			return nil
		}
		if err := k.compactExtent(e); err != nil {
			return err
		}
	}
	return nil
}

// candidate is the sealed extent with the least alive among those worth compacting, or nil.
func (k *keeper) candidate() (best *extentState) {
	now := time.Now()
	for _, e := range k.d.extents.all() {
		live := e.live.Load()
		if wait := e.skipUntil.Sub(now); wait > 0 {
			k.set(&k.due.again, wait)
			continue
		}
		if !e.sealed.Load() || e.stuckAt == live || best != nil && live >= best.live.Load() {
			continue
		}
		if e.missing.Load() {
			if e.liveFrames.Load() == 0 {
				return e // all that it held has been removed, or repaired elsewhere
			}
			continue
		}
		if kept := live + k.young(e); kept > 0 {
			worth, err := k.worth(e, kept)
			if err != nil {
				k.skip(e, err)
			}
			if !worth {
				continue
			}
		}
		best = e
	}
	return best
}

// skip leaves an extent alone for a while. With the drive or the keeper at its end that is nobody's concern.
func (k *keeper) skip(e *extentState, err error) {
	e.skipUntil = time.Now().Add(compactRetry)
	if k.ctx.Err() == nil && k.d.Failed() == nil {
		k.d.log.Warn("an extent can't be compacted now", "extent", e.number, "err", err)
	}
}

// young is the bytes of tombstones in e that a compaction may have to keep.
func (k *keeper) young(e *extentState) int64 {
	if k.d.cfg.Now().UnixMilli()-e.othersMS.Load() > k.d.cfg.TombstoneTTL.Milliseconds() {
		return 0
	}
	return e.others.Load()
}

// worth reports whether compacting e wins enough space, and whether there is enough to do it.
func (k *keeper) worth(e *extentState, live int64) (bool, error) {
	if float64(live) >= k.d.cfg.CompactBelow*float64(e.size.Load()) {
		return false, nil // it can't be: holes only make it less
	}
	a, err := k.d.extents.acquire(e.number)
	if err != nil || a == nil {
		return false, err
	}
	defer k.d.extents.release(a)
	allocated, err := a.file.Allocated()
	if err != nil {
		return false, err
	}
	if float64(live) >= k.d.cfg.CompactBelow*float64(allocated) || allocated-live < min(compactMinimum, k.d.cfg.ExtentBytes/4) {
		return false, nil
	}
	usage, err := k.d.fs.GetDiskUsage(k.d.dir)
	if err != nil {
		return false, err
	}
	return int64(usage.AvailBytes) > live+moveHeadroom, nil
}

// compactExtent moves what lives in e to the open extent and unlinks e. If
// something alive can't be found or moved, e stays and is left alone until less of it is alive.
func (k *keeper) compactExtent(e *extentState) error {
	if e.liveFrames.Load()+e.others.Load() > 0 && !e.missing.Load() {
		if err := k.moveAll(e); err != nil {
			if errs.Is(err, errs.NotImplemented) {
				e.stuckAt = e.live.Load()
			}
			k.skip(e, err)
			return nil
		}
	}
	// Asked between two batches: the accounts are ahead of the rows while a batch
	// is entered, and the flush below must hold the rows that took the last frames out.
	var live, frames int64
	err := k.job(func() error {
		live, frames = e.live.Load(), e.liveFrames.Load()
		return nil
	})
	if err != nil {
		return err
	}
	if live != 0 || frames != 0 {
		e.stuckAt = live
		k.d.log.Warn("an extent can't be compacted: frames alive in it can't be read", "extent", e.number, "bytes", live)
		return nil
	}
	// No row may refer to a number whose file is gone, not even after a crash.
	if err := k.flushNow(); err != nil {
		return err
	}
	// Out of the table first: nobody must look for the file in vain.
	err = k.job(func() error {
		k.d.extents.drop(e.number)
		k.d.writer.untouch(e)
		return nil
	})
	if err != nil {
		return err
	}
	if err := k.d.fs.Remove(k.d.extentPath(e.number)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err // the next start tries again
	}
	if err := vfsx.SyncDir(k.d.fs, k.d.fs.PathJoin(k.d.dir, extentsName)); err != nil {
		k.d.Fail(err)
		return err
	}
	return k.forgetExtent(e)
}

// forgetExtent deletes the rows of an extent whose file is gone.
func (k *keeper) forgetExtent(e *extentState) error {
	b := k.d.index.db.NewBatch()
	defer b.Close()
	if err := b.Delete(numberKey(rowExtent, e.number), nil); err != nil {
		return err
	}
	if err := b.DeleteRange(numberKey(rowBad, e.number), badKey(place{e.number, 1<<32 - 1}), nil); err != nil {
		return err
	}
	return b.Commit(pebble.NoSync)
}

// moveAll appends the live frames of e, and the tombstones and epochs still needed, to the open extent.
func (k *keeper) moveAll(e *extentState) error {
	a, err := k.d.extents.acquire(e.number)
	if err != nil || a == nil {
		return err
	}
	defer k.d.extents.release(a)
	m := mover{k: k, e: e, file: a.file}
	s := extent.NewScanner(a.file, e.salt, fileHeaderBytes, e.size.Load())
	for {
		fr, err := s.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = k.ctx.Err()
		}
		if err == nil && fr.Damage == nil {
			err = m.frame(&fr)
		}
		if err != nil {
			return errors.Join(err, m.wait(0))
		}
	}
	return m.wait(0)
}

// mover moves frames through the writer, a bounded number of bytes at a time.
type mover struct {
	k     *keeper
	e     *extentState
	file  vfsx.File
	sent  []chan error
	bytes []int
	total int
}

func (m *mover) frame(fr *extent.Frame) error {
	d, h := m.k.d, &fr.Header
	if !h.Known {
		// Not ours to judge: count it as alive, so that the extent stays.
		return errs.Newf(errs.NotImplemented, "drive.compact", d.dir, "extent %d holds a frame of a later release", m.e.number)
	}
	if h.Type == extent.Shard {
		at := location{place{m.e.number, uint32(fr.Off)}, uint16(h.Bytes), uint32(h.PayloadLen)}
		now, ok, err := d.index.location(appendShardKey(nil, &h.Shard.ID))
		if err != nil {
			return d.readFailed("drive.compact", err)
		}
		if !ok || now != at {
			return nil
		}
		payload, err := m.payload(fr)
		if err != nil {
			return nil // it stays, and e with it
		}
		r := d.newRequest(kindMove)
		r.id, r.payload, r.replace = h.Shard.ID, payload, at
		// Word for word, also if the payload is damaged: its checksums tell every reader, and its whole blocks can be read.
		r.header = append(r.header[:0], fr.Raw...)
		return m.send(r, len(payload))
	}
	payload, err := m.payload(fr)
	if err == nil && extent.Verify(h.Sums, 0, payload) >= 0 {
		err = extent.ErrDamaged
	}
	if err != nil {
		return nil // damaged: the index has what it said
	}
	if h.Type == extent.Tombstones {
		return m.tombstones(payload)
	}
	es, err := extent.ParseEpochs(payload)
	if err != nil {
		return nil
	}
	r := d.newRequest(kindEpochs)
	r.epochs, r.keep = es, true
	return m.send(r, 0)
}

func (m *mover) payload(fr *extent.Frame) ([]byte, error) {
	p := make([]byte, fr.Header.PayloadLen)
	_, err := m.file.ReadAt(p, fr.Off+int64(fr.Header.Bytes))
	return p, err
}

// tombstones keeps those of which the index still has a row.
func (m *mover) tombstones(payload []byte) error {
	ts, err := extent.ParseTombstones(payload)
	if err != nil {
		return nil
	}
	r := m.k.d.newRequest(kindKeep)
	for _, t := range ts {
		at, ok, err := m.k.d.index.number(appendChunkKey(nil, rowTombstone, t.PG, &t.Chunk))
		if err != nil {
			return m.k.d.readFailed("drive.compact", err)
		}
		if ok {
			t.RemovedMS = int64(at)
			r.tombstones = append(r.tombstones, t)
		}
	}
	if len(r.tombstones) == 0 {
		m.k.d.free(r)
		return nil
	}
	return m.send(r, len(r.tombstones)*extent.TombstoneBytes)
}

// send hands r to the writer and waits while too much is under way.
func (m *mover) send(r *request, bytes int) error {
	done := make(chan error, 1)
	go func() { done <- m.k.d.do(m.k.ctx, r) }()
	m.sent, m.bytes = append(m.sent, done), append(m.bytes, bytes)
	m.total += bytes
	return m.wait(moveBytesMax)
}

// wait until no more than max bytes are under way.
func (m *mover) wait(max int) (err error) {
	for len(m.sent) > 0 && (m.total > max || len(m.sent) >= batchRequestsMax || max == 0) {
		if e := <-m.sent[0]; e != nil && e != errExists {
			err = errors.Join(err, e)
		}
		m.total -= m.bytes[0]
		m.sent, m.bytes = m.sent[1:], m.bytes[1:]
	}
	return err
}
