package multiraft

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

func TestGroup(t *testing.T) {
	for _, voters := range []int{1, 3, 5} {
		bubble.Test(t, func(t *testing.T) {
			c := newCell(t, vfsx.NewMem(), voters, fastConfig())
			g := testGroup(7, []int{0, 1, 2, 3, 4}[:voters]...)
			poked, end := c.h.Subscribe(7)
			defer end()
			start := time.Now()
			c.birth(g)
			if d := time.Since(start); d > c.h.cfg.HeartbeatTimeout {
				t.Errorf("a newborn group took %v to elect", d)
			}
			if n := c.propose(7, "a"); n != 1 {
				t.Errorf("first command is number %d", n)
			}
			select {
			case <-poked:
			case <-time.After(5 * time.Second):
				t.Error("the subscriber was not poked")
			}
			c.fill(7, 0, 1000)
			got := c.waitEqual(7, voters)
			if distinct(got) != 1001 || got[0] != "a" {
				t.Errorf("%d commands, the first is %q", len(got), got[0])
			}
			// Born again: nothing happens.
			if err := c.h.Birth(g, noBirth); err != nil {
				t.Error(err)
			}
			c.close()
			if _, err := c.h.Propose(context.Background(), 7, nil); !errs.Is(err, errs.Closed) {
				t.Errorf("propose after close: %v", err)
			}
			// An orderly restart.
			start = time.Now()
			c.start()
			c.waitLeader(7)
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("restart took %v", d)
			}
			if got := c.waitEqual(7, voters); distinct(got) != 1001 {
				t.Errorf("%d commands after the restart", len(got))
			}
			c.propose(7, "z")
			c.close()
		})
	}
}

// Followers' logs are cut behind the marker, which bounds what a restart replays.
func TestLogIsTruncated(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cfg := fastConfig()
		cfg.SnapshotEntries = 100
		c := newCell(t, vfsx.NewMem(), 3, cfg)
		defer c.close()
		c.birth(testGroup(1, 0, 1, 2))
		c.fill(1, 0, 1500)
		c.waitEqual(1, 3)
		end := time.Now().Add(5 * time.Second)
		for _, r := range c.h.group(1, false).replicas() {
			for {
				first, _ := r.view.FirstIndex()
				last, _ := r.view.Last()
				if last-first < 64+400 && last-r.markerPoint().Index < 400 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s keeps %d..%d, marker at %d", r.id, first, last, r.markerPoint().Index)
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
	})
}

func TestManyGroupsShareDrives(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 3, fastConfig())
		for id := cluster.GroupID(1); id <= 5; id++ {
			c.birth(testGroup(id, 0, 1, 2))
		}
		for id := cluster.GroupID(1); id <= 5; id++ {
			c.fill(id, int(id)*1000, 50)
		}
		old := c
		c = c.crash(3)
		old.close()
		for id := cluster.GroupID(1); id <= 5; id++ {
			c.waitLeader(id)
			if got := c.waitEqual(id, 3); distinct(got) != 50 {
				t.Errorf("group %d has %d commands", id, len(got))
			}
		}
		c.close()
	})
}

func TestErrors(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cfg := fastConfig()
		cfg.CommandBytesMax = 100
		c := newCell(t, vfsx.NewMem(), 1, cfg)
		ctx := context.Background()
		if _, err := c.h.Propose(ctx, 9, nil); !errs.Is(err, errs.NotLeader) {
			t.Errorf("unknown group: %v", err)
		}
		if err := c.h.Read(ctx, 9, nil); !errs.Is(err, errs.NotLeader) {
			t.Errorf("unknown group: %v", err)
		}
		if err := c.h.ReadLocal(9, nil); !errs.Is(err, errs.Unavailable) {
			t.Errorf("unknown group: %v", err)
		}
		c.birth(testGroup(9, 0))
		if _, err := c.h.Propose(ctx, 9, make([]byte, 101)); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("large command: %v", err)
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := c.h.Propose(gone, 9, nil); !errs.Is(err, errs.Timeout) {
			t.Errorf("dead ctx: %v", err)
		}
		if err := c.h.Birth(cluster.Group{ID: 9, Replicas: []cluster.Replica{{ID: "other", Drive: driveID(0), Voter: true}}}, noBirth); !errs.Is(err, errs.Conflict) {
			t.Errorf("second replica on a drive: %v", err)
		}
		if err := c.h.AddDrive(c.drive(0)); !errs.Is(err, errs.Conflict) {
			t.Errorf("open drive: %v", err)
		}
		want := fmt.Errorf("mine")
		if err := c.h.Read(ctx, 9, func(pebble.Reader) error { return want }); err != want {
			t.Errorf("fn's error became %v", err)
		}
		c.close()
	})
}

// A leader whose state machine hangs: proposals are bounded, and their callers end with their ctx.
func TestBusy(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cfg := fastConfig()
		cfg.ProposalsMax = 8
		held := make(chan struct{})
		cfg.NewStateMachine = func(g cluster.GroupID) StateMachine {
			return &tape{g: g, spoil: func(cluster.Entry) error { <-held; return nil }}
		}
		c := newCell(t, vfsx.NewMem(), 1, cfg)
		c.birth(testGroup(1, 0))
		busy, unknown := 0, 0
		results := make(chan error, 30)
		for range 30 {
			go func() {
				_, err := c.h.Propose(testCtx(t, 50*time.Millisecond), 1, []byte("x"))
				results <- err
			}()
		}
		for range 30 {
			switch err := <-results; {
			case errs.Is(err, errs.Busy):
				busy++
			case errs.Is(err, errs.OutcomeUnknown):
				unknown++
			default:
				t.Errorf("got %v", err)
			}
		}
		close(held)
		if busy != 22 || unknown != 8 {
			t.Errorf("%d busy, %d unknown", busy, unknown)
		}
		c.propose(1, "y")
		c.close()
	})
}

// All groups together have so many bytes in flight and no more.
func TestBusyAltogether(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cfg := fastConfig()
		cfg.ProposalBytesAll = 10000
		held := make(chan struct{})
		cfg.NewStateMachine = func(g cluster.GroupID) StateMachine {
			return &tape{g: g, spoil: func(cluster.Entry) error { <-held; return nil }}
		}
		c := newCell(t, vfsx.NewMem(), 1, cfg)
		for g := range cluster.GroupID(6) {
			c.birth(testGroup(g+1, 0))
		}
		propose := func(g cluster.GroupID) error {
			_, err := c.h.Propose(testCtx(t, 50*time.Millisecond), g, make([]byte, 2500))
			return err
		}
		for g := range cluster.GroupID(4) {
			if err := propose(g + 1); !errs.Is(err, errs.OutcomeUnknown) {
				t.Errorf("group %d: %v", g+1, err)
			}
		}
		for g := range cluster.GroupID(2) {
			if err := propose(g + 5); !errs.Is(err, errs.Busy) {
				t.Errorf("group %d: %v", g+5, err)
			}
		}
		close(held)
		time.Sleep(time.Second)
		if n := c.h.inBytes.Load(); n != 0 {
			t.Errorf("%d bytes are in flight", n)
		}
		if _, err := c.h.Propose(testCtx(t, time.Second), 5, make([]byte, 20000)); err != nil {
			t.Errorf("a large one, alone: %v", err)
		}
		c.close()
	})
}
