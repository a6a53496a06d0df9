package controller

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"maps"
	mrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/pki"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// mesh is the network between nodes in one process, without a byte on any wire.
type mesh struct {
	t     *testing.T
	mu    sync.Mutex
	at    map[string]*process          // who listens at an address
	dark  map[[2]cluster.NodeID]string // links that refuse, or swallow everything ("hole")
	nodes map[cluster.NodeID]*member1
	store string
	token byte
	hold  atomic.Pointer[func(*metapb.SysCommand)] // called before a command of the system group is proposed; may sleep
}

// member1 is a node that can be started and stopped; its disks stay.
type member1 struct {
	m    *mesh
	id   cluster.NodeID
	zone cluster.Zone
	addr string
	fs   *vfsx.Mem
	cfg  Config
	log  *lines
	p    *process
}

// process is a running node.
type process struct {
	n    *member1
	addr string
	host *multiraft.Host
	ctl  *Controller
	rpc  services
}

// services are the handlers that a process has registered.
type services map[string]func(ctx context.Context, dec func(any) error) (any, error)

func (s services) RegisterService(desc *grpc.ServiceDesc, impl any) {
	for _, m := range desc.Methods {
		s["/"+desc.ServiceName+"/"+m.MethodName] = func(ctx context.Context, dec func(any) error) (any, error) {
			return m.Handler(impl, ctx, dec, nil)
		}
	}
}

type callerKey struct{}

type wire interface {
	MarshalVT() ([]byte, error)
	UnmarshalVT([]byte) error
}

func carry(from, to any) error {
	data, err := from.(wire).MarshalVT()
	if err != nil {
		return err
	}
	return to.(wire).UnmarshalVT(data)
}

// line is a connection from one process to a node.
type line struct {
	from *process
	to   cluster.NodeID
}

func (l line) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errs.New(errs.NotImplemented, "line", "", "")
}

func (l line) Invoke(ctx context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	p, err := l.from.n.m.reach(ctx, l)
	if err != nil {
		return err
	}
	handle := p.rpc[method]
	resp, err := handle(context.WithValue(ctx, callerKey{}, l.from.n.id), func(req any) error { return carry(args, req) })
	if err != nil {
		return err
	}
	return carry(resp, reply)
}

