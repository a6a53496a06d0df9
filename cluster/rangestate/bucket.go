package rangestate

import (
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// bucketCommand runs a command on a bucket's row in this range, once: its
// outcome lies under the key of the row. Commands of other gateways that come late have other ids: the generation of the
// row tells them apart.
//
// from is the key at which the proposer, on its way through the bucket's ranges, goes on. The result says how far this
// range reaches as the command is run; a split that comes later copies the row.
func (m *Machine) bucketCommand(cmd *metapb.RangeCommand, bucket, generation uint64, from []byte, run func(start []byte) (*metapb.RangeResult, error)) ([]byte, error) {
	if bucket == 0 || generation == 0 {
		return m.encode(refuse(errs.InvalidArgument, "no bucket, or no generation of it"))
	}
	start, ok := m.bounds.bucketStart(bucket)
	if !ok || len(from) > 0 && !contains(&m.bounds, bucket, from) {
		return m.wrongRange(bucket, from)
	}
	if out, err := m.enter(cmd, bucket, start); out != nil || err != nil {
		return out, err
	}
	res, err := run(start)
	if err != nil {
		return nil, err
	}
	res.Ranges = []*metapb.SysGroup{rangeOf(m.desc)}
	return m.leave(cmd, bucket, start, res)
}

func (m *Machine) storeBucket(start []byte, row *metapb.BucketRow) error {
	m.buckets[row.Id] = &keptBucket{row: row}
	m.configChanged()
	m.key = appendRaw(m.key[:0], kindBucket, row.Id, start)
	return m.put(m.key, row)
}

// configChanged must be called with every change of the descriptor or a bucket
// row: readers keep them by the count (see Views).
func (m *Machine) configChanged() {
	m.clock.Config++
	m.clockDirty = true
}

// putBucket stores a bucket's configuration. A live row that is as new already stays. A fence is lifted by a higher
// generation alone, and a dropped bucket stays dropped: the command may be late, of a gateway that does
// not know what others have decided since. Versioning is never taken back to never, since versions may exist.
func (m *Machine) putBucket(cmd *metapb.RangeCommand, op *metapb.PutBucketOp) ([]byte, error) {
	row := op.GetRow()
	return m.bucketCommand(cmd, row.GetId(), row.GetGeneration(), op.GetFrom(), func(start []byte) (*metapb.RangeResult, error) {
		old, err := m.bucketRow(row.Id)
		if err != nil {
			return nil, err
		}
		switch v := row.Versioning; {
		case old.GetDropped():
			return refuse(errs.NoSuchBucket, "the bucket has been deleted"), nil
		case old.GetFenced() && old.Generation >= row.Generation:
			return refuse(errs.BucketBusy, "the bucket is being deleted"), nil
		case old.GetGeneration() >= row.Generation:
			return &metapb.RangeResult{Ok: true}, nil
		case v < metapb.Versioning_VERSIONING_NEVER || v > metapb.Versioning_VERSIONING_SUSPENDED:
			return refuse(errs.InvalidArgument, "unknown versioning state"), nil
		case v == metapb.Versioning_VERSIONING_NEVER && old.GetVersioning() != metapb.Versioning_VERSIONING_NEVER:
			return refuse(errs.InvalidRequest, "versioning can be suspended, not undone"), nil
		case row.ObjectLock && v != metapb.Versioning_VERSIONING_ENABLED:
			return refuse(errs.InvalidRequest, "object lock needs versioning enabled"), nil
		case row.Fenced || row.Dropped:
			return refuse(errs.InvalidArgument, "a bucket's row is put live"), nil
		}
		row.Format = 1
		return &metapb.RangeResult{Ok: true}, m.storeBucket(start, row)
	})
}

// fenceBucket fences the bucket if nothing of it lies in this range: neither
// versions nor uploads. What only background work still has to do does not count.
// A range without a row is fenced too, against a row that comes late.
func (m *Machine) fenceBucket(cmd *metapb.RangeCommand, op *metapb.FenceBucketOp) ([]byte, error) {
	return m.bucketCommand(cmd, op.GetBucket(), op.GetGeneration(), op.GetFrom(), func(start []byte) (*metapb.RangeResult, error) {
		row, err := m.bucketRow(op.Bucket)
		switch {
		case err != nil:
			return nil, err
		case row.GetDropped():
			return refuse(errs.NoSuchBucket, ""), nil
		case row.GetFenced() && row.Generation == op.Generation:
			return &metapb.RangeResult{Ok: true, Empty: true}, nil
		case row.GetGeneration() >= op.Generation:
			return refuse(errs.Conflict, "the bucket's row is newer than this deletion"), nil
		}
		empty, err := m.empty(op.Bucket)
		if err != nil || !empty {
			return &metapb.RangeResult{Ok: true}, err
		}
		fenced := &metapb.BucketRow{Format: 1, Id: op.Bucket}
		if row != nil {
			fenced = row.CloneVT()
		}
		fenced.Fenced, fenced.Generation = true, op.Generation
		return &metapb.RangeResult{Ok: true, Empty: true}, m.storeBucket(start, fenced)
	})
}

// empty reports whether the range has no version and no upload of the bucket.
func (m *Machine) empty(bucket uint64) (bool, error) {
	one := m.bounds.within(bucket)
	for _, kind := range [...]byte{kindCurrent, kindVersion, kindUpload} {
		found := false
		span := one.span(kind)
		err := m.iterate(span.Start, span.End, func([]byte, func() ([]byte, error)) (bool, error) {
			found = true
			return false, nil
		})
		if err != nil || found {
			return false, err
		}
	}
	return true, nil
}

// dropBucket drops a fenced bucket. What stays is a small row that says so, for good: ids of buckets are never
// given out twice, and no time is known after which no gateway can send what it decided before.
func (m *Machine) dropBucket(cmd *metapb.RangeCommand, op *metapb.DropBucketOp) ([]byte, error) {
	return m.bucketCommand(cmd, op.GetBucket(), op.GetGeneration(), op.GetFrom(), func(start []byte) (*metapb.RangeResult, error) {
		row, err := m.bucketRow(op.Bucket)
		switch {
		case err != nil:
			return nil, err
		case row.GetDropped():
			return &metapb.RangeResult{Ok: true}, nil
		case row != nil && !row.Fenced:
			return refuse(errs.Conflict, "the bucket is not fenced"), nil
		case row.GetGeneration() > op.Generation:
			return refuse(errs.Conflict, "the bucket was fenced by a later deletion"), nil
		}
		if err := m.keepDeleted(op.Bucket); err != nil {
			return nil, err
		}
		if err := m.keepTold(op.Bucket); err != nil {
			return nil, err
		}
		return &metapb.RangeResult{Ok: true}, m.storeBucket(start, &metapb.BucketRow{Format: 1, Id: op.Bucket, Generation: op.Generation, Dropped: true})
	})
}
