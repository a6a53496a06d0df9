package lifecycle

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/test/seed"
)

// wish is what one rule wants, in the plain second implementation.
type wish struct {
	Action
	rule, rank int
}

// plainMidnight counts days on a calendar.
func plainMidnight(fromMS int64, days int) int64 {
	t := time.UnixMilli(fromMS).UTC().AddDate(0, 0, days)
	return time.Date(t.Year(), t.Month(), t.Day()+1, 0, 0, 0, 0, time.UTC).UnixMilli()
}

func plainMatches(f *metapb.LifecycleFilter, o *Object) bool {
	tags := map[string]string{}
	for _, t := range o.Tags {
		tags[t.Name] = t.Value
	}
	for _, t := range f.GetTags() {
		if v, ok := tags[t.Name]; !ok || v != t.Value {
			return false
		}
	}
	return strings.HasPrefix(string(o.Key), f.GetPrefix()) &&
		(!f.GetHasSizeGreater() || o.Size > f.SizeGreater) && (!f.GetHasSizeLess() || o.Size < f.SizeLess)
}

var plainClasses = []string{"STANDARD", "STANDARD_IA", "ONEZONE_IA", "GLACIER_IR", "INTELLIGENT_TIERING", "GLACIER", "DEEP_ARCHIVE"}

var plainWays = map[string]string{
	"STANDARD":    "STANDARD_IA ONEZONE_IA GLACIER_IR INTELLIGENT_TIERING GLACIER DEEP_ARCHIVE",
	"STANDARD_IA": "ONEZONE_IA GLACIER_IR INTELLIGENT_TIERING GLACIER DEEP_ARCHIVE", "INTELLIGENT_TIERING": "ONEZONE_IA GLACIER_IR GLACIER DEEP_ARCHIVE",
	"ONEZONE_IA": "GLACIER DEEP_ARCHIVE", "GLACIER_IR": "GLACIER DEEP_ARCHIVE", "GLACIER": "DEEP_ARCHIVE",
}

func plainMove(cfg *metapb.LifecycleConfig, r *metapb.LifecycleRule, i int, t *metapb.LifecycleTransition, o *Object, from int64) (wish, bool) {
	class := cmp.Or(string(o.Class), "STANDARD")
	if !slices.Contains(strings.Fields(plainWays[class]), t.StorageClass) {
		return wish{}, false
	}
	sized := r.Filter.GetHasSizeGreater() || r.Filter.GetHasSizeLess()
	archive := t.StorageClass == "GLACIER" || t.StorageClass == "DEEP_ARCHIVE"
	if o.Size < 128*1024 && !sized && !(cfg.VariesByStorageClass && archive) {
		return wish{}, false
	}
	due := t.DateMs
	if t.DateMs == 0 {
		due = plainMidnight(from, int(t.Days))
	}
	if strings.HasSuffix(t.StorageClass, "_IA") {
		due = max(due, plainMidnight(from, 30))
	}
	return wish{Action{Transition, storage.StorageClass(t.StorageClass), r.Id, due}, i, slices.Index(plainClasses, t.StorageClass)}, true
}

