package sysstate

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// bucketByName reads the bucket under a name; nil if there is none.
func (t *tx) bucketByName(name string) (*metapb.SysBucket, error) {
	return bucketByName(t.b, name)
}

func (t *tx) bucket(id uint64) (*metapb.SysBucket, error) {
	bk := &metapb.SysBucket{}
	if ok, err := get(t.b, bucketKey(id), bk); err != nil {
		return nil, err
	} else if !ok {
		return nil, refuse(errs.NoSuchBucket, "bucket %d does not exist", id)
	}
	return bk, nil
}

func (t *tx) createBucket(want *metapb.SysBucket) error {
	switch {
	case want.GetName() == "" || len(want.Name) > nameBytesMax:
		return refuse(errs.InvalidArgument, "a bucket needs a name of 1 to %d bytes", nameBytesMax)
	case want.Owner == "" || len(want.Owner) > nameBytesMax || len(want.Region) > nameBytesMax:
		return refuse(errs.InvalidArgument, "a bucket needs an owner of 1 to %d bytes", nameBytesMax)
	case metapb.Versioning_name[int32(want.Versioning)] == "":
		return refuse(errs.InvalidArgument, "versioning %d is unknown", want.Versioning)
	case want.DefaultLock != nil || len(want.Tags) > 0 || want.PublicAccessBlock != nil || want.NoOwnershipControls || want.Lifecycle != nil || len(want.Tiering) > 0 || want.Notification != nil:
		return refuse(errs.InvalidArgument, "default retention, tags, public access block, ownership controls, lifecycle rules, tiering and notifications are set once the bucket is there")
	}
	cur, err := t.bucketByName(want.Name)
	if err != nil {
		return err
	}
	if cur != nil {
		t.res.Bucket = cur
		switch {
		case bytes.Equal(cur.Command, t.cmd.Id):
			return nil // a repeat whose outcome expired; the bucket itself remembers
		case cur.State != metapb.BucketState_BUCKET_ACTIVE:
			return refuse(errs.BucketBusy, "a bucket of this name is being created or deleted")
		case cur.Owner == want.Owner:
			return refuse(errs.BucketAlreadyOwned, "you own the bucket already")
		}
		t.res.Bucket = nil // none of the asker's business
		return refuse(errs.BucketAlreadyExists, "the name is taken")
	}
	bk := want.CloneVT()
	bk.Format, bk.Id, bk.CreatedMs, bk.Generation = 1, t.store.NextBucket, t.now, 1
	bk.State, bk.Command = metapb.BucketState_BUCKET_CREATING, t.cmd.Id
	if bk.ObjectLock {
		bk.Versioning = metapb.Versioning_VERSIONING_ENABLED
	}
	t.store.NextBucket++
	t.dirty = true // nobody sees it yet: no change of the configuration
	t.res.Bucket = bk
	id := binary.BigEndian.AppendUint64(nil, bk.Id)
	if err := put(t.b, bucketKey(bk.Id), bk); err != nil {
		return err
	}
	if err := t.b.Set(nameKey(bk.Name), id, nil); err != nil {
		return err
	}
	if err := t.b.Set(ownerKey(bk.Owner, bk.Name), id, nil); err != nil {
		return err
	}
	return t.b.Set(pendingKey(bk.Id), nil, nil)
}

func (t *tx) setBucketState(op *metapb.SetBucketStateOp) error {
	const creating, active, deleting = metapb.BucketState_BUCKET_CREATING, metapb.BucketState_BUCKET_ACTIVE, metapb.BucketState_BUCKET_DELETING
	bk, err := t.bucket(op.GetBucket())
	if err != nil {
		return err
	}
	t.res.Bucket = bk
	if op.IfGeneration != 0 && bk.Generation != op.IfGeneration {
		return refuse(errs.Conflict, "the bucket is at generation %d, not %d", bk.Generation, op.IfGeneration)
	}
	if bk.State != op.From {
		return refuse(errs.Conflict, "the bucket is %s, not %s", bk.State, op.From)
	}
	switch [2]metapb.BucketState{op.From, op.To} {
	case [2]metapb.BucketState{creating, active}, [2]metapb.BucketState{creating, deleting},
		[2]metapb.BucketState{active, deleting}, [2]metapb.BucketState{deleting, active}:
	default:
		return refuse(errs.InvalidArgument, "a bucket does not go from %s to %s", op.From, op.To)
	}
	bk.State = op.To
	bk.Generation++
	t.conf = op.From == creating // one that is being deleted is still seen
	if err := put(t.b, bucketKey(bk.Id), bk); err != nil {
		return err
	}
	if op.To == active {
		return t.b.Delete(pendingKey(bk.Id), nil)
	}
	return t.b.Set(pendingKey(bk.Id), nil, nil)
}

