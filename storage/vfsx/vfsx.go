// Package vfsx is the file system as cairn's drives see it: Pebble's vfs.FS and
// what that lacks for extents (gathered writes, hole punching, links and inode
// of an open file).
//
// There are two implementations. OS is the operating system's file system. Mem
// lives in memory, can be cloned as it could look after a power cut at this
// moment (CrashClone), and injects faults; it is for tests, of this repository's
// packages as well as of whole clusters. Both are a vfs.FS that can be handed to
// Pebble.
package vfsx

import (
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// FS is a vfs.FS that also opens Files. GetDiskUsage (of vfs.FS) tells total and
// available bytes. All methods are safe for concurrent use.
type FS interface {
	vfs.FS

	// CreateFile creates name for reading and writing; it is an error
	// (os.ErrExist) if it exists. The directory entry is durable only after the
	// directory was synced.
	CreateFile(name string) (File, error)

	// OpenFile opens an existing file for reading and writing (os.ErrNotExist if it does not exist).
	OpenFile(name string) (File, error)

	// StatID is the identity of the file or directory that name names now.
	StatID(name string) (FileID, error)
}

// File is an open file. ReadAt is safe beside every other method; writing
// methods must not run beside each other on overlapping bytes. The file must
// not be closed while another call runs.
type File interface {
	vfs.File

	// WriteV writes the buffers one after the other from byte off of the file on,
	// with as few system calls as possible, and answers how many bytes were
	// written. It writes all of them or answers an error. The buffers are not
	// modified and not retained.
	WriteV(off int64, bufs [][]byte) (int64, error)

	// PunchHole makes n bytes from off on read as zeros and frees the whole blocks
	// among them; the file keeps its size. A range must lie within the file.
	// ErrUnsupported if the file system can't.
	PunchHole(off, n int64) error

	// SeekData is the first offset >= off that is not known to lie in a hole;
	// io.EOF if there is none. Where holes can't be told it answers off.
	SeekData(off int64) (int64, error)

	// ID is the file's identity and how many names it has now: 0 after it was
	// removed behind our back.
	ID() (FileID, error)

	// Allocated is the bytes that the file occupies on the disk.
	Allocated() (int64, error)

	// Forget drops n bytes from off on from the system's cache, if there is one, as far as they are synced: the next read
	// shows what the medium holds.
	Forget(off, n int64)
}

// FileID says which file this is, whatever its name.
type FileID struct {
	Dev, Inode uint64
	Links      uint64 // names that lead to it
}

// Same reports whether a and b are the same file.
func (a FileID) Same(b FileID) bool { return a.Dev == b.Dev && a.Inode == b.Inode }

// ErrUnsupported is answered by what a file system can't do.
var ErrUnsupported = vfs.ErrUnsupported

// IsNoSpace reports whether err says that the file system (or a quota) is full.
func IsNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// IsLoss reports whether err says that bytes, or the file that held them, are not
// there any more or can't be read from the medium.
func IsLoss(err error) bool {
	var no syscall.Errno
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrNotExist) ||
		errors.As(err, &no) && isMediumErrno(no)
}

// IsShortage reports whether err is want of descriptors or memory: it says
// nothing of the file, and passes.
func IsShortage(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN)
}

// CreatePrivate creates a file that must not exist yet; where the file system has
// users, only the owner can read it.
func CreatePrivate(fs FS, name string) (vfs.File, error) {
	if p, ok := fs.(interface {
		createPrivate(name string) (vfs.File, error)
	}); ok {
		return p.createPrivate(name)
	}
	return fs.CreateFile(name)
}

// SyncDir makes the entries of directory dir durable.
func SyncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	return errors.Join(err, d.Close())
}
