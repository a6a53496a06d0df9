package status

import (
	"strings"
	"testing"
	"time"
)

func TestPrintLifecycle(t *testing.T) {
	now := time.Date(2026, 5, 1, 0, 1, 0, 0, time.UTC)
	ended := now.Add(-30 * time.Second)
	all := []Lifecycle{
		{Node: "b1", Error: "no answer: gone"},
		{
			Node: "a1", Ended: &ended, Rows: 1, Seconds: 0.25, Expired: 3, Transitioned: 2, MovedBytes: 2048, Due: 1, LagSeconds: 60,
			Rules: []LifecycleRule{{Bucket: "logs", Rule: "old", Done: 3}, {Rule: "many", Due: 1, LagSeconds: 60, Waiting: "no drives"}},
		},
	}
	SortLifecycle(all)
	var b strings.Builder
	PrintLifecycle(&b, all, now)
	for _, want := range []string{"a1 ", "2 (2.0 KiB)", "30s ago: 1 row in 250ms", "none yet", "logs ", "(others)", "1m0s", "no drives", "! b1: no answer: gone"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Index(b.String(), "a1") > strings.Index(b.String(), "b1") {
		t.Error("not by name")
	}
}
