package rangestate

import (
	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/errs"
)

// upload is the upload in progress with this id, or nil.
func (m *Machine) upload(bucket uint64, key []byte, seq, nonce uint64) (*metapb.UploadRow, error) {
	row := &metapb.UploadRow{}
	m.key = appendSeqRow(m.key[:0], kindUpload, bucket, key, seq)
	ok, err := m.get(m.key, row)
	if err != nil || !ok || row.Nonce != nonce {
		return nil, err
	}
	return row, nil
}

// ---- CreateUpload ----

func (m *Machine) createUpload(cmd *metapb.RangeCommand, op *metapb.CreateUploadOp) ([]byte, error) {
	detail := checkKey(op.GetBucket(), op.GetKey())
	if detail == "" && len(op.GetRow().GetWriteId()) != idLen {
		detail = "malformed write id"
	}
	if detail != "" {
		return m.encode(refuse(errs.InvalidArgument, detail))
	}
	if out, err := m.enter(cmd, op.Bucket, op.Key); out != nil || err != nil {
		return out, err
	}
	res, err := m.tryCreateUpload(op)
	if err != nil {
		return nil, err
	}
	return m.leave(cmd, op.Bucket, op.Key, res)
}

func (m *Machine) tryCreateUpload(op *metapb.CreateUploadOp) (*metapb.RangeResult, error) {
	b, refused, err := m.live(op.Bucket)
	if refused != nil || err != nil {
		return refused, err
	}
	row := op.Row
	if a := row.Attributes; !b.ObjectLock {
		// The bucket's default retention is resolved when the object is made, at Complete.
		if _, refused = m.lockAttributes(b, a); refused != nil {
			return refused, nil
		}
	}
	row.Format, row.Seq, row.InitiatedMs = 1, m.nextSeq(), m.now()
	row.Generation, row.Bytes, row.Parts = 1, 0, 0
	c, err := m.count(op.Bucket, row.GetAttributes().GetStorageClass())
	if err != nil {
		return nil, err
	}
	c.Uploads++
	m.key = appendSeqRow(m.key[:0], kindUpload, op.Bucket, op.Key, row.Seq)
	return &metapb.RangeResult{Ok: true, VersionSeq: row.Seq, VersionNonce: row.Nonce}, m.put(m.key, row)
}

// ---- PutPart ----

func (m *Machine) putPart(cmd *metapb.RangeCommand, op *metapb.PutPartOp) ([]byte, error) {
	row := op.GetRow()
	detail := checkKey(op.GetBucket(), op.GetKey())
	if detail == "" && (row == nil || len(row.WriteId) != idLen || row.Number == 0 || row.Number > storage.PartNumberMax) {
		detail = "malformed part"
	}
	if detail == "" {
		detail = checkData(row.Data, row.Size)
	}
	if detail != "" {
		return m.encode(refuse(errs.InvalidArgument, detail))
	}
	if out, err := m.enter(cmd, op.Bucket, op.Key); out != nil || err != nil {
		return out, err
	}
	for _, c := range row.GetData().GetChunks() {
		if m.tooOld(c) {
			return m.encode(tooOldResult())
		}
	}
	res, class, stored, err := m.tryPutPart(op)
	if err != nil {
		return nil, err
	}
	if stored {
		return m.encode(refuse(errs.InvalidRequest, sameWrite))
	}
	if !res.Ok {
		if err := m.refund(res, op.Bucket, op.Key, row.WriteId, row.GetData().GetChunks(), class); err != nil {
			return nil, err
		}
	}
	return m.leave(cmd, op.Bucket, op.Key, res)
}

// tryPutPart answers the result and the upload's storage class as far as known,
// or that the part's row has the write id already.
func (m *Machine) tryPutPart(op *metapb.PutPartOp) (res *metapb.RangeResult, class string, stored bool, err error) {
	_, refused, err := m.live(op.Bucket)
	if refused != nil || err != nil {
		return refused, "", false, err
	}
	up, err := m.upload(op.Bucket, op.Key, op.UploadSeq, op.UploadNonce)
	if err != nil {
		return nil, "", false, err
	}
	if up == nil {
		return refuse(errs.NoSuchUpload, ""), "", false, nil
	}
	class = className(up.GetAttributes().GetStorageClass())
	row := op.Row
	var old metapb.PartRow
	m.key = appendUploadRow(m.key[:0], kindPart, op.Bucket, op.Key, up.Seq, row.Number)
	replaces, err := m.get(m.key, &old)
	if err != nil {
		return nil, "", false, err
	}
	if replaces && string(old.WriteId) == string(row.WriteId) {
		return nil, "", true, nil
	}
	if row.Data == nil {
		row.Data = &metapb.Data{}
	}
	row.Format, row.ModifiedMs, row.Data.Generation = 1, m.now(), 1
	if err := m.put(m.key, row); err != nil {
		return nil, "", false, err
	}
	if err := m.garbage(op.Bucket, op.Key, old.WriteId, old.GetData().GetChunks(), class); err != nil {
		return nil, "", false, err
	}
	up.Generation++
	up.Bytes += row.Size - old.Size
	if !replaces {
		up.Parts++
	}
	c, err := m.count(op.Bucket, class)
	if err != nil {
		return nil, "", false, err
	}
	c.UploadBytes += int64(row.Size) - int64(old.Size)
	m.key = appendSeqRow(m.key[:0], kindUpload, op.Bucket, op.Key, up.Seq)
	if err := m.put(m.key, up); err != nil {
		return nil, "", false, err
	}
	err = m.repair(op.Bucket, op.Key, &metapb.RepairRow{UploadSeq: up.Seq, Part: row.Number, WriteId: row.WriteId}, row.Data.Chunks)
	return &metapb.RangeResult{Ok: true}, class, false, err
}

