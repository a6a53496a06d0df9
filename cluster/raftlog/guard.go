package raftlog

import (
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// guardFS is the file system an Engine's Pebble sees. While the Pebble opens, errors pass
// through. Once armed, no failed change is ever reported: the engine is marked
// failed and the caller parked for ever, as every later one is, before it touches the drive.
// Failed reads mark the engine as failed too, but return.
type guardFS struct {
	vfs.FS
	e     *Engine
	armed atomic.Bool

	mu struct {
		sync.Mutex
		locks []io.Closer
		gone  bool
	}
}

func newGuardFS(fs vfs.FS, e *Engine) *guardFS { return &guardFS{FS: fs, e: e} }

// enter parks the caller when the engine has failed: nothing may change the drive any more.
func (g *guardFS) enter() {
	if g.e.Err() != nil {
		select {}
	}
}

// leave passes a change's result on, or fails the engine and parks.
func (g *guardFS) leave(err error) error {
	if err == nil {
		if g.e.Err() != nil {
			// Failed meanwhile, perhaps by a verdict on this very change: don't build on it.
			select {}
		}
		return nil
	}
	if !g.armed.Load() {
		return err
	}
	g.e.Fail(err)
	select {}
}

// read passes a read's result on; an error that the drive gave fails the engine.
func (g *guardFS) read(err error) error {
	if err != nil && g.armed.Load() && !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrNotExist) {
		g.e.Fail(err)
	}
	return err
}

// releaseLocks gives the lock file back, so that the directory can be opened again.
func (g *guardFS) releaseLocks() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.gone = true
	for _, l := range g.mu.locks {
		_ = l.Close()
	}
	g.mu.locks = nil
}

// guardLock is a lock that is given back once, by Pebble or by releaseLocks.
type guardLock struct {
	once sync.Once
	c    io.Closer
	err  error
}

func (l *guardLock) Close() error {
	l.once.Do(func() { l.err = l.c.Close() })
	return l.err
}

func (g *guardFS) Lock(name string) (io.Closer, error) {
	g.enter()
	c, err := g.FS.Lock(name)
	if err != nil {
		return nil, err
	}
	l := &guardLock{c: c}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.locks = append(g.mu.locks, l)
	return l, nil
}

func (g *guardFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &guardFile{File: f, g: g}, nil
}

// Create makes what a marker is to name durable before the marker: Pebble syncs a new manifest but not its name, and a power
// cut that keeps the marker's name and loses the manifest's would leave a store that cannot be opened.
func (g *guardFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	g.enter()
	if isMarker(g.PathBase(name)) {
		if err := g.leave(syncDir(g.FS, g.PathDir(name))); err != nil {
			return nil, err
		}
	}
	f, err := g.FS.Create(name, c)
	return g.wrap(f, g.leave(err))
}

func (g *guardFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := g.FS.Open(name, opts...)
	return g.wrap(f, g.read(err))
}

func (g *guardFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	g.enter()
	f, err := g.FS.OpenReadWrite(name, c, opts...)
	return g.wrap(f, g.leave(err))
}

func (g *guardFS) OpenDir(name string) (vfs.File, error) {
	f, err := g.FS.OpenDir(name)
	return g.wrap(f, g.read(err))
}

func (g *guardFS) ReuseForWrite(old, name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	g.enter()
	f, err := g.FS.ReuseForWrite(old, name, c)
	return g.wrap(f, g.leave(err))
}

// Remove and RemoveAll return their errors: what could not be removed does no harm.
//
// Pebble moves its markers (which name the current manifest) by making the new file, removing the old one and then syncing
// the directory. On a file system that may keep the removal and lose the file, a power cut in between
// would leave none, and the store would open as an empty one. So the new one is made durable first.
func (g *guardFS) Remove(name string) error {
	g.enter()
	if isMarker(g.PathBase(name)) {
		if err := g.leave(syncDir(g.FS, g.PathDir(name))); err != nil {
			return err
		}
	}
	return g.FS.Remove(name)
}

func isMarker(base string) bool { return strings.HasPrefix(base, "marker.") }

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (g *guardFS) RemoveAll(name string) error {
	g.enter()
	return g.FS.RemoveAll(name)
}

func (g *guardFS) Link(old, name string) error {
	g.enter()
	return g.leave(g.FS.Link(old, name))
}

func (g *guardFS) Rename(old, name string) error {
	g.enter()
	return g.leave(g.FS.Rename(old, name))
}

func (g *guardFS) MkdirAll(dir string, perm os.FileMode) error {
	g.enter()
	return g.leave(g.FS.MkdirAll(dir, perm))
}

func (g *guardFS) Unwrap() vfs.FS { return g.FS }

// guardFile is an open file of a guardFS.
type guardFile struct {
	vfs.File
	g *guardFS
}

func (f *guardFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	return n, f.g.read(err)
}

func (f *guardFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	return n, f.g.read(err)
}

func (f *guardFile) Write(p []byte) (int, error) {
	f.g.enter()
	n, err := f.File.Write(p)
	return n, f.g.leave(err)
}

func (f *guardFile) WriteAt(p []byte, off int64) (int, error) {
	f.g.enter()
	n, err := f.File.WriteAt(p, off)
	return n, f.g.leave(err)
}

func (f *guardFile) Preallocate(off, n int64) error {
	f.g.enter()
	return f.g.leave(f.File.Preallocate(off, n))
}

func (f *guardFile) Sync() error {
	f.g.enter()
	return f.g.leave(f.File.Sync())
}

func (f *guardFile) SyncTo(n int64) (bool, error) {
	f.g.enter()
	full, err := f.File.SyncTo(n)
	return full, f.g.leave(err)
}

func (f *guardFile) SyncData() error {
	f.g.enter()
	return f.g.leave(f.File.SyncData())
}
