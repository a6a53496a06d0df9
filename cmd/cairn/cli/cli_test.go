package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cairn/server/admin"
	"cairn/server/config"
	"cairn/server/status"
)

// run carries out a command line and gives its exit code and output.
func run(t *testing.T, d Deps, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	d.Stdout, d.Stderr = &out, &errOut
	if d.Now == nil {
		d.Now = time.Now
	}
	d.Version = "v1.2.3"
	code = Run(t.Context(), args, d)
	return code, out.String(), errOut.String()
}

type backend struct{ report status.Report }

func (b *backend) Ready() error { return nil }
func (b *backend) Status(context.Context) (status.Status, error) {
	return status.Status{Version: "v1.2.3", StoreID: "the-store", Ready: true, Started: time.Now()}, nil
}
func (b *backend) Verify(_ context.Context, progress func(status.Progress)) (status.Report, error) {
	progress(status.Progress{Phase: "drives"})
	return b.report, nil
}

// running starts an admin API with the keys of a data folder.
func running(t *testing.T, b *backend) (dir, addr string) {
	t.Helper()
	return runningAs(t, b)
}

func runningAs(t *testing.T, b admin.Backend) (dir, addr string) {
	t.Helper()
	dir = t.TempDir()
	keys, _, err := config.EnsureCredentials(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(admin.New(b, admin.Config{AccessKey: keys.AccessKey, SecretKey: keys.SecretKey}))
	t.Cleanup(s.Close)
	return dir, strings.TrimPrefix(s.URL, "http://")
}

// nobody is an address where nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestHelpAndUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"--help"}, {"server", "--help"}, {"status", "--help"}, {"verify", "--help"}, {"dev", "--help"}, {"cluster", "token", "--help"}, {"health", "--help"}} {
		code, out, errOut := run(t, Deps{}, args...)
		if code != ExitOK || !strings.Contains(out, "cairn") || errOut != "" {
			t.Errorf("%q: exit %d\n%s%s", args, code, out, errOut)
		}
	}
	if _, out, _ := run(t, Deps{}, "server", "--help"); !strings.Contains(out, "Examples:") || !strings.Contains(out, "--drives-per-zone") {
		t.Errorf("help does not teach:\n%s", out)
	}
	for _, args := range [][]string{{"srever"}, {"server", "--no-such-flag"}, {"server", "--zones", "x"}, {"server", "--zones", "0"}, {"status", "extra"}} {
		code, _, errOut := run(t, Deps{}, args...)
		if code != ExitUsage || errOut == "" {
			t.Errorf("%q: exit %d %q", args, code, errOut)
		}
	}
	if code, out, _ := run(t, Deps{}, "version"); code != ExitOK || out != "cairn v1.2.3\n" {
		t.Errorf("version: %d %q", code, out)
	}
}

func TestServerPrintsTheKeysOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var served []config.Config
	d := Deps{Serve: func(_ context.Context, cfg config.Config, _ *slog.Logger) error {
		served = append(served, cfg)
		return nil
	}}
	code, out, errOut := run(t, d, "server", "--data-dir", dir, "--listen", ":9123", "--zones", "3")
	if code != ExitOK {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	m := regexp.MustCompile(`export AWS_ACCESS_KEY_ID=(\S{20}) AWS_SECRET_ACCESS_KEY=(\S{40})\n    export AWS_ENDPOINT_URL=http://127.0.0.1:9123 AWS_DEFAULT_REGION=us-east-1\n    aws s3 ls\n`).FindStringSubmatch(out)
	if m == nil || served[0].RootAccessKey != m[1] || served[0].RootSecretKey != m[2] {
		t.Fatalf("the lines to paste are not there or have other keys:\n%s", out)
	}
	if !strings.Contains(out, "3 drives in 3 zones") {
		t.Errorf("first line:\n%s", out)
	}
	_, out, _ = run(t, d, "server", "--data-dir", dir)
	if strings.Contains(out, m[2]) || !strings.Contains(out, filepath.Join(dir, config.CredentialsFile)) {
		t.Errorf("second start:\n%s", out)
	}
	if served[1].RootSecretKey != m[2] {
		t.Error("second start has other keys")
	}
	t.Setenv("CAIRN_ROOT_ACCESS_KEY", "MYKEY")
	t.Setenv("CAIRN_ROOT_SECRET_KEY", "my-secret-key")
	_, out, _ = run(t, d, "server", "--data-dir", dir)
	if strings.Contains(out, "my-secret-key") || served[2].RootSecretKey != "my-secret-key" {
		t.Errorf("keys of the environment:\n%s", out)
	}
}