// reach finds the process at the other end, by the addresses that the calling one knows.
func (m *mesh) reach(ctx context.Context, l line) (*process, error) {
	addrs := l.from.ctl.Addresses(l.to)
	m.mu.Lock()
	var p *process
	for _, a := range addrs {
		if q := m.at[a]; q != nil && q.n.id == l.to {
			p = q
			break
		}
	}
	how := ""
	if p != nil {
		how = m.dark[[2]cluster.NodeID{l.from.n.id, p.n.id}]
	}
	m.mu.Unlock()
	if how == "hole" { // what was sent is lost; the sender waits for an answer as long as it will
		for range 20 {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	if p == nil || how != "" {
		return nil, errs.Newf(errs.Unavailable, "line", string(l.to), "nobody answers at %v", addrs)
	}
	return p, nil
}

// cut darkens all links between two sets of nodes, how "" lights them again.
func (m *mesh) cut(how string, a, b []cluster.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, x := range a {
		for _, y := range b {
			if x != y {
				m.dark[[2]cluster.NodeID{x, y}], m.dark[[2]cluster.NodeID{y, x}] = how, how
			}
		}
	}
}

// raftEnd is a process's multiraft.Transport.
type raftEnd struct{ p *process }

func (e raftEnd) to(ctx context.Context, env multiraft.Envelope) (multiraft.Transport, error) {
	for {
		if node, ok := e.p.ctl.Resolve(env.Group, env.To); ok {
			if p, err := e.p.n.m.reach(ctx, line{from: e.p, to: node}); err == nil {
				return p.host.Transport(), nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (e raftEnd) AppendEntries(ctx context.Context, env multiraft.Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	if multiraft.IsHeartbeat(req) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Second)
		defer cancel()
	}
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.AppendEntries(ctx, env, req)
}

func (e raftEnd) RequestVote(ctx context.Context, env multiraft.Envelope, req *raft.RequestVoteRequest) (*raft.RequestVoteResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.RequestVote(ctx, env, req)
}

func (e raftEnd) RequestPreVote(ctx context.Context, env multiraft.Envelope, req *raft.RequestPreVoteRequest) (*raft.RequestPreVoteResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
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

// Propose and CreateReplica stand for the metadata plane's way over the network.
func (p *process) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	m := p.n.m
	cmd := &metapb.SysCommand{}
	if hold := m.hold.Load(); hold != nil && g == cluster.SystemGroup && cmd.UnmarshalVT(data) == nil {
		(*hold)(cmd)
	}
	m.mu.Lock()
	var ps []*process
	for _, q := range m.at {
		if m.dark[[2]cluster.NodeID{p.n.id, q.n.id}] == "" {
			ps = append(ps, q)
		}
	}
	m.mu.Unlock()
	for _, q := range ps {
		for _, st := range q.host.Status() {
			if st.Group == g && st.Local {
				return q.host.Propose(ctx, g, data)
			}
		}
	}
	return nil, errs.New(errs.NotLeader, "propose", "", "nobody leads")
}

func (p *process) CreateReplica(ctx context.Context, node cluster.NodeID, g cluster.GroupID, r cluster.Replica) error {
	q, err := p.n.m.reach(ctx, line{from: p, to: node})
	if err != nil {
		return err
	}
	return q.host.CreateReplica(g, r)
}

func newMesh(t *testing.T) *mesh {
	return &mesh{t: t, at: map[string]*process{}, dark: map[[2]cluster.NodeID]string{}, nodes: map[cluster.NodeID]*member1{}, store: strings.Repeat("5", 32)}
}

// node makes a node with so many drives, which is not started yet.
func (m *mesh) node(id cluster.NodeID, zone cluster.Zone, drives int) *member1 {
	n := &member1{m: m, id: id, zone: zone, addr: string(id) + ":9002", fs: vfsx.NewMem(), log: &lines{}}
	for i := range drives {
		n.cfg.Slots = append(n.cfg.Slots, Slot{Path: fmt.Sprintf("/data/d%d", i+1), Zone: zone})
	}
	m.nodes[id] = n
	return n
}

func (n *member1) config(p *process) Config {
	cfg := n.cfg
	cfg.DataDir, cfg.FS, cfg.Now, cfg.Rand, cfg.Node = "/data", n.fs, time.Now, rand.Reader, n.id
	cfg.Logger = slog.New(slog.NewTextHandler(n.log, nil))
	cfg.Drive = func(d *drive.Config) { d.MemTableBytes, d.ExtentBytes = 256<<10, 1<<20 }
	cl := Cluster{}
	if cfg.Cluster != nil {
		cl = *cfg.Cluster
	}
	cl.Zone, cl.Advertise, cl.Version, cl.Proposer, cl.Replicas = n.zone, []string{n.addr}, "test", p, p
	cl.StoreID, cl.SealedCA = n.m.store, []byte("ca")
	cl.Conn = func(id cluster.NodeID) (grpc.ClientConnInterface, error) { return line{from: p, to: id}, nil }
	cl.Caller = func(ctx context.Context) (cluster.NodeID, error) {
		id, _ := ctx.Value(callerKey{}).(cluster.NodeID)
		return id, nil
	}
	cfg.Cluster = &cl
	return cfg
}

func (n *member1) start() error {
	p := &process{n: n, addr: n.addr, rpc: services{}}
	host, err := multiraft.New(multiraft.Config{
		Node: n.id, NewStateMachine: NewStateMachine, Remote: raftEnd{p}, LogMemTableBytes: 256 << 10, StateMemTableBytes: 256 << 10,
	})
	if err != nil {
		return err
	}
	p.host = host
	cfg := n.config(p)
	cfg.Groups = host
	if p.ctl, err = New(cfg); err != nil {
		return err
	}
	Register(p.rpc, p.ctl)
	n.m.mu.Lock()
	if n.m.at[p.addr] == nil {
		n.m.at[p.addr] = p
	}
	n.m.mu.Unlock()
	if err := p.ctl.Start(n.m.t.Context()); err != nil {
		n.m.mu.Lock()
		if n.m.at[p.addr] == p {
			delete(n.m.at, p.addr)
		}
		n.m.mu.Unlock()
		return err
	}
	n.p = p
	return nil
}

func (n *member1) mustStart() *member1 {
	n.m.t.Helper()
	if err := n.start(); err != nil {
		n.m.t.Fatalf("%s: %v\n%s", n.id, err, n.log)
	}
	return n
}

// kill ends a process without a word to anybody; stop lets it say goodbye.
func (n *member1) kill() { n.end(true) }
func (n *member1) stop() { n.end(false) }

func (n *member1) end(sudden bool) {
	if n.p == nil {
		return
	}
	unplug := func() {
		n.m.mu.Lock()
		defer n.m.mu.Unlock()
		if n.m.at[n.p.addr] == n.p {
			delete(n.m.at, n.p.addr)
		}
	}
	if sudden {
		unplug()
		n.m.cut("gone", []cluster.NodeID{n.id}, slices.Collect(maps.Keys(n.m.nodes)))
	}
	if err := n.p.ctl.Close(); err != nil {
		n.m.t.Errorf("%s: close: %v", n.id, err)
	}
	unplug()
	if sudden {
		n.m.cut("", []cluster.NodeID{n.id}, slices.Collect(maps.Keys(n.m.nodes)))
	}
	n.p = nil
}

func (m *mesh) stopAll() {
	var wg sync.WaitGroup
	for _, n := range m.nodes {
		wg.Go(n.kill)
	}
	wg.Wait()
}

// join has a node join through another one, as the join service will.
func (m *mesh) join(n *member1, through *member1) error {
	m.token++
	id := bytes.Repeat([]byte{m.token}, 16)
	ctx, cancel := context.WithTimeout(m.t.Context(), 20*time.Second)
	defer cancel()
	if err := through.p.ctl.NewToken(ctx, id, time.Hour); err != nil {
		return err
	}
	nodes, err := through.p.ctl.Admit(ctx, Joining{Token: id, Key: []byte(n.id), Node: n.id, Zone: n.zone, Addresses: []string{n.addr}})
	if err != nil {
		return err
	}
	peers := map[cluster.NodeID][]string{}
	for _, p := range nodes {
		if p.ID != n.id {
			peers[p.ID] = p.Addresses
		}
	}
	return WriteNode(n.fs, "/data", NodeIdentity{StoreID: m.store, Node: n.id, Zone: n.zone, Peers: peers})
}

// up starts a cluster: names like "a1" are zone and number.
func (m *mesh) up(names ...string) {
	m.t.Helper()
	for i, name := range names {
		n := m.node(cluster.NodeID(name), cluster.Zone(name[:1]), 1)
		if i == 0 {
			n.cfg.Cluster = &Cluster{Init: true}
			n.mustStart()
			n.cfg.Cluster = nil
			continue
		}
		if err := m.join(n, m.nodes[cluster.NodeID(names[0])]); err != nil {
			m.t.Fatal(err)
		}
		n.mustStart()
	}
}

func (m *mesh) n(id cluster.NodeID) *member1 { return m.nodes[id] }

// within waits until ok answers "", at most so long.
func (m *mesh) within(d time.Duration, what string, ok func() string) time.Duration {
	m.t.Helper()
	began := time.Now()
	for {
		why := ok()
		if why == "" {
			return time.Since(began)
		}
		if time.Since(began) > d {
			var logs strings.Builder
			for _, n := range m.nodes {
				fmt.Fprintf(&logs, "--- %s\n%s", n.id, n.log)
			}
			m.t.Fatalf("%s: %s\n%s", what, why, logs.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// alive are the processes that run, by name.
func (m *mesh) alive() (out []*process) {
	for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
		if p := m.nodes[id].p; p != nil {
			out = append(out, p)
		}
	}
	return out
}

// settled says what is not as it should be with all nodes there; voters as "2 2 1".
func (m *mesh) settled(voters int, zonesMax int) string {
	for _, p := range m.alive() {
		if why := p.ctl.NotReady(); why != "" {
			return fmt.Sprintf("%s: %s", p.n.id, why)
		}
		t := p.ctl.Topology()
		if t.Version != m.alive()[0].ctl.Topology().Version {
			return fmt.Sprintf("%s is at version %d, %s at %d", p.n.id, t.Version, m.alive()[0].n.id, m.alive()[0].ctl.Topology().Version)
		}
		for _, n := range t.SortedNodes() {
			if n.State != cluster.NodeActive {
				return fmt.Sprintf("%s sees %s %s", p.n.id, n.ID, n.State)
			}
		}
		for _, d := range t.SortedDrives() {
			if d.State != cluster.DriveActive {
				return fmt.Sprintf("%s sees the drive of %s %s", p.n.id, d.Node, d.State)
			}
		}
		if n := len(t.SortedDrives()); n != len(m.nodes) {
			return fmt.Sprintf("%d drives", n)
		}
		for _, g := range t.Groups {
			perZone, perNode, v := map[cluster.Zone]int{}, map[cluster.NodeID]int{}, 0
			for _, r := range g.Replicas {
				d := t.Drives[r.Drive]
				if perNode[d.Node]++; perNode[d.Node] > 1 {
					return fmt.Sprintf("group %d has two replicas on %s", g.ID, d.Node)
				}
				if r.Voter {
					v++
					if perZone[d.Zone]++; perZone[d.Zone] > zonesMax {
						return fmt.Sprintf("group %d has %d voters in %s", g.ID, perZone[d.Zone], d.Zone)
					}
				}
			}
			if v != voters {
				return fmt.Sprintf("group %d has %d voters", g.ID, v)
			}
			if g.ID == cluster.SystemGroup && len(g.Replicas) != len(m.nodes) {
				return fmt.Sprintf("the system group has %d replicas", len(g.Replicas))
			}
			if g.ID != cluster.SystemGroup && len(g.Replicas) != voters {
				return fmt.Sprintf("group %d has %d replicas", g.ID, len(g.Replicas))
			}
		}
	}
	return m.noStrays()
}

// noStrays says which replica is on a disk and not recorded.
func (m *mesh) noStrays() string {
	for _, p := range m.alive() {
		for _, st := range p.host.Status() {
			for _, r := range st.Replicas {
				if _, ok := p.ctl.recordedReplica(p.ctl.Topology(), st.Group, r.ID); !ok && !r.Drive.IsZero() {
					return fmt.Sprintf("%s still has %s", p.n.id, r.ID)
				}
			}
		}
	}
	return ""
}

func (m *mesh) six() {
	m.t.Helper()
	m.up("a1", "a2", "b1", "b2", "c1", "c2")
	m.within(2*time.Minute, "six nodes", func() string { return m.settled(5, 2) })
}

// inMesh runs a test in fake time and ends all nodes after it.
func inMesh(t *testing.T, test func(t *testing.T, m *mesh)) {
	bubble.Test(t, func(t *testing.T) {
		m := newMesh(t)
		defer m.stopAll()
		test(t, m)
	})
}

func TestSixNodes(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.six()
		m.within(time.Minute, "placement groups over all", func() string {
			for _, pg := range m.n("c2").p.ctl.Topology().PGs {
				if pg.Scheme == (storage.Scheme{K: 3, M: 3}) {
					return ""
				}
			}
			return "none"
		})
		m.within(2*time.Minute, "leaders on different nodes", func() string {
			leads := map[cluster.NodeID]int{}
			for _, p := range m.alive() {
				for _, st := range p.host.Status() {
					if st.Local {
						leads[p.n.id]++
					}
				}
			}
			if len(leads) != 2 {
				return fmt.Sprint(leads)
			}
			return ""
		})
		// An idle cluster stays as it is.
		before := m.n("a1").p.ctl.Topology().Version
		time.Sleep(3 * time.Minute)
		if why := m.settled(5, 2); why != "" {
			t.Error(why)
		}
		if v := m.n("a1").p.ctl.Topology().Version; v != before {
			t.Errorf("the topology went from %d to %d while nothing happened", before, v)
		}
	})
}

// states are how the nodes stand in the eyes of the living ones.
func (m *mesh) states(want map[cluster.NodeID]cluster.NodeState) string {
	for _, p := range m.alive() {
		t := p.ctl.Topology()
		for _, n := range t.SortedNodes() {
			w, ok := want[n.ID]
			if !ok {
				w = cluster.NodeActive
			}
			if n.State != w {
				return fmt.Sprintf("%s sees %s %s", p.n.id, n.ID, n.State)
			}
			for _, d := range t.SortedDrives() {
				if d.Node == n.ID && (d.State == cluster.DriveActive) != (w == cluster.NodeActive) {
					return fmt.Sprintf("%s sees the drive of %s %s", p.n.id, n.ID, d.State)
				}
			}
		}
	}
	return ""
}

func TestZoneLostAndBack(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.six()
		for _, zone := range []string{"a", "b", "c"} { // one of them has the leader of the system group
			one, two := m.n(cluster.NodeID(zone+"1")), m.n(cluster.NodeID(zone+"2"))
			one.kill()
			two.kill()
			took := m.within(20*time.Second, "zone "+zone+" is down", func() string {
				return m.states(map[cluster.NodeID]cluster.NodeState{one.id: cluster.NodeDown, two.id: cluster.NodeDown})
			})
			t.Logf("zone %s was recorded as down everywhere after %v", zone, took)
			one.mustStart()
			two.mustStart()
			m.within(time.Minute, "zone "+zone+" is back", func() string { return m.settled(5, 2) })
		}
	})
}

// A node that vanishes without a refusal, and one that says goodbye.
func TestBlackHoleAndGoodbye(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.six()
		all := slices.Collect(maps.Keys(m.nodes))
		var ended, forgotten time.Time
		m.n("b2").p.ctl.cfg.Cluster.SessionEnded = func() { ended = time.Now() }
		m.cut("hole", []cluster.NodeID{"b2"}, all)
		m.within(20*time.Second, "b2 is not asked for its reads any more", func() string {
			nodes, err := m.n("a1").p.ctl.Readers(t.Context())
			if err != nil || slices.Contains(nodes, "b2") {
				return fmt.Sprint(nodes, err)
			}
			forgotten = time.Now()
			return ""
		})
		if ended.IsZero() || !ended.Before(forgotten) || m.n("b2").p.ctl.InSession() {
			t.Errorf("its session ended at %v, it was forgotten at %v", ended, forgotten)
		}
		m.within(20*time.Second, "b2 is down", func() string {
			for _, p := range m.alive() {
				if n := p.ctl.Topology().Nodes["b2"]; p.n.id != "b2" && n.State != cluster.NodeDown {
					return fmt.Sprintf("%s sees it %s", p.n.id, n.State)
				}
			}
			if m.n("b2").p.ctl.NotReady() == "" {
				return "it thinks that it is ready"
			}
			return ""
		})
		m.cut("", []cluster.NodeID{"b2"}, all)
		m.within(time.Minute, "b2 is back", func() string { return m.settled(5, 2) })

		m.n("c2").stop()
		took := m.within(10*time.Second, "c2 said goodbye", func() string {
			return m.states(map[cluster.NodeID]cluster.NodeState{"c2": cluster.NodeDown})
		})
		if took > 1500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// A node that is recorded as down while it is there, as one that says goodbye is for a moment: it knows before its next renewal
// tells it, and must not try to have its drives back until then, which is refused and changes the group, again and again.
func TestRecordedAsDown(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.six()
		var leader *process
		m.within(time.Minute, "the system group has a leader", func() string {
			for _, p := range m.alive() {
				if _, leads := p.ctl.leadsSystem(); leads {
					leader = p
					return ""
				}
			}
			return "nobody leads it"
		})
		var tries atomic.Int64
		m.hold.Store(new(func(cmd *metapb.SysCommand) {
			switch cmd.Op.(type) {
			case *metapb.SysCommand_NodeStarted:
				time.Sleep(300 * time.Millisecond)
			case *metapb.SysCommand_SetDriveState:
				tries.Add(1)
			}
		}))
		nodes, err := leader.ctl.nodesHere()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if n.Id == string(leader.n.id) {
				continue
			}
			if err := leader.ctl.nodesDown(t.Context(), []*metapb.NodeRef{{Node: n.Id, Incarnation: n.Incarnation}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			m.within(time.Minute, n.Id+" is back", func() string { return m.settled(5, 2) })
		}
		if n := int(tries.Load()); n > 4*len(nodes) {
			t.Errorf("the states of %d drives were proposed %d times", len(nodes)-1, n)
		}
	})
}

// All nodes were off and come back at other addresses; they know one of them.
func TestAllAddressesReplaced(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.six()
		m.stopAll()
		for _, n := range m.nodes {
			n.addr = "new-" + n.addr
			n.cfg.Cluster = &Cluster{Peers: []string{"new-b1:9002"}}
		}
		m.n("a1").mustStart()
		time.Sleep(10 * time.Second)
		if why := m.n("a1").p.ctl.NotReady(); !strings.Contains(why, "majority") {
			t.Errorf("alone it says %q", why)
		}
		for _, n := range m.nodes {
			if n.p == nil {
				n.mustStart()
			}
		}
		m.within(time.Minute, "all are back", func() string { return m.settled(5, 2) })
		if a := m.n("c1").p.ctl.Topology().Nodes["a2"].Addresses; !slices.Equal(a, []string{"new-a2:9002"}) {
			t.Error(a)
		}
		id, err := readNode(m.n("c1").fs, "/data")
		if err != nil || !slices.Contains(id.Peers["a2"], "new-a2:9002") {
			t.Error(id, err)
		}
	})
}

// An intent that a crash left beside a store is gone after the next start.
func TestIntentLeftOver(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		n := m.node("a1", "a", 1)
		n.cfg.Cluster = &Cluster{Init: true}
		n.mustStart()
		n.stop()
		if err := writeJSON(n.fs, "/data/"+intentName, &intent{Format: 1, StoreID: m.store, Node: "a1", Formatted: true}); err != nil {
			t.Fatal(err)
		}
		n.mustStart()
		if _, err := n.fs.Stat("/data/" + intentName); err == nil {
			t.Error("the intent is still there")
		}
	})
}

