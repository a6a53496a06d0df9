package sysstate

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

func openDB(t testing.TB) *pebble.DB {
	t.Helper()
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), FormatMajorVersion: pebble.FormatNewest, DisableWAL: true, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(f string, a ...any) {
	panic(fmt.Sprintf(f, a...))
}

func did(n int) []byte {
	id := make([]byte, 16)
	binary.BigEndian.PutUint64(id[8:], uint64(n))
	id[0] = 0xd0
	return id
}

func cid(n int) []byte {
	id := make([]byte, 16)
	binary.BigEndian.PutUint64(id[8:], uint64(n))
	id[0] = 0xc0
	return id
}

func sysDrive(n int, zone string) *metapb.SysDrive {
	return &metapb.SysDrive{Id: did(n), Node: "n1", Zone: zone, Path: fmt.Sprintf("%s/drive-%d", zone, n), Starts: 1}
}

func initOp() *metapb.InitStoreOp {
	op := &metapb.InitStoreOp{StoreId: "store-1"}
	for i := 1; i <= 3; i++ {
		op.Drives = append(op.Drives, sysDrive(i, fmt.Sprintf("zone-%d", i)))
	}
	op.Pgs = []*metapb.SysPG{
		{K: 1, M: 2, StorageClass: "STANDARD", Drives: [][]byte{did(1), did(2), did(3)}},
		{K: 1, M: 2, StorageClass: "STANDARD", Drives: [][]byte{did(2), did(3), did(1)}},
	}
	op.Groups = []*metapb.SysGroup{{Id: 1, Replicas: []*metapb.SysReplica{{Id: "g1-1", Drive: did(1), Voter: true}}}, {Id: 2, Replicas: []*metapb.SysReplica{{Id: "g2-1", Drive: did(1), Voter: true}}}}
	return op
}

// sim applies commands to a database one by one.
type sim struct {
	t  testing.TB
	db *pebble.DB
	m  *Machine
	n  int // commands so far; gives ids
	ms int64
}

func newSim(t testing.TB) *sim {
	s := &sim{t: t, db: openDB(t), m: New(), ms: 1000}
	b := s.db.NewBatch()
	if err := Birth(b, initOp(), 1000); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *sim) apply(cmd *metapb.SysCommand) *metapb.SysResult {
	s.t.Helper()
	data, err := cmd.MarshalVT()
	if err != nil {
		s.t.Fatal(err)
	}
	b := s.db.NewIndexedBatch()
	out, err := s.m.Apply(b, []cluster.Entry{{Index: 1, TimeMS: s.ms, Data: data}})
	if err != nil {
		s.t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		s.t.Fatal(err)
	}
	res := &metapb.SysResult{}
	if err := res.UnmarshalVT(out[0]); err != nil {
		s.t.Fatal(err)
	}
	return res
}

// do applies an operation under a new command id.
func (s *sim) do(op any) *metapb.SysResult {
	s.t.Helper()
	s.n++
	return s.apply(command(s.n, op))
}

func (s *sim) ok(op any) *metapb.SysResult {
	s.t.Helper()
	res := s.do(op)
	if !res.Ok {
		s.t.Fatalf("%T refused: %s %s", op, errs.Kind(res.Kind), res.Detail)
	}
	return res
}

func (s *sim) refused(kind errs.Kind, op any) *metapb.SysResult {
	s.t.Helper()
	before := s.dump()
	res := s.do(op)
	if res.Ok || errs.Kind(res.Kind) != kind {
		s.t.Fatalf("%T: ok=%v kind=%s %q, want %s", op, res.Ok, errs.Kind(res.Kind), res.Detail, kind)
	}
	if after := s.dump(); after != before {
		s.t.Fatalf("%T was refused but changed rows:\n%s\n%s", op, before, after)
	}
	return res
}

// dump is every row but clock and outcomes.
func (s *sim) dump() string {
	var sb strings.Builder
	sp := span()
	if err := scan(s.db, sp.Start, sp.End, func(k, v []byte) (bool, error) {
		if k[1] != kindClock && k[1] != kindOutcome && k[1] != kindAge {
			fmt.Fprintf(&sb, "%q=%q\n", k, v)
		}
		return true, nil
	}); err != nil {
		s.t.Fatal(err)
	}
	return sb.String()
}

func (s *sim) topology() *cluster.Topology {
	s.t.Helper()
	top, err := Topology(s.db)
	if err != nil {
		s.t.Fatal(err)
	}
	return top
}

func command(n int, op any) *metapb.SysCommand {
	c := &metapb.SysCommand{Version: 1, Id: cid(n)}
	switch op := op.(type) {
	case *metapb.InitStoreOp:
		c.Op = &metapb.SysCommand_InitStore{InitStore: op}
	case *metapb.PutDriveOp:
		c.Op = &metapb.SysCommand_PutDrive{PutDrive: op}
	case *metapb.SetDriveStateOp:
		c.Op = &metapb.SysCommand_SetDriveState{SetDriveState: op}
	case *metapb.ReplaceDriveOp:
		c.Op = &metapb.SysCommand_ReplaceDrive{ReplaceDrive: op}
	case *metapb.PutPGsOp:
		c.Op = &metapb.SysCommand_PutPgs{PutPgs: op}
	case *metapb.UpdatePGOp:
		c.Op = &metapb.SysCommand_UpdatePg{UpdatePg: op}
	case *metapb.PutGroupOp:
		c.Op = &metapb.SysCommand_PutGroup{PutGroup: op}
	case *metapb.CreateBucketOp:
		c.Op = &metapb.SysCommand_CreateBucket{CreateBucket: op}
	case *metapb.SetBucketStateOp:
		c.Op = &metapb.SysCommand_SetBucketState{SetBucketState: op}
	case *metapb.SetBucketConfigOp:
		c.Op = &metapb.SysCommand_SetBucketConfig{SetBucketConfig: op}
	case *metapb.BucketRowsDoneOp:
		c.Op = &metapb.SysCommand_BucketRowsDone{BucketRowsDone: op}
	case *metapb.RemoveBucketOp:
		c.Op = &metapb.SysCommand_RemoveBucket{RemoveBucket: op}
	case *metapb.DriveStartedOp:
		c.Op = &metapb.SysCommand_DriveStarted{DriveStarted: op}
	case *metapb.PutTargetOp:
		c.Op = &metapb.SysCommand_PutTarget{PutTarget: op}
	case *metapb.RemoveTargetOp:
		c.Op = &metapb.SysCommand_RemoveTarget{RemoveTarget: op}
	default:
		nodeCommand(c, op)
	}
	return c
}

const (
	up   = uint32(cluster.DriveActive)
	down = uint32(cluster.DriveDown)
)

