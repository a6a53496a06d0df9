package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"cairn/cluster"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

const (
	addressesMax   = 8 // tried of a node
	addressStagger = 250 * time.Millisecond
	pingEveryMax   = 8 // times Silence: an open stream with nothing to say is not worth more
)

// conn is the connection of one class to one peer. Underneath, grpc makes one
// transport after another by dial.
type conn struct {
	c   *Client
	key connKey
	cc  *grpc.ClientConn

	waiting atomic.Int64 // goroutines that wait for the peer
	calls   atomic.Int64
	armed   atomic.Bool // check will run
	pinging atomic.Bool
	failed  atomic.Bool // and no attempt came through since
	rtt     atomic.Int64
	peer    atomic.Pointer[Peer]
	wire    atomic.Pointer[wire] // of the last transport
	lastErr atomic.Pointer[error]
	dialing atomic.Int64 // since when an attempt is under way, or 0
}

var _ grpc.ClientConnInterface = (*conn)(nil)

func newConn(c *Client, node cluster.NodeID, class Class) (*conn, error) {
	co := &conn{c: c, key: connKey{node, class}}
	opts := append(DialOptions(),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return co.dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // dial does it
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: c.cfg.BackoffMax / 10, Multiplier: 2, Jitter: 0.2, MaxDelay: c.cfg.BackoffMax},
			MinConnectTimeout: c.cfg.ConnectTimeout,
		}),
		grpc.WithIdleTimeout(0),
		grpc.WithAuthority("cairn"),
		grpc.WithStaticStreamWindowSize(streamWindowBytes),
		grpc.WithStaticConnWindowSize(connWindowBytes),
	)
	var err error
	co.cc, err = grpc.NewClient("passthrough:///"+string(node), opts...)
	return co, err
}

// keepUp has grpc connect again whenever it would rest, until the connection is closed.
func (co *conn) keepUp(ctx context.Context) {
	for {
		switch s := co.cc.GetState(); s {
		case connectivity.Idle:
			co.cc.Connect()
			fallthrough
		default:
			if !co.cc.WaitForStateChange(ctx, s) {
				return
			}
		case connectivity.Shutdown:
			return
		}
	}
}

func (co *conn) close() {
	_ = co.cc.Close()
	if w := co.wire.Load(); w != nil {
		_ = w.Close()
	}
}

// dial makes a connection to whichever address answers first as the right node.
func (co *conn) dial(ctx context.Context) (net.Conn, error) {
	co.dialing.Store(co.c.clock())
	defer co.dialing.Store(0)
	addrs := co.c.cfg.Addresses(co.key.node)
	if len(addrs) == 0 {
		time.AfterFunc(0, func() { co.c.drop(co) }) // not here: it waits for this attempt
		return nil, notKnown(co.key.node)
	}
	l, err := co.dialAny(ctx, addrs[:min(len(addrs), addressesMax)])
	if err != nil {
		co.fail(err)
		return nil, err
	}
	co.rtt.Store(int64(l.rtt))
	co.peer.Store(&l.peer)
	co.wire.Store(l.wire)
	co.failed.Store(false)
	return l.conn, nil
}

// link is a connection that is ready for HTTP/2.
type link struct {
	conn net.Conn // over wire
	wire *wire
	peer Peer
	rtt  time.Duration
}

func (co *conn) dialAny(ctx context.Context, addrs []string) (*link, error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	type result struct {
		link *link
		err  error
	}
	results := make(chan result)
	next := time.NewTimer(0)
	defer next.Stop()
	started, ended := 0, 0
	var all []error
	for {
		select {
		case <-next.C:
			if started == len(addrs) {
				continue
			}
			addr := addrs[started]
			started++
			next.Reset(addressStagger)
			wg.Go(func() {
				l, err := co.dialOne(ctx, addr)
				select {
				case results <- result{l, err}:
				case <-ctx.Done():
					if err == nil {
						_ = l.wire.Close()
					}
				}
			})
		case r := <-results:
			if r.err == nil {
				return r.link, nil
			}
			ended++
			all = append(all, r.err)
			if ended == len(addrs) {
				return nil, errors.Join(all...)
			}
			next.Reset(0) // do not wait for an address when another one just failed
		case <-ctx.Done():
			return nil, errors.Join(append(all, fmt.Errorf("no answer from %v", addrs))...)
		}
	}
}

