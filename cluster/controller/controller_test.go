package controller

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/placement"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

// node is a configured process that can be started and stopped.
type node struct {
	t    *testing.T
	fs   *vfsx.Mem
	cfg  Config
	host *multiraft.Host
	ctl  *Controller
	log  *lines
	now  func() time.Time

	faults *faults // nil: none
}

// faults is a metadata plane that fails what it is told to. A hook that answers false lets the call through.
type faults struct {
	*multiraft.Host
	add     func(ctx context.Context, g cluster.GroupID, r cluster.Replica) (error, bool)
	propose func(ctx context.Context, g cluster.GroupID, cmd *metapb.SysCommand) ([]byte, error, bool) // of the system group
}

func (f *faults) AddReplica(ctx context.Context, g cluster.GroupID, r cluster.Replica) error {
	if f.add != nil {
		if err, done := f.add(ctx, g, r); done {
			return err
		}
	}
	return f.Host.AddReplica(ctx, g, r)
}

func (f *faults) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	cmd := &metapb.SysCommand{}
	if f.propose != nil && g == cluster.SystemGroup && cmd.UnmarshalVT(data) == nil {
		if b, err, done := f.propose(ctx, g, cmd); done {
			return b, err
		}
	}
	return f.Host.Propose(ctx, g, data)
}

// lines is a log that tests can look at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newNode(t *testing.T, perZone ...int) *node {
	n := &node{t: t, fs: vfsx.NewMem(), log: &lines{}, now: time.Now}
	for _, d := range zoned(perZone...) {
		n.cfg.Slots = append(n.cfg.Slots, Slot{Path: "/data/" + d.Path, Zone: d.Zone})
	}
	return n
}

func (n *node) start() error {
	host, err := multiraft.New(multiraft.Config{
		Node: "node-1", Now: n.now, NewStateMachine: NewStateMachine,
		HeartbeatTimeout: 200 * time.Millisecond, CommitTimeout: 50 * time.Millisecond,
		LogMemTableBytes: 256 << 10, StateMemTableBytes: 256 << 10,
	})
	if err != nil {
		return err
	}
	cfg := n.cfg
	cfg.DataDir, cfg.FS, cfg.Now, cfg.Rand, cfg.Groups = "/data", n.fs, n.now, rand.Reader, host
	cfg.Logger = slog.New(slog.NewTextHandler(n.log, nil))
	cfg.Drive = func(d *drive.Config) { d.MemTableBytes, d.ExtentBytes = 256<<10, 1<<20 }
	setDefault(&cfg.Tick, 20*time.Millisecond)
	setDefault(&cfg.StartTimeout, time.Minute)
	if n.faults != nil {
		n.faults.Host = host
		cfg.Groups = n.faults
	}
	ctl, err := New(cfg)
	if err != nil {
		return err
	}
	n.host, n.ctl = host, ctl // before the start, for the hooks
	if err := ctl.Start(n.t.Context()); err != nil {
		n.ctl = nil
		return err
	}
	return nil
}

func (n *node) mustStart() *node {
	n.t.Helper()
	if err := n.start(); err != nil {
		n.t.Fatalf("start: %v\n%s", err, n.log)
	}
	n.t.Cleanup(n.stop)
	select {
	case <-n.ctl.Ready():
	default:
		n.t.Fatal("open, but not ready")
	}
	return n
}

func (n *node) stop() {
	if n.ctl == nil {
		return
	}
	if err := n.ctl.Close(); err != nil {
		n.t.Errorf("close: %v", err)
	}
	n.ctl = nil
}

func (n *node) restart() {
	n.t.Helper()
	n.stop()
	n.mustStart()
}

