package controller

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/storage"
)

func testID(n int) (id storage.DriveID) {
	id[0], id[15] = 0xd0, byte(n)
	return id
}

// zoned makes drives, so many in each zone, numbered from 1.
func zoned(perZone ...int) (ds []cluster.Drive) {
	for z, n := range perZone {
		for i := range n {
			ds = append(ds, cluster.Drive{
				ID: testID(len(ds) + 1), Node: "n", Zone: cluster.Zone(rune('a' + z)),
				Path: fmt.Sprintf("zone-%c/drive-%d", 'a'+z, i+1), State: cluster.DriveActive,
			})
		}
	}
	return ds
}

// world is a group under a controller that has only the planner.
type world struct {
	t     *testing.T
	v     view
	state map[storage.DriveID]*cluster.Drive
	next  int
}

func newWorld(t *testing.T, drives []cluster.Drive, voters ...int) *world {
	w := &world{t: t, next: 100}
	w.v = view{drives: drives, nowMS: 1_000_000, grace: time.Minute}
	w.v.usable = func(id storage.DriveID) bool {
		for _, d := range w.v.drives {
			if d.ID == id {
				return d.State == cluster.DriveActive
			}
		}
		return false
	}
	for _, n := range voters {
		w.v.members = append(w.v.members, member{cluster.Replica{ID: cluster.ReplicaID(fmt.Sprint("r", n)), Drive: testID(n), Voter: true}, false})
	}
	return w
}

func (w *world) down(n int, sinceMS int64) {
	for i := range w.v.drives {
		if w.v.drives[i].ID == testID(n) {
			w.v.drives[i].State, w.v.drives[i].DownSinceMS = cluster.DriveDown, sinceMS
		}
	}
}

// stray is a replica on a drive that was made and never added.
func (w *world) stray(n int) {
	w.v.strays = append(w.v.strays, cluster.Replica{ID: cluster.ReplicaID(fmt.Sprint("s", n)), Drive: testID(n)})
}

// replace is what ReplaceDrive does: another drive stands in the slot.
func (w *world) replace(n, by int) {
	for i := range w.v.drives {
		if w.v.drives[i].ID == testID(n) {
			w.v.drives[i].ID, w.v.drives[i].State = testID(by), cluster.DriveActive
		}
	}
}

// settle makes moves until there are none, and answers them. The group never has fewer good voters than a majority.
func (w *world) settle() (moves []string) {
	w.t.Helper()
	for range 20 {
		m := w.v.plan()
		switch {
		case m == (move{}):
			return moves
		case m.remove != "":
			moves = append(moves, "-"+string(m.remove))
			for i, r := range w.v.members {
				if r.ID == m.remove {
					w.v.members = append(w.v.members[:i:i], w.v.members[i+1:]...)
					break
				}
			}
			for i, s := range w.v.strays {
				if s.ID == m.remove {
					w.v.strays = append(w.v.strays[:i:i], w.v.strays[i+1:]...)
					break
				}
			}
		default:
			w.next++
			moves = append(moves, "+"+fmt.Sprint(m.add[15]))
			for _, r := range w.v.members {
				if r.Drive == m.add {
					w.t.Fatalf("two replicas on one drive: %v", moves)
				}
			}
			for _, s := range w.v.strays {
				if s.Drive == m.add {
					w.t.Fatalf("the drive has a stray: %v", moves)
				}
			}
			w.v.members = append(w.v.members, member{cluster.Replica{ID: cluster.ReplicaID(fmt.Sprint("n", m.add[15])), Drive: m.add, Voter: true}, false})
		}
	}
	w.t.Fatalf("does not settle: %v", moves)
	return nil
}

