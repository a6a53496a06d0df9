package rangestate

import (
	"bytes"
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// ---- RewriteData ----

// holder is a row that names chunks: a version or a part.
type holder struct {
	key   []byte // raw
	row   encoder
	data  *metapb.Data
	write []byte
	size  uint64
	class string

	object  *metapb.ObjectRow // row if it is a version
	current bool              // the version is the current one
}

// rewriteData replaces the data of one version or part. It is conditional on
// the write id and the generation of the data (design rule 12). What becomes
// garbage is what the old data names and the new does not; op.release must say
// the same, so that a worker with a wrong idea of either changes nothing.
// A transition also changes the version's storage class, under the condition that the bucket's configuration is still the
// one that it was decided by; a change of the tier that, under the condition that the version was not read since, too.
func (m *Machine) rewriteData(cmd *metapb.RangeCommand, op *metapb.RewriteDataOp) ([]byte, error) {
	detail := checkKey(op.GetBucket(), op.GetKey())
	if detail == "" {
		detail = checkRewriteOp(op)
	}
	if detail != "" {
		return m.encode(refuse(errs.InvalidArgument, detail))
	}
	if out, err := m.enter(cmd, op.Bucket, op.Key); out != nil || err != nil {
		return out, err
	}
	h, err := m.holder(op)
	if err != nil {
		return nil, err
	}
	conflict := h == nil || string(h.write) != string(op.WriteId) || h.data.GetGeneration() != op.Generation
	if op.ConfigGeneration != 0 && !conflict {
		if conflict, err = m.configChangedSince(op); err != nil {
			return nil, err
		}
	}
	conflict = conflict || h.object != nil && (op.Tier != nil && tierConflict(h.object, op.Tier) || m.moveConflict(h.object, op))
	if conflict {
		return m.rewriteRefused(cmd, op, h, refuse(errs.Conflict, "the data was changed meanwhile"))
	}
	if detail := checkRewrite(h, op); detail != "" {
		return m.encode(refuse(errs.InvalidArgument, detail))
	}
	for _, c := range op.Data.Chunks {
		if findChunk(h.data.Chunks, c.Id) < 0 && m.tooOld(c) {
			return m.encode(tooOldResult())
		}
	}
	b, e, err := m.wantedRewrite(op, h)
	if err != nil {
		return nil, err
	}
	if err := m.rewrite(op, h); err != nil {
		return nil, err
	}
	res := &metapb.RangeResult{Ok: true}
	if err := m.tellVersion(&e, b, op.Bucket, op.Key, h.object, res); err != nil {
		return nil, err
	}
	return m.leave(cmd, op.Bucket, op.Key, res)
}

// moveConflict reports whether a version must not be moved as it was decided: its tags are others by now, or it is on the way back from an archive tier.
func (m *Machine) moveConflict(row *metapb.ObjectRow, op *metapb.RewriteDataOp) bool {
	restoring := classOf(row) == storage.IntelligentTiering && row.Restore != nil && !Readable(row, m.now())
	return op.TagsHash != 0 && op.TagsHash != TagsHash(row.GetAttributes().GetTags()) || op.StorageClass != "" && restoring
}

// configChangedSince reports whether the bucket is not live or of another configuration than a rewrite was decided by. A change of the class names
// the very one that asked for it. Tiers are changed in buckets that were never configured, too, where the system group is a decision
// ahead, since activating a new bucket changes no row; there it is enough that nothing newer has been acknowledged.
func (m *Machine) configChangedSince(op *metapb.RewriteDataOp) (bool, error) {
	if op.Tier == nil {
		_, refused, err := m.configured(op.Bucket, op.ConfigGeneration)
		return refused != nil, err
	}
	b, refused, err := m.live(op.Bucket)
	return refused != nil || b.GetGeneration() > op.ConfigGeneration, err
}

// checkRewriteOp judges a rewrite by itself.
func checkRewriteOp(op *metapb.RewriteDataOp) string {
	moves := op.StorageClass != "" || op.Tier != nil
	switch d := op.Data; {
	case len(op.WriteId) != idLen || d == nil || (op.VersionSeq == 0) == (op.UploadSeq == 0):
		return "a rewrite names a write, its data and either a version or a part"
	case op.StorageClass != "" && (op.VersionSeq == 0 || len(op.StorageClass) > classMax):
		return "only a version has a storage class of its own, of at most 64 bytes"
	case op.Tier != nil && (op.StorageClass != "" || op.ConfigGeneration == 0):
		return "a tier is changed without the class, by a configuration"
	case op.Tier != nil && metapb.Tiering_Tier_name[int32(op.Tier.To)] == "":
		return "unknown tier"
	case moves && d.UploadSeq != 0:
		if len(d.Inline) > 0 || len(d.Chunks) > 0 || len(op.Release) > 0 {
			return "the parts of a multipart object are rewritten one by one"
		}
		return ""
	}
	sum := uint64(len(op.Data.Inline))
	for _, c := range op.Data.Chunks {
		sum += c.ObjectBytes()
	}
	return checkData(op.Data, sum)
}

// holder is the row that op names, whatever its write id, or nil.
func (m *Machine) holder(op *metapb.RewriteDataOp) (*holder, error) {
	if op.UploadSeq != 0 {
		row := &metapb.PartRow{}
		key := appendUploadRow(nil, kindPart, op.Bucket, op.Key, op.UploadSeq, op.Part)
		ok, err := m.get(key, row)
		if err != nil || !ok {
			return nil, err
		}
		if row.Data == nil {
			row.Data = &metapb.Data{}
		}
		return &holder{key: key, row: row, data: row.Data, write: row.WriteId, size: row.Size}, nil
	}
	key := appendRaw(nil, kindCurrent, op.Bucket, op.Key)
	row, err := m.current(op.Bucket, op.Key)
	current := true
	if err == nil && (row == nil || row.Seq != op.VersionSeq) {
		current = false
		key = appendSeqRow(nil, kindVersion, op.Bucket, op.Key, op.VersionSeq)
		row, err = m.version(op.Bucket, op.Key, op.VersionSeq)
	}
	if err != nil || row == nil {
		return nil, err
	}
	if row.Data == nil {
		row.Data = &metapb.Data{}
	}
	return &holder{
		key: key, row: row, data: row.Data, write: row.WriteId, size: row.Size, class: className(row.GetAttributes().GetStorageClass()),
		object: row, current: current,
	}, nil
}

// rewriteRefused ends the refusal of a rewrite, as of one whose condition does not hold, and frees what
// it brought: the chunks that the row does not name and that op does not say were
// in the data it read. A chunk of the old data that is not named any more is garbage already.
func (m *Machine) rewriteRefused(cmd *metapb.RangeCommand, op *metapb.RewriteDataOp, h *holder, res *metapb.RangeResult) ([]byte, error) {
	var fresh []*metapb.ChunkRef
	for _, c := range op.Data.Chunks {
		if h != nil && findChunk(h.data.Chunks, c.Id) >= 0 {
			continue
		}
		if !slices.ContainsFunc(op.Kept, func(id []byte) bool { return bytes.Equal(id, c.Id) }) {
			fresh = append(fresh, c)
		}
	}
	class := op.StorageClass // what it brought was written for the new one
	if h != nil && class == "" {
		class = h.class
	}
	if err := m.refund(res, op.Bucket, op.Key, op.WriteId, fresh, class); err != nil {
		return nil, err
	}
	return m.leave(cmd, op.Bucket, op.Key, res)
}

// checkRewrite judges the new data against the old.
func checkRewrite(h *holder, op *metapb.RewriteDataOp) string {
	switch {
	case op.Data.UploadSeq != h.data.UploadSeq || op.Data.Parts != h.data.Parts:
		return "the data of a version is not made of other parts than it was"
	case (op.StorageClass != "" || op.Tier != nil) && !bytes.Equal(op.Data.Inline, h.data.Inline):
		return "data that lies in its row stays there"
	case h.data.UploadSeq != 0:
		return "" // nothing of it changes
	}
	sum := uint64(len(op.Data.Inline))
	for _, c := range op.Data.Chunks {
		sum += c.ObjectBytes()
		old := findChunk(h.data.Chunks, c.Id)
		if old < 0 {
			continue
		}
		o := h.data.Chunks[old]
		if o.Pg != c.Pg || o.K != c.K || o.M != c.M || o.StripeBytes != c.StripeBytes || o.Length != c.Length ||
			o.Compression != c.Compression || o.RawLength != c.RawLength || o.FrameBytes != c.FrameBytes {
			return "a chunk that stays must lie where it lay"
		}
	}
	if sum != h.size {
		return "the new data has another length than the old"
	}
	gone := 0
	for _, o := range h.data.Chunks {
		if findChunk(op.Data.Chunks, o.Id) < 0 {
			gone++
			if findChunk(op.Release, o.Id) < 0 {
				return "a chunk of the old data is neither kept nor released"
			}
		}
	}
	if gone != len(op.Release) {
		return "a chunk is released that the old data does not name, or that stays"
	}
	return ""
}

func (m *Machine) rewrite(op *metapb.RewriteDataOp, h *holder) error {
	var gone []*metapb.ChunkRef
	for _, o := range h.data.Chunks {
		if findChunk(op.Data.Chunks, o.Id) < 0 {
			gone = append(gone, o)
		}
	}
	h.data.Inline, h.data.Chunks = op.Data.Inline, op.Data.Chunks
	h.data.Generation++
	if op.StorageClass != "" {
		if err := m.reclass(op.Bucket, h.object, h.current, op.StorageClass); err != nil {
			return err
		}
	}
	if op.Tier != nil && h.object != nil {
		retier(h.object, op.Tier.To)
	}
	if err := m.put(h.key, h.row); err != nil {
		return err
	}
	pin := op.WriteId
	if op.UploadSeq != 0 {
		// Readers of a multipart object hold the object's write, not the part's.
		// Of an upload in progress there are no readers and no manifest.
		var page metapb.ManifestRow
		m.key = appendUploadRow(m.key[:0], kindManifest, op.Bucket, op.Key, op.UploadSeq, 0)
		if _, err := m.get(m.key, &page); err != nil {
			return err
		}
		if len(page.WriteId) > 0 {
			pin = page.WriteId
		}
	}
	if err := m.garbage(op.Bucket, op.Key, pin, gone, h.class); err != nil {
		return err
	}
	row := &metapb.RepairRow{VersionSeq: op.VersionSeq, UploadSeq: op.UploadSeq, Part: op.Part, WriteId: op.WriteId}
	return m.repair(op.Bucket, op.Key, row, op.Data.Chunks)
}

// ---- DropGarbage, DropRepair ----

func (m *Machine) dropGarbage(op *metapb.DropGarbageOp) (*metapb.RangeResult, error) {
	if len(op.GetIds()) > RowsMax {
		return refuse(errs.InvalidArgument, "too many rows"), nil
	}
	for _, id := range op.GetIds() {
		m.key = appendGarbage(m.key[:0], m.group, id.GetSeq(), id.GetN())
		if err := m.del(m.key); err != nil {
			return nil, err
		}
	}
	return &metapb.RangeResult{Ok: true}, nil
}

func (m *Machine) dropRepair(op *metapb.DropRepairOp) (*metapb.RangeResult, error) {
	if len(op.GetIds()) > RowsMax {
		return refuse(errs.InvalidArgument, "too many rows"), nil
	}
	for _, id := range op.GetIds() {
		if !contains(&m.bounds, id.GetBucket(), id.GetKey()) {
			continue // not this range's to drop
		}
		m.key = appendSeqRow(m.key[:0], kindRepair, id.Bucket, id.Key, id.Seq)
		if err := m.del(m.key); err != nil {
			return nil, err
		}
	}
	return &metapb.RangeResult{Ok: true}, nil
}

// ---- ExpandDoomed ----

func rowsMax(n uint32) int {
	if n == 0 {
		return RowsMax
	}
	return int(min(n, RowsMax))
}

// expandDoomed turns parts of doomed uploads into garbage: of the rows that op
// names, in that order, else of any in order of their keys. It stops when it has
// looked at rows_max rows (doomed rows, parts, manifest pages) and then says
// that there is more, of those it was to expand.
func (m *Machine) expandDoomed(op *metapb.ExpandDoomedOp) (*metapb.RangeResult, error) {
	left := rowsMax(op.GetRowsMax())
	if len(op.GetOnly()) > 0 {
		return m.expandOnly(op, left)
	}
	span := m.bounds.span(kindDoomed)
	res := &metapb.RangeResult{Ok: true}
	err := m.iterate(span.Start, span.End, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		x := expansion{m: m, raw: bytes.Clone(raw), left: left}
		if left > 0 {
			if err := decode(raw, value, &x.row); err != nil {
				return false, err
			}
		}
		done, err := x.run()
		left = x.left
		res.More = !done
		return done, err
	})
	return res, err
}

