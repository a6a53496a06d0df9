package delivery

import (
	"context"
	"errors"
	"sync"
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/target"
	"cairn/storage/errs"
)

// Bounds of giving up.
const (
	dropEvents = 1000 // that one command gives up
	troubleMax = 5 * time.Second
	troubleLog = 5 // failures in a row before they are logged
)

// lane delivers the events of one range to one target, as long as there are any.
type lane struct {
	o    *outbox
	w    *Worker
	name string
	ctx  context.Context
	told chan struct{} // has an element when tell was called since it was looked at
	done chan struct{} // closed at its end

	mu      sync.Mutex
	newest  *metapb.EventTargetRow // that tell said
	blocked bool                   // the range waits for an ancestor

	// Of run alone.
	row     *metapb.EventTargetRow
	ageAt   time.Time // no event is too old before
	sentAt  time.Time // when the latest page went out
	trouble int       // failures in a row, of the range
}

// newLane makes a lane that comes after one that has ended, or nil.
func newLane(o *outbox, name string, before *lane) *lane {
	l := &lane{o: o, w: o.w, name: name, ctx: o.ctx, told: make(chan struct{}, 1), done: make(chan struct{})}
	if before != nil {
		l.sentAt = before.sentAt
	}
	return l
}

// tell lets the lane know how far the target is.
func (l *lane) tell(row *metapb.EventTargetRow, blocked bool) {
	l.mu.Lock()
	l.newest, l.blocked = row, blocked
	l.mu.Unlock()
	select {
	case l.told <- struct{}{}:
	default:
	}
}

func (l *lane) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *lane) run() {
	defer close(l.done)
	l.take()
	for l.row.Queued > 0 && l.ctx.Err() == nil {
		err := l.step()
		if err == nil {
			l.trouble = 0
			continue
		}
		if !l.mend(err) {
			return
		}
	}
	select {
	case <-l.told:
		l.o.poke() // something may have come since it was found empty
	default:
	}
}

// take takes over what tell said last, unless the lane knows better by now.
func (l *lane) take() {
	select {
	case <-l.told:
	default:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newest.Cursor >= l.row.GetCursor() {
		l.row = l.newest
	}
}

func (l *lane) isBlocked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.blocked
}

// mend waits after a failure and looks where the target is by now; false if the lane is to end.
func (l *lane) mend(err error) bool {
	for err != nil {
		if l.ctx.Err() != nil {
			return false
		}
		if errors.Is(err, errGone) {
			return true
		}
		l.trouble++
		if l.trouble == troubleLog {
			l.w.cfg.Logger.Warn("events cannot be seen to", "target", l.name, "range", l.o.g, "err", err)
		}
		// The first conflict is no wonder: somebody else moved the cursor.
		if (!errs.Is(err, errs.Conflict) || l.trouble > 1) && !pause(l.ctx, min(busyPoll<<min(l.trouble-1, 10), troubleMax)) {
			return false
		}
		err = l.reread()
	}
	return true
}

// reread reads how far the target is.
func (l *lane) reread() error {
	st, err := l.w.state(l.ctx, l.o.g)
	if err != nil {
		return err
	}
	for _, t := range st.Targets {
		if t.Name == l.name {
			l.row = t.Row
			return nil
		}
	}
	l.row = &metapb.EventTargetRow{}
	return nil
}

// step does one thing for the events that wait, and sees to it that row is of afterwards.
func (l *lane) step() error {
	d, err := l.w.dests.find(l.ctx, l.name)
	if err != nil {
		return err
	}
	if d == nil {
		return l.giveUp()
	}
	if did, err := l.bound(d); did || err != nil {
		return err
	}
	if l.isBlocked() {
		return l.await()
	}
	if !l.gather() {
		return l.ctx.Err()
	}
	p, err := l.w.dests.enter(l.ctx, d, l.told)
	if err != nil {
		return err
	}
	if p == nil {
		l.take()
		return nil
	}
	err = l.deliver(p)
	p.leave()
	if err != nil {
		return err
	}
	return l.reread()
}

