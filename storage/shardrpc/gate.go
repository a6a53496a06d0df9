package shardrpc

import (
	"context"
	"sync"

	"cairn/storage/errs"
)

// gate bounds calls and bytes under way. Who waits is served first come, first
// served. A call larger than the bound enters when nobody else is inside.
type gate struct {
	callsMax int
	bytesMax int64

	mu      sync.Mutex
	calls   int
	bytes   int64
	waiting []*gateWaiter
}

type gateWaiter struct {
	n     int64
	ready chan struct{} // closed when the waiter is inside
}

// waitersMax bounds who waits at a gate; more are Busy.
const waitersMax = 1024

func (g *gate) fitsLocked(n int64) bool {
	return g.calls == 0 || g.calls < g.callsMax && g.bytes+n <= g.bytesMax
}

// try enters if there is room now and nobody waits for it.
func (g *gate) try(n int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.waiting) > 0 || !g.fitsLocked(n) {
		return false
	}
	g.calls++
	g.bytes += n
	return true
}

// enter waits for room until ctx ends: Timeout, or Busy at once if too many wait.
func (g *gate) enter(ctx context.Context, n int64) error {
	if g.try(n) {
		return nil
	}
	w := &gateWaiter{n: n, ready: make(chan struct{})}
	g.mu.Lock()
	if len(g.waiting) >= waitersMax {
		g.mu.Unlock()
		return busy()
	}
	g.waiting = append(g.waiting, w)
	g.admitLocked()
	g.mu.Unlock()
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, q := range g.waiting {
		if q == w {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			g.admitLocked() // a smaller one behind it may fit
			return ended(ctx)
		}
	}
	g.leaveLocked(n)
	return ended(ctx)
}

func (g *gate) admitLocked() {
	for len(g.waiting) > 0 && g.fitsLocked(g.waiting[0].n) {
		w := g.waiting[0]
		g.waiting[0] = nil
		g.waiting = g.waiting[1:]
		g.calls++
		g.bytes += w.n
		close(w.ready)
	}
}

func (g *gate) leave(n int64) {
	g.mu.Lock()
	g.leaveLocked(n)
	g.mu.Unlock()
}

func (g *gate) leaveLocked(n int64) {
	g.calls--
	g.bytes -= n
	g.admitLocked()
}

// inside is the calls and bytes under way.
func (g *gate) inside() (calls int, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calls, g.bytes
}

func busy() error {
	return errs.New(errs.Busy, "shardrpc", "", "too much is under way to the drive or its node")
}

// ended is the error of a call whose ctx ended.
func ended(ctx context.Context) error {
	return errs.Wrap(errs.Timeout, "shardrpc", "", ctx.Err())
}
