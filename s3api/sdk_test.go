package s3api

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

func apiCode(err error) string {
	var e smithy.APIError
	if errors.As(err, &e) {
		return e.ErrorCode()
	}
	return fmt.Sprint(err)
}

// noSeek hides that a reader can seek: the SDK then streams with a trailer.
type noSeek struct{ io.Reader }

// The SDK at its defaults, over HTTP (payload hash, checksum in a header) and HTTPS (aws-chunked with a trailer).
func TestSDK(t *testing.T) {
	h := newHarness(t)
	secure := httptest.NewTLSServer(h.handler)
	defer secure.Close()
	two := httptest.NewUnstartedServer(h.handler)
	two.EnableHTTP2 = true
	two.StartTLS()
	defer two.Close()
	for name, srv := range map[string]*httptest.Server{"http": h.srv, "https": secure, "http2": two} {
		t.Run(name, func(t *testing.T) {
			c := h.client(srv)
			ctx := context.Background()
			bucket := "bucket-" + name
			if _, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
				t.Fatal(err)
			}
			sdkObjects(t, c, bucket)
			sdkStreams(t, c, bucket, name != "http")
			sdkMultipart(t, c, bucket)
			sdkCopies(t, c, bucket)
			sdkListings(t, c, bucket)
			sdkPresigned(t, c, srv, bucket)
			h.settled(t)
		})
	}
}

func sdkObjects(t *testing.T, c *s3.Client, bucket string) {
	ctx := context.Background()
	for _, alg := range append(types.ChecksumAlgorithm("").Values()[:5:5], "") {
		body := []byte("hello " + alg)
		put, err := c.PutObject(ctx, &s3.PutObjectInput{
			Bucket: &bucket, Key: aws.String("dir/a key+%"), Body: bytes.NewReader(body), ChecksumAlgorithm: alg, ContentType: aws.String("text/plain"),
			CacheControl: aws.String("no-cache"), Metadata: map[string]string{"One": "1", "two": "zwei"}, WebsiteRedirectLocation: aws.String("/x"),
		})
		if err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		get, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("dir/a key+%"), ChecksumMode: types.ChecksumModeEnabled})
		if err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		got, err := io.ReadAll(get.Body)
		if err != nil || !bytes.Equal(got, body) || *get.ETag != *put.ETag || *get.ContentType != "text/plain" || *get.CacheControl != "no-cache" ||
			get.Metadata["one"] != "1" || get.Metadata["two"] != "zwei" || *get.WebsiteRedirectLocation != "/x" || get.ChecksumType != types.ChecksumTypeFullObject {
			t.Errorf("%s: %q %v %+v", alg, got, err, get)
		}
		for _, s := range [][2]*string{{put.ChecksumCRC32, get.ChecksumCRC32}, {put.ChecksumSHA1, get.ChecksumSHA1}, {put.ChecksumCRC64NVME, get.ChecksumCRC64NVME}} {
			if aws.ToString(s[0]) != aws.ToString(s[1]) {
				t.Errorf("%s: checksum %v, then %v", alg, aws.ToString(s[0]), aws.ToString(s[1]))
			}
		}
		head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: aws.String("dir/a key+%"), ChecksumMode: types.ChecksumModeEnabled})
		if err != nil || *head.ContentLength != int64(len(body)) || aws.ToString(head.ChecksumSHA256) != aws.ToString(get.ChecksumSHA256) {
			t.Errorf("%s: %v %+v", alg, err, head)
		}
	}
	rng, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("dir/a key+%"), Range: aws.String("bytes=1-3")})
	if err != nil || *rng.ContentRange != "bytes 1-3/6" || *rng.ContentLength != 3 {
		t.Errorf("%v %+v", err, rng)
	}
	if _, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: aws.String("nothing")}); apiCode(err) != "NotFound" {
		t.Error(err)
	}
	if _, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("nothing")}); apiCode(err) != "NoSuchKey" {
		t.Error(err)
	}
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("dir/a key+%"), IfNoneMatch: aws.String("*")}); apiCode(err) != "PreconditionFailed" {
		t.Error(err)
	}
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("x"), ServerSideEncryption: types.ServerSideEncryptionAes256}); apiCode(err) != "NotImplemented" {
		t.Error(err)
	}
	del, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: []types.ObjectIdentifier{
		{Key: aws.String("dir/a key+%")}, {Key: aws.String("not there <&>")}, {Key: aws.String("bad"), VersionId: aws.String("nonsense")},
	}}})
	if err != nil || len(del.Deleted) != 2 || *del.Deleted[1].Key != "not there <&>" || len(del.Errors) != 1 || *del.Errors[0].Code != "InvalidArgument" {
		t.Errorf("%v %+v", err, del)
	}
}

