package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWriteWhole: a file is there when it is whole, and nothing is left of one that is not.
func TestWriteWhole(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "out.csv")
	text := strings.Repeat("line\n", 100_000)
	put := func(s string, err error) error {
		return writeWhole(name, func(w io.Writer) error {
			io.WriteString(w, s)
			return err
		})
	}
	if err := put(text, errors.New("cut off")); err == nil || err.Error() != "cut off" {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Fatal(left)
	}
	if err := put(text, nil); err != nil {
		t.Fatal(err)
	}
	if err := put("other", errors.New("cut off")); err == nil { // what was there stays
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if left, _ := os.ReadDir(dir); err != nil || string(got) != text || len(left) != 1 {
		t.Fatal(len(got), err, left)
	}
	if err := writeWhole(filepath.Join(dir, "none", "x"), func(io.Writer) error { return nil }); err == nil {
		t.Error("a folder that is not there")
	}
}

func TestSimulatedTime(t *testing.T) {
	for text, want := range map[string]string{"2027-01-02": "2027-01-02T00:00:00Z", "2027-01-02T03:04:05+01:00": "2027-01-02T02:04:05Z", "tomorrow": "", "2027": ""} {
		got, err := simulatedTime(text)
		if (err == nil) != (want != "") || err == nil && got.UTC().Format(time.RFC3339) != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
	}
}