func TestNodeRefusals(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.up("a1", "b1", "c1")
		m.within(2*time.Minute, "three nodes", func() string { return m.settled(3, 1) })
		refused := func(what string, err error, part string) {
			t.Helper()
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q", what, err, part)
			}
		}
		// Names and zones.
		twin := &member1{m: m, id: "b1", zone: "b", addr: "twin:9002", fs: vfsx.NewMem(), log: &lines{}}
		twin.cfg.Slots = m.n("b1").cfg.Slots
		refused("a known name", m.join(twin, m.n("a1")), "already")
		refused("no token", twin.start(), "join one with a token")

		b1 := m.n("b1")
		b1.stop()
		b1.zone = "z"
		b1.cfg.Slots[0].Zone = "z"
		refused("another zone", b1.start(), `belongs to zone "b"`)
		b1.zone = "b"
		b1.cfg.Slots[0].Zone = "b"
		b1.id = "b9"
		refused("another name", b1.start(), `belongs to node "b1"`)
		b1.id = "b1"
		b1.mustStart()
		m.within(time.Minute, "b1 is back", func() string { return m.settled(3, 1) })

		// A copy of a living node's data folder, with other drives.
		if err := WriteNode(twin.fs, "/data", NodeIdentity{StoreID: m.store, Node: "b1", Zone: "b", Peers: map[cluster.NodeID][]string{"a1": {"a1:9002"}, "c1": {"c1:9002"}}}); err != nil {
			t.Fatal(err)
		}
		if err := twin.start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if why := twin.p.ctl.NotReady(); !strings.Contains(why, "running already") {
			t.Errorf("the twin says %q", why)
		}
		if why := m.settled(3, 1); why != "" {
			t.Error(why)
		}
		twin.stop()
		m.within(10*time.Second, "the twin's goodbye is not b1's", func() string { return m.settled(3, 1) })

		// A node of another store, and making a store where one is.
		foreign := &member1{m: m, id: "c1", zone: "c", addr: "foreign:9002", fs: vfsx.NewMem(), log: &lines{}}
		foreign.cfg.Slots = m.n("c1").cfg.Slots
		if err := WriteNode(foreign.fs, "/data", NodeIdentity{StoreID: strings.Repeat("7", 32), Node: "c1", Zone: "c", Peers: map[cluster.NodeID][]string{"a1": {"a1:9002"}, "b1": {"b1:9002"}}}); err != nil {
			t.Fatal(err)
		}
		if err := foreign.start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if why := foreign.p.ctl.NotReady(); why == "" || !strings.Contains(foreign.log.String(), "another cluster") {
			t.Errorf("the foreign node says %q", why)
		}
		foreign.kill()

		alone := newNode(t, 1).mustStart()
		alone.stop()
		over := &member1{m: m, id: "d1", zone: "d", addr: "d1:9002", fs: alone.fs, log: &lines{}}
		over.cfg.Slots = []Slot{{Path: "/data/e1", Zone: "d"}}
		over.cfg.Cluster = &Cluster{Init: true}
		refused("a store of one process is there", over.start(), "store of one process")
		single := newNode(t, 1)
		single.fs = m.n("c1").fs
		m.n("c1").stop()
		refused("a cluster's folder", single.start(), "belongs to node c1")
	})
}

