package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"cairn/cluster"
	"cairn/cluster/pki"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

const storeID = "00112233445566778899aabbccddeeff"

// world is a network of named addresses in memory, with black holes.
type world struct {
	t  *testing.T
	mu sync.Mutex
	at map[string]*bufconn.Listener
	// holes are addresses from and to which nothing comes any more, neither bytes nor errors.
	holes map[string]bool
	stuck atomic.Bool // what is written to a hole fills the buffers: Write blocks
	dials atomic.Int64
}

func newWorld(t *testing.T) *world {
	return &world{t: t, at: map[string]*bufconn.Listener{}, holes: map[string]bool{}}
}

func (w *world) hole(addr string, on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holes[addr] = on
}

func (w *world) isHole(addr string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.holes[addr]
}

func (w *world) listen(addr string) net.Listener {
	lis := bufconn.Listen(256 << 10)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at[addr] = lis
	return lis
}

func (w *world) dial(ctx context.Context, addr string) (net.Conn, error) {
	w.dials.Add(1)
	if w.isHole(addr) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	w.mu.Lock()
	lis := w.at[addr]
	w.mu.Unlock()
	if lis == nil {
		return nil, errors.New("connection refused")
	}
	conn, err := lis.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	return &holeConn{Conn: conn, w: w, addr: addr, closed: make(chan struct{})}, nil
}

// holeConn swallows what is written and brings nothing while its address is a hole.
type holeConn struct {
	net.Conn
	w      *world
	addr   string
	once   sync.Once
	closed chan struct{}
}

