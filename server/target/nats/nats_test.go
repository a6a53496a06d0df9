package nats_test

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"cairn/server/target"
	"cairn/server/target/dialtls"
	"cairn/server/target/nats"
	"cairn/server/target/targettest"
)

const subject = "cairn.events"

// start runs a server with JetStream.
func start(t *testing.T, change func(*server.Options)) *server.Server {
	t.Helper()
	opts := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true, MaxPayload: 64 << 10}
	if change != nil {
		change(opts)
	}
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(20 * time.Second) {
		t.Fatal("the server does not start")
	}
	return srv
}

func stream(t *testing.T, srv *server.Server, change func(*jetstream.StreamConfig), opts ...natsgo.Option) jetstream.Stream {
	t.Helper()
	nc, err := natsgo.Connect("", append(opts, natsgo.InProcessServer(srv))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	conf := jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{subject}, MaxMsgSize: 16 << 10}
	if change != nil {
		change(&conf)
	}
	s, err := js.CreateStream(t.Context(), conf)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// held answers the messages of the stream.
func held(t *testing.T, s jetstream.Stream) []*jetstream.RawStreamMsg {
	t.Helper()
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var all []*jetstream.RawStreamMsg
	for seq := info.State.FirstSeq; info.State.Msgs > 0 && seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, m)
	}
	return all
}

func TestConformance(t *testing.T) {
	targettest.Run(t, harness(20<<10)) // above the stream's limit
}

func TestRefusedByServer(t *testing.T) {
	targettest.Refused(t, harness(80<<10)) // above the server's limit
}

func harness(refused int) targettest.Harness {
	return targettest.Harness{
		Stacks: []string{"nats%2ego.(*Conn)", "nats.go/jetstream.(*jetStream)"},
		Start: func(t *testing.T) *targettest.Broker {
			proxy := targettest.NewProxy(t)
			srv := start(t, nil)
			s := stream(t, srv, nil)
			proxy.To(srv.Addr().String())
			return &targettest.Broker{
				Proxy: proxy,
				Open: func(t *testing.T, timeout time.Duration) target.Target {
					return open(t, nats.Config{Servers: []string{proxy.Addr()}, Subject: subject, Window: 16, Timeout: timeout})
				},
				Taken: func(t *testing.T) (ids []string) {
					for _, m := range held(t, s) {
						ids = append(ids, m.Header.Get(jetstream.MsgIDHeader))
					}
					return ids
				},
				Unwell: func(t *testing.T) {
					if err := s.Purge(t.Context()); err != nil {
						t.Fatal(err)
					}
					drop(t, srv)
				},
				Refused: make([]byte, refused),
			}
		},
	}
}

func drop(t *testing.T, srv *server.Server) {
	t.Helper()
	nc, err := natsgo.Connect("", natsgo.InProcessServer(srv))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := js.DeleteStream(t.Context(), "EVENTS"); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, c nats.Config) target.Target {
	t.Helper()
	tgt, err := nats.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return tgt
}

func closing(t *testing.T, c nats.Config) target.Target {
	t.Helper()
	tgt := open(t, c)
	t.Cleanup(func() { tgt.Close() })
	return tgt
}

func one(id string) []target.Message {
	return []target.Message{{ID: id, Bucket: "b", Key: "k", Event: "ObjectRemoved:Delete", Body: []byte(`{"Records":[]}`)}}
}

