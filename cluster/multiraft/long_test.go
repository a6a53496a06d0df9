package multiraft

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/storage/vfsx"
)

// Who reads a snapshot holds up nothing that changes the state, sees none of it, and is told when the replica stops.
func TestReadSnapshot(t *testing.T) {
	c := newCell(t, vfsx.NewMem(), 3, fastConfig())
	defer c.close()
	g := testGroup(1, 0, 1, 2)
	c.birth(g)
	c.propose(g.ID, "before")
	leader := c.waitLeader(g.ID)
	ctx := testCtx(t, 10*time.Second)
	err := c.h.ReadSnapshot(ctx, g.ID, func(r pebble.Reader, cut <-chan struct{}) error {
		if !leader.reading.TryLock() {
			t.Error("an install would wait for the reader")
		} else {
			leader.reading.Unlock()
		}
		c.propose(g.ID, "after")
		if tape, err := readTape(r, g.ID); err != nil || len(tape) != 1 || tape[0] != "before" {
			t.Errorf("the snapshot shows %q, %v", tape, err)
		}
		select {
		case <-cut:
			t.Error("cut while the replica runs")
		default:
		}
		c.h.DropDrive(leader.ds.d.ID)
		select {
		case <-cut:
		case <-ctx.Done():
			t.Error("not told that the replica stopped")
		}
		// The drive is not closed under the reader.
		if tape, err := readTape(r, g.ID); err != nil || len(tape) != 1 {
			t.Errorf("after the end of the replica the snapshot shows %q, %v", tape, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
