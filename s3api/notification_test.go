package s3api

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3xml"
	"cairn/storage/errs"
)

const notificationTarget = "/bucket?notification"

func notificationDoc(inner string) []byte {
	return []byte("<NotificationConfiguration>" + inner + "</NotificationConfiguration>")
}

// queueRule is a rule that wants the events of keys.
func queueRule(id, queue, events, prefix string) string {
	s := "<QueueConfiguration>"
	if id != "" {
		s += "<Id>" + id + "</Id>"
	}
	s += "<Queue>arn:aws:sqs:us-east-1:1:" + queue + "</Queue>"
	for _, e := range strings.Split(events, " ") {
		s += "<Event>" + e + "</Event>"
	}
	if prefix != "" {
		s += "<Filter><S3Key><FilterRule><Name>Prefix</Name><Value>" + prefix + "</Value></FilterRule></S3Key></Filter>"
	}
	return s + "</QueueConfiguration>"
}

// announced is Destinations that note what they are told.
type announced struct {
	mu   sync.Mutex
	told []string
	err  error
}

func (a *announced) Announce(_ context.Context, bucket string, targets []string, body []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.told = append(a.told, fmt.Sprint(bucket, " ", targets, " ", string(body)))
	return a.err
}

// take answers what was told since it was called last.
func (a *announced) take() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	told := a.told
	a.told = nil
	return told
}

func (a *announced) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.err = err
}

// syncBuffer is a log in memory.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newNotifying(t *testing.T, more ...func(*Config)) (*harness, *announced) {
	a := &announced{}
	h := newHarness(t, append(more, func(c *Config) { c.Destinations = a })...)
	h.fake.targets = []string{"mine", "other", "third"}
	h.bucket("bucket")
	return h, a
}

// configuration is what the bucket has.
func (h *harness) configuration() *metapb.NotificationConfig {
	h.t.Helper()
	b, err := h.fake.HeadBucket(context.Background(), alice(), "bucket")
	if err != nil {
		h.t.Fatal(err)
	}
	return b.Notification
}