func TestMessage(t *testing.T) {
	srv := start(t, nil)
	s := stream(t, srv, nil)
	tgt := closing(t, nats.Config{Servers: []string{"nats://" + srv.Addr().String()}, Subject: subject, Stream: "EVENTS"})
	for range 3 { // repeats are dropped and acknowledged
		if n, err := tgt.Send(t.Context(), one("id-1")); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	all := held(t, s)
	if len(all) != 1 {
		t.Fatalf("%d messages", len(all))
	}
	m := all[0]
	if string(m.Data) != `{"Records":[]}` || m.Subject != subject || m.Header.Get("Nats-Msg-Id") != "id-1" ||
		m.Header.Get("Cairn-Event") != "ObjectRemoved:Delete" || m.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%+v", m)
	}
	other := closing(t, nats.Config{Servers: []string{srv.Addr().String()}, Subject: subject, Stream: "OTHER"})
	if n, err := other.Send(t.Context(), one("id-2")); n != 0 || err == nil {
		t.Error(n, err)
	}
	if err := other.Check(t.Context()); err == nil {
		t.Error("the check passes with another stream")
	}
}

// TestFullStream fills a stream that refuses what is beyond its size: that says nothing of the message, and the rest is taken later.
func TestFullStream(t *testing.T) {
	srv := start(t, nil)
	s := stream(t, srv, func(c *jetstream.StreamConfig) { c.MaxMsgs, c.Discard = 3, jetstream.DiscardNew })
	tgt := closing(t, nats.Config{Servers: []string{srv.Addr().String()}, Subject: subject})
	var batch []target.Message
	for i := range 5 {
		batch = append(batch, target.Message{ID: strconv.Itoa(i), Key: strconv.Itoa(i)})
	}
	n, err := tgt.Send(t.Context(), batch)
	if _, rejected := err.(*target.Rejected); n != 3 || err == nil || rejected {
		t.Fatal(n, err)
	}
	if err := s.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := tgt.Send(t.Context(), batch[3:]); n != 2 || err != nil {
		t.Fatal(n, err)
	}
}

func TestNoJetStream(t *testing.T) {
	srv := start(t, func(o *server.Options) { o.JetStream = false })
	tgt := closing(t, nats.Config{Servers: []string{srv.Addr().String()}, Subject: subject})
	if err := tgt.Check(t.Context()); err == nil {
		t.Error("the check passes")
	}
	if n, err := tgt.Send(t.Context(), one("1")); n != 0 || err == nil {
		t.Error(n, err)
	}
}

