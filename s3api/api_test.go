package s3api

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/sigv4"
	"cairn/storage/errs"
)

// Every code reaches the client as status, code and message, and is counted.
func TestEveryErrorCode(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for _, c := range s3err.Codes() {
		h.fake.err = fmt.Errorf("store: %w", &s3err.Error{Code: c, Err: errBoom})
		a := h.want(h.do("GET", "/bucket?location", nil), c.Status(), c.String())
		if a.element("Message") != strings.ReplaceAll(c.Message(), "'", "&#39;") || a.element("Resource") != "/bucket" || a.element("HostId") != "host-id" {
			t.Errorf("%s: %s", c, a.body)
		}
		if strings.Contains(a.body, "boom") {
			t.Errorf("%s shows its cause", c)
		}
		if (a.Header.Get("Retry-After") != "") != (c.Status() == 503) {
			t.Errorf("%s: Retry-After %q", c, a.Header.Get("Retry-After"))
		}
		head := h.do("HEAD", "/bucket", nil)
		if head.StatusCode != c.Status() || head.body != "" {
			t.Errorf("HEAD %s: %d %q", c, head.StatusCode, head.body)
		}
		if want := fmt.Sprint("HeadBucket ", c.Status(), " 0 0"); h.metrics.last() != want {
			t.Errorf("%s, want %s", h.metrics.last(), want)
		}
	}
}

// Every kind of the store reaches the client too, with the elements of its code.
func TestEveryKind(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for k := errs.Other; k <= errs.RestoreInProgress; k++ {
		h.fake.err = errs.New(k, "op", "subject", "")
		want := s3err.From(h.fake.err)
		code := want.Code
		if k == errs.IsDeleteMarker {
			code = s3err.NoSuchKey
		}
		a := h.want(h.do("GET", "/bucket/the%20key", nil), code.Status(), code.String())
		switch k {
		case errs.NoSuchBucket:
			if a.element("BucketName") != "bucket" {
				t.Error(a.body)
			}
		case errs.NoSuchKey:
			if a.element("Key") != "the key" {
				t.Error(a.body)
			}
		case errs.IsDeleteMarker:
			if a.Header.Get("X-Amz-Delete-Marker") != "true" {
				t.Error(a.Header)
			}
			h.want(h.do("GET", "/bucket/the%20key?versionId=null", nil), 405, "MethodNotAllowed")
		}
	}
	h.fake.err = context.Canceled
	h.want(h.do("GET", "/bucket/key", nil), 503, "ServiceUnavailable")
}

func TestAuthentication(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	anonymous := func(method, target string) answer {
		req, _ := http.NewRequest(method, h.srv.URL+target, nil)
		return h.send(req)
	}
	for _, target := range []string{"/", "/bucket", "/bucket/key", "/bucket?acl", "/bucket/key?torrent", "/nobucket", "/-", "/bucket?newthing", "/bucket?acl&policy"} {
		for _, m := range []string{"GET", "PUT", "DELETE", "POST"} {
			h.want(anonymous(m, target), 403, "AccessDenied")
		}
	}
	// A form says itself who sends it; preflights are refused to everybody, without looking at who asks.
	req, _ := http.NewRequest("POST", h.srv.URL+"/bucket", strings.NewReader("x"))
	req.Header.Set("Content-Type", "multipart/form-data; boundary=x")
	h.want(h.send(req), 400, "MalformedPOSTRequest")
	h.want(anonymous("OPTIONS", "/bucket/key"), 403, "AccessForbidden")

	h.want(h.do("GET", "/bucket", nil), 200, "")
	h.key, h.secret = "BOB", "bob-secret"
	h.want(h.do("GET", "/bucket", nil), 403, "AccessDenied")
	h.want(h.do("PUT", "/bucket", nil), 409, "BucketAlreadyExists")
	h.secret = "wrong"
	a := h.want(h.do("GET", "/bucket", nil), 403, "SignatureDoesNotMatch")
	if a.element("AWSAccessKeyId") != "BOB" || !strings.HasPrefix(a.element("StringToSign"), "AWS4-HMAC-SHA256&#xa;") || !strings.HasPrefix(a.element("CanonicalRequest"), "GET&#xa;/bucket&#xa;") {
		t.Error(a.body)
	}
	h.key = "NOBODY"
	if a := h.want(h.do("GET", "/bucket", nil), 403, "InvalidAccessKeyId"); a.element("AWSAccessKeyId") != "NOBODY" {
		t.Error(a.body)
	}
	h.key, h.secret = "ALICE", "alice-secret"
	for offset, code := range map[time.Duration]string{-20 * time.Minute: "RequestTimeTooSkewed", 20 * time.Minute: "RequestTimeTooSkewed", 10 * time.Minute: "", -10 * time.Minute: ""} {
		req := h.request("GET", "/bucket", nil)
		req.URL.Opaque = "//" + req.URL.Host + "/bucket"
		h.sign(req, req.Header.Get("X-Amz-Content-Sha256"), time.Now().Add(offset))
		status := 200
		if code != "" {
			status = 403
		}
		h.want(h.send(req), status, code)
	}
	req = h.request("GET", "/bucket", nil)
	req.Header.Set("X-Amz-Acl", "private") // not signed
	if a := h.want(h.send(req), 403, "AccessDenied"); a.element("HeadersNotSigned") != "x-amz-acl" {
		t.Error(a.body)
	}
	h.want(h.do("GET", "/bucket", nil, "X-Amz-Security-Token", "token"), 400, "InvalidToken")
	req, _ = http.NewRequest("GET", h.srv.URL+"/bucket", nil)
	req.Header.Set("Authorization", "AWS ALICE:signature")
	if a := h.want(h.send(req), 400, "InvalidRequest"); !strings.Contains(a.body, "AWS4-HMAC-SHA256") {
		t.Error(a.body)
	}
	req, _ = http.NewRequest("GET", h.srv.URL+"/bucket?AWSAccessKeyId=ALICE&Signature=AAAAAAAAAAAAAAAAAAAAAAAAAAA%3D&Expires=1", nil)
	h.want(h.send(req), 400, "InvalidRequest") // version 2 only on one object
}

