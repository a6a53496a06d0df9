package shardrpc

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// takeBack is how long after the end of its stream the transport may still read a payload; see the package doc.
const takeBack = 250 * time.Millisecond

// appendCall is one append on its way. finish is called once, when there is an
// outcome and the payload is free.
type appendCall struct {
	store   *store
	header  storage.ShardHeader
	payload []byte
	sum     uint32
	finish  func(error)

	// Guarded by the lane's mu.
	number   uint64
	deadline time.Time

	owes atomic.Int32 // outcome and payload: what is still to come
	free atomic.Bool  // the payload came back
	err  error        // the outcome, before owes tells of it
}

// Get is for mem.BufferPool; nobody asks.
func (c *appendCall) Get(n int) *[]byte { b := make([]byte, n); return &b }

// Put takes the payload back from the transport, once.
func (c *appendCall) Put(*[]byte) {
	if c.free.CompareAndSwap(false, true) {
		c.settle()
	}
}

// outcome is called once.
func (c *appendCall) outcome(err error) {
	c.err = err
	c.settle()
}

func (c *appendCall) settle() {
	if c.owes.Add(-1) > 0 {
		return
	}
	n := int64(len(c.payload))
	c.payload = nil
	c.store.peer.appends.leave(n)
	c.store.appends.leave(n)
	c.finish(c.err)
}

// AppendAsync implements storage.AsyncAppender. done is called when the answer is
// here and the transport has let go of the payload.
func (s *store) AppendAsync(h storage.ShardHeader, payload []byte, done func(error)) {
	if err := checkAppend(&h, payload); err != nil {
		done(err)
		return
	}
	n := int64(len(payload))
	if !s.appends.try(n) {
		done(busy())
		return
	}
	if !s.peer.appends.try(n) {
		s.appends.leave(n)
		done(busy())
		return
	}
	s.send(h, payload, done)
}

func checkAppend(h *storage.ShardHeader, payload []byte) error {
	if len(payload) == 0 || len(payload) > payloadBytesMax || len(h.Owner.Key) > storage.KeyBytesMax {
		return errs.Newf(errs.InvalidArgument, "shardrpc.append", h.ID.String(), "a shard of %d bytes, a key of %d", len(payload), len(h.Owner.Key))
	}
	return nil
}

// send starts an append that is inside the gates.
func (s *store) send(h storage.ShardHeader, payload []byte, finish func(error)) {
	c := &appendCall{store: s, header: h, payload: payload, sum: checksum(payload), finish: finish}
	c.owes.Store(2)
	l := &s.peer.large
	if len(payload) <= inlineBytesMax {
		l = &s.peer.small
	}
	l.enqueue(c)
}

// Append implements storage.ShardStore. While the drive or its node is Busy it
// waits and tries again until ctx ends.
func (s *store) Append(ctx context.Context, h storage.ShardHeader, payload []byte, done func()) error {
	if done == nil {
		done = func() {}
	}
	if err := checkAppend(&h, payload); err != nil {
		done()
		return err
	}
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err, mine := s.appendOnce(ctx, h, payload, done)
		if !mine {
			return err
		}
		if errs.Is(err, errs.Busy) && sleep(ctx, pause/2+rand.N(pause)) {
			continue
		}
		done()
		return err
	}
}

// appendOnce tries once. If mine is false the payload is still out: done is called later.
func (s *store) appendOnce(ctx context.Context, h storage.ShardHeader, payload []byte, done func()) (err error, mine bool) {
	n := int64(len(payload))
	if err := s.appends.enter(ctx, n); err != nil {
		return err, true
	}
	if err := s.peer.appends.enter(ctx, n); err != nil {
		s.appends.leave(n)
		return err, true
	}
	answer := make(chan error, 1)
	var left atomic.Bool // by whoever comes second: the caller who goes, or the answer
	s.send(h, payload, func(err error) {
		answer <- err
		if left.Swap(true) {
			done()
		}
	})
	select {
	case err := <-answer:
		return err, true
	case <-ctx.Done():
	}
	if left.Swap(true) {
		return <-answer, true
	}
	return ended(ctx), false
}

// sleep reports whether ctx lasted.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// lane is a stream of appends to one node, open while it is used.
type lane struct {
	peer *peer
	wake chan struct{} // the queue has something, or the lane is closed

	mu      sync.Mutex
	queue   []*appendCall          // to be sent
	sent    map[uint64]*appendCall // waiting for their answers
	number  uint64                 // of the last call
	running bool                   // run is
	closed  bool                   //
	cancel  context.CancelFunc     // of the stream; nil if there is none
	watch   *time.Timer            // looks for overdue calls
	watched bool                   // the timer runs
}

