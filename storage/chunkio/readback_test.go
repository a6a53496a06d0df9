package chunkio

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

var standard = []storage.StorageClass{storage.Standard}

// Every size at an edge, over every scheme, read in random ranges with every set
// of at most m shards lost in every way a shard can be lost.
func TestEveryLossOfUpToMShards(t *testing.T) {
	const stripe = storage.StripeBytes
	sizes := []int{1, 2, 64, 65, 4096, storage.BlockBytes - 1, storage.BlockBytes + 1, storage.ReplicateBelow - 1, storage.ReplicateBelow,
		3*storage.BlockBytes + 1, stripe - 1, stripe, stripe + 1, 2*stripe + stripe/3}
	for _, counts := range [][]int{{1}, {2}, {3}, {4}, {1, 1}, {2, 2}, {1, 1, 1}, {2, 2, 2}, {3, 3}} {
		t.Run(fmt.Sprint(counts), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, counts, standard)
			const seed = 11
			rng := rand.New(rand.NewPCG(seed, uint64(len(counts))))
			for _, size := range sizes {
				data := randomBytes(rng, size)
				refs := c.mustWrite(data)
				if len(refs) != 1 || refs[0].Missing != 0 || refs[0].Length != uint64(size) {
					t.Fatalf("%d bytes: %v", size, refs)
				}
				c.mustRead(refs, data, 0, int64(size))
				c.loseAndRead(refs[0], data, rng)
			}
			c.idle()
		})
	}
}

func (c *testCluster) loseAndRead(ref *metapb.ChunkRef, data []byte, rng *rand.Rand) {
	n, m, way := int(ref.K+ref.M), int(ref.M), 0
	for lost := uint64(1); lost < 1<<n; lost++ {
		if bits.OnesCount64(lost) > m {
			continue
		}
		way++
		undo := c.lose(ref, lost, way)
		for range 2 {
			off := rng.Int64N(int64(len(data)))
			c.mustRead([]*metapb.ChunkRef{ref}, data, off, 1+rng.Int64N(int64(len(data))-off))
		}
		undo()
		if c.t.Failed() {
			c.t.Fatalf("%d bytes in %d+%d, lost %b", len(data), ref.K, ref.M, lost)
		}
	}
}

// lose takes shards of a chunk away in one of the ways there are.
func (c *testCluster) lose(ref *metapb.ChunkRef, lost uint64, way int) (undo func()) {
	before := c.topology.Load()
	for i := range int(ref.K + ref.M) {
		if lost&(1<<i) == 0 {
			continue
		}
		d := c.holder(ref, i)
		switch (way + i) % 5 {
		case 0:
			d.set(func(d *fakeDrive) { d.failed = errs.New(errs.DriveFailed, "test", "", "") })
		case 1:
			d.set(func(d *fakeDrive) { d.failed = errs.New(errs.NotFound, "test", "", "") })
		case 2:
			for s := range 3 {
				d.set(func(d *fakeDrive) { d.bad[shardOf(ref, s, i)] = true })
			}
		case 3:
			c.gone.Store(d.id, true)
		case 4:
			d.set(func(d *fakeDrive) { d.failed = errs.New(errs.DriveFailed, "test", "", "") })
			c.recordDown(d.id)
		}
	}
	return func() {
		c.topology.Store(before)
		c.gone.Clear()
		for _, d := range c.drives {
			d.set(func(d *fakeDrive) { d.failed = nil; clear(d.bad) })
			c.plane.drive(d.id).shunned.Store(0)
		}
	}
}

// An object over the edge of a chunk, and the reference list of several.
func TestSeveralChunks(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	rng := rand.New(rand.NewPCG(3, 4))
	data := randomBytes(rng, storage.ChunkBytesMax+17)
	refs := c.mustWrite(data)
	if len(refs) != 2 || refs[0].Length != storage.ChunkBytesMax || refs[1].Length != 17 || refs[0].K != 3 || refs[1].K != 1 {
		t.Fatalf("got %v", refs)
	}
	size := int64(len(data))
	c.mustRead(refs, data, 0, size)
	c.mustRead(refs, data, size-17, 17)
	c.mustRead(refs, data, size-20, 20)
	c.mustRead(refs, data, storage.ChunkBytesMax-1, 1)
	c.mustRead(refs, data, size, 0)
	c.recordDown(c.order[0].ID)
	c.gone.Store(c.order[0].ID, true)
	c.mustRead(refs, data, 0, size)
	for _, bad := range [][2]int64{{-1, 1}, {0, size + 1}, {size, 1}, {0, -1}} {
		if _, err := c.read(refs, bad[0], bad[1]); !errs.Is(err, errs.InvalidRange) {
			t.Errorf("%v: got %v", bad, err)
		}
	}
	c.idle()
}