// A URL presigned with version 2 does what was signed and nothing else.
func TestPresignedV2(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.fake.PutObject(context.Background(), alice(), putInput("bucket", "a b", "content"))
	expires := fmt.Sprint(time.Now().Add(time.Minute).Unix())
	presign := func(method, secret, query string) string { // query: signed subresources, as sent
		mac := hmac.New(sha1.New, []byte(secret))
		resource := "/bucket/a%20b"
		if query != "" {
			plain, _ := url.PathUnescape(query)
			resource += "?" + plain
			query += "&"
		}
		io.WriteString(mac, method+"\n\n\n"+expires+"\n"+resource)
		return "/bucket/a%20b?" + query + "AWSAccessKeyId=ALICE&Expires=" + expires + "&Signature=" + url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	}
	do := func(method, target string, body string) answer {
		req, err := http.NewRequest(method, h.srv.URL+target, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		return h.send(req)
	}
	if a := h.want(do("GET", presign("GET", "alice-secret", ""), ""), 200, ""); a.body != "content" {
		t.Error(a.body)
	}
	if a := h.want(do("GET", presign("GET", "alice-secret", "response-content-type=a%2Fb%2Bc"), ""), 200, ""); a.Header.Get("Content-Type") != "a/b+c" {
		t.Error(a.Header)
	}
	h.want(do("PUT", presign("PUT", "alice-secret", ""), "new"), 200, "")
	h.want(do("GET", presign("GET", "wrong", ""), ""), 403, "SignatureDoesNotMatch")
	h.want(do("PUT", presign("GET", "alice-secret", ""), "other"), 403, "SignatureDoesNotMatch")
	good := presign("GET", "alice-secret", "")
	for _, added := range []string{"&versionId=null", "&version%49d=null", "&%72esponse-content-type=text/html", "&uploadId=x", "&%75ploadId=x", "&x-amz-expected-bucket-owner=alice-id", "&%58-amz-acl=private", "&partNumber=1"} {
		h.want(do("GET", good+added, ""), 403, "SignatureDoesNotMatch")
	}
	put := presign("PUT", "alice-secret", "")
	for _, added := range []string{"&%75ploadId=x&partNumber=1", "&uploadId=x&partNumber=1", "&x-amz-copy-source=bucket/a"} {
		h.want(do("PUT", put+added, ""), 403, "SignatureDoesNotMatch")
	}
	h.want(do("PUT", put+"&%61cl", ""), 400, "InvalidRequest")
	// Of what stands for a header only one may be there: which one counts must not be a matter of order or spelling.
	mac := hmac.New(sha1.New, []byte("alice-secret"))
	io.WriteString(mac, "PUT\n\n\n"+expires+"\nx-amz-meta-a:1\n/bucket/meta")
	meta := "/bucket/meta?AWSAccessKeyId=ALICE&Expires=" + expires + "&Signature=" + url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	for range 10 { // maps were involved
		for _, both := range []string{"&X-Amz-Meta-A=2&x-amz-meta-a=1", "&x-amz-meta-a=1&X-Amz-Meta-A=2", "&x-amz-meta-a=1&x-amz-meta-a=2"} {
			h.want(do("PUT", meta+both, "x"), 400, "InvalidRequest")
		}
	}
	h.want(do("PUT", meta+"&x-amz-meta-a=1", "x"), 200, "")
	if user := h.fake.buckets["bucket"].objects["meta"].attrs.User; len(user) != 1 || user[0].Value != "1" {
		t.Errorf("stored with %v", user)
	}
	h.want(do("GET", good+"&%zz=1", ""), 400, "InvalidURI")
	if got := string(h.fake.buckets["bucket"].objects["a b"].data); got != "new" {
		t.Errorf("%q", got)
	}
}

func TestRegions(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Region = "eu-west-1" })
	h.want(h.do("PUT", "/bucket", nil), 200, "")
	h.want(h.do("PUT", "/bucket", nil), 409, "BucketAlreadyOwnedByYou")
	if a := h.want(h.do("GET", "/bucket?location", nil), 200, ""); !strings.Contains(a.body, ">eu-west-1</LocationConstraint>") {
		t.Error(a.body)
	}
	h.handler.cfg.Region = "us-east-1" // as a client would sign that does not know the region
	location, list, other := h.request("GET", "/bucket?location", nil), h.request("GET", "/", nil), h.request("GET", "/bucket", nil)
	h.handler.cfg.Region = "eu-west-1"
	h.want(h.send(location), 200, "")
	h.want(h.send(list), 200, "")
	if a := h.want(h.send(other), 400, "AuthorizationHeaderMalformed"); a.element("Region") != "eu-west-1" {
		t.Error(a.body)
	}
	conf := func(location string) []byte {
		return []byte("<CreateBucketConfiguration><LocationConstraint>" + location + "</LocationConstraint></CreateBucketConfiguration>")
	}
	h.want(h.do("PUT", "/bucket-two", conf("eu-west-1")), 200, "")
	h.want(h.do("PUT", "/bucket-three", conf("EU")), 200, "")
	h.want(h.do("PUT", "/bucket-four", conf("")), 200, "")
	h.want(h.do("PUT", "/bucket-five", conf("eu-west-2")), 400, "IllegalLocationConstraintException")
	h.want(h.do("PUT", "/bucket-five", conf("mars")), 400, "InvalidLocationConstraint")
	h.want(h.do("PUT", "/bucket-five", []byte("<CreateBucketConfiguration>")), 400, "MalformedXML")
	h.want(h.do("PUT", "/bucket-five", []byte("<CreateBucketConfiguration><Bucket><Type>Directory</Type></Bucket></CreateBucketConfiguration>")), 501, "NotImplemented")
}

