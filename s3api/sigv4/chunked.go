package sigv4

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"hash"
	"io"
	"strings"
)

// Limits of aws-chunked framing.
const (
	chunkLineMax  = 512  // bytes of a chunk header
	trailerMax    = 4096 // bytes of everything behind the last chunk
	chunkSizeMax  = 5 << 30
	signatureName = "x-amz-trailer-signature"
)

// emptySHA256 is the hex SHA-256 of nothing.
const emptySHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// ChunkReader decodes an aws-chunked body and proves the signature of each
// chunk and of the trailer. Chunk data goes straight into the caller's buffer,
// before its signature is proven: nothing may be done with it until Read
// answered io.EOF. Not safe for concurrent use.
//
// Errors are those of the source and *Error (IncompleteBody,
// SignatureDoesNotMatch, MalformedTrailerError); io.EOF only after the whole
// body, trailer included, was read and proven and the source has ended.
type ChunkReader struct {
	src      io.Reader
	err      error // sticky
	left     int64 // data bytes of the current chunk not yet read
	inChunk  bool
	signed   bool
	trailer  bool
	seed     Seed     // its signature is the previous chunk's
	given    [64]byte // the current chunk's signature as sent
	sha      hash.Hash
	trailers []Field
	r, w     int
	buf      [chunkLineMax]byte // buf[r:w] is read ahead
	toSign   []byte
}

// NewChunkReader decodes src, whose payload is p and whose request gave seed.
func NewChunkReader(src io.Reader, p Payload, seed Seed) *ChunkReader {
	c := &ChunkReader{src: src, seed: seed, trailer: p.Trailer(), signed: p == PayloadSigned || p == PayloadSignedTrailer}
	if c.signed {
		c.sha = sha256.New()
		c.toSign = make([]byte, 0, 320)
	}
	return c
}

// Trailers are the trailing headers in the order sent, names in lower case,
// without the signature. Valid after Read answered io.EOF.
func (c *ChunkReader) Trailers() []Field { return c.trailers }

func incomplete(message string) *Error { return &Error{Code: "IncompleteBody", Message: message} }

// Read reads decoded bytes.
func (c *ChunkReader) Read(p []byte) (int, error) {
	for c.err == nil {
		if c.left > 0 {
			if len(p) == 0 {
				return 0, nil
			}
			n := c.data(p)
			if n > 0 {
				return n, nil // an error stays for the next call
			}
			continue
		}
		c.err = c.next()
	}
	return 0, c.err
}

// data reads bytes of the current chunk.
func (c *ChunkReader) data(p []byte) (n int) {
	if int64(len(p)) > c.left {
		p = p[:c.left]
	}
	if c.r < c.w {
		n = copy(p, c.buf[c.r:c.w])
		c.r += n
	} else {
		var err error
		n, err = c.src.Read(p)
		if err == io.EOF && int64(n) == c.left {
			err = nil // the framing behind it will not be found
		}
		if err != nil {
			c.err = c.early(err)
		}
	}
	c.left -= int64(n)
	if c.signed {
		c.sha.Write(p[:n])
	}
	return n
}

func (c *ChunkReader) early(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return incomplete("The request body terminated unexpectedly")
	}
	return err
}

// next goes on to the next chunk's data, or, behind the last one, to the end.
func (c *ChunkReader) next() error {
	if c.inChunk {
		line, err := c.line()
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return incomplete("The chunk data is not followed by CRLF")
		}
		if err := c.prove(); err != nil {
			return err
		}
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	size, err := c.header(line)
	if err != nil {
		return err
	}
	c.inChunk, c.left = true, size
	if size > 0 {
		return nil
	}
	if err := c.prove(); err != nil {
		return err
	}
	if err := c.tail(); err != nil {
		return err
	}
	return io.EOF
}

// line reads a line, without its CRLF.
func (c *ChunkReader) line() ([]byte, error) {
	for from := c.r; ; {
		if i := bytes.IndexByte(c.buf[from:c.w], '\n'); i >= 0 {
			line := c.buf[c.r : from+i]
			c.r = from + i + 1
			if len(line) == 0 || line[len(line)-1] != '\r' {
				return nil, incomplete("A chunk header does not end with CRLF")
			}
			return line[:len(line)-1], nil
		}
		if c.r > 0 {
			c.w = copy(c.buf[:], c.buf[c.r:c.w])
			c.r = 0
		}
		if c.w == len(c.buf) {
			return nil, incomplete("A chunk header is too long")
		}
		from = c.w
		n, err := c.src.Read(c.buf[c.w:])
		c.w += n
		if n == 0 && err != nil {
			return nil, c.early(err)
		}
	}
}

