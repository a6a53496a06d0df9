package s3api

import (
	"crypto/md5"
	"encoding/base64"
	"strings"

	"cairn/s3api/s3err"
)

// Headers that ask for server-side encryption.
const (
	encryptionHeader        = "X-Amz-Server-Side-Encryption"
	customerKeyPrefix       = encryptionHeader + "-Customer-"
	sourceCustomerKeyPrefix = "X-Amz-Copy-Source-Server-Side-Encryption-Customer-"
)

// encryption answers a header that asks for server-side encryption: headers that are wrong in themselves, or beside each
// other, get S3's own error, which tells a client more than that cairn does not encrypt.
func (q *request) encryption(name string) error {
	bad := func(name, message string) error {
		value := clip(q.hdr(name))
		if strings.HasSuffix(name, "-Key") {
			value = "" // a secret
		}
		return s3err.New(s3err.InvalidArgument, message, s3err.Field{Name: "ArgumentName", Value: strings.ToLower(name)}, s3err.Field{Name: "ArgumentValue", Value: value})
	}
	has := func(name string) bool { _, ok := q.r.Header[name]; return ok }
	if method, asked := q.hdr(encryptionHeader), has(encryptionHeader); asked {
		switch {
		case q.op.name == "GetObject" || q.op.name == "HeadObject":
			return bad(encryptionHeader, "x-amz-server-side-encryption header is not supported for this operation.")
		case method != "AES256" && method != "aws:kms" && method != "aws:kms:dsse":
			return bad(encryptionHeader, "The encryption method specified is not supported")
		case has(customerKeyPrefix+"Algorithm") || has(customerKeyPrefix+"Key") || has(customerKeyPrefix+"Key-Md5"):
			return bad(encryptionHeader, "Server Side Encryption with Customer provided key is incompatible with the encryption method specified")
		}
	}
	for _, kms := range [...]string{encryptionHeader + "-Aws-Kms-Key-Id", encryptionHeader + "-Context"} {
		if has(kms) && !strings.HasPrefix(q.hdr(encryptionHeader), "aws:kms") {
			return bad(kms, "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms")
		}
	}
	for _, prefix := range [...]string{customerKeyPrefix, sourceCustomerKeyPrefix} {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		if !has(prefix + "Algorithm") {
			return bad(prefix+"Algorithm", "Requests specifying Server Side Encryption with Customer provided keys must provide a valid encryption algorithm.")
		}
		if q.hdr(prefix+"Algorithm") != "AES256" {
			return s3err.New(s3err.InvalidEncryptionAlgorithmError, "", s3err.Field{Name: "ArgumentName", Value: strings.ToLower(prefix + "Algorithm")},
				s3err.Field{Name: "ArgumentValue", Value: clip(q.hdr(prefix + "Algorithm"))})
		}
		if !has(prefix + "Key") {
			return bad(prefix+"Key", "Requests specifying Server Side Encryption with Customer provided keys must provide an appropriate secret key.")
		}
		key, err := base64.StdEncoding.DecodeString(q.hdr(prefix + "Key"))
		if err != nil || len(key) != 32 {
			return bad(prefix+"Key", "The secret key was invalid for the specified algorithm.")
		}
		if !has(prefix + "Key-Md5") {
			return bad(prefix+"Key-Md5", "Requests specifying Server Side Encryption with Customer provided keys must provide the client calculated MD5 of the secret key.")
		}
		if sum := md5.Sum(key); q.hdr(prefix+"Key-Md5") != base64.StdEncoding.EncodeToString(sum[:]) {
			return bad(prefix+"Key-Md5", "The calculated MD5 hash of the key did not match the hash that was provided.")
		}
	}
	return notImplementedHeader(name)
}