// eventually waits until ok answers "".
func (n *node) eventually(what string, ok func() string) {
	n.t.Helper()
	deadline := time.Now().Add(2 * time.Minute) // of a busy machine
	for {
		why := ok()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("%s: %s\n%s", what, why, n.log)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// path is the folder of slot i, from 1.
func (n *node) path(i int) string { return n.cfg.Slots[i-1].Path }

// drive is the drive recorded in slot i.
func (n *node) drive(i int) cluster.Drive {
	n.t.Helper()
	d, ok := n.ctl.recorded(n.ctl.Topology(), n.ctl.slots[i-1])
	if !ok {
		n.t.Fatalf("no drive is recorded in slot %d", i)
	}
	return d
}

// empty removes everything in slot i's folder while it is in use.
func (n *node) empty(i int) {
	n.t.Helper()
	if err := n.fs.RemoveTree(n.path(i)); err != nil {
		n.t.Fatal(err)
	}
	if err := n.fs.MkdirAll(n.path(i), 0o755); err != nil {
		n.t.Fatal(err)
	}
}

// writable checks that both groups commit and that the system group can be read.
func (n *node) writable() {
	n.t.Helper()
	n.eventually("writable", func() string {
		ctx, cancel := context.WithTimeout(n.t.Context(), 10*time.Second)
		defer cancel()
		if _, err := n.ctl.meta.DoGroup(ctx, cluster.FirstRange, &metapb.RangeCommand{Op: &metapb.RangeCommand_Tick{Tick: &metapb.TickOp{}}}); err != nil {
			return fmt.Sprint("range: ", err)
		}
		if _, err := n.ctl.readTopology(ctx); err != nil {
			return fmt.Sprint("system group: ", err)
		}
		return ""
	})
}

// append writes a shard to slot i's drive in the first placement group that holds it, as the data plane would.
func (n *node) append(i int) error {
	t, id := n.ctl.Topology(), n.drive(i).ID
	store := n.ctl.Store(id)
	if store == nil {
		return errs.New(errs.DriveFailed, "append", "", "no store")
	}
	for _, pg := range t.PGs {
		index := slices.Index(pg.Drives, id)
		if index < 0 {
			continue
		}
		return store.Append(n.t.Context(), storage.ShardHeader{
			ID:    storage.ShardID{PG: pg.ID, Chunk: storage.NewChunkID(time.Now().UnixMilli(), uint64(time.Now().UnixNano())), Index: uint8(index)},
			Epoch: pg.Epoch, Owner: storage.Owner{Bucket: 1, Key: "k"},
			Layout: storage.Layout{Scheme: pg.Scheme, StripeBytes: storage.StripeBytes, Length: 100},
		}, make([]byte, (100+int(pg.Scheme.K)-1)/int(pg.Scheme.K)), nil)
	}
	return errors.New("no placement group uses the drive")
}

func (n *node) settled() string {
	t := n.ctl.Topology()
	for i := range n.cfg.Slots {
		d, ok := n.ctl.recorded(t, n.ctl.slots[i])
		if !ok || d.State != cluster.DriveActive || n.ctl.Store(d.ID) == nil {
			return fmt.Sprintf("slot %d: %+v", i+1, d)
		}
	}
	for _, g := range n.host.Status() {
		rec := t.Groups[g.Group]
		if len(rec.Replicas) != len(g.Replicas) || g.Leader == "" {
			return fmt.Sprintf("group %d: %+v, recorded %+v", g.Group, g, rec)
		}
		for _, r := range g.Replicas {
			if r.State != multiraft.ReplicaRunning || !r.Voter || t.Drives[r.Drive].State != cluster.DriveActive {
				return fmt.Sprintf("group %d: %+v", g.Group, r)
			}
		}
	}
	return ""
}

func TestBootstrapAndRestart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		zones   []int
		voters  int
		schemes []storage.Scheme
	}{
		"1":     {[]int{1}, 1, []storage.Scheme{{K: 1}}},
		"2":     {[]int{2}, 1, []storage.Scheme{{K: 1, M: 1}}},
		"1+1+1": {[]int{1, 1, 1}, 3, []storage.Scheme{{K: 1, M: 2}}},
		"2+2+2": {[]int{2, 2, 2}, 5, []storage.Scheme{{K: 3, M: 3}, {K: 1, M: 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, c.zones...).mustStart()
			top := n.ctl.Topology()
			store := top.StoreID
			if len(store) != 32 || len(top.Drives) != len(n.cfg.Slots) || len(top.Groups) != 2 {
				t.Fatalf("%+v", top)
			}
			for id, g := range top.Groups {
				if len(g.Replicas) != c.voters {
					t.Errorf("group %d has %d voters, want %d", id, len(g.Replicas), c.voters)
				}
			}
			schemes := map[storage.Scheme]bool{}
			for _, pg := range top.PGs {
				schemes[pg.Scheme] = true
			}
			if len(schemes) != len(c.schemes) {
				t.Errorf("schemes %v, want %v", schemes, c.schemes)
			}
			for _, s := range c.schemes {
				if !schemes[s] {
					t.Errorf("no placement group for %s", s)
				}
			}
			if _, err := n.fs.Stat("/data/" + intentName); err == nil {
				t.Error("the intent is still there")
			}
			for i := range n.cfg.Slots {
				if err := n.append(i + 1); err != nil {
					t.Errorf("append to drive %d: %v", i+1, err)
				}
			}
			n.writable()
			for round := range 2 {
				n.restart()
				n.writable()
				n.eventually("settled", n.settled)
				if got := n.ctl.Topology(); got.StoreID != store || len(got.Drives) != len(n.cfg.Slots) {
					t.Fatalf("after restart: %+v", got)
				}
				for i := range n.cfg.Slots {
					if err := n.append(i + 1); err != nil {
						t.Errorf("append to drive %d after a restart: %v", i+1, err)
					}
					if s := n.ctl.DriveStatus()[i]; !s.Open || s.Trouble != "" || s.Starts != uint64(round+2) || s.Drive.ID.IsZero() {
						t.Errorf("%+v", s)
					}
				}
			}
		})
	}
}

// TestSecondProcess starts another controller on the same files.
func TestSecondProcess(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	o := newNode(t, 1, 1, 1)
	o.fs = n.fs
	if err := o.start(); !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), "pid ") {
		t.Fatal(err)
	}
	n.writable()
}

func TestLostDriveReturns(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2, 2, 2).mustStart()
	before := n.drive(3)
	if err := n.fs.Rename(n.path(3), "/data/away"); err != nil {
		t.Fatal(err)
	}
	n.eventually("recorded as down", func() string {
		d := n.ctl.Topology().Drives[before.ID]
		if d.State != cluster.DriveDown || n.ctl.Store(before.ID) != nil {
			return fmt.Sprintf("%+v", d)
		}
		return ""
	})
	n.writable()
	if s := n.ctl.DriveStatus()[2]; s.Open || !strings.Contains(s.Trouble, "missing") && !strings.Contains(s.Trouble, "failed") || s.Drive.ID != before.ID {
		t.Errorf("%+v", s)
	}
	dirty := 0
	for _, pg := range n.ctl.Topology().PGs {
		if i := slices.Index(pg.Drives, before.ID); i >= 0 {
			if pg.DirtySince[i] == 0 {
				t.Errorf("placement group %d is not marked: %+v", pg.ID, pg)
			}
			dirty++
		}
	}
	if d := n.ctl.Dirty(); len(d) != 0 {
		t.Errorf("nothing can be done about a drive that is away: %v", d)
	}
	if err := n.fs.Rename("/data/away", n.path(3)); err != nil {
		t.Fatal(err)
	}
	n.eventually("settled", n.settled)
	if n.drive(3).ID != before.ID {
		t.Fatal("another drive")
	}
	n.eventually("dirty slots", func() string {
		if d := n.ctl.Dirty(); len(d) != dirty {
			return fmt.Sprintf("%d, want %d", len(d), dirty)
		}
		return ""
	})
	if err := n.append(3); err != nil {
		t.Error(err)
	}
	d := n.ctl.Dirty()[0]
	if err := n.ctl.ClearDirty(t.Context(), d.PG, d.Index, d.Epoch-1); !errs.Is(err, errs.Conflict) {
		t.Errorf("an old epoch: %v", err)
	}
	if err := n.ctl.ClearDirty(t.Context(), d.PG, d.Index, d.Epoch); err != nil {
		t.Error(err)
	}
	n.eventually("cleared", func() string {
		pg := n.ctl.Topology().PGs[d.PG]
		if pg.DirtySince[d.Index] != 0 || pg.Epoch != d.Epoch {
			return fmt.Sprintf("%+v", pg)
		}
		return ""
	})
}

