package rangestate

import (
	"bytes"
	"strings"
	"testing"

	"cairn/proto/metapb"
)

var awkwardKeys = []string{
	"", "a", "a\x00", "a\x00\x00", "a\x00\x01", "a\x00\xff", "a\x01", "b", "\x00", "\x00\x00", "\x00\x01", "\x00\xff", "\x01", "\xff", "\xff\xff", "\xff\x00",
	"a/", "a/b", "//x", "https://e", strings.Repeat("\x00", 1024), strings.Repeat("\xff", 1024), strings.Repeat("k", 1024), strings.Repeat("k", 1023) + "\x00",
}

func checkPair(t *testing.T, a, b string) {
	t.Helper()
	ea, eb := appendEscaped([]byte("head"), a), appendEscaped([]byte("head"), []byte(b))
	if got, want := bytes.Compare(ea, eb), strings.Compare(a, b); got != want {
		t.Fatalf("order of %q and %q: %d, want %d", a, b, got, want)
	}
	if a != b && bytes.HasPrefix(ea, eb) {
		t.Fatalf("escaped %q begins with escaped %q", a, b)
	}
	// Whatever follows, the order of different keys stays.
	if sa, sb := append(ea, "\xff\xff"...), append(eb, "\x00"...); a < b && bytes.Compare(sa, sb) >= 0 {
		t.Fatalf("a suffix turns the order of %q and %q", a, b)
	}
	key, rest, ok := cutEscaped(append(appendEscaped(nil, a), "suffix"...), nil)
	if !ok || string(key) != a || string(rest) != "suffix" {
		t.Fatalf("%q comes back as %q, rest %q, %v", a, key, rest, ok)
	}
}

func TestEscapedKeys(t *testing.T) {
	for _, a := range awkwardKeys {
		for _, b := range awkwardKeys {
			checkPair(t, a, b)
		}
	}
}

func FuzzEscapedKeys(f *testing.F) {
	for i, a := range awkwardKeys {
		f.Add(a, awkwardKeys[len(awkwardKeys)-1-i])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		checkPair(t, a, b)
		// What is no escaped key is refused, and what is accepted is canonical.
		if key, rest, ok := cutEscaped([]byte(a), nil); ok {
			if back := append(appendEscaped(nil, key), rest...); string(back) != a {
				t.Fatalf("%q is read as %q but written as %q", a, key, back)
			}
		}
	})
}

// Every row of a key in the bounds lies in a span, every other outside of all, and the spans of neighbours don't overlap.
func TestSpans(t *testing.T) {
	places := []*metapb.PosPB{nil}
	for _, k := range awkwardKeys {
		for _, b := range []uint64{1, 2, 1<<64 - 1} {
			places = append(places, &metapb.PosPB{Bucket: b, Key: []byte(k)})
		}
	}
	check := func(d *metapb.RangeDescriptor) {
		bd := boundsOf(d)
		for _, p := range places[1:] {
			in := contains(&bd, p.Bucket, p.Key)
			for _, kind := range kindsInBounds {
				raws := [][]byte{appendRaw(nil, kind, p.Bucket, p.Key)}
				if !rawKind(kind) {
					raws = [][]byte{
						appendSeqRow(nil, kind, p.Bucket, p.Key, 0),
						appendUploadRow(nil, kind, p.Bucket, p.Key, 1<<64-1, 1<<32-1),
						appendRow(nil, kind, p.Bucket, p.Key),
					}
				}
				span := bd.span(kind)
				for _, raw := range raws {
					if got := bytes.Compare(raw, span.Start) >= 0 && bytes.Compare(raw, span.End) < 0; got != in {
						t.Fatalf("bounds %v: row %q in span [%q, %q): %v, in bounds: %v", d, raw, span.Start, span.End, got, in)
					}
				}
			}
		}
	}
	for _, start := range places {
		check(&metapb.RangeDescriptor{Start: start})
		check(&metapb.RangeDescriptor{End: start})
	}
	check(&metapb.RangeDescriptor{Start: places[5], End: places[20]})
}

func TestPrefixEnd(t *testing.T) {
	for _, c := range [][2]string{{"a", "b"}, {"a\xff", "b"}, {"\xff\xff", ""}, {"", ""}, {"a\x00", "a\x01"}} {
		if got := string(prefixEnd([]byte(c[0]))); got != c[1] {
			t.Errorf("prefixEnd(%q) = %q, want %q", c[0], got, c[1])
		}
	}
}
