package chunkio

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"cairn/storage/errs"
)

// buffers hands out memory from two budgets, one for what comes in and one for
// what goes out, so that slow downloads cannot stop uploads, and keeps what
// comes back for the next: touching fresh memory is dear.
type buffers struct {
	wait time.Duration // how long get waits for others to give back
	mu   struct {
		sync.Mutex
		lanes     [2]lane
		free      [sizes][]*buffer
		freeBytes int64
		freeLow   int64 // the least freeBytes since the last trim: so much was not needed
	}
	freeMax int64
}

// lane is one budget.
type lane struct {
	used, max int64
	queue     []*waiter // first come, first served
}

const waitersMax = 4096

type waiter struct {
	n     int64
	ready chan struct{} // closed when n bytes are the waiter's
}

type direction int

const (
	inbound  direction = 0 // writes
	outbound direction = 1 // reads
)

// buffer is memory with a reference count; the last release gives it back.
type buffer struct {
	b    []byte // as long as asked for; its capacity is what counts against the budget
	pool *buffers
	lane direction
	refs atomic.Int32
}

func newBuffers(max int64, wait time.Duration) *buffers {
	p := &buffers{wait: wait, freeMax: max / 4 * 3}
	p.mu.lanes[inbound].max = max / 2
	p.mu.lanes[outbound].max = max / 2
	return p
}

// get waits until n bytes are free in the budget. A request larger than the
// budget gets it when nobody else uses any. Busy when ctx ends or the wait is too long.
func (p *buffers) get(ctx context.Context, d direction, n int) (*buffer, error) {
	if b := p.tryGet(d, n); b != nil {
		return b, nil
	}
	size := int64(sizeFor(n))
	w := &waiter{n: size, ready: make(chan struct{})}
	p.mu.Lock()
	if len(p.mu.lanes[d].queue) >= waitersMax {
		p.mu.Unlock()
		return nil, errs.New(errs.Busy, "chunkio", "", "too many requests wait for buffers")
	}
	p.mu.lanes[d].queue = append(p.mu.lanes[d].queue, w)
	p.grantLocked(d)
	p.mu.Unlock()
	timer := time.NewTimer(p.wait)
	defer timer.Stop()
	var why error
	select {
	case <-w.ready:
		return p.take(d, n), nil
	case <-ctx.Done():
		why = ctx.Err()
	case <-timer.C:
	}
	p.cancel(d, w)
	return nil, &errs.Error{Kind: errs.Busy, Op: "chunkio", Detail: "all buffers are in use", Err: why}
}

// cancel takes a waiter out of the queue, or gives back what it was just granted.
func (p *buffers) cancel(d direction, w *waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := &p.mu.lanes[d]
	for i, q := range l.queue {
		if q == w {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			p.grantLocked(d)
			return
		}
	}
	l.used -= w.n
	p.grantLocked(d)
}

// tryGet is get without waiting: nil if the budget is used up or others wait for it.
func (p *buffers) tryGet(d direction, n int) *buffer {
	size := int64(sizeFor(n))
	p.mu.Lock()
	l := &p.mu.lanes[d]
	if len(l.queue) > 0 || !l.fits(size) {
		p.mu.Unlock()
		return nil
	}
	l.used += size
	p.mu.Unlock()
	return p.take(d, n)
}

// force gets n bytes even past the budget: for who holds buffers already and
// would deadlock with others of its kind if it waited. What it takes is counted,
// so new requests wait for it. Each caller says what bounds it.
func (p *buffers) force(d direction, n int) *buffer {
	p.mu.Lock()
	p.mu.lanes[d].used += int64(sizeFor(n))
	p.mu.Unlock()
	return p.take(d, n)
}

// take finds or makes the memory for bytes that the budget has granted.
func (p *buffers) take(d direction, n int) *buffer {
	size := sizeFor(n)
	b := p.reuse(sizeClass(n))
	if b == nil {
		b = &buffer{b: make([]byte, size), pool: p}
	} else if extra := int64(cap(b.b) - size); extra > 0 {
		p.mu.Lock()
		p.mu.lanes[d].used += extra // a larger one was lying about
		p.mu.Unlock()
	}
	b.b, b.lane = b.b[:n], d
	b.refs.Store(1)
	return b
}

// reuse takes a free buffer of the class or a slightly larger one.
func (p *buffers) reuse(class int) *buffer {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := class; c < min(class+3, sizes); c++ {
		if last := len(p.mu.free[c]) - 1; last >= 0 {
			b := p.mu.free[c][last]
			p.mu.free[c][last] = nil
			p.mu.free[c] = p.mu.free[c][:last]
			p.mu.freeBytes -= int64(cap(b.b))
			p.mu.freeLow = min(p.mu.freeLow, p.mu.freeBytes)
			return b
		}
	}
	return nil
}

// trim lets go of memory that lay unused since the last call.
func (p *buffers) trim() {
	p.mu.Lock()
	defer p.mu.Unlock()
	drop := p.mu.freeLow
	for c := sizes - 1; c >= 0 && drop > 0; c-- {
		for last := len(p.mu.free[c]) - 1; last >= 0 && drop > 0; last-- {
			n := int64(cap(p.mu.free[c][last].b))
			drop -= n
			p.mu.freeBytes -= n
			p.mu.free[c][last] = nil
			p.mu.free[c] = p.mu.free[c][:last]
		}
	}
	p.mu.freeLow = p.mu.freeBytes
}

func (b *buffer) retain() { b.refs.Add(1) }

// release gives up one reference. Whoever releases must not touch the memory again.
func (b *buffer) release() {
	switch refs := b.refs.Add(-1); {
	case refs > 0:
		return
	case refs < 0:
		panic("chunkio: buffer released twice")
	}
	p, size := b.pool, int64(cap(b.b))
	p.mu.Lock()
	p.mu.lanes[b.lane].used -= size
	if class := sizeClass(cap(b.b)); class < sizes && p.mu.freeBytes+size <= p.freeMax {
		p.mu.free[class] = append(p.mu.free[class], b)
		p.mu.freeBytes += size
	}
	p.grantLocked(b.lane)
	p.mu.Unlock()
}

func (p *buffers) grantLocked(d direction) {
	l := &p.mu.lanes[d]
	for len(l.queue) > 0 && l.fits(l.queue[0].n) {
		l.used += l.queue[0].n
		close(l.queue[0].ready)
		l.queue = l.queue[1:]
	}
}

func (l *lane) fits(n int64) bool { return l.used+n <= l.max || l.used == 0 }

// inUse is the bytes handed out.
func (p *buffers) inUse() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.lanes[inbound].used + p.mu.lanes[outbound].used
}

// Buffers come in sizes of 4 KiB and up, eight between a power of two and the next, so that at
// most an eighth is wasted.
const (
	smallest = 12 // log2
	largest  = 25 // log2; what is larger is not kept
	sizes    = 1 + 8*(largest-smallest)
)

func sizeFor(n int) int {
	if n <= 1<<smallest {
		return 1 << smallest
	}
	step := 1 << (bits.Len(uint(n-1)) - 4)
	return (n + step - 1) / step * step
}

// sizeClass is the index of sizeFor(n); sizes or more for what is not kept.
func sizeClass(n int) int {
	if n <= 1<<smallest {
		return 0
	}
	log := bits.Len(uint(n - 1))
	step := 1 << (log - 4)
	return 1 + 8*(log-1-smallest) + (n+step-1)/step - 9
}
