package rangestate

import (
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Retrieval tiers, as S3 names them.
const (
	TierExpedited = "Expedited"
	TierStandard  = "Standard"
	TierBulk      = "Bulk"
)

// tierRank orders the tiers from the fastest on, from 1; 0 is none of them.
func tierRank(tier string) int {
	switch tier {
	case TierExpedited:
		return 1
	case TierStandard:
		return 2
	case TierBulk:
		return 3
	}
	return 0
}

// Archived reports whether a version is of a class, or of a tier of INTELLIGENT_TIERING, whose bytes are read only after a restore.
func Archived(row *metapb.ObjectRow) bool {
	c := classOf(row)
	return !row.GetDeleteMarker() && (c == storage.Glacier || c == storage.DeepArchive || c == storage.IntelligentTiering && archiveTier(row.GetTiering().GetTier()))
}

// Readable reports whether the bytes of a version may be read at nowMS (unix ms): it is not archived, or restored then.
func Readable(row *metapb.ObjectRow, nowMS int64) bool {
	r := row.GetRestore()
	return !Archived(row) || r != nil && r.ReadyMs <= nowMS && (nowMS < r.ExpiresMs || classOf(row) == storage.IntelligentTiering)
}

// checkRestore judges what is asked for by itself. One without an end is of INTELLIGENT_TIERING.
func checkRestore(r *metapb.Restore) string {
	switch {
	case r.GetReadyMs() <= 0 || r.GetExpiresMs() != 0 && r.GetExpiresMs() <= r.GetReadyMs():
		return "a restore is ready before it expires"
	case r.GetRequestedMs() != 0:
		return "the range says when a restore was asked for"
	case tierRank(r.GetTier()) == 0:
		return "unknown retrieval tier"
	}
	return ""
}

// restore changes the restore of a version as asked, and says so in res: what can be read stays so, until another time; of what is under
// way only the wait becomes shorter; else it is begun. Another result than res is a refusal.
func (m *Machine) restore(res *metapb.RangeResult, row *metapb.ObjectRow, asked *metapb.Restore) *metapb.RangeResult {
	now, r := m.now(), row.Restore
	tiered := classOf(row) == storage.IntelligentTiering
	switch {
	case !Archived(row) || tiered && Readable(row, now):
		no := refuse(errs.InvalidObjectState, "the version is not of an archive class")
		no.StorageClass = string(classOf(row))
		return no
	case tiered != (asked.ExpiresMs == 0):
		return refuse(errs.InvalidArgument, "a restore has an end in the archive classes, and none in INTELLIGENT_TIERING")
	case tiered && r == nil:
		row.Restore = &metapb.Restore{RequestedMs: now, ReadyMs: asked.ReadyMs, Tier: asked.Tier}
		accessed(row, asked.ReadyMs)
	case tiered && tierRank(asked.Tier) < tierRank(r.Tier) && asked.ReadyMs < r.ReadyMs:
		r.Tier, r.ReadyMs = asked.Tier, asked.ReadyMs
	case tiered:
		return slower()
	case r == nil || r.ExpiresMs <= now:
		row.Restore = &metapb.Restore{RequestedMs: now, ReadyMs: asked.ReadyMs, ExpiresMs: asked.ExpiresMs, Tier: asked.Tier}
	case r.ReadyMs <= now:
		r.ExpiresMs = asked.ExpiresMs
		res.Restored = true
	case tierRank(asked.Tier) < tierRank(r.Tier) && asked.ReadyMs < r.ReadyMs:
		r.Tier, r.ReadyMs = asked.Tier, asked.ReadyMs
	default:
		return slower()
	}
	return res
}

func slower() *metapb.RangeResult {
	return refuse(errs.RestoreInProgress, "a restore of the version is under way, and this one would not be faster")
}