func TestEmptiedDriveIsReplaced(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	before := n.drive(2)
	n.empty(2)
	n.eventually("settled", func() string {
		if n.ctl.Topology().Drives[before.ID].State != cluster.DriveRemoved {
			return "the old one is not removed"
		}
		return n.settled()
	})
	after := n.drive(2)
	for _, pg := range n.ctl.Topology().PGs {
		i := slices.Index(pg.Drives, after.ID)
		if slices.Contains(pg.Drives, before.ID) || i >= 0 && pg.DirtySince[i] != 1 {
			t.Errorf("%+v", pg)
		}
	}
	for id, g := range n.ctl.Topology().Groups {
		if len(g.Replicas) != 3 || !slices.ContainsFunc(g.Replicas, func(r cluster.Replica) bool { return r.Drive == after.ID }) {
			t.Errorf("group %d: %+v", id, g)
		}
	}
	// The new copy counts: the loss of another drive leaves a majority.
	if err := n.fs.RemoveTree(n.path(1)); err != nil {
		t.Fatal(err)
	}
	n.eventually("down", func() string {
		if d := n.drive(1); d.State != cluster.DriveDown {
			return fmt.Sprintf("%+v", d)
		}
		return ""
	})
	n.writable()
	n.restart()
	n.writable()
}

func TestEmptiedWhileStopped(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	before := n.drive(3)
	n.stop()
	n.empty(3)
	n.mustStart()
	n.eventually("settled", n.settled)
	if n.drive(3).ID == before.ID || n.ctl.Topology().Drives[before.ID].State != cluster.DriveRemoved {
		t.Fatalf("%+v", n.ctl.Topology().Drives)
	}
}

func TestMissingWhileStopped(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	before := n.drive(3)
	n.stop()
	if err := n.fs.Rename(n.path(3), "/data/away"); err != nil {
		t.Fatal(err)
	}
	n.mustStart()
	n.eventually("recorded as down", func() string {
		if d := n.drive(3); d.State != cluster.DriveDown || d.ID != before.ID {
			return fmt.Sprintf("%+v", d)
		}
		return ""
	})
	n.writable()
	if _, err := n.fs.Stat(n.path(3)); err == nil {
		t.Error("the folder of a missing drive was made: it would be taken for an empty drive")
	}
	if err := n.fs.Rename("/data/away", n.path(3)); err != nil {
		t.Fatal(err)
	}
	n.eventually("settled", n.settled)
}

func TestZoneLost(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2, 2, 2).mustStart()
	for _, i := range []int{1, 2} {
		if err := n.fs.RemoveTree(n.path(i)); err != nil {
			t.Fatal(err)
		}
	}
	n.eventually("the zone is recorded as down", func() string {
		if !n.ctl.Topology().ZoneDown("a") {
			return "up"
		}
		return ""
	})
	n.writable()
	n.restart()
	n.writable()
	n.empty(1)
	n.empty(2)
	n.eventually("settled", n.settled)
}

