package lifecycle

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
)

// Status is what the worker did since the start and what it knows to be due. It is of the ranges led on this node.
type Status struct {
	Rounds       int64 // that are over
	Expired      int64 // current versions
	Removed      int64 // noncurrent versions and delete markers
	Aborted      int64 // uploads
	Transitioned int64 // versions
	Retiered     int64 // versions of INTELLIGENT_TIERING, to another tier
	MovedBytes   int64 // written in another class for both
	Began        time.Time
	Ended        time.Time // of the latest round that is over; zero: none
	Rows         int64     // seen in it
	Took         time.Duration
	Running      bool
	Rules        []RuleStatus // those that have done something or have something due, by bucket and rule
	LastErr      string       // of the latest failure; empty once a round ended without one
	ErrSince     time.Time
}

// RuleStatus is what one rule did and has to do.
type RuleStatus struct {
	Bucket  string
	Rule    string
	Done    int64     // actions since the start
	Due     int64     // actions known to be due and not done
	Oldest  time.Time // since when the first of them is due; zero if there is none
	Waiting string    // why transitions of it wait, for people
}

// Lag is how late the rule is.
func (r *RuleStatus) Lag(now time.Time) time.Duration {
	if r.Due == 0 {
		return 0
	}
	return max(0, now.Sub(r.Oldest))
}

type ruleID struct{ bucket, rule string }

// tally is some actions that are due.
type tally struct {
	n        int64
	oldestMS int64
}

func (t *tally) add(dueMS int64) {
	if t.n == 0 || dueMS < t.oldestMS {
		t.oldestMS = dueMS
	}
	t.n++
}

// ruleState is a rule's numbers. What is due is counted anew by each walk over
// the bucket; until the walk is over the count of the one before stands beside it.
type ruleState struct {
	done    int64
	now     tally
	before  tally
	failing tally // of the page that cannot be ended now
	waiting string
}

func (r *ruleState) due() (out tally) {
	for _, t := range []tally{r.now, r.before, r.failing} {
		if t.n > 0 && (out.n == 0 || t.oldestMS < out.oldestMS) {
			out.oldestMS = t.oldestMS
		}
		out.n = max(out.n, t.n)
	}
	return out
}

// board is the status. Safe for concurrent use.
type board struct {
	max int
	mu  sync.Mutex
	Status
	rules  map[ruleID]*ruleState
	unread bool // the rules could not be read the last time
}

func (b *board) init(max int) { b.max, b.rules = max, map[ruleID]*ruleState{} }

// Status of the worker now.
func (w *Worker) Status() Status {
	b := &w.status
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.Status
	s.Rules = nil
	for id, r := range b.rules {
		due := r.due()
		row := RuleStatus{Bucket: id.bucket, Rule: id.rule, Done: r.done, Due: due.n, Waiting: r.waiting}
		if due.n > 0 {
			row.Oldest = time.UnixMilli(due.oldestMS).UTC()
		}
		s.Rules = append(s.Rules, row)
	}
	slices.SortFunc(s.Rules, func(a, b RuleStatus) int { return cmp.Or(cmp.Compare(a.Bucket, b.Bucket), cmp.Compare(a.Rule, b.Rule)) })
	return s
}

func (b *board) left() (n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.rules {
		n += r.due().n
	}
	return n
}

// rule is a rule's state. When there are more rules than are told of, those of a bucket share one under no name.
func (b *board) rule(bucket, rule string) *ruleState {
	id := ruleID{bucket, rule}
	if b.rules[id] == nil && len(b.rules) >= b.max {
		id = ruleID{}
	}
	if b.rules[id] == nil {
		b.rules[id] = &ruleState{}
	}
	return b.rules[id]
}

// ofBucket calls fn with every rule of a bucket.
func (b *board) ofBucket(bucket string, fn func(ruleID, *ruleState)) {
	for id, r := range b.rules {
		if id.bucket == bucket || id.bucket == "" {
			fn(id, r)
		}
	}
}