func TestBuckets(t *testing.T) {
	h := newHarness(t)
	if a := h.want(h.do("PUT", "/bucket", nil), 200, ""); a.Header.Get("Location") != "/bucket" {
		t.Error(a.Header)
	}
	h.want(h.do("PUT", "/bucket", nil), 200, "") // us-east-1
	for _, name := range []string{"ab", strings.Repeat("a", 64), "-abc", "abc-", ".abc", "a..b", "a.-b", "a-.b", "Abc", "a_b", "192.168.1.1", "xn--abc", "sthree-abc", "abc-s3alias", "abc--x-s3", "a%20b"} {
		h.want(h.do("PUT", "/"+name, nil), 400, "InvalidBucketName")
	}
	for _, name := range []string{"abc", strings.Repeat("a", 63), "a.b.c", "1.2.3", "192.168.1.1a", "a--b"} {
		h.want(h.do("PUT", "/"+name, nil), 200, "")
	}
	for header, want := range map[string]string{
		"X-Amz-Acl=private": "", "X-Amz-Acl=public-read": "NotImplemented", "X-Amz-Acl=nonsense": "InvalidArgument", "X-Amz-Bucket-Object-Lock-Enabled=maybe": "InvalidArgument",
		"X-Amz-Bucket-Object-Lock-Enabled=false": "", "X-Amz-Object-Ownership=BucketOwnerEnforced": "", "X-Amz-Object-Ownership=ObjectWriter": "NotImplemented", "X-Amz-Grant-Read=id=x": "NotImplemented",
	} {
		name, value, _ := strings.Cut(header, "=")
		a := h.do("PUT", "/headers", nil, name, value)
		if a.code() != want {
			t.Errorf("%s: %d %s", header, a.StatusCode, a.code())
		}
	}
	var names []string
	for token := ""; ; {
		a := h.want(h.do("GET", "/?max-buckets=2&continuation-token="+token, nil), 200, "")
		for _, s := range strings.Split(a.body, "<Name>")[1:] {
			n, _, _ := strings.Cut(s, "<")
			names = append(names, n)
		}
		if token = a.element("ContinuationToken"); token == "absent" {
			break
		}
	}
	if len(names) != 8 || !slices.IsSorted(names) {
		t.Errorf("%v", names)
	}
	h.want(h.do("GET", "/?max-buckets=0", nil), 400, "InvalidArgument")
	h.want(h.do("GET", "/?continuation-token=x", nil), 400, "InvalidArgument")
	if a := h.want(h.do("GET", "/?bucket-region=elsewhere", nil), 200, ""); strings.Contains(a.body, "<Name>") {
		t.Error(a.body)
	}
	h.want(h.do("DELETE", "/bucket", nil), 204, "")
	h.want(h.do("DELETE", "/bucket", nil), 404, "NoSuchBucket")
	h.want(h.do("GET", "/bucket?versioning", nil), 404, "NoSuchBucket")
	h.want(h.do("HEAD", "/bucket", nil), 404, "")
}

func TestUnsupportedHeaders(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for header, want := range map[string]string{
		"X-Amz-Server-Side-Encryption=AES256": "NotImplemented", "X-Amz-Server-Side-Encryption-Customer-Algorithm=AES256": "InvalidArgument",
		"X-Amz-Bucket-Object-Lock-Enabled=true": "NotImplemented", "X-Amz-Object-Attributes=ETag": "NotImplemented", "X-Amz-Max-Parts=1": "NotImplemented", "X-Amz-Acl=public-read": "NotImplemented", "X-Amz-Acl=bucket-owner-full-control": "",
		"X-Amz-Grant-Full-Control=x": "NotImplemented", "X-Amz-Write-Offset-Bytes=3": "NotImplemented", "X-Amz-Invented-Yesterday=1": "NotImplemented", "X-Amz-Checksum-Xxhash32=x": "NotImplemented",
		"X-Amz-Storage-Class=STANDARD": "", "X-Amz-Storage-Class=REDUCED_REDUNDANCY": "", "X-Amz-Storage-Class=OUTPOSTS": "NotImplemented", "X-Amz-Storage-Class=FAST": "InvalidStorageClass",
		"X-Amz-Website-Redirect-Location=nowhere": "InvalidArgument", "X-Amz-Website-Redirect-Location=https://x": "", "If-Modified-Since=x": "NotImplemented", "If-Match=\"x\"": "NoSuchKey",
		"X-Amz-Expected-Bucket-Owner=alice-id": "", "X-Amz-Expected-Bucket-Owner=bob-id": "AccessDenied", "X-Amz-Request-Payer=requester": "", "Content-Range=bytes 0-0/5": "NotImplemented", "X-Amz-Copy-Source-Range=bytes=0-1": "InvalidArgument", "X-Amz-Mfa=1 2": "",
	} {
		name, value, _ := strings.Cut(header, "=")
		a := h.do("PUT", "/bucket/"+name, []byte("x"), name, value)
		if a.code() != want || want == "" && a.StatusCode != 200 {
			t.Errorf("%s: %d %s", header, a.StatusCode, a.body)
		}
		if want == "NotImplemented" && !strings.HasPrefix(name, "X-Amz-Storage") && a.element("Header") != strings.ToLower(name) {
			t.Errorf("%s: %s", header, a.body)
		}
		delete(h.fake.buckets["bucket"].objects, name)
	}
}

