package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"cairn/server/status"
	"cairn/storage/errs"
)

// Accountant is what a Backend that tells what is stored, and what rules would do with it, also does. The calls may take long, and
// end with ctx.
type Accountant interface {
	// Usage calls fn with the usage of each bucket, or of one only, and answers the sums. An error of fn ends it. Errors: NoSuchBucket.
	Usage(ctx context.Context, bucket string, fn func(*status.BucketUsage) error) (status.UsageTotal, error)
	// Inventory writes a bucket's inventory; ready is called before the first byte. Errors before that: NoSuchBucket, InvalidArgument.
	Inventory(ctx context.Context, q InventoryQuery, w io.Writer, ready func()) (rows int64, err error)
	// Simulate says what lifecycle rules would do. Errors: NoSuchBucket; NotFound: the bucket has no rules; *RulesError.
	Simulate(ctx context.Context, q SimulateQuery, progress func(status.SimulationProgress)) (status.Simulation, error)
}

// InventoryQuery says what an inventory lists, see core.InventoryQuery.
type InventoryQuery struct {
	Bucket string
	Prefix string
	All    bool // all versions, not only the current ones
	Fields []string
	Header bool
}

// SimulateQuery says what to simulate.
type SimulateQuery struct {
	Bucket      string
	At          time.Time
	Examples    int
	Rules       []byte // a lifecycle configuration as XML or JSON; empty: what the bucket has
	MinimumSize string // with Rules: what x-amz-transition-default-minimum-object-size would say
}

// RulesError says that the rules to simulate are not valid.
type RulesError struct{ Err error }

func (e *RulesError) Error() string { return e.Err.Error() }
func (e *RulesError) Unwrap() error { return e.Err }

// Bounds of a simulation.
const (
	ExamplesMax   = 1000
	RulesBytesMax = 2 << 20
)

// UsageLine is one line of the answer to /v1/usage: exactly one field is set, Total or Error in the last line.
type UsageLine struct {
	Bucket *status.BucketUsage `json:"bucket,omitempty"`
	Total  *status.UsageTotal  `json:"total,omitempty"`
	Error  string              `json:"error,omitempty"`
}

// SimulateLine is one line of the answer to /v1/lifecycle/simulate: exactly one field is set, all but Progress in the last line.
type SimulateLine struct {
	Progress *status.SimulationProgress `json:"progress,omitempty"`
	Report   *status.Simulation         `json:"report,omitempty"`
	Error    string                     `json:"error,omitempty"`
}

// Trailers of an inventory: without the first it is not whole.
const (
	rowsTrailer  = "X-Cairn-Rows"
	errorTrailer = "X-Cairn-Error"
)

// lineTimeout bounds how long a client may take to read one line or piece of a stream.
const lineTimeout = 30 * time.Second

// refuse answers an error of before the first byte.
func refuse(w http.ResponseWriter, err error) {
	code := http.StatusServiceUnavailable
	var rules *RulesError
	switch errs.KindOf(err) {
	case errs.NoSuchBucket, errs.NotFound:
		code = http.StatusNotFound
	case errs.InvalidArgument:
		code = http.StatusBadRequest
	}
	if errors.As(err, &rules) {
		code = http.StatusBadRequest
	}
	http.Error(w, err.Error(), code)
}

func (h *handler) accountant(w http.ResponseWriter) (Accountant, bool) {
	a, ok := h.backend.(Accountant)
	if !ok {
		http.Error(w, "this server does not account for what it stores", http.StatusNotImplemented)
	}
	return a, ok
}

// lines sends lines of JSON, each in a time of its own.
type lines struct {
	w     http.ResponseWriter
	begun bool
}

func (l *lines) send(v any) error {
	if err := l.write(v); err != nil {
		return err
	}
	return http.NewResponseController(l.w).Flush()
}