// ---- CompleteUpload ----

func (m *Machine) completeUpload(cmd *metapb.RangeCommand, op *metapb.CompleteUploadOp) ([]byte, error) {
	if detail := checkKey(op.GetBucket(), op.GetKey()); detail != "" {
		return m.encode(refuse(errs.InvalidArgument, detail))
	}
	if out, err := m.enter(cmd, op.Bucket, op.Key); out != nil || err != nil {
		return out, err
	}
	res, err := m.tryComplete(op)
	if err != nil {
		return nil, err
	}
	return m.leave(cmd, op.Bucket, op.Key, res)
}

func (m *Machine) tryComplete(op *metapb.CompleteUploadOp) (*metapb.RangeResult, error) {
	b, refused, err := m.live(op.Bucket)
	if refused != nil || err != nil {
		return refused, err
	}
	up, err := m.upload(op.Bucket, op.Key, op.UploadSeq, op.UploadNonce)
	if err != nil {
		return nil, err
	}
	if up == nil {
		return m.completedBefore(b, op)
	}
	if up.Generation != op.UploadGeneration {
		return refuse(errs.Conflict, "a part was stored meanwhile"), nil
	}
	h, err := m.heads(b, op.Bucket, op.Key)
	if err != nil {
		return nil, err
	}
	if kind := holds(op.Conditions, h.cur); kind != 0 {
		return refuse(kind, ""), nil
	}
	attributes, refused := m.lockAttributes(b, up.Attributes)
	if refused != nil {
		return refused, nil
	}
	if gone := h.replaced(b); gone != nil && m.locked(gone, false) {
		return refuse(errs.ObjectLocked, ""), nil
	}
	size, unlisted, refused, err := m.checkParts(op)
	if refused != nil || err != nil {
		return refused, err
	}
	e, refused, err := m.ask(b, notification.ObjectCreatedCompleteMultipartUpload, op.Bucket, op.Key)
	if refused != nil || err != nil {
		return refused, err
	}
	c, err := m.count(op.Bucket, up.GetAttributes().GetStorageClass())
	if err != nil {
		return nil, err
	}
	c.Uploads--
	c.UploadBytes -= int64(up.Bytes)
	row := &metapb.ObjectRow{
		Nonce: op.VersionNonce, WriteId: up.WriteId, Size: size, Etag: op.Etag, Owner: up.Owner, Attributes: attributes,
		Checksums: op.Checksums, Data: &metapb.Data{Generation: 1, UploadSeq: up.Seq, Parts: uint32(len(op.Parts))},
	}
	res := &metapb.RangeResult{Etag: op.Etag, Checksums: op.Checksums, Size: size}
	if err := m.install(b, op.Bucket, op.Key, h, row, res); err != nil {
		return nil, err
	}
	if err := m.tell(&e, op.Bucket, op.Key, row, res); err != nil {
		return nil, err
	}
	return res, m.finishComplete(op, up, row, unlisted)
}

// completedBefore answers a Complete whose upload is not there (any more).
func (m *Machine) completedBefore(b *metapb.BucketRow, op *metapb.CompleteUploadOp) (*metapb.RangeResult, error) {
	var done metapb.CompletedUploadRow
	m.key = appendSeqRow(m.key[:0], kindCompleted, op.Bucket, op.Key, op.UploadSeq)
	ok, err := m.get(m.key, &done)
	if err != nil {
		return nil, err
	}
	if !ok || expired(done.CompletedMs, completedMS, m.now()) || done.Nonce != op.UploadNonce ||
		len(op.PartsDigest) == 0 || string(done.PartsDigest) != string(op.PartsDigest) {
		return refuse(errs.NoSuchUpload, ""), nil
	}
	return &metapb.RangeResult{
		Ok: true, VersionSeq: done.VersionSeq, VersionNonce: done.VersionNonce, NullVersion: done.NullVersion,
		Etag: done.Etag, Checksums: done.Checksums, Size: done.Size,
		Versioned: b.Versioning != metapb.Versioning_VERSIONING_NEVER,
	}, nil
}

