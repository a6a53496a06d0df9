package multiraft

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
)

// nudged makes a configuration change's future one that writes barriers behind the change while that takes long, one
// after the other. raft 1.8.0 wakes the senders of the entry that makes a replica a voter before it counts it as one: if
// the replica acknowledges the entry in between, that vote is dropped, and only an acknowledgement of a later entry is
// counted again. Where its vote is needed and nothing else is written, the change would wait for ever.
func (r *replica) nudged(start func() raft.Future) func() raft.Future {
	return func() raft.Future { return nudgedFuture{start(), r} }
}

type nudgedFuture struct {
	raft.Future
	r *replica
}

// Error waits for the change's fate. A change that nobody waits for any more is still waited for here: it holds up the next one.
func (f nudgedFuture) Error() error {
	settled := make(chan struct{})
	defer close(settled)
	go f.r.nudge(settled)
	return f.Future.Error()
}

// nudge ends when settled is closed, or with the replica.
func (r *replica) nudge(settled <-chan struct{}) {
	timer := time.NewTimer(r.h.cfg.HeartbeatTimeout)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-settled:
			return
		case <-r.cutCh:
			return
		}
		// One that went ahead of the change does not help; behind it, one is enough. Errors end with the change.
		_ = r.ask(r.ctx, "multiraft.barrier", func() raft.Future { return r.raft.Barrier(0) })
		timer.Reset(r.h.cfg.HeartbeatTimeout)
	}
}

// copyStall is how long the making of a replica may go without anything new reaching it.
const copyStall = 30 * time.Second

// copying is how far the sending of snapshots to a peer is.
type copying struct {
	bytes atomic.Uint64 // sent, in all
	whole atomic.Int32  // streams that are sent to their end and not answered: the peer is installing one
}

func (r *replica) copyingTo(id cluster.ReplicaID) *copying {
	v, ok := r.copies.Load(id)
	if !ok {
		v, _ = r.copies.LoadOrStore(id, &copying{})
	}
	return v.(*copying)
}

// counted counts what a Transport reads of a snapshot.
type counted struct {
	io.Reader
	c     *copying
	state atomic.Int32 // 1: read to its end, or to an error; 2: answered
}

func (s *counted) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	s.c.bytes.Add(uint64(n))
	if err != nil && s.state.CompareAndSwap(0, 1) {
		s.c.whole.Add(1)
	}
	return n, err
}

// sendCounted is send with a count of what it reads of data. send sends a snapshot to a peer and waits for the answer.
func (r *replica) sendCounted(id cluster.ReplicaID, data io.Reader, send func(io.Reader) error) error {
	s := &counted{Reader: data, c: r.copyingTo(id)}
	err := send(s)
	if s.state.Swap(2) == 1 {
		s.c.whole.Add(-1)
	}
	r.copies.CompareAndDelete(id, s.c)
	return err
}

// watchCopy answers a context that ends once nothing has reached a peer for copyStall that it did not have; stop must be
// called, and answers whether it did so. How long a peer takes to install what it was sent is its own affair: a
// drive that hangs over it fails by itself.
func (r *replica) watchCopy(ctx context.Context, id cluster.ReplicaID) (_ context.Context, stop func() bool) {
	ctx, cancel := context.WithCancel(ctx)
	var stalled atomic.Bool
	far := func() uint64 {
		n := r.copyingTo(id).bytes.Load()
		if v, ok := r.peers.Load(id); ok {
			n += v.(interface{ Load() uint64 }).Load()
		}
		return n
	}
	go func() { // ends with ctx
		defer r.copies.Delete(id)
		tick := time.NewTicker(copyStall / 10)
		defer tick.Stop()
		last, moved := far(), time.Now()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
			if now := far(); now != last || r.copyingTo(id).whole.Load() > 0 {
				last, moved = now, time.Now()
			} else if time.Since(moved) >= copyStall {
				stalled.Store(true)
				cancel()
				return
			}
		}
	}()
	return ctx, func() bool {
		cancel()
		return stalled.Load()
	}
}
