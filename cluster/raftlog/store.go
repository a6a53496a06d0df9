package raftlog

import (
	"bytes"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hashicorp/raft"
)

// Limits of a store.
const (
	queueLen       = 256     // requests that wait for the committer
	commitBytesMax = 8 << 20 // entries gathered into one commit, about
	ringEntries    = 2048    // log entries a view keeps in memory at most; a power of two
	ringBytesMax   = 4 << 20 // and their data
	replicaIDMax   = 255     // length of a replica id
)

// Options says how to open a Store.
type Options struct {
	FS            vfs.FS // of the drive; required
	Dir           string // the store's directory; made if missing
	MemTableBytes uint64 // 0 is 4 MiB
	RecentBytes   int    // recent entries kept in memory, of all views together; 0 is 32 MiB
	Cache         *pebble.Cache
	FileCache     *pebble.FileCache
	Compactions   *Compactions
	Logger        *slog.Logger
	// Check says whether the drive is still the one that was opened; it runs after every synced commit. Nil is none.
	Check func() error
	// OnFail is called once, from a goroutine of its own, when the store fails.
	OnFail func(error)
}

// Store is the log store of one drive. Its methods are safe for concurrent use.
type Store struct {
	e       *Engine
	recent  recents
	check   func() error
	reqs    chan *request
	closing chan struct{}
	stopped chan struct{} // the committer has ended
	once    sync.Once
}

// request is one caller's change, waiting for the commit it shares with others.
type request struct {
	view     *View
	logs     []*raft.Log // to append
	del      bool        // delete the view's entries min..max
	min, max uint64
	rows     []row // raw rows to set, or delete if value is nil
	span     *span // raw span to delete
	bytes    int
	done     chan error
}

type row struct{ key, value []byte }
type span struct{ start, end []byte }

// Open opens or makes a store. Errors: Corrupt (every log in it counts as lost), DriveFailed.
func Open(o Options) (*Store, error) {
	if o.RecentBytes == 0 {
		o.RecentBytes = 32 << 20
	}
	s := &Store{
		recent:  recents{max: o.RecentBytes},
		check:   o.Check,
		reqs:    make(chan *request, queueLen),
		closing: make(chan struct{}),
		stopped: make(chan struct{}),
	}
	if err := checkWAL(o.FS, o.Dir); err != nil {
		return nil, err
	}
	e, err := OpenEngine(EngineOptions{
		FS: o.FS, Dir: o.Dir, MemTableBytes: o.MemTableBytes, Cache: o.Cache, FileCache: o.FileCache,
		Compactions: o.Compactions, Logger: o.Logger, OnFail: o.OnFail,
	})
	if err != nil {
		return nil, err
	}
	s.e = e
	go s.commitLoop()
	return s, nil
}

// Fail marks the store as failed for good.
func (s *Store) Fail(err error) { s.e.Fail(err) }

// Failed is closed when the store has failed; Err says why.
func (s *Store) Failed() <-chan struct{} { return s.e.Failed() }

// Err is why the store failed, or nil.
func (s *Store) Err() error { return s.e.Err() }

// Close ends the committer and closes the Pebble; no view may be in use any more. A
// failed store is only abandoned.
func (s *Store) Close() error {
	s.once.Do(func() { close(s.closing) })
	select {
	case <-s.stopped:
	case <-s.e.Failed():
	}
	return s.e.Close()
}

// commitLoop is the only writer. What came while one commit was syncing goes into the next,
// so that all groups on the drive share its fsyncs. It is a goroutine of its own, so
// that a commit that never returns (a dead drive) keeps nobody but itself.
func (s *Store) commitLoop() {
	defer close(s.stopped)
	batch := make([]*request, 0, queueLen)
	for {
		batch = batch[:0]
		select {
		case r := <-s.reqs:
			batch = append(batch, r)
		case <-s.closing:
			return
		case <-s.e.Failed():
			return
		}
		for size := batch[0].bytes; size < commitBytesMax && len(batch) < queueLen; {
			select {
			case r := <-s.reqs:
				batch = append(batch, r)
				size += r.bytes
				continue
			default:
			}
			break
		}
		err := s.commit(batch)
		if err == nil && s.check != nil {
			err = s.check()
		}
		if err != nil {
			s.e.Fail(err)
		}
		if s.e.Err() != nil {
			err = s.e.failure("raftlog.commit")
		}
		for _, r := range batch {
			r.done <- err
		}
		if err != nil {
			return
		}
	}
}

func (s *Store) commit(batch []*request) error {
	size := 256
	for _, r := range batch {
		size += r.bytes
	}
	b := s.e.db.NewBatchWithSize(size)
	defer b.Close()
	for _, r := range batch {
		if err := r.encode(b); err != nil {
			return err
		}
	}
	return b.Commit(pebble.Sync)
}

func (r *request) encode(b *pebble.Batch) error {
	if r.span != nil {
		if err := b.DeleteRange(r.span.start, r.span.end, nil); err != nil {
			return err
		}
	}
	if r.del {
		if err := b.DeleteRange(r.view.logKey(nil, r.min), r.view.logKeyAfter(r.max), nil); err != nil {
			return err
		}
	}
	for _, l := range r.logs {
		op := b.SetDeferred(len(r.view.logPrefix)+8, encodedLogLen(l))
		r.view.logKey(op.Key[:0], l.Index)
		encodeLog(op.Value[:0], l)
		if err := op.Finish(); err != nil {
			return err
		}
	}
	for _, w := range r.rows {
		var err error
		if w.value == nil {
			err = b.Delete(w.key, nil)
		} else {
			err = b.Set(w.key, w.value, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// do has r committed and returns once it is durable. Errors: DriveFailed, Corrupt; r may be durable nevertheless.
func (s *Store) do(r *request) error {
	r.done = make(chan error, 1)
	select {
	case s.reqs <- r:
	case <-s.e.Failed():
		return s.e.failure("raftlog.commit")
	}
	select {
	case err := <-r.done:
		return err
	case <-s.e.Failed():
		return s.e.failure("raftlog.commit")
	}
}

func metaKey(name string) []byte { return append([]byte{'M'}, name...) }

// SetMeta makes a row of the owner durable; a nil value removes it.
func (s *Store) SetMeta(name string, value []byte) error {
	return s.do(&request{rows: []row{{metaKey(name), value}}, bytes: len(name) + len(value)})
}

// Meta reads a row of the owner; nil if there is none.
func (s *Store) Meta(name string) ([]byte, error) {
	var out []byte
	err := s.e.Do("raftlog.meta", func(db *pebble.DB) error {
		v, c, err := db.Get(metaKey(name))
		if err == pebble.ErrNotFound {
			return nil
		}
		if err != nil {
			return err
		}
		out = append([]byte{}, v...)
		return c.Close()
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// MetaPrefix reads all rows of the owner whose names start with prefix.
func (s *Store) MetaPrefix(prefix string) (map[string][]byte, error) {
	out := map[string][]byte{}
	err := s.e.Do("raftlog.meta", func(db *pebble.DB) error {
		lower := metaKey(prefix)
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: after(lower)})
		if err != nil {
			return err
		}
		for ok := it.First(); ok; ok = it.Next() {
			out[string(it.Key()[1:])] = bytes.Clone(it.Value())
		}
		return it.Close()
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// after is the first key that does not start with prefix; prefix is not all 0xff.
func after(prefix []byte) []byte {
	p := bytes.Clone(prefix)
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] != 0xff {
			p[i]++
			return p[:i+1]
		}
	}
	return nil
}
