//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// getVersion is the object's bytes; id nil is the current version.
func getVersion(ctx context.Context, c *s3.Client, bucket, key string, id *string) ([]byte, error) {
	out, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: &key, VersionId: id})
	if err != nil {
		return nil, err
	}
	defer out.Body.Close()
	return io.ReadAll(out.Body)
}

// history is what the bucket's versions and markers look like, the newest of each key first, in pages of n.
func history(t *testing.T, c *s3.Client, bucket string, n int32) (lines []string, ids []types.ObjectIdentifier) {
	t.Helper()
	pages := s3.NewListObjectVersionsPaginator(c, &s3.ListObjectVersionsInput{Bucket: &bucket, MaxKeys: &n})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got := len(page.Versions) + len(page.DeleteMarkers); got > int(n) {
			t.Fatalf("%d entries in a page of %d", got, n)
		}
		for _, v := range page.Versions {
			lines = append(lines, fmt.Sprint("version ", *v.Key, " ", *v.VersionId, " ", *v.IsLatest, " ", *v.Size, " ", *v.ETag))
			ids = append(ids, types.ObjectIdentifier{Key: v.Key, VersionId: v.VersionId})
		}
		for _, m := range page.DeleteMarkers {
			lines = append(lines, fmt.Sprint("marker ", *m.Key, " ", *m.VersionId, " ", *m.IsLatest))
			ids = append(ids, types.ObjectIdentifier{Key: m.Key, VersionId: m.VersionId})
		}
	}
	slices.Sort(lines) // within a page the SDK gives versions before markers
	return lines, ids
}

func wantVersion(t *testing.T, c *s3.Client, bucket, key string, id *string, want []byte) {
	t.Helper()
	if got, err := getVersion(t.Context(), c, bucket, key, id); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s %s: %d bytes, %v, want %d", key, aws.ToString(id), len(got), err, len(want))
	}
}

func wantCode(t *testing.T, what string, err error, want string) {
	t.Helper()
	if got := code(err); got != want {
		t.Errorf("%s: %q (%v), want %q", what, got, err, want)
	}
}

// tagsOf are the version's tags as key=value.
func tagsOf(t *testing.T, c *s3.Client, bucket, key string, id *string) string {
	t.Helper()
	out, err := c.GetObjectTagging(t.Context(), &s3.GetObjectTaggingInput{Bucket: &bucket, Key: &key, VersionId: id})
	if err != nil {
		t.Fatal(err)
	}
	var pairs []string
	for _, tag := range out.TagSet {
		pairs = append(pairs, *tag.Key+"="+*tag.Value)
	}
	return strings.Join(pairs, " ")
}

