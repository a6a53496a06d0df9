package s3api

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"cairn/s3api/objects"
	"cairn/s3api/sigv4"
)

var _ Backend = (*objects.Store)(nil)

func alice() objects.Account { return objects.Account{ID: "alice-id", DisplayName: "Alice"} }

func testAccounts(key string) (string, objects.Account, bool) {
	switch key {
	case "ALICE":
		return "alice-secret", alice(), true
	case "BOB":
		return "bob-secret", objects.Account{ID: "bob-id", DisplayName: "Bob"}, true
	}
	return "", objects.Account{}, false
}

// metered keeps what the handler tells its Metrics.
type metered struct {
	mu  sync.Mutex
	got []string
}

func (m *metered) Request(op string, status int, in, out int64, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.got = append(m.got, fmt.Sprint(op, " ", status, " ", in, " ", out))
}

func (m *metered) last() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.got) == 0 {
		return ""
	}
	return m.got[len(m.got)-1]
}

type harness struct {
	t       *testing.T
	fake    *fake
	handler *handler
	srv     *httptest.Server
	metrics *metered
	pipes   pipes  // of newBubble
	key     string // access key that signs
	secret  string
}

func newHarness(t *testing.T, change ...func(*Config)) *harness {
	t.Helper()
	h := newHandler(t, change...)
	h.srv = httptest.NewServer(h.handler)
	t.Cleanup(h.srv.Close)
	return h
}

func newHandler(t *testing.T, change ...func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, fake: newFake(), metrics: &metered{}, key: "ALICE", secret: "alice-secret"}
	cfg := Config{Accounts: testAccounts, Metrics: h.metrics, HostID: "host-id"}
	for _, c := range change {
		c(&cfg)
	}
	hh, err := New(cfg, h.fake)
	if err != nil {
		t.Fatal(err)
	}
	h.handler = hh.(*handler)
	return h
}

// newBubble is a harness for synctest: its connections are pipes without a buffer, so that nothing of an answer is gone
// before the client takes it. Only dial works, and what makes requests for it.
func newBubble(t *testing.T, change ...func(*Config)) *harness {
	t.Helper()
	h := newHandler(t, change...)
	h.pipes = make(pipes)
	h.srv = &httptest.Server{URL: "http://s3.test"}
	srv := &http.Server{Handler: h.handler}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(h.pipes) }()
	t.Cleanup(func() {
		srv.Close()
		<-served
	})
	return h
}

