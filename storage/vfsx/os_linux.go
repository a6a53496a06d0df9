package vfsx

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// iovMax is the most buffers that one pwritev takes (UIO_MAXIOV).
const iovMax = 1024

// isMediumErrno: a block that can't be read (EIO, ENODATA), whose protection
// information is wrong (EILSEQ), or of which the file system found the checksum or structure wrong (EBADMSG, EUCLEAN).
func isMediumErrno(no syscall.Errno) bool {
	switch no {
	case unix.EIO, unix.ENODATA, unix.EILSEQ, unix.EBADMSG, unix.EUCLEAN:
		return true
	}
	return false
}

// StatID is called before every acknowledgement: one system call, and no FileInfo.
func (osFS) StatID(name string) (FileID, error) {
	var st unix.Stat_t
	if err := retryInterrupted(func() error { return unix.Stat(name, &st) }); err != nil {
		return FileID{}, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return FileID{Dev: uint64(st.Dev), Inode: st.Ino, Links: uint64(st.Nlink)}, nil
}

// readExactly has the kernel read what is asked for and not what lies behind it:
// that belongs to other objects. Who reads on end asks for much at a time.
func (f *osFile) readExactly() {
	_ = unix.Fadvise(int(f.fd), 0, 0, unix.FADV_RANDOM) // advice
}

func (f *osFile) Forget(off, n int64) {
	_ = unix.Fadvise(int(f.fd), off, n, unix.FADV_DONTNEED) // advice
}

func (f *osFile) ID() (FileID, error) {
	var st unix.Stat_t
	if err := retryInterrupted(func() error { return unix.Fstat(int(f.fd), &st) }); err != nil {
		return FileID{}, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return FileID{Dev: uint64(st.Dev), Inode: st.Ino, Links: uint64(st.Nlink)}, nil
}

func (f *osFile) Allocated() (int64, error) {
	var st unix.Stat_t
	if err := retryInterrupted(func() error { return unix.Fstat(int(f.fd), &st) }); err != nil {
		return 0, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	return st.Blocks * 512, nil
}

func (f *osFile) WriteV(off int64, bufs [][]byte) (written int64, err error) {
	if total := totalBytes(bufs); total >= directMin {
		written, err = f.writeDirect(off, bufs, total)
		if err != nil || written == total {
			return written, err
		}
		for left := written; left > 0; {
			n := min(left, int64(len(bufs[0])))
			bufs, left = skip(bufs, int(n)), left-n
		}
	}
	n, err := f.writeBuffered(off+written, bufs)
	return written + n, err
}

func (f *osFile) writeBuffered(off int64, bufs [][]byte) (written int64, err error) {
	for len(bufs) > 0 {
		n, err := unix.Pwritev(int(f.fd), bufs[:min(len(bufs), iovMax)], off+written)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 && !allEmpty(bufs) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return written, &os.PathError{Op: "writev", Path: f.Name(), Err: err}
		}
		written += int64(n)
		bufs = skip(bufs, n)
	}
	return written, nil
}

// skip leaves out the first n bytes of bufs, without changing bufs.
func skip(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs = append([][]byte{bufs[0][n:]}, bufs[1:]...)
	}
	return bufs
}

func allEmpty(bufs [][]byte) bool {
	for _, b := range bufs {
		if len(b) > 0 {
			return false
		}
	}
	return true
}

func (f *osFile) PunchHole(off, n int64) error {
	err := retryInterrupted(func() error {
		return unix.Fallocate(int(f.fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return ErrUnsupported
	}
	if err != nil {
		return &os.PathError{Op: "punch hole", Path: f.Name(), Err: err}
	}
	return nil
}

func (f *osFile) SeekData(off int64) (int64, error) {
	// The file position that this moves is used by nobody: all I/O names its offset.
	at, err := unix.Seek(int(f.fd), off, unix.SEEK_DATA)
	switch {
	case err == nil:
		return at, nil
	case errors.Is(err, unix.ENXIO):
		return 0, io.EOF
	case errors.Is(err, unix.EINVAL):
		return off, nil // the file system can't tell
	}
	return 0, &os.PathError{Op: "seek data", Path: f.Name(), Err: err}
}

func (f *osFile) SyncData() error {
	if err := retryInterrupted(func() error { return unix.Fdatasync(int(f.fd)) }); err != nil {
		return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}
