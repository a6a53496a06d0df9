package extent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Source is what a Scanner reads: an open file. SeekData answers the first
// offset >= its argument that is not known to lie in a hole, io.EOF if none.
type Source interface {
	io.ReaderAt
	SeekData(off int64) (int64, error)
}

// Frame is what a Scanner found: a frame, or (Damage not nil) a range of bytes that is
// neither frames nor zeros.
type Frame struct {
	Off    int64
	Bytes  int64  // of the whole frame or range
	Header Header // valid until the next call of Next
	Raw    []byte // the header's bytes, valid until the next call of Next
	Damage error  // why the range can't be read
}

const (
	windowBytes   = 64 << 10
	blockBytes    = 4096
	readErrorsMax = 64 // blocks of one scan that can't be read before it gives up
)

// Scanner finds the frames of an extent one by one. It steps over holes and
// zeros in silence, over damage to the next valid frame, and reads no payloads.
// Not safe for concurrent use.
type Scanner struct {
	src      Source
	salt     uint64
	off, end int64
	buf      []byte
	win      []byte // bytes of the file from winOff on
	winOff   int64
	errors   int
}

// NewScanner scans src (an extent with this salt) from offset from, where a frame begins or zeros lie, up to end.
func NewScanner(src Source, salt uint64, from, end int64) *Scanner {
	return &Scanner{src: src, salt: salt, off: from, end: end}
}

// Next answers the next frame or damaged range; io.EOF after the last. Another
// error says that the file can't be read at all.
func (s *Scanner) Next() (f Frame, err error) {
	if err := s.skipZeros(); err != nil {
		return f, err
	}
	h, raw, err := s.parse(s.off)
	if err == nil {
		return s.take(h, raw), nil
	}
	if !isDamage(err) {
		return f, err
	}
	return s.damage(err)
}

func (s *Scanner) take(h Header, raw []byte) Frame {
	f := Frame{Off: s.off, Bytes: h.FrameBytes(), Header: h, Raw: raw}
	s.off += f.Bytes
	return f
}

// blockError is a block that can't be read; the scan goes on behind it.
type blockError struct{ err error }

func (e blockError) Error() string { return "extent: can't be read: " + e.err.Error() }
func (e blockError) Unwrap() error { return e.err }

func isDamage(err error) bool {
	var be blockError
	return errors.Is(err, ErrDamaged) || errors.As(err, &be)
}

// parse reads the header at off.
func (s *Scanner) parse(off int64) (h Header, raw []byte, err error) {
	w, err := s.window(off, commonBytes)
	if err != nil {
		return h, nil, err
	}
	h, err = ParseHeader(w, s.salt, off)
	if errors.Is(err, ErrShort) {
		if w, err = s.window(off, HeaderBytesMax); err != nil {
			return h, nil, err
		}
		h, err = ParseHeader(w, s.salt, off)
	}
	if errors.Is(err, ErrShort) {
		err = fmt.Errorf("%w: cut off", ErrDamaged)
	}
	if err == nil && off+int64(h.Bytes+h.PayloadLen) > s.end {
		err = fmt.Errorf("%w: payload cut off", ErrDamaged)
	}
	if err != nil {
		return h, nil, err
	}
	return h, w[:h.Bytes], nil
}

// damage finds where the next valid frame begins, or zeros up to the end.
func (s *Scanner) damage(cause error) (Frame, error) {
	start, last := s.off, s.off // last: end of the last bytes that are not zero
	for off := start; ; off += Align {
		w, err := s.window(off, Align)
		var be blockError
		switch {
		case errors.As(err, &be):
			// Step over the block; frames begin at multiples of 8, so does a block.
			off = (off/blockBytes+1)*blockBytes - Align
			last = min(off+Align, s.end)
			cause = err
			continue
		case errors.Is(err, io.EOF):
			s.off = s.end
			return Frame{Off: start, Bytes: last - start, Damage: cause}, nil
		case err != nil:
			return Frame{}, err
		}
		if off > start && len(w) >= 4 && binary.LittleEndian.Uint32(w) == frameMagic {
			if _, _, err := s.parse(off); err == nil {
				s.off = off
				return Frame{Off: start, Bytes: min(last, off) - start, Damage: cause}, nil
			}
		}
		if w := w[:min(len(w), Align)]; !allZero(w) {
			last = off + int64(len(w))
		}
	}
}

var zeros [windowBytes]byte

func allZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }

// skipZeros moves to the next word that is not zero.
func (s *Scanner) skipZeros() error {
	for s.off < s.end {
		w, err := s.window(s.off, 1)
		var be blockError
		if errors.As(err, &be) {
			return nil // Next meets it again and reports it
		}
		if err != nil {
			return err
		}
		if !allZero(w[:min(len(w), Align)]) {
			return nil
		}
		if !allZero(w) {
			for len(w) >= Align && allZero(w[:Align]) {
				w, s.off = w[Align:], s.off+Align
			}
			if len(w) >= Align {
				return nil
			}
			continue
		}
		next := s.off + int64(len(w)+Align-1)&^(Align-1)
		if next < s.end {
			at, err := s.src.SeekData(next)
			if errors.Is(err, io.EOF) {
				at, err = s.end, nil
			}
			if err != nil {
				return err
			}
			next = max(next, at&^(Align-1))
		}
		s.off = next
	}
	return io.EOF
}

// window is bytes of the file from off on, at least n unless the file (up to
// end) ends before; io.EOF if off is at the end. It is valid until the next call.
func (s *Scanner) window(off int64, n int) ([]byte, error) {
	if off >= s.end {
		return nil, io.EOF
	}
	n = int(min(int64(n), s.end-off))
	if at := off - s.winOff; at >= 0 && at+int64(n) <= int64(len(s.win)) {
		return s.win[at:], nil
	}
	if s.buf == nil {
		s.buf = make([]byte, windowBytes)
	}
	s.win, s.winOff = nil, off
	b := s.buf[:min(int64(len(s.buf)), s.end-off)]
	got, err := s.src.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		// Perhaps a block further on can't be read: try what is needed only.
		b = s.buf[:min(int64(len(b)), max(int64(n), blockBytes-off%blockBytes))]
		got, err = s.src.ReadAt(b, off)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		if s.errors++; s.errors > readErrorsMax {
			return nil, err
		}
		return nil, blockError{err}
	}
	if got == 0 {
		return nil, io.EOF
	}
	s.win = b[:got]
	return s.win, nil
}
