//go:build e2e

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"cairn/server/config"
	"cairn/server/status"
)

const region = "us-east-1"

// startTimeout bounds how long a start may take until reads and writes are served.
const startTimeout = 60 * time.Second

// build makes the binary once for all tests.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cairn-e2e-bin-")
	if err != nil {
		return "", err
	}
	binDir.Store(&dir)
	path := filepath.Join(dir, "cairn")
	args := []string{"build", "-o", path}
	if os.Getenv("CAIRN_E2E_RACE") != "" {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "./cmd/cairn")...)
	cmd.Dir = repoRoot()
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// binDir is the folder to remove at the end, if anything was built.
var binDir atomic.Pointer[string]

func TestMain(m *testing.M) {
	code := m.Run()
	if dir := binDir.Load(); dir != nil {
		os.RemoveAll(*dir)
	}
	os.Exit(code)
}

func repoRoot() string {
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		panic(err)
	}
	return dir
}

// endpoint is an S3 server to talk to.
type endpoint struct {
	host   string // 127.0.0.1:9000
	access string
	secret string
}

func (e endpoint) url() string { return "http://" + e.host }

// client is the AWS SDK for Go v2 with its default settings.
func (e endpoint) client() *s3.Client {
	return s3.NewFromConfig(aws.Config{Region: region, Credentials: credentials.NewStaticCredentialsProvider(e.access, e.secret, "")},
		func(o *s3.Options) { o.BaseEndpoint = aws.String(e.url()); o.UsePathStyle = true })
}

// once is client without retries: what one request was answered.
func (e endpoint) once() *s3.Client {
	return s3.NewFromConfig(aws.Config{Region: region, Credentials: credentials.NewStaticCredentialsProvider(e.access, e.secret, "")},
		func(o *s3.Options) {
			o.BaseEndpoint, o.UsePathStyle, o.Retryer = aws.String(e.url()), true, aws.NopRetryer{}
		})
}

// env is the environment in which a client finds the server as a user would set it.
func (e endpoint) env() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "AWS_") && !strings.HasPrefix(kv, "CAIRN_") && !strings.HasPrefix(kv, "RCLONE_") {
			env = append(env, kv)
		}
	}
	return append(env, "AWS_ACCESS_KEY_ID="+e.access, "AWS_SECRET_ACCESS_KEY="+e.secret, "AWS_ENDPOINT_URL="+e.url(),
		"AWS_DEFAULT_REGION="+region, "AWS_EC2_METADATA_DISABLED=true", "AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "NO_PROXY=127.0.0.1")
}

// process is one cairn server in a folder of its own.
type process struct {
	endpoint
	t     *testing.T
	data  string
	admin string
	args  []string
	log   *os.File
	cmd   *exec.Cmd
	done  chan struct{} // closed when the process has ended
}

// anyServer is a server with the given flags, or the external one that the environment names.
func anyServer(t *testing.T, args ...string) endpoint {
	t.Helper()
	if url := os.Getenv("CAIRN_E2E_ENDPOINT"); url != "" {
		return endpoint{strings.TrimPrefix(url, "http://"), os.Getenv("CAIRN_E2E_ACCESS_KEY"), os.Getenv("CAIRN_E2E_SECRET_KEY")}
	}
	return start(t, args...).endpoint
}

// start builds the binary, starts a server in a new folder and waits until it is ready.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := prepare(t, args...)
	p.start()
	return p
}

// prepare is start without the start.
func prepare(t *testing.T, args ...string) *process {
	t.Helper()
	ports := freePorts(t, 2)
	dir := t.TempDir()
	p := &process{t: t, data: filepath.Join(dir, "data"), admin: ports[1], args: args}
	p.host = ports[0]
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	p.log = log
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			if dir := os.Getenv("CAIRN_E2E_KEEP"); dir != "" {
				os.WriteFile(filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+"-"+filepath.Base(p.host)+".log"), text, 0o644)
			}
			if i := bytes.Index(text, []byte("panic")); i > 10000 {
				text = text[i-1000:]
			} else if len(text) > 20000 {
				text = append([]byte("...\n"), text[len(text)-20000:]...)
			}
			t.Logf("the server's log:\n%s", text)
		}
		log.Close()
	})
	return p
}

func freePorts(t *testing.T, n int) (addrs []string) {
	t.Helper()
	for len(addrs) < n {
		i := portsTried.Add(1)
		if i > portsMax {
			t.Fatal("no free ports")
		}
		addr := fmt.Sprintf("127.0.0.1:%d", portsFirst+(os.Getpid()*64+int(i))%portsMax)
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		l.Close()
		addrs = append(addrs, addr)
	}
	return addrs
}

// Ports below those that the system gives to outgoing connections, and none twice:
// a server that starts again must find its own free.
const (
	portsFirst = 20000
	portsMax   = 12000
)

var portsTried atomic.Int64

// flags are those that name the server's place, for server, status and verify alike.
func (p *process) flags() []string {
	return append([]string{"--data-dir", p.data, "--listen", p.host, "--admin-listen", p.admin}, p.args...)
}

