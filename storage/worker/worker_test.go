package worker

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cairn/storage/errs"
	"cairn/test/bubble"
)

// fake is a worker of which the test says what a step does.
type fake struct {
	name  string
	steps atomic.Int64
	step  func(ctx context.Context, n int64) (int64, bool, error)
	left  atomic.Int64
}

func (f *fake) Name() string        { return f.name }
func (f *fake) Left() (int64, bool) { return f.left.Load(), true }
func (f *fake) Step(ctx context.Context) (int64, bool, error) {
	n := f.steps.Add(1)
	if f.step == nil {
		return 0, false, nil
	}
	return f.step(ctx, n)
}

func add(t *testing.T, r *Runner, w Worker, o Options) *Handle {
	t.Helper()
	h, err := r.Add(w, o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func wantSteps(t *testing.T, f *fake, want int64) {
	t.Helper()
	synctest.Wait()
	if n := f.steps.Load(); n != want {
		t.Fatalf("%s: %d steps, want %d", f.name, n, want)
	}
}

func wantState(t *testing.T, h *Handle, want State) {
	t.Helper()
	synctest.Wait()
	if s := h.Status().State; s != want {
		t.Fatalf("state %q, want %q", s, want)
	}
}

func TestIntervalAndWake(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Stop()
		f := &fake{name: "f"}
		h := add(t, r, f, Options{Interval: time.Hour, Linger: time.Second})
		wantSteps(t, f, 1)
		wantState(t, h, Waiting)
		time.Sleep(time.Hour + 1)
		wantSteps(t, f, 2)
		h.Wake()
		h.Wake()
		time.Sleep(time.Second / 2)
		h.Wake()
		wantSteps(t, f, 2) // lingers
		time.Sleep(time.Second)
		wantSteps(t, f, 3) // one step served three wakes
	})
}

func TestMoreRunsOn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Stop()
		f := &fake{name: "f", step: func(_ context.Context, n int64) (int64, bool, error) { return 2, n < 5, nil }}
		h := add(t, r, f, Options{})
		wantSteps(t, f, 5)
		if s := h.Status(); s.Done != 10 || s.Steps != 5 || s.Failures != 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func TestBackoff(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Stop()
		var bad atomic.Bool
		bad.Store(true)
		f := &fake{name: "f", step: func(context.Context, int64) (int64, bool, error) {
			if bad.Load() {
				return 0, true, errors.New("drive on fire")
			}
			return 1, false, nil
		}}
		h := add(t, r, f, Options{BackoffMin: time.Second, BackoffMax: time.Minute})
		wantState(t, h, Backoff)
		h.Wake() // does not cut it short
		wantSteps(t, f, 1)
		time.Sleep(time.Hour)
		synctest.Wait()
		// 1+2+...+32 s, then a minute each, less at most a third.
		if n := f.steps.Load(); n < 60 || n > 100 {
			t.Fatalf("%d steps in an hour of failures", n)
		}
		s := h.Status()
		if s.LastErr != "drive on fire" || s.Failures != s.Steps || time.Since(s.ErrSince) < time.Hour-time.Second {
			t.Fatalf("%+v", s)
		}
		bad.Store(false)
		time.Sleep(time.Minute)
		if s := h.Status(); s.LastErr != "" || !s.ErrSince.IsZero() || s.State != Waiting {
			t.Fatalf("%+v", s)
		}
	})
}

func TestBackoffBounds(t *testing.T) {
	for i := 1; i < 200; i++ {
		d := backoff(time.Second, time.Hour, i)
		if d < time.Second*2/3 || d > time.Hour || (i > 13 && d < 40*time.Minute) {
			t.Fatalf("back-off %d is %v", i, d)
		}
	}
}

// TestPace: the rate follows what is to be done.
func TestPace(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Stop()
		f := &fake{name: "f", step: func(context.Context, int64) (int64, bool, error) { return 10, true, nil }}
		var rate atomic.Int64
		rate.Store(100)
		add(t, r, f, Options{Rate: 1, Pace: func() float64 { return float64(rate.Load()) }})
		time.Sleep(9950 * time.Millisecond)
		wantSteps(t, f, 100)
		rate.Store(10)
		time.Sleep(20 * time.Second)
		wantSteps(t, f, 120)
	})
}

func TestRateAndETA(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Stop()
		f := &fake{name: "f"}
		f.left.Store(10000)
		f.step = func(context.Context, int64) (int64, bool, error) { f.left.Add(-10); return 10, true, nil }
		h := add(t, r, f, Options{Rate: 100}) // 10 steps a second
		time.Sleep(100*time.Second - time.Millisecond)
		wantSteps(t, f, 1000)
		wantState(t, h, Slowed)
		s := h.Status()
		if s.Rate < 99 || s.Rate > 102 {
			t.Fatalf("rate %v", s.Rate)
		}
		if s.Left != 0 || !s.ETAOK || s.ETA != 0 {
			t.Fatalf("%+v", s)
		}
		f.left.Store(1000)
		if s = h.Status(); s.ETA < 9*time.Second || s.ETA > 11*time.Second {
			t.Fatalf("eta %v", s.ETA)
		}
		h.SetRate(1) // takes effect at once: the step done now owes 10 s
		time.Sleep(9 * time.Second)
		wantSteps(t, f, 1000)
		h.SetRate(10)
		time.Sleep(10*time.Second + time.Millisecond)
		wantSteps(t, f, 1011)
	})
}

func TestPause(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Stop()
		f := &fake{name: "f", step: func(context.Context, int64) (int64, bool, error) { return 1, true, nil }}
		h := add(t, r, f, Options{Rate: 1})
		time.Sleep(time.Second / 2)
		h.Pause()
		wantState(t, h, Paused)
		time.Sleep(time.Hour)
		wantSteps(t, f, 1)
		h.Resume()
		wantSteps(t, f, 2)
	})
}

func TestYield(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{Yield: func() time.Duration { return time.Hour }}) // capped
		defer r.Stop()
		f := &fake{name: "f", step: func(context.Context, int64) (int64, bool, error) { return 1, true, nil }}
		h := add(t, r, f, Options{})
		wantState(t, h, Slowed)
		wantSteps(t, f, 0)
		time.Sleep(10*time.Second + time.Millisecond)
		wantSteps(t, f, 10)
	})
}

func TestStopWaits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{})
		var ended atomic.Bool
		f := &fake{name: "f", step: func(ctx context.Context, _ int64) (int64, bool, error) {
			<-ctx.Done()
			time.Sleep(time.Second) // some last I/O
			ended.Store(true)
			return 0, false, ctx.Err()
		}}
		h := add(t, r, f, Options{})
		add(t, r, &fake{name: "idle"}, Options{})
		p := add(t, r, &fake{name: "paused"}, Options{})
		p.Pause()
		wantState(t, h, Running)
		r.Stop()
		if !ended.Load() {
			t.Fatal("stopped before the step ended")
		}
		for _, s := range r.Status() {
			if s.State != Stopped {
				t.Errorf("%+v", s)
			}
		}
		r.Stop()
		if _, err := r.Add(&fake{name: "late"}, Options{}); !errs.Is(err, errs.Closed) {
			t.Fatal(err)
		}
	})
}

func TestNames(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := New(Config{})
		defer r.Stop()
		h := add(t, r, &fake{name: "a"}, Options{})
		if _, err := r.Add(&fake{name: "a"}, Options{}); !errs.Is(err, errs.InvalidArgument) {
			t.Fatal(err)
		}
		if r.Handle("a") != h || r.Handle("b") != nil {
			t.Fatal("handle")
		}
	})
}
