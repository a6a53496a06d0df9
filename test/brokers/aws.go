package brokers

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
)

// What of AWS there is at the server that StartAWS starts.
const (
	Queue    = "/123456789012/events" // of SQS: the path of its URL
	Topic    = "arn:aws:sns:eu-test-1:123456789012:events"
	Function = "events"
)

// AWS speaks what SQS, SNS and Lambda have of their wire formats for those who send: a queue, a topic and a function, whoever signs.
type AWS struct {
	URL string // http://127.0.0.1:port

	mu    sync.Mutex
	taken map[string][]string // by "sqs", "sns", "lambda"
}

// StartAWS starts a server.
func StartAWS(t testing.TB) *AWS {
	a := &AWS{taken: map[string][]string{}}
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	a.URL = s.URL
	return a
}

// Taken are the messages that a service ("sqs", "sns" or "lambda") got, in order.
func (a *AWS) Taken(service string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.taken[service]...)
}

func (a *AWS) take(service, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.taken[service] = append(a.taken[service], message)
}

// ServeHTTP answers one request.
func (a *AWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 16<<20))
	switch {
	case err != nil:
		return // cut off
	case !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 "):
		w.WriteHeader(http.StatusForbidden)
	case r.Header.Get("X-Amz-Target") != "":
		a.sqs(w, r.Header.Get("X-Amz-Target"), body)
	case strings.HasPrefix(r.URL.Path, "/2015-03-31/functions/"):
		a.lambda(w, r, body)
	default:
		a.sns(w, body)
	}
}

func (a *AWS) sqs(w http.ResponseWriter, action string, body []byte) {
	var in struct {
		QueueURL string `json:"QueueUrl"`
		Entries  []struct {
			ID          string `json:"Id"`
			MessageBody string
		}
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	if json.Unmarshal(body, &in) != nil || !strings.HasSuffix(in.QueueURL, Queue) {
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"there is no such queue"}`)
		return
	}
	switch action {
	case "AmazonSQS.GetQueueAttributes":
		io.WriteString(w, `{"Attributes":{"QueueArn":"arn:aws:sqs:eu-test-1:123456789012:events"}}`)
	case "AmazonSQS.SendMessageBatch":
		var ok []map[string]any
		for _, e := range in.Entries {
			a.take("sqs", e.MessageBody)
			sum := md5.Sum([]byte(e.MessageBody))
			ok = append(ok, map[string]any{"Id": e.ID, "MessageId": "m" + e.ID, "MD5OfMessageBody": hex.EncodeToString(sum[:])})
		}
		json.NewEncoder(w).Encode(map[string]any{"Successful": ok, "Failed": []any{}})
	default:
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `{"__type":"com.amazonaws.sqs#UnsupportedOperation","message":"not here"}`)
	}
}

func (a *AWS) sns(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "text/xml")
	v, err := url.ParseQuery(string(body))
	action := v.Get("Action")
	var result string
	switch {
	case err != nil || v.Get("TopicArn") != Topic:
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>NotFound</Code><Message>there is no such topic</Message></Error></ErrorResponse>`)
		return
	case action == "GetTopicAttributes":
		result = `<Attributes><entry><key>TopicArn</key><value>` + Topic + `</value></entry></Attributes>`
	case action == "Publish":
		a.take("sns", v.Get("Message"))
		result = `<MessageId>567910cd-659e-55d4-8ccb-5aaf14679dc0</MessageId>`
	default:
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `<ErrorResponse><Error><Type>Sender</Type><Code>InvalidAction</Code><Message>not here</Message></Error></ErrorResponse>`)
		return
	}
	var name strings.Builder
	_ = xml.EscapeText(&name, []byte(action)) // of a Builder: it cannot fail
	fmt.Fprintf(w, `<%sResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><%sResult>%s</%sResult><ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></%sResponse>`,
		&name, &name, result, &name, &name)
}

func (a *AWS) lambda(w http.ResponseWriter, r *http.Request, body []byte) {
	switch {
	case r.URL.Path != "/2015-03-31/functions/"+Function+"/invocations":
		w.Header().Set("X-Amzn-Errortype", "ResourceNotFoundException")
		w.WriteHeader(http.StatusNotFound)
		io.WriteString(w, `{"message":"there is no such function"}`)
	case r.Header.Get("X-Amz-Invocation-Type") == "DryRun":
		w.WriteHeader(http.StatusNoContent)
	default:
		a.take("lambda", string(body))
		w.WriteHeader(http.StatusAccepted)
	}
}
