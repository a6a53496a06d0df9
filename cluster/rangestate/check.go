package rangestate

import (
	"math/bits"
	"slices"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Checks of what a command brings. A command that fails them is malformed: it was
// made by a bug, changes nothing and frees nothing.

const (
	idLen      = 16
	shardsMax  = 64 // ChunkRef.missing has as many bits
	classMax   = 64
	lockDayMax = 36500
	yearDays   = 365 // of a default retention: leap years would need a calendar, which a state machine should not depend on
	dayMS      = 24 * 60 * 60 * 1000
)

func checkKey(bucket uint64, key []byte) string {
	switch {
	case bucket == 0:
		return "no bucket"
	case len(key) == 0 || len(key) > storage.KeyBytesMax:
		return "a key has 1 to 1024 bytes"
	}
	return ""
}

// checkData judges data of size bytes brought by a command; "" is well.
func checkData(d *metapb.Data, size uint64) string {
	switch {
	case size > storage.ObjectBytesMax:
		return "too large"
	case d.GetUploadSeq() != 0 || d.GetParts() != 0:
		return "data must not name an upload"
	case len(d.GetInline()) > 0 && len(d.GetChunks()) > 0:
		return "data is inline or in chunks, not both"
	case len(d.GetChunks()) > storage.ObjectChunksMax:
		return "too many chunks"
	}
	sum := uint64(len(d.GetInline()))
	for i, c := range d.GetChunks() {
		switch {
		case c == nil || len(c.Id) != idLen:
			return "malformed chunk id"
		case c.K == 0 || c.K > shardsMax || c.M > shardsMax || c.K+c.M > shardsMax || c.StripeBytes == 0:
			return "malformed scheme of a chunk"
		case c.Length == 0 || c.Length > storage.ObjectBytesMax:
			return "malformed length of a chunk"
		case !c.WellCompressed():
			return "malformed compression of a chunk"
		case bits.Len64(c.Missing) > int(c.K+c.M):
			return "a chunk lacks shards it does not have"
		case findChunk(d.Chunks[:i], c.Id) >= 0:
			return "a chunk is named twice"
		}
		sum += c.ObjectBytes()
	}
	if sum != size {
		return "the data has another length than the row"
	}
	return ""
}

func findChunk(chunks []*metapb.ChunkRef, id []byte) int {
	return slices.IndexFunc(chunks, func(c *metapb.ChunkRef) bool { return string(c.GetId()) == string(id) })
}

// tooOld reports whether a chunk was born too long ago to be named by a new row
// (design rule 15): it may have been taken for an orphan.
func (m *Machine) tooOld(c *metapb.ChunkRef) bool {
	return storage.ChunkID(c.Id).BirthMS() < m.now()-chunkCommitMS
}

func tooOldResult() *metapb.RangeResult {
	return refuse(errs.TooLate, "a chunk was written too long ago")
}

// holds evaluates conditions against a version (nil: none, or a delete marker)
// and answers what is wrong, or 0.
func holds(c *metapb.Conditions, row *metapb.ObjectRow) errs.Kind {
	if c == nil {
		return 0
	}
	if row == nil {
		if len(c.IfMatch) > 0 || c.IfMatchModifiedMs != 0 || c.HasMatchSize {
			return errs.NoSuchKey
		}
		return 0
	}
	switch {
	case len(c.IfMatch) > 0 && !listed(c.IfMatch, row.Etag),
		listed(c.IfNoneMatch, row.Etag),
		c.IfMatchModifiedMs != 0 && c.IfMatchModifiedMs/1000 != row.ModifiedMs/1000, // HTTP dates have whole seconds
		c.HasMatchSize && c.IfMatchSize != int64(row.Size):
		return errs.PreconditionFailed
	}
	return 0
}

func listed(etags []string, etag string) bool {
	for _, e := range etags {
		if e == "*" || e == etag {
			return true
		}
	}
	return false
}

// locked reports whether object lock keeps the version from being destroyed.
func (m *Machine) locked(row *metapb.ObjectRow, bypass bool) bool {
	a := row.GetAttributes()
	if a == nil || row.DeleteMarker {
		return false
	}
	if a.LegalHold {
		return true
	}
	return a.LockUntilMs > m.now() && a.LockMode != "" && !(bypass && a.LockMode == governance)
}

// noObjectLock refuses a lock on a bucket that keeps none.
const noObjectLock = "the bucket has no object lock configuration"

// lockAttributes resolves the bucket's default retention for a new version. It
// answers a refusal if the client asks for a lock that the bucket cannot keep.
func (m *Machine) lockAttributes(b *metapb.BucketRow, a *metapb.Attributes) (*metapb.Attributes, *metapb.RangeResult) {
	if !b.ObjectLock {
		if a.GetLockMode() != "" || a.GetLockUntilMs() != 0 || a.GetLegalHold() {
			return nil, refuse(errs.InvalidRequest, noObjectLock)
		}
		return a, nil
	}
	if b.DefaultLockMode == "" || a.GetLockMode() != "" {
		return a, nil
	}
	if a == nil {
		a = &metapb.Attributes{}
	}
	a.LockMode = b.DefaultLockMode
	days := min(int64(b.DefaultLockDays)+int64(b.DefaultLockYears)*yearDays, lockDayMax)
	a.LockUntilMs = m.now() + days*dayMS
	return a, nil
}

// lost is the most shards that any one of the chunks lacks.
func lost(chunks []*metapb.ChunkRef) (n int) {
	for _, c := range chunks {
		n = max(n, bits.OnesCount64(c.Missing))
	}
	return n
}
