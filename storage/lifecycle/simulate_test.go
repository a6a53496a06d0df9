package lifecycle

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/storage"
	"cairn/test/seed"
)

// simulation is one over the rows of the world, by pages.
func (w *world) simulation(at time.Time, page int) *Simulation {
	return &Simulation{
		Bucket: *w.bucket, AtMS: at.UnixMilli(), Day: aDay, Examples: 1 << 20, ExamplesMax: 1 << 20,
		Drives: func(class storage.StorageClass, size uint64) int64 {
			if class == storage.Standard {
				return 3 * int64(size)
			}
			return 2 * int64(size)
		},
		Survey: func(ctx context.Context, after *rangestate.LifecyclePos) (rows []rangestate.LifecycleRow, next *rangestate.LifecyclePos, err error) {
			next, err = w.Scan(ctx, 2, w.bucket.ID, after, page, func(int64) {}, func(r *rangestate.LifecycleRow) bool {
				row := *r
				row.Object = r.Object.CloneVT()
				rows = append(rows, row)
				return true
			})
			return rows, next, err
		},
	}
}

// told is what a simulation names, one text for each action.
func told(sims []Sim) (out []string) {
	for _, s := range sims {
		for _, e := range s.Examples {
			seq := e.Version.Seq
			switch s.What {
			case rules.Transition:
				out = append(out, fmt.Sprintf("move %s %d %s", e.Key, seq, s.Class))
			default:
				out = append(out, fmt.Sprintf("%v %s %d", whatOf(s.What), e.Key, seq))
			}
		}
	}
	slices.Sort(out)
	return out
}

// someRows fills the world with versions, markers and uploads of all ages up to a year, in all classes.
func (w *world) someRows(rnd *rand.Rand) {
	now := time.Now().UnixMilli()
	ago := func() int64 { return now - rnd.Int64N(365*aDay.Milliseconds()) }
	classes := []string{"", "", "", "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"}
	for k := range 60 {
		key := storage.Key(fmt.Sprintf("%s/%02d", []string{"a", "b", "c"}[k%3], k))
		for v := range 1 + rnd.IntN(4) {
			row := w.put(key, 1+rnd.IntN(100))
			row.Attributes.StorageClass = classes[rnd.IntN(len(classes))]
			row.ModifiedMs, row.NoncurrentMs = ago(), 0
			if rnd.IntN(4) == 0 {
				row.ClassSinceMs = row.ModifiedMs + (now-row.ModifiedMs)/2
			}
			if rnd.IntN(4) == 0 {
				row.Attributes.Tags = []*metapb.KV{{Name: "t", Value: "v"}}
			}
			if rnd.IntN(8) == 0 {
				row.Attributes.LegalHold = true
			}
			if v > 0 && rnd.IntN(5) == 0 {
				row.DeleteMarker, row.Size, row.Attributes, row.Data = true, 0, nil, nil
			}
		}
	}
	last := storage.Key("")
	for _, e := range w.rows { // newest first of each key
		if e.key == last {
			e.object.NoncurrentMs = ago()
		}
		last = e.key
	}
	for u := range 10 {
		key := storage.Key(fmt.Sprintf("%s/%02d", []string{"a", "b", "c"}[u%3], u*5))
		i, _ := slices.BinarySearchFunc(w.rows, key+"\x00", func(e *entry, k storage.Key) int { return cmpKeys(e.key, k) })
		w.seq++
		w.rows = slices.Insert(w.rows, i, &entry{key: key, upload: &metapb.UploadRow{Seq: w.seq, Nonce: w.seq, InitiatedMs: ago(), Bytes: 1000}})
	}
}

func cmpKeys(a, b storage.Key) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// someRules are up to five rules that don't depend on what another has done in the same round.
func someRules(rnd *rand.Rand) (out []*metapb.LifecycleRule) {
	days := func() uint32 { return 1 + rnd.Uint32N(300) }
	for i := range 1 + rnd.IntN(5) {
		r := &metapb.LifecycleRule{Id: fmt.Sprint("r", i), Filter: &metapb.LifecycleFilter{Prefix: []string{"", "a/", "b/", "c/3", "zz"}[rnd.IntN(5)], HasSizeGreater: rnd.IntN(2) == 0}}
		switch rnd.IntN(5) {
		case 0:
			r.Expiration = &metapb.LifecycleExpiration{Days: days()}
		case 1:
			r.NoncurrentExpiration = &metapb.LifecycleNoncurrentExpiration{Days: days(), NewerNoncurrent: rnd.Uint32N(3)}
			r.Filter.Tags = []*metapb.KV{{Name: "t", Value: "v"}}[:rnd.IntN(2)]
		case 2:
			r.Transitions = []*metapb.LifecycleTransition{{Days: days(), StorageClass: []string{"STANDARD_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"}[rnd.IntN(4)]}}
		case 3:
			r.NoncurrentTransitions = []*metapb.LifecycleTransition{{Days: days(), StorageClass: "GLACIER"}}
		case 4:
			r.AbortDays, r.Expiration = days(), &metapb.LifecycleExpiration{ExpiredDeleteMarker: true}
			r.Filter.HasSizeGreater = false
		}
		r.Disabled = rnd.IntN(10) == 0
		out = append(out, r)
	}
	return out
}

