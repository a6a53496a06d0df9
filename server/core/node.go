package core

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/controller"
	"cairn/cluster/metarpc"
	"cairn/cluster/multiraft"
	"cairn/cluster/netsim"
	"cairn/cluster/pki"
	"cairn/cluster/raftrpc"
	"cairn/cluster/rpc"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/pinrpc"
	"cairn/storage/shardrpc"
	"cairn/storage/vfsx"
)

// Files in the data folder that belong to a node's place in a cluster, besides the controller's.
const (
	identityName = "node.pem"  // certificate and keys: secret
	sealedName   = "ca.sealed" // of the store that this node makes, until it is made
)

// joinTimeout bounds how long a start waits to be let into a cluster.
const joinTimeout = 10 * time.Minute

// stopTimeout bounds how long a stopping node waits for the calls of others.
const stopTimeout = 5 * time.Second

// Listen makes the listener of a node's cluster address.
type Listen func(ctx context.Context, addr string) (net.Listener, error)

// Dial makes a raw connection to another node.
type Dial func(ctx context.Context, addr string) (net.Conn, error)

// node is what a process has that is one of a cluster's: its place among the
// others, and the way to them and from them.
type node struct {
	c        *Core
	self     cluster.NodeID
	zone     cluster.Zone
	storeID  string
	identity atomic.Pointer[pki.Identity] // nil in plaintext
	sealed   []byte                       // the CA, of a store that this start makes

	sim    *netsim.Sim // nil unless asked for
	dial   Dial
	client *rpc.Client
	server *rpc.Server
	raft   *raftrpc.Transport
	router *metarpc.Router
	shards *shardrpc.Client
	drives *shardrpc.Server
	pins   *pinrpc.Pins

	listener net.Listener
	stop     context.CancelFunc
	running  sync.WaitGroup // goroutines that end with stop, and Serve
}

