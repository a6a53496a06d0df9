package vfsx

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// pageBytes is the unit in which Mem keeps, syncs and loses data: the block of a disk.
const pageBytes = 4096

type page [pageBytes]byte

// Mem is a file system in memory that remembers what was synced. Unlike Pebble's
// MemFS, a sync costs what was written since the last one, CrashClone repeats
// by its seed and tears blocks, files have holes and links, the disk has a size,
// and faults can be injected. The paths are slash-separated; relative ones start
// at the root.
//
// Its rules of durability are those of POSIX at their weakest: a file's bytes
// survive only if the file was synced, its name only if the directory was, each
// independently of the other; after a failed sync the bytes it should have
// synced are not durable, though they can be read and a later sync succeeds.
//
// A Mem is safe for concurrent use. No lock is held while a fault hook runs or
// an injected delay passes, so it works inside testing/synctest bubbles.
type Mem struct {
	mu        sync.RWMutex // guards the tree and all data
	root      *node
	lastInode uint64
	locked    map[string]bool
	capacity  int64 // bytes of pages in all, < 0: no bound
	used      int64 // bytes of pages in files that are named or open

	faults faults
}

var (
	_ FS   = (*Mem)(nil)
	_ File = (*memFile)(nil)
)

// node is a file or a directory. Guarded by Mem.mu.
type node struct {
	inode   uint64
	isDir   bool
	links   int // names in directories
	opens   int
	modTime time.Time

	// Of a file. A page that is the same pointer in pages and synced is immutable.
	// nil is a hole. Bytes past size in the last page are zero.
	size, syncedSize int64
	pages, synced    []*page
	dirty            map[int]struct{} // pages to sync

	// Of a directory.
	children       map[string]*node
	syncedChildren map[string]*node
	unsynced       []dirOp // what leads from syncedChildren to children
}

// dirOp is one change of a directory; a rename within it is one change.
type dirOp struct {
	remove string // a name, or empty
	add    string // a name, or empty
	node   *node  // what add names
}

// NewMem makes an empty file system without a bound on its size.
func NewMem() *Mem {
	m := &Mem{locked: map[string]bool{}, capacity: -1, lastInode: 1}
	m.root = newDir(1)
	m.root.links = 1
	return m
}

func newDir(inode uint64) *node {
	return &node{inode: inode, isDir: true, children: map[string]*node{}, syncedChildren: map[string]*node{}}
}

// SetCapacity bounds the disk to n bytes: writes that need more answer ENOSPC
// after having written what fits. n < 0 takes the bound away.
func (m *Mem) SetCapacity(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = n
}

// Used is the bytes on the disk, in whole pages.
func (m *Mem) Used() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.used
}

// RemoveTree does to name what rm -rf would: open files in it stay usable and have no links. Faults don't apply to it.
func (m *Mem) RemoveTree(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.removeAllLocked(name)
}

// XorByte changes the byte at off of the file name by mask, on the disk as well as in
// its cache: bit rot. It is an error if there is no such byte.
func (m *Mem) XorByte(name string, off int64, mask byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookupLocked("xor", name)
	if err != nil {
		return err
	}
	if n.isDir || off < 0 || off >= n.size {
		return pathError("xor", name, syscall.EINVAL)
	}
	i := int(off / pageBytes)
	was := n.pages[i]
	p := new(page)
	if was != nil {
		*p = *was
	} else {
		m.used += pageBytes
	}
	p[off%pageBytes] ^= mask
	n.pages[i] = p
	if i < len(n.synced) && n.synced[i] == was && was != nil {
		n.synced[i] = p
	}
	return nil
}

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// split cuts a name into its elements.
func split(name string) []string {
	name = path.Clean("/" + name)[1:]
	if name == "" {
		return nil
	}
	return strings.Split(name, "/")
}

func (m *Mem) lookupLocked(op, name string) (*node, error) {
	n := m.root
	for _, elem := range split(name) {
		if !n.isDir {
			return nil, pathError(op, name, syscall.ENOTDIR)
		}
		if n = n.children[elem]; n == nil {
			return nil, pathError(op, name, os.ErrNotExist)
		}
	}
	return n, nil
}

// parentLocked finds the directory that holds name's last element.
func (m *Mem) parentLocked(op, name string) (*node, string, error) {
	elems := split(name)
	if len(elems) == 0 {
		return nil, "", pathError(op, name, os.ErrInvalid)
	}
	dir, err := m.lookupLocked(op, path.Join(elems[:len(elems)-1]...))
	if err != nil {
		return nil, "", pathError(op, name, errors.Unwrap(err))
	}
	if !dir.isDir {
		return nil, "", pathError(op, name, syscall.ENOTDIR)
	}
	return dir, elems[len(elems)-1], nil
}

