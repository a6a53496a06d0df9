package vfsx

import (
	"path"
	"strings"
	"sync"
	"time"
)

// Op is a kind of operation on a Mem, a bit of a set.
type Op uint16

// The operations that faults can hit.
const (
	OpCreate Op = 1 << iota
	OpOpen
	OpRead
	OpWrite
	OpSync    // of a file
	OpSyncDir // of a directory
	OpPunch
	OpRemove
	OpRename
	OpLink
	OpMkdir
	OpList
	OpStat // by path or of an open file (Stat by path, StatID, ID)

	OpAny = OpStat<<1 - 1
	// OpMutate is everything that can change what a crash leaves.
	OpMutate = OpCreate | OpWrite | OpSync | OpSyncDir | OpPunch | OpRemove | OpRename | OpLink | OpMkdir
)

// Fault says which operations of a Mem go wrong and how.
type Fault struct {
	Ops   Op            // which kinds; 0 is OpAny
	Path  string        // only paths that contain it, or match it as a path.Match pattern; empty: all
	After int           // the first so many that fit pass
	Times int           // so many after them are hit; 0: all
	Err   error         // what they answer. A write hit leaves the first half of its bytes, a sync loses what it should have synced.
	Delay time.Duration // they wait so long first
}

// faults are the injected faults of a Mem and its hook.
type faults struct {
	mu   sync.RWMutex
	list []*injected
	hook func(Op, string) error
}

type injected struct {
	Fault
	mu   sync.Mutex
	seen int
}

// Inject makes operations fail or wait until remove is called.
func (m *Mem) Inject(f Fault) (remove func()) {
	if f.Ops == 0 {
		f.Ops = OpAny
	}
	in := &injected{Fault: f}
	m.faults.mu.Lock()
	defer m.faults.mu.Unlock()
	m.faults.list = append(m.faults.list, in)
	return func() {
		m.faults.mu.Lock()
		defer m.faults.mu.Unlock()
		for i, o := range m.faults.list {
			if o == in {
				m.faults.list = append(m.faults.list[:i:i], m.faults.list[i+1:]...)
				return
			}
		}
	}
}

// SetHook has fn called before every operation, holding no lock: it may block,
// take a CrashClone, or answer an error that the operation then answers. nil
// takes it away.
func (m *Mem) SetHook(fn func(op Op, path string) error) {
	m.faults.mu.Lock()
	defer m.faults.mu.Unlock()
	m.faults.hook = fn
}

// check runs the hook and the faults for one operation.
func (f *faults) check(op Op, name string) error {
	f.mu.RLock()
	hook, list := f.hook, f.list
	f.mu.RUnlock()
	if hook != nil {
		if err := hook(op, name); err != nil {
			return err
		}
	}
	for _, in := range list {
		if in.Ops&op == 0 || !in.fits(name) {
			continue
		}
		if in.Delay > 0 {
			time.Sleep(in.Delay)
		}
		if in.Err != nil {
			return in.Err
		}
	}
	return nil
}

// fits reports whether an operation on name is one to be hit, and counts it.
func (in *injected) fits(name string) bool {
	if in.Path != "" && !strings.Contains(name, in.Path) {
		if ok, err := path.Match(in.Path, name); err != nil || !ok {
			return false
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.seen++
	return in.seen > in.After && (in.Times == 0 || in.seen <= in.After+in.Times)
}
