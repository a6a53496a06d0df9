package s3api

import (
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

func TestACLs(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.AccountExists = func(id string) bool { return id == "alice-id" || id == "bob-id" } })
	h.versioned("bucket")
	version := h.do("PUT", "/bucket/k", []byte("x")).Header.Get("X-Amz-Version-Id")
	h.do("PUT", "/bucket/k", []byte("y"))
	for _, target := range []string{"/bucket?acl", "/bucket/k?acl", "/bucket/k?acl&versionId=" + version} {
		a := h.want(h.do("GET", target, nil), 200, "")
		if a.element("ID") != "alice-id" || a.element("DisplayName") != "Alice" || a.element("Permission") != "FULL_CONTROL" || strings.Count(a.body, "<Grant>") != 1 {
			t.Error(a.body)
		}
		mine := a.body[strings.Index(a.body, "<AccessControlPolicy"):]
		put := func(body string, headers ...string) answer { return h.do("PUT", target, []byte(body), headers...) }
		h.want(put(mine), 200, "") // what was read may be put back
		h.want(put("<AccessControlPolicy><AccessControlList><Grant><Grantee><ID>alice-id</ID></Grantee><Permission>FULL_CONTROL</Permission></Grant></AccessControlList></AccessControlPolicy>"), 200, "")
		h.want(put("", "X-Amz-Acl", "private"), 200, "")
		h.want(put("", "X-Amz-Acl", "bucket-owner-full-control"), 200, "")
		h.want(put("", "X-Amz-Acl", "public-read"), 501, "NotImplemented")
		h.want(put("", "X-Amz-Acl", "nonsense"), 400, "InvalidArgument")
		h.want(put("", "X-Amz-Grant-Read", "id=bob-id"), 501, "NotImplemented")
		h.want(put(""), 400, "MissingSecurityHeader")
		h.want(put(mine, "X-Amz-Acl", "private"), 400, "UnexpectedContent")
		h.want(put(strings.Replace(mine, "FULL_CONTROL", "READ", 1)), 501, "NotImplemented")
		h.want(put(strings.Replace(mine, "<AccessControlList>", "<AccessControlList><Grant><Grantee><URI>http://acs.amazonaws.com/groups/global/AllUsers</URI></Grantee><Permission>READ</Permission></Grant>", 1)), 501, "NotImplemented")
		h.want(put("<AccessControlPolicy><AccessControlList/></AccessControlPolicy>"), 501, "NotImplemented") // nobody at all
		h.want(put(strings.Replace(mine, "alice-id", "bob-id", 1)), 403, "AccessDenied")
		to := func(grantee string) answer {
			return put(strings.Replace(mine, "<AccessControlList>", "<AccessControlList><Grant><Grantee>"+grantee+"</Grantee><Permission>READ</Permission></Grant>", 1))
		}
		h.want(to("<ID>bob-id</ID>"), 501, "NotImplemented")
		h.want(to("<URI>http://acs.amazonaws.com/groups/s3/LogDelivery</URI>"), 501, "NotImplemented")
		if a := h.want(to("<ID>_foo</ID>"), 400, "InvalidArgument"); a.element("Message") != "Invalid id" || a.element("ArgumentValue") != "_foo" {
			t.Error(a.body)
		}
		h.want(to(""), 400, "InvalidArgument")
		h.want(to("<URI>http://acs.amazonaws.com/groups/global/Nobody</URI>"), 400, "InvalidArgument")
		h.want(to("<EmailAddress>bob@example.com</EmailAddress>"), 400, "UnresolvableGrantByEmailAddress")
		h.want(put("<AccessControlPolicy>"), 400, "MalformedACLError")
		h.want(put(strings.Replace(mine, "FULL_CONTROL", "ALL", 1)), 400, "MalformedACLError")
	}
	for _, m := range []string{"GET", "PUT"} {
		h.want(h.do(m, "/bucket/none?acl", nil), 404, "NoSuchKey")
		h.want(h.do(m, "/nobucket?acl", nil), 404, "NoSuchBucket")
	}
	h.key, h.secret = "BOB", "bob-secret"
	for _, m := range []string{"GET", "PUT"} {
		h.want(h.do(m, "/bucket/k?acl", nil), 403, "AccessDenied")
		h.want(h.do(m, "/bucket?acl", nil), 403, "AccessDenied")
	}
}

