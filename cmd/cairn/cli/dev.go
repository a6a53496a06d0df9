package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cairn/server/admin"
	"cairn/server/config"
)

type devCmd struct {
	DataDir       string        `name:"data-dir" short:"d" default:"./data-dev" placeholder:"DIR" help:"Folder for all of it: credentials.json, and a folder for each node (./data-dev)."`
	Zones         int           `name:"zones" default:"3" placeholder:"N" help:"Zones: a, b, c, ... (3)."`
	NodesPerZone  int           `name:"nodes-per-zone" default:"2" placeholder:"N" help:"Nodes in each: a1, a2, ... (2)."`
	DrivesPerNode int           `name:"drives-per-node" default:"1" placeholder:"N" help:"Drives of each node (1)."`
	Port          int           `name:"port" default:"9000" placeholder:"PORT" help:"The first node's S3 port; its admin port is the next, its cluster port the one after; each further node's are 10 higher (9000)."`
	Simulate      string        `name:"simulate-network" placeholder:"FILE" help:"Latency, loss and partitions for all nodes, see docs/operations.md; edit the file while they run."`
	Plaintext     bool          `name:"cluster-plaintext" help:"No TLS between the nodes."`
	ReadyTimeout  time.Duration `name:"ready-timeout" default:"60s" placeholder:"DURATION" help:"How long a start may take (60s)."`
	Rest          []string      `arg:"" optional:"" passthrough:"" name:"flags" help:"After --: more flags for every 'cairn server'."`
}

// Help is shown under the usage line.
func (devCmd) Help() string {
	return `Starts real processes, one for each node, and shows what they log with the node's name in front, until SIGINT or SIGTERM stops them all. Stopped and started again they go on with their data. All nodes have the root keys in DIR/credentials.json.

A node that you kill stays down, and the command that starts it again is shown: that is how to try out what a lost node or zone does.

  cairn dev
  cairn dev --zones 3 --nodes-per-zone 1 --data-dir /tmp/three
  cairn dev -- --log-level debug`
}

// Limits of a dev cluster.
const (
	devNodesMax     = 30
	devPortStep     = 10
	devZonesMax     = config.ZonesMax
	devLineBytesMax = 64 << 10
)

// devNode is one process.
type devNode struct {
	name, zone         string
	dir                string
	s3, admin, cluster string // addresses
	args               []string
	cmd                *exec.Cmd
	ended              chan struct{} // closed when it has ended; err is set then
	err                error
}

// Run is called by kong.
func (c *devCmd) Run(ctx context.Context, d Deps) error {
	nodes, err := c.nodes()
	if err != nil {
		return usage(err)
	}
	keys, created, err := config.EnsureCredentials(c.DataDir)
	if err != nil {
		return err
	}
	if d.Executable == "" {
		if d.Executable, err = os.Executable(); err != nil {
			return err
		}
	}
	dev := &devCluster{cmd: c, deps: d, nodes: nodes, keys: keys, out: &lines{w: d.Stdout}}
	defer dev.stop()
	starting, cancel := context.WithTimeout(ctx, c.ReadyTimeout)
	defer cancel()
	if err := dev.start(starting); err != nil {
		if ctx.Err() != nil { // stopped by the user
			return nil
		}
		return err
	}
	dev.greet(created)
	dev.watch(ctx)
	return dev.stop()
}

