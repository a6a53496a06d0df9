package chunkio

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

func TestRebuild(t *testing.T) {
	for _, size := range []int{50, 2<<20 + 77} {
		c := newCluster(t, []int{2, 2, 2}, standard)
		data := randomBytes(rand.New(rand.NewPCG(5, 5)), size)
		ref := c.mustWrite(data)[0]
		n := int(ref.K + ref.M)
		before := map[storage.ShardID]string{}
		for i := range n {
			for id, s := range c.holder(ref, i).shards {
				before[id] = string(s.bytes)
			}
		}
		lost := []int{0, n - 1}
		for s := range 3 {
			delete(c.holder(ref, 0).shards, shardOf(ref, s, 0))
			c.holder(ref, n-1).bad[shardOf(ref, s, n-1)] = true
		}
		if missing, err := c.plane.CheckChunk(context.Background(), testOwner, ref); err != nil || missing != 1|1<<(n-1) {
			t.Fatalf("missing %b, %v", missing, err)
		}
		if err := c.plane.Rebuild(context.Background(), testOwner, ref, lost); err != nil {
			t.Fatal(err)
		}
		if missing, err := c.plane.CheckChunk(context.Background(), testOwner, ref); err != nil || missing != 0 {
			t.Fatalf("missing %b, %v", missing, err)
		}
		for id, want := range before {
			s := c.drives[c.group(ref).Drives[id.Index]].shards[id]
			if string(s.bytes) != want || s.header.Owner != testOwner || s.header.Epoch != 1 {
				t.Fatalf("%v is not what it was", id)
			}
		}
		if err := c.plane.Rebuild(context.Background(), testOwner, ref, []int{1}); err != nil {
			t.Errorf("rebuild of a good shard: %v", err)
		}
		c.idle()
	}
}

func TestRebuildRefusals(t *testing.T) {
	c := newCluster(t, []int{1, 1, 1}, standard)
	ref := c.mustWrite(make([]byte, 500_000))[0]
	ctx := context.Background()
	if err := c.plane.Rebuild(ctx, testOwner, ref, []int{3}); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("got %v", err)
	}
	if err := c.plane.Rebuild(ctx, testOwner, ref, []int{0, 1, 2}); !errs.Is(err, errs.Corrupt) {
		t.Errorf("everything lost: got %v", err)
	}
	target := c.holder(ref, 1)
	target.appendTo = func(storage.ShardHeader) error { return errs.New(errs.DriveFull, "test", "", "") }
	if err := c.plane.Rebuild(ctx, testOwner, ref, []int{1}); !errs.Is(err, errs.DriveFull) {
		t.Errorf("got %v", err)
	}
	target.appendTo = nil
	// A drive that acknowledges and has nothing is found out.
	liar := lyingDrive{target}
	store := c.plane.cfg.Store
	c.plane.cfg.Store = func(id storage.DriveID) storage.ShardStore {
		if id == target.id {
			return liar
		}
		return store(id)
	}
	delete(target.shards, shardOf(ref, 0, 1))
	if err := c.plane.Rebuild(ctx, testOwner, ref, []int{1}); !errs.Is(err, errs.NotFound) {
		t.Errorf("lying drive: got %v", err)
	}
	c.plane.cfg.Store = store
	c.recordDown(target.id)
	if err := c.plane.Rebuild(ctx, testOwner, ref, []int{1}); !errs.Is(err, errs.Unavailable) {
		t.Errorf("got %v", err)
	}
	c.idle()
}

type lyingDrive struct{ *fakeDrive }

func (lyingDrive) Append(_ context.Context, _ storage.ShardHeader, _ []byte, done func()) error {
	done()
	return nil
}

// After a drive was replaced, its shards are rebuilt on the new one.
func TestRebuildOntoAReplacement(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	data := randomBytes(rand.New(rand.NewPCG(5, 5)), 300_000)
	ref := c.mustWrite(data)[0]
	old, fresh := c.holder(ref, 2).id, storage.DriveID{'x'}
	c.drives[fresh] = &fakeDrive{t: t, id: fresh, shards: map[storage.ShardID]fakeShard{}}
	delete(c.drives, old)
	c.change(func(top *cluster.Topology) {
		d := top.Drives[old]
		d.State = cluster.DriveRemoved
		top.Drives[old] = d
		d.ID, d.State = fresh, cluster.DriveActive
		top.Drives[fresh] = d
		for id, pg := range top.PGs {
			for i := range pg.Drives {
				if pg.Drives[i] == old {
					pg.Drives[i], pg.DirtySince[i] = fresh, 1
					pg.Epoch++
				}
			}
			top.PGs[id] = pg
		}
	})
	c.mustRead([]*metapb.ChunkRef{ref}, data, 0, int64(len(data)))
	if err := c.plane.Rebuild(context.Background(), testOwner, ref, []int{2}); err != nil {
		t.Fatal(err)
	}
	s, ok := c.drives[fresh].shards[shardOf(ref, 0, 2)]
	if !ok || s.header.Epoch != 2 {
		t.Fatalf("the new drive has %+v", s.header)
	}
	if missing, err := c.plane.CheckChunk(context.Background(), testOwner, ref); missing != 0 || err != nil {
		t.Fatalf("missing %b, %v", missing, err)
	}
}

