package controller

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

const nodeName = "node.json"

// Replicas makes replicas on the drives of other nodes.
type Replicas interface {
	// CreateReplica makes an empty replica on a drive of node; one that exists under its id stays as it is.
	CreateReplica(ctx context.Context, node cluster.NodeID, g cluster.GroupID, r cluster.Replica) error
}

// Proposer commits commands in groups that may be led on other nodes. Errors are those of multiraft.Host.Propose.
type Proposer interface {
	Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error)
}

// Cluster makes a controller one of several. Zone, Conn, Caller, Proposer and Replicas are required.
type Cluster struct {
	Zone      cluster.Zone // of this node; all its drives stand in it
	Advertise []string     // host:port where the other nodes reach this one, best first
	Peers     []string     // addresses to try besides those that are known, whichever nodes are there
	Version   string       // of the software, for people

	Init     bool   // make a new store if nothing is here
	StoreID  string // of the store that Init makes: 32 hex digits; "" is drawn
	SealedCA []byte // the certificate authority of the store that Init makes; opaque

	// Conn is the way to a node's Member service. It never blocks.
	Conn func(cluster.NodeID) (grpc.ClientConnInterface, error)
	// Caller is the authenticated node that a call came from.
	Caller   func(context.Context) (cluster.NodeID, error)
	Proposer Proposer
	Replicas Replicas
	// SessionEnded is called when this node's session is over, before anybody counts on
	// that (see Readers): reads in progress must end (design rule 17). Quick; nil is none.
	SessionEnded func()

	SessionEvery   time.Duration // between renewals of this node's session; 0 is 1 s
	SessionTimeout time.Duration // a node silent for so long is recorded as down, and a gateway's configuration lease is over; 0 is 3 s
	// LeaderGrace is how long nodes have to show up at a new leader of the system group. 0 is 2 s.
	LeaderGrace time.Duration
	// ConfigLease is how long a gateway acts on its copy of the configuration after
	// it asked for the lease; below SessionTimeout by what clocks may drift in it. 0 is 5/6 of that.
	ConfigLease time.Duration
	GrowAfter   time.Duration // drives that join are waited for so long before placement groups are made with them; 0 is 3 s
	LeadersRest time.Duration // a leader stays at least so long before it is moved to spread the load; 0 is 20 s
}

func (c *Config) completeCluster() error {
	cl := *c.Cluster
	c.Cluster = &cl
	bad := func(format string, args ...any) error {
		return errs.Newf(errs.InvalidArgument, "start", "", format, args...)
	}
	switch {
	case c.Node == "":
		return bad("a node of a cluster needs a name")
	case cl.Zone == "":
		return bad("node %s needs a zone", c.Node)
	case c.Groups != nil && (cl.Conn == nil || cl.Caller == nil || cl.Proposer == nil || cl.Replicas == nil):
		return bad("node %s has no way to the others", c.Node)
	}
	for _, s := range c.Slots {
		if s.Zone != cl.Zone {
			return bad("drive %s stands in zone %q, but its node %s in zone %q: all drives of a node stand in its zone", s.Path, s.Zone, c.Node, cl.Zone)
		}
	}
	setDefault(&cl.SessionEvery, time.Second)
	setDefault(&cl.SessionTimeout, 3*time.Second)
	setDefault(&cl.LeaderGrace, 2*time.Second)
	setDefault(&cl.ConfigLease, cl.SessionTimeout*5/6)
	setDefault(&cl.GrowAfter, 3*time.Second)
	setDefault(&cl.LeadersRest, 20*time.Second)
	if cl.ConfigLease >= cl.SessionTimeout {
		return bad("the configuration lease (%s) must be shorter than the session's timeout (%s)", cl.ConfigLease, cl.SessionTimeout)
	}
	return nil
}

// NodeIdentity is node.json: which node of which store a data folder belongs to.
type NodeIdentity struct {
	Format  int                         `json:"format"` // 1
	StoreID string                      `json:"store_id"`
	Node    cluster.NodeID              `json:"node"`
	Zone    cluster.Zone                `json:"zone"`
	Peers   map[cluster.NodeID][]string `json:"peers,omitempty"` // addresses of the other nodes, as known last
}

