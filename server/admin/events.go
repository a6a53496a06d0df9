package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"cairn/server/status"
	"cairn/storage/errs"
)

// Eventer is what a Backend that sends events also does. Calls with fn may take long, and end with ctx; an error of fn ends them.
type Eventer interface {
	EventTargets(ctx context.Context) ([]status.EventTarget, error)
	// PutEventTarget sets a target up. Errors: InvalidArgument; Conflict: there is one of that name, without Replace.
	PutEventTarget(ctx context.Context, t *TargetSpec) error
	// RemoveEventTarget forgets one; with force also its dead letters, even if only they are left of it. Errors: NotFound; Conflict: it is needed, without force.
	RemoveEventTarget(ctx context.Context, name string, force bool) error
	// TestEventTarget sends a target a test message. Errors: NotFound; InvalidRequest: the target fails, and why.
	TestEventTarget(ctx context.Context, name string) error
	EventsStatus(ctx context.Context) (status.Events, error)
	// StreamEvents calls fn with events in the order of each key. Errors: NoSuchBucket, InvalidArgument.
	StreamEvents(ctx context.Context, q StreamQuery, fn func(*status.EventLine) error) error
	// ReplayEvents sends kept events or dead letters again and answers how far it came, also with an error. Errors: NotFound,
	// NoSuchBucket, InvalidArgument; InvalidRequest: the target fails, and why.
	ReplayEvents(ctx context.Context, q ReplayQuery, progress func(status.ReplayProgress)) (status.ReplayProgress, error)
	// DeadEvents calls fn with dead letters of a target (empty: of all), max at most, also of targets that are gone. Errors: NotFound.
	DeadEvents(ctx context.Context, target string, max int, fn func(*status.DeadEvent) error) error
}

// TargetSpec is how a target is to be set up.
type TargetSpec struct {
	Name        string            `json:"name"`
	Kind        string            `json:"kind"`
	Settings    map[string]string `json:"settings,omitempty"`
	Secrets     map[string]string `json:"secrets,omitempty"`
	WhenFull    string            `json:"when_full,omitempty"` // drop, which empty is too, or hold
	QueueMax    uint64            `json:"queue_max,omitempty"` // 0: the default
	MaxAge      string            `json:"max_age,omitempty"`   // a duration; empty: the default
	CloudEvents bool              `json:"cloudevents,omitempty"`
	Replace     bool              `json:"replace,omitempty"`
}

// StreamQuery says which events are streamed, see core.TailQuery.
type StreamQuery struct {
	Bucket string
	From   string
	Follow bool
}

// ReplayQuery says what is sent again, see core.ReplayQuery.
type ReplayQuery struct {
	Target string
	From   string
	Bucket string
	Dead   bool
}

// Bounds of what is asked about events.
const (
	targetBytesMax = 256 << 10
	DeadEventsMax  = 100_000
	deadDefault    = 1000
)

// ReplayLine is one line of the answer to /v1/events/replay: exactly one of the first two is set, Done or an error in the last line.
type ReplayLine struct {
	Progress *status.ReplayProgress `json:"progress,omitempty"`
	Done     *status.ReplayProgress `json:"done,omitempty"` // how far it came, with an error too
	Error    string                 `json:"error,omitempty"`
}

// StreamLine is one line of the answer to /v1/events/stream and /v1/events/dead.
type StreamLine struct {
	*status.EventLine
	Dead  *status.DeadEvent `json:"dead,omitempty"`
	End   bool              `json:"end,omitempty"` // the last line of what is whole
	Error string            `json:"error,omitempty"`
}

func (h *handler) handleEvents(mux *http.ServeMux) {
	with := func(fn func(Eventer, http.ResponseWriter, *http.Request)) http.HandlerFunc {
		return h.root(func(w http.ResponseWriter, r *http.Request) {
			e, ok := h.backend.(Eventer)
			if !ok {
				http.Error(w, "this server sends no events", http.StatusNotImplemented)
				return
			}
			fn(e, w, r)
		})
	}
	mux.HandleFunc("GET /v1/events/targets", with(h.eventTargets))
	mux.HandleFunc("PUT /v1/events/targets", with(h.putEventTarget))
	mux.HandleFunc("DELETE /v1/events/targets/{name}", with(h.removeEventTarget))
	mux.HandleFunc("POST /v1/events/targets/{name}/test", with(h.testEventTarget))
	mux.HandleFunc("GET /v1/events/status", with(h.eventsStatus))
	mux.HandleFunc("GET /v1/events/stream", with(h.streamEvents))
	mux.HandleFunc("GET /v1/events/dead", with(h.deadEvents))
	mux.HandleFunc("POST /v1/events/replay", with(h.replayEvents))
}

// refuseEvent is refuse with what targets answer besides.
func refuseEvent(w http.ResponseWriter, err error) {
	switch errs.KindOf(err) {
	case errs.Conflict:
		http.Error(w, err.Error(), http.StatusConflict)
	case errs.InvalidRequest:
		http.Error(w, err.Error(), http.StatusBadGateway)
	case errs.EntityTooLarge:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		refuse(w, err)
	}
}

// answer sends v as JSON.
func (h *handler) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		h.cfg.Logger.Debug("answer not sent", "error", err)
	}
}

func (h *handler) eventTargets(e Eventer, w http.ResponseWriter, r *http.Request) {
	all, err := e.EventTargets(r.Context())
	if err != nil {
		refuseEvent(w, err)
		return
	}
	h.answer(w, all)
}

