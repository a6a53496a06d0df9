package s3api

import (
	"encoding/base64"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/storage/errs"
)

const bucketsMax = 10000 // S3: of one ListBuckets page

func listBuckets(q *request) (*response, error) {
	maxBuckets, err := q.intParam("max-buckets", bucketsMax, 1, bucketsMax)
	if err != nil {
		return nil, err
	}
	prefix, _ := q.param("prefix")
	region, _ := q.param("bucket-region")
	token, _ := q.param("continuation-token")
	after := ""
	if token != "" {
		if after, err = decodeToken(token); err != nil {
			return nil, err
		}
	}
	var page []objects.Bucket
	more := true
	for more && len(page) < maxBuckets {
		var got []objects.Bucket
		if got, more, err = q.h.backend.ListBuckets(q.r.Context(), q.acct, prefix, after, maxBuckets-len(page)); err != nil {
			return nil, err
		}
		for _, b := range got {
			after = b.Name
			if region == "" || region == q.h.regionOf(b) {
				page = append(page, b)
			}
		}
		more = more && len(got) > 0
	}
	q.document("ListAllMyBucketsResult")
	w := &q.out
	q.owner("Owner", q.acct.ID)
	w.Open("Buckets")
	for _, b := range page {
		w.Open("Bucket")
		w.Raw("Name", b.Name)
		w.Time("CreationDate", b.Created)
		w.Raw("BucketRegion", q.h.regionOf(b))
		w.Close("Bucket")
	}
	w.Close("Buckets")
	if more {
		w.Raw("ContinuationToken", encodeToken(after))
	}
	if prefix != "" {
		w.Text("Prefix", prefix)
	}
	w.Close("ListAllMyBucketsResult")
	return q.ok(), nil
}

func (h *handler) regionOf(b objects.Bucket) string {
	if b.Region == "" {
		return h.cfg.Region
	}
	return b.Region
}

// owner writes who owns a bucket or object. Names are known of the caller only.
func (q *request) owner(tag, id string) {
	q.out.Open(tag)
	q.out.Text("ID", id)
	if id == q.acct.ID {
		q.out.Text("DisplayName", q.acct.DisplayName)
	}
	q.out.Close(tag)
}

// Tokens are versioned, so that a later release can read those of this one.
const tokenVersion = 1

// encodeToken makes a continuation token from the name to go on behind.
func encodeToken(after string) string {
	return base64.RawURLEncoding.EncodeToString(append([]byte{tokenVersion}, after...))
}

func decodeToken(token string) (after string, err error) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) < 1 || b[0] != tokenVersion {
		return "", s3err.New(s3err.InvalidArgument, "The continuation token provided is incorrect", s3err.Field{Name: "ArgumentName", Value: "continuation-token"})
	}
	return string(b[1:]), nil
}

// intParam is a number from the query, clamped to high; below low it is refused.
func (q *request) intParam(name string, dflt, low, high int) (int, error) {
	v, _ := q.param(name)
	if v == "" {
		return dflt, nil
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < int64(low) {
		return 0, s3err.New(s3err.InvalidArgument, "Provided "+name+" not an integer or within integer range",
			s3err.Field{Name: "ArgumentName", Value: name}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
	return min(int(n), high), nil
}

func createBucket(q *request) (*response, error) {
	if reservedBucketName(q.bucket) {
		return nil, s3err.New(s3err.InvalidBucketName, "The bucket name is reserved.", s3err.Field{Name: "BucketName", Value: q.bucket})
	}
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	if len(strings.TrimSpace(string(doc))) > 0 {
		location, err := s3xml.ParseCreateBucket(doc)
		if err != nil {
			return nil, xmlError(err)
		}
		if err := q.h.checkLocation(location); err != nil {
			return nil, err
		}
	}
	opt := objects.BucketOptions{Region: q.h.cfg.Region, ObjectLock: strings.EqualFold(q.hdr("X-Amz-Bucket-Object-Lock-Enabled"), "true")}
	err = q.h.backend.CreateBucket(q.r.Context(), q.acct, q.bucket, opt)
	// In us-east-1 S3 answers the owner's repetition with success, as it always did.
	if err != nil && q.h.cfg.Region == DefaultRegion && errs.Is(err, errs.BucketAlreadyOwned) {
		if b, headErr := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket); headErr != nil || b.Lock.Enabled || !opt.ObjectLock {
			err = headErr
		}
	}
	if err != nil {
		return nil, err
	}
	q.set("Location", "/"+q.bucket)
	return q.ok(), nil
}

// checkLocation accepts this region, none, and S3's old name of eu-west-1.
func (h *handler) checkLocation(location string) error {
	region := location
	if region == "EU" {
		region = "eu-west-1"
	}
	if region == "" || region == h.cfg.Region {
		return nil
	}
	field := s3err.Field{Name: "LocationConstraint", Value: clip(location)}
	if strings.Count(region, "-") < 2 {
		return s3err.New(s3err.InvalidLocationConstraint, "", field)
	}
	return s3err.New(s3err.IllegalLocationConstraintException,
		"The "+clip(location)+" location constraint is incompatible for the region specific endpoint this request was sent to.", field)
}

// xmlError turns an error of package s3xml into an answer.
func xmlError(err error) error {
	var unsupported *s3xml.Unsupported
	if errors.As(err, &unsupported) {
		return s3err.New(s3err.NotImplemented, "The element "+unsupported.Element+" implies functionality that is not implemented.", s3err.Field{Name: "Element", Value: unsupported.Element})
	}
	return &s3err.Error{Code: s3err.MalformedXML, Fields: []s3err.Field{{Name: "Detail", Value: err.Error()}}, Err: err}
}

func headBucket(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	q.set("x-amz-bucket-region", q.h.regionOf(b))
	return q.ok(), nil
}

func deleteBucket(q *request) (*response, error) {
	if err := q.h.backend.DeleteBucket(q.r.Context(), q.acct, q.bucket); err != nil {
		return nil, err
	}
	return q.withStatus(http.StatusNoContent), nil
}

func getBucketLocation(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	q.document("LocationConstraint")
	if r := q.h.regionOf(b); r != DefaultRegion { // which S3 writes as nothing
		q.out.B = s3xml.AppendEscaped(q.out.B, r)
	}
	q.out.Close("LocationConstraint")
	return q.ok(), nil
}

// preflight answers CORS preflights: no bucket has a CORS configuration.
func preflight(*request) (*response, error) {
	return nil, s3err.New(s3err.AccessForbidden, "")
}
