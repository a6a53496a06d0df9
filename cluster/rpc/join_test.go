package rpc

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/pki"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// members is a small stand-in for the system group: tokens and a CA.
type members struct {
	nodepb.UnimplementedJoinServer
	ca   *pki.CA
	seal pki.SealKey

	mu     sync.Mutex
	tokens map[string][]byte // id: the request that spent it, or nil
	fail   error             // of the next calls
	lose   bool              // the next answer is lost
	calls  int
}

func (m *members) Join(ctx context.Context, req *nodepb.JoinRequest) (*nodepb.JoinResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.fail != nil {
		return nil, m.fail
	}
	if p, _ := PeerOf(ctx); !p.Joining || string(p.Node) != req.Node.GetNode() {
		return nil, errs.New(errs.AccessDenied, "join", "", "not the caller's own name")
	}
	id := pki.TokenID(req.Secret)
	spent, ok := m.tokens[id]
	if !ok || spent != nil && !bytes.Equal(spent, req.Csr) {
		return nil, errs.New(errs.AccessDenied, "join", req.Node.GetNode(), "the join token was used already or has expired: make a new one")
	}
	m.tokens[id] = append([]byte{}, req.Csr...)
	if m.lose {
		m.lose = false
		return nil, errs.New(errs.Unavailable, "join", "", "lost")
	}
	resp := &nodepb.JoinResponse{StoreId: storeID, SealKey: m.seal[:], Nodes: []*nodepb.NodeInfo{{Node: "b", Zone: "z1", Addresses: []string{"b"}}}}
	if m.ca != nil {
		cert, err := m.ca.Issue(req.Csr, cluster.NodeID(req.Node.GetNode()), time.Now())
		if err != nil {
			return nil, err
		}
		resp.Certificate, resp.Ca = cert, m.ca.Cert()
	}
	return resp, nil
}

func (m *members) Renew(ctx context.Context, req *nodepb.RenewRequest) (*nodepb.RenewResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.fail != nil {
		return nil, m.fail
	}
	node, err := Caller(ctx)
	if err != nil {
		return nil, err
	}
	cert, err := m.ca.Issue(req.Csr, node, time.Now())
	return &nodepb.RenewResponse{Certificate: cert}, err
}

func serveJoin(t *testing.T, lis net.Listener, node cluster.NodeID, id func() *pki.Identity, m *members) {
	t.Helper()
	s := NewServer(ServerConfig{Self: node, StoreID: sameStore, Identity: id})
	nodepb.RegisterJoinServer(s, m)
	answering().register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() { shut(t, s, done) })
}

