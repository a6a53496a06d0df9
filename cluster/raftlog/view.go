package raftlog

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/storage/errs"
)

// errNotFound reads exactly as raft expects of a stable store.
var errNotFound = errors.New("not found")

// View is one replica's log and stable store: a raft.LogStore and a
// raft.StableStore. Its methods are safe for concurrent use, as raft calls them.
type View struct {
	s         *Store
	id        string
	logPrefix []byte
	stabPre   []byte

	mu struct {
		sync.RWMutex
		first, last uint64 // 0, 0: empty
		lastTerm    uint64
		// What a DeleteRange under way deletes; 0, 0: nothing.
		delMin, delMax uint64
		// ring holds recent entries at index%ringEntries, or is nil; the lowest that may be there is low. bytes are theirs, counted
		// and place what the store's recents know of them.
		ring    []*raft.Log
		low     uint64
		bytes   int
		counted int
		place   *list.Element
		vals    map[string][]byte // the stable store's values
	}

	deleting sync.Mutex

	stalled atomic.Int64 // when the StoreLogs under way began, ns since epoch; 0 if none
	epoch   time.Time
	cutOnce sync.Once
	cut     chan struct{}
	isCut   atomic.Bool // nothing is kept in memory any more
}

var (
	_ raft.LogStore    = (*View)(nil)
	_ raft.StableStore = (*View)(nil)
)

// View opens the log of a replica; an unknown id has an empty one. There must be one View per id at a time.
func (s *Store) View(id string) (*View, error) {
	if len(id) == 0 || len(id) > replicaIDMax {
		return nil, errs.Newf(errs.InvalidArgument, "raftlog.view", id, "a replica id has 1 to %d bytes", replicaIDMax)
	}
	v := &View{s: s, id: id, cut: make(chan struct{}), epoch: time.Now()}
	v.logPrefix = append([]byte{'L', byte(len(id))}, id...)
	v.stabPre = append([]byte{'S', byte(len(id))}, id...)
	v.mu.vals = map[string][]byte{}
	err := s.e.Do("raftlog.view", func(db *pebble.DB) error {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: v.stabPre, UpperBound: after(v.stabPre)})
		if err != nil {
			return err
		}
		for ok := it.First(); ok; ok = it.Next() {
			v.mu.vals[string(it.Key()[len(v.stabPre):])] = append([]byte{}, it.Value()...)
		}
		if err := it.Close(); err != nil {
			return err
		}
		return v.loadEnds(db)
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

// loadEnds reads the first and the last index from the DB.
func (v *View) loadEnds(db *pebble.DB) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: v.logPrefix, UpperBound: after(v.logPrefix)})
	if err != nil {
		return err
	}
	var first, last raft.Log
	if it.First() {
		if err := v.decode(it, &first); err != nil {
			return errors.Join(err, it.Close())
		}
		it.Last()
		if err := v.decode(it, &last); err != nil {
			return errors.Join(err, it.Close())
		}
	}
	if err := it.Close(); err != nil {
		return err
	}
	v.mu.Lock()
	v.mu.first, v.mu.last, v.mu.lastTerm = first.Index, last.Index, last.Term
	v.mu.Unlock()
	return nil
}

func (v *View) decode(it *pebble.Iterator, l *raft.Log) error {
	k := it.Key()
	if len(k) != len(v.logPrefix)+8 {
		return errs.Newf(errs.Corrupt, "raftlog.view", v.id, "a log key of %d bytes", len(k))
	}
	l.Index = binary.BigEndian.Uint64(k[len(v.logPrefix):])
	return decodeLog(it.Value(), l)
}

// Check reads all entries from index from on and finds whether any is missing or cannot be read. Error: Corrupt, DriveFailed.
func (v *View) Check(from uint64) error {
	first, _ := v.FirstIndex()
	last, _ := v.LastIndex()
	from = max(from, first)
	if last == 0 || from > last {
		return nil
	}
	return v.s.e.Do("raftlog.check", func(db *pebble.DB) error {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: v.logKey(nil, from), UpperBound: after(v.logPrefix)})
		if err != nil {
			return err
		}
		var l raft.Log
		for ok := it.First(); ok && err == nil; ok = it.Next() {
			if err = v.decode(it, &l); err == nil && l.Index != from {
				err = errs.Newf(errs.Corrupt, "raftlog.check", v.id, "entry %d is missing", from)
			}
			from++
		}
		if err == nil && from != last+1 {
			err = errs.Newf(errs.Corrupt, "raftlog.check", v.id, "it ends at %d instead of %d", from-1, last)
		}
		return errors.Join(err, it.Close())
	})
}

// ID is the replica's id.
func (v *View) ID() string { return v.id }

// Cut lets calls that block because the store failed return made-up values. Call it only
// when nothing the replica says can reach anyone any more. Harmless while the store is well.
func (v *View) Cut() {
	v.cutOnce.Do(func() {
		close(v.cut)
		v.isCut.Store(true)
		go v.forget() // whoever holds the lock may wait for the drive
	})
}

