package s3api

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cairn/s3api/sigv4"
	"cairn/test/bubble"
)

// A body that ends early stores nothing.
func TestEarlyEnd(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	c := h.dial()
	io.WriteString(c, h.head("PUT", "/bucket/key", 100)+"only this")
	c.Conn.(*net.TCPConn).CloseWrite()
	h.want(c.read(t, "PUT"), 400, "IncompleteBody")

	chunked := []string{"X-Amz-Content-Sha256", sigv4.StreamingUnsignedPayloadTrailer, "X-Amz-Decoded-Content-Length", "10"}
	for name, body := range map[string]string{
		"inside a chunk": "a\r\nhello", "between chunks": "5\r\nhello\r\n", "too little": "5\r\nhello\r\n0\r\n\r\n", "too much": "b\r\nhello world\r\n0\r\n\r\n", "no chunks": "hello worl",
	} {
		c := h.dial()
		io.WriteString(c, h.head("PUT", "/bucket/key", len(body), chunked...)+body)
		if a := c.read(t, "PUT"); a.StatusCode != 400 || a.code() != "IncompleteBody" {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
		}
	}
	if len(h.fake.buckets["bucket"].objects) != 0 || len(h.fake.puts) != 0 {
		t.Error("stored")
	}
}

// A connection stays in step after every kind of refusal: the next request on it is answered, or the connection is closed.
func TestConnectionAfterErrors(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.fake.PutObject(t.Context(), alice(), putInput("bucket", "there", "content"))
	get := h.head("GET", "/bucket/there", 0)
	for name, c := range map[string]struct {
		head   string
		body   string
		status int
		closed bool
	}{
		"anonymous with body":     {"PUT /bucket/k HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", "hello", 403, false},
		"no bucket, body unread":  {h.head("PUT", "/nobucket/k", 70000), strings.Repeat("x", 70000), 404, false},
		"bad digest":              {h.head("PUT", "/bucket/k", 5, "X-Amz-Checksum-Crc32", "AAAAAA=="), "hello", 400, false},
		"refused operation":       {h.head("PUT", "/bucket/k?renameObject", 5), "hello", 501, false},
		"huge body, unread":       {h.head("PUT", "/nobucket/k", 1<<20), strings.Repeat("x", 1<<20), 404, true},
		"malformed xml":           {h.head("POST", "/bucket?delete", 5, "Content-Md5", "XUFAKrxLKna5cZ2REBfFkg=="), "hello", 400, false},
		"method without meaning":  {h.head("PATCH", "/bucket/k", 5), "hello", 405, false},
		"decoded length is wrong": {h.head("PUT", "/bucket/k", 10, "X-Amz-Content-Sha256", sigv4.StreamingUnsignedPayloadTrailer, "X-Amz-Decoded-Content-Length", "7"), "0\r\n\r\n1234 ", 400, false},
	} {
		conn := h.dial()
		go io.WriteString(conn, c.head+c.body+get)
		a := conn.read(t, "PUT")
		if a.StatusCode != c.status {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
			continue
		}
		if a.Close {
			if !c.closed {
				t.Errorf("%s: connection closed", name)
			}
			continue
		}
		if a := conn.read(t, "GET"); a.StatusCode != 200 || a.body != "content" {
			t.Errorf("%s: the next request got %d %s", name, a.StatusCode, a.body)
		}
	}
}