// A session call that took long does not shorten the lease that a later one was granted (design rule 9).
func TestLateSessionCall(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var s sessions
		s.lead(1)
		grant := func(asked time.Time) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.grantLocked("a1", []byte("x"), asked)
		}
		slow := time.Now()
		time.Sleep(time.Second)
		quick := time.Now()
		grant(quick)
		s.shift(time.Minute) // this process stood still
		seen := s.nodes["a1"].seen
		time.Sleep(time.Second)
		grant(slow)
		if n := s.nodes["a1"]; !n.asked.Equal(quick) || n.seen.Before(seen) {
			t.Errorf("asked %v, want %v; seen %v, was %v", n.asked, quick, n.seen, seen)
		}
	})
}

func TestConfigLease(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.up("a1", "b1", "c1", "c2")
		m.within(2*time.Minute, "four nodes", func() string { return m.settled(3, 1) })
		follower := m.n("c2").p
		for _, r := range follower.ctl.Topology().Groups[1].Replicas {
			if r.Voter && follower.ctl.Topology().Drives[r.Drive].Node == "c2" {
				follower = m.n("c1").p // that one follows, then
			}
		}
		buckets := func() (n int64, err error) {
			err = follower.ctl.ConfigRead(func(r pebble.Reader) error {
				rows, _, err := sysstate.ListBuckets(r, "ann", "", "", 100)
				n = int64(len(rows))
				return err
			})
			return n, err
		}
		create := func(name string) (took time.Duration) {
			t.Helper()
			ctl := m.n("a1").p.ctl
			began := time.Now()
			res, err := ctl.sys(t.Context(), &metapb.SysCommand{Op: &metapb.SysCommand_CreateBucket{CreateBucket: &metapb.CreateBucketOp{
				Bucket: &metapb.SysBucket{Name: name, Owner: "ann"},
			}}})
			if err == nil {
				res, err = ctl.sys(t.Context(), &metapb.SysCommand{Op: &metapb.SysCommand_SetBucketState{SetBucketState: &metapb.SetBucketStateOp{
					Bucket: res.Bucket.Id, From: metapb.BucketState_BUCKET_CREATING, To: metapb.BucketState_BUCKET_ACTIVE,
				}}})
			}
			if err == nil {
				err = ctl.AwaitConfig(t.Context(), res.Config)
			}
			if err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		if n, err := buckets(); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		for i := range int64(5) {
			if took := create(fmt.Sprint("bucket-", i)); took > time.Second {
				t.Errorf("it took %v", took)
			}
			// From here on a follower says what is, or that it does not know.
			if n, err := buckets(); err == nil && n != i+1 {
				t.Fatalf("an old configuration was acted on: %d buckets, want %d", n, i+1)
			}
			m.within(5*time.Second, "the follower knows", func() string {
				if n, err := buckets(); err != nil || n != i+1 {
					return fmt.Sprint(n, err)
				}
				return ""
			})
		}
		// Cut off, it may act on what it has until its lease is over, and nothing is acknowledged before.
		m.cut("hole", []cluster.NodeID{follower.n.id}, slices.Collect(maps.Keys(m.nodes)))
		old, done := time.Time{}, make(chan time.Time)
		go func() { create("late"); done <- time.Now() }()
		for range 400 {
			if n, err := buckets(); err == nil && n == 5 {
				old = time.Now()
			}
			time.Sleep(10 * time.Millisecond)
		}
		if at := <-done; !at.After(old) || old.IsZero() {
			t.Errorf("acknowledged at %v, and the old configuration was acted on until %v", at, old)
		}
	})
}

