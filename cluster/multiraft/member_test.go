package multiraft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/go-metrics"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

func replicaOn(g cluster.GroupID, drive int, n uint64) cluster.Replica {
	return cluster.Replica{ID: cluster.MakeReplicaID(g, n), Drive: driveID(drive), Voter: true}
}

// retry runs a membership change until it is done, as a controller would.
func (c *cell) retry(fn func(ctx context.Context) error) {
	c.t.Helper()
	end := time.Now().Add(patience)
	for {
		err := fn(testCtx(c.t, 5*time.Second))
		if err == nil {
			return
		}
		if !errs.Is(err, errs.NotLeader) && !errs.Is(err, errs.Unavailable) || time.Now().After(end) {
			c.t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Every voter is replaced by one on a new drive, under load; the old drives' rows are gone.
func TestReplaceVoters(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 6, fastConfig())
		c.birth(testGroup(1, 0, 1, 2))
		c.birth(testGroup(2, 0, 1, 2))
		c.fill(2, 5000, 20)
		began := time.Now()
		w := c.writers(1, "w", 4)
		for d := range 3 {
			c.retry(func(ctx context.Context) error { return c.h.AddReplica(ctx, 1, replicaOn(1, d+3, uint64(100+d))) })
			c.retry(func(ctx context.Context) error {
				return c.h.RemoveReplica(ctx, 1, cluster.MakeReplicaID(1, uint64(d+1)))
			})
		}
		time.Sleep(50 * time.Millisecond)
		acked := w.stop()
		t.Logf("%d commands in %v", len(acked), time.Since(began))
		if len(acked) < 50 {
			t.Errorf("%d commands went through", len(acked))
		}
		checkTape(t, c.waitEqual(1, 3), acked)
		members, err := c.h.Members(1)
		if err != nil || len(members) != 3 {
			t.Fatal(members, err)
		}
		for _, m := range members {
			if i := int(m.Drive[0]) - 1; i < 3 || !m.Voter {
				t.Errorf("member %+v", m)
			}
		}
		// Nothing of the old replicas is left, and the other group's rows are.
		ds := c.h.drive(driveID(0))
		if n, err := tapeLen(ds.db(), 1); n != 0 || err != nil {
			t.Errorf("the old drive has %d commands, %v", n, err)
		}
		if got := c.waitEqual(2, 3); distinct(got) != 20 {
			t.Errorf("group 2 has %d commands", len(got))
		}
		// All of it survives a restart.
		c.close()
		c.start()
		c.waitLeader(1)
		checkTape(t, c.waitEqual(1, 3), acked)
		c.close()
	})
}

// A drive that comes back empty gets a new replica; the old id is gone for good.
func TestEmptyDriveGetsNewReplica(t *testing.T) {
	t.Parallel()
	c := newCell(t, vfsx.NewMem(), 3, fastConfig())
	c.birth(testGroup(1, 0, 1, 2))
	c.fill(1, 0, 300)
	lead := c.waitLeader(1)
	d := (c.driveOf(lead) + 1) % 3
	if err := c.fs.RemoveTree(c.dir(d)); err != nil {
		t.Fatal(err)
	}
	c.fill(1, 1000, 20) // it fails now at the latest
	c.h.DropDrive(driveID(d))
	nd := c.drive(d)
	nd.ID[15] = 1 // another incarnation
	if err := c.h.AddDrive(nd); err != nil {
		t.Fatal(err)
	}
	r := cluster.Replica{ID: "g1-new", Drive: nd.ID, Voter: true}
	c.retry(func(ctx context.Context) error {
		return c.h.RemoveReplica(ctx, 1, cluster.MakeReplicaID(1, uint64(d+1)))
	})
	c.retry(func(ctx context.Context) error { return c.h.AddReplica(ctx, 1, r) })
	c.fill(1, 2000, 20)
	if got := c.waitEqual(1, 3); distinct(got) != 340 {
		t.Errorf("%d commands", len(got))
	}
	c.close()
}