// setBucketConfig changes an active bucket's configuration. What ranges decide by is a decision of its own, with the next
// generation, and the bucket is pending until their rows say so: bucketRowsDone, or whatever decides on the bucket next
// (a deletion that is given up puts the rows of a higher generation).
func (t *tx) setBucketConfig(op *metapb.SetBucketConfigOp) error {
	bk, err := t.bucket(op.GetBucket())
	if err != nil {
		return err
	}
	t.res.Bucket = bk
	if bk.State != metapb.BucketState_BUCKET_ACTIVE {
		return refuse(errs.BucketBusy, "the bucket is being created or deleted")
	}
	switch op.Versioning {
	case metapb.Versioning_VERSIONING_NEVER: // stays
	case metapb.Versioning_VERSIONING_SUSPENDED:
		if bk.ObjectLock || op.Lock != nil {
			return refuse(errs.InvalidState, "versioning cannot be suspended on a bucket with object lock")
		}
	case metapb.Versioning_VERSIONING_ENABLED:
	default:
		return refuse(errs.InvalidArgument, "versioning %d is unknown", op.Versioning)
	}
	if op.Lock != nil {
		if detail := checkLock(op.Lock); detail != "" {
			return refuse(errs.InvalidArgument, "%s", detail)
		}
		if bk.Versioning != metapb.Versioning_VERSIONING_ENABLED && op.Versioning != metapb.Versioning_VERSIONING_ENABLED {
			return refuse(errs.InvalidState, "object lock needs versioning enabled")
		}
	}
	if detail := checkTags(op.GetTags().GetTags()); detail != "" {
		return refuse(errs.InvalidArgument, "%s", detail)
	}
	if op.GetLifecycle().GetConfig().SizeVT() > lifecycleBytesMax {
		return refuse(errs.InvalidArgument, "lifecycle rules have at most %d bytes", lifecycleBytesMax)
	}
	if err := t.checkNotification(op.GetNotification().GetConfig()); err != nil {
		return err
	}
	if op.Tiering != nil {
		if err := setTiering(bk, op.Tiering); err != nil {
			return err
		}
	}
	t.conf = true
	if op.Tags != nil {
		bk.Tags = op.Tags.Tags
	}
	if op.PublicAccessBlock != nil {
		bk.PublicAccessBlock = op.PublicAccessBlock.Block
	}
	if op.OwnershipControls != nil {
		bk.NoOwnershipControls = op.OwnershipControls.Deleted
	}
	if op.Lifecycle != nil {
		if err := t.setLifecycle(bk, op.Lifecycle.Config); err != nil {
			return err
		}
	}
	if op.Notification != nil {
		if err := t.setNotification(bk, op.Notification.Config); err != nil {
			return err
		}
	}
	if op.Versioning != metapb.Versioning_VERSIONING_NEVER || op.Lock != nil || op.Lifecycle != nil || op.Tiering != nil || op.Notification != nil {
		if op.Versioning != metapb.Versioning_VERSIONING_NEVER {
			bk.Versioning = op.Versioning
		}
		if op.Lock != nil {
			bk.ObjectLock, bk.DefaultLock = true, op.Lock
		}
		bk.Generation++
		if err := t.b.Set(pendingKey(bk.Id), nil, nil); err != nil {
			return err
		}
	}
	return put(t.b, bucketKey(bk.Id), bk)
}

// setLifecycle replaces the bucket's rules; nil: there are none. Ranges don't know them, but that they changed: what was
// decided by others is refused there.
func (t *tx) setLifecycle(bk *metapb.SysBucket, cfg *metapb.LifecycleConfig) error {
	if bk.Lifecycle = cfg; cfg == nil {
		return t.b.Delete(lifecycleKey(bk.Id), nil)
	}
	return t.b.Set(lifecycleKey(bk.Id), nil, nil)
}