func TestChecksumsOfBodies(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	data := []byte("hello")
	good := map[string]string{ // of "hello", computed with other tools
		"X-Amz-Checksum-Crc32": "NhCmhg==", "X-Amz-Checksum-Crc32c": "mnG7TA==", "X-Amz-Checksum-Crc64nvme": "M3eFcAZSQlc=",
		"X-Amz-Checksum-Sha1": "qvTGHdzF6KLavt4PO0gs2a6pQ00=", "X-Amz-Checksum-Sha256": "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=",
		"X-Amz-Checksum-Sha512": "m3HSJL1i83hdltRq0+o9czGb+8KJDKra4t/3JRlnPKcjI8PZm6XBHXx6zG4UuMXaDEZjR1wuXDre9G9zvN7AQw==", "Content-Md5": "XUFAKrxLKna5cZ2REBfFkg==",
		"X-Amz-Checksum-Md5": "XUFAKrxLKna5cZ2REBfFkg==", "X-Amz-Checksum-Xxhash64": "JseCfYifbaM=",
		"X-Amz-Checksum-Xxhash3": "lVXoVVxi3P0=", "X-Amz-Checksum-Xxhash128": "tenBrQcbPn/Hec+qXlI4GA==",
	}
	for name, value := range good {
		a := h.want(h.do("PUT", "/bucket/k", data, name, value), 200, "")
		if name != "Content-Md5" && (a.Header.Get(name) != value || a.Header.Get("X-Amz-Checksum-Type") != "FULL_OBJECT") {
			t.Errorf("%s: %v", name, a.Header)
		}
		h.want(h.do("PUT", "/bucket/bad", []byte("hellO"), name, value), 400, "BadDigest")
		if name != "Content-Md5" {
			h.want(h.do("PUT", "/bucket/bad", data, name, "bad"), 400, "BadDigest")
		} else {
			h.want(h.do("PUT", "/bucket/bad", data, name, "bad"), 400, "InvalidDigest")
			h.want(h.do("PUT", "/bucket/bad", data, name, ""), 400, "InvalidDigest")
		}
	}
	if a := h.do("PUT", "/bucket/k", data); a.Header.Get("X-Amz-Checksum-Crc64nvme") != good["X-Amz-Checksum-Crc64nvme"] {
		t.Errorf("no default checksum: %v", a.Header)
	}
	h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Checksum-Crc32", good["X-Amz-Checksum-Crc32"], "X-Amz-Checksum-Sha1", good["X-Amz-Checksum-Sha1"]), 400, "InvalidRequest")
	h.want(h.do("PUT", "/bucket/k", data, "X-Amz-Sdk-Checksum-Algorithm", "CRC32", "X-Amz-Checksum-Crc32", good["X-Amz-Checksum-Crc32"]), 200, "")
	h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Sdk-Checksum-Algorithm", "SHA1", "X-Amz-Checksum-Crc32", good["X-Amz-Checksum-Crc32"]), 400, "InvalidRequest")
	h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Sdk-Checksum-Algorithm", "SHA1"), 400, "InvalidRequest")
	h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Sdk-Checksum-Algorithm", "MD4"), 400, "InvalidRequest")
	h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Trailer", "x-amz-checksum-crc32"), 400, "InvalidRequest")
	a := h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Content-Sha256", sha256Hex("other")), 400, "XAmzContentSHA256Mismatch")
	if a.element("S3ComputedContentSHA256") != sha256Hex("hello") {
		t.Error(a.body)
	}
	h.want(h.do("PUT", "/bucket/k", data, "X-Amz-Content-Sha256", strings.ToUpper(sha256Hex("hello"))), 200, "")
	h.want(h.do("PUT", "/bucket/k", data, "X-Amz-Content-Sha256", sigv4.UnsignedPayload), 200, "")
	h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Content-Sha256", "SIGNED"), 400, "InvalidArgument")
	h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Content-Sha256", sigv4.StreamingUnsignedPayloadTrailer), 411, "MissingContentLength")
	h.want(h.do("PUT", "/bucket/bad", data, "X-Amz-Content-Sha256", sigv4.UnsignedPayload, "X-Amz-Decoded-Content-Length", "5"), 400, "InvalidRequest")
	req := h.request("PUT", "/bucket/bad", data, "X-Amz-Content-Sha256", sigv4.UnsignedPayload)
	req.ContentLength, req.URL.Opaque = -1, "//"+req.URL.Host+"/bucket/bad"
	req.Header.Del("Content-Length")
	h.sign(req, sigv4.UnsignedPayload, time.Now())
	h.want(h.send(req), 411, "MissingContentLength")
	if h.fake.buckets["bucket"].objects["bad"] != nil {
		t.Error("a refused body was stored")
	}
	for _, p := range h.fake.puts {
		if b := p.Body.(*body); b.ContentMD5() != nil && fmt.Sprintf("%x", b.ContentMD5()) != "5d41402abc4b2a76b9719d911017c592" {
			t.Error("ContentMD5")
		}
	}
}

func TestMetadata(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.want(h.do("PUT", "/bucket/k", []byte("x"), "X-Amz-Meta-B", "2", "X-Amz-Meta-A", "1", "X-Amz-Meta-A", "one", "Content-Type", "t/t", "Cache-Control", "c", "Content-Disposition", "d",
		"Content-Encoding", "gzip", "Content-Language", "l", "Expires", "soon", "X-Amz-Meta-Utf", "漢", "X-Amz-Website-Redirect-Location", "/r"), 200, "")
	a := h.want(h.do("GET", "/bucket/k", nil, "Accept-Encoding", "identity"), 200, "")
	for name, want := range map[string]string{
		"X-Amz-Meta-A": "1,one", "X-Amz-Meta-B": "2", "Content-Type": "t/t", "Cache-Control": "c", "Content-Disposition": "d", "Content-Encoding": "gzip", "Content-Language": "l", "Expires": "soon",
		"X-Amz-Meta-Utf": "漢", "X-Amz-Website-Redirect-Location": "/r", "Accept-Ranges": "bytes", "Last-Modified": "Tue, 03 Nov 2026 10:20:30 GMT", "Content-Length": "1", "X-Amz-Storage-Class": "",
	} {
		if got := a.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	a = h.want(h.do("GET", "/bucket/k?response-content-type=a/b&response-cache-control=x&response-expires=y&response-content-language=z&response-content-disposition=q&response-content-encoding=w", nil, "Accept-Encoding", "identity"), 200, "")
	for name, want := range map[string]string{"Content-Type": "a/b", "Cache-Control": "x", "Expires": "y", "Content-Language": "z", "Content-Disposition": "q", "Content-Encoding": "w"} {
		if got := a.Header.Values(name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	h.want(h.do("GET", "/bucket/k?response-content-type=a%0D%0Ab", nil), 400, "InvalidArgument")
	h.want(h.do("PUT", "/bucket/big", nil, "X-Amz-Meta-A", strings.Repeat("x", 2047)), 200, "")
	h.want(h.do("PUT", "/bucket/big", nil, "X-Amz-Meta-A", strings.Repeat("x", 2048)), 400, "MetadataTooLarge")
	h.want(h.do("PUT", "/bucket/big", nil, "Cache-Control", strings.Repeat("x", 9000)), 400, "MetadataTooLarge")
	h.want(h.do("PUT", "/bucket/plain", nil), 200, "")
	if a := h.do("HEAD", "/bucket/plain", nil); a.Header.Get("Content-Type") != "binary/octet-stream" || a.Header.Get("Content-Length") != "0" {
		t.Error(a.Header)
	}
	if got := utf8Header("caf\xe9"); got != "café" {
		t.Errorf("%q", got)
	}
	// What is not UTF-8 comes back byte for byte, from a copy too; persisted is also what it means as Latin-1.
	h.want(h.do("PUT", "/bucket/latin", nil, "X-Amz-Meta-A", "caf\xe9", "Content-Type", "x/\xe4", "Content-Disposition", "\xfc", "X-Amz-Website-Redirect-Location", "/\xf6"), 200, "")
	attrs := h.fake.buckets["bucket"].objects["latin"].attrs
	if attrs.User[0].Value != "café" || attrs.ContentType != "x/ä" {
		t.Error(attrs)
	}
	if attrs := h.fake.buckets["bucket"].objects["k"].attrs; attrs.RawContentType != nil || attrs.User[2].Raw != nil {
		t.Error("UTF-8 is kept twice:", attrs)
	}
	h.want(h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "/bucket/latin"), 200, "")
	for _, key := range []string{"latin", "copy"} {
		a := h.want(h.do("HEAD", "/bucket/"+key, nil), 200, "")
		for name, want := range map[string]string{"X-Amz-Meta-A": "caf\xe9", "Content-Type": "x/\xe4", "Content-Disposition": "\xfc"} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s of %s: %q, want %q", name, key, got, want)
			}
		}
	}
	if got := h.do("GET", "/bucket/latin", nil).Header.Get("X-Amz-Website-Redirect-Location"); got != "/\xf6" {
		t.Errorf("%q", got)
	}
}

