//go:build compose

package compose

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// tour runs the README's tour, in a folder of its own, each aws command at the next of three nodes in three zones: what
// one acknowledged, the next one reads and lists.
func (p *project) tour(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	real, err := exec.LookPath("aws")
	if err != nil {
		t.Fatalf("the tour needs aws-cli (make tools): %v", err)
	}
	dir := t.TempDir()
	at := filepath.Join(dir, "turn")
	if err := os.WriteFile(at, []byte("0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nn=$(cat %[1]s)\necho $(((n + 1) %% 3)) >%[1]s\nset -- --endpoint-url http://127.0.0.1:$((9000 + 20 * n)) \"$@\"\necho \"node $n: aws $*\" >&2\nexec %[2]s \"$@\"\n", at, real)
	if err := os.WriteFile(filepath.Join(dir, "aws"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for i, m := range regexp.MustCompile("(?s)<!-- tour -->\n```sh\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		block := strings.ReplaceAll(m[1], "/tmp/cairn-tour", filepath.Join(dir, "tour"))
		if strings.Contains(block, "./cmd/cairn") {
			continue // asked for in the containers
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		cmd := exec.CommandContext(ctx, "bash", "-c", "set -euo pipefail\n"+block)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"),
			"AWS_ACCESS_KEY_ID="+access, "AWS_SECRET_ACCESS_KEY="+secret, "AWS_DEFAULT_REGION=us-east-1",
			"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null", "AWS_EC2_METADATA_DISABLED=true")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		begin := time.Now()
		err := cmd.Run()
		cancel()
		t.Logf("block %d: %s", i+1, time.Since(begin).Round(time.Second))
		if err != nil {
			text := out.String()
			t.Fatalf("block %d: %v\n%s", i+1, err, text[max(0, len(text)-3000):])
		}
		for n := range 3 {
			if strings.Contains(out.String(), fmt.Sprintf("node %d: aws", n)) {
				ran |= 1 << n
			}
		}
	}
	if ran != 7 {
		t.Errorf("the tour did not ask every one of the three nodes: %b", ran)
	}
}
