// Package s3xml writes S3's answers and reads its request documents. Both are
// written by hand: a listing of a thousand keys costs little more than copying
// it, and the reader accepts only the small part of XML that S3 clients send (no
// DTD, no entities but the five predefined, bounded depth), strictly.
package s3xml

import (
	"strconv"
	"time"
	"unicode/utf8"
)

// Namespace is of every S3 document.
const Namespace = "http://s3.amazonaws.com/doc/2006-03-01/"

const declaration = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"

// Writer appends a document to B. Element names are written as they are; the caller keeps open and close paired.
type Writer struct {
	B []byte
	// URL asks for names and prefixes (see Name) percent-encoded: encoding-type=url.
	URL bool
}

// Start begins a document with its root element, in S3's namespace if ns.
func (w *Writer) Start(root string, ns bool) {
	w.B = append(w.B, declaration...)
	w.B = append(w.B, '<')
	w.B = append(w.B, root...)
	if ns {
		w.B = append(w.B, ` xmlns="`+Namespace+`"`...)
	}
	w.B = append(w.B, '>')
}

// Open writes <tag>.
func (w *Writer) Open(tag string) {
	w.B = append(w.B, '<')
	w.B = append(w.B, tag...)
	w.B = append(w.B, '>')
}

// Close writes </tag>.
func (w *Writer) Close(tag string) {
	w.B = append(w.B, '<', '/')
	w.B = append(w.B, tag...)
	w.B = append(w.B, '>')
}

// Text writes an element with escaped text.
func (w *Writer) Text(tag, s string) {
	w.Open(tag)
	w.B = AppendEscaped(w.B, s)
	w.Close(tag)
}

// Raw writes an element whose text is known to need no escaping.
func (w *Writer) Raw(tag, s string) {
	w.Open(tag)
	w.B = append(w.B, s...)
	w.Close(tag)
}

// Name writes an element with a key, prefix, delimiter or marker: percent-encoded if URL is set.
func (w *Writer) Name(tag, s string) {
	w.Open(tag)
	if w.URL {
		w.B = AppendURL(w.B, s)
	} else {
		w.B = AppendEscaped(w.B, s)
	}
	w.Close(tag)
}

// ETag writes <ETag>"etag"</ETag>, quotes escaped as S3 does.
func (w *Writer) ETag(etag string) {
	w.B = append(w.B, "<ETag>&quot;"...)
	w.B = AppendEscaped(w.B, etag)
	w.B = append(w.B, "&quot;</ETag>"...)
}

// Int writes an element with a number.
func (w *Writer) Int(tag string, n int64) {
	w.Open(tag)
	w.B = strconv.AppendInt(w.B, n, 10)
	w.Close(tag)
}

// Bool writes an element with true or false.
func (w *Writer) Bool(tag string, v bool) {
	w.Open(tag)
	w.B = strconv.AppendBool(w.B, v)
	w.Close(tag)
}

// Time writes an element with a time as S3 does: UTC with milliseconds.
func (w *Writer) Time(tag string, t time.Time) {
	w.Open(tag)
	w.B = AppendTime(w.B, t)
	w.Close(tag)
}

// AppendTime appends t as 2006-01-02T15:04:05.000Z.
func AppendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, sec := t.Clock()
	if year < 0 || year > 9999 {
		return t.AppendFormat(b, "2006-01-02T15:04:05.000Z")
	}
	b = append(b, byte('0'+year/1000), byte('0'+year/100%10), byte('0'+year/10%10), byte('0'+year%10), '-')
	b = append(appendTwo(b, int(month)), '-')
	b = append(appendTwo(b, day), 'T')
	b = append(appendTwo(b, hour), ':')
	b = append(appendTwo(b, minute), ':')
	b = append(appendTwo(b, sec), '.')
	ms := t.Nanosecond() / 1e6
	b = append(b, byte('0'+ms/100))
	return append(appendTwo(b, ms%100), 'Z')
}

func appendTwo(b []byte, n int) []byte { return append(b, byte('0'+n/10), byte('0'+n%10)) }

// AppendEscaped appends s as XML text. Characters that XML 1.0 cannot hold are
// written as character references, as S3 does (a client that minds asks for
// encoding-type=url); bytes that are not UTF-8 become U+FFFD.
func AppendEscaped(b []byte, s string) []byte {
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c < utf8.RuneSelf && c != '&' && c != '<' && c != '>' && c != '"' && c != '\'' && c != 0x7f {
			i++
			continue
		}
		n := 1
		if c >= utf8.RuneSelf {
			r, size := utf8.DecodeRuneInString(s[i:])
			n = size
			if r != utf8.RuneError && r != 0xfffe && r != 0xffff {
				i += n
				continue
			}
			b = append(b, s[from:i]...)
			switch {
			case size == 1:
				b = append(b, "\uFFFD"...)
			case r == utf8.RuneError:
				b = append(b, s[i:i+n]...)
			default:
				b = appendReference(b, r)
			}
		} else {
			b = append(b, s[from:i]...)
			switch c {
			case '&':
				b = append(b, "&amp;"...)
			case '<':
				b = append(b, "&lt;"...)
			case '>':
				b = append(b, "&gt;"...)
			case '"':
				b = append(b, "&quot;"...)
			case '\'':
				b = append(b, "&#39;"...)
			default:
				b = appendReference(b, rune(c))
			}
		}
		i += n
		from = i
	}
	return append(b, s[from:]...)
}

func appendReference(b []byte, r rune) []byte {
	b = append(b, "&#x"...)
	b = strconv.AppendInt(b, int64(r), 16)
	return append(b, ';')
}

const upperHex = "0123456789ABCDEF"

// AppendURL appends s percent-encoded for encoding-type=url: all but unreserved
// characters and '/'. A space is %20 and '+' is %2B, so that decoders that turn
// '+' into a space and those that don't agree.
func AppendURL(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' || c == '~' || c == '/' {
			b = append(b, c)
			continue
		}
		b = append(b, '%', upperHex[c>>4], upperHex[c&15])
	}
	return b
}