// A node leaves: what it holds goes to the others, then it is removed.
func TestNodeLeaves(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.up("a1", "a2", "b1", "b2", "c1", "c2", "c3")
		m.within(2*time.Minute, "seven nodes", func() string { return m.settled(5, 2) })
		time.Sleep(10 * time.Second) // placement groups over all
		ctl := m.n("a1").p.ctl
		if err := ctl.Leave(t.Context(), "c1", true); err != nil {
			t.Fatal(err)
		}
		for began := time.Now(); ctl.Topology().Nodes["c1"].State != cluster.NodeRemoved; time.Sleep(200 * time.Millisecond) {
			if time.Since(began) > 5*time.Minute {
				t.Fatalf("it does not leave\n%s", m.n("a1").log)
			}
			for _, s := range ctl.Dirty() { // the resynchronisation has found nothing to do
				if err := ctl.ClearDirty(t.Context(), s.PG, s.Index, s.Epoch); err != nil && !errs.Is(err, errs.Conflict) {
					t.Fatal(err)
				}
			}
		}
		m.within(10*time.Second, "c1 knows", func() string {
			if why := m.n("c1").p.ctl.NotReady(); !strings.Contains(why, "removed") {
				return why
			}
			return ""
		})
		m.n("c1").kill()
		delete(m.nodes, "c1")
		m.within(time.Minute, "six are left", func() string { return m.settled(5, 2) })
		// Nobody else could go: the placement groups need all drives.
		if err := ctl.Leave(t.Context(), "b1", true); err != nil {
			t.Fatal(err)
		}
		m.within(30*time.Second, "it is said why", func() string {
			for _, p := range m.alive() {
				if strings.Contains(p.n.log.String(), "add drives there") {
					return ""
				}
			}
			return "nothing is said"
		})
		if err := ctl.Leave(t.Context(), "b1", false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		m.within(time.Minute, "it stays", func() string { return m.settled(5, 2) })
	})
}

