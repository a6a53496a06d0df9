package chunkio

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// fakeDrive is a drive in memory with faults to switch on. It also checks that
// its callers keep their side of the contract: a payload must not change before done.
type fakeDrive struct {
	t  testing.TB
	id storage.DriveID

	mu       sync.Mutex
	shards   map[storage.ShardID]fakeShard
	removed  map[storage.ChunkRemoval]bool
	epochs   map[storage.PGID]storage.Epoch
	bad      map[storage.ShardID]bool // corrupt
	failed   error                    // of every call
	appendTo func(storage.ShardHeader) error
	onAppend time.Duration
	onRead   time.Duration
	hang     chan struct{} // calls wait until it is closed, whatever their ctx says
	deaf     bool          // Append returns when ctx ends but keeps the payload until hang is closed

	appends, reads, readBytes atomic.Int64
}

type fakeShard struct {
	header storage.ShardHeader
	bytes  []byte
}

func (d *fakeDrive) state() (err error, onAppend, onRead time.Duration, hang chan struct{}, deaf bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed, d.onAppend, d.onRead, d.hang, d.deaf
}

func (d *fakeDrive) Append(ctx context.Context, h storage.ShardHeader, payload []byte, done func()) error {
	d.appends.Add(1)
	sum := fingerprint(payload)
	err, delay, _, hang, deaf := d.state()
	if hang != nil && deaf {
		go func() {
			<-hang
			d.finish(payload, sum, done)
		}()
		select {
		case <-ctx.Done():
		case <-hang:
		}
		return errs.New(errs.Timeout, "append", "", "")
	}
	defer d.finish(payload, sum, done)
	if hang != nil {
		<-hang
	}
	if delay > 0 {
		time.Sleep(delay)
	}
	if err != nil {
		return err
	}
	return d.put(h, payload)
}

func (d *fakeDrive) finish(payload []byte, sum uint64, done func()) {
	if fingerprint(payload) != sum {
		d.t.Error("a payload changed while its drive had it")
	}
	if done != nil {
		done()
	}
}

func (d *fakeDrive) put(h storage.ShardHeader, payload []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.appendTo != nil {
		if err := d.appendTo(h); err != nil {
			return err
		}
	}
	if h.Epoch < d.epochs[h.ID.PG] {
		return errs.New(errs.StaleEpoch, "append", h.ID.String(), "")
	}
	if d.removed[storage.ChunkRemoval{PG: h.ID.PG, Chunk: h.ID.Chunk}] {
		return errs.New(errs.Gone, "append", h.ID.String(), "")
	}
	if want := h.Layout.ShardLen(int(h.ID.Stripe)); len(payload) != want {
		d.t.Errorf("%s: %d bytes, the layout says %d", h.ID, len(payload), want)
	}
	if old, ok := d.shards[h.ID]; ok && !d.bad[h.ID] && !bytes.Equal(old.bytes, payload) {
		return errs.New(errs.Conflict, "append", h.ID.String(), "")
	}
	delete(d.bad, h.ID)
	d.shards[h.ID] = fakeShard{h, bytes.Clone(payload)}
	return nil
}

func (d *fakeDrive) ReadAt(ctx context.Context, id storage.ShardID, off int, p []byte) error {
	d.reads.Add(1)
	d.readBytes.Add(int64(len(p)))
	err, _, delay, hang, _ := d.state()
	if hang != nil {
		<-hang
	}
	if delay > 0 {
		time.Sleep(delay)
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s, ok := d.shards[id]
	switch {
	case d.removed[storage.ChunkRemoval{PG: id.PG, Chunk: id.Chunk}]:
		return errs.New(errs.Gone, "read", id.String(), "")
	case !ok:
		return errs.New(errs.NotFound, "read", id.String(), "")
	case d.bad[id]:
		for i := range p {
			p[i] = 0xbd // what fails verification may stand in the caller's buffer
		}
		return errs.New(errs.Corrupt, "read", id.String(), "")
	case off+len(p) > len(s.bytes):
		return errs.New(errs.InvalidArgument, "read", id.String(), "past the end")
	}
	copy(p, s.bytes[off:])
	return nil
}

func (d *fakeDrive) Remove(ctx context.Context, chunks []storage.ChunkRemoval) error {
	err, _, _, hang, _ := d.state()
	if hang != nil {
		<-hang
	}
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range chunks {
		d.removed[c] = true
	}
	return nil
}

func (d *fakeDrive) List(context.Context, storage.PGID, storage.ChunkID, func(storage.ShardInfo) bool) error {
	panic("not used")
}

func (d *fakeDrive) SetEpochs(_ context.Context, epochs map[storage.PGID]storage.Epoch) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for pg, e := range epochs {
		d.epochs[pg] = max(d.epochs[pg], e)
	}
	return nil
}

