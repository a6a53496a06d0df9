//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/test/seed"
)

// state is what one key may hold: after an operation that was not answered it is either of two.
type state struct {
	sum string // SHA-256 of the content; "" is no object
}

// writer owns some keys and is the only one to change them, so it knows what each must hold.
type writer struct {
	id     int
	rng    *rand.Rand
	keys   []string
	may    map[string][]state // what the key may hold now, at least one
	dirty  map[string]bool    // changed since the last check
	acked  int
	unsure int
}

func newWriter(id int, seed uint64, keys int) *writer {
	w := &writer{id: id, rng: rand.New(rand.NewPCG(seed, uint64(id))), may: map[string][]state{}, dirty: map[string]bool{}}
	for i := range keys {
		k := fmt.Sprintf("w%d/k%02d", id, i)
		w.keys = append(w.keys, k)
		w.may[k] = []state{{}}
	}
	return w
}

// run writes until ctx ends. Requests under way then get a moment to be answered or cut off.
func (w *writer) run(ctx context.Context, c *s3.Client, bucket string) {
	for ctx.Err() == nil {
		key := w.keys[w.rng.IntN(len(w.keys))]
		var next state
		var err error
		opCtx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		switch n := w.rng.IntN(10); {
		case n < 3:
			_, err = c.DeleteObject(opCtx, &s3.DeleteObjectInput{Bucket: &bucket, Key: &key})
		case n < 9:
			// inline, copied, one stripe, several stripes
			sizes := []int64{int64(w.rng.IntN(1000)), 4 << 10, int64(w.rng.IntN(100 << 10)), int64(w.rng.IntN(1 << 20)), 3<<20 + int64(w.rng.IntN(1<<20))}
			data := noiseBytes(w.rng.Uint64(), sizes[w.rng.IntN(len(sizes))])
			next.sum = sumBytes(data)
			_, err = c.PutObject(opCtx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(data)})
		default:
			next.sum, err = w.multipart(opCtx, c, bucket, key)
		}
		cancel()
		w.dirty[key] = true
		if err != nil {
			w.unsure++
			w.may[key] = append(w.may[key], next)
			if ctx.Err() == nil {
				time.Sleep(20 * time.Millisecond) // the server is gone: soon ctx ends too
			}
			continue
		}
		w.acked++
		w.may[key] = []state{next}
	}
}

func (w *writer) multipart(ctx context.Context, c *s3.Client, bucket, key string) (string, error) {
	data := noiseBytes(w.rng.Uint64(), 5<<20+int64(w.rng.IntN(100000)))
	hash := sumBytes(data)
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &key})
	if err != nil {
		return hash, err
	}
	var parts []types.CompletedPart
	for n, b := range [][]byte{data[:5<<20], data[5<<20:]} {
		out, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId, PartNumber: aws.Int32(int32(n + 1)), Body: bytes.NewReader(b)})
		if err != nil {
			return hash, err
		}
		parts = append(parts, types.CompletedPart{ETag: out.ETag, PartNumber: aws.Int32(int32(n + 1)), ChecksumCRC32: out.ChecksumCRC32})
	}
	_, err = c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &bucket, Key: &key, UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
	return hash, err
}

// check reads keys back and compares; what is found is what the key holds from then on. While
// the store answers neither what a key holds nor that it holds nothing, it is asked again for stallFails.
func (w *writer) check(t *testing.T, c *s3.Client, bucket string, all bool) {
	t.Helper()
	for _, key := range w.keys {
		if !all && !w.dirty[key] {
			continue
		}
		var got state
		data, err := get(t.Context(), c, bucket, key)
		for end := time.Now().Add(stallFails); err != nil && code(err) != "NoSuchKey" && time.Now().Before(end); {
			t.Logf("%s: asked again after: %v", key, err)
			time.Sleep(100 * time.Millisecond)
			data, err = get(t.Context(), c, bucket, key)
		}
		switch {
		case err == nil:
			got.sum = sumBytes(data)
		case code(err) == "NoSuchKey":
		default:
			t.Errorf("%s: %v", key, err)
			continue
		}
		ok := false
		for _, s := range w.may[key] {
			ok = ok || s == got
		}
		if !ok {
			t.Errorf("%s: holds %q (%d bytes), may hold %q", key, got.sum, len(data), w.may[key])
		}
		w.may[key] = []state{got}
		delete(w.dirty, key)
	}
}

