package aws

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

const (
	queueURL = "http://sqs.test/123456789012/events"
	topicARN = "arn:aws:sns:eu-test-1:123456789012:events"
)

// call is a request that the tests' server has seen.
type call struct {
	*http.Request
	body []byte
}

func (c call) action() string {
	if a := c.Header.Get("X-Amz-Target"); a != "" {
		return a
	}
	if v, _ := url.ParseQuery(string(c.body)); v.Get("Action") != "" {
		return v.Get("Action")
	}
	return c.Header.Get("X-Amz-Invocation-Type")
}

// serve runs a server that answers with what is given, and keeps the requests.
func serve(t *testing.T, answer func(w http.ResponseWriter, c call)) (s *httptest.Server, calls func() []call) {
	t.Helper()
	var mu sync.Mutex // a request that was cut off is repeated at once
	var kept []call
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		c := call{r, body}
		if a := r.Header.Get("Authorization"); !strings.HasPrefix(a, "AWS4-HMAC-SHA256 Credential=AKID/") || !strings.Contains(a, "/eu-test-1/") {
			t.Errorf("signed with %q", a)
		}
		mu.Lock()
		kept = append(kept, c)
		mu.Unlock()
		answer(w, c)
	}))
	t.Cleanup(s.Close)
	return s, func() []call {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(kept)
	}
}

func openTarget(t *testing.T, c Config) target.Target {
	t.Helper()
	c.Region, c.AccessKeyID, c.SecretAccessKey = "eu-test-1", "AKID", "SECRET"
	to, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
	return to
}

// messages are n of as many keys.
func messages(n int) []target.Message {
	all := make([]target.Message, n)
	for i := range all {
		all[i] = target.Message{ID: fmt.Sprint("id", i), Bucket: "b", Key: fmt.Sprint("k", i), Event: "ObjectCreated:Put", Time: time.Unix(int64(i), 0), Body: fmt.Appendf(nil, `{"n":%d}`, i)}
	}
	return all
}

func isRejected(err error) bool {
	var r *target.Rejected
	return errors.As(err, &r)
}

// entry is a message of SendMessageBatch.
type entry struct{ Id, MessageBody, MessageGroupId, MessageDeduplicationId string }

func entries(t *testing.T, c call) []entry {
	t.Helper()
	var in struct {
		QueueUrl string
		Entries  []entry
	}
	if err := json.Unmarshal(c.body, &in); err != nil || !strings.HasPrefix(in.QueueUrl, queueURL) {
		t.Errorf("%v in %s", err, c.body)
	}
	return in.Entries
}

// sqsAnswer takes all entries but those whose body fail answers a code for.
func sqsAnswer(t *testing.T, fail func(body string) (code string)) func(http.ResponseWriter, call) {
	return func(w http.ResponseWriter, c call) {
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		if c.action() == "AmazonSQS.GetQueueAttributes" {
			io.WriteString(w, `{"Attributes":{"QueueArn":"arn:aws:sqs:eu-test-1:123456789012:events"}}`)
			return
		}
		if c.action() != "AmazonSQS.SendMessageBatch" {
			t.Errorf("action %q", c.action())
		}
		var ok, bad []map[string]any
		for _, e := range slices.Backward(entries(t, c)) { // the order of answers means nothing
			if code := fail(e.MessageBody); code != "" {
				bad = append(bad, map[string]any{"Id": e.Id, "Code": code, "Message": "why", "SenderFault": true})
				continue
			}
			sum := md5.Sum([]byte(e.MessageBody))
			ok = append(ok, map[string]any{"Id": e.Id, "MessageId": "m" + e.Id, "MD5OfMessageBody": hex.EncodeToString(sum[:])})
		}
		json.NewEncoder(w).Encode(map[string]any{"Successful": ok, "Failed": bad})
	}
}

func TestQueue(t *testing.T) {
	s, calls := serve(t, sqsAnswer(t, func(string) string { return "" }))
	to := openTarget(t, Config{Service: SQS, Endpoint: s.URL, Resource: queueURL})
	if err := to.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	batch := messages(12)
	batch[3].Key = batch[2].Key // must not be in one request
	if n, err := to.Send(t.Context(), batch); n != 12 || err != nil {
		t.Fatal(n, err)
	}
	var sizes []int
	var bodies []string
	for _, c := range calls()[1:] {
		all := entries(t, c)
		sizes = append(sizes, len(all))
		for _, e := range all {
			bodies = append(bodies, e.MessageBody)
			if e.MessageGroupId != "" || e.MessageDeduplicationId != "" {
				t.Errorf("a queue without order gets %+v", e)
			}
		}
	}
	if !slices.Equal(sizes, []int{3, 9}) {
		t.Errorf("requests of %v messages", sizes)
	}
	for i, m := range batch {
		if bodies[i] != string(m.Body) {
			t.Errorf("message %d is %s", i, bodies[i])
		}
	}
}

