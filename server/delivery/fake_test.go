package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/target"
	"cairn/storage/errs"
)

// store is a metadata plane in memory: ranges with outboxes that keep to what rangestate promises, and targets.
type store struct {
	t        *testing.T
	mu       sync.Mutex
	ranges   map[cluster.GroupID]*outboxRows
	targets  map[string]*metapb.SysTarget
	leader   map[cluster.GroupID]int
	down     map[cluster.GroupID]bool // reads and commands of it fail
	hung     cluster.GroupID          // its reads do not end; 0: none
	sysDown  bool                     // the targets cannot be read
	bounds   []int                    // of pages: the limits asked for
	unsure   int                      // so many acks more happen and are not answered
	lag      func() time.Duration     // of answers, if not nil
	commands map[string]int
}

// outboxRows is the outbox of one range.
type outboxRows struct {
	seq     uint64
	rows    []rangestate.EventItem
	targets map[string]*metapb.EventTargetRow
	log     *metapb.EventLogRow
	fate    map[string]map[uint64]string // by target and event: delivered, dead, dropped
	dead    map[uint64]string            // errors
	timers  []rangestate.EventTimer
	fired   map[uint64]time.Time // version_seq
}

func newStore(t *testing.T, groups ...cluster.GroupID) *store {
	s := &store{
		t: t, ranges: map[cluster.GroupID]*outboxRows{}, targets: map[string]*metapb.SysTarget{}, leader: map[cluster.GroupID]int{},
		down: map[cluster.GroupID]bool{}, commands: map[string]int{},
	}
	for _, g := range groups {
		s.add(g)
	}
	return s
}

func (s *store) add(g cluster.GroupID) *outboxRows {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &outboxRows{
		targets: map[string]*metapb.EventTargetRow{}, log: &metapb.EventLogRow{Format: 1}, fate: map[string]map[uint64]string{}, dead: map[uint64]string{},
		fired: map[uint64]time.Time{},
	}
	s.ranges[g], s.leader[g] = r, 1
	return r
}

// split makes a child that inherits its parent's sequence.
func (s *store) split(parent, child cluster.GroupID) {
	c := s.add(child)
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.ranges[parent]
	c.seq = p.seq
	c.log.WaitGroup, c.log.WaitSeq = uint64(parent), p.seq
}

// configure makes or changes a target.
func (s *store) configure(t *metapb.SysTarget) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.Generation = s.targets[t.Name].GetGeneration() + 1
	s.targets[t.Name] = t
}

func (s *store) remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.targets, name)
}

// put does what makes an event; false if it was refused because a target is held.
func (s *store) put(g cluster.GroupID, key, name string) bool {
	return s.putRow(g, &metapb.EventRow{Key: []byte(key), Target: name, Rule: "r"})
}

func (s *store) putRow(g cluster.GroupID, row *metapb.EventRow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.ranges[g]
	row.Format, row.Type, row.TimeMs, row.Bucket, row.BucketName, row.Region = 1, 1, time.Now().UnixMilli(), 1, "b", "eu"
	for _, name := range targetsOf(row) {
		if r.targets[name].GetHeld() {
			return false
		}
	}
	r.seq += 2 // a command that makes no event comes between
	r.rows = append(r.rows, rangestate.EventItem{Seq: r.seq, Row: row})
	r.log.Newest, r.log.Rows, r.log.Bytes = r.seq, r.log.Rows+1, r.log.Bytes+uint64(row.SizeVT())
	for _, name := range targetsOf(row) {
		t := r.targets[name]
		if t == nil {
			t = &metapb.EventTargetRow{Format: 1}
			r.targets[name] = t
		}
		if t.Queued == 0 {
			t.Cursor, t.OldestMs = r.seq-1, row.TimeMs
		}
		t.Queued++
		t.QueuedBytes += uint64(row.SizeVT())
	}
	return true
}

func targetsOf(row *metapb.EventRow) []string {
	var names []string
	if row.Target != "" {
		names = append(names, row.Target)
	}
	if row.Bridge && row.Target != rangestate.DefaultBus {
		names = append(names, rangestate.DefaultBus)
	}
	return names
}

// count is how many commands of a kind were committed or refused.
func (s *store) count(kind string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.commands[kind]
}

// look calls fn with a range while nothing changes.
func (s *store) look(g cluster.GroupID, fn func(*outboxRows)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s.ranges[g])
}

func (s *store) queued(name string) (n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.ranges {
		n += r.targets[name].GetQueued()
	}
	return n
}

// fates counts what became of a target's events, over all ranges.
func (s *store) fates(name string) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := map[string]int{}
	for _, r := range s.ranges {
		for _, f := range r.fate[name] {
			n[f]++
		}
	}
	return n
}

// view is the store as one process sees it.
type view struct {
	*store
	id int
}

