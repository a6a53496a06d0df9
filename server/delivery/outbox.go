package delivery

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// Bounds of what the loop of a range does at once.
const (
	waitDepth    = 4096 // ancestors that are asked
	trimRows     = 1000 // rows that one command trims
	trimPages    = 10   // pages that one look trims
	timerPage    = 500  // timers that are read together
	timersFired  = 1000 // by one command
	timersScan   = time.Minute
	trimBusy     = time.Second
	trimIdle     = time.Minute
	readyEvery   = time.Second
	readyTimeout = 2 * time.Second // for one ancestor to answer
	readyRest    = 4               // the ancestors are asked again after so many times as long as they took
	readyWarn    = time.Minute     // between warnings that they cannot be asked
	scanPatience = 20              // a scan of the timers is followed by so many times its own duration without one
)

// outbox is the loop of one range. Its fields belong to run, but for the channels.
type outbox struct {
	w      *Worker
	g      cluster.GroupID
	ctx    context.Context
	cancel context.CancelFunc
	poked  chan struct{}
	done   chan struct{} // closed when the loop and its lanes have ended
	wg     sync.WaitGroup

	lanes map[string]*lane

	seen    uint64    // sums up what the last look found
	moved   time.Time // when that last changed
	rest    time.Duration
	scanNow bool // it was poked since the timers were looked through

	line    *lineage     // what the ancestors last said; nil: nothing yet
	asked   chan lineage // what they say to those who ask
	asking  bool         // somebody does
	readyAt time.Time    // when to ask them again
	warnAt  time.Time    // when to warn again that they do not answer
	trimAt  time.Time
	scanAt  time.Time // when to look through the timers at the latest
	scanMin time.Time // and at the earliest
}

func newOutbox(w *Worker, g cluster.GroupID) *outbox {
	o := &outbox{
		w: w, g: g, poked: make(chan struct{}, 1), done: make(chan struct{}), lanes: map[string]*lane{}, asked: make(chan lineage, 1), rest: busyPoll,
	}
	o.ctx, o.cancel = context.WithCancel(w.ctx)
	return o
}

func (o *outbox) poke() {
	select {
	case o.poked <- struct{}{}:
	default:
	}
}

func (o *outbox) run() {
	defer close(o.done)
	defer o.wg.Wait()
	defer o.cancel()
	for o.ctx.Err() == nil {
		if err := o.look(); err != nil && o.ctx.Err() == nil {
			o.w.cfg.Logger.Debug("the outbox of a range cannot be seen to", "range", o.g, "err", err)
			o.rest = min(2*o.rest, idlePoll)
		}
		o.wait()
	}
}

// wait waits until it is time to look again.
func (o *outbox) wait() {
	linger := busyPoll
	if time.Since(o.moved) < activeFor {
		linger = busyLinger
	}
	if !pause(o.ctx, linger) {
		return
	}
	timer := time.NewTimer(o.rest - linger)
	defer timer.Stop()
	select {
	case <-o.ctx.Done():
	case <-timer.C:
	case <-o.poked:
		o.scanNow = true
	case l := <-o.asked:
		o.heard(l)
	}
}

// look reads how far the range is and does what there is to do. Nothing of it waits for other ranges.
func (o *outbox) look() error {
	st, err := o.w.state(o.ctx, o.g)
	if err != nil {
		return err
	}
	o.note(&st)
	select {
	case l := <-o.asked:
		o.heard(l)
	default:
	}
	for _, t := range st.Targets {
		if t.Row.Queued > 0 {
			o.tell(t, st.Log.WaitGroup != 0 && o.line.holdsBack(t.Name))
		}
	}
	return errors.Join(o.hold(&st), o.trim(&st), o.timers(&st), o.ready(&st))
}

// note sees whether something happens in the range.
func (o *outbox) note(st *rangestate.EventState) {
	sum := st.Log.Newest*31 + st.Log.Trimmed
	for _, t := range st.Targets {
		sum = sum*31 + t.Row.Cursor + 7*t.Row.Queued
	}
	if sum != o.seen {
		o.seen, o.moved = sum, time.Now()
	}
	if time.Since(o.moved) < activeFor {
		o.rest = busyPoll
	} else {
		o.rest = min(o.rest*3/2, idlePoll)
	}
}

// tell lets the lane of a target know how far it is; there is one from then on as long as events wait.
func (o *outbox) tell(t rangestate.EventTarget, blocked bool) {
	l := o.lanes[t.Name]
	if l != nil && !l.ended() {
		l.tell(t.Row, blocked)
		return
	}
	if l != nil && t.Row.Cursor < l.row.Cursor {
		return // what was read is from before its end
	}
	l = newLane(o, t.Name, l)
	o.lanes[t.Name] = l
	l.tell(t.Row, blocked)
	o.wg.Go(l.run)
}

// ---- children ----

// lineage is what the parent of a range, its parent and so on, as far as each waits, said together.
type lineage struct {
	back map[string]bool // targets that one of them has not delivered all to that the range waits for: never more than before
	took time.Duration
	err  error
}

