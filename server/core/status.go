package core

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/placement"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/garbage"
	"cairn/storage/repair"
	"cairn/storage/worker"
)

// queueLook is how many rows of a queue status counts; more are given as that many.
const queueLook = 1000

// Ready is nil if reads and writes are served here: every group that this process takes part in has a leader.
func (c *Core) Ready() error {
	if why := c.Controller.NotReady(); why != "" {
		return errors.New(why)
	}
	for _, g := range c.Groups.Status() {
		if !g.Local && (c.node == nil || g.Leader == "") {
			return fmt.Errorf("group %d has no leader", g.Group)
		}
	}
	return nil
}

// nodeID is this process's name among the nodes.
func (c *Core) nodeID() cluster.NodeID {
	if c.node == nil {
		return "node-1"
	}
	return c.node.self
}

// Status looks at everything of the store; the caller fills in what is about its
// faces. A part that cannot be read now (no leader) is left zero.
func (c *Core) Status(ctx context.Context) status.Status {
	whole := ctx
	ctx, cancel := context.WithTimeout(whole, statusPart)
	defer cancel()
	t := c.Controller.Topology()
	s := status.Status{StoreID: c.Controller.StoreID(), Node: string(c.nodeID()), Topology: t.Version, Version: c.env.Version}
	looks := c.looks(ctx, t)
	s.Nodes = c.nodeStatus(t, looks)
	s.Drives = driveStatus(t, looks)
	s.Zones = zoneStatus(t, s.Drives)
	s.Groups = groupStatus(t, groupLooks(t, looks))
	s.PGs = pgStatus(t)
	s.Plans = planStatus(t)
	audit := placement.AuditExcept(t, func(pg *cluster.PG) bool { return c.holdsNothing(ctx, pg) })
	s.Proof = status.Proof{OK: audit.OK, Line: audit.Summary, Violations: audit.Violations}
	s.Redundancy = c.redundancy(ctx, t)
	for _, l := range looks {
		s.Redundancy.Repaired += l.Repaired
		if l.Repairing != "" {
			s.Redundancy.Repairing = strings.TrimPrefix(s.Redundancy.Repairing+"; "+l.Repairing, "; ")
		}
	}
	within(whole, func(ctx context.Context) { s.Events = c.Events.waitingHere(ctx) })
	within(whole, func(ctx context.Context) { s.Usage = c.usage(ctx) })
	lc := c.lifecycleHere()
	s.Lifecycle = &lc
	s.Retrieved = map[string]int64{}
	for class, n := range c.Objects.Retrieved() {
		s.Retrieved[string(class)] = n
	}
	s.Warnings = warnings(&s)
	return s
}

// statusPart is how long a part of status may take: what is read here must not be missing because what is read elsewhere took all the time.
const statusPart = 2 * time.Second

// within calls fn with a context that ends after statusPart.
func within(ctx context.Context, fn func(context.Context)) {
	ctx, cancel := context.WithTimeout(ctx, statusPart)
	defer cancel()
	fn(ctx)
}

func zoneStatus(t *cluster.Topology, drives []status.Drive) (out []status.Zone) {
	for _, name := range t.Zones() {
		z := status.Zone{Name: string(name), State: "up"}
		for _, d := range drives {
			if d.Zone != z.Name {
				continue
			}
			z.Drives++
			z.BytesTotal += d.BytesTotal
			z.BytesFree += d.BytesFree
			if d.State == cluster.DriveActive.String() {
				z.Active++
			}
		}
		switch {
		case z.Active == 0:
			z.State = "down"
		case z.Active < z.Drives:
			z.State = "degraded"
		}
		out = append(out, z)
	}
	return out
}

func groupStatus(t *cluster.Topology, groups []groupLook) (out []status.Group) {
	byID := map[string]cluster.Drive{}
	for id, d := range t.Drives {
		byID[id.String()] = d
	}
	for _, g := range groups {
		row := status.Group{ID: uint64(g.ID), Role: "range", Leader: string(g.Leader), Term: g.Term}
		if g.ID == cluster.SystemGroup {
			row.Role = "system"
		}
		var drives []cluster.Drive
		for _, r := range g.Replicas {
			d := byID[r.Drive]
			row.Replicas = append(row.Replicas, replicaStatus(&g, &r, d))
			if r.Voter {
				row.Voters++
				drives = append(drives, d)
			}
			if r.Err != "" {
				row.Trouble = fmt.Sprintf("replica %s: %s", r.ID, r.Err)
			}
		}
		if g.Leader == "" {
			row.Trouble = "no leader: a majority of the voters is missing or still electing"
		}
		_, row.Survives = placement.Voters(drives, row.Voters)
		out = append(out, row)
	}
	return out
}

