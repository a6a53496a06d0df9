package rangestate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// CommandVersion is the newest version of RangeCommand that this package knows.
const CommandVersion = 1

// RowsMax bounds rows_max of background commands and the ids one of them names.
const RowsMax = 2000

// onlyMax bounds the doomed rows that one ExpandDoomed names.
const onlyMax = 1000

// DeleteEntriesMax bounds the entries of one DeleteObjects.
const DeleteEntriesMax = 1000

// cacheMax bounds each of the machine's caches, in entries between two batches.
const cacheMax = 4096

const (
	retentionMS   = int64(storage.OutcomeRetention / 1e6)
	chunkCommitMS = int64(storage.ChunkCommitMax / 1e6)
	completedMS   = int64(storage.CompletedUploadTTL / 1e6)
)

// Machine is the state machine of one range. It is not safe for concurrent use.
// Between batches it keeps bucket rows, counters, clock and descriptor in memory;
// only Apply changes those rows, and Reset drops the copies.
type Machine struct {
	group cluster.GroupID

	loaded     bool
	desc       *metapb.RangeDescriptor
	bounds     bounds
	clock      metapb.GroupClock
	clockDirty bool
	buckets    map[uint64]*keptBucket
	counters   map[counterID]*counter
	dirty      []counterID // counters to write at the end of the batch
	outbox     outbox
	born       []cluster.Birth // by the Apply under way or the last one

	day       int64             // in milliseconds, as the command under way says
	requester *metapb.Requester // of the command under way; nil: nobody

	b       *pebble.Batch // of the Apply under way
	seekers seekers       // of the bulk command under way
	key     []byte        // scratch for raw keys: valid until the next use
}

type counterID struct {
	bucket uint64
	class  string
}

type counter struct {
	row   metapb.CounterRow
	dirty bool
}

// keptBucket is a bucket's row and what was made of it.
type keptBucket struct {
	row    *metapb.BucketRow
	events *bucketEvents // nil: not needed yet
}

// New makes the machine of a group. It reads the group's rows at the first Apply.
func New(group cluster.GroupID) *Machine {
	m := &Machine{group: group}
	m.Reset()
	return m
}

// Reset drops what the machine remembers of the state. It must be called when the
// state was changed by other means than a batch of Apply that was committed: a
// snapshot was installed, or the batch of the last Apply was thrown away.
func (m *Machine) Reset() {
	*m = Machine{group: m.group, key: m.key[:0], buckets: map[uint64]*keptBucket{}, counters: map[counterID]*counter{}, outbox: newOutbox()}
}

// Birth writes a new group's first rows. The descriptor's format is set; the clock starts at zero.
func Birth(b *pebble.Batch, d *metapb.RangeDescriptor) error {
	d = d.CloneVT()
	d.Format = 1
	v, err := d.MarshalVT()
	if err != nil {
		return err
	}
	return b.Set(appendGroup(nil, cluster.GroupID(d.Group), subDescriptor), v, nil)
}

// Spans are the raw keys of a state store that hold the group's rows, those in
// bounds and those of the group. Of a replica without a descriptor (one that
// waits for its first snapshot) only the group's own.
func (m *Machine) Spans(r pebble.Reader) ([]cluster.KeySpan, error) {
	return spans(r, m.group)
}

func spans(r pebble.Reader, group cluster.GroupID) ([]cluster.KeySpan, error) {
	start := binary.BigEndian.AppendUint64([]byte{kindGroup}, uint64(group))
	out := []cluster.KeySpan{{Start: start, End: prefixEnd(slices.Clone(start))}}
	var d metapb.RangeDescriptor
	ok, err := getRow(r, appendGroup(nil, group, subDescriptor), &d)
	if err != nil {
		return out, err
	}
	if ok {
		b := boundsOf(&d)
		for _, kind := range kindsInBounds {
			out = append(out, b.span(kind))
		}
	}
	start = appendEvents(nil, group)
	return append(out, cluster.KeySpan{Start: start, End: prefixEnd(slices.Clone(start))}), nil
}

// Apply applies entries in order and answers one encoded RangeResult for each.
// The batch must be indexed and read through to the state that holds every batch
// before it. Entry data is not retained; results are new memory.
//
// A refused, malformed or unknown command is a result. An error means that the state could
// not be read or is corrupt: the batch must not be committed and the replica must stop.
func (m *Machine) Apply(b *pebble.Batch, entries []cluster.Entry) ([][]byte, error) {
	m.b, m.born = b, nil
	defer func() { m.b = nil }()
	results := make([][]byte, len(entries))
	err := m.load()
	for i := 0; i < len(entries) && err == nil; i++ {
		results[i], err = m.applyOne(&entries[i])
	}
	if err == nil {
		err = m.flush()
	}
	if err != nil {
		m.Reset()
		return nil, err
	}
	return results, nil
}