// A state or a log that is gone, rotten or of another time makes the replica lost: it never runs
// again under its id, and is replaced under a new one.
func TestLostReplicas(t *testing.T) {
	t.Parallel()
	oldImage := func(store string) func(c *cell, before *vfsx.Mem, d int) {
		return func(c *cell, before *vfsx.Mem, d int) {
			dir := c.dir(d) + "/" + store
			_ = c.fs.RemoveAll(dir)
			copyTree(c.t, before, c.fs, dir)
		}
	}
	rot := func(match string) func(c *cell, _ *vfsx.Mem, d int) {
		return func(c *cell, _ *vfsx.Mem, d int) {
			hit := false
			for _, store := range []string{"raftlog", "state"} {
				dir := c.dir(d) + "/" + store
				names, err := c.fs.List(dir)
				if err != nil {
					c.t.Fatal(err)
				}
				for _, n := range names {
					if !strings.Contains(store+"/"+n, match) {
						continue
					}
					fi, err := c.fs.Stat(dir + "/" + n)
					if err != nil {
						c.t.Fatal(err)
					}
					for off := int64(100); off < fi.Size(); off += 200 {
						hit = true
						if err := c.fs.XorByte(dir+"/"+n, off, 0x55); err != nil {
							c.t.Fatal(err)
						}
					}
				}
			}
			if !hit {
				c.t.Fatal("nothing to spoil")
			}
		}
	}
	cases := map[string]func(c *cell, before *vfsx.Mem, d int){
		"no log":       func(c *cell, _ *vfsx.Mem, d int) { _ = c.fs.RemoveAll(c.dir(d) + "/raftlog") },
		"no state":     func(c *cell, _ *vfsx.Mem, d int) { _ = c.fs.RemoveAll(c.dir(d) + "/state") },
		"old log":      oldImage("raftlog"),
		"old state":    oldImage("state"),
		"rotten log":   rot("raftlog/0"),
		"rotten state": rot("state/MANIFEST"),
	}
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCell(t, vfsx.NewMem(), 3, fastConfig())
			c.birth(testGroup(1, 0, 1, 2))
			c.fill(1, 0, 50)
			c.close()
			before := c.fs.CrashClone(1)
			for range 2 {
				c.start()
				c.fill(1, 1000, 200)
				c.waitEqual(1, 3)
				c.close()
			}
			const d = 1
			spoil(c, before, d)
			for start := range 2 { // and it stays so
				c.start()
				c.waitLeader(1)
				st := c.h.Status()[0]
				i := slices.IndexFunc(st.Replicas, func(r ReplicaStatus) bool { return r.ID == cluster.MakeReplicaID(1, d+1) })
				if i < 0 || st.Replicas[i].State != ReplicaLost || !errs.Is(st.Replicas[i].Err, errs.Corrupt) || !st.Replicas[i].Member {
					t.Fatalf("start %d: status %+v", start, st)
				}
				if err := c.h.AddReplica(testCtx(t, time.Second), 1, replicaOn(1, d, 77)); !errs.Is(err, errs.Conflict) {
					t.Errorf("added beside a lost one: %v", err)
				}
				if err := c.h.Birth(testGroup(1, 0, 1, 2), noBirth); !errs.Is(err, errs.Conflict) {
					t.Errorf("a lost replica was born again: %v", err)
				}
				c.propose(1, fmt.Sprint("start", start))
				if start == 0 {
					c.close()
				}
			}
			c.retry(func(ctx context.Context) error { return c.h.RemoveReplica(ctx, 1, cluster.MakeReplicaID(1, d+1)) })
			c.retry(func(ctx context.Context) error { return c.h.AddReplica(ctx, 1, replicaOn(1, d, 77)) })
			if got := c.waitEqual(1, 3); distinct(got) != 252 {
				t.Errorf("%d commands", len(got))
			}
			c.close()
			c.start()
			c.waitEqual(1, 3)
			c.close()
		})
	}
}

