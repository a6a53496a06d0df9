package objects

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/checksum"
	"cairn/storage/chunkio"
	"cairn/storage/errs"
)

// stored is what writing a body gave: where its bytes are and its ETag.
type stored struct {
	data *metapb.Data
	etag string
	size int64
}

// again says whether what was stored for a bucket that turned out to be gone will do for the one that has its name now.
// Chunks are of their bucket for life, and the body was read.
func (st *stored) again() error {
	if len(st.data.Chunks) == 0 {
		return nil
	}
	return errs.New(errs.Unavailable, "put", "", "the bucket was deleted and created again before the body was sent; a repeat will find the new one")
}

// writeBody makes the bytes of a body durable and computes their MD5 on the
// way. Nothing refers to them yet: if the command that should does not come,
// they are found as orphans.
func (s *Store) writeBody(ctx context.Context, owner storage.Owner, class storage.StorageClass, body io.Reader, size int64, tee func([]byte)) (*stored, error) {
	late, _ := body.(LateBody)
	if late != nil && late.Sure() == 0 {
		late = nil
	}
	if late == nil && size > storage.PutBytesMax || late != nil && late.Sure() > storage.PutBytesMax {
		return nil, errs.Newf(errs.EntityTooLarge, "put", string(owner.Key), "%d bytes in one request, at most %d", size, int64(storage.PutBytesMax))
	}
	sum, known := s.newETag(body, size)
	defer sum.release()
	if size <= storage.InlineBytesMax {
		inline, err := readInline(body, int(size))
		if err != nil {
			return nil, err
		}
		sum.Write(inline)
		if tee != nil {
			tee(inline)
		}
		return &stored{data: &metapb.Data{Inline: inline}, etag: sum.text(known), size: size}, nil
	}
	var refs []*metapb.ChunkRef
	write := func(body io.Reader, size int64) error {
		more, err := s.cfg.Chunks.Write(ctx, chunkio.WriteRequest{
			Owner: owner, Class: class, Size: size, Body: body, BirthMS: s.cfg.Meta.NowMS,
			Tee: func(p []byte) {
				sum.Write(p)
				if tee != nil {
					tee(p)
				}
			},
		})
		refs = append(refs, more...)
		return err
	}
	rest := size
	if late != nil { // chunks have a length from the start on: what is certain first, then what is left
		sure := late.Sure()
		if err := write(io.LimitReader(body, sure), sure); err != nil {
			return nil, err
		}
		var err error
		if rest, err = late.Rest(); err != nil {
			return nil, err
		}
		if size = sure + rest; size > storage.PutBytesMax {
			return nil, errs.Newf(errs.EntityTooLarge, "put", string(owner.Key), "%d bytes in one request, at most %d", size, int64(storage.PutBytesMax))
		}
	}
	if err := write(body, rest); err != nil {
		return nil, err
	}
	return &stored{data: &metapb.Data{Chunks: refs}, etag: sum.text(known), size: size}, nil
}

// etag computes the MD5 that is an object's ETag; nil if the body's own is used.
type etag struct{ *checksum.MD5 }

// newETag makes the hash of a body, or finds the MD5 that the client sent and
// the body verifies at its end: one pass of MD5 is the dearest part of a large write.
func (s *Store) newETag(body io.Reader, size int64) (e etag, known []byte) {
	if b, ok := body.(interface{ ContentMD5() []byte }); ok {
		if known = b.ContentMD5(); known != nil {
			return etag{}, known
		}
	}
	return etag{s.md5s.New(size)}, nil
}

func (e etag) Write(p []byte) {
	if e.MD5 != nil {
		e.MD5.Write(p)
	}
}

func (e etag) release() {
	if e.MD5 != nil {
		e.Release()
	}
}

func (e etag) text(known []byte) string {
	if e.MD5 != nil {
		known = e.Sum(nil)
	}
	return hex.EncodeToString(known)
}

// readInline reads exactly size bytes and the end of the body behind them.
func readInline(body io.Reader, size int) ([]byte, error) {
	buf := make([]byte, size+1)
	n, err := io.ReadFull(body, buf)
	switch {
	case err == nil:
		return nil, errs.New(errs.InvalidRequest, "put", "", "the body is longer than announced")
	case err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, err
	case n < size:
		return nil, errs.New(errs.IncompleteBody, "put", "", "")
	}
	return buf[:n:n], nil
}

