// Package checker writes, overwrites, deletes and reads objects while things
// break, remembers what was acknowledged, and afterwards holds the store to it:
//
//   - an acknowledged write reads back with its bytes until it is overwritten or deleted;
//   - what was acknowledged as deleted stays deleted;
//   - after an answer that leaves the outcome open either state is right, but the one seen first stays;
//   - a listing shows exactly the keys that can be read.
//
// Each key belongs to one worker, so the states a key may be in are few and known.
package checker

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
)

// ErrNotFound is what a Store answers for a key that is not there.
var ErrNotFound = errors.New("not found")

// Store is the bucket under test. Any error but ErrNotFound from Put and Delete
// leaves the outcome open; from Get and List it says nothing.
type Store interface {
	Put(ctx context.Context, key string, body []byte) error
	Delete(ctx context.Context, key string) error
	Get(ctx context.Context, key string) ([]byte, error)
	List(ctx context.Context) ([]string, error)
}

// value is a body by the numbers it was made from; 0 is no object.
type value uint64

// Body makes the bytes of a value: its seed in the first 8 bytes and then noise.
func (v value) body() []byte {
	rnd := rand.New(rand.NewPCG(uint64(v), 1))
	b := make([]byte, 8, sizes[rnd.IntN(len(sizes))]+rnd.IntN(100)+8)
	binary.LittleEndian.PutUint64(b, uint64(v))
	for len(b) < cap(b) {
		b = binary.LittleEndian.AppendUint64(b, rnd.Uint64())
		if len(b) > cap(b)-8 {
			b = b[:cap(b)]
		}
	}
	return b
}

// sizes are around the borders of inline, copied, coded and several stripes; small ones are likelier.
var sizes = []int{0, 100, 900, 1024, 4 << 10, 4 << 10, 20 << 10, 70 << 10, 128 << 10, 300 << 10, 1<<20 + 1, 2500 << 10}

func valueOf(b []byte) (value, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("a body of %d bytes was never written", len(b))
	}
	v := value(binary.LittleEndian.Uint64(b))
	if want := v.body(); !bytes.Equal(b, want) {
		return 0, fmt.Errorf("body of value %x is damaged (%d bytes, want %d)", uint64(v), len(b), len(want))
	}
	return v, nil
}

// Checker is safe for concurrent use, but a key must be used by one worker at a time.
type Checker struct {
	mu       sync.Mutex
	possible map[string][]value // states the key may be in; one once it is certain
	begun    map[string][]value // all states that operations began to put a key in, since New or Clone
	next     uint64
	seed     uint64
	Acked    int // writes and deletes acknowledged
	Open     int // writes and deletes whose outcome was left open
}

// New makes a checker whose bodies follow from the seed.
func New(seed uint64) *Checker {
	return &Checker{possible: map[string][]value{}, begun: map[string][]value{}, seed: seed}
}

// Clone is the checker's knowledge of this moment, to hold a copy of the store against.
func (c *Checker) Clone() *Checker {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := &Checker{possible: make(map[string][]value, len(c.possible)), begun: make(map[string][]value, len(c.begun)), next: c.next, seed: c.seed, Acked: c.Acked, Open: c.Open}
	for k, v := range c.possible {
		n.possible[k] = slices.Clone(v)
	}
	for k, v := range c.begun {
		n.begun[k] = slices.Clone(v)
	}
	return n
}

// begin says that key may take v from now on.
func (c *Checker) begin(key string, v value) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.possible[key]
	if len(p) == 0 {
		p = []value{0}
	}
	c.possible[key] = append(p, v)
	c.begun[key] = append(c.begun[key], v)
}

func (c *Checker) end(key string, v value, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.Open++
		return
	}
	c.Acked++
	c.possible[key] = []value{v}
}

func (c *Checker) newValue() value {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	return value(c.seed<<32 | c.next)
}

// Step does one random operation on one of the keys. Its error is a broken promise, never a refused request.
func (c *Checker) Step(ctx context.Context, s Store, rnd *rand.Rand, keys []string) error {
	key := keys[rnd.IntN(len(keys))]
	switch n := rnd.IntN(10); {
	case n < 6:
		v := c.newValue()
		c.begin(key, v)
		c.end(key, v, s.Put(ctx, key, v.body()))
	case n < 8:
		c.begin(key, 0)
		err := s.Delete(ctx, key)
		if errors.Is(err, ErrNotFound) {
			err = nil
		}
		c.end(key, 0, err)
	default:
		return c.check(ctx, s, key)
	}
	return nil
}

// check reads a key and compares; an unanswered read says nothing.
func (c *Checker) check(ctx context.Context, s Store, key string) error {
	b, err := s.Get(ctx, key)
	var v value
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return nil
	default:
		if v, err = valueOf(b); err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.possible[key]
	if len(p) == 0 {
		p = []value{0}
	}
	if !slices.Contains(p, v) {
		return fmt.Errorf("key %q reads as value %x; possible are %x", key, uint64(v), p)
	}
	c.possible[key] = []value{v} // what was seen stays
	return nil
}

// Verify reads every key, all of which must be readable now, and compares the listing.
func (c *Checker) Verify(ctx context.Context, s Store) error {
	c.mu.Lock()
	keys := slices.Sorted(maps.Keys(c.possible))
	c.mu.Unlock()
	var want []string
	for _, k := range keys {
		if _, err := s.Get(ctx, k); err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("key %q cannot be read: %w", k, err)
		}
		if err := c.check(ctx, s, k); err != nil {
			return err
		}
		c.mu.Lock()
		p := c.possible[k]
		c.mu.Unlock()
		if len(p) != 1 {
			return fmt.Errorf("key %q could not be read", k)
		}
		if p[0] != 0 {
			want = append(want, k)
		}
	}
	got, err := s.List(ctx)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("the listing has %d keys %.200q, readable are %d %.200q", len(got), got, len(want), want)
	}
	return nil
}

// Widen adds to what may be read here every state that the later checker (of which
// this one is a clone) put its keys in since: what happened between a clone and a
// power cut may or may not have survived.
func (c *Checker) Widen(later *Checker) {
	later.mu.Lock()
	defer later.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next = max(c.next, later.next)
	for k, all := range later.begun {
		p := c.possible[k]
		if len(p) == 0 {
			p = []value{0}
		}
		c.possible[k] = append(p, all[len(c.begun[k]):]...)
	}
	c.begun = map[string][]value{}
}