func (m *Machine) expandOnly(op *metapb.ExpandDoomedOp, left int) (*metapb.RangeResult, error) {
	if len(op.Only) > onlyMax {
		return refuse(errs.InvalidArgument, "too many rows"), nil
	}
	res := &metapb.RangeResult{Ok: true}
	for _, id := range op.Only {
		if !contains(&m.bounds, id.GetBucket(), id.GetKey()) {
			continue
		}
		x := expansion{m: m, raw: appendSeqRow(nil, kindDoomed, id.GetBucket(), id.GetKey(), id.GetSeq()), left: left}
		if ok, err := m.get(x.raw, &x.row); err != nil {
			return nil, err
		} else if !ok {
			continue
		}
		done, err := x.run()
		if err != nil {
			return nil, err
		}
		left = x.left
		if !done {
			res.More = true
			break
		}
	}
	return res, nil
}

// expansion is the work on one doomed row.
type expansion struct {
	m      *Machine
	raw    []byte
	row    metapb.DoomedRow
	bucket uint64
	key    []byte
	left   int // rows that may still be looked at
	listed manifest
}

// run answers whether the row is done and deleted; else its progress is stored.
func (x *expansion) run() (bool, error) {
	if x.left <= 0 {
		return false, nil
	}
	var ok bool
	if x.bucket, x.key, _, ok = cutRow(x.raw, nil); !ok {
		return false, corrupt(x.raw, errMalformed)
	}
	defer func() { x.left-- }() // the doomed row itself, counted last so that every run gets on
	if x.row.KeepManifestParts {
		x.listed = manifest{r: x.m.b, bucket: x.bucket, key: x.key, upload: x.row.UploadSeq}
	}
	start, end := uploadSpan(kindPart, x.bucket, x.key, x.row.UploadSeq)
	if x.row.NextPart > 0 {
		start = appendUploadRow(nil, kindPart, x.bucket, x.key, x.row.UploadSeq, x.row.NextPart)
	}
	done := true
	err := x.m.iterate(start, end, func(raw []byte, value func() ([]byte, error)) (bool, error) {
		number := suffixNumber(raw)
		if x.left <= 0 {
			done = false
			x.row.NextPart = number
			return false, nil
		}
		x.left--
		if x.row.KeepManifestParts {
			listed, pages, err := x.listed.lists(number)
			x.left -= pages
			if err != nil || listed {
				return err == nil, err
			}
		}
		return true, x.part(raw, value)
	})
	if err != nil {
		return false, err
	}
	if done && !x.row.KeepManifestParts {
		if err := x.pages(); err != nil {
			return false, err
		}
	}
	if done {
		return true, x.m.del(x.raw)
	}
	return false, x.m.put(x.raw, &x.row)
}

