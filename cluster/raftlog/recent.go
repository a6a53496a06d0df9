package raftlog

import (
	"container/list"
	"sync"

	"github.com/hashicorp/raft"
)

// logBytes is what an entry in memory costs besides its data, about.
const logBytes = 128

// recents bounds what all views of a store keep in memory. The view that stored nothing for the longest is emptied first: raft
// reads what was stored just now, to send it on and to apply it.
type recents struct {
	max   int
	mu    sync.Mutex // taken with a view's lock held, never the other way round
	bytes int
	order list.List // of *View, the one that stored last in front
}

// noteLocked follows what a view keeps; its lock is held.
func (c *recents) noteLocked(v *View) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.bytes += v.mu.bytes - v.mu.counted
	v.mu.counted = v.mu.bytes
	switch {
	case v.mu.bytes == 0 && v.mu.place != nil:
		c.order.Remove(v.mu.place)
		v.mu.place = nil
	case v.mu.bytes == 0:
	case v.mu.place == nil:
		v.mu.place = c.order.PushFront(v)
	default:
		c.order.MoveToFront(v.mu.place)
	}
}

// trim empties views until what is left is within bounds. No view's lock is held.
func (c *recents) trim() {
	for {
		c.mu.Lock()
		e := c.order.Back()
		over := c.bytes > c.max && e != nil && e != c.order.Front()
		var v *View
		if over {
			v = e.Value.(*View)
		}
		c.mu.Unlock()
		if !over {
			return
		}
		v.forget()
	}
}

// forget drops what the view keeps in memory. It can all be read from the store.
func (v *View) forget() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.ring, v.mu.low, v.mu.bytes = nil, 0, 0
	v.s.recent.noteLocked(v)
}

// recentLocked is an entry that may be in memory.
func (v *View) recentLocked(index uint64) *raft.Log {
	if v.mu.ring == nil {
		return nil
	}
	if l := v.mu.ring[index%ringEntries]; l != nil && l.Index == index {
		return l
	}
	return nil
}

func (v *View) cacheLocked(l *raft.Log) {
	if v.mu.ring == nil {
		v.mu.ring = make([]*raft.Log, ringEntries)
	}
	slot := &v.mu.ring[l.Index%ringEntries]
	if *slot != nil {
		v.mu.bytes -= logBytes + len((*slot).Data)
	}
	*slot = l
	v.mu.bytes += logBytes + len(l.Data)
	if l.Index >= v.mu.low+ringEntries || v.mu.low == 0 || l.Index < v.mu.low {
		v.mu.low = max(1, l.Index-min(l.Index, ringEntries-1))
	}
	for ; v.mu.bytes > ringBytesMax && v.mu.low < l.Index; v.mu.low++ {
		if s := &v.mu.ring[v.mu.low%ringEntries]; *s != nil && (*s).Index != l.Index {
			v.mu.bytes -= logBytes + len((*s).Data)
			*s = nil
		}
	}
}

func (v *View) uncacheLocked(min, max uint64) {
	for i, c := range v.mu.ring {
		if c != nil && c.Index >= min && c.Index <= max {
			v.mu.bytes -= logBytes + len(c.Data)
			v.mu.ring[i] = nil
		}
	}
	if v.mu.bytes == 0 {
		v.mu.ring = nil
	}
}
