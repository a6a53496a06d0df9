package core

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// logs are outboxes that split and grow while they are read.
type logs struct {
	rnd    *rand.Rand
	ranges []*fakeRange
	seqs   map[string]int   // events of each key so far
	seen   map[string][]int // of each key, in the order in which they were read
	shown  int              // how many of the ranges are known to readers
	next   cluster.GroupID
	quiet  bool // nothing changes any more
}

type fakeRange struct {
	g          cluster.GroupID
	from, to   int // keys
	seq        uint64
	ms         int64
	rows       []rangestate.EventItem
	trimmed    uint64
	unreadable bool
}

func newLogs(seed uint64) *logs {
	return &logs{
		rnd: rand.New(rand.NewPCG(seed, 1)), ranges: []*fakeRange{{g: 2, to: 24}}, shown: 1, next: 3, seqs: map[string]int{}, seen: map[string][]int{},
	}
}

func (l *logs) AllRanges() (ids []cluster.GroupID) {
	for _, r := range l.ranges[:l.shown] {
		ids = append(ids, r.g)
	}
	return ids
}

// change writes events, splits a range, or lets readers know of one that was split off.
func (l *logs) change() {
	if l.quiet {
		return
	}
	for range l.rnd.IntN(8) {
		r := l.ranges[l.rnd.IntN(len(l.ranges))]
		switch n := l.rnd.IntN(100); {
		case n == 0 && r.to-r.from > 1:
			at := r.from + 1 + l.rnd.IntN(r.to-r.from-1)
			l.ranges = append(l.ranges, &fakeRange{g: l.next, from: at, to: r.to, seq: r.seq, ms: r.ms})
			l.next++
			r.to = at
		case n < 20:
			l.shown = min(l.shown+1, len(l.ranges))
		default:
			l.write(r)
		}
	}
}

func (l *logs) write(r *fakeRange) {
	key := fmt.Sprint(r.from + l.rnd.IntN(r.to-r.from))
	r.seq += 1 + l.rnd.Uint64N(3)
	r.ms += l.rnd.Int64N(3)
	l.seqs[key]++
	row := &metapb.EventRow{Key: []byte(key), TimeMs: r.ms, Bucket: 1 + l.rnd.Uint64N(2), Etag: fmt.Sprint(l.seqs[key])}
	r.rows = append(r.rows, rangestate.EventItem{Seq: r.seq, Row: row})
}

func (l *logs) Read(_ context.Context, g cluster.GroupID, fn func(rangestate.Reader) error) error {
	l.change()
	i := slices.IndexFunc(l.ranges, func(r *fakeRange) bool { return r.g == g })
	if l.ranges[i].unreadable {
		return errs.New(errs.Unavailable, "", "", "no leader")
	}
	return fn(&fakeReader{r: l.ranges[i]})
}

type fakeReader struct {
	rangestate.Reader
	r *fakeRange
}

func (f *fakeReader) Events(q *rangestate.EventQuery) (page rangestate.EventPage, err error) {
	page.Next = q.After
	looked := 0
	for _, it := range f.r.rows {
		if it.Seq <= q.After || it.Seq <= f.r.trimmed {
			continue
		}
		if len(page.Items) == q.Limit || looked == q.LookMax && q.LookMax > 0 {
			page.More = true
			break
		}
		looked++
		page.Next = it.Seq
		if q.Bucket == 0 || uint64(q.Bucket) == it.Row.Bucket {
			page.Items = append(page.Items, it)
		}
	}
	return page, nil
}

func (f *fakeReader) EventState() (rangestate.EventState, error) {
	log := &metapb.EventLogRow{Trimmed: f.r.trimmed}
	if n := len(f.r.rows); n > 0 {
		log.Newest = f.r.rows[n-1].Seq
	}
	return rangestate.EventState{Log: log}, nil
}

// take is a fn for round that notes what comes.
func (l *logs) take(_ cluster.GroupID, it *rangestate.EventItem) error {
	var n int
	fmt.Sscan(it.Row.Etag, &n)
	l.seen[string(it.Row.Key)] = append(l.seen[string(it.Row.Key)], n)
	return nil
}

// whole checks that every event of each key came once and in order.
func (l *logs) whole(t *testing.T) {
	t.Helper()
	for key, n := range l.seqs {
		want := make([]int, n)
		for i := range want {
			want[i] = i + 1
		}
		if !slices.Equal(l.seen[key], want) {
			t.Errorf("key %s: came %v of %d", key, l.seen[key], n)
		}
	}
}

// TestMergeKeepsOrder reads while ranges split and grow between any two reads, also by a reader that begins anew from a position now and then.
func TestMergeKeepsOrder(t *testing.T) {
	ranges := 0
	for seed := range uint64(200) {
		l := newLogs(seed)
		stop := errors.New("stop")
		m := &eventMerge{meta: l, at: Position{}, limit: 1 + l.rnd.IntN(7)}
		for i := range 300 {
			_, err := m.round(t.Context(), func(g cluster.GroupID, it *rangestate.EventItem) error {
				if l.rnd.IntN(50) == 0 {
					return stop
				}
				return l.take(g, it)
			})
			if err != nil || l.rnd.IntN(20) == 0 {
				at, err := ParsePosition(m.at.String())
				if err != nil {
					t.Fatal(err)
				}
				m = &eventMerge{meta: l, at: at, limit: 1 + l.rnd.IntN(7)}
			}
			if i == 250 {
				l.quiet, l.shown = true, len(l.ranges)
			}
		}
		for n := 1; n > 0; {
			var err error
			if n, err = m.round(t.Context(), l.take); err != nil {
				t.Fatal(err)
			}
		}
		l.whole(t)
		ranges += len(l.ranges)
		if m.lost {
			t.Error("something was lost")
		}
		if t.Failed() {
			t.Fatal("seed", seed)
		}
	}
	if ranges < 2000 {
		t.Errorf("%d ranges in all: it says little", ranges)
	}
}

