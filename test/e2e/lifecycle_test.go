//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/server/status"
)

// ruleDay is a day of the servers' rules, the shortest that there is: S3 lets nothing move to STANDARD_IA before day 30.
const ruleDay = time.Second

// ruleMax bounds each wait for what rules do.
const ruleMax = 2 * time.Minute

// TestLifecycle and TestClusterLifecycle walk objects through the storage classes to their end, by aws-cli and with short days.
func TestLifecycle(t *testing.T) {
	p := start(t, append(zones(), "--lifecycle-day", ruleDay.String())...)
	walk(t, []*process{p})
	p.waitWhole(startTimeout)
	p.wantClean()
}

func TestClusterLifecycle(t *testing.T) {
	c := startNodes(t, 3, 2, "--lifecycle-day", ruleDay.String())
	walk(t, c.all)
	c.wantClean()
}

// walker asks the nodes in turns, so that what one was told the others must know.
type walker struct {
	t   *testing.T
	all []*process
	cli string
	dir string
	n   int
}

func walk(t *testing.T, all []*process) {
	w := &walker{t: t, all: all, cli: awsTool(t), dir: t.TempDir()}
	tiered := w.tiers()
	w.classes()
	w.versions()
	tiered()
	w.reports()
}

// tiers puts an object of INTELLIGENT_TIERING in a bucket without rules; what it answers waits until that went to another tier.
func (w *walker) tiers() (tiered func()) {
	bucket := newBucket(w.t, w.all[0].endpoint)
	body := noiseBytes(4, 300<<10)
	w.aws("s3api", "put-object", "--bucket", bucket, "--key", "k", "--body", w.file("tiered", body), "--storage-class", "INTELLIGENT_TIERING")
	cfg := `{"Id":"cold","Status":"Enabled","Filter":{"Prefix":"p/"},"Tierings":[{"Days":180,"AccessTier":"DEEP_ARCHIVE_ACCESS"}]}`
	w.aws("s3api", "put-bucket-intelligent-tiering-configuration", "--bucket", bucket, "--id", "cold", "--intelligent-tiering-configuration", cfg)
	for _, args := range [][]string{{"list-bucket-intelligent-tiering-configurations"}, {"get-bucket-intelligent-tiering-configuration", "--id", "cold"}} {
		if out := w.aws(append([]string{"s3api", args[0], "--bucket", bucket}, args[1:]...)...); !strings.Contains(out, `"DEEP_ARCHIVE_ACCESS"`) || !strings.Contains(out, `"p/"`) {
			w.t.Errorf("%v: %s", args, out)
		}
	}
	w.aws("s3api", "delete-bucket-intelligent-tiering-configuration", "--bucket", bucket, "--id", "cold")
	return func() {
		w.until("another tier", func(*s3.Client) string {
			code, out, errOut := w.next().cairn("lifecycle", "--json")
			var all []status.Lifecycle
			if err := json.Unmarshal([]byte(out), &all); code != 0 || err != nil {
				w.t.Fatalf("cairn lifecycle status: %d %s %v", code, errOut, err)
			}
			if !slices.ContainsFunc(all, func(l status.Lifecycle) bool { return l.Retiered > 0 }) {
				return "none has changed"
			}
			return ""
		})
		if got, err := get(w.t.Context(), w.next().client(), bucket, "k"); err != nil || !bytes.Equal(got, body) {
			w.t.Errorf("%d bytes after the tier changed: %v", len(got), err)
		}
	}
}

func (w *walker) next() *process {
	w.n++
	return w.all[w.n%len(w.all)]
}

// aws runs aws-cli against the next node.
func (w *walker) aws(args ...string) string {
	w.t.Helper()
	p := w.next()
	return command(w.t, p.env(), w.dir, w.cli, append([]string{"--endpoint-url", p.url()}, args...)...)
}

