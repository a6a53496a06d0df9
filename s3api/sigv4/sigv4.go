// Package sigv4 checks AWS Signature Version 4 as S3 uses it: in the
// Authorization header, in a presigned query, and chunk by chunk in aws-chunked bodies.
//
// A check has two steps, so that the caller looks up the account between them:
// Parse reads what the client claims, without any secret, and Verifier.Check
// proves it. The canonical request is built from the path, query and headers as
// they came over the wire: keys are opaque bytes, nothing is cleaned.
package sigv4

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Algorithm is the one that is accepted.
const Algorithm = "AWS4-HMAC-SHA256"

// Values of x-amz-content-sha256 other than a hash.
const (
	UnsignedPayload                 = "UNSIGNED-PAYLOAD"
	StreamingSignedPayload          = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	StreamingSignedPayloadTrailer   = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	StreamingUnsignedPayloadTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// Limits on what a client may send.
const (
	SkewMax          = 15 * time.Minute   // a request's clock against ours
	ExpiresMax       = 7 * 24 * time.Hour // of a presigned URL
	signedHeadersMax = 4096               // bytes of the list of signed headers
	accessKeyMax     = 128                // bytes
)

const timeFormat = "20060102T150405Z"

// Payload says how the body is signed.
type Payload uint8

// The kinds of payload.
const (
	PayloadHash            Payload = iota // x-amz-content-sha256 is the SHA-256 of the body
	PayloadUnsigned                       // UNSIGNED-PAYLOAD
	PayloadSigned                         // aws-chunked, every chunk signed
	PayloadSignedTrailer                  // aws-chunked, every chunk and the trailer signed
	PayloadUnsignedTrailer                // aws-chunked with a trailer, nothing signed
)

// Chunked reports whether the body is aws-chunked.
func (p Payload) Chunked() bool { return p >= PayloadSigned }

// Trailer reports whether the body ends with trailing headers.
func (p Payload) Trailer() bool { return p == PayloadSignedTrailer || p == PayloadUnsignedTrailer }

// Request is what is signed. Its fields are those of the request as it came.
type Request struct {
	Method        string
	Path          string // undecoded, from the request line; starts with '/'
	Query         string // undecoded, without '?'
	Header        http.Header
	Host          string
	ContentLength int64 // -1 is unknown
}

// Auth is what a request claims about itself. The strings alias the request's headers and query.
type Auth struct {
	AccessKey     string
	Scope         string // date/region/service/aws4_request
	Date          string // of the scope, yyyymmdd
	Region        string
	Service       string
	SignedHeaders string // lower case, separated by ';'
	Signature     string
	Timestamp     string // as signed: yyyymmddThhmmssZ
	Time          time.Time
	Presigned     bool
	Expires       time.Duration // presigned only
	ContentSHA256 string        // as signed
	Payload       Payload
}

// Error is a refusal. Code is S3's name for it.
type Error struct {
	Code    string
	Message string // "" is the code's own
	Fields  []Field
}

// Field is an extra element of the error's XML.
type Field struct{ Name, Value string }

func (e *Error) Error() string {
	if e.Message == "" {
		return e.Code
	}
	return e.Code + ": " + e.Message
}

func malformed(message string) *Error {
	return &Error{Code: "AuthorizationHeaderMalformed", Message: "The authorization header is malformed; " + message}
}

func badQuery(message string) *Error {
	return &Error{Code: "AuthorizationQueryParametersError", Message: message}
}

// Parse reads a request's claim. ok is false when it claims nothing (an
// anonymous request). Only the form is checked; see CheckTime and Verifier.Check.
func Parse(r *Request) (a Auth, ok bool, err *Error) {
	header := r.Header["Authorization"]
	if len(header) > 1 {
		return a, true, malformed("there is more than one.")
	}
	if len(header) == 1 && header[0] != "" {
		if strings.Contains(r.Query, "X-Amz-Algorithm=") {
			return a, true, &Error{Code: "InvalidArgument", Message: "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or the Authorization header should be specified",
				Fields: []Field{{"ArgumentName", "Authorization"}}}
		}
		return a, true, a.fromHeader(r, header[0])
	}
	if !strings.Contains(r.Query, "X-Amz-") && !strings.Contains(r.Query, "AWSAccessKeyId=") {
		return a, false, nil
	}
	return a.fromQuery(r)
}

const sigV2Message = "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."

// fromHeader reads AWS4-HMAC-SHA256 Credential=..., SignedHeaders=..., Signature=...
func (a *Auth) fromHeader(r *Request, h string) *Error {
	algorithm, rest, _ := strings.Cut(h, " ")
	switch {
	case algorithm == Algorithm:
	case algorithm == "AWS4-ECDSA-P256-SHA256":
		return &Error{Code: "NotImplemented", Message: "Signature Version 4A (AWS4-ECDSA-P256-SHA256) is not implemented. Please use AWS4-HMAC-SHA256."}
	case strings.HasPrefix(algorithm, "AWS"):
		return &Error{Code: "InvalidRequest", Message: sigV2Message}
	default:
		return &Error{Code: "InvalidArgument", Message: "Unsupported Authorization Type", Fields: []Field{{"ArgumentName", "Authorization"}}}
	}
	if err := a.headerFields(rest); err != nil {
		return err
	}
	if err := a.headerTime(r); err != nil {
		return err
	}
	if a.Date != a.Timestamp[:8] {
		return malformed("Invalid credential date \"" + clip(a.Date) + "\". This date is not the same as X-Amz-Date: \"" + a.Timestamp[:8] + "\".")
	}
	sum, sent := first(r.Header, "X-Amz-Content-Sha256")
	if !sent {
		return &Error{Code: "InvalidRequest", Message: "Missing required header for this request: x-amz-content-sha256"}
	}
	return a.payload(sum)
}

func (a *Auth) headerFields(rest string) *Error {
	for rest != "" {
		var field string
		field, rest, _ = strings.Cut(rest, ",")
		name, value, ok := strings.Cut(strings.Trim(field, " \t"), "=")
		if !ok {
			return malformed("expecting name=value pairs separated by commas.")
		}
		var dst *string
		switch name {
		case "Credential":
			if a.Scope != "" {
				return malformed("Credential stands twice.")
			}
			if problem := a.credential(value); problem != "" {
				return malformed(problem)
			}
			continue
		case "SignedHeaders":
			dst = &a.SignedHeaders
		case "Signature":
			dst = &a.Signature
		default:
			return malformed("unknown field \"" + clip(name) + "\".")
		}
		if *dst != "" {
			return malformed(name + " stands twice.")
		}
		*dst = value
	}
	switch {
	case a.Scope == "":
		return malformed("missing Credential.")
	case a.SignedHeaders == "":
		return malformed("missing SignedHeaders.")
	case a.Signature == "":
		return malformed("missing Signature.")
	}
	if problem := a.checkFields(); problem != "" {
		return malformed(problem)
	}
	return nil
}

// checkFields looks at signature and signed headers; it answers what is wrong, or "".
func (a *Auth) checkFields() string {
	if len(a.Signature) != 64 || !isLowerHex(a.Signature) {
		return "the signature is not 64 lower-case hex digits."
	}
	if len(a.SignedHeaders) > signedHeadersMax {
		return "too many signed headers."
	}
	for i := 0; i < len(a.SignedHeaders); i++ {
		if c := a.SignedHeaders[i]; c <= ' ' || c >= 0x7f || 'A' <= c && c <= 'Z' || c == ':' || c == ',' {
			return "SignedHeaders must be lower-case names separated by semicolons."
		}
	}
	if !listed(a.SignedHeaders, "host") && !listed(a.SignedHeaders, ":authority") {
		return "'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization."
	}
	return ""
}

// credential reads key/date/region/service/aws4_request; the key may contain slashes.
func (a *Auth) credential(c string) (problem string) {
	const want = "the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\"."
	end := len(c)
	var parts [4]string
	for i := 3; i >= 0; i-- {
		slash := strings.LastIndexByte(c[:end], '/')
		if slash < 0 {
			return want
		}
		parts[i], end = c[slash+1:end], slash
	}
	if end == 0 || end > accessKeyMax || parts[3] != "aws4_request" || len(parts[0]) != 8 || !isDigits(parts[0]) || parts[1] == "" {
		return want
	}
	a.AccessKey, a.Scope = c[:end], c[end+1:]
	a.Date, a.Region, a.Service = parts[0], parts[1], parts[2]
	return ""
}

// headerTime takes the time from x-amz-date as version 4 has it; else from Date, which botocore makes of the time that it
// signs if it is given one; else from x-amz-date as HTTP has it. Whichever it is, it is part of what is signed.
func (a *Auth) headerTime(r *Request) *Error {
	amz, _ := first(r.Header, "X-Amz-Date")
	date, _ := first(r.Header, "Date")
	for _, stamp := range [...]string{amz, date} {
		if t, ok := parseTime(stamp); ok {
			a.Timestamp, a.Time = stamp, t
			return nil
		}
	}
	for _, stamp := range [...]string{date, amz} {
		t, err := http.ParseTime(stamp)
		if err != nil {
			t, err = time.Parse(time.RFC1123Z, stamp) // Python writes GMT as -0000
		}
		if y := t.UTC().Year(); err == nil && y >= 1 && y <= 9999 {
			a.Time = t.UTC()
			a.Timestamp = a.Time.Format(timeFormat)
			return nil
		}
	}
	return &Error{Code: "AccessDenied", Message: "AWS authentication requires a valid Date or x-amz-date header"}
}

func (a *Auth) fromQuery(r *Request) (Auth, bool, *Error) {
	q := presigned{}
	if err := q.read(r.Query); err != nil {
		return *a, true, err
	}
	if q.v2 && q.algorithm == "" {
		return *a, true, &Error{Code: "InvalidRequest", Message: sigV2Message}
	}
	if q == (presigned{}) {
		return *a, false, nil
	}
	switch {
	case q.algorithm == "AWS4-ECDSA-P256-SHA256":
		return *a, true, &Error{Code: "NotImplemented", Message: "Signature Version 4A (AWS4-ECDSA-P256-SHA256) is not implemented. Please use AWS4-HMAC-SHA256."}
	case q.algorithm == "" || q.credential == "" || q.signature == "" || q.date == "" || q.signedHeaders == "" || q.expires == "":
		return *a, true, badQuery("Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, X-Amz-Date, X-Amz-SignedHeaders, and X-Amz-Expires parameters.")
	case q.algorithm != Algorithm:
		return *a, true, badQuery("X-Amz-Algorithm only supports \"AWS4-HMAC-SHA256\"")
	}
	if a.credential(q.credential) != "" {
		return *a, true, badQuery("Error parsing the X-Amz-Credential parameter; the Credential is mal-formed; expecting \"<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request\".")
	}
	a.Presigned, a.SignedHeaders, a.Signature = true, q.signedHeaders, q.signature
	if problem := a.checkFields(); problem != "" {
		return *a, true, badQuery(problem)
	}
	t, ok := parseTime(q.date)
	if !ok {
		return *a, true, badQuery("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
	}
	a.Timestamp, a.Time = q.date, t
	if a.Date != a.Timestamp[:8] {
		return *a, true, badQuery("Invalid credential date \"" + clip(a.Date) + "\". This date is not the same as X-Amz-Date: \"" + a.Timestamp[:8] + "\".")
	}
	seconds, err := strconv.ParseInt(q.expires, 10, 64)
	switch { // out of its range ParseInt answers the nearest number there is
	case seconds < 0: // over before it began
		return *a, true, &Error{Code: "AccessDenied", Message: "Request has expired", Fields: []Field{{"X-Amz-Expires", clip(q.expires)}}}
	case seconds > int64(ExpiresMax/time.Second):
		return *a, true, badQuery("X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than 604800 seconds")
	case err != nil:
		return *a, true, badQuery("X-Amz-Expires should be a number")
	}
	a.Expires = time.Duration(seconds) * time.Second
	if q.sha == "" {
		q.sha, _ = first(r.Header, "X-Amz-Content-Sha256")
	}
	if q.sha == "" {
		q.sha = UnsignedPayload
	}
	return *a, true, a.payload(q.sha)
}

// presigned are the parameters of a presigned URL, decoded.
type presigned struct {
	algorithm, credential, date, expires, signedHeaders, signature, sha string
	v2                                                                  bool
}

func (q *presigned) read(query string) *Error {
	for rest := query; rest != ""; {
		var pair string
		pair, rest, _ = strings.Cut(rest, "&")
		name, value, _ := strings.Cut(pair, "=")
		var dst *string
		switch name {
		case "X-Amz-Algorithm":
			dst = &q.algorithm
		case "X-Amz-Credential":
			dst = &q.credential
		case "X-Amz-Date":
			dst = &q.date
		case "X-Amz-Expires":
			dst = &q.expires
		case "X-Amz-SignedHeaders":
			dst = &q.signedHeaders
		case "X-Amz-Signature":
			dst = &q.signature
		case "X-Amz-Content-Sha256", "X-Amz-Content-SHA256":
			dst = &q.sha
		case "AWSAccessKeyId":
			q.v2 = true
			continue
		default:
			continue
		}
		if *dst != "" {
			return badQuery(name + " stands twice")
		}
		if strings.IndexByte(value, '%') >= 0 || strings.IndexByte(value, '+') >= 0 {
			value = string(appendDecoded(nil, value, true))
		}
		*dst = value
	}
	return nil
}

// payload interprets x-amz-content-sha256.
func (a *Auth) payload(sum string) *Error {
	a.ContentSHA256 = sum
	switch sum {
	case UnsignedPayload:
		a.Payload = PayloadUnsigned
	case StreamingSignedPayload:
		a.Payload = PayloadSigned
	case StreamingSignedPayloadTrailer:
		a.Payload = PayloadSignedTrailer
	case StreamingUnsignedPayloadTrailer:
		a.Payload = PayloadUnsignedTrailer
	default:
		a.Payload = PayloadHash
		if strings.HasPrefix(sum, "STREAMING-AWS4-ECDSA") {
			return &Error{Code: "NotImplemented", Message: "Signature Version 4A (" + clip(sum) + ") is not implemented."}
		}
		if len(sum) != 64 || !isHex(sum) {
			return &Error{Code: "InvalidArgument", Message: "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
				Fields: []Field{{"ArgumentName", "x-amz-content-sha256"}, {"ArgumentValue", clip(sum)}}}
		}
	}
	return nil
}

// CheckTime refuses a request whose clock is off, or a presigned one that is expired or not yet valid.
func (a *Auth) CheckTime(now time.Time) *Error {
	if !a.Presigned {
		if d := now.Sub(a.Time); d > SkewMax || d < -SkewMax {
			return &Error{Code: "RequestTimeTooSkewed", Fields: []Field{
				{"RequestTime", a.Timestamp}, {"ServerTime", now.UTC().Format(time.RFC3339)},
				{"MaxAllowedSkewMilliseconds", strconv.FormatInt(SkewMax.Milliseconds(), 10)},
			}}
		}
		return nil
	}
	if now.Before(a.Time.Add(-SkewMax)) {
		return &Error{Code: "AccessDenied", Message: "Request is not valid yet"}
	}
	if end := a.Time.Add(a.Expires); now.After(end) {
		return &Error{Code: "AccessDenied", Message: "Request has expired", Fields: []Field{
			{"X-Amz-Expires", strconv.FormatInt(int64(a.Expires/time.Second), 10)},
			{"Expires", end.UTC().Format(time.RFC3339)}, {"ServerTime", now.UTC().Format(time.RFC3339)},
		}}
	}
	return nil
}

// CheckScope refuses a signature made for another region or service.
func (a *Auth) CheckScope(region string) *Error {
	problem := func(what string, fields ...Field) *Error {
		if a.Presigned {
			return &Error{Code: "AuthorizationQueryParametersError", Message: "Error parsing the X-Amz-Credential parameter; " + what, Fields: fields}
		}
		return &Error{Code: "AuthorizationHeaderMalformed", Message: "The authorization header is malformed; " + what, Fields: fields}
	}
	if a.Service != "s3" {
		return problem("incorrect service \"" + clip(a.Service) + "\". This endpoint belongs to \"s3\".")
	}
	if a.Region != region {
		return problem("the region '"+clip(a.Region)+"' is wrong; expecting '"+region+"'", Field{"Region", region})
	}
	return nil
}

// parseTime reads yyyymmddThhmmssZ without the cost of time.Parse.
func parseTime(s string) (t time.Time, ok bool) {
	if len(s) != 16 || s[8] != 'T' || s[15] != 'Z' || !isDigits(s[:8]) || !isDigits(s[9:15]) {
		return t, false
	}
	n := func(i, j int) (v int) {
		for ; i < j; i++ {
			v = v*10 + int(s[i]-'0')
		}
		return v
	}
	t = time.Date(n(0, 4), time.Month(n(4, 6)), n(6, 8), n(9, 11), n(11, 13), n(13, 15), 0, time.UTC)
	// time.Date normalises 31 June and 25 o'clock: such a stamp is refused.
	return t, t.Day() == n(6, 8) && t.Month() == time.Month(n(4, 6)) && t.Hour() == n(9, 11) && t.Minute() == n(11, 13) && t.Second() == n(13, 15)
}

func first(h http.Header, canonical string) (string, bool) {
	if v := h[canonical]; len(v) > 0 {
		return v[0], true
	}
	return "", false
}

// clip bounds what is echoed of a stranger's bytes.
func clip(s string) string {
	if len(s) > 100 {
		return s[:100]
	}
	return s
}

func isDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func isLowerHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}

// listed reports whether name (any case) is in a list separated by ';'.
func listed(list, name string) bool {
	for list != "" {
		i := strings.IndexByte(list, ';')
		if i < 0 {
			i = len(list)
		}
		if i == len(name) && equalFold(list[:i], name) {
			return true
		}
		if i == len(list) {
			break
		}
		list = list[i+1:]
	}
	return false
}

// equalFold compares lower (all lower case) with s of the same length, ASCII only.
func equalFold(lower, s string) bool {
	for i := 0; i < len(lower); i++ {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if lower[i] != c {
			return false
		}
	}
	return true
}
