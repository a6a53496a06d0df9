package delivery

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"cairn/proto/metapb"
	"cairn/server/target"
	"cairn/storage/errs"
)

// Times of the back-off.
const (
	backoffMin = 100 * time.Millisecond
	backoffMax = time.Minute
	errorMax   = 1024 // bytes of an error that are kept
	lossEvery  = time.Minute
	lossesMax  = 1000 // targets of which is remembered when their losses were logged
)

// destinations are the targets that lanes send to, opened when they are first needed. Safe for concurrent use.
type destinations struct {
	meta   Meta
	open   func(t *metapb.SysTarget) (target.Target, error)
	log    *slog.Logger
	sends  chan struct{} // has an element for each lane that sends
	probes chan struct{} // and for each that tries
	stale  chan struct{} // asks keep to read the targets
	turn   *target.Turn  // to read the targets

	mu      sync.Mutex
	started uint64    // reads of the targets that were begun
	known   uint64    // the read that byName is from; 0: none yet
	at      time.Time // when that was begun
	byName  map[string]*destination
	losses  map[string]*loss
}

// destination is one target. Its fields belong to mu of destinations.
type destination struct {
	cfg       *metapb.SysTarget // of now; never changed itself
	gone      bool              // the target was removed, or made anew
	cur       *opened           // nil: not open
	used      time.Time
	slots     chan struct{} // has an element for each lane that sends to it
	changed   chan struct{} // closed when one that waits for failures to end should look again
	failures  int           // in a row
	retry     time.Time     // with failures: when it is tried again
	probing   bool          // somebody tries it
	page      int           // events that are sent together; less than pageEvents where they take long
	delivered int64
	failed    int64
	lastErr   string
	lastAt    time.Time
}

// opened is a target as it was opened once. Its fields belong to mu of destinations, but for those of once.
type opened struct {
	cfg     *metapb.SysTarget
	users   int
	retired bool // closed when its last user goes

	once sync.Once
	to   target.Target // nil: takes all
	err  error
}

// loss is what was given up of a target's events and not logged yet.
type loss struct {
	logged time.Time
	events uint64
	why    string // the latest of them
}

// errGone says that a destination is none any more: look it up anew.
var errGone = errors.New("the target was changed")

func newDestinations(meta Meta, open func(t *metapb.SysTarget) (target.Target, error), log *slog.Logger) *destinations {
	return &destinations{
		meta: meta, open: open, log: log, sends: make(chan struct{}, sendsMax), probes: make(chan struct{}, probesMax),
		stale: make(chan struct{}, 1), turn: target.NewTurn(), byName: map[string]*destination{}, losses: map[string]*loss{},
	}
}

// find answers a target by its name, nil if there is none: then that was asked anew. One that is known is taken as it was read last, which is about catalogAge ago
// at most while the system group can be asked.
func (ds *destinations) find(ctx context.Context, name string) (*destination, error) {
	ds.mu.Lock()
	d, old, want := ds.byName[name], time.Since(ds.at) > catalogAge, ds.started+1
	ds.mu.Unlock()
	if d != nil {
		if old {
			ds.refresh()
		}
		return d, nil
	}
	if err := ds.read(ctx, want); err != nil {
		return nil, err
	}
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return ds.byName[name], nil
}

// peek answers a target if it is known, without asking.
func (ds *destinations) peek(name string) *destination {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if time.Since(ds.at) > catalogAge {
		ds.refresh()
	}
	return ds.byName[name]
}

// refresh has keep read the targets soon.
func (ds *destinations) refresh() {
	select {
	case ds.stale <- struct{}{}:
	default:
	}
}

// read makes sure that the targets are known from a read of that number or a later one.
func (ds *destinations) read(ctx context.Context, number uint64) error {
	if err := ds.turn.Take(ctx); err != nil {
		return err
	}
	defer ds.turn.Give()
	ds.mu.Lock()
	if ds.known >= number {
		ds.mu.Unlock()
		return nil
	}
	ds.started++
	mine, begun := ds.started, time.Now()
	ds.mu.Unlock()
	all, err := ds.meta.Targets(ctx)
	if err != nil {
		return err
	}
	ds.mu.Lock()
	ds.known, ds.at = mine, begun
	over := ds.take(all)
	ds.mu.Unlock()
	ds.close(over)
	return nil
}

