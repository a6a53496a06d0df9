package repair

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
	"cairn/storage/worker"
	"cairn/test/bubble"
	"cairn/test/seed"
)

func rot(s *storagetest.Shard) { s.Corrupt = true }

func resyncer(w *world) *Resync {
	return NewResync(ResyncConfig{Slots: w, Stores: w.Store, Plane: w, Refers: w, PageMax: 16, Parallel: 3})
}

func (w *world) dirty() (n int) {
	for _, pg := range w.Topology().PGs {
		for _, since := range pg.DirtySince {
			if since != 0 {
				n++
			}
		}
	}
	return n
}

// fillWorld has objects of several sizes in coded and copied groups.
func fillWorld() *world {
	w := newWorld(3, 2)
	pgs := []storage.PGID{
		w.AddPG(storage.Scheme{K: 3, M: 3}, 1, 2, 3, 4, 5, 6), w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3),
		w.AddPG(storage.Scheme{K: 3, M: 3}, 6, 5, 4, 3, 2, 1),
	}
	for i := range 58 {
		w.put(storage.Key(fmt.Sprint(i)), pgs[i%3], 1+i*50, 0)
	}
	for i := range 2 {
		key := storage.Key(fmt.Sprint("moved", i))
		w.put(key, pgs[0], 4000, 0)
		w.cut(key, 2)
	}
	return w
}

// Of several nodes each fills what begins with a drive of its own, and nobody the same twice.
func TestResyncByNode(t *testing.T) {
	w := fillWorld()
	var nodes []*Resync
	for n := range byte(3) { // of drives 1 and 2, 3 and 4, 5 and 6
		nodes = append(nodes, NewResync(ResyncConfig{Slots: w, Stores: w.Store, Plane: w, Refers: w, PageMax: 16,
			Local: func(id storage.DriveID) bool { return (id[0]-1)/2 == n }}))
	}
	for _, n := range []byte{1, 4} {
		w.SetState(n, cluster.DriveDown)
		w.Drive(n).Reset()
		w.SetState(n, cluster.DriveActive)
	}
	filled := int64(0)
	for _, i := range []int{2, 1, 0, 1, 2} {
		settle(t, nodes[i])
		if i == 2 && nodes[i].Status().SlotsFilled != 0 {
			t.Error("a node filled groups without a dirty drive of its own first")
		}
	}
	for _, r := range nodes {
		filled += r.Status().SlotsFilled
	}
	w.wantWhole(t)
	if w.dirty() != 0 || filled != 5 || nodes[0].Status().SlotsFilled == 0 || nodes[1].Status().SlotsFilled == 0 {
		t.Errorf("%d dirty, %d slots filled", w.dirty(), filled)
	}
}

func TestResyncEmptiedDrives(t *testing.T) {
	w := fillWorld()
	r := resyncer(w)
	settle(t, r) // nothing dirty
	for _, n := range []byte{1, 4} {
		w.SetState(n, cluster.DriveDown)
		w.Drive(n).Reset()
	}
	settle(t, r)
	if s := r.Status(); s.WaitSlots != 5 || s.DirtySlots != 0 || s.Rebuilt != 0 {
		t.Fatalf("%+v", s)
	}
	for _, n := range []byte{1, 4} {
		w.SetState(n, cluster.DriveActive)
	}
	settle(t, r)
	w.wantWhole(t)
	if s := r.Status(); w.dirty() != 0 || s.DirtySlots != 0 || s.SlotsFilled != 5 || s.Rebuilt != 60 {
		t.Fatalf("%d dirty, %+v", w.dirty(), s)
	}
	for id, pg := range w.Topology().PGs {
		for _, d := range pg.Drives {
			if e := w.Drives[d].Epoch(id); e != pg.Epoch {
				t.Fatalf("drive %v was not told the epoch: %d, want %d", d.Short(), e, pg.Epoch)
			}
		}
	}
}

// TestResyncReturnedDrive: a drive that comes back with its data gets only what it lacks, and its first blocks are looked at.
func TestResyncReturnedDrive(t *testing.T) {
	w := fillWorld()
	w.SetState(2, cluster.DriveDown)
	shards := w.Drive(2).Shards()
	w.Drive(2).Drop(shards[3].Header.ID)
	w.Drive(2).Change(shards[40].Header.ID, rot)
	w.SetState(2, cluster.DriveActive)
	r := resyncer(w)
	settle(t, r)
	w.wantWhole(t)
	if s := r.Status(); s.Rebuilt != 2 || w.dirty() != 0 {
		t.Fatalf("%+v, %d dirty", s, w.dirty())
	}
}