// rounds is how often the server is killed: 100 in make e2e-long, fewer in between.
func rounds(t *testing.T) int {
	if s := os.Getenv("CAIRN_E2E_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 15
}

// TestKill is the promise "200 means durable": kill -9 in the middle of writes,
// start again, and everything that was acknowledged is there, everything deleted is not.
func TestKill(t *testing.T) {
	p := start(t, zones()...)
	bucket := newBucket(t, p.endpoint)
	seed := seed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 1000))
	var writers []*writer
	for i := range 8 {
		writers = append(writers, newWriter(i, seed, 12))
	}
	var slowest time.Duration
	clock := newClock(t)
	n := rounds(t)
	for round := range n {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, w := range writers {
			wg.Go(func() { w.run(ctx, p.once(), bucket) })
		}
		time.Sleep(time.Duration(50+rng.IntN(1200)) * time.Millisecond)
		p.kill()
		cancel()
		wg.Wait()
		begin := time.Now()
		p.start()
		slowest = max(slowest, time.Since(begin))
		for _, w := range writers {
			w.check(t, p.client(), bucket, round == n-1)
		}
		if t.Failed() {
			t.Fatalf("round %d of %d", round+1, n)
		}
	}
	acked, unsure := 0, 0
	for _, w := range writers {
		acked, unsure = acked+w.acked, unsure+w.unsure
	}
	t.Logf("%d rounds: %d operations acknowledged, %d cut off; slowest start %s", n, acked, unsure, slowest)
	if acked < 10*n {
		t.Errorf("only %d operations were acknowledged: this proves little", acked)
	}
	clock.step("rounds")
	p.waitWhole(2 * time.Minute)
	clock.step("whole")
	p.wantClean()
	clock.step("verified")
	p.stop(30 * time.Second)
	p.wantClean("--offline")
	clock.step("verified offline")
	p.start()
	for _, w := range writers {
		w.check(t, p.client(), bucket, true)
	}
	clock.step("all read again")
	// Uploads that a kill cut off are still listed; aborted, they leave nothing.
	abortUploads(t, p.client(), bucket)
	clock.step("aborted")
	p.wantClean()
	clock.step("verified")
}

func abortUploads(t *testing.T, c *s3.Client, bucket string) {
	t.Helper()
	pages := s3.NewListMultipartUploadsPaginator(c, &s3.ListMultipartUploadsInput{Bucket: &bucket})
	n := 0
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range page.Uploads {
			if _, err := c.AbortMultipartUpload(t.Context(), &s3.AbortMultipartUploadInput{Bucket: &bucket, Key: u.Key, UploadId: u.UploadId}); err != nil {
				t.Errorf("abort: %v", err)
			}
			n++
		}
	}
	t.Logf("%d uploads were cut off", n)
}

// TestStopIsClean lets a request under way finish at SIGTERM.
func TestStopIsClean(t *testing.T) {
	p := start(t)
	bucket := newBucket(t, p.endpoint)
	data := noiseBytes(3, 8<<20)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := p.once().PutObject(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("slow"), Body: &sized{r}, ContentLength: aws.Int64(int64(len(data)))},
			unsignedPayload)
		done <- err
	}()
	if _, err := w.Write(data[:4<<20]); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(time.Second)
		w.Write(data[4<<20:])
		w.Close()
	}()
	p.stop(30 * time.Second)
	if err := <-done; err != nil {
		t.Errorf("a PUT under way at SIGTERM: %v", err)
	}
	p.start()
	wantObject(t, p.client(), bucket, "slow", data)
}
