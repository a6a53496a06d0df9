package placement

import (
	"fmt"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
)

// Plan is how the chunks of a class are laid out on the drives at hand.
type Plan struct {
	Class      storage.StorageClass
	Small      bool // for chunks below CopiedBelow: copies
	Scheme     storage.Scheme
	PerZoneMax int    // most shards of a chunk in one zone
	InZone     bool   // all shards of a chunk in one zone
	Zones      int    // zones the class has drives in
	Survives   string // for people: "any zone and one more drive"
	Reached    bool   // the target of the class is fully met
	Why        string // what was missing, if not reached

	level int // on the class's ladder
	drive func(cluster.Drive) bool
}

// PlanFor plans a class for the drives at hand; removed ones are ignored, ones
// that are down count: a plan outlives an outage. small asks for the copies of
// chunks below CopiedBelow. Errors: InvalidStorageClass; Unavailable without drives.
func PlanFor(class storage.StorageClass, drives []cluster.Drive, small bool) (Plan, error) {
	target, ok := TargetOf(class)
	if !ok {
		return Plan{}, errs.New(errs.InvalidStorageClass, "plan", string(class), "no such storage class")
	}
	best := Plan{level: -1}
	for _, keep := range preferences(target) {
		p, ok := planOn(target, newPool(drives, keep), small)
		if ok && (best.level < 0 || p.level < best.level) {
			p.drive = keep
			best = p
		}
	}
	if best.level < 0 {
		return Plan{}, errs.New(errs.Unavailable, "plan", string(class), "there is no drive")
	}
	best.Class, best.Small = class, small
	if best.Reached = best.level == 0; !best.Reached {
		best.Why = best.lack(target)
	}
	return best, nil
}

// preferences are the sets of drives to try, best first: archives like cold
// drives and the others avoid them, unless that costs safety.
func preferences(t Target) []func(cluster.Drive) bool {
	return []func(cluster.Drive) bool{
		func(d cluster.Drive) bool { return (d.Label == ColdLabel) == t.Cold },
		func(cluster.Drive) bool { return true },
	}
}

// planOn finds the best level that the pool can reach and the cheapest layout on it.
func planOn(t Target, p pool, small bool) (Plan, bool) {
	if p.total == 0 {
		return Plan{}, false
	}
	for i, l := range levels(t) {
		var s shape
		switch {
		case l.zone:
			s = overZones(l, p, small, t.Cold)
		case l.inZone:
			s = insideOneZone(l, p, small)
		default:
			s = overDrives(l, p.total, small)
		}
		if s.n == 0 {
			continue
		}
		s.zones = len(p.zones)
		return Plan{
			Scheme:     storage.Scheme{K: uint8(s.k), M: uint8(s.n - s.k)},
			PerZoneMax: s.most, InZone: s.inZone, Zones: len(p.zones), Survives: s.survives(), level: i,
		}, true
	}
	return Plan{}, false
}

// overZones divides shards over zones. It takes the layout that costs least
// space for the level; among equals, one that survives any two drives, and then
// the narrower one, or the widest for archives.
func overZones(l level, p pool, small, wide bool) (best shape) {
	width := widthHot
	if wide {
		width = widthCold
	}
	for q := 1; q <= len(p.zones[0].drives); q++ {
		for n := 2; n <= min(p.room(q), width); n++ {
			k := n - q - l.extra
			if small {
				k = min(k, 1)
			}
			s := shape{k: k, n: n, most: q}
			if k >= 1 && s.meets(l) && (best.n == 0 || s.betterThan(best, wide && !small)) {
				best = s
			}
		}
	}
	return best
}

func (s shape) betterThan(o shape, wide bool) bool {
	if a, b := s.k*o.n, o.k*s.n; a != b {
		return a > b
	}
	if a, b := min(s.n-s.k, 2), min(o.n-o.k, 2); a != b {
		return a > b
	}
	if s.n != o.n {
		return (s.n > o.n) == wide
	}
	return s.most < o.most
}

// insideOneZone puts all shards into one zone, the same way in every zone that
// has enough drives for it: so many that most zones can take part.
func insideOneZone(l level, p pool, small bool) shape {
	n := 0
	for _, z := range p.zones {
		if c := len(z.drives); c > 2 || c > l.any && n == 0 {
			n = c // zones are ordered by size: the smallest one of three drives or more
		}
	}
	s := overDrives(l, n, small)
	s.inZone = s.n > 0
	return s
}

// overDrives divides shards over drives and knows no zones.
func overDrives(l level, drives int, small bool) shape {
	n := min(drives, widthOneZone)
	if small {
		n = min(n, 1+l.any)
	}
	if n < 1+l.any || n == 0 {
		return shape{}
	}
	if l.any == 0 {
		n = 1 // no redundancy: at least no drive's loss touches what lies on others
	}
	return shape{k: n - l.any, n: n, most: n}
}

// lack says what keeps a plan from its target.
func (p Plan) lack(t Target) string {
	switch {
	case t.InZone:
		return "surviving any drive inside one zone needs two drives in a zone"
	case p.Zones < 2:
		return fmt.Sprintf("all drives are in one zone: losing it loses the data; %s needs two zones at least", targetText(t))
	}
	return fmt.Sprintf("%s needs a third zone, or two zones with two drives each", targetText(t))
}

func targetText(t Target) string {
	if t.Drives > 0 {
		return "surviving any zone and one more drive"
	}
	return "surviving any zone"
}

// String is the plan in one line.
func (p Plan) String() string {
	kind := ""
	if p.Small {
		kind = " (small)"
	}
	s := fmt.Sprintf("%s%s: %s, %s; survives %s", p.Class, kind, p.Scheme, p.spread(), p.Survives)
	if !p.Reached {
		s += "; the class's target is not reached: " + p.Why
	}
	return s
}

func (p Plan) spread() string {
	switch {
	case p.Zones == 1 && p.Scheme.Shards() == 1:
		return "on one drive"
	case p.Zones == 1:
		return "in the one zone there is"
	case p.InZone:
		return "inside a zone"
	}
	return fmt.Sprintf("at most %d of %d shards in a zone", p.PerZoneMax, p.Scheme.Shards())
}

// Proof is the arithmetic behind Survives.
func (p Plan) Proof() string {
	k, n := int(p.Scheme.K), p.Scheme.Shards()
	if p.Zones < 2 || p.InZone || n-p.PerZoneMax < k {
		return fmt.Sprintf("a drive holds at most 1 of %d shards; %d lost leave %d, and %d are needed", n, n-k, k, k)
	}
	left := n - p.PerZoneMax
	s := fmt.Sprintf("a zone holds at most %d of %d shards; losing it leaves %d", p.PerZoneMax, n, left)
	if left > k {
		s += fmt.Sprintf(", %d more drives leave %d", left-k, k)
	}
	return s + fmt.Sprintf(", and %d are needed", k)
}

// Fits reports whether a group made earlier is as good as one made by this plan
// now: it is of a class with the same target, its drives are not removed, and
// its layout survives what the plan reached.
func (p Plan) Fits(t *cluster.Topology, pg *cluster.PG) bool {
	target, ok := TargetOf(p.Class)
	if !ok || SameTarget(pg.Class) != SameTarget(p.Class) {
		return false
	}
	s, why := shapeOf(t, pg)
	return why == "" && s.meets(levels(target)[p.level])
}
