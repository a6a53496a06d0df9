package multiraft

import (
	"context"
	"errors"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// Propose has a command committed and applied, and returns its result. It must be called where
// the group's leader is. data is copied.
//
// Errors: NotLeader (definitely not proposed; see LeaderHint), Busy (too many in
// flight, of the group or of all; not proposed), DriveFull (it grows the state, see Grower, and a voter's drive is below its reserve; not proposed), InvalidArgument (too large), Closed, and OutcomeUnknown: it may have been
// applied, or may be yet; also when ctx ends while it is in flight.
func (h *Host) Propose(ctx context.Context, id cluster.GroupID, data []byte) ([]byte, error) {
	return h.propose(ctx, id, data, false)
}

func (h *Host) propose(ctx context.Context, id cluster.GroupID, data []byte, split bool) ([]byte, error) {
	r, err := h.leader("multiraft.propose", id)
	if err != nil {
		return nil, err
	}
	if len(data) > h.cfg.CommandBytesMax {
		return nil, errs.Newf(errs.InvalidArgument, "multiraft.propose", "", "a command of %d bytes", len(data))
	}
	if err := ctx.Err(); err != nil {
		return nil, &errs.Error{Kind: errs.Timeout, Op: "multiraft.propose", Detail: "not proposed", Err: err}
	}
	if err := h.clockErr("multiraft.propose"); err != nil {
		return nil, err
	}
	if err := r.room(data); err != nil {
		return nil, err
	}
	size := int64(len(data))
	n, sum, all := r.inflight.Add(1), r.inBytes.Add(size), h.inBytes.Add(size)
	if n > int64(h.cfg.ProposalsMax) || sum > h.cfg.ProposalBytesMax && n > 1 || all > h.cfg.ProposalBytesAll && all > size {
		r.release(size)
		return nil, errs.New(errs.Busy, "multiraft.propose", string(r.id), "too many commands in flight")
	}
	if r.isCut.Load() { // only now: shutdown looks at the count after the cut
		r.release(size)
		return nil, r.g.notLeader("multiraft.propose")
	}
	entry := encodeEntry(h.cfg.Now().UnixMilli(), data)
	if split {
		entry[0] = birthFormat
		r.splitting.Add(1)
	}
	done := make(chan raft.ApplyFuture, 1)
	// raft's futures cannot be waited for with a ctx. The goroutine ends with the command's fate; see shutdown.
	go func() {
		f := r.raft.Apply(entry, 0)
		_ = f.Error()
		r.release(size)
		if split {
			r.splitting.Add(-1)
			r.g.changed.signal()
		}
		done <- f
	}()
	select {
	case f := <-done:
		return r.outcome(f)
	case <-ctx.Done():
		return nil, &errs.Error{Kind: errs.OutcomeUnknown, Op: "multiraft.propose", Subject: string(r.id), Err: ctx.Err()}
	case <-r.cutCh:
		select {
		case f := <-done: // applied just before
			return r.outcome(f)
		default:
			return nil, &errs.Error{Kind: errs.OutcomeUnknown, Op: "multiraft.propose", Subject: string(r.id), Detail: "the leader stopped", Err: r.why}
		}
	}
}

func (r *replica) release(size int64) {
	r.inflight.Add(-1)
	r.inBytes.Add(-size)
	r.h.inBytes.Add(-size)
}

func (r *replica) outcome(f raft.ApplyFuture) ([]byte, error) {
	err := f.Error()
	switch {
	case err == nil:
		switch res := f.Response().(type) {
		case []byte:
			return res, nil
		case error:
			err = res
		default:
			err = errors.New("no result")
		}
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return nil, r.g.notLeader("multiraft.propose")
	}
	return nil, &errs.Error{Kind: errs.OutcomeUnknown, Op: "multiraft.propose", Subject: string(r.id), Err: err}
}

// leader is the local replica that leads the group.
func (h *Host) leader(op string, id cluster.GroupID) (*replica, error) {
	if h.closed.Load() {
		return nil, errs.New(errs.Closed, op, "", "")
	}
	g := h.group(id, false)
	if g != nil {
		if r := g.leader.Load(); r != nil {
			return r, nil
		}
	}
	if g == nil {
		return nil, errs.Newf(errs.NotLeader, op, "", "group %d has no replica here", id)
	}
	return nil, g.notLeader(op)
}

// Read calls fn with the state of the group's leader, linearizably: fn sees the effect of everything that was
// acknowledged before Read was called. It must be called where the leader is. fn may run on the live
// state, in which later commands appear between two reads: one that makes several
// takes a Snapshot. r must not be kept after fn returns. fn's error is returned as it is. Other
// errors: NotLeader, Unavailable (no quorum confirms the leader, or ctx ended; also after fn was called, if the replica
// was stopped under it), Closed.
//
// Why it is linearizable. Let t0 be the start of the call, T the leader's term.
//
//  1. In term T the leader has applied a barrier of its own (readTerm), so its state holds everything that
//     was committed in earlier terms. Commands of term T are acknowledged only after
//     they are in its state.
//  2. Either the leader's lease (lease.go) held at some moment after t0, so that no leader of a later term had been
//     elected before. Or after t0 a quorum of the voters of the leader's latest configuration is seen to have term T still.
//     A leader of a later term elected before t0 would have had the votes of a quorum, each of which
//     had raised its term first, before t0, and terms only rise (raft
//     stores a term before it uses it, and a replica that lost its own never acts again). The two quorums share
//     a voter: contradiction. The first such leader's configuration is the
//     same as this one's or one change away from it, since raft allows a change only after the last one
//     and an entry of term T (the barrier) are committed; so the quorums do intersect.
//  3. So nobody but leaders of terms up to T acknowledged anything before t0, and all that is in the state that fn reads.
//
// So it does not matter how long fn takes, nor whether the replica still leads then. Without a lease no clock is involved.
func (h *Host) Read(ctx context.Context, id cluster.GroupID, fn func(r pebble.Reader) error) error {
	r, err := h.readable(ctx, id)
	if err != nil {
		return err
	}
	return r.withState("multiraft.read", fn)
}

// readable is the group's leader here, once its state holds everything that was acknowledged before the call.
func (h *Host) readable(ctx context.Context, id cluster.GroupID) (*replica, error) {
	r, err := h.leader("multiraft.read", id)
	if err != nil {
		return nil, err
	}
	term := r.readTerm.Load()
	if term == 0 {
		if term, err = r.awaitReadable(ctx); err != nil {
			return nil, err
		}
	}
	done, err := r.confirm(term)
	if err != nil {
		return nil, err
	}
	if !done && !r.holdsLease(term) {
		if err := r.rounds.confirm(ctx, r, term); err != nil {
			return nil, err
		}
	}
	return r, r.awaitBirths(ctx, term)
}

// withState runs fn on the replica's state, which neither closes nor is replaced meanwhile.
func (r *replica) withState(op string, fn func(pebble.Reader) error) error {
	if !r.ds.users.enter() {
		return errs.New(errs.Unavailable, op, string(r.id), "the replica stopped")
	}
	defer r.ds.users.leave()
	r.reading.RLock()
	defer r.reading.RUnlock()
	err := fn(r.ds.db())
	if r.isCut.Load() { // then even a "not found" may be wrong
		return errs.New(errs.Unavailable, op, string(r.id), "the replica stopped; its rows may be going")
	}
	return err
}

// awaitReadable waits for the barrier of a new leader.
func (r *replica) awaitReadable(ctx context.Context) (uint64, error) {
	for {
		changed := r.g.changed.wait()
		if t := r.readTerm.Load(); t != 0 {
			return t, nil
		}
		if r.g.leader.Load() != r {
			return 0, r.g.notLeader("multiraft.read")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, &errs.Error{Kind: errs.Unavailable, Op: "multiraft.read", Subject: string(r.id), Detail: "the leader is not ready yet", Err: ctx.Err()}
		}
	}
}

// confirm reports whether a quorum of the voters, all of them here, was seen in term after the call. An error says
// that asking those that are away is no use.
func (r *replica) confirm(term uint64) (bool, error) {
	voters, confirmed, away := 0, 0, 0
	for _, s := range r.configuration().Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		v := r.h.replica(cluster.ReplicaID(s.ID))
		switch {
		case v == nil:
			away++
		case v.raft.CurrentTerm() == term && !v.isCut.Load():
			confirmed++
		}
	}
	if confirmed > voters/2 {
		return true, nil
	}
	if r.h.cfg.Remote != nil && confirmed+away > voters/2 {
		return false, nil
	}
	if r.raft.CurrentTerm() != term {
		return false, r.g.notLeader("multiraft.read")
	}
	return false, errs.Newf(errs.Unavailable, "multiraft.read", string(r.id), "%d of %d voters confirm the leader", confirmed, voters)
}

// ReadLocal calls fn with the state of the local replica that has applied most. It may be behind: what was
// acknowledged may be missing. Errors: fn's; Unavailable (no replica here).
func (h *Host) ReadLocal(id cluster.GroupID, fn func(r pebble.Reader) error) error {
	var best *replica
	if g := h.group(id, false); g != nil {
		for _, r := range g.replicas() {
			if r.markerPoint().Index != 0 && (best == nil || r.applied.Load() > best.applied.Load()) {
				best = r
			}
		}
	}
	if best == nil {
		return errs.Newf(errs.Unavailable, "multiraft.readLocal", "", "group %d has no state here", id)
	}
	return best.withState("multiraft.readLocal", fn)
}

// Snapshot is a consistent view of what a Reader handed out by Read shows. It must be closed, within the call to fn.
func Snapshot(r pebble.Reader) pebble.Reader {
	if db, ok := r.(*pebble.DB); ok {
		return db.NewSnapshot()
	}
	return noClose{r}
}

type noClose struct{ pebble.Reader }

func (noClose) Close() error { return nil }