// checkParts checks that the parts listed are there, with the sizes listed, and
// answers the object's size and whether the upload has others. It walks the
// upload's part rows once, at most 10,000 of them, reading little of each.
func (m *Machine) checkParts(op *metapb.CompleteUploadOp) (size uint64, unlisted bool, refused *metapb.RangeResult, err error) {
	if len(op.Parts) == 0 || len(op.Parts) > storage.PartNumberMax {
		return 0, false, refuse(errs.InvalidPart, "an object has 1 to 10000 parts"), nil
	}
	for i, p := range op.Parts {
		if i > 0 && p.GetNumber() <= op.Parts[i-1].GetNumber() {
			return 0, false, refuse(errs.InvalidPartOrder, ""), nil
		}
		if size += p.GetSize(); p.GetSize() > storage.ObjectBytesMax || size > storage.ObjectBytesMax {
			return 0, false, refuse(errs.EntityTooLarge, ""), nil
		}
	}
	next := 0
	start, end := uploadSpan(kindPart, op.Bucket, op.Key, op.UploadSeq)
	err = m.iterate(start, end, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		number := suffixNumber(raw)
		if next == len(op.Parts) || number < op.Parts[next].Number {
			unlisted = true
			return next < len(op.Parts), nil
		}
		v, err := value()
		if err != nil {
			return false, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
		}
		partSize, ok := partRowSize(v)
		if !ok {
			return false, corrupt(raw, errMalformed)
		}
		if number != op.Parts[next].Number || partSize != op.Parts[next].Size {
			return false, nil
		}
		next++
		return true, nil
	})
	if err == nil && next < len(op.Parts) {
		refused = refuse(errs.InvalidPart, "a part listed is not there with that size")
	}
	return size, unlisted, refused, err
}

// finishComplete writes what remains beside the object of a completed upload.
func (m *Machine) finishComplete(op *metapb.CompleteUploadOp, up *metapb.UploadRow, row *metapb.ObjectRow, unlisted bool) error {
	page := metapb.ManifestRow{Format: 1, WriteId: up.WriteId}
	for n := uint32(0); int(n)*pageSize < len(op.Parts); n++ {
		page.Parts = op.Parts[int(n)*pageSize : min(int(n+1)*pageSize, len(op.Parts))]
		m.key = appendUploadRow(m.key[:0], kindManifest, op.Bucket, op.Key, up.Seq, n)
		if err := m.put(m.key, &page); err != nil {
			return err
		}
		for _, p := range page.Parts {
			page.Offset += p.Size
		}
	}
	m.key = appendSeqRow(m.key[:0], kindUpload, op.Bucket, op.Key, up.Seq)
	if err := m.del(m.key); err != nil {
		return err
	}
	m.key = appendSeqRow(m.key[:0], kindCompleted, op.Bucket, op.Key, up.Seq)
	err := m.put(m.key, &metapb.CompletedUploadRow{
		Format: 1, Nonce: up.Nonce, CompletedMs: m.now(), VersionSeq: row.Seq, VersionNonce: row.Nonce, NullVersion: row.NullVersion,
		Etag: row.Etag, Checksums: row.Checksums, PartsDigest: op.PartsDigest, Size: row.Size,
	})
	if err != nil || !unlisted {
		return err
	}
	return m.doom(op.Bucket, op.Key, up.Seq, up.WriteId, true)
}

// ---- AbortUpload ----

func (m *Machine) abortUpload(cmd *metapb.RangeCommand, op *metapb.AbortUploadOp) ([]byte, error) {
	if detail := checkKey(op.GetBucket(), op.GetKey()); detail != "" {
		return m.encode(refuse(errs.InvalidArgument, detail))
	}
	if out, err := m.enter(cmd, op.Bucket, op.Key); out != nil || err != nil {
		return out, err
	}
	res, err := m.tryAbort(op)
	if err != nil {
		return nil, err
	}
	return m.leave(cmd, op.Bucket, op.Key, res)
}

func (m *Machine) tryAbort(op *metapb.AbortUploadOp) (*metapb.RangeResult, error) {
	_, refused, err := m.live(op.Bucket)
	if refused != nil || err != nil {
		return refused, err
	}
	up, err := m.upload(op.Bucket, op.Key, op.UploadSeq, op.UploadNonce)
	switch {
	case err != nil:
		return nil, err
	case up == nil:
		return refuse(errs.NoSuchUpload, ""), nil
	case op.IfInitiatedMs != 0 && op.IfInitiatedMs != up.InitiatedMs:
		return refuse(errs.Conflict, "the upload was initiated at another time"), nil
	}
	return m.abort(op.Bucket, op.Key, up)
}

// abort ends an upload in progress and dooms its parts.
func (m *Machine) abort(bucket uint64, key []byte, up *metapb.UploadRow) (*metapb.RangeResult, error) {
	c, err := m.count(bucket, up.GetAttributes().GetStorageClass())
	if err != nil {
		return nil, err
	}
	c.Uploads--
	c.UploadBytes -= int64(up.Bytes)
	m.key = appendSeqRow(m.key[:0], kindUpload, bucket, key, up.Seq)
	if err := m.del(m.key); err != nil {
		return nil, err
	}
	res := &metapb.RangeResult{Ok: true}
	if up.Parts == 0 {
		return res, nil
	}
	return res, m.doom(bucket, key, up.Seq, up.WriteId, false)
}
