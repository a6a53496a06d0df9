package drive

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"

	"github.com/cockroachdb/pebble/v2"
)

// Config says how a drive is opened. FS and Dir are needed; zero values of the
// others get defaults.
type Config struct {
	FS       vfsx.FS
	Dir      string
	Identity Identity // if its DriveID is set, another drive in Dir is refused as Foreign

	Cache     *pebble.Cache              // shared by the Pebbles of a process; nil: a small one of its own
	FileCache *pebble.FileCache          // likewise
	Scheduler pebble.CompactionScheduler // of this Pebble alone; nil: one compaction at a time, no ticker

	Logger *slog.Logger
	OnFail func(error)      // called once, in a goroutine of its own, when the drive fails
	Now    func() time.Time // wall clock, for the age of tombstones

	ReserveBytes     int64         // below this much free space appends are refused; 0: no reserve
	ExtentBytes      int64         // an extent is sealed at this size (1 GiB); less than 4 GiB by a batch
	ExtentFilesMax   int           // handles of extent files kept open (1024), of which an extent that is read or written in large pieces takes two; those in use count, but are not closed
	QueueMax         int           // calls that wait for the writer (1024); more wait for room, until their ctx ends
	BatchBytesMax    int           // what one write and sync takes (16 MiB)
	MemTableBytes    int           // of the index (4 MiB)
	FlushBytes       int64         // the index is flushed after so many appended bytes, which bounds recovery (256 MiB)
	FlushAfter       time.Duration // and so long after the first append that is not flushed (30 s)
	CleanAfter       time.Duration // removals are gathered so long before holes are made (5 s)
	CompactBelow     float64       // an extent is compacted when less than this share of its space is alive (0.5)
	TombstoneTTL     time.Duration // how long removed chunks are remembered: storage.TombstoneTTL, and never less but in tests
	CloseWait        time.Duration // Close waits so long for a failed drive, whose I/O may hang (5 s)
	MaintenanceEvery time.Duration // old tombstones are looked for so often while there are any (6 h)
}

