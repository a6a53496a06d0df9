package rpc

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/netsim"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
	"cairn/test/bubble"
	"cairn/test/seed"
)

// mesh is nodes n1, n2, ... on a simulated network, each with a server and a client.
type mesh struct {
	sim     *netsim.Sim
	nodes   []cluster.NodeID
	clients map[cluster.NodeID]*Client
}

func newMesh(t *testing.T, seed uint64, n int, e *echo) *mesh {
	m := &mesh{sim: netsim.New(seed), clients: map[cluster.NodeID]*Client{}}
	t.Cleanup(m.sim.Close)
	net := netsim.NewNetwork(m.sim)
	ca := newCA(t, storeID)
	for i := range n {
		id := cluster.NodeID(fmt.Sprintf("n%d", i+1))
		m.nodes = append(m.nodes, id)
		host := net.Host(netsim.Place{Node: id, Zone: cluster.Zone(fmt.Sprintf("z%d", i%3+1))})
		lis, err := host.Listen(string(id) + ":9002")
		if err != nil {
			t.Fatal(err)
		}
		ident := identity(t, ca, id, time.Now())
		serve(t, lis, ServerConfig{Self: id, Identity: ident}, e)
		m.clients[id] = connect(t, ClientConfig{Self: id, Identity: ident, Dial: host.Dial, Addresses: func(to cluster.NodeID) []string { return []string{string(to) + ":9002"} }})
	}
	return m
}

func (m *mesh) set(t *testing.T, rules ...netsim.Rule) {
	t.Helper()
	if err := m.sim.Set(netsim.Rules{Rules: rules}); err != nil {
		t.Fatal(err)
	}
}

// A slow or lossy line is no dead one: large messages come through without a new connection.
func TestSlowLines(t *testing.T) {
	for name, rule := range map[string]netsim.Rule{
		"narrow": {Bandwidth: 1 << 20},
		"far":    {Latency: netsim.Duration(150 * time.Millisecond)},
		"lossy":  {Latency: netsim.Duration(time.Millisecond), Loss: 0.02},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				m := newMesh(t, 1, 2, answering())
				m.set(t, rule)
				cc := mustConn(t, m.clients["n1"], "n2", Bulk)
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						s, err := stream(t.Context(), cc)
						if err != nil {
							t.Error(err)
							return
						}
						for range 3 {
							if err := s.SendMsg(&nodepb.Error{Detail: strings.Repeat("x", 2<<20)}); err != nil {
								t.Error(err)
								return
							}
							if err := s.RecvMsg(new(nodepb.Error)); err != nil {
								t.Error(err)
								return
							}
						}
						_ = s.CloseSend()
						if err := s.RecvMsg(new(nodepb.Error)); err != io.EOF {
							t.Error(err)
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

// Whatever the network does, every call ends by its deadline or soon after a
// cut, with an error that is known, and when the network is well all nodes reach each other again.
func TestMeshSurvives(t *testing.T) {
	seed := seed.Of(t)
	bubble.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 1))
		e := answering()
		e.stream = func(s grpc.ServerStream) error { <-s.Context().Done(); return s.Context().Err() }
		m := newMesh(t, seed, 4, e)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, from := range m.nodes {
			for _, to := range m.nodes {
				if from == to {
					continue
				}
				wg.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						cc, err := m.clients[from].Conn(to, Class(i%classes))
						if err != nil {
							t.Error(err)
							return
						}
						cctx, done := context.WithTimeout(ctx, 10*time.Second)
						start := time.Now()
						_, err = call(cctx, cc, &nodepb.Error{Subject: "x"})
						done()
						if err != nil && ctx.Err() == nil && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Timeout) {
							t.Errorf("%s to %s: %v", from, to, err)
						}
						if d := time.Since(start); d > 5*time.Second && ctx.Err() == nil {
							t.Errorf("%s to %s took %v: %v", from, to, d, err)
						}
						time.Sleep(100 * time.Millisecond)
					}
				})
			}
		}
		ends := []string{"node:n1", "node:n2", "zone:z1", "!zone:z2", "*"}
		for range 30 {
			var rules []netsim.Rule
			for range rng.IntN(3) {
				r := netsim.Rule{From: ends[rng.IntN(len(ends))], To: ends[rng.IntN(len(ends))], Latency: netsim.Duration(rng.IntN(3)) * netsim.Duration(time.Millisecond)}
				switch rng.IntN(4) {
				case 0:
					r.BlackHole = true
				case 1:
					r.BlackHole, r.OneWay = true, true
				case 2:
					r.Partition = true
				}
				rules = append(rules, r)
			}
			m.set(t, rules...)
			time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
		}
		m.set(t)
		time.Sleep(10 * time.Second)
		cancel()
		wg.Wait()
		for _, from := range m.nodes {
			for _, to := range m.nodes {
				for class := range Class(classes) {
					if from == to {
						continue
					}
					if !m.clients[from].Reachable(to) {
						t.Errorf("%s does not reach %s: %v", from, to, m.clients[from].LastError(to))
					}
					if _, err := call(t.Context(), mustConn(t, m.clients[from], to, class), &nodepb.Error{}); err != nil {
						t.Errorf("%s to %s: %v", from, to, err)
					}
				}
			}
		}
	})
}