// plainDecide writes down all wishes and sorts them.
func plainDecide(cfg *metapb.LifecycleConfig, o *Object, nowMS int64) Action {
	var ends, moves []wish
	end := func(i int, r *metapb.LifecycleRule, w What, due int64) {
		ends = append(ends, wish{Action{w, "", r.Id, due}, i, 0})
	}
	move := func(i int, r *metapb.LifecycleRule, ts []*metapb.LifecycleTransition, from int64) {
		for _, t := range ts {
			if w, ok := plainMove(cfg, r, i, t, o, from); ok && (o.Kind == Current || o.Newer >= int(t.NewerNoncurrent)) {
				moves = append(moves, w)
			}
		}
	}
	for i, r := range cfg.Rules {
		if r.Disabled || !plainMatches(r.Filter, o) {
			continue
		}
		e := r.Expiration
		switch {
		case o.Kind == Upload && r.AbortDays > 0 && len(r.Filter.GetTags()) == 0 && !r.Filter.GetHasSizeGreater() && !r.Filter.GetHasSizeLess():
			end(i, r, Abort, plainMidnight(o.ModifiedMS, int(r.AbortDays)))
		case o.Kind == Noncurrent:
			if n := r.NoncurrentExpiration; n != nil && o.Newer >= int(n.NewerNoncurrent) && !o.Locked {
				end(i, r, RemoveNoncurrent, plainMidnight(o.NoncurrentMS, int(n.Days)))
			}
			if !o.Marker {
				move(i, r, r.NoncurrentTransitions, o.NoncurrentMS)
			}
		case o.Kind == Current && o.Marker && o.Only && e.GetExpiredDeleteMarker():
			end(i, r, RemoveMarker, max(o.ModifiedMS, plainMidnight(nowMS, -1)))
		case o.Kind == Current && o.Marker && o.Only && e.GetDays() > 0:
			end(i, r, RemoveMarker, plainMidnight(o.ModifiedMS, int(e.Days)))
		case o.Kind == Current && !o.Marker:
			if o.Locked && !o.Versioned {
				// a lock wins
			} else if e.GetDays() > 0 {
				end(i, r, Expire, plainMidnight(o.ModifiedMS, int(e.Days)))
			} else if e.GetDateMs() > 0 {
				end(i, r, Expire, e.DateMs)
			}
			move(i, r, r.Transitions, o.ModifiedMS)
		}
	}
	early := func(w wish) bool { return w.DueMS > nowMS }
	ends, moves = slices.DeleteFunc(ends, early), slices.DeleteFunc(moves, early)
	byDue := func(a, b wish) int { return cmp.Or(cmp.Compare(a.DueMS, b.DueMS), cmp.Compare(a.rule, b.rule)) }
	slices.SortStableFunc(ends, byDue)
	slices.SortStableFunc(moves, func(a, b wish) int { return cmp.Or(cmp.Compare(b.rank, a.rank), byDue(a, b)) })
	switch {
	case len(ends) == 0 && len(moves) == 0:
		return Action{}
	case len(ends) == 0:
		return moves[0].Action
	case len(moves) > 0 && ends[0].What == Expire && o.Versioned && moves[0].DueMS <= ends[0].DueMS:
		return moves[0].Action
	}
	return ends[0].Action
}

// draw makes random configurations and objects that often meet.
type draw struct{ *rand.Rand }

func (d draw) one(n int) bool { return d.IntN(n) == 0 }

func (d draw) key(max int) string {
	b := make([]byte, d.IntN(max+1))
	for i := range b {
		b[i] = "ab/"[d.IntN(3)]
	}
	return string(b)
}

func (d draw) tags() (out []*metapb.KV) {
	for _, n := range []string{"x", "y"} {
		if d.one(2) {
			out = append(out, &metapb.KV{Name: n, Value: string("12"[d.IntN(2)])})
		}
	}
	return out
}

func (d draw) transitions() (out []*metapb.LifecycleTransition) {
	for range d.IntN(3) {
		t := &metapb.LifecycleTransition{Days: uint32(d.IntN(60)), StorageClass: plainClasses[1+d.IntN(6)], NewerNoncurrent: uint32(d.IntN(3))}
		if d.one(4) {
			t.DateMs = int64(d.IntN(100)) * testDay.Milliseconds()
		}
		out = append(out, t)
	}
	return out
}

func (d draw) rule(i int) *metapb.LifecycleRule {
	r := &metapb.LifecycleRule{Id: fmt.Sprint(i), Disabled: d.one(10)}
	if !d.one(5) {
		f := &metapb.LifecycleFilter{Prefix: d.key(3)}
		if d.one(4) {
			f.Tags = d.tags()
		}
		if d.one(4) {
			f.HasSizeGreater, f.SizeGreater = true, uint64(d.IntN(1<<18))
		}
		if d.one(4) {
			f.HasSizeLess, f.SizeLess = true, uint64(d.IntN(1<<18))
		}
		r.Filter = f
	}
	switch d.IntN(5) {
	case 0:
		r.Expiration = &metapb.LifecycleExpiration{ExpiredDeleteMarker: true}
	case 1:
		r.Expiration = &metapb.LifecycleExpiration{DateMs: int64(1+d.IntN(100)) * testDay.Milliseconds()}
	case 2:
		r.Expiration = &metapb.LifecycleExpiration{Days: uint32(1 + d.IntN(50))}
	}
	if d.one(3) {
		r.NoncurrentExpiration = &metapb.LifecycleNoncurrentExpiration{Days: uint32(1 + d.IntN(50)), NewerNoncurrent: uint32(d.IntN(4))}
	}
	if d.one(3) {
		r.AbortDays = uint32(1 + d.IntN(50))
	}
	if d.one(2) {
		r.Transitions, r.NoncurrentTransitions = d.transitions(), d.transitions()
	}
	return r
}

