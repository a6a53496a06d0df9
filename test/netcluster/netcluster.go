// Package netcluster runs the nodes of a cluster in one process: each with a file
// system in memory that can lose its power, on a network in memory that can be
// cut, all on the fake clock of a testing/synctest bubble (everything must be made
// inside it, Close included).
//
// What a node is, is the caller's: Options.Start makes a Process from what a Node
// gives it. The package kills, restarts and disturbs, and offers the gateways of all
// nodes as Stores of package linear that answer nothing any more once their node is dead.
package netcluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cluster"
	"cairn/cluster/netsim"
	"cairn/storage/vfsx"
	"cairn/test/linear"
)

// Process is one incarnation of a node.
type Process interface {
	// Close stops it in an orderly way; it is also called, with the network and the
	// file system gone, to clean up behind a killed one.
	Close() error
	// Gateway is its S3 face, as package linear wants it; nil has none.
	Gateway() linear.Store
}

// Options of a Cluster.
type Options struct {
	Zones        int
	NodesPerZone int
	Seed         uint64
	// Start starts a node and returns when it serves, or when ctx ends.
	Start func(ctx context.Context, n *Node) (Process, error)
	// Logf says what is done to the cluster; nil says nothing.
	Logf func(format string, args ...any)
}

// Cluster is nodes a1, a2, ..., b1, ... Its methods may be called concurrently,
// but one node is started, stopped or killed by one caller at a time.
type Cluster struct {
	Sim   *netsim.Sim
	Net   *netsim.Network
	Nodes []*Node

	o     Options
	ctx   context.Context
	end   context.CancelFunc
	dying sync.WaitGroup // Close of killed processes
	mu    struct {
		sync.Mutex
		rnd *rand.Rand
	}
}

// Node is one machine: what stays over its process's incarnations, and the current one.
type Node struct {
	Name    cluster.NodeID
	Zone    cluster.Zone
	Dir     string // of its data, on its file system
	Address string // host:port of its cluster address
	First   bool   // the one that makes the cluster

	c  *Cluster
	mu struct {
		sync.RWMutex
		fs      *vfsx.Mem
		host    *netsim.Host
		process Process // nil: not running
		life    int     // counts incarnations
	}
}

// New makes the machines; none runs yet.
func New(o Options) *Cluster {
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	sim := netsim.New(o.Seed)
	c := &Cluster{Sim: sim, Net: netsim.NewNetwork(sim), o: o}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.mu.rnd = rand.New(rand.NewPCG(o.Seed, 0x6e65_7463))
	for z := range o.Zones {
		for i := range o.NodesPerZone {
			zone := string(rune('a' + z))
			name := zone + strconv.Itoa(i+1)
			n := &Node{Name: cluster.NodeID(name), Zone: cluster.Zone(zone), Dir: path.Join("/", name), Address: name + ":9002", First: len(c.Nodes) == 0, c: c}
			n.mu.fs = vfsx.NewMem()
			c.Nodes = append(c.Nodes, n)
		}
	}
	return c
}

// Start starts the first node, then all others at once.
func (c *Cluster) Start(ctx context.Context) error {
	if err := c.Nodes[0].Start(ctx); err != nil {
		return err
	}
	return c.each(c.Nodes[1:], func(n *Node) error { return n.Start(ctx) })
}

// Close stops all nodes that run and waits for the killed ones to be gone.
func (c *Cluster) Close() error {
	c.Heal()
	err := c.each(c.Nodes, (*Node).Stop)
	c.end()
	c.dying.Wait()
	return err
}

func (c *Cluster) each(nodes []*Node, fn func(*Node) error) error {
	all := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { all[i] = fn(n) })
	}
	wg.Wait()
	return errors.Join(all...)
}

