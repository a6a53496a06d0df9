package metrics

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"cairn/server/status"
)

func TestEventsQueued(t *testing.T) {
	m := New(func(context.Context) (status.Status, error) {
		return status.Status{Events: []status.EventLoad{{Target: "hooks", Queued: 3, QueuedBytes: 300, OldestSeconds: 1.5, Held: true}}}, nil
	})
	wantLines(t, scrape(t, m), `cairn_events_queued{target="hooks"} 3`, `cairn_events_queued_bytes{target="hooks"} 300`,
		`cairn_events_oldest_seconds{target="hooks"} 1.5`, `cairn_events_held{target="hooks"} 1`)
}

// TestEventCounts: counters are those of the whole store, not looked at for each scrape, and left out where a range is missing.
func TestEventCounts(t *testing.T) {
	now := time.Unix(1000, 0)
	looks, fail := 0, error(nil)
	m := New(nil)
	m.WatchEvents(func(context.Context) ([]status.EventLoad, []status.BucketLoad, error) {
		looks++
		return []status.EventLoad{{Target: "hooks", Delivered: int64(10 * looks), Dead: 2, Dropped: 1}},
			[]status.BucketLoad{{Bucket: "b", Target: "hooks", Queued: 4, Delivered: 5, Dead: 6, Dropped: 7}}, fail
	}, func() time.Time { return now })
	wantLines(t, scrape(t, m), `cairn_event_metrics 1`, `cairn_events_delivered_total{target="hooks"} 10`, `cairn_events_dead_total{target="hooks"} 2`,
		`cairn_events_dropped_total{target="hooks"} 1`, `cairn_bucket_events_queued{bucket="b",target="hooks"} 4`,
		`cairn_bucket_events_delivered_total{bucket="b",target="hooks"} 5`, `cairn_bucket_events_dead_total{bucket="b",target="hooks"} 6`,
		`cairn_bucket_events_dropped_total{bucket="b",target="hooks"} 7`)
	now = now.Add(bucketsEvery - 1)
	wantLines(t, scrape(t, m), `cairn_events_delivered_total{target="hooks"} 10`)
	now = now.Add(1)
	wantLines(t, scrape(t, m), `cairn_events_delivered_total{target="hooks"} 20`)
	now, fail = now.Add(bucketsEvery), errors.New("no leader")
	text := scrape(t, m)
	if wantLines(t, text, `cairn_event_metrics 0`); strings.Contains(text, "_total{target") {
		t.Error("counters that lack a range are shown")
	}
}