// set changes faults.
func (d *fakeDrive) set(f func(*fakeDrive)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
}

// asyncDrive is a fakeDrive with the optional queue: short, so that Busy happens too.
type asyncDrive struct {
	*fakeDrive
	slots chan struct{}
}

func (d asyncDrive) AppendAsync(h storage.ShardHeader, payload []byte, done func(error)) {
	select {
	case d.slots <- struct{}{}:
		go func() {
			defer func() { <-d.slots }()
			free := make(chan struct{})
			err := d.Append(context.Background(), h, payload, func() { close(free) })
			<-free
			done(err)
		}()
	default:
		done(errs.New(errs.Busy, "append", "", ""))
	}
}

// testCluster is drives in zones, a topology and a plane over them.
type testCluster struct {
	t        testing.TB
	plane    *Plane
	drives   map[storage.DriveID]*fakeDrive
	order    []cluster.Drive
	topology atomic.Pointer[cluster.Topology]
	async    bool
	gone     sync.Map // drives without a store
	bad      struct {
		sync.Mutex
		shards []BadShard
	}
}

type clusterOption func(*testCluster, *Config)

func withAsync(c *testCluster, _ *Config) { c.async = true }

// withClock takes the default times: for tests inside synctest. Without it a busy
// machine may take as long as it wants.
func withClock(_ *testCluster, cfg *Config) {
	cfg.BufferWait, cfg.HedgeAfter, cfg.ShardTimeout, cfg.QuorumGrace = 0, 0, 0, 0
}

func withConfig(f func(*Config)) clusterOption { return func(_ *testCluster, cfg *Config) { f(cfg) } }

// newCluster makes counts[i] drives in zone i and the groups of all classes asked for.
func newCluster(t testing.TB, counts []int, classes []storage.StorageClass, options ...clusterOption) *testCluster {
	c := &testCluster{t: t, drives: map[storage.DriveID]*fakeDrive{}}
	top := &cluster.Topology{Version: 1, Drives: map[storage.DriveID]cluster.Drive{}, PGs: map[storage.PGID]cluster.PG{}}
	for z, n := range counts {
		for i := range n {
			d := cluster.Drive{ID: storage.DriveID{byte('a' + z), byte(i + 1)}, Zone: cluster.Zone(rune('a' + z)), Path: fmt.Sprint(i), State: cluster.DriveActive}
			top.Drives[d.ID] = d
			c.order = append(c.order, d)
			c.drives[d.ID] = &fakeDrive{t: t, id: d.ID, shards: map[storage.ShardID]fakeShard{}, removed: map[storage.ChunkRemoval]bool{},
				epochs: map[storage.PGID]storage.Epoch{}, bad: map[storage.ShardID]bool{}}
		}
	}
	for _, class := range classes {
		for _, small := range []bool{false, true} {
			plan, err := placement.PlanFor(class, c.order, small)
			if err != nil {
				t.Fatal(err)
			}
			for _, pg := range placement.BuildPGs(plan, c.order, 12) {
				pg.ID = storage.PGID(len(top.PGs) + 1)
				top.PGs[pg.ID] = pg
			}
		}
	}
	c.topology.Store(top)
	asyncs := map[storage.DriveID]asyncDrive{}
	for id, d := range c.drives {
		asyncs[id] = asyncDrive{d, make(chan struct{}, 2)}
	}
	cfg := Config{
		BufferWait: time.Minute, HedgeAfter: time.Minute, ShardTimeout: time.Minute, QuorumGrace: time.Minute, QuorumWait: time.Millisecond,
		Topology: c.topology.Load,
		Store: func(id storage.DriveID) storage.ShardStore {
			if _, gone := c.gone.Load(id); gone || c.drives[id] == nil {
				return nil
			}
			if c.async {
				return asyncs[id]
			}
			return c.drives[id]
		},
		OnBadShard: func(b BadShard) {
			c.bad.Lock()
			defer c.bad.Unlock()
			c.bad.shards = append(c.bad.shards, b)
		},
	}
	for _, o := range options {
		o(c, &cfg)
	}
	c.plane = New(cfg)
	return c
}

