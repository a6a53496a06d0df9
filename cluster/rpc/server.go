package rpc

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"

	"cairn/cluster"
	"cairn/cluster/pki"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// Limits of a server.
const (
	streamWindowBytes   = 1 << 20 // unread bytes of one call
	connWindowBytes     = 8 << 20 // unread bytes of one connection
	greetTimeout        = 5 * time.Second
	idlePingAfter       = 20 * time.Second // a silent caller is asked whether it lives ...
	idlePingTimeout     = 10 * time.Second // ... and given up
	streamsPerConnMax   = 4096
	streamWorkers       = 16 // goroutines kept for short calls: growing a stack anew is a fifth of their cost
	refusalLogEvery     = time.Minute
	refusalLogEntries   = 256
	refusalDrainTimeout = time.Second
	newcomersMax        = 256              // connections whose callers are not known to be members
	newcomerTurn        = time.Second      // what each of them is left at least, when there are too many
	joiningMax          = 64               // of them, those that joining nodes may use ...
	joiningLife         = 30 * time.Second // ... and for how long each
)

// ServerConfig configures a Server.
type ServerConfig struct {
	Self    cluster.NodeID
	StoreID func() string // required; empty while it is not known
	// Identity gives the node's certificate, asked for at every connection. A nil
	// func means plaintext: callers are whoever they say they are.
	Identity func() *pki.Identity
	// Admit says why a node may not call, or nil: Foreign if it is no member (any more).
	// Called at every connection and every call, so it must be quick. nil admits all of the store.
	Admit    func(cluster.NodeID) error
	Software string // for people
	Logger   *slog.Logger
	Now      func() time.Time // judges certificates; default time.Now

	ConnsMax int // of members; default 4096; more are refused as Busy
	CallsMax int // in flight, streams included; default 16384; more are refused as Busy
}

// Server answers the calls of other nodes. Make it, register services, then Serve.
type Server struct {
	cfg      ServerConfig
	grpc     *grpc.Server
	calls    atomic.Int64
	conns    atomic.Int64 // of members
	fresh    newcomers
	draining chan struct{}
	stop     sync.Once
	logged   refusals
}

var _ grpc.ServiceRegistrar = (*Server)(nil)

// NewServer makes a server that serves Peer (the pings of peers) so far.
func NewServer(cfg ServerConfig) *Server {
	cfg.ConnsMax = cmp.Or(cfg.ConnsMax, 4096)
	cfg.CallsMax = cmp.Or(cfg.CallsMax, 16384)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, draining: make(chan struct{})}
	opts := append(ServerOptions(),
		grpc.Creds(serverCreds{s}),
		grpc.ConnectionTimeout(greetTimeout),
		grpc.MaxConcurrentStreams(streamsPerConnMax),
		grpc.StaticStreamWindowSize(streamWindowBytes),
		grpc.StaticConnWindowSize(connWindowBytes),
		// Calls of a caller that was cut off end by this, since nothing else tells.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: idlePingAfter, Timeout: idlePingTimeout}),
		grpc.WaitForHandlers(true),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if err := s.enter(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			defer s.calls.Add(-1)
			return h(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			if err := s.enter(ss.Context(), info.FullMethod); err != nil {
				return err
			}
			defer s.calls.Add(-1)
			return h(srv, ss)
		}),
	)
	s.grpc = grpc.NewServer(opts...)
	nodepb.RegisterPeerServer(s, pinged{})
	return s
}

// RegisterService adds a service; before Serve only.
func (s *Server) RegisterService(d *grpc.ServiceDesc, impl any) { s.grpc.RegisterService(d, impl) }

// Serve answers on lis, which it closes, until Stop (then nil) or an error of lis. It may run for several listeners.
func (s *Server) Serve(lis net.Listener) error {
	err := s.grpc.Serve(&boundedListener{Listener: lis, s: s})
	if errors.Is(err, grpc.ErrServerStopped) {
		return nil
	}
	return err
}

// Draining is closed when Stop begins: streams without an end of their own end then.
func (s *Server) Draining() <-chan struct{} { return s.draining }

