// Package checksum makes the hashes behind S3's object checksums and joins the
// checksums of parts into that of the whole object.
package checksum

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha512"
	"encoding/binary"
	"hash"
	"hash/crc32"

	"github.com/cespare/xxhash/v2"
	"github.com/minio/crc64nvme"
	"github.com/minio/sha256-simd"
	"github.com/zeebo/xxh3"

	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// New makes the hash of an algorithm; its Sum is the value S3 encodes in base64
// (CRCs and XXHASHes big endian, these with seed 0). nil for an algorithm that cairn does not compute.
func New(a metapb.ChecksumAlgorithm) hash.Hash {
	switch a {
	case metapb.ChecksumAlgorithm_CRC32:
		return crc32.NewIEEE()
	case metapb.ChecksumAlgorithm_CRC32C:
		return crc32.New(crc32.MakeTable(crc32.Castagnoli))
	case metapb.ChecksumAlgorithm_CRC64NVME:
		return crc64nvme.New()
	case metapb.ChecksumAlgorithm_SHA1:
		return sha1.New()
	case metapb.ChecksumAlgorithm_SHA256:
		return sha256.New()
	case metapb.ChecksumAlgorithm_SHA512:
		return sha512.New()
	case metapb.ChecksumAlgorithm_CHECKSUM_MD5:
		return md5.New()
	case metapb.ChecksumAlgorithm_XXHASH64:
		return xxhash.New()
	case metapb.ChecksumAlgorithm_XXHASH3:
		return xxh3.New()
	case metapb.ChecksumAlgorithm_XXHASH128:
		return xxh3.New128()
	}
	return nil
}

// Name is S3's name of an algorithm.
func Name(a metapb.ChecksumAlgorithm) string {
	if a == metapb.ChecksumAlgorithm_CHECKSUM_MD5 {
		return "MD5" // a name of its own in the enum, where values share one scope
	}
	return a.String()
}

// Linear reports whether the checksum of a whole can be had from those of its
// parts: true for the CRCs, which S3 therefore offers as FULL_OBJECT for multipart uploads
// (CRC64NVME as nothing else); all others are COMPOSITE there.
func Linear(a metapb.ChecksumAlgorithm) bool {
	return a == metapb.ChecksumAlgorithm_CRC32 || a == metapb.ChecksumAlgorithm_CRC32C || a == metapb.ChecksumAlgorithm_CRC64NVME
}

// Joiner builds the checksum of a multipart object from those of its parts in order.
type Joiner struct {
	alg       metapb.ChecksumAlgorithm
	composite hash.Hash // of the parts' checksums; nil for a full-object checksum
	crc       uint64
	started   bool
}

// NewJoiner makes a Joiner for a composite checksum or, with full, for the
// checksum of the whole object (CRCs only: InvalidRequest otherwise).
func NewJoiner(a metapb.ChecksumAlgorithm, full bool) (*Joiner, error) {
	if full {
		if !Linear(a) {
			return nil, errs.Newf(errs.InvalidRequest, "checksum", Name(a), "the FULL_OBJECT type exists only for CRC algorithms")
		}
		return &Joiner{alg: a}, nil
	}
	h := New(a)
	if h == nil {
		return nil, errs.Newf(errs.NotImplemented, "checksum", Name(a), "this checksum algorithm is not computed")
	}
	return &Joiner{alg: a, composite: h}, nil
}

// Add appends a part of size bytes with the given checksum value.
func (j *Joiner) Add(value []byte, size int64) error {
	if j.composite != nil {
		j.composite.Write(value)
		return nil
	}
	var crc uint64
	switch len(value) {
	case 4:
		crc = uint64(binary.BigEndian.Uint32(value))
	case 8:
		crc = binary.BigEndian.Uint64(value)
	default:
		return errs.New(errs.InvalidPart, "checksum", Name(j.alg), "a part's checksum has the wrong length")
	}
	if !j.started {
		j.crc, j.started = crc, true
		return nil
	}
	j.crc = combine(polynomial(j.alg), j.crc, crc, size)
	return nil
}

// Checksum is the result over all parts added.
func (j *Joiner) Checksum() *metapb.Checksum {
	c := &metapb.Checksum{Algorithm: j.alg}
	switch {
	case j.composite != nil:
		c.Value, c.Composite = j.composite.Sum(nil), true
	case j.alg == metapb.ChecksumAlgorithm_CRC64NVME:
		c.Value = binary.BigEndian.AppendUint64(nil, j.crc)
	default:
		c.Value = binary.BigEndian.AppendUint32(nil, uint32(j.crc))
	}
	return c
}

// polynomial is the algorithm's, bit-reversed, in the low bits.
func polynomial(a metapb.ChecksumAlgorithm) uint64 {
	switch a {
	case metapb.ChecksumAlgorithm_CRC32:
		return crc32.IEEE
	case metapb.ChecksumAlgorithm_CRC32C:
		return crc32.Castagnoli
	}
	return 0x9a6c9329ac4bc9b5 // NVM Express NVM command set, reversed
}

// combine is the CRC of two strings joined, from the CRC of each and the length
// of the second: appending n zero bytes multiplies the first CRC by x^(8n)
// modulo the polynomial (Adler's observation, used by zlib's crc32_combine).
// Works for CRCs whose initial value and final xor are all ones, as S3's are.
func combine(poly, first, second uint64, secondLen int64) uint64 {
	return mulmod(poly, xpow8n(poly, secondLen), first) ^ second
}

// top is the bit that stands for x^0 in a reversed polynomial of the same degree as poly.
func top(poly uint64) uint64 {
	if poly > 0xffffffff {
		return 1 << 63
	}
	return 1 << 31
}

// mulmod multiplies two reversed polynomials modulo poly.
func mulmod(poly, a, b uint64) uint64 {
	var p uint64
	for m := top(poly); a != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
			a &^= m
		}
		if b&1 != 0 {
			b = b>>1 ^ poly
		} else {
			b >>= 1
		}
	}
	return p
}

// xpow8n is x^(8n) modulo poly, by squaring.
func xpow8n(poly uint64, n int64) uint64 {
	result := top(poly)    // x^0
	base := top(poly) >> 8 // x^8
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			result = mulmod(poly, result, base)
		}
		base = mulmod(poly, base, base)
	}
	return result
}