func TestBirth(t *testing.T) {
	s := newSim(t)
	top := s.topology()
	if top.Version != 1 || top.StoreID != "store-1" || len(top.Drives) != 3 || len(top.PGs) != 2 || len(top.Groups) != 2 {
		t.Fatalf("%+v", top)
	}
	if pg := top.PGs[2]; pg.Epoch != 1 || !bytes.Equal(pg.Drives[0][:], did(2)) || pg.Scheme != (storage.Scheme{K: 1, M: 2}) {
		t.Fatalf("%+v", pg)
	}
	s.ok(initOp())
	other := initOp()
	other.StoreId = "another"
	s.refused(errs.Foreign, other)
	st, err := Store(s.db)
	if err != nil || st.NextPg != 3 || st.NextGroup != 3 || st.NextBucket != 1 || st.CreatedMs != 1000 {
		t.Fatalf("%v %v", st, err)
	}
	for name, spoil := range map[string]func(*metapb.InitStoreOp){
		"no id":        func(op *metapb.InitStoreOp) { op.StoreId = "" },
		"no drives":    func(op *metapb.InitStoreOp) { op.Drives = nil },
		"drive twice":  func(op *metapb.InitStoreOp) { op.Drives[1].Id = did(1) },
		"no zone":      func(op *metapb.InitStoreOp) { op.Drives[1].Zone = "" },
		"strange pg":   func(op *metapb.InitStoreOp) { op.Pgs[0].Drives[0] = did(9) },
		"short pg":     func(op *metapb.InitStoreOp) { op.Pgs[0].Drives = op.Pgs[0].Drives[:2] },
		"pg twice":     func(op *metapb.InitStoreOp) { op.Pgs[0].Drives[0] = did(2) },
		"group twice":  func(op *metapb.InitStoreOp) { op.Groups[1].Id = 1 },
		"replica lost": func(op *metapb.InitStoreOp) { op.Groups[1].Replicas[0].Drive = did(8) },
	} {
		op := initOp()
		spoil(op)
		b := openDB(t).NewBatch()
		if err := Birth(b, op, 1); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBirthByCommandIsTheSame(t *testing.T) {
	s := newSim(t)
	o := &sim{t: t, db: openDB(t), m: New(), ms: 1000}
	if res := o.do(&metapb.PutDriveOp{Drive: sysDrive(4, "z")}); res.Ok || errs.Kind(res.Kind) != errs.Unavailable {
		t.Fatalf("a command before birth: %v", res)
	}
	o.ok(initOp())
	if s.dump() != o.dump() {
		t.Fatalf("%s\n%s", s.dump(), o.dump())
	}
}

func TestDriveDownAndBack(t *testing.T) {
	s := newSim(t)
	s.ms = 5000
	if res := s.ok(&metapb.SetDriveStateOp{Drive: did(2), State: down}); res.Version != 2 {
		t.Fatalf("version %d", res.Version)
	}
	top := s.topology()
	d := top.Drives[storage.DriveID(did(2))]
	if d.State != cluster.DriveDown || d.DownSinceMS != 5000 {
		t.Fatalf("%+v", d)
	}
	if pg := top.PGs[1]; pg.Epoch != 2 || !slices.Equal(pg.DirtySince, []storage.Epoch{0, 2, 0}) {
		t.Fatalf("%+v", pg)
	}
	if res := s.ok(&metapb.SetDriveStateOp{Drive: did(2), State: down}); res.Version != 2 {
		t.Fatal("no change must not raise the version")
	}
	// Nothing clears the mark of a drive that is down.
	row := PGToRow(ptr(top.PGs[1]))
	row.DirtySince[1] = 0
	s.refused(errs.Conflict, &metapb.UpdatePGOp{Pg: row, IfEpoch: 2})

	s.ok(&metapb.SetDriveStateOp{Drive: did(2), State: up})
	if pg := s.topology().PGs[1]; pg.Epoch != 3 || !slices.Equal(pg.DirtySince, []storage.Epoch{0, 2, 0}) {
		t.Fatalf("after the return: %+v", pg)
	}
	// A resync that began before the drive went down again does not count.
	s.ok(&metapb.SetDriveStateOp{Drive: did(2), State: down})
	s.ok(&metapb.SetDriveStateOp{Drive: did(2), State: up})
	s.refused(errs.Conflict, &metapb.UpdatePGOp{Pg: row, IfEpoch: 3})
	if pg := s.topology().PGs[1]; pg.Epoch != 5 || pg.DirtySince[1] != 2 {
		t.Fatalf("the oldest mark counts: %+v", pg)
	}
	s.ok(&metapb.UpdatePGOp{Pg: row, IfEpoch: 5})
	if pg := s.topology().PGs[1]; pg.Epoch != 5 || pg.DirtySince[1] != 0 {
		t.Fatalf("clearing keeps the epoch: %+v", pg)
	}
	s.refused(errs.NotFound, &metapb.SetDriveStateOp{Drive: did(9), State: down})
	s.refused(errs.InvalidArgument, &metapb.SetDriveStateOp{Drive: did(1), State: uint32(cluster.DriveRemoved)})
	s.refused(errs.InvalidArgument, &metapb.SetDriveStateOp{Drive: did(1), State: 257})
}

func ptr[T any](v T) *T { return &v }

func TestReplaceDrive(t *testing.T) {
	s := newSim(t)
	fresh := sysDrive(7, "zone-2")
	fresh.Path = "zone-2/drive-2" // the slot of drive 2
	s.refused(errs.InvalidArgument, &metapb.ReplaceDriveOp{Old: did(1), New: fresh})
	s.refused(errs.NotFound, &metapb.ReplaceDriveOp{Old: did(8), New: fresh})
	s.refused(errs.Conflict, &metapb.PutDriveOp{Drive: fresh})
	s.ok(&metapb.SetDriveStateOp{Drive: did(2), State: down})
	s.ok(&metapb.ReplaceDriveOp{Old: did(2), New: fresh})
	top := s.topology()
	if top.Drives[storage.DriveID(did(2))].State != cluster.DriveRemoved || top.Drives[storage.DriveID(did(7))].State != cluster.DriveActive {
		t.Fatalf("%+v", top.Drives)
	}
	if pg := top.PGs[1]; pg.Epoch != 3 || pg.DirtySince[1] != 1 || pg.Drives[1] != storage.DriveID(did(7)) {
		t.Fatalf("%+v", pg)
	}
	s.ok(&metapb.ReplaceDriveOp{Old: did(2), New: fresh}) // by a controller that did not see the answer
	s.refused(errs.Foreign, &metapb.SetDriveStateOp{Drive: did(2), State: up})
	s.refused(errs.Foreign, &metapb.DriveStartedOp{Drive: did(2), Starts: 100})
	s.refused(errs.Foreign, &metapb.PutDriveOp{Drive: sysDrive(2, "zone-2")})
	s.refused(errs.Foreign, &metapb.PutPGsOp{Pgs: []*metapb.SysPG{{K: 1, StorageClass: "STANDARD", Drives: [][]byte{did(2)}}}})
}

func TestDriveStarted(t *testing.T) {
	s := newSim(t)
	v := s.topology().Version
	s.ok(&metapb.DriveStartedOp{Drive: did(1), Starts: 2})
	s.refused(errs.Foreign, &metapb.DriveStartedOp{Drive: did(1), Starts: 2})
	s.refused(errs.Foreign, &metapb.DriveStartedOp{Drive: did(1), Starts: 1})
	s.ok(&metapb.DriveStartedOp{Drive: did(1), Starts: 9})
	if n, err := DriveStarts(s.db, storage.DriveID(did(1))); err != nil || n != 9 {
		t.Fatal(n, err)
	}
	if s.topology().Version != v {
		t.Fatal("starts are not topology")
	}
	if _, err := DriveStarts(s.db, storage.DriveID(did(99))); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}

func TestPutDriveMoves(t *testing.T) {
	s := newSim(t)
	d := sysDrive(1, "zone-1")
	d.Path, d.Starts, d.State = "/elsewhere", 77, down
	s.ok(&metapb.PutDriveOp{Drive: d})
	got := s.topology().Drives[storage.DriveID(did(1))]
	if got.Path != "/elsewhere" || got.State != cluster.DriveActive {
		t.Fatalf("%+v", got)
	}
	if n, _ := DriveStarts(s.db, got.ID); n != 1 {
		t.Fatalf("starts %d", n)
	}
	d.Zone = "zone-2"
	s.refused(errs.Conflict, &metapb.PutDriveOp{Drive: d})
}

func TestPGs(t *testing.T) {
	s := newSim(t)
	pg := &metapb.SysPG{K: 2, M: 1, StorageClass: "STANDARD", Drives: [][]byte{did(1), did(2), did(3)}}
	known := initOp().Pgs[0]
	res := s.ok(&metapb.PutPGsOp{Pgs: []*metapb.SysPG{pg, known, pg}})
	if !slices.Equal(res.PgIds, []uint32{3, 1, 3}) {
		t.Fatal(res.PgIds)
	}
	v := res.Version
	if res := s.ok(&metapb.PutPGsOp{Pgs: []*metapb.SysPG{pg}}); res.Version != v || res.PgIds[0] != 3 {
		t.Fatal("a PG that exists must be skipped")
	}
	s.ok(&metapb.SetDriveStateOp{Drive: did(3), State: down})
	pg2 := &metapb.SysPG{K: 2, M: 1, StorageClass: "STANDARD", Drives: [][]byte{did(3), did(2), did(1)}}
	id := storage.PGID(s.ok(&metapb.PutPGsOp{Pgs: []*metapb.SysPG{pg2}}).PgIds[0])
	if got := s.topology().PGs[id]; got.DirtySince[0] != 1 || got.DirtySince[1] != 0 {
		t.Fatalf("a PG born while a drive is down: %+v", got)
	}
	s.refused(errs.InvalidArgument, &metapb.PutPGsOp{Pgs: []*metapb.SysPG{{Id: 9, K: 1, StorageClass: "S", Drives: [][]byte{did(1)}}}})
	s.refused(errs.InvalidArgument, &metapb.PutPGsOp{Pgs: []*metapb.SysPG{{K: 65, StorageClass: "S"}}})
	s.refused(errs.NotFound, &metapb.PutPGsOp{Pgs: []*metapb.SysPG{{K: 1, StorageClass: "S", Drives: [][]byte{did(5)}}}})

	// A move: the new drive is dirty, the old one is asked until it is done.
	s.ok(&metapb.PutDriveOp{Drive: sysDrive(4, "zone-1")})
	cur := s.topology().PGs[1]
	row := PGToRow(&cur)
	row.Previous[0], row.Drives[0] = row.Drives[0], did(4)
	s.refused(errs.InvalidArgument, &metapb.UpdatePGOp{Pg: row, IfEpoch: uint64(cur.Epoch)}) // not marked dirty
	row.DirtySince[0] = 1
	s.refused(errs.Conflict, &metapb.UpdatePGOp{Pg: row, IfEpoch: uint64(cur.Epoch) + 1})
	s.ok(&metapb.UpdatePGOp{Pg: row, IfEpoch: uint64(cur.Epoch)})
	moved := s.topology().PGs[1]
	if moved.Epoch != cur.Epoch+1 || moved.Previous[0] != cur.Drives[0] {
		t.Fatalf("%+v", moved)
	}
	row = PGToRow(&moved)
	row.Previous[0], row.DirtySince[0] = nil, 0
	s.ok(&metapb.UpdatePGOp{Pg: row, IfEpoch: uint64(moved.Epoch)})
	if got := s.topology().PGs[1]; got.Epoch != moved.Epoch || !got.Previous[0].IsZero() || got.DirtySince[0] != 0 {
		t.Fatalf("%+v", got)
	}
	v = s.topology().Version
	s.ok(&metapb.UpdatePGOp{Pg: row, IfEpoch: uint64(moved.Epoch)})
	if s.topology().Version != v {
		t.Fatal("nothing changed, but the version did")
	}
	row.M = 1
	s.refused(errs.InvalidArgument, &metapb.UpdatePGOp{Pg: row, IfEpoch: uint64(moved.Epoch)})
}

func TestPutGroup(t *testing.T) {
	s := newSim(t)
	g := &metapb.SysGroup{Id: 5, Start: &metapb.PosPB{Bucket: 3, Key: []byte("k")}, Replicas: []*metapb.SysReplica{{Id: "g5-a", Drive: did(2), Voter: true}}}
	v := s.ok(&metapb.PutGroupOp{Group: g}).Version
	if s.ok(&metapb.PutGroupOp{Group: g}).Version != v {
		t.Fatal("the same group again is no change")
	}
	got := s.topology().Groups[5]
	if got.Bounds.Start != (cluster.Pos{Bucket: 3, Key: "k"}) || got.Replicas[0].ID != "g5-a" || !got.Replicas[0].Voter {
		t.Fatalf("%+v", got)
	}
	if !GroupToRow(&got).EqualVT(g) {
		t.Fatal("round trip")
	}
	if st, _ := Store(s.db); st.NextGroup != 6 {
		t.Fatal(st.NextGroup)
	}
	s.refused(errs.NotFound, &metapb.PutGroupOp{Group: &metapb.SysGroup{Id: 6, Replicas: []*metapb.SysReplica{{Id: "x", Drive: did(9)}}}})
	s.refused(errs.InvalidArgument, &metapb.PutGroupOp{Group: &metapb.SysGroup{Id: 6}})
}

func create(name, owner string) *metapb.CreateBucketOp {
	return &metapb.CreateBucketOp{Bucket: &metapb.SysBucket{Name: name, Owner: owner, Region: "us-east-1"}}
}

const (
	bCreating = metapb.BucketState_BUCKET_CREATING
	bActive   = metapb.BucketState_BUCKET_ACTIVE
	bDeleting = metapb.BucketState_BUCKET_DELETING
)

func TestBuckets(t *testing.T) {
	s := newSim(t)
	s.ms = 7000
	b := s.ok(create("photos", "ann")).Bucket
	first := s.n
	if b.Id != 1 || b.State != bCreating || b.CreatedMs != 7000 || b.Generation != 1 || !bytes.Equal(b.Command, cid(first)) {
		t.Fatal(b)
	}
	s.refused(errs.BucketBusy, create("photos", "ann"))
	s.refused(errs.BucketBusy, create("photos", "bob"))
	if p, err := PendingBuckets(s.db, 0, 10); err != nil || len(p) != 1 || p[0].Id != 1 {
		t.Fatal(p, err)
	}
	if l, _, _ := ListBuckets(s.db, "ann", "", "", 10); len(l) != 0 {
		t.Fatal("a bucket that is being created was listed")
	}
	s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: bCreating, To: bActive})
	s.refused(errs.BucketAlreadyOwned, create("photos", "ann"))
	if res := s.refused(errs.BucketAlreadyExists, create("photos", "bob")); res.Bucket != nil {
		t.Fatal("another account's bucket was shown")
	}
	// The repeat tells how far it came.
	res := s.apply(command(first, create("photos", "ann")))
	if !res.Ok || res.Bucket.Id != 1 || res.Bucket.State != bActive {
		t.Fatal(res)
	}
	if res := s.refused(errs.Conflict, &metapb.SetBucketStateOp{Bucket: 1, From: bCreating, To: bActive}); res.Bucket.State != bActive {
		t.Fatal(res)
	}
	s.refused(errs.InvalidArgument, &metapb.SetBucketStateOp{Bucket: 1, From: bActive, To: bCreating})
	s.refused(errs.Conflict, &metapb.RemoveBucketOp{Bucket: 1})
	s.refused(errs.NoSuchBucket, &metapb.SetBucketStateOp{Bucket: 2, From: bActive, To: bDeleting})
	s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: bActive, To: bDeleting})
	s.refused(errs.BucketBusy, create("photos", "ann"))
	lift := &metapb.SetBucketStateOp{Bucket: 1, From: bDeleting, To: bActive, IfGeneration: 3}
	s.ok(lift.CloneVT())
	s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: bActive, To: bDeleting})
	// A gateway that was held up since the first deletion must not end the second one.
	if res := s.refused(errs.Conflict, lift.CloneVT()); res.Bucket.State != bDeleting || res.Bucket.Generation != 5 {
		t.Fatal(res)
	}
	s.ok(&metapb.RemoveBucketOp{Bucket: 1})
	s.refused(errs.NoSuchBucket, &metapb.RemoveBucketOp{Bucket: 1})
	if _, err := BucketByName(s.db, "photos"); !errs.Is(err, errs.NoSuchBucket) {
		t.Fatal(err)
	}
	// A late repeat of the creation must not bring the bucket back.
	if res := s.apply(command(first, create("photos", "ann"))); !res.Ok || res.Bucket.Id != 1 {
		t.Fatal(res)
	}
	if _, err := BucketByName(s.db, "photos"); !errs.Is(err, errs.NoSuchBucket) {
		t.Fatal("a repeat brought the bucket back")
	}
	if b := s.ok(create("photos", "bob")).Bucket; b.Id != 2 {
		t.Fatal("ids are never used again", b)
	}
	s.refused(errs.InvalidArgument, create("", "ann"))
	s.refused(errs.InvalidArgument, create("x", ""))
	s.refused(errs.InvalidArgument, create(strings.Repeat("x", 256), "ann"))
}

