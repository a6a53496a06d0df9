package multiraft

import (
	"context"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// Envelope says whom a message is from and for. A receiver refuses one that is not for it.
type Envelope struct {
	Group    cluster.GroupID
	From, To cluster.ReplicaID
}

// Transport carries Raft messages between replicas of different processes. Host.Transport is the
// receiving end: a server passes on to it what its network brought.
//
// All methods may be called concurrently, end with ctx, and copy what they keep of the request. An error
// means that the message may have arrived or not.
//
// An implementation over a network must in AppendEntries, other than for heartbeats (IsHeartbeat), wait while the
// peer is away rather than fail: raft backs off for up to 10 s after failures, long after the peer is back. ctx ends
// when the sender's term or leadership does.
type Transport interface {
	AppendEntries(ctx context.Context, e Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error)
	RequestVote(ctx context.Context, e Envelope, req *raft.RequestVoteRequest) (*raft.RequestVoteResponse, error)
	RequestPreVote(ctx context.Context, e Envelope, req *raft.RequestPreVoteRequest) (*raft.RequestPreVoteResponse, error)
	// InstallSnapshot sends data to its end. req.Size is 0: the length is not known beforehand.
	InstallSnapshot(ctx context.Context, e Envelope, req *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error)
	// TimeoutNow asks the receiver to stand for election, if term still is its current one.
	TimeoutNow(ctx context.Context, e Envelope, term uint64) error
	// ConfirmTerm answers the receiver's current term, as it is after the call arrived.
	ConfirmTerm(ctx context.Context, e Envelope) (uint64, error)
}

// IsHeartbeat tells a heartbeat from an append.
func IsHeartbeat(req *raft.AppendEntriesRequest) bool {
	return req.PrevLogEntry == 0 && req.PrevLogTerm == 0 && len(req.Entries) == 0 && req.LeaderCommitIndex == 0
}

func errGone(op string, id cluster.ReplicaID) error {
	return errs.New(errs.Unavailable, op, string(id), "the replica is not running here")
}

// deliver hands raft a message and waits for its answer. Whatever raft still says after the
// replica was cut is not passed on: its log's answers may be made up by then.
func (r *replica) deliver(ctx context.Context, command any, data io.Reader) (any, error) {
	resp := make(chan raft.RPCResponse, 1)
	select {
	case r.consumer <- raft.RPC{Command: command, Reader: data, RespChan: resp}:
	case <-r.cutCh:
		return nil, errGone("multiraft.deliver", r.id)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-resp:
		return r.answer(a)
	case <-r.cutCh:
		return nil, errGone("multiraft.deliver", r.id)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *replica) answer(a raft.RPCResponse) (any, error) {
	if r.isCut.Load() {
		return nil, errGone("multiraft.deliver", r.id)
	}
	return a.Response, a.Error
}

// beat gives raft a heartbeat. The usual one, from the known leader, touches no disk and is
// handled right here, so that it never waits behind an append; any other goes through the main loop.
func (r *replica) beat(ctx context.Context, req *raft.AppendEntriesRequest) (any, error) {
	if r.raft.CurrentTerm() != req.Term || r.raft.State() != raft.Follower {
		return r.deliver(ctx, req, nil)
	}
	resp := make(chan raft.RPCResponse, 1)
	r.heartbeat(raft.RPC{Command: req, RespChan: resp})
	select {
	case a := <-resp:
		return r.answer(a)
	default:
		return nil, errGone("multiraft.heartbeat", r.id) // shut down
	}
}

// receiver is the Transport that ends at the replicas of this process.
type receiver struct{ h *Host }

// Transport is where messages from other processes go in.
func (h *Host) Transport() Transport { return receiver{h} }

func (t receiver) to(op string, e Envelope) (*replica, error) {
	r := t.h.replica(e.To)
	if r == nil || r.g.id != e.Group {
		return nil, errGone(op, e.To)
	}
	return r, nil
}

func (t receiver) AppendEntries(ctx context.Context, e Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	r, err := t.to("multiraft.append", e)
	if err != nil {
		return nil, err
	}
	if t.h.cfg.Remote != nil && req.Term >= r.raft.CurrentTerm() {
		r.promise.extend(req.Term, t.h.cfg.HeartbeatTimeout) // before raft sees it; see lease.go
	}
	var a any
	if IsHeartbeat(req) {
		a, err = r.beat(ctx, req)
	} else {
		c := *req // the sender's may be used again while raft still reads this one
		a, err = r.deliver(ctx, &c, nil)
	}
	if err != nil {
		return nil, err
	}
	return a.(*raft.AppendEntriesResponse), nil
}

func (t receiver) RequestVote(ctx context.Context, e Envelope, req *raft.RequestVoteRequest) (*raft.RequestVoteResponse, error) {
	r, err := t.to("multiraft.vote", e)
	if err == nil {
		err = r.mayVote("multiraft.vote", req.Term, req.LeadershipTransfer)
	}
	if err != nil {
		return nil, err
	}
	moved := req.LeadershipTransfer
	if t.h.cfg.Remote != nil && r.raft.State() == raft.Follower {
		// No promise binds it. Unless told so, raft would stick to the leader that it heard of last until its own timer
		// has noticed, up to twice the time later; only then could anybody be elected.
		c := *req
		c.LeadershipTransfer = true
		req = &c
	}
	a, err := r.deliver(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	resp := a.(*raft.RequestVoteResponse)
	if resp.Granted {
		// A promise made in the meantime holds: the leader may have its answer already.
		if err := r.mayVote("multiraft.vote", req.Term, moved); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

func (t receiver) RequestPreVote(ctx context.Context, e Envelope, req *raft.RequestPreVoteRequest) (*raft.RequestPreVoteResponse, error) {
	r, err := t.to("multiraft.prevote", e)
	if err == nil {
		err = r.mayVote("multiraft.prevote", req.Term, false)
	}
	if err != nil {
		return nil, err
	}
	if _, l := r.raft.LeaderWithID(); t.h.cfg.Remote != nil && r.raft.State() == raft.Follower && l != "" {
		c := *req
		c.Addr = []byte(l) // as in RequestVote: it makes no objection to the leader itself. The id is who asks.
		req = &c
	}
	a, err := r.deliver(ctx, req, nil)
	if err != nil {
		return nil, err
	}
	return a.(*raft.RequestPreVoteResponse), nil
}

func (t receiver) InstallSnapshot(ctx context.Context, e Envelope, req *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error) {
	r, err := t.to("multiraft.install", e)
	if err != nil {
		return nil, err
	}
	resp, err := r.receive(ctx, req, data)
	if err == nil && r.isCut.Load() {
		return nil, errGone("multiraft.install", r.id)
	}
	return resp, err
}

func (t receiver) TimeoutNow(ctx context.Context, e Envelope, term uint64) error {
	r, err := t.to("multiraft.timeoutNow", e)
	if err != nil {
		return err
	}
	if time.Now().Before(r.holdUntil) && t.h.cfg.Remote != nil {
		return errs.New(errs.Unavailable, "multiraft.timeoutNow", string(r.id), "started a moment ago: no votes yet")
	}
	if err := t.h.clockErr("multiraft.timeoutNow"); err != nil {
		return err
	}
	if now := r.raft.CurrentTerm(); now != term {
		return errs.Newf(errs.Conflict, "multiraft.timeoutNow", string(r.id), "of term %d, it is %d", term, now)
	}
	return r.stand(ctx, term)
}

func timeoutNow() *raft.TimeoutNowRequest {
	return &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}}
}

func (t receiver) ConfirmTerm(_ context.Context, e Envelope) (uint64, error) {
	r, err := t.to("multiraft.confirm", e)
	if err != nil {
		return 0, err
	}
	term := r.raft.CurrentTerm()
	if r.isCut.Load() {
		return 0, errGone("multiraft.confirm", e.To)
	}
	return term, nil
}

// trans is the raft.Transport of one replica: the sending end.
type trans struct{ r *replica }

var (
	_ raft.Transport   = (*trans)(nil)
	_ raft.WithPreVote = (*trans)(nil)
)

// route finds the way to a replica: here if it runs here, else the network; nil if there is none now.
func (t *trans) route(id raft.ServerID) (Transport, Envelope) {
	e := Envelope{Group: t.r.g.id, From: t.r.id, To: cluster.ReplicaID(id)}
	if t.r.h.replica(e.To) != nil {
		return receiver{t.r.h}, e
	}
	return t.r.h.cfg.Remote, e
}

// out reports whether the replica may send at all.
func (t *trans) out() error {
	if t.r.isCut.Load() {
		return errGone("multiraft.send", t.r.id)
	}
	return nil
}

func (t *trans) Consumer() <-chan raft.RPC                                { return t.r.consumer }
func (t *trans) LocalAddr() raft.ServerAddress                            { return raft.ServerAddress(t.r.id) }
func (t *trans) SetHeartbeatHandler(h func(raft.RPC))                     { t.r.heartbeat = h }
func (t *trans) DecodePeer(b []byte) raft.ServerAddress                   { return raft.ServerAddress(b) }
func (t *trans) EncodePeer(id raft.ServerID, _ raft.ServerAddress) []byte { return []byte(id) }

// AppendEntriesPipeline implements raft.Transport: no pipelining, the tail of a burst would wait for CommitTimeout.
func (t *trans) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries implements raft.Transport. While the peer is away it waits, until it is back, leaves the group or the term ends:
// raft would back off for up to 10 s, and log each try. It sends, and has raft count, as many of the entries as fit a message.
func (t *trans) AppendEntries(id raft.ServerID, _ raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	r := t.r
	ctx := r.replicating(req.Term, cluster.ReplicaID(id))
	if ctx == nil {
		return errGone("multiraft.send", r.id)
	}
	if stall := r.view.Stalled(); stall > r.h.cfg.StallTimeout {
		// A leader whose drive hangs would keep its place for ever.
		r.h.kick(r.g.id, true)
		return errs.Newf(errs.Unavailable, "multiraft.send", string(r.id), "its log has not answered for %v", stall)
	}
	// A message that is not full goes to the end of what raft means to send in this round.
	ends := len(req.Entries) < r.h.cfg.AppendEntriesMax
	ends = !fit(req, r.h.cfg.AppendBytesMax) && ends && !IsHeartbeat(req)
	var a *raft.AppendEntriesResponse
	var sent time.Time
	for {
		to, e := t.route(id)
		if to == nil {
			var err error
			if to, err = t.awaitPeer(ctx, id); err != nil {
				return err
			}
		}
		sent = time.Now()
		var err error
		a, err = to.AppendEntries(ctx, e, req)
		if err == nil {
			break
		}
		if _, local := to.(receiver); local || !errs.Is(err, errs.Gone) || IsHeartbeat(req) {
			return err
		}
		// It belongs here and does not run now.
		if err := t.awaitLocal(ctx, id); err != nil {
			return err
		}
	}
	if a.Success {
		if !IsHeartbeat(req) {
			r.notePeer(cluster.ReplicaID(id), req.PrevLogEntry+uint64(len(req.Entries)))
		}
		if l := r.lead.Load(); ends && l != nil && l.term == req.Term {
			l.noteRound(cluster.ReplicaID(id))
		}
		if l := r.lead.Load(); r.h.cfg.Remote != nil && l != nil && l.term == req.Term && a.Term == req.Term {
			l.ack(cluster.ReplicaID(id), sent, r.configuration().Servers)
			if IsHeartbeat(req) {
				t.tellCommit(l, id, req)
			} else {
				l.tell(cluster.ReplicaID(id), req)
			}
		}
	}
	*resp = *a
	return t.out()
}

// fit shortens a message to what fits into bytes, or one entry, and reports whether it did.
func fit(req *raft.AppendEntriesRequest, bytes int) bool {
	for i, l := range req.Entries {
		if bytes -= len(l.Data) + 64; bytes < 0 && i > 0 {
			req.Entries = req.Entries[:i]
			return true
		}
	}
	return false
}

// awaitLocal waits until a replica runs here, or for a second: it may have moved.
func (t *trans) awaitLocal(ctx context.Context, id raft.ServerID) error {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	for {
		back := t.r.h.peersChanged.wait()
		if t.r.h.replica(cluster.ReplicaID(id)) != nil {
			return nil
		}
		select {
		case <-back:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return errGone("multiraft.send", cluster.ReplicaID(id))
		}
	}
}

// awaitPeer waits until a replica of a drive that is gone can be reached.
func (t *trans) awaitPeer(ctx context.Context, id raft.ServerID) (Transport, error) {
	for {
		back := t.r.h.peersChanged.wait()
		if to, _ := t.route(id); to != nil {
			return to, nil
		}
		select {
		case <-back:
		case <-ctx.Done():
			return nil, errGone("multiraft.send", cluster.ReplicaID(id))
		}
	}
}

// RequestVote implements raft.Transport.
func (t *trans) RequestVote(id raft.ServerID, _ raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	to, e := t.route(id)
	if err := t.out(); err != nil || to == nil {
		return errGone("multiraft.vote", e.To)
	}
	if err := t.r.mayStand("multiraft.vote", req); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.r.ctx, t.r.h.cfg.ElectionTimeout) // raft would ask again
	defer cancel()
	a, err := to.RequestVote(ctx, e, req)
	if err != nil {
		return err
	}
	*resp = *a
	return t.out()
}

// RequestPreVote implements raft.WithPreVote.
func (t *trans) RequestPreVote(id raft.ServerID, _ raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	to, e := t.route(id)
	if err := t.out(); err != nil || to == nil {
		return errGone("multiraft.prevote", e.To)
	}
	if err := t.r.h.clockErr("multiraft.prevote"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.r.ctx, t.r.h.cfg.ElectionTimeout)
	defer cancel()
	a, err := to.RequestPreVote(ctx, e, req)
	if err != nil {
		return err
	}
	*resp = *a
	return t.out()
}

// InstallSnapshot implements raft.Transport.
func (t *trans) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	ctx := t.r.replicating(req.Term, cluster.ReplicaID(id))
	to, e := t.route(id)
	if ctx == nil || to == nil {
		return errGone("multiraft.install", e.To)
	}
	if l := t.r.lead.Load(); l != nil && l.again(e.To, req.LastLogIndex) {
		// It may have it and yet refuse what comes next: raft would send it again and again without a pause.
		pause := time.NewTimer(t.r.h.cfg.HeartbeatTimeout)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
			return errGone("multiraft.install", e.To)
		}
	}
	var a *raft.InstallSnapshotResponse
	err := t.r.sendCounted(e.To, data, func(data io.Reader) (err error) {
		a, err = to.InstallSnapshot(ctx, e, req, data)
		return err
	})
	if err != nil {
		t.r.h.cfg.Logger.Warn("snapshot was not installed", "from", string(e.From), "to", string(e.To), "err", err)
		return err
	}
	*resp = *a
	if a.Success {
		t.r.notePeer(e.To, req.LastLogIndex)
	}
	return t.out()
}

// TimeoutNow implements raft.Transport; raft's request names no term, ours does. The lease of the term ends here.
func (t *trans) TimeoutNow(id raft.ServerID, _ raft.ServerAddress, _ *raft.TimeoutNowRequest, _ *raft.TimeoutNowResponse) error {
	to, e := t.route(id)
	l := t.r.lead.Load()
	if err := t.out(); err != nil || to == nil || l == nil {
		return errGone("multiraft.timeoutNow", e.To)
	}
	l.noLease.Store(true)
	l.noteTaken(e.To)
	ctx, cancel := context.WithTimeout(l.ctx, t.r.h.cfg.ElectionTimeout)
	defer cancel()
	return to.TimeoutNow(ctx, e, l.term)
}