func replicaStatus(g *groupLook, r *replicaLook, d cluster.Drive) status.Replica {
	row := status.Replica{ID: string(r.ID), Drive: r.Drive, Node: string(d.Node), Zone: string(d.Zone), Voter: r.Voter, State: "follower", Applied: r.Applied}
	switch multiraft.ReplicaState(r.State) {
	case multiraft.ReplicaRunning:
		if r.ID == g.Leader {
			row.State = "leader"
		}
	case multiraft.ReplicaEmpty:
		row.State = "catching up"
	case multiraft.ReplicaAway:
		row.State = "not reached"
	default:
		row.State = "stopped"
	}
	return row
}

func pgStatus(t *cluster.Topology) (out []status.PGs) {
	at := map[string]int{}
	for _, pg := range t.PGs {
		name := string(pg.Class) + " " + pg.Scheme.String()
		i, ok := at[name]
		if !ok {
			i = len(out)
			at[name] = i
			out = append(out, status.PGs{Class: string(pg.Class), Scheme: pg.Scheme.String()})
		}
		out[i].Count++
		down, dirty := uint64(0), false
		for n, id := range pg.Drives {
			if t.Drives[id].State != cluster.DriveActive {
				down |= 1 << n
			}
			dirty = dirty || pg.DirtySince[n] != 0
		}
		switch {
		case !placement.Durable(t, &pg, down):
			out[i].Refused++
		case down != 0 || dirty:
			out[i].Degraded++
		default:
			out[i].Healthy++
		}
	}
	slices.SortFunc(out, func(a, b status.PGs) int { return strings.Compare(a.Class+a.Scheme, b.Class+b.Scheme) })
	return out
}

// holdsNothing reports whether no drive of a group has a shard of it; false if one cannot be asked.
func (c *Core) holdsNothing(ctx context.Context, pg *cluster.PG) bool {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	for _, id := range pg.Drives {
		store := c.store(id)
		if store == nil {
			return false
		}
		found := false
		err := store.List(ctx, pg.ID, storage.ChunkID{}, func(storage.ShardInfo) bool {
			found = true
			return false
		})
		if found || err != nil {
			return false
		}
	}
	return true
}

// store is a drive of any node, or nil.
func (c *Core) store(id storage.DriveID) storage.ShardStore {
	if c.node != nil {
		return c.node.store(id)
	}
	return c.Controller.Store(id)
}

// planned are the classes that objects can be put in.
var planned = [...]storage.StorageClass{storage.Standard, storage.StandardIA, storage.OnezoneIA, storage.GlacierIR, storage.Glacier, storage.DeepArchive}

func planStatus(t *cluster.Topology) (out []status.Plan) {
	drives := t.SortedDrives()
	for _, class := range planned {
		large, err := placement.PlanFor(class, drives, false)
		if err != nil {
			continue
		}
		p := status.Plan{Class: string(class), Survives: large.Survives, Scheme: large.Scheme.String(), Met: large.Reached, Why: large.Why,
			Overhead: float64(large.Scheme.Shards()) / float64(large.Scheme.K)}
		if target, ok := placement.TargetOf(class); ok {
			p.Target = targetText(target)
		}
		if small, err := placement.PlanFor(class, drives, true); err == nil {
			p.Small = small.Scheme.String()
		}
		out = append(out, p)
	}
	return out
}

// redundancy looks at the queues; a long one is counted up to queueLook.
func (c *Core) redundancy(ctx context.Context, t *cluster.Topology) status.Redundancy {
	var r status.Redundancy
	for _, pg := range t.PGs {
		for _, since := range pg.DirtySince {
			if since != 0 {
				r.DirtySlots++
			}
		}
	}
	m := ranges{c.Meta, c.Groups}
	for _, g := range m.all() {
		if rows, err := m.Repairs(ctx, g, repair.RowID{}, queueLook); err == nil {
			r.RepairQueue += int64(len(rows))
		}
		if rows, err := m.Garbage(ctx, g, garbage.ID{}, queueLook); err == nil && len(rows) > 0 {
			r.GarbageQueue += int64(len(rows))
			if at := time.UnixMilli(rows[0].Row.AtMs).UTC(); r.GarbageOldest == nil || at.Before(*r.GarbageOldest) {
				r.GarbageOldest = &at
			}
		}
	}
	return r
}

