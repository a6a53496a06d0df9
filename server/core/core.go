// Package core is a running store without its network faces: both planes, the
// meaning of S3 and the background workers, put together from a configuration.
package core

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/controller"
	"cairn/cluster/metaclient"
	"cairn/cluster/multiraft"
	"cairn/cluster/placement"
	"cairn/cluster/rangestate"
	"cairn/cluster/splitter"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/config"
	"cairn/server/target"
	"cairn/storage"
	"cairn/storage/chunkio"
	"cairn/storage/compress"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/garbage"
	"cairn/storage/lifecycle"
	"cairn/storage/pins"
	"cairn/storage/repair"
	"cairn/storage/vfsx"
	"cairn/storage/worker"
)

// Env is what a process gets from outside besides its configuration. Zero values
// are the real ones.
type Env struct {
	FS      vfsx.FS // nil is the operating system's
	Now     func() time.Time
	Rand    io.Reader // of ids and keys
	Logger  *slog.Logger
	Version string
	// Listen and Dial are the network between the nodes of a cluster; nil is TCP.
	Listen Listen
	Dial   Dial
	// Tune may change how the parts are set up: tests want small extents and short intervals.
	Tune func(*Tuning)
	// MustExist has Open refuse, before it writes anything, what would make a store or a drive of it,
	// and a node of a cluster, whose start others would see.
	MustExist bool
}

// Tuning are the settings of the parts that an operator has no need to set.
type Tuning struct {
	Controller controller.Config
	Raft       multiraft.Config
	Chunks     chunkio.Config
	Drive      func(*drive.Config)
	Splits     splitter.Config
	SplitEvery time.Duration // how often ranges are looked at
	Workers    bool          // run background workers
	// OpenTarget makes the targets of events; nil: as they are configured.
	OpenTarget func(*metapb.SysTarget) (target.Target, error)
}

// SetDefaults fills in what is missing.
func (e *Env) SetDefaults() {
	if e.FS == nil {
		e.FS = vfsx.OS()
	}
	if e.Now == nil {
		e.Now = time.Now
	}
	if e.Rand == nil {
		e.Rand = rand.Reader
	}
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
}

// Core is a running store without its network faces: both planes, the meaning
// of S3 and the background workers.
type Core struct {
	Controller *controller.Controller
	Groups     *multiraft.Host
	Meta       *metaclient.Client
	Chunks     *chunkio.Plane
	Bodies     *compress.Plane // Chunks with compression: what objects are written and read through
	Pins       *pins.Registry
	Objects    *objects.Store
	Workers    *worker.Runner
	Garbage    *garbage.Collector
	Repair     RepairWorkers
	Lifecycle  *lifecycle.Worker
	Splits     *splitter.Splitter
	Events     *Events

	cfg       config.Config
	env       Env
	cache     *pebble.Cache
	node      *node       // nil unless this is one of a cluster
	made      atomic.Bool // all of the above is there
	stopWatch func()      // nil without workers
}

// RepairWorkers are the parts of package repair.
type RepairWorkers struct {
	Rows   *repair.Rows
	Healer *repair.Healer
	Resync *repair.Resync
	Scrub  *repair.Scrub
}

// Open makes or opens the store. It returns when reads and writes are
// served. Nothing runs after an error. Close must be called.
func Open(ctx context.Context, cfg config.Config, env Env) (*Core, error) {
	env.SetDefaults()
	c := &Core{cfg: cfg, env: env, Pins: pins.New()}
	tune, err := c.tuning()
	if err != nil {
		return nil, err
	}
	if env.MustExist {
		if err := mustExist(&cfg, tune.Controller); err != nil {
			return nil, err
		}
	}
	c.cache = pebble.NewCache(int64(cfg.CacheBytes) + int64(len(tune.Controller.Slots))*writeBuffers)
	tune.Raft.Cache = c.cache
	if env.Tune != nil {
		env.Tune(&tune)
	}
	if cfg.InCluster() {
		if c.node, err = openNode(ctx, c, &tune.Controller); err != nil {
			c.cache.Unref()
			return nil, err
		}
		tune.Raft.Node, tune.Raft.Remote = c.node.self, c.node.raft
	}
	if err := c.openPlanes(ctx, &tune); err != nil {
		if c.node != nil {
			c.node.close()
		}
		c.cache.Unref()
		return nil, err
	}
	oc := objects.Config{Meta: c.Meta, Chunks: c.Bodies, Pins: c.Pins, Logger: env.Logger, Region: cfg.Region, RestoreTimes: c.restoreTime, Day: c.LifecycleDay()}
	oc.ManyAccesses = func() {
		if h := c.Workers.Handle(accessFlusher{}.Name()); h != nil {
			h.Wake()
		}
	}
	if c.node != nil {
		oc.MayRead = c.Controller.InSession
	}
	c.Objects = objects.New(oc)
	tune.Splits.Host, tune.Splits.Meta, tune.Splits.Topology, tune.Splits.Logger = c.Groups, c.Meta, c.Controller.Topology, env.Logger
	c.Splits = splitter.New(tune.Splits)
	c.Workers = worker.New(worker.Config{Logger: env.Logger, Yield: c.yield})
	if err := c.makeWorkers(&tune); err != nil {
		c.Close()
		return nil, err
	}
	c.made.Store(true)
	return c, nil
}

