//go:build brokers

package amqp

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"cairn/server/target"
	"cairn/test/brokers"
)

const sizeMax = 4096 // bytes of a message that the tests' broker takes

// suite is a broker and a connection to look at it with.
type suite struct {
	broker  *brokers.RabbitMQ
	conn    *amqp091.Connection
	channel *amqp091.Channel
}

func (s *suite) connect(t *testing.T) {
	t.Helper()
	var err error
	if s.conn, err = amqp091.Dial("amqp://guest:guest@" + s.broker.Address + "/"); err != nil {
		t.Fatal(err)
	}
	if s.channel, err = s.conn.Channel(); err != nil {
		t.Fatal(err)
	}
}

// queue declares a durable queue.
func (s *suite) queue(t *testing.T, name string, args amqp091.Table) {
	t.Helper()
	if _, err := s.channel.QueueDeclare(name, true, false, false, false, args); err != nil {
		t.Fatal(err)
	}
}

// drain answers what is in a queue and empties it.
func (s *suite) drain(t *testing.T, queue string) (all []amqp091.Delivery) {
	t.Helper()
	for {
		d, ok, err := s.channel.Get(queue, true)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		all = append(all, d)
	}
}

func ids(all []amqp091.Delivery) (ids []string) {
	for _, d := range all {
		ids = append(ids, d.MessageId)
	}
	return ids
}

func (s *suite) open(t *testing.T, c Config) target.Target {
	t.Helper()
	c.Address = s.broker.Address
	to, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
	return to
}

// messages are n, of as many keys as given in turn.
func messages(n, keys int) []target.Message {
	all := make([]target.Message, n)
	for i := range all {
		all[i] = target.Message{ID: fmt.Sprint("id", i), Bucket: "b", Key: fmt.Sprint("k", i%keys), Event: "ObjectCreated:Put", Time: time.Unix(int64(i), 0), Body: fmt.Appendf(nil, `{"n":%d}`, i)}
	}
	return all
}

func isRejected(err error) bool {
	var r *target.Rejected
	return errors.As(err, &r)
}

