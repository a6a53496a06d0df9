//go:build scale

// Package scale fills a store with many buckets and small objects and measures
// how it opens again. Run it with make scale; it takes a while and some GiB of disk.
package scale

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cairn/s3api/objects"
	"cairn/server/config"
	"cairn/server/core"
	"cairn/test/harness"
)

var (
	objectsFlag = flag.Int("objects", 10_000_000, "objects to write")
	bucketsFlag = flag.Int("buckets", 10_000, "buckets to make")
	dirFlag     = flag.String("dir", "", "folder for the store; a temporary one if empty")
)

// TestRestart makes the store, closes it, opens it and reads. The bound is the
// promise of the project: 10,000 buckets and 10 million small objects open in under 10 s.
func TestRestart(t *testing.T) {
	dir := *dirFlag
	if dir == "" {
		dir = t.TempDir()
	}
	cfg := config.Default()
	cfg.DataDir, cfg.Reserve = dir, 1
	ctx := t.Context()
	open := func() *core.Core {
		c, err := core.Open(ctx, cfg, core.Env{})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := open()
	b := fill(ctx, t, c)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c = open()
	defer c.Close()
	key := fmt.Sprintf("d%05d/k%09d", (*objectsFlag-1)/1000, *objectsFlag-1)
	b.Core = c
	if _, err := b.Get(ctx, key); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	page, err := c.Objects.ListObjects(ctx, harness.Account, &objects.ListInput{Bucket: b.Name, Max: 1000})
	if err != nil || len(page.Objects) != min(1000, *objectsFlag) {
		t.Fatalf("%v, %d keys", err, len(page.Objects))
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	t.Logf("%d buckets and %d objects: open and first read %v, heap %d MiB, disk %s", *bucketsFlag, *objectsFlag, took, m.HeapInuse>>20, diskUse(dir))
	if took > 10*time.Second {
		t.Errorf("opening took %v", took)
	}
	idle(t)
}

func fill(ctx context.Context, t *testing.T, c *core.Core) harness.Bucket {
	began := time.Now()
	parallel(t, *bucketsFlag, 32, func(i int) error {
		_, err := harness.MakeBucket(ctx, c, fmt.Sprintf("bucket-%06d", i))
		return err
	})
	t.Logf("%d buckets in %v", *bucketsFlag, time.Since(began))
	b := harness.Bucket{Core: c, Name: "bucket-000000"}
	began = time.Now()
	parallel(t, *objectsFlag, 256, func(i int) error {
		return b.Put(ctx, fmt.Sprintf("d%05d/k%09d", i/1000, i), []byte("0123456789abcdef"))
	})
	t.Logf("%d objects in %v", *objectsFlag, time.Since(began))
	return b
}

// parallel calls fn for 0..n-1 from some workers, printing progress.
func parallel(t *testing.T, n, workers int, fn func(int) error) {
	t.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n || t.Failed() {
					return
				}
				if err := fn(i); err != nil {
					t.Error(err)
					return
				}
				if i%500_000 == 499_999 {
					fmt.Fprintf(os.Stderr, "%d of %d\n", i+1, n)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// idle logs what the open store costs when nobody asks.
func idle(t *testing.T) {
	time.Sleep(5 * time.Second)
	before := cpu(t)
	const span = 20 * time.Second
	time.Sleep(span)
	t.Logf("idle: %.2f%% of a core", float64(cpu(t)-before)/float64(span)*100)
}
