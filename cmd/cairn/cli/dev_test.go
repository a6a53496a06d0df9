package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/server/admin"
	"cairn/server/config"
)

// childVariable makes the test binary play a node: dev's tests start it as one. It
// has no CAIRN_ in front because dev takes those away.
const childVariable = "TEST_CLI_CHILD"

func TestMain(m *testing.M) {
	if how := os.Getenv(childVariable); how != "" {
		os.Exit(child(how))
	}
	os.Exit(m.Run())
}

// fakeMember hands out a token for each asking.
type fakeMember struct {
	backend
	mu sync.Mutex
	n  int
}

func (f *fakeMember) NewToken(context.Context, time.Duration) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n++
	return "token-" + strconv.Itoa(f.n), nil
}

// child serves the admin API of a node until SIGTERM; it knows no cluster, but checks its flags as one would.
func child(how string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return Run(ctx, os.Args[1:], Deps{Stdout: os.Stdout, Stderr: os.Stderr, Now: time.Now, Serve: serveChild(how)})
}

func TestDev(t *testing.T) { onFreePorts(t, 24, testDev) }

func testDev(t *testing.T, port string) (taken bool) {
	dir := filepath.Join(t.TempDir(), "dev")
	args := []string{"dev", "--data-dir", dir, "--zones", "3", "--nodes-per-zone", "1", "--port", port, "--", "--log-level", "debug"}
	t.Setenv("CAIRN_ZONE", "x") // of somebody's shell: no node must get it
	out := runDev(t, args, "well", "are ready")
	if portTaken(out) {
		return true
	}
	for _, want := range []string{
		"a1 | node a1 zone a init true token \"\"", "b1 | node b1 zone b init false token \"token-1\"", "c1 | node c1 zone c init false token \"token-2\"",
		"a1 | stopped", "b1 | stopped", "c1 | stopped", "3 nodes in 3 zones are ready", "export AWS_ACCESS_KEY_ID=", "level debug",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing:\n%s", want, out)
		}
	}
	if out = runDev(t, args, "well", "are ready"); portTaken(out) {
		return true
	}
	if !strings.Contains(out, `c1 | node c1 zone c init false token "token-2"`) || strings.Contains(out, "export AWS") {
		t.Errorf("the second start:\n%s", out)
	}
	if out = runDev(t, args, "dies", ""); !strings.Contains(out, "did not start") || !strings.Contains(out, "a1 | cairn: the disk is on fire") {
		t.Errorf("a node that does not start:\n%s", out)
	}
	return false
}

// TestDevNodeKilled shows the command that starts a lost node again; the others go on until the end.
func TestDevNodeKilled(t *testing.T) { onFreePorts(t, 14, testDevNodeKilled) }

func testDevNodeKilled(t *testing.T, port string) (taken bool) {
	args := []string{"dev", "--data-dir", filepath.Join(t.TempDir(), "dev"), "--zones", "2", "--nodes-per-zone", "1", "--port", port}
	pid := regexp.MustCompile(`b1 .*process (\d+)\n`)
	out := runDevWith(t, args, "well", func(out string) bool {
		if m := pid.FindStringSubmatch(out); m != nil && !strings.Contains(out, "has ended") {
			n, _ := strconv.Atoi(m[1])
			syscall.Kill(n, syscall.SIGKILL)
		}
		return strings.Contains(out, "has ended")
	})
	if portTaken(out) {
		return true
	}
	if !strings.Contains(out, "b1 has ended (signal: killed); to start it again:") || !strings.Contains(out, "--node b1 --zone b") || !strings.Contains(out, "a1 | stopped") {
		t.Errorf("%s", out)
	}
	return false
}

func runDev(t *testing.T, args []string, how, until string) string {
	return runDevWith(t, args, how, func(out string) bool { return until != "" && strings.Contains(out, until) })
}

// runDevWith runs dev until its output satisfies, stops it and answers all output.
func runDevWith(t *testing.T, args []string, how string, satisfied func(string) bool) string {
	t.Helper()
	t.Setenv(childVariable, how)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	out := &watched{satisfied: satisfied, then: stop}
	code := Run(ctx, args, Deps{Stdout: out, Stderr: out, Now: time.Now, Executable: exe})
	if text := out.String(); (code != ExitOK) != (how == "dies") && !portTaken(text) {
		t.Fatalf("exit %d:\n%s", code, text)
	}
	return out.String()
}

// watched is output that calls then once it satisfies.
type watched struct {
	mu        sync.Mutex
	buf       bytes.Buffer
	satisfied func(string) bool
	then      func()
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Write(p)
	if w.satisfied(w.buf.String()) {
		w.then()
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// onFreePorts runs a test with the first of n free ports, and again if one of them was taken by the time it was used.
func onFreePorts(t *testing.T, n int, test func(t *testing.T, port string) (taken bool)) {
	t.Helper()
	for range 5 {
		if !test(t, strconv.Itoa(freePorts(t, n))) {
			return
		}
		t.Log("somebody took a port meanwhile: again with others")
	}
	t.Fatal("each time somebody took a port")
}

func portTaken(out string) bool { return strings.Contains(out, syscall.EADDRINUSE.Error()) }

// Ports below those that the system gives to outgoing connections.
const (
	portsFirst = 20000
	portsMax   = 12000
)

// freePorts finds n ports in a row that are free now.
func freePorts(t *testing.T, n int) int {
	t.Helper()
next:
	for i := range portsMax / n {
		first := portsFirst + (os.Getpid()*64+i*n)%(portsMax-n)
		for p := first; p < first+n; p++ {
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p))
			if err != nil {
				continue next
			}
			l.Close()
		}
		return first
	}
	t.Fatal("no ports")
	return 0
}