func copyTree(t testing.TB, from, to *vfsx.Mem, dir string) {
	t.Helper()
	if err := to.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	names, err := from.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		src, err := from.Open(dir + "/" + n)
		if err != nil {
			t.Fatal(err)
		}
		fi, err := src.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, fi.Size())
		if len(b) > 0 {
			if _, err := src.ReadAt(b, 0); err != nil {
				t.Fatal(err)
			}
		}
		dst, err := to.Create(dir+"/"+n, "")
		if err != nil {
			t.Fatal(err)
		}
		_, err = dst.Write(b)
		if err := errors.Join(err, dst.Sync(), dst.Close(), src.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := syncDir(to, dir); err != nil {
		t.Fatal(err)
	}
}

// A power cut at any operation of an install leaves a replica that is either as before, or is
// filled at the next start; never half.
func TestCrashInInstall(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(seed(t), 3))
	cfg := fastConfig()
	cfg.StateMemTableBytes = 256 << 10 // part of the install is flushed before the rest is written
	c := newCell(t, vfsx.NewMem(), 3, cfg)
	c.birth(testGroup(1, 0, 1, 2))
	c.fill(1, 0, 50)
	lead := c.waitLeader(1)
	d := (c.driveOf(lead) + 1) % 3
	c.h.DropDrive(driveID(d))
	pad := strings.Repeat("x", 8<<10)
	for i := range 400 {
		c.propose(1, fmt.Sprintf("p%03d%s", i, pad))
	}
	c.waitEqual(1, 2)

	// Clones at random operations of the drive while the snapshot comes in.
	var mu sync.Mutex
	var clones []*vfsx.Mem
	var on atomic.Bool
	on.Store(true)
	var spooled atomic.Bool
	n := 0
	c.fs.SetHook(func(op vfsx.Op, path string) error {
		if on.Load() && op&vfsx.OpMutate != 0 && strings.Contains(path, c.dir(d)+"/") && !strings.Contains(path, "/raftlog/") {
			one := 50 // in so many, that is
			if spooled.Load() && op != vfsx.OpWrite {
				one = 2
			}
			if op == vfsx.OpSyncDir && strings.Contains(path, spoolDir) {
				spooled.Store(true) // the stream is whole: now the rows are replaced
			}
			mu.Lock()
			n++
			take := rng.IntN(one) == 0 && len(clones) < 30
			s := rng.Uint64()
			mu.Unlock()
			if take {
				f := c.fs.CrashClone(s)
				mu.Lock()
				clones = append(clones, f)
				mu.Unlock()
			}
		}
		return nil
	})
	if err := c.h.AddDrive(c.drive(d)); err != nil {
		t.Fatal(err)
	}
	want := c.waitEqual(1, 3)
	on.Store(false)
	c.fs.SetHook(nil)
	c.close()
	if len(clones) < 5 {
		t.Fatalf("%d clones of %d operations", len(clones), n)
	}
	redone := 0
	for i, fs := range clones {
		// First alone, as it lies: what it serves is one of the two states.
		alone := newCell(t, fs, 0, cfg)
		if err := alone.h.AddDrive(alone.drive(d)); err != nil {
			t.Fatal(err)
		}
		var got []string
		err := alone.h.ReadLocal(1, func(r pebble.Reader) (err error) {
			got, err = readTape(r, 1)
			return err
		})
		if err != nil || len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("%d rows, %v, status %+v", len(got), err, alone.h.Status())
		}
		if len(got) > 200 {
			redone++
		}
		alone.close()
		if i%5 != 0 {
			continue
		}
		all := newCell(t, fs, 3, cfg)
		all.waitLeader(1)
		if got := all.waitEqual(1, 3); !slices.Equal(got, want) {
			t.Fatalf("%d commands", len(got))
		}
		all.close()
	}
	t.Logf("%d clones of %d operations, %d with the new state", len(clones), n, redone)
}

