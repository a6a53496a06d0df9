package objects

import (
	"cmp"
	"context"
	"time"

	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

func bucketFromRow(r *metapb.SysBucket) Bucket {
	b := Bucket{
		Name: r.Name, ID: storage.BucketID(r.Id), Owner: r.Owner, Created: time.UnixMilli(r.CreatedMs).UTC(), Region: r.Region,
		Versioning: r.Versioning, Tags: r.Tags, OwnershipControls: !r.NoOwnershipControls, Lifecycle: r.Lifecycle, Tiering: r.Tiering, Generation: r.Generation,
		Notification: r.Notification,
		Lock:         LockConfig{Enabled: r.ObjectLock, Mode: r.GetDefaultLock().GetMode(), Days: r.GetDefaultLock().GetDays(), Years: r.GetDefaultLock().GetYears()},
	}
	if p := r.PublicAccessBlock; p != nil {
		b.PublicAccessBlock = &PublicAccessBlock{
			BlockPublicAcls: p.BlockPublicAcls, IgnorePublicAcls: p.IgnorePublicAcls, BlockPublicPolicy: p.BlockPublicPolicy, RestrictPublicBuckets: p.RestrictPublicBuckets,
		}
	}
	return b
}

// lookupBucket reads the bucket's row of the system group as it was acknowledged last. A
// bucket being deleted still counts: its ranges decide whether it takes writes.
func (s *Store) lookupBucket(ctx context.Context, name string) (Bucket, error) {
	var row *metapb.SysBucket
	err := s.cfg.Meta.Configuration(ctx, func(r sysstate.Reader) (err error) {
		row, err = r.BucketByName(name)
		return err
	})
	if err != nil {
		return Bucket{}, err
	}
	if row.State == metapb.BucketState_BUCKET_CREATING {
		return Bucket{}, errs.New(errs.NoSuchBucket, "bucket", name, "")
	}
	return bucketFromRow(row), nil
}

// HeadBucket answers the bucket if it exists and is acct's.
func (s *Store) HeadBucket(ctx context.Context, acct Account, name string) (Bucket, error) {
	b, err := s.lookupBucket(ctx, name)
	if err != nil {
		return b, err
	}
	if b.Owner != acct.ID {
		return b, errs.New(errs.AccessDenied, "bucket", name, "the bucket belongs to another account")
	}
	return b, nil
}

// ListBuckets lists acct's buckets by name, those after the given name, at most max.
func (s *Store) ListBuckets(ctx context.Context, acct Account, prefix, after string, max int) (out []Bucket, truncated bool, err error) {
	var rows []*metapb.SysBucket
	err = s.cfg.Meta.Configuration(ctx, func(r sysstate.Reader) (err error) {
		rows, truncated, err = r.ListBuckets(acct.ID, prefix, after, max)
		return err
	})
	for _, row := range rows {
		out = append(out, bucketFromRow(row))
	}
	return out, truncated, err
}

// CreateBucket creates the bucket in three steps, each repeatable: the name is
// taken in the system group, every range that can hold its keys gets its row,
// and only then the bucket is active. FinishBuckets completes what a crash left between.
func (s *Store) CreateBucket(ctx context.Context, acct Account, name string, opt BucketOptions) error {
	unlock, err := s.lifecycle.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	res, err := s.cfg.Meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_CreateBucket{CreateBucket: &metapb.CreateBucketOp{
		Bucket: &metapb.SysBucket{Format: 1, Name: name, Owner: acct.ID, Region: opt.Region, ObjectLock: opt.ObjectLock},
	}}})
	if errs.Is(err, errs.BucketBusy) {
		return s.createInterrupted(ctx, acct, name, opt, err)
	}
	if err != nil {
		return err
	}
	switch res.Bucket.State { // a repeat may find that another gateway went on with it
	case metapb.BucketState_BUCKET_ACTIVE:
		return nil
	case metapb.BucketState_BUCKET_DELETING:
		return errs.New(errs.BucketBusy, "bucket", name, "")
	}
	return s.finishCreate(ctx, res.Bucket)
}