func readNode(fsys vfsx.FS, dir string) (*NodeIdentity, error) {
	id := &NodeIdentity{}
	ok, err := readJSON(fsys, filepath.Join(dir, nodeName), id)
	if err != nil || !ok {
		return nil, errs.Wrap(errs.KindOf(err), "start", filepath.Join(dir, nodeName), err)
	}
	if id.Format != 1 || id.StoreID == "" || id.Node == "" || id.Zone == "" {
		return nil, errs.Newf(errs.Corrupt, "start", filepath.Join(dir, nodeName), "it does not name a node; restore it from a backup of the data folder, or write store_id, node and zone again")
	}
	return id, nil
}

// WriteNode makes a data folder that of a node which has joined a store.
func WriteNode(fsys vfsx.FS, dir string, id NodeIdentity) error {
	id.Format = 1
	if err := mkdir(fsys, dir); err != nil {
		return errs.Wrap(errs.AccessDenied, "start", dir, err)
	}
	return errs.Wrap(errs.DriveFailed, "start", filepath.Join(dir, nodeName), writeJSON(fsys, filepath.Join(dir, nodeName), &id))
}

// PendingStore is the id of the store whose making in the data folder was interrupted, "" if none was. A start
// with Cluster.Init goes on with that one, whatever Cluster.StoreID says.
func PendingStore(fsys vfsx.FS, dir string) (string, error) {
	in, err := readIntent(fsys, dir)
	if err != nil || in == nil {
		return "", errs.Wrap(errs.KindOf(err), "start", filepath.Join(dir, intentName), err)
	}
	return in.StoreID, nil
}

// InspectNode looks whether the data folder belongs to the node that cfg speaks of.
// Nil means that nothing is here yet, so that the node is to make a store (Init) or
// to join one. Everything that is in the way of either, or of a start, is an error
// that says what to do. It writes nothing and takes no lock.
func InspectNode(cfg Config) (*NodeIdentity, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return inspectNode(&cfg)
}

func inspectNode(cfg *Config) (*NodeIdentity, error) {
	refuse := func(format string, args ...any) (*NodeIdentity, error) {
		return nil, errs.Newf(errs.InvalidArgument, "start", cfg.DataDir, format, args...)
	}
	id, err := readNode(cfg.FS, cfg.DataDir)
	if err != nil {
		return nil, err
	}
	if cfg.Cluster == nil {
		if id != nil {
			return refuse("the folder belongs to node %s (zone %s) of the cluster %s: start it with --node %s --zone %s", id.Node, id.Zone, id.StoreID, id.Node, id.Zone)
		}
		return nil, nil
	}
	if id != nil {
		switch {
		case id.Node != cfg.Node:
			return refuse("the folder belongs to node %q, not to %q: start it with --node %s, or choose another data folder", id.Node, cfg.Node, id.Node)
		case id.Zone != cfg.Cluster.Zone:
			return refuse("node %s belongs to zone %q, where its data was placed, not to zone %q: start it with --zone %s. To move it, let it leave and join under another name with empty drives", id.Node, id.Zone, cfg.Cluster.Zone, id.Zone)
		}
		return id, nil
	}
	in, err := readIntent(cfg.FS, cfg.DataDir)
	if err != nil {
		return nil, errs.Wrap(errs.KindOf(err), "start", cfg.DataDir, err)
	}
	if in != nil {
		if in.Node != cfg.Node || !cfg.Cluster.Init {
			return refuse("the making of store %s by node %q was interrupted here: go on with it (--cluster-init --node %s), or remove %s and empty the drives", in.StoreID, in.Node, in.Node, intentName)
		}
		return nil, nil
	}
	if reg, err := readRegistry(cfg.FS, cfg.DataDir); err != nil || reg != nil {
		return refuse("there is a store of one process in this folder: start it without cluster settings, or choose an empty data folder and empty drives for node %s", cfg.Node)
	}
	for _, s := range cfg.Slots {
		if st, ident, err := drive.Inspect(cfg.FS, s.Path); err == nil && st == drive.Formatted {
			return refuse("drive %s belongs to store %s (node %s), but the data folder does not say so: restore the data folder with its %s, or empty the drive", s.Path, ident.StoreID, ident.Node, nodeName)
		}
	}
	return nil, nil
}

