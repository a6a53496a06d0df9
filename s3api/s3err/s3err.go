// Package s3err is the one table of S3's error answers: code, HTTP status and
// message, and how the kinds of package errs become them.
package s3err

import (
	"context"
	"errors"

	"cairn/storage/errs"
)

// Code names an error answer of S3.
type Code uint16

// The codes cairn answers. Names are S3's own.
const (
	InternalError Code = iota
	AccessDenied
	AccessForbidden
	AuthorizationHeaderMalformed
	AuthorizationQueryParametersError
	BadDigest
	BucketAlreadyExists
	BucketAlreadyOwnedByYou
	BucketNotEmpty
	ConditionalRequestConflict
	EntityTooLarge
	EntityTooSmall
	IllegalLocationConstraintException
	IllegalVersioningConfigurationException
	IncompleteBody
	IncorrectNumberOfFilesInPostRequest
	InvalidAccessKeyId
	InvalidArgument
	InvalidBucketName
	InvalidBucketState
	InvalidDigest
	InvalidEncryptionAlgorithmError
	InvalidLocationConstraint
	InvalidObjectState
	InvalidPart
	InvalidPartOrder
	InvalidPolicyDocument
	InvalidRange
	InvalidRequest
	InvalidRetentionPeriod
	InvalidStorageClass
	InvalidTag
	InvalidToken
	InvalidURI
	KeyTooLongError
	MalformedACLError
	MalformedPOSTRequest
	MalformedTrailerError
	MalformedXML
	MaxMessageLengthExceeded
	MaxPostPreDataLengthExceededError
	MetadataTooLarge
	MethodNotAllowed
	MissingContentLength
	MissingSecurityHeader
	NoSuchBucket
	NoSuchBucketPolicy
	NoSuchCORSConfiguration
	NoSuchKey
	NoSuchConfiguration
	NoSuchLifecycleConfiguration
	NoSuchObjectLockConfiguration
	NoSuchPublicAccessBlockConfiguration
	NoSuchTagSet
	NoSuchUpload
	NoSuchVersion
	NoSuchWebsiteConfiguration
	NotImplemented
	ObjectLockConfigurationNotFoundError
	OperationAborted
	OwnershipControlsNotFoundError
	PreconditionFailed
	ReplicationConfigurationNotFoundError
	RequestTimeTooSkewed
	RequestTimeout
	RestoreAlreadyInProgress
	ServerSideEncryptionConfigurationNotFoundError
	ServiceUnavailable
	SignatureDoesNotMatch
	SlowDown
	TooManyBuckets
	TooManyConfigurations
	UnexpectedContent
	UnresolvableGrantByEmailAddress
	UserKeyMustBeSpecified
	XAmzContentSHA256Mismatch
	codes // how many there are
)

type info struct {
	name    string
	status  int
	message string
}