// 100 Continue comes only when the request is welcome.
func TestExpectContinue(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	c := h.dial()
	io.WriteString(c, h.head("PUT", "/bucket/key", 5, "Expect", "100-continue"))
	line, err := c.r.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
		t.Fatal(line, err)
	}
	c.r.ReadString('\n')
	io.WriteString(c, "hello")
	if a := c.read(t, "PUT"); a.StatusCode != 200 {
		t.Error(a.StatusCode, a.body)
	}
	for _, head := range []string{
		"PUT /bucket/key HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
		h.head("PUT", "/nobucket/key", 5, "Expect", "100-continue"),
		h.head("PUT", "/bucket/key", 5, "Expect", "100-continue", "X-Amz-Server-Side-Encryption", "AES256"),
		h.head("PUT", "/bucket/key", 6<<30, "Expect", "100-continue"),
	} {
		c := h.dial()
		io.WriteString(c, head)
		if a := c.read(t, "PUT"); a.StatusCode < 400 {
			t.Errorf("%q: %d", head, a.StatusCode)
		}
	}
}

// A client that stops sending is given up; a slow but steady one is served.
func TestIdleSenders(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		h := newBubble(t)
		h.bucket("bucket")
		idle := h.handler.cfg.IdleTimeout
		c := h.dial()
		io.WriteString(c, h.head("PUT", "/bucket/key", 100)+"some")
		began := time.Now()
		h.want(c.read(t, "PUT"), 400, "RequestTimeout")
		if took := time.Since(began); took != idle {
			t.Errorf("given up after %v", took)
		}

		c = h.dial()
		io.WriteString(c, h.head("PUT", "/bucket/key", 8))
		for range 8 {
			time.Sleep(idle / 2)
			io.WriteString(c, "x")
		}
		h.want(c.read(t, "PUT"), 200, "")
		// The deadline does not outlive the body.
		time.Sleep(2 * idle)
		io.WriteString(c, h.head("HEAD", "/bucket/key", 0))
		h.want(c.read(t, "HEAD"), 200, "")
	})
}

// A client that stops taking an answer is given up, whatever the answer.
func TestIdleReceivers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		h := newBubble(t)
		h.bucket("bucket")
		idle := h.handler.cfg.IdleTimeout
		h.fake.PutObject(t.Context(), alice(), putInput("bucket", "small", "x"))
		h.fake.PutObject(t.Context(), alice(), putInput("bucket", "large", strings.Repeat("x", 1<<20)))
		for i := range 1000 {
			h.fake.PutObject(t.Context(), alice(), putInput("bucket", fmt.Sprint("listed/", i), ""))
		}
		for name, head := range map[string]string{
			"small object": h.head("GET", "/bucket/small", 0),
			"large object": h.head("GET", "/bucket/large", 0),
			"no body":      h.head("HEAD", "/bucket/small", 0),
			"listing":      h.head("GET", "/bucket?list-type=2", 0),
			"error":        h.head("GET", "/bucket/not-there", 0),
			"unknown":      "PATCH / HTTP/1.1\r\nHost: x\r\n\r\n",
			"100 continue": h.head("PUT", "/bucket/key", 5, "Expect", "100-continue"),
		} {
			c := h.dial()
			io.WriteString(c, head)
			time.Sleep(idle + time.Second)
			synctest.Wait()
			c.SetReadDeadline(time.Now().Add(time.Second))
			if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
				t.Errorf("%s: still being written after %v: %q, %v", name, idle, b[:min(len(b), 80)], err)
			}
			if n := h.handler.running.Load(); n != 0 {
				t.Errorf("%s: %d requests are still running", name, n)
			}
		}
		// A slow but steady one is served, and the connection goes on.
		c := h.dial()
		for _, target := range []string{"/bucket/large", "/bucket?list-type=2", "/bucket/small"} {
			io.WriteString(c, h.head("GET", target, 0))
			time.Sleep(idle / 2)
			resp, err := http.ReadResponse(c.r, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got int64
			for err == nil {
				var n int64
				n, err = io.CopyN(io.Discard, resp.Body, pieceBytes)
				got += n
				time.Sleep(idle / 2)
			}
			if err != io.EOF || got != resp.ContentLength {
				t.Errorf("%s: %d bytes of %d, %v", target, got, resp.ContentLength, err)
			}
			time.Sleep(2 * idle)
		}
	})
}

