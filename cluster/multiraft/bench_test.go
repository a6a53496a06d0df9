package multiraft

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/storage/vfsx"
)

// cpu is what this process has used of the processors so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchHost is a host with drives on a real file system, in memory if there is one.
func benchHost(b *testing.B, drives int) *Host {
	b.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "cairn-bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	h, err := New(Config{NewStateMachine: func(g cluster.GroupID) StateMachine { return &tape{g: g} }})
	if err != nil {
		b.Fatal(err)
	}
	for i := range drives {
		d := fmt.Sprintf("%s/d%d", dir, i)
		if err := os.MkdirAll(d, 0o755); err != nil {
			b.Fatal(err)
		}
		check := func() error { _, err := os.Stat(d); return err }
		if err := h.AddDrive(Drive{ID: driveID(i), FS: vfs.Default, Dir: d, Check: check}); err != nil {
			b.Fatal(err)
		}
	}
	b.Cleanup(func() {
		if err := h.Close(); err != nil {
			b.Error(err)
		}
	})
	return h
}

func birthBench(b *testing.B, h *Host, id cluster.GroupID, drives int) {
	b.Helper()
	if err := h.Birth(testGroup(id, []int{0, 1, 2, 3, 4}[:drives]...), noBirth); err != nil {
		b.Fatal(err)
	}
	if err := h.WaitLeader(testCtx(b, 10*time.Second), id); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPropose: 16 writers of 400-byte commands; cpu-us/op is the processor time of the whole process for one.
func BenchmarkPropose(b *testing.B) {
	for _, voters := range []int{1, 3, 5} {
		b.Run(fmt.Sprintf("voters=%d", voters), func(b *testing.B) {
			h := benchHost(b, voters)
			birthBench(b, h, 1, voters)
			cmd := make([]byte, 400)
			b.ReportAllocs()
			b.ResetTimer()
			used := cpu()
			var wg sync.WaitGroup
			work := make(chan struct{}, 64)
			for range 16 {
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range work {
						if _, err := h.Propose(context.Background(), 1, cmd); err != nil {
							b.Error(err)
						}
					}
				}()
			}
			for range b.N {
				work <- struct{}{}
			}
			close(work)
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64((cpu()-used).Nanoseconds())/1000/float64(b.N), "cpu-us/op")
		})
	}
}

func BenchmarkRead(b *testing.B) {
	h := benchHost(b, 5)
	birthBench(b, h, 1, 5)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if err := h.Read(ctx, 1, func(pebble.Reader) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIdle: what two quiet groups of 5 voters cost; an operation is a second.
func BenchmarkIdle(b *testing.B) {
	h := benchHost(b, 5)
	birthBench(b, h, 1, 5)
	birthBench(b, h, 2, 5)
	time.Sleep(500 * time.Millisecond)
	used := cpu()
	b.ResetTimer()
	for range b.N {
		time.Sleep(time.Second)
	}
	b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "cpu-us/s")
}

// BenchmarkRestart: from a power cut under load until all 5 voters have replayed.
func BenchmarkRestart(b *testing.B) {
	c := newCell(b, vfsx.NewMem(), 5, Config{ProposalsMax: 64})
	c.birth(testGroup(1, 0, 1, 2, 3, 4))
	c.fill(1, 0, 15000)
	fs := c.fs.CrashClone(2)
	c.close()
	used := cpu()
	b.ResetTimer()
	for range b.N {
		d := newCell(b, fs.CrashClone(1), 5, Config{ProposalsMax: 64})
		d.waitLeader(1)
		for _, r := range d.h.group(1, false).replicas() {
			for r.applied.Load() < 15000 {
				time.Sleep(time.Millisecond)
			}
		}
		b.StopTimer()
		d.close()
		b.StartTimer()
	}
	b.ReportMetric(float64((cpu()-used).Milliseconds())/float64(b.N), "cpu-ms/op")
}