func TestBucketConfiguration(t *testing.T) {
	s := newSim(t)
	const enabled, suspended = metapb.Versioning_VERSIONING_ENABLED, metapb.Versioning_VERSIONING_SUSPENDED
	config := func() uint64 {
		t.Helper()
		st, err := Store(s.db)
		if err != nil {
			t.Fatal(err)
		}
		return st.Config
	}
	pending := func(want int) {
		t.Helper()
		if p, err := PendingBuckets(s.db, 0, 10); err != nil || len(p) != want {
			t.Fatalf("%d pending, %v, want %d", len(p), err, want)
		}
	}
	s.ok(create("b", "ann"))
	s.refused(errs.BucketBusy, &metapb.SetBucketConfigOp{Bucket: 1, Versioning: enabled}) // it is being created
	s.refused(errs.NoSuchBucket, &metapb.SetBucketConfigOp{Bucket: 2, Versioning: enabled})
	s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: bCreating, To: bActive})
	s.refused(errs.InvalidState, &metapb.SetBucketConfigOp{Bucket: 1, Lock: &metapb.BucketLock{}}) // without versioning
	s.refused(errs.InvalidArgument, &metapb.SetBucketConfigOp{Bucket: 1, Versioning: 3})
	pending(0)

	// What ranges decide by is a decision of its own, pending until they have it.
	before := config()
	b := s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Versioning: enabled}).Bucket
	if b.Generation != 3 || b.Versioning != enabled || config() != before+1 {
		t.Fatal(b)
	}
	pending(1)
	b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Versioning: suspended}).Bucket
	s.refused(errs.Conflict, &metapb.BucketRowsDoneOp{Bucket: 1, Generation: b.Generation - 1})
	pending(1)
	s.ok(&metapb.BucketRowsDoneOp{Bucket: 1, Generation: b.Generation})
	pending(0)

	// Tags are no business of the ranges, but of the gateways. Results, which are kept, come without them.
	tags := func() int {
		t.Helper()
		row, err := BucketByID(s.db, 1)
		if err != nil {
			t.Fatal(err)
		}
		return len(row.Tags)
	}
	before = config()
	b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Tags: &metapb.Tags{Tags: []*metapb.KV{{Name: "n", Value: "v"}}}}).Bucket
	if b.Generation != 4 || tags() != 1 || len(b.Tags) != 0 || config() != before+1 {
		t.Fatal(b)
	}
	pending(0)
	s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Versioning: enabled})
	if tags() != 1 {
		t.Fatal("a change of something else lost the tags")
	}
	if b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Tags: &metapb.Tags{}}).Bucket; tags() != 0 || b.Versioning != enabled {
		t.Fatal(b)
	}

	// So are a public access block and ownership controls.
	before = config()
	block := &metapb.PublicAccessBlock{BlockPublicAcls: true, RestrictPublicBuckets: true}
	if b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, PublicAccessBlock: &metapb.SetPublicAccessBlock{Block: block}}).Bucket; !b.PublicAccessBlock.EqualVT(block) || b.Generation != 5 || config() != before+1 {
		t.Fatal(b)
	}
	if b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, OwnershipControls: &metapb.SetOwnershipControls{Deleted: true}}).Bucket; !b.NoOwnershipControls || !b.PublicAccessBlock.EqualVT(block) || b.Generation != 5 || config() != before+2 {
		t.Fatal(b)
	}
	if b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, PublicAccessBlock: &metapb.SetPublicAccessBlock{}}).Bucket; b.PublicAccessBlock != nil || !b.NoOwnershipControls {
		t.Fatal(b)
	}
	if b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, OwnershipControls: &metapb.SetOwnershipControls{}}).Bucket; b.NoOwnershipControls {
		t.Fatal(b)
	}

	// Lifecycle rules are known to ranges by the generation alone: what older rules decided must not be carried out any more.
	rules := func(after storage.BucketID, want ...*metapb.LifecycleConfig) {
		t.Helper()
		page, err := LifecycleBuckets(s.db, after, 10)
		if err != nil || len(page) != len(want) {
			t.Fatalf("%v, %v, want %d", page, err, len(want))
		}
		for i, w := range want {
			if row, err := BucketByID(s.db, storage.BucketID(page[i].Id)); err != nil || !row.EqualVT(page[i]) || !row.Lifecycle.EqualVT(w) {
				t.Fatalf("%v, %v, want %v", page[i], err, w)
			}
		}
	}
	s.ok(&metapb.BucketRowsDoneOp{Bucket: 1, Generation: b.Generation})
	pending(0)
	one := &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{Id: "one", AbortDays: 1}}, VariesByStorageClass: true}
	two := &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{Id: "two", Expiration: &metapb.LifecycleExpiration{Days: 3}}}}
	before = config()
	rules(0)
	b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Lifecycle: &metapb.SetLifecycle{Config: one}}).Bucket
	if b.Generation != 6 || b.Lifecycle != nil || b.Versioning != enabled || config() != before+1 {
		t.Fatal(b)
	}
	pending(1)
	rules(0, one)
	rules(1)
	b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Lifecycle: &metapb.SetLifecycle{Config: two}}).Bucket
	s.refused(errs.Conflict, &metapb.BucketRowsDoneOp{Bucket: 1, Generation: b.Generation - 1})
	s.ok(&metapb.BucketRowsDoneOp{Bucket: 1, Generation: b.Generation})
	pending(0)
	s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Tags: &metapb.Tags{}}) // changes nothing about them
	rules(0, two)
	for _, page := range []func() ([]*metapb.SysBucket, bool, error){
		func() ([]*metapb.SysBucket, bool, error) { return ListBuckets(s.db, "ann", "", "", 10) },
		func() ([]*metapb.SysBucket, bool, error) {
			s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Versioning: enabled})
			page, err := PendingBuckets(s.db, 0, 10)
			return page, false, err
		},
	} {
		if rows, _, err := page(); err != nil || len(rows) != 1 || rows[0].Lifecycle != nil {
			t.Fatal(rows, err)
		}
	}
	huge := &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{Id: strings.Repeat("x", lifecycleBytesMax-8)}}}
	if huge.SizeVT() != lifecycleBytesMax {
		t.Fatal(huge.SizeVT())
	}
	s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Lifecycle: &metapb.SetLifecycle{Config: huge}})
	huge.Rules[0].Id += "x"
	s.refused(errs.InvalidArgument, &metapb.SetBucketConfigOp{Bucket: 1, Lifecycle: &metapb.SetLifecycle{Config: huge}})
	b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Lifecycle: &metapb.SetLifecycle{}}).Bucket
	if row, err := BucketByID(s.db, 1); err != nil || row.Lifecycle != nil || b.Generation != 10 {
		t.Fatal(row, err, b)
	}
	rules(0)
	s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Lifecycle: &metapb.SetLifecycle{Config: two}})
	pending(1)

	// Object lock is for good and keeps versioning enabled.
	for _, bad := range []*metapb.BucketLock{
		{Mode: "LEGAL", Days: 1}, {Mode: "GOVERNANCE"}, {Mode: "GOVERNANCE", Days: 1, Years: 1}, {Days: 1}, {Years: 1},
		{Mode: "COMPLIANCE", Days: 36501}, {Mode: "COMPLIANCE", Years: 101},
	} {
		s.refused(errs.InvalidArgument, &metapb.SetBucketConfigOp{Bucket: 1, Lock: bad})
	}
	b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Lock: &metapb.BucketLock{Mode: "GOVERNANCE", Years: 2}}).Bucket
	if !b.ObjectLock || b.DefaultLock.Years != 2 {
		t.Fatal(b)
	}
	s.refused(errs.InvalidState, &metapb.SetBucketConfigOp{Bucket: 1, Versioning: suspended})
	if b = s.ok(&metapb.SetBucketConfigOp{Bucket: 1, Lock: &metapb.BucketLock{}}).Bucket; !b.ObjectLock || b.DefaultLock.Mode != "" {
		t.Fatal(b)
	}

	// A deletion is a decision too, and ends what was pending when it is given up: it puts the rows itself.
	b = s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: bActive, To: bDeleting}).Bucket
	s.refused(errs.BucketBusy, &metapb.SetBucketConfigOp{Bucket: 1, Versioning: enabled})
	s.refused(errs.Conflict, &metapb.BucketRowsDoneOp{Bucket: 1, Generation: b.Generation})
	pending(1)
	rules(0) // nothing of it expires meanwhile
	s.ok(&metapb.SetBucketStateOp{Bucket: 1, From: bDeleting, To: bActive})
	pending(0)
	rules(0, two)

	locked := create("locked", "ann")
	locked.Bucket.ObjectLock = true
	if b := s.ok(locked).Bucket; b.Versioning != enabled {
		t.Fatal("object lock without versioning", b)
	}
	tagged := create("tagged", "ann")
	tagged.Bucket.Tags = []*metapb.KV{{Name: "n"}}
	s.refused(errs.InvalidArgument, tagged)
	blocked := create("blocked", "ann")
	blocked.Bucket.PublicAccessBlock = &metapb.PublicAccessBlock{}
	s.refused(errs.InvalidArgument, blocked)
	disowned := create("disowned", "ann")
	disowned.Bucket.NoOwnershipControls = true
	s.refused(errs.InvalidArgument, disowned)
	ruled := create("ruled", "ann")
	ruled.Bucket.Lifecycle = one
	s.refused(errs.InvalidArgument, ruled)
}

