package raftrpc

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"cairn/cluster/multiraft"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

type beatFlow = flow[nodepb.RaftBeats, nodepb.RaftBeatsReply]

// beats gathers the heartbeats to a node.
type beats struct {
	p    *peer
	lane lane[nodepb.RaftBeats, nodepb.RaftBeatsReply]

	mu       sync.Mutex
	queue    []*nodepb.RaftBeat
	on       *beatFlow // that the queue's answers are expected on
	sequence uint64
	asked    asked // when the message of that sequence was sent
}

func (b *beats) init(p *peer) {
	b.p = p
	b.lane = lane[nodepb.RaftBeats, nodepb.RaftBeatsReply]{t: p.t, op: "raftrpc.heartbeat",
		open: func(ctx context.Context) (grpc.BidiStreamingClient[nodepb.RaftBeats, nodepb.RaftBeatsReply], error) {
			c, err := p.t.cfg.Conn(p.node)
			if err != nil {
				return nil, err
			}
			return nodepb.NewRaftClient(c).Beats(ctx)
		},
		got: b.got,
	}
}

// beat sends a heartbeat with the next tick's message and waits for its answer.
func (t *Transport) beat(ctx context.Context, e multiraft.Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	p, err := t.peer("raftrpc.heartbeat", e)
	if err != nil {
		return nil, err
	}
	m := &nodepb.RaftBeat{Call: t.calls.Add(1), Envelope: fromEnvelope(e, req.RPCHeader), Term: req.Term}
	ch := make(chan *nodepb.RaftAppendReply, 1)
	f, err := p.beats.add(m, ch)
	if err != nil {
		return nil, err
	}
	defer f.forget(m.Call)
	began := t.elapsed()
	timer := time.NewTimer(t.cfg.BeatTimeout)
	defer timer.Stop()
	select {
	case a := <-ch:
		resp, err := t.fromReply(e.To, a)
		if err == nil {
			t.isBack(e.To)
		}
		return resp, err
	case <-f.broken:
		return nil, f.why
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		err := errs.New(errs.Unavailable, "raftrpc.heartbeat", string(p.node), "no answer")
		if f.heard.Load() < began {
			f.fail(err) // nothing has come at all
		}
		return nil, err
	}
}

// add puts a heartbeat into the next message.
func (b *beats) add(m *nodepb.RaftBeat, ch chan<- *nodepb.RaftAppendReply) (*beatFlow, error) {
	f, err := b.lane.get()
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.on != f {
		b.queue, b.on = nil, f // whoever waits on the old one knows that it broke
	}
	f.expect(m.Call, ch)
	b.queue = append(b.queue, m)
	if len(b.queue) == 1 {
		window := b.p.t.cfg.BeatWindow
		time.AfterFunc(window-time.Duration(b.p.t.elapsed())%window, func() { b.send(f) })
	}
	return f, nil
}

// send sends what has been gathered.
func (b *beats) send(f *beatFlow) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.on != f || len(b.queue) == 0 {
		return
	}
	b.sequence++
	m := &nodepb.RaftBeats{Beats: b.queue, Sequence: b.sequence}
	b.queue = nil
	b.asked = b.p.t.ask()
	select {
	case f.out <- m:
	default: // the peer takes nothing: they time out
	}
}

func (b *beats) got(f *beatFlow, m *nodepb.RaftBeatsReply) {
	b.mu.Lock()
	at, known := b.asked, m.Sequence != 0 && m.Sequence == b.sequence
	b.mu.Unlock()
	if known {
		b.p.t.compare(b.p.node, at, m.NowUnixNs)
	}
	for _, a := range m.Answers {
		f.answer(a)
	}
}