// openNode finds out which node of which store this is, joining or founding one
// if it is none yet, and makes the way to the others. The controller is told of it in cfg.
func openNode(ctx context.Context, c *Core, cfg *controller.Config) (_ *node, err error) {
	n := &node{c: c, self: cluster.NodeID(c.cfg.Node), zone: cluster.Zone(c.cfg.Zone), dial: c.env.Dial}
	advertise, err := c.cfg.Advertise()
	if err != nil {
		return nil, err
	}
	cfg.Node = n.self
	cfg.Cluster = &controller.Cluster{
		Zone: n.zone, Advertise: []string{advertise}, Peers: c.cfg.Join, Version: c.env.Version, Init: c.cfg.ClusterInit,
		Conn:   func(id cluster.NodeID) (grpc.ClientConnInterface, error) { return n.client.Conn(id, rpc.Meta) },
		Caller: rpc.Caller, Proposer: n, Replicas: n, SessionEnded: c.Pins.Abort,
	}
	known, err := controller.InspectNode(*cfg)
	if err != nil {
		return nil, err
	}
	// The address before the membership: a port that is taken should not cost a token.
	listen := c.env.Listen
	if listen == nil {
		listen = func(ctx context.Context, addr string) (net.Listener, error) {
			return (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		}
	}
	if n.listener, err = listen(ctx, c.cfg.ClusterListen); err != nil {
		return nil, fmt.Errorf("the cluster address %s cannot be used: %w; choose another with --cluster-listen", c.cfg.ClusterListen, err)
	}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	bg, stop := context.WithCancel(context.Background())
	n.stop = stop
	if err := n.simulate(bg, cfg); err != nil {
		return nil, err
	}
	switch {
	case known != nil:
		n.storeID = known.StoreID
		err = n.loadIdentity()
	case c.cfg.ClusterInit:
		err = n.found(ctx)
	default:
		err = n.join(ctx, cfg, advertise)
	}
	if err != nil {
		return nil, err
	}
	if err := n.connect(cfg); err != nil {
		return nil, err
	}
	return n, nil
}

// simulate puts the network simulator between this node and the others, if the configuration asks for it.
func (n *node) simulate(bg context.Context, cfg *controller.Config) error {
	file := n.c.cfg.SimulateNetwork
	if file == "" {
		return nil
	}
	n.sim = netsim.New(uint64(cfg.Now().UnixNano()))
	dial := n.dial
	if dial == nil {
		dial = func(ctx context.Context, addr string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		}
	}
	locate := netsim.Locator(func() *cluster.Topology {
		if n.c.Controller == nil {
			return &cluster.Topology{}
		}
		return n.c.Controller.Topology()
	})
	n.dial = Dial(n.sim.Dialer(netsim.Place{Node: n.self, Zone: n.zone}, locate, netsim.DialFunc(dial)))
	n.running.Go(func() {
		n.sim.Watch(bg, file, time.Second, func(r netsim.Rules, err error) {
			if err != nil {
				n.c.env.Logger.Warn("the rules of the network simulator can't be read; the last ones hold", "err", err)
				return
			}
			n.c.env.Logger.Warn("the network between nodes is simulated", "rules", len(r.Rules))
		})
	})
	return nil
}

func (n *node) path(name string) string { return filepath.Join(n.c.cfg.DataDir, name) }

// loadIdentity reads the certificate that this node got when it joined.
func (n *node) loadIdentity() error {
	if n.c.cfg.ClusterPlaintext {
		return nil
	}
	b, err := readSmall(n.c.env.FS, n.path(identityName))
	if err != nil {
		return errs.Newf(errs.InvalidArgument, "start", n.path(identityName),
			"this node's certificate can't be read (%v): restore the file, or, if the cluster runs without TLS, set --cluster-plaintext", err)
	}
	id, err := pki.Decode(b)
	if err != nil {
		return errs.Newf(errs.InvalidArgument, "start", n.path(identityName), "this node's certificate is damaged (%v): restore the file", err)
	}
	if id.StoreID != n.storeID || id.Node != n.self {
		return errs.Newf(errs.InvalidArgument, "start", n.path(identityName), "the certificate is that of node %s of store %s; this is node %s of store %s: restore the right file", id.Node, id.StoreID, n.self, n.storeID)
	}
	n.identity.Store(id)
	return nil
}

// saveIdentity makes a certificate durable, and then this node's.
func (n *node) saveIdentity(id *pki.Identity) error {
	b, err := id.Encode()
	if err != nil {
		return err
	}
	if err := writeSmall(n.c.env.FS, n.path(identityName), b); err != nil {
		return err
	}
	n.identity.Store(id)
	return nil
}

// found prepares the making of a new store. An interrupted one goes on with the authority that it began with. A new one is
// refused where the others of a cluster answer: then this node belonged to it, and lost its data folder.
func (n *node) found(ctx context.Context) error {
	fs, now := n.c.env.FS, n.c.env.Now()
	if err := makeDataDir(fs, n.c.cfg.DataDir); err != nil {
		return err
	}
	pending, err := controller.PendingStore(fs, n.c.cfg.DataDir)
	if err != nil {
		return err
	}
	if n.storeID = pending; pending == "" {
		if addr := n.dialer().Serving(ctx, n.c.cfg.Join); addr != "" {
			return errs.Newf(errs.Conflict, "start", n.c.cfg.DataDir,
				"a node of a cluster answers at %s, so node %s makes no new one. If it belonged to that cluster and lost its data folder: have it seen out there ('cairn cluster leave %s', asked of another node), then let it join under another name, with a token and without --cluster-init. If it has nothing to do with that cluster, leave %s out of --join",
				addr, n.self, n.self, addr)
		}
		var raw [16]byte
		if _, err := io.ReadFull(n.c.env.Rand, raw[:]); err != nil {
			return err
		}
		n.storeID = hex.EncodeToString(raw[:])
	}
	if n.c.cfg.ClusterPlaintext {
		return nil
	}
	if b, err := readSmall(fs, n.path(identityName)); err == nil {
		id, err := pki.Decode(b)
		sealed, err2 := readSmall(fs, n.path(sealedName))
		if err == nil && err2 == nil && id.Node == n.self && (pending == "" || id.StoreID == pending) {
			n.storeID, n.sealed = id.StoreID, sealed
			n.identity.Store(id)
			return nil
		}
	}
	ca, err := pki.NewCA(n.storeID, now)
	if err != nil {
		return err
	}
	seal := pki.NewSealKey()
	if n.sealed, err = ca.Seal(seal); err != nil {
		return err
	}
	if err := writeSmall(fs, n.path(sealedName), n.sealed); err != nil {
		return err
	}
	id, err := ca.NewNode(n.self, seal, now)
	if err != nil {
		return err
	}
	return n.saveIdentity(id)
}

// made is called when the controller has started: the store that this node was making, if any, is made, and has its
// authority. A start that was cut off may have left the file.
func (n *node) made() {
	fs, path := n.c.env.FS, n.path(sealedName)
	err := fs.Remove(path)
	if errors.Is(err, iofs.ErrNotExist) {
		return
	}
	if err == nil {
		err = vfsx.SyncDir(fs, n.c.cfg.DataDir)
	}
	if err != nil {
		n.c.env.Logger.Warn("a file that is not needed any more cannot be removed", "path", path, "err", err)
	}
}

// join asks a cluster to let this node in.
func (n *node) join(ctx context.Context, cfg *controller.Config, advertise string) error {
	text, err := n.c.cfg.Token()
	if err != nil {
		return err
	}
	if text == "" {
		return errs.Newf(errs.InvalidArgument, "start", cfg.DataDir,
			"node %s belongs to no cluster yet: let it join one with the token that 'cairn cluster token' prints on a member (--join-token), or make a new one (--cluster-init)", n.self)
	}
	token, err := pki.ParseToken(text)
	if err != nil {
		return err
	}
	if err := makeDataDir(n.c.env.FS, cfg.DataDir); err != nil {
		return err
	}
	log := n.c.env.Logger
	log.Info("joining", "store", token.StoreID)
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	joined, err := rpc.Join(ctx, rpc.JoinConfig{
		Dialer: n.dialer(), Token: token, Addresses: n.c.cfg.Join, Plaintext: n.c.cfg.ClusterPlaintext,
		Node:     &nodepb.NodeInfo{Node: string(n.self), Zone: string(n.zone), Addresses: []string{advertise}, Software: n.c.env.Version},
		Progress: func(err error) { log.Warn("not let in yet: trying again", "err", err) },
	})
	if err != nil {
		return err
	}
	n.storeID = joined.StoreID
	if joined.Identity != nil {
		if err := n.saveIdentity(joined.Identity); err != nil {
			return err
		}
	}
	peers := map[cluster.NodeID][]string{}
	for _, o := range joined.Nodes {
		if o.Node != string(n.self) {
			peers[cluster.NodeID(o.Node)] = o.Addresses
		}
	}
	return controller.WriteNode(n.c.env.FS, cfg.DataDir, controller.NodeIdentity{Format: 1, StoreID: n.storeID, Node: n.self, Zone: n.zone, Peers: peers})
}

func (n *node) dialer() rpc.Dialer {
	return rpc.Dialer{Dial: n.dial, Now: n.c.env.Now, Software: n.c.env.Version}
}

// connect makes everything that speaks to other nodes, but the serving of theirs. The
// controller does not exist yet: what asks it is asked only once it does.
func (n *node) connect(cfg *controller.Config) (err error) {
	c := n.c
	var identity func() *pki.Identity
	if !c.cfg.ClusterPlaintext {
		identity = n.identity.Load
	}
	store := func() string { return n.storeID }
	n.client = rpc.NewClient(rpc.ClientConfig{
		Self: n.self, StoreID: store, Identity: identity, Dial: n.dial, Software: c.env.Version, Logger: c.env.Logger, Now: c.env.Now,
		Addresses: func(id cluster.NodeID) []string { return c.Controller.Addresses(id) },
	})
	n.server = rpc.NewServer(rpc.ServerConfig{
		Self: n.self, StoreID: store, Identity: identity, Software: c.env.Version, Logger: c.env.Logger, Now: c.env.Now,
		Admit: func(id cluster.NodeID) error { return c.Controller.Member(id) },
	})
	resolve := func(g cluster.GroupID, r cluster.ReplicaID) (cluster.NodeID, bool) { return c.Controller.Resolve(g, r) }
	n.raft, err = raftrpc.New(raftrpc.Config{
		Self: n.self, Conn: n.client.ConnOf(rpc.Raft), Resolve: resolve, Caller: rpc.Caller, Logger: c.env.Logger, Now: c.env.Now,
		Clock:     func(id cluster.NodeID, off time.Duration) { c.Groups.NoteClock(id, off) },
		Space:     func(id cluster.ReplicaID) multiraft.Space { return c.Groups.SpaceOf(id) },
		NoteSpace: func(id cluster.ReplicaID, low multiraft.Space) { c.Groups.NoteSpace(id, low) },
	})
	if err != nil {
		return err
	}
	n.shards = shardrpc.NewClient(shardrpc.Config{Conn: n.client.ConnOf(rpc.Bulk), Reachable: n.client.Reachable})
	n.pins = pinrpc.New(pinrpc.Config{Self: n.self, Registry: c.Pins, Nodes: n.readers, Conn: n.client.ConnOf(rpc.Meta)})
	cfg.Cluster.StoreID, cfg.Cluster.SealedCA = n.storeID, n.sealed
	return nil
}

// Propose commits a command, wherever the group is led.
func (n *node) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	return n.router.Propose(ctx, g, data)
}

