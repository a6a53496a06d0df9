// Package postgres delivers events into a table of a PostgreSQL database, a row for each.
//
// A batch is one transaction. A row that is there already, by id, is left alone: so repeats leave no trace.
//
// Only one call of Send is under way at a time, over one connection.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"cairn/server/target"
	"cairn/server/target/dialtls"
)

// Config says where the database is and into which table rows go.
type Config struct {
	Address     string // host:port
	Database    string
	User        string
	Password    string          // may be empty; never part of an error
	TLS         *dialtls.Config // nil: without TLS
	Schema      string          // of the table; where the user's search_path leads if empty
	Table       string
	CreateTable bool          // make the table if it is not there
	Timeout     time.Duration // for connecting, and for a batch; 10 s if 0
}

const (
	defaultTimeout = 10 * time.Second
	nameMax        = 63 // bytes of PostgreSQL's names; longer ones it cuts
	closeTimeout   = time.Second
	answerMax      = 1 << 20 // bytes of a message of the server: it has nothing large to tell
)

// SQLSTATEs: the standard's of a table that is missing, and classes that blame the values.
const (
	undefinedTable = "42P01"
	duplicateTable = "42P07"
	uniqueConflict = "23505" // of two that create the table at once
	classData      = "22"
	classLimit     = "54"
)

// Validate reports what is wrong with the configuration and what to do about it.
func (c Config) Validate() error {
	if host, _, err := c.hostPort(); err != nil || host == "" {
		return fmt.Errorf("postgres: the address %q is not host:port; give the server's, as db.example.com:5432", c.Address)
	}
	for _, n := range []struct {
		what, value string
		required    bool
	}{{"database", c.Database, true}, {"user", c.User, true}, {"table", c.Table, true}, {"schema", c.Schema, false}} {
		switch {
		case n.required && n.value == "":
			return fmt.Errorf("postgres: no %s; give its name", n.what)
		case len(n.value) > nameMax || strings.ContainsRune(n.value, 0):
			return fmt.Errorf("postgres: %q is no name of a %s; give at most %d bytes, none of them 0", n.value, n.what, nameMax)
		}
	}
	if strings.ContainsRune(c.Password, 0) {
		return errors.New("postgres: the password contains a byte 0; give one without")
	}
	if c.Timeout < 0 {
		return errors.New("postgres: the timeout is negative; give a positive one, or 0 for 10 s")
	}
	if c.TLS != nil {
		return c.TLS.Validate()
	}
	return nil
}

func (c Config) hostPort() (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(c.Address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err == nil && n == 0 {
		err = errors.New("port 0")
	}
	return host, uint16(n), err
}

// table is the quoted name.
func (c Config) table() string {
	if c.Schema == "" {
		return pgx.Identifier{c.Table}.Sanitize()
	}
	return pgx.Identifier{c.Schema, c.Table}.Sanitize()
}

// CreateSQL is the statement that makes the table.
func (c Config) CreateSQL() string {
	return "CREATE TABLE " + c.table() + " (id text PRIMARY KEY, event_time timestamptz NOT NULL, bucket text NOT NULL, " +
		"key text NOT NULL, event text NOT NULL, body jsonb NOT NULL)"
}

func (c Config) insertSQL() string {
	return "INSERT INTO " + c.table() + " (id, event_time, bucket, key, event, body) " +
		"VALUES ($1::text, $2::timestamptz, $3::text, $4::text, $5::text, $6::text::jsonb) ON CONFLICT (id) DO NOTHING"
}

// driver is the driver's configuration. It takes nothing from the environment or from files of the process's user.
func (c Config) driver() (*pgx.ConnConfig, error) {
	host, port, err := c.hostPort()
	if err != nil {
		return nil, err
	}
	d, err := pgx.ParseConfig("host=localhost port=5432 user=cairn dbname=cairn sslmode=disable passfile=/dev/null target_session_attrs=any")
	if err != nil {
		return nil, err
	}
	d.Host, d.Port, d.Database, d.User, d.Password = host, port, c.Database, c.User, c.Password
	d.RuntimeParams = map[string]string{"application_name": "cairn"}
	d.Fallbacks, d.ValidateConnect = nil, nil
	d.ConnectTimeout = c.Timeout
	d.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(answerMax)
		return f
	}
	d.DefaultQueryExecMode = pgx.QueryExecModeExec // without named statements, which poolers between us and the server may lose
	if c.TLS != nil {
		if d.TLSConfig, err = c.TLS.Client(); err != nil {
			return nil, err
		}
		if d.TLSConfig.ServerName == "" {
			d.TLSConfig.ServerName = host
		}
	}
	return d, nil
}

// Open makes a target. The server need not be there: it is connected to on use, and again after every failure.
func Open(c Config) (target.Target, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	d, err := c.driver()
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	return &database{config: c, driver: d, turn: target.NewTurn()}, nil
}

type database struct {
	config Config
	driver *pgx.ConnConfig
	turn   *target.Turn // to use what is below
	conn   *pgx.Conn    // nil if there is none
}

