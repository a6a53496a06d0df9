package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash"
	"sort"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// keysMax bounds the signing keys remembered: each access key has one a day, up to eight with presigned URLs.
const keysMax = 4096

// Verifier proves signatures. It remembers signing keys, and is safe for concurrent use.
type Verifier struct {
	keys struct {
		sync.RWMutex
		m map[keyID]*signingKey
	}
	scratch sync.Pool // *scratch
}

// NewVerifier makes a Verifier.
func NewVerifier() *Verifier {
	v := &Verifier{}
	v.keys.m = make(map[keyID]*signingKey)
	v.scratch.New = func() any { return &scratch{buf: make([]byte, 0, 2048), sha: sha256.New()} }
	return v
}

type keyID struct{ access, date, region, service string }

// signingKey is the key derived for one access key, date, region and service.
type signingKey struct {
	secret string // it was derived from: a changed secret makes another key
	key    [sha256.Size]byte
	macs   sync.Pool // hash.Hash keyed with key: making one costs as much as using it
}

func newSigningKey(secret string, a *Auth) *signingKey {
	mac := func(key []byte, data string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(data))
		return h.Sum(nil)
	}
	k := &signingKey{secret: secret}
	copy(k.key[:], mac(mac(mac(mac([]byte("AWS4"+secret), a.Date), a.Region), a.Service), "aws4_request"))
	k.macs.New = func() any { return hmac.New(sha256.New, k.key[:]) }
	return k
}

// appendSignature appends the hex HMAC of data.
func (k *signingKey) appendSignature(b, data []byte) []byte {
	h := k.macs.Get().(hash.Hash)
	h.Reset()
	h.Write(data)
	var sum [sha256.Size]byte
	b = hex.AppendEncode(b, h.Sum(sum[:0]))
	k.macs.Put(h)
	return b
}

func (v *Verifier) signingKey(secret string, a *Auth) *signingKey {
	id := keyID{a.AccessKey, a.Date, a.Region, a.Service}
	v.keys.RLock()
	k := v.keys.m[id]
	v.keys.RUnlock()
	if k != nil && k.secret == secret {
		return k
	}
	k = newSigningKey(secret, a)
	id = keyID{strings.Clone(id.access), strings.Clone(id.date), strings.Clone(id.region), strings.Clone(id.service)}
	v.keys.Lock()
	defer v.keys.Unlock()
	if len(v.keys.m) >= keysMax {
		for old := range v.keys.m { // any: yesterday's are as likely as today's, and deriving again costs 2 us
			delete(v.keys.m, old)
			break
		}
	}
	v.keys.m[id] = k
	return k
}

type scratch struct {
	buf   []byte
	sha   hash.Hash
	pairs []pair
}

// pair is an encoded query parameter: offsets into buf.
type pair struct{ name, eq, end int }

// Seed is what the chunks of a signed aws-chunked body are chained to.
type Seed struct {
	key       *signingKey
	timestamp string
	scope     string
	signature [64]byte
}

// Check proves that the holder of secret signed this request, and answers the
// seed for its chunks. Every x-amz-* header must be signed, so that nothing can
// be added to a captured request.
func (v *Verifier) Check(r *Request, a *Auth, secret string) (Seed, *Error) {
	if err := unsignedHeaders(r, a); err != nil {
		return Seed{}, err
	}
	key := v.signingKey(secret, a)
	s := v.scratch.Get().(*scratch)
	defer v.scratch.Put(s)
	seed := Seed{key: key, timestamp: a.Timestamp, scope: a.Scope}
	if v.match(s, r, a, key, variant{}, &seed) {
		return seed, nil
	}
	// The wire does not always show what the client signed. Each variant is as
	// strict as the first: the string it compares still decodes to this very request.
	for _, alt := range variants(r) {
		if v.match(s, r, a, key, alt, &seed) {
			return seed, nil
		}
	}
	canonical := string(s.canonical(r, a, variant{}))
	toSign := string(s.stringToSign(a, []byte(canonical)))
	return Seed{}, &Error{Code: "SignatureDoesNotMatch", Fields: []Field{
		{"AWSAccessKeyId", a.AccessKey}, {"StringToSign", toSign}, {"SignatureProvided", a.Signature},
		{"StringToSignBytes", spaced(toSign)}, {"CanonicalRequest", canonical}, {"CanonicalRequestBytes", spaced(canonical)},
	}}
}