func TestQueueFIFO(t *testing.T) {
	s, calls := serve(t, sqsAnswer(t, func(string) string { return "" }))
	to := openTarget(t, Config{Service: SQS, Endpoint: s.URL, Resource: queueURL + ".fifo"})
	batch := messages(3)
	batch[2].Key = batch[0].Key
	batch[1].ID = strings.Repeat("long ", 50)
	if n, err := to.Send(t.Context(), batch); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	var all []entry
	for _, c := range calls() {
		all = append(all, entries(t, c)...)
	}
	if len(calls()) != 2 || all[0].MessageGroupId == "" || all[0].MessageGroupId != all[2].MessageGroupId || all[0].MessageGroupId == all[1].MessageGroupId {
		t.Errorf("%d requests, %+v", len(calls()), all)
	}
	if all[0].MessageDeduplicationId != "id0" || len(all[1].MessageDeduplicationId) != 64 {
		t.Errorf("%+v", all)
	}
}

func TestQueuePartly(t *testing.T) {
	for _, c := range []struct {
		code     string
		rejected bool
	}{{"InternalError", false}, {"KmsThrottled", false}, {"AWS.SimpleQueueService.InvalidMessageContents", true}, {"InvalidMessageContents", true}} {
		s, _ := serve(t, sqsAnswer(t, func(body string) string {
			if body == `{"n":2}` || body == `{"n":5}` {
				return c.code
			}
			return ""
		}))
		to := openTarget(t, Config{Service: SQS, Endpoint: s.URL, Resource: queueURL})
		n, err := to.Send(t.Context(), messages(8))
		if n != 2 || err == nil || isRejected(err) != c.rejected || !strings.Contains(err.Error(), c.code) {
			t.Errorf("%s: %d, %v", c.code, n, err)
		}
	}
}

func TestQueueLargeOnesGoAlone(t *testing.T) {
	s, calls := serve(t, func(w http.ResponseWriter, c call) {
		if len(c.body) > smallMax+smallMax/2 {
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, `{"__type":"com.amazonaws.sqs#BatchRequestTooLong","message":"too long"}`)
			return
		}
		sqsAnswer(t, func(string) string { return "" })(w, c)
	})
	to := openTarget(t, Config{Service: SQS, Endpoint: s.URL, Resource: queueURL})
	batch := messages(4)
	for i := range 3 {
		batch[i].Body = bytes.Repeat([]byte("1"), smallMax*2/3)
	}
	batch[3].Body = bytes.Repeat([]byte("1"), 2*smallMax)
	n, err := to.Send(t.Context(), batch)
	if n != 3 || !isRejected(err) || len(calls()) != 4 {
		t.Errorf("%d, %v, %d requests", n, err, len(calls()))
	}
}

func snsAnswer(w http.ResponseWriter, c call) {
	w.Header().Set("Content-Type", "text/xml")
	a := c.action()
	result := `<MessageId>567910cd-659e-55d4-8ccb-5aaf14679dc0</MessageId>`
	if a == "GetTopicAttributes" {
		result = `<Attributes><entry><key>TopicArn</key><value>` + topicARN + `</value></entry></Attributes>`
	}
	fmt.Fprintf(w, `<%sResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><%sResult>%s</%sResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></%sResponse>`, a, a, result, a, a)
}

func TestTopic(t *testing.T) {
	for _, fifo := range []bool{false, true} {
		s, calls := serve(t, snsAnswer)
		c := Config{Service: SNS, Endpoint: s.URL, Resource: topicARN}
		if fifo {
			c.Resource += ".fifo"
		}
		to := openTarget(t, c)
		if err := to.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n, err := to.Send(t.Context(), messages(2)); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		if len(calls()) != 3 || calls()[0].action() != "GetTopicAttributes" {
			t.Fatalf("%d requests", len(calls()))
		}
		for i, c := range calls()[1:] {
			v, err := url.ParseQuery(string(c.body))
			if err != nil {
				t.Fatal(err)
			}
			if v.Get("Action") != "Publish" || !strings.HasPrefix(v.Get("TopicArn"), topicARN) || v.Get("Message") != fmt.Sprintf(`{"n":%d}`, i) || v.Get("Subject") != subject {
				t.Errorf("%v", v)
			}
			if fifo != (v.Get("MessageGroupId") != "") || fifo != (v.Get("MessageDeduplicationId") == fmt.Sprint("id", i)) {
				t.Errorf("fifo %v: %v", fifo, v)
			}
		}
	}
}

