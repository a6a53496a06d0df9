package rangestate

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// family is a range and the ranges split off from it, all in one state store, as on a drive.
type family struct {
	*store
	machines map[cluster.GroupID]*Machine
	next     uint64
}

func newFamily(t testing.TB) *family {
	s := newStore(t)
	return &family{store: s, machines: map[cluster.GroupID]*Machine{testGroup: s.m}, next: uint64(testGroup) + 1}
}

func (f *family) in(g cluster.GroupID, cmd *metapb.RangeCommand) *metapb.RangeResult {
	f.t.Helper()
	data, err := cmd.MarshalVT()
	if err != nil {
		f.t.Fatal(err)
	}
	out := applyEntries(f.t, f.db, f.machines[g], []cluster.Entry{{Index: f.id(), Term: 1, TimeMS: f.now, Data: data, Config: 7, Birth: cmd.GetSplit() != nil}})
	res := &metapb.RangeResult{}
	if err := res.UnmarshalVT(out[0]); err != nil {
		f.t.Fatal(err)
	}
	return res
}

func (f *family) viewOf(g cluster.GroupID) *View {
	f.t.Helper()
	v, err := f.views.View(f.db, g)
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func splitCommand(s *store, op *metapb.SplitOp) *metapb.RangeCommand {
	return &metapb.RangeCommand{Version: 1, Id: s.id16(), IssuedMs: s.now, Op: &metapb.RangeCommand_Split{Split: op}}
}

func (f *family) splitOp(g cluster.GroupID, bucket uint64, key string) *metapb.SplitOp {
	op := &metapb.SplitOp{
		Child: f.next, At: &metapb.PosPB{Bucket: bucket, Key: []byte(key)}, ConfigIndex: 7,
		Generation: f.viewOf(g).Descriptor().Generation,
		Replicas:   []*metapb.ChildReplica{{Parent: "a", Child: fmt.Sprint("a", f.next), Voter: true}},
	}
	f.next++
	return op
}

// split splits the range and answers the child's group.
func (f *family) split(g cluster.GroupID, bucket uint64, key string) cluster.GroupID {
	f.t.Helper()
	op := f.splitOp(g, bucket, key)
	if res := f.in(g, splitCommand(f.store, op)); !res.Ok {
		f.t.Fatalf("split refused: %v", res)
	}
	m := f.machines[g]
	if len(m.Born()) != 1 || m.Born()[0].Child != cluster.GroupID(op.Child) {
		f.t.Fatalf("born %v", m.Born())
	}
	f.machines[cluster.GroupID(op.Child)] = New(cluster.GroupID(op.Child))
	return cluster.GroupID(op.Child)
}

// route finds the range of a place as a client does that knows the first range only.
func (f *family) route(p cluster.Pos) cluster.GroupID {
	f.t.Helper()
	g := testGroup
	for range 100 {
		err := f.viewOf(g).Check(p)
		if err == nil {
			return g
		}
		ranges := Elsewhere(err)
		if !errs.Is(err, errs.WrongRange) || len(ranges) != 2 || cluster.GroupID(ranges[0].Id) != g {
			f.t.Fatalf("%v says %v, %v", g, err, ranges)
		}
		g = cluster.GroupID(ranges[1].Id)
	}
	f.t.Fatal("sent round in circles")
	return 0
}

func TestSplitHandsRowsOver(t *testing.T) {
	f := newFamily(t)
	for b := uint64(1); b <= 3; b++ {
		f.bucket(b, metapb.Versioning_VERSIONING_ENABLED)
	}
	for _, k := range []string{"a", "k", "m", "m\x00", "z"} {
		f.ok(f.put(2, k, 10))
		f.ok(f.put(2, k, 20))
	}
	up := f.ok(&metapb.CreateUploadOp{Bucket: 2, Key: []byte("p"), Row: &metapb.UploadRow{Nonce: 5, WriteId: f.id16(), Owner: "me"}})
	repeat := f.command(f.put(2, "zz", 5))
	first := f.in(testGroup, repeat)
	seq, now := f.view().Seq(), f.view().TimeMS()
	f.now += 1000

	child := f.split(testGroup, 2, "m")
	v := f.viewOf(child)
	if v.Seq() != seq || v.TimeMS() != now+1000 {
		t.Errorf("the child is at %d, %d; the parent was at %d, %d", v.Seq(), v.TimeMS(), seq, now)
	}
	if d := v.Descriptor(); d.Parent != uint64(testGroup) || string(d.Start.Key) != "m" || d.End != nil {
		t.Errorf("the child is %v", d)
	}
	// The bucket that was cut has a row on either side, the next one moved, the one before stayed.
	for b, groups := range map[storage.BucketID][]cluster.GroupID{1: {testGroup}, 2: {testGroup, child}, 3: {child}} {
		for _, g := range []cluster.GroupID{testGroup, child} {
			_, err := f.viewOf(g).Bucket(b)
			want := errs.Kind(errs.WrongRange)
			for _, h := range groups {
				if h == g {
					want = 0
				}
			}
			if want == 0 && err != nil || want != 0 && !errs.Is(err, want) {
				t.Errorf("bucket %d in %d: %v", b, g, err)
			}
		}
	}
	page, err := f.viewOf(testGroup).ListCurrent(2, "", "", "", 100)
	if err != nil || len(page.Rows) != 2 || page.Truncated || page.Bounds.End != (cluster.Pos{Bucket: 2, Key: "m"}) {
		t.Errorf("the parent lists %v, %v", page, err)
	}
	page, err = v.ListCurrent(2, "", "", "", 100)
	if err != nil || len(page.Rows) != 4 || page.Rows[0].Key != "m" {
		t.Errorf("the child lists %v, %v", page, err)
	}
	versions, err := v.ListVersions(2, "m", "", "", nil, 100)
	if err != nil || len(versions.Rows) != 4 {
		t.Errorf("the child has versions %v, %v", versions, err)
	}
	if _, err := v.Upload(2, "p", storage.UploadID{Seq: storage.Seq(up.VersionSeq), Nonce: 5}); err != nil {
		t.Errorf("the upload: %v", err)
	}
	// A repeat of a command from before the split is known to the child, and to nobody else.
	if res := f.in(child, repeat); res.VersionSeq != first.VersionSeq || !res.Ok {
		t.Errorf("the repeat is answered %v, the first was %v", res, first)
	}
	if res := f.in(testGroup, repeat); errs.Kind(res.Kind) != errs.WrongRange || len(res.Ranges) != 2 || res.Ranges[1].Id != uint64(child) {
		t.Errorf("the parent answers the repeat %v", res)
	}
	// Counters are sums; garbage of before stays with the parent.
	if c := f.sum(); c.Objects != 6 || c.Versions != 5 {
		t.Errorf("counters %v", c)
	}
	if res := f.in(child, f.command(f.deleteVersion(2, "zz", storage.VersionID{Seq: storage.Seq(first.VersionSeq), Nonce: first.VersionNonce}))); !res.Ok {
		t.Error(res)
	}
	if c := f.sum(); c.Objects != 5 || c.Versions != 5 {
		t.Errorf("counters %v", c)
	}
	if got := f.route(cluster.Pos{Bucket: 2, Key: "lzzz"}); got != testGroup {
		t.Errorf("routed to %d", got)
	}
	if got := f.route(cluster.Pos{Bucket: 9}); got != child {
		t.Errorf("routed to %d", got)
	}
}

// sum are the counters of bucket 2 over all ranges.
func (f *family) sum() *metapb.CounterRow {
	sum := &metapb.CounterRow{}
	for g := range f.machines {
		cs, err := f.viewOf(g).Counters()
		if err != nil {
			f.t.Fatal(err)
		}
		for _, c := range cs {
			sum.Objects += c.Row.Objects
			sum.Versions += c.Row.Versions
			sum.Bytes += c.Row.Bytes
			sum.Uploads += c.Row.Uploads
		}
	}
	return sum
}

func TestSplitRefusals(t *testing.T) {
	f := newFamily(t)
	f.bucket(2, metapb.Versioning_VERSIONING_NEVER)
	for name, c := range map[string]struct {
		spoil func(*metapb.SplitOp)
		kind  errs.Kind
	}{
		"generation":    {func(op *metapb.SplitOp) { op.Generation++ }, errs.Conflict},
		"configuration": {func(op *metapb.SplitOp) { op.ConfigIndex = 6 }, errs.Conflict},
		"start":         {func(op *metapb.SplitOp) { op.At = &metapb.PosPB{} }, errs.InvalidArgument},
		"no replicas":   {func(op *metapb.SplitOp) { op.Replicas = nil }, errs.InvalidArgument},
		"no voter":      {func(op *metapb.SplitOp) { op.Replicas[0].Voter = false }, errs.InvalidArgument},
		"twice":         {func(op *metapb.SplitOp) { op.Replicas = append(op.Replicas, op.Replicas[0]) }, errs.InvalidArgument},
		"itself":        {func(op *metapb.SplitOp) { op.Child = uint64(testGroup) }, errs.InvalidArgument},
	} {
		op := f.splitOp(testGroup, 2, "m")
		c.spoil(op)
		if res := f.in(testGroup, splitCommand(f.store, op)); res.Ok || errs.Kind(res.Kind) != c.kind {
			t.Errorf("%s: %v", name, res)
		}
		if len(f.m.Born()) != 0 {
			t.Errorf("%s: born %v", name, f.m.Born())
		}
	}
	// Not by way of an ordinary proposal.
	if res := f.do2(splitCommand(f.store, f.splitOp(testGroup, 2, "m"))); errs.Kind(res.Kind) != errs.InvalidRequest {
		t.Error(res)
	}
	op := f.splitOp(testGroup, 2, "m")
	if res := f.in(testGroup, splitCommand(f.store, op)); !res.Ok {
		t.Fatal(res)
	}
	// A repeat, under whatever command id, is done already and gives no second birth.
	if res := f.in(testGroup, splitCommand(f.store, op)); !res.Ok || len(f.m.Born()) != 0 {
		t.Error(res, f.m.Born())
	}
	// Behind the end there is nothing to split.
	if res := f.in(testGroup, splitCommand(f.store, f.splitOp(testGroup, 2, "n"))); errs.Kind(res.Kind) != errs.InvalidArgument {
		t.Error(res)
	}
	births, err := f.m.Births(f.db)
	if err != nil || len(births) != 1 {
		t.Fatal(births, err)
	}
	if c, ok := births[0].Of("a"); !ok || c.Child == "" {
		t.Error(births)
	}
	if _, ok := births[0].Of("b"); ok {
		t.Error("another replica of the parent may give birth")
	}
}

func (f *family) do2(cmd *metapb.RangeCommand) *metapb.RangeResult { return f.store.apply(cmd) }

// A bucket's row reaches every range that can hold its keys, whenever they split: whoever goes on from where the last
// range said it ended meets all of them.
func TestBucketRowsWhileSplitting(t *testing.T) {
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		f := newFamily(t)
		splitSome := func() {
			for range rnd.IntN(3) {
				key := fmt.Sprintf("%c%c", 'a'+rnd.IntN(26), 'a'+rnd.IntN(26))
				if g := f.route(cluster.Pos{Bucket: 2, Key: storage.Key(key)}); string(f.viewOf(g).Descriptor().GetStart().GetKey()) != key {
					f.split(g, 2, key)
				}
			}
		}
		walk := func(mk func(from []byte) any, each func(*metapb.RangeResult)) {
			at := cluster.Pos{Bucket: 2}
			for {
				splitSome()
				g := f.route(at)
				// The client's idea of where that lies may be old; it is told so, never misled.
				if res := f.in(testGroup, f.command(mk([]byte(at.Key)))); g != testGroup && errs.Kind(res.Kind) != errs.WrongRange {
					t.Fatalf("seed %d: the first range takes a command for %v: %v", seed, at, res)
				} else if g != testGroup {
					res = f.in(g, f.command(mk([]byte(at.Key))))
					each(res)
					at = endOf(res)
				} else {
					each(res)
					at = endOf(res)
				}
				if at.Bucket != 2 {
					return
				}
			}
		}
		splitSome()
		walk(func(from []byte) any {
			return &metapb.PutBucketOp{From: from, Row: &metapb.BucketRow{Id: 2, Generation: 1}}
		}, func(res *metapb.RangeResult) {
			if !res.Ok {
				t.Fatalf("seed %d: %v", seed, res)
			}
		})
		splitSome()
		for g := range f.machines {
			if _, err := f.viewOf(g).Bucket(2); err != nil {
				t.Fatalf("seed %d: range %d lacks the bucket: %v", seed, g, err)
			}
		}
		walk(func(from []byte) any { return &metapb.FenceBucketOp{From: from, Bucket: 2, Generation: 3} }, func(res *metapb.RangeResult) {
			if !res.Ok || !res.Empty {
				t.Fatalf("seed %d: %v", seed, res)
			}
		})
		splitSome()
		for c := 'a'; c <= 'z'; c++ {
			key := string(c)
			if res := f.in(f.route(cluster.Pos{Bucket: 2, Key: storage.Key(key)}), f.command(f.put(2, key, 1))); errs.Kind(res.Kind) != errs.BucketBusy {
				t.Fatalf("seed %d: a fenced bucket takes %s: %v", seed, key, res)
			}
		}
		walk(func(from []byte) any { return &metapb.DropBucketOp{From: from, Bucket: 2, Generation: 3} }, func(res *metapb.RangeResult) {
			if !res.Ok {
				t.Fatalf("seed %d: %v", seed, res)
			}
		})
		for g := range f.machines {
			if _, err := f.viewOf(g).Bucket(2); !errs.Is(err, errs.NoSuchBucket) {
				t.Fatalf("seed %d: range %d: %v", seed, g, err)
			}
		}
		// A creation that was held up finds all of them, those that were split off since too.
		splitSome()
		walk(func(from []byte) any {
			return &metapb.PutBucketOp{From: from, Row: &metapb.BucketRow{Id: 2, Generation: 1}}
		}, func(res *metapb.RangeResult) {
			if errs.Kind(res.Kind) != errs.NoSuchBucket {
				t.Fatalf("seed %d: a late creation: %v", seed, res)
			}
		})
	}
}

