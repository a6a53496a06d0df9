//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"cairn/test/seed"
)

// adversarial are keys that stores which map keys to paths stumble over.
func adversarial() []string {
	keys := []string{"a", "a/", "a/b", "a/b/", "a//b", "a//", "//x", "/", "//", "/lead", "https://e", "http:/e", ".", "..", "./", "../", "a/.", "a/..", "a/./b", "a/../b", "../../etc/passwd",
		" ", " lead", "trail ", "with space", "tab\there", "line\nbreak", "cr\rhere", "+", "a+b", "%", "%2F", "a%2Fb", "%25", "%zz", "a?b", "a#b", "a&b", "a=b", "a;b", "a:b", "a@b", "a,b", "a!b$c'(d)*e",
		"<tag>", `"quoted"`, `back\slash`, "~", "^`{|}[]", "\u007f", "ünïcödé", "u\u0308 decomposed", "日本語/キー", "emoji 😀", "\U0010FFFF", "\uFFFD", "é", "e\u0301", "A", "B", "a.", "a-", "a0",
		"xl.meta", "part.1", ".minio.sys", "con", "nul", "drive.json", "index", "?acl", "?uploads", "*", "__", "null", "0", strings.Repeat("k", 1024), strings.Repeat("語", 341) + "k", strings.Repeat("d/", 512), strings.Repeat("/", 1024)}
	return keys
}

func TestAdversarialKeys(t *testing.T) {
	e := anyServer(t, zones()...)
	c := e.client()
	bucket := newBucket(t, e)
	keys := adversarial()
	if os.Getenv("CAIRN_E2E_ENDPOINT") != "" { // few other servers take more
		keys = []string{"a/b", "with space", "a+b", "日本語", "e", "z/y"}
	}
	rng := rand.New(rand.NewPCG(seed.Of(t), 0))
	rng.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	for _, k := range keys {
		put(t, c, bucket, k, []byte("bytes of "+k))
	}
	for _, k := range keys {
		wantObject(t, c, bucket, k, []byte("bytes of "+k))
		if _, err := c.HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &k}); err != nil {
			t.Errorf("head %q: %v", k, err)
		}
	}
	checkListings(t, c, bucket, keys)

	// Half of them go, some by bulk delete; the others must not notice.
	half := len(keys) / 2
	var ids []types.ObjectIdentifier
	for _, k := range keys[:half/2] {
		ids = append(ids, types.ObjectIdentifier{Key: aws.String(k)})
	}
	out, err := c.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: ids}})
	if err != nil || len(out.Errors) > 0 {
		t.Errorf("bulk delete: %v %v", err, out)
	}
	for _, k := range keys[half/2 : half] {
		if _, err := c.DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &k}); err != nil {
			t.Errorf("delete %q: %v", k, err)
		}
	}
	for _, k := range keys[:half] {
		if _, err := get(t.Context(), c, bucket, k); code(err) != "NoSuchKey" {
			t.Errorf("get of the deleted %q: %v", k, err)
		}
	}
	for _, k := range keys[half:] {
		wantObject(t, c, bucket, k, []byte("bytes of "+k))
	}
	checkListings(t, c, bucket, keys[half:])
}

// checkListings compares listings of every shape with a sorted model.
func checkListings(t *testing.T, c *s3.Client, bucket string, keys []string) {
	t.Helper()
	sorted := slices.Clone(keys)
	slices.Sort(sorted) // Go compares strings by bytes: UTF-8 binary order
	for _, size := range []int32{1, 7, 1000} {
		got, _ := listKeys(t, c, &s3.ListObjectsV2Input{Bucket: &bucket, MaxKeys: aws.Int32(size)})
		if !slices.Equal(got, sorted) {
			t.Errorf("listing in pages of %d:\n got %q\nwant %q", size, got, sorted)
		}
	}
	for _, prefix := range []string{"", "a", "a/", "/", "//", "d/", "."} {
		for _, size := range []int32{1, 3, 1000} {
			got, prefixes := listKeys(t, c, &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: &prefix, Delimiter: aws.String("/"), MaxKeys: aws.Int32(size)})
			wantKeys, wantPrefixes := model(sorted, prefix, "/")
			if !slices.Equal(got, wantKeys) || !slices.Equal(prefixes, wantPrefixes) {
				t.Errorf("prefix %q delimiter / pages of %d:\n got %q and %q\nwant %q and %q", prefix, size, got, prefixes, wantKeys, wantPrefixes)
			}
		}
	}
	for _, after := range []string{"a", "a/", "b", "~", "\U0010FFFF"} {
		got, _ := listKeys(t, c, &s3.ListObjectsV2Input{Bucket: &bucket, StartAfter: &after})
		i, _ := slices.BinarySearch(sorted, after+"\x00")
		if want := sorted[i:]; !slices.Equal(got, want) {
			t.Errorf("start after %q:\n got %q\nwant %q", after, got, want)
		}
	}
	encoded, _ := listKeys(t, c, &s3.ListObjectsV2Input{Bucket: &bucket, EncodingType: types.EncodingTypeUrl})
	for i, k := range encoded {
		plain, err := url.QueryUnescape(k)
		if err != nil || i >= len(sorted) || plain != sorted[i] {
			t.Errorf("encoding-type=url: %q is %q (%v)", k, plain, err)
		}
	}
}