// table must not be changed; it is indexed by Code.
var table = [codes]info{
	InternalError:                           {"InternalError", 500, "We encountered an internal error. Please try again."},
	AccessDenied:                            {"AccessDenied", 403, "Access Denied"},
	AccessForbidden:                         {"AccessForbidden", 403, "CORSResponse: CORS is not enabled for this bucket."},
	AuthorizationHeaderMalformed:            {"AuthorizationHeaderMalformed", 400, "The authorization header that you provided is not valid."},
	AuthorizationQueryParametersError:       {"AuthorizationQueryParametersError", 400, "The authorization query parameters that you provided are not valid."},
	BadDigest:                               {"BadDigest", 400, "The Content-MD5 or checksum value that you specified did not match what the server received."},
	BucketAlreadyExists:                     {"BucketAlreadyExists", 409, "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Please select a different name and try again."},
	BucketAlreadyOwnedByYou:                 {"BucketAlreadyOwnedByYou", 409, "Your previous request to create the named bucket succeeded and you already own it."},
	BucketNotEmpty:                          {"BucketNotEmpty", 409, "The bucket you tried to delete is not empty."},
	ConditionalRequestConflict:              {"ConditionalRequestConflict", 409, "The conditional request cannot succeed due to a conflicting operation against this resource."},
	EntityTooLarge:                          {"EntityTooLarge", 400, "Your proposed upload exceeds the maximum allowed size."},
	EntityTooSmall:                          {"EntityTooSmall", 400, "Your proposed upload is smaller than the minimum allowed size."},
	IllegalLocationConstraintException:      {"IllegalLocationConstraintException", 400, "The location constraint is incompatible for the region specific endpoint this request was sent to."},
	IllegalVersioningConfigurationException: {"IllegalVersioningConfigurationException", 400, "The Versioning element must be specified"},
	IncompleteBody:                          {"IncompleteBody", 400, "You did not provide the number of bytes specified by the Content-Length HTTP header."},
	IncorrectNumberOfFilesInPostRequest:     {"IncorrectNumberOfFilesInPostRequest", 400, "POST requires exactly one file upload per request."},
	InvalidAccessKeyId:                      {"InvalidAccessKeyId", 403, "The AWS Access Key Id you provided does not exist in our records."},
	InvalidArgument:                         {"InvalidArgument", 400, "Invalid Argument"},
	InvalidBucketName:                       {"InvalidBucketName", 400, "The specified bucket is not valid."},
	InvalidBucketState:                      {"InvalidBucketState", 409, "The request is not valid with the current state of the bucket."},
	InvalidDigest:                           {"InvalidDigest", 400, "The Content-MD5 you specified was invalid."},
	InvalidEncryptionAlgorithmError:         {"InvalidEncryptionAlgorithmError", 400, "The encryption request you specified is not valid. The valid value is AES256."},
	InvalidLocationConstraint:               {"InvalidLocationConstraint", 400, "The specified location-constraint is not valid."},
	InvalidObjectState:                      {"InvalidObjectState", 403, "The operation is not valid for the object's storage class."},
	InvalidPart:                             {"InvalidPart", 400, "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."},
	InvalidPartOrder:                        {"InvalidPartOrder", 400, "The list of parts was not in ascending order. The parts list must be specified in order by part number."},
	InvalidPolicyDocument:                   {"InvalidPolicyDocument", 400, "The content of the form does not meet the conditions specified in the policy document."},
	InvalidRange:                            {"InvalidRange", 416, "The requested range is not satisfiable."},
	InvalidRequest:                          {"InvalidRequest", 400, "Invalid Request"},
	InvalidRetentionPeriod:                  {"InvalidRetentionPeriod", 400, "The default retention period must be a positive integer value, at most 36500 days or 100 years."},
	InvalidStorageClass:                     {"InvalidStorageClass", 400, "The storage class you specified is not valid."},
	InvalidTag:                              {"InvalidTag", 400, "The tag provided was not a valid tag."},
	InvalidToken:                            {"InvalidToken", 400, "The provided token is malformed or otherwise not valid."},
	InvalidURI:                              {"InvalidURI", 400, "Couldn't parse the specified URI."},
	KeyTooLongError:                         {"KeyTooLongError", 400, "Your key is too long."},
	MalformedACLError:                       {"MalformedACLError", 400, "The XML you provided was not well-formed or did not validate against our published schema."},
	MalformedPOSTRequest:                    {"MalformedPOSTRequest", 400, "The body of your POST request is not well-formed multipart/form-data."},
	MalformedTrailerError:                   {"MalformedTrailerError", 400, "The request contained trailing data that was not well-formed or did not conform to our published schema."},
	MalformedXML:                            {"MalformedXML", 400, "The XML you provided was not well-formed or did not validate against our published schema."},
	MaxMessageLengthExceeded:                {"MaxMessageLengthExceeded", 400, "Your request was too big."},
	MaxPostPreDataLengthExceededError:       {"MaxPostPreDataLengthExceededError", 400, "Your POST request fields preceding the upload file were too large."},
	MetadataTooLarge:                        {"MetadataTooLarge", 400, "Your metadata headers exceed the maximum allowed metadata size."},
	MethodNotAllowed:                        {"MethodNotAllowed", 405, "The specified method is not allowed against this resource."},
	MissingContentLength:                    {"MissingContentLength", 411, "You must provide the Content-Length HTTP header."},
	MissingSecurityHeader:                   {"MissingSecurityHeader", 400, "Your request was missing a required header."},
	NoSuchBucket:                            {"NoSuchBucket", 404, "The specified bucket does not exist"},
	NoSuchBucketPolicy:                      {"NoSuchBucketPolicy", 404, "The bucket policy does not exist"},
	NoSuchCORSConfiguration:                 {"NoSuchCORSConfiguration", 404, "The CORS configuration does not exist"},
	NoSuchKey:                               {"NoSuchKey", 404, "The specified key does not exist."},
	NoSuchConfiguration:                     {"NoSuchConfiguration", 404, "The specified configuration does not exist."},
	NoSuchLifecycleConfiguration:            {"NoSuchLifecycleConfiguration", 404, "The lifecycle configuration does not exist"},
	NoSuchObjectLockConfiguration:           {"NoSuchObjectLockConfiguration", 404, "The specified object does not have a ObjectLock configuration"},
	NoSuchPublicAccessBlockConfiguration:    {"NoSuchPublicAccessBlockConfiguration", 404, "The public access block configuration was not found"},
	NoSuchTagSet:                            {"NoSuchTagSet", 404, "The TagSet does not exist"},
	NoSuchUpload:                            {"NoSuchUpload", 404, "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."},
	NoSuchVersion:                           {"NoSuchVersion", 404, "The specified version does not exist."},
	NoSuchWebsiteConfiguration:              {"NoSuchWebsiteConfiguration", 404, "The specified bucket does not have a website configuration"},
	NotImplemented:                          {"NotImplemented", 501, "A header you provided implies functionality that is not implemented."},
	ObjectLockConfigurationNotFoundError:    {"ObjectLockConfigurationNotFoundError", 404, "Object Lock configuration does not exist for this bucket"},
	OperationAborted:                        {"OperationAborted", 409, "A conflicting conditional operation is currently in progress against this resource. Please try again."},
	OwnershipControlsNotFoundError:          {"OwnershipControlsNotFoundError", 404, "The bucket ownership controls were not found"},
	PreconditionFailed:                      {"PreconditionFailed", 412, "At least one of the pre-conditions you specified did not hold"},
	ReplicationConfigurationNotFoundError:   {"ReplicationConfigurationNotFoundError", 404, "The replication configuration was not found"},
	RequestTimeTooSkewed:                    {"RequestTimeTooSkewed", 403, "The difference between the request time and the server's time is too large."},
	RequestTimeout:                          {"RequestTimeout", 400, "Your socket connection to the server was not read from or written to within the timeout period."},
	RestoreAlreadyInProgress:                {"RestoreAlreadyInProgress", 409, "Object restore is already in progress"},
	ServerSideEncryptionConfigurationNotFoundError: {"ServerSideEncryptionConfigurationNotFoundError", 404, "The server side encryption configuration was not found"},
	ServiceUnavailable:              {"ServiceUnavailable", 503, "The service is unable to handle the request at the moment. Please retry."},
	SignatureDoesNotMatch:           {"SignatureDoesNotMatch", 403, "The request signature we calculated does not match the signature you provided. Check your key and signing method."},
	SlowDown:                        {"SlowDown", 503, "Please reduce your request rate."},
	TooManyConfigurations:           {"TooManyConfigurations", 400, "You are attempting to create a new configuration but have already reached the 1,000-configuration limit."},
	TooManyBuckets:                  {"TooManyBuckets", 400, "You have attempted to create more buckets than allowed"},
	UnexpectedContent:               {"UnexpectedContent", 400, "This request does not support content"},
	UnresolvableGrantByEmailAddress: {"UnresolvableGrantByEmailAddress", 400, "The email address you provided does not match any account on record."},
	UserKeyMustBeSpecified:          {"UserKeyMustBeSpecified", 400, "The bucket POST must contain the specified field name. If it is specified, check the order of the fields."},
	XAmzContentSHA256Mismatch:       {"XAmzContentSHA256Mismatch", 400, "The provided 'x-amz-content-sha256' header does not match what was computed."},
}

