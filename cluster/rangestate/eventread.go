package rangestate

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// EventQuery says which events of a range's outbox are looked for.
type EventQuery struct {
	After    uint64           // behind this sequence
	Bucket   storage.BucketID // 0: of any
	Target   string           // that a rule names, or DefaultBus for what goes to EventBridge; "": any
	Limit    int              // events, at least one
	LookMax  int              // rows that are looked at, at most; 0: as many as it takes. With AckRowsMax one AckEvents reaches the page's end
	BytesMax int              // of the rows answered, at least one; 0: 1 MiB
}

// DefaultBus is the target that a bucket's EventBridge configuration sends to.
const DefaultBus = "default"

// eventBytes is EventQuery.BytesMax where it is not given.
const eventBytes = 1 << 20

// EventItem is an event and its place in the outbox, which is also its sequencer.
type EventItem struct {
	Seq uint64
	Row *metapb.EventRow
}

// EventPage is a piece of an outbox.
type EventPage struct {
	Items []EventItem
	Next  uint64 // every row up to this sequence was looked at: go on behind it
	More  bool   // there are rows behind it
}

// EventTarget is how far a range has come with a target.
type EventTarget struct {
	Name string
	Row  *metapb.EventTargetRow
}

// EventState is what a range knows of its outbox as a whole.
type EventState struct {
	Log     *metapb.EventLogRow // never nil
	Targets []EventTarget       // that ever had an event in the range or were held there, by name
	Timers  bool                // there are rows that make events with time
}

// EventCounter is what a range counts of a bucket's events for a target. Bucket 0 is all that were deleted.
type EventCounter struct {
	Bucket storage.BucketID
	Target string
	Row    *metapb.EventCounterRow
}

// DeadEvent is an event that its target refused for good.
type DeadEvent struct {
	Seq uint64
	Row *metapb.DeadEventRow
}

// EventTimer is a row that makes events with time.
type EventTimer struct {
	ID  *metapb.EventTimerID
	Row *metapb.EventTimerRow
}

// Events is a page of the outbox, in order. Up to EventLogRow.trimmed only those are there that a target waits for.
func (v *View) Events(q *EventQuery) (page EventPage, err error) {
	page.Next = q.After
	if q.After+1 == 0 {
		return page, nil
	}
	walk := eventWalk{q: q, page: &page, room: q.BytesMax}
	if walk.room <= 0 {
		walk.room = eventBytes
	}
	start, end := appendEvent(nil, v.group, q.After+1), prefixEnd(appendEvents(nil, v.group))
	if err := iterate(v.r, start, end, walk.row); err != nil {
		return EventPage{}, err
	}
	return page, nil
}

// eventWalk is the work on one page.
type eventWalk struct {
	q      *EventQuery
	page   *EventPage
	room   int // bytes
	looked int
}

