package rangestate

import (
	"bytes"
	"encoding/binary"
	"math"

	"cairn/cluster"
	"cairn/proto/metapb"
)

// Kinds of rows: the first byte of a raw key.
const (
	kindGroup     byte = 'G'
	kindBucket    byte = 'b'
	kindCurrent   byte = 'c'
	kindDoomed    byte = 'd'
	kindTimer     byte = 'e'
	kindCompleted byte = 'k'
	kindManifest  byte = 'm'
	kindNull      byte = 'n'
	kindOutcome   byte = 'o'
	kindPart      byte = 'p'
	kindRepair    byte = 'r'
	kindUpload    byte = 'u'
	kindVersion   byte = 'v'
	kindEvent     byte = 'z' // behind all others: see TableBounds
)

// Sub kinds of group rows.
const (
	subChild      byte = 'b'
	subCounter    byte = 'c'
	subDescriptor byte = 'd'
	subGarbage    byte = 'g'
	subCheck      byte = 'h'
	subLog        byte = 'l'
	subTarget     byte = 'p'
	subTold       byte = 'q' // counters of events
	subSweep      byte = 's'
	subClock      byte = 't'
	subDead       byte = 'x'
)

// kindsInBounds are all kinds of rows in bounds, in order.
var kindsInBounds = [...]byte{
	kindBucket, kindCurrent, kindDoomed, kindTimer, kindCompleted, kindManifest, kindNull,
	kindOutcome, kindPart, kindRepair, kindUpload, kindVersion,
}

// rawKind reports whether rows of the kind end in the raw key instead of an escaped one and a suffix.
func rawKind(kind byte) bool { return kind == kindBucket || kind == kindCurrent }

const (
	escByte  byte = 0x00
	escZero  byte = 0xff // after escByte: a zero byte of the key
	escEnd   byte = 0x01 // after escByte: the end of the key
	headLen       = 9    // kind and bucket
	pageSize      = 1000 // parts of a manifest page
)

type bytestring interface{ ~string | ~[]byte }

// appendEscaped appends the escaped form of key, with its end, to dst.
func appendEscaped[K bytestring](dst []byte, key K) []byte {
	at := len(dst)
	dst = append(dst, key...)
	zeros := bytes.Count(dst[at:], []byte{escByte})
	if zeros == 0 {
		return append(dst, escByte, escEnd)
	}
	from := len(dst) - 1
	for range zeros {
		dst = append(dst, 0)
	}
	for to := len(dst) - 1; from >= at; from-- {
		if dst[from] == escByte {
			dst[to] = escZero
			to--
			dst[to] = escByte
		} else {
			dst[to] = dst[from]
		}
		to--
	}
	return append(dst, escByte, escEnd)
}

// cutEscaped splits b into the key escaped at its start and what follows. The key
// aliases b, or scratch if it had to be unescaped. ok is false if b is not what appendEscaped writes.
func cutEscaped(b, scratch []byte) (key, rest []byte, ok bool) {
	i := bytes.IndexByte(b, escByte)
	if i < 0 || i+1 >= len(b) {
		return nil, nil, false
	}
	if b[i+1] == escEnd {
		return b[:i:i], b[i+2:], true
	}
	key = scratch[:0]
	for {
		key = append(key, b[:i]...)
		switch b[i+1] {
		case escEnd:
			return key, b[i+2:], true
		case escZero:
			key = append(key, escByte)
		default:
			return nil, nil, false
		}
		b = b[i+2:]
		if i = bytes.IndexByte(b, escByte); i < 0 || i+1 >= len(b) {
			return nil, nil, false
		}
	}
}

// appendRaw appends the raw key of a row of a kind with raw keys.
func appendRaw[K bytestring](dst []byte, kind byte, bucket uint64, key K) []byte {
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint64(dst, bucket)
	return append(dst, key...)
}

// appendRow appends the raw key of a row with an escaped key, without its suffix.
func appendRow[K bytestring](dst []byte, kind byte, bucket uint64, key K) []byte {
	dst = append(dst, kind)
	dst = binary.BigEndian.AppendUint64(dst, bucket)
	return appendEscaped(dst, key)
}

// appendSeqRow is appendRow with a suffix of 8 bytes. For kindVersion the suffix is ^seq.
func appendSeqRow[K bytestring](dst []byte, kind byte, bucket uint64, key K, seq uint64) []byte {
	if kind == kindVersion {
		seq = ^seq
	}
	return binary.BigEndian.AppendUint64(appendRow(dst, kind, bucket, key), seq)
}

// appendUploadRow is the raw key of a part or manifest page: suffix upload, number.
func appendUploadRow[K bytestring](dst []byte, kind byte, bucket uint64, key K, upload uint64, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendSeqRow(dst, kind, bucket, key, upload), n)
}

// cutRow splits a raw key with an escaped key into bucket, key and suffix.
// The key aliases raw or scratch.
func cutRow(raw, scratch []byte) (bucket uint64, key, suffix []byte, ok bool) {
	if len(raw) < headLen {
		return 0, nil, nil, false
	}
	key, suffix, ok = cutEscaped(raw[headLen:], scratch)
	return binary.BigEndian.Uint64(raw[1:headLen]), key, suffix, ok
}

