package multiraft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// driveOf is the index of the drive a replica is on.
func (c *cell) driveOf(r *replica) int { return int(r.ds.d.ID[0]) - 1 }

// writers propose numbered commands, different ones for each name, and note what is acknowledged at which place.
type writers struct {
	mu     sync.Mutex
	acked  map[string]uint64
	wg     sync.WaitGroup
	cancel context.CancelFunc
}

func (c *cell) writers(g cluster.GroupID, name string, n int) *writers {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writers{acked: map[string]uint64{}, cancel: cancel}
	h := c.h
	for k := range n {
		w.wg.Add(1)
		go func() {
			defer w.wg.Done()
			for i := 0; ctx.Err() == nil; i++ {
				cmd := fmt.Sprintf("%s.%d.%d", name, k, i)
				pctx, pcancel := context.WithTimeout(ctx, 2*time.Second)
				res, err := h.Propose(pctx, g, []byte(cmd))
				pcancel()
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				w.mu.Lock()
				w.acked[cmd] = binary.BigEndian.Uint64(res)
				w.mu.Unlock()
				time.Sleep(300 * time.Microsecond) // or fake time would stand still
			}
		}()
	}
	return w
}

// soFar is what is acknowledged now.
func (w *writers) soFar() map[string]uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.acked)
}

func (w *writers) stop() map[string]uint64 {
	w.cancel()
	w.wg.Wait()
	return w.acked
}

// checkTape fails unless every acknowledged command is at its place, and none is there twice.
func checkTape(t *testing.T, tape []string, acked map[string]uint64) {
	t.Helper()
	for cmd, n := range acked {
		if n == 0 || n > uint64(len(tape)) || tape[n-1] != cmd {
			t.Fatalf("%q was acknowledged as number %d; the tape of %d has it at %d", cmd, n, len(tape), slices.Index(tape, cmd)+1)
		}
	}
	seen := map[string]bool{}
	for _, cmd := range tape {
		if seen[cmd] {
			t.Fatalf("%q is there twice", cmd)
		}
		seen[cmd] = true
	}
}

// Power cuts at random moments under load, again and again on the same drives: every command acknowledged before is there,
// at its place, once, on all replicas.
func TestCrashes(t *testing.T) {
	t.Parallel()
	seed := seed(t)
	for _, drives := range []int{1, 3, 5} {
		t.Run(fmt.Sprint(drives), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, uint64(drives)))
			cfg := fastConfig()
			cfg.SnapshotEntries = 50
			cfg.StateMemTableBytes = 256 << 10
			cfg.LogMemTableBytes = 256 << 10
			c := newCell(t, vfsx.NewMem(), drives, cfg)
			c.birth(testGroup(1, []int{0, 1, 2, 3, 4}[:drives]...))
			var past []string
			for round := range 5 {
				w := c.writers(1, fmt.Sprintf("r%d", round), 8)
				time.Sleep(time.Duration(20+rng.IntN(120)) * time.Millisecond)
				before := w.soFar()
				for end := time.Now().Add(patience); len(before) == 0 && time.Now().Before(end); before = w.soFar() {
					time.Sleep(time.Millisecond)
				}
				next := c.fs.CrashClone(rng.Uint64())
				w.stop()
				c.close()
				c = newCell(t, next, drives, cfg)
				c.waitLeader(1)
				tape := c.waitEqual(1, drives)
				checkTape(t, tape, before)
				if len(before) == 0 || len(tape) < len(past) || !slices.Equal(tape[:len(past)], past) {
					t.Fatalf("round %d: %d commands acknowledged in it; the past of %d is not the beginning of the tape of %d", round, len(before), len(past), len(tape))
				}
				past = tape
			}
			c.close()
		})
	}
}

// The leader's drive fails in all sorts of ways: the group goes on, and the drive's other
// business does not take the process along.
func TestLeaderDriveFails(t *testing.T) {
	t.Parallel()
	var heal func()
	cases := map[string]func(c *cell, dir string){
		"sync": func(c *cell, dir string) {
			c.fs.Inject(vfsx.Fault{Ops: vfsx.OpSync, Path: dir + "/", Err: syscall.EIO})
		},
		"write": func(c *cell, dir string) {
			c.fs.Inject(vfsx.Fault{Ops: vfsx.OpWrite, Path: dir + "/", Err: syscall.EIO})
		},
		"all": func(c *cell, dir string) {
			c.fs.Inject(vfsx.Fault{Ops: vfsx.OpAny, Path: dir + "/", Err: syscall.EIO})
		},
		"remove": func(c *cell, dir string) {
			if err := c.fs.RemoveTree(dir); err != nil {
				c.t.Error(err)
			}
		},
		"replaced": func(c *cell, dir string) {
			if err := c.fs.RemoveTree(dir); err != nil {
				c.t.Error(err)
			}
			_ = c.fs.MkdirAll(dir, 0o755)
		},
		"rotate": func(c *cell, dir string) {
			c.fs.Inject(vfsx.Fault{Ops: vfsx.OpCreate | vfsx.OpRename, Path: dir + "/", Err: syscall.EIO})
		},
		"hang": func(c *cell, dir string) {
			heal = c.fs.Inject(vfsx.Fault{Ops: vfsx.OpSync, Path: dir + "/raftlog", Delay: time.Second})
		},
	}
	for name, fail := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := fastConfig()
			cfg.LogMemTableBytes = 128 << 10 // rotates soon
			cfg.StateMemTableBytes = 128 << 10
			c := newCell(t, vfsx.NewMem(), 3, cfg)
			c.birth(testGroup(1, 0, 1, 2))
			w := c.writers(1, "w", 8)
			time.Sleep(50 * time.Millisecond)
			old := c.waitLeader(1)
			dead := c.driveOf(old)
			fail(c, c.dir(dead))
			start := time.Now()
			await := func(what string, done func() bool) {
				t.Helper()
				for !done() {
					if time.Since(start) > 30*time.Second {
						t.Fatal(what)
					}
					time.Sleep(time.Millisecond)
				}
			}
			// Leaders may change because the machine is busy: the drive counts.
			await("the failure was not reported", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return name == "hang" || c.failed[driveID(dead)] != nil
			})
			await("no new leader", func() bool {
				r := c.h.group(1, false).leader.Load()
				return r != nil && r != old && c.driveOf(r) != dead && r.readTerm.Load() != 0
			})
			t.Logf("a new leader after %v", time.Since(start))
			time.Sleep(100 * time.Millisecond)
			acked := w.stop()
			checkTape(t, c.tape(1), acked)
			if name == "hang" {
				heal() // it comes back
				c.close()
				return
			}
			for _, r := range c.h.Status()[0].Replicas {
				if r.Drive == driveID(dead) && r.State != ReplicaFailed {
					t.Errorf("status is %+v", r)
				}
			}
			c.h.DropDrive(driveID(dead))
			c.waitEqual(1, 2)
			c.close()
		})
	}
}

