package multiraft

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// growingTape is a tape that tells growth: by the first letter of a command.
type growingTape struct{ *tape }

func (growingTape) Growth(command []byte) cluster.Growth {
	switch {
	case bytes.HasPrefix(command, []byte("large")):
		return cluster.GrowthLarge
	case bytes.HasPrefix(command, []byte("small")):
		return cluster.GrowthSmall
	}
	return cluster.GrowthNone
}

// spaces are the free bytes of some drives with a reserve of 1000.
type spaces [3]atomic.Int64

func (s *spaces) cell(t *testing.T, cfg Config) *cell {
	cfg.NewStateMachine = func(g cluster.GroupID) StateMachine { return growingTape{&tape{g: g}} }
	c := newCell(t, vfsx.NewMem(), 0, cfg)
	for i := range s {
		s[i].Store(5000)
		d := c.drive(i)
		d.Space = func() (free, reserve int64, err error) { return s[i].Load(), 1000, nil }
		if err := c.h.AddDrive(d); err != nil {
			t.Fatal(err)
		}
	}
	c.drives = len(s)
	return c
}

// While the drive of any voter is below its reserve nothing that grows is taken, and all else is.
func TestReserve(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &spaces{}
		c := s.cell(t, fastConfig())
		c.birth(testGroup(1, 0, 1, 2))
		check := func(when string, large, small bool) {
			t.Helper()
			time.Sleep(2 * time.Second)
			for cmd, want := range map[string]bool{"large": large, "small": small, "removal": true} {
				_, err := c.h.Propose(testCtx(t, time.Second), 1, []byte(cmd))
				if (err == nil) != want || err != nil && !errs.Is(err, errs.DriveFull) {
					t.Errorf("%s, %s: %v", when, cmd, err)
				}
			}
		}
		check("all have space", true, true)
		for d := range s {
			s[d].Store(999)
			check(fmt.Sprintf("drive %d is below its reserve", d), false, true)
			s[d].Store(499)
			check(fmt.Sprintf("drive %d is below half of it", d), false, false)
			s[d].Store(1000)
			check("all have space again", true, true)
		}
		// One that is out of the game counts no more.
		s[1].Store(0)
		time.Sleep(2 * time.Second)
		c.h.DropDrive(driveID(1))
		c.waitLeader(1)
		check("without it", true, true)
		// Elsewhere: what is said counts as long as it is repeated.
		away := cluster.MakeReplicaID(1, 2)
		c.h.NoteSpace(away, SpaceReserve)
		if _, err := c.h.Propose(testCtx(t, time.Second), 1, []byte("large")); !errs.Is(err, errs.DriveFull) {
			t.Errorf("a voter elsewhere is below its reserve: %v", err)
		}
		c.h.NoteSpace(away, SpaceEnough)
		check("it has space", true, true)
		c.h.NoteSpace(away, SpaceLast)
		time.Sleep(2 * spaceFresh)
		check("it is silent", true, true)
		c.close()
	})
}

// A snapshot is not received on a drive where it would take the reserve, and is once there is space.
func TestReserveAndSnapshots(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &spaces{}
		c := s.cell(t, fastConfig())
		c.birth(testGroup(1, 0, 1))
		c.fill(1, 0, 500)
		for _, free := range []int64{999, 1100} { // below the reserve before the stream comes, or with it
			s[2].Store(free)
			r := replicaOn(1, 2, uint64(free))
			err := c.h.AddReplica(testCtx(t, 5*time.Second), 1, r)
			if !errs.Is(err, errs.Unavailable) {
				t.Errorf("%d bytes free: %v", free, err)
			}
			if n := c.h.replica(r.ID).applied.Load(); n != 0 {
				t.Errorf("%d bytes free: installed up to %d", free, n)
			}
			if err := c.h.RemoveReplica(testCtx(t, 5*time.Second), 1, r.ID); err != nil {
				t.Fatal(err)
			}
		}
		s[2].Store(1 << 30)
		if err := c.h.AddReplica(testCtx(t, 30*time.Second), 1, replicaOn(1, 2, 3)); err != nil {
			t.Error(err)
		}
		c.waitEqual(1, 3)
		c.close()
	})
}
