package metarpc

import (
	"cairn/cluster/rangestate"
	"cairn/proto/nodepb"
	"cairn/storage"
)

// eventLookMax bounds the rows of an outbox that are looked at for one answer.
const eventLookMax = 50000

// answerEvents answers what is asked about the outbox.
func (v asked) answerEvents(req *nodepb.QueryRequest) (*nodepb.QueryAnswer, error) {
	switch q := req.Of.(type) {
	case *nodepb.QueryRequest_Events:
		return v.answerOutbox(q.Events)
	case *nodepb.QueryRequest_EventState:
		return v.answerEventState()
	case *nodepb.QueryRequest_EventCounters:
		return v.fit(max(q.EventCounters.GetLimit(), 1), func(limit int) (*nodepb.QueryAnswer, error) {
			counters, next, err := v.EventCounters(eventCounterFromPB(q.EventCounters.GetAfter()), limit)
			ans := &nodepb.QueryAnswer{EventCountersNext: eventCounterToPB(next)}
			for i := range counters {
				ans.EventCounters = append(ans.EventCounters, eventCounterToPB(&counters[i]))
			}
			return ans, err
		})
	case *nodepb.QueryRequest_DeadEvents:
		return v.fit(max(q.DeadEvents.GetLimit(), 1), func(limit int) (*nodepb.QueryAnswer, error) {
			dead, err := v.DeadEvents(q.DeadEvents.GetTarget(), q.DeadEvents.GetAfter(), limit)
			ans := &nodepb.QueryAnswer{More: len(dead) == limit}
			for _, d := range dead {
				ans.DeadEvents = append(ans.DeadEvents, &nodepb.DeadEventItem{Seq: d.Seq, Row: d.Row})
			}
			return ans, err
		})
	case *nodepb.QueryRequest_EventTimers:
		return v.fit(max(q.EventTimers.GetLimit(), 1), func(limit int) (*nodepb.QueryAnswer, error) {
			timers, err := v.EventTimers(q.EventTimers.GetAfter(), limit)
			ans := &nodepb.QueryAnswer{More: len(timers) == limit}
			for _, t := range timers {
				ans.EventTimers = append(ans.EventTimers, &nodepb.EventTimerItem{Id: t.ID, Row: t.Row})
			}
			return ans, err
		})
	}
	return nil, unknown("question")
}

func (v asked) answerOutbox(q *nodepb.EventsQuery) (*nodepb.QueryAnswer, error) {
	look, bytes := int(q.GetLookMax()), int(q.GetBytesMax())
	if look == 0 || look > eventLookMax {
		look = eventLookMax
	}
	if bytes == 0 || bytes > v.bytesMax {
		bytes = min(v.bytesMax, 1<<20)
	}
	page, err := v.Events(&rangestate.EventQuery{
		After: q.GetAfter(), Bucket: storage.BucketID(q.GetBucket()), Target: q.GetTarget(),
		Limit: int(min(max(q.GetLimit(), 1), answerRowsMax)), LookMax: look, BytesMax: bytes,
	})
	ans := &nodepb.QueryAnswer{More: page.More, EventsNext: page.Next}
	for _, it := range page.Items {
		ans.Events = append(ans.Events, &nodepb.EventItem{Seq: it.Seq, Row: it.Row})
	}
	return ans, err
}

// answerEventState is bounded by the number of targets that there can be.
func (v asked) answerEventState() (*nodepb.QueryAnswer, error) {
	st, err := v.EventState()
	ans := &nodepb.QueryAnswer{EventLog: st.Log, EventTimersThere: st.Timers}
	for _, t := range st.Targets {
		ans.EventTargets = append(ans.EventTargets, &nodepb.EventTargetItem{Name: t.Name, Row: t.Row})
	}
	return ans, err
}

func eventCounterToPB(c *rangestate.EventCounter) *nodepb.EventCounterItem {
	if c == nil {
		return nil
	}
	return &nodepb.EventCounterItem{Bucket: uint64(c.Bucket), Target: c.Target, Row: c.Row}
}

func eventCounterFromPB(pb *nodepb.EventCounterItem) *rangestate.EventCounter {
	if pb == nil {
		return nil
	}
	return &rangestate.EventCounter{Bucket: storage.BucketID(pb.Bucket), Target: pb.Target, Row: orEmpty(pb.Row)}
}
