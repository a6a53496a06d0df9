package rangestate

import (
	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage/errs"
)

// TimersMax bounds the timers that one FireTimers names.
const TimersMax = 1000

// setTimer has the restore of a version, which an update has just changed, tell what comes with time. was is the restore that there was before: what of it
// was due and not told yet is told now. Of restores that were asked for while nobody wanted events nothing is told.
func (m *Machine) setTimer(b *metapb.BucketRow, op *metapb.UpdateVersionOp, row *metapb.ObjectRow, was *metapb.Restore, res *metapb.RangeResult) error {
	if b.GetEvents() == nil {
		return nil
	}
	begun := row.Restore != was
	t, err := m.timer(op.Bucket, op.Key, row.Seq)
	if err != nil {
		return err
	}
	if t != nil && begun {
		if err := m.due(b, op.Bucket, op.Key, row, was, t, res); err != nil {
			return err
		}
	}
	if t == nil || begun {
		t = &metapb.EventTimerRow{Format: 1, VersionSeq: row.Seq}
	}
	if begun {
		t.ReadyMs = row.Restore.ReadyMs
	}
	m.follow(t, row.Restore)
	m.key = appendSeqRow(m.key[:0], kindTimer, op.Bucket, op.Key, row.Seq)
	return m.put(m.key, t)
}

// timer is that of a version, or nil.
func (m *Machine) timer(bucket uint64, key []byte, seq uint64) (*metapb.EventTimerRow, error) {
	t := &metapb.EventTimerRow{}
	m.key = appendSeqRow(m.key[:0], kindTimer, bucket, key, seq)
	ok, err := m.get(m.key, t)
	if err != nil || !ok {
		return nil, err
	}
	return t, nil
}

// follow gives a timer the times of a restore. That one is ready is told once.
func (m *Machine) follow(t *metapb.EventTimerRow, r *metapb.Restore) {
	if t.ReadyMs != 0 || r.ReadyMs > m.now() {
		t.ReadyMs = r.ReadyMs
	}
	t.ExpiresMs = r.ExpiresMs
}

// due tells what is due of a timer, and takes it out. r is the restore that it is of; nil: one that has ended since.
func (m *Machine) due(b *metapb.BucketRow, bucket uint64, key []byte, row *metapb.ObjectRow, r *metapb.Restore, t *metapb.EventTimerRow, res *metapb.RangeResult) error {
	told := func(kind notification.Type, expiryMS int64) error {
		e := m.wanted(b, kind, bucket, key)
		e.class, e.expiryMS = string(classOf(row)), expiryMS
		return m.tellVersion(&e, b, bucket, key, row, res)
	}
	if t.ReadyMs != 0 && t.ReadyMs <= m.now() {
		t.ReadyMs = 0
		if err := told(notification.ObjectRestoreCompleted, r.GetExpiresMs()); err != nil {
			return err
		}
	}
	if r == nil {
		t.ReadyMs, t.ExpiresMs = 0, 0
	}
	if t.ExpiresMs != 0 && t.ExpiresMs <= m.now() {
		t.ExpiresMs = 0
		return told(notification.ObjectRestoreDelete, 0)
	}
	return nil
}

// endTimer forgets the timer of a version that goes, if it has one: what is due by then is told first.
func (m *Machine) endTimer(bucket uint64, key []byte, row *metapb.ObjectRow) error {
	t, err := m.timer(bucket, key, row.Seq)
	if err != nil || t == nil {
		return err
	}
	id := &metapb.EventTimerID{Bucket: bucket, Key: key, VersionSeq: row.Seq}
	if err := m.runTimer(id, t, &metapb.RangeResult{}); err != nil {
		return err
	}
	m.key = appendSeqRow(m.key[:0], kindTimer, bucket, key, row.Seq)
	return m.del(m.key)
}

// fireTimers tells what is due of timers. What is named and not there, not due, or another range's is passed over, and so is a target that
// has no room: time does not wait for it. It needs no outcome: what was told is not due any more.
func (m *Machine) fireTimers(op *metapb.FireTimersOp) (*metapb.RangeResult, error) {
	if len(op.GetIds()) > TimersMax {
		return refuse(errs.InvalidArgument, "too many timers"), nil
	}
	res := &metapb.RangeResult{Ok: true}
	for _, id := range op.GetIds() {
		if checkKey(id.GetBucket(), id.GetKey()) != "" || !contains(&m.bounds, id.Bucket, id.Key) {
			continue
		}
		if err := m.fireTimer(id, res); err != nil {
			return nil, err
		}
	}
	return res, nil
}

func (m *Machine) fireTimer(id *metapb.EventTimerID, res *metapb.RangeResult) error {
	t, err := m.timer(id.Bucket, id.Key, id.VersionSeq)
	if err != nil || t == nil {
		return err
	}
	ready, expires := t.ReadyMs, t.ExpiresMs
	if err := m.runTimer(id, t, res); err != nil {
		return err
	}
	m.key = appendSeqRow(m.key[:0], kindTimer, id.Bucket, id.Key, id.VersionSeq)
	switch {
	case t.ReadyMs == 0 && t.ExpiresMs == 0:
		return m.del(m.key)
	case t.ReadyMs != ready || t.ExpiresMs != expires:
		return m.put(m.key, t)
	}
	return nil
}

// runTimer tells what is due of t. Nothing is left of one whose version is gone, or of whose bucket nobody wants events.
func (m *Machine) runTimer(id *metapb.EventTimerID, t *metapb.EventTimerRow, res *metapb.RangeResult) error {
	b, err := m.bucketRow(id.Bucket)
	if err != nil {
		return err
	}
	row, _, err := m.bySeq(id.Bucket, id.Key, id.VersionSeq)
	if err != nil {
		return err
	}
	if b.GetEvents() == nil || row == nil {
		t.ReadyMs, t.ExpiresMs = 0, 0
		return nil
	}
	if row.Restore != nil { // it may have been changed while nobody wanted events
		m.follow(t, row.Restore)
	}
	return m.due(b, id.Bucket, id.Key, row, row.Restore, t, res)
}