// A late or repeated snapshot is not installed over a newer state.
func TestLateSnapshotIsIgnored(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 3, fastConfig())
		c.birth(testGroup(1, 0, 1, 2))
		c.fill(1, 0, 300)
		c.waitEqual(1, 3)
		lead := c.waitLeader(1)
		meta, data, err := lead.Open(stateSnapshotID)
		if err != nil {
			t.Fatal(err)
		}
		c.fill(1, 1000, 100)
		want := c.waitEqual(1, 3)
		for _, r := range c.h.group(1, false).replicas() {
			if r == lead {
				continue
			}
			req := installRequest(lead, meta)
			resp, err := r.receive(context.Background(), req, data)
			if err != nil || !resp.Success {
				t.Errorf("%+v, %v", resp, err)
			}
			req.Term--
			if resp, err := r.receive(context.Background(), req, data); err != nil || resp.Success {
				t.Errorf("of an older term: %+v, %v", resp, err)
			}
			break
		}
		if err := data.Close(); err != nil {
			t.Error(err)
		}
		c.propose(1, "on")
		if got := c.waitEqual(1, 3); distinct(got) != distinct(want)+1 {
			t.Errorf("%d commands", len(got))
		}
		c.close()
	})
}

// slowDispatch is a sink of raft's metrics that holds up the leader's main loop between its waking of the senders
// of an entry and what follows, since that measures the time of the first.
type slowDispatch struct {
	metrics.BlackholeSink
	on atomic.Bool
}

func (s *slowDispatch) AddSampleWithLabels(key []string, _ float32, _ []metrics.Label) {
	if s.on.Load() && slices.Contains(key, "dispatchLog") {
		time.Sleep(100 * time.Millisecond)
	}
}

// lateAppends is a Transport over which entries take longer than that.
type lateAppends struct {
	end
	sink *slowDispatch
}

func (l lateAppends) AppendEntries(ctx context.Context, e Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	if l.sink.on.Load() && !IsHeartbeat(req) {
		time.Sleep(200 * time.Millisecond)
	}
	return l.end.AppendEntries(ctx, e, req)
}

// A replica that acknowledges the entry which makes it a voter before raft counts it as one becomes a voter all the
// same, in a group that needs its vote and in which nothing else is written.
func TestVoterAcknowledgesEarly(t *testing.T) {
	// The metrics are the process's: not beside other tests.
	bubble.Test(t, func(t *testing.T) {
		sink := &slowDispatch{}
		if _, err := metrics.NewGlobal(&metrics.Config{FilterDefault: true}, sink); err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = metrics.NewGlobal(&metrics.Config{}, &metrics.BlackholeSink{}) }()
		// Of three voters one is dead; the other two are in two processes, and the leader's has the drive of the fourth.
		n := &net{cut: map[[2]int]bool{}}
		var cells []*cell
		for i := range 2 {
			cfg := Config{Remote: lateAppends{end{n, i}, sink}}
			c := newCell(t, vfsx.NewMem(), 0, cfg)
			defer c.close()
			if err := c.h.AddDrive(c.drive(i)); err != nil {
				t.Fatal(err)
			}
			cells = append(cells, c)
			n.mu.Lock()
			n.hosts = append(n.hosts, c.h)
			n.mu.Unlock()
		}
		c, g := cells[0], testGroup(1, 0, 1, 2)
		for _, c := range cells {
			if err := c.h.Birth(g, noBirth); err != nil {
				t.Fatal(err)
			}
		}
		c.h.Campaign(1)
		if err := c.h.WaitLeader(testCtx(t, time.Minute), 1); err != nil {
			t.Fatal(err)
		}
		if c.h.group(1, false).leader.Load() == nil {
			if err := cells[1].h.TransferLeader(testCtx(t, time.Minute), 1, g.Replicas[0].ID); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.h.AddDrive(c.drive(3)); err != nil {
			t.Fatal(err)
		}
		c.propose(1, "first")
		time.Sleep(time.Minute) // all is quiet
		sink.on.Store(true)
		began := time.Now()
		if err := c.h.AddReplica(testCtx(t, 10*time.Minute), 1, replicaOn(1, 3, 100)); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		sink.on.Store(false)
		if last := c.h.group(1, false).leader.Load().raft.LastIndex(); last > 20 {
			t.Errorf("the log ends at %d after some entries", last)
		}
		c.propose(1, "second")
	})
}