func TestRabbitMQ(t *testing.T) {
	s := &suite{broker: brokers.StartRabbitMQ(t, fmt.Sprintf("max_message_size = %d\n", sizeMax))}
	s.connect(t)
	for name, test := range map[string]func(*testing.T, *suite){
		"order": testOrder, "unroutable": testUnroutable, "too large": testTooLarge, "full": testFull, "missing": testMissing,
		"password": testPassword, "concurrent": testConcurrent,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
	t.Run("restart", func(t *testing.T) { testRestart(t, s) }) // last: the suite's connection is lost
}

func testOrder(t *testing.T, s *suite) {
	s.queue(t, "order", nil)
	to := s.open(t, Config{RoutingKey: "order"})
	if err := to.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	batch := messages(200, 7)
	if n, err := to.Send(t.Context(), batch); n != 200 || err != nil {
		t.Fatal(n, err)
	}
	all := s.drain(t, "order")
	if len(all) != 200 {
		t.Fatal(len(all))
	}
	for i, d := range all {
		if m := batch[i]; d.MessageId != m.ID || string(d.Body) != string(m.Body) || d.DeliveryMode != amqp091.Persistent || d.Type != m.Event || !d.Timestamp.Equal(m.Time) || d.Headers["bucket"] != "b" {
			t.Fatalf("message %d: %+v", i, d)
		}
	}
}

func testUnroutable(t *testing.T, s *suite) {
	if err := s.channel.ExchangeDeclare("lonely", "topic", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	to := s.open(t, Config{Exchange: "lonely", RoutingKey: "events.s3"})
	if err := to.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := to.Send(t.Context(), messages(5, 5)); n != 0 || err == nil || isRejected(err) || !strings.Contains(err.Error(), "no queue") {
		t.Fatal(n, err)
	}
	s.queue(t, "bound", nil)
	if err := s.channel.QueueBind("bound", "events.*", "lonely", false, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := to.Send(t.Context(), messages(5, 5)); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	if got := ids(s.drain(t, "bound")); !slices.Equal(got, []string{"id0", "id1", "id2", "id3", "id4"}) {
		t.Error(got)
	}
}

func testTooLarge(t *testing.T, s *suite) {
	s.queue(t, "large", nil)
	to := s.open(t, Config{RoutingKey: "large"})
	batch := messages(5, 5)
	batch[2].Body = bytes.Repeat([]byte("1"), sizeMax+1)
	n, err := to.Send(t.Context(), batch)
	if n != 2 || !isRejected(err) {
		t.Fatal(n, err)
	}
	if n, err := to.Send(t.Context(), batch[3:]); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	seen := map[string]bool{}
	for _, id := range ids(s.drain(t, "large")) {
		seen[id] = true // once or more
	}
	if len(seen) != 4 || seen["id2"] {
		t.Error(seen)
	}
}

func testFull(t *testing.T, s *suite) {
	s.queue(t, "full", amqp091.Table{"x-max-length": 3, "x-overflow": "reject-publish"})
	to := s.open(t, Config{RoutingKey: "full"})
	batch := messages(6, 1) // one key: one after the other
	n, err := to.Send(t.Context(), batch)
	if n != 3 || err == nil || isRejected(err) {
		t.Fatal(n, err)
	}
	got := ids(s.drain(t, "full"))
	if n, err := to.Send(t.Context(), batch[n:]); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if got = append(got, ids(s.drain(t, "full"))...); !slices.Equal(got, []string{"id0", "id1", "id2", "id3", "id4", "id5"}) {
		t.Error(got)
	}
}

func testMissing(t *testing.T, s *suite) {
	for _, c := range []Config{{RoutingKey: "none"}, {Exchange: "none"}, {VHost: "none", RoutingKey: "q"}} {
		to := s.open(t, c)
		if err := to.Check(t.Context()); err == nil {
			t.Errorf("%+v passes the check", c)
		}
		if n, err := to.Send(t.Context(), messages(3, 3)); n != 0 || err == nil || isRejected(err) {
			t.Errorf("%+v: %d, %v", c, n, err)
		}
	}
}

func testPassword(t *testing.T, s *suite) {
	to := s.open(t, Config{User: "guest", Password: "hunter2", RoutingKey: "q"})
	if err := to.Check(t.Context()); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
	if n, err := to.Send(t.Context(), messages(1, 1)); n != 0 || err == nil || isRejected(err) {
		t.Error(n, err)
	}
}

func testConcurrent(t *testing.T, s *suite) {
	s.queue(t, "concurrent", nil)
	to := s.open(t, Config{RoutingKey: "concurrent"})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if n, err := to.Send(t.Context(), messages(50, 10)); n != 50 || err != nil {
				t.Error(n, err)
			}
			if err := to.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := len(s.drain(t, "concurrent")); got != 200 {
		t.Error(got)
	}
}

func testRestart(t *testing.T, s *suite) {
	s.queue(t, "restart", nil)
	to := s.open(t, Config{RoutingKey: "restart"})
	if n, err := to.Send(t.Context(), messages(100, 10)); n != 100 || err != nil {
		t.Fatal(n, err)
	}
	s.broker.Stop()
	if n, err := to.Send(t.Context(), messages(10, 10)); n != 0 || err == nil || isRejected(err) {
		t.Fatal(n, err)
	}
	if err := to.Check(t.Context()); err == nil {
		t.Error("a broker that is away passes the check")
	}
	s.broker.Start()
	s.connect(t)
	if n, err := to.Send(t.Context(), messages(10, 10)); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	if got := len(s.drain(t, "restart")); got != 110 {
		t.Errorf("%d messages; those confirmed outlive a crash", got)
	}
}
