package chunkio

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cairn/storage/errs"
	"cairn/test/bubble"
)

func TestBufferSizes(t *testing.T) {
	last := 0
	for n := 1; n <= 1<<largest; n += 1 + n/97 {
		size, class := sizeFor(n), sizeClass(n)
		if size < n || n > 1<<smallest && size > n+n/8+1 || class >= sizes || sizeClass(size) != class || class < last {
			t.Fatalf("%d bytes: size %d, class %d of %d, class of its size %d", n, size, class, sizes, sizeClass(size))
		}
		last = class
	}
	if last != sizes-1 {
		t.Errorf("the largest class in use is %d of %d", last, sizes)
	}
}

func TestBuffersAreReusedAndBounded(t *testing.T) {
	p := newBuffers(1<<20, time.Second)
	a, _ := p.get(context.Background(), inbound, 100<<10)
	mem := &a.b[0]
	a.release()
	if a, _ = p.get(context.Background(), outbound, 90<<10); &a.b[0] != mem {
		t.Error("a free buffer of nearly the size was not reused")
	}
	a.release()
	var all []*buffer
	for range 10 {
		all = append(all, p.force(inbound, 200<<10))
	}
	for _, b := range all {
		b.release()
	}
	if p.mu.freeBytes > p.freeMax || p.inUse() != 0 {
		t.Errorf("%d bytes kept of %d, %d in use", p.mu.freeBytes, p.freeMax, p.inUse())
	}
	huge := p.force(inbound, 40<<20)
	huge.release()
	if p.mu.freeBytes > p.freeMax || p.inUse() != 0 {
		t.Errorf("%d bytes kept, %d in use", p.mu.freeBytes, p.inUse())
	}
	defer func() {
		if recover() == nil {
			t.Error("a double release goes unseen")
		}
	}()
	huge.release()
}

// First come, first served; a large request is not starved by small ones; what
// is larger than everything gets its turn alone.
func TestWaitingForBuffers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := newBuffers(2<<20, time.Minute)
		first, _ := p.get(context.Background(), inbound, 1<<20)
		var mu sync.Mutex
		var order []int
		for i, n := range []int{900 << 10, 10 << 10, 5 << 20, 20 << 10} {
			go func() {
				b, err := p.get(context.Background(), inbound, n)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
				time.Sleep(time.Second)
				b.release()
			}()
			synctest.Wait()
		}
		if p.tryGet(inbound, 1) != nil {
			t.Error("overtaken")
		}
		if other := p.tryGet(outbound, 1<<20); other == nil {
			t.Error("one direction waits for the other")
		} else {
			other.release()
		}
		first.release()
		time.Sleep(time.Minute / 2)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(order) != 4 || order[2] != 2 || order[3] != 3 {
			t.Errorf("served in order %v", order)
		}
		if p.inUse() != 0 {
			t.Errorf("%d bytes in use", p.inUse())
		}
		hold, _ := p.get(context.Background(), inbound, 1<<20)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := p.get(ctx, inbound, 1); !errs.Is(err, errs.Busy) {
			t.Errorf("got %v", err)
		}
		hold.release()
		if p.inUse() != 0 || len(p.mu.lanes[inbound].queue) != 0 {
			t.Errorf("%d bytes in use, %d waiting", p.inUse(), len(p.mu.lanes[inbound].queue))
		}
	})
}
