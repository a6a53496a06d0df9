package brokers

import (
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Postgres is a PostgreSQL server.
type Postgres struct {
	Address                  string // 127.0.0.1:port
	Database, User, Password string // the user may do everything
	t                        testing.TB
	dir, server, ready       string
	process                  *process
}

// StartPostgres starts a server. With a certificate and a key, in PEM, it speaks TLS, too.
func StartPostgres(t testing.TB, certificate, key string) *Postgres {
	t.Helper()
	dir := directory(t)
	p := &Postgres{
		Database: "postgres", User: "admin", Password: "admin's secret", Address: "127.0.0.1:" + ports(t, 1)[0],
		t: t, dir: dir, server: program(t, "/usr/lib/postgresql/*/bin/postgres"), ready: program(t, "/usr/lib/postgresql/*/bin/pg_isready"),
	}
	write(t, filepath.Join(dir, "password"), p.Password)
	run(t, command(t, dir, nil, program(t, "/usr/lib/postgresql/*/bin/initdb"), "--pgdata="+p.data(), "--username="+p.User, "--pwfile="+filepath.Join(dir, "password"),
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"))
	if certificate != "" {
		write(t, filepath.Join(p.data(), "server.crt"), certificate)
		write(t, filepath.Join(p.data(), "server.key"), key)
	}
	p.run(certificate != "")
	return p
}

func (p *Postgres) data() string { return filepath.Join(p.dir, "data") }

func (p *Postgres) run(tls bool) {
	p.t.Helper()
	port := p.Address[len("127.0.0.1:"):]
	args := []string{"-D", p.data(), "-p", port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-c", "max_connections=20", "-c", "shared_buffers=16MB"}
	if tls {
		args = append(args, "-c", "ssl=on")
	}
	p.process = start(p.t, command(p.t, p.dir, nil, p.server, args...), filepath.Join(p.dir, "log"), syscall.SIGQUIT, func() error {
		return exec.Command(p.ready, "-h", "127.0.0.1", "-p", port, "-q").Run()
	})
}

// Stop ends the server as a crash does: nothing is put in order. (Killed, it would leave processes behind that still serve their connections.)
func (p *Postgres) Stop() { p.process.stop(syscall.SIGQUIT) }

// Start starts it again, without TLS.
func (p *Postgres) Start() {
	p.t.Helper()
	p.run(false)
}