// TestResyncTooFew: a chunk that rows name and too few drives hold keeps the slot
// dirty and is named; one that no row names does not. Nothing is removed.
func TestResyncTooFew(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(3, 2)
		pg := w.AddPG(storage.Scheme{K: 3, M: 3}, 1, 2, 3, 4, 5, 6)
		w.put("good", pg, 4000, 0)
		w.put("unfinished", pg, 4000, 0b111100)
		delete(w.rows, "unfinished")
		w.SetState(1, cluster.DriveDown)
		w.Drive(1).Reset()
		w.SetState(1, cluster.DriveActive)
		r := resyncer(w)
		settle(t, r)
		w.wantWhole(t)
		if w.dirty() != 0 || len(r.Problems()) != 0 {
			t.Fatalf("%d dirty, %+v", w.dirty(), r.Problems())
		}
		bad := w.put("bad", pg, 4000, 0b111100) // two shards left of three needed
		w.SetState(1, cluster.DriveDown)
		w.SetState(1, cluster.DriveActive)
		before := len(w.Drive(2).Shards())
		settle(t, r) // slot 0 has its shard of it
		if p := r.Problems(); w.dirty() != 0 || len(p) != 0 {
			t.Fatalf("%d dirty, %+v", w.dirty(), p)
		}
		w.SetState(3, cluster.DriveDown)
		w.SetState(3, cluster.DriveActive)
		for range 100 {
			_, _, _ = r.Step(t.Context())
			time.Sleep(time.Minute)
		}
		if p := r.Problems(); w.dirty() != 1 || len(p) != 1 {
			t.Fatalf("%d dirty, %+v", w.dirty(), p)
		}
		if len(w.Drive(2).Shards()) != before {
			t.Fatal("something was removed")
		}
		delete(w.rows, "bad")
		w.Remove(t.Context(), bad.data.Chunks)
		time.Sleep(time.Hour)
		settle(t, r)
		if p := r.Problems(); w.dirty() != 0 || len(p) != 0 {
			t.Fatalf("%d dirty, %+v", w.dirty(), p)
		}
	})
}

// TestResyncNeedsTheOthers: a slot is not called done while an active drive does not answer.
func TestResyncNeedsTheOthers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(2, 1)
		pg := w.AddPG(storage.Scheme{K: 1, M: 1}, 1, 2)
		w.put("a", pg, 100, 0)
		w.SetState(1, cluster.DriveDown)
		w.Drive(1).Reset()
		w.SetState(1, cluster.DriveActive)
		for _, method := range []string{"epochs", "list"} {
			w.Drive(2).Fail = func(m string) error {
				if m == method {
					return errs.New(errs.Timeout, m, "", "hangs")
				}
				return nil
			}
			r := resyncer(w)
			for range 5 {
				_, _, _ = r.Step(t.Context())
			}
			if w.dirty() != 1 {
				t.Fatalf("cleared without %s of the only drive that has the data", method)
			}
		}
		w.Drive(2).Fail = nil
		settle(t, resyncer(w))
		w.wantWhole(t)
		if w.dirty() != 0 {
			t.Fatal("still dirty")
		}
	})
}

// TestResyncOneAfterTheOther: a slot was cleared while the only drive with the
// chunk was down; that drive's own pass makes the chunk whole.
func TestResyncOneAfterTheOther(t *testing.T) {
	w := newWorld(2, 1)
	pg := w.AddPG(storage.Scheme{K: 1, M: 1}, 1, 2)
	w.put("a", pg, 100, 0)
	w.SetState(2, cluster.DriveDown)
	w.SetState(1, cluster.DriveDown)
	w.Drive(1).Reset()
	w.SetState(1, cluster.DriveActive)
	r := resyncer(w)
	settle(t, r)
	if w.dirty() != 1 {
		t.Fatalf("%d dirty", w.dirty())
	}
	w.SetState(2, cluster.DriveActive)
	settle(t, r)
	w.wantWhole(t)
	if w.dirty() != 0 {
		t.Fatalf("%d dirty", w.dirty())
	}
}

