package controller

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/placement"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

const (
	replicaTimeout = 30 * time.Minute // bounds the making of one replica, which copies the whole group
	removeTimeout  = time.Minute      // bounds the removal of one
	asideFor       = 30 * time.Second // no replica of a group is made on a drive so long after one could not be made there

	movesMax  = 64 // groups that change at the same time
	copiesMax = 4  // of these, groups that get a new replica
)

// member is a replica in a group's Raft configuration, as seen by the planner.
type member struct {
	cluster.Replica
	Lost bool // multiraft says that it lost something and must not act again
}

// view is all that decides what to do about a group.
type view struct {
	members []member                   // of the Raft configuration, with their drives
	strays  []cluster.Replica          // on drives here, but not in the configuration
	drives  []cluster.Drive            // recorded, not removed
	usable  func(storage.DriveID) bool // open here, in the metadata plane and recorded as active
	aside   map[storage.DriveID]bool   // nothing is added on these now
	want    int                        // Config.Voters
	nowMS   int64
	grace   time.Duration
}

// move is one change of a group; the zero value is none.
type move struct {
	add    storage.DriveID   // make a voter there, or
	as     cluster.ReplicaID // if not empty: the follower that is there becomes one
	follow bool              // a follower instead
	remove cluster.ReplicaID
	why    string
}

// plan decides the next move of a group. It adds before it removes, so that a group is never
// less redundant than it was, unless the drive to add on still holds what is to be removed.
func (v *view) plan() move {
	for _, s := range v.strays {
		// Before all else: one that was made and never added takes the place of the next on its drive.
		return move{remove: s.ID, why: "the group does not have it"}
	}
	all := slices.Clone(v.drives)
	down := map[storage.DriveID]cluster.Drive{}
	for i := range all {
		if all[i].State == cluster.DriveDown {
			down[all[i].ID] = all[i]
			all[i].State = cluster.DriveActive // an outage shrinks no group
		}
	}
	many := manyNodes(all)
	ideal, _ := placement.Voters(all, v.want)
	perZone, zoneOf := map[cluster.Zone]int{}, map[storage.DriveID]cluster.Zone{}
	for _, d := range all {
		zoneOf[d.ID] = d.Zone
	}
	zoneMax := 1
	for _, id := range ideal {
		perZone[zoneOf[id]]++
		zoneMax = max(zoneMax, perZone[zoneOf[id]])
	}

	var good, lost []member
	used := map[cluster.Zone]int{}
	host := map[storage.DriveID]bool{}
	for _, m := range v.members {
		zone, known := zoneOf[m.Drive]
		d, isDown := down[m.Drive]
		switch {
		case !m.Voter:
			// Left over from a move that a crash or a timeout cut off.
			return move{remove: m.ID, why: "it never became a voter"}
		case !known:
			m.Lost = true
		case isDown && v.nowMS-d.DownSinceMS >= v.grace.Milliseconds():
			m.Lost = true
		}
		host[m.Drive] = true
		if m.Lost {
			lost = append(lost, m)
			continue
		}
		good = append(good, m)
		used[zone]++
	}
	if many && len(lost) > 0 && len(v.members) > len(ideal) {
		return move{remove: lost[0].ID, why: "its drive is lost"} // one for one: who is dead must not count in a majority for long
	}
	if len(good) < len(ideal) {
		if d, ok := v.candidate(ideal, host, used, zoneMax); ok {
			return move{add: d, why: "too few copies of the metadata"}
		}
		// A drive that is fine but whose replica is lost takes a new one once the old one is out.
		for _, m := range lost {
			if v.usable(m.Drive) && len(good) > len(v.members)/2 {
				return move{remove: m.ID, why: "it lost its data"}
			}
		}
		return move{}
	}
	if len(lost) > 0 {
		return move{remove: lost[0].ID, why: "its drive is lost"}
	}
	if many && len(ideal) > 0 {
		if m := v.spread(good, len(ideal), host); m != (move{}) {
			return m
		}
	}
	if len(good) > len(ideal) && len(ideal) > 0 {
		return move{remove: v.surplus(good, ideal, used, zoneOf), why: "there are more copies than needed"}
	}
	return move{}
}

