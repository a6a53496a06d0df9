package rangestate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// View reads a range's state through one pebble.Reader, a snapshot or the store
// itself. Each answer is of one moment, also over a store that changes meanwhile:
// what one Get or one iterator cannot answer is read from a snapshot that the
// View takes for it. Answers of several calls are of one moment only over a snapshot. Over a
// store their order counts: an upload's row that was read before its parts is not newer than they are.
// Rows that it returns are the caller's.
//
// Methods that take a bucket check that the place asked for lies in the range's
// bounds (WrongRange) and that the bucket has a row there (NoSuchBucket). Other
// errors are named at the methods; besides, all may answer Corrupt and DriveFailed.
// A View is not safe for concurrent use.
type View struct {
	r      pebble.Reader
	group  cluster.GroupID
	config *config
	clock  metapb.GroupClock
	key    []byte // scratch
}

// NewView makes a view of the group's range. NotFound: the reader has no such range.
func NewView(r pebble.Reader, group cluster.GroupID) (*View, error) {
	v := &View{r: r, group: group, key: make([]byte, 0, 128)}
	if _, err := getRow(r, appendGroup(v.key, group, subClock), &v.clock); err != nil {
		return nil, err
	}
	if err := v.readDescriptor(); err != nil {
		return nil, err
	}
	return v, nil
}

// readDescriptor begins a new config. The clock was read before, so what is read
// from now on is not older than its count of changes.
func (v *View) readDescriptor() error {
	desc := &metapb.RangeDescriptor{}
	ok, err := getRow(v.r, appendGroup(v.key[:0], v.group, subDescriptor), desc)
	if err != nil {
		return err
	}
	if !ok {
		return errs.New(errs.NotFound, "rangestate.view", fmt.Sprintf("group %d", v.group), "no range of this group here")
	}
	v.config = &config{count: v.clock.Config, desc: desc, bounds: boundsOf(desc)}
	return nil
}

// TimeMS is range time, unix ms.
func (v *View) TimeMS() int64 { return v.clock.TimeMs }

// Seq is the range's sequence.
func (v *View) Seq() storage.Seq { return storage.Seq(v.clock.Seq) }

// Descriptor is the range's descriptor.
func (v *View) Descriptor() *metapb.RangeDescriptor { return v.config.desc.CloneVT() }

// Bounds are the range's bounds.
func (v *View) Bounds() cluster.Bounds {
	b := cluster.Bounds{Start: cluster.Pos{Bucket: storage.BucketID(v.config.bounds.startBucket), Key: storage.Key(v.config.bounds.startKey)}}
	if !v.config.bounds.unbounded {
		b.End = cluster.Pos{Bucket: storage.BucketID(v.config.bounds.endBucket), Key: storage.Key(v.config.bounds.endKey)}
	}
	return b
}

// Bucket is the bucket's row in this range. The caller must not change it.
// WrongRange: no key of the bucket can lie in the range. NoSuchBucket: no row, or that of a dropped bucket.
func (v *View) Bucket(id storage.BucketID) (*metapb.BucketRow, error) {
	start, ok := v.config.bounds.bucketStart(uint64(id))
	if !ok {
		return nil, v.wrongRange("rangestate.bucket", uint64(id), "")
	}
	row := v.config.bucket(uint64(id))
	if row == nil {
		row = &metapb.BucketRow{}
		v.key = appendRaw(v.key[:0], kindBucket, uint64(id), start)
		ok, err := getRow(v.r, v.key, row)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errs.New(errs.NoSuchBucket, "rangestate.bucket", "", "")
		}
		v.config.keep(row)
	}
	if row.Dropped {
		return nil, errs.New(errs.NoSuchBucket, "rangestate.bucket", "", "")
	}
	return row, nil
}

// at checks the bounds and the bucket of a key.
func (v *View) at(bucket storage.BucketID, key storage.Key) (*metapb.BucketRow, error) {
	if !contains(&v.config.bounds, uint64(bucket), key) {
		return nil, v.wrongRange("rangestate.read", uint64(bucket), key)
	}
	return v.Bucket(bucket)
}

