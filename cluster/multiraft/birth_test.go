package multiraft

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// rangeCell is a cell whose groups are ranges, the first one group 2 with bucket 1, and who asks them as a client does.
type rangeCell struct {
	*cell
	mu  *sync.Mutex
	ids *uint64
}

const firstRange = cluster.FirstRange

func newRangeCell(t testing.TB, fs *vfsx.Mem, drives int, cfg Config) *rangeCell {
	cfg.NewStateMachine = func(g cluster.GroupID) StateMachine { return rangestate.New(g) }
	return &rangeCell{cell: newCell(t, fs, drives, cfg), mu: &sync.Mutex{}, ids: new(uint64)}
}

func (c *rangeCell) bear() {
	c.t.Helper()
	var drives []int
	for i := range c.drives {
		drives = append(drives, i)
	}
	err := c.h.Birth(testGroup(firstRange, drives...), func(b *pebble.Batch) error {
		return rangestate.Birth(b, &metapb.RangeDescriptor{Group: uint64(firstRange)})
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.waitLeader(firstRange)
	res, err := c.do(testCtx(c.t, patience), firstRange, &metapb.RangeCommand{Op: &metapb.RangeCommand_PutBucket{PutBucket: &metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: 1}}}})
	if err != nil || !res.Ok {
		c.t.Fatal(res, err)
	}
}

// crash is crash of a cell.
func (c *rangeCell) crash(seed uint64) *rangeCell {
	return &rangeCell{cell: c.cell.crash(seed), mu: c.mu, ids: c.ids}
}

func (c *rangeCell) id() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	*c.ids++
	return *c.ids
}

func (c *rangeCell) do(ctx context.Context, g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	cmd.Version, cmd.IssuedMs = 1, time.Now().UnixMilli()
	if len(cmd.Id) == 0 {
		cmd.Id = fmt.Appendf(nil, "%016d", c.id())
	}
	data, err := cmd.MarshalVT()
	if err != nil {
		return nil, err
	}
	send := c.h.Propose
	if cmd.GetSplit() != nil {
		send = c.h.Split
	}
	for {
		out, err := send(ctx, g, data)
		if err == nil {
			res := &metapb.RangeResult{}
			return res, res.UnmarshalVT(out)
		}
		if ctx.Err() != nil {
			return nil, err
		}
		time.Sleep(time.Millisecond)
	}
}

// at runs a command in the range that holds the key, found from the first on.
func (c *rangeCell) at(ctx context.Context, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	for g := firstRange; ; {
		res, err := c.do(ctx, g, cmd)
		if err != nil || errs.Kind(res.Kind) != errs.WrongRange {
			return res, err
		}
		if len(res.Ranges) != 2 {
			return nil, fmt.Errorf("range %d sends on to nobody: %v", g, res)
		}
		g = cluster.GroupID(res.Ranges[1].Id)
	}
}

func (c *rangeCell) put(ctx context.Context, key, value string) error {
	cmd := &metapb.RangeCommand{Op: &metapb.RangeCommand_PutObject{PutObject: &metapb.PutObjectOp{
		Bucket: 1, Key: []byte(key), Row: &metapb.ObjectRow{
			WriteId: fmt.Appendf(nil, "%016d", c.id()), Size: uint64(len(value)), Etag: "e", Owner: "me", Data: &metapb.Data{Inline: []byte(value)},
		},
	}}}
	res, err := c.at(ctx, cmd)
	if err == nil && !res.Ok {
		err = fmt.Errorf("put %s: %v", key, res)
	}
	return err
}

// get reads the key where it lies: "" if it is not there.
func (c *rangeCell) get(ctx context.Context, key string) (string, error) {
	for g := firstRange; ; {
		value := ""
		err := c.h.Read(ctx, g, func(r pebble.Reader) error {
			v, err := rangestate.NewView(r, g)
			if err != nil {
				return err
			}
			row, err := v.Object(1, storage.Key(key), nil)
			value = string(row.GetData().GetInline())
			return err
		})
		switch {
		case err == nil:
			return value, nil
		case errs.Is(err, errs.NoSuchKey):
			return "", nil
		case errs.Is(err, errs.WrongRange):
			g = cluster.GroupID(rangestate.Elsewhere(err)[1].Id)
			continue
		case ctx.Err() != nil || !errs.Is(err, errs.NotLeader) && !errs.Is(err, errs.Unavailable):
			return "", err
		}
		time.Sleep(time.Millisecond)
	}
}