func (c *holeConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.w.isHole(c.addr) {
		<-c.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *holeConn) Write(b []byte) (int, error) {
	if c.w.isHole(c.addr) {
		if c.w.stuck.Load() {
			<-c.closed
			return 0, net.ErrClosed
		}
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *holeConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

func newCA(t *testing.T, id string) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(id, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func identity(t *testing.T, ca *pki.CA, node cluster.NodeID, at time.Time) func() *pki.Identity {
	t.Helper()
	if ca == nil {
		return nil
	}
	id, err := ca.NewNode(node, pki.NewSealKey(), at)
	if err != nil {
		t.Fatal(err)
	}
	return func() *pki.Identity { return id }
}

func sameStore() string { return storeID }

// serve starts a server until the test ends.
func serve(t *testing.T, lis net.Listener, cfg ServerConfig, e *echo) *Server {
	t.Helper()
	if cfg.StoreID == nil {
		cfg.StoreID = sameStore
	}
	s := NewServer(cfg)
	if e != nil {
		e.register(s)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() { shut(t, s, done) })
	return s
}

func shut(t *testing.T, s *Server, done chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s.Stop(ctx)
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
}

func connect(t *testing.T, cfg ClientConfig) *Client {
	t.Helper()
	if cfg.StoreID == nil {
		cfg.StoreID = sameStore
	}
	c := NewClient(cfg)
	t.Cleanup(c.Close)
	return c
}

func addresses(addrs ...string) func(cluster.NodeID) []string {
	return func(cluster.NodeID) []string { return addrs }
}

// answering says who called.
func answering() *echo {
	return &echo{
		unary: func(ctx context.Context, in *nodepb.Error) (*nodepb.Error, error) {
			who, err := Caller(ctx)
			if err != nil {
				return nil, err
			}
			p, _ := PeerOf(ctx)
			return &nodepb.Error{Op: string(who), Subject: in.Subject, Detail: p.Class.String(), Kind: p.Version}, nil
		},
		stream: func(s grpc.ServerStream) error {
			for {
				m := new(nodepb.Error)
				if err := s.RecvMsg(m); err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := s.SendMsg(m); err != nil {
					return err
				}
			}
		},
	}
}

func mustConn(t *testing.T, c *Client, node cluster.NodeID, class Class) grpc.ClientConnInterface {
	t.Helper()
	cc, err := c.Conn(node, class)
	if err != nil {
		t.Fatal(err)
	}
	return cc
}

func TestCallsOverTCP(t *testing.T) {
	for _, plain := range []bool{false, true} {
		name, ca := "TLS", (*pki.CA)(nil)
		if !plain {
			ca = newCA(t, storeID)
		} else {
			name = "plaintext"
		}
		t.Run(name, func(t *testing.T) {
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			serve(t, lis, ServerConfig{Self: "b", Identity: identity(t, ca, "b", time.Now()), Software: "1.2", Now: func() time.Time { return time.Now().Add(5 * time.Minute) }}, answering())
			c := connect(t, ClientConfig{Self: "a", Identity: identity(t, ca, "a", time.Now()), Addresses: addresses(lis.Addr().String())})
			for _, class := range []Class{Raft, Meta, Bulk} {
				out, err := call(t.Context(), mustConn(t, c, "b", class), &nodepb.Error{Subject: "x"})
				if err != nil || out.Op != "a" || out.Subject != "x" || out.Detail != class.String() || out.Kind != Version {
					t.Fatalf("%v: %v %v", class, out, err)
				}
			}
			s, err := stream(t.Context(), mustConn(t, c, "b", Bulk))
			if err != nil {
				t.Fatal(err)
			}
			for i := range 10 {
				in, out := &nodepb.Error{Detail: strings.Repeat("x", i*200_000)}, new(nodepb.Error)
				if err := s.SendMsg(in); err != nil {
					t.Fatal(err)
				}
				if err := s.RecvMsg(out); err != nil || out.Detail != in.Detail {
					t.Fatal(err)
				}
			}
			if rtt, ok := c.RoundTrip("b"); !ok || rtt <= 0 {
				t.Errorf("round trip %v %v", rtt, ok)
			}
			if p, ok := c.PeerInfo("b"); !ok || p.Node != "b" || p.Software != "1.2" || p.ClockOffset < 4*time.Minute || p.ClockOffset > 6*time.Minute {
				t.Errorf("%v %v", p, ok)
			}
			if !c.Reachable("b") || c.LastError("b") != nil || !c.Reachable("never tried") {
				t.Error("not reachable")
			}
			c.Close()
			if _, err := c.Conn("b", Meta); !errs.Is(err, errs.Closed) {
				t.Errorf("after close: %v", err)
			}
			if err := s.RecvMsg(new(nodepb.Error)); err == nil {
				t.Error("the stream outlived its client")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	now := time.Now()
	ca := newCA(t, storeID)
	impostor := newCA(t, storeID)
	foreign := newCA(t, "ffff")
	removed := func(n cluster.NodeID) error {
		return errs.New(errs.Foreign, "member", string(n), "the node was removed from the cluster")
	}
	for _, c := range []struct {
		name   string
		client ClientConfig
		server ServerConfig
		want   string
	}{
		{"another store", ClientConfig{Identity: identity(t, foreign, "a", now), StoreID: func() string { return "ffff" }}, ServerConfig{Identity: identity(t, ca, "b", now)}, "another cluster"},
		{"another store, plaintext", ClientConfig{StoreID: func() string { return "ffff" }}, ServerConfig{}, "another cluster"},
		{"the caller's CA is another", ClientConfig{Identity: identity(t, impostor, "a", now)}, ServerConfig{Identity: identity(t, ca, "b", now)}, "not signed by its CA"},
		{"a name that is not the certificate's", ClientConfig{Self: "c", Identity: identity(t, ca, "a", now)}, ServerConfig{Identity: identity(t, ca, "b", now)}, "is that of node a"},
		{"another node at the address", ClientConfig{Identity: identity(t, ca, "a", now)}, ServerConfig{Self: "c", Identity: identity(t, ca, "c", now)}, "now belongs to node c"},
		{"only the caller speaks TLS", ClientConfig{Identity: identity(t, ca, "a", now)}, ServerConfig{}, "--cluster-plaintext"},
		{"only the called speaks TLS", ClientConfig{}, ServerConfig{Identity: identity(t, ca, "b", now)}, "--cluster-plaintext"},
		{"a removed node", ClientConfig{Identity: identity(t, ca, "a", now)}, ServerConfig{Identity: identity(t, ca, "b", now), Admit: removed}, "removed from the cluster"},
		{"the caller's certificate is over", ClientConfig{Identity: identity(t, ca, "a", now.Add(-pki.NodeLife-time.Hour))}, ServerConfig{Identity: identity(t, ca, "b", now)}, "has expired"},
		{"the called's certificate is over", ClientConfig{Identity: identity(t, ca, "a", now)}, ServerConfig{Identity: identity(t, ca, "b", now.Add(-pki.NodeLife-time.Hour))}, "has expired"},
		{"the called's clock is ahead", ClientConfig{Identity: identity(t, ca, "a", now)}, ServerConfig{Identity: identity(t, ca, "b", now.Add(time.Hour))}, "set the clocks"},
		{"no certificate yet", ClientConfig{Identity: func() *pki.Identity { return nil }}, ServerConfig{Identity: identity(t, ca, "b", now)}, "no certificate yet"},
		{"a bad name", ClientConfig{Self: "a b"}, ServerConfig{}, "a node's name has"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lis, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			if c.server.Self == "" {
				c.server.Self = "b"
			}
			if c.client.Self == "" {
				c.client.Self = "a"
			}
			c.client.Addresses = addresses(lis.Addr().String())
			serve(t, lis, c.server, answering())
			client := connect(t, c.client)
			_, err = call(t.Context(), mustConn(t, client, "b", Meta), &nodepb.Error{})
			if !errs.Is(err, errs.Unavailable) || !NotSent(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if client.Reachable("b") || client.LastError("b") == nil || !strings.Contains(client.LastError("b").Error(), c.want) {
				t.Errorf("last error: %v", client.LastError("b"))
			}
		})
	}
}

func TestVersionsApart(t *testing.T) {
	w := newWorld(t)
	serve(t, w.listen("b"), ServerConfig{Self: "b", Software: "cairn 1"}, answering())
	for _, c := range []struct {
		newest, oldest uint32
		refused        bool
	}{{1, 1, false}, {2, 1, false}, {9, 1, false}, {9, 2, true}, {0, 0, true}} {
		conn, err := w.dial(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		if err := writeGreeting(conn, &nodepb.Greeting{Version: c.newest, VersionMin: c.oldest, StoreId: storeID, Node: "a", Software: "cairn 9"}); err != nil {
			t.Fatal(err)
		}
		g, err := readGreeting(conn)
		if err != nil || (g.Refusal != nil) != c.refused {
			t.Errorf("%v: %v %v", c, g.GetRefusal(), err)
		}
		if c.refused && (!strings.Contains(g.Refusal.Detail, "cairn 9") || !strings.Contains(g.Refusal.Detail, "bring all nodes")) {
			t.Errorf("%v: %v", c, g.Refusal)
		}
		conn.Close()
	}
}

func TestOneOfSeveralAddresses(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newCA(t, storeID)
		serve(t, w.listen("new"), ServerConfig{Self: "b", Identity: identity(t, ca, "b", time.Now())}, answering())
		serve(t, w.listen("reused"), ServerConfig{Self: "c", Identity: identity(t, ca, "c", time.Now())}, answering())
		w.hole("lost", true)
		c := connect(t, ClientConfig{Self: "a", Identity: identity(t, ca, "a", time.Now()), Dial: w.dial, Addresses: addresses("lost", "refused", "reused", "new")})
		if out, err := call(t.Context(), mustConn(t, c, "b", Meta), &nodepb.Error{}); err != nil || out.Op != "a" {
			t.Fatal(err)
		}
		if got := c.LastError("b"); got != nil {
			t.Error(got)
		}
		c.Close()
	})
}

func TestAddressChanges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var addr atomic.Value
		addr.Store([]string{"old"})
		s := NewServer(ServerConfig{Self: "b", StoreID: sameStore})
		answering().register(s)
		done := make(chan error, 1)
		lis := w.listen("old") // before anybody dials
		go func() { done <- s.Serve(lis) }()
		c := connect(t, ClientConfig{Self: "a", Dial: w.dial, Addresses: func(cluster.NodeID) []string { return addr.Load().([]string) }})
		cc := mustConn(t, c, "b", Meta)
		synctest.Wait()
		if _, err := call(t.Context(), cc, &nodepb.Error{}); err != nil {
			t.Fatal(err)
		}
		shut(t, s, done)
		synctest.Wait()
		for range 3 {
			start := time.Now()
			if _, err := call(t.Context(), cc, &nodepb.Error{}); !errs.Is(err, errs.Unavailable) || !NotSent(err) {
				t.Fatal(err)
			}
			if d := time.Since(start); d > 10*time.Millisecond {
				t.Errorf("took %v to fail", d)
			}
		}
		if c.Reachable("b") {
			t.Error("reachable")
		}
		serve(t, w.listen("new"), ServerConfig{Self: "b"}, answering())
		addr.Store([]string{"new"})
		time.Sleep(2 * time.Second)
		if _, err := call(t.Context(), cc, &nodepb.Error{}); err != nil || !c.Reachable("b") {
			t.Fatal(err)
		}
		// A node that nobody knows any more is not looked for for ever.
		addr.Store([]string{})
		c.Forget("b")
		if _, err := call(t.Context(), cc, &nodepb.Error{}); !errs.Is(err, errs.Closed) {
			t.Error(err)
		}
		if _, err := c.Conn("b", Meta); !errs.Is(err, errs.Unavailable) || !NotSent(err) {
			t.Error(err)
		}
		addr.Store([]string{"nowhere"})
		mustConn(t, c, "b", Meta)
		time.Sleep(5 * time.Second)
		addr.Store([]string{})
		time.Sleep(2 * time.Second)
		before := w.dials.Load()
		time.Sleep(time.Minute)
		if n := w.dials.Load() - before; n != 0 || len(c.all("b")) != 0 {
			t.Errorf("%d attempts on an unknown node", n)
		}
		c.Close()
	})
}

func TestBlackHole(t *testing.T) {
	for _, name := range []string{"plaintext", "TLS"} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				w := newWorld(t)
				var ca *pki.CA
				if name == "TLS" {
					ca = newCA(t, storeID)
				}
				serve(t, w.listen("b"), ServerConfig{Self: "b", Identity: identity(t, ca, "b", time.Now())}, answering())
				c := connect(t, ClientConfig{Self: "a", Identity: identity(t, ca, "a", time.Now()), Dial: w.dial, Addresses: addresses("b")})
				meta, bulk, raft := mustConn(t, c, "b", Meta), mustConn(t, c, "b", Bulk), mustConn(t, c, "b", Raft)
				for _, cc := range []grpc.ClientConnInterface{meta, bulk, raft} {
					if _, err := call(t.Context(), cc, &nodepb.Error{}); err != nil {
						t.Fatal(err)
					}
				}
				s, err := stream(t.Context(), bulk)
				if err != nil {
					t.Fatal(err)
				}
				echoed := func() error {
					if err := s.SendMsg(&nodepb.Error{}); err != nil {
						return err
					}
					return s.RecvMsg(new(nodepb.Error))
				}
				if err := echoed(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Hour) // quiet and well
				if err := echoed(); err != nil || !c.Reachable("b") {
					t.Fatal(err)
				}

				w.hole("b", true)
				start := time.Now()
				_, err = call(t.Context(), meta, &nodepb.Error{})
				if !errs.Is(err, errs.Unavailable) || !IsTransport(err) || NotSent(err) {
					t.Fatal(err)
				}
				if d := time.Since(start); d > 4*time.Second {
					t.Errorf("given up after %v", d)
				}
				// The stream's connection is found out from the other's silence, and one without any call.
				if err := s.RecvMsg(new(nodepb.Error)); !errs.Is(err, errs.Unavailable) {
					t.Error(err)
				}
				time.Sleep(time.Until(start.Add(4 * time.Second)))
				if c.Reachable("b") || !strings.Contains(c.LastError("b").Error(), "has not answered for") {
					t.Errorf("reachable: %v", c.LastError("b"))
				}
				for range 20 {
					time.Sleep(500 * time.Millisecond)
					start := time.Now()
					for _, cc := range []grpc.ClientConnInterface{meta, bulk, raft} {
						if _, err := call(t.Context(), cc, &nodepb.Error{}); !errs.Is(err, errs.Unavailable) || !NotSent(err) {
							t.Error(err)
						}
					}
					if d := time.Since(start); d != 0 {
						t.Errorf("took %v to fail", d)
					}
				}

				w.hole("b", false)
				time.Sleep(5 * time.Second)
				for _, cc := range []grpc.ClientConnInterface{meta, bulk, raft} {
					if _, err := call(t.Context(), cc, &nodepb.Error{}); err != nil {
						t.Error(err)
					}
				}
				c.Close()
			})
		})
	}
}

