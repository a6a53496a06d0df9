package webhook_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/server/target"
	"cairn/server/target/dialtls"
	"cairn/server/target/targettest"
	"cairn/server/target/webhook"
)

// receiver keeps what it was sent.
type receiver struct {
	mu     sync.Mutex
	ids    []string
	bodies []string
	heads  []http.Header
	status int // 0: 200
	gone   bool
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // cut off: half a request is none
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.gone {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	if req.Method != http.MethodPost {
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if strings.Contains(string(body), "poison") {
		w.WriteHeader(http.StatusUnprocessableEntity)
		io.WriteString(w, "what is this?")
		return
	}
	if r.status != 0 {
		w.Header().Set("Location", "/elsewhere")
		w.Header().Set("Retry-After", "17")
		w.WriteHeader(r.status)
		return
	}
	r.ids = append(r.ids, req.Header.Get("X-Cairn-Event-Id"))
	r.bodies = append(r.bodies, string(body))
	r.heads = append(r.heads, req.Header)
}

func start(t *testing.T) (*receiver, *httptest.Server) {
	r := &receiver{}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	return r, srv
}

func TestConformance(t *testing.T) {
	targettest.Run(t, targettest.Harness{
		Stacks: []string{"net/http.(*persistConn)"},
		Start: func(t *testing.T) *targettest.Broker {
			proxy := targettest.NewProxy(t)
			r, srv := start(t)
			proxy.To(srv.Listener.Addr().String())
			return &targettest.Broker{
				Proxy: proxy,
				Open: func(t *testing.T, timeout time.Duration) target.Target {
					return open(t, webhook.Config{URL: "http://" + proxy.Addr() + "/hook", Timeout: timeout})
				},
				Taken: func(*testing.T) []string {
					r.mu.Lock()
					defer r.mu.Unlock()
					return slices.Clone(r.ids)
				},
				Unwell: func(*testing.T) {
					r.mu.Lock()
					defer r.mu.Unlock()
					r.gone = true
				},
				Refused: []byte(`"poison"`),
			}
		},
	})
}

func open(t *testing.T, c webhook.Config) target.Target {
	t.Helper()
	tgt, err := webhook.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return tgt
}

func closing(t *testing.T, c webhook.Config) target.Target {
	t.Helper()
	tgt := open(t, c)
	t.Cleanup(func() { tgt.Close() })
	return tgt
}

func TestRequest(t *testing.T) {
	r, srv := start(t)
	tgt := closing(t, webhook.Config{URL: srv.URL + "/a?b=c", Secret: "s3cret", Authorization: "Bearer tok"})
	before := time.Now().Unix()
	m := target.Message{ID: "id-1", Event: "ObjectCreated:Put", Key: "k", Body: []byte(`{"Records":[]}`)}
	if n, err := tgt.Send(t.Context(), []target.Message{m}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	head := r.heads[0]
	for name, want := range map[string]string{
		"Authorization": "Bearer tok", "Content-Type": "application/json", "X-Cairn-Event": "ObjectCreated:Put", "X-Cairn-Event-Id": "id-1",
	} {
		if got := head.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	var stamp int64
	if err := json.Unmarshal([]byte(head.Get("X-Cairn-Timestamp")), &stamp); err != nil || stamp < before || stamp > time.Now().Unix() {
		t.Error(head.Get("X-Cairn-Timestamp"), err)
	}
	mac := hmac.New(sha256.New, []byte("s3cret"))
	io.WriteString(mac, head.Get("X-Cairn-Timestamp")+"."+r.bodies[0])
	if got, want := head.Get("X-Cairn-Signature"), "sha256="+hex.EncodeToString(mac.Sum(nil)); got != want {
		t.Errorf("signature %s, want %s", got, want)
	}
	if r.bodies[0] != string(m.Body) {
		t.Error(r.bodies[0])
	}
}

func TestUnsigned(t *testing.T) {
	r, srv := start(t)
	if n, err := closing(t, webhook.Config{URL: srv.URL}).Send(t.Context(), []target.Message{{ID: "1", Body: []byte("{}")}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if _, ok := r.heads[0]["X-Cairn-Signature"]; ok {
		t.Error("signed without a secret")
	}
}

func TestStatuses(t *testing.T) {
	r, srv := start(t)
	tgt := closing(t, webhook.Config{URL: srv.URL + "/?token=hidden"})
	for status, rejected := range map[int]bool{
		201: false, 204: false,
		301: false, 307: false, 308: false,
		400: true, 409: true, 413: true, 415: true, 422: true,
		401: false, 403: false, 404: false, 405: false, 408: false, 410: false, 425: false, 429: false,
		500: false, 502: false, 503: false, 504: false,
	} {
		r.mu.Lock()
		r.status = status
		before := len(r.ids)
		r.mu.Unlock()
		n, err := tgt.Send(t.Context(), []target.Message{{ID: "1", Body: []byte("{}")}, {ID: "2", Body: []byte("{}")}})
		var rej *target.Rejected
		if status < 300 {
			if n != 2 || err != nil {
				t.Errorf("%d: %d, %v", status, n, err)
			}
			continue
		}
		if n != 0 || err == nil || errors.As(err, &rej) != rejected {
			t.Errorf("%d: %d, %v", status, n, err)
			continue
		}
		if strings.Contains(err.Error(), "hidden") {
			t.Errorf("%d: the error shows what may be a secret: %v", status, err)
		}
		if (status == 429 || status == 503) && !strings.Contains(err.Error(), `"17"`) {
			t.Errorf("%d: %v does not say when to come again", status, err)
		}
		if len(r.ids) != before {
			t.Errorf("%d: followed or sent on", status)
		}
	}
	srv.Close()
	if _, err := tgt.Send(t.Context(), []target.Message{{ID: "1"}}); err == nil || strings.Contains(err.Error(), "hidden") {
		t.Error(err)
	}
}

func TestBatches(t *testing.T) {
	r, srv := start(t)
	tgt := closing(t, webhook.Config{URL: srv.URL, Batch: 3})
	var batch []target.Message
	for _, body := range []string{`1`, `2`, `3`, `4`, `"poison"`, `6`} {
		batch = append(batch, target.Message{ID: body, Body: []byte(body)})
	}
	n, err := tgt.Send(t.Context(), batch)
	var rejected *target.Rejected
	if n != 4 || !errors.As(err, &rejected) {
		t.Fatal(n, err)
	}
	if n, err := tgt.Send(t.Context(), batch[5:]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if want := []string{"[1,2,3]", "[4]", "[6]"}; !slices.Equal(r.bodies, want) {
		t.Errorf("%q, want %q", r.bodies, want)
	}
	big := strings.Repeat("x", 3<<20)
	r.bodies = nil
	batch = []target.Message{{Body: []byte(big)}, {Body: []byte(big)}, {Body: []byte("1")}}
	if n, err := tgt.Send(t.Context(), batch); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if len(r.bodies) != 2 || len(r.bodies[0]) != len(big)+2 {
		t.Errorf("%d requests", len(r.bodies))
	}
}

// TestEndlessAnswer has a receiver that acknowledges and then talks without end: it costs bounded memory, and the connection.
func TestEndlessAnswer(t *testing.T) {
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		defer close(ended)
		for block := make([]byte, 1<<10); ; {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	if n, err := closing(t, webhook.Config{URL: srv.URL}).Send(t.Context(), []target.Message{{}}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	<-ended
}

func TestTLS(t *testing.T) {
	r := &receiver{}
	srv := httptest.NewTLSServer(r)
	defer srv.Close()
	srv.Config.ErrorLog = nil
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	for _, c := range []struct {
		tls dialtls.Config
		ok  bool
	}{
		{dialtls.Config{}, false},
		{dialtls.Config{CAPEM: ca}, true},
		{dialtls.Config{CAPEM: ca, ServerName: "example.com"}, true},
		{dialtls.Config{CAPEM: ca, ServerName: "example.net"}, false},
		{dialtls.Config{Insecure: true}, true},
	} {
		tgt := closing(t, webhook.Config{URL: srv.URL, TLS: c.tls})
		n, err := tgt.Send(t.Context(), []target.Message{{}})
		if (n == 1) != c.ok || (err == nil) != c.ok {
			t.Errorf("%+v: %d, %v", c.tls, n, err)
		}
	}
}

func TestCheck(t *testing.T) {
	for status, ok := range map[int]bool{200: true, 204: true, 404: true, 405: true, 501: true, 301: false, 401: false, 403: false, 429: false, 500: false, 503: false} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { w.WriteHeader(status) }))
		if err := closing(t, webhook.Config{URL: srv.URL}).Check(context.Background()); (err == nil) != ok {
			t.Errorf("%d: %v", status, err)
		}
		srv.Close()
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []webhook.Config{
		{},
		{URL: "receiver/path"},
		{URL: "ftp://host/"},
		{URL: "http://"},
		{URL: "http://user:pass@host/"},
		{URL: "http://host/#part"},
		{URL: "http://host/", TLS: dialtls.Config{Insecure: true}},
		{URL: "http://host/", Authorization: "a\r\nX: y"},
		{URL: "http://host/", Batch: -1},
		{URL: "http://host/", Batch: 1001},
		{URL: "http://host/", Timeout: -1},
		{URL: "https://host/", TLS: dialtls.Config{CertFile: "only"}},
	} {
		if err := c.Validate(); err == nil {
			t.Errorf("%+v is taken", c)
		}
		if _, err := webhook.Open(c); err == nil {
			t.Errorf("%+v is opened", c)
		}
	}
	if err := (&webhook.Config{URL: "https://host:8443/x?y=z"}).Validate(); err != nil {
		t.Error(err)
	}
}
