package store

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"cairn/proto/metapb"
	"cairn/s3api"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/errs"
)

// sdkGateway does the operations over HTTP: through the AWS SDK and the S3 handler in front of a backend. What an answer of
// HTTP does not tell is left zero: the time and size of what was put, the version that is null there, and when the delete
// marker was made that was met by the way. Methods that it has not are those of a nil Backend.
type sdkGateway struct {
	s3api.Backend
	client *s3.Client
	last   lastBody
	lists  int
}

// seconds is the zone of times that HTTP gave in whole seconds.
var seconds = time.FixedZone("whole seconds", 0)

// sayable reports whether a key can be said over HTTP.
func sayable(key string) bool { return utf8.ValidString(key) }

// pipes is a listener on the connections that are sent to it.
type pipes chan net.Conn

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// lastBody keeps the last answer: the SDK sorts what is of several kinds in a document, whose order then is lost.
type lastBody struct {
	http.RoundTripper
	body []byte
}

func (l *lastBody) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := l.RoundTripper.RoundTrip(r)
	if q := r.URL.Query(); err != nil || !q.Has("versions") && !q.Has("delete") {
		return resp, err
	}
	defer resp.Body.Close()
	if l.body, err = io.ReadAll(resp.Body); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(l.body))
	return resp, nil
}

// viaSDK is a gateway that speaks HTTP to b. Its connections are pipes, since time stands still in a bubble while real ones are waited for.
func viaSDK(t *testing.T, b s3api.Backend) *sdkGateway {
	t.Helper()
	h, err := s3api.New(s3api.Config{Accounts: func(string) (string, objects.Account, bool) { return "secret", acct, true }}, b)
	if err != nil {
		t.Fatal(err)
	}
	lis, srv, served := make(pipes), &http.Server{Handler: h}, make(chan struct{})
	go func() {
		_ = srv.Serve(lis)
		close(served)
	}()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, server := net.Pipe()
		select {
		case lis <- server:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = srv.Close()
		<-served
	})
	g := &sdkGateway{last: lastBody{RoundTripper: transport}}
	g.client = s3.New(s3.Options{
		Region: s3api.DefaultRegion, BaseEndpoint: aws.String("http://s3.test"), UsePathStyle: true, HTTPClient: &http.Client{Transport: &g.last},
		Retryer: aws.NopRetryer{}, Credentials: credentials.NewStaticCredentialsProvider("KEY", "secret", ""), DisableLogOutputChecksumValidationSkipped: true,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenSupported, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenSupported,
	})
	return g
}

// kinds are the errors that a code of S3 stands for.
var kinds = map[string]errs.Kind{
	"NoSuchBucket": errs.NoSuchBucket, "NoSuchKey": errs.NoSuchKey, "NoSuchVersion": errs.NoSuchVersion, "NoSuchUpload": errs.NoSuchUpload,
	"PreconditionFailed": errs.PreconditionFailed, "AccessDenied": errs.ObjectLocked, "InvalidArgument": errs.InvalidArgument,
	"InvalidRequest": errs.InvalidRequest, "InvalidBucketState": errs.InvalidState, "InvalidPart": errs.InvalidPart,
}

// answered is the error that an error of the SDK stands for.
func answered(err error) error {
	var api smithy.APIError
	var resp *awshttp.ResponseError
	if err == nil || !errors.As(err, &api) || !errors.As(err, &resp) {
		return err
	}
	h := resp.Response.Header
	if h.Get("X-Amz-Delete-Marker") != "true" {
		return errs.Wrap(kinds[api.ErrorCode()], "sdk", "", err)
	}
	m := &objects.DeleteMarkerError{VersionID: h.Get("X-Amz-Version-Id"), Err: errs.Wrap(errs.IsDeleteMarker, "sdk", "", err)}
	switch code := api.ErrorCode(); {
	case code == "NoSuchKey" && resp.HTTPStatusCode() == http.StatusNotFound:
	case code == "MethodNotAllowed" && resp.HTTPStatusCode() == http.StatusMethodNotAllowed && h.Get("Allow") == "DELETE":
		at, bad := http.ParseTime(h.Get("Last-Modified"))
		if bad != nil {
			return fmt.Errorf("%w: %w", bad, err)
		}
		m.Modified = at.In(seconds)
	default:
		return fmt.Errorf("a delete marker, answered in another way: %w", err)
	}
	return m
}