func TestCredentials(t *testing.T) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := pair.Seed()
	public, _ := pair.PublicKey()
	otherPair, _ := nkeys.CreateUser()
	otherSeed, _ := otherPair.Seed()
	for name, c := range map[string]struct {
		server       func(*server.Options)
		admin        natsgo.Option
		right, wrong nats.Config
	}{
		"user":  {func(o *server.Options) { o.Username, o.Password = "u", "p" }, natsgo.UserInfo("u", "p"), nats.Config{User: "u", Password: "p"}, nats.Config{User: "u", Password: "q"}},
		"token": {func(o *server.Options) { o.Authorization = "tok" }, natsgo.Token("tok"), nats.Config{Token: "tok"}, nats.Config{Token: "kot"}},
		"nkey": {func(o *server.Options) { o.Nkeys = []*server.NkeyUser{{Nkey: public}} }, natsgo.Nkey(public, pair.Sign),
			nats.Config{NKeySeed: string(seed)}, nats.Config{NKeySeed: string(otherSeed)}},
	} {
		t.Run(name, func(t *testing.T) {
			srv := start(t, c.server)
			stream(t, srv, nil, c.admin)
			for _, conf := range []*nats.Config{&c.right, &c.wrong} {
				conf.Servers, conf.Subject = []string{srv.Addr().String()}, subject
			}
			tgt := closing(t, c.right)
			if err := tgt.Check(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n, err := tgt.Send(t.Context(), one("1")); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			tgt = closing(t, c.wrong)
			if err := tgt.Check(t.Context()); err == nil {
				t.Error("let in")
			}
			if n, err := tgt.Send(t.Context(), one("2")); n != 0 || err == nil {
				t.Error(n, err)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	ca := targettest.NewCA(t)
	srv := start(t, func(o *server.Options) { o.TLSConfig, o.TLSVerify = ca.Server(), true })
	stream(t, srv, nil, natsgo.Secure(ca.Client()))
	cert, key := ca.Pair()
	for _, c := range []struct {
		tls dialtls.Config
		ok  bool
	}{
		{dialtls.Config{CAPEM: ca.PEM(), CertPEM: cert, KeyPEM: key}, true},
		{dialtls.Config{CAPEM: ca.PEM()}, false},
		{dialtls.Config{CertPEM: cert, KeyPEM: key}, false},
		{dialtls.Config{Insecure: true, CertPEM: cert, KeyPEM: key}, true},
	} {
		tgt := closing(t, nats.Config{Servers: []string{srv.Addr().String()}, Subject: subject, TLS: &c.tls})
		if err := tgt.Check(t.Context()); (err == nil) != c.ok {
			t.Errorf("%v, want success %v", err, c.ok)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := func(change func(*nats.Config)) nats.Config {
		c := nats.Config{Servers: []string{"host:4222"}, Subject: "a.b"}
		change(&c)
		return c
	}
	creds := filepath.Join(t.TempDir(), "creds")
	if err := os.WriteFile(creds, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []nats.Config{
		{},
		ok(func(c *nats.Config) { c.Servers = nil }),
		ok(func(c *nats.Config) { c.Servers = []string{""} }),
		ok(func(c *nats.Config) { c.Servers = []string{"a:1,b:2"} }),
		ok(func(c *nats.Config) { c.Servers = []string{"http://a:1"} }),
		ok(func(c *nats.Config) {
			c.Servers = []string{(&url.URL{Scheme: "nats", User: url.UserPassword("u", "p"), Host: "a:1"}).String()}
		}),
		ok(func(c *nats.Config) { c.Subject = "" }),
		ok(func(c *nats.Config) { c.Subject = "a.>" }),
		ok(func(c *nats.Config) { c.Subject = "a..b" }),
		ok(func(c *nats.Config) { c.Subject = "a b" }),
		ok(func(c *nats.Config) { c.Stream = "a.b" }),
		ok(func(c *nats.Config) { c.Password = "p" }),
		ok(func(c *nats.Config) { c.User, c.Token = "u", "t" }),
		ok(func(c *nats.Config) { c.CredsFile, c.Token = creds, "t" }),
		ok(func(c *nats.Config) { c.NKeySeed = "SUxyz" }),
		ok(func(c *nats.Config) { c.Window = 5000 }),
		ok(func(c *nats.Config) { c.Timeout = -1 }),
		ok(func(c *nats.Config) { c.TLS = &dialtls.Config{KeyPEM: "x"} }),
		ok(func(c *nats.Config) { c.TLS = &dialtls.Config{CAFile: filepath.Join(creds, "none")} }),
	} {
		if _, err := nats.Open(c); err == nil {
			t.Errorf("%+v is opened", c)
		}
	}
	c := ok(func(c *nats.Config) { c.Servers = []string{"nats://a:1", "tls://b", net.JoinHostPort("::1", "4222")} })
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// TestNoneOvertakes has a stream that has room for a key's second event and not for its first: the second must wait.
func TestNoneOvertakes(t *testing.T) {
	srv := start(t, nil)
	s := stream(t, srv, func(c *jetstream.StreamConfig) { c.MaxBytes, c.Discard = 4<<10, jetstream.DiscardNew })
	tgt := closing(t, nats.Config{Servers: []string{srv.Addr().String()}, Subject: subject})
	batch := []target.Message{
		{ID: "1", Key: "other", Body: []byte("{}")},
		{ID: "2", Key: "k", Body: make([]byte, 8<<10)},
		{ID: "3", Key: "k", Body: []byte("{}")},
	}
	if n, err := tgt.Send(t.Context(), batch); n != 1 || err == nil {
		t.Fatal(n, err)
	}
	if all := held(t, s); len(all) != 1 || all[0].Header.Get("Nats-Msg-Id") != "1" {
		t.Errorf("%d messages are there", len(all))
	}
}