// A follower's drive goes and returns: it catches up by log, and by snapshot when it was away too long.
func TestDriveReturns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 3, fastConfig())
		c.birth(testGroup(1, 0, 1, 2))
		c.fill(1, 0, 100)
		away := func() int {
			lead := c.waitLeader(1)
			d := (c.driveOf(lead) + 1) % 3
			c.h.DropDrive(driveID(d))
			return d
		}
		back := func(d int) {
			if err := c.h.AddDrive(c.drive(d)); err != nil {
				t.Fatal(err)
			}
			c.waitEqual(1, 3)
		}
		d := away()
		c.fill(1, 1000, 30)
		back(d)
		r := c.h.group(1, false).replicas()[2]
		if first, _ := r.view.FirstIndex(); first > 100 {
			t.Errorf("log begins at %d: did it need a snapshot?", first)
		}
		d = away()
		c.fill(1, 2000, 1000)
		back(d)
		for _, r := range c.h.group(1, false).replicas() {
			for end := time.Now().Add(5 * time.Second); c.driveOf(r) == d && r.markerPoint().Index < 500; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("marker at %d: it was not filled by snapshot", r.markerPoint().Index)
				}
			}
		}
		// The leader's own drive.
		lead := c.waitLeader(1)
		d = c.driveOf(lead)
		c.h.DropDrive(driveID(d))
		c.fill(1, 4000, 10)
		back(d)
		if got := c.waitEqual(1, 3); distinct(got) < 1140 {
			t.Errorf("%d commands", len(got))
		}
		c.close()
	})
}

// No acknowledgement without a quorum, and none lost when it returns.
func TestNoQuorum(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 3, fastConfig())
		c.birth(testGroup(1, 0, 1, 2))
		c.fill(1, 0, 10)
		lead := c.waitLeader(1)
		var dropped []int
		for d := range 3 {
			if d != c.driveOf(lead) {
				c.h.DropDrive(driveID(d))
				dropped = append(dropped, d)
			}
		}
		if _, err := c.h.Propose(testCtx(t, 400*time.Millisecond), 1, []byte("alone")); err == nil {
			t.Error("acknowledged without a quorum")
		}
		if err := c.h.Read(testCtx(t, 100*time.Millisecond), 1, nil); err == nil {
			t.Error("read without a quorum")
		}
		for _, d := range dropped {
			if err := c.h.AddDrive(c.drive(d)); err != nil {
				t.Fatal(err)
			}
		}
		c.propose(1, "again")
		if got := c.waitEqual(1, 3); got[len(got)-1] != "again" || distinct(got) < 11 {
			t.Errorf("tape is %v", got)
		}
		c.close()
	})
}

// A state machine that finds its state corrupt stops that replica only.
func TestCorruptState(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cfg := fastConfig()
		var poisoned atomic.Pointer[tape]
		cfg.NewStateMachine = func(g cluster.GroupID) StateMachine {
			m := &tape{g: g}
			m.spoil = func(cluster.Entry) error {
				if poisoned.Load() == m {
					return errors.New("row is gone")
				}
				return nil
			}
			return m
		}
		c := newCell(t, vfsx.NewMem(), 3, cfg)
		c.birth(testGroup(1, 0, 1, 2))
		c.fill(1, 0, 10)
		lead := c.waitLeader(1)
		poisoned.Store(lead.sm.(*tape))
		_, err := c.h.Propose(testCtx(t, 5*time.Second), 1, []byte("bad"))
		if !errs.Is(err, errs.OutcomeUnknown) {
			t.Errorf("the leader's apply failed, the caller got %v", err)
		}
		c.propose(1, "good")
		if got := c.waitEqual(1, 2); !slices.Contains(got, "bad") {
			t.Error("the others have not applied it")
		}
		for _, r := range c.h.Status()[0].Replicas {
			if r.ID == lead.id && (r.State != ReplicaFailed || !errs.Is(r.Err, errs.Corrupt)) {
				t.Errorf("status is %+v", r)
			}
		}
		c.close()
	})
}