// change publishes a changed topology.
func (c *testCluster) change(f func(*cluster.Topology)) {
	old := c.topology.Load()
	top := *old
	top.Version++
	top.Drives, top.PGs = map[storage.DriveID]cluster.Drive{}, map[storage.PGID]cluster.PG{}
	for id, d := range old.Drives {
		top.Drives[id] = d
	}
	for id, pg := range old.PGs {
		pg.Drives = append([]storage.DriveID(nil), pg.Drives...)
		pg.Previous = append([]storage.DriveID(nil), pg.Previous...)
		pg.DirtySince = append([]storage.Epoch(nil), pg.DirtySince...)
		top.PGs[id] = pg
	}
	f(&top)
	c.topology.Store(&top)
}

// recordDown marks drives as down, as the system group would.
func (c *testCluster) recordDown(ids ...storage.DriveID) {
	c.change(func(t *cluster.Topology) {
		for _, id := range ids {
			d := t.Drives[id]
			d.State = cluster.DriveDown
			t.Drives[id] = d
			for pgID, pg := range t.PGs {
				for i := range pg.Drives {
					if pg.Drives[i] == id {
						pg.Epoch++
						pg.DirtySince[i] = pg.Epoch
						t.PGs[pgID] = pg
					}
				}
			}
		}
	})
}

var testOwner = storage.Owner{Bucket: 7, Key: "k", Write: storage.WriteID{1}}

func (c *testCluster) write(ctx context.Context, data []byte, class storage.StorageClass) ([]*metapb.ChunkRef, error) {
	return c.plane.Write(ctx, WriteRequest{Owner: testOwner, Class: class, Size: int64(len(data)), Body: bytes.NewReader(data), BirthMS: func() int64 { return 1000 }})
}

func (c *testCluster) mustWrite(data []byte) []*metapb.ChunkRef {
	c.t.Helper()
	refs, err := c.write(context.Background(), data, storage.Standard)
	if err != nil {
		c.t.Fatal(err)
	}
	return refs
}

func (c *testCluster) read(refs []*metapb.ChunkRef, off, n int64) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(int(max(n, 0)))
	err := c.plane.Read(context.Background(), copyWriter{&out}, testOwner, refs, off, n)
	return out.Bytes(), err
}

// copyWriter hides bytes.Buffer's other methods.
type copyWriter struct{ w io.Writer }

func (w copyWriter) Write(p []byte) (int, error) { return w.w.Write(p) }

func (c *testCluster) mustRead(refs []*metapb.ChunkRef, data []byte, off, n int64) {
	c.t.Helper()
	got, err := c.read(refs, off, n)
	if err != nil {
		c.t.Fatalf("read %d+%d of %d: %v", off, n, len(data), err)
	}
	if !bytes.Equal(got, data[off:off+n]) {
		c.t.Fatalf("read %d+%d of %d: wrong bytes", off, n, len(data))
	}
}

// idle waits until all buffers are back.
func (c *testCluster) idle() {
	c.t.Helper()
	for range 2000 {
		if c.plane.BytesInUse() == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
	c.t.Fatalf("%d bytes of buffers never came back", c.plane.BytesInUse())
}

func (c *testCluster) group(ref *metapb.ChunkRef) cluster.PG {
	return c.topology.Load().PGs[storage.PGID(ref.Pg)]
}

// holder is the drive of shard i of a chunk.
func (c *testCluster) holder(ref *metapb.ChunkRef, i int) *fakeDrive {
	return c.drives[c.group(ref).Drives[i]]
}

func shardOf(ref *metapb.ChunkRef, stripe, i int) storage.ShardID {
	return storage.ShardID{PG: storage.PGID(ref.Pg), Chunk: storage.ChunkID(ref.Id), Stripe: uint16(stripe), Index: uint8(i)}
}

func randomBytes(rng *rand.Rand, n int) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

var hashSeed = maphash.MakeSeed()

// fingerprint also shows the race detector that the payload is being read.
func fingerprint(payload []byte) uint64 {
	return maphash.Bytes(hashSeed, payload) + uint64(payload[0]) + uint64(payload[len(payload)-1])
}