// Emptying a node that leaves takes the time that it takes; a node that falls silent meanwhile is found as soon as ever.
func TestSilentWhileAnotherLeaves(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.up("a1", "a2", "b1", "b2", "c1", "c2", "c3")
		m.within(2*time.Minute, "seven nodes", func() string { return m.settled(5, 2) })
		time.Sleep(10 * time.Second) // placement groups over all
		held := atomic.Int64{}
		m.hold.Store(new(func(cmd *metapb.SysCommand) {
			if _, ok := cmd.Op.(*metapb.SysCommand_UpdatePg); ok {
				held.Add(1)
				time.Sleep(4 * time.Second)
			}
		}))
		var leader *process
		for _, p := range m.alive() {
			if _, leads := p.ctl.leadsSystem(); leads {
				leader = p
			}
		}
		leaves, silent := cluster.NodeID("c1"), cluster.NodeID("b1")
		if leader.n.id == leaves {
			leaves = "c2"
		}
		if leader.n.id == silent {
			silent = "b2"
		}
		if err := leader.ctl.Leave(t.Context(), leaves, true); err != nil {
			t.Fatal(err)
		}
		m.within(10*time.Second, "a shard is moved", func() string { return map[bool]string{true: "none"}[held.Load() == 0] })
		m.n(silent).kill()
		took := m.within(time.Minute, "it is down", func() string {
			return string(map[bool]cluster.NodeID{true: silent}[leader.ctl.Topology().Nodes[silent].State == cluster.NodeActive])
		})
		if took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		m.hold.Store(nil)
	})
}

