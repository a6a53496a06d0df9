package compress

import (
	"context"
	"io"
	"slices"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Read writes the n bytes from off on of the object that lies in refs to dst, in order. The slices given to dst are
// valid only during the call. Every byte was verified: after an error what dst has is right, but incomplete.
//
// Errors: those of chunkio.Plane.Read, Busy also for want of memory to decode, Corrupt also for a chunk that does not decode.
func (p *Plane) Read(ctx context.Context, dst io.Writer, owner storage.Owner, refs []*metapb.ChunkRef, off, n int64) error {
	if !slices.ContainsFunc(refs, compressed) {
		return p.chunks.Read(ctx, dst, owner, refs, off, n)
	}
	var total int64
	for _, ref := range refs {
		total += int64(ref.ObjectBytes())
	}
	if off < 0 || n < 0 || off > total-n {
		return errs.Newf(errs.InvalidRange, "compress.read", string(owner.Key), "bytes %d to %d of %d", off, off+n, total)
	}
	for n > 0 {
		// The next chunk if it is compressed, else those up to the next one that is.
		size, i := int64(refs[0].ObjectBytes()), 1
		for !compressed(refs[0]) && i < len(refs) && !compressed(refs[i]) {
			size += int64(refs[i].ObjectBytes())
			i++
		}
		if off < size {
			read := p.chunks.Read
			if compressed(refs[0]) {
				read = p.readChunk
			}
			take := min(n, size-off)
			if err := read(ctx, dst, owner, refs[:i], off, take); err != nil {
				return err
			}
			off, n = off+take, n-take
		}
		refs, off = refs[i:], off-size
	}
	return nil
}

func compressed(ref *metapb.ChunkRef) bool {
	return ref.Compression != metapb.Compression_COMPRESSION_NONE
}

// readChunk reads from one compressed chunk. There are n > 0 bytes from off on in it.
func (p *Plane) readChunk(ctx context.Context, dst io.Writer, owner storage.Owner, refs []*metapb.ChunkRef, off, n int64) error {
	ref := refs[0]
	raw, stored := int64(ref.RawLength), int64(ref.Length)
	if !ref.WellCompressed() || ref.Compression != metapb.Compression_ZSTD_SEEKABLE || ref.RawLength > storage.ChunkBytesMax {
		return errs.Newf(errs.Corrupt, "compress.read", string(owner.Key), "malformed reference to a compressed chunk: %v", ref)
	}
	frame := int64(ref.FrameBytes)
	frames := framesOf(raw, frame)
	table := tableLen(frames)
	unit := min(raw, frame)
	memory := unit + storedMost(unit) + table
	if err := p.acquire(ctx, p.reading, memory, p.wait); err != nil {
		return err
	}
	defer p.reading.Release(memory)
	f := &frameReader{plane: p, dst: dst, rawLen: raw, frameLen: frame, out: make([]byte, unit)}
	if frames == 1 { // all of it is one read; stored is less than unit
		return f.readWhole(ctx, owner, refs, off, n)
	}
	tail := &sink{b: make([]byte, 0, table)}
	if err := p.chunks.Read(ctx, tail, owner, refs, max(0, stored-table), min(table, stored)); err != nil {
		return err
	}
	var err error
	if f.at, err = parseTable(tail.b, raw, stored, frame); err != nil {
		return about(err, owner, ref)
	}
	first, last := int(off/frame), int((off+n-1)/frame)
	f.frame, f.skip, f.left = first, off-int64(first)*frame, n
	f.buf = make([]byte, 0, storedMost(unit))
	if err := p.chunks.Read(ctx, f, owner, refs, f.at[first], f.at[last+1]-f.at[first]); err != nil {
		return about(err, owner, ref)
	}
	if f.left > 0 {
		return errs.New(errs.Corrupt, "compress.read", string(owner.Key), "too few bytes came of a chunk")
	}
	return nil
}

// about says which chunk an error of decoding is about; others know.
func about(err error, owner storage.Owner, ref *metapb.ChunkRef) error {
	if errs.Is(err, errs.Corrupt) {
		return errs.Wrap(errs.Corrupt, "compress.read", string(owner.Key)+" chunk "+storage.ChunkID(ref.Id).String(), err)
	}
	return err
}

// sink keeps what is written to it.
type sink struct{ b []byte }

func (s *sink) Write(p []byte) (int, error) {
	s.b = append(s.b, p...)
	return len(p), nil
}

// frameReader takes the stored bytes of frames and passes on what is wanted of what they hold.
type frameReader struct {
	plane            *Plane
	dst              io.Writer
	rawLen, frameLen int64   // of the chunk
	at               []int64 // where each frame begins
	frame            int     // the next one
	buf              []byte  // bytes of it that came
	out              []byte  // for what it holds
	skip             int64   // bytes of it that are not wanted
	left             int64   // bytes wanted
}

// readWhole reads from a chunk of one frame.
func (f *frameReader) readWhole(ctx context.Context, owner storage.Owner, refs []*metapb.ChunkRef, off, n int64) error {
	stored := int64(refs[0].Length)
	all := &sink{b: make([]byte, 0, stored)}
	if err := f.plane.chunks.Read(ctx, all, owner, refs, 0, stored); err != nil {
		return err
	}
	cut := max(0, stored-tableLen(1))
	if _, err := parseTable(all.b[cut:], f.rawLen, stored, f.frameLen); err != nil {
		return about(err, owner, refs[0])
	}
	f.buf, f.skip, f.left = all.b[:cut], off, n
	return about(f.pass(), owner, refs[0])
}

// Write takes stored bytes. dst's own errors come back as they are.
func (f *frameReader) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		if f.frame >= len(f.at)-1 {
			return 0, errs.New(errs.Corrupt, "compress.read", "", "more bytes than frames")
		}
		lacks := int(f.at[f.frame+1]-f.at[f.frame]) - len(f.buf)
		take := min(lacks, len(rest))
		f.buf, rest = append(f.buf, rest[:take]...), rest[take:]
		if take < lacks {
			break
		}
		if err := f.pass(); err != nil {
			return 0, err
		}
		f.buf, f.frame, f.skip = f.buf[:0], f.frame+1, 0
	}
	return len(p), nil
}

// pass decodes the frame in buf and passes on what is wanted of it.
func (f *frameReader) pass() error {
	out, err := f.plane.decode(f.buf, f.out, rawLen(f.rawLen, f.frameLen, f.frame))
	if err != nil {
		return err
	}
	out = out[f.skip:]
	out = out[:min(int64(len(out)), f.left)]
	f.left -= int64(len(out))
	n, err := f.dst.Write(out)
	if err == nil && n < len(out) {
		err = io.ErrShortWrite
	}
	return err
}
