package repair

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
	"cairn/test/seed"
)

func rowsWorker(w *world) *Rows {
	return NewRows(RowsConfig{Meta: w, Plane: w, Topology: w.Topology})
}

func TestRowsRepairs(t *testing.T) {
	w := newWorld(3, 2)
	coded, copied := w.AddPG(storage.Scheme{K: 3, M: 3}, 1, 2, 3, 4, 5, 6), w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	for i := range 20 {
		w.put(storage.Key(fmt.Sprint("coded", i)), coded, 5000+i, 0b101000)
		w.put(storage.Key(fmt.Sprint("copied", i)), copied, 10+i, 0b010)
		w.put(storage.Key(fmt.Sprint("fine", i)), copied, 10+i, 0)
	}
	r := rowsWorker(w)
	settle(t, r)
	w.wantWhole(t)
	if left, ok := r.Left(); len(w.repairs) != 0 || left != 0 || !ok {
		t.Fatalf("%d rows left, says %d", len(w.repairs), left)
	}
}

func TestRowsLeastRedundantFirst(t *testing.T) {
	w := newWorld(3, 2)
	pg := w.AddPG(storage.Scheme{K: 3, M: 3}, 1, 2, 3, 4, 5, 6)
	for i, skip := range []uint64{0b1, 0b111, 0b1, 0b11, 0b111} {
		w.put(storage.Key(fmt.Sprint(i)), pg, 100, skip)
	}
	r := rowsWorker(w)
	r.cfg.Parallel = 2
	for _, want := range []uint32{2, 1, 0} { // most shards lost of what is left
		if _, _, err := r.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		most := uint32(0)
		for _, x := range w.repairs {
			most = max(most, x.Row.Lost)
		}
		if most != want {
			t.Fatalf("%d shards lost is left, want %d", most, want)
		}
	}
}

// TestRowsGone: rows whose object was overwritten or deleted are dropped, nothing else is done.
func TestRowsGone(t *testing.T) {
	w := newWorld(3, 1)
	pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	w.put("deleted", pg, 100, 0b1)
	w.put("overwritten", pg, 100, 0b1)
	w.remove("deleted")
	w.remove("overwritten")
	w.put("overwritten", pg, 100, 0)
	w.Fail = func(method string) error { return fmt.Errorf("%s of a chunk that is gone", method) }
	settle(t, rowsWorker(w))
	if len(w.repairs) != 0 {
		t.Fatal("rows left")
	}
}

// TestRowsRaces: the object is deleted or changed between the steps of its repair.
func TestRowsRaces(t *testing.T) {
	for _, at := range []string{"rebuild", "rebuilt", "rewrite"} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(3, 1)
			pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
			w.put("del", pg, 100, 0b1)
			once := false
			hit := func(string) error {
				if !once {
					once = true
					w.Fail, w.FailLate = nil, nil
					w.remove("del")
				}
				return nil
			}
			switch at {
			case "rebuild":
				w.Fail = hit
			case "rebuilt":
				w.FailLate = hit
			case "rewrite":
				w.meta = func(call string) error {
					if call == "rewrite" && !once {
						once = true
						delete(w.rows, "del")
					}
					return nil
				}
			}
			settle(t, rowsWorker(w))
			if len(w.repairs) != 0 || !once {
				t.Fatalf("%d rows left, raced: %v", len(w.repairs), once)
			}
		})
	}
}

