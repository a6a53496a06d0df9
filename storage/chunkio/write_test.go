package chunkio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
	"cairn/test/seed"
)

// A drive that fails, is full, or is not there costs nobody a write.
func TestWritesRouteAroundTrouble(t *testing.T) {
	for name, fail := range map[string]func(*testCluster, *fakeDrive){
		"failed": func(_ *testCluster, d *fakeDrive) { d.failed = errs.New(errs.DriveFailed, "test", "", "") },
		"full":   func(_ *testCluster, d *fakeDrive) { d.failed = errs.New(errs.DriveFull, "test", "", "") },
		"gone":   func(c *testCluster, d *fakeDrive) { c.gone.Store(d.id, true) },
		"down":   func(c *testCluster, d *fakeDrive) { c.recordDown(d.id) },
	} {
		for _, async := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s async=%v", name, async), func(t *testing.T) {
				var opts []clusterOption
				if async {
					opts = append(opts, withAsync)
				}
				c := newCluster(t, []int{2, 2, 2}, standard, opts...)
				rng := rand.New(rand.NewPCG(1, 1))
				victim := c.drives[c.order[2].ID]
				fail(c, victim)
				for i := range 30 {
					data := randomBytes(rng, []int{100, 5000, 300_000, 3 << 20}[i%4])
					refs := c.mustWrite(data)
					c.checkPromise(refs)
					c.mustRead(refs, data, 0, int64(len(data)))
					if small := len(data) < storage.ReplicateBelow; small && i > 3 && refs[0].Missing != 0 {
						t.Errorf("write %d has shards missing, though there are groups without the drive", i)
					} else if !small && bits.OnesCount64(refs[0].Missing) != 1 {
						t.Errorf("write %d in the only set of drives misses shards %b", i, refs[0].Missing)
					}
				}
				c.idle()
			})
		}
	}
}

// checkPromise compares what a write claims with what the drives have, and
// whether it is enough.
func (c *testCluster) checkPromise(refs []*metapb.ChunkRef) {
	c.t.Helper()
	top := c.topology.Load()
	for _, ref := range refs {
		pg := top.PGs[storage.PGID(ref.Pg)]
		if !placement.Durable(top, &pg, ref.Missing) {
			c.t.Fatalf("acknowledged without quorum: missing %b of %d+%d", ref.Missing, ref.K, ref.M)
		}
		stripes := (int(ref.Length) + int(ref.StripeBytes) - 1) / int(ref.StripeBytes)
		for i := range int(ref.K + ref.M) {
			for s := range stripes {
				d := c.drives[pg.Drives[i]]
				d.mu.Lock()
				_, ok := d.shards[shardOf(ref, s, i)]
				d.mu.Unlock()
				if !ok && ref.Missing&(1<<i) == 0 {
					c.t.Fatalf("shard %d of stripe %d is not where the reference says", i, s)
				}
			}
		}
	}
}

func TestWritesWithoutQuorumFail(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	for _, d := range c.order[:2] { // a whole zone, not recorded as down
		c.drives[d.ID].failed = errs.New(errs.DriveFailed, "test", "", "")
	}
	data := make([]byte, 1<<20)
	if _, err := c.write(context.Background(), data, storage.Standard); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("got %v", err)
	}
	c.mustWrite(data[:100]) // copies: two zones are enough
	c.recordDown(c.order[0].ID, c.order[1].ID)
	c.checkPromise(c.mustWrite(data))
	for _, d := range c.order[2:] {
		c.gone.Store(d.ID, true)
	}
	if _, err := c.write(context.Background(), data[:100], storage.Standard); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("got %v", err)
	}
	if _, err := c.write(context.Background(), data[:100], "NO_CLASS"); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("got %v", err)
	}
	c.idle()
}

// Classes without groups of their own use STANDARD's, which are as safe.
func TestClassesShareGroups(t *testing.T) {
	c := newCluster(t, []int{1, 1, 1}, []storage.StorageClass{storage.Standard, storage.StandardIA})
	for class, want := range map[storage.StorageClass]storage.StorageClass{
		storage.IntelligentTiering: storage.Standard, storage.GlacierIR: storage.StandardIA, storage.Glacier: storage.Standard, storage.OnezoneIA: storage.Standard,
	} {
		refs, err := c.write(context.Background(), make([]byte, 200_000), class)
		if err != nil {
			t.Fatalf("%s: %v", class, err)
		}
		if pg := c.group(refs[0]); pg.Class != want {
			t.Errorf("%s is in a group of %s", class, pg.Class)
		}
	}
}

