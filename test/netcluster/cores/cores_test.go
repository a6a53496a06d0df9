package cores

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"cairn/server/core"
	"cairn/test/bubble"
	"cairn/test/linear"
	"cairn/test/netcluster"
	"cairn/test/seed"
)

var (
	roundsFlag = flag.Int("cluster.rounds", 1, "how often each history is tried")
	verbose    = flag.Bool("cluster.log", false, "show what the nodes log")
)

// begin starts a cluster in the bubble it is called in.
func begin(t *testing.T, o Options) *netcluster.Cluster {
	t.Helper()
	o.Logf, o.Log = t.Logf, *verbose
	c := New(o)
	if err := Start(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	time.Sleep(settle)
	return c
}

// settle is how long metadata and placement groups take to spread over nodes that have just joined.
const settle = 20 * time.Second

func end(t *testing.T, c *netcluster.Cluster) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// TestEveryGatewayReadsWhatAnyAcknowledged is nine nodes without trouble.
func TestEveryGatewayReadsWhatAnyAcknowledged(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := begin(t, Options{Zones: 3, NodesPerZone: 3, Seed: seed.Of(t)})
		stores := c.Stores()
		for i, s := range stores {
			key, body := fmt.Sprintf("k%d", i), linear.Value(i+1).Body()
			if err := s.Put(t.Context(), key, body, linear.Condition{New: true}); err != nil {
				t.Fatalf("%s: %v", c.Nodes[i].Name, err)
			}
			for j, o := range stores {
				if got, err := o.Get(t.Context(), key); err != nil || string(got) != string(body) {
					t.Errorf("%s wrote, %s reads: %v", c.Nodes[i].Name, c.Nodes[j].Name, err)
				}
				if list, err := o.List(t.Context()); err != nil || list[key] != linear.ETag(body) {
					t.Errorf("%s wrote, %s lists: %v %v", c.Nodes[i].Name, c.Nodes[j].Name, list, err)
				}
			}
		}
		end(t, c)
	})
}

// TestAZoneIsLost: within five seconds the others serve again, and what was written before is there.
func TestAZoneIsLost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := begin(t, Options{Zones: 3, NodesPerZone: 2, Seed: seed.Of(t)})
		for round, how := range []string{"killed", "partitioned", "black-holed"} {
			zone := c.Nodes[2*round].Zone
			before := fmt.Sprintf("before-%d", round)
			body := linear.Value(round + 1).Body()
			if err := c.Stores()[0].Put(t.Context(), before, body, linear.Condition{}); err != nil {
				t.Fatal(err)
			}
			switch how {
			case "killed":
				for _, n := range c.Zone(zone) {
					n.Kill()
				}
			default:
				c.CutZone(zone, how == "black-holed")
			}
			time.Sleep(5 * time.Second)
			for i, n := range c.Nodes {
				if n.Zone == zone {
					continue
				}
				s := c.Stores(n)[0]
				if got, err := s.Get(t.Context(), before); err != nil || string(got) != string(body) {
					t.Errorf("zone %s %s: %s reads: %v", zone, how, n.Name, err)
				}
				if err := s.Put(t.Context(), fmt.Sprintf("after-%d-%d", round, i), body, linear.Condition{}); err != nil {
					t.Errorf("zone %s %s: %s writes: %v", zone, how, n.Name, err)
				}
			}
			c.Heal()
			for _, n := range c.Zone(zone) {
				if n.Process() == nil {
					if err := n.Start(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			time.Sleep(10 * time.Second)
			for _, n := range c.Nodes {
				if got, err := c.Stores(n)[0].Get(t.Context(), before); err != nil || string(got) != string(body) {
					t.Errorf("zone %s %s and back: %s reads: %v", zone, how, n.Name, err)
				}
			}
		}
		end(t, c)
	})
}

// TestHistories holds six nodes in trouble to linearizability.
func TestHistories(t *testing.T) {
	histories(t, []string{"a", "a/", "b", "b/c", "c"}, nil)
}

// TestHistoriesWhileRangesSplit is TestHistories with ranges that split in two every now and then, until each holds about a key.
func TestHistoriesWhileRangesSplit(t *testing.T) {
	histories(t, []string{"a", "a/", "b", "b/c", "c", "d", "d/", "e"}, func(tune *core.Tuning) {
		tune.Splits.RowsMax = 1
		tune.SplitEvery = 20 * time.Second
	})
}

func histories(t *testing.T, keys []string, tune func(*core.Tuning)) {
	seed := seed.Of(t)
	var troubles atomic.Int64
	for round := range *roundsFlag {
		r := linear.NewRecorder()
		ranges := 0
		bubble.Test(t, func(t *testing.T) {
			c := begin(t, Options{Zones: 3, NodesPerZone: 2, Seed: seed + uint64(round)<<32, Plaintext: true, Workers: true, Tune: tune})
			ctx, calm := context.WithCancel(t.Context())
			troubled := make(chan error, 1)
			go func() {
				troubled <- c.Disturb(ctx, netcluster.Trouble{DownMax: 2, Every: 4 * time.Second, Lasts: 3 * time.Second, Rounds: &troubles})
			}()
			w := linear.Workload{Stores: c.Stores(), Keys: keys, Clients: 6, Ops: 40, Timeout: 3 * time.Second, Pause: 2 * time.Second, Seed: seed + uint64(round)<<32}
			w.Run(t.Context(), r)
			calm()
			if err := <-troubled; err != nil {
				t.Error(err)
			}
			time.Sleep(10 * time.Second)
			w.Clients, w.Ops, w.Seed, w.Timeout = 2, 15, w.Seed+1<<48, time.Minute
			w.Run(t.Context(), r)
			ranges = len(c.Nodes[0].Process().(Node).Core.Meta.AllRanges())
			end(t, c)
		})
		all, unanswered := r.Counts()
		t.Logf("round %d: %d operations, %d of them without an answer, %d ranges", round, all, unanswered, ranges)
		if tune != nil && ranges < 2 {
			t.Errorf("round %d: %d ranges: none was split", round, ranges)
		}
		if err := r.Check(time.Minute); errors.Is(err, linear.ErrUndecided) {
			t.Log(err)
		} else if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	t.Logf("%d clusters, %d times something happened to one", *roundsFlag, troubles.Load())
}
