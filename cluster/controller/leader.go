package controller

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// sessions are what the system group's leader knows of the nodes that are there. It
// is in memory only: a new leader lets everybody show up first (LeaderGrace), and
// assumes of everybody that he was granted a lease just before.
type sessions struct {
	mu    sync.Mutex
	term  uint64    // that what follows belongs to
	since time.Time // when this node began to lead; zero: it does not
	nodes map[cluster.NodeID]*session
	acked map[cluster.NodeID]uint64 // configuration that a node will not fall behind of any more
}

type session struct {
	incarnation []byte
	seen        time.Time // last renewal
	asked       time.Time // when the last lease was asked for; every lease of the node ends ConfigLease after this, or before
}

// lead begins anew in a new term. The caller has seen that this node leads.
func (s *sessions) lead(term uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term != term || s.since.IsZero() {
		s.term, s.since = term, time.Now()
		s.nodes, s.acked = map[cluster.NodeID]*session{}, map[cluster.NodeID]uint64{}
	}
}

func (s *sessions) resign() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = time.Time{}
}

// shift makes up for a time in which this process did not run.
func (s *sessions) shift(by time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since = s.since.Add(by)
	for _, n := range s.nodes {
		n.seen = n.seen.Add(by)
	}
}

// grantLocked notes a session that is granted now, with a lease asked for then. A call that took long
// ends behind those that came after it: it takes nothing back.
func (s *sessions) grantLocked(id cluster.NodeID, incarnation []byte, asked time.Time) {
	next := &session{incarnation: incarnation, seen: time.Now(), asked: asked}
	if old := s.nodes[id]; old != nil {
		if old.seen.After(next.seen) {
			next.seen = old.seen
		}
		if old.asked.After(asked) {
			next.asked = old.asked
		}
	}
	s.nodes[id] = next
}

// memberServer serves the Member service.
type memberServer struct {
	nodepb.UnimplementedMemberServer
	c *Controller
}

// Register offers the controller to the other nodes.
func Register(s grpc.ServiceRegistrar, c *Controller) {
	nodepb.RegisterMemberServer(s, memberServer{c: c})
}

// from checks that a hello is the caller's, and of this store.
func (s memberServer) from(ctx context.Context, h *nodepb.Hello) error {
	who, err := s.c.cfg.Cluster.Caller(ctx)
	switch {
	case err != nil:
		return err
	case h.GetNode() == "" || string(who) != h.Node:
		return errs.Newf(errs.AccessDenied, "member", h.GetNode(), "the certificate is that of node %q", who)
	case h.StoreId != s.c.StoreID():
		return errs.Newf(errs.Foreign, "member", h.Node, "it belongs to store %s, this is store %s: the address of another cluster is configured", h.StoreId, s.c.StoreID())
	case s.c.StoreID() == "":
		return errs.New(errs.Unavailable, "member", "", "this node is starting")
	}
	return nil
}

func (s memberServer) Announce(ctx context.Context, req *nodepb.AnnounceRequest) (*nodepb.AnnounceResponse, error) {
	if err := s.from(ctx, req.Hello); err != nil {
		return nil, err
	}
	c := s.c
	if req.Hello.Node == string(c.cfg.Node) {
		// It asks itself, or whether its name is in use.
		return &nodepb.AnnounceResponse{Hello: c.hello()}, nil
	}
	c.peers.heard(req.Hello, req.Replicas)
	resp := &nodepb.AnnounceResponse{Hello: c.hello(), Replicas: c.replicasHere(), SystemLeader: string(c.systemLeader())}
	for _, id := range c.others() {
		resp.Known = append(resp.Known, &nodepb.Hello{Node: string(id), Addresses: c.Addresses(id)})
	}
	return resp, nil
}

func (s memberServer) Session(ctx context.Context, req *nodepb.SessionRequest) (*nodepb.SessionResponse, error) {
	if err := s.from(ctx, req.Hello); err != nil {
		return nil, err
	}
	return s.c.session(ctx, req)
}

