package s3api

import (
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

func TestPublicAccessBlock(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	const target = "/bucket?publicAccessBlock"
	put := func(inner string) answer {
		return h.do("PUT", target, []byte("<PublicAccessBlockConfiguration>"+inner+"</PublicAccessBlockConfiguration>"))
	}
	absent := func() {
		t.Helper()
		if a := h.want(h.do("GET", target, nil), 404, "NoSuchPublicAccessBlockConfiguration"); a.element("BucketName") != "bucket" {
			t.Error(a.body)
		}
	}
	absent()
	h.want(put(""), 400, "InvalidRequest")
	h.want(put("<BlockPublicAcls>yes</BlockPublicAcls>"), 400, "MalformedXML")
	h.want(put("<BlockPublicAcls/>"), 400, "MalformedXML")
	h.want(put("<BlockPublic>true</BlockPublic>"), 400, "MalformedXML")
	h.want(put("<BlockPublicAcls>true</BlockPublicAcls><BlockPublicAcls>true</BlockPublicAcls>"), 400, "MalformedXML")
	h.want(h.do("PUT", target, []byte("<x/>")), 400, "MalformedXML")
	h.want(h.do("PUT", target, nil), 400, "MalformedXML")
	absent()

	h.want(put("<BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>false</RestrictPublicBuckets>"), 200, "")
	a := h.want(h.do("GET", target, nil), 200, "")
	for name, want := range map[string]string{"BlockPublicAcls": "false", "IgnorePublicAcls": "false", "BlockPublicPolicy": "true", "RestrictPublicBuckets": "false"} {
		if got := a.element(name); got != want {
			t.Errorf("%s is %s", name, got)
		}
	}
	h.want(h.do("PUT", "/bucket?policy", []byte("{}")), 501, "NotImplemented")

	// Public ACLs are not implemented, and forbidden where they are blocked.
	const everybody = `uri="http://acs.amazonaws.com/groups/global/AllUsers"`
	document := []byte("<AccessControlPolicy><AccessControlList><Grant><Grantee><URI>http://acs.amazonaws.com/groups/global/AuthenticatedUsers</URI></Grantee><Permission>READ</Permission></Grant></AccessControlList></AccessControlPolicy>")
	public := func(status int, code string) {
		t.Helper()
		for _, canned := range []string{"public-read", "public-read-write", "authenticated-read"} {
			h.want(h.do("PUT", "/bucket?acl", nil, "X-Amz-Acl", canned), status, code)
			h.want(h.do("PUT", "/bucket/k", nil, "X-Amz-Acl", canned), status, code)
		}
		h.want(h.do("PUT", "/bucket/there?acl", nil, "X-Amz-Acl", "public-read"), status, code)
		h.want(h.do("POST", "/bucket/k?uploads", nil, "X-Amz-Acl", "public-read"), status, code)
		h.want(h.do("PUT", "/bucket/k", nil, "X-Amz-Acl", "public-read", "X-Amz-Copy-Source", "/bucket/there"), status, code)
		h.want(h.do("PUT", "/bucket/k", nil, "X-Amz-Grant-Read", everybody), status, code)
		h.want(h.do("PUT", "/bucket?acl", document), status, code)
		h.want(h.do("PUT", "/bucket/there?acl", document), status, code)
		h.want(h.do("PUT", "/bucket/k", nil, "X-Amz-Acl", "aws-exec-read"), 501, "NotImplemented")
		h.want(h.do("PUT", "/bucket/k", nil, "X-Amz-Grant-Read", "id=bob-id"), 501, "NotImplemented")
		h.want(h.do("PUT", "/bucket/k", nil, "X-Amz-Acl", "all"), 400, "InvalidArgument")
		h.want(h.do("PUT", "/other", nil, "X-Amz-Acl", "public-read"), 501, "NotImplemented")
		h.want(h.do("GET", "/bucket/k", nil), 404, "NoSuchKey")
	}
	h.do("PUT", "/bucket/there", nil)
	public(501, "NotImplemented")
	h.want(put("<BlockPublicAcls>true</BlockPublicAcls>"), 200, "")
	public(403, "AccessDenied")
	h.want(h.do("PUT", "/bucket/private", nil, "X-Amz-Acl", "private"), 200, "")
	h.want(h.do("PUT", "/nobucket/k", nil, "X-Amz-Acl", "public-read"), 404, "NoSuchBucket")

	h.key, h.secret = "BOB", "bob-secret"
	h.want(h.do("GET", target, nil), 403, "AccessDenied")
	h.want(put("<BlockPublicAcls>false</BlockPublicAcls>"), 403, "AccessDenied")
	h.want(h.do("DELETE", target, nil), 403, "AccessDenied")
	h.want(h.do("PUT", "/bucket/k", nil, "X-Amz-Acl", "public-read"), 403, "AccessDenied")
	h.key, h.secret = "ALICE", "alice-secret"
	h.want(h.do("DELETE", target, nil), 204, "")
	h.want(h.do("DELETE", target, nil), 204, "")
	absent()
	for _, m := range []string{"GET", "DELETE"} {
		h.want(h.do(m, "/nobucket?publicAccessBlock", nil), 404, "NoSuchBucket")
	}
	h.want(h.do("PUT", "/nobucket?publicAccessBlock", []byte(a.body)), 404, "NoSuchBucket") // what is read can be put
}

func TestOwnershipControls(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	const target = "/bucket?ownershipControls"
	put := func(ownership string) answer {
		return h.do("PUT", target, []byte("<OwnershipControls><Rule><ObjectOwnership>"+ownership+"</ObjectOwnership></Rule></OwnershipControls>"))
	}
	there := func() {
		t.Helper()
		if a := h.want(h.do("GET", target, nil), 200, ""); a.element("ObjectOwnership") != "BucketOwnerEnforced" {
			t.Error(a.body)
		}
	}
	there()
	for _, o := range []string{"BucketOwnerPreferred", "ObjectWriter"} {
		if a := h.want(put(o), 501, "NotImplemented"); !strings.Contains(a.element("Message"), o) {
			t.Error(a.body)
		}
	}
	h.want(put("Mine"), 400, "MalformedXML")
	h.want(h.do("PUT", target, []byte("<OwnershipControls/>")), 400, "MalformedXML")
	h.want(h.do("PUT", target, []byte("<OwnershipControls><Rule/></OwnershipControls>")), 400, "MalformedXML")
	there()
	for range 2 {
		h.want(h.do("DELETE", target, nil), 204, "")
		if a := h.want(h.do("GET", target, nil), 404, "OwnershipControlsNotFoundError"); a.element("BucketName") != "bucket" {
			t.Error(a.body)
		}
	}
	h.want(put("BucketOwnerEnforced"), 200, "")
	there()
	h.key, h.secret = "BOB", "bob-secret"
	h.want(h.do("GET", target, nil), 403, "AccessDenied")
	h.want(put("BucketOwnerEnforced"), 403, "AccessDenied")
	h.want(h.do("DELETE", target, nil), 403, "AccessDenied")
}

// As Terraform makes them of a bucket.
func TestSDKPublicAccess(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	c := h.client(h.srv)
	ctx := context.Background()
	bucket := aws.String("bucket")
	block := &types.PublicAccessBlockConfiguration{BlockPublicAcls: aws.Bool(true), BlockPublicPolicy: aws.Bool(true), IgnorePublicAcls: aws.Bool(true), RestrictPublicBuckets: aws.Bool(true)}
	if _, err := c.PutPublicAccessBlock(ctx, &s3.PutPublicAccessBlockInput{Bucket: bucket, PublicAccessBlockConfiguration: block}); err != nil {
		t.Fatal(err)
	}
	p, err := c.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: bucket})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []*bool{p.PublicAccessBlockConfiguration.BlockPublicAcls, p.PublicAccessBlockConfiguration.BlockPublicPolicy, p.PublicAccessBlockConfiguration.IgnorePublicAcls, p.PublicAccessBlockConfiguration.RestrictPublicBuckets} {
		if v == nil || !*v {
			t.Errorf("%+v", p.PublicAccessBlockConfiguration)
		}
	}
	controls := &types.OwnershipControls{Rules: []types.OwnershipControlsRule{{ObjectOwnership: types.ObjectOwnershipBucketOwnerEnforced}}}
	if _, err := c.PutBucketOwnershipControls(ctx, &s3.PutBucketOwnershipControlsInput{Bucket: bucket, OwnershipControls: controls}); err != nil {
		t.Error(err)
	}
	if _, err := c.DeleteBucketOwnershipControls(ctx, &s3.DeleteBucketOwnershipControlsInput{Bucket: bucket}); err != nil {
		t.Error(err)
	}
	if _, err := c.GetBucketOwnershipControls(ctx, &s3.GetBucketOwnershipControlsInput{Bucket: bucket}); apiCode(err) != "OwnershipControlsNotFoundError" {
		t.Error(err)
	}
}
