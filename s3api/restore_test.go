package s3api

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
)

func restoreDoc(inner string) []byte { return []byte("<RestoreRequest>" + inner + "</RestoreRequest>") }

// inThePast makes the fake's times so old that what it restores for 100 years is readable whenever this runs; inTheFuture, that
// it is under way.
func (h *harness) inThePast()   { h.fake.now = time.Date(2000, 1, 1, 12, 0, 0, 0, time.UTC) }
func (h *harness) inTheFuture() { h.fake.now = time.Date(2200, 1, 1, 12, 0, 0, 0, time.UTC) }

const (
	longDays  = "<Days>36500</Days>"
	restored  = `ongoing-request="false", expiry-date="Tue, 08 Dec 2099 00:00:00 GMT"`
	restoring = `ongoing-request="true"`
)

func TestRestoreRefusals(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.want(h.do("PUT", "/bucket/cold", []byte("x"), classHeader, "GLACIER"), 200, "")
	h.want(h.do("PUT", "/bucket/deep", []byte("x"), classHeader, "DEEP_ARCHIVE"), 200, "")
	for _, class := range []string{"STANDARD", "STANDARD_IA", "GLACIER_IR"} {
		h.want(h.do("PUT", "/bucket/"+class, []byte("x"), classHeader, class), 200, "")
		a := h.want(h.do("POST", "/bucket/"+class+"?restore", restoreDoc("<Days>1</Days>")), 403, "InvalidObjectState")
		if a.element("StorageClass") != class || strings.Contains(a.body, "AccessTier") {
			t.Error(a.body)
		}
	}
	for _, c := range []struct {
		key, inner string
		status     int
		code       string
	}{
		{"cold", "", 400, "InvalidArgument"},
		{"cold", "<Days>0</Days>", 400, "InvalidArgument"},
		{"cold", "<Days>-1</Days>", 400, "InvalidArgument"},
		{"cold", "<Days>36501</Days>", 400, "InvalidArgument"},
		{"cold", "<Days>1.5</Days>", 400, "MalformedXML"},
		{"cold", "<Days>99999999999999999999</Days>", 400, "MalformedXML"},
		{"cold", "<Days>1</Days><Tier>Fast</Tier>", 400, "MalformedXML"},
		{"cold", "<Days>1</Days><GlacierJobParameters><Tier>standard</Tier></GlacierJobParameters>", 400, "MalformedXML"},
		{"cold", "<Days>1</Days><Other/>", 400, "MalformedXML"},
		{"cold", "<Type>SELECT</Type><Days>1</Days>", 501, "NotImplemented"},
		{"cold", "<Days>1</Days><SelectParameters><Expression>x</Expression></SelectParameters>", 501, "NotImplemented"},
		{"cold", "<Days>1</Days><OutputLocation><S3/></OutputLocation>", 501, "NotImplemented"},
		{"deep", "<Days>1</Days><Tier>Expedited</Tier>", 400, "InvalidArgument"},
		{"none", "<Days>1</Days>", 404, "NoSuchKey"},
		{"none", "<Days>0</Days>", 400, "InvalidArgument"},
	} {
		a := h.want(h.do("POST", "/bucket/"+c.key+"?restore", restoreDoc(c.inner)), c.status, c.code)
		if c.code == "InvalidArgument" && c.key == "cold" && a.element("ArgumentName") != "Days" {
			t.Error(a.body)
		}
	}
	h.want(h.do("POST", "/bucket/cold?restore", nil), 400, "MalformedXML")
	h.want(h.do("POST", "/bucket/cold?restore", []byte("<Days>1</Days>")), 400, "MalformedXML")
	h.want(h.do("POST", "/bucket/cold?restore", append(restoreDoc("<Days>1</Days>"), "x"...)), 400, "MalformedXML")
	h.want(h.do("POST", "/bucket/cold?restore", restoreDoc("<Days>1</Days>"), "Content-Md5", md5Of([]byte("y"))), 400, "BadDigest")
	h.want(h.do("POST", "/bucket/cold?restore&versionId=x", restoreDoc("<Days>1</Days>")), 400, "InvalidArgument")
	h.want(h.do("POST", "/other/cold?restore", restoreDoc("<Days>1</Days>")), 404, "NoSuchBucket")
	h.want(h.do("GET", "/bucket/cold?restore", nil), 405, "MethodNotAllowed")
	for _, m := range []string{"HEAD", "GET"} { // nothing was restored by any of it
		if a := h.do(m, "/bucket/cold", nil); a.Header.Get("X-Amz-Restore") != "" {
			t.Error(a.Header)
		}
	}
}

