package chunkio

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// A late shard is replaced after HedgeAfter, once; then the drive is not asked
// first any more, until it has answered.
func TestHedging(t *testing.T) {
	for _, size := range []int{1000, 1 << 20, 5 << 20} {
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, []int{2, 2, 2}, standard, withClock)
			data := randomBytes(rand.New(rand.NewPCG(1, 2)), size)
			refs := c.mustWrite(data)
			victim := c.holder(refs[0], 0)
			hang := make(chan struct{})
			victim.set(func(d *fakeDrive) { d.hang = hang })
			timed := func() time.Duration {
				start := time.Now()
				c.mustRead(refs, data, 0, int64(size))
				return time.Since(start)
			}
			if took := timed(); took != 300*time.Millisecond {
				t.Errorf("%d bytes: the first read took %v", size, took)
			}
			if took := timed(); took != 0 {
				t.Errorf("%d bytes: the second read took %v", size, took)
			}
			time.Sleep(time.Minute)
			if took := timed(); took != 0 {
				t.Errorf("%d bytes: a drive that hangs for a minute is asked again: %v", size, took)
			}
			close(hang)
			victim.set(func(d *fakeDrive) { d.hang = nil })
			time.Sleep(time.Minute)
			victim.reads.Store(0)
			if took := timed(); took != 0 || victim.reads.Load() == 0 {
				t.Errorf("%d bytes: the drive is back and not asked (%v)", size, took)
			}
			if n := c.plane.BytesInUse(); n != 0 {
				t.Errorf("%d bytes in use", n)
			}
		})
	}
}

// When so many drives hang that nothing helps, the read ends; when they are only
// slow, it waits for them.
func TestReadsThatHang(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, []int{2, 2, 2}, standard, withClock)
		data := randomBytes(rand.New(rand.NewPCG(1, 2)), 1<<20)
		refs := c.mustWrite(data)
		for _, d := range c.drives {
			d.set(func(d *fakeDrive) { d.onRead = 2 * time.Second })
		}
		start := time.Now()
		c.mustRead(refs, data, 0, 1<<20)
		if took := time.Since(start); took != 2*time.Second {
			t.Errorf("slow drives: %v", took)
		}
		time.Sleep(time.Minute)
		for _, d := range c.drives {
			d.set(func(d *fakeDrive) { d.onRead = 2 * time.Hour })
		}
		start = time.Now()
		if _, err := c.read(refs, 0, 1<<20); !errs.Is(err, errs.Unavailable) || time.Since(start) != 5*time.Second {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := c.plane.Read(ctx, io.Discard, testOwner, refs, 0, 10); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		time.Sleep(3 * time.Hour)
		if n := c.plane.BytesInUse(); n != 0 {
			t.Errorf("%d bytes in use", n)
		}
	})
}

type slowWriter struct {
	pause time.Duration
	n     int
	limit int
}

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(w.pause)
	if w.n += len(p); w.limit > 0 && w.n > w.limit {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

// A slow client is no reason to suspect drives.
func TestSlowClients(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, []int{2, 2, 2}, standard, withClock)
		refs := c.mustWrite(make([]byte, 6<<20))
		w := &slowWriter{pause: 20 * time.Second}
		if err := c.plane.Read(context.Background(), w, testOwner, refs, 0, 6<<20); err != nil || w.n != 6<<20 {
			t.Fatalf("%d bytes, %v", w.n, err)
		}
		reads := int64(0)
		for _, d := range c.drives {
			reads += d.reads.Load()
		}
		if reads != 6*3 {
			t.Errorf("%d reads of shards", reads)
		}
		if err := c.plane.Read(context.Background(), &slowWriter{limit: 2 << 20}, testOwner, refs, 0, 6<<20); err != io.ErrClosedPipe {
			t.Errorf("got %v", err)
		}
		synctest.Wait()
		if n := c.plane.BytesInUse(); n != 0 {
			t.Errorf("%d bytes in use", n)
		}
	})
}

// A late answer must not write into bytes that were computed in its stead: its
// drive answers with garbage while the client is being served.
func TestLateGarbageIsNotServed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, []int{2, 2, 2}, standard, withClock)
		data := randomBytes(rand.New(rand.NewPCG(1, 2)), 1<<20)
		refs := c.mustWrite(data)
		bad := c.holder(refs[0], 1)
		bad.onRead = 350 * time.Millisecond
		bad.bad[shardOf(refs[0], 0, 1)] = true
		var got []byte
		err := c.plane.Read(context.Background(), writerFunc(func(p []byte) (int, error) {
			time.Sleep(time.Second) // meanwhile the late answer comes
			got = append(got, p...)
			return len(p), nil
		}), testOwner, refs, 0, 1<<20)
		if err != nil || string(got) != string(data) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		synctest.Wait()
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

var _ storage.ShardStore = (*fakeDrive)(nil)
