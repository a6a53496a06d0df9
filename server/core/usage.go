package core

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/server/status"
	"cairn/storage"
)

// usagePage is how many buckets' counters are summed at a time.
const usagePage = 500

// Usage calls fn with the usage of each bucket, in order of their creation, and last with that of all that were deleted, if there is any; or
// of one bucket only. It answers the sums of what fn was called with. An error of fn ends it. Errors: NoSuchBucket; Unavailable if a range cannot be read.
func (c *Core) Usage(ctx context.Context, name string, fn func(*status.BucketUsage) error) (total status.UsageTotal, err error) {
	if total, err = c.sumUsage(ctx, name, fn); err == nil && name == "" {
		total.Drives = c.driveUse(ctx)
	}
	return total, err
}

// sumUsage is Usage without asking the drives.
func (c *Core) sumUsage(ctx context.Context, name string, fn func(*status.BucketUsage) error) (total status.UsageTotal, err error) {
	u := usage{c: c, drives: c.onDrives(), total: map[storage.StorageClass]*status.ClassUsage{}, fn: fn}
	if name != "" {
		row, err := c.bucketNamed(ctx, name)
		if err != nil {
			return total, err
		}
		if err := u.window(ctx, storage.BucketID(row.Id), storage.BucketID(row.Id), []*metapb.SysBucket{row}); err != nil {
			return total, err
		}
	} else if err := u.all(ctx); err != nil {
		return total, err
	}
	return status.UsageTotal{Buckets: u.buckets, Day: c.LifecycleDay().String(), Classes: sortedUsage(u.total)}, nil
}

// usage is one look at the usage. Its memory does not grow with the number of buckets.
type usage struct {
	c       *Core
	drives  func(storage.StorageClass, uint64) int64
	fn      func(*status.BucketUsage) error
	buckets int64
	total   map[storage.StorageClass]*status.ClassUsage
	deleted map[storage.StorageClass]*metapb.CounterRow
}

func (u *usage) all(ctx context.Context) error {
	m := lifecycleMeta{c: u.c}
	for first := storage.BucketID(0); ; {
		var page []*metapb.SysBucket
		err := m.system(ctx, func(r pebble.Reader) (err error) {
			page, err = sysstate.AllBuckets(r, max(first, 1)-1, usagePage)
			return err
		})
		if err != nil {
			return err
		}
		last := storage.BucketID(math.MaxUint64)
		if len(page) == usagePage {
			last = storage.BucketID(page[len(page)-1].Id)
		}
		if err := u.window(ctx, first, last, page); err != nil {
			return err
		}
		if last == math.MaxUint64 {
			break
		}
		first = last + 1
	}
	if len(u.deleted) == 0 {
		return nil
	}
	return u.tell(&status.BucketUsage{Deleted: true}, u.deleted)
}

// window sums up the buckets with ids from first to last. Those that are not listed are deleted.
func (u *usage) window(ctx context.Context, first, last storage.BucketID, listed []*metapb.SysBucket) error {
	sums := map[storage.BucketID]map[storage.StorageClass]*metapb.CounterRow{}
	for _, g := range u.c.Meta.AllRanges() {
		var counters []rangestate.Counter
		err := u.c.Meta.ReadGroup(ctx, g.ID, func(v rangestate.Reader) (err error) {
			counters, err = v.CountersOf(first, last)
			return err
		})
		if err != nil {
			return err
		}
		for _, k := range counters {
			if sums[k.Bucket] == nil {
				sums[k.Bucket] = map[storage.StorageClass]*metapb.CounterRow{}
			}
			add(sums[k.Bucket], k.Class, k.Row)
		}
	}
	for id, classes := range sums {
		if _, ok := slices.BinarySearchFunc(listed, id, func(b *metapb.SysBucket, id storage.BucketID) int { return cmp.Compare(b.Id, uint64(id)) }); ok {
			continue
		}
		for class, row := range classes {
			u.gone(class, row)
		}
	}
	for _, b := range listed {
		if b.State == metapb.BucketState_BUCKET_CREATING {
			continue
		}
		u.buckets++
		if err := u.tell(&status.BucketUsage{Bucket: b.Name}, sums[storage.BucketID(b.Id)]); err != nil {
			return err
		}
	}
	return nil
}

