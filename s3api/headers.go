package s3api

import (
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/storage"
)

// Limits on what is stored with an object.
const (
	userMetadataMax   = 2 << 10 // S3: bytes of names (without x-amz-meta-) and values
	contentHeadersMax = 8 << 10 // bytes of Content-Type, Cache-Control and the like together
)

func notImplementedHeader(name string) error {
	return s3err.New(s3err.NotImplemented, "The header "+strings.ToLower(clip(name))+" implies functionality that is not implemented.",
		s3err.Field{Name: "Header", Value: strings.ToLower(clip(name))})
}

// checkHeaders refuses every x-amz-* header that means something cairn does not do.
func (q *request) checkHeaders() error {
	for name, values := range q.r.Header {
		if len(name) < 6 || name[:6] != "X-Amz-" || len(values) == 0 {
			continue
		}
		if err := q.checkHeader(name, values[0]); err != nil {
			return err
		}
	}
	return nil
}

func (q *request) checkHeader(name, value string) error {
	switch name {
	case "X-Amz-Date", "X-Amz-Content-Sha256", "X-Amz-Decoded-Content-Length", "X-Amz-Trailer", "X-Amz-User-Agent", "X-Amz-Api-Version",
		"X-Amz-Security-Token", "X-Amz-Sdk-Checksum-Algorithm", "X-Amz-Checksum-Algorithm", "X-Amz-Checksum-Type", "X-Amz-Checksum-Mode",
		"X-Amz-Metadata-Directive", "X-Amz-Tagging-Directive",
		"X-Amz-Storage-Class", "X-Amz-Website-Redirect-Location", "X-Amz-Mp-Object-Size", "X-Amz-If-Match-Last-Modified-Time", "X-Amz-If-Match-Size",
		"X-Amz-Cf-Id", "X-Amz-Te":
		return nil // acted on where they belong, or without a meaning of their own
	case "X-Amz-Copy-Source", "X-Amz-Copy-Source-Range", "X-Amz-Copy-Source-If-Match", "X-Amz-Copy-Source-If-None-Match",
		"X-Amz-Copy-Source-If-Modified-Since", "X-Amz-Copy-Source-If-Unmodified-Since":
		if q.op.variant == "copy" { // in a presigned URL's query it would not have made a copy of the request
			return nil
		}
		return s3err.New(s3err.InvalidArgument, "The header "+strings.ToLower(name)+" has a meaning only for a copy, with x-amz-copy-source as a header.",
			s3err.Field{Name: "ArgumentName", Value: strings.ToLower(name)}, s3err.Field{Name: "ArgumentValue", Value: clip(value)})
	case "X-Amz-Request-Payer", "X-Amz-Mfa", "X-Amz-Bypass-Governance-Retention", "X-Amz-Optional-Object-Attributes":
		return nil // acted on where it belongs (bypass, listings), or without effect where requester pays and MFA delete can't be configured
	case "X-Amz-Expected-Bucket-Owner", "X-Amz-Source-Expected-Bucket-Owner":
		// Only a bucket's owner gets at it, so the expected owner must be who asks.
		if value != q.acct.ID {
			return s3err.New(s3err.AccessDenied, "")
		}
		return nil
	case "X-Amz-Acl":
		switch value {
		case "private", "bucket-owner-full-control", "bucket-owner-read", "":
			return nil // what every object is anyway
		case "public-read", "public-read-write", "authenticated-read":
			return q.refusePublic(notImplementedHeader(name))
		case "aws-exec-read", "log-delivery-write":
			return notImplementedHeader(name)
		}
		return s3err.New(s3err.InvalidArgument, "", s3err.Field{Name: "ArgumentName", Value: "x-amz-acl"}, s3err.Field{Name: "ArgumentValue", Value: clip(value)})
	case "X-Amz-Grant-Read", "X-Amz-Grant-Write", "X-Amz-Grant-Read-Acp", "X-Amz-Grant-Write-Acp", "X-Amz-Grant-Full-Control":
		if !strings.Contains(value, allUsers) && !strings.Contains(value, authenticatedUsers) {
			return notImplementedHeader(name)
		}
		return q.refusePublic(notImplementedHeader(name))
	case "X-Amz-Object-Ownership":
		if value == bucketOwnerEnforced {
			return nil // what every bucket is anyway
		}
		return notImplementedHeader(name)
	case "X-Amz-Bucket-Object-Lock-Enabled":
		switch {
		case strings.EqualFold(value, "false"), strings.EqualFold(value, "true") && q.op.name == "CreateBucket":
			return nil
		case strings.EqualFold(value, "true"):
			return notImplementedHeader(name)
		}
		return s3err.New(s3err.InvalidArgument, "", s3err.Field{Name: "ArgumentName", Value: strings.ToLower(name)}, s3err.Field{Name: "ArgumentValue", Value: clip(value)})
	case "X-Amz-Tagging", "X-Amz-Object-Lock-Mode", "X-Amz-Object-Lock-Retain-Until-Date", "X-Amz-Object-Lock-Legal-Hold":
		switch q.op.name { // those that make an object
		case "PutObject", "CopyObject", "CreateMultipartUpload", opPostObject:
			return nil
		}
		if value == "" {
			return nil
		}
		return notImplementedHeader(name)
	case minimumSizeHeader:
		if q.op.name == "PutBucketLifecycleConfiguration" {
			return nil
		}
		return notImplementedHeader(name)
	case skipValidationHeader:
		if q.op.name == "PutBucketNotificationConfiguration" {
			return nil
		}
		return notImplementedHeader(name)
	case "X-Amz-Object-Attributes", "X-Amz-Max-Parts", "X-Amz-Part-Number-Marker":
		if q.op.name == "GetObjectAttributes" {
			return nil
		}
		return notImplementedHeader(name)
	}
	if strings.HasPrefix(name, encryptionHeader) || strings.HasPrefix(name, sourceCustomerKeyPrefix) {
		return q.encryption(name)
	}
	if strings.HasPrefix(name, "X-Amz-Meta-") || strings.HasPrefix(name, "X-Amz-Checksum-") && checksumOfHeader(name) != metapb.ChecksumAlgorithm_CHECKSUM_NONE {
		return nil
	}
	return notImplementedHeader(name)
}

