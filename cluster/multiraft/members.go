package multiraft

import (
	"context"
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// Members are the replicas of the group's latest configuration as the leader here, else the local
// replica that knows most, has it. Drive is zero for those that are not here. Error: Unavailable.
func (h *Host) Members(id cluster.GroupID) ([]cluster.Replica, error) {
	g := h.group(id, false)
	if g == nil {
		return nil, errs.Newf(errs.Unavailable, "multiraft.members", "", "group %d has no replica here", id)
	}
	best := g.leader.Load()
	if best == nil {
		for _, r := range g.replicas() {
			if best == nil || r.applied.Load() > best.applied.Load() {
				best = r
			}
		}
	}
	if best == nil {
		return nil, errs.Newf(errs.Unavailable, "multiraft.members", "", "group %d has no replica here", id)
	}
	var out []cluster.Replica
	for _, s := range best.configuration().Servers {
		m := cluster.Replica{ID: cluster.ReplicaID(s.ID), Voter: s.Suffrage == raft.Voter}
		if r := h.replica(m.ID); r != nil {
			m.Drive = r.ds.d.ID
		}
		out = append(out, m)
	}
	return out, nil
}

// AddReplica adds a replica to a group: it joins as a non-voter, gets the state by snapshot, and becomes a voter, if
// r.Voter, once it has caught up. It must be called where the leader is, and may be repeated with the same r
// after any error. r.ID must never have been used before. If its drive is here the replica is created, empty;
// otherwise CreateReplica must have been called where the drive is. Errors: NotLeader, Conflict (the
// drive has another replica of the group), Unavailable (ctx ended, or the leader changed), Timeout (for half a minute
// nothing reached the replica that it does not have yet), DriveFailed.
func (h *Host) AddReplica(ctx context.Context, id cluster.GroupID, r cluster.Replica) error {
	lead, err := h.leader("multiraft.addReplica", id)
	if err != nil {
		return err
	}
	if h.cfg.Remote == nil || h.drive(r.Drive) != nil {
		if err := h.CreateReplica(id, r); err != nil {
			return err
		}
	}
	sid, addr := raft.ServerID(r.ID), raft.ServerAddress(r.ID)
	member, voter := lead.memberOf(r.ID)
	if !member {
		if err := lead.change(ctx, func() raft.Future { return lead.raft.AddNonvoter(sid, addr, 0, 0) }); err != nil {
			return err
		}
	}
	if voter || !r.Voter {
		return nil
	}
	watched, stop := lead.watchCopy(ctx, r.ID)
	err = lead.awaitCaughtUp(watched, r.ID)
	if stalled := stop(); err != nil && stalled {
		return errs.Newf(errs.Timeout, "multiraft.addReplica", string(r.ID), "nothing has reached it for %v", copyStall)
	}
	if err != nil {
		return err
	}
	return lead.change(ctx, lead.nudged(func() raft.Future { return lead.raft.AddVoter(sid, addr, 0, 0) }))
}

// CreateReplica makes a replica without state on a drive here and starts it; it waits for a leader to
// add it to the group and send it a snapshot. Nothing happens if it is there already. Errors:
// DriveFailed (also if the drive is not here), Conflict (the drive has another replica of the group), Closed.
func (h *Host) CreateReplica(id cluster.GroupID, r cluster.Replica) error {
	h.admin.Lock()
	defer h.admin.Unlock()
	if h.closed.Load() {
		return errs.New(errs.Closed, "multiraft.createReplica", string(r.ID), "")
	}
	ds := h.drive(r.Drive)
	if ds == nil {
		return errs.Newf(errs.DriveFailed, "multiraft.createReplica", string(r.ID), "drive %s is not here", r.Drive.Short())
	}
	rec := record{Format: rowFormat, Group: id, Replica: r.ID, Empty: true}
	exists, err := ds.createOnce(rec, 0, func(*pebble.Batch) error { return nil })
	if err != nil || exists {
		return err
	}
	return ds.startReplica(id, rec, true)
}

// awaitCaughtUp waits until a peer has everything that was committed when it was last looked at.
func (r *replica) awaitCaughtUp(ctx context.Context, id cluster.ReplicaID) error {
	term := r.raft.CurrentTerm()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for r.leads(term) {
		commit := r.raft.CommitIndex()
		if commit > 0 && r.peerHas(id) >= commit {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &errs.Error{Kind: errs.Unavailable, Op: "multiraft.addReplica", Subject: string(id), Detail: "it has not caught up yet", Err: ctx.Err()}
		}
	}
	return errs.New(errs.Unavailable, "multiraft.addReplica", string(id), "the leader changed")
}

// change runs a configuration change at the leader.
func (r *replica) change(ctx context.Context, start func() raft.Future) error {
	err := r.ask(ctx, "multiraft.change", start)
	switch {
	case err == nil && r.isCut.Load():
		err = errors.New("the leader stopped")
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return r.g.notLeader("multiraft.change")
	}
	return &errs.Error{Kind: errs.Unavailable, Op: "multiraft.change", Subject: string(r.id), Detail: "the change may or may not be made", Err: err}
}

// RemoveReplica takes a replica out of its group, if it is a member, and then removes its rows, if its drive is here.
// The first must be done where the leader is; a leader may remove itself. It also clears away a lost replica. It may be
// repeated after any error. Errors: NotLeader, Unavailable, DriveFailed.
func (h *Host) RemoveReplica(ctx context.Context, id cluster.GroupID, rid cluster.ReplicaID) error {
	lead, err := h.leader("multiraft.removeReplica", id)
	if err != nil {
		return err
	}
	if member, _ := lead.memberOf(rid); member {
		if err := lead.change(ctx, func() raft.Future { return lead.raft.RemoveServer(raft.ServerID(rid), 0, 0) }); err != nil {
			return err
		}
	}
	return h.DestroyReplica(id, rid)
}

// DestroyReplica stops a replica on a drive here and removes its rows. Its group must have removed it
// before, or be gone. Nothing happens if it is not here. It may be repeated after any error. Errors: DriveFailed,
// Unavailable (it was stopped and has not come to rest yet).
func (h *Host) DestroyReplica(id cluster.GroupID, rid cluster.ReplicaID) error {
	h.admin.Lock()
	defer h.admin.Unlock()
	h.mu.Lock()
	drives := make([]*driveStore, 0, len(h.mu.drives))
	for _, ds := range h.mu.drives {
		drives = append(drives, ds)
	}
	h.mu.Unlock()
	for _, ds := range drives {
		ds.mu.Lock()
		r, lost := ds.mu.replicas[id], ds.mu.lost[id]
		held, isHeld := ds.mu.held[id]
		ds.mu.Unlock()
		switch {
		case r != nil && r.id == rid:
			r.cut(errs.New(errs.Gone, "multiraft.destroy", string(rid), "the replica was removed"))
			patience := time.NewTimer(closePatience)
			select {
			case <-r.stopped:
				patience.Stop()
			case <-ds.failed:
				patience.Stop()
				return errs.New(errs.DriveFailed, "multiraft.destroy", string(rid), "")
			case <-patience.C:
				return errs.Newf(errs.Unavailable, "multiraft.destroy", string(rid), "it has not come to rest in %v", closePatience)
			}
		case lost.why != nil && lost.id == rid:
		case isHeld && held.Replica == rid:
			if err := ds.markBorn(held); err != nil {
				return err
			}
		default:
			continue
		}
		if err := ds.destroy(id, rid); err != nil {
			return err
		}
		ds.mu.Lock()
		delete(ds.mu.replicas, id)
		delete(ds.mu.lost, id)
		delete(ds.mu.held, id)
		ds.mu.Unlock()
		ds.orphan(rid)
		h.kick(id, true) // in case it led
	}
	return nil
}
