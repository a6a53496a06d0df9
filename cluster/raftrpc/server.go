package raftrpc

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

const (
	messageBytes   = 4 << 10               // what a message under way costs besides its entries
	beatsMax       = 4096                  // heartbeats of one peer under way here
	beatPatience   = 10 * time.Millisecond // how long the answers of a message wait for each other
	repliesWaiting = 64
	appendPatience = time.Second // how long an append counts as under way: see Appends
)

// server hands on what comes from other nodes.
type server struct {
	nodepb.UnimplementedRaftServer
	t    *Transport
	host multiraft.Transport
}

// Register makes s hand on the Raft messages that come to it; host is Host.Transport().
func (t *Transport) Register(s grpc.ServiceRegistrar, host multiraft.Transport) {
	nodepb.RegisterRaftServer(s, &server{t: t, host: host})
}

// sender is who sends the messages of a call or stream.
type sender struct {
	t    *Transport
	node cluster.NodeID
	any  bool
}

func (s *server) sender(ctx context.Context) (sender, error) {
	if s.t.cfg.Caller == nil {
		return sender{t: s.t, any: true}, nil
	}
	n, err := s.t.cfg.Caller(ctx)
	return sender{t: s.t, node: n}, err
}

// check refuses messages of a replica that belongs to another node.
func (c sender) check(e multiraft.Envelope) error {
	if c.any {
		return nil
	}
	if n, ok := c.t.cfg.Resolve(e.Group, e.From); ok && n != c.node {
		return errs.Newf(errs.Foreign, "raftrpc.receive", string(e.From), "the replica belongs to node %s, the message came from %s", n, c.node)
	}
	return nil
}

// from is the envelope of a single call, if the caller may send it.
func (s *server) from(ctx context.Context, e *nodepb.RaftEnvelope) (multiraft.Envelope, error) {
	env := toEnvelope(e)
	c, err := s.sender(ctx)
	if err == nil {
		err = c.check(env)
	}
	return env, err
}

// serve runs a stream: receive, in a goroutine of its own, until it ends, and send, here, what handlers answer. The
// ctx of the handlers ends with the stream and with the Transport.
func serve[Req, Rep any](t *Transport, s grpc.BidiStreamingServer[Req, Rep], handle func(ctx context.Context, m *Req, wg *sync.WaitGroup, answer func(*Rep))) error {
	ctx, cancel := context.WithCancel(s.Context())
	var handlers sync.WaitGroup
	replies := make(chan *Rep, repliesWaiting)
	answer := func(m *Rep) {
		select {
		case replies <- m:
		case <-ctx.Done():
		}
	}
	ended := make(chan error, 1)
	receiver := make(chan struct{})
	// It ends when the stream does: after this function has returned, if nothing comes any more.
	go func() {
		defer close(receiver)
		for ctx.Err() == nil {
			m, err := s.Recv()
			if err != nil {
				ended <- err
				return
			}
			handle(ctx, m, &handlers, answer)
		}
	}()
	defer func() {
		cancel()
		select {
		case <-receiver:
			handlers.Wait()
		default: // it is in Recv, or its handlers end with ctx
		}
	}()
	for {
		select {
		case m := <-replies:
			if err := s.Send(m); err != nil {
				return err
			}
		case <-ended:
			return nil // the client has gone; there is nobody to tell
		case <-ctx.Done():
			return nil // likewise, while the receiver was handling
		case <-t.ctx.Done():
			return errs.New(errs.Unavailable, "raftrpc.receive", "", "the node is stopping")
		}
	}
}

// Appends implements nodepb.RaftServer.
func (s *server) Appends(stream grpc.BidiStreamingServer[nodepb.RaftAppend, nodepb.RaftAppendReply]) error {
	from, err := s.sender(stream.Context())
	if err != nil {
		return err
	}
	limit := semaphore.NewWeighted(s.t.cfg.AppendBytesMax)
	return serve(s.t, stream, func(ctx context.Context, m *nodepb.RaftAppend, wg *sync.WaitGroup, answer func(*nodepb.RaftAppendReply)) {
		size := int64(messageBytes)
		for _, e := range m.Entries {
			size += int64(len(e.Data))
		}
		size = min(size, s.t.cfg.AppendBytesMax)
		if limit.Acquire(ctx, size) != nil {
			return
		}
		wg.Go(func() {
			release := sync.OnceFunc(func() { limit.Release(size) })
			defer release()
			// One that waits for a drive that hangs must not hold up all other groups. Of each group there is about one.
			defer time.AfterFunc(appendPatience, release).Stop()
			ctx, cancel := context.WithTimeout(ctx, s.t.cfg.AppendTimeout)
			defer cancel()
			a, err := s.append(ctx, from, toEnvelope(m.Envelope), toAppend(m))
			answer(s.t.toReply(m.Call, m.Envelope.GetTo(), a, err))
		})
	})
}