// launch starts the process and does not wait.
func (p *process) launch() {
	p.t.Helper()
	bin, err := build()
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(bin, append([]string{"server", "--log-level", cmp.Or(os.Getenv("CAIRN_E2E_LOG"), "info")}, p.flags()...)...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CAIRN_") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	started := make(chan error)
	done := make(chan struct{})
	go func() {
		// Pdeathsig is tied to the thread that starts the child: keep it until the child ends.
		lockThread(func() {
			err := cmd.Start()
			started <- err
			if err == nil {
				_ = cmd.Wait()
			}
			close(done)
		})
	}()
	if err := <-started; err != nil {
		p.t.Fatal(err)
	}
	p.cmd, p.done = cmd, done
}

func (p *process) start() {
	p.t.Helper()
	p.launch()
	p.waitReady(startTimeout)
	keys, err := config.ReadCredentials(p.data)
	if err != nil {
		p.t.Fatal(err)
	}
	p.access, p.secret = keys.AccessKey, keys.SecretKey
}

func (p *process) waitReady(limit time.Duration) {
	p.t.Helper()
	last := ""
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-p.done:
			p.t.Fatalf("the server ended: %v", p.cmd.ProcessState)
		default:
		}
		resp, err := http.Get("http://" + p.admin + "/health/ready")
		if err != nil {
			last = err.Error()
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return
		}
		last = string(body)
	}
	p.t.Fatalf("not ready after %s: %s", limit, last)
}

// kill is kill -9, the power cut of a process.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	p.cmd = nil
}

// stop is SIGTERM; it fails the test unless the process ends well within limit.
func (p *process) stop(limit time.Duration) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(limit):
		p.t.Fatalf("not stopped %s after SIGTERM", limit)
	}
	if !p.cmd.ProcessState.Success() {
		p.t.Errorf("after SIGTERM: %s", p.cmd.ProcessState)
	}
	p.cmd = nil
}

// cairn runs another command of the binary with the server's flags.
func (p *process) cairn(command string, extra ...string) (code int, stdout, stderr string) {
	p.t.Helper()
	bin, err := build()
	if err != nil {
		p.t.Fatal(err)
	}
	args := []string{command}
	switch command {
	case "status", "usage", "inventory":
		args = append(args, "--data-dir", p.data, "--admin-listen", p.admin)
	case "simulate":
		args = []string{"lifecycle", "simulate", "--data-dir", p.data, "--admin-listen", p.admin}
	case "events":
		args = append(append(args, extra...), "--data-dir", p.data, "--admin-listen", p.admin)
		extra = nil
	case "lifecycle":
		args = append(args, "status", "--data-dir", p.data, "--admin-listen", p.admin)
	default:
		args = append(args, p.flags()...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, bin, append(args, extra...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	if cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

func (p *process) status() (s status.Status) {
	p.t.Helper()
	code, out, errOut := p.cairn("status", "--json")
	if code != 0 {
		p.t.Fatalf("cairn status: exit %d: %s", code, errOut)
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		p.t.Fatal(err)
	}
	return s
}

// verify runs cairn verify and gives its report.
func (p *process) verify(extra ...string) (r status.Report) {
	p.t.Helper()
	code, out, errOut := p.cairn("verify", append([]string{"--json"}, extra...)...)
	if code != 0 && code != 3 {
		p.t.Fatalf("cairn verify: exit %d: %s", code, errOut)
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		p.t.Fatalf("%v\n%s", err, out)
	}
	if (code == 3) != (r.Found > 0) {
		p.t.Errorf("cairn verify: exit %d with %d problems", code, r.Found)
	}
	return r
}

func (p *process) wantClean(extra ...string) {
	p.t.Helper()
	if r := p.verify(extra...); r.Found > 0 {
		var b strings.Builder
		r.Print(&b)
		p.t.Errorf("cairn verify %v is not clean:\n%.4000s", extra, b.String())
	}
}

// waitWhole waits until every drive is active and nothing lacks a shard.
func (p *process) waitWhole(limit time.Duration) {
	p.t.Helper()
	end := time.Now().Add(limit)
	for {
		s := p.status()
		why := ""
		for _, d := range s.Drives {
			if d.State != "active" {
				why = fmt.Sprintf("drive %s is %s: %s", d.Path, d.State, d.Trouble)
			}
		}
		if r := s.Redundancy; r.DirtySlots > 0 || r.RepairQueue > 0 {
			why = fmt.Sprintf("%d dirty slots, %d chunks to repair: %s", r.DirtySlots, r.RepairQueue, r.Repairing)
		}
		for _, g := range s.Groups {
			for _, r := range g.Replicas {
				if r.State != "leader" && r.State != "follower" {
					why = fmt.Sprintf("group %d: replica %s is %s", g.ID, r.ID, r.State)
				}
			}
		}
		if why == "" {
			return
		}
		if time.Now().After(end) {
			p.t.Fatalf("not whole after %s: %s", limit, why)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// proc reads a number of kB from the process's status in /proc, as bytes.
func (p *process) proc(field string) int64 {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == field+":" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return n << 10
		}
	}
	p.t.Fatalf("no %s in /proc", field)
	return 0
}

// cpu is the processor time the process has used.
func (p *process) cpu() time.Duration {
	p.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * (time.Second / 100)
}