// A writer that is stuck because nobody reads any more is freed too.
func TestBlackHoleWhileSending(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.stuck.Store(true)
		ca := newCA(t, storeID)
		serve(t, w.listen("b"), ServerConfig{Self: "b", Identity: identity(t, ca, "b", time.Now())}, answering())
		c := connect(t, ClientConfig{Self: "a", Identity: identity(t, ca, "a", time.Now()), Dial: w.dial, Addresses: addresses("b")})
		s, err := stream(t.Context(), mustConn(t, c, "b", Bulk))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for s.RecvMsg(new(nodepb.Error)) == nil {
			}
		}()
		time.AfterFunc(time.Second, func() { w.hole("b", true) })
		var last time.Time
		for {
			last = time.Now()
			if err = s.SendMsg(&nodepb.Error{Detail: strings.Repeat("x", 1<<20)}); err != nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if d := time.Since(last); d > 4*time.Second {
			t.Errorf("sending was stuck for %v", d)
		}
		c.Close()
	})
}

// Whoever connects and says nothing, or too much, is sent away.
func TestStrangers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newCA(t, storeID)
		serve(t, w.listen("tls"), ServerConfig{Self: "b", Identity: identity(t, ca, "b", time.Now())}, answering())
		serve(t, w.listen("plain"), ServerConfig{Self: "b"}, answering())
		for _, addr := range []string{"tls", "plain"} {
			for _, says := range []string{"", "GET / HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "CRN\x01\xff\xff\xff\xff", "CRN\x01\x00\x00\x00\x10", "\x16\x03\x01\x02\x00"} {
				conn, err := w.dial(t.Context(), addr)
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				if _, err := conn.Write([]byte(says)); err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, conn)
				if d := time.Since(start); d > 10*time.Second {
					t.Errorf("%s: %q was kept for %v", addr, says, d)
				}
				conn.Close()
			}
		}
	})
}