// putClass is the class whose placement a write uses.
func putClass(a *metapb.Attributes) storage.StorageClass {
	if a.GetStorageClass() == "" {
		return storage.Standard
	}
	return storage.StorageClass(a.StorageClass)
}

// PutObject stores an object. On nil it is durable and visible. The conditions are decided inside the Raft command.
func (s *Store) PutObject(ctx context.Context, acct Account, in *PutInput) (out *PutOutput, err error) {
	var st *stored
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) (err error) {
		owner := storage.Owner{Bucket: b.ID, Key: in.Key, Write: s.cfg.Meta.NewWriteID()}
		if st == nil {
			if err := s.precheck(ctx, b, in.Key, in.Conditions); err != nil {
				return err
			}
			st, err = s.writeBody(ctx, owner, putClass(in.Attributes), in.Body, in.Body.Size(), nil)
		} else {
			err = st.again()
		}
		if err != nil {
			return err
		}
		event := notification.ObjectCreatedPut
		if in.Form {
			event = notification.ObjectCreatedPost
		}
		out, err = s.commitPut(ctx, b, owner, acct, event, st, in.Attributes, in.Body.Checksums(), in.Conditions)
		return err
	})
	return out, err
}

// precheck refuses early, before a body is stored, what the command would refuse
// anyway; only the command's own check counts.
func (s *Store) precheck(ctx context.Context, b Bucket, key storage.Key, c Conditions) error {
	if len(c.IfMatch) == 0 && len(c.IfNoneMatch) == 0 {
		return nil
	}
	return s.viewOf(ctx, b, key, func(v rangestate.Reader) error {
		row, err := v.Object(b.ID, key, nil)
		if errs.Is(err, errs.NoSuchKey) || errs.Is(err, errs.IsDeleteMarker) {
			row, err = nil, nil
		}
		if err != nil {
			return err
		}
		switch {
		case len(c.IfMatch) > 0 && row == nil:
			return errs.New(errs.NoSuchKey, "put", string(key), "")
		case len(c.IfMatch) > 0 && !etagListed(c.IfMatch, row.Etag),
			len(c.IfNoneMatch) > 0 && row != nil && etagListed(c.IfNoneMatch, row.Etag):
			return errs.New(errs.PreconditionFailed, "put", string(key), "")
		}
		return nil
	})
}

func etagListed(list []string, etag string) bool {
	for _, e := range list {
		if e == "*" || e == etag {
			return true
		}
	}
	return false
}

// commitPut is the one command that makes a written object visible; event is how it was made.
func (s *Store) commitPut(ctx context.Context, b Bucket, owner storage.Owner, acct Account, event notification.Type, st *stored, attrs *metapb.Attributes, sums []*metapb.Checksum, cond Conditions) (*PutOutput, error) {
	res, err := s.do(ctx, acct, b, owner.Key, &metapb.RangeCommand{Op: &metapb.RangeCommand_PutObject{PutObject: &metapb.PutObjectOp{
		Bucket: uint64(b.ID), Key: []byte(owner.Key), Conditions: conditionsPB(cond), Event: uint32(event),
		Row: &metapb.ObjectRow{
			Format: 1, Nonce: s.cfg.Meta.Random64(), WriteId: owner.Write[:], Size: uint64(st.size), Etag: st.etag,
			Owner: acct.ID, Attributes: attrs, Checksums: sums, Data: st.data,
		},
	}}})
	if err != nil {
		return nil, err
	}
	return &PutOutput{
		ETag: st.etag, VersionID: resultVersion(res), Checksums: sums, Modified: msTime(res.TimeMs), Size: st.size, Attributes: attrs, Lifecycle: s.rulesOfWrite(ctx, b),
	}, nil
}

// resultVersion is the version id to show for a result: "" on a bucket that never was versioned.
func resultVersion(r *metapb.RangeResult) string {
	switch {
	case !r.Versioned:
		return ""
	case r.NullVersion:
		return "null"
	}
	return storage.VersionID{Seq: storage.Seq(r.VersionSeq), Nonce: r.VersionNonce}.String()
}

func msTime(ms int64) time.Time { return time.UnixMilli(ms).UTC() }