func TestRefusalsAtStart(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	n.stop()
	refused := func(want string) {
		t.Helper()
		err := n.start()
		if err == nil {
			n.stop()
			t.Fatalf("accepted, want %q", want)
		}
		if !strings.Contains(err.Error(), want) {
			t.Fatalf("%v\ndoes not say %q", err, want)
		}
	}
	swap := func() {
		t.Helper()
		for _, m := range [][2]string{{n.path(1), "/data/x"}, {n.path(2), n.path(1)}, {"/data/x", n.path(2)}} {
			if err := n.fs.Rename(m[0], m[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	swap()
	refused("put it back")
	swap()

	// Another store's drive in a slot.
	o := newNode(t, 1).mustStart()
	o.stop()
	if err := n.fs.Rename(n.path(3), "/data/away"); err != nil {
		t.Fatal(err)
	}
	if err := drive.Format(n.fs, n.path(3), drive.Identity{StoreID: "0707", DriveID: testID(9), Zone: "c", Path: "zone-c/drive-1"}); err != nil {
		t.Fatal(err)
	}
	refused("another store")
	if err := n.fs.RemoveTree(n.path(3)); err != nil {
		t.Fatal(err)
	}
	if err := n.fs.Rename("/data/away", n.path(3)); err != nil {
		t.Fatal(err)
	}

	// Without a majority.
	for _, i := range []int{1, 2} {
		if err := n.fs.Rename(n.path(i), fmt.Sprint("/data/away", i)); err != nil {
			t.Fatal(err)
		}
	}
	refused("2 of 3 copies")
	for _, i := range []int{1, 2} {
		if err := n.fs.Rename(fmt.Sprint("/data/away", i), n.path(i)); err != nil {
			t.Fatal(err)
		}
	}
	// Fewer drives; also when only the metadata knows them any more.
	slots := n.cfg.Slots
	n.cfg.Slots = slots[:2]
	refused("is not configured")
	if err := n.fs.Remove("/data/" + registryName); err != nil {
		t.Fatal(err)
	}
	refused("is not configured")
	n.cfg.Slots = slots
	n.mustStart()
	n.writable()
}

func TestMoreDrivesJoin(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1).mustStart()
	first := n.drive(1)
	n.stop()
	for _, d := range zoned(2, 2, 2)[1:] {
		n.cfg.Slots = append(n.cfg.Slots, Slot{Path: "/data/" + d.Path, Zone: d.Zone})
	}
	n.mustStart()
	n.eventually("settled", func() string {
		t := n.ctl.Topology()
		for _, g := range t.Groups {
			if len(g.Replicas) != 5 {
				return fmt.Sprintf("group %d has %d replicas", g.ID, len(g.Replicas))
			}
		}
		for _, pg := range t.PGs {
			if pg.Scheme == (storage.Scheme{K: 3, M: 3}) {
				return n.settled()
			}
		}
		return "no placement groups for six drives"
	})
	if n.drive(1).ID != first.ID {
		t.Error("the first drive is another one")
	}
	for i := range n.cfg.Slots {
		if err := n.append(i + 1); err != nil {
			t.Error(err)
		}
	}
	n.eventually("the topology rests", func() string {
		v := n.ctl.Topology().Version
		time.Sleep(10 * 20 * time.Millisecond)
		if got := n.ctl.Topology().Version; got != v {
			return fmt.Sprintf("version %d, then %d", v, got)
		}
		return ""
	})
}

// A store that knows one storage class gets the groups of the others at the next start, once.
func TestMoreClasses(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2, 2, 2).mustStart()
	before := len(n.ctl.Topology().PGs)
	n.stop()
	n.cfg.Classes = []storage.StorageClass{storage.Standard, storage.StandardIA, storage.OnezoneIA, storage.Glacier}
	n.mustStart()
	n.eventually("groups of all classes", func() string {
		have := map[storage.StorageClass]int{}
		for _, pg := range n.ctl.Topology().PGs {
			have[pg.Class]++
		}
		for _, class := range n.cfg.Classes {
			if have[class] == 0 {
				return fmt.Sprintf("none of %s", class)
			}
		}
		if have[storage.Standard] != before {
			return fmt.Sprintf("%d of STANDARD, before %d", have[storage.Standard], before)
		}
		return n.settled()
	})
	if r := placement.Audit(n.ctl.Topology()); !r.OK {
		t.Error(r.Violations)
	}
	pgs := len(n.ctl.Topology().PGs)
	n.stop()
	n.mustStart()
	n.eventually("the topology rests", func() string {
		v := n.ctl.Topology().Version
		time.Sleep(10 * 20 * time.Millisecond)
		if got := n.ctl.Topology().Version; got != v {
			return fmt.Sprintf("version %d, then %d", v, got)
		}
		return ""
	})
	if got := len(n.ctl.Topology().PGs); got != pgs {
		t.Errorf("%d placement groups, then %d", pgs, got)
	}
}

func TestMovedWithinZone(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2, 2, 2).mustStart()
	a, b := n.drive(1), n.drive(2)
	n.stop()
	for _, m := range [][2]string{{n.path(1), "/data/x"}, {n.path(2), n.path(1)}, {"/data/x", n.path(2)}} {
		if err := n.fs.Rename(m[0], m[1]); err != nil {
			t.Fatal(err)
		}
	}
	n.mustStart()
	n.eventually("moves recorded", func() string {
		t := n.ctl.Topology()
		if t.Drives[a.ID].Path != b.Path || t.Drives[b.ID].Path != a.Path {
			return fmt.Sprintf("%+v", t.Drives)
		}
		return n.settled()
	})
}

func TestIOErrorStaysDown(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	remove := n.fs.Inject(vfsx.Fault{Ops: vfsx.OpSync, Path: n.path(2) + "/extents", Err: errors.New("input/output error")})
	if err := n.append(2); err == nil {
		t.Fatal("an append whose sync failed was acknowledged")
	}
	remove()
	n.eventually("recorded as down", func() string {
		if d := n.drive(2); d.State != cluster.DriveDown {
			return fmt.Sprintf("%+v", d)
		}
		return ""
	})
	time.Sleep(10 * 20 * time.Millisecond)
	if d := n.drive(2); d.State != cluster.DriveDown {
		t.Error("a drive whose sync failed was opened again, though the page cache cannot be trusted")
	}
	if s := n.ctl.DriveStatus()[1]; !strings.Contains(s.Trouble, "input/output error") {
		t.Errorf("%+v", s)
	}
	n.writable()
	if got := strings.Count(n.log.String(), "cannot record"); got > 3 {
		t.Errorf("%d complaints:\n%s", got, n.log)
	}
	n.restart()
	n.eventually("settled", n.settled)
}

func TestOldImageIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	n.stop()
	ident, err := drive.ReadIdentity(n.fs, n.path(2))
	if err != nil {
		t.Fatal(err)
	}
	n.mustStart()
	n.stop()
	if err := drive.WriteIdentity(n.fs, n.path(2), ident); err != nil {
		t.Fatal(err)
	}
	if err := n.start(); err == nil || !strings.Contains(err.Error(), "old image") {
		t.Fatal(err)
	}
	// Without the registry only the system group can tell. The start bumps the
	// counter to what is recorded already.
	if err := n.fs.Remove("/data/" + registryName); err != nil {
		t.Fatal(err)
	}
	if err := n.start(); err == nil || !strings.Contains(err.Error(), "old image") {
		t.Fatal(err)
	}
}

