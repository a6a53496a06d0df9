package rpc

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"cairn/cluster/pki"
	"cairn/proto/nodepb"
)

// block is a Payload without copies: what D's shards look like.
type block struct{ data mem.BufferSlice }

func (b *block) MarshalFrame() (mem.BufferSlice, error) { return b.data, nil }

func (b *block) UnmarshalFrame(in mem.BufferSlice) error {
	in.Ref()
	b.data = in
	return nil
}

func benchPair(b *testing.B, secure bool, e *echo) *Client {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var ida, idb func() *pki.Identity
	if secure {
		ca, err := pki.NewCA(storeID, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		a, err := ca.NewNode("a", pki.SealKey{}, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		z, err := ca.NewNode("b", pki.SealKey{}, time.Now())
		if err != nil {
			b.Fatal(err)
		}
		ida, idb = func() *pki.Identity { return a }, func() *pki.Identity { return z }
	}
	s := NewServer(ServerConfig{Self: "b", StoreID: sameStore, Identity: idb})
	e.register(s)
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	c := NewClient(ClientConfig{Self: "a", StoreID: sameStore, Identity: ida, Addresses: addresses(lis.Addr().String())})
	b.Cleanup(func() { c.Close(); s.Stop(b.Context()); <-done })
	return c
}

func cpu() time.Duration {
	var ru syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func BenchmarkUnary(b *testing.B) {
	for _, secure := range []bool{false, true} {
		b.Run(fmt.Sprintf("tls=%v", secure), func(b *testing.B) {
			c := benchPair(b, secure, answering())
			cc, err := c.Conn("b", Meta)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			start := cpu()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := call(b.Context(), cc, &nodepb.Error{Subject: "x"}); err != nil {
						b.Error(err)
					}
				}
			})
			b.ReportMetric(float64((cpu()-start).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

func BenchmarkStream(b *testing.B) {
	e := &echo{stream: func(s grpc.ServerStream) error {
		for {
			m := new(block)
			if err := s.RecvMsg(m); err != nil {
				return err
			}
			m.data.Free()
			if err := s.SendMsg(&block{data: mem.BufferSlice{mem.SliceBuffer("done")}}); err != nil {
				return err
			}
		}
	}}
	for _, secure := range []bool{false, true} {
		for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("tls=%v/%dKiB", secure, size>>10), func(b *testing.B) {
				c := benchPair(b, secure, e)
				cc, err := c.Conn("b", Bulk)
				if err != nil {
					b.Fatal(err)
				}
				s, err := stream(b.Context(), cc)
				if err != nil {
					b.Fatal(err)
				}
				data := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				start := cpu()
				window := make(chan struct{}, 8)
				done := make(chan error, 1)
				n := b.N
				go func() {
					for range n {
						m := new(block)
						if err := s.RecvMsg(m); err != nil {
							done <- err
							return
						}
						m.data.Free()
						<-window
					}
					done <- nil
				}()
				for range n {
					window <- struct{}{}
					if err := s.SendMsg(&block{data: mem.BufferSlice{mem.SliceBuffer(data)}}); err != nil {
						b.Fatal(err)
					}
				}
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64((cpu()-start).Microseconds())/float64(b.N), "cpu-us/op")
			})
		}
	}
}
