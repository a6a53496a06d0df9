package storagetest

import (
	"context"
	"sync"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/erasure"
	"cairn/storage/errs"
)

// Cluster is some drives, a topology over them, and a simple data plane. Safe for
// concurrent use apart from its exported fields.
type Cluster struct {
	Drives map[storage.DriveID]*Drive
	// Fail is asked before each call of the plane takes effect, FailLate after it did; nil never fails.
	Fail, FailLate func(method string) error

	codecs erasure.Codecs
	mu     sync.Mutex
	topo   *cluster.Topology
	next   uint64
}

// NewCluster makes so many drives in each of so many zones and no placement group.
func NewCluster(zones, perZone int) *Cluster {
	c := &Cluster{Drives: map[storage.DriveID]*Drive{}}
	t := &cluster.Topology{
		Version: 1, Drives: map[storage.DriveID]cluster.Drive{}, PGs: map[storage.PGID]cluster.PG{}, Groups: map[cluster.GroupID]cluster.Group{},
	}
	n := byte(0)
	for range perZone {
		for z := range zones {
			n++
			d := NewDrive(n)
			c.Drives[d.ID] = d
			t.Drives[d.ID] = cluster.Drive{ID: d.ID, Zone: cluster.Zone(string(rune('a' + z))), State: cluster.DriveActive}
		}
	}
	c.topo = t
	return c
}

// Drive is the n-th drive made, from 1; drives follow each other zone by zone.
func (c *Cluster) Drive(n byte) *Drive { return c.Drives[storage.DriveID{n, 0xd}] }

// AddPG makes a placement group over the drives numbered.
func (c *Cluster) AddPG(s storage.Scheme, drives ...byte) storage.PGID {
	id := storage.PGID(0)
	c.Update(func(t *cluster.Topology) {
		id = storage.PGID(len(t.PGs) + 1)
		pg := cluster.PG{ID: id, Scheme: s, Class: storage.Standard, Epoch: 1}
		for _, n := range drives {
			pg.Drives = append(pg.Drives, c.Drive(n).ID)
		}
		pg.Previous = make([]storage.DriveID, len(drives))
		pg.DirtySince = make([]storage.Epoch, len(drives))
		t.PGs[id] = pg
	})
	return id
}

// Topology is the present snapshot.
func (c *Cluster) Topology() *cluster.Topology {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.topo
}

// Update publishes a topology changed by fn; slices of PGs may be changed in place.
func (c *Cluster) Update(fn func(*cluster.Topology)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := &cluster.Topology{
		Version: c.topo.Version + 1, StoreID: c.topo.StoreID, Drives: map[storage.DriveID]cluster.Drive{},
		PGs: map[storage.PGID]cluster.PG{}, Groups: map[cluster.GroupID]cluster.Group{},
	}
	for k, v := range c.topo.Drives {
		t.Drives[k] = v
	}
	for k, v := range c.topo.PGs {
		v.Drives = append([]storage.DriveID(nil), v.Drives...)
		v.Previous = append([]storage.DriveID(nil), v.Previous...)
		v.DirtySince = append([]storage.Epoch(nil), v.DirtySince...)
		t.PGs[k] = v
	}
	for k, v := range c.topo.Groups {
		t.Groups[k] = v
	}
	fn(t)
	c.topo = t
}

// SetState records a drive's state. Going down marks its slots dirty at a new epoch.
func (c *Cluster) SetState(n byte, s cluster.DriveState) {
	id := c.Drive(n).ID
	c.Update(func(t *cluster.Topology) {
		d := t.Drives[id]
		d.State = s
		t.Drives[id] = d
		if s == cluster.DriveActive {
			return
		}
		for k, pg := range t.PGs {
			for i := range pg.Drives {
				if pg.Drives[i] == id {
					pg.Epoch++
					pg.DirtySince[i] = pg.Epoch
				}
			}
			t.PGs[k] = pg
		}
	})
}