// model is what a listing with a delimiter should give.
func model(sorted []string, prefix, delimiter string) (keys, prefixes []string) {
	for _, k := range sorted {
		rest, ok := strings.CutPrefix(k, prefix)
		if !ok {
			continue
		}
		if i := strings.Index(rest, delimiter); i >= 0 {
			if p := prefix + rest[:i+len(delimiter)]; !slices.Contains(prefixes, p) {
				prefixes = append(prefixes, p)
			}
			continue
		}
		keys = append(keys, k)
	}
	return keys, prefixes
}

// code is the S3 code of an error, or "".
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func httpStatus(err error) int {
	var resp *smithyhttp.ResponseError
	if errors.As(err, &resp) {
		return resp.HTTPStatusCode()
	}
	return 0
}

func TestConditionalWritersOneWins(t *testing.T) {
	e := anyServer(t, zones()...)
	bucket := newBucket(t, e)
	c := e.once()
	for round := range 5 {
		key := fmt.Sprintf("one-%d", round)
		bodies := make([][]byte, 32)
		statuses := make([]int, 32)
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for i := range bodies {
			bodies[i] = noiseBytes(uint64(round*100+i), int64(100+i*i*700)) // inline, copied and coded
			wg.Go(func() {
				<-begin
				_, err := c.PutObject(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader(string(bodies[i])), IfNoneMatch: aws.String("*")})
				statuses[i] = httpStatus(err)
				if err == nil {
					statuses[i] = 200
				}
			})
		}
		close(begin)
		wg.Wait()
		winner := -1
		for i, s := range statuses {
			switch {
			case s == 200 && winner < 0:
				winner = i
			case s != 412 && s != 409:
				t.Errorf("round %d: statuses %v: want one 200, else 412 or 409", round, statuses)
			}
		}
		if winner < 0 {
			t.Fatalf("round %d: nobody won: %v", round, statuses)
		}
		wantObject(t, e.client(), bucket, key, bodies[winner])
	}
}

// TestConditionalChain lets writers replace each other by If-Match: every success must have seen the one before.
func TestConditionalChain(t *testing.T) {
	e := anyServer(t, zones()...)
	bucket := newBucket(t, e)
	c := e.once()
	put(t, c, bucket, "chain", []byte("start"))
	var mu sync.Mutex
	replaced := map[string]bool{} // ETags that somebody replaced
	wins := 0
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 10 {
				head, err := c.HeadObject(context.Background(), &s3.HeadObjectInput{Bucket: &bucket, Key: aws.String("chain")})
				if err != nil {
					t.Errorf("head: %v", err)
					return
				}
				_, err = c.PutObject(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("chain"), IfMatch: head.ETag, Body: strings.NewReader(fmt.Sprintf("%d-%d", w, i))})
				if s := httpStatus(err); err != nil && s != 412 && s != 409 {
					t.Errorf("put: %v", err)
					return
				}
				if err == nil {
					mu.Lock()
					if replaced[*head.ETag] {
						t.Errorf("%s was replaced twice: an update is lost", *head.ETag)
					}
					replaced[*head.ETag] = true
					wins++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d of 80 conditional writes won", wins)
	if wins == 0 {
		t.Error("none won")
	}
}

func TestPresignedByCurlAndBrowser(t *testing.T) {
	e := anyServer(t, zones()...)
	bucket := newBucket(t, e)
	c := e.client()
	put(t, c, bucket, "a b/ü", []byte("hello"))
	req, err := s3.NewPresignClient(c).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("a b/ü"), ResponseContentType: aws.String("text/x")})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get(req.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != 200 || string(body) != "hello" || resp.Header.Get("Content-Type") != "text/x" {
		t.Errorf("presigned GET: %s %q %s", resp.Status, body, resp.Header)
	}
	if out := command(t, e.env(), t.TempDir(), tool(t, "curl", []string{"--version"}, "curl"), "-sS", "-f", req.URL); out != "hello" {
		t.Errorf("curl: %q", out)
	}
}
