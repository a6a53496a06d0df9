package core

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
)

// Bounds of what is told of single buckets, and of what is read at once for it.
const (
	eventBucketsMax   = 10_000 // rows of bucket and target
	eventCountersPage = 1000
)

// How all ranges are read for sums: so many at once, and each for so long, so that one without a leader does not hide the others.
const (
	sumsAtOnce  = 8
	sumsTimeout = 2 * time.Second
)

// eventSums adds up what ranges say of events, of several at once.
type eventSums struct {
	mu          sync.Mutex // held while something is added
	loads       map[string]*status.EventLoad
	counters    map[eventCounterKey]*metapb.EventCounterRow // at most countersMax
	countersMax int
	more        bool // there were more
	rows, bytes int64
	nowMS       int64
}

type eventCounterKey struct {
	bucket storage.BucketID
	target string
}

func newEventSums(now time.Time, countersMax int) *eventSums {
	return &eventSums{
		loads: map[string]*status.EventLoad{}, counters: map[eventCounterKey]*metapb.EventCounterRow{}, countersMax: countersMax, nowMS: now.UnixMilli(),
	}
}

func (s *eventSums) load(name string) *status.EventLoad {
	l := s.loads[name]
	if l == nil {
		l = &status.EventLoad{Target: name}
		s.loads[name] = l
	}
	return l
}

// addState adds a range's queues.
func (s *eventSums) addState(st *rangestate.EventState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows += int64(st.Log.GetRows())
	s.bytes += int64(st.Log.GetBytes())
	for _, t := range st.Targets {
		l := s.load(t.Name)
		l.Queued += int64(t.Row.Queued)
		l.QueuedBytes += int64(t.Row.QueuedBytes)
		l.DeadKept += int64(t.Row.Dead)
		l.Held = l.Held || t.Row.Held
		if t.Row.Queued > 0 {
			l.OldestSeconds = max(l.OldestSeconds, float64(s.nowMS-t.Row.OldestMs)/1000)
		}
	}
}

// addCounters adds counters of a range.
func (s *eventSums) addCounters(counters []rangestate.EventCounter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range counters {
		l := s.load(k.Target)
		l.Delivered += k.Row.Delivered
		l.Dead += k.Row.Dead
		l.Dropped += k.Row.Dropped
		key := eventCounterKey{k.Bucket, k.Target}
		sum := s.counters[key]
		if sum == nil {
			if len(s.counters) >= s.countersMax {
				s.more = true
				continue
			}
			sum = &metapb.EventCounterRow{}
			s.counters[key] = sum
		}
		sum.Queued += k.Row.Queued
		sum.QueuedBytes += k.Row.QueuedBytes
		sum.Delivered += k.Row.Delivered
		sum.Dead += k.Row.Dead
		sum.Dropped += k.Row.Dropped
	}
}

// read adds what a range says; without counters only what waits.
func (s *eventSums) read(ctx context.Context, meta outboxes, g cluster.GroupID, counters bool) error {
	var st rangestate.EventState
	err := meta.Read(ctx, g, func(r rangestate.Reader) (err error) {
		st, err = r.EventState()
		return err
	})
	if err != nil {
		return err
	}
	s.addState(&st)
	for after := (*rangestate.EventCounter)(nil); counters; {
		var page []rangestate.EventCounter
		var next *rangestate.EventCounter
		err := meta.Read(ctx, g, func(r rangestate.Reader) (err error) {
			page, next, err = r.EventCounters(after, eventCountersPage)
			return err
		})
		if err != nil {
			return err
		}
		s.addCounters(page)
		if after = next; next == nil {
			break
		}
	}
	return nil
}

// readAll adds what all ranges say. One that cannot be read in its time is told of and left out.
func (s *eventSums) readAll(ctx context.Context, meta outboxes, counters bool) (partial string) {
	all := meta.AllRanges()
	why := make([]string, len(all)) // empty: it was read
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(sumsAtOnce, len(all)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(all); i = int(next.Add(1)) - 1 {
				ctx, cancel := context.WithTimeoutCause(ctx, sumsTimeout, fmt.Errorf("no answer within %s", sumsTimeout))
				if err := s.read(ctx, meta, all[i], counters); err != nil {
					why[i] = fmt.Sprintf("range %d: %s", all[i], reason(ctx, err))
				}
				cancel()
			}
		})
	}
	wg.Wait()
	why = slices.DeleteFunc(why, func(text string) bool { return text == "" })
	switch len(why) {
	case 0:
		return ""
	case 1:
		return why[0]
	}
	return fmt.Sprintf("%d of %d ranges, as %s", len(why), len(all), why[0])
}

