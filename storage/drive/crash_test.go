package drive

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/seed"

	"github.com/cockroachdb/pebble/v2"
)

var (
	crashSeconds = flag.Float64("crash.seconds", 3, "how long TestCrashes goes on")
	verboseDrive = flag.Bool("drive.log", false, "log what drives log")
)

// model is what a drive must answer: what was acknowledged, and what may or may not have happened.
type model struct {
	mu      sync.Mutex
	shards  map[storage.ShardID]*modelShard
	removed map[storage.ChunkRemoval]*modelRemoval
	epochs  map[storage.PGID]modelEpoch
}

type modelShard struct {
	bytes int
	acked bool
}

type modelRemoval struct {
	acked bool
	at    time.Time // when the last removal began
}

type modelEpoch struct{ acked, tried storage.Epoch }

func newModel() *model {
	return &model{shards: map[storage.ShardID]*modelShard{}, removed: map[storage.ChunkRemoval]*modelRemoval{}, epochs: map[storage.PGID]modelEpoch{}}
}

func (m *model) clone() *model {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := newModel()
	for k, v := range m.shards {
		s := *v
		c.shards[k] = &s
	}
	for k, v := range m.removed {
		r := *v
		c.removed[k] = &r
	}
	c.epochs = maps.Clone(m.epochs)
	return c
}

// crash takes a crash clone and what must and may be in it: what was
// acknowledged before, and what had begun after.
func (m *model) crash(fs *vfsx.Mem, seed uint64) (*vfsx.Mem, *model) {
	before := m.clone()
	crashed := fs.CrashClone(seed)
	after := m.clone()
	for k, s := range after.shards {
		s.acked = before.shards[k] != nil && before.shards[k].acked
	}
	for k, r := range after.removed {
		r.acked = before.removed[k] != nil && before.removed[k].acked
	}
	for pg, e := range after.epochs {
		e.acked = before.epochs[pg].acked
		after.epochs[pg] = e
	}
	return crashed, after
}

func chunkOf(id storage.ShardID) storage.ChunkRemoval {
	return storage.ChunkRemoval{PG: id.PG, Chunk: id.Chunk}
}

// crasher runs a workload on a drive, crashes it at a random change of the file
// system, opens what the crash left, compares it with the model, and goes on from there.
type crasher struct {
	t     *testing.T
	rng   *rand.Rand
	fs    *vfsx.Mem
	model *model
	clock atomic.Int64 // unix ms
	next  uint64       // number of the next chunk

	cache                     *pebble.Cache
	crashes, rebuilt, scanned int
}

func (c *crasher) config(fs vfsx.FS) Config {
	cfg := Config{
		FS: fs, Dir: testDir, ExtentBytes: 24 << 10, MemTableBytes: 16 << 10, FlushBytes: 40 << 10,
		CleanAfter: time.Microsecond, MaintenanceEvery: time.Millisecond, FlushAfter: time.Millisecond,
		ExtentFilesMax: 4, Cache: c.cache,
		Now: func() time.Time { return time.UnixMilli(c.clock.Load()) },
	}
	if *verboseDrive {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stdout, nil))
	}
	return cfg
}

func (c *crasher) fatalf(format string, args ...any) {
	c.t.Helper()
	c.t.Fatalf("after %d crashes: %s", c.crashes, fmt.Sprintf(format, args...))
}