// Stop takes no more calls, waits for those in flight until ctx ends, then cuts
// them off. When it returns, no handler runs any more.
func (s *Server) Stop(ctx context.Context) {
	s.stop.Do(func() { close(s.draining) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.grpc.GracefulStop()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		s.grpc.Stop()
		<-done
	}
}

// Methods that need less than a living member.
const (
	methodPing  = nodepb.Peer_Ping_FullMethodName
	methodJoin  = nodepb.Join_Join_FullMethodName
	methodRenew = nodepb.Join_Renew_FullMethodName
)

// enter admits a call and counts it.
func (s *Server) enter(ctx context.Context, method string) error {
	p, ok := PeerOf(ctx)
	switch {
	case !ok:
		return errs.New(errs.AccessDenied, "rpc.enter", method, "an unknown caller")
	case p.Joining:
		if method != methodJoin {
			return errs.New(errs.AccessDenied, "rpc.enter", method, "the caller has no certificate: it may only join")
		}
	case p.Expired:
		if method != methodRenew && method != methodPing {
			return errs.New(errs.AccessDenied, "rpc.enter", method, "the caller's certificate has expired: it may only renew it")
		}
	}
	if !p.Joining && s.cfg.Admit != nil {
		if err := s.cfg.Admit(p.Node); err != nil {
			return err
		}
	}
	if s.calls.Add(1) > int64(s.cfg.CallsMax) {
		s.calls.Add(-1)
		return errs.Newf(errs.Busy, "rpc.enter", method, "%d calls are in flight", s.cfg.CallsMax)
	}
	return nil
}

// Caller is the authenticated node that called; AccessDenied if there is none.
func Caller(ctx context.Context) (cluster.NodeID, error) {
	p, ok := PeerOf(ctx)
	if !ok || p.Joining || p.Node == "" {
		return "", errs.New(errs.AccessDenied, "rpc.caller", "", "the caller is not a member of the cluster")
	}
	return p.Node, nil
}

// PeerOf is what is known of the caller within a handler of a Server.
func PeerOf(ctx context.Context) (Peer, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, false
	}
	a, ok := p.AuthInfo.(authInfo)
	return a.Peer, ok
}

type authInfo struct{ Peer }

func (authInfo) AuthType() string { return "cairn" }

// serverCreds makes sure of callers: TLS, certificate, greeting.
type serverCreds struct{ s *Server }

var _ credentials.TransportCredentials = serverCreds{}

func (c serverCreds) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "cairn"}
}
func (c serverCreds) Clone() credentials.TransportCredentials { return c }
func (c serverCreds) OverrideServerName(string) error         { return nil }

func (c serverCreds) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's")
}

// ServerHandshake runs under the deadline that grpc sets on raw, and grpc closes raw on an error.
func (c serverCreds) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, p, err := c.s.greet(raw)
	if err != nil {
		if !errors.Is(err, io.EOF) { // somebody looked whether the port is open
			c.s.logged.log(c.s.cfg.Logger, raw.RemoteAddr(), err)
		}
		return nil, nil, err
	}
	return conn, authInfo{p}, nil
}

func (s *Server) greet(raw net.Conn) (net.Conn, Peer, error) {
	conn := raw
	var id *pki.Identity
	if s.cfg.Identity != nil {
		if id = s.cfg.Identity(); id == nil {
			return nil, Peer{}, errs.New(errs.Unavailable, "rpc.greet", string(s.cfg.Self), "this node has no certificate yet")
		}
		tc := tls.Server(raw, id.ServerTLS())
		if err := tc.Handshake(); err != nil {
			var rec tls.RecordHeaderError
			if errors.As(err, &rec) && rec.Conn != nil && string(rec.RecordHeader[:len(greetingMagic)]) == greetingMagic {
				return nil, Peer{}, s.refuse(raw, errs.New(errs.Foreign, "rpc.greet", string(s.cfg.Self), "the caller speaks plaintext, the node called wants TLS: set --cluster-plaintext on all nodes or on none"))
			}
			return nil, Peer{}, errs.Wrap(errs.AccessDenied, "rpc.greet", "", err)
		}
		conn = tc
	}
	g, err := readGreeting(conn)
	if errors.Is(err, errSpeaksTLS) {
		return nil, Peer{}, s.refuse(conn, errs.New(errs.Foreign, "rpc.greet", string(s.cfg.Self), "the caller wants TLS, the node called speaks plaintext: set --cluster-plaintext on all nodes or on none"))
	}
	if err != nil {
		return nil, Peer{}, errs.Wrap(errs.AccessDenied, "rpc.greet", "", err)
	}
	p, err := s.judge(g, conn, id)
	if err != nil {
		return nil, Peer{}, s.refuse(conn, err)
	}
	if c, ok := raw.(*countedConn); ok {
		if err := c.known(p.Joining); err != nil {
			return nil, Peer{}, s.refuse(conn, err)
		}
	}
	if err := writeGreeting(conn, s.greeting()); err != nil {
		return nil, Peer{}, errs.Wrap(errs.Unavailable, "rpc.greet", g.Node, err)
	}
	if tc, ok := conn.(*tls.Conn); ok {
		conn = &abrupt{Conn: tc, raw: raw}
	}
	return conn, p, nil
}