// candidate is the drive for one more voter: ideal ones first, in the zone with the fewest.
func (v *view) candidate(ideal []storage.DriveID, host map[storage.DriveID]bool, used map[cluster.Zone]int, zoneMax int) (best storage.DriveID, ok bool) {
	bestCost := 0
	for i, d := range v.drives {
		if host[d.ID] || !v.usable(d.ID) || v.aside[d.ID] || used[d.Zone] >= zoneMax {
			continue
		}
		cost := used[d.Zone]*2*len(v.drives) + i
		if !slices.Contains(ideal, d.ID) {
			cost += len(v.drives)
		}
		if !ok || cost < bestCost {
			best, bestCost, ok = d.ID, cost, true
		}
	}
	return best, ok
}

// surplus is the voter that is needed least: in the fullest zone, on a drive that is not ideal.
func (v *view) surplus(good []member, ideal []storage.DriveID, used map[cluster.Zone]int, zoneOf map[storage.DriveID]cluster.Zone) cluster.ReplicaID {
	worst, worstCost := good[0], -1
	for _, m := range good {
		cost := 4 * used[zoneOf[m.Drive]]
		if !v.usable(m.Drive) {
			cost += 2
		}
		if !slices.Contains(ideal, m.Drive) {
			cost++
		}
		if cost > worstCost {
			worst, worstCost = m, cost
		}
	}
	return worst.ID
}

// moved is the end of a group's move.
type moved struct {
	group  cluster.GroupID
	add    storage.DriveID // where a replica was to be made, or zero
	failed bool
	aside  bool // it could not be made, and is better tried on another drive
}

// asideKey is a drive as a place for a group's replica.
type asideKey struct {
	group cluster.GroupID
	drive storage.DriveID
}

// groupLoop keeps every group's replicas where they belong, one move at a time in each. A move runs by itself: one
// that takes long holds up no other group.
func (c *Controller) groupLoop(ctx context.Context) {
	ticker := time.NewTicker(c.cfg.Tick)
	defer ticker.Stop()
	burst := 0 // moves that followed each other since the last tick
	for {
		only := cluster.GroupID(0) // the group to look at; 0: all
		select {
		case <-ctx.Done():
			return
		case m := <-c.moved:
			delete(c.moving, m.group)
			if m.aside {
				c.aside[asideKey{m.group, m.add}] = time.Now()
			}
			if burst++; m.failed || burst > movesMax {
				continue
			}
			only = m.group
		case <-ticker.C:
			burst = 0
		}
		groups := c.cfg.Groups.Status()
		if c.cfg.Cluster != nil && only == 0 {
			c.reportMissing(ctx, groups)
		}
		for _, st := range groups {
			switch {
			case ctx.Err() != nil, only != 0 && st.Group != only:
			case c.cfg.Cluster != nil:
				c.tendNode(ctx, st)
			default:
				c.tendGroup(ctx, st)
			}
		}
		maps.DeleteFunc(c.aside, func(_ asideKey, since time.Time) bool { return time.Since(since) >= asideFor })
	}
}

// resolve are the members of a group with their drives: Raft knows ids only, the topology the drives.
func resolve(recorded, members []cluster.Replica) []cluster.Replica {
	out := slices.Clone(members)
	for i := range out {
		if !out[i].Drive.IsZero() {
			continue
		}
		for _, r := range recorded {
			if r.ID == out[i].ID {
				out[i].Drive = r.Drive
			}
		}
	}
	for i := range out {
		for _, r := range recorded {
			out[i].Lost = out[i].Lost || r.ID == out[i].ID && r.Lost
		}
	}
	return out
}

