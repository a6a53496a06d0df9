package s3api

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/storage/errs"
	"cairn/test/seed"
)

// versioned is a bucket with versioning enabled.
func (h *harness) versioned(name string) {
	h.t.Helper()
	h.bucket(name)
	h.versioning(name, "Enabled")
}

func (h *harness) versioning(bucket, status string) {
	h.t.Helper()
	h.want(h.do("PUT", "/"+bucket+"?versioning", []byte("<VersioningConfiguration><Status>"+status+"</Status></VersioningConfiguration>")), 200, "")
}

func TestBucketVersioning(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	status := func() string { return h.want(h.do("GET", "/bucket?versioning", nil), 200, "").element("Status") }
	if got := status(); got != "absent" {
		t.Error(got)
	}
	for _, s := range []string{"Suspended", "Enabled", "Enabled", "Suspended"} {
		h.versioning("bucket", s)
		if got := status(); got != s {
			t.Errorf("%s, want %s", got, s)
		}
	}
	put := func(inner string) answer {
		return h.do("PUT", "/bucket?versioning", []byte("<VersioningConfiguration>"+inner+"</VersioningConfiguration>"))
	}
	h.want(put("<MfaDelete>Disabled</MfaDelete><Status>Enabled</Status>"), 200, "")
	if a := h.want(put("<Status>Suspended</Status><MfaDelete>Enabled</MfaDelete>"), 501, "NotImplemented"); a.element("Element") != "MfaDelete" {
		t.Error(a.body)
	}
	h.want(put(""), 400, "IllegalVersioningConfigurationException")
	h.want(put("<Status>Off</Status>"), 400, "MalformedXML")
	h.want(h.do("PUT", "/bucket?versioning", nil), 400, "MalformedXML")
	h.want(h.do("PUT", "/nobucket?versioning", []byte("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")), 404, "NoSuchBucket")
	if got := status(); got != "Enabled" {
		t.Errorf("bad requests made it %s", got)
	}
	h.want(h.do("PUT", "/locked", nil, "X-Amz-Bucket-Object-Lock-Enabled", "true"), 200, "")
	h.want(h.do("PUT", "/locked?versioning", []byte("<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>")), 409, "InvalidBucketState")
}

