package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"cairn/server/status"
	"cairn/storage/errs"
)

// sender is a backend with events.
type sender struct {
	fake
	spec    *TargetSpec
	removed []string
	stream  StreamQuery
	replay  ReplayQuery
	events  int           // that a stream has
	fail    error         // of every call
	gone    chan struct{} // closed once a stream that follows has ended
	sent    status.ReplayProgress
}

func (s *sender) EventTargets(context.Context) ([]status.EventTarget, error) {
	return []status.EventTarget{{Name: "t", Kind: "webhook", Secrets: []string{"secret"}}}, s.fail
}

func (s *sender) PutEventTarget(_ context.Context, t *TargetSpec) error { s.spec = t; return s.fail }

func (s *sender) RemoveEventTarget(_ context.Context, name string, force bool) error {
	s.removed = append(s.removed, fmt.Sprint(name, force))
	return s.fail
}

func (s *sender) TestEventTarget(context.Context, string) error { return s.fail }

func (s *sender) EventsStatus(context.Context) (status.Events, error) {
	return status.Events{Targets: []status.EventLoad{{Target: "t", Queued: 3}}}, s.fail
}

func (s *sender) StreamEvents(ctx context.Context, q StreamQuery, fn func(*status.EventLine) error) error {
	s.stream = q
	for i := range s.events {
		if err := fn(&status.EventLine{Position: fmt.Sprint("p", i), Event: json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))}); err != nil {
			return err
		}
	}
	if q.Follow && s.fail == nil {
		<-ctx.Done()
		close(s.gone)
		return ctx.Err()
	}
	return s.fail
}

func (s *sender) ReplayEvents(_ context.Context, q ReplayQuery, progress func(status.ReplayProgress)) (status.ReplayProgress, error) {
	s.replay = q
	progress(s.sent)
	return s.sent, s.fail
}

func (s *sender) DeadEvents(_ context.Context, target string, max int, fn func(*status.DeadEvent) error) error {
	for range min(s.events, max) {
		if err := fn(&status.DeadEvent{Target: target, Error: "why", Event: json.RawMessage("{}")}); err != nil {
			return err
		}
	}
	return s.fail
}

func startSender(t *testing.T) (*sender, *Client) {
	b := &sender{gone: make(chan struct{})}
	s := httptest.NewServer(New(b, Config{AccessKey: "AK", SecretKey: "SK"}))
	t.Cleanup(s.Close)
	return b, &Client{Base: s.URL, AccessKey: "AK", SecretKey: "SK"}
}

func TestEventTargets(t *testing.T) {
	b, c := startSender(t)
	ctx := t.Context()
	if all, err := c.EventTargets(ctx); err != nil || len(all) != 1 || all[0].Secrets[0] != "secret" {
		t.Errorf("%+v %v", all, err)
	}
	spec := &TargetSpec{
		Name: "t", Kind: "webhook", Settings: map[string]string{"url": "http://h/"}, Secrets: map[string]string{"secret": "s"},
		WhenFull: "hold", QueueMax: 5, MaxAge: "1h0m0s", CloudEvents: true, Replace: true,
	}
	if err := c.PutEventTarget(ctx, spec); err != nil || !reflect.DeepEqual(b.spec, spec) {
		t.Errorf("%+v %v", b.spec, err)
	}
	if err := c.RemoveEventTarget(ctx, "a.b-c", true); err != nil || b.removed[0] != "a.b-ctrue" {
		t.Errorf("%v %v", b.removed, err)
	}
	if err := c.TestEventTarget(ctx, "t"); err != nil {
		t.Error(err)
	}
	if st, err := c.EventsStatus(ctx); err != nil || st.Targets[0].Queued != 3 {
		t.Errorf("%+v %v", st, err)
	}
	for kind, code := range map[errs.Kind]int{
		errs.NotFound: 404, errs.InvalidArgument: 400, errs.Conflict: 409, errs.InvalidRequest: 502, errs.Unavailable: 503, errs.NoSuchBucket: 404, errs.EntityTooLarge: 400,
	} {
		b.fail = errs.New(kind, "events", "t", "because")
		for what, err := range map[string]error{
			"put": c.PutEventTarget(ctx, spec), "remove": c.RemoveEventTarget(ctx, "t", false), "test": c.TestEventTarget(ctx, "t"),
			"stream": c.StreamEvents(ctx, StreamQuery{}, nil), "dead": c.DeadEvents(ctx, "t", 1, nil),
		} {
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Status != code || !strings.Contains(refused.Text, "because") {
				t.Errorf("%s, %v: %v", what, kind, err)
			}
		}
	}
}

