// Package admin is the HTTP face for operators and their tools, on an address
// of its own:
//
//	GET  /health/live   200 while the process serves
//	GET  /health/ready  200 if it serves reads and writes, else 503 with the reason
//	GET  /metrics       Prometheus
//	GET  /v1/status     JSON of status.Status
//	POST /v1/verify     runs a verification; lines of JSON (Line), the last one with the report or an error
//	POST /v1/cluster/token?valid=1h  JSON (TokenAnswer): a token that lets one node join
//	POST /v1/cluster/leave?node=n2&leaving=true  asks a node to leave, or to stay after all
//	POST /v1/ranges/split?group=2    JSON (SplitAnswer): splits a range of the metadata that is led by this process
//	GET  /v1/lifecycle  JSON: status.Lifecycle of every node
//	POST /v1/lifecycle/simulate?bucket=b&at=2027-01-01T00:00:00Z&examples=3  what rules (the body, or the bucket's) would do; lines of JSON (SimulateLine)
//	GET  /v1/usage?bucket=b  what is stored in one bucket or all; lines of JSON (UsageLine)
//	GET  /v1/inventory?bucket=b&versions=all&prefix=p&fields=Size,ETag&header=true  CSV as S3 Inventory's; whole if the trailer X-Cairn-Rows is there
//	GET  /v1/events/targets  JSON: status.EventTarget of every target
//	PUT  /v1/events/targets  sets a target up; the body is JSON (TargetSpec)
//	DELETE /v1/events/targets/NAME?force=true  forgets it
//	POST /v1/events/targets/NAME/test  sends it a test message; 502 with the reason if it fails
//	GET  /v1/events/status  JSON of status.Events
//	GET  /v1/events/stream?bucket=b&from=begin&follow=true  events; lines of JSON (StreamLine), the last one with end or an error
//	GET  /v1/events/dead?target=t&limit=1000  dead letters; lines of JSON (StreamLine)
//	POST /v1/events/replay?target=t&from=begin&bucket=b&dead=false  sends events again; lines of JSON (ReplayLine)
//	GET  /debug/pprof/  profiles
//
// Health and metrics need no password; the rest needs HTTP Basic with the
// root access key and secret key.
package admin

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"cairn/server/status"
)

// Backend is the process that the API speaks for. All methods may be called concurrently.
type Backend interface {
	// Ready is nil if reads and writes are served, else says why not. It is quick.
	Ready() error
	// Status looks at everything; it reads no object data and takes at most a second or two.
	Status(ctx context.Context) (status.Status, error)
	// Verify checks everything there is, calling progress (never concurrently)
	// every second or so. An error means that it could not be done; problems are in the report.
	Verify(ctx context.Context, progress func(status.Progress)) (status.Report, error)
}

// Tokens is what a Backend that is a node of a cluster also does.
type Tokens interface {
	// NewToken makes a join token that is good once and until valid has passed.
	NewToken(ctx context.Context, valid time.Duration) (string, error)
}

// Bounds of how long a join token is good.
const (
	TokenValidDefault = time.Hour
	TokenValidMax     = 30 * 24 * time.Hour
)

// TokenAnswer is the answer to /v1/cluster/token.
type TokenAnswer struct {
	Token string `json:"token"`
}

// Config is what the API needs beside the Backend.
type Config struct {
	AccessKey string       // of root
	SecretKey string       // of root; must not be empty
	Metrics   http.Handler // serves /metrics; nil serves none
	Logger    *slog.Logger // nil logs nothing
}

// Line is one line of the answer to /v1/verify: exactly one field is set.
type Line struct {
	Progress *status.Progress `json:"progress,omitempty"`
	Report   *status.Report   `json:"report,omitempty"`
	Error    string           `json:"error,omitempty"`
}