func (s memberServer) Topology(ctx context.Context, req *nodepb.TopologyRequest) (resp *nodepb.TopologyResponse, err error) {
	resp = &nodepb.TopologyResponse{}
	encode := func(r pebble.Reader) (err error) {
		resp.Topology, err = sysstate.EncodeTopology(r)
		return err
	}
	if req.Local {
		err = s.c.cfg.Groups.ReadLocal(cluster.SystemGroup, encode)
	} else {
		err = s.c.atSystemLeader(ctx, encode)
	}
	return resp, err
}

func (s memberServer) AwaitConfig(ctx context.Context, req *nodepb.AwaitConfigRequest) (*nodepb.AwaitConfigResponse, error) {
	return &nodepb.AwaitConfigResponse{}, s.c.awaitConfig(ctx, req.Config)
}

func (s memberServer) Notify(_ context.Context, req *nodepb.NotifyRequest) (*nodepb.NotifyResponse, error) {
	s.c.notified(req)
	return &nodepb.NotifyResponse{}, nil
}

func (c *Controller) notified(req *nodepb.NotifyRequest) {
	c.mu.Lock()
	c.mu.lease.floor = max(c.mu.lease.floor, req.Config)
	c.mu.Unlock()
	c.heardOf(req.Topology)
}

// session grants a node its session and configuration lease, if the system group is led here.
func (c *Controller) session(ctx context.Context, req *nodepb.SessionRequest) (*nodepb.SessionResponse, error) {
	h := req.Hello
	elsewhere := &nodepb.SessionResponse{}
	term, leads := c.leadsSystem()
	if !leads {
		if l := c.systemLeader(); l != c.cfg.Node {
			elsewhere.SystemLeader = string(l)
		}
		return elsewhere, nil
	}
	c.table.lead(term)
	asked := time.Now() // before the configuration is read: no lease granted on it lasts longer
	row, st, err := c.nodeRow(ctx, h.Node)
	if errs.Is(err, errs.NotLeader) {
		return elsewhere, nil
	}
	if err != nil {
		return nil, err
	}
	id := cluster.NodeID(h.Node)
	if req.Goodbye {
		return elsewhere, c.nodesDown(ctx, []*metapb.NodeRef{{Node: h.Node, Incarnation: h.Incarnation}})
	}
	if err := c.checkSession(ctx, row, h); err != nil {
		return nil, err
	}
	if row.State != uint32(cluster.NodeActive) || !bytes.Equal(row.Incarnation, h.Incarnation) || !slices.Equal(row.Addresses, h.Addresses) || row.Version != h.Version {
		_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_NodeStarted{NodeStarted: &metapb.NodeStartedOp{
			Node: h.Node, Zone: h.Zone, Incarnation: h.Incarnation, Addresses: h.Addresses, Version: h.Version, IfIncarnation: row.Incarnation,
		}}})
		if err != nil {
			return nil, err
		}
		c.log.Info("a node is there", "node", h.Node, "zone", h.Zone, "addresses", h.Addresses)
		if row, st, err = c.nodeRow(ctx, h.Node); err != nil {
			return nil, err
		}
	}
	c.table.mu.Lock()
	defer c.table.mu.Unlock()
	if c.table.term != term || c.table.since.IsZero() {
		return elsewhere, nil
	}
	c.table.grantLocked(id, h.Incarnation, asked)
	c.table.acked[id] = max(c.table.acked[id], req.Config)
	return &nodepb.SessionResponse{Granted: true, Config: st.Config, Topology: st.Version, LeaseMs: c.cfg.Cluster.ConfigLease.Milliseconds()}, nil
}

// nodeRow reads a node's row and the store's, linearizably.
func (c *Controller) nodeRow(ctx context.Context, node string) (row *metapb.SysNode, st *metapb.SysStore, err error) {
	err = c.atSystemLeader(ctx, func(r pebble.Reader) (err error) {
		if st, err = sysstate.Store(r); err == nil {
			row, err = sysstate.Node(r, cluster.NodeID(node))
		}
		return err
	})
	return row, st, err
}