func (s *server) append(ctx context.Context, from sender, e multiraft.Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	if err := from.check(e); err != nil {
		return nil, err
	}
	return s.host.AppendEntries(ctx, e, req)
}

// Beats implements nodepb.RaftServer.
func (s *server) Beats(stream grpc.BidiStreamingServer[nodepb.RaftBeats, nodepb.RaftBeatsReply]) error {
	from, err := s.sender(stream.Context())
	if err != nil {
		return err
	}
	limit := semaphore.NewWeighted(beatsMax)
	return serve(s.t, stream, func(ctx context.Context, m *nodepb.RaftBeats, wg *sync.WaitGroup, answer func(*nodepb.RaftBeatsReply)) {
		n := int64(min(len(m.Beats), beatsMax))
		if n == 0 || limit.Acquire(ctx, n) != nil {
			return
		}
		wg.Go(func() {
			defer limit.Release(n)
			s.beatAll(ctx, from, m, answer)
		})
	})
}

// beatAll handles the heartbeats of a message at the same time and answers them together, but not for long: one may wait for a disk.
func (s *server) beatAll(ctx context.Context, from sender, m *nodepb.RaftBeats, answer func(*nodepb.RaftBeatsReply)) {
	ctx, cancel := context.WithTimeout(ctx, s.t.cfg.AppendTimeout)
	defer cancel()
	done := make(chan *nodepb.RaftAppendReply, len(m.Beats))
	for _, b := range m.Beats {
		one := func() {
			a, err := s.append(ctx, from, toEnvelope(b.Envelope), heartbeat(b))
			done <- s.t.toReply(b.Call, b.Envelope.GetTo(), a, err)
		}
		if len(m.Beats) == 1 {
			one()
		} else {
			go one() // ends with ctx; all are waited for below
		}
	}
	patience := time.NewTimer(beatPatience)
	defer patience.Stop()
	rep, sequence := &nodepb.RaftBeatsReply{}, m.Sequence
	flush := func() {
		if len(rep.Answers) > 0 {
			rep.Sequence, rep.NowUnixNs = sequence, s.t.cfg.Now().UnixNano()
			answer(rep)
			rep, sequence = &nodepb.RaftBeatsReply{}, 0
		}
	}
	late := false
	for left := len(m.Beats); left > 0; {
		select {
		case a := <-done:
			rep.Answers = append(rep.Answers, a)
			left--
		case <-patience.C:
			late = true
		}
		if late {
			flush()
		}
	}
	flush()
}

// Vote implements nodepb.RaftServer.
func (s *server) Vote(ctx context.Context, m *nodepb.RaftVote) (*nodepb.RaftVoteReply, error) {
	e, err := s.from(ctx, m.Envelope)
	if err != nil {
		return nil, err
	}
	a, err := s.host.RequestVote(ctx, e, toVote(m))
	if err != nil {
		return nil, err
	}
	return &nodepb.RaftVoteReply{Protocol: uint32(a.ProtocolVersion), Term: a.Term, Granted: a.Granted, NowUnixNs: s.t.cfg.Now().UnixNano()}, nil
}

// PreVote implements nodepb.RaftServer.
func (s *server) PreVote(ctx context.Context, m *nodepb.RaftVote) (*nodepb.RaftVoteReply, error) {
	e, err := s.from(ctx, m.Envelope)
	if err != nil {
		return nil, err
	}
	a, err := s.host.RequestPreVote(ctx, e, &raft.RequestPreVoteRequest{
		RPCHeader: header(m.Envelope.GetProtocol(), m.Envelope.GetFrom()), Term: m.Term, LastLogIndex: m.LastIndex, LastLogTerm: m.LastTerm})
	if err != nil {
		return nil, err
	}
	return &nodepb.RaftVoteReply{Protocol: uint32(a.ProtocolVersion), Term: a.Term, Granted: a.Granted, NowUnixNs: s.t.cfg.Now().UnixNano()}, nil
}

// TimeoutNow implements nodepb.RaftServer.
func (s *server) TimeoutNow(ctx context.Context, m *nodepb.RaftTimeoutNow) (*nodepb.RaftTimeoutNowReply, error) {
	e, err := s.from(ctx, m.Envelope)
	if err == nil {
		err = s.host.TimeoutNow(ctx, e, m.Term)
	}
	return &nodepb.RaftTimeoutNowReply{}, err
}

// ConfirmTerm implements nodepb.RaftServer.
func (s *server) ConfirmTerm(ctx context.Context, m *nodepb.RaftConfirmTerm) (*nodepb.RaftConfirmTermReply, error) {
	e, err := s.from(ctx, m.Envelope)
	if err != nil {
		return nil, err
	}
	term, err := s.host.ConfirmTerm(ctx, e)
	return &nodepb.RaftConfirmTermReply{Term: term}, err
}
