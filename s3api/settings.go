package s3api

import (
	"cairn/s3api/s3err"
)

// What a bucket can have at S3 and can't have here: to ask for it is answered
// with the truth, that there is nothing, since tools ask without wanting it.
// To put it is refused, and there is never anything to delete.

// absent answers the owner that the bucket has no such configuration.
func absent(code s3err.Code) func(*request) (*response, error) {
	return func(q *request) (*response, error) {
		if _, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket); err != nil {
			return nil, err
		}
		return nil, s3err.New(code, "", s3err.Field{Name: "BucketName", Value: q.bucket})
	}
}

// fixed answers the owner a document that is the same for every bucket; inner is its XML below the root.
func fixed(root, inner string) func(*request) (*response, error) {
	return func(q *request) (*response, error) {
		if _, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket); err != nil {
			return nil, err
		}
		q.document(root)
		q.out.B = append(q.out.B, inner...)
		q.out.Close(root)
		return q.ok(), nil
	}
}

// deleteAbsent answers the owner that the bucket has no such configuration any more.
func deleteAbsent(q *request) (*response, error) {
	_, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	return q.noContent(err)
}
