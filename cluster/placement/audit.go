package placement

import (
	"fmt"
	"slices"
	"strings"

	"cairn/cluster"
	"cairn/storage"
)

// Report is the outcome of an audit of the placement groups.
type Report struct {
	OK         bool     // no violation
	Summary    string   // one line for people
	Groups     int      // placement groups looked at
	Violations []string // each names a group and what is wrong with it
}

// Audit checks every placement group: that its drives exist and are distinct,
// and that it survives what the plan for its class with the drives at hand
// survives. As every chunk lies in a group, that proves the zone rule for all data.
// A group that was made when there were fewer drives or zones is reported: its data is
// less safe than it could be.
func Audit(t *cluster.Topology) Report { return AuditExcept(t, nil) }

// AuditExcept is Audit, but a group that empty says holds nothing is no violation:
// a store that grew keeps the groups it began with, and writers choose better ones.
// empty is asked about groups with something wrong only.
func AuditExcept(t *cluster.Topology, empty func(*cluster.PG) bool) Report {
	a := auditor{topology: t, drives: t.SortedDrives(), plans: map[planKey]Plan{}}
	ids := make([]storage.PGID, 0, len(t.PGs))
	for id := range t.PGs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		pg := t.PGs[id]
		if why := a.check(&pg); why != "" {
			if empty != nil && empty(&pg) {
				a.idle++
				continue
			}
			a.violations = append(a.violations, fmt.Sprintf("placement group %d (%s %s): %s", id, pg.Class, pg.Scheme, why))
		}
	}
	return Report{OK: len(a.violations) == 0, Summary: a.summary(len(ids)), Groups: len(ids), Violations: a.violations}
}

type planKey struct {
	class storage.StorageClass
	small bool
}

type auditor struct {
	topology   *cluster.Topology
	drives     []cluster.Drive
	plans      map[planKey]Plan
	violations []string
	byZone     int // groups that survive any zone
	inZone     int // groups in one zone, as their class or the drives have it
	bare       int // groups that survive nothing
	idle       int // groups with something wrong that hold nothing
	least      int // the fewest drives that any of the groups in one zone may lose
}

// check is what is wrong with a group, or "".
func (a *auditor) check(pg *cluster.PG) string {
	s, why := shapeOf(a.topology, pg)
	if why != "" {
		return why
	}
	return a.judge(pg, s)
}

// shapeOf is how a group's shards lie, or what is wrong with its drives.
func shapeOf(t *cluster.Topology, pg *cluster.PG) (s shape, why string) {
	n := pg.Scheme.Shards()
	if pg.Scheme.K == 0 || n > ShardsMax || len(pg.Drives) != n {
		return s, fmt.Sprintf("%d drives for %d shards", len(pg.Drives), n)
	}
	zones := map[cluster.Zone]int{}
	for i, id := range pg.Drives {
		d, ok := t.Drives[id]
		switch {
		case !ok || d.State == cluster.DriveRemoved:
			return s, fmt.Sprintf("shard %d is on drive %s, which is removed or not known", i, id.Short())
		case slices.Index(pg.Drives, id) != i:
			return s, fmt.Sprintf("drive %s holds two shards", id.Short())
		}
		zones[d.Zone]++
	}
	s = shape{k: int(pg.Scheme.K), n: n, zones: len(zones)}
	for _, c := range zones {
		s.most = max(s.most, c)
	}
	return s, ""
}

// judge compares what a layout survives with what it could, and counts it.
func (a *auditor) judge(pg *cluster.PG, s shape) string {
	target, ok := TargetOf(pg.Class)
	if !ok {
		return "no such storage class"
	}
	plan, err := a.plan(pg.Class, pg.Scheme.K == 1)
	if err != nil {
		return err.Error()
	}
	if want := levels(target)[plan.level]; !s.meets(want) {
		return fmt.Sprintf("survives %s, but with the drives at hand it could survive %s", s.survives(), plan.Survives)
	}
	switch m := s.n - s.k; {
	case m == 0:
		a.bare++
	case s.n-s.most >= s.k:
		a.byZone++
	default:
		if a.inZone == 0 || m < a.least {
			a.least = m
		}
		a.inZone++
	}
	return ""
}

func (a *auditor) plan(class storage.StorageClass, small bool) (Plan, error) {
	key := planKey{class, small}
	p, ok := a.plans[key]
	var err error
	if !ok {
		if p, err = PlanFor(class, a.drives, small); err == nil {
			a.plans[key] = p
		}
	}
	return p, err
}

func (a *auditor) summary(groups int) string {
	if n := len(a.violations); n > 0 {
		return fmt.Sprintf("zone proof FAILS for %d of %s: %s", n, count(groups, "placement group"), a.violations[0])
	}
	var parts []string
	if a.byZone > 0 {
		parts = append(parts, fmt.Sprintf("zone proof: %s, no zone holds more shards than its code can lose", count(a.byZone, "placement group")))
	}
	if a.inZone > 0 {
		parts = append(parts, fmt.Sprintf("drive proof: %s inside one zone, any %s may be lost, but not the zone", count(a.inZone, "placement group"), count(a.least, "drive")))
	}
	if a.bare > 0 {
		parts = append(parts, fmt.Sprintf("no proof: %s with a single copy, losing a drive loses data", count(a.bare, "placement group")))
	}
	if a.idle > 0 {
		parts = append(parts, fmt.Sprintf("%s of earlier drives empty", count(a.idle, "placement group")))
	}
	if len(parts) == 0 {
		return "no placement groups yet"
	}
	return strings.Join(parts, "; ")
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