func TestTopicRefuses(t *testing.T) {
	for _, c := range []struct {
		code     string
		size     int
		rejected bool
	}{
		{"InvalidParameter", smallMax + 1, true}, // too long
		{"InvalidParameter", 10, false},          // the ARN
		{"AuthorizationError", 10, false},
		{"NotFound", 10, false},
		{"Throttled", 10, false},
	} {
		s, calls := serve(t, func(w http.ResponseWriter, _ call) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type><Code>%s</Code><Message>why</Message></Error><RequestId>r</RequestId></ErrorResponse>`, c.code)
		})
		to := openTarget(t, Config{Service: SNS, Endpoint: s.URL, Resource: topicARN})
		batch := messages(2)
		batch[0].Body = bytes.Repeat([]byte("1"), c.size)
		n, err := to.Send(t.Context(), batch)
		if n != 0 || err == nil || isRejected(err) != c.rejected || len(calls()) != 1 {
			t.Errorf("%+v: %d, %v, %d requests", c, n, err, len(calls()))
		}
		if err := to.Check(t.Context()); err == nil || !strings.Contains(err.Error(), c.code) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestFunction(t *testing.T) {
	s, calls := serve(t, func(w http.ResponseWriter, c call) {
		if c.URL.Path != "/2015-03-31/functions/events/invocations" {
			t.Errorf("path %s", c.URL.Path)
		}
		switch {
		case c.action() == "DryRun":
			w.WriteHeader(http.StatusNoContent)
		case string(c.body) == `{"n":2}`:
			w.Header().Set("X-Amzn-Errortype", "RequestTooLargeException")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			io.WriteString(w, `{"message":"too large"}`)
		default:
			w.WriteHeader(http.StatusAccepted)
		}
	})
	to := openTarget(t, Config{Service: Lambda, Endpoint: s.URL, Resource: "events"})
	if err := to.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := to.Send(t.Context(), messages(4)); n != 2 || !isRejected(err) {
		t.Fatal(n, err)
	}
	var seen []string
	for _, c := range calls() {
		seen = append(seen, c.action()+string(c.body))
	}
	if want := []string{"DryRun{}", `Event{"n":0}`, `Event{"n":1}`, `Event{"n":2}`}; !slices.Equal(seen, want) {
		t.Errorf("%q", seen)
	}
}

// TestFunctionAnswersResult: a status of success that is not that of an asynchronous invocation acknowledges nothing.
func TestFunctionAnswersResult(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, _ call) { io.WriteString(w, "{}") })
	to := openTarget(t, Config{Service: Lambda, Endpoint: s.URL, Resource: "events"})
	if n, err := to.Send(t.Context(), messages(1)); n != 0 || err == nil {
		t.Error(n, err)
	}
}

// TestGarbage is of endpoints that answer anything: nothing of it is an acknowledgement, or the end of us.
func TestGarbage(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter, call){
		"nothing":  func(http.ResponseWriter, call) {},
		"page":     func(w http.ResponseWriter, _ call) { io.WriteString(w, "<html><body>hello</body></html>") },
		"object":   func(w http.ResponseWriter, _ call) { io.WriteString(w, "{}") },
		"half":     func(w http.ResponseWriter, _ call) { io.WriteString(w, `{"Successful":[{"Id":"0"`) },
		"error":    func(w http.ResponseWriter, _ call) { w.WriteHeader(http.StatusInternalServerError) },
		"redirect": func(w http.ResponseWriter, c call) { http.Redirect(w, c.Request, "/elsewhere", http.StatusFound) },
		"cut":      func(http.ResponseWriter, call) { panic(http.ErrAbortHandler) },
		"endless": func(w http.ResponseWriter, _ call) {
			for range 3 * answerMax / 4096 {
				if _, err := w.Write(bytes.Repeat([]byte(" "), 4096)); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := serve(t, answer)
			for service, resource := range map[Service]string{SQS: queueURL, SNS: topicARN, Lambda: "events"} {
				to := openTarget(t, Config{Service: service, Endpoint: s.URL, Resource: resource})
				if n, err := to.Send(t.Context(), messages(2)); n != 0 || err == nil || isRejected(err) {
					t.Errorf("%s: %d, %v", service, n, err)
				}
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestAnswersAreBounded(t *testing.T) {
	b := bounded{roundTripper(func(*http.Request) (*http.Response, error) {
		return &http.Response{Body: io.NopCloser(bytes.NewReader(make([]byte, 2*answerMax)))}, nil
	})}
	response, err := b.RoundTrip(nil)
	if err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(response.Body); len(all) != answerMax || err != nil {
		t.Errorf("%d bytes, %v", len(all), err)
	}
}

func TestClosed(t *testing.T) {
	s, calls := serve(t, snsAnswer)
	to := openTarget(t, Config{Service: SNS, Endpoint: s.URL, Resource: topicARN})
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := to.Send(t.Context(), messages(1)); n != 0 || !errors.Is(err, target.ErrClosed) {
		t.Error(n, err)
	}
	if err := to.Check(t.Context()); !errors.Is(err, target.ErrClosed) || len(calls()) != 0 {
		t.Error(err)
	}
}

func TestSilence(t *testing.T) {
	s, _ := serve(t, func(_ http.ResponseWriter, c call) { <-c.Context().Done() })
	to := openTarget(t, Config{Service: SQS, Endpoint: s.URL, Resource: queueURL, Timeout: 50 * time.Millisecond})
	if n, err := to.Send(t.Context(), messages(1)); n != 0 || err == nil {
		t.Error(n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := to.Send(ctx, messages(1)); n != 0 || !errors.Is(err, context.Canceled) {
		t.Error(n, err)
	}
}

func TestTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusAccepted) }))
	defer s.Close()
	roots := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	c := Config{Service: Lambda, Endpoint: s.URL, Resource: "events", TLS: dialtls.Config{CAPEM: roots}}
	if n, err := openTarget(t, c).Send(t.Context(), messages(1)); n != 1 || err != nil {
		t.Error(n, err)
	}
	c.TLS = dialtls.Config{}
	if n, err := openTarget(t, c).Send(t.Context(), messages(1)); n != 0 || err == nil {
		t.Error("a certificate of nobody is trusted", n, err)
	}
}

func TestValidate(t *testing.T) {
	good := Config{Service: SQS, Region: "eu-test-1", Resource: queueURL, AccessKeyID: "a", SecretAccessKey: "s"}
	for name, c := range map[string]struct {
		change func(*Config)
		good   bool
	}{
		"as it is":        {func(*Config) {}, true},
		"topic":           {func(c *Config) { c.Service, c.Resource = SNS, topicARN }, true},
		"function":        {func(c *Config) { c.Service, c.Resource = Lambda, "f" }, true},
		"endpoint":        {func(c *Config) { c.Endpoint = "http://127.0.0.1:4566" }, true},
		"no service":      {func(c *Config) { c.Service = "" }, false},
		"ARN of a queue":  {func(c *Config) { c.Resource = "arn:aws:sqs:eu-test-1:123456789012:events" }, false},
		"no path":         {func(c *Config) { c.Resource = "http://sqs.test/" }, false},
		"name of a topic": {func(c *Config) { c.Service, c.Resource = SNS, "events" }, false},
		"subscription":    {func(c *Config) { c.Service, c.Resource = SNS, topicARN+":sub" }, false},
		"path":            {func(c *Config) { c.Service, c.Resource = Lambda, "a/b" }, false},
		"no region":       {func(c *Config) { c.Region = "" }, false},
		"no scheme":       {func(c *Config) { c.Endpoint = "127.0.0.1:4566" }, false},
		"password in URL": {func(c *Config) { c.Endpoint = "http://a:b@127.0.0.1" }, false},
		"no key":          {func(c *Config) { c.AccessKeyID = "" }, false},
		"no secret":       {func(c *Config) { c.SecretAccessKey = "" }, false},
		"timeout":         {func(c *Config) { c.Timeout = -1 }, false},
	} {
		config := good
		c.change(&config)
		if err := config.Validate(); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
		if to, err := Open(config); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		} else if err == nil {
			to.Close()
		}
	}
}