// Object is a version of a key: the current one if version is nil. NoSuchKey and
// NoSuchVersion: there is none. IsDeleteMarker: it is a delete marker; the row is returned too.
func (v *View) Object(bucket storage.BucketID, key storage.Key, version *storage.VersionID) (*metapb.ObjectRow, error) {
	b, err := v.at(bucket, key)
	if err != nil {
		return nil, err
	}
	row, err := v.current(v.r, bucket, key)
	if err != nil {
		return nil, err
	}
	if row == nil || version != nil && !isVersion(row, *version) {
		row = nil
		if b.Versioning != metapb.Versioning_VERSIONING_NEVER {
			row, err = v.otherVersion(bucket, key, version)
		}
	}
	switch {
	case err != nil:
		return nil, err
	case row == nil && version == nil:
		return nil, errs.New(errs.NoSuchKey, "rangestate.object", "", "")
	case row == nil:
		return nil, errs.New(errs.NoSuchVersion, "rangestate.object", "", "")
	case row.DeleteMarker:
		return row, errs.New(errs.IsDeleteMarker, "rangestate.object", "", "")
	}
	return row, nil
}

// frozen is the view's reader as of one moment, and what to call when done with it.
func (v *View) frozen() (pebble.Reader, func()) {
	db, ok := v.r.(*pebble.DB)
	if !ok {
		return v.r, func() {}
	}
	s := db.NewSnapshot()
	return s, func() { _ = s.Close() } // fails only if closed twice
}

func (v *View) current(r pebble.Reader, bucket storage.BucketID, key storage.Key) (*metapb.ObjectRow, error) {
	row := &metapb.ObjectRow{}
	v.key = appendRaw(v.key[:0], kindCurrent, uint64(bucket), key)
	ok, err := getRow(r, v.key, row)
	if err != nil || !ok {
		return nil, err
	}
	return row, nil
}

// otherVersion looks for a version that the 'c' row was not, a moment ago: the
// newest delete marker if version is nil. Versions move between 'c' and 'v', so it looks at both at once.
func (v *View) otherVersion(bucket storage.BucketID, key storage.Key, version *storage.VersionID) (*metapb.ObjectRow, error) {
	r, done := v.frozen()
	defer done()
	row, err := v.current(r, bucket, key)
	if err != nil || row != nil && (version == nil || isVersion(row, *version)) {
		return row, err
	}
	if version == nil {
		if row, err = newestBelow(r, uint64(bucket), key, 0); err == nil && row != nil && !row.DeleteMarker {
			err = corrupt(v.key, errors.New("a key without a current version has an object as its newest"))
		}
		return row, err
	}
	seq := uint64(version.Seq)
	if version.IsNull() {
		v.key = appendRow(v.key[:0], kindNull, uint64(bucket), key)
		if seq, err = nullSeq(r, v.key); err != nil || seq == 0 {
			return nil, err
		}
	}
	row = &metapb.ObjectRow{}
	v.key = appendSeqRow(v.key[:0], kindVersion, uint64(bucket), key, seq)
	ok, err := getRow(r, v.key, row)
	if err != nil || !ok || !isVersion(row, *version) {
		return nil, err
	}
	return row, nil
}

// ---- uploads ----

// Upload is an upload in progress. NoSuchUpload: there is none (any more).
func (v *View) Upload(bucket storage.BucketID, key storage.Key, id storage.UploadID) (*metapb.UploadRow, error) {
	if _, err := v.at(bucket, key); err != nil {
		return nil, err
	}
	row := &metapb.UploadRow{}
	v.key = appendSeqRow(v.key[:0], kindUpload, uint64(bucket), key, uint64(id.Seq))
	ok, err := getRow(v.r, v.key, row)
	if err != nil {
		return nil, err
	}
	if !ok || row.Nonce != id.Nonce {
		return nil, errs.New(errs.NoSuchUpload, "rangestate.upload", "", "")
	}
	return row, nil
}

// Parts are up to limit parts of an upload in progress with numbers above after, in
// order and without their data, and whether there are more. NoSuchUpload: there is no such upload.
func (v *View) Parts(bucket storage.BucketID, key storage.Key, id storage.UploadID, after, limit int) (rows []*metapb.PartRow, more bool, err error) {
	if _, err := v.Upload(bucket, key, id); err != nil {
		return nil, false, err
	}
	if limit <= 0 || after >= storage.PartNumberMax {
		return nil, false, nil
	}
	start, end := uploadSpan(kindPart, uint64(bucket), key, uint64(id.Seq))
	if after > 0 {
		start = appendUploadRow(nil, kindPart, uint64(bucket), key, uint64(id.Seq), uint32(after)+1)
	}
	err = iterate(v.r, start, end, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		if len(rows) == limit {
			more = true
			return false, nil
		}
		row := &metapb.PartRow{}
		rows = append(rows, row)
		err := decode(raw, value, row)
		row.Data = nil // ten thousand of them are a lot
		return true, err
	})
	if err != nil {
		return nil, false, err
	}
	return rows, more, nil
}

