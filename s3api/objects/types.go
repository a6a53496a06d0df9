// Package objects is what S3's bucket and object operations mean: it turns each
// into chunks in the data plane and one command or read in the metadata plane.
// It knows nothing of HTTP; package s3api encodes and decodes.
//
// All errors are of package errs. Every method may be called concurrently and
// ends when its ctx does.
package objects

import (
	"io"
	"time"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Account is who asks. Root accounts may do everything in their own buckets and see none of another account's.
type Account struct {
	ID          string // canonical user id
	DisplayName string
	Request     Request // by which it asks, for events; the zero value where there is none
}

// Request is what events tell of the request that made them, beside who sent it.
type Request struct {
	ID       string // x-amz-request-id
	HostID   string // x-amz-id-2
	SourceIP string // of who sent it
}

// Bucket is a bucket as clients see it.
type Bucket struct {
	Name    string
	ID      storage.BucketID
	Owner   string // account id
	Created time.Time
	Region  string

	Versioning metapb.Versioning
	Lock       LockConfig
	Tags       []*metapb.KV // read-only

	PublicAccessBlock *PublicAccessBlock // nil: none was put
	OwnershipControls bool               // not deleted: BucketOwnerEnforced, what every bucket is

	Lifecycle  *metapb.LifecycleConfig // read-only; nil: none was put. Not in lists of buckets
	Tiering    []*metapb.TieringConfig // read-only, in order of their ids; only from HeadBucket
	Generation uint64                  // counts the decisions on the bucket: that of its rules, too

	Notification *metapb.NotificationConfig // read-only; nil: none was put. Only from HeadBucket
}

// PublicAccessBlock is S3's configuration of that name.
type PublicAccessBlock struct {
	BlockPublicAcls, IgnorePublicAcls, BlockPublicPolicy, RestrictPublicBuckets bool
}

// BucketOptions are what can be said of a bucket at its creation only.
type BucketOptions struct {
	Region     string
	ObjectLock bool // which enables versioning, too
}

// LockConfig is a bucket's object lock and the retention that its new objects get if they ask for none.
type LockConfig struct {
	Enabled bool   // never taken back
	Mode    string // GOVERNANCE, COMPLIANCE, or "" for no default
	Days    uint32 // of the default; one of Days and Years is set with Mode
	Years   uint32
}

// Retention is that of one version.
type Retention struct {
	Mode  string    // GOVERNANCE, COMPLIANCE, or "" for none
	Until time.Time // UTC
}

// VersionRef names a version of a key.
type VersionRef struct {
	Bucket    string
	Key       storage.Key
	VersionID string // "" is the current version
}

// DeleteMarkerError answers GetObject, HeadObject and everything else that wants an object of a version that is a
// delete marker. It wraps an error of kind IsDeleteMarker.
type DeleteMarkerError struct {
	VersionID string // of the marker
	Modified  time.Time
	Err       error
}

func (e *DeleteMarkerError) Error() string { return e.Err.Error() }
func (e *DeleteMarkerError) Unwrap() error { return e.Err }

// ArchivedError answers whatever wants the bytes of an archived version that can't be read now, and a restore of a version that
// is not archived. It wraps an error of kind InvalidObjectState.
type ArchivedError struct {
	Class storage.StorageClass // of the version
	Tier  metapb.Tiering_Tier  // of INTELLIGENT_TIERING; FREQUENT: none that is an archive
	Err   error
}

func (e *ArchivedError) Error() string { return e.Err.Error() }
func (e *ArchivedError) Unwrap() error { return e.Err }

// DaysError answers a restore whose days don't fit the version. It wraps an error of kind InvalidArgument.
type DaysError struct{ Err *errs.Error }

func (e *DaysError) Error() string { return e.Err.Error() }
func (e *DaysError) Unwrap() error { return e.Err }

// RestoreRequest asks for an archived version to be readable.
type RestoreRequest struct {
	Days int    // from the request on, to the next midnight UTC; at least 1, but of INTELLIGENT_TIERING, which has none: 0
	Tier string // Expedited, Standard or Bulk
}

// RestoreResult is what became of a RestoreRequest.
type RestoreResult struct {
	AlreadyRestored bool // it could be read already: only the end of that was set anew
	VersionID       string
}

// Conditions are the If-* of a request. ETags come without quotes; "*" stands for any.
type Conditions struct {
	IfMatch           []string
	IfNoneMatch       []string
	IfModifiedSince   time.Time // reads and copy sources only; zero is absent
	IfUnmodifiedSince time.Time
	IfMatchModified   time.Time // DeleteObject only: x-amz-if-match-last-modified-time
	IfMatchSize       *int64    // DeleteObject only: x-amz-if-match-size
}

// Range is the bytes asked for, as the Range header gives it, not yet resolved against a size.
type Range struct {
	First, Last int64 // inclusive; Last -1 is the end; with Suffix, Last bytes from the end
	Suffix      bool
}

// Body is an object's bytes on their way in. Read answers io.EOF only when the
// whole body came and everything that the client promised about it (signatures,
// Content-MD5, x-amz-content-sha256, checksums, trailers, length) was verified;
// any mismatch is an error of package errs (BadDigest, IncompleteBody, ...)
// instead, and nothing must be stored.
type Body interface {
	io.Reader
	// Size is the decoded length in bytes, always known.
	Size() int64
	// Checksums are what to store and return for the object; valid after Read answered io.EOF.
	// At least one (CRC64NVME if the client sent none).
	Checksums() []*metapb.Checksum
	// Algorithm is that of one of the Checksums to come, known before the first Read, so that nobody else computes it;
	// NONE promises none.
	Algorithm() metapb.ChecksumAlgorithm
}

// LateBody is a Body whose size shows only when its end is near: that of a form's file (POST Object). Size is at most how long it is.
type LateBody interface {
	Body
	// Sure is how many bytes come for certain; 0 if Size is exact.
	Sure() int64
	// Rest answers, once Sure bytes were read, how many more there are; io.EOF comes after exactly these.
	Rest() (int64, error)
}

// PutInput is a PutObject.
type PutInput struct {
	Bucket     string
	Key        storage.Key
	Body       Body
	Attributes *metapb.Attributes
	Conditions Conditions
	Form       bool // uploaded by an HTML form (POST Object)
}

// PutOutput answers PutObject, CopyObject and CompleteMultipartUpload.
type PutOutput struct {
	ETag      string // without quotes
	VersionID string // "" on a bucket that never was versioned
	Checksums []*metapb.Checksum
	Modified  time.Time
	Size      int64
	// Attributes are the object's, read-only; nil where they are not known: of a part, and of a Complete that was repeated.
	Attributes *metapb.Attributes
	// Lifecycle are the bucket's rules, read-only; nil: none, or they are not known. Of a part they are not.
	// Those that another gateway put may show a minute later.
	Lifecycle *metapb.LifecycleConfig
}

// GetInput is a GetObject or HeadObject.
type GetInput struct {
	Bucket     string
	Key        storage.Key
	VersionID  string // "" is the current version
	Range      *Range
	PartNumber int // 0 is none; excludes Range
	Conditions Conditions
}

// Object is a version's metadata and, for GetObject, the way to its bytes.
type Object struct {
	Key          storage.Key
	Size         int64 // of the whole object
	ETag         string
	VersionID    string // "" on a bucket that never was versioned
	DeleteMarker bool
	Modified     time.Time
	Attributes   *metapb.Attributes // read-only
	Checksums    []*metapb.Checksum // of the whole object
	Owner        string
	Parts        int                     // number of parts of a multipart object, else 0
	Restore      *metapb.Restore         // the last one asked for, if the version is archived; read-only
	Tiering      *metapb.Tiering         // of INTELLIGENT_TIERING, may be nil; read-only. Not in listings
	Lifecycle    *metapb.LifecycleConfig // the bucket's rules, if GetObject or HeadObject answered the current version; read-only
	// PartChecksums are those of the part asked for, if the object has parts; of the algorithm of Checksums.
	PartChecksums []*metapb.Checksum
	Offset        int64 // first byte asked for
	Length        int64 // bytes asked for
	Partial       bool  // a range or part was asked for: 206
	NotModified   bool  // 304: only the metadata is meant

	// send (GetObject only; see Send) writes the Length bytes from Offset on to w,
	// verified, and may be called once. Nil for HeadObject and for 304.
	send  func(w io.Writer) error
	close func()
}

// Send writes the bytes asked for to w, at most once. An error after the first byte means the client must see a broken connection.
func (o *Object) Send(w io.Writer) error { return o.send(w) }

// Attach gives o its bytes and what releases them (may be nil): for implementations of the operations other than Store.
func (o *Object) Attach(send func(w io.Writer) error, close func()) { o.send, o.close = send, close }

// Close releases the bytes: until then a removed object's chunks are kept. Must be called once for every Object from GetObject.
func (o *Object) Close() {
	if o.close != nil {
		o.close()
	}
}

// DeleteItem is one object to delete.
type DeleteItem struct {
	Key        storage.Key
	VersionID  string // "" is the current version
	Conditions Conditions
	Bypass     bool // governance retention
}

// DeleteResult is what became of one DeleteItem.
type DeleteResult struct {
	Err             error // nil also when there was nothing to delete
	VersionID       string
	DeleteMarker    bool
	MarkerVersionID string
}

// CopyInput is a CopyObject or the source half of an UploadPartCopy.
type CopyInput struct {
	SourceBucket      string
	SourceKey         storage.Key
	SourceVersionID   string
	SourceConditions  Conditions
	Bucket            string
	Key               storage.Key
	Conditions        Conditions         // on the destination
	Attributes        *metapb.Attributes // REPLACE; nil is COPY, without tags and lock, which the fields below give in both cases
	StorageClass      string             // of the copy when Attributes is nil; "" is STANDARD
	ReplaceTags       bool               // the copy gets Tags, else the source's
	Tags              []*metapb.KV
	Retention         Retention // of the copy; none: the bucket's default
	LegalHold         bool
	ChecksumAlgorithm metapb.ChecksumAlgorithm // asked for; NONE keeps the source's
}

// ListInput is a ListObjects or ListObjectsV2, already decoded.
type ListInput struct {
	Bucket    string
	Prefix    string
	Delimiter string
	After     string // only keys > After (marker, start-after or the decoded continuation token); with a delimiter, prefixes <= After are skipped
	Max       int    // 0 to 1000
}

// ListOutput is a page of a listing in UTF-8 binary order.
type ListOutput struct {
	Objects        []*Object
	CommonPrefixes []string
	Truncated      bool
	Next           string // last key or prefix of the page: After of the next one
}

// ListVersionsInput is a ListObjectVersions.
type ListVersionsInput struct {
	Bucket        string
	Prefix        string
	Delimiter     string
	KeyMarker     string // only what comes after: with VersionMarker, older versions of it too
	VersionMarker string // only with KeyMarker; "null" is the null version
	Max           int    // 0 to 1000
}

// ListVersionsOutput is a page of it: keys in UTF-8 binary order, the newest version of each first.
type ListVersionsOutput struct {
	Versions       []Version
	CommonPrefixes []string
	Truncated      bool
	NextKey        string
	NextVersion    string // "" behind a common prefix
}

// Version is a version or delete marker in a listing. Its Object always has a VersionID, "null" on buckets that never were versioned.
type Version struct {
	Object
	Latest bool
}

// CreateUploadInput is a CreateMultipartUpload.
type CreateUploadInput struct {
	Bucket     string
	Key        storage.Key
	Attributes *metapb.Attributes // with ChecksumAlgorithm and ChecksumFullObject
}

// UploadPartInput is an UploadPart.
type UploadPartInput struct {
	Bucket   string
	Key      storage.Key
	UploadID string
	Number   int // 1 to 10,000
	Body     Body
}

// UploadPartCopyInput is an UploadPartCopy.
type UploadPartCopyInput struct {
	SourceBucket     string
	SourceKey        storage.Key
	SourceVersionID  string
	SourceConditions Conditions
	SourceRange      *Range
	Bucket           string
	Key              storage.Key
	UploadID         string
	Number           int
}

// Part is a part as ListParts shows it.
type Part struct {
	Number    int
	ETag      string
	Size      int64
	Modified  time.Time
	Checksums []*metapb.Checksum
}

// CompletePart names a part in CompleteMultipartUpload.
type CompletePart struct {
	Number    int
	ETag      string             // without quotes
	Checksums []*metapb.Checksum // those the client named; they must match
}

// CompleteInput is a CompleteMultipartUpload.
type CompleteInput struct {
	Bucket     string
	Key        storage.Key
	UploadID   string
	Parts      []CompletePart
	Conditions Conditions
	Checksums  []*metapb.Checksum // of the whole object, as the client claims; verified
	Size       *int64             // x-amz-mp-object-size
	// ChecksumType is COMPOSITE or FULL_OBJECT if the client says which it expects, else "".
	ChecksumType string
}

// Upload is an upload in progress.
type Upload struct {
	Key        storage.Key
	ID         string
	Initiated  time.Time
	Owner      string
	Attributes *metapb.Attributes
	Lifecycle  *metapb.LifecycleConfig // the bucket's rules, as in PutOutput; not in listings of uploads
}

// ListUploadsInput is a ListMultipartUploads.
type ListUploadsInput struct {
	Bucket         string
	Prefix         string
	Delimiter      string
	KeyMarker      string
	UploadIDMarker string // only with KeyMarker
	Max            int
}

// ListUploadsOutput is a page of it: by key, then by initiation.
type ListUploadsOutput struct {
	Uploads        []Upload
	CommonPrefixes []string
	Truncated      bool
	NextKey        string
	NextUploadID   string
}

// ListPartsInput is a ListParts.
type ListPartsInput struct {
	Bucket   string
	Key      storage.Key
	UploadID string
	After    int // part-number-marker
	Max      int
}

// ListPartsOutput is a page of it.
type ListPartsOutput struct {
	Upload    Upload
	Parts     []Part
	Truncated bool
	Next      int
}