// sums are those of all ranges, with counters of up to countersMax buckets and targets, or without any.
func (e *Events) sums(ctx context.Context, counters bool, countersMax int) (s *eventSums, partial string) {
	s = newEventSums(e.c.env.Now(), countersMax)
	return s, s.readAll(ctx, e.meta, counters)
}

// Status is how far the events of the store have come, and what the nodes say of the targets.
func (e *Events) Status(ctx context.Context) (status.Events, error) {
	all, err := e.meta.Targets(ctx)
	if err != nil {
		return status.Events{}, err
	}
	sums, partial := e.sums(ctx, true, eventBucketsMax)
	out := status.Events{Kept: sums.rows, Bytes: sums.bytes, More: sums.more, Partial: partial}
	for _, t := range all {
		sums.load(t.Name).Kind = t.Kind
	}
	for _, l := range sums.loads {
		out.Targets = append(out.Targets, *l)
	}
	if out.Buckets, err = e.byBucket(ctx, sums); err != nil {
		return out, err
	}
	for id, l := range e.c.looks(ctx, e.c.Controller.Topology()) {
		if l.lost != "" {
			out.Workers = append(out.Workers, status.EventWorker{Node: string(id), Error: "no answer: " + l.lost})
		}
		out.Workers = append(out.Workers, l.Events...)
	}
	out.Sort()
	return out, nil
}

// byBucket are the sums of buckets and targets, under the buckets' names; those that are deleted have none any more.
func (e *Events) byBucket(ctx context.Context, s *eventSums) (out []status.BucketLoad, err error) {
	names := map[storage.BucketID]string{}
	for k := range s.counters {
		names[k.bucket] = fmt.Sprintf("(deleted %d)", k.bucket)
	}
	err = lifecycleMeta{c: e.c}.system(ctx, func(r pebble.Reader) error {
		for id := range names {
			b, err := sysstate.BucketByID(r, id)
			if err == nil {
				names[id] = b.Name
			} else if !errs.Is(err, errs.NoSuchBucket) {
				return err
			}
		}
		return nil
	})
	for k, row := range s.counters {
		out = append(out, status.BucketLoad{
			Bucket: names[k.bucket], Target: k.target, Queued: row.Queued, QueuedBytes: row.QueuedBytes, Delivered: row.Delivered, Dead: row.Dead, Dropped: row.Dropped,
		})
	}
	return out, err
}

// workersHere is what this process did for targets.
func (e *Events) workersHere() (out []status.EventWorker) {
	w := e.worker.Load()
	if w == nil {
		return nil
	}
	when := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.UTC()
		return &t
	}
	for _, t := range w.Status() {
		row := status.EventWorker{Node: string(e.c.nodeID()), Target: t.Name, Delivered: t.Delivered, Failed: t.Failed, Error: t.LastError}
		if t.LastError != "" {
			row.At, row.Retry = when(t.LastAt), when(t.Retry)
		}
		out = append(out, row)
	}
	return out
}

// waitingHere is what waits in the ranges that are led here, by target. It is read where it lies and costs little.
func (e *Events) waitingHere(ctx context.Context) []status.EventLoad {
	s := newEventSums(e.c.env.Now(), 0)
	for _, g := range e.meta.Led() {
		_ = s.read(ctx, e.meta, g, false) // it is not led here any more, or in a moment
	}
	out := status.Events{}
	for _, l := range s.loads {
		out.Targets = append(out.Targets, *l)
	}
	out.Sort()
	return out.Targets
}

// Counts are what became of the events of the whole store, ever: by target, and by bucket and target; no buckets if there were more than max
// such rows. Unavailable: a range cannot be read.
func (e *Events) Counts(ctx context.Context, max int) ([]status.EventLoad, []status.BucketLoad, error) {
	s, partial := e.sums(ctx, true, max)
	if partial != "" {
		return nil, nil, errs.New(errs.Unavailable, "events", "", partial)
	}
	out := status.Events{}
	for _, l := range s.loads {
		out.Targets = append(out.Targets, *l)
	}
	if !s.more {
		var err error
		if out.Buckets, err = e.byBucket(ctx, s); err != nil {
			return nil, nil, err
		}
	}
	out.Sort()
	return out.Targets, out.Buckets, nil
}