// A bucket that was unversioned, then versioned, then suspended keeps what each time promised, also when the power goes.
func TestVersionedBucket(t *testing.T) {
	p := start(t, zones()...)
	c := p.client()
	ctx := t.Context()
	bucket := newBucket(t, p.endpoint)
	versioning := func(s types.BucketVersioningStatus) {
		t.Helper()
		if _, err := c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: &bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: s}}); err != nil {
			t.Fatal(err)
		}
		if got, err := c.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &bucket}); err != nil || got.Status != s {
			t.Fatalf("%v %+v", err, got)
		}
	}
	type version struct {
		key  string
		id   *string
		data []byte
	}
	var kept []version
	write := func(key string, n int64) version {
		t.Helper()
		v := version{key: key, data: noiseBytes(uint64(len(kept)), n)}
		out, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(v.data), Tagging: aws.String(fmt.Sprintf("n=%d", len(kept)))})
		if err != nil {
			t.Fatal(err)
		}
		v.id = out.VersionId
		kept = append(kept, v)
		return v
	}
	if v := write("k", 10); v.id != nil {
		t.Errorf("version %s in a bucket that has none", *v.id)
	}
	kept[0].id = aws.String("null")
	versioning(types.BucketVersioningStatusEnabled)
	write("k", 300<<10)
	write("k", 5)
	write("k/below", 200<<10)
	// A multipart upload makes a version like any other.
	multi := noiseBytes(77, 6<<20)
	up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: aws.String("multi"), Tagging: aws.String("from=upload")})
	if err != nil {
		t.Fatal(err)
	}
	var parts []types.CompletedPart
	for i, piece := range [][]byte{multi[:5<<20], multi[5<<20:]} {
		out, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: &bucket, Key: aws.String("multi"), UploadId: up.UploadId, PartNumber: aws.Int32(int32(i + 1)), Body: bytes.NewReader(piece)})
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, types.CompletedPart{PartNumber: aws.Int32(int32(i + 1)), ETag: out.ETag, ChecksumCRC32: out.ChecksumCRC32})
	}
	done, err := c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &bucket, Key: aws.String("multi"), UploadId: up.UploadId, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts}})
	if err != nil || done.VersionId == nil {
		t.Fatalf("%v %+v", err, done)
	}
	kept = append(kept, version{"multi", done.VersionId, multi})
	attrs, err := c.GetObjectAttributes(ctx, &s3.GetObjectAttributesInput{Bucket: &bucket, Key: aws.String("multi"), VersionId: done.VersionId, ObjectAttributes: types.ObjectAttributes("").Values(), MaxParts: aws.Int32(1)})
	if err != nil || *attrs.ObjectSize != int64(len(multi)) || *attrs.ObjectParts.TotalPartsCount != 2 || !*attrs.ObjectParts.IsTruncated || len(attrs.ObjectParts.Parts) != 1 || *attrs.ObjectParts.Parts[0].Size != 5<<20 {
		t.Errorf("%v %+v", err, attrs)
	}
	// An old version, copied, is the current one.
	cp, err := c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &bucket, Key: aws.String("k"), CopySource: aws.String(bucket + "/k?versionId=" + *kept[1].id)})
	if err != nil || cp.VersionId == nil || aws.ToString(cp.CopySourceVersionId) != *kept[1].id {
		t.Fatalf("%v %+v", err, cp)
	}
	kept = append(kept, version{"k", cp.VersionId, kept[1].data})
	if got := tagsOf(t, c, bucket, "k", nil); got != "n=1" {
		t.Errorf("the copy's tags: %s", got)
	}
	if _, err := c.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: &bucket, Key: aws.String("k"), VersionId: kept[2].id, Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("changed"), Value: aws.String("yes")}}}}); err != nil {
		t.Fatal(err)
	}
	del, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String("k")})
	if err != nil || !aws.ToBool(del.DeleteMarker) || del.VersionId == nil {
		t.Fatalf("%v %+v", err, del)
	}

	check := func() {
		t.Helper()
		for _, v := range kept {
			wantVersion(t, c, bucket, v.key, v.id, v.data)
		}
		_, err := getVersion(ctx, c, bucket, "k", nil)
		wantCode(t, "behind a marker", err, "NoSuchKey")
		_, err = getVersion(ctx, c, bucket, "k", del.VersionId)
		wantCode(t, "the marker", err, "MethodNotAllowed")
		_, err = getVersion(ctx, c, bucket, "k", aws.String("nonsense"))
		wantCode(t, "nonsense", err, "InvalidArgument")
		for id, want := range map[*string]string{kept[0].id: "n=0", kept[1].id: "n=1", kept[2].id: "changed=yes"} {
			if got := tagsOf(t, c, bucket, "k", id); got != want {
				t.Errorf("tags of %s: %s, want %s", *id, got, want)
			}
		}
		if got := tagsOf(t, c, bucket, "multi", nil); got != "from=upload" {
			t.Errorf("tags of an upload: %s", got)
		}
	}
	check()
	all, _ := history(t, c, bucket, 1000)
	if len(all) != 7 {
		t.Errorf("%d versions and markers:\n%s", len(all), strings.Join(all, "\n"))
	}
	for _, n := range []int32{1, 2, 5} {
		if got, _ := history(t, c, bucket, n); !slices.Equal(got, all) {
			t.Errorf("pages of %d:\n%s\nwant\n%s", n, strings.Join(got, "\n"), strings.Join(all, "\n"))
		}
	}
	p.kill()
	p.start()
	check()
	if got, _ := history(t, c, bucket, 1000); !slices.Equal(got, all) {
		t.Errorf("after a kill:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(all, "\n"))
	}

	// Without the marker the newest version is back; without that, the one before it.
	for _, step := range []struct {
		remove *string
		want   []byte
	}{{del.VersionId, kept[1].data}, {cp.VersionId, kept[2].data}} {
		if _, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String("k"), VersionId: step.remove}); err != nil {
			t.Fatal(err)
		}
		wantVersion(t, c, bucket, "k", nil, step.want)
	}
	// Suspended, a write takes the null version's place and nobody else's.
	versioning(types.BucketVersioningStatusSuspended)
	put(t, c, bucket, "k", []byte("null again"))
	wantVersion(t, c, bucket, "k", aws.String("null"), []byte("null again"))
	wantVersion(t, c, bucket, "k", kept[1].id, kept[1].data)
	if out, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String("k")}); err != nil || !aws.ToBool(out.DeleteMarker) || aws.ToString(out.VersionId) != "null" {
		t.Errorf("%v %+v", err, out)
	}
	_, err = c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket})
	wantCode(t, "a bucket with versions", err, "BucketNotEmpty")
	_, ids := history(t, c, bucket, 1000)
	if out, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: ids}}); err != nil || len(out.Deleted) != len(ids) {
		t.Fatalf("%v %+v", err, out)
	}
	if _, err := c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket}); err != nil {
		t.Error(err)
	}
	p.waitWhole(2 * time.Minute)
	p.wantClean()
}

