package metarpc

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/multiraft"
	"cairn/cluster/netsim"
	"cairn/cluster/raftrpc"
	"cairn/cluster/rangestate"
	"cairn/cluster/rpc"
	"cairn/proto/metapb"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// newNetwork is newNodes over a simulated network and with everything else as it is in
// a real node: connections with pings, Raft and metadata on separate ones, in three zones.
func newNetwork(t testing.TB, n, voters int, sim *netsim.Sim) *nodes {
	c := &nodes{t: t, topo: newTopology(n, voters), cut: map[cluster.NodeID]bool{}, calls: map[string]int{}}
	net := netsim.NewNetwork(sim)
	for i := range n {
		c.all = append(c.all, c.newReal(i, net))
	}
	c.birth()
	return c
}

func (c *nodes) newReal(i int, net *netsim.Network) *node {
	t := c.t
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	id, topology := nodeID(i), func() *cluster.Topology { return c.topo }
	zone := c.topo.Nodes[id].Zone
	resolve := func(g cluster.GroupID, r cluster.ReplicaID) (cluster.NodeID, bool) { return nodeOf(c.topo, nil, g, r) }
	storeID := func() string { return testStoreID }
	host := net.Host(netsim.Place{Node: id, Zone: zone})
	client := rpc.NewClient(rpc.ClientConfig{Self: id, StoreID: storeID, Dial: host.Dial, Addresses: func(n cluster.NodeID) []string { return []string{string(n) + ":9002"} }})
	server := rpc.NewServer(rpc.ServerConfig{Self: id, StoreID: storeID})
	trans, err := raftrpc.New(raftrpc.Config{Self: id, Conn: client.ConnOf(rpc.Raft), Resolve: resolve, Caller: rpc.Caller})
	must(err)
	fs := vfsx.NewMem()
	must(fs.MkdirAll("d", 0o755))
	a := &node{c: c, id: id}
	a.host, err = multiraft.New(multiraft.Config{Node: id, NewStateMachine: newStateMachine, Remote: trans})
	must(err)
	must(a.host.AddDrive(multiraft.Drive{ID: driveID(i), Zone: zone, FS: fs, Dir: "d"}))
	trans.Register(server, a.host.Transport())
	Register(server, ServerConfig{Self: id, Host: a.host, Topology: topology, Caller: rpc.Caller})
	a.router = NewRouter(Config{Self: id, Host: a.host, Topology: topology, Conn: client.ConnOf(rpc.Meta)})
	a.meta = metaclient.New(metaclient.Config{Groups: a.router, Elsewhere: a.router, Topology: topology, Now: time.Now, Rand: rand.Reader})
	lis, err := host.Listen(string(id) + ":9002")
	must(err)
	a.served.Go(func() { _ = server.Serve(lis) })
	a.ends = func() {
		if err := a.host.Close(); err != nil {
			t.Error(err)
		}
		trans.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		server.Stop(ctx)
		a.served.Wait()
		client.Close()
	}
	return a
}

func inZone(c *nodes, z cluster.Zone) []*node {
	return slices.DeleteFunc(slices.Clone(c.all), func(a *node) bool { return c.topo.Nodes[a.id].Zone != z })
}

// A round trip between zones is all that metadata from a leader in another one costs.
func TestRoundTrips(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		sim := netsim.New(1)
		defer sim.Close()
		c := newNetwork(t, 6, 5, sim)
		defer c.close()
		c.all[0].makeBucket(metapb.Versioning_VERSIONING_NEVER)
		c.all[0].must("key", putOp("key", 1, "body"))
		const oneWay = 5 * time.Millisecond
		for _, z := range []string{"z0", "z1", "z2"} {
			rules := sim.Rules()
			rules.Rules = append(rules.Rules, netsim.Rule{From: "zone:" + z, To: "!zone:" + z, OneWay: true, Latency: netsim.Duration(oneWay)})
			if err := sim.Set(rules); err != nil {
				t.Fatal(err)
			}
		}
		lead := c.leaderOf(cluster.FirstRange)
		for i, a := range c.all {
			if c.topo.Nodes[a.id].Zone == c.topo.Nodes[lead.id].Zone {
				continue
			}
			a.mustGet("key", "body") // connections, and who leads
			began := time.Now()
			a.mustGet("key", "body")
			if took := time.Since(began); took > 3*oneWay {
				t.Errorf("a get through %s took %v", a.id, took)
			}
			began = time.Now()
			if err := a.meta.ReadGroup(t.Context(), cluster.FirstRange, func(r rangestate.Reader) error {
				_, err := r.ListCurrent(1, "", "", "", 10)
				return err
			}); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took > 3*oneWay {
				t.Errorf("a listing through %s took %v", a.id, took)
			}
			began = time.Now()
			a.must("put", putOp("put", uint64(i+2), "x"))
			if took := time.Since(began); took > 5*oneWay { // to the leader, and from it to a quorum
				t.Errorf("a put through %s took %v", a.id, took)
			}
		}
	})
}

// A zone is lost in each way there is, and comes back; then the next one. Whoever is not in it goes on
// within 5 s and sees all that was acknowledged.
func TestZonesLost(t *testing.T) {
	for name, cut := range map[string]netsim.Rule{"partition": {Partition: true}, "black hole": {BlackHole: true}} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				sim := netsim.New(1)
				defer sim.Close()
				c := newNetwork(t, 6, 5, sim)
				defer c.close()
				c.all[0].makeBucket(metapb.Versioning_VERSIONING_NEVER)
				n, acked := uint64(0), map[string]string{}
				for round := range 4 {
					zone := cluster.Zone(fmt.Sprintf("z%d", round%3))
					rule := cut
					rule.From, rule.To = "zone:"+string(zone), "!zone:"+string(zone)
					if err := sim.Set(netsim.Rules{Rules: []netsim.Rule{rule}}); err != nil {
						t.Fatal(err)
					}
					lost := inZone(c, zone)
					left := slices.DeleteFunc(slices.Clone(c.all), func(a *node) bool { return slices.Contains(lost, a) })
					var mu sync.Mutex
					var wg sync.WaitGroup
					for _, a := range left {
						n++
						key, body, op := fmt.Sprint("key-", a.id), fmt.Sprint(n), putOp(fmt.Sprint("key-", a.id), n, fmt.Sprint(n))
						wg.Go(func() {
							began := time.Now()
							_, err := a.do(key, op)
							if took := time.Since(began); err != nil || took > 5*time.Second {
								t.Errorf("round %d: a put through %s took %v: %v", round, a.id, took, err)
							}
							mu.Lock()
							defer mu.Unlock()
							acked[key] = body
						})
					}
					wg.Go(func() { // one of the lost may not answer from an old state, nor acknowledge anything
						ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
						defer cancel()
						time.Sleep(2 * time.Second)
						err := lost[0].meta.Read(ctx, 1, "key", func(r rangestate.Reader) error { _, err := r.Object(1, "key", nil); return err })
						if !errs.Is(err, errs.Unavailable) {
							t.Errorf("round %d: %s, cut off, reads: %v", round, lost[0].id, err)
						}
					})
					wg.Wait()
					for _, a := range left {
						for key, body := range acked {
							a.mustGet(key, body)
						}
					}
					if err := sim.Set(netsim.Rules{}); err != nil {
						t.Fatal(err)
					}
					for _, a := range lost {
						began := time.Now()
						for key, body := range acked {
							a.mustGet(key, body)
						}
						if took := time.Since(began); took > 5*time.Second {
							t.Errorf("round %d: %s, back again, took %v", round, a.id, took)
						}
					}
				}
			})
		})
	}
}
