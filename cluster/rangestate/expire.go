package rangestate

import (
	"hash/fnv"
	"io"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/errs"
)

// ExpireEntriesMax bounds the entries of one Expire.
const ExpireEntriesMax = 1000

// expire carries out what lifecycle rules decided. It is a bulk command like DeleteObjects, each entry under the condition
// that what was decided about is still there and still in that place; else Conflict, and nothing
// changes. If the bucket's configuration is not the one that was decided by, all entries and the whole result are a Conflict.
func (m *Machine) expire(cmd *metapb.RangeCommand, op *metapb.ExpireOp) ([]byte, error) {
	if detail := checkExpire(op); detail != "" {
		return m.encode(refuse(errs.InvalidArgument, detail))
	}
	b, refused, err := m.configured(op.Bucket, op.ConfigGeneration)
	if err != nil {
		return nil, err
	}
	bk := &bulk{
		bucket: op.Bucket, results: make([]*metapb.RangeResult, len(op.Entries)), refused: refused,
		key: func(i int) []byte { return op.Entries[i].Key },
		run: func(i int) (*metapb.RangeResult, error) { return m.expireEntry(b, op.Bucket, op.Entries[i]) },
	}
	res, err := m.bulk(cmd, bk)
	if err != nil {
		return nil, err
	}
	if bk.conflict {
		res.Ok, res.Kind, res.Detail = false, uint32(errs.Conflict), otherConfig
	}
	return m.encode(res)
}

func checkExpire(op *metapb.ExpireOp) string {
	if op.GetBucket() == 0 || op.ConfigGeneration == 0 || len(op.Entries) == 0 || len(op.Entries) > ExpireEntriesMax {
		return "an expiry names a bucket, a generation of it and 1 to 1000 entries"
	}
	for _, e := range op.Entries {
		if detail := checkKey(op.Bucket, e.GetKey()); detail != "" {
			return detail
		}
		switch e.What {
		case metapb.ExpireEntry_CURRENT, metapb.ExpireEntry_NONCURRENT, metapb.ExpireEntry_MARKER, metapb.ExpireEntry_UPLOAD:
		default:
			return "an expiry says of what"
		}
		if e.VersionSeq == 0 {
			return "an expiry names a version or an upload by its sequence"
		}
	}
	return ""
}

// otherConfig refuses what was decided by rules that may not be those there are.
const otherConfig = "the bucket is deleted, being deleted, or of another configuration by now"

// configured is the bucket's row if it is live and of this generation, else a refusal.
func (m *Machine) configured(bucket, generation uint64) (*metapb.BucketRow, *metapb.RangeResult, error) {
	b, refused, err := m.live(bucket)
	if err != nil {
		return nil, nil, err
	}
	if refused != nil || b.Generation != generation {
		return nil, refuse(errs.Conflict, otherConfig), nil
	}
	return b, nil, nil
}

// changedSince refuses an entry that was decided about something else than is there.
func changedSince() *metapb.RangeResult {
	return refuse(errs.Conflict, "what was to expire is not there any more, or not in that place")
}

func (m *Machine) expireEntry(b *metapb.BucketRow, bucket uint64, e *metapb.ExpireEntry) (*metapb.RangeResult, error) {
	switch e.What {
	case metapb.ExpireEntry_CURRENT:
		return m.expireCurrent(b, bucket, e)
	case metapb.ExpireEntry_UPLOAD:
		up, err := m.upload(bucket, e.Key, e.VersionSeq, e.VersionNonce)
		if err != nil {
			return nil, err
		}
		if up == nil {
			return changedSince(), nil
		}
		return m.abort(bucket, e.Key, up)
	}
	return m.expireOther(b, bucket, e)
}

