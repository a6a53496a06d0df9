// Package placement decides where shards lie: it turns storage classes, which
// are fault-tolerance targets, into schemes for the drives at hand, makes the
// placement groups, proves them, and says when a write is durable. It is pure:
// no I/O, no clock, no randomness, and the same input gives the same output.
//
// # Targets and levels
//
// A class names what its data survives: some zones and some more drives at once.
// Where the drives at hand cannot give that, the best reachable is used; the
// ladder of levels for each class is in levels. A plan says which level it
// reached and what that survives.
//
// # The zone rule
//
// With q the most shards of a chunk in one zone and e the extra drives of the
// target, a code of n shards may have at most k = n-q-e data shards: whatever
// zone is lost, and e drives more, k shards remain. The rule is kept by every
// placement group, so auditing the table proves it for every object.
//
// # Write quorum
//
// See Quorum. What the class promises holds when all shards are there; a write
// is acknowledged a step earlier, when any one zone may be lost.
package placement

import (
	"fmt"
	"slices"

	"cairn/cluster"
	"cairn/storage"
)

// Widths: the most shards of a stripe. A wider stripe costs less space and more
// disk reads for each megabyte.
const (
	widthHot     = 12 // classes that are read
	widthCold    = 16 // archives
	widthOneZone = 8  // in one zone there is no zone to divide the shards over
)

// ColdLabel marks drives that archives prefer and the other classes avoid.
const ColdLabel = "cold"

// Target is what a class promises to survive at once.
type Target struct {
	Zones  int  // whole zones: 0 or 1
	Drives int  // drives besides
	InZone bool // all shards of a chunk in one zone
	Cold   bool // archive: the widest stripe, on cold drives
}

// TargetOf is the target of a class; ok is false for a class that does not exist.
func TargetOf(class storage.StorageClass) (t Target, ok bool) {
	switch class {
	case storage.Standard, storage.IntelligentTiering, storage.ReducedRedundancy:
		return Target{Zones: 1, Drives: 1}, true
	case storage.StandardIA, storage.GlacierIR:
		return Target{Zones: 1}, true
	case storage.OnezoneIA:
		return Target{Drives: 1, InZone: true}, true
	case storage.Glacier, storage.DeepArchive:
		return Target{Zones: 1, Cold: true}, true
	}
	return Target{}, false
}

// CopiedBelow is the length below which a chunk of a class is copied instead of coded. A copy is read from one drive, which
// counts for little in an archive.
func CopiedBelow(class storage.StorageClass) int64 {
	if t, _ := TargetOf(class); t.Cold {
		return storage.CopyArchivesBelow
	}
	return storage.ReplicateBelow
}

// SameTarget is the class whose placement groups a class shares: the one with the same target.
func SameTarget(class storage.StorageClass) storage.StorageClass {
	switch class {
	case storage.IntelligentTiering, storage.ReducedRedundancy:
		return storage.Standard
	case storage.GlacierIR:
		return storage.StandardIA
	case storage.DeepArchive:
		return storage.Glacier
	}
	return class
}

// level is a step of the ladder below a target: what a layout must survive.
type level struct {
	zone   bool // any one zone,
	extra  int  // and so many drives besides at once
	any    int  // any so many drives at once (the least m)
	inZone bool // inside one zone
}

// levels is the ladder for a target, best first. The last one is always reachable.
func levels(t Target) []level {
	switch {
	case t.InZone:
		return []level{{any: 1, inZone: true}, {any: 1}, {}}
	case t.Drives > 0:
		return []level{{zone: true, extra: t.Drives, any: 2}, {zone: true, any: 2}, {zone: true, any: 1}, {any: 2}, {any: 1}, {}}
	default:
		return []level{{zone: true, any: 1}, {any: 1}, {}}
	}
}

// shape is how the shards of a placement group lie, as far as survival goes.
type shape struct {
	k, n   int
	most   int // shards in the fullest zone
	zones  int // zones used
	inZone bool
}

// meets reports whether a layout survives what the level asks.
func (s shape) meets(l level) bool {
	if l.inZone && s.zones != 1 || s.n-s.k < l.any {
		return false
	}
	return !l.zone || s.n-s.most-l.extra >= s.k
}

// survives says for people what a layout survives.
func (s shape) survives() string {
	m, spare := s.n-s.k, s.n-s.k-s.most
	switch {
	case m == 0 && s.n == 1:
		return "nothing: there is one copy on one drive"
	case m == 0:
		return "nothing: no drive may be lost"
	case spare > 1:
		return fmt.Sprintf("any zone and %s more drives", number(spare))
	case spare == 1:
		return "any zone and one more drive"
	case spare == 0 && m > 1:
		return fmt.Sprintf("any zone, or any %s drives", number(m))
	case spare == 0:
		return "any zone"
	case m == 1:
		return "any one drive"
	}
	return fmt.Sprintf("any %s drives", number(m))
}

func number(n int) string {
	if words := []string{"no", "one", "two", "three", "four", "five", "six", "seven", "eight"}; n < len(words) {
		return words[n]
	}
	return fmt.Sprint(n)
}

// pool is the drives that a class is laid out on, grouped and ordered.
type pool struct {
	zones []zonePool // those with most drives first, then by name
	total int
}

type zonePool struct {
	name   cluster.Zone
	drives []cluster.Drive // by node, then path
}

// newPool groups the drives that keep answers true for and that are not removed.
func newPool(drives []cluster.Drive, keep func(cluster.Drive) bool) pool {
	var p pool
	for _, d := range drives {
		if d.State == cluster.DriveRemoved || !keep(d) {
			continue
		}
		i := slices.IndexFunc(p.zones, func(z zonePool) bool { return z.name == d.Zone })
		if i < 0 {
			i = len(p.zones)
			p.zones = append(p.zones, zonePool{name: d.Zone})
		}
		p.zones[i].drives = append(p.zones[i].drives, d)
		p.total++
	}
	for _, z := range p.zones {
		slices.SortFunc(z.drives, compareDrives)
	}
	slices.SortFunc(p.zones, func(a, b zonePool) int {
		if len(a.drives) != len(b.drives) {
			return len(b.drives) - len(a.drives)
		}
		return compare(a.name, b.name)
	})
	return p
}

func compareDrives(a, b cluster.Drive) int {
	if c := compare(a.Node, b.Node); c != 0 {
		return c
	}
	if c := compare(a.Path, b.Path); c != 0 {
		return c
	}
	return compare(string(a.ID[:]), string(b.ID[:]))
}

func compare[T ~string](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// room is how many shards fit when a zone takes at most q.
func (p pool) room(q int) int {
	n := 0
	for _, z := range p.zones {
		n += min(q, len(z.drives))
	}
	return n
}
