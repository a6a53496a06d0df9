package garbage

import (
	"slices"
	"sync"
	"time"

	"cairn/proto/metapb"
	"cairn/storage"
)

// Blocked is a placement group with drives that did not acknowledge a removal.
type Blocked struct {
	PG    storage.PGID
	Since time.Time
	Until time.Time // of the next try
	Err   string    // what the last try said, if anything
}

// blocks are the back-offs of placement groups. Safe for concurrent use.
type blocks struct {
	min, max time.Duration
	mu       sync.Mutex
	m        map[storage.PGID]*block
	gen      uint64 // counts calls of expire
}

type block struct {
	since, until time.Time
	delay        time.Duration
	err          error
}

// block notes that a group did not acknowledge; it reports whether that is new.
func (b *blocks) block(pg storage.PGID, err error) (fresh bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	x := b.m[pg]
	if x == nil {
		x = &block{since: now}
		b.m[pg] = x
		fresh = true
	}
	x.delay = min(max(2*x.delay, b.min), b.max)
	x.until, x.err = now.Add(x.delay), err
	return fresh
}

func (b *blocks) clear(pg storage.PGID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.m, pg)
}

// expire lets every group be tried at once.
func (b *blocks) expire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.m {
		x.until, x.delay = time.Time{}, 0
	}
	b.gen++
}

// generation counts the calls of expire.
func (b *blocks) generation() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gen
}

// anyOf reports whether a chunk lies in a group that is to be left alone now.
func (b *blocks) anyOf(refs []*metapb.ChunkRef) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.m) == 0 {
		return false
	}
	now := time.Now()
	for _, ref := range refs {
		if x := b.m[storage.PGID(ref.Pg)]; x != nil && now.Before(x.until) {
			return true
		}
	}
	return false
}

// earliest is when the first group may be tried again; far away if there is none.
func (b *blocks) earliest() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := time.Now().Add(b.max)
	for _, x := range b.m {
		if x.until.Before(at) {
			at = x.until
		}
	}
	return at
}

func (b *blocks) list() (out []Blocked) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for pg, x := range b.m {
		e := Blocked{PG: pg, Since: x.since, Until: x.until}
		if x.err != nil {
			e.Err = x.err.Error()
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b Blocked) int { return int(a.PG) - int(b.PG) })
	return out
}
