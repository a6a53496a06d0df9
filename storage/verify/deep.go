package verify

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/erasure"
	"cairn/storage/errs"
)

// deep reads versions and parts back, compares their MD5 with their ETag, and
// computes the parity of their stripes again. Frames that fail their checksums have
// been reported already; this finds what was wrong before it was checksummed.
func (r *run) deep(ctx context.Context) error {
	if !r.cfg.Deep || r.cfg.Read == nil {
		return nil
	}
	var codecs erasure.Codecs
	return r.scratch.content.each(ctx, func(_, v []byte) error {
		n, d, etag, err := parseContent(v)
		if err != nil {
			return err
		}
		sum := md5.New()
		var size int64
		for _, ref := range d.Chunks {
			size += int64(ref.ObjectBytes())
		}
		err = r.cfg.Read(ctx, n.owner, d.Chunks, 0, size, func(p []byte) error {
			_, _ = sum.Write(p)
			return ctx.Err()
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// A version that is not there any more was deleted or rewritten meanwhile.
		if ref, rerr := r.cfg.Meta.Ref(ctx, n.owner, storage.ChunkID(d.Chunks[0].Id)); rerr != nil || ref == nil {
			return rerr
		}
		if err != nil {
			r.problem(r.about(KindContent, n.owner.Bucket, n.owner.Key, n.version, "it cannot be read: %v", err))
			return nil
		}
		r.checkETag(&n, etag, [md5.Size]byte(sum.Sum(nil)))
		for _, ref := range d.Chunks {
			if err := r.parity(ctx, &codecs, &n, ref); err != nil {
				return err
			}
		}
		return nil
	})
}

// parity compares the parity shards of a chunk with those that its data gives, as
// far as all shards of a stripe can be read.
func (r *run) parity(ctx context.Context, codecs *erasure.Codecs, n *named, ref *metapb.ChunkRef) error {
	l := layoutOf(ref)
	codec, err := codecs.For(l.Scheme)
	if err != nil {
		return err
	}
	pg := r.cfg.Topology().PGs[storage.PGID(ref.Pg)]
	if len(pg.Drives) != l.Scheme.Shards() {
		return nil // reported with the frames
	}
	k := int(l.Scheme.K)
	for stripe := range l.Stripes() {
		shardLen := l.ShardLen(stripe)
		stored := make([]byte, shardLen*l.Scheme.Shards())
		whole := true
		for i, id := range pg.Drives {
			at, ok := r.drives[id]
			if !ok || r.cfg.Drives[at].Store == nil {
				return nil
			}
			shard := storage.ShardID{PG: pg.ID, Chunk: storage.ChunkID(ref.Id), Stripe: uint16(stripe), Index: uint8(i)}
			if err := r.cfg.Drives[at].Store.ReadAt(ctx, shard, 0, stored[i*shardLen:(i+1)*shardLen]); err != nil {
				whole = false // reported with the frames, or removed meanwhile
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !whole {
			continue
		}
		data := l.StripeLen(stripe)
		buf := make([]byte, max(codec.BufferLen(data), k*shardLen))
		copy(buf, stored[:k*shardLen])
		if k == 1 {
			buf = buf[:data]
		}
		shards, err := codec.Encode(buf, data, nil)
		if err != nil {
			return errs.Wrap(errs.Other, "verify", "parity", err)
		}
		for i := range shards {
			if !bytes.Equal(shards[i], stored[i*shardLen:(i+1)*shardLen]) {
				p := r.about(KindContent, n.owner.Bucket, n.owner.Key, n.version, "%s", fmt.Sprintf("chunk %x stripe %d: shard %d is not what the data gives", ref.Id, stripe, i))
				r.problem(r.on(p, pg.Drives[i]))
			}
		}
	}
	return nil
}
