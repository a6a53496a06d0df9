// Package brokers starts real brokers for tests: each a process of its own with its files in the test's directory, on a free port of
// the loopback interface, ended with the test. A program that is missing fails the test; test/tools.sh brokers installs them.
package brokers

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

const (
	startTimeout = 2 * time.Minute // Erlang takes its time on slow machines
	pollInterval = 50 * time.Millisecond
)

// process is a program that runs until it is stopped.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	log  string        // file of what it says
}

// program finds the newest of the files that match a pattern, or a program on the path.
func program(t testing.TB, pattern string) string {
	t.Helper()
	if path, err := exec.LookPath(pattern); err == nil {
		return path
	}
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("%s is not there (%v): run test/tools.sh brokers", pattern, err)
	}
	return found[len(found)-1]
}

// directory is a directory that belongs to whom brokers run as.
func directory(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if c := credential(t); c != nil {
		if err := os.Chmod(filepath.Dir(dir), 0o711); err != nil { // it is root's alone
			t.Fatal(err)
		}
		if err := os.Chown(dir, int(c.Uid), int(c.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// write makes a file that brokers may read, and nobody else.
func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := credential(t); c != nil {
		if err := os.Chown(path, int(c.Uid), int(c.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}

// credential is whom brokers run as: nobody where the test is root, because they refuse to be root.
func credential(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(nobody.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(nobody.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func command(t testing.TB, dir string, env []string, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "LC_ALL=C.UTF-8"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential(t), Setpgid: true} // a group, so that children end, too
	return cmd
}

// run runs a program to its end.
func run(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
}

// start starts a program and waits until ready answers nil. With the test it ends by a signal.
func start(t testing.TB, cmd *exec.Cmd, log string, end syscall.Signal, ready func() error) *process {
	t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, done: make(chan struct{}), log: log}
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // what it says about its end is in the log
	}()
	t.Cleanup(func() { p.stop(end) })
	late := time.NewTimer(startTimeout)
	defer late.Stop()
	for {
		err := ready()
		if err == nil {
			return p
		}
		select {
		case <-p.done:
			err = errors.Join(errors.New("it ended"), err)
		case <-late.C:
		case <-time.After(pollInterval):
			continue
		}
		said, _ := os.ReadFile(log)
		t.Fatalf("%v does not start: %v\n%s", cmd.Args, err, said)
	}
}

// stop sends a signal to the process and its children, and waits for its end.
func (p *process) stop(signal syscall.Signal) {
	select {
	case <-p.done: // and its number may be another's
		return
	default:
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, signal) // it may be ending
	<-p.done
}

// ports answers n free ports of the loopback interface.
func ports(t testing.TB, n int) []string {
	t.Helper()
	var all []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // at the end, so that they differ
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, port)
	}
	return all
}

// listens tells whether somebody takes connections.
func listens(address string) error {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return err
	}
	return conn.Close()
}
