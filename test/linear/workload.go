package linear

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Workload is clients at work. Each goes from store to store at random.
type Workload struct {
	Stores  []Store
	Keys    []string // few: contention finds more
	Clients int
	Ops     int           // of each client
	Timeout time.Duration // of one operation; 0 is none but ctx's
	Pause   time.Duration // a client rests up to so long after an operation
	Seed    uint64
}

// Run lets the clients work until they have done their operations or ctx ends.
// No operation is under way when it returns.
func (w Workload) Run(ctx context.Context, r *Recorder) {
	var wg sync.WaitGroup
	for i := range w.Clients {
		wg.Go(func() {
			c := client{w: w, r: r, id: i, rnd: rand.New(rand.NewPCG(w.Seed, uint64(i))), seen: map[string]Value{}}
			for range w.Ops {
				if ctx.Err() != nil {
					return
				}
				c.step(ctx)
				if w.Pause > 0 {
					time.Sleep(time.Duration(c.rnd.Int64N(int64(w.Pause))))
				}
			}
		})
	}
	wg.Wait()
}

type client struct {
	w    Workload
	r    *Recorder
	id   int
	rnd  *rand.Rand
	seen map[string]Value // latest value of a key that this client knows of
}

// step does one operation.
func (c *client) step(ctx context.Context) {
	if c.w.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.w.Timeout)
		defer cancel()
	}
	s := c.w.Stores[c.rnd.IntN(len(c.w.Stores))]
	in := input{key: c.w.Keys[c.rnd.IntN(len(c.w.Keys))]}
	switch n := c.rnd.IntN(100); {
	case n < 30:
		c.get(ctx, s, in)
		return
	case n < 42:
		began := c.r.begin()
		if etags, err := s.List(ctx); err == nil {
			c.r.endList(c.id, began, c.w.Keys, etags)
		}
		return
	case n < 57:
		in.kind = del
	case n < 72:
		in.kind = put
	case n < 87 || c.seen[in.key] == 0:
		in.kind = putNew
	default:
		in.kind, in.expect = putMatch, c.seen[in.key]
	}
	c.write(ctx, s, in)
}

func (c *client) get(ctx context.Context, s Store, in input) {
	began := c.r.begin()
	body, err := s.Get(ctx, in.key)
	var v Value
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return
	default:
		if v, err = valueOf(body); err != nil {
			c.r.breaks(fmt.Errorf("key %q: %w", in.key, err))
			return
		}
	}
	c.r.end(c.id, began, in, output{outcome: done, value: v})
	c.seen[in.key] = v
}

func (c *client) write(ctx context.Context, s Store, in input) {
	var cond Condition
	switch in.kind {
	case putNew:
		cond.New = true
	case putMatch:
		cond.Match = in.expect.ETag()
	}
	if in.kind != del {
		in.value = c.r.newValue()
	}
	began := c.r.begin()
	var err error
	if in.kind == del {
		err = s.Delete(ctx, in.key)
	} else {
		err = s.Put(ctx, in.key, in.value.Body(), cond)
	}
	out := output{}
	switch {
	case err == nil || in.kind == del && errors.Is(err, ErrNotFound):
		out.outcome = done
		c.seen[in.key] = in.value
	case errors.Is(err, ErrRefused) && (in.kind == putNew || in.kind == putMatch):
		out.outcome = refused
		delete(c.seen, in.key)
	case errors.Is(err, ErrRefused):
		c.r.breaks(fmt.Errorf("key %q: a write without a condition was refused: %w", in.key, err))
	}
	c.r.end(c.id, began, in, out)
}
