package objects

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"

	"github.com/minio/sha256-simd"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/checksum"
	"cairn/storage/errs"
)

// completeTries bounds how often Complete reads the parts again because one was uploaded meanwhile.
const completeTries = 5

// CreateUpload begins a multipart upload.
func (s *Store) CreateUpload(ctx context.Context, acct Account, in *CreateUploadInput) (up Upload, err error) {
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		w := s.cfg.Meta.NewWriteID()
		nonce := s.cfg.Meta.Random64()
		res, err := s.cfg.Meta.Do(ctx, b.ID, in.Key, &metapb.RangeCommand{Op: &metapb.RangeCommand_CreateUpload{CreateUpload: &metapb.CreateUploadOp{
			Bucket: uint64(b.ID), Key: []byte(in.Key),
			Row: &metapb.UploadRow{Format: 1, Nonce: nonce, WriteId: w[:], Owner: acct.ID, Attributes: in.Attributes},
		}}})
		if err != nil {
			return err
		}
		id := storage.UploadID{Seq: storage.Seq(res.VersionSeq), Nonce: nonce}
		up = Upload{Key: in.Key, ID: id.String(), Initiated: msTime(res.TimeMs), Owner: acct.ID, Attributes: in.Attributes, Lifecycle: s.rulesOfWrite(ctx, b)}
		return nil
	})
	return up, err
}

// readUpload reads the upload's row, linearizably.
func (s *Store) readUpload(ctx context.Context, b Bucket, key storage.Key, id storage.UploadID) (up *metapb.UploadRow, err error) {
	err = s.viewOf(ctx, b, key, func(v rangestate.Reader) (err error) {
		up, err = v.Upload(b.ID, key, id)
		return err
	})
	return up, err
}

// UploadPart stores one part, replacing an earlier one of the same number.
func (s *Store) UploadPart(ctx context.Context, acct Account, in *UploadPartInput) (out *PutOutput, err error) {
	id, err := storage.ParseUploadID(in.UploadID)
	if err != nil {
		return nil, err
	}
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		up, err := s.readUpload(ctx, b, in.Key, id) // a bucket that was created since the body was read has no such upload
		if err != nil {
			return err
		}
		// The upload's algorithm may not be the one this part was sent with: then it is computed here.
		alg := uploadAlgorithm(up)
		if err := checkPartAlgorithm(up, in.Body.Algorithm()); err != nil {
			return err
		}
		var own hash.Hash
		var tee func([]byte)
		if in.Body.Algorithm() != alg {
			if own = checksum.New(alg); own == nil {
				return errs.Newf(errs.NotImplemented, "part", string(in.Key), "checksum algorithm %v", alg)
			}
			tee = func(p []byte) { own.Write(p) }
		}
		owner := storage.Owner{Bucket: b.ID, Key: in.Key, Write: s.cfg.Meta.NewWriteID()}
		st, err := s.writeBody(ctx, owner, putClass(up.Attributes), in.Body, in.Body.Size(), tee)
		if err != nil {
			return err
		}
		sums := in.Body.Checksums()
		if declared(up) { // its parts have the checksum that it declared and no other
			sums = slices.DeleteFunc(slices.Clone(sums), func(c *metapb.Checksum) bool { return c.Algorithm != alg })
		}
		switch {
		case sumOf(sums, alg) != nil:
		case own == nil:
			return errs.New(errs.Other, "part", string(in.Key), "the body lacks the checksum that it promised")
		default:
			sums = append(slices.Clone(sums), &metapb.Checksum{Algorithm: alg, Value: own.Sum(nil)})
		}
		out, err = s.commitPart(ctx, b, owner, id, in.Number, st, sums)
		return err
	})
	return out, err
}

// declared tells whether the client named the upload's algorithm when it began.
func declared(up *metapb.UploadRow) bool {
	return up.GetAttributes().GetChecksumAlgorithm() != metapb.ChecksumAlgorithm_CHECKSUM_NONE
}