// take takes the targets as they were read, and answers what is to be closed. ds.mu is held.
func (ds *destinations) take(all []*metapb.SysTarget) (over []*opened) {
	now := make(map[string]*metapb.SysTarget, len(all))
	for _, t := range all {
		now[t.Name] = t
	}
	for name, d := range ds.byName {
		if t := now[name]; t == nil || t.Generation != d.cfg.Generation || t.CreatedMs != d.cfg.CreatedMs {
			over = append(over, ds.retire(d)...)
			d.gone = true
			d.wake()
			delete(ds.byName, name)
			if t != nil {
				ds.byName[name] = newDestination(t)
				ds.byName[name].delivered, ds.byName[name].failed = d.delivered, d.failed
			}
		}
	}
	for name, t := range now {
		if ds.byName[name] == nil {
			ds.byName[name] = newDestination(t)
		}
	}
	return over
}

func newDestination(t *metapb.SysTarget) *destination {
	return &destination{cfg: t, slots: make(chan struct{}, targetSends), changed: make(chan struct{}), page: pageEvents}
}

// wake has all who wait for a change look again. ds.mu is held.
func (d *destination) wake() {
	close(d.changed)
	d.changed = make(chan struct{})
}

// retire gives up what is open of a target, and answers it if nobody uses it. ds.mu is held.
func (ds *destinations) retire(d *destination) (over []*opened) {
	if d.cur == nil {
		return nil
	}
	o := d.cur
	d.cur = nil
	o.retired = true
	if o.users == 0 {
		return []*opened{o}
	}
	return nil
}

// close closes what nobody uses any more. ds.mu is not held: it may take a moment.
func (ds *destinations) close(over []*opened) {
	for _, o := range over {
		o.once.Do(func() {}) // it was never opened, then
		if o.to == nil {
			continue
		}
		if err := o.to.Close(); err != nil {
			ds.log.Debug("a target was not closed well", "target", o.cfg.Name, "err", err)
		}
	}
}

// keep reads the targets when somebody asks for it or nobody did for long, and closes those that are not used, until ctx ends.
func (ds *destinations) keep(ctx context.Context) {
	ticker := time.NewTicker(refreshEvery)
	defer ticker.Stop()
	for {
		ds.mu.Lock()
		want, wanted := ds.started+1, len(ds.byName) > 0
		ds.mu.Unlock()
		if wanted {
			if err := ds.read(ctx, want); err != nil && ctx.Err() == nil {
				ds.log.Debug("the targets cannot be read", "err", err)
			}
		}
		ds.close(ds.idle())
		ds.tellLosses(false)
		if !pause(ctx, catalogAge) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-ds.stale:
		}
	}
}

// idle retires what was not used for long.
func (ds *destinations) idle() (over []*opened) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for _, d := range ds.byName {
		if d.cur != nil && d.cur.users == 0 && time.Since(d.used) > idleClose {
			over = append(over, ds.retire(d)...)
		}
	}
	return over
}

// closeAll closes all; nobody sends any more.
func (ds *destinations) closeAll() {
	ds.mu.Lock()
	var over []*opened
	for _, d := range ds.byName {
		over = append(over, ds.retire(d)...)
	}
	ds.mu.Unlock()
	ds.close(over)
	ds.tellLosses(true)
}

func (ds *destinations) status() []TargetStatus {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	all := make([]TargetStatus, 0, len(ds.byName))
	for name, d := range ds.byName {
		s := TargetStatus{Name: name, Delivered: d.delivered, Failed: d.failed, LastError: d.lastErr, LastAt: d.lastAt}
		if d.failures > 0 {
			s.Retry = d.retry
		}
		all = append(all, s)
	}
	return all
}

// failing tells whether a target failed when it was last tried.
func (ds *destinations) failing(d *destination) bool {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	return d.failures > 0
}

