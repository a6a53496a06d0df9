// Package cores makes package netcluster's nodes whole stores: everything of a
// server but its HTTP faces.
package cores

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path"
	"time"

	"cairn/cluster/netsim"
	"cairn/server/config"
	"cairn/server/core"
	"cairn/test/harness"
	"cairn/test/linear"
	"cairn/test/netcluster"
)

// Bucket is the one that Gateways speak of; Start makes it.
const Bucket = "bucket"

// Options of a cluster of stores.
type Options struct {
	Zones, NodesPerZone, DrivesPerNode int
	Seed                               uint64
	Workers                            bool // run background work
	Plaintext                          bool // no TLS between nodes: cheaper
	Log                                bool // to standard error
	Tune                               func(*core.Tuning)
	Logf                               func(format string, args ...any)
}

// Node is a running store.
type Node struct{ Core *core.Core }

// Close stops it.
func (n Node) Close() error { return n.Core.Close() }

// Gateway is its objects in Bucket.
func (n Node) Gateway() linear.Store { return linear.Gateway{Objects: n.Core.Objects, Bucket: Bucket} }

// startMax bounds one start; it is fake time.
const startMax = 2 * time.Minute

// New makes the machines of a cluster; its Start makes the store, and Start the bucket too.
func New(o Options) *netcluster.Cluster {
	var c *netcluster.Cluster
	c = netcluster.New(netcluster.Options{
		Zones: o.Zones, NodesPerZone: o.NodesPerZone, Seed: o.Seed, Logf: o.Logf,
		Start: func(ctx context.Context, n *netcluster.Node) (netcluster.Process, error) {
			ctx, cancel := context.WithTimeout(ctx, startMax)
			defer cancel()
			return open(ctx, &o, c, n)
		},
	})
	return c
}

// Start starts a new cluster's nodes and makes the bucket.
func Start(ctx context.Context, c *netcluster.Cluster) error {
	if err := c.Start(ctx); err != nil {
		return err
	}
	_, err := harness.MakeBucket(ctx, c.Nodes[0].Process().(Node).Core, Bucket)
	return err
}

func open(ctx context.Context, o *Options, c *netcluster.Cluster, n *netcluster.Node) (netcluster.Process, error) {
	token, err := tokenFor(ctx, c, n)
	if err != nil {
		return nil, err
	}
	host := n.Host()
	s, err := harness.Open(ctx, harness.Options{
		FS: n.FS(), Dir: n.Dir, Zones: 1, DrivesPerZone: max(1, o.DrivesPerNode), Workers: o.Workers,
		Tune: func(t *core.Tuning) {
			t.Raft.HeartbeatTimeout, t.Raft.CommitTimeout = 0, 0 // as in production: the network is slow at times
			if o.Tune != nil {
				o.Tune(t)
			}
		},
		Config: func(cfg *config.Config) {
			cfg.Node, cfg.Zone = string(n.Name), string(n.Zone)
			cfg.ClusterListen, cfg.ClusterAdvertise = n.Address, n.Address
			// Only once: a first node that forgot its cluster must not begin another.
			cfg.ClusterInit = n.First && n.Life() == 1
			cfg.JoinToken, cfg.ClusterPlaintext = token, o.Plaintext
		},
		Env: func(env *core.Env) {
			env.Listen = listenOn(host)
			env.Dial = host.Dial
			if o.Log {
				env.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", n.Name)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return Node{s}, nil
}

// tokenFor is what a node needs to join; nothing if it is the first one or has joined before.
func tokenFor(ctx context.Context, c *netcluster.Cluster, n *netcluster.Node) (string, error) {
	if _, err := n.FS().Stat(path.Join(n.Dir, "node.json")); n.First || err == nil {
		return "", nil
	}
	return c.Nodes[0].Process().(Node).Core.NewToken(ctx, time.Hour)
}

func listenOn(host *netsim.Host) func(context.Context, string) (net.Listener, error) {
	return func(_ context.Context, addr string) (net.Listener, error) { return host.Listen(addr) }
}