func TestReads(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	etag := h.do("PUT", "/bucket/k", []byte("0123456789")).Header.Get("ETag")
	h.do("PUT", "/bucket/empty", nil)
	for _, c := range []struct {
		rng    string
		status int
		body   string
		header string
	}{
		{"bytes=0-3", 206, "0123", "bytes 0-3/10"}, {"bytes=5-", 206, "56789", "bytes 5-9/10"}, {"bytes=-3", 206, "789", "bytes 7-9/10"}, {"bytes=8-100", 206, "89", "bytes 8-9/10"},
		{"bytes=-100", 206, "0123456789", "bytes 0-9/10"}, {"bytes=0-99999999999999999999999", 206, "0123456789", "bytes 0-9/10"}, {"bytes=10-", 416, "", ""}, {"bytes=-0", 416, "", ""},
		{"bytes=5-3", 200, "0123456789", ""}, {"bytes=a-b", 200, "0123456789", ""}, {"bytes=1-2,4-5", 200, "0123456789", ""}, {"lines=1-2", 200, "0123456789", ""}, {"bytes=-", 200, "0123456789", ""},
	} {
		a := h.do("GET", "/bucket/k", nil, "Range", c.rng)
		if a.StatusCode != c.status || c.status < 300 && a.body != c.body || a.Header.Get("Content-Range") != c.header {
			t.Errorf("%s: %d %q %q", c.rng, a.StatusCode, a.body, a.Header.Get("Content-Range"))
		}
		if c.status == 416 && a.element("RangeRequested") != c.rng {
			t.Error(a.body)
		}
		head := h.do("HEAD", "/bucket/k", nil, "Range", c.rng)
		if head.StatusCode != c.status || c.status < 300 && head.ContentLength != int64(len(c.body)) {
			t.Errorf("HEAD %s: %d %d", c.rng, head.StatusCode, head.ContentLength)
		}
	}
	h.want(h.do("GET", "/bucket/k", nil, "Range", "bytes=1-2", "If-Range", etag), 200, "")
	h.want(h.do("GET", "/bucket/empty", nil, "Range", "bytes=0-"), 416, "InvalidRange")
	h.want(h.do("GET", "/bucket/k?partNumber=1", nil), 206, "")
	h.want(h.do("GET", "/bucket/empty?partNumber=1", nil), 200, "")
	if a := h.want(h.do("GET", "/bucket/k?partNumber=2", nil), 400, "InvalidPart"); a.element("PartNumber") != "2" {
		t.Error(a.body)
	}
	h.want(h.do("HEAD", "/bucket/k?partNumber=2", nil), 400, "")
	for _, bad := range []string{"0", "10001", "x", ""} {
		h.want(h.do("GET", "/bucket/k?partNumber="+bad, nil), 400, "InvalidArgument")
	}
	h.want(h.do("GET", "/bucket/k?partNumber=1", nil, "Range", "bytes=0-1"), 400, "InvalidRequest")
	for _, c := range []struct {
		name, value string
		status      int
	}{
		{"If-Match", etag, 200}, {"If-Match", `"x", ` + etag, 200}, {"If-Match", "*", 200}, {"If-Match", `"x"`, 412}, {"If-None-Match", etag, 304}, {"If-None-Match", "W/" + etag, 304}, {"If-None-Match", `"x"`, 200},
		{"If-Modified-Since", "Tue, 03 Nov 2026 10:20:30 GMT", 304}, {"If-Modified-Since", "Tue, 03 Nov 2026 10:20:29 GMT", 200}, {"If-Unmodified-Since", "Tue, 03 Nov 2026 10:20:30 GMT", 200},
		{"If-Unmodified-Since", "Tue, 03 Nov 2026 10:20:29 GMT", 412}, {"If-Modified-Since", "whenever", 200},
	} {
		for _, m := range []string{"GET", "HEAD"} {
			a := h.do(m, "/bucket/k", nil, c.name, c.value)
			if a.StatusCode != c.status || c.status == 304 && (a.Header.Get("ETag") != etag || a.Header.Get("Content-Type") != "") {
				t.Errorf("%s %s: %s: %d %v", m, c.name, c.value, a.StatusCode, a.Header)
			}
		}
	}
	a := h.do("GET", "/bucket/k", nil, "X-Amz-Checksum-Mode", "ENABLED")
	if a.Header.Get("X-Amz-Checksum-Crc64nvme") == "" {
		t.Error(a.Header)
	}
	a = h.do("GET", "/bucket/k", nil, "X-Amz-Checksum-Mode", "ENABLED", "Range", "bytes=0-1")
	if a.Header.Get("X-Amz-Checksum-Crc64nvme") != "" {
		t.Error("the checksum of the whole with a part of it")
	}
	h.want(h.do("GET", "/bucket/k?versionId=null", nil), 200, "")
	h.want(h.do("GET", "/bucket/k?versionId=0123", nil), 400, "InvalidArgument")
	h.want(h.do("GET", "/bucket/k?versionId=00000000000000010000000000000001", nil), 404, "NoSuchVersion")
	h.settled(t)
	h.do("GET", "/bucket/k", nil)
	if got := h.metrics.last(); got != "GetObject 200 0 10" {
		t.Error(got)
	}
	h.do("PUT", "/bucket/k", []byte("abc"))
	if got := h.metrics.last(); got != "PutObject 200 3 0" {
		t.Error(got)
	}
}