// CreateReplica makes an empty replica on a drive of another node.
func (n *node) CreateReplica(ctx context.Context, at cluster.NodeID, g cluster.GroupID, r cluster.Replica) error {
	return n.router.CreateReplica(ctx, at, g, r)
}

// setGroups makes what stands on the Raft groups, which stand on connect.
func (n *node) setGroups(host *multiraft.Host) {
	n.router = metarpc.NewRouter(metarpc.Config{
		Self: n.self, Host: host, Conn: n.client.ConnOf(rpc.Meta),
		Topology: func() *cluster.Topology { return n.c.Controller.Topology() },
		Resolve: func(g cluster.GroupID, r cluster.ReplicaID) (cluster.NodeID, bool) {
			return n.c.Controller.Resolve(g, r)
		},
	})
}

// serve answers the other nodes from now on.
func (n *node) serve() {
	c := n.c
	n.drives = shardrpc.NewServer(shardrpc.ServerConfig{Drives: c.Controller.Store, Draining: n.server.Draining()})
	n.raft.Register(n.server, c.Groups.Transport())
	metarpc.Register(n.server, metarpc.ServerConfig{Self: n.self, Host: c.Groups, Topology: c.Controller.Topology, Caller: rpc.Caller, Resolve: c.Controller.Resolve})
	shardrpc.Register(n.server, n.drives)
	pinrpc.Register(n.server, c.Pins)
	controller.Register(n.server, c.Controller)
	nodepb.RegisterStatusServer(n.server, lookServer{c: c})
	var identity func() *pki.Identity
	if !c.cfg.ClusterPlaintext {
		identity = n.identity.Load
	}
	controller.RegisterJoin(n.server, c.Controller, identity)
	n.running.Go(func() {
		if err := n.server.Serve(n.listener); err != nil {
			c.env.Logger.Error("the cluster address is not served any more", "err", err)
		}
	})
	if identity != nil {
		bg, stop := context.WithCancel(context.Background())
		was := n.stop
		n.stop = func() { stop(); was() }
		renew := rpc.Renewer{
			Dialer: n.dialer(), Current: identity, Save: n.saveIdentity, Logger: c.env.Logger,
			Sign: n.signOwn, Addresses: n.addresses,
		}
		n.running.Go(func() { renew.Run(bg) })
	}
}

