// Package erasure turns a stripe of data into shards and lost shards back into
// data. It wraps klauspost/reedsolomon and knows how a stripe lies in memory.
//
// A stripe lives in one contiguous buffer: its data bytes from the start on, so
// that data shard i is the slice [i*len, (i+1)*len) of it, zeros up to the end of
// the last data shard, and the parity shards behind them (len is
// storage.Scheme.ShardLen). Encoding therefore
// copies nothing. With k=1 every shard is the data itself: all shards are the
// same slice and nothing is computed or stored twice.
//
// Reconstruction works bytewise: the same columns [off, off+n) of any k shards
// give the same columns of all others. It believes what it is given, so only
// bytes whose checksums were verified may go in.
package erasure

import (
	"sync"

	"github.com/klauspost/reedsolomon"

	"cairn/storage"
	"cairn/storage/errs"
)

// ShardsMax is the most shards a scheme may have: a set of shards fits a uint64
// mask with room, and wider stripes cut 1 MiB into pieces not worth a disk read.
const ShardsMax = 32

// Codecs makes codecs and keeps them: building one inverts a matrix. The zero
// value is ready; safe for concurrent use.
type Codecs struct{ byScheme sync.Map }

// For is the codec of a scheme. InvalidArgument for a scheme without data shards or wider than ShardsMax.
func (c *Codecs) For(s storage.Scheme) (*Codec, error) {
	if codec, ok := c.byScheme.Load(s); ok {
		return codec.(*Codec), nil
	}
	codec, err := newCodec(s)
	if err != nil {
		return nil, err
	}
	kept, _ := c.byScheme.LoadOrStore(s, codec)
	return kept.(*Codec), nil
}

// Codec codes stripes of one scheme. Safe for concurrent use.
type Codec struct {
	scheme storage.Scheme
	rs     reedsolomon.Encoder // nil where there is nothing to compute: k=1 or m=0
}

func newCodec(s storage.Scheme) (*Codec, error) {
	if s.K == 0 || s.Shards() > ShardsMax {
		return nil, errs.Newf(errs.InvalidArgument, "erasure", s.String(), "a scheme has at least one data shard and at most %d shards", ShardsMax)
	}
	c := &Codec{scheme: s}
	if s.K == 1 || s.M == 0 {
		return c, nil
	}
	// One goroutine: a stripe's shards are small enough to stay in cache, and
	// requests are parallel already.
	rs, err := reedsolomon.New(int(s.K), int(s.M), reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, errs.Wrap(errs.InvalidArgument, "erasure", s.String(), err)
	}
	c.rs = rs
	return c, nil
}

// Scheme is the codec's scheme.
func (c *Codec) Scheme() storage.Scheme { return c.scheme }

// ShardLen is the bytes of each shard of a stripe of dataLen bytes.
func (c *Codec) ShardLen(dataLen int) int { return c.scheme.ShardLen(dataLen) }

// BufferLen is the length of the buffer that a stripe of dataLen data bytes needs.
func (c *Codec) BufferLen(dataLen int) int {
	if c.scheme.K == 1 {
		return dataLen
	}
	return c.scheme.Shards() * c.ShardLen(dataLen)
}

// Encode pads the dataLen data bytes at the start of buf, computes the parity
// behind them and appends the shards, slices of buf, to shards[:0].
// dataLen is at least 1 and buf at least BufferLen(dataLen) long.
func (c *Codec) Encode(buf []byte, dataLen int, shards [][]byte) ([][]byte, error) {
	shards = c.Split(buf, dataLen, shards)
	k := int(c.scheme.K)
	if k > 1 {
		clear(buf[dataLen : k*len(shards[0])])
	}
	if c.rs == nil {
		return shards, nil
	}
	if err := c.rs.Encode(shards); err != nil {
		return nil, errs.Wrap(errs.Other, "erasure.encode", c.scheme.String(), err)
	}
	return shards, nil
}

// Split appends the slices of buf where the shards of a stripe lie to shards[:0]; it writes nothing.
func (c *Codec) Split(buf []byte, dataLen int, shards [][]byte) [][]byte {
	shards = shards[:0]
	n := c.ShardLen(dataLen)
	for i := range c.scheme.Shards() {
		if c.scheme.K == 1 {
			i = 0
		}
		shards = append(shards, buf[i*n:(i+1)*n:(i+1)*n])
	}
	return shards
}

// Reconstruct computes the shards named in want from the others. shards has one
// entry a shard: equal columns of at least k shards, and empty ones for the
// rest; those of want are filled, into their capacity if it suffices.
// Errors: Unavailable with fewer than k shards.
func (c *Codec) Reconstruct(shards [][]byte, want uint64) error {
	if len(shards) != c.scheme.Shards() {
		return errs.Newf(errs.InvalidArgument, "erasure.reconstruct", c.scheme.String(), "%d shards given", len(shards))
	}
	have, first := 0, -1
	for i, s := range shards {
		if len(s) > 0 {
			have++
			if first < 0 {
				first = i
			}
		}
	}
	if have < int(c.scheme.K) {
		return errs.Newf(errs.Unavailable, "erasure.reconstruct", c.scheme.String(), "%d shards of %d needed", have, c.scheme.K)
	}
	if c.rs == nil {
		return c.copyShards(shards, want, shards[first])
	}
	var required [ShardsMax]bool
	for i := range shards {
		required[i] = want&(1<<i) != 0
	}
	if err := c.rs.ReconstructSome(shards, required[:len(shards)]); err != nil {
		return errs.Wrap(errs.Other, "erasure.reconstruct", c.scheme.String(), err)
	}
	return nil
}

// copyShards fills the wanted shards of a code whose shards are all alike.
func (c *Codec) copyShards(shards [][]byte, want uint64, from []byte) error {
	for i := range shards {
		if want&(1<<i) == 0 || len(shards[i]) > 0 {
			continue
		}
		if c.scheme.K != 1 {
			return errs.New(errs.Unavailable, "erasure.reconstruct", c.scheme.String(), "a code without parity cannot replace a shard")
		}
		shards[i] = append(shards[i][:0], from...)
	}
	return nil
}