// writeBuffers is what the write buffers of a drive's log, state and index hold together: Pebble takes them, up to twice as much while
// one is flushed, out of the cache that its stores share. Without this the cache of a busy node would hold nothing at all.
const writeBuffers = (8 + 8 + 4) << 20

// mustExist refuses a start that would make a store or join one.
func mustExist(cfg *config.Config, ctl controller.Config) error {
	if cfg.InCluster() {
		return errs.New(errs.InvalidArgument, "open", cfg.DataDir, "the drives of one node are not the whole store, and opening them would be a start of that node: ask a running node")
	}
	if _, err := controller.InspectNode(ctl); err != nil {
		return err
	}
	sit, err := controller.Inspect(ctl)
	if err != nil {
		return err
	}
	return sit.MustExist()
}

// openPlanes opens the metadata plane and the data plane.
func (c *Core) openPlanes(ctx context.Context, tune *Tuning) (err error) {
	if c.Groups, err = multiraft.New(tune.Raft); err != nil {
		return err
	}
	tune.Controller.Groups = c.Groups
	tune.Controller.Drive = func(d *drive.Config) {
		d.Cache, d.Logger, d.Now = c.cache, c.env.Logger, c.env.Now
		d.ReserveBytes = c.reserve(d.Dir)
		if tune.Drive != nil {
			tune.Drive(d)
		}
	}
	if c.node != nil {
		c.node.setGroups(c.Groups)
	}
	if c.Controller, err = controller.New(tune.Controller); err != nil {
		return err
	}
	meta := metaclient.Config{Groups: c.Groups, Topology: c.Controller.Topology, Now: c.env.Now, Rand: c.env.Rand, Day: c.LifecycleDay()}
	meta.WroteEvents = func() { c.Events.poke() }
	tune.Chunks.Store, tune.Chunks.Topology, tune.Chunks.Local = c.Controller.Store, c.Controller.Topology, c.Controller.Local
	tune.Chunks.OnBadShard = func(b chunkio.BadShard) {
		c.Repair.Healer.Report(repair.BadShard{Owner: b.Owner, Ref: b.Ref, Stripe: b.Stripe, Index: b.Index, Drive: b.Drive, Err: b.Err})
	}
	if n := c.node; n != nil {
		meta.Groups, meta.Elsewhere, meta.Lease = n.router, n.router, c.Controller
		tune.Chunks.Store, tune.Chunks.Distance = n.store, n.distance
		if tune.Chunks.QuorumWait == 0 {
			tune.Chunks.QuorumWait = 6 * time.Second // longer than it takes to record a zone as down
		}
	}
	c.Meta, c.Chunks = metaclient.New(meta), chunkio.New(tune.Chunks)
	c.Events = newEvents(c, tune.OpenTarget)
	share := int64(c.cfg.BufferBytes) / 4
	if c.Bodies, err = compress.New(compress.Config{Chunks: c.Chunks, Topology: c.Controller.Topology, WriteBytesMax: share, ReadBytesMax: share}); err != nil {
		return err
	}
	if c.node != nil {
		c.node.serve()
	}
	if err := c.Controller.Start(ctx); err != nil {
		return err
	}
	if c.node != nil {
		c.node.made()
	}
	return nil
}

