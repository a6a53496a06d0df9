// Package aws delivers events to a queue of SQS, a topic of SNS or a function of Lambda, of AWS itself or of whoever speaks
// these APIs.
//
// A message counts as delivered when the service's answer says so. To queues and topics that are FIFO the group is a hash of bucket and
// key, so that order is kept where it matters, and the deduplication id is that of the message. A function is
// invoked asynchronously: the service has queued the event by then.
//
// Nothing is tried twice here: when to try again is for the caller to say.
package aws

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/smithy-go"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

// Service is one of AWS's services that take events.
type Service string

// The services.
const (
	SQS    Service = "sqs"
	SNS    Service = "sns"
	Lambda Service = "lambda"
)

// Config says where the service is and what of it takes the events.
type Config struct {
	Service  Service
	Region   string // as eu-central-1; part of signatures elsewhere than at AWS, too
	Endpoint string // http:// or https:// and a host; AWS's own of the region if empty
	// Resource is the URL of a queue, the ARN of a topic, or the name or ARN of a function. What ends in .fifo is FIFO.
	Resource        string
	AccessKeyID     string
	SecretAccessKey string         // never part of an error
	SessionToken    string         // of temporary credentials; mostly empty
	TLS             dialtls.Config // for endpoints with https
	Timeout         time.Duration  // for each request; 10 s if 0
}

const (
	defaultTimeout = 10 * time.Second
	answerMax      = 1 << 20   // bytes of an answer that are read
	smallMax       = 256 << 10 // bytes that every service of these takes
	connectionsMax = 16
	idMax          = 128 // bytes of ids that FIFO knows
)

// Validate reports what is wrong with the configuration and what to do about it.
func (c Config) Validate() error {
	switch c.Service {
	case SQS:
		if u, err := url.Parse(c.Resource); err != nil || !web(u) || strings.Trim(u.Path, "/") == "" {
			return fmt.Errorf("aws: %q is no URL of a queue; give one, as https://sqs.eu-central-1.amazonaws.com/123456789012/events", c.Resource)
		}
	case SNS:
		if !strings.HasPrefix(c.Resource, "arn:") || strings.Count(c.Resource, ":") != 5 {
			return fmt.Errorf("aws: %q is no ARN of a topic; give one, as arn:aws:sns:eu-central-1:123456789012:events", c.Resource)
		}
	case Lambda:
		if c.Resource == "" || strings.ContainsAny(c.Resource, "/?# ") {
			return fmt.Errorf("aws: %q is no function; give a name, as events, or an ARN", c.Resource)
		}
	default:
		return fmt.Errorf("aws: the service %q is unknown; give %s, %s or %s", c.Service, SQS, SNS, Lambda)
	}
	if c.Region == "" {
		return errors.New("aws: no region; give one, as eu-central-1")
	}
	if u, err := url.Parse(c.Endpoint); c.Endpoint != "" && (err != nil || !web(u)) {
		return fmt.Errorf("aws: the endpoint %q is no URL; give one, as https://sqs.example.com, or none for AWS's own", c.Endpoint)
	}
	if c.AccessKeyID == "" || c.SecretAccessKey == "" {
		return errors.New("aws: no credentials; give an access key id and its secret")
	}
	if c.Timeout < 0 {
		return errors.New("aws: the timeout is negative; give a positive one, or 0 for 10 s")
	}
	return c.TLS.Validate()
}

func web(u *url.URL) bool {
	return (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.User == nil
}

func (c Config) fifo() bool { return strings.HasSuffix(c.Resource, ".fifo") }

// service is what differs between the three.
type service interface {
	// send delivers some of the messages from the first on, in as many as one request takes. It answers how many were acknowledged.
	send(ctx context.Context, batch []target.Message) (acked int, err error)
	check(ctx context.Context) error
}

// Open makes a target. The service need not be there: it is connected to on use, and again after every failure.
func Open(c Config) (target.Target, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	secure, err := c.TLS.Client()
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	transport := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: c.Timeout}).DialContext,
		TLSClientConfig:       secure,
		TLSHandshakeTimeout:   c.Timeout,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   connectionsMax,
		MaxConnsPerHost:       connectionsMax,
		IdleConnTimeout:       time.Minute,
		ResponseHeaderTimeout: c.Timeout,
	}
	r := &remote{config: c, transport: transport}
	client := &http.Client{
		Transport:     bounded{transport},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	keys := credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken)
	var endpoint *string
	if c.Endpoint != "" {
		endpoint = &c.Endpoint
	}
	switch c.Service {
	case SQS:
		r.service = newQueue(c, client, keys, endpoint)
	case SNS:
		r.service = newTopic(c, client, keys, endpoint)
	default:
		r.service = newFunction(c, client, keys, endpoint)
	}
	return r, nil
}

// bounded cuts answers short that are longer than any good one is.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := b.next.RoundTrip(r)
	if err == nil {
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(response.Body, answerMax), response.Body}
	}
	return response, err
}

type remote struct {
	config    Config
	transport *http.Transport
	service   service
	closed    atomic.Bool
}

func (r *remote) Send(ctx context.Context, batch []target.Message) (acked int, err error) {
	for acked < len(batch) {
		n, err := r.once(ctx, batch[acked:])
		acked += n
		if err == nil {
			continue
		}
		err = r.fault(err)
		if refused(err, batch[acked]) {
			err = &target.Rejected{Err: err}
		}
		return acked, err
	}
	return acked, nil
}

func (r *remote) once(ctx context.Context, batch []target.Message) (acked int, err error) {
	if r.closed.Load() {
		return 0, target.ErrClosed
	}
	ctx, cancel := context.WithTimeout(ctx, r.config.Timeout)
	defer cancel()
	return r.service.send(ctx, batch)
}

func (r *remote) fault(err error) error {
	return fmt.Errorf("%s: %s: %w", r.config.Service, r.config.Resource, err)
}

// refused tells whether an answer is about what the message is. The codes that are only so for large messages mean a wrong configuration else.
func refused(err error, m target.Message) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	code := api.ErrorCode()
	switch code[strings.LastIndexByte(code, '.')+1:] { // SQS has a prefix sometimes
	case "InvalidMessageContents", "RequestTooLargeException", "InvalidRequestContentException":
		return true
	case "BatchRequestTooLong", "MessageTooLong", "InvalidParameter", "InvalidParameterValue", "InvalidParameterValueException":
		return len(m.Body) > smallMax
	default:
		return false
	}
}

func (r *remote) Check(ctx context.Context) error {
	if r.closed.Load() {
		return r.fault(target.ErrClosed)
	}
	ctx, cancel := context.WithTimeout(ctx, r.config.Timeout)
	defer cancel()
	if err := r.service.check(ctx); err != nil {
		return fmt.Errorf("%w; see that endpoint, region and credentials are right, and that it exists and we may use it", r.fault(err))
	}
	return nil
}

func (r *remote) Close() error {
	r.closed.Store(true)
	r.transport.CloseIdleConnections()
	return nil
}

// group is the same for the same bucket and key.
func group(m target.Message) string {
	sum := sha256.Sum256([]byte(m.Bucket + "\x00" + m.Key)) // bucket names have no NUL
	return hex.EncodeToString(sum[:16])
}

// deduplication is the message's id in what FIFO allows.
func deduplication(m target.Message) string {
	alphabet := "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
	if m.ID != "" && len(m.ID) <= idMax && strings.Trim(m.ID, alphabet) == "" {
		return m.ID
	}
	sum := sha256.Sum256([]byte(m.ID))
	return hex.EncodeToString(sum[:])
}

func text(p *string) string { return awssdk.ToString(p) }
