package s3api

import (
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/s3api/sigv4"
	"cairn/storage"
)

// paramsMax bounds the query parameters of a request.
const paramsMax = 100

// param is a query parameter, decoded.
type param struct{ name, value string }

// header is a response header; names are written as they are.
type header struct{ name, value string }

// request is one request on its way through the pipeline, parsed. It is reused: nothing may keep it.
type request struct {
	h *handler
	w http.ResponseWriter
	r *http.Request

	id      string
	started time.Time
	path    string // undecoded
	query   string // undecoded, without '?'
	op      *operation
	bucket  string
	key     storage.Key
	params  []param
	acct    objects.Account
	payload sigv4.Payload
	sha256  string // x-amz-content-sha256 as signed
	seed    sigv4.Seed
	body    *body

	resp     response
	headers  []header     // of the response
	values   []string     // backs the values of the response's header map
	out      s3xml.Writer // the response's XML
	in       []byte       // an XML body
	inBytes  int64        // counted in handler.xmlBytes
	bytesIn  int64
	bytesOut int64
	status   int
	armed    time.Time // when the write deadline was last moved
}

// Buffers larger than this are not kept for the next request.
const keepBytesMax = 512 << 10

func (q *request) begin(h *handler, w http.ResponseWriter, r *http.Request) {
	q.h, q.w, q.r = h, w, r
	q.id, q.started = h.requestID(), time.Now()
	q.op = h.routes.unknown
}

// end makes q ready for the next request.
func (q *request) end() {
	q.h.xmlBytes.Add(-q.inBytes)
	clear(q.params)
	clear(q.headers)
	clear(q.values)
	keep := request{params: q.params[:0], headers: q.headers[:0], values: q.values[:0]}
	if cap(q.out.B) <= keepBytesMax {
		keep.out.B = q.out.B[:0]
	}
	if cap(q.in) <= keepBytesMax {
		keep.in = q.in[:0]
	}
	*q = keep
}

// parse finds out what is asked: bucket, key, parameters and operation.
func (q *request) parse() error {
	target := q.r.RequestURI
	if target == "" || target[0] != '/' { // absolute form, or a request that did not come over the wire
		target = q.r.URL.EscapedPath()
		if q.r.URL.RawQuery != "" {
			target += "?" + q.r.URL.RawQuery
		}
	}
	q.path, q.query, _ = strings.Cut(target, "?")
	s := q.locate()
	sub, err := q.parseParams()
	if err != nil {
		return err
	}
	op := q.h.routes.find(q.r.Method, s, sub, q.variant(s, sub))
	if op == nil {
		if sub == "" || q.knownSub(sub, s) {
			return s3err.New(s3err.MethodNotAllowed, "", s3err.Field{Name: "Method", Value: q.r.Method}, s3err.Field{Name: "ResourceType", Value: s.String()})
		}
		return s3err.New(s3err.InvalidRequest, "The query parameter "+sub+" has no meaning for this resource.")
	}
	q.op = op
	return nil
}

// knownSub reports whether some method has the parameter on this scope.
func (q *request) knownSub(sub string, s scope) bool {
	for _, m := range []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete} {
		if q.h.routes.find(m, s, sub, "") != nil {
			return true
		}
	}
	return false
}

// locate splits host and path into bucket and key. The path is decoded once and
// then cut, so that /bucket%2Fkey is what its canonical form /bucket/key says.
func (q *request) locate() scope {
	path := unescape(q.path, false)
	if b := q.h.bucketOfHost(q.r.Host); b != "" {
		q.bucket, q.key = b, storage.Key(strings.TrimPrefix(path, "/"))
	} else {
		b, k, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
		q.bucket, q.key = b, storage.Key(k)
	}
	switch {
	case q.bucket == "" && q.key == "":
		return service
	case q.key == "":
		return bucket
	}
	return object
}

// bucketOfHost is the bucket that stands before a configured domain, or "".
func (h *handler) bucketOfHost(host string) string {
	if len(h.cfg.Domains) == 0 || host == "" || host[0] == '[' {
		return ""
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	best := ""
	for _, d := range h.cfg.Domains {
		if strings.EqualFold(host, d) {
			return "" // path style under one domain, even if another is a suffix of it
		}
		if n := len(host) - len(d) - 1; n > 0 && host[n] == '.' && strings.EqualFold(host[n+1:], d) && (best == "" || n < len(best)) {
			best = host[:n]
		}
	}
	return strings.ToLower(best)
}

// parseParams decodes the query and answers the parameter that selects the operation.
func (q *request) parseParams() (sub string, err error) {
	for rest := q.query; rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		if pair == "" {
			continue
		}
		if len(q.params) == paramsMax {
			return "", s3err.New(s3err.InvalidRequest, "Too many query parameters.")
		}
		name, value, _ := strings.Cut(pair, "=")
		p := param{unescape(name, true), unescape(value, true)}
		q.params = append(q.params, p)
		switch {
		case q.h.routes.subs[p.name]:
			if sub != "" && sub != p.name {
				return "", s3err.New(s3err.InvalidArgument, "Conflicting query string parameters: "+sub+", "+p.name,
					s3err.Field{Name: "ArgumentName", Value: "ResourceType"}, s3err.Field{Name: "ArgumentValue", Value: p.name})
			}
			sub = p.name
		case p.value == "" && !plainParam(p.name):
			// A parameter without a value is how S3 names parts of a resource: one that
			// is not known here may be anything but what the request would do without it.
			return "", s3err.New(s3err.NotImplemented, "The query parameter "+clip(p.name)+" implies functionality that is not implemented.",
				s3err.Field{Name: "ResourceType", Value: clip(p.name)})
		}
	}
	return sub, nil
}

