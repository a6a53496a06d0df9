//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"cairn/test/seed"
)

// sized hides everything but Read.
type sized struct{ io.Reader }

// unsignedPayload lets the SDK send a body that it cannot read twice.
func unsignedPayload(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
}

// load writes, reads and lists until stopped and notes every error with its time.
type load struct {
	mu     sync.Mutex
	errors []timedError
	ops    map[time.Time]int // by second
	stop   context.CancelFunc
	wg     sync.WaitGroup
}

type timedError struct {
	at  time.Time
	err error
}

func startLoad(t *testing.T, e endpoint, bucket string) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{stop: cancel, ops: map[time.Time]int{}}
	for w := range 4 {
		l.wg.Go(func() {
			c := e.once()
			rng := rand.New(rand.NewPCG(uint64(w), 7))
			for i := 0; ctx.Err() == nil; i++ {
				key := fmt.Sprintf("load/%d/%03d", w, i%50)
				data := noiseBytes(rng.Uint64(), []int64{500, 20 << 10, 300 << 10, 2 << 20}[i%4])
				opCtx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				_, err := c.PutObject(opCtx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader(string(data))})
				if err != nil {
					err = fmt.Errorf("put %s: %w", key, err)
				} else if got, gerr := get(opCtx, c, bucket, key); gerr != nil {
					err = fmt.Errorf("get %s: %w", key, gerr)
				} else if sumBytes(got) != sumBytes(data) {
					err = fmt.Errorf("get %s: other bytes than just written", key)
				}
				if i%10 == 0 && err == nil {
					_, err = c.ListObjectsV2(opCtx, &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: aws.String("load/")})
				}
				cancel()
				l.mu.Lock()
				if err != nil {
					l.errors = append(l.errors, timedError{time.Now(), err})
				} else {
					l.ops[time.Now().Truncate(time.Second)]++
				}
				l.mu.Unlock()
				if err != nil {
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
	return l
}

// since is the errors and successes after a moment.
func (l *load) since(at time.Time) (errs []error, ok int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.errors {
		if e.at.After(at) {
			errs = append(errs, e.err)
		}
	}
	for s, n := range l.ops {
		if !s.Before(at) {
			ok += n
		}
	}
	return errs, ok
}

func (l *load) end() {
	l.stop()
	l.wg.Wait()
}

// settle is how long errors may last after a fault.
const settle = 10 * time.Second

// TestZoneLoss removes a zone's folders, metadata replica included, while
// clients write and read; then gives the server empty folders.
func TestZoneLoss(t *testing.T) {
	p := start(t, zones()...)
	bucket := newBucket(t, p.endpoint)
	c := p.client()
	want := map[string][]byte{}
	for i := range 40 {
		key := fmt.Sprintf("before/%02d", i)
		want[key] = noiseBytes(uint64(i), []int64{0, 300, 30 << 10, 700 << 10, 6 << 20}[i%5])
		put(t, c, bucket, key, want[key])
	}
	clock := newClock(t)
	zone := []string{"a", "b", "c"}[rand.IntN(3)]
	t.Logf("losing zone %s", zone)
	l := startLoad(t, p.endpoint, bucket)
	defer l.end()
	time.Sleep(2 * time.Second)
	if errs, _ := l.since(time.Time{}); len(errs) > 0 {
		t.Fatalf("errors before the fault: %v", errs[0])
	}
	lost := time.Now()
	if err := os.RemoveAll(filepath.Join(p.data, "zone-"+zone)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(settle)
	errs, ok := l.since(lost)
	t.Logf("%d errors and %d good rounds in the first %s after the loss", len(errs), ok, settle)
	mark := time.Now()
	time.Sleep(8 * time.Second)
	errs, ok = l.since(mark)
	if len(errs) > 0 {
		t.Errorf("%d errors after %s: the first: %v", len(errs), settle, errs[0])
	}
	if ok == 0 {
		t.Error("nothing was written and read without the zone")
	}
	for key, data := range want {
		wantObject(t, c, bucket, key, data)
	}
	down := 0
	for _, d := range p.status().Drives {
		if d.Zone == zone && d.State == "down" && d.Trouble != "" {
			down++
		}
	}
	if down != 2 {
		_, out, _ := p.cairn("status")
		t.Errorf("status does not name the two lost drives and what to do:\n%s", out)
	}

	clock.step("without the zone")

	// Empty folders come: everything is filled again while the clients go on.
	mark = time.Now()
	for _, d := range []string{"drive-1", "drive-2"} {
		if err := os.MkdirAll(filepath.Join(p.data, "zone-"+zone, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(3 * time.Second)
	l.end()
	// A write that began while the zone counted as lost may end when it no longer does: its shards then
	// are too few for the promise, and it is refused with 503 for the client to try again. Nothing else goes wrong.
	errs, _ = l.since(mark)
	for _, err := range errs {
		if httpStatus(err) != 503 || len(errs) > 5 {
			t.Errorf("one of %d errors while the drives came back: %v", len(errs), err)
		}
	}
	clock.step("empty folders given")
	p.waitWhole(3 * time.Minute)
	clock.step("filled")
	p.wantClean()
	clock.step("verified")

	// The proof of the filling: now another zone goes, and all is still there; also after a restart.
	other := map[string]string{"a": "b", "b": "c", "c": "a"}[zone]
	t.Logf("losing zone %s", other)
	if err := os.RemoveAll(filepath.Join(p.data, "zone-"+other)); err != nil {
		t.Fatal(err)
	}
	time.Sleep(settle)
	for key, data := range want {
		wantObject(t, c, bucket, key, data)
	}
	p.kill()
	for _, d := range []string{"drive-1", "drive-2"} {
		if err := os.MkdirAll(filepath.Join(p.data, "zone-"+other, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p.start()
	for key, data := range want {
		wantObject(t, p.client(), bucket, key, data)
	}
	clock.step("another zone lost, restarted with empty folders")
	p.waitWhole(3 * time.Minute)
	clock.step("filled")
	p.wantClean()
	clock.step("verified")
}

// TestRot flips bytes in extents of one drive after the other: verify names the
// object, a GET still answers the right bytes, and the block is healed.
func TestRot(t *testing.T) {
	p := start(t, zones()...)
	bucket := newBucket(t, p.endpoint)
	c := p.client()
	want := map[string][]byte{}
	for i, size := range []int64{40 << 10, 900 << 10, 5 << 20} {
		key := fmt.Sprintf("rot/%d", i)
		want[key] = noiseBytes(uint64(i), size)
		put(t, c, bucket, key, want[key])
	}
	p.wantClean()
	rng := rand.New(rand.NewPCG(seed.Of(t), 0))
	for _, zone := range []string{"a", "b", "c"} {
		for _, d := range []string{"drive-1", "drive-2"} {
			dir := filepath.Join(p.data, "zone-"+zone, d)
			where := flip(t, rng, filepath.Join(dir, "extents"))
			if where == "" {
				continue // this drive holds nothing of these few objects
			}
			r := p.verify()
			named := false
			for _, pr := range r.Problems {
				named = named || want[pr.Key] != nil && pr.Bucket == bucket
			}
			if r.Found == 0 || !named {
				t.Errorf("%s: verify found %d problems and names no object: %v", where, r.Found, r.Problems)
			}
			for end := time.Now().Add(time.Minute); ; time.Sleep(500 * time.Millisecond) {
				for key, data := range want {
					wantObject(t, c, bucket, key, data)
				}
				if r = p.verify(); r.Found == 0 {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s: not healed after a minute: %v", where, r.Problems)
				}
			}
		}
	}
	p.stop(30 * time.Second)
	p.wantClean("--offline")
	// Rot while the server is down.
	where := flip(t, rng, filepath.Join(p.data, "zone-a", "drive-1", "extents"))
	if r := p.verify("--offline"); r.Found == 0 {
		t.Errorf("%s: verify --offline is clean", where)
	}
	p.start()
	for key, data := range want {
		wantObject(t, p.client(), bucket, key, data)
	}
}

// flip changes one byte that belongs to data below dir (not a hole, not zero) and says where.
func flip(t *testing.T, rng *rand.Rand, dir string) string {
	t.Helper()
	type place struct {
		path string
		off  int64
	}
	var places []place
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for try := 0; try < 200 && len(data) > 0; try++ {
			// In the middle of noise: the same byte is rarely zero there, nor are its neighbours.
			off := rng.Int64N(int64(len(data)))
			if off > 64 && off+64 < int64(len(data)) && nonzero(data[off-64:off+64]) > 100 {
				places = append(places, place{path, off})
				break
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(places) == 0 {
		return ""
	}
	pl := places[rng.IntN(len(places))]
	f, err := os.OpenFile(pl.path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], pl.off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << rng.IntN(8)
	if _, err := f.WriteAt(b[:], pl.off); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s at %d", pl.path, pl.off)
}

func nonzero(b []byte) (n int) {
	for _, x := range b {
		if x != 0 {
			n++
		}
	}
	return n
}

// TestSlowGet reads a large object slowly while it is overwritten and deleted:
// the old bytes come to the end, and then the space is free.
func TestSlowGet(t *testing.T) {
	p := start(t, zones()...)
	bucket := newBucket(t, p.endpoint)
	c := p.client()
	const size = 160 << 20
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("large"), Body: &sized{noise(5, size)}, ContentLength: aws.Int64(size)}, unsignedPayload); err != nil {
		t.Fatal(err)
	}
	full := used(t, p.data)
	out, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("large")})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	// A second reader gives up in the middle: it must not keep the bytes for ever.
	abandoned, err := c.GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("large")})
	if err != nil {
		t.Fatal(err)
	}
	io.CopyN(io.Discard, abandoned.Body, 1<<20)
	want, _, _ := sum(noise(5, size))
	pr, pw := io.Pipe()
	sums := make(chan string, 1)
	go func() {
		s, _, _ := sum(pr)
		sums <- s
	}()
	if _, err := io.CopyN(pw, out.Body, 2<<20); err != nil {
		t.Fatal(err)
	}
	put(t, c, bucket, "large", []byte("new and small"))
	if _, err := c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String("large")}); err != nil {
		t.Fatal(err)
	}
	abandoned.Body.Close()
	for n := int64(2 << 20); n < size; n += 16 << 20 { // about 3 s in all
		if _, err := io.CopyN(pw, out.Body, min(16<<20, size-n)); err != nil {
			t.Fatalf("after %d bytes: %v", n, err)
		}
		time.Sleep(300 * time.Millisecond)
	}
	pw.Close()
	if got := <-sums; got != want {
		t.Error("the slow GET did not end with the old bytes")
	}
	end := time.Now().Add(time.Minute)
	for used(t, p.data) > full-size {
		if time.Now().After(end) {
			t.Fatalf("%d MiB were used with the object, %d MiB are a minute after its end", full>>20, used(t, p.data)>>20)
		}
		time.Sleep(200 * time.Millisecond)
	}
	p.wantClean()
}

// used is the space that the files below dir take on the disk; holes take none.
func used(t *testing.T, dir string) (n int64) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // removed meanwhile
		}
		if info, err := d.Info(); err == nil && d.Type().IsRegular() {
			n += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return nil
	})
	return n
}