// signOwn signs this node's next certificate with the store's authority, if there is a copy of it here.
func (n *node) signOwn(_ context.Context, csr []byte) ([]byte, error) {
	sealed, err := n.c.Controller.CA()
	if err != nil {
		return nil, err
	}
	return n.identity.Load().SignOwn(sealed, csr, n.c.env.Now())
}

// addresses are those of all other nodes, and those configured.
func (n *node) addresses() []string { return mergeAddresses(n.addressesOf()...) }

// addressesOf are the addresses of each other node, best first, and those configured.
func (n *node) addressesOf() (of [][]string) {
	for _, o := range n.c.Controller.Topology().SortedNodes() {
		if o.ID != n.self {
			of = append(of, n.c.Controller.Addresses(o.ID))
		}
	}
	return append(of, n.c.cfg.Join)
}

// mergeAddresses puts the best of every node before the second of any, each address once: whoever takes only
// some of them, as a token does, gets to know many nodes.
func mergeAddresses(of ...[]string) (all []string) {
	most := 0
	for _, addrs := range of {
		most = max(most, len(addrs))
	}
	seen := map[string]bool{}
	for i := range most {
		for _, addrs := range of {
			if i < len(addrs) && !seen[addrs[i]] {
				seen[addrs[i]] = true
				all = append(all, addrs[i])
			}
		}
	}
	return all
}