// changeLocked applies op to dir and remembers it for the next sync or crash.
func (m *Mem) changeLocked(dir *node, op dirOp) {
	if op.remove != "" {
		if n := dir.children[op.remove]; n != nil {
			m.unlinkLocked(n)
		}
		delete(dir.children, op.remove)
	}
	if op.add != "" {
		op.node.links++
		if n := dir.children[op.add]; n != nil {
			m.unlinkLocked(n)
		}
		dir.children[op.add] = op.node
	}
	dir.unsynced = append(dir.unsynced, op)
	dir.modTime = time.Now()
}

func (m *Mem) unlinkLocked(n *node) {
	n.links--
	m.releaseLocked(n)
}

// releaseLocked gives back the space of a file that nobody can reach any more.
// Its pages stay for CrashClone: the name may not be gone from the disk yet.
func (m *Mem) releaseLocked(n *node) {
	if n.links == 0 && n.opens == 0 {
		m.used -= n.allocated()
	}
}

func (n *node) allocated() (bytes int64) {
	for _, p := range n.pages {
		if p != nil {
			bytes += pageBytes
		}
	}
	return bytes
}

func (m *Mem) createLocked(op, name string, exclusive bool) (*memFile, error) {
	dir, base, err := m.parentLocked(op, name)
	if err != nil {
		return nil, err
	}
	if old := dir.children[base]; old != nil && (exclusive || old.isDir) {
		return nil, pathError(op, name, os.ErrExist)
	}
	m.lastInode++
	n := &node{inode: m.lastInode, modTime: time.Now(), dirty: map[int]struct{}{}}
	m.changeLocked(dir, dirOp{add: base, node: n})
	return m.openLocked(name, n, true), nil
}

func (m *Mem) openLocked(name string, n *node, write bool) *memFile {
	n.opens++
	return &memFile{m: m, n: n, name: name, write: write}
}

