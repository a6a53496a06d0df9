package s3api

import (
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const classHeader = "X-Amz-Storage-Class"

// classAnswers are what a request for an object of each class answers ("" is success), and the class the object then has.
func classAnswers() map[string][2]string {
	return map[string][2]string{
		"STANDARD": {"", ""}, "REDUCED_REDUNDANCY": {"", ""}, "STANDARD_IA": {"", "STANDARD_IA"}, "ONEZONE_IA": {"", "ONEZONE_IA"}, "GLACIER_IR": {"", "GLACIER_IR"},
		"INTELLIGENT_TIERING": {"", "INTELLIGENT_TIERING"}, "GLACIER": {"", "GLACIER"}, "DEEP_ARCHIVE": {"", "DEEP_ARCHIVE"}, "OUTPOSTS": {"NotImplemented"}, "SNOW": {"NotImplemented"},
		"EXPRESS_ONEZONE": {"NotImplemented"}, "FSX_OPENZFS": {"NotImplemented"}, "FSX_ONTAP": {"NotImplemented"}, "standard": {"InvalidStorageClass"}, "STANDARD-IA": {"InvalidStorageClass"}, "": {"InvalidStorageClass"},
	}
}

// Every way to make an object takes the same classes, and every answer about it tells which it has.
func TestStorageClasses(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.want(h.do("PUT", "/bucket/src", []byte("source"), classHeader, "STANDARD_IA"), 200, "")
	complete := func(class string) answer {
		a := h.do("POST", "/bucket/k?uploads", nil, classHeader, class)
		if a.StatusCode != 200 {
			return a
		}
		id := a.element("UploadId")
		want := classAnswers()[class][1]
		if want == "" {
			want = "STANDARD"
		}
		if got := h.do("GET", "/bucket/k?uploadId="+id, nil).element("StorageClass"); got != want {
			t.Errorf("ListParts: %s, want %s", got, want)
		}
		if got := h.do("GET", "/bucket?uploads", nil).element("StorageClass"); got != want {
			t.Errorf("ListMultipartUploads: %s, want %s", got, want)
		}
		part := h.do("PUT", "/bucket/k?partNumber=1&uploadId="+id, []byte("part"))
		return h.do("POST", "/bucket/k?uploadId="+id, []byte("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"+part.Header.Get("Etag")+"</ETag></Part></CompleteMultipartUpload>"))
	}
	for what, make := range map[string]func(class string) answer{
		"PutObject": func(class string) answer { return h.do("PUT", "/bucket/k", []byte("x"), classHeader, class) },
		"CopyObject": func(class string) answer {
			return h.do("PUT", "/bucket/k", nil, "X-Amz-Copy-Source", "bucket/src", classHeader, class)
		},
		"with REPLACE": func(class string) answer {
			return h.do("PUT", "/bucket/k", nil, "X-Amz-Copy-Source", "bucket/src", "X-Amz-Metadata-Directive", "REPLACE", classHeader, class)
		},
		"multipart": complete,
		"PostObject": func(class string) answer {
			fields := signedV2(`{"bucket":"bucket"},{"key":"k"},["starts-with","$x-amz-storage-class",""]`, formField{"key", "k"}, formField{"x-amz-storage-class", class}, formField{"file", "x"})
			return h.post("/bucket", encodeForm("f", fields...))
		},
	} {
		for class, want := range classAnswers() {
			h.do("DELETE", "/bucket/k", nil)
			a := make(class)
			if a.code() != want[0] || want[0] == "" && a.StatusCode > 204 {
				t.Errorf("%s %s: %d %s, want %s", what, class, a.StatusCode, a.body, want[0])
			}
			if want[0] != "" {
				if a.element("StorageClassRequested") != class || want[0] == "NotImplemented" && !strings.Contains(a.element("Message"), class) {
					t.Errorf("%s %s: %s", what, class, a.body)
				}
				h.want(h.do("HEAD", "/bucket/k", nil), 404, "")
				continue
			}
			h.classShown(what, want[1])
		}
	}
}

// classShown checks what every answer says of the class of /bucket/k; STANDARD is "" in headers only.
func (h *harness) classShown(what, class string) {
	h.t.Helper()
	for _, m := range []string{"HEAD", "GET"} {
		if m == "GET" && (class == "GLACIER" || class == "DEEP_ARCHIVE") {
			if a := h.want(h.do(m, "/bucket/k", nil), 403, "InvalidObjectState"); a.element("StorageClass") != class {
				h.t.Errorf("%s: GET says %s, want %s", what, a.body, class)
			}
			continue
		}
		if got := h.do(m, "/bucket/k", nil).Header.Get(classHeader); got != class {
			h.t.Errorf("%s: %s says %q, want %q", what, m, got, class)
		}
	}
	if class == "" {
		class = "STANDARD"
	}
	for _, target := range []string{"/bucket?prefix=k", "/bucket?list-type=2&prefix=k", "/bucket?versions&prefix=k", "/bucket/k?attributes"} {
		if got := h.do("GET", target, nil, attributesHeader(target)...).element("StorageClass"); got != class {
			h.t.Errorf("%s: %s says %s, want %s", what, target, got, class)
		}
	}
}

func attributesHeader(target string) []string {
	if strings.HasSuffix(target, "attributes") {
		return []string{"X-Amz-Object-Attributes", "StorageClass"}
	}
	return nil
}

// A copy has the class that is asked for, never its source's; onto itself it may change nothing but that.
func TestClassOfCopies(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	copied := func(status int, headers ...string) {
		t.Helper()
		if a := h.do("PUT", "/bucket/k", nil, append([]string{"X-Amz-Copy-Source", "bucket/k"}, headers...)...); a.StatusCode != status {
			t.Errorf("%v: %d %s", headers, a.StatusCode, a.body)
		}
	}
	h.want(h.do("PUT", "/bucket/k", []byte("x"), classHeader, "GLACIER_IR", "X-Amz-Meta-A", "b"), 200, "")
	copied(400)
	h.classShown("refused", "GLACIER_IR")
	copied(200, classHeader, "ONEZONE_IA")
	h.classShown("onto itself", "ONEZONE_IA")
	if got := h.do("HEAD", "/bucket/k", nil).Header.Get("X-Amz-Meta-A"); got != "b" {
		t.Error("metadata:", got)
	}
	copied(200, classHeader, "STANDARD")
	h.classShown("back", "")
	h.want(h.do("PUT", "/bucket/k", []byte("x"), classHeader, "STANDARD_IA"), 200, "")
	copied(200, "X-Amz-Metadata-Directive", "REPLACE")
	h.classShown("replaced", "")
	h.want(h.do("PUT", "/bucket/src", []byte("x"), classHeader, "STANDARD_IA"), 200, "")
	h.want(h.do("PUT", "/bucket/k", nil, "X-Amz-Copy-Source", "bucket/src"), 200, "")
	h.classShown("copied", "")
}

func TestSDKStorageClasses(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	c := h.client(h.srv)
	ctx := context.Background()
	bucket, key := aws.String("bucket"), aws.String("k")
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Body: strings.NewReader("x"), StorageClass: types.StorageClassOnezoneIa}); err != nil {
		t.Fatal(err)
	}
	if head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: key}); err != nil || head.StorageClass != types.StorageClassOnezoneIa {
		t.Errorf("%v %+v", err, head)
	}
	if _, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: bucket, Key: key, CopySource: aws.String("bucket/k"), StorageClass: types.StorageClassGlacierIr}); err != nil {
		t.Error(err)
	}
	if l, err := c.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: bucket}); err != nil || len(l.Contents) != 1 || l.Contents[0].StorageClass != types.ObjectStorageClassGlacierIr {
		t.Errorf("%v %+v", err, l)
	}
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, StorageClass: types.StorageClassSnow}); apiCode(err) != "NotImplemented" {
		t.Error(err)
	}
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, StorageClass: "COLD"}); apiCode(err) != "InvalidStorageClass" {
		t.Error(err)
	}
	for _, class := range types.StorageClass("").Values() { // whatever the SDK knows is known here
		if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, StorageClass: class}); apiCode(err) == "InvalidStorageClass" {
			t.Errorf("%s: %v", class, err)
		}
	}
}