// pipes is a listener on the connections that are sent to it.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// request makes a request signed with the SDK's signer. target is path?query as on the wire.
func (h *harness) request(method, target string, body []byte, headers ...string) *http.Request {
	h.t.Helper()
	req, err := http.NewRequest(method, h.srv.URL, bytes.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	path, query, _ := strings.Cut(target, "?")
	req.URL.Opaque = "//" + req.URL.Host + path
	req.URL.RawQuery = query
	sum := sha256.Sum256(body)
	hash := hex.EncodeToString(sum[:])
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	if v := req.Header.Get("X-Amz-Content-Sha256"); v != "" {
		hash = v
	}
	req.Header.Set("X-Amz-Content-Sha256", hash)
	h.sign(req, hash, time.Now())
	if !strings.HasPrefix(path, "//") {
		req.URL.Opaque = path // so that the request line has the origin form; else it is the absolute form
	}
	return req
}

func (h *harness) sign(req *http.Request, hash string, at time.Time) {
	h.t.Helper()
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	if err := signer.SignHTTP(context.Background(), aws.Credentials{AccessKeyID: h.key, SecretAccessKey: h.secret}, req, hash, "s3", h.handler.cfg.Region, at); err != nil {
		h.t.Fatal(err)
	}
}

// answer is a response read whole.
type answer struct {
	*http.Response
	body string
}

func (a answer) code() string {
	var e struct{ Code string }
	xml.Unmarshal([]byte(a.body), &e)
	return e.Code
}

// element is the text of the first element of that name.
func (a answer) element(name string) string {
	_, rest, ok := strings.Cut(a.body, "<"+name+">")
	if !ok {
		return "absent"
	}
	text, _, _ := strings.Cut(rest, "<")
	return text
}

func (h *harness) do(method, target string, body []byte, headers ...string) answer {
	h.t.Helper()
	return h.send(h.request(method, target, body, headers...))
}

func (h *harness) send(req *http.Request) answer {
	h.t.Helper()
	resp, err := h.srv.Client().Do(req)
	if err != nil {
		h.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	if len(resp.Header.Get("X-Amz-Request-Id")) != 16 || resp.Header.Get("X-Amz-Id-2") != "host-id" || resp.Header.Get("Server") != "cairn" || resp.Header.Get("Date") == "" {
		h.t.Errorf("%s %s: headers %v", req.Method, req.URL, resp.Header)
	}
	if resp.StatusCode >= 400 && req.Method != "HEAD" {
		if !strings.Contains(string(b), "<RequestId>"+resp.Header.Get("X-Amz-Request-Id")+"</RequestId>") || resp.Header.Get("Content-Type") != "application/xml" {
			h.t.Errorf("%s %s: error without its elements: %s", req.Method, req.URL, b)
		}
	}
	return answer{resp, string(b)}
}

// want fails unless the answer has this status and, if it is an error, this code.
func (h *harness) want(a answer, status int, code string) answer {
	h.t.Helper()
	if a.StatusCode != status || code != "" && a.code() != code {
		h.t.Errorf("%s %s: %d %s %s, want %d %s", a.Request.Method, a.Request.URL, a.StatusCode, a.code(), a.element("Message"), status, code)
	}
	return a
}

func (h *harness) bucket(name string) {
	h.t.Helper()
	if err := h.fake.CreateBucket(context.Background(), alice(), name, objects.BucketOptions{Region: "us-east-1"}); err != nil {
		h.t.Fatal(err)
	}
}

func (h *harness) client(srv *httptest.Server, change ...func(*s3.Options)) *s3.Client {
	return s3.New(s3.Options{
		Region: h.handler.cfg.Region, BaseEndpoint: aws.String(srv.URL), UsePathStyle: true, HTTPClient: srv.Client(), RetryMaxAttempts: 1,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
		Credentials: credentials.NewStaticCredentialsProvider(h.key, h.secret, ""),
	}, change...)
}

// raw writes bytes to a fresh connection and reads one answer.
type rawConn struct {
	net.Conn
	r *bufio.Reader
}

func (h *harness) dial() rawConn {
	h.t.Helper()
	if h.pipes != nil {
		c, server := net.Pipe()
		h.t.Cleanup(func() { c.Close() })
		h.pipes <- server
		return rawConn{c, bufio.NewReader(c)}
	}
	c, err := net.Dial("tcp", h.srv.Listener.Addr().String())
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return rawConn{c, bufio.NewReader(c)}
}

func (c rawConn) read(t *testing.T, method string) answer {
	t.Helper()
	req, _ := http.NewRequest(method, "/", nil)
	resp, err := http.ReadResponse(c.r, req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, string(b)}
}

// head is a signed request's head as raw text, without a body; length is its Content-Length.
func (h *harness) head(method, target string, length int, headers ...string) string {
	h.t.Helper()
	if !slices.Contains(headers, "X-Amz-Content-Sha256") {
		headers = append(headers, "X-Amz-Content-Sha256", sigv4.UnsignedPayload)
	}
	req := h.request(method, target, nil, headers...)
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", method, target, req.URL.Host, length)
	req.Header.Write(&b)
	b.WriteString("\r\n")
	return b.String()
}

// settled waits for all requests to end and fails if an object was not closed.
func (h *harness) settled(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); h.handler.running.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests running", h.handler.running.Load())
		}
	}
	h.fake.mu.Lock()
	defer h.fake.mu.Unlock()
	if h.fake.open != 0 {
		t.Errorf("%d objects not closed", h.fake.open)
	}
}

// breaks makes every download fail after n bytes.
func (h *harness) breaks(err error, n int) {
	h.fake.mu.Lock()
	defer h.fake.mu.Unlock()
	h.fake.sendErr, h.fake.sendN = err, n
}
