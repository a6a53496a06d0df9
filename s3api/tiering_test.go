package s3api

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/proto/metapb"
	"cairn/s3api/s3xml"
)

const (
	tieringTarget = "/bucket?intelligent-tiering"
	archiveTiers  = "<Tiering><Days>90</Days><AccessTier>ARCHIVE_ACCESS</AccessTier></Tiering>"
	deepTiers     = "<Tiering><Days>730</Days><AccessTier>DEEP_ARCHIVE_ACCESS</AccessTier></Tiering>"
)

func tieringDoc(inner string) []byte {
	return []byte("<IntelligentTieringConfiguration>" + inner + "</IntelligentTieringConfiguration>")
}

// What is put is read as it was written, and found in the list by its id.
func TestTieringConfigurations(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	if a := h.want(h.do("GET", tieringTarget+"&id=a", nil), 404, "NoSuchConfiguration"); a.element("ConfigurationId") != "a" {
		t.Error(a.body)
	}
	h.want(h.do("DELETE", tieringTarget+"&id=a", nil), 404, "NoSuchConfiguration")
	if a := h.want(h.do("GET", tieringTarget, nil), 200, ""); a.element("IsTruncated") != "false" || strings.Contains(a.body, "<Id>") {
		t.Error(a.body)
	}
	for _, inner := range []string{
		"<Id>a</Id>" + enabled + archiveTiers,
		"<Id>a</Id><Filter></Filter>" + enabled + deepTiers,
		"<Id>a</Id><Filter><Prefix>p/</Prefix></Filter><Status>Disabled</Status>" + archiveTiers + deepTiers,
		"<Id>a</Id><Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter>" + enabled + deepTiers + archiveTiers,
		"<Id>a</Id><Filter><And><Prefix>p/</Prefix><Tag><Key>k</Key><Value></Value></Tag><Tag><Key>l</Key><Value>v</Value></Tag></And></Filter>" + enabled + archiveTiers,
	} {
		h.want(h.do("PUT", tieringTarget+"&id=a", tieringDoc(inner)), 200, "")
		a := h.want(h.do("GET", tieringTarget+"&id=a", nil), 200, "")
		if want := `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<IntelligentTieringConfiguration xmlns="` + s3xml.Namespace + `">` + inner + "</IntelligentTieringConfiguration>"; a.body != want {
			t.Errorf("put %s\ngot %s", inner, a.body)
		}
		if a := h.want(h.do("GET", tieringTarget, nil), 200, ""); strings.Count(a.body, "<IntelligentTieringConfiguration>"+inner+"</IntelligentTieringConfiguration>") != 1 {
			t.Errorf("listed as %s", a.body)
		}
	}
	h.want(h.do("DELETE", tieringTarget+"&id=b", nil), 404, "NoSuchConfiguration")
	h.want(h.do("DELETE", tieringTarget+"&id=a", nil), 204, "")
	h.want(h.do("GET", tieringTarget+"&id=a", nil), 404, "NoSuchConfiguration")
	h.want(h.do("GET", "/other?intelligent-tiering", nil), 404, "NoSuchBucket")
}