// What breaks after the first byte breaks the connection; before it, it is an answer.
func TestBrokenDownload(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.fake.PutObject(t.Context(), alice(), putInput("bucket", "key", strings.Repeat("x", 100000)))
	h.breaks(errBoom, 0)
	h.want(h.do("GET", "/bucket/key", nil), 500, "InternalError")
	h.breaks(errBoom, 50000)
	resp, err := h.srv.Client().Do(h.request("GET", "/bucket/key", nil))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%d bytes read as a whole", len(b))
	}
	resp.Body.Close()
	h.breaks(nil, 0)
	h.want(h.do("GET", "/bucket/key", nil), 200, "")
	h.settled(t)
}

// Past the limit of requests the answer is 503, and it costs nobody else.
func TestTooManyRequests(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.RequestsMax = 2 })
	h.bucket("bucket")
	h.fake.PutObject(t.Context(), alice(), putInput("bucket", "key", "x"))
	h.fake.block = make(chan struct{})
	done := make(chan answer, 2)
	for range 2 {
		go func() { done <- h.do("HEAD", "/bucket/key", nil) }()
	}
	for h.handler.running.Load() != 2 {
		time.Sleep(time.Millisecond)
	}
	a := h.want(h.do("GET", "/bucket/key", nil), 503, "SlowDown")
	if a.Header.Get("Retry-After") != "1" {
		t.Error(a.Header)
	}
	close(h.fake.block)
	for range 2 {
		h.want(<-done, 200, "")
	}
	h.want(h.do("GET", "/bucket/key", nil), 200, "")
}

// XML bodies share a budget of memory.
func TestXMLBudget(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.XMLBytesMax = xmlBodyMax })
	h.bucket("bucket")
	c := h.dial()
	io.WriteString(c, h.head("POST", "/bucket?delete", xmlBodyMax, "Content-Md5", "XUFAKrxLKna5cZ2REBfFkg=="))
	for h.handler.xmlBytes.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	doc := []byte("<Delete><Object><Key>k</Key></Object></Delete>")
	h.want(h.do("POST", "/bucket?delete", doc, "Content-Md5", md5Of(doc)), 503, "SlowDown")
	c.Close()
	for h.handler.xmlBytes.Load() != 0 {
		time.Sleep(time.Millisecond)
	}
	h.want(h.do("POST", "/bucket?delete", doc, "Content-Md5", md5Of(doc)), 200, "")
	h.want(h.do("POST", "/bucket?delete", make([]byte, xmlBodyMax+1), "Content-Md5", md5Of(doc)), 400, "MaxMessageLengthExceeded")
}

// chunkedBody signs an aws-chunked body as a client does.
func (h *harness) chunkedBody(seed string, stamp string, data []byte, size int, trailer string) string {
	var b strings.Builder
	scope := stamp[:8] + "/" + h.handler.cfg.Region + "/s3/aws4_request"
	key := hmac256([]byte("AWS4"+h.secret), stamp[:8])
	for _, s := range []string{h.handler.cfg.Region, "s3", "aws4_request"} {
		key = hmac256(key, s)
	}
	prev := seed
	for {
		n := min(size, len(data))
		prev = fmt.Sprintf("%x", hmac256(key, "AWS4-HMAC-SHA256-PAYLOAD\n"+stamp+"\n"+scope+"\n"+prev+"\n"+sha256Hex("")+"\n"+sha256Hex(string(data[:n]))))
		fmt.Fprintf(&b, "%x;chunk-signature=%s\r\n%s", n, prev, data[:n])
		if n > 0 {
			b.WriteString("\r\n")
		} else {
			break
		}
		data = data[n:]
	}
	if trailer != "" {
		sig := fmt.Sprintf("%x", hmac256(key, "AWS4-HMAC-SHA256-TRAILER\n"+stamp+"\n"+scope+"\n"+prev+"\n"+sha256Hex(trailer+"\n")))
		b.WriteString(trailer + "\r\nx-amz-trailer-signature:" + sig + "\r\n")
	}
	return b.String() + "\r\n"
}