func (w *walker) file(name string, data []byte) string {
	w.t.Helper()
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// rules replaces the bucket's rules, each without its ID and status; none removes all.
func (w *walker) rules(bucket string, rules ...string) {
	w.t.Helper()
	if len(rules) == 0 {
		w.aws("s3api", "delete-bucket-lifecycle", "--bucket", bucket)
		return
	}
	for i, r := range rules {
		rules[i] = fmt.Sprintf(`{"ID":"rule-%d","Status":"Enabled",%s}`, i+1, r)
	}
	path := w.file("rules.json", []byte(`{"Rules":[`+strings.Join(rules, ",")+`]}`))
	w.aws("s3api", "put-bucket-lifecycle-configuration", "--bucket", bucket, "--lifecycle-configuration", "file://"+path)
	if out := w.aws("s3api", "get-bucket-lifecycle-configuration", "--bucket", bucket); strings.Count(out, `"Enabled"`) != len(rules) {
		w.t.Errorf("%d rules were put, these are there:\n%s", len(rules), out)
	}
}

// until waits for a state; look says what there is instead, or "".
func (w *walker) until(what string, look func(c *s3.Client) string) {
	w.t.Helper()
	for end := time.Now().Add(ruleMax); ; time.Sleep(50 * time.Millisecond) {
		why := look(w.next().client())
		if why == "" {
			return
		}
		if w.t.Failed() || time.Now().After(end) {
			code, out, errOut := w.all[0].cairn("lifecycle")
			w.t.Fatalf("waiting for %s: %s\ncairn lifecycle status: %d %s%s", what, why, code, out, errOut)
		}
	}
}

// class waits until a key is in a class and checks that it is the same object.
func (w *walker) class(bucket, key, class, etag string) {
	w.t.Helper()
	w.until(key+" in "+class, func(c *s3.Client) string {
		out, err := c.HeadObject(w.t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
		if err != nil {
			w.t.Errorf("head-object %s: %v", key, err)
			return "an error"
		}
		if aws.ToString(out.ETag) != etag {
			w.t.Errorf("%s has the ETag %s, it was put with %s", key, aws.ToString(out.ETag), etag)
		}
		if got := string(out.StorageClass); got != class {
			return fmt.Sprintf("it is in %q", got)
		}
		return ""
	})
}

func (w *walker) gone(bucket, key string) {
	w.t.Helper()
	w.until(key+" to expire", func(c *s3.Client) string {
		_, err := get(w.t.Context(), c, bucket, key)
		if c := code(err); c != "NoSuchKey" {
			return fmt.Sprintf("reading gives %q", c)
		}
		return ""
	})
}

// archived checks that a key is there and cannot be read.
func (w *walker) archived(bucket, key string) {
	w.t.Helper()
	_, err := get(w.t.Context(), w.next().client(), bucket, key)
	wantCode(w.t, "get of "+key, err, "InvalidObjectState")
	if status := httpStatus(err); status != 403 {
		w.t.Errorf("get of %s: %d, want 403", key, status)
	}
}

// restore restores a key for some days, reads it, and waits until it is archived again.
func (w *walker) restore(bucket, key, tier string, want []byte) {
	w.t.Helper()
	request := fmt.Sprintf(`{"Days":5,"GlacierJobParameters":{"Tier":"%s"}}`, tier)
	w.aws("s3api", "restore-object", "--bucket", bucket, "--key", key, "--restore-request", request)
	w.until(key+" to be readable", func(c *s3.Client) string {
		got, err := get(w.t.Context(), c, bucket, key)
		if err == nil {
			if !bytes.Equal(got, want) {
				w.t.Errorf("%s: %d bytes after the restore, want %d others", key, len(got), len(want))
			}
			return ""
		}
		wantCode(w.t, "get of "+key+" while it is restored", err, "InvalidObjectState")
		head, err := c.HeadObject(w.t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
		if err != nil {
			w.t.Errorf("head-object %s: %v", key, err)
			return "an error"
		}
		if head.Restore == nil { // it ended before anybody looked: on a slow machine days pass quickly
			w.aws("s3api", "restore-object", "--bucket", bucket, "--key", key, "--restore-request", request)
		}
		return "x-amz-restore: " + aws.ToString(head.Restore)
	})
	w.until(key+" to be archived again", func(c *s3.Client) string {
		head, err := c.HeadObject(w.t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
		switch said := aws.ToString(head.Restore); {
		case err != nil:
			w.t.Errorf("head-object %s: %v", key, err)
		case strings.Contains(said, "ongoing-request"):
			if said != `ongoing-request="true"` && !strings.HasPrefix(said, `ongoing-request="false", expiry-date="`) {
				w.t.Errorf("x-amz-restore: %s", said)
			}
			return said
		}
		return ""
	})
	w.archived(bucket, key)
}

// classes: an object goes from STANDARD over STANDARD_IA and GLACIER to its end.
func (w *walker) classes() {
	t := w.t
	bucket := newBucket(t, w.all[0].endpoint)
	large, small, parts := noiseBytes(1, 700<<10), noiseBytes(2, 2000), noiseBytes(3, 17<<20)
	etags := map[string]string{}
	head := func(key string) {
		out, err := w.next().client().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: &bucket, Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		etags[key] = aws.ToString(out.ETag)
	}
	w.rules(bucket, `"Filter":{"Prefix":"data/"},"Transitions":[{"Days":30,"StorageClass":"STANDARD_IA"},{"Days":3000,"StorageClass":"GLACIER"}],"Expiration":{"Days":9000}`,
		`"Filter":{"Prefix":"spared/"},"Expiration":{"Days":25}`)
	for key, data := range map[string][]byte{"data/large": large, "data/small": small} {
		w.aws("s3api", "put-object", "--bucket", bucket, "--key", key, "--body", w.file("body", data))
		head(key)
	}
	w.aws("s3", "cp", w.file("parts", parts), "s3://"+bucket+"/data/parts") // in parts of 8 MiB
	head("data/parts")
	for class, key := range map[string]string{"GLACIER": "vault/glacier", "DEEP_ARCHIVE": "vault/deep", "ONEZONE_IA": "vault/one", "GLACIER_IR": "vault/ir"} {
		w.aws("s3api", "put-object", "--bucket", bucket, "--key", key, "--body", w.file("body", large), "--storage-class", class)
		head(key)
		w.class(bucket, key, class, etags[key])
	}
	put := time.Now()
	w.aws("s3api", "put-object", "--bucket", bucket, "--key", "spared/large", "--body", w.file("body", large))
	if out := w.aws("s3api", "head-object", "--bucket", bucket, "--key", "spared/large"); !strings.Contains(out, `rule-id=\"rule-2\"`) {
		t.Errorf("head-object tells of no expiration:\n%s", out)
	}

	// A rule that is taken away before it acted does nothing.
	w.rules(bucket, `"Filter":{"Prefix":"data/"},"Transitions":[{"Days":30,"StorageClass":"STANDARD_IA"},{"Days":3000,"StorageClass":"GLACIER"}],"Expiration":{"Days":9000}`)
	spared := time.Since(put) < 24*ruleDay
	for _, key := range []string{"vault/one", "vault/ir"} {
		wantObject(t, w.next().client(), bucket, key, large)
	}
	w.archived(bucket, "vault/glacier")
	w.archived(bucket, "vault/deep")
	w.restore(bucket, "vault/glacier", "Expedited", large)
	w.restore(bucket, "vault/deep", "Bulk", large)

	for key, data := range map[string][]byte{"data/large": large, "data/parts": parts} {
		w.class(bucket, key, "STANDARD_IA", etags[key])
		wantObject(t, w.next().client(), bucket, key, data)
	}
	w.class(bucket, "data/small", "", etags["data/small"]) // below 128 KiB nothing moves

	w.rules(bucket, `"Filter":{"Prefix":"data/"},"Transitions":[{"Days":1,"StorageClass":"GLACIER"}]`)
	for key, data := range map[string][]byte{"data/large": large, "data/parts": parts} {
		w.class(bucket, key, "GLACIER", etags[key])
		w.archived(bucket, key)
		w.restore(bucket, key, "Standard", data)
	}
	w.rules(bucket, `"Filter":{"Prefix":"data/"},"Expiration":{"Days":1}`)
	for _, key := range []string{"data/large", "data/parts", "data/small"} {
		w.gone(bucket, key)
	}
	if keys, _ := listKeys(t, w.next().client(), &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: aws.String("data/")}); len(keys) > 0 {
		t.Errorf("listed though expired: %q", keys)
	}
	if spared {
		wantObject(t, w.next().client(), bucket, "spared/large", large)
	} else {
		t.Log("putting took so long that the rule may have acted before it was taken away")
	}
	w.rules(bucket)
}

// versions: in a versioned bucket an expiration is a delete marker, noncurrent versions have a rule of their own, and uploads end.
func (w *walker) versions() {
	t := w.t
	bucket := newBucket(t, w.all[0].endpoint)
	w.aws("s3api", "put-bucket-versioning", "--bucket", bucket, "--versioning-configuration", "Status=Enabled")
	for i := range 3 {
		w.aws("s3api", "put-object", "--bucket", bucket, "--key", "k", "--body", w.file("body", noiseBytes(uint64(i), 200<<10)))
	}
	w.aws("s3api", "create-multipart-upload", "--bucket", bucket, "--key", "upload")
	var started []types.MultipartUpload
	uploads := func(ctx context.Context, c *s3.Client) ([]types.MultipartUpload, error) {
		out, err := c.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &bucket})
		if err != nil {
			return nil, err
		}
		return out.Uploads, nil
	}
	started, err := uploads(t.Context(), w.next().client())
	if err != nil || len(started) != 1 {
		t.Fatalf("%d uploads, %v", len(started), err)
	}
	w.aws("s3api", "upload-part", "--bucket", bucket, "--key", "upload", "--upload-id", *started[0].UploadId, "--part-number", "1", "--body", w.file("body", noiseBytes(9, 5<<20)))

	shape := func(what string, versions, markers int) {
		t.Helper()
		w.until(what, func(c *s3.Client) string {
			out, err := c.ListObjectVersions(t.Context(), &s3.ListObjectVersionsInput{Bucket: &bucket})
			if err != nil {
				t.Error(err)
				return "an error"
			}
			if len(out.Versions) != versions || len(out.DeleteMarkers) != markers {
				return fmt.Sprintf("%d versions, %d markers", len(out.Versions), len(out.DeleteMarkers))
			}
			if markers > 0 && !aws.ToBool(out.DeleteMarkers[0].IsLatest) {
				t.Error("the marker is not the latest version")
			}
			return ""
		})
	}
	shape("what was put", 3, 0)
	w.rules(bucket, `"Filter":{"Prefix":""},"Expiration":{"Days":1}`)
	shape("the delete marker", 3, 1)
	_, err = get(t.Context(), w.next().client(), bucket, "k")
	wantCode(t, "get of what expired", err, "NoSuchKey")

	w.rules(bucket, `"Filter":{"Prefix":""},"NoncurrentVersionExpiration":{"NoncurrentDays":1,"NewerNoncurrentVersions":1}`,
		`"Filter":{"Prefix":""},"AbortIncompleteMultipartUpload":{"DaysAfterInitiation":1}`)
	shape("the noncurrent versions but one to go", 1, 1)
	w.until("the upload to end", func(c *s3.Client) string {
		open, err := uploads(t.Context(), c)
		if err != nil {
			t.Error(err)
		}
		if len(open) > 0 {
			return "it is open"
		}
		return ""
	})
	w.rules(bucket, `"Filter":{"Prefix":""},"NoncurrentVersionExpiration":{"NoncurrentDays":1}`)
	shape("the noncurrent versions to go", 0, 1)
	w.rules(bucket, `"Filter":{"Prefix":""},"Expiration":{"ExpiredObjectDeleteMarker":true}`)
	shape("the marker to go", 0, 0)
	w.rules(bucket)
}

// reports checks what cairn lifecycle status says when all is done.
func (w *walker) reports() {
	t := w.t
	var all []status.Lifecycle
	w.until("nothing to be due", func(*s3.Client) string {
		code, out, errOut := w.next().cairn("lifecycle", "--json")
		if code != 0 {
			t.Fatalf("cairn lifecycle status: %d %s", code, errOut)
		}
		all = nil
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if i := slices.IndexFunc(all, func(l status.Lifecycle) bool { return l.Due > 0 || l.Error != "" }); i >= 0 {
			return fmt.Sprintf("%+v", all[i])
		}
		return ""
	})
	var sum status.Lifecycle
	for _, l := range all {
		sum.Expired, sum.Removed, sum.Aborted, sum.Transitioned = sum.Expired+l.Expired, sum.Removed+l.Removed, sum.Aborted+l.Aborted, sum.Transitioned+l.Transitioned
	}
	if len(all) != len(w.all) || sum.Expired < 4 || sum.Removed < 4 || sum.Aborted != 1 || sum.Transitioned < 4 {
		t.Errorf("cairn lifecycle status of %d nodes: %+v", len(all), all)
	}
	code, out, errOut := w.next().cairn("lifecycle")
	if code != 0 || !strings.Contains(out, "lag") {
		t.Errorf("cairn lifecycle status: %d %s%s", code, out, errOut)
	}
	t.Logf("\n%s", out)
}
