package metarpc

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/cluster/rpc"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

// A test cluster: nodes n0, n1, ... of one drive each, in three zones. The first `voters`
// have replicas of the system group and of the first range.
type nodes struct {
	t    testing.TB
	topo *cluster.Topology
	all  []*node

	mu  sync.Mutex
	cut map[cluster.NodeID]bool // drops what goes to and from it, without a word

	server ServerConfig                         // of all, but for what differs
	spoil  func(method string, err error) error // changes the answers of calls, if not nil
	calls  map[string]int                       // by method
}

type node struct {
	c      *nodes
	id     cluster.NodeID
	host   *multiraft.Host
	drive  multiraft.Drive
	router *Router
	meta   *metaclient.Client
	server *grpc.Server
	lis    *bufconn.Listener
	conns  map[cluster.NodeID]*grpc.ClientConn // to others, by all Raft and metadata calls of this node
	served sync.WaitGroup
	stop   sync.Once
	ends   func() // instead of what kill does, if not nil
}

func nodeID(i int) cluster.NodeID   { return cluster.NodeID(fmt.Sprintf("n%d", i)) }
func driveID(i int) storage.DriveID { return storage.DriveID{byte(i + 1)} }
func replicaOn(g cluster.GroupID, i int) cluster.Replica {
	return cluster.Replica{ID: cluster.MakeReplicaID(g, uint64(i+1)), Drive: driveID(i), Voter: true}
}

const testStoreID = "0123456789abcdef0123456789abcdef"

func newTopology(n, voters int) *cluster.Topology {
	t := &cluster.Topology{
		Version: 1, StoreID: testStoreID, Drives: map[storage.DriveID]cluster.Drive{}, PGs: map[storage.PGID]cluster.PG{},
		Groups: map[cluster.GroupID]cluster.Group{}, Nodes: map[cluster.NodeID]cluster.Node{},
	}
	sys, first := cluster.Group{ID: cluster.SystemGroup}, cluster.Group{ID: cluster.FirstRange}
	for i := range n {
		zone := cluster.Zone(fmt.Sprintf("z%d", i%3))
		t.Nodes[nodeID(i)] = cluster.Node{ID: nodeID(i), Zone: zone, State: cluster.NodeActive}
		t.Drives[driveID(i)] = cluster.Drive{ID: driveID(i), Node: nodeID(i), Zone: zone, Path: "/d", State: cluster.DriveActive}
		if i < voters {
			sys.Replicas = append(sys.Replicas, replicaOn(sys.ID, i))
			first.Replicas = append(first.Replicas, replicaOn(first.ID, i))
		}
	}
	t.Groups[sys.ID], t.Groups[first.ID] = sys, first
	t.PGs[1] = cluster.PG{ID: 1, Scheme: storage.Scheme{K: 1}, Class: "STANDARD", Epoch: 1, Drives: []storage.DriveID{driveID(0)}, Previous: make([]storage.DriveID, 1), DirtySince: make([]storage.Epoch, 1)}
	return t
}

func newStateMachine(g cluster.GroupID) multiraft.StateMachine {
	if g == cluster.SystemGroup {
		return sysstate.New()
	}
	return rangestate.New(g)
}

func newNodes(t testing.TB, n, voters int) *nodes {
	return newNodesWith(t, n, voters, ServerConfig{})
}

func newNodesWith(t testing.TB, n, voters int, server ServerConfig) *nodes {
	c := &nodes{t: t, topo: newTopology(n, voters), cut: map[cluster.NodeID]bool{}, server: server, calls: map[string]int{}}
	for i := range n {
		c.all = append(c.all, c.newNode(i))
	}
	for _, a := range c.all {
		for _, b := range c.all {
			a.conns[b.id] = c.dial(a, b)
		}
	}
	c.birth()
	return c
}

func (c *nodes) birth() {
	for _, g := range c.topo.Groups {
		for _, a := range c.all {
			if err := a.host.Birth(g, func(b *pebble.Batch) error { return birth(b, c.topo, g.ID) }); err != nil {
				c.t.Fatal(err)
			}
		}
	}
}

func birth(b *pebble.Batch, t *cluster.Topology, g cluster.GroupID) error {
	if g != cluster.SystemGroup {
		return rangestate.Birth(b, &metapb.RangeDescriptor{Group: uint64(g)})
	}
	op := &metapb.InitStoreOp{StoreId: testStoreID}
	for _, d := range t.SortedDrives() {
		op.Drives = append(op.Drives, sysstate.DriveToRow(&d, 1))
	}
	for _, g := range t.Groups {
		op.Groups = append(op.Groups, sysstate.GroupToRow(&g))
	}
	return sysstate.Birth(b, op, 1)
}

