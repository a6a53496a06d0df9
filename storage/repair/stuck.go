package repair

import (
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Problem is something that could not be repaired yet.
type Problem struct {
	What  string    // an object or chunk, for people
	Err   string    // of the latest try
	Since time.Time // of the first failure
	Next  time.Time // of the next try; zero if there is no plan
	Tries int
}

// stuck remembers items that failed, with a back-off each. When it is full it
// forgets one for every new one, so whoever goes by its back-off asks hasRoom first. Safe
// for concurrent use.
type stuck[K comparable] struct {
	max      int
	min, top time.Duration // back-off
	mu       sync.Mutex
	m        map[K]*Problem
}

func newStuck[K comparable](max int, lo, hi time.Duration) *stuck[K] {
	return &stuck[K]{max: max, min: lo, top: hi, m: make(map[K]*Problem)}
}

// failed notes a failed try and answers how many there were.
func (s *stuck[K]) failed(k K, what string, err error) (tries int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	p := s.m[k]
	if p == nil {
		if len(s.m) >= s.max {
			for old := range s.m {
				delete(s.m, old)
				break
			}
		}
		p = &Problem{What: what, Since: now}
		s.m[k] = p
	}
	p.failed(now, s.min, s.top, err)
	return p.Tries
}

// failed notes a failed try.
func (p *Problem) failed(now time.Time, lo, hi time.Duration, err error) {
	p.Tries++
	p.Next, p.Err = now.Add(delay(lo, hi, p.Tries)), err.Error()
}

// delay is the wait after so many failures in a row: it doubles from lo up to hi.
func delay(lo, hi time.Duration, tries int) time.Duration {
	if tries < 30 && lo<<(tries-1) < hi {
		return lo << (tries - 1)
	}
	return hi
}

// hasRoom reports whether a failure of k would be remembered without another one being forgotten.
func (s *stuck[K]) hasRoom(k K) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.m) < s.max || s.m[k] != nil
}

// ready reports whether k may be tried now, and whether it is known to have failed.
func (s *stuck[K]) ready(k K) (known, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.m[k]
	return p != nil, p == nil || !time.Now().Before(p.Next)
}

// due is when k may be tried; zero if it is not known to have failed.
func (s *stuck[K]) due(k K) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.m[k]; p != nil {
		return p.Next
	}
	return time.Time{}
}

// prune forgets the items that keep does not name.
func (s *stuck[K]) prune(keep func(K) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.m {
		if !keep(k) {
			delete(s.m, k)
		}
	}
}

func (s *stuck[K]) clear(k K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, k)
}

// retryAll lets everything be tried at once.
func (s *stuck[K]) retryAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.m {
		p.Next, p.Tries = time.Time{}, 0
	}
}

// list is what is stuck, longest first.
func (s *stuck[K]) list() []Problem {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Problem, 0, len(s.m))
	for _, p := range s.m {
		out = append(out, *p)
	}
	return longestFirst(out)
}

func longestFirst(ps []Problem) []Problem {
	slices.SortFunc(ps, func(a, b Problem) int { return a.Since.Compare(b.Since) })
	return ps
}

// warnEvery is how often a worker warns of items that failed: in an outage there may be a million of them.
const warnEvery = time.Minute

// warner logs one warning in a while and the others for debugging. Not for concurrent use.
type warner struct {
	log    *slog.Logger
	next   time.Time
	silent int // warnings left out since the latest one
}

func (w *warner) warn(msg string, args ...any) {
	now := time.Now()
	if now.Before(w.next) {
		w.silent++
		w.log.Debug(msg, args...)
		return
	}
	w.log.Warn(msg, append(args, "others_since_last", w.silent)...)
	w.next, w.silent = now.Add(warnEvery), 0
}