// uploadAlgorithm is the checksum that every part of an upload has.
func uploadAlgorithm(up *metapb.UploadRow) metapb.ChecksumAlgorithm {
	if declared(up) {
		return up.Attributes.ChecksumAlgorithm
	}
	return metapb.ChecksumAlgorithm_CRC64NVME
}

// checkPartAlgorithm refuses a part that came with another checksum than its upload declared. One that came with none,
// which a body shows as the default, gets the upload's here: S3 refuses that too, but nothing is lost by computing it.
func checkPartAlgorithm(up *metapb.UploadRow, alg metapb.ChecksumAlgorithm) error {
	want := uploadAlgorithm(up)
	if !declared(up) || alg == want || alg == metapb.ChecksumAlgorithm_CRC64NVME || alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE {
		return nil
	}
	return errs.Newf(errs.InvalidRequest, "part", "", "Checksum Type mismatch occurred, expected checksum Type: %s, actual checksum Type: %s",
		strings.ToLower(checksum.Name(want)), strings.ToLower(checksum.Name(alg)))
}

func sumOf(sums []*metapb.Checksum, alg metapb.ChecksumAlgorithm) []byte {
	for _, c := range sums {
		if c.Algorithm == alg {
			return c.Value
		}
	}
	return nil
}

func (s *Store) commitPart(ctx context.Context, b Bucket, owner storage.Owner, id storage.UploadID, number int, st *stored, sums []*metapb.Checksum) (*PutOutput, error) {
	res, err := s.cfg.Meta.Do(ctx, b.ID, owner.Key, &metapb.RangeCommand{Op: &metapb.RangeCommand_PutPart{PutPart: &metapb.PutPartOp{
		Bucket: uint64(b.ID), Key: []byte(owner.Key), UploadSeq: uint64(id.Seq), UploadNonce: id.Nonce,
		Row: &metapb.PartRow{
			Format: 1, Number: uint32(number), WriteId: owner.Write[:], Size: uint64(st.size), Etag: st.etag, Checksums: sums, Data: st.data,
		},
	}}})
	if err != nil {
		return nil, err
	}
	return &PutOutput{ETag: st.etag, Checksums: sums, Modified: msTime(res.TimeMs), Size: st.size}, nil
}

// UploadPartCopy stores one part from the bytes of an object.
func (s *Store) UploadPartCopy(ctx context.Context, acct Account, in *UploadPartCopyInput) (out *PutOutput, err error) {
	id, err := storage.ParseUploadID(in.UploadID)
	if err != nil {
		return nil, err
	}
	src, err := s.source(ctx, acct, in.SourceBucket, in.SourceKey, in.SourceVersionID, in.SourceConditions, in.SourceRange)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	// Unlike a GET, a copy's range must lie wholly in the source (S3: UploadPartCopy).
	if r := in.SourceRange; r != nil && !r.Suffix && r.Last >= src.Size {
		return nil, errs.Newf(errs.InvalidRange, "copy", string(in.SourceKey), "the range ends past the source's %d bytes", src.Size)
	}
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		up, err := s.readUpload(ctx, b, in.Key, id) // as in UploadPart
		if err != nil {
			return err
		}
		alg := uploadAlgorithm(up)
		owner := storage.Owner{Bucket: b.ID, Key: in.Key, Write: s.cfg.Meta.NewWriteID()}
		st, sums, err := s.copyBytes(ctx, owner, putClass(up.Attributes), src, []metapb.ChecksumAlgorithm{alg})
		if err != nil {
			return err
		}
		out, err = s.commitPart(ctx, b, owner, id, in.Number, st, sums)
		return err
	})
	return out, err
}