// TestRowsStuck: an object that cannot be repaired is named and keeps nobody waiting.
func TestRowsStuck(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(3, 1)
		pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
		lost := w.put("lost", pg, 100, 0b111)
		w.repairs[0].Row.Lost = 9 // first of all
		for i := range 10 {
			w.put(storage.Key(fmt.Sprint(i)), pg, 100, 0b1)
		}
		r := rowsWorker(w)
		settle(t, r)
		if len(w.repairs) != 1 {
			t.Fatalf("%d rows left", len(w.repairs))
		}
		p := r.Problems()
		if len(p) != 1 || !strings.Contains(p[0].What, `"lost"`) || p[0].Tries != 1 {
			t.Fatalf("%+v", p)
		}
		before := w.asked
		for range 600 {
			time.Sleep(time.Second)
			settle(t, r)
		}
		if p = r.Problems(); p[0].Tries < 4 || p[0].Tries > 12 || w.asked != before {
			t.Fatalf("%d tries in 10 minutes", p[0].Tries)
		}
		// Its bytes come back (a drive returned): the next look repairs it.
		lost.data.Chunks = w.put("tmp", pg, 100, 0b11).data.Chunks
		lost.write = w.rows["tmp"].write
		w.repairs = w.repairs[:1]
		w.repairs[0].Row.WriteId = lost.write[:]
		lost.want = w.rows["tmp"].want
		delete(w.rows, "tmp")
		w.SetState(3, cluster.DriveDown)
		settle(t, r)
		if len(w.repairs) != 1 {
			t.Fatal("an object that waits for its back-off was tried when a drive went down")
		}
		w.SetState(3, cluster.DriveActive)
		settle(t, r)
		w.wantWhole(t)
		if len(r.Problems()) != 0 || len(w.repairs) != 0 {
			t.Fatalf("%+v", r.Problems())
		}
	})
}

// TestRowsDriveDown: a shard whose drive is down waits for it without a rebuild being tried.
func TestRowsDriveDown(t *testing.T) {
	w := newWorld(3, 1)
	pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	w.put("a", pg, 100, 0b10)
	w.SetState(2, cluster.DriveDown)
	w.Fail = func(method string) error { t.Errorf("%s while the drive is down", method); return nil }
	r := rowsWorker(w)
	settle(t, r)
	w.Fail = nil
	if p := r.Problems(); len(p) != 1 || !strings.Contains(p[0].Err, "down") {
		t.Fatalf("%+v", p)
	}
	w.SetState(2, cluster.DriveActive)
	settle(t, r)
	w.wantWhole(t)
}

// hour runs a worker for an hour as the runner would, with this interval, and answers the steps.
func hour(t *testing.T, s stepper, interval time.Duration) (steps int) {
	t.Helper()
	for end := time.Now().Add(time.Hour); time.Now().Before(end); steps++ {
		_, more, err := s.Step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			time.Sleep(interval)
		} else if steps > 1e6 {
			t.Fatal("it spins")
		}
	}
	return steps
}

