package rangestate

import (
	"fmt"
	"math"
	"math/big"
	"math/bits"
	"slices"
	"sort"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/errs"
)

// model is what a range should hold, said as simply as possible: lists of versions,
// newest first. It decides what a command should answer; ids and sequences that the machine chose it takes
// from the answers.
type model struct {
	now      int64
	seq      uint64 // highest seen
	buckets  map[uint64]*mBucket
	outcomes map[string]mOutcome
	given    map[string]bool // chunks of commands that were not turned away as a whole
	dropped  map[string]bool // chunks whose garbage rows were dropped
	gone     map[uint64]bool // buckets that were dropped
	day      int64           // ms, of the command that runs
	owed     map[string]*mOwed

	requester *metapb.Requester // of the command that runs
	outbox    mOutbox
}

type mOutcome struct {
	at  int64
	res *metapb.RangeResult
}

// mOwed is what only rises, of a bucket and class.
type mOwed struct {
	early    big.Int // byte-milliseconds
	restored uint64
}

type mBucket struct {
	row     *metapb.BucketRow
	keys    map[string][]*mVersion
	uploads []*mUpload // in order of key, then seq
	done    map[uint64]*mDone
}

type mVersion struct {
	seq, nonce           uint64
	null, marker         bool
	write, etag, class   string
	size                 uint64
	modified, noncurrent int64
	classSince           int64
	lockMode             string
	lockUntil            int64
	hold                 bool
	tags                 string // their names
	restore              *metapb.Restore
	gen                  uint64
	chunks               []*metapb.ChunkRef
	upload               uint64
	parts                []*mPart
}

type mPart struct {
	number      uint32
	size        uint64
	etag, write string
	gen         uint64
	chunks      []*metapb.ChunkRef
}

type mUpload struct {
	key, write, class string
	seq, nonce, gen   uint64
	initiated         int64
	attributes        *metapb.Attributes
	parts             map[uint32]*mPart
}

type mDone struct {
	at     int64
	nonce  uint64
	digest string
	v      mVersion
}

func newModel() *model {
	return &model{buckets: map[uint64]*mBucket{}, outcomes: map[string]mOutcome{}, given: map[string]bool{}, dropped: map[string]bool{}, gone: map[uint64]bool{}, owed: map[string]*mOwed{}, outbox: newMOutbox()}
}

func fail(kind errs.Kind) *metapb.RangeResult { return &metapb.RangeResult{Kind: uint32(kind)} }

func (m *model) take(chunks []*metapb.ChunkRef) {
	for _, c := range chunks {
		m.given[string(c.Id)] = true
	}
}

// run answers what cmd should answer at time now. got is the machine's answer, for what the machine chooses.
func (m *model) run(cmd *metapb.RangeCommand, now int64, got *metapb.RangeResult) *metapb.RangeResult {
	m.now, m.day = max(m.now, now), 86400000
	if cmd.DayMs > 0 && cmd.DayMs < m.day {
		m.day = cmd.DayMs
	}
	m.requester = cmd.Requester
	if res := m.runEvents(cmd); res != nil {
		return res
	}
	switch op := cmd.Op.(type) {
	case *metapb.RangeCommand_PutBucket:
		return m.once(cmd, op.PutBucket.Row.Id, "", func() *metapb.RangeResult { return m.putBucket(op.PutBucket) })
	case *metapb.RangeCommand_FenceBucket:
		return m.once(cmd, op.FenceBucket.Bucket, "", func() *metapb.RangeResult { return m.fence(op.FenceBucket) })
	case *metapb.RangeCommand_DropBucket:
		return m.once(cmd, op.DropBucket.Bucket, "", func() *metapb.RangeResult { return m.drop(op.DropBucket) })
	case *metapb.RangeCommand_PutObject:
		return m.once(cmd, op.PutObject.Bucket, string(op.PutObject.Key), func() *metapb.RangeResult { return m.put(op.PutObject, got) })
	case *metapb.RangeCommand_DeleteObjects:
		return m.deleteAll(cmd, op.DeleteObjects, got)
	case *metapb.RangeCommand_Expire:
		return m.expireAll(cmd, op.Expire, got)
	case *metapb.RangeCommand_CreateUpload:
		return m.once(cmd, op.CreateUpload.Bucket, string(op.CreateUpload.Key), func() *metapb.RangeResult { return m.create(op.CreateUpload, got) })
	case *metapb.RangeCommand_PutPart:
		return m.once(cmd, op.PutPart.Bucket, string(op.PutPart.Key), func() *metapb.RangeResult { return m.putPart(op.PutPart) })
	case *metapb.RangeCommand_CompleteUpload:
		return m.once(cmd, op.CompleteUpload.Bucket, string(op.CompleteUpload.Key), func() *metapb.RangeResult { return m.complete(op.CompleteUpload, got) })
	case *metapb.RangeCommand_AbortUpload:
		return m.once(cmd, op.AbortUpload.Bucket, string(op.AbortUpload.Key), func() *metapb.RangeResult { return m.abort(op.AbortUpload) })
	case *metapb.RangeCommand_UpdateVersion:
		return m.once(cmd, op.UpdateVersion.Bucket, string(op.UpdateVersion.Key), func() *metapb.RangeResult { return m.update(op.UpdateVersion) })
	case *metapb.RangeCommand_RewriteData:
		return m.once(cmd, op.RewriteData.Bucket, string(op.RewriteData.Key), func() *metapb.RangeResult { return m.rewrite(op.RewriteData) })
	}
	return &metapb.RangeResult{Ok: true, More: got.More}
}

