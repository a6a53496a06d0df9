package compress

import (
	"bytes"
	"context"
	"io"
	"math/bits"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/chunkio"
	"cairn/storage/errs"
)

// Write makes a body durable as chunkio.Plane.Write does, with the same promises and errors, and compresses what it can
// if the class says so and there is memory for it. Tee sees the bytes of the body.
func (p *Plane) Write(ctx context.Context, req chunkio.WriteRequest) ([]*metapb.ChunkRef, error) {
	if !Compresses(req.Class) || req.Size <= 0 {
		return p.chunks.Write(ctx, req)
	}
	unit := int(min(req.Size, frameBytes))
	coded := p.enc.MaxEncodedSize(unit)
	memory := int64(2*unit + 2*coded) // the writer's own and a piece's first frame
	if err := p.acquire(ctx, p.writing, memory, p.wait/5); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return p.chunks.Write(ctx, req)
	}
	defer p.writing.Release(memory)
	w := &writer{
		plane: p, ctx: ctx, req: req,
		raw: make([]byte, unit), back: make([]byte, unit), coded: make([]byte, 0, coded),
		pieceMax: min(max((req.Size/piecesWanted+frameBytes)/frameBytes*frameBytes, p.pieces), storage.ChunkBytesMax),
	}
	if err := w.run(); err != nil {
		return nil, err
	}
	return w.done()
}

// writer is one Write of a class that compresses.
type writer struct {
	plane    *Plane
	ctx      context.Context
	req      chunkio.WriteRequest
	pieceMax int64 // a multiple of frameBytes

	raw   []byte // a frame as it came
	back  []byte // the same after coding and decoding
	coded []byte // scratch
	read  int64  // bytes of the body so far
	dull  int    // pieces in a row that did not pay
	refs  []*metapb.ChunkRef
	since []*cluster.Topology // of each of them: from before it was written
}

func (w *writer) run() error {
	for w.read < w.req.Size {
		rest := w.req.Size - w.read
		if !w.mayCut(rest) {
			return w.passOn(nil, rest)
		}
		if err := w.nextPiece(min(rest, w.pieceMax)); err != nil {
			return err
		}
	}
	return nil
}

// put writes bytes through chunkio.
func (w *writer) put(body io.Reader, size int64, tee func([]byte)) ([]*metapb.ChunkRef, *cluster.Topology, error) {
	before := w.plane.topology()
	req := w.req
	req.Body, req.Size, req.Tee = body, size, tee
	refs, err := w.plane.chunks.Write(w.ctx, req)
	return refs, before, err
}

func (w *writer) take(refs []*metapb.ChunkRef, before *cluster.Topology) {
	for _, ref := range refs {
		w.refs, w.since = append(w.refs, ref), append(w.since, before)
	}
}

// done answers the chunks. Each was durable when it was written, which may be long ago: as chunkio does for the
// chunks of one write, shards whose place was given to another drive since count as missing, and what is left must still be enough.
func (w *writer) done() ([]*metapb.ChunkRef, error) {
	if len(w.refs) > storage.ObjectChunksMax {
		return nil, errs.New(errs.Unavailable, "compress.write", string(w.req.Class), "placement groups lost their quorum too often")
	}
	now := w.plane.topology()
	for i, ref := range w.refs {
		if w.since[i] == now {
			continue
		}
		was, old := w.since[i].PGs[storage.PGID(ref.Pg)]
		pg, ok := now.PGs[storage.PGID(ref.Pg)]
		if !ok || old && pg.Scheme != was.Scheme {
			return nil, errs.Newf(errs.Unavailable, "compress.write", string(w.req.Owner.Key), "placement group %d changed during the write", ref.Pg)
		}
		for s := range pg.Drives {
			drive, _ := placement.DriveAt(&was, s) // zero if the group is younger than the write: then every shard is where it was
			if at, before := placement.DriveAt(&pg, s); drive != at && drive != before {
				ref.Missing |= 1 << s
			}
		}
		if placement.Durable(now, &pg, ref.Missing) {
			continue
		}
		if err := w.plane.chunks.Rebuild(w.ctx, w.req.Owner, ref, indexesOf(ref.Missing)); err != nil {
			return nil, &errs.Error{Kind: errs.Unavailable, Op: "compress.write", Subject: string(w.req.Owner.Key), Detail: "the placement group changed during the write", Err: err}
		}
		ref.Missing = 0
	}
	return w.refs, nil
}

// indexesOf are the set bits, in order.
func indexesOf(set uint64) (out []int) {
	for ; set != 0; set &= set - 1 {
		out = append(out, bits.TrailingZeros64(set))
	}
	return out
}

// mayCut reports whether the rest of the body fits into the chunks that a row may name if another piece is cut
// from it: pieces may be shorter than the chunks that chunkio makes.
func (w *writer) mayCut(rest int64) bool {
	return int64(len(w.refs))+1+(rest+storage.ChunkBytesMax-1)/storage.ChunkBytesMax <= storage.ObjectChunksMax-chunksSpare
}

// nextPiece writes the next piece of the body, at most max bytes.
func (w *writer) nextPiece(max int64) error {
	pc := &piece{plane: w.plane}
	defer pc.release()
	for pc.raw < max {
		n := int(min(max-pc.raw, frameBytes))
		if !pc.grow(n) {
			break
		}
		if err := w.fill(n); err != nil {
			return err
		}
		if err := w.frame(pc, n); err != nil {
			return err
		}
		if pc.raw == int64(n) && w.dull >= dullMax && !pays(pc.raw, pc.length) {
			return w.passOn(w.raw[:n], max)
		}
	}
	if !pays(pc.raw, pc.stored()) {
		w.dull++
		return w.chunk(&decoding{piece: pc, mem: w.back}, pc.raw)
	}
	w.dull = 0
	return w.compressed(pc)
}

