package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/storage/errs"
)

// formatVersion is the Pebble format that new stores are made with: the first
// whose WAL tells a torn tail from damage inside what was synced. Raise it a
// release after every binary in use can read the next.
const formatVersion = pebble.FormatWALSyncChunks

// EngineOptions says how to open an Engine.
type EngineOptions struct {
	FS            vfs.FS            // required; passed explicitly, so Pebble starts no health ticker
	Dir           string            // made if missing
	DisableWAL    bool              // batches then survive a crash as a prefix, up to the last flush
	MemTableBytes uint64            // upper bound of one memtable; 0 is 4 MiB
	BloomBits     int               // bits per key of a table filter; 0 is none
	TableBounds   [][]byte          // rising: no table written from now on has keys on both sides of one
	Cache         *pebble.Cache     // block cache, shared between engines; nil is a small one of its own
	FileCache     *pebble.FileCache // open files, shared between engines that share Cache; nil is one of its own
	Compactions   *Compactions      // shared by all engines of a process; nil is one of its own
	Logger        *slog.Logger      // nil discards
	// OnFail is called at most once, from a goroutine of its own, when the engine fails.
	OnFail func(error)
}

// Engine is a Pebble on a drive that may die without taking the process along.
//
// Pebble answers a failed write with Logger.Fatalf, a panic under a mutex or an
// endless retry, and goes on as if synced when Fatalf returns. An Engine
// therefore never lets it see one: the file system below it and its logger park the
// goroutine for ever and mark the Engine failed. From that moment nothing that
// changes the drive gets through any more (not even a removal of old files), the lock file is given
// back, and the directory may be opened again by another Engine. A failed Engine is never
// closed; its few parked goroutines and its memory stay until the process ends.
type Engine struct {
	db     *pebble.DB
	fs     *guardFS
	sched  *dbCompactions
	onFail func(error)

	once   sync.Once
	failed chan struct{} // closed when failed
	err    error         // why; valid once failed is closed
}

// OpenEngine opens or makes a Pebble in o.Dir. Errors: Corrupt (the store is damaged and
// counts as lost), DriveFailed (anything else; the drive may be fine another time).
func OpenEngine(o EngineOptions) (*Engine, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = 4 << 20
	}
	if o.Compactions == nil {
		o.Compactions = NewCompactions(1)
	}
	e := &Engine{onFail: o.OnFail, failed: make(chan struct{})}
	e.fs = newGuardFS(o.FS, e)
	e.sched = o.Compactions.forDB()
	if err := mkdirSynced(o.FS, o.Dir); err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "raftlog.open", o.Dir, err)
	}
	po := e.pebbleOptions(o)

	// Open runs in a goroutine: should Pebble call Fatalf on the way, that one is parked, not the caller.
	type result struct {
		db  *pebble.DB
		err error
	}
	opened := make(chan result, 1)
	go func() {
		db, err := pebble.Open(o.Dir, po)
		opened <- result{db, err}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			e.sched.abandon()
			e.fs.releaseLocks()
			kind := errs.KindOf(Classify(r.err))
			if errors.Is(r.err, os.ErrNotExist) {
				kind = errs.Corrupt // the directory was just seen or made: the store misses a file of its own
			}
			return nil, errs.Wrap(kind, "raftlog.open", o.Dir, r.err)
		}
		e.db = r.db
	case <-e.failed:
		return nil, e.failure("raftlog.open " + o.Dir)
	}
	e.fs.armed.Store(true)
	return e, nil
}

