package s3api

import (
	"context"
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/s3api/sigv4"
)

// proven does a request whose body has its MD5 with it.
func (h *harness) proven(method, target, body string, headers ...string) answer {
	h.t.Helper()
	return h.do(method, target, []byte(body), append(headers, "Content-Md5", md5Of([]byte(body)))...)
}

func (h *harness) lockedBucket(name string) {
	h.t.Helper()
	h.want(h.do("PUT", "/"+name, nil, "X-Amz-Bucket-Object-Lock-Enabled", "true"), 200, "")
}

func TestCreateBucketWithLock(t *testing.T) {
	h := newHarness(t)
	h.bucket("plain")
	h.lockedBucket("locked")
	h.lockedBucket("locked")
	h.want(h.do("PUT", "/locked", nil), 200, "")
	h.want(h.do("PUT", "/plain", nil, "X-Amz-Bucket-Object-Lock-Enabled", "True"), 409, "BucketAlreadyOwnedByYou")
	h.want(h.do("PUT", "/other", nil, "X-Amz-Bucket-Object-Lock-Enabled", "yes"), 400, "InvalidArgument")
	h.want(h.do("PUT", "/locked/k", nil, "X-Amz-Bucket-Object-Lock-Enabled", "true"), 501, "NotImplemented")
	if a := h.want(h.do("GET", "/locked?versioning", nil), 200, ""); a.element("Status") != "Enabled" {
		t.Error(a.body)
	}
	if a := h.want(h.do("GET", "/locked?object-lock", nil), 200, ""); a.element("ObjectLockEnabled") != "Enabled" || strings.Contains(a.body, "Rule") {
		t.Error(a.body)
	}
	h.want(h.do("GET", "/plain?object-lock", nil), 404, "ObjectLockConfigurationNotFoundError")
	h.want(h.do("GET", "/nobucket?object-lock", nil), 404, "NoSuchBucket")
}

func TestLockConfiguration(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	conf := func(inner string) string {
		return "<ObjectLockConfiguration>" + inner + "</ObjectLockConfiguration>"
	}
	rule := func(inner string) string {
		return conf("<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>" + inner + "</DefaultRetention></Rule>")
	}
	day := rule("<Mode>GOVERNANCE</Mode><Days>1</Days>")
	h.want(h.proven("PUT", "/bucket?object-lock", day), 409, "InvalidBucketState")
	h.versioning("bucket", "Suspended")
	h.want(h.proven("PUT", "/bucket?object-lock", day), 409, "InvalidBucketState")
	h.want(h.do("GET", "/bucket?object-lock", nil), 404, "ObjectLockConfigurationNotFoundError")
	h.versioning("bucket", "Enabled")
	h.want(h.do("PUT", "/bucket?object-lock", []byte(day)), 400, "InvalidRequest")
	h.want(h.proven("PUT", "/bucket?object-lock", day), 200, "")
	get := func() string {
		_, s, _ := strings.Cut(h.want(h.do("GET", "/bucket?object-lock", nil), 200, "").body, "</ObjectLockEnabled>")
		return s
	}
	want := "<Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>"
	if got := get(); got != want {
		t.Error(got)
	}
	for doc, code := range map[string]string{
		rule("<Mode>GOVERNANCE</Mode><Days>1</Days><Years>1</Years>"): "MalformedXML", rule("<Mode>GOVERNANCE</Mode>"): "MalformedXML", rule("<Days>1</Days>"): "MalformedXML", rule("<Mode>abc</Mode><Years>1</Years>"): "MalformedXML",
		rule("<Mode>governance</Mode><Years>1</Years>"): "MalformedXML", conf("<ObjectLockEnabled>Disabled</ObjectLockEnabled>"): "MalformedXML", conf(""): "MalformedXML", "": "MalformedXML",
		rule("<Mode>GOVERNANCE</Mode><Days>0</Days>"): "InvalidRetentionPeriod", rule("<Mode>GOVERNANCE</Mode><Years>-1</Years>"): "InvalidRetentionPeriod", rule("<Mode>GOVERNANCE</Mode><Days>36501</Days>"): "InvalidRetentionPeriod",
		rule("<Mode>GOVERNANCE</Mode><Years>101</Years>"): "InvalidRetentionPeriod", rule("<Mode>GOVERNANCE</Mode><Days>4294967297</Days>"): "InvalidRetentionPeriod",
	} {
		h.want(h.proven("PUT", "/bucket?object-lock", doc), 400, code)
	}
	if got := get(); got != want {
		t.Errorf("a refused configuration changed it: %s", got)
	}
	h.want(h.proven("PUT", "/bucket?object-lock", rule("<Mode>COMPLIANCE</Mode><Years>100</Years>")), 200, "")
	if got := get(); !strings.Contains(got, "<Mode>COMPLIANCE</Mode><Years>100</Years>") {
		t.Error(got)
	}
	a := h.want(h.do("PUT", "/bucket/k", []byte("x")), 200, "")
	head := h.do("HEAD", "/bucket/k", nil)
	if head.Header.Get("X-Amz-Object-Lock-Mode") != "COMPLIANCE" || head.Header.Get("X-Amz-Object-Lock-Retain-Until-Date") != "2126-11-03T10:20:30.123Z" || head.Header.Get("X-Amz-Object-Lock-Legal-Hold") != "" {
		t.Error(head.Header)
	}
	h.want(h.do("DELETE", "/bucket/k?versionId="+a.Header.Get("X-Amz-Version-Id"), nil, "X-Amz-Bypass-Governance-Retention", "true"), 403, "AccessDenied")
	h.want(h.proven("PUT", "/bucket?object-lock", conf("<ObjectLockEnabled>Enabled</ObjectLockEnabled>")), 200, "")
	if got := get(); strings.Contains(got, "Rule") {
		t.Error(got)
	}
	h.want(h.proven("PUT", "/nobucket?object-lock", day), 404, "NoSuchBucket")
}

