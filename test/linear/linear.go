// Package linear holds a store to the strongest promise it makes about single
// keys: that gets, puts, conditional puts, deletes and listings happen one after
// the other, each at some moment between its request and its answer, whatever
// gateway they came through.
//
// Clients work on a few keys through any number of Stores (a Workload); a Recorder
// keeps what they asked and were answered, in the order in which it happened; Check
// asks porcupine for an order that explains the answers. An answer that leaves the
// outcome open (an error, a timeout) may take effect at any later time, or never.
// A listing counts as one read of each key at any moment while it ran: over several
// ranges more is not promised.
package linear

import (
	"context"
	"crypto/md5"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
)

// Definite answers of a Store beside success. Any other error leaves the outcome
// of a write open and says nothing of a read.
var (
	ErrNotFound = errors.New("not found")
	ErrRefused  = errors.New("condition not met") // 412, or 404 for If-Match without an object
)

// Condition of a put: at most one is set.
type Condition struct {
	New   bool   // If-None-Match: *
	Match string // If-Match: this ETag, without quotes
}

// Store is the bucket under test through one gateway. A method asks once: a
// client that repeats a request by itself would hide what the answers mean.
type Store interface {
	Put(ctx context.Context, key string, body []byte, cond Condition) error
	Get(ctx context.Context, key string) ([]byte, error)
	Delete(ctx context.Context, key string) error
	List(ctx context.Context) (etags map[string]string, err error) // of all keys, without quotes
}

// Value is an object's contents, each written once only; 0 is no object.
type Value uint64

// sizes are an inlined, a copied and a coded object; small ones are likelier.
func sizes() []int { return []int{8, 100, 100, 900, 900, 5 << 10, 200 << 10} }

// Body are the bytes of a value: its number and noise.
func (v Value) Body() []byte {
	rnd := rand.New(rand.NewPCG(uint64(v), 3))
	b := make([]byte, 8, sizes()[rnd.IntN(len(sizes()))]+8)
	binary.LittleEndian.PutUint64(b, uint64(v))
	for len(b)+8 <= cap(b) {
		b = binary.LittleEndian.AppendUint64(b, rnd.Uint64())
	}
	return b
}

// ETag is the body's MD5 in hex.
func (v Value) ETag() string { return ETag(v.Body()) }

// ETag is the MD5 of a body in hex.
func ETag(body []byte) string {
	sum := md5.Sum(body)
	return hex.EncodeToString(sum[:])
}

// valueOf finds the value of a body and that it is whole.
func valueOf(b []byte) (Value, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("a body of %d bytes was never written", len(b))
	}
	v := Value(binary.LittleEndian.Uint64(b))
	if string(v.Body()) != string(b) {
		return 0, fmt.Errorf("the body of value %d is damaged (%d bytes)", v, len(b))
	}
	return v, nil
}
