package metarpc

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/cluster/rpc"
	"cairn/cluster/sysstate"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// Config of a Router. Self, Host, Conn and Topology are required.
type Config struct {
	Self     cluster.NodeID
	Host     Host
	Conn     func(cluster.NodeID) (grpc.ClientConnInterface, error) // never blocks
	Topology func() *cluster.Topology                               // never nil
	// Resolve finds the node of a replica that the topology does not name (yet). Nil: none.
	Resolve func(cluster.GroupID, cluster.ReplicaID) (cluster.NodeID, bool)

	// AnswerTimeout is how long a leader elsewhere may take for one call before others are asked
	// whether it still leads; it doubles while one and the same leader is slow. 0 is 1.5 s.
	AnswerTimeout time.Duration
	// ProbeTimeout bounds the question who leads. 0 is 1 s.
	ProbeTimeout time.Duration
	// ProbePause is how long nobody asks again after no leader was found. 0 is 20 ms.
	ProbePause time.Duration
}

// Router finds the leader of a group and has it do what is asked. It is where a
// metaclient.Client proposes and reads in a cluster. Safe for concurrent use.
type Router struct {
	cfg Config
	mu  struct {
		sync.Mutex
		groups   map[cluster.GroupID]*leader
		suspects map[cluster.NodeID]time.Time // when it last left a call without an answer
	}
}

// leader is what is known of who leads a group.
type leader struct {
	node     cluster.NodeID // another node; empty: not known
	slow     int            // calls in a row that slowNode did not answer in time
	slowNode cluster.NodeID
	probe    *probe // the search under way, or done last
}

// probe is one search for a leader, shared by all who wait for it.
type probe struct {
	done   chan struct{}  // closed at the end
	over   bool           // guarded by the Router's mu, what follows by done too
	node   cluster.NodeID // found; empty: none
	gaveUp bool           // its runner's context ended first
	ended  time.Time
}

// Bounds of one operation of a Router; its callers repeat it.
const (
	hopsMax     = 6               // calls to leaders, true or alleged
	slowMax     = 3               // doublings of AnswerTimeout
	suspectTime = 2 * time.Second // how long a node that did not answer is not believed to lead because others say so
	heavyFactor = 8               // more time for questions that read much
)

// NewRouter makes a Router.
func NewRouter(cfg Config) *Router {
	if cfg.AnswerTimeout == 0 {
		cfg.AnswerTimeout = 1500 * time.Millisecond
	}
	if cfg.ProbeTimeout == 0 {
		cfg.ProbeTimeout = time.Second
	}
	if cfg.ProbePause == 0 {
		cfg.ProbePause = 20 * time.Millisecond
	}
	r := &Router{cfg: cfg}
	r.mu.groups = map[cluster.GroupID]*leader{}
	r.mu.suspects = map[cluster.NodeID]time.Time{}
	return r
}

// Read calls fn with the group's state if it is led here, else answers NotLeader.
func (r *Router) Read(ctx context.Context, g cluster.GroupID, fn func(pebble.Reader) error) error {
	return r.cfg.Host.Read(ctx, g, fn)
}

// ReadSnapshot is Read for what may take long, see multiraft.Host.
func (r *Router) ReadSnapshot(ctx context.Context, g cluster.GroupID, fn func(r pebble.Reader, cut <-chan struct{}) error) error {
	return r.cfg.Host.ReadSnapshot(ctx, g, fn)
}

// Range asks the leader of a range that is led elsewhere. ctx bounds every question but Walk and Counters, which end with long.
func (r *Router) Range(ctx, long context.Context, g cluster.GroupID, notLeader error) rangestate.Reader {
	r.hint(g, notLeader)
	return &rangeReader{ctx: ctx, long: long, r: r, g: g}
}

// System asks the leader of the system group, if that is elsewhere.
func (r *Router) System(ctx context.Context, notLeader error) sysstate.Reader {
	r.hint(cluster.SystemGroup, notLeader)
	return &sysReader{ctx: ctx, r: r}
}

