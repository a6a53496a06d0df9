package s3api

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/minio/sha256-simd"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/sigv4"
	"cairn/storage"
	"cairn/storage/checksum"
	"cairn/storage/errs"
)

// xmlBodyMax bounds one XML body: 1000 keys of 1024 bytes, every byte escaped, fit.
const xmlBodyMax = 8 << 20

var _ objects.Body = (*body)(nil)

// body is a request's body: it decodes aws-chunked, and verifies all that the
// client promised about it while the bytes pass, in the caller's buffer. See
// objects.Body.
//
// ContentMD5 lets a store that needs the MD5 for the ETag take it from the
// client's Content-MD5, which is verified anyway, instead of computing it twice.
type body struct {
	src     io.Reader
	chunks  *sigv4.ChunkReader // src, if the body is aws-chunked
	size    int64
	left    int64
	ended   bool   // the source has answered io.EOF: nothing of the request is left on the connection
	failed  error  // what Read answered instead of io.EOF
	done    error  // sticky answer of Read
	trailer string // lower-case name of the checksum's trailer, or ""
	form    bool   // the source is a form's file: it ends where it ends, and size is at most how long it is

	md5     hash.Hash
	wantMD5 []byte
	sha     hash.Hash // of x-amz-content-sha256; may be the same as sum
	wantSHA []byte
	sum     hash.Hash // the object's checksum
	alg     metapb.ChecksumAlgorithm
	want    []byte // as a header announced it
	sums    []*metapb.Checksum

	idle      time.Duration
	armed     time.Time // when the read deadline was last moved
	continues bool      // the client waits for 100 Continue, which the first read of an HTTP/1 body writes
	rc        *http.ResponseController
}

// newBody is the request's body without what is said about it.
func (q *request) newBody() *body {
	b := &body{src: q.r.Body, idle: q.h.cfg.IdleTimeout, rc: http.NewResponseController(q.w)}
	if q.r.Body == nil {
		b.src = http.NoBody
	}
	b.continues = q.r.ProtoMajor == 1 && q.hdr("Expect") != ""
	return b
}

// openBody prepares the request's body; the error says what its headers promise wrongly.
// With dflt the checksum S3 gives objects by default is computed if the client sends none.
func (q *request) openBody(sizeMax int64, dflt bool) (*body, error) {
	b := q.newBody()
	b.size = q.r.ContentLength
	if q.payload.Chunked() {
		n, err := strconv.ParseInt(q.hdr("X-Amz-Decoded-Content-Length"), 10, 64)
		if err != nil || n < 0 {
			return nil, s3err.New(s3err.MissingContentLength, "You must provide the x-amz-decoded-content-length HTTP header.")
		}
		b.size = n
		b.chunks = sigv4.NewChunkReader(b.src, q.payload, q.seed)
		b.src = b.chunks
	} else if q.hdr("X-Amz-Decoded-Content-Length") != "" {
		// The body is framed, but nothing that was signed says how: its frames would be stored with it.
		return nil, s3err.New(s3err.InvalidRequest, "x-amz-decoded-content-length needs an x-amz-content-sha256 that begins with STREAMING.")
	}
	if b.size < 0 {
		return nil, s3err.New(s3err.MissingContentLength, "")
	}
	if b.size > sizeMax {
		return nil, s3err.New(s3err.EntityTooLarge, "", s3err.Field{Name: "ProposedSize", Value: itoa(b.size)}, s3err.Field{Name: "MaxSizeAllowed", Value: itoa(sizeMax)})
	}
	b.left = b.size
	if err := b.promises(q, dflt); err != nil {
		return nil, err
	}
	q.body = b
	return b, nil
}

// promises reads what the headers promise about the body.
func (b *body) promises(q *request, dflt bool) error {
	if v, ok := q.r.Header["Content-Md5"]; ok {
		sum, err := base64.StdEncoding.DecodeString(v[0])
		if err != nil || len(sum) != md5.Size {
			return s3err.New(s3err.InvalidDigest, "", s3err.Field{Name: "Content-MD5", Value: clip(v[0])})
		}
		b.md5, b.wantMD5 = md5.New(), sum
	}
	if err := b.checksumHeaders(q); err != nil {
		return err
	}
	if b.alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE && dflt {
		b.alg = metapb.ChecksumAlgorithm_CRC64NVME
	}
	if b.alg != metapb.ChecksumAlgorithm_CHECKSUM_NONE {
		b.sum = checksum.New(b.alg)
	}
	if q.payload == sigv4.PayloadHash {
		sum, err := hex.DecodeString(q.sha256)
		if err != nil || len(sum) != sha256.Size {
			return s3err.New(s3err.InvalidArgument, "x-amz-content-sha256 is not a SHA-256.")
		}
		b.wantSHA = sum
		if b.alg == metapb.ChecksumAlgorithm_SHA256 {
			b.sha = b.sum // one pass serves both
		} else {
			b.sha = sha256.New()
		}
	}
	return nil
}