func (l *lane) init(p *peer) {
	l.peer, l.wake, l.sent = p, make(chan struct{}, 1), map[uint64]*appendCall{}
}

func (l *lane) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// enqueue takes over a call.
func (l *lane) enqueue(c *appendCall) {
	cfg := &l.peer.client.cfg
	l.mu.Lock()
	l.number++
	c.number, c.deadline = l.number, time.Now().Add(cfg.AppendTimeout)
	ok := !l.closed
	if ok && !l.running {
		ok = l.peer.client.start(l.run)
		l.running = ok
	}
	if ok {
		l.queue = append(l.queue, c)
		l.watchLocked()
	}
	l.mu.Unlock()
	if !ok {
		c.Put(nil)
		c.outcome(errs.New(errs.Closed, "shardrpc", string(l.peer.node), ""))
		return
	}
	l.poke()
}

func (l *lane) close() {
	l.mu.Lock()
	l.closed = true
	if l.cancel != nil {
		l.cancel()
	}
	l.mu.Unlock()
	l.poke()
}

// watchLocked lets the timer run while there are calls.
func (l *lane) watchLocked() {
	if l.watched || len(l.queue)+len(l.sent) == 0 {
		return
	}
	every := l.peer.client.cfg.AppendTimeout / 8
	l.watched = true
	if l.watch == nil {
		l.watch = time.AfterFunc(every, l.look)
	} else {
		l.watch.Reset(every)
	}
}

// look fails what waits too long: what was not sent alone; and if the node has not
// answered in time what was sent to it, the stream with all that is on it.
func (l *lane) look() {
	now := time.Now()
	grace := l.peer.client.cfg.AppendGrace
	l.mu.Lock()
	l.watched = false
	var late []*appendCall
	for len(l.queue) > 0 && now.After(l.queue[0].deadline) {
		late = append(late, l.queue[0])
		l.queue[0] = nil
		l.queue = l.queue[1:]
	}
	dead := len(late) > 0 && len(l.sent) == 0 // it hangs before the first message
	for _, c := range l.sent {
		if now.After(c.deadline.Add(grace)) {
			dead = true
			break
		}
	}
	if dead && l.cancel != nil {
		l.cancel()
	}
	l.watchLocked()
	l.mu.Unlock()
	for _, c := range late {
		c.Put(nil)
		c.outcome(errs.New(errs.Timeout, "shardrpc.append", string(l.peer.node), "the node takes no data"))
	}
}

// run keeps a stream while there is something to send.
func (l *lane) run() {
	for {
		err := l.stream()
		l.mu.Lock()
		var failed []*appendCall
		if err != nil || l.closed {
			failed, l.queue = l.queue, nil
		}
		if len(l.queue) == 0 {
			l.running = false
		}
		again := l.running
		l.mu.Unlock()
		if err == nil {
			err = errs.New(errs.Closed, "shardrpc", string(l.peer.node), "")
		}
		for _, c := range failed {
			c.Put(nil)
			c.outcome(err)
		}
		if !again {
			return
		}
	}
}

// stream opens a stream, sends until it fails or idles, and settles what was sent. The error, if any, is
// for the calls that were not sent; nil: they may go on another stream.
func (l *lane) stream() error {
	conn, err := l.peer.client.cfg.Conn(l.peer.node)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.cancel = cancel
	l.mu.Unlock()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{StreamName: "Append", ServerStreams: true, ClientStreams: true}, appendMethod)
	if err != nil {
		return l.lost(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- l.receive(s) }()
	sentAny, err := l.sendAll(s, ended)
	if err != io.EOF { // which says that the reason is at the receiving end
		cancel()
	}
	why := <-ended
	switch {
	case err == nil: // it was idle
		why = nil
	case err != io.EOF:
		why = err
	}
	l.mu.Lock()
	l.cancel = nil
	failed := l.sent
	l.sent = map[uint64]*appendCall{}
	l.mu.Unlock()
	l.fail(failed, l.lost(why))
	if why != nil && !sentAny {
		return l.lost(why)
	}
	return nil
}

// fail settles calls that were sent on a stream that is over.
func (l *lane) fail(failed map[uint64]*appendCall, err error) {
	if len(failed) == 0 {
		return
	}
	for _, c := range failed {
		c.outcome(err)
	}
	time.AfterFunc(takeBack, func() {
		for _, c := range failed {
			c.Put(nil)
		}
	})
}

// lost is the error of appends on a stream that failed.
func (l *lane) lost(err error) error {
	if k := errs.KindOf(err); err != nil && (k == errs.AccessDenied || k == errs.Foreign) {
		return err
	}
	return &errs.Error{Kind: errs.Unavailable, Op: "shardrpc.append", Subject: string(l.peer.node), Detail: "no answer from the node", Err: err}
}

