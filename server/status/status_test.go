package status

import (
	"strings"
	"testing"
	"time"
)

func TestPrintSaysWhatIsWrong(t *testing.T) {
	now := time.Unix(10000, 0)
	s := Status{Version: "v0", StoreID: "st", Started: now.Add(-time.Minute), NotReady: "no leader", S3: "http://x:1",
		Zones:  []Zone{{Name: "a", State: "down", Drives: 2}, {Name: "b", State: "up", Drives: 2, Active: 2}},
		Drives: []Drive{{ID: "0123456789abcdef", Zone: "a", Path: "/d1", State: "down", Trouble: "folder is gone: mount it"}, {ID: "ff", Zone: "b", Path: "/d2", State: "active", BelowReserve: true}},
		Groups: []Group{{ID: 1, Role: "system", Voters: 3, Survives: "any zone", Trouble: "one voter behind", Replicas: []Replica{{ID: "r", Drive: "ff", Zone: "b", State: "catching up"}}}},
		PGs:    []PGs{{Class: "STANDARD", Scheme: "3+3", Count: 4, Healthy: 1, Degraded: 2, Refused: 1}},
		Plans:  []Plan{{Class: "STANDARD", Scheme: "3+3", Small: "1+2", Target: "any zone and one more drive", Survives: "any zone", Why: "three zones are needed"}},
		Proof:  Proof{Line: "4 of 5 groups", Violations: []string{"pg 7 has 4 shards in zone a"}}, Redundancy: Redundancy{DirtySlots: 3, Repairing: "2 of 9"},
		Warnings: []string{"copy credentials.json"}}
	var b strings.Builder
	s.Print(&b, now)
	for _, want := range []string{"NOT READY: no leader", "DOWN", "FULL", "! /d1: folder is gone: mount it", "NO LEADER", "b/ff (catching up)",
		"! group 1: one voter behind", "SHORT of any zone and one more drive: three zones", "2 DEGRADED", "1 TAKE NO WRITES", "SHORT: 3 drive slots",
		"zone rule VIOLATED", "! pg 7", "! copy credentials.json", "01234567 ", "up 1m0s"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	b.Reset()
	s = Status{Ready: true, Started: now, Proof: Proof{OK: true, Line: "all"}}
	s.Print(&b, now)
	if got := b.String(); !strings.Contains(got, "ready") || !strings.Contains(got, "whole: no shard") || !strings.Contains(got, "zone rule: all") || strings.Contains(got, "!") {
		t.Errorf("a good status reads\n%s", got)
	}
}

func TestReportPrint(t *testing.T) {
	r := Report{Found: 3, Problems: []Problem{{Kind: "shard corrupt", Bucket: "b", Key: "a\nb", Version: "null", Drive: "/d", Zone: "a", Detail: "block 3"}, {Kind: "unreferenced"}},
		Notes: []string{"n"}, Counts: []Count{{"objects", 5}, {"shards", 30}}, Finished: time.Unix(1, 0), Started: time.Unix(0, 0)}
	var b strings.Builder
	r.Print(&b)
	want := `PROBLEM  shard corrupt: b/"a\nb" version null on drive /d in zone a: block 3
PROBLEM  unreferenced
PROBLEM  and 1 more
note     n
checked  5 objects, 30 shards in 1s
verify   3 problems
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	(&Report{}).Print(&b)
	if !strings.Contains(b.String(), "clean") {
		t.Errorf("clean report: %s", b.String())
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 200 << 20: "200 MiB", 1 << 40: "1.0 TiB", -2048: "-2.0 KiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