// plainParam reports whether a parameter selects nothing, so that it may be empty.
func plainParam(name string) bool {
	switch name {
	case "list-type", "prefix", "delimiter", "marker", "max-keys", "encoding-type", "continuation-token", "start-after", "fetch-owner",
		"key-marker", "version-id-marker", "upload-id-marker", "max-uploads", "max-parts", "part-number-marker", "partNumber", "versionId",
		"max-buckets", "bucket-region", "max-directory-buckets", "id", "select-type", "x-id":
		return true
	}
	return strings.HasPrefix(name, "response-") || hasPrefixFold(name, "x-amz-")
}

// variant tells apart operations of the same method, scope and parameter.
func (q *request) variant(s scope, sub string) string {
	switch {
	case s == object && q.r.Method == http.MethodPut && (sub == "" || sub == "uploadId"):
		if _, ok := q.r.Header["X-Amz-Copy-Source"]; ok {
			return "copy"
		}
	case s == bucket && q.r.Method == http.MethodGet && sub == "":
		if v, _ := q.param("list-type"); v == "2" {
			return "2"
		}
	case s == bucket && q.r.Method == http.MethodGet:
		switch sub {
		case "analytics", "intelligent-tiering", "inventory", "metrics":
			if v, _ := q.param("id"); v != "" {
				return "id"
			}
		}
	case s == bucket && q.r.Method == http.MethodPost && sub == "":
		if q.bucket == "WriteGetObjectResponse" {
			return "lambda"
		}
		if strings.HasPrefix(q.r.Header.Get("Content-Type"), "multipart/form-data") {
			return "form"
		}
	case s == service && q.r.Method == http.MethodGet:
		if _, ok := q.param("max-directory-buckets"); ok {
			return "directory"
		}
	}
	return ""
}

// param is the first query parameter of a name.
func (q *request) param(name string) (string, bool) {
	for i := range q.params {
		if q.params[i].name == name {
			return q.params[i].value, true
		}
	}
	return "", false
}

// hdr is the first value of a request header, by canonical name.
func (q *request) hdr(canonical string) string {
	if v := q.r.Header[canonical]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// set adds a response header.
func (q *request) set(name, value string) { q.headers = append(q.headers, header{name, value}) }

// checkName validates bucket and key before a handler sees them.
func (q *request) checkName() error {
	if q.bucket != "" && !validBucketName(q.bucket) {
		return s3err.New(s3err.InvalidBucketName, "", s3err.Field{Name: "BucketName", Value: clip(q.bucket)})
	}
	if q.key == "" {
		return nil
	}
	return checkKey(string(q.key))
}

func checkKey(key string) error {
	if len(key) > storage.KeyBytesMax {
		return s3err.New(s3err.KeyTooLongError, "", s3err.Field{Name: "Size", Value: itoa(int64(len(key)))},
			s3err.Field{Name: "MaxSizeAllowed", Value: itoa(storage.KeyBytesMax)})
	}
	if !utf8.ValidString(key) {
		return s3err.New(s3err.InvalidURI, "The key is not valid UTF-8.")
	}
	return nil
}

// validBucketName is the rule for general purpose buckets.
func validBucketName(s string) bool {
	if len(s) < 3 || len(s) > 63 {
		return false
	}
	dots, digits := 0, true
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z':
			digits = false
		case '0' <= c && c <= '9':
		case c == '-' || c == '.':
			if i == 0 || i == len(s)-1 || c == '.' && (s[i-1] == '.' || s[i-1] == '-') || c == '-' && s[i-1] == '.' {
				return false
			}
			if c == '.' {
				dots++
			} else {
				digits = false
			}
		default:
			return false
		}
	}
	return !(digits && dots == 3) // formatted as an IP address
}

// reservedBucketName reports names that S3 keeps for itself: they can't be created.
func reservedBucketName(s string) bool {
	for _, p := range []string{"xn--", "sthree-", "amzn-s3-demo-"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	for _, p := range []string{"-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3"} {
		if strings.HasSuffix(s, p) {
			return true
		}
	}
	return false
}

// unescape percent-decodes s; a '%' that starts no escape stands for itself,
// exactly as the signature sees it (package sigv4).
func unescape(s string, plus bool) string {
	if strings.IndexByte(s, '%') < 0 && (!plus || strings.IndexByte(s, '+') < 0) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '%' && i+2 < len(s) && isHex(s[i+1]) && isHex(s[i+2]):
			c = unhex(s[i+1])<<4 | unhex(s[i+2])
			i += 2
		case c == '+' && plus:
			c = ' '
		}
		b = append(b, c)
	}
	return string(b)
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c >= 'a':
		return c - 'a' + 10
	}
	return c - 'A' + 10
}

func hasPrefixFold(s, lower string) bool {
	return len(s) >= len(lower) && strings.EqualFold(s[:len(lower)], lower)
}

// clip bounds what is echoed of a stranger's bytes.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200]
	}
	return s
}