// String is S3's name of the code.
func (c Code) String() string {
	if c >= codes {
		return "InternalError"
	}
	return table[c].name
}

// Status is the HTTP status of the code.
func (c Code) Status() int {
	if c >= codes {
		return 500
	}
	return table[c].status
}

// Message is the code's usual message.
func (c Code) Message() string {
	if c >= codes {
		return table[InternalError].message
	}
	return table[c].message
}

// Lookup finds a code by S3's name of it.
func Lookup(name string) (Code, bool) {
	for c := range table {
		if table[c].name == name {
			return Code(c), true
		}
	}
	return InternalError, false
}

// Codes are all codes, for tests and documentation.
func Codes() []Code {
	cs := make([]Code, codes)
	for i := range cs {
		cs[i] = Code(i)
	}
	return cs
}

// Field is an extra element of an error's XML, such as Key or ArgumentName.
type Field struct{ Name, Value string }

// Error is an error answer.
type Error struct {
	Code    Code
	Message string  // the code's own if empty
	Fields  []Field // in the order they are written
	Header  []Field // extra response headers
	Err     error   // the cause, or nil; never shown to clients
}

// New makes an error with a message; "" is the code's own.
func New(c Code, message string, fields ...Field) *Error {
	return &Error{Code: c, Message: message, Fields: fields}
}