func TestDeletes(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	etag := h.do("PUT", "/bucket/k", []byte("x")).Header.Get("ETag")
	h.want(h.do("DELETE", "/bucket/k", nil, "If-Match", `"x"`), 412, "PreconditionFailed")
	h.want(h.do("DELETE", "/bucket/k", nil, "X-Amz-If-Match-Size", "2"), 412, "PreconditionFailed")
	h.want(h.do("DELETE", "/bucket/k", nil, "X-Amz-If-Match-Size", "many"), 400, "InvalidArgument")
	h.want(h.do("DELETE", "/bucket/k", nil, "X-Amz-If-Match-Last-Modified-Time", "Tue, 03 Nov 2026 10:20:29 GMT"), 412, "PreconditionFailed")
	h.want(h.do("DELETE", "/bucket/k", nil, "X-Amz-If-Match-Last-Modified-Time", "long ago"), 400, "InvalidArgument")
	h.want(h.do("DELETE", "/bucket/k", nil, "If-None-Match", "*"), 501, "NotImplemented")
	h.want(h.do("DELETE", "/bucket/k", nil, "If-Match", etag, "X-Amz-If-Match-Size", "1", "X-Amz-If-Match-Last-Modified-Time", "Tue, 03 Nov 2026 10:20:30 GMT"), 204, "")
	h.want(h.do("DELETE", "/bucket/k", nil), 204, "")

	many := func(doc string, headers ...string) answer {
		return h.do("POST", "/bucket?delete", []byte(doc), append(headers, "Content-Md5", md5Of([]byte(doc)))...)
	}
	h.do("PUT", "/bucket/a", []byte("x"))
	h.do("PUT", "/bucket/b&", []byte("x"))
	h.do("PUT", "/bucket/%01", []byte("x"))
	a := h.want(many(`<Delete><Object><Key>a</Key><ETag>"x"</ETag></Object><Object><Key>b&amp;</Key></Object><Object><Key>&#1;</Key></Object><Object><Key>`+strings.Repeat("k", 1025)+`</Key></Object></Delete>`), 200, "")
	if strings.Count(a.body, "<Deleted>") != 2 || strings.Count(a.body, "<Error>") != 2 || !strings.Contains(a.body, "<Code>PreconditionFailed</Code>") || !strings.Contains(a.body, "<Code>KeyTooLongError</Code>") ||
		!strings.Contains(a.body, "<Key>b&amp;</Key>") || len(h.fake.buckets["bucket"].objects) != 1 {
		t.Error(a.body)
	}
	if a := h.want(many(`<Delete><Quiet>true</Quiet><Object><Key>a</Key></Object></Delete>`), 200, ""); strings.Contains(a.body, "Deleted") {
		t.Error(a.body)
	}
	// An empty version id is not that of the current version.
	h.do("PUT", "/bucket/kept", []byte("x"))
	a = h.want(many(`<Delete><Object><Key>kept</Key><VersionId/></Object><Object><Key>kept</Key><VersionId></VersionId></Object></Delete>`), 200, "")
	if strings.Count(a.body, "<Code>NoSuchVersion</Code>") != 2 || strings.Contains(a.body, "<Deleted>") || h.fake.buckets["bucket"].objects["kept"] == nil {
		t.Error(a.body)
	}
	h.want(h.do("DELETE", "/bucket/kept?versionId=", nil), 400, "InvalidArgument")
	h.want(many(`<Delete>`), 400, "MalformedXML")
	h.want(many(`<Delete>`+strings.Repeat("<Object><Key>k</Key></Object>", 1001)+`</Delete>`), 400, "MalformedXML")
	doc := []byte(`<Delete><Object><Key>a</Key></Object></Delete>`)
	h.want(h.do("POST", "/bucket?delete", doc), 400, "InvalidRequest")
	h.want(h.do("POST", "/bucket?delete", doc, "X-Amz-Checksum-Crc32", "AAAAAA=="), 400, "BadDigest")
	h.want(h.do("POST", "/nobucket?delete", doc, "Content-Md5", md5Of(doc)), 404, "NoSuchBucket")
}

func TestCopyHeaders(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.do("PUT", "/bucket/a%20%3Fb", []byte("x"))
	for source, want := range map[string]string{
		"bucket/a%20%3Fb": "", "/bucket/a%20%3Fb": "", "bucket%2Fa%20%3Fb": "", "bucket/a ?b": "", "/bucket/a%20%3Fb?versionId=null": "", "bucket/a%20%3Fb?versionId=": "InvalidArgument",
		"bucket": "InvalidArgument", "/": "InvalidArgument", "bucket/": "InvalidArgument", "bucket/%zz": "InvalidArgument", "B_/k": "InvalidBucketName", "nobucket/k": "NoSuchBucket",
		"bucket/" + strings.Repeat("k", 1025): "KeyTooLongError", "arn:aws:s3:us-east-1:1:accesspoint/x/object/y": "NotImplemented", "bucket/nokey": "NoSuchKey",
	} {
		a := h.do("PUT", "/bucket/dst", nil, "X-Amz-Copy-Source", source)
		if a.code() != want || want == "" && a.StatusCode != 200 {
			t.Errorf("%q: %d %s", source, a.StatusCode, a.body)
		}
	}
	for headers, want := range map[string]string{
		"X-Amz-Metadata-Directive=MOVE": "InvalidArgument", "X-Amz-Tagging-Directive=REPLACE": "", "X-Amz-Checksum-Algorithm=MD4": "InvalidRequest", "X-Amz-Storage-Class=OUTPOSTS": "NotImplemented",
		"X-Amz-Copy-Source-If-Modified-Since=never": "InvalidArgument", "X-Amz-Copy-Source-If-None-Match=*": "PreconditionFailed", "X-Amz-Website-Redirect-Location=/x": "NotImplemented",
		"If-None-Match=*": "PreconditionFailed", "X-Amz-Source-Expected-Bucket-Owner=x": "AccessDenied", "X-Amz-Copy-Source-Server-Side-Encryption-Customer-Key=x": "InvalidArgument",
	} {
		name, value, _ := strings.Cut(headers, "=")
		a := h.do("PUT", "/bucket/dst", nil, "X-Amz-Copy-Source", "bucket/a%20%3Fb", name, value)
		if a.code() != want {
			t.Errorf("%q: %d %s", headers, a.StatusCode, a.body)
		}
	}
}

