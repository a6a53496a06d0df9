// Package s3api is the S3 protocol: everything between net/http and the meaning
// of the operations (package objects).
//
// A request goes through one pipeline. It is parsed once into a typed request
// (operation, bucket, key, parameters), authenticated, its headers are checked
// against what cairn acts on, a function for the operation answers a response
// or an error, and that is encoded, counted and logged. Each step stands in one
// place. What S3 knows and cairn does not do is refused by name, never ignored.
//
// Keys are opaque bytes: the path is taken from the request line as it came and
// decoded once, so the handler must not stand behind http.ServeMux.
package s3api

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"log/slog"
	mathrand "math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/lifecycle"
	"cairn/s3api/objects"
	"cairn/s3api/sigv4"
	"cairn/storage"
	"cairn/storage/errs"
)

// Backend does the operations: objects.Store, or a fake in tests. It checks
// existence, ownership (AccessDenied) and conditions, resolves ranges and part
// numbers, and answers errors of package errs. Bodies are read only while the
// call runs.
type Backend interface {
	CreateBucket(ctx context.Context, acct objects.Account, name string, opt objects.BucketOptions) error
	HeadBucket(ctx context.Context, acct objects.Account, name string) (objects.Bucket, error)
	DeleteBucket(ctx context.Context, acct objects.Account, name string) error
	ListBuckets(ctx context.Context, acct objects.Account, prefix, after string, max int) (buckets []objects.Bucket, truncated bool, err error)
	// PutBucketVersioning enables or suspends. InvalidState while the bucket has object lock and versioning would be suspended.
	PutBucketVersioning(ctx context.Context, acct objects.Account, name string, enabled bool) error
	// PutBucketLock sets the default retention (cfg.Enabled is not looked at). InvalidState unless versioning is enabled.
	PutBucketLock(ctx context.Context, acct objects.Account, name string, cfg objects.LockConfig) error
	// PutBucketLifecycle replaces the bucket's lifecycle rules, which are valid; nil: none.
	PutBucketLifecycle(ctx context.Context, acct objects.Account, bucket string, cfg *metapb.LifecycleConfig) error
	// PutBucketNotification replaces the bucket's notification configuration, which is valid; nil: none. NotFound, with the ARN as its detail: there is no
	// such target.
	PutBucketNotification(ctx context.Context, acct objects.Account, bucket string, cfg *metapb.NotificationConfig) error
	// PutBucketTiering puts a valid tiering configuration, in the place of that with its id. EntityTooLarge: there are as many as there can be.
	PutBucketTiering(ctx context.Context, acct objects.Account, bucket string, cfg *metapb.TieringConfig) error
	// DeleteBucketTiering removes the one with that id. NotFound: there is none.
	DeleteBucketTiering(ctx context.Context, acct objects.Account, bucket, id string) error
	PutBucketTags(ctx context.Context, acct objects.Account, name string, tags []*metapb.KV) error                         // nil: none
	PutBucketPublicAccessBlock(ctx context.Context, acct objects.Account, name string, p *objects.PublicAccessBlock) error // nil: none
	// PutBucketOwnershipControls sets whether the bucket has the ownership controls that describe it: BucketOwnerEnforced.
	PutBucketOwnershipControls(ctx context.Context, acct objects.Account, name string, there bool) error

	PutObject(ctx context.Context, acct objects.Account, in *objects.PutInput) (*objects.PutOutput, error)
	GetObject(ctx context.Context, acct objects.Account, in *objects.GetInput) (*objects.Object, error)
	HeadObject(ctx context.Context, acct objects.Account, in *objects.GetInput) (*objects.Object, error)
	DeleteObject(ctx context.Context, acct objects.Account, bucket string, item objects.DeleteItem) (objects.DeleteResult, error)
	DeleteObjects(ctx context.Context, acct objects.Account, bucket string, items []objects.DeleteItem) ([]objects.DeleteResult, error)
	CopyObject(ctx context.Context, acct objects.Account, in *objects.CopyInput) (*objects.PutOutput, error)
	ListObjects(ctx context.Context, acct objects.Account, in *objects.ListInput) (*objects.ListOutput, error)
	ListVersions(ctx context.Context, acct objects.Account, in *objects.ListVersionsInput) (*objects.ListVersionsOutput, error)
	// ObjectParts are the parts of an object, read-only: o as HeadObject answers it, up to max parts with numbers above after.
	// An object that is not multipart has none. Their Modified is not set.
	ObjectParts(ctx context.Context, acct objects.Account, in *objects.GetInput, after, max int) (o *objects.Object, parts []objects.Part, more bool, err error)

	// These change a version in place and answer its id, "" on a bucket that never was versioned. DeleteMarkerError if it is a marker.
	PutTags(ctx context.Context, acct objects.Account, v objects.VersionRef, tags []*metapb.KV) (versionID string, err error)
	DeleteTags(ctx context.Context, acct objects.Account, v objects.VersionRef) (versionID string, err error)
	// PutRetention: AccessDenied where what is there forbids it; InvalidRequest on a bucket without object lock.
	PutRetention(ctx context.Context, acct objects.Account, v objects.VersionRef, r objects.Retention, bypass bool) (versionID string, err error)
	PutLegalHold(ctx context.Context, acct objects.Account, v objects.VersionRef, on bool) (versionID string, err error)
	// RestoreObject: ArchivedError if the version is not archived; DaysError if r's days, 0 if none were asked for, are not for it; RestoreInProgress if one is under way that r does not make faster.
	RestoreObject(ctx context.Context, acct objects.Account, v objects.VersionRef, r objects.RestoreRequest) (objects.RestoreResult, error)

	CreateUpload(ctx context.Context, acct objects.Account, in *objects.CreateUploadInput) (objects.Upload, error)
	UploadPart(ctx context.Context, acct objects.Account, in *objects.UploadPartInput) (*objects.PutOutput, error)
	UploadPartCopy(ctx context.Context, acct objects.Account, in *objects.UploadPartCopyInput) (*objects.PutOutput, error)
	CompleteUpload(ctx context.Context, acct objects.Account, in *objects.CompleteInput) (*objects.PutOutput, error)
	AbortUpload(ctx context.Context, acct objects.Account, bucket string, key storage.Key, uploadID string) error
	ListParts(ctx context.Context, acct objects.Account, in *objects.ListPartsInput) (*objects.ListPartsOutput, error)
	ListUploads(ctx context.Context, acct objects.Account, in *objects.ListUploadsInput) (*objects.ListUploadsOutput, error)
}