// Whoever is no member, and be it ever so many, takes up no member's connection, and is not told what store is here.
func TestStrangersTakeNoPlace(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newCA(t, storeID)
		s := serve(t, w.listen("b"), ServerConfig{Self: "b", Identity: identity(t, ca, "b", time.Now()), ConnsMax: 1}, answering())
		tok := pki.NewToken(storeID, ca.Pin(), []string{"b"})
		join := func() (net.Conn, error) {
			raw, err := w.dial(t.Context(), "b")
			if err != nil {
				t.Fatal(err)
			}
			c := &caller{self: "n", storeID: storeID, joining: true, tls: tok.ClientTLS(), verify: tok.Verify, now: time.Now}
			conn, _, _, err := c.greet(t.Context(), raw)
			return conn, err
		}
		for i := range joiningMax + 1 {
			conn, err := join()
			if over := i >= joiningMax; over != errs.Is(err, errs.Busy) || over != (err != nil) {
				t.Fatalf("connection %d of a joining node: %v", i+1, err)
			}
			if err == nil {
				defer conn.Close()
				go func() { _, _ = io.Copy(io.Discard, conn) }()
				_, _ = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
			}
		}
		for range 2 * newcomersMax {
			raw, err := w.dial(t.Context(), "b")
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
		}
		time.Sleep(2 * newcomerTurn)
		c := connect(t, ClientConfig{Self: "a", Identity: identity(t, ca, "a", time.Now()), Dial: w.dial, Addresses: addresses("b")})
		if _, err := call(t.Context(), mustConn(t, c, "b", Meta), &nodepb.Error{}); err != nil {
			t.Error(err)
		}
		if n := s.conns.Load(); n != 1 {
			t.Errorf("%d connections of members", n)
		}
		// Another one is over the limit of members, and is told so.
		d := connect(t, ClientConfig{Self: "d", Identity: identity(t, ca, "d", time.Now()), Dial: w.dial, Addresses: addresses("b")})
		if _, err := call(t.Context(), mustConn(t, d, "b", Meta), &nodepb.Error{}); !errs.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), "connections of other nodes") {
			t.Error(err)
		}
		d.Close()
		time.Sleep(joiningLife + greetTimeout)
		s.fresh.mu.Lock()
		if len(s.fresh.conns) != 0 || s.fresh.joining != 0 {
			t.Errorf("%d strangers are still there, %d of them joining", len(s.fresh.conns), s.fresh.joining)
		}
		s.fresh.mu.Unlock()
		if _, err := call(t.Context(), mustConn(t, c, "b", Meta), &nodepb.Error{}); err != nil {
			t.Error("a member's connection has no end of its own:", err)
		}
		// Whoever guesses a store is not told which one it is.
		raw, err := w.dial(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		tc := tls.Client(raw, tok.ClientTLS())
		defer tc.Close()
		if err := writeGreeting(tc, &nodepb.Greeting{Version: Version, VersionMin: VersionMin, StoreId: "ffff", Node: "n"}); err != nil {
			t.Fatal(err)
		}
		g, err := readGreeting(tc)
		if err != nil || g.Refusal == nil || g.StoreId != "" || strings.Contains(g.Refusal.String(), storeID) {
			t.Errorf("%v %v", g, err)
		}
		c.Close()
	})
}

