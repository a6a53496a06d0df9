package multiraft

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// A new leader that is stopped while its barrier is committed and not yet applied comes to rest: raft, shut down at that
// moment, would never answer the barrier.
func TestStoppedBeforeItsBarrierIsApplied(t *testing.T) {
	for _, destroy := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			c := newCell(t, vfsx.NewMem(), 1, Config{AppendEntriesMax: 1})
			g := testGroup(1, 0)
			c.birth(g)
			for i := range 30 {
				c.propose(1, fmt.Sprint(i))
			}
			old, oldFS := c.h, c.fs
			defer func() {
				if err := old.Close(); err != nil {
					t.Error(err)
				}
			}()
			c.fs = oldFS.CrashClone(1) // so that all has to be applied again
			held := make(chan struct{})
			c.cfg.NewStateMachine = func(g cluster.GroupID) StateMachine {
				return &tape{g: g, spoil: func(cluster.Entry) error { <-held; return nil }}
			}
			c.start()
			time.Sleep(10 * time.Second) // it leads, and waits for the first of its entries to be applied
			stopped := make(chan error, 1)
			began := time.Now()
			go func() {
				if destroy {
					stopped <- c.h.DestroyReplica(1, g.Replicas[0].ID)
				} else {
					stopped <- c.h.Close()
				}
			}()
			time.Sleep(1500 * time.Millisecond)
			close(held)
			if err := <-stopped; err != nil || len(c.failed) > 0 {
				t.Errorf("destroy %v: %v, failed drives %v", destroy, err, c.failed)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("destroy %v: it took %v", destroy, took)
			}
			if destroy {
				c.close()
			}
		})
	}
}

// A replica that does not come to rest holds up those who want it destroyed for a while only.
func TestDestroyIsNotForEver(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		held := make(chan struct{})
		hold := false
		cfg := Config{NewStateMachine: func(g cluster.GroupID) StateMachine {
			return &tape{g: g, spoil: func(cluster.Entry) error {
				if hold {
					<-held
				}
				return nil
			}}
		}}
		c := newCell(t, vfsx.NewMem(), 1, cfg)
		g := testGroup(1, 0)
		c.birth(g)
		c.propose(1, "first")
		hold = true
		ctx := testCtx(t, time.Second)
		if _, err := c.h.Propose(ctx, 1, []byte("second")); !errs.Is(err, errs.OutcomeUnknown) {
			t.Fatal(err)
		}
		if err := c.h.DestroyReplica(1, g.Replicas[0].ID); !errs.Is(err, errs.Unavailable) {
			t.Errorf("destroyed: %v", err)
		}
		close(held)
		if err := c.h.DestroyReplica(1, g.Replicas[0].ID); err != nil {
			t.Error(err)
		}
		c.close()
	})
}

// raft leaves a goroutine behind that reads the log: it comes late without harm.
func TestLogAfterClose(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 1, fastConfig())
		c.birth(testGroup(1, 0))
		c.fill(1, 0, 3*64)
		r := c.waitLeader(1)
		first, _ := r.view.FirstIndex()
		var l raft.Log
		if err := (logs{r.view, r}).GetLog(first, &l); err != nil || l.Index != first {
			t.Error(l, err)
		}
		c.close()
		if err := (logs{r.view, r}).GetLog(first, &l); err != raft.ErrLogNotFound {
			t.Error(err)
		}
	})
}