// A command issued by a clock that is ahead is answered from its outcome for as long as a repeat of it is let in.
func TestIssuedAhead(t *testing.T) {
	keep := storage.OutcomeRetention.Milliseconds()
	s := newSim(t)
	cmd := command(1, &metapb.DriveStartedOp{Drive: did(1), Starts: 5})
	cmd.IssuedMs = s.ms + keep + 1
	if res := s.apply(cmd); res.Ok || errs.Kind(res.Kind) != errs.TooLate {
		t.Fatal("its outcome cannot be kept for long enough:", res)
	}
	cmd.IssuedMs = s.ms + keep
	if res := s.apply(cmd); !res.Ok {
		t.Fatal(res)
	}
	for range 3 {
		s.ms += keep
		s.n = 1000 + int(s.ms)
		for range 20 { // sweeps
			s.ok(&metapb.SetDriveStateOp{Drive: did(1), State: up})
		}
		res := s.apply(cmd)
		if late := s.ms > cmd.IssuedMs+keep; res.Ok == late || late && errs.Kind(res.Kind) != errs.TooLate {
			t.Fatalf("%d ms after its issue: %v", s.ms-cmd.IssuedMs, res)
		}
	}
}

func TestOutcomesExpire(t *testing.T) {
	s := newSim(t)
	cmd := command(1, &metapb.DriveStartedOp{Drive: did(1), Starts: 5})
	cmd.IssuedMs = s.ms
	if res := s.apply(cmd); !res.Ok {
		t.Fatal(res)
	}
	if res := s.apply(cmd); !res.Ok {
		t.Fatal("a repeat is answered from the first:", res)
	}
	s.ms += storage.OutcomeRetention.Milliseconds() + 1
	if res := s.apply(cmd); res.Ok || errs.Kind(res.Kind) != errs.TooLate {
		t.Fatal("a repeat that comes too late is refused:", res)
	}
	s.n = 100
	for range 200 {
		s.ok(&metapb.SetDriveStateOp{Drive: did(1), State: up})
	}
	s.ms += storage.OutcomeRetention.Milliseconds() + 1
	for range 40 {
		s.ok(&metapb.SetDriveStateOp{Drive: did(1), State: up})
	}
	n := 0
	start, end := kindSpan(kindOutcome)
	scan(s.db, start, end, func(_, _ []byte) (bool, error) { n++; return true, nil })
	m := 0
	start, end = kindSpan(kindAge)
	scan(s.db, start, end, func(_, _ []byte) (bool, error) { m++; return true, nil })
	if n != 40 || m != 40 {
		t.Fatalf("%d outcomes and %d ages left, want the 40 newest", n, m)
	}
	// The clock never goes back.
	ms := s.ms
	s.ms = 5
	if res := s.ok(&metapb.SetDriveStateOp{Drive: did(1), State: up}); res.TimeMs != ms {
		t.Fatal(res.TimeMs, ms)
	}
	if now, err := TimeMS(s.db); err != nil || now != ms {
		t.Fatal(now, err)
	}
}