func TestSlowIsNotDead(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		e := answering()
		e.unary = func(ctx context.Context, in *nodepb.Error) (*nodepb.Error, error) {
			time.Sleep(20 * time.Second)
			return in, nil
		}
		serve(t, w.listen("b"), ServerConfig{Self: "b"}, e)
		c := connect(t, ClientConfig{Self: "a", Dial: w.dial, Addresses: addresses("b")})
		cc := mustConn(t, c, "b", Meta)
		if _, err := call(t.Context(), cc, &nodepb.Error{}); err != nil {
			t.Error(err)
		}
		if n := w.dials.Load(); n != 1 {
			t.Errorf("%d connections", n)
		}
		// Without a deadline of its own a call still ends.
		e.unary = func(ctx context.Context, _ *nodepb.Error) (*nodepb.Error, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start := time.Now()
		if _, err := call(t.Context(), cc, &nodepb.Error{}); !errs.Is(err, errs.Timeout) || time.Since(start) > time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := call(ctx, cc, &nodepb.Error{}); !errors.Is(err, context.DeadlineExceeded) && !errs.Is(err, errs.Timeout) {
			t.Error(err)
		}
		c.Close()
	})
}

func TestPeerRestarts(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		c := connect(t, ClientConfig{Self: "a", Dial: w.dial, Addresses: addresses("b")})
		cc := mustConn(t, c, "b", Meta)
		if _, err := call(t.Context(), cc, &nodepb.Error{}); !errs.Is(err, errs.Unavailable) {
			t.Fatal(err)
		}
		for range 3 {
			s := NewServer(ServerConfig{Self: "b", StoreID: sameStore})
			answering().register(s)
			done := make(chan error, 1)
			lis := w.listen("b")
			go func() { done <- s.Serve(lis) }()
			time.Sleep(2 * time.Second)
			if _, err := call(t.Context(), cc, &nodepb.Error{}); err != nil || !c.Reachable("b") {
				t.Fatal(err)
			}
			shut(t, s, done)
			time.Sleep(3 * time.Second)
		}
		c.Close()
	})
}