// manyRows has one more object to repair than the worker remembers, and a hundred,
// all of them written while drive 2 was down. Data calls are counted in reads, by key.
func manyRows(t *testing.T, remembered int) (w *world, r *Rows, reads map[storage.Key]int, logged *bytes.Buffer) {
	w = newWorld(3, 1)
	pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	for i := range remembered + 100 {
		w.put(storage.Key(fmt.Sprint("down", i)), pg, 10, 0b10)
	}
	w.SetState(2, cluster.DriveDown)
	r = rowsWorker(w)
	logged = &bytes.Buffer{}
	reads = map[storage.Key]int{}
	r.cfg.StuckMax, r.cfg.QueueMax = remembered, remembered/2
	r.cfg.Meta = readsOf{w, reads}
	r.cfg.Logger = slog.New(slog.NewTextHandler(logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
	r.cfg.Parallel = 1 // the map is not for concurrent use
	return w, NewRows(r.cfg), reads, logged
}

type readsOf struct {
	*world
	reads map[storage.Key]int
}

func (m readsOf) Data(ctx context.Context, row Row) (*metapb.Data, error) {
	m.reads[row.ID.Key]++
	return m.world.Data(ctx, row)
}

// TestRowsMoreThanRemembered: if more rows fail than are remembered, each of them is
// still tried now and then only, urgent ones don't keep others from their turn, and a new one is repaired at once.
func TestRowsMoreThanRemembered(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const remembered = 60
		w, r, reads, logged := manyRows(t, remembered)
		for i := range w.repairs {
			w.repairs[i].Row.Lost = 3
		}
		other := w.AddPG(storage.Scheme{K: 1, M: 1}, 1, 3)
		w.put("fine", other, 10, 0b10) // the least urgent of all
		hour(t, r, 5*time.Second)
		most, tries, forgotten := storage.Key(""), 0, 0
		for key, n := range reads {
			if tries += n; n > reads[most] {
				most = key
			}
			if n > 1 {
				forgotten++
			}
		}
		if len(reads) != remembered+101 || len(w.repairs) != remembered+100 {
			t.Fatalf("%d rows were tried, %d are left", len(reads), len(w.repairs))
		}
		if reads[most] > 15 || forgotten != 100 {
			t.Fatalf("%q was read %d times in an hour, %d rows more than once, %d reads in all", most, reads[most], forgotten, tries)
		}
		if n := strings.Count(logged.String(), "\n"); n == 0 || n > 60 {
			t.Fatalf("%d warnings", n)
		}
		if len(r.Problems()) != remembered {
			t.Fatalf("%d problems", len(r.Problems()))
		}
		w.put("new", other, 10, 0b10)
		w.repairs[len(w.repairs)-1].Row.AtMs = time.Now().UnixMilli()
		time.Sleep(time.Minute)
		settle(t, r)
		if reads["new"] != 1 || len(w.repairs) != remembered+100 {
			t.Fatal("a new row waits for those that fail")
		}
		w.SetState(2, cluster.DriveActive)
		settle(t, r)
		w.wantWhole(t)
		if len(w.repairs) != 0 || len(r.Problems()) != 0 {
			t.Fatalf("%d rows left, %d problems", len(w.repairs), len(r.Problems()))
		}
	})
}

// TestRowsFailMoreThanRemembered: the same if what fails is the rebuild itself.
func TestRowsFailMoreThanRemembered(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const remembered = 60
		w, r, reads, _ := manyRows(t, remembered)
		w.SetState(2, cluster.DriveActive)
		w.Fail = func(string) error { return errs.New(errs.Unavailable, "", "", "too few shards") }
		hour(t, r, 5*time.Second)
		for key, n := range reads {
			if n < 3 || n > 30 {
				t.Fatalf("%q was tried %d times in an hour", key, n)
			}
		}
		w.Fail = nil
		for range 3 {
			time.Sleep(15 * time.Minute)
			settle(t, r)
		}
		w.wantWhole(t)
		if len(w.repairs) != 0 {
			t.Fatalf("%d rows left", len(w.repairs))
		}
	})
}

// TestRowsFailuresAnywhere lets every call fail before or after it took effect,
// and restarts the worker at random.
func TestRowsFailuresAnywhere(t *testing.T) {
	seed := seed.Of(t)
	for round := range uint64(20) {
		bubble.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, round))
			w := newWorld(3, 2)
			pg := w.AddPG(storage.Scheme{K: 3, M: 3}, 1, 2, 3, 4, 5, 6)
			for i := range 20 {
				w.put(storage.Key(fmt.Sprint(i)), pg, 3000, rnd.Uint64N(8))
			}
			boom := func(string) error {
				if rnd.IntN(5) == 0 {
					return errs.New(errs.OutcomeUnknown, "test", "", "injected")
				}
				return nil
			}
			w.Fail, w.FailLate, w.meta, w.late = boom, boom, boom, boom
			r := rowsWorker(w)
			r.cfg.Parallel = 1 // the random source is not for concurrent use
			for range 60 {
				if rnd.IntN(10) == 0 {
					r = rowsWorker(w)
					r.cfg.Parallel = 1
				}
				_, _, _ = r.Step(t.Context())
				time.Sleep(time.Duration(rnd.IntN(10)) * time.Second)
			}
			w.Fail, w.FailLate, w.meta, w.late = nil, nil, nil, nil
			for range 3 {
				time.Sleep(time.Hour)
				settle(t, r)
			}
			w.wantWhole(t)
			if len(w.repairs) != 0 || len(r.Problems()) != 0 {
				t.Fatalf("%d rows left, %+v", len(w.repairs), r.Problems())
			}
		})
	}
}

