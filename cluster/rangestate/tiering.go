package rangestate

import (
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// TouchEntriesMax bounds the entries of one Touch.
const TouchEntriesMax = 1000

// TierOf is the tier of INTELLIGENT_TIERING that a version counts as at nowMS (unix ms): one that is restored is FREQUENT, wherever its
// bytes lie yet. That of other classes is FREQUENT, too.
func TierOf(row *metapb.ObjectRow, nowMS int64) metapb.Tiering_Tier {
	tier := row.GetTiering().GetTier()
	if r := row.GetRestore(); archiveTier(tier) && r != nil && r.ReadyMs <= nowMS {
		return metapb.Tiering_FREQUENT
	}
	return tier
}

// archiveTier reports whether bytes in a tier are read only after a restore.
func archiveTier(tier metapb.Tiering_Tier) bool {
	return tier == metapb.Tiering_ARCHIVE || tier == metapb.Tiering_DEEP_ARCHIVE
}

// LastAccess is when a version was last read as far as is known, unix ms: when it was made, if never since.
func LastAccess(row *metapb.ObjectRow) int64 {
	if at := row.GetTiering().GetAccessedMs(); at != 0 {
		return at
	}
	return row.GetModifiedMs()
}

// accessed raises the last access of a version.
func accessed(row *metapb.ObjectRow, atMS int64) {
	if row.Tiering == nil {
		row.Tiering = &metapb.Tiering{}
	}
	row.Tiering.AccessedMs = max(row.Tiering.AccessedMs, atMS)
}

// tierConflict reports whether a change of the tier was decided about something else than the row.
func tierConflict(row *metapb.ObjectRow, c *metapb.ChangeTier) bool {
	return row.DeleteMarker || classOf(row) != storage.IntelligentTiering || row.GetTiering().GetAccessedMs() != c.IfAccessedMs
}

// retier puts a version, whose row the caller stores, in a tier. A restore ends with it: the version was on its way to FREQUENT.
func retier(row *metapb.ObjectRow, to metapb.Tiering_Tier) {
	if row.Tiering == nil {
		row.Tiering = &metapb.Tiering{}
	}
	row.Tiering.Tier = to
	row.Restore = nil
}

// touch raises the last access of versions of INTELLIGENT_TIERING. What is not there any more, or is of another class by now, is passed over: an
// access is no reason to fail.
func (m *Machine) touch(op *metapb.TouchOp) (*metapb.RangeResult, error) {
	if n := len(op.GetEntries()); n == 0 || n > TouchEntriesMax {
		return refuse(errs.InvalidArgument, "a touch has 1 to 1000 entries"), nil
	}
	for _, e := range op.Entries {
		if detail := checkKey(e.GetBucket(), e.GetKey()); detail != "" {
			return refuse(errs.InvalidArgument, detail), nil
		}
		if e.VersionSeq == 0 || e.AccessedMs <= 0 {
			return refuse(errs.InvalidArgument, "a touch names a version by its sequence, and a time"), nil
		}
	}
	res := &metapb.RangeResult{Ok: true}
	for _, e := range op.Entries {
		if !contains(&m.bounds, e.Bucket, e.Key) {
			wrong, err := m.wrongRangeResult(e.Bucket, e.Key)
			if err != nil {
				return nil, err
			}
			res.Ranges = wrong.Ranges // of one of them; the others are sent on one after the other
			res.Entries = append(res.Entries, refuse(errs.WrongRange, ""))
			continue
		}
		if err := m.touchEntry(e); err != nil {
			return nil, err
		}
		res.Entries = append(res.Entries, &metapb.RangeResult{Ok: true})
	}
	return res, nil
}

func (m *Machine) touchEntry(e *metapb.TouchEntry) error {
	if _, refused, err := m.live(e.Bucket); refused != nil || err != nil {
		return err
	}
	row, isCurrent, err := m.bySeq(e.Bucket, e.Key, e.VersionSeq)
	if err != nil || row == nil || row.Nonce != e.VersionNonce || row.DeleteMarker || classOf(row) != storage.IntelligentTiering {
		return err
	}
	at := min(e.AccessedMs, m.now()) // a gateway's clock may be ahead
	if at <= LastAccess(row) {
		return nil
	}
	accessed(row, at)
	m.key = appendRaw(m.key[:0], kindCurrent, e.Bucket, e.Key)
	if !isCurrent {
		m.key = appendSeqRow(m.key[:0], kindVersion, e.Bucket, e.Key, row.Seq)
	}
	return m.put(m.key, row)
}

// bySeq is the version with the sequence, or nil, and whether it is the current one.
func (m *Machine) bySeq(bucket uint64, key []byte, seq uint64) (row *metapb.ObjectRow, isCurrent bool, err error) {
	if row, err = m.current(bucket, key); err != nil || row != nil && row.Seq == seq {
		return row, true, err
	}
	row, err = m.version(bucket, key, seq)
	return row, false, err
}
