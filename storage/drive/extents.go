package drive

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cairn/storage/vfsx"
)

// extentState is one extent file that the drive knows. number and salt never change.
type extentState struct {
	number uint32
	salt   uint64

	// Changed by the writer (before it runs: by Open), read by anybody.
	size       atomic.Int64 // end of the last frame in the index
	live       atomic.Int64 // bytes of frames that the index refers to
	liveFrames atomic.Int64
	others     atomic.Int64 // bytes of frames that are no shards
	othersMS   atomic.Int64 // when the last of them was written or moved here, unix ms
	sealed     atomic.Bool
	missing    atomic.Bool // the file is not there, though the index refers to it

	// Of the keeper.
	stuckAt   int64     // what was alive when a compaction found frames that it could not move; -1: none did
	skipUntil time.Time // the latest try to compact it failed

	// Guarded by extents.mu, but for refs and usedAt. file changes only while refs is 0.
	file    vfsx.File     // nil: not open
	opening chan struct{} // not nil while somebody opens the file: closed when that is over
	gone    bool          // taken out of the table: the last user closes the file
	refs    atomic.Int32
	usedAt  atomic.Int64
}

func (e *extentState) row() extentRow {
	return extentRow{e.sealed.Load(), e.salt, e.size.Load(), e.live.Load(), e.liveFrames.Load(), e.others.Load(), e.othersMS.Load()}
}

// addOthers counts a frame that is no shard.
func (e *extentState) addOthers(bytes, nowMS int64) {
	e.others.Add(bytes)
	e.othersMS.Store(nowMS)
}

// extents are the extents of a drive and their open files: at most max, but for
// those in use. Files are opened and closed without its lock: on a drive that hangs that may take for ever.
type extents struct {
	open func(number uint32) (vfsx.File, error)
	max  int

	clock atomic.Int64 // counts files opened, orders them by use
	mu    struct {
		sync.RWMutex
		byNumber map[uint32]*extentState
		files    int // open ones in the table
	}
}

func newExtents(max int, open func(uint32) (vfsx.File, error)) *extents {
	t := &extents{open: open, max: max}
	t.mu.byNumber = map[uint32]*extentState{}
	return t
}

// add puts an extent into the table; file may be nil. With a file it is acquired
// for the caller: until released it stays open.
func (t *extents) add(number uint32, row extentRow, file vfsx.File) *extentState {
	e := &extentState{number: number, salt: row.salt, stuckAt: -1, file: file}
	e.size.Store(row.size)
	e.live.Store(row.live)
	e.liveFrames.Store(row.liveFrames)
	e.others.Store(row.others)
	e.othersMS.Store(row.othersMS)
	e.sealed.Store(row.sealed)
	if file != nil {
		e.refs.Store(1) // before anybody can find it, and close it for being idle
	}
	var idle []vfsx.File
	t.mu.Lock()
	t.mu.byNumber[number] = e
	if file != nil {
		e.usedAt.Store(t.clock.Add(1))
		t.mu.files++
		idle = t.trimLocked()
	}
	t.mu.Unlock()
	closeFiles(idle)
	return e
}

// get is an extent of the table, or nil.
func (t *extents) get(number uint32) *extentState {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.byNumber[number]
}

// all are the extents in the order of their numbers.
func (t *extents) all() []*extentState {
	t.mu.RLock()
	defer t.mu.RUnlock()
	es := make([]*extentState, 0, len(t.mu.byNumber))
	for _, e := range t.mu.byNumber {
		es = append(es, e)
	}
	slices.SortFunc(es, func(a, b *extentState) int { return cmp.Compare(a.number, b.number) })
	return es
}

// from is the extent with the lowest number >= number, or nil.
func (t *extents) from(number uint32) (first *extentState) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for n, e := range t.mu.byNumber {
		if n >= number && (first == nil || n < first.number) {
			first = e
		}
	}
	return first
}

// acquire answers an extent with its file open until release; nil without an
// error if there is no such extent (any more).
func (t *extents) acquire(number uint32) (*extentState, error) {
	t.mu.RLock()
	e := t.mu.byNumber[number]
	if e != nil && e.file != nil {
		e.refs.Add(1)
		t.mu.RUnlock()
		if now := t.clock.Load(); e.usedAt.Load() != now {
			e.usedAt.Store(now)
		}
		return e, nil
	}
	t.mu.RUnlock()
	if e == nil {
		return nil, nil
	}
	return t.acquireClosed(number)
}

// acquireClosed opens the file, or waits until somebody else has.
func (t *extents) acquireClosed(number uint32) (*extentState, error) {
	for {
		t.mu.Lock()
		e := t.mu.byNumber[number]
		if e == nil {
			t.mu.Unlock()
			return nil, nil
		}
		if e.file != nil {
			e.refs.Add(1)
			e.usedAt.Store(t.clock.Add(1))
			t.mu.Unlock()
			return e, nil
		}
		opening := e.opening
		if opening == nil {
			e.opening = make(chan struct{})
			t.mu.Unlock()
			return t.openFile(e)
		}
		t.mu.Unlock()
		<-opening
	}
}

// openFile opens the file of e, whose opening the caller has made.
func (t *extents) openFile(e *extentState) (*extentState, error) {
	f, err := t.open(e.number)
	var idle []vfsx.File
	t.mu.Lock()
	close(e.opening)
	e.opening = nil
	switch {
	case err != nil:
		e = nil
	case e.gone:
		e, idle = nil, []vfsx.File{f}
	default:
		e.file = f
		e.refs.Add(1)
		e.usedAt.Store(t.clock.Add(1))
		t.mu.files++
		idle = t.trimLocked()
	}
	t.mu.Unlock()
	closeFiles(idle)
	return e, err
}

// trimLocked takes out the files unused for longest while there are too many, for the caller to close.
func (t *extents) trimLocked() (idle []vfsx.File) {
	for t.mu.files > t.max {
		var oldest *extentState
		for _, e := range t.mu.byNumber {
			if e.file != nil && e.refs.Load() == 0 && (oldest == nil || e.usedAt.Load() < oldest.usedAt.Load()) {
				oldest = e
			}
		}
		if oldest == nil {
			break
		}
		idle = append(idle, oldest.file)
		oldest.file = nil
		t.mu.files--
	}
	return idle
}

// closeFiles closes files in which nothing is unsynced.
func closeFiles(files []vfsx.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func (t *extents) release(e *extentState) {
	if e.refs.Add(-1) > 0 {
		return
	}
	t.mu.RLock()
	gone := e.gone
	t.mu.RUnlock()
	if !gone {
		return
	}
	t.mu.Lock()
	last := e.takeGoneLocked()
	t.mu.Unlock()
	closeFiles(last)
}

// takeGoneLocked is the file of an extent that is gone, if nobody uses it any more, for the caller to close.
func (e *extentState) takeGoneLocked() (last []vfsx.File) {
	if e.gone && e.file != nil && e.refs.Load() == 0 {
		last = []vfsx.File{e.file}
		e.file = nil
	}
	return last
}

// drop takes an extent out of the table. Who has acquired it keeps its file.
func (t *extents) drop(number uint32) {
	var last []vfsx.File
	t.mu.Lock()
	if e := t.mu.byNumber[number]; e != nil {
		delete(t.mu.byNumber, number)
		e.gone = true
		if e.file != nil {
			t.mu.files--
		}
		last = e.takeGoneLocked()
	}
	t.mu.Unlock()
	closeFiles(last)
}

// closeAll empties the table.
func (t *extents) closeAll() {
	for _, e := range t.all() {
		t.drop(e.number)
	}
}