// holdsBack tells whether a target must wait for the ancestors; nil is what is known before they have said anything.
func (l *lineage) holdsBack(name string) bool { return l == nil || l.back[name] }

// ready has the range forget its ancestors once no target can wait for them any more, and has them asked when it is time.
func (o *outbox) ready(st *rangestate.EventState) error {
	if st.Log.WaitGroup == 0 || o.asking || time.Now().Before(o.readyAt) {
		return nil
	}
	if o.line != nil && len(o.line.back) == 0 {
		o.readyAt = time.Now().Add(readyEvery)
		op := &metapb.EventsReadyOp{WaitSeq: st.Log.WaitSeq}
		_, err := o.w.propose(o.ctx, o.g, &metapb.RangeCommand{Op: &metapb.RangeCommand_EventsReady{EventsReady: op}})
		if errs.Is(err, errs.Conflict) {
			return nil
		}
		return err
	}
	o.asking = true
	log := st.Log
	o.wg.Go(func() {
		began := time.Now()
		back, err := o.ancestors(log)
		o.asked <- lineage{back: back, took: time.Since(began), err: err}
	})
	return nil
}

// heard takes over what the ancestors said.
func (o *outbox) heard(l lineage) {
	o.asking = false
	now := time.Now()
	o.readyAt = now.Add(max(readyEvery, readyRest*l.took))
	if l.err == nil {
		if o.line = &l; len(l.back) == 0 {
			o.readyAt = now
		}
		return
	}
	if o.ctx.Err() == nil && !now.Before(o.warnAt) {
		o.warnAt = now.Add(readyWarn)
		o.w.cfg.Logger.Warn("a range does not learn which events of the ranges it was split from must come before its own", "range", o.g, "err", l.err)
	}
}

// ancestors reads which targets those hold back that a range waits for. It is safe beside run.
func (o *outbox) ancestors(log *metapb.EventLogRow) (map[string]bool, error) {
	back := map[string]bool{}
	for depth := 0; log.WaitGroup != 0; depth++ {
		if depth == waitDepth {
			return nil, errs.Newf(errs.Corrupt, "delivery", "", "range %d waits for more than %d ancestors", o.g, waitDepth)
		}
		ctx, cancel := context.WithTimeout(o.ctx, readyTimeout)
		s, err := o.w.state(ctx, cluster.GroupID(log.WaitGroup))
		cancel()
		if err != nil {
			return nil, err
		}
		for _, t := range s.Targets {
			if t.Row.Queued > 0 && t.Row.Cursor < log.WaitSeq {
				back[t.Name] = true
			}
		}
		log = s.Log
	}
	return back, nil
}

// ---- bounds ----

// hold has writes refused, or not any more, as the targets' queues are. It is of targets that are known: others have had no event sent yet.
func (o *outbox) hold(st *rangestate.EventState) error {
	for _, t := range st.Targets {
		if t.Row.Queued == 0 && !t.Row.Held {
			continue
		}
		d := o.w.dests.peek(t.Name)
		if d == nil && t.Row.Held {
			var err error
			if d, err = o.w.dests.find(o.ctx, t.Name); err != nil {
				return err
			}
		}
		held := false
		if d != nil && d.cfg.WhenFull == metapb.WhenFull_HOLD_WRITES {
			most := o.w.roomFor(d.cfg)
			held = most.exceededBy(t.Row) || t.Row.Held && most.low().exceededBy(t.Row)
		}
		if held == t.Row.Held {
			continue
		}
		op := &metapb.HoldEventsOp{Target: t.Name, Held: held}
		if _, err := o.w.propose(o.ctx, o.g, &metapb.RangeCommand{Op: &metapb.RangeCommand_HoldEvents{HoldEvents: op}}); err != nil {
			return err
		}
		if held {
			o.w.cfg.Logger.Error("too many events wait: writes that would make more are refused until the target takes some", "target", t.Name, "range", o.g, "queued", t.Row.Queued, "bytes", t.Row.QueuedBytes)
		} else {
			o.w.cfg.Logger.Info("writes that make events are taken again", "target", t.Name, "range", o.g, "queued", t.Row.Queued)
		}
	}
	return nil
}

// room is how much may wait for a target in one range.
type room struct{ events, bytes uint64 }

// roomFor is the room of a queue.
func (w *Worker) roomFor(t *metapb.SysTarget) room {
	return room{cmp.Or(t.QueueMax, w.cfg.QueueMax), w.cfg.QueueBytes}
}

// exceededBy tells whether more waits than has room.
func (r room) exceededBy(row *metapb.EventTargetRow) bool {
	return row.Queued > r.events || row.QueuedBytes > r.bytes
}

// low is how much may be left when a full queue is none any more.
func (r room) low() room { return room{lowWater(r.events), lowWater(r.bytes)} }

func (w *Worker) ageMax(t *metapb.SysTarget) time.Duration {
	if t.AgeMaxMs > 0 {
		return time.Duration(t.AgeMaxMs) * time.Millisecond
	}
	return w.cfg.AgeMax
}