// ClearDirty is the controller's.
func (c *Cluster) ClearDirty(_ context.Context, id storage.PGID, index int, epoch storage.Epoch) error {
	if err := c.ask(c.Fail, "clear"); err != nil {
		return err
	}
	conflict := true
	c.Update(func(t *cluster.Topology) {
		if pg := t.PGs[id]; pg.Epoch == epoch {
			pg.DirtySince[index], pg.Previous[index] = 0, storage.DriveID{}
			conflict = false
		}
	})
	if conflict {
		return errs.New(errs.Conflict, "clear", "", "")
	}
	return c.ask(c.FailLate, "clear")
}

// Store finds a drive's shards; nil if the drive is not active.
func (c *Cluster) Store(id storage.DriveID) storage.ShardStore {
	d := c.Drives[id]
	if d == nil || c.Topology().Drives[id].State != cluster.DriveActive {
		return nil
	}
	return d
}

func (c *Cluster) ask(f func(string) error, method string) error {
	if f == nil {
		return nil
	}
	return f(method)
}

// Write stores data as one chunk born at birthMS, all its shards but those in
// skip, and answers its reference with those in missing.
func (c *Cluster) Write(o storage.Owner, pg storage.PGID, birthMS int64, data []byte, skip uint64) *metapb.ChunkRef {
	c.mu.Lock()
	c.next++
	id := storage.NewChunkID(birthMS, c.next)
	p := c.topo.PGs[pg]
	c.mu.Unlock()
	l := storage.Layout{Scheme: p.Scheme, StripeBytes: 1 << 10, Length: int64(len(data))}
	codec, err := c.codecs.For(p.Scheme)
	must(err)
	for stripe := range l.Stripes() {
		n := l.StripeLen(stripe)
		buf := make([]byte, codec.BufferLen(n))
		copy(buf, data[stripe*l.StripeBytes:][:n])
		shards, err := codec.Encode(buf, n, nil)
		must(err)
		for i, payload := range shards {
			if skip&(1<<i) == 0 {
				h := storage.ShardHeader{ID: storage.ShardID{PG: pg, Chunk: id, Stripe: uint16(stripe), Index: uint8(i)}, Epoch: p.Epoch, Owner: o, Layout: l}
				must(c.Drives[p.Drives[i]].Append(context.Background(), h, payload, nil))
			}
		}
	}
	return &metapb.ChunkRef{
		Id: id[:], Pg: uint32(pg), Epoch: uint64(p.Epoch), K: uint32(p.Scheme.K), M: uint32(p.Scheme.M),
		StripeBytes: uint32(l.StripeBytes), Length: uint64(l.Length), Missing: skip,
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// LayoutOf is the layout that a reference describes.
func LayoutOf(ref *metapb.ChunkRef) storage.Layout {
	return storage.Layout{Scheme: storage.Scheme{K: uint8(ref.K), M: uint8(ref.M)}, StripeBytes: int(ref.StripeBytes), Length: int64(ref.Length)}
}

// stripe reads the shards of a stripe that are there and good; gone: the chunk was removed.
func (c *Cluster) stripe(ctx context.Context, pg *cluster.PG, ref *metapb.ChunkRef, stripe int) (shards [][]byte, gone bool) {
	l := LayoutOf(ref)
	shards = make([][]byte, l.Scheme.Shards())
	for i := range shards {
		for _, id := range []storage.DriveID{pg.Drives[i], pg.Previous[i]} {
			st := c.Store(id)
			if st == nil || shards[i] != nil {
				continue
			}
			p := make([]byte, l.ShardLen(stripe))
			err := st.ReadAt(ctx, storage.ShardID{PG: pg.ID, Chunk: storage.ChunkID(ref.Id), Stripe: uint16(stripe), Index: uint8(i)}, 0, p)
			if err == nil {
				shards[i] = p
			}
			gone = gone || errs.Is(err, errs.Gone)
		}
	}
	return shards, gone
}

// Rebuild is chunkio.Plane's.
func (c *Cluster) Rebuild(ctx context.Context, o storage.Owner, ref *metapb.ChunkRef, indexes []int) error {
	if err := c.ask(c.Fail, "rebuild"); err != nil {
		return err
	}
	t := c.Topology()
	pg := t.PGs[storage.PGID(ref.Pg)]
	l := LayoutOf(ref)
	codec, err := c.codecs.For(l.Scheme)
	must(err)
	for stripe := range l.Stripes() {
		shards, gone := c.stripe(ctx, &pg, ref, stripe)
		if gone {
			return errs.New(errs.Gone, "rebuild", "", "")
		}
		var want uint64
		for _, i := range indexes {
			if shards[i] == nil {
				want |= 1 << i
			}
		}
		if want != 0 {
			if err := codec.Reconstruct(shards, want); err != nil {
				return err
			}
		}
		for _, i := range indexes {
			st := c.Store(pg.Drives[i])
			if st == nil {
				return errs.New(errs.DriveFailed, "rebuild", pg.Drives[i].String(), "")
			}
			h := storage.ShardHeader{ID: storage.ShardID{PG: pg.ID, Chunk: storage.ChunkID(ref.Id), Stripe: uint16(stripe), Index: uint8(i)}, Epoch: pg.Epoch, Owner: o, Layout: l}
			if err := st.Append(ctx, h, shards[i], nil); err != nil {
				return err
			}
		}
	}
	return c.ask(c.FailLate, "rebuild")
}

// Remove is chunkio.Plane's.
func (c *Cluster) Remove(ctx context.Context, refs []*metapb.ChunkRef) (bool, error) {
	if err := c.ask(c.Fail, "remove"); err != nil {
		return false, err
	}
	done := true
	t := c.Topology()
	for _, ref := range refs {
		pg := t.PGs[storage.PGID(ref.Pg)]
		for i := range pg.Drives {
			for _, id := range []storage.DriveID{pg.Drives[i], pg.Previous[i]} {
				if id.IsZero() || t.Drives[id].State == cluster.DriveRemoved {
					continue
				}
				st := c.Store(id)
				if st == nil || st.Remove(ctx, []storage.ChunkRemoval{{PG: pg.ID, Chunk: storage.ChunkID(ref.Id)}}) != nil {
					done = false
				}
			}
		}
	}
	return done, c.ask(c.FailLate, "remove")
}

// ReadAll reads the bytes of chunks, with parity where needed.
func (c *Cluster) ReadAll(ctx context.Context, refs []*metapb.ChunkRef) ([]byte, error) {
	t := c.Topology()
	var out []byte
	for _, ref := range refs {
		pg, ok := t.PGs[storage.PGID(ref.Pg)]
		l := LayoutOf(ref)
		codec, err := c.codecs.For(l.Scheme)
		if !ok || err != nil {
			return nil, errs.New(errs.Unavailable, "read", "", "no such placement group or code")
		}
		for stripe := range l.Stripes() {
			shards, _ := c.stripe(ctx, &pg, ref, stripe)
			var want uint64
			for i := range int(l.Scheme.K) {
				if shards[i] == nil {
					want |= 1 << i
				}
			}
			if want != 0 {
				if err := codec.Reconstruct(shards, want); err != nil {
					return nil, err
				}
			}
			var data []byte
			for i := range int(l.Scheme.K) {
				data = append(data, shards[i]...)
			}
			out = append(out, data[:l.StripeLen(stripe)]...)
		}
	}
	return out, nil
}

// Missing are the shards of a chunk that are not there and good on the drive they belong on, as bits over all stripes.
func (c *Cluster) Missing(ref *metapb.ChunkRef) (bits uint64) {
	t := c.Topology()
	pg := t.PGs[storage.PGID(ref.Pg)]
	pg.Previous = make([]storage.DriveID, len(pg.Drives))
	for stripe := range LayoutOf(ref).Stripes() {
		shards, _ := c.stripe(context.Background(), &pg, ref, stripe)
		for i, s := range shards {
			if s == nil {
				bits |= 1 << i
			}
		}
	}
	return bits
}
