package chunkio

import (
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/storage"
	"cairn/storage/errs"
)

// view is a topology prepared for the data path. Immutable but for what it computes once when asked.
type view struct {
	plane    *Plane
	topology *cluster.Topology
	groups   map[storage.PGID]*group
	choices  [len(classes)][2]choice
}

// classes are the storage classes, in the order of view.choices.
var classes = [...]storage.StorageClass{storage.Standard, storage.StandardIA, storage.OnezoneIA, storage.IntelligentTiering,
	storage.GlacierIR, storage.Glacier, storage.DeepArchive, storage.ReducedRedundancy}

// choice is the groups that a class's chunks may go to.
type choice struct {
	once   sync.Once
	groups []*group
}

// group is a placement group with what writes and reads ask of it.
type group struct {
	pg     cluster.PG
	quorum placement.Quorum
	all    uint64   // mask of its shards
	active uint64   // those on drives that are recorded as active
	drives []*drive // Drives[i]
}

// drive is what the plane has learned about a drive by using it.
type drive struct {
	id        storage.DriveID
	lag       atomic.Int64 // bytes of buffers it holds past the end of their writes
	slowReads atomic.Int64 // reads it has not answered though they are overdue
	shunned   atomic.Int64 // until then (unix ns) others are preferred: it failed
	strikes   atomic.Int32 // times it was shunned since it last answered
}

// shun keeps a drive that failed or hangs from being asked first. A node that
// swallows everything thus costs a hedge now and then and not one each second.
func (d *drive) shun() {
	now := time.Now()
	until := d.shunned.Load()
	if now.UnixNano() < until {
		return
	}
	span := min(shunFor<<min(d.strikes.Load(), 8), shunMax)
	if d.shunned.CompareAndSwap(until, now.Add(span).UnixNano()) {
		d.strikes.Add(1)
	}
}

// answered says that the drive did what it was asked.
func (d *drive) answered() {
	if d.strikes.Load() != 0 {
		d.strikes.Store(0)
	}
}

// failedLately is free of clock reads for the drives that never failed.
func (d *drive) failedLately() bool {
	until := d.shunned.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// view is the current topology, prepared.
func (p *Plane) view() *view {
	t := p.cfg.Topology()
	if v := p.latest.Load(); v != nil && v.topology == t {
		return v
	}
	v := &view{plane: p, topology: t, groups: make(map[storage.PGID]*group, len(t.PGs))}
	for id, pg := range t.PGs {
		n := pg.Scheme.Shards()
		if pg.Scheme.K == 0 || n > placement.ShardsMax || len(pg.Drives) != n {
			continue // the audit tells of it
		}
		g := &group{pg: pg, all: 1<<n - 1, drives: make([]*drive, n)}
		g.pg.ID = id
		g.quorum = placement.NewQuorum(t, &g.pg)
		for i, id := range pg.Drives {
			g.drives[i] = p.drive(id)
			if t.Drives[id].State == cluster.DriveActive {
				g.active |= 1 << i
			}
		}
		v.groups[id] = g
	}
	p.latest.Store(v)
	return v
}

func (p *Plane) drive(id storage.DriveID) *drive {
	if d, ok := p.drives.Load(id); ok {
		return d.(*drive)
	}
	d, _ := p.drives.LoadOrStore(id, &drive{id: id})
	return d.(*drive)
}

// groupsFor are the groups for chunks of a class. nil if there are none.
func (v *view) groupsFor(class storage.StorageClass, small bool) []*group {
	i, j := slices.Index(classes[:], class), 0
	if i < 0 {
		return nil
	}
	if small {
		j = 1
	}
	c := &v.choices[i][j]
	c.once.Do(func() { c.groups = v.bestGroups(class, small) })
	return c.groups
}

// bestGroups are the groups of the scheme that the class's plan has now. A store
// whose drives changed may not have made them yet: then others of the class that are as safe
// as the plan, else any of the class, else those of STANDARD, which is as safe
// as any class.
func (v *view) bestGroups(class storage.StorageClass, small bool) []*group {
	plan, err := placement.PlanFor(class, v.topology.SortedDrives(), small)
	if err != nil {
		return nil
	}
	var ranks [4][]*group
	for _, g := range v.groups {
		same := placement.SameTarget(g.pg.Class) == placement.SameTarget(class)
		fits := plan.Fits(v.topology, &g.pg)
		switch {
		case fits && g.pg.Scheme == plan.Scheme:
			ranks[0] = append(ranks[0], g)
		case fits:
			ranks[1] = append(ranks[1], g)
		case same:
			ranks[2] = append(ranks[2], g)
		}
	}
	for _, groups := range ranks {
		if len(groups) > 0 {
			slices.SortFunc(groups, func(a, b *group) int { return int(a.pg.ID) - int(b.pg.ID) })
			return groups
		}
	}
	if class != storage.Standard {
		return v.groupsFor(storage.Standard, small)
	}
	return nil
}

// choose picks the group for a new chunk: one at random of those whose drives
// are all fine, else the one with fewest drives in trouble whose quorum can
// be reached. It also says which shards to try. Unavailable if there is none.
func (p *Plane) choose(v *view, class storage.StorageClass, small bool, avoid []storage.DriveID) (best *group, try uint64, err error) {
	groups := v.groupsFor(class, small)
	if len(groups) == 0 {
		return nil, 0, errs.Newf(errs.Unavailable, "chunkio.write", string(class), "no placement group for this storage class")
	}
	start, bestScore := int(p.cfg.Rand()%uint64(len(groups))), -1
	for i := range groups {
		g := groups[(start+i)%len(groups)]
		fine, usable := p.condition(g, avoid)
		if fine == g.all {
			return g, fine, nil
		}
		if !g.quorum.Holds(usable) {
			continue
		}
		score := bits.OnesCount64(fine)
		if g.quorum.Holds(fine) {
			score += 64
		}
		if score > bestScore {
			best, try, bestScore = g, usable, score
		}
	}
	if best == nil {
		return nil, 0, errs.New(errs.Unavailable, "chunkio.write", string(class), "too few drives are up in every placement group")
	}
	return best, try, nil
}

// condition is which drives of a group are fine, and which can be used at all.
func (p *Plane) condition(g *group, avoid []storage.DriveID) (fine, usable uint64) {
	for i, d := range g.drives {
		bit := uint64(1) << i
		if g.active&bit == 0 || p.cfg.Store(d.id) == nil || slices.Contains(avoid, d.id) {
			continue
		}
		lag := d.lag.Load()
		if lag > p.lagMax {
			continue
		}
		usable |= bit
		if lag == 0 && !d.failedLately() {
			fine |= bit
		}
	}
	return fine, usable
}
