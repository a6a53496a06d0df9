package core

import (
	"context"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// mute are ranges 1 to n with one event that waits each, of which every tenth never answers.
type mute struct{ n int }

func (m mute) AllRanges() (ids []cluster.GroupID) {
	for g := range m.n {
		ids = append(ids, cluster.GroupID(g+1))
	}
	return ids
}

func (m mute) Read(ctx context.Context, g cluster.GroupID, fn func(rangestate.Reader) error) error {
	if g%10 == 0 {
		<-ctx.Done()
		return errs.Wrap(errs.Unavailable, "test", "", ctx.Err())
	}
	return fn(waiting{})
}

type waiting struct{ rangestate.Reader }

func (waiting) EventState() (rangestate.EventState, error) {
	row := &metapb.EventTargetRow{Queued: 1}
	return rangestate.EventState{Log: &metapb.EventLogRow{Rows: 1}, Targets: []rangestate.EventTarget{{Name: "mine", Row: row}}}, nil
}

func (waiting) EventCounters(*rangestate.EventCounter, int) ([]rangestate.EventCounter, *rangestate.EventCounter, error) {
	return []rangestate.EventCounter{{Bucket: 1, Target: "mine", Row: &metapb.EventCounterRow{Delivered: 1}}}, nil, nil
}

// TestSumsOfMuteRanges: ranges that do not answer cost their own time, and the others are in the sums.
func TestSumsOfMuteRanges(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			ranges, read int
			most         time.Duration
			says         string
		}{
			{9, 9, 0, ""}, {10, 9, sumsTimeout, "range 10: no answer within 2s"}, {80, 72, sumsTimeout, "8 of 80 ranges, as range 10: "}, {90, 81, 2 * sumsTimeout, "9 of 90"},
		} {
			s, begun := newEventSums(time.Now(), 10), time.Now()
			partial := s.readAll(t.Context(), mute{c.ranges}, true)
			l := s.load("mine")
			if l.Queued != int64(c.read) || l.Delivered != int64(c.read) || s.rows != int64(c.read) || len(s.counters) != 1 {
				t.Errorf("%d ranges: %+v, %d rows", c.ranges, l, s.rows)
			}
			if took := time.Since(begun); took > c.most {
				t.Errorf("%d ranges took %s", c.ranges, took)
			}
			if (partial == "") != (c.says == "") || !strings.HasPrefix(partial, c.says) {
				t.Errorf("%d ranges: %q", c.ranges, partial)
			}
		}
	})
}
