package core

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/server/delivery"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
)

// How often a tail that is at the end looks again, and how often it says so.
const (
	tailPauseMin = 100 * time.Millisecond
	tailPauseMax = time.Second
	tailKeep     = 5 * time.Second
)

// TailQuery says which events are read.
type TailQuery struct {
	Bucket string // empty: all
	From   string // a position, a time (RFC 3339), "begin" (the oldest there is) or "now", which empty is too
	Follow bool   // go on at the end; without it the end is what there is when it begins
}

// Tail calls fn with the events of a bucket, or of all, from a place on. The events of a key come in their order. To follow is to go on until ctx ends, with a line every few seconds that has
// a position alone. An error of fn ends it. Each line's position is behind its event. Errors: NoSuchBucket, InvalidArgument.
func (e *Events) Tail(ctx context.Context, q TailQuery, fn func(*status.EventLine) error) error {
	m := &eventMerge{meta: e.meta}
	if q.Bucket != "" {
		b, err := e.c.bucketNamed(ctx, q.Bucket)
		if err != nil {
			return err
		}
		m.query.Bucket = storage.BucketID(b.Id)
	}
	if err := e.from(ctx, m, q.From); err != nil {
		return err
	}
	if q.Follow { // who waits for the first event can go on from here
		if err := fn(&status.EventLine{Position: m.at.String()}); err != nil {
			return err
		}
	} else {
		var err error
		if m.ends, err = m.now(ctx); err != nil {
			return err
		}
	}
	return e.tail(ctx, m, q.Follow, fn)
}

func (e *Events) tail(ctx context.Context, m *eventMerge, follow bool, fn func(*status.EventLine) error) error {
	told, last := false, time.Now()
	pause := tailPauseMin
	for {
		n, err := m.round(ctx, func(g cluster.GroupID, it *rangestate.EventItem) error {
			if err := tellLost(m, &told, fn); err != nil {
				return err
			}
			return fn(lineOf(m, g, it))
		})
		if err == nil {
			err = tellLost(m, &told, fn)
		}
		switch {
		case err != nil && (!follow || !passing(err)):
			return err
		case n > 0:
			last, pause = time.Now(), tailPauseMin
			continue
		case !follow:
			return nil
		case time.Since(last) >= tailKeep:
			last = time.Now()
			if err := fn(&status.EventLine{Position: m.at.String()}); err != nil {
				return err
			}
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, tailPauseMax)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// passing reports whether what failed may go well in a moment.
func passing(err error) bool {
	switch errs.KindOf(err) {
	case errs.NotLeader, errs.Unavailable, errs.Busy, errs.Timeout:
		return true
	}
	return false
}

// tellLost says once that something was lost.
func tellLost(m *eventMerge, told *bool, fn func(*status.EventLine) error) error {
	if !m.lost || *told {
		return nil
	}
	*told = true
	return fn(&status.EventLine{Lost: true})
}

// lineOf is an event as a line.
func lineOf(m *eventMerge, g cluster.GroupID, it *rangestate.EventItem) *status.EventLine {
	return &status.EventLine{Position: m.behind(g, it).String(), Target: it.Row.Target, Bridge: it.Row.Bridge, Event: recordOf(it)}
}

// recordOf is S3's record of an event.
func recordOf(it *rangestate.EventItem) json.RawMessage {
	var message struct{ Records []json.RawMessage }
	if err := json.Unmarshal(delivery.Event(*it).Records(it.Row.Rule), &message); err != nil || len(message.Records) != 1 {
		return json.RawMessage("null") // it was encoded just now
	}
	return message.Records[0]
}

// clockSkew is by how much the clock of who gives a time may be ahead.
const clockSkew = time.Minute

// from sets where a merge begins. InvalidArgument: there cannot be such a place here.
func (e *Events) from(ctx context.Context, m *eventMerge, from string) error {
	switch from {
	case "", "now":
		return m.begin(ctx, func(_ rangestate.Reader, st *rangestate.EventState) (uint64, error) { return st.Log.GetNewest(), nil })
	case "begin":
		return m.begin(ctx, func(_ rangestate.Reader, st *rangestate.EventState) (uint64, error) { return st.Log.GetTrimmed(), nil })
	}
	at, err := time.Parse(time.RFC3339, from)
	if err != nil {
		if m.at, err = ParsePosition(from); err != nil {
			return err
		}
		return m.known(ctx)
	}
	now := e.c.env.Now()
	if at.After(now.Add(clockSkew)) {
		return errs.Newf(errs.InvalidArgument, "events", "", "the time %s is in the future: it is %s here; for what happens from now on give now", from, now.UTC().Format(time.RFC3339))
	}
	kept := now.Add(-e.c.cfg.EventsRetention)
	return m.begin(ctx, func(r rangestate.Reader, st *rangestate.EventState) (uint64, error) {
		seq, err := before(r, st, at.UnixMilli())
		if err != nil || st.Log.GetTrimmed() == 0 || seq > st.Log.GetTrimmed() {
			return seq, err
		}
		// All that there is comes after that time. What was before it is gone for its age, or because there was so much.
		if at.Before(kept) || st.Log.GetBytes() > uint64(e.c.cfg.EventsRetainBytes)/2 {
			m.lost = true
		}
		return seq, nil
	})
}

// known refuses a position with events that are not there yet: those that take their numbers would be passed over in silence. A range that
// cannot be read in a moment is not asked, nor are those after it.
func (m *eventMerge) known(ctx context.Context) error {
	for _, g := range m.meta.AllRanges() {
		if m.at[g] == 0 {
			continue
		}
		newest, err := m.newest(ctx, g)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case passing(err) || errors.Is(err, context.DeadlineExceeded):
			return nil
		case err != nil:
			return err
		case newest > 0 && m.at[g] > newest:
			return errs.New(errs.InvalidArgument, "events", "", "the position is of another store, or of one that was made anew")
		}
	}
	return nil
}

// newest is the sequence of a range's newest event, unless that takes too long to read.
func (m *eventMerge) newest(ctx context.Context, g cluster.GroupID) (seq uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, sumsTimeout)
	defer cancel()
	err = m.meta.Read(ctx, g, func(r rangestate.Reader) error {
		st, err := r.EventState()
		seq = st.Log.GetNewest()
		return err
	})
	return seq, err
}

// now are the ends of all outboxes now.
func (m *eventMerge) now(ctx context.Context) (Position, error) {
	ends := Position{}
	for _, g := range m.meta.AllRanges() {
		err := m.meta.Read(ctx, g, func(r rangestate.Reader) error {
			st, err := r.EventState()
			ends[g] = st.Log.GetNewest()
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return ends, nil
}