// Send inserts the batch in one transaction. If a row cannot be for what it is, those before it are inserted in one of their own.
func (d *database) Send(ctx context.Context, batch []target.Message) (acked int, err error) {
	if len(batch) == 0 {
		return 0, nil
	}
	if err := d.turn.Take(ctx); err != nil {
		return 0, err
	}
	defer d.turn.Give()
	bad, err := d.insert(ctx, batch)
	if state(err) == undefinedTable && d.config.CreateTable {
		if err := d.create(ctx); err != nil {
			return 0, d.fault(err)
		}
		bad, err = d.insert(ctx, batch)
	}
	if err == nil {
		return len(batch), nil
	}
	if s := state(err); !strings.HasPrefix(s, classData) && !strings.HasPrefix(s, classLimit) {
		return 0, d.fault(err)
	}
	if bad > 0 {
		if _, err := d.insert(ctx, batch[:bad]); err != nil {
			return 0, d.fault(err)
		}
	}
	return bad, &target.Rejected{Err: d.fault(err)}
}

// fault says where it was and, where that is known, what to do.
func (d *database) fault(err error) error {
	if state(err) == undefinedTable {
		return fmt.Errorf("postgres: %s: %w; run: %s", d.config.Address, err, d.config.CreateSQL())
	}
	return fmt.Errorf("postgres: %s: %w", d.config.Address, err)
}

// state is the SQLSTATE of an error that the server answered, else empty.
func state(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// insert is one transaction. With an error nothing is inserted that the caller may rely on, and bad is the message whose insertion failed.
func (d *database) insert(ctx context.Context, batch []target.Message) (bad int, err error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	conn, err := d.connected(ctx)
	if err != nil {
		return 0, err
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return 0, err
	}
	rows := new(pgx.Batch)
	insert := d.config.insertSQL()
	for _, m := range batch {
		rows.Queue(insert, m.ID, m.Time.UTC(), m.Bucket, text(m.Key), m.Event, string(m.Body))
	}
	results := tx.SendBatch(ctx, rows)
	for bad = range batch {
		if _, err = results.Exec(); err != nil {
			break
		}
	}
	if err = errors.Join(err, results.Close()); err != nil {
		return bad, errors.Join(err, tx.Rollback(ctx))
	}
	return 0, tx.Commit(ctx)
}

// text is a key as the database can hold it: what is not UTF-8, and NUL, becomes U+FFFD. The body has the key as it is.
func text(key string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(key, "\uFFFD"), "\x00", "\uFFFD")
}

// connected is the connection, made anew where the last one broke: the driver closes it when a call is cut short.
func (d *database) connected(ctx context.Context) (*pgx.Conn, error) {
	if d.conn != nil && !d.conn.IsClosed() {
		return d.conn, nil
	}
	var err error
	d.conn, err = pgx.ConnectConfig(ctx, d.driver)
	return d.conn, err
}

func (d *database) create(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	conn, err := d.connected(ctx)
	if err != nil {
		return err
	}
	return createTable(ctx, conn, d.config)
}

func createTable(ctx context.Context, conn *pgx.Conn, c Config) error {
	_, err := conn.Exec(ctx, c.CreateSQL())
	if s := state(err); s == duplicateTable || s == uniqueConflict {
		return nil // another node was first
	}
	return err
}

// Check connects anew and lets the server plan the insertion of a row, without running it: that needs the table, its columns, the unique id and the
// permission to insert. It makes the table if that is allowed.
func (d *database) Check(ctx context.Context) error {
	if err := d.turn.Take(ctx); err != nil {
		return err
	}
	d.turn.Give()
	ctx, cancel := context.WithTimeout(ctx, d.config.Timeout)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, d.driver)
	if err != nil {
		return fmt.Errorf("postgres: %s: %w; see that the server runs and that address, database, user and password are right", d.config.Address, err)
	}
	defer end(conn)
	err = plan(ctx, conn, d.config)
	if state(err) == undefinedTable && d.config.CreateTable {
		if err := createTable(ctx, conn, d.config); err != nil {
			return fmt.Errorf("postgres: %s: the table cannot be made: %w; let the user %q do so, or run: %s", d.config.Address, err, d.config.User, d.config.CreateSQL())
		}
		err = plan(ctx, conn, d.config)
	}
	switch {
	case err == nil:
		return nil
	case state(err) == undefinedTable:
		return d.fault(err)
	default:
		return fmt.Errorf("postgres: %s: rows cannot be inserted into %s: %w; grant INSERT and SELECT on it to the user %q, and see that it is like: %s",
			d.config.Address, d.config.table(), err, d.config.User, d.config.CreateSQL())
	}
}

func plan(ctx context.Context, conn *pgx.Conn, c Config) error {
	_, err := conn.Exec(ctx, "EXPLAIN "+c.insertSQL(), "", time.Unix(0, 0).UTC(), "", "", "", "{}")
	return err
}

// end says goodbye if that can be done at once.
func end(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // nothing is under way: it does not matter
}

func (d *database) Close() error {
	d.turn.Close()
	defer d.turn.Give()
	if d.conn != nil {
		end(d.conn)
		d.conn = nil
	}
	return nil
}
