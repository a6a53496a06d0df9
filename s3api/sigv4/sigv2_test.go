package sigv4

import (
	"net/http"
	"net/url"
	"testing"
	"time"
)

// The URLs were made by botocore 1.43 (generate_presigned_url) with the keys
// AKIDEXAMPLE and wJalrXUtnFEMI, at 1795224307 minus an hour.
func v2Request(method, path, query string) *Request {
	return &Request{Method: method, Path: path, Query: query, Header: http.Header{}, Host: "127.0.0.1:9000"}
}

const (
	v2Secret = "wJalrXUtnFEMI"
	v2GET    = "AWSAccessKeyId=AKIDEXAMPLE&Signature=GEqJJ5KxptnHhkJbMhHi%2Bg6glxY%3D&Expires=1795224307"
	v2PUT    = "AWSAccessKeyId=AKIDEXAMPLE&Signature=PAHVTgAltqrCeAg%2FryrvBVkx3vo%3D&content-type=text%2Fx&x-amz-meta-a=1&Expires=1795224307"
	v2Over   = "response-content-type=text%2Fx%20y&response-content-disposition=attachment%3B%20filename%3D%22a%2Bb.txt%22&versionId=7&AWSAccessKeyId=AKIDEXAMPLE&Signature=7KEsWp64u7CVw4RazfrRQF2qgKg%3D&Expires=1795224307"
	v2Part   = "uploadId=abc&partNumber=3&AWSAccessKeyId=AKIDEXAMPLE&Signature=asYYYh3LIS8TJ6WbYGFF0MgUBww%3D&Expires=1795224307"
	v2Bucket = "AWSAccessKeyId=AKIDEXAMPLE&Signature=cgv0XlWo%2Bz10AqlC5Os2aNolpxQ%3D&Expires=1795224307"
)

func v2Now() time.Time { return time.Unix(1795224307-3600, 0) }

func TestV2FromBotocore(t *testing.T) {
	for name, test := range map[string]struct {
		r      *Request
		bucket string
	}{
		"get":          {v2Request("GET", "/b/k%20%C3%BC%2Bx", v2GET), ""},
		"put":          {v2Request("PUT", "/b/k", v2PUT), ""},
		"overrides":    {v2Request("GET", "/b/k", v2Over), ""},
		"part":         {v2Request("PUT", "/b/k", v2Part), ""},
		"virtual host": {v2Request("GET", "/k", v2Bucket), "b"},
	} {
		if name == "put" {
			test.r.Header.Set("Content-Type", "text/x")
			test.r.Header.Set("X-Amz-Meta-A", "1")
		}
		p, ok, err := ParseV2(test.r)
		if err != nil || !ok || p.AccessKey != "AKIDEXAMPLE" {
			t.Errorf("%s: %+v %v %v", name, p, ok, err)
			continue
		}
		if err := p.Check(test.r, test.bucket, v2Secret, v2Now()); err != nil {
			t.Errorf("%s: %v %v", name, err, err.Fields)
		}
		if err := p.Check(test.r, test.bucket, "other", v2Now()); err == nil || err.Code != "SignatureDoesNotMatch" {
			t.Errorf("%s with another secret: %v", name, err)
		}
		if err := p.Check(test.r, test.bucket, v2Secret, p.Expires.Add(time.Second)); err == nil || err.Code != "AccessDenied" {
			t.Errorf("%s when expired: %v", name, err)
		}
		for what, change := range map[string]func(*Request){
			"method":     func(r *Request) { r.Method = "DELETE" },
			"path":       func(r *Request) { r.Path += "x" },
			"parameter":  func(r *Request) { r.Query += "&versionId=3" },
			"operation":  func(r *Request) { r.Query += "&uploads" },
			"amz header": func(r *Request) { r.Header.Set("X-Amz-Copy-Source", "b/secret") },
			"amz query":  func(r *Request) { r.Query += "&x-amz-acl=public-read" },
			"type":       func(r *Request) { r.Header.Set("Content-Type", "text/y") },
			"md5":        func(r *Request) { r.Header.Set("Content-Md5", "x") },
		} {
			changed := *test.r
			changed.Header = test.r.Header.Clone()
			change(&changed)
			q, _, err := ParseV2(&changed)
			if err == nil {
				err = q.Check(&changed, test.bucket, v2Secret, v2Now())
			}
			if err == nil {
				t.Errorf("%s: another %s goes through", name, what)
			}
		}
	}
}

func TestV2Refused(t *testing.T) {
	for query, code := range map[string]string{
		"AWSAccessKeyId=a":           "AccessDenied",
		"AWSAccessKeyId=a&Expires=1": "AccessDenied",
		"AWSAccessKeyId=a&Expires=x&Signature=p4NRfe7T%2BEnN62p0VPcFrqHlo5Q%3D":           "AccessDenied",
		"AWSAccessKeyId=a&Expires=-1&Signature=p4NRfe7T%2BEnN62p0VPcFrqHlo5Q%3D":          "AccessDenied",
		"AWSAccessKeyId=a&Expires=9&Expires=9&Signature=p4NRfe7T%2BEnN62p0VPcFrqHlo5Q%3D": "AccessDenied",
		"AWSAccessKeyId=a&Expires=9&Signature=short":                                      "SignatureDoesNotMatch",
		"AWSAccessKeyId=a&Expires=9&Signature=%zz":                                        "InvalidURI",
		v2PUT + "&x-amz-meta-a=1":                                                         "InvalidRequest",
		v2PUT + "&X-Amz-Meta-A=1":                                                         "InvalidRequest",
		v2PUT + "&%58-amz-meta-%61=2":                                                     "InvalidRequest",
		v2GET + "&x-amz-acl=a&x-amz-acl=b":                                                "InvalidRequest",
		v2GET + "&x-amz-acl=a&X-AMZ-ACL=":                                                 "InvalidRequest",
		v2GET + "&x-amz-acl=a&x-amz-acl=a&":                                               "InvalidRequest",
	} {
		if _, ok, err := ParseV2(v2Request("GET", "/b/k", query)); !ok || err == nil || err.Code != code {
			t.Errorf("%s: %v %v, want %s", query, ok, err, code)
		}
	}
	for _, query := range []string{"", "list-type=2", "X-Amz-Algorithm=AWS4-HMAC-SHA256&AWSAccessKeyId=a"} {
		if _, ok, _ := ParseV2(v2Request("GET", "/b/k", query)); ok {
			t.Errorf("%q is taken for a claim", query)
		}
	}
	r := v2Request("GET", "/b/k", v2GET)
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 x")
	if _, ok, _ := ParseV2(r); ok {
		t.Error("two claims at once")
	}
}

func FuzzParseV2(f *testing.F) {
	f.Add(v2GET)
	f.Add("AWSAccessKeyId=&Expires=&Signature=")
	f.Fuzz(func(t *testing.T, query string) {
		r := v2Request("GET", "/b/k", query)
		p, ok, err := ParseV2(r)
		if !ok || err != nil || p.Check(r, "", v2Secret, v2Now()) != nil {
			return
		}
		good, _ := url.ParseQuery(v2GET)
		if got, _ := url.ParseQuery(query); got.Get("Signature") != good.Get("Signature") {
			t.Errorf("accepted %q", query)
		}
	})
}
