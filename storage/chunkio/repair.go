package chunkio

import (
	"bytes"
	"context"
	"math/bits"
	"slices"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Rebuild computes shards of every stripe of a chunk from the others, appends
// them to the drives that the placement group names for them now, and reads them
// back. On nil each of them was on its drive and equal to what it must be. It takes one
// stripe at a time and may be repeated. The shards named are not read for it,
// so ones that are corrupt may be among them.
//
// Errors: InvalidArgument (an index outside the scheme); Unavailable (too few other shards answer, or a
// drive to write to is not there); Corrupt (too few are intact); Conflict, DriveFull,
// StaleEpoch and others as of ShardStore.Append; Gone (the chunk was removed).
func (p *Plane) Rebuild(ctx context.Context, owner storage.Owner, ref *metapb.ChunkRef, indexes []int) error {
	c, err := p.readChunk(ref)
	if err != nil {
		return err
	}
	var lost uint64
	for _, i := range indexes {
		if i < 0 || i >= c.layout.Scheme.Shards() {
			return errs.Newf(errs.InvalidArgument, "chunkio.rebuild", c.id.String(), "shard %d of %s", i, c.layout.Scheme)
		}
		lost |= 1 << i
	}
	if lost == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for stripe := range c.layout.Stripes() {
		if err := p.rebuildStripe(ctx, owner, c, stripe, lost); err != nil {
			return err
		}
	}
	return nil
}

func (p *Plane) rebuildStripe(ctx context.Context, owner storage.Owner, c *readChunk, stripe int, lost uint64) error {
	// The budget is asked for once, for what is read; the rest is bounded by it.
	n := c.layout.ShardLen(stripe)
	check, err := p.buffers.get(ctx, outbound, n)
	if err != nil {
		return err
	}
	defer check.release()
	r := &reader{plane: p, ctx: ctx, owner: owner}
	s := newStripeRead(r, piece{chunk: c, stripe: stripe})
	defer s.close()
	s.lo, s.hi, s.skip = 0, n, lost
	if err := s.gatherAny(); err != nil {
		return err
	}
	shards := s.shards()
	if err := s.compute(shards, lost); err != nil {
		return err
	}
	for rest := lost; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest)
		if err := p.replaceShard(ctx, owner, c, s, i, shards[i], check); err != nil {
			return err
		}
	}
	return nil
}

// replaceShard appends a shard to its drive and reads it back.
func (p *Plane) replaceShard(ctx context.Context, owner storage.Owner, c *readChunk, s *stripeRead, i int, payload []byte, check *buffer) error {
	id := storage.ShardID{PG: c.group.pg.ID, Chunk: c.id, Stripe: uint16(s.stripe), Index: uint8(i)}
	store, epoch, err := p.target(c, i)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ShardTimeout)
	defer cancel()
	held := s.bufferOf(payload)
	held.retain()
	err = store.Append(ctx, storage.ShardHeader{ID: id, Epoch: epoch, Owner: owner, Layout: c.layout}, payload, held.release)
	if err != nil {
		return err
	}
	back := check.b[:len(payload)]
	if err := p.readInTime(ctx, store, id, back, check); err != nil {
		return err
	}
	if !bytes.Equal(back, payload) {
		return errs.Newf(errs.Corrupt, "chunkio.rebuild", id.String(), "what was written reads back differently")
	}
	return nil
}

// target is the drive that shard i belongs to now.
func (p *Plane) target(c *readChunk, i int) (storage.ShardStore, storage.Epoch, error) {
	v := p.view()
	g := v.groups[c.group.pg.ID]
	if g == nil || g.pg.Scheme != c.layout.Scheme {
		return nil, 0, errs.New(errs.Unavailable, "chunkio.rebuild", c.id.String(), "the placement group is not known any more")
	}
	d := g.drives[i].id
	store := p.cfg.Store(d)
	if g.active&(1<<i) == 0 || store == nil {
		return nil, 0, errs.New(errs.Unavailable, "chunkio.rebuild", d.Short(), "the drive for the shard is down")
	}
	return store, g.pg.Epoch, nil
}

