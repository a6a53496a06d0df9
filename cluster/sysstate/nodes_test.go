package sysstate

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

func nodeCommand(c *metapb.SysCommand, op any) {
	switch op := op.(type) {
	case *metapb.AddNodeOp:
		c.Op = &metapb.SysCommand_AddNode{AddNode: op}
	case *metapb.NodeStartedOp:
		c.Op = &metapb.SysCommand_NodeStarted{NodeStarted: op}
	case *metapb.NodesDownOp:
		c.Op = &metapb.SysCommand_NodesDown{NodesDown: op}
	case *metapb.LeaveNodeOp:
		c.Op = &metapb.SysCommand_LeaveNode{LeaveNode: op}
	case *metapb.RemoveNodeOp:
		c.Op = &metapb.SysCommand_RemoveNode{RemoveNode: op}
	case *metapb.PutTokenOp:
		c.Op = &metapb.SysCommand_PutToken{PutToken: op}
	case *metapb.PutCAOp:
		c.Op = &metapb.SysCommand_PutCa{PutCa: op}
	case *metapb.SetReplicasOp:
		c.Op = &metapb.SysCommand_SetReplicas{SetReplicas: op}
	case *metapb.ReplicaLostOp:
		c.Op = &metapb.SysCommand_ReplicaLost{ReplicaLost: op}
	default:
		panic(fmt.Sprintf("%T", op))
	}
}

func bytes16(b byte) []byte { return bytes.Repeat([]byte{b}, 16) }

// newCluster is a store of the nodes n1 (zone-1) and n2 (zone-2) with a drive each, and one placement group on them.
func newCluster(t testing.TB) *sim {
	s := &sim{t: t, db: openDB(t), m: New(), ms: 1000}
	op := initOp()
	op.Drives = op.Drives[:2]
	op.Drives[1].Node = "n2"
	op.Pgs = []*metapb.SysPG{{K: 1, M: 1, StorageClass: "STANDARD", Drives: [][]byte{did(1), did(2)}}}
	op.Nodes = []*metapb.SysNode{{Id: "n1", Zone: "zone-1", Incarnation: bytes16(1), Addresses: []string{"a:1"}}, {Id: "n2", Zone: "zone-2", Incarnation: bytes16(2)}}
	op.SealedCa = []byte("sealed")
	b := s.db.NewBatch()
	if err := Birth(b, op, 1000); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *sim) token(b byte) []byte {
	id := bytes16(b)
	s.ok(&metapb.PutTokenOp{Id: id, LivesMs: 1000})
	return id
}

func joining(name, zone, key string) *metapb.SysNode {
	return &metapb.SysNode{Id: name, Zone: zone, JoinKey: []byte(key), Addresses: []string{name + ":9002"}}
}

func TestJoin(t *testing.T) {
	s := newCluster(t)
	tok := s.token(7)
	s.refused(errs.Conflict, &metapb.PutTokenOp{Id: tok, LivesMs: 1000})
	s.refused(errs.AccessDenied, &metapb.AddNodeOp{Node: joining("n3", "zone-3", "k"), Token: bytes16(8)})
	res := s.refused(errs.Conflict, &metapb.AddNodeOp{Node: joining("n2", "zone-2", "k"), Token: tok})
	if !strings.Contains(res.Detail, "choose another name") {
		t.Fatal(res.Detail)
	}
	s.refused(errs.InvalidArgument, &metapb.AddNodeOp{Node: joining("n3", "", "k"), Token: tok})
	v := s.ok(&metapb.AddNodeOp{Node: joining("n3", "zone-3", "k"), Token: tok}).Version
	if n := s.topology().Nodes["n3"]; n.State != cluster.NodeDown || n.Zone != "zone-3" || !slices.Equal(n.Addresses, []string{"n3:9002"}) {
		t.Fatalf("%+v", n)
	}
	// The answer was lost: the same node asks again, also after the token's end. Nobody else does.
	s.ms += 5000
	if again := s.ok(&metapb.AddNodeOp{Node: joining("n3", "zone-3", "k"), Token: tok}); again.Version != v {
		t.Fatal("a repeat is no change")
	}
	s.refused(errs.AccessDenied, &metapb.AddNodeOp{Node: joining("n3", "zone-3", "other"), Token: tok})
	s.refused(errs.AccessDenied, &metapb.AddNodeOp{Node: joining("n4", "zone-3", "k"), Token: tok})
	late := s.token(9)
	s.ms += 1000
	s.refused(errs.AccessDenied, &metapb.AddNodeOp{Node: joining("n4", "zone-3", "k"), Token: late})

	// A drive of a node that did not show up yet, of an unknown node, or in a wrong zone.
	d := sysDrive(5, "zone-3")
	d.Node = "n5"
	s.refused(errs.NotFound, &metapb.PutDriveOp{Drive: d})
	d.Node, d.Zone = "n3", "zone-1"
	s.refused(errs.Conflict, &metapb.PutDriveOp{Drive: d})
	d.Zone = "zone-3"
	s.ok(&metapb.PutDriveOp{Drive: d})
}