// TestResyncManyCannotFinish: groups that can't be finished, however many and
// however little they have to spare, don't keep the others from being filled, and are not tried all the time.
func TestResyncManyCannotFinish(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(3, 2)
		const stuck, fine = 40, 10
		for range stuck {
			w.AddPG(storage.Scheme{K: 1, M: 1}, 1, 2)
		}
		for i := range fine {
			pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 3, 1, 4)
			w.put(storage.Key(fmt.Sprint(i)), pg, 100, 0)
		}
		w.SetState(1, cluster.DriveDown)
		w.Drive(1).Reset()
		w.SetState(1, cluster.DriveActive)
		var asked atomic.Int64
		var well atomic.Bool
		w.Drive(2).Fail = func(m string) error { // recorded as active, and does not answer
			if asked.Add(1); well.Load() {
				return nil
			}
			return errs.New(errs.Timeout, m, "", "hangs")
		}
		runner := worker.New(worker.Config{})
		defer runner.Stop()
		h, err := runner.Add(resyncer(w), worker.Options{Interval: 3 * time.Second, BackoffMax: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if d := w.dirty(); d != stuck {
			t.Fatalf("%d slots are dirty after a minute, want %d", d, stuck)
		}
		time.Sleep(time.Hour)
		if n := asked.Load() / stuck; n < 5 || n > 20 {
			t.Fatalf("each group was tried %d times in an hour", n)
		}
		if h.Status().Failures == 0 {
			t.Fatal("the status shows no failure")
		}
		// The drive bounces: its groups need not wait for their back-off.
		well.Store(true)
		w.SetState(1, cluster.DriveDown)
		w.SetState(1, cluster.DriveActive)
		time.Sleep(10 * time.Second)
		w.wantWhole(t)
		if w.dirty() != 0 {
			t.Fatalf("%d dirty", w.dirty())
		}
	})
}

// TestResyncEpochChanges: the table changes in the middle of a pass; the slot is cleared at its new epoch only after a new pass.
func TestResyncEpochChanges(t *testing.T) {
	w := newWorld(3, 1)
	pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	for i := range 40 {
		w.put(storage.Key(fmt.Sprint(i)), pg, 100, 0)
	}
	w.SetState(1, cluster.DriveDown)
	w.Drive(1).Reset()
	w.SetState(1, cluster.DriveActive)
	var n atomic.Int64
	w.FailLate = func(method string) error {
		if n.Add(1) == 39 && method == "rebuild" {
			w.SetState(2, cluster.DriveDown) // another drive is lost and comes back empty
			w.Drive(2).Reset()
			w.SetState(2, cluster.DriveActive)
		}
		return nil
	}
	settle(t, resyncer(w))
	w.wantWhole(t)
	if w.dirty() != 0 {
		t.Fatalf("%d dirty", w.dirty())
	}
}

// TestResyncTableLags: the group has changed, which the table here does not show yet. Nothing is done again until it does.
func TestResyncTableLags(t *testing.T) {
	w := newWorld(3, 1)
	pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	w.put("a", pg, 100, 0)
	w.SetState(1, cluster.DriveDown)
	w.SetState(1, cluster.DriveActive)
	tries := 0
	w.Fail = func(method string) error {
		if method != "clear" {
			return nil
		}
		tries++
		return errs.New(errs.Conflict, "clear", "", "the group is at another epoch")
	}
	r := resyncer(w)
	more := true
	for step := 0; more && step < 100; step++ {
		var err error
		if _, more, err = r.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if more || tries != 1 {
		t.Fatalf("tried %d times, there is more to do: %v", tries, more)
	}
	w.Fail = nil
	w.SetState(2, cluster.DriveDown) // the table is newer
	w.SetState(2, cluster.DriveActive)
	settle(t, r)
	if w.dirty() != 0 {
		t.Fatalf("%d dirty", w.dirty())
	}
}

func TestResyncFailuresAnywhere(t *testing.T) {
	seed := seed.Of(t)
	for round := range uint64(12) {
		bubble.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, round))
			w := fillWorld()
			boom := func(string) error {
				if rnd.IntN(20) == 0 {
					return errs.New(errs.Timeout, "test", "", "injected")
				}
				return nil
			}
			w.Fail, w.FailLate, w.meta = boom, boom, boom
			newOne := func() *Resync {
				r := resyncer(w)
				r.cfg.Parallel = 1
				r.cfg.StepTime = time.Nanosecond
				return r
			}
			r := newOne()
			for range 200 {
				switch rnd.IntN(12) {
				case 0:
					r = newOne()
				case 1:
					if w.dirty() == 0 { // never more than may be lost
						n := byte(1 + rnd.IntN(6))
						w.SetState(n, cluster.DriveDown)
						w.Drive(n).Reset()
						w.SetState(n, cluster.DriveActive)
					}
				case 2:
					for key := range w.rows {
						w.Fail, w.FailLate = nil, nil
						w.remove(key)
						w.Fail, w.FailLate = boom, boom
						break
					}
				case 3:
					time.Sleep(time.Duration(rnd.IntN(60)) * time.Second)
				}
				_, _, _ = r.Step(t.Context())
			}
			w.Fail, w.FailLate, w.meta = nil, nil, nil
			r.cfg.StepTime = time.Second
			for range 5 {
				time.Sleep(time.Hour)
				settle(t, r)
			}
			w.wantWhole(t)
			if w.dirty() != 0 {
				t.Fatalf("%d dirty, %+v", w.dirty(), r.Problems())
			}
		})
	}
}