func sdkStreams(t *testing.T, c *s3.Client, bucket string, tls bool) {
	ctx := context.Background()
	body := make([]byte, 300000)
	rand.Read(body)
	in := &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("stream"), Body: bytes.NewReader(body), ContentLength: aws.Int64(int64(len(body)))}
	if tls {
		in.Body = noSeek{in.Body}
	}
	if _, err := c.PutObject(ctx, in); err != nil {
		t.Fatal(err)
	}
	get, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: in.Key})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(get.Body); err != nil || !bytes.Equal(got, body) || get.ChecksumCRC32 == nil {
		t.Errorf("%d bytes, %v, %+v", len(got), err, get)
	}
	c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: in.Key})
}

func sdkMultipart(t *testing.T, c *s3.Client, bucket string) {
	ctx := context.Background()
	key := aws.String("multi")
	for _, kind := range []struct {
		alg  types.ChecksumAlgorithm
		kind types.ChecksumType
	}{{"", ""}, {types.ChecksumAlgorithmCrc32, types.ChecksumTypeComposite}, {types.ChecksumAlgorithmCrc32c, types.ChecksumTypeFullObject}, {types.ChecksumAlgorithmSha256, ""}} {
		up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: key, ChecksumAlgorithm: kind.alg, ChecksumType: kind.kind, Metadata: map[string]string{"a": "b"}})
		if err != nil {
			t.Fatal(err)
		}
		var parts []types.CompletedPart
		for n := int32(1); n <= 3; n++ {
			p, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: &bucket, Key: key, UploadId: up.UploadId, PartNumber: &n, Body: strings.NewReader(strings.Repeat("p", int(n)*1000)), ChecksumAlgorithm: kind.alg})
			if err != nil {
				t.Fatalf("%+v: %v", kind, err)
			}
			parts = append(parts, types.CompletedPart{ETag: p.ETag, PartNumber: aws.Int32(n), ChecksumCRC32: p.ChecksumCRC32, ChecksumCRC32C: p.ChecksumCRC32C, ChecksumSHA256: p.ChecksumSHA256})
		}
		if kind.alg == "" {
			for i := range parts {
				parts[i].ChecksumCRC32 = nil
			}
		}
		lp, err := c.ListParts(ctx, &s3.ListPartsInput{Bucket: &bucket, Key: key, UploadId: up.UploadId, MaxParts: aws.Int32(2)})
		if err != nil || len(lp.Parts) != 2 || !*lp.IsTruncated || *lp.NextPartNumberMarker != "2" || *lp.Parts[1].Size != 2000 || *lp.Parts[1].ETag != *parts[1].ETag {
			t.Errorf("%v %+v", err, lp)
		}
		lu, err := c.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &bucket, EncodingType: types.EncodingTypeUrl})
		if err != nil || len(lu.Uploads) != 1 || *lu.Uploads[0].UploadId != *up.UploadId || *lu.Uploads[0].Owner.ID != "alice-id" || lu.Uploads[0].ChecksumAlgorithm != kind.alg {
			t.Errorf("%v %+v", err, lu)
		}
		done, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &bucket, Key: key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}, ChecksumType: kind.kind})
		if err != nil {
			t.Fatalf("%+v: %v", kind, err)
		}
		if !strings.HasSuffix(*done.ETag, `-3"`) || kind.kind == types.ChecksumTypeComposite && !strings.HasSuffix(*done.ChecksumCRC32, "-3") || !strings.HasSuffix(*done.Location, "/"+bucket+"/multi") {
			t.Errorf("%+v: %+v", kind, done)
		}
		get, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: key, ChecksumMode: types.ChecksumModeEnabled})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(get.Body); err != nil || len(b) != 6000 || get.Metadata["a"] != "b" {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		part, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: key, PartNumber: aws.Int32(2)})
		if err != nil || *part.ContentLength != 2000 || *part.PartsCount != 3 || *part.ContentRange != "bytes 1000-2999/6000" {
			t.Errorf("%v %+v", err, part)
		}
	}
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &bucket, Key: key, UploadId: up.UploadId}); err != nil {
		t.Error(err)
	}
	if _, err := c.ListParts(ctx, &s3.ListPartsInput{Bucket: &bucket, Key: key, UploadId: up.UploadId}); apiCode(err) != "NoSuchUpload" {
		t.Error(err)
	}
}

