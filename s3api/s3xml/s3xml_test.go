package s3xml

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestEscaping(t *testing.T) {
	for _, s := range []string{"", "plain", "a&b<c>d\"e'f", "tab\tnl\ncr\r", "é漢字🦆", "\uFFFD", "mixed & é\r end", "]]>"} {
		var got string
		if err := xml.Unmarshal(append(AppendEscaped([]byte("<a>"), s), "</a>"...), &got); err != nil || got != s {
			t.Errorf("%q came back as %q, %v", s, got, err)
		}
		r := NewReader(append(AppendEscaped([]byte("<a>"), s), "</a>"...))
		if err := r.Root("a"); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Text(); err != nil || got != s {
			t.Errorf("Reader: %q came back as %q, %v", s, got, err)
		}
	}
	for in, want := range map[string]string{
		"\x01\x1f\x7f": "&#x1;&#x1f;&#x7f;", "\xff": "\uFFFD", "a\uFFFEb": "a&#xfffe;b", "\x00": "&#x0;", "\xe2\x82": "\uFFFD\uFFFD",
	} {
		if got := string(AppendEscaped(nil, in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Decoders that take '+' for a space (minio-go) and those that don't (botocore) must agree.
func TestURLEncoding(t *testing.T) {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	s := "a b+c/d%e~f" + string(all)
	enc := string(AppendURL(nil, s))
	if !strings.HasPrefix(enc, "a%20b%2Bc/d%25e~f") {
		t.Error(enc)
	}
	if got, err := url.QueryUnescape(enc); err != nil || got != s {
		t.Errorf("query: %q %v", got, err)
	}
	if got, err := url.PathUnescape(enc); err != nil || got != s {
		t.Errorf("path: %q %v", got, err)
	}
}

func TestTime(t *testing.T) {
	for _, at := range []time.Time{time.Unix(0, 0), time.UnixMilli(1709208000999), time.Date(9999, 12, 31, 23, 59, 59, 1e6, time.UTC), time.Date(2024, 2, 29, 1, 2, 3, 45e6, time.FixedZone("x", 3600))} {
		if got, want := string(AppendTime(nil, at)), at.UTC().Format("2006-01-02T15:04:05.000Z"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func TestWriter(t *testing.T) {
	w := Writer{URL: true}
	w.Start("R", true)
	w.Name("Key", "a b")
	w.ETag("x")
	w.Int("N", -3)
	w.Bool("B", true)
	w.Raw("C", "STANDARD")
	w.Time("T", time.Unix(0, 0))
	w.Close("R")
	want := "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<R xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Key>a%20b</Key><ETag>&quot;x&quot;</ETag><N>-3</N><B>true</B><C>STANDARD</C><T>1970-01-01T00:00:00.000Z</T></R>"
	if string(w.B) != want {
		t.Errorf("%s", w.B)
	}
}

func TestParseDelete(t *testing.T) {
	d, err := ParseDelete([]byte("\xef\xbb\xbf<?xml version='1.0' encoding=\"utf-8\"?>\r\n<!-- c --><s:Delete xmlns:s=\"http://s3.amazonaws.com/doc/2006-03-01/\">\n" +
		"<s:Object><Key>a &amp; b&#13;&#x1;</Key><VersionId>null</VersionId></s:Object><Quiet>true</Quiet>" +
		"<Object><Key><![CDATA[<x>]]> y</Key><ETag>\"e\"</ETag><Size>5</Size><LastModifiedTime>t</LastModifiedTime></Object><Object><VersionId/><Key> z\r\n</Key></Object></s:Delete>\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "&{true [{a & b\r\x01 null true   } {<x> y  false \"e\" t 5} { z\n  true   }]}"
	if got := fmt.Sprint(d); got != want {
		t.Errorf("%q\n%q", got, want)
	}
	for _, bad := range []string{
		"", " ", "x", "<Delete>", "<Delete/>", "<Delete></Delete>", "<Delete></delete>", "<Other><Object><Key>a</Key></Object></Other>",
		"<Delete><Object/></Delete>", "<Delete><Object><Key></Key></Object></Delete>", "<Delete><Object><Key>a</Key></Object></Delete>x",
		"<Delete><Object><Key>a</Key></Object></Delete><Delete/>", "<Delete>text<Object><Key>a</Key></Object></Delete>",
		"<Delete><Object><Key>a</Key><What>1</What></Object></Delete>", "<Delete><What/><Object><Key>a</Key></Object></Delete>",
		"<Delete><Object><Key>a&b;</Key></Object></Delete>", "<Delete><Object><Key>a&#xD800;</Key></Object></Delete>", "<Delete><Object><Key>\x01</Key></Object></Delete>",
		"<Delete><Object><Key>\xff</Key></Object></Delete>", "<!DOCTYPE Delete [<!ENTITY a \"b\">]><Delete><Object><Key>a</Key></Object></Delete>",
		"<Delete a=b><Object><Key>a</Key></Object></Delete>", "<Delete a='<'><Object><Key>a</Key></Object></Delete>",
		"<?xml version='2.0'?><Delete><Object><Key>a</Key></Object></Delete>", "<?xml version='1.0' encoding='latin1'?><Delete><Object><Key>a</Key></Object></Delete>",
		"<Delete><Quiet>maybe</Quiet><Object><Key>a</Key></Object></Delete>", "<Delete><Object><Key><b/></Key></Object></Delete>",
		strings.Repeat("<Delete>", 40), "<Delete>" + strings.Repeat("<Object><Key>a</Key></Object>", 1001) + "</Delete>",
	} {
		if d, err := ParseDelete([]byte(bad)); err == nil {
			t.Errorf("%.60q accepted: %.60v", bad, d)
		} else if se := (*SyntaxError)(nil); !errors.As(err, &se) {
			t.Errorf("%q: %T", bad, err)
		}
	}
	if d, err := ParseDelete([]byte("<Delete>" + strings.Repeat("<Object><Key>a</Key></Object>", 1000) + "</Delete>")); err != nil || len(d.Objects) != 1000 {
		t.Error(err)
	}
}

func TestParseComplete(t *testing.T) {
	parts, err := ParseComplete([]byte(`<CompleteMultipartUpload xmlns="x"><Part><ETag>"a"</ETag><PartNumber>1</PartNumber><ChecksumCRC32>AAAA</ChecksumCRC32></Part><Part><PartNumber> 7 </PartNumber><ETag>b</ETag></Part></CompleteMultipartUpload>`))
	if err != nil || fmt.Sprint(parts) != `[{1 "a" [{CRC32 AAAA}]} {7 b []}]` {
		t.Errorf("%v %v", parts, err)
	}
	for _, bad := range []string{
		"", "<CompleteMultipartUpload/>", "<CompleteMultipartUpload><Part><ETag>a</ETag></Part></CompleteMultipartUpload>",
		"<CompleteMultipartUpload><Part><ETag>a</ETag><PartNumber>x</PartNumber></Part></CompleteMultipartUpload>",
		"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part></CompleteMultipartUpload>",
		"<CompleteMultipartUpload><Parts/></CompleteMultipartUpload>",
		"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>a</ETag><X/></Part></CompleteMultipartUpload>",
	} {
		if p, err := ParseComplete([]byte(bad)); err == nil {
			t.Errorf("%q accepted: %v", bad, p)
		}
	}
}

func TestParseCreateBucket(t *testing.T) {
	loc, err := ParseCreateBucket([]byte(`<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>`))
	if err != nil || loc != "eu-west-1" {
		t.Error(loc, err)
	}
	if loc, err := ParseCreateBucket([]byte(`<CreateBucketConfiguration xmlns="x"/>`)); err != nil || loc != "" {
		t.Error(loc, err)
	}
	var u *Unsupported
	if _, err := ParseCreateBucket([]byte(`<CreateBucketConfiguration><Location><Name>x</Name></Location></CreateBucketConfiguration>`)); !errors.As(err, &u) {
		t.Error(err)
	}
	if _, err := ParseCreateBucket([]byte(`<CreateBucketConfiguration><X/></CreateBucketConfiguration>`)); err == nil {
		t.Error("unknown element accepted")
	}
}

// FuzzReader compares what both readers make of a document when both accept it.
func FuzzReader(f *testing.F) {
	for _, s := range []string{
		"<a/>", "<a><b>x</b></a>", "<?xml version=\"1.0\"?><a b='c'>t&amp;&#10;</a>", "<n:a xmlns:n='x'><!-- c --><n:b/></n:a>", "<a><![CDATA[x]]>y\r\n</a>",
		"<a>]]></a>", "<a><b></a></b>", "<a b='&lt;'/>", "<a\n>x</a >", "<a><?pi x?>y</a>",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		ParseDelete(b)
		ParseComplete(b)
		ParseCreateBucket(b)
		for _, parse := range parsers() {
			parse(b)
		}
		mine, err := dumpMine(b)
		if err != nil {
			return
		}
		theirs, err := dumpTheirs(b)
		if err != nil {
			return // we accept more: control characters, XML 1.1
		}
		if mine != theirs {
			t.Fatalf("mine %q\ntheirs %q", mine, theirs)
		}
	})
}

// dumpMine walks an arbitrary document: an element has children or text.
func dumpMine(b []byte) (string, error) {
	r := NewReader(b)
	if err := r.declaration(); err != nil {
		return "", err
	}
	if err := r.misc(); err != nil {
		return "", err
	}
	if r.pos >= len(r.b) || r.b[r.pos] != '<' {
		return "", errors.New("no root")
	}
	name, err := r.startTag()
	if err != nil {
		return "", err
	}
	var out strings.Builder
	if err := dumpElement(r, name, &out); err != nil {
		return "", err
	}
	return out.String(), r.End()
}

func dumpElement(r *Reader, name string, out *strings.Builder) error {
	fmt.Fprintf(out, "<%s>", name)
	defer fmt.Fprintf(out, "</%s>", name)
	saved := *r
	saved.open, saved.full = append([]string(nil), r.open...), append([]string(nil), r.full...)
	if text, err := r.Text(); err == nil {
		out.WriteString(text)
		return nil
	}
	*r = saved
	for {
		name, ok, err := r.Child()
		if err != nil || !ok {
			return err
		}
		if err := dumpElement(r, name, out); err != nil {
			return err
		}
	}
}

// dumpTheirs walks it with encoding/xml; white space around children is dropped as ours does.
func dumpTheirs(b []byte) (string, error) {
	type node struct {
		name     string
		text     bytes.Buffer
		children bytes.Buffer
		parent   bool
	}
	d := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))))
	var stack []*node
	var root string
	for {
		tok, err := d.Token()
		if err == io.EOF {
			return root, nil
		}
		if err != nil {
			return "", err
		}
		switch tok := tok.(type) {
		case xml.StartElement:
			if len(stack) == 0 && root != "" {
				return "", errors.New("two roots")
			}
			stack = append(stack, &node{name: tok.Name.Local})
		case xml.CharData:
			if len(stack) > 0 {
				stack[len(stack)-1].text.Write(tok)
			}
		case xml.EndElement:
			n := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			body := n.text.String()
			if n.parent {
				if strings.TrimSpace(body) != "" {
					return "", errors.New("mixed content")
				}
				body = n.children.String()
			}
			s := "<" + n.name + ">" + body + "</" + n.name + ">"
			if len(stack) == 0 {
				root = s
			} else {
				stack[len(stack)-1].children.WriteString(s)
				stack[len(stack)-1].parent = true
			}
		}
	}
}

func BenchmarkParseDelete1000(b *testing.B) {
	doc := []byte("<Delete xmlns=\"" + Namespace + "\">" + strings.Repeat("<Object><Key>some/path/to/an/object-0001</Key></Object>", 1000) + "</Delete>")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseDelete(doc); err != nil {
			b.Fatal(err)
		}
	}
}
