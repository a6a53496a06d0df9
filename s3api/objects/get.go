package objects

import (
	"context"
	"io"
	"slices"
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// segmentBytes bounds the part rows of a multipart object that a download holds at a time.
const segmentBytes = 64 << 10

// GetObject answers a version's metadata and the way to its bytes; an *ArchivedError if it can't be read now. The caller
// must Close the object; until then the chunks it reads are kept, also when
// the object is overwritten or deleted meanwhile (design rule 17).
func (s *Store) GetObject(ctx context.Context, acct Account, in *GetInput) (*Object, error) {
	pin := s.cfg.Pins.Begin()                     // before the metadata read
	if s.cfg.MayRead != nil && !s.cfg.MayRead() { // asked now: if it changes later, the pin is aborted
		pin.Release()
		return nil, errs.New(errs.Unavailable, "get", "", "this node is cut off from the cluster")
	}
	var o *Object
	err := s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		var row *metapb.ObjectRow
		var of *metapb.BucketRow
		var segs []rangestate.Segment
		err := s.viewOf(ctx, b, in.Key, func(v rangestate.Reader) (err error) {
			if row, of, err = s.findRow(v, b, in.Key, in.VersionID); err != nil {
				return err
			}
			o, err = resolve(v, b, in, row, of)
			if err != nil || o.NotModified {
				return err
			}
			if !rangestate.Readable(row, s.cfg.Meta.NowMS()) {
				return archived("get", in.Key, row, "the version is archived; it can be read after a restore")
			}
			segs, err = v.Segments(b.ID, in.Key, row, o.Offset, o.Length, segmentBytes)
			return err
		})
		if err != nil {
			return err
		}
		if in.VersionID == "" {
			o.Lifecycle = s.rulesAt(ctx, b, of.Generation)
		}
		if !o.NotModified {
			s.noteAccess(b, in.Key, row)
			pin.Hold(storage.WriteID(row.WriteId)) // after the last try of the read
			o.send = func(w io.Writer) error {
				d := download{s: s, bucket: b, key: in.Key, row: row, off: o.Offset, left: o.Length}
				return d.send(ctx, pin.Writer(s.retrieved.writer(w, row)), segs)
			}
		}
		return nil
	})
	if err != nil {
		pin.Release()
		return nil, err
	}
	o.close = pin.Release
	return o, nil
}

