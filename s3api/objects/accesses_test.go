package objects

import (
	"fmt"
	"testing"

	"cairn/proto/metapb"
)

// The set of accesses knows each version once, is bounded, and forgets the oldest.
func TestAccesses(t *testing.T) {
	var a accesses
	entry := func(i int) *metapb.TouchEntry {
		return &metapb.TouchEntry{Bucket: 1, Key: []byte(fmt.Sprint(i)), VersionSeq: 1, AccessedMs: int64(i)}
	}
	a.add(entry(1), entry(2), entry(1))
	a.add(entry(2), &metapb.TouchEntry{Bucket: 1, Key: []byte("2"), VersionSeq: 2})
	if got := a.take(2); len(got) != 2 || string(got[0].Key) != "1" || string(got[1].Key) != "2" || got[1].VersionSeq != 1 {
		t.Fatal(got)
	}
	a.add(entry(1)) // it was taken: it is new again
	if got := a.take(9); len(got) != 2 || got[0].VersionSeq != 2 || string(got[1].Key) != "1" {
		t.Fatal(got)
	}
	if got := a.take(9); len(got) != 0 {
		t.Fatal(got)
	}
	for i := range accessesMax + 10 {
		a.add(entry(i))
	}
	if len(a.queue) != accessesMax || len(a.known) != accessesMax {
		t.Fatalf("%d of %d", len(a.queue), len(a.known))
	}
	if got := a.take(1); string(got[0].Key) != "10" {
		t.Fatal(got)
	}
	a.add(entry(5)) // was forgotten
	if len(a.queue) != accessesMax || len(a.known) != accessesMax {
		t.Fatalf("%d of %d", len(a.queue), len(a.known))
	}
}