// createInterrupted is CreateBucket of a name whose creation or deletion was
// interrupted: an own creation is completed, and was the first one if it had other options; else it is busy. The caller
// holds the name's lock.
func (s *Store) createInterrupted(ctx context.Context, acct Account, name string, opt BucketOptions, busy error) error {
	var row *metapb.SysBucket
	err := s.cfg.Meta.System(ctx, func(r sysstate.Reader) (err error) {
		row, err = r.BucketByName(name)
		return err
	})
	if err != nil || row.State != metapb.BucketState_BUCKET_CREATING || row.Owner != acct.ID {
		return busy
	}
	err = s.finishCreate(ctx, row)
	if err == nil && (row.ObjectLock != opt.ObjectLock || row.Region != opt.Region) {
		err = errs.New(errs.BucketAlreadyOwned, "bucket", name, "")
	}
	return err
}

func (s *Store) finishCreate(ctx context.Context, row *metapb.SysBucket) error {
	err := s.putBucketRows(ctx, row, row.Generation)
	if err == nil {
		err = s.activate(ctx, row)
	}
	switch {
	case err == nil:
		s.buckets.put(bucketFromRow(row))
	case errs.Is(err, errs.NoSuchBucket):
		return errs.New(errs.BucketBusy, "bucket", row.Name, "another gateway created the bucket, and it was deleted since")
	}
	return err
}

// activate ends the state that the bucket is in by row and makes it active, unless another gateway did.
func (s *Store) activate(ctx context.Context, row *metapb.SysBucket) error {
	_, err := s.setBucketState(ctx, &metapb.SetBucketStateOp{Bucket: row.Id, From: row.State, To: metapb.BucketState_BUCKET_ACTIVE, IfGeneration: row.Generation})
	if errs.Is(err, errs.Conflict) && s.isActive(ctx, row.Id) {
		err = nil
	}
	return err
}

func (s *Store) isActive(ctx context.Context, id uint64) bool {
	var row *metapb.SysBucket
	err := s.cfg.Meta.System(ctx, func(r sysstate.Reader) (err error) {
		row, err = r.BucketByID(storage.BucketID(id))
		return err
	})
	return err == nil && row.State == metapb.BucketState_BUCKET_ACTIVE
}

// pendingBucket is a bucket in one state of its creation, deletion or change.
type pendingBucket struct{ id, generation uint64 }

// events is what the ranges of a bucket need to write its events; nil if nobody wants any. It is read afresh: answers of commands leave it out. What is
// newer than the decision that row is of comes with a decision of its own, too.
func (s *Store) events(ctx context.Context, row *metapb.SysBucket) (*metapb.BucketEvents, error) {
	if row.State == metapb.BucketState_BUCKET_CREATING {
		return nil, nil
	}
	var now *metapb.SysBucket
	err := s.cfg.Meta.System(ctx, func(r sysstate.Reader) (err error) {
		now, err = r.BucketByID(storage.BucketID(row.Id))
		return err
	})
	if err != nil || now.Notification == nil {
		return nil, err
	}
	return &metapb.BucketEvents{Name: now.Name, Owner: now.Owner, Region: cmp.Or(now.Region, s.cfg.Region), Config: now.Notification}, nil
}

// putBucketRows writes the bucket's row in every range that can hold its keys, which also lifts fences of lower generations.
func (s *Store) putBucketRows(ctx context.Context, row *metapb.SysBucket, generation uint64) error {
	events, err := s.events(ctx, row)
	if err != nil {
		return err
	}
	return s.cfg.Meta.EachRange(ctx, storage.BucketID(row.Id), func(from []byte) *metapb.RangeCommand {
		return &metapb.RangeCommand{Op: &metapb.RangeCommand_PutBucket{PutBucket: &metapb.PutBucketOp{
			From: from,
			Row: &metapb.BucketRow{
				Format: 1, Id: row.Id, Generation: generation, Versioning: row.Versioning, ObjectLock: row.ObjectLock,
				DefaultLockMode: row.GetDefaultLock().GetMode(), DefaultLockDays: row.GetDefaultLock().GetDays(), DefaultLockYears: row.GetDefaultLock().GetYears(),
				Events: events,
			},
		}}}
	}, func(_ *metapb.RangeResult, err error) (bool, error) { return true, err })
}