func TestDevRefuses(t *testing.T) {
	for _, args := range [][]string{
		{"--zones", "0"}, {"--zones", "27"}, {"--zones", "10", "--nodes-per-zone", "4"}, {"--nodes-per-zone", "0"},
		{"--port", "65530"}, {"--port", "0"}, {"--drives-per-node", "0"},
	} {
		dir := t.TempDir()
		code, _, errOut := run(t, Deps{}, append([]string{"dev", "--data-dir", dir}, args...)...)
		if left, _ := os.ReadDir(dir); code != ExitUsage || !strings.Contains(errOut, args[0]) || len(left) > 0 {
			t.Errorf("%q: exit %d %q, made %v", args, code, errOut, left)
		}
	}
}

func TestPrefixedLines(t *testing.T) {
	var out bytes.Buffer
	p := &prefixed{to: &lines{w: &out}, prefix: "n | "}
	for _, s := range []string{"one\ntw", "o\n", "\n", "end"} {
		p.Write([]byte(s))
	}
	p.flush()
	if out.String() != "n | one\nn | two\nn | \nn | end\n" {
		t.Errorf("%q", out.String())
	}
	out.Reset()
	p.Write(bytes.Repeat([]byte("x"), devLineBytesMax+1))
	if len(p.rest) != 0 || out.Len() < devLineBytesMax {
		t.Errorf("a line without end: %d bytes kept, %d written", len(p.rest), out.Len())
	}
}

func TestClusterToken(t *testing.T) {
	member := &fakeMember{}
	dir, addr := runningAs(t, member)
	flags := []string{"--data-dir", dir, "--admin-listen", addr}
	token := func(args ...string) (int, string, string) {
		return run(t, Deps{}, slices.Concat([]string{"cluster", "token"}, flags, args)...)
	}
	if code, out, errOut := token("--count", "2"); code != ExitOK || out != "token-1\ntoken-2\n" {
		t.Fatalf("exit %d %q %s", code, out, errOut)
	}
	a, b := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	for range 2 { // the second call finds them there
		if code, out, errOut := token("--out", a, "--out", b); code != ExitOK || out != "" {
			t.Fatalf("exit %d %q %s", code, out, errOut)
		}
	}
	for path, want := range map[string]string{a: "token-3\n", b: "token-4\n"} {
		text, err := os.ReadFile(path)
		info, _ := os.Stat(path)
		if err != nil || string(text) != want || info.Mode() != 0o600 {
			t.Errorf("%s: %q %v %v", path, text, info.Mode(), err)
		}
	}
	if code, _, _ := token("--count", "0"); code != ExitUsage {
		t.Errorf("no tokens: exit %d", code)
	}
	c := filepath.Join(t.TempDir(), "c")
	if code, _, errOut := token("--count", "3", "--out", c); code != ExitUsage || !strings.Contains(errOut, "repeat --out") {
		t.Errorf("--count with --out: exit %d %s", code, errOut)
	}
	if _, err := os.Stat(c); err == nil {
		t.Error("--count with --out made a token")
	}
	dir, addr = running(t, &backend{})
	if code, _, errOut := run(t, Deps{}, "cluster", "token", "--data-dir", dir, "--admin-listen", addr); code != ExitFailed || !strings.Contains(errOut, "not a node of a cluster") {
		t.Errorf("a single process: exit %d %s", code, errOut)
	}
}

func TestHealth(t *testing.T) {
	b := &unready{}
	_, addr := runningAs(t, b)
	if code, _, errOut := run(t, Deps{}, "health", "--admin-listen", addr); code != ExitFailed || !strings.Contains(errOut, "no majority") {
		t.Errorf("not ready: exit %d %s", code, errOut)
	}
	if code, _, errOut := run(t, Deps{}, "health", "--admin-listen", addr, "--wait", "1m"); code != ExitOK {
		t.Errorf("ready at the third try: exit %d %s", code, errOut)
	}
	if code, _, _ := run(t, Deps{}, "health", "--admin-listen", nobody(t)); code != ExitFailed {
		t.Errorf("nobody there: exit %d", code)
	}
	file := filepath.Join(t.TempDir(), "cairn.yaml")
	if err := os.WriteFile(file, []byte("data-dir: /nowhere\nadmin-listen: "+addr+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := run(t, Deps{}, "health", "--config", file); code != ExitOK {
		t.Errorf("the address in the file: exit %d %s", code, errOut)
	}
	if code, _, errOut := run(t, Deps{}, "health", "--admin-listen", addr, "--data-dir", t.TempDir()); code != ExitUsage {
		t.Errorf("a flag without effect: exit %d %s", code, errOut)
	}
}

// unready becomes ready with the third question.
type unready struct {
	backend
	mu sync.Mutex
	n  int
}

func (u *unready) Ready() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.n++; u.n < 3 {
		return errors.New("no majority")
	}
	return nil
}

// serveChild is a server of which only the admin API works.
func serveChild(how string) func(context.Context, config.Config, *slog.Logger) error {
	return func(ctx context.Context, cfg config.Config, _ *slog.Logger) error {
		if how == "dies" {
			return errors.New("the disk is on fire")
		}
		token, err := cfg.Token()
		if err != nil {
			return err
		}
		fmt.Printf("node %s zone %s init %v token %q level %s\n", cfg.Node, cfg.Zone, cfg.ClusterInit, token, cfg.LogLevel)
		l, err := net.Listen("tcp", cfg.AdminListen)
		if err != nil {
			return err
		}
		s := &http.Server{Handler: admin.New(&fakeMember{}, admin.Config{AccessKey: cfg.RootAccessKey, SecretKey: cfg.RootSecretKey})}
		go s.Serve(l)
		<-ctx.Done()
		fmt.Println("stopped")
		return s.Close()
	}
}
