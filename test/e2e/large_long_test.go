//go:build e2e && long

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// TestLargeObjectsInLittleMemory puts and gets 5 GiB, in one request and in
// parts, and looks at the most memory that the server ever held.
func TestLargeObjectsInLittleMemory(t *testing.T) {
	t.Run("one drive", func(t *testing.T) {
		p := start(t)
		bucket := newBucket(t, p.endpoint)
		largeSingle(t, p, bucket)
		largeParts(t, p, bucket)
		wantLittle(t, p)
	})
	t.Run("six drives", func(t *testing.T) {
		p := start(t, zones()...)
		largeSingle(t, p, newBucket(t, p.endpoint))
		wantLittle(t, p)
	})
}

const largeSize = 5 << 30

func wantLittle(t *testing.T, p *process) {
	t.Helper()
	const limit = 256 << 20
	peak := p.proc("VmHWM")
	t.Logf("at most %d MiB", peak>>20)
	if peak > limit {
		t.Errorf("the server held %d MiB: %d at most", peak>>20, limit>>20)
	}
}

func largeSingle(t *testing.T, p *process, bucket string) {
	t.Helper()
	want, _, _ := sum(noise(1, largeSize))
	begin := time.Now()
	c := p.client()
	url, err := s3.NewPresignClient(c).PresignPutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("single")})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(url.Method, url.URL, noise(1, largeSize))
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = largeSize
	for k, v := range url.SignedHeader {
		if k != "Host" && k != "Content-Length" {
			req.Header[k] = v
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("PUT of 5 GiB: %s %s", resp.Status, text)
	}
	t.Logf("PUT of 5 GiB: %s, at most %d MiB", time.Since(begin).Round(time.Second), p.proc("VmHWM")>>20)
	readBack(t, p, bucket, "single", want, largeSize)
}

func largeParts(t *testing.T, p *process, bucket string) {
	t.Helper()
	c := p.client()
	begin := time.Now()
	up, err := c.CreateMultipartUpload(t.Context(), &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: aws.String("parts")})
	if err != nil {
		t.Fatal(err)
	}
	const partSize = 256 << 20
	parts := make([]types.CompletedPart, largeSize/partSize)
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	errs := make([]error, len(parts))
	for i := range parts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			out, err := c.UploadPart(context.Background(), &s3.UploadPartInput{Bucket: &bucket, Key: aws.String("parts"), UploadId: up.UploadId, PartNumber: aws.Int32(int32(i + 1)),
				Body: &sized{noise(uint64(100+i), partSize)}, ContentLength: aws.Int64(partSize)}, unsignedPayload)
			if err != nil {
				errs[i] = fmt.Errorf("part %d: %w", i+1, err)
				return
			}
			parts[i] = types.CompletedPart{ETag: out.ETag, PartNumber: aws.Int32(int32(i + 1))}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CompleteMultipartUpload(t.Context(), &s3.CompleteMultipartUploadInput{Bucket: &bucket, Key: aws.String("parts"), UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}}); err != nil {
		t.Fatal(err)
	}
	t.Logf("5 GiB in %d parts: %s, at most %d MiB", len(parts), time.Since(begin).Round(time.Second), p.proc("VmHWM")>>20)
	var readers []io.Reader
	for i := range parts {
		readers = append(readers, noise(uint64(100+i), partSize))
	}
	want, _, _ := sum(io.MultiReader(readers...))
	readBack(t, p, bucket, "parts", want, largeSize)
}

func readBack(t *testing.T, p *process, bucket, key, want string, size int64) {
	t.Helper()
	begin := time.Now()
	out, err := p.client().GetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	defer out.Body.Close()
	got, n, err := sum(out.Body)
	if err != nil || n != size || got != want {
		t.Errorf("%s: %v, %d bytes with SHA-256 %s, want %d with %s", key, err, n, got, size, want)
	}
	t.Logf("GET of %s: %s, at most %d MiB", key, time.Since(begin).Round(time.Second), p.proc("VmHWM")>>20)
}
