package raftlog

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

// Compactions bounds the compactions that all engines of a process run at
// once. Unlike Pebble's own scheduler it has no ticker, which costs an idle
// process with a dozen engines a whole percent of a core.
type Compactions struct {
	mu struct {
		sync.Mutex
		max     int
		running int
		dbs     []*dbCompactions
	}
}

// NewCompactions makes a scheduler that runs at most max (at least 1) compactions at once.
func NewCompactions(max int) *Compactions {
	c := &Compactions{}
	c.mu.max = max
	if max < 1 {
		c.mu.max = 1
	}
	return c
}

func (c *Compactions) forDB() *dbCompactions { return &dbCompactions{c: c} }

// dbCompactions is the pebble.CompactionScheduler of one engine. All fields are guarded by c.mu.
//
// Lock order: a DB's mutex comes before c.mu, so calls into a DB are made
// without c.mu, and from a goroutine of their own: a DB on a dead drive may never return.
type dbCompactions struct {
	c        *Compactions
	db       pebble.DBForCompaction
	running  int
	waiting  bool // was refused since it last had nothing to do
	granting bool // a goroutine is asking the DB
	gone     bool
	calls    sync.WaitGroup
}

var _ pebble.CompactionScheduler = (*dbCompactions)(nil)

func (s *dbCompactions) Register(_ int, db pebble.DBForCompaction) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.db = db
	if !s.gone {
		s.c.mu.dbs = append(s.c.mu.dbs, s)
	}
}

// Unregister waits until no call into the DB is under way.
func (s *dbCompactions) Unregister() {
	s.abandon()
	s.calls.Wait()
}

// abandon takes the DB out and gives its slots to others, without waiting for anything.
func (s *dbCompactions) abandon() {
	s.c.mu.Lock()
	if !s.gone {
		s.gone = true
		s.c.mu.running -= s.running
		s.running = 0
		for i, d := range s.c.mu.dbs {
			if d == s {
				s.c.mu.dbs = append(s.c.mu.dbs[:i:i], s.c.mu.dbs[i+1:]...)
				break
			}
		}
	}
	s.c.grantLocked()
	s.c.mu.Unlock()
}

func (s *dbCompactions) TrySchedule() (bool, pebble.CompactionGrantHandle) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.takeLocked() {
		return true, s
	}
	s.waiting = true
	return false, nil
}

func (s *dbCompactions) takeLocked() bool {
	if s.gone || s.db == nil || s.c.mu.running >= s.c.mu.max || s.running >= s.db.GetAllowedWithoutPermission() {
		return false
	}
	s.running++
	s.c.mu.running++
	return true
}

func (s *dbCompactions) UpdateGetAllowedWithoutPermission() {
	s.c.mu.Lock()
	s.c.grantLocked()
	s.c.mu.Unlock()
}

// Started, MeasureCPU, CumulativeStats and Done are the grant's handle.
func (s *dbCompactions) Started()                                          {}
func (s *dbCompactions) MeasureCPU(pebble.CompactionGoroutineKind)         {}
func (s *dbCompactions) CumulativeStats(pebble.CompactionGrantHandleStats) {}

func (s *dbCompactions) Done() {
	s.c.mu.Lock()
	s.giveLocked()
	s.c.grantLocked()
	s.c.mu.Unlock()
}

func (s *dbCompactions) giveLocked() {
	if !s.gone {
		s.running--
		s.c.mu.running--
	}
}

// grantLocked offers free slots to the DBs that wait, in turn.
func (c *Compactions) grantLocked() {
	for range c.mu.dbs {
		if c.mu.running >= c.mu.max {
			return
		}
		s := c.mu.dbs[0]
		c.mu.dbs = append(c.mu.dbs[1:], s)
		if s.waiting && !s.granting && s.takeLocked() {
			// Cleared before the DB is asked: a refusal from now on must not get lost.
			s.granting, s.waiting = true, false
			s.calls.Add(1)
			go s.grant()
		}
	}
}

// grant offers the slot taken for s to its DB and gives it back when there is nothing to do.
func (s *dbCompactions) grant() {
	defer s.calls.Done()
	accepted := false
	waiting, _ := s.db.GetWaitingCompaction()
	if waiting {
		accepted = s.db.Schedule(s)
	}
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.granting = false
	if accepted {
		s.waiting = true // it may have more
	} else {
		s.giveLocked()
	}
	s.c.grantLocked()
}