func TestVersionsOfObjects(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	if a := h.want(h.do("PUT", "/bucket/k", []byte("zero")), 200, ""); a.Header.Get("X-Amz-Version-Id") != "" {
		t.Errorf("a version of what has none: %v", a.Header)
	}
	if a := h.want(h.do("HEAD", "/bucket/k", nil), 200, ""); a.Header.Get("X-Amz-Version-Id") != "" {
		t.Errorf("a version of what has none: %v", a.Header)
	}
	h.versioning("bucket", "Enabled")
	first := h.do("PUT", "/bucket/k", []byte("first")).Header.Get("X-Amz-Version-Id")
	second := h.do("PUT", "/bucket/k", []byte("second")).Header.Get("X-Amz-Version-Id")
	if first == "" || second == "" || first == second {
		t.Fatalf("%q %q", first, second)
	}
	for id, want := range map[string]string{"": "second", "?versionId=" + first: "first", "?versionId=" + second: "second", "?versionId=null": "zero"} {
		a := h.want(h.do("GET", "/bucket/k"+id, nil), 200, "")
		wantID := strings.TrimPrefix(id, "?versionId=")
		if id == "" {
			wantID = second
		}
		if a.body != want || a.Header.Get("X-Amz-Version-Id") != wantID {
			t.Errorf("%s: %q %q", id, a.body, a.Header.Get("X-Amz-Version-Id"))
		}
		if head := h.want(h.do("HEAD", "/bucket/k"+id, nil), 200, ""); head.Header.Get("X-Amz-Version-Id") != wantID || head.ContentLength != int64(len(want)) {
			t.Errorf("HEAD %s: %v", id, head.Header)
		}
	}
	missing := "ffffffffffffffff0000000000000001"
	for _, sub := range []string{"", "tagging&", "acl&", "attributes&", "retention&", "legal-hold&"} {
		bucket, headers := "bucket", []string{}
		if sub == "attributes&" {
			headers = []string{"X-Amz-Object-Attributes", "ETag"}
		}
		if sub == "retention&" || sub == "legal-hold&" {
			bucket = "locked"
			h.do("PUT", "/locked", nil, "X-Amz-Bucket-Object-Lock-Enabled", "true")
			h.do("PUT", "/locked/k", []byte("x"))
		}
		a := h.want(h.do("GET", "/"+bucket+"/k?"+sub+"versionId="+missing, nil, headers...), 404, "NoSuchVersion")
		if a.element("VersionId") != missing || a.element("Key") != "k" {
			t.Error(a.body)
		}
		for _, bad := range []string{"x", "NULL", strings.ToUpper(missing), missing[1:], strings.Repeat("0", 32), missing + "0"} {
			a := h.want(h.do("GET", "/"+bucket+"/k?"+sub+"versionId="+bad, nil, headers...), 400, "InvalidArgument")
			if a.element("Message") != "Invalid version id specified" || a.element("ArgumentValue") != bad {
				t.Error(a.body)
			}
		}
		h.want(h.do("GET", "/"+bucket+"/k?"+sub+"versionId=", nil, headers...), 400, "InvalidArgument")
	}
	h.want(h.do("DELETE", "/bucket/k?versionId=x", nil), 400, "InvalidArgument")
	if a := h.want(h.do("DELETE", "/bucket/k?versionId="+missing, nil), 204, ""); a.Header.Get("X-Amz-Version-Id") != missing || a.Header.Get("X-Amz-Delete-Marker") != "" {
		t.Error(a.Header)
	}
	// The newest version gone, the one before it is current again.
	if a := h.want(h.do("DELETE", "/bucket/k?versionId="+second, nil), 204, ""); a.Header.Get("X-Amz-Version-Id") != second || a.Header.Get("X-Amz-Delete-Marker") != "" {
		t.Error(a.Header)
	}
	if a := h.want(h.do("GET", "/bucket/k", nil), 200, ""); a.body != "first" {
		t.Error(a.body)
	}
	h.versioning("bucket", "Suspended")
	if a := h.want(h.do("PUT", "/bucket/k", []byte("new zero")), 200, ""); a.Header.Get("X-Amz-Version-Id") != "" {
		t.Error(a.Header)
	}
	if a := h.want(h.do("GET", "/bucket/k", nil), 200, ""); a.body != "new zero" || a.Header.Get("X-Amz-Version-Id") != "null" {
		t.Error(a.body)
	}
	if a := h.want(h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "bucket/k"), 200, ""); a.Header.Get("X-Amz-Version-Id") != "" {
		t.Error(a.Header)
	}
	id := h.do("POST", "/bucket/multi?uploads", nil).element("UploadId")
	etag := h.do("PUT", "/bucket/multi?partNumber=1&uploadId="+id, []byte("x")).Header.Get("ETag")
	complete := []byte("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>" + etag + "</ETag></Part></CompleteMultipartUpload>")
	if a := h.want(h.do("POST", "/bucket/multi?uploadId="+id, complete), 200, ""); a.Header.Get("X-Amz-Version-Id") != "" {
		t.Error(a.Header)
	}
	h.do("DELETE", "/bucket/copy?versionId=null", nil)
	h.do("DELETE", "/bucket/multi?versionId=null", nil)
	if n := strings.Count(h.do("GET", "/bucket?versions", nil).body, "<Version>"); n != 2 {
		t.Errorf("%d versions, want the null one and the first", n)
	}
	h.want(h.do("DELETE", "/bucket", nil), 409, "BucketNotEmpty")
	h.settled(t)
}

