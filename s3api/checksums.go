package s3api

import (
	"encoding/base64"
	"strconv"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/s3err"
	"cairn/storage"
	"cairn/storage/checksum"
)

// algorithm is how S3's protocol names a checksum algorithm (checksum.Name has the name itself).
type algorithm struct {
	header    string // of responses
	canonical string // the same as net/http has it in requests
	element   string // in XML
	size      int    // of a value, in bytes
}

// algorithms must not be changed; it is indexed by metapb.ChecksumAlgorithm.
var algorithms = [...]algorithm{
	metapb.ChecksumAlgorithm_CRC32:        {"x-amz-checksum-crc32", "X-Amz-Checksum-Crc32", "ChecksumCRC32", 4},
	metapb.ChecksumAlgorithm_CRC32C:       {"x-amz-checksum-crc32c", "X-Amz-Checksum-Crc32c", "ChecksumCRC32C", 4},
	metapb.ChecksumAlgorithm_CRC64NVME:    {"x-amz-checksum-crc64nvme", "X-Amz-Checksum-Crc64nvme", "ChecksumCRC64NVME", 8},
	metapb.ChecksumAlgorithm_SHA1:         {"x-amz-checksum-sha1", "X-Amz-Checksum-Sha1", "ChecksumSHA1", 20},
	metapb.ChecksumAlgorithm_SHA256:       {"x-amz-checksum-sha256", "X-Amz-Checksum-Sha256", "ChecksumSHA256", 32},
	metapb.ChecksumAlgorithm_SHA512:       {"x-amz-checksum-sha512", "X-Amz-Checksum-Sha512", "ChecksumSHA512", 64},
	metapb.ChecksumAlgorithm_CHECKSUM_MD5: {"x-amz-checksum-md5", "X-Amz-Checksum-Md5", "ChecksumMD5", 16},
	metapb.ChecksumAlgorithm_XXHASH64:     {"x-amz-checksum-xxhash64", "X-Amz-Checksum-Xxhash64", "ChecksumXXHASH64", 8},
	metapb.ChecksumAlgorithm_XXHASH3:      {"x-amz-checksum-xxhash3", "X-Amz-Checksum-Xxhash3", "ChecksumXXHASH3", 8},
	metapb.ChecksumAlgorithm_XXHASH128:    {"x-amz-checksum-xxhash128", "X-Amz-Checksum-Xxhash128", "ChecksumXXHASH128", 16},
}

// algorithmOf is how the protocol names a; empty for none and for one of a later release.
func algorithmOf(a metapb.ChecksumAlgorithm) algorithm {
	if a < 0 || int(a) >= len(algorithms) {
		return algorithm{}
	}
	return algorithms[a]
}

// checksumOfHeader is the algorithm of an X-Amz-Checksum-* header that carries a
// value, or NONE for one that cairn does not compute.
func checksumOfHeader(canonical string) metapb.ChecksumAlgorithm {
	for a := range algorithms {
		if algorithms[a].canonical == canonical && canonical != "" {
			return metapb.ChecksumAlgorithm(a)
		}
	}
	return metapb.ChecksumAlgorithm_CHECKSUM_NONE
}

// checksumByName is the algorithm S3 calls by this name, or NONE.
func checksumByName(name string) metapb.ChecksumAlgorithm {
	for a := metapb.ChecksumAlgorithm(1); int(a) < len(algorithms); a++ {
		if strings.EqualFold(checksum.Name(a), name) {
			return a
		}
	}
	return metapb.ChecksumAlgorithm_CHECKSUM_NONE
}

// unsupportedAlgorithm refuses a name that checksumByName does not know.
func unsupportedAlgorithm() error {
	return s3err.New(s3err.InvalidRequest, "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "+
		"[CRC32, CRC32C, CRC64NVME, MD5, SHA1, SHA256, SHA512, XXHASH64, XXHASH3, XXHASH128]")
}

// checksumHeader is the response header of an algorithm.
func checksumHeader(a metapb.ChecksumAlgorithm) string { return algorithmOf(a).header }

// checksumElement is the XML element of an algorithm.
func checksumElement(a metapb.ChecksumAlgorithm) string { return algorithmOf(a).element }

// checksumText is a checksum as S3 writes it: base64, and -N behind a checksum of N parts' checksums.
func checksumText(c *metapb.Checksum, parts int) string {
	s := base64.StdEncoding.EncodeToString(c.Value)
	if c.Composite && parts > 0 {
		s += "-" + strconv.Itoa(parts)
	}
	return s
}

func checksumType(c *metapb.Checksum) string {
	if c.Composite {
		return "COMPOSITE"
	}
	return "FULL_OBJECT"
}

// parseChecksum reads a checksum value; a composite one may end with -N.
func parseChecksum(a metapb.ChecksumAlgorithm, s string, composite bool) (*metapb.Checksum, bool) {
	c := &metapb.Checksum{Algorithm: a}
	if composite {
		if i := strings.IndexByte(s, '-'); i >= 0 {
			if n, err := strconv.Atoi(s[i+1:]); err != nil || n < 1 || n > storage.PartNumberMax {
				return nil, false
			}
			s, c.Composite = s[:i], true
		}
	}
	v, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(v) != algorithmOf(a).size {
		return nil, false
	}
	c.Value = v
	return c, true
}