// AbortUpload ends an upload; its parts become garbage.
func (s *Store) AbortUpload(ctx context.Context, acct Account, bucket string, key storage.Key, uploadID string) error {
	id, err := storage.ParseUploadID(uploadID)
	if err != nil {
		return err
	}
	return s.withBucket(ctx, acct, bucket, func(b Bucket) error {
		_, err := s.cfg.Meta.Do(ctx, b.ID, key, &metapb.RangeCommand{Op: &metapb.RangeCommand_AbortUpload{AbortUpload: &metapb.AbortUploadOp{
			Bucket: uint64(b.ID), Key: []byte(key), UploadSeq: uint64(id.Seq), UploadNonce: id.Nonce,
		}}})
		return err
	})
}

// CompleteUpload joins the parts named into an object. The parts are read here
// and judged by the range at the same generation of the upload, so that the
// command itself stays small. A repeat of a Complete that succeeded is answered from it.
func (s *Store) CompleteUpload(ctx context.Context, acct Account, in *CompleteInput) (out *PutOutput, err error) {
	id, err := storage.ParseUploadID(in.UploadID)
	if err != nil {
		return nil, err
	}
	if err := checkOrder(in.Parts); err != nil {
		return nil, err
	}
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		for try := 0; ; try++ {
			op, up, err := s.planComplete(ctx, b, id, in)
			if err != nil {
				return err
			}
			res, err := s.do(ctx, acct, b, in.Key, &metapb.RangeCommand{Op: &metapb.RangeCommand_CompleteUpload{CompleteUpload: op}})
			if errs.Is(err, errs.Conflict) && try < completeTries {
				continue // a part was uploaded after the parts were read
			}
			if err != nil {
				return err
			}
			out = &PutOutput{
				ETag: res.Etag, VersionID: resultVersion(res), Checksums: res.Checksums, Modified: msTime(res.TimeMs), Size: int64(res.Size),
				Attributes: up.GetAttributes(), Lifecycle: s.rulesOfWrite(ctx, b),
			}
			return nil
		}
	})
	return out, err
}

func checkOrder(parts []CompletePart) error {
	if len(parts) == 0 {
		return errs.New(errs.InvalidRequest, "complete", "", "at least one part must be named")
	}
	for i, p := range parts {
		if p.Number < 1 || p.Number > storage.PartNumberMax {
			return errs.Newf(errs.InvalidPart, "complete", strconv.Itoa(p.Number), "part numbers are 1 to %d", storage.PartNumberMax)
		}
		if i > 0 && parts[i-1].Number >= p.Number {
			return errs.New(errs.InvalidPartOrder, "complete", "", "")
		}
	}
	return nil
}

// planComplete reads the upload and its parts and makes the command from them. The upload is nil if there is none any more.
func (s *Store) planComplete(ctx context.Context, b Bucket, id storage.UploadID, in *CompleteInput) (op *metapb.CompleteUploadOp, up *metapb.UploadRow, err error) {
	op = &metapb.CompleteUploadOp{
		Bucket: uint64(b.ID), Key: []byte(in.Key), UploadSeq: uint64(id.Seq), UploadNonce: id.Nonce,
		Conditions: conditionsPB(in.Conditions), VersionNonce: s.cfg.Meta.Random64(), PartsDigest: partsDigest(in.Parts),
	}
	var rows []*metapb.PartRow
	err = s.viewOf(ctx, b, in.Key, func(v rangestate.Reader) (err error) {
		if up, err = v.Upload(b.ID, in.Key, id); err != nil {
			return err
		}
		rows, _, err = v.Parts(b.ID, in.Key, id, 0, storage.PartNumberMax)
		return err
	})
	if errs.Is(err, errs.NoSuchUpload) {
		return op, nil, nil // completed before? The range knows: it answers from the first Complete or refuses
	}
	if err != nil {
		return nil, nil, err
	}
	op.UploadGeneration = up.Generation
	return op, up, joinParts(op, up, rows, in)
}

// partsDigest identifies the list of parts of a Complete.
func partsDigest(parts []CompletePart) []byte {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d %s\n", p.Number, p.ETag)
	}
	return h.Sum(nil)
}