// Stalled is how long the StoreLogs under way has been running, or 0.
func (v *View) Stalled() time.Duration {
	if s := v.stalled.Load(); s != 0 {
		return time.Since(v.epoch) - time.Duration(s)
	}
	return 0
}

// Last is the index and term of the last entry, 0 and 0 for an empty log.
func (v *View) Last() (index, term uint64) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mu.last, v.mu.lastTerm
}

// FirstIndex implements raft.LogStore.
func (v *View) FirstIndex() (uint64, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mu.first, nil
}

// LastIndex implements raft.LogStore.
func (v *View) LastIndex() (uint64, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.mu.last, nil
}

// GetLog implements raft.LogStore. The entry's data is shared and read-only.
func (v *View) GetLog(index uint64, l *raft.Log) error {
	v.mu.RLock()
	if !v.hasLocked(index) {
		v.mu.RUnlock()
		return raft.ErrLogNotFound
	}
	c := v.recentLocked(index)
	v.mu.RUnlock()
	if c != nil {
		*l = *c
		return nil
	}
	l.Index = index
	err := v.s.e.Err()
	if err == nil {
		err = v.read(l)
		if errors.Is(err, pebble.ErrNotFound) {
			v.mu.RLock()
			has := v.hasLocked(index)
			v.mu.RUnlock()
			if !has {
				return raft.ErrLogNotFound // deleted meanwhile
			}
			// An entry missing between first and last is damage: the log has no holes.
			err = errs.Wrap(errs.Corrupt, "raftlog.get", v.id, err)
		}
	}
	if err == nil {
		return nil
	}
	// raft would panic: the store is done for.
	v.s.e.Fail(fmt.Errorf("log entry %d of %s: %w", index, v.id, err))
	<-v.cut
	*l = raft.Log{Index: index, Type: raft.LogNoop}
	return nil
}

func (v *View) hasLocked(index uint64) bool {
	return index != 0 && index >= v.mu.first && index <= v.mu.last && (index < v.mu.delMin || index > v.mu.delMax)
}

func (v *View) read(l *raft.Log) error {
	val, c, err := v.s.e.db.Get(v.logKey(make([]byte, 0, 64), l.Index))
	if err != nil {
		return err
	}
	err = decodeLog(val, l)
	return errors.Join(err, c.Close())
}

// StoreLog implements raft.LogStore.
func (v *View) StoreLog(l *raft.Log) error { return v.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore: on nil the entries are durable. An error means
// that they may be or not; the replica must be stopped. The entries must follow the last one without a gap.
func (v *View) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	next, _ := v.LastIndex()
	for _, l := range logs {
		if next++; next != l.Index && next != 1 {
			return errs.Newf(errs.InvalidArgument, "raftlog.append", v.id, "entry %d would come after %d", l.Index, next-1)
		}
		next = l.Index
	}
	v.stalled.Store(max(1, int64(time.Since(v.epoch))))
	defer v.stalled.Store(0)
	r := &request{view: v, logs: logs}
	for _, l := range logs {
		r.bytes += encodedLogLen(l) + len(v.logPrefix) + 16
	}
	if err := v.s.do(r); err != nil {
		return err
	}
	v.stored(logs)
	v.s.recent.trim()
	return nil
}

func (v *View) stored(logs []*raft.Log) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, l := range logs {
		if !v.isCut.Load() {
			v.cacheLocked(l)
		}
		if v.mu.first == 0 {
			v.mu.first = l.Index
		}
		if l.Index >= v.mu.last {
			v.mu.last, v.mu.lastTerm = l.Index, l.Term
		}
	}
	v.s.recent.noteLocked(v)
}

// DeleteRange implements raft.LogStore; both ends are inclusive. It costs one tombstone. It
// takes off the head or the tail, the latter never while StoreLogs runs.
func (v *View) DeleteRange(min, max uint64) error {
	if min > max {
		return nil
	}
	v.deleting.Lock() // raft truncates the head from a goroutine of its own
	defer v.deleting.Unlock()
	v.mu.Lock()
	v.mu.delMin, v.mu.delMax = min, max
	v.uncacheLocked(min, max)
	v.s.recent.noteLocked(v)
	v.mu.Unlock()
	if err := v.s.do(&request{view: v, del: true, min: min, max: max, bytes: 64}); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.delMin, v.mu.delMax = 0, 0
	switch {
	case max < v.mu.first || min > v.mu.last:
	case min <= v.mu.first && max >= v.mu.last:
		v.mu.first, v.mu.last, v.mu.lastTerm = 0, 0, 0
	case min <= v.mu.first:
		v.mu.first = max + 1
	case max >= v.mu.last:
		l := raft.Log{Index: min - 1}
		if c := v.recentLocked(l.Index); c != nil {
			l = *c
		} else if err := v.read(&l); err != nil {
			v.s.e.Fail(fmt.Errorf("log entry %d of %s: %w", l.Index, v.id, err))
			return err
		}
		v.mu.last, v.mu.lastTerm = l.Index, l.Term
	default:
		return errs.Newf(errs.InvalidArgument, "raftlog.delete", v.id, "%d..%d is the middle of %d..%d", min, max, v.mu.first, v.mu.last)
	}
	return nil
}

