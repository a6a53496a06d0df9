package placement

import (
	"slices"
	"strings"

	"cairn/cluster"
	"cairn/storage"
)

const searchMax = 20_000 // steps of looking for all sets of drives before choosing some

// BuildPGs makes placement groups for a plan, at most max: every sensible set of
// drives, or where there are too many a balanced choice, each in several
// rotations so that data shards (those that reads ask for) are spread over all
// drives. The first data shards of a group lie in different zones. IDs are 0,
// epochs 1. The drives are those that PlanFor saw.
func BuildPGs(p Plan, drives []cluster.Drive, max int) []cluster.PG {
	keep := p.drive
	if keep == nil {
		keep = func(cluster.Drive) bool { return true }
	}
	var sets [][]cluster.Drive
	for _, part := range p.parts(newPool(drives, keep)) {
		all, complete := allSets(part, p, max)
		if !complete {
			all = someSets(part, p, max)
		}
		sets = append(sets, all...)
	}
	var out []cluster.PG
	for _, order := range rotations(sets, p.Scheme.Shards(), max) {
		out = append(out, p.group(order))
	}
	return out
}

// parts are the pools that a group's drives may be chosen from: the whole one,
// or each zone by itself.
func (p Plan) parts(all pool) []pool {
	if !p.InZone {
		return []pool{all}
	}
	var out []pool
	for _, z := range all.zones {
		if len(z.drives) >= p.Scheme.Shards() {
			out = append(out, pool{zones: []zonePool{z}, total: len(z.drives)})
		}
	}
	return out
}

func (p Plan) group(order []cluster.Drive) cluster.PG {
	pg := cluster.PG{
		Scheme: p.Scheme, Class: p.Class, Epoch: 1,
		Drives:     make([]storage.DriveID, len(order)),
		Previous:   make([]storage.DriveID, len(order)),
		DirtySince: make([]storage.Epoch, len(order)),
	}
	for i, d := range order {
		pg.Drives[i] = d.ID
	}
	return pg
}

// allSets are all sets of n drives that keep the zone rule and are spread as
// evenly as can be; complete is false if they are more than max or too many to look for.
func allSets(p pool, plan Plan, max int) (sets [][]cluster.Drive, complete bool) {
	var all []cluster.Drive
	for _, z := range p.zones {
		all = append(all, z.drives...)
	}
	n, steps := plan.Scheme.Shards(), 0
	var set []cluster.Drive
	var walk func(from int) bool
	walk = func(from int) bool {
		if steps++; steps > searchMax || len(sets) > max {
			return false
		}
		if len(set) == n {
			if spreadEvenly(p, set, plan.PerZoneMax) {
				sets = append(sets, slices.Clone(set))
			}
			return true
		}
		for i := from; i <= len(all)-(n-len(set)); i++ {
			set = append(set, all[i])
			ok := walk(i + 1)
			set = set[:len(set)-1]
			if !ok {
				return false
			}
		}
		return true
	}
	complete = walk(0) && len(sets) <= max
	return sets, complete
}

// spreadEvenly reports whether no zone holds more than q of the set, no shard
// could move to a zone with two fewer, and the same within a zone for nodes.
func spreadEvenly(p pool, set []cluster.Drive, q int) bool {
	var zones []bin
	for _, z := range p.zones {
		var nodes []bin
		for _, d := range z.drives {
			i := slices.IndexFunc(nodes, func(b bin) bool { return b.name == string(d.Node) })
			if i < 0 {
				i = len(nodes)
				nodes = append(nodes, bin{name: string(d.Node)})
			}
			nodes[i].room++
			if slices.ContainsFunc(set, func(s cluster.Drive) bool { return s.ID == d.ID }) {
				nodes[i].used++
			}
		}
		if !even(nodes) {
			return false
		}
		zone := bin{name: string(z.name), room: min(q, len(z.drives))}
		for _, n := range nodes {
			zone.used += n.used
		}
		if zone.used > q {
			return false
		}
		zones = append(zones, zone)
	}
	return even(zones)
}

