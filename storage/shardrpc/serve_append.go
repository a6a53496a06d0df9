package shardrpc

import (
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// appends is one stream of appends at the server.
type appends struct {
	server *Server
	stream grpc.ServerStream
	wake   chan struct{} // something of mu changed

	mu       sync.Mutex
	acks     []*nodepb.ShardAck // to be sent
	underway int
	ended    bool // nothing more comes
	why      error
}

// serveAppends answers until the caller ends the stream or the server stops. One
// goroutine receives, another for each append waits for its drive (a gate bounds
// them), and this one sends.
func (s *Server) serveAppends(stream grpc.ServerStream) error {
	// The caller's transport keeps what it sends until the first sign of life.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	a := &appends{server: s, stream: stream, wake: make(chan struct{}, 1)}
	go a.receive()
	closing, draining, late := s.closing, s.cfg.Draining, (<-chan time.Time)(nil)
	stopping := false
	for {
		acks, done, err := a.take()
		if len(acks) > 0 {
			if err := stream.SendMsg(&nodepb.ShardAcks{Acks: acks}); err != nil {
				return err
			}
			continue
		}
		if done && (err != nil || !stopping) {
			return err
		} else if done {
			return errs.New(errs.Unavailable, "shardrpc", "", "the node is stopping")
		}
		stop := false
		select {
		case <-a.wake:
		case <-closing:
			closing, stop = nil, true
		case <-draining:
			draining, stop = nil, true
		case <-late:
			return errs.New(errs.Unavailable, "shardrpc", "", "the node is stopping")
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		if stop && !stopping {
			stopping, late = true, time.After(stopWait)
			a.end(nil)
		}
	}
}

// acksMax is how many answers one message has.
const acksMax = 1024

// take is what to send, or whether there will be nothing more.
func (a *appends) take() (acks []*nodepb.ShardAck, done bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n := min(len(a.acks), acksMax); n > 0 {
		acks, a.acks = a.acks[:n:n], a.acks[n:]
	} else {
		a.acks = nil
	}
	return acks, a.ended && a.underway == 0, a.why
}

func (a *appends) poke() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *appends) end(err error) {
	a.mu.Lock()
	if !a.ended {
		a.ended, a.why = true, err
	}
	a.mu.Unlock()
	a.poke()
}

func (a *appends) receive() {
	for {
		f := &arrivals{server: a.server}
		err := a.stream.RecvMsg(f)
		if err == io.EOF {
			a.end(nil)
			return
		}
		if err != nil {
			a.end(err)
			return
		}
		a.mu.Lock()
		refused := a.ended
		if !refused {
			a.underway += len(f.list)
		}
		a.mu.Unlock()
		for i := range f.list {
			if r := &f.list[i]; refused {
				r.drop(a.server)
			} else {
				a.start(r)
			}
		}
		if refused {
			return // the stream is about to end, and with it what is not answered
		}
	}
}

// start hands an append to its drive.
func (a *appends) start(r *arrival) {
	if r.err != nil {
		a.answer(r.number, r.err)
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), r.timeout)
		defer cancel()
		a.answer(r.number, r.store.Append(ctx, r.header, *r.payload, func() { r.drop(a.server) }))
	}()
}

func (a *appends) answer(number uint64, err error) {
	a.mu.Lock()
	a.underway--
	a.acks = append(a.acks, &nodepb.ShardAck{Number: number, Error: toError(err)})
	a.mu.Unlock()
	a.poke()
}

// arrival is an append that came in.
type arrival struct {
	number  uint64
	store   storage.ShardStore
	header  storage.ShardHeader
	payload *[]byte // nil if err
	leave   func()
	timeout time.Duration
	err     error // why it cannot be carried out
}

// drop gives the payload and its share of the limits back.
func (r *arrival) drop(s *Server) {
	if r.payload != nil {
		s.pool.Put(r.payload)
		r.leave()
	}
}

// arrivals is a frame of appends as the server receives it.
type arrivals struct {
	server *Server
	list   []arrival
}

// MarshalFrame is for rpc.Payload; the server sends none.
func (f *arrivals) MarshalFrame() (mem.BufferSlice, error) {
	return nil, malformed("a question as an answer")
}

// UnmarshalFrame copies the payloads that there is room for. An error of the frame ends the stream.
func (f *arrivals) UnmarshalFrame(data mem.BufferSlice) (err error) {
	reader := data.Reader()
	defer reader.Close()
	head, err := readHead(reader)
	if err != nil {
		return err
	}
	var batch nodepb.ShardAppendBatch
	if err := batch.UnmarshalVT(head); err != nil || len(batch.Appends) > batchMax {
		return malformed("the head of a batch")
	}
	f.list = make([]arrival, len(batch.Appends))
	for i, m := range batch.Appends {
		if err := f.list[i].read(f.server, m, reader); err != nil {
			for j := range f.list[:i+1] {
				f.list[j].drop(f.server)
			}
			return err
		}
	}
	return nil
}

// read takes one append from the frame; an error is one of the frame, one of the append goes to r.err.
func (r *arrival) read(s *Server, m *nodepb.ShardAppend, reader *mem.Reader) error {
	r.number = m.Number
	n := int(m.PayloadBytes)
	if n > payloadBytesMax || n > reader.Remaining() {
		return malformed("a payload longer than its frame")
	}
	if r.err = r.prepare(s, m); r.err != nil {
		_, err := reader.Discard(n)
		return err
	}
	r.payload = s.pool.Get(n)
	sound, err := readPayload(reader, *r.payload, m.PayloadCrc)
	if err == nil && !sound {
		r.drop(s)
		r.payload, r.err = nil, damaged("a shard")
	}
	return err
}

// prepare finds out where an append goes and whether there is room for it.
func (r *arrival) prepare(s *Server, m *nodepb.ShardAppend) (err error) {
	if r.header, err = fromHeader(m.Header); err != nil {
		return err
	}
	r.timeout = min(s.cfg.AppendTimeout, time.Duration(m.TimeoutMs)*time.Millisecond)
	if m.TimeoutMs == 0 {
		r.timeout = s.cfg.AppendTimeout
	}
	store, g, err := s.drive(m.Drive)
	if err != nil {
		return err
	}
	r.store = store
	r.leave, err = s.admit(g, int64(m.PayloadBytes))
	return err
}
