package cores

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/server/config"
	"cairn/server/core"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/linear"
	"cairn/test/netcluster"
	"cairn/test/seed"
)

// TestWipedFirstNode: the node that made the cluster lost its data folder, and is started as it was the first time. It must
// not begin a second cluster under the eyes of the first.
func TestWipedFirstNode(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := begin(t, Options{Zones: 3, NodesPerZone: 1, Seed: seed.Of(t)})
		first := c.Nodes[0]
		first.Kill()
		host := c.Net.Host(first.Place())
		fs := vfsx.NewMem()
		s, err := harness.Open(t.Context(), harness.Options{
			FS: fs, Dir: first.Dir, Zones: 1, DrivesPerZone: 1,
			Config: func(cfg *config.Config) {
				cfg.Node, cfg.Zone = string(first.Name), string(first.Zone)
				cfg.ClusterListen, cfg.ClusterAdvertise = first.Address, first.Address
				cfg.ClusterInit, cfg.Join = true, []string{c.Nodes[1].Address, c.Nodes[2].Address}
			},
			Env: func(env *core.Env) { env.Listen, env.Dial = listenOn(host), host.Dial },
		})
		if err == nil {
			t.Error("a second cluster", s.Close())
		} else if !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "makes no new one") {
			t.Error(err)
		}
		host.Kill()
		if err := first.Start(t.Context()); err != nil { // with what it had it goes on
			t.Error(err)
		}
		end(t, c)
	})
}

// hasHome reports whether positions of a placement group on a node that leaves can all go to other drives of the zone.
func hasHome(t *cluster.Topology, pg *cluster.PG, gone *netcluster.Node) bool {
	positions, homes := 0, 0
	for id, d := range t.Drives {
		switch in := slices.Contains(pg.Drives, id); {
		case d.Zone == gone.Zone && d.Node == gone.Name && in:
			positions++
		case d.Zone == gone.Zone && d.Node != gone.Name && !in:
			homes++
		}
	}
	return homes >= positions
}

// TestANodeLeaves: what objects and metadata have on a node that leaves, running or lost, goes elsewhere. The
// placement groups that are as wide as the topology have no other drives to go to; status says so, from any node.
func TestANodeLeaves(t *testing.T) {
	for name, lost := range map[string]bool{"running": false, "lost": true} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := begin(t, Options{Zones: 3, NodesPerZone: 2, DrivesPerNode: 2, Seed: seed.Of(t), Workers: true})
				defer end(t, c)
				objects := map[string]linear.Value{}
				for i := range 30 {
					key := fmt.Sprintf("k%d", i)
					objects[key] = linear.Value(i + 1)
					if err := c.Stores()[i%6].Put(t.Context(), key, objects[key].Body(), linear.Condition{}); err != nil {
						t.Fatal(err)
					}
				}
				gone, asked := c.Nodes[1], c.Nodes[4].Process().(Node).Core
				if lost {
					gone.Kill()
				}
				if err := asked.Leave(t.Context(), gone.Name, true); err != nil {
					t.Fatal(err)
				}
				held := func() (n int) {
					tp := asked.Controller.Topology()
					for _, pg := range tp.PGs {
						for i, id := range pg.Drives {
							if (tp.Drives[id].Node == gone.Name || tp.Drives[pg.Previous[i]].Node == gone.Name) && hasHome(tp, &pg, gone) {
								n++
							}
						}
					}
					for _, g := range tp.Groups {
						for _, r := range g.Replicas {
							if tp.Drives[r.Drive].Node == gone.Name {
								n++
							}
						}
					}
					return n
				}
				if held() == 0 {
					t.Fatal("nothing lies there: this proves nothing")
				}
				for end := time.Now().Add(time.Hour); held() > 0; time.Sleep(10 * time.Second) {
					if time.Now().After(end) {
						t.Fatalf("%d things lie there still: %v", held(), asked.Status(t.Context()).Warnings)
					}
				}
				if err := gone.Stop(); err != nil {
					t.Error(err)
				}
				time.Sleep(time.Minute)
				for _, n := range c.Nodes {
					if n == gone {
						continue
					}
					for key, v := range objects {
						if got, err := c.Stores(n)[0].Get(t.Context(), key); err != nil || string(got) != string(v.Body()) {
							t.Errorf("%s reads %s: %v", n.Name, key, err)
						}
					}
					if w := n.Process().(Node).Core.Status(t.Context()).Warnings; !strings.Contains(strings.Join(w, "\n"), "node "+string(gone.Name)+": ") {
						t.Errorf("%s does not say that %s is leaving: %v", n.Name, gone.Name, w)
					}
				}
			})
		})
	}
}