// TestSimulationIsWhatIsDone: what is simulated for a time is what the worker then does in one round, and a simulation changes nothing.
func TestSimulationIsWhatIsDone(t *testing.T) {
	n := seed.Of(t)
	total := 0
	for i := range uint64(40) {
		inDay(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(n, i))
			w := newWorld()
			time.Sleep(400 * aDay)
			w.someRows(rnd)
			w.bucket.Versioning = metapb.Versioning(rnd.IntN(2)) // never, or enabled
			rules := someRules(rnd)
			w.rules(rules...)
			at := time.Now().Add(time.Duration(rnd.IntN(60)) * aDay)
			before := len(w.log)
			sims, err := w.simulation(at, 1+rnd.IntN(50)).Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range w.log[before:] {
				if call != "scan" {
					t.Fatalf("a simulation calls %s", call)
				}
			}
			want := told(sims)
			time.Sleep(time.Until(at))
			l := w.worker(func(c *Config) { c.Day = aDay })
			settle(t, l)
			got := slices.Clone(w.did)
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Errorf("run %d, rules %v:\nsimulated %q\n     done %q", i, rules, want, got)
			}
			total += len(got)
			done := map[string]int64{}
			for _, r := range l.Status().Rules {
				done[r.Rule] = r.Done
			}
			for _, s := range sims {
				done[s.Rule] -= s.Count
			}
			for id, n := range done {
				if n != 0 {
					t.Errorf("run %d: rule %s did %d more than was simulated", i, id, n)
				}
			}
		})
	}
	if total < 200 {
		t.Errorf("all of it did only %d things", total)
	}
}

// TestSimulationSums: what a simulation says of bytes, of what they cost and of the drives.
func TestSimulationSums(t *testing.T) {
	inDay(t, func(t *testing.T) {
		w := newWorld()
		for _, key := range []storage.Key{"gone/1", "gone/2", "gone/3", "stay"} {
			w.put(key, 100).Attributes.StorageClass = "GLACIER_IR"
		}
		w.put("move", 70)
		w.rules(expiring("e", "gone/", 29), moving("m", "move", 30), &metapb.LifecycleRule{Id: "nothing", Filter: &metapb.LifecycleFilter{Prefix: "x"}, AbortDays: 3})
		at := time.Now().Add(40 * aDay)
		s := w.simulation(at, 2)
		s.Examples, s.ExamplesMax = 2, 2
		var seen []int64
		s.Progress = func(n int64) { seen = append(seen, n) }
		sims, err := s.Run(t.Context())
		if err != nil || len(sims) != 2 {
			t.Fatal(sims, err)
		}
		e, m := sims[0], sims[1]
		if e.Rule != "e" || e.What != rules.Expire || e.Marker || e.Count != 3 || e.Bytes != 300 || e.Before != 600 || e.After != 0 || len(e.Examples) != 2 ||
			e.Early.EarlyLo != 300*50*uint64(aDay.Milliseconds()) {
			t.Errorf("%+v", e)
		}
		if m.Rule != "m" || m.Class != storage.StandardIA || m.Count != 1 || m.Before != 210 || m.After != 140 || len(m.Examples) != 0 || m.Early.SizeVT() != 0 {
			t.Errorf("%+v", m)
		}
		if len(seen) < 2 || seen[len(seen)-1] != s.Rows {
			t.Error(seen, s.Rows)
		}
		// With versions nothing is freed by a delete marker on top.
		w.bucket.Versioning = metapb.Versioning_VERSIONING_ENABLED
		if sims, err = w.simulation(at, 10).Run(t.Context()); err != nil || !sims[0].Marker || sims[0].After != 600 || sims[0].Early.SizeVT() != 0 {
			t.Errorf("%+v %v", sims[0], err)
		}
		// Nothing is due now, and without rules nothing is looked at.
		if sims, err = w.simulation(time.Now(), 10).Run(t.Context()); err != nil || len(sims) != 0 {
			t.Error(sims, err)
		}
		w.rules()
		if s = w.simulation(at, 10); s.Rows != 0 {
			t.Error(s.Rows)
		}
		if sims, err = s.Run(t.Context()); err != nil || len(sims) != 0 || s.Rows != 0 {
			t.Error(sims, err, s.Rows)
		}
	})
}
