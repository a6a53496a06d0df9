package raftrpc

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/cluster"
)

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Six quiet nodes, three groups of five voters led by different nodes, over TCP: CPU per node, in percent of a core.
func BenchmarkIdle(b *testing.B) {
	w := newWorldOver(b, 6, true, nil)
	for g := range 3 {
		w.birth(cluster.GroupID(g+1), g, (g+1)%6, (g+2)%6, (g+3)%6, (g+4)%6)
	}
	time.Sleep(2 * time.Second)
	for b.Loop() {
		began, used := time.Now(), cpu()
		time.Sleep(5 * time.Second)
		b.ReportMetric(100*float64(cpu()-used)/float64(time.Since(began))/6, "%core/node")
	}
	w.close()
}

// Commits of 400 bytes by three voters over TCP, file systems in memory: CPU of all three together.
func BenchmarkCommit(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			w := newWorldOver(b, 3, true, nil)
			w.birth(1, 0, 1, 2)
			h := w.nodes[w.leader(1)].host
			cmd := make([]byte, 400)
			used := cpu()
			b.ResetTimer()
			var wg sync.WaitGroup
			for k := range writers {
				wg.Go(func() {
					for i := k; i < b.N; i += writers {
						if _, err := h.Propose(context.Background(), 1, cmd); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			b.ReportMetric(float64((cpu()-used).Microseconds())/float64(b.N), "cpu-us/op")
			w.close()
		})
	}
}