func (e *Engine) pebbleOptions(o EngineOptions) *pebble.Options {
	lg := engineLogger{e: e, log: o.Logger}
	po := &pebble.Options{
		FS:                    e.fs,
		Cache:                 o.Cache,
		FileCache:             o.FileCache,
		DisableWAL:            o.DisableWAL,
		FormatMajorVersion:    formatVersion,
		MemTableSize:          o.MemTableBytes,
		L0CompactionThreshold: 4,
		L0StopWritesThreshold: 24,
		Logger:                lg,
		EventListener: &pebble.EventListener{
			BackgroundError: e.backgroundError,
			DataCorruption:  func(i pebble.DataCorruptionInfo) { e.Fail(fmt.Errorf("corrupt: %s: %w", i.Path, i.Details)) },
		},
		// The stores hold little and are written all the time: a second compaction only takes a core from requests.
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	po.Experimental.CompactionScheduler = e.sched
	po.Experimental.FileCacheShards = 1
	// An ingest that waits in a memtable is lost in a crash that keeps later batches.
	po.Experimental.DisableIngestAsFlushable = func() bool { return true }
	if len(o.TableBounds) > 0 {
		po.Experimental.SpanPolicyFunc = func(first []byte) (pebble.SpanPolicy, []byte, error) {
			for _, bound := range o.TableBounds {
				if bytes.Compare(first, bound) < 0 {
					return pebble.SpanPolicy{}, bound, nil
				}
			}
			return pebble.SpanPolicy{}, nil, nil
		}
	}
	// What is in level 0 is soon rewritten, and a log soon deleted.
	po.Levels[0].Compression = func() *sstable.CompressionProfile { return sstable.NoCompression }
	po.Levels[1].Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
	if !o.DisableWAL {
		po.Levels[1].Compression = po.Levels[0].Compression
		po.L0CompactionThreshold = 8
	}
	if o.BloomBits > 0 {
		po.Levels[0].FilterPolicy = bloom.FilterPolicy(o.BloomBits)
		for i := 1; i < len(po.Levels); i++ {
			po.Levels[i].FilterPolicy = po.Levels[0].FilterPolicy
		}
	}
	return po
}

// backgroundError ends the engine. What Pebble retries without pause (flushes park in the file system, compactions get
// no permission any more, but table statistics do) is slowed down.
func (e *Engine) backgroundError(err error) {
	if e.Err() != nil {
		time.Sleep(5 * time.Second)
	}
	e.Fail(fmt.Errorf("background: %w", err))
}

// DB is the Pebble. It must not be closed but through the Engine.
func (e *Engine) DB() *pebble.DB { return e.db }

// Fail marks the engine as failed for good; only the first call counts. Nothing
// reaches the drive through it afterwards.
func (e *Engine) Fail(err error) {
	e.once.Do(func() {
		e.err = err
		close(e.failed)
		e.fs.releaseLocks()
		e.sched.abandon()
		if e.onFail != nil {
			go e.onFail(err)
		}
	})
}

// Failed is closed when the engine has failed.
func (e *Engine) Failed() <-chan struct{} { return e.failed }

// Err is why the engine failed, or nil.
func (e *Engine) Err() error {
	select {
	case <-e.failed:
		return e.err
	default:
		return nil
	}
}

// Do runs fn, which calls the DB, and returns its error; when the engine fails first, it returns
// DriveFailed or Corrupt at once and leaves fn, parked as it may be, to itself.
func (e *Engine) Do(op string, fn func(*pebble.DB) error) error {
	if e.Err() != nil {
		return e.failure(op)
	}
	done := make(chan error, 1)
	go func() { done <- fn(e.db) }()
	select {
	case err := <-done:
		return err
	case <-e.failed:
		return e.failure(op)
	}
}

// failure is what callers of a failed engine get: Corrupt or DriveFailed.
func (e *Engine) failure(op string) error {
	return errs.Wrap(errs.KindOf(Classify(e.err)), op, "", e.err)
}

// Close closes the Pebble; all iterators and calls must have ended. A failed engine is left as it is.
func (e *Engine) Close() error {
	if e.Err() != nil {
		return nil
	}
	return e.Do("raftlog.close", func(db *pebble.DB) error {
		// Tables have checksums throughout, a WAL has not; and what is flushed need not be replayed.
		return errors.Join(db.Flush(), db.Close())
	})
}

// Classify gives an engine's failure its kind: Corrupt (bytes are there but wrong: the store is
// lost, the drive may be well) or DriveFailed.
func Classify(err error) error {
	if err == nil {
		return nil
	}
	kind := errs.DriveFailed
	if pebble.IsCorruptionError(err) || errs.Is(err, errs.Corrupt) {
		kind = errs.Corrupt
	}
	return errs.Wrap(kind, "raftlog", "", err)
}

// engineLogger turns Pebble's fatal errors into a failed engine. Its other lines are routine.
type engineLogger struct {
	e   *Engine
	log *slog.Logger
}

func (l engineLogger) Infof(string, ...any) {}

func (l engineLogger) Errorf(format string, args ...any) {
	l.log.Warn("pebble", "msg", fmt.Sprintf(format, args...))
}

// Fatalf never returns: Pebble would go on as if nothing had happened.
func (l engineLogger) Fatalf(format string, args ...any) {
	l.e.Fail(fmt.Errorf(format, args...))
	select {}
}

// mkdirSynced makes dir and syncs its parent, so that the directory outlives a crash.
func mkdirSynced(fs vfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err == nil {
		return nil
	}
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d, err := fs.OpenDir(fs.PathDir(dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