func (c *rangeCell) descriptor(g cluster.GroupID) (d *metapb.RangeDescriptor) {
	c.t.Helper()
	c.retry(func(ctx context.Context) error {
		return c.h.Read(ctx, g, func(r pebble.Reader) error {
			v, err := rangestate.NewView(r, g)
			if err == nil {
				d = v.Descriptor()
			}
			return err
		})
	})
	return d
}

// split splits the range that holds the key there.
func (c *rangeCell) split(ctx context.Context, g, child cluster.GroupID, key string) (*metapb.RangeResult, error) {
	op := &metapb.SplitOp{Child: uint64(child), At: &metapb.PosPB{Bucket: 1, Key: []byte(key)}}
	op.Generation = c.descriptor(g).Generation
	var members []cluster.Replica
	c.retry(func(context.Context) (err error) {
		op.ConfigIndex, members, err = c.h.Configuration(g)
		return err
	})
	for i, m := range members {
		op.Replicas = append(op.Replicas, &metapb.ChildReplica{Parent: string(m.ID), Child: string(cluster.MakeReplicaID(child, uint64(i+1))), Voter: m.Voter})
	}
	return c.do(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_Split{Split: op}})
}

func (c *rangeCell) mustSplit(g, child cluster.GroupID, key string) {
	c.t.Helper()
	res, err := c.split(testCtx(c.t, patience), g, child, key)
	if err != nil || !res.Ok {
		c.t.Fatal(res, err)
	}
}

