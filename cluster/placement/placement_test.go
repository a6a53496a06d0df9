package placement

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"testing"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
)

// drivesIn makes counts[i] active drives in zone i, two a node.
func drivesIn(counts ...int) (out []cluster.Drive) {
	for z, n := range counts {
		for i := range n {
			zone := string(rune('a' + z))
			out = append(out, cluster.Drive{
				ID: storage.DriveID{byte(z + 1), byte(i + 1)}, Zone: cluster.Zone(zone), State: cluster.DriveActive,
				Node: cluster.NodeID(fmt.Sprintf("%s%d", zone, i/2)), Path: fmt.Sprintf("/d%d", i),
			})
		}
	}
	return out
}

// over distributes n drives over z zones as evenly as can be.
func over(n, z int) []int {
	counts := make([]int, z)
	for i := range n {
		counts[i%z]++
	}
	return counts
}

func topologyOf(drives []cluster.Drive, groups ...[]cluster.PG) *cluster.Topology {
	t := &cluster.Topology{Drives: map[storage.DriveID]cluster.Drive{}, PGs: map[storage.PGID]cluster.PG{}}
	for _, d := range drives {
		t.Drives[d.ID] = d
	}
	for _, gs := range groups {
		for _, pg := range gs {
			pg.ID = storage.PGID(len(t.PGs) + 1)
			t.PGs[pg.ID] = pg
		}
	}
	return t
}

func withDown(t *cluster.Topology, down func(cluster.Drive) bool) *cluster.Topology {
	u := *t
	u.Drives = map[storage.DriveID]cluster.Drive{}
	for id, d := range t.Drives {
		if down(d) {
			d.State = cluster.DriveDown
		}
		u.Drives[id] = d
	}
	return &u
}

