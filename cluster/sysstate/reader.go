package sysstate

import (
	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/storage"
)

// Reader is what users of buckets read of the system group: a View where its leader is in
// this process, else questions to the leader's node. Each call is answered of a
// moment not before it; besides their own errors all may answer NotLeader, Unavailable, Busy and
// Timeout. Rows are the caller's. Not safe for concurrent use, and must not be kept.
type Reader interface {
	Store() (*metapb.SysStore, error)
	TimeMS() (int64, error)
	DriveStarts(id storage.DriveID) (uint64, error)
	BucketByName(name string) (*metapb.SysBucket, error)
	BucketByID(id storage.BucketID) (*metapb.SysBucket, error)
	ListBuckets(owner, prefix, after string, max int) (page []*metapb.SysBucket, more bool, err error)
	PendingBuckets(after storage.BucketID, max int) ([]*metapb.SysBucket, error)
	CountBuckets() (int64, error)
	Targets() ([]*metapb.SysTarget, error)
	Target(name string) (*metapb.SysTarget, error)
}

// View is the Reader over a state that is here.
type View struct{ r pebble.Reader }

var _ Reader = View{}

// NewView makes a View.
func NewView(r pebble.Reader) View { return View{r} }

// Store is Store.
func (v View) Store() (*metapb.SysStore, error) { return Store(v.r) }

// TimeMS is TimeMS.
func (v View) TimeMS() (int64, error) { return TimeMS(v.r) }

// DriveStarts is DriveStarts.
func (v View) DriveStarts(id storage.DriveID) (uint64, error) { return DriveStarts(v.r, id) }

// BucketByName is BucketByName.
func (v View) BucketByName(name string) (*metapb.SysBucket, error) { return BucketByName(v.r, name) }

// BucketByID is BucketByID.
func (v View) BucketByID(id storage.BucketID) (*metapb.SysBucket, error) { return BucketByID(v.r, id) }

// ListBuckets is ListBuckets.
func (v View) ListBuckets(owner, prefix, after string, max int) ([]*metapb.SysBucket, bool, error) {
	return ListBuckets(v.r, owner, prefix, after, max)
}

// PendingBuckets is PendingBuckets.
func (v View) PendingBuckets(after storage.BucketID, max int) ([]*metapb.SysBucket, error) {
	return PendingBuckets(v.r, after, max)
}

// CountBuckets is CountBuckets.
func (v View) CountBuckets() (int64, error) { return CountBuckets(v.r) }

// Targets is Targets.
func (v View) Targets() ([]*metapb.SysTarget, error) { return Targets(v.r) }

// Target is Target.
func (v View) Target(name string) (*metapb.SysTarget, error) { return Target(v.r, name) }

// TargetsPage is TargetsPage.
func (v View) TargetsPage(after string, max, bytesMax int) ([]*metapb.SysTarget, bool, error) {
	return TargetsPage(v.r, after, max, bytesMax)
}

// LifecycleBuckets is LifecycleBuckets.
func (v View) LifecycleBuckets(after storage.BucketID, max int) ([]*metapb.SysBucket, error) {
	return LifecycleBuckets(v.r, after, max)
}
