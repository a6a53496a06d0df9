package postgres

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

func good() Config {
	return Config{Address: "db.example.com:5432", Database: "d", User: "u", Password: "secret", Table: "events"}
}

func TestValidate(t *testing.T) {
	c := good()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Config){
		"no port":     func(c *Config) { c.Address = "db.example.com" },
		"port":        func(c *Config) { c.Address = "db.example.com:postgres" },
		"port 0":      func(c *Config) { c.Address = "db.example.com:0" },
		"large port":  func(c *Config) { c.Address = "db.example.com:65536" },
		"no host":     func(c *Config) { c.Address = ":5432" },
		"no database": func(c *Config) { c.Database = "" },
		"no user":     func(c *Config) { c.User = "" },
		"no table":    func(c *Config) { c.Table = "" },
		"long table":  func(c *Config) { c.Table = strings.Repeat("t", nameMax+1) },
		"NUL":         func(c *Config) { c.Schema = "a\x00" },
		"password":    func(c *Config) { c.Password = "a\x00" },
		"timeout":     func(c *Config) { c.Timeout = -1 },
	} {
		c := good()
		change(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := Open(c); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
}

func TestSQL(t *testing.T) {
	c := good()
	c.Schema, c.Table = "pub lic", `ev"; DROP TABLE x; --`
	const name = `"pub lic"."ev""; DROP TABLE x; --"`
	if got, want := c.CreateSQL(), "CREATE TABLE "+name+" (id text PRIMARY KEY, event_time timestamptz NOT NULL, bucket text NOT NULL, key text NOT NULL, event text NOT NULL, body jsonb NOT NULL)"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got, want := c.insertSQL(), "INSERT INTO "+name+" (id, event_time, bucket, key, event, body) VALUES ($1::text, $2::timestamptz, $3::text, $4::text, $5::text, $6::text::jsonb) ON CONFLICT (id) DO NOTHING"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	c.Schema, c.Table = "", "events"
	if got := c.table(); got != `"events"` {
		t.Error(got)
	}
}

// TestDriver: what is not in the configuration comes from nowhere else.
func TestDriver(t *testing.T) {
	for name, value := range map[string]string{
		"PGHOST": "elsewhere", "PGPORT": "1", "PGUSER": "other", "PGPASSWORD": "other", "PGDATABASE": "other", "PGSSLMODE": "require",
		"PGOPTIONS": "-c x=y", "PGAPPNAME": "other", "PGTARGETSESSIONATTRS": "read-write", "PGPASSFILE": "/nowhere",
	} {
		t.Setenv(name, value)
	}
	c := good()
	c.Password = ""
	d, err := c.driver()
	if err != nil {
		t.Fatal(err)
	}
	if d.Host != "db.example.com" || d.Port != 5432 || d.User != "u" || d.Database != "d" || d.Password != "" {
		t.Errorf("%s:%d %s %s %q", d.Host, d.Port, d.User, d.Database, d.Password)
	}
	if d.TLSConfig != nil || len(d.Fallbacks) != 0 || d.ValidateConnect != nil || len(d.RuntimeParams) != 1 {
		t.Errorf("%+v", d.Config)
	}
	c.TLS = &dialtls.Config{}
	if d, err = c.driver(); err != nil || d.TLSConfig.ServerName != "db.example.com" || c.TLS.ServerName != "" {
		t.Error(err, d)
	}
}

func TestText(t *testing.T) {
	for key, want := range map[string]string{"a/ü": "a/ü", "a\x00b": "a\uFFFDb", "a\xffb": "a\uFFFDb"} {
		if got := text(key); got != want {
			t.Errorf("%q: %q, want %q", key, got, want)
		}
	}
}

func TestFaultSaysWhatToRun(t *testing.T) {
	d := &database{config: good()}
	if err := d.fault(&pgconn.PgError{Code: undefinedTable}); !strings.Contains(err.Error(), `CREATE TABLE "events"`) {
		t.Error(err)
	}
}

// TestSilence is of a server that takes the connection and never answers, and of none.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := good()
	c.Address, c.Timeout = l.Addr().String(), 50*time.Millisecond
	to, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	batch := []target.Message{{ID: "1", Body: []byte("{}")}}
	if n, err := to.Send(t.Context(), batch); n != 0 || err == nil || strings.Contains(err.Error(), "secret") {
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

// TestGarbage is of servers that speak something else, or promise an answer of a GiB.
func TestGarbage(t *testing.T) {
	for _, answer := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "E\x40\x00\x00\x00", "R\x00", ""} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		end := make(chan struct{})
		defer close(end)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Read(make([]byte, 1024))
			_, _ = conn.Write([]byte(answer))
			if len(answer) == 5 { // it says nothing more: what is promised is not waited for
				<-end
			}
		}()
		c := good()
		c.Address = l.Addr().String()
		to, err := Open(c)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := to.Send(t.Context(), []target.Message{{ID: "1", Body: []byte("{}")}}); n != 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%q: %d, %v", answer, n, err)
		}
		if err := to.Close(); err != nil {
			t.Error(err)
		}
	}
}
