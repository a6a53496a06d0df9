package s3api

import (
	"context"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

func tagDoc(pairs ...string) []byte {
	var b strings.Builder
	b.WriteString("<Tagging><TagSet>")
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		b.WriteString("<Tag><Key>" + k + "</Key><Value>" + v + "</Value></Tag>")
	}
	b.WriteString("</TagSet></Tagging>")
	return []byte(b.String())
}

func numberedTags(n int) (pairs []string) {
	for i := range n {
		pairs = append(pairs, fmt.Sprintf("key%03d=%d", i, i))
	}
	return pairs
}

// tags are those of a target, as key=value in the order shown.
func (h *harness) tags(target string) string {
	h.t.Helper()
	sep := "?"
	if strings.Contains(target, "?") {
		sep = "&"
	}
	a := h.want(h.do("GET", target+sep+"tagging", nil), 200, "")
	var out []string
	for _, s := range strings.Split(a.body, "<Tag><Key>")[1:] {
		k, rest, _ := strings.Cut(s, "</Key><Value>")
		v, _, _ := strings.Cut(rest, "</Value>")
		out = append(out, k+"="+v)
	}
	return strings.Join(out, "|")
}

func TestObjectTagging(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.do("PUT", "/bucket/k", []byte("x"))
	if got := h.tags("/bucket/k"); got != "" {
		t.Error(got)
	}
	if a := h.do("HEAD", "/bucket/k", nil); a.Header.Get("X-Amz-Tagging-Count") != "" {
		t.Error(a.Header)
	}
	h.want(h.do("PUT", "/bucket/k?tagging", tagDoc("b=2", "a=1&amp; ", "Empty=")), 400, "InvalidTag") // &
	h.want(h.do("PUT", "/bucket/k?tagging", tagDoc("b=2", "a=1 + -=._:/@", "Empty=", "é漢=٣")), 200, "")
	if got := h.tags("/bucket/k"); got != "Empty=|a=1 + -=._:/@|b=2|é漢=٣" {
		t.Error(got)
	}
	for _, m := range []string{"GET", "HEAD"} {
		if a := h.do(m, "/bucket/k", nil); a.Header.Get("X-Amz-Tagging-Count") != "4" {
			t.Error(a.Header)
		}
	}
	long := strings.Repeat("k", 128) + "=" + strings.Repeat("v", 256)
	for what, c := range map[string]struct {
		doc  []byte
		code string
	}{
		"eleven": {tagDoc(numberedTags(11)...), "InvalidTag"}, "long key": {tagDoc("k" + long), "InvalidTag"}, "long value": {tagDoc(long + "v"), "InvalidTag"}, "no key": {tagDoc("=v"), "InvalidTag"},
		"twice": {tagDoc("a=1", "b=2", "a=3"), "InvalidTag"}, "system": {tagDoc("AWS:x=1"), "InvalidTag"}, "character": {tagDoc("a*=1"), "InvalidTag"}, "value character": {tagDoc("a=!"), "InvalidTag"},
		"surrogates": {tagDoc(strings.Repeat("𝒳", 65) + "=1"), "InvalidTag"}, "control": {tagDoc("a&#10;=1"), "InvalidTag"},
		"nothing": {nil, "MalformedXML"}, "no set": {[]byte("<Tagging/>"), "MalformedXML"}, "no value": {[]byte("<Tagging><TagSet><Tag><Key>a</Key></Tag></TagSet></Tagging>"), "MalformedXML"},
	} {
		if a := h.do("PUT", "/bucket/k?tagging", c.doc); a.StatusCode != 400 || a.code() != c.code {
			t.Errorf("%s: %d %s", what, a.StatusCode, a.body)
		}
	}
	if got := h.tags("/bucket/k"); !strings.HasPrefix(got, "Empty=") {
		t.Errorf("refused tags were stored: %s", got)
	}
	h.want(h.do("PUT", "/bucket/k?tagging", tagDoc("a=1"), "Content-Md5", md5Of([]byte("other"))), 400, "BadDigest")
	h.want(h.do("PUT", "/bucket/k?tagging", tagDoc(append(numberedTags(9), long)...)), 200, "")
	h.want(h.do("PUT", "/bucket/k?tagging", tagDoc(strings.Repeat("𝒳", 64)+"=1")), 200, "")
	h.want(h.do("PUT", "/bucket/k?tagging", tagDoc()), 200, "")
	if got := h.tags("/bucket/k"); got != "" {
		t.Error(got)
	}
	h.do("PUT", "/bucket/k?tagging", tagDoc("a=1"))
	h.want(h.do("DELETE", "/bucket/k?tagging", nil), 204, "")
	if got := h.tags("/bucket/k"); got != "" {
		t.Error(got)
	}
	for _, m := range []string{"GET", "PUT", "DELETE"} {
		h.want(h.do(m, "/bucket/none?tagging", tagDoc()), 404, "NoSuchKey")
		h.want(h.do(m, "/nobucket/none?tagging", tagDoc()), 404, "NoSuchBucket")
	}
	// Each version has its own tags.
	h.do("PUT", "/bucket/k?tagging", tagDoc("v=null"))
	h.versioning("bucket", "Enabled")
	id := h.do("PUT", "/bucket/k", []byte("y")).Header.Get("X-Amz-Version-Id")
	if a := h.want(h.do("PUT", "/bucket/k?tagging", tagDoc("v=new")), 200, ""); a.Header.Get("X-Amz-Version-Id") != id {
		t.Error(a.Header)
	}
	if a := h.want(h.do("DELETE", "/bucket/k?tagging&versionId=null", nil), 204, ""); a.Header.Get("X-Amz-Version-Id") != "null" {
		t.Error(a.Header)
	}
	if old, now := h.tags("/bucket/k?versionId=null"), h.tags("/bucket/k"); old != "" || now != "v=new" {
		t.Errorf("%q %q", old, now)
	}
	if a := h.want(h.do("GET", "/bucket/k?tagging", nil), 200, ""); a.Header.Get("X-Amz-Version-Id") != id {
		t.Error(a.Header)
	}
}