// once is the rule of repeats. run answers nil for TooLate.
func (m *model) once(cmd *metapb.RangeCommand, bucket uint64, key string, run func() *metapb.RangeResult) *metapb.RangeResult {
	id := fmt.Sprint(bucket, "/", key, "/", string(cmd.Id))
	minutes := func(a, b int64) float64 { return float64(a-b) / 60000 }
	if o, ok := m.outcomes[id]; ok && minutes(m.now, o.at) <= 10 {
		return o.res
	}
	if minutes(m.now, cmd.IssuedMs) > 10 || minutes(cmd.IssuedMs, m.now) > 10 {
		return fail(errs.TooLate)
	}
	if _, ok := m.outcomes[id]; ok {
		panic("a command would be applied twice")
	}
	res := run()
	if res == nil {
		return fail(errs.TooLate)
	}
	m.outcomes[id] = mOutcome{max(m.now, cmd.IssuedMs), res}
	return res
}

func (m *model) live(bucket uint64) (*mBucket, *metapb.RangeResult) {
	b := m.buckets[bucket]
	if b == nil {
		return nil, fail(errs.NoSuchBucket)
	}
	if b.row.Fenced {
		return nil, fail(errs.BucketBusy)
	}
	return b, nil
}

func newBucket(row *metapb.BucketRow) *mBucket {
	return &mBucket{row: row, keys: map[string][]*mVersion{}, done: map[uint64]*mDone{}}
}

func (m *model) putBucket(op *metapb.PutBucketOp) *metapb.RangeResult {
	b := m.buckets[op.Row.Id]
	switch {
	case m.gone[op.Row.Id]:
		return fail(errs.NoSuchBucket)
	case b == nil:
		m.buckets[op.Row.Id] = newBucket(op.Row)
	case b.row.Generation >= op.Row.Generation && b.row.Fenced:
		return fail(errs.BucketBusy)
	case b.row.Generation >= op.Row.Generation:
	case b.row.Versioning != 0 && op.Row.Versioning == 0:
		return fail(errs.InvalidRequest)
	default:
		b.row = op.Row
	}
	return &metapb.RangeResult{Ok: true}
}

func (m *model) fence(op *metapb.FenceBucketOp) *metapb.RangeResult {
	b := m.buckets[op.Bucket]
	switch {
	case m.gone[op.Bucket]:
		return fail(errs.NoSuchBucket)
	case b == nil:
		b = newBucket(&metapb.BucketRow{Id: op.Bucket})
		m.buckets[op.Bucket] = b
	case b.row.Fenced && b.row.Generation == op.Generation:
		return &metapb.RangeResult{Ok: true, Empty: true}
	case b.row.Generation >= op.Generation:
		return fail(errs.Conflict)
	}
	empty := len(b.keys) == 0 && len(b.uploads) == 0
	if empty {
		b.row = b.row.CloneVT()
		b.row.Fenced, b.row.Generation = true, op.Generation
	}
	return &metapb.RangeResult{Ok: true, Empty: empty}
}

func (m *model) drop(op *metapb.DropBucketOp) *metapb.RangeResult {
	b := m.buckets[op.Bucket]
	if b != nil && (!b.row.Fenced || b.row.Generation > op.Generation) {
		return fail(errs.Conflict)
	}
	delete(m.buckets, op.Bucket)
	m.gone[op.Bucket] = true
	for _, class := range []string{"STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"} {
		from, to := m.owes(op.Bucket, class), m.owes(0, class)
		to.early.Add(&to.early, &from.early)
		to.restored += from.restored
		*from = mOwed{}
	}
	for name := range m.outbox.targets {
		m.handOn(op.Bucket, name)
	}
	return &metapb.RangeResult{Ok: true}
}

func (m *model) owes(bucket uint64, class string) *mOwed {
	k := fmt.Sprint(bucket, "/", class)
	if m.owed[k] == nil {
		m.owed[k] = &mOwed{}
	}
	return m.owed[k]
}

