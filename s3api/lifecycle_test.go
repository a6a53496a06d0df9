package s3api

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/proto/metapb"
	"cairn/s3api/lifecycle"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
)

const lifecycleTarget = "/bucket?lifecycle"

// lifecycleDoc is a configuration with these rules.
func lifecycleDoc(rules ...string) []byte {
	return []byte("<LifecycleConfiguration><Rule>" + strings.Join(rules, "</Rule><Rule>") + "</Rule></LifecycleConfiguration>")
}

func (h *harness) putLifecycle(doc []byte, headers ...string) answer {
	h.t.Helper()
	return h.do("PUT", lifecycleTarget, doc, append(headers, "Content-Md5", md5Of(doc))...)
}

const (
	enabled      = "<Status>Enabled</Status>"
	all          = "<Filter/>"
	expire       = "<Expiration><Days>100</Days></Expiration>"
	abort        = "<AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload>"
	expireMarker = "<Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>"
	aTag         = "<Tag><Key>k</Key><Value>v</Value></Tag>"
	noRemove     = "<NoncurrentVersionExpiration><NoncurrentDays>200</NoncurrentDays></NoncurrentVersionExpiration>"
)

// move and moveOld are transitions of current and noncurrent versions; when is days or a date.
func move(when, class string) string {
	tag := "Days"
	if strings.Contains(when, "-") {
		tag = "Date"
	}
	return "<Transition><" + tag + ">" + when + "</" + tag + "><StorageClass>" + class + "</StorageClass></Transition>"
}

func moveOld(days, class, more string) string {
	return "<NoncurrentVersionTransition><NoncurrentDays>" + days + "</NoncurrentDays><StorageClass>" + class + "</StorageClass>" + more + "</NoncurrentVersionTransition>"
}

