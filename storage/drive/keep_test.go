package drive

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/seed"
)

// noHoles is a file system that can't make holes.
type noHoles struct{ vfsx.FS }

func (n noHoles) OpenFile(name string) (vfsx.File, error) {
	f, err := n.FS.OpenFile(name)
	return noHolesFile{f}, err
}

func (n noHoles) CreateFile(name string) (vfsx.File, error) {
	f, err := n.FS.CreateFile(name)
	return noHolesFile{f}, err
}

type noHolesFile struct{ vfsx.File }

func (noHolesFile) PunchHole(off, n int64) error { return vfsx.ErrUnsupported }

// TestSpaceComesBack: holes, unlinked and compacted extents give back what was
// removed, while readers of what stays never notice. With and without holes.
func TestSpaceComesBack(t *testing.T) {
	for name, wrap := range map[string]func(vfsx.FS) vfsx.FS{
		"holes":    func(fs vfsx.FS) vfsx.FS { return fs },
		"no holes": func(fs vfsx.FS) vfsx.FS { return noHoles{fs} },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMem(t)
			cfg := small(wrap(m))
			cfg.ExtentBytes = 128 << 10
			d := told(t, cfg)
			const chunks, n = 400, 3000
			for i := range chunks {
				ok(t, put(d, shardID(1, uint64(i), 0), n))
			}
			full := m.Used()
			// Readers of the chunks that stay, every tenth one.
			stop := make(chan struct{})
			var wg sync.WaitGroup
			var reads atomic.Int64
			for r := range 3 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(r), 0))
					for {
						select {
						case <-stop:
							return
						default:
						}
						id := shardID(1, uint64(rng.IntN(chunks/10)*10), 0)
						p, err := read(d, id, 0, n)
						if err != nil || !bytes.Equal(p, payload(id, n)) {
							t.Errorf("%v while extents are compacted: %v", id, err)
							return
						}
						reads.Add(1)
					}
				})
			}
			for i := range chunks {
				if i%10 != 0 {
					ok(t, remove(d, shardID(1, uint64(i), 0)))
				}
			}
			eventually(t, "space comes back", func() bool { return m.Used() < full/3 })
			eventually(t, "readers went on", func() bool { return reads.Load() > 100 })
			close(stop)
			wg.Wait()
			if name == "no holes" { // with them there may be nothing left to win
				eventually(t, "compaction", func() bool { return d.counters.moves.Load() > 0 })
			}
			for i := range chunks {
				if id := shardID(1, uint64(i), 0); i%10 == 0 {
					holds(t, d, id, n)
				} else if _, err := read(d, id, 0, n); !errs.Is(err, errs.Gone) {
					t.Fatalf("%v: %v", id, err)
				}
			}
			if s := d.Stats(); s.Shards != chunks/10 || s.LiveBytes < chunks/10*n {
				t.Fatalf("%+v", s)
			}
			// And nothing comes back with an index built anew.
			ok(t, d.Close())
			ok(t, m.RemoveAll(testDir+"/index"))
			d = told(t, cfg)
			if s := d.Stats(); s.Shards != chunks/10 {
				t.Fatalf("%d shards after rebuilding", s.Shards)
			}
		})
	}
}

// TestUnopenableExtent: an extent whose file can't be opened for a time keeps
// neither the others from being cleared and compacted, nor itself once it can be opened again.
func TestUnopenableExtent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		m := newMem(t)
		cfg := small(noHoles{m})
		cfg.ExtentBytes = 32 << 10
		cfg.ExtentFilesMax = 1
		d := told(t, cfg)
		const chunks, n = 60, 3000
		for i := range chunks {
			ok(t, put(d, shardID(1, uint64(i), 0), n))
		}
		left := func() (names []string) {
			names, err := m.List(testDir + "/extents")
			ok(t, err)
			slices.Sort(names)
			return slices.DeleteFunc(names, func(n string) bool { return n >= "00000006.extent" }) // those that were full before
		}
		if len(left()) != 5 {
			t.Fatalf("%v", left())
		}
		ok(t, d.Close()) // no file is open now
		d = told(t, cfg)
		mend := m.Inject(vfsx.Fault{Ops: vfsx.OpOpen, Path: "/extents/00000002.extent", Err: syscall.EMFILE})
		for i := range chunks {
			if i%5 != 0 {
				ok(t, remove(d, shardID(1, uint64(i), 0)))
			}
		}
		time.Sleep(time.Minute)
		if names := left(); !slices.Equal(names, []string{"00000002.extent"}) {
			t.Fatalf("%v are left, of which only the second could not be opened", names)
		}
		mend()
		time.Sleep(15 * time.Minute)
		if names := left(); len(names) > 0 {
			t.Fatalf("%v are left", names)
		}
		for i := 0; i < chunks; i += 5 {
			holds(t, d, shardID(1, uint64(i), 0), n)
		}
	})
}