func (co *conn) dialOne(ctx context.Context, addr string) (*link, error) {
	raw, err := co.c.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	w := &wire{Conn: raw, co: co}
	w.quiet.Store(1)
	w.read.Store(co.c.clock())
	cfg := &co.c.cfg
	g := &caller{self: cfg.Self, storeID: cfg.StoreID(), software: cfg.Software, class: co.key.class, want: co.key.node, now: cfg.Now}
	if cfg.Identity != nil {
		id := cfg.Identity()
		if id == nil {
			_ = raw.Close()
			return nil, errs.New(errs.Unavailable, "rpc.dial", string(cfg.Self), "this node has no certificate yet")
		}
		g.tls, g.verify = id.ClientTLS(), id.Verify
	}
	conn, p, rtt, err := g.greet(ctx, w)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", addr, err)
	}
	l := &link{conn: conn, wire: w, peer: p, rtt: max(rtt, 1)}
	if tc, ok := conn.(*tls.Conn); ok {
		l.conn = &abrupt{Conn: tc, raw: w}
	}
	return l, nil
}

func (co *conn) fail(err error) {
	co.lastErr.Store(&err)
	if !co.failed.Swap(true) {
		co.c.cfg.Logger.Info("a node is not reachable", "node", string(co.key.node), "class", co.key.class.String(), "reason", err.Error())
	}
}

// failure is the error of calls that are not even tried.
func (co *conn) failure() error {
	text := "not connected yet"
	if p := co.lastErr.Load(); p != nil {
		text = (*p).Error()
	}
	return &errs.Error{Kind: errs.Unavailable, Op: "rpc.call", Subject: string(co.key.node), Err: &transportError{text: text}}
}

// ready waits for an attempt to connect that has just begun, and fails at once if
// the last one failed.
func (co *conn) ready(ctx context.Context) error {
	if co.cc.GetState() == connectivity.Ready {
		return nil
	}
	var wait context.Context
	for {
		s := co.cc.GetState()
		switch s {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure:
			return co.failure()
		case connectivity.Shutdown:
			return &errs.Error{Kind: errs.Closed, Op: "rpc.call", Subject: string(co.key.node), Err: &transportError{text: "the connection was closed"}}
		case connectivity.Idle:
			co.cc.Connect()
		}
		if co.failed.Load() {
			return co.failure()
		}
		if wait == nil {
			until := time.Now().Add(co.c.cfg.ConnectWait)
			if at := co.dialing.Load(); s == connectivity.Connecting && at != 0 {
				until = until.Add(-time.Duration(co.c.clock() - at))
			}
			var cancel context.CancelFunc
			wait, cancel = context.WithDeadline(ctx, until)
			defer cancel()
		}
		if !co.cc.WaitForStateChange(wait, s) {
			if err := ctx.Err(); err != nil {
				return err
			}
			return co.failure()
		}
	}
}

// begin admits a call and counts it; finish must be called at its end.
func (co *conn) begin(ctx context.Context) error {
	if err := co.ready(ctx); err != nil {
		return err
	}
	if co.calls.Add(1) > int64(co.c.cfg.CallsMax) {
		co.calls.Add(-1)
		return &errs.Error{Kind: errs.Busy, Op: "rpc.call", Subject: string(co.key.node), Detail: "too many calls are in flight", Err: &transportError{text: co.key.class.String()}}
	}
	return nil
}

// Invoke is one unary call. Its errors are those of package errs, see FromStatus.
func (co *conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := co.begin(ctx); err != nil {
		return err
	}
	defer co.calls.Add(-1)
	if _, ok := ctx.Deadline(); !ok {
		limited, cancel := context.WithTimeout(ctx, co.c.cfg.CallTimeout)
		defer cancel()
		err := co.invoke(limited, method, args, reply, opts...)
		if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			return &errs.Error{Kind: errs.Timeout, Op: "rpc.call", Subject: method, Err: &transportError{text: "no answer from " + string(co.key.node), sent: true}}
		}
		return err
	}
	return co.invoke(ctx, method, args, reply, opts...)
}

func (co *conn) invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	co.expect()
	co.watch()
	defer co.waiting.Add(-1)
	return co.cc.Invoke(ctx, method, args, reply, opts...)
}

// NewStream opens a stream; it counts as a call until it has ended.
func (co *conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := co.begin(ctx); err != nil {
		return nil, err
	}
	var once sync.Once
	finish := func(error) { once.Do(func() { co.calls.Add(-1) }) }
	s, err := co.cc.NewStream(ctx, desc, method, append(opts[:len(opts):len(opts)], grpc.OnFinish(finish))...)
	if err != nil {
		finish(err)
		return nil, err
	}
	return &watchedStream{ClientStream: s, co: co}, nil
}

// watchedStream has the peer watched while somebody waits for it.
type watchedStream struct {
	grpc.ClientStream
	co *conn
}

