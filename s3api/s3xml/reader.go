package s3xml

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// depthMax bounds how deep elements may nest; S3's documents need four.
const depthMax = 16

// SyntaxError says that a document is not well-formed or not of the expected shape: MalformedXML.
type SyntaxError struct {
	Offset int // bytes into the document
	Detail string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s at byte %d", e.Detail, e.Offset)
}

// Reader walks one document held in memory. Names are compared without their
// namespace prefix, attributes are checked for form and ignored, as S3 does.
// The zero value is not usable: see NewReader.
type Reader struct {
	b     []byte
	pos   int
	open  []string // local names of the open elements, outermost first
	full  []string // their full names, for matching end tags
	empty bool     // the innermost open element was <tag/>: its end is implied
}

// NewReader reads b, which must not change meanwhile.
func NewReader(b []byte) *Reader {
	return &Reader{b: bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))}
}

func (r *Reader) fail(format string, args ...any) error {
	return &SyntaxError{r.pos, fmt.Sprintf(format, args...)}
}

// Root enters the document's root element, which must have this name.
func (r *Reader) Root(name string) error {
	if err := r.declaration(); err != nil {
		return err
	}
	if err := r.misc(); err != nil {
		return err
	}
	if r.pos >= len(r.b) || r.b[r.pos] != '<' {
		return r.fail("no root element")
	}
	got, err := r.startTag()
	if err != nil {
		return err
	}
	if got != name {
		return r.fail("root element %q, want %q", got, name)
	}
	return nil
}

// Child enters the next child of the innermost open element, or leaves that
// element (ok is false) if there is none. Text between children must be white space.
func (r *Reader) Child() (name string, ok bool, err error) {
	if len(r.open) == 0 {
		return "", false, r.fail("no open element")
	}
	if r.empty {
		return "", false, r.leave()
	}
	if err := r.misc(); err != nil {
		return "", false, err
	}
	if r.pos >= len(r.b) {
		return "", false, r.fail("document ends inside %q", r.open[len(r.open)-1])
	}
	if r.b[r.pos] != '<' {
		return "", false, r.fail("text inside %q", r.open[len(r.open)-1])
	}
	if r.has("</") {
		return "", false, r.endTag()
	}
	name, err = r.startTag()
	return name, err == nil, err
}

// Text reads the text of the innermost open element, which must have no
// children, and leaves it.
func (r *Reader) Text() (string, error) {
	if len(r.open) == 0 {
		return "", r.fail("no open element")
	}
	if r.empty {
		return "", r.leave()
	}
	var out []byte
	for {
		rest := r.b[r.pos:]
		i := bytes.IndexByte(rest, '<')
		if i < 0 {
			return "", r.fail("document ends inside %q", r.open[len(r.open)-1])
		}
		var err error
		if out, err = r.text(out, rest[:i]); err != nil {
			return "", err
		}
		r.pos += i
		switch {
		case r.has("</"):
			return string(out), r.endTag()
		case r.has("<![CDATA["):
			body, err := r.until("<![CDATA[", "]]>")
			if err != nil {
				return "", err
			}
			if err := r.characters(body); err != nil {
				return "", err
			}
			out = appendNormalized(out, body)
		case r.has("<!--"):
			if err := r.comment(); err != nil {
				return "", err
			}
		case r.has("<?"):
			if err := r.instruction(); err != nil {
				return "", err
			}
		default:
			return "", r.fail("element inside %q", r.open[len(r.open)-1])
		}
	}
}

// End checks that nothing but comments and white space follows the root element.
func (r *Reader) End() error {
	if len(r.open) != 0 {
		return r.fail("%q is open", r.open[len(r.open)-1])
	}
	if err := r.misc(); err != nil {
		return err
	}
	if r.pos != len(r.b) {
		return r.fail("more after the root element")
	}
	return nil
}

func (r *Reader) has(s string) bool {
	return len(r.b)-r.pos >= len(s) && string(r.b[r.pos:r.pos+len(s)]) == s
}