// round opens, checks, works and crashes once.
func (c *crasher) round() {
	d, err := Open(c.config(c.fs))
	if err != nil {
		c.fatalf("open: %v", err)
	}
	if err := audit(d); err != nil {
		c.fatalf("after open: %v", err)
	}
	c.check(d)
	c.tell(d)
	var (
		crashAt = 1 + c.rng.IntN(80)
		seed    = c.rng.Uint64()
		ops     atomic.Int64
		crashed *vfsx.Mem
		then    *model
		done    = make(chan struct{})
	)
	c.fs.SetHook(func(op vfsx.Op, _ string) error {
		if op&vfsx.OpMutate != 0 && ops.Add(1) == int64(crashAt) {
			crashed, then = c.model.crash(c.fs, seed)
			close(done)
		}
		return nil
	})
	stop := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	var wg sync.WaitGroup
	for range 1 + c.rng.IntN(5) {
		rng := rand.New(rand.NewPCG(c.rng.Uint64(), 1))
		wg.Go(func() {
			for i := 0; i < 200 && !stop(); i++ {
				c.op(d, rng)
			}
		})
	}
	wg.Wait()
	if !stop() { // the end of the work is as good a moment
		crashed, then = c.model.crash(c.fs, seed)
	}
	c.fs.SetHook(nil)
	if err := d.Failed(); err != nil {
		c.fatalf("the drive failed: %v", err)
	}
	if err := audit(d); err != nil {
		c.fatalf("after work: %v", err)
	}
	ok(c.t, d.Close())
	c.fs, c.model = crashed, then
	c.crashes++
	if c.rng.IntN(12) == 0 {
		c.rebuilt++
		ok(c.t, c.fs.RemoveAll(testDir+"/index"))
	}
	if c.rng.IntN(10) == 0 {
		c.clock.Add(storage.TombstoneTTL.Milliseconds() / 3)
	}
}

// tell tells the drive epochs, as the system would after a start.
func (c *crasher) tell(d *Drive) {
	for pg, e := range c.model.epochs {
		// A raise that was acknowledged is remembered, whatever a stale system tells.
		if e.acked > 1 {
			ok(c.t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{pg: e.acked - 1}))
			h := header(storage.ShardID{PG: pg, Stripe: 500})
			h.Epoch = e.acked - 1
			if err := d.Append(ctx, h, []byte("x"), nil); !errs.Is(err, errs.StaleEpoch) {
				c.fatalf("epoch %d of group %d was acknowledged, an append with one less: %v", e.acked, pg, err)
			}
		}
	}
	epochs := map[storage.PGID]storage.Epoch{}
	for pg := range storage.PGID(3) {
		e := c.model.epochs[pg]
		e.tried = max(e.tried, 1)
		epochs[pg] = e.tried
		e.acked = e.tried
		c.model.epochs[pg] = e
	}
	ok(c.t, d.SetEpochs(ctx, epochs))
}

// op does one random operation.
func (c *crasher) op(d *Drive, rng *rand.Rand) {
	switch n := rng.IntN(20); {
	case n < 12:
		c.append(d, rng)
	case n < 18:
		c.remove(d, rng)
	case n < 19:
		c.raise(d, rng)
	default:
		c.read(d, rng)
	}
}

func (c *crasher) append(d *Drive, rng *rand.Rand) {
	m := c.model
	m.mu.Lock()
	if rng.IntN(4) > 0 || c.next == 0 {
		c.next++
	}
	// Mostly a new chunk, sometimes another stripe of a late one, or the same again. Births are out of order a little.
	n := c.next - uint64(rng.IntN(3))%c.next
	id := storage.ShardID{PG: storage.PGID(n % 3), Chunk: storage.NewChunkID(int64(n/5), n), Stripe: uint16(rng.IntN(3)), Index: 1}
	if rng.IntN(30) == 0 {
		id.Index = 2
	}
	s := m.shards[id]
	if s == nil {
		s = &modelShard{bytes: 1 + rng.IntN(6000)}
		m.shards[id] = s
	}
	gone := m.removed[chunkOf(id)]
	goneAcked := gone != nil && gone.acked && c.young(gone)
	gonePast := gone != nil && !c.young(gone)
	e := m.epochs[id.PG]
	m.mu.Unlock()
	if gonePast {
		return // nobody appends to what was removed so long ago
	}
	h := header(id)
	h.Epoch = e.acked
	err := d.Append(ctx, h, payload(id, s.bytes), nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err == nil && goneAcked:
		c.t.Errorf("appended %v of a removed chunk", id)
	case err == nil:
		s.acked = true
	case errs.Is(err, errs.Gone) && m.removed[chunkOf(id)] != nil:
	case errs.Is(err, errs.StaleEpoch) && m.epochs[id.PG].tried > e.acked:
	default:
		c.t.Errorf("append %v: %v", id, err)
	}
}

