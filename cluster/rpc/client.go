package rpc

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"cairn/cluster"
	"cairn/cluster/pki"
	"cairn/storage/errs"
)

// ClientConfig configures a Client; zero durations and limits are their defaults.
type ClientConfig struct {
	Self    cluster.NodeID
	StoreID func() string // required
	// Identity gives the node's certificate, asked for at every connection. A nil func means plaintext.
	Identity func() *pki.Identity
	// Addresses are where a node may be, host:port, best first; asked for at every
	// attempt, so they may change at run time. None: the node is not known.
	Addresses func(cluster.NodeID) []string
	// Dial makes the raw connections; nil is TCP. It ends with ctx. Close of what it
	// returns must end a blocked Read and Write.
	Dial     func(ctx context.Context, addr string) (net.Conn, error)
	Software string // for people
	Logger   *slog.Logger
	Now      func() time.Time // judges certificates; default time.Now

	ConnectTimeout time.Duration // of one attempt over all addresses; default 2 s
	ConnectWait    time.Duration // how long calls wait for an attempt before they fail; default 1 s
	BackoffMax     time.Duration // between attempts; default 1 s
	Silence        time.Duration // after which a peer that owes an answer is pinged; default 1 s
	PingTimeout    time.Duration // after which a pinged peer that sent nothing at all is given up; default 1.5 s
	CallTimeout    time.Duration // of unary calls whose ctx has no deadline; default 30 s
	CallsMax       int           // in flight on one connection, streams included; default 2048, less than servers allow; more are refused as Busy
}

func (c *ClientConfig) setDefaults() {
	c.ConnectTimeout = cmp.Or(c.ConnectTimeout, 2*time.Second)
	c.ConnectWait = cmp.Or(c.ConnectWait, time.Second)
	c.BackoffMax = cmp.Or(c.BackoffMax, time.Second)
	c.Silence = cmp.Or(c.Silence, time.Second)
	c.PingTimeout = cmp.Or(c.PingTimeout, 1500*time.Millisecond)
	c.CallTimeout = cmp.Or(c.CallTimeout, 30*time.Second)
	c.CallsMax = cmp.Or(c.CallsMax, 2048)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Dial == nil {
		d := &net.Dialer{}
		c.Dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
}

// Client holds the connections of this node to all others: one for each peer and
// class, made when first wanted and then kept up, with a second between attempts.
// A peer that went silent (nothing refused, nothing answered) is found by pings while it owes
// an answer; from then on calls to it fail at once until it is back. Safe for concurrent use.
type Client struct {
	cfg   ClientConfig
	ctx   context.Context // ends with Close
	began time.Time
	end   context.CancelFunc
	wg    sync.WaitGroup

	mu struct {
		sync.Mutex
		closed bool
		conns  map[connKey]*conn
	}
}

type connKey struct {
	node  cluster.NodeID
	class Class
}

// NewClient makes a client without connections.
func NewClient(cfg ClientConfig) *Client {
	cfg.setDefaults()
	c := &Client{cfg: cfg, began: time.Now()}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.mu.conns = map[connKey]*conn{}
	return c
}

// Conn is the connection to a node. It never blocks; that it is returned does not mean
// that the node is reachable. Its calls fail at once with Unavailable while the node is
// known not to be, with Busy over the limit. Ask again for each call, or keep it: after Close,
// or once the node has been unknown for a while, its calls fail with Closed.
func (c *Client) Conn(node cluster.NodeID, class Class) (grpc.ClientConnInterface, error) {
	k := connKey{node, class}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return nil, errs.New(errs.Closed, "rpc.conn", string(node), "")
	}
	if co := c.mu.conns[k]; co != nil {
		return co, nil
	}
	if class >= classes {
		return nil, errs.Newf(errs.InvalidArgument, "rpc.conn", string(node), "no %v", class)
	}
	if len(c.cfg.Addresses(node)) == 0 {
		return nil, notKnown(node)
	}
	co, err := newConn(c, node, class)
	if err != nil {
		return nil, errs.Wrap(errs.Unavailable, "rpc.conn", string(node), err)
	}
	c.mu.conns[k] = co
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		co.keepUp(c.ctx)
	}()
	return co, nil
}

// clock is monotonic, in ns, and never 0.
func (c *Client) clock() int64 { return int64(time.Since(c.began)) + 1 }

// ConnOf is Conn of one class, in the shape that the packages above want.
func (c *Client) ConnOf(class Class) func(cluster.NodeID) (grpc.ClientConnInterface, error) {
	return func(n cluster.NodeID) (grpc.ClientConnInterface, error) { return c.Conn(n, class) }
}

func notKnown(node cluster.NodeID) error {
	return &errs.Error{Kind: errs.Unavailable, Op: "rpc.conn", Subject: string(node), Err: &transportError{text: "no address is known of this node"}}
}

// all are the connections to one node.
func (c *Client) all(node cluster.NodeID) []*conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	var cs []*conn
	for class := range Class(classes) {
		if co := c.mu.conns[connKey{node, class}]; co != nil {
			cs = append(cs, co)
		}
	}
	return cs
}

// Reachable is false if the last that is known of a node is a failure: no attempt
// has come through since. A node never tried counts as reachable.
func (c *Client) Reachable(node cluster.NodeID) bool {
	failed := false
	for _, co := range c.all(node) {
		if co.cc.GetState() == connectivity.Ready {
			return true
		}
		failed = failed || co.failed.Load()
	}
	return !failed
}

// RoundTrip is the shortest of the last round trips to a node on each class, and
// false if none was measured. It was taken when the connection was made, or by a ping.
func (c *Client) RoundTrip(node cluster.NodeID) (time.Duration, bool) {
	var best int64
	for _, co := range c.all(node) {
		if rtt := co.rtt.Load(); rtt > 0 && (best == 0 || rtt < best) {
			best = rtt
		}
	}
	return time.Duration(best), best > 0
}

// PeerInfo is what the node said of itself when it was last connected to.
func (c *Client) PeerInfo(node cluster.NodeID) (Peer, bool) {
	for _, co := range c.all(node) {
		if p := co.peer.Load(); p != nil {
			return *p, true
		}
	}
	return Peer{}, false
}

// LastError says why a node is not reachable, or nil.
func (c *Client) LastError(node cluster.NodeID) error {
	if c.Reachable(node) {
		return nil
	}
	for _, co := range c.all(node) {
		if co.failed.Load() {
			if p := co.lastErr.Load(); p != nil {
				return *p
			}
		}
	}
	return nil
}

// Forget closes the connections to a node; Conn makes them anew.
func (c *Client) Forget(node cluster.NodeID) {
	for _, co := range c.all(node) {
		c.drop(co)
	}
}

func (c *Client) drop(co *conn) {
	c.mu.Lock()
	if c.mu.conns[co.key] == co {
		delete(c.mu.conns, co.key)
	}
	c.mu.Unlock()
	co.close()
}

// Close ends all connections; calls in flight fail. It waits for the client's goroutines.
func (c *Client) Close() {
	c.mu.Lock()
	c.mu.closed = true
	conns := c.mu.conns
	c.mu.conns = map[connKey]*conn{}
	c.mu.Unlock()
	c.end()
	for _, co := range conns {
		co.close()
	}
	c.wg.Wait()
}
