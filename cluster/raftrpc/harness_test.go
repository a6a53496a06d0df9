package raftrpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/netsim"
	"cairn/cluster/rpc"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

// store is a state machine of registers: a command is "key value".
type store struct{ g cluster.GroupID }

func rowOf(g cluster.GroupID, key string) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{0x20}, uint64(g)), key...)
}

func (m store) Apply(b *pebble.Batch, entries []cluster.Entry) ([][]byte, error) {
	out := make([][]byte, len(entries))
	for _, e := range entries {
		k, v, _ := bytes.Cut(e.Data, []byte(" "))
		if err := b.Set(rowOf(m.g, string(k)), v, nil); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (m store) Spans(pebble.Reader) ([]cluster.KeySpan, error) {
	return []cluster.KeySpan{{Start: rowOf(m.g, ""), End: rowOf(m.g+1, "")}}, nil
}

func (store) Reset() {}

// Growth says that all but what begins with "-" grows.
func (store) Growth(command []byte) cluster.Growth {
	if bytes.HasPrefix(command, []byte("-")) {
		return cluster.GrowthNone
	}
	return cluster.GrowthLarge
}

// node is a process with one drive.
type node struct {
	id    cluster.NodeID
	drive storage.DriveID
	full  atomic.Bool // the drive is
	stuck sync.Map    // cluster.GroupID -> chan struct{}: its appends are not answered before that is closed
	host  *multiraft.Host
	t     *Transport
	net   *netsim.Host
	srv   *rpc.Server
	peers *rpc.Client
	fs    *vfsx.Mem
	beats atomic.Int64 // messages of heartbeats that came
}

// stuck is a node's receiving end, where some groups' appends get stuck as on a drive that hangs.
type stuck struct {
	multiraft.Transport
	n *node
}

func (s stuck) AppendEntries(ctx context.Context, e multiraft.Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	if ch, ok := s.n.stuck.Load(e.Group); ok && !multiraft.IsHeartbeat(req) {
		<-ch.(chan struct{})
		return nil, errs.New(errs.Unavailable, "test", "", "it was stuck")
	}
	return s.Transport.AppendEntries(ctx, e, req)
}

func (n *node) space() (free, reserve int64, err error) {
	if n.full.Load() {
		return 0, 1000, nil
	}
	return 1 << 40, 1000, nil
}

// world is some nodes and the network between them.
type world struct {
	t     testing.TB
	sim   *netsim.Sim
	net   *netsim.Network
	nodes []*node
	cfg   func(i int, m *multiraft.Config, r *Config)
	mu    sync.Mutex
	where map[cluster.ReplicaID]cluster.NodeID
	tcp   bool     // over the loopback instead
	at    sync.Map // address -> the real one
}

func nodeID(i int) cluster.NodeID { return cluster.NodeID(fmt.Sprint("n", i)) }

func newWorld(t testing.TB, n int, cfg func(i int, m *multiraft.Config, r *Config)) *world {
	return newWorldOver(t, n, false, cfg)
}

func newWorldOver(t testing.TB, n int, tcp bool, cfg func(i int, m *multiraft.Config, r *Config)) *world {
	w := &world{t: t, sim: netsim.New(1), cfg: cfg, where: map[cluster.ReplicaID]cluster.NodeID{}, tcp: tcp}
	w.net = netsim.NewNetwork(w.sim)
	for i := range n {
		w.nodes = append(w.nodes, &node{id: nodeID(i), drive: storage.DriveID{byte(i + 1)}, fs: vfsx.NewMem()})
		w.start(i)
	}
	return w
}

func addr(n cluster.NodeID) string { return string(n) + ":9002" }

func (w *world) start(i int) {
	w.t.Helper()
	n := w.nodes[i]
	n.net = w.net.Host(netsim.Place{Node: n.id})
	n.peers = w.client(n)
	rc := Config{
		Self: n.id,
		Conn: n.peers.ConnOf(rpc.Raft),
		Resolve: func(_ cluster.GroupID, r cluster.ReplicaID) (cluster.NodeID, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			id, ok := w.where[r]
			return id, ok
		},
		Caller: rpc.Caller,
		Clock:  func(peer cluster.NodeID, d time.Duration) { n.host.NoteClock(peer, d) },

		Space:     func(r cluster.ReplicaID) multiraft.Space { return n.host.SpaceOf(r) },
		NoteSpace: func(r cluster.ReplicaID, s multiraft.Space) { n.host.NoteSpace(r, s) },
	}
	mc := multiraft.Config{Node: n.id, NewStateMachine: func(g cluster.GroupID) multiraft.StateMachine { return store{g} },
		ProposalsMax: 64, TrailingLogs: 64, SnapshotEntries: 100}
	if w.cfg != nil {
		w.cfg(i, &mc, &rc)
	}
	rc.Now = mc.Now
	var err error
	if n.t, err = New(rc); err != nil {
		w.t.Fatal(err)
	}
	mc.Remote = n.t
	if n.host, err = multiraft.New(mc); err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(n.fs.MkdirAll("d", 0o755), syncDir(n.fs, "/"), n.host.AddDrive(multiraft.Drive{ID: n.drive, FS: n.fs, Dir: "d", Space: n.space})); err != nil {
		w.t.Fatal(err)
	}
	n.srv = newServer(n.id)
	n.t.Register(counted{n.srv, n}, stuck{n.host.Transport(), n})
	var l net.Listener
	if w.tcp {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			w.at.Store(addr(n.id), l.Addr().String())
		}
	} else {
		l, err = n.net.Listen(addr(n.id))
	}
	if err != nil {
		w.t.Fatal(err)
	}
	go n.srv.Serve(l)
}

func syncDir(fs *vfsx.Mem, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// counted registers services so that the messages of heartbeats are counted.
type counted struct {
	grpc.ServiceRegistrar
	n *node
}

func (c counted) RegisterService(d *grpc.ServiceDesc, impl any) {
	with := *d
	with.Streams = nil
	for _, s := range d.Streams {
		h := s.Handler
		s.Handler = func(srv any, ss grpc.ServerStream) error { return h(srv, counting{ss, c.n}) }
		with.Streams = append(with.Streams, s)
	}
	c.ServiceRegistrar.RegisterService(&with, impl)
}

// counting counts the messages of heartbeats.
type counting struct {
	grpc.ServerStream
	n *node
}

func (c counting) RecvMsg(m any) error {
	err := c.ServerStream.RecvMsg(m)
	if _, ok := m.(*nodepb.RaftBeats); ok && err == nil {
		c.n.beats.Add(1)
	}
	return err
}

const storeID = "a-store"

func newServer(id cluster.NodeID) *rpc.Server {
	return rpc.NewServer(rpc.ServerConfig{Self: id, StoreID: func() string { return storeID }})
}

func (w *world) client(n *node) *rpc.Client {
	return rpc.NewClient(rpc.ClientConfig{
		Self: n.id, StoreID: func() string { return storeID },
		Addresses: func(to cluster.NodeID) []string { return []string{addr(to)} },
		Dial: func(ctx context.Context, a string) (net.Conn, error) {
			if w.tcp {
				real, _ := w.at.Load(a)
				return (&net.Dialer{}).DialContext(ctx, "tcp", real.(string))
			}
			return n.net.Dial(ctx, a)
		},
	})
}

// halt ends a node's network and then, when nothing more comes in or goes out, the rest.
func (n *node) halt(t testing.TB) {
	t.Helper()
	n.net.Kill()
	if err := n.host.Close(); err != nil {
		t.Error(err)
	}
	n.t.Close()
	n.stop()
}

func (n *node) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	n.srv.Stop(ctx)
	n.peers.Close()
}

func (w *world) close() {
	for _, n := range w.nodes {
		n.halt(w.t)
	}
	w.sim.Close()
}

func (w *world) replicaOn(g cluster.GroupID, i int) cluster.Replica {
	r := cluster.Replica{ID: cluster.MakeReplicaID(g, uint64(i+1)), Drive: w.nodes[i].drive, Voter: true}
	w.mu.Lock()
	w.where[r.ID] = nodeID(i)
	w.mu.Unlock()
	return r
}

// birth makes a group with voters on some nodes and waits for its leader.
func (w *world) birth(g cluster.GroupID, voters ...int) {
	w.t.Helper()
	rec := cluster.Group{ID: g}
	for _, i := range voters {
		rec.Replicas = append(rec.Replicas, w.replicaOn(g, i))
	}
	for _, i := range voters {
		if err := w.nodes[i].host.Birth(rec, func(*pebble.Batch) error { return nil }); err != nil {
			w.t.Fatal(err)
		}
	}
	w.nodes[voters[0]].host.Campaign(g)
	w.leader(g)
}

// leader is the node that leads and can serve.
func (w *world) leader(g cluster.GroupID, but ...int) int {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
	next:
		for i, n := range w.nodes {
			for _, b := range but {
				if b == i {
					continue next
				}
			}
			for _, s := range n.host.Status() {
				if s.Group == g && s.Local {
					return i
				}
			}
		}
	}
	w.t.Fatalf("group %d has no leader", g)
	return 0
}