// Propose commits a command in a group, wherever it is led. The command must carry an id by which
// the state machine knows a repeat: it may be sent to several nodes. Errors as of multiraft.Host; OutcomeUnknown also
// after a transport failure, unless it is certain that nothing was sent.
func (r *Router) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	res, err := r.cfg.Host.Propose(ctx, g, data)
	if !errs.Is(err, errs.NotLeader) {
		return res, err
	}
	r.hint(g, err)
	unknown := false
	err = r.atLeader(ctx, g, 1, func(ctx context.Context, m nodepb.MetaClient) error {
		ans, err := m.Propose(ctx, &nodepb.ProposeRequest{Group: uint64(g), Data: data})
		if err == nil {
			res = ans.Result
		} else if errs.Is(err, errs.OutcomeUnknown) || !answered(err) && !rpc.NotSent(err) {
			unknown = true
		}
		return err
	})
	switch {
	case err == nil:
		return res, nil
	case unknown && !errs.Is(err, errs.OutcomeUnknown):
		// A refusal does not tell the fate of the tries before, unless it is the state machine's; that one comes as a result.
		return nil, errs.Wrap(errs.OutcomeUnknown, "metarpc.propose", "", err)
	}
	return nil, err
}

// answered reports whether err is a peer's answer, and not the lack of one. That too many calls to it are
// under way already says nothing against it.
func answered(err error) bool {
	var e *errs.Error
	return errors.As(err, &e) && (e.Kind == errs.Busy || e.Kind != errs.Timeout && !rpc.IsTransport(err))
}

// refused reports whether a peer, or the way there, has nothing to do with us. That is the cluster's
// trouble and must not look like an answer about the namespace.
func refused(err error) bool {
	return errs.Is(err, errs.AccessDenied) || errs.Is(err, errs.Foreign) || rpc.IsTransport(err) && errs.Is(err, errs.Other)
}

// atLeader calls fn with the group's leader on another node, and again with another one where that does not lead or
// does not answer. fn may be called several times, each with a context that ends after factor times
// AnswerTimeout, or only with ctx if factor is 0. The error is the last call's.
func (r *Router) atLeader(ctx context.Context, g cluster.GroupID, factor int, fn func(context.Context, nodepb.MetaClient) error) error {
	var err error
	for range hopsMax {
		node, slow := r.leaderOf(ctx, g)
		if node == "" {
			if err == nil {
				err = errs.Newf(errs.NotLeader, "metarpc", "", "group %d has no leader now", g)
			}
			return retriable(err)
		}
		var cc grpc.ClientConnInterface
		if cc, err = r.cfg.Conn(node); err != nil {
			r.lost(g, node, false)
			continue
		}
		timeout := r.cfg.AnswerTimeout * time.Duration(factor) << min(slow, slowMax)
		call, cancel := ctx, context.CancelFunc(func() {})
		if timeout > 0 {
			call, cancel = context.WithTimeout(ctx, timeout)
		}
		err = fn(call, nodepb.NewMetaClient(cc))
		cancel()
		switch {
		case err == nil:
			r.leads(g, node)
			return nil
		case ctx.Err() != nil:
			return &errs.Error{Kind: errs.Unavailable, Op: "metarpc", Subject: string(node), Err: err}
		case errs.Is(err, errs.NotLeader):
			r.notLeader(g, node, err)
		case refused(err):
			r.lost(g, node, false)
			err = errs.Wrap(errs.Unavailable, "metarpc", string(node), err)
		case !answered(err):
			r.lost(g, node, true)
			if call.Err() != nil {
				err = errs.Newf(errs.Timeout, "metarpc", string(node), "no answer within %v", timeout)
			}
		case errs.Is(err, errs.Closed), errs.Is(err, errs.Unavailable):
			r.lost(g, node, false) // it stops, or has lost its quorum: perhaps somebody else leads by now
		default:
			r.leads(g, node)
			return err
		}
	}
	return retriable(err)
}