// slowCopy is a Transport over which a snapshot takes its time: between pieces of it, and for being installed.
type slowCopy struct {
	end
	piece, install time.Duration
	sent           *atomic.Int64
}

func (s slowCopy) InstallSnapshot(ctx context.Context, e Envelope, req *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error) {
	var got bytes.Buffer
	for {
		_, err := io.CopyN(&got, data, 2<<10)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		s.sent.Add(1)
		time.Sleep(s.piece)
	}
	time.Sleep(s.install)
	return s.end.InstallSnapshot(ctx, e, req, &got)
}

// The making of a replica that nothing reaches is given up soon; one that only takes long is not.
func TestSlowCopy(t *testing.T) {
	for name, c := range map[string]struct {
		piece, install time.Duration
		cut            bool
	}{
		"cut off":      {cut: true},
		"slow":         {piece: 20 * time.Second},
		"slow to take": {install: 5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				n := &net{cut: map[[2]int]bool{}}
				var sent atomic.Int64
				var cells []*cell
				for i := range 2 {
					c := newCell(t, vfsx.NewMem(), 0, Config{Remote: slowCopy{end{n, i}, c.piece, c.install, &sent}})
					defer c.close()
					if err := c.h.AddDrive(c.drive(i)); err != nil {
						t.Fatal(err)
					}
					cells = append(cells, c)
					n.mu.Lock()
					n.hosts = append(n.hosts, c.h)
					n.mu.Unlock()
				}
				cells[0].birth(testGroup(1, 0))
				cells[0].fill(1, 0, 500)
				r := replicaOn(1, 1, 2)
				if err := cells[1].h.CreateReplica(1, r); err != nil {
					t.Fatal(err)
				}
				n.mu.Lock()
				n.cut[[2]int{0, 1}] = c.cut
				n.mu.Unlock()
				began := time.Now()
				err := cells[0].h.AddReplica(testCtx(t, time.Hour), 1, r)
				took := time.Since(began)
				switch {
				case c.cut && !errs.Is(err, errs.Timeout):
					t.Error(err)
				case c.cut && took > 2*copyStall:
					t.Errorf("given up after %v", took)
				case !c.cut && (err != nil || took < 2*copyStall || sent.Load() < 4):
					t.Errorf("%v after %v and %d pieces", err, took, sent.Load())
				}
				n.mu.Lock()
				clear(n.cut)
				n.mu.Unlock()
			})
		})
	}
}

// A stream that was cut off or changed on the way is refused.
func TestBadStream(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 1, fastConfig())
		c.birth(testGroup(1, 0))
		c.fill(1, 0, 300)
		lead := c.waitLeader(1)
		_, data, err := lead.Open(stateSnapshotID)
		if err != nil {
			t.Fatal(err)
		}
		whole := readAll(t, data)
		if err := data.Close(); err != nil {
			t.Error(err)
		}
		rows := 0
		read := func(b []byte) error {
			rows = 0
			return readStream(strings.NewReader(string(b)), func(streamHeader) error { return nil }, func(b []byte) error {
				n, err := countRows(b[1:])
				rows += int(n)
				return err
			})
		}
		if err := read(whole); err != nil || rows != 301 {
			t.Fatalf("%d rows, %v", rows, err)
		}
		for n := 0; n < len(whole); n += 1 + len(whole)/200 {
			if err := read(whole[:n]); !errs.Is(err, errs.Corrupt) {
				t.Fatalf("cut at %d: %v", n, err)
			}
			bad := slices.Clone(whole)
			bad[n] ^= 0x10
			if err := read(bad); !errs.Is(err, errs.Corrupt) {
				t.Fatalf("changed at %d: %v", n, err)
			}
		}
		c.close()
	})
}

