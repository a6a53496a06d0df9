package linear

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/test/bubble"
	"cairn/test/seed"
)

// story is a history written by hand: begin and end of each operation are its place in the order.
type story struct {
	call, ret int64
	in        input
	out       output
}

func tell(stories []story) *Recorder {
	r := NewRecorder()
	for i, s := range stories {
		s.in.key = "k"
		r.addLocked(i, s.call, s.ret, s.in, s.out)
	}
	return r
}

func TestVerdicts(t *testing.T) {
	ok := output{outcome: done}
	no := output{outcome: refused}
	saw := func(v Value) output { return output{outcome: done, value: v} }
	for name, test := range map[string]struct {
		right bool
		ops   []story
	}{
		"read your write":         {true, []story{{1, 2, input{kind: put, value: 1}, ok}, {3, 4, input{kind: get}, saw(1)}}},
		"stale read":              {false, []story{{1, 2, input{kind: put, value: 1}, ok}, {3, 4, input{kind: get}, saw(0)}}},
		"stale listing":           {false, []story{{1, 2, input{kind: put, value: 1}, ok}, {3, 4, input{kind: listed}, saw(0)}}},
		"concurrent read":         {true, []story{{1, 4, input{kind: put, value: 1}, ok}, {2, 3, input{kind: get}, saw(0)}}},
		"reads go back":           {false, []story{{1, 9, input{kind: put, value: 1}, ok}, {2, 3, input{kind: get}, saw(1)}, {4, 5, input{kind: listed}, saw(0)}}},
		"deleted comes back":      {false, []story{{1, 2, input{kind: put, value: 1}, ok}, {3, 4, input{kind: del}, ok}, {5, 6, input{kind: get}, saw(1)}}},
		"one winner":              {true, []story{{1, 5, input{kind: putNew, value: 1}, ok}, {2, 4, input{kind: putNew, value: 2}, no}}},
		"two winners":             {false, []story{{1, 5, input{kind: putNew, value: 1}, ok}, {2, 4, input{kind: putNew, value: 2}, ok}}},
		"no winner":               {false, []story{{1, 5, input{kind: putNew, value: 1}, no}, {2, 4, input{kind: putNew, value: 2}, no}}},
		"lost update":             {false, []story{{1, 2, input{kind: put, value: 1}, ok}, {3, 6, input{kind: putMatch, value: 2, expect: 1}, ok}, {4, 5, input{kind: putMatch, value: 3, expect: 1}, ok}}},
		"match on nothing":        {true, []story{{1, 2, input{kind: putMatch, value: 2, expect: 1}, no}}},
		"refused for no reason":   {false, []story{{1, 2, input{kind: put, value: 1}, ok}, {3, 4, input{kind: putMatch, value: 2, expect: 1}, no}}},
		"open, happened":          {true, []story{{1, 0, input{kind: put, value: 1}, output{}}, {3, 4, input{kind: get}, saw(0)}, {5, 6, input{kind: get}, saw(1)}}},
		"open, happened twice":    {false, []story{{1, 0, input{kind: put, value: 1}, output{}}, {2, 3, input{kind: get}, saw(1)}, {4, 5, input{kind: put, value: 2}, ok}, {6, 7, input{kind: get}, saw(1)}}},
		"open, never happened":    {true, []story{{1, 0, input{kind: del}, output{}}, {1, 2, input{kind: put, value: 1}, ok}, {3, 4, input{kind: get}, saw(1)}}},
		"open delete explains":    {true, []story{{1, 2, input{kind: put, value: 1}, ok}, {1, 0, input{kind: del}, output{}}, {3, 4, input{kind: get}, saw(1)}, {5, 6, input{kind: get}, saw(0)}}},
		"from the future":         {false, []story{{1, 2, input{kind: get}, saw(1)}, {3, 4, input{kind: put, value: 1}, ok}}},
		"open condition not met":  {true, []story{{1, 2, input{kind: put, value: 1}, ok}, {3, 0, input{kind: putNew, value: 2}, output{}}, {5, 6, input{kind: get}, saw(1)}}},
		"open despite condition":  {false, []story{{1, 2, input{kind: put, value: 1}, ok}, {3, 0, input{kind: putNew, value: 2}, output{}}, {5, 6, input{kind: get}, saw(2)}}},
		"explained by unseen put": {true, []story{{1, 0, input{kind: put, value: 1}, output{}}, {2, 3, input{kind: putNew, value: 2}, no}}},
	} {
		err := tell(test.ops).Check(time.Minute)
		if (err == nil) != test.right || errors.Is(err, ErrUndecided) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerdictSaysWhere(t *testing.T) {
	r := tell([]story{{1, 2, input{kind: put, value: 1}, output{outcome: done}}, {3, 4, input{kind: get}, output{outcome: done, value: 1}},
		{5, 6, input{kind: get}, output{outcome: done}}, {7, 8, input{kind: get}, output{outcome: done, value: 1}}})
	err := r.Check(time.Minute)
	if err == nil || !strings.Contains(err.Error(), "get k: nothing") || strings.Contains(err.Error(), "7 to") {
		t.Errorf("%v", err)
	}
}

// toy is a bucket in memory with a fault.
type toy struct {
	mu    sync.Mutex
	at    map[string]Value
	old   map[string]Value // before the last change
	fault string
	rnd   *rand.Rand
}

func (s *toy) hit(fault string) bool { return s.fault == fault && s.rnd.IntN(8) == 0 }

func (s *toy) now(ctx context.Context, fn func() error) error {
	s.mu.Lock()
	before, after := s.rnd.IntN(5), s.rnd.IntN(5)
	s.mu.Unlock()
	time.Sleep(time.Duration(before) * time.Millisecond)
	s.mu.Lock()
	err := fn()
	lost := s.hit("lost answers")
	s.mu.Unlock()
	time.Sleep(time.Duration(after) * time.Millisecond)
	if lost {
		return errors.New("the answer got lost")
	}
	return err
}

func (s *toy) set(key string, v Value) {
	s.old[key] = s.at[key]
	s.at[key] = v
}

func (s *toy) Put(ctx context.Context, key string, body []byte, cond Condition) error {
	return s.now(ctx, func() error {
		v, err := valueOf(body)
		if err != nil {
			return err
		}
		is := s.at[key]
		if (cond.New && is != 0 || cond.Match != "" && (is == 0 || is.ETag() != cond.Match)) && !s.hit("conditions ignored") {
			return ErrRefused
		}
		if !s.hit("lost writes") {
			s.set(key, v)
		}
		return nil
	})
}

func (s *toy) Delete(ctx context.Context, key string) error {
	return s.now(ctx, func() error {
		s.set(key, 0)
		if s.hit("deleted comes back") {
			s.set(key, s.old[key])
		}
		return nil
	})
}

func (s *toy) Get(ctx context.Context, key string) (body []byte, err error) {
	err = s.now(ctx, func() error {
		v := s.at[key]
		if s.hit("stale reads") {
			v = s.old[key]
		}
		if v == 0 {
			return ErrNotFound
		}
		body = v.Body()
		return nil
	})
	return body, err
}

func (s *toy) List(ctx context.Context) (etags map[string]string, err error) {
	err = s.now(ctx, func() error {
		at := maps.Clone(s.at)
		if s.hit("stale listings") {
			at = maps.Clone(s.old)
		}
		etags = map[string]string{}
		for k, v := range at {
			if v != 0 {
				etags[k] = v.ETag()
			}
		}
		return nil
	})
	return etags, err
}

// TestFaultsAreFound is the test of the test: the workload finds what is wrong with a store, and nothing where nothing is. A
// single run may miss a fault; that many don't. A run without a verdict says nothing of either.
func TestFaultsAreFound(t *testing.T) {
	const runs = 40
	rnd := rand.New(rand.NewPCG(seed.Of(t), 0))
	check := func(fault string, seed uint64) error {
		r := NewRecorder()
		bubble.Test(t, func(t *testing.T) {
			s := &toy{at: map[string]Value{}, old: map[string]Value{}, fault: fault, rnd: rand.New(rand.NewPCG(seed, 1))}
			w := Workload{Stores: []Store{s}, Keys: []string{"a", "b", "c"}, Clients: 5, Ops: 60, Pause: 5 * time.Millisecond, Seed: seed}
			w.Run(t.Context(), r)
		})
		err := r.Check(30 * time.Second)
		if errors.Is(err, ErrUndecided) {
			t.Logf("fault %q, seed %d: %v", fault, seed, err)
			return nil
		}
		return err
	}
	for _, none := range []string{"", "lost answers"} {
		for range 3 {
			seed := rnd.Uint64()
			if err := check(none, seed); err != nil {
				t.Errorf("fault %q, seed %d: %v", none, seed, err)
			}
		}
	}
	for _, fault := range []string{"lost writes", "conditions ignored", "deleted comes back", "stale reads", "stale listings"} {
		found := false
		for i := 0; i < runs && !found; i++ {
			found = check(fault, rnd.Uint64()) != nil
		}
		if !found {
			t.Errorf("fault %q was not found in %d runs", fault, runs)
		}
	}
}

func TestWorkloadIsBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := NewRecorder()
		start := time.Now()
		w := Workload{Stores: []Store{hanging{}}, Keys: []string{"a"}, Clients: 2, Ops: 10, Timeout: time.Second, Seed: 1}
		w.Run(t.Context(), r)
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("20 operations of a second by two clients took %v", took)
		}
		if all, unanswered := r.Counts(); all != unanswered || all == 0 {
			t.Errorf("%d operations, %d of them open", all, unanswered)
		}
	})
}

// hanging never answers.
type hanging struct{}

func (hanging) wait(ctx context.Context) error {
	<-ctx.Done()
	return fmt.Errorf("hanging: %w", ctx.Err())
}
func (h hanging) Put(ctx context.Context, _ string, _ []byte, _ Condition) error { return h.wait(ctx) }
func (h hanging) Get(ctx context.Context, _ string) ([]byte, error)              { return nil, h.wait(ctx) }
func (h hanging) Delete(ctx context.Context, _ string) error                     { return h.wait(ctx) }
func (h hanging) List(ctx context.Context) (map[string]string, error)            { return nil, h.wait(ctx) }