// setTiering puts or removes one of the bucket's tiering configurations, which are kept in order of their ids. Ranges know them as they know rules.
func setTiering(bk *metapb.SysBucket, op *metapb.SetTiering) error {
	id := op.Remove
	if op.Put != nil {
		id = op.Put.Id
	}
	if id == "" || op.Put != nil && op.Remove != "" {
		return refuse(errs.InvalidArgument, "a tiering configuration is put or removed, by its id")
	}
	at, found := slices.BinarySearchFunc(bk.Tiering, id, func(c *metapb.TieringConfig, id string) int { return strings.Compare(c.Id, id) })
	switch {
	case op.Put == nil && !found:
		return refuse(errs.NotFound, "the bucket has no tiering configuration of this id")
	case op.Put == nil:
		bk.Tiering = slices.Delete(bk.Tiering, at, at+1)
		return nil
	case found:
		bk.Tiering[at] = op.Put
	case len(bk.Tiering) >= tieringMax:
		return refuse(errs.EntityTooLarge, "a bucket has at most %d tiering configurations", tieringMax)
	default:
		bk.Tiering = slices.Insert(bk.Tiering, at, op.Put)
	}
	size := 0
	for _, c := range bk.Tiering {
		size += c.SizeVT()
	}
	if size > tieringBytesMax {
		return refuse(errs.EntityTooLarge, "the tiering configurations of a bucket have at most %d bytes", tieringBytesMax)
	}
	return nil
}

// bucketRowsDone ends the pending state that a change of the configuration began, unless something was decided since.
func (t *tx) bucketRowsDone(op *metapb.BucketRowsDoneOp) error {
	bk, err := t.bucket(op.GetBucket())
	if err != nil {
		return err
	}
	t.res.Bucket = bk
	if bk.State != metapb.BucketState_BUCKET_ACTIVE || bk.Generation != op.GetGeneration() {
		return refuse(errs.Conflict, "the bucket is %s at generation %d", bk.State, bk.Generation)
	}
	return t.b.Delete(pendingKey(bk.Id), nil)
}

// Bounds of a bucket's configuration, S3's own.
const (
	lockDaysMax  = 36500
	lockYearsMax = 100
	tagsMax      = 50
	tagBytesMax  = 1024 // of a name or value

	lifecycleBytesMax = 2 << 20 // encoded; as large as a command can be with room to spare
	tieringMax        = 1000
	tieringBytesMax   = 1 << 20 // encoded, of all together
)

func checkLock(l *metapb.BucketLock) string {
	switch {
	case l.Mode == "" && l.Days == 0 && l.Years == 0:
		return ""
	case l.Mode != "GOVERNANCE" && l.Mode != "COMPLIANCE":
		return "the mode of a default retention is GOVERNANCE or COMPLIANCE"
	case (l.Days == 0) == (l.Years == 0):
		return "a default retention has days or years"
	case l.Days > lockDaysMax || l.Years > lockYearsMax:
		return "a default retention has at most 36500 days or 100 years"
	}
	return ""
}

func checkTags(tags []*metapb.KV) string {
	if len(tags) > tagsMax {
		return "a bucket has at most 50 tags"
	}
	for _, t := range tags {
		if t.GetName() == "" || len(t.Name) > tagBytesMax || len(t.Value) > tagBytesMax {
			return "a tag has a name and at most 1024 bytes of each"
		}
	}
	return ""
}

func (t *tx) removeBucket(id uint64) error {
	bk, err := t.bucket(id)
	if err != nil {
		return err
	}
	t.res.Bucket = bk
	if bk.State != metapb.BucketState_BUCKET_DELETING {
		return refuse(errs.Conflict, "the bucket is %s: only one that is being deleted is removed", bk.State)
	}
	t.conf = true
	if err := t.unname(bk); err != nil {
		return err
	}
	for _, k := range [][]byte{bucketKey(bk.Id), nameKey(bk.Name), ownerKey(bk.Owner, bk.Name), pendingKey(bk.Id), lifecycleKey(bk.Id)} {
		if err := t.b.Delete(k, nil); err != nil {
			return err
		}
	}
	return nil
}