// leaves is for a version that is removed, or leaves its class.
func (m *model) leaves(bucket uint64, v *mVersion) {
	days := map[string]int64{"STANDARD_IA": 30, "ONEZONE_IA": 30, "GLACIER_IR": 90, "GLACIER": 90, "DEEP_ARCHIVE": 180}[v.class]
	since := v.modified
	if v.classSince != 0 {
		since = v.classSince
	}
	if left := since + days*m.day - m.now; left > 0 && days > 0 {
		o := m.owes(bucket, v.class)
		o.early.Add(&o.early, new(big.Int).Mul(new(big.Int).SetUint64(v.size), big.NewInt(left)))
	}
}

func (b *mBucket) current(key string) *mVersion {
	if vs := b.keys[key]; len(vs) > 0 && !vs[0].marker {
		return vs[0]
	}
	return nil
}

func mHolds(c *metapb.Conditions, v *mVersion) errs.Kind {
	if c == nil {
		return 0
	}
	match := func(list []string) bool {
		return slices.Contains(list, "*") || slices.Contains(list, v.etag)
	}
	switch {
	case v == nil && (len(c.IfMatch) > 0 || c.HasMatchSize || c.IfMatchModifiedMs != 0):
		return errs.NoSuchKey
	case v == nil:
		return 0
	case len(c.IfMatch) > 0 && !match(c.IfMatch), len(c.IfNoneMatch) > 0 && match(c.IfNoneMatch),
		c.HasMatchSize && c.IfMatchSize != int64(v.size), c.IfMatchModifiedMs != 0 && c.IfMatchModifiedMs/1000 != v.modified/1000:
		return errs.PreconditionFailed
	}
	return 0
}

// add puts a new newest version, by the bucket's versioning.
func (m *model) add(b *mBucket, key string, v *mVersion) {
	vs := b.keys[key]
	keep := func(old *mVersion) bool {
		switch b.row.Versioning {
		case metapb.Versioning_VERSIONING_NEVER:
			return false
		case metapb.Versioning_VERSIONING_SUSPENDED:
			return !old.null
		}
		return true
	}
	newest := true
	var kept []*mVersion
	for _, old := range vs {
		if keep(old) {
			if newest {
				old.noncurrent = m.now
			}
			kept = append(kept, old)
		} else {
			m.removed(b.row.Id, old)
		}
		newest = false
	}
	v.null = b.row.Versioning != metapb.Versioning_VERSIONING_ENABLED
	v.modified = m.now
	if b.row.ObjectLock && !v.marker && v.lockMode == "" && b.row.DefaultLockMode != "" {
		v.lockMode, v.lockUntil = b.row.DefaultLockMode, m.now+int64(b.row.DefaultLockDays+365*b.row.DefaultLockYears)*86400000
	}
	b.keys[key] = append([]*mVersion{v}, kept...)
}

func (m *model) newSeq(seq uint64) uint64 {
	if seq <= m.seq {
		panic(fmt.Sprintf("sequence %d after %d", seq, m.seq))
	}
	m.seq = seq
	return seq
}

func named(b *mBucket, v *mVersion) *metapb.RangeResult {
	return &metapb.RangeResult{
		Ok: true, VersionSeq: v.seq, VersionNonce: v.nonce, NullVersion: v.null, Versioned: b.row.Versioning != metapb.Versioning_VERSIONING_NEVER,
	}
}

func (m *model) put(op *metapb.PutObjectOp, got *metapb.RangeResult) *metapb.RangeResult {
	for _, c := range op.Row.Data.Chunks {
		if m.now-storage.ChunkID(c.Id).BirthMS() > 12*3600*1000 {
			return nil
		}
	}
	m.take(op.Row.Data.Chunks)
	refused := func(r *metapb.RangeResult) *metapb.RangeResult {
		r.Freed = len(op.Row.Data.Chunks) > 0
		return r
	}
	b, no := m.live(op.Bucket)
	if no != nil {
		return refused(no)
	}
	if kind := mHolds(op.Conditions, b.current(string(op.Key))); kind != 0 {
		return refused(fail(kind))
	}
	a := op.Row.GetAttributes()
	if !b.row.ObjectLock && (a.GetLockMode() != "" || a.GetLegalHold()) {
		return refused(fail(errs.InvalidRequest))
	}
	kind := notification.ObjectCreatedPut
	if op.Event != 0 {
		kind = notification.Type(op.Event)
	}
	if m.busy(b, kind, string(op.Key)) {
		return refused(fail(errs.Busy))
	}
	v := &mVersion{
		seq: m.newSeq(got.VersionSeq), nonce: op.Row.Nonce, write: string(op.Row.WriteId), etag: op.Row.Etag, size: op.Row.Size, gen: 1,
		chunks: op.Row.Data.Chunks, class: a.GetStorageClass(), lockMode: a.GetLockMode(), lockUntil: a.GetLockUntilMs(), hold: a.GetLegalHold(), tags: tagNames(a.GetTags()),
	}
	m.add(b, string(op.Key), v)
	res := named(b, v)
	m.tell(b, kind, string(op.Key), res, v.content)
	return res
}