func (m *Machine) load() error {
	if m.loaded {
		return nil
	}
	d := &metapb.RangeDescriptor{}
	ok, err := m.get(appendGroup(m.key[:0], m.group, subDescriptor), d)
	if err != nil {
		return err
	}
	if !ok {
		return errs.Newf(errs.Corrupt, "rangestate.apply", fmt.Sprintf("group %d", m.group), "the state has no descriptor of the range")
	}
	if _, err := m.get(appendGroup(m.key[:0], m.group, subClock), &m.clock); err != nil {
		return err
	}
	m.desc, m.bounds = d, boundsOf(d)
	m.loaded = true
	return nil
}

// flush writes what changed in memory.
func (m *Machine) flush() error {
	if m.clockDirty {
		m.key = appendGroup(m.key[:0], m.group, subClock)
		if err := m.put(m.key, &m.clock); err != nil {
			return err
		}
		m.clockDirty = false
	}
	for _, id := range m.dirty {
		c := m.counters[id]
		c.dirty = false
		m.key = appendCounter(m.key[:0], m.group, id.bucket, id.class)
		var err error
		if c.row.SizeVT() == 0 {
			err = m.b.Delete(m.key, nil)
		} else {
			err = m.put(m.key, &c.row)
		}
		if err != nil {
			return err
		}
	}
	m.dirty = m.dirty[:0]
	if err := m.flushOutbox(); err != nil {
		return err
	}
	if len(m.counters) > cacheMax {
		clear(m.counters)
	}
	if len(m.buckets) > cacheMax {
		clear(m.buckets)
	}
	return nil
}

