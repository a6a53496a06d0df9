package checksum

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"cairn/proto/metapb"
)

var linear = []metapb.ChecksumAlgorithm{metapb.ChecksumAlgorithm_CRC32, metapb.ChecksumAlgorithm_CRC32C, metapb.ChecksumAlgorithm_CRC64NVME}

// Joining the checksums of any cut of a string gives the checksum of the string.
func TestJoinFullObject(t *testing.T) {
	const seed = 7
	rnd := rand.New(rand.NewPCG(seed, seed))
	for _, alg := range linear {
		for round := range 50 {
			data := make([]byte, 1+rnd.IntN(70000))
			for i := range data {
				data[i] = byte(rnd.Uint32())
			}
			j, err := NewJoiner(alg, true)
			if err != nil {
				t.Fatal(err)
			}
			for rest := data; len(rest) > 0; {
				n := 1 + rnd.IntN(len(rest))
				h := New(alg)
				h.Write(rest[:n])
				if err := j.Add(h.Sum(nil), int64(n)); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			h := New(alg)
			h.Write(data)
			if got := j.Checksum(); got.Composite || !bytes.Equal(got.Value, h.Sum(nil)) {
				t.Fatalf("seed %d round %d %v: joined %x, want %x", seed, round, alg, got.Value, h.Sum(nil))
			}
		}
	}
}

func TestJoinComposite(t *testing.T) {
	j, err := NewJoiner(metapb.ChecksumAlgorithm_SHA256, false)
	if err != nil {
		t.Fatal(err)
	}
	want := New(metapb.ChecksumAlgorithm_SHA256)
	for _, part := range []string{"a", "bc"} {
		h := New(metapb.ChecksumAlgorithm_SHA256)
		h.Write([]byte(part))
		want.Write(h.Sum(nil))
		if err := j.Add(h.Sum(nil), int64(len(part))); err != nil {
			t.Fatal(err)
		}
	}
	if got := j.Checksum(); !got.Composite || !bytes.Equal(got.Value, want.Sum(nil)) {
		t.Fatalf("composite %x, want %x", got.Value, want.Sum(nil))
	}
}

func TestFullObjectOnlyForCRCs(t *testing.T) {
	if _, err := NewJoiner(metapb.ChecksumAlgorithm_SHA1, true); err == nil {
		t.Fatal("a full-object SHA-1 cannot be joined from parts")
	}
}

// What every algorithm gives for known strings, computed by other tools (md5sum, sha512sum, xxhsum -H1, -H3, -H2).
func TestKnownAnswers(t *testing.T) {
	long := make([]byte, 1_000_003) // longer than all blocks and buffers inside the hashes
	for i := range long {
		long[i] = byte(i * i >> 3)
	}
	for alg, want := range map[metapb.ChecksumAlgorithm][3]string{ // of nothing, hello, long
		metapb.ChecksumAlgorithm_CHECKSUM_MD5: {"d41d8cd98f00b204e9800998ecf8427e", "5d41402abc4b2a76b9719d911017c592", "9d5272258e51e6c398f40c2e0f3585c6"},
		metapb.ChecksumAlgorithm_XXHASH64:     {"ef46db3751d8e999", "26c7827d889f6da3", "b6053a93ba037fb1"},
		metapb.ChecksumAlgorithm_XXHASH3:      {"2d06800538d394c2", "9555e8555c62dcfd", "c45f20e509a00b0c"},
		metapb.ChecksumAlgorithm_XXHASH128:    {"99aa06d3014798d86001c324468d497f", "b5e9c1ad071b3e7fc779cfaa5e523818", "bbd45a94b233f922c45f20e509a00b0c"},
		metapb.ChecksumAlgorithm_SHA512: {"cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
			"9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca72323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043",
			"f6f3e863374df4701e8babe1092e3377134e980f91632a62d81cf77290f2ae1a9e87f73c6532cd98c457f994073dc0e070406bc2024dc58b5f5f327b10651f80"},
	} {
		for i, data := range [][]byte{nil, []byte("hello"), long} {
			for _, step := range []int{len(data) + 1, 997, 65536} { // whatever the pieces
				h := New(alg)
				for off := 0; off < len(data); off += step {
					h.Write(data[off:min(off+step, len(data))])
				}
				if got := hex.EncodeToString(h.Sum(nil)); got != want[i] || h.Size() != len(want[i])/2 {
					t.Errorf("%s of text %d in pieces of %d: %s, want %s", Name(alg), i, step, got, want[i])
				}
			}
		}
	}
	if Name(metapb.ChecksumAlgorithm_CHECKSUM_MD5) != "MD5" || Name(metapb.ChecksumAlgorithm_XXHASH3) != "XXHASH3" {
		t.Error("names are not S3's")
	}
	if New(metapb.ChecksumAlgorithm_CHECKSUM_NONE) != nil || New(99) != nil {
		t.Error("a hash for no algorithm")
	}
}