// text is a parameter: absent if it is empty.
func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func quoted(etags []string) *string {
	var list []string
	for _, e := range etags {
		if e != "*" {
			e = `"` + e + `"`
		}
		list = append(list, e)
	}
	return text(strings.Join(list, ", "))
}

func unquoted(etag *string) string {
	s := aws.ToString(etag)
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return "without quotes: " + s
	}
	return s[1 : len(s)-1]
}

func tagHeader(tags []*metapb.KV) *string {
	var list []string
	for _, t := range tags {
		list = append(list, url.QueryEscape(t.Name)+"="+url.QueryEscape(t.Value))
	}
	return text(strings.Join(list, "&"))
}

func tagSet(tags []*metapb.KV) (set []types.Tag) {
	for _, t := range tags {
		set = append(set, types.Tag{Key: &t.Name, Value: &t.Value})
	}
	return set
}

func fromTagSet(set []types.Tag) (tags []*metapb.KV) {
	for _, t := range set {
		tags = append(tags, &metapb.KV{Name: aws.ToString(t.Key), Value: aws.ToString(t.Value)})
	}
	return tags
}

// lockOf are the headers of a lock.
func lockOf(mode string, until time.Time, hold bool) (m types.ObjectLockMode, u *time.Time, h types.ObjectLockLegalHoldStatus) {
	if mode != "" {
		m, u = types.ObjectLockMode(mode), &until
	}
	if hold {
		h = types.ObjectLockLegalHoldStatusOn
	}
	return m, u, h
}

// headerVersion is the version of an answer that has no field for it in the SDK.
func headerVersion(m middleware.Metadata) string {
	resp, ok := awsmiddleware.GetRawResponse(m).(*smithyhttp.Response)
	if !ok {
		return "no answer"
	}
	return resp.Header.Get("X-Amz-Version-Id")
}

func (g *sdkGateway) CreateBucket(ctx context.Context, _ objects.Account, name string, opt objects.BucketOptions) error {
	_, err := g.client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: &opt.ObjectLock})
	return answered(err)
}

func (g *sdkGateway) PutBucketVersioning(ctx context.Context, _ objects.Account, name string, enabled bool) error {
	status := types.BucketVersioningStatusSuspended
	if enabled {
		status = types.BucketVersioningStatusEnabled
	}
	_, err := g.client.PutBucketVersioning(ctx, &s3.PutBucketVersioningInput{Bucket: &name, VersioningConfiguration: &types.VersioningConfiguration{Status: status}})
	return answered(err)
}

func (g *sdkGateway) PutBucketLock(ctx context.Context, _ objects.Account, name string, cfg objects.LockConfig) error {
	c := &types.ObjectLockConfiguration{ObjectLockEnabled: types.ObjectLockEnabledEnabled}
	if cfg.Mode != "" {
		r := &types.DefaultRetention{Mode: types.ObjectLockRetentionMode(cfg.Mode)}
		if cfg.Days > 0 {
			r.Days = aws.Int32(int32(cfg.Days))
		}
		if cfg.Years > 0 {
			r.Years = aws.Int32(int32(cfg.Years))
		}
		c.Rule = &types.ObjectLockRule{DefaultRetention: r}
	}
	_, err := g.client.PutObjectLockConfiguration(ctx, &s3.PutObjectLockConfigurationInput{Bucket: &name, ObjectLockConfiguration: c})
	return answered(err)
}

func (g *sdkGateway) PutBucketTags(ctx context.Context, _ objects.Account, name string, tags []*metapb.KV) (err error) {
	if len(tags) == 0 {
		_, err = g.client.DeleteBucketTagging(ctx, &s3.DeleteBucketTaggingInput{Bucket: &name})
	} else {
		_, err = g.client.PutBucketTagging(ctx, &s3.PutBucketTaggingInput{Bucket: &name, Tagging: &types.Tagging{TagSet: tagSet(tags)}})
	}
	return answered(err)
}