func (m *model) deleteAll(cmd *metapb.RangeCommand, op *metapb.DeleteObjectsOp, got *metapb.RangeResult) *metapb.RangeResult {
	return m.bulk(cmd, op.Bucket, len(op.Entries), func(i int) []byte { return op.Entries[i].Key }, func(mine []int) *metapb.RangeResult {
		all := &metapb.RangeResult{Ok: true}
		for _, i := range mine {
			all.Entries = append(all.Entries, m.delete(op, op.Entries[i], got.Entries[i]))
		}
		return all
	})
}

// bulk is the rule of repeats for commands on several keys. run answers the entries of one key, together or each by itself.
func (m *model) bulk(cmd *metapb.RangeCommand, bucket uint64, n int, key func(i int) []byte, run func(mine []int) *metapb.RangeResult) *metapb.RangeResult {
	res := &metapb.RangeResult{Ok: true, Entries: make([]*metapb.RangeResult, n)}
	seen := map[string]bool{}
	together := map[errs.Kind]bool{}
	for at := range n {
		if seen[string(key(at))] {
			continue
		}
		seen[string(key(at))] = true
		var mine []int
		for i := range n {
			if string(key(i)) == string(key(at)) {
				mine = append(mine, i)
			}
		}
		all := m.once(cmd, bucket, string(key(at)), func() *metapb.RangeResult { return run(mine) })
		for n, i := range mine {
			if res.Entries[i] = all; all.Ok {
				res.Entries[i] = all.Entries[n]
			}
		}
		together[errs.Kind(all.Kind)] = true
	}
	res.Events = slices.ContainsFunc(res.Entries, func(r *metapb.RangeResult) bool { return r.Events })
	first := res.Entries[0]
	for _, kind := range []errs.Kind{errs.NoSuchBucket, errs.BucketBusy, errs.TooLate} {
		if errs.Kind(first.Kind) == kind && !slices.ContainsFunc(res.Entries, func(r *metapb.RangeResult) bool { return r.Kind != first.Kind }) {
			res.Ok, res.Kind = false, first.Kind
		}
	}
	if together[errs.Conflict] {
		res.Ok, res.Kind = false, uint32(errs.Conflict)
	}
	return res
}

func (m *model) expireAll(cmd *metapb.RangeCommand, op *metapb.ExpireOp, got *metapb.RangeResult) *metapb.RangeResult {
	return m.bulk(cmd, op.Bucket, len(op.Entries), func(i int) []byte { return op.Entries[i].Key }, func(mine []int) *metapb.RangeResult {
		b, no := m.live(op.Bucket)
		if no != nil || b.row.Generation != op.ConfigGeneration {
			return fail(errs.Conflict)
		}
		all := &metapb.RangeResult{Ok: true}
		for _, i := range mine {
			all.Entries = append(all.Entries, m.expire(b, op.Entries[i], got.Entries[i]))
		}
		return all
	})
}

func (m *model) expire(b *mBucket, e *metapb.ExpireEntry, got *metapb.RangeResult) *metapb.RangeResult {
	key := string(e.Key)
	if e.What == metapb.ExpireEntry_UPLOAD {
		i := b.upload(key, e.VersionSeq, e.VersionNonce)
		if i < 0 {
			return fail(errs.Conflict)
		}
		b.uploads = slices.Delete(b.uploads, i, i+1)
		return &metapb.RangeResult{Ok: true}
	}
	vs := b.keys[key]
	i := slices.IndexFunc(vs, func(v *mVersion) bool { return v.seq == e.VersionSeq && v.nonce == e.VersionNonce })
	switch {
	case i < 0, e.What == metapb.ExpireEntry_CURRENT && (i > 0 || vs[0].marker),
		e.What == metapb.ExpireEntry_NONCURRENT && i == 0,
		e.What == metapb.ExpireEntry_MARKER && (!vs[i].marker || len(vs) > 1):
		return fail(errs.Conflict)
	}
	v := vs[i]
	if e.What != metapb.ExpireEntry_CURRENT {
		if m.locked(v, false) {
			return fail(errs.ObjectLocked)
		}
		if m.busy(b, notification.LifecycleExpirationDelete, key) {
			return fail(errs.Busy)
		}
		m.removed(b.row.Id, v)
		if b.keys[key] = slices.Delete(slices.Clone(vs), i, i+1); len(vs) == 1 {
			delete(b.keys, key)
		}
		res := named(b, v)
		res.DeleteMarker = v.marker
		m.tell(b, notification.LifecycleExpirationDelete, key, res, nil)
		return res
	}
	switch b.row.Versioning {
	case metapb.Versioning_VERSIONING_NEVER:
		if m.busy(b, notification.LifecycleExpirationDelete, key) {
			return fail(errs.Busy)
		}
		m.removed(b.row.Id, v)
		delete(b.keys, key)
		res := &metapb.RangeResult{Ok: true}
		m.tell(b, notification.LifecycleExpirationDelete, key, res, nil)
		return res
	case metapb.Versioning_VERSIONING_SUSPENDED:
		if slices.ContainsFunc(vs, func(v *mVersion) bool { return v.null && m.locked(v, false) }) {
			return fail(errs.ObjectLocked)
		}
	}
	if m.busy(b, notification.LifecycleExpirationDeleteMarkerCreated, key) {
		return fail(errs.Busy)
	}
	marker := &mVersion{seq: m.newSeq(got.VersionSeq), nonce: e.MarkerNonce, marker: true}
	m.add(b, key, marker)
	res := named(b, marker)
	res.DeleteMarker = true
	m.tell(b, notification.LifecycleExpirationDeleteMarkerCreated, key, res, nil)
	return res
}

