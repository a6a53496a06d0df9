// Package amqp delivers events to an exchange of an AMQP 0.9.1 broker, as RabbitMQ is.
//
// Messages are persistent and published with confirms: one counts as delivered when the broker confirms it, which for a durable
// queue is when it is on disk (of a majority, for quorum queues). They are mandatory, too: one that no queue takes is
// returned and counts as not delivered, else an exchange without bindings would swallow all events.
//
// Only one call of Send is under way at a time, over one connection; a window of messages (target.Window) is confirmed together.
package amqp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

// Config says where the broker is and what is published there.
type Config struct {
	Address    string          // host:port
	VHost      string          // the virtual host; "/" if empty
	User       string          // together with Password; "guest" and "guest" if both are empty
	Password   string          // never part of an error
	TLS        *dialtls.Config // nil: TCP without TLS
	Exchange   string          // must exist; empty for the default exchange, that hands to the queue named RoutingKey
	RoutingKey string          // at most 255 bytes; required with the default exchange
	Timeout    time.Duration   // for connecting, and for a wave of messages to be confirmed; 10 s if 0
}

const (
	defaultTimeout = 10 * time.Second
	shortMax       = 255 // bytes of AMQP's short strings
	waveMax        = 64  // messages that wait for their confirms at once
	heartbeat      = 10 * time.Second
	frameMax       = 128 << 10
	closeTimeout   = time.Second // for a polite end
)

// Validate reports what is wrong with the configuration and what to do about it.
func (c Config) Validate() error {
	if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" {
		return fmt.Errorf("amqp: the address %q is not host:port; give the broker's, as rabbit.example.com:5672", c.Address)
	}
	for name, value := range map[string]string{"virtual host": c.VHost, "exchange": c.Exchange, "routing key": c.RoutingKey} {
		if len(value) > shortMax || strings.ContainsRune(value, 0) {
			return fmt.Errorf("amqp: the %s has %d bytes; give at most %d, none of them 0", name, len(value), shortMax)
		}
	}
	if (c.User == "") != (c.Password == "") {
		return errors.New("amqp: give both user and password, or none for guest")
	}
	if c.Exchange == "" && c.RoutingKey == "" {
		return errors.New("amqp: give an exchange, or the name of a queue as the routing key")
	}
	if c.Timeout < 0 {
		return errors.New("amqp: the timeout is negative; give a positive one, or 0 for 10 s")
	}
	if c.TLS != nil {
		return c.TLS.Validate()
	}
	return nil
}

// Open makes a target. The broker need not be there: it is connected to on use, and again after every failure.
func Open(c Config) (target.Target, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.VHost == "" {
		c.VHost = "/"
	}
	if c.User == "" {
		c.User, c.Password = "guest", "guest"
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	b := &broker{config: c, turn: target.NewTurn()}
	if c.TLS != nil {
		var err error
		if b.tls, err = c.TLS.Client(); err != nil {
			return nil, fmt.Errorf("amqp: %w", err)
		}
	}
	return b, nil
}

type broker struct {
	config Config
	tls    *tls.Config  // nil: TCP without TLS
	turn   *target.Turn // to use what is below
	link   *link        // nil if there is none
}

func (b *broker) Send(ctx context.Context, batch []target.Message) (acked int, err error) {
	if err := b.turn.Take(ctx); err != nil {
		return 0, err
	}
	defer b.turn.Give()
	limit := waveMax
	for acked < len(batch) {
		wave := batch[acked:]
		wave = wave[:target.Window(wave, limit)]
		n, err := b.wave(ctx, wave)
		acked += n
		switch {
		case err == nil:
		case !refused(err):
			return acked, fmt.Errorf("amqp: %s: %w", b.config.Address, err)
		case len(wave) == 1:
			return acked, &target.Rejected{Err: fmt.Errorf("amqp: %s: %w", b.config.Address, err)}
		default:
			limit = 1 // the broker does not say which one it was: one by one it is told by who comes last
		}
	}
	return acked, nil
}

// refused tells whether the broker closed the channel for what a message is: RabbitMQ does so if one is larger than it takes.
func refused(err error) bool {
	var e *amqp091.Error
	return errors.As(err, &e) && e.Server && e.Code == amqp091.PreconditionFailed
}

// wave publishes a wave and answers how many were confirmed, from the first on. The connection stays only if the broker answered for all.
func (b *broker) wave(ctx context.Context, wave []target.Message) (acked int, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	if b.link == nil || b.link.channel.IsClosed() {
		b.drop()
		if b.link, err = dial(ctx, b.config, b.tls); err != nil {
			return 0, err
		}
	}
	acked, whole, err := b.link.publish(ctx, b.config, wave)
	if !whole {
		b.drop()
	}
	return acked, err
}

func (b *broker) drop() {
	if b.link != nil {
		b.link.raw.Close()
		b.link = nil
	}
}

// Check connects anew and looks for the exchange, or for the queue where the default exchange is used. Whether a queue is bound to an
// exchange shows only when an event is sent.
func (b *broker) Check(ctx context.Context) error {
	if err := b.turn.Take(ctx); err != nil {
		return err
	}
	b.turn.Give()
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	l, err := dial(ctx, b.config, b.tls)
	if err != nil {
		return fmt.Errorf("amqp: %s: %w; see that the broker runs and that address, virtual host, user and password are right", b.config.Address, err)
	}
	defer l.end()
	defer context.AfterFunc(ctx, func() { l.raw.Close() })()
	if b.config.Exchange == "" {
		if _, err := l.channel.QueueDeclarePassive(b.config.RoutingKey, true, false, false, false, nil); err != nil {
			return fmt.Errorf("amqp: queue %q on %s: %w; declare the queue or give another routing key", b.config.RoutingKey, b.config.Address, err)
		}
		return nil
	}
	if err := l.channel.ExchangeDeclarePassive(b.config.Exchange, amqp091.ExchangeTopic, true, false, false, false, nil); err != nil {
		return fmt.Errorf("amqp: exchange %q on %s: %w; declare the exchange or give another one", b.config.Exchange, b.config.Address, err)
	}
	return nil
}

func (b *broker) Close() error {
	b.turn.Close()
	defer b.turn.Give()
	if b.link != nil {
		b.link.end()
		b.link = nil
	}
	return nil
}

// link is a connection with one channel in confirm mode.
type link struct {
	raw     net.Conn // closing it ends whatever hangs
	conn    *amqp091.Connection
	channel *amqp091.Channel
	returns chan amqp091.Return // has room for a wave, so that the reader of the connection never waits
	closes  chan *amqp091.Error
}

func dial(ctx context.Context, c Config, secure *tls.Config) (*link, error) {
	raw, err := connect(ctx, c, secure)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	l, err := open(raw, c)
	if err == nil {
		err = ctx.Err() // it may have been closed just now
	}
	if err != nil {
		raw.Close()
		return nil, errors.Join(err, ctx.Err())
	}
	return l, nil
}

func connect(ctx context.Context, c Config, secure *tls.Config) (net.Conn, error) {
	if secure == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", c.Address)
	}
	return (&tls.Dialer{Config: secure}).DialContext(ctx, "tcp", c.Address)
}