func (v view) Led() []cluster.GroupID {
	v.mu.Lock()
	defer v.mu.Unlock()
	var led []cluster.GroupID
	for g, id := range v.leader {
		if id == v.id {
			led = append(led, g)
		}
	}
	return led
}

func (v view) Read(ctx context.Context, g cluster.GroupID, fn func(rangestate.Reader) error) error {
	if !pause(ctx, time.Millisecond) {
		return errs.Wrap(errs.Unavailable, "fake", "", ctx.Err())
	}
	v.mu.Lock()
	r, down := v.ranges[g], v.down[g]
	v.mu.Unlock()
	for v.hangs(g) {
		if !pause(ctx, 10*time.Millisecond) {
			return errs.Wrap(errs.Timeout, "fake", "", ctx.Err())
		}
	}
	if r == nil || down {
		return errs.New(errs.Unavailable, "fake", "", "no leader")
	}
	err := fn(reader{s: v.store, r: r})
	if v.lag != nil {
		v.mu.Lock()
		lag := v.lag()
		v.mu.Unlock()
		pause(ctx, lag)
	}
	return err
}

func (v view) hangs(g cluster.GroupID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.hung == g
}

func (v view) Targets(ctx context.Context) ([]*metapb.SysTarget, error) {
	if !pause(ctx, time.Millisecond) {
		return nil, ctx.Err()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.sysDown {
		return nil, errs.New(errs.Unavailable, "fake", "", "no quorum")
	}
	return slices.Collect(maps.Values(v.targets)), nil
}

// reader answers what delivery asks; anything else is a nil dereference.
type reader struct {
	rangestate.Reader
	s *store
	r *outboxRows
}

func (r reader) EventState() (rangestate.EventState, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	st := rangestate.EventState{Log: r.r.log.CloneVT(), Timers: len(r.r.timers) > 0}
	for _, name := range slices.Sorted(maps.Keys(r.r.targets)) {
		st.Targets = append(st.Targets, rangestate.EventTarget{Name: name, Row: r.r.targets[name].CloneVT()})
	}
	return st, nil
}

func (r reader) Events(q *rangestate.EventQuery) (rangestate.EventPage, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.bounds = append(r.s.bounds, q.Limit)
	page, looked, room := rangestate.EventPage{Next: q.After}, 0, q.BytesMax
	for _, it := range r.r.behind(q.After) {
		if len(page.Items) == q.Limit || q.LookMax > 0 && looked == q.LookMax {
			page.More = true
			break
		}
		if q.Target == "" || slices.Contains(targetsOf(it.Row), q.Target) {
			if room -= it.Row.SizeVT(); room < 0 && len(page.Items) > 0 {
				page.More = true
				break
			}
			page.Items = append(page.Items, it)
		}
		looked++
		page.Next = it.Seq
	}
	return page, nil
}

func (r *outboxRows) behind(seq uint64) []rangestate.EventItem {
	i, _ := slices.BinarySearchFunc(r.rows, seq+1, func(it rangestate.EventItem, seq uint64) int { return cmp.Compare(it.Seq, seq) })
	return r.rows[i:]
}

func (r reader) EventTimers(after *metapb.EventTimerID, limit int) ([]rangestate.EventTimer, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	var out []rangestate.EventTimer
	for _, t := range r.r.timers { // in order of their version_seq
		if len(out) < limit && t.ID.VersionSeq > after.GetVersionSeq() {
			out = append(out, rangestate.EventTimer{ID: t.ID, Row: t.Row.CloneVT()})
		}
	}
	return out, nil
}

func (v view) Propose(ctx context.Context, g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	if !pause(ctx, 5*time.Millisecond) {
		return nil, errs.Wrap(errs.Unavailable, "fake", "", ctx.Err())
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	r := v.ranges[g]
	if r == nil || v.down[g] {
		return nil, errs.New(errs.Unavailable, "fake", "", "no leader")
	}
	v.commands[fmt.Sprintf("%T", cmd.Op)[len("*metapb.RangeCommand_"):]]++
	switch op := cmd.Op.(type) {
	case *metapb.RangeCommand_AckEvents:
		err := r.ack(op.AckEvents)
		if err == nil && v.unsure > 0 {
			v.unsure--
			err = errs.New(errs.OutcomeUnknown, "fake", "", "no answer")
		}
		if err != nil {
			return nil, err
		}
	case *metapb.RangeCommand_HoldEvents:
		r.targets[op.HoldEvents.Target].Held = op.HoldEvents.Held
	case *metapb.RangeCommand_TrimEvents:
		r.trim(op.TrimEvents)
	case *metapb.RangeCommand_EventsReady:
		if r.log.WaitSeq != op.EventsReady.WaitSeq {
			return nil, errs.New(errs.Conflict, "fake", "", "another")
		}
		r.log.WaitGroup, r.log.WaitSeq = 0, 0
	case *metapb.RangeCommand_FireTimers:
		r.fire(op.FireTimers)
	default:
		return nil, errs.Newf(errs.NotImplemented, "fake", "", "%T", op)
	}
	return &metapb.RangeResult{Ok: true}, nil
}

func (r *outboxRows) ack(op *metapb.AckEventsOp) error {
	t := r.targets[op.Target]
	if t.GetQueued() == 0 || t.Cursor != op.From || op.To > r.log.Newest {
		return errs.New(errs.Conflict, "fake", "", "the cursor is elsewhere")
	}
	if op.To <= op.From {
		return errs.New(errs.InvalidArgument, "fake", "", "an ack moves on")
	}
	dead, looked := op.Dead, 0
	fates := r.fate[op.Target]
	if fates == nil {
		fates = map[uint64]string{}
		r.fate[op.Target] = fates
	}
	for _, it := range slices.Clone(r.behind(op.From)) {
		if it.Seq > op.To {
			break
		}
		if looked++; looked > 5000 {
			return errs.New(errs.InvalidArgument, "fake", "", "too many rows")
		}
		if !slices.Contains(targetsOf(it.Row), op.Target) {
			continue
		}
		t.Queued--
		t.QueuedBytes -= uint64(it.Row.SizeVT())
		t.OldestMs = it.Row.TimeMs
		switch {
		case len(dead) > 0 && dead[0].Seq == it.Seq:
			fates[it.Seq], r.dead[it.Seq], dead = "dead", dead[0].Error, dead[1:]
		case op.Dropped:
			fates[it.Seq] = "dropped"
		default:
			fates[it.Seq] = "delivered"
		}
	}
	if len(dead) > 0 {
		return errs.New(errs.InvalidArgument, "fake", "", "dead letters of no event")
	}
	t.Cursor = op.To
	r.clean()
	return nil
}

func (r *outboxRows) trim(op *metapb.TrimEventsOp) {
	for n, it := range r.behind(r.log.Trimmed) {
		if it.Seq > op.To || uint32(n) == op.RowsMax {
			break
		}
		r.log.Trimmed = it.Seq
	}
	r.clean()
}

// clean removes what is trimmed and nobody waits for.
func (r *outboxRows) clean() {
	if len(r.rows) == 0 || r.rows[0].Seq > r.log.Trimmed {
		return
	}
	r.rows = slices.DeleteFunc(slices.Clone(r.rows), func(it rangestate.EventItem) bool {
		gone := it.Seq <= r.log.Trimmed && !slices.ContainsFunc(targetsOf(it.Row), func(name string) bool {
			return r.targets[name].Queued > 0 && r.targets[name].Cursor < it.Seq
		})
		if gone {
			r.log.Rows, r.log.Bytes = r.log.Rows-1, r.log.Bytes-uint64(it.Row.SizeVT())
		}
		return gone
	})
}

func (r *outboxRows) fire(op *metapb.FireTimersOp) {
	for _, id := range op.Ids {
		i := slices.IndexFunc(r.timers, func(t rangestate.EventTimer) bool { return t.ID.VersionSeq == id.VersionSeq })
		if i < 0 {
			continue
		}
		row, now := r.timers[i].Row, time.Now().UnixMilli()
		if row.ReadyMs != 0 && row.ReadyMs <= now {
			row.ReadyMs = 0
			r.fired[id.VersionSeq] = time.Now()
		}
		if row.ReadyMs == 0 && row.ExpiresMs <= now {
			r.timers = slices.Delete(r.timers, i, i+1)
			r.fired[id.VersionSeq] = time.Now()
		}
	}
}

// ---- targets ----

// place is where the events of one name go: it outlives what is opened and closed.
type place struct {
	mu     sync.Mutex
	got    []target.Message
	down   bool
	hang   bool                                      // Send ends with its context only
	take   func(batch []target.Message) (int, error) // nil: all
	delay  time.Duration
	each   time.Duration // that every message takes
	misuse []string
	counts
}

// counts is what a place counts.
type counts struct {
	opens int
	open  int // now
	calls int
	busy  int // calls now
	most  int // calls at once
	batch int // the longest
}

// now is what was counted up to now.
func (p *place) now() counts {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts
}

// box is the place opened once.
type box struct {
	p      *place
	closed bool
}

func (p *place) opened() *box {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.opens++
	p.open++
	return &box{p: p}
}

func (b *box) begin(n int) {
	p := b.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if b.closed {
		p.misuse = append(p.misuse, "sent after Close")
	}
	if n == 0 {
		p.misuse = append(p.misuse, "sent nothing")
	}
	p.calls++
	p.busy++
	p.most, p.batch = max(p.most, p.busy), max(p.batch, n)
}

func (b *box) Send(ctx context.Context, batch []target.Message) (int, error) {
	b.begin(len(batch))
	p := b.p
	defer func() {
		p.mu.Lock()
		p.busy--
		p.mu.Unlock()
	}()
	p.mu.Lock()
	hang, delay, each := p.hang, p.delay, p.each
	p.mu.Unlock()
	if hang {
		<-ctx.Done()
		return 0, context.Cause(ctx)
	}
	if !pause(ctx, max(delay, time.Millisecond)) {
		return 0, context.Cause(ctx)
	}
	for i := range batch {
		if each == 0 {
			break
		}
		if !pause(ctx, each) {
			p.set(func(p *place) { p.got = append(p.got, batch[:i]...) })
			return i, context.Cause(ctx)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down {
		return 0, errors.New("connection refused")
	}
	n, err := len(batch), error(nil)
	if p.take != nil {
		n, err = p.take(batch)
	}
	p.got = append(p.got, batch[:n]...)
	return n, err
}

func (b *box) Check(context.Context) error { return nil }

func (b *box) Close() error {
	b.p.mu.Lock()
	defer b.p.mu.Unlock()
	if b.closed || b.p.busy > 0 {
		b.p.misuse = append(b.p.misuse, "closed twice, or while something was sent")
	}
	b.closed = true
	b.p.open--
	return nil
}

func (p *place) set(fn func(p *place)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn(p)
}

// messages are what came, repeats included.
func (p *place) messages() []target.Message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.got)
}

// world is a store, places for its targets and workers.
type world struct {
	*store
	places map[string]*place
}

func newWorld(t *testing.T, groups ...cluster.GroupID) *world {
	return &world{newStore(t, groups...), map[string]*place{}}
}

// target configures a target with a place.
func (w *world) target(t *metapb.SysTarget) *place {
	p := &place{}
	w.mu.Lock()
	w.places[t.Name] = p
	w.mu.Unlock()
	t.Kind = cmp.Or(t.Kind, "webhook")
	w.configure(t)
	return p
}

// worker starts one, to be closed by the test's end at the latest.
func (w *world) worker(id int, change ...func(*Config)) *Worker {
	w.t.Helper()
	cfg := Config{Meta: view{w.store, id}, Open: func(t *metapb.SysTarget) (target.Target, error) {
		if t.Kind == "log" {
			return nil, nil
		}
		if t.Kind == "broken" {
			return nil, errors.New("no such file")
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.places[t.Name].opened(), nil
	}}
	for _, c := range change {
		c(&cfg)
	}
	worker, err := New(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		worker.Close()
		for name, p := range w.places {
			p.set(func(p *place) {
				if len(p.misuse) > 0 {
					w.t.Errorf("%s: %v", name, p.misuse)
				}
				if p.batch > pageEvents || p.most > targetSends {
					w.t.Errorf("%s: %d messages in a call, %d calls at once", name, p.batch, p.most)
				}
			})
		}
	})
	return worker
}

// settle waits until no event waits for a target any more.
func (w *world) settle(name string, most time.Duration) {
	w.t.Helper()
	for end := time.Now().Add(most); w.queued(name) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%d events still wait for %s after %v", w.queued(name), name, most)
		}
	}
}

