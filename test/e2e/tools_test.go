//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// clock logs how long the steps of a test take.
type clock struct {
	t    *testing.T
	last time.Time
}

func newClock(t *testing.T) *clock { return &clock{t, time.Now()} }

func (c *clock) step(what string) {
	c.t.Helper()
	c.t.Logf("%6.1fs  %s", time.Since(c.last).Seconds(), what)
	c.last = time.Now()
}

func lockThread(fn func()) {
	runtime.LockOSThread()
	fn() // the thread ends with the goroutine
}

// tool finds a program that works: the first candidate that runs with the probe's arguments.
func tool(t *testing.T, packages string, probe []string, candidates ...string) string {
	t.Helper()
	var tried []string
	for _, c := range candidates {
		out, err := exec.Command(c, probe...).CombinedOutput()
		if err == nil {
			return c
		}
		tried = append(tried, fmt.Sprintf("%s: %v %s", c, err, bytes.TrimSpace(out)))
	}
	t.Fatalf("a tool that this test needs is missing: install it (Debian: apt-get install %s)\n%s", packages, strings.Join(tried, "\n"))
	return ""
}

// fromPyPI is where test/tools.sh puts what it found no package of.
func fromPyPI(name string) string { return filepath.Join(repoRoot(), "bin", "clients", "bin", name) }

func awsTool(t *testing.T) string {
	return tool(t, "awscli", []string{"--version"}, "aws", "/usr/bin/aws", fromPyPI("aws"))
}

func pythonWithBoto3(t *testing.T) string {
	return tool(t, "python3-boto3", []string{"-c", "import boto3"}, "python3", "/usr/bin/python3", fromPyPI("python3"))
}

// command runs a program and fails the test if it fails; it gives its output.
func command(t *testing.T, env []string, dir, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = env, dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// noise is a reader of n bytes that look random and depend on the seed only: memory stays flat however large n is.
func noise(seed uint64, n int64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

func noiseBytes(seed uint64, n int64) []byte {
	b, err := io.ReadAll(noise(seed, n))
	if err != nil {
		panic(err)
	}
	return b
}

func sum(r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), n, err
}

func sumBytes(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// writeTree makes a small source tree: folders, empty files, odd names, some size.
func writeTree(t *testing.T, dir string) {
	t.Helper()
	for i, name := range []string{"README.md", "src/main.go", "src/a/b/c/deep.txt", "src/empty", "with space/file one.txt", "ünïcödé/日本語.txt",
		"plus+sign.txt", "100%.txt", "a=b&c.txt", "big/12mib.bin", ".hidden", "quote'd.txt"} {
		size := int64(100 + 37*i)
		switch name {
		case "src/empty":
			size = 0
		case "big/12mib.bin":
			size = 12 << 20
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, noiseBytes(uint64(i), size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// sameTree compares two folders, names and contents.
func sameTree(t *testing.T, a, b string) {
	t.Helper()
	x, y := treeSums(t, a), treeSums(t, b)
	for name, s := range x {
		if y[name] != s {
			t.Errorf("%s: %s in %s, %q in %s", name, s, a, y[name], b)
		}
	}
	for name := range y {
		if x[name] == "" {
			t.Errorf("%s is in %s only", name, b)
		}
	}
	if len(x) == 0 {
		t.Errorf("%s is empty", a)
	}
}

func treeSums(t *testing.T, dir string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		rel, _ := filepath.Rel(dir, path)
		sums[rel], _, err = sum(f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

var bucketCount atomic.Int64

// newBucket makes a bucket and empties and removes it at the end, so that an external server stays clean.
func newBucket(t *testing.T, e endpoint) string {
	t.Helper()
	name := fmt.Sprintf("e2e-%d-%d-%d", os.Getpid(), time.Now().UnixMilli(), bucketCount.Add(1))
	c := e.client()
	if _, err := c.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("CAIRN_E2E_ENDPOINT") != "" {
		t.Cleanup(func() { removeBucket(c, name) })
	}
	return name
}

func removeBucket(c *s3.Client, name string) {
	ctx := context.Background()
	pages := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: &name})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return
		}
		for _, o := range page.Contents {
			c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &name, Key: o.Key})
		}
	}
	c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &name})
}

func put(t *testing.T, c *s3.Client, bucket, key string, data []byte) {
	t.Helper()
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(data)}); err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
}

func get(ctx context.Context, c *s3.Client, bucket, key string) ([]byte, error) {
	out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return nil, err
	}
	defer out.Body.Close()
	return io.ReadAll(out.Body)
}

func wantObject(t *testing.T, c *s3.Client, bucket, key string, want []byte) {
	t.Helper()
	got, err := get(t.Context(), c, bucket, key)
	if err != nil {
		t.Errorf("get %q: %v", key, err)
	} else if !bytes.Equal(got, want) {
		t.Errorf("get %q: %d bytes with SHA-256 %s, want %d with %s", key, len(got), sumBytes(got), len(want), sumBytes(want))
	}
}

func listKeys(t *testing.T, c *s3.Client, in *s3.ListObjectsV2Input) (keys, prefixes []string) {
	t.Helper()
	pages := s3.NewListObjectsV2Paginator(c, in)
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range page.Contents {
			keys = append(keys, aws.ToString(o.Key))
		}
		for _, p := range page.CommonPrefixes {
			prefixes = append(prefixes, aws.ToString(p.Prefix))
		}
	}
	return keys, prefixes
}