// part turns one part into garbage.
func (x *expansion) part(raw []byte, value func() ([]byte, error)) error {
	var row metapb.PartRow
	if err := decode(raw, value, &row); err != nil {
		return err
	}
	if err := x.m.garbage(x.bucket, x.key, x.row.PinWrite, row.GetData().GetChunks(), ""); err != nil {
		return err
	}
	return x.m.del(raw)
}

// pages deletes the manifest, at most ten pages.
func (x *expansion) pages() error {
	start, end := uploadSpan(kindManifest, x.bucket, x.key, x.row.UploadSeq)
	return x.m.iterate(start, end, func(raw []byte, _ func() ([]byte, error)) (bool, error) {
		x.left--
		return true, x.m.del(raw)
	})
}

// ---- Sweep ----

// sweep drops expired outcomes and completed-upload rows. It looks at rows_max
// rows from where the last sweep stopped; more says that it has not come round yet.
func (m *Machine) sweep(op *metapb.SweepOp) (*metapb.RangeResult, error) {
	left := rowsMax(op.GetRowsMax())
	cursorKey := appendGroup(nil, m.group, subSweep)
	cursor, err := m.cursor(cursorKey)
	if err != nil {
		return nil, err
	}
	var next []byte
	for _, kind := range [...]byte{kindCompleted, kindOutcome} { // in order of raw keys, as the cursor goes
		span := m.bounds.span(kind)
		if bytes.Compare(cursor, span.End) >= 0 {
			continue
		}
		if bytes.Compare(cursor, span.Start) > 0 {
			span.Start = cursor
		}
		err := m.iterate(span.Start, span.End, func(raw []byte, value func() ([]byte, error)) (bool, error) {
			if left == 0 {
				next = bytes.Clone(raw)
				return false, nil
			}
			left--
			return true, m.sweepRow(kind, raw, value)
		})
		if err != nil {
			return nil, err
		}
		if next != nil {
			break
		}
	}
	if next == nil {
		return &metapb.RangeResult{Ok: true}, m.del(cursorKey)
	}
	return &metapb.RangeResult{Ok: true, More: true}, m.b.Set(cursorKey, next, nil)
}

func (m *Machine) cursor(key []byte) ([]byte, error) {
	v, closer, err := m.b.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	defer closer.Close()
	return bytes.Clone(v), nil
}

func (m *Machine) sweepRow(kind byte, raw []byte, value func() ([]byte, error)) error {
	v, err := value()
	if err != nil {
		return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	field, ttl := 1, retentionMS // OutcomeRow.at_ms
	if kind == kindCompleted {
		field, ttl = 3, completedMS // CompletedUploadRow.completed_ms
	}
	at, ok := varintField(v, field)
	if !ok {
		return corrupt(raw, errMalformed)
	}
	if !expired(int64(at), ttl, m.now()) {
		return nil
	}
	return m.del(raw)
}
