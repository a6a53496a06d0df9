package multiraft

import (
	"testing"
	"time"

	"cairn/storage/errs"
	"cairn/test/bubble"
)

// A leader whose clock most others contradict stamps nothing and hands over; it leads again once it agrees. Two nodes that
// contradict each other cannot tell who is right.
func TestWrongClock(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, Config{})
		l := o.leader()
		h := o.cells[l].h
		h.NoteClock("a", -time.Hour)
		if offsets, off := h.ClockOffsets(); off || offsets["a"] != -time.Hour {
			t.Errorf("one against one: %v, off %v", offsets, off)
		}
		h.NoteClock("b", 4*time.Second)
		o.cells[l].propose(1, "fine")
		h.NoteClock("b", 6*time.Second)
		if _, err := h.Propose(t.Context(), 1, []byte("wrong")); !errs.Is(err, errs.NotLeader) {
			t.Errorf("stamped with a wrong clock: %v", err)
		}
		time.Sleep(time.Second)
		next := o.leader()
		if next == l {
			t.Error("it leads still")
		}
		o.cells[next].propose(1, "right")
		if err := o.cells[next].h.TransferLeader(testCtx(t, time.Second), 1, o.g.Replicas[l].ID); err == nil {
			t.Error("it let itself be elected")
		}
		time.Sleep(2 * clockFresh) // nobody says anything about its clock any more
		if _, off := h.ClockOffsets(); off {
			t.Error("still off")
		}
		next = o.leader()
		if err := o.cells[next].h.TransferLeader(testCtx(t, time.Second), 1, o.g.Replicas[l].ID); err != nil && next != l {
			t.Error(err)
		}
		time.Sleep(time.Second)
		o.cells[l].propose(1, "again")
		o.close()
	})
}