// Metrics is told about every request when it ends. Operation is the S3 name or
// "Unknown"; in counts decoded body bytes read, out the bytes of the response body.
type Metrics interface {
	Request(operation string, status int, in, out int64, took time.Duration)
}

// Defaults of Config.
const (
	DefaultRegion      = "us-east-1"
	DefaultRequestsMax = 1024
	DefaultXMLBytesMax = 64 << 20
	DefaultIdleTimeout = time.Minute
)

// Config of a handler.
type Config struct {
	Region  string   // default us-east-1
	Domains []string // host names under which a bucket may stand as the first label (virtual-host style); no ports
	// Accounts finds who an access key belongs to. Called for every request, concurrently; must be cheap.
	Accounts func(accessKey string) (secret string, acct objects.Account, ok bool)
	// AccountExists reports whether there is an account of the id, for grants; nil: none but who asks is known. Called concurrently.
	AccountExists func(id string) bool
	Now           func() time.Time // for signatures; default time.Now
	// Expiry tells when which of the bucket's lifecycle rules will remove a current version, for x-amz-expiration, or abort an
	// upload, for x-amz-abort-date; nil: no answer has them. Called concurrently, and only where there are rules; must be cheap.
	Expiry func(rules *metapb.LifecycleConfig, o lifecycle.Object) (at time.Time, ruleID string, ok bool)
	// Destinations asks the targets of a notification configuration before it is put; nil: none is asked, only that they are known counts.
	Destinations Destinations

	RequestsMax int           // requests at once, past it 503 SlowDown; default 1024
	XMLBytesMax int64         // bytes of XML bodies held at once by all requests; default 64 MiB
	IdleTimeout time.Duration // how long a client may leave a body unsent or unread; default 1 minute

	HostID  string       // x-amz-id-2; default random
	Logger  *slog.Logger // default none
	Metrics Metrics      // default none
}

