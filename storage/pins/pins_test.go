package pins

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
	"cairn/test/seed"
)

func write(n uint64) (w storage.WriteID) {
	binary.BigEndian.PutUint64(w[:], n)
	return w
}

func mustQuiesce(t *testing.T, r *Registry) func(storage.WriteID) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	held, err := r.Quiesce(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return held
}

func TestHoldUntilRelease(t *testing.T) {
	r := New()
	p := r.Begin()
	p.Hold(write(1), write(2), write(2))
	held := mustQuiesce(t, r)
	if !held(write(1)) || !held(write(2)) || held(write(3)) {
		t.Fatal("held is wrong")
	}
	if r.Active() != 1 {
		t.Fatalf("active %d", r.Active())
	}
	p.Release()
	p.Release()
	p.Hold(write(1))
	if held := mustQuiesce(t, r); held(write(1)) || held(write(2)) {
		t.Fatal("held after release")
	}
	if r.Active() != 0 {
		t.Fatalf("active %d", r.Active())
	}
}

// quiesceOf starts a Quiesce and answers how to get its result.
func quiesceOf(t *testing.T, r *Registry) <-chan func(storage.WriteID) bool {
	out := make(chan func(storage.WriteID) bool, 1)
	go func() {
		held, err := r.Quiesce(t.Context())
		if err != nil {
			t.Error(err)
		}
		out <- held
	}()
	return out
}

func TestWaitsForUnsettled(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New()
		a, b, last, settled := r.Begin(), r.Begin(), r.Begin(), r.Begin()
		settled.Hold(write(7))
		out := quiesceOf(t, r)
		synctest.Wait()
		a.Hold(write(1))
		late := r.Begin() // began after: neither waited for nor counted
		late.Hold(write(9))
		synctest.Wait()
		b.Release()
		synctest.Wait()
		if len(out) != 0 {
			t.Fatal("did not wait for a metadata read")
		}
		last.Hold(write(8))
		held := <-out
		for n, want := range map[uint64]bool{1: true, 7: true, 8: true, 9: false} {
			if held(write(n)) != want {
				t.Errorf("held(%d) is %v", n, !want)
			}
		}
	})
}

func TestQuiesceGivesUp(t *testing.T) {
	r := New()
	p := r.Begin()
	defer p.Release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if held, err := r.Quiesce(ctx); held != nil || !errs.Is(err, errs.Timeout) {
		t.Fatalf("held %v, err %v", held != nil, err)
	}
}

// TestModel runs readers, overwriting writers and a collector over one
// linearizable row, and checks that no reader ever finds a chunk removed.
func TestModel(t *testing.T) {
	const readers, rounds = 8, 3000
	seed := seed.Of(t)
	r := New()
	var (
		mu      sync.Mutex // the metadata: the current write, and what was overwritten
		current = uint64(1)
		garbage []uint64
		removed sync.Map // what the collector took
		stop    atomic.Bool
		took    atomic.Int64
		bg, wg  sync.WaitGroup
	)
	for i := range readers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			for range rounds {
				p := r.Begin()
				mu.Lock()
				w := current
				mu.Unlock()
				spin(rnd)
				p.Hold(write(w))
				for range 1 + rnd.IntN(3) {
					spin(rnd)
					if _, gone := removed.Load(w); gone {
						t.Errorf("write %d removed under its reader", w)
					}
				}
				p.Release()
			}
		})
	}
	bg.Go(func() {
		for !stop.Load() {
			mu.Lock()
			garbage = append(garbage, current)
			current++
			mu.Unlock()
			time.Sleep(time.Microsecond)
		}
	})
	bg.Go(func() {
		var left []uint64
		for !stop.Load() {
			mu.Lock()
			left = append(left, garbage...)
			garbage = nil
			mu.Unlock()
			held, err := r.Quiesce(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			keep := left[:0]
			for _, w := range left {
				if held(write(w)) {
					keep = append(keep, w)
				} else {
					removed.Store(w, true)
					took.Add(1)
				}
			}
			left = keep
			if len(left) > readers {
				t.Errorf("%d writes kept by %d readers", len(left), readers)
			}
		}
	})
	wg.Wait()
	stop.Store(true)
	bg.Wait()
	if took.Load() == 0 {
		t.Fatal("nothing was ever collected")
	}
	if r.Active() != 0 {
		t.Fatalf("%d pins left", r.Active())
	}
}

func spin(rnd *rand.Rand) {
	if rnd.IntN(4) == 0 {
		time.Sleep(time.Microsecond)
	}
}

func BenchmarkPin(b *testing.B) {
	r := New()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p := r.Begin()
			p.Hold(write(1))
			p.Release()
		}
	})
}

func TestAbortEndsReadsInProgress(t *testing.T) {
	var r Registry
	r.Abort() // nothing to end
	aborted := func(p *Pin) bool {
		select {
		case <-p.Aborted():
			return true
		default:
			return false
		}
	}
	old := r.Begin()
	defer old.Release()
	if aborted(old) {
		t.Fatal("aborted before Abort")
	}
	var out bytes.Buffer
	w := old.Writer(&out)
	if _, err := w.Write([]byte("a")); err != nil {
		t.Fatal(err)
	}
	r.Abort()
	if _, err := w.Write([]byte("b")); !errs.Is(err, errs.Unavailable) || out.String() != "a" {
		t.Fatal(err, out.String())
	}
	young := r.Begin()
	defer young.Release()
	if !aborted(old) || aborted(young) {
		t.Fatal("Abort ends the reads in progress and no others")
	}
	r.Abort()
	if !aborted(young) {
		t.Fatal("the second Abort did nothing")
	}
}
