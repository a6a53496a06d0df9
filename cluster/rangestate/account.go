package rangestate

import (
	"math/bits"

	"cairn/proto/metapb"
	"cairn/storage"
)

// deletedBuckets is the bucket that has what was counted of buckets that are dropped. Ids of buckets start at 1.
const deletedBuckets = 0

// EarlyMS is how many milliseconds of its class's minimum are not over at nowMS (unix ms), for a version that is taken
// away or moved then; 0 of delete markers. day is the length of a day in milliseconds; 24 hours unless it is between 0 and that.
func EarlyMS(row *metapb.ObjectRow, nowMS, day int64) int64 {
	days := classOf(row).MinimumDays()
	if days == 0 || row.DeleteMarker {
		return 0
	}
	if day <= 0 || day > dayMS {
		day = dayMS
	}
	since := row.ModifiedMs
	if row.ClassSinceMs != 0 {
		since = row.ClassSinceMs
	}
	return min(max(since+int64(days)*day-nowMS, 0), int64(days)*day)
}

// early counts what a version that goes, or leaves its class, owes to the minimum. A petabyte of DEEP_ARCHIVE would
// overflow 64 bits at once.
func (m *Machine) early(c *metapb.CounterRow, row *metapb.ObjectRow) {
	AddEarly(c, row.Size, uint64(EarlyMS(row, m.now(), m.day)))
}

// AddEarly counts bytes that went so many milliseconds early. The sum has 128 bits.
func AddEarly(c *metapb.CounterRow, bytes, ms uint64) {
	hi, lo := bits.Mul64(bytes, ms)
	var carry uint64
	c.EarlyLo, carry = bits.Add64(c.EarlyLo, lo, 0)
	c.EarlyHi, _ = bits.Add64(c.EarlyHi, hi, carry)
}

// keepDeleted hands on what was counted of a bucket that is dropped, so that its rows go: of objects and uploads it has none any more.
// A range that was split holds what its child's keys owed before: that stays where it is, as the other counters do.
func (m *Machine) keepDeleted(bucket uint64) error {
	for _, class := range append(storage.MinimumClasses(), storage.IntelligentTiering) { // no other has any of it
		from, err := m.count(bucket, string(class))
		if err != nil {
			return err
		}
		if from.EarlyHi == 0 && from.EarlyLo == 0 && from.RestoredBytes == 0 {
			continue
		}
		to, err := m.count(deletedBuckets, string(class))
		if err != nil {
			return err
		}
		AddCounters(to, &metapb.CounterRow{EarlyHi: from.EarlyHi, EarlyLo: from.EarlyLo, RestoredBytes: from.RestoredBytes})
		from.EarlyHi, from.EarlyLo, from.RestoredBytes = 0, 0, 0
	}
	return nil
}

// AddCounters adds a range's counters to a sum.
func AddCounters(sum, c *metapb.CounterRow) {
	sum.Objects += c.GetObjects()
	sum.Bytes += c.GetBytes()
	sum.Uploads += c.GetUploads()
	sum.UploadBytes += c.GetUploadBytes()
	sum.Versions += c.GetVersions()
	sum.Markers += c.GetMarkers()
	var carry uint64
	sum.EarlyLo, carry = bits.Add64(sum.EarlyLo, c.GetEarlyLo(), 0)
	sum.EarlyHi, _ = bits.Add64(sum.EarlyHi, c.GetEarlyHi(), carry)
	sum.RestoredBytes += c.GetRestoredBytes()
}
