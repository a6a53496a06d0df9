// Package errs is the one error type that crosses package borders in cairn.
//
// An Error names the operation, the subject and a Kind. Code matches by Kind
// (errs.Is), never by text; a Kind survives the trip over RPC. One table in
// s3api/s3err turns kinds into S3 codes.
package errs

import (
	"errors"
	"fmt"
)

// Kind classifies an error by what the caller can do about it.
type Kind uint16

// Kinds are persisted in outcome rows and sent over RPC: never renumber, only append.
const (
	Other Kind = iota // unexpected: a bug or an unclassified failure

	// Answers about the namespace.
	NoSuchBucket
	NoSuchKey
	NoSuchVersion
	NoSuchUpload
	BucketAlreadyExists // owned by another account
	BucketAlreadyOwned  // owned by the caller
	BucketNotEmpty      //
	BucketBusy          // the bucket is being created or deleted right now; try again
	PreconditionFailed  // If-Match, If-None-Match and the like: 412
	ConditionalConflict // a concurrent change was seen: 409
	IsDeleteMarker      // the version addressed is a delete marker
	ObjectLocked        // retention or legal hold
	InvalidPart         // Complete names a part that is missing or has another ETag
	InvalidPartOrder    //
	EntityTooSmall      // a part other than the last is under 5 MiB
	EntityTooLarge      //
	InvalidRange        //
	InvalidArgument     //
	InvalidRequest      //
	InvalidStorageClass //
	InvalidObjectState  // archived and not restored
	NotImplemented      //
	AccessDenied        //
	BadDigest           // the body does not match the digest sent with it
	IncompleteBody      // the body ended before its announced length
	TooManyBuckets      //

	// Answers about the machinery.
	NotLeader      // definitely not proposed here; the error may name the leader
	WrongRange     // the key is outside the range's bounds; refresh and go elsewhere
	OutcomeUnknown // proposed, fate unknown: repeat the same command id
	TooLate        // a repeat that came after its outcome was forgotten: nothing was changed by this try
	Conflict       // a background command's condition (write id, generation) did not hold
	StaleEpoch     // the placement group's epoch named is older than the drive's
	Busy           // a queue is full: S3 SlowDown
	Unavailable    // no quorum, no leader, not enough drives: 503
	DriveFailed    // the drive is failed, gone or removed
	DriveFull      // below its reserve
	NotFound       // shard, row or file not there (internal; never a reason to delete anything)
	Gone           // the chunk was removed by a committed delete; appends and reads are refused
	Corrupt        // checksum or format mismatch
	Foreign        // belongs to another store or drive incarnation
	Closed         // the component is shutting down
	Timeout        // a deadline inside cairn passed
	InvalidState   // the bucket's configuration forbids it: 409

	RestoreInProgress // of the version, and not to be made faster by what was asked: 409
)

var kindNames = map[Kind]string{
	Other: "internal error", NoSuchBucket: "no such bucket", NoSuchKey: "no such key", NoSuchVersion: "no such version",
	NoSuchUpload: "no such upload", BucketAlreadyExists: "bucket exists", BucketAlreadyOwned: "bucket already owned",
	BucketNotEmpty: "bucket not empty", BucketBusy: "bucket busy", PreconditionFailed: "precondition failed",
	ConditionalConflict: "conditional conflict", IsDeleteMarker: "delete marker", ObjectLocked: "object locked",
	InvalidPart: "invalid part", InvalidPartOrder: "invalid part order", EntityTooSmall: "entity too small",
	EntityTooLarge: "entity too large", InvalidRange: "invalid range", InvalidArgument: "invalid argument",
	InvalidRequest: "invalid request", InvalidStorageClass: "invalid storage class", InvalidObjectState: "invalid object state",
	NotImplemented: "not implemented", AccessDenied: "access denied", BadDigest: "bad digest", IncompleteBody: "incomplete body",
	TooManyBuckets: "too many buckets", NotLeader: "not leader", WrongRange: "wrong range", OutcomeUnknown: "outcome unknown",
	TooLate: "too late", Conflict: "conflict", StaleEpoch: "stale epoch", Busy: "busy", Unavailable: "unavailable",
	DriveFailed: "drive failed", DriveFull: "drive full", NotFound: "not found", Gone: "gone", Corrupt: "corrupt",
	Foreign: "foreign", Closed: "closed", Timeout: "timeout",
	InvalidState: "invalid state", RestoreInProgress: "restore in progress",
}

func (k Kind) String() string {
	if s, ok := kindNames[k]; ok {
		return s
	}
	return fmt.Sprintf("kind %d", uint16(k))
}

// Error is an operation on a subject that failed in a known way.
type Error struct {
	Kind    Kind
	Op      string // what was tried: "drive.append"
	Subject string // on what: a drive, a key, a path
	Detail  string // for people: what is wrong and what to do next
	Err     error  // the cause, or nil
}

func (e *Error) Error() string {
	s := e.Kind.String()
	if e.Detail != "" {
		s = e.Detail
	}
	if e.Subject != "" {
		s = e.Subject + ": " + s
	}
	if e.Op != "" {
		s = e.Op + ": " + s
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// New makes an error of a kind; detail may be empty.
func New(k Kind, op, subject, detail string) *Error {
	return &Error{Kind: k, Op: op, Subject: subject, Detail: detail}
}

// Newf is New with a formatted detail.
func Newf(k Kind, op, subject, format string, args ...any) *Error {
	return &Error{Kind: k, Op: op, Subject: subject, Detail: fmt.Sprintf(format, args...)}
}

// Wrap gives err a kind, operation and subject. A nil err gives nil.
func Wrap(k Kind, op, subject string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: k, Op: op, Subject: subject, Err: err}
}

// KindOf is the kind of the first Error in err's chain, or Other.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Other
}

// Is reports whether err is an Error of kind k. It is false for nil.
func Is(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}
