package multiraft

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// Two callers who want snapshots at an index to come do not take them from each other.
func TestTwoCaptures(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 3, Config{})
		c.birth(testGroup(1, 0, 1, 2))
		c.propose(1, "first")
		time.Sleep(5 * time.Second)
		replicas := c.h.group(1, false).replicas()
		at := replicas[0].applied.Load() + 5
		done := make(chan bool, 1)
		go func() {
			snaps := passing(t.Context(), replicas, at)
			for _, s := range snaps {
				if p, err := readApplied(s, 1); err != nil || p.Index != at {
					t.Errorf("a snapshot at %d: %v", p.Index, err)
				}
			}
			closeSnapshots(snaps)
			done <- len(snaps) == 3
		}()
		synctest.Wait()
		if snaps := passing(t.Context(), replicas, at+1); snaps != nil {
			t.Error("the second caller got snapshots")
			closeSnapshots(snaps)
		}
		for i := range 10 {
			c.propose(1, fmt.Sprint(i))
		}
		select {
		case ok := <-done:
			if !ok {
				t.Error("the first caller got no snapshots")
			}
		case <-time.After(captureWait + time.Second):
			t.Error("the first caller waits for what nobody gives it")
			return // it never ends
		}
		c.close()
	})
}

// Nobody who compares replicas holds up a host that is closed.
func TestCloseEndsContents(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 3, Config{})
		c.birth(testGroup(1, 0, 1, 2))
		c.propose(1, "first")
		time.Sleep(5 * time.Second)
		ctx, stop := context.WithCancel(t.Context())
		var writer sync.WaitGroup
		writer.Go(func() {
			for ctx.Err() == nil {
				_, _ = c.h.Propose(ctx, 1, []byte("more"))
				time.Sleep(90 * time.Millisecond)
			}
		})
		time.Sleep(300 * time.Millisecond)
		done := make(chan error, 1)
		go func() {
			_, err := c.h.Contents(t.Context(), 1)
			done <- err
		}()
		time.Sleep(700 * time.Millisecond) // it waits for the replicas to pass an index
		stop()
		writer.Wait()
		began := time.Now()
		c.close()
		if took := time.Since(began); took > time.Second || len(c.failed) > 0 {
			t.Errorf("Close took %v, failed drives %v", took, c.failed)
		}
		if err := <-done; !errs.Is(err, errs.Unavailable) {
			t.Errorf("Contents: %v", err)
		}
	})
}