// until consumes open, everything up to end, and end; it answers what lies between.
func (r *Reader) until(open, end string) ([]byte, error) {
	i := bytes.Index(r.b[r.pos+len(open):], []byte(end))
	if i < 0 {
		return nil, r.fail("%q without %q", open, end)
	}
	body := r.b[r.pos+len(open) : r.pos+len(open)+i]
	r.pos += len(open) + i + len(end)
	return body, nil
}

func (r *Reader) comment() error {
	body, err := r.until("<!--", "-->")
	if err == nil && (bytes.Contains(body, []byte("--")) || bytes.HasSuffix(body, []byte("-"))) {
		err = r.fail("-- inside a comment")
	}
	if err == nil {
		err = r.characters(body)
	}
	return err
}

func (r *Reader) instruction() error {
	body, err := r.until("<?", "?>")
	if err != nil {
		return err
	}
	name, rest := localName(body)
	if name == "" || strings.EqualFold(name, "xml") || len(rest) > 0 && !isSpace(rest[0]) {
		return r.fail("bad processing instruction")
	}
	return r.characters(body)
}

// declaration consumes <?xml ...?> at the very beginning. XML 1.1 is accepted
// too: it is how a client can name keys with control characters.
func (r *Reader) declaration() error {
	if !r.has("<?xml") || len(r.b) <= r.pos+5 || !isSpace(r.b[r.pos+5]) {
		return nil
	}
	body, err := r.until("<?xml", "?>")
	if err != nil {
		return err
	}
	attrs := map[string]string{}
	if err := r.attributes(body, func(name, value string) { attrs[name] = value }); err != nil {
		return err
	}
	if v := attrs["version"]; v != "1.0" && v != "1.1" {
		return r.fail("XML version %q", v)
	}
	if e, ok := attrs["encoding"]; ok && !strings.EqualFold(e, "utf-8") && !strings.EqualFold(e, "us-ascii") {
		return r.fail("encoding %q, want UTF-8", e)
	}
	return nil
}

// misc consumes white space, comments and processing instructions.
func (r *Reader) misc() error {
	for r.pos < len(r.b) {
		switch {
		case isSpace(r.b[r.pos]):
			r.pos++
		case r.has("<!--"):
			if err := r.comment(); err != nil {
				return err
			}
		case r.has("<?"):
			if err := r.instruction(); err != nil {
				return err
			}
		case r.has("<!"):
			return r.fail("document types and the like are not accepted")
		default:
			return nil
		}
	}
	return nil
}

// startTag consumes a start tag and answers its local name.
func (r *Reader) startTag() (string, error) {
	end := tagEnd(r.b[r.pos:])
	if end < 0 {
		return "", r.fail("unfinished tag")
	}
	body := r.b[r.pos+1 : r.pos+end]
	empty := len(body) > 0 && body[len(body)-1] == '/'
	if empty {
		body = body[:len(body)-1]
	}
	full, rest := localName(body)
	if full == "" || len(rest) > 0 && !isSpace(rest[0]) {
		return "", r.fail("bad tag")
	}
	if err := r.attributes(rest, nil); err != nil {
		return "", err
	}
	if len(r.open) >= depthMax {
		return "", r.fail("more than %d elements nested", depthMax)
	}
	local := full
	if i := strings.IndexByte(full, ':'); i >= 0 {
		if local = full[i+1:]; local == "" || i == 0 || strings.IndexByte(local, ':') >= 0 {
			return "", r.fail("bad name %q", full)
		}
	}
	r.pos += end + 1
	r.open, r.full, r.empty = append(r.open, local), append(r.full, full), empty
	return local, nil
}

func (r *Reader) endTag() error {
	i := bytes.IndexByte(r.b[r.pos:], '>')
	if i < 0 {
		return r.fail("unfinished tag")
	}
	name := bytes.TrimRight(r.b[r.pos+2:r.pos+i], " \t\r\n")
	if want := r.full[len(r.full)-1]; string(name) != want {
		return r.fail("</%s> where </%s> is due", name, want)
	}
	r.pos += i + 1
	return r.leave()
}

func (r *Reader) leave() error {
	r.open, r.full, r.empty = r.open[:len(r.open)-1], r.full[:len(r.full)-1], false
	return nil
}