// same waits until n replicas of each group run with the same rows.
func (c *rangeCell) same(n int, groups ...cluster.GroupID) {
	c.t.Helper()
	end := time.Now().Add(time.Minute) // raft backs off for 10 s from a replica that it met before that had started
	for _, g := range groups {
		for {
			bad := ""
			contents, err := c.h.Contents(testCtx(c.t, 5*time.Second), g)
			if err != nil {
				bad = err.Error()
			}
			good := 0
			for _, r := range contents {
				if r.Hash != nil && bytes.Equal(r.Hash, contents[0].Hash) {
					good++
				}
			}
			if bad == "" && good == n {
				break
			}
			if time.Now().After(end) {
				c.t.Fatalf("group %d: %s %d of %d replicas are the same: %+v; %+v", g, bad, good, n, contents, c.h.Status())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func TestSplitBearsAGroup(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newRangeCell(t, vfsx.NewMem(), 3, fastConfig())
		c.bear()
		ctx := testCtx(t, 30*time.Second)
		for i := range 50 {
			if err := c.put(ctx, fmt.Sprintf("k%02d", i), fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		c.mustSplit(firstRange, 3, "k25")
		c.mustSplit(3, 4, "k40")
		c.mustSplit(firstRange, 5, "k10")
		check := func(c *rangeCell) {
			t.Helper()
			for i := range 50 {
				if got, err := c.get(ctx, fmt.Sprintf("k%02d", i)); err != nil || got != fmt.Sprint(i) {
					t.Fatalf("k%02d is %q, %v", i, got, err)
				}
			}
			c.same(3, firstRange, 3, 4, 5)
			for g, want := range map[cluster.GroupID]string{firstRange: "-k10", 3: "k25-k40", 4: "k40-", 5: "k10-k25"} {
				if d := c.descriptor(g); fmt.Sprintf("%s-%s", d.GetStart().GetKey(), d.GetEnd().GetKey()) != want {
					t.Errorf("range %d is %v", g, d)
				}
			}
		}
		check(c)
		c.close()
		c.start()
		check(c)
		next := c.crash(1)
		check(next)
		c.close()
		next.close()
	})
}

// A voter that was away while its range split, and comes back behind what the log still has, passes the split by a
// snapshot: the rows that are not its range's any more go, and the child's replica beside it is filled by its own snapshot.
func TestSplitPassedBySnapshot(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newRangeCell(t, vfsx.NewMem(), 3, fastConfig())
		defer c.close()
		c.bear()
		ctx := testCtx(t, 30*time.Second)
		put := func(from, to int) {
			t.Helper()
			var wg sync.WaitGroup
			for w := range 8 {
				wg.Go(func() {
					for i := from + w; i < to; i += 8 {
						if err := c.put(ctx, fmt.Sprintf("k%04d", i), fmt.Sprint(i)); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
		}
		put(0, 100)
		lead := c.waitLeader(firstRange)
		away := (c.driveOf(lead) + 1) % 3
		c.h.DropDrive(driveID(away))
		c.mustSplit(firstRange, 3, "k0050")
		put(100, 700) // the child's, of which the log forgets the first
		for i := range 700 {
			if err := c.put(ctx, fmt.Sprintf("a%04d", i), "x"); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.h.AddDrive(c.drive(away)); err != nil {
			t.Fatal(err)
		}
		c.same(3, firstRange, 3)
		for i := range 700 {
			if got, err := c.get(ctx, fmt.Sprintf("k%04d", i)); err != nil || got != fmt.Sprint(i) {
				t.Fatalf("k%04d is %q, %v", i, got, err)
			}
		}
		// The rows of either lie where they belong, and nowhere else.
		if n := c.currentRows(away); n != 1400 {
			t.Errorf("%d current versions on the drive", n)
		}
	})
}

// A replica of the child that was taken out of its group is not born again, whatever the parent goes through.
func TestChildIsBornOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newRangeCell(t, vfsx.NewMem(), 3, fastConfig())
		c.bear()
		ctx := testCtx(t, 30*time.Second)
		if err := c.put(ctx, "z", "1"); err != nil {
			t.Fatal(err)
		}
		c.mustSplit(firstRange, 3, "m")
		c.same(3, 3)
		members, err := c.h.Members(3)
		if err != nil {
			t.Fatal(err)
		}
		lead := c.waitLeader(3)
		var gone cluster.ReplicaID
		for _, m := range members {
			if m.ID != lead.id {
				gone = m.ID
			}
		}
		c.retry(func(ctx context.Context) error { return c.h.RemoveReplica(ctx, 3, gone) })
		next := c.crash(2)
		next.same(2, 3)
		next.same(3, firstRange)
		time.Sleep(50 * time.Millisecond)
		if next.h.replica(gone) != nil {
			t.Error("it was born again")
		}
		if got, err := next.get(ctx, "z"); err != nil || got != "1" {
			t.Errorf("z is %q, %v", got, err)
		}
		c.close()
		next.close()
	})
}

// The power goes again and again while ranges split and are written to. Nothing acknowledged is lost, no replica is
// lost, and no two groups have rows of the same keys.
func TestSplitsAndPowerCuts(t *testing.T) {
	rounds := 4
	for seed := range uint64(rounds) {
		splitsAndPowerCuts(t, seed)
	}
}

func splitsAndPowerCuts(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 9))
	c := newRangeCell(t, vfsx.NewMem(), 3, fastConfig())
	c.bear()
	acked := map[string]string{}
	groups := []cluster.GroupID{firstRange}
	next := cluster.GroupID(3)
	for round := range 5 {
		ctx, stop := context.WithCancel(testCtx(t, patience))
		var wg sync.WaitGroup
		var mu sync.Mutex
		for w := range 4 {
			rnd := rand.New(rand.NewPCG(seed, uint64(round*10+w)))
			wg.Go(func() {
				for ctx.Err() == nil {
					key, value := fmt.Sprintf("%03d-%d", rnd.IntN(500), w), fmt.Sprint(c.id())
					if c.put(ctx, key, value) == nil {
						mu.Lock()
						acked[key] = value
						mu.Unlock()
					} else {
						mu.Lock()
						delete(acked, key) // may be either
						mu.Unlock()
					}
				}
			})
		}
		for range 2 {
			time.Sleep(time.Duration(rnd.IntN(20)) * time.Millisecond)
			g := groups[rnd.IntN(len(groups))]
			d := c.descriptor(g)
			at := fmt.Sprintf("%03d", rnd.IntN(500))
			if at <= string(d.GetStart().GetKey()) || d.GetEnd() != nil && at >= string(d.End.Key) {
				continue
			}
			if res, err := c.split(ctx, g, next, at); err == nil && res.Ok {
				groups = append(groups, next)
			} else {
				t.Logf("seed %d: no split: %v, %v", seed, res, err)
			}
			next++
		}
		time.Sleep(time.Duration(rnd.IntN(15)) * time.Millisecond)
		mu.Lock()
		promised := map[string]string{}
		for k, v := range acked {
			promised[k] = v
		}
		crashed := c.fs.CrashClone(rnd.Uint64())
		mu.Unlock()
		stop()
		wg.Wait()
		c.close()
		c = &rangeCell{cell: newCell(t, crashed, 3, c.cfg), mu: c.mu, ids: c.ids}
		c.same(3, groups...)
		ctx = testCtx(t, patience)
		for key, value := range promised {
			got, err := c.get(ctx, key)
			if err != nil || got != value && !later(got, value) {
				t.Fatalf("seed %d round %d: %s is %q, acknowledged was %q; %v", seed, round, key, got, value, err)
			}
		}
		acked = promised
		for _, s := range c.h.Status() {
			for _, r := range s.Replicas {
				if r.State != ReplicaRunning {
					t.Fatalf("seed %d round %d: %+v of group %d", seed, round, r, s.Group)
				}
			}
		}
	}
	t.Logf("seed %d: %d ranges", seed, len(groups))
	c.close()
}

// later reports whether a value was written after another: the last write under way at the cut may be in.
func later(a, b string) bool { return len(a) > len(b) || len(a) == len(b) && a > b }

// A replica of the parent that the split names no child for keeps none of the rows.
func TestNoRowsWithoutAChild(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newRangeCell(t, vfsx.NewMem(), 3, fastConfig())
		defer c.close()
		c.bear()
		ctx := testCtx(t, 20*time.Second)
		for i := range 20 {
			if err := c.put(ctx, fmt.Sprintf("k%02d", i), "x"); err != nil {
				t.Fatal(err)
			}
		}
		index, members, err := c.h.Configuration(firstRange)
		if err != nil {
			t.Fatal(err)
		}
		lead := c.waitLeader(firstRange)
		op := &metapb.SplitOp{Child: 3, At: &metapb.PosPB{Bucket: 1, Key: []byte("k15")}, ConfigIndex: index}
		var without storage.DriveID
		for i, m := range members {
			if m.ID != lead.id && without.IsZero() {
				without = m.Drive
				continue
			}
			op.Replicas = append(op.Replicas, &metapb.ChildReplica{Parent: string(m.ID), Child: string(cluster.MakeReplicaID(3, uint64(i+1))), Voter: true})
		}
		if res, err := c.do(ctx, firstRange, &metapb.RangeCommand{Op: &metapb.RangeCommand_Split{Split: op}}); err != nil || !res.Ok {
			t.Fatal(res, err)
		}
		c.same(3, firstRange)
		c.same(2, 3)
		for i := range c.drives {
			want := 20
			if driveID(i) == without {
				want = 15
			}
			if n := c.currentRows(i); n != want {
				t.Errorf("drive %d has %d versions, want %d", i, n, want)
			}
		}
		if got, err := c.get(ctx, "k19"); err != nil || got != "x" {
			t.Error(got, err)
		}
	})
}

