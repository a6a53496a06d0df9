package multiraft

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// Leases let a leader read without asking anybody, where voters are in other processes.
//
// A replica that takes an append from a leader of its term makes a promise first: for HeartbeatTimeout from
// then on no vote of its gets out, neither one that it gives nor its own (it asks nobody for votes). The promise is
// kept here, at the transport, because raft handles heartbeats and elections in different goroutines. A
// replica that starts may have forgotten promises and keeps them all for VoteHold.
//
// The leader's lease lasts until ReadLease (less than HeartbeatTimeout) after the moment before it sent the oldest of the
// newest appends that a quorum of the voters of its latest configuration, itself included, acknowledged with success in its
// term. Let that moment be s. Another leader of a later term needs the votes of a quorum of a configuration at most
// one change away, which has a replica in common with this one: either the leader itself, which gives none while it
// leads; or a voter whose promise was made after s. So nobody else is elected before the lease
// ends, and a read that finds, once it has begun, that the replica leads and its lease holds, will
// see all that was acknowledged before (Host.Read). Only clock rates matter, not what they show.
//
// Leadership moves without waiting for promises only by TimeoutNow. The leader of the term gives up its lease for good
// before it is sent; or, where it is sent on behalf of a leader in this process (its drive failed or hangs), that one
// is cut or gives it up. The term goes with it: votes are asked for in the very next term or not at all, and a voter is
// free from the promises to leaders of earlier terms only.

// promise is what a replica has promised to leaders.
type promise struct {
	mu    sync.Mutex
	term  uint64 // of the leader promised to last
	until time.Time
}

// extend promises a leader of term not to vote for d from now on.
func (p *promise) extend(term uint64, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if term >= p.term {
		p.term, p.until = term, time.Now().Add(d)
	}
}

// binds reports whether a vote in term must not get out now; moved: the leader of the term before asked for it.
func (p *promise) binds(term uint64, moved bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Now().Before(p.until) && !(moved && term > p.term)
}

// leadership is one term in which a replica leads; ctx ends with it.
type leadership struct {
	term   uint64
	self   cluster.ReplicaID
	ctx    context.Context
	cancel context.CancelFunc

	noLease atomic.Bool // for good
	lease   atomic.Pointer[lease]

	mu struct {
		sync.Mutex
		servers []raft.Server // that acks are about
		acks    map[cluster.ReplicaID]time.Time
		peers   map[cluster.ReplicaID]peerCtx
		told    map[cluster.ReplicaID]uint64 // commit index that a peer knows
		sent    map[cluster.ReplicaID]uint64 // index of the last snapshot that a peer was sent
		stuck   map[cluster.ReplicaID]int    // a transfer to it left raft a note; see transfer
		telling map[cluster.ReplicaID]bool
	}
}

// lease is valid for a while after from, and only while servers are the latest configuration.
type lease struct {
	servers []raft.Server
	from    time.Time
}

type peerCtx struct {
	ctx    context.Context
	cancel context.CancelFunc
}

func newLeadership(ctx context.Context, self cluster.ReplicaID, term uint64) *leadership {
	l := &leadership{term: term, self: self}
	l.ctx, l.cancel = context.WithCancel(ctx)
	l.mu.acks = map[cluster.ReplicaID]time.Time{}
	l.mu.peers = map[cluster.ReplicaID]peerCtx{}
	l.mu.told = map[cluster.ReplicaID]uint64{}
	l.mu.stuck = map[cluster.ReplicaID]int{}
	l.mu.sent = map[cluster.ReplicaID]uint64{}
	l.mu.telling = map[cluster.ReplicaID]bool{}
	return l
}

// sameServers reports whether two configurations are the same value; raft stores a new one at each change.
func sameServers(a, b []raft.Server) bool {
	return len(a) == len(b) && len(a) > 0 && &a[0] == &b[0]
}

// ack notes that a replica acknowledged an append that was sent at a moment after sent. servers are the latest
// configuration; another one than before ends the lease, and acknowledgements from before count no more.
func (l *leadership) ack(id cluster.ReplicaID, sent time.Time, servers []raft.Server) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !sameServers(l.mu.servers, servers) {
		l.mu.servers = servers
		clear(l.mu.acks)
	}
	if sent.After(l.mu.acks[id]) {
		l.mu.acks[id] = sent
	}
	voters, leads := 0, false
	var acks []time.Time
	for _, s := range servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if cluster.ReplicaID(s.ID) == l.self {
			leads = true
		} else if at, ok := l.mu.acks[cluster.ReplicaID(s.ID)]; ok {
			acks = append(acks, at)
		}
	}
	others := voters / 2 // a quorum with itself
	if !leads || others == 0 || len(acks) < others {
		l.lease.Store(nil)
		return
	}
	slices.SortFunc(acks, func(a, b time.Time) int { return b.Compare(a) })
	l.lease.Store(&lease{servers, acks[others-1]})
}