// appendGroup is the raw key of a group row without what follows its sub kind.
func appendGroup(dst []byte, group cluster.GroupID, sub byte) []byte {
	return append(binary.BigEndian.AppendUint64(append(dst, kindGroup), uint64(group)), sub)
}

func appendGarbage(dst []byte, group cluster.GroupID, seq uint64, n uint32) []byte {
	dst = binary.BigEndian.AppendUint64(appendGroup(dst, group, subGarbage), seq)
	return binary.BigEndian.AppendUint32(dst, n)
}

func appendCounter(dst []byte, group cluster.GroupID, bucket uint64, class string) []byte {
	return append(binary.BigEndian.AppendUint64(appendGroup(dst, group, subCounter), bucket), class...)
}

// appendEvent is the raw key of an event in the outbox.
func appendEvent(dst []byte, group cluster.GroupID, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(appendEvents(dst, group), seq)
}

// appendEvents is what the raw keys of a group's events begin with.
func appendEvents(dst []byte, group cluster.GroupID) []byte {
	return binary.BigEndian.AppendUint64(append(dst, kindEvent), uint64(group))
}

// eventHeadLen is its length.
const eventHeadLen = 9

// TableBounds are the raw keys at which a state store should end its tables: the outbox, which only grows at its end, is else written
// anew by every compaction of objects.
func TableBounds() [][]byte { return [][]byte{{kindEvent}} }

func appendTarget(dst []byte, group cluster.GroupID, target string) []byte {
	return append(appendGroup(dst, group, subTarget), target...)
}

// appendTold is the raw key of the counter of a bucket's events for a target.
func appendTold(dst []byte, group cluster.GroupID, bucket uint64, target string) []byte {
	return append(binary.BigEndian.AppendUint64(appendGroup(dst, group, subTold), bucket), target...)
}

// appendDead is the raw key of a dead letter, but for its sequence. Targets' names have no zero bytes.
func appendDead(dst []byte, group cluster.GroupID, target string) []byte {
	return append(append(appendGroup(dst, group, subDead), target...), 0)
}

// groupHeadLen is the length of a group row's key up to its sub kind.
const groupHeadLen = 10

// prefixEnd turns b in place into the least key above all keys that begin with b; nil if there is none.
func prefixEnd(b []byte) []byte {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0xff {
			b[i]++
			return b[:i+1]
		}
	}
	return nil
}

// bounds are a range's bounds, ready to compare with keys as they come.
type bounds struct {
	startBucket, endBucket uint64
	startKey, endKey       []byte
	unbounded              bool // no end
}

func boundsOf(d *metapb.RangeDescriptor) bounds {
	b := bounds{startBucket: d.GetStart().GetBucket(), startKey: d.GetStart().GetKey()}
	if d.GetEnd() == nil || (d.End.Bucket == 0 && len(d.End.Key) == 0) {
		b.unbounded = true
	} else {
		b.endBucket, b.endKey = d.End.Bucket, d.End.Key
	}
	return b
}

// contains reports whether the key lies in the bounds.
func contains[K bytestring](b *bounds, bucket uint64, key K) bool {
	if bucket < b.startBucket || bucket == b.startBucket && string(key) < string(b.startKey) {
		return false
	}
	return b.unbounded || bucket < b.endBucket || bucket == b.endBucket && string(key) < string(b.endKey)
}

// bucketStart is the key at which the range begins inside the bucket; ok is
// false if no key of the bucket lies in the range.
func (b *bounds) bucketStart(bucket uint64) (key []byte, ok bool) {
	if bucket == b.startBucket {
		key = b.startKey
	}
	return key, contains(b, bucket, key)
}

// span is the raw keys of a kind that lie in the bounds.
func (b *bounds) span(kind byte) cluster.KeySpan {
	pos := func(bucket uint64, key []byte) []byte {
		if rawKind(kind) {
			return appendRaw(nil, kind, bucket, key)
		}
		if len(key) == 0 { // below every escaped key, the empty one of outcomes included
			return binary.BigEndian.AppendUint64([]byte{kind}, bucket)
		}
		return appendRow(nil, kind, bucket, key)
	}
	s := cluster.KeySpan{Start: pos(b.startBucket, b.startKey), End: []byte{kind + 1}}
	if !b.unbounded {
		s.End = pos(b.endBucket, b.endKey)
	}
	return s
}

// within is the part of the bounds inside a bucket; some key of the bucket must lie in the bounds.
func (b *bounds) within(bucket uint64) bounds {
	in := bounds{startBucket: bucket}
	if bucket == b.startBucket {
		in.startKey = b.startKey
	}
	switch {
	case !b.unbounded && bucket == b.endBucket:
		in.endBucket, in.endKey = b.endBucket, b.endKey
	case bucket == math.MaxUint64:
		in.unbounded = true
	default:
		in.endBucket = bucket + 1
	}
	return in
}

// uploadSpan is the raw keys of an upload's parts or manifest pages.
func uploadSpan[K bytestring](kind byte, bucket uint64, key K, upload uint64) (start, end []byte) {
	start = appendSeqRow(nil, kind, bucket, key, upload)
	return start, prefixEnd(bytes.Clone(start))
}

// suffixNumber is the number at the end of a part's or page's raw key.
func suffixNumber(raw []byte) uint32 { return binary.BigEndian.Uint32(raw[len(raw)-4:]) }