func TestUnknownVersionStops(t *testing.T) {
	s := newSim(t)
	cmd := command(1, &metapb.DriveStartedOp{Drive: did(1), Starts: 5})
	cmd.Version = CommandVersion + 1
	data, _ := cmd.MarshalVT()
	b := s.db.NewIndexedBatch()
	defer b.Close()
	if _, err := s.m.Apply(b, []cluster.Entry{{Index: 9, Data: data}}); !errs.Is(err, errs.NotImplemented) {
		t.Fatal(err)
	}
}

func TestDamagedRowStops(t *testing.T) {
	s := newSim(t)
	if err := s.db.Set(driveKey(did(1)), []byte{0xff}, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	data, _ := command(1, &metapb.DriveStartedOp{Drive: did(1), Starts: 5}).MarshalVT()
	b := s.db.NewIndexedBatch()
	defer b.Close()
	if _, err := s.m.Apply(b, []cluster.Entry{{Index: 9, Data: data}}); !errs.Is(err, errs.Corrupt) {
		t.Fatal(err)
	}
}

func TestTenThousandBuckets(t *testing.T) {
	s := newSim(t)
	const n = 10000
	var entries []cluster.Entry
	for i := range n {
		owner := fmt.Sprintf("owner-%d", i%3)
		c, _ := command(2*i+1, create(fmt.Sprintf("bucket-%05d", i), owner)).MarshalVT()
		a, _ := command(2*i+2, &metapb.SetBucketStateOp{Bucket: uint64(i + 1), From: bCreating, To: bActive}).MarshalVT()
		entries = append(entries, cluster.Entry{TimeMS: 2000, Data: c}, cluster.Entry{TimeMS: 2000, Data: a})
	}
	for part := range slices.Chunk(entries, 500) {
		b := s.db.NewIndexedBatch()
		if _, err := s.m.Apply(b, part); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	after, total := "", 0
	for {
		page, more, err := ListBuckets(s.db, "owner-1", "bucket-", after, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range page {
			if b.Owner != "owner-1" || b.Name <= after {
				t.Fatal(b)
			}
			after = b.Name
		}
		total += len(page)
		if !more {
			break
		}
	}
	if total != n/3 {
		t.Fatal(total)
	}
	if page, more, err := ListBuckets(s.db, "owner-1", "bucket-00", "bucket-00004", 2); err != nil || !more || len(page) != 2 || page[0].Name != "bucket-00007" {
		t.Fatal(page, more, err)
	}
	if page, _, _ := ListBuckets(s.db, "owner-1", "bucket-000", "zzz", 2); len(page) != 0 {
		t.Fatal(page)
	}
	if page, _, _ := ListBuckets(s.db, "owner", "", "", 2); len(page) != 0 {
		t.Fatal("the rows of an owner whose name is longer were read")
	}
}

// ---- random operations against a model ----

type modelBucket struct {
	id    uint64
	name  string
	owner string
	state metapb.BucketState

	generation uint64
	versioning metapb.Versioning
	lock       *metapb.BucketLock // nil: no object lock
	tags       string             // value of the one tag
	block      *metapb.PublicAccessBlock
	disowned   bool // without ownership controls
	rules      *metapb.LifecycleConfig
	rows       bool // a change of the configuration is on its way to the ranges
}

type model struct {
	version uint64
	drives  map[int]cluster.DriveState
	zone    map[int]string
	starts  map[int]uint64
	pgs     map[uint32]*modelPG
	buckets map[uint64]*modelBucket
	nextB   uint64
}

type modelPG struct {
	epoch  uint64
	drives []int
	dirty  []uint64
}

func (m *model) byName(name string) *modelBucket {
	for _, b := range m.buckets {
		if b.name == name {
			return b
		}
	}
	return nil
}

func TestRandomOperations(t *testing.T) {
	for seed := uint64(1); seed <= 8; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { randomRun(t, seed) })
	}
}

func randomRun(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	s := newSim(t)
	m := &model{
		version: 1, nextB: 1,
		drives: map[int]cluster.DriveState{}, zone: map[int]string{}, starts: map[int]uint64{},
		pgs: map[uint32]*modelPG{
			1: {1, []int{1, 2, 3}, make([]uint64, 3)},
			2: {1, []int{2, 3, 1}, make([]uint64, 3)},
		},
		buckets: map[uint64]*modelBucket{},
	}
	for i := 1; i <= 3; i++ {
		m.drives[i], m.zone[i], m.starts[i] = cluster.DriveActive, fmt.Sprintf("zone-%d", i), 1
	}
	nextDrive := 4
	check := func(res *metapb.SysResult, want errs.Kind, what string) {
		t.Helper()
		got := errs.Kind(res.Kind)
		if res.Ok != (want == 0) || got != want {
			t.Fatalf("%s: ok=%v %s %q, want %s", what, res.Ok, got, res.Detail, want)
		}
		if res.Version != m.version {
			t.Fatalf("%s: version %d, want %d", what, res.Version, m.version)
		}
	}
	for step := range 150 {
		s.ms += int64(rnd.IntN(3000))
		d := 1 + rnd.IntN(nextDrive)
		_, known := m.drives[d]
		gone := m.drives[d] == cluster.DriveRemoved
		base := errs.Kind(0)
		if !known {
			base = errs.NotFound
		} else if gone {
			base = errs.Foreign
		}
		switch op := rnd.IntN(12); op {
		case 0, 1: // down or back
			to := cluster.DriveState(1 + rnd.IntN(2))
			if base == 0 && m.drives[d] != to {
				m.drives[d] = to
				m.version++
				for _, pg := range m.pgs {
					for i, x := range pg.drives {
						if x == d {
							pg.epoch++
							if to == cluster.DriveDown && pg.dirty[i] == 0 {
								pg.dirty[i] = pg.epoch
							}
						}
					}
				}
			}
			check(s.do(&metapb.SetDriveStateOp{Drive: did(d), State: uint32(to)}), base, "state")
		case 2: // started
			n := uint64(rnd.IntN(20))
			want := base
			if want == 0 && n <= m.starts[d] {
				want = errs.Foreign
			} else if want == 0 {
				m.starts[d] = n
			}
			check(s.do(&metapb.DriveStartedOp{Drive: did(d), Starts: n}), want, "started")
		case 3: // replace
			fresh := sysDrive(nextDrive, m.zone[d])
			if !known {
				fresh.Zone = "z"
			}
			if base == 0 {
				m.version++
				m.drives[d], m.drives[nextDrive] = cluster.DriveRemoved, cluster.DriveActive
				m.zone[nextDrive], m.starts[nextDrive] = m.zone[d], 1
				for _, pg := range m.pgs {
					for i, x := range pg.drives {
						if x == d {
							pg.epoch++
							pg.drives[i], pg.dirty[i] = nextDrive, 1
						}
					}
				}
			}
			if d == nextDrive { // unknown, and itself
				base = errs.InvalidArgument
			}
			check(s.do(&metapb.ReplaceDriveOp{Old: did(d), New: fresh}), base, "replace")
			if base == 0 {
				nextDrive++
			}
		case 4: // clear a mark
			id := uint32(1 + rnd.IntN(2))
			pg := m.pgs[id]
			i, epoch := rnd.IntN(3), pg.epoch-uint64(rnd.IntN(2))
			cur := s.topology().PGs[storage.PGID(id)]
			row := PGToRow(&cur)
			row.DirtySince[i] = 0
			want := errs.Kind(0)
			switch {
			case epoch != pg.epoch:
				want = errs.Conflict
			case pg.dirty[i] == 0:
			case m.drives[pg.drives[i]] != cluster.DriveActive:
				want = errs.Conflict
			default:
				pg.dirty[i] = 0
				m.version++
			}
			check(s.do(&metapb.UpdatePGOp{Pg: row, IfEpoch: epoch}), want, "clear")
		case 5, 6: // create
			name, owner := fmt.Sprintf("b%d", rnd.IntN(6)), fmt.Sprintf("o%d", rnd.IntN(2))
			want := errs.Kind(0)
			if b := m.byName(name); b == nil {
				m.buckets[m.nextB] = &modelBucket{id: m.nextB, name: name, owner: owner, state: bCreating, generation: 1}
				m.nextB++
			} else if b.state != bActive {
				want = errs.BucketBusy
			} else if b.owner == owner {
				want = errs.BucketAlreadyOwned
			} else {
				want = errs.BucketAlreadyExists
			}
			check(s.do(create(name, owner)), want, "create")
		case 7: // bucket state
			id := 1 + rnd.Uint64N(m.nextB)
			from, to := metapb.BucketState(rnd.IntN(3)), metapb.BucketState(rnd.IntN(3))
			want := errs.Kind(0)
			if b := m.buckets[id]; b == nil {
				want = errs.NoSuchBucket
			} else if b.state != from {
				want = errs.Conflict
			} else if to == bCreating || from == to {
				want = errs.InvalidArgument
			} else {
				b.state, b.rows = to, false
				b.generation++
			}
			check(s.do(&metapb.SetBucketStateOp{Bucket: id, From: from, To: to}), want, "bucket state")
		case 8: // remove
			id := 1 + rnd.Uint64N(m.nextB)
			want := errs.Kind(0)
			if b := m.buckets[id]; b == nil {
				want = errs.NoSuchBucket
			} else if b.state != bDeleting {
				want = errs.Conflict
			} else {
				delete(m.buckets, id)
			}
			check(s.do(&metapb.RemoveBucketOp{Bucket: id}), want, "remove")
		case 9, 10: // configuration
			op, want := randomConfig(rnd, m)
			check(s.do(op), want, "configuration")
		case 11: // the ranges have it
			id := 1 + rnd.Uint64N(m.nextB)
			want, generation := errs.NoSuchBucket, uint64(1)
			if b := m.buckets[id]; b != nil {
				want, generation = errs.Conflict, b.generation-min(1, uint64(rnd.IntN(3)))
				if b.state == bActive && generation == b.generation {
					want, b.rows = 0, false
				}
			}
			check(s.do(&metapb.BucketRowsDoneOp{Bucket: id, Generation: generation}), want, "rows done")
		}
		if step%10 == 0 {
			compare(t, s, m)
		}
	}
	compare(t, s, m)
}

// randomConfig makes a change of some bucket's configuration and what it should answer, having made it in the model.
func randomConfig(rnd *rand.Rand, m *model) (*metapb.SetBucketConfigOp, errs.Kind) {
	op := &metapb.SetBucketConfigOp{Bucket: 1 + rnd.Uint64N(m.nextB), Versioning: metapb.Versioning(rnd.IntN(3))}
	if rnd.IntN(3) == 0 {
		op.Lock = &metapb.BucketLock{}
		if rnd.IntN(2) == 0 {
			op.Lock = &metapb.BucketLock{Mode: "COMPLIANCE", Days: uint32(rnd.IntN(2)), Years: uint32(rnd.IntN(2))}
		}
	}
	if rnd.IntN(3) == 0 {
		op.Tags = &metapb.Tags{Tags: []*metapb.KV{{Name: "n", Value: fmt.Sprint(rnd.IntN(100))}}}
	}
	if rnd.IntN(3) == 0 {
		op.PublicAccessBlock = &metapb.SetPublicAccessBlock{}
		if rnd.IntN(2) == 0 {
			op.PublicAccessBlock.Block = &metapb.PublicAccessBlock{BlockPublicAcls: rnd.IntN(2) == 0, BlockPublicPolicy: rnd.IntN(2) == 0}
		}
	}
	if rnd.IntN(3) == 0 {
		op.OwnershipControls = &metapb.SetOwnershipControls{Deleted: rnd.IntN(2) == 0}
	}
	if rnd.IntN(3) == 0 {
		op.Lifecycle = &metapb.SetLifecycle{}
		if rnd.IntN(2) == 0 {
			op.Lifecycle.Config = &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{Id: fmt.Sprint(rnd.IntN(100)), AbortDays: 1}}}
		}
	}
	b := m.buckets[op.Bucket]
	versioning := op.Versioning
	switch {
	case b == nil:
		return op, errs.NoSuchBucket
	case b.state != bActive:
		return op, errs.BucketBusy
	case versioning == 0:
		versioning = b.versioning
	}
	switch {
	case op.Versioning == metapb.Versioning_VERSIONING_SUSPENDED && (b.lock != nil || op.Lock != nil):
		return op, errs.InvalidState
	case op.Lock.GetMode() != "" && op.Lock.Days == op.Lock.Years:
		return op, errs.InvalidArgument
	case op.Lock != nil && versioning != metapb.Versioning_VERSIONING_ENABLED:
		return op, errs.InvalidState
	}
	if b.versioning = versioning; op.Lock != nil {
		b.lock = op.Lock
	}
	if op.Lifecycle != nil {
		b.rules = op.Lifecycle.Config
	}
	if op.Lock != nil || op.Versioning != 0 || op.Lifecycle != nil {
		b.rows = true
		b.generation++
	}
	if op.Tags != nil {
		b.tags = op.Tags.Tags[0].Value
	}
	if op.PublicAccessBlock != nil {
		b.block = op.PublicAccessBlock.Block
	}
	if op.OwnershipControls != nil {
		b.disowned = op.OwnershipControls.Deleted
	}
	return op, 0
}