func (c *Config) setDefaults() error {
	if c.FS == nil || c.Dir == "" {
		return errs.New(errs.InvalidArgument, "drive.open", c.Dir, "no file system or folder given")
	}
	def(&c.Logger, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	def(&c.ExtentBytes, 1<<30)
	def(&c.ExtentFilesMax, 1024)
	def(&c.QueueMax, 1024)
	def(&c.BatchBytesMax, 16<<20)
	def(&c.MemTableBytes, 4<<20)
	def(&c.FlushBytes, 256<<20)
	def(&c.FlushAfter, 30*time.Second)
	def(&c.CleanAfter, 5*time.Second)
	def(&c.CompactBelow, 0.5)
	def(&c.TombstoneTTL, storage.TombstoneTTL)
	def(&c.MaintenanceEvery, 6*time.Hour)
	def(&c.CloseWait, 5*time.Second)
	if c.ExtentBytes < 0 || c.ExtentBytes > 2<<30 {
		return errs.New(errs.InvalidArgument, "drive.open", c.Dir, "extents may have up to 2 GiB")
	}
	if c.BatchBytesMax < 0 || c.BatchBytesMax > 256<<20 {
		return errs.New(errs.InvalidArgument, "drive.open", c.Dir, "a batch may have up to 256 MiB")
	}
	return nil
}

// def gives a field that is not set its default.
func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Drive is one open drive. All methods are safe for concurrent use.
type Drive struct {
	cfg      Config
	fs       vfsx.FS
	dir      string
	log      *slog.Logger
	identity Identity
	proofAt  string      // where drive.json lies
	proof    vfsx.FileID // of drive.json when it was opened
	unlock   io.Closer

	index   *index
	extents *extents
	queue   chan *request
	writer  *writer
	keeper  *keeper
	bad     badShards

	requests sync.Pool // *request; of this drive, since they hold channels
	scratch  sync.Pool // *scratch

	gate     gate
	running  atomic.Bool // Open is done: errors from now on fail the drive
	failure  atomic.Pointer[errs.Error]
	failed   chan struct{} // closed when the drive fails
	stop     chan struct{} // tells the writer to end
	closed   chan struct{} // closed when everything has ended
	failOnce sync.Once
	endOnce  sync.Once
	freeLock sync.Once

	counters struct {
		appends, appendBytes, batches, syncNanos, moves atomic.Int64
		full                                            atomic.Bool
		tombstones                                      atomic.Int64
	}
}

var _ storage.ShardStore = (*Drive)(nil)

// Open opens a formatted drive: it reads what a crash left, and starts the
// writer and the keeper. Errors: those of ReadIdentity; Foreign; Busy if
// another process has it open; DriveFailed.
func Open(cfg Config) (*Drive, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	d := &Drive{
		cfg: cfg, fs: cfg.FS, dir: cfg.Dir,
		log:    cfg.Logger.With("drive", cfg.Dir),
		queue:  make(chan *request, cfg.QueueMax),
		failed: make(chan struct{}),
		stop:   make(chan struct{}),
		closed: make(chan struct{}),
	}
	d.gate.idle = make(chan struct{})
	d.requests.New = func() any { return &request{answer: make(chan struct{}, 1)} }
	d.scratch.New = func() any { return new(scratch) }
	d.extents = newExtents(max(1, cfg.ExtentFilesMax/2), func(number uint32) (vfsx.File, error) {
		return d.fs.OpenFile(d.extentPath(number))
	})
	if err := d.open(); err != nil {
		d.releaseLock()
		return nil, err
	}
	return d, nil
}

// open does the work of Open.
func (d *Drive) open() (err error) {
	if d.identity, err = ReadIdentity(d.fs, d.dir); err != nil {
		return err
	}
	if want := d.cfg.Identity.DriveID; !want.IsZero() && want != d.identity.DriveID {
		return errs.Newf(errs.Foreign, "drive.open", d.dir, "is drive %s, expected %s", d.identity.DriveID.Short(), want.Short())
	}
	if d.unlock, err = d.fs.Lock(d.fs.PathJoin(d.dir, lockName)); err != nil {
		return &errs.Error{Kind: errs.Busy, Op: "drive.open", Subject: d.dir, Detail: "the drive is in use by another process", Err: err}
	}
	d.proofAt = d.fs.PathJoin(d.dir, identityName)
	if d.proof, err = d.fs.StatID(d.proofAt); err != nil {
		return errs.Wrap(errs.DriveFailed, "drive.open", d.dir, err)
	}
	// A Pebble that can't go on parks its caller: that must not be us.
	opened := make(chan error, 1)
	go func() { opened <- d.openStore() }()
	select {
	case err = <-opened:
	case <-d.failed:
		return d.Failed()
	}
	if err != nil {
		d.closeStore()
		return errs.Wrap(errs.DriveFailed, "drive.open", d.dir, err)
	}
	d.running.Store(true)
	d.keeper.begun.Store(true)
	go d.writer.run()
	go d.keeper.run()
	if err := d.Failed(); err != nil { // before anybody would have ended what runs now
		_ = d.Close()
		return err
	}
	return nil
}

// openStore opens the index and recovers. An index that recovery finds rotten is built anew from the extents.
func (d *Drive) openStore() error {
	err := d.tryOpenStore()
	if !isRotten(err) {
		return err
	}
	d.log.Warn("the index is rotten", "err", err)
	// The marker first: a crash may leave half of the old index.
	if err := writeFile(d.fs, d.fs.PathJoin(d.dir, rebuildName), nil); err != nil {
		return err
	}
	d.keeper.cancel()
	d.closeStore()
	d.index, d.writer, d.keeper = nil, nil, nil
	d.counters.tombstones.Store(0)
	return d.tryOpenStore()
}

func (d *Drive) tryOpenStore() error {
	if err := d.openIndex(); err != nil {
		return err
	}
	d.writer = newWriter(d)
	d.keeper = newKeeper(d)
	return d.recover()
}

// isRotten reports whether an error of the index means that what it holds can't be trusted.
func isRotten(err error) bool {
	return err != nil && (pebble.IsCorruptionError(err) || errors.Is(err, errRow))
}

// closeStore closes index and extents.
func (d *Drive) closeStore() {
	if d.index != nil {
		if err := d.index.db.Close(); err != nil {
			d.log.Warn("closing the index", "err", err)
		}
	}
	d.extents.closeAll()
}

func (d *Drive) releaseLock() {
	d.freeLock.Do(func() {
		if d.unlock != nil {
			_ = d.unlock.Close()
		}
	})
}

// Identity is what drive.json said when the drive was opened.
func (d *Drive) Identity() Identity { return d.identity }

// ID is the drive's id.
func (d *Drive) ID() storage.DriveID { return d.identity.DriveID }

// Dir is the drive's directory.
func (d *Drive) Dir() string { return d.dir }

// Check looks that the directory is still the drive that was opened: one stat.
// Whoever acknowledges something durable on this drive calls it after the sync
// (design rule 3): fsync succeeds on files that rm -rf has removed. On anything else the drive is failed and
// DriveFailed answered.
func (d *Drive) Check() error {
	if err := d.Failed(); err != nil {
		return err
	}
	id, err := d.fs.StatID(d.proofAt)
	if err == nil && id.Same(d.proof) {
		return nil
	}
	if err == nil {
		err = errors.New("was replaced by another file")
	}
	d.Fail(&errs.Error{Kind: errs.DriveFailed, Op: "drive.check", Subject: d.dir, Detail: "the drive is gone from its folder", Err: err})
	return d.Failed()
}

// Fail marks the drive as failed for good: every call answers DriveFailed from
// now on, nothing is written any more, and OnFail is called. Only the first call counts.
func (d *Drive) Fail(err error) {
	d.failOnce.Do(func() {
		d.failure.Store(&errs.Error{Kind: errs.DriveFailed, Op: "drive", Subject: d.dir, Err: err})
		d.log.Error("drive failed", "err", err)
		close(d.failed)
		if d.cfg.OnFail != nil {
			go d.cfg.OnFail(err)
		}
		if d.running.Load() {
			// The index's Pebble repeats a failed flush for ever: end it, if it can be ended.
			d.end()
		}
	})
}

// Failed is why the drive failed (kind DriveFailed), or nil.
func (d *Drive) Failed() error {
	if err := d.failure.Load(); err != nil {
		return err
	}
	return nil
}

// enter lets a call in; it must leave the gate. Failed and closed drives answer an error.
func (d *Drive) enter() error {
	if err := d.failure.Load(); err != nil {
		return err
	}
	if !d.gate.enter() {
		if err := d.failure.Load(); err != nil {
			return err
		}
		return errs.New(errs.Closed, "drive", d.dir, "the drive is closed")
	}
	return nil
}

// indexError is told of the index's background errors, under Pebble's lock.
func (d *Drive) indexError(err error) {
	if vfsx.IsNoSpace(err) {
		d.log.Warn("drive index: no space", "err", err)
		return // flushes are repeated
	}
	if pebble.IsCorruptionError(err) {
		d.indexRotten(err)
		return
	}
	d.Fail(errs.Wrap(errs.DriveFailed, "drive.index", d.dir, err))
}

// indexRotten fails the drive and has its next Open build the index anew.
func (d *Drive) indexRotten(err error) {
	if !d.running.Load() {
		return // Open finds out by itself
	}
	go func() {
		if err := writeFile(d.fs, d.fs.PathJoin(d.dir, rebuildName), nil); err != nil {
			d.log.Error("can't mark the index for rebuilding", "err", err)
		}
		d.Fail(&errs.Error{Kind: errs.DriveFailed, Op: "drive.index", Subject: d.dir,
			Detail: "the index is rotten; it is rebuilt from the extents when the drive is opened again", Err: err})
	}()
}

// readFailed sorts an error of the index on a read.
func (d *Drive) readFailed(op string, err error) error {
	if !d.running.Load() {
		return err
	}
	if isRotten(err) {
		d.indexRotten(err)
	} else {
		d.Fail(errs.Wrap(errs.DriveFailed, op, d.dir, err))
	}
	return &errs.Error{Kind: errs.DriveFailed, Op: op, Subject: d.dir, Err: err}
}

// Close ends the drive: calls under way are finished, the index is flushed. A
// failed drive that hangs is left behind; the directory can be opened again all the same.
func (d *Drive) Close() error {
	d.end()
	select {
	case <-d.closed:
	case <-d.failed:
		t := time.NewTimer(d.cfg.CloseWait)
		defer t.Stop()
		select {
		case <-d.closed:
		case <-t.C:
			d.log.Warn("a failed drive hangs; leaving it behind")
		}
	}
	d.releaseLock()
	return nil
}

// end has a goroutine shut the drive down, once. (Nobody may wait inside the
// Once: the shutdown of a failed drive can hang, and a wait for a mutex stops fake time.)
func (d *Drive) end() { d.endOnce.Do(func() { go d.shutDown() }) }

// shutDown ends everything in the reverse order of the start.
func (d *Drive) shutDown() {
	d.gate.close()
	d.keeper.end()
	close(d.stop)
	<-d.writer.ended
	if d.Failed() == nil {
		if err := d.writer.sealOpen(); err != nil {
			d.log.Warn("sealing the open extent", "err", err)
		}
		// Not needed to keep anything, it makes the next start quick.
		d.flushIndex(context.Background())
	}
	d.closeStore()
	d.releaseLock()
	close(d.closed)
}

// flushIndex makes what is in the index durable; false if ctx ended or the drive failed first.
func (d *Drive) flushIndex(ctx context.Context) bool {
	done, err := d.index.db.AsyncFlush()
	if err != nil {
		return false
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
	case <-d.failed:
	}
	return false
}

// gate counts the calls inside, so that Close can wait for them and refuse new ones.
type gate struct {
	n    atomic.Int64 // calls inside; far below zero once closing
	once sync.Once
	idle chan struct{} // closed when closing and empty
}

const gateClosed = math.MinInt64 / 2

func (g *gate) enter() bool {
	if g.n.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.n.Add(-1) == gateClosed {
		g.once.Do(func() { close(g.idle) })
	}
}

// close refuses new calls and waits for those inside.
func (g *gate) close() {
	if g.n.Add(gateClosed) == gateClosed {
		g.once.Do(func() { close(g.idle) })
	}
	<-g.idle
}

// Stats is what a drive can tell of itself.
type Stats struct {
	TotalBytes    int64 // of the file system
	FreeBytes     int64 // of the file system, for us
	Full          bool  // below the reserve: appends are refused
	Extents       int
	Shards        int64 // alive
	LiveBytes     int64 // of frames alive, with headers
	DeadBytes     int64 // of extents: neither alive nor header; holes count too
	Tombstones    int64
	BadShards     int   // known from failed reads since the start
	Appends       int64 // since the start, as all that follows
	AppendedBytes int64
	Batches       int64 // writes with one sync each
	SyncTime      time.Duration
	Queued        int // calls waiting for the writer
}

// Stats is cheap but for one statfs.
func (d *Drive) Stats() Stats {
	s := Stats{
		Full:          d.counters.full.Load(),
		Tombstones:    d.counters.tombstones.Load(),
		BadShards:     d.bad.len(),
		Appends:       d.counters.appends.Load(),
		AppendedBytes: d.counters.appendBytes.Load(),
		Batches:       d.counters.batches.Load(),
		SyncTime:      time.Duration(d.counters.syncNanos.Load()),
		Queued:        len(d.queue),
	}
	for _, e := range d.extents.all() {
		live := e.live.Load()
		s.Extents++
		s.LiveBytes += live
		s.DeadBytes += max(0, e.size.Load()-fileHeaderBytes-live)
		s.Shards += e.liveFrames.Load()
	}
	if d.Failed() == nil {
		if u, err := d.fs.GetDiskUsage(d.dir); err == nil {
			s.TotalBytes, s.FreeBytes = int64(u.TotalBytes), int64(u.AvailBytes)
		}
	}
	return s
}

// Held is how many shards are alive on the drive, and the bytes of their frames. It does no I/O.
func (d *Drive) Held() (bytes, shards int64) {
	for _, e := range d.extents.all() {
		bytes += e.live.Load()
		shards += e.liveFrames.Load()
	}
	return bytes, shards
}

// Space is how many bytes are free on the drive and how many of them are its reserve. It asks the file system. Error: DriveFailed.
func (d *Drive) Space() (free, reserve int64, err error) {
	u, err := d.fs.GetDiskUsage(d.dir)
	if err != nil {
		return 0, 0, errs.Wrap(errs.DriveFailed, "drive.space", d.dir, err)
	}
	return int64(u.AvailBytes), d.cfg.ReserveBytes, nil
}

// randomSalt draws the salt of an extent.
func randomSalt() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}