func (g *sdkGateway) PutBucketPublicAccessBlock(ctx context.Context, _ objects.Account, name string, p *objects.PublicAccessBlock) (err error) {
	if p == nil {
		_, err = g.client.DeletePublicAccessBlock(ctx, &s3.DeletePublicAccessBlockInput{Bucket: &name})
	} else {
		_, err = g.client.PutPublicAccessBlock(ctx, &s3.PutPublicAccessBlockInput{Bucket: &name, PublicAccessBlockConfiguration: &types.PublicAccessBlockConfiguration{
			BlockPublicAcls: &p.BlockPublicAcls, IgnorePublicAcls: &p.IgnorePublicAcls, BlockPublicPolicy: &p.BlockPublicPolicy, RestrictPublicBuckets: &p.RestrictPublicBuckets,
		}})
	}
	return answered(err)
}

func (g *sdkGateway) PutBucketOwnershipControls(ctx context.Context, _ objects.Account, name string, there bool) (err error) {
	if there {
		_, err = g.client.PutBucketOwnershipControls(ctx, &s3.PutBucketOwnershipControlsInput{Bucket: &name, OwnershipControls: &types.OwnershipControls{
			Rules: []types.OwnershipControlsRule{{ObjectOwnership: types.ObjectOwnershipBucketOwnerEnforced}},
		}})
	} else {
		_, err = g.client.DeleteBucketOwnershipControls(ctx, &s3.DeleteBucketOwnershipControlsInput{Bucket: &name})
	}
	return answered(err)
}

// HeadBucket tells all that a bucket is configured with.
func (g *sdkGateway) HeadBucket(ctx context.Context, _ objects.Account, name string) (b objects.Bucket, err error) {
	if _, err := g.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &name}); err != nil {
		return b, answered(err)
	}
	b.Name = name
	v, err := g.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &name})
	if err != nil {
		return b, answered(err)
	}
	b.Versioning = map[types.BucketVersioningStatus]metapb.Versioning{
		types.BucketVersioningStatusEnabled: metapb.Versioning_VERSIONING_ENABLED, types.BucketVersioningStatusSuspended: metapb.Versioning_VERSIONING_SUSPENDED,
	}[v.Status]
	without := func(err error, code string) bool {
		var api smithy.APIError
		return errors.As(err, &api) && api.ErrorCode() == code
	}
	lock, err := g.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &name})
	switch {
	case without(err, "ObjectLockConfigurationNotFoundError"):
	case err != nil:
		return b, answered(err)
	default:
		c := lock.ObjectLockConfiguration
		if b.Lock.Enabled = c.ObjectLockEnabled == types.ObjectLockEnabledEnabled; c.Rule != nil {
			r := c.Rule.DefaultRetention
			b.Lock.Mode, b.Lock.Days, b.Lock.Years = string(r.Mode), uint32(aws.ToInt32(r.Days)), uint32(aws.ToInt32(r.Years))
		}
	}
	tags, err := g.client.GetBucketTagging(ctx, &s3.GetBucketTaggingInput{Bucket: &name})
	switch {
	case without(err, "NoSuchTagSet"):
	case err != nil:
		return b, answered(err)
	default:
		b.Tags = fromTagSet(tags.TagSet)
	}
	block, err := g.client.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: &name})
	switch {
	case without(err, "NoSuchPublicAccessBlockConfiguration"):
	case err != nil:
		return b, answered(err)
	default:
		c := block.PublicAccessBlockConfiguration
		b.PublicAccessBlock = &objects.PublicAccessBlock{
			BlockPublicAcls: aws.ToBool(c.BlockPublicAcls), IgnorePublicAcls: aws.ToBool(c.IgnorePublicAcls),
			BlockPublicPolicy: aws.ToBool(c.BlockPublicPolicy), RestrictPublicBuckets: aws.ToBool(c.RestrictPublicBuckets),
		}
	}
	owned, err := g.client.GetBucketOwnershipControls(ctx, &s3.GetBucketOwnershipControlsInput{Bucket: &name})
	switch {
	case without(err, "OwnershipControlsNotFoundError"):
	case err != nil:
		return b, answered(err)
	default:
		b.OwnershipControls = len(owned.OwnershipControls.Rules) == 1 && owned.OwnershipControls.Rules[0].ObjectOwnership == types.ObjectOwnershipBucketOwnerEnforced
	}
	return b, nil
}