func TestTieringRefusals(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	tier := func(days, name string) string {
		return "<Tiering><Days>" + days + "</Days><AccessTier>" + name + "</AccessTier></Tiering>"
	}
	for _, c := range []struct{ id, inner, code string }{
		{"a", "", "MalformedXML"},
		{"a", "<Id>a</Id>" + enabled, "MalformedXML"},
		{"a", "<Id>a</Id>" + archiveTiers, "MalformedXML"},
		{"a", enabled + archiveTiers, "MalformedXML"},
		{"a", "<Id>a</Id><Status>enabled</Status>" + archiveTiers, "MalformedXML"},
		{"a", "<Id>a</Id>" + enabled + archiveTiers + "<Other/>", "MalformedXML"},
		{"a", "<Id>a</Id>" + enabled + tier("90", "GLACIER"), "MalformedXML"},
		{"a", "<Id>a</Id>" + enabled + tier("many", "ARCHIVE_ACCESS"), "MalformedXML"},
		{"a", "<Id>a</Id>" + enabled + "<Tiering><Days>90</Days></Tiering>", "MalformedXML"},
		{"a", "<Id>a</Id>" + enabled + "<Tiering><AccessTier>ARCHIVE_ACCESS</AccessTier></Tiering>", "MalformedXML"},
		{"a", "<Id>a</Id>" + enabled + archiveTiers + deepTiers + archiveTiers, "MalformedXML"},
		{"a", "<Id>a</Id><Filter><Prefix>a</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></Filter>" + enabled + archiveTiers, "MalformedXML"},
		{"a", "<Id>a</Id><Filter><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></Filter>" + enabled + archiveTiers, "MalformedXML"},
		{"a", "<Id>a</Id>" + enabled + archiveTiers + archiveTiers, "InvalidArgument"},
		{"a", "<Id>a</Id>" + enabled + tier("89", "ARCHIVE_ACCESS"), "InvalidArgument"},
		{"a", "<Id>a</Id>" + enabled + tier("731", "ARCHIVE_ACCESS"), "InvalidArgument"},
		{"a", "<Id>a</Id>" + enabled + tier("179", "DEEP_ARCHIVE_ACCESS"), "InvalidArgument"},
		{"a", "<Id>a</Id>" + enabled + tier("-1", "DEEP_ARCHIVE_ACCESS"), "InvalidArgument"},
		{"b", "<Id>a</Id>" + enabled + archiveTiers, "InvalidArgument"},
		{"", "<Id>a</Id>" + enabled + archiveTiers, "InvalidArgument"},
		{"a%20b", "<Id>a b</Id>" + enabled + archiveTiers, "InvalidArgument"},
		{strings.Repeat("a", 65), "<Id>" + strings.Repeat("a", 65) + "</Id>" + enabled + archiveTiers, "InvalidArgument"},
		{"a", "<Id>a</Id><Filter><Prefix>" + strings.Repeat("p", 1025) + "</Prefix></Filter>" + enabled + archiveTiers, "InvalidArgument"},
	} {
		if a := h.do("PUT", tieringTarget+"&id="+c.id, tieringDoc(c.inner)); a.StatusCode != 400 || a.code() != c.code {
			t.Errorf("%s %s: %d %s, want %s", c.id, c.inner, a.StatusCode, a.body, c.code)
		}
	}
	h.want(h.do("PUT", tieringTarget+"&id=a", nil), 400, "MalformedXML")
	h.want(h.do("PUT", tieringTarget, tieringDoc("<Id>a</Id>"+enabled+archiveTiers)), 400, "InvalidArgument")
	h.want(h.do("DELETE", tieringTarget, nil), 400, "InvalidArgument")
	h.want(h.do("GET", tieringTarget+"&continuation-token=%21", nil), 400, "InvalidArgument")
	if a := h.want(h.do("GET", tieringTarget, nil), 200, ""); strings.Contains(a.body, "<Id>") {
		t.Error(a.body)
	}
	for i := range 1000 {
		h.fake.buckets["bucket"].Tiering = append(h.fake.buckets["bucket"].Tiering, &metapb.TieringConfig{Id: fmt.Sprintf("%03d", i), ArchiveDays: 90})
	}
	h.want(h.do("PUT", tieringTarget+"&id=more", tieringDoc("<Id>more</Id>"+enabled+archiveTiers)), 400, "TooManyConfigurations")
	h.want(h.do("PUT", tieringTarget+"&id=500", tieringDoc("<Id>500</Id>"+enabled+deepTiers)), 200, "")
	seen, token := 0, ""
	for page := 1; ; page++ {
		a := h.want(h.do("GET", tieringTarget+token, nil), 200, "")
		seen += strings.Count(a.body, "<Id>")
		if a.element("IsTruncated") == "false" {
			if page != 10 || seen != 1000 {
				t.Errorf("%d configurations on %d pages", seen, page)
			}
			break
		}
		if token != "" && !strings.HasSuffix(token, "="+a.element("ContinuationToken")) || page > 10 {
			t.Fatal(a.body)
		}
		token = "&continuation-token=" + a.element("NextContinuationToken")
	}
}