func (m *Mem) create(name string, exclusive bool) (*memFile, error) {
	if err := m.faults.check(OpCreate, name); err != nil {
		return nil, pathError("create", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.createLocked("create", name, exclusive)
}

func (m *Mem) open(name string, write, create bool) (*memFile, error) {
	if err := m.faults.check(OpOpen, name); err != nil {
		return nil, pathError("open", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookupLocked("open", name)
	if create && errors.Is(err, os.ErrNotExist) {
		return m.createLocked("open", name, true)
	}
	if err != nil {
		return nil, err
	}
	if n.isDir && write {
		return nil, pathError("open", name, syscall.EISDIR)
	}
	return m.openLocked(name, n, write), nil
}

// CreateFile implements FS.
func (m *Mem) CreateFile(name string) (File, error) {
	f, err := m.create(name, true)
	if err != nil {
		return nil, err // not a nil *memFile in an interface
	}
	return f, nil
}

// OpenFile implements FS.
func (m *Mem) OpenFile(name string) (File, error) {
	f, err := m.open(name, true, false)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// StatID implements FS.
func (m *Mem) StatID(name string) (FileID, error) {
	if err := m.faults.check(OpStat, name); err != nil {
		return FileID{}, pathError("stat", name, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	n, err := m.lookupLocked("stat", name)
	if err != nil {
		return FileID{}, err
	}
	return n.id(), nil
}

func (n *node) id() FileID { return FileID{Dev: 1, Inode: n.inode, Links: uint64(n.links)} }

// Create implements vfs.FS.
func (m *Mem) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := m.create(name, false)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Link implements vfs.FS.
func (m *Mem) Link(oldname, newname string) error {
	if err := m.faults.check(OpLink, newname); err != nil {
		return pathError("link", newname, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.lookupLocked("link", oldname)
	if err != nil {
		return err
	}
	dir, base, err := m.parentLocked("link", newname)
	if err != nil {
		return err
	}
	if n.isDir || dir.children[base] != nil {
		return pathError("link", newname, os.ErrExist)
	}
	m.changeLocked(dir, dirOp{add: base, node: n})
	return nil
}

// Open implements vfs.FS.
func (m *Mem) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := m.open(name, false, false)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

// OpenReadWrite implements vfs.FS.
func (m *Mem) OpenReadWrite(name string, _ vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := m.open(name, true, true)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o.Apply(f)
	}
	return f, nil
}

// OpenDir implements vfs.FS.
func (m *Mem) OpenDir(name string) (vfs.File, error) { return m.Open(name) }

// Remove implements vfs.FS.
func (m *Mem) Remove(name string) error {
	if err := m.faults.check(OpRemove, name); err != nil {
		return pathError("remove", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parentLocked("remove", name)
	if err != nil {
		return err
	}
	n := dir.children[base]
	if n == nil {
		return pathError("remove", name, os.ErrNotExist)
	}
	if len(n.children) > 0 {
		return pathError("remove", name, syscall.ENOTEMPTY)
	}
	m.changeLocked(dir, dirOp{remove: base})
	return nil
}

// RemoveAll implements vfs.FS.
func (m *Mem) RemoveAll(name string) error {
	if err := m.faults.check(OpRemove, name); err != nil {
		return pathError("remove", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.removeAllLocked(name)
}

func (m *Mem) removeAllLocked(name string) error {
	dir, base, err := m.parentLocked("remove", name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if n := dir.children[base]; n != nil {
		m.emptyLocked(n)
		m.changeLocked(dir, dirOp{remove: base})
	}
	return nil
}

func (m *Mem) emptyLocked(n *node) {
	for name, child := range n.children {
		m.emptyLocked(child)
		m.changeLocked(n, dirOp{remove: name})
	}
}

// Rename implements vfs.FS.
func (m *Mem) Rename(oldname, newname string) error {
	if err := m.faults.check(OpRename, newname); err != nil {
		return pathError("rename", newname, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.renameLocked(oldname, newname)
}

func (m *Mem) renameLocked(oldname, newname string) error {
	from, oldbase, err := m.parentLocked("rename", oldname)
	if err != nil {
		return err
	}
	to, newbase, err := m.parentLocked("rename", newname)
	if err != nil {
		return err
	}
	n := from.children[oldbase]
	switch {
	case n == nil:
		return pathError("rename", oldname, os.ErrNotExist)
	case n == to.children[newbase]:
		return nil
	case from == to:
		m.changeLocked(to, dirOp{remove: oldbase, add: newbase, node: n})
	default:
		m.changeLocked(to, dirOp{add: newbase, node: n})
		m.changeLocked(from, dirOp{remove: oldbase})
	}
	return nil
}

// ReuseForWrite implements vfs.FS.
func (m *Mem) ReuseForWrite(oldname, newname string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	if err := m.Rename(oldname, newname); err != nil {
		return nil, err
	}
	f, err := m.open(newname, true, false)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// MkdirAll implements vfs.FS.
func (m *Mem) MkdirAll(name string, _ os.FileMode) error {
	if err := m.faults.check(OpMkdir, name); err != nil {
		return pathError("mkdir", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	dir := m.root
	for _, elem := range split(name) {
		child := dir.children[elem]
		if child == nil {
			m.lastInode++
			child = newDir(m.lastInode)
			child.modTime = time.Now()
			m.changeLocked(dir, dirOp{add: elem, node: child})
		}
		if !child.isDir {
			return pathError("mkdir", name, syscall.ENOTDIR)
		}
		dir = child
	}
	return nil
}

// Lock implements vfs.FS.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := path.Clean("/" + name)
	if m.locked[key] {
		return nil, pathError("lock", name, syscall.EAGAIN)
	}
	f, err := m.createLocked("lock", name, false)
	if err != nil {
		return nil, err
	}
	m.locked[key] = true
	return &memLock{f: f, key: key}, nil
}

type memLock struct {
	once sync.Once
	f    *memFile
	key  string
}

func (l *memLock) Close() (err error) {
	l.once.Do(func() {
		m := l.f.m
		m.mu.Lock()
		delete(m.locked, l.key)
		m.mu.Unlock()
		err = l.f.Close()
	})
	return err
}

// List implements vfs.FS. The order of the names is random, as on a disk.
func (m *Mem) List(name string) ([]string, error) {
	if err := m.faults.check(OpList, name); err != nil {
		return nil, pathError("list", name, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	n, err := m.lookupLocked("list", name)
	if err != nil {
		return nil, err
	}
	if !n.isDir {
		return nil, pathError("list", name, syscall.ENOTDIR)
	}
	names := make([]string, 0, len(n.children))
	for s := range n.children {
		names = append(names, s)
	}
	return names, nil
}

// Stat implements vfs.FS.
func (m *Mem) Stat(name string) (vfs.FileInfo, error) {
	if err := m.faults.check(OpStat, name); err != nil {
		return nil, pathError("stat", name, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	n, err := m.lookupLocked("stat", name)
	if err != nil {
		return nil, err
	}
	return n.info(name), nil
}

// PathBase implements vfs.FS.
func (*Mem) PathBase(p string) string { return path.Base(p) }

// PathJoin implements vfs.FS.
func (*Mem) PathJoin(elem ...string) string { return path.Join(elem...) }

// PathDir implements vfs.FS.
func (*Mem) PathDir(p string) string { return path.Dir(p) }

// GetDiskUsage implements vfs.FS. Without a capacity the disk has 1 TiB more than is used.
func (m *Mem) GetDiskUsage(string) (vfs.DiskUsage, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	total := m.capacity
	if total < 0 {
		total = m.used + 1<<40
	}
	return vfs.DiskUsage{
		TotalBytes: uint64(total),
		UsedBytes:  uint64(m.used),
		AvailBytes: uint64(max(0, total-m.used)),
	}, nil
}

// Unwrap implements vfs.FS.
func (*Mem) Unwrap() vfs.FS { return nil }

// memInfo is a FileInfo of a node at one moment.
type memInfo struct {
	name    string
	size    int64
	isDir   bool
	modTime time.Time
}

func (n *node) info(name string) memInfo {
	return memInfo{path.Base(name), n.size, n.isDir, n.modTime}
}

func (i memInfo) Name() string           { return i.name }
func (i memInfo) Size() int64            { return i.size }
func (i memInfo) ModTime() time.Time     { return i.modTime }
func (i memInfo) IsDir() bool            { return i.isDir }
func (i memInfo) Sys() any               { return nil }
func (i memInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }
func (i memInfo) Mode() os.FileMode {
	if i.isDir {
		return os.ModeDir | 0o755
	}
	return 0o644
}

// memFile is an open file. pos is guarded by Mem.mu.
type memFile struct {
	m      *Mem
	n      *node
	name   string
	pos    int64
	write  bool
	closed bool
}

func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.closed {
		return pathError("close", f.name, os.ErrClosed)
	}
	f.closed = true
	f.n.opens--
	f.m.releaseLocked(f.n)
	return nil
}

func (f *memFile) checkLocked(op string, write bool) error {
	switch {
	case f.closed:
		return pathError(op, f.name, os.ErrClosed)
	case f.n.isDir:
		return pathError(op, f.name, syscall.EISDIR)
	case write && !f.write:
		return pathError(op, f.name, syscall.EBADF)
	}
	return nil
}

func (f *memFile) Read(p []byte) (int, error) {
	if err := f.m.faults.check(OpRead, f.name); err != nil {
		return 0, pathError("read", f.name, err)
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.checkLocked("read", false); err != nil {
		return 0, err
	}
	n := f.n.readAt(p, f.pos)
	f.pos += int64(n)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.m.faults.check(OpRead, f.name); err != nil {
		return 0, pathError("read", f.name, err)
	}
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	if err := f.checkLocked("read", false); err != nil {
		return 0, err
	}
	n := f.n.readAt(p, off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (n *node) readAt(p []byte, off int64) int {
	if off >= n.size {
		return 0
	}
	p = p[:min(int64(len(p)), n.size-off)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		pg, in := n.pages[at/pageBytes], at%pageBytes
		c := min(len(p)-done, int(pageBytes-in))
		if pg == nil {
			clear(p[done : done+c])
		} else {
			copy(p[done:done+c], pg[in:])
		}
		done += c
	}
	return len(p)
}

func (f *memFile) Write(p []byte) (int, error) {
	f.m.mu.RLock()
	pos := f.pos
	f.m.mu.RUnlock()
	n, err := f.WriteAt(p, pos)
	f.m.mu.Lock()
	f.pos = pos + int64(n)
	f.m.mu.Unlock()
	return n, err
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.WriteV(off, [][]byte{p})
	return int(n), err
}

func (f *memFile) WriteV(off int64, bufs [][]byte) (written int64, err error) {
	fault := f.m.faults.check(OpWrite, f.name)
	left := int64(0)
	for _, b := range bufs {
		left += int64(len(b))
	}
	if fault != nil {
		left /= 2 // a failing write leaves some of its bytes
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.checkLocked("write", true); err != nil {
		return 0, err
	}
	for _, b := range bufs {
		b = b[:min(int64(len(b)), left)]
		n, err := f.m.writeLocked(f.n, off+written, b)
		written += int64(n)
		left -= int64(n)
		if err != nil {
			return written, pathError("write", f.name, err)
		}
	}
	if fault != nil {
		return written, pathError("write", f.name, fault)
	}
	return written, nil
}

func (m *Mem) writeLocked(n *node, off int64, p []byte) (int, error) {
	n.modTime = time.Now()
	for done := 0; done < len(p); {
		at := off + int64(done)
		in := at % pageBytes
		c := min(len(p)-done, int(pageBytes-in))
		pg, err := m.pageLocked(n, int(at/pageBytes))
		if err != nil {
			return done, err
		}
		copy(pg[in:], p[done:done+c])
		done += c
		n.size = max(n.size, at+int64(c))
	}
	return len(p), nil
}

// pageLocked is page i of n, there and writable.
func (m *Mem) pageLocked(n *node, i int) (*page, error) {
	for len(n.pages) <= i {
		n.pages = append(n.pages, nil)
	}
	switch p := n.pages[i]; {
	case p == nil:
		if m.capacity >= 0 && m.used+pageBytes > m.capacity {
			// The bytes before are written; a longer size with a hole would not be ours.
			n.pages = n.pages[:min(len(n.pages), int((n.size+pageBytes-1)/pageBytes))]
			return nil, syscall.ENOSPC
		}
		m.used += pageBytes
		n.pages[i] = new(page)
	case i < len(n.synced) && n.synced[i] == p:
		c := *p
		n.pages[i] = &c
	}
	n.dirty[i] = struct{}{}
	return n.pages[i], nil
}

func (f *memFile) PunchHole(off, length int64) error {
	if err := f.m.faults.check(OpPunch, f.name); err != nil {
		return pathError("punch hole", f.name, err)
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.checkLocked("punch hole", true); err != nil {
		return err
	}
	n := f.n
	if off < 0 || length <= 0 || off+length > (n.size+pageBytes-1)/pageBytes*pageBytes {
		return pathError("punch hole", f.name, syscall.EINVAL)
	}
	for at := off; at < off+length; {
		i, in := int(at/pageBytes), at%pageBytes
		c := min(off+length-at, pageBytes-in)
		at += c
		switch {
		case n.pages[i] == nil:
		case c == pageBytes:
			n.pages[i] = nil
			n.dirty[i] = struct{}{}
			f.m.used -= pageBytes
		default:
			pg, err := f.m.pageLocked(n, i)
			if err != nil {
				return pathError("punch hole", f.name, err)
			}
			clear(pg[in : in+c])
		}
	}
	return nil
}

func (f *memFile) SeekData(off int64) (int64, error) {
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	if err := f.checkLocked("seek data", false); err != nil {
		return 0, err
	}
	for ; off < f.n.size; off = (off/pageBytes + 1) * pageBytes {
		if f.n.pages[off/pageBytes] != nil {
			return off, nil
		}
	}
	return 0, io.EOF
}

func (f *memFile) ID() (FileID, error) {
	if err := f.m.faults.check(OpStat, f.name); err != nil {
		return FileID{}, pathError("stat", f.name, err)
	}
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	return f.n.id(), nil
}

func (f *memFile) Forget(off, n int64) {}

func (f *memFile) Allocated() (int64, error) {
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	return f.n.allocated(), nil
}

func (f *memFile) Stat() (vfs.FileInfo, error) {
	f.m.mu.RLock()
	defer f.m.mu.RUnlock()
	return f.n.info(f.name), nil
}

func (f *memFile) Sync() error {
	op := OpSync
	if f.n.isDir {
		op = OpSyncDir
	}
	fault := f.m.faults.check(op, f.name)
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.closed {
		return pathError("sync", f.name, os.ErrClosed)
	}
	n := f.n
	if fault != nil {
		clear(n.dirty) // the kernel forgets that they are dirty
		return pathError("sync", f.name, fault)
	}
	if n.isDir {
		n.syncedChildren, n.unsynced = maps.Clone(n.children), nil
		return nil
	}
	for len(n.synced) < len(n.pages) {
		n.synced = append(n.synced, nil)
	}
	for i := range n.dirty {
		n.synced[i] = n.pages[i]
	}
	clear(n.dirty)
	n.syncedSize = n.size
	return nil
}

func (f *memFile) SyncData() error              { return f.Sync() }
func (f *memFile) SyncTo(int64) (bool, error)   { return false, nil } // promises nothing
func (f *memFile) Preallocate(_, _ int64) error { return nil }
func (f *memFile) Prefetch(_, _ int64) error    { return nil }
func (f *memFile) Fd() uintptr                  { return vfs.InvalidFd }
