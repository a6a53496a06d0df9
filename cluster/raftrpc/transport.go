package raftrpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// retryMin is the first pause before an append is sent again, doubled each time.
const retryMin = 10 * time.Millisecond

// timeoutMax bounds calls whose ctx may have no deadline.
const timeoutMax = 5 * time.Second

// Transport sends Raft messages to other nodes, and receives theirs once it is registered with a server. It is safe for
// concurrent use.
type Transport struct {
	cfg      Config
	epoch    time.Time
	calls    atomic.Uint64
	installs chan struct{} // places for snapshots that are being received
	ctx      context.Context
	cancel   context.CancelFunc

	peers sync.Map // cluster.NodeID -> *peer

	mu struct {
		sync.Mutex
		closed  bool
		waiting map[cluster.ReplicaID]*waiter // appends waiting for a replica to be back
		wg      sync.WaitGroup
	}
}

var _ multiraft.Transport = (*Transport)(nil)

// waiter wakes those who wait for one replica.
type waiter struct {
	n    int
	back chan struct{} // closed when it answered a heartbeat
}

// peer is another node.
type peer struct {
	t       *Transport
	node    cluster.NodeID
	appends lane[nodepb.RaftAppend, nodepb.RaftAppendReply]
	beats   beats
}

// New makes a Transport. It must be closed, after the Host that uses it. Error: InvalidArgument.
func New(cfg Config) (*Transport, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	t := &Transport{cfg: cfg, epoch: time.Now(), installs: make(chan struct{}, cfg.InstallsMax)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.mu.waiting = map[cluster.ReplicaID]*waiter{}
	return t, nil
}

// Close ends all calls and streams, both those to other nodes and those from them.
func (t *Transport) Close() {
	t.mu.Lock()
	t.mu.closed = true
	t.mu.Unlock()
	t.cancel()
	t.mu.wg.Wait()
}

// spawn runs fn in a goroutine that Close waits for; false once that was called.
func (t *Transport) spawn(fn func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return false
	}
	t.mu.wg.Go(fn)
	return true
}

func (t *Transport) elapsed() int64 { return int64(time.Since(t.epoch)) }

// peer is the node that a message is for. Errors: Unavailable (not known), Gone (it is this one).
func (t *Transport) peer(op string, e multiraft.Envelope) (*peer, error) {
	node, ok := t.cfg.Resolve(e.Group, e.To)
	switch {
	case !ok:
		return nil, errs.New(errs.Unavailable, op, string(e.To), "nobody knows on which node the replica is")
	case node == t.cfg.Self:
		return nil, errs.New(errs.Gone, op, string(e.To), "the replica belongs to this node and does not run")
	}
	if p, ok := t.peers.Load(node); ok {
		return p.(*peer), nil
	}
	p := &peer{t: t, node: node}
	p.appends = lane[nodepb.RaftAppend, nodepb.RaftAppendReply]{t: t, op: "raftrpc.append",
		open: func(ctx context.Context) (grpc.BidiStreamingClient[nodepb.RaftAppend, nodepb.RaftAppendReply], error) {
			c, err := t.cfg.Conn(node)
			if err != nil {
				return nil, err
			}
			return nodepb.NewRaftClient(c).Appends(ctx)
		},
		got: func(f *flow[nodepb.RaftAppend, nodepb.RaftAppendReply], m *nodepb.RaftAppendReply) { f.answer(m) },
	}
	p.beats.init(p)
	got, _ := t.peers.LoadOrStore(node, p)
	return got.(*peer), nil
}

// client is for a single call to the node of a replica.
func (t *Transport) client(op string, e multiraft.Envelope) (nodepb.RaftClient, cluster.NodeID, error) {
	p, err := t.peer(op, e)
	if err != nil {
		return nil, "", err
	}
	c, err := t.cfg.Conn(p.node)
	if err != nil {
		return nil, "", err
	}
	return nodepb.NewRaftClient(c), p.node, nil
}

// AppendEntries implements multiraft.Transport.
func (t *Transport) AppendEntries(ctx context.Context, e multiraft.Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	if multiraft.IsHeartbeat(req) {
		return t.beat(ctx, e, req)
	}
	m := fromAppend(e, req)
	for pause := retryMin; ; pause = min(2*pause, t.cfg.RetryMax) {
		p, err := t.peer("raftrpc.append", e)
		if errs.Is(err, errs.Gone) {
			return nil, err
		}
		if err == nil {
			var a *raft.AppendEntriesResponse
			if a, err = p.append(ctx, e, m); err == nil {
				return a, nil
			}
			// It may still be being sent: the next try is a message of its own.
			m = &nodepb.RaftAppend{Envelope: m.Envelope, Term: m.Term, PrevIndex: m.PrevIndex, PrevTerm: m.PrevTerm, CommitIndex: m.CommitIndex, Entries: m.Entries}
		}
		if errs.Is(err, errs.Closed) && t.ctx.Err() != nil {
			return nil, err
		}
		if err := t.await(ctx, e.To, pause); err != nil {
			return nil, err
		}
	}
}