// readers are the nodes that may be reading now.
func (n *node) readers(ctx context.Context) ([]cluster.NodeID, error) {
	return n.c.Controller.Readers(ctx)
}

// store is a drive, here or on another node; nil if there is no way to it.
func (n *node) store(id storage.DriveID) storage.ShardStore {
	ctl := n.c.Controller
	if ctl.Local(id) {
		return ctl.Store(id)
	}
	d, ok := ctl.Topology().Drives[id]
	if !ok || d.State == cluster.DriveRemoved {
		return nil
	}
	return n.shards.Store(d.Node, id)
}

// distance is how far away a drive is, as chunkio wants it.
func (n *node) distance(id storage.DriveID) int {
	d := n.c.Controller.Topology().Drives[id]
	switch {
	case d.Node == n.self:
		return 0
	case d.Zone == n.zone:
		return 1
	}
	return 2
}

// NewToken makes a token that lets one node join the cluster within valid.
// InvalidRequest: this process is not a node of a cluster.
func (c *Core) NewToken(ctx context.Context, valid time.Duration) (string, error) {
	if c.node == nil {
		return "", errs.New(errs.InvalidRequest, "token", "", "this server is not a node of a cluster: one begins with --node, --zone and --cluster-init")
	}
	return c.node.newToken(ctx, valid)
}

// Leave asks a node of the cluster to leave, or to stay after all; see Controller.Leave. Error, beside its: InvalidRequest (this is no cluster).
func (c *Core) Leave(ctx context.Context, node cluster.NodeID, leaving bool) error {
	if c.node == nil {
		return errs.New(errs.InvalidRequest, "leave", "", "this server is not a node of a cluster; a drive is replaced by an empty folder in its place")
	}
	return c.Controller.Leave(ctx, node, leaving)
}

// newToken makes a token that lets one node join.
func (n *node) newToken(ctx context.Context, valid time.Duration) (string, error) {
	token, err := n.tokenOf(mergeAddresses(append([][]string{n.c.Controller.Addresses(n.self)}, n.addressesOf()...)...))
	if err != nil {
		return "", err
	}
	if err := n.c.Controller.NewToken(ctx, []byte(token.ID()), valid); err != nil {
		return "", err
	}
	return token.String(), nil
}

// tokenOf draws a token that can be used, and is not recorded yet.
func (n *node) tokenOf(addrs []string) (pki.Token, error) {
	var pin pki.Pin
	if id := n.identity.Load(); id != nil {
		pin = id.Pin()
	}
	token := pki.NewToken(n.storeID, pin, addrs)
	return token, token.Check()
}

// drain ends what would keep the server from stopping, before the planes are closed.
func (n *node) drain() {
	if n.drives != nil {
		n.drives.Close()
	}
}

// close ends all traffic. The controller is closed by then, so that leaders could be moved away.
func (n *node) close() {
	if n.raft != nil {
		n.raft.Close()
	}
	if n.shards != nil {
		n.shards.Close()
	}
	if n.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		n.server.Stop(ctx)
		cancel()
	}
	if n.client != nil {
		n.client.Close()
	}
	n.listener.Close()
	if n.stop != nil {
		n.stop()
	}
	n.running.Wait()
	if n.sim != nil {
		n.sim.Close()
	}
}

// smallMax bounds the files read whole.
const smallMax = 64 << 10

func readSmall(fs vfsx.FS, path string) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, smallMax))
}

// writeSmall replaces a file, readable by its owner only; what it answers nil for is durable.
func writeSmall(fs vfsx.FS, path string, b []byte) error {
	tmp := path + ".new"
	if err := fs.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := vfsx.CreatePrivate(fs, tmp)
	if err != nil {
		return err
	}
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return vfsx.SyncDir(fs, fs.PathDir(path))
}

// makeDataDir makes a folder that a power cut leaves where it is. Its name in the folder
// above is synced even if it is there already: a start that was cut off may not have done
// so. A folder above that this user may not read was not made by it.
func makeDataDir(fs vfsx.FS, dir string) error {
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for p := dir; p != filepath.Dir(p); p = filepath.Dir(p) {
		if err := vfsx.SyncDir(fs, filepath.Dir(p)); err != nil && !errors.Is(err, iofs.ErrPermission) {
			return err
		}
	}
	return nil
}