// write is send for a line that may wait for the next flush.
func (l *lines) write(v any) error {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	_ = http.NewResponseController(l.w).SetWriteDeadline(time.Now().Add(lineTimeout))
	return json.NewEncoder(l.w).Encode(v)
}

func (h *handler) usage(w http.ResponseWriter, r *http.Request) {
	a, ok := h.accountant(w)
	if !ok {
		return
	}
	out := lines{w: w}
	total, err := a.Usage(r.Context(), r.FormValue("bucket"), func(b *status.BucketUsage) error { return out.send(UsageLine{Bucket: b}) })
	switch {
	case err != nil && !out.begun:
		refuse(w, err)
		return
	case err != nil:
		err = out.send(UsageLine{Error: err.Error()})
	default:
		err = out.send(UsageLine{Total: &total})
	}
	if err != nil {
		h.cfg.Logger.Debug("usage not sent", "error", err)
	}
}

func (h *handler) simulate(w http.ResponseWriter, r *http.Request) {
	a, ok := h.accountant(w)
	if !ok {
		return
	}
	form := r.URL.Query()
	q := SimulateQuery{Bucket: form.Get("bucket"), MinimumSize: form.Get("minimum-size")}
	var err error
	if q.At, err = time.Parse(time.RFC3339, form.Get("at")); err != nil {
		http.Error(w, "at is "+form.Get("at")+": want a time like 2027-01-01T00:00:00Z", http.StatusBadRequest)
		return
	}
	if q.Examples, err = strconv.Atoi(form.Get("examples")); err != nil || q.Examples < 0 || q.Examples > ExamplesMax {
		http.Error(w, fmt.Sprintf("examples is %s: want a number up to %d", form.Get("examples"), ExamplesMax), http.StatusBadRequest)
		return
	}
	if q.Rules, err = io.ReadAll(http.MaxBytesReader(w, r.Body, RulesBytesMax)); err != nil {
		http.Error(w, "the rules: "+err.Error(), http.StatusBadRequest)
		return
	}
	out := lines{w: w}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	last := time.Now()
	report, err := a.Simulate(ctx, q, func(p status.SimulationProgress) {
		if now := time.Now(); now.Sub(last) >= time.Second {
			last = now
			if out.send(SimulateLine{Progress: &p}) != nil {
				cancel()
			}
		}
	})
	switch {
	case err != nil && !out.begun:
		refuse(w, err)
		return
	case err != nil:
		err = out.send(SimulateLine{Error: err.Error()})
	default:
		err = out.send(SimulateLine{Report: &report})
	}
	if err != nil {
		h.cfg.Logger.Debug("simulation not sent", "error", err)
	}
}

// slowly gives each write a time of its own, since a server-wide write timeout does not fit a stream.
type slowly struct{ w http.ResponseWriter }

func (s slowly) Write(p []byte) (int, error) {
	_ = http.NewResponseController(s.w).SetWriteDeadline(time.Now().Add(lineTimeout))
	return s.w.Write(p)
}

func (h *handler) inventory(w http.ResponseWriter, r *http.Request) {
	a, ok := h.accountant(w)
	if !ok {
		return
	}
	form := r.URL.Query()
	q := InventoryQuery{Bucket: form.Get("bucket"), Prefix: form.Get("prefix"), Header: form.Get("header") == "true"}
	switch v := form.Get("versions"); v {
	case "all":
		q.All = true
	case "", "current":
	default:
		http.Error(w, "versions is "+v+": want current or all", http.StatusBadRequest)
		return
	}
	if text := form.Get("fields"); text != "" {
		q.Fields = strings.Split(text, ",")
	}
	begun := false
	rows, err := a.Inventory(r.Context(), q, slowly{w}, func() {
		begun = true
		w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		w.Header().Set("Trailer", rowsTrailer+", "+errorTrailer)
	})
	switch {
	case err != nil && !begun:
		refuse(w, err)
	case err != nil:
		w.Header().Set(errorTrailer, url.QueryEscape(err.Error()))
	default:
		w.Header().Set(rowsTrailer, strconv.FormatInt(rows, 10))
	}
}

