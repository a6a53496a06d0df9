// Package worker runs cairn's background work: repair, resync, scrub, garbage
// and whatever comes later. There is one Runner per node. Every worker steps in a
// goroutine of its own, one step at a time, and they all can be woken, paused,
// slowed down, looked at and stopped in the same way.
//
// A worker keeps its own progress; the runner keeps none. A step is short (a
// second or so): pause, rate and stop take effect between steps, and a stop also
// cancels the step's context.
//
// All waiting is on timers of package time, so under testing/synctest it costs nothing.
package worker

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"cairn/storage/errs"
)

// Worker is a piece of background work.
type Worker interface {
	// Name is short, unique in the runner and never changes: "garbage".
	Name() string
	// Step does one small piece of work. done counts units of the worker's choice
	// (rows, shards, bytes), also when err is not nil. more: there is work to do right
	// now; else the next step comes after a wake or the interval. err: the step as a
	// whole failed and is tried again after a back-off. A failure of one item among many
	// is not an error of the step: the worker skips the item, remembers it and goes on.
	// Step is never called concurrently with itself.
	Step(ctx context.Context) (done int64, more bool, err error)
}

// Estimator is an optional ability of a Worker.
type Estimator interface {
	// Left is how many units are left to do as far as known; ok is false if nothing is
	// known. Called at any time, concurrently with Step; must be cheap.
	Left() (units int64, ok bool)
}

// Options of one worker. Zero values are replaced by the defaults named.
type Options struct {
	Interval   time.Duration // between steps when there is nothing more to do and nobody wakes; default 1 min
	Linger     time.Duration // wait this long after a wake, so that one step serves many; default 0
	BackoffMin time.Duration // after the first error in a row; default 1 s
	BackoffMax time.Duration // at most; default 5 min
	Rate       float64       // units a second at most; 0 is unlimited
	// Pace, if not nil, is asked after each step for the rate in place of Rate and
	// SetRate: for work whose amount changes. It must be cheap.
	Pace func() float64
}

func (o *Options) setDefaults() {
	if o.Interval <= 0 {
		o.Interval = time.Minute
	}
	if o.BackoffMin <= 0 {
		o.BackoffMin = time.Second
	}
	if o.BackoffMax < o.BackoffMin {
		o.BackoffMax = max(5*time.Minute, o.BackoffMin)
	}
}

// Config of a Runner.
type Config struct {
	Logger *slog.Logger // nil: no log
	// Yield is asked before every step how long background work should stand back now
	// for the sake of clients (0: not at all; capped at 1 s, asked again after). Nil is never.
	Yield func() time.Duration
}

// yieldMax bounds one wait for the sake of clients, so that a worker always gets on a little.
const yieldMax = time.Second

// State is what a worker is doing.
type State string

// States of a worker.
const (
	Running State = "running" // in a step
	Waiting State = "waiting" // for a wake or the interval: nothing to do
	Slowed  State = "slowed"  // more to do, waits for its rate or for clients
	Backoff State = "backoff" // the last step failed
	Paused  State = "paused"
	Stopped State = "stopped"
)

// Status of one worker, for status pages and metrics.
type Status struct {
	Name     string
	State    State
	Done     int64   // units since the start
	Left     int64   // units left, if LeftOK
	LeftOK   bool    //
	Rate     float64 // units a second of late, while there was work (half-life about a minute of work)
	ETA      time.Duration
	ETAOK    bool // Left and Rate are known
	Steps    int64
	Failures int64     // steps that failed since the start
	LastErr  string    // of the latest failed step; empty once a step succeeded again
	ErrSince time.Time // of the first failure in the present row of failures
}

// Runner runs workers. Safe for concurrent use.
type Runner struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     struct {
		sync.Mutex
		handles []*Handle
		stopped bool
	}
}

