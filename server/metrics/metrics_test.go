package metrics

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"cairn/server/status"
)

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func wantLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(text, l+"\n") {
			t.Errorf("no line %q", l)
		}
	}
}

func TestRequest(t *testing.T) {
	m := New(nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				m.Request("PutObject", 200, 10, 0, time.Millisecond)
				m.Request("GetObject", 404, 0, 7, time.Second)
			}
		})
	}
	end := m.Begin()
	wg.Wait()
	m.Request("GetObject", -1, 0, 0, 0)
	text := scrape(t, m)
	wantLines(t, text,
		`cairn_s3_requests_total{operation="PutObject",status="200"} 800`,
		`cairn_s3_requests_total{operation="GetObject",status="404"} 800`,
		`cairn_s3_requests_total{operation="GetObject",status="0"} 1`,
		`cairn_s3_received_bytes_total{operation="PutObject"} 8000`,
		`cairn_s3_sent_bytes_total{operation="GetObject"} 5600`,
		`cairn_s3_request_seconds_count{operation="PutObject"} 800`,
		`cairn_s3_requests_in_flight 1`)
	end()
	wantLines(t, scrape(t, m), `cairn_s3_requests_in_flight 0`)
}

func TestOperationsAreBounded(t *testing.T) {
	m := New(nil)
	for i := range 10 * opsMax {
		m.Request(fmt.Sprintf("Op%d", i), 200, 0, 0, 0)
	}
	if n := strings.Count(scrape(t, m), "cairn_s3_requests_total{"); n > opsMax+1 {
		t.Fatalf("%d operations", n)
	}
}

func TestStatusGauges(t *testing.T) {
	old := time.Now().Add(-time.Hour)
	s := status.Status{Version: "v1", StoreID: "s", Node: "n", Ready: true,
		Usage:  status.Usage{Buckets: 1, Objects: 2, Bytes: 3},
		Zones:  []status.Zone{{Name: "a", Drives: 2, Active: 1}},
		Drives: []status.Drive{{ID: "d1", Zone: "a", Path: "/x", State: "active", BytesFree: 9}, {ID: "d2", Zone: "a", Path: "/y", State: "down", BelowReserve: true}},
		Groups: []status.Group{{ID: 1, Role: "system", Leader: "r1", Term: 4, Voters: 3, Replicas: []status.Replica{{ID: "r1", Zone: "a", Applied: 77}}}},
		PGs:    []status.PGs{{Class: "STANDARD", Scheme: "3+3", Count: 5, Healthy: 3, Degraded: 2}},
		Plans:  []status.Plan{{Class: "STANDARD", Scheme: "3+3", Met: true}},
		Proof:  status.Proof{OK: true}, Redundancy: status.Redundancy{DirtySlots: 6, RepairQueue: 5, Repaired: 4, GarbageQueue: 3, GarbageOldest: &old}}
	var fail error
	m := New(func(context.Context) (status.Status, error) { return s, fail })
	text := scrape(t, m)
	wantLines(t, text,
		`cairn_status_up 1`, `cairn_ready 1`, `cairn_objects 2`,
		`cairn_drive_up{drive="d1",path="/x",zone="a"} 1`, `cairn_drive_up{drive="d2",path="/y",zone="a"} 0`,
		`cairn_drive_bytes{drive="d1",kind="free",path="/x",zone="a"} 9`,
		`cairn_drive_below_reserve{drive="d2",path="/y",zone="a"} 1`,
		`cairn_zone_drives{state="down",zone="a"} 1`,
		`cairn_raft_has_leader{group="1",role="system"} 1`,
		`cairn_raft_applied_index{group="1",replica="r1",zone="a"} 77`,
		`cairn_placement_groups{class="STANDARD",scheme="3+3",state="degraded"} 2`,
		`cairn_class_target_met{class="STANDARD",scheme="3+3"} 1`,
		`cairn_zone_rule_ok 1`, `cairn_dirty_slots 6`, `cairn_repair_queue 5`, `cairn_repaired_shards_total 4`, `cairn_garbage_queue 3`)
	if !strings.Contains(text, "cairn_garbage_oldest_seconds 36") {
		t.Error("no age of the oldest garbage")
	}
	fail = errors.New("no")
	text = scrape(t, m)
	wantLines(t, text, `cairn_status_up 0`)
	if strings.Contains(text, "cairn_ready") {
		t.Error("gauges from a status that could not be read")
	}
}