// setBucketState answers the bucket as it is then.
func (s *Store) setBucketState(ctx context.Context, op *metapb.SetBucketStateOp) (*metapb.SysBucket, error) {
	res, err := s.cfg.Meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_SetBucketState{SetBucketState: op}})
	return res.GetBucket(), err
}

// PutBucketVersioning enables or suspends versioning.
func (s *Store) PutBucketVersioning(ctx context.Context, acct Account, name string, enabled bool) error {
	v := metapb.Versioning_VERSIONING_SUSPENDED
	if enabled {
		v = metapb.Versioning_VERSIONING_ENABLED
	}
	return s.configure(ctx, acct, name, &metapb.SetBucketConfigOp{Versioning: v})
}

// PutBucketLock sets the default retention. A bucket without object lock has it from then on.
func (s *Store) PutBucketLock(ctx context.Context, acct Account, name string, cfg LockConfig) error {
	return s.configure(ctx, acct, name, &metapb.SetBucketConfigOp{Lock: &metapb.BucketLock{Mode: cfg.Mode, Days: cfg.Days, Years: cfg.Years}})
}

// PutBucketTags replaces the bucket's tags.
func (s *Store) PutBucketTags(ctx context.Context, acct Account, name string, tags []*metapb.KV) error {
	return s.configure(ctx, acct, name, &metapb.SetBucketConfigOp{Tags: &metapb.Tags{Tags: tags}})
}

// PutBucketPublicAccessBlock replaces the bucket's public access block; nil: none.
func (s *Store) PutBucketPublicAccessBlock(ctx context.Context, acct Account, name string, p *PublicAccessBlock) error {
	op := &metapb.SetPublicAccessBlock{}
	if p != nil {
		op.Block = &metapb.PublicAccessBlock{
			BlockPublicAcls: p.BlockPublicAcls, IgnorePublicAcls: p.IgnorePublicAcls, BlockPublicPolicy: p.BlockPublicPolicy, RestrictPublicBuckets: p.RestrictPublicBuckets,
		}
	}
	return s.configure(ctx, acct, name, &metapb.SetBucketConfigOp{PublicAccessBlock: op})
}

// PutBucketOwnershipControls sets whether the bucket has the ownership controls that describe it.
func (s *Store) PutBucketOwnershipControls(ctx context.Context, acct Account, name string, there bool) error {
	return s.configure(ctx, acct, name, &metapb.SetBucketConfigOp{OwnershipControls: &metapb.SetOwnershipControls{Deleted: !there}})
}

// PutBucketLifecycle replaces the bucket's lifecycle rules, which the caller has checked; nil removes them. What was decided
// by the rules before, and is not carried out when it returns, never will be.
func (s *Store) PutBucketLifecycle(ctx context.Context, acct Account, bucket string, cfg *metapb.LifecycleConfig) error {
	return s.configure(ctx, acct, bucket, &metapb.SetBucketConfigOp{Lifecycle: &metapb.SetLifecycle{Config: cfg}})
}

// PutBucketNotification replaces the bucket's notification configuration, which the caller has checked; nil removes it. What happens to
// objects from its return on makes events by it, and by no other. NotFound, with the ARN as its detail: it names a target that does not exist.
func (s *Store) PutBucketNotification(ctx context.Context, acct Account, bucket string, cfg *metapb.NotificationConfig) error {
	return s.configure(ctx, acct, bucket, &metapb.SetBucketConfigOp{Notification: &metapb.SetNotification{Config: cfg}})
}

// PutBucketTiering puts a tiering configuration, which the caller has checked, in the place of that with its id. EntityTooLarge: the bucket has as
// many as it can have.
func (s *Store) PutBucketTiering(ctx context.Context, acct Account, bucket string, cfg *metapb.TieringConfig) error {
	return s.configure(ctx, acct, bucket, &metapb.SetBucketConfigOp{Tiering: &metapb.SetTiering{Put: cfg}})
}

