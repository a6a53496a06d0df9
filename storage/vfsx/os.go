package vfsx

import (
	"errors"
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// OS is the operating system's file system.
func OS() FS { return osFS{vfs.Default, newDirectShared()} }

type osFS struct {
	vfs.FS
	shared *directShared
}

// Unwrap says what is wrapped (vfs.FS).
func (o osFS) Unwrap() vfs.FS { return o.FS }

func (o osFS) CreateFile(name string) (File, error) {
	return o.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

// createPrivate makes a file that only its owner can read.
func (o osFS) createPrivate(name string) (vfs.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	return newOSFile(f, o.shared), nil
}

func (o osFS) OpenFile(name string) (File, error) { return o.open(name, os.O_RDWR) }

func (o osFS) open(name string, flags int) (File, error) {
	f, err := os.OpenFile(name, flags|syscall.O_CLOEXEC, 0o666)
	if err != nil {
		return nil, err
	}
	of := newOSFile(f, o.shared)
	of.readExactly()
	return of, nil
}

// osFile is an *os.File with the rest of vfs.File; what differs between
// operating systems stands in os_*.go. fd is taken once: os.File.Fd is not free.
type osFile struct {
	*os.File
	fd     uintptr
	direct directFile
}

func newOSFile(f *os.File, shared *directShared) *osFile {
	return &osFile{File: f, fd: f.Fd(), direct: directFile{shared: shared}}
}

func (f *osFile) Close() error {
	f.direct.close()
	return f.File.Close()
}

func (f *osFile) Fd() uintptr { return f.fd }

func (f *osFile) Stat() (vfs.FileInfo, error) {
	fi, err := f.File.Stat()
	if err != nil {
		return nil, err
	}
	return osFileInfo{fi}, nil
}

// osFileInfo leaves the device unset, whose type only Pebble can fill; Pebble
// never sees these files.
type osFileInfo struct{ os.FileInfo }

func (osFileInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

func (f *osFile) SyncTo(int64) (bool, error)   { return true, f.SyncData() }
func (f *osFile) Prefetch(off, n int64) error  { return nil }
func (f *osFile) Preallocate(_, _ int64) error { return nil }

// retryInterrupted repeats fn while a signal interrupts it.
func retryInterrupted(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}