// holds reports whether the lease, of length d, held at now. Call it with the latest
// configuration, read after now was.
func (l *leadership) holds(now time.Time, d time.Duration, servers []raft.Server) bool {
	le := l.lease.Load()
	if le == nil || !sameServers(le.servers, servers) {
		return false
	}
	// The wall clock counts the time that a machine was asleep.
	return now.Sub(le.from) < d && now.Round(0).Sub(le.from.Round(0)) < d && !l.noLease.Load()
}

// holdsLease reports whether the replica led in term, with a lease, at a moment after the call.
func (r *replica) holdsLease(term uint64) bool {
	l := r.lead.Load()
	if r.h.cfg.ReadLease <= 0 || l == nil || l.term != term {
		return false
	}
	return l.holds(time.Now(), r.h.cfg.ReadLease, r.configuration().Servers) && r.leads(term)
}

// leading is a context that ends when the replica no longer leads in term; nil if it does not now.
func (r *replica) leading(term uint64) context.Context {
	if l := r.lead.Load(); l != nil && l.term == term && !r.isCut.Load() {
		return l.ctx
	}
	return nil
}

// replicating is leading for what is sent to a member: it ends also when that leaves the group.
func (r *replica) replicating(term uint64, id cluster.ReplicaID) context.Context {
	l := r.lead.Load()
	if l == nil || l.term != term || r.isCut.Load() {
		return nil
	}
	l.mu.Lock()
	p, ok := l.mu.peers[id]
	if !ok {
		p.ctx, p.cancel = context.WithCancel(l.ctx)
		l.mu.peers[id] = p
	}
	l.mu.Unlock()
	if !ok {
		if member, _ := r.memberOf(id); !member {
			l.dropPeer(id)
		}
	}
	return p.ctx
}

// again notes that a peer is being sent a snapshot and reports whether the last one was at the same index.
func (l *leadership) again(id cluster.ReplicaID, index uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.mu.sent[id]
	l.mu.sent[id] = index
	return was == index
}

// dropPeer ends what is being sent to a member that has left.
func (l *leadership) dropPeer(id cluster.ReplicaID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, ok := l.mu.peers[id]; ok {
		p.cancel()
		delete(l.mu.peers, id)
	}
}

// setLead begins or (nil) ends the leadership.
func (r *replica) setLead(l *leadership) {
	if old := r.lead.Swap(l); old != nil {
		old.cancel()
	}
}

// free tells the group that the leader of a term, here, is no more or has no lease: another may be made to stand for it.
func (r *replica) free() {
	if l := r.lead.Load(); l != nil {
		l.noLease.Store(true)
		r.g.freed.Store(l.term)
	}
}

// mayVote returns an error while no vote of the replica in term may get out; moved: by a transfer of leadership.
func (r *replica) mayVote(op string, term uint64, moved bool) error {
	if r.h.cfg.Remote == nil {
		return nil
	}
	if time.Now().Before(r.holdUntil) {
		return errs.New(errs.Unavailable, op, string(r.id), "started a moment ago: no votes yet")
	}
	if r.promise.binds(term, moved) {
		return errs.New(errs.Unavailable, op, string(r.id), "heard of a leader a moment ago: no votes yet")
	}
	return nil
}

// mayStand is mayVote for the votes it asks for itself.
func (r *replica) mayStand(op string, req *raft.RequestVoteRequest) error {
	if r.h.cfg.Remote == nil {
		return nil
	}
	if req.LeadershipTransfer && r.moved.Load() != req.Term-1 {
		// Asked to stand for the leader of another term; in this one nobody gave up a lease.
		return errs.New(errs.Unavailable, op, string(r.id), "asked to stand too late")
	}
	if err := r.mayVote(op, req.Term, req.LeadershipTransfer); err != nil {
		return err
	}
	return r.h.clockErr(op)
}

// stand makes the replica stand for election at once. The leader of term, which must be the replica's, has no lease any more.
func (r *replica) stand(ctx context.Context, term uint64) error {
	r.moved.Store(term)
	_, err := r.deliver(ctx, timeoutNow(), nil)
	return err
}
