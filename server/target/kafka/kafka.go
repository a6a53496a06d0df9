// Package kafka produces events to a topic.
//
// A record's key is BUCKET/KEY, so events of a key are in one partition; it is delivered when all replicas in sync have it. The
// message's id goes along in the header cairn-id. The producer is idempotent: what the client library sends again by itself comes once.
// Many records are under way at once, but never two of one key.
//
// A call that ends before the broker has answered for all its records abandons the client with what it holds; the next call makes a
// new one. So nothing is sent after a call has ended, apart from what is in the network already.
package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

// Config says where and how.
type Config struct {
	Brokers []string // HOST:PORT; the others of the cluster are learned from any of them
	Topic   string   // it must be there: it is not made

	SASL           string // PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; default: none
	User, Password string // with SASL

	TLS             *dialtls.Config // default: none
	MaxMessageBytes int             // as the topic's max.message.bytes, at least 1024; default 1000012
	Window          int             // records under way in a call, 1 to 10000; default 1000
	Timeout         time.Duration   // of one Send or Check when its context does not end before; default 10 s
}

const (
	windowMax      = 10000
	messageBytes   = 1000012
	messageMinimum = 1024
	messageMaximum = 100 << 20
)

// Validate reports what is wrong.
func (c *Config) Validate() error {
	if len(c.Brokers) == 0 {
		return errors.New("kafka: name at least one broker as HOST:PORT")
	}
	for _, b := range c.Brokers {
		if host, port, err := net.SplitHostPort(b); err != nil || host == "" || port == "" || strings.ContainsAny(b, ",/@ ") {
			return errors.New("kafka: give each broker as HOST:PORT")
		}
	}
	if !topicName(c.Topic) {
		return errors.New("kafka: give the topic as 1 to 249 letters, digits, dots, underscores and hyphens")
	}
	switch c.SASL {
	case "":
		if c.User != "" || c.Password != "" {
			return errors.New("kafka: there is a user or password: say with which SASL mechanism (PLAIN, SCRAM-SHA-256, SCRAM-SHA-512)")
		}
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		if c.User == "" || c.Password == "" {
			return errors.New("kafka: SASL needs a user and a password")
		}
	default:
		return errors.New("kafka: the SASL mechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512")
	}
	switch {
	case c.MaxMessageBytes != 0 && (c.MaxMessageBytes < messageMinimum || c.MaxMessageBytes > messageMaximum):
		return fmt.Errorf("kafka: the largest message is %d to %d bytes", messageMinimum, messageMaximum)
	case c.Window < 0 || c.Window > windowMax:
		return fmt.Errorf("kafka: the window is 1 to %d records", windowMax)
	case c.Timeout < 0:
		return errors.New("kafka: the timeout is negative")
	case c.TLS != nil:
		return c.TLS.Validate()
	}
	return nil
}

func topicName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 249 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r) {
			return false
		}
	}
	return true
}

type producer struct {
	conf Config
	opts []kgo.Opt
	tls  *tls.Config // nil: none

	mu     sync.Mutex
	client *client // nil: none now
	end    bool
}

// client knows its connections, so that it can end at once what waits on them: the library waits for answers until its own time limits.
type client struct {
	*kgo.Client
	cancel context.CancelFunc // of all that the library does
	dial   func(ctx context.Context, network, address string) (net.Conn, error)

	once  sync.Once
	mu    sync.Mutex
	conns map[*conn]bool // nil: it is over
	fault error          // why the last connection was not made; nil: it was
}

type conn struct {
	net.Conn
	of *client
}

func (c *conn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func (c *client) connect(ctx context.Context, network, address string) (net.Conn, error) {
	dialed, err := c.dial(ctx, network, address)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = err
	if err != nil {
		return nil, err
	}
	if c.conns == nil {
		dialed.Close()
		return nil, net.ErrClosed
	}
	own := &conn{dialed, c}
	c.conns[own] = true
	return own, nil
}

// silence says why there is no answer, as far as that is known.
func (c *client) silence() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != nil {
		return c.fault
	}
	return errors.New("the broker has not answered")
}

