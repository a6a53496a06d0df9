package vfsx

import (
	"errors"
	"io"
	"os"
	"reflect"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Large writes go past the page cache (O_DIRECT). Fresh pages of a cache
// cost more than the copy into a buffer that is used again: on virtual machines,
// where each new page may be a fault in the hypervisor too, writing 32 MiB took
// 64 ms of CPU through the cache and 6 past it, copy included. What a drive
// appends is read again much later if at all. Reads go through the cache: most of them
// repeat, and going past it for the first few of a place nearly doubled the CPU of a 16 MiB GET.
const (
	directMin   = 256 << 10 // bytes of a write from which on it is done
	directAlign = 4096      // of offsets, lengths and memory: enough for every disk in use
	directPiece = 2 << 20   // bytes written at once: a huge page
	piecesKept  = 16        // buffers that are kept for the next use
)

// directFile is the second handle of a file, opened with O_DIRECT when it is first wanted.
type directFile struct {
	fd     atomic.Int64 // 0: not tried; -1: the file system can't
	mu     sync.RWMutex // held by users of fd, so that it is not closed under them
	shared *directShared
}

// directShared belongs to all files of one FS. Safe for concurrent use.
type directShared struct {
	free chan piece // for the next use
}

// piece is a buffer for direct writes. One huge page is one place for the disk to go to, where ordinary
// pages are 512: that took a third of the CPU of small ones.
type piece struct {
	b      []byte // directPiece bytes, aligned to them
	mapped []byte // what b lies in
}

func newDirectShared() *directShared { return &directShared{free: make(chan piece, piecesKept)} }

func (d *directFile) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if fd := d.fd.Swap(-1); fd > 0 {
		_ = unix.Close(int(fd)) // nothing unsynced is in it: the first handle syncs
	}
}

// acquire is the handle until release, or -1 if there is none to be had.
func (d *directFile) acquire(f *osFile) int {
	d.mu.RLock()
	fd := d.fd.Load()
	if fd == 0 {
		if fd = int64(reopen(f)); !d.fd.CompareAndSwap(0, fd) {
			if fd > 0 {
				_ = unix.Close(int(fd)) // somebody was faster
			}
			fd = d.fd.Load()
		}
	}
	if fd < 0 {
		d.mu.RUnlock()
	}
	return int(fd)
}

func (d *directFile) release() { d.mu.RUnlock() }

func reopen(f *osFile) int {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.fd), &fs); err != nil || fs.Type == unix.TMPFS_MAGIC || fs.Type == unix.RAMFS_MAGIC {
		return -1 // there is nothing behind the cache
	}
	fd, err := unix.Open(f.Name(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	first, err1 := f.ID()
	var second unix.Stat_t
	if err2 := unix.Fstat(fd, &second); err1 != nil || err2 != nil || first.Dev != uint64(second.Dev) || first.Inode != second.Ino {
		_ = unix.Close(fd) // another file has the name now
		return -1
	}
	return fd
}

func (s *directShared) get() (piece, error) {
	select {
	case p := <-s.free:
		return p, nil
	default:
	}
	mem, err := unix.Mmap(-1, 0, 2*directPiece, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return piece{}, err
	}
	from := -reflect.ValueOf(mem).Pointer() % directPiece
	p := piece{b: mem[from : from+directPiece], mapped: mem} // the rest is never touched, so it takes no memory
	_ = unix.Madvise(p.b, unix.MADV_HUGEPAGE)                // advice
	return p, nil
}

func (s *directShared) put(p piece) {
	select {
	case s.free <- p:
	default:
		_ = unix.Munmap(p.mapped)
	}
}

// writeDirect is WriteV past the page cache, as far as it can: it answers how much it
// has written, and an error only if the rest cannot be written at all. The parts of blocks at both ends
// go through the cache: they share their blocks with what was written before and will be written next.
func (f *osFile) writeDirect(off int64, bufs [][]byte, total int64) (written int64, err error) {
	fd := f.direct.acquire(f)
	if fd < 0 {
		return 0, nil
	}
	defer f.direct.release()
	p, err := f.direct.shared.get()
	if err != nil {
		return 0, nil
	}
	defer f.direct.shared.put(p)
	piece := p.b
	aligned := (off + total) / directAlign * directAlign // where the last part of a block begins
	for written < total {
		at := off + written
		n, to := min(total-written, directPiece), int(f.fd)
		if rest := at % directAlign; rest != 0 {
			n = min(n, directAlign-rest)
		} else if at < aligned {
			n, to = min(n, aligned-at), fd
		}
		bufs = gather(piece[:n], bufs)
		if err := pwriteAll(to, piece[:n], at); errors.Is(err, unix.EINVAL) && to == fd {
			return written, nil // this file system wants something else
		} else if err != nil {
			return written, &os.PathError{Op: "write", Path: f.Name(), Err: err}
		}
		written += n
	}
	return written, nil
}

// gather fills p from the beginning of bufs and answers what is left of them.
func gather(p []byte, bufs [][]byte) [][]byte {
	for n := 0; n < len(p); {
		c := copy(p[n:], bufs[0])
		n += c
		bufs = skip(bufs, c)
	}
	return bufs
}

func pwriteAll(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func totalBytes(bufs [][]byte) (n int64) {
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}