func TestServerFails(t *testing.T) {
	d := Deps{Serve: func(context.Context, config.Config, *slog.Logger) error { return errors.New("port is taken") }}
	code, _, errOut := run(t, d, "server", "--data-dir", t.TempDir())
	if code != ExitFailed || errOut != "cairn: port is taken\n" {
		t.Errorf("exit %d %q", code, errOut)
	}
}

func TestStopIsBounded(t *testing.T) {
	cfg := config.Default()
	cfg.ShutdownBound = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	stuck := make(chan struct{})
	defer close(stuck)
	d := Deps{Serve: func(context.Context, config.Config, *slog.Logger) error { <-stuck; return nil }}
	if err := serve(ctx, d, cfg, slog.New(slog.DiscardHandler), time.Millisecond); err == nil || !strings.Contains(err.Error(), "not stopped") {
		t.Fatalf("%v", err)
	}
	d.Serve = func(ctx context.Context, _ config.Config, _ *slog.Logger) error { <-ctx.Done(); return nil }
	if err := serve(ctx, d, cfg, slog.New(slog.DiscardHandler), time.Minute); err != nil {
		t.Fatalf("a clean stop: %v", err)
	}
}

func TestStatus(t *testing.T) {
	dir, addr := running(t, &backend{})
	code, out, errOut := run(t, Deps{}, "status", "--data-dir", dir, "--admin-listen", addr)
	if code != ExitOK || !strings.Contains(out, "the-store") {
		t.Fatalf("exit %d\n%s%s", code, out, errOut)
	}
	code, out, _ = run(t, Deps{}, "status", "--data-dir", dir, "--admin-listen", addr, "--json")
	var s status.Status
	if err := json.Unmarshal([]byte(out), &s); code != ExitOK || err != nil || s.StoreID != "the-store" {
		t.Fatalf("exit %d %v\n%s", code, err, out)
	}
	other := t.TempDir()
	if code, _, errOut := run(t, Deps{}, "status", "--data-dir", other, "--admin-listen", addr); code != ExitFailed || !strings.Contains(errOut, "--data-dir") {
		t.Errorf("no keys: exit %d %s", code, errOut)
	}
	if left, _ := os.ReadDir(other); len(left) != 0 {
		t.Errorf("status made %v", left)
	}
	if _, _, err := config.EnsureCredentials(other); err != nil {
		t.Fatal(err)
	}
	if code, _, errOut := run(t, Deps{}, "status", "--data-dir", other, "--admin-listen", addr); code != ExitFailed || !strings.Contains(errOut, "refuses these root keys") {
		t.Errorf("other keys: exit %d %s", code, errOut)
	}
	if code, _, errOut := run(t, Deps{}, "status", "--data-dir", dir, "--admin-listen", nobody(t)); code != ExitFailed || !strings.Contains(errOut, "is the server running") {
		t.Errorf("nobody there: exit %d %s", code, errOut)
	}
}

func TestVerify(t *testing.T) {
	b := &backend{}
	dir, addr := running(t, b)
	offline := 0
	d := Deps{VerifyOffline: func(_ context.Context, cfg config.Config, _ func(status.Progress)) (status.Report, error) {
		offline++
		if cfg.DataDir != dir || cfg.Zones != 3 {
			t.Errorf("offline with %+v", cfg)
		}
		return status.Report{Found: 1, Problems: []status.Problem{{Kind: "shard missing", Bucket: "b", Key: "k"}}}, nil
	}}
	args := []string{"verify", "--data-dir", dir, "--zones", "3", "--admin-listen"}
	if code, out, errOut := run(t, d, append(args, addr)...); code != ExitOK || !strings.Contains(out, "clean") || offline != 0 {
		t.Fatalf("online: exit %d\n%s%s", code, out, errOut)
	}
	b.report = status.Report{Found: 2}
	if code, _, errOut := run(t, d, append(args, addr)...); code != ExitProblems || errOut != "" {
		t.Errorf("problems: exit %d %s", code, errOut)
	}
	if code, out, _ := run(t, d, append(args, addr, "--offline")...); code != ExitProblems || offline != 1 || !strings.Contains(out, `shard missing: b/"k"`) {
		t.Errorf("--offline: exit %d\n%s", code, out)
	}
	if code, _, errOut := run(t, d, append(args, nobody(t))...); code != ExitProblems || offline != 2 || !strings.Contains(errOut, "opening the drive folders") {
		t.Errorf("no server: exit %d %s", code, errOut)
	}
	d.VerifyOffline = func(context.Context, config.Config, func(status.Progress)) (status.Report, error) {
		return status.Report{}, errors.New("locked by another process")
	}
	if code, _, errOut := run(t, d, append(args, nobody(t))...); code != ExitFailed || !strings.Contains(errOut, "locked") {
		t.Errorf("cannot: exit %d %s", code, errOut)
	}
}