// TestCrashInBootstrap cuts the power after every so many changes to the disk
// while a store is made, and starts again from what the crash left.
func TestCrashInBootstrap(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1)
	ops := 0
	var mu sync.Mutex
	n.fs.SetHook(func(op vfsx.Op, path string) error {
		if op&vfsx.OpMutate != 0 {
			mu.Lock()
			ops++
			mu.Unlock()
		}
		return nil
	})
	n.mustStart()
	mu.Lock()
	total := ops
	mu.Unlock()
	n.stop()
	step := max(1, total/25)
	t.Logf("%d changes, a crash every %d", total, step)
	for at := 1; at <= total; at += step {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 1, 1, 1)
			var mu sync.Mutex
			seen := 0
			var after *vfsx.Mem
			n.fs.SetHook(func(op vfsx.Op, path string) error {
				if op&vfsx.OpMutate == 0 {
					return nil
				}
				mu.Lock()
				defer mu.Unlock()
				if seen++; seen == at {
					after = n.fs.CrashClone(uint64(at))
				}
				return nil
			})
			n.mustStart()
			n.stop()
			mu.Lock()
			fs := after
			mu.Unlock()
			if fs == nil {
				return // fewer changes this time
			}
			o := newNode(t, 1, 1, 1)
			o.fs = fs
			o.mustStart()
			if _, err := o.fs.Stat("/data/" + intentName); err == nil {
				t.Error("the intent is still there")
			}
			o.writable()
			o.eventually("settled", o.settled)
			o.restart()
			o.writable()
		})
	}
}

// TestCrashBeforeTheIntentIsRemoved leaves a complete store beside its intent. The next start removes it: a later one without drives.json would
// have replicas born again that lost what they had.
func TestCrashBeforeTheIntentIsRemoved(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1)
	var mu sync.Mutex
	var left *vfsx.Mem
	complete := false
	n.fs.SetHook(func(op vfsx.Op, path string) error {
		mu.Lock()
		defer mu.Unlock()
		if op&vfsx.OpMutate == 0 {
			return nil
		}
		complete = complete || strings.HasPrefix(path, "/data/"+registryName)
		if complete && left == nil && path == "/data/"+intentName {
			left = n.fs.CrashClone(0)
		}
		return nil
	})
	n.mustStart()
	n.stop()
	n.fs = left
	for _, f := range []string{registryName, intentName} {
		if _, err := n.fs.Stat("/data/" + f); err != nil {
			t.Fatal(err)
		}
	}
	n.mustStart()
	if _, err := n.fs.Stat("/data/" + intentName); err == nil {
		t.Error("the intent is still there")
	}
	id := n.drive(2).ID
	n.stop()
	for _, f := range []string{"/data/" + registryName, n.path(2) + "/raftlog", n.path(2) + "/state"} {
		if err := n.fs.RemoveTree(f); err != nil {
			t.Fatal(err)
		}
	}
	n.mustStart()
	n.writable()
	for _, g := range n.host.Status() {
		for _, r := range g.Replicas {
			if r.Drive == id {
				t.Errorf("born again: %+v", r)
			}
		}
	}
}

func TestVotersOfLongLostDrivesAreReplaced(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2, 2, 2)
	n.cfg.VoterGrace = 300 * time.Millisecond
	n.mustStart()
	lost := cluster.Drive{}
	for _, g := range n.ctl.Topology().Groups {
		lost = n.ctl.Topology().Drives[g.Replicas[4].Drive]
	}
	if err := n.fs.RemoveTree("/data/" + lost.Path); err != nil {
		t.Fatal(err)
	}
	n.eventually("replaced", func() string {
		for _, g := range n.ctl.Topology().Groups {
			if len(g.Replicas) != 5 || slices.ContainsFunc(g.Replicas, func(r cluster.Replica) bool { return r.Drive == lost.ID || !r.Voter }) {
				return fmt.Sprintf("%+v", g)
			}
		}
		return ""
	})
	n.writable()
}

func TestRottenMetadataIsReplaced(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	before := n.ctl.Topology().Groups[cluster.SystemGroup]
	n.stop()
	if err := n.fs.RemoveTree(n.path(2) + "/raftlog"); err != nil {
		t.Fatal(err)
	}
	n.mustStart()
	n.eventually("replaced", func() string {
		for _, g := range n.ctl.Topology().Groups {
			for _, r := range g.Replicas {
				if slices.Contains(before.Replicas, r) && r.Drive == n.drive(2).ID {
					return fmt.Sprintf("%+v", g)
				}
			}
		}
		return n.settled()
	})
	n.writable()
}

// TestCrashWhileReplacing cuts the power at points of the replacement of an emptied drive: while it is formatted and opened
// (160 changes to the disk or so), recorded (20 more), and given new copies of the metadata (to about 370).
func TestCrashWhileReplacing(t *testing.T) {
	t.Parallel()
	for _, at := range []int{1, 8, 16, 32, 64, 96, 120, 146, 158, 162, 166, 170, 178, 182, 186, 200, 230, 250, 262, 300, 330, 360} {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 1, 1, 1).mustStart()
			var mu sync.Mutex
			seen := 0
			var after *vfsx.Mem
			before := n.drive(2)
			n.empty(2)
			n.fs.SetHook(func(op vfsx.Op, path string) error {
				mu.Lock()
				defer mu.Unlock()
				// From the first change in the emptied folder on.
				if op&vfsx.OpMutate == 0 || seen == 0 && path != n.path(2)+"/drive.json.tmp" {
					return nil
				}
				if seen++; seen == at {
					after = n.fs.CrashClone(uint64(at))
				}
				return nil
			})
			n.eventually("settled", func() string {
				if n.drive(2).ID == before.ID {
					return "not replaced"
				}
				return n.settled()
			})
			n.stop()
			mu.Lock()
			fs := after
			mu.Unlock()
			if fs == nil {
				t.Logf("all was done after %d changes", seen)
				fs = n.fs.CrashClone(uint64(at))
			}
			o := newNode(t, 1, 1, 1)
			o.fs = fs
			o.mustStart()
			o.eventually("settled", o.settled)
			o.writable()
		})
	}
}