// tendGroup begins at most one move in a group, unless one is under way, and has its replicas recorded.
func (c *Controller) tendGroup(ctx context.Context, st multiraft.GroupStatus) {
	if _, ok := c.moving[st.Group]; ok || len(c.moving) >= movesMax {
		return
	}
	t, g := c.Topology(), st.Group
	rec, ok := t.Groups[g]
	if !ok {
		return
	}
	subject := fmt.Sprintf("group %d", g)
	members, err := c.cfg.Groups.Members(g)
	if err != nil || len(members) == 0 {
		return // no leader now
	}
	members = resolve(rec.Replicas, members)
	v := &view{
		aside: map[storage.DriveID]bool{}, drives: homes(t), want: c.cfg.Voters, nowMS: c.cfg.Now().UnixMilli(), grace: c.cfg.VoterGrace,
		usable: func(id storage.DriveID) bool {
			if d := t.Drives[id]; d.Node != c.cfg.Node {
				return d.State == cluster.DriveActive && t.Nodes[d.Node].State == cluster.NodeActive
			}
			s, open := c.slotOf(id)
			return open && t.Drives[id].State == cluster.DriveActive && c.recordedStart(s)
		},
	}
	for k := range c.aside {
		if k.group == g {
			v.aside[k.drive] = true
		}
	}
	state := map[cluster.ReplicaID]multiraft.ReplicaState{}
	for _, r := range st.Replicas {
		state[r.ID] = r.State
		if r.State != multiraft.ReplicaAway && !slices.ContainsFunc(members, func(m cluster.Replica) bool { return m.ID == r.ID }) {
			v.strays = append(v.strays, cluster.Replica{ID: r.ID, Drive: r.Drive})
		}
	}
	if len(v.strays) > 0 && c.cfg.Cluster == nil {
		// A leader's word of now, not that of who knew most while there was none.
		if err := c.cfg.Groups.Read(ctx, g, func(pebble.Reader) error { return nil }); err != nil {
			return
		}
		now, err := c.cfg.Groups.Members(g)
		if err != nil || !slices.EqualFunc(now, members, func(a, b cluster.Replica) bool { return a.ID == b.ID }) {
			return
		}
	}
	for _, m := range members {
		here := c.cfg.Cluster == nil || t.Drives[m.Drive].Node == c.cfg.Node
		v.members = append(v.members, member{m, m.Lost || here && c.isLost(m, state[m.ID], v.usable(m.Drive))})
	}
	next := v.planAll(g == cluster.SystemGroup && c.cfg.Cluster != nil)
	if next == (move{}) {
		c.record(ctx, rec, members, subject)
		return
	}
	if !next.add.IsZero() && c.copies() >= copiesMax {
		return
	}
	c.moving[g] = next
	c.loops.Go(func() { c.runMove(ctx, rec, members, next) })
}

// copies are the moves under way that make a replica.
func (c *Controller) copies() (n int) {
	for _, m := range c.moving {
		if !m.add.IsZero() {
			n++
		}
	}
	return n
}

// runMove makes a move of a group and has its replicas recorded, in a goroutine of its own.
func (c *Controller) runMove(ctx context.Context, rec cluster.Group, members []cluster.Replica, next move) {
	subject := fmt.Sprintf("group %d", rec.ID)
	aside, err := c.doMove(ctx, rec, members, next)
	if err == nil {
		c.note(subject, slog.LevelInfo, "")
		if members, err := c.cfg.Groups.Members(rec.ID); err == nil && len(members) > 0 {
			rec = c.Topology().Groups[rec.ID]
			c.record(ctx, rec, resolve(rec.Replicas, members), subject)
		}
	} else if ctx.Err() == nil {
		c.note(subject, slog.LevelWarn, fmt.Sprintf("cannot replace a copy of the metadata of group %d: %v", rec.ID, err))
	}
	c.moved <- moved{rec.ID, next.add, err != nil, aside} // has room for all moves
}