func (m *model) locked(v *mVersion, bypass bool) bool {
	return v.hold || v.lockUntil > m.now && (v.lockMode == "COMPLIANCE" || v.lockMode == "GOVERNANCE" && !bypass)
}

func (m *model) delete(op *metapb.DeleteObjectsOp, e *metapb.DeleteEntry, got *metapb.RangeResult) *metapb.RangeResult {
	b, no := m.live(op.Bucket)
	if no != nil {
		return no
	}
	key := string(e.Key)
	if e.HasVersion {
		return m.deleteVersion(b, key, e)
	}
	if kind := mHolds(e.Conditions, b.current(key)); kind != 0 {
		return fail(kind)
	}
	if b.row.Versioning == metapb.Versioning_VERSIONING_NEVER {
		res := &metapb.RangeResult{Ok: true}
		if len(b.keys[key]) > 0 {
			if m.busy(b, notification.ObjectRemovedDelete, key) {
				return fail(errs.Busy)
			}
			m.tell(b, notification.ObjectRemovedDelete, key, res, nil)
		}
		for _, v := range b.keys[key] {
			m.removed(b.row.Id, v)
		}
		delete(b.keys, key)
		return res
	}
	if m.busy(b, notification.ObjectRemovedDeleteMarkerCreated, key) {
		return fail(errs.Busy)
	}
	v := &mVersion{seq: m.newSeq(got.VersionSeq), nonce: e.MarkerNonce, marker: true}
	m.add(b, key, v)
	res := named(b, v)
	res.DeleteMarker = true
	m.tell(b, notification.ObjectRemovedDeleteMarkerCreated, key, res, nil)
	return res
}

func (m *model) deleteVersion(b *mBucket, key string, e *metapb.DeleteEntry) *metapb.RangeResult {
	id := storage.VersionID{Seq: storage.Seq(e.VersionSeq), Nonce: e.VersionNonce}
	vs := b.keys[key]
	i := b.version(key, id)
	var judged *mVersion
	if i >= 0 && !vs[i].marker {
		judged = vs[i]
	}
	if kind := mHolds(e.Conditions, judged); kind != 0 {
		return fail(kind)
	}
	if i < 0 {
		return &metapb.RangeResult{
			Ok: true, VersionSeq: e.VersionSeq, VersionNonce: e.VersionNonce, NullVersion: id.IsNull(),
			Versioned: b.row.Versioning != metapb.Versioning_VERSIONING_NEVER,
		}
	}
	v := vs[i]
	if m.locked(v, e.BypassGovernance) {
		return fail(errs.ObjectLocked)
	}
	if m.busy(b, notification.ObjectRemovedDelete, key) {
		return fail(errs.Busy)
	}
	m.removed(b.row.Id, v)
	vs = slices.Delete(slices.Clone(vs), i, i+1)
	if i == 0 && len(vs) > 0 {
		vs[0].noncurrent = 0
	}
	if b.keys[key] = vs; len(vs) == 0 {
		delete(b.keys, key)
	}
	res := named(b, v)
	res.DeleteMarker = v.marker
	m.tell(b, notification.ObjectRemovedDelete, key, res, nil)
	return res
}

// version is the index of the key's version with an id, or -1.
func (b *mBucket) version(key string, id storage.VersionID) int {
	return slices.IndexFunc(b.keys[key], func(v *mVersion) bool {
		if v.null {
			return id.IsNull()
		}
		return v.seq == uint64(id.Seq) && v.nonce == id.Nonce
	})
}

