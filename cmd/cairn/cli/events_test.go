package cli

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/server/admin"
	"cairn/server/config"
	"cairn/server/status"
	"cairn/storage/errs"
)

// sending is a server with events.
type sending struct {
	backend
	spec    *admin.TargetSpec
	forced  bool
	streams []admin.StreamQuery
	replay  admin.ReplayQuery
	fail    error
}

func (s *sending) EventTargets(context.Context) ([]status.EventTarget, error) {
	return []status.EventTarget{{Name: "hooks", Kind: "webhook", WhenFull: "hold", Settings: map[string]string{"url": "http://h/"}, Secrets: []string{"secret"}, QueueMax: 5}, {Name: "kept", Kind: "log"}}, s.fail
}
func (s *sending) PutEventTarget(_ context.Context, t *admin.TargetSpec) error {
	s.spec = t
	return s.fail
}
func (s *sending) RemoveEventTarget(_ context.Context, _ string, force bool) error {
	s.forced = force
	return s.fail
}
func (s *sending) TestEventTarget(context.Context, string) error { return s.fail }
func (s *sending) EventsStatus(context.Context) (status.Events, error) {
	at := time.Now().Add(-time.Minute)
	return status.Events{
		Targets: []status.EventLoad{{Target: "gone", Queued: 2, QueuedBytes: 500, OldestSeconds: 90}, {Target: "hooks", Kind: "webhook", Delivered: 7, Dead: 2, DeadKept: 1, Held: true}},
		Buckets: []status.BucketLoad{{Bucket: "photos", Target: "hooks", Delivered: 7}}, Kept: 9,
		Workers: []status.EventWorker{{Node: "n1", Target: "hooks", Error: "connection refused", At: &at}},
	}, s.fail
}
func (s *sending) StreamEvents(_ context.Context, q admin.StreamQuery, fn func(*status.EventLine) error) error {
	s.streams = append(s.streams, q)
	for _, l := range []status.EventLine{{Lost: true}, {Position: "p1", Event: json.RawMessage(`{"eventName":"ObjectCreated:Put"}`)}, {Position: "p2"}} {
		if err := fn(&l); err != nil {
			return err
		}
	}
	return s.fail
}
func (s *sending) ReplayEvents(_ context.Context, q admin.ReplayQuery, _ func(status.ReplayProgress)) (status.ReplayProgress, error) {
	s.replay = q
	return status.ReplayProgress{Sent: 3, Refused: 1, Position: "p9", Lost: true}, s.fail
}
func (s *sending) DeadEvents(_ context.Context, target string, _ int, fn func(*status.DeadEvent) error) error {
	if s.fail != nil {
		return s.fail
	}
	return fn(&status.DeadEvent{Target: target, Error: "too large", Event: json.RawMessage(`{}`)})
}

// asks is a command line for the server.
func (s *sending) asks(t *testing.T) func(args ...string) (code int, stdout, stderr string) {
	dir, addr := runningAs(t, s)
	return func(args ...string) (int, string, string) {
		t.Helper()
		return run(t, Deps{}, append(args, "--data-dir", dir, "--admin-listen", addr)...)
	}
}

func TestTargetAdd(t *testing.T) {
	s := &sending{}
	ask := s.asks(t)
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("from=a,file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOOK_AUTH", "Bearer x")
	code, out, errOut := ask("events", "target", "add", "hooks", "webhook", "--set", "url=http://h/?a=b,c", "--set", "batch=5", "--secret", "secret=@"+file,
		"--secret", "authorization=env:HOOK_AUTH", "--when-full", "hold", "--queue-max", "100", "--max-age", "2h", "--cloudevents", "--replace")
	want := &admin.TargetSpec{
		Name: "hooks", Kind: "webhook", Settings: map[string]string{"url": "http://h/?a=b,c", "batch": "5"}, Secrets: map[string]string{"secret": "from=a,file", "authorization": "Bearer x"},
		WhenFull: "hold", QueueMax: 100, MaxAge: "2h0m0s", CloudEvents: true, Replace: true,
	}
	if code != ExitOK || !reflect.DeepEqual(s.spec, want) || !strings.Contains(out, "cairn events target test hooks") {
		t.Fatalf("exit %d\n%s%s\n%+v", code, out, errOut, s.spec)
	}
	s.spec = nil
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"hooks"}, ExitUsage, "kind"},
		{[]string{"hooks", "webhook", "--set", "url"}, ExitUsage, "NAME=VALUE"},
		{[]string{"hooks", "webhook", "--set", "url=a", "--set", "url=b"}, ExitUsage, "twice"},
		{[]string{"hooks", "webhook", "--set", "secret=open sesame"}, ExitUsage, "--secret secret=@FILE"},
		{[]string{"hooks", "webhook", "--secret", "secret=open sesame"}, ExitUsage, "env:VARIABLE"},
		{[]string{"hooks", "webhook", "--secret", "secret"}, ExitUsage, "NAME=@FILE"},
		{[]string{"hooks", "webhook", "--secret", "secret=env:NO_SUCH_VARIABLE_HERE"}, ExitFailed, "not set"},
		{[]string{"hooks", "webhook", "--secret", "secret=@" + file + ".no"}, ExitFailed, "no such file"},
		{[]string{"hooks", "webhook", "--when-full", "wait"}, ExitUsage, "drop"},
		{[]string{"hooks", "webhook", "--max-age=-1s"}, ExitUsage, "24h"},
	} {
		code, _, errOut := ask(append([]string{"events", "target", "add"}, c.args...)...)
		if code != c.code || !strings.Contains(errOut, c.says) || strings.Contains(errOut, "sesame") {
			t.Errorf("%q: exit %d %s", c.args, code, errOut)
		}
	}
	if s.spec != nil {
		t.Errorf("set up: %+v", s.spec)
	}
	s.fail = errs.New(errs.Conflict, "events", "hooks", "there is a target of that name: replace it with --replace")
	if code, _, errOut := ask("events", "target", "add", "hooks", "webhook"); code != ExitFailed || !strings.Contains(errOut, "--replace") {
		t.Errorf("exit %d %s", code, errOut)
	}
}