func TestCheckChunk(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	for _, size := range []int{100, 300_000} {
		ref := c.mustWrite(randomBytes(rand.New(rand.NewPCG(5, 5)), size))[0]
		n := int(ref.K + ref.M)
		c.gone.Store(c.holder(ref, 1).id, true)
		if missing, err := c.plane.CheckChunk(context.Background(), testOwner, ref); missing != 2 || !errs.Is(err, errs.Unavailable) {
			t.Errorf("a drive that is gone: %b, %v", missing, err)
		}
		c.gone.Clear()
		// Intact by its checksum, but not what belongs there.
		d := c.holder(ref, n-1)
		s := d.shards[shardOf(ref, 0, n-1)]
		s.bytes = bytes.Clone(s.bytes)
		s.bytes[len(s.bytes)/2] ^= 1
		d.shards[shardOf(ref, 0, n-1)] = s
		if _, err := c.plane.CheckChunk(context.Background(), testOwner, ref); !errs.Is(err, errs.Corrupt) {
			t.Errorf("%d bytes: contradicting shards: %v", size, err)
		}
	}
	c.idle()
}

func TestRemove(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	ctx := context.Background()
	refs := append(c.mustWrite(make([]byte, 100)), c.mustWrite(make([]byte, 300_000))...)
	if done, err := c.plane.Remove(ctx, refs); !done || err != nil {
		t.Fatalf("got %v, %v", done, err)
	}
	for _, ref := range refs {
		for i := range int(ref.K + ref.M) {
			if !c.holder(ref, i).removed[storage.ChunkRemoval{PG: storage.PGID(ref.Pg), Chunk: storage.ChunkID(ref.Id)}] {
				t.Errorf("shard %d was not removed", i)
			}
		}
	}
	if _, err := c.read(refs, 0, 10); !errs.Is(err, errs.Gone) {
		t.Errorf("read after removal: %v", err)
	}
	if done, err := c.plane.Remove(ctx, refs); !done || err != nil {
		t.Errorf("again: %v, %v", done, err)
	}
	if done, err := c.plane.Remove(ctx, nil); !done || err != nil {
		t.Errorf("nothing: %v, %v", done, err)
	}
}

func TestRemovalNeedsEveryDrive(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	ctx := context.Background()
	refs := c.mustWrite(make([]byte, 300_000))
	victim := c.holder(refs[0], 4)
	victim.failed = errs.New(errs.DriveFailed, "test", "", "")
	if done, err := c.plane.Remove(ctx, refs); done || err == nil {
		t.Errorf("a failed drive: %v, %v", done, err)
	}
	c.recordDown(victim.id)
	if done, err := c.plane.Remove(ctx, refs); done || err != nil {
		t.Errorf("a drive recorded as down: %v, %v", done, err)
	}
	victim.failed = nil
	if done, err := c.plane.Remove(ctx, refs); !done || err != nil {
		t.Errorf("it is back: %v, %v", done, err)
	}
	c.gone.Store(victim.id, true)
	c.change(func(top *cluster.Topology) {
		d := top.Drives[victim.id]
		d.State = cluster.DriveRemoved
		top.Drives[victim.id] = d
	})
	if done, err := c.plane.Remove(ctx, refs); !done || err != nil {
		t.Errorf("a removed drive owes nothing: %v, %v", done, err)
	}
	// A drive that a shard is moving away from is asked too.
	other := storage.DriveID{'x'}
	c.drives[other] = &fakeDrive{t: t, id: other, removed: map[storage.ChunkRemoval]bool{}}
	c.change(func(top *cluster.Topology) {
		top.Drives[other] = cluster.Drive{ID: other, State: cluster.DriveActive}
		pg := top.PGs[storage.PGID(refs[0].Pg)]
		pg.Previous[0] = other
		top.PGs[pg.ID] = pg
	})
	if done, err := c.plane.Remove(ctx, refs); !done || err != nil || len(c.drives[other].removed) != 1 {
		t.Errorf("previous drive: %v, %v", done, err)
	}
	refs[0].Pg = 999
	if done, err := c.plane.Remove(ctx, refs); done || !errs.Is(err, errs.Unavailable) {
		t.Errorf("unknown group: %v, %v", done, err)
	}
}

func TestRemovalFromAHungDrive(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, []int{1, 1, 1}, standard, withClock)
		refs := c.mustWrite(make([]byte, 100))
		hang := make(chan struct{})
		c.holder(refs[0], 1).hang = hang
		start := time.Now()
		if done, err := c.plane.Remove(context.Background(), refs); done || !errs.Is(err, errs.Timeout) || time.Since(start) != 5*time.Second {
			t.Errorf("got %v, %v", done, err)
		}
		close(hang)
	})
}