// Text is the message for the client.
func (e *Error) Text() string {
	if e.Message != "" {
		return e.Message
	}
	return e.Code.Message()
}

func (e *Error) Error() string {
	s := e.Code.String() + ": " + e.Text()
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// kindCode is what becomes of a kind of package errs, and whether the error's
// detail was written for the client (an answer about the request) or for the
// operator (an answer about the machinery, which stays in the log).
func kindCode(k errs.Kind) (c Code, detail bool) {
	switch k {
	case errs.NoSuchBucket:
		return NoSuchBucket, false
	case errs.NoSuchKey:
		return NoSuchKey, false
	case errs.NoSuchVersion:
		return NoSuchVersion, false
	case errs.NoSuchUpload:
		return NoSuchUpload, false
	case errs.BucketAlreadyExists:
		return BucketAlreadyExists, false
	case errs.BucketAlreadyOwned:
		return BucketAlreadyOwnedByYou, false
	case errs.BucketNotEmpty:
		return BucketNotEmpty, false
	case errs.BucketBusy:
		return OperationAborted, false
	case errs.PreconditionFailed:
		return PreconditionFailed, false
	case errs.ConditionalConflict:
		return ConditionalRequestConflict, false
	case errs.IsDeleteMarker:
		return MethodNotAllowed, false
	case errs.ObjectLocked:
		return AccessDenied, true
	case errs.InvalidPart:
		return InvalidPart, true
	case errs.InvalidPartOrder:
		return InvalidPartOrder, false
	case errs.EntityTooSmall:
		return EntityTooSmall, true
	case errs.EntityTooLarge:
		return EntityTooLarge, false
	case errs.InvalidRange:
		return InvalidRange, false
	case errs.InvalidArgument:
		return InvalidArgument, true
	case errs.InvalidRequest:
		return InvalidRequest, true
	case errs.InvalidStorageClass:
		return InvalidStorageClass, false
	case errs.InvalidObjectState:
		return InvalidObjectState, true
	case errs.RestoreInProgress:
		return RestoreAlreadyInProgress, false
	case errs.InvalidState:
		return InvalidBucketState, true
	case errs.NotImplemented:
		return NotImplemented, true
	case errs.AccessDenied:
		return AccessDenied, false
	case errs.BadDigest:
		return BadDigest, true
	case errs.IncompleteBody:
		return IncompleteBody, false
	case errs.TooManyBuckets:
		return TooManyBuckets, false
	case errs.Busy:
		return SlowDown, false
	case errs.NotLeader, errs.WrongRange, errs.OutcomeUnknown, errs.TooLate, errs.Conflict, errs.StaleEpoch,
		errs.Unavailable, errs.DriveFailed, errs.DriveFull, errs.Closed, errs.Timeout:
		return ServiceUnavailable, false
	}
	return InternalError, false // Other, NotFound, Gone, Corrupt, Foreign: none is the client's doing
}

// From turns any error into an error answer: an *Error in its chain as it is,
// else by its kind, else InternalError. The cause stays in Err.
func From(err error) *Error {
	var s3 *Error
	if errors.As(err, &s3) {
		return s3
	}
	var e *errs.Error
	if errors.As(err, &e) {
		c, detail := kindCode(e.Kind)
		out := &Error{Code: c, Err: err}
		if detail {
			out.Message = e.Detail
		}
		return out
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &Error{Code: ServiceUnavailable, Err: err}
	}
	return &Error{Code: InternalError, Err: err}
}

// kindOf is the nearest kind of package errs for what a body can be refused for.
func kindOf(c Code) errs.Kind {
	switch c {
	case BadDigest, XAmzContentSHA256Mismatch, SignatureDoesNotMatch:
		return errs.BadDigest
	case IncompleteBody, RequestTimeout:
		return errs.IncompleteBody
	case EntityTooLarge:
		return errs.EntityTooLarge
	}
	return errs.InvalidRequest
}

// Wrap makes an error of package errs out of an error answer, so that it can
// travel through packages that only know kinds; From finds the answer again.
func Wrap(op string, e *Error) error {
	return errs.Wrap(kindOf(e.Code), op, "", e)
}