// startNode brings a node of a cluster up with what is on its own disks; it waits
// for no other node. What needs the others follows when they are there.
func (c *Controller) startNode(ctx context.Context) error {
	id, err := inspectNode(&c.cfg)
	if err != nil {
		return err
	}
	if id == nil {
		if !c.cfg.Cluster.Init {
			return errs.Newf(errs.InvalidArgument, "start", c.cfg.DataDir, "node %s belongs to no cluster yet: let it join one with a token of that (--join with --join-token), or make a new one (--cluster-init)", c.cfg.Node)
		}
		return c.startStore(ctx)
	}
	sit, err := inspect(&c.cfg)
	if err != nil {
		return err
	}
	if err := sit.Err(); err != nil {
		return err
	}
	if sit.intent != nil { // the store was complete
		if err := removeFile(c.cfg.FS, c.intentPath()); err != nil {
			return errs.Wrap(errs.DriveFailed, "start", c.intentPath(), err)
		}
		sit.intent = nil
	}
	c.dropIntent(sit)
	c.peers.known(id.Peers)
	c.cl.identity = *id
	if err := c.openFound(sit); err != nil {
		return err
	}
	c.refresh(ctx)
	c.flushRegistry()
	return nil
}

// nodeMade has the data folder of a store's first node say so.
func (c *Controller) nodeMade(store string) error {
	c.cl.identity = NodeIdentity{Format: 1, StoreID: store, Node: c.cfg.Node, Zone: c.cfg.Cluster.Zone}
	return WriteNode(c.cfg.FS, c.cfg.DataDir, c.cl.identity)
}

// saveNode writes the other nodes' addresses down when they have changed.
func (c *Controller) saveNode() {
	peers := map[cluster.NodeID][]string{}
	for _, n := range c.Topology().SortedNodes() {
		if n.ID != c.cfg.Node {
			peers[n.ID] = c.Addresses(n.ID)
		}
	}
	if len(peers) == 0 {
		return
	}
	same := len(peers) == len(c.cl.identity.Peers)
	for id, a := range peers {
		same = same && slices.Equal(a, c.cl.identity.Peers[id])
	}
	if same {
		return
	}
	next := c.cl.identity
	next.Peers = peers
	if err := WriteNode(c.cfg.FS, c.cfg.DataDir, next); err != nil {
		c.noteErr("node", fmt.Sprintf("%s in the data folder cannot be written: %v", nodeName, err))
		return
	}
	c.cl.identity = next
}

// driveNode refuses a formatted drive that is another node's.
func driveNode(cfg *Config, ident drive.Identity) string {
	if cfg.Cluster == nil || ident.Node == string(cfg.Node) {
		return ""
	}
	return fmt.Sprintf("belongs to node %s (slot %s): put it back there", ident.Node, ident.Path)
}

// homes are the drives that may hold something: not those of nodes that leave.
func homes(t *cluster.Topology) []cluster.Drive {
	return slices.DeleteFunc(t.SortedDrives(), func(d cluster.Drive) bool { return t.Nodes[d.Node].Leaving })
}

// manyNodes reports whether drives stand on more than one node.
func manyNodes(ds []cluster.Drive) bool {
	return slices.ContainsFunc(ds, func(d cluster.Drive) bool { return d.Node != ds[0].Node })
}

// drivesOf are a node's drives that are not removed.
func drivesOf(t *cluster.Topology, n cluster.NodeID) (ids []storage.DriveID) {
	for _, d := range t.SortedDrives() {
		if d.Node == n {
			ids = append(ids, d.ID)
		}
	}
	return ids
}
