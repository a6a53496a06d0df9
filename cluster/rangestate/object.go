package rangestate

import (
	"encoding/binary"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/errs"
)

// ---- garbage, doom and repair ----

// garbage writes a garbage row for the chunks, if there are any. The class is empty where it is not known.
func (m *Machine) garbage(bucket uint64, key, pin []byte, chunks []*metapb.ChunkRef, class string) error {
	if len(chunks) == 0 {
		return nil
	}
	row := &metapb.GarbageRow{
		Format: 1, Bucket: bucket, Key: key, PinWrite: pin, Chunks: chunks, AtMs: m.now(), StorageClass: class,
	}
	m.key = appendGarbage(m.key[:0], m.group, m.nextSeq(), 0)
	return m.put(m.key, row)
}

// refund ends a definite refusal: the chunks the command brought become garbage.
func (m *Machine) refund(res *metapb.RangeResult, bucket uint64, key, write []byte, chunks []*metapb.ChunkRef, class string) error {
	res.Freed = len(chunks) > 0
	return m.garbage(bucket, key, write, chunks, class)
}

// doom writes a doomed row of an upload. There may be an older one, of the parts
// that its manifest does not list; whichever is expanded first, the other finds less to do.
func (m *Machine) doom(bucket uint64, key []byte, upload uint64, pin []byte, keepManifest bool) error {
	m.key = appendSeqRow(m.key[:0], kindDoomed, bucket, key, m.nextSeq())
	return m.put(m.key, &metapb.DoomedRow{Format: 1, UploadSeq: upload, PinWrite: pin, KeepManifestParts: keepManifest})
}

// repair puts a write with chunks that lack shards on the repair queue.
func (m *Machine) repair(bucket uint64, key []byte, row *metapb.RepairRow, chunks []*metapb.ChunkRef) error {
	n := lost(chunks)
	if n == 0 {
		return nil
	}
	row.Format, row.AtMs, row.Lost = 1, m.now(), uint32(n)
	m.key = appendSeqRow(m.key[:0], kindRepair, bucket, key, m.nextSeq())
	return m.put(m.key, row)
}

// free lets go of the bytes of a version that no row holds any more.
func (m *Machine) free(bucket uint64, key []byte, row *metapb.ObjectRow) error {
	if up := row.GetData().GetUploadSeq(); up != 0 {
		return m.doom(bucket, key, up, row.WriteId, false)
	}
	return m.garbage(bucket, key, row.WriteId, row.GetData().GetChunks(), className(row.GetAttributes().GetStorageClass()))
}

// ---- versions of a key ----

func (m *Machine) current(bucket uint64, key []byte) (*metapb.ObjectRow, error) {
	row := &metapb.ObjectRow{}
	m.key = appendRaw(m.key[:0], kindCurrent, bucket, key)
	ok, err := m.getRising(m.seekers.current, m.key, row)
	if err != nil || !ok {
		return nil, err
	}
	return row, nil
}

// version is the row with the sequence in 'v', or nil.
func (m *Machine) version(bucket uint64, key []byte, seq uint64) (*metapb.ObjectRow, error) {
	row := &metapb.ObjectRow{}
	m.key = appendSeqRow(m.key[:0], kindVersion, bucket, key, seq)
	ok, err := m.get(m.key, row)
	if err != nil || !ok {
		return nil, err
	}
	return row, nil
}

// nullSeq is the sequence of the null version in 'v'; 0 if it does not lie there.
func nullSeq(r pebble.Reader, rawKey []byte) (uint64, error) {
	v, closer, err := r.Get(rawKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	defer closer.Close()
	if len(v) != 8 {
		return 0, corrupt(rawKey, errors.New("a sequence has 8 bytes"))
	}
	return binary.BigEndian.Uint64(v), nil
}

// nullVersion is the null version in 'v', or nil.
func (m *Machine) nullVersion(bucket uint64, key []byte) (*metapb.ObjectRow, error) {
	m.key = appendRow(m.key[:0], kindNull, bucket, key)
	seq, err := nullSeq(m.b, m.key)
	if err != nil || seq == 0 {
		return nil, err
	}
	row, err := m.version(bucket, key, seq)
	if err == nil && row == nil {
		err = corrupt(m.key, errors.New("the null version is not there"))
	}
	return row, err
}

// newestBelow is the newest row in 'v' with a sequence below seq, or nil. To begin
// at seq spares the tombstones of newer versions that were removed before.
func newestBelow[K bytestring](r pebble.Reader, bucket uint64, key K, seq uint64) (row *metapb.ObjectRow, err error) {
	end := appendRow(nil, kindVersion, bucket, key)
	start := binary.BigEndian.AppendUint64(append(make([]byte, 0, len(end)+8), end...), ^(seq - 1))
	end[len(end)-1]++ // behind escEnd: above every suffix
	err = iterate(r, start, end, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		row = &metapb.ObjectRow{}
		return false, decode(raw, value, row)
	})
	return row, err
}