// An object in an archive tier is there but for its bytes, until a restore without days.
func TestArchiveTiers(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.inTheFuture()
	h.want(h.do("PUT", "/bucket/k", []byte("x"), classHeader, "INTELLIGENT_TIERING"), 200, "")
	head := func(status, restore string) {
		t.Helper()
		a := h.want(h.do("HEAD", "/bucket/k", nil), 200, "")
		if a.Header.Get("X-Amz-Archive-Status") != status || a.Header.Get("X-Amz-Restore") != restore || a.Header.Get(classHeader) != "INTELLIGENT_TIERING" {
			t.Error(a.Header)
		}
	}
	head("", "")
	if a := h.want(h.do("POST", "/bucket/k?restore", restoreDoc("")), 403, "InvalidObjectState"); strings.Contains(a.body, "AccessTier") || a.element("StorageClass") != "INTELLIGENT_TIERING" {
		t.Error(a.body)
	}
	o := h.fake.buckets["bucket"].objects["k"]
	for tier, name := range map[metapb.Tiering_Tier]string{metapb.Tiering_ARCHIVE: "ARCHIVE_ACCESS", metapb.Tiering_DEEP_ARCHIVE: "DEEP_ARCHIVE_ACCESS"} {
		o.tiering, o.restore = &metapb.Tiering{Tier: tier}, nil
		head(name, "")
		for _, a := range []answer{h.do("GET", "/bucket/k", nil), h.do("PUT", "/bucket/copy", nil, "X-Amz-Copy-Source", "bucket/k")} {
			if h.want(a, 403, "InvalidObjectState"); a.element("StorageClass") != "INTELLIGENT_TIERING" || a.element("AccessTier") != name {
				t.Error(a.body)
			}
		}
		if a := h.want(h.do("POST", "/bucket/k?restore", restoreDoc("<Days>1</Days>")), 400, "InvalidArgument"); a.element("ArgumentName") != "Days" {
			t.Error(a.body)
		}
		h.want(h.do("POST", "/bucket/k?restore", restoreDoc("<Days>0</Days>")), 400, "InvalidArgument")
		h.want(h.do("POST", "/bucket/k?restore", restoreDoc("<GlacierJobParameters><Tier>Bulk</Tier></GlacierJobParameters>")), 202, "")
		head(name, restoring)
		h.want(h.do("POST", "/bucket/k?restore", restoreDoc("")), 409, "RestoreAlreadyInProgress")
		o.restore.ReadyMs, o.restore.ExpiresMs = 1, 0 // long ago
		head("", "")
	}
	o.tiering = &metapb.Tiering{Tier: metapb.Tiering_ARCHIVE_INSTANT}
	head("", "")
}

func TestSDKTiering(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	c := h.client(h.srv)
	ctx := context.Background()
	bucket := aws.String("bucket")
	cfg := &types.IntelligentTieringConfiguration{
		Id: aws.String("cold"), Status: types.IntelligentTieringStatusEnabled,
		Filter:   &types.IntelligentTieringFilter{And: &types.IntelligentTieringAndOperator{Prefix: aws.String("p/"), Tags: []types.Tag{{Key: aws.String("k"), Value: aws.String("v")}}}},
		Tierings: []types.Tiering{{AccessTier: types.IntelligentTieringAccessTierArchiveAccess, Days: aws.Int32(100)}, {AccessTier: types.IntelligentTieringAccessTierDeepArchiveAccess, Days: aws.Int32(200)}},
	}
	if _, err := c.PutBucketIntelligentTieringConfiguration(ctx, &s3.PutBucketIntelligentTieringConfigurationInput{Bucket: bucket, Id: cfg.Id, IntelligentTieringConfiguration: cfg}); err != nil {
		t.Fatal(err)
	}
	out, err := c.GetBucketIntelligentTieringConfiguration(ctx, &s3.GetBucketIntelligentTieringConfigurationInput{Bucket: bucket, Id: cfg.Id})
	if err != nil {
		t.Fatal(err)
	}
	if got := out.IntelligentTieringConfiguration; *got.Id != "cold" || got.Status != cfg.Status || *got.Filter.And.Prefix != "p/" || len(got.Filter.And.Tags) != 1 || len(got.Tierings) != 2 || *got.Tierings[1].Days != 200 {
		t.Errorf("%+v", got)
	}
	list, err := c.ListBucketIntelligentTieringConfigurations(ctx, &s3.ListBucketIntelligentTieringConfigurationsInput{Bucket: bucket})
	if err != nil || len(list.IntelligentTieringConfigurationList) != 1 || *list.IntelligentTieringConfigurationList[0].Id != "cold" || *list.IsTruncated {
		t.Errorf("%v %+v", err, list)
	}
	if _, err := c.DeleteBucketIntelligentTieringConfiguration(ctx, &s3.DeleteBucketIntelligentTieringConfigurationInput{Bucket: bucket, Id: cfg.Id}); err != nil {
		t.Error(err)
	}
	if _, err := c.GetBucketIntelligentTieringConfiguration(ctx, &s3.GetBucketIntelligentTieringConfigurationInput{Bucket: bucket, Id: cfg.Id}); apiCode(err) != "NoSuchConfiguration" {
		t.Error(err)
	}
}