// What is locked stays, whatever is tried, also when the power goes.
func TestLockedBucket(t *testing.T) {
	p := start(t, zones()...)
	c := p.client()
	ctx := t.Context()
	bucket, key := "locked", aws.String("k")
	if _, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	_, err := c.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: &bucket, VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusSuspended}})
	wantCode(t, "suspend", err, "InvalidBucketState")
	plain := newBucket(t, p.endpoint)
	_, err = c.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &plain})
	wantCode(t, "no lock", err, "ObjectLockConfigurationNotFoundError")
	until := time.Now().Add(24 * time.Hour).UTC().Truncate(time.Millisecond)
	_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: &plain, Key: key, ChecksumAlgorithm: types.ChecksumAlgorithmCrc32, ObjectLockMode: types.ObjectLockModeGovernance, ObjectLockRetainUntilDate: &until})
	wantCode(t, "a lock in a bucket without", err, "InvalidRequest")

	if _, err := c.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: &bucket, ObjectLockConfiguration: &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled,
		Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeGovernance, Days: aws.Int32(2)}}}}); err != nil {
		t.Fatal(err)
	}
	write := func(in s3.PutObjectInput) *string {
		t.Helper()
		in.Bucket, in.Key, in.Body, in.ChecksumAlgorithm = &bucket, key, strings.NewReader("precious"), types.ChecksumAlgorithmCrc32 // which a lock requires
		out, err := c.PutObject(ctx, &in)
		if err != nil {
			t.Fatal(err)
		}
		return out.VersionId
	}
	byDefault := write(s3.PutObjectInput{})
	compliance := write(s3.PutObjectInput{ObjectLockMode: types.ObjectLockModeCompliance, ObjectLockRetainUntilDate: &until})
	held := write(s3.PutObjectInput{ObjectLockLegalHoldStatus: types.ObjectLockLegalHoldStatusOn})
	marker, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: key})
	if err != nil || !aws.ToBool(marker.DeleteMarker) {
		t.Fatalf("%v %+v", err, marker)
	}
	remove := func(id *string, bypass bool) error {
		_, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: key, VersionId: id, BypassGovernanceRetention: &bypass})
		return err
	}
	retain := func(id *string, mode types.ObjectLockRetentionMode, at time.Time, bypass bool) error {
		_, err := c.PutObjectRetention(ctx, &s3.PutObjectRetentionInput{Bucket: &bucket, Key: key, VersionId: id, BypassGovernanceRetention: &bypass, Retention: &types.ObjectLockRetention{Mode: mode, RetainUntilDate: &at}})
		return err
	}
	for range 2 {
		for _, id := range []*string{byDefault, compliance, held} {
			wantCode(t, "delete", remove(id, false), "AccessDenied")
			wantVersion(t, c, bucket, *key, id, []byte("precious"))
		}
		wantCode(t, "delete past compliance", remove(compliance, true), "AccessDenied")
		wantCode(t, "delete past a legal hold", remove(held, true), "AccessDenied")
		wantCode(t, "shorten", retain(byDefault, "GOVERNANCE", until.Add(-time.Hour), false), "AccessDenied")
		wantCode(t, "shorten compliance", retain(compliance, "COMPLIANCE", until.Add(-time.Hour), true), "AccessDenied")
		wantCode(t, "weaken compliance", retain(compliance, "GOVERNANCE", until, true), "AccessDenied")
		bulk, err := c.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &bucket, BypassGovernanceRetention: aws.Bool(false), Delete: &types.Delete{Objects: []types.ObjectIdentifier{
			{Key: key, VersionId: byDefault}, {Key: key, VersionId: compliance}, {Key: key, VersionId: held}}}})
		if err != nil || len(bulk.Errors) != 3 || *bulk.Errors[0].Code != "AccessDenied" {
			t.Errorf("%v %+v", err, bulk)
		}
		_, err = c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket})
		wantCode(t, "delete the bucket", err, "BucketNotEmpty")
		head, err := c.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &bucket, Key: key, VersionId: compliance})
		if err != nil || head.ObjectLockMode != types.ObjectLockModeCompliance || !head.ObjectLockRetainUntilDate.Equal(until) {
			t.Errorf("%v %+v", err, head)
		}
		r, err := c.GetObjectRetention(ctx, &s3.GetObjectRetentionInput{Bucket: &bucket, Key: key, VersionId: byDefault})
		if err != nil || r.Retention.Mode != types.ObjectLockRetentionModeGovernance || r.Retention.RetainUntilDate.Before(until) {
			t.Errorf("%v %+v", err, r)
		}
		p.kill()
		p.start()
	}
	if err := remove(marker.VersionId, false); err != nil {
		t.Error(err)
	}
	if hold, err := c.GetObjectLegalHold(ctx, &s3.GetObjectLegalHoldInput{Bucket: &bucket, Key: key}); err != nil || hold.LegalHold.Status != types.ObjectLockLegalHoldStatusOn {
		t.Errorf("%v %+v", err, hold)
	}
	if _, err := c.PutObjectLegalHold(ctx, &s3.PutObjectLegalHoldInput{Bucket: &bucket, Key: key, LegalHold: &types.ObjectLockLegalHold{Status: types.ObjectLockLegalHoldStatusOff}}); err != nil {
		t.Error(err)
	}
	if err := retain(compliance, "COMPLIANCE", until.Add(time.Hour), false); err != nil {
		t.Error("lengthen:", err)
	}
	for _, id := range []*string{byDefault, held} { // held by default, too
		wantCode(t, "delete", remove(id, false), "AccessDenied")
		if err := remove(id, true); err != nil {
			t.Error(err)
		}
	}
	wantVersion(t, c, bucket, *key, nil, []byte("precious"))
	p.waitWhole(2 * time.Minute)
	p.wantClean()
}
