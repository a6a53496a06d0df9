package rangestate

import (
	"encoding/binary"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
)

// SurveyQuery says which rows of a bucket a survey looks at.
type SurveyQuery struct {
	Bucket  storage.BucketID
	Prefix  string        // of the keys
	Current bool          // only current versions: neither noncurrent ones nor delete markers
	Uploads bool          // uploads in progress too
	After   *LifecyclePos // behind it; nil: from the first on
	Limit   int           // rows, at least one
}

// SurveyPage is a piece of a survey: what the rules of lifecycle, or an inventory, want to know of versions without any bytes being
// read. Rows are the caller's.
type SurveyPage struct {
	// Rows are as of View.Lifecycle. Besides what that tells, versions have ETag, and checksums without their values.
	Rows   []LifecycleRow
	Next   *LifecyclePos  // where the page ended; nil: the range has no more
	Bounds cluster.Bounds // of the range as of the page: the survey goes on in the range that begins at Bounds.End
}

// Survey is a page of a walk like View.Lifecycle that can be asked of a leader elsewhere. What is said there of places holds here; with
// Current, what a row says of other versions of its key means nothing.
func (v *View) Survey(q *SurveyQuery) (page SurveyPage, err error) {
	page.Bounds = v.Bounds()
	r, done := v.frozen()
	defer done()
	l := &lifecycleWalk{full: true, prefix: q.Prefix, noOthers: q.Current, noUploads: !q.Uploads}
	page.Next, err = l.run(v, r, q.Bucket, q.After, q.Limit, func(row *LifecycleRow) (bool, error) {
		own := *row
		own.Key = append([]byte(nil), row.Key...)
		own.Object = row.Object.CloneVT()
		page.Rows = append(page.Rows, own)
		return true, nil
	})
	if err != nil {
		return SurveyPage{}, err
	}
	return page, nil
}

// fillFull decodes a field of an ObjectRow that only a survey shows; false if it is malformed.
func (l *lifecycleWalk) fillFull(w *wire) bool {
	row := &l.object
	switch w.num {
	case 9:
		row.Etag = string(w.buf)
	case 12:
		sum := &metapb.Checksum{}
		if err := sum.UnmarshalVT(w.buf); err != nil {
			return false
		}
		sum.Value = nil
		row.Checksums = append(row.Checksums, sum)
	}
	return true
}

// CountersOf are the range's counters of the buckets from first to last, by bucket and class. Bucket 0 is all that were deleted.
func (v *View) CountersOf(first, last storage.BucketID) ([]Counter, error) {
	if last < first {
		return nil, nil
	}
	prefix := appendGroup(nil, v.group, subCounter)
	start := binary.BigEndian.AppendUint64(append([]byte(nil), prefix...), uint64(first))
	end := prefixEnd(append([]byte(nil), prefix...))
	if last+1 != 0 {
		end = binary.BigEndian.AppendUint64(append([]byte(nil), prefix...), uint64(last)+1)
	}
	return v.counters(start, end)
}