func open(raw net.Conn, c Config) (*link, error) {
	properties := amqp091.NewConnectionProperties()
	properties.SetClientConnectionName("cairn")
	conn, err := amqp091.Open(raw, amqp091.Config{
		SASL:       []amqp091.Authentication{&amqp091.PlainAuth{Username: c.User, Password: c.Password}},
		Vhost:      c.VHost,
		Heartbeat:  heartbeat,
		FrameSize:  frameMax,
		Locale:     "en_US",
		Properties: properties,
	})
	if err != nil {
		return nil, err
	}
	channel, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := channel.Confirm(false); err != nil {
		return nil, err
	}
	return &link{
		raw: raw, conn: conn, channel: channel,
		returns: channel.NotifyReturn(make(chan amqp091.Return, waveMax)),
		closes:  channel.NotifyClose(make(chan *amqp091.Error, 1)),
	}, nil
}

// end says goodbye if that can be done at once.
func (l *link) end() {
	_ = l.conn.CloseDeadline(time.Now().Add(closeTimeout)) // nothing is under way: it does not matter
	l.raw.Close()
}

// publish answers how many of the wave were confirmed, from the first on, and whether the broker answered for every one.
func (l *link) publish(ctx context.Context, c Config, wave []target.Message) (acked int, whole bool, err error) {
	stop := context.AfterFunc(ctx, func() { l.raw.Close() }) // publishing does not look at ctx
	defer func() { whole = stop() && whole }()               // it may be about to close what the next wave would use
	confirms := make([]*amqp091.DeferredConfirmation, 0, len(wave))
	for _, m := range wave {
		confirm, err := l.channel.PublishWithDeferredConfirm(c.Exchange, c.RoutingKey, true, false, publishing(m))
		if err != nil {
			return 0, false, l.cause(ctx, err)
		}
		confirms = append(confirms, confirm)
	}
	for i, confirm := range confirms {
		select {
		case <-confirm.Done():
		case <-ctx.Done():
			return l.delivered(wave[:i], confirms), false, fmt.Errorf("not confirmed in time; a broker short of memory or disk confirms nothing: %w", ctx.Err())
		}
	}
	acked = l.delivered(wave, confirms)
	switch {
	case acked == len(wave):
		return acked, true, nil
	case l.channel.IsClosed():
		return acked, false, l.cause(ctx, errors.New("the connection is lost"))
	case confirms[acked].Acked():
		return acked, true, fmt.Errorf("no queue takes messages of exchange %q with routing key %q: bind one, or declare the queue", c.Exchange, c.RoutingKey)
	default:
		return acked, true, errors.New("the broker could not take over a message; a queue may be full")
	}
}

// delivered counts how many of the wave, from the first on, were confirmed and not returned. The broker returns a message before it confirms it.
func (l *link) delivered(wave []target.Message, confirms []*amqp091.DeferredConfirmation) int {
	returned := map[string]bool{}
	for more := true; more; {
		select {
		case r, ok := <-l.returns:
			returned[r.MessageId] = returned[r.MessageId] || ok
			more = ok
		default:
			more = false
		}
	}
	for i, m := range wave {
		if !confirms[i].Acked() || returned[m.ID] {
			return i
		}
	}
	return len(wave)
}

// cause is why the broker closed the channel or the connection, if it did, or else err.
func (l *link) cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if l.channel.IsClosed() {
		select {
		case e := <-l.closes:
			if e != nil {
				return e
			}
		case <-ctx.Done():
		}
	}
	return err
}

func publishing(m target.Message) amqp091.Publishing {
	p := amqp091.Publishing{
		Headers:      amqp091.Table{"bucket": m.Bucket},
		ContentType:  "application/json",
		DeliveryMode: amqp091.Persistent,
		Timestamp:    m.Time,
		AppId:        "cairn",
		MessageId:    m.ID,
		Type:         m.Event,
		Body:         m.Body,
	}
	return p
}
