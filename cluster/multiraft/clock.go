package multiraft

import (
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// clockFresh is how long a comparison with another node's clock counts.
const clockFresh = time.Minute

// clocks are the wall clocks of other nodes, against this one's.
type clocks struct {
	off atomic.Bool // most of them disagree with this one
	mu  struct {
		sync.Mutex
		nodes map[cluster.NodeID]clockSample
		tried time.Time // to hand leadership over
	}
}

type clockSample struct {
	offset time.Duration // theirs minus ours
	at     time.Time
}

// NoteClock is told by how much the wall clock of another node is ahead of this one's (negative: behind), as measured by
// a question and its answer; what is in doubt by more than a second should not be noted. While more than half
// of the nodes heard of in the last minute, itself included, differ by over ClockOffsetMax, this one takes
// no proposals, asks for no votes and hands over what it leads (design rule 7).
func (h *Host) NoteClock(node cluster.NodeID, offset time.Duration) {
	c := &h.clocks
	now := time.Now()
	c.mu.Lock()
	if c.mu.nodes == nil {
		c.mu.nodes = map[cluster.NodeID]clockSample{}
	}
	c.mu.nodes[node] = clockSample{offset, now}
	off := c.judgeLocked(now, h.cfg.ClockOffsetMax)
	was := c.off.Swap(off)
	move := off && now.Sub(c.mu.tried) >= time.Second
	if move {
		c.mu.tried = now
	}
	c.mu.Unlock()
	if off != was {
		if off {
			h.cfg.Logger.Error("this node's clock differs from most others': it leads no group until that is mended; check NTP", "node", node, "offset", offset)
		} else {
			h.cfg.Logger.Info("this node's clock agrees with the others again")
		}
	}
	if move && !h.closed.Load() {
		h.replicas.Range(func(_, v any) bool {
			if r := v.(*replica); r.raft.State() == raft.Leader {
				r.spawn(r.moveAway)
			}
			return true
		})
	}
}

// judgeLocked forgets what is old and reports whether most nodes disagree with this one.
func (c *clocks) judgeLocked(now time.Time, limit time.Duration) bool {
	differ := 0
	for n, s := range c.mu.nodes {
		switch {
		case now.Sub(s.at) > clockFresh:
			delete(c.mu.nodes, n)
		case s.offset.Abs() > limit:
			differ++
		}
	}
	return 2*differ > len(c.mu.nodes)+1
}

// ClockOffsets are the other nodes' wall clocks minus this one's, as heard in the last minute, and whether this node's
// is the one that is wrong. A node hears from those to which it sends Raft messages.
func (h *Host) ClockOffsets() (offsets map[cluster.NodeID]time.Duration, off bool) {
	c := &h.clocks
	c.mu.Lock()
	defer c.mu.Unlock()
	off = c.judgeLocked(time.Now(), h.cfg.ClockOffsetMax)
	c.off.Store(off)
	offsets = map[cluster.NodeID]time.Duration{}
	for n, s := range maps.All(c.mu.nodes) {
		offsets[n] = s.offset
	}
	return offsets, off
}

// clockErr is why this node must not lead nor stamp, or nil.
func (h *Host) clockErr(op string) error {
	if !h.clocks.off.Load() {
		return nil
	}
	offsets, off := h.ClockOffsets()
	if !off {
		return nil
	}
	return errs.New(errs.NotLeader, op, "", fmt.Sprintf("this node's clock differs from most others': it leads nothing until that is mended; check NTP (others against this one: %v)", offsets))
}