func (m *model) update(op *metapb.UpdateVersionOp) *metapb.RangeResult {
	b, no := m.live(op.Bucket)
	if no != nil {
		return no
	}
	_, hold := op.Change.(*metapb.UpdateVersionOp_LegalHold)
	if _, retention := op.Change.(*metapb.UpdateVersionOp_Retention); (hold || retention) && !b.row.ObjectLock {
		return fail(errs.InvalidRequest)
	}
	i := min(0, len(b.keys[string(op.Key)])-1)
	if op.HasVersion {
		i = b.version(string(op.Key), storage.VersionID{Seq: storage.Seq(op.VersionSeq), Nonce: op.VersionNonce})
	}
	switch {
	case i < 0 && op.HasVersion:
		return fail(errs.NoSuchVersion)
	case i < 0:
		return fail(errs.NoSuchKey)
	}
	v := b.keys[string(op.Key)][i]
	res := named(b, v)
	res.ModifiedMs = v.modified
	if v.marker {
		res.Ok, res.Kind = false, uint32(errs.IsDeleteMarker)
		return res
	}
	switch c := op.Change.(type) {
	case *metapb.UpdateVersionOp_Tags:
		kind := notification.ObjectTaggingPut
		if op.TagsDeleted {
			kind = notification.ObjectTaggingDelete
		}
		if m.busy(b, kind, string(op.Key)) {
			return fail(errs.Busy)
		}
		v.tags = tagNames(c.Tags.Tags)
		m.tell(b, kind, string(op.Key), res, v.content)
	case *metapb.UpdateVersionOp_LegalHold:
		v.hold = c.LegalHold
	case *metapb.UpdateVersionOp_Retention:
		r := c.Retention
		longer := r.Mode == v.lockMode && r.UntilMs >= v.lockUntil
		if active := v.lockMode != "" && v.lockUntil > m.now; active && !longer && (v.lockMode == "COMPLIANCE" || !r.BypassGovernance) {
			return fail(errs.ObjectLocked)
		}
		v.lockMode, v.lockUntil = r.Mode, r.UntilMs
	case *metapb.UpdateVersionOp_Restore:
		return m.restore(b, string(op.Key), v, c.Restore, res)
	}
	return res
}

func (m *model) restore(b *mBucket, key string, v *mVersion, asked *metapb.Restore, res *metapb.RangeResult) *metapb.RangeResult {
	if v.class != "GLACIER" && v.class != "DEEP_ARCHIVE" {
		no := fail(errs.InvalidObjectState)
		if no.StorageClass = v.class; v.class == "" {
			no.StorageClass = "STANDARD"
		}
		return no
	}
	had := v.restore != nil && m.now < v.restore.ExpiresMs
	next := asked.CloneVT()
	next.RequestedMs = m.now
	if had {
		next.RequestedMs = v.restore.RequestedMs
	}
	switch tiers := []string{"Expedited", "Standard", "Bulk"}; {
	case had && m.now >= v.restore.ReadyMs:
		next.ReadyMs, next.Tier = v.restore.ReadyMs, v.restore.Tier
		res.Restored = true
	case had && (slices.Index(tiers, next.Tier) >= slices.Index(tiers, v.restore.Tier) || next.ReadyMs >= v.restore.ReadyMs):
		return fail(errs.RestoreInProgress)
	case had:
		next.ExpiresMs = v.restore.ExpiresMs
	default:
		if m.busy(b, notification.ObjectRestorePost, key) {
			return fail(errs.Busy)
		}
		m.owes(b.row.Id, v.class).restored += v.size
	}
	was := v.restore
	v.restore = next
	m.restored(b, key, v, was, !had, res)
	if !had {
		m.tell(b, notification.ObjectRestorePost, key, res, v.archived(0))
	}
	return res
}

func tagNames(tags []*metapb.KV) (names string) {
	for _, t := range tags {
		names += t.Name + " "
	}
	return names
}

func (m *model) create(op *metapb.CreateUploadOp, got *metapb.RangeResult) *metapb.RangeResult {
	b, no := m.live(op.Bucket)
	if no != nil {
		return no
	}
	u := &mUpload{
		key: string(op.Key), write: string(op.Row.WriteId), class: op.Row.GetAttributes().GetStorageClass(), attributes: op.Row.Attributes,
		seq: m.newSeq(got.VersionSeq), nonce: op.Row.Nonce, gen: 1, initiated: m.now, parts: map[uint32]*mPart{},
	}
	b.uploads = append(b.uploads, u)
	sort.SliceStable(b.uploads, func(i, j int) bool { return b.uploads[i].key < b.uploads[j].key })
	return &metapb.RangeResult{Ok: true, VersionSeq: u.seq, VersionNonce: u.nonce}
}

func (b *mBucket) upload(key string, seq, nonce uint64) int {
	return slices.IndexFunc(b.uploads, func(u *mUpload) bool { return u.key == key && u.seq == seq && u.nonce == nonce })
}

func (m *model) putPart(op *metapb.PutPartOp) *metapb.RangeResult {
	m.take(op.Row.Data.Chunks)
	freed := len(op.Row.Data.Chunks) > 0
	b, no := m.live(op.Bucket)
	if no != nil {
		no.Freed = freed
		return no
	}
	i := b.upload(string(op.Key), op.UploadSeq, op.UploadNonce)
	if i < 0 {
		res := fail(errs.NoSuchUpload)
		res.Freed = freed
		return res
	}
	b.uploads[i].gen++
	b.uploads[i].parts[op.Row.Number] = &mPart{
		number: op.Row.Number, size: op.Row.Size, etag: op.Row.Etag, write: string(op.Row.WriteId), gen: 1, chunks: op.Row.Data.Chunks,
	}
	return &metapb.RangeResult{Ok: true}
}

