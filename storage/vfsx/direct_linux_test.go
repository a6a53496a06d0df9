package vfsx

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// TestLarge appends writes of all sizes, those past the page cache among
// them, and reads each and the whole through the cache.
func TestLarge(t *testing.T) {
	fs := OS()
	f, err := fs.CreateFile(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	seed := [32]byte{1}
	source := rand.NewChaCha8(seed)
	var want []byte
	for i := range 60 {
		sizes := []int{1, 4096, 100_000, directMin, directPiece, 3*directPiece + 17}
		n := 1 + rng.IntN(sizes[rng.IntN(len(sizes))])
		if i < 2 {
			n = 2*directPiece + i*3 // one that begins on a block, one that does not
		}
		p := make([]byte, n)
		_, _ = source.Read(p)
		var bufs [][]byte
		for rest := p; len(rest) > 0; {
			c := min(len(rest), rng.IntN(1+n/3)) // an empty one now and then
			if rng.IntN(3) == 0 {
				c = len(rest)
			}
			bufs = append(bufs, rest[:c])
			rest = rest[c:]
		}
		off := len(want)
		if off > 0 && rng.IntN(4) == 0 {
			off -= rng.IntN(min(off, 10_000)) // over what is there
		}
		written, err := f.WriteV(int64(off), bufs)
		if err != nil || written != int64(n) {
			t.Fatalf("write %d of %d bytes: %d, %v", i, n, written, err)
		}
		want = append(want[:off], append(p, want[min(len(want), off+n):]...)...)
		got := make([]byte, n)
		if _, err := f.ReadAt(got, int64(off)); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("write %d of %d bytes at %d is not read back: %v", i, n, off, err)
		}
		if i%10 == 0 {
			if err := f.SyncData(); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the file is not what was written: %v", err)
	}
}