// over ends the client and all that waits for it. It may be called again.
func (c *client) over() {
	c.mu.Lock()
	for own := range c.conns {
		own.Conn.Close()
	}
	c.conns = nil
	c.mu.Unlock()
	c.cancel()
	c.once.Do(c.Close)
}

// Open makes the target. It connects to nobody yet.
func Open(c Config) (target.Target, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.MaxMessageBytes == 0 {
		c.MaxMessageBytes = messageBytes
	}
	if c.Window == 0 {
		c.Window = 1000
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	opts := []kgo.Opt{
		kgo.ClientID("cairn"),
		kgo.SeedBrokers(c.Brokers...),
		kgo.DefaultProduceTopic(c.Topic),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)), // as Kafka's own clients do
		kgo.ProducerLinger(0),
		kgo.ProducerBatchMaxBytes(int32(c.MaxMessageBytes)),
		kgo.BrokerMaxWriteBytes(max(100<<20, 2*int32(c.MaxMessageBytes))),
		kgo.RetryBackoffFn(func(int) time.Duration { return 50 * time.Millisecond }), // within a call; whoever sends backs off between them
		kgo.MetadataMinAge(50 * time.Millisecond),
		kgo.DisableClientMetrics(),
	}
	auth := scram.Auth{User: c.User, Pass: c.Password}
	var mechanism sasl.Mechanism
	switch c.SASL {
	case "PLAIN":
		mechanism = plain.Auth{User: c.User, Pass: c.Password}.AsMechanism()
	case "SCRAM-SHA-256":
		mechanism = auth.AsSha256Mechanism()
	case "SCRAM-SHA-512":
		mechanism = auth.AsSha512Mechanism()
	}
	if mechanism != nil {
		opts = append(opts, kgo.SASL(mechanism))
	}
	if err := kgo.ValidateOpts(opts...); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	p := &producer{conf: c, opts: opts}
	if c.TLS != nil {
		var err error
		if p.tls, err = c.TLS.Client(); err != nil {
			return nil, fmt.Errorf("kafka: %w", err)
		}
	}
	return p, nil
}

func (p *producer) get() (*client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end {
		return nil, errors.New("kafka: closed")
	}
	if p.client != nil {
		return p.client, nil
	}
	plain := &net.Dialer{Timeout: p.conf.Timeout}
	c := &client{conns: map[*conn]bool{}, dial: plain.DialContext}
	if p.tls != nil {
		c.dial = (&tls.Dialer{NetDialer: plain, Config: p.tls}).DialContext
	}
	var ctx context.Context
	ctx, c.cancel = context.WithCancel(context.Background())
	var err error
	if c.Client, err = kgo.NewClient(append(slices.Clone(p.opts), kgo.Dialer(c.connect), kgo.WithContext(ctx))...); err != nil {
		c.cancel()
		return nil, fmt.Errorf("kafka: %w", err)
	}
	p.client = c
	return c, nil
}

// abandon ends a client that still waits for something. Calls that share it fail and are made again by whoever made them.
func (p *producer) abandon(c *client) {
	p.mu.Lock()
	if p.client == c {
		p.client = nil
	}
	p.mu.Unlock()
	c.over()
}

func (p *producer) Send(ctx context.Context, batch []target.Message) (int, error) {
	if ended := context.Cause(ctx); ended != nil || len(batch) == 0 {
		return 0, ended
	}
	cl, err := p.get()
	if err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, p.conf.Timeout)
	defer cancel()
	acked := 0
	for acked < len(batch) {
		n, err := p.window(limited, cl, batch[acked:acked+target.Window(batch[acked:], p.conf.Window)])
		acked += n
		if err == nil {
			continue
		}
		if ended := context.Cause(ctx); ended != nil {
			err = ended
		} else if limited.Err() != nil {
			err = fmt.Errorf("not acknowledged within %v: %w", p.conf.Timeout, err)
		}
		return acked, err
	}
	return acked, nil
}