func (s *watchedStream) SendMsg(m any) error {
	s.co.expect()
	s.co.watch()
	defer s.co.waiting.Add(-1)
	return s.ClientStream.SendMsg(m)
}

func (s *watchedStream) RecvMsg(m any) error {
	s.co.watch()
	defer s.co.waiting.Add(-1)
	return s.ClientStream.RecvMsg(m)
}

// watch counts a goroutine that waits for the peer and sees to it that check runs.
func (co *conn) watch() {
	co.waiting.Add(1)
	co.arm()
}

// expect ends the long intervals between pings of a quiet connection.
func (co *conn) expect() {
	if w := co.wire.Load(); w != nil && w.quiet.Load() != 1 {
		w.quiet.Store(1)
	}
}

func (co *conn) arm() {
	if !co.armed.Load() && co.armed.CompareAndSwap(false, true) {
		time.AfterFunc(co.c.cfg.Silence/2, co.check)
	}
}

// check runs every half Silence while an answer is owed: it pings a silent peer,
// and gives it up when that changes nothing.
func (co *conn) check() {
	if co.c.ctx.Err() != nil {
		return
	}
	co.armed.Store(false)
	w := co.wire.Load()
	if w == nil || w.closed.Load() {
		return // attempts to connect have their own limit, and the next call arms again
	}
	owed := w.owed.Load()
	waiting := co.waiting.Load() > 0
	if owed == 0 && !waiting {
		return
	}
	now := co.c.clock()
	silence := int64(co.c.cfg.Silence)
	if owed != 0 && now-owed >= silence {
		co.suspectOthers() // so that all are found dead together
		co.ping(w)
	} else if waiting && now-w.read.Load() >= silence*w.quiet.Load() {
		co.ping(w)
	}
	co.arm()
}

// ping asks the peer for a sign of life. Anything that arrives counts, since the
// answer itself may have to wait its turn on a slow line.
func (co *conn) ping(w *wire) {
	if !co.pinging.CompareAndSwap(false, true) {
		return
	}
	defer co.pinging.Store(false)
	before := w.reads.Load()
	ctx, cancel := context.WithTimeout(co.c.ctx, co.c.cfg.PingTimeout)
	defer cancel()
	start := time.Now()
	err := co.cc.Invoke(ctx, methodPing, &nodepb.PingRequest{}, &nodepb.PingResponse{})
	if err == nil {
		co.rtt.Store(int64(max(time.Since(start), 1)))
		w.quiet.Store(min(w.quiet.Load()*2, pingEveryMax))
		return
	}
	// This process may have been stopped meanwhile: let what has arrived be read.
	grace, done := context.WithTimeout(co.c.ctx, co.c.cfg.PingTimeout/10)
	<-grace.Done()
	done()
	if w.reads.Load() != before || w.closed.Load() || co.c.ctx.Err() != nil || ctx.Err() == nil {
		return
	}
	co.fail(fmt.Errorf("the node has not answered for %v", time.Duration(co.c.clock()-w.read.Load()).Round(time.Millisecond)))
	_ = w.Close()
	co.suspectOthers()
}

// suspectOthers pings on the other connections to the same peer, since this one is silent.
func (co *conn) suspectOthers() {
	for _, other := range co.c.all(co.key.node) {
		w := other.wire.Load()
		if other != co && w != nil && !w.closed.Load() {
			time.AfterFunc(0, func() { other.ping(w) })
		}
	}
}

// wire is a raw connection that knows when the peer last gave a sign of life.
type wire struct {
	net.Conn
	co     *conn
	reads  atomic.Int64 // how often something arrived
	read   atomic.Int64 // when last, by Client.clock
	owed   atomic.Int64 // the oldest write since then, or 0
	quiet  atomic.Int64 // after how many times Silence a merely waiting call has the peer pinged
	closed atomic.Bool
}

func (w *wire) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if n > 0 {
		w.read.Store(w.co.c.clock())
		w.reads.Add(1)
		w.owed.Store(0)
	}
	if err != nil && !w.closed.Load() {
		if errors.Is(err, io.EOF) {
			err = errors.New("the node closed the connection")
		}
		w.co.lastErr.Store(&err)
	}
	return n, err
}

func (w *wire) Write(b []byte) (int, error) {
	if w.owed.Load() == 0 {
		w.owed.CompareAndSwap(0, w.co.c.clock())
	}
	return w.Conn.Write(b)
}

func (w *wire) Close() error {
	w.closed.Store(true)
	return w.Conn.Close()
}

// abrupt is TLS that closes without a farewell, which would wait for a peer that reads no more.
type abrupt struct {
	*tls.Conn
	raw net.Conn
}

func (a *abrupt) Close() error { return a.raw.Close() }
