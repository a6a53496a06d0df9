package chunkio

import (
	"context"
	"io"
	"time"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/erasure"
	"cairn/storage/errs"
)

// Read writes the n bytes from off on of the concatenation of refs to dst, in
// order, a stripe at a time. The slices given to dst are valid only during the
// call. Every byte was verified: after an error what dst has is right, but incomplete.
//
// Errors: InvalidRange; Busy (no buffers); Unavailable (too few drives answer, the bytes may come
// back); Corrupt (every drive answered, and too few have their shard); Gone (the chunk was removed); dst's own; ctx's.
func (p *Plane) Read(ctx context.Context, dst io.Writer, owner storage.Owner, refs []*metapb.ChunkRef, off, n int64) error {
	var total int64
	for _, ref := range refs {
		total += int64(ref.Length)
	}
	if off < 0 || n < 0 || off > total-n {
		return errs.Newf(errs.InvalidRange, "chunkio.read", string(owner.Key), "bytes %d to %d of %d", off, off+n, total)
	}
	ctx, cancel := context.WithCancel(ctx) // ends what is left of reads that were overtaken
	defer cancel()
	r := &reader{plane: p, ctx: ctx, owner: owner, refs: refs, off: off, left: n}
	defer r.close()
	for r.left > 0 || len(r.ahead) > 0 {
		if err := r.copyPiece(dst); err != nil {
			return err
		}
	}
	return nil
}

// reader is one Read. It belongs to one goroutine.
type reader struct {
	plane *Plane
	ctx   context.Context
	owner storage.Owner
	refs  []*metapb.ChunkRef // the first one is where off points into
	off   int64
	left  int64
	chunk *readChunk    // of refs[0], once looked up
	ahead []*stripeRead // started, in order
	begun bool          // the first piece was started: it is a whole stripe, so that what can't be read mostly fails before the first byte
	timer *time.Timer
}

// readChunk is a chunk being read.
type readChunk struct {
	ref    *metapb.ChunkRef
	id     storage.ChunkID
	view   *view
	group  *group
	codec  *erasure.Codec
	layout storage.Layout
	// byShard: every data shard is where it should be, so each is a piece of its own: what is read is sent while it is
	// in the processor's cache. A lost one costs k reads, so otherwise a piece is a stripe, whose reads decoding uses too.
	byShard bool
}

// piece is bytes [from, to) of one stripe, all of it or of one data shard.
type piece struct {
	chunk    *readChunk
	stripe   int
	from, to int
}

// bufferLen is the memory for a piece: with the padding of its last shard, if the
// piece ends where the data does, so that the shard serves in decoding as it is.
func (pc piece) bufferLen() int {
	l := pc.chunk.layout
	n := pc.to - pc.from
	if shardLen := l.ShardLen(pc.stripe); l.Scheme.K > 1 && pc.to == l.StripeLen(pc.stripe) {
		n += (shardLen - pc.to%shardLen) % shardLen
	}
	return n
}

// copyPiece passes on the next piece, and starts a few behind it before it waits.
func (r *reader) copyPiece(dst io.Writer) error {
	if err := r.startAhead(); err != nil {
		return err
	}
	s := r.ahead[0]
	r.ahead = r.ahead[1:]
	parts, err := s.gather()
	if err != nil {
		s.close()
		if s, parts, err = r.tryAgain(s.piece, err); err != nil {
			return err
		}
	}
	defer s.close()
	for _, part := range parts {
		if n, err := dst.Write(part); err != nil {
			return err
		} else if n < len(part) {
			return io.ErrShortWrite
		}
	}
	return nil
}

// startAhead starts reads of the pieces to come: at least one, and as many more
// as are allowed and find memory at once.
func (r *reader) startAhead() error {
	for r.left > 0 && len(r.ahead) <= r.aheadMax() {
		pc, err := r.nextPiece()
		if err != nil {
			return err
		}
		n := pc.bufferLen()
		var buf *buffer
		if len(r.ahead) > 0 {
			if buf = r.plane.buffers.tryGet(outbound, n); buf == nil {
				return nil
			}
		} else if buf, err = r.plane.buffers.get(r.ctx, outbound, n); err != nil {
			return err
		}
		r.ahead = append(r.ahead, r.start(pc, buf))
		r.advance(pc.to - pc.from)
	}
	return nil
}

// aheadMax is how many pieces are started before they are wanted: with shards for pieces so many that each of the k
// drives has something to do. More would not be in the processor's cache any more when it is sent.
func (r *reader) aheadMax() int {
	if r.chunk != nil && r.chunk.byShard {
		return max(1, int(r.chunk.layout.Scheme.K)-1)
	}
	return aheadStripes
}

// nextPiece is the next piece to start.
func (r *reader) nextPiece() (piece, error) {
	for r.off >= int64(r.refs[0].Length) {
		r.off -= int64(r.refs[0].Length)
		r.refs, r.chunk = r.refs[1:], nil
	}
	if r.chunk == nil {
		c, err := r.plane.readChunk(r.refs[0])
		if err != nil {
			return piece{}, err
		}
		r.chunk = c
	}
	l := r.chunk.layout
	i := int(r.off / int64(l.StripeBytes))
	from := int(r.off % int64(l.StripeBytes))
	end := l.StripeLen(i)
	if from == 0 { // drives come and go while a chunk is read
		r.chunk.byShard = r.begun && l.Scheme.K > 1 && r.plane.allGood(r.chunk)
	}
	if r.chunk.byShard {
		shardLen := l.ShardLen(i)
		end = min(end, (from/shardLen+1)*shardLen)
	}
	return piece{r.chunk, i, from, min(end, from+int(min(r.left, int64(l.StripeBytes))))}, nil
}