func (s *Server) greeting() *nodepb.Greeting {
	return &nodepb.Greeting{
		Version: Version, VersionMin: VersionMin, StoreId: s.cfg.StoreID(), Node: string(s.cfg.Self),
		Software: s.cfg.Software, TimeMs: s.cfg.Now().UnixMilli(),
	}
}

// judge makes sure of who calls, and refuses whom it should.
func (s *Server) judge(g *nodepb.Greeting, conn net.Conn, id *pki.Identity) (Peer, error) {
	p := Peer{
		Node: cluster.NodeID(g.Node), Class: Class(g.Class), Software: g.Software, Joining: g.Joining,
		ClockOffset: time.UnixMilli(g.TimeMs).Sub(s.cfg.Now()),
	}
	var err error
	if p.Version, err = agree(g); err != nil {
		return p, err
	}
	if err := pki.CheckNodeName(p.Node); err != nil {
		return p, err
	}
	if g.Class >= uint32(classes) {
		return p, errs.Newf(errs.InvalidArgument, "rpc.greet", g.Node, "connections of class %d are not known here: bring all nodes to the same release", g.Class)
	}
	if ours := s.cfg.StoreID(); ours == "" || g.StoreId != ours {
		if id != nil {
			if _, err := id.Verify(conn.(*tls.Conn).ConnectionState().PeerCertificates, s.cfg.Now()); err != nil {
				return p, strangersStore(s.cfg.Self, g.StoreId) // who shows no certificate of ours is not told what is here
			}
		}
		return p, otherStore(s.cfg.Self, ours, g.StoreId)
	}
	if g.WantNode != "" && g.WantNode != string(s.cfg.Self) {
		return p, otherNode(s.cfg.Self, cluster.NodeID(g.WantNode))
	}
	if p.Joining {
		return p, nil
	}
	if id != nil {
		vp, err := id.Verify(conn.(*tls.Conn).ConnectionState().PeerCertificates, s.cfg.Now())
		if err != nil {
			return p, err
		}
		if vp.Node != p.Node {
			return p, errs.Newf(errs.AccessDenied, "rpc.greet", g.Node, "the caller calls itself %s but its certificate is that of node %s", g.Node, vp.Node)
		}
		if p.Expired = vp.Expired; p.Expired && !g.Renewing {
			return p, errs.New(errs.AccessDenied, "rpc.greet", g.Node, "the caller's certificate has expired: it has to renew it first (or is the clock of either machine wrong?)")
		}
	}
	if s.cfg.Admit != nil {
		if err := s.cfg.Admit(p.Node); err != nil {
			return p, err
		}
	}
	return p, nil
}

// refuse tells the caller why, as far as it listens, and returns the reason.
func (s *Server) refuse(conn net.Conn, reason error) error {
	g := s.greeting()
	g.StoreId = "" // who is refused may be anybody
	var e *errs.Error
	if !errors.As(reason, &e) {
		e = errs.New(errs.Other, "rpc.greet", "", reason.Error())
	}
	g.Refusal = &nodepb.Error{Kind: uint32(e.Kind), Op: cut(e.Op), Subject: cut(e.Subject), Detail: cut(text(e))}
	_ = conn.SetDeadline(time.Now().Add(refusalDrainTimeout))
	if writeGreeting(conn, g) == nil {
		// Closing with unread bytes would reset the connection and take the refusal with it.
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		var rest [512]byte
		for range 64 {
			if _, err := conn.Read(rest[:]); err != nil {
				break
			}
		}
	}
	return reason
}