// lowWater is nine tenths, rounded down.
func lowWater(most uint64) uint64 { return most - (most+9)/10 }

// ---- retention ----

// trim forgets events that need not be kept. Those that a target waits for stay until it is done with them; they do not count as kept.
func (o *outbox) trim(st *rangestate.EventState) error {
	if time.Now().Before(o.trimAt) {
		return nil
	}
	if time.Since(o.moved) < activeFor {
		o.trimAt = time.Now().Add(trimBusy)
	} else {
		o.trimAt = time.Now().Add(trimIdle)
	}
	from, over := st.Log.Trimmed, int64(st.Log.Bytes)-o.w.cfg.RetainBytes
	waiting := map[string]uint64{} // cursors
	for _, t := range st.Targets {
		if t.Row.Queued > 0 {
			waiting[t.Name] = t.Row.Cursor
			over -= int64(t.Row.QueuedBytes) // twice what waits for two: then a little more is kept
		}
	}
	for range trimPages {
		if st.Log.Rows == 0 || from >= st.Log.Newest {
			return nil
		}
		to, excess, err := o.trimmable(from, waiting, over)
		if err != nil || to == from {
			return err
		}
		op := &metapb.TrimEventsOp{To: to, RowsMax: trimRows}
		if _, err := o.w.propose(o.ctx, o.g, &metapb.RangeCommand{Op: &metapb.RangeCommand_TrimEvents{TrimEvents: op}}); err != nil {
			return err
		}
		from, over = to, excess
	}
	o.trimAt = time.Time{} // there is more to do
	return nil
}

// trimmable is up to where a page of events behind from may be forgotten, and how many bytes are too many then. waiting are the cursors of targets with events waiting.
func (o *outbox) trimmable(from uint64, waiting map[string]uint64, over int64) (to uint64, left int64, err error) {
	end, ok := o.w.chore(o.ctx)
	if !ok {
		return from, over, o.ctx.Err()
	}
	defer end()
	page, err := o.w.page(o.ctx, o.g, &rangestate.EventQuery{After: from, Limit: trimRows, LookMax: trimRows, BytesMax: pageBytes})
	if err != nil {
		return from, over, err
	}
	oldest := time.Now().Add(-o.w.cfg.Retention).UnixMilli()
	to = from
	for _, it := range page.Items {
		if it.Row.TimeMs >= oldest && over <= 0 {
			break
		}
		if to = it.Seq; !waits(&it, waiting) {
			over -= int64(it.Row.SizeVT())
		}
	}
	return to, over, nil
}

// waits tells whether an event waits for a target, by the cursors of those that have any.
func waits(it *rangestate.EventItem, cursors map[string]uint64) bool {
	behind := func(name string) bool {
		cursor, some := cursors[name]
		return some && cursor < it.Seq
	}
	return behind(it.Row.Target) || it.Row.Bridge && behind(rangestate.DefaultBus)
}

// ---- timers ----

// timers fires what is due.
func (o *outbox) timers(st *rangestate.EventState) error {
	now := time.Now()
	if !st.Timers || now.Before(o.scanMin) || now.Before(o.scanAt) && !o.scanNow {
		return nil
	}
	o.scanNow = false
	o.scanAt = now.Add(timersScan)
	defer func() { o.scanMin = time.Now().Add(max(time.Second, scanPatience*time.Since(now))) }()
	var after *metapb.EventTimerID
	for {
		page, err := o.timerPage(after)
		if err != nil {
			return err
		}
		if err := o.fire(page, now); err != nil {
			return err
		}
		if len(page) < timerPage {
			return nil
		}
		after = page[len(page)-1].ID
	}
}

func (o *outbox) timerPage(after *metapb.EventTimerID) (page []rangestate.EventTimer, err error) {
	err = o.w.cfg.Meta.Read(o.ctx, o.g, func(r rangestate.Reader) error {
		page, err = r.EventTimers(after, timerPage)
		return err
	})
	return page, err
}

// fire fires those that are due of a page, and sees when the next is.
func (o *outbox) fire(page []rangestate.EventTimer, now time.Time) error {
	var due []*metapb.EventTimerID
	for _, t := range page {
		at := t.Row.ReadyMs
		if at == 0 || t.Row.ExpiresMs != 0 && t.Row.ExpiresMs < at {
			at = t.Row.ExpiresMs
		}
		switch {
		case at == 0:
		case at <= now.UnixMilli():
			due = append(due, t.ID)
			o.scanAt = now // it may be due again, or the range's time not be there yet
		case time.UnixMilli(at).Before(o.scanAt):
			o.scanAt = time.UnixMilli(at)
		}
	}
	for len(due) > 0 {
		n := min(len(due), timersFired)
		op := &metapb.FireTimersOp{Ids: due[:n]}
		if _, err := o.w.propose(o.ctx, o.g, &metapb.RangeCommand{Op: &metapb.RangeCommand_FireTimers{FireTimers: op}}); err != nil {
			return err
		}
		due = due[n:]
	}
	return nil
}