func TestMultipartRefusals(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for _, c := range []struct{ alg, kind, want string }{
		{"CRC32", "", ""}, {"CRC32", "FULL_OBJECT", ""}, {"CRC32", "COMPOSITE", ""}, {"CRC64NVME", "COMPOSITE", "InvalidRequest"}, {"CRC64NVME", "FULL_OBJECT", ""}, {"SHA256", "FULL_OBJECT", "InvalidRequest"},
		{"SHA256", "COMPOSITE", ""}, {"", "COMPOSITE", "InvalidRequest"}, {"MD4", "", "InvalidRequest"}, {"CRC32", "ODD", "InvalidRequest"},
		{"CRC32C", "FULL_OBJECT", ""}, {"SHA1", "FULL_OBJECT", "InvalidRequest"}, {"SHA512", "FULL_OBJECT", "InvalidRequest"}, {"SHA512", "", ""}, {"MD5", "", ""}, {"MD5", "FULL_OBJECT", "InvalidRequest"},
		{"XXHASH64", "COMPOSITE", ""}, {"XXHASH64", "FULL_OBJECT", "InvalidRequest"}, {"XXHASH3", "", ""}, {"XXHASH3", "FULL_OBJECT", "InvalidRequest"}, {"XXHASH128", "", ""}, {"XXHASH128", "FULL_OBJECT", "InvalidRequest"},
	} {
		var headers []string
		if c.alg != "" {
			headers = append(headers, "X-Amz-Checksum-Algorithm", c.alg)
		}
		if c.kind != "" {
			headers = append(headers, "X-Amz-Checksum-Type", c.kind)
		}
		a := h.do("POST", "/bucket/k?uploads", nil, headers...)
		if a.code() != c.want || c.want == "" && a.Header.Get("X-Amz-Checksum-Algorithm") != c.alg {
			t.Errorf("%+v: %d %s", c, a.StatusCode, a.body)
		}
	}
	a := h.do("POST", "/bucket/k?uploads", nil, "X-Amz-Checksum-Algorithm", "SHA256", "X-Amz-Checksum-Type", "FULL_OBJECT")
	if a.element("Message") != "The FULL_OBJECT checksum type cannot be used with the sha256 checksum algorithm." {
		t.Error(a.body)
	}
	id := h.do("POST", "/bucket/k?uploads", nil).element("UploadId")
	etag := h.do("PUT", "/bucket/k?partNumber=1&uploadId="+id, []byte("x")).Header.Get("ETag")
	for _, n := range []string{"0", "10001", "x", "-1"} {
		h.want(h.do("PUT", "/bucket/k?uploadId="+id+"&partNumber="+n, []byte("x")), 400, "InvalidArgument")
	}
	h.want(h.do("PUT", "/bucket/k?partNumber=1&uploadId="+id, []byte("y"), "If-Match", "*"), 501, "NotImplemented")
	h.want(h.do("POST", "/bucket/k?uploads", nil, "If-None-Match", "*"), 501, "NotImplemented")
	h.want(h.do("PUT", "/bucket/k?partNumber=1&uploadId=none", []byte("x")), 404, "NoSuchUpload")
	part := func(n int, etag string) string {
		return fmt.Sprintf("<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>", n, etag)
	}
	complete := func(parts string, headers ...string) answer {
		return h.do("POST", "/bucket/k?uploadId="+id, []byte("<CompleteMultipartUpload>"+parts+"</CompleteMultipartUpload>"), headers...)
	}
	h.want(complete(""), 400, "MalformedXML")
	h.want(complete(part(2, etag)+part(1, etag)), 400, "InvalidPartOrder")
	h.want(complete(part(1, etag)+part(1, "other")), 400, "InvalidPart") // of a part named twice the last mention counts
	h.want(complete(part(10001, etag)), 400, "InvalidArgument")
	h.want(complete(part(1, `"x"`)), 400, "InvalidPart")
	h.want(complete(part(1, etag), "X-Amz-Mp-Object-Size", "x"), 400, "InvalidRequest")
	h.want(complete(part(1, etag), "X-Amz-Checksum-Crc32", "bad"), 400, "BadDigest")
	h.want(complete(part(1, etag), "X-Amz-Checksum-Crc64nvme", "AAAAAAAAAAA="), 400, "BadDigest")
	h.want(complete(part(1, etag), "X-Amz-Checksum-Crc32", "AAAAAA==-1", "X-Amz-Checksum-Type", "FULL_OBJECT"), 400, "InvalidRequest")
	h.want(complete("<Part><PartNumber>1</PartNumber><ETag>x</ETag><ChecksumXXHASH32>x</ChecksumXXHASH32></Part>"), 501, "NotImplemented")
	h.want(complete("<Part><PartNumber>1</PartNumber><ETag>x</ETag><ChecksumCRC32>x</ChecksumCRC32></Part>"), 400, "InvalidPart")
	h.want(complete(part(1, "other")+part(1, etag), "If-None-Match", "*"), 200, "")
	h.want(complete(part(1, etag)), 404, "NoSuchUpload")
	h.want(h.do("DELETE", "/bucket/k?uploadId=none", nil), 404, "NoSuchUpload")
	h.want(h.do("GET", "/bucket/k?uploadId=none&max-parts=-1", nil), 400, "InvalidArgument")
	h.want(h.do("GET", "/bucket?uploads&max-uploads=x", nil), 400, "InvalidArgument")
	h.want(h.do("GET", "/bucket?uploads&encoding-type=x", nil), 400, "InvalidArgument")
}

