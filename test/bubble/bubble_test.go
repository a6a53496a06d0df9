package bubble

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestTimersOfManyGoroutines is what crashed the race detector on two processors, every time.
func TestTimersOfManyGoroutines(t *testing.T) {
	Test(t, func(t *testing.T) {
		var wg sync.WaitGroup
		for range 400 {
			wg.Go(func() {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				var mu sync.Mutex
				for range 100 {
					time.Sleep(time.Millisecond)
					for range 20 {
						mu.Lock()
						mu.Unlock() //nolint:staticcheck // the detector's work is the point
					}
					select {
					case <-tick.C:
					default:
						t.Error("a tick that is due was not there")
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestProcessorsComeBack(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	var p processors
	first, second := p.enter(), p.enter()
	first()
	if n := runtime.GOMAXPROCS(0); n != 1 {
		t.Errorf("%d processors while a bubble runs", n)
	}
	second()
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d processors after the last bubble, %d before the first", n, before)
	}
}
