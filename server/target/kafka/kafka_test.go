package kafka_test

import (
	"context"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"cairn/server/target"
	"cairn/server/target/dialtls"
	"cairn/server/target/kafka"
	"cairn/server/target/targettest"
)

const topic = "cairn.events"

// renamed is a listener that says it were at the proxy's address, which is what the broker then tells clients.
type renamed struct {
	net.Listener
	addr net.Addr
}

func (l renamed) Addr() net.Addr { return l.addr }

func start(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.SeedTopics(3, topic)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// held answers the records of all partitions, one partition after the other.
func held(t *testing.T, c *kfake.Cluster) []*kgo.Record {
	t.Helper()
	want := map[int32]kgo.Offset{}
	left := 0
	for _, p := range c.PartitionInfos(topic) {
		want[p.Partition] = kgo.NewOffset().AtStart()
		left += int(p.HighWatermark)
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: want}), kgo.FetchMaxWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all []*kgo.Record
	for left > len(all) {
		fetches := cl.PollFetches(ctx)
		if ctx.Err() != nil {
			t.Fatalf("%d of %d records: %v", len(all), left, fetches.Errors())
		}
		all = append(all, fetches.Records()...)
	}
	slices.SortStableFunc(all, func(a, b *kgo.Record) int {
		if a.Partition != b.Partition {
			return int(a.Partition - b.Partition)
		}
		return int(a.Offset - b.Offset)
	})
	return all
}

func header(r *kgo.Record, key string) string {
	for _, h := range r.Headers {
		if h.Key == key {
			return string(h.Value)
		}
	}
	return ""
}

func TestConformance(t *testing.T) {
	targettest.Run(t, harness(20<<10)) // above our limit
}

func TestRefusedByTopic(t *testing.T) {
	targettest.Refused(t, harness(9<<10)) // above the topic's limit
}

func harness(refused int) targettest.Harness {
	body := make([]byte, refused)
	rand.NewChaCha8([32]byte{}).Read(body) // compression makes nothing of it
	return targettest.Harness{
		Stacks: []string{"kgo.(*Client)", "kgo.(*broker", "kgo.(*sink)"},
		Start: func(t *testing.T) *targettest.Broker {
			proxy := targettest.NewProxy(t)
			c := start(t, kfake.BrokerConfigs(map[string]string{"message.max.bytes": "8192"}), kfake.ListenFn(func(network, address string) (net.Listener, error) {
				ln, err := net.Listen(network, address)
				if err != nil {
					return nil, err
				}
				proxy.To(ln.Addr().String())
				return renamed{ln, proxy.NetAddr()}, nil
			}))
			return &targettest.Broker{
				Proxy: proxy,
				Open: func(t *testing.T, timeout time.Duration) target.Target {
					return open(t, kafka.Config{Brokers: []string{proxy.Addr()}, Topic: topic, MaxMessageBytes: 16 << 10, Timeout: timeout})
				},
				Taken: func(t *testing.T) (ids []string) {
					for _, r := range held(t, c) {
						ids = append(ids, header(r, "cairn-id"))
					}
					return ids
				},
				Unwell: func(t *testing.T) {
					if err := c.DeleteTopic(topic); err != nil {
						t.Fatal(err)
					}
				},
				Refused: body,
			}
		},
	}
}

func open(t *testing.T, c kafka.Config) target.Target {
	t.Helper()
	tgt, err := kafka.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return tgt
}

func closing(t *testing.T, c kafka.Config) target.Target {
	t.Helper()
	tgt := open(t, c)
	t.Cleanup(func() { tgt.Close() })
	return tgt
}

func some(n int) (batch []target.Message) {
	for i := range n {
		id := strconv.Itoa(i)
		batch = append(batch, target.Message{ID: id, Bucket: "b", Key: "k" + id, Event: "ObjectTagging:Put", Time: time.UnixMilli(1_800_000_000_123), Body: []byte(`{"Records":[]}`)})
	}
	return batch
}

func TestRecord(t *testing.T) {
	c := start(t)
	tgt := closing(t, kafka.Config{Brokers: c.ListenAddrs(), Topic: topic})
	if n, err := tgt.Send(t.Context(), some(1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	all := held(t, c)
	if len(all) != 1 {
		t.Fatalf("%d records", len(all))
	}
	r := all[0]
	if string(r.Key) != "b/k0" || string(r.Value) != `{"Records":[]}` || header(r, "cairn-id") != "0" || header(r, "cairn-event") != "ObjectTagging:Put" ||
		!r.Timestamp.Equal(time.UnixMilli(1_800_000_000_123)) {
		t.Errorf("%+v", r)
	}
}

// TestLibraryRepeats loses the answer to a produce request, and a leader on the way: the library asks again, and each record is there once.
func TestLibraryRepeats(t *testing.T) {
	c := start(t)
	tgt := closing(t, kafka.Config{Brokers: c.ListenAddrs(), Topic: topic})
	// Done, and answered as if it may not be.
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend})
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition})
	if n, err := tgt.Send(t.Context(), some(20)); n != 20 || err != nil {
		t.Fatal(n, err)
	}
	if all := held(t, c); len(all) != 20 {
		t.Errorf("%d records, 20 were sent", len(all))
	}
}