type errBody struct {
	io.Reader
	err error
}

func (b errBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

func TestBodiesThatAreWrong(t *testing.T) {
	wrong := errs.New(errs.BadDigest, "body", "", "")
	for _, size := range []int64{0, 10, 200_000, 5 << 20} {
		for name, tc := range map[string]struct {
			body io.Reader
			want errs.Kind
		}{
			"short":         {bytes.NewReader(make([]byte, max(size-1, 0))), errs.IncompleteBody},
			"long":          {bytes.NewReader(make([]byte, size+1)), errs.EntityTooLarge},
			"wrong at end":  {errBody{bytes.NewReader(make([]byte, size)), wrong}, errs.BadDigest},
			"fails halfway": {errBody{bytes.NewReader(make([]byte, size/2)), wrong}, errs.BadDigest},
		} {
			if size == 0 && name == "short" {
				continue
			}
			c := newCluster(t, []int{2, 2, 2}, standard)
			refs, err := c.plane.Write(context.Background(), WriteRequest{Owner: testOwner, Class: storage.Standard, Size: size, Body: tc.body, BirthMS: func() int64 { return 1 }})
			if refs != nil || !errs.Is(err, tc.want) {
				t.Errorf("%s body of %d bytes: got %v, %v", name, size, refs, err)
			}
			c.idle()
			if size <= storage.StripeBytes {
				for _, d := range c.drives {
					if d.appends.Load() > 0 {
						t.Fatalf("%s body of %d bytes reached a drive", name, size)
					}
				}
			}
		}
	}
	c := newCluster(t, []int{1}, standard)
	if _, err := c.plane.Write(context.Background(), WriteRequest{Size: 1 << 60}); !errs.Is(err, errs.EntityTooLarge) {
		t.Errorf("got %v", err)
	}
}

func TestTeeSeesEveryByteInOrder(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	data := randomBytes(rand.New(rand.NewPCG(1, 9)), 3<<20+5)
	var seen bytes.Buffer
	_, err := c.plane.Write(context.Background(), WriteRequest{Owner: testOwner, Class: storage.Standard, Size: int64(len(data)), Body: bytes.NewReader(data),
		BirthMS: func() int64 { return 1 }, Tee: func(p []byte) { seen.Write(p) }})
	if err != nil || !bytes.Equal(seen.Bytes(), data) {
		t.Fatalf("%v, %d bytes seen", err, seen.Len())
	}
}

// The first write that meets a black-holed drive waits the grace out; the next
// ones don't; the drive gets no more than its share of the memory; and when it comes
// back all is as before.
func TestBlackHoledDrive(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, []int{2, 2, 2}, standard, withClock, withConfig(func(cfg *Config) { cfg.BufferBytesMax = 64 << 20 }))
			hang := make(chan struct{})
			victim := c.drives[c.order[3].ID]
			victim.hang, victim.deaf = hang, deaf
			data := randomBytes(rand.New(rand.NewPCG(2, 2)), 8<<20)
			start := time.Now()
			refs := c.mustWrite(data)
			c.checkPromise(refs)
			if took := time.Since(start); took < 200*time.Millisecond || took > 500*time.Millisecond {
				t.Errorf("the first write took %v", took)
			}
			start = time.Now()
			for range 20 {
				c.checkPromise(c.mustWrite(data))
			}
			if took := time.Since(start); took > 10*time.Millisecond {
				t.Errorf("20 more writes took %v", took)
			}
			// What it may hold, and a window of stripes sent before it was known to lag.
			if held, may := c.plane.BytesInUse(), int64(4<<20+windowStripes*9<<18); held == 0 || held > may {
				t.Errorf("the drive holds %d bytes", held)
			}
			time.Sleep(time.Minute) // the appends' context ends; a drive that hangs does not care
			close(hang)
			victim.set(func(d *fakeDrive) { d.hang = nil })
			time.Sleep(time.Minute)
			synctest.Wait()
			if held, lag := c.plane.BytesInUse(), c.plane.drive(victim.id).lag.Load(); held != 0 || lag != 0 {
				t.Errorf("%d bytes held, lag %d", held, lag)
			}
			if refs := c.mustWrite(data); refs[0].Missing != 0 {
				t.Errorf("shards %b missing after the drive came back", refs[0].Missing)
			}
		})
	}
}