// TestTombstonesAge: removed chunks are remembered for the TTL, also through
// compaction and a lost index, and then forgotten, so that they don't pile up for ever.
func TestTombstonesAge(t *testing.T) {
	m := newMem(t)
	var clock atomic.Int64
	clock.Store(1_700_000_000_000)
	cfg := small(m)
	cfg.ExtentBytes = 32 << 10
	cfg.MaintenanceEvery = time.Millisecond
	cfg.Now = func() time.Time { return time.UnixMilli(clock.Load()) }
	d := told(t, cfg)
	const chunks = 100
	for i := range chunks {
		ok(t, put(d, shardID(1, uint64(i), 0), 2000))
	}
	for i := range chunks {
		ok(t, remove(d, shardID(1, uint64(i), 0)))
	}
	ok(t, remove(d, shardID(1, 9999, 0))) // never held
	gone := func() (n int) {
		for _, i := range append(slices.Collect(seq(chunks)), 9999) {
			_, err := read(d, shardID(1, uint64(i), 0), 0, 1)
			if errs.Is(err, errs.Gone) {
				n++
			} else if !errs.Is(err, errs.NotFound) {
				t.Fatal(err)
			}
		}
		return n
	}
	reopen := func(loseIndex bool) {
		ok(t, d.Close())
		if loseIndex {
			ok(t, m.RemoveAll(testDir+"/index"))
		}
		d = told(t, cfg)
	}
	clock.Add(storage.TombstoneTTL.Milliseconds() - 1000)
	for range 3 {
		time.Sleep(20 * time.Millisecond)
		reopen(true)
		if n := gone(); n != chunks+1 {
			t.Fatalf("%d of %d removals are remembered within the TTL", n, chunks+1)
		}
	}
	clock.Add(2000)
	eventually(t, "forgotten", func() bool { return gone() == 0 })
	// How old the tombstones in an extent are is not known after a start: they count as made then.
	clock.Add(storage.TombstoneTTL.Milliseconds())
	eventually(t, "the extents with nothing but tombstones go", func() bool { return d.Stats().Extents <= 2 })
	eventually(t, "the count follows", func() bool { return d.Stats().Tombstones == 0 })
	reopen(true)
	if s := d.Stats(); s.Shards != 0 {
		t.Fatalf("%d shards came back", s.Shards)
	}
}

func seq(n int) func(func(int) bool) {
	return func(yield func(int) bool) {
		for i := range n {
			if !yield(i) {
				return
			}
		}
	}
}

// TestStaleMove: a compaction's copy of a shard that was replaced meanwhile is not taken.
func TestStaleMove(t *testing.T) {
	m := newMem(t)
	d := told(t, small(m))
	id := shardID(1, 1, 0)
	ok(t, put(d, id, 1000))
	f := liveFrames(t, d)[0]
	at, _, err := d.index.location(appendShardKey(nil, &id))
	ok(t, err)
	ok(t, m.XorByte(d.extentPath(f.Extent), f.Off+f.Bytes-10, 1))
	_, err = read(d, id, 0, 1000)
	wantKind(t, err, errs.Corrupt)
	ok(t, put(d, id, 1000)) // replaced
	raw := make([]byte, f.Bytes)
	e, err := d.extents.acquire(f.Extent)
	ok(t, err)
	_, err = e.file.ReadAt(raw, f.Off)
	ok(t, err)
	d.extents.release(e)
	for _, what := range []string{"replaced", "removed"} {
		if what == "removed" {
			ok(t, remove(d, id))
		}
		r := d.newRequest(kindMove)
		r.id, r.replace = id, at
		r.header = append(r.header[:0], raw[:at.header]...)
		r.payload = raw[at.header : int(at.header)+int(at.payload)]
		if err := d.do(ctx, r); err != errExists {
			t.Fatalf("moved what was %s: %v", what, err)
		}
		if what == "replaced" {
			holds(t, d, id, 1000)
		}
	}
}

