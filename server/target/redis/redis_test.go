package redis_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"

	"cairn/server/target"
	"cairn/server/target/dialtls"
	"cairn/server/target/redis"
	"cairn/server/target/targettest"
)

const stream = "cairn:events"

// held answers the entries of the stream, each by field.
func held(t *testing.T, srv *miniredis.Miniredis) []map[string]string {
	t.Helper()
	if !srv.Exists(stream) {
		return nil
	}
	entries, err := srv.Stream(stream)
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]string
	for _, e := range entries {
		fields := map[string]string{}
		for i := 0; i+1 < len(e.Values); i += 2 {
			fields[e.Values[i]] = e.Values[i+1]
		}
		all = append(all, fields)
	}
	return all
}

func TestConformance(t *testing.T) {
	targettest.Run(t, targettest.Harness{
		Stacks: nil, // the library has goroutines only while it dials
		Start: func(t *testing.T) *targettest.Broker {
			proxy := targettest.NewProxy(t)
			srv := miniredis.RunT(t)
			proxy.To(srv.Addr())
			return &targettest.Broker{
				Proxy: proxy,
				Open: func(t *testing.T, timeout time.Duration) target.Target {
					return open(t, redis.Config{Address: proxy.Addr(), Stream: stream, Window: 7, Timeout: timeout})
				},
				Taken: func(t *testing.T) (ids []string) {
					for _, e := range held(t, srv) {
						ids = append(ids, e["id"])
					}
					return ids
				},
				Unwell: func(t *testing.T) {
					srv.Del(stream)
					if err := srv.Set(stream, "no stream"); err != nil {
						t.Fatal(err)
					}
				},
			}
		},
	})
}

func open(t *testing.T, c redis.Config) target.Target {
	t.Helper()
	tgt, err := redis.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return tgt
}

func closing(t *testing.T, c redis.Config) target.Target {
	t.Helper()
	tgt := open(t, c)
	t.Cleanup(func() { tgt.Close() })
	return tgt
}

func some(n int) (batch []target.Message) {
	for range n {
		batch = append(batch, target.Message{ID: "id-1", Bucket: "b", Key: "k\xff", Event: "ObjectRemoved:Delete", Time: time.Unix(1_800_000_000, 5), Body: []byte(`{"Records":[]}`)})
	}
	return batch
}

