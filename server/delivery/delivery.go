package delivery

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/target"
	"cairn/storage/errs"
)

// Meta is the metadata plane as delivery needs it. All reads are linearizable.
type Meta interface {
	// Led are the ranges whose leader is in this process.
	Led() []cluster.GroupID
	// Read calls fn with a reader of a range, wherever it is led; fn may be called again.
	Read(ctx context.Context, g cluster.GroupID, fn func(rangestate.Reader) error) error
	// Propose commits a command in a range. A refusal is an error of its kind.
	Propose(ctx context.Context, g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error)
	// Targets are all targets there are.
	Targets(ctx context.Context) ([]*metapb.SysTarget, error)
}

// Config of a Worker.
type Config struct {
	Meta Meta
	// Open opens a target as it is configured. One that is nil takes every event and sends none.
	Open        func(t *metapb.SysTarget) (target.Target, error)
	Logger      *slog.Logger
	Retention   time.Duration // how long delivered events are kept; default 24 h
	RetainBytes int64         // of rows, that are kept for it in one range; default 1 GiB
	QueueMax    uint64        // events that may wait for a target in one range, where the target says nothing else; default 10 million
	QueueBytes  uint64        // of their rows; default 2 GiB
	AgeMax      time.Duration // that an event may wait, where the target says nothing else; default 7 days
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Retention = cmp.Or(c.Retention, 24*time.Hour)
	c.RetainBytes = cmp.Or(c.RetainBytes, 1<<30)
	c.QueueMax = cmp.Or(c.QueueMax, 10_000_000)
	c.QueueBytes = cmp.Or(c.QueueBytes, 2<<30)
	c.AgeMax = cmp.Or(c.AgeMax, 7*24*time.Hour)
}

// Bounds of what goes on at once.
const (
	sendsMax    = 24      // lanes that send to targets that work
	targetSends = 8       // of them to one target
	probesMax   = 8       // lanes that try targets that failed
	choresMax   = 4       // pages that are read for something else than to send them
	pageEvents  = 500     // that are sent together
	pageBytes   = 1 << 20 // of their rows
	pageRows    = 4000    // of the outbox that a page looks at: an ack of it stays below rangestate's bound
)

// Times.
const (
	followEvery  = time.Second            // between looks at which ranges are led here: a store that has nothing to do should do little
	busyPoll     = 100 * time.Millisecond // between looks at a range where something happens
	idlePoll     = time.Second            // and where nothing does
	busyLinger   = 50 * time.Millisecond  // at least, however often it is poked
	sendEvery    = 100 * time.Millisecond // pages that are not full go out so often at most
	pokeLinger   = 10 * time.Millisecond  // one round of pokes serves all that come within it
	activeFor    = 5 * time.Second        // that something happens still after it did
	slice        = time.Second            // a lane lets others send after it
	sendTimeout  = time.Minute            // of one call of a target, which has its own and shorter ones
	catalogAge   = time.Second            // for which targets are taken to be as they were read
	refreshEvery = 10 * time.Second       // of the targets, with nothing to do
	idleClose    = 10 * time.Minute       // a target is closed if nothing was sent for so long
)

// Worker delivers until it is closed. Safe for concurrent use.
type Worker struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	poked  chan struct{}
	dests  *destinations
	chores chan struct{}               // has an element for each chore under way
	ranges map[cluster.GroupID]*outbox // of watch alone
}

// New starts a worker.
func New(cfg Config) (*Worker, error) {
	if cfg.Meta == nil || cfg.Open == nil {
		return nil, errs.New(errs.InvalidArgument, "delivery", "", "there must be a metadata plane, and a way to open targets")
	}
	if cfg.Retention < 0 || cfg.RetainBytes < 0 || cfg.AgeMax < 0 {
		return nil, errs.New(errs.InvalidArgument, "delivery", "", "retention and ages must not be negative")
	}
	cfg.setDefaults()
	w := &Worker{
		cfg: cfg, poked: make(chan struct{}, 1), chores: make(chan struct{}, choresMax), ranges: map[cluster.GroupID]*outbox{},
		dests: newDestinations(cfg.Meta, cfg.Open, cfg.Logger),
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.wg.Go(w.watch)
	w.wg.Go(func() { w.dests.keep(w.ctx) })
	return w, nil
}

// Poke says that there may be new events in a range that is led here. It never blocks.
func (w *Worker) Poke() {
	select {
	case w.poked <- struct{}{}:
	default:
	}
}

// Close ends it, with the deliveries under way cut short. Later calls do nothing.
func (w *Worker) Close() {
	w.cancel()
	w.wg.Wait()
	w.dests.closeAll()
}

// Status is what is known here of each target, by name.
func (w *Worker) Status() []TargetStatus {
	all := w.dests.status()
	slices.SortFunc(all, func(a, b TargetStatus) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// TargetStatus is what one process knows of a target.
type TargetStatus struct {
	Name      string
	Delivered int64     // events, since the start of the process
	Failed    int64     // calls that failed, since the start of the process
	LastError string    // of the latest failure; empty once it went well again
	LastAt    time.Time // of that failure
	Retry     time.Time // when it is tried again, if it fails now
}

// watch keeps a loop for each range that is led here, and hands pokes on.
func (w *Worker) watch() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-timer.C:
			w.follow()
			timer.Reset(followEvery)
		case <-w.poked:
			for _, o := range w.ranges {
				o.poke()
			}
			if !pause(w.ctx, pokeLinger) {
				return
			}
		}
	}
}

// follow starts and ends loops. A range that comes back waits until the loop that it had has ended.
func (w *Worker) follow() {
	led := make(map[cluster.GroupID]bool, len(w.ranges))
	for _, g := range w.cfg.Meta.Led() {
		led[g] = true
		if w.ranges[g] == nil {
			o := newOutbox(w, g)
			w.ranges[g] = o
			w.wg.Go(o.run)
		}
	}
	for g, o := range w.ranges {
		if !led[g] {
			o.cancel()
		}
		select {
		case <-o.done:
			delete(w.ranges, g)
		default:
		}
	}
}

// chore waits for the right to read a page for something else than to send it. The answer ends it; ok is false if ctx ended first.
func (w *Worker) chore(ctx context.Context) (end func(), ok bool) {
	select {
	case w.chores <- struct{}{}:
		return func() { <-w.chores }, true
	case <-ctx.Done():
		return nil, false
	}
}

// state reads how far a range is.
func (w *Worker) state(ctx context.Context, g cluster.GroupID) (s rangestate.EventState, err error) {
	err = w.cfg.Meta.Read(ctx, g, func(r rangestate.Reader) error {
		s, err = r.EventState()
		return err
	})
	return s, err
}

// page reads a piece of a range's outbox.
func (w *Worker) page(ctx context.Context, g cluster.GroupID, q *rangestate.EventQuery) (p rangestate.EventPage, err error) {
	err = w.cfg.Meta.Read(ctx, g, func(r rangestate.Reader) error {
		p, err = r.Events(q)
		return err
	})
	return p, err
}

// propose commits a command. What the range refuses is an error, whether Meta says so or leaves it in the result.
func (w *Worker) propose(ctx context.Context, g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	res, err := w.cfg.Meta.Propose(ctx, g, cmd)
	if err == nil && !res.GetOk() {
		err = errs.New(errs.Kind(res.GetKind()), "delivery", "", res.GetDetail())
	}
	return res, err
}

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