func TestStop(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		e := answering()
		ended := make(chan error, 1)
		e.unary = func(ctx context.Context, in *nodepb.Error) (*nodepb.Error, error) {
			if in.Op == "short" {
				time.Sleep(time.Second)
				return in, nil
			}
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		}
		for _, op := range []string{"short", "long"} {
			s := NewServer(ServerConfig{Self: "b", StoreID: sameStore})
			e.register(s)
			done := make(chan error, 1)
			lis := w.listen("b")
			go func() { done <- s.Serve(lis) }()
			c := connect(t, ClientConfig{Self: "a", Dial: w.dial, Addresses: addresses("b")})
			result := make(chan error, 1)
			cc := mustConn(t, c, "b", Meta)
			go func() {
				_, err := call(t.Context(), cc, &nodepb.Error{Op: op})
				result <- err
			}()
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			s.Stop(ctx)
			cancel()
			select {
			case <-s.Draining():
			default:
				t.Error("not draining")
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			err := <-result
			if op == "short" && err != nil {
				t.Errorf("a call in flight was cut off: %v", err)
			}
			if op == "long" && (!errs.Is(err, errs.Unavailable) || len(ended) != 1) {
				t.Errorf("a call without end: %v", err)
			}
			c.Close()
		}
	})
}

func TestLimits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		e := answering()
		release := make(chan struct{})
		e.unary = func(ctx context.Context, in *nodepb.Error) (*nodepb.Error, error) {
			<-release
			return in, nil
		}
		serve(t, w.listen("b"), ServerConfig{Self: "b", CallsMax: 3, ConnsMax: 2}, e)
		c1 := connect(t, ClientConfig{Self: "a", Dial: w.dial, Addresses: addresses("b"), CallsMax: 2})
		c2 := connect(t, ClientConfig{Self: "c", Dial: w.dial, Addresses: addresses("b"), CallsMax: 2})
		errc := make(chan error, 4)
		for _, c := range []*Client{c1, c2} {
			cc := mustConn(t, c, "b", Meta)
			for range 2 {
				go func() {
					_, err := call(t.Context(), cc, &nodepb.Error{})
					errc <- err
				}()
			}
			synctest.Wait()
		}
		if _, err := call(t.Context(), mustConn(t, c1, "b", Meta), &nodepb.Error{}); !errs.Is(err, errs.Busy) || !NotSent(err) {
			t.Errorf("over the client's limit: %v", err)
		}
		if err := <-errc; !errs.Is(err, errs.Busy) || IsTransport(err) {
			t.Errorf("over the server's limit: %v", err)
		}
		// A third connection is refused.
		c3 := connect(t, ClientConfig{Self: "d", Dial: w.dial, Addresses: addresses("b")})
		if _, err := call(t.Context(), mustConn(t, c3, "b", Meta), &nodepb.Error{}); !errs.Is(err, errs.Unavailable) {
			t.Error(err)
		}
		close(release)
		for range 3 {
			if err := <-errc; err != nil {
				t.Error(err)
			}
		}
		c1.Close()
		synctest.Wait()
		time.Sleep(5 * time.Second)
		if _, err := call(t.Context(), mustConn(t, c3, "b", Meta), &nodepb.Error{}); err != nil {
			t.Error(err)
		}
		// Streams count until they end.
		c2.Close()
		synctest.Wait() // the server has seen it
		c4 := connect(t, ClientConfig{Self: "e", Dial: w.dial, Addresses: addresses("b"), CallsMax: 1})
		cc := mustConn(t, c4, "b", Bulk)
		for range 3 {
			s, err := stream(t.Context(), cc)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := stream(t.Context(), cc); !errs.Is(err, errs.Busy) {
				t.Fatal(err)
			}
			if err := s.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(new(nodepb.Error)); err != io.EOF {
				t.Fatal(err)
			}
		}
		c3.Close()
		c4.Close()
	})
}