func TestNodeSessions(t *testing.T) {
	s := newCluster(t)
	start := &metapb.NodeStartedOp{Node: "n2", Zone: "zone-2", Incarnation: bytes16(3), Addresses: []string{"b:1"}, Version: "v2", IfIncarnation: bytes16(9)}
	s.refused(errs.Conflict, start)
	start.IfIncarnation = bytes16(2)
	start.Zone = "zone-1"
	s.refused(errs.Conflict, start)
	start.Zone = "zone-2"
	v := s.ok(start).Version
	if n := s.topology().Nodes["n2"]; n.State != cluster.NodeActive || n.Version != "v2" || n.Addresses[0] != "b:1" {
		t.Fatalf("%+v", n)
	}
	if s.ok(start).Version != v {
		t.Fatal("the same again is no change")
	}
	// A word about the incarnation before does not hit this one.
	s.ok(&metapb.NodesDownOp{Nodes: []*metapb.NodeRef{{Node: "n2", Incarnation: bytes16(2)}, {Node: "n9", Incarnation: bytes16(2)}}})
	if n := s.topology().Nodes["n2"]; n.State != cluster.NodeActive {
		t.Fatalf("%+v", n)
	}
	s.ms = 4000
	s.ok(&metapb.NodesDownOp{Nodes: []*metapb.NodeRef{{Node: "n2", Incarnation: bytes16(3)}}})
	top := s.topology()
	var id storage.DriveID
	copy(id[:], did(2))
	pg := top.PGs[1]
	if n := top.Nodes["n2"]; n.State != cluster.NodeDown || n.DownSinceMS != 4000 || top.Drives[id].State != cluster.DriveDown || top.Drives[id].DownSinceMS != 4000 {
		t.Fatalf("%+v %+v", n, top.Drives[id])
	}
	if pg.Epoch != 2 || pg.DirtySince[1] != 2 || pg.DirtySince[0] != 0 {
		t.Fatalf("%+v", pg)
	}
	s.refused(errs.Conflict, &metapb.SetDriveStateOp{Drive: did(2), State: up})
	start.IfIncarnation, start.Incarnation = bytes16(3), bytes16(4)
	s.ok(start)
	s.ok(&metapb.SetDriveStateOp{Drive: did(2), State: up})
	if pg := s.topology().PGs[1]; pg.Epoch != 3 || pg.DirtySince[1] != 2 {
		t.Fatalf("%+v", pg)
	}
	s.refused(errs.NotFound, &metapb.NodeStartedOp{Node: "n9", Zone: "zone-2", Incarnation: bytes16(3)})
}

