//go:build e2e

package e2e

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

// zones are the flags of a server with six drives in three zones.
func zones() []string { return []string{"--zones", "3", "--drives-per-zone", "2"} }

func TestBoto3(t *testing.T) {
	python := pythonWithBoto3(t)
	e := anyServer(t, zones()...)
	out := command(t, e.env(), t.TempDir(), python, filepath.Join(repoRoot(), "test", "e2e", "scripts", "boto3_defaults.py"), fmt.Sprintf("boto3-%d", os.Getpid()))
	t.Log(strings.TrimSpace(out))
}

func TestAWSCLI(t *testing.T) {
	cli := awsTool(t)
	e := anyServer(t, zones()...)
	bucket := newBucket(t, e)
	dir := t.TempDir()
	writeTree(t, filepath.Join(dir, "tree"))
	run := func(args ...string) string {
		return command(t, e.env(), dir, cli, append([]string{"--endpoint-url", e.url()}, args...)...)
	}
	run("s3", "sync", "tree", "s3://"+bucket+"/tree")
	run("s3", "sync", "s3://"+bucket+"/tree", "back")
	sameTree(t, filepath.Join(dir, "tree"), filepath.Join(dir, "back"))
	if out := run("s3", "sync", "tree", "s3://"+bucket+"/tree"); strings.Contains(out, "upload") {
		t.Errorf("a second sync uploads again:\n%s", out)
	}
	if out := run("s3", "ls", "--recursive", "s3://"+bucket+"/tree/"); strings.Count(out, "\n") != len(treeSums(t, filepath.Join(dir, "tree"))) {
		t.Errorf("ls --recursive:\n%s", out)
	}
	run("s3", "mv", "s3://"+bucket+"/tree/src/main.go", "s3://"+bucket+"/moved.go")
	run("s3api", "put-object", "--bucket", bucket, "--key", "meta", "--body", "tree/README.md", "--metadata", "a=b")
	if out := run("s3api", "head-object", "--bucket", bucket, "--key", "meta"); !strings.Contains(out, `"a": "b"`) {
		t.Errorf("head-object:\n%s", out)
	}
	run("s3", "rm", "--recursive", "s3://"+bucket)
	run("s3", "rb", "s3://"+bucket)
}

// TestAWSCLIVersions uses the low-level commands, which say one operation each, on a versioned bucket with locks.
func TestAWSCLIVersions(t *testing.T) {
	cli := awsTool(t)
	e := anyServer(t, zones()...)
	bucket := fmt.Sprintf("awscli-versions-%d", os.Getpid())
	dir := t.TempDir()
	for _, name := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	api := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(command(t, e.env(), dir, cli, append([]string{"--endpoint-url", e.url(), "--output", "text", "s3api"}, append(args, "--bucket", bucket)...)...))
	}
	want := func(got, want string) {
		t.Helper()
		if strings.Join(strings.Fields(got), " ") != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	api("create-bucket", "--object-lock-enabled-for-bucket")
	want(api("get-bucket-versioning"), "Enabled")
	first := api("put-object", "--key", "k", "--body", "one", "--tagging", "a=1", "--query", "VersionId")
	second := api("put-object", "--key", "k", "--body", "two", "--query", "VersionId")
	want(api("list-object-versions", "--query", "Versions[].VersionId"), second+" "+first)
	want(api("get-object-tagging", "--key", "k", "--version-id", first, "--query", "TagSet[].[Key,Value]"), "a 1")
	api("put-object-tagging", "--key", "k", "--version-id", first, "--tagging", "TagSet=[{Key=b,Value=2}]")
	want(api("get-object-tagging", "--key", "k", "--version-id", first, "--query", "TagSet[].[Key,Value]"), "b 2")
	marker := api("delete-object", "--key", "k", "--query", "VersionId")
	want(api("list-object-versions", "--query", "DeleteMarkers[].[VersionId,IsLatest]"), marker+" True")
	api("delete-object", "--key", "k", "--version-id", marker)
	api("get-object", "--key", "k", "out")
	if got, err := os.ReadFile(filepath.Join(dir, "out")); err != nil || string(got) != "two" {
		t.Errorf("%q, %v", got, err)
	}
	api("put-object-legal-hold", "--key", "k", "--version-id", first, "--legal-hold", "Status=ON")
	want(api("get-object-legal-hold", "--key", "k", "--version-id", first), "LEGALHOLD ON")
	api("put-object-legal-hold", "--key", "k", "--version-id", first, "--legal-hold", "Status=OFF")
	for _, id := range []string{first, second} {
		api("delete-object", "--key", "k", "--version-id", id)
	}
	api("delete-bucket")
}