// TestSecretFromInput: one secret may come from the standard input.
func TestSecretFromInput(t *testing.T) {
	spec := &admin.TargetSpec{Secrets: map[string]string{}}
	if err := (&targetAddCmd{Secret: []string{"a=-"}}).secrets(spec, strings.NewReader("line\r\n")); err != nil || spec.Secrets["a"] != "line" {
		t.Errorf("%q %v", spec.Secrets, err)
	}
	if err := (&targetAddCmd{Secret: []string{"b=-", "c=-"}}).secrets(spec, strings.NewReader("x")); err == nil {
		t.Error("two from the standard input")
	}
}

func TestTargets(t *testing.T) {
	s := &sending{}
	ask := s.asks(t)
	if code, out, errOut := ask("events", "target", "list"); code != ExitOK || !strings.Contains(out, "secret=(secret) url=http://h/") || !strings.Contains(out, "hold") {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	code, out, _ := ask("events", "target", "list", "--json")
	var all []status.EventTarget
	if err := json.Unmarshal([]byte(out), &all); code != ExitOK || err != nil || all[0].Name != "hooks" {
		t.Errorf("exit %d %v\n%s", code, err, out)
	}
	if code, out, _ := ask("events", "target", "test", "hooks"); code != ExitOK || !strings.Contains(out, "took a test message") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, out, _ := ask("events", "target", "test", "kept"); code != ExitOK || !strings.Contains(out, "nothing is sent") || strings.Contains(out, "took") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, _, _ := ask("events", "target", "remove", "hooks", "--force"); code != ExitOK || !s.forced {
		t.Errorf("exit %d", code)
	}
	s.fail = errs.New(errs.InvalidRequest, "events", "hooks", "connection refused")
	if code, _, errOut := ask("events", "target", "test", "hooks"); code != ExitFailed || !strings.Contains(errOut, "connection refused") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
	if code, out, _ := run(t, Deps{}, "events", "target", "kinds"); code != ExitOK || !strings.Contains(out, "webhook ") || !strings.Contains(out, "kinds KIND") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, out, _ := run(t, Deps{}, "events", "target", "kinds", "webhook"); code != ExitOK || !strings.Contains(out, "webhook: ") || !strings.Contains(out, "(secret)") || strings.Contains(out, "nats") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, _, errOut := run(t, Deps{}, "events", "target", "kinds", "pigeon"); code != ExitUsage || !strings.Contains(errOut, "webhook") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
}

func TestEventsStatus(t *testing.T) {
	s := &sending{}
	ask := s.asks(t)
	code, out, errOut := ask("events", "status")
	for _, want := range []string{"NO SUCH TARGET", "2 (500 B)", "1m30s", "2 (1 kept)", "HOLDS WRITES", "photos", "! node n1, target hooks, 1m", "connection refused", "9 events"} {
		if !strings.Contains(out, want) {
			t.Errorf("exit %d, no %q in\n%s%s", code, want, out, errOut)
		}
	}
	code, out, _ = ask("events", "status", "--json")
	var st status.Events
	if err := json.Unmarshal([]byte(out), &st); code != ExitOK || err != nil || st.Targets[1].Delivered != 7 {
		t.Errorf("exit %d %v\n%s", code, err, out)
	}
}

func TestEventsTail(t *testing.T) {
	s := &sending{}
	ask := s.asks(t)
	const lines = `{"lost":true}` + "\n" + `{"position":"p1","event":{"eventName":"ObjectCreated:Put"}}` + "\n"
	if code, out, errOut := ask("events", "tail", "photos", "--no-follow"); code != ExitOK || out != lines {
		t.Errorf("exit %d\n%s%s", code, out, errOut)
	}
	if code, _, _ := ask("events", "tail", "--no-follow", "--from", "2027-01-02T00:00:00Z"); code != ExitOK {
		t.Errorf("exit %d", code)
	}
	if want := []admin.StreamQuery{{Bucket: "photos", From: "begin"}, {From: "2027-01-02T00:00:00Z"}}; !reflect.DeepEqual(s.streams, want) {
		t.Errorf("%+v", s.streams)
	}
	s.fail = errs.New(errs.InvalidArgument, "events", "", "this is not a position")
	if code, _, errOut := ask("events", "tail", "photos", "--from", "x"); code != ExitFailed || !strings.Contains(errOut, "not a position") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
}

// TestTailGoesOn: a tail that was cut off goes on from where it was; one that the server ends does not.
func TestTailGoesOn(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := config.EnsureCredentials(dir); err != nil {
		t.Fatal(err)
	}
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch asked = append(asked, r.FormValue("from")); len(asked) {
		case 1: // it is cut off
			io.WriteString(w, `{"position":"p1","event":{"n":1}}`+"\n")
		case 2:
			http.Error(w, "it is starting", http.StatusServiceUnavailable)
		default:
			io.WriteString(w, `{"position":"p2","event":{"n":2}}`+"\n"+`{"error":"the bucket is gone"}`+"\n")
		}
	}))
	defer s.Close()
	code, out, errOut := run(t, Deps{}, "events", "tail", "--from", "p0", "--data-dir", dir, "--admin-listen", strings.TrimPrefix(s.URL, "http://"))
	if code != ExitFailed || strings.Count(out, "event") != 2 || !strings.Contains(errOut, "the bucket is gone") || !slices.Equal(asked, []string{"p0", "p1", "p1"}) {
		t.Errorf("exit %d, asked %q\n%s%s", code, asked, out, errOut)
	}
}

