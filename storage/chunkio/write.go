package chunkio

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"cairn/cluster/placement"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/erasure"
	"cairn/storage/errs"
)

// Write makes a body durable and answers where it is: on nil, its chunks in
// order survive what the quorum rule says, and the body has answered io.EOF
// exactly after Size bytes. Nothing refers to the chunks yet. On an error nothing
// must refer to what was written; it is found as orphans later.
//
// Errors: IncompleteBody, EntityTooLarge (the body is longer than Size), the
// body's own, Busy (no buffers), Unavailable (no quorum), ctx's.
func (p *Plane) Write(ctx context.Context, req WriteRequest) ([]*metapb.ChunkRef, error) {
	if req.Size < 0 || req.Size > storage.ChunkBytesMax*storage.ObjectChunksMax {
		return nil, errs.Newf(errs.EntityTooLarge, "chunkio.write", string(req.Owner.Key), "%d bytes in one write", req.Size)
	}
	w := &writer{plane: p, ctx: ctx, req: req, wake: make(chan struct{}, 1)}
	defer w.close()
	if err := w.run(); err != nil {
		return nil, err
	}
	return w.refs()
}

// writer is one Write. Its fields belong to the goroutine of Write, but for mu.
type writer struct {
	plane *Plane
	ctx   context.Context
	req   WriteRequest

	chunks []*chunk  // in order; the last one is being filled
	window []*stripe // on their way to the drives, in order
	read   int64     // bytes of the body so far
	moves  int       // how often a placement group was given up since a stripe was settled
	why    error     // of the last shard that failed
	timer  *time.Timer
	wake   chan struct{} // see poke

	mu           sync.Mutex        // guards every shipment of this write, chunk.group, and:
	avoid        []storage.DriveID // drives that failed since a stripe was settled; appended to, never changed
	borrowed     int               // shards whose drives hold a buffer
	appendCtx    context.Context   // of blocking appends; made when the first one is needed
	appendCancel context.CancelFunc
}

// chunk is one chunk being written.
type chunk struct {
	group   *group
	id      storage.ChunkID
	epoch   storage.Epoch
	codec   *erasure.Codec
	layout  storage.Layout
	try     uint64 // shards to write
	durable uint64 // shards on disk in every stripe settled so far
	stripes int    // stripes cut so far
}

// stripe is data that is on its way to being durable. buf holds it as its codec lays it out.
type stripe struct {
	chunk  *chunk
	index  int
	buf    *buffer // one reference is the stripe's, until it is settled
	length int
	shards [][]byte
	ship   *shipment
}

func (w *writer) run() error {
	for w.read < w.req.Size {
		s, err := w.nextStripe()
		if err != nil {
			return err
		}
		if err := w.ship(s); err != nil {
			return err
		}
		if len(w.window) == windowStripes {
			if err := w.settleFirst(); err != nil {
				return err
			}
		}
	}
	if w.req.Size == 0 {
		return w.req.ExpectEnd()
	}
	for len(w.window) > 0 {
		if err := w.settleFirst(); err != nil {
			return err
		}
	}
	return nil
}

// nextStripe reads the next stripe of the body and puts it into the window. With
// the last one it also reads the end: a body that proves wrong there has
// reached no drive if it is small.
func (w *writer) nextStripe() (*stripe, error) {
	s, err := w.emptyStripe()
	if err != nil {
		return nil, err
	}
	w.window = append(w.window, s)
	if err := w.readBody(s.buf.b[:s.length]); err != nil {
		return nil, err
	}
	if w.read == w.req.Size {
		err = w.req.ExpectEnd()
	}
	return s, err
}

// emptyStripe is the next stripe with a buffer for it.
func (w *writer) emptyStripe() (*stripe, error) {
	for {
		c, err := w.fillingChunk()
		if err != nil {
			return nil, err
		}
		n := c.layout.StripeLen(c.stripes)
		buf, err := w.buffer(c.codec.BufferLen(n))
		if err != nil {
			return nil, err
		}
		if c == w.chunks[len(w.chunks)-1] {
			c.stripes++
			return &stripe{chunk: c, index: c.stripes - 1, buf: buf, length: n}, nil
		}
		buf.release() // while it waited, the write moved to another placement group
	}
}