// gone adds up what buckets that are not listed left. One that holds something is not deleted but younger than the list. What a split left of a deleted
// one on either side adds up to nothing, once the counters of all ranges are in.
func (u *usage) gone(class storage.StorageClass, row *metapb.CounterRow) {
	if row.Objects != 0 || row.Versions != 0 || row.Markers != 0 || row.Uploads != 0 || row.SizeVT() == 0 {
		return
	}
	if u.deleted == nil {
		u.deleted = map[storage.StorageClass]*metapb.CounterRow{}
	}
	add(u.deleted, class, row)
}

func add(sums map[storage.StorageClass]*metapb.CounterRow, class storage.StorageClass, row *metapb.CounterRow) {
	if sums[class] == nil {
		sums[class] = &metapb.CounterRow{}
	}
	rangestate.AddCounters(sums[class], row)
}

// tell calls fn and adds to the total.
func (u *usage) tell(b *status.BucketUsage, sums map[storage.StorageClass]*metapb.CounterRow) error {
	b.Classes = []status.ClassUsage{}
	for class, row := range sums {
		if row.SizeVT() == 0 {
			continue
		}
		k := u.c.classUsage(class, row, u.drives)
		if u.total[class] == nil {
			u.total[class] = &status.ClassUsage{Class: string(class)}
		}
		u.total[class].Add(&k)
		b.Classes = append(b.Classes, k)
	}
	slices.SortFunc(b.Classes, byClass)
	return u.fn(b)
}

// classUsage turns counters into words. The bytes on drives are taken for large data's.
func (c *Core) classUsage(class storage.StorageClass, row *metapb.CounterRow, drives func(storage.StorageClass, uint64) int64) status.ClassUsage {
	const sample = 1 << 30
	factor := float64(drives(class, sample)) / sample
	return status.ClassUsage{
		Class: string(class), Objects: row.Objects, Versions: row.Versions, Markers: row.Markers, Bytes: row.Bytes, Uploads: row.Uploads,
		UploadBytes: row.UploadBytes, DriveBytes: int64(factor * float64(row.Bytes+row.UploadBytes)),
		EarlyByteDays: c.byteDays(row), RestoredBytes: row.RestoredBytes,
	}
}

func byClass(a, b status.ClassUsage) int {
	rank := func(c string) int {
		if i := slices.Index(planned[:], storage.StorageClass(c)); i >= 0 {
			return i
		}
		return len(planned)
	}
	return cmp.Or(cmp.Compare(rank(a.Class), rank(b.Class)), cmp.Compare(a.Class, b.Class))
}

func sortedUsage(sums map[storage.StorageClass]*status.ClassUsage) []status.ClassUsage {
	out := make([]status.ClassUsage, 0, len(sums))
	for _, k := range sums {
		out = append(out, *k)
	}
	slices.SortFunc(out, byClass)
	return out
}

// driveUse is what the drives of all nodes say that they hold.
func (c *Core) driveUse(ctx context.Context) *status.DriveUse {
	t := c.Controller.Topology()
	out := &status.DriveUse{}
	for _, d := range driveStatus(t, c.looks(ctx, t)) {
		if d.BytesTotal == 0 {
			out.Silent++
		}
		out.Live += d.BytesLive
		out.Dead += d.BytesDead
	}
	return out
}

// BucketUsage is the usage of every bucket if there are at most max; ok is false if there are more.
func (c *Core) BucketUsage(ctx context.Context, max int) (out []status.BucketUsage, ok bool, err error) {
	var n int64
	err = c.Meta.System(ctx, func(r sysstate.Reader) (err error) {
		n, err = r.CountBuckets()
		return err
	})
	if err != nil || n > int64(max) {
		return nil, false, err
	}
	seen := map[string]bool{} // one that was deleted and made anew meanwhile may come twice
	_, err = c.sumUsage(ctx, "", func(b *status.BucketUsage) error {
		if !b.Deleted && !seen[b.Bucket] {
			seen[b.Bucket] = true
			out = append(out, *b)
		}
		return nil
	})
	return out, err == nil, err
}