// row looks at the next row of the outbox; false ends the page.
func (w *eventWalk) row(raw []byte, value func() ([]byte, error)) (bool, error) {
	q, page := w.q, w.page
	if len(page.Items) >= max(q.Limit, 1) || q.LookMax > 0 && w.looked == q.LookMax {
		page.More = true
		return false, nil
	}
	b, err := value()
	if err != nil {
		return false, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	g, err := glanceAt(raw, b)
	if err != nil {
		return false, err
	}
	if (q.Bucket == 0 || uint64(q.Bucket) == g.bucket) && (q.Target == "" || g.isFor(q.Target)) {
		if len(b) > w.room && len(page.Items) > 0 {
			page.More = true
			return false, nil
		}
		w.room -= len(b)
		row := &metapb.EventRow{}
		if err := row.UnmarshalVT(b); err != nil {
			return false, corrupt(raw, err)
		}
		page.Items = append(page.Items, EventItem{g.seq, row})
	}
	w.looked++
	page.Next = g.seq
	return true, nil
}

// EventState is what the range knows of its outbox.
func (v *View) EventState() (s EventState, err error) {
	r, done := v.frozen()
	defer done()
	s.Log = &metapb.EventLogRow{}
	if _, err := getRow(r, appendGroup(nil, v.group, subLog), s.Log); err != nil {
		return EventState{}, err
	}
	err = eachTarget(r, v.group, func(name []byte, row *metapb.EventTargetRow) {
		s.Targets = append(s.Targets, EventTarget{string(name), row})
	})
	if err != nil {
		return EventState{}, err
	}
	span := v.config.bounds.span(kindTimer)
	err = iterate(r, span.Start, span.End, func([]byte, func() ([]byte, error)) (bool, error) {
		s.Timers = true
		return false, nil
	})
	if err != nil {
		return EventState{}, err
	}
	return s, nil
}

// eachTarget calls fn for the row of every target, by name. The row is fn's, the name is not. It seeks from one to the next: a row that every batch
// writes has thousands of versions in a memtable, and a step goes over each of them.
func eachTarget(r pebble.Reader, group cluster.GroupID, fn func(name []byte, row *metapb.EventTargetRow)) error {
	start := appendTarget(nil, group, "")
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: prefixEnd(slices.Clone(start))})
	if err != nil {
		return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	for ok := it.First(); ok; ok = it.SeekGE(append(start, 0)) {
		row := &metapb.EventTargetRow{}
		if err := decode(it.Key(), it.ValueAndErr, row); err != nil {
			_ = it.Close() // the first error says more
			return err
		}
		start = append(start[:0], it.Key()...)
		fn(start[groupHeadLen:], row)
	}
	return errs.Wrap(errs.DriveFailed, "rangestate.read", "", it.Close())
}

// EventCounters are up to limit counters by bucket and target, those behind a place (nil: from the first); next is nil at the end.
func (v *View) EventCounters(after *EventCounter, limit int) (out []EventCounter, next *EventCounter, err error) {
	start := appendGroup(nil, v.group, subTold)
	end := prefixEnd(bytes.Clone(start))
	if after != nil {
		start = append(appendTold(nil, v.group, uint64(after.Bucket), after.Target), 0)
	}
	more := false
	err = iterate(v.r, start, end, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		if len(out) >= max(limit, 1) {
			more = true
			return false, nil
		}
		if len(raw) < groupHeadLen+8 {
			return false, corrupt(raw, errMalformed)
		}
		row := &metapb.EventCounterRow{}
		bucket := storage.BucketID(binary.BigEndian.Uint64(raw[groupHeadLen:]))
		out = append(out, EventCounter{bucket, string(raw[groupHeadLen+8:]), row})
		return true, decode(raw, value, row)
	})
	if err != nil {
		return nil, nil, err
	}
	if more {
		last := out[len(out)-1]
		next = &last
	}
	return out, next, nil
}

// DeadEvents are up to limit of a target's dead letters behind a sequence, in order.
func (v *View) DeadEvents(target string, after uint64, limit int) (out []DeadEvent, err error) {
	head := appendDead(nil, v.group, target)
	start := append(binary.BigEndian.AppendUint64(bytes.Clone(head), after), 0)
	err = iterate(v.r, start, prefixEnd(bytes.Clone(head)), func(raw []byte, value func() ([]byte, error)) (bool, error) {
		if len(out) >= limit {
			return false, nil
		}
		if len(raw) != len(head)+8 {
			return false, corrupt(raw, errMalformed)
		}
		row := &metapb.DeadEventRow{}
		out = append(out, DeadEvent{binary.BigEndian.Uint64(raw[len(head):]), row})
		return true, decode(raw, value, row)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// EventTimers are up to limit timers behind a place (nil: from the first), in order of bucket, key and version.
func (v *View) EventTimers(after *metapb.EventTimerID, limit int) (out []EventTimer, err error) {
	err = v.scanSeqRows(kindTimer, after.GetBucket(), after.GetKey(), after.GetVersionSeq(), limit, func(bucket storage.BucketID, key storage.Key, seq storage.Seq) decoder {
		row := &metapb.EventTimerRow{}
		out = append(out, EventTimer{&metapb.EventTimerID{Bucket: uint64(bucket), Key: []byte(key), VersionSeq: uint64(seq)}, row})
		return row
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