// What is read back is what was written, element by element.
func TestLifecycleRoundTrip(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	and := func(inner string) string { return "<Filter><And>" + inner + "</And></Filter>" }
	for _, rules := range [][]string{
		{"<ID>one</ID><Prefix></Prefix>" + enabled + expire},
		{"<ID>test1/</ID><Prefix>test1/</Prefix>" + enabled + expire, "<ID>test2/</ID><Prefix>test2/</Prefix><Status>Disabled</Status>" + noRemove},
		{"<ID>a</ID><Filter></Filter>" + enabled + abort},
		{"<ID>&lt;&amp; é ID</ID><Filter><Prefix></Prefix></Filter>" + enabled + expireMarker},
		{"<ID>never</ID><Filter><Prefix>x</Prefix></Filter>" + enabled + "<Expiration><ExpiredObjectDeleteMarker>false</ExpiredObjectDeleteMarker></Expiration>"},
		{"<ID>a</ID><Filter>" + aTag + "</Filter>" + enabled + expire, "<ID>b</ID><Filter><ObjectSizeGreaterThan>0</ObjectSizeGreaterThan></Filter>" + enabled + expire,
			"<ID>c</ID><Filter><ObjectSizeLessThan>1099511627776000</ObjectSizeLessThan></Filter>" + enabled + expire},
		{"<ID>a</ID>" + and("<Prefix></Prefix>"+aTag) + enabled + expire, "<ID>b</ID>" + and("<Tag><Key>z</Key><Value></Value></Tag>"+aTag) + enabled + expire,
			"<ID>c</ID>" + and("<Prefix>p&amp;/</Prefix>"+aTag+"<ObjectSizeGreaterThan>5</ObjectSizeGreaterThan><ObjectSizeLessThan>7</ObjectSizeLessThan>") + enabled + expire,
			"<ID>d</ID>" + and("<ObjectSizeGreaterThan>5</ObjectSizeGreaterThan><ObjectSizeLessThan>6</ObjectSizeLessThan>") + enabled + expire},
		{"<ID>a</ID><Filter></Filter>" + enabled + move("30", "STANDARD_IA") + move("60", "GLACIER_IR") + expire + moveOld("30", "ONEZONE_IA", "") + noRemove + abort},
		{"<ID>a</ID><Filter></Filter>" + enabled + move("0", "GLACIER_IR") + moveOld("0", "GLACIER_IR", "")},
		{"<ID>a</ID><Filter></Filter>" + enabled + move("2030-01-31T00:00:00.000Z", "ONEZONE_IA") + move("2030-01-01T00:00:00.000Z", "STANDARD_IA") + "<Expiration><Date>2030-02-01T00:00:00.000Z</Date></Expiration>"},
		{"<ID>a</ID><Filter></Filter>" + enabled + "<NoncurrentVersionTransition><NoncurrentDays>1</NoncurrentDays><NewerNoncurrentVersions>1</NewerNoncurrentVersions><StorageClass>GLACIER_IR</StorageClass></NoncurrentVersionTransition>" +
			"<NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays><NewerNoncurrentVersions>100</NewerNoncurrentVersions></NoncurrentVersionExpiration>"},
		{"<ID>" + strings.Repeat("é", 255) + "</ID><Filter><Prefix>" + strings.Repeat("k", 1024) + "</Prefix></Filter>" + enabled + "<Expiration><Days>2147483647</Days></Expiration>"},
	} {
		doc := string(lifecycleDoc(rules...))
		h.want(h.putLifecycle([]byte(doc)), 200, "")
		a := h.want(h.do("GET", lifecycleTarget, nil), 200, "")
		want := strings.Replace(doc, "<LifecycleConfiguration>", `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+`<LifecycleConfiguration xmlns="`+s3xml.Namespace+`">`, 1)
		if a.body != want {
			t.Errorf("put %s\ngot %s", doc, a.body)
		}
		if again := h.putLifecycle([]byte(a.body)); again.StatusCode != 200 {
			t.Errorf("what was read can't be put: %s", again.body)
		}
	}
}

// Elements may stand in any order, dates may be short, and what is not said is filled in.
func TestLifecycleKept(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.want(h.putLifecycle(lifecycleDoc(
		"<Expiration><Date>2017-09-27</Date></Expiration> <Status> Enabled </Status><Filter/>",
		"<ID/><Filter/><Transition><StorageClass>GLACIER_IR</StorageClass><Days>1</Days></Transition><Status>Disabled</Status>")), 200, "")
	cfg := h.fake.buckets["bucket"].Lifecycle
	if len(cfg.Rules) != 2 || cfg.VariesByStorageClass || cfg.Rules[0].Id == cfg.Rules[1].Id || len(cfg.Rules[0].Id) != 48 || len(cfg.Rules[1].Id) != 48 {
		t.Fatalf("%v", cfg)
	}
	if r := cfg.Rules[0]; r.Disabled || r.Expiration.DateMs != time.Date(2017, 9, 27, 0, 0, 0, 0, time.UTC).UnixMilli() || r.Expiration.Days != 0 || r.Filter.InRule || r.Filter.HasPrefix || r.Filter.InAnd {
		t.Errorf("%v", r)
	}
	if r := cfg.Rules[1]; !r.Disabled || len(r.Transitions) != 1 || r.Transitions[0].Days != 1 || r.Transitions[0].StorageClass != "GLACIER_IR" || r.Expiration != nil {
		t.Errorf("%v", r)
	}
	if a := h.do("GET", lifecycleTarget, nil); a.element("ID") != cfg.Rules[0].Id || a.element("Date") != "2017-09-27T00:00:00.000Z" {
		t.Error(a.body)
	}
}

// badRules are rules that S3 refuses, with its code and the beginning of its message.
func badRules() [][2]string {
	id := func(n int) string { return "<ID>" + strings.Repeat("a", n) + "</ID>" }
	filter := func(inner string) string { return "<Filter>" + inner + "</Filter>" + enabled + expire }
	and := func(inner string) string { return filter("<And>" + inner + "</And>") }
	act := func(inner string) string { return all + enabled + inner }
	size := func(greater, less string) string {
		return and("<ObjectSizeGreaterThan>" + greater + "</ObjectSizeGreaterThan><ObjectSizeLessThan>" + less + "</ObjectSizeLessThan>")
	}
	rules := [][2]string{
		{id(256) + all + enabled + expire, "InvalidArgument: ID length should not exceed allowed limit of 255"},
		{all + enabled, "InvalidRequest: At least one action needs to be specified in a rule"},
		{all + expire, "MalformedXML"},
		{all + "<Status/>" + expire, "MalformedXML"},
		{enabled + expire, "MalformedXML"},
		{all + "<Prefix/>" + enabled + expire, "MalformedXML"},
		{all + all + enabled + expire, "MalformedXML"},
		{id(1) + id(2) + act(expire), "MalformedXML"},
		{act(expire + "<Other/>"), "MalformedXML"},
		{act(expire + "text"), "MalformedXML"},
		{"", "MalformedXML"},

		{filter("<Prefix>" + strings.Repeat("k", 1025) + "</Prefix>"), "InvalidRequest: The maximum size of a prefix is 1024"},
		{filter("<Prefix>a</Prefix>" + aTag), "MalformedXML"},
		{filter(aTag + aTag), "MalformedXML"},
		{filter("<Prefix>a</Prefix><And>" + aTag + aTag + "</And>"), "MalformedXML"},
		{filter("<And><Prefix/>" + aTag + "</And><Prefix>a</Prefix>"), "MalformedXML"},
		{filter("<Other/>"), "MalformedXML"},
		{filter("<Tag><Key>k</Key></Tag>"), "MalformedXML"},
		{filter("<Tag><Key></Key><Value>v</Value></Tag>"), "InvalidTag"},
		{filter("<Tag><Key>" + strings.Repeat("k", 129) + "</Key><Value/></Tag>"), "InvalidTag"},
		{filter("<Tag><Key>k</Key><Value>*</Value></Tag>"), "InvalidTag"},
		{filter("<ObjectSizeGreaterThan>-1</ObjectSizeGreaterThan>"), "InvalidRequest: 'ObjectSizeGreaterThan' should be between 0 and 1099511627776000."},
		{filter("<ObjectSizeGreaterThan>x</ObjectSizeGreaterThan>"), "MalformedXML"},
		{filter("<ObjectSizeGreaterThan>1099511627776001</ObjectSizeGreaterThan>"), "InvalidRequest"},
		{filter("<ObjectSizeLessThan>0</ObjectSizeLessThan>"), "InvalidRequest: 'ObjectSizeLessThan' should be between 1 and 1099511627776000."},
		{filter("<ObjectSizeLessThan>1099511627776001</ObjectSizeLessThan>"), "InvalidRequest"},
		{and(""), "MalformedXML"},
		{and("<Prefix>a</Prefix>"), "MalformedXML"},
		{and(aTag), "MalformedXML"},
		{and(aTag + "<Prefix/><Prefix>a</Prefix>"), "MalformedXML"},
		{and(aTag + aTag), "InvalidRequest: Duplicate Tag Keys are not allowed."},
		{and("<And/>" + aTag), "MalformedXML"},
		{size("5", "5"), "InvalidRequest: 'ObjectSizeLessThan' has to be a value greater than 'ObjectSizeGreaterThan'."},
		{size("6", "5"), "InvalidRequest"},

		{"<Filter>" + aTag + "</Filter>" + enabled + abort, "InvalidRequest: AbortIncompleteMultipartUpload cannot be specified with Tags."},
		{"<Filter>" + aTag + "</Filter>" + enabled + expireMarker, "InvalidRequest: ExpiredObjectDeleteMarker cannot be specified with Tags."},
		{"<Filter><And><Prefix/>" + aTag + "</And></Filter>" + enabled + expire + abort, "InvalidRequest: AbortIncompleteMultipartUpload cannot"},
		{"<Filter><ObjectSizeLessThan>5</ObjectSizeLessThan></Filter>" + enabled + abort, "InvalidRequest: AbortIncompleteMultipartUpload cannot be specified with Object Size."},
		{"<Filter><ObjectSizeGreaterThan>5</ObjectSizeGreaterThan></Filter>" + enabled + expireMarker, "InvalidRequest: ExpiredObjectDeleteMarker cannot be specified with Object Size."},
		{"<Filter>" + aTag + "</Filter>" + enabled + strings.Replace(expireMarker, "true", "false", 1), "InvalidRequest"},
		{"<Prefix/>" + enabled + "<NoncurrentVersionExpiration><NoncurrentDays>2</NoncurrentDays><NewerNoncurrentVersions>1</NewerNoncurrentVersions></NoncurrentVersionExpiration>", "InvalidRequest: NewerNoncurrentVersions element can only be used in Lifecycle V2."},
	}
	for _, c := range badActions() {
		rules = append(rules, [2]string{act(c[0]), c[1]})
	}
	return rules
}

// badActions are actions that S3 refuses for any object.
func badActions() [][2]string {
	expiration := func(inner string) string { return "<Expiration>" + inner + "</Expiration>" }
	remove := func(inner string) string {
		return "<NoncurrentVersionExpiration>" + inner + "</NoncurrentVersionExpiration>"
	}
	date := func(s string) string { return expiration("<Date>" + s + "</Date>") }
	newer := func(n string) string { return "<NewerNoncurrentVersions>" + n + "</NewerNoncurrentVersions>" }
	return [][2]string{
		{expiration(""), "MalformedXML"},
		{expiration("<Days>1</Days><Date>2030-01-01T00:00:00Z</Date>"), "MalformedXML"},
		{expiration("<Days>1</Days><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker>"), "MalformedXML"},
		{expiration("<ExpiredObjectDeleteMarker>yes</ExpiredObjectDeleteMarker>"), "MalformedXML"},
		{expiration("<Days>1</Days><Days>2</Days>"), "MalformedXML"},
		{expiration("<Days>1.5</Days>"), "MalformedXML"},
		{expiration("<Days/>"), "MalformedXML"},
		{expiration("<Days>2147483648</Days>"), "MalformedXML"},
		{expiration("<Days>0</Days>"), "InvalidArgument: 'Days' for Expiration action must be a positive integer"},
		{expiration("<Days>-1</Days>"), "InvalidArgument"},
		{expire + expire, "MalformedXML"},
		{date("soon"), "MalformedXML"},
		{date("20200101"), "MalformedXML"},
		{date("2030-01-01T00:00:01Z"), "InvalidArgument: 'Date' must be at midnight GMT"},
		{date("2030-01-01T00:00:00.001Z"), "InvalidArgument"},
		{date("2030-01-01T00:00:00+01:00"), "InvalidArgument"},
		{date("1970-01-01T00:00:00Z"), "InvalidArgument"},
		{date("1969-12-31T00:00:00Z"), "InvalidArgument"},
		{remove(""), "MalformedXML"},
		{remove(newer("5")), "MalformedXML"},
		{remove("<Days>5</Days>"), "MalformedXML"},
		{remove("<NoncurrentDays>0</NoncurrentDays>"), "InvalidArgument: 'NoncurrentDays' for NoncurrentVersionExpiration action must be a positive integer"},
		{remove("<NoncurrentDays>1</NoncurrentDays>" + newer("0")), "InvalidArgument"},
		{remove("<NoncurrentDays>1</NoncurrentDays>" + newer("101")), "InvalidArgument"},
		{remove("<NoncurrentDays>1</NoncurrentDays>" + newer("x")), "MalformedXML"},
		{moveOld("30", "GLACIER_IR", newer("101")), "InvalidArgument"},
		{moveOld("30", "GLACIER_IR", newer("-1")), "InvalidArgument"},
		{"<AbortIncompleteMultipartUpload/>", "MalformedXML"},
		{strings.Replace(abort, ">1<", ">0<", 1), "InvalidArgument: 'DaysAfterInitiation' for AbortIncompleteMultipartUpload action must be a positive integer"},
		{strings.Replace(abort, "DaysAfter", "Days", 2), "MalformedXML"},

		{"<Transition/>", "MalformedXML"},
		{"<Transition><Days>30</Days></Transition>", "MalformedXML"},
		{"<Transition><StorageClass>STANDARD_IA</StorageClass></Transition>", "MalformedXML"},
		{"<Transition><Days>30</Days><Date>2030-01-01</Date><StorageClass>STANDARD_IA</StorageClass></Transition>", "MalformedXML"},
		{"<Transition><NoncurrentDays>30</NoncurrentDays><StorageClass>STANDARD_IA</StorageClass></Transition>", "MalformedXML"},
		{move("30", "STANDARD"), "MalformedXML"},
		{move("30", "REDUCED_REDUNDANCY"), "MalformedXML"},
		{move("30", "standard_ia"), "MalformedXML"},
		{move("x", "STANDARD_IA"), "MalformedXML"},
		{"<Transition><Days>-1</Days><StorageClass>GLACIER_IR</StorageClass></Transition>", "InvalidArgument: 'Days' in Transition action must be nonnegative"},
		{move("29", "STANDARD_IA"), "InvalidArgument: 'Days' in Transition action must be greater than or equal to 30 for storageClass 'STANDARD_IA'"},
		{move("0", "ONEZONE_IA"), "InvalidArgument: 'Days' in Transition action must be greater than or equal to 30 for storageClass 'ONEZONE_IA'"},
		{moveOld("29", "STANDARD_IA", ""), "InvalidArgument: 'NoncurrentDays' in NoncurrentVersionTransition action must be greater than or equal to 30"},
		{move("2030-01-01T12:00:00Z", "GLACIER_IR"), "InvalidArgument: 'Date' must be at midnight GMT"},
		{move("30", "STANDARD_IA") + move("2030-01-01", "GLACIER_IR"), "InvalidRequest: Found mixed 'Date' and 'Days' based Transition actions in lifecycle rule for filter '(prefix=)'"},
		{move("30", "STANDARD_IA") + move("60", "STANDARD_IA"), "InvalidRequest: 'StorageClass' must be different for 'Transition' actions in same 'Rule' with filter '(prefix=)'"},
		{move("30", "STANDARD_IA") + move("59", "GLACIER_IR"), "InvalidArgument: 'Days' in the 'Transition' action for StorageClass 'GLACIER_IR' for filter '(prefix=)' must be 30 days more than 'Days' in the 'Transition' action for StorageClass 'STANDARD_IA'"},
		{move("59", "GLACIER_IR") + move("30", "STANDARD_IA"), "InvalidArgument: 'Days' in the 'Transition' action for StorageClass 'GLACIER_IR'"},
		{move("90", "STANDARD_IA") + move("30", "ONEZONE_IA"), "InvalidArgument: 'Days' in the 'Transition' action for StorageClass 'ONEZONE_IA'"},
		{move("2030-01-01", "STANDARD_IA") + move("2030-01-30", "GLACIER_IR"), "InvalidArgument: 'Date' in the 'Transition' action"},
		{move("30", "ONEZONE_IA") + move("90", "GLACIER_IR"), "InvalidArgument: No 'Transition' leads"},
		{move("5", "GLACIER") + move("5", "DEEP_ARCHIVE"), "InvalidArgument: 'Days' in the 'Transition' action for StorageClass 'DEEP_ARCHIVE' for filter '(prefix=)' must be greater than 'Days'"},
		{moveOld("30", "STANDARD_IA", "") + moveOld("31", "GLACIER_IR", ""), "InvalidArgument: 'NoncurrentDays' in the 'NoncurrentVersionTransition' action for StorageClass 'GLACIER_IR'"},
		{move("100", "STANDARD_IA") + expire, "InvalidArgument: 'Days' in the Expiration action for filter '(prefix=)' must be greater than 'Days' in the Transition action"},
		{move("2030-01-01", "GLACIER_IR") + expire, "InvalidRequest: Found mixed 'Date' and 'Days' based Expiration and Transition actions in lifecycle rule for filter '(prefix=)'"},
		{move("2030-01-01", "GLACIER_IR") + date("2030-01-01"), "InvalidArgument"},
		{moveOld("200", "STANDARD_IA", "") + noRemove, "InvalidArgument: 'NoncurrentDays' in the NoncurrentVersionExpiration action for filter '(prefix=)' must be greater than 'NoncurrentDays' in the NoncurrentVersionTransition action"},

		{move("1", "INTELLIGENT_TIERING") + date("2023-09-27T00:00:01Z"), "InvalidArgument"},
		{date("2023-09-27") + "<Transition><Date>20220927</Date><StorageClass>GLACIER</StorageClass></Transition>", "MalformedXML"},
	}
}

func TestLifecycleRefusals(t *testing.T) {
	for _, c := range badRules() {
		rule, want := c[0], c[1]
		rules, err := lifecycleRules(lifecycleDoc(rule))
		if err == nil {
			t.Errorf("%.300s: accepted as %.300v", rule, rules)
			continue
		}
		e := s3err.From(err)
		if got := e.Code.String() + ": " + e.Text(); !strings.HasPrefix(got, want) {
			t.Errorf("%.300s: %s, want %s", rule, got, want)
		}
		if e.Code == s3err.InternalError || e.Code.Status() != 501 && e.Code.Status() != 400 {
			t.Errorf("%.300s: %v", rule, e)
		}
	}
	good := all + enabled + expire
	many := make([]string, 1001)
	for i := range many {
		many[i] = good
	}
	for want, doc := range map[string][]byte{
		"InvalidRequest: At least one lifecycle rule must be specified.":                                               []byte("<LifecycleConfiguration/>"),
		"InvalidRequest: The number of lifecycle rules must not exceed the allowed limit of 1000 rules.":               lifecycleDoc(many...),
		"InvalidArgument: Rule ID must be unique. Found same ID for more than one rule":                                lifecycleDoc("<ID>a</ID>"+good, "<ID>a</ID>"+good),
		"InvalidRequest: Filter element can only be used in Lifecycle V2.":                                             lifecycleDoc("<Prefix>a</Prefix>"+enabled+expire, good),
		"InvalidRequest: Base level prefix cannot be used in Lifecycle V2, prefixes are only supported in the Filter.": lifecycleDoc(good, "<Prefix>a</Prefix>"+enabled+expire),
		"MalformedXML: " + s3err.MalformedXML.Message():                                                                []byte("<LifecycleConfiguration><Other/></LifecycleConfiguration>"),
	} {
		if _, err := lifecycleRules(doc); err == nil {
			t.Errorf("%s: accepted", want)
		} else if got := s3err.From(err); got.Code.String()+": "+got.Text() != want {
			t.Errorf("%v, want %s", got, want)
		}
	}
	if rules, err := lifecycleRules(lifecycleDoc(many[:1000]...)); err != nil || len(rules) != 1000 {
		t.Error(len(rules), err)
	}
}

func TestBucketLifecycle(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	absent := func() {
		t.Helper()
		if a := h.want(h.do("GET", lifecycleTarget, nil), 404, "NoSuchLifecycleConfiguration"); a.element("BucketName") != "bucket" {
			t.Error(a.body)
		}
	}
	absent()
	h.want(h.do("DELETE", lifecycleTarget, nil), 204, "")
	doc := lifecycleDoc("<ID>a</ID>" + all + enabled + expire)
	h.want(h.do("PUT", lifecycleTarget, doc), 400, "InvalidRequest") // nothing proves it unchanged
	h.want(h.do("PUT", lifecycleTarget, doc, "Content-Md5", md5Of([]byte("x"))), 400, "BadDigest")
	h.want(h.putLifecycle(nil), 400, "MalformedXML")
	h.want(h.putLifecycle([]byte("<x/>")), 400, "MalformedXML")
	h.want(h.putLifecycle(append(doc, "x"...)), 400, "MalformedXML")
	h.want(h.putLifecycle(lifecycleDoc("<ID>a</ID>"+all+"<Status>enabled</Status>"+expire)), 400, "MalformedXML")
	absent()

	const sizes = "X-Amz-Transition-Default-Minimum-Object-Size"
	for _, c := range []struct{ put, want string }{{"", "all_storage_classes_128K"}, {"varies_by_storage_class", "varies_by_storage_class"}, {"all_storage_classes_128K", "all_storage_classes_128K"}} {
		var headers []string
		if c.put != "" {
			headers = []string{sizes, c.put}
		}
		if a := h.want(h.putLifecycle(doc, headers...), 200, ""); a.Header.Get(sizes) != c.want {
			t.Error(c, a.Header)
		}
		if a := h.want(h.do("GET", lifecycleTarget, nil), 200, ""); a.Header.Get(sizes) != c.want || a.element("ID") != "a" {
			t.Error(c, a.Header, a.body)
		}
		if got := h.fake.buckets["bucket"].Lifecycle.VariesByStorageClass; got != (c.put == "varies_by_storage_class") {
			t.Error(c, got)
		}
	}
	if a := h.want(h.putLifecycle(doc, sizes, "1K"), 400, "InvalidRequest"); a.element("Message") != "Invalid TransitionDefaultMinimumObjectSize found: 1K" {
		t.Error(a.body)
	}
	h.want(h.do("PUT", "/bucket/k", nil, sizes, "varies_by_storage_class"), 501, "NotImplemented")

	for _, m := range []string{"GET", "PUT", "DELETE"} {
		h.want(h.do(m, "/nobucket?lifecycle", doc, "Content-Md5", md5Of(doc)), 404, "NoSuchBucket")
	}
	h.key, h.secret = "BOB", "bob-secret"
	for _, m := range []string{"GET", "PUT", "DELETE"} {
		h.want(h.do(m, lifecycleTarget, doc, "Content-Md5", md5Of(doc)), 403, "AccessDenied")
	}
	h.key, h.secret = "ALICE", "alice-secret"
	for range 2 {
		h.want(h.do("DELETE", lifecycleTarget, nil), 204, "")
		absent()
	}
}

// dueAfter is an Expiry with days of a day.
func dueAfter(rules *metapb.LifecycleConfig, o lifecycle.Object) (time.Time, string, bool) {
	return lifecycle.Expires(rules, o, 24*time.Hour)
}

func TestExpirationHeader(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Expiry = dueAfter })
	h.bucket("bucket")
	h.want(h.do("PUT", "/bucket?versioning", []byte("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")), 200, "")
	const header = "X-Amz-Expiration"
	want := func(a answer, want string) answer {
		t.Helper()
		if a.StatusCode >= 300 && a.StatusCode != 304 || a.Header.Get(header) != want {
			t.Errorf("%d %s: %q, want %q", a.StatusCode, a.body, a.Header.Get(header), want)
		}
		return a
	}
	want(h.do("PUT", "/bucket/gone/k", []byte("x")), "") // no configuration
	h.want(h.putLifecycle(lifecycleDoc("<ID>a rule+\"%é</ID><Filter><Prefix>gone/</Prefix></Filter>"+enabled+"<Expiration><Days>30</Days></Expiration>",
		"<ID>tagged</ID><Filter>"+aTag+"</Filter>"+enabled+"<Expiration><Days>1</Days></Expiration>")), 200, "")
	const due = `expiry-date="Fri, 04 Dec 2026 00:00:00 GMT", rule-id="a rule%2B%22%25%C3%A9"`
	const tagged = `expiry-date="Thu, 05 Nov 2026 00:00:00 GMT", rule-id="tagged"`
	put := want(h.do("PUT", "/bucket/gone/k", []byte("xyz")), due)
	want(h.do("HEAD", "/bucket/gone/k", nil), due)
	want(h.do("GET", "/bucket/gone/k", nil), due)
	want(h.do("GET", "/bucket/gone/k", nil, "Range", "bytes=0-0"), due)
	want(h.do("GET", "/bucket/gone/k", nil, "If-None-Match", put.Header.Get("Etag")), "")
	want(h.do("HEAD", "/bucket/gone/k?versionId="+put.Header.Get("X-Amz-Version-Id"), nil), "")
	want(h.do("PUT", "/bucket/stays", []byte("x")), "")
	want(h.do("GET", "/bucket/stays", nil), "")
	want(h.do("PUT", "/bucket/t", []byte("x"), "X-Amz-Tagging", "k=v"), tagged)
	want(h.do("PUT", "/bucket/t2", nil, "X-Amz-Copy-Source", "bucket/t"), tagged) // with its tags
	want(h.do("PUT", "/bucket/t3", nil, "X-Amz-Copy-Source", "bucket/t", "X-Amz-Tagging-Directive", "REPLACE"), "")
	want(h.do("PUT", "/bucket/gone/copy", nil, "X-Amz-Copy-Source", "bucket/stays"), due)

	a := want(h.do("POST", "/bucket/m?uploads", nil, "X-Amz-Tagging", "k=v"), "")
	part := want(h.do("PUT", "/bucket/m?partNumber=1&uploadId="+a.element("UploadId"), []byte("p")), "")
	want(h.do("POST", "/bucket/m?uploadId="+a.element("UploadId"), []byte("<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"+part.Header.Get("Etag")+"</ETag></Part></CompleteMultipartUpload>")), tagged)

	h.want(h.do("DELETE", lifecycleTarget, nil), 204, "")
	want(h.do("HEAD", "/bucket/gone/k", nil), "")
}

// An upload is told when it will be aborted, where it begins and with its parts.
func TestAbortHeaders(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Expiry = dueAfter })
	h.bucket("bucket")
	told := func(a answer, date, rule string) answer {
		t.Helper()
		if h.want(a, 200, ""); a.Header.Get("X-Amz-Abort-Date") != date || a.Header.Get("X-Amz-Abort-Rule-Id") != rule || a.Header.Get("X-Amz-Expiration") != "" {
			t.Error(a.Header)
		}
		return a
	}
	id := told(h.do("POST", "/bucket/k?uploads", nil), "", "").element("UploadId")
	told(h.do("GET", "/bucket/k?uploadId="+id, nil), "", "")
	h.want(h.putLifecycle(lifecycleDoc("<ID>old \"uploads\"</ID>"+all+enabled+strings.Replace(abort, ">1<", ">7<", 1), "<ID>objects</ID>"+all+enabled+"<Expiration><Days>1</Days></Expiration>",
		"<ID>other</ID><Filter><Prefix>other</Prefix></Filter>"+enabled+abort)), 200, "")
	const date, rule = "Wed, 11 Nov 2026 00:00:00 GMT", `old %22uploads%22`
	told(h.do("GET", "/bucket/k?uploadId="+id, nil), date, rule)
	told(h.do("POST", "/bucket/k?uploads", nil), date, rule)
	told(h.do("POST", "/bucket/other?uploads", nil), "Thu, 05 Nov 2026 00:00:00 GMT", "other")
	told(h.do("GET", "/bucket?uploads", nil), "", "")
	h.want(h.do("DELETE", lifecycleTarget, nil), 204, "")
	told(h.do("POST", "/bucket/k?uploads", nil), "", "")
}

// Without rules it costs nothing to find out that an object does not expire.
func TestExpirationWithoutRules(t *testing.T) {
	h := newHarness(t, func(c *Config) {
		c.Expiry = func(*metapb.LifecycleConfig, lifecycle.Object) (time.Time, string, bool) { panic("there are no rules") }
	})
	q := &request{h: h.handler}
	o, out := &objects.Object{}, &objects.PutOutput{Attributes: &metapb.Attributes{}}
	if n := testing.AllocsPerRun(100, func() { q.setExpiration(o); q.setWriteExpiration(out); q.setRestore(o) }); n != 0 || len(q.headers) != 0 {
		t.Error(n, q.headers)
	}
	h.fake.err = errBoom // nothing asks the store
	out.Lifecycle, out.Attributes = &metapb.LifecycleConfig{}, nil
	q.setWriteExpiration(out) // of what it is not known which tags it has
	if len(q.headers) != 0 {
		t.Error(q.headers)
	}
}

func TestRuleIDInHeaders(t *testing.T) {
	for id, want := range map[string]string{"picture-deletion-rule": "picture-deletion-rule", "Rule for testfile.txt": "Rule for testfile.txt", "a%20\"\\\x00\n+é": "a%2520%22%5C%00%0A%2B%C3%A9"} {
		got := headerRuleID(id)
		if got != want {
			t.Errorf("%q: %q", id, got)
		}
		if back, err := url.PathUnescape(got); err != nil || back != id {
			t.Errorf("%q: path %q %v", id, back, err)
		}
		if back, err := url.QueryUnescape(got); err != nil || back != id {
			t.Errorf("%q: query %q %v", id, back, err)
		}
	}
}

func TestSDKLifecycle(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Expiry = dueAfter })
	h.bucket("bucket")
	c := h.client(h.srv)
	ctx := context.Background()
	bucket := aws.String("bucket")
	if _, err := c.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: bucket}); apiCode(err) != "NoSuchLifecycleConfiguration" {
		t.Error(err)
	}
	at := time.Date(2031, 2, 3, 0, 0, 0, 0, time.UTC)
	rules := []types.LifecycleRule{
		{ID: aws.String("all"), Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{}, AbortIncompleteMultipartUpload: &types.AbortIncompleteMultipartUpload{DaysAfterInitiation: aws.Int32(7)}},
		{ID: aws.String("and"), Status: types.ExpirationStatusDisabled, Filter: &types.LifecycleRuleFilter{And: &types.LifecycleRuleAndOperator{
			Prefix: aws.String("logs/"), Tags: []types.Tag{{Key: aws.String("b"), Value: aws.String("1")}, {Key: aws.String("a"), Value: aws.String("2")}}, ObjectSizeGreaterThan: aws.Int64(10), ObjectSizeLessThan: aws.Int64(20)}},
			Transitions: []types.Transition{{Days: aws.Int32(30), StorageClass: types.TransitionStorageClassStandardIa}, {Days: aws.Int32(90), StorageClass: types.TransitionStorageClassGlacierIr}},
			Expiration:  &types.LifecycleExpiration{Days: aws.Int32(365)}},
		{ID: aws.String("old"), Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{Prefix: aws.String("x/")},
			NoncurrentVersionTransitions: []types.NoncurrentVersionTransition{{NoncurrentDays: aws.Int32(30), NewerNoncurrentVersions: aws.Int32(2), StorageClass: types.TransitionStorageClassOnezoneIa}},
			NoncurrentVersionExpiration:  &types.NoncurrentVersionExpiration{NoncurrentDays: aws.Int32(60), NewerNoncurrentVersions: aws.Int32(3)},
			Expiration:                   &types.LifecycleExpiration{ExpiredObjectDeleteMarker: aws.Bool(true)}},
		{ID: aws.String("dated"), Status: types.ExpirationStatusEnabled, Filter: &types.LifecycleRuleFilter{Tag: &types.Tag{Key: aws.String("k"), Value: aws.String("v")}}, Expiration: &types.LifecycleExpiration{Date: &at}},
	}
	put, err := c.PutBucketLifecycleConfiguration(ctx, &s3.PutBucketLifecycleConfigurationInput{Bucket: bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: rules},
		TransitionDefaultMinimumObjectSize: types.TransitionDefaultMinimumObjectSizeVariesByStorageClass})
	if err != nil || put.TransitionDefaultMinimumObjectSize != types.TransitionDefaultMinimumObjectSizeVariesByStorageClass {
		t.Fatalf("%v %+v", err, put)
	}
	got, err := c.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: bucket})
	if err != nil || got.TransitionDefaultMinimumObjectSize != types.TransitionDefaultMinimumObjectSizeVariesByStorageClass {
		t.Fatalf("%v %+v", err, got)
	}
	// Both put through the same client again: what it writes of them must be the same.
	kept := h.fake.buckets["bucket"].Lifecycle
	if _, err := c.PutBucketLifecycleConfiguration(ctx, &s3.PutBucketLifecycleConfigurationInput{Bucket: bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: got.Rules},
		TransitionDefaultMinimumObjectSize: got.TransitionDefaultMinimumObjectSize}); err != nil {
		t.Fatal(err)
	}
	if again := h.fake.buckets["bucket"].Lifecycle; !kept.EqualVT(again) || len(kept.Rules) != 4 {
		t.Errorf("%v\n%v", kept, again)
	}
	if fmt.Sprint(*got.Rules[1].Filter.And.Tags[0].Key, *got.Rules[3].Expiration.Date) != fmt.Sprint("b", at) {
		t.Errorf("%+v", got)
	}
	rules = []types.LifecycleRule{{ID: aws.String("r"), Prefix: aws.String(""), Status: types.ExpirationStatusEnabled, Expiration: &types.LifecycleExpiration{Days: aws.Int32(1)}}} //nolint:staticcheck // the old form
	if _, err := c.PutBucketLifecycleConfiguration(ctx, &s3.PutBucketLifecycleConfigurationInput{Bucket: bucket, LifecycleConfiguration: &types.BucketLifecycleConfiguration{Rules: rules}}); err != nil {
		t.Fatal(err)
	}
	out, err := c.PutObject(ctx, &s3.PutObjectInput{Bucket: bucket, Key: aws.String("k"), Body: strings.NewReader("x")})
	if err != nil || aws.ToString(out.Expiration) != `expiry-date="Thu, 05 Nov 2026 00:00:00 GMT", rule-id="r"` {
		t.Errorf("%v %+v", err, out)
	}
	if _, err := c.DeleteBucketLifecycle(ctx, &s3.DeleteBucketLifecycleInput{Bucket: bucket}); err != nil {
		t.Error(err)
	}
	if _, err := c.GetBucketLifecycleConfiguration(ctx, &s3.GetBucketLifecycleConfigurationInput{Bucket: bucket}); apiCode(err) != "NoSuchLifecycleConfiguration" {
		t.Error(err)
	}
}

// Whatever is accepted can be read back and put again, and is the same then.
func FuzzLifecycle(f *testing.F) {
	for _, c := range badRules() {
		f.Add(c[0])
	}
	for _, rule := range []string{
		"<ID>a</ID>" + all + enabled + expire, "<Prefix>p</Prefix>" + enabled + abort + noRemove, all + enabled + move("30", "STANDARD_IA") + move("60", "GLACIER_IR") + expire,
		"<Filter><And>" + aTag + "<Prefix/><ObjectSizeLessThan>3</ObjectSizeLessThan></And></Filter>" + enabled + moveOld("1", "GLACIER_IR", "<NewerNoncurrentVersions>3</NewerNoncurrentVersions>"), all + enabled + expireMarker,
	} {
		f.Add(rule)
	}
	f.Fuzz(func(t *testing.T, rule string) {
		rules, err := lifecycleRules(lifecycleDoc(rule))
		if err != nil {
			if s3err.From(err).Code == s3err.InternalError {
				t.Fatal(err)
			}
			return
		}
		w := &s3xml.Writer{}
		w.Start("LifecycleConfiguration", true)
		for _, r := range rules {
			writeLifecycleRule(w, r)
		}
		w.Close("LifecycleConfiguration")
		again, err := lifecycleRules(w.B)
		if err != nil {
			t.Fatalf("%s: %v", w.B, err)
		}
		if !(&metapb.LifecycleConfig{Rules: rules}).EqualVT(&metapb.LifecycleConfig{Rules: again}) {
			t.Fatalf("%v\n%v", rules, again)
		}
	})
}