func (c *nodes) newNode(i int) *node {
	t := c.t
	a := &node{c: c, id: nodeID(i), conns: map[cluster.NodeID]*grpc.ClientConn{}}
	fs := vfsx.NewMem()
	if err := fs.MkdirAll("d", 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if a.host, err = multiraft.New(multiraft.Config{Node: a.id, NewStateMachine: newStateMachine, Remote: raftEnd{a}}); err != nil {
		t.Fatal(err)
	}
	zone := c.topo.Nodes[a.id].Zone
	a.drive = multiraft.Drive{ID: driveID(i), Zone: zone, FS: fs, Dir: "d"}
	if err := a.host.AddDrive(a.drive); err != nil {
		t.Fatal(err)
	}
	topology := func() *cluster.Topology { return c.topo }
	a.server = grpc.NewServer(rpc.ServerOptions()...)
	cfg := c.server
	cfg.Self, cfg.Host, cfg.Topology = a.id, a.host, topology
	cfg.Caller = func(ctx context.Context) (cluster.NodeID, error) {
		if ids := metadata.ValueFromIncomingContext(ctx, "node"); len(ids) == 1 {
			return cluster.NodeID(ids[0]), nil
		}
		return "", errs.New(errs.AccessDenied, "caller", "", "a stranger")
	}
	Register(a.server, cfg)
	a.lis = bufconn.Listen(1 << 20)
	a.served.Go(func() { _ = a.server.Serve(a.lis) })
	a.router = NewRouter(Config{Self: a.id, Host: a.host, Topology: topology, Conn: func(n cluster.NodeID) (grpc.ClientConnInterface, error) {
		cc := a.conns[n]
		if cc == nil {
			return nil, errs.New(errs.Unavailable, "conn", string(n), "unknown")
		}
		return cc, nil
	}})
	a.meta = metaclient.New(metaclient.Config{Groups: a.router, Elsewhere: a.router, Topology: topology, Now: time.Now, Rand: rand.Reader})
	return a
}

// dial connects a to b; what goes over a cut node is not lost but waits for ever, like with dropped packets.
func (c *nodes) dial(a, b *node) *grpc.ClientConn {
	unary := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		c.mu.Lock()
		c.calls[method[strings.LastIndexByte(method, '/')+1:]]++
		spoil := c.spoil
		c.mu.Unlock()
		err := invoke(metadata.AppendToOutgoingContext(ctx, "node", string(a.id)), method, req, reply, cc, opts...)
		if spoil != nil {
			err = spoil(method, err)
		}
		return err
	}
	stream := func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		return open(metadata.AppendToOutgoingContext(ctx, "node", string(a.id)), desc, cc, method, opts...)
	}
	// What is first here is outermost: the errors that the tests make are seen as the network's.
	opts := append(rpc.DialOptions(), grpc.WithChainUnaryInterceptor(unary), grpc.WithChainStreamInterceptor(stream), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := b.lis.DialContext(ctx)
			if err != nil {
				return nil, err
			}
			return &holed{Conn: conn, c: c, a: a.id, b: b.id}, nil
		}))
	cc, err := grpc.NewClient("passthrough:///"+string(b.id), opts...)
	if err != nil {
		c.t.Fatal(err)
	}
	return cc
}

// holed is a connection whose packets are dropped while one of its ends is cut off.
type holed struct {
	net.Conn
	c    *nodes
	a, b cluster.NodeID
}

func (h *holed) Write(p []byte) (int, error) {
	if h.c.isCut(h.a) || h.c.isCut(h.b) {
		return len(p), nil
	}
	return h.Conn.Write(p)
}

func (c *nodes) isCut(n cluster.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cut[n]
}

func (c *nodes) setCut(n cluster.NodeID, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[n] = cut
}

// counted runs fn and answers how many unary calls went over the network meanwhile, by method.
func (c *nodes) counted(fn func()) map[string]int {
	c.mu.Lock()
	c.calls = map[string]int{}
	c.mu.Unlock()
	fn()
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.calls)
}

func (c *nodes) setSpoil(fn func(method string, err error) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spoil = fn
}

// kill ends a node's process: calls to it are refused from then on.
func (a *node) kill() {
	a.stop.Do(func() {
		if a.ends != nil {
			a.ends()
			return
		}
		a.server.Stop()
		a.served.Wait()
		for _, cc := range a.conns {
			_ = cc.Close()
		}
		if err := a.host.Close(); err != nil {
			a.c.t.Error(err)
		}
	})
}

func (c *nodes) close() {
	for _, a := range c.all {
		if a.server != nil {
			a.server.Stop() // what they still have under way ends first
		}
	}
	for _, a := range c.all {
		a.kill()
	}
}