// lost counts events of a target that were given up, and logs them once a minute.
func (ds *destinations) lost(name, why string, events uint64) {
	if events == 0 {
		return
	}
	ds.mu.Lock()
	defer ds.mu.Unlock()
	l := ds.losses[name]
	if l == nil {
		if len(ds.losses) >= lossesMax {
			for name, l := range ds.losses {
				ds.tellLoss(name, l)
			}
			clear(ds.losses)
		}
		l = &loss{}
		ds.losses[name] = l
	}
	l.events += events
	l.why = why
	if time.Since(l.logged) >= lossEvery {
		ds.tellLoss(name, l)
	}
}

// tellLosses logs what was given up since it was last logged, and forgets where nothing was for a minute; all: however short ago that is.
func (ds *destinations) tellLosses(all bool) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for name, l := range ds.losses {
		if !all && time.Since(l.logged) < lossEvery {
			continue
		}
		if l.events == 0 {
			delete(ds.losses, name)
		}
		ds.tellLoss(name, l)
	}
}

// tellLoss logs what was given up of a target's events. ds.mu is held.
func (ds *destinations) tellLoss(name string, l *loss) {
	if l.events == 0 {
		return
	}
	ds.log.Error("events were given up and will not be delivered", "target", name, "events", l.events, "why", l.why)
	l.logged, l.events = time.Now(), 0
}

// ---- leave to send ----

// pass is leave to send to a target, and the target. It belongs to one lane, until leave.
type pass struct {
	ds    *destinations
	d     *destination
	o     *opened
	probe bool // d was failing
	slots []chan struct{}
}

// enter waits until a lane may send to a target: while it fails for its turn to try, and then for a place. news ends
// waiting for a target that fails: then both answers are nil. Errors: ctx's, errGone.
func (ds *destinations) enter(ctx context.Context, d *destination, news <-chan struct{}) (*pass, error) {
	for {
		probe, wait, err := ds.gate(d)
		switch {
		case err != nil:
			return nil, err
		case wait != nil:
			if again, err := wait(ctx, news); !again || err != nil {
				return nil, err
			}
			continue
		}
		p := &pass{ds: ds, d: d, probe: probe}
		if err := p.place(ctx); err != nil {
			p.leave()
			return nil, err
		}
		if ok, err := p.begin(); err != nil {
			return nil, err
		} else if ok {
			return p, nil
		}
	}
}

// gate tells whether a target may be sent to; if not, how to wait until one should ask again. probe: it may, by the caller alone.
func (ds *destinations) gate(d *destination) (probe bool, wait func(context.Context, <-chan struct{}) (bool, error), err error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if d.gone {
		return false, nil, errGone
	}
	if d.failures == 0 {
		return false, nil, nil
	}
	left := time.Until(d.retry)
	if left <= 0 && !d.probing {
		d.probing = true
		return true, nil, nil
	}
	changed, probing := d.changed, d.probing
	return false, func(ctx context.Context, news <-chan struct{}) (bool, error) {
		var due <-chan time.Time
		if !probing {
			timer := time.NewTimer(left)
			defer timer.Stop()
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-news:
			return false, nil
		case <-changed:
		case <-due:
		}
		return true, nil
	}, nil
}