// Set implements raft.StableStore; on return the value is durable.
func (v *View) Set(key, val []byte) error {
	c := append([]byte{}, val...)
	err := v.s.do(&request{rows: []row{{v.stableKey(string(key)), c}}, bytes: len(val) + 64})
	if err != nil {
		<-v.cut // raft panics on an error; nobody hears the replica any more
	}
	v.mu.Lock()
	v.mu.vals[string(key)] = c
	v.mu.Unlock()
	return nil
}

// SetUint64 implements raft.StableStore; on return the value is durable.
func (v *View) SetUint64(key []byte, val uint64) error {
	return v.Set(key, binary.BigEndian.AppendUint64(nil, val))
}

// Get implements raft.StableStore.
func (v *View) Get(key []byte) ([]byte, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	val, ok := v.mu.vals[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return val, nil
}

// GetUint64 implements raft.StableStore.
func (v *View) GetUint64(key []byte) (uint64, error) {
	val, err := v.Get(key)
	if err != nil {
		return 0, err
	}
	if len(val) != 8 {
		return 0, errs.Newf(errs.Corrupt, "raftlog.get", v.id, "value of %s has %d bytes", key, len(val))
	}
	return binary.BigEndian.Uint64(val), nil
}

// Init makes a new replica's term durable together with a row of the owner, in one commit.
func (v *View) Init(term uint64, meta string, value []byte) error {
	t := binary.BigEndian.AppendUint64(nil, term)
	err := v.s.do(&request{rows: []row{{v.stableKey("CurrentTerm"), t}, {metaKey(meta), value}}, bytes: 256 + len(value)})
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.mu.vals["CurrentTerm"] = t
	v.mu.Unlock()
	return nil
}

// Destroy removes everything the store has of the replica, together with a row of the owner
// ("" is none). The view must not be used afterwards.
func (v *View) Destroy(meta string) error {
	r := &request{span: &span{v.logPrefix, after(v.logPrefix)}, bytes: 256}
	v.mu.RLock()
	for k := range v.mu.vals {
		r.rows = append(r.rows, row{key: v.stableKey(k)})
	}
	v.mu.RUnlock()
	if meta != "" {
		r.rows = append(r.rows, row{key: metaKey(meta)})
	}
	return v.s.do(r)
}

func (v *View) stableKey(name string) []byte {
	return append(append(make([]byte, 0, len(v.stabPre)+len(name)), v.stabPre...), name...)
}

func (v *View) logKey(buf []byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64(append(buf, v.logPrefix...), index)
}

func (v *View) logKeyAfter(index uint64) []byte {
	if index == ^uint64(0) {
		return after(v.logPrefix)
	}
	return v.logKey(nil, index+1)
}

// logFormat is the first byte of an encoded entry.
const logFormat = 1

func encodedLogLen(l *raft.Log) int {
	return 2 + uvarintLen(l.Term) + uvarintLen(zigzag(appendedNS(l))) + uvarintLen(uint64(len(l.Extensions))) + len(l.Extensions) + len(l.Data)
}

func appendedNS(l *raft.Log) int64 {
	if l.AppendedAt.IsZero() {
		return 0
	}
	return l.AppendedAt.UnixNano()
}

func encodeLog(b []byte, l *raft.Log) []byte {
	b = append(b, logFormat, byte(l.Type))
	b = binary.AppendUvarint(b, l.Term)
	b = binary.AppendUvarint(b, zigzag(appendedNS(l)))
	b = binary.AppendUvarint(b, uint64(len(l.Extensions)))
	b = append(b, l.Extensions...)
	return append(b, l.Data...)
}

// decodeLog fills l, but for its index, from what encodeLog wrote; the bytes are copied.
func decodeLog(b []byte, l *raft.Log) error {
	bad := errs.New(errs.Corrupt, "raftlog.decode", "", "not a log entry")
	if len(b) < 2 || b[0] != logFormat {
		return bad
	}
	l.Type = raft.LogType(b[1])
	b = b[2:]
	var f [3]uint64
	for i := range f {
		n := 0
		if f[i], n = binary.Uvarint(b); n <= 0 {
			return bad
		}
		b = b[n:]
	}
	if f[2] > uint64(len(b)) {
		return bad
	}
	l.Term = f[0]
	l.AppendedAt = time.Time{}
	if ns := unzigzag(f[1]); ns != 0 {
		l.AppendedAt = time.Unix(0, ns)
	}
	c := append(make([]byte, 0, len(b)), b...)
	l.Extensions, l.Data = nil, c[f[2]:]
	if f[2] > 0 {
		l.Extensions = c[:f[2]:f[2]]
	}
	return nil
}

func zigzag(n int64) uint64   { return uint64(n<<1) ^ uint64(n>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

func uvarintLen(u uint64) int {
	n := 1
	for ; u >= 0x80; u >>= 7 {
		n++
	}
	return n
}