func TestLeave(t *testing.T) {
	s := newCluster(t)
	s.refused(errs.Conflict, &metapb.RemoveNodeOp{Node: "n2"})
	s.ok(&metapb.LeaveNodeOp{Node: "n2", Leaving: true})
	if !s.topology().Nodes["n2"].Leaving {
		t.Fatal("not leaving")
	}
	d := sysDrive(5, "zone-2")
	d.Node = "n2"
	s.refused(errs.Conflict, &metapb.PutDriveOp{Drive: d})
	s.refused(errs.Conflict, &metapb.RemoveNodeOp{Node: "n2"}) // a placement group is there
	d.Node, d.Zone = "n1", "zone-1"
	s.ok(&metapb.PutDriveOp{Drive: d})
	top := s.topology()
	pg := top.PGs[1]
	row := PGToRow(&pg)
	row.Drives[1], row.DirtySince[1] = did(5), 1
	s.ok(&metapb.UpdatePGOp{Pg: row, IfEpoch: 1})
	s.ok(&metapb.SetReplicasOp{Group: 2, Replicas: []*metapb.SysReplica{{Id: "g2-2", Drive: did(2), Voter: true}}})
	s.refused(errs.Conflict, &metapb.RemoveNodeOp{Node: "n2"}) // a copy of the metadata is there
	s.refused(errs.Conflict, &metapb.SetReplicasOp{Group: 2, Replicas: []*metapb.SysReplica{{Id: "g2-1", Drive: did(1), Voter: true}}})
	s.ok(&metapb.ReplicaLostOp{Group: 2, Replica: "g2-2"})
	if g := s.topology().Groups[2]; !g.Replicas[0].Lost || g.Members != 2 {
		t.Fatalf("%+v", g)
	}
	s.ok(&metapb.SetReplicasOp{Group: 2, IfMembers: 2, Replicas: []*metapb.SysReplica{{Id: "g2-1", Drive: did(1), Voter: true}}})
	s.ok(&metapb.RemoveNodeOp{Node: "n2"})
	s.ok(&metapb.RemoveNodeOp{Node: "n2"})
	top = s.topology()
	var id storage.DriveID
	copy(id[:], did(2))
	if top.Nodes["n2"].State != cluster.NodeRemoved || top.Drives[id].State != cluster.DriveRemoved || len(top.SortedNodes()) != 1 {
		t.Fatalf("%+v", top)
	}
	s.refused(errs.Foreign, &metapb.NodeStartedOp{Node: "n2", Zone: "zone-2", Incarnation: bytes16(3), IfIncarnation: bytes16(2)})
	// The name is free again.
	s.ok(&metapb.AddNodeOp{Node: joining("n2", "zone-9", "k2"), Token: s.token(7)})
}

func TestCertificateAuthority(t *testing.T) {
	s := newCluster(t)
	s.refused(errs.Conflict, &metapb.PutCAOp{Sealed: []byte("new")})
	s.ok(&metapb.PutCAOp{Sealed: []byte("new"), IfSealed: []byte("sealed")})
	if ca, err := CA(s.db); err != nil || string(ca) != "new" {
		t.Fatal(ca, err)
	}
	if _, err := CA(newSim(t).db); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}

// The topology as it travels is the one that is recorded.
func TestTopologyOnTheWire(t *testing.T) {
	s := newCluster(t)
	s.ok(&metapb.LeaveNodeOp{Node: "n2", Leaving: true})
	data, err := EncodeTopology(s.db)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeTopology(data)
	if err != nil {
		t.Fatal(err)
	}
	if want := s.topology(); fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Fatalf("%+v\n%+v", got, want)
	}
	if _, err := DecodeTopology([]byte{0xff}); !errs.Is(err, errs.Corrupt) {
		t.Fatal(err)
	}
}

// Every change of buckets that can be seen is a new configuration, and a repeat names the count of the first.
func TestConfigCount(t *testing.T) {
	s := newSim(t)
	config := func(want uint64, op any) {
		t.Helper()
		if r := s.ok(op); r.Config != want {
			t.Fatalf("%T: %d, want %d", op, r.Config, want)
		}
	}
	config(0, create("b", "ann"))
	activate := &metapb.SetBucketStateOp{Bucket: 1, From: bCreating, To: bActive}
	config(1, activate)
	if again := s.apply(command(s.n, activate)); again.Config != 1 {
		t.Fatal(again)
	}
	config(0, &metapb.SetDriveStateOp{Drive: did(1), State: down})
	config(0, &metapb.SetBucketStateOp{Bucket: 1, From: bActive, To: bDeleting})
	config(2, &metapb.RemoveBucketOp{Bucket: 1})
	if st, _ := Store(s.db); st.Config != 2 {
		t.Fatal(st)
	}
}