// usedFully says why the system group does not know all about slot i's drive.
func (n *node) usedFully(i int) string {
	d := n.drive(i)
	if s, ok := n.ctl.slotOf(d.ID); !ok || !n.ctl.recordedStart(s) {
		return "its start is not recorded"
	}
	var recorded uint64
	if err := n.ctl.meta.SysRead(n.t.Context(), func(r pebble.Reader) (err error) {
		recorded, err = sysstate.DriveStarts(r, d.ID)
		return err
	}); err != nil {
		return err.Error()
	}
	if there := n.ctl.DriveStatus()[i-1].Starts; recorded != there {
		return fmt.Sprintf("%d starts are recorded, it counts %d", recorded, there)
	}
	return n.settled()
}

// TestFormattedAndNotRecorded starts with a drive that was formatted in the place of another one before a crash, and that
// a loop publishes at the very moment at which it is recorded.
func TestFormattedAndNotRecorded(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	store := n.ctl.StoreID()
	n.stop()
	n.empty(2)
	ident := drive.Identity{Format: 1, StoreID: store, DriveID: testID(77), Node: "node-1", Zone: "b", Path: "zone-b/drive-1"}
	if err := drive.Format(n.fs, n.path(2), ident); err != nil {
		t.Fatal(err)
	}
	n.faults = &faults{}
	n.faults.propose = func(ctx context.Context, g cluster.GroupID, cmd *metapb.SysCommand) ([]byte, error, bool) {
		if _, ok := cmd.Op.(*metapb.SysCommand_ReplaceDrive); !ok {
			return nil, nil, false
		}
		data, err := cmd.MarshalVT()
		if err != nil {
			return nil, err, true
		}
		out, err := n.host.Propose(ctx, g, data)
		n.ctl.refresh(ctx)
		return out, err, true
	}
	n.mustStart()
	n.eventually("in use", func() string { return n.usedFully(2) })
	if n.drive(2).ID != ident.DriveID {
		t.Error("another drive")
	}
	// One that is made while the store runs is recorded to the last start, too.
	n.empty(2)
	n.eventually("in use", func() string {
		if n.drive(2).ID == ident.DriveID {
			return "not replaced"
		}
		return n.usedFully(2)
	})
}

// TestNeverRecorded formats a drive in the place of another one, and takes it out again before the store has recorded it.
func TestNeverRecorded(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	store, before := n.ctl.StoreID(), n.drive(2)
	n.stop()
	n.empty(2)
	never := drive.Identity{Format: 1, StoreID: store, DriveID: testID(77), Node: "node-1", Zone: "b", Path: "zone-b/drive-1"}
	if err := drive.Format(n.fs, n.path(2), never); err != nil {
		t.Fatal(err)
	}
	n.faults = &faults{}
	n.faults.propose = func(_ context.Context, _ cluster.GroupID, cmd *metapb.SysCommand) ([]byte, error, bool) {
		_, ok := cmd.Op.(*metapb.SysCommand_ReplaceDrive)
		return nil, errs.New(errs.Timeout, "test", "", "no answer"), ok
	}
	n.mustStart()
	n.stop()
	known := func() bool {
		reg, err := readRegistry(n.fs, "/data")
		if err != nil {
			t.Fatal(err)
		}
		return reg.find(never.DriveID) != nil
	}
	if !known() {
		t.Error("its start counter is not kept")
	}
	n.empty(2)
	n.faults = nil
	n.mustStart()
	n.eventually("settled", n.settled)
	if d := n.drive(2); d.ID == before.ID || d.ID == never.DriveID {
		t.Errorf("%+v", d)
	}
	n.eventually("forgotten", func() string { return map[bool]string{true: "it is still there"}[known()] })
	n.restart()
}

// TestRecordedTooLate has what is to be recorded about a drive held up until nobody knows any more whether it was recorded.
func TestRecordedTooLate(t *testing.T) {
	t.Parallel()
	isStart := func(cmd *metapb.SysCommand, id storage.DriveID) bool {
		op, ok := cmd.Op.(*metapb.SysCommand_DriveStarted)
		return ok && storage.DriveID(op.DriveStarted.Drive) == id
	}
	isReplace := func(cmd *metapb.SysCommand, _ storage.DriveID) bool {
		_, ok := cmd.Op.(*metapb.SysCommand_ReplaceDrive)
		return ok
	}
	for name, c := range map[string]struct {
		holds   func(*metapb.SysCommand, storage.DriveID) bool
		done    bool // it was committed, and only the answers are lost
		replace bool
		starts  uint64 // in the end
	}{
		"a start":                         {isStart, false, false, 2},
		"a start that was recorded":       {isStart, true, false, 3},
		"a replacement":                   {isReplace, false, true, 1},
		"a replacement that was recorded": {isReplace, true, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, 1, 1, 1).mustStart()
			before := n.drive(2)
			n.stop()
			var off, tries atomic.Int64
			n.now = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
			n.faults = &faults{}
			n.faults.propose = func(ctx context.Context, g cluster.GroupID, cmd *metapb.SysCommand) ([]byte, error, bool) {
				if off.Load() != 0 || !c.holds(cmd, before.ID) {
					return nil, nil, false
				}
				if data, err := cmd.MarshalVT(); err == nil && c.done {
					_, _ = n.host.Propose(ctx, g, data)
				}
				tries.Add(1)
				return nil, errs.New(errs.Timeout, "test", "", "no answer"), true
			}
			if c.replace {
				n.empty(2)
			}
			n.mustStart()
			n.eventually("tried", func() string { return map[bool]string{true: "not yet"}[tries.Load() == 0] })
			off.Store(int64(storage.OutcomeRetention + time.Minute))
			n.eventually("recorded", func() string {
				if (n.drive(2).ID == before.ID) == c.replace {
					return "replaced, or not"
				}
				return n.usedFully(2)
			})
			if got := n.ctl.DriveStatus()[1].Starts; got != c.starts {
				t.Errorf("%d starts, want %d", got, c.starts)
			}
		})
	}
}

