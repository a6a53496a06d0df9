package worker

import (
	"math"
	"time"
)

// speed estimates units a second from steps, forgetting with a half-life of
// speedHalfLife of busy time. The time between a step that left more to do and the
// end of the next one counts, waits for a rate limit included, because an ETA is
// about that; the time without work does not.
type speed struct {
	units, seconds float64
	last           time.Time // end of the previous step, zero if it left nothing to do
}

const speedHalfLife = time.Minute

// add counts a step of [start, now]; more: the time from now to the end of the next step counts for that.
func (s *speed) add(units int64, start, now time.Time, more bool) {
	if !s.last.IsZero() {
		start = s.last
	}
	secs := now.Sub(start).Seconds()
	keep := math.Exp2(-secs / speedHalfLife.Seconds())
	s.units = s.units*keep + float64(units)
	s.seconds = s.seconds*keep + secs
	s.last = time.Time{}
	if more {
		s.last = now
	}
}

// perSecond is 0 while nothing is known.
func (s *speed) perSecond() float64 {
	if s.seconds <= 0 {
		return 0
	}
	return s.units / s.seconds
}
