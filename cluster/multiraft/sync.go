package multiraft

import (
	"math"
	"sync"
	"sync/atomic"
)

// broadcast wakes everyone who waits. The zero value is ready.
type broadcast struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that the next signal closes. Take it before looking at what is waited for.
func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch == nil {
		b.ch = make(chan struct{})
	}
	return b.ch
}

func (b *broadcast) signal() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ch != nil {
		close(b.ch)
		b.ch = nil
	}
}

// lock is a mutex to be held over waits and waited for along with other channels: who puts something in holds it. Its capacity is 1.
type lock chan struct{}

func (l lock) Lock()   { l <- struct{}{} }
func (l lock) Unlock() { <-l }

// gate counts those inside and can be shut for good. It is a few nanoseconds to pass.
type gate struct {
	n       atomic.Int64
	drained chan struct{}
	once    sync.Once
}

func newGate() *gate { return &gate{drained: make(chan struct{})} }

const gateShut = math.MinInt64 / 2

// enter reports whether the gate is open; if so, leave must be called.
func (g *gate) enter() bool {
	if g.n.Add(1) > 0 {
		return true
	}
	g.leave()
	return false
}

func (g *gate) leave() {
	if g.n.Add(-1) == gateShut {
		g.once.Do(func() { close(g.drained) })
	}
}

// shut refuses newcomers from now on; the channel is closed when the last one has left. Call it once.
func (g *gate) shut() <-chan struct{} {
	if g.n.Add(gateShut) == gateShut {
		g.once.Do(func() { close(g.drained) })
	}
	return g.drained
}
