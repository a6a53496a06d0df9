package multiraft

import (
	"testing"
	"time"

	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// The whole works inside a bubble of fake time: minutes pass, leaders change, drives come and go.
func TestFakeTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCell(t, vfsx.NewMem(), 3, Config{})
		c.birth(testGroup(1, 0, 1, 2))
		c.propose(1, "first")
		start := time.Now()
		time.Sleep(10 * time.Minute)
		lead := c.h.group(1, false).leader.Load()
		if lead == nil || lead.raft.CurrentTerm() != 2 {
			t.Error("the leader changed while nothing happened")
		}
		c.propose(1, "second")
		d := c.driveOf(lead)
		c.h.DropDrive(driveID(d))
		began := time.Now()
		c.propose(1, "third")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the leader's drive was taken out: %v without a leader", took)
		}
		if err := c.h.AddDrive(c.drive(d)); err != nil {
			t.Fatal(err)
		}
		if got := c.waitEqual(1, 3); len(got) != 3 {
			t.Errorf("tape is %v", got)
		}
		// A restart in which one drive stays away.
		c.close()
		c.drives = 2
		began = time.Now()
		c.start()
		c.propose(1, "fourth")
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("a restart with two of three drives took %v", took)
		}
		if got := c.waitEqual(1, 2); len(got) != 4 {
			t.Errorf("tape is %v", got)
		}
		c.close()
		if time.Since(start) < 10*time.Minute {
			t.Error("time was not fake")
		}
	})
}