func TestRetention(t *testing.T) {
	h := newHarness(t)
	h.lockedBucket("bucket")
	h.bucket("plain")
	h.do("PUT", "/plain/k", []byte("x"))
	version := h.do("PUT", "/bucket/k", []byte("x")).Header.Get("X-Amz-Version-Id")
	doc := func(mode, until string) string {
		return "<Retention><Mode>" + mode + "</Mode><RetainUntilDate>" + until + "</RetainUntilDate></Retention>"
	}
	put := func(doc string, headers ...string) answer {
		return h.proven("PUT", "/bucket/k?retention", doc, headers...)
	}
	get := func() string {
		a := h.want(h.do("GET", "/bucket/k?retention", nil), 200, "")
		return a.element("Mode") + " " + a.element("RetainUntilDate")
	}
	h.want(h.proven("PUT", "/plain/k?retention", doc("GOVERNANCE", "2130-01-01T00:00:00Z")), 400, "InvalidRequest")
	h.want(h.do("GET", "/plain/k?retention", nil), 400, "InvalidRequest")
	h.want(h.do("GET", "/bucket/k?retention", nil), 404, "NoSuchObjectLockConfiguration")
	h.want(h.do("GET", "/bucket/none?retention", nil), 404, "NoSuchKey")
	h.want(h.proven("PUT", "/bucket/none?retention", doc("GOVERNANCE", "2130-01-01T00:00:00Z")), 404, "NoSuchKey")
	h.want(h.do("PUT", "/bucket/k?retention", []byte(doc("GOVERNANCE", "2130-01-01T00:00:00Z"))), 400, "InvalidRequest")
	for bad, code := range map[string]string{
		doc("governance", "2130-01-01T00:00:00Z"): "MalformedXML", doc("abc", "2130-01-01T00:00:00Z"): "MalformedXML", doc("GOVERNANCE", "soon"): "InvalidArgument", doc("GOVERNANCE", "2020-01-01T00:00:00Z"): "InvalidArgument",
		doc("GOVERNANCE", ""): "MalformedXML", "<Retention><Mode>GOVERNANCE</Mode></Retention>": "MalformedXML", "": "MalformedXML",
	} {
		h.want(put(bad), 400, code)
	}
	h.want(h.do("GET", "/bucket/k?retention", nil), 404, "NoSuchObjectLockConfiguration")
	h.want(put(doc("GOVERNANCE", "2130-01-01T00:00:00.0001Z")), 200, "")
	if got := get(); got != "GOVERNANCE 2130-01-01T00:00:00.001Z" {
		t.Errorf("%s is not at least as long", got)
	}
	h.want(put(doc("GOVERNANCE", "2130-01-03T01:00:00+01:00")), 200, "")
	if got := get(); got != "GOVERNANCE 2130-01-03T00:00:00.000Z" {
		t.Error(got)
	}
	h.want(put(doc("GOVERNANCE", "2130-01-01T00:00:00Z")), 403, "AccessDenied")
	h.want(put(doc("COMPLIANCE", "2130-01-03T00:00:00Z")), 403, "AccessDenied")
	h.want(put("<Retention/>"), 403, "AccessDenied")
	h.want(put(doc("GOVERNANCE", "2130-01-01T00:00:00Z"), "X-Amz-Bypass-Governance-Retention", "false"), 403, "AccessDenied")
	h.want(put(doc("GOVERNANCE", "2130-01-01T00:00:00Z"), "X-Amz-Bypass-Governance-Retention", "true"), 200, "")
	head := h.do("HEAD", "/bucket/k", nil)
	if head.Header.Get("X-Amz-Object-Lock-Mode") != "GOVERNANCE" || head.Header.Get("X-Amz-Object-Lock-Retain-Until-Date") != "2130-01-01T00:00:00.000Z" {
		t.Error(head.Header)
	}
	// Another version has its own.
	h.do("PUT", "/bucket/k", []byte("new"))
	h.want(h.do("GET", "/bucket/k?retention", nil), 404, "NoSuchObjectLockConfiguration")
	h.want(h.do("GET", "/bucket/k?retention&versionId="+version, nil), 200, "")
	// A marker hides it, and nothing but the bypass removes it.
	marker := h.want(h.do("DELETE", "/bucket/k", nil), 204, "").Header.Get("X-Amz-Version-Id")
	if a := h.want(h.do("DELETE", "/bucket/k?versionId="+version, nil), 403, "AccessDenied"); !strings.Contains(a.element("Message"), "object lock") {
		t.Error(a.body)
	}
	h.want(h.do("DELETE", "/bucket/k?versionId="+marker, nil), 204, "")
	many := "<Delete><Object><Key>k</Key><VersionId>" + version + "</VersionId></Object><Object><Key>else</Key></Object></Delete>"
	if a := h.want(h.proven("POST", "/bucket?delete", many), 200, ""); strings.Count(a.body, "<Code>AccessDenied</Code>") != 1 || strings.Count(a.body, "<Deleted>") != 1 {
		t.Error(a.body)
	}
	h.want(h.do("GET", "/bucket/k?versionId="+version, nil), 200, "")
	if a := h.want(h.proven("POST", "/bucket?delete", many, "X-Amz-Bypass-Governance-Retention", "true"), 200, ""); strings.Contains(a.body, "<Error>") {
		t.Error(a.body)
	}
	h.want(h.do("GET", "/bucket/k?versionId="+version, nil), 404, "NoSuchVersion")
	h.want(put(doc("GOVERNANCE", "2130-01-01T00:00:00Z")), 200, "")
	h.want(put("<Retention/>", "X-Amz-Bypass-Governance-Retention", "true"), 200, "")
	h.want(h.do("GET", "/bucket/k?retention", nil), 404, "NoSuchObjectLockConfiguration")
}

