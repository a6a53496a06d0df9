package rangestate

import (
	"encoding/binary"
	"errors"
	"strings"

	"cairn/proto/metapb"
)

// Readers of single fields of encoded rows, where decoding all of a row would cost more than the work.

var errMalformed = errors.New("malformed row")

// wire walks the fields of an encoded protobuf message.
type wire struct {
	b   []byte
	num int    // of the field that next found
	val uint64 // if it is a number
	buf []byte // if it is bytes: aliases b
	bad bool
}

// next goes to the next field; false at the end or if the message is malformed (bad).
func (w *wire) next() bool {
	b := w.b
	if len(b) == 0 {
		return false
	}
	tag, n := uvarint(b)
	if n == 0 {
		return w.fail()
	}
	b = b[n:]
	w.num, w.buf = int(tag>>3), nil
	switch tag & 7 {
	case 0:
		if w.val, n = uvarint(b); n == 0 {
			return w.fail()
		}
	case 1:
		if n = 8; len(b) < n {
			return w.fail()
		}
		w.val = binary.LittleEndian.Uint64(b)
	case 2:
		size, at := uvarint(b)
		if at == 0 || size > uint64(len(b)-at) {
			return w.fail()
		}
		n = at + int(size)
		w.buf = b[at:n:n]
	case 5:
		if n = 4; len(b) < n {
			return w.fail()
		}
		w.val = uint64(binary.LittleEndian.Uint32(b))
	default:
		return w.fail()
	}
	w.b = b[n:]
	return true
}

func (w *wire) fail() bool {
	w.b, w.bad = nil, true
	return false
}

// uvarint reads a varint and its length; length 0 if there is none.
func uvarint(b []byte) (uint64, int) {
	if len(b) > 0 && b[0] < 0x80 {
		return uint64(b[0]), 1
	}
	return longUvarint(b)
}

func longUvarint(b []byte) (uint64, int) {
	v, n := binary.Uvarint(b)
	return v, max(n, 0)
}

// varintField is the value of the first field num, 0 if it is absent; ok is false if the row is malformed before it.
func varintField(row []byte, num int) (v uint64, ok bool) {
	w := wire{b: row}
	for w.next() {
		if w.num == num {
			return w.val, true
		}
	}
	return 0, !w.bad
}

// partRowSize is PartRow.size.
func partRowSize(row []byte) (uint64, bool) { return varintField(row, 5) }

// manifestOffset is ManifestRow.offset. A page may leave it out only if it is 0.
func manifestOffset(row []byte) (uint64, bool) {
	w := wire{b: row}
	for w.next() && w.num <= 2 { // fields are written in order of their numbers
		if w.num == 2 {
			return w.val, true
		}
	}
	return 0, !w.bad
}

// manifestParts calls fn for the parts of a ManifestRow in order until it answers false. ok is false if the row is malformed.
func manifestParts(row []byte, fn func(number uint32, size uint64) bool) (ok bool) {
	w := wire{b: row}
	for w.next() {
		if w.num != 3 {
			continue
		}
		p := wire{b: w.buf}
		var number, size uint64
		for p.next() {
			switch p.num {
			case 1:
				number = p.val
			case 2:
				size = p.val
			}
		}
		if p.bad {
			return false
		}
		if !fn(uint32(number), size) {
			return true
		}
	}
	return !w.bad
}

// rowSlab makes the rows of a listing from few allocations.
type rowSlab struct {
	rows  []metapb.ObjectRow
	sums  []metapb.Checksum
	refs  []*metapb.Checksum
	text  strings.Builder
	owner string // of the last row: mostly the next one's too
	class string
}

const (
	slabRows  = 64
	textBytes = 8 << 10
)

// same is b as a string: last itself if that is the same.
func same(last *string, b []byte) string {
	if string(b) != *last {
		*last = string(b)
	}
	return *last
}

// decode fills a row with what a listing shows: not the write id, not the
// attributes but the storage class, of checksums not the value, of the data only
// parts. The key is returned in memory of its own.
func (s *rowSlab) decode(key, value []byte) (string, *metapb.ObjectRow, bool) {
	if len(s.rows) == 0 {
		s.rows = make([]metapb.ObjectRow, slabRows)
	}
	row := &s.rows[0]
	s.rows = s.rows[1:]
	var etag []byte
	w := wire{b: value}
	for w.next() {
		switch w.num {
		case 1:
			row.Format = uint32(w.val)
		case 2:
			row.Seq = w.val
		case 3:
			row.Nonce = w.val
		case 4:
			row.NullVersion = w.val != 0
		case 5:
			row.DeleteMarker = w.val != 0
		case 7:
			row.ModifiedMs = int64(w.val)
		case 8:
			row.Size = w.val
		case 9:
			etag = w.buf
		case 10:
			row.Owner = same(&s.owner, w.buf)
		case 11:
			a := wire{b: w.buf}
			for a.next() {
				if a.num == 4 {
					row.Attributes = &metapb.Attributes{StorageClass: same(&s.class, a.buf)}
				}
			}
			w.bad = w.bad || a.bad
		case 12:
			sum := s.checksum(&w)
			if row.Checksums == nil {
				row.Checksums = s.one(sum)
			} else {
				row.Checksums = append(row.Checksums, sum)
			}
		case 13:
			d := wire{b: w.buf}
			for d.next() {
				if d.num == 5 {
					row.Data = &metapb.Data{Parts: uint32(d.val)}
				}
			}
			w.bad = w.bad || d.bad
		case 14:
			row.NoncurrentMs = int64(w.val)
		case 15: // few rows have one
			row.Restore = &metapb.Restore{}
			w.bad = w.bad || row.Restore.UnmarshalVT(w.buf) != nil
		}
	}
	if n := len(key) + len(etag); n > s.text.Cap()-s.text.Len() {
		// A builder never changes what it has handed out, and is left behind when it is full.
		s.text = strings.Builder{}
		s.text.Grow(max(n, textBytes))
	}
	at := s.text.Len()
	s.text.Write(key)
	s.text.Write(etag)
	text := s.text.String()[at:]
	row.Etag = text[len(key):]
	return text[:len(key)], row, !w.bad
}

// one is a slice of just sum.
func (s *rowSlab) one(sum *metapb.Checksum) []*metapb.Checksum {
	if len(s.refs) == 0 {
		s.refs = make([]*metapb.Checksum, slabRows)
	}
	out := s.refs[:1:1]
	s.refs = s.refs[1:]
	out[0] = sum
	return out
}

func (s *rowSlab) checksum(w *wire) *metapb.Checksum {
	if len(s.sums) == 0 {
		s.sums = make([]metapb.Checksum, slabRows)
	}
	sum := &s.sums[0]
	s.sums = s.sums[1:]
	c := wire{b: w.buf}
	for c.next() {
		switch c.num {
		case 1:
			sum.Algorithm = metapb.ChecksumAlgorithm(c.val)
		case 3:
			sum.Composite = c.val != 0
		}
	}
	w.bad = w.bad || c.bad
	return sum
}
