package checksum

import (
	"crypto/md5"
	"math/rand/v2"
	"sync"
	"testing"
)

// TestMD5s hashes bodies of all sizes at once, leaves some halfway, and uses the hashers again.
func TestMD5s(t *testing.T) {
	var m MD5s
	var wg sync.WaitGroup
	var open []*MD5 // so that lanes are used whatever the scheduler does
	for range lanesFrom {
		open = append(open, m.New(laneBytesMin))
	}
	for i := range 2 * lanesFrom {
		rng := rand.New(rand.NewPCG(uint64(i), 1))
		seed := [32]byte{byte(i)}
		wg.Go(func() {
			for range 8 {
				body := make([]byte, rng.IntN(2*laneBytesMin))
				_, _ = rand.NewChaCha8(seed).Read(body)
				h := m.New(int64(len(body)))
				half := rng.IntN(4) == 0
				for off := 0; off < len(body); {
					n := min(len(body)-off, 1+rng.IntN(300_000))
					_, _ = h.Write(body[off : off+n])
					if off += n; half {
						break
					}
				}
				if got, want := [md5.Size]byte(h.Sum(nil)), md5.Sum(body); !half && got != want {
					t.Errorf("%d bytes: %x, want %x", len(body), got, want)
				}
				h.Release()
				h.Release() // does nothing
			}
		})
	}
	wg.Wait()
	for _, h := range open {
		h.Release()
	}
	if m.large != 0 || len(m.free) != m.made {
		t.Errorf("%d large, %d of %d hashers free", m.large, len(m.free), m.made)
	}
	if m.made == 0 {
		t.Error("no hash was in lanes")
	}
	m.Close()
	h := m.New(laneBytesMin)
	defer h.Release()
	if h.lane != nil {
		t.Error("a hash in lanes after Close")
	}
}