func (d draw) object() Object {
	o := Object{
		Kind: Kind(d.IntN(3)), Key: storage.Key("a" + d.key(4)), Size: uint64(d.IntN(1 << 18)), Tags: d.tags(),
		ModifiedMS: d.Int64N(50 * testDay.Milliseconds()), Versioned: d.one(2), Locked: d.one(5), Newer: d.IntN(4),
	}
	if d.one(2) {
		o.Class = storage.StorageClass(plainClasses[d.IntN(len(plainClasses))])
	}
	if d.one(4) { // midnight itself
		o.ModifiedMS -= o.ModifiedMS % testDay.Milliseconds()
	}
	switch o.Kind {
	case Noncurrent:
		o.NoncurrentMS = o.ModifiedMS + d.Int64N(20*testDay.Milliseconds())
		o.Marker = d.one(3)
	case Current:
		o.Marker, o.Only = d.one(3), d.one(2)
	}
	if o.Kind == Upload || o.Marker {
		o.Size, o.Tags, o.Class = 0, nil, ""
	}
	return o
}

// TestRandomRules: the compiled rules agree with the plain second implementation.
func TestRandomRules(t *testing.T) {
	d := draw{rand.New(rand.NewPCG(seed.Of(t), 1))}
	due := map[What]int{}
	for range 3000 {
		cfg := &metapb.LifecycleConfig{VariesByStorageClass: d.one(2)}
		for i := range d.IntN(12) {
			cfg.Rules = append(cfg.Rules, d.rule(i))
		}
		rules := Compile(cfg, testDay)
		for range 30 {
			o := d.object()
			now := d.Int64N(120 * testDay.Milliseconds())
			got, want := rules.Decide(&o, now), plainDecide(cfg, &o, now)
			if got != want {
				t.Fatalf("%+v\nby %v\nat %d: %+v, want %+v", o, cfg, now, got, want)
			}
			due[got.What]++
			checkFrom(t, rules, cfg, &o)
			checkExpires(t, cfg, rules, &o)
		}
	}
	for w := Nothing; w <= Transition; w++ {
		if due[w] < 100 {
			t.Errorf("%v came only %d times", w, due[w])
		}
	}
}

// checkFrom: a key that some rule's prefix matches is never passed over.
func checkFrom(t *testing.T, rules *Rules, cfg *metapb.LifecycleConfig, o *Object) {
	t.Helper()
	match := slices.ContainsFunc(cfg.Rules, func(r *metapb.LifecycleRule) bool {
		return !r.Disabled && strings.HasPrefix(string(o.Key), r.Filter.GetPrefix())
	})
	from, ok := rules.From(o.Key)
	if match && (!ok || from != o.Key) || !match && ok && from <= o.Key {
		t.Fatalf("from %q: %q %v", o.Key, from, ok)
	}
	if first, ok := rules.From(""); match && (!ok || first > o.Key) {
		t.Fatalf("the first key is %q, but %q matches", first, o.Key)
	}
}

// checkExpires: what a client is told comes true then, and not before.
func checkExpires(t *testing.T, cfg *metapb.LifecycleConfig, rules *Rules, o *Object) {
	t.Helper()
	at, id, ok := Expires(cfg, *o, testDay)
	plain := *o
	plain.Versioned, plain.Locked = false, false
	if a := rules.Decide(&plain, 1<<40); ok != (a.What == Expire || a.What == Abort) || ok && (a.DueMS != at.UnixMilli() || a.Rule != id) {
		t.Fatalf("told %v %q %v, but %+v", at, id, ok, a)
	}
	if ok {
		if a := rules.Decide(&plain, at.UnixMilli()-1); a.What == Expire {
			t.Fatalf("told %v, but %+v a moment earlier", at, a)
		}
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{1, 10, 1000} {
		b.Run(fmt.Sprint(n, " rules"), func(b *testing.B) {
			cfg := &metapb.LifecycleConfig{}
			for i := range n {
				cfg.Rules = append(cfg.Rules, &metapb.LifecycleRule{
					Id: fmt.Sprint(i), Filter: &metapb.LifecycleFilter{Prefix: fmt.Sprintf("logs/%d/", i)},
					Expiration: &metapb.LifecycleExpiration{Days: 30}, Transitions: []*metapb.LifecycleTransition{moveDays(10, storage.GlacierIR)},
				})
			}
			rules := Compile(cfg, testDay)
			o := current("logs/0/2026/11/21/some-file-of-a-log.gz")
			b.ReportAllocs()
			for b.Loop() {
				if rules.Decide(&o, o.ModifiedMS).What != Nothing {
					b.Fatal("due")
				}
			}
		})
	}
}