// retriable makes errors of the way kinds that metaclient repeats.
func retriable(err error) error {
	switch errs.KindOf(err) {
	case errs.NotLeader, errs.Unavailable, errs.OutcomeUnknown:
		return err
	}
	return errs.Wrap(errs.Unavailable, "metarpc", "", err)
}

// leaderOf is the node believed to lead, and how many calls in a row it was too slow for. Empty: nobody is known to lead.
func (r *Router) leaderOf(ctx context.Context, g cluster.GroupID) (cluster.NodeID, int) {
	for ctx.Err() == nil {
		r.mu.Lock()
		l := r.groupLocked(g)
		if l.node != "" {
			defer r.mu.Unlock()
			return l.node, l.slowFor(l.node)
		}
		p := l.probe
		mine := p == nil || p.over && (p.node != "" || time.Since(p.ended) >= r.cfg.ProbePause)
		if mine {
			p = &probe{done: make(chan struct{})}
			l.probe = p
		}
		r.mu.Unlock()
		if mine {
			r.search(ctx, g, l, p)
		}
		select {
		case <-p.done:
			if p.node != "" {
				r.mu.Lock()
				defer r.mu.Unlock()
				return p.node, l.slowFor(p.node)
			}
			if !p.gaveUp {
				return "", 0
			}
		case <-ctx.Done():
		}
	}
	return "", 0
}

func (l *leader) slowFor(node cluster.NodeID) int {
	if l.slowNode == node {
		return l.slow
	}
	return 0
}

func (r *Router) groupLocked(g cluster.GroupID) *leader {
	l := r.mu.groups[g]
	if l == nil {
		l = &leader{}
		r.mu.groups[g] = l
	}
	return l
}

// hint takes what a local replica knows of the leader, if nothing better is known and that leader did not leave calls unanswered of late.
func (r *Router) hint(g cluster.GroupID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.groupLocked(g)
	if l.node != "" {
		return
	}
	if id, ok := multiraft.LeaderHint(err); ok {
		if node, ok := nodeOf(r.cfg.Topology(), r.cfg.Resolve, g, id); ok && node != r.cfg.Self && !r.suspectLocked(node) {
			l.node = node
		}
	}
}

// leads notes that a node answered as leader.
func (r *Router) leads(g cluster.GroupID, node cluster.NodeID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mu.suspects, node)
	l := r.groupLocked(g)
	l.node, l.slowNode = node, ""
}

// notLeader notes that a node does not lead, and whom it named.
func (r *Router) notLeader(g cluster.GroupID, node cluster.NodeID, err error) {
	id, named := multiraft.LeaderHint(err)
	var next cluster.NodeID
	if named {
		next, _ = nodeOf(r.cfg.Topology(), r.cfg.Resolve, g, id)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mu.suspects, node)
	l := r.groupLocked(g)
	if l.node != node && l.node != "" {
		return // somebody else learned of another one meanwhile
	}
	l.node = ""
	if next != node && next != r.cfg.Self && !r.suspectLocked(next) {
		l.node = next
	}
}

// lost notes that a node could not be asked, or, if silent, did not answer: the others are asked who leads.
func (r *Router) lost(g cluster.GroupID, node cluster.NodeID, silent bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.suspects[node] = time.Now()
	l := r.groupLocked(g)
	if l.node != node {
		return
	}
	l.node = ""
	if silent {
		if l.slowNode != node {
			l.slowNode, l.slow = node, 0
		}
		l.slow++
	}
}

func (r *Router) suspectLocked(node cluster.NodeID) bool {
	at, ok := r.mu.suspects[node]
	if ok && time.Since(at) > suspectTime {
		delete(r.mu.suspects, node)
		ok = false
	}
	return ok
}
