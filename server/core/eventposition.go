package core

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"maps"
	"slices"

	"cairn/cluster"
	"cairn/storage/errs"
)

// Position is how far a reader of all events has come: of each range the sequence of the last row that it has seen.
type Position map[cluster.GroupID]uint64

// positionVersion is the first byte of a position.
const positionVersion = 1

// positionMax bounds the text of a position, bytes; one of 10,000 ranges has about 100 KiB.
const positionMax = 512 << 10

// String is the position in an opaque form, which ParsePosition reads.
func (p Position) String() string {
	b := []byte{positionVersion}
	last := uint64(0)
	for _, g := range slices.SortedFunc(maps.Keys(p), func(a, b cluster.GroupID) int { return cmp.Compare(a, b) }) {
		b = binary.AppendUvarint(b, uint64(g)-last)
		b = binary.AppendUvarint(b, p[g])
		last = uint64(g)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParsePosition is the inverse of String. InvalidArgument: it is none, or not whole.
func ParsePosition(text string) (Position, error) {
	bad := func(why string) (Position, error) {
		return nil, errs.Newf(errs.InvalidArgument, "events", "", "this is not a position (%s): give one as cairn events tail printed it, a time like 2027-01-02T15:04:05Z, begin or now", why)
	}
	if len(text) > positionMax {
		return bad("it is too long")
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(b) < 5 {
		return bad("it is cut off, or something else")
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.ChecksumIEEE(b) != sum {
		return bad("it is cut off, or something else")
	}
	if b[0] != positionVersion {
		return bad("it is of another version of cairn")
	}
	p := Position{}
	last := uint64(0)
	for b = b[1:]; len(b) > 0; {
		g, n := binary.Uvarint(b)
		if n <= 0 || g == 0 {
			return bad("it is damaged")
		}
		seq, m := binary.Uvarint(b[n:])
		if m <= 0 || last+g < last {
			return bad("it is damaged")
		}
		b, last = b[n+m:], last+g
		p[cluster.GroupID(last)] = seq
	}
	return p, nil
}