// New makes the handler.
func New(b Backend, cfg Config) http.Handler {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &handler{backend: b, cfg: cfg}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health/live", h.live)
	mux.HandleFunc("GET /health/ready", h.ready)
	if cfg.Metrics != nil {
		mux.Handle("GET /metrics", cfg.Metrics)
	}
	mux.HandleFunc("GET /v1/status", h.root(h.status))
	mux.HandleFunc("POST /v1/verify", h.root(h.verify))
	mux.HandleFunc("POST /v1/cluster/token", h.root(h.token))
	mux.HandleFunc("POST /v1/cluster/leave", h.root(h.leave))
	mux.HandleFunc("POST /v1/ranges/split", h.root(h.split))
	mux.HandleFunc("GET /v1/lifecycle", h.root(h.lifecycle))
	mux.HandleFunc("POST /v1/lifecycle/simulate", h.root(h.simulate))
	mux.HandleFunc("GET /v1/usage", h.root(h.usage))
	mux.HandleFunc("GET /v1/inventory", h.root(h.inventory))
	h.handleEvents(mux)
	mux.HandleFunc("GET /debug/pprof/", h.root(pprof.Index))
	mux.HandleFunc("GET /debug/pprof/cmdline", h.root(pprof.Cmdline))
	mux.HandleFunc("GET /debug/pprof/profile", h.root(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/symbol", h.root(pprof.Symbol))
	mux.HandleFunc("GET /debug/pprof/trace", h.root(pprof.Trace))
	return mux
}

type handler struct {
	backend   Backend
	cfg       Config
	verifying sync.Mutex // held while a verification runs: one at a time
}

func (h *handler) live(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, "live\n")
}

func (h *handler) ready(w http.ResponseWriter, r *http.Request) {
	if err := h.backend.Ready(); err != nil {
		http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
		return
	}
	io.WriteString(w, "ready\n")
}

// root lets only the root keys in. Digests are compared, so that time tells nothing of length or content.
func (h *handler) root(next http.HandlerFunc) http.HandlerFunc {
	want := digest(h.cfg.AccessKey, h.cfg.SecretKey)
	return func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		got := digest(user, password)
		if !ok || h.cfg.SecretKey == "" || subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="cairn"`)
			http.Error(w, "the root access key and secret key are needed (HTTP Basic)", http.StatusUnauthorized)
			return
		}
		next(w, r)
	}
}

func digest(user, password string) [sha256.Size]byte {
	u, p := sha256.Sum256([]byte(user)), sha256.Sum256([]byte(password))
	return sha256.Sum256(append(u[:], p[:]...))
}

func (h *handler) status(w http.ResponseWriter, r *http.Request) {
	s, err := h.backend.Status(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(s); err != nil {
		h.cfg.Logger.Debug("status not sent", "error", err)
	}
}

func (h *handler) token(w http.ResponseWriter, r *http.Request) {
	tokens, ok := h.backend.(Tokens)
	if !ok {
		http.Error(w, "this server is not a node of a cluster: one begins with --node, --zone and --cluster-init", http.StatusNotImplemented)
		return
	}
	valid := TokenValidDefault
	if text := r.FormValue("valid"); text != "" {
		var err error
		if valid, err = time.ParseDuration(text); err != nil || valid <= 0 || valid > TokenValidMax {
			http.Error(w, "valid is "+text+": want a duration like 1h, up to "+TokenValidMax.String(), http.StatusBadRequest)
			return
		}
	}
	token, err := tokens.NewToken(r.Context(), valid)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err := json.NewEncoder(w).Encode(TokenAnswer{token}); err != nil {
		h.cfg.Logger.Debug("join token not sent", "error", err)
	}
}

// verify streams, because a verification may take hours; it ends when the client goes away.
func (h *handler) verify(w http.ResponseWriter, r *http.Request) {
	if !h.verifying.TryLock() {
		http.Error(w, "a verification is running already: wait for it, or stop it where it was started", http.StatusConflict)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	w.Header().Set("Content-Type", "application/x-ndjson")
	ctl := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	send := func(l Line) {
		// A server-wide write timeout does not fit a stream; each line gets its own.
		_ = ctl.SetWriteDeadline(time.Now().Add(30 * time.Second))
		if err := enc.Encode(l); err != nil {
			cancel()
			return
		}
		_ = ctl.Flush()
	}
	report, err := func() (status.Report, error) {
		defer h.verifying.Unlock() // before the last line: who has read it may begin the next one
		return h.backend.Verify(ctx, func(p status.Progress) { send(Line{Progress: &p}) })
	}()
	if err != nil {
		send(Line{Error: err.Error()})
		return
	}
	send(Line{Report: &report})
}