// buffer gets n bytes. It waits for others only while it holds nothing itself, or
// writers could wait for each other.
func (w *writer) buffer(n int) (*buffer, error) {
	for {
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		if len(w.window) == 0 {
			return w.plane.buffers.get(w.ctx, inbound, n)
		}
		if buf := w.plane.buffers.tryGet(inbound, n); buf != nil {
			return buf, nil
		}
		if err := w.settleFirst(); err != nil {
			return nil, err
		}
	}
}

// readBody fills p from the body.
func (w *writer) readBody(p []byte) error {
	err := w.req.ReadNext(p, w.read)
	if err == nil {
		w.read += int64(len(p))
	}
	return err
}

// ReadNext fills p from the body, of which so many bytes were read before, and shows it to Tee. Errors: IncompleteBody; the body's own.
func (r *WriteRequest) ReadNext(p []byte, before int64) error {
	n, err := io.ReadFull(r.Body, p)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF && n < len(p):
		return errs.Newf(errs.IncompleteBody, "chunkio.write", string(r.Owner.Key), "%d of %d bytes came", before+int64(n), r.Size)
	case err != nil:
		return err
	}
	if r.Tee != nil {
		r.Tee(p)
	}
	return nil
}

// ExpectEnd reads the body's io.EOF. Errors: EntityTooLarge; the body's own.
func (r *WriteRequest) ExpectEnd() error {
	var one [1]byte
	for range 100 {
		n, err := r.Body.Read(one[:])
		switch {
		case n > 0:
			return errs.Newf(errs.EntityTooLarge, "chunkio.write", string(r.Owner.Key), "the body is longer than %d bytes", r.Size)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// fillingChunk is the chunk that the next stripe belongs to.
func (w *writer) fillingChunk() (*chunk, error) {
	if last := len(w.chunks) - 1; last >= 0 && w.chunks[last].stripes < w.chunks[last].layout.Stripes() {
		return w.chunks[last], nil
	}
	c, err := w.newChunk(min(w.req.Size-w.read, storage.ChunkBytesMax))
	if err != nil {
		return nil, err
	}
	w.chunks = append(w.chunks, c)
	return c, nil
}

// newChunk chooses the placement group for a chunk of length bytes.
func (w *writer) newChunk(length int64) (*chunk, error) {
	p := w.plane
	g, try, err := w.chooseInTime(length < placement.CopiedBelow(w.req.Class))
	if err != nil {
		return nil, err
	}
	codec, err := p.codecs.For(g.pg.Scheme)
	if err != nil {
		return nil, err
	}
	return &chunk{
		group: g, codec: codec, epoch: g.pg.Epoch, try: try, durable: g.all,
		id:     storage.NewChunkID(w.req.BirthMS(), p.cfg.Rand()),
		layout: storage.Layout{Scheme: g.pg.Scheme, StripeBytes: storage.StripeBytes, Length: length},
	}, nil
}

// chooseInTime chooses a group. When a zone is lost no group has its quorum until
// the loss is recorded, which takes a moment: the write waits for it.
func (w *writer) chooseInTime(small bool) (g *group, try uint64, err error) {
	p := w.plane
	until := time.Now().Add(p.cfg.QuorumWait)
	for {
		w.mu.Lock()
		avoid := w.avoid
		w.mu.Unlock()
		if g, try, err = p.choose(p.view(), w.req.Class, small, avoid); err == nil {
			return g, try, nil
		}
		left := time.Until(until)
		if left <= 0 {
			if w.why != nil {
				err = w.unavailable()
			}
			return nil, 0, err
		}
		if err := w.sleep(min(left, quorumPoll)); err != nil {
			return nil, 0, err
		}
	}
}

// unavailable is the error of a write that drives refused.
func (w *writer) unavailable() error {
	return &errs.Error{Kind: errs.Unavailable, Op: "chunkio.write", Subject: string(w.req.Class), Detail: "too few drives took the data", Err: w.why}
}

// ship codes a stripe and sends its shards to the drives.
func (w *writer) ship(s *stripe) (err error) {
	if s.shards == nil {
		if s.shards, err = s.chunk.codec.Encode(s.buf.b, s.length, make([][]byte, 0, s.chunk.codec.Scheme().Shards())); err != nil {
			return err
		}
	}
	s.ship = newShipment(w, s)
	s.ship.send(s.chunk.try)
	return nil
}

// settleFirst waits until the oldest stripe of the window is durable and lets go
// of its buffer. If it cannot become durable where it is, it moves.
func (w *writer) settleFirst() error {
	for {
		s := w.window[0]
		switch verdict, again := w.judge(s); verdict {
		case settled:
			w.window = append(w.window[:0], w.window[1:]...)
			s.buf.release()
			return nil
		case lost:
			if err := w.move(s); err != nil {
				return err
			}
		default:
			if err := w.sleep(again); err != nil {
				return err
			}
		}
	}
}

type verdict int

const (
	waiting verdict = iota
	settled         // durable, and nothing worth waiting for
	lost            // cannot become durable here
)

// judge decides about a stripe; while it is waiting, again says when to look next.
func (w *writer) judge(s *stripe) (v verdict, again time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v, again = w.judgeLocked(s)
	if v == waiting {
		return v, again
	}
	if v == settled {
		s.ship.leaveLocked()
		s.chunk.durable &= s.ship.durable
		s.chunk.try &= s.chunk.durable // what lacks one stripe is rebuilt as a whole
		w.avoid, w.moves = nil, 0
	} else {
		s.ship.giveUpLocked(time.Since(s.ship.sent) >= w.plane.cfg.ShardTimeout)
		w.why = s.ship.why
	}
	return v, 0
}

func (w *writer) judgeLocked(s *stripe) (verdict, time.Duration) {
	ship, c, cfg := s.ship, s.chunk, &w.plane.cfg
	pending := ship.all &^ ship.answered
	have := ship.durable & c.durable
	if c.group.quorum.Holds(have) {
		if pending&^ship.lagging == 0 {
			return settled, 0
		}
		if ship.quorumAt.IsZero() {
			ship.quorumAt = time.Now()
		}
		if left := cfg.QuorumGrace - time.Since(ship.quorumAt); left > 0 {
			return waiting, left
		}
		return settled, 0
	}
	left := cfg.ShardTimeout - time.Since(ship.sent)
	if left <= 0 || !c.group.quorum.Holds(have|pending&c.durable) {
		return lost, 0
	}
	w.refreshLocked(c)
	return waiting, min(left, cfg.QuorumGrace)
}

// refreshLocked lets a write go on when an outage it waits for was recorded meanwhile.
func (w *writer) refreshLocked(c *chunk) {
	g := w.plane.view().groups[c.group.pg.ID]
	if g != nil && g != c.group && slices.Equal(g.pg.Drives, c.group.pg.Drives) {
		c.group = g
		c.try &= g.active
	}
}

// poke wakes the writer.
func (w *writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// avoidLocked keeps this write, and for a while others, from choosing a drive.
func (w *writer) avoidLocked(d *drive) {
	w.avoid = append(w.avoid[:len(w.avoid):len(w.avoid)], d.id)
	d.shun()
}

// sleep waits for news of a shipment, at most for d.
func (w *writer) sleep(d time.Duration) error {
	if w.timer == nil {
		w.timer = time.NewTimer(d)
	} else {
		w.timer.Reset(d)
	}
	defer w.timer.Stop()
	select {
	case <-w.wake:
	case <-w.timer.C:
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
	return nil
}

// move ends the chunk before stripe s and sends s and what follows of the chunk
// to another placement group, as a new chunk. The buffers are still there,
// because stripes are settled in order.
func (w *writer) move(s *stripe) error {
	old := s.chunk
	if w.moves++; w.moves > movesMax || len(w.chunks) >= storage.ObjectChunksMax {
		return w.unavailable()
	}
	if err := w.pause(); err != nil {
		return err
	}
	kept := int64(s.index) * int64(old.layout.StripeBytes)
	c, err := w.newChunk(old.layout.Length - kept)
	if err != nil {
		return err
	}
	w.plane.cfg.Logger.Warn("placement group given up during a write", "from", old.group.pg.ID, "to", c.group.pg.ID, "err", w.why)
	w.replaceChunk(old, c, kept)
	for _, s := range w.window {
		if s.chunk != old {
			continue
		}
		w.mu.Lock()
		s.ship.leaveLocked()
		w.mu.Unlock()
		s.chunk, s.index = c, c.stripes
		c.stripes++
		if err := w.recode(s, old.codec); err != nil {
			return err
		}
		if err := w.ship(s); err != nil {
			return err
		}
	}
	return nil
}

// pause gives a topology that is just changing time to arrive.
func (w *writer) pause() error {
	if !errs.Is(w.why, errs.StaleEpoch) {
		return nil
	}
	until := time.Now().Add(25 * time.Millisecond << w.moves)
	for left := time.Until(until); left > 0; left = time.Until(until) {
		if err := w.sleep(left); err != nil {
			return err
		}
	}
	return nil
}

// replaceChunk cuts old to its first kept bytes, or drops it, and puts c behind.
func (w *writer) replaceChunk(old, c *chunk, kept int64) {
	for i := range w.chunks {
		if w.chunks[i] != old {
			continue
		}
		rest := append([]*chunk{c}, w.chunks[i+1:]...)
		if kept > 0 {
			old.layout.Length, old.stripes = kept, int(kept/int64(old.layout.StripeBytes))
			i++
		}
		w.chunks = append(w.chunks[:i], rest...)
		return
	}
}

// recode prepares a stripe for another chunk. Drives may still be reading the old
// shards, so another scheme gets memory of its own: past the budget, but each
// write has at most windowStripes stripes and movesMax moves.
func (w *writer) recode(s *stripe, old *erasure.Codec) error {
	codec := s.chunk.codec
	if codec == old {
		return nil
	}
	buf := w.plane.buffers.force(inbound, codec.BufferLen(s.length))
	copy(buf.b, s.buf.b[:s.length])
	s.buf.release()
	s.buf, s.shards = buf, nil
	return nil
}

// refs names the chunks. Shards whose place was given to another drive meanwhile
// count as missing, and what is left must still be durable.
func (w *writer) refs() ([]*metapb.ChunkRef, error) {
	v := w.plane.view()
	refs := make([]*metapb.ChunkRef, 0, len(w.chunks))
	for _, c := range w.chunks {
		if g := v.groups[c.group.pg.ID]; g != c.group && (g == nil || !c.stillDurable(g)) {
			if err := w.complete(c); err != nil {
				return nil, &errs.Error{Kind: errs.Unavailable, Op: "chunkio.write", Subject: string(w.req.Owner.Key), Detail: "the placement group changed during the write", Err: err}
			}
		}
		refs = append(refs, c.ref())
	}
	return refs, nil
}

// complete rebuilds what a chunk lacks. It was durable enough when it was written,
// but a zone that counted as down then has come back, and with it the stricter rule.
func (w *writer) complete(c *chunk) error {
	ref := c.ref()
	var lacking []int
	for i := range c.layout.Scheme.Shards() {
		if ref.Missing&(1<<i) != 0 {
			lacking = append(lacking, i)
		}
	}
	if err := w.plane.Rebuild(w.ctx, w.req.Owner, ref, lacking); err != nil {
		return err
	}
	c.durable = c.group.all
	return nil
}

// ref names the chunk as its row will.
func (c *chunk) ref() *metapb.ChunkRef {
	return &metapb.ChunkRef{
		Id: c.id[:], Pg: uint32(c.group.pg.ID), Epoch: uint64(c.epoch),
		K: uint32(c.layout.Scheme.K), M: uint32(c.layout.Scheme.M),
		StripeBytes: uint32(c.layout.StripeBytes), Length: uint64(c.layout.Length),
		Missing: c.group.all &^ c.durable,
	}
}

// stillDurable takes the shards off that now belong to other drives, and judges by the rule of now.
func (c *chunk) stillDurable(now *group) bool {
	if now.pg.Scheme != c.group.pg.Scheme {
		return false
	}
	for i, id := range c.group.pg.Drives {
		drive, before := placement.DriveAt(&now.pg, i)
		if id != drive && id != before {
			c.durable &^= 1 << i
		}
	}
	return now.quorum.Holds(c.durable)
}

// close lets go of everything. Drives that have not answered keep their
// references to the buffers; after a success they get another ShardTimeout to
// finish, because what they write is useful.
func (w *writer) close() {
	w.mu.Lock()
	for _, s := range w.window {
		if s.ship != nil {
			s.ship.leaveLocked()
		}
	}
	borrowed, cancel := w.borrowed, w.appendCancel
	w.mu.Unlock()
	failed := len(w.window) > 0
	for _, s := range w.window {
		s.buf.release()
	}
	switch {
	case cancel == nil:
	case failed || borrowed == 0:
		cancel()
	default:
		time.AfterFunc(w.plane.cfg.ShardTimeout, cancel)
	}
}

// contextForAppendLocked is the context of blocking appends: it outlives the request.
func (w *writer) contextForAppendLocked() context.Context {
	if w.appendCtx == nil {
		w.appendCtx, w.appendCancel = context.WithCancel(context.WithoutCancel(w.ctx))
	}
	return w.appendCtx
}