// Part is one part by upload sequence and number, of an upload in progress or of a
// multipart object: what a repair row names. NotFound: it is not there.
func (v *View) Part(bucket storage.BucketID, key storage.Key, upload storage.Seq, number int) (*metapb.PartRow, error) {
	if !contains(&v.config.bounds, uint64(bucket), key) {
		return nil, v.wrongRange("rangestate.part", uint64(bucket), key)
	}
	row := &metapb.PartRow{}
	v.key = appendUploadRow(v.key[:0], kindPart, uint64(bucket), key, uint64(upload), uint32(number))
	ok, err := getRow(v.r, v.key, row)
	if err == nil && !ok {
		err = errs.New(errs.NotFound, "rangestate.part", "", "")
	}
	if err != nil {
		return nil, err
	}
	return row, nil
}

// VersionBySeq is the version of a key with this sequence, whatever its version id:
// what a repair row names. NotFound: it is not there.
func (v *View) VersionBySeq(bucket storage.BucketID, key storage.Key, seq storage.Seq) (*metapb.ObjectRow, error) {
	if !contains(&v.config.bounds, uint64(bucket), key) {
		return nil, v.wrongRange("rangestate.version", uint64(bucket), key)
	}
	r, done := v.frozen()
	defer done()
	row, err := v.current(r, bucket, key)
	if err != nil || row != nil && row.Seq == uint64(seq) {
		return row, err
	}
	row = &metapb.ObjectRow{}
	v.key = appendSeqRow(v.key[:0], kindVersion, uint64(bucket), key, uint64(seq))
	ok, err := getRow(r, v.key, row)
	if err == nil && !ok {
		err = errs.New(errs.NotFound, "rangestate.version", "", "")
	}
	if err != nil {
		return nil, err
	}
	return row, nil
}

// Completed is the row that a completed upload left. NoSuchUpload: there is none, or it has expired.
func (v *View) Completed(bucket storage.BucketID, key storage.Key, id storage.UploadID) (*metapb.CompletedUploadRow, error) {
	if _, err := v.at(bucket, key); err != nil {
		return nil, err
	}
	row := &metapb.CompletedUploadRow{}
	v.key = appendSeqRow(v.key[:0], kindCompleted, uint64(bucket), key, uint64(id.Seq))
	ok, err := getRow(v.r, v.key, row)
	if err != nil {
		return nil, err
	}
	if !ok || row.Nonce != id.Nonce || expired(row.CompletedMs, completedMS, v.clock.TimeMs) {
		return nil, errs.New(errs.NoSuchUpload, "rangestate.completed", "", "")
	}
	return row, nil
}

// ---- background work ----

// GarbageItem is a garbage row and its id.
type GarbageItem struct {
	Seq storage.Seq
	N   uint32
	Row *metapb.GarbageRow
}

