package chunkio

import (
	"bytes"
	"context"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// CheckChunk reads every shard of every stripe and verifies its checksums, and
// that the parity belongs to the data. missing are the shards that are not
// intact on their drives in some stripe; those whose drive could not be asked are among
// them, and then err is Unavailable. Corrupt: the shards are intact each for itself but
// contradict each other. Other errors: as of Rebuild.
func (p *Plane) CheckChunk(ctx context.Context, _ storage.Owner, ref *metapb.ChunkRef) (missing uint64, err error) {
	c, err := p.readChunk(ref)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var unasked error
	for stripe := range c.layout.Stripes() {
		bad, failed, err := p.checkStripe(ctx, c, stripe)
		missing |= bad
		if err != nil {
			return missing, err
		}
		if failed != nil {
			unasked = failed
		}
	}
	if unasked != nil {
		return missing, &errs.Error{Kind: errs.Unavailable, Op: "chunkio.check", Subject: c.id.String(), Detail: "some drives could not be asked", Err: unasked}
	}
	return missing, nil
}

// checkStripe answers the bad shards, and separately why some could not be asked.
func (p *Plane) checkStripe(ctx context.Context, c *readChunk, stripe int) (bad uint64, unasked, err error) {
	n, shards := c.layout.ShardLen(stripe), c.layout.Scheme.Shards()
	buf, err := p.buffers.get(ctx, outbound, 2*n*shards)
	if err != nil {
		return 0, nil, err
	}
	defer buf.release()
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ShardTimeout)
	defer cancel()
	type answer struct {
		index int
		err   error
	}
	answers := make(chan answer, shards)
	read := make([][]byte, shards)
	for i := range shards {
		read[i] = buf.b[i*n : (i+1)*n : (i+1)*n]
		buf.retain()
		go func() {
			defer buf.release()
			answers <- answer{i, p.readShard(ctx, c, stripe, i, 0, read[i])}
		}()
	}
	bad = c.group.all
	for range shards {
		select {
		case a := <-answers:
			switch kind := errs.KindOf(a.err); {
			case a.err == nil:
				bad &^= 1 << a.index
			case kind != errs.NotFound && kind != errs.Corrupt && kind != errs.Gone:
				unasked = a.err
			}
		case <-ctx.Done():
			return bad, errs.Wrap(errs.Timeout, "chunkio.check", c.id.String(), ctx.Err()), nil
		}
	}
	return bad, unasked, c.agree(read, bad, buf.b[n*shards:])
}

// agree recomputes every intact shard from the others in scratch and compares.
func (c *readChunk) agree(read [][]byte, bad uint64, scratch []byte) error {
	k := int(c.layout.Scheme.K)
	n := len(read[0])
	from := make([][]byte, len(read))
	var others uint64
	for i, have := range read {
		switch {
		case bad&(1<<i) != 0:
		case k > 0:
			from[i], k = have, k-1
		default:
			from[i] = scratch[i*n : i*n : (i+1)*n]
			others |= 1 << i
		}
	}
	if others == 0 {
		return nil
	}
	if err := c.codec.Reconstruct(from, others); err != nil {
		return err
	}
	for i := range read {
		if others&(1<<i) != 0 && !bytes.Equal(from[i], read[i]) {
			return errs.Newf(errs.Corrupt, "chunkio.check", c.id.String(), "shard %d does not belong to the others", i)
		}
	}
	return nil
}