func (h *handler) putEventTarget(e Eventer, w http.ResponseWriter, r *http.Request) {
	spec := &TargetSpec{}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, targetBytesMax))
	dec.DisallowUnknownFields()
	if err := dec.Decode(spec); err != nil {
		http.Error(w, "the target: "+err.Error(), http.StatusBadRequest)
		return
	}
	if err := e.PutEventTarget(r.Context(), spec); err != nil {
		refuseEvent(w, err)
		return
	}
	h.answer(w, struct{}{})
}

func (h *handler) removeEventTarget(e Eventer, w http.ResponseWriter, r *http.Request) {
	force, ok := flag(w, r, "force")
	if !ok {
		return
	}
	if err := e.RemoveEventTarget(r.Context(), r.PathValue("name"), force); err != nil {
		refuseEvent(w, err)
		return
	}
	h.answer(w, struct{}{})
}

// flag reads a parameter that is true or false, which is what an absent one is; ok is false if it is neither, which was answered then.
func flag(w http.ResponseWriter, r *http.Request, name string) (v, ok bool) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return false, true
	}
	v, err := strconv.ParseBool(text)
	if err != nil {
		http.Error(w, name+" must be true or false", http.StatusBadRequest)
	}
	return v, err == nil
}

func (h *handler) testEventTarget(e Eventer, w http.ResponseWriter, r *http.Request) {
	if err := e.TestEventTarget(r.Context(), r.PathValue("name")); err != nil {
		refuseEvent(w, err)
		return
	}
	h.answer(w, struct{}{})
}

func (h *handler) eventsStatus(e Eventer, w http.ResponseWriter, r *http.Request) {
	s, err := e.EventsStatus(r.Context())
	if err != nil {
		refuseEvent(w, err)
		return
	}
	h.answer(w, s)
}

// streamEvents streams until it is at the end, or, with follow, the client goes away. Lines are flushed when there is a moment's pause at the latest.
func (h *handler) streamEvents(e Eventer, w http.ResponseWriter, r *http.Request) {
	form := r.URL.Query()
	follow, ok := flag(w, r, "follow")
	if !ok {
		return
	}
	out := &batchedLines{out: lines{w: w}}
	defer out.stop()
	err := e.StreamEvents(r.Context(), StreamQuery{Bucket: form.Get("bucket"), From: form.Get("from"), Follow: follow}, func(l *status.EventLine) error {
		return out.send(StreamLine{EventLine: l})
	})
	h.endStream(out, w, err)
}

func (h *handler) deadEvents(e Eventer, w http.ResponseWriter, r *http.Request) {
	form := r.URL.Query()
	limit := deadDefault
	if text := form.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > DeadEventsMax {
			http.Error(w, fmt.Sprintf("limit is %s: want a number up to %d", text, DeadEventsMax), http.StatusBadRequest)
			return
		}
	}
	out := &batchedLines{out: lines{w: w}}
	defer out.stop()
	err := e.DeadEvents(r.Context(), form.Get("target"), limit, func(d *status.DeadEvent) error { return out.send(StreamLine{Dead: d}) })
	h.endStream(out, w, err)
}

// endStream ends a stream with a line that says whether it is whole.
func (h *handler) endStream(out *batchedLines, w http.ResponseWriter, err error) {
	switch {
	case err != nil && !out.begun():
		refuseEvent(w, err)
		return
	case err != nil:
		err = out.send(StreamLine{Error: err.Error()})
	default:
		err = out.send(StreamLine{End: true})
	}
	if err != nil {
		h.cfg.Logger.Debug("stream of events not sent", "error", err)
	}
}

func (h *handler) replayEvents(e Eventer, w http.ResponseWriter, r *http.Request) {
	form := r.URL.Query()
	dead, ok := flag(w, r, "dead")
	if !ok {
		return
	}
	if dead && form.Get("from") != "" {
		http.Error(w, "from is of events that are kept; dead letters are all sent again", http.StatusBadRequest)
		return
	}
	out := lines{w: w}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	last := time.Now()
	p, err := e.ReplayEvents(ctx, ReplayQuery{Target: form.Get("target"), From: form.Get("from"), Bucket: form.Get("bucket"), Dead: dead}, func(p status.ReplayProgress) {
		if now := time.Now(); now.Sub(last) >= time.Second {
			last = now
			if out.send(ReplayLine{Progress: &p}) != nil {
				cancel()
			}
		}
	})
	switch {
	case err != nil && !out.begun && p == (status.ReplayProgress{}):
		refuseEvent(w, err)
		return
	case err != nil:
		err = out.send(ReplayLine{Done: &p, Error: err.Error()})
	default:
		err = out.send(ReplayLine{Done: &p})
	}
	if err != nil {
		h.cfg.Logger.Debug("replay's end not sent", "error", err)
	}
}

// flushAfter is how long a line of a stream may wait for others to go with it.
const flushAfter = 50 * time.Millisecond

// batchedLines sends lines of JSON that are flushed together if they come quickly one after another.
type batchedLines struct {
	mu    sync.Mutex
	out   lines
	err   error
	timer *time.Timer // to flush; nil: nothing waits
	ended bool
}

func (b *batchedLines) begun() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.begun
}

func (b *batchedLines) send(v any) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = b.out.write(v)
	}
	if b.err == nil && b.timer == nil {
		b.timer = time.AfterFunc(flushAfter, b.flush)
	}
	return b.err
}

func (b *batchedLines) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = nil
	if !b.ended && b.err == nil {
		b.err = http.NewResponseController(b.out.w).Flush()
	}
}

// stop has nothing flushed any more: the answer ends.
func (b *batchedLines) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	if b.timer != nil {
		b.timer.Stop()
	}
}