func TestJoin(t *testing.T) {
	for _, name := range []string{"TLS", "plaintext"} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := &members{tokens: map[string][]byte{}, seal: pki.NewSealKey()}
				var pin pki.Pin
				if name == "TLS" {
					m.ca = newCA(t, storeID)
					pin = m.ca.Pin()
				}
				serveJoin(t, w.listen("b"), "b", identity(t, m.ca, "b", time.Now()), m)
				tok := pki.NewToken(storeID, pin, []string{"gone", "b"})
				m.tokens[tok.ID()] = nil
				m.lose = true
				rounds := 0
				cfg := JoinConfig{Dialer: Dialer{Dial: w.dial}, Token: tok, Node: &nodepb.NodeInfo{Node: "n", Zone: "z2"}, Plaintext: m.ca == nil, Progress: func(error) { rounds++ }}
				got, err := Join(t.Context(), cfg)
				if err != nil || got.StoreID != storeID || len(got.Nodes) != 1 || rounds != 1 {
					t.Fatalf("%v %v, %d rounds", got, err, rounds)
				}
				if m.ca != nil {
					if got.Identity.Node != "n" || got.Identity.Seal != m.seal {
						t.Errorf("%v", got.Identity)
					}
					c := connect(t, ClientConfig{Self: "n", Identity: func() *pki.Identity { return got.Identity }, Dial: w.dial, Addresses: addresses("b")})
					if out, err := call(t.Context(), mustConn(t, c, "b", Meta), &nodepb.Error{}); err != nil || out.Op != "n" {
						t.Error(err)
					}
					c.Close()
				}
				// The token is spent for everybody else, and for another try of the same.
				if _, err := Join(t.Context(), cfg); m.ca != nil && (!errs.Is(err, errs.AccessDenied) || !strings.Contains(err.Error(), "make a new one")) {
					t.Errorf("second use: %v", err)
				}
				wrong := cfg
				wrong.Token = pki.NewToken(storeID, pin, []string{"b"})
				if _, err := Join(t.Context(), wrong); !errs.Is(err, errs.AccessDenied) {
					t.Errorf("unknown token: %v", err)
				}
				wrong = cfg
				wrong.Plaintext = !cfg.Plaintext
				if _, err := Join(t.Context(), wrong); !errs.Is(err, errs.InvalidArgument) || !strings.Contains(err.Error(), "--cluster-plaintext") {
					t.Errorf("TLS or not: %v", err)
				}
				wrong = cfg
				wrong.Node = &nodepb.NodeInfo{Node: "a b"}
				if _, err := Join(t.Context(), wrong); !errs.Is(err, errs.InvalidArgument) {
					t.Errorf("bad name: %v", err)
				}
				// While nobody can answer it waits, and says so, until it is told to stop.
				m.mu.Lock()
				m.fail = errs.New(errs.Unavailable, "join", "", "no quorum")
				m.mu.Unlock()
				rounds = 0
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second+joinRoundEvery/2) // between two rounds
				defer cancel()
				if _, err := Join(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no quorum") || rounds < 15 {
					t.Errorf("%v after %d rounds", err, rounds)
				}
			})
		})
	}
}

func TestJoinIntoTheWrongCluster(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := &members{ca: newCA(t, storeID), tokens: map[string][]byte{}}
		serveJoin(t, w.listen("b"), "b", identity(t, m.ca, "b", time.Now()), m)
		cfg := JoinConfig{Dialer: Dialer{Dial: w.dial}, Node: &nodepb.NodeInfo{Node: "n"}}
		// A store of the same id with another CA, and another store.
		for _, id := range []string{storeID, "ffff"} {
			cfg.Token = pki.NewToken(id, newCA(t, id).Pin(), []string{"b"})
			if _, err := Join(t.Context(), cfg); !errs.Is(err, errs.Foreign) {
				t.Errorf("%s: %v", id, err)
			}
		}
		if m.calls != 0 {
			t.Error("the secret was shown to strangers")
		}
		// Without a certificate nothing but joining is allowed.
		tok := pki.NewToken(storeID, m.ca.Pin(), []string{"b"})
		c := &caller{self: "n", storeID: storeID, joining: true, tls: tok.ClientTLS(), verify: tok.Verify}
		for _, method := range []string{"/test.Echo/Unary", methodRenew, methodPing} {
			err := Dialer{Dial: w.dial}.call(t.Context(), "b", c, func(ctx context.Context, cc grpc.ClientConnInterface) error {
				return cc.Invoke(ctx, method, &nodepb.Error{}, &nodepb.Error{})
			})
			if !errs.Is(err, errs.AccessDenied) || !strings.Contains(err.Error(), "only join") {
				t.Errorf("%s: %v", method, err)
			}
		}
		// Nor does a caller that only leaves its certificate away pass as a member.
		c = &caller{self: "n", storeID: storeID, tls: tok.ClientTLS(), verify: tok.Verify}
		err := Dialer{Dial: w.dial}.call(t.Context(), "b", c, func(context.Context, grpc.ClientConnInterface) error { return nil })
		if !errs.Is(err, errs.AccessDenied) || !strings.Contains(err.Error(), "no certificate") {
			t.Error(err)
		}
	})
}