// DeleteBucketTiering removes the tiering configuration of an id. NotFound: there is none.
func (s *Store) DeleteBucketTiering(ctx context.Context, acct Account, bucket, id string) error {
	return s.configure(ctx, acct, bucket, &metapb.SetBucketConfigOp{Tiering: &metapb.SetTiering{Remove: id}})
}

// configure changes the bucket's configuration: decided in the system group, which judges it by what there is then, and
// obeyed in every range that can hold the bucket's keys before it returns. FinishBuckets completes what a crash left between.
func (s *Store) configure(ctx context.Context, acct Account, name string, op *metapb.SetBucketConfigOp) error {
	unlock, err := s.lifecycle.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := s.HeadBucket(ctx, acct, name)
	if err != nil {
		return err
	}
	op.Bucket = uint64(b.ID)
	res, err := s.cfg.Meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_SetBucketConfig{SetBucketConfig: op}})
	if err != nil {
		return err
	}
	if op.Versioning == metapb.Versioning_VERSIONING_NEVER && op.Lock == nil && op.Lifecycle == nil && op.Tiering == nil && op.Notification == nil {
		return nil // ranges know nothing of the rest
	}
	if err := s.finishConfig(ctx, res.Bucket); err != nil {
		return err
	}
	s.buckets.drop(name) // so that also the next write knows the new rules, and whether its events are wanted, which the command's answer leaves out
	return nil
}

// finishConfig brings the configuration of an active bucket to its ranges. Their rows tell a later decision by its generation, so
// it does not matter who else is at it.
func (s *Store) finishConfig(ctx context.Context, row *metapb.SysBucket) error {
	if err := s.putBucketRows(ctx, row, row.Generation); err != nil {
		return err
	}
	_, err := s.cfg.Meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_BucketRowsDone{BucketRowsDone: &metapb.BucketRowsDoneOp{Bucket: row.Id, Generation: row.Generation}}})
	if errs.Is(err, errs.Conflict) || errs.Is(err, errs.NoSuchBucket) {
		err = nil // changed again since, by whoever brings that to the ranges
	}
	return err
}

// DeleteBucket removes an empty bucket: it is marked in the system group, fenced
// in every range (each answers whether it is empty, and from then on takes no
// write), and then removed, or the fences are lifted (design rule 8).
func (s *Store) DeleteBucket(ctx context.Context, acct Account, name string) error {
	unlock, err := s.lifecycle.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := s.HeadBucket(ctx, acct, name)
	if err != nil {
		return err
	}
	row, err := s.setBucketState(ctx, &metapb.SetBucketStateOp{
		Bucket: uint64(b.ID), From: metapb.BucketState_BUCKET_ACTIVE, To: metapb.BucketState_BUCKET_DELETING,
	})
	if err != nil {
		return err
	}
	return s.finishDelete(ctx, row)
}

// finishDelete goes on with the deletion of a bucket whose row says that it is being deleted. Other gateways may be at
// it too and come to another end: who dropped or lifted the fence of the bucket's first range was first, and the
// others do the same (see package rangestate).
func (s *Store) finishDelete(ctx context.Context, row *metapb.SysBucket) error {
	s.buckets.drop(row.Name)
	empty, err := s.fence(ctx, row)
	if err != nil {
		return err // FinishBuckets goes on
	}
	if empty {
		if err = s.remove(ctx, row); !errs.Is(err, errs.Conflict) {
			return err
		}
	}
	if err = s.lift(ctx, row); errs.Is(err, errs.NoSuchBucket) {
		return s.remove(ctx, row)
	}
	if err != nil {
		return err
	}
	return errs.New(errs.BucketNotEmpty, "bucket", row.Name, "")
}

// fence fences the bucket in all ranges. False: some range is not empty, or another gateway has lifted a fence.
func (s *Store) fence(ctx context.Context, row *metapb.SysBucket) (empty bool, err error) {
	empty = true
	err = s.cfg.Meta.EachRange(ctx, storage.BucketID(row.Id), func(from []byte) *metapb.RangeCommand {
		return &metapb.RangeCommand{Op: &metapb.RangeCommand_FenceBucket{FenceBucket: &metapb.FenceBucketOp{Bucket: row.Id, From: from, Generation: row.Generation}}}
	}, func(res *metapb.RangeResult, err error) (bool, error) {
		switch {
		case errs.Is(err, errs.NoSuchBucket):
			return true, nil // dropped here by an earlier, interrupted try
		case errs.Is(err, errs.Conflict):
			empty = false
			return false, nil
		case err == nil:
			empty = res.Empty
		}
		return empty, err
	})
	return empty, err
}