// pays reports whether it is worth a decoder's work to store so many bytes instead of raw ones. What a chunk is
// shorter by is saved to the byte, since shards lie side by side in extents.
func pays(raw, stored int64) bool {
	return raw-stored >= max(raw/20, savedMin)
}

// fill reads the next n bytes of the body into raw, and behind the last ones the body's end: a body that
// proves wrong there has reached no drive if it is one piece.
func (w *writer) fill(n int) error {
	if err := w.req.ReadNext(w.raw[:n], w.read); err != nil {
		return err
	}
	w.read += int64(n)
	if w.read == w.req.Size {
		return w.req.ExpectEnd()
	}
	return nil
}

// frame codes the first n bytes of raw as the piece's next frame and proves it.
func (w *writer) frame(pc *piece, n int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	w.coded = w.plane.enc.EncodeAll(w.raw[:n], w.coded[:0])
	back, err := w.plane.decode(w.coded, w.back, n)
	if err == nil && !bytes.Equal(back, w.raw[:n]) {
		err = errs.New(errs.Corrupt, "compress.write", "", "a frame decodes to other bytes than were coded")
	}
	if err != nil {
		return err
	}
	pc.add(bytes.Clone(w.coded), n)
	return nil
}

// chunk writes n bytes as they are; the body's have been seen by Tee.
func (w *writer) chunk(from io.Reader, n int64) error {
	refs, before, err := w.put(from, n, nil)
	w.take(refs, before)
	return err
}

// passOn writes n bytes of the body as they come, of which head has been read and seen by Tee.
func (w *writer) passOn(head []byte, n int64) error {
	seen := len(head)
	rest := n - int64(seen)
	body := io.LimitReader(w.req.Body, rest)
	if w.read += rest; w.read == w.req.Size && rest > 0 {
		body = w.req.Body // with its end
	}
	refs, before, err := w.put(io.MultiReader(bytes.NewReader(head), body), n, func(p []byte) {
		skip := min(seen, len(p))
		seen -= skip
		if w.req.Tee != nil && skip < len(p) {
			w.req.Tee(p[skip:])
		}
	})
	w.take(refs, before)
	return err
}

// compressed writes a piece as one chunk. If its placement group loses the quorum on the way it comes back as several: frames
// cut in two belong to no chunk, so it is written again as a whole, and after a few tries as it came. What is not
// used is left to scrub, as what a write that fails has written.
func (w *writer) compressed(pc *piece) error {
	for range triesMax {
		refs, before, err := w.put(pc.reader(), pc.stored(), nil)
		if err != nil {
			return err
		}
		if len(refs) == 1 {
			refs[0].Compression, refs[0].RawLength, refs[0].FrameBytes = metapb.Compression_ZSTD_SEEKABLE, uint64(pc.raw), frameBytes
			w.take(refs, before)
			return nil
		}
	}
	return w.chunk(&decoding{piece: pc, mem: w.back}, pc.raw)
}

// piece is what is to be one chunk, compressed.
type piece struct {
	plane  *Plane
	frames [][]byte
	raw    int64 // bytes of the body in it
	length int64 // of the frames
	more   int64 // bytes of the budget that it has besides the writer's own
}

// grow makes room for a frame of n bytes, and reports whether there is any. For the first one there is.
func (pc *piece) grow(n int) bool {
	if len(pc.frames) == 0 {
		return true
	}
	most := int64(pc.plane.enc.MaxEncodedSize(n))
	if !pc.plane.writing.TryAcquire(most) {
		return false
	}
	pc.more += most
	return true
}

// add takes a frame of n bytes of the body, for which there is room, and gives back the room that it leaves.
func (pc *piece) add(frame []byte, n int) {
	if len(pc.frames) > 0 {
		spare := int64(pc.plane.enc.MaxEncodedSize(n) - len(frame))
		pc.plane.writing.Release(spare)
		pc.more -= spare
	}
	pc.frames = append(pc.frames, frame)
	pc.raw, pc.length = pc.raw+int64(n), pc.length+int64(len(frame))
}

func (pc *piece) release() { pc.plane.writing.Release(pc.more) }

// stored is the length of the chunk.
func (pc *piece) stored() int64 { return pc.length + tableLen(len(pc.frames)) }

// reader is the bytes of the chunk.
func (pc *piece) reader() io.Reader {
	var parts []io.Reader
	var lengths []int
	for _, f := range pc.frames {
		parts, lengths = append(parts, bytes.NewReader(f)), append(lengths, len(f))
	}
	return io.MultiReader(append(parts, bytes.NewReader(appendTable(nil, pc.raw, frameBytes, lengths)))...)
}

// decoding is the bytes of the body in a piece.
type decoding struct {
	piece *piece
	mem   []byte
	next  int // frame
	rest  []byte
}

func (d *decoding) Read(p []byte) (int, error) {
	if len(d.rest) == 0 {
		if d.next == len(d.piece.frames) {
			return 0, io.EOF
		}
		var err error
		if d.rest, err = d.piece.plane.decode(d.piece.frames[d.next], d.mem, rawLen(d.piece.raw, frameBytes, d.next)); err != nil {
			return 0, err
		}
		d.next++
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	return n, nil
}