// Signed chunks, with and without a trailer, through the whole handler.
func TestSignedChunks(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	data := bytes.Repeat([]byte("0123456789abcdef"), 9000)
	crc := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(data)))
	put := func(trailer, announced string, damage func(string) string) answer {
		mode := sigv4.StreamingSignedPayload
		headers := []string{"X-Amz-Decoded-Content-Length", fmt.Sprint(len(data)), "Content-Encoding", "gzip,aws-chunked"}
		if trailer != "" {
			mode = sigv4.StreamingSignedPayloadTrailer
			headers = append(headers, "X-Amz-Trailer", announced)
		}
		head := h.head("PUT", "/bucket/key", 0, append(headers, "X-Amz-Content-Sha256", mode)...)
		_, seed, _ := strings.Cut(head, "Signature=")
		_, stamp, _ := strings.Cut(head, "X-Amz-Date: ")
		body := damage(h.chunkedBody(seed[:64], stamp[:16], data, 65536, trailer))
		c := h.dial()
		io.WriteString(c, strings.Replace(head, "Content-Length: 0", "Content-Length: "+fmt.Sprint(len(body)), 1)+body)
		return c.read(t, "PUT")
	}
	same := func(s string) string { return s }
	h.want(put("", "", same), 200, "")
	o := h.fake.buckets["bucket"].objects["key"]
	if !bytes.Equal(o.data, data) || len(o.attrs.Headers) != 1 || o.attrs.Headers[0].Value != "gzip" {
		t.Errorf("%d bytes, %v", len(o.data), o.attrs)
	}
	a := h.want(put("x-amz-checksum-crc32:"+crc, "x-amz-checksum-crc32", same), 200, "")
	if a.Header.Get("X-Amz-Checksum-Crc32") != crc || a.Header.Get("X-Amz-Checksum-Type") != "FULL_OBJECT" {
		t.Error(a.Header)
	}
	stored := len(h.fake.puts)
	h.want(put("", "", func(s string) string { return strings.Replace(s, "abcdef", "abcdeg", 1) }), 403, "SignatureDoesNotMatch")
	h.want(put("x-amz-checksum-crc32:AAAAAA==", "x-amz-checksum-crc32", same), 400, "BadDigest")
	h.want(put("x-amz-checksum-crc32:nonsense", "x-amz-checksum-crc32", same), 400, "BadDigest")
	h.want(put("x-amz-checksum-crc32c:"+crc, "x-amz-checksum-crc32", same), 400, "MalformedTrailerError")
	h.want(put("x-amz-meta-a:b", "x-amz-meta-a", same), 400, "InvalidRequest")
	h.want(put("x-amz-checksum-crc32:"+crc, "x-amz-checksum-crc32", func(s string) string { return strings.Replace(s, crc, "AAAAAA==", 1) }), 403, "SignatureDoesNotMatch")
	if len(h.fake.puts) != stored {
		t.Error("a refused body was stored")
	}
}

func TestHTTP10AndAbsoluteForm(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.fake.PutObject(t.Context(), alice(), putInput("bucket", "a//b", "x"))
	req := h.request("GET", "/bucket/a//b", nil)
	c := h.dial()
	var b strings.Builder
	req.Header.Write(&b)
	fmt.Fprintf(c, "GET http://%s/bucket/a//b HTTP/1.1\r\nHost: ignored\r\n%s\r\n", req.URL.Host, b.String())
	h.want(c.read(t, "GET"), 200, "")
	c = h.dial()
	fmt.Fprintf(c, "GET /bucket/a//b HTTP/1.0\r\nHost: %s\r\n%s\r\n", req.URL.Host, b.String())
	if a := h.want(c.read(t, "GET"), 200, ""); a.body != "x" {
		t.Error(a.body)
	}
}
