package erasure

import (
	"bytes"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"

	"cairn/storage"
	"cairn/storage/errs"
)

func stripe(t testing.TB, c *Codec, n int, rng *rand.Rand) (data []byte, shards [][]byte) {
	t.Helper()
	buf := make([]byte, c.BufferLen(n))
	for i := range buf {
		buf[i] = byte(rng.Uint32()) // also what must be overwritten by padding and parity
	}
	data = bytes.Clone(buf[:n])
	shards, err := c.Encode(buf, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	return data, shards
}

// Every set of at most m lost shards, over every scheme in reach of the planner, comes back.
func TestEveryLossOfUpToMShardsIsReconstructed(t *testing.T) {
	var codecs Codecs
	rng := rand.New(rand.NewPCG(1, 2))
	for _, s := range []storage.Scheme{{K: 1}, {K: 1, M: 1}, {K: 1, M: 2}, {K: 1, M: 3}, {K: 2, M: 1}, {K: 2, M: 2}, {K: 3, M: 3}, {K: 4, M: 2}, {K: 5, M: 4}, {K: 6, M: 2}} {
		t.Run(s.String(), func(t *testing.T) {
			c, err := codecs.For(s)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{1, 2, int(s.K), int(s.K) + 1, 1000, 4097} {
				data, shards := stripe(t, c, n, rng)
				joined := bytes.Join(shards[:s.K], nil)
				if !bytes.Equal(joined[:n], data) || len(bytes.Trim(joined[n:], "\x00")) != 0 {
					t.Fatalf("%d bytes: data shards are not the data and zeros", n)
				}
				for lost := uint64(0); lost < 1<<s.Shards(); lost++ {
					if bits.OnesCount64(lost) > int(s.M) {
						continue
					}
					checkReconstruct(t, c, shards, lost)
				}
			}
		})
	}
}

func checkReconstruct(t *testing.T, c *Codec, shards [][]byte, lost uint64) {
	t.Helper()
	got := make([][]byte, len(shards))
	lo, hi := len(shards[0])/3, len(shards[0]) // columns only
	for i := range shards {
		if lost&(1<<i) == 0 {
			got[i] = shards[i][lo:hi]
		}
	}
	if err := c.Reconstruct(got, lost); err != nil {
		t.Fatalf("lost %b: %v", lost, err)
	}
	for i := range shards {
		if !bytes.Equal(got[i], shards[i][lo:hi]) {
			t.Fatalf("lost %b: shard %d differs", lost, i)
		}
	}
}

func TestTooFewShardsAreRefused(t *testing.T) {
	var codecs Codecs
	c, _ := codecs.For(storage.Scheme{K: 3, M: 2})
	_, shards := stripe(t, c, 300, rand.New(rand.NewPCG(1, 2)))
	shards[0], shards[2], shards[4] = nil, nil, nil
	if err := c.Reconstruct(shards, 1); !errs.Is(err, errs.Unavailable) {
		t.Fatalf("got %v", err)
	}
}

func TestACopyIsTheSameMemory(t *testing.T) {
	var codecs Codecs
	c, _ := codecs.For(storage.Scheme{K: 1, M: 2})
	if c.BufferLen(100) != 100 {
		t.Fatalf("copies take %d bytes of buffer", c.BufferLen(100))
	}
	_, shards := stripe(t, c, 100, rand.New(rand.NewPCG(1, 2)))
	for i := range shards {
		if &shards[i][0] != &shards[0][0] {
			t.Fatalf("shard %d is a copy in memory", i)
		}
	}
}

func TestReconstructUsesTheMemoryGiven(t *testing.T) {
	var codecs Codecs
	for _, s := range []storage.Scheme{{K: 1, M: 1}, {K: 2, M: 1}} {
		c, _ := codecs.For(s)
		_, shards := stripe(t, c, 64, rand.New(rand.NewPCG(1, 2)))
		mem := make([]byte, len(shards[0]))
		shards[0] = mem[:0]
		if err := c.Reconstruct(shards, 1); err != nil || &shards[0][0] != &mem[0] {
			t.Fatalf("%v: reconstructed elsewhere (%v)", s, err)
		}
	}
}

func TestBadSchemesAreRefused(t *testing.T) {
	var codecs Codecs
	for _, s := range []storage.Scheme{{}, {M: 2}, {K: 30, M: 10}} {
		if _, err := codecs.For(s); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("%v: got %v", s, err)
		}
	}
	a, _ := codecs.For(storage.Scheme{K: 2, M: 1})
	if b, _ := codecs.For(storage.Scheme{K: 2, M: 1}); a != b {
		t.Error("codec built twice")
	}
}

func BenchmarkEncode(b *testing.B) {
	var codecs Codecs
	for _, s := range []storage.Scheme{{K: 1, M: 2}, {K: 3, M: 3}, {K: 4, M: 2}} {
		b.Run(fmt.Sprint(s), func(b *testing.B) {
			c, _ := codecs.For(s)
			buf := make([]byte, c.BufferLen(storage.StripeBytes))
			shards := make([][]byte, 0, s.Shards())
			b.SetBytes(storage.StripeBytes)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Encode(buf, storage.StripeBytes, shards); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