func endOf(res *metapb.RangeResult) cluster.Pos {
	end := res.Ranges[0].End
	return cluster.Pos{Bucket: storage.BucketID(end.GetBucket()), Key: storage.Key(end.GetKey())}
}

func TestBulkDeleteOverASplit(t *testing.T) {
	f := newFamily(t)
	f.bucket(2, metapb.Versioning_VERSIONING_NEVER)
	for _, k := range []string{"a", "b", "y", "z"} {
		f.ok(f.put(2, k, 1))
	}
	op := &metapb.DeleteObjectsOp{Bucket: 2, Owner: "me"}
	for _, k := range []string{"a", "y", "b", "z"} {
		op.Entries = append(op.Entries, &metapb.DeleteEntry{Key: []byte(k)})
	}
	cmd := f.command(op)
	child := f.split(testGroup, 2, "m")
	res := f.in(testGroup, cmd)
	if !res.Ok || len(res.Entries) != 4 || len(res.Ranges) != 2 {
		t.Fatal(res)
	}
	for i, wrong := range []bool{false, true, false, true} {
		if e := res.Entries[i]; e.Ok == wrong || wrong && errs.Kind(e.Kind) != errs.WrongRange {
			t.Errorf("entry %d: %v", i, e)
		}
	}
	if res := f.in(child, cmd); !res.Entries[1].Ok || !res.Entries[3].Ok || res.Entries[0].Ok {
		t.Error(res)
	}
	for g := range f.machines {
		if page, err := f.viewOf(g).ListCurrent(2, "", "", "", 10); err != nil || len(page.Rows) != 0 {
			t.Errorf("range %d still has %v, %v", g, page.Rows, err)
		}
	}
}