func (r *reader) advance(n int) {
	r.begun = true
	r.off += int64(n)
	r.left -= int64(n)
}

// readChunk looks up where a chunk is.
func (p *Plane) readChunk(ref *metapb.ChunkRef) (*readChunk, error) {
	scheme := storage.Scheme{K: uint8(ref.K), M: uint8(ref.M)}
	if len(ref.Id) != len(storage.ChunkID{}) || ref.StripeBytes == 0 || ref.Length == 0 || ref.Length > storage.ChunkBytesMax {
		return nil, errs.Newf(errs.Corrupt, "chunkio", "", "malformed reference to a chunk: %v", ref)
	}
	codec, err := p.codecs.For(scheme)
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, "chunkio", "", err)
	}
	v := p.view()
	g := v.groups[storage.PGID(ref.Pg)]
	if g == nil || g.pg.Scheme != scheme {
		return nil, errs.Newf(errs.Unavailable, "chunkio", storage.ChunkID(ref.Id).String(), "placement group %d with %s is not known here", ref.Pg, scheme)
	}
	c := &readChunk{ref: ref, id: storage.ChunkID(ref.Id), view: v, group: g, codec: codec,
		layout: storage.Layout{Scheme: scheme, StripeBytes: int(ref.StripeBytes), Length: int64(ref.Length)}}
	return c, nil
}

// allGood reports whether each data shard is where it should be.
func (p *Plane) allGood(c *readChunk) bool {
	for i := range int(c.layout.Scheme.K) {
		if p.preference(c, i) != good {
			return false
		}
	}
	return true
}

// start begins to read the shards that hold a piece. buf has the piece's bufferLen and belongs to the read now.
func (r *reader) start(pc piece, buf *buffer) *stripeRead {
	s := newStripeRead(r, pc)
	s.out = buf
	s.want()
	return s
}

// tryAgain reads a piece once more if the topology has changed since: its shards may have moved.
func (r *reader) tryAgain(pc piece, err error) (*stripeRead, [][]byte, error) {
	c, lookupErr := r.plane.readChunk(pc.chunk.ref)
	if lookupErr != nil || c.view == pc.chunk.view || r.ctx.Err() != nil {
		return nil, nil, err
	}
	pc.chunk = c
	s := r.start(pc, r.plane.buffers.force(outbound, pc.bufferLen())) // in place of the one just closed
	parts, err := s.gather()
	if err != nil {
		s.close()
	}
	return s, parts, err
}

func (r *reader) close() {
	for _, s := range r.ahead {
		s.close()
	}
	if r.timer != nil {
		r.timer.Stop()
	}
}

// Preferences among the drives that may hold a shard, best first.
const (
	good        = iota // active and nothing speaks against it
	doubtful           // active but slow, or said not to have the shard
	desperate          // recorded as down, but there is a way to it
	unreachable        // there is no way to it
)

// preference is how good a source shard i of the chunk is.
func (p *Plane) preference(c *readChunk, i int) int {
	now, before := placement.DriveAt(&c.group.pg, i)
	d := c.group.drives[i]
	here := p.cfg.Store(now) != nil
	there := !before.IsZero() && p.cfg.Store(before) != nil
	switch {
	case !here && !there:
		return unreachable
	case c.view.topology.Drives[now].State != cluster.DriveActive && !there:
		return desperate
	case !here || d.slowReads.Load() > 0 || d.failedLately() || c.mayLack(i) && !there:
		return doubtful
	}
	return good
}

// mayLack reports whether the drive of shard i is known not to have it, or to
// have missed writes of the time when the chunk was written.
func (c *readChunk) mayLack(i int) bool {
	if c.ref.Missing&(1<<i) != 0 {
		return true
	}
	dirty := c.group.pg.DirtySince
	return i < len(dirty) && dirty[i] != 0 && storage.Epoch(c.ref.Epoch) >= dirty[i]
}

// readShard reads columns of shard i from its drive, or from where it was before a move.
func (p *Plane) readShard(ctx context.Context, c *readChunk, stripe, i, off int, mem []byte) error {
	id := storage.ShardID{PG: c.group.pg.ID, Chunk: c.id, Stripe: uint16(stripe), Index: uint8(i)}
	now, before := placement.DriveAt(&c.group.pg, i)
	if before.IsZero() || before == now {
		return p.readAt(ctx, now, id, off, mem)
	}
	first, second := now, before
	if c.view.topology.Drives[now].State != cluster.DriveActive {
		first, second = before, now
	}
	err := p.readAt(ctx, first, id, off, mem)
	if err != nil && p.readAt(ctx, second, id, off, mem) == nil {
		return nil
	}
	return err
}

func (p *Plane) readAt(ctx context.Context, d storage.DriveID, id storage.ShardID, off int, mem []byte) error {
	store := p.cfg.Store(d)
	if store == nil {
		return errs.New(errs.DriveFailed, "chunkio.read", d.Short(), "the drive is not reachable")
	}
	return store.ReadAt(ctx, id, off, mem)
}