// gather lets events come together if fewer than a page wait: each page costs a request of the target and a command of the range. What
// comes after a while without any goes out at once. It is false if the lane is to end.
func (l *lane) gather() bool {
	rest := sendEvery - time.Since(l.sentAt)
	if rest <= 0 || l.row.Queued >= pageEvents {
		return true
	}
	return pause(l.ctx, rest)
}

// await waits for the next that the outbox says.
func (l *lane) await() error {
	select {
	case <-l.ctx.Done():
		return l.ctx.Err()
	case <-l.told:
	}
	l.take()
	return nil
}

// ---- delivering ----

// batch is a page of events, ready to be sent.
type batch struct {
	items    []rangestate.EventItem
	messages []target.Message
	next     uint64 // the cursor behind it
	more     bool   // there was more behind it when it was read
}

// fetch reads the page behind a cursor. An empty one whose next is not the cursor says that there is no event in between.
func (l *lane) fetch(p *pass, after uint64) (*batch, error) {
	page, err := l.w.page(l.ctx, l.o.g, &rangestate.EventQuery{After: after, Target: l.name, Limit: p.page(), LookMax: pageRows, BytesMax: pageBytes})
	if err != nil {
		return nil, err
	}
	b := &batch{items: page.Items, messages: make([]target.Message, len(page.Items)), next: page.Next, more: page.More}
	for i, it := range page.Items {
		b.messages[i] = Message(it, l.name, p.o.cfg.CloudEvents)
	}
	return b, nil
}

// sent is what became of a batch.
type sent struct {
	to    uint64 // where the cursor may go
	dead  []*metapb.DeadEvent
	whole bool // all are dealt with
}

// deliver sends page after page until there is no other, the target fails or others should have their turn. A target that fails is no error.
func (l *lane) deliver(p *pass) error {
	until, cursor := time.Now().Add(slice), l.row.Cursor
	b, err := l.fetch(p, cursor)
	if err != nil {
		return err
	}
	if b.next == cursor {
		return errs.Newf(errs.Conflict, "delivery", l.name, "no event is behind the cursor, though some wait")
	}
	for b.next != cursor {
		l.sentAt = time.Now()
		out := l.send(p, b, cursor)
		if out.to == cursor || l.ctx.Err() != nil {
			return l.ctx.Err()
		}
		var ahead chan *batch
		if out.whole && b.more && time.Now().Before(until) {
			ahead = make(chan *batch, 1)
			go func() {
				next, err := l.fetch(p, out.to)
				if err != nil {
					next = nil // it is read again, and then the failure shows
				}
				ahead <- next
			}()
		}
		err := l.ack(&metapb.AckEventsOp{Target: l.name, From: cursor, To: out.to, Dead: out.dead})
		b = nil
		if ahead != nil {
			b = <-ahead
		}
		if err != nil || b == nil {
			return err
		}
		cursor = out.to
	}
	return nil
}

// send sends a batch as far as the target takes it. What it refuses for good is dead.
func (l *lane) send(p *pass, b *batch, cursor uint64) sent {
	out := sent{to: cursor}
	for done := 0; done < len(b.messages); {
		acked, late, err := p.send(l.ctx, b.messages[done:])
		done += acked
		var refused *target.Rejected
		rejected := errors.As(err, &refused) && done < len(b.messages)
		switch {
		case rejected:
			out.dead = append(out.dead, &metapb.DeadEvent{Seq: b.items[done].Seq, Error: cut(err)})
			done++
			p.result(acked, nil)
		case err == nil || late || done == len(b.messages):
			p.result(acked, nil)
		case l.ctx.Err() == nil:
			p.result(acked, err)
		}
		if done > 0 {
			out.to = b.items[done-1].Seq
		}
		if err != nil && !rejected {
			return out
		}
	}
	out.to, out.whole = b.next, true
	return out
}