// place waits for a place among those that send, or try.
func (p *pass) place(ctx context.Context) error {
	want := []chan struct{}{p.d.slots, p.ds.sends}
	if p.probe {
		want = []chan struct{}{p.ds.probes}
	}
	for _, c := range want {
		select {
		case c <- struct{}{}:
			p.slots = append(p.slots, c)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// begin opens the target, if it is not open, for use. Not ok: it fails by now, and p was left.
func (p *pass) begin() (ok bool, err error) {
	ds, d := p.ds, p.d
	ds.mu.Lock()
	if d.gone || d.failures > 0 && !p.probe {
		gone := d.gone
		ds.mu.Unlock()
		p.leave()
		if gone {
			err = errGone
		}
		return false, err
	}
	if d.cur == nil {
		d.cur = &opened{cfg: d.cfg}
	}
	p.o = d.cur
	p.o.users++
	ds.mu.Unlock()
	p.o.once.Do(func() { p.o.to, p.o.err = ds.open(p.o.cfg) })
	if p.o.err == nil {
		return true, nil
	}
	p.result(0, p.o.err)
	ds.mu.Lock()
	if d.cur == p.o {
		ds.retire(d) // it is in use, here: leave closes it
	}
	ds.mu.Unlock()
	p.leave()
	return false, nil
}

// leave gives the place back.
func (p *pass) leave() {
	ds, d := p.ds, p.d
	ds.mu.Lock()
	if p.probe && d.probing {
		d.probing = false // it was not tried after all: let others
		d.wake()
	}
	d.used = time.Now()
	var over []*opened
	if p.o != nil {
		if p.o.users--; p.o.users == 0 && p.o.retired {
			over = append(over, p.o)
		}
	}
	ds.mu.Unlock()
	ds.close(over)
	for _, c := range p.slots {
		<-c
	}
	p.o, p.slots, p.probe = nil, nil, false
}

// result notes what a call of the target came to: how many events it took, and why not the next. What others find who were admitted before it failed
// does not count as another failure.
func (p *pass) result(events int, err error) {
	p.ds.mu.Lock()
	defer p.ds.mu.Unlock()
	d, probe := p.d, p.probe
	d.delivered += int64(events)
	if probe {
		p.probe, d.probing = false, false
	}
	if err == nil {
		if probe {
			d.failures, d.lastErr = 0, ""
			p.ds.log.Info("a target works again", "target", d.cfg.Name)
			d.wake()
		}
		return
	}
	d.failed++
	d.lastErr, d.lastAt = cut(err), time.Now()
	switch {
	case d.failures == 0:
		p.ds.log.Warn("a target fails", "target", d.cfg.Name, "err", d.lastErr)
	case !probe:
		return
	case events > 0:
		d.failures = 0
	}
	d.failures++
	d.retry = time.Now().Add(backoff(d.failures))
	d.wake()
}

// backoff is how long a target is left alone after so many failures in a row.
func backoff(failures int) time.Duration {
	bound := backoffMax
	if failures < 20 {
		bound = min(bound, backoffMin<<failures)
	}
	return backoffMin + rand.N(bound-backoffMin)
}

// cut is what is kept of an error's text.
func cut(err error) string {
	s := err.Error()
	return s[:min(len(s), errorMax)]
}

// send sends messages, and answers how many were acknowledged and why not more. late: that there was no time for more is no failure.
func (p *pass) send(ctx context.Context, batch []target.Message) (acked int, late bool, err error) {
	if p.o.to == nil {
		return len(batch), false, nil
	}
	over := errs.Newf(errs.Timeout, "delivery", p.d.cfg.Name, "no answer within %v", sendTimeout)
	limited, cancel := context.WithTimeoutCause(ctx, sendTimeout, over)
	defer cancel()
	start := time.Now()
	acked, err = p.o.to.Send(limited, batch)
	acked = min(max(acked, 0), len(batch))
	if acked < len(batch) && err == nil {
		err = errs.New(errs.Other, "delivery", p.d.cfg.Name, "the target did not take all and does not say why")
	}
	p.took(acked, time.Since(start))
	return acked, acked > 0 && err != nil && ctx.Err() == nil && limited.Err() != nil, err
}

// took has fewer events sent together to a target that takes long over them, so that what it took is recorded in time and others have their turn, and
// more to one that does not.
func (p *pass) took(events int, d time.Duration) {
	p.ds.mu.Lock()
	defer p.ds.mu.Unlock()
	switch page := &p.d.page; {
	case events == 0:
	case d > slice:
		*page = max(1, int(time.Duration(events)*slice/d))
	case d < slice/4 && events == *page:
		*page = min(2**page, pageEvents)
	}
}

// page is how many events are to be sent together.
func (p *pass) page() int {
	p.ds.mu.Lock()
	defer p.ds.mu.Unlock()
	return p.d.page
}