// checkSession refuses a node that must not act: one that left, one in another zone,
// or a second process under the name of one that lives.
func (c *Controller) checkSession(ctx context.Context, row *metapb.SysNode, h *nodepb.Hello) error {
	switch {
	case row.State == uint32(cluster.NodeRemoved):
		return errs.Newf(errs.Foreign, "session", h.Node, "node %s was removed from this cluster: empty its data folder and its drives and let it join anew", h.Node)
	case row.Zone != h.Zone:
		return errs.Newf(errs.Conflict, "session", h.Node, "node %s belongs to zone %s, not to zone %s: correct the zone", h.Node, row.Zone, h.Zone)
	case len(row.Incarnation) == 0 || bytes.Equal(row.Incarnation, h.Incarnation) || row.State != uint32(cluster.NodeActive):
		return nil
	}
	c.table.mu.Lock()
	s := c.table.nodes[cluster.NodeID(h.Node)]
	lives := s != nil && bytes.Equal(s.incarnation, row.Incarnation) && time.Since(s.seen) < c.cfg.Cluster.SessionTimeout
	c.table.mu.Unlock()
	if !lives {
		return nil
	}
	// Its predecessor renewed its session a moment ago. Was it restarted, or are there two?
	running := errs.Newf(errs.Conflict, "session", h.Node, "node %s is running already, at %v: give this one another name, or stop that one (just stopped, it counts for %s more)", h.Node, row.Addresses, c.cfg.Cluster.SessionTimeout)
	if !slices.Equal(row.Addresses, h.Addresses) {
		return running // at one address there cannot be two
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout/2)
	defer cancel()
	conn, err := c.cfg.Cluster.Conn(cluster.NodeID(h.Node))
	if err == nil {
		var resp *nodepb.AnnounceResponse
		resp, err = nodepb.NewMemberClient(conn).Announce(ctx, &nodepb.AnnounceRequest{Hello: c.hello()})
		if err == nil && bytes.Equal(resp.Hello.GetIncarnation(), row.Incarnation) {
			return running
		}
		if err == nil && bytes.Equal(resp.Hello.GetIncarnation(), h.Incarnation) {
			return nil
		}
	}
	return errs.Newf(errs.Unavailable, "session", h.Node, "the process that acted as node %s before may still run; waiting until its session is over", h.Node)
}

// awaitConfig waits until no node acts on a configuration before config, which is committed. NotLeader if the system group is not led here.
func (c *Controller) awaitConfig(ctx context.Context, config uint64) error {
	var version uint64
	err := c.atSystemLeader(ctx, func(r pebble.Reader) error {
		st, err := sysstate.Store(r)
		version = st.GetVersion()
		return err
	})
	if err != nil {
		return err
	}
	term, leads := c.leadsSystem()
	if !leads {
		return errs.New(errs.NotLeader, "configuration", "", "")
	}
	c.table.lead(term)
	nodes, err := c.nodesHere()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	failed := make([]error, len(nodes))
	for i, n := range nodes {
		if n.State == uint32(cluster.NodeRemoved) {
			continue
		}
		id := cluster.NodeID(n.Id)
		c.table.mu.Lock()
		// Leases granted from now on name config or a later one.
		end := c.table.since
		if s := c.table.nodes[id]; s != nil && s.asked.After(end) {
			end = s.asked
		}
		acked := c.table.acked[id] >= config
		c.table.mu.Unlock()
		if !acked {
			wg.Go(func() { failed[i] = c.notifyNode(ctx, id, config, version, end.Add(c.cfg.Cluster.SessionTimeout)) })
		}
	}
	wg.Wait() // each ends with ctx or at the end of a lease
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

// notifyNode tells a node of a configuration until it has answered or its lease is over.
func (c *Controller) notifyNode(ctx context.Context, id cluster.NodeID, config, version uint64, until time.Time) error {
	req := &nodepb.NotifyRequest{Config: config, Topology: version}
	if id == c.cfg.Node {
		c.notified(req)
		return nil
	}
	for time.Now().Before(until) {
		err := ctx.Err()
		if err != nil {
			return err
		}
		var conn grpc.ClientConnInterface
		if conn, err = c.cfg.Cluster.Conn(id); err == nil {
			try, cancel := context.WithTimeout(ctx, callTimeout)
			_, err = nodepb.NewMemberClient(conn).Notify(try, req)
			cancel()
		}
		if err == nil {
			c.table.mu.Lock()
			if c.table.acked != nil {
				c.table.acked[id] = max(c.table.acked[id], config)
			}
			c.table.mu.Unlock()
			return nil
		}
		wait := time.NewTimer(min(50*time.Millisecond, time.Until(until)))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		}
	}
	return nil
}

