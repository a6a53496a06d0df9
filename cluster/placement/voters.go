package placement

import (
	"fmt"
	"slices"

	"cairn/cluster"
	"cairn/storage"
)

// VotersWanted is the usual number of voters of a Raft group.
const VotersWanted = 5

// Voters chooses the drives of a Raft group's voters among the active drives:
// want (0 is VotersWanted, which is also the most) rounded down to an odd number that there are drives
// for. Five stand at most two in a zone; where that cannot be, three in three
// zones are taken instead, because they survive any zone and five would not.
// Voters stand in distinct zones first, else on distinct nodes, else on distinct
// drives. survives says for people what the group's metadata survives. No active drive gives no voters.
func Voters(drives []cluster.Drive, want int) (ids []storage.DriveID, survives string) {
	p := newPool(drives, func(d cluster.Drive) bool { return d.State != cluster.DriveDown })
	if p.total == 0 {
		return nil, "nothing: there is no active drive"
	}
	if want <= 0 {
		want = VotersWanted
	}
	n := min(want, p.total, VotersWanted)
	if n%2 == 0 {
		n--
	}
	perZone := n
	switch {
	case n == 5 && p.room(2) >= 5:
		perZone = 2
	case n >= 3 && p.room(1) >= 3:
		n, perZone = 3, 1
	}
	set := chooseSet(p, perZone, n, nil, nil)
	slices.SortStableFunc(set, func(a, b cluster.Drive) int { return compare(a.Zone, b.Zone) })
	for _, d := range set {
		ids = append(ids, d.ID)
	}
	return ids, votersSurvive(set)
}

// votersSurvive says what may be lost while a majority remains.
func votersSurvive(set []cluster.Drive) string {
	spare := (len(set) - 1) / 2
	zones := map[cluster.Zone]int{}
	for _, d := range set {
		zones[d.Zone]++
	}
	if spare == 0 {
		return "nothing: metadata is on one drive"
	}
	var fatal []string
	for z, c := range zones {
		if c > spare {
			fatal = append(fatal, string(z))
		}
	}
	what := fmt.Sprintf("any %s", count(spare, "drive"))
	if spare == 1 {
		what = "any one drive"
	} else if spare == 2 {
		what = "any two drives"
	}
	switch {
	case len(zones) == 1:
		return what + ", but not the zone"
	case len(fatal) == 0:
		return "any zone, or " + what
	}
	slices.Sort(fatal)
	return fmt.Sprintf("%s, or any zone but %s (two zones have no majority without the larger one)", what, fatal[0])
}