func TestLegalHold(t *testing.T) {
	h := newHarness(t)
	h.lockedBucket("bucket")
	h.bucket("plain")
	h.do("PUT", "/plain/k", []byte("x"))
	version := h.do("PUT", "/bucket/k", []byte("x")).Header.Get("X-Amz-Version-Id")
	put := func(target, status string) answer {
		return h.proven("PUT", target+"?legal-hold", "<LegalHold><Status>"+status+"</Status></LegalHold>")
	}
	h.want(put("/plain/k", "ON"), 400, "InvalidRequest")
	h.want(h.do("GET", "/plain/k?legal-hold", nil), 400, "InvalidRequest")
	h.want(put("/bucket/none", "ON"), 404, "NoSuchKey")
	h.want(put("/bucket/k", "abc"), 400, "MalformedXML")
	h.want(h.do("PUT", "/bucket/k?legal-hold", []byte("<LegalHold><Status>ON</Status></LegalHold>")), 400, "InvalidRequest")
	if a := h.want(h.do("GET", "/bucket/k?legal-hold", nil), 200, ""); a.element("Status") != "OFF" {
		t.Error(a.body)
	}
	h.want(put("/bucket/k", "ON"), 200, "")
	if a := h.want(h.do("GET", "/bucket/k?legal-hold&versionId="+version, nil), 200, ""); a.element("Status") != "ON" {
		t.Error(a.body)
	}
	if a := h.do("GET", "/bucket/k", nil); a.Header.Get("X-Amz-Object-Lock-Legal-Hold") != "ON" {
		t.Error(a.Header)
	}
	h.want(h.do("DELETE", "/bucket/k?versionId="+version, nil, "X-Amz-Bypass-Governance-Retention", "true"), 403, "AccessDenied")
	h.want(put("/bucket/k", "OFF"), 200, "")
	h.want(h.do("DELETE", "/bucket/k?versionId="+version, nil), 204, "")
}