// tagEnd is the index of the '>' that ends the tag at b's start, or -1.
func tagEnd(b []byte) int {
	quote := byte(0)
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '>':
			return i
		}
	}
	return -1
}

// localName splits a name off b.
func localName(b []byte) (string, []byte) {
	i := 0
	for i < len(b) {
		c := b[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '-' || c == '.' || c == ':')) {
			break
		}
		i++
	}
	return string(b[:i]), b[i:]
}

// attributes checks name="value" pairs and hands them to fn, if that is not nil.
func (r *Reader) attributes(b []byte, fn func(name, value string)) error {
	for {
		trimmed := bytes.TrimLeft(b, " \t\r\n")
		if len(trimmed) == 0 {
			return nil
		}
		if len(trimmed) == len(b) {
			return r.fail("no white space before an attribute")
		}
		name, rest := localName(trimmed)
		rest = bytes.TrimLeft(rest, " \t\r\n")
		if name == "" || len(rest) == 0 || rest[0] != '=' {
			return r.fail("bad attribute")
		}
		rest = bytes.TrimLeft(rest[1:], " \t\r\n")
		if len(rest) == 0 || rest[0] != '"' && rest[0] != '\'' {
			return r.fail("attribute without quotes")
		}
		end := bytes.IndexByte(rest[1:], rest[0])
		if end < 0 {
			return r.fail("unfinished attribute")
		}
		value := rest[1 : 1+end]
		if bytes.IndexByte(value, '<') >= 0 {
			return r.fail("< in an attribute")
		}
		if _, err := r.text(nil, value); err != nil {
			return err
		}
		if fn != nil {
			fn(name, string(value))
		}
		b = rest[end+2:]
	}
}

// text appends raw with its references resolved and its line ends normalised.
func (r *Reader) text(out, raw []byte) ([]byte, error) {
	if err := r.characters(raw); err != nil {
		return nil, err
	}
	if bytes.Contains(raw, []byte("]]>")) {
		return nil, r.fail("]]> in text")
	}
	for {
		i := bytes.IndexByte(raw, '&')
		if i < 0 {
			return appendNormalized(out, raw), nil
		}
		out = appendNormalized(out, raw[:i])
		raw = raw[i+1:]
		end := bytes.IndexByte(raw, ';')
		if end < 0 || end > 10 {
			return nil, r.fail("& without a reference")
		}
		c, ok := reference(string(raw[:end]))
		if !ok {
			return nil, r.fail("reference &%s;", raw[:end])
		}
		out = utf8.AppendRune(out, c)
		raw = raw[end+1:]
	}
}

// reference resolves a reference. Control characters are accepted (XML 1.0
// has no way to write them at all): keys may contain them.
func reference(s string) (rune, bool) {
	switch s {
	case "lt":
		return '<', true
	case "gt":
		return '>', true
	case "amp":
		return '&', true
	case "quot":
		return '"', true
	case "apos":
		return '\'', true
	}
	if len(s) < 2 || s[0] != '#' {
		return 0, false
	}
	digits, base := s[1:], 10
	if digits[0] == 'x' {
		digits, base = digits[1:], 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	if err != nil || n > utf8.MaxRune || !utf8.ValidRune(rune(n)) || strings.IndexByte(digits, '_') >= 0 {
		return 0, false
	}
	return rune(n), true
}

// characters checks that b is UTF-8 without control characters.
func (r *Reader) characters(b []byte) error {
	if !utf8.Valid(b) {
		return r.fail("not UTF-8")
	}
	for _, c := range b {
		if c < 0x20 && !isSpace(c) {
			return r.fail("control character")
		}
	}
	return nil
}

// appendNormalized appends text with \r\n and \r turned into \n, as XML demands.
func appendNormalized(out, b []byte) []byte {
	for {
		i := bytes.IndexByte(b, '\r')
		if i < 0 {
			return append(out, b...)
		}
		out = append(append(out, b[:i]...), '\n')
		b = b[i+1:]
		if len(b) > 0 && b[0] == '\n' {
			b = b[1:]
		}
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
