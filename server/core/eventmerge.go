package core

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"cairn/cluster"
	"cairn/cluster/rangestate"
)

// outboxes is the metadata plane as eventMerge needs it.
type outboxes interface {
	// AllRanges are all ranges that are known, wherever they are led.
	AllRanges() []cluster.GroupID
	// Read calls fn with a linearizable reader of a range; fn may be called again.
	Read(ctx context.Context, g cluster.GroupID, fn func(rangestate.Reader) error) error
}

// eventMerge reads the outboxes of all ranges as one stream in which the events of a key come in their order.
//
// A split leaves the events of a key in the parent's outbox, and the later ones come to the child's, whose numbers and times go on where the
// parent's were. So the stream goes by time and number. A parent's page that was read after its child was known has everything that came
// before what the child has; of one that was read earlier that is not sure, so once it is used up it is read again before anything later is told.
//
// It holds at most mergeBytes of rows. Not for concurrent use.
type eventMerge struct {
	meta  outboxes
	query rangestate.EventQuery // bucket and target
	at    Position
	ends  Position // nil: none. Else only these ranges, up to these sequences
	lost  bool     // something behind at is not kept any more
	logs  []*mergeLog
	limit int // events of a page; 0: mergeEvents
}

// Bounds of what a merge holds.
const (
	mergeEvents = 500
	mergeBytes  = 16 << 20
)

// mergeLog is a page of a range's outbox.
type mergeLog struct {
	g     cluster.GroupID
	items []rangestate.EventItem
	next  uint64 // at, once all items are taken
	more  bool   // there is more behind next
	fresh bool   // it was read in this round
}

// round calls fn with the events that can be put in order now, and answers how many that were; 0: there are none behind the position, at present. The
// position is behind an event once fn has answered nil.
func (m *eventMerge) round(ctx context.Context, fn func(cluster.GroupID, *rangestate.EventItem) error) (n int, err error) {
	if err := m.fill(ctx); err != nil {
		return 0, err
	}
	for l := m.first(); l != nil; l = m.first() {
		it := &l.items[0]
		if err := fn(l.g, it); err != nil {
			return n, err
		}
		n++
		m.at[l.g] = it.Seq
		if l.items = l.items[1:]; len(l.items) > 0 {
			continue
		}
		m.at[l.g] = l.next
		if l.more || !l.fresh { // what comes next of others may come after what is there by now
			break
		}
	}
	return n, nil
}

// first is the outbox whose event is the next; nil: there is none.
func (m *eventMerge) first() (best *mergeLog) {
	for _, l := range m.logs {
		if len(l.items) > 0 && (best == nil || earlier(&l.items[0], &best.items[0])) {
			best = l
		}
	}
	return best
}

func earlier(a, b *rangestate.EventItem) bool {
	return cmp.Or(cmp.Compare(a.Row.TimeMs, b.Row.TimeMs), cmp.Compare(a.Seq, b.Seq)) < 0
}

// fill reads a page of each outbox of which nothing is left.
func (m *eventMerge) fill(ctx context.Context) error {
	m.know()
	for _, l := range m.logs {
		if l.fresh = len(l.items) == 0; l.fresh {
			if err := m.read(ctx, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// know takes in ranges that are new.
func (m *eventMerge) know() {
	known := make(map[cluster.GroupID]bool, len(m.logs))
	for _, l := range m.logs {
		known[l.g] = true
	}
	for _, g := range m.meta.AllRanges() {
		if _, ok := m.ends[g]; known[g] || m.ends != nil && !ok {
			continue
		}
		known[g] = true
		m.logs = append(m.logs, &mergeLog{g: g})
	}
	slices.SortFunc(m.logs, func(a, b *mergeLog) int { return cmp.Compare(b.g, a.g) })
}

// read reads on in an outbox until there is an event, or nothing more.
func (m *eventMerge) read(ctx context.Context, l *mergeLog) error {
	for {
		if err := m.page(ctx, l); err != nil {
			return err
		}
		if len(l.items) > 0 {
			return nil
		}
		m.at[l.g] = l.next
		if !l.more {
			return nil
		}
	}
}

// page reads a page of an outbox, which may be empty though there is more.
func (m *eventMerge) page(ctx context.Context, l *mergeLog) error {
	after, end := m.at[l.g], m.ends[l.g]
	if l.next, l.more = after, false; m.ends != nil && after >= end {
		return nil
	}
	q := m.query
	q.After, q.Limit = after, cmp.Or(m.limit, mergeEvents)
	q.BytesMax = min(1<<20, max(mergeBytes/len(m.logs), 4<<10))
	q.LookMax = 100 * mergeEvents // between two, ctx may have ended
	var page rangestate.EventPage
	var trimmed uint64
	err := m.meta.Read(ctx, l.g, func(r rangestate.Reader) (err error) {
		if page, err = r.Events(&q); err != nil {
			return err
		}
		st, err := r.EventState()
		trimmed = st.Log.GetTrimmed()
		return err
	})
	if err != nil {
		return err
	}
	if trimmed > after { // of what is up to there only what waits for a target is kept
		m.lost = true
	}
	l.items, l.next, l.more = page.Items, max(page.Next, after), page.More && page.Next > after
	if m.ends == nil {
		return nil
	}
	for len(l.items) > 0 && l.items[len(l.items)-1].Seq > end {
		l.items = l.items[:len(l.items)-1]
	}
	if l.next >= end {
		l.next, l.more = end, false
	}
	return nil
}

// behind is the position behind an event that round tells of.
func (m *eventMerge) behind(g cluster.GroupID, it *rangestate.EventItem) Position {
	at := maps.Clone(m.at)
	at[g] = it.Seq
	return at
}

// begin sets the position of each range that is known now, to what at answers of its outbox.
func (m *eventMerge) begin(ctx context.Context, at func(rangestate.Reader, *rangestate.EventState) (uint64, error)) error {
	m.at = Position{}
	for _, g := range m.meta.AllRanges() {
		err := m.meta.Read(ctx, g, func(r rangestate.Reader) error {
			st, err := r.EventState()
			if err != nil {
				return err
			}
			m.at[g], err = at(r, &st)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// before is the sequence behind which the rows of an outbox are of ms (unix) or later, found by halving.
func before(r rangestate.Reader, st *rangestate.EventState, ms int64) (uint64, error) {
	low, high := st.Log.GetTrimmed(), st.Log.GetNewest()
	for low < high {
		mid := low + (high-low)/2
		page, err := r.Events(&rangestate.EventQuery{After: mid, Limit: 1, LookMax: 1})
		if err != nil {
			return 0, err
		}
		if len(page.Items) > 0 && page.Items[0].Row.TimeMs < ms {
			low = page.Items[0].Seq
		} else {
			high = mid
		}
	}
	return low, nil
}