// TestMergeOldPage: what is left of a page says nothing of what came to its outbox since.
func TestMergeOldPage(t *testing.T) {
	event := func(key string, ms int64) *metapb.EventRow { return &metapb.EventRow{Key: []byte(key), TimeMs: ms} }
	other := &fakeRange{g: 3, rows: []rangestate.EventItem{{Seq: 1, Row: event("o", 1)}, {Seq: 2, Row: event("o", 20)}}}
	parent := &fakeRange{g: 2, rows: []rangestate.EventItem{{Seq: 1, Row: event("a", 10)}}}
	l := &logs{ranges: []*fakeRange{parent, other}, shown: 2, quiet: true}
	m := &eventMerge{meta: l, at: Position{}, limit: 1}
	var times []int64
	take := func(_ cluster.GroupID, it *rangestate.EventItem) error {
		times = append(times, it.Row.TimeMs)
		return nil
	}
	for round := 0; ; round++ {
		n, err := m.round(t.Context(), take)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		if round == 0 { // the parent's page is read and not taken
			parent.rows = append(parent.rows, rangestate.EventItem{Seq: 2, Row: event("k", 11)})
			l.ranges, l.shown = append(l.ranges, &fakeRange{g: 4, rows: []rangestate.EventItem{{Seq: 3, Row: event("k", 12)}}}), 3
		}
	}
	if want := []int64{1, 10, 11, 12, 20}; !slices.Equal(times, want) {
		t.Errorf("%v, want %v", times, want)
	}
}

// grown are outboxes that do not change any more.
func grown(seed uint64) *logs {
	l := newLogs(seed)
	for range 200 {
		l.change()
	}
	l.quiet, l.shown = true, len(l.ranges)
	return l
}

func drained(t *testing.T, m *eventMerge) (items []rangestate.EventItem) {
	t.Helper()
	for {
		n, err := m.round(t.Context(), func(_ cluster.GroupID, it *rangestate.EventItem) error { items = append(items, *it); return nil })
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return items
		}
	}
}

func TestMergeEndsAndFilters(t *testing.T) {
	l := grown(7)
	m := &eventMerge{meta: l, at: Position{}, limit: 3}
	ends, err := m.now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all := len(drained(t, &eventMerge{meta: l, at: Position{}}))
	l.quiet = false
	m.ends = ends
	if got := drained(t, m); len(got) != all {
		t.Errorf("%d events up to the end of then, not %d", len(got), all)
	}
	l.quiet = true
	ones := drained(t, &eventMerge{meta: l, at: Position{}, query: rangestate.EventQuery{Bucket: 1}})
	twos := drained(t, &eventMerge{meta: l, at: Position{}, query: rangestate.EventQuery{Bucket: 2}})
	if whole := drained(t, &eventMerge{meta: l, at: Position{}}); len(ones)+len(twos) != len(whole) || len(ones) == 0 || len(twos) == 0 {
		t.Errorf("%d and %d of %d", len(ones), len(twos), len(whole))
	}
	l.ranges[0].unreadable = true
	if _, err := (&eventMerge{meta: l, at: Position{}}).round(t.Context(), l.take); !errs.Is(err, errs.Unavailable) {
		t.Error("a range that cannot be read was left out:", err)
	}
}

func TestMergeTellsWhatIsLost(t *testing.T) {
	l := grown(9)
	r := l.ranges[0]
	keep := r.rows[len(r.rows)/2].Seq
	read := func(at uint64) bool {
		m := &eventMerge{meta: l, at: Position{}}
		for _, o := range l.ranges {
			m.at[o.g] = 0
		}
		m.at[r.g] = at
		drained(t, m)
		return m.lost
	}
	if read(0) {
		t.Error("nothing was trimmed")
	}
	r.trimmed = keep
	if !read(keep-1) || !read(0) {
		t.Error("not told of what was trimmed")
	}
	if read(keep) {
		t.Error("all behind the position is there")
	}
	begun := &eventMerge{meta: l}
	if err := begun.begin(t.Context(), func(_ rangestate.Reader, st *rangestate.EventState) (uint64, error) { return st.Log.Trimmed, nil }); err != nil {
		t.Fatal(err)
	}
	if drained(t, begun); begun.lost {
		t.Error("the oldest there is was asked for")
	}
}

// TestBefore: a time is found in an outbox.
func TestBefore(t *testing.T) {
	l := grown(11)
	for _, r := range l.ranges {
		if len(r.rows) > 4 {
			r.trimmed = r.rows[1].Seq
		}
		f := &fakeReader{r: r}
		st, _ := f.EventState()
		for ms := int64(0); ms <= r.ms+1; ms++ {
			at, err := before(f, &st, ms)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range r.rows {
				if it.Seq > r.trimmed && (it.Row.TimeMs < ms) != (it.Seq <= at) {
					t.Fatalf("range %d: time %d is behind %d, but event %d is of %d", r.g, ms, at, it.Seq, it.Row.TimeMs)
				}
			}
		}
	}
}