// TestLeaderChangesWhileReplacing has a copy made and not added: it must not stand in the way of the next, nor must one that a crash left.
func TestLeaderChangesWhileReplacing(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1)
	n.faults = &faults{}
	var calls atomic.Int64
	var left atomic.Pointer[vfsx.Mem]
	n.faults.add = func(_ context.Context, g cluster.GroupID, r cluster.Replica) (error, bool) {
		if calls.Add(1) > 1 {
			return nil, false
		}
		if err := n.host.CreateReplica(g, r); err != nil {
			t.Error(err)
		}
		left.Store(n.fs.CrashClone(0))
		return errs.New(errs.NotLeader, "test", "", "the leader changed"), true
	}
	n.mustStart()
	before := n.drive(2)
	n.empty(2)
	n.eventually("settled", func() string {
		if n.drive(2).ID == before.ID {
			return "not replaced"
		}
		return n.settled()
	})
	n.stop()
	o := newNode(t, 1, 1, 1)
	o.fs = left.Load()
	o.mustStart()
	o.eventually("settled after a crash", o.settled)
	o.writable()
}

// TestSlowCopyHoldsUpNobody has a new copy of one group take for ever: the others get theirs all the same.
func TestSlowCopyHoldsUpNobody(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1)
	n.faults = &faults{}
	var slow atomic.Int64
	release := make(chan struct{})
	n.faults.add = func(ctx context.Context, g cluster.GroupID, _ cluster.Replica) (error, bool) {
		if g != cluster.SystemGroup {
			return nil, false
		}
		slow.Add(1)
		select {
		case <-ctx.Done():
			return ctx.Err(), true
		case <-release:
			return nil, false
		}
	}
	n.mustStart()
	before := n.drive(2)
	n.empty(2)
	voters := func(g cluster.GroupID) string {
		d := n.drive(2)
		if d.ID == before.ID {
			return "not replaced"
		}
		if rs := n.ctl.Topology().Groups[g].Replicas; !slices.ContainsFunc(rs, func(r cluster.Replica) bool { return r.Drive == d.ID && r.Voter }) {
			return fmt.Sprintf("group %d: %+v", g, rs)
		}
		return ""
	}
	n.eventually("the slow one is under way", func() string { return map[bool]string{true: "not yet"}[slow.Load() == 0] })
	n.eventually("the other group is well", func() string { return voters(cluster.FirstRange) })
	if voters(cluster.SystemGroup) == "" {
		t.Error("the copy did not wait")
	}
	if got := slow.Load(); got != 1 {
		t.Errorf("begun %d times", got)
	}
	close(release)
	n.eventually("settled", n.settled)
}

func TestPublication(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	ch, stop := n.ctl.Subscribe()
	defer stop()
	v := n.ctl.Topology().Version
	if _, err := n.ctl.meta.Sys(t.Context(), &metapb.SysCommand{Op: &metapb.SysCommand_SetDriveState{SetDriveState: &metapb.SetDriveStateOp{
		Drive: slices.Clone(idBytes(n.drive(1).ID)), State: uint32(cluster.DriveDown)}}}); err != nil {
		t.Fatal(err)
	}
	<-ch
	if n.ctl.Topology().Version <= v {
		t.Fatal("poked without news")
	}
	// The drive is there all the same: it is recorded as active again.
	n.eventually("settled", n.settled)
	if n.ctl.Local(n.drive(1).ID) != true || n.ctl.Local(testID(200)) {
		t.Error("Local")
	}
	var starts uint64
	if err := n.ctl.meta.SysRead(t.Context(), func(r pebble.Reader) (err error) {
		starts, err = sysstate.DriveStarts(r, n.drive(1).ID)
		return err
	}); err != nil || starts != 1 {
		t.Error(starts, err)
	}
}

// A ClearDirty that waits for another one's leader ends with its ctx.
func TestClearDirtyWaits(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1).mustStart()
	n.ctl.clearing <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.ctl.ClearDirty(ctx, 1, 0, 1); !errs.Is(err, errs.Unavailable) {
		t.Error(err)
	}
	<-n.ctl.clearing
}

func idBytes(id storage.DriveID) []byte { return id[:] }

// TestHungDrive has a drive not answer for a while: it is dropped, the others go on, and it returns.
func TestHungDrive(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2, 2, 2)
	n.cfg.HangAfter = time.Second // the others answer sooner, however busy the machine is
	n.mustStart()
	before := n.drive(6) // holds no voter
	answer := make(chan struct{})
	release := sync.OnceFunc(func() { close(answer) })
	t.Cleanup(release)
	var hit atomic.Bool
	n.fs.SetHook(func(op vfsx.Op, path string) error {
		if op == vfsx.OpStat && path == n.path(6)+"/drive.json" && hit.CompareAndSwap(false, true) {
			<-answer
		}
		return nil
	})
	n.eventually("recorded as down", func() string {
		if d := n.drive(6); d.State != cluster.DriveDown || n.ctl.Store(d.ID) != nil {
			return fmt.Sprintf("%+v", d)
		}
		return ""
	})
	if s := n.ctl.DriveStatus()[5]; !strings.Contains(s.Trouble, "does not answer") {
		t.Errorf("%+v", s)
	}
	n.writable()
	release()
	n.eventually("settled", n.settled)
	if n.drive(6).ID != before.ID {
		t.Error("another drive")
	}
}