// Zone is the nodes of a zone.
func (c *Cluster) Zone(z cluster.Zone) (nodes []*Node) {
	for _, n := range c.Nodes {
		if n.Zone == z {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func (c *Cluster) draw(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.rnd.IntN(n)
}

// Place is where the node stands in the network.
func (n *Node) Place() netsim.Place { return netsim.Place{Node: n.Name, Zone: n.Zone} }

// FS is the file system of the current incarnation: what the last one left.
func (n *Node) FS() *vfsx.Mem {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.mu.fs
}

// Host is the current incarnation's network: Listen and Dial are the node's seams.
func (n *Node) Host() *netsim.Host {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.mu.host
}

// Life counts the node's incarnations: 1 is the first.
func (n *Node) Life() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.mu.life
}

// Process is the current incarnation, or nil.
func (n *Node) Process() Process {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.mu.process
}

// Start starts the node's process on what the last one left.
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	if n.mu.process != nil {
		n.mu.Unlock()
		return fmt.Errorf("%s runs already", n.Name)
	}
	n.mu.host = n.c.Net.Host(n.Place())
	n.mu.life++
	n.mu.Unlock()
	p, err := n.c.o.Start(ctx, n)
	if err != nil {
		n.Host().Kill()
		return fmt.Errorf("start %s: %w", n.Name, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.process = p
	return nil
}

// Stop stops the node's process in an orderly way, if it runs.
func (n *Node) Stop() error {
	n.mu.Lock()
	p := n.mu.process
	n.mu.process = nil
	n.mu.Unlock()
	if p == nil {
		return nil
	}
	err := p.Close()
	n.Host().Kill()
	if err != nil {
		return fmt.Errorf("stop %s: %w", n.Name, err)
	}
	return nil
}

// Kill is a power cut of the node's machine, if it runs: of what was not synced any
// part may be gone. The network goes first, so that nothing leaves the node that its disk may not keep.
func (n *Node) Kill() {
	n.mu.Lock()
	p := n.mu.process
	if p == nil {
		n.mu.Unlock()
		return
	}
	n.mu.process = nil
	n.mu.host.Kill()
	n.mu.fs = n.mu.fs.CrashClone(uint64(n.c.draw(1 << 30)))
	n.mu.Unlock()
	n.c.dying.Go(func() { _ = p.Close() }) // what a dead process says is of no interest
}

// Stores are the gateways of the nodes (of all if none is named). A request to a
// node that does not run fails; an answer that was not out when its node died never comes.
func (c *Cluster) Stores(nodes ...*Node) (stores []linear.Store) {
	if len(nodes) == 0 {
		nodes = c.Nodes
	}
	for _, n := range nodes {
		stores = append(stores, gate{n})
	}
	return stores
}

// errDead is the answer of a node that is not there.
var errDead = errors.New("the node is dead")

// gate is a node's gateway, whichever incarnation is up.
type gate struct{ n *Node }

// ask calls fn with the gateway of now; its answer counts only if that incarnation still lives then.
func (g gate) ask(fn func(linear.Store) error) error {
	n := g.n
	n.mu.RLock()
	p, life := n.mu.process, n.mu.life
	n.mu.RUnlock()
	if p == nil {
		return errDead
	}
	err := fn(p.Gateway())
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.mu.process != p || n.mu.life != life {
		return errDead
	}
	return err
}

func (g gate) Put(ctx context.Context, key string, body []byte, cond linear.Condition) error {
	return g.ask(func(s linear.Store) error { return s.Put(ctx, key, body, cond) })
}

func (g gate) Get(ctx context.Context, key string) (body []byte, err error) {
	err = g.ask(func(s linear.Store) error { body, err = s.Get(ctx, key); return err })
	return body, err
}

func (g gate) Delete(ctx context.Context, key string) error {
	return g.ask(func(s linear.Store) error { return s.Delete(ctx, key) })
}

func (g gate) List(ctx context.Context) (etags map[string]string, err error) {
	err = g.ask(func(s linear.Store) error { etags, err = s.List(ctx); return err })
	return etags, err
}

// Heal takes all rules off the network.
func (c *Cluster) Heal() { c.rules() }

func (c *Cluster) rules(rules ...netsim.Rule) {
	if err := c.Sim.Set(netsim.Rules{Rules: rules}); err != nil {
		panic(err) // rules of this package's own making
	}
}

// CutZone cuts a zone off from the others: refused, or dropped without a word.
func (c *Cluster) CutZone(z cluster.Zone, silent bool) {
	c.rules(netsim.Rule{From: "zone:" + string(z), To: "!zone:" + string(z), Partition: !silent, BlackHole: silent})
}

// CutNode cuts a node off from all others.
func (c *Cluster) CutNode(n *Node, silent bool) {
	c.rules(netsim.Rule{From: "node:" + string(n.Name), To: "!node:" + string(n.Name), Partition: !silent, BlackHole: silent})
}

// Trouble is what Disturb may do.
type Trouble struct {
	DownMax int           // nodes that may be dead at once
	Every   time.Duration // about how often something happens
	Lasts   time.Duration // about how long it lasts
	Rounds  *atomic.Int64 // counts what happened, if set
}

// Disturb does one random thing after the other to the cluster until ctx ends: a
// node loses its power, a zone or a node is cut off or talks only one way, the network
// is slow and loses packets. Then it heals the network and starts what is dead; a
// node that does not start is an error.
func (c *Cluster) Disturb(ctx context.Context, t Trouble) error {
	pause := func(about time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(about/2 + time.Duration(c.draw(int(about)))):
			return true
		}
	}
	for pause(t.Every) {
		if t.Rounds != nil {
			t.Rounds.Add(1)
		}
		var dead []*Node
		switch c.draw(4) {
		case 0, 1:
			for range 1 + c.draw(max(1, t.DownMax)) {
				n := c.Nodes[c.draw(len(c.Nodes))]
				if slices.Contains(dead, n) {
					continue
				}
				c.o.Logf("%s loses its power", n.Name)
				n.Kill()
				dead = append(dead, n)
			}
		default:
			c.spoil()
		}
		pause(t.Lasts)
		c.Heal()
		if err := c.each(dead, func(n *Node) error { return n.Start(c.ctx) }); err != nil {
			return err
		}
		c.o.Logf("healed")
	}
	return nil
}

// spoil sets rules at random.
func (c *Cluster) spoil() {
	n := c.Nodes[c.draw(len(c.Nodes))]
	silent := c.draw(2) == 0
	switch c.draw(4) {
	case 0:
		c.o.Logf("zone %s is cut off, silently: %v", n.Zone, silent)
		c.CutZone(n.Zone, silent)
	case 1:
		c.o.Logf("%s is cut off, silently: %v", n.Name, silent)
		c.CutNode(n, silent)
	case 2:
		c.o.Logf("%s is not heard", n.Name)
		c.rules(netsim.Rule{From: "node:" + string(n.Name), OneWay: true, BlackHole: true})
	default:
		latency := time.Duration(1+c.draw(100)) * time.Millisecond
		c.o.Logf("everything takes %v longer and packets get lost", latency)
		c.rules(netsim.Rule{Latency: netsim.Duration(latency), Jitter: netsim.Duration(latency), Loss: 0.05})
	}
}
