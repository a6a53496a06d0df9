package status

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Print writes the status for people, as of now.
func (s *Status) Print(w io.Writer, now time.Time) {
	state := "ready"
	if !s.Ready {
		state = "NOT READY: " + s.NotReady
	}
	fmt.Fprintf(w, "cairn %s   %s   S3 on %s   up %s\n", s.Version, state, s.S3, now.Sub(s.Started).Round(time.Second))
	fmt.Fprintf(w, "store %s   %s, %s, %s\n", s.StoreID, count(int(s.Usage.Buckets), "bucket"), count(int(s.Usage.Objects), "object"), Bytes(s.Usage.Bytes))
	s.printNodes(w)
	s.printZones(w)
	s.printDrives(w)
	s.printGroups(w)
	s.printPlans(w)
	s.printSafety(w)
}

func table(w io.Writer, title string, rows func(w io.Writer)) {
	fmt.Fprintf(w, "\n%s\n", title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	rows(t)
	t.Flush()
}

func (s *Status) printNodes(w io.Writer) {
	if len(s.Nodes) == 0 {
		return
	}
	table(w, "NODES", func(w io.Writer) {
		for _, n := range s.Nodes {
			fmt.Fprintf(w, "  %s\tzone %s\t%s\t%s\t%s\n", n.Name, n.Zone, loud(n.State, "active"), strings.Join(n.Addresses, " "), n.Version)
		}
	})
	for _, n := range s.Nodes {
		if n.Trouble != "" {
			fmt.Fprintf(w, "  ! %s: %s\n", n.Name, n.Trouble)
		}
	}
}

func (s *Status) printZones(w io.Writer) {
	table(w, "ZONES", func(w io.Writer) {
		for _, z := range s.Zones {
			fmt.Fprintf(w, "  %s\t%s\t%d of %s\t%s free of %s\n", z.Name, loud(z.State, "up"), z.Active, count(z.Drives, "drive"), Bytes(z.BytesFree), Bytes(z.BytesTotal))
		}
	})
}

func (s *Status) printDrives(w io.Writer) {
	table(w, "DRIVES", func(w io.Writer) {
		for _, d := range s.Drives {
			state := loud(d.State, "active")
			if d.BelowReserve {
				state += ", FULL"
			}
			fmt.Fprintf(w, "  %s\tzone %s\t%s\t%s\t%s, %s\t%s free\n", short(d.ID), place(d.Zone, d.Node), state, d.Path, count(int(d.Shards), "shard"), Bytes(d.BytesLive), Bytes(d.BytesFree))
		}
	})
	for _, d := range s.Drives {
		if d.Trouble != "" {
			fmt.Fprintf(w, "  ! %s: %s\n", d.Path, d.Trouble)
		}
	}
}

func (s *Status) printGroups(w io.Writer) {
	table(w, "METADATA", func(w io.Writer) {
		for _, g := range s.Groups {
			leader := "NO LEADER"
			var where []string
			for _, r := range g.Replicas {
				if r.ID == g.Leader {
					leader = "leader in zone " + place(r.Zone, r.Node) + " on " + short(r.Drive)
				}
				name := r.Zone + "/" + short(r.Drive)
				if r.Node != "" && r.Node != "node-1" {
					name = r.Zone + "/" + r.Node
				}
				if r.State != "leader" && r.State != "follower" {
					name += " (" + r.State + ")"
				}
				where = append(where, name)
			}
			fmt.Fprintf(w, "  group %d\t%s\t%s\t%s\tsurvives %s\t%s\n", g.ID, g.Role, count(g.Voters, "voter"), leader, g.Survives, strings.Join(where, " "))
		}
	})
	for _, g := range s.Groups {
		if g.Trouble != "" {
			fmt.Fprintf(w, "  ! group %d: %s\n", g.ID, g.Trouble)
		}
	}
}

func (s *Status) printPlans(w io.Writer) {
	table(w, "STORAGE CLASSES", func(w io.Writer) {
		for _, p := range s.Plans {
			mark := "as meant"
			if !p.Met {
				mark = "SHORT of " + p.Target
				if p.Why != "" {
					mark += ": " + p.Why
				}
			}
			fmt.Fprintf(w, "  %s\t%s, small %s\t%.2f bytes a byte\tsurvives %s\t%s\n", p.Class, p.Scheme, p.Small, p.Overhead, p.Survives, mark)
		}
	})
	table(w, "PLACEMENT GROUPS", func(w io.Writer) {
		for _, p := range s.PGs {
			line := fmt.Sprintf("  %s\t%s\t%s\t%d healthy", p.Class, p.Scheme, count(p.Count, "group"), p.Healthy)
			if p.Degraded > 0 {
				line += fmt.Sprintf(", %d DEGRADED", p.Degraded)
			}
			if p.Refused > 0 {
				line += fmt.Sprintf(", %d TAKE NO WRITES", p.Refused)
			}
			fmt.Fprintln(w, line)
		}
	})
}

func (s *Status) printSafety(w io.Writer) {
	fmt.Fprintf(w, "\nREDUNDANCY\n")
	r := s.Redundancy
	if r.DirtySlots == 0 && r.RepairQueue == 0 {
		fmt.Fprintln(w, "  whole: no shard is known to be missing")
	} else {
		fmt.Fprintf(w, "  SHORT: %d drive slots to fill, %d chunks to repair, %d shards rebuilt since the start\n", r.DirtySlots, r.RepairQueue, r.Repaired)
	}
	if r.Repairing != "" {
		fmt.Fprintf(w, "  repair: %s\n", r.Repairing)
	}
	fmt.Fprintf(w, "  garbage: %d removals wait for their space\n", r.GarbageQueue)
	rule := "zone rule"
	if !s.Proof.OK {
		rule += " VIOLATED"
	}
	fmt.Fprintf(w, "  %s: %s\n", rule, strings.TrimPrefix(s.Proof.Line, "zone proof: "))
	for _, v := range s.Proof.Violations {
		fmt.Fprintf(w, "  ! %s\n", v)
	}
	for _, v := range s.Warnings {
		fmt.Fprintf(w, "  ! %s\n", v)
	}
}

// place is a zone and, in a cluster, the node in it.
func place(zone, node string) string {
	if node == "" || node == "node-1" {
		return zone
	}
	return zone + " node " + node
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// loud writes a state in capitals unless it is the good one.
func loud(state, good string) string {
	if state == good {
		return state
	}
	return strings.ToUpper(state)
}

func short(id string) string {
	if len(id) > 8 {
		return id[:8]
	}
	return id
}

// Bytes writes a size for people: "1.5 GiB".
func Bytes(n int64) string {
	if n < 0 {
		return "-" + Bytes(-n)
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 || f >= 100 {
		return fmt.Sprintf("%.0f %s", f, units[i])
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}