// text is what is wrong, without operation and subject.
func text(e *errs.Error) string {
	switch {
	case e.Err == nil:
		return e.Detail
	case e.Detail == "":
		return e.Err.Error()
	}
	return e.Detail + ": " + e.Err.Error()
}

// refusals logs why callers are refused, each reason once a minute: they come again every second.
type refusals struct {
	mu   sync.Mutex
	last map[string]time.Time
}

func (r *refusals) log(log *slog.Logger, from net.Addr, err error) {
	host, _, serr := net.SplitHostPort(from.String())
	if serr != nil {
		host = from.String()
	}
	key := host + " " + strings.ToValidUTF8(err.Error(), "?")
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if at, ok := r.last[key]; ok && now.Sub(at) < refusalLogEvery {
		return
	}
	if r.last == nil || len(r.last) >= refusalLogEntries {
		r.last = map[string]time.Time{}
	}
	r.last[key] = now
	log.Warn("a connection from another node was refused", "from", host, "reason", err.Error())
}

// newcomers are the connections whose callers have not shown yet that they are members, and those of joining
// nodes. They have places of their own: strangers take none of the members'.
type newcomers struct {
	mu      sync.Mutex
	conns   []*countedConn // in the order in which they came
	joining int
}

// add takes a connection in. If there are too many, the oldest that had its turn goes; false if none had.
func (n *newcomers) add(c *countedConn) bool {
	n.mu.Lock()
	var out *countedConn
	if len(n.conns) >= newcomersMax {
		if out = n.conns[0]; time.Since(out.since) < newcomerTurn {
			n.mu.Unlock()
			return false
		}
		n.removeLocked(out)
	}
	n.conns = append(n.conns, c)
	n.mu.Unlock()
	if out != nil {
		_ = out.Close()
	}
	return true
}

func (n *newcomers) removeLocked(c *countedConn) {
	if i := slices.Index(n.conns, c); i >= 0 {
		n.conns = slices.Delete(n.conns, i, i+1)
	}
	if c.joining {
		c.joining = false
		n.joining--
	}
}

// boundedListener closes newcomers over the limit at once.
type boundedListener struct {
	net.Listener
	s *Server
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &countedConn{Conn: conn, s: l.s, since: time.Now()}
		if l.s.fresh.add(c) {
			return c, nil
		}
		_ = conn.Close()
	}
}

// countedConn is a newcomer's connection, then a member's, or a joining node's until its time is over.
type countedConn struct {
	net.Conn
	s     *Server
	since time.Time

	// Guarded by s.fresh.mu.
	joining bool
	member  bool
	closed  bool
	end     *time.Timer // of a joining node's
}

// known is called once it is known whose connection this is. Error: Busy.
func (c *countedConn) known(joining bool) error {
	n := &c.s.fresh
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case c.closed:
		return errs.New(errs.Busy, "rpc.greet", string(c.s.cfg.Self), "too many connections")
	case joining && n.joining >= joiningMax:
		return errs.Newf(errs.Busy, "rpc.greet", string(c.s.cfg.Self), "%d connections of joining nodes are open", joiningMax)
	case joining:
		c.joining = true
		n.joining++
		c.end = time.AfterFunc(joiningLife, func() { _ = c.Close() })
		return nil
	case c.s.conns.Load() >= int64(c.s.cfg.ConnsMax):
		return errs.Newf(errs.Busy, "rpc.greet", string(c.s.cfg.Self), "%d connections of other nodes are open", c.s.cfg.ConnsMax)
	}
	n.removeLocked(c)
	c.member = true
	c.s.conns.Add(1) // under the lock: the limit holds
	return nil
}

func (c *countedConn) Close() error {
	n := &c.s.fresh
	n.mu.Lock()
	if !c.closed {
		c.closed = true
		n.removeLocked(c)
		if c.member {
			c.s.conns.Add(-1)
		}
		if c.end != nil {
			c.end.Stop()
		}
	}
	n.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite ends the sending half where there are halves.
func (c *countedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// pinged serves Peer.
type pinged struct{ nodepb.UnimplementedPeerServer }

func (pinged) Ping(context.Context, *nodepb.PingRequest) (*nodepb.PingResponse, error) {
	return &nodepb.PingResponse{}, nil
}
