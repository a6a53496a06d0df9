package metarpc

import (
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// Events asks again while the leader had looked at as many rows as it does for one answer and found none.
func (v *rangeReader) Events(q *rangestate.EventQuery) (page rangestate.EventPage, err error) {
	after := q.After
	for {
		ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_Events{Events: &nodepb.EventsQuery{
			After: after, Bucket: uint64(q.Bucket), Target: q.Target, Limit: limitOf(q.Limit), LookMax: limitOf32(q.LookMax), BytesMax: limitOf32(q.BytesMax),
		}}})
		if err != nil {
			return rangestate.EventPage{}, err
		}
		page = rangestate.EventPage{Next: ans.EventsNext, More: ans.More}
		for _, pb := range ans.Events {
			page.Items = append(page.Items, rangestate.EventItem{Seq: pb.Seq, Row: orEmpty(pb.Row)})
		}
		if len(page.Items) > 0 || !page.More || q.LookMax > 0 {
			return page, nil
		}
		if page.Next <= after {
			return page, errs.New(errs.Corrupt, "metarpc.events", "", "the leader's answer does not fit the question")
		}
		after = page.Next
	}
}

// limitOf32 is a limit of anything but rows.
func limitOf32(limit int) uint32 { return uint32(min(max(limit, 0), 1<<30)) }

func (v *rangeReader) EventState() (rangestate.EventState, error) {
	ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_EventState{EventState: &nodepb.InfoQuery{}}})
	if err != nil {
		return rangestate.EventState{}, err
	}
	st := rangestate.EventState{Log: orEmpty(ans.EventLog), Timers: ans.EventTimersThere}
	for _, pb := range ans.EventTargets {
		st.Targets = append(st.Targets, rangestate.EventTarget{Name: pb.Name, Row: orEmpty(pb.Row)})
	}
	return st, nil
}

func (v *rangeReader) EventCounters(after *rangestate.EventCounter, limit int) (out []rangestate.EventCounter, next *rangestate.EventCounter, err error) {
	q := &nodepb.EventCountersQuery{Limit: limitOf(limit)}
	if after != nil {
		q.After = &nodepb.EventCounterItem{Bucket: uint64(after.Bucket), Target: after.Target}
	}
	ans, err := v.ask(heavyFactor, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_EventCounters{EventCounters: q}})
	if err != nil {
		return nil, nil, err
	}
	for _, pb := range ans.EventCounters {
		out = append(out, *eventCounterFromPB(pb))
	}
	return out, eventCounterFromPB(ans.EventCountersNext), nil
}

func (v *rangeReader) DeadEvents(target string, after uint64, limit int) (out []rangestate.DeadEvent, err error) {
	for len(out) < limit {
		ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_DeadEvents{DeadEvents: &nodepb.DeadEventsQuery{
			Target: target, After: after, Limit: limitOf(limit - len(out)),
		}}})
		if err != nil {
			return nil, err
		}
		for _, pb := range ans.DeadEvents {
			out = append(out, rangestate.DeadEvent{Seq: pb.Seq, Row: orEmpty(pb.Row)})
		}
		if !ans.More || len(ans.DeadEvents) == 0 {
			break
		}
		after = out[len(out)-1].Seq
	}
	return out, nil
}

func (v *rangeReader) EventTimers(after *metapb.EventTimerID, limit int) (out []rangestate.EventTimer, err error) {
	for len(out) < limit {
		ans, err := v.ask(1, &nodepb.QueryRequest{Of: &nodepb.QueryRequest_EventTimers{EventTimers: &nodepb.EventTimersQuery{
			After: after, Limit: limitOf(limit - len(out)),
		}}})
		if err != nil {
			return nil, err
		}
		for _, pb := range ans.EventTimers {
			out = append(out, rangestate.EventTimer{ID: orEmpty(pb.Id), Row: orEmpty(pb.Row)})
		}
		if !ans.More || len(ans.EventTimers) == 0 {
			break
		}
		after = out[len(out)-1].ID
	}
	return out, nil
}
