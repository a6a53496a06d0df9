package compress

import (
	"io"
	"math/rand/v2"
	"testing"

	"cairn/storage"
)

// BenchmarkWrite is what compressing costs a body of one chunk.
func BenchmarkWrite(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for name, body := range map[string][]byte{"text": text(rnd, 16<<20), "noise": noise(rnd, 16<<20), "small": text(rnd, 8<<10)} {
		b.Run(name, func(b *testing.B) {
			f := newFake()
			p := newPlane(b, f)
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, _, err := write(p, storage.Glacier, body); err != nil {
					b.Fatal(err)
				}
				clear(f.chunks)
			}
		})
	}
}

// BenchmarkRead is what decoding costs.
func BenchmarkRead(b *testing.B) {
	p := newPlane(b, newFake())
	body := text(rand.New(rand.NewPCG(1, 2)), 16<<20)
	refs, _, err := write(p, storage.Glacier, body)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if err := p.Read(b.Context(), io.Discard, storage.Owner{}, refs, 0, int64(len(body))); err != nil {
			b.Fatal(err)
		}
	}
}