func (g *sdkGateway) PutObject(ctx context.Context, _ objects.Account, in *objects.PutInput) (*objects.PutOutput, error) {
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return nil, err
	}
	a, key := in.Attributes, string(in.Key)
	mode, until, hold := lockOf(a.LockMode, time.UnixMilli(a.LockUntilMs), a.LegalHold)
	out, err := g.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &in.Bucket, Key: &key, Body: bytes.NewReader(body), ContentType: text(a.ContentType), Tagging: tagHeader(a.Tags),
		ObjectLockMode: mode, ObjectLockRetainUntilDate: until, ObjectLockLegalHoldStatus: hold,
		IfMatch: quoted(in.Conditions.IfMatch), IfNoneMatch: quoted(in.Conditions.IfNoneMatch),
	})
	if err != nil {
		return nil, answered(err)
	}
	return &objects.PutOutput{ETag: unquoted(out.ETag), VersionID: aws.ToString(out.VersionId)}, nil
}

// object is what GET and HEAD answer, and the tags that the version has besides.
func (g *sdkGateway) object(ctx context.Context, in *objects.GetInput, h *s3.HeadObjectOutput) (*objects.Object, error) {
	key := string(in.Key)
	a := &metapb.Attributes{ContentType: aws.ToString(h.ContentType), LockMode: string(h.ObjectLockMode), LegalHold: h.ObjectLockLegalHoldStatus == types.ObjectLockLegalHoldStatusOn}
	if h.ObjectLockRetainUntilDate != nil {
		a.LockUntilMs = h.ObjectLockRetainUntilDate.UnixMilli()
	}
	tags, err := g.client.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: &in.Bucket, Key: &key, VersionId: text(in.VersionID)})
	if err != nil {
		return nil, answered(err)
	}
	a.Tags = fromTagSet(tags.TagSet)
	o := &objects.Object{
		Key: in.Key, Size: aws.ToInt64(h.ContentLength), ETag: unquoted(h.ETag), VersionID: aws.ToString(h.VersionId), DeleteMarker: aws.ToBool(h.DeleteMarker),
		Modified: h.LastModified.In(seconds), Attributes: a,
	}
	if n := int(aws.ToInt32(h.TagCount)); n != len(a.Tags) || aws.ToString(tags.VersionId) != o.VersionID {
		return nil, fmt.Errorf("%d tags of version %q, want %v of %q", n, o.VersionID, a.Tags, aws.ToString(tags.VersionId))
	}
	if _, n, ok := strings.Cut(o.ETag, "-"); ok {
		o.Parts, err = strconv.Atoi(n)
	}
	return o, err
}

func (g *sdkGateway) GetObject(ctx context.Context, _ objects.Account, in *objects.GetInput) (*objects.Object, error) {
	key := string(in.Key)
	out, err := g.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &in.Bucket, Key: &key, VersionId: text(in.VersionID)})
	if err != nil {
		return nil, answered(err)
	}
	defer out.Body.Close()
	body, err := io.ReadAll(out.Body)
	if err != nil {
		return nil, err
	}
	o, err := g.object(ctx, in, &s3.HeadObjectOutput{
		ContentType: out.ContentType, ContentLength: out.ContentLength, ETag: out.ETag, VersionId: out.VersionId, DeleteMarker: out.DeleteMarker, LastModified: out.LastModified,
		TagCount: out.TagCount, ObjectLockMode: out.ObjectLockMode, ObjectLockRetainUntilDate: out.ObjectLockRetainUntilDate, ObjectLockLegalHoldStatus: out.ObjectLockLegalHoldStatus,
	})
	if err != nil {
		return nil, err
	}
	o.Attach(func(w io.Writer) error { _, err := w.Write(body); return err }, nil)
	return o, nil
}

func (g *sdkGateway) HeadObject(ctx context.Context, _ objects.Account, in *objects.GetInput) (*objects.Object, error) {
	key := string(in.Key)
	out, err := g.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &in.Bucket, Key: &key, VersionId: text(in.VersionID), ChecksumMode: types.ChecksumModeEnabled})
	if err != nil {
		return nil, answered(err)
	}
	return g.object(ctx, in, out)
}

