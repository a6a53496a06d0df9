//go:build brokers

package postgres

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"cairn/server/target"
	"cairn/server/target/dialtls"
	"cairn/test/brokers"
)

// suite is a server and a configuration that leads there.
type suite struct {
	server *brokers.Postgres
	config Config
	roots  string // PEM
}

// exec runs a statement as who may do everything.
func (s *suite) exec(t *testing.T, sql string) {
	t.Helper()
	s.with(t, func(conn *pgx.Conn) error {
		_, err := conn.Exec(t.Context(), sql)
		return err
	})
}

// text answers the one value of a query, a text.
func (s *suite) text(t *testing.T, sql string) (value string) {
	t.Helper()
	s.with(t, func(conn *pgx.Conn) error { return conn.QueryRow(t.Context(), sql).Scan(&value) })
	return value
}

func (s *suite) with(t *testing.T, do func(*pgx.Conn) error) {
	t.Helper()
	d, err := s.config.driver()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if err := do(conn); err != nil {
		t.Fatal(err)
	}
}

// open opens a target that differs from the suite's configuration.
func (s *suite) open(t *testing.T, change func(*Config)) target.Target {
	t.Helper()
	c := s.config
	change(&c)
	to, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Close() })
	return to
}

func messages(n int) []target.Message {
	all := make([]target.Message, n)
	for i := range all {
		all[i] = target.Message{ID: fmt.Sprint("id", i), Bucket: "b", Key: fmt.Sprint("k", i), Event: "ObjectCreated:Put", Time: time.Unix(int64(i), 5000).UTC(), Body: fmt.Appendf(nil, `{"n":%d}`, i)}
	}
	return all
}

func isRejected(err error) bool {
	var r *target.Rejected
	return errors.As(err, &r)
}

