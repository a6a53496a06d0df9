package sigv4

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// PresignedV2 is a URL presigned with Signature Version 2 (AWSAccessKeyId,
// Expires, Signature): the form that boto3 and aws-cli 1 still give for an
// endpoint of one's own unless told otherwise, and the only one of version 2
// that is taken. It signs the method, the path, Content-MD5, Content-Type, every
// x-amz-* header and the parameters that choose the operation; not the host and not the body.
type PresignedV2 struct {
	AccessKey string
	Expires   time.Time

	expires   string // as signed
	signature []byte // 20 bytes
}

// ParseV2 reads a request's claim. ok is false when it is none of this form; then see Parse.
func ParseV2(r *Request) (p PresignedV2, ok bool, err *Error) {
	if !strings.Contains(r.Query, "AWSAccessKeyId=") || strings.Contains(r.Query, "X-Amz-Algorithm=") || len(r.Header["Authorization"]) > 0 {
		return p, false, nil
	}
	refuse := func(message string) (PresignedV2, bool, *Error) {
		return p, true, &Error{Code: "AccessDenied", Message: message}
	}
	query, perr := url.ParseQuery(r.Query)
	if perr != nil {
		return p, true, &Error{Code: "InvalidURI"}
	}
	for _, name := range []string{"AWSAccessKeyId", "Expires", "Signature"} {
		if len(query[name]) != 1 || query.Get(name) == "" {
			return refuse("Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters")
		}
	}
	// Each stands for a header, of which the request has one: were there two, another could be signed than is taken.
	seen := map[string]bool{}
	for name, values := range query {
		lower := strings.ToLower(name)
		if !strings.HasPrefix(lower, "x-amz-") {
			continue
		}
		if seen[lower] || len(values) > 1 {
			return p, true, &Error{Code: "InvalidRequest", Message: "The query parameter " + clip(lower) + " is given more than once"}
		}
		seen[lower] = true
	}
	p.AccessKey, p.expires = query.Get("AWSAccessKeyId"), query.Get("Expires")
	if len(p.AccessKey) > accessKeyMax {
		return refuse("The access key is too long")
	}
	seconds, nerr := strconv.ParseInt(p.expires, 10, 64)
	if nerr != nil || seconds < 0 || seconds > 1<<40 {
		return refuse("Invalid date (should be seconds since epoch): " + clip(p.expires))
	}
	p.Expires = time.Unix(seconds, 0)
	p.signature, perr = base64.StdEncoding.DecodeString(query.Get("Signature"))
	if perr != nil || len(p.signature) != sha1.Size {
		return p, true, &Error{Code: "SignatureDoesNotMatch"}
	}
	return p, true, nil
}

// Check refuses an expired claim and one whose signature was not made with the
// secret. bucket is the one that the host names (virtual-host style), or "".
func (p *PresignedV2) Check(r *Request, bucket, secret string, now time.Time) *Error {
	if now.After(p.Expires) {
		return &Error{Code: "AccessDenied", Message: "Request has expired", Fields: []Field{
			{"Expires", p.Expires.UTC().Format(time.RFC3339)}, {"ServerTime", now.UTC().Format(time.RFC3339)}}}
	}
	text := p.stringToSign(r, bucket)
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(text))
	if !hmac.Equal(mac.Sum(nil), p.signature) {
		return &Error{Code: "SignatureDoesNotMatch", Fields: []Field{{"AWSAccessKeyId", p.AccessKey}, {"StringToSign", text}}}
	}
	return nil
}

func (p *PresignedV2) stringToSign(r *Request, bucket string) string {
	var b strings.Builder
	line := func(s string) { b.WriteString(s); b.WriteByte('\n') }
	line(r.Method)
	line(strings.TrimSpace(r.Header.Get("Content-Md5")))
	line(strings.TrimSpace(r.Header.Get("Content-Type")))
	line(p.expires)
	query, _ := url.ParseQuery(r.Query) // checked by ParseV2
	// x-amz-* may stand in the URL in place of the header.
	amz := map[string]string{}
	for name, values := range query {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") {
			amz[lower] = values[0] // the only one
		}
	}
	for name, values := range r.Header {
		if strings.HasPrefix(name, "X-Amz-") {
			trimmed := make([]string, len(values))
			for i, v := range values {
				trimmed[i] = strings.TrimSpace(v)
			}
			amz[strings.ToLower(name)] = strings.Join(trimmed, ",")
		}
	}
	names := make([]string, 0, len(amz))
	for name := range amz {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		line(name + ":" + amz[name])
	}
	if bucket != "" {
		b.WriteString("/" + bucket)
	}
	b.WriteString(r.Path)
	separator := byte('?')
	for _, pair := range subResources(r.Query) {
		b.WriteByte(separator)
		b.WriteString(pair)
		separator = '&'
	}
	return b.String()
}

// subResources are the parameters that version 2 signs, decoded, in order of
// their names. Names are judged decoded, as the request will be understood: else
// version%49d would choose a version without being signed.
func subResources(query string) []string {
	var pairs []string
	for _, part := range strings.Split(query, "&") {
		name, value, hasValue := strings.Cut(part, "=")
		name = string(appendDecoded(nil, name, true))
		if !signedByV2(name) {
			continue
		}
		if hasValue {
			name += "=" + string(appendDecoded(nil, value, true))
		}
		pairs = append(pairs, name)
	}
	slices.SortFunc(pairs, func(a, b string) int {
		a, _, _ = strings.Cut(a, "=")
		b, _, _ = strings.Cut(b, "=")
		return strings.Compare(a, b)
	})
	return pairs
}

// signedByV2 tells the parameters that choose or change the operation.
func signedByV2(name string) bool {
	switch name {
	case "accelerate", "acl", "analytics", "cors", "defaultObjectAcl", "delete", "encryption", "inventory", "legal-hold", "lifecycle", "location",
		"logging", "metrics", "notification", "object-lock", "ownershipControls", "partNumber", "policy", "policyStatus", "publicAccessBlock",
		"replication", "requestPayment", "restore", "retention", "select", "select-type", "storageClass", "tagging", "torrent", "uploadId", "uploads",
		"versionId", "versioning", "versions", "website",
		"response-cache-control", "response-content-disposition", "response-content-encoding", "response-content-language", "response-content-type", "response-expires":
		return true
	}
	return false
}
