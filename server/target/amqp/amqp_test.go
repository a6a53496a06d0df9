package amqp

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"cairn/server/target"
)

func TestValidate(t *testing.T) {
	good := Config{Address: "rabbit.example.com:5672", Exchange: "e"}
	for name, change := range map[string]func(*Config){
		"as it is":         func(*Config) {},
		"default exchange": func(c *Config) { c.Exchange, c.RoutingKey = "", "queue" },
		"user":             func(c *Config) { c.User, c.Password = "u", "p" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Config){
		"no port":     func(c *Config) { c.Address = "rabbit.example.com" },
		"no host":     func(c *Config) { c.Address = ":5672" },
		"URL":         func(c *Config) { c.Address = "amqp://rabbit.example.com:5672" },
		"no queue":    func(c *Config) { c.Exchange = "" },
		"long key":    func(c *Config) { c.RoutingKey = strings.Repeat("k", shortMax+1) },
		"NUL":         func(c *Config) { c.VHost = "a\x00" },
		"no password": func(c *Config) { c.User = "u" },
		"no user":     func(c *Config) { c.Password = "p" },
		"timeout":     func(c *Config) { c.Timeout = -1 },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := Open(c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestPublishing(t *testing.T) {
	at := time.Unix(7, 0)
	p := publishing(target.Message{ID: "1", Bucket: "b", Key: "k\xff", Event: "ObjectCreated:Put", Time: at, Body: []byte("{}")})
	if p.DeliveryMode != amqp091.Persistent || p.MessageId != "1" || p.Type != "ObjectCreated:Put" || p.ContentType != "application/json" ||
		!p.Timestamp.Equal(at) || p.Headers["bucket"] != "b" || string(p.Body) != "{}" {
		t.Errorf("%+v", p)
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&amqp091.Error{Code: amqp091.PreconditionFailed, Server: true}, true},
		{&amqp091.Error{Code: amqp091.NotFound, Server: true}, false},
		{&amqp091.Error{Code: amqp091.PreconditionFailed}, false},
		{errors.New("lost"), false},
	} {
		if refused(c.err) != c.want {
			t.Errorf("%v: %v", c.err, !c.want)
		}
	}
}

// TestSilence is of a broker that takes the connection and never answers, and of none.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to, err := Open(Config{Address: l.Addr().String(), User: "u", Password: "secret", Exchange: "e", Timeout: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	batch := []target.Message{{ID: "1", Body: []byte("{}")}}
	if n, err := to.Send(t.Context(), batch); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := to.Send(ctx, batch); n != 0 || !errors.Is(err, context.Canceled) {
		t.Error(n, err)
	}
	l.Close()
	if n, err := to.Send(t.Context(), batch); n != 0 || err == nil {
		t.Error(n, err)
	}
	if err := to.Check(t.Context()); err == nil || strings.Contains(err.Error(), "secret") {
		t.Error(err)
	}
	if err := to.Close(); err != nil {
		t.Error(err)
	}
	if _, err := to.Send(t.Context(), batch); !errors.Is(err, target.ErrClosed) {
		t.Error(err)
	}
}
