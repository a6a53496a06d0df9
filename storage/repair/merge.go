package repair

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
)

// source is a drive whose shard list of a placement group is read.
type source struct {
	drive storage.DriveID
	store storage.ShardStore
	err   error // its list could not be read: what it holds is not known
}

// sources are the drives that may hold shards of a placement group, present and
// previous. Those that are down or cannot be reached are left out.
func sources(t *cluster.Topology, pg *cluster.PG, stores Stores) []*source {
	var out []*source
	for _, id := range slices.Concat(pg.Drives, pg.Previous) {
		if id.IsZero() || !active(t, id) || slices.ContainsFunc(out, func(s *source) bool { return s.drive == id }) {
			continue
		}
		if st := stores(id); st != nil {
			out = append(out, &source{drive: id, store: st})
		}
	}
	return out
}

// shard is one shard as a drive lists it.
type shard struct {
	src    *source
	stripe uint16
	index  uint8
	bytes  int
}

// chunk is what the drives of a placement group list of one chunk.
type chunk struct {
	id     storage.ChunkID
	shards []shard
}

// stripes is one more than the highest stripe that any drive lists.
func (c *chunk) stripes() int {
	n := 0
	for _, s := range c.shards {
		n = max(n, int(s.stripe)+1)
	}
	return n
}

// found are the indexes listed of every stripe, as bits, by any drive; on, if given, counts that drive only.
func (c *chunk) found(stripes int, on *storage.DriveID) []uint64 {
	bits := make([]uint64, stripes)
	for _, s := range c.shards {
		if int(s.stripe) < stripes && s.index < 64 && (on == nil || s.src.drive == *on) {
			bits[s.stripe] |= 1 << s.index
		}
	}
	return bits
}

// page reads the lists of a placement group from a chunk on and merges them,
// holding some infosMax entries of each. Of the chunks answered the lists are
// complete, apart from sources whose err is set by then. next is where to go on; done: there is no more.
func page(ctx context.Context, pg storage.PGID, srcs []*source, from storage.ChunkID, infosMax int) (chunks []chunk, next storage.ChunkID, done bool, err error) {
	for {
		chunks, next, done = readPage(ctx, pg, srcs, from, infosMax)
		if ctx.Err() != nil {
			return nil, from, false, ctx.Err()
		}
		if done || next != from {
			return chunks, next, done, nil
		}
		if infosMax > 1<<24 {
			return nil, from, false, errs.Newf(errs.Corrupt, "repair.list", fmt.Sprintf("pg %d", pg), "chunk %v has more shards than any chunk can have", from)
		}
		infosMax *= 4 // not even one chunk fitted
	}
}

func readPage(ctx context.Context, pg storage.PGID, srcs []*source, from storage.ChunkID, infosMax int) (chunks []chunk, next storage.ChunkID, done bool) {
	lists := make([][]storage.ShardInfo, len(srcs))
	cut := make([]bool, len(srcs))
	var wg sync.WaitGroup
	for i, s := range srcs {
		if s.err != nil {
			continue
		}
		wg.Go(func() {
			s.err = s.store.List(ctx, pg, from, func(info storage.ShardInfo) bool {
				if len(lists[i]) == infosMax {
					cut[i] = true
					return false
				}
				lists[i] = append(lists[i], info)
				return true
			})
		})
	}
	wg.Wait()
	// A list that was cut may lack shards of its last chunk: go as far as the chunk before it.
	done = true
	for i, l := range lists {
		if srcs[i].err != nil || !cut[i] {
			continue
		}
		if last := l[len(l)-1].ID.Chunk; done || bytes.Compare(last[:], next[:]) < 0 {
			next, done = last, false
		}
	}
	for i, l := range lists {
		if srcs[i].err != nil {
			continue
		}
		for _, info := range l {
			if id := info.ID.Chunk; !done && bytes.Compare(id[:], next[:]) >= 0 {
				break
			}
			chunks = append(chunks, chunk{id: info.ID.Chunk, shards: []shard{{srcs[i], info.ID.Stripe, info.ID.Index, info.Bytes}}})
		}
	}
	return mergeChunks(chunks), next, done
}

// mergeChunks sorts by chunk and joins the entries of one chunk.
func mergeChunks(in []chunk) []chunk {
	slices.SortStableFunc(in, func(a, b chunk) int { return bytes.Compare(a.id[:], b.id[:]) })
	out := in[:0]
	for _, c := range in {
		if n := len(out); n > 0 && out[n-1].id == c.id {
			out[n-1].shards = append(out[n-1].shards, c.shards...)
			continue
		}
		out = append(out, c)
	}
	return out
}

// enough reports whether k indexes of each of so many stripes are listed.
func (c *chunk) enough(stripes, k int) bool {
	for _, bits := range c.found(stripes, nil) {
		if len(indexesOf(bits)) < k {
			return false
		}
	}
	return true
}

// header reads the header of one of the chunk's shards, any that can be read, from a drive that avoid does not name.
func (c *chunk) header(ctx context.Context, pg storage.PGID, avoid func(storage.DriveID) bool) (storage.ShardHeader, error) {
	err := error(errs.New(errs.NotFound, "repair.header", c.id.String(), "no drive tells what the chunk is"))
	for _, s := range c.shards {
		if avoid != nil && avoid(s.src.drive) {
			continue
		}
		h, herr := headerOf(ctx, s.src.store, storage.ShardID{PG: pg, Chunk: c.id, Stripe: s.stripe, Index: s.index})
		if herr == nil {
			return h, nil
		}
		err = herr
		if ctx.Err() != nil {
			break
		}
	}
	return storage.ShardHeader{}, err
}

func chunkName(o storage.Owner, id storage.ChunkID) string {
	return fmt.Sprintf("bucket %d key %q chunk %v", o.Bucket, string(o.Key), id)
}