// joinParts checks the parts named against those stored and fills in the
// object's parts, ETag and checksum.
func joinParts(op *metapb.CompleteUploadOp, up *metapb.UploadRow, rows []*metapb.PartRow, in *CompleteInput) error {
	sum := md5.New()
	joiner, err := newJoiner(up)
	if err != nil {
		return err
	}
	if t := in.ChecksumType; t != "" && t != joiner.kind {
		return errs.Newf(errs.InvalidRequest, "complete", "", "The upload was created using the %s checksum mode. The complete request must use the same checksum mode.", joiner.kind)
	}
	var total int64
	for i, want := range in.Parts {
		n, ok := slices.BinarySearchFunc(rows, want.Number, func(r *metapb.PartRow, n int) int { return int(r.Number) - n })
		if !ok || rows[n].Etag != want.ETag || !sumsMatch(want.Checksums, rows[n].Checksums) {
			return errs.Newf(errs.InvalidPart, "complete", strconv.Itoa(want.Number), "part %d is missing or its ETag or checksum is another", want.Number)
		}
		row := rows[n]
		if i < len(in.Parts)-1 && row.Size < storage.PartBytesMin {
			return errs.Newf(errs.EntityTooSmall, "complete", strconv.Itoa(want.Number), "part %d has %d bytes; all but the last need %d", want.Number, row.Size, storage.PartBytesMin)
		}
		raw, err := hex.DecodeString(row.Etag)
		if err != nil {
			return errs.Wrap(errs.Corrupt, "complete", "part etag", err)
		}
		sum.Write(raw)
		value := sumOf(row.Checksums, joiner.alg)
		if value == nil { // it was given one when it was stored
			return errs.Newf(errs.Corrupt, "complete", strconv.Itoa(want.Number), "the part lacks the upload's checksum")
		}
		if err := joiner.Add(value, int64(row.Size)); err != nil {
			return err
		}
		total += int64(row.Size)
		op.Parts = append(op.Parts, &metapb.ManifestPart{Number: row.Number, Size: row.Size})
	}
	if in.Size != nil && *in.Size != total {
		return errs.Newf(errs.InvalidRequest, "complete", "", "x-amz-mp-object-size is %d, the parts have %d bytes", *in.Size, total)
	}
	if total > storage.ObjectBytesMax {
		return errs.New(errs.EntityTooLarge, "complete", "", "")
	}
	op.Etag = hex.EncodeToString(sum.Sum(nil)) + "-" + strconv.Itoa(len(in.Parts))
	op.Checksums = []*metapb.Checksum{joiner.Checksum()}
	return checkClaimed(in.Checksums, op.Checksums)
}

type partJoiner struct {
	*checksum.Joiner
	alg  metapb.ChecksumAlgorithm
	kind string // x-amz-checksum-type
}

// newJoiner makes what joins the parts' checksums; an upload that named no
// algorithm gets the CRC64NVME of the whole, which every part has by default.
func newJoiner(up *metapb.UploadRow) (*partJoiner, error) {
	alg, full := uploadAlgorithm(up), up.GetAttributes().GetChecksumFullObject()
	if alg == metapb.ChecksumAlgorithm_CRC64NVME {
		full = true
	}
	j, err := checksum.NewJoiner(alg, full)
	if err != nil {
		return nil, err
	}
	kind := "COMPOSITE"
	if full {
		kind = "FULL_OBJECT"
	}
	return &partJoiner{j, alg, kind}, nil
}

// sumsMatch reports whether all checksums the client named for a part are the stored ones.
func sumsMatch(named, have []*metapb.Checksum) bool {
	for _, c := range named {
		if !bytes.Equal(sumOf(have, c.Algorithm), c.Value) {
			return false
		}
	}
	return true
}