func TestEmptyObject(t *testing.T) {
	c := newCluster(t, []int{3}, standard)
	refs := c.mustWrite(nil)
	if len(refs) != 0 {
		t.Fatalf("got %v", refs)
	}
	c.mustRead(refs, nil, 0, 0)
}

// A small range costs a read of exactly those bytes, and with a lost shard the
// same columns of k others.
func TestSmallRangesStaySmall(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	data := randomBytes(rand.New(rand.NewPCG(5, 6)), storage.StripeBytes)
	refs := c.mustWrite(data)
	total := func() (reads, bytes int64) {
		for _, d := range c.drives {
			reads, bytes = reads+d.reads.Swap(0), bytes+d.readBytes.Swap(0)
		}
		return reads, bytes
	}
	c.mustRead(refs, data, 400_000, 100)
	if reads, bytes := total(); reads != 1 || bytes != 100 {
		t.Errorf("%d reads of %d bytes for 100 bytes", reads, bytes)
	}
	c.gone.Store(c.holder(refs[0], 1).id, true)
	c.mustRead(refs, data, 400_000, 100)
	if reads, bytes := total(); reads != 3 || bytes != 300 {
		t.Errorf("degraded: %d reads of %d bytes for 100 bytes", reads, bytes)
	}
	c.mustRead(refs, data, 0, int64(len(data)))
	if reads, _ := total(); reads != 3 {
		t.Errorf("degraded: %d reads for a stripe of 3+3", reads)
	}
	c.idle()
}

func TestTooFewShards(t *testing.T) {
	for name, tc := range map[string]struct {
		err  errs.Kind
		want errs.Kind
	}{
		"failed drives may come back":         {errs.DriveFailed, errs.Unavailable},
		"all answer that they have it not":    {errs.NotFound, errs.Corrupt},
		"all answer that theirs is bad":       {errs.Corrupt, errs.Corrupt},
		"the chunk was removed":               {errs.Gone, errs.Gone},
		"an error that nobody has classified": {errs.Other, errs.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, []int{2, 2, 2}, standard)
			data := randomBytes(rand.New(rand.NewPCG(7, 8)), 300_000)
			refs := c.mustWrite(data)
			for i := range 4 {
				c.holder(refs[0], i+1).set(func(d *fakeDrive) { d.failed = errs.New(tc.err, "test", "", "") })
			}
			if got, err := c.read(refs, 0, int64(len(data))); !errs.Is(err, tc.want) || len(got) != 0 {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
			c.idle()
		})
	}
}

func TestBadShardsAreReported(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	data := randomBytes(rand.New(rand.NewPCG(7, 8)), 300_000)
	refs := c.mustWrite(data)
	bad := c.holder(refs[0], 2)
	bad.set(func(d *fakeDrive) { d.bad[shardOf(refs[0], 0, 2)] = true })
	c.mustRead(refs, data, 0, int64(len(data)))
	for len(c.plane.reporting) > 0 {
		time.Sleep(time.Millisecond)
	}
	c.bad.Lock()
	if len(c.bad.shards) != 1 || c.bad.shards[0].Index != 2 || c.bad.shards[0].Drive != bad.id || !errs.Is(c.bad.shards[0].Err, errs.Corrupt) {
		t.Errorf("reported %+v", c.bad.shards)
	}
	c.bad.shards = nil
	c.bad.Unlock()
	// A shard known to be missing is no news.
	bad.set(func(d *fakeDrive) { clear(d.shards) })
	refs[0].Missing = 1 << 2
	c.mustRead(refs, data, 0, int64(len(data)))
	c.idle()
	c.bad.Lock()
	defer c.bad.Unlock()
	if len(c.bad.shards) != 0 {
		t.Errorf("reported %+v", c.bad.shards)
	}
}

// While a shard moves to another drive it is read where it was.
func TestMovesUnderWay(t *testing.T) {
	c := newCluster(t, []int{1, 1, 1}, standard)
	data := randomBytes(rand.New(rand.NewPCG(9, 9)), 4096)
	refs := c.mustWrite(data)
	fresh := storage.DriveID{'x'}
	c.drives[fresh] = &fakeDrive{t: t, id: fresh}
	c.change(func(top *cluster.Topology) {
		top.Drives[fresh] = cluster.Drive{ID: fresh, Zone: "a", State: cluster.DriveActive}
		pg := top.PGs[storage.PGID(refs[0].Pg)]
		for i := range 3 { // the first copies are lost, the last one is moving
			if i < 2 {
				c.gone.Store(pg.Drives[i], true)
			}
		}
		pg.Previous[2], pg.Drives[2] = pg.Drives[2], fresh
		pg.Epoch, pg.DirtySince[2] = 2, 1
		top.PGs[pg.ID] = pg
	})
	c.mustRead(refs, data, 0, 4096)
	c.idle()
	c.bad.Lock()
	defer c.bad.Unlock()
	if len(c.bad.shards) != 0 {
		t.Errorf("reported %+v", c.bad.shards)
	}
}

