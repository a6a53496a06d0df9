package shardrpc

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"cairn/cluster"
	"cairn/cluster/rpc"
	"cairn/storage"
)

// sink is a drive without a disk.
type sink struct{ storage.ShardStore }

func (sink) Append(_ context.Context, _ storage.ShardHeader, _ []byte, done func()) error {
	done()
	return nil
}

func (sink) ReadAt(_ context.Context, _ storage.ShardID, _ int, p []byte) error { return nil }

func overTCP(b *testing.B) storage.ShardStore {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := grpc.NewServer(rpc.ServerOptions()...)
	Register(s, NewServer(ServerConfig{Drives: func(storage.DriveID) storage.ShardStore { return sink{} }}))
	go func() { _ = s.Serve(lis) }()
	conn, err := grpc.NewClient(lis.Addr().String(), append(rpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		b.Fatal(err)
	}
	c := NewClient(Config{Conn: func(cluster.NodeID) (grpc.ClientConnInterface, error) { return conn, nil }})
	b.Cleanup(func() { c.Close(); conn.Close(); s.Stop() })
	return c.Store("n", storage.DriveID{1})
}

// cpu is the processor time used so far, both ends together.
func cpu() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

func measure(b *testing.B, size int, f func(s storage.ShardStore)) {
	s := overTCP(b)
	f(s)
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				f(s)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(cpu()-before)/1000/float64(b.N), "cpu-us/op")
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 350 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			payload := make([]byte, size)
			h, _ := shard(1, 1)
			measure(b, size, func(s storage.ShardStore) {
				if err := s.Append(context.Background(), h, payload, nil); err != nil {
					b.Error(err)
				}
			})
		})
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 350 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			bufs := sync.Pool{New: func() any { p := make([]byte, size); return &p }}
			h, _ := shard(1, 1)
			measure(b, size, func(s storage.ShardStore) {
				p := bufs.Get().(*[]byte)
				if err := s.ReadAt(context.Background(), h.ID, 0, *p); err != nil {
					b.Error(err)
				}
				bufs.Put(p)
			})
		})
	}
}