func TestDeleteMarkers(t *testing.T) {
	h := newHarness(t)
	h.versioned("bucket")
	if a := h.do("HEAD", "/bucket/k", nil); a.StatusCode != 404 || a.Header.Get("X-Amz-Delete-Marker") != "false" {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
	version := h.do("PUT", "/bucket/k", []byte("x")).Header.Get("X-Amz-Version-Id")
	a := h.want(h.do("DELETE", "/bucket/k", nil), 204, "")
	marker := a.Header.Get("X-Amz-Version-Id")
	if a.Header.Get("X-Amz-Delete-Marker") != "true" || marker == "" || marker == version {
		t.Fatal(a.Header)
	}
	reads := []struct{ method, sub string }{{"GET", ""}, {"HEAD", ""}, {"GET", "tagging"}, {"GET", "acl"}, {"GET", "attributes"}, {"PUT", "tagging"}, {"DELETE", "tagging"}, {"PUT", "acl"}}
	for _, r := range reads {
		var body []byte
		var headers []string
		if r.sub == "attributes" {
			headers = []string{"X-Amz-Object-Attributes", "ETag"}
		} else if r.method == "PUT" {
			body = []byte("<Tagging><TagSet/></Tagging>")
		}
		code := func(c string) string {
			if r.method == "HEAD" {
				return ""
			}
			return c
		}
		a := h.want(h.do(r.method, "/bucket/k?"+r.sub, body, headers...), 404, code("NoSuchKey"))
		if a.Header.Get("X-Amz-Delete-Marker") != "true" || a.Header.Get("X-Amz-Version-Id") != marker || a.Header.Get("Last-Modified") != "" {
			t.Errorf("%v: %v", r, a.Header)
		}
		a = h.want(h.do(r.method, "/bucket/k?"+strings.TrimPrefix(r.sub+"&", "&")+"versionId="+marker, body, headers...), 405, code("MethodNotAllowed"))
		if a.Header.Get("X-Amz-Delete-Marker") != "true" || a.Header.Get("X-Amz-Version-Id") != marker || a.Header.Get("Allow") != "DELETE" || a.Header.Get("Last-Modified") != "Tue, 03 Nov 2026 10:20:30 GMT" {
			t.Errorf("%v: %v", r, a.Header)
		}
		if r.method != "HEAD" && (a.element("ResourceType") != "DeleteMarker" || a.element("Method") != r.method) {
			t.Error(a.body)
		}
		h.want(h.do("GET", "/bucket/k?versionId="+version, nil), 200, "")
	}
	copyFrom := func(source string, want int, code string) answer {
		t.Helper()
		return h.want(h.do("PUT", "/bucket/dst", nil, "X-Amz-Copy-Source", source), want, code)
	}
	if a := copyFrom("bucket/k", 404, "NoSuchKey"); a.Header.Get("X-Amz-Delete-Marker") != "true" || a.element("Key") != "k" || a.Header.Get("X-Amz-Version-Id") != "" {
		t.Errorf("%v %s", a.Header, a.body)
	}
	if a := copyFrom("bucket/k?versionId="+marker, 400, "InvalidRequest"); !strings.Contains(a.element("Message"), "delete marker") {
		t.Error(a.body)
	}
	copyFrom("bucket/k?versionId=x", 400, "InvalidArgument")
	copyFrom("bucket/k?versionId=ffffffffffffffff0000000000000001", 404, "NoSuchVersion")
	if a := copyFrom("bucket/k?versionId="+version, 200, ""); a.Header.Get("X-Amz-Copy-Source-Version-Id") != version || a.Header.Get("X-Amz-Version-Id") == "" || a.Header.Get("X-Amz-Version-Id") == version {
		t.Error(a.Header)
	}
	id := h.do("POST", "/bucket/dst?uploads", nil).element("UploadId")
	h.want(h.do("PUT", "/bucket/dst?partNumber=1&uploadId="+id, nil, "X-Amz-Copy-Source", "bucket/k"), 404, "NoSuchKey")
	h.want(h.do("PUT", "/bucket/dst?partNumber=1&uploadId="+id, nil, "X-Amz-Copy-Source", "bucket/k?versionId="+marker), 400, "InvalidRequest")
	if a := h.want(h.do("PUT", "/bucket/dst?partNumber=1&uploadId="+id, nil, "X-Amz-Copy-Source", "bucket/k?versionId="+version), 200, ""); a.Header.Get("X-Amz-Copy-Source-Version-Id") != version {
		t.Error(a.Header)
	}
	// A delete of the marker brings the object back.
	if a := h.want(h.do("DELETE", "/bucket/k?versionId="+marker, nil), 204, ""); a.Header.Get("X-Amz-Delete-Marker") != "true" || a.Header.Get("X-Amz-Version-Id") != marker {
		t.Error(a.Header)
	}
	h.want(h.do("GET", "/bucket/k", nil), 200, "")
	h.versioning("bucket", "Suspended")
	for range 2 {
		if a := h.want(h.do("DELETE", "/bucket/k", nil), 204, ""); a.Header.Get("X-Amz-Delete-Marker") != "true" || a.Header.Get("X-Amz-Version-Id") != "null" {
			t.Error(a.Header)
		}
	}
	if a := h.do("HEAD", "/bucket/k", nil); a.StatusCode != 404 || a.Header.Get("X-Amz-Delete-Marker") != "true" || a.Header.Get("X-Amz-Version-Id") != "null" {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
}

func TestDeleteVersionsInBulk(t *testing.T) {
	h := newHarness(t)
	h.versioned("bucket")
	version := h.do("PUT", "/bucket/k", []byte("x")).Header.Get("X-Amz-Version-Id")
	many := func(objects string) string {
		t.Helper()
		doc := []byte("<Delete>" + objects + "</Delete>")
		return h.want(h.do("POST", "/bucket?delete", doc, "Content-Md5", md5Of(doc)), 200, "").body
	}
	got := many("<Object><Key>k</Key></Object><Object><Key>other</Key></Object>")
	if strings.Count(got, "<DeleteMarker>true</DeleteMarker><DeleteMarkerVersionId>") != 2 || strings.Contains(got, "<VersionId>") {
		t.Error(got)
	}
	_, marker, _ := strings.Cut(got, "<DeleteMarkerVersionId>")
	marker, _, _ = strings.Cut(marker, "<")
	for range 2 { // and again: what is not there is deleted
		got = many("<Object><Key>k</Key><VersionId>" + version + "</VersionId></Object><Object><Key>k</Key><VersionId>" + marker + "</VersionId></Object><Object><Key>k</Key><VersionId>null</VersionId></Object><Object><Key>k</Key><VersionId>x</VersionId></Object>")
		for _, want := range []string{"<Deleted><Key>k</Key><VersionId>" + version + "</VersionId></Deleted>", "<Deleted><Key>k</Key><VersionId>" + marker + "</VersionId>", "<VersionId>null</VersionId></Deleted>",
			"<Error><Key>k</Key><VersionId>x</VersionId><Code>InvalidArgument</Code>"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s is not in %s", want, got)
			}
		}
	}
	if _, there := h.fake.buckets["bucket"].history["k"]; there {
		t.Error("still there")
	}
}

// Every way to page through the versions shows the same as one page of all.
func TestListVersions(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	rng := rand.New(rand.NewPCG(seed.Of(t), 1))
	keys := []string{"a", "a/1", "a/2", "a//b", "b c", "b+c", "c/x", "é", "<&>"}
	c := h.client(h.srv)
	ctx := context.Background()
	bucket := aws.String("bucket")
	for i := range 60 {
		if i == 10 || i == 40 {
			h.versioning("bucket", "Enabled")
		} else if i == 30 {
			h.versioning("bucket", "Suspended")
		}
		key := aws.String(keys[rng.IntN(len(keys))])
		var err error
		if rng.IntN(4) == 0 {
			_, err = c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key})
		} else {
			_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader(fmt.Sprint("body ", i))})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pages := func(in s3.ListObjectVersionsInput) (lines []string) {
		in.Bucket = bucket
		for {
			out, err := c.ListObjectVersions(ctx, &in)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(out.Versions) + len(out.DeleteMarkers) + len(out.CommonPrefixes); in.MaxKeys != nil && n > int(*in.MaxKeys) {
				t.Fatalf("%d of at most %d", n, *in.MaxKeys)
			}
			var page []string
			for _, v := range out.Versions {
				page = append(page, fmt.Sprint("version ", *v.Key, " ", *v.VersionId, " ", *v.IsLatest, " ", *v.Size, " ", *v.ETag, " ", *v.Owner.ID, " ", v.StorageClass))
			}
			for _, m := range out.DeleteMarkers {
				page = append(page, fmt.Sprint("marker ", *m.Key, " ", *m.VersionId, " ", *m.IsLatest, " ", *m.Owner.ID, " ", m.LastModified))
			}
			for _, p := range out.CommonPrefixes {
				page = append(page, "prefix "+*p.Prefix)
			}
			lines = append(lines, page...)
			if !*out.IsTruncated {
				slices.Sort(lines)
				return lines
			}
			in.KeyMarker, in.VersionIdMarker = out.NextKeyMarker, out.NextVersionIdMarker
		}
	}
	for _, in := range []s3.ListObjectVersionsInput{{}, {Delimiter: aws.String("/")}, {Prefix: aws.String("a")}, {Prefix: aws.String("a/"), Delimiter: aws.String("/")}, {Delimiter: aws.String("//")}} {
		want := pages(in)
		if len(want) == 0 {
			t.Fatal("nothing listed")
		}
		for _, n := range []int32{1, 2, 3, 7, 1000} {
			in.MaxKeys = aws.Int32(n)
			if got := pages(in); !slices.Equal(got, want) {
				t.Errorf("pages of %d:\n%s\nwant\n%s", n, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
	all := h.want(h.do("GET", "/bucket?versions&encoding-type=url", nil), 200, "")
	if !strings.Contains(all.body, "<Key>b%20c</Key>") && !strings.Contains(all.body, "<Key>b%2Bc</Key>") || all.element("EncodingType") != "url" {
		t.Error(all.body)
	}
	if n := strings.Count(all.body, "<IsLatest>true</IsLatest>"); n != len(h.fake.buckets["bucket"].history) {
		t.Errorf("%d latest versions", n)
	}
	if a := h.want(h.do("GET", "/bucket?versions&max-keys=0", nil), 200, ""); a.element("IsTruncated") != "false" || strings.Contains(a.body, "<VersionId>") || strings.Contains(a.body, "NextKeyMarker") {
		t.Error(a.body)
	}
	h.want(h.do("GET", "/bucket?versions&key-marker=a&version-id-marker=", nil), 200, "") // as some clients send always
	h.want(h.do("GET", "/bucket?versions&key-marker=a&version-id-marker=x", nil), 400, "InvalidArgument")
	h.want(h.do("GET", "/bucket?versions&key-marker=a&version-id-marker=null", nil), 200, "")
	h.want(h.do("GET", "/bucket?versions&version-id-marker=null", nil), 400, "InvalidArgument")
	h.want(h.do("GET", "/nobucket?versions", nil), 404, "NoSuchBucket")
}

// The conditions of writes are on the current version, of which a delete marker is none.
func TestWriteConditions(t *testing.T) {
	for _, versioned := range []bool{false, true} {
		t.Run(fmt.Sprint("versioned ", versioned), func(t *testing.T) {
			h := newHarness(t)
			h.bucket("bucket")
			if versioned {
				h.versioning("bucket", "Enabled")
			}
			h.do("PUT", "/bucket/src", []byte("other"))
			put := func(name, value string) answer { return h.do("PUT", "/bucket/k", []byte("body"), name, value) }
			complete := func(name, value string) answer {
				id := h.do("POST", "/bucket/k?uploads", nil).element("UploadId")
				etag := h.do("PUT", "/bucket/k?partNumber=1&uploadId="+id, []byte("body")).Header.Get("ETag")
				return h.do("POST", "/bucket/k?uploadId="+id, []byte("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"+etag+"</ETag></Part></CompleteMultipartUpload>"), name, value)
			}
			cp := func(name, value string) answer {
				return h.do("PUT", "/bucket/k", nil, "X-Amz-Copy-Source", "bucket/src", name, value)
			}
			for what, write := range map[string]func(name, value string) answer{"put": put, "complete": complete, "copy": cp} {
				step := func(name, value string, status int, code string) {
					t.Helper()
					if a := write(name, value); a.StatusCode != status || code != "" && a.code() != code {
						t.Errorf("%s %s %s: %d %s", what, name, value, a.StatusCode, a.body)
					}
				}
				etag := func() string { return h.do("HEAD", "/bucket/k", nil).Header.Get("ETag") }
				step("If-Match", "*", 404, "NoSuchKey")
				step("If-Match", `"x"`, 404, "NoSuchKey")
				step("If-None-Match", "*", 200, "")
				old := etag()
				step("If-None-Match", "*", 412, "PreconditionFailed")
				step("If-None-Match", old, 412, "PreconditionFailed")
				step("If-None-Match", `"x"`, 200, "")
				step("If-Match", `"x"`, 412, "PreconditionFailed")
				step("If-Match", etag(), 200, "")
				step("If-Match", "*", 200, "")
				h.want(h.do("DELETE", "/bucket/k", nil, "If-Match", `"x"`), 412, "PreconditionFailed")
				h.want(h.do("DELETE", "/bucket/k", nil, "If-Match", etag()), 204, "")
				step("If-Match", "*", 404, "NoSuchKey")
				step("If-None-Match", "*", 200, "")
				h.want(h.do("DELETE", "/bucket/k", nil), 204, "")
			}
			h.do("PUT", "/bucket/k", []byte("x"))
			h.fake.err = errs.New(errs.ConditionalConflict, "put", "k", "")
			for _, write := range []func(name, value string) answer{put, cp} {
				h.want(write("If-None-Match", "*"), 409, "ConditionalRequestConflict")
			}
		})
	}
}

// The same by the SDK at its defaults: what it makes of headers and elements.
func TestSDKVersions(t *testing.T) {
	h := newHarness(t)
	c := h.client(h.srv)
	ctx := context.Background()
	bucket, key := aws.String("versions"), aws.String("a key")
	if _, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: bucket}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}}); err != nil {
		t.Fatal(err)
	}
	if v, err := c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: bucket}); err != nil || v.Status != "Enabled" || v.MFADelete != "" {
		t.Errorf("%v %+v", err, v)
	}
	var ids []*string
	for _, text := range []string{"one", "two"} {
		put, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader(text)})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, put.VersionId)
	}
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: bucket, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	part, err := c.UploadPartCopy(ctx, &s3.UploadPartCopyInput{Bucket: bucket, Key: key, UploadId: up.UploadId, PartNumber: aws.Int32(1), CopySource: aws.String("versions/a%20key?versionId=" + *ids[0])})
	if err != nil || *part.CopySourceVersionId != *ids[0] {
		t.Fatalf("%v %+v", err, part)
	}
	done, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: bucket, Key: key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: []types.CompletedPart{{PartNumber: aws.Int32(1), ETag: part.CopyPartResult.ETag}}}})
	if err != nil || done.VersionId == nil {
		t.Fatalf("%v %+v", err, done)
	}
	cp, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: bucket, Key: key, CopySource: aws.String("versions/a%20key?versionId=" + *ids[1])})
	if err != nil || cp.VersionId == nil || *cp.CopySourceVersionId != *ids[1] {
		t.Fatalf("%v %+v", err, cp)
	}
	for id, want := range map[*string]string{ids[0]: "one", ids[1]: "two", done.VersionId: "one", cp.VersionId: "two", nil: "two"} {
		get, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: key, VersionId: id})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(get.Body); err != nil || string(b) != want {
			t.Errorf("%q %v, want %s", b, err, want)
		}
	}
	del, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key})
	if err != nil || !*del.DeleteMarker || del.VersionId == nil {
		t.Fatalf("%v %+v", err, del)
	}
	if _, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: key}); apiCode(err) != "NoSuchKey" {
		t.Error(err)
	}
	if _, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: key, VersionId: del.VersionId}); apiCode(err) != "MethodNotAllowed" {
		t.Error(err)
	}
	list, err := c.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: bucket})
	if err != nil || len(list.Versions) != 4 || len(list.DeleteMarkers) != 1 || !*list.DeleteMarkers[0].IsLatest || *list.DeleteMarkers[0].VersionId != *del.VersionId || *list.Versions[3].VersionId != *ids[0] {
		t.Errorf("%v %+v", err, list)
	}
	var all []types.ObjectIdentifier
	for _, v := range list.Versions {
		all = append(all, types.ObjectIdentifier{Key: v.Key, VersionId: v.VersionId})
	}
	all = append(all, types.ObjectIdentifier{Key: key, VersionId: del.VersionId}, types.ObjectIdentifier{Key: aws.String("never there")})
	bulk, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: bucket, Delete: &types.Delete{Objects: all}})
	if err != nil || len(bulk.Errors) != 0 || len(bulk.Deleted) != 6 || !*bulk.Deleted[4].DeleteMarker || *bulk.Deleted[4].DeleteMarkerVersionId != *del.VersionId || !*bulk.Deleted[5].DeleteMarker || bulk.Deleted[0].DeleteMarker != nil {
		t.Errorf("%v %+v", err, bulk)
	}
	if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: aws.String("never there"), VersionId: bulk.Deleted[5].DeleteMarkerVersionId}); err != nil {
		t.Error(err)
	}
	if _, err := c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: bucket}); err != nil {
		t.Error(err)
	}
	h.settled(t)
}

// A presigned URL names its version like any other request.
func TestPresignedVersion(t *testing.T) {
	h := newHarness(t)
	h.versioned("bucket")
	id := h.do("PUT", "/bucket/k", []byte("old")).Header.Get("X-Amz-Version-Id")
	h.do("PUT", "/bucket/k", []byte("new"))
	p := s3.NewPresignClient(h.client(h.srv))
	req, err := p.PresignGetObject(context.Background(), &s3.GetObjectInput{Bucket: aws.String("bucket"), Key: aws.String("k"), VersionId: &id})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(req.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "old" || resp.Header.Get("X-Amz-Version-Id") != id {
		t.Errorf("%q %v", b, err)
	}
}