// A caller that vanished without a word does not leave its calls behind.
func TestVanishedCaller(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		e := answering()
		ended := make(chan error, 1)
		e.stream = func(s grpc.ServerStream) error {
			err := s.RecvMsg(new(nodepb.Error))
			ended <- err
			return err
		}
		serve(t, w.listen("b"), ServerConfig{Self: "b"}, e)
		c := connect(t, ClientConfig{Self: "a", Dial: w.dial, Addresses: addresses("b")})
		if _, err := stream(t.Context(), mustConn(t, c, "b", Meta)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.hole("b", true)
		start := time.Now()
		if err := <-ended; err == nil || time.Since(start) > 2*time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		c.Close()
	})
}

func TestRemovedWhileConnected(t *testing.T) {
	w := newWorld(t)
	var removed atomic.Bool
	serve(t, w.listen("b"), ServerConfig{Self: "b", Admit: func(n cluster.NodeID) error {
		if removed.Load() {
			return errs.New(errs.Foreign, "member", string(n), "removed")
		}
		return nil
	}}, answering())
	c := connect(t, ClientConfig{Self: "a", Dial: w.dial, Addresses: addresses("b")})
	cc := mustConn(t, c, "b", Meta)
	if _, err := call(t.Context(), cc, &nodepb.Error{}); err != nil {
		t.Fatal(err)
	}
	removed.Store(true)
	if _, err := call(t.Context(), cc, &nodepb.Error{}); !errs.Is(err, errs.Foreign) {
		t.Fatal(err)
	}
}

func FuzzGreeting(f *testing.F) {
	var seed strings.Builder
	if err := writeGreeting(&seed, &nodepb.Greeting{Version: 1, Node: "a", Refusal: &nodepb.Error{Detail: "no"}}); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(seed.String()))
	f.Add([]byte("CRN\x01\xff\xff\xff\xff"))
	f.Add([]byte("\x16\x03\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, in := range [][]byte{b, slices.Concat([]byte(greetingMagic), []byte{0, 0, byte(len(b) >> 8), byte(len(b))}, b)} {
			r := strings.NewReader(string(in))
			g, err := readGreeting(r)
			if err != nil {
				continue
			}
			if g.SizeVT() > greetingBytesMax {
				t.Fatal("too large")
			}
			_, _ = agree(g)
			s := &Server{cfg: ServerConfig{Self: "b", StoreID: sameStore, Now: time.Now}}
			if p, err := s.judge(g, nil, nil); err == nil && pki.CheckNodeName(p.Node) != nil {
				t.Fatalf("admitted %q", p.Node)
			}
		}
	})
}