func (v *Verifier) match(s *scratch, r *Request, a *Auth, key *signingKey, alt variant, seed *Seed) bool {
	toSign := s.stringToSign(a, s.canonical(r, a, alt))
	key.appendSignature(seed.signature[:0], toSign)
	return subtle.ConstantTimeCompare(seed.signature[:], []byte(a.Signature)) == 1
}

// spaced is s in hex bytes, as S3 shows them.
func spaced(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if i > 0 {
			b.WriteByte(' ')
		}
		if s[i] < 16 {
			b.WriteByte('0')
		}
		b.WriteString(strconv.FormatInt(int64(s[i]), 16))
	}
	return b.String()
}

// unsignedHeaders refuses x-amz-* headers outside the signature.
func unsignedHeaders(r *Request, a *Auth) *Error {
	var missing []string
	for name := range r.Header {
		if len(name) > 6 && name[:6] == "X-Amz-" && name != "X-Amz-Cf-Id" && !listed(a.SignedHeaders, name) {
			missing = append(missing, strings.ToLower(name))
		}
	}
	if missing == nil {
		return nil
	}
	sort.Strings(missing)
	return &Error{Code: "AccessDenied", Message: "There were headers present in the request which were not signed",
		Fields: []Field{{"HeadersNotSigned", strings.Join(missing, ", ")}}}
}

// variant is a way in which a client's canonical request may differ from ours.
type variant struct {
	rawPath  bool // the path is signed as it is on the wire
	trimPort bool // the host is signed without its default port
	latin1   bool // header bytes that are not UTF-8 were signed as the UTF-8 of Latin-1
}

func variants(r *Request) []variant {
	var vs []variant
	host := strings.HasSuffix(r.Host, ":80") || strings.HasSuffix(r.Host, ":443")
	path := string(appendPath(nil, r.Path)) != r.Path
	if host {
		vs = append(vs, variant{trimPort: true})
	}
	if path {
		vs = append(vs, variant{rawPath: true})
	}
	if host && path {
		vs = append(vs, variant{trimPort: true, rawPath: true})
	}
	for _, values := range r.Header {
		for _, v := range values {
			if !utf8.ValidString(v) {
				return append(vs, variant{latin1: true})
			}
		}
	}
	return vs
}

// canonical builds the canonical request in s.buf.
func (s *scratch) canonical(r *Request, a *Auth, alt variant) []byte {
	b := s.buf[:0]
	b = append(b, r.Method...)
	b = append(b, '\n')
	if alt.rawPath {
		b = append(b, r.Path...)
	} else {
		b = appendPath(b, r.Path)
	}
	b = append(b, '\n')
	b = s.appendQuery(b, r.Query, a.Presigned)
	b = append(b, '\n')
	b = appendHeaders(b, r, a.SignedHeaders, alt)
	b = append(b, '\n')
	b = append(b, a.SignedHeaders...)
	b = append(b, '\n')
	b = append(b, a.ContentSHA256...)
	s.buf = b
	return b
}

// stringToSign appends the string to sign behind the canonical request.
func (s *scratch) stringToSign(a *Auth, canonical []byte) []byte {
	s.sha.Reset()
	s.sha.Write(canonical)
	var sum [sha256.Size]byte
	s.sha.Sum(sum[:0])
	b := append(s.buf[:0], Algorithm+"\n"...)
	b = append(b, a.Timestamp...)
	b = append(b, '\n')
	b = append(b, a.Scope...)
	b = append(b, '\n')
	b = hex.AppendEncode(b, sum[:])
	s.buf = b
	return b
}

// appendPath appends the canonical URI: every byte encoded once, slashes kept.
func appendPath(b []byte, path string) []byte {
	if path == "" {
		return append(b, '/')
	}
	for i := 0; i < len(path); {
		c, n := decodeAt(path, i, false)
		i += n
		if c == '/' || unreserved(c) {
			b = append(b, c)
		} else {
			b = appendPercent(b, c)
		}
	}
	return b
}