// yield makes background work stand back while clients' bytes fill a quarter of the buffers.
func (c *Core) yield() time.Duration {
	if c.Chunks.BytesInUse() > int64(c.cfg.BufferBytes)/4 {
		return 50 * time.Millisecond
	}
	return 0
}

// tuning is how the parts are set up for the configuration.
func (c *Core) tuning() (Tuning, error) {
	dir, err := filepath.Abs(c.cfg.DataDir)
	if err != nil {
		return Tuning{}, err
	}
	drives, err := c.cfg.DriveList()
	if err != nil {
		return Tuning{}, err
	}
	t := Tuning{Workers: true, SplitEvery: 5 * time.Second}
	t.Controller = controller.Config{
		DataDir: dir, FS: c.env.FS, Now: c.env.Now, Rand: c.env.Rand, Logger: c.env.Logger, Voters: c.cfg.MetaVoters, Classes: placed(),
	}
	for _, d := range drives {
		t.Controller.Slots = append(t.Controller.Slots, controller.Slot{Path: d.Path, Zone: cluster.Zone(d.Zone), Label: d.Label})
	}
	t.Raft = multiraft.Config{
		Node: "node-1", Now: c.env.Now, Logger: c.env.Logger, NewStateMachine: controller.NewStateMachine, TableBounds: rangestate.TableBounds(),
	}
	t.Chunks = chunkio.Config{BufferBytesMax: int64(c.cfg.BufferBytes), Logger: c.env.Logger}
	return t, nil
}

// placed are the classes that placement groups are made for: of those that objects can be put in, one of each target.
// So there are four times two schemes (large and small data), and at most 512 groups however many drives there are.
func placed() (out []storage.StorageClass) {
	for _, class := range planned {
		if placement.SameTarget(class) == class {
			out = append(out, class)
		}
	}
	return out
}

// reserve is the space kept free on the drive in dir.
func (c *Core) reserve(dir string) int64 {
	usage, err := c.env.FS.GetDiskUsage(dir)
	if err != nil {
		return int64(c.cfg.Reserve)
	}
	return c.cfg.ReserveFor(int64(usage.TotalBytes))
}

// makeWorkers sets up the background work and, if tune says so, starts it.
func (c *Core) makeWorkers(tune *Tuning) error {
	m := ranges{c.Meta, c.Groups}
	stores := c.store
	var readers garbage.Pins = c.Pins
	if c.node != nil {
		readers = c.node.pins
	}
	log := c.env.Logger
	c.Garbage = garbage.New(garbage.Config{Meta: m, Plane: c.Chunks, Pins: readers, Logger: log})
	c.Repair = RepairWorkers{
		Rows:   repair.NewRows(repair.RowsConfig{Meta: m, Plane: c.Chunks, Topology: c.Controller.Topology, Logger: log}),
		Resync: repair.NewResync(repair.ResyncConfig{Slots: c.Controller, Stores: stores, Local: c.Controller.Local, Plane: c.Chunks, Refers: m, Logger: log, Now: c.env.Now}),
		Scrub: repair.NewScrub(repair.ScrubConfig{
			Topology: c.Controller.Topology, Stores: stores, Local: c.Controller.Local, Plane: c.Chunks, Refers: m,
			Progress: progressFile{c.env.FS, filepath.Join(c.cfg.DataDir, "scrub.json")}, Logger: log, Now: c.env.Now,
		}),
	}
	c.Repair.Healer = repair.NewHealer(repair.HealerConfig{Plane: c.Chunks, Logger: log, Wake: func() {
		if h := c.Workers.Handle(c.Repair.Healer.Name()); h != nil {
			h.Wake()
		}
	}})
	lc, lcOptions := c.makeLifecycle(m)
	c.Lifecycle = lc
	if !tune.Workers {
		return nil
	}
	for _, w := range []struct {
		worker  worker.Worker
		options worker.Options
	}{
		{c.Garbage, worker.Options{Interval: 2 * time.Second, Linger: 200 * time.Millisecond, BackoffMax: 30 * time.Second}},
		{c.Repair.Rows, worker.Options{Interval: 5 * time.Second, BackoffMax: time.Minute}},
		{c.Repair.Healer, worker.Options{Interval: 30 * time.Second, BackoffMax: time.Minute}},
		{c.Repair.Resync, worker.Options{Interval: 3 * time.Second, BackoffMax: time.Minute}},
		{c.Repair.Scrub, worker.Options{Interval: time.Hour, Pace: c.scrubPace()}},
		{trimmer{c.Chunks}, worker.Options{Interval: 30 * time.Second}},
		{c.Splits, worker.Options{Interval: tune.SplitEvery, BackoffMax: time.Minute}},
		{c.Lifecycle, lcOptions},
		{accessFlusher{c}, worker.Options{Interval: c.accessEvery(), BackoffMax: time.Minute}},
		{bucketFinisher{c}, worker.Options{Interval: 30 * time.Second, BackoffMax: time.Minute}},
	} {
		if _, err := c.Workers.Add(w.worker, w.options); err != nil {
			return err
		}
	}
	if err := c.Events.start(); err != nil {
		return err
	}
	watch, stop := context.WithCancel(context.Background())
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.wakeOnChange(watch)
	}()
	c.stopWatch = func() { stop(); <-watched }
	return nil
}