func mustPlan(t *testing.T, class storage.StorageClass, drives []cluster.Drive, small bool) Plan {
	t.Helper()
	p, err := PlanFor(class, drives, small)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var allClasses = []storage.StorageClass{storage.Standard, storage.StandardIA, storage.OnezoneIA, storage.IntelligentTiering,
	storage.GlacierIR, storage.Glacier, storage.DeepArchive, storage.ReducedRedundancy}

func TestPlans(t *testing.T) {
	for _, c := range []struct {
		class   storage.StorageClass
		counts  []int
		small   bool
		scheme  string
		perZone int
		reached bool
		words   string
	}{
		{storage.Standard, []int{1}, false, "1+0", 1, false, "nothing: there is one copy on one drive"},
		{storage.Standard, []int{2}, false, "1+1", 2, false, "any one drive"},
		{storage.Standard, []int{3}, false, "1+2", 3, false, "any two drives"},
		{storage.Standard, []int{4}, false, "2+2", 4, false, "any two drives"},
		{storage.Standard, []int{8}, false, "6+2", 8, false, "any two drives"},
		{storage.Standard, []int{12}, false, "6+2", 8, false, "any two drives"},
		{storage.Standard, []int{12}, true, "1+2", 3, false, "any two drives"},
		{storage.Standard, []int{1, 1}, false, "1+1", 1, false, "any zone"},
		{storage.Standard, []int{2, 1}, false, "1+2", 2, false, "any zone, or any two drives"},
		{storage.Standard, []int{2, 2}, false, "1+3", 2, true, "any zone and one more drive"},
		{storage.Standard, []int{3, 3}, false, "2+4", 3, true, "any zone and one more drive"},
		{storage.Standard, []int{3, 3}, true, "1+3", 2, true, "any zone and one more drive"},
		{storage.Standard, []int{1, 1, 1}, false, "1+2", 1, true, "any zone and one more drive"},
		{storage.Standard, []int{2, 2, 2}, false, "3+3", 2, true, "any zone and one more drive"},
		{storage.Standard, []int{2, 2, 2}, true, "1+2", 1, true, "any zone and one more drive"},
		{storage.Standard, []int{3, 3, 3}, false, "5+4", 3, true, "any zone and one more drive"},
		{storage.Standard, []int{4, 4, 4}, false, "7+5", 4, true, "any zone and one more drive"},
		{storage.Standard, []int{1, 1, 1, 1}, false, "2+2", 1, true, "any zone and one more drive"},
		{storage.Standard, []int{3, 1, 1}, false, "1+2", 1, true, "any zone and one more drive"},
		{storage.Standard, []int{2, 2, 1}, false, "2+3", 2, true, "any zone and one more drive"},
		{storage.Standard, []int{1, 1, 1, 1, 1, 1, 1, 1, 1}, false, "7+2", 1, true, "any zone and one more drive"},
		{storage.StandardIA, []int{1, 1, 1}, false, "2+1", 1, true, "any zone"},
		{storage.StandardIA, []int{2, 2, 2}, false, "4+2", 2, true, "any zone, or any two drives"},
		{storage.StandardIA, []int{4, 4, 4}, false, "4+2", 2, true, "any zone, or any two drives"},
		{storage.StandardIA, []int{2, 2, 2}, true, "1+1", 1, true, "any zone"},
		{storage.StandardIA, []int{4}, false, "3+1", 4, false, "any one drive"},
		{storage.Glacier, []int{4, 4, 4}, false, "8+4", 4, true, "any zone, or any four drives"},
		{storage.DeepArchive, []int{6, 6, 6}, false, "10+5", 5, true, "any zone, or any five drives"},
		{storage.OnezoneIA, []int{3, 3, 3}, false, "2+1", 3, true, "any one drive"},
		{storage.OnezoneIA, []int{3, 3, 3}, true, "1+1", 2, true, "any one drive"},
		{storage.OnezoneIA, []int{1, 1, 1}, false, "2+1", 3, false, "any one drive"},
		{storage.OnezoneIA, []int{1}, false, "1+0", 1, false, "nothing: there is one copy on one drive"},
	} {
		p := mustPlan(t, c.class, drivesIn(c.counts...), c.small)
		if p.Scheme.String() != c.scheme || p.PerZoneMax != c.perZone || p.Reached != c.reached || p.Survives != c.words {
			t.Errorf("%s %v small=%v: got %s, %d a zone, reached %v, %q; want %s, %d, %v, %q", c.class, c.counts, c.small,
				p.Scheme, p.PerZoneMax, p.Reached, p.Survives, c.scheme, c.perZone, c.reached, c.words)
		}
		if p.Reached != (p.Why == "") {
			t.Errorf("%s %v: reached %v but why is %q", c.class, c.counts, p.Reached, p.Why)
		}
	}
}

func TestPlansAreSaidInWords(t *testing.T) {
	p := mustPlan(t, storage.Standard, drivesIn(2, 2, 2), false)
	if got, want := p.String(), "STANDARD: 3+3, at most 2 of 6 shards in a zone; survives any zone and one more drive"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := p.Proof(), "a zone holds at most 2 of 6 shards; losing it leaves 4, 1 more drives leave 3, and 3 are needed"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	p = mustPlan(t, storage.Standard, drivesIn(3), false)
	if !strings.Contains(p.String(), "target is not reached: all drives are in one zone") {
		t.Errorf("got %s", p)
	}
}

func TestRefusals(t *testing.T) {
	if _, err := PlanFor("EXPRESS_ONEZONE", drivesIn(3), false); !errs.Is(err, errs.InvalidStorageClass) {
		t.Errorf("got %v", err)
	}
	gone := drivesIn(1)
	gone[0].State = cluster.DriveRemoved
	if _, err := PlanFor(storage.Standard, gone, false); !errs.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
}

func TestColdDrivesAreForArchives(t *testing.T) {
	drives := drivesIn(4, 4, 4)
	for i := range drives {
		if drives[i].Path >= "/d2" {
			drives[i].Label = ColdLabel
		}
	}
	for _, class := range []storage.StorageClass{storage.Standard, storage.Glacier} {
		p := mustPlan(t, class, drives, false)
		for _, pg := range BuildPGs(p, drives, 16) {
			for _, id := range pg.Drives {
				i := slices.IndexFunc(drives, func(d cluster.Drive) bool { return d.ID == id })
				if cold := drives[i].Label == ColdLabel; cold != (class == storage.Glacier) {
					t.Fatalf("%s uses drive %s", class, id.Short())
				}
			}
		}
	}
	// Too few cold drives must not cost safety.
	few := drivesIn(2, 2, 2)
	few[0].Label = ColdLabel
	if p := mustPlan(t, storage.Glacier, few, false); !p.Reached {
		t.Errorf("got %s", p)
	}
}

// Every store from 1 to 9 drives over 1 to 4 zones (and some larger and uneven
// ones): the groups keep the plan's rule, the audit agrees, and after any
// failures that the plan promises to survive are recorded, data is readable and
// some group takes writes.
func TestMatrix(t *testing.T) {
	layouts := [][]int{{3, 1, 1}, {4, 1, 1}, {5, 1}, {2, 2, 1}, {1, 2, 3, 4}, {4, 4, 4}, {12}}
	for zones := 1; zones <= 4; zones++ {
		for n := zones; n <= 9; n++ {
			layouts = append(layouts, over(n, zones))
		}
	}
	t.Logf("%-12s %-20s %-7s %-7s %4s  %s", "drives", "class", "large", "small", "PGs", "survives")
	for _, counts := range layouts {
		drives := drivesIn(counts...)
		for _, class := range allClasses {
			large, small := mustPlan(t, class, drives, false), mustPlan(t, class, drives, true)
			for _, p := range []Plan{large, small} {
				checkPlan(t, p, drives, fmt.Sprintf("%v %s", counts, p))
			}
			if class == SameTarget(class) {
				t.Logf("%-12s %-20s %-7s %-7s %4d  %s", fmt.Sprint(counts), class, large.Scheme, small.Scheme, len(BuildPGs(large, drives, 24)), large.Survives)
			}
		}
		_, survives := Voters(drives, 0)
		t.Logf("%-12s metadata: %s", fmt.Sprint(counts), survives)
	}
}

func checkPlan(t *testing.T, p Plan, drives []cluster.Drive, name string) {
	t.Helper()
	const most = 24
	pgs := BuildPGs(p, drives, most)
	if len(pgs) == 0 || len(pgs) > most {
		t.Fatalf("%s: %d groups", name, len(pgs))
	}
	top := topologyOf(drives, pgs)
	if r := Audit(top); !r.OK {
		t.Fatalf("%s: %s", name, r.Summary)
	}
	seen := map[string]bool{}
	for _, pg := range top.PGs {
		key := fmt.Sprint(pg.Drives)
		if seen[key] || pg.Epoch != 1 || len(pg.DirtySince) != len(pg.Drives) || len(pg.Previous) != len(pg.Drives) {
			t.Fatalf("%s: bad or double group %+v", name, pg)
		}
		seen[key] = true
		provePromise(t, top, &pg, p, name)
	}
}

// provePromise records every set of failures that the plan promises to survive.
func provePromise(t *testing.T, top *cluster.Topology, pg *cluster.PG, p Plan, name string) {
	t.Helper()
	target, _ := TargetOf(p.Class)
	l := levels(target)[p.level]
	n := pg.Scheme.Shards()
	zoneOf := func(i int) cluster.Zone { return top.Drives[pg.Drives[i]].Zone }
	lost := []uint64{0}
	for set := uint64(0); set < 1<<n; set++ {
		if bits.OnesCount64(set) == l.any {
			lost = append(lost, set)
		}
	}
	if l.zone {
		for _, z := range top.Zones() {
			var zone uint64
			for i := range n {
				if zoneOf(i) == z {
					zone |= 1 << i
				}
			}
			lost = append(lost, zone)
			for i := range n * l.extra {
				lost = append(lost, zone|1<<i)
			}
		}
	}
	for _, set := range lost {
		if left := n - bits.OnesCount64(set); left < int(pg.Scheme.K) {
			t.Fatalf("%s: losing shards %b leaves %d", name, set, left)
		}
		down := withDown(top, func(d cluster.Drive) bool {
			i := slices.Index(pg.Drives, d.ID)
			return i >= 0 && set&(1<<i) != 0
		})
		if !Durable(down, pg, set) {
			t.Fatalf("%s: with shards %b recorded down the group refuses writes that reach all others", name, set)
		}
	}
}

// Promise 1 by brute force: whatever is acknowledged survives the loss of any one
// zone, in every group of every store with three zones or more.
func TestEveryAcknowledgedWriteSurvivesAnyZone(t *testing.T) {
	acks := 0
	for _, counts := range [][]int{{1, 1, 1}, {2, 2, 2}, {3, 3, 3}, {2, 2, 1}, {3, 1, 1}, {1, 1, 1, 1}, {2, 2, 2, 2}, {3, 2, 2, 1}} {
		drives := drivesIn(counts...)
		for _, class := range []storage.StorageClass{storage.Standard, storage.StandardIA, storage.Glacier} {
			for _, small := range []bool{false, true} {
				top := topologyOf(drives, BuildPGs(mustPlan(t, class, drives, small), drives, 12))
				for _, pg := range top.PGs {
					acks += proveZones(t, top, &pg)
				}
			}
		}
	}
	t.Logf("%d sets of acknowledged shards survive every zone", acks)
}

func proveZones(t *testing.T, top *cluster.Topology, pg *cluster.PG) (acks int) {
	t.Helper()
	n := pg.Scheme.Shards()
	all := uint64(1)<<n - 1
	for acked := uint64(0); acked <= all; acked++ {
		if !Durable(top, pg, all&^acked) {
			continue
		}
		acks++
		for _, z := range top.Zones() {
			left := 0
			for i := range n {
				if acked&(1<<i) != 0 && top.Drives[pg.Drives[i]].Zone != z {
					left++
				}
			}
			if left < int(pg.Scheme.K) {
				t.Fatalf("%s on %v: shards %b are acknowledged, zone %s is lost, %d remain", pg.Scheme, pg.Drives, acked, z, left)
			}
		}
	}
	if acks == 0 {
		t.Fatalf("%s: nothing is ever durable", pg.Scheme)
	}
	return acks
}

// What exactly is enough, in the cases people will meet.
func TestQuorum(t *testing.T) {
	none := func(cluster.Drive) bool { return false }
	zoneA := func(d cluster.Drive) bool { return d.Zone == "a" }
	first := func(d cluster.Drive) bool { return d.Zone == "a" && d.Path == "/d0" }
	for _, c := range []struct {
		name   string
		class  storage.StorageClass
		counts []int
		down   func(cluster.Drive) bool
		need   int // shards on active drives that are always enough
		least  int // shards that may be enough
	}{
		{"one drive", storage.Standard, []int{1}, none, 1, 1},
		{"two drives", storage.Standard, []int{2}, none, 2, 2},
		{"two drives, one recorded down", storage.Standard, []int{2}, first, 1, 1},
		{"three drives", storage.Standard, []int{3}, none, 2, 2},
		{"three drives, one recorded down", storage.Standard, []int{3}, first, 2, 2},
		{"2+2", storage.Standard, []int{4}, none, 3, 3},
		{"6+2", storage.Standard, []int{8}, none, 7, 7},
		{"two zones of one", storage.Standard, []int{1, 1}, none, 2, 2},
		{"two zones of one, one recorded down", storage.Standard, []int{1, 1}, zoneA, 1, 1},
		{"two zones of two", storage.Standard, []int{2, 2}, none, 3, 2},
		{"two zones of two, one recorded down", storage.Standard, []int{2, 2}, zoneA, 2, 2},
		{"three zones of one", storage.Standard, []int{1, 1, 1}, none, 2, 2},
		{"three zones of one, one recorded down", storage.Standard, []int{1, 1, 1}, zoneA, 2, 2},
		{"3+3", storage.Standard, []int{2, 2, 2}, none, 5, 5},
		{"3+3, a drive recorded down", storage.Standard, []int{2, 2, 2}, first, 5, 5},
		{"3+3, a zone recorded down", storage.Standard, []int{2, 2, 2}, zoneA, 4, 4},
		{"3+3, a zone and a drive recorded down", storage.Standard, []int{2, 2, 2}, func(d cluster.Drive) bool { return d.Zone == "a" || d.Zone == "b" && d.Path == "/d0" }, 3, 3},
		{"4+2", storage.StandardIA, []int{2, 2, 2}, none, 6, 6},
		{"4+2, a zone recorded down", storage.StandardIA, []int{2, 2, 2}, zoneA, 4, 4},
		{"one zone of three", storage.OnezoneIA, []int{3, 3}, none, 3, 3},
	} {
		drives := drivesIn(c.counts...)
		top := topologyOf(drives, BuildPGs(mustPlan(t, c.class, drives, false), drives, 1))
		pg := top.PGs[1]
		top = withDown(top, c.down)
		q := NewQuorum(top, &pg)
		need, least := 0, 99
		for set := uint64(0); set < 1<<pg.Scheme.Shards(); set++ {
			n := bits.OnesCount64(set & q.alive)
			if q.Holds(set) {
				least = min(least, n)
			} else {
				need = max(need, n+1)
			}
		}
		if need != c.need || least != c.least {
			t.Errorf("%s: %d shards are enough, %d may be; want %d, %d", c.name, need, least, c.need, c.least)
		}
	}
}

func TestSmallCopiesUseEveryCombination(t *testing.T) {
	drives := drivesIn(2, 2, 2)
	pgs := BuildPGs(mustPlan(t, storage.Standard, drives, true), drives, 24)
	if len(pgs) != 24 { // 2*2*2 sets in 3 rotations
		t.Fatalf("%d groups", len(pgs))
	}
	first := map[storage.DriveID]int{}
	for _, pg := range pgs {
		first[pg.Drives[0]]++
	}
	for id, n := range first {
		if n != 4 {
			t.Errorf("drive %s is read first in %d groups", id.Short(), n)
		}
	}
	if got, want := Audit(topologyOf(drives, pgs)).Summary, "zone proof: 24 placement groups, no zone holds more shards than its code can lose"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestDataShardsAreSpread(t *testing.T) {
	drives := drivesIn(2, 2, 2)
	pgs := BuildPGs(mustPlan(t, storage.Standard, drives, false), drives, 12)
	if len(pgs) != 12 {
		t.Fatalf("%d groups", len(pgs))
	}
	top := topologyOf(drives, pgs)
	data := map[storage.DriveID]int{}
	for _, pg := range pgs {
		zones := map[cluster.Zone]bool{}
		for _, id := range pg.Drives[:3] {
			data[id]++
			zones[top.Drives[id].Zone] = true
		}
		if len(zones) != 3 {
			t.Errorf("data shards on %v are in %d zones", pg.Drives[:3], len(zones))
		}
	}
	for id, n := range data {
		if n != 6 {
			t.Errorf("drive %s holds data in %d groups of 12", id.Short(), n)
		}
	}
}

// Where there are many sets of drives, a balanced choice of them is made.
func TestManyDrives(t *testing.T) {
	drives := drivesIn(12, 12, 12)
	pgs := BuildPGs(mustPlan(t, storage.Standard, drives, false), drives, 60)
	if len(pgs) != 60 {
		t.Fatalf("%d groups", len(pgs))
	}
	used := map[storage.DriveID]int{}
	sets := map[string]bool{}
	for _, pg := range pgs {
		ids := slices.Clone(pg.Drives)
		slices.SortFunc(ids, func(a, b storage.DriveID) int { return slices.Compare(a[:], b[:]) })
		sets[fmt.Sprint(ids)] = true
		nodes := map[cluster.NodeID]int{}
		for _, id := range pg.Drives {
			used[id]++
			nodes[topologyOf(drives).Drives[id].Node]++
		}
		for node, n := range nodes {
			if n > 1 {
				t.Errorf("node %s holds %d shards, though a zone has nodes enough", node, n)
			}
		}
	}
	if len(sets) != 60 {
		t.Errorf("%d different sets", len(sets))
	}
	for id, n := range used {
		if n < 15 || n > 25 { // 60*12/36 = 20
			t.Errorf("drive %s is in %d groups of 60", id.Short(), n)
		}
	}
}

func TestAuditFindsViolations(t *testing.T) {
	drives := drivesIn(2, 2, 2)
	good := BuildPGs(mustPlan(t, storage.Standard, drives, false), drives, 1)[0]
	breakIt := func(f func(*cluster.PG)) cluster.PG {
		pg := good
		pg.Drives = slices.Clone(good.Drives)
		f(&pg)
		return pg
	}
	removed := drives[0].ID
	for name, c := range map[string]struct {
		pg   cluster.PG
		want string
	}{
		"too many data shards": {breakIt(func(pg *cluster.PG) { pg.Scheme = storage.Scheme{K: 5, M: 1} }), "survives any one drive, but"},
		"doubled drive":        {breakIt(func(pg *cluster.PG) { pg.Drives[1] = pg.Drives[0] }), "holds two shards"},
		"unknown drive":        {breakIt(func(pg *cluster.PG) { pg.Drives[2] = storage.DriveID{9} }), "removed or not known"},
		"short":                {breakIt(func(pg *cluster.PG) { pg.Drives = pg.Drives[:4] }), "4 drives for 6 shards"},
		"outgrown":             {cluster.PG{Class: storage.Standard, Scheme: storage.Scheme{K: 1}, Drives: []storage.DriveID{removed}}, "survives nothing"},
		"unknown class":        {breakIt(func(pg *cluster.PG) { pg.Class = "X" }), "no such storage class"},
	} {
		r := Audit(topologyOf(drives, []cluster.PG{good, c.pg}))
		if r.OK || r.Groups != 2 || len(r.Violations) != 1 || !strings.Contains(r.Violations[0], c.want) || !strings.Contains(r.Summary, "FAILS for 1 of 2") {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestAuditSummaries(t *testing.T) {
	for _, c := range []struct {
		counts []int
		want   string
	}{
		{[]int{1}, "no proof: 1 placement group with a single copy, losing a drive loses data"},
		{[]int{4}, "drive proof: 4 placement groups inside one zone, any 2 drives may be lost, but not the zone"},
		{[]int{1, 1, 1}, "zone proof: 3 placement groups, no zone holds more shards than its code can lose"},
	} {
		drives := drivesIn(c.counts...)
		r := Audit(topologyOf(drives, BuildPGs(mustPlan(t, storage.Standard, drives, false), drives, 4)))
		if !r.OK || r.Summary != c.want {
			t.Errorf("%v: got %s", c.counts, r.Summary)
		}
	}
}

func TestVoters(t *testing.T) {
	for _, c := range []struct {
		counts []int
		want   int
		zones  []int // voters in each zone
		words  string
	}{
		{[]int{1}, 0, []int{1}, "nothing: metadata is on one drive"},
		{[]int{2}, 0, []int{1}, "nothing: metadata is on one drive"},
		{[]int{3}, 0, []int{3}, "any one drive, but not the zone"},
		{[]int{6}, 0, []int{5}, "any two drives, but not the zone"},
		{[]int{1, 1}, 0, []int{1}, "nothing: metadata is on one drive"},
		{[]int{2, 2}, 0, []int{2, 1}, "any one drive, or any zone but a (two zones have no majority without the larger one)"},
		{[]int{3, 3}, 0, []int{3, 2}, "any two drives, or any zone but a (two zones have no majority without the larger one)"},
		{[]int{1, 1, 1}, 0, []int{1, 1, 1}, "any zone, or any one drive"},
		{[]int{2, 2, 2}, 0, []int{2, 2, 1}, "any zone, or any two drives"},
		{[]int{2, 2, 2}, 3, []int{1, 1, 1}, "any zone, or any one drive"},
		{[]int{2, 2, 2}, 1, []int{1}, "nothing: metadata is on one drive"},
		{[]int{4, 1, 1}, 0, []int{1, 1, 1}, "any zone, or any one drive"},
		{[]int{1, 1, 1, 1, 1}, 0, []int{1, 1, 1, 1, 1}, "any zone, or any two drives"},
	} {
		drives := drivesIn(c.counts...)
		ids, words := Voters(drives, c.want)
		zones := map[cluster.Zone]int{}
		for _, id := range ids {
			zones[topologyOf(drives).Drives[id].Zone]++
		}
		var got []int
		for _, n := range zones {
			got = append(got, n)
		}
		slices.Sort(got)
		slices.Reverse(got)
		if !slices.Equal(got, c.zones) || words != c.words {
			t.Errorf("%v want %d: got %v %q; want %v %q", c.counts, c.want, got, words, c.zones, c.words)
		}
	}
	down := drivesIn(1, 1, 1)
	down[0].State = cluster.DriveDown
	if ids, _ := Voters(down, 0); slices.Contains(ids, down[0].ID) {
		t.Error("a drive that is down votes")
	}
	if ids, words := Voters(nil, 0); len(ids) != 0 || words == "" {
		t.Errorf("got %v %q", ids, words)
	}
}