// A drive of a node is replaced while the node is off: its copies of the metadata are made anew under other names.
func TestDriveReplacedOnNode(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.six()
		for _, name := range []cluster.NodeID{"b1", "c2", "a1"} {
			n := m.n(name)
			before := drivesOf(n.p.ctl.Topology(), name)[0]
			n.kill() // a drive that dies under a process leaves goroutines for ever, which no bubble likes
			if err := n.fs.RemoveAll("/data/d1"); err != nil {
				t.Fatal(err)
			}
			if err := n.fs.MkdirAll("/data/d1", 0o777); err != nil {
				t.Fatal(err)
			}
			n.mustStart()
			m.within(3*time.Minute, string(name)+" has a new drive", func() string {
				if now := drivesOf(m.alive()[0].ctl.Topology(), name); len(now) != 1 || now[0] == before {
					return "the old one is still recorded"
				}
				return m.settled(5, 2)
			})
		}
	})
}

// Nodes are cut off, killed, restarted and lose drives at random. When all is well
// again, all agree, and nothing is left over. The seed is printed.
func TestRandomChurn(t *testing.T) {
	for _, seed := range []uint64{1, 2, 3, 4} {
		t.Run(fmt.Sprint("seed-", seed), func(t *testing.T) {
			inMesh(t, func(t *testing.T, m *mesh) {
				rng := mrand.New(mrand.NewPCG(seed, 7))
				m.six()
				all := slices.Sorted(maps.Keys(m.nodes))
				for range 25 {
					id := all[rng.IntN(len(all))]
					n := m.n(id)
					switch what := rng.IntN(6); {
					case n.p == nil:
						n.mustStart()
					case what == 0:
						n.kill()
					case what == 1:
						n.stop()
					case what == 2:
						m.cut([]string{"hole", "cut"}[rng.IntN(2)], []cluster.NodeID{id}, all)
					case what == 3:
						m.cut("hole", []cluster.NodeID{id}, []cluster.NodeID{all[rng.IntN(len(all))]})
					case what == 4:
						m.cut("", all, all)
					}
					time.Sleep(time.Duration(rng.IntN(8000)) * time.Millisecond)
				}
				m.cut("", all, all)
				for _, n := range m.nodes {
					if n.p == nil {
						n.mustStart()
					}
				}
				m.within(3*time.Minute, "all is well again", func() string { return m.settled(5, 2) })
				contents := map[string]cluster.NodeID{}
				m.within(time.Minute, "all copies are the same", func() string {
					clear(contents)
					for _, p := range m.alive() {
						_ = p.host.ReadLocal(cluster.SystemGroup, func(r pebble.Reader) error {
							data, err := sysstate.EncodeTopology(r)
							contents[string(data)] = p.n.id
							return err
						})
					}
					if len(contents) != 1 {
						return fmt.Sprint(len(contents), " different topologies")
					}
					return ""
				})
			})
		})
	}
}

