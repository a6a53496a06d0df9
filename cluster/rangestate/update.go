package rangestate

import (
	"cairn/proto/metapb"
	"cairn/s3api/notification"
	"cairn/storage"
	"cairn/storage/errs"
)

// S3's retention modes.
const (
	governance = "GOVERNANCE"
	compliance = "COMPLIANCE"
)

// updateVersion changes one thing about a version in place. The row keeps all else: its data and that data's generation (so that
// it never disturbs a rewrite), its sequence and its times.
func (m *Machine) updateVersion(cmd *metapb.RangeCommand, op *metapb.UpdateVersionOp) ([]byte, error) {
	detail := checkKey(op.GetBucket(), op.GetKey())
	if detail == "" {
		detail = checkUpdate(op)
	}
	if detail != "" {
		return m.encode(refuse(errs.InvalidArgument, detail))
	}
	if out, err := m.enter(cmd, op.Bucket, op.Key); out != nil || err != nil {
		return out, err
	}
	res, err := m.tryUpdate(op)
	if err != nil {
		return nil, err
	}
	return m.leave(cmd, op.Bucket, op.Key, res)
}

func checkUpdate(op *metapb.UpdateVersionOp) string {
	switch c := op.Change.(type) {
	case *metapb.UpdateVersionOp_Tags, *metapb.UpdateVersionOp_LegalHold:
		return ""
	case *metapb.UpdateVersionOp_Retention:
		switch r := c.Retention; r.GetMode() {
		case "":
			if r.GetUntilMs() != 0 {
				return "a retention without a mode has no end"
			}
			return ""
		case governance, compliance:
			if r.UntilMs <= 0 {
				return "a retention has an end"
			}
			return ""
		}
		return "unknown retention mode"
	case *metapb.UpdateVersionOp_Restore:
		return checkRestore(c.Restore)
	}
	return "an update names a change"
}

func (m *Machine) tryUpdate(op *metapb.UpdateVersionOp) (*metapb.RangeResult, error) {
	b, refused, err := m.live(op.Bucket)
	if refused != nil || err != nil {
		return refused, err
	}
	switch op.Change.(type) {
	case *metapb.UpdateVersionOp_LegalHold, *metapb.UpdateVersionOp_Retention:
		if !b.ObjectLock {
			return refuse(errs.InvalidRequest, noObjectLock), nil
		}
	}
	row, isCurrent, err := m.updated(b, op)
	switch {
	case err != nil:
		return nil, err
	case row == nil && op.HasVersion:
		return refuse(errs.NoSuchVersion, ""), nil
	case row == nil:
		return refuse(errs.NoSuchKey, ""), nil
	}
	res := &metapb.RangeResult{ModifiedMs: row.ModifiedMs}
	nameVersion(res, b, row)
	if row.DeleteMarker {
		res.Ok, res.Kind = false, uint32(errs.IsDeleteMarker)
		return res, nil
	}
	restore := row.Restore
	if res = m.change(op, row, res); !res.Ok {
		return res, nil
	}
	begun := row.Restore != restore
	e, refused, err := m.askUpdate(b, op, row, begun)
	if refused != nil || err != nil {
		return refused, err
	}
	if begun {
		c, err := m.count(op.Bucket, row.GetAttributes().GetStorageClass())
		if err != nil {
			return nil, err
		}
		c.RestoredBytes += row.Size
	}
	if op.GetRestore() != nil {
		if err := m.setTimer(b, op, row, restore, res); err != nil {
			return nil, err
		}
	}
	if err := m.tell(&e, op.Bucket, op.Key, row, res); err != nil {
		return nil, err
	}
	m.key = appendRaw(m.key[:0], kindCurrent, op.Bucket, op.Key)
	if !isCurrent {
		m.key = appendSeqRow(m.key[:0], kindVersion, op.Bucket, op.Key, row.Seq)
	}
	return res, m.put(m.key, row)
}

// askUpdate is ask for an update. Locks make no event, and of restores only those that are begun.
func (m *Machine) askUpdate(b *metapb.BucketRow, op *metapb.UpdateVersionOp, row *metapb.ObjectRow, begun bool) (event, *metapb.RangeResult, error) {
	if op.GetTags() != nil {
		kind := notification.ObjectTaggingPut
		if op.TagsDeleted {
			kind = notification.ObjectTaggingDelete
		}
		return m.ask(b, kind, op.Bucket, op.Key)
	}
	if !begun {
		return event{}, nil, nil
	}
	e, refused, err := m.ask(b, notification.ObjectRestorePost, op.Bucket, op.Key)
	e.class = string(classOf(row))
	return e, refused, err
}

// change makes the change in row, which is not a delete marker; the result is res, or a refusal with row as it was.
func (m *Machine) change(op *metapb.UpdateVersionOp, row *metapb.ObjectRow, res *metapb.RangeResult) *metapb.RangeResult {
	if c, ok := op.Change.(*metapb.UpdateVersionOp_Restore); ok {
		return m.restore(res, row, c.Restore)
	}
	if row.Attributes == nil {
		row.Attributes = &metapb.Attributes{}
	}
	switch a := row.Attributes; c := op.Change.(type) {
	case *metapb.UpdateVersionOp_Tags:
		a.Tags = c.Tags.GetTags()
	case *metapb.UpdateVersionOp_LegalHold:
		a.LegalHold = c.LegalHold
	case *metapb.UpdateVersionOp_Retention:
		if m.retained(a, c.Retention) {
			return refuse(errs.ObjectLocked, "the retention that the version has forbids this one")
		}
		a.LockMode, a.LockUntilMs = c.Retention.GetMode(), c.Retention.GetUntilMs()
	}
	return res
}

// updated is the version that op names, or nil, and whether it is the current one. Without a version it is the newest, which
// may be a delete marker.
func (m *Machine) updated(b *metapb.BucketRow, op *metapb.UpdateVersionOp) (*metapb.ObjectRow, bool, error) {
	if op.HasVersion {
		return m.findVersion(op.Bucket, op.Key, storage.VersionID{Seq: storage.Seq(op.VersionSeq), Nonce: op.VersionNonce})
	}
	row, err := m.current(op.Bucket, op.Key)
	if err != nil || row != nil || b.Versioning == metapb.Versioning_VERSIONING_NEVER {
		return row, true, err
	}
	row, err = newestBelow(m.b, op.Bucket, op.Key, 0)
	return row, false, err
}

// retained reports whether the retention of a version forbids that it becomes r: while it lasts it may be
// made longer; all else needs a bypass in GOVERNANCE, and is never done in COMPLIANCE.
func (m *Machine) retained(a *metapb.Attributes, r *metapb.Retention) bool {
	if a.LockMode == "" || a.LockUntilMs <= m.now() {
		return false
	}
	if r.GetMode() == a.LockMode && r.GetUntilMs() >= a.LockUntilMs {
		return false
	}
	return !(a.LockMode == governance && r.GetBypassGovernance())
}
