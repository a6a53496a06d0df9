package drive

import (
	"encoding/binary"
	"errors"
	"slices"

	"cairn/storage"

	"github.com/cockroachdb/pebble/v2"
)

// recentMax is how many chunks are remembered, about 1.5 MB.
const recentMax = 16 << 10

// recent knows for the young chunks what the index would answer. Nearly every
// append is of a chunk born just now; asking a Pebble for what is not there cost
// two thirds of the writer's time. Every chunk born after floor of which the
// index has a row (shard or tombstone) is in it. It is the writer's.
type recent struct {
	floor  uint64 // birth, unix ms
	chunks map[storage.ChunkRemoval]recentChunk
	births []uint64
}

type recentChunk struct {
	removed bool
	index   uint8  // of the shards in stripes: a drive rarely holds two of one stripe
	stripes uint64 // bit i: the shard of stripe i is in the index
}

// verdict is what recent knows of a shard.
type verdict uint8

const (
	askIndex verdict = iota
	isNew            // neither the shard nor a tombstone of its chunk is in the index
	isRemoved
)

func birth(c *storage.ChunkID) uint64 { return binary.BigEndian.Uint64(c[:8]) }

func (c *recent) ask(id *storage.ShardID) verdict {
	if birth(&id.Chunk) <= c.floor {
		return askIndex
	}
	s, ok := c.chunks[storage.ChunkRemoval{PG: id.PG, Chunk: id.Chunk}]
	switch {
	case !ok:
		return isNew
	case s.removed:
		return isRemoved
	case s.index != id.Index || id.Stripe >= 64 || s.stripes&(1<<id.Stripe) != 0:
		return askIndex
	}
	return isNew
}

// entered notes that the shard is in the index.
func (c *recent) entered(id *storage.ShardID) {
	if birth(&id.Chunk) <= c.floor {
		return
	}
	key := storage.ChunkRemoval{PG: id.PG, Chunk: id.Chunk}
	s, ok := c.chunks[key]
	if !ok {
		s.index = id.Index
	}
	if s.index == id.Index && id.Stripe < 64 {
		s.stripes |= 1 << id.Stripe
	}
	c.put(key, s)
}

// removed notes that the chunk has a tombstone.
func (c *recent) removed(key storage.ChunkRemoval) {
	if birth(&key.Chunk) > c.floor {
		c.put(key, recentChunk{removed: true})
	}
}

func (c *recent) put(key storage.ChunkRemoval, s recentChunk) {
	if c.chunks == nil {
		c.chunks = map[storage.ChunkRemoval]recentChunk{}
	}
	c.chunks[key] = s
	if len(c.chunks) < recentMax {
		return
	}
	// Forget the older half.
	c.births = c.births[:0]
	for k := range c.chunks {
		c.births = append(c.births, birth(&k.Chunk))
	}
	slices.Sort(c.births)
	c.floor = c.births[len(c.births)/2]
	for k := range c.chunks {
		if birth(&k.Chunk) <= c.floor {
			delete(c.chunks, k)
		}
	}
}

// youngest is the latest birth of a chunk in the index: one step per placement group.
func (ix *index) youngest() (latest uint64, err error) {
	for _, row := range []byte{rowShard, rowTombstone} {
		it, err := ix.db.NewIter(&pebble.IterOptions{LowerBound: []byte{row}, UpperBound: rowEnd(row)})
		if err != nil {
			return 0, err
		}
		for ok := it.First(); ok; {
			next := rowEnd(row)
			if pg := keyNumber(it.Key()); pg+1 != 0 {
				next = numberKey(row, pg+1)
			}
			if it.SeekLT(next) && len(it.Key()) >= chunkKeyBytes {
				latest = max(latest, binary.BigEndian.Uint64(it.Key()[5:]))
			}
			ok = it.SeekGE(next)
		}
		if err := errors.Join(it.Error(), it.Close()); err != nil {
			return 0, err
		}
	}
	return latest, nil
}
