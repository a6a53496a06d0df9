package s3api

import (
	"strings"
	"testing"
)

// Headers that are wrong in themselves get S3's own error, right ones are refused by name.
func TestEncryptionHeaders(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	const (
		sse, kmsKey       = "X-Amz-Server-Side-Encryption", "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"
		algorithm         = "X-Amz-Server-Side-Encryption-Customer-Algorithm"
		key, sum          = "X-Amz-Server-Side-Encryption-Customer-Key", "X-Amz-Server-Side-Encryption-Customer-Key-Md5"
		keyValue, keySum  = "pO3upElrwuEXSoFwCfnZPdSsmt/xWeFa0N9KgDijwVs=", "DWygnHRtgiJ77HCm+1rvHw=="
		source            = "X-Amz-Copy-Source-Server-Side-Encryption-Customer-"
		invalid, notThere = "InvalidArgument", "NotImplemented"
	)
	for _, c := range []struct {
		status   int
		code     string
		argument string
		headers  []string
	}{
		{501, notThere, "", []string{sse, "AES256"}},
		{501, notThere, "", []string{sse, "aws:kms"}},
		{501, notThere, "", []string{sse, "aws:kms:dsse", kmsKey, "k"}},
		{501, notThere, "", []string{sse, "aws:kms", kmsKey, "k"}},
		{501, notThere, "", []string{algorithm, "AES256", key, keyValue, sum, keySum}},
		{501, notThere, "", []string{sse + "-Bucket-Key-Enabled", "true"}},
		{501, notThere, "", []string{source + "Algorithm", "AES256", source + "Key", keyValue, source + "Key-Md5", keySum}},
		{400, invalid, sse, []string{sse, "aes:kms"}},
		{400, invalid, sse, []string{sse, ""}},
		{400, invalid, sse, []string{sse, "AES256", algorithm, "AES256", key, keyValue, sum, keySum}},
		{400, invalid, sse, []string{sse, "aws:kms", kmsKey, "k", algorithm, "AES256", key, keyValue, sum, keySum}},
		{400, invalid, kmsKey, []string{sse, "AES256", kmsKey, "k"}},
		{400, invalid, kmsKey, []string{kmsKey, "k"}},
		{400, invalid, sse + "-Context", []string{sse + "-Context", "e30="}},
		{400, invalid, algorithm, []string{key, keyValue, sum, keySum}},
		{400, "InvalidEncryptionAlgorithmError", algorithm, []string{algorithm, "AES128", key, keyValue, sum, keySum}},
		{400, invalid, key, []string{algorithm, "AES256", sum, keySum}},
		{400, invalid, key, []string{algorithm, "AES256", key, "c2hvcnQ=", sum, keySum}},
		{400, invalid, sum, []string{algorithm, "AES256", key, keyValue}},
		{400, invalid, sum, []string{algorithm, "AES256", key, keyValue, sum, "AAAAAAAAAAAAAAAAAAAAAA=="}},
		{400, invalid, source + "Algorithm", []string{source + "Key", keyValue}},
	} {
		a := h.want(h.do("PUT", "/bucket/k", []byte("x"), c.headers...), c.status, c.code)
		if c.argument != "" && a.element("ArgumentName") != strings.ToLower(c.argument) {
			t.Errorf("%v: %s", c.headers, a.body)
		}
		if c.argument == key && a.element("ArgumentValue") != "" {
			t.Errorf("a secret in the answer: %s", a.body)
		}
	}
	h.want(h.do("GET", "/bucket/k", nil), 404, "NoSuchKey") // nothing was stored
	h.do("PUT", "/bucket/k", []byte("x"))
	h.want(h.do("GET", "/bucket/k", nil, sse, "AES256"), 400, "InvalidArgument")
	h.want(h.do("GET", "/bucket/k", nil, algorithm, "AES256", key, keyValue, sum, keySum), 501, "NotImplemented")
}