// young reports whether the drive must remember the removal still.
func (c *crasher) young(r *modelRemoval) bool {
	return time.UnixMilli(c.clock.Load()).Sub(r.at) < storage.TombstoneTTL
}

func (c *crasher) remove(d *Drive, rng *rand.Rand) {
	m := c.model
	m.mu.Lock()
	var chunks []storage.ChunkRemoval
	for id := range m.shards {
		if len(chunks) > rng.IntN(4) {
			break
		}
		chunks = append(chunks, chunkOf(id))
	}
	began := map[storage.ChunkRemoval]*modelRemoval{}
	for _, k := range chunks {
		if m.removed[k] == nil {
			m.removed[k] = &modelRemoval{at: time.UnixMilli(c.clock.Load())}
		}
		began[k] = m.removed[k]
	}
	m.mu.Unlock()
	err := d.Remove(ctx, chunks)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		c.t.Errorf("remove: %v", err)
	}
	for _, r := range began {
		r.acked = true
	}
}

func (c *crasher) raise(d *Drive, rng *rand.Rand) {
	m := c.model
	m.mu.Lock()
	pg := storage.PGID(rng.IntN(3))
	e := m.epochs[pg]
	e.tried++
	to := e.tried
	m.epochs[pg] = e
	m.mu.Unlock()
	if err := d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{pg: to}); err != nil {
		c.t.Errorf("set epochs: %v", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e = m.epochs[pg]
	e.acked = max(e.acked, to)
	m.epochs[pg] = e
}

func (c *crasher) read(d *Drive, rng *rand.Rand) {
	c.model.mu.Lock()
	var id storage.ShardID
	var s modelShard
	for k, v := range c.model.shards {
		id, s = k, *v
		break
	}
	acked := s.acked
	removing := c.model.removed[chunkOf(id)] != nil
	c.model.mu.Unlock()
	if s.bytes == 0 {
		return
	}
	off := rng.IntN(s.bytes)
	p, err := read(d, id, off, s.bytes-off)
	c.model.mu.Lock()
	defer c.model.mu.Unlock()
	removing = removing || c.model.removed[chunkOf(id)] != nil
	switch {
	case err == nil && bytes.Equal(p, payload(id, s.bytes)[off:]):
	case errs.Is(err, errs.Gone) && removing:
	case errs.Is(err, errs.NotFound) && (!acked || removing):
	default:
		c.t.Errorf("read %v: %v", id, err)
	}
}

// check compares a drive just opened with the model, and makes the model certain.
func (c *crasher) check(d *Drive) {
	live := 0
	for id, s := range c.model.shards {
		gone := c.model.removed[chunkOf(id)]
		p, err := read(d, id, 0, s.bytes)
		switch {
		case err == nil && !bytes.Equal(p, payload(id, s.bytes)):
			c.fatalf("%v: wrong bytes", id)
		case err == nil && gone != nil && gone.acked:
			c.fatalf("%v came back after its removal", id)
		case err == nil:
			s.acked = true
			live++
		case errs.Is(err, errs.Gone) && gone != nil:
			gone.acked = true
		case errs.Is(err, errs.NotFound) && gone != nil && (!gone.acked || !c.young(gone)):
			delete(c.model.shards, id) // never written, or forgotten
			if !s.acked {
				continue
			}
			if c.young(gone) {
				c.fatalf("%v, acknowledged and perhaps removed, is not found", id)
			}
		case errs.Is(err, errs.NotFound) && !s.acked:
			delete(c.model.shards, id)
		default:
			c.fatalf("%v, acknowledged %v, removed %+v: %v", id, s.acked, gone, err)
		}
	}
	// A removal that nobody was told of has happened for all shards of the chunk or for none.
	for k, r := range c.model.removed {
		if r.acked {
			if c.young(r) {
				id := storage.ShardID{PG: k.PG, Chunk: k.Chunk, Stripe: 1, Index: 1}
				if _, err := read(d, id, 0, 1); !errs.Is(err, errs.Gone) {
					c.fatalf("%v: removed, but %v", id, err)
				}
			}
			continue
		}
		if _, err := read(d, storage.ShardID{PG: k.PG, Chunk: k.Chunk, Stripe: 999}, 0, 1); errs.Is(err, errs.Gone) {
			r.acked = true
		} else {
			delete(c.model.removed, k)
		}
	}
	if c.crashes%5 == 0 {
		c.scan(d, live)
	}
}

// audit compares the extents' accounts with the rows of the index.
func audit(d *Drive) error {
	return d.keeper.job(func() error {
		type account struct{ bytes, frames int64 }
		rows := map[uint32]account{}
		err := d.index.each([]byte{rowShard}, rowEnd(rowShard), func(_, v []byte) (bool, error) {
			l, _, err := parseShardRow(v)
			a := rows[l.extent]
			rows[l.extent] = account{a.bytes + l.frameBytes(), a.frames + 1}
			return true, err
		})
		for _, e := range d.extents.all() {
			if got := (account{e.live.Load(), e.liveFrames.Load()}); got != rows[e.number] {
				err = errors.Join(err, fmt.Errorf("extent %d: accounts %+v, rows %+v", e.number, got, rows[e.number]))
			}
			delete(rows, e.number)
		}
		if len(rows) > 0 {
			err = errors.Join(err, fmt.Errorf("rows of unknown extents: %+v", rows))
		}
		return err
	})
}

// scan checks that the extents hold the live shards, that the index agrees, and that nothing is reported as damaged.
func (c *crasher) scan(d *Drive, live int) {
	c.scanned++
	seen := map[storage.ShardID]bool{}
	ok(c.t, d.Scan(ctx, func(f FrameInfo) error {
		if f.Err != nil && f.Payload == 0 && c.rebuilt > 0 {
			return nil // a hole half made when the crash came is known for one only to the index
		}
		if f.Err != nil || !f.Indexed {
			c.fatalf("scan: %+v", f)
		}
		if f.Header.Owner != header(f.Header.ID).Owner {
			c.fatalf("scan: the owner is %+v", f.Header.Owner)
		}
		seen[f.Header.ID] = true
		return nil
	}))
	var stats Stats
	ok(c.t, d.keeper.job(func() error { stats = d.Stats(); return nil })) // not in the midst of a move
	if len(seen) != live || stats.Shards != int64(live) {
		c.fatalf("scan found %d shards, stats tell %d, the model has %d", len(seen), stats.Shards, live)
	}
	ok(c.t, d.CrossCheck(ctx, func(m Mismatch) error {
		if m.ID == (storage.ShardID{}) && c.rebuilt > 0 {
			return nil
		}
		c.fatalf("cross-check: %+v", m)
		return nil
	}))
	bad, err := d.Bad()
	ok(c.t, err)
	for _, b := range bad {
		if !b.Tail && c.rebuilt == 0 {
			c.fatalf("damage where nothing was damaged: %+v", b)
		}
	}
}

func TestCrashes(t *testing.T) {
	seed := seed.Of(t)
	end := time.Now().Add(time.Duration(*crashSeconds * float64(time.Second)))
	total := 0
	cache := pebble.NewCache(1 << 20)
	defer cache.Unref()
	for s := seed; time.Now().Before(end); s++ {
		c := &crasher{t: t, rng: rand.New(rand.NewPCG(s, 2)), fs: newMem(t), model: newModel(), cache: cache}
		c.clock.Store(1_700_000_000_000)
		for range 20 {
			c.round()
			if t.Failed() || time.Now().After(end) {
				break
			}
		}
		total += c.crashes
		if t.Failed() {
			t.Fatalf("seed %d", s)
		}
	}
	t.Logf("%d crashes", total)
}
