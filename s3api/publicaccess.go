package s3api

import (
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
)

// Nobody but its owner gets at a bucket, so IgnorePublicAcls and RestrictPublicBuckets hold whether they are set or not,
// and BlockPublicPolicy as long as no policy can be put. BlockPublicAcls turns what is refused as not implemented into
// what is forbidden.

func getPublicAccessBlock(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	p := b.PublicAccessBlock
	if p == nil {
		return nil, s3err.New(s3err.NoSuchPublicAccessBlockConfiguration, "", s3err.Field{Name: "BucketName", Value: q.bucket})
	}
	q.document("PublicAccessBlockConfiguration")
	w := &q.out
	w.Bool("BlockPublicAcls", p.BlockPublicAcls)
	w.Bool("IgnorePublicAcls", p.IgnorePublicAcls)
	w.Bool("BlockPublicPolicy", p.BlockPublicPolicy)
	w.Bool("RestrictPublicBuckets", p.RestrictPublicBuckets)
	w.Close("PublicAccessBlockConfiguration")
	return q.ok(), nil
}

func putPublicAccessBlock(q *request) (*response, error) {
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	p, says, err := s3xml.ParsePublicAccessBlock(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	if !says {
		return nil, s3err.New(s3err.InvalidRequest, "Must specify at least one configuration.")
	}
	block := objects.PublicAccessBlock(p)
	if err := q.h.backend.PutBucketPublicAccessBlock(q.r.Context(), q.acct, q.bucket, &block); err != nil {
		return nil, err
	}
	return q.ok(), nil
}

func deletePublicAccessBlock(q *request) (*response, error) {
	return q.noContent(q.h.backend.PutBucketPublicAccessBlock(q.r.Context(), q.acct, q.bucket, nil))
}

// refusePublic answers a request for public access, which otherwise ends with refusal: it is forbidden where the bucket blocks it.
func (q *request) refusePublic(refusal error) error {
	switch q.op.name {
	case "PutObject", "CopyObject", "CreateMultipartUpload", opPostObject, "PutBucketAcl", "PutObjectAcl":
	default:
		return refusal // there is no bucket yet, or it means nothing
	}
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	switch {
	case err != nil:
		return err
	case b.PublicAccessBlock != nil && b.PublicAccessBlock.BlockPublicAcls:
		return s3err.New(s3err.AccessDenied, "")
	}
	return refusal
}

func getBucketOwnershipControls(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	if !b.OwnershipControls {
		return nil, s3err.New(s3err.OwnershipControlsNotFoundError, "", s3err.Field{Name: "BucketName", Value: q.bucket})
	}
	q.document("OwnershipControls")
	w := &q.out
	w.Open("Rule")
	w.Raw("ObjectOwnership", bucketOwnerEnforced)
	w.Close("Rule")
	w.Close("OwnershipControls")
	return q.ok(), nil
}

// bucketOwnerEnforced is the one object ownership there is: the bucket's owner owns its objects, and ACLs grant nothing.
const bucketOwnerEnforced = "BucketOwnerEnforced"

func putBucketOwnershipControls(q *request) (*response, error) {
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	ownership, err := s3xml.ParseOwnershipControls(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	if ownership != bucketOwnerEnforced {
		return nil, s3err.New(s3err.NotImplemented, "The object ownership "+ownership+" is not implemented.", s3err.Field{Name: "ObjectOwnership", Value: ownership})
	}
	if err := q.h.backend.PutBucketOwnershipControls(q.r.Context(), q.acct, q.bucket, true); err != nil {
		return nil, err
	}
	return q.ok(), nil
}

func deleteBucketOwnershipControls(q *request) (*response, error) {
	return q.noContent(q.h.backend.PutBucketOwnershipControls(q.r.Context(), q.acct, q.bucket, false))
}
