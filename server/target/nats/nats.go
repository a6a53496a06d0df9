// Package nats publishes events to a subject that a JetStream stream captures.
//
// A message counts as delivered when the stream has acknowledged it. Its id goes along as Nats-Msg-Id, so that the stream drops
// repeats that come within its duplicate window (two minutes unless it is configured otherwise). Many messages are under way at once,
// but never two of one key.
//
// There is no connection between calls that nobody asked for: it is made by the first call that needs one, kept, and
// made anew by the next call when it is lost.
package nats

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

// Config says where and how.
type Config struct {
	Servers []string // HOST:PORT, or nats:// or tls:// before it; any of them is tried
	Subject string   // to publish to; without wildcards
	Stream  string   // that must be the one that captures the subject; default: whichever does

	User, Password string
	Token          string
	CredsFile      string // with a JWT and an nkey, read anew for every connection
	NKeySeed       string // S...

	TLS     *dialtls.Config // default: none, unless the server or its URL asks for it
	Window  int             // messages under way in a call, 1 to 4096; default 256
	Timeout time.Duration   // of connecting and of each acknowledgement; default 10 s
}

const windowMax = 4096

// Validate reports what is wrong.
func (c *Config) Validate() error {
	if len(c.Servers) == 0 {
		return errors.New("nats: name at least one server as HOST:PORT")
	}
	for _, s := range c.Servers {
		if scheme, rest, ok := strings.Cut(s, "://"); ok && (scheme != "nats" && scheme != "tls" || strings.ContainsAny(rest, "@/")) ||
			s == "" || strings.ContainsAny(s, " ,@\t\r\n") {
			return errors.New("nats: give each server as HOST:PORT, nats://HOST:PORT or tls://HOST:PORT; user and password are settings of their own")
		}
	}
	if c.Subject == "" || strings.ContainsAny(c.Subject, "*> \t\r\n\x00") || strings.HasPrefix(c.Subject, ".") || strings.HasSuffix(c.Subject, ".") ||
		strings.Contains(c.Subject, "..") {
		return errors.New("nats: give the subject as names with dots between, without wildcards or spaces")
	}
	if strings.ContainsAny(c.Stream, ".*> \t\r\n/\\\x00") {
		return errors.New("nats: the stream's name has no dots, wildcards, slashes or spaces")
	}
	ways := 0
	for _, given := range []bool{c.User != "" || c.Password != "", c.Token != "", c.CredsFile != "", c.NKeySeed != ""} {
		if given {
			ways++
		}
	}
	switch {
	case ways > 1:
		return errors.New("nats: give one of user and password, token, credentials file and nkey")
	case c.Password != "" && c.User == "":
		return errors.New("nats: there is a password without a user")
	case c.Window < 0 || c.Window > windowMax:
		return fmt.Errorf("nats: the window is 1 to %d messages", windowMax)
	case c.Timeout < 0:
		return errors.New("nats: the timeout is negative")
	}
	if c.NKeySeed != "" {
		pair, err := nkeys.FromSeed([]byte(c.NKeySeed))
		if err != nil {
			return errors.New("nats: the nkey is not a seed (SU...)")
		}
		pair.Wipe()
	}
	if c.TLS != nil {
		return c.TLS.Validate()
	}
	return nil
}

type publisher struct {
	conf Config
	lock chan struct{} // holds conn; one token
	conn *connection   // nil: none yet
	end  bool
}

// connection is one connection to a server. It is not mended: gone is closed when it is lost, and the next call makes another.
type connection struct {
	nc   *natsgo.Conn
	gone chan struct{}
}

// Open makes the target. It connects to nobody yet.
func Open(c Config) (target.Target, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Window == 0 {
		c.Window = 256
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.TLS != nil {
		if _, err := c.TLS.Client(); err != nil {
			return nil, fmt.Errorf("nats: %w", err)
		}
	}
	return &publisher{conf: c, lock: make(chan struct{}, 1)}, nil
}

// dialer dials for one call, and ends what it dialed when the call's context ends before the server has let us in.
type dialer struct {
	ctx     context.Context
	timeout time.Duration
	stops   []func() bool
}

func (d *dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: d.timeout}).DialContext(d.ctx, network, address)
	if err == nil {
		d.stops = append(d.stops, context.AfterFunc(d.ctx, func() { conn.Close() }))
	}
	return conn, err
}