// ObjectParts asks with GetObjectAttributes, and HeadObject for what that does not tell.
func (g *sdkGateway) ObjectParts(ctx context.Context, acct objects.Account, in *objects.GetInput, after, max int) (*objects.Object, []objects.Part, bool, error) {
	key := string(in.Key)
	out, err := g.client.GetObjectAttributes(ctx, &s3.GetObjectAttributesInput{
		Bucket: &in.Bucket, Key: &key, VersionId: text(in.VersionID), MaxParts: aws.Int32(int32(max)), PartNumberMarker: aws.String(strconv.Itoa(after)),
		ObjectAttributes: types.ObjectAttributesEtag.Values(),
	})
	if err != nil {
		return nil, nil, false, answered(err)
	}
	o, err := g.HeadObject(ctx, acct, in)
	if err != nil {
		return nil, nil, false, err
	}
	var parts []objects.Part
	more := false
	if p := out.ObjectParts; p != nil {
		for _, x := range p.Parts {
			part := objects.Part{Number: int(aws.ToInt32(x.PartNumber)), Size: aws.ToInt64(x.Size)}
			for _, sum := range []*string{x.ChecksumCRC32, x.ChecksumCRC32C, x.ChecksumCRC64NVME, x.ChecksumSHA1, x.ChecksumSHA256} {
				if sum != nil {
					part.Checksums = append(part.Checksums, &metapb.Checksum{})
				}
			}
			parts = append(parts, part)
		}
		more = aws.ToBool(p.IsTruncated)
		if n := int(aws.ToInt32(p.TotalPartsCount)); n != o.Parts {
			return nil, nil, false, fmt.Errorf("%d parts of an object with etag %s", n, o.ETag)
		}
	} else if o.Parts > 0 {
		return nil, nil, false, fmt.Errorf("no parts of an object with etag %s", o.ETag)
	}
	if aws.ToString(out.ETag) != o.ETag || aws.ToInt64(out.ObjectSize) != o.Size || aws.ToString(out.VersionId) != o.VersionID || !out.LastModified.Equal(o.Modified) {
		return nil, nil, false, fmt.Errorf("attributes %+v of %+v", out, o)
	}
	return o, parts, more, nil
}

func (g *sdkGateway) DeleteObject(ctx context.Context, _ objects.Account, bucket string, it objects.DeleteItem) (res objects.DeleteResult, err error) {
	key := string(it.Key)
	in := &s3.DeleteObjectInput{Bucket: &bucket, Key: &key, VersionId: text(it.VersionID), IfMatch: quoted(it.Conditions.IfMatch)}
	if it.Bypass {
		in.BypassGovernanceRetention = aws.Bool(true)
	}
	out, err := g.client.DeleteObject(ctx, in)
	if err != nil {
		return res, answered(err)
	}
	if id := aws.ToString(out.VersionId); aws.ToBool(out.DeleteMarker) {
		if res.DeleteMarker, res.MarkerVersionID = true, id; it.VersionID != "" {
			res.VersionID = id
		}
	} else {
		res.VersionID = id
	}
	return res, nil
}

// DeleteObjects sends one request for items in a row with the same bypass, which HTTP says once for all.
func (g *sdkGateway) DeleteObjects(ctx context.Context, _ objects.Account, bucket string, items []objects.DeleteItem) (all []objects.DeleteResult, err error) {
	for len(items) > 0 {
		n := 1
		for n < len(items) && items[n].Bypass == items[0].Bypass {
			n++
		}
		res, err := g.deleteSome(ctx, bucket, items[:n])
		if err != nil {
			return nil, err
		}
		all, items = append(all, res...), items[n:]
	}
	return all, nil
}

func (g *sdkGateway) deleteSome(ctx context.Context, bucket string, items []objects.DeleteItem) (all []objects.DeleteResult, err error) {
	in := &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{}}
	if items[0].Bypass {
		in.BypassGovernanceRetention = aws.Bool(true)
	}
	for i := range items {
		it := &items[i]
		in.Delete.Objects = append(in.Delete.Objects, types.ObjectIdentifier{Key: aws.String(string(it.Key)), VersionId: text(it.VersionID), ETag: quoted(it.Conditions.IfMatch)})
	}
	out, err := g.client.DeleteObjects(ctx, in)
	if err != nil {
		return nil, answered(err)
	}
	order, err := g.elements("Deleted", "Error")
	if err != nil || len(order) != len(items) || len(order) != len(out.Deleted)+len(out.Errors) {
		return nil, fmt.Errorf("%d of %d answered, %w", len(order), len(items), err)
	}
	for i, e := range order {
		it, res := &items[i], objects.DeleteResult{}
		if e.Key != string(it.Key) || e.VersionId != it.VersionID {
			return nil, fmt.Errorf("answer %+v to %+v", e, it)
		}
		if e.XMLName.Local == "Error" {
			x := out.Errors[0]
			out.Errors = out.Errors[1:]
			res.Err = errs.New(kinds[aws.ToString(x.Code)], "sdk", aws.ToString(x.Key), aws.ToString(x.Message))
		} else {
			d := out.Deleted[0]
			out.Deleted = out.Deleted[1:]
			res.VersionID, res.DeleteMarker, res.MarkerVersionID = aws.ToString(d.VersionId), aws.ToBool(d.DeleteMarker), aws.ToString(d.DeleteMarkerVersionId)
		}
		all = append(all, res)
	}
	return all, nil
}

