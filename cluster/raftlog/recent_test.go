package raftlog

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"cairn/storage/vfsx"
)

// All views together keep no more in memory than the store may; what is dropped is that of those which stored nothing lately, and
// it is read from the drive.
func TestRecentEntriesAreBounded(t *testing.T) {
	const bound = 256 << 10
	s := open(t, vfsx.NewMem(), Options{RecentBytes: bound})
	defer s.Close()
	var views []*View
	for i := range 40 {
		views = append(views, view(t, s, fmt.Sprint("g", i)))
	}
	store := func(v *View, index uint64) {
		t.Helper()
		if err := v.StoreLog(&raft.Log{Index: index, Term: 1, Data: make([]byte, 4<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() (n int) {
		sum := 0
		for _, v := range views {
			v.mu.RLock()
			if v.mu.bytes > 0 {
				n++
			}
			sum += v.mu.bytes
			if v.mu.bytes == 0 && v.mu.ring != nil {
				t.Errorf("%s keeps an empty ring", v.id)
			}
			v.mu.RUnlock()
		}
		s.recent.mu.Lock()
		defer s.recent.mu.Unlock()
		if sum != s.recent.bytes || n != s.recent.order.Len() || sum > bound {
			t.Errorf("%d views keep %d bytes; %d of %d are counted, of %d at most", n, sum, s.recent.order.Len(), s.recent.bytes, bound)
		}
		return n
	}
	for i := range uint64(10) {
		for _, v := range views {
			store(v, i+1)
			kept()
		}
	}
	// One is busy, the others are not.
	for i := range uint64(30) {
		store(views[0], 11+i)
	}
	for _, v := range views[1:5] {
		store(v, 11)
	}
	if views[0].mu.bytes < 30*4096 {
		t.Errorf("a busy one keeps %d bytes", views[0].mu.bytes)
	}
	for _, v := range views {
		last, _ := v.LastIndex()
		for i := uint64(1); i <= last; i++ {
			var l raft.Log
			if err := v.GetLog(i, &l); err != nil || l.Index != i || len(l.Data) != 4<<10 {
				t.Fatalf("%s, entry %d: %+v, %v", v.id, i, l.Index, err)
			}
		}
	}
	// Those that are done keep nothing.
	for i, v := range views {
		if i%2 == 0 {
			v.Cut()
			continue
		}
		last, _ := v.LastIndex()
		if err := v.DeleteRange(1, last); err != nil {
			t.Fatal(err)
		}
	}
	left := func() int {
		s.recent.mu.Lock()
		defer s.recent.mu.Unlock()
		return s.recent.order.Len()
	}
	for end := time.Now().Add(10 * time.Second); left() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("something is kept")
		}
	}
	store(views[0], 41)
	store(views[1], 1)
	if n := kept(); n != 1 {
		t.Errorf("%d keep something, want the one that was not cut", n)
	}
}