func TestEntry(t *testing.T) {
	srv := miniredis.RunT(t)
	tgt := closing(t, redis.Config{Address: srv.Addr(), Stream: stream, Timeout: 5 * time.Second})
	if n, err := tgt.Send(t.Context(), some(1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	all := held(t, srv)
	if len(all) != 1 {
		t.Fatalf("%d entries", len(all))
	}
	for field, want := range map[string]string{
		"id": "id-1", "bucket": "b", "key": "k\xff", "event": "ObjectRemoved:Delete", "time": "2027-01-15T08:00:00.000000005Z", "body": `{"Records":[]}`,
	} {
		if got := all[0][field]; got != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
}

func TestMaxLen(t *testing.T) {
	srv := miniredis.RunT(t)
	tgt := closing(t, redis.Config{Address: srv.Addr(), Stream: stream, MaxLen: 10})
	if n, err := tgt.Send(t.Context(), some(250)); n != 250 || err != nil {
		t.Fatal(n, err)
	}
	if n := len(held(t, srv)); n != 10 { // this server is exact about it
		t.Errorf("%d entries", n)
	}
}

// TestWrongKey sends to a key that is no stream: nothing is taken, and nothing is refused for what it is.
func TestWrongKey(t *testing.T) {
	srv := miniredis.RunT(t)
	if err := srv.Set(stream, "text"); err != nil {
		t.Fatal(err)
	}
	tgt := closing(t, redis.Config{Address: srv.Addr(), Stream: stream})
	n, err := tgt.Send(t.Context(), some(3))
	if _, rejected := err.(*target.Rejected); n != 0 || err == nil || rejected || !strings.Contains(err.Error(), "name another") {
		t.Fatal(n, err)
	}
	srv.Del(stream)
	if n, err := tgt.Send(t.Context(), some(3)); n != 3 || err != nil {
		t.Fatal(n, err)
	}
}

func TestServerErrors(t *testing.T) {
	srv := miniredis.RunT(t)
	tgt := closing(t, redis.Config{Address: srv.Addr(), Stream: stream})
	for text, hint := range map[string]string{
		"OOM command not allowed when used memory > 'maxmemory'.":  "maxmemory",
		"READONLY You can't write against a read only replica.":    "master",
		"NOPERM this user has no permissions to run the 'xadd'":    "allow us",
		"LOADING Redis is loading the dataset in memory":           "LOADING",
		"ERR something else that nobody has ever heard of, really": "something else",
	} {
		srv.SetError(text)
		if n, err := tgt.Send(t.Context(), some(3)); n != 0 || err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%s: %d, %v", text, n, err)
		}
		if err := tgt.Check(t.Context()); err == nil {
			t.Errorf("%s: the check passes", text)
		}
	}
	srv.SetError("")
	if n, err := tgt.Send(t.Context(), some(3)); n != 3 || err != nil {
		t.Error(n, err)
	}
}

func TestCredentials(t *testing.T) {
	srv := miniredis.RunT(t)
	srv.RequireUserAuth("u", "p")
	srv.RequireAuth("d")
	for _, c := range []struct {
		user, password string
		ok             bool
	}{{"u", "p", true}, {"", "d", true}, {"u", "q", false}, {"", "e", false}, {"", "", false}} {
		tgt := closing(t, redis.Config{Address: srv.Addr(), Stream: stream, User: c.user, Password: c.password})
		n, err := tgt.Send(t.Context(), some(1))
		if (n == 1) != c.ok || (err == nil) != c.ok {
			t.Errorf("%+v: %d, %v", c, n, err)
		}
		if err := tgt.Check(t.Context()); (err == nil) != c.ok {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestTLS(t *testing.T) {
	ca := targettest.NewCA(t)
	srv := miniredis.NewMiniRedis()
	if err := srv.StartTLS(ca.Server()); err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	cert, key := ca.Pair()
	for _, c := range []struct {
		tls *dialtls.Config
		ok  bool
	}{
		{&dialtls.Config{CAPEM: ca.PEM(), CertPEM: cert, KeyPEM: key}, true},
		{&dialtls.Config{CAPEM: ca.PEM()}, false},
		{&dialtls.Config{CertPEM: cert, KeyPEM: key}, false},
		{&dialtls.Config{CAPEM: ca.PEM(), CertPEM: cert, KeyPEM: key, ServerName: "elsewhere"}, false},
		{nil, false},
	} {
		tgt := closing(t, redis.Config{Address: srv.Addr(), Stream: stream, TLS: c.tls, Timeout: 5 * time.Second})
		if err := tgt.Check(t.Context()); (err == nil) != c.ok {
			t.Errorf("%v, want success %v", err, c.ok)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := func(change func(*redis.Config)) redis.Config {
		c := redis.Config{Address: "host:6379", Stream: "s"}
		change(&c)
		return c
	}
	for _, c := range []redis.Config{
		{},
		ok(func(c *redis.Config) { c.Address = "host" }),
		ok(func(c *redis.Config) { c.Address = "redis://host:1" }),
		ok(func(c *redis.Config) { c.Address = "u@host:1" }),
		ok(func(c *redis.Config) { c.Stream = "" }),
		ok(func(c *redis.Config) { c.DB = -1 }),
		ok(func(c *redis.Config) { c.MaxLen = -1 }),
		ok(func(c *redis.Config) { c.User = "u" }),
		ok(func(c *redis.Config) { c.Window = 1001 }),
		ok(func(c *redis.Config) { c.Timeout = -1 }),
		ok(func(c *redis.Config) { c.TLS = &dialtls.Config{CertPEM: "x"} }),
		ok(func(c *redis.Config) { c.TLS = &dialtls.Config{CAFile: filepath.Join(t.TempDir(), "none")} }),
	} {
		if _, err := redis.Open(c); err == nil {
			t.Errorf("%+v is opened", c)
		}
	}
}
