package brokers

import (
	"path/filepath"
	"syscall"
	"testing"
)

// Redis is a Redis server that syncs every write.
type Redis struct {
	Address string // 127.0.0.1:port
	t       testing.TB
	dir     string
	port    string
	process *process
}

// StartRedis starts a server.
func StartRedis(t testing.TB) *Redis {
	t.Helper()
	r := &Redis{t: t, dir: directory(t), port: ports(t, 1)[0]}
	r.Address = "127.0.0.1:" + r.port
	r.Start()
	return r
}

// Start starts it again after Stop, with what it had.
func (r *Redis) Start() {
	r.t.Helper()
	cmd := command(r.t, r.dir, nil, program(r.t, "redis-server"), "--port", r.port, "--bind", "127.0.0.1", "--dir", r.dir,
		"--appendonly", "yes", "--appendfsync", "always", "--save", "")
	r.process = start(r.t, cmd, filepath.Join(r.dir, "log"), syscall.SIGKILL, func() error { return listens(r.Address) })
}

// Stop ends the server as a crash does.
func (r *Redis) Stop() { r.process.stop(syscall.SIGKILL) }
