package rangestate

import (
	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Reader is a range's state as its users read it: a *View where the range's leader
// is in this process, else questions to the leader's node. What is said of View's methods
// holds for every Reader, with these differences where the leader is elsewhere:
//
//   - Each call is answered of a moment of its own, not before the call. An answer of more than some megabytes is
//     put together from several moments, in the order of its rows; Walk and Counters always are of one.
//   - Besides a method's own errors each may answer what the way there can: NotLeader,
//     Unavailable, Busy, Timeout. Whoever called the user of the Reader then has it run again.
//   - Rows are the caller's, Bucket's too.
//
// A Reader is not safe for concurrent use and must not be kept.
type Reader interface {
	// TimeMS is range time, unix ms, of the moment of the newest answer; a Reader that has not answered yet may say 0.
	TimeMS() int64
	// Info is what the range knows of itself.
	Info() (Info, error)
	// Check answers WrongRange unless the place lies in the range.
	Check(p cluster.Pos) error

	Bucket(id storage.BucketID) (*metapb.BucketRow, error)
	// Object also fetches the bucket's row: a call to Bucket for it costs nothing afterwards.
	Object(bucket storage.BucketID, key storage.Key, version *storage.VersionID) (*metapb.ObjectRow, error)
	Segments(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, off, n int64, bytesMax int) ([]Segment, error)
	PartExtent(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, number int) (off, n int64, err error)
	ObjectParts(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, after, limit int) (rows []*metapb.PartRow, more bool, err error)

	ListCurrent(bucket storage.BucketID, prefix, delimiter, after string, limit int) (Page, error)
	ListVersions(bucket storage.BucketID, prefix, delimiter, keyAfter string, versionAfter *storage.VersionID, limit int) (VersionPage, error)
	ListUploads(bucket storage.BucketID, prefix, delimiter, keyAfter string, seqAfter storage.Seq, limit int) (UploadPage, error)

	Upload(bucket storage.BucketID, key storage.Key, id storage.UploadID) (*metapb.UploadRow, error)
	Parts(bucket storage.BucketID, key storage.Key, id storage.UploadID, after, limit int) (rows []*metapb.PartRow, more bool, err error)
	Part(bucket storage.BucketID, key storage.Key, upload storage.Seq, number int) (*metapb.PartRow, error)
	VersionBySeq(bucket storage.BucketID, key storage.Key, seq storage.Seq) (*metapb.ObjectRow, error)
	Completed(bucket storage.BucketID, key storage.Key, id storage.UploadID) (*metapb.CompletedUploadRow, error)

	Garbage(seq storage.Seq, n uint32, limit int) ([]GarbageItem, error)
	Doomed(after *metapb.DoomedID, limit int) ([]DoomedItem, error)
	Repairs(after *metapb.RepairID, limit int) ([]RepairItem, error)
	Counters() ([]Counter, error)
	CountersOf(first, last storage.BucketID) ([]Counter, error)
	Survey(q *SurveyQuery) (SurveyPage, error)
	Refers(owner storage.Owner, chunk storage.ChunkID) (bool, error)
	FindChunk(owner storage.Owner, chunk storage.ChunkID) (*metapb.ChunkRef, error)
	Events(q *EventQuery) (EventPage, error)
	EventState() (EventState, error)
	EventCounters(after *EventCounter, limit int) (out []EventCounter, next *EventCounter, err error)
	DeadEvents(target string, after uint64, limit int) ([]DeadEvent, error)
	EventTimers(after *metapb.EventTimerID, limit int) ([]EventTimer, error)
	Walk(fn func(*Item) error) error
}

var _ Reader = (*View)(nil)

// Info is what a range knows of itself.
type Info struct {
	TimeMS     int64 // range time, unix ms
	Seq        storage.Seq
	Bounds     cluster.Bounds
	Descriptor *metapb.RangeDescriptor
}

// Info is what the range knows of itself.
func (v *View) Info() (Info, error) {
	return Info{TimeMS: v.TimeMS(), Seq: v.Seq(), Bounds: v.Bounds(), Descriptor: v.Descriptor()}, nil
}

// InRow are the pieces of a row whose bytes the row itself names: of an object that is
// not multipart. ok is false for others; their pieces are known to the range only. InvalidRange: the
// bytes don't lie in the object.
func InRow(row *metapb.ObjectRow, off, n int64) (segs []Segment, ok bool, err error) {
	size := int64(row.Size)
	if off < 0 || n < 0 || off > size || n > size-off {
		return nil, false, errs.Newf(errs.InvalidRange, "rangestate.segments", "", "%d bytes from %d on do not lie in %d", n, off, size)
	}
	if n == 0 {
		return nil, true, nil
	}
	if row.GetData().GetUploadSeq() != 0 {
		return nil, false, nil
	}
	s := Segment{
		Size: size, Inline: row.GetData().GetInline(), Chunks: row.GetData().GetChunks(), Offset: off, Length: n,
		Class: classOf(row),
	}
	copy(s.Write[:], row.WriteId)
	return []Segment{s}, true, nil
}

// WholePart is the extent of a part in an object that is not multipart: it is its own
// part 1. ok is false for others. InvalidRange: there is no such part.
func WholePart(row *metapb.ObjectRow, number int) (n int64, ok bool, err error) {
	switch {
	case row.GetData().GetUploadSeq() != 0:
		return 0, false, nil
	case number != 1:
		return 0, false, noPart(number)
	}
	return int64(row.Size), true, nil
}

func noPart(number int) error {
	return errs.Newf(errs.InvalidRange, "rangestate.part", "", "the object has no part %d", number)
}

func classOf(row *metapb.ObjectRow) storage.StorageClass {
	return storage.StorageClass(className(row.GetAttributes().GetStorageClass()))
}