// readInTime is ReadAt that gives up when ctx ends; the buffer is kept until the drive lets go of it.
func (p *Plane) readInTime(ctx context.Context, store storage.ShardStore, id storage.ShardID, mem []byte, buf *buffer) error {
	result := make(chan error, 1)
	buf.retain()
	go func() {
		defer buf.release()
		result <- store.ReadAt(ctx, id, 0, mem)
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return errs.Wrap(errs.Timeout, "chunkio.read", id.String(), ctx.Err())
	}
}

// bufferOf is the buffer in which a shard lies.
func (s *stripeRead) bufferOf(shard []byte) *buffer {
	for _, b := range s.spare {
		if len(b.b) > 0 && &b.b[0] == &shard[0] {
			return b
		}
	}
	panic("chunkio: shard outside of every buffer") // every shard of a rebuild is a buffer of its own
}

// Remove tells every drive that may hold shards of the chunks, also those of
// moves under way, that they are removed by a committed delete. done: every such
// drive that is not removed itself has acknowledged it durably; else the garbage
// stays and Remove must be repeated. err says why a drive that should have
// answered did not, or a placement group is not known; drives recorded as down are no error.
func (p *Plane) Remove(ctx context.Context, refs []*metapb.ChunkRef) (done bool, err error) {
	v := p.view()
	byDrive, err := removals(v, refs)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ShardTimeout)
	defer cancel()
	type answer struct {
		drive storage.DriveID
		err   error
	}
	answers := make(chan answer, len(byDrive))
	for d, chunks := range byDrive {
		go func() {
			store := p.cfg.Store(d)
			if store == nil {
				answers <- answer{d, errs.New(errs.DriveFailed, "chunkio.remove", d.Short(), "the drive is not reachable")}
				return
			}
			answers <- answer{d, store.Remove(ctx, chunks)}
		}()
	}
	done = true
	for range byDrive {
		select {
		case a := <-answers:
			if a.err == nil {
				continue
			}
			done = false
			if v.topology.Drives[a.drive].State != cluster.DriveDown {
				err = a.err
			}
		case <-ctx.Done():
			return false, errs.Wrap(errs.Timeout, "chunkio.remove", "", ctx.Err())
		}
	}
	return done && p.samePlaces(v, refs), err
}

// removals are the chunks for each drive to remove.
func removals(v *view, refs []*metapb.ChunkRef) (map[storage.DriveID][]storage.ChunkRemoval, error) {
	byDrive := map[storage.DriveID][]storage.ChunkRemoval{}
	for _, ref := range refs {
		g := v.groups[storage.PGID(ref.Pg)]
		if g == nil || len(ref.Id) != len(storage.ChunkID{}) {
			return nil, errs.Newf(errs.Unavailable, "chunkio.remove", "", "placement group %d is not known here", ref.Pg)
		}
		removal := storage.ChunkRemoval{PG: g.pg.ID, Chunk: storage.ChunkID(ref.Id)}
		for _, d := range slices.Concat(g.pg.Drives, g.pg.Previous) {
			if d.IsZero() || v.topology.Drives[d].State == cluster.DriveRemoved {
				continue
			}
			if of := byDrive[d]; len(of) == 0 || of[len(of)-1] != removal { // a drive may be in both lists
				byDrive[d] = append(of, removal)
			}
		}
	}
	return byDrive, nil
}

// samePlaces reports whether the chunks' groups still have the drives they had:
// a drive that came in meanwhile may have copied a shard.
func (p *Plane) samePlaces(v *view, refs []*metapb.ChunkRef) bool {
	now := p.view()
	if now == v {
		return true
	}
	for _, ref := range refs {
		a, b := v.groups[storage.PGID(ref.Pg)], now.groups[storage.PGID(ref.Pg)]
		if b == nil || !slices.Equal(a.pg.Drives, b.pg.Drives) || !slices.Equal(a.pg.Previous, b.pg.Previous) {
			return false
		}
	}
	return true
}