// append sends an append once.
func (p *peer) append(ctx context.Context, e multiraft.Envelope, m *nodepb.RaftAppend) (*raft.AppendEntriesResponse, error) {
	f, err := p.appends.get()
	if err != nil {
		return nil, err
	}
	m.Call = p.t.calls.Add(1)
	ch := make(chan *nodepb.RaftAppendReply, 1)
	f.expect(m.Call, ch)
	defer f.forget(m.Call)
	began := p.t.elapsed()
	timer := time.NewTimer(p.t.cfg.AppendTimeout + p.t.cfg.BeatTimeout)
	defer timer.Stop()
	out := f.out
	for {
		select {
		case out <- m:
			out = nil
		case a := <-ch:
			return p.t.fromReply(e.To, a)
		case <-f.broken:
			return nil, f.why
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
			err := errs.New(errs.Unavailable, "raftrpc.append", string(p.node), "no answer")
			if f.heard.Load() < began {
				f.fail(err) // nothing has come at all, and it answers in time even if it can do nothing: the stream is dead
			}
			return nil, err
		}
	}
}

// await waits until a replica has answered a heartbeat, or for d.
func (t *Transport) await(ctx context.Context, id cluster.ReplicaID, d time.Duration) error {
	t.mu.Lock()
	w := t.mu.waiting[id]
	if w == nil {
		w = &waiter{back: make(chan struct{})}
		t.mu.waiting[id] = w
	}
	w.n++
	t.mu.Unlock()
	timer := time.NewTimer(d)
	defer timer.Stop()
	var err error
	select {
	case <-w.back:
	case <-timer.C:
	case <-t.ctx.Done():
		err = errs.New(errs.Closed, "raftrpc.append", string(id), "")
	case <-ctx.Done():
		err = ctx.Err()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if w.n--; w.n == 0 && t.mu.waiting[id] == w {
		delete(t.mu.waiting, id)
	}
	return err
}

// isBack wakes the appends that wait for a replica.
func (t *Transport) isBack(id cluster.ReplicaID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w := t.mu.waiting[id]; w != nil {
		close(w.back)
		delete(t.mu.waiting, id)
	}
}

// RequestVote implements multiraft.Transport.
func (t *Transport) RequestVote(ctx context.Context, e multiraft.Envelope, req *raft.RequestVoteRequest) (*raft.RequestVoteResponse, error) {
	a, err := t.vote(ctx, "raftrpc.vote", e, fromVote(e, req), nodepb.RaftClient.Vote)
	if err != nil {
		return nil, err
	}
	return &raft.RequestVoteResponse{RPCHeader: header(a.Protocol, string(e.To)), Term: a.Term, Granted: a.Granted}, nil
}

// RequestPreVote implements multiraft.Transport.
func (t *Transport) RequestPreVote(ctx context.Context, e multiraft.Envelope, req *raft.RequestPreVoteRequest) (*raft.RequestPreVoteResponse, error) {
	m := &nodepb.RaftVote{Envelope: fromEnvelope(e, req.RPCHeader), Term: req.Term, LastIndex: req.LastLogIndex, LastTerm: req.LastLogTerm}
	a, err := t.vote(ctx, "raftrpc.prevote", e, m, nodepb.RaftClient.PreVote)
	if err != nil {
		return nil, err
	}
	return &raft.RequestPreVoteResponse{RPCHeader: header(a.Protocol, string(e.To)), Term: a.Term, Granted: a.Granted}, nil
}

type voteCall func(c nodepb.RaftClient, ctx context.Context, m *nodepb.RaftVote, opts ...grpc.CallOption) (*nodepb.RaftVoteReply, error)

func (t *Transport) vote(ctx context.Context, op string, e multiraft.Envelope, m *nodepb.RaftVote, call voteCall) (*nodepb.RaftVoteReply, error) {
	c, node, err := t.client(op, e)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeoutMax)
	defer cancel()
	asked := t.ask()
	a, err := call(c, ctx, m)
	if err != nil {
		return nil, err
	}
	t.compare(node, asked, a.NowUnixNs)
	return a, nil
}

// TimeoutNow implements multiraft.Transport.
func (t *Transport) TimeoutNow(ctx context.Context, e multiraft.Envelope, term uint64) error {
	c, _, err := t.client("raftrpc.timeoutNow", e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeoutMax)
	defer cancel()
	_, err = c.TimeoutNow(ctx, &nodepb.RaftTimeoutNow{Envelope: fromEnvelope(e, raft.RPCHeader{}), Term: term})
	return err
}

// ConfirmTerm implements multiraft.Transport.
func (t *Transport) ConfirmTerm(ctx context.Context, e multiraft.Envelope) (uint64, error) {
	c, _, err := t.client("raftrpc.confirm", e)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, timeoutMax)
	defer cancel()
	a, err := c.ConfirmTerm(ctx, &nodepb.RaftConfirmTerm{Envelope: fromEnvelope(e, raft.RPCHeader{})})
	if err != nil {
		return 0, err
	}
	return a.Term, nil
}

// asked is when a question was sent, by both clocks.
type asked struct{ mono, wall time.Time }

func (t *Transport) ask() asked { return asked{time.Now(), t.cfg.Now()} }

// compareMax is the longest round trip that says enough about a clock.
const compareMax = 2 * time.Second

// compare tells what an answer says about a node's clock: its reading, unix ns, was taken at some time since a.
func (t *Transport) compare(node cluster.NodeID, a asked, reading int64) {
	trip := time.Since(a.mono)
	if reading == 0 || trip > compareMax {
		return
	}
	t.cfg.Clock(node, time.Unix(0, reading).Sub(a.wall.Round(0).Add(trip/2)))
}
