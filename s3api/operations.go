package s3api

import (
	"net/http"

	"cairn/s3api/s3err"
)

// scope is what a request's path names.
type scope uint8

const (
	service scope = iota
	bucket
	object
)

func (s scope) String() string {
	switch s {
	case bucket:
		return "BUCKET"
	case object:
		return "OBJECT"
	}
	return "SERVICE"
}

// operation is one operation of S3 and what cairn does with it.
type operation struct {
	name    string
	method  string
	scope   scope
	sub     string                            // the query parameter that selects it
	variant string                            // tells apart operations of one method, scope and parameter, see (*request).variant
	handle  func(*request) (*response, error) // nil is refused with 501
	open    bool                              // authenticated by its handler, or says no to everybody
}

// Operations that are not in S3's model but have a place in its protocol.
const (
	opPostObject = "PostObject"
	opPreflight  = "OptionsObject"
	opUnknown    = "Unknown"
)

// operations is the one table of all 111 operations of S3's model and the few
// beside it, in alphabetical order within a scope. One without a handler is
// refused by name.
func operations() []operation {
	const (
		get, put, post, del, head = http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodHead
	)
	return []operation{
		{name: "ListBuckets", method: get, scope: service, handle: listBuckets},
		{name: "ListDirectoryBuckets", method: get, scope: service, variant: "directory"},
		{name: "WriteGetObjectResponse", method: post, scope: bucket, variant: "lambda"},

		{name: "CreateBucket", method: put, scope: bucket, handle: createBucket},
		{name: "CreateBucketMetadataConfiguration", method: post, scope: bucket, sub: "metadataConfiguration"},
		{name: "CreateBucketMetadataTableConfiguration", method: post, scope: bucket, sub: "metadataTable"},
		{name: "CreateSession", method: get, scope: bucket, sub: "session"},
		{name: "DeleteBucket", method: del, scope: bucket, handle: deleteBucket},
		{name: "DeleteBucketAnalyticsConfiguration", method: del, scope: bucket, sub: "analytics"},
		{name: "DeleteBucketCors", method: del, scope: bucket, sub: "cors", handle: deleteAbsent},
		{name: "DeleteBucketEncryption", method: del, scope: bucket, sub: "encryption", handle: deleteAbsent},
		{name: "DeleteBucketIntelligentTieringConfiguration", method: del, scope: bucket, sub: "intelligent-tiering", handle: deleteBucketTiering},
		{name: "DeleteBucketInventoryConfiguration", method: del, scope: bucket, sub: "inventory"},
		{name: "DeleteBucketLifecycle", method: del, scope: bucket, sub: "lifecycle", handle: deleteBucketLifecycle},
		{name: "DeleteBucketMetadataConfiguration", method: del, scope: bucket, sub: "metadataConfiguration"},
		{name: "DeleteBucketMetadataTableConfiguration", method: del, scope: bucket, sub: "metadataTable"},
		{name: "DeleteBucketMetricsConfiguration", method: del, scope: bucket, sub: "metrics"},
		{name: "DeleteBucketOwnershipControls", method: del, scope: bucket, sub: "ownershipControls", handle: deleteBucketOwnershipControls},
		{name: "DeleteBucketPolicy", method: del, scope: bucket, sub: "policy", handle: deleteAbsent},
		{name: "DeleteBucketReplication", method: del, scope: bucket, sub: "replication", handle: deleteAbsent},
		{name: "DeleteBucketTagging", method: del, scope: bucket, sub: "tagging", handle: deleteBucketTagging},
		{name: "DeleteBucketWebsite", method: del, scope: bucket, sub: "website", handle: deleteAbsent},
		{name: "DeleteObjects", method: post, scope: bucket, sub: "delete", handle: deleteObjects},
		{name: "DeletePublicAccessBlock", method: del, scope: bucket, sub: "publicAccessBlock", handle: deletePublicAccessBlock},
		{name: "GetBucketAbac", method: get, scope: bucket, sub: "abac"},
		{name: "GetBucketAccelerateConfiguration", method: get, scope: bucket, sub: "accelerate", handle: fixed("AccelerateConfiguration", "")},
		{name: "GetBucketAcl", method: get, scope: bucket, sub: "acl", handle: getBucketAcl},
		{name: "GetBucketAnalyticsConfiguration", method: get, scope: bucket, sub: "analytics", variant: "id"},
		{name: "GetBucketCors", method: get, scope: bucket, sub: "cors", handle: absent(s3err.NoSuchCORSConfiguration)},
		{name: "GetBucketEncryption", method: get, scope: bucket, sub: "encryption", handle: absent(s3err.ServerSideEncryptionConfigurationNotFoundError)},
		{name: "GetBucketIntelligentTieringConfiguration", method: get, scope: bucket, sub: "intelligent-tiering", variant: "id", handle: getBucketTiering},
		{name: "GetBucketInventoryConfiguration", method: get, scope: bucket, sub: "inventory", variant: "id"},
		{name: "GetBucketLifecycle", method: get, scope: bucket, sub: "lifecycle", variant: "old", handle: getBucketLifecycle},
		{name: "GetBucketLifecycleConfiguration", method: get, scope: bucket, sub: "lifecycle", handle: getBucketLifecycle},
		{name: "GetBucketLocation", method: get, scope: bucket, sub: "location", handle: getBucketLocation},
		{name: "GetBucketLogging", method: get, scope: bucket, sub: "logging", handle: fixed("BucketLoggingStatus", "")},
		{name: "GetBucketMetadataConfiguration", method: get, scope: bucket, sub: "metadataConfiguration"},
		{name: "GetBucketMetadataTableConfiguration", method: get, scope: bucket, sub: "metadataTable"},
		{name: "GetBucketMetricsConfiguration", method: get, scope: bucket, sub: "metrics", variant: "id"},
		{name: "GetBucketNotification", method: get, scope: bucket, sub: "notification", variant: "old", handle: getBucketNotification},
		{name: "GetBucketNotificationConfiguration", method: get, scope: bucket, sub: "notification", handle: getBucketNotification},
		{name: "GetBucketOwnershipControls", method: get, scope: bucket, sub: "ownershipControls", handle: getBucketOwnershipControls},
		{name: "GetBucketPolicy", method: get, scope: bucket, sub: "policy", handle: absent(s3err.NoSuchBucketPolicy)},
		{name: "GetBucketPolicyStatus", method: get, scope: bucket, sub: "policyStatus", handle: absent(s3err.NoSuchBucketPolicy)},
		{name: "GetBucketReplication", method: get, scope: bucket, sub: "replication", handle: absent(s3err.ReplicationConfigurationNotFoundError)},
		{name: "GetBucketRequestPayment", method: get, scope: bucket, sub: "requestPayment", handle: fixed("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>")},
		{name: "GetBucketTagging", method: get, scope: bucket, sub: "tagging", handle: getBucketTagging},
		{name: "GetBucketVersioning", method: get, scope: bucket, sub: "versioning", handle: getBucketVersioning},
		{name: "GetBucketWebsite", method: get, scope: bucket, sub: "website", handle: absent(s3err.NoSuchWebsiteConfiguration)},
		{name: "GetObjectLockConfiguration", method: get, scope: bucket, sub: "object-lock", handle: getObjectLockConfiguration},
		{name: "GetPublicAccessBlock", method: get, scope: bucket, sub: "publicAccessBlock", handle: getPublicAccessBlock},
		{name: "HeadBucket", method: head, scope: bucket, handle: headBucket},
		{name: "ListBucketAnalyticsConfigurations", method: get, scope: bucket, sub: "analytics"},
		{name: "ListBucketIntelligentTieringConfigurations", method: get, scope: bucket, sub: "intelligent-tiering", handle: listBucketTiering},
		{name: "ListBucketInventoryConfigurations", method: get, scope: bucket, sub: "inventory"},
		{name: "ListBucketMetricsConfigurations", method: get, scope: bucket, sub: "metrics"},
		{name: "ListMultipartUploads", method: get, scope: bucket, sub: "uploads", handle: listUploads},
		{name: "ListObjectVersions", method: get, scope: bucket, sub: "versions", handle: listVersions},
		{name: "ListObjects", method: get, scope: bucket, handle: listObjectsV1},
		{name: "ListObjectsV2", method: get, scope: bucket, variant: "2", handle: listObjectsV2},
		{name: "PutBucketAbac", method: put, scope: bucket, sub: "abac"},
		{name: "PutBucketAccelerateConfiguration", method: put, scope: bucket, sub: "accelerate"},
		{name: "PutBucketAcl", method: put, scope: bucket, sub: "acl", handle: putBucketAcl},
		{name: "PutBucketAnalyticsConfiguration", method: put, scope: bucket, sub: "analytics"},
		{name: "PutBucketCors", method: put, scope: bucket, sub: "cors"},
		{name: "PutBucketEncryption", method: put, scope: bucket, sub: "encryption"},
		{name: "PutBucketIntelligentTieringConfiguration", method: put, scope: bucket, sub: "intelligent-tiering", handle: putBucketTiering},
		{name: "PutBucketInventoryConfiguration", method: put, scope: bucket, sub: "inventory"},
		{name: "PutBucketLifecycle", method: put, scope: bucket, sub: "lifecycle", variant: "old", handle: putBucketLifecycle},
		{name: "PutBucketLifecycleConfiguration", method: put, scope: bucket, sub: "lifecycle", handle: putBucketLifecycle},
		{name: "PutBucketLogging", method: put, scope: bucket, sub: "logging"},
		{name: "PutBucketMetricsConfiguration", method: put, scope: bucket, sub: "metrics"},
		{name: "PutBucketNotification", method: put, scope: bucket, sub: "notification", variant: "old", handle: putBucketNotification},
		{name: "PutBucketNotificationConfiguration", method: put, scope: bucket, sub: "notification", handle: putBucketNotification},
		{name: "PutBucketOwnershipControls", method: put, scope: bucket, sub: "ownershipControls", handle: putBucketOwnershipControls},
		{name: "PutBucketPolicy", method: put, scope: bucket, sub: "policy"},
		{name: "PutBucketReplication", method: put, scope: bucket, sub: "replication"},
		{name: "PutBucketRequestPayment", method: put, scope: bucket, sub: "requestPayment"},
		{name: "PutBucketTagging", method: put, scope: bucket, sub: "tagging", handle: putBucketTagging},
		{name: "PutBucketVersioning", method: put, scope: bucket, sub: "versioning", handle: putBucketVersioning},
		{name: "PutBucketWebsite", method: put, scope: bucket, sub: "website"},
		{name: "PutObjectLockConfiguration", method: put, scope: bucket, sub: "object-lock", handle: putObjectLockConfiguration},
		{name: "PutPublicAccessBlock", method: put, scope: bucket, sub: "publicAccessBlock", handle: putPublicAccessBlock},
		{name: "UpdateBucketMetadataInventoryTableConfiguration", method: put, scope: bucket, sub: "metadataInventoryTable"},
		{name: "UpdateBucketMetadataJournalTableConfiguration", method: put, scope: bucket, sub: "metadataJournalTable"},

		{name: "AbortMultipartUpload", method: del, scope: object, sub: "uploadId", handle: abortUpload},
		{name: "CompleteMultipartUpload", method: post, scope: object, sub: "uploadId", handle: completeUpload},
		{name: "CopyObject", method: put, scope: object, variant: "copy", handle: copyObject},
		{name: "CreateMultipartUpload", method: post, scope: object, sub: "uploads", handle: createUpload},
		{name: "DeleteObject", method: del, scope: object, handle: deleteObject},
		{name: "DeleteObjectTagging", method: del, scope: object, sub: "tagging", handle: deleteObjectTagging},
		{name: "GetObject", method: get, scope: object, handle: getObject},
		{name: "GetObjectAcl", method: get, scope: object, sub: "acl", handle: getObjectAcl},
		{name: "GetObjectAttributes", method: get, scope: object, sub: "attributes", handle: getObjectAttributes},
		{name: "GetObjectLegalHold", method: get, scope: object, sub: "legal-hold", handle: getObjectLegalHold},
		{name: "GetObjectRetention", method: get, scope: object, sub: "retention", handle: getObjectRetention},
		{name: "GetObjectTagging", method: get, scope: object, sub: "tagging", handle: getObjectTagging},
		{name: "GetObjectTorrent", method: get, scope: object, sub: "torrent"},
		{name: "HeadObject", method: head, scope: object, handle: headObject},
		{name: "ListParts", method: get, scope: object, sub: "uploadId", handle: listParts},
		{name: "PutObject", method: put, scope: object, handle: putObject},
		{name: "PutObjectAcl", method: put, scope: object, sub: "acl", handle: putObjectAcl},
		{name: "PutObjectLegalHold", method: put, scope: object, sub: "legal-hold", handle: putObjectLegalHold},
		{name: "PutObjectRetention", method: put, scope: object, sub: "retention", handle: putObjectRetention},
		{name: "PutObjectTagging", method: put, scope: object, sub: "tagging", handle: putObjectTagging},
		{name: "RenameObject", method: put, scope: object, sub: "renameObject"},
		{name: "RestoreObject", method: post, scope: object, sub: "restore", handle: restoreObject},
		{name: "SelectObjectContent", method: post, scope: object, sub: "select"},
		{name: "UpdateObjectEncryption", method: put, scope: object, sub: "encryption"},
		{name: "UploadPart", method: put, scope: object, sub: "uploadId", handle: uploadPart},
		{name: "UploadPartCopy", method: put, scope: object, sub: "uploadId", variant: "copy", handle: uploadPartCopy},

		// Not in the model: browser uploads and CORS preflight.
		{name: opPostObject, method: post, scope: bucket, variant: "form", handle: postObject, open: true},
		{name: opPreflight, method: http.MethodOptions, scope: service, handle: preflight, open: true},
		{name: opPreflight, method: http.MethodOptions, scope: bucket, handle: preflight, open: true},
		{name: opPreflight, method: http.MethodOptions, scope: object, handle: preflight, open: true},
	}
}