func TestGroupPlans(t *testing.T) {
	cases := map[string]struct {
		drives []cluster.Drive
		voters []int
		change func(*world)
		want   string
	}{
		"all is well":                             {zoned(1, 1, 1), []int{1, 2, 3}, nil, "[]"},
		"one drive":                               {zoned(1), []int{1}, nil, "[]"},
		"a store that grew to three zones":        {zoned(1, 1, 1), []int{1}, nil, "[+2 +3]"},
		"a store that grew to three by two":       {zoned(2, 2, 2), []int{1}, nil, "[+3 +5 +2 +4]"},
		"a drive is away, within the grace":       {zoned(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) { w.down(3, w.v.nowMS-1000) }, "[]"},
		"a drive is away past the grace":          {zoned(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) { w.down(3, 0) }, "[+6 -r3]"},
		"away past the grace, nowhere to go":      {zoned(1, 1, 1), []int{1, 2, 3}, func(w *world) { w.down(3, 0) }, "[]"},
		"a zone is away past the grace":           {zoned(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) { w.down(1, 0); w.down(2, 0) }, "[+6]"},
		"a drive was replaced":                    {zoned(1, 1, 1), []int{1, 2, 3}, func(w *world) { w.replace(3, 9) }, "[+9 -r3]"},
		"a drive without a voter was replaced":    {zoned(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) { w.replace(6, 9) }, "[]"},
		"a replica is rotten, another drive free": {zoned(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) { w.v.members[2].Lost = true }, "[+6 -r3]"},
		"a replica is rotten, no drive free":      {zoned(1, 1, 1), []int{1, 2, 3}, func(w *world) { w.v.members[2].Lost = true }, "[-r3 +3]"},
		"the only replica is rotten":              {zoned(1), []int{1}, func(w *world) { w.v.members[0].Lost = true }, "[]"},
		"two of three are rotten":                 {zoned(1, 1, 1), []int{1, 2, 3}, func(w *world) { w.v.members[1].Lost, w.v.members[2].Lost = true, true }, "[]"},
		"a move was cut off before it voted":      {zoned(2, 2, 2), []int{1, 2, 3, 4, 5, 6}, func(w *world) { w.v.members[5].Voter = false }, "[-r6]"},
		"a move was cut off before the removal":   {zoned(2, 2, 2), []int{1, 2, 3, 4, 5, 6}, func(w *world) { w.down(3, 0) }, "[-r3]"},
		"one too many":                            {zoned(2, 2, 2), []int{1, 2, 3, 4, 5, 6}, nil, "[-r6]"},
		"a drive on which no replica could be made": {zoned(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) {
			w.v.members[2].Lost = true
			w.v.aside = map[storage.DriveID]bool{testID(6): true}
		}, "[-r3 +3]"},
		"no other drive than one on which no replica could be made": {zoned(1, 1, 1), []int{1, 2}, func(w *world) {
			w.v.aside = map[storage.DriveID]bool{testID(3): true}
		}, "[]"},
		"a stray":                            {zoned(1, 1, 1), []int{1, 2, 3}, func(w *world) { w.stray(3) }, "[-s3]"},
		"a stray where a voter is missing":   {zoned(1, 1, 1), []int{1, 2}, func(w *world) { w.stray(3) }, "[-s3 +3]"},
		"a stray where a drive was replaced": {zoned(1, 1, 1), []int{1, 2, 3}, func(w *world) { w.replace(3, 9); w.stray(9) }, "[-s9 +9 -r3]"},
		"three wanted of six":                {zoned(2, 2, 2), []int{1, 3, 5}, func(w *world) { w.v.want = 3 }, "[]"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.drives, c.voters...)
			if c.change != nil {
				c.change(w)
			}
			if got := fmt.Sprint(w.settle()); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// onNodes makes drives, one on each node "a1", "a2", ... of zones a, b, ...; numbered from 1.
func onNodes(perZone ...int) (ds []cluster.Drive) {
	ds = zoned(perZone...)
	n := map[cluster.Zone]int{}
	for i := range ds {
		n[ds[i].Zone]++
		ds[i].Node = cluster.NodeID(fmt.Sprint(ds[i].Zone, n[ds[i].Zone]))
	}
	return ds
}

// sameNode puts drives on the first one's node.
func sameNode(ds []cluster.Drive, first int, more ...int) []cluster.Drive {
	for _, n := range more {
		ds[n-1].Node = ds[first-1].Node
	}
	return ds
}

func TestGroupPlansOverNodes(t *testing.T) {
	cases := map[string]struct {
		drives []cluster.Drive
		voters []int
		change func(*world)
		want   string
	}{
		"all is well":                         {onNodes(2, 2, 2), []int{1, 2, 3, 4, 5}, nil, "[]"},
		"any two of three zones":              {onNodes(2, 2, 2), []int{1, 3, 4, 5, 6}, nil, "[]"},
		"a node joins":                        {onNodes(1, 1, 1), []int{1}, nil, "[+2 +3]"},
		"the first node held all":             {sameNode(onNodes(3, 1, 1), 1, 2, 3), []int{1, 2, 3}, nil, "[+4 -r1 +5 -r2]"},
		"the first node held all, six nodes":  {sameNode(onNodes(4, 2, 2), 1, 2, 3), []int{1, 2, 3}, nil, "[+5 +7 +6 -r1 +4 -r2]"},
		"a zone is away past the grace":       {onNodes(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) { w.down(1, 0); w.down(2, 0) }, "[+6 -r1]"},
		"a zone with one voter is away":       {onNodes(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) { w.down(5, 0); w.down(6, 0) }, "[]"},
		"a node is away past the grace":       {onNodes(2, 2, 2), []int{1, 2, 3, 4, 5}, func(w *world) { w.down(1, 0) }, "[+6 -r1]"},
		"two voters on a node, another empty": {sameNode(onNodes(3, 2, 2), 1, 2), []int{1, 2, 4, 5, 6}, nil, "[+3 -r1]"},
		"nowhere better":                      {sameNode(onNodes(2, 2, 1), 1, 2), []int{1, 2, 3, 4, 5}, nil, "[]"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.drives, c.voters...)
			if c.change != nil {
				c.change(w)
			}
			if got := fmt.Sprint(w.settle()); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// Whatever the drives and wherever the voters stand, the moves come to an end with as many voters as there should be.
func TestPlansSettle(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		zones := make([]int, 1+rng.IntN(4))
		for i := range zones {
			zones[i] = 1 + rng.IntN(4)
		}
		drives := onNodes(zones...)
		for i := range drives {
			if i > 0 && drives[i].Zone == drives[i-1].Zone && rng.IntN(3) == 0 {
				drives[i].Node = drives[i-1].Node
			}
		}
		var voters []int
		for _, n := range rng.Perm(len(drives))[:1+rng.IntN(min(5, len(drives)))] {
			voters = append(voters, n+1)
		}
		w := newWorld(t, drives, voters...)
		moves := w.settle()
		ideal, _ := placement.Voters(drives, 0)
		if len(w.v.members) != len(ideal) {
			t.Fatalf("seed %d: %v of %v: %d voters, want %d after %v", seed, voters, drives, len(w.v.members), len(ideal), moves)
		}
		perZone, zoneMax := map[cluster.Zone]int{}, map[cluster.Zone]int{}
		for _, d := range drives {
			if slices.Contains(ideal, d.ID) {
				zoneMax[d.Zone]++
			}
			for _, m := range w.v.members {
				if m.Drive == d.ID {
					perZone[d.Zone]++
				}
			}
		}
		if a, b := slices.Max(slices.Collect(maps.Values(perZone))), slices.Max(slices.Collect(maps.Values(zoneMax))); a > b && manyNodes(drives) {
			t.Errorf("seed %d: %v: %v voters in a zone, %v would do; moves %v", seed, drives, a, b, moves)
		}
	}
}