// currentRows counts the current versions in a drive's state, whosoever's they are.
func (c *rangeCell) currentRows(drive int) (n int) {
	c.t.Helper()
	it, err := c.h.drive(driveID(drive)).db().NewIter(&pebble.IterOptions{LowerBound: []byte("c"), UpperBound: []byte("d")})
	if err != nil {
		c.t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		n++
	}
	if err := it.Close(); err != nil {
		c.t.Fatal(err)
	}
	return n
}

func TestInstallsKeepOffOthersRows(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newRangeCell(t, vfsx.NewMem(), 1, fastConfig())
		defer c.close()
		c.bear()
		if err := c.h.CreateReplica(3, testGroup(3, 0).Replicas[0]); err != nil {
			t.Fatal(err)
		}
		r := c.h.replica(testGroup(3, 0).Replicas[0].ID)
		span := func(from, to string) streamHeader {
			return streamHeader{Group: 3, Point: point{9, 1}, Spans: []cluster.KeySpan{{Start: []byte(from), End: []byte(to)}}}
		}
		if _, err := r.admitInstall(span("c\x00\x00\x00\x00\x00\x00\x00\x01", "d")); !errs.Is(err, errs.Busy) {
			t.Errorf("rows over another group's: %v", err)
		}
		release, err := r.admitInstall(span("D", "E"))
		if err != nil {
			t.Fatal(err)
		}
		release()
		old := c.waitLeader(firstRange)
		h := span("D", "E")
		h.Point.Index = old.applied.Load()
		if _, err := old.admitInstall(h); !errs.Is(err, errs.Conflict) {
			t.Errorf("a snapshot that comes late: %v", err)
		}
	})
}