// TestHungDataFolder has the writing of drives.json hang: topologies are published all the same, and the newest is written in the end.
func TestHungDataFolder(t *testing.T) {
	t.Parallel()
	n := newNode(t, 1, 1, 1).mustStart()
	release, once := make(chan struct{}), sync.Once{}
	free := func() { once.Do(func() { close(release) }) }
	t.Cleanup(free) // before the node stops
	var hung atomic.Int64
	n.fs.SetHook(func(_ vfsx.Op, path string) error {
		if strings.HasPrefix(path, "/data/"+registryName) {
			hung.Add(1)
			<-release
		}
		return nil
	})
	if err := n.fs.RemoveTree(n.path(1)); err != nil {
		t.Fatal(err)
	}
	down := func(i int) func() string {
		return func() string {
			if d := n.drive(i); d.State != cluster.DriveDown {
				return fmt.Sprintf("%+v", d)
			}
			return ""
		}
	}
	n.eventually("the first is recorded as down", down(1))
	n.eventually("it hangs", func() string { return map[bool]string{true: "not yet"}[hung.Load() == 0] })
	// A publication that comes after that.
	v := n.ctl.Topology().Version
	id := n.drive(2).ID
	if _, err := n.ctl.meta.Sys(t.Context(), &metapb.SysCommand{Op: &metapb.SysCommand_SetDriveState{SetDriveState: &metapb.SetDriveStateOp{
		Drive: slices.Clone(id[:]), State: uint32(cluster.DriveDown)}}}); err != nil {
		t.Fatal(err)
	}
	n.eventually("published", func() string {
		if n.ctl.Topology().Version < v+2 || n.drive(2).State != cluster.DriveActive {
			return "not yet"
		}
		return ""
	})
	free()
	n.eventually("written", func() string {
		reg, err := readRegistry(n.fs, "/data")
		if err != nil {
			return err.Error()
		}
		if r := reg.find(n.drive(1).ID); r == nil || r.State != cluster.DriveDown {
			return fmt.Sprintf("%+v", r)
		}
		return ""
	})
}

// TestStrangersWhileRunning puts wrong things into the slot of a lost drive.
func TestStrangersWhileRunning(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2, 2, 2).mustStart()
	if err := n.fs.Rename(n.path(6), "/data/away"); err != nil {
		t.Fatal(err)
	}
	lost := n.drive(6)
	trouble := func(want string) {
		t.Helper()
		n.eventually("trouble", func() string {
			if s := n.ctl.DriveStatus()[5]; s.Open || !strings.Contains(s.Trouble, want) || s.Drive.State != cluster.DriveDown {
				return fmt.Sprintf("%q, want %q", s.Trouble, want)
			}
			return ""
		})
		if err := n.fs.RemoveTree(n.path(6)); err != nil {
			t.Fatal(err)
		}
	}
	n.eventually("down", func() string { return map[bool]string{false: "not yet"}[n.drive(6).State == cluster.DriveDown] })
	foreign := drive.Identity{StoreID: "0707", DriveID: testID(9), Zone: "c", Path: "x"}
	if err := drive.Format(n.fs, n.path(6), foreign); err != nil {
		t.Fatal(err)
	}
	trouble("another store")
	foreign.StoreID, foreign.Zone = n.ctl.StoreID(), "a"
	if err := drive.Format(n.fs, n.path(6), foreign); err != nil {
		t.Fatal(err)
	}
	trouble("made for zone")
	foreign.DriveID, foreign.Zone = n.drive(5).ID, "c"
	if err := drive.Format(n.fs, n.path(6), foreign); err != nil {
		t.Fatal(err)
	}
	trouble("copy of drive")
	if err := n.fs.MkdirAll(n.path(6)+"/photos", 0o755); err != nil {
		t.Fatal(err)
	}
	trouble("holds files")
	if n.drive(6).ID != lost.ID {
		t.Fatal("replaced")
	}
	if err := n.fs.Rename("/data/away", n.path(6)); err != nil {
		t.Fatal(err)
	}
	n.eventually("settled", n.settled)
	if why := n.ctl.NotReady(); why != "" {
		t.Error(why)
	}
}

// TestOnlyVoterEmptied loses all metadata: nothing may be made anew in its place.
func TestOnlyVoterEmptied(t *testing.T) {
	t.Parallel()
	n := newNode(t, 2).mustStart()
	voter := 1
	if n.ctl.Topology().Groups[cluster.SystemGroup].Replicas[0].Drive != n.drive(1).ID {
		voter = 2
	}
	n.empty(voter)
	n.eventually("noticed", func() string { return map[bool]string{true: "ready"}[n.ctl.NotReady() == ""] })
	time.Sleep(10 * 20 * time.Millisecond)
	if names, err := n.fs.List(n.path(voter)); err != nil || len(names) != 0 {
		t.Fatalf("something was made in the folder of the only copy of the metadata: %v %v", names, err)
	}
	n.stop()
	if err := n.start(); err == nil || !strings.Contains(err.Error(), "1 of 1 copies of the metadata") || !strings.Contains(err.Error(), n.path(voter)) {
		t.Fatal(err)
	}
}