// x-amz-tagging on everything that makes an object.
func TestTaggingHeader(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.do("PUT", "/bucket/src", []byte("x"), "X-Amz-Tagging", "from=source")
	makes := map[string]func(tagging string) answer{
		"put": func(tagging string) answer {
			return h.do("PUT", "/bucket/put", nil, "X-Amz-Tagging", tagging)
		},
		"copy": func(tagging string) answer {
			return h.do("PUT", "/bucket/copy", nil, "X-Amz-Tagging", tagging, "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging-Directive", "REPLACE")
		},
		"replace": func(tagging string) answer {
			return h.do("PUT", "/bucket/replace", nil, "X-Amz-Tagging", tagging, "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging-Directive", "REPLACE", "X-Amz-Metadata-Directive", "REPLACE")
		},
		"upload": func(tagging string) answer {
			a := h.do("POST", "/bucket/upload?uploads", nil, "X-Amz-Tagging", tagging)
			if a.StatusCode != 200 {
				return a
			}
			id := a.element("UploadId")
			etag := h.do("PUT", "/bucket/upload?partNumber=1&uploadId="+id, []byte("x")).Header.Get("ETag")
			return h.do("POST", "/bucket/upload?uploadId="+id, []byte("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"+etag+"</ETag></Part></CompleteMultipartUpload>"))
		},
	}
	for what, make := range makes {
		for bad, code := range map[string]string{
			"a=1&a=2": "InvalidArgument", "a=%zz": "InvalidArgument", "%ff=1": "InvalidArgument", "=1": "InvalidTag", "aws:a=1": "InvalidTag", "a=%2A": "InvalidTag", strings.Repeat("k", 129) + "=": "InvalidTag",
			strings.ReplaceAll(strings.Join(numberedTags(11), "&"), "\n", ""): "InvalidTag",
		} {
			if a := make(bad); a.StatusCode != 400 || a.code() != code {
				t.Errorf("%s %s: %d %s", what, bad, a.StatusCode, a.body)
			}
		}
		h.want(h.do("HEAD", "/bucket/"+what, nil), 404, "")
		for tagging, want := range map[string]string{"foo=bar&bar": "bar=|foo=bar", "a%20b=c+d&%C3%A9=%2B": "a b=c d|é=+", "": "", strings.Join(numberedTags(10), "&"): strings.Join(numberedTags(10), "|")} {
			h.want(make(tagging), 200, "")
			if got := h.tags("/bucket/" + what); got != want {
				t.Errorf("%s %s: %s, want %s", what, tagging, got, want)
			}
		}
	}
	h.want(h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "bucket/src"), 200, "")
	if got := h.tags("/bucket/copy"); got != "from=source" {
		t.Error(got)
	}
	h.want(h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "bucket/src", "X-Amz-Metadata-Directive", "REPLACE", "X-Amz-Tagging-Directive", "COPY"), 200, "")
	if got := h.tags("/bucket/copy"); got != "from=source" {
		t.Error(got)
	}
	h.want(h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging", "a=b"), 400, "InvalidRequest")
	h.want(h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "bucket/src", "X-Amz-Tagging-Directive", "MOVE"), 400, "InvalidArgument")
	h.want(h.do("GET", "/bucket/copy", nil, "X-Amz-Tagging", "a=b"), 501, "NotImplemented")
}