// plainAttributes are what the client wants kept with an object, without tags and lock: see attributes.
func (q *request) plainAttributes() (*metapb.Attributes, error) {
	a := &metapb.Attributes{}
	size := 0
	text := func(canonical string) string {
		s := strings.Join(q.r.Header[canonical], ",")
		size += len(utf8Header(s))
		return s
	}
	ct := headerKV("", text("Content-Type"))
	a.ContentType, a.RawContentType = ct.Value, ct.Raw
	for _, name := range [...]string{"Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language", "Expires"} {
		if _, ok := q.r.Header[name]; !ok {
			continue
		}
		v := text(name)
		if name == "Content-Encoding" {
			v = withoutChunked(v)
		}
		if v != "" {
			a.Headers = append(a.Headers, headerKV(name, v))
		}
	}
	if size > contentHeadersMax {
		return nil, s3err.New(s3err.MetadataTooLarge, "Your content headers exceed the maximum allowed size.",
			s3err.Field{Name: "Size", Value: itoa(int64(size))}, s3err.Field{Name: "MaxSizeAllowed", Value: itoa(contentHeadersMax)})
	}
	if err := q.redirect(a); err != nil {
		return nil, err
	}
	if err := q.userMetadata(a); err != nil {
		return nil, err
	}
	class, err := q.storageClass()
	a.StorageClass = class
	return a, err
}