// An archived object is there but for its bytes until a restore is done.
func TestRestore(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.inThePast()
	h.want(h.do("PUT", "/bucket/k", []byte("cold bytes"), classHeader, "GLACIER"), 200, "")
	archived := func() {
		t.Helper()
		for _, a := range []answer{
			h.do("GET", "/bucket/k", nil), h.do("GET", "/bucket/k", nil, "Range", "bytes=0-1"),
			h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "bucket/k"), h.do("PUT", "/bucket/k", nil, "X-Amz-Copy-Source", "bucket/k", classHeader, "STANDARD"),
		} {
			if h.want(a, 403, "InvalidObjectState"); a.element("StorageClass") != "GLACIER" || strings.Contains(a.body, "AccessTier") {
				t.Error(a.body)
			}
		}
		h.want(h.do("GET", "/bucket/k?attributes", nil, "X-Amz-Object-Attributes", "StorageClass,ObjectSize"), 200, "")
		h.want(h.do("GET", "/bucket/k?tagging", nil), 200, "")
	}
	head := func(want string) {
		t.Helper()
		if a := h.want(h.do("HEAD", "/bucket/k", nil), 200, ""); a.Header.Get("X-Amz-Restore") != want || a.Header.Get(classHeader) != "GLACIER" || a.Header.Get("Content-Length") != "10" {
			t.Error(a.Header)
		}
	}
	restore := func(status int, code, inner string) {
		t.Helper()
		if a := h.want(h.do("POST", "/bucket/k?restore", restoreDoc(inner)), status, code); code == "" && a.body != "" || strings.Contains(a.body, "operator") {
			t.Error(a.body)
		}
	}
	archived()
	head("")
	h.inTheFuture()
	restore(202, "", longDays)
	head(restoring)
	archived()
	restore(409, "RestoreAlreadyInProgress", longDays)
	restore(409, "RestoreAlreadyInProgress", longDays+"<Tier>Bulk</Tier>")
	restore(202, "", longDays+"<GlacierJobParameters><Tier>Expedited</Tier></GlacierJobParameters>")
	restore(409, "RestoreAlreadyInProgress", longDays+"<Tier>Expedited</Tier>")

	h.fake.buckets["bucket"].objects["k"].restore = nil
	h.inThePast()
	restore(202, "", longDays)
	h.fake.now = h.fake.now.Add(2 * time.Hour)
	head(restored)
	if a := h.want(h.do("GET", "/bucket/k", nil), 200, ""); a.body != "cold bytes" || a.Header.Get("X-Amz-Restore") != restored || a.Header.Get(classHeader) != "GLACIER" {
		t.Error(a.Header, a.body)
	}
	h.want(h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "bucket/k"), 200, "")
	if a := h.want(h.do("GET", "/bucket/copy", nil), 200, ""); a.body != "cold bytes" || a.Header.Get("X-Amz-Restore") != "" || a.Header.Get(classHeader) != "" {
		t.Error(a.Header, a.body)
	}
	restore(200, "", "<Days>1</Days>") // expires long before now
	head("")
	h.fake.now = h.fake.now.AddDate(0, 0, 3)
	archived()
	head("")
}

func TestRestoreOfVersions(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.inTheFuture()
	h.want(h.do("PUT", "/bucket?versioning", []byte("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")), 200, "")
	id := h.do("PUT", "/bucket/k", []byte("x"), classHeader, "GLACIER").Header.Get("X-Amz-Version-Id")
	h.want(h.do("PUT", "/bucket/k", []byte("y")), 200, "")
	h.want(h.do("POST", "/bucket/k?restore", restoreDoc(longDays)), 403, "InvalidObjectState")
	if a := h.want(h.do("POST", "/bucket/k?restore&versionId="+id, restoreDoc(longDays)), 202, ""); a.Header.Get("X-Amz-Version-Id") != id {
		t.Error(a.Header)
	}
	if a := h.want(h.do("HEAD", "/bucket/k?versionId="+id, nil), 200, ""); a.Header.Get("X-Amz-Restore") != restoring {
		t.Error(a.Header)
	}
	h.want(h.do("POST", "/bucket/k?restore&versionId=null", restoreDoc(longDays)), 404, "NoSuchVersion")
	marker := h.do("DELETE", "/bucket/k", nil).Header.Get("X-Amz-Version-Id")
	h.want(h.do("POST", "/bucket/k?restore", restoreDoc(longDays)), 404, "NoSuchKey")
	h.want(h.do("POST", "/bucket/k?restore&versionId="+marker, restoreDoc(longDays)), 405, "MethodNotAllowed")
}

func TestRestoreStatus(t *testing.T) {
	ready, expires := time.UnixMilli(1000), time.UnixMilli(5000)
	for _, c := range []struct {
		now         int64
		ongoing, ok bool
	}{{0, true, true}, {999, true, true}, {1000, false, true}, {4999, false, true}, {5000, false, false}, {9000, false, false}} {
		o := &objects.Object{Restore: &metapb.Restore{ReadyMs: ready.UnixMilli(), ExpiresMs: expires.UnixMilli()}}
		ongoing, expiry, ok := restoreStatus(o, time.UnixMilli(c.now))
		if ongoing != c.ongoing || ok != c.ok || ok && !ongoing != expiry.Equal(expires) {
			t.Error(c, ongoing, expiry, ok)
		}
	}
	if _, _, ok := restoreStatus(&objects.Object{}, ready); ok {
		t.Error("none was asked for")
	}
}

