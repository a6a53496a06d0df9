package repair

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
	"cairn/test/bubble"
	"cairn/test/seed"
)

func scrubber(w *world) *Scrub {
	all := func(storage.DriveID) bool { return true }
	return NewScrub(ScrubConfig{Topology: w.Topology, Stores: w.Store, Local: all, Plane: w, Refers: w, PageMax: 16, StepBytes: 64 << 10})
}

func TestScrubHeals(t *testing.T) {
	seed := seed.Of(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	w := fillWorld()
	damaged := 0
	spoiled := map[storage.ChunkID]bool{}
	for _, n := range []byte{2, 5} {
		for _, s := range w.Drive(n).Shards() {
			switch id := s.Header.ID; {
			case spoiled[id.Chunk] || rnd.IntN(4) != 0:
			case rnd.IntN(2) == 0:
				spoiled[id.Chunk] = w.Drive(n).Change(id, rot)
				damaged++
			default:
				w.Drive(n).Drop(id) // listed no more
				spoiled[id.Chunk] = true
				damaged++
			}
		}
	}
	s := scrubber(w)
	settle(t, s)
	w.wantWhole(t)
	st := s.Stats()
	if damaged == 0 || st.BadShards == 0 || st.MissingShards == 0 || st.Healed == 0 || st.Passes != 1 || st.Chunks != 60 || len(s.Problems()) != 0 {
		t.Fatalf("%d damaged, %+v, %+v", damaged, st, s.Problems())
	}
	if w.asked < len(spoiled) || w.asked > len(spoiled)+2 { // and about the two that were moved
		t.Fatalf("asked the range %d times about %d damaged chunks", w.asked, len(spoiled))
	}
	total := int64(0)
	for _, d := range w.Drives {
		for _, x := range d.Shards() {
			total += int64(len(x.Payload))
		}
	}
	if lost := total - st.Bytes; lost < 0 || lost > total/2 {
		t.Fatalf("read %d of %d bytes", st.Bytes, total)
	}
}

// orphan writes a chunk that no row names.
func (w *world) orphan(pg storage.PGID, born time.Time) storage.ChunkID {
	o := w.putBorn("orphan", pg, 3000, 0, born)
	delete(w.rows, "orphan")
	return storage.ChunkID(o.data.Chunks[0].Id)
}

func (w *world) holders(id storage.ChunkID) (n int) {
	for _, d := range w.Drives {
		if slices.ContainsFunc(d.Shards(), func(s storagetest.Shard) bool { return s.Header.ID.Chunk == id }) {
			n++
		}
	}
	return n
}

func TestScrubOrphans(t *testing.T) {
	day := storage.OrphanAge
	for name, c := range map[string]struct {
		age   time.Duration
		spoil func(w *world, id storage.ChunkID)
		left  int // drives that hold the chunk afterwards
		named bool
	}{
		"old":           {day + time.Hour, nil, 0, false},
		"young":         {day - time.Hour, nil, 6, false},
		"range is late": {day + time.Hour, func(w *world, _ storage.ChunkID) { w.timeMS -= (2 * time.Hour).Milliseconds() }, 6, false},
		"range does not answer": {day + time.Hour, func(w *world, _ storage.ChunkID) {
			w.meta = func(string) error { return errs.New(errs.Unavailable, "", "", "no leader") }
		}, 6, true},
		"referred to": {day + time.Hour, func(w *world, id storage.ChunkID) {
			o := w.put("k", 1, 10, 0)
			for _, d := range w.Drives {
				for _, s := range d.Shards() {
					if s.Header.ID.Chunk == id {
						d.Change(s.Header.ID, func(s *storagetest.Shard) { s.Header.Owner = storage.Owner{Bucket: 1, Key: "k", Write: o.write} })
					}
				}
			}
			o.data.Chunks[0].Id = id[:]
			o.want = nil
		}, 6, false},
		"owners disagree": {day + time.Hour, func(w *world, id storage.ChunkID) {
			for _, s := range w.Drive(4).Shards() {
				w.Drive(4).Change(s.Header.ID, func(s *storagetest.Shard) { s.Header.Owner.Key = "other" })
			}
		}, 6, true},
		"a header cannot be read": {day + time.Hour, func(w *world, id storage.ChunkID) {
			w.Drive(4).Fail = func(m string) error {
				if m == "header" {
					return errs.New(errs.Corrupt, "", "", "header checksum")
				}
				return nil
			}
		}, 6, true},
		"one drive does not answer": {day + time.Hour, func(w *world, id storage.ChunkID) {
			w.SetState(4, cluster.DriveDown)
		}, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(3, 2)
			pg := w.AddPG(storage.Scheme{K: 3, M: 3}, 1, 2, 3, 4, 5, 6)
			id := w.orphan(pg, time.Now().Add(-c.age))
			if c.spoil != nil {
				c.spoil(w, id)
			}
			s := scrubber(w)
			settle(t, s)
			if n := w.holders(id); n != c.left {
				t.Fatalf("%d drives hold it, want %d; %+v", n, c.left, s.Problems())
			}
			if named := len(s.Problems()) > 0; named != c.named {
				t.Fatalf("%+v", s.Problems())
			}
			if st := s.Stats(); (st.OrphansRemoved == 1) != (c.left < 2) {
				t.Fatalf("%+v", st)
			}
		})
	}
}

