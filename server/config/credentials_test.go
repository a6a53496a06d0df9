package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

func TestEnsureCredentials(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "data")
	if _, err := ReadCredentials(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("read before the first start: %v", err)
	}
	first, created, err := EnsureCredentials(dir)
	if err != nil || !created {
		t.Fatalf("first start: created %v, %v", created, err)
	}
	if !regexp.MustCompile(`^[A-Z0-9]{20}$`).MatchString(first.AccessKey) || !regexp.MustCompile(`^[A-Za-z0-9]{40}$`).MatchString(first.SecretKey) {
		t.Fatalf("keys %+v", first)
	}
	info, err := os.Stat(filepath.Join(dir, CredentialsFile))
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	again, created, err := EnsureCredentials(dir)
	if err != nil || created || again != first {
		t.Fatalf("second start: %+v created %v, %v", again, created, err)
	}
	if other, _, _ := EnsureCredentials(t.TempDir()); other.AccessKey == first.AccessKey || other.SecretKey == first.SecretKey {
		t.Fatal("two stores drew the same keys")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Fatalf("files left behind: %v %v", left, err)
	}
}

func TestCredentialsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, CredentialsFile)
	if _, _, err := EnsureCredentials(dir); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, _, err := EnsureCredentials(dir); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	for _, text := range []string{"", "{}", `{"format":2,"access_key":"a","secret_key":"b"}`, `{"format":1,"access_key":"a"}`} {
		os.Remove(path)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, created, err := EnsureCredentials(dir); err == nil || created {
			t.Errorf("file %q was taken (created %v)", text, created)
		}
	}
}

func TestCredentialsRace(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, seen := 0, map[Credentials]bool{}
	for range 8 {
		wg.Go(func() {
			keys, created, err := EnsureCredentials(dir)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if created {
				made++
			}
			seen[keys] = true
		})
	}
	wg.Wait()
	if made != 1 || len(seen) != 1 {
		t.Fatalf("%d made the file, %d different keys", made, len(seen))
	}
}

func TestRootFromEnvironment(t *testing.T) {
	c := Default()
	c.DataDir = t.TempDir()
	c.RootAccessKey, c.RootSecretKey = "ABC", "12345678"
	keys, created, err := c.Root()
	if err != nil || created || keys != (Credentials{"ABC", "12345678"}) {
		t.Fatalf("%+v %v %v", keys, created, err)
	}
	if left, _ := os.ReadDir(c.DataDir); len(left) != 0 {
		t.Fatalf("keys that were set are kept in the data folder: %v", left)
	}
}