// The headers that give a new object a lock, on everything that makes one.
func TestLockHeaders(t *testing.T) {
	h := newHarness(t)
	h.lockedBucket("bucket")
	h.bucket("plain")
	h.do("PUT", "/bucket/src", []byte("x"))
	const mode, until, hold = "X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold"
	full := []string{mode, "COMPLIANCE", until, "2130-01-01T00:00:00Z", hold, "ON"}
	makes := map[string]func(bucket string, headers ...string) answer{
		"put": func(bucket string, headers ...string) answer {
			return h.proven("PUT", "/"+bucket+"/put", "x", headers...)
		},
		"copy": func(bucket string, headers ...string) answer {
			return h.do("PUT", "/"+bucket+"/copy", nil, append(headers, "X-Amz-Copy-Source", "bucket/src")...)
		},
		"replace": func(bucket string, headers ...string) answer {
			return h.do("PUT", "/"+bucket+"/replace", nil, append(headers, "X-Amz-Copy-Source", "bucket/src", "X-Amz-Metadata-Directive", "REPLACE")...)
		},
		"upload": func(bucket string, headers ...string) answer {
			a := h.do("POST", "/"+bucket+"/upload?uploads", nil, headers...)
			if a.StatusCode != 200 {
				return a
			}
			id := a.element("UploadId")
			etag := h.do("PUT", "/"+bucket+"/upload?partNumber=1&uploadId="+id, []byte("x")).Header.Get("ETag")
			return h.do("POST", "/"+bucket+"/upload?uploadId="+id, []byte("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"+etag+"</ETag></Part></CompleteMultipartUpload>"))
		},
	}
	for what, make := range makes {
		h.want(make("plain", full...), 400, "InvalidRequest")
		for bad, code := range map[string]string{
			mode + "=GOVERNANCE": "InvalidArgument", until + "=2130-01-01T00:00:00Z": "InvalidArgument", hold + "=on": "InvalidArgument", hold + "=": "InvalidArgument",
			mode + "=governance;" + until + "=2130-01-01T00:00:00Z": "InvalidArgument", mode + "=GOVERNANCE;" + until + "=2020-01-01T00:00:00Z": "InvalidArgument", mode + "=GOVERNANCE;" + until + "=2130": "InvalidArgument",
		} {
			var headers []string
			for _, kv := range strings.Split(bad, ";") {
				name, value, _ := strings.Cut(kv, "=")
				headers = append(headers, name, value)
			}
			if a := make("bucket", headers...); a.StatusCode != 400 || a.code() != code {
				t.Errorf("%s %s: %d %s", what, bad, a.StatusCode, a.body)
			}
		}
		if a := h.do("HEAD", "/bucket/"+what, nil); a.StatusCode != 404 {
			t.Errorf("%s: something was made", what)
		}
		h.want(make("bucket", hold, "OFF"), 200, "")
		version := h.want(make("bucket", full...), 200, "").Header.Get("X-Amz-Version-Id")
		head := h.do("HEAD", "/bucket/"+what, nil)
		if head.Header.Get(mode) != "COMPLIANCE" || head.Header.Get(until) != "2130-01-01T00:00:00.000Z" || head.Header.Get(hold) != "ON" {
			t.Errorf("%s: %v", what, head.Header)
		}
		h.want(h.do("DELETE", "/bucket/"+what+"?versionId="+version, nil, "X-Amz-Bypass-Governance-Retention", "true"), 403, "AccessDenied")
	}
	// A lock wants the body proven, by a digest in a header or a trailer.
	h.want(h.do("PUT", "/bucket/k", []byte("x"), full...), 400, "InvalidRequest")
	h.want(h.do("PUT", "/bucket/k", []byte("x"), hold, "ON"), 400, "InvalidRequest")
	crc := crc32.ChecksumIEEE([]byte("x"))
	sum := base64.StdEncoding.EncodeToString([]byte{byte(crc >> 24), byte(crc >> 16), byte(crc >> 8), byte(crc)})
	h.want(h.do("PUT", "/bucket/k", []byte("x"), append(full, "X-Amz-Checksum-Crc32", sum)...), 200, "")
	trailer := fmt.Sprintf("1\r\nx\r\n0\r\nx-amz-checksum-crc32:%s\r\n\r\n", sum)
	h.want(h.do("PUT", "/bucket/k", []byte(trailer), append(full, "X-Amz-Content-Sha256", sigv4.StreamingUnsignedPayloadTrailer, "X-Amz-Decoded-Content-Length", "1", "X-Amz-Trailer", "x-amz-checksum-crc32")...), 200, "")
	// The source's lock is not copied.
	h.want(h.do("PUT", "/bucket/again", nil, "X-Amz-Copy-Source", "bucket/k"), 200, "")
	if a := h.do("HEAD", "/bucket/again", nil); a.Header.Get(mode) != "" || a.Header.Get(hold) != "" {
		t.Error(a.Header)
	}
	for _, target := range []string{"/bucket/k?partNumber=1&uploadId=x", "/bucket/k?tagging"} {
		h.want(h.do("PUT", target, []byte("x"), hold, "ON"), 501, "NotImplemented")
	}
}

