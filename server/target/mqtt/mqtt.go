// Package mqtt delivers events to a topic of an MQTT 5 broker with quality of service 1.
//
// A message counts as delivered when the broker's PUBACK says so. One that matches no subscription is dropped by the broker, and most say so: it
// counts as not delivered, else events were lost before anybody subscribes.
//
// Messages go one by one, each after the PUBACK of the one before; calls of Send share a connection and take turns. The
// connection keeps no session: what was not acknowledged is for the caller to send again, and for nobody else.
package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

// Config says where the broker is and what is published there.
type Config struct {
	Address            string          // host:port
	User               string          // may be empty
	Password           string          // may be empty; never part of an error
	TLS                *dialtls.Config // nil: TCP without TLS
	Topic              string          // without wildcards
	AllowNoSubscribers bool            // a message that the broker drops because nobody subscribes counts as delivered
	Timeout            time.Duration   // for connecting, and for each message to be acknowledged; 10 s if 0
}

const (
	defaultTimeout = 10 * time.Second
	topicMax       = 65535   // bytes of MQTT's strings
	keepAlive      = 30      // seconds
	packetMax      = 1 << 16 // bytes of what the broker may send: it has nothing to tell but acknowledgements
	headMax        = 64      // bytes of a PUBLISH packet beside its strings and payload
)