// looking is called when a walk over a bucket is to begin, looked when it is over.
func (b *board) looking(bucket string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ofBucket(bucket, func(_ ruleID, r *ruleState) {
		if r.now.n > 0 {
			r.before, r.now = r.now, tally{}
		}
	})
}

func (b *board) looked(bucket string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ofBucket(bucket, func(_ ruleID, r *ruleState) {
		r.before = tally{}
		if r.now.n == 0 {
			r.waiting = ""
		}
	})
}

// forget drops what was due by rules that are others by now; of rules that are gone also what they did.
func (b *board) forget(bucket string, now *bucket) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ofBucket(bucket, func(id ruleID, r *ruleState) {
		*r = ruleState{done: r.done}
		if id.bucket == "" || now != nil && now.Tiered && id.rule == rules.TieringRule || now != nil && slices.ContainsFunc(now.Rules.GetRules(), func(x *metapb.LifecycleRule) bool { return x.Id == id.rule }) {
			return
		}
		delete(b.rules, id)
	})
}

// began and ended are called with the rounds.
func (b *board) began(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Began, b.Running = now, true
}

func (b *board) ended(r *round) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.Rounds++
	b.Rows, b.Took, b.Running = r.rows, time.Since(r.began), false
	b.Ended = b.Began.Add(b.Took)
	if !r.failed {
		b.LastErr, b.ErrSince = "", time.Time{}
	}
}

// planned notes how the rules were read.
func (b *board) planned(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case err != nil:
		b.troubleLocked("the rules", err)
	case b.unread:
		b.LastErr, b.ErrSince = "", time.Time{}
	}
	b.unread = err != nil
}

// trouble notes a failure.
func (b *board) trouble(what string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.troubleLocked(what, err)
}

func (b *board) troubleLocked(what string, err error) {
	if b.LastErr == "" {
		b.ErrSince = time.Now()
	}
	b.LastErr = what + ": " + err.Error()
}

// did counts an action that is done; bytes were written for it.
func (b *board) did(bk *bucket, a rules.Action, bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rule(bk.Name, a.Rule).done++
	switch a.What {
	case rules.Expire:
		b.Expired++
	case rules.RemoveNoncurrent, rules.RemoveMarker:
		b.Removed++
	case rules.Abort:
		b.Aborted++
	case rules.Transition:
		b.Transitioned++
		b.MovedBytes += bytes
	case rules.Retier:
		b.Retiered++
		b.MovedBytes += bytes
	}
}

// page counts what is due on a page whose ends were tried, and not done.
func (b *board) page(p *page) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ofBucket(p.bucket.Name, func(_ ruleID, r *ruleState) { r.failing = tally{} })
	for _, d := range p.due {
		if !d.done {
			b.rule(p.bucket.Name, d.action.Rule).now.add(p.since(d.action))
		}
	}
	for _, m := range p.moves {
		b.rule(p.bucket.Name, m.action.Rule).now.add(p.since(m.action))
	}
}

// failing counts what is due on a page whose ends could not be tried.
func (b *board) failing(p *page, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.troubleLocked(p.bucket.Name, err)
	b.ofBucket(p.bucket.Name, func(_ ruleID, r *ruleState) { r.failing = tally{} })
	for _, d := range p.due {
		if !d.done {
			b.rule(p.bucket.Name, d.action.Rule).failing.add(p.since(d.action))
		}
	}
}

// since is when an action became due, by rules that were there then.
func (p *page) since(a rules.Action) int64 { return max(a.DueMS, p.bucket.since) }

// settled takes off a move that is done or not due any more.
func (b *board) settled(bk *bucket, a rules.Action) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := b.rule(bk.Name, a.Rule)
	r.now.n = max(0, r.now.n-1)
	r.before.n = max(0, r.before.n-1)
	if r.now.n == 0 {
		r.waiting = ""
	}
}

// waits notes why a rule's moves wait.
func (b *board) waits(bk *bucket, a rules.Action, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rule(bk.Name, a.Rule).waiting = err.Error()
	b.troubleLocked(bk.Name, err)
}