// element is one of a document in which there are several kinds.
type element struct {
	XMLName   xml.Name
	Key       string
	VersionId string
}

// elements are those of the last answer, in their order.
func (g *sdkGateway) elements(names ...string) ([]element, error) {
	var doc struct {
		All []element `xml:",any"`
	}
	err := xml.Unmarshal(g.last.body, &doc)
	return slices.DeleteFunc(doc.All, func(e element) bool { return !slices.Contains(names, e.XMLName.Local) }), err
}

func (g *sdkGateway) CopyObject(ctx context.Context, _ objects.Account, in *objects.CopyInput) (*objects.PutOutput, error) {
	source, key := in.SourceBucket+"/"+url.PathEscape(string(in.SourceKey)), string(in.Key)
	if in.SourceVersionID != "" {
		source += "?versionId=" + in.SourceVersionID
	}
	c := &s3.CopyObjectInput{
		Bucket: &in.Bucket, Key: &key, CopySource: &source, IfMatch: quoted(in.Conditions.IfMatch), IfNoneMatch: quoted(in.Conditions.IfNoneMatch),
		// Said, since without anything that changes S3 refuses a copy of an object onto itself.
		StorageClass: types.StorageClassStandard,
	}
	c.ObjectLockMode, c.ObjectLockRetainUntilDate, c.ObjectLockLegalHoldStatus = lockOf(in.Retention.Mode, in.Retention.Until, in.LegalHold)
	if in.Attributes != nil {
		c.MetadataDirective, c.ContentType = types.MetadataDirectiveReplace, text(in.Attributes.ContentType)
	}
	if in.ReplaceTags {
		c.TaggingDirective, c.Tagging = types.TaggingDirectiveReplace, tagHeader(in.Tags)
	}
	out, err := g.client.CopyObject(ctx, c)
	if errs.Is(answered(err), errs.InvalidRequest) && in.SourceVersionID != "" && strings.Contains(err.Error(), "may not specifically refer to a delete marker") {
		return nil, &objects.DeleteMarkerError{VersionID: in.SourceVersionID, Err: errs.Wrap(errs.IsDeleteMarker, "sdk", "", err)}
	}
	if err != nil {
		return nil, answered(err)
	}
	if got := aws.ToString(out.CopySourceVersionId); got != in.SourceVersionID {
		return nil, fmt.Errorf("copied version %q, want %q", got, in.SourceVersionID)
	}
	return &objects.PutOutput{ETag: unquoted(out.CopyObjectResult.ETag), VersionID: aws.ToString(out.VersionId), Modified: *out.CopyObjectResult.LastModified}, nil
}

// decode undoes encoding-type=url.
func decode(s *string) string {
	d, err := url.QueryUnescape(aws.ToString(s))
	if err != nil {
		return "not encoded: " + aws.ToString(s)
	}
	return d
}

// token marks an After that is a continuation token.
const token = "continuation token "