func compare(t *testing.T, s *sim, m *model) {
	t.Helper()
	top := s.topology()
	if len(top.Drives) != len(m.drives) {
		t.Fatalf("%d drives, want %d", len(top.Drives), len(m.drives))
	}
	for n, st := range m.drives {
		id := storage.DriveID(did(n))
		if got := top.Drives[id]; got.State != st || string(got.Zone) != m.zone[n] {
			t.Fatalf("drive %d: %+v, want %s", n, got, st)
		}
		if got, _ := DriveStarts(s.db, id); got != m.starts[n] {
			t.Fatalf("drive %d: %d starts, want %d", n, got, m.starts[n])
		}
	}
	for id, pg := range m.pgs {
		got := top.PGs[storage.PGID(id)]
		if uint64(got.Epoch) != pg.epoch {
			t.Fatalf("pg %d: epoch %d, want %d", id, got.Epoch, pg.epoch)
		}
		for i := range pg.drives {
			if got.Drives[i] != storage.DriveID(did(pg.drives[i])) || uint64(got.DirtySince[i]) != pg.dirty[i] {
				t.Fatalf("pg %d: %+v, want %+v", id, got, pg)
			}
		}
	}
	pending, ruled := 0, 0
	for _, owner := range []string{"o0", "o1"} {
		var want []string
		for _, b := range m.buckets {
			got, err := BucketByName(s.db, b.name)
			if err != nil || got.Id != b.id || got.State != b.state || got.Owner != b.owner {
				t.Fatalf("%v %v, want %+v", got, err, b)
			}
			tags := ""
			if len(got.Tags) > 0 {
				tags = got.Tags[0].Value
			}
			if got.Generation != b.generation || got.Versioning != b.versioning || got.ObjectLock != (b.lock != nil) || tags != b.tags || !got.PublicAccessBlock.EqualVT(b.block) || got.NoOwnershipControls != b.disowned || !got.Lifecycle.EqualVT(b.rules) ||
				b.lock != nil && !b.lock.EqualVT(got.DefaultLock) {
				t.Fatalf("%v, want %+v", got, b)
			}
			if b.owner == owner {
				if b.state != bCreating {
					want = append(want, b.name)
				}
				if b.state != bActive || b.rows {
					pending++
				}
				if b.state == bActive && b.rules != nil {
					ruled++
				}
			}
		}
		sort.Strings(want)
		var got []string
		after := ""
		for {
			page, more, err := ListBuckets(s.db, owner, "", after, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range page {
				got = append(got, b.Name)
				after = b.Name
			}
			if !more {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("list of %s: %v, want %v", owner, got, want)
		}
	}
	if p, err := PendingBuckets(s.db, 0, 100); err != nil || len(p) != pending {
		t.Fatalf("%d pending %v, want %d", len(p), err, pending)
	}
	if p, err := LifecycleBuckets(s.db, 0, 100); err != nil || len(p) != ruled {
		t.Fatalf("%d with rules %v, want %d", len(p), err, ruled)
	}
}

// randomCommands are plausible and absurd commands, some of them repeats.
func randomCommands(rnd *rand.Rand, n int) []cluster.Entry {
	var out []cluster.Entry
	ms := int64(1000)
	for i := range n {
		ms += int64(rnd.IntN(90_000)) - 1000
		var op any
		d := did(rnd.IntN(8))
		switch rnd.IntN(13) {
		case 10:
			op = &metapb.PutTargetOp{Target: aTarget(fmt.Sprint("t", rnd.IntN(3))), Replace: rnd.IntN(2) == 0}
		case 11:
			op = &metapb.RemoveTargetOp{Name: fmt.Sprint("t", rnd.IntN(3)), Force: rnd.IntN(2) == 0}
		case 12:
			op = notifies(rnd.Uint64N(6), fmt.Sprint("t", rnd.IntN(3)))
		case 0:
			op = &metapb.SetDriveStateOp{Drive: d, State: uint32(rnd.IntN(4))}
		case 1:
			op = &metapb.ReplaceDriveOp{Old: d, New: sysDrive(4+rnd.IntN(8), fmt.Sprintf("zone-%d", 1+rnd.IntN(3)))}
		case 2:
			op = &metapb.PutDriveOp{Drive: sysDrive(4+rnd.IntN(8), "zone-1")}
		case 3:
			op = &metapb.PutPGsOp{Pgs: []*metapb.SysPG{{K: 1, M: uint32(rnd.IntN(2)), StorageClass: "STANDARD", Drives: [][]byte{d, did(rnd.IntN(8))}}}}
		case 4:
			op = create(fmt.Sprintf("b%d", rnd.IntN(5)), "o")
		case 5:
			op = &metapb.SetBucketStateOp{Bucket: rnd.Uint64N(6), From: metapb.BucketState(rnd.IntN(3)), To: metapb.BucketState(rnd.IntN(3))}
		case 6:
			op = &metapb.RemoveBucketOp{Bucket: rnd.Uint64N(6)}
		case 7:
			op = &metapb.DriveStartedOp{Drive: d, Starts: rnd.Uint64N(50)}
		case 8:
			op = &metapb.SetBucketConfigOp{
				Bucket: rnd.Uint64N(6), Versioning: metapb.Versioning(rnd.IntN(4)),
				Lock: &metapb.BucketLock{Mode: "GOVERNANCE", Days: uint32(rnd.IntN(2))}, Tags: &metapb.Tags{Tags: []*metapb.KV{{Name: "n"}}},
				PublicAccessBlock: &metapb.SetPublicAccessBlock{Block: &metapb.PublicAccessBlock{BlockPublicAcls: true}}, OwnershipControls: &metapb.SetOwnershipControls{Deleted: true},
				Lifecycle: &metapb.SetLifecycle{Config: &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{{Id: "r"}}}},
			}
		case 9:
			op = &metapb.BucketRowsDoneOp{Bucket: rnd.Uint64N(6), Generation: rnd.Uint64N(6)}
		}
		id := i
		if rnd.IntN(5) == 0 {
			id = rnd.IntN(i + 1)
		}
		data, _ := command(id, op).MarshalVT()
		if rnd.IntN(20) == 0 && len(data) > 0 {
			data[rnd.IntN(len(data))] ^= byte(1 << rnd.IntN(8))
		}
		out = append(out, cluster.Entry{Index: uint64(i + 2), TimeMS: ms, Data: data})
	}
	return out
}

func TestBatchesDoNotMatter(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		rnd := rand.New(rand.NewPCG(seed, 2))
		entries := randomCommands(rnd, 300)
		// A flipped bit may have made an unknown version, which stops the replica: not the matter here.
		entries = slices.DeleteFunc(entries, func(e cluster.Entry) bool {
			c := &metapb.SysCommand{}
			return c.UnmarshalVT(e.Data) == nil && c.Version > CommandVersion
		})
		run := func(cut func() int) (results [][]byte, rows string) {
			s := newSim(t)
			for rest := entries; len(rest) > 0; {
				n := min(cut(), len(rest))
				b := s.db.NewIndexedBatch()
				out, err := s.m.Apply(b, rest[:n])
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				if err := b.Commit(pebble.NoSync); err != nil {
					t.Fatal(err)
				}
				s.m.Reset()
				results = append(results, out...)
				rest = rest[n:]
			}
			var sb strings.Builder
			scan(s.db, span().Start, span().End, func(k, v []byte) (bool, error) {
				fmt.Fprintf(&sb, "%q=%q\n", k, v)
				return true, nil
			})
			return results, sb.String()
		}
		r1, d1 := run(func() int { return 1 })
		r2, d2 := run(func() int { return 1 + rnd.IntN(40) })
		if d1 != d2 {
			t.Fatalf("seed %d: rows differ", seed)
		}
		for i := range r1 {
			if !bytes.Equal(r1[i], r2[i]) {
				t.Fatalf("seed %d: result %d differs", seed, i)
			}
		}
	}
}