func TestRenewAfterALongSleep(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := &members{ca: newCA(t, storeID)}
		idb := identity(t, m.ca, "b", time.Now())
		serveJoin(t, w.listen("b"), "b", idb, m)
		ida := identity(t, m.ca, "a", time.Now())()
		time.Sleep(200 * 24 * time.Hour) // both are over
		expired := &caller{self: "a", storeID: storeID, renewing: true, tls: ida.ClientTLS(), verify: ida.Verify}
		err := Dialer{Dial: w.dial}.call(t.Context(), "b", expired, func(ctx context.Context, cc grpc.ClientConnInterface) error {
			_, err := call(ctx, cc, &nodepb.Error{})
			return err
		})
		if !errs.Is(err, errs.AccessDenied) || !strings.Contains(err.Error(), "only renew") {
			t.Errorf("another call: %v", err)
		}
		next, err := Dialer{Dial: w.dial}.Renew(t.Context(), ida, []string{"gone", "b"})
		if err != nil || next.Node != "a" || !next.NotAfter().After(time.Now()) {
			t.Fatalf("%v %v", next, err)
		}
		m.mu.Lock()
		m.fail = errs.New(errs.AccessDenied, "renew", "a", "removed")
		m.mu.Unlock()
		if _, err := (Dialer{Dial: w.dial}).Renew(t.Context(), ida, []string{"b"}); !errs.Is(err, errs.AccessDenied) {
			t.Error(err)
		}
		if _, err := (Dialer{Dial: w.dial}).Renew(t.Context(), ida, []string{"gone"}); !errs.Is(err, errs.Unavailable) {
			t.Error(err)
		}
	})
}

func TestRenewer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := &members{ca: newCA(t, storeID)}
		var ida, idb atomic.Pointer[pki.Identity]
		ida.Store(identity(t, m.ca, "a", time.Now())())
		idb.Store(identity(t, m.ca, "b", time.Now())())
		serveJoin(t, w.listen("b"), "b", idb.Load, m)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		var saves atomic.Int64
		run := func(id *atomic.Pointer[pki.Identity], r *Renewer) {
			r.Dialer = Dialer{Dial: w.dial}
			r.Current, r.Logger = id.Load, slog.New(slog.DiscardHandler)
			r.Addresses = func() []string { return []string{"b"} }
			r.Save = func(next *pki.Identity) error {
				if saves.Add(1) == 2 {
					return errors.New("disk full")
				}
				id.Store(next)
				return nil
			}
			wg.Go(func() { r.Run(ctx) })
		}
		run(&ida, &Renewer{}) // asks b
		run(&idb, &Renewer{Sign: func(_ context.Context, csr []byte) ([]byte, error) { return m.ca.Issue(csr, "b", time.Now()) }})
		for day := range 400 {
			time.Sleep(24 * time.Hour)
			if day == 100 {
				m.mu.Lock()
				m.fail = errs.New(errs.Unavailable, "renew", "", "no quorum")
				m.mu.Unlock()
			}
			if day == 115 {
				m.mu.Lock()
				m.fail = nil
				m.mu.Unlock()
			}
			for _, id := range []*atomic.Pointer[pki.Identity]{&ida, &idb} {
				if left := id.Load().NotAfter().Sub(time.Now()); left < 10*24*time.Hour {
					t.Fatalf("day %d: %v left", day, left)
				}
			}
		}
		if saves := saves.Load(); saves < 10 || saves > 20 {
			t.Errorf("%d renewals in 400 days", saves)
		}
		cancel()
		wg.Wait()
	})
}

// Serving tells nodes of clusters, with TLS and without, from nobody and from one that waits itself.
func TestServing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ca := newCA(t, storeID)
		serveJoin(t, w.listen("tls"), "tls", identity(t, ca, "tls", time.Now()), &members{ca: ca, tokens: map[string][]byte{}})
		serveJoin(t, w.listen("plain"), "plain", nil, &members{tokens: map[string][]byte{}})
		waiting := w.listen("waiting")
		defer waiting.Close()
		d := Dialer{Dial: w.dial}
		for _, addr := range []string{"tls", "plain"} {
			if got := d.Serving(t.Context(), []string{"gone", "waiting", addr}); got != addr {
				t.Errorf("%q answers, want %q", got, addr)
			}
		}
		began := time.Now()
		if got := d.Serving(t.Context(), []string{"gone", "waiting"}); got != "" || time.Since(began) > servingTimeout {
			t.Errorf("%q answers after %v", got, time.Since(began))
		}
		if got := d.Serving(t.Context(), nil); got != "" {
			t.Error(got)
		}
	})
}