// TestLostExtent: an extent that somebody deleted costs its shards, says so, and they can be healed.
func TestLostExtent(t *testing.T) {
	m := newMem(t)
	cfg := small(m)
	cfg.ExtentBytes = 16 << 10
	d := told(t, cfg)
	for i := range 30 {
		ok(t, put(d, shardID(1, uint64(i), 0), 3000))
	}
	ok(t, d.Close())
	ok(t, m.Remove(testDir+"/extents/00000002.extent"))
	d = told(t, cfg)
	bad, err := d.Bad()
	ok(t, err)
	if len(bad) != 1 || bad[0].Extent != 2 || bad[0].Tail {
		t.Fatal(bad)
	}
	lost := 0
	for i := range 30 {
		id := shardID(1, uint64(i), 0)
		if _, err := read(d, id, 0, 3000); err != nil {
			wantKind(t, err, errs.Corrupt)
			lost++
			ok(t, put(d, id, 3000))
		}
		holds(t, d, id, 3000)
	}
	if lost == 0 || lost > 6 {
		t.Fatalf("%d shards lost with one extent", lost)
	}
	// Healed, nothing refers to the extent any more: it is forgotten, and no scan reports it.
	for i := 0; len(bad) > 0; i++ {
		if i > 2000 {
			t.Fatalf("still known as lost: %+v", bad)
		}
		time.Sleep(5 * time.Millisecond)
		bad, err = d.Bad()
		ok(t, err)
	}
	ok(t, d.Scan(ctx, func(f FrameInfo) error { return f.Err }))
	ok(t, d.Close())
	d = told(t, cfg)
	for i := range 30 {
		holds(t, d, shardID(1, uint64(i), 0), 3000)
	}
}

