package rangestate

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// pointsMax bounds the places that a Measure remembers.
const pointsMax = 1024

// rowCost is what a row weighs besides its bytes, when the middle of a range is looked for.
const rowCost = 64

// Measure counts a range's lasting rows (versions, uploads and parts) and their bytes and finds the middle, some rows
// at a time. The range is read as it is at each Step, so the counts of a range that is written to are about
// right. The zero value begins.
type Measure struct {
	Rows  int64
	Bytes int64 // of keys and values, before compression

	begun      bool
	generation uint64 // of the range: after a split everything begins anew
	kind       int    // of measured
	next       []byte // raw key to go on at; nil: the kind's first
	points     []point
	stride     int64 // weight between two points
	since      int64 // weight since the last point
	first      cluster.Pos
	last       cluster.Pos
}

// point is a place with the weight of the rows of one kind before it and behind the point before.
type point struct {
	at     cluster.Pos
	weight int64
}

var measured = [...]byte{kindCurrent, kindPart, kindUpload, kindVersion}

// Step counts up to limit more rows and answers whether that were all.
func (m *Measure) Step(v *View, limit int) (done bool, err error) {
	if gen := v.config.desc.Generation; !m.begun || m.generation != gen {
		*m = Measure{begun: true, generation: gen, stride: 1}
	}
	for ; m.kind < len(measured); m.kind++ {
		kind := measured[m.kind]
		span := v.config.bounds.span(kind)
		if m.next != nil && bytes.Compare(m.next, span.Start) > 0 {
			span.Start = m.next
		}
		m.next = nil
		if bytes.Compare(span.Start, span.End) >= 0 {
			continue
		}
		err := iterate(v.r, span.Start, span.End, func(raw []byte, value func() ([]byte, error)) (bool, error) {
			if limit == 0 {
				m.next = bytes.Clone(raw)
				return false, nil
			}
			limit--
			b, err := value()
			if err != nil {
				return false, errs.Wrap(errs.DriveFailed, "rangestate.measure", "", err)
			}
			return true, m.add(kind, raw, int64(len(raw)+len(b)))
		})
		if err != nil || m.next != nil {
			return false, err
		}
		m.since = 0
	}
	return true, nil
}

func (m *Measure) add(kind byte, raw []byte, size int64) error {
	bucket, key := binary.BigEndian.Uint64(raw[1:headLen]), raw[headLen:]
	if !rawKind(kind) {
		var ok bool
		if bucket, key, _, ok = cutRow(raw, nil); !ok {
			return corrupt(raw, errMalformed)
		}
	}
	at := cluster.Pos{Bucket: storage.BucketID(bucket), Key: storage.Key(key)}
	if m.Rows == 0 || at.Compare(m.first) < 0 {
		m.first = at
	}
	if m.Rows == 0 || at.Compare(m.last) > 0 {
		m.last = at
	}
	m.Rows++
	m.Bytes += size
	if m.since += size + rowCost; m.since < m.stride {
		return nil
	}
	m.points = append(m.points, point{at, m.since})
	m.since = 0
	if len(m.points) >= pointsMax {
		// Half of them will do.
		kept := m.points[:0]
		for i := 1; i < len(m.points); i += 2 {
			kept = append(kept, point{m.points[i].at, m.points[i-1].weight + m.points[i].weight})
		}
		m.points = kept
		m.stride = max(2*m.stride, 1024)
	}
	return nil
}

// Middle is the key at which about half of what was counted lies on either side; ok is false if all of it is of one key.
func (m *Measure) Middle() (at cluster.Pos, ok bool) {
	points := slices.Clone(m.points)
	slices.SortStableFunc(points, func(a, b point) int { return a.at.Compare(b.at) })
	var sum, half int64
	for _, p := range points {
		half += p.weight
	}
	half /= 2
	for _, p := range points {
		if sum += p.weight; sum >= half && p.at.Compare(m.first) > 0 {
			return p.at, true
		}
	}
	return m.last, m.Rows > 0 && m.last.Compare(m.first) > 0
}

// DiskBytes is about what the range takes on the drive, without what lies in memory still; 0 if r is not the store itself.
func (v *View) DiskBytes() (sum uint64, err error) {
	db, ok := v.r.(*pebble.DB)
	if !ok {
		return 0, nil
	}
	for _, kind := range measured {
		span := v.config.bounds.span(kind)
		n, err := db.EstimateDiskUsage(span.Start, span.End)
		if err != nil {
			return 0, errs.Wrap(errs.DriveFailed, "rangestate.size", "", err)
		}
		sum += n
	}
	return sum, nil
}

// Children are the ranges that were split off from this one, as they were born, in order of their starts.
func (v *View) Children() (out []*metapb.SysGroup, err error) {
	start := appendGroup(nil, v.group, subChild)
	err = iterate(v.r, start, prefixEnd(slices.Clone(start)), func(raw []byte, value func() ([]byte, error)) (bool, error) {
		row := &metapb.ChildRow{}
		err := decode(raw, value, row)
		out = append(out, childRange(row))
		return true, err
	})
	return out, err
}

// Range is the range as the system group is told of it, without replicas.
func (v *View) Range() *metapb.SysGroup { return rangeOf(v.Descriptor()) }