func (w *world) put(g cluster.GroupID, key, value string, but ...int) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err := w.nodes[w.leader(g, but...)].host.Propose(ctx, g, []byte(key+" "+value))
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			w.t.Fatal(err)
		}
	}
}

// local is what a node's own replica has; "" is nothing.
func (w *world) local(i int, g cluster.GroupID, key string) (v string) {
	_ = w.nodes[i].host.ReadLocal(g, func(r pebble.Reader) error {
		b, c, err := r.Get(rowOf(g, key))
		if err == nil {
			v = string(b)
			err = c.Close()
		}
		return err
	})
	return v
}

// await waits until a node's replica has a value, and returns how long that took.
func (w *world) await(i int, g cluster.GroupID, key, value string) time.Duration {
	w.t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		took := time.Since(began)
		if w.local(i, g, key) == value {
			return took
		}
		if took > 20*time.Second {
			w.t.Fatalf("node %d does not get %s=%s", i, key, value)
		}
	}
}

// hole makes a node receive and send nothing.
func (w *world) hole(i int) {
	w.rules(netsim.Rule{From: "node:" + string(nodeID(i)), BlackHole: true})
}

func (w *world) rules(r ...netsim.Rule) {
	if err := w.sim.Set(netsim.Rules{Rules: r}); err != nil {
		w.t.Fatal(err)
	}
}
