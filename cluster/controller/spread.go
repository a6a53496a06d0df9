package controller

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// crowd is how unevenly a set of drives stands in zones and, less weighty, on nodes.
func crowd(ds []cluster.Drive) (n int) {
	zones, nodes := map[cluster.Zone]int{}, map[cluster.NodeID]int{}
	for _, d := range ds {
		zones[d.Zone]++
		nodes[d.Node]++
	}
	for _, c := range zones {
		n += 100 * c * c
	}
	for _, c := range nodes {
		n += c * c
	}
	return n
}

// spread moves voters apart that stand closer together than they need to: it adds one
// where the set is better for it, and takes away the one that is most in the way. There are as many as want, or more.
func (v *view) spread(good []member, want int, host map[storage.DriveID]bool) move {
	byID := map[storage.DriveID]cluster.Drive{}
	for _, d := range v.drives {
		byID[d.ID] = d
	}
	var set []cluster.Drive
	for _, m := range good {
		set = append(set, byID[m.Drive])
	}
	without := func(set []cluster.Drive) (best, at int) {
		best, at = -1, -1
		for i := range set {
			c := 4*crowd(slices.Concat(set[:i], set[i+1:])) + 2
			if !v.usable(set[i].ID) {
				c -= 2 // among equals one that does not help now
			}
			if best < 0 || c < best {
				best, at = c, i
			}
		}
		return best, at
	}
	if len(good) > want {
		_, at := without(set)
		return move{remove: good[at].ID, why: "there are more copies than needed"}
	}
	if len(good) < want {
		return move{}
	}
	best, add := crowd(set), storage.DriveID{}
	for _, d := range v.drives {
		if host[d.ID] || !v.usable(d.ID) || v.aside[d.ID] {
			continue
		}
		with := append(slices.Clone(set), d)
		_, at := without(with)
		if at == len(with)-1 || at < 0 {
			continue
		}
		if c := crowd(slices.Concat(with[:at], with[at+1:])); c < best {
			best, add = c, d.ID
		}
	}
	if add.IsZero() {
		return move{}
	}
	return move{add: add, why: "the copies stand closer together than they need to"}
}

// planAll is plan, and where followers is set also for them: every node that has no voter has one follower.
func (v *view) planAll(followers bool) move {
	if !followers {
		return v.plan()
	}
	voters, follow := []member(nil), []member(nil)
	for _, m := range v.members {
		if m.Voter {
			voters = append(voters, m)
		} else {
			follow = append(follow, m)
		}
	}
	w := *v
	w.members, w.strays = voters, nil
	m := w.plan()
	if !m.add.IsZero() {
		return v.promote(m, follow)
	}
	if m != (move{}) {
		return m
	}
	return v.planFollowers(voters, follow)
}

// promote lets a follower on the node that is to get a voter become it: it has the state already.
func (v *view) promote(m move, follow []member) move {
	node := cluster.NodeID("")
	for _, d := range v.drives {
		if d.ID == m.add {
			node = d.Node
		}
	}
	for _, f := range follow {
		for _, d := range v.drives {
			if d.ID == f.Drive && d.Node == node && !f.Lost && v.usable(d.ID) && !v.aside[d.ID] {
				return move{add: d.ID, as: f.ID, why: m.why}
			}
		}
	}
	return m
}

func (v *view) planFollowers(voters, follow []member) move {
	nodeOf := map[storage.DriveID]cluster.NodeID{}
	for _, d := range v.drives {
		nodeOf[d.ID] = d.Node
	}
	served := map[cluster.NodeID]bool{}
	for _, m := range voters {
		served[nodeOf[m.Drive]] = true
	}
	for _, m := range follow {
		node, known := nodeOf[m.Drive]
		switch {
		case !known || m.Lost:
			return move{remove: m.ID, why: "its drive is lost"}
		case served[node]:
			return move{remove: m.ID, why: "its node has another copy"}
		case !v.usable(m.Drive) && slices.ContainsFunc(v.drives, func(d cluster.Drive) bool { return d.Node == node && v.usable(d.ID) }):
			return move{remove: m.ID, why: "another drive of its node takes over"}
		}
		served[node] = true
	}
	for _, d := range v.drives {
		if !served[d.Node] && v.usable(d.ID) && !v.aside[d.ID] {
			return move{add: d.ID, follow: true, why: "its node follows the system group"}
		}
	}
	return move{}
}