func (c *Controller) nodesHere() (nodes []*metapb.SysNode, err error) {
	err = c.cfg.Groups.ReadLocal(cluster.SystemGroup, func(r pebble.Reader) (err error) {
		nodes, err = sysstate.Nodes(r)
		return err
	})
	return nodes, err
}

// leadLoop decides, while the system group is led here, who is there and who is not. Nothing else
// is done in it: what waits here finds silent nodes late.
func (c *Controller) leadLoop(ctx context.Context) {
	every := c.cfg.Cluster.SessionTimeout / 12
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if gap := time.Since(last) - every; gap > every {
			// This process did not run: that says nothing about the others.
			c.table.shift(gap)
		}
		if term, leads := c.leadsSystem(); leads {
			c.table.lead(term)
			c.findSilent(ctx)
		} else {
			c.table.resign()
		}
		last = time.Now() // what the above waited for is no such gap
	}
}

// leaveLoop sees nodes out while the system group is led here.
func (c *Controller) leaveLoop(ctx context.Context) {
	ticker := time.NewTicker(c.cfg.Tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if _, leads := c.leadsSystem(); leads {
			c.seeOut(ctx)
		}
	}
}

// findSilent records nodes that have not renewed their sessions as down.
func (c *Controller) findSilent(ctx context.Context) {
	nodes, err := c.nodesHere()
	if err != nil {
		return
	}
	var silent []*metapb.NodeRef
	c.table.mu.Lock()
	if !c.table.since.IsZero() {
		for _, n := range nodes {
			if n.State != uint32(cluster.NodeActive) || n.Id == string(c.cfg.Node) {
				continue
			}
			s := c.table.nodes[cluster.NodeID(n.Id)]
			switch {
			case s != nil && time.Since(s.seen) < c.cfg.Cluster.SessionTimeout:
			case s == nil && time.Since(c.table.since) < c.cfg.Cluster.LeaderGrace:
			default:
				silent = append(silent, &metapb.NodeRef{Node: n.Id, Incarnation: n.Incarnation})
			}
		}
	}
	c.table.mu.Unlock()
	if len(silent) == 0 {
		return
	}
	if err := c.nodesDown(ctx, silent); err != nil && ctx.Err() == nil {
		c.note("silent", slog.LevelWarn, fmt.Sprintf("cannot record silent nodes as down: %v", err))
	}
}

// nodesDown records nodes as down and lets the others know at once.
func (c *Controller) nodesDown(ctx context.Context, refs []*metapb.NodeRef) error {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Cluster.SessionTimeout)
	defer cancel()
	res, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_NodesDown{NodesDown: &metapb.NodesDownOp{Nodes: refs}}})
	if err != nil {
		return err
	}
	names := make([]string, len(refs))
	for i, r := range refs {
		names[i] = r.Node
	}
	c.log.Warn("nodes are down", "nodes", names)
	c.tellAll(ctx, res.Version, names)
	return nil
}