// sendAll sends batches until the stream fails (an error), or nothing came for a while (nil).
func (l *lane) sendAll(s grpc.ClientStream, ended chan error) (any bool, err error) {
	idle := time.NewTimer(l.peer.client.cfg.StreamIdle)
	defer idle.Stop()
	for {
		if b := l.batch(); b != nil {
			any = true
			if err := s.SendMsg(b); err != nil {
				b.abandon()
				return any, err
			}
			continue
		}
		idle.Reset(l.peer.client.cfg.StreamIdle)
		select {
		case <-l.wake:
			l.mu.Lock()
			closed := l.closed
			l.mu.Unlock()
			if closed {
				return any, errs.New(errs.Closed, "shardrpc", string(l.peer.node), "")
			}
		case <-idle.C:
			if l.idle() {
				return any, nil
			}
		case err := <-ended:
			ended <- err
			if err == nil {
				err = io.EOF
			}
			return any, err
		}
	}
}

// idle reports whether the stream is not needed.
func (l *lane) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)+len(l.sent) == 0
}

// batch takes what is to be sent next, nil if nothing is.
func (l *lane) batch() *outgoing {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 || l.closed {
		return nil
	}
	n, bytes := 0, 0
	for n < len(l.queue) && n < batchMax && (n == 0 || bytes+len(l.queue[n].payload) <= batchBytesMax) {
		bytes += len(l.queue[n].payload)
		n++
	}
	b := &outgoing{now: now, calls: append([]*appendCall(nil), l.queue[:n]...)}
	clear(l.queue[:n])
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil
	}
	for _, c := range b.calls {
		l.sent[c.number] = c
	}
	return b
}

// receive settles calls as their answers come; it answers why the stream ended.
func (l *lane) receive(s grpc.ClientStream) error {
	for {
		var m nodepb.ShardAcks
		if err := s.RecvMsg(&m); err != nil {
			return err
		}
		calls := make([]*appendCall, len(m.Acks))
		l.mu.Lock()
		for i, a := range m.Acks {
			calls[i] = l.sent[a.Number]
			delete(l.sent, a.Number)
		}
		l.mu.Unlock()
		for i, a := range m.Acks {
			if calls[i] != nil {
				calls[i].Put(nil) // the peer has all of it, whatever the transport counts
				calls[i].outcome(fromError(a.Error))
			}
		}
	}
}

// outgoing is a batch of appends as the client sends it.
type outgoing struct {
	now       time.Time
	calls     []*appendCall
	marshaled bool
}

// abandon takes the payloads back if the transport never had them.
func (o *outgoing) abandon() {
	if !o.marshaled {
		for _, c := range o.calls {
			c.Put(nil)
		}
	}
}

// UnmarshalFrame is for rpc.Payload; the client receives none.
func (o *outgoing) UnmarshalFrame(mem.BufferSlice) error { return malformed("an answer as a question") }

// MarshalFrame implements rpc.Payload.
func (o *outgoing) MarshalFrame() (mem.BufferSlice, error) {
	batch := nodepb.ShardAppendBatch{Appends: make([]*nodepb.ShardAppend, len(o.calls))}
	inline := 0
	for i, c := range o.calls {
		batch.Appends[i] = &nodepb.ShardAppend{
			Number: c.number, Drive: c.store.drive[:], Header: toHeader(&c.header), PayloadBytes: uint32(len(c.payload)), PayloadCrc: c.sum,
			TimeoutMs: uint32(max(1, c.deadline.Sub(o.now).Milliseconds())),
		}
		if len(c.payload) <= inlineBytesMax {
			inline += len(c.payload)
		}
	}
	head := prefixBytes + batch.SizeVT()
	frame := make([]byte, head, head+inline)
	if _, err := batch.MarshalToSizedBufferVT(frame[prefixBytes:]); err != nil {
		return nil, err
	}
	putPrefix(frame, head-prefixBytes)
	o.marshaled = true
	var out mem.BufferSlice
	from := 0 // of frame, not yet in out
	for _, c := range o.calls {
		if len(c.payload) <= inlineBytesMax {
			frame = append(frame, c.payload...)
			c.Put(nil)
			continue
		}
		if from < len(frame) {
			out, from = append(out, mem.SliceBuffer(frame[from:])), len(frame)
		}
		out = append(out, mem.NewBuffer(&c.payload, c))
	}
	if from < len(frame) {
		out = append(out, mem.SliceBuffer(frame[from:]))
	}
	return out, nil
}