// New makes a runner without workers. Stop must be called.
func New(cfg Config) *Runner {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Runner{cfg: cfg}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// Add starts running w; its first step comes at once. Adding a second worker of
// the same name, or to a stopped runner, is an error.
func (r *Runner) Add(w Worker, o Options) (*Handle, error) {
	o.setDefaults()
	h := &Handle{
		runner: r, worker: w, opts: o,
		wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
	}
	h.mu.rate, h.mu.state = o.Rate, Waiting
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.stopped {
		return nil, errs.New(errs.Closed, "worker.add", w.Name(), "the runner is stopped")
	}
	if slices.ContainsFunc(r.mu.handles, func(o *Handle) bool { return o.Name() == w.Name() }) {
		return nil, errs.New(errs.InvalidArgument, "worker.add", w.Name(), "there is a worker of this name")
	}
	r.mu.handles = append(r.mu.handles, h)
	r.wg.Go(h.run)
	return h, nil
}

// Handle finds a worker's handle by name; nil if there is none.
func (r *Runner) Handle(name string) *Handle {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, h := range r.mu.handles {
		if h.Name() == name {
			return h
		}
	}
	return nil
}

// Status of all workers, in the order in which they were added.
func (r *Runner) Status() []Status {
	r.mu.Lock()
	hs := slices.Clone(r.mu.handles)
	r.mu.Unlock()
	out := make([]Status, len(hs))
	for i, h := range hs {
		out[i] = h.Status()
	}
	return out
}

// Stop cancels running steps and waits until every worker has stopped. Later calls do nothing.
func (r *Runner) Stop() {
	r.mu.Lock()
	r.mu.stopped = true
	r.mu.Unlock()
	r.cancel()
	r.wg.Wait()
}

// Handle steers one worker. Safe for concurrent use.
type Handle struct {
	runner  *Runner
	worker  Worker
	opts    Options
	wake    chan struct{} // there may be work
	changed chan struct{} // pause or rate changed
	mu      struct {
		sync.Mutex
		state    State
		paused   bool
		rate     float64 // limit
		done     int64
		steps    int64
		failures int64
		inRow    int // failures in a row
		lastErr  error
		errSince time.Time
		speed    speed
	}
}

// Name of the worker.
func (h *Handle) Name() string { return h.worker.Name() }

// Wake says that there may be work. It never blocks, and it does not cut a back-off short.
func (h *Handle) Wake() { poke(h.wake) }

// Pause lets the running step end and starts no other until Resume.
func (h *Handle) Pause() { h.setPaused(true) }

// Resume ends a pause.
func (h *Handle) Resume() { h.setPaused(false) }

func (h *Handle) setPaused(p bool) {
	h.mu.Lock()
	h.mu.paused = p
	h.mu.Unlock()
	poke(h.changed)
}

// SetRate limits the worker to so many units a second; 0 is unlimited.
func (h *Handle) SetRate(unitsPerSecond float64) {
	h.mu.Lock()
	h.mu.rate = unitsPerSecond
	h.mu.Unlock()
	poke(h.changed)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Status of the worker now.
func (h *Handle) Status() Status {
	h.mu.Lock()
	s := Status{
		Name: h.Name(), State: h.mu.state, Done: h.mu.done, Rate: h.mu.speed.perSecond(),
		Steps: h.mu.steps, Failures: h.mu.failures, ErrSince: h.mu.errSince,
	}
	if h.mu.lastErr != nil {
		s.LastErr = h.mu.lastErr.Error()
	}
	h.mu.Unlock()
	if e, ok := h.worker.(Estimator); ok {
		s.Left, s.LeftOK = e.Left()
	}
	if s.LeftOK && s.Left == 0 {
		s.ETAOK = true
	} else if s.LeftOK && s.Rate > 0 {
		// Capped at a year, so that a tiny rate does not overflow.
		secs := min(float64(s.Left)/s.Rate, 365*24*3600)
		s.ETA, s.ETAOK = time.Duration(secs*float64(time.Second)), true
	}
	return s
}

// run is the worker's goroutine.
func (h *Handle) run() {
	defer h.setState(Stopped)
	ctx := h.runner.ctx
	for ctx.Err() == nil {
		if !h.waitAllowed(ctx) {
			return
		}
		h.setState(Running)
		start := time.Now()
		done, more, err := h.worker.Step(ctx)
		if ctx.Err() != nil {
			return
		}
		pause := h.account(done, more, start, err)
		switch {
		case err != nil:
			retry := time.Now().Add(pause)
			h.wait(ctx, Backoff, func() time.Time { return retry })
		case more:
			h.wait(ctx, Slowed, func() time.Time { return start.Add(h.owed(done)) })
		default:
			h.idle(ctx)
		}
	}
}

// waitAllowed returns true when the worker is not paused and clients don't need
// the machine more; false when the runner stops.
func (h *Handle) waitAllowed(ctx context.Context) bool {
	if yield := h.runner.cfg.Yield; yield != nil {
		until := time.Now().Add(min(yield(), yieldMax))
		h.wait(ctx, Slowed, func() time.Time { return until })
	}
	for ctx.Err() == nil {
		h.mu.Lock()
		paused := h.mu.paused
		h.mu.Unlock()
		if !paused {
			return true
		}
		h.setState(Paused)
		select {
		case <-h.changed:
		case <-ctx.Done():
		}
	}
	return false
}

// owed is how long a step of so many units must take at the present rate limit.
func (h *Handle) owed(done int64) time.Duration {
	rate := 0.0
	if h.opts.Pace != nil {
		rate = h.opts.Pace()
	} else {
		h.mu.Lock()
		rate = h.mu.rate
		h.mu.Unlock()
	}
	if rate <= 0 {
		return 0
	}
	return time.Duration(min(float64(done)/rate, 3600) * float64(time.Second))
}

// wait waits until the time given, which is asked again when the rate changes. A pause ends it.
func (h *Handle) wait(ctx context.Context, s State, until func() time.Time) {
	for {
		d := time.Until(until())
		if d <= 0 {
			return
		}
		h.setState(s)
		timer := time.NewTimer(d)
		select {
		case <-timer.C:
			return
		case <-h.changed:
			timer.Stop()
			h.mu.Lock()
			paused := h.mu.paused
			h.mu.Unlock()
			if paused {
				return // run shows the pause
			}
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// idle waits for a wake or the interval.
func (h *Handle) idle(ctx context.Context) {
	h.setState(Waiting)
	timer := time.NewTimer(h.opts.Interval)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-h.changed:
	case <-ctx.Done():
	case <-h.wake:
		if h.opts.Linger > 0 {
			timer.Reset(h.opts.Linger)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
			select { // wakes of the time lingered are served by the step to come
			case <-h.wake:
			default:
			}
		}
	}
}

// account records a step and answers the back-off after an error.
func (h *Handle) account(done int64, more bool, start time.Time, err error) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.steps++
	h.mu.done += done
	h.mu.speed.add(done, start, time.Now(), more && err == nil)
	if err == nil {
		if h.mu.inRow > 0 {
			h.runner.cfg.Logger.Info("background work goes on", "worker", h.Name(), "after_failures", h.mu.inRow)
		}
		h.mu.inRow, h.mu.lastErr, h.mu.errSince = 0, nil, time.Time{}
		return 0
	}
	h.mu.failures++
	if h.mu.inRow == 0 {
		h.mu.errSince = time.Now()
	}
	h.mu.inRow++
	pause := backoff(h.opts.BackoffMin, h.opts.BackoffMax, h.mu.inRow)
	h.mu.lastErr = err
	h.runner.cfg.Logger.Warn("background work failed", "worker", h.Name(), "in_row", h.mu.inRow, "retry_in", pause, "took", time.Since(start), "err", err)
	return pause
}

// backoff doubles from lo up to hi with the failures in a row, and takes off up to a third by chance.
func backoff(lo, hi time.Duration, inRow int) time.Duration {
	d := hi
	if inRow < 40 && lo<<(inRow-1) < hi && lo<<(inRow-1) > 0 {
		d = lo << (inRow - 1)
	}
	return d - time.Duration(rand.Int64N(int64(d)/3+1))
}

func (h *Handle) setState(s State) {
	h.mu.Lock()
	h.mu.state = s
	h.mu.Unlock()
}