func TestGoSDK(t *testing.T) {
	e := anyServer(t, zones()...)
	c := e.client()
	ctx := t.Context()
	bucket := newBucket(t, e)

	small := noiseBytes(1, 777)
	put(t, c, bucket, "small", small)
	wantObject(t, c, bucket, "small", small)
	put(t, c, bucket, "empty", nil)
	wantObject(t, c, bucket, "empty", nil)

	// A stream of unknown length goes up in parts with the SDK's default checksums.
	big := noiseBytes(2, 37<<20+11)
	_, err := manager.NewUploader(c).Upload(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("big"), Body: io.MultiReader(bytes.NewReader(big))})
	if err != nil {
		t.Fatal(err)
	}
	buf := manager.NewWriteAtBuffer(nil)
	if _, err := manager.NewDownloader(c).Download(ctx, buf, &s3.GetObjectInput{Bucket: &bucket, Key: aws.String("big")}); err != nil || !bytes.Equal(buf.Bytes(), big) {
		t.Fatalf("big: %v, %d bytes, want %d", err, len(buf.Bytes()), len(big))
	}
	for _, alg := range types.ChecksumAlgorithm("").Values() {
		if alg == types.ChecksumAlgorithmCrc32 || alg == types.ChecksumAlgorithmCrc32c || alg == types.ChecksumAlgorithmSha1 || alg == types.ChecksumAlgorithmSha256 || alg == types.ChecksumAlgorithmCrc64nvme {
			key := "sum-" + string(alg)
			if _, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(small), ChecksumAlgorithm: alg}); err != nil {
				t.Errorf("put with %s: %v", alg, err)
				continue
			}
			wantObject(t, c, bucket, key, small) // the SDK compares the checksum that came back
		}
	}
	head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: aws.String("small")})
	if err != nil {
		t.Fatal(err)
	}
	digest := md5.Sum(small)
	if want := `"` + hex.EncodeToString(digest[:]) + `"`; aws.ToString(head.ETag) != want || aws.ToInt64(head.ContentLength) != 777 {
		t.Errorf("head: etag %s, want %s; length %d", aws.ToString(head.ETag), want, aws.ToInt64(head.ContentLength))
	}

	url, err := s3.NewPresignClient(c).PresignPutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: aws.String("presigned/ä+b c")}, s3.WithPresignExpires(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest(url.Method, url.URL, bytes.NewReader(small))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Errorf("presigned PUT: %s", resp.Status)
	}
	wantObject(t, c, bucket, "presigned/ä+b c", small)

	var api smithy.APIError
	_, err = c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket})
	if !errors.As(err, &api) || api.ErrorCode() != "BucketNotEmpty" {
		t.Errorf("delete of a bucket with objects: %v", err)
	}
	var ids []types.ObjectIdentifier
	keys, _ := listKeys(t, c, &s3.ListObjectsV2Input{Bucket: &bucket})
	for _, k := range keys {
		ids = append(ids, types.ObjectIdentifier{Key: aws.String(k)})
	}
	out, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: ids}})
	if err != nil || len(out.Deleted) != len(ids) || len(out.Errors) > 0 {
		t.Errorf("delete objects: %v, %d of %d, %v", err, len(out.Deleted), len(ids), out.Errors)
	}
	if _, err := c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket}); err != nil {
		t.Errorf("delete of the empty bucket: %v", err)
	}
}