// routeKey selects an operation.
type routeKey struct {
	method  string
	scope   scope
	sub     string
	variant string
}

// routes finds operations.
type routes struct {
	ops  map[routeKey]*operation
	subs map[string]bool // query parameters that select operations
	// plain are the operations of requests without such a parameter or variant: the hot ones, found without a map.
	plain   [3][5]*operation
	unknown *operation
}

func newRoutes(ops []operation) routes {
	r := routes{ops: make(map[routeKey]*operation, len(ops)), subs: make(map[string]bool), unknown: &operation{name: opUnknown}}
	for i := range ops {
		op := &ops[i]
		r.ops[routeKey{op.method, op.scope, op.sub, op.variant}] = op
		if op.sub != "" {
			r.subs[op.sub] = true
		} else if m := methodIndex(op.method); m >= 0 && op.variant == "" {
			r.plain[op.scope][m] = op
		}
	}
	return r
}

func methodIndex(method string) int {
	switch method {
	case http.MethodGet:
		return 0
	case http.MethodPut:
		return 1
	case http.MethodPost:
		return 2
	case http.MethodDelete:
		return 3
	case http.MethodHead:
		return 4
	}
	return -1
}

// find is the operation, or nil if there is none.
func (r *routes) find(method string, s scope, sub, variant string) *operation {
	if sub == "" && variant == "" {
		if m := methodIndex(method); m >= 0 {
			return r.plain[s][m]
		}
	}
	return r.ops[routeKey{method, s, sub, variant}]
}
