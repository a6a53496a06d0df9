package objects

import (
	"context"
	"hash"
	"io"
	"slices"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/checksum"
	"cairn/storage/errs"
)

// source opens the object a copy reads from, with the errors of GetObject; the caller closes it.
func (s *Store) source(ctx context.Context, acct Account, bucket string, key storage.Key, version string, cond Conditions, rng *Range) (*Object, error) {
	o, err := s.GetObject(ctx, acct, &GetInput{Bucket: bucket, Key: key, VersionID: version, Conditions: cond, Range: rng})
	if err != nil {
		return nil, err
	}
	if o.NotModified { // for a copy a failed If-None-Match or If-Modified-Since is 412 too
		o.Close()
		return nil, errs.New(errs.PreconditionFailed, "copy", string(key), "")
	}
	return o, nil
}

// pipe gives the source's bytes as a reader; stop ends the sender and must be called.
func pipe(o *Object) (r io.Reader, stop func()) {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(o.Send(pw)) // nil gives the reader io.EOF
	}()
	return pr, func() {
		pr.CloseWithError(errs.New(errs.Closed, "copy", "", ""))
		<-done
	}
}

// copyBytes writes the bytes of a source anew for owner, with the checksums of
// these algorithms. Chunks are never shared (design rule 14).
func (s *Store) copyBytes(ctx context.Context, owner storage.Owner, class storage.StorageClass, src *Object, algs []metapb.ChecksumAlgorithm) (*stored, []*metapb.Checksum, error) {
	hashes := make([]hash.Hash, len(algs))
	for i, a := range algs {
		if hashes[i] = checksum.New(a); hashes[i] == nil {
			return nil, nil, errs.Newf(errs.NotImplemented, "copy", string(owner.Key), "checksum algorithm %v", a)
		}
	}
	body, stop := pipe(src)
	defer stop()
	st, err := s.writeBody(ctx, owner, class, body, src.Length, func(p []byte) {
		for _, h := range hashes {
			h.Write(p)
		}
	})
	if err != nil {
		return nil, nil, err
	}
	sums := make([]*metapb.Checksum, len(algs))
	for i, a := range algs {
		sums[i] = &metapb.Checksum{Algorithm: a, Value: hashes[i].Sum(nil)}
	}
	return st, sums, nil
}

// copyAlgorithm is the checksum a copy gets: the one asked for, else the source's, else CRC64NVME.
func copyAlgorithm(asked metapb.ChecksumAlgorithm, src *Object) metapb.ChecksumAlgorithm {
	switch {
	case asked != metapb.ChecksumAlgorithm_CHECKSUM_NONE:
		return asked
	case len(src.Checksums) > 0:
		return src.Checksums[0].Algorithm
	}
	return metapb.ChecksumAlgorithm_CRC64NVME
}

// copyAttributes are those of the copy of an object with the attributes src.
func copyAttributes(in *CopyInput, src *metapb.Attributes) *metapb.Attributes {
	attrs := in.Attributes.CloneVT()
	if attrs == nil {
		if attrs = src.CloneVT(); attrs == nil {
			attrs = &metapb.Attributes{}
		}
		attrs.StorageClass = in.StorageClass
		// S3 copies all headers but the website redirect.
		attrs.Headers = slices.DeleteFunc(attrs.Headers, func(h *metapb.KV) bool { return strings.EqualFold(h.Name, "x-amz-website-redirect-location") })
		attrs.ChecksumAlgorithm, attrs.ChecksumFullObject = 0, false
	}
	attrs.Tags = src.GetTags()
	if in.ReplaceTags {
		attrs.Tags = in.Tags
	}
	// Retention and legal hold are of the source's version, never copied (S3: CopyObject).
	attrs.LockMode, attrs.LockUntilMs, attrs.LegalHold = in.Retention.Mode, 0, in.LegalHold
	if in.Retention.Mode != "" {
		attrs.LockUntilMs = in.Retention.Until.UnixMilli()
	}
	return attrs
}

// CopyObject copies an object inside the store; the bytes don't pass the client.
func (s *Store) CopyObject(ctx context.Context, acct Account, in *CopyInput) (out *PutOutput, err error) {
	src, err := s.source(ctx, acct, in.SourceBucket, in.SourceKey, in.SourceVersionID, in.SourceConditions, nil)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	if src.Size > storage.PutBytesMax {
		return nil, errs.New(errs.InvalidRequest, "copy", string(in.SourceKey), "the source is larger than the 5 GiB that one copy may have; use UploadPartCopy")
	}
	attrs := copyAttributes(in, src.Attributes)
	var st *stored
	var sums []*metapb.Checksum
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) (err error) {
		owner := storage.Owner{Bucket: b.ID, Key: in.Key, Write: s.cfg.Meta.NewWriteID()}
		if st == nil {
			if err := s.precheck(ctx, b, in.Key, in.Conditions); err != nil {
				return err
			}
			alg := copyAlgorithm(in.ChecksumAlgorithm, src)
			st, sums, err = s.copyBytes(ctx, owner, putClass(attrs), src, []metapb.ChecksumAlgorithm{alg})
		} else {
			err = st.again()
		}
		if err != nil {
			return err
		}
		out, err = s.commitPut(ctx, b, owner, acct, notification.ObjectCreatedCopy, st, attrs, sums, in.Conditions)
		return err
	})
	return out, err
}
