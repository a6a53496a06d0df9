package multiraft

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"cairn/storage/errs"
	"cairn/test/bubble"
)

// transfer hands leadership from process l to another, and checks that proposals go on if nothing comes of it.
func (o *trio) transfer(l, to int) error {
	o.t.Helper()
	err := o.cells[l].h.TransferLeader(testCtx(o.t, 5*time.Second), 1, o.g.Replicas[to].ID)
	if err != nil {
		synctest.Wait() // raft answers before it lets proposals in
		if _, perr := o.cells[l].h.Propose(testCtx(o.t, time.Second), 1, []byte("after")); perr != nil {
			o.t.Errorf("after a transfer that failed (%v): %v", err, perr)
		}
	}
	return err
}

// Leadership is not handed to a voter that lags, and to try costs no proposal: raft, asked twice, would refuse all of them for as
// long as the voter is away, and, if the term ended meanwhile, whenever the replica leads again.
func TestTransferToAVoterAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, Config{})
		l := o.leader()
		b, c := (l+1)%3, (l+2)%3
		o.cells[l].propose(1, "first")
		time.Sleep(time.Second)
		o.part([2]int{l, b})
		o.cells[l].propose(1, "second")
		for range 3 {
			began := time.Now()
			if err := o.transfer(l, b); !errs.Is(err, errs.Unavailable) {
				t.Errorf("transfer: %v", err)
			}
			if took := time.Since(began); took > o.cells[l].h.cfg.HeartbeatTimeout {
				t.Errorf("refused after %v", took)
			}
		}
		// It loses its leadership and gets it again.
		o.part([2]int{l, b}, [2]int{l, c})
		time.Sleep(5 * time.Second)
		o.part()
		time.Sleep(5 * time.Second)
		if n := o.leader(); n != l {
			if err := o.transfer(n, l); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
		}
		if n := o.leader(); n != l {
			t.Fatalf("%d leads", n)
		}
		o.cells[l].propose(1, "third")
		if err := o.transfer(l, b); err != nil {
			t.Errorf("to a voter that has the log: %v", err)
		}
		o.close()
	})
}

// A voter may go away in the midst of a transfer. Then raft holds a note for whoever sends to it, and the next is tried
// only after that was taken.
func TestTransferLeavesANote(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, Config{})
		l := o.leader()
		b := (l + 1) % 3
		r, to := o.replica(l), o.g.Replicas[b].ID
		o.cells[l].propose(1, "first")
		time.Sleep(time.Second)
		o.part([2]int{l, b})
		o.cells[l].propose(1, "second")
		r.lead.Load().tryTransfer(to) // as if it had been found to have the log just before
		err := r.ask(t.Context(), opTransfer, func() raft.Future {
			return r.raft.LeadershipTransferToServer(raft.ServerID(to), raft.ServerAddress(to))
		})
		if err == nil {
			t.Fatal("it took over")
		}
		for range 3 {
			r.notePeer(to, 1<<40)
			if err := o.transfer(l, b); !errs.Is(err, errs.Unavailable) {
				t.Errorf("transfer: %v", err)
			}
		}
		o.part()
		for try := 0; ; try++ {
			time.Sleep(time.Second)
			err := o.transfer(l, b)
			if err == nil {
				break
			}
			if try == 120 {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if n := o.leader(); n != b {
			t.Errorf("%d leads", n)
		}
		o.close()
	})
}
