//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tour reads the commands of README.md: the block that starts the server and those that follow.
func tour(t *testing.T) (server string, blocks []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(repoRoot(), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?s)<!-- tour(: server)? -->\n```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		if m[1] != "" {
			server = m[2]
		} else {
			blocks = append(blocks, m[2])
		}
	}
	if server == "" || len(blocks) < 3 {
		t.Fatalf("README.md has no tour: %q, %d blocks", server, len(blocks))
	}
	return server, blocks
}

// freshClone is what git clone gives, with the changes of the work tree.
func freshClone(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "cairn")
	files := command(t, os.Environ(), repoRoot(), "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for _, name := range strings.Split(strings.TrimSuffix(files, "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(repoRoot(), name))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(repoRoot(), name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, info.Mode().Perm()|0o200); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestTour is the README's tour in a fresh clone, word for word but for the folder of its
// copies; its ports come from the environment. So it meets neither a server nor a tour of somebody's.
func TestTour(t *testing.T) {
	server, blocks := tour(t)
	dir, copies := freshClone(t), filepath.Join(t.TempDir(), "tour")
	for i, block := range blocks {
		blocks[i] = strings.ReplaceAll(block, "/tmp/cairn-tour", copies)
	}
	ports := freePorts(t, 2)
	var env []string
	for _, kv := range (endpoint{}).env() {
		if !strings.HasPrefix(kv, "AWS_ACCESS") && !strings.HasPrefix(kv, "AWS_SECRET") && !strings.HasPrefix(kv, "AWS_ENDPOINT") && !strings.HasPrefix(kv, "AWS_DEFAULT") {
			env = append(env, kv)
		}
	}
	env = append(env, "PATH="+awsOnPath(t)+":"+os.Getenv("PATH"), "CAIRN_LISTEN="+ports[0], "CAIRN_ADMIN_LISTEN="+ports[1])

	log, err := os.Create(filepath.Join(t.TempDir(), "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	// The shell ends its whole process group when its input does: also when this test is killed.
	cmd := exec.Command("bash", "-c", "{ "+server+"} </dev/null & cat; kill -TERM 0; wait")
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		input.Close()
		for end := time.Now().Add(30 * time.Second); portTaken(ports[0]); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Error("the server does not stop")
				syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
				break
			}
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the server's output:\n%s", text)
		}
	})
	paste := printedLines(t, log.Name(), ended)
	t.Logf("to paste:\n%s", paste)
	waitPort(t, ports[0])

	for i, block := range blocks {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		cmd := exec.CommandContext(ctx, "bash", "-c", "set -euo pipefail\n"+paste+"\n"+block)
		cmd.Dir, cmd.Env = dir, env
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		begin := time.Now()
		err := cmd.Run()
		cancel()
		text := out.String()
		if n := strings.LastIndex(text, "\r"); n >= 0 { // progress bars
			text = text[n+1:]
		}
		t.Logf("block %d (%s):\n%s%.3000s", i+1, time.Since(begin).Round(time.Second), block, text)
		if err != nil {
			t.Fatalf("block %d: %v\n%.3000s", i+1, err, out.String())
		}
		if strings.Contains(block, "sha256sum") {
			sums := regexp.MustCompile(`(?m)^([0-9a-f]{64})  `).FindAllStringSubmatch(out.String(), -1)
			if len(sums) != 2 || sums[0][1] != sums[1][1] {
				t.Errorf("SHA-256 there and back: %v", sums)
			}
		}
	}
}

// printedLines waits for the three lines that the first start prints, as a user does.
func printedLines(t *testing.T, log string, ended <-chan struct{}) string {
	t.Helper()
	re := regexp.MustCompile(`(?m)^ +(export AWS_ACCESS_KEY_ID=.*)\n +(export AWS_ENDPOINT_URL=.*)\n +(aws .*)\n`)
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		if m := re.FindStringSubmatch(string(text)); m != nil {
			return strings.Join(m[1:], "\n")
		}
		select {
		case <-ended:
			t.Fatalf("the server ended:\n%s", text)
		default:
		}
	}
	t.Fatal("the server printed no lines to paste")
	return ""
}

func portTaken(addr string) bool {
	l, err := net.Listen("tcp", addr)
	if err == nil {
		l.Close()
	}
	return err != nil
}

func waitPort(t *testing.T, addr string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// awsOnPath is a folder with the aws command that works. One from before
// AWS_ENDPOINT_URL gets --endpoint-url, as the README says it must.
func awsOnPath(t *testing.T) string {
	t.Helper()
	cli := awsTool(t)
	real, err := exec.LookPath(cli)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(real, "--version").CombinedOutput()
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(out), "aws-cli/%d.%d", &major, &minor); err != nil {
		t.Fatalf("aws --version: %s", out)
	}
	extra := ""
	if major == 1 && minor < 29 || major == 2 && minor < 13 {
		extra = `--endpoint-url "$AWS_ENDPOINT_URL" `
	}
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec %s %s\"$@\"\n", real, extra)
	if err := os.WriteFile(filepath.Join(dir, "aws"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