func (m *model) complete(op *metapb.CompleteUploadOp, got *metapb.RangeResult) *metapb.RangeResult {
	b, no := m.live(op.Bucket)
	if no != nil {
		return no
	}
	i := b.upload(string(op.Key), op.UploadSeq, op.UploadNonce)
	if i < 0 {
		d := b.done[op.UploadSeq]
		if d == nil || d.nonce != op.UploadNonce || d.digest != string(op.PartsDigest) || m.now-d.at > 24*3600*1000 {
			return fail(errs.NoSuchUpload)
		}
		res := named(b, &d.v)
		res.Etag, res.Size = d.v.etag, d.v.size
		return res
	}
	u := b.uploads[i]
	if u.gen != op.UploadGeneration {
		return fail(errs.Conflict)
	}
	if kind := mHolds(op.Conditions, b.current(u.key)); kind != 0 {
		return fail(kind)
	}
	v := &mVersion{nonce: op.VersionNonce, write: u.write, etag: op.Etag, class: u.class, gen: 1, upload: u.seq}
	for n, p := range op.Parts {
		if n > 0 && p.Number <= op.Parts[n-1].Number {
			return fail(errs.InvalidPartOrder)
		}
	}
	for _, p := range op.Parts {
		have := u.parts[p.Number]
		if have == nil || have.size != p.Size {
			return fail(errs.InvalidPart)
		}
		v.parts = append(v.parts, have)
		v.size += p.Size
	}
	if len(op.Parts) == 0 {
		return fail(errs.InvalidPart)
	}
	if m.busy(b, notification.ObjectCreatedCompleteMultipartUpload, u.key) {
		return fail(errs.Busy)
	}
	v.seq = m.newSeq(got.VersionSeq)
	b.uploads = slices.Delete(b.uploads, i, i+1)
	m.add(b, u.key, v)
	b.done[u.seq] = &mDone{m.now, u.nonce, string(op.PartsDigest), *v}
	res := named(b, v)
	res.Etag, res.Size = v.etag, v.size
	m.tell(b, notification.ObjectCreatedCompleteMultipartUpload, u.key, res, v.content)
	return res
}

func (m *model) abort(op *metapb.AbortUploadOp) *metapb.RangeResult {
	b, no := m.live(op.Bucket)
	if no != nil {
		return no
	}
	i := b.upload(string(op.Key), op.UploadSeq, op.UploadNonce)
	switch {
	case i < 0:
		return fail(errs.NoSuchUpload)
	case op.IfInitiatedMs != 0 && op.IfInitiatedMs != b.uploads[i].initiated:
		return fail(errs.Conflict)
	}
	b.uploads = slices.Delete(b.uploads, i, i+1)
	return &metapb.RangeResult{Ok: true}
}

// rewrite finds the data by what the model believes to be there. Parts of uploads that are
// gone but not yet expanded may still be rewritten: the model then has to ask (see holderGone).
func (m *model) rewrite(op *metapb.RewriteDataOp) *metapb.RangeResult {
	m.take(op.Data.Chunks)
	write, gen, chunks := m.holder(op)
	conflict := write == nil || *write != string(op.WriteId) || *gen != op.Generation
	if b := m.buckets[op.Bucket]; op.ConfigGeneration != 0 {
		conflict = conflict || b == nil || b.row.Fenced || b.row.Generation != op.ConfigGeneration
	}
	moved := m.moved(op)
	if conflict {
		var have []*metapb.ChunkRef
		if chunks != nil {
			have = *chunks
		}
		res := fail(errs.Conflict)
		for _, c := range op.Data.Chunks {
			if findChunk(have, c.Id) < 0 && !slices.ContainsFunc(op.Kept, func(id []byte) bool { return string(id) == string(c.Id) }) {
				res.Freed = true
			}
		}
		return res
	}
	*gen++
	*chunks = op.Data.Chunks
	res := &metapb.RangeResult{Ok: true}
	if moved != nil {
		id := named(m.buckets[op.Bucket], moved)
		m.tell(m.buckets[op.Bucket], notification.LifecycleTransition, string(op.Key), id, func(e *metapb.EventRow) {
			moved.content(e)
			e.StorageClass = op.StorageClass
		})
		res.Events = id.Events
	}
	if op.StorageClass != "" {
		for _, v := range m.buckets[op.Bucket].keys[string(op.Key)] {
			if v.seq == op.VersionSeq {
				if was := v.class; op.StorageClass != was && !(was == "" && op.StorageClass == "STANDARD") {
					m.leaves(op.Bucket, v)
					v.classSince = max(m.now, 1)
				}
				if v.class = op.StorageClass; v.class == "STANDARD" {
					v.class = ""
				}
			}
		}
	}
	return res
}

