package s3api

import (
	"cairn/s3api/s3err"
	"cairn/s3api/sigv4"
)

// authenticateV2 proves a URL presigned with Signature Version 2, which boto3
// and aws-cli 1 still make by default for an endpoint that is not AWS's. claimed
// is false if the request is none. Version 2 signs only some parameters, so it
// is taken for operations on one object alone.
func (q *request) authenticateV2(sr *sigv4.Request) (claimed bool, err error) {
	p, claimed, refusal := sigv4.ParseV2(sr)
	if !claimed {
		return false, nil
	}
	if refusal != nil {
		return true, signatureError(refusal)
	}
	switch q.op.name {
	case "GetObject", "HeadObject", "PutObject", "DeleteObject", "UploadPart", "CreateMultipartUpload", "CompleteMultipartUpload", "AbortMultipartUpload", "ListParts":
	default:
		return true, s3err.New(s3err.InvalidRequest, "The authorization mechanism you have provided is not supported for this operation. Please use AWS4-HMAC-SHA256.")
	}
	secret, acct, ok := q.h.cfg.Accounts(p.AccessKey)
	if !ok {
		return true, s3err.New(s3err.InvalidAccessKeyId, "", s3err.Field{Name: "AWSAccessKeyId", Value: p.AccessKey})
	}
	if q.hasToken() {
		return true, s3err.New(s3err.InvalidToken, "Temporary credentials (x-amz-security-token) are not implemented.")
	}
	if refusal := p.Check(sr, q.h.bucketOfHost(q.r.Host), secret, q.h.cfg.Now()); refusal != nil {
		return true, signatureError(refusal)
	}
	q.identify(acct)
	q.seed, q.payload, q.sha256 = sigv4.Seed{}, sigv4.PayloadUnsigned, sigv4.UnsignedPayload
	q.hoist()
	return true, nil
}