func (q *request) redirect(a *metapb.Attributes) error {
	v := q.hdr("X-Amz-Website-Redirect-Location")
	if v == "" {
		return nil
	}
	if len(v) > userMetadataMax || !(v[0] == '/' || strings.HasPrefix(v, "http://") || strings.HasPrefix(v, "https://")) {
		return s3err.New(s3err.InvalidArgument, "The website redirect location must have a prefix of 'http://' or 'https://' or '/' and at most 2 KB.",
			s3err.Field{Name: "ArgumentName", Value: "x-amz-website-redirect-location"}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
	a.Headers = append(a.Headers, headerKV("x-amz-website-redirect-location", v))
	return nil
}

func (q *request) userMetadata(a *metapb.Attributes) error {
	const prefix = "X-Amz-Meta-"
	size := 0
	for name, values := range q.r.Header {
		if len(name) <= len(prefix) || name[:len(prefix)] != prefix {
			continue
		}
		kv := headerKV(strings.ToLower(name[len(prefix):]), strings.Join(values, ","))
		size += len(kv.Name) + len(kv.Value)
		a.User = append(a.User, kv)
	}
	if size > userMetadataMax {
		return s3err.New(s3err.MetadataTooLarge, "", s3err.Field{Name: "Size", Value: itoa(int64(size))}, s3err.Field{Name: "MaxSizeAllowed", Value: itoa(userMetadataMax)})
	}
	slices.SortFunc(a.User, func(x, y *metapb.KV) int { return strings.Compare(x.Name, y.Name) })
	return nil
}

// headerKV is a header as it is kept: what is not UTF-8 comes back as it was sent, whatever it means.
func headerKV(name, value string) *metapb.KV {
	kv := &metapb.KV{Name: name, Value: utf8Header(value)}
	if kv.Value != value {
		kv.Raw = []byte(value)
	}
	return kv
}

// sent is a kept header's value as the client sent it.
func sent(value string, raw []byte) string {
	if len(raw) > 0 {
		return string(raw)
	}
	return value
}

// utf8Header is a header value as text: bytes that are not UTF-8 are Latin-1,
// HTTP's old default (persisted strings must be UTF-8).
func utf8Header(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	b := make([]byte, 0, 2*len(s))
	for i := 0; i < len(s); i++ {
		b = utf8.AppendRune(b, rune(s[i]))
	}
	return string(b)
}

// withoutChunked drops aws-chunked, which is how the body came, not what it is.
func withoutChunked(v string) string {
	if !strings.Contains(v, "aws-chunked") {
		return v
	}
	var keep []string
	for _, e := range strings.Split(v, ",") {
		if e = strings.TrimSpace(e); e != "aws-chunked" && e != "" {
			keep = append(keep, e)
		}
	}
	return strings.Join(keep, ",")
}

// storageClass is the class asked for; "" is STANDARD.
func (q *request) storageClass() (string, error) {
	v, ok := q.r.Header["X-Amz-Storage-Class"]
	if !ok || len(v) == 0 {
		return "", nil
	}
	switch c := storage.StorageClass(v[0]); {
	case c == storage.Standard, c == storage.ReducedRedundancy: // there is none less safe: it is stored, and shown, as STANDARD
		return "", nil
	case storable(c):
		return v[0], nil
	case knownClass(c):
		return "", s3err.New(s3err.NotImplemented, "The storage class "+v[0]+" is not implemented.", s3err.Field{Name: "StorageClassRequested", Value: v[0]})
	}
	return "", s3err.New(s3err.InvalidStorageClass, "", s3err.Field{Name: "StorageClassRequested", Value: clip(v[0])})
}

// storable reports whether objects can be written to a class, beside STANDARD.
func storable(c storage.StorageClass) bool {
	switch c {
	case storage.StandardIA, storage.OnezoneIA, storage.IntelligentTiering, storage.GlacierIR, storage.Glacier, storage.DeepArchive:
		return true
	}
	return false
}

// knownClass reports whether S3 has such a class and cairn has not.
func knownClass(c storage.StorageClass) bool {
	switch c {
	case "OUTPOSTS", "SNOW", "EXPRESS_ONEZONE", "FSX_OPENZFS", "FSX_ONTAP",
		"AWS_BACKUP_WARM", "AWS_BACKUP_LOW_COST_WARM":
		return true
	}
	return false
}

// etagList reads If-Match and If-None-Match: a list of quoted ETags, or "*".
func etagList(values []string) []string {
	var out []string
	for _, v := range values {
		for _, e := range strings.Split(v, ",") {
			if e = unquote(strings.TrimPrefix(strings.TrimSpace(e), "W/")); e != "" {
				out = append(out, e)
			}
		}
	}
	return out
}

// unquote takes an ETag out of its quotes, if it has any.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// readConditions are the If-* of a read. A date that is none is ignored, as HTTP wants.
func (q *request) readConditions() objects.Conditions {
	h := q.r.Header
	c := objects.Conditions{IfMatch: etagList(h["If-Match"]), IfNoneMatch: etagList(h["If-None-Match"])}
	if v := q.hdr("If-Modified-Since"); v != "" {
		c.IfModifiedSince, _ = http.ParseTime(v)
	}
	if v := q.hdr("If-Unmodified-Since"); v != "" {
		c.IfUnmodifiedSince, _ = http.ParseTime(v)
	}
	return c
}

// writeConditions are the If-* of a write: those with ETags. Dates mean nothing there, so they are refused.
func (q *request) writeConditions() (objects.Conditions, error) {
	h := q.r.Header
	for _, name := range [...]string{"If-Modified-Since", "If-Unmodified-Since"} {
		if _, ok := h[name]; ok {
			return objects.Conditions{}, notImplementedHeader(name)
		}
	}
	return objects.Conditions{IfMatch: etagList(h["If-Match"]), IfNoneMatch: etagList(h["If-None-Match"])}, nil
}

// unconditional refuses the conditions of a write where S3 has none.
func (q *request) unconditional() error {
	for _, name := range [...]string{"If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		if _, ok := q.r.Header[name]; ok {
			return notImplementedHeader(name)
		}
	}
	return nil
}

// sourceConditions are the x-amz-copy-source-if-*.
func (q *request) sourceConditions() (c objects.Conditions, err error) {
	h := q.r.Header
	c.IfMatch, c.IfNoneMatch = etagList(h["X-Amz-Copy-Source-If-Match"]), etagList(h["X-Amz-Copy-Source-If-None-Match"])
	for name, dst := range map[string]*time.Time{"X-Amz-Copy-Source-If-Modified-Since": &c.IfModifiedSince, "X-Amz-Copy-Source-If-Unmodified-Since": &c.IfUnmodifiedSince} {
		v := q.hdr(name)
		if v == "" {
			continue
		}
		if *dst, err = parseDate(v); err != nil {
			return c, s3err.New(s3err.InvalidArgument, "The "+strings.ToLower(name)+" header is not a date.",
				s3err.Field{Name: "ArgumentName", Value: strings.ToLower(name)}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
		}
	}
	return c, nil
}

// parseDate reads HTTP's formats and ISO 8601.
func parseDate(v string) (time.Time, error) {
	t, err := http.ParseTime(v)
	if err != nil {
		t, err = time.Parse(time.RFC3339, v)
	}
	return t, err
}

// parseRange reads a Range header. nil is the whole object: there is none, it is
// not understood, or it names several ranges (S3 sends the whole object then).
func parseRange(v string) *objects.Range {
	spec, ok := strings.CutPrefix(v, "bytes=")
	if !ok {
		return nil
	}
	first, last, ok := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok {
		return nil
	}
	l, lok := offset(strings.TrimSpace(last))
	if first = strings.TrimSpace(first); first == "" {
		if !lok {
			return nil
		}
		return &objects.Range{Last: l, Suffix: true}
	}
	f, fok := offset(first)
	if !fok || !lok && strings.TrimSpace(last) != "" || lok && l < f {
		return nil
	}
	if !lok {
		l = -1
	}
	return &objects.Range{First: f, Last: l}
}

// offset reads digits; numbers that don't fit are as good as the largest.
func offset(s string) (n int64, ok bool) {
	const limit = 1<<62 - 1
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		if n = n*10 + int64(s[i]-'0'); n > limit/10 {
			n = limit / 10
		}
	}
	return n, len(s) > 0
}
