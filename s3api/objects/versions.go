package objects

import (
	"context"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// ListVersions answers a page of the bucket's versions. Each range is read
// linearizably, the ranges one after another; all versions of a key lie in one.
func (s *Store) ListVersions(ctx context.Context, acct Account, in *ListVersionsInput) (out *ListVersionsOutput, err error) {
	var marker *storage.VersionID
	if in.VersionMarker != "" {
		id, err := storage.ParseVersionID(in.VersionMarker)
		if err != nil {
			return nil, errs.New(errs.InvalidArgument, "list versions", in.VersionMarker, "the version-id-marker is not a version id")
		}
		marker = &id
	}
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		out = &ListVersionsOutput{}
		keyAfter, idAfter := in.KeyMarker, marker
		var page rangestate.VersionPage
		full := false
		return s.eachRange(ctx, b, in.Prefix, in.Delimiter, keyAfter, func(v rangestate.Reader) (_ cluster.Bounds, err error) {
			left := in.Max - len(out.Versions) - len(out.CommonPrefixes)
			full = left == 0 && in.Max > 0 // as in ListObjects
			page, err = v.ListVersions(b.ID, in.Prefix, in.Delimiter, keyAfter, idAfter, max(left, btoi(full)))
			return page.Bounds, err
		}, func() (string, bool) {
			if full {
				out.Truncated = len(page.Rows)+len(page.CommonPrefixes) > 0
				return keyAfter, !out.Truncated
			}
			for i := range page.Rows {
				row := page.Rows[i].Row
				out.Versions = append(out.Versions, Version{Object: *objectFromRow(page.Rows[i].Key, row, true), Latest: row.NoncurrentMs == 0})
			}
			out.CommonPrefixes = append(out.CommonPrefixes, page.CommonPrefixes...)
			if page.NextKey != "" {
				keyAfter, idAfter = page.NextKey, page.NextVersion
				out.NextKey, out.NextVersion = page.NextKey, ""
				if idAfter != nil {
					out.NextVersion = idAfter.String()
				}
			}
			out.Truncated = page.Truncated
			return keyAfter, !page.Truncated && in.Max > 0
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ObjectParts answers what HeadObject does and a page of the object's parts.
func (s *Store) ObjectParts(ctx context.Context, acct Account, in *GetInput, after, max int) (o *Object, parts []Part, more bool, err error) {
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		var rows []*metapb.PartRow
		err := s.viewOf(ctx, b, in.Key, func(v rangestate.Reader) error {
			row, of, err := s.findRow(v, b, in.Key, in.VersionID)
			if err != nil {
				return err
			}
			if o, err = resolve(v, b, in, row, of); err != nil || o.NotModified {
				return err
			}
			rows, more, err = v.ObjectParts(b.ID, in.Key, row, after, max)
			if errs.Is(err, errs.NotFound) { // gone since the row was read: a repeat finds what took its place
				err = errs.New(errs.Unavailable, "parts", string(in.Key), "the version was removed while it was read")
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, r := range rows {
			parts = append(parts, Part{Number: int(r.Number), ETag: r.Etag, Size: int64(r.Size), Checksums: r.Checksums})
		}
		return nil
	})
	if err != nil {
		return nil, nil, false, err
	}
	return o, parts, more, nil
}

// PutTags replaces a version's tags.
func (s *Store) PutTags(ctx context.Context, acct Account, v VersionRef, tags []*metapb.KV) (string, error) {
	return s.update(ctx, acct, v, &metapb.UpdateVersionOp{Change: &metapb.UpdateVersionOp_Tags{Tags: &metapb.Tags{Tags: tags}}})
}

// DeleteTags takes a version's tags away.
func (s *Store) DeleteTags(ctx context.Context, acct Account, v VersionRef) (string, error) {
	return s.update(ctx, acct, v, &metapb.UpdateVersionOp{Change: &metapb.UpdateVersionOp_Tags{Tags: &metapb.Tags{}}, TagsDeleted: true})
}

// PutRetention changes a version's retention. What the one it has forbids is ObjectLocked.
func (s *Store) PutRetention(ctx context.Context, acct Account, v VersionRef, r Retention, bypass bool) (string, error) {
	pb := &metapb.Retention{Mode: r.Mode, BypassGovernance: bypass}
	if r.Mode != "" {
		pb.UntilMs = r.Until.UnixMilli()
	}
	return s.update(ctx, acct, v, &metapb.UpdateVersionOp{Change: &metapb.UpdateVersionOp_Retention{Retention: pb}})
}

// PutLegalHold changes a version's legal hold.
func (s *Store) PutLegalHold(ctx context.Context, acct Account, v VersionRef, on bool) (string, error) {
	return s.update(ctx, acct, v, &metapb.UpdateVersionOp{Change: &metapb.UpdateVersionOp_LegalHold{LegalHold: on}})
}

// update changes a version in place and answers its id.
func (s *Store) update(ctx context.Context, acct Account, v VersionRef, op *metapb.UpdateVersionOp) (id string, err error) {
	err = s.withBucket(ctx, acct, v.Bucket, func(b Bucket) error {
		res, err := s.updateIn(ctx, acct, b, v, op)
		if err != nil {
			return err
		}
		id = resultVersion(res)
		return nil
	})
	return id, err
}

// updateIn makes the change of op to a version in a bucket. The result is there with a refusal of the range's, too.
func (s *Store) updateIn(ctx context.Context, acct Account, b Bucket, v VersionRef, op *metapb.UpdateVersionOp) (*metapb.RangeResult, error) {
	op.Bucket, op.Key = uint64(b.ID), []byte(v.Key)
	if v.VersionID != "" {
		id, err := parseVersion(v.VersionID)
		if err != nil {
			return nil, err
		}
		op.HasVersion, op.VersionSeq, op.VersionNonce = true, uint64(id.Seq), id.Nonce
	}
	res, err := s.do(ctx, acct, b, v.Key, &metapb.RangeCommand{Op: &metapb.RangeCommand_UpdateVersion{UpdateVersion: op}})
	switch {
	case errs.Is(err, errs.IsDeleteMarker):
		err = &DeleteMarkerError{VersionID: resultVersion(res), Modified: msTime(res.ModifiedMs), Err: err}
	case errs.Is(err, errs.InvalidObjectState):
		err = &ArchivedError{Class: storage.StorageClass(res.StorageClass), Err: err}
	}
	return res, err
}

// parseVersion reads a version id. There never is a version by any other name.
func parseVersion(s string) (storage.VersionID, error) {
	id, err := storage.ParseVersionID(s)
	if err != nil {
		err = errs.New(errs.NoSuchVersion, "version", s, "")
	}
	return id, err
}