// What no bucket can have here: asking tells the truth, putting is refused, deleting is done.
func TestSettingsThatNobodyHas(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	for sub, c := range map[string]struct {
		get     string // code, or what the answer holds
		put, rm int
	}{
		"policy": {"NoSuchBucketPolicy", 501, 204}, "policyStatus": {"NoSuchBucketPolicy", 405, 405}, "cors": {"NoSuchCORSConfiguration", 501, 204},
		"encryption": {"ServerSideEncryptionConfigurationNotFoundError", 501, 204}, "website": {"NoSuchWebsiteConfiguration", 501, 204}, "replication": {"ReplicationConfigurationNotFoundError", 501, 204},
		"requestPayment": {"<Payer>BucketOwner</Payer>", 501, 405},
		"accelerate":     {"</AccelerateConfiguration>", 501, 405}, "logging": {"</BucketLoggingStatus>", 501, 405},
	} {
		a := h.do("GET", "/bucket?"+sub, nil)
		if strings.Contains(c.get, "<") {
			if a.StatusCode != 200 || !strings.Contains(a.body, c.get) {
				t.Errorf("%s: %d %s", sub, a.StatusCode, a.body)
			}
		} else if a.StatusCode != 404 || a.code() != c.get || a.element("BucketName") != "bucket" {
			t.Errorf("%s: %d %s", sub, a.StatusCode, a.body)
		}
		h.want(h.do("PUT", "/bucket?"+sub, []byte("<x/>")), c.put, "")
		h.want(h.do("DELETE", "/bucket?"+sub, nil), c.rm, "")
		h.want(h.do("GET", "/nobucket?"+sub, nil), 404, "NoSuchBucket")
		if c.rm == 204 {
			h.want(h.do("DELETE", "/nobucket?"+sub, nil), 404, "NoSuchBucket")
		}
		h.key, h.secret = "BOB", "bob-secret"
		h.want(h.do("GET", "/bucket?"+sub, nil), 403, "AccessDenied")
		if c.rm == 204 {
			h.want(h.do("DELETE", "/bucket?"+sub, nil), 403, "AccessDenied")
		}
		h.key, h.secret = "ALICE", "alice-secret"
	}
}

// What the SDK makes of these answers.
func TestSDKSettings(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	c := h.client(h.srv)
	ctx := context.Background()
	bucket := aws.String("bucket")
	if a, err := c.GetBucketAcl(ctx, &s3.GetBucketAclInput{Bucket: bucket}); err != nil || *a.Owner.ID != "alice-id" || len(a.Grants) != 1 || a.Grants[0].Grantee.Type != types.TypeCanonicalUser || *a.Grants[0].Grantee.ID != "alice-id" || a.Grants[0].Permission != "FULL_CONTROL" {
		t.Errorf("%v %+v", err, a)
	} else if _, err := c.PutBucketAcl(ctx, &s3.PutBucketAclInput{Bucket: bucket, AccessControlPolicy: &types.AccessControlPolicy{Owner: a.Owner, Grants: a.Grants}}); err != nil {
		t.Error(err)
	}
	if _, err := c.PutBucketAcl(ctx, &s3.PutBucketAclInput{Bucket: bucket, ACL: types.BucketCannedACLPrivate}); err != nil {
		t.Error(err)
	}
	if o, err := c.GetBucketOwnershipControls(ctx, &s3.GetBucketOwnershipControlsInput{Bucket: bucket}); err != nil || o.OwnershipControls.Rules[0].ObjectOwnership != types.ObjectOwnershipBucketOwnerEnforced {
		t.Errorf("%v %+v", err, o)
	}
	if p, err := c.GetBucketRequestPayment(ctx, &s3.GetBucketRequestPaymentInput{Bucket: bucket}); err != nil || p.Payer != types.PayerBucketOwner {
		t.Errorf("%v %+v", err, p)
	}
	if l, err := c.GetBucketLogging(ctx, &s3.GetBucketLoggingInput{Bucket: bucket}); err != nil || l.LoggingEnabled != nil {
		t.Errorf("%v %+v", err, l)
	}
	if n, err := c.GetBucketNotificationConfiguration(ctx, &s3.GetBucketNotificationConfigurationInput{Bucket: bucket}); err != nil || len(n.TopicConfigurations) != 0 {
		t.Errorf("%v %+v", err, n)
	}
	if a, err := c.GetBucketAccelerateConfiguration(ctx, &s3.GetBucketAccelerateConfigurationInput{Bucket: bucket}); err != nil || a.Status != "" {
		t.Errorf("%v %+v", err, a)
	}
	if _, err := c.GetBucketPolicy(ctx, &s3.GetBucketPolicyInput{Bucket: bucket}); apiCode(err) != "NoSuchBucketPolicy" {
		t.Error(err)
	}
	if _, err := c.DeletePublicAccessBlock(ctx, &s3.DeletePublicAccessBlockInput{Bucket: bucket}); err != nil {
		t.Error(err)
	}
}