// ack moves the cursor on. Conflict: it was elsewhere, or did not go all the way.
func (l *lane) ack(op *metapb.AckEventsOp) error {
	res, err := l.w.propose(l.ctx, l.o.g, &metapb.RangeCommand{Op: &metapb.RangeCommand_AckEvents{AckEvents: op}})
	if err == nil && res.More {
		err = errs.New(errs.Conflict, "delivery", l.name, "the cursor is between")
	}
	return err
}

// ---- giving up ----

// giveUp gives up the events of a target that is not there. What only EventBridge's configuration sends there is not lost by that: the bucket's owner
// asked for events to be offered, and nobody takes them.
func (l *lane) giveUp() error {
	dropped, err := l.drop(dropEvents, func(items []rangestate.EventItem) (n int, offered bool) {
		if len(items) == 0 {
			return 0, true
		}
		offered = items[0].Row.Target != l.name
		for n < len(items) && (items[n].Row.Target != l.name) == offered {
			n++
		}
		return n, offered
	})
	l.w.dests.lost(l.name, "there is no such target", dropped)
	return err
}

// bound gives up events if too many wait, or for too long.
func (l *lane) bound(d *destination) (did bool, err error) {
	if d.cfg.WhenFull != metapb.WhenFull_DROP_OLDEST {
		return false, nil
	}
	if most := l.w.roomFor(d.cfg); most.exceededBy(l.row) {
		return true, l.dropOldest(most.low())
	}
	age := l.w.ageMax(d.cfg)
	now := time.Now()
	if now.Before(l.ageAt) || time.UnixMilli(l.row.OldestMs).Add(age).After(now) || !l.w.dests.failing(d) {
		return false, nil
	}
	return true, l.dropAged(age)
}

// dropOldest gives up events until no more are left than have room.
func (l *lane) dropOldest(left room) error {
	for left.exceededBy(l.row) {
		dropped, err := l.drop(dropEvents, func(items []rangestate.EventItem) (n int, _ bool) {
			row := metapb.EventTargetRow{Queued: l.row.Queued, QueuedBytes: l.row.QueuedBytes}
			for n < len(items) && left.exceededBy(&row) {
				row.Queued--
				row.QueuedBytes -= min(row.QueuedBytes, uint64(items[n].Row.SizeVT()))
				n++
			}
			return n, false
		})
		l.w.dests.lost(l.name, "too many waited", dropped)
		if err != nil {
			return err
		}
	}
	return nil
}

// dropAged gives up what is older than age.
func (l *lane) dropAged(age time.Duration) error {
	dropped, err := l.drop(dropEvents, func(items []rangestate.EventItem) (n int, _ bool) {
		now := time.Now()
		for n < len(items) {
			if old := time.UnixMilli(items[n].Row.TimeMs).Add(age); old.After(now) {
				l.ageAt = old
				break
			}
			n++
		}
		return n, false
	})
	l.w.dests.lost(l.name, "they waited for too long", dropped)
	return err
}

// drop reads up to most events behind the cursor and moves it behind those that choose says, which are given up, or offered in vain. It reads row anew.
func (l *lane) drop(most int, choose func([]rangestate.EventItem) (n int, offered bool)) (dropped uint64, err error) {
	end, ok := l.w.chore(l.ctx)
	if !ok {
		return 0, l.ctx.Err()
	}
	defer end()
	cursor := l.row.Cursor
	page, err := l.w.page(l.ctx, l.o.g, &rangestate.EventQuery{After: cursor, Target: l.name, Limit: most, LookMax: pageRows, BytesMax: pageBytes})
	if err != nil {
		return 0, err
	}
	n, offered := choose(page.Items)
	to := page.Next
	switch {
	case n == 0 && len(page.Items) > 0:
		return 0, l.reread()
	case n < len(page.Items):
		to = page.Items[n-1].Seq
	}
	if to == cursor {
		return 0, errs.Newf(errs.Conflict, "delivery", l.name, "no event is behind the cursor, though some wait")
	}
	if err := l.ack(&metapb.AckEventsOp{Target: l.name, From: cursor, To: to, Dropped: !offered}); err != nil {
		return 0, err
	}
	if !offered {
		dropped = uint64(n)
	}
	return dropped, l.reread()
}