// isLost reports whether a member will not work again under its id: it says so;
// or its drive is in use here, but for a while it is not there, or stopped (its rows are damaged).
func (c *Controller) isLost(m cluster.Replica, state multiraft.ReplicaState, usable bool) bool {
	off := state == multiraft.ReplicaFailed || state == multiraft.ReplicaAway || state == ""
	if !off || !usable {
		delete(c.stopped, m.ID)
	}
	switch {
	case state == multiraft.ReplicaLost:
		return true
	case off:
		// One that is not there may be still to come: a split's, while its parent's replica here lags.
		if !usable {
			return false
		}
		since, ok := c.stopped[m.ID]
		if !ok {
			since = time.Now()
			c.stopped[m.ID] = since
		}
		return time.Since(since) >= c.cfg.HangAfter
	}
	return false
}

// doMove makes a move; aside says that a replica could not be made, and that it is better tried on another drive.
func (c *Controller) doMove(ctx context.Context, rec cluster.Group, members []cluster.Replica, m move) (aside bool, err error) {
	if m.remove != "" {
		ctx, cancel := context.WithTimeout(ctx, removeTimeout)
		defer cancel()
		c.log.Info("removing a copy of the metadata", "group", rec.ID, "replica", m.remove, "why", m.why)
		return false, c.cfg.Groups.RemoveReplica(ctx, rec.ID, m.remove)
	}
	ctx, cancel := context.WithTimeout(ctx, replicaTimeout)
	defer cancel()
	replica := cluster.Replica{ID: m.as, Drive: m.add, Voter: !m.follow}
	if m.as == "" {
		if replica.ID, err = c.newReplicaID(rec.ID); err != nil {
			return false, err
		}
		c.log.Info("making a copy of the metadata", "group", rec.ID, "replica", replica.ID, "drive", m.add.Short(), "why", m.why)
		// Recorded first: only the topology says on which drive a replica lies.
		if err := c.putReplicas(ctx, rec, append(slices.Clone(members), cluster.Replica{ID: replica.ID, Drive: m.add})); err != nil {
			return false, err
		}
		if err := c.createAway(ctx, rec.ID, replica); err != nil {
			return true, err
		}
	}
	var gone atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { // a copy on a drive that goes away never catches up
		ticker := time.NewTicker(c.cfg.Tick)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if !c.reachable(m.add) {
				gone.Store(true)
				cancel()
			}
		}
	})
	err = c.cfg.Groups.AddReplica(ctx, rec.ID, replica)
	cancel()
	wg.Wait()
	switch errs.KindOf(err) {
	case errs.Timeout, errs.Conflict, errs.DriveFailed:
		aside = true
	}
	return err != nil && (aside || gone.Load()), err
}

// record has a group's replicas recorded if the topology says otherwise.
func (c *Controller) record(ctx context.Context, rec cluster.Group, members []cluster.Replica, subject string) {
	if sameReplicas(rec.Replicas, members) || slices.ContainsFunc(members, func(r cluster.Replica) bool { return r.Drive.IsZero() }) {
		return
	}
	if err := c.putReplicas(ctx, rec, members); err != nil && ctx.Err() == nil && !errs.Is(err, errs.Conflict) {
		c.note(subject, slog.LevelWarn, fmt.Sprintf("cannot record the copies of the metadata of group %d: %v", rec.ID, err))
	}
}

// putReplicas records replicas of a group if they are still recorded as in rec.
func (c *Controller) putReplicas(ctx context.Context, rec cluster.Group, replicas []cluster.Replica) error {
	_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_SetReplicas{SetReplicas: &metapb.SetReplicasOp{
		Group: uint64(rec.ID), IfMembers: rec.Members, Replicas: sysstate.ReplicasToRow(replicas),
	}}})
	if err == nil || errs.Is(err, errs.Conflict) {
		c.refresh(ctx)
	}
	return err
}

func sameReplicas(a, b []cluster.Replica) bool {
	if len(a) != len(b) {
		return false
	}
	for _, r := range a {
		if !slices.Contains(b, r) {
			return false
		}
	}
	return true
}
