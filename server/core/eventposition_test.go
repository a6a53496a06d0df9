package core

import (
	"maps"
	"math"
	"strings"
	"testing"

	"cairn/cluster"
	"cairn/storage/errs"
)

func TestPosition(t *testing.T) {
	for _, p := range []Position{{}, {2: 0}, {2: 5, 3: math.MaxUint64, 900: 1}, {math.MaxUint64: 7}} {
		got, err := ParsePosition(p.String())
		if err != nil || !maps.Equal(got, p) {
			t.Errorf("%v: %v %v", p, got, err)
		}
	}
	whole := Position{2: 5, 17: 1 << 40}.String()
	for _, text := range []string{"", "x", "now", whole[:len(whole)-1], whole + "A", "B" + whole[1:], strings.Repeat("A", positionMax+1)} {
		if _, err := ParsePosition(text); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	many := Position{}
	for g := range 10000 {
		many[cluster.GroupID(g+2)] = 1 << 50
	}
	if text := many.String(); len(text) > positionMax/4 {
		t.Errorf("10,000 ranges take %d bytes", len(text))
	}
}

func FuzzPosition(f *testing.F) {
	f.Add(Position{2: 5, 17: 1 << 40}.String())
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePosition(text)
		if err != nil {
			return
		}
		if again, err := ParsePosition(p.String()); err != nil || !maps.Equal(p, again) {
			t.Errorf("%v, again %v: %v", p, again, err)
		}
	})
}