// window produces messages of different keys. Records that go in one batch share its fate: one that is too large with others
// may go alone, so each that was refused is tried alone before it counts as refused.
func (p *producer) window(ctx context.Context, cl *client, batch []target.Message) (int, error) {
	results := p.produce(ctx, cl, batch)
	for i, err := range results {
		if refusable(err) && len(batch) > 1 {
			err = p.produce(ctx, cl, batch[i:i+1])[0]
		}
		switch {
		case refusable(err):
			return i, &target.Rejected{Err: fmt.Errorf("kafka: %w", err)}
		case err != nil:
			return i, p.explain(err)
		}
	}
	return len(batch), nil
}

// refusable tells answers that speak of the batch's content.
func refusable(err error) bool {
	return errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord)
}

// produce answers for each message what became of it. It returns when all are done, or soon after ctx has ended.
func (p *producer) produce(ctx context.Context, cl *client, batch []target.Message) []error {
	type outcome struct {
		i   int
		err error
	}
	outcomes := make(chan outcome, len(batch)) // never blocks the client, even if nobody listens any more
	for i, m := range batch {
		r := &kgo.Record{
			Key:       []byte(m.Bucket + "/" + m.Key),
			Value:     m.Body,
			Timestamp: m.Time,
			Headers:   []kgo.RecordHeader{{Key: "cairn-id", Value: []byte(m.ID)}, {Key: "cairn-event", Value: []byte(m.Event)}},
		}
		cl.Produce(ctx, r, func(_ *kgo.Record, err error) { outcomes <- outcome{i, err} })
	}
	results := make([]error, len(batch))
	answered := make([]bool, len(batch))
	for range batch {
		select {
		case o := <-outcomes:
			if o.err != nil && ctx.Err() != nil {
				o.err = cl.silence() // the library only says that the time is over
			}
			results[o.i], answered[o.i] = o.err, true
			continue
		case <-ctx.Done():
		}
		silence := cl.silence()
		p.abandon(cl)
		for i := range results {
			if !answered[i] {
				results[i] = silence
			}
		}
		break
	}
	return results
}

func (p *producer) explain(err error) error {
	switch {
	case errors.Is(err, kerr.UnknownTopicOrPartition):
		return fmt.Errorf("kafka: there is no topic %q, or we may not see it: make it, or allow us to describe and write it: %w", p.conf.Topic, err)
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fmt.Errorf("kafka: allow us to describe and write topic %q: %w", p.conf.Topic, err)
	case errors.Is(err, kerr.SaslAuthenticationFailed):
		return fmt.Errorf("kafka: check user and password: %w", err)
	}
	return fmt.Errorf("kafka: %w", err)
}

// Check asks for the topic and the leaders of its partitions.
func (p *producer) Check(ctx context.Context) error {
	cl, err := p.get()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, p.conf.Timeout)
	defer cancel()
	req := kmsg.NewPtrMetadataRequest()
	asked := kmsg.NewMetadataRequestTopic()
	asked.Topic = kmsg.StringPtr(p.conf.Topic)
	req.Topics = append(req.Topics, asked)
	stop := context.AfterFunc(limited, func() { p.abandon(cl) })
	resp, err := req.RequestWith(limited, cl)
	if !stop() {
		p.abandon(cl) // it may not have begun yet: a call that comes now must not find the client that it closes
	}
	if ended := context.Cause(ctx); ended != nil {
		return ended
	}
	if err != nil {
		return p.explain(err)
	}
	if len(resp.Topics) != 1 {
		return p.explain(kerr.UnknownTopicOrPartition)
	}
	topic := resp.Topics[0]
	if err := kerr.ErrorForCode(topic.ErrorCode); err != nil {
		return p.explain(err)
	}
	for _, part := range topic.Partitions {
		if part.Leader < 0 {
			return fmt.Errorf("kafka: partition %d of topic %q has no leader: start its brokers", part.Partition, p.conf.Topic)
		}
	}
	return nil
}

func (p *producer) Close() error {
	p.mu.Lock()
	cl := p.client
	p.client, p.end = nil, true
	p.mu.Unlock()
	if cl != nil {
		cl.over()
	}
	return nil
}
