package chunkio

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	disk "cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

// withDrives puts real drives in place of the fakes, on fs under dir.
func (c *testCluster) withDrives(fs vfsx.FS, dir string) map[storage.DriveID]*disk.Drive {
	c.t.Helper()
	drives := map[storage.DriveID]*disk.Drive{}
	epochs := map[storage.PGID]storage.Epoch{}
	for id, pg := range c.topology.Load().PGs {
		epochs[id] = pg.Epoch
	}
	for i, d := range c.order {
		path := fmt.Sprintf("%s/%d", dir, i)
		if err := disk.Format(fs, path, disk.Identity{StoreID: "s", DriveID: d.ID}); err != nil {
			c.t.Fatal(err)
		}
		open, err := disk.Open(disk.Config{FS: fs, Dir: path})
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(func() { _ = open.Close() })
		if err := open.SetEpochs(context.Background(), epochs); err != nil {
			c.t.Fatal(err)
		}
		drives[d.ID] = open
	}
	c.plane.cfg.Store = func(id storage.DriveID) storage.ShardStore {
		if _, gone := c.gone.Load(id); gone {
			return nil
		}
		return drives[id]
	}
	return drives
}

// The plane and the drives understand their contract alike.
func TestOnRealDrives(t *testing.T) {
	c := newCluster(t, []int{2, 2, 2}, standard)
	drives := c.withDrives(vfsx.NewMem(), "/d")
	rng := rand.New(rand.NewPCG(8, 8))
	ctx := context.Background()
	var all []*metapb.ChunkRef
	for _, size := range []int{1, 4096, 100_000, 200_001, 1 << 20, 2<<20 + 5} {
		data := randomBytes(rng, size)
		refs := c.mustWrite(data)
		all = append(all, refs...)
		if refs[0].Missing != 0 {
			t.Fatalf("%d bytes: missing %b", size, refs[0].Missing)
		}
		c.mustRead(refs, data, 0, int64(size))
		lost := c.group(refs[0]).Drives[0]
		c.gone.Store(lost, true)
		c.mustRead(refs, data, 0, int64(size))
		c.mustRead(refs, data, int64(size)/2, int64(size)-int64(size)/2)
		c.gone.Clear()
		if missing, err := c.plane.CheckChunk(ctx, testOwner, refs[0]); missing != 0 || err != nil {
			t.Fatalf("%d bytes: missing %b, %v", size, missing, err)
		}
		if err := c.plane.Rebuild(ctx, testOwner, refs[0], []int{0, 1}); err != nil {
			t.Fatal(err)
		}
	}
	// A write around a gone drive, and its rebuild when it is back.
	back := c.order[1].ID
	c.gone.Store(back, true)
	data := randomBytes(rng, 1<<20)
	refs := c.mustWrite(data)
	c.gone.Clear()
	missing, err := c.plane.CheckChunk(ctx, testOwner, refs[0])
	if err != nil || missing == 0 || missing != refs[0].Missing {
		t.Fatalf("missing %b, the reference says %b, %v", missing, refs[0].Missing, err)
	}
	for i := range 6 {
		if missing&(1<<i) != 0 {
			if err := c.plane.Rebuild(ctx, testOwner, refs[0], []int{i}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if missing, err := c.plane.CheckChunk(ctx, testOwner, refs[0]); missing != 0 || err != nil {
		t.Fatalf("after the rebuild: missing %b, %v", missing, err)
	}
	if done, err := c.plane.Remove(ctx, append(all, refs...)); !done || err != nil {
		t.Fatalf("remove: %v, %v", done, err)
	}
	if _, err := c.read(refs, 0, 10); !errs.Is(err, errs.Gone) {
		t.Errorf("read after removal: %v", err)
	}
	if err := c.plane.Rebuild(ctx, testOwner, refs[0], []int{0}); !errs.Is(err, errs.Gone) {
		t.Errorf("rebuild after removal: %v", err)
	}
	drives[c.order[0].ID].Fail(errs.New(errs.DriveFailed, "test", "", ""))
	data = randomBytes(rng, 300_000)
	c.mustRead(c.mustWrite(data), data, 0, 300_000)
	c.idle()
}

// BenchmarkDrives is the data path down to files. DRIVES_DIR names where they lie (a tmpfs shows the CPU cost).
func BenchmarkDrives(b *testing.B) {
	for _, size := range benchSizes {
		for _, op := range []string{"write and remove", "read"} {
			b.Run(fmt.Sprintf("%s/%dKiB", op, size>>10), func(b *testing.B) {
				dir, err := os.MkdirTemp(os.Getenv("DRIVES_DIR"), "chunkio")
				if err != nil {
					b.Fatal(err)
				}
				defer os.RemoveAll(dir)
				c := newCluster(b, []int{2, 2, 2}, standard)
				c.withDrives(vfsx.OS(), dir)
				data := make([]byte, size)
				refs := c.mustWrite(data)
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					if op != "read" {
						refs = c.mustWrite(data)
						if refs[0].Missing != 0 {
							b.Fatal("shards missing")
						}
						if done, err := c.plane.Remove(context.Background(), refs); !done || err != nil {
							b.Fatal(err)
						}
					} else if err := c.plane.Read(context.Background(), writerFunc(func(p []byte) (int, error) { return len(p), nil }), testOwner, refs, 0, size); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
