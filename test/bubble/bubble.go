// Package bubble runs tests in synctest's bubbles, where time passes only when nobody has anything to do.
//
// Every test takes it instead of synctest.Test (test/layering sees to it): under the race
// detector of Go 1.26 a bubble on several processors can crash the whole test binary, without any fault of ours
// (https://go.dev/issue/78156). All fake timers of a bubble share one context of the detector, and a
// goroutine that receives from a timer that is due uses it while the bubble's root, or another such
// goroutine, does the same on another processor. On one processor nobody else can run meanwhile, and the detector still
// sees every race: it goes by what is ordered, not by what happened to run at once.
package bubble

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// Test runs f in a bubble, as synctest.Test does. Under the race detector the whole process has one
// processor until the last of the bubbles that run at once has ended.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	if raceEnabled {
		t.Cleanup(one.enter())
	}
	synctest.Test(t, f)
}

// processors is the process's GOMAXPROCS while bubbles run in it.
type processors struct {
	mu      sync.Mutex
	bubbles int
	before  int
}

var one processors

// enter leaves the process one processor until the answer is called, or a later one of a bubble that began meanwhile.
func (p *processors) enter() (leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bubbles++; p.bubbles == 1 {
		p.before = runtime.GOMAXPROCS(1)
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.bubbles--; p.bubbles == 0 {
			runtime.GOMAXPROCS(p.before)
		}
	}
}