// TestGoodWithTooLarge has a batch of records refused as too large, none of which is too large alone.
func TestGoodWithTooLarge(t *testing.T) {
	c := start(t, kfake.SeedTopics(1, topic))
	tgt := closing(t, kafka.Config{Brokers: c.ListenAddrs(), Topic: topic})
	batch := some(12)
	fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.MessageTooLarge}) // once, whatever is in it
	if n, err := tgt.Send(t.Context(), batch); n != 12 || err != nil {
		t.Fatal(n, err)
	}
	if fault.Hits() != 1 {
		t.Error("nothing was refused")
	}
	seen := map[string]bool{}
	for _, r := range held(t, c) {
		seen[header(r, "cairn-id")] = true
	}
	if len(seen) != 12 {
		t.Errorf("%d are there", len(seen))
	}
}

func TestNoTopic(t *testing.T) {
	c := start(t, kfake.AllowAutoTopicCreation())
	tgt := closing(t, kafka.Config{Brokers: c.ListenAddrs(), Topic: "elsewhere"})
	if err := tgt.Check(t.Context()); err == nil || !strings.Contains(err.Error(), `"elsewhere"`) {
		t.Error(err)
	}
	if n, err := tgt.Send(t.Context(), some(1)); n != 0 || err == nil || !strings.Contains(err.Error(), `"elsewhere"`) {
		t.Error(n, err)
	}
	if c.TopicInfo("elsewhere") != nil {
		t.Error("the topic was made")
	}
}

// TestNobodyThere says in its error why there is no answer.
func TestNobodyThere(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	tgt := closing(t, kafka.Config{Brokers: []string{ln.Addr().String()}, Topic: topic, Timeout: 300 * time.Millisecond})
	if n, err := tgt.Send(t.Context(), some(3)); n != 0 || err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(n, err)
	}
	if err := tgt.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
}

func TestCredentials(t *testing.T) {
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			c := start(t, kfake.EnableSASL(), kfake.Superuser(mechanism, "u", "p"))
			for password, ok := range map[string]bool{"p": true, "q": false} {
				tgt := closing(t, kafka.Config{Brokers: c.ListenAddrs(), Topic: topic, SASL: mechanism, User: "u", Password: password, Timeout: 5 * time.Second})
				if err := tgt.Check(t.Context()); (err == nil) != ok {
					t.Errorf("password %s: %v", password, err)
				}
				if !ok {
					continue
				}
				if n, err := tgt.Send(t.Context(), some(1)); n != 1 || err != nil {
					t.Errorf("password %s: %d, %v", password, n, err)
				}
			}
		})
	}
}

func TestTLS(t *testing.T) {
	ca := targettest.NewCA(t)
	c := start(t, kfake.TLS(ca.Server()))
	cert, key := ca.Pair()
	for _, conf := range []struct {
		tls *dialtls.Config
		ok  bool
	}{
		{&dialtls.Config{CAPEM: ca.PEM(), CertPEM: cert, KeyPEM: key}, true},
		{&dialtls.Config{CAPEM: ca.PEM()}, false},
		{&dialtls.Config{CertPEM: cert, KeyPEM: key}, false},
		{nil, false},
	} {
		tgt := closing(t, kafka.Config{Brokers: c.ListenAddrs(), Topic: topic, TLS: conf.tls, Timeout: 500 * time.Millisecond})
		if conf.ok {
			tgt = closing(t, kafka.Config{Brokers: c.ListenAddrs(), Topic: topic, TLS: conf.tls})
		}
		if err := tgt.Check(t.Context()); (err == nil) != conf.ok {
			t.Errorf("%v, want success %v", err, conf.ok)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := func(change func(*kafka.Config)) kafka.Config {
		c := kafka.Config{Brokers: []string{"host:9092"}, Topic: "a.b_c-D9"}
		change(&c)
		return c
	}
	for _, c := range []kafka.Config{
		{},
		ok(func(c *kafka.Config) { c.Brokers = nil }),
		ok(func(c *kafka.Config) { c.Brokers = []string{"host"} }),
		ok(func(c *kafka.Config) { c.Brokers = []string{"a:1,b:2"} }),
		ok(func(c *kafka.Config) { c.Brokers = []string{"u@a:1"} }),
		ok(func(c *kafka.Config) { c.Topic = "" }),
		ok(func(c *kafka.Config) { c.Topic = ".." }),
		ok(func(c *kafka.Config) { c.Topic = "a b" }),
		ok(func(c *kafka.Config) { c.Topic = strings.Repeat("a", 250) }),
		ok(func(c *kafka.Config) { c.User = "u" }),
		ok(func(c *kafka.Config) { c.SASL = "PLAIN" }),
		ok(func(c *kafka.Config) { c.SASL, c.User, c.Password = "GSSAPI", "u", "p" }),
		ok(func(c *kafka.Config) { c.MaxMessageBytes = 100 }),
		ok(func(c *kafka.Config) { c.MaxMessageBytes = 1 << 30 }),
		ok(func(c *kafka.Config) { c.Window = -1 }),
		ok(func(c *kafka.Config) { c.Timeout = -1 }),
		ok(func(c *kafka.Config) { c.TLS = &dialtls.Config{CertPEM: "x"} }),
		ok(func(c *kafka.Config) { c.TLS = &dialtls.Config{CAFile: filepath.Join(t.TempDir(), "none")} }),
	} {
		if _, err := kafka.Open(c); err == nil {
			t.Errorf("%+v is opened", c)
		}
	}
	c := ok(func(c *kafka.Config) { c.MaxMessageBytes = 100 << 20 })
	closing(t, c)
}