func TestJoinService(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.up("a1", "b1")
		m.within(time.Minute, "two nodes", func() string { return m.settled(1, 1) })
		through := m.n("b1").p
		seal := pki.NewSealKey()
		ca, err := pki.NewCA(m.store, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		sealed, err := ca.Seal(seal)
		if err != nil {
			t.Fatal(err)
		}
		if err := through.ctl.ReplaceCA(t.Context(), sealed, []byte("other")); !errs.Is(err, errs.Conflict) {
			t.Fatal(err)
		}
		if err := through.ctl.ReplaceCA(t.Context(), sealed, []byte("ca")); err != nil {
			t.Fatal(err)
		}
		self, err := ca.NewNode("b1", seal, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		m.within(10*time.Second, "b1 has the authority", func() string {
			if got, err := through.ctl.CA(); err != nil || !bytes.Equal(got, sealed) {
				return fmt.Sprint("not yet: ", err)
			}
			return ""
		})
		token := pki.NewToken(m.store, ca.Pin(), []string{"b1:9002"})
		if err := through.ctl.NewToken(t.Context(), []byte(token.ID()), time.Minute); err != nil {
			t.Fatal(err)
		}
		s := joinServer{c: through.ctl, identity: func() *pki.Identity { return self }}
		key, csr, err := pki.NewRequest("c1")
		if err != nil {
			t.Fatal(err)
		}
		req := &nodepb.JoinRequest{Secret: token.Secret[:], Csr: csr, TimeMs: time.Now().UnixMilli(), Node: &nodepb.NodeInfo{Node: "c1", Zone: "c", Addresses: []string{"c1:9002"}}}
		for what, bad := range map[string]*nodepb.JoinRequest{
			"a clock":  {Secret: req.Secret, Csr: csr, Node: req.Node, TimeMs: req.TimeMs + 60_000},
			"a token":  {Secret: []byte("guess"), Csr: csr, Node: req.Node, TimeMs: req.TimeMs},
			"a name":   {Secret: req.Secret, Csr: csr, Node: &nodepb.NodeInfo{Node: "c 1", Zone: "c"}, TimeMs: req.TimeMs},
			"no zone":  {Secret: req.Secret, Csr: csr, Node: &nodepb.NodeInfo{Node: "c1"}, TimeMs: req.TimeMs},
			"no key":   {Secret: req.Secret, Node: req.Node, TimeMs: req.TimeMs},
			"a member": {Secret: req.Secret, Csr: csr, Node: &nodepb.NodeInfo{Node: "a1", Zone: "a"}, TimeMs: req.TimeMs},
		} {
			if _, err := s.Join(t.Context(), bad); !refused(err) && !errs.Is(err, errs.AccessDenied) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for range 2 { // the answer was lost once
			resp, err := s.Join(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			id, err := pki.NewIdentity(resp.Certificate, resp.Ca, key, pki.SealKey(resp.SealKey))
			if err != nil || id.Node != "c1" || id.Pin() != token.Pin || len(resp.Nodes) != 3 {
				t.Fatal(id, err, resp.Nodes)
			}
		}
		if _, err := s.Join(t.Context(), &nodepb.JoinRequest{Secret: req.Secret, Csr: csr, Node: &nodepb.NodeInfo{Node: "c2", Zone: "c"}, TimeMs: req.TimeMs}); !errs.Is(err, errs.AccessDenied) {
			t.Error("a token let in two nodes: ", err)
		}
		if _, err := s.Renew(context.WithValue(t.Context(), callerKey{}, cluster.NodeID("c1")), &nodepb.RenewRequest{Csr: csr}); err != nil {
			t.Error(err)
		}
	})
}

func TestNineNodes(t *testing.T) {
	inMesh(t, func(t *testing.T, m *mesh) {
		m.up("a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2", "c3")
		m.within(2*time.Minute, "nine nodes", func() string { return m.settled(5, 2) })
		var wg sync.WaitGroup
		for _, n := range m.nodes { // the power fails everywhere
			wg.Go(n.kill)
		}
		wg.Wait()
		for _, n := range m.nodes {
			n.mustStart()
		}
		m.within(2*time.Minute, "nine nodes again", func() string { return m.settled(5, 2) })
	})
}