// TestModel runs long random histories, with restarts, lost indexes, damage and
// passing time but no crashes, against a model that knows each answer exactly.
func TestModel(t *testing.T) {
	seed := seed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 3))
	m := newMem(t)
	var clock atomic.Int64
	clock.Store(1_700_000_000_000)
	cfg := small(m)
	cfg.ExtentBytes = 40 << 10
	cfg.MaintenanceEvery = time.Millisecond
	cfg.Now = func() time.Time { return time.UnixMilli(clock.Load()) }
	d := told(t, cfg)
	type shard struct {
		bytes  int
		broken bool
	}
	shards := map[storage.ShardID]*shard{}
	removed := map[storage.ChunkRemoval]bool{}
	next, moves := uint64(0), int64(0) // moves: by drives closed since
	var order []storage.ShardID        // of shards ever put, those removed too
	pick := func() (storage.ShardID, *shard) {
		for range 20 {
			if len(order) == 0 {
				break
			}
			i := rng.IntN(len(order))
			if id := order[i]; shards[id] != nil {
				return id, shards[id]
			}
			order[i] = order[len(order)-1]
			order = order[:len(order)-1]
		}
		return storage.ShardID{}, nil
	}
	for range 4000 {
		switch rng.IntN(40) {
		default: // a new chunk
			next++
			id := storage.ShardID{PG: storage.PGID(1 + next%3), Chunk: storage.NewChunkID(int64(next/4), next), Stripe: uint16(rng.IntN(100)), Index: uint8(rng.IntN(6))}
			shards[id] = &shard{bytes: 1 + rng.IntN(4000)}
			order = append(order, id)
			ok(t, put(d, id, shards[id].bytes))
		case 1, 2, 3, 4: // a shard again, perhaps after damage
			if id, s := pick(); s != nil {
				ok(t, put(d, id, s.bytes))
				s.broken = false
				if s.bytes > 1 {
					wantKind(t, d.Append(ctx, header(id), payload(id, s.bytes)[1:], nil), errs.Conflict)
				}
			}
		case 5, 6, 7, 8, 9, 10, 11, 12, 13, 14: // a removal
			if id, s := pick(); s != nil {
				ok(t, remove(d, id))
				removed[chunkOf(id)] = true
				for k := range shards {
					if chunkOf(k) == chunkOf(id) {
						delete(shards, k)
					}
				}
				wantKind(t, put(d, id, 10), errs.Gone)
			}
		case 15, 16, 17, 18, 19, 20: // a read
			if id, s := pick(); s != nil {
				off := rng.IntN(s.bytes)
				p, err := read(d, id, off, s.bytes-off)
				switch {
				case s.broken && err != nil:
					wantKind(t, err, errs.Corrupt)
				case err != nil || !bytes.Equal(p, payload(id, s.bytes)[off:]):
					t.Fatalf("%v: %v", id, err)
				default:
					s.broken = false // a compaction had read it just before it rotted
				}
			}
		case 21: // bit rot in a payload
			if id, s := pick(); s != nil && !s.broken {
				at, found, err := d.index.location(appendShardKey(nil, &id))
				if ok(t, err); !found {
					t.Fatalf("%v has no row", id)
				}
				if m.XorByte(d.extentPath(at.extent), int64(at.off)+int64(at.header)+rng.Int64N(int64(s.bytes)), 1) != nil {
					continue // just compacted away
				}
				_, err = read(d, id, 0, s.bytes)
				s.broken = errs.Is(err, errs.Corrupt) // or was moved before
			}
		case 22:
			if rng.IntN(6) == 0 {
				ok(t, d.Close())
				moves += d.counters.moves.Load()
				if rng.IntN(3) == 0 {
					ok(t, m.RemoveAll(testDir+"/index"))
				}
				d = told(t, cfg)
				for id, s := range shards {
					// A rotten frame of an extent's last batch looks like what a crash left, once the index is lost.
					if _, err := read(d, id, 0, 1); s.broken && errs.Is(err, errs.NotFound) {
						delete(shards, id)
					}
				}
			}
		case 23:
			clock.Add(rng.Int64N(storage.TombstoneTTL.Milliseconds() / 20))
		}
	}
	var want, got []string
	for id, s := range shards {
		want = append(want, fmt.Sprint(id, s.bytes))
	}
	for pg := range storage.PGID(5) {
		ok(t, d.List(ctx, pg, storage.ChunkID{}, func(i storage.ShardInfo) bool {
			got = append(got, fmt.Sprint(i.ID, i.Bytes))
			return true
		}))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Fatalf("listed %d shards, the model has %d", len(got), len(want))
	}
	ok(t, audit(d))
	// Hundreds of shards are moved as a rule; on a busy machine the maintenance may not have come to it yet.
	for i := 0; moves+d.counters.moves.Load() == 0; i++ {
		if i > 10_000 {
			t.Fatal("nothing was compacted")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestHealedThenIndexLost: of two frames of a shard the later one counts, also
// when the index is lost before the older, rotten one was made a hole.
func TestHealedThenIndexLost(t *testing.T) {
	m := newMem(t)
	cfg := small(m)
	cfg.CleanAfter = time.Hour
	d := told(t, cfg)
	id := shardID(1, 1, 0)
	ok(t, put(d, id, 1000))
	f := liveFrames(t, d)[0]
	ok(t, m.XorByte(d.extentPath(f.Extent), f.Off+f.Bytes-10, 1))
	_, err := read(d, id, 0, 1000)
	wantKind(t, err, errs.Corrupt)
	ok(t, put(d, id, 1000))
	ok(t, put(d, shardID(1, 2, 0), 1000)) // so that the frames before are known to be durable
	ok(t, d.Close())
	ok(t, m.RemoveAll(testDir+"/index"))
	d = told(t, cfg)
	holds(t, d, id, 1000)
	eventually(t, "the rotten frame is cleared", func() bool {
		damaged := false
		ok(t, d.Scan(ctx, func(f FrameInfo) error { damaged = damaged || f.Err != nil; return nil }))
		return !damaged
	})
}

// TestTombstoneOutlivesFrames: while the bytes of a removed shard still lie in an extent, its removal is remembered, however old it is.
func TestTombstoneOutlivesFrames(t *testing.T) {
	m := newMem(t)
	var clock atomic.Int64
	clock.Store(1_700_000_000_000)
	cfg := small(m)
	cfg.CleanAfter = time.Hour
	cfg.MaintenanceEvery = time.Millisecond
	cfg.Now = func() time.Time { return time.UnixMilli(clock.Load()) }
	d := told(t, cfg)
	id := shardID(1, 1, 0)
	ok(t, put(d, id, 1000))
	eventually(t, "the first cleaning is over", func() bool {
		d.keeper.due.Lock()
		defer d.keeper.due.Unlock()
		return d.keeper.due.clean.IsZero()
	})
	ok(t, remove(d, id))
	clock.Add(2 * storage.TombstoneTTL.Milliseconds())
	for range 20 {
		ok(t, d.keeper.dropOld())
		_, err := read(d, id, 0, 1)
		wantKind(t, err, errs.Gone)
	}
	ok(t, d.keeper.clean())
	ok(t, d.keeper.dropOld())
	_, err := read(d, id, 0, 1)
	wantKind(t, err, errs.NotFound)
}

// TestOpenExtentStaysOpen: the file that the writer has just put into the table
// is in use, however many others are opened.
func TestOpenExtentStaysOpen(t *testing.T) {
	m := vfsx.NewMem()
	files := newExtents(1, func(n uint32) (vfsx.File, error) { return m.CreateFile(fmt.Sprintf("/%d", n)) })
	f, err := m.CreateFile("/1")
	ok(t, err)
	e := files.add(1, extentRow{}, f)
	for n := range uint32(5) {
		files.add(2+n, extentRow{}, nil)
		other, err := files.acquire(2 + n)
		ok(t, err)
		files.release(other)
	}
	if e.file == nil {
		t.Fatal("it was closed")
	}
	files.release(e)
}

// TestTornBatch crashes in the sync of a batch of several frames: each is there
// whole or not at all, and appending it again makes it durable in either case.
func TestTornBatch(t *testing.T) {
	const shards, n = 4, 20_000
	whole, none := 0, 0
	for seed := range uint64(60) {
		m := newMem(t)
		cfg := small(m)
		cfg.ExtentBytes = 1 << 20
		d := told(t, cfg)
		held, hold := make(chan struct{}), make(chan struct{})
		go d.keeper.job(func() error { close(held); <-hold; return nil })
		<-held
		var wg sync.WaitGroup
		for i := range shards {
			wg.Go(func() {
				if err := put(d, shardID(1, uint64(i), 0), n); err != nil {
					t.Error(err)
				}
			})
		}
		eventually(t, "all wait", func() bool { return len(d.queue) >= shards })
		var once sync.Once
		var crashed *vfsx.Mem
		m.SetHook(func(op vfsx.Op, _ string) error {
			if op == vfsx.OpSync {
				once.Do(func() { crashed = m.CrashClone(seed) })
			}
			return nil
		})
		close(hold)
		wg.Wait()
		ok(t, d.Close())
		cfg.FS = crashed
		d = told(t, cfg)
		ok(t, d.Scan(ctx, func(f FrameInfo) error { return f.Err }))
		ok(t, d.CrossCheck(ctx, func(m Mismatch) error { return fmt.Errorf("%+v", m) }))
		for i := range shards {
			id := shardID(1, uint64(i), 0)
			if _, err := read(d, id, 0, 1); errs.Is(err, errs.NotFound) {
				none++
			} else {
				whole++
				holds(t, d, id, n)
			}
			ok(t, put(d, id, n))
		}
		cfg.FS = crashed.CrashClone(0)
		ok(t, d.Close())
		d = told(t, cfg)
		for i := range shards {
			holds(t, d, shardID(1, uint64(i), 0), n)
		}
		ok(t, d.Close())
	}
	if whole == 0 || none == 0 {
		t.Fatalf("%d whole, %d missing: the crashes are not interesting", whole, none)
	}
}