func TestServer(t *testing.T) {
	certificate, key := authority(t)
	s := &suite{server: brokers.StartPostgres(t, certificate, key), roots: certificate}
	s.config = Config{Address: s.server.Address, Database: s.server.Database, User: s.server.User, Password: s.server.Password}
	for name, test := range map[string]func(*testing.T, *suite){
		"rows": testRows, "create": testCreate, "rejected": testRejected, "keys": testKeys, "unfit": testUnfit, "permission": testPermission,
		"password": testPassword, "cut": testCut, "concurrent": testConcurrent, "TLS": testTLS,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
	t.Run("restart", func(t *testing.T) { testRestart(t, s) })
}

func testRows(t *testing.T, s *suite) {
	c := s.config
	c.Table = "rows"
	to := s.open(t, func(c *Config) { c.Table = "rows" })
	if err := to.Check(t.Context()); err == nil || !strings.Contains(err.Error(), c.CreateSQL()) {
		t.Fatal(err)
	}
	if n, err := to.Send(t.Context(), messages(3)); n != 0 || err == nil || isRejected(err) || !strings.Contains(err.Error(), c.CreateSQL()) {
		t.Fatal(n, err)
	}
	s.exec(t, c.CreateSQL())
	if err := to.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.text(t, "SELECT count(*)::text FROM rows"); got != "0" {
		t.Errorf("the check inserted %s rows", got)
	}
	if n, err := to.Send(t.Context(), messages(100)); n != 100 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := to.Send(t.Context(), messages(102)); n != 102 || err != nil { // repeats
		t.Fatal(n, err)
	}
	if got := s.text(t, "SELECT count(*)::text FROM rows"); got != "102" {
		t.Errorf("%s rows", got)
	}
	got := s.text(t, `SELECT concat_ws('|', id, to_char(event_time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), bucket, key, event, body->>'n') FROM rows WHERE id = 'id7'`)
	if want := "id7|1970-01-01 00:00:07.000005|b|k7|ObjectCreated:Put|7"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func testCreate(t *testing.T, s *suite) {
	s.exec(t, `CREATE SCHEMA "my ""schema"`)
	name := func(table string) func(*Config) {
		return func(c *Config) { c.Schema, c.Table, c.CreateTable = `my "schema`, table, true }
	}
	if n, err := s.open(t, name("By Send")).Send(t.Context(), messages(3)); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if got := s.text(t, `SELECT count(*)::text FROM "my ""schema"."By Send"`); got != "3" {
		t.Error(got)
	}
	to := s.open(t, name("by check"))
	for range 2 {
		if err := to.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.text(t, `SELECT count(*)::text FROM "my ""schema"."by check"`); got != "0" {
		t.Error(got)
	}
	none := s.open(t, func(c *Config) { c.Schema, c.Table, c.CreateTable = "none", "t", true })
	if err := none.Check(t.Context()); err == nil {
		t.Error("a schema that is not there passes the check")
	}
	if n, err := none.Send(t.Context(), messages(1)); n != 0 || err == nil || isRejected(err) {
		t.Error(n, err)
	}
}

func testRejected(t *testing.T, s *suite) {
	to := s.open(t, func(c *Config) { c.Table, c.CreateTable = "rejected", true })
	batch := messages(6)
	batch[2].Body = []byte(`{"n":`)          // no JSON
	batch[4].Body = []byte(`{"n":"\u0000"}`) // JSON, but not for PostgreSQL
	if n, err := to.Send(t.Context(), batch); n != 2 || !isRejected(err) {
		t.Fatal(n, err)
	}
	if got := s.text(t, "SELECT string_agg(id, ' ' ORDER BY id) FROM rejected"); got != "id0 id1" {
		t.Error(got)
	}
	if n, err := to.Send(t.Context(), batch[2:]); n != 0 || !isRejected(err) {
		t.Fatal(n, err)
	}
	if n, err := to.Send(t.Context(), batch[3:]); n != 1 || !isRejected(err) {
		t.Fatal(n, err)
	}
	if n, err := to.Send(t.Context(), batch[5:]); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if got := s.text(t, "SELECT string_agg(id, ' ' ORDER BY id) FROM rejected"); got != "id0 id1 id3 id5" {
		t.Error(got)
	}
}

func testKeys(t *testing.T, s *suite) {
	to := s.open(t, func(c *Config) { c.Table, c.CreateTable = "keys", true })
	batch := messages(3)
	batch[0].Key, batch[1].Key, batch[2].Key = "a/ü'\"\\", "a\x00", "a\xff"
	if n, err := to.Send(t.Context(), batch); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if got, want := s.text(t, "SELECT string_agg(key, '|' ORDER BY id) FROM keys"), "a/ü'\"\\|a\uFFFD|a\uFFFD"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func testUnfit(t *testing.T, s *suite) {
	s.exec(t, "CREATE TABLE without_unique (id text, event_time timestamptz, bucket text, key text, event text, body jsonb)")
	s.exec(t, "CREATE TABLE without_body (id text PRIMARY KEY, event_time timestamptz, bucket text, key text, event text)")
	s.exec(t, "CREATE TABLE narrow (id text PRIMARY KEY, event_time timestamptz, bucket text, key integer, event text, body jsonb)")
	for _, table := range []string{"without_unique", "without_body", "narrow"} {
		to := s.open(t, func(c *Config) { c.Table, c.CreateTable = table, true })
		if err := to.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "CREATE TABLE") {
			t.Errorf("%s: %v", table, err)
		}
		if n, err := to.Send(t.Context(), messages(2)); n != 0 || err == nil || isRejected(err) {
			t.Errorf("%s: %d, %v", table, n, err)
		}
	}
}

func testPermission(t *testing.T, s *suite) {
	s.exec(t, "CREATE ROLE reader LOGIN PASSWORD 'reader'")
	s.exec(t, "CREATE TABLE guarded (id text PRIMARY KEY, event_time timestamptz, bucket text, key text, event text, body jsonb)")
	reader := func(table string) target.Target {
		return s.open(t, func(c *Config) { c.User, c.Password, c.Table, c.CreateTable = "reader", "reader", table, true })
	}
	if err := reader("guarded").Check(t.Context()); err == nil || !strings.Contains(err.Error(), "grant INSERT") {
		t.Error(err)
	}
	if err := reader("absent").Check(t.Context()); err == nil || !strings.Contains(err.Error(), "CREATE TABLE") {
		t.Error(err)
	}
	s.exec(t, "GRANT INSERT, SELECT ON guarded TO reader")
	to := reader("guarded")
	if err := to.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if n, err := to.Send(t.Context(), messages(2)); n != 2 || err != nil {
		t.Error(n, err)
	}
}

func testPassword(t *testing.T, s *suite) {
	to := s.open(t, func(c *Config) { c.Table, c.Password = "rows", "hunter2" })
	if err := to.Check(t.Context()); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
	if n, err := to.Send(t.Context(), messages(1)); n != 0 || err == nil || isRejected(err) {
		t.Error(n, err)
	}
}

// testCut: a connection that the server ends costs one call at most, and a call that runs into a lock ends with its context.
func testCut(t *testing.T, s *suite) {
	to := s.open(t, func(c *Config) { c.Table, c.CreateTable = "cut", true })
	if n, err := to.Send(t.Context(), messages(1)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	s.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'")
	n, err := to.Send(t.Context(), messages(2))
	if n != 0 || err == nil || isRejected(err) {
		t.Error(n, err)
	}
	if n, err := to.Send(t.Context(), messages(2)); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	s.with(t, func(conn *pgx.Conn) error {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			return err
		}
		if _, err := tx.Exec(t.Context(), "LOCK TABLE cut"); err != nil {
			return err
		}
		short := s.open(t, func(c *Config) { c.Table, c.Timeout = "cut", 200*time.Millisecond })
		if n, err := short.Send(t.Context(), messages(3)); n != 0 || !errors.Is(err, context.DeadlineExceeded) || isRejected(err) {
			t.Error(n, err)
		}
		if err := tx.Rollback(t.Context()); err != nil {
			return err
		}
		if n, err := short.Send(t.Context(), messages(3)); n != 3 || err != nil {
			t.Error(n, err)
		}
		return nil
	})
}

func testConcurrent(t *testing.T, s *suite) {
	to := s.open(t, func(c *Config) { c.Table, c.CreateTable = "concurrent", true })
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if n, err := to.Send(t.Context(), messages(20)); n != 20 || err != nil {
				t.Error(n, err)
			}
			if err := to.Check(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := s.text(t, "SELECT count(*)::text FROM concurrent"); got != "20" {
		t.Error(got)
	}
}

func testTLS(t *testing.T, s *suite) {
	with := func(config *dialtls.Config) target.Target {
		return s.open(t, func(c *Config) { c.Table, c.CreateTable, c.TLS = "tls", true, config })
	}
	if n, err := with(&dialtls.Config{CAPEM: s.roots}).Send(t.Context(), messages(2)); n != 2 || err != nil {
		t.Error(n, err)
	}
	if n, err := with(&dialtls.Config{}).Send(t.Context(), messages(1)); n != 0 || err == nil {
		t.Error("a certificate of nobody is trusted", n, err)
	}
}

func testRestart(t *testing.T, s *suite) {
	to := s.open(t, func(c *Config) { c.Table, c.CreateTable = "restart", true })
	if n, err := to.Send(t.Context(), messages(2)); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	s.server.Stop()
	if n, err := to.Send(t.Context(), messages(3)); n != 0 || err == nil || isRejected(err) {
		t.Fatal(n, err)
	}
	s.server.Start()
	if n, err := to.Send(t.Context(), messages(4)); n != 4 || err != nil {
		t.Fatal(n, err)
	}
	if got := s.text(t, "SELECT count(*)::text FROM restart"); got != "4" {
		t.Error(got)
	}
	// Without TLS now, and a target that asks for it does not do without.
	if n, err := s.open(t, func(c *Config) { c.Table, c.TLS = "restart", &dialtls.Config{CAPEM: s.roots} }).Send(t.Context(), messages(1)); n != 0 || err == nil {
		t.Error(n, err)
	}
}

// authority makes a certificate for 127.0.0.1, its key, and who vouches for it.
func authority(t *testing.T) (certificate, private string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}