// moved is the version whose storage class a rewrite changes, or nil.
func (m *model) moved(op *metapb.RewriteDataOp) *mVersion {
	b := m.buckets[op.Bucket]
	if b == nil || op.StorageClass == "" {
		return nil
	}
	for _, v := range b.keys[string(op.Key)] {
		if v.seq == op.VersionSeq && v.class != op.StorageClass && !(v.class == "" && op.StorageClass == "STANDARD") {
			return v
		}
	}
	return nil
}

func (m *model) holder(op *metapb.RewriteDataOp) (write *string, gen *uint64, chunks *[]*metapb.ChunkRef) {
	b := m.buckets[op.Bucket]
	if b == nil {
		return nil, nil, nil
	}
	for _, v := range b.keys[string(op.Key)] {
		if op.VersionSeq != 0 && v.seq == op.VersionSeq {
			return &v.write, &v.gen, &v.chunks
		}
		for _, p := range v.parts {
			if op.UploadSeq != 0 && v.upload == op.UploadSeq && p.number == op.Part {
				return &p.write, &p.gen, &p.chunks
			}
		}
	}
	for _, u := range b.uploads {
		if p := u.parts[op.Part]; op.UploadSeq == u.seq && p != nil {
			return &p.write, &p.gen, &p.chunks
		}
	}
	return nil, nil, nil
}

// ---- listings ----

type mEntry struct {
	key    string
	prefix bool
}

// list is the listing of sorted keys.
func list(keys []string, prefix, delimiter, after string, limit int) (out []mEntry, truncated bool) {
	for _, k := range keys {
		if !strings.HasPrefix(k, prefix) || k <= after {
			continue
		}
		e := mEntry{key: k}
		if i := strings.Index(k[len(prefix):], delimiter); delimiter != "" && i >= 0 {
			e = mEntry{k[:len(prefix)+i+len(delimiter)], true}
			if e.key <= after || len(out) > 0 && out[len(out)-1] == e {
				continue
			}
		}
		if len(out) == limit {
			return out, limit > 0
		}
		out = append(out, e)
	}
	return out, false
}

func (b *mBucket) currentKeys() (keys []string) {
	for _, k := range sortedKeys(b.keys) {
		if b.current(k) != nil {
			keys = append(keys, k)
		}
	}
	return keys
}

// ---- counters and chunks ----

func (m *model) counters() map[string]*metapb.CounterRow {
	out := map[string]*metapb.CounterRow{}
	for id, b := range m.buckets {
		at := func(class string) *metapb.CounterRow {
			if class == "" {
				class = "STANDARD"
			}
			k := fmt.Sprint(id, "/", class)
			if out[k] == nil {
				out[k] = &metapb.CounterRow{}
			}
			return out[k]
		}
		for _, vs := range b.keys {
			for i, v := range vs {
				c := at(v.class)
				c.Bytes += int64(v.size)
				switch {
				case v.marker:
					c.Markers++
				case i == 0:
					c.Objects++
				default:
					c.Versions++
				}
			}
		}
		for _, u := range b.uploads {
			at(u.class).Uploads++
			for _, p := range u.parts {
				at(u.class).UploadBytes += int64(p.size)
			}
		}
	}
	for k, o := range m.owed {
		if out[k] == nil {
			out[k] = &metapb.CounterRow{}
		}
		var lo big.Int
		out[k].EarlyLo = lo.And(&o.early, new(big.Int).SetUint64(math.MaxUint64)).Uint64()
		out[k].EarlyHi = lo.Rsh(&o.early, 64).Uint64()
		out[k].RestoredBytes = o.restored
	}
	for k, c := range out {
		if c.SizeVT() == 0 {
			delete(out, k)
		}
	}
	return out
}

// eachData calls fn for every piece of data that is in use.
func (m *model) eachData(fn func(where, write string, gen uint64, chunks []*metapb.ChunkRef)) {
	for id, b := range m.buckets {
		for key, vs := range b.keys {
			for _, v := range vs {
				if !v.marker && v.upload == 0 {
					fn(fmt.Sprintf("%d/%q/version %d", id, key, v.seq), v.write, v.gen, v.chunks)
				}
				for _, p := range v.parts {
					fn(fmt.Sprintf("%d/%q/upload %d part %d", id, key, v.upload, p.number), p.write, p.gen, p.chunks)
				}
			}
		}
		for _, u := range b.uploads {
			for _, p := range u.parts {
				fn(fmt.Sprintf("%d/%q/upload %d part %d", id, u.key, u.seq, p.number), p.write, p.gen, p.chunks)
			}
		}
	}
}

func lacking(chunks []*metapb.ChunkRef) (n int) {
	for _, c := range chunks {
		n = max(n, bits.OnesCount64(c.Missing))
	}
	return n
}