func FuzzApply(f *testing.F) {
	for i, e := range randomCommands(rand.New(rand.NewPCG(1, 3)), 60) {
		f.Add(e.Data, int64(i)*1000)
	}
	f.Add([]byte{}, int64(-1))
	f.Fuzz(func(t *testing.T, data []byte, ms int64) {
		s := newSim(t)
		before := s.topology()
		b := s.db.NewIndexedBatch()
		defer b.Close()
		out, err := s.m.Apply(b, []cluster.Entry{{Index: 2, TimeMS: ms, Data: data}})
		if err != nil {
			if errs.Is(err, errs.NotImplemented) {
				return // an unknown version stops the replica by intent
			}
			t.Fatal(err)
		}
		res := &metapb.SysResult{}
		if err := res.UnmarshalVT(out[0]); err != nil {
			t.Fatal(err)
		}
		after, err := Topology(b)
		if err != nil {
			t.Fatalf("the rows cannot be read any more: %v", err)
		}
		if !res.Ok && after.Version != before.Version {
			t.Fatal("refused, but the topology changed")
		}
		for id, pg := range after.PGs {
			if len(pg.Drives) != pg.Scheme.Shards() || pg.Epoch < before.PGs[id].Epoch {
				t.Fatalf("%+v", pg)
			}
		}
	})
}