// nodes lays the cluster out.
func (c *devCmd) nodes() (nodes []*devNode, err error) {
	n := c.Zones * c.NodesPerZone
	if c.Zones < 1 || c.Zones > devZonesMax || c.NodesPerZone < 1 || n > devNodesMax {
		return nil, fmt.Errorf("--zones %d and --nodes-per-zone %d: use 1 to %d nodes in up to %d zones", c.Zones, c.NodesPerZone, devNodesMax, devZonesMax)
	}
	if c.DrivesPerNode < 1 || c.DrivesPerNode > config.DrivesMax {
		return nil, fmt.Errorf("--drives-per-node is %d: use 1 to %d", c.DrivesPerNode, config.DrivesMax)
	}
	if last := c.Port + devPortStep*(n-1) + 2; c.Port < 1 || last > 65535 {
		return nil, fmt.Errorf("--port is %d: %d nodes need ports up to %d", c.Port, n, last)
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return nil, err
	}
	for i := range n {
		zone := string(rune('a' + i/c.NodesPerZone))
		node := &devNode{zone: zone, name: zone + strconv.Itoa(i%c.NodesPerZone+1)}
		at := func(port int) string {
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.Port+devPortStep*i+port))
		}
		node.s3, node.admin, node.cluster = at(0), at(1), at(2)
		node.dir = filepath.Join(dir, node.name)
		node.args = []string{"server", "--node", node.name, "--zone", zone, "--data-dir", node.dir,
			"--drives-per-zone", strconv.Itoa(c.DrivesPerNode), "--listen", node.s3, "--admin-listen", node.admin,
			"--cluster-listen", node.cluster, "--cluster-advertise", node.cluster}
		if i == 0 {
			node.args = append(node.args, "--cluster-init")
		} else {
			node.args = append(node.args, "--join", nodes[0].cluster, "--join-token", "@"+node.tokenFile())
		}
		if c.Plaintext {
			node.args = append(node.args, "--cluster-plaintext")
		}
		if c.Simulate != "" {
			node.args = append(node.args, "--simulate-network", c.Simulate)
		}
		node.args = append(node.args, trimDashes(c.Rest)...)
		nodes = append(nodes, node)
	}
	return nodes, nil
}

// trimDashes takes away the "--" that separates.
func trimDashes(args []string) []string {
	if len(args) > 0 && args[0] == "--" {
		return args[1:]
	}
	return args
}

func (n *devNode) tokenFile() string { return filepath.Join(n.dir, "join-token") }

func (n *devNode) hasToken() bool {
	_, err := os.Stat(n.tokenFile())
	return err == nil
}

func (n *devNode) running() bool {
	if n.cmd == nil {
		return false
	}
	select {
	case <-n.ended:
		return false
	default:
		return true
	}
}

// devCluster is the processes and what they share.
type devCluster struct {
	cmd   *devCmd
	deps  Deps
	nodes []*devNode
	keys  config.Credentials
	out   *lines
}

// start starts the first node and those that have joined before, all at once
// because they need one another; then the others, each with a token of its own.
func (dc *devCluster) start(ctx context.Context) error {
	var later []*devNode
	for i, n := range dc.nodes {
		if i > 0 && !n.hasToken() {
			later = append(later, n)
			continue
		}
		if err := dc.launch(n); err != nil {
			return err
		}
	}
	first := dc.nodes[0]
	if err := dc.waitReady(ctx, first); err != nil {
		return err
	}
	client := adminAt(first.admin)
	client.AccessKey, client.SecretKey = dc.keys.AccessKey, dc.keys.SecretKey
	for _, n := range later {
		if err := os.MkdirAll(n.dir, 0o755); err != nil {
			return err
		}
		err := tokenFile(n.tokenFile(), func() (string, error) { return client.NewToken(ctx, admin.TokenValidDefault) })
		if err != nil {
			return fmt.Errorf("a join token for %s: %w", n.name, err)
		}
		if err := dc.launch(n); err != nil {
			return err
		}
	}
	for _, n := range dc.nodes {
		if err := dc.waitReady(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// launch starts a node's process. Its end is seen on n.ended.
func (dc *devCluster) launch(n *devNode) error {
	cmd := exec.Command(dc.deps.Executable, n.args...)
	cmd.Env = dc.environment()
	out := &prefixed{to: dc.out, prefix: n.name + " | "}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = 5 * time.Second
	n.ended = make(chan struct{})
	started := make(chan error)
	go startAndWait(cmd, started, func(err error) {
		out.flush()
		n.err = err
		close(n.ended)
	})
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", n.name, err)
	}
	n.cmd = cmd
	return nil
}

// environment is this process's without cairn's own variables, which would be the same for all nodes; the keys are.
func (dc *devCluster) environment() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CAIRN_") {
			env = append(env, kv)
		}
	}
	return append(env, "CAIRN_ROOT_ACCESS_KEY="+dc.keys.AccessKey, "CAIRN_ROOT_SECRET_KEY="+dc.keys.SecretKey)
}

