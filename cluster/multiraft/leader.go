package multiraft

import (
	"context"
	"errors"
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// LeaderOf is the replica that leads the group as far as this process knows; its own if it leads. It may be outdated.
func (h *Host) LeaderOf(id cluster.GroupID) (cluster.ReplicaID, bool) {
	g := h.group(id, false)
	if g == nil {
		return "", false
	}
	if r := g.leader.Load(); r != nil {
		return r.id, true
	}
	l := g.knownLeader()
	return l, l != ""
}

// LeaderHint is the leader that a NotLeader error names, also after its way over the network.
func LeaderHint(err error) (cluster.ReplicaID, bool) {
	for err != nil {
		var e *errs.Error
		if !errors.As(err, &e) {
			break
		}
		if e.Kind == errs.NotLeader && e.Subject != "" {
			return cluster.ReplicaID(e.Subject), true
		}
		err = e.Err
	}
	return "", false
}

// knownLeader is the leader that the local replica with the highest term follows; empty if there is none.
func (g *group) knownLeader() (leader cluster.ReplicaID) {
	best := uint64(0)
	for _, r := range g.replicas() {
		term := r.raft.CurrentTerm()
		if _, l := r.raft.LeaderWithID(); l != "" && (leader == "" || term > best) {
			leader, best = cluster.ReplicaID(l), term
		}
	}
	return leader
}

// notLeader says that the group is not led here. Its Subject is the leader's replica id if one is known, else empty (LeaderHint).
func (g *group) notLeader(op string) error {
	if l := g.knownLeader(); l != "" {
		return errs.Newf(errs.NotLeader, op, string(l), "group %d is led by %s", g.id, l)
	}
	return errs.Newf(errs.NotLeader, op, "", "group %d has no leader now", g.id)
}

// TransferLeader hands leadership of a group that is led here to another voter, if that has the whole log or gets it within half
// a HeartbeatTimeout, and returns when the voter has been asked to stand. Proposals are refused meanwhile. Nothing happens if
// the replica leads already. Errors: NotLeader, InvalidArgument (not a voter of the group),
// Unavailable (it does not answer, is too far behind, was so a moment ago, or ctx ended; the transfer may still happen).
func (h *Host) TransferLeader(ctx context.Context, id cluster.GroupID, to cluster.ReplicaID) error {
	lead, err := h.leader(opTransfer, id)
	if err != nil {
		return err
	}
	if lead.id == to {
		return nil
	}
	if _, voter := lead.memberOf(to); !voter {
		return errs.Newf(errs.InvalidArgument, opTransfer, string(to), "not a voter of group %d", id)
	}
	return lead.transfer(ctx, to)
}

const opTransfer = "multiraft.transferLeader"

// transfer asks raft to hand leadership over. raft itself gives up after an election timeout, and refuses proposals until then.
//
// For a peer that lacks entries raft leaves a note to the goroutine that sends to it. There is room for one. If the
// peer is away that goroutine waits (trans.AppendEntries), and so would the next transfer, whether raft has given it up or not, with
// all proposals refused until the peer is back, or for ever if the term ends first. So a peer is tried only if it has the log, and
// if the try failed over it all the same, only after the note was taken.
func (r *replica) transfer(ctx context.Context, to cluster.ReplicaID) error {
	l := r.lead.Load()
	if l == nil {
		return r.g.notLeader(opTransfer)
	}
	if err := r.awaitWholeLog(ctx, to); err != nil {
		return err
	}
	if r.lead.Load() != l {
		return r.g.notLeader(opTransfer)
	}
	if !l.tryTransfer(to) {
		return errs.New(errs.Unavailable, opTransfer, string(to), "leadership could not be handed to it a moment ago")
	}
	err := r.ask(ctx, opTransfer, func() raft.Future {
		return r.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return r.g.notLeader(opTransfer)
	case errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		l.noteTaken(to) // none was left: there is another transfer
	}
	return &errs.Error{Kind: errs.Unavailable, Op: opTransfer, Subject: string(to), Detail: "leadership was not handed over", Err: err}
}

// awaitWholeLog waits, for half a HeartbeatTimeout at most, until a peer is known to have all that is in the log now.
func (r *replica) awaitWholeLog(ctx context.Context, id cluster.ReplicaID) error {
	ctx, cancel := context.WithTimeout(ctx, r.h.cfg.HeartbeatTimeout/2)
	defer cancel()
	last, _ := r.view.Last()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		has := r.peerHas(id)
		if has >= last {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errs.Newf(errs.Unavailable, opTransfer, string(id), "its log ends at %d or later, the leader's at %d", has, last)
		case <-r.cutCh:
			return errGone(opTransfer, r.id)
		}
	}
}

// stuckRounds is after how many rounds of replication to a peer the note that a transfer left is taken to be gone: in each
// raft picks, at random, between that and what else there is to do.
const stuckRounds = 16

// tryTransfer reports whether a transfer to a peer may be tried, and notes that it is.
func (l *leadership) tryTransfer(to cluster.ReplicaID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.stuck[to] > 0 {
		return false
	}
	l.mu.stuck[to] = stuckRounds
	return true
}

// noteTaken is called when raft sends TimeoutNow: it waits for the note first.
func (l *leadership) noteTaken(to cluster.ReplicaID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mu.stuck, to)
}

// noteRound is called after an append to a peer with which a round of replication ends.
func (l *leadership) noteRound(to cluster.ReplicaID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.stuck[to]--; l.mu.stuck[to] <= 0 {
		delete(l.mu.stuck, to)
	}
}