// wakeOnChange tells the workers of drives that came back or were replaced: what
// waited for them need not wait for its back-off.
func (c *Core) wakeOnChange(ctx context.Context) {
	changed, end := c.Controller.Subscribe()
	defer end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		c.Garbage.Unblock()
		for _, w := range []worker.Worker{c.Garbage, c.Repair.Rows, c.Repair.Resync} {
			if h := c.Workers.Handle(w.Name()); h != nil {
				h.Wake()
			}
		}
	}
}

// scrubPaceEvery is how often the rate of scrub follows what the drives hold.
const scrubPaceEvery = 10 * time.Minute

// scrubPace is the rate at which scrub reads all that this node holds in the time of a
// pass. The function is not for concurrent use.
func (c *Core) scrubPace() func() float64 {
	var rate float64
	var at time.Time
	return func() float64 {
		if now := time.Now(); at.IsZero() || now.Sub(at) > scrubPaceEvery {
			var bytes, shards int64
			for _, d := range c.Controller.Drives() {
				b, n := d.Held()
				bytes, shards = bytes+b, shards+n
			}
			rate, at = repair.ScrubRate(bytes, shards, repair.ScrubPassEvery), now
		}
		return rate
	}
}

// bucketFinisher is the worker that completes interrupted bucket creations and
// deletions. Of a cluster's nodes it works where the system group is led, and only on
// what it has met for two minutes.
type bucketFinisher struct{ c *Core }

func (bucketFinisher) Name() string { return "buckets" }

func (b bucketFinisher) Step(ctx context.Context) (int64, bool, error) {
	looks := 0
	if b.c.node != nil {
		looks = 4
		if !b.c.leadsSystem() {
			return 0, false, nil
		}
	}
	n, err := b.c.Objects.FinishBuckets(ctx, looks)
	return int64(n), false, err
}

// leadsSystem reports whether the system group's leader is in this process.
func (c *Core) leadsSystem() bool {
	for _, g := range c.Groups.Status() {
		if g.Group == cluster.SystemGroup {
			return g.Local
		}
	}
	return false
}

// trimmer is the worker that gives unused buffers back.
type trimmer struct{ plane *chunkio.Plane }

func (trimmer) Name() string { return "trim" }

func (t trimmer) Step(context.Context) (int64, bool, error) {
	t.plane.Trim()
	return 0, false, nil
}

// progressFile keeps a worker's progress in a small file; losing it costs only time.
type progressFile struct {
	fs   vfsx.FS
	path string
}

func (p progressFile) Load() ([]byte, error) {
	f, err := p.fs.Open(p.path)
	if err != nil {
		return nil, nil // none yet
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

func (p progressFile) Save(b []byte) error {
	f, err := p.fs.Create(p.path+".new", "")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return p.fs.Rename(p.path+".new", p.path)
}

// Close stops the workers, then the metadata plane and the drives. Requests must have ended.
func (c *Core) Close() error {
	if c.stopWatch != nil {
		c.stopWatch()
	}
	if c.Workers != nil {
		c.Workers.Stop()
	}
	if c.Events != nil {
		c.Events.stop()
	}
	if c.Objects != nil {
		c.flushAccesses()
		c.Objects.Close()
	}
	if c.node != nil {
		c.node.drain()
	}
	err := c.Controller.Close() // moves leaders away: the others must still be reached
	if c.node != nil {
		c.node.close()
	}
	c.cache.Unref()
	return err
}