// waitReady waits until the node serves; it fails at once when its process ends.
func (dc *devCluster) waitReady(ctx context.Context, n *devNode) error {
	client := adminAt(n.admin)
	for {
		try, cancel := context.WithTimeout(ctx, healthTimeout)
		err := client.Ready(try)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-n.ended:
			return fmt.Errorf("%s did not start (%v): its last lines say why", n.name, n.err)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", n.name, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (dc *devCluster) greet(created bool) {
	first := dc.nodes[0]
	dc.out.printf("\n%s in %s are ready. Each serves S3:\n\n", count(len(dc.nodes), "node"), count(dc.cmd.Zones, "zone"))
	for _, n := range dc.nodes {
		dc.out.printf("    %-4s zone %s   http://%s   admin http://%s   process %d\n", n.name, n.zone, n.s3, n.admin, n.cmd.Process.Pid)
	}
	file := filepath.Join(dc.cmd.DataDir, config.CredentialsFile)
	if created {
		dc.out.printf("\nThe root keys, printed this once and kept in %s for you only. For aws-cli:\n\n"+
			"    export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s\n"+
			"    export AWS_ENDPOINT_URL=http://%s AWS_DEFAULT_REGION=%s\n", file, dc.keys.AccessKey, dc.keys.SecretKey, first.s3, config.Default().Region)
	} else {
		dc.out.printf("\nThe root keys are in %s.\n", file)
	}
	dc.out.printf("\n    cairn status --data-dir %s --admin-listen %s\n\nCtrl-C stops them all.\n\n", dc.cmd.DataDir, first.admin)
}

// watch says which nodes end, until ctx does or none is left.
func (dc *devCluster) watch(ctx context.Context) {
	gone := make(chan *devNode, len(dc.nodes))
	for _, n := range dc.nodes {
		go func() { <-n.ended; gone <- n }()
	}
	for left := len(dc.nodes); left > 0; left-- {
		select {
		case <-ctx.Done():
			return
		case n := <-gone:
			if ctx.Err() != nil {
				return
			}
			dc.out.printf("%s has ended (%s); to start it again:\n    CAIRN_ROOT_ACCESS_KEY=%s CAIRN_ROOT_SECRET_KEY=... %s %s\n",
				n.name, n.cmd.ProcessState, dc.keys.AccessKey, dc.deps.Executable, strings.Join(n.args, " "))
		}
	}
}

// stop ends all processes: first kindly, after the time that a stop may take by
// force. It may be called more than once.
func (dc *devCluster) stop() error {
	bound := time.NewTimer(config.Default().ShutdownBound + stopGrace)
	defer bound.Stop()
	var all []error
	for _, n := range dc.nodes {
		if n.running() {
			_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
		}
	}
	late := false
	for _, n := range dc.nodes {
		if !n.running() {
			continue
		}
		if !late {
			select {
			case <-n.ended:
				continue
			case <-bound.C:
				late = true
			}
		}
		all = append(all, fmt.Errorf("%s did not stop and was killed (nothing that was acknowledged is lost)", n.name))
		_ = n.cmd.Process.Kill()
		<-n.ended
	}
	return errors.Join(all...)
}

// lines is a writer that several processes share, a line at a time.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) write(prefix string, line []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, "%s%s\n", prefix, line) // nowhere to say that nothing can be said
}

func (l *lines) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = fmt.Fprintf(l.w, format, args...)
}

// prefixed puts a prefix before each line of one process. Longer lines than devLineBytesMax are cut in pieces.
type prefixed struct {
	to     *lines
	prefix string
	rest   []byte
}

func (p *prefixed) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		at := bytes.IndexByte(b, '\n')
		if at < 0 {
			p.rest = append(p.rest, b...)
			if len(p.rest) >= devLineBytesMax {
				p.flush()
			}
			break
		}
		p.to.write(p.prefix, append(p.rest, b[:at]...))
		p.rest, b = p.rest[:0], b[at+1:]
	}
	return n, nil
}

func (p *prefixed) flush() {
	if len(p.rest) > 0 {
		p.to.write(p.prefix, p.rest)
		p.rest = p.rest[:0]
	}
}