func decode(raw []byte, value func() ([]byte, error), row decoder) error {
	v, err := value()
	if err != nil {
		return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	if err := row.UnmarshalVT(v); err != nil {
		return corrupt(raw, err)
	}
	return nil
}

// heads are the rows that a new newest version of a key meets.
type heads struct {
	cur  *metapb.ObjectRow // the current version, or nil
	null *metapb.ObjectRow // on a suspended bucket: the null version if it lies in 'v', or nil
}

func (m *Machine) heads(b *metapb.BucketRow, bucket uint64, key []byte) (h heads, err error) {
	if h.cur, err = m.current(bucket, key); err != nil {
		return h, err
	}
	if b.Versioning == metapb.Versioning_VERSIONING_SUSPENDED && !h.cur.GetNullVersion() {
		h.null, err = m.nullVersion(bucket, key)
	}
	return h, err
}

// replaced is the version that a new newest one destroys, or nil.
func (h *heads) replaced(b *metapb.BucketRow) *metapb.ObjectRow {
	switch b.Versioning {
	case metapb.Versioning_VERSIONING_NEVER:
		return h.cur
	case metapb.Versioning_VERSIONING_SUSPENDED:
		if h.cur.GetNullVersion() {
			return h.cur
		}
		return h.null
	}
	return nil
}

// supersede makes way for a new newest version: the replaced version goes, the
// others become noncurrent. The 'c' row is left for the caller to overwrite or delete.
func (m *Machine) supersede(b *metapb.BucketRow, bucket uint64, key []byte, h heads) error {
	gone := h.replaced(b)
	if gone != nil {
		if err := m.remove(bucket, key, gone, gone == h.cur); err != nil {
			return err
		}
	}
	switch {
	case b.Versioning == metapb.Versioning_VERSIONING_NEVER || h.cur != nil && gone == h.cur:
		return nil
	case h.cur != nil:
		return m.retire(bucket, key, h.cur)
	}
	// No current version: the newest may be a delete marker, which is noncurrent from now on.
	newest, err := newestBelow(m.b, bucket, key, 0)
	if err != nil || newest == nil || newest.NoncurrentMs != 0 {
		return err
	}
	newest.NoncurrentMs = m.since()
	m.key = appendSeqRow(m.key[:0], kindVersion, bucket, key, newest.Seq)
	return m.put(m.key, newest)
}

// since is the time for noncurrent_ms and class_since_ms: never 0, which means not.
func (m *Machine) since() int64 { return max(m.now(), 1) }

// retire moves the current version to 'v', except for its 'c' row.
func (m *Machine) retire(bucket uint64, key []byte, cur *metapb.ObjectRow) error {
	c, err := m.count(bucket, cur.GetAttributes().GetStorageClass())
	if err != nil {
		return err
	}
	c.Objects--
	c.Versions++
	cur.NoncurrentMs = m.since()
	m.key = appendSeqRow(m.key[:0], kindVersion, bucket, key, cur.Seq)
	if err := m.put(m.key, cur); err != nil || !cur.NullVersion {
		return err
	}
	return m.putNull(bucket, key, cur.Seq)
}

func (m *Machine) putNull(bucket uint64, key []byte, seq uint64) error {
	var v [8]byte
	binary.BigEndian.PutUint64(v[:], seq)
	m.key = appendRow(m.key[:0], kindNull, bucket, key)
	return m.b.Set(m.key, v[:], nil)
}

func (m *Machine) delNull(bucket uint64, key []byte) error {
	m.key = appendRow(m.key[:0], kindNull, bucket, key)
	return m.del(m.key)
}

// remove takes a version out of the counts, lets go of its bytes and, unless it
// is the current one, deletes its rows.
func (m *Machine) remove(bucket uint64, key []byte, row *metapb.ObjectRow, isCurrent bool) error {
	c, err := m.count(bucket, row.GetAttributes().GetStorageClass())
	if err != nil {
		return err
	}
	switch {
	case isCurrent:
		c.Objects--
	case row.DeleteMarker:
		c.Markers--
	default:
		c.Versions--
	}
	c.Bytes -= int64(row.Size)
	m.early(c, row)
	if row.Restore != nil {
		if err := m.endTimer(bucket, key, row); err != nil {
			return err
		}
	}
	if err := m.free(bucket, key, row); err != nil || isCurrent {
		return err
	}
	m.key = appendSeqRow(m.key[:0], kindVersion, bucket, key, row.Seq)
	if err := m.del(m.key); err != nil || !row.NullVersion {
		return err
	}
	return m.delNull(bucket, key)
}

// promote makes the newest version below seq the newest of the key: an object
// becomes current, a delete marker only loses its noncurrent time.
func (m *Machine) promote(bucket uint64, key []byte, seq uint64) error {
	row, err := newestBelow(m.b, bucket, key, seq)
	if err != nil || row == nil {
		return err
	}
	row.NoncurrentMs = 0
	m.key = appendSeqRow(m.key[:0], kindVersion, bucket, key, row.Seq)
	if row.DeleteMarker {
		return m.put(m.key, row)
	}
	c, err := m.count(bucket, row.GetAttributes().GetStorageClass())
	if err != nil {
		return err
	}
	c.Versions--
	c.Objects++
	m.key = appendSeqRow(m.key[:0], kindVersion, bucket, key, row.Seq)
	if err := m.del(m.key); err != nil {
		return err
	}
	if row.NullVersion {
		if err := m.delNull(bucket, key); err != nil {
			return err
		}
	}
	m.key = appendRaw(m.key[:0], kindCurrent, bucket, key)
	return m.put(m.key, row)
}

// install makes row (without sequence and time) the current version of its key
// and fills res. The caller has checked that nothing locked is replaced.
func (m *Machine) install(b *metapb.BucketRow, bucket uint64, key []byte, h heads, row *metapb.ObjectRow, res *metapb.RangeResult) error {
	if err := m.supersede(b, bucket, key, h); err != nil {
		return err
	}
	row.Format = 1
	row.Seq = m.nextSeq()
	row.ModifiedMs = m.now()
	row.NullVersion = b.Versioning != metapb.Versioning_VERSIONING_ENABLED
	row.DeleteMarker = false
	row.NoncurrentMs = 0
	row.Restore, row.Tiering = nil, nil
	row.ClassSinceMs = 0
	c, err := m.count(bucket, row.GetAttributes().GetStorageClass())
	if err != nil {
		return err
	}
	c.Objects++
	c.Bytes += int64(row.Size)
	m.key = appendRaw(m.key[:0], kindCurrent, bucket, key)
	if err := m.put(m.key, row); err != nil {
		return err
	}
	nameVersion(res, b, row)
	return nil
}

// nameVersion fills a successful result with a version's id.
func nameVersion(res *metapb.RangeResult, b *metapb.BucketRow, row *metapb.ObjectRow) {
	res.Ok = true
	res.VersionSeq, res.VersionNonce, res.NullVersion = row.Seq, row.Nonce, row.NullVersion
	res.Versioned = b.Versioning != metapb.Versioning_VERSIONING_NEVER
}

// ---- PutObject ----

func (m *Machine) putObject(cmd *metapb.RangeCommand, op *metapb.PutObjectOp) ([]byte, error) {
	row := op.GetRow()
	detail := checkKey(op.GetBucket(), op.GetKey())
	if detail == "" && (row == nil || len(row.WriteId) != idLen) {
		detail = "malformed write id"
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
	res, stored, err := m.tryPut(op)
	if err != nil {
		return nil, err
	}
	if stored {
		return m.encode(refuse(errs.InvalidRequest, sameWrite))
	}
	if !res.Ok {
		if err := m.refund(res, op.Bucket, op.Key, row.WriteId, row.GetData().GetChunks(), className(row.GetAttributes().GetStorageClass())); err != nil {
			return nil, err
		}
	}
	return m.leave(cmd, op.Bucket, op.Key, res)
}

// sameWrite refuses a command that brings the write id of the row it would
// replace: its chunks are that row's, so it must not free them either.
const sameWrite = "another command has stored this write id already"

// tryPut answers the result, or that a row has the write id already.
func (m *Machine) tryPut(op *metapb.PutObjectOp) (res *metapb.RangeResult, stored bool, err error) {
	b, refused, err := m.live(op.Bucket)
	if refused != nil || err != nil {
		return refused, false, err
	}
	h, err := m.heads(b, op.Bucket, op.Key)
	if err != nil {
		return nil, false, err
	}
	row := op.Row
	if string(h.cur.GetWriteId()) == string(row.WriteId) || string(h.null.GetWriteId()) == string(row.WriteId) {
		return nil, true, nil
	}
	if kind := holds(op.Conditions, h.cur); kind != 0 {
		return refuse(kind, ""), false, nil
	}
	if row.Attributes, refused = m.lockAttributes(b, row.Attributes); refused != nil {
		return refused, false, nil
	}
	if gone := h.replaced(b); gone != nil && m.locked(gone, false) {
		return refuse(errs.ObjectLocked, ""), false, nil
	}
	e, refused, err := m.ask(b, putKind(op.Event), op.Bucket, op.Key)
	if refused != nil || err != nil {
		return refused, false, err
	}
	if row.Data == nil {
		row.Data = &metapb.Data{}
	}
	row.Data.Generation = 1
	res = &metapb.RangeResult{}
	if err := m.install(b, op.Bucket, op.Key, h, row, res); err != nil {
		return nil, false, err
	}
	if err := m.tell(&e, op.Bucket, op.Key, row, res); err != nil {
		return nil, false, err
	}
	return res, false, m.repair(op.Bucket, op.Key, &metapb.RepairRow{VersionSeq: row.Seq, WriteId: row.WriteId}, row.Data.Chunks)
}

// putKind is the event of a PutObject that names one; what is none of a put counts as one.
func putKind(event uint32) notification.Type {
	switch event {
	case uint32(notification.ObjectCreatedPost):
		return notification.ObjectCreatedPost
	case uint32(notification.ObjectCreatedCopy):
		return notification.ObjectCreatedCopy
	}
	return notification.ObjectCreatedPut
}

// ---- DeleteObjects ----

// deleteObjects runs the entries in order. When every entry was refused for the
// same reason that is not its own (bucket, bounds, time), the whole result carries it too.
func (m *Machine) deleteObjects(cmd *metapb.RangeCommand, op *metapb.DeleteObjectsOp) ([]byte, error) {
	if op.GetBucket() == 0 || len(op.Entries) == 0 || len(op.Entries) > DeleteEntriesMax {
		return m.encode(refuse(errs.InvalidArgument, "a bulk delete names a bucket and 1 to 1000 entries"))
	}
	for _, e := range op.Entries {
		if detail := checkKey(op.Bucket, e.GetKey()); detail != "" {
			return m.encode(refuse(errs.InvalidArgument, detail))
		}
	}
	bk := &bulk{
		bucket: op.Bucket, results: make([]*metapb.RangeResult, len(op.Entries)),
		key: func(i int) []byte { return op.Entries[i].Key },
		run: func(i int) (*metapb.RangeResult, error) { return m.deleteEntry(op, op.Entries[i]) },
	}
	res, err := m.bulk(cmd, bk)
	if err != nil {
		return nil, err
	}
	return m.encode(res)
}

func (m *Machine) deleteEntry(op *metapb.DeleteObjectsOp, e *metapb.DeleteEntry) (*metapb.RangeResult, error) {
	b, refused, err := m.live(op.Bucket)
	if refused != nil || err != nil {
		return refused, err
	}
	if e.HasVersion {
		return m.deleteVersion(b, op.Bucket, e)
	}
	h, err := m.heads(b, op.Bucket, e.Key)
	if err != nil {
		return nil, err
	}
	if kind := holds(e.Conditions, h.cur); kind != 0 {
		return refuse(kind, ""), nil
	}
	gone := h.replaced(b)
	if gone != nil && m.locked(gone, e.BypassGovernance) {
		return refuse(errs.ObjectLocked, ""), nil
	}
	if b.Versioning == metapb.Versioning_VERSIONING_NEVER && h.cur == nil {
		return &metapb.RangeResult{Ok: true}, nil
	}
	return m.deleteNewest(b, op.Bucket, e.Key, h, e.MarkerNonce, op.Owner, removal{notification.ObjectRemovedDelete, notification.ObjectRemovedDeleteMarkerCreated})
}

// removal is the events of a delete without a version: that the object is gone, or that a delete marker was made.
type removal struct{ gone, marker notification.Type }

// deleteNewest removes the current version of a bucket without versions, else a delete marker with this nonce and owner
// supersedes what is the newest. The caller has checked that nothing locked is replaced.
func (m *Machine) deleteNewest(b *metapb.BucketRow, bucket uint64, key []byte, h heads, nonce uint64, owner string, told removal) (*metapb.RangeResult, error) {
	kind := told.marker
	if b.Versioning == metapb.Versioning_VERSIONING_NEVER {
		kind = told.gone
	}
	e, refused, err := m.ask(b, kind, bucket, key)
	if refused != nil || err != nil {
		return refused, err
	}
	res, err := m.removeNewest(b, bucket, key, h, nonce, owner)
	if err != nil {
		return nil, err
	}
	return res, m.tell(&e, bucket, key, nil, res)
}

func (m *Machine) removeNewest(b *metapb.BucketRow, bucket uint64, key []byte, h heads, nonce uint64, owner string) (*metapb.RangeResult, error) {
	if err := m.supersede(b, bucket, key, h); err != nil {
		return nil, err
	}
	if h.cur != nil {
		m.key = appendRaw(m.key[:0], kindCurrent, bucket, key)
		if err := m.del(m.key); err != nil {
			return nil, err
		}
	}
	if b.Versioning == metapb.Versioning_VERSIONING_NEVER {
		return &metapb.RangeResult{Ok: true}, nil
	}
	return m.putMarker(b, bucket, key, nonce, owner)
}

// putMarker writes a delete marker as the newest version.
func (m *Machine) putMarker(b *metapb.BucketRow, bucket uint64, key []byte, nonce uint64, owner string) (*metapb.RangeResult, error) {
	row := &metapb.ObjectRow{
		Format: 1, Seq: m.nextSeq(), Nonce: nonce, DeleteMarker: true, ModifiedMs: m.now(), Owner: owner,
		NullVersion: b.Versioning == metapb.Versioning_VERSIONING_SUSPENDED,
	}
	c, err := m.count(bucket, "")
	if err != nil {
		return nil, err
	}
	c.Markers++
	m.key = appendSeqRow(m.key[:0], kindVersion, bucket, key, row.Seq)
	if err := m.put(m.key, row); err != nil {
		return nil, err
	}
	if row.NullVersion {
		if err := m.putNull(bucket, key, row.Seq); err != nil {
			return nil, err
		}
	}
	res := &metapb.RangeResult{DeleteMarker: true}
	nameVersion(res, b, row)
	return res, nil
}

// deleteVersion removes one version for good.
func (m *Machine) deleteVersion(b *metapb.BucketRow, bucket uint64, e *metapb.DeleteEntry) (*metapb.RangeResult, error) {
	row, isCurrent, err := m.findVersion(bucket, e.Key, storage.VersionID{Seq: storage.Seq(e.VersionSeq), Nonce: e.VersionNonce})
	if err != nil {
		return nil, err
	}
	judged := row
	if row.GetDeleteMarker() {
		judged = nil
	}
	if kind := holds(e.Conditions, judged); kind != 0 {
		return refuse(kind, ""), nil
	}
	res := &metapb.RangeResult{Ok: true, Versioned: b.Versioning != metapb.Versioning_VERSIONING_NEVER}
	if row == nil {
		res.VersionSeq, res.VersionNonce = e.VersionSeq, e.VersionNonce
		res.NullVersion = e.VersionSeq == 0 && e.VersionNonce == 0
		return res, nil
	}
	if m.locked(row, e.BypassGovernance) {
		return refuse(errs.ObjectLocked, ""), nil
	}
	told, refused, err := m.ask(b, notification.ObjectRemovedDelete, bucket, e.Key)
	if refused != nil || err != nil {
		return refused, err
	}
	if err := m.remove(bucket, e.Key, row, isCurrent); err != nil {
		return nil, err
	}
	if isCurrent {
		m.key = appendRaw(m.key[:0], kindCurrent, bucket, e.Key)
		if err := m.del(m.key); err != nil {
			return nil, err
		}
	}
	// In 'v' only the newest version of the key, a delete marker, has no noncurrent time.
	if isCurrent && b.Versioning != metapb.Versioning_VERSIONING_NEVER || !isCurrent && row.NoncurrentMs == 0 {
		if err := m.promote(bucket, e.Key, row.Seq); err != nil {
			return nil, err
		}
	}
	nameVersion(res, b, row)
	res.DeleteMarker = row.DeleteMarker
	return res, m.tell(&told, bucket, e.Key, nil, res)
}

// findVersion is the version with an id, or nil, and whether it is the current one.
func (m *Machine) findVersion(bucket uint64, key []byte, id storage.VersionID) (*metapb.ObjectRow, bool, error) {
	cur, err := m.current(bucket, key)
	if err != nil {
		return nil, false, err
	}
	if cur != nil && isVersion(cur, id) {
		return cur, true, nil
	}
	if id.IsNull() {
		row, err := m.nullVersion(bucket, key)
		return row, false, err
	}
	row, err := m.version(bucket, key, uint64(id.Seq))
	if err != nil || row == nil || !isVersion(row, id) {
		return nil, false, err
	}
	return row, false, nil
}

// isVersion reports whether clients name the row by id.
func isVersion(row *metapb.ObjectRow, id storage.VersionID) bool {
	if row.NullVersion || id.IsNull() {
		return row.NullVersion && id.IsNull()
	}
	return row.Seq == uint64(id.Seq) && row.Nonce == id.Nonce
}