// A child that the log knows and the state has forgotten goes on empty if its parent came behind the split by a
// snapshot, with its vote; but not if it acknowledged anything, and not without its parent.
func TestHeldChildren(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newRangeCell(t, vfsx.NewMem(), 1, fastConfig())
		defer c.close()
		c.bear()
		parent := c.waitLeader(firstRange)
		ds := parent.ds
		hold := func(g cluster.GroupID, entries int) record {
			t.Helper()
			rec := record{Format: rowFormat, Group: g, Replica: cluster.MakeReplicaID(g, 1), Parent: parent.id, ParentGroup: firstRange, Phase: phaseReady}
			view, err := ds.log.View(string(rec.Replica))
			if err == nil {
				err = view.Init(7, recordName(g), encodeRow(rec))
			}
			if err == nil && entries > 0 {
				err = view.StoreLog(&raft.Log{Index: 2, Term: 7, Type: raft.LogNoop})
			}
			if err != nil {
				t.Fatal(err)
			}
			state := map[cluster.GroupID]record{firstRange: {Group: firstRange, Replica: parent.id}}
			log := map[cluster.GroupID]record{firstRange: {Group: firstRange, Replica: parent.id, Phase: phaseReady}, g: rec}
			if !ds.hold(rec, log, state) {
				t.Fatal("not held")
			}
			delete(log, firstRange)
			if ds.hold(rec, log, state) {
				t.Fatal("held without a parent")
			}
			return rec
		}
		stateOf := func(g cluster.GroupID) ReplicaState {
			t.Helper()
			for _, r := range c.h.groupStatus(g).Replicas {
				return r.State
			}
			return ""
		}
		for g, want := range map[cluster.GroupID]ReplicaState{10: ReplicaEmpty, 11: ReplicaLost} {
			rec := hold(g, int(g-10))
			if got := stateOf(g); got != ReplicaWaiting {
				t.Errorf("group %d is %s", g, got)
			}
			c.h.admin.Lock()
			err := parent.makeMissing(g, cluster.ChildReplica{Parent: parent.id, Child: rec.Replica, Voter: true})
			c.h.admin.Unlock()
			if got := stateOf(g); err != nil || got != want {
				t.Errorf("group %d is %s, %v", g, got, err)
			}
		}
		if term := c.h.replica(cluster.MakeReplicaID(10, 1)).raft.CurrentTerm(); term != 7 {
			t.Errorf("its term is %d", term)
		}
		hold(12, 0)
		ds.orphan(parent.id)
		if got := stateOf(12); got != ReplicaLost {
			t.Errorf("an orphan is %s", got)
		}
	})
}

// slowSplit is a range that stops at a split until it may go on.
type slowSplit struct {
	*rangestate.Machine
	stop *atomic.Pointer[chan struct{}]
}

func (s slowSplit) Apply(b *pebble.Batch, entries []cluster.Entry) ([][]byte, error) {
	for _, e := range entries {
		if ch := s.stop.Load(); e.Birth && ch != nil {
			<-*ch
		}
	}
	return s.Machine.Apply(b, entries)
}

// The parent's leader is the last to apply the split. Meanwhile its followers have made the child, which has acknowledged a
// write: the parent must not answer a read of that key from its state of before.
func TestNoStaleReadWhileSplitting(t *testing.T) {
	for range 10 {
		shown := false
		bubble.Test(t, func(t *testing.T) { shown = readWhileSplitting(t) })
		if shown {
			return
		}
	}
	t.Fatal("the leader moved in each of 10 tries")
}

