package chunkio

import (
	"context"
	"fmt"
	"io"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
)

// nullDrive takes everything and answers at once: what is measured is the plane.
type nullDrive struct{ storage.ShardStore }

func (nullDrive) Append(_ context.Context, _ storage.ShardHeader, _ []byte, done func()) error {
	done()
	return nil
}

func (nullDrive) ReadAt(context.Context, storage.ShardID, int, []byte) error { return nil }

// nullAsyncDrive is a nullDrive whose answers come from a goroutine of its own, as a drive's writer sends them.
type nullAsyncDrive struct {
	nullDrive
	queue chan func(error)
}

func (d nullAsyncDrive) AppendAsync(_ storage.ShardHeader, _ []byte, done func(error)) {
	d.queue <- done
}

type zeroes struct{ left int64 }

func (z *zeroes) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	z.left -= n
	return int(n), nil
}

var benchSizes = []int64{4 << 10, 64 << 10, 1 << 20, 16 << 20}

func benchCluster(b *testing.B, async bool) *testCluster {
	c := newCluster(b, []int{2, 2, 2}, standard)
	stores := map[storage.DriveID]storage.ShardStore{}
	for id := range c.drives {
		stores[id] = nullDrive{}
		if async {
			d := nullAsyncDrive{queue: make(chan func(error), 1024)}
			stores[id] = d
			b.Cleanup(func() { close(d.queue) })
			go func() {
				for done := range d.queue {
					done(nil)
				}
			}()
		}
	}
	c.plane.cfg.Store = func(id storage.DriveID) storage.ShardStore { return stores[id] }
	return c
}

func (c *testCluster) benchWrite(b *testing.B, size int64) []*metapb.ChunkRef {
	refs, err := c.plane.Write(context.Background(), WriteRequest{Owner: testOwner, Class: storage.Standard, Size: size, Body: &zeroes{size}, BirthMS: func() int64 { return 1 }})
	if err != nil {
		b.Fatal(err)
	}
	return refs
}

func BenchmarkWrite(b *testing.B) {
	for _, async := range []bool{false, true} {
		for _, size := range benchSizes {
			b.Run(fmt.Sprintf("async=%v/%dKiB", async, size>>10), func(b *testing.B) {
				c := benchCluster(b, async)
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					c.benchWrite(b, size)
				}
			})
		}
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range benchSizes {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			c := benchCluster(b, false)
			refs := c.benchWrite(b, size)
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.plane.Read(context.Background(), io.Discard, testOwner, refs, 0, size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A read of a stripe whose data shard is lost: decoding included.
func BenchmarkDegradedRead(b *testing.B) {
	for _, size := range benchSizes[1:] {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			c := benchCluster(b, false)
			refs := c.benchWrite(b, size)
			c.recordDown(c.group(refs[0]).Drives[0])
			b.SetBytes(size)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.plane.Read(context.Background(), io.Discard, testOwner, refs, 0, size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
