package vfsx

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// CrashClone is a file system as this one could be found after a power cut at
// this moment; m itself goes on unharmed. What was synced is there. Of what was
// not, an arbitrary part is, chosen by seed: each 4 KiB block is new, old or a mix
// of old and new sectors of 512 bytes, each file's length is old, new or between,
// and of a directory's changes any subset happened. Of five seeds one loses all
// that was not synced and one keeps all of it. The same seed on the same history
// gives the same clone. The clone has no faults, no locks and no open files.
func (m *Mem) CrashClone(seed uint64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := cloner{
		rng:   rand.New(rand.NewPCG(seed, 0x6361_6972_6e)),
		nodes: map[*node]*node{},
		to:    &Mem{locked: map[string]bool{}, capacity: m.capacity, lastInode: m.lastInode},
	}
	c.percent = 25 * c.rng.IntN(5)
	c.to.root = c.clone(m.root)
	c.to.root.links = 1
	return c.to
}

type cloner struct {
	rng     *rand.Rand
	percent int // chance of each unsynced piece to be there
	nodes   map[*node]*node
	to      *Mem
}

func (c *cloner) keep() bool { return c.rng.IntN(100) < c.percent }

// clone copies n once, however many names lead to it.
func (c *cloner) clone(n *node) *node {
	if o := c.nodes[n]; o != nil {
		return o
	}
	o := &node{inode: n.inode, isDir: n.isDir, modTime: n.modTime}
	c.nodes[n] = o
	if n.isDir {
		c.dir(n, o)
	} else {
		c.file(n, o)
	}
	return o
}

func (c *cloner) dir(n, o *node) {
	children := maps.Clone(n.syncedChildren)
	for _, op := range n.unsynced {
		if !c.keep() {
			continue
		}
		delete(children, op.remove)
		if op.add != "" {
			children[op.add] = op.node
		}
	}
	o.children = make(map[string]*node, len(children))
	for _, name := range slices.Sorted(maps.Keys(children)) {
		child := c.clone(children[name])
		child.links++
		o.children[name] = child
	}
	o.syncedChildren = maps.Clone(o.children)
}

func (c *cloner) file(n, o *node) {
	o.dirty = map[int]struct{}{}
	o.size = n.syncedSize
	if grown := n.size - n.syncedSize; grown > 0 && c.percent > 0 {
		switch {
		case c.percent == 100 || c.rng.IntN(3) == 0:
			o.size = n.size
		case c.rng.IntN(2) == 0:
			o.size += c.rng.Int64N(grown)
		}
	}
	o.syncedSize = o.size
	o.pages = make([]*page, (o.size+pageBytes-1)/pageBytes)
	for i := range o.pages {
		o.pages[i] = c.page(n, i)
		if o.pages[i] != nil {
			c.to.used += pageBytes
		}
	}
	if in := o.size % pageBytes; in != 0 {
		if last := &o.pages[len(o.pages)-1]; *last != nil {
			cut := **last
			clear(cut[in:])
			*last = &cut
		}
	}
	o.synced = slices.Clone(o.pages)
}

// page is page i as the disk may have it. A page shared with n is immutable.
func (c *cloner) page(n *node, i int) *page {
	var was, now *page
	if i < len(n.synced) {
		was = n.synced[i]
	}
	if i < len(n.pages) {
		now = n.pages[i]
	}
	if was == now || !c.keep() {
		return was
	}
	if now == nil {
		return nil
	}
	p := *now
	if c.percent < 100 && c.rng.IntN(8) == 0 {
		for sector := 0; sector < pageBytes; sector += 512 {
			if c.rng.IntN(2) == 0 {
				continue
			}
			clear(p[sector : sector+512])
			if was != nil {
				copy(p[sector:sector+512], was[sector:])
			}
		}
	}
	return &p
}