// applyOne applies one entry and answers its encoded result.
func (m *Machine) applyOne(e *cluster.Entry) ([]byte, error) {
	if e.TimeMS > m.clock.TimeMs {
		m.clock.TimeMs = e.TimeMS
		m.clockDirty = true
	}
	var cmd metapb.RangeCommand
	if err := cmd.UnmarshalVT(e.Data); err != nil {
		return m.encode(refuse(errs.InvalidArgument, "malformed command"))
	}
	if cmd.Version == 0 || cmd.Version > CommandVersion {
		return m.encode(refuse(errs.NotImplemented, "unknown command version"))
	}
	if len(cmd.Id) != len(storage.CommandID{}) {
		return m.encode(refuse(errs.InvalidArgument, "malformed command id"))
	}
	m.day, m.requester = cmd.DayMs, cmd.Requester
	out, err := m.dispatch(e, &cmd)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (m *Machine) dispatch(e *cluster.Entry, cmd *metapb.RangeCommand) ([]byte, error) {
	switch op := cmd.Op.(type) {
	case *metapb.RangeCommand_PutObject:
		return m.putObject(cmd, op.PutObject)
	case *metapb.RangeCommand_DeleteObjects:
		return m.deleteObjects(cmd, op.DeleteObjects)
	case *metapb.RangeCommand_Expire:
		return m.expire(cmd, op.Expire)
	case *metapb.RangeCommand_CreateUpload:
		return m.createUpload(cmd, op.CreateUpload)
	case *metapb.RangeCommand_PutPart:
		return m.putPart(cmd, op.PutPart)
	case *metapb.RangeCommand_CompleteUpload:
		return m.completeUpload(cmd, op.CompleteUpload)
	case *metapb.RangeCommand_AbortUpload:
		return m.abortUpload(cmd, op.AbortUpload)
	case *metapb.RangeCommand_UpdateVersion:
		return m.updateVersion(cmd, op.UpdateVersion)
	case *metapb.RangeCommand_RewriteData:
		return m.rewriteData(cmd, op.RewriteData)
	case *metapb.RangeCommand_PutBucket:
		return m.putBucket(cmd, op.PutBucket)
	case *metapb.RangeCommand_FenceBucket:
		return m.fenceBucket(cmd, op.FenceBucket)
	case *metapb.RangeCommand_DropBucket:
		return m.dropBucket(cmd, op.DropBucket)
	}
	var res *metapb.RangeResult
	var err error
	switch op := cmd.Op.(type) {
	case *metapb.RangeCommand_DropGarbage:
		res, err = m.dropGarbage(op.DropGarbage)
	case *metapb.RangeCommand_DropRepair:
		res, err = m.dropRepair(op.DropRepair)
	case *metapb.RangeCommand_ExpandDoomed:
		res, err = m.expandDoomed(op.ExpandDoomed)
	case *metapb.RangeCommand_Sweep:
		res, err = m.sweep(op.Sweep)
	case *metapb.RangeCommand_Touch:
		res, err = m.touch(op.Touch)
	case *metapb.RangeCommand_Tick:
		res = &metapb.RangeResult{Ok: true}
	case *metapb.RangeCommand_Split:
		res, err = m.split(e, op.Split)
	case *metapb.RangeCommand_CheckBounds:
		res, err = m.checkBounds(cmd, op.CheckBounds)
	case *metapb.RangeCommand_JudgeBounds:
		res, err = m.judgeBounds(op.JudgeBounds)
	default:
		res, err = m.dispatchEvents(cmd)
	}
	if err != nil {
		return nil, err
	}
	return m.encode(res)
}

// dispatchEvents is dispatch of the commands on the outbox.
func (m *Machine) dispatchEvents(cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	switch op := cmd.Op.(type) {
	case *metapb.RangeCommand_AckEvents:
		return m.ackEvents(op.AckEvents)
	case *metapb.RangeCommand_HoldEvents:
		return m.holdEvents(op.HoldEvents)
	case *metapb.RangeCommand_TrimEvents:
		return m.trimEvents(op.TrimEvents)
	case *metapb.RangeCommand_FireTimers:
		return m.fireTimers(op.FireTimers)
	case *metapb.RangeCommand_DropDeadEvents:
		return m.dropDeadEvents(op.DropDeadEvents)
	case *metapb.RangeCommand_EventsReady:
		return m.eventsReady(op.EventsReady)
	}
	return refuse(errs.NotImplemented, "unknown command"), nil
}

// refuse is a result of a kind that is not ok.
func refuse(kind errs.Kind, detail string) *metapb.RangeResult {
	return &metapb.RangeResult{Kind: uint32(kind), Detail: detail}
}

// encode stamps a result with range time and encodes it.
func (m *Machine) encode(res *metapb.RangeResult) ([]byte, error) {
	res.TimeMs = m.clock.TimeMs
	return res.MarshalVT()
}

// ---- rows ----

type decoder interface{ UnmarshalVT([]byte) error }

type encoder interface {
	SizeVT() int
	MarshalToSizedBufferVT([]byte) (int, error)
}

// getRow reads the row at key into row; false if there is none.
func getRow(r pebble.Reader, key []byte, row decoder) (bool, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	err = row.UnmarshalVT(v)
	if cerr := closer.Close(); cerr != nil {
		return false, errs.Wrap(errs.DriveFailed, "rangestate.read", "", cerr)
	}
	if err != nil {
		return false, corrupt(key, err)
	}
	return true, nil
}

func corrupt(key []byte, err error) error {
	return errs.Wrap(errs.Corrupt, "rangestate.read", fmt.Sprintf("row %q", key), err)
}

func (m *Machine) get(key []byte, row decoder) (bool, error) { return getRow(m.b, key, row) }

// getRising is get, by the seeker if it is there and can.
func (m *Machine) getRising(s *seeker, key []byte, row decoder) (bool, error) {
	if s.rises(key) {
		return s.get(key, row)
	}
	return m.get(key, row)
}

// put encodes row straight into the batch.
func (m *Machine) put(key []byte, row encoder) error {
	op := m.b.SetDeferred(len(key), row.SizeVT())
	copy(op.Key, key)
	if _, err := row.MarshalToSizedBufferVT(op.Value); err != nil {
		return err
	}
	return op.Finish()
}

func (m *Machine) del(key []byte) error { return m.b.Delete(key, nil) }

// iterate calls fn for every row in [start, end) until it answers false.
// Rows that fn writes or deletes don't show in the iteration.
func (m *Machine) iterate(start, end []byte, fn func(key []byte, value func() ([]byte, error)) (bool, error)) error {
	return iterate(m.b, start, end, fn)
}

func iterate(r pebble.Reader, start, end []byte, fn func(key []byte, value func() ([]byte, error)) (bool, error)) error {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	value := it.ValueAndErr
	for ok := it.First(); ok; ok = it.Next() {
		more, ferr := fn(it.Key(), value)
		if ferr != nil {
			_ = it.Close() // the error of fn says more
			return ferr
		}
		if !more {
			break
		}
	}
	if err := it.Close(); err != nil {
		return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	return nil
}

// ---- clock and counters ----

func (m *Machine) now() int64 { return m.clock.TimeMs }

func (m *Machine) nextSeq() uint64 {
	m.clock.Seq++
	m.clockDirty = true
	return m.clock.Seq
}

// className is the storage class as counters and garbage rows name it.
func className(class string) string {
	if class == "" {
		return string(storage.Standard)
	}
	return class
}

// count gives the counters of a bucket and class to change: they are written with the batch.
func (m *Machine) count(bucket uint64, class string) (*metapb.CounterRow, error) {
	id := counterID{bucket, className(class)}
	c := m.counters[id]
	if c == nil {
		c = &counter{}
		m.key = appendCounter(m.key[:0], m.group, id.bucket, id.class)
		if _, err := m.get(m.key, &c.row); err != nil {
			return nil, err
		}
		m.counters[id] = c
	}
	if !c.dirty {
		c.dirty = true
		m.dirty = append(m.dirty, id)
	}
	return &c.row, nil
}

// ---- buckets and outcomes ----

// bucketRow is the bucket's row in this range, that of a dropped bucket too, or nil. The caller must not change it.
func (m *Machine) bucketRow(bucket uint64) (*metapb.BucketRow, error) {
	if kept := m.buckets[bucket]; kept != nil {
		return kept.row, nil
	}
	start, ok := m.bounds.bucketStart(bucket)
	if !ok {
		return nil, nil
	}
	row := &metapb.BucketRow{}
	m.key = appendRaw(m.key[:0], kindBucket, bucket, start)
	ok, err := m.get(m.key, row)
	if err != nil || !ok {
		return nil, err
	}
	m.buckets[bucket] = &keptBucket{row: row}
	return row, nil
}

// live is the bucket's row if writes may go on, else a refusal (design rule 8).
func (m *Machine) live(bucket uint64) (*metapb.BucketRow, *metapb.RangeResult, error) {
	row, err := m.bucketRow(bucket)
	switch {
	case err != nil:
		return nil, nil, err
	case row == nil || row.Dropped:
		return nil, refuse(errs.NoSuchBucket, ""), nil
	case row.Fenced:
		return nil, refuse(errs.BucketBusy, "the bucket is being deleted"), nil
	}
	return row, nil, nil
}

// enter begins a command on a key. A result that is not nil answers the command
// and nothing must change: it is out of bounds, a repeat, or too late.
func (m *Machine) enter(cmd *metapb.RangeCommand, bucket uint64, key []byte) ([]byte, error) {
	if !contains(&m.bounds, bucket, key) {
		return m.wrongRange(bucket, key)
	}
	old, err := m.outcome(cmd, bucket, key)
	if err != nil || old != nil {
		return old, err
	}
	if m.late(cmd) {
		return m.encode(tooLate())
	}
	return nil, nil
}

func tooLate() *metapb.RangeResult {
	return refuse(errs.TooLate, "the command was issued too long ago, or ahead of the range's time")
}

// late reports whether the command must be refused because an outcome of it may
// have been forgotten, or could not be kept for as long as it may be repeated.
func (m *Machine) late(cmd *metapb.RangeCommand) bool {
	at := cmd.IssuedMs
	return at < m.now()-retentionMS || at > retentionMS && at-retentionMS > m.now()
}

// outcome is the encoded result of the command's first run on the key, or nil.
func (m *Machine) outcome(cmd *metapb.RangeCommand, bucket uint64, key []byte) ([]byte, error) {
	m.key = append(appendRow(m.key[:0], kindOutcome, bucket, key), cmd.Id...)
	var row metapb.OutcomeRow
	ok, err := m.getRising(m.seekers.outcome, m.key, &row)
	if err != nil || !ok || expired(row.AtMs, retentionMS, m.now()) {
		return nil, err
	}
	return row.Result, nil
}

// expired reports whether more than ttl ms have passed since at.
func expired(at, ttl, now int64) bool { return at < now-ttl }

// leave ends a command on a key: the result is kept to answer repeats.
// The row counts from the later of application and issue, so that it outlives
// the time in which late accepts a repeat.
func (m *Machine) leave(cmd *metapb.RangeCommand, bucket uint64, key []byte, res *metapb.RangeResult) ([]byte, error) {
	out, err := m.encode(res)
	if err != nil {
		return nil, err
	}
	m.key = append(appendRow(m.key[:0], kindOutcome, bucket, key), cmd.Id...)
	return out, m.put(m.key, &metapb.OutcomeRow{AtMs: max(m.now(), cmd.IssuedMs), Result: out})
}