// leading is since when a group is led here.
type leading struct {
	term  uint64
	since time.Time
}

// tendNode looks after what is here of a group: replicas that are lost or that the group
// has replaced, and if it is led here, all its replicas.
func (c *Controller) tendNode(ctx context.Context, st multiraft.GroupStatus) {
	if !c.connected() {
		return
	}
	for _, r := range st.Replicas {
		if rec, ok := c.recordedReplica(c.Topology(), st.Group, r.ID); ok && !rec.Lost && !r.Drive.IsZero() {
			_, open := c.slotOf(r.Drive)
			if c.isLost(rec, r.State, open) {
				c.reportLost(ctx, st.Group, r.ID, r.Err)
			}
		}
	}
	if !st.Local {
		delete(c.leading, st.Group)
		c.sweepStrays(ctx, st)
		return
	}
	if l := c.leading[st.Group]; l.term != st.Term {
		c.leading[st.Group] = leading{st.Term, time.Now()}
	}
	if _, ok := c.moving[st.Group]; ok {
		return
	}
	// Whoever led before may have been cut off in the middle of a change. What is
	// recorded is read first, then that this node leads now, then the members.
	if !c.current(ctx) {
		return
	}
	if err := c.cfg.Groups.Read(ctx, st.Group, func(pebble.Reader) error { return nil }); err != nil {
		return
	}
	c.tendGroup(ctx, st)
	if _, ok := c.moving[st.Group]; ok {
		return
	}
	c.sweepStrays(ctx, st)
	c.moveLeader(ctx, st)
}

// current reports whether the topology here is as new as any that was heard of.
func (c *Controller) current(ctx context.Context) bool {
	c.refresh(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Topology().Version >= c.mu.lease.want
}

// createAway makes an empty replica on another node's drive; on one of this node AddReplica does.
func (c *Controller) createAway(ctx context.Context, g cluster.GroupID, r cluster.Replica) error {
	node := c.Topology().Drives[r.Drive].Node
	if node == c.cfg.Node || c.cfg.Cluster == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	return c.cfg.Cluster.Replicas.CreateReplica(ctx, node, g, r)
}

// reachable reports whether a copy on the drive can catch up.
func (c *Controller) reachable(id storage.DriveID) bool {
	t := c.Topology()
	if d := t.Drives[id]; d.Node != c.cfg.Node {
		return d.State == cluster.DriveActive
	}
	_, open := c.slotOf(id)
	return open
}

// missingAfter is how long a replica may be recorded before it is there.
const missingAfter = 5 * time.Minute

// reportMissing reports replicas that are recorded on drives here, but are not there: the
// drive has lost them. One that was recorded lately may be on its way: about to be
// made, or, in a range that was split off, not born before its parent here has passed the split.
func (c *Controller) reportMissing(ctx context.Context, groups []multiraft.GroupStatus) {
	here := map[cluster.ReplicaID]bool{}
	for _, st := range groups {
		for _, r := range st.Replicas {
			here[r.ID] = here[r.ID] || !r.Drive.IsZero()
		}
	}
	for id, g := range c.Topology().Groups {
		for _, r := range g.Replicas {
			s, open := c.slotOf(r.Drive)
			if here[r.ID] || r.Lost || !open || !c.recordedStart(s) || !c.connected() {
				delete(c.missing, r.ID)
				continue
			}
			since, ok := c.missing[r.ID]
			if !ok {
				since = time.Now()
				c.missing[r.ID] = since
			}
			if time.Since(since) < missingAfter {
				continue
			}
			c.reportLost(ctx, id, r.ID, errs.New(errs.NotFound, "controller", string(r.ID), "it is not on its drive"))
		}
	}
}

// reportLost has it recorded that a replica here never acts again.
func (c *Controller) reportLost(ctx context.Context, g cluster.GroupID, id cluster.ReplicaID, why error) {
	_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_ReplicaLost{ReplicaLost: &metapb.ReplicaLostOp{Group: uint64(g), Replica: string(id)}}})
	if err != nil {
		if ctx.Err() == nil {
			c.note("lost "+string(id), slog.LevelWarn, fmt.Sprintf("cannot report that a copy of the metadata of group %d is lost: %v", g, err))
		}
		return
	}
	c.log.Warn("a copy of the metadata is lost", "group", g, "replica", id, "err", why)
	c.refresh(ctx)
}