// checkClaimed compares the object checksum that the client claimed with the joined one.
func checkClaimed(claimed, joined []*metapb.Checksum) error {
	for _, c := range claimed {
		if v := sumOf(joined, c.Algorithm); !bytes.Equal(v, c.Value) {
			return errs.Newf(errs.BadDigest, "complete", "", "The %s you specified did not match the calculated checksum.", strings.ToLower(checksum.Name(c.Algorithm)))
		}
	}
	return nil
}

func uploadFromRow(key storage.Key, r *metapb.UploadRow) Upload {
	return Upload{
		Key: key, ID: storage.UploadID{Seq: storage.Seq(r.Seq), Nonce: r.Nonce}.String(),
		Initiated: msTime(r.InitiatedMs), Owner: r.Owner, Attributes: r.Attributes,
	}
}

// ListParts answers a page of an upload's parts.
func (s *Store) ListParts(ctx context.Context, acct Account, in *ListPartsInput) (out *ListPartsOutput, err error) {
	id, err := storage.ParseUploadID(in.UploadID)
	if err != nil {
		return nil, err
	}
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		var up *metapb.UploadRow
		var rows []*metapb.PartRow
		var more bool
		err := s.viewOf(ctx, b, in.Key, func(v rangestate.Reader) (err error) {
			if up, err = v.Upload(b.ID, in.Key, id); err != nil {
				return err
			}
			rows, more, err = v.Parts(b.ID, in.Key, id, in.After, in.Max)
			return err
		})
		if err != nil {
			return err
		}
		out = &ListPartsOutput{Upload: uploadFromRow(in.Key, up), Truncated: more}
		out.Upload.Lifecycle = s.rulesOfWrite(ctx, b)
		for _, r := range rows {
			out.Parts = append(out.Parts, Part{Number: int(r.Number), ETag: r.Etag, Size: int64(r.Size), Modified: msTime(r.ModifiedMs), Checksums: r.Checksums})
			out.Next = int(r.Number)
		}
		return nil
	})
	return out, err
}

// ListUploads answers a page of the bucket's uploads in progress.
func (s *Store) ListUploads(ctx context.Context, acct Account, in *ListUploadsInput) (out *ListUploadsOutput, err error) {
	err = s.withBucket(ctx, acct, in.Bucket, func(b Bucket) error {
		out = &ListUploadsOutput{}
		keyAfter, idAfter := in.KeyMarker, storage.UploadID{}
		if in.UploadIDMarker != "" {
			var err error
			if idAfter, err = storage.ParseUploadID(in.UploadIDMarker); err != nil {
				return errs.New(errs.InvalidArgument, "list uploads", in.UploadIDMarker, "the upload-id-marker is not an upload id")
			}
		}
		var page rangestate.UploadPage
		full := false
		return s.eachRange(ctx, b, in.Prefix, in.Delimiter, keyAfter, func(v rangestate.Reader) (_ cluster.Bounds, err error) {
			left := in.Max - len(out.Uploads) - len(out.CommonPrefixes)
			full = left == 0 && in.Max > 0
			page, err = v.ListUploads(b.ID, in.Prefix, in.Delimiter, keyAfter, idAfter.Seq, max(left, btoi(full)))
			return page.Bounds, err
		}, func() (string, bool) {
			if full {
				out.Truncated = len(page.Uploads)+len(page.CommonPrefixes) > 0
				return keyAfter, !out.Truncated
			}
			for _, u := range page.Uploads {
				out.Uploads = append(out.Uploads, uploadFromRow(u.Key, u.Row))
			}
			out.CommonPrefixes = append(out.CommonPrefixes, page.CommonPrefixes...)
			if page.NextKey != "" {
				out.NextKey, keyAfter, idAfter.Seq = page.NextKey, page.NextKey, page.NextSeq
				out.NextUploadID = ""
				if n := len(out.Uploads); page.NextSeq != 0 && n > 0 {
					out.NextUploadID = out.Uploads[n-1].ID
				}
			}
			out.Truncated = page.Truncated
			return keyAfter, !page.Truncated && in.Max > 0
		})
	})
	return out, err
}