// check compares what came to a target with what became of its events: all that count as delivered came, no other did, and of each key
// they came for the first time in order. It answers how many repeats there were.
func (w *world) check(name string) (repeats int) {
	w.t.Helper()
	seen, last := map[string]bool{}, map[string]string{}
	want := map[string]string{} // by id: what became of it
	place := map[string]string{}
	w.mu.Lock()
	for _, g := range slices.Sorted(maps.Keys(w.ranges)) {
		r := w.ranges[g]
		for _, it := range r.rows {
			if slices.Contains(targetsOf(it.Row), name) {
				m := Message(it, name, false)
				want[m.ID], place[m.ID] = r.fate[name][it.Seq], fmt.Sprintf("%020d", it.Seq)
			}
		}
	}
	w.mu.Unlock()
	for _, m := range w.places[name].messages() {
		if seen[m.ID] {
			repeats++
			continue
		}
		seen[m.ID] = true
		if _, ok := want[m.ID]; !ok {
			w.t.Errorf("%s got an event that is not for it: %s", name, m.Key)
		}
		if at := place[m.ID]; at < last[m.Key] {
			w.t.Errorf("%s: events of %s come out of order: %s behind %s", name, m.Key, at, last[m.Key])
		}
		last[m.Key] = max(last[m.Key], place[m.ID])
	}
	for id, fate := range want {
		if fate == "delivered" && !seen[id] {
			w.t.Errorf("%s: an event counts as delivered and never came", name)
		}
	}
	return repeats
}