// expireCurrent does what a delete without a version does, if the current version is the one named.
func (m *Machine) expireCurrent(b *metapb.BucketRow, bucket uint64, e *metapb.ExpireEntry) (*metapb.RangeResult, error) {
	h, err := m.heads(b, bucket, e.Key)
	if err != nil {
		return nil, err
	}
	if h.cur == nil || !names(e, h.cur) {
		return changedSince(), nil
	}
	if gone := h.replaced(b); gone != nil && m.locked(gone, false) {
		return refuse(errs.ObjectLocked, ""), nil
	}
	told := removal{notification.LifecycleExpirationDelete, notification.LifecycleExpirationDeleteMarkerCreated}
	return m.deleteNewest(b, bucket, e.Key, h, e.MarkerNonce, e.MarkerOwner, told)
}

// expireOther removes a noncurrent version, delete markers too, or the delete marker that is all there is of a key.
func (m *Machine) expireOther(b *metapb.BucketRow, bucket uint64, e *metapb.ExpireEntry) (*metapb.RangeResult, error) {
	row, err := m.version(bucket, e.Key, e.VersionSeq)
	if err != nil {
		return nil, err
	}
	// In 'v' only the newest version of the key, a delete marker, has no noncurrent time.
	marker := e.What == metapb.ExpireEntry_MARKER
	if row == nil || !names(e, row) || (row.NoncurrentMs == 0) != marker {
		return changedSince(), nil
	}
	if marker {
		older, err := newestBelow(m.b, bucket, e.Key, row.Seq)
		if err != nil {
			return nil, err
		}
		if older != nil {
			return changedSince(), nil
		}
	}
	if m.locked(row, false) {
		return refuse(errs.ObjectLocked, ""), nil
	}
	told, refused, err := m.ask(b, notification.LifecycleExpirationDelete, bucket, e.Key)
	if refused != nil || err != nil {
		return refused, err
	}
	if err := m.remove(bucket, e.Key, row, false); err != nil {
		return nil, err
	}
	res := &metapb.RangeResult{DeleteMarker: row.DeleteMarker}
	nameVersion(res, b, row)
	return res, m.tell(&told, bucket, e.Key, nil, res)
}

// names reports whether the entry names the row, by the row's own sequence and nonce: the null version has no other name
// that would tell it from the one that took its place. Tags that were decided by must be there still; those that came
// where there were none cannot make a rule match less.
func names(e *metapb.ExpireEntry, row *metapb.ObjectRow) bool {
	return row.Seq == e.VersionSeq && row.Nonce == e.VersionNonce && (e.TagsHash == 0 || e.TagsHash == TagsHash(row.GetAttributes().GetTags()))
}

// TagsHash tells tags from others for an ExpireEntry; 0: there are none.
func TagsHash(tags []*metapb.KV) uint64 {
	if len(tags) == 0 {
		return 0
	}
	h := fnv.New64a()
	for _, t := range tags {
		for _, s := range [...]string{t.GetName(), t.GetValue()} {
			_, _ = io.WriteString(h, s)
			_, _ = h.Write([]byte{0})
		}
	}
	return max(h.Sum64(), 1)
}

// reclass makes class the storage class of a version: of its row, which the caller stores, and in the counters.
func (m *Machine) reclass(bucket uint64, row *metapb.ObjectRow, isCurrent bool, class string) error {
	was := row.GetAttributes().GetStorageClass()
	from, err := m.count(bucket, was)
	if err != nil {
		return err
	}
	to, err := m.count(bucket, class)
	if err != nil {
		return err
	}
	if isCurrent {
		from.Objects--
		to.Objects++
	} else {
		from.Versions--
		to.Versions++
	}
	from.Bytes -= int64(row.Size)
	to.Bytes += int64(row.Size)
	if className(class) != className(row.GetAttributes().GetStorageClass()) {
		m.early(from, row)
		row.ClassSinceMs = m.since()
	}
	if class == string(storage.Standard) {
		class = ""
	}
	if row.Attributes == nil {
		row.Attributes = &metapb.Attributes{}
	}
	row.Attributes.StorageClass = class
	if row.Tiering = nil; class == string(storage.IntelligentTiering) {
		accessed(row, m.now())
	} else if was == string(storage.IntelligentTiering) {
		row.Restore = nil // it has no end that would count in another class
	}
	return nil
}