// appendQuery appends the canonical query: parameters encoded, sorted by name, then by value.
func (s *scratch) appendQuery(b []byte, query string, presigned bool) []byte {
	if query == "" {
		return b
	}
	s.pairs = s.pairs[:0]
	start := len(b)
	for rest := query; rest != ""; {
		var param string
		param, rest, _ = strings.Cut(rest, "&")
		if param == "" {
			continue
		}
		name, value, _ := strings.Cut(param, "=")
		if presigned && name == "X-Amz-Signature" {
			continue
		}
		p := pair{name: len(b)}
		b = appendEncoded(b, name)
		p.eq = len(b)
		b = append(b, '=')
		b = appendEncoded(b, value)
		p.end = len(b)
		s.pairs = append(s.pairs, p)
	}
	if len(s.pairs) <= 1 {
		return b
	}
	sort.Slice(s.pairs, func(i, j int) bool {
		p, q := s.pairs[i], s.pairs[j]
		if n, m := string(b[p.name:p.eq]), string(b[q.name:q.eq]); n != m {
			return n < m
		}
		return string(b[p.eq:p.end]) < string(b[q.eq:q.end])
	})
	// Write them in order behind, then move the result to where it belongs.
	end := len(b)
	for i, p := range s.pairs {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(b, b[p.name:p.end]...)
	}
	n := copy(b[start:], b[end:])
	return b[:start+n]
}

func appendEncoded(b []byte, s string) []byte {
	for i := 0; i < len(s); {
		c, n := decodeAt(s, i, true)
		i += n
		if unreserved(c) {
			b = append(b, c)
		} else {
			b = appendPercent(b, c)
		}
	}
	return b
}

func appendDecoded(b []byte, s string, query bool) []byte {
	for i := 0; i < len(s); {
		c, n := decodeAt(s, i, query)
		i += n
		b = append(b, c)
	}
	return b
}

// decodeAt is the byte that stands percent-encoded (or plain) at s[i], and how
// long it is there. A '%' that starts no escape stands for itself.
func decodeAt(s string, i int, query bool) (c byte, n int) {
	switch c = s[i]; {
	case c == '%' && i+2 < len(s):
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi < 16 && lo < 16 {
			return hi<<4 | lo, 3
		}
	case c == '+' && query:
		return ' ', 1
	}
	return c, 1
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~'
}

func appendPercent(b []byte, c byte) []byte {
	const upper = "0123456789ABCDEF"
	return append(b, '%', upper[c>>4], upper[c&15])
}

// appendHeaders appends name:value lines for the signed headers, in the order of the list.
func appendHeaders(b []byte, r *Request, list string, alt variant) []byte {
	var canon [64]byte
	for list != "" {
		name, rest, _ := strings.Cut(list, ";")
		list = rest
		b = append(b, name...)
		b = append(b, ':')
		switch name {
		case "host", ":authority":
			host := r.Host
			if alt.trimPort {
				host = strings.TrimSuffix(strings.TrimSuffix(host, ":80"), ":443")
			}
			b = append(b, host...)
		case "content-length":
			// net/http takes it out of the header for some bodies.
			if v, ok := first(r.Header, "Content-Length"); ok {
				b = appendTrimmed(b, v, alt)
			} else if r.ContentLength >= 0 {
				b = strconv.AppendInt(b, r.ContentLength, 10)
			}
		case "transfer-encoding": // as is this one, always
			if r.ContentLength < 0 {
				b = append(b, "chunked"...)
			}
		default:
			for i, v := range r.Header[string(canonicalName(canon[:0], name))] {
				if i > 0 {
					b = append(b, ',')
				}
				b = appendTrimmed(b, v, alt)
			}
		}
		b = append(b, '\n')
	}
	return b
}

// canonicalName is textproto's form of a lower-case name.
func canonicalName(b []byte, name string) []byte {
	upper := true
	for i := 0; i < len(name); i++ {
		c := name[i]
		if upper && 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		upper = c == '-'
		b = append(b, c)
	}
	return b
}

// appendTrimmed appends a header value without leading and trailing blanks, runs of blanks as one.
func appendTrimmed(b []byte, v string, alt variant) []byte {
	v = strings.Trim(v, " \t")
	latin1 := alt.latin1 && !utf8.ValidString(v)
	blank := false
	for i := 0; i < len(v); i++ {
		c := v[i]
		if c == ' ' || c == '\t' {
			if !blank {
				b = append(b, ' ')
			}
			blank = true
			continue
		}
		blank = false
		if latin1 && c >= utf8.RuneSelf {
			b = utf8.AppendRune(b, rune(c))
		} else {
			b = append(b, c)
		}
	}
	return b
}
