package admin

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"cairn/server/status"
)

type fake struct {
	ready  error
	verify func(ctx context.Context, progress func(status.Progress)) (status.Report, error)
}

func (f *fake) Ready() error { return f.ready }
func (f *fake) Status(context.Context) (status.Status, error) {
	return status.Status{StoreID: "store", Drives: []status.Drive{{ID: "d", State: "active"}}}, nil
}
func (f *fake) Verify(ctx context.Context, progress func(status.Progress)) (status.Report, error) {
	return f.verify(ctx, progress)
}

func start(t *testing.T, f *fake) (*httptest.Server, *Client) {
	s := httptest.NewServer(New(f, Config{AccessKey: "AK", SecretKey: "SK",
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "a_metric 1\n") })}))
	t.Cleanup(s.Close)
	return s, &Client{Base: s.URL, AccessKey: "AK", SecretKey: "SK"}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body)
}

func TestHealthAndMetricsAreOpen(t *testing.T) {
	f := &fake{}
	s, _ := start(t, f)
	for path, want := range map[string]string{"/health/live": "live", "/health/ready": "ready", "/metrics": "a_metric 1"} {
		if code, body := get(t, s.URL+path); code != 200 || strings.TrimSpace(body) != want {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	f.ready = errors.New("no leader of group 2")
	if code, body := get(t, s.URL+"/health/ready"); code != 503 || !strings.Contains(body, "no leader of group 2") {
		t.Errorf("not ready: %d %q", code, body)
	}
	if code, _ := get(t, s.URL+"/health/live"); code != 200 {
		t.Errorf("live while not ready: %d", code)
	}
}

func TestTheRestNeedsRoot(t *testing.T) {
	s, _ := start(t, &fake{})
	for _, path := range []string{"/v1/status", "/debug/pprof/", "/debug/pprof/heap"} {
		for _, keys := range [][2]string{{}, {"AK", ""}, {"AK", "no"}, {"", "SK"}, {"ak", "SK"}, {"AK", "SKS"}} {
			req, _ := http.NewRequest("GET", s.URL+path, nil)
			if keys != [2]string{} {
				req.SetBasicAuth(keys[0], keys[1])
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != 401 {
				t.Errorf("%s with keys %q: %d", path, keys, resp.StatusCode)
			}
		}
	}
	// A process without keys lets nobody in.
	open := httptest.NewServer(New(&fake{}, Config{}))
	defer open.Close()
	if code, _ := get(t, strings.Replace(open.URL, "http://", "http://:@", 1)+"/v1/status"); code != 401 {
		t.Errorf("without keys set: %d", code)
	}
	if code, _ := get(t, s.URL+"/"); code != 404 {
		t.Errorf("unknown path: %d", code)
	}
}

func TestStatus(t *testing.T) {
	_, c := start(t, &fake{})
	s, err := c.Status(t.Context())
	if err != nil || s.StoreID != "store" || len(s.Drives) != 1 {
		t.Fatalf("%+v %v", s, err)
	}
	c.SecretKey = "other"
	var refused *RefusedError
	if _, err := c.Status(t.Context()); !errors.As(err, &refused) || refused.Status != 401 {
		t.Fatalf("wrong key: %v", err)
	}
}

func TestVerifyStreams(t *testing.T) {
	f := &fake{}
	_, c := start(t, f)
	seen := make(chan status.Progress, 10)
	f.verify = func(_ context.Context, progress func(status.Progress)) (status.Report, error) {
		progress(status.Progress{Phase: "drives", Shards: 1})
		if p := <-seen; p.Shards != 1 { // the client has it before the verification goes on
			t.Errorf("progress %+v", p)
		}
		return status.Report{Found: 1, Problems: []status.Problem{{Kind: "shard corrupt", Key: "k"}}}, nil
	}
	r, err := c.Verify(t.Context(), func(p status.Progress) { seen <- p })
	if err != nil || r.Found != 1 || r.Problems[0].Key != "k" {
		t.Fatalf("%+v %v", r, err)
	}
	f.verify = func(context.Context, func(status.Progress)) (status.Report, error) {
		return status.Report{}, errors.New("no quorum")
	}
	if _, err := c.Verify(t.Context(), nil); err == nil || err.Error() != "no quorum" {
		t.Fatalf("error: %v", err)
	}
}

func TestVerifyOneAtATimeAndEndsWithTheClient(t *testing.T) {
	f := &fake{}
	_, c := start(t, f)
	running, ended := make(chan struct{}), make(chan struct{})
	f.verify = func(ctx context.Context, _ func(status.Progress)) (status.Report, error) {
		close(running)
		<-ctx.Done()
		close(ended)
		return status.Report{}, ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := c.Verify(ctx, nil); done <- err }()
	<-running
	var refused *RefusedError
	if _, err := c.Verify(t.Context(), nil); !errors.As(err, &refused) || refused.Status != 409 {
		t.Errorf("second verification: %v", err)
	}
	cancel()
	<-done
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("the verification goes on although its client is gone")
	}
}

// member is a node of a cluster.
type member struct {
	*fake
	asked time.Duration
}

func (m *member) NewToken(_ context.Context, valid time.Duration) (string, error) {
	m.asked = valid
	if valid == time.Minute {
		return "", errors.New("no majority")
	}
	return "a-token", nil
}

func TestJoinToken(t *testing.T) {
	_, single := start(t, &fake{})
	if _, err := single.NewToken(t.Context(), time.Hour); err == nil || !strings.Contains(err.Error(), "--cluster-init") {
		t.Errorf("without a cluster: %v", err)
	}
	m := &member{fake: &fake{}}
	s := httptest.NewServer(New(m, Config{AccessKey: "AK", SecretKey: "SK"}))
	t.Cleanup(s.Close)
	c := &Client{Base: s.URL, AccessKey: "AK", SecretKey: "SK"}
	if token, err := c.NewToken(t.Context(), 5*time.Minute); token != "a-token" || err != nil || m.asked != 5*time.Minute {
		t.Errorf("%q %v, asked for %v", token, err, m.asked)
	}
	for valid, want := range map[time.Duration]string{time.Minute: "no majority", -time.Second: "want a duration", 10000 * time.Hour: "want a duration"} {
		if _, err := c.NewToken(t.Context(), valid); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("valid %v: %v", valid, err)
		}
	}
	c.SecretKey = "wrong"
	var refused *RefusedError
	if _, err := c.NewToken(t.Context(), time.Hour); !errors.As(err, &refused) || refused.Status != http.StatusUnauthorized {
		t.Errorf("wrong keys: %v", err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Errorf("ready needs no keys: %v", err)
	}
	m.ready = errors.New("no leader")
	if err := c.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "no leader") {
		t.Errorf("not ready: %v", err)
	}
}