// TestScrubBeyondRepair: a chunk with too many bad shards is named, and nothing is removed.
func TestScrubBeyondRepair(t *testing.T) {
	w := newWorld(3, 1)
	pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	o := w.put("a", pg, 100, 0)
	w.put("b", pg, 100, 0)
	for n := byte(1); n <= 3; n++ {
		w.Drive(n).Change(storage.ShardID{PG: pg, Chunk: storage.ChunkID(o.data.Chunks[0].Id), Index: n - 1}, rot)
	}
	s := scrubber(w)
	settle(t, s)
	if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0].Err, `key "a"`) {
		t.Fatalf("%+v", p)
	}
	if len(w.Drive(1).Shards()) != 2 {
		t.Fatal("something was removed")
	}
}

type memProgress struct{ b []byte }

func (p *memProgress) Load() ([]byte, error) { return p.b, nil }
func (p *memProgress) Save(b []byte) error   { p.b = slices.Clone(b); return nil }

// TestScrubResumes: a restart goes on where the pass was, and passes have a distance.
func TestScrubResumes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := fillWorld()
		p := &memProgress{}
		newOne := func() *Scrub {
			s := scrubber(w)
			s.cfg.StepBytes = 1
			s.cfg.PassEvery = time.Hour
			s.cfg.Progress = p
			s.state = loadProgress(p, s.cfg.Logger)
			return s
		}
		seen := int64(0)
		s := newOne()
		for range 300 {
			time.Sleep(saveEvery)
			_, more, err := s.Step(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !more {
				break
			}
			if seen++; seen%9 == 0 {
				s = newOne()
			}
		}
		if seen < 60 || seen > 75 { // 60 chunks, the last one saved again after each of some 7 restarts
			t.Fatalf("%d steps", seen)
		}
		s = newOne()
		settle(t, s)
		if s.Stats().Chunks != 0 {
			t.Fatal("a pass began too early")
		}
		time.Sleep(time.Hour)
		settle(t, s)
		if s.Stats().Chunks != 60 {
			t.Fatalf("%+v", s.Stats())
		}
		p.b = []byte(fmt.Sprintf(`{"format":%d`, progressFormat))
		if newOne().state != (progress{}) {
			t.Fatal("garbled progress was believed")
		}
	})
}

// TestScrubRate: at its rate a pass takes no longer than it may, however much a node holds.
func TestScrubRate(t *testing.T) {
	for _, c := range []struct{ bytes, shards int64 }{{0, 0}, {1 << 40, 1 << 20}, {100 << 40, 1 << 30}, {1 << 30, 1 << 34}} {
		rate := ScrubRate(c.bytes, c.shards, ScrubPassEvery)
		if took := float64(c.bytes+c.shards*scrubShardCost) / rate; took > ScrubPassEvery.Seconds()+1 || rate < scrubRateMin {
			t.Errorf("%+v: %v bytes/s, %v s", c, rate, took)
		}
	}
}

// TestScrubOnlyLocal: each node reads its own drives, and one of them asks about a chunk.
func TestScrubOnlyLocal(t *testing.T) {
	w := newWorld(3, 1)
	pg := w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 2, 3)
	for i := range 10 {
		w.putBorn(storage.Key(fmt.Sprint(i)), pg, 1000, 0, time.Now().Add(-2*storage.OrphanAge))
	}
	for n := byte(1); n <= 3; n++ {
		w.asked = 0
		s := scrubber(w)
		s.cfg.Local = func(id storage.DriveID) bool { return id == w.Drive(n).ID }
		settle(t, s)
		if st := s.Stats(); st.Bytes != 10000 || st.Shards != 10 || (n == 1) != (w.asked == 10) {
			t.Fatalf("drive %d: %+v, asked %d times", n, st, w.asked)
		}
	}
}
