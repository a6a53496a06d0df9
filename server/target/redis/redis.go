// Package redis appends events to a Redis stream.
//
// Messages go in transactions of many XADDs, so that either all of one are in the stream, in order, or none is. An entry has the fields
// id, bucket, key, event, time and body. Redis keeps repeats: a reader that minds knows them by their id. What is acknowledged is
// as durable as the server is configured to be (appendfsync, replicas).
//
// A call whose context ends before the server has answered closes the client's connections; the next call makes new ones.
package redis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

// Config says where and how.
type Config struct {
	Address string // HOST:PORT
	DB      int    // default 0
	Stream  string // the key of the stream; it is made by the first message
	MaxLen  int64  // about how many entries the stream keeps, the oldest going first; default 0: all

	User, Password string // of an ACL; with the password alone the user is "default"

	TLS     *dialtls.Config // default: none
	Window  int             // messages in a transaction, 1 to 1000; default 100
	Timeout time.Duration   // of connecting, and of each transaction; default 10 s
}

const (
	windowMax   = 1000
	windowBytes = 4 << 20 // a transaction takes no further message beyond it
)

// Validate reports what is wrong.
func (c *Config) Validate() error {
	if host, port, err := net.SplitHostPort(c.Address); err != nil || host == "" || port == "" || strings.ContainsAny(c.Address, ",/@ ") {
		return errors.New("redis: give the address as HOST:PORT")
	}
	switch {
	case c.Stream == "":
		return errors.New("redis: name the stream's key")
	case c.DB < 0:
		return errors.New("redis: the database's number is negative")
	case c.MaxLen < 0:
		return errors.New("redis: the stream's length is negative")
	case c.User != "" && c.Password == "":
		return errors.New("redis: there is a user without a password")
	case c.Window < 0 || c.Window > windowMax:
		return fmt.Errorf("redis: a transaction has 1 to %d messages", windowMax)
	case c.Timeout < 0:
		return errors.New("redis: the timeout is negative")
	case c.TLS != nil:
		return c.TLS.Validate()
	}
	return nil
}

type appender struct {
	conf Config
	opts goredis.Options

	mu     sync.Mutex
	client *goredis.Client // nil: none now
	end    bool
}

// Open makes the target. It connects to nobody yet.
func Open(c Config) (target.Target, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Window == 0 {
		c.Window = 100
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	a := &appender{conf: c, opts: goredis.Options{
		Addr: c.Address, DB: c.DB, Username: c.User, Password: c.Password, ClientName: "cairn",
		DialTimeout: c.Timeout, ReadTimeout: c.Timeout, WriteTimeout: c.Timeout, PoolTimeout: c.Timeout,
		ContextTimeoutEnabled: true,
		MaxRetries:            -1, // whoever sends does it, knowing what was acknowledged
		DialerRetries:         1,
		PoolSize:              16,
		DisableIdentity:       true,
		// Notifications of maintenance need a server that has them, and goroutines.
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}}
	if c.TLS != nil {
		tls, err := c.TLS.Client()
		if err != nil {
			return nil, fmt.Errorf("redis: %w", err)
		}
		if tls.ServerName == "" {
			if tls.ServerName, _, err = net.SplitHostPort(c.Address); err != nil {
				return nil, fmt.Errorf("redis: %w", err)
			}
		}
		a.opts.TLSConfig = tls
	}
	return a, nil
}

func (a *appender) get() (*goredis.Client, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.end {
		return nil, errors.New("redis: closed")
	}
	if a.client == nil {
		opts := a.opts // the client keeps and changes it
		a.client = goredis.NewClient(&opts)
	}
	return a.client, nil
}

// abandon closes a client's connections, which ends what waits on them. Other calls that share it are made again by whoever made them.
func (a *appender) abandon(cl *goredis.Client) {
	a.mu.Lock()
	if a.client == cl {
		a.client = nil
	}
	a.mu.Unlock()
	cl.Close()
}

// do runs one exchange with the server and ends it when ctx does: the library waits for an answer until its time limit otherwise.
func (a *appender) do(ctx context.Context, exchange func(context.Context, *goredis.Client) error) error {
	if ended := context.Cause(ctx); ended != nil {
		return ended
	}
	cl, err := a.get()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, a.conf.Timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { a.abandon(cl) })
	err = exchange(limited, cl)
	if !stop() {
		// It may not have begun yet: a call that comes now must not find the client that it closes.
		a.abandon(cl)
	}
	if ended := context.Cause(ctx); ended != nil && err != nil {
		return ended
	}
	return a.explain(err)
}

func (a *appender) Send(ctx context.Context, batch []target.Message) (int, error) {
	acked := 0
	for acked < len(batch) {
		part := batch[acked : acked+chunk(batch[acked:], a.conf.Window)]
		if err := a.do(ctx, func(ctx context.Context, cl *goredis.Client) error { return a.transact(ctx, cl, part) }); err != nil {
			return acked, err
		}
		acked += len(part)
	}
	return acked, nil
}

// chunk answers how many messages the next transaction has.
func chunk(batch []target.Message, limit int) int {
	n, size := 0, 0
	for n < min(len(batch), limit) {
		size += len(batch[n].Body)
		if n > 0 && size > windowBytes {
			break
		}
		n++
	}
	return n
}

func (a *appender) transact(ctx context.Context, cl *goredis.Client, part []target.Message) error {
	cmds, err := cl.TxPipelined(ctx, func(tx goredis.Pipeliner) error {
		for _, m := range part {
			tx.XAdd(ctx, &goredis.XAddArgs{Stream: a.conf.Stream, MaxLen: a.conf.MaxLen, Approx: a.conf.MaxLen > 0, Values: []any{
				"id", m.ID, "bucket", m.Bucket, "key", m.Key, "event", m.Event, "time", m.Time.UTC().Format(time.RFC3339Nano), "body", m.Body,
			}})
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, c := range cmds {
		if c.Err() != nil {
			return c.Err()
		}
	}
	return nil
}

func (a *appender) explain(err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	for prefix, what := range map[string]string{
		"WRONGTYPE": "the key is something else than a stream: remove it or name another: ",
		"NOAUTH":    "give a password: ",
		"WRONGPASS": "check user and password: ",
		"NOPERM":    "allow us PING, TYPE, MULTI, EXEC and XADD on the key: ",
		"READONLY":  "this is a replica: give the master's address: ",
		"OOM":       "the server's memory is full: raise maxmemory or give the stream a length: ",
		"MOVED":     "the key belongs to another node of a cluster: give that one's address: ",
	} {
		if goredis.HasErrorPrefix(err, prefix) {
			hint = what
		}
	}
	return fmt.Errorf("redis: %s%w", hint, err)
}

// Check asks for the key's type.
func (a *appender) Check(ctx context.Context) error {
	return a.do(ctx, func(ctx context.Context, cl *goredis.Client) error {
		if err := cl.Ping(ctx).Err(); err != nil {
			return err
		}
		kind, err := cl.Type(ctx, a.conf.Stream).Result()
		if err != nil {
			return err
		}
		if kind != "stream" && kind != "none" {
			return fmt.Errorf("the key %q is a %s and no stream: remove it or name another", a.conf.Stream, kind)
		}
		return nil
	})
}

func (a *appender) Close() error {
	a.mu.Lock()
	cl := a.client
	a.client, a.end = nil, true
	a.mu.Unlock()
	if cl != nil {
		cl.Close()
	}
	return nil
}