// fullDisk is a standard output that takes so many writes.
type fullDisk struct{ room, tried int }

func (f *fullDisk) Write(p []byte) (int, error) {
	if f.tried++; f.tried > f.room {
		return 0, errors.New("no space left on device")
	}
	return len(p), nil
}

// TestTailOutputFails: a line that cannot be written ends a tail at once, with that error, and the server is not blamed.
func TestTailOutputFails(t *testing.T) {
	s := &sending{fail: errors.New("never reached")}
	dir, addr := runningAs(t, s)
	for _, args := range [][]string{{"tail"}, {"tail", "--no-follow"}, {"dead"}} {
		s.streams = nil
		disk, errOut := &fullDisk{}, &strings.Builder{}
		if args[0] == "tail" {
			disk.room = 1
		} else {
			s.fail = nil
		}
		code := Run(t.Context(), append(append([]string{"events"}, args...), "--data-dir", dir, "--admin-listen", addr), Deps{Stdout: disk, Stderr: errOut, Now: time.Now})
		if code != ExitFailed || !strings.Contains(errOut.String(), "no space left") || strings.Contains(errOut.String(), "running") || disk.tried != disk.room+1 || len(s.streams) > 1 {
			t.Errorf("%v: exit %d, %d writes, asked %+v\n%s", args, code, disk.tried, s.streams, errOut)
		}
	}
}

func TestEventsReplay(t *testing.T) {
	s := &sending{}
	ask := s.asks(t)
	code, out, errOut := ask("events", "replay", "hooks", "--from", "begin", "--bucket", "photos")
	if code != ExitOK || out != "3 sent, 1 refused by the target\n" || !strings.Contains(errOut, "not kept any more") || s.replay != (admin.ReplayQuery{Target: "hooks", From: "begin", Bucket: "photos"}) {
		t.Errorf("exit %d\n%s%s%+v", code, out, errOut, s.replay)
	}
	if code, _, _ := ask("events", "replay", "hooks", "--dead"); code != ExitOK || !s.replay.Dead {
		t.Errorf("exit %d %+v", code, s.replay)
	}
	if code, _, _ := ask("events", "replay", "hooks", "--dead", "--from", "begin"); code != ExitUsage {
		t.Errorf("exit %d", code)
	}
	s.fail = errors.New("the target fails: away")
	if code, _, errOut := ask("events", "replay", "hooks"); code != ExitFailed || !strings.Contains(errOut, "--from p9") || !strings.Contains(errOut, "away") {
		t.Errorf("exit %d\n%s", code, errOut)
	}
	s.fail = nil
	if code, out, _ := ask("events", "dead", "hooks"); code != ExitOK || !strings.Contains(out, `"too large"`) {
		t.Errorf("exit %d\n%s", code, out)
	}
	if code, _, _ := ask("events", "dead", "--limit", "0"); code != ExitUsage {
		t.Errorf("exit %d", code)
	}
}
