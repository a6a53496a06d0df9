package drive

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"cairn/storage/errs"
	"cairn/storage/vfsx"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// pauseAfterError is how long the index's failed writes take to return: Pebble
// repeats a failed flush at once, for ever.
const pauseAfterError = 100 * time.Millisecond

// indexFS is the file system as the index's Pebble sees it. Once the drive has
// failed nothing is changed through it any more, so that a Pebble that hangs
// somewhere can't disturb who opens the directory next. A change that fails for another
// reason than want of space fails the drive.
type indexFS struct {
	vfs.FS
	d *Drive
}

// change runs a change of the file system.
func (f *indexFS) change(fn func() error) error {
	err := f.d.Failed()
	if err == nil {
		if err = fn(); err == nil || errors.Is(err, os.ErrNotExist) {
			return err
		}
		if !vfsx.IsNoSpace(err) && f.d.running.Load() {
			f.d.Fail(errs.Wrap(errs.DriveFailed, "drive.index", f.d.dir, err))
		}
	}
	time.Sleep(pauseAfterError)
	return err
}

func (f *indexFS) file(fn func() (vfs.File, error)) (file vfs.File, err error) {
	err = f.change(func() error {
		file, err = fn()
		return err
	})
	if err != nil {
		return nil, err
	}
	return &indexFile{file, f}, nil
}

func (f *indexFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.Create(name, c) })
}

func (f *indexFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, o ...vfs.OpenOption) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.OpenReadWrite(name, c, o...) })
}

func (f *indexFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.ReuseForWrite(old, name, c) })
}

func (f *indexFS) OpenDir(name string) (vfs.File, error) {
	return f.file(func() (vfs.File, error) { return f.FS.OpenDir(name) })
}

func (f *indexFS) Link(old, name string) error {
	return f.change(func() error { return f.FS.Link(old, name) })
}

func (f *indexFS) Remove(name string) error {
	return f.change(func() error { return f.FS.Remove(name) })
}

func (f *indexFS) RemoveAll(name string) error {
	return f.change(func() error { return f.FS.RemoveAll(name) })
}

func (f *indexFS) Rename(old, name string) error {
	return f.change(func() error { return f.FS.Rename(old, name) })
}

func (f *indexFS) MkdirAll(name string, perm os.FileMode) error {
	return f.change(func() error { return f.FS.MkdirAll(name, perm) })
}

// Lock is nothing: the drive's own lock covers the index, and can be given back while a Pebble hangs.
func (f *indexFS) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

func (f *indexFS) Unwrap() vfs.FS { return f.FS }

type indexFile struct {
	vfs.File
	fs *indexFS
}

func (f *indexFile) Write(p []byte) (n int, err error) {
	err = f.fs.change(func() error { n, err = f.File.Write(p); return err })
	return n, err
}

func (f *indexFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.fs.change(func() error { n, err = f.File.WriteAt(p, off); return err })
	return n, err
}

func (f *indexFile) Sync() error     { return f.fs.change(f.File.Sync) }
func (f *indexFile) SyncData() error { return f.fs.change(f.File.SyncData) }
func (f *indexFile) SyncTo(n int64) (full bool, err error) {
	err = f.fs.change(func() error { full, err = f.File.SyncTo(n); return err })
	return full, err
}

// indexLogger passes errors on and takes a fatal one for the end of the drive,
// not of the process: the caller, which Pebble does not expect to return, is parked.
type indexLogger struct{ d *Drive }

func (l indexLogger) Infof(string, ...any) {}

func (l indexLogger) Errorf(format string, args ...any) {
	l.d.log.Error("drive index: " + fmt.Sprintf(format, args...))
}

func (l indexLogger) Fatalf(format string, args ...any) {
	l.d.Fail(errs.Newf(errs.DriveFailed, "drive.index", l.d.dir, format, args...))
	select {}
}

// scheduler runs one compaction of one Pebble at a time. Pebble's own wakes
// up ten times a second, which twelve quiet drives pay with a percent of a core.
type scheduler struct {
	db pebble.DBForCompaction
	mu struct {
		sync.Mutex
		running bool
		refused bool // since it was last offered
		gone    bool
		asking  sync.WaitGroup
	}
}

func (s *scheduler) Register(_ int, db pebble.DBForCompaction) { s.db = db }

// Unregister waits until no call to the DB is under way.
func (s *scheduler) Unregister() {
	s.mu.Lock()
	s.mu.gone = true
	s.mu.Unlock()
	s.mu.asking.Wait()
}

func (s *scheduler) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.gone || s.mu.running {
		s.mu.refused = true
		return false, nil
	}
	s.mu.running = true
	return true, s
}

func (s *scheduler) UpdateGetAllowedWithoutPermission() {}

func (s *scheduler) Started()                                          {}
func (s *scheduler) MeasureCPU(pebble.CompactionGoroutineKind)         {}
func (s *scheduler) CumulativeStats(pebble.CompactionGrantHandleStats) {}

// Done is called when a compaction ended; the next one that waits may begin.
func (s *scheduler) Done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.running = false
	if !s.mu.gone {
		s.mu.asking.Add(1)
		go s.offer() // without the lock: the DB's comes before it
	}
}

// offer asks the DB whether a compaction waits, and again if one was refused meanwhile.
func (s *scheduler) offer() {
	defer s.mu.asking.Done()
	for again := true; again; {
		s.mu.Lock()
		if s.mu.gone || s.mu.running {
			s.mu.Unlock()
			return
		}
		s.mu.running, s.mu.refused = true, false
		s.mu.Unlock()
		if waiting, _ := s.db.GetWaitingCompaction(); waiting && s.db.Schedule(s) {
			return
		}
		s.mu.Lock()
		s.mu.running = false
		again = s.mu.refused
		s.mu.Unlock()
	}
}
