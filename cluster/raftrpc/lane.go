package raftrpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// laneDepth is how many messages wait to be sent; past it callers wait.
const laneDepth = 64

// lane is one stream to a node, opened when it is needed and again after it broke.
type lane[Req, Rep any] struct {
	t    *Transport
	op   string
	open func(ctx context.Context) (grpc.BidiStreamingClient[Req, Rep], error)
	got  func(f *flow[Req, Rep], m *Rep) // an answer; it hands it on by flow.answer

	mu      sync.Mutex
	current *flow[Req, Rep]
}

// flow is one life of a lane.
type flow[Req, Rep any] struct {
	out   chan *Req
	heard atomic.Int64 // when the last message came, ns since Transport.epoch

	broken chan struct{}
	once   sync.Once
	why    error // valid once broken
	cancel context.CancelFunc

	mu      sync.Mutex
	waiting map[uint64]chan<- *nodepb.RaftAppendReply
}

// get is the stream that is up, or one that is being opened. Error: Closed.
func (l *lane[Req, Rep]) get() (*flow[Req, Rep], error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.current; f != nil {
		select {
		case <-f.broken:
		default:
			return f, nil
		}
	}
	f := &flow[Req, Rep]{
		out: make(chan *Req, laneDepth), broken: make(chan struct{}),
		waiting: map[uint64]chan<- *nodepb.RaftAppendReply{},
	}
	ctx, cancel := context.WithCancel(l.t.ctx)
	f.cancel = cancel
	if !l.t.spawn(func() { l.run(ctx, f) }) {
		cancel()
		return nil, errs.New(errs.Closed, l.op, "", "")
	}
	l.current = f
	return f, nil
}

// run opens the stream and sends until it breaks.
func (l *lane[Req, Rep]) run(ctx context.Context, f *flow[Req, Rep]) {
	defer f.cancel()
	patience := time.AfterFunc(l.t.cfg.BeatTimeout, f.cancel)
	s, err := l.open(ctx)
	if !patience.Stop() && err == nil {
		err = errs.New(errs.Unavailable, l.op, "", "no connection in time")
	}
	if err != nil {
		f.fail(err)
		return
	}
	if !l.t.spawn(func() { l.receive(s, f) }) {
		f.fail(errs.New(errs.Closed, l.op, "", ""))
		return
	}
	for {
		select {
		case m := <-f.out:
			patience.Reset(l.t.cfg.AppendTimeout) // the peer reads nothing
			err := s.Send(m)
			patience.Stop()
			if err != nil {
				// The reason is what receive gets.
				select {
				case <-f.broken:
				case <-time.After(l.t.cfg.BeatTimeout):
					f.fail(errs.Wrap(errs.Unavailable, l.op, "", err))
				}
				return
			}
		case <-f.broken:
			return
		}
	}
}

func (l *lane[Req, Rep]) receive(s grpc.BidiStreamingClient[Req, Rep], f *flow[Req, Rep]) {
	for {
		m, err := s.Recv()
		if err != nil {
			f.fail(errs.Wrap(errs.Unavailable, l.op, "", err))
			return
		}
		f.heard.Store(l.t.elapsed())
		l.got(f, m)
	}
}

// fail breaks the stream; whoever waits for it gets err.
func (f *flow[Req, Rep]) fail(err error) {
	f.once.Do(func() {
		f.why = err
		close(f.broken)
		f.cancel()
	})
}

// expect registers a call. Its answer is put into ch, which must have room.
func (f *flow[Req, Rep]) expect(call uint64, ch chan<- *nodepb.RaftAppendReply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting[call] = ch
}

func (f *flow[Req, Rep]) forget(call uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waiting, call)
}

func (f *flow[Req, Rep]) answer(m *nodepb.RaftAppendReply) {
	f.mu.Lock()
	ch := f.waiting[m.Call]
	delete(f.waiting, m.Call)
	f.mu.Unlock()
	if ch != nil {
		ch <- m
	}
}