// remove drops the bucket in all ranges, where it is fenced, and then in the system group. Conflict: another gateway has
// lifted the first range's fence.
func (s *Store) remove(ctx context.Context, row *metapb.SysBucket) error {
	err := s.cfg.Meta.EachRange(ctx, storage.BucketID(row.Id), func(from []byte) *metapb.RangeCommand {
		return &metapb.RangeCommand{Op: &metapb.RangeCommand_DropBucket{DropBucket: &metapb.DropBucketOp{Bucket: row.Id, From: from, Generation: row.Generation}}}
	}, func(_ *metapb.RangeResult, err error) (bool, error) { return true, err })
	if err != nil {
		return err
	}
	_, err = s.cfg.Meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_RemoveBucket{RemoveBucket: &metapb.RemoveBucketOp{Bucket: row.Id}}})
	if errs.Is(err, errs.NoSuchBucket) {
		err = nil // by another gateway
	}
	return err
}

// lift takes the fences away again and makes the bucket active. A fence may have spread to a range that was split off
// since: all are lifted. The rows get the generation that the bucket will have once it is active, which no
// command of this deletion touches. NoSuchBucket: another gateway has dropped the bucket.
func (s *Store) lift(ctx context.Context, row *metapb.SysBucket) error {
	if err := s.putBucketRows(ctx, row, row.Generation+1); err != nil {
		return err
	}
	return s.activate(ctx, row)
}

// FinishBuckets completes creations, deletions and changes of the configuration that a crash or a lost quorum
// interrupted. It answers how many it met. With looks > 0 it leaves alone what it has not
// met in the same state so many times before: another gateway may be at it.
func (s *Store) FinishBuckets(ctx context.Context, looks int) (int, error) {
	var rows []*metapb.SysBucket
	err := s.cfg.Meta.System(ctx, func(r sysstate.Reader) (err error) {
		rows, err = r.PendingBuckets(0, 100)
		return err
	})
	if err != nil {
		return 0, err
	}
	old := s.pending.Load()
	met := make(map[pendingBucket]int, len(rows))
	for _, row := range rows {
		k := pendingBucket{row.Id, row.Generation}
		if met[k] = 1; old != nil {
			met[k] += (*old)[k]
		}
	}
	s.pending.Store(&met)
	for _, seen := range rows {
		if met[pendingBucket{seen.Id, seen.Generation}] <= looks {
			continue
		}
		// What is busy another gateway is at.
		if err := s.finishBucket(ctx, seen); err != nil && !errs.Is(err, errs.BucketNotEmpty) && !errs.Is(err, errs.BucketBusy) {
			return len(rows), err
		}
	}
	return len(rows), nil
}

// finishBucket takes the bucket's lock and looks again: the operation may have been a running one.
func (s *Store) finishBucket(ctx context.Context, seen *metapb.SysBucket) error {
	unlock, err := s.lifecycle.lock(ctx, seen.Name)
	if err != nil {
		return err
	}
	defer unlock()
	var row *metapb.SysBucket
	err = s.cfg.Meta.System(ctx, func(r sysstate.Reader) (err error) {
		row, err = r.BucketByID(storage.BucketID(seen.Id))
		return err
	})
	switch {
	case errs.Is(err, errs.NoSuchBucket):
		return nil
	case err != nil:
		return err
	case row.State == metapb.BucketState_BUCKET_CREATING:
		return s.finishCreate(ctx, row)
	case row.State == metapb.BucketState_BUCKET_DELETING:
		return s.finishDelete(ctx, row)
	case row.Generation == seen.Generation: // its configuration is on its way
		return s.finishConfig(ctx, row)
	}
	return nil
}
