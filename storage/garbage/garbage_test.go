package garbage

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
	"cairn/test/seed"
)

func collector(w *world) *Collector {
	return New(Config{Meta: w, Plane: w, Pins: w, PageRows: 10, RemoveChunks: 7, ExpandRows: 4})
}

// settle steps until there is nothing more to do right now.
func settle(t *testing.T, c *Collector) {
	t.Helper()
	for range 10000 {
		_, more, err := c.Step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return
		}
	}
	t.Fatal("never done")
}

func check(t *testing.T, w *world, rows int) {
	t.Helper()
	for _, s := range w.wrong {
		t.Error(s)
	}
	if len(w.rows) != rows {
		t.Errorf("%d rows left, want %d", len(w.rows), rows)
	}
	if t.Failed() {
		t.FailNow()
	}
}

func TestCollects(t *testing.T) {
	w := newWorld()
	c := collector(w)
	settle(t, c)
	if w.calls["drop"]+w.calls["remove"]+w.calls["expand"]+w.calls["quiesce"] != 0 {
		t.Fatalf("an idle range costs %v", w.calls)
	}
	for i := range uint64(95) {
		w.delete(i+1, 1, 2, 3)
	}
	w.delete(200) // a row without chunks
	w.doom(300, 25)
	settle(t, c)
	check(t, w, 0)
	for id := range w.dead {
		if pg3 := w.removed[0][id] && w.removed[1][id] && w.removed[2][id]; !pg3 && !(w.removed[1][id]) {
			t.Fatalf("%v not removed", id)
		}
	}
	if s := c.Stats(); s.RowsDropped != 121 || s.ChunksRemoved != 95*3+25 || s.RowsHeld+s.RowsBlocked+s.UploadsHeld != 0 {
		t.Fatalf("%+v", s)
	}
	if len(w.doomed) != 0 || w.calls["expand"] != 7 {
		t.Fatalf("%d doomed, %d commands", len(w.doomed), w.calls["expand"])
	}
}

func TestReadersHold(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		c := collector(w)
		w.held[wid(1)], w.held[wid(2)] = true, true
		w.delete(1, 1)
		w.delete(3, 1)
		w.doom(2, 3)
		w.doom(4, 3) // behind the one that is held
		settle(t, c)
		check(t, w, 1)
		if s := c.Stats(); s.RowsHeld != 1 || s.UploadsHeld != 1 || len(w.doomed) != 1 {
			t.Fatalf("%+v, %d doomed", s, len(w.doomed))
		}
		for range 10 { // steps in quick succession don't look at the row again and again
			settle(t, c)
		}
		if n := w.calls["remove"]; n > 3 {
			t.Fatalf("%d removals", n)
		}
		w.held = map[storage.WriteID]bool{}
		time.Sleep(3 * time.Second)
		settle(t, c)
		check(t, w, 0)
		if s := c.Stats(); s.RowsHeld+s.UploadsHeld != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestDriveDown(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld()
		c := collector(w)
		w.down[0] = true // groups 1 and 3
		for i := range uint64(30) {
			w.delete(i+1, 1+storage.PGID(i%3))
		}
		settle(t, c)
		check(t, w, 20)
		if s := c.Stats(); s.RowsBlocked != 20 || len(s.Blocked) != 2 || s.Blocked[0].PG != 1 || s.Blocked[1].Err == "" {
			t.Fatalf("%+v", s)
		}
		for _, r := range w.rows { // the drives that answer have removed the chunks
			if id := storage.ChunkID(r.Row.Chunks[0].Id); !w.removed[1][id] {
				t.Fatalf("drive 1 still holds chunk %v", id)
			}
		}
		// New garbage is sent to the live drives, too, in spite of the back-off.
		w.delete(100, 1)
		w.delete(101, 2)
		settle(t, c)
		check(t, w, 21)
		if id := storage.ChunkID(w.rows[20].Row.Chunks[0].Id); !w.removed[1][id] {
			t.Fatal("new garbage was not sent")
		}
		// No busy loop: an hour of steps every second sends little.
		before := w.calls["remove"]
		for range 3600 {
			time.Sleep(time.Second)
			settle(t, c)
		}
		if n := w.calls["remove"] - before; n < 5 || n > 300 {
			t.Fatalf("%d removals in an hour", n)
		}
		check(t, w, 21)
		w.down[0] = false
		c.Unblock()
		settle(t, c)
		check(t, w, 0)
		if s := c.Stats(); len(s.Blocked) != 0 || s.RowsBlocked != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestBadRowStays(t *testing.T) {
	w := newWorld()
	c := collector(w)
	w.delete(1, 1)
	w.rows[0].Row.Chunks[0].Id = []byte("short")
	w.delete(2, 1)
	settle(t, c)
	check(t, w, 1)
	if s := c.Stats(); s.RowsBad != 1 {
		t.Fatalf("%+v", s)
	}
}

// TestFailuresAnywhere lets every call fail before or after it took effect, at
// random, restarts the collector at times, and wants that all garbage is
// removed once failures end, nothing else ever, and nothing that is held.
func TestFailuresAnywhere(t *testing.T) {
	seed := seed.Of(t)
	for round := range uint64(60) {
		bubble.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, round))
			w := newWorld()
			boom := func(string) error {
				if rnd.IntN(6) == 0 {
					return errs.New(errs.OutcomeUnknown, "test", "", "injected")
				}
				return nil
			}
			w.fail, w.failLate = boom, boom
			c := collector(w)
			for i := range uint64(150) {
				switch rnd.IntN(8) {
				case 0:
					w.down[rnd.IntN(3)] = rnd.IntN(2) == 0
				case 1:
					c = collector(w) // a crash
				case 2:
					w.held[wid(i+rnd.Uint64N(20))] = true // a read begins before the delete that it outlives
					w.held[wid(rnd.Uint64N(i+1))] = false
				case 3:
					w.doom(i, rnd.IntN(9))
				case 4, 5:
					w.delete(i, 1+storage.PGID(rnd.IntN(3)), 1+storage.PGID(rnd.IntN(3)))
				case 6:
					time.Sleep(time.Duration(rnd.IntN(4000)) * time.Millisecond)
				}
				_, _, _ = c.Step(t.Context())
			}
			w.fail, w.failLate, w.down, w.held = nil, nil, [3]bool{}, map[storage.WriteID]bool{}
			for range 10 {
				time.Sleep(10 * time.Minute)
				settle(t, c)
			}
			check(t, w, 0)
			if len(w.doomed) != 0 {
				t.Fatalf("%d doomed left", len(w.doomed))
			}
		})
	}
}

func TestCancel(t *testing.T) {
	w := newWorld()
	w.delete(1, 1)
	ctx, cancel := context.WithCancel(t.Context())
	w.fail = func(call string) error {
		if call == "remove" {
			cancel()
			return ctx.Err()
		}
		return nil
	}
	if _, _, err := collector(w).Step(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	check(t, w, 1)
}