// Garbage are up to limit garbage rows with ids after (seq, n), oldest first. The zero id begins.
func (v *View) Garbage(seq storage.Seq, n uint32, limit int) (out []GarbageItem, err error) {
	end := prefixEnd(appendGroup(nil, v.group, subGarbage))
	err = iterate(v.r, append(appendGarbage(nil, v.group, uint64(seq), n), 0), end, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		if len(out) >= limit {
			return false, nil
		}
		if len(raw) != groupHeadLen+12 {
			return false, corrupt(raw, errMalformed)
		}
		row := &metapb.GarbageRow{}
		out = append(out, GarbageItem{Seq: storage.Seq(binary.BigEndian.Uint64(raw[groupHeadLen:])), N: suffixNumber(raw), Row: row})
		return true, decode(raw, value, row)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// DoomedItem is a doomed row and where it lies.
type DoomedItem struct {
	Bucket storage.BucketID
	Key    storage.Key
	Seq    storage.Seq
	Row    *metapb.DoomedRow
}

// ID is the item as ExpandDoomed names it.
func (d *DoomedItem) ID() *metapb.DoomedID {
	return &metapb.DoomedID{Bucket: uint64(d.Bucket), Key: []byte(d.Key), Seq: uint64(d.Seq)}
}

// Doomed are up to limit doomed rows behind after (nil: from the first), in order of their keys.
func (v *View) Doomed(after *metapb.DoomedID, limit int) (out []DoomedItem, err error) {
	err = v.scanSeqRows(kindDoomed, after.GetBucket(), after.GetKey(), after.GetSeq(), limit, func(bucket storage.BucketID, key storage.Key, seq storage.Seq) decoder {
		row := &metapb.DoomedRow{}
		out = append(out, DoomedItem{bucket, key, seq, row})
		return row
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// RepairItem is a repair row and where it lies.
type RepairItem struct {
	Bucket storage.BucketID
	Key    storage.Key
	Seq    storage.Seq
	Row    *metapb.RepairRow
}

// ID is the item as DropRepair names it.
func (i *RepairItem) ID() *metapb.RepairID {
	return &metapb.RepairID{Bucket: uint64(i.Bucket), Key: []byte(i.Key), Seq: uint64(i.Seq)}
}

// Repairs are up to limit repair rows behind after (nil: from the first), in order of their keys.
func (v *View) Repairs(after *metapb.RepairID, limit int) (out []RepairItem, err error) {
	err = v.scanSeqRows(kindRepair, after.GetBucket(), after.GetKey(), after.GetSeq(), limit, func(bucket storage.BucketID, key storage.Key, seq storage.Seq) decoder {
		row := &metapb.RepairRow{}
		out = append(out, RepairItem{bucket, key, seq, row})
		return row
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// scanSeqRows reads rows of a kind with a sequence suffix behind (bucket, key, seq); add gives where to decode one.
func (v *View) scanSeqRows(kind byte, bucket uint64, key []byte, seq uint64, limit int, add func(storage.BucketID, storage.Key, storage.Seq) decoder) error {
	span := v.config.bounds.span(kind)
	if bucket != 0 || len(key) != 0 || seq != 0 {
		after := append(appendSeqRow(nil, kind, bucket, key, seq), 0)
		if string(after) > string(span.Start) {
			span.Start = after
		}
	}
	n := 0
	return iterate(v.r, span.Start, span.End, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		if n >= limit {
			return false, nil
		}
		n++
		b, key, suffix, ok := cutRow(raw, nil)
		if !ok || len(suffix) != 8 {
			return false, corrupt(raw, errMalformed)
		}
		return true, decode(raw, value, add(storage.BucketID(b), storage.Key(key), storage.Seq(binary.BigEndian.Uint64(suffix))))
	})
}

// Counter are the counters of a bucket and storage class in this range.
// Objects are current versions, Versions noncurrent ones without delete markers, Bytes
// those of all versions. After a split a range's share may be negative: only sums over all ranges mean something.
type Counter struct {
	Bucket storage.BucketID
	Class  storage.StorageClass
	Row    *metapb.CounterRow
}

// Counters are all counters of the range, by bucket and class. Those that are all zero are left out.
func (v *View) Counters() (out []Counter, err error) {
	start := appendGroup(nil, v.group, subCounter)
	return v.counters(start, prefixEnd(slices.Clone(start)))
}

// counters are those whose rows lie from start to end.
func (v *View) counters(start, end []byte) (out []Counter, err error) {
	err = iterate(v.r, start, end, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		if len(raw) < groupHeadLen+8 {
			return false, corrupt(raw, errMalformed)
		}
		row := &metapb.CounterRow{}
		out = append(out, Counter{storage.BucketID(binary.BigEndian.Uint64(raw[groupHeadLen:])), storage.StorageClass(raw[groupHeadLen+8:]), row})
		return true, decode(raw, value, row)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Refers reports whether any row of the owner's key or any garbage row of the
// group names the chunk: then it is no orphan. It costs what FindChunk costs and, if that
// finds nothing, reads all garbage rows of the group. Errors as of FindChunk.
func (v *View) Refers(owner storage.Owner, chunk storage.ChunkID) (found bool, err error) {
	r, done := v.frozen() // a chunk that moves from row to row, or to garbage, must not be missed in both
	defer done()
	if ref, err := v.findChunk(r, owner, chunk); err != nil || ref != nil {
		return err == nil, err
	}
	start := appendGroup(nil, v.group, subGarbage)
	err = iterate(r, start, prefixEnd(slices.Clone(start)), func(raw []byte, value func() ([]byte, error)) (bool, error) {
		row := &metapb.GarbageRow{}
		err := decode(raw, value, row)
		found = findChunk(row.Chunks, chunk[:]) >= 0
		return !found, err
	})
	return found && err == nil, err
}
