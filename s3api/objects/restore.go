package objects

import (
	"cmp"
	"context"
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/lifecycle"
	"cairn/storage"
	"cairn/storage/errs"
)

// restoreDaysMax bounds the days of a restore: a hundred years.
const restoreDaysMax = 36500

// archived is the error of an operation that the class or tier of a version forbids.
func archived(op string, key storage.Key, row *metapb.ObjectRow, detail string) error {
	class := cmp.Or(storage.StorageClass(row.GetAttributes().GetStorageClass()), storage.Standard)
	e := &ArchivedError{Class: class, Err: errs.New(errs.InvalidObjectState, op, string(key), detail)}
	if rangestate.Archived(row) {
		e.Tier = row.GetTiering().GetTier()
	}
	return e
}

// RestoreTime is how long S3 takes at most to restore an object of an archive class by a tier of that class. The archive tiers of
// INTELLIGENT_TIERING take what the classes take whose drives they lie on.
func RestoreTime(class storage.StorageClass, tier string) time.Duration {
	deep := class == storage.DeepArchive
	switch {
	case tier == rangestate.TierExpedited:
		return 5 * time.Minute
	case tier == rangestate.TierStandard && !deep:
		return 5 * time.Hour
	case tier == rangestate.TierStandard, !deep:
		return 12 * time.Hour
	}
	return 48 * time.Hour
}

// RestoreObject makes an archived version readable for some days, once as much time has passed as the tier takes. One that can be
// read already only gets a new expiry; one that is being restored comes sooner by a faster tier, and its expiry stays;
// else RestoreInProgress. One of INTELLIGENT_TIERING becomes readable for good. An *ArchivedError: the version is not archived. A *DaysError: days
// below 1 or above 36,500, or any for INTELLIGENT_TIERING. InvalidArgument: a tier that the class does not have.
func (s *Store) RestoreObject(ctx context.Context, acct Account, v VersionRef, r RestoreRequest) (out RestoreResult, err error) {
	err = s.withBucket(ctx, acct, v.Bucket, func(b Bucket) error {
		asked, err := s.planRestore(ctx, b, v, r)
		if err != nil {
			return err
		}
		res, err := s.updateIn(ctx, acct, b, v, &metapb.UpdateVersionOp{Change: &metapb.UpdateVersionOp_Restore{Restore: asked}})
		if err != nil {
			return err
		}
		out = RestoreResult{AlreadyRestored: res.Restored, VersionID: resultVersion(res)}
		return nil
	})
	return out, err
}

// planRestore reads the version, whose class says how long its restore takes, and answers what to ask its range for. If it
// becomes another one before that is done, the range only asks whether that is archived, too.
func (s *Store) planRestore(ctx context.Context, b Bucket, v VersionRef, r RestoreRequest) (*metapb.Restore, error) {
	var row *metapb.ObjectRow
	err := s.viewOf(ctx, b, v.Key, func(view rangestate.Reader) (err error) {
		row, _, err = s.findRow(view, b, v.Key, v.VersionID)
		return err
	})
	if err != nil {
		return nil, err
	}
	now := s.cfg.Meta.NowMS()
	class := storage.StorageClass(row.GetAttributes().GetStorageClass())
	tiered := class == storage.IntelligentTiering
	switch {
	case tiered && r.Days != 0:
		return nil, &DaysError{errs.New(errs.InvalidArgument, "restore", string(v.Key), "The restore of an INTELLIGENT_TIERING object does not expire: 'Days' must not be specified.")}
	case !rangestate.Archived(row) || tiered && rangestate.Readable(row, now):
		return nil, archived("restore", v.Key, row, "the version is not archived")
	case !tiered && r.Days == 0:
		return nil, &DaysError{errs.New(errs.InvalidArgument, "restore", string(v.Key), "'Days' is required to restore an object of this class.")}
	case !tiered && (r.Days < 1 || r.Days > restoreDaysMax):
		return nil, &DaysError{errs.Newf(errs.InvalidArgument, "restore", string(v.Key), "'Days' must be a positive integer, at most %d.", restoreDaysMax)}
	}
	class = lifecycle.PlaceOf(class, row.GetTiering().GetTier())
	switch r.Tier {
	case rangestate.TierStandard, rangestate.TierBulk:
	case rangestate.TierExpedited:
		if class == storage.DeepArchive {
			return nil, errs.New(errs.InvalidArgument, "restore", string(v.Key), "deep archives have no retrieval tier Expedited")
		}
	default:
		return nil, errs.Newf(errs.InvalidArgument, "restore", string(v.Key), "no such retrieval tier: %.20q", r.Tier)
	}
	days := int64(r.Days) * s.cfg.Day.Milliseconds()
	asked := &metapb.Restore{ReadyMs: now + s.cfg.RestoreTimes(class, r.Tier).Milliseconds(), Tier: r.Tier}
	if tiered {
		return asked, nil
	}
	// As S3 counts, days begin with the request. A slow tier could outlast few of them: then they begin when it is ready.
	if asked.ExpiresMs = s.dayAfter(now + days); asked.ExpiresMs <= asked.ReadyMs {
		asked.ExpiresMs = s.dayAfter(asked.ReadyMs + days)
	}
	return asked, nil
}

// dayAfter is the first begin of a day (UTC) that is not before ms, both unix ms.
func (s *Store) dayAfter(ms int64) int64 {
	day := s.cfg.Day.Milliseconds()
	return (ms + day - 1) / day * day
}