type bin struct {
	name       string
	used, room int
}

func even(bins []bin) bool {
	for _, a := range bins {
		for _, b := range bins {
			if a.used > b.used+1 && b.used < b.room {
				return false
			}
		}
	}
	return true
}

// someSets chooses different sets one after the other: each next drive from the
// zone and node with fewest in the set, the least used one, and the one that
// met the set's other drives least, so that the loss of one drive spreads its
// repair over many.
func someSets(p pool, plan Plan, max int) (sets [][]cluster.Drive) {
	n := plan.Scheme.Shards()
	used := map[storage.DriveID]int{}
	met := map[[2]storage.DriveID]int{}
	seen := map[string]bool{}
	for tries := 0; len(sets) < max && tries < 8*n; {
		set := chooseSet(p, plan.PerZoneMax, n, used, met)
		for i, a := range set {
			used[a.ID]++
			for _, b := range set[:i] {
				met[[2]storage.DriveID{a.ID, b.ID}]++
				met[[2]storage.DriveID{b.ID, a.ID}]++
			}
		}
		key := setKey(set)
		if seen[key] {
			tries++
			continue
		}
		seen[key], tries = true, 0
		sets = append(sets, set)
	}
	return sets
}

func chooseSet(p pool, q, n int, used map[storage.DriveID]int, met map[[2]storage.DriveID]int) (set []cluster.Drive) {
	inZone, inNode := map[cluster.Zone]int{}, map[string]int{}
	for len(set) < n {
		var best cluster.Drive
		var bestCost []int
		for _, z := range p.zones {
			if inZone[z.name] >= q {
				continue
			}
			for _, d := range z.drives {
				if slices.ContainsFunc(set, func(s cluster.Drive) bool { return s.ID == d.ID }) {
					continue
				}
				together := 0
				for _, s := range set {
					together += met[[2]storage.DriveID{d.ID, s.ID}]
				}
				cost := []int{inZone[z.name], inNode[nodeKey(d)], used[d.ID], together}
				if bestCost == nil || slices.Compare(cost, bestCost) < 0 {
					best, bestCost = d, cost
				}
			}
		}
		set = append(set, best)
		inZone[best.Zone]++
		inNode[nodeKey(best)]++
	}
	return set
}

func nodeKey(d cluster.Drive) string { return string(d.Zone) + "\x00" + string(d.Node) }

func setKey(set []cluster.Drive) string {
	ids := make([]string, len(set))
	for i, d := range set {
		ids[i] = string(d.ID[:])
	}
	slices.Sort(ids)
	return strings.Join(ids, "")
}

// rotations orders the drives of sets into at most max groups of n. Where max allows,
// every set comes in all n rotations, and a lone set in twice as many with its
// drives in other company; else sets take turns with different rotations.
func rotations(sets [][]cluster.Drive, n, max int) (out [][]cluster.Drive) {
	seen := map[string]bool{}
	add := func(order []cluster.Drive) {
		key := ""
		for _, d := range order {
			key += string(d.ID[:])
		}
		if len(out) < max && !seen[key] {
			seen[key] = true
			out = append(out, order)
		}
	}
	shifts := 1
	if len(sets) == 1 && n > 2 {
		shifts = 2
	}
	for r := range shifts * n {
		for i, set := range sets {
			order := interleave(set, r/n)
			by := (r + i) % n
			add(slices.Concat(order[by:], order[:by]))
		}
	}
	return out
}

// interleave orders a set so that neighbours lie in different zones. shift turns
// every second zone's drives, so that others become neighbours.
func interleave(set []cluster.Drive, shift int) (order []cluster.Drive) {
	zones := newPool(set, func(cluster.Drive) bool { return true }).zones
	for i := 0; len(order) < len(set); i++ {
		for z, zone := range zones {
			if i < len(zone.drives) {
				order = append(order, zone.drives[(i+shift*(z%2))%len(zone.drives)])
			}
		}
	}
	return order
}