func (c *Controller) recordedReplica(t *cluster.Topology, g cluster.GroupID, id cluster.ReplicaID) (cluster.Replica, bool) {
	for _, r := range t.Groups[g].Replicas {
		if r.ID == id {
			return r, true
		}
	}
	return cluster.Replica{}, false
}

// straysAfter is how many looks in a row must find a replica unrecorded.
const straysAfter = 3

// sweepStrays removes replicas here that their group has removed. A replica is
// recorded before it is made, and stays so for as long as it is a member: one that
// the system group, asked anew, does not have, and that no member here knows of, is none.
func (c *Controller) sweepStrays(ctx context.Context, st multiraft.GroupStatus) {
	var members []cluster.Replica
	if st.Leader != "" {
		var err error
		if members, err = c.cfg.Groups.Members(st.Group); err != nil {
			return
		}
	}
	for _, r := range st.Replicas {
		if r.Drive.IsZero() || r.ID == st.Leader {
			continue
		}
		t := c.Topology()
		_, recorded := c.recordedReplica(t, st.Group, r.ID)
		member := slices.ContainsFunc(members, func(m cluster.Replica) bool { return m.ID == r.ID })
		// Who is alone here and still hears of a leader is a member, whatever is recorded.
		if _, known := t.Groups[st.Group]; !known || recorded || member {
			delete(c.strays, r.ID)
			continue
		}
		if c.strays[r.ID]++; c.strays[r.ID] < straysAfter {
			continue
		}
		now, err := c.readTopology(ctx)
		if err != nil {
			return
		}
		if _, recorded = c.recordedReplica(now, st.Group, r.ID); recorded || len(now.Groups[st.Group].Replicas) == 0 {
			delete(c.strays, r.ID)
			continue
		}
		c.log.Info("removing a copy of the metadata", "group", st.Group, "replica", r.ID, "why", "the group has replaced it")
		if err := c.cfg.Groups.DestroyReplica(st.Group, r.ID); err != nil {
			c.note("stray "+string(r.ID), slog.LevelWarn, fmt.Sprintf("cannot remove a copy of the metadata of group %d: %v", st.Group, err))
			continue
		}
		delete(c.strays, r.ID)
	}
}

// moveLeader hands the group to the node whose turn it is, so that the groups'
// leaders are spread over the nodes: voters in order of their drives take turns by the group's number.
func (c *Controller) moveLeader(ctx context.Context, st multiraft.GroupStatus) {
	l := c.leading[st.Group]
	if time.Since(l.since) < c.cfg.Cluster.LeadersRest {
		return
	}
	t := c.Topology()
	var voters []cluster.Replica
	for _, r := range t.Groups[st.Group].Replicas {
		if d := t.Drives[r.Drive]; r.Voter && !r.Lost && d.State == cluster.DriveActive && !t.Nodes[d.Node].Leaving {
			voters = append(voters, r)
		}
	}
	if len(voters) == 0 {
		return
	}
	slices.SortFunc(voters, func(a, b cluster.Replica) int { return bytes.Compare(a.Drive[:], b.Drive[:]) })
	to := voters[int(st.Group)%len(voters)]
	if to.ID == st.Leader || t.Drives[to.Drive].Node == c.cfg.Node {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	err := c.cfg.Groups.TransferLeader(ctx, st.Group, to.ID)
	c.leading[st.Group] = leading{st.Term, time.Now()} // not again at once
	if err != nil && !errs.Is(err, errs.NotLeader) {
		c.note("leader", slog.LevelInfo, fmt.Sprintf("group %d was not handed to node %s: %v", st.Group, t.Drives[to.Drive].Node, err))
		return
	}
	c.log.Debug("handed a group over", "group", st.Group, "node", t.Drives[to.Drive].Node)
}