// A replica is made where its drive is and added where the leader is; then it leads on request, and everybody knows who does.
func TestReplicaElsewhere(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n := &net{cut: map[[2]int]bool{}}
		var cells []*cell
		for i := range 2 {
			cfg := fastConfig()
			cfg.Remote = end{n, i}
			c := newCell(t, vfsx.NewMem(), 0, cfg)
			if err := c.h.AddDrive(c.drive(i)); err != nil {
				t.Fatal(err)
			}
			cells = append(cells, c)
			n.hosts = append(n.hosts, c.h)
		}
		cells[0].birth(testGroup(1, 0))
		cells[0].fill(1, 0, 50)
		r := replicaOn(1, 1, 2)
		ctx := testCtx(t, 10*time.Second)
		if err := cells[0].h.CreateReplica(1, r); !errs.Is(err, errs.DriveFailed) {
			t.Errorf("created on a drive that is not here: %v", err)
		}
		for range 2 {
			if err := cells[1].h.CreateReplica(1, r); err != nil {
				t.Fatal(err)
			}
		}
		if err := cells[1].h.CreateReplica(1, replicaOn(1, 1, 3)); !errs.Is(err, errs.Conflict) {
			t.Errorf("a second replica on one drive: %v", err)
		}
		if err := cells[0].h.TransferLeader(ctx, 1, r.ID); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("a transfer to a stranger: %v", err)
		}
		cells[0].retry(func(ctx context.Context) error { return cells[0].h.AddReplica(ctx, 1, r) })
		cells[0].retry(func(ctx context.Context) error { return cells[0].h.TransferLeader(ctx, 1, r.ID) })
		for cells[1].h.group(1, false).leader.Load() == nil && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		if got := cells[1].tape(1); distinct(got) != 50 {
			t.Errorf("%d commands", len(got))
		}
		cells[1].propose(1, "one more") // the other one hears of the leader by then
		for _, c := range cells {
			if l, ok := c.h.LeaderOf(1); !ok || l != r.ID {
				t.Errorf("%s leads, %v", l, ok)
			}
		}
		_, err := cells[0].h.Propose(ctx, 1, []byte("x"))
		if l, ok := LeaderHint(fmt.Errorf("wrapped: %w", err)); !ok || l != r.ID || !errs.Is(err, errs.NotLeader) {
			t.Errorf("%v names %q", err, l)
		}
		if _, ok := LeaderHint(errs.New(errs.Unavailable, "", "g1", "")); ok {
			t.Error("another error names a leader")
		}
		for _, c := range cells {
			c.close()
		}
	})
}

// A peer that gets the same snapshot again gets it after a pause.
func TestSnapshotAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 3, fastConfig())
		c.birth(testGroup(1, 0, 1, 2))
		c.fill(1, 0, 100)
		lead := c.waitLeader(1)
		c.waitEqual(1, 3)
		var peer *replica
		for _, r := range c.h.group(1, false).replicas() {
			if r != lead {
				peer = r
			}
		}
		send := func() time.Duration {
			t.Helper()
			for peer.applied.Load() < lead.applied.Load() { // one that gets there while it is received is refused
				time.Sleep(time.Millisecond)
			}
			meta, data, err := lead.Open(stateSnapshotID)
			if err != nil {
				t.Fatal(err)
			}
			defer data.Close()
			began := time.Now()
			var resp raft.InstallSnapshotResponse
			if err := (&trans{lead}).InstallSnapshot(raft.ServerID(peer.id), "", installRequest(lead, meta), &resp, data); err != nil || !resp.Success {
				t.Fatal(resp, err)
			}
			return time.Since(began)
		}
		if took := send(); took != 0 {
			t.Errorf("the first took %v", took)
		}
		for range 3 {
			if took := send(); took < c.h.cfg.HeartbeatTimeout {
				t.Errorf("once more after %v", took)
			}
		}
		c.propose(1, "more")
		if took := send(); took != 0 {
			t.Errorf("another one took %v", took)
		}
		c.close()
	})
}
