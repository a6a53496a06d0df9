package placement

import (
	"math/bits"

	"cairn/cluster"
	"cairn/storage"
)

// Quorum says which sets of durable shards are enough to acknowledge a write in
// one placement group, as things are recorded in one topology. With A the
// shards whose drives are recorded as active, k of n needed to read:
//
//  1. If the group's layout survives the loss of any zone and none of its
//     zones is recorded as down: the durable shards must leave k after the loss
//     of any one zone, as long as A does.
//  2. If it does, but one of its zones is recorded as down (or so many drives that A no longer
//     leaves k without some zone): any one more drive, k+1 shards, as long as A has so many.
//  3. If the layout knows no zones (all drives in one, ONEZONE_IA): all that the code can lose less
//     one drive, so that one late or failed drive does not stop writes (2+2: 3 shards), and
//     both copies of 1+1; as long as A has so many.
//  4. Never fewer than k.
//
// So the rule is satisfiable while k drives are active, and it weakens only by what
// the system group has recorded: a drive that is merely late still counts.
type Quorum struct {
	k     int
	least int               // shards needed
	alive uint64            // A
	zones [ShardsMax]uint64 // the shards in each zone, if the zone rule applies
	count int               // of zones
}

// ShardsMax is the most shards a placement group may have.
const ShardsMax = 32

// NewQuorum computes the rule for a group.
func NewQuorum(t *cluster.Topology, pg *cluster.PG) Quorum {
	n := min(pg.Scheme.Shards(), len(pg.Drives), ShardsMax)
	q := Quorum{k: int(pg.Scheme.K)}
	var names [ShardsMax]cluster.Zone
	zoneDown := false
	for i := range n {
		d, ok := t.Drives[pg.Drives[i]]
		if !ok {
			continue
		}
		if d.State == cluster.DriveActive {
			q.alive |= 1 << i
		}
		z := 0
		for z < q.count && names[z] != d.Zone {
			z++
		}
		if z == q.count {
			names[z] = d.Zone
			q.count++
			zoneDown = zoneDown || t.ZoneDown(d.Zone)
		}
		q.zones[z] |= 1 << i
	}
	all := uint64(1)<<n - 1
	alive := bits.OnesCount64(q.alive)
	switch {
	case !q.zoneSafe(all):
		q.count = 0
		q.least = max(q.k, min(alive, q.k+max(1, int(pg.Scheme.M)-1)))
	case zoneDown || !q.zoneSafe(q.alive):
		q.count = 0
		q.least = max(q.k, min(alive, q.k+1))
	default:
		q.least = q.k
	}
	return q
}

// zoneSafe reports whether k of the shards remain whichever zone is lost.
func (q *Quorum) zoneSafe(shards uint64) bool {
	for _, zone := range q.zones[:q.count] {
		if bits.OnesCount64(shards&^zone) < q.k {
			return false
		}
	}
	return bits.OnesCount64(shards) >= q.k
}

// Holds reports whether a write is durable that has these shards on disk (bit i:
// shard i). Shards on drives that are not recorded as active don't count.
func (q *Quorum) Holds(durable uint64) bool {
	durable &= q.alive
	return bits.OnesCount64(durable) >= q.least && q.zoneSafe(durable)
}

// Durable reports whether a chunk in pg that lacks the shards in missing may be
// acknowledged with the topology as recorded (promise 1): see Quorum.
func Durable(t *cluster.Topology, pg *cluster.PG, missing uint64) bool {
	q := NewQuorum(t, pg)
	return q.Holds(^missing)
}

// DriveAt is the drive of shard i, and where readers look next while a move is
// under way; either may be zero.
func DriveAt(pg *cluster.PG, i int) (now, before storage.DriveID) {
	if i < len(pg.Drives) {
		now = pg.Drives[i]
	}
	if i < len(pg.Previous) {
		before = pg.Previous[i]
	}
	return now, before
}