// readWhileSplitting answers false if another replica came to lead: then nothing was shown.
func readWhileSplitting(t *testing.T) bool {
	cfg := fastConfig()
	var stops [3]atomic.Pointer[chan struct{}]
	made := 0
	cfg.NewStateMachine = func(g cluster.GroupID) StateMachine {
		m := rangestate.New(g)
		if g != firstRange || made == len(stops) {
			return m
		}
		made++
		return slowSplit{m, &stops[made-1]} // made in order of the drives
	}
	c := &rangeCell{cell: newCell(t, vfsx.NewMem(), 3, cfg), mu: &sync.Mutex{}, ids: new(uint64)}
	defer c.close()
	c.bear()
	ctx := testCtx(t, 20*time.Second)
	if err := c.put(ctx, "z", "old"); err != nil {
		t.Fatal(err)
	}
	lead := c.waitLeader(firstRange)
	goOn := make(chan struct{})
	stops[c.driveOf(lead)].Store(&goOn)
	split := make(chan error, 1)
	go func() {
		res, err := c.split(ctx, firstRange, 3, "m")
		if err == nil && !res.Ok {
			err = fmt.Errorf("refused: %v", res)
		}
		split <- err
	}()
	if err := c.h.WaitLeader(ctx, 3); err != nil {
		t.Fatal(err)
	}
	write := &metapb.RangeCommand{Op: &metapb.RangeCommand_PutObject{PutObject: &metapb.PutObjectOp{
		Bucket: 1, Key: []byte("z"), Row: &metapb.ObjectRow{WriteId: fmt.Appendf(nil, "%016d", c.id()), Size: 3, Data: &metapb.Data{Inline: []byte("new")}},
	}}}
	if res, err := c.do(ctx, 3, write); err != nil || !res.Ok {
		t.Fatal(res, err)
	}
	read := func(ctx context.Context) error {
		return c.h.Read(ctx, firstRange, func(r pebble.Reader) error {
			v, err := rangestate.NewView(r, firstRange)
			if err == nil {
				_, err = v.Object(1, "z", nil)
			}
			return err
		})
	}
	if c.waitLeader(firstRange) != lead {
		close(goOn)
		<-split
		return false
	}
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := read(soon); !errs.Is(err, errs.Unavailable) {
		t.Errorf("before the split is applied a read answers %v", err)
	}
	close(goOn)
	if err := <-split; err != nil {
		t.Fatal(err)
	}
	if err := read(ctx); !errs.Is(err, errs.WrongRange) {
		t.Errorf("after the split a read answers %v", err)
	}
	if got, err := c.get(ctx, "z"); err != nil || got != "new" {
		t.Error(got, err)
	}
	return true
}

// A snapshot that cannot be installed is refused at its header, before the rest of it has come; one with rows that are not in its
// own spans is refused too.
func TestSnapshotsAreRefusedEarly(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newRangeCell(t, vfsx.NewMem(), 1, fastConfig())
		defer c.close()
		c.bear()
		id := testGroup(3, 0).Replicas[0]
		if err := c.h.CreateReplica(3, id); err != nil {
			t.Fatal(err)
		}
		r := c.h.replica(id.ID)
		at := point{9, 1}
		receive := func(h streamHeader, key string) (left int, err error) {
			j, err := json.Marshal(h)
			if err != nil {
				t.Fatal(err)
			}
			head := appendBlock(nil, append([]byte{blockHeader}, j...))
			row := append(append([]byte{blockRows, byte(len(key))}, key...), 1, 'v')
			// A long rest, of which something is left unread if the stream is refused before its end.
			body := bytes.Repeat(appendBlock(nil, row), 20000)
			end := appendBlock(nil, []byte(blockEndOf(20000)))
			data := bytes.NewReader(slices.Concat(head, body, end))
			_, err = r.receive(t.Context(), &raft.InstallSnapshotRequest{LastLogIndex: at.Index, LastLogTerm: at.Term, Term: 5}, data)
			return data.Len(), err
		}
		h := streamHeader{Format: rowFormat, Group: 3, Point: at, Spans: []cluster.KeySpan{{Start: []byte("c\x00\x00\x00\x00\x00\x00\x00\x01"), End: []byte("d")}}}
		if left, err := receive(h, "c\x00\x00\x00\x00\x00\x00\x00\x01x"); !errs.Is(err, errs.Busy) || left == 0 {
			t.Errorf("over another group's rows: %v, %d bytes left", err, left)
		}
		h.Spans = []cluster.KeySpan{{Start: []byte{0}, End: []byte{2}}, {Start: []byte("D"), End: []byte("E")}}
		for _, key := range []string{"C", "E", "Z", "\x01\x00"} {
			if left, err := receive(h, key); !errs.Is(err, errs.Corrupt) || left == 0 {
				t.Errorf("with the row %q: %v, %d bytes left", key, err, left)
			}
		}
		if r.applied.Load() != 0 {
			t.Error("something was installed")
		}
		if names, err := c.fs.List(r.ds.path(spoolDir)); err != nil || len(names) > 0 {
			t.Errorf("in the spool: %v, %v", names, err)
		}
	})
}

func blockEndOf(rows int) string { return fmt.Sprintf(`%c{"rows":%d}`, blockEnd, rows) }
