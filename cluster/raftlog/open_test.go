package raftlog

import (
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/storage/vfsx"
)

// TestPowerCutsAtStart cuts the power at every operation of an engine's start, which moves to a new manifest and a new log: what was
// synced before is there at the next one.
func TestPowerCutsAtStart(t *testing.T) {
	open := func(fs *vfsx.Mem) (*Engine, error) { return OpenEngine(EngineOptions{FS: fs, Dir: "log"}) }
	fs := vfsx.NewMem()
	for start := range byte(3) {
		var mu sync.Mutex // Pebble removes old files in a goroutine of its own, also after the start
		var cuts []*vfsx.Mem
		if start > 0 {
			seed := uint64(start) << 32
			fs.SetHook(func(vfsx.Op, string) error {
				mu.Lock()
				defer mu.Unlock()
				for range 8 {
					seed++
					cuts = append(cuts, fs.CrashClone(seed))
				}
				return nil
			})
		}
		e, err := open(fs)
		if err != nil {
			t.Fatal(err)
		}
		fs.SetHook(nil)
		mu.Lock()
		taken := cuts
		mu.Unlock()
		if err := e.DB().Set([]byte{start}, []byte("value"), pebble.Sync); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		for i, cut := range taken {
			e, err := open(cut)
			if err != nil {
				t.Fatalf("start %d, cut %d: %v", start, i, err)
			}
			for key := range start {
				if _, c, err := e.DB().Get([]byte{key}); err != nil {
					t.Errorf("start %d, cut %d: key %d: %v", start, i, key, err)
				} else {
					_ = c.Close()
				}
			}
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		}
		t.Logf("start %d: %d cuts", start, len(taken))
	}
}