// header reads size[;chunk-signature=hex].
func (c *ChunkReader) header(line []byte) (size int64, err error) {
	digits, extension, has := bytes.Cut(line, []byte{';'})
	if len(digits) == 0 || len(digits) > 16 {
		return 0, incomplete("A chunk size is malformed")
	}
	for _, d := range digits {
		v := unhex(d)
		if v > 15 {
			return 0, incomplete("A chunk size is malformed")
		}
		if size = size<<4 | int64(v); size < 0 || size > chunkSizeMax {
			return 0, &Error{Code: "EntityTooLarge"}
		}
	}
	if !c.signed {
		return size, nil // extensions mean nothing here
	}
	name, sig, _ := bytes.Cut(extension, []byte{'='})
	if !has || string(name) != "chunk-signature" || len(sig) != len(c.given) {
		return 0, incomplete("A chunk signature is missing or malformed")
	}
	copy(c.given[:], sig)
	c.sha.Reset()
	return size, nil
}

// prove checks the current chunk's signature and chains the next to it.
func (c *ChunkReader) prove() error {
	if !c.signed {
		return nil
	}
	var sum [sha256.Size]byte
	c.sha.Sum(sum[:0])
	b := c.chainedString("AWS4-HMAC-SHA256-PAYLOAD\n")
	b = append(b, emptySHA256+"\n"...)
	b = hex.AppendEncode(b, sum[:])
	return c.compare(b, c.given[:])
}

// chainedString begins a string to sign that names the previous signature.
func (c *ChunkReader) chainedString(algorithm string) []byte {
	b := append(c.toSign[:0], algorithm...)
	b = append(b, c.seed.timestamp...)
	b = append(b, '\n')
	b = append(b, c.seed.scope...)
	b = append(b, '\n')
	b = append(b, c.seed.signature[:]...)
	return append(b, '\n')
}

func (c *ChunkReader) compare(toSign, given []byte) error {
	c.toSign = toSign
	c.seed.key.appendSignature(c.seed.signature[:0], toSign)
	if subtle.ConstantTimeCompare(c.seed.signature[:], given) != 1 {
		return &Error{Code: "SignatureDoesNotMatch", Message: "The signature of a chunk of the body does not match the signature we calculated."}
	}
	return nil
}

// tail reads everything behind the last chunk: the trailer and blank lines. AWS's
// own examples and the SDKs differ in where the blank lines stand and in how
// trailer lines end (CRLF, LF, LF CRLF), so both are taken as they come.
func (c *ChunkReader) tail() error {
	rest := append(make([]byte, 0, 2*chunkLineMax), c.buf[c.r:c.w]...)
	c.r, c.w = 0, 0
	for {
		if len(rest) > trailerMax {
			return &Error{Code: "MalformedTrailerError"}
		}
		if len(rest) == cap(rest) {
			rest = append(rest, 0)[:len(rest)]
		}
		n, err := c.src.Read(rest[len(rest):cap(rest)])
		rest = rest[:len(rest)+n]
		if err == io.EOF {
			break
		}
		if err != nil {
			return c.early(err)
		}
	}
	if !bytes.HasSuffix(rest, []byte("\n")) && len(bytes.TrimSpace(rest)) > 0 {
		return incomplete("The request body terminated unexpectedly")
	}
	return c.trailerLines(string(rest))
}

func (c *ChunkReader) trailerLines(rest string) error {
	signed, signature := []byte(nil), ""
	for rest != "" {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		if line = strings.TrimRight(line, "\r"); line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name = strings.ToLower(strings.TrimSpace(name))
		value = strings.TrimSpace(value)
		switch {
		case !ok || name == "" || !c.trailer || signature != "":
			return &Error{Code: "MalformedTrailerError"}
		case name == signatureName && c.signed:
			signature = value
		default:
			c.trailers = append(c.trailers, Field{name, value})
			signed = append(append(append(append(signed, name...), ':'), value...), '\n')
		}
	}
	if !c.signed || !c.trailer {
		return nil
	}
	if len(signature) != 64 {
		return &Error{Code: "MalformedTrailerError", Message: "The trailer is not signed: x-amz-trailer-signature is missing or malformed."}
	}
	sum := sha256.Sum256(signed)
	b := c.chainedString("AWS4-HMAC-SHA256-TRAILER\n")
	return c.compare(hex.AppendEncode(b, sum[:]), []byte(signature))
}