// checksumHeaders reads x-amz-checksum-*, x-amz-trailer and x-amz-sdk-checksum-algorithm.
func (b *body) checksumHeaders(q *request) error {
	for name, values := range q.r.Header {
		if !strings.HasPrefix(name, "X-Amz-Checksum-") {
			continue
		}
		alg := checksumOfHeader(name)
		if alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE {
			continue // -Algorithm, -Type, -Mode
		}
		if b.alg != metapb.ChecksumAlgorithm_CHECKSUM_NONE || len(values) > 1 {
			return s3err.New(s3err.InvalidRequest, "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		c, ok := parseChecksum(alg, values[0], false)
		if !ok {
			return s3err.New(s3err.BadDigest, "Value for "+strings.ToLower(name)+" header is invalid.")
		}
		b.alg, b.want = alg, c.Value
	}
	if err := b.trailerHeader(q); err != nil {
		return err
	}
	v := q.hdr("X-Amz-Sdk-Checksum-Algorithm")
	if v == "" {
		return nil
	}
	switch alg := checksumByName(v); {
	case alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE:
		return unsupportedAlgorithm()
	case b.alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE:
		return s3err.New(s3err.InvalidRequest, "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found.")
	case alg != b.alg:
		return s3err.New(s3err.InvalidRequest, "Value for x-amz-sdk-checksum-algorithm header is invalid.")
	}
	return nil
}

func (b *body) trailerHeader(q *request) error {
	v := strings.ToLower(strings.TrimSpace(strings.Join(q.r.Header["X-Amz-Trailer"], ",")))
	if v == "" {
		return nil
	}
	alg := checksumOfHeader(http.CanonicalHeaderKey(v))
	switch {
	case !q.payload.Trailer():
		return s3err.New(s3err.InvalidRequest, "x-amz-trailer needs an x-amz-content-sha256 that announces a trailer.")
	case alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE:
		return s3err.New(s3err.InvalidRequest, "The value specified in the x-amz-trailer header is not supported")
	case b.alg != metapb.ChecksumAlgorithm_CHECKSUM_NONE:
		return s3err.New(s3err.InvalidRequest, "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
	}
	b.alg, b.trailer = alg, v
	return nil
}

// Size is the decoded length in bytes.
func (b *body) Size() int64 { return b.size }

// Checksums are valid after Read answered io.EOF.
func (b *body) Checksums() []*metapb.Checksum { return b.sums }

// Algorithm is that of the checksum which Read computes.
func (b *body) Algorithm() metapb.ChecksumAlgorithm { return b.alg }

// ContentMD5 is the MD5 that the client announced, or nil. Once Read answered io.EOF it is the body's.
func (b *body) ContentMD5() []byte {
	if b.wantMD5 == nil && b.alg == metapb.ChecksumAlgorithm_CHECKSUM_MD5 && b.trailer == "" {
		return b.want
	}
	return b.wantMD5
}

// Read reads decoded bytes into p and hashes them there.
func (b *body) Read(p []byte) (int, error) {
	if b.done != nil {
		return 0, b.done
	}
	if b.left == 0 {
		return 0, b.stop(b.finish())
	}
	if len(p) == 0 {
		return 0, nil
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	b.arm()
	n, err := b.src.Read(p)
	b.hash(p[:n])
	b.left -= int64(n)
	switch {
	case err == nil:
	case err == io.EOF:
		b.ended = true
		if b.form {
			b.size, b.left = b.size-b.left, 0
		}
		if b.left > 0 {
			b.stop(b.refuse(s3err.New(s3err.IncompleteBody, "")))
		} else if n == 0 {
			return 0, b.stop(b.finish())
		}
	default:
		b.stop(b.translate(err))
	}
	if n == 0 {
		return 0, b.done
	}
	return n, nil
}

func (b *body) hash(p []byte) {
	if b.md5 != nil {
		b.md5.Write(p)
	}
	if b.sum != nil {
		b.sum.Write(p)
	}
	if b.sha != nil && b.sha != b.sum {
		b.sha.Write(p)
	}
}

// stop makes err the answer from now on.
func (b *body) stop(err error) error {
	b.done = err
	if err != io.EOF {
		b.failed = err
	}
	b.disarm()
	return err
}

// arm gives the client IdleTimeout from now to send something. Moving the deadline at every read would cost more than the read.
func (b *body) arm() {
	if now := time.Now(); now.Sub(b.armed) > b.idle/4 {
		if b.armed.IsZero() && b.continues {
			b.rc.SetWriteDeadline(now.Add(b.idle))
		}
		b.armed = now
		b.rc.SetReadDeadline(now.Add(b.idle)) // not every ResponseWriter has one
	}
}

// disarm takes the deadline away: it would otherwise fire while the operation still works.
func (b *body) disarm() {
	if !b.armed.IsZero() {
		b.rc.SetReadDeadline(time.Time{})
		b.armed = time.Time{}
	}
}

// refuse gives an answer a kind, so that it passes through the store. It must not
// wrap io.ErrUnexpectedEOF: io.ReadFull and its callers give that a meaning of their own.
func (b *body) refuse(e *s3err.Error) error { return s3err.Wrap("body", e) }

// translate turns an error of the source into a refusal.
func (b *body) translate(err error) error {
	var sig *sigv4.Error
	var refusal *s3err.Error
	switch {
	case errors.As(err, &sig):
		return b.refuse(signatureError(sig))
	case errors.As(err, &refusal):
		return b.refuse(refusal)
	case errors.Is(err, os.ErrDeadlineExceeded):
		// What may still come is not worth waiting for.
		return b.refuse(&s3err.Error{Code: s3err.RequestTimeout, Header: []s3err.Field{{Name: "Connection", Value: "close"}}})
	}
	return b.refuse(&s3err.Error{Code: s3err.IncompleteBody, Err: errors.New(err.Error())})
}

// finish sees the body's end and verifies what was promised.
func (b *body) finish() error {
	for !b.ended {
		b.arm()
		var probe [1]byte
		n, err := b.src.Read(probe[:])
		switch {
		case n > 0:
			return b.refuse(s3err.New(s3err.IncompleteBody, "The request body is longer than announced."))
		case err == io.EOF:
			b.ended = true
		case err != nil:
			return b.translate(err)
		}
	}
	if b.sha != nil && !bytes.Equal(b.sha.Sum(nil), b.wantSHA) {
		return b.refuse(s3err.New(s3err.XAmzContentSHA256Mismatch, "",
			s3err.Field{Name: "ClientComputedContentSHA256", Value: hex.EncodeToString(b.wantSHA)}, s3err.Field{Name: "S3ComputedContentSHA256", Value: hex.EncodeToString(b.sha.Sum(nil))}))
	}
	if b.md5 != nil && !bytes.Equal(b.md5.Sum(nil), b.wantMD5) {
		return b.refuse(s3err.New(s3err.BadDigest, "The Content-MD5 you specified did not match what we received.",
			s3err.Field{Name: "ExpectedDigest", Value: base64.StdEncoding.EncodeToString(b.wantMD5)}, s3err.Field{Name: "CalculatedDigest", Value: base64.StdEncoding.EncodeToString(b.md5.Sum(nil))}))
	}
	if err := b.trailers(); err != nil {
		return err
	}
	if b.sum == nil {
		return io.EOF
	}
	got := b.sum.Sum(nil)
	if b.want != nil && !bytes.Equal(got, b.want) {
		return b.refuse(s3err.New(s3err.BadDigest, "The "+strings.ToLower(checksum.Name(b.alg))+" you specified did not match the calculated checksum."))
	}
	b.sums = []*metapb.Checksum{{Algorithm: b.alg, Value: got}}
	return io.EOF
}

// trailers takes the checksum out of the trailer: exactly the one announced.
func (b *body) trailers() error {
	var sent []sigv4.Field
	if b.chunks != nil {
		sent = b.chunks.Trailers()
	}
	if b.trailer == "" && len(sent) == 0 {
		return nil
	}
	if len(sent) != 1 || sent[0].Name != b.trailer {
		return b.refuse(s3err.New(s3err.MalformedTrailerError, ""))
	}
	c, ok := parseChecksum(b.alg, sent[0].Value, false)
	if !ok {
		return b.refuse(s3err.New(s3err.BadDigest, "Value for "+b.trailer+" trailing header is invalid."))
	}
	b.want = c.Value
	return nil
}

// close ends the body's use by the store.
func (b *body) close() {
	b.disarm()
	if b.done == nil {
		b.done = errs.New(errs.Closed, "body", "", "read after the request ended")
	}
}

// readXML reads an XML body whole. The bytes are valid until the request ends.
func (q *request) readXML() ([]byte, error) {
	b, err := q.openBody(xmlBodyMax, false)
	if err != nil {
		if s3err.From(err).Code == s3err.EntityTooLarge {
			err = s3err.New(s3err.MaxMessageLengthExceeded, "", s3err.Field{Name: "MaxMessageLengthBytes", Value: itoa(xmlBodyMax)})
		}
		return nil, err
	}
	q.inBytes = b.size
	if q.h.xmlBytes.Add(b.size) > q.h.cfg.XMLBytesMax {
		return nil, s3err.New(s3err.SlowDown, "")
	}
	n := int(b.size)
	if cap(q.in) < n {
		q.in = make([]byte, n)
	}
	q.in = q.in[:n]
	if _, err := io.ReadFull(b, q.in); err != nil {
		return nil, incompleteXML(err)
	}
	var probe [1]byte
	if _, err := b.Read(probe[:]); err != io.EOF {
		return nil, incompleteXML(err)
	}
	return q.in, nil
}

func incompleteXML(err error) error {
	if err == nil || err == io.EOF || err == io.ErrUnexpectedEOF {
		return s3err.New(s3err.IncompleteBody, "")
	}
	return err
}

// objectBody is the body of a PutObject or UploadPart.
func (q *request) objectBody() (*body, error) {
	if _, ok := q.r.Header["Content-Range"]; ok {
		return nil, notImplementedHeader("Content-Range") // a part must not be taken for the whole (RFC 9110 14.5)
	}
	return q.openBody(storage.PutBytesMax, true)
}
