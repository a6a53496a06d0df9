package drive

import (
	"fmt"
	"sync/atomic"
	"testing"

	"cairn/storage"
	"cairn/storage/vfsx"
)

// benchDrive is a drive on the operating system's file system, in $TMPDIR.
func benchDrive(b *testing.B) *Drive {
	dir := b.TempDir() + "/d"
	ok(b, Format(vfsx.OS(), dir, Identity{DriveID: testID}))
	return told(b, Config{FS: vfsx.OS(), Dir: dir})
}

func BenchmarkAppend(b *testing.B) {
	for _, n := range []int{4 << 10, 350 << 10} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			d := benchDrive(b)
			p := payload(shardID(1, 0, 0), n)
			var next atomic.Uint64
			b.SetBytes(int64(n))
			b.ReportAllocs()
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					n := next.Add(1)
					h := header(shardID(1, n, 0))
					h.ID.Chunk = storage.NewChunkID(int64(n/8), n) // born as time passes
					if err := d.Append(ctx, h, p, nil); err != nil {
						b.Error(err)
						return
					}
				}
			})
			s := d.Stats()
			b.ReportMetric(float64(s.Appends)/float64(s.Batches), "appends/sync")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, n := range []int{4 << 10, 350 << 10} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			d := benchDrive(b)
			ids := make([]storage.ShardID, 200)
			for i := range ids {
				ids[i] = shardID(1, uint64(i), 0)
				ok(b, put(d, ids[i], n))
			}
			b.SetBytes(int64(n))
			b.ReportAllocs()
			b.ResetTimer()
			p := make([]byte, n)
			for i := range b.N {
				if err := d.ReadAt(ctx, ids[i%len(ids)], 0, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