func sdkCopies(t *testing.T, c *s3.Client, bucket string) {
	ctx := context.Background()
	src := aws.String("src +%é")
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: src, Body: strings.NewReader("0123456789"), Metadata: map[string]string{"a": "b"}}); err != nil {
		t.Fatal(err)
	}
	source := aws.String(bucket + "/src%20%2B%25%C3%A9")
	cp, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &bucket, Key: aws.String("dst"), CopySource: source, ChecksumAlgorithm: types.ChecksumAlgorithmSha1})
	if err != nil || cp.CopyObjectResult.ChecksumSHA1 == nil || cp.CopyObjectResult.LastModified.Year() != 2026 {
		t.Fatalf("%v %+v", err, cp)
	}
	if head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: aws.String("dst")}); err != nil || head.Metadata["a"] != "b" {
		t.Errorf("%v %+v", err, head)
	}
	if _, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &bucket, Key: src, CopySource: source}); apiCode(err) != "InvalidRequest" {
		t.Error("copy onto itself:", err)
	}
	if _, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &bucket, Key: src, CopySource: source, MetadataDirective: types.MetadataDirectiveReplace, ContentType: aws.String("x/y")}); err != nil {
		t.Error(err)
	}
	if _, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &bucket, Key: aws.String("dst"), CopySource: source, CopySourceIfMatch: aws.String(`"no"`)}); apiCode(err) != "PreconditionFailed" {
		t.Error(err)
	}
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: aws.String("dst")})
	if err != nil {
		t.Fatal(err)
	}
	part, err := c.UploadPartCopy(ctx, &s3.UploadPartCopyInput{Bucket: &bucket, Key: aws.String("dst"), UploadId: up.UploadId, PartNumber: aws.Int32(1), CopySource: source, CopySourceRange: aws.String("bytes=2-4")})
	if err != nil || part.CopyPartResult.ETag == nil {
		t.Fatal(err)
	}
	if _, err := c.UploadPartCopy(ctx, &s3.UploadPartCopyInput{Bucket: &bucket, Key: aws.String("dst"), UploadId: up.UploadId, PartNumber: aws.Int32(1), CopySource: source, CopySourceRange: aws.String("bytes=2-")}); apiCode(err) != "InvalidArgument" {
		t.Error(err)
	}
	for _, k := range []*string{src, aws.String("dst"), aws.String("multi")} {
		if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: k}); err != nil {
			t.Error(err)
		}
	}
}

