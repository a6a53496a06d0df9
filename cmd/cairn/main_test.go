package main

import (
	"bytes"
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cmd/cairn/cli"
	"cairn/server"
	"cairn/server/config"
	"cairn/server/core"
)

// cairn carries out a command line with all that is behind it but a server.
func cairn(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	d := cli.Deps{Stdout: &out, Stderr: &errOut, Now: time.Now, VerifyOffline: verifyOffline}
	d.Serve = func(context.Context, config.Config, *slog.Logger) error { panic("no server was asked for") }
	code = cli.Run(t.Context(), args, d)
	return code, out.String(), errOut.String()
}

// names are all files and folders in dir.
func names(t *testing.T, dir string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if path != dir {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// What is no store is not verified, and above all not made one.
func TestVerifyMakesNothing(t *testing.T) {
	const nobody = "127.0.0.1:1"
	keys := func(t *testing.T) {
		t.Setenv("CAIRN_ROOT_ACCESS_KEY", "KEY")
		t.Setenv("CAIRN_ROOT_SECRET_KEY", "a-long-secret")
	}
	for name, test := range map[string]struct {
		args []string // besides the data folder
		keys bool     // root keys are set, so that a server is asked first
		want string
	}{
		"offline":          {args: []string{"--offline", "--zones", "3"}, want: "no store here"},
		"no keys":          {want: "no store here"},
		"no server":        {keys: true, want: "no store here"},
		"node":             {args: []string{"--offline", "--node", "n1", "--zone", "a", "--cluster-init"}, want: "not the whole store"},
		"node, no keys":    {args: []string{"--node", "n1", "--zone", "a", "--cluster-init"}, want: "not the whole store"},
		"node that joins":  {args: []string{"--offline", "--node", "n1", "--zone", "a", "--join", "h:1", "--join-token", "x"}, want: "not the whole store"},
		"node, no server ": {args: []string{"--node", "n1", "--zone", "a"}, keys: true, want: "not the whole store"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.keys {
				keys(t)
			}
			empty := t.TempDir()
			for _, dir := range []string{empty, filepath.Join(empty, "missing")} {
				args := append([]string{"verify", "--data-dir", dir, "--admin-listen", nobody}, test.args...)
				code, out, errOut := cairn(t, args...)
				if code != cli.ExitFailed || out != "" || !strings.Contains(errOut, test.want) {
					t.Errorf("%q: exit %d\n%s%s", args, code, out, errOut)
				}
				if left := names(t, empty); len(left) != 0 {
					t.Fatalf("%q made %v", args, left)
				}
			}
		})
	}
}

// A store is verified with its own drives, not grown by others.
func TestVerifyOfAStore(t *testing.T) {
	dir := t.TempDir()
	cfg := config.Default()
	cfg.DataDir = dir
	c, err := core.Open(t.Context(), cfg, server.Env{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if code, out, errOut := cairn(t, "verify", "--offline", "--data-dir", dir); code != cli.ExitOK || !strings.Contains(out, "clean") {
		t.Fatalf("exit %d\n%s%s", code, out, errOut)
	}
	refused := func(when string) {
		t.Helper()
		before := names(t, dir)
		if code, out, errOut := cairn(t, "verify", "--offline", "--data-dir", dir, "--zones", "2"); code != cli.ExitFailed || !strings.Contains(errOut, "would make a new drive") {
			t.Errorf("%s: exit %d\n%s%s", when, code, out, errOut)
		}
		if after := names(t, dir); !slices.Equal(after, before) {
			t.Errorf("%s: before %v\nafter %v", when, before, after)
		}
	}
	refused("a zone too many")
	if err := os.MkdirAll(filepath.Join(dir, "zone-b", "drive-1"), 0o777); err != nil {
		t.Fatal(err)
	}
	refused("an empty folder")
}