// ---- the client ----

// eachLine decodes the lines of a stream until fn says that one was the last.
func (c *Client) eachLine(resp *http.Response, what string, fn func(line []byte) (last bool, err error)) error {
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	in.Buffer(nil, reportBytesMax)
	for in.Scan() {
		if last, err := fn(in.Bytes()); last || err != nil {
			return err
		}
	}
	if err := in.Err(); err != nil {
		return fmt.Errorf("%s from %s: %w", what, c.Base, err)
	}
	return fmt.Errorf("%s from %s: the connection ended before the answer did: is the server still up?", what, c.Base)
}

// Usage asks for the usage of every bucket, or of one, and calls fn with each.
func (c *Client) Usage(ctx context.Context, bucket string, fn func(*status.BucketUsage) error) (total status.UsageTotal, err error) {
	resp, err := c.call(ctx, http.MethodGet, "/v1/usage?"+url.Values{"bucket": {bucket}}.Encode())
	if err != nil {
		return total, err
	}
	err = c.eachLine(resp, "usage", func(line []byte) (bool, error) {
		var l UsageLine
		if err := json.Unmarshal(line, &l); err != nil {
			return true, fmt.Errorf("usage from %s: %w", c.Base, err)
		}
		switch {
		case l.Error != "":
			return true, &RefusedError{Status: resp.StatusCode, Text: l.Error}
		case l.Total != nil:
			total = *l.Total
			return true, nil
		case l.Bucket != nil:
			return false, fn(l.Bucket)
		}
		return false, nil
	})
	return total, err
}

// Simulate asks what lifecycle rules would do.
func (c *Client) Simulate(ctx context.Context, q SimulateQuery, progress func(status.SimulationProgress)) (out status.Simulation, err error) {
	form := url.Values{
		"bucket": {q.Bucket}, "at": {q.At.Format(time.RFC3339Nano)}, "examples": {strconv.Itoa(q.Examples)}, "minimum-size": {q.MinimumSize},
	}
	resp, err := c.send(ctx, http.MethodPost, "/v1/lifecycle/simulate?"+form.Encode(), bytes.NewReader(q.Rules))
	if err != nil {
		return out, err
	}
	err = c.eachLine(resp, "simulation", func(line []byte) (bool, error) {
		var l SimulateLine
		if err := json.Unmarshal(line, &l); err != nil {
			return true, fmt.Errorf("simulation from %s: %w", c.Base, err)
		}
		switch {
		case l.Error != "":
			return true, &RefusedError{Status: resp.StatusCode, Text: l.Error}
		case l.Report != nil:
			out = *l.Report
			return true, nil
		case l.Progress != nil:
			progress(*l.Progress)
		}
		return false, nil
	})
	return out, err
}

// Inventory copies a bucket's inventory to w and answers its rows. What w has got is whole only without an error.
func (c *Client) Inventory(ctx context.Context, q InventoryQuery, w io.Writer) (rows int64, err error) {
	form := url.Values{"bucket": {q.Bucket}, "prefix": {q.Prefix}, "fields": {strings.Join(q.Fields, ",")}, "header": {strconv.FormatBool(q.Header)}, "versions": {"current"}}
	if q.All {
		form.Set("versions", "all")
	}
	resp, err := c.call(ctx, http.MethodGet, "/v1/inventory?"+form.Encode())
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return 0, fmt.Errorf("inventory from %s: %w", c.Base, err)
	}
	if text := resp.Trailer.Get(errorTrailer); text != "" {
		if plain, err := url.QueryUnescape(text); err == nil {
			text = plain
		}
		return 0, &RefusedError{Status: resp.StatusCode, Text: text}
	}
	rows, err = strconv.ParseInt(resp.Trailer.Get(rowsTrailer), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("inventory from %s: it ended early", c.Base)
	}
	return rows, nil
}