func TestCompareBounds(t *testing.T) {
	a, b := newFamily(t), newFamily(t)
	for _, f := range []*family{a, b} {
		f.bucket(2, metapb.Versioning_VERSIONING_NEVER)
		f.split(testGroup, 2, "m")
	}
	check := &metapb.RangeCommand{Version: 1, Id: []byte("0123456789abcdef"), Op: &metapb.RangeCommand_CheckBounds{CheckBounds: &metapb.CheckBoundsOp{Voters: []string{"a", "b", "c"}}}}
	hash := func(f *family) string {
		if res := f.in(testGroup, check); !res.Ok {
			t.Fatal(res)
		}
		row, err := LastCheck(f.db, testGroup)
		if err != nil || string(row.Check) != string(check.Id) {
			t.Fatal(row, err)
		}
		return string(row.Hash)
	}
	good := hash(a)
	if good != hash(b) {
		t.Fatal("the same history gives different hashes")
	}
	// One goes wrong: its bounds are others.
	d := b.viewOf(testGroup).Descriptor()
	d.End.Key = []byte("n")
	raw, err := d.MarshalVT()
	if err == nil {
		err = b.db.Set(appendGroup(nil, testGroup, subDescriptor), raw, pebble.NoSync)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.machines[testGroup].Reset()
	bad := hash(b)
	if good == bad {
		t.Fatal("other bounds, the same hash")
	}
	found := func(replica, hash string) *metapb.RangeCommand {
		return &metapb.RangeCommand{Version: 1, Id: a.id16(), Op: &metapb.RangeCommand_JudgeBounds{JudgeBounds: &metapb.JudgeBoundsOp{Check: check.Id, Hash: []byte(hash), Replica: replica}}}
	}
	// One alone, one twice and one without a vote decide nothing.
	for _, cmd := range []*metapb.RangeCommand{found("a", good), found("a", good), found("x", good), found("b", bad)} {
		for _, f := range []*family{a, b} {
			if res := f.in(testGroup, cmd); !res.Ok {
				t.Fatal(res)
			}
		}
	}
	last := found("c", good)
	if res := a.in(testGroup, last); !res.Ok {
		t.Error(res)
	}
	data, err := last.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	batch := b.db.NewIndexedBatch()
	defer batch.Close()
	if _, err := b.machines[testGroup].Apply(batch, []cluster.Entry{{Index: 99, Term: 1, Data: data}}); !errs.Is(err, errs.Corrupt) {
		t.Errorf("a replica with other bounds goes on: %v", err)
	}
}

// What a reader's WrongRange says fits into an error on its way between nodes, with keys as long as they may be.
func TestWrongRangeIsShort(t *testing.T) {
	f := newFamily(t)
	long := func(c byte) string { return string(bytes.Repeat([]byte{c}, storage.KeyBytesMax)) }
	g := f.split(testGroup, 2, long('b'))
	f.split(g, 2, long('x'))
	op := f.splitOp(g, 2, long('n'))
	op.Replicas = nil
	for i := range 7 {
		op.Replicas = append(op.Replicas, &metapb.ChildReplica{
			Parent: string(cluster.MakeReplicaID(g, uint64(i))), Child: string(cluster.MakeReplicaID(9, uint64(i))), Drive: make([]byte, 16), Voter: true,
		})
	}
	if res := f.in(g, splitCommand(f.store, op)); !res.Ok {
		t.Fatal(res)
	}
	err := f.viewOf(g).Check(cluster.Pos{Bucket: 2, Key: "o"})
	if len(err.Error()) > 4<<10 {
		t.Errorf("%d bytes", len(err.Error()))
	}
	err = errs.New(errs.WrongRange, "rpc", "", "read: "+err.Error()+": on n3")
	if r := Elsewhere(err); len(r) != 2 || r[1].Id != op.Child || len(r[1].Replicas) != 7 {
		t.Error(r)
	}
}