// Drives that hang so that no quorum is possible fail the write after
// ShardTimeout, or let it go on as soon as the outage is recorded.
func TestHungZone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, []int{2, 2, 2}, standard, withClock)
		hang := make(chan struct{})
		for _, d := range c.order[:2] {
			c.drives[d.ID].hang = hang
		}
		start := time.Now()
		_, err := c.write(context.Background(), make([]byte, 1<<20), storage.Standard)
		if took := time.Since(start); !errs.Is(err, errs.Unavailable) || took < 5*time.Second || took > 6*time.Second {
			t.Errorf("got %v after %v", err, took)
		}
		close(hang)
		synctest.Wait()
		again := make(chan struct{})
		for _, d := range c.order[:2] {
			c.drives[d.ID].set(func(d *fakeDrive) { d.hang = again })
		}
		go func() {
			time.Sleep(time.Second)
			c.recordDown(c.order[0].ID, c.order[1].ID)
		}()
		time.Sleep(2 * shunFor) // until then the write would not even try
		c.change(func(top *cluster.Topology) {
			for id, d := range top.Drives {
				d.State = cluster.DriveActive
				top.Drives[id] = d
			}
		})
		go func() {
			time.Sleep(time.Second)
			c.recordDown(c.order[0].ID, c.order[1].ID)
		}()
		start = time.Now()
		refs, err := c.write(context.Background(), make([]byte, 1<<20), storage.Standard)
		if took := time.Since(start); err != nil || took < time.Second || took > 2*time.Second {
			t.Errorf("got %v after %v", err, took)
		} else {
			c.checkPromise(refs)
		}
		close(again)
		time.Sleep(time.Minute)
		c.idle()
	})
}

// A slow drive is waited for, so that its shard needs no repair.
func TestSlowDriveIsWaitedFor(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, []int{1, 1, 1}, standard, withClock)
		c.drives[c.order[1].ID].onAppend = 150 * time.Millisecond
		start := time.Now()
		refs := c.mustWrite(make([]byte, 1000))
		if took := time.Since(start); refs[0].Missing != 0 || took != 150*time.Millisecond {
			t.Errorf("missing %b after %v", refs[0].Missing, took)
		}
	})
}

// A drive that fails in the middle of a chunk, so that its group loses its quorum: the
// chunk ends there and the rest goes on in another group.
func TestChunkMovesToAnotherGroup(t *testing.T) {
	for at := range 6 {
		// Two zones: 1+1 copies, both needed. Nine groups of different drives.
		c := newCluster(t, []int{3, 3}, []storage.StorageClass{storage.StandardIA})
		for _, d := range c.drives {
			d.appendTo = func(h storage.ShardHeader) error {
				if int(h.ID.Stripe) == at && h.ID.Index == 1 {
					return errs.New(errs.DriveFull, "test", "", "")
				}
				return nil
			}
		}
		var once sync.Once
		for _, d := range c.drives { // only the first chunk meets trouble
			fail := d.appendTo
			d.appendTo = func(h storage.ShardHeader) (err error) {
				if err = fail(h); err != nil {
					hit := false
					once.Do(func() { hit = true })
					if !hit {
						err = nil
					}
				}
				return err
			}
		}
		data := randomBytes(rand.New(rand.NewPCG(uint64(at), 2)), 5<<20+100)
		refs, err := c.write(context.Background(), data, storage.StandardIA)
		if err != nil {
			t.Fatalf("fails at stripe %d: %v", at, err)
		}
		var total, want uint64
		for _, ref := range refs {
			total += ref.Length
		}
		if want = uint64(len(data)); total != want {
			t.Fatalf("fails at stripe %d: %d of %d bytes", at, total, want)
		}
		if refs[0].Missing == 0 && (at == 0) == (len(refs) == 2) {
			t.Errorf("fails at stripe %d: %d chunks", at, len(refs))
		}
		c.checkPromise(refs)
		c.mustRead(refs, data, 0, int64(len(data)))
		c.idle()
	}
}

// A group whose drives changed under the writer: the shard goes to the new place with the new epoch.
func TestStaleEpoch(t *testing.T) {
	for _, async := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) { testStaleEpoch(t, async) })
	}
}

