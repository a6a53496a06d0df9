package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Size is a number of bytes, written like 512KiB, 64MiB, 2GiB, 1.5TiB, or a plain number.
type Size int64

// units from large to small; the binary ones come first, so that String uses them.
func units() []struct {
	name string
	size float64
} {
	return []struct {
		name string
		size float64
	}{
		{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
		{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
	}
}

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(text []byte) error {
	in := strings.TrimSpace(string(text))
	number, factor := in, 1.0
	for _, u := range units() {
		if len(in) > len(u.name) && strings.EqualFold(in[len(in)-len(u.name):], u.name) {
			number, factor = strings.TrimSpace(in[:len(in)-len(u.name)]), u.size
			break
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n != n || n*factor >= 1<<62 || n*factor <= -(1<<62) {
		return fmt.Errorf("size %q: want a number with a unit, as in 64MiB or 2GiB", in)
	}
	*s = Size(n * factor)
	return nil
}

// String writes the size with the largest binary unit that divides it.
func (s Size) String() string {
	for _, u := range units()[:4] {
		if n := Size(u.size); s != 0 && s%n == 0 {
			return strconv.FormatInt(int64(s/n), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