// What is put is read as it was written, and an empty document takes it away.
func TestNotificationRoundTrip(t *testing.T) {
	h, _ := newNotifying(t)
	for _, inner := range []string{
		queueRule("a", "mine", "s3:ObjectCreated:*", ""),
		queueRule("a", "mine", "s3:ObjectCreated:Put s3:ObjectAcl:Put", "p/") + queueRule("b", "other", "s3:ObjectCreated:Put", "q/"),
		"<TopicConfiguration><Id>t</Id><Topic>arn:aws:sns:us-east-1:1:mine</Topic><Event>s3:ObjectRemoved:*</Event></TopicConfiguration>" +
			"<CloudFunctionConfiguration><Id>f</Id><CloudFunction>arn:aws:lambda:us-east-1:1:function:other:7</CloudFunction><Event>s3:ObjectRestore:*</Event></CloudFunctionConfiguration>",
		queueRule("a", "mine", "s3:LifecycleTransition", "") + "<EventBridgeConfiguration></EventBridgeConfiguration>",
		"<EventBridgeConfiguration></EventBridgeConfiguration>",
		"",
	} {
		h.want(h.do("PUT", notificationTarget, notificationDoc(inner)), 200, "")
		a := h.want(h.do("GET", notificationTarget, nil), 200, "")
		if want := `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + `<NotificationConfiguration xmlns="` + s3xml.Namespace + `">` + inner + "</NotificationConfiguration>"; a.body != want {
			t.Errorf("put %s\ngot %s", inner, a.body)
		}
		if (h.configuration() == nil) != (inner == "") {
			t.Errorf("put %q, kept %v", inner, h.configuration())
		}
	}
	h.want(h.do("PUT", notificationTarget, notificationDoc(queueRule("", "mine", "s3:ObjectCreated:*", "")+queueRule("", "mine", "s3:ObjectRemoved:*", ""))), 200, "")
	if r := h.configuration().Rules; r[0].Id == "" || r[0].Id == r[1].Id {
		t.Errorf("ids %q and %q", r[0].Id, r[1].Id)
	}
	h.want(h.do("GET", "/other?notification", nil), 404, "NoSuchBucket")
	h.want(h.do("DELETE", notificationTarget, nil), 405, "MethodNotAllowed")
	h.key, h.secret = "BOB", "bob-secret"
	h.want(h.do("GET", notificationTarget, nil), 403, "AccessDenied")
	h.want(h.do("PUT", notificationTarget, notificationDoc("")), 403, "AccessDenied")
}

// What cannot be put changes nothing, and tells no destination anything.
func TestNotificationRefusals(t *testing.T) {
	h, destinations := newNotifying(t)
	h.want(h.do("PUT", notificationTarget, notificationDoc(queueRule("kept", "mine", "s3:ObjectCreated:Put", ""))), 200, "")
	before := h.configuration().CloneVT()
	destinations.take()
	put := "s3:ObjectCreated:Put"
	var many strings.Builder
	for i := range 101 {
		many.WriteString(queueRule("", "mine", put, fmt.Sprintf("%03d/", i)))
	}
	for name, c := range map[string]struct {
		inner, code, argument string
	}{
		"unknown element":   {"<Other/>", "MalformedXML", ""},
		"no event":          {"<QueueConfiguration><Queue>arn:aws:sqs:us-east-1:1:mine</Queue></QueueConfiguration>", "MalformedXML", ""},
		"unknown event":     {queueRule("a", "mine", "s3:ObjectEaten:*", ""), "InvalidArgument", "Event"},
		"replication":       {queueRule("a", "mine", "s3:Replication:*", ""), "NotImplemented", ""},
		"reduced":           {queueRule("a", "mine", "s3:ReducedRedundancyLostObject", ""), "NotImplemented", ""},
		"role":              {"<CloudFunctionConfiguration><CloudFunction>arn:aws:lambda:us-east-1:1:function:mine</CloudFunction><InvocationRole>arn</InvocationRole><Event>" + put + "</Event></CloudFunctionConfiguration>", "NotImplemented", ""},
		"no ARN":            {strings.ReplaceAll(queueRule("a", "mine", put, ""), "arn:aws:sqs:", "arn:aws:mail:"), "InvalidArgument", "ARN"},
		"ARN of a topic":    {strings.ReplaceAll(queueRule("a", "mine", put, ""), "arn:aws:sqs:", "arn:aws:sns:"), "InvalidArgument", "ARN"},
		"one id twice":      {queueRule("a", "mine", put, "p") + queueRule("a", "mine", put, "q"), "InvalidArgument", "Id"},
		"one event twice":   {queueRule("a", "mine", put+" s3:ObjectCreated:*", ""), "InvalidArgument", "Event"},
		"overlap":           {queueRule("a", "mine", "s3:ObjectCreated:*", "p") + queueRule("b", "other", put, "p/q"), "InvalidArgument", "Event"},
		"filter":            {strings.ReplaceAll(queueRule("a", "mine", put, "p"), "Prefix", "Infix"), "InvalidArgument", "FilterRule.Name"},
		"too many":          {many.String(), "InvalidArgument", "NotificationConfiguration"},
		"unknown target":    {queueRule("a", "mine", put, "a") + queueRule("b", "gone", put, "b"), "InvalidArgument", ""},
		"too long a target": {queueRule("b", strings.Repeat("x", 100), put, "b"), "InvalidArgument", ""},
	} {
		for _, header := range []string{"true", "false"} {
			status := 400
			if c.code == "NotImplemented" {
				status = 501
			}
			a := h.do("PUT", notificationTarget, notificationDoc(c.inner), "X-Amz-Skip-Destination-Validation", header)
			if a.StatusCode != status || a.code() != c.code || c.argument != "" && a.element("ArgumentName") != c.argument {
				t.Errorf("%s: %d %s", name, a.StatusCode, a.body)
			}
		}
		if told := destinations.take(); len(told) > 0 && name != "unknown target" && name != "too long a target" {
			t.Errorf("%s: %s was announced", name, told)
		}
	}
	h.want(h.do("PUT", notificationTarget, nil), 400, "MalformedXML")
	h.want(h.do("PUT", notificationTarget, []byte("<Notification/>")), 400, "MalformedXML")
	if a := h.want(h.do("PUT", notificationTarget, notificationDoc(""), "X-Amz-Skip-Destination-Validation", "perhaps"), 400, "InvalidArgument"); a.element("ArgumentName") != "x-amz-skip-destination-validation" {
		t.Error(a.body)
	}
	h.want(h.do("GET", notificationTarget, nil, "X-Amz-Skip-Destination-Validation", "true"), 501, "NotImplemented")
	if !h.configuration().EqualVT(before) {
		t.Errorf("refused, and changed to %v", h.configuration())
	}
}

// Destinations are asked before anything is put, each once, and their word is S3's answer.
func TestNotificationDestinations(t *testing.T) {
	var logged syncBuffer
	h, destinations := newNotifying(t, func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelWarn}))
	})
	put := "s3:ObjectCreated:Put"
	doc := notificationDoc(queueRule("a", "other", put, "a/") + queueRule("b", "mine", put, "b/") + queueRule("c", "other", put, "c/") +
		"<CloudFunctionConfiguration><Id>f</Id><CloudFunction>arn:aws:lambda:::function:mine:$LATEST</CloudFunction><Event>s3:ObjectRemoved:*</Event></CloudFunctionConfiguration><EventBridgeConfiguration/>")
	a := h.want(h.do("PUT", notificationTarget, doc), 200, "")
	told := destinations.take()
	if len(told) != 1 || !strings.HasPrefix(told[0], `bucket [other mine] {"Service":"Amazon S3","Event":"s3:TestEvent","Time":"`) ||
		!strings.HasSuffix(told[0], `,"Bucket":"bucket","RequestId":"`+a.Header.Get("X-Amz-Request-Id")+`","HostId":"host-id"}`) {
		t.Errorf("told %q", told)
	}
	h.want(h.do("PUT", notificationTarget, notificationDoc("<EventBridgeConfiguration/>")), 200, "")
	h.want(h.do("PUT", notificationTarget, notificationDoc("")), 200, "")
	h.want(h.do("PUT", notificationTarget, doc, "X-Amz-Skip-Destination-Validation", "True"), 200, "")
	h.want(h.do("PUT", notificationTarget, notificationDoc("")), 200, "")
	h.want(h.do("PUT", "/nobucket?notification", doc), 404, "NoSuchBucket")
	if told := destinations.take(); len(told) > 0 {
		t.Errorf("told %q", told)
	}
	destinations.fail(fmt.Errorf("wrapped: %w", &DestinationError{[]FailedDestination{{Target: "mine", Reason: "dial tcp 10.0.0.7:4222: connection refused"}}}))
	a = h.want(h.do("PUT", notificationTarget, doc), 400, "InvalidArgument")
	for name, want := range map[string]string{
		"Message": "Unable to validate the following destination configurations", "ArgumentName1": "arn:aws:sqs:us-east-1:1:mine, null", "ArgumentValue1": "The destination does not answer, or refuses: run cairn events target test mine",
		"ArgumentName2": "arn:aws:lambda:::function:mine:$LATEST, null", "ArgumentValue2": "The destination does not answer, or refuses: run cairn events target test mine", "ArgumentName3": "absent",
	} {
		if got := a.element(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if strings.Contains(a.body, "10.0.0.7") {
		t.Errorf("an address of the inside is told: %s", a.body)
	}
	if line := logged.String(); strings.Count(line, "\n") != 1 || !strings.Contains(line, "level=WARN") || !strings.Contains(line, "10.0.0.7:4222") || !strings.Contains(line, "target=mine") {
		t.Errorf("logged %q", line)
	}
	destinations.fail(&DestinationError{[]FailedDestination{{Target: "mine", Reason: "there is none", Unknown: true}}})
	a = h.want(h.do("PUT", notificationTarget, doc), 400, "InvalidArgument")
	if got := a.element("ArgumentValue1") + ", " + a.element("ArgumentValue2"); got != "The destination queue does not exist, The destination Lambda function does not exist" {
		t.Error(got)
	}
	destinations.fail(errs.New(errs.Unavailable, "test", "", ""))
	h.want(h.do("PUT", notificationTarget, doc), 503, "ServiceUnavailable")
	destinations.fail(nil)
	if h.configuration() != nil {
		t.Errorf("refused, and put %v", h.configuration())
	}
	for kind, c := range map[string][2]string{
		"queue":           {"Queue", "sqs:us-east-1:1:gone"},
		"topic":           {"Topic", "sns:us-east-1:1:gone"},
		"Lambda function": {"CloudFunction", "lambda:us-east-1:1:function:gone"},
	} {
		inner := fmt.Sprintf("<%[1]sConfiguration><%[1]s>arn:aws:%[2]s</%[1]s><Event>%[3]s</Event></%[1]sConfiguration>", c[0], c[1], put)
		a := h.want(h.do("PUT", notificationTarget, notificationDoc(inner), "X-Amz-Skip-Destination-Validation", "true"), 400, "InvalidArgument")
		if a.element("ArgumentName1") != "arn:aws:"+c[1]+", null" || a.element("ArgumentValue1") != "The destination "+kind+" does not exist" {
			t.Error(a.body)
		}
	}
	// Nobody to ask: then only what the store knows of counts.
	h = newHarness(t)
	h.fake.targets = []string{"mine", "other"}
	h.bucket("bucket")
	h.want(h.do("PUT", notificationTarget, doc), 200, "")
	h.want(h.do("PUT", notificationTarget, notificationDoc(queueRule("a", "gone", put, ""))), 400, "InvalidArgument")
}

// However somebody proves who asks, the store is told by which request, and how an object was made.
func TestRequestsAreTold(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	var mu sync.Mutex
	var asked []objects.Account
	h.fake.asked = func(acct objects.Account) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, acct)
	}
	expires := fmt.Sprint(time.Now().Add(time.Minute).Unix())
	mac := hmac.New(sha1.New, []byte("alice-secret"))
	io.WriteString(mac, "PUT\n\n\n"+expires+"\n/bucket/key")
	presigned, err := http.NewRequest("PUT", h.srv.URL+"/bucket/key?AWSAccessKeyId=ALICE&Expires="+expires+"&Signature="+url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	form := encodeForm("f", signedV4(plainConditions, plainFields(formField{"file", "body"})...)...)
	for name, do := range map[string]func() answer{
		"signed": func() answer { return h.want(h.do("PUT", "/bucket/key", []byte("body")), 200, "") },
		"URL":    func() answer { return h.want(h.send(presigned), 200, "") },
		"form":   func() answer { return h.want(h.post("/bucket", form), 204, "") },
	} {
		a := do()
		want := objects.Account{ID: "alice-id", DisplayName: "Alice", Request: objects.Request{ID: a.Header.Get("X-Amz-Request-Id"), HostID: "host-id", SourceIP: "127.0.0.1"}}
		mu.Lock()
		if !slices.Equal(asked, []objects.Account{want}) {
			t.Errorf("%s: asked as %+v, want %+v", name, asked, want)
		}
		asked = nil
		mu.Unlock()
		h.fake.mu.Lock()
		if put := h.fake.puts[len(h.fake.puts)-1]; put.Form != (name == "form") {
			t.Errorf("%s: form %v", name, put.Form)
		}
		h.fake.mu.Unlock()
	}
}

// Tags that are deleted are another event than an empty set of tags that is put.
func TestTagsDeletedOrEmpty(t *testing.T) {
	h := newHarness(t)
	h.bucket("bucket")
	h.want(h.do("PUT", "/bucket/key", nil, "X-Amz-Tagging", "a=b"), 200, "")
	h.want(h.do("PUT", "/bucket/key?tagging", []byte("<Tagging><TagSet></TagSet></Tagging>")), 200, "")
	if len(h.fake.untagged) > 0 {
		t.Error("put, and deleted")
	}
	h.want(h.do("DELETE", "/bucket/key?tagging", nil), 204, "")
	if want := []objects.VersionRef{{Bucket: "bucket", Key: "key"}}; !slices.Equal(h.fake.untagged, want) {
		t.Errorf("deleted of %v", h.fake.untagged)
	}
}

func TestSDKNotifications(t *testing.T) {
	h, destinations := newNotifying(t)
	c := h.client(h.srv)
	ctx := context.Background()
	bucket := aws.String("bucket")
	want := &types.NotificationConfiguration{
		TopicConfigurations: []types.TopicConfiguration{{Id: aws.String("t"), TopicArn: aws.String("arn:aws:sns:us-east-1:1:mine"), Events: []types.Event{"s3:ObjectRemoved:*"}}},
		QueueConfigurations: []types.QueueConfiguration{{Id: aws.String("q"), QueueArn: aws.String("arn:aws:sqs:us-east-1:1:other"), Events: []types.Event{types.EventS3ObjectCreatedPut, types.EventS3ObjectCreatedPost},
			Filter: &types.NotificationConfigurationFilter{Key: &types.S3KeyFilter{FilterRules: []types.FilterRule{
				{Name: types.FilterRuleNamePrefix, Value: aws.String("a b/&")}, {Name: types.FilterRuleNameSuffix, Value: aws.String(".jpg")}}}}}},
		LambdaFunctionConfigurations: []types.LambdaFunctionConfiguration{{Id: aws.String("f"), LambdaFunctionArn: aws.String("arn:aws:lambda:us-east-1:1:function:third"), Events: []types.Event{types.EventS3ObjectAclPut}}},
		EventBridgeConfiguration:     &types.EventBridgeConfiguration{},
	}
	if _, err := c.PutBucketNotificationConfiguration(ctx, &s3.PutBucketNotificationConfigurationInput{Bucket: bucket, NotificationConfiguration: want}); err != nil {
		t.Fatal(err)
	}
	if told := destinations.take(); len(told) != 1 || !strings.HasPrefix(told[0], "bucket [") || !strings.Contains(told[0], "third") {
		t.Error(told)
	}
	got, err := c.GetBucketNotificationConfiguration(ctx, &s3.GetBucketNotificationConfigurationInput{Bucket: bucket})
	if err != nil {
		t.Fatal(err)
	}
	q := got.QueueConfigurations
	switch {
	case got.EventBridgeConfiguration == nil, len(got.TopicConfigurations) != 1, len(q) != 1, len(got.LambdaFunctionConfigurations) != 1:
		t.Fatalf("%+v", got)
	case *got.TopicConfigurations[0].TopicArn != "arn:aws:sns:us-east-1:1:mine", got.TopicConfigurations[0].Events[0] != "s3:ObjectRemoved:*", got.TopicConfigurations[0].Filter != nil:
		t.Errorf("%+v", got.TopicConfigurations[0])
	case *q[0].Id != "q", *q[0].QueueArn != "arn:aws:sqs:us-east-1:1:other", !slices.Equal(q[0].Events, want.QueueConfigurations[0].Events):
		t.Errorf("%+v", q[0])
	case *got.LambdaFunctionConfigurations[0].LambdaFunctionArn != "arn:aws:lambda:us-east-1:1:function:third":
		t.Errorf("%+v", got.LambdaFunctionConfigurations[0])
	}
	if rules := q[0].Filter.Key.FilterRules; len(rules) != 2 || *rules[0].Value != "a b/&" || *rules[1].Value != ".jpg" || !strings.EqualFold(string(rules[1].Name), "suffix") {
		t.Errorf("%+v", rules)
	}
	_, err = c.PutBucketNotificationConfiguration(ctx, &s3.PutBucketNotificationConfigurationInput{Bucket: bucket, SkipDestinationValidation: aws.Bool(true), NotificationConfiguration: &types.NotificationConfiguration{
		QueueConfigurations: []types.QueueConfiguration{{QueueArn: aws.String("arn:aws:sqs:us-east-1:1:gone"), Events: []types.Event{types.EventS3ObjectCreated}}}}})
	if apiCode(err) != "InvalidArgument" {
		t.Error(err)
	}
	destinations.fail(&DestinationError{[]FailedDestination{{Target: "mine", Reason: "no route"}}})
	_, err = c.PutBucketNotificationConfiguration(ctx, &s3.PutBucketNotificationConfigurationInput{Bucket: bucket, NotificationConfiguration: want})
	if apiCode(err) != "InvalidArgument" {
		t.Error(err)
	}
	_, err = c.PutBucketNotificationConfiguration(ctx, &s3.PutBucketNotificationConfigurationInput{Bucket: bucket, SkipDestinationValidation: aws.Bool(true), NotificationConfiguration: want})
	if err != nil {
		t.Error(err)
	}
	if _, err = c.PutBucketNotificationConfiguration(ctx, &s3.PutBucketNotificationConfigurationInput{Bucket: bucket, NotificationConfiguration: &types.NotificationConfiguration{}}); err != nil {
		t.Error(err)
	}
	if got, err := c.GetBucketNotificationConfiguration(ctx, &s3.GetBucketNotificationConfigurationInput{Bucket: bucket}); err != nil || len(got.QueueConfigurations) != 0 || got.EventBridgeConfiguration != nil {
		t.Errorf("%v %+v", err, got)
	}
}

func TestDestinationError(t *testing.T) {
	err := error(&DestinationError{[]FailedDestination{{Target: "a", Reason: "x"}, {Target: "b", Reason: "y z"}}})
	var d *DestinationError
	if err.Error() != "a: x; b: y z" || !errors.As(err, &d) {
		t.Error(err)
	}
}