func TestBucketTagging(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.want(h.do("GET", "/bucket?tagging", nil), 404, "NoSuchTagSet")
	h.want(h.do("DELETE", "/bucket?tagging", nil), 204, "")
	h.want(h.do("PUT", "/bucket?tagging", tagDoc(numberedTags(51)...)), 400, "InvalidTag")
	h.want(h.do("PUT", "/bucket?tagging", tagDoc("aws:cloud=1")), 400, "InvalidTag")
	h.want(h.do("PUT", "/bucket?tagging", tagDoc("a=1", "a=1")), 400, "InvalidTag")
	h.want(h.do("GET", "/bucket?tagging", nil), 404, "NoSuchTagSet")
	h.want(h.do("PUT", "/bucket?tagging", tagDoc(numberedTags(50)...)), 204, "")
	if got := h.tags("/bucket"); got != strings.Join(numberedTags(50), "|") {
		t.Error(got)
	}
	h.want(h.do("PUT", "/bucket?tagging", tagDoc("Hello=World")), 204, "")
	if got := h.tags("/bucket"); got != "Hello=World" {
		t.Error(got)
	}
	h.want(h.do("DELETE", "/bucket?tagging", nil), 204, "")
	h.want(h.do("GET", "/bucket?tagging", nil), 404, "NoSuchTagSet")
	for _, m := range []string{"GET", "PUT", "DELETE"} {
		h.want(h.do(m, "/nobucket?tagging", tagDoc()), 404, "NoSuchBucket")
	}
	h.key, h.secret = "BOB", "bob-secret"
	for _, m := range []string{"GET", "PUT", "DELETE"} {
		h.want(h.do(m, "/bucket?tagging", tagDoc()), 403, "AccessDenied")
	}
}

func TestSDKTags(t *testing.T) {
	h := newHarness(t)
	c := h.client(h.srv)
	ctx := context.Background()
	h.bucket("bucket")
	bucket, key := aws.String("bucket"), aws.String("k")
	if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: key, Tagging: aws.String(url.Values{"a b": {"1/2"}}.Encode())}); err != nil {
		t.Fatal(err)
	}
	tags := &types.Tagging{TagSet: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}, {Key: aws.String("k2"), Value: aws.String("")}}}
	if got, err := c.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: bucket, Key: key}); err != nil || len(got.TagSet) != 1 || *got.TagSet[0].Key != "a b" || *got.TagSet[0].Value != "1/2" {
		t.Errorf("%v %+v", err, got)
	}
	if _, err := c.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: bucket, Key: key, Tagging: tags}); err != nil {
		t.Error(err)
	}
	if head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: bucket, Key: key}); err != nil || *head.TagCount != 2 {
		t.Errorf("%v %+v", err, head)
	}
	if _, err := c.DeleteObjectTagging(ctx, &s3.DeleteObjectTaggingInput{Bucket: bucket, Key: key}); err != nil {
		t.Error(err)
	}
	if _, err := c.PutBucketTagging(ctx, &s3.PutBucketTaggingInput{Bucket: bucket, Tagging: tags}); err != nil {
		t.Error(err)
	}
	if got, err := c.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: bucket}); err != nil || len(got.TagSet) != 2 || *got.TagSet[1].Key != "k2" {
		t.Errorf("%v %+v", err, got)
	}
	if _, err := c.DeleteBucketTagging(ctx, &s3.DeleteBucketTaggingInput{Bucket: bucket}); err != nil {
		t.Error(err)
	}
	if _, err := c.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: bucket}); apiCode(err) != "NoSuchTagSet" {
		t.Error(err)
	}
}

// Whatever a header says, the tags that come of it are such that a document may hold them too.
func FuzzTags(f *testing.F) {
	f.Add("a=b&c=%20+d")
	f.Add("%F0%9D%92%B3=&=&&")
	f.Fuzz(func(t *testing.T, header string) {
		q := &request{r: httptest.NewRequest("PUT", "/bucket/key", nil)}
		q.r.Header["X-Amz-Tagging"] = []string{header}
		tags, err := q.tags()
		if err != nil {
			return
		}
		for i, tag := range tags {
			if tag.Name == "" || !tagText(tag.Name, tagKeyMax) || !tagText(tag.Value, tagValueMax) || i > 0 && tags[i-1].Name >= tag.Name || i >= objectTagsMax {
				t.Fatalf("%q: %v", header, tags)
			}
		}
	})
}