func TestMalformedReferences(t *testing.T) {
	c := newCluster(t, []int{1, 1, 1}, standard)
	good := c.mustWrite(make([]byte, 100))[0]
	for name, f := range map[string]func(*metapb.ChunkRef){
		"id":      func(r *metapb.ChunkRef) { r.Id = r.Id[:15] },
		"stripe":  func(r *metapb.ChunkRef) { r.StripeBytes = 0 },
		"scheme":  func(r *metapb.ChunkRef) { r.K = 0 },
		"group":   func(r *metapb.ChunkRef) { r.Pg = 999 },
		"too big": func(r *metapb.ChunkRef) { r.Length = storage.ChunkBytesMax + 1 },
	} {
		ref := good.CloneVT()
		f(ref)
		if _, err := c.read([]*metapb.ChunkRef{ref}, 0, 10); !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.Unavailable) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	c.idle()
}

// Of equal copies the near one is read, and of shards to decode from the near ones.
func TestNearShardsFirst(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard, withConfig(func(cfg *Config) {
		cfg.Local = func(id storage.DriveID) bool { return id[0] == 'c' }
	}))
	for i := range 20 {
		refs := c.mustWrite(make([]byte, 1000+i))
		c.mustRead(refs, make([]byte, 1000+i), 0, 1000)
	}
	for id, d := range c.drives {
		if far := id[0] != 'c'; far == (d.reads.Load() > 0) {
			t.Errorf("drive %s was read %d times", id.Short(), d.reads.Load())
		}
	}
}

// Without a near copy one of the same zone is read, and one of another zone only if that is gone, too.
func TestNearestZoneFirst(t *testing.T) {
	distance := map[storage.DriveID]int{}
	c := newCluster(t, []int{2, 2, 2}, standard, withConfig(func(cfg *Config) {
		cfg.Distance = func(id storage.DriveID) int { return distance[id] }
	}))
	refs := c.mustWrite(make([]byte, 1000))
	far, zone, here := c.holder(refs[0], 0), c.holder(refs[0], 1), c.holder(refs[0], 2)
	for _, d := range c.drives {
		distance[d.id] = 9
	}
	distance[far.id], distance[zone.id], distance[here.id] = 2, 1, 0
	for _, want := range []*fakeDrive{here, zone, far} {
		for range 5 {
			c.mustRead(refs, make([]byte, 1000), 0, 1000)
		}
		for _, d := range c.drives {
			if n := d.reads.Swap(0); (n > 0) != (d == want) {
				t.Errorf("the drive at distance %d was read %d times when that at %d was the nearest", distance[d.id], n, distance[want.id])
			}
		}
		c.gone.Store(want.id, true)
	}
}

// A drive that fails again and again is asked less and less often, until it answers.
func TestShunnedLongerEachTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := &drive{}
		for _, want := range []time.Duration{1, 2, 4, 8, 8} {
			d.shun()
			d.shun() // by another request that was under way: no further strike
			time.Sleep(want*time.Second - 1)
			if !d.failedLately() {
				t.Fatalf("asked again before %d s", want)
			}
			time.Sleep(1)
			if d.failedLately() {
				t.Fatalf("still shunned after %d s", want)
			}
		}
		d.answered()
		d.shun()
		time.Sleep(time.Second)
		if d.failedLately() {
			t.Fatal("strikes outlived an answer")
		}
	})
}

// A store that grew has groups of its youth: new chunks go only to groups as safe as can be now.
func TestGrownStore(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	c.change(func(top *cluster.Topology) {
		for i, d := range c.order {
			id := storage.PGID(1000 + i)
			top.PGs[id] = cluster.PG{ID: id, Class: storage.Standard, Scheme: storage.Scheme{K: 1}, Epoch: 1, Drives: []storage.DriveID{d.ID}}
		}
	})
	for range 50 {
		for _, size := range []int{10, 1 << 20} {
			if refs := c.mustWrite(make([]byte, size)); refs[0].Pg >= 1000 {
				t.Fatalf("a chunk of %d bytes went into a group without redundancy", size)
			}
		}
	}
	// Until the new groups are made the old ones serve.
	c.change(func(top *cluster.Topology) {
		for id := range top.PGs {
			if id < 1000 {
				delete(top.PGs, id)
			}
		}
	})
	c.mustWrite(make([]byte, 1<<20))
}
