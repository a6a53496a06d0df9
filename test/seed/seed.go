// Package seed gives tests that draw at random the seeds to draw from.
package seed

import (
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Variable names the seed of all tests: a number from 1 to 2^32-1, or "random" for another
// one in each run. Without it a test has its own, always the same.
const Variable = "CAIRN_SEED"

// Of is the seed of the running test: it is logged, never 0, and below 2^32, so
// that a caller may add small numbers in the upper half.
func Of(t testing.TB) uint64 {
	t.Helper()
	s, err := choose(os.Getenv(Variable), t.Name())
	if err != nil {
		t.Fatalf("%s: %v", Variable, err)
	}
	t.Logf("repeat with %s=%d", Variable, s)
	return s
}

func choose(value, name string) (uint64, error) {
	switch value {
	case "":
		h := fnv.New32a()
		h.Write([]byte(name))
		return uint64(h.Sum32()) | 1, nil
	case "random":
		return uint64(rand.Uint32()) | 1, nil
	}
	s, err := strconv.ParseUint(value, 10, 32)
	if err == nil && s == 0 {
		err = strconv.ErrRange
	}
	return s, err
}
