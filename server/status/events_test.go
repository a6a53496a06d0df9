package status

import (
	"strings"
	"testing"
)

// TestPrintTargets: a target takes one line, whatever its settings are.
func TestPrintTargets(t *testing.T) {
	var out strings.Builder
	PrintTargets(&out, []EventTarget{{Name: "hooks", Kind: "webhook", WhenFull: "drop", Secrets: []string{"secret"}, Settings: map[string]string{
		"url": "http://h/", "ca": "\n-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "headers": "a: b\t1\r\nc: d\n", "end": "x\n",
	}}})
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	const want = "ca=(PEM) end=x headers=a: b 1... secret=(secret) url=http://h/"
	if last := lines[len(lines)-1]; len(lines) != 3 || !strings.HasSuffix(last, want) {
		t.Errorf("%q\n%s", last, out.String())
	}
}