func TestHealer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(3, 2)
		pg := w.AddPG(storage.Scheme{K: 3, M: 3}, 1, 2, 3, 4, 5, 6)
		o := w.put("a", pg, 5000, 0)
		ref := o.data.Chunks[0]
		woken := 0
		h := NewHealer(HealerConfig{Plane: w, Wake: func() { woken++ }, QueueMax: 3})
		id := storage.ShardID{PG: pg, Chunk: storage.ChunkID(ref.Id), Stripe: 2, Index: 1}
		if !w.Drive(2).Change(id, rot) {
			t.Fatal("no such shard")
		}
		bad := BadShard{Owner: storage.Owner{Bucket: 1, Key: "a", Write: o.write}, Ref: ref, Stripe: 2, Index: 1, Drive: w.Drive(2).ID}
		bad.Err = errs.New(errs.DriveFailed, "", "", "")
		h.Report(bad) // nothing is known of it
		bad.Err = errs.New(errs.Corrupt, "", "", "")
		h.Report(bad)
		h.Report(bad)
		if left, _ := h.Left(); left != 1 || woken != 1 {
			t.Fatalf("%d left, woken %d times", left, woken)
		}
		fails := 2
		w.Fail = func(string) error {
			if fails--; fails >= 0 {
				return errs.New(errs.Unavailable, "", "", "not now")
			}
			return nil
		}
		for range 10 {
			settle(t, h)
			time.Sleep(5 * time.Second)
		}
		w.wantWhole(t)
		if left, _ := h.Left(); left != 0 || h.Dropped() != 0 || len(h.Problems()) != 0 {
			t.Fatalf("%d left", left)
		}
		// What cannot be healed is given up, and the queue is bounded.
		w.Fail = func(string) error { return errs.New(errs.Unavailable, "", "", "never") }
		for i := range 5 {
			bad.Index = i
			h.Report(bad)
		}
		for range 100 {
			settle(t, h)
			time.Sleep(time.Minute)
		}
		if left, _ := h.Left(); left != 0 || h.Dropped() != 5 {
			t.Fatalf("%d left, %d dropped", left, h.Dropped())
		}
	})
}

// TestHealerManyFail: however many shards can't be healed, each is tried TriesMax times with a growing pause.
func TestHealerManyFail(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(1, 1)
		tries := 0
		w.Fail = func(string) error { tries++; return errs.New(errs.Unavailable, "", "", "not now") }
		var logged bytes.Buffer
		h := NewHealer(HealerConfig{Plane: w, Logger: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelWarn}))})
		const shards = 1100
		for i := range uint64(shards) {
			id := storage.NewChunkID(1, i)
			h.Report(BadShard{Ref: &metapb.ChunkRef{Id: id[:]}, Err: errs.New(errs.Corrupt, "", "", "")})
		}
		settle(t, h)
		if tries != shards || len(h.Problems()) != shards {
			t.Fatalf("%d tries at once, %d problems", tries, len(h.Problems()))
		}
		time.Sleep(500 * time.Millisecond)
		settle(t, h)
		if tries != shards {
			t.Fatalf("%d tries without a pause", tries)
		}
		for range 120 {
			time.Sleep(30 * time.Second)
			settle(t, h)
		}
		if left, _ := h.Left(); tries != 6*shards || left != 0 || h.Dropped() != shards {
			t.Fatalf("%d tries, %d left, %d dropped", tries, left, h.Dropped())
		}
		if n := strings.Count(logged.String(), "\n"); n == 0 || n > 60 {
			t.Fatalf("%d warnings", n)
		}
	})
}
