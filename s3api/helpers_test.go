package s3api

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/checksum"
)

func hmac256(key []byte, data string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(data))
	return m.Sum(nil)
}

func sha256Hex(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func md5Of(b []byte) string {
	sum := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// plainBody is a Body without promises.
type plainBody struct {
	io.Reader
	data string
}

func (b plainBody) Size() int64 { return int64(len(b.data)) }
func (b plainBody) Checksums() []*metapb.Checksum {
	h := checksum.New(metapb.ChecksumAlgorithm_CRC64NVME)
	h.Write([]byte(b.data))
	return []*metapb.Checksum{{Algorithm: metapb.ChecksumAlgorithm_CRC64NVME, Value: h.Sum(nil)}}
}

func (plainBody) Algorithm() metapb.ChecksumAlgorithm { return metapb.ChecksumAlgorithm_CRC64NVME }

func putInput(bucket, key, data string) *objects.PutInput {
	return &objects.PutInput{Bucket: bucket, Key: storage.Key(key), Body: plainBody{strings.NewReader(data), data}, Attributes: &metapb.Attributes{}}
}