func TestRequestAllocatesNothing(t *testing.T) {
	m := New(nil)
	m.Request("HeadObject", 200, 0, 0, 0)
	if n := testing.AllocsPerRun(100, func() { m.Request("HeadObject", 200, 1, 1, time.Millisecond) }); n > 0 {
		t.Fatalf("%v allocations per request", n)
	}
}

func TestLifecycle(t *testing.T) {
	m := New(func(context.Context) (status.Status, error) {
		return status.Status{Lifecycle: &status.Lifecycle{
			Rounds: 2, Rows: 30, Seconds: 1.5, Expired: 3, Removed: 4, Aborted: 5, Transitioned: 6, MovedBytes: 7, Due: 8, LagSeconds: 9, Error: "why",
		}}, nil
	})
	wantLines(t, scrape(t, m), "cairn_lifecycle_lag_seconds 9", "cairn_lifecycle_due 8", "cairn_lifecycle_rounds_total 2", "cairn_lifecycle_round_rows 30",
		"cairn_lifecycle_round_seconds 1.5", "cairn_lifecycle_expired_total 3", "cairn_lifecycle_removed_total 4", "cairn_lifecycle_aborted_total 5",
		"cairn_lifecycle_transitioned_total 6", "cairn_lifecycle_moved_bytes_total 7", "cairn_lifecycle_failing 1")
}

func TestUsage(t *testing.T) {
	usage := []status.ClassUsage{{Class: "GLACIER", Objects: 3, Versions: 2, Bytes: 50, Uploads: 1, UploadBytes: 7, DriveBytes: 90, EarlyByteDays: 12.5, RestoredBytes: 20}}
	m := New(func(context.Context) (status.Status, error) {
		return status.Status{Usage: status.Usage{Classes: usage}, Retrieved: map[string]int64{"GLACIER": 11}}, nil
	})
	wantLines(t, scrape(t, m), `cairn_class_objects{class="GLACIER"} 3`, `cairn_class_noncurrent_versions{class="GLACIER"} 2`, `cairn_class_bytes{class="GLACIER"} 50`,
		`cairn_class_uploads{class="GLACIER"} 1`, `cairn_class_upload_bytes{class="GLACIER"} 7`, `cairn_class_drive_bytes{class="GLACIER"} 90`,
		`cairn_class_early_byte_days_total{class="GLACIER"} 12.5`, `cairn_class_restored_bytes_total{class="GLACIER"} 20`, `cairn_retrieved_bytes_total{class="GLACIER"} 11`)
}

// TestBuckets: buckets are told of one by one while there are few enough, and not looked at for each scrape.
func TestBuckets(t *testing.T) {
	now := time.Unix(1000, 0)
	looks, ok, fail := 0, true, error(nil)
	m := New(nil)
	m.WatchBuckets(func(context.Context) ([]status.BucketUsage, bool, error) {
		looks++
		return []status.BucketUsage{{Bucket: "b", Classes: []status.ClassUsage{{Class: "STANDARD", Objects: int64(looks), Bytes: 5}}}, {Bucket: "empty"}}, ok, fail
	}, func() time.Time { return now })
	wantLines(t, scrape(t, m), `cairn_bucket_metrics 1`, `cairn_bucket_objects{bucket="b",class="STANDARD"} 1`, `cairn_bucket_bytes{bucket="b",class="STANDARD"} 5`)
	now = now.Add(bucketsEvery - 1)
	wantLines(t, scrape(t, m), `cairn_bucket_objects{bucket="b",class="STANDARD"} 1`)
	now = now.Add(1)
	wantLines(t, scrape(t, m), `cairn_bucket_objects{bucket="b",class="STANDARD"} 2`)
	for what, change := range map[string]func(){"too many": func() { ok = false }, "no answer": func() { ok, fail = true, errors.New("no leader") }} {
		now = now.Add(bucketsEvery)
		change()
		text := scrape(t, m)
		wantLines(t, text, `cairn_bucket_metrics 0`)
		if strings.Contains(text, "cairn_bucket_objects") {
			t.Errorf("%s: buckets are told of", what)
		}
	}
	ok, fail = true, nil // after an error it is looked at again at once
	now = now.Add(bucketsEvery)
	wantLines(t, scrape(t, m), `cairn_bucket_metrics 1`)
}
