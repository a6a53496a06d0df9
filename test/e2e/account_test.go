//go:build e2e

package e2e

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// TestAccounting: every node of a cluster tells the same of what is stored, lists the same, and simulates the same.
func TestAccounting(t *testing.T) {
	c := startNodes(t, 3, 2)
	p := c.all[0]
	bucket := newBucket(t, p.endpoint)
	for _, key := range []string{"logs/a b", "logs/\u00fc,\"", "other"} {
		body := strings.Repeat(key, 1000)
		if _, err := p.client().PutObject(t.Context(), &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: strings.NewReader(body), StorageClass: types.StorageClassGlacierIr}); err != nil {
			t.Fatal(err)
		}
	}
	gone := "other"
	if _, err := p.client().DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &bucket, Key: &gone}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	rules := filepath.Join(dir, "rules.json")
	doc := `{"Rules":[{"ID":"old","Status":"Enabled","Filter":{"Prefix":"logs/"},"Expiration":{"Days":10}}]}`
	if err := os.WriteFile(rules, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func(p *process, command string, args ...string) string {
		t.Helper()
		code, out, errOut := p.cairn(command, args...)
		if code != 0 {
			t.Fatalf("cairn %s: %d %s", command, code, errOut)
		}
		return out
	}
	usage, listed := "", ""
	for i, p := range c.all {
		u := run(p, "usage", bucket, "--json")
		if all := run(p, "usage"); !strings.Contains(all, bucket) || !strings.Contains(all, "TOTAL of") {
			t.Errorf("node %d tells of all buckets\n%s", i, all)
		}
		file := filepath.Join(dir, "out.csv")
		run(p, "inventory", bucket, "--output", file, "--fields", "Size,StorageClass,ETag")
		l, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			usage, listed = u, string(l)
		}
		if u != usage || string(l) != listed {
			t.Errorf("node %d says\n%s%s\nthe first said\n%s%s", i, u, l, usage, listed)
		}
		if out := run(p, "simulate", bucket, "--rules", rules, "--at", "2126-01-01"); !strings.Contains(out, `RULE "old"`) || !strings.Contains(out, "logs/a b") || !strings.Contains(out, "2 rows") {
			t.Errorf("node %d simulates\n%s", i, out)
		}
	}
	if !strings.Contains(usage, `"class":"GLACIER_IR","objects":2,`) || strings.Contains(usage, `"early_byte_days":0,`) {
		t.Errorf("usage: %s", usage)
	}
	rows, err := csv.NewReader(strings.NewReader(listed)).ReadAll()
	if err != nil || len(rows) != 2 || rows[0][1] != "logs/a%20b" || rows[0][2] != "8000" || rows[0][4] != "GLACIER_IR" || rows[1][1] != "logs/%C3%BC%2C%22" {
		t.Errorf("inventory: %v %q", err, listed)
	}
	if code, _, errOut := p.cairn("simulate", bucket); code != 1 || !strings.Contains(errOut, "no lifecycle rules") {
		t.Errorf("without rules: %d %s", code, errOut)
	}
}