// Validate reports what is wrong with the configuration and what to do about it.
func (c Config) Validate() error {
	if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" {
		return fmt.Errorf("mqtt: the address %q is not host:port; give the broker's, as mqtt.example.com:1883", c.Address)
	}
	if c.Topic == "" || len(c.Topic) > topicMax || strings.ContainsAny(c.Topic, "+#\x00") || !utf8.ValidString(c.Topic) {
		return fmt.Errorf("mqtt: %q is no topic to publish to; give UTF-8 of 1 to %d bytes without +, # and NUL", c.Topic, topicMax)
	}
	if len(c.User) > topicMax || len(c.Password) > topicMax || !utf8.ValidString(c.User) || strings.ContainsRune(c.User, 0) {
		return fmt.Errorf("mqtt: user or password cannot be sent; give at most %d bytes, the user in UTF-8 without NUL", topicMax)
	}
	if c.Timeout < 0 {
		return errors.New("mqtt: the timeout is negative; give a positive one, or 0 for 10 s")
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
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	b := &broker{config: c, turn: target.NewTurn()}
	if c.TLS != nil {
		var err error
		if b.tls, err = c.TLS.Client(); err != nil {
			return nil, fmt.Errorf("mqtt: %w", err)
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
	for _, m := range batch {
		if err := b.send(ctx, m); err != nil {
			var rejected *target.Rejected
			if errors.As(err, &rejected) {
				return acked, err
			}
			return acked, fmt.Errorf("mqtt: %s: %w", b.config.Address, err)
		}
		acked++
	}
	return acked, nil
}

func (b *broker) send(ctx context.Context, m target.Message) (err error) {
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	if b.link != nil && b.link.lost() {
		b.drop()
	}
	if b.link == nil {
		if b.link, err = dial(ctx, b.config, b.tls); err != nil {
			return err
		}
	}
	answered, err := b.link.publish(ctx, b.config, m)
	if !answered {
		b.drop()
	}
	return err
}

func (b *broker) drop() {
	if b.link != nil {
		b.link.raw.Close()
		b.link = nil
	}
}

// Check connects anew: the broker is there, lets us in and offers what is needed. Whether we may publish to the topic and whether somebody
// subscribes to it shows only when an event is sent.
func (b *broker) Check(ctx context.Context) error {
	if err := b.turn.Take(ctx); err != nil {
		return err
	}
	b.turn.Give()
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	l, err := dial(ctx, b.config, b.tls)
	if err != nil {
		return fmt.Errorf("mqtt: %s: %w; see that the broker runs and speaks MQTT 5, and that address, user and password are right", b.config.Address, err)
	}
	l.end()
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

// link is a connection that the broker has accepted.
type link struct {
	raw       net.Conn // closing it ends whatever hangs
	client    *paho.Client
	packetMax uint32          // bytes that the broker takes; 0: it sets no limit
	alive     context.Context // ends with the connection; its cause says why. The client does not wake all that wait for an answer then
}

// disconnected is the broker's reason for ending a connection.
type disconnected struct{ code byte }

func (d disconnected) Error() string {
	return fmt.Sprintf("the broker ended the connection (reason code 0x%02x)", d.code)
}

func dial(ctx context.Context, c Config, secure *tls.Config) (*link, error) {
	raw, err := connect(ctx, c, secure)
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	alive, lost := context.WithCancelCause(context.Background())
	client := paho.NewClient(paho.ClientConfig{
		Conn: packets.NewThreadSafeConn(&bounded{Conn: raw}), PacketTimeout: c.Timeout,
		OnClientError:      func(err error) { lost(fmt.Errorf("the connection is lost: %w", err)) },
		OnServerDisconnect: func(d *paho.Disconnect) { lost(disconnected{d.ReasonCode}) },
	})
	receive, packet := uint16(1), uint32(packetMax)
	ack, err := client.Connect(ctx, &paho.Connect{
		KeepAlive:    keepAlive,
		CleanStart:   true,
		UsernameFlag: c.User != "",
		Username:     c.User,
		PasswordFlag: c.Password != "",
		Password:     []byte(c.Password),
		Properties:   &paho.ConnectProperties{ReceiveMaximum: &receive, MaximumPacketSize: &packet, RequestProblemInfo: true},
	})
	if err != nil {
		lost(err)
		raw.Close()
		if ack != nil {
			return nil, fmt.Errorf("the broker does not accept the connection (reason code 0x%02x)", ack.ReasonCode)
		}
		return nil, errors.Join(err, ctx.Err())
	}
	l := &link{raw: raw, client: client, alive: alive}
	if p := ack.Properties; p != nil {
		if p.MaximumPacketSize != nil {
			l.packetMax = *p.MaximumPacketSize
		}
		if p.MaximumQoS != nil && *p.MaximumQoS < 1 {
			l.end()
			return nil, errors.New("the broker offers no quality of service 1: it acknowledges nothing; allow it there")
		}
	}
	return l, nil
}

func connect(ctx context.Context, c Config, secure *tls.Config) (net.Conn, error) {
	if secure == nil {
		return new(net.Dialer).DialContext(ctx, "tcp", c.Address)
	}
	return (&tls.Dialer{Config: secure}).DialContext(ctx, "tcp", c.Address)
}

// bounded reads no packet that is longer than we told the broker we take. The client would make room for whatever length it is told.
type bounded struct {
	net.Conn
	inside bool // of a packet's header, behind its first byte
	length int  // as far as the header has said
	shift  int
	left   int // bytes of the packet behind its header
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if skip := min(b.left, len(rest)); skip > 0 {
			b.left -= skip
			rest = rest[skip:]
			continue
		}
		if !b.header(rest[0]) {
			return 0, fmt.Errorf("the broker sends a packet of more than %d bytes, or does not speak MQTT", packetMax)
		}
		rest = rest[1:]
	}
	return n, err
}

// header takes the next byte of a header, and refuses one that says too much.
func (b *bounded) header(c byte) bool {
	if !b.inside {
		b.inside, b.length, b.shift = true, 0, 0
		return true
	}
	b.length |= int(c&0x7f) << b.shift
	b.shift += 7
	if b.length > packetMax || b.shift > 28 {
		return false
	}
	if c&0x80 == 0 {
		b.inside, b.left = false, b.length
	}
	return true
}

// lost tells a connection that has ended meanwhile.
func (l *link) lost() bool {
	select {
	case <-l.client.Done():
		return true
	default:
		return l.alive.Err() != nil
	}
}

// end says goodbye if that can be done at once.
func (l *link) end() {
	_ = l.raw.SetWriteDeadline(time.Now().Add(time.Second)) // nothing is under way: it does not matter whether it arrives
	_ = l.client.Disconnect(&paho.Disconnect{ReasonCode: packets.DisconnectNormalDisconnection})
	l.raw.Close()
}

// publish sends a message and reports whether the connection can go on being used, and why the message is not delivered.
func (l *link) publish(ctx context.Context, c Config, m target.Message) (answered bool, err error) {
	p := publish(c, m)
	if size := packetSize(p); l.packetMax != 0 && size > int64(l.packetMax) {
		return true, &target.Rejected{Err: fmt.Errorf("mqtt: %s: the packet has %d bytes, the broker takes %d", c.Address, size, l.packetMax)}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.alive, func() { cancel(context.Cause(l.alive)) })()
	stop := context.AfterFunc(ctx, func() { l.raw.Close() }) // writing does not look at ctx
	defer func() { answered = stop() && answered }()         // it may be about to close what the next message would use
	response, err := l.client.Publish(ctx, p)
	if response == nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		var d disconnected
		if errors.As(err, &d) && d.code == packets.DisconnectPacketTooLarge {
			return false, &target.Rejected{Err: fmt.Errorf("mqtt: %s: the message is too large: %w", c.Address, err)}
		}
		return false, fmt.Errorf("not acknowledged: %w", err)
	}
	switch code := response.ReasonCode; {
	case code == packets.PubackNoMatchingSubscribers && !c.AllowNoSubscribers:
		return true, fmt.Errorf("nobody subscribes to topic %q, so the broker dropped the message: subscribe with a session that outlives connections", c.Topic)
	case code < 0x80:
		return true, nil
	case code == packets.PubackPayloadFormatInvalid:
		return true, &target.Rejected{Err: fmt.Errorf("mqtt: %s: the broker finds the payload malformed (reason code 0x%02x)", c.Address, code)}
	default:
		return true, fmt.Errorf("topic %q: the broker does not take the message: %s (reason code 0x%02x)", c.Topic, (&packets.Puback{ReasonCode: code}).Reason(), code)
	}
}

func publish(c Config, m target.Message) *paho.Publish {
	utf8 := byte(1)
	return &paho.Publish{
		QoS:     1,
		Topic:   c.Topic,
		Payload: m.Body,
		Properties: &paho.PublishProperties{
			ContentType:   "application/json",
			PayloadFormat: &utf8,
			User: paho.UserProperties{
				{Key: "id", Value: m.ID},
				{Key: "bucket", Value: m.Bucket},
				{Key: "event", Value: m.Event},
				{Key: "time", Value: m.Time.UTC().Format(time.RFC3339Nano)},
			},
		},
	}
}

// packetSize is at least what the packet has on the wire, and at most headMax more.
func packetSize(p *paho.Publish) int64 {
	size := headMax + len(p.Topic) + len(p.Payload) + len(p.Properties.ContentType)
	for _, u := range p.Properties.User {
		size += len(u.Key) + len(u.Value)
	}
	return int64(size)
}