// TestEventsNeedRoot: no way to events is open, and a backend without them says so.
func TestEventsNeedRoot(t *testing.T) {
	_, c := startSender(t)
	_, plain := start(t, &fake{})
	for _, way := range []string{
		"GET /v1/events/targets", "PUT /v1/events/targets", "DELETE /v1/events/targets/t", "POST /v1/events/targets/t/test", "GET /v1/events/status",
		"GET /v1/events/stream", "GET /v1/events/dead", "POST /v1/events/replay",
	} {
		method, path, _ := strings.Cut(way, " ")
		for want, client := range map[int]*Client{http.StatusUnauthorized: {Base: c.Base, AccessKey: "AK", SecretKey: "no"}, http.StatusNotImplemented: plain} {
			_, err := client.call(t.Context(), method, path)
			var refused *RefusedError
			if !errors.As(err, &refused) || refused.Status != want {
				t.Errorf("%s: %v, want %d", way, err, want)
			}
		}
	}
	for _, way := range []string{"GET /v1/events/stream?follow=perhaps", "POST /v1/events/replay?dead=x", "POST /v1/events/replay?dead=true&from=begin", "GET /v1/events/dead?limit=0", "DELETE /v1/events/targets/t?force=2"} {
		method, path, _ := strings.Cut(way, " ")
		_, err := c.call(t.Context(), method, path)
		var refused *RefusedError
		if !errors.As(err, &refused) || refused.Status != http.StatusBadRequest {
			t.Errorf("%s: %v", way, err)
		}
	}
	_, err := c.send(t.Context(), http.MethodPut, "/v1/events/targets", strings.NewReader(`{"name":"t","colour":"red"}`))
	var refused *RefusedError
	if !errors.As(err, &refused) || refused.Status != http.StatusBadRequest {
		t.Errorf("a setting that there is not: %v", err)
	}
}

func TestEventStream(t *testing.T) {
	b, c := startSender(t)
	b.events = 1000
	var got []string
	note := func(l *status.EventLine) error { got = append(got, l.Position+string(l.Event)); return nil }
	if err := c.StreamEvents(t.Context(), StreamQuery{Bucket: "b", From: "begin"}, note); err != nil || len(got) != 1000 || got[999] != `p999{"n":999}` {
		t.Errorf("%d lines, %v", len(got), err)
	}
	if b.stream != (StreamQuery{Bucket: "b", From: "begin"}) {
		t.Errorf("%+v", b.stream)
	}
	b.fail = errors.New("no leader") // after some
	if err := c.StreamEvents(t.Context(), StreamQuery{}, note); err == nil || err.Error() != "no leader" {
		t.Error(err)
	}
	b.fail = nil
	// One that follows gives what there is at once, and ends with its client.
	b.events = 1
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan string, 1)
	done := make(chan error)
	go func() {
		done <- c.StreamEvents(ctx, StreamQuery{Follow: true}, func(l *status.EventLine) error { seen <- l.Position; return nil })
	}()
	if p := <-seen; p != "p0" {
		t.Error(p)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-b.gone
}

func TestDeadEvents(t *testing.T) {
	b, c := startSender(t)
	b.events = 5
	n := 0
	if err := c.DeadEvents(t.Context(), "t", 3, func(d *status.DeadEvent) error {
		if n++; d.Target != "t" || d.Error != "why" || string(d.Event) != "{}" {
			t.Errorf("%+v", d)
		}
		return nil
	}); err != nil || n != 3 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestReplay(t *testing.T) {
	b, c := startSender(t)
	b.sent = status.ReplayProgress{Sent: 7, Refused: 1, Position: "p", Lost: true}
	q := ReplayQuery{Target: "t", From: "begin", Bucket: "b"}
	p, err := c.ReplayEvents(t.Context(), q, nil)
	if err != nil || p != b.sent || b.replay != q {
		t.Errorf("%+v %v, asked %+v", p, err, b.replay)
	}
	b.fail = errors.New("the target is away")
	if p, err := c.ReplayEvents(t.Context(), q, nil); err == nil || err.Error() != "the target is away" || p.Position != "p" {
		t.Errorf("%+v %v", p, err)
	}
	b.sent, b.fail = status.ReplayProgress{}, errs.New(errs.NotFound, "events", "t", "")
	var refused *RefusedError
	if _, err := c.ReplayEvents(t.Context(), q, nil); !errors.As(err, &refused) || refused.Status != 404 {
		t.Error(err)
	}
}

// TestStreamCutOff: a stream without its last line is not taken for a whole one.
func TestStreamCutOff(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `{"position":"p","event":{}}`)
	}))
	defer s.Close()
	c := &Client{Base: s.URL}
	var cut *StreamCutError
	n := 0
	if err := c.StreamEvents(t.Context(), StreamQuery{}, func(*status.EventLine) error { n++; return nil }); !errors.As(err, &cut) || n != 1 {
		t.Errorf("%d lines, %v", n, err)
	}
	if _, err := c.ReplayEvents(t.Context(), ReplayQuery{}, nil); !errors.As(err, &cut) {
		t.Error(err)
	}
}