func TestListingDetails(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for _, k := range []string{"%01", "a%0Ab", "a%20b", "a+b", "a/b", "%26"} {
		h.want(h.do("PUT", "/bucket/"+k, nil), 200, "")
	}
	a := h.want(h.do("GET", "/bucket", nil), 200, "")
	for _, want := range []string{"<Key>&#x1;</Key>", "<Key>a&#xa;b</Key>", "<Key>&amp;</Key>", "<Marker></Marker>", "<Prefix></Prefix>", "<MaxKeys>1000</MaxKeys>", "<Owner><ID>alice-id</ID><DisplayName>Alice</DisplayName></Owner>",
		"<ChecksumAlgorithm>CRC64NVME</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>", "<ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag>", "<LastModified>2026-11-03T10:20:30.123Z</LastModified>"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%s is not in %s", want, a.body)
		}
	}
	a = h.want(h.do("GET", "/bucket?list-type=2&encoding-type=url&delimiter=/&prefix=a&start-after=a%20", nil), 200, "")
	for _, want := range []string{"<Key>a%20b</Key>", "<Key>a%2Bb</Key>", "<Prefix>a/</Prefix>", "<StartAfter>a%20</StartAfter>", "<KeyCount>3</KeyCount>", "<EncodingType>url</EncodingType>", "<Delimiter>/</Delimiter>"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%s is not in %s", want, a.body)
		}
	}
	if strings.Contains(a.body, "Owner") {
		t.Error("owner without fetch-owner")
	}
	if a := h.want(h.do("GET", "/bucket?encoding-type=url&prefix=a%20", nil), 200, ""); a.element("Prefix") != "a " || a.element("Key") != "a%20b" {
		t.Error(a.body)
	}
	if a := h.want(h.do("GET", "/bucket?list-type=2&encoding-type=url&prefix=a%20", nil), 200, ""); a.element("Prefix") != "a%20" {
		t.Error(a.body)
	}
	a = h.want(h.do("GET", "/bucket?list-type=2&max-keys=0", nil), 200, "")
	if a.element("IsTruncated") != "false" || a.element("KeyCount") != "0" {
		t.Error(a.body)
	}
	a = h.want(h.do("GET", "/bucket?list-type=2&max-keys=2000&continuation-token=", nil), 200, "")
	if a.element("MaxKeys") != "1000" || a.element("ContinuationToken") != "" {
		t.Error(a.body)
	}
	token := h.do("GET", "/bucket?list-type=2&max-keys=1", nil).element("NextContinuationToken")
	a = h.want(h.do("GET", "/bucket?list-type=2&start-after=z&continuation-token="+token, nil), 200, "")
	if a.element("KeyCount") != "5" || a.element("ContinuationToken") != token {
		t.Error(a.body)
	}
	for target, code := range map[string]string{
		"max-keys=-1": "InvalidArgument", "max-keys=x": "InvalidArgument", "max-keys=99999999999": "InvalidArgument", "encoding-type=base64": "InvalidArgument",
		"list-type=2&continuation-token=x": "InvalidArgument", "list-type=2&fetch-owner=x": "InvalidArgument", "versions&version-id-marker=x": "InvalidArgument",
	} {
		h.want(h.do("GET", "/bucket?"+target, nil), 400, code)
	}
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]Config{
		"no accounts": {}, "region": {Region: "EU West", Accounts: testAccounts}, "domain": {Domains: []string{"a:80"}, Accounts: testAccounts}, "dot": {Domains: []string{".a"}, Accounts: testAccounts},
		"requests": {RequestsMax: -1, Accounts: testAccounts}, "xml": {XMLBytesMax: 1, Accounts: testAccounts}, "idle": {IdleTimeout: -1, Accounts: testAccounts}, "host id": {HostID: "a\nb", Accounts: testAccounts},
	} {
		if _, err := New(c, newFake()); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(Config{Accounts: testAccounts}, nil); err == nil {
		t.Error("no backend")
	}
	a, _ := New(Config{Accounts: testAccounts}, newFake())
	h := a.(*handler)
	seen := map[string]bool{}
	for range 10000 {
		seen[h.requestID()] = true
	}
	if len(seen) != 10000 {
		t.Errorf("%d request ids of 10000", len(seen))
	}
}

// Whatever sigv4 refuses with must be a code of the table.
func TestSignatureCodes(t *testing.T) {
	for _, c := range []string{"AccessDenied", "AuthorizationHeaderMalformed", "AuthorizationQueryParametersError", "EntityTooLarge", "IncompleteBody", "InvalidArgument", "InvalidRequest",
		"MalformedTrailerError", "NotImplemented", "RequestTimeTooSkewed", "SignatureDoesNotMatch"} {
		if e := signatureError(&sigv4.Error{Code: c}); e.Code.String() != c {
			t.Errorf("%s became %s", c, e.Code)
		}
	}
	if e := signatureError(&sigv4.Error{Code: "Invented"}); e.Code != s3err.AccessDenied {
		t.Error("an unknown refusal must still refuse")
	}
}

// No error of a body may look like the end of a short read.
func TestBodyErrorsAreFinal(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	w := &watching{Backend: h.fake, errs: make(chan error, 10)}
	h.handler.backend = w
	check := func(what string, kind errs.Kind) {
		t.Helper()
		select {
		case err := <-w.errs:
			if errs.KindOf(err) != kind || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
				t.Errorf("%s: the store is told %v (%v)", what, err, errs.KindOf(err))
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the store is told nothing", what)
		}
	}
	h.want(h.do("PUT", "/bucket/k", []byte("x"), "X-Amz-Content-Sha256", sha256Hex("y")), 400, "XAmzContentSHA256Mismatch")
	check("another digest", errs.BadDigest)
	chunked := []string{"X-Amz-Content-Sha256", sigv4.StreamingUnsignedPayloadTrailer, "X-Amz-Decoded-Content-Length", "10"}
	for what, raw := range map[string]string{
		"a body that ends early":   h.head("PUT", "/bucket/k", 10) + "abc",
		"a frame that ends early":  h.head("PUT", "/bucket/k", 100, chunked...) + "a\r\nabc",
		"a header that ends early": h.head("PUT", "/bucket/k", 100, chunked...) + "a",
		"no body":                  h.head("PUT", "/bucket/k", 10),
	} {
		c := h.dial()
		io.WriteString(c, raw)
		c.Close()
		check(what, errs.IncompleteBody)
	}
}

// watching tells what PutObject answered.
type watching struct {
	Backend
	errs chan error
}

func (w *watching) PutObject(ctx context.Context, a objects.Account, in *objects.PutInput) (*objects.PutOutput, error) {
	out, err := w.Backend.PutObject(ctx, a, in)
	w.errs <- err
	return out, err
}

func FuzzHeaders(f *testing.F) {
	f.Add("bytes=0-5", "/bucket/key?versionId=null", `"a", W/"b"`, "AAAA-3")
	f.Fuzz(func(t *testing.T, rng, source, etags, sum string) {
		if r := parseRange(rng); r != nil && (r.First < 0 || r.Last < -1 || r.Last >= 0 && !r.Suffix && r.Last < r.First) {
			t.Fatalf("%q: %+v", rng, r)
		}
		if s, err := parseCopySource(source); err == nil && (s.bucket == "" || s.key == "" || len(s.key) > 1024 || !validBucketName(s.bucket)) {
			t.Fatalf("%q: %+v", source, s)
		}
		for _, e := range etagList([]string{etags}) {
			if e == "" || strings.Contains(e, ",") {
				t.Fatalf("%q: %q", etags, e)
			}
		}
		if c, ok := parseChecksum(1, sum, true); ok && len(c.Value) != 4 {
			t.Fatalf("%q: %v", sum, c)
		}
		if after, err := decodeToken(sum); err == nil && encodeToken(after) != sum {
			// base64 has several ways to write the last bits
			if again, err := decodeToken(encodeToken(after)); err != nil || again != after {
				t.Fatalf("%q: %q", sum, after)
			}
		}
	})
}
