package core

import (
	"testing"
	"time"

	"cairn/storage/repair"
)

func TestStuckText(t *testing.T) {
	if s := stuckText("repair", nil); s != "" {
		t.Error(s)
	}
	since := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	got := stuckText("repair", []repair.Problem{{What: `bucket 1 key "a" version seq 9`, Err: "drive 17 is down", Since: since}, {What: "another"}})
	want := `repair: 2 could not be repaired yet, for the longest bucket 1 key "a" version seq 9, since 2026-03-04T05:06:07Z: drive 17 is down`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