// repairing is what the workers here have rebuilt since the start, are at, and could not do yet.
func (c *Core) repairing() (done int64, now string) {
	for _, w := range c.Workers.Status() {
		switch w.Name {
		case c.Repair.Rows.Name(), c.Repair.Healer.Name(), c.Repair.Resync.Name():
			done += w.Done
			if w.LeftOK && w.Left > 0 {
				now = strings.TrimSpace(fmt.Sprintf("%s; %s: %d left", now, w.Name, w.Left))
				if w.ETAOK {
					now += fmt.Sprintf(", about %s", w.ETA.Round(time.Second))
				}
			}
		}
	}
	for _, w := range []interface {
		worker.Worker
		Problems() []repair.Problem
	}{c.Repair.Rows, c.Repair.Healer, c.Repair.Resync, c.Repair.Scrub} {
		if text := stuckText(w.Name(), w.Problems()); text != "" {
			now += "; " + text
		}
	}
	return done, strings.TrimPrefix(now, "; ")
}

// stuckText says how much the worker of this name could not repair yet, and what for the longest time; "" if there is nothing.
func stuckText(name string, problems []repair.Problem) string {
	if len(problems) == 0 {
		return ""
	}
	first := &problems[0]
	return fmt.Sprintf("%s: %d could not be repaired yet, for the longest %s, since %s: %s",
		name, len(problems), first.What, first.Since.UTC().Format(time.RFC3339), first.Err)
}

// usage sums the counters of all ranges.
func (c *Core) usage(ctx context.Context) (u status.Usage) {
	sums := map[storage.StorageClass]*metapb.CounterRow{}
	for _, g := range c.Meta.AllRanges() {
		var counters []rangestate.Counter
		err := c.Meta.ReadGroup(ctx, g.ID, func(v rangestate.Reader) (err error) {
			counters, err = v.Counters()
			return err
		})
		if err != nil {
			u.Partial = true
			continue
		}
		for _, k := range counters {
			u.Objects += k.Row.Objects
			u.Bytes += k.Row.Bytes
			add(sums, k.Class, k.Row)
		}
	}
	drives := c.onDrives()
	for class, row := range sums {
		u.Classes = append(u.Classes, c.classUsage(class, row, drives))
	}
	slices.SortFunc(u.Classes, byClass)
	_ = c.Meta.System(ctx, func(r sysstate.Reader) (err error) {
		u.Buckets, err = r.CountBuckets()
		return err
	})
	return u
}

// warnings are what an operator should act on.
func warnings(s *status.Status) (out []string) {
	for _, p := range s.Plans {
		if shared := placement.SameTarget(storage.StorageClass(p.Class)); !p.Met && p.Class == string(shared) {
			out = append(out, fmt.Sprintf("storage class %s means to survive %s, but with these drives it survives %s: %s", p.Class, p.Target, p.Survives, p.Why))
		}
	}
	for _, n := range s.Nodes {
		if strings.Contains(n.Trouble, "leaving: ") {
			out = append(out, fmt.Sprintf("node %s: %s", n.Name, n.Trouble))
		}
	}
	for _, d := range s.Drives {
		if d.Trouble != "" {
			out = append(out, fmt.Sprintf("drive %s: %s", d.Path, d.Trouble))
		}
		if d.BelowReserve {
			out = append(out, fmt.Sprintf("drive %s is full: delete objects or add drives; it takes no more data", d.Path))
		}
	}
	for _, e := range s.Events {
		if e.Held {
			out = append(out, fmt.Sprintf("the queue of target %s is full: writes that would make another event for it are refused; see cairn events status", e.Target))
		}
	}
	for _, g := range s.Groups {
		if g.Trouble != "" {
			out = append(out, fmt.Sprintf("metadata group %d: %s", g.ID, g.Trouble))
		}
	}
	return out
}

// targetText says what a target means to survive.
func targetText(t placement.Target) string {
	var parts []string
	if t.Zones > 0 {
		parts = append(parts, "any zone")
	}
	if t.Drives > 0 {
		parts = append(parts, fmt.Sprintf("%d more drive(s)", t.Drives))
	}
	if t.InZone {
		parts = append(parts, "inside one zone")
	}
	return strings.Join(parts, " and ")
}
