package controller

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/proto/nodepb"
)

const (
	peersMax    = 1024 // nodes that are remembered besides the topology
	replicasMax = 4096 // replicas of one node that are believed
	callTimeout = time.Second
)

// peerTable is what this node was told by the others themselves, without any
// quorum: where they are and which replicas they have (design rule 4).
type peerTable struct {
	mu       sync.Mutex
	nodes    map[cluster.NodeID]*peer
	replicas map[cluster.ReplicaID]cluster.NodeID
	leader   cluster.NodeID // that is said to lead the system group
}

type peer struct {
	addresses []string // as it says itself
	hearsay   []string // as others say
}

func (p *peerTable) node(id cluster.NodeID) *peer {
	n := p.nodes[id]
	if n == nil {
		n = &peer{}
		if len(p.nodes) < peersMax {
			p.nodes[id] = n
		}
	}
	return n
}

// known takes over addresses from a file.
func (p *peerTable) known(addrs map[cluster.NodeID][]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, a := range addrs {
		p.node(id).hearsay = a
	}
}

// heard takes over what a node said about itself.
func (p *peerTable) heard(h *nodepb.Hello, replicas []*nodepb.HelloReplica) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id := cluster.NodeID(h.Node)
	n := p.node(id)
	n.addresses = slices.Clone(h.Addresses)
	maps.DeleteFunc(p.replicas, func(_ cluster.ReplicaID, n cluster.NodeID) bool { return n == id })
	for i, r := range replicas {
		if i < replicasMax {
			p.replicas[cluster.ReplicaID(r.Id)] = id
		}
	}
}

// hearsay takes over what a node says about others. Never preferred to what they say themselves.
func (p *peerTable) hearsay(known []*nodepb.Hello, leader string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range known {
		if len(h.Addresses) > 0 {
			p.node(cluster.NodeID(h.Node)).hearsay = slices.Clone(h.Addresses)
		}
	}
	if leader != "" {
		p.leader = cluster.NodeID(leader)
	}
}

func (p *peerTable) hint(leader cluster.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leader = leader
}

// Addresses are where a node may be reached, best first: as recorded, as it says
// itself, as others say. Changes at run time. What a node says does not come first,
// since a second process may have taken its name.
func (c *Controller) Addresses(id cluster.NodeID) []string {
	var out []string
	add := func(addrs []string) {
		for _, a := range addrs {
			if !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	if id == c.cfg.Node && c.cfg.Cluster != nil {
		add(c.cfg.Cluster.Advertise)
	}
	add(c.Topology().Nodes[id].Addresses)
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	if n := c.peers.nodes[id]; n != nil {
		add(n.addresses)
		add(n.hearsay)
	}
	if c.cfg.Cluster != nil {
		add(c.cfg.Cluster.Peers) // if another node answers there, its certificate says so
	}
	return out
}

// Resolve finds the node of a replica: as recorded, else as the nodes say themselves.
func (c *Controller) Resolve(g cluster.GroupID, id cluster.ReplicaID) (cluster.NodeID, bool) {
	t := c.Topology()
	for _, r := range t.Groups[g].Replicas {
		if r.ID == id {
			if d, ok := t.Drives[r.Drive]; ok {
				return d.Node, true
			}
		}
	}
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	n, ok := c.peers.replicas[id]
	return n, ok
}

// others are the nodes known besides this one.
func (c *Controller) others() []cluster.NodeID {
	set := map[cluster.NodeID]bool{}
	for _, n := range c.Topology().SortedNodes() {
		set[n.ID] = true
	}
	c.peers.mu.Lock()
	for id := range c.peers.nodes {
		if n, ok := c.Topology().Nodes[id]; !ok || n.State != cluster.NodeRemoved {
			set[id] = true
		}
	}
	c.peers.mu.Unlock()
	delete(set, c.cfg.Node)
	return slices.Sorted(maps.Keys(set))
}

// systemLeader is the node that leads the system group as far as is known here; empty if nobody is.
func (c *Controller) systemLeader() cluster.NodeID {
	if l, ok := c.cfg.Groups.LeaderOf(cluster.SystemGroup); ok {
		if n, ok := c.Resolve(cluster.SystemGroup, l); ok {
			return n
		}
		for _, st := range c.cfg.Groups.Status() {
			if st.Group == cluster.SystemGroup && st.Local {
				return c.cfg.Node // a start, before the topology is known
			}
		}
	}
	c.peers.mu.Lock()
	defer c.peers.mu.Unlock()
	return c.peers.leader
}

// leadsSystem reports whether this node leads the system group, and in which term.
func (c *Controller) leadsSystem() (term uint64, ok bool) {
	if c.systemLeader() != c.cfg.Node {
		return 0, false
	}
	for _, st := range c.cfg.Groups.Status() {
		if st.Group == cluster.SystemGroup {
			return st.Term, st.Local
		}
	}
	return 0, false
}

func (c *Controller) hello() *nodepb.Hello {
	return &nodepb.Hello{
		StoreId: c.StoreID(), Node: string(c.cfg.Node), Zone: string(c.cfg.Cluster.Zone),
		Incarnation: c.cl.incarnation, Addresses: c.cfg.Cluster.Advertise, Version: c.cfg.Cluster.Version,
	}
}

// replicasHere are the replicas on the drives of this node.
func (c *Controller) replicasHere() (out []*nodepb.HelloReplica) {
	for _, st := range c.cfg.Groups.Status() {
		for _, r := range st.Replicas {
			if !r.Drive.IsZero() {
				out = append(out, &nodepb.HelloReplica{Group: uint64(st.Group), Id: string(r.ID)})
			}
		}
	}
	return out
}

// announce tells all nodes that can be reached where this one is, and learns the same of them.
func (c *Controller) announce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req := &nodepb.AnnounceRequest{Hello: c.hello(), Replicas: c.replicasHere()}
	var wg sync.WaitGroup
	for _, id := range c.others() {
		wg.Go(func() {
			if conn, err := c.cfg.Cluster.Conn(id); err == nil {
				c.announceTo(ctx, conn, req, id)
			}
		})
	}
	wg.Wait() // every call ends with ctx
}

func (c *Controller) announceTo(ctx context.Context, conn grpc.ClientConnInterface, req *nodepb.AnnounceRequest, to cluster.NodeID) {
	resp, err := nodepb.NewMemberClient(conn).Announce(ctx, req)
	if err != nil {
		if ctx.Err() == nil && refused(err) {
			c.noteErr("announce "+string(to), "another node refuses this one: "+err.Error())
		}
		return
	}
	h := resp.Hello
	if h.GetStoreId() != c.StoreID() || h.GetNode() != string(to) {
		return
	}
	c.note("announce "+string(to), slog.LevelInfo, "")
	c.peers.heard(h, resp.Replicas)
	c.peers.hearsay(resp.Known, resp.SystemLeader)
}