// HeadObject answers a version's metadata.
func (s *Store) HeadObject(ctx context.Context, acct Account, in *GetInput) (o *Object, err error) {
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		var of *metapb.BucketRow
		err := s.viewOf(ctx, b, in.Key, func(v rangestate.Reader) (err error) {
			var row *metapb.ObjectRow
			if row, of, err = s.findRow(v, b, in.Key, in.VersionID); err != nil {
				return err
			}
			o, err = resolve(v, b, in, row, of)
			return err
		})
		if err == nil && in.VersionID == "" {
			o.Lifecycle = s.rulesAt(ctx, b, of.Generation)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// findRow finds the version asked for and the bucket's row; a *DeleteMarkerError if it is a marker. The bucket's
// row comes with the object's, so it is asked for second.
func (s *Store) findRow(v rangestate.Reader, b Bucket, key storage.Key, version string) (*metapb.ObjectRow, *metapb.BucketRow, error) {
	var id *storage.VersionID
	if version != "" {
		parsed, err := parseVersion(version)
		if err != nil {
			return nil, nil, err
		}
		id = &parsed
	}
	row, err := v.Object(b.ID, key, id)
	if errs.Is(err, errs.IsDeleteMarker) { // which only a versioned bucket has
		err = &DeleteMarkerError{VersionID: objectFromRow(key, row, true).VersionID, Modified: msTime(row.ModifiedMs), Err: err}
	}
	if err != nil {
		return nil, nil, err
	}
	bucket, err := v.Bucket(b.ID)
	if err != nil {
		return nil, nil, err
	}
	return row, bucket, nil
}

// resolve turns a row of a bucket into what was asked of it: conditions, range, part.
func resolve(v rangestate.Reader, b Bucket, in *GetInput, row *metapb.ObjectRow, of *metapb.BucketRow) (*Object, error) {
	o := objectFromRow(in.Key, row, of.Versioning != metapb.Versioning_VERSIONING_NEVER) // else version ids are not shown
	notModified, err := checkRead(in.Conditions, row)
	if err != nil {
		return nil, err
	}
	if notModified {
		o.NotModified = true
		return o, nil
	}
	switch {
	case in.PartNumber > 0:
		o.Partial = true
		if o.Offset, o.Length, err = v.PartExtent(b.ID, in.Key, row, in.PartNumber); err == nil {
			o.PartChecksums, err = partChecksums(v, b, in, row)
		}
	case in.Range != nil:
		o.Offset, o.Length, err = in.Range.resolve(o.Size)
		o.Partial = true
	default:
		o.Length = o.Size
	}
	if err != nil {
		return nil, err
	}
	return o, nil
}

// partChecksums are those of a part of an object, of the object's algorithm: what the bytes of the part can be verified with.
func partChecksums(v rangestate.Reader, b Bucket, in *GetInput, row *metapb.ObjectRow) ([]*metapb.Checksum, error) {
	if row.GetData().GetParts() == 0 || len(row.Checksums) == 0 {
		return nil, nil
	}
	parts, _, err := v.ObjectParts(b.ID, in.Key, row, in.PartNumber-1, 1)
	if errs.Is(err, errs.NotFound) { // as in ObjectParts
		err = errs.New(errs.Unavailable, "get", string(in.Key), "the version was removed while it was read")
	}
	if err != nil || len(parts) == 0 || int(parts[0].Number) != in.PartNumber {
		return nil, err
	}
	alg := row.Checksums[0].Algorithm
	return slices.DeleteFunc(slices.Clone(parts[0].Checksums), func(c *metapb.Checksum) bool { return c.Algorithm != alg }), nil
}

// resolve fits the range to an object of size bytes (RFC 9110 14.1.2).
func (r *Range) resolve(size int64) (offset, length int64, err error) {
	first, last := r.First, r.Last
	if r.Suffix {
		first, last = max(0, size-r.Last), size-1
		if r.Last == 0 {
			first = size
		}
	}
	if last < 0 || last >= size {
		last = size - 1
	}
	if first >= size || first > last {
		return 0, 0, errs.Newf(errs.InvalidRange, "get", "", "the range does not lie in an object of %d bytes", size)
	}
	return first, last - first + 1, nil
}

// checkRead evaluates the If-* of a read in the order of RFC 9110 13.2.2:
// an error PreconditionFailed is 412, notModified is 304.
func checkRead(c Conditions, row *metapb.ObjectRow) (notModified bool, err error) {
	// HTTP dates have whole seconds.
	modified := msTime(row.ModifiedMs).Truncate(time.Second)
	failed := errs.New(errs.PreconditionFailed, "get", "", "")
	switch {
	case len(c.IfMatch) > 0:
		if !etagListed(c.IfMatch, row.Etag) {
			return false, failed
		}
	case !c.IfUnmodifiedSince.IsZero() && modified.After(c.IfUnmodifiedSince):
		return false, failed
	}
	switch {
	case len(c.IfNoneMatch) > 0:
		return etagListed(c.IfNoneMatch, row.Etag), nil
	case !c.IfModifiedSince.IsZero() && !modified.After(c.IfModifiedSince):
		return true, nil
	}
	return false, nil
}

func objectFromRow(key storage.Key, row *metapb.ObjectRow, versioned bool) *Object {
	o := &Object{
		Key: key, Size: int64(row.Size), ETag: row.Etag, DeleteMarker: row.DeleteMarker, Modified: msTime(row.ModifiedMs),
		Attributes: row.Attributes, Checksums: row.Checksums, Owner: row.Owner, Parts: int(row.GetData().GetParts()),
		Restore: row.Restore, Tiering: row.Tiering,
	}
	if versioned {
		o.VersionID = "null"
		if !row.NullVersion {
			o.VersionID = storage.VersionID{Seq: storage.Seq(row.Seq), Nonce: row.Nonce}.String()
		}
	}
	return o
}

// download is what is still to be sent of an object.
type download struct {
	s      *Store
	bucket Bucket
	key    storage.Key
	row    *metapb.ObjectRow
	off    int64
	left   int64
}

// send writes the object's bytes to w, in order: those of segs, which are the first ones, and then
// those of the segments that follow, which are read as it goes. The object's write is held.
func (d *download) send(ctx context.Context, w io.Writer, segs []rangestate.Segment) error {
	for {
		for i := range segs {
			if err := d.sendSegment(ctx, w, &segs[i]); err != nil {
				return err
			}
			d.off, d.left = d.off+segs[i].Length, d.left-segs[i].Length
		}
		if d.left <= 0 {
			return nil
		}
		err := d.s.viewOf(ctx, d.bucket, d.key, func(v rangestate.Reader) (err error) {
			segs, err = v.Segments(d.bucket.ID, d.key, d.row, d.off, d.left, segmentBytes)
			return err
		})
		if err == nil && len(segs) == 0 {
			err = errs.Newf(errs.Corrupt, "get", string(d.key), "no part holds the bytes from %d on", d.off)
		}
		if err != nil {
			return err
		}
	}
}

func (d *download) sendSegment(ctx context.Context, w io.Writer, seg *rangestate.Segment) error {
	if len(seg.Inline) > 0 {
		_, err := w.Write(seg.Inline[seg.Offset : seg.Offset+seg.Length])
		return err
	}
	owner := storage.Owner{Bucket: d.bucket.ID, Key: d.key, Write: seg.Write}
	return d.s.cfg.Chunks.Read(ctx, w, owner, seg.Chunks, seg.Offset, seg.Length)
}