// tellAll tells the nodes that are there of a topology. A node that misses it learns of it a moment later.
func (c *Controller) tellAll(ctx context.Context, version uint64, but []string) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout/2)
	defer cancel()
	var wg sync.WaitGroup
	for _, n := range c.Topology().SortedNodes() {
		if n.ID == c.cfg.Node || n.State != cluster.NodeActive || slices.Contains(but, string(n.ID)) {
			continue
		}
		wg.Go(func() {
			if conn, err := c.cfg.Cluster.Conn(n.ID); err == nil {
				_, _ = nodepb.NewMemberClient(conn).Notify(ctx, &nodepb.NotifyRequest{Topology: version})
			}
		})
	}
	wg.Wait() // every call ends with ctx
}

// seeOut moves what lies on nodes that leave, as far as there is a place for it, and removes those that hold nothing.
func (c *Controller) seeOut(ctx context.Context) {
	t := c.Topology()
	for _, n := range t.SortedNodes() {
		if !n.Leaving || ctx.Err() != nil {
			continue
		}
		subject := "leave " + string(n.ID)
		why := c.vacate(ctx, t, n)
		if why == "" {
			_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_RemoveNode{RemoveNode: &metapb.RemoveNodeOp{Node: string(n.ID)}}})
			if err == nil {
				c.log.Info("a node has left", "node", n.ID)
				c.note(subject, slog.LevelInfo, "")
				c.refresh(ctx)
				continue
			}
			why = err.Error()
		}
		c.note(subject, slog.LevelInfo, why)
	}
}

// vacate takes one step towards an empty node and says what still lies there; "" is nothing.
func (c *Controller) vacate(ctx context.Context, t *cluster.Topology, n cluster.Node) string {
	mine := drivesOf(t, n.ID)
	stuck, moving := 0, 0
	for _, pg := range t.PGs {
		for i, id := range pg.Drives {
			switch {
			case slices.Contains(mine, id):
				if c.moveShard(ctx, t, pg, i) {
					moving++
				} else {
					stuck++
				}
			case slices.Contains(mine, pg.Previous[i]):
				moving++
			}
		}
	}
	groups := 0
	for _, g := range t.Groups {
		for _, r := range g.Replicas {
			if slices.Contains(mine, r.Drive) {
				groups++
			}
		}
	}
	switch {
	case stuck > 0:
		return fmt.Sprintf("node %s is leaving, but %d positions in placement groups have no other drive in zone %s to go to: add drives there", n.ID, stuck, n.Zone)
	case moving > 0:
		return fmt.Sprintf("node %s is leaving: shards of %d positions in placement groups are being moved", n.ID, moving)
	case groups > 0:
		return fmt.Sprintf("node %s is leaving: %d copies of metadata are being moved", n.ID, groups)
	}
	return ""
}

// moveShard gives a shard's position in a placement group to another drive of the
// zone; resynchronisation fills it, and readers ask the drive before it until that is done.
func (c *Controller) moveShard(ctx context.Context, t *cluster.Topology, pg cluster.PG, i int) bool {
	from := t.Drives[pg.Drives[i]]
	load := map[cluster.NodeID]int{}
	for _, id := range pg.Drives {
		load[t.Drives[id].Node]++
	}
	var best cluster.Drive
	for _, d := range homes(t) {
		if d.Zone != from.Zone || d.Label != from.Label || d.State != cluster.DriveActive || slices.Contains(pg.Drives, d.ID) {
			continue
		}
		if best.ID.IsZero() || load[d.Node] < load[best.Node] {
			best = d
		}
	}
	if best.ID.IsZero() || pg.DirtySince[i] != 0 {
		return !best.ID.IsZero() // a position that is being filled moves when it is
	}
	row := sysstate.PGToRow(&pg)
	row.Drives[i], row.Previous[i], row.DirtySince[i] = best.ID[:], from.ID[:], 1
	_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_UpdatePg{UpdatePg: &metapb.UpdatePGOp{Pg: row, IfEpoch: uint64(pg.Epoch)}}})
	return err == nil || !refused(err) || errs.Is(err, errs.Conflict)
}