// ListObjects lists with either version of it.
func (g *sdkGateway) ListObjects(ctx context.Context, _ objects.Account, in *objects.ListInput) (*objects.ListOutput, error) {
	var found []types.Object
	var prefixes []types.CommonPrefix
	var list objects.ListOutput
	after, continues := strings.CutPrefix(in.After, token)
	if g.lists++; continues || g.lists%2 == 0 {
		two := &s3.ListObjectsV2Input{Bucket: &in.Bucket, Prefix: text(in.Prefix), Delimiter: text(in.Delimiter), MaxKeys: aws.Int32(int32(in.Max)), EncodingType: types.EncodingTypeUrl}
		if continues {
			two.ContinuationToken = &after
		} else {
			two.StartAfter = text(after)
		}
		out, err := g.client.ListObjectsV2(ctx, two)
		if err != nil {
			return nil, answered(err)
		}
		found, prefixes, list.Truncated = out.Contents, out.CommonPrefixes, aws.ToBool(out.IsTruncated)
		if list.Truncated {
			list.Next = token + aws.ToString(out.NextContinuationToken)
		}
		if n := int(aws.ToInt32(out.KeyCount)); n != len(found)+len(prefixes) {
			return nil, fmt.Errorf("%d keys are counted as %d", len(found)+len(prefixes), n)
		}
	} else {
		out, err := g.client.ListObjects(ctx, &s3.ListObjectsInput{
			Bucket: &in.Bucket, Prefix: text(in.Prefix), Delimiter: text(in.Delimiter), MaxKeys: aws.Int32(int32(in.Max)), EncodingType: types.EncodingTypeUrl, Marker: text(after),
		})
		if err != nil {
			return nil, answered(err)
		}
		found, prefixes, list.Truncated = out.Contents, out.CommonPrefixes, aws.ToBool(out.IsTruncated)
		switch n := len(found); {
		case list.Truncated && in.Delimiter != "":
			list.Next = decode(out.NextMarker)
		case list.Truncated && n > 0:
			list.Next = decode(found[n-1].Key)
		}
	}
	for i := range found {
		o := &found[i]
		list.Objects = append(list.Objects, &objects.Object{Key: storage.Key(decode(o.Key)), ETag: unquoted(o.ETag), Size: aws.ToInt64(o.Size), Modified: *o.LastModified})
	}
	for _, p := range prefixes {
		list.CommonPrefixes = append(list.CommonPrefixes, decode(p.Prefix))
	}
	return &list, nil
}

func (g *sdkGateway) ListVersions(ctx context.Context, _ objects.Account, in *objects.ListVersionsInput) (*objects.ListVersionsOutput, error) {
	out, err := g.client.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{
		Bucket: &in.Bucket, Prefix: text(in.Prefix), Delimiter: text(in.Delimiter), MaxKeys: aws.Int32(int32(in.Max)), EncodingType: types.EncodingTypeUrl,
		KeyMarker: text(in.KeyMarker), VersionIdMarker: text(in.VersionMarker),
	})
	if err != nil {
		return nil, answered(err)
	}
	order, err := g.elements("Version", "DeleteMarker")
	if err != nil || len(order) != len(out.Versions)+len(out.DeleteMarkers) {
		return nil, fmt.Errorf("%d versions and %d markers of %d, %w", len(out.Versions), len(out.DeleteMarkers), len(order), err)
	}
	list := &objects.ListVersionsOutput{Truncated: aws.ToBool(out.IsTruncated), NextKey: decode(out.NextKeyMarker), NextVersion: aws.ToString(out.NextVersionIdMarker)}
	for _, e := range order {
		var v objects.Version
		if e.XMLName.Local == "Version" {
			x := out.Versions[0]
			out.Versions = out.Versions[1:]
			v.Key, v.VersionID, v.Latest, v.ETag, v.Size, v.Modified = storage.Key(decode(x.Key)), aws.ToString(x.VersionId), aws.ToBool(x.IsLatest), unquoted(x.ETag), aws.ToInt64(x.Size), *x.LastModified
		} else {
			x := out.DeleteMarkers[0]
			out.DeleteMarkers = out.DeleteMarkers[1:]
			v.Key, v.VersionID, v.Latest, v.Modified, v.DeleteMarker = storage.Key(decode(x.Key)), aws.ToString(x.VersionId), aws.ToBool(x.IsLatest), *x.LastModified, true
		}
		if e.VersionId != v.VersionID {
			return nil, fmt.Errorf("version %s is another: %+v", e.VersionId, v)
		}
		list.Versions = append(list.Versions, v)
	}
	for _, p := range out.CommonPrefixes {
		list.CommonPrefixes = append(list.CommonPrefixes, decode(p.Prefix))
	}
	return list, nil
}

func (g *sdkGateway) PutTags(ctx context.Context, _ objects.Account, v objects.VersionRef, tags []*metapb.KV) (string, error) {
	key := string(v.Key)
	if len(tags) == 0 {
		out, err := g.client.DeleteObjectTagging(ctx, &s3.DeleteObjectTaggingInput{Bucket: &v.Bucket, Key: &key, VersionId: text(v.VersionID)})
		if err != nil {
			return "", answered(err)
		}
		return aws.ToString(out.VersionId), nil
	}
	out, err := g.client.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: &v.Bucket, Key: &key, VersionId: text(v.VersionID), Tagging: &types.Tagging{TagSet: tagSet(tags)}})
	if err != nil {
		return "", answered(err)
	}
	return aws.ToString(out.VersionId), nil
}