func TestSDKLocks(t *testing.T) {
	h := newHarness(t)
	c := h.client(h.srv)
	ctx := context.Background()
	bucket, key := aws.String("locks"), aws.String("k")
	if _, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: bucket, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: bucket, ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: "Enabled",
		Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: "GOVERNANCE", Days: aws.Int32(3)}}}}); err != nil {
		t.Fatal(err)
	}
	conf, err := c.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: bucket})
	if err != nil || conf.ObjectLockConfiguration.ObjectLockEnabled != "Enabled" || *conf.ObjectLockConfiguration.Rule.DefaultRetention.Days != 3 || conf.ObjectLockConfiguration.Rule.DefaultRetention.Years != nil {
		t.Errorf("%v %+v", err, conf)
	}
	until := time.Date(2140, 1, 1, 0, 0, 0, 0, time.UTC)
	put, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("x"), ObjectLockMode: types.ObjectLockModeGovernance, ObjectLockRetainUntilDate: &until, ObjectLockLegalHoldStatus: "ON"})
	if err != nil {
		t.Fatal(err)
	}
	head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: key})
	if err != nil || head.ObjectLockMode != "GOVERNANCE" || !head.ObjectLockRetainUntilDate.Equal(until) || head.ObjectLockLegalHoldStatus != "ON" {
		t.Errorf("%v %+v", err, head)
	}
	if _, err := c.PutObjectLegalHold(ctx, &s3.PutObjectLegalHoldInput{Bucket: bucket, Key: key, LegalHold: &types.ObjectLockLegalHold{Status: "OFF"}}); err != nil {
		t.Error(err)
	}
	if hold, err := c.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{Bucket: bucket, Key: key, VersionId: put.VersionId}); err != nil || hold.LegalHold.Status != "OFF" {
		t.Errorf("%v %+v", err, hold)
	}
	later := until.AddDate(1, 0, 0)
	retention := func(at time.Time, bypass bool) error {
		_, err := c.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{Bucket: bucket, Key: key, Retention: &types.ObjectLockRetention{Mode: "GOVERNANCE", RetainUntilDate: &at}, BypassGovernanceRetention: &bypass})
		return err
	}
	if err := retention(later, false); err != nil {
		t.Error(err)
	}
	if err := retention(until, false); apiCode(err) != "AccessDenied" {
		t.Error(err)
	}
	if err := retention(until, true); err != nil {
		t.Error(err)
	}
	if r, err := c.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: bucket, Key: key}); err != nil || r.Retention.Mode != "GOVERNANCE" || !r.Retention.RetainUntilDate.Equal(until) {
		t.Errorf("%v %+v", err, r)
	}
	if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key, VersionId: put.VersionId}); apiCode(err) != "AccessDenied" {
		t.Error(err)
	}
	if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: bucket, Key: key, VersionId: put.VersionId, BypassGovernanceRetention: aws.Bool(true)}); err != nil {
		t.Error(err)
	}
	// Presigned, the headers of a lock are signed headers or part of the query.
	p, err := s3.NewPresignClient(c).PresignPutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, ObjectLockMode: types.ObjectLockModeGovernance, ObjectLockRetainUntilDate: &until, ContentMD5: aws.String(md5Of([]byte("y")))})
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest("PUT", p.URL, strings.NewReader("y"))
	for name, v := range p.SignedHeader {
		if name != "Host" && name != "Content-Length" {
			req.Header[name] = v
		}
	}
	if a := h.want(h.send(req), 200, ""); a.StatusCode == 200 {
		if a := h.do("HEAD", "/locks/k", nil); a.Header.Get("X-Amz-Object-Lock-Retain-Until-Date") != "2140-01-01T00:00:00.000Z" {
			t.Error(a.Header)
		}
	}
}