// Listings tell of restores if they are asked to.
func TestRestoresInListings(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.inThePast()
	for _, k := range []string{"a-restored", "b-restoring", "c-expired", "d-archived"} {
		h.want(h.do("PUT", "/bucket/"+k, []byte("x"), classHeader, "DEEP_ARCHIVE"), 200, "")
	}
	h.want(h.do("PUT", "/bucket/e", []byte("x")), 200, "")
	h.want(h.do("POST", "/bucket/a-restored?restore", restoreDoc(longDays)), 202, "")
	h.want(h.do("POST", "/bucket/c-expired?restore", restoreDoc("<Days>1</Days>")), 202, "")
	h.inTheFuture()
	h.want(h.do("POST", "/bucket/b-restoring?restore", restoreDoc(longDays)), 202, "")
	const header = "X-Amz-Optional-Object-Attributes"
	for _, target := range []string{"/bucket", "/bucket?list-type=2", "/bucket?versions"} {
		if a := h.want(h.do("GET", target, nil), 200, ""); strings.Contains(a.body, "Restore") {
			t.Error(target, a.body)
		}
		for _, v := range []string{"RestoreStatus", " RestoreStatus , RestoreStatus"} {
			a := h.want(h.do("GET", target, nil, header, v), 200, "")
			entries := strings.Split(a.body, "<Key>")[1:]
			want := []string{
				"<RestoreStatus><IsRestoreInProgress>false</IsRestoreInProgress><RestoreExpiryDate>2099-12-08T00:00:00.000Z</RestoreExpiryDate></RestoreStatus>",
				"<RestoreStatus><IsRestoreInProgress>true</IsRestoreInProgress></RestoreStatus>", "", "", "",
			}
			for i, entry := range entries {
				if n := strings.Count(entry, "<RestoreStatus>"); len(entries) != len(want) || !strings.Contains(entry, want[i]) || n > 1 || (n == 1) != (want[i] != "") {
					t.Errorf("%s %d: %s", target, i, entry)
				}
			}
		}
		for _, v := range []string{"Restore", "RestoreStatus,ETag", "restorestatus", "RestoreStatus,"} {
			if a := h.want(h.do("GET", target, nil, header, v), 400, "InvalidArgument"); a.element("ArgumentName") != "x-amz-optional-object-attributes" {
				t.Error(a.body)
			}
		}
	}
	h.want(h.do("GET", "/bucket?uploads", nil, header, "anything"), 200, "") // has no meaning there
}

func TestSDKRestore(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.inThePast()
	c := h.client(h.srv)
	ctx := context.Background()
	bucket, key := aws.String("bucket"), aws.String("k")
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("x"), StorageClass: types.StorageClassDeepArchive}); err != nil {
		t.Fatal(err)
	}
	_, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: key})
	if apiCode(err) != "InvalidObjectState" {
		t.Error(err)
	}
	for _, r := range []*types.RestoreRequest{
		{Days: aws.Int32(36500), GlacierJobParameters: &types.GlacierJobParameters{Tier: types.TierBulk}},
		{Days: aws.Int32(36500), Tier: types.TierStandard, Description: aws.String("why not")},
	} {
		h.fake.buckets["bucket"].objects["k"].restore = nil
		if _, err := c.RestoreObject(ctx, &s3.RestoreObjectInput{Bucket: bucket, Key: key, RestoreRequest: r}); err != nil {
			t.Error(err)
		}
		if _, err := c.RestoreObject(ctx, &s3.RestoreObjectInput{Bucket: bucket, Key: key, RestoreRequest: r}); apiCode(err) != "RestoreAlreadyInProgress" {
			t.Error(err)
		}
		h.fake.now = h.fake.now.Add(2 * time.Hour)
		head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: key})
		if err != nil || aws.ToString(head.Restore) != restored || head.StorageClass != types.StorageClassDeepArchive {
			t.Errorf("%v %+v", err, head)
		}
	}
	if got, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: bucket, Key: key}); err != nil || aws.ToString(got.Restore) != restored {
		t.Errorf("%v %+v", err, got)
	} else {
		got.Body.Close()
	}
	list, err := c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: bucket, OptionalObjectAttributes: []types.OptionalObjectAttributes{types.OptionalObjectAttributesRestoreStatus}})
	if err != nil || len(list.Contents) != 1 {
		t.Fatalf("%v %+v", err, list)
	}
	if r := list.Contents[0].RestoreStatus; r == nil || aws.ToBool(r.IsRestoreInProgress) || !aws.ToTime(r.RestoreExpiryDate).Equal(time.Date(2099, 12, 8, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v", r)
	}
	versions, err := c.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: bucket, OptionalObjectAttributes: []types.OptionalObjectAttributes{types.OptionalObjectAttributesRestoreStatus}})
	if err != nil || len(versions.Versions) != 1 || versions.Versions[0].RestoreStatus == nil {
		t.Errorf("%v %+v", err, versions)
	}
}