func testStaleEpoch(t *testing.T, async bool) {
	opts := []clusterOption{withClock}
	if async {
		opts = append(opts, withAsync)
	}
	c := newCluster(t, []int{1, 1, 1}, standard, opts...)
	data := randomBytes(rand.New(rand.NewPCG(2, 2)), 200_000)
	raise := func(tell bool) {
		all := map[storage.PGID]storage.Epoch{}
		publish := func(top *cluster.Topology) {
			for id, pg := range top.PGs {
				pg.Epoch++
				all[id] = pg.Epoch
				top.PGs[id] = pg
			}
		}
		if tell {
			c.change(publish)
		} else {
			publish(&cluster.Topology{PGs: map[storage.PGID]cluster.PG{}})
			for id, pg := range c.topology.Load().PGs {
				all[id] = pg.Epoch + 1
			}
		}
		for _, d := range c.drives {
			if err := d.SetEpochs(context.Background(), all); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The topology arrives while the append is under way.
	for _, d := range c.drives {
		var once sync.Once
		d.appendTo = func(h storage.ShardHeader) (err error) {
			once.Do(func() { err = errs.New(errs.StaleEpoch, "test", "", "") })
			return err
		}
	}
	c.plane.view()
	body := &hookReader{Reader: bytes.NewReader(data), hook: func() { raise(true) }}
	refs, err := c.plane.Write(context.Background(), WriteRequest{Owner: testOwner, Class: storage.Standard, Size: int64(len(data)), Body: body, BirthMS: func() int64 { return 1 }})
	if err != nil || refs[0].Missing != 0 || refs[0].Epoch != 1 {
		t.Fatalf("async=%v: %v, %v", async, refs, err)
	}
	c.mustRead(refs, data, 0, int64(len(data)))
	// The topology does not arrive: no drive takes the data, and nothing hangs.
	raise(false)
	if _, err := c.write(context.Background(), data, storage.Standard); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("async=%v: %v", async, err)
	}
	c.idle()
}

// hookReader calls hook at the first Read.
type hookReader struct {
	io.Reader
	hook func()
}

func (h *hookReader) Read(p []byte) (int, error) {
	if h.hook != nil {
		h.hook()
		h.hook = nil
	}
	return h.Reader.Read(p)
}

// A drive replaced between the append and the answer does not count.
func TestShardsOnReplacedDrivesAreMissing(t *testing.T) {
	c := newCluster(t, []int{1, 1, 1}, standard)
	fresh := storage.DriveID{'x'}
	body := errBody{bytes.NewReader(make([]byte, 100)), io.EOF}
	hook := func() {
		c.change(func(top *cluster.Topology) {
			top.Drives[fresh] = cluster.Drive{ID: fresh, Zone: "a", State: cluster.DriveActive}
			for id, pg := range top.PGs {
				for i := range pg.Drives {
					if pg.Drives[i] == c.order[0].ID {
						pg.Drives[i] = fresh
						pg.Epoch++
					}
				}
				top.PGs[id] = pg
			}
		})
	}
	refs, err := c.plane.Write(context.Background(), WriteRequest{Owner: testOwner, Class: storage.Standard, Size: 100, Body: &hookReader{body, hook}, BirthMS: func() int64 { return 1 }})
	if err != nil {
		t.Fatal(err)
	}
	pg := c.group(refs[0])
	for i, id := range pg.Drives {
		if (id == fresh) != (refs[0].Missing&(1<<i) != 0) {
			t.Fatalf("missing %b on %v", refs[0].Missing, pg.Drives)
		}
	}
}

func TestCancelledWritesLetGo(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	hang := make(chan struct{})
	for _, d := range c.drives {
		d.hang = hang
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	go func() {
		time.Sleep(10 * time.Millisecond)
		cancel(nil)
	}()
	if _, err := c.write(ctx, make([]byte, 4<<20), storage.Standard); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, err := c.write(ctx, make([]byte, 100), storage.Standard); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if c.plane.BytesInUse() == 0 {
		t.Fatal("the drives hold no buffers: the test tests nothing")
	}
	close(hang)
	c.idle()
}

// Writers and readers beyond the memory wait for each other, and the ones that
// wait too long are told to come back.
func TestMemoryIsBounded(t *testing.T) {
	const limit = 16 << 20
	c := newCluster(t, []int{2, 2, 2}, standard, withConfig(func(cfg *Config) { cfg.BufferBytesMax = limit }))
	for _, d := range c.drives {
		d.onAppend = time.Millisecond
	}
	data := randomBytes(rand.New(rand.NewPCG(4, 4)), 3<<20)
	stop := make(chan struct{})
	var most int64
	var wg, watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				most = max(most, c.plane.BytesInUse())
				time.Sleep(50 * time.Microsecond)
			}
		}
	})
	for range 12 {
		wg.Go(func() {
			refs := c.mustWrite(data)
			c.mustRead(refs, data, 0, int64(len(data)))
		})
	}
	wg.Wait()
	close(stop)
	watch.Wait()
	c.idle()
	if most > limit {
		t.Errorf("%d bytes of buffers in use at a time, %d allowed", most, limit)
	}
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, []int{1, 1, 1}, standard, withClock, withConfig(func(cfg *Config) { cfg.BufferBytesMax = 2 << 20 }))
		blocked := make(chan struct{})
		go func() {
			_, _ = c.plane.Write(context.Background(), WriteRequest{Owner: testOwner, Class: storage.Standard, Size: 1 << 20, BirthMS: func() int64 { return 1 },
				Body: &hookReader{bytes.NewReader(make([]byte, 1<<20)), func() { <-blocked }}})
		}()
		synctest.Wait()
		start := time.Now()
		_, err := c.write(context.Background(), make([]byte, 1000), storage.Standard)
		if took := time.Since(start); !errs.Is(err, errs.Busy) || took != 5*time.Second {
			t.Errorf("got %v after %v", err, took)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := c.write(ctx, make([]byte, 1000), storage.Standard); !errs.Is(err, errs.Busy) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		close(blocked)
		synctest.Wait()
		c.mustWrite(make([]byte, 1000))
		if n := c.plane.BytesInUse(); n != 0 {
			t.Errorf("%d bytes in use", n)
		}
	})
}

