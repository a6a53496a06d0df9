package brokers

import (
	"path/filepath"
	"syscall"
	"testing"
)

// RabbitMQ is a RabbitMQ server. guest and guest may do everything there.
type RabbitMQ struct {
	Address string // 127.0.0.1:port
	t       testing.TB
	dir     string
	ports   []string
	process *process
}

// StartRabbitMQ starts a server with some lines of rabbitmq.conf.
func StartRabbitMQ(t testing.TB, config string) *RabbitMQ {
	t.Helper()
	r := &RabbitMQ{t: t, dir: directory(t), ports: ports(t, 3)}
	r.Address = "127.0.0.1:" + r.ports[0]
	write(t, filepath.Join(r.dir, "rabbitmq.conf"), config)
	write(t, filepath.Join(r.dir, "plugins"), "[].\n")
	write(t, filepath.Join(r.dir, "env.conf"), "")
	// Erlang's port mapper is one of ours, else it would be left behind when all is over.
	mapper := command(t, r.dir, nil, program(t, "epmd"), "-port", r.ports[2], "-address", "127.0.0.1")
	start(t, mapper, filepath.Join(r.dir, "epmd.log"), syscall.SIGKILL, func() error { return listens("127.0.0.1:" + r.ports[2]) })
	r.Start()
	return r
}

// Start starts it again after Stop.
func (r *RabbitMQ) Start() {
	r.t.Helper()
	env := []string{
		"RABBITMQ_NODENAME=cairn@localhost",
		"RABBITMQ_NODE_IP_ADDRESS=127.0.0.1",
		"RABBITMQ_NODE_PORT=" + r.ports[0],
		"RABBITMQ_DIST_PORT=" + r.ports[1],
		"ERL_EPMD_PORT=" + r.ports[2],
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_MNESIA_BASE=" + filepath.Join(r.dir, "mnesia"),
		"RABBITMQ_LOG_BASE=" + r.dir,
		"RABBITMQ_LOGS=-",
		"RABBITMQ_PID_FILE=" + filepath.Join(r.dir, "pid"),
		"RABBITMQ_CONFIG_FILE=" + filepath.Join(r.dir, "rabbitmq.conf"),
		"RABBITMQ_CONF_ENV_FILE=" + filepath.Join(r.dir, "env.conf"),
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + filepath.Join(r.dir, "plugins"),
		"RABBITMQ_GENERATED_CONFIG_DIR=" + filepath.Join(r.dir, "generated"),
	}
	server := program(r.t, "/usr/lib/rabbitmq/lib/*/sbin/rabbitmq-server")
	r.process = start(r.t, command(r.t, r.dir, env, server), filepath.Join(r.dir, "log"), syscall.SIGKILL, func() error { return listens(r.Address) })
}

// Stop ends the server as a crash does.
func (r *RabbitMQ) Stop() { r.process.stop(syscall.SIGKILL) }