func (c *Config) setDefaults() {
	if c.Region == "" {
		c.Region = DefaultRegion
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.RequestsMax == 0 {
		c.RequestsMax = DefaultRequestsMax
	}
	if c.XMLBytesMax == 0 {
		c.XMLBytesMax = DefaultXMLBytesMax
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = DefaultIdleTimeout
	}
	if c.HostID == "" {
		var b [24]byte
		rand.Read(b[:])
		c.HostID = base64.StdEncoding.EncodeToString(b[:])
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Validate checks a configuration; zero values stand for the defaults.
func (c *Config) Validate() error {
	bad := func(subject, detail string) error {
		return errs.New(errs.InvalidArgument, "s3api config", subject, detail)
	}
	if c.Region != "" && !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`).MatchString(c.Region) {
		return bad(c.Region, "a region is 1 to 63 lower-case letters, digits and hyphens")
	}
	for _, d := range c.Domains {
		if d == "" || d != strings.ToLower(d) || strings.ContainsAny(d, ":/ ") || strings.HasPrefix(d, ".") || strings.HasSuffix(d, ".") {
			return bad(d, "a domain is a lower-case host name without port")
		}
	}
	switch {
	case c.Accounts == nil:
		return bad("Accounts", "is required")
	case c.RequestsMax < 0:
		return bad("RequestsMax", "must not be negative")
	case c.XMLBytesMax != 0 && c.XMLBytesMax < xmlBodyMax:
		return bad("XMLBytesMax", "must allow at least one document of 8 MiB")
	case c.IdleTimeout < 0:
		return bad("IdleTimeout", "must not be negative")
	case strings.ContainsFunc(c.HostID, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return bad("HostID", "must be printable ASCII")
	}
	return nil
}

// handler serves S3. Its fields do not change after New but for the counters and pools.
type handler struct {
	cfg      Config
	backend  Backend
	verifier *sigv4.Verifier
	routes   routes
	requests sync.Pool // *request
	idSeed   uint64
	idCount  atomic.Uint64
	running  atomic.Int64
	xmlBytes atomic.Int64 // held now
}

// New makes the S3 handler. It serves every path and method: don't put it behind a mux that cleans paths.
func New(cfg Config, b Backend) (http.Handler, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if b == nil {
		return nil, errs.New(errs.InvalidArgument, "s3api config", "backend", "is required")
	}
	cfg.setDefaults()
	h := &handler{cfg: cfg, backend: b, verifier: sigv4.NewVerifier(), routes: newRoutes(operations()), idSeed: mathrand.Uint64()}
	h.requests.New = func() any { return new(request) }
	return h, nil
}

// requestID is unique in this process and unlikely to repeat in another.
func (h *handler) requestID() string {
	const digits = "0123456789ABCDEF"
	// Weyl sequence and a mix: consecutive ids look nothing alike.
	x := h.idSeed + h.idCount.Add(1)*0x9e3779b97f4a7c15
	x ^= x >> 31
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 29
	var raw [8]byte
	var out [16]byte
	binary.BigEndian.PutUint64(raw[:], x)
	for i, c := range raw {
		out[2*i], out[2*i+1] = digits[c>>4], digits[c&15]
	}
	return string(out[:])
}