// leaderOf waits until a node leads and can serve reads, and answers it.
func (c *nodes) leaderOf(g cluster.GroupID) *node {
	c.t.Helper()
	for range 2000 {
		for _, a := range c.all {
			if c.isCut(a.id) {
				continue
			}
			for _, s := range a.host.Status() {
				if s.Group == g && s.Local {
					return a
				}
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	c.t.Fatalf("group %d has no leader", g)
	return nil
}

// follower is a node with a voter that does not lead the group.
func (c *nodes) follower(g cluster.GroupID) *node {
	lead := c.leaderOf(g)
	for _, a := range c.all {
		if a != lead {
			return a
		}
	}
	return nil
}

// raftEnd carries a node's Raft messages by direct call.
type raftEnd struct{ a *node }

func (e raftEnd) to(ctx context.Context, env multiraft.Envelope) (multiraft.Transport, error) {
	for {
		for i, b := range e.a.c.all {
			for _, g := range []cluster.GroupID{cluster.SystemGroup, cluster.FirstRange} {
				if replicaOn(g, i).ID == env.To && !e.a.c.isCut(b.id) && !e.a.c.isCut(e.a.id) {
					return b.host.Transport(), nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func (e raftEnd) AppendEntries(ctx context.Context, env multiraft.Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.AppendEntries(ctx, env, req)
}

func (e raftEnd) RequestVote(ctx context.Context, env multiraft.Envelope, req *raft.RequestVoteRequest) (*raft.RequestVoteResponse, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.RequestVote(ctx, env, req)
}

func (e raftEnd) RequestPreVote(ctx context.Context, env multiraft.Envelope, req *raft.RequestPreVoteRequest) (*raft.RequestPreVoteResponse, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.RequestPreVote(ctx, env, req)
}

func (e raftEnd) InstallSnapshot(ctx context.Context, env multiraft.Envelope, req *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.InstallSnapshot(ctx, env, req, data)
}

func (e raftEnd) TimeoutNow(ctx context.Context, env multiraft.Envelope, term uint64) error {
	to, err := e.to(ctx, env)
	if err != nil {
		return err
	}
	return to.TimeoutNow(ctx, env, term)
}

func (e raftEnd) ConfirmTerm(ctx context.Context, env multiraft.Envelope) (uint64, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return 0, err
	}
	return to.ConfirmTerm(ctx, env)
}

// ---- commands ----

// do runs a command on a range through a node.
func (a *node) do(key string, op any) (*metapb.RangeResult, error) {
	cmd := &metapb.RangeCommand{}
	switch op := op.(type) {
	case *metapb.PutBucketOp:
		cmd.Op = &metapb.RangeCommand_PutBucket{PutBucket: op}
	case *metapb.PutObjectOp:
		cmd.Op = &metapb.RangeCommand_PutObject{PutObject: op}
	case *metapb.DeleteObjectsOp:
		cmd.Op = &metapb.RangeCommand_DeleteObjects{DeleteObjects: op}
	case *metapb.CreateUploadOp:
		cmd.Op = &metapb.RangeCommand_CreateUpload{CreateUpload: op}
	case *metapb.PutPartOp:
		cmd.Op = &metapb.RangeCommand_PutPart{PutPart: op}
	case *metapb.CompleteUploadOp:
		cmd.Op = &metapb.RangeCommand_CompleteUpload{CompleteUpload: op}
	default:
		return nil, errors.New("no such op")
	}
	return a.meta.Do(a.c.t.Context(), 1, storage.Key(key), cmd)
}

func (a *node) must(key string, op any) *metapb.RangeResult {
	a.c.t.Helper()
	res, err := a.do(key, op)
	if err != nil {
		a.c.t.Fatalf("%T of %q through %s: %v", op, key, a.id, err)
	}
	return res
}

func (a *node) makeBucket(v metapb.Versioning) {
	a.c.t.Helper()
	a.must("", &metapb.PutBucketOp{Row: &metapb.BucketRow{Format: 1, Id: 1, Generation: 1, Versioning: v}})
}

func id16(n uint64) []byte { return binary.BigEndian.AppendUint64(make([]byte, 8, 16), n) }

// chunk is a reference to a chunk born now.
func chunk(n uint64, length int) *metapb.ChunkRef {
	id := storage.NewChunkID(time.Now().UnixMilli(), n)
	return &metapb.ChunkRef{Id: id[:], Pg: 1, Epoch: 1, K: 1, StripeBytes: 1 << 20, Length: uint64(length)}
}

func putOp(key string, n uint64, body string) *metapb.PutObjectOp {
	return &metapb.PutObjectOp{Bucket: 1, Key: []byte(key), Row: &metapb.ObjectRow{
		Format: 1, Nonce: n, WriteId: id16(n), Size: uint64(len(body)), Etag: fmt.Sprintf("%x", n), Owner: "me",
		Attributes: &metapb.Attributes{}, Data: &metapb.Data{Inline: []byte(body)},
	}}
}
