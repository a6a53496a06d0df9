package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"cairn/server/status"
	"cairn/storage/errs"
)

// accounting is a backend that answers as told.
type accounting struct {
	*fake
	buckets   int
	fail      error // after what there is
	inventory InventoryQuery
	simulated SimulateQuery
}

func (a *accounting) Usage(_ context.Context, bucket string, fn func(*status.BucketUsage) error) (status.UsageTotal, error) {
	if bucket == "none" {
		return status.UsageTotal{}, errs.New(errs.NoSuchBucket, "usage", bucket, "")
	}
	for i := range a.buckets {
		if err := fn(&status.BucketUsage{Bucket: fmt.Sprint("b", i)}); err != nil {
			return status.UsageTotal{}, err
		}
	}
	return status.UsageTotal{Buckets: int64(a.buckets)}, a.fail
}

func (a *accounting) Inventory(_ context.Context, q InventoryQuery, w io.Writer, ready func()) (int64, error) {
	if a.inventory = q; q.Bucket == "none" {
		return 0, errs.New(errs.NoSuchBucket, "inventory", q.Bucket, "")
	}
	ready()
	for i := range a.buckets {
		fmt.Fprintf(w, "\"%d\"\n", i)
	}
	return int64(a.buckets), a.fail
}

func (a *accounting) Simulate(_ context.Context, q SimulateQuery, progress func(status.SimulationProgress)) (status.Simulation, error) {
	switch a.simulated = q; {
	case q.Bucket == "none":
		return status.Simulation{}, errs.New(errs.NotFound, "simulate", q.Bucket, "")
	case string(q.Rules) == "bad":
		return status.Simulation{}, &RulesError{errors.New("MalformedXML")}
	}
	progress(status.SimulationProgress{Rows: 5})
	return status.Simulation{Bucket: q.Bucket, Rows: 9}, a.fail
}

func accountant(t *testing.T) (*accounting, *Client) {
	a := &accounting{fake: &fake{}}
	s := httptest.NewServer(New(a, Config{AccessKey: "AK", SecretKey: "SK"}))
	t.Cleanup(s.Close)
	return a, &Client{Base: s.URL, AccessKey: "AK", SecretKey: "SK"}
}

// refusal checks that a server refused with a code, and says so.
func refusal(t *testing.T, err error, code int, text string) {
	t.Helper()
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != code || !strings.Contains(refused.Text, text) {
		t.Errorf("%v, want %d with %q", err, code, text)
	}
}

func TestUsageStreams(t *testing.T) {
	a, c := accountant(t)
	a.buckets = 3000
	n := 0
	count := func(b *status.BucketUsage) error {
		if b.Bucket != fmt.Sprint("b", n) {
			t.Fatal(b.Bucket, n)
		}
		n++
		return nil
	}
	if total, err := c.Usage(t.Context(), "", count); err != nil || n != 3000 || total.Buckets != 3000 {
		t.Fatal(total, n, err)
	}
	n, a.fail = 0, errors.New("range 7 has no leader")
	_, err := c.Usage(t.Context(), "", count)
	refusal(t, err, 200, "range 7")
	a.buckets = 0
	_, err = c.Usage(t.Context(), "", count)
	refusal(t, err, http.StatusServiceUnavailable, "range 7")
	_, err = c.Usage(t.Context(), "none", count)
	refusal(t, err, http.StatusNotFound, "no such bucket")
	a.buckets, n = 10, 0
	stop := errors.New("full")
	if _, err = c.Usage(t.Context(), "", func(*status.BucketUsage) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
	_, single := start(t, &fake{})
	_, err = single.Usage(t.Context(), "", count)
	refusal(t, err, http.StatusNotImplemented, "")
}

func TestInventoryIsWholeOrAnError(t *testing.T) {
	a, c := accountant(t)
	for _, n := range []int{0, 1, 100_000} {
		a.buckets = n
		var out bytes.Buffer
		rows, err := c.Inventory(t.Context(), InventoryQuery{Bucket: "b", Prefix: "a&b=c/", All: true, Fields: []string{"Size", "ETag"}, Header: true}, &out)
		if err != nil || rows != int64(n) || strings.Count(out.String(), "\n") != n {
			t.Fatal(rows, out.Len(), err)
		}
	}
	if q := a.inventory; q.Bucket != "b" || q.Prefix != "a&b=c/" || !q.All || len(q.Fields) != 2 || !q.Header {
		t.Errorf("%+v", q)
	}
	for _, n := range []int{0, 100_000} { // after the head of the answer there is only the trailer to say so
		a.buckets, a.fail = n, errors.New("no quorum\nin time")
		_, err := c.Inventory(t.Context(), InventoryQuery{Bucket: "b"}, io.Discard)
		refusal(t, err, 200, "no quorum\nin time")
	}
	_, err := c.Inventory(t.Context(), InventoryQuery{Bucket: "none"}, io.Discard)
	refusal(t, err, http.StatusNotFound, "no such bucket")
	if a.inventory.All || a.inventory.Fields != nil {
		t.Errorf("%+v", a.inventory)
	}
	resp, err := c.call(t.Context(), http.MethodGet, "/v1/inventory?bucket=b&versions=some")
	if err == nil {
		resp.Body.Close()
	}
	refusal(t, err, http.StatusBadRequest, "current or all")
	// An answer that ends early has no trailer.
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "\"a\"\n") }))
	t.Cleanup(cut.Close)
	if _, err := (&Client{Base: cut.URL}).Inventory(t.Context(), InventoryQuery{Bucket: "b"}, io.Discard); err == nil || !strings.Contains(err.Error(), "ended early") {
		t.Error(err)
	}
}

func TestSimulate(t *testing.T) {
	a, c := accountant(t)
	at := time.Date(2027, 1, 2, 3, 4, 5, 6000, time.UTC)
	none := func(status.SimulationProgress) {}
	out, err := c.Simulate(t.Context(), SimulateQuery{Bucket: "b", At: at, Examples: 7, Rules: []byte("<x/>"), MinimumSize: "m"}, none)
	if err != nil || out.Rows != 9 || !a.simulated.At.Equal(at) || a.simulated.Examples != 7 || string(a.simulated.Rules) != "<x/>" || a.simulated.MinimumSize != "m" {
		t.Fatalf("%+v %+v %v", out, a.simulated, err)
	}
	for _, q := range []struct {
		q    SimulateQuery
		code int
	}{
		{SimulateQuery{Bucket: "none", At: at}, http.StatusNotFound}, {SimulateQuery{Bucket: "b", At: at, Rules: []byte("bad")}, http.StatusBadRequest},
		{SimulateQuery{Bucket: "b", At: at, Examples: ExamplesMax + 1}, http.StatusBadRequest}, {SimulateQuery{Bucket: "b", At: at, Examples: -1}, http.StatusBadRequest},
		{SimulateQuery{Bucket: "b", At: at, Rules: make([]byte, RulesBytesMax+1)}, http.StatusBadRequest},
	} {
		_, err := c.Simulate(t.Context(), q.q, none)
		refusal(t, err, q.code, "")
	}
	a.fail = errors.New("no leader")
	_, err = c.Simulate(t.Context(), SimulateQuery{Bucket: "b", At: at}, none)
	refusal(t, err, http.StatusServiceUnavailable, "no leader")
}