// connect answers the connection, made now if there is none. One call makes it, others wait for it.
func (p *publisher) connect(ctx context.Context) (*connection, error) {
	select {
	case p.lock <- struct{}{}:
		defer func() { <-p.lock }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if p.end {
		return nil, errors.New("nats: closed")
	}
	if p.conn != nil && !p.conn.nc.IsClosed() {
		return p.conn, nil
	}
	c := &connection{gone: make(chan struct{})}
	d := &dialer{ctx: ctx, timeout: p.conf.Timeout}
	opts, err := p.options(d)
	if err != nil {
		return nil, err
	}
	opts = append(opts, natsgo.ClosedHandler(func(*natsgo.Conn) { close(c.gone) }))
	c.nc, err = natsgo.Connect(strings.Join(p.conf.Servers, ","), opts...)
	for _, stop := range d.stops {
		stop()
	}
	if ended := context.Cause(ctx); ended != nil {
		if err == nil {
			c.nc.Close() // it may be the one that was just cut
		}
		return nil, ended
	}
	if err != nil {
		return nil, fmt.Errorf("nats: no server lets us in: %w", err)
	}
	p.conn = c
	return c, nil
}

func (p *publisher) options(d *dialer) ([]natsgo.Option, error) {
	opts := []natsgo.Option{
		natsgo.Name("cairn"),
		natsgo.NoReconnect(),
		natsgo.IgnoreDiscoveredServers(),
		natsgo.Timeout(p.conf.Timeout),
		natsgo.SetCustomDialer(d),
		natsgo.ErrorHandler(func(*natsgo.Conn, *natsgo.Subscription, error) {}), // they come as answers, too; the library would print them
	}
	if p.conf.TLS != nil {
		tls, err := p.conf.TLS.Client()
		if err != nil {
			return nil, fmt.Errorf("nats: %w", err)
		}
		opts = append(opts, natsgo.Secure(tls))
	}
	switch {
	case p.conf.User != "":
		opts = append(opts, natsgo.UserInfo(p.conf.User, p.conf.Password))
	case p.conf.Token != "":
		opts = append(opts, natsgo.Token(p.conf.Token))
	case p.conf.CredsFile != "":
		opts = append(opts, natsgo.UserCredentials(p.conf.CredsFile))
	case p.conf.NKeySeed != "":
		pair, err := nkeys.FromSeed([]byte(p.conf.NKeySeed))
		if err != nil {
			return nil, errors.New("nats: the nkey is not a seed (SU...)")
		}
		public, err := pair.PublicKey()
		if err != nil {
			return nil, errors.New("nats: the nkey is not a user's")
		}
		opts = append(opts, natsgo.Nkey(public, pair.Sign))
	}
	return opts, nil
}

func (p *publisher) Send(ctx context.Context, batch []target.Message) (int, error) {
	if len(batch) == 0 {
		return 0, nil
	}
	c, err := p.connect(ctx)
	if err != nil {
		return 0, err
	}
	// One publisher for the call: what it still waits for at the end is forgotten with it.
	js, err := jetstream.New(c.nc, jetstream.WithPublishAsyncTimeout(p.conf.Timeout), jetstream.WithPublishAsyncMaxPending(p.conf.Window))
	if err != nil {
		return 0, fmt.Errorf("nats: %w", err)
	}
	defer js.CleanupPublisher()
	acked := 0
	for acked < len(batch) {
		if ended := context.Cause(ctx); ended != nil {
			return acked, ended
		}
		n, err := p.window(ctx, c, js, batch[acked:acked+target.Window(batch[acked:], p.conf.Window)])
		acked += n
		if err != nil {
			return acked, err
		}
	}
	return acked, nil
}

// window publishes all messages and then waits for their acknowledgements in order.
func (p *publisher) window(ctx context.Context, c *connection, js jetstream.JetStream, batch []target.Message) (int, error) {
	var futures []jetstream.PubAckFuture
	var failed error
	for _, m := range batch {
		opts := []jetstream.PublishOpt{jetstream.WithMsgID(m.ID), jetstream.WithRetryAttempts(0)}
		if p.conf.Stream != "" {
			opts = append(opts, jetstream.WithExpectStream(p.conf.Stream))
		}
		msg := &natsgo.Msg{Subject: p.conf.Subject, Data: m.Body, Header: natsgo.Header{"Content-Type": {"application/json"}, "Cairn-Event": {m.Event}}}
		future, err := js.PublishMsgAsync(msg, opts...)
		if err != nil {
			failed = err
			break
		}
		futures = append(futures, future)
	}
	for i, f := range futures {
		select {
		case <-f.Ok():
			continue
		default:
		}
		select {
		case <-f.Ok():
		case err := <-f.Err():
			return i, p.explain(err)
		case <-c.gone:
			return i, p.lost(c)
		case <-ctx.Done():
			return i, context.Cause(ctx)
		}
	}
	return len(futures), p.explain(failed)
}

func (p *publisher) lost(c *connection) error {
	if err := c.nc.LastError(); err != nil {
		return fmt.Errorf("nats: the connection was lost: %w", err)
	}
	return errors.New("nats: the connection was lost")
}

// tooLargeForStream is JetStream's code for a message above the stream's limit.
const tooLargeForStream jetstream.ErrorCode = 10054

func (p *publisher) explain(err error) error {
	var api *jetstream.APIError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, natsgo.ErrMaxPayload), errors.As(err, &api) && api.ErrorCode == tooLargeForStream:
		return &target.Rejected{Err: fmt.Errorf("nats: %w", err)}
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return p.noStream()
	case errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		return fmt.Errorf("nats: no acknowledgement within %v", p.conf.Timeout)
	}
	return fmt.Errorf("nats: %w", err)
}

func (p *publisher) noStream() error {
	return fmt.Errorf("nats: no stream takes messages of subject %q: make one that captures it (nats stream add), or wait until it has a leader", p.conf.Subject)
}

// Check looks for the stream.
func (p *publisher) Check(ctx context.Context) error {
	c, err := p.connect(ctx)
	if err != nil {
		return err
	}
	js, err := jetstream.New(c.nc)
	if err != nil {
		return fmt.Errorf("nats: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, p.conf.Timeout)
	defer cancel()
	name, err := js.StreamNameBySubject(limited, p.conf.Subject)
	switch ended := context.Cause(ctx); {
	case ended != nil:
		return ended
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return p.noStream()
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, natsgo.ErrNoResponders):
		return fmt.Errorf("nats: enable JetStream on the server and for our account: %w", err)
	case err != nil:
		return fmt.Errorf("nats: looking for the stream of subject %q: %w", p.conf.Subject, err)
	case p.conf.Stream != "" && name != p.conf.Stream:
		return fmt.Errorf("nats: subject %q is captured by stream %q and not by %q: change the setting or the stream", p.conf.Subject, name, p.conf.Stream)
	}
	return nil
}

func (p *publisher) Close() error {
	p.lock <- struct{}{}
	defer func() { <-p.lock }()
	p.end = true
	if p.conn != nil {
		p.conn.nc.Close()
		p.conn = nil
	}
	return nil
}