func (g *sdkGateway) PutRetention(ctx context.Context, _ objects.Account, v objects.VersionRef, r objects.Retention, bypass bool) (string, error) {
	key := string(v.Key)
	in := &s3.PutObjectRetentionInput{Bucket: &v.Bucket, Key: &key, VersionId: text(v.VersionID), Retention: &types.ObjectLockRetention{Mode: types.ObjectLockRetentionMode(r.Mode)}}
	if r.Mode != "" {
		in.Retention.RetainUntilDate = &r.Until
	}
	if bypass {
		in.BypassGovernanceRetention = &bypass
	}
	out, err := g.client.PutObjectRetention(ctx, in)
	if err != nil {
		return "", answered(err)
	}
	return headerVersion(out.ResultMetadata), nil
}

func (g *sdkGateway) PutLegalHold(ctx context.Context, _ objects.Account, v objects.VersionRef, on bool) (string, error) {
	key, status := string(v.Key), types.ObjectLockLegalHoldStatusOff
	if on {
		status = types.ObjectLockLegalHoldStatusOn
	}
	out, err := g.client.PutObjectLegalHold(ctx, &s3.PutObjectLegalHoldInput{Bucket: &v.Bucket, Key: &key, VersionId: text(v.VersionID), LegalHold: &types.ObjectLockLegalHold{Status: status}})
	if err != nil {
		return "", answered(err)
	}
	return headerVersion(out.ResultMetadata), nil
}

func (g *sdkGateway) CreateUpload(ctx context.Context, _ objects.Account, in *objects.CreateUploadInput) (up objects.Upload, err error) {
	a, key := in.Attributes, string(in.Key)
	mode, until, hold := lockOf(a.LockMode, time.UnixMilli(a.LockUntilMs), a.LegalHold)
	out, err := g.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &in.Bucket, Key: &key, ContentType: text(a.ContentType), Tagging: tagHeader(a.Tags),
		ObjectLockMode: mode, ObjectLockRetainUntilDate: until, ObjectLockLegalHoldStatus: hold,
	})
	if err != nil {
		return up, answered(err)
	}
	return objects.Upload{Key: in.Key, ID: aws.ToString(out.UploadId)}, nil
}

func (g *sdkGateway) UploadPart(ctx context.Context, _ objects.Account, in *objects.UploadPartInput) (*objects.PutOutput, error) {
	key := string(in.Key)
	body, err := io.ReadAll(in.Body)
	if err != nil {
		return nil, err
	}
	out, err := g.client.UploadPart(ctx, &s3.UploadPartInput{Bucket: &in.Bucket, Key: &key, UploadId: &in.UploadID, PartNumber: aws.Int32(int32(in.Number)), Body: bytes.NewReader(body)})
	if err != nil {
		return nil, answered(err)
	}
	return &objects.PutOutput{ETag: unquoted(out.ETag)}, nil
}

func (g *sdkGateway) CompleteUpload(ctx context.Context, _ objects.Account, in *objects.CompleteInput) (*objects.PutOutput, error) {
	key, done := string(in.Key), &types.CompletedMultipartUpload{}
	for i := range in.Parts {
		done.Parts = append(done.Parts, types.CompletedPart{PartNumber: aws.Int32(int32(in.Parts[i].Number)), ETag: quoted([]string{in.Parts[i].ETag})})
	}
	out, err := g.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &in.Bucket, Key: &key, UploadId: &in.UploadID, MultipartUpload: done, IfMatch: quoted(in.Conditions.IfMatch), IfNoneMatch: quoted(in.Conditions.IfNoneMatch),
	})
	if err != nil {
		return nil, answered(err)
	}
	return &objects.PutOutput{ETag: unquoted(out.ETag), VersionID: aws.ToString(out.VersionId)}, nil
}

func (g *sdkGateway) AbortUpload(ctx context.Context, _ objects.Account, bucket string, key storage.Key, id string) error {
	_, err := g.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &bucket, Key: aws.String(string(key)), UploadId: &id})
	return answered(err)
}