// Many writers and readers on drives that fail, lag and recover at random: what
// was acknowledged reads back, nothing leaks.
func TestEverythingAtOnce(t *testing.T) {
	for _, async := range []bool{false, true} {
		opts := []clusterOption{withConfig(func(cfg *Config) {
			cfg.BufferBytesMax, cfg.HedgeAfter, cfg.QuorumGrace, cfg.ShardTimeout = 32<<20, time.Millisecond, time.Millisecond, 50*time.Millisecond
		})}
		if async {
			opts = append(opts, withAsync)
		}
		c := newCluster(t, []int{2, 2, 2}, standard, opts...)
		seed := seed.Of(t)
		stop := make(chan struct{})
		var chaos, work sync.WaitGroup
		chaos.Go(func() { c.trouble(rand.New(rand.NewPCG(seed, 0)), stop) })
		var written, failed int
		var mu sync.Mutex
		for i := range 6 {
			work.Go(func() {
				rng := rand.New(rand.NewPCG(seed, uint64(i+1)))
				for range 10 {
					data := randomBytes(rng, 1+rng.IntN([]int{4096, 200_000, 3 << 20}[rng.IntN(3)]))
					refs, err := c.write(context.Background(), data, storage.Standard)
					mu.Lock()
					if err == nil {
						written++
					} else {
						failed++
					}
					mu.Unlock()
					if err != nil {
						continue
					}
					off := rng.Int64N(int64(len(data)))
					n := 1 + rng.Int64N(int64(len(data))-off)
					got, err := c.read(refs, off, n)
					if !bytes.Equal(got, data[off:off+int64(len(got))]) {
						t.Errorf("wrong bytes (%v)", err)
					}
					if err != nil && !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Busy) {
						t.Errorf("read: %v", err)
					}
				}
			})
		}
		work.Wait()
		close(stop)
		chaos.Wait()
		c.idle()
		t.Logf("%d written, %d refused", written, failed)
		if written == 0 {
			t.Error("nothing was ever written")
		}
		for _, d := range c.drives {
			if pd := c.plane.drive(d.id); pd.lag.Load() != 0 || pd.slowReads.Load() != 0 {
				t.Errorf("drive %s: lag %d, slow reads %d", d.id.Short(), pd.lag.Load(), pd.slowReads.Load())
			}
		}
	}
}

// trouble gives one drive after the other a fault for some milliseconds.
func (c *testCluster) trouble(rng *rand.Rand, stop chan struct{}) {
	for {
		d := c.drives[c.order[rng.IntN(len(c.order))].ID]
		hang := make(chan struct{})
		kind := rng.IntN(5)
		d.set(func(d *fakeDrive) {
			switch kind {
			case 0:
				d.failed = errs.New(errs.DriveFailed, "test", "", "")
			case 1:
				d.hang = hang
			case 2:
				d.hang, d.deaf = hang, true
			case 3:
				d.onAppend, d.onRead = 2*time.Millisecond, 3*time.Millisecond
			case 4:
				d.failed = errs.New(errs.NotFound, "test", "", "")
			}
		})
		time.Sleep(time.Duration(rng.IntN(8)) * time.Millisecond)
		close(hang)
		d.set(func(d *fakeDrive) { d.failed, d.hang, d.deaf, d.onAppend, d.onRead = nil, nil, false, 0, 0 })
		select {
		case <-stop:
			return
		default:
		}
	}
}