func sdkListings(t *testing.T, c *s3.Client, bucket string) {
	ctx := context.Background()
	want := []string{"a", "a&b", "a/1", "a/2", "b c", "b+c", "c/<x>", "é"}
	for _, k := range want {
		if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String(k)}); err != nil {
			t.Fatal(err)
		}
	}
	for size := int32(1); size <= 9; size++ {
		var got []string
		for p := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: &bucket, MaxKeys: &size, FetchOwner: aws.Bool(true)}); p.HasMorePages(); {
			page, err := p.NextPage(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, o := range page.Contents {
				got = append(got, *o.Key)
				if *o.Owner.ID != "alice-id" || o.StorageClass != "STANDARD" || o.LastModified.Nanosecond() != 123e6 {
					t.Errorf("%+v", o)
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %q", size, got)
		}
	}
	v1, err := c.ListObjects(ctx, &s3.ListObjectsInput{Bucket: &bucket, Delimiter: aws.String("/"), MaxKeys: aws.Int32(3)})
	if err != nil || len(v1.CommonPrefixes) != 1 || *v1.CommonPrefixes[0].Prefix != "a/" || *v1.NextMarker != "a/" || !*v1.IsTruncated {
		t.Errorf("%v %+v", err, v1)
	}
	vs, err := c.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: &bucket, MaxKeys: aws.Int32(2)})
	if err != nil || len(vs.Versions) != 2 || *vs.Versions[0].VersionId != "null" || !*vs.Versions[0].IsLatest || *vs.NextKeyMarker != "a&b" || *vs.NextVersionIdMarker != "null" {
		t.Errorf("%v %+v", err, vs)
	}
	lb, err := c.ListBuckets(ctx, &s3.ListBucketsInput{Prefix: &bucket, MaxBuckets: aws.Int32(5)})
	if err != nil || len(lb.Buckets) < 1 || *lb.Buckets[0].Name != bucket || *lb.Buckets[0].BucketRegion != "us-east-1" || *lb.Owner.ID != "alice-id" {
		t.Errorf("%v %+v", err, lb)
	}
	if loc, err := c.GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: &bucket}); err != nil || loc.LocationConstraint != "" {
		t.Errorf("%v %+v", err, loc)
	}
	if v, err := c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &bucket}); err != nil || v.Status != "" {
		t.Errorf("%v %+v", err, v)
	}
	if hb, err := c.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &bucket}); err != nil || *hb.BucketRegion != "us-east-1" {
		t.Errorf("%v %+v", err, hb)
	}
	if _, err := c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket}); apiCode(err) != "BucketNotEmpty" {
		t.Error(err)
	}
}

func sdkPresigned(t *testing.T, c *s3.Client, srv *httptest.Server, bucket string) {
	ctx := context.Background()
	p := s3.NewPresignClient(c)
	do := func(method, url string, header http.Header, body string) (int, string) {
		req, err := http.NewRequest(method, url, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range header {
			if k != "Host" {
				req.Header[k] = v
			}
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	put, err := p.PresignPutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("pre/+ %"), Metadata: map[string]string{"x": "y"}})
	if err != nil {
		t.Fatal(err)
	}
	if status, body := do("PUT", put.URL, put.SignedHeader, "presigned body"); status != 200 {
		t.Errorf("%s: %d %s", put.URL, status, body)
	}
	get, err := p.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("pre/+ %"), ResponseContentType: aws.String("a/b")}, s3.WithPresignExpires(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if status, body := do("GET", get.URL, get.SignedHeader, ""); status != 200 || body != "presigned body" {
		t.Errorf("%s: %d %s", get.URL, status, body)
	}
	if status, _ := do("GET", get.URL+"&versionId=x", get.SignedHeader, ""); status != 403 {
		t.Errorf("changed: %d", status)
	}
	// A hoisted header counts as the header: here it names another owner.
	owner, err := p.PresignGetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("pre/+ %"), ExpectedBucketOwner: aws.String("somebody")})
	if err != nil {
		t.Fatal(err)
	}
	if status, body := do("GET", owner.URL, owner.SignedHeader, ""); !strings.Contains(owner.URL, "xpected") || status != 403 || !strings.Contains(body, "AccessDenied") {
		t.Errorf("%s: %d %s", owner.URL, status, body)
	}
}