func TestRclone(t *testing.T) {
	rclone := tool(t, "rclone", []string{"version"}, "rclone")
	e := anyServer(t, zones()...)
	bucket := newBucket(t, e)
	dir := t.TempDir()
	writeTree(t, filepath.Join(dir, "tree"))
	env := append(e.env(), "RCLONE_CONFIG="+filepath.Join(dir, "rclone.conf"), "RCLONE_CONFIG_CAIRN_TYPE=s3", "RCLONE_CONFIG_CAIRN_PROVIDER=Other",
		"RCLONE_CONFIG_CAIRN_ENDPOINT="+e.url(), "RCLONE_CONFIG_CAIRN_REGION="+region, "RCLONE_CONFIG_CAIRN_ACCESS_KEY_ID="+e.access, "RCLONE_CONFIG_CAIRN_SECRET_ACCESS_KEY="+e.secret)
	if err := os.WriteFile(filepath.Join(dir, "rclone.conf"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	remote := "cairn:" + bucket + "/tree"
	command(t, env, dir, rclone, "sync", "tree", remote)
	command(t, env, dir, rclone, "check", "tree", remote)
	command(t, env, dir, rclone, "check", "--download", "tree", remote)
	command(t, env, dir, rclone, "sync", remote, "back")
	sameTree(t, filepath.Join(dir, "tree"), filepath.Join(dir, "back"))
	if err := os.Remove(filepath.Join(dir, "tree", "src", "main.go")); err != nil {
		t.Fatal(err)
	}
	command(t, env, dir, rclone, "sync", "tree", remote)
	command(t, env, dir, rclone, "check", "tree", remote)
	command(t, env, dir, rclone, "purge", "cairn:"+bucket)

	// On a versioned bucket what sync overwrites and deletes is still there, until it is cleaned up.
	bucket = newBucket(t, e)
	remote = "cairn:" + bucket + "/tree"
	command(t, env, dir, rclone, "backend", "versioning", "cairn:"+bucket, "Enabled")
	command(t, env, dir, rclone, "sync", "back", remote)
	command(t, env, dir, rclone, "sync", "tree", remote)
	command(t, env, dir, rclone, "check", "--download", "tree", remote)
	old := regexp.MustCompile(`(?m)^src/main-v[0-9-]+\.go$`).FindString(command(t, env, dir, rclone, "lsf", "-R", "--files-only", "--s3-versions", remote))
	if old == "" {
		t.Fatal("rclone does not see the version that sync deleted")
	}
	want, err := os.ReadFile(filepath.Join(dir, "back", "src", "main.go"))
	if err != nil {
		t.Fatal(err)
	}
	command(t, env, dir, rclone, "copy", "--s3-versions", remote, "all")
	if got, err := os.ReadFile(filepath.Join(dir, "all", filepath.FromSlash(old))); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the old version has %d bytes, want %d (%v)", len(got), len(want), err)
	}
	command(t, env, dir, rclone, "backend", "cleanup-hidden", "cairn:"+bucket)
	command(t, env, dir, rclone, "check", "tree", remote)
	if left := command(t, env, dir, rclone, "lsf", "-R", "--files-only", "--s3-versions", remote); strings.Contains(left, old) {
		t.Errorf("the old version is left after the cleaning: %s", left)
	}
}

func TestS3cmd(t *testing.T) {
	s3cmd := tool(t, "s3cmd", []string{"--version"}, "s3cmd", "/usr/bin/s3cmd")
	e := anyServer(t, zones()...)
	bucket := fmt.Sprintf("s3cmd-%d", os.Getpid())
	dir := t.TempDir()
	writeTree(t, filepath.Join(dir, "tree"))
	cfg := filepath.Join(dir, "s3cfg")
	text := fmt.Sprintf("[default]\naccess_key = %s\nsecret_key = %s\nhost_base = %s\nhost_bucket = %s\nuse_https = False\n", e.access, e.secret, e.host, e.host)
	if err := os.WriteFile(cfg, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		return command(t, append(e.env(), "LC_ALL=C.UTF-8"), dir, s3cmd, append([]string{"-c", cfg, "--no-progress"}, args...)...)
	}
	run("mb", "s3://"+bucket)
	run("sync", "tree/", "s3://"+bucket+"/tree/")
	if err := os.MkdirAll(filepath.Join(dir, "back"), 0o755); err != nil {
		t.Fatal(err)
	}
	run("sync", "s3://"+bucket+"/tree/", "back/")
	sameTree(t, filepath.Join(dir, "tree"), filepath.Join(dir, "back"))
	run("put", "--multipart-chunk-size-mb=5", "tree/big/12mib.bin", "s3://"+bucket+"/parts.bin")
	run("get", "--force", "s3://"+bucket+"/parts.bin", "parts.bin")
	if a, b := treeSums(t, filepath.Join(dir, "tree", "big"))["12mib.bin"], command(t, e.env(), dir, "sha256sum", "parts.bin")[:64]; a != b {
		t.Errorf("multipart there and back: %s, want %s", b, a)
	}
	run("cp", "s3://"+bucket+"/parts.bin", "s3://"+bucket+"/copied.bin")
	run("info", "s3://"+bucket+"/copied.bin")
	if out := run("ls", "--recursive", "s3://"+bucket); !strings.Contains(out, "copied.bin") {
		t.Errorf("ls:\n%s", out)
	}
	run("del", "--recursive", "--force", "s3://"+bucket)
	run("rb", "s3://"+bucket)
}

func TestRestic(t *testing.T) {
	restic := tool(t, "restic", []string{"version"}, "restic")
	e := anyServer(t, zones()...)
	bucket := newBucket(t, e)
	dir := t.TempDir()
	writeTree(t, filepath.Join(dir, "tree"))
	env := append(e.env(), "RESTIC_PASSWORD=test", "RESTIC_REPOSITORY=s3:"+e.url()+"/"+bucket, "RESTIC_CACHE_DIR="+filepath.Join(dir, "cache"))
	command(t, env, dir, restic, "init")
	command(t, env, dir, restic, "backup", "tree")
	command(t, env, dir, restic, "check", "--read-data")
	command(t, env, dir, restic, "restore", "latest", "--target", "back")
	sameTree(t, filepath.Join(dir, "tree"), filepath.Join(dir, "back", "tree"))
	command(t, env, dir, restic, "forget", "latest", "--prune", "--keep-last", "1")
}
