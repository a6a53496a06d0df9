package lifecycle

import (
	"testing"
	"time"

	"cairn/proto/metapb"
	"cairn/storage"
)

const testDay = 24 * time.Hour

func at(text string) int64 {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return t.UnixMilli()
}

func one(r *metapb.LifecycleRule) *metapb.LifecycleConfig {
	if r.Id == "" {
		r.Id = "r"
	}
	return &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{r}}
}

func expireDays(n uint32) *metapb.LifecycleRule {
	return &metapb.LifecycleRule{Expiration: &metapb.LifecycleExpiration{Days: n}}
}

func filtered(r *metapb.LifecycleRule, f *metapb.LifecycleFilter) *metapb.LifecycleRule {
	r.Filter = f
	return r
}

func moveDays(n uint32, class storage.StorageClass) *metapb.LifecycleTransition {
	return &metapb.LifecycleTransition{Days: n, StorageClass: string(class)}
}

func current(key storage.Key) Object {
	return Object{Key: key, Size: 1 << 20, ModifiedMS: at("2014-01-15T10:30:00Z"), Only: true}
}

func with(o Object, change func(*Object)) Object {
	change(&o)
	return o
}

// TestDecide: each case names the last moment at which nothing is due and what is due a millisecond later.
func TestDecide(t *testing.T) {
	obj := current("logs/a")
	old := with(obj, func(o *Object) {
		o.Kind, o.NoncurrentMS, o.Only, o.Newer = Noncurrent, at("2014-01-15T10:30:00Z"), false, 2
		o.ModifiedMS = at("2013-01-01T00:00:00Z")
	})
	marker := with(obj, func(o *Object) { o.Marker, o.Size = true, 0 })
	upload := Object{Kind: Upload, Key: "logs/a", ModifiedMS: obj.ModifiedMS}
	small := with(obj, func(o *Object) { o.Size = MinimumBytes - 1 })
	never := ""
	for _, c := range []struct {
		name string
		cfg  *metapb.LifecycleConfig
		o    Object
		from string // due since; empty: never
		what What
		to   storage.StorageClass
	}{
		{"days round up to the next midnight", one(expireDays(3)), obj, "2014-01-19T00:00:00Z", Expire, ""},
		{"midnight itself is the day before", one(expireDays(1)), with(obj, func(o *Object) { o.ModifiedMS = at("2014-01-15T00:00:00Z") }), "2014-01-17T00:00:00Z", Expire, ""},
		{"a date", one(&metapb.LifecycleRule{Expiration: &metapb.LifecycleExpiration{DateMs: at("2015-02-01T00:00:00Z")}}), obj, "2015-02-01T00:00:00Z", Expire, ""},
		{"disabled", one(&metapb.LifecycleRule{Disabled: true, Expiration: &metapb.LifecycleExpiration{Days: 1}}), obj, never, Nothing, ""},
		{"prefix", one(filtered(expireDays(3), &metapb.LifecycleFilter{Prefix: "logs/"})), obj, "2014-01-19T00:00:00Z", Expire, ""},
		{"another prefix", one(filtered(expireDays(3), &metapb.LifecycleFilter{Prefix: "logs/b"})), obj, never, Nothing, ""},
		{"a prefix longer than the key", one(filtered(expireDays(3), &metapb.LifecycleFilter{Prefix: "logs/aa"})), obj, never, Nothing, ""},
		{"size greater", one(filtered(expireDays(3), &metapb.LifecycleFilter{HasSizeGreater: true, SizeGreater: 1<<20 - 1})), obj, "2014-01-19T00:00:00Z", Expire, ""},
		{"size not greater", one(filtered(expireDays(3), &metapb.LifecycleFilter{HasSizeGreater: true, SizeGreater: 1 << 20})), obj, never, Nothing, ""},
		{"size less", one(filtered(expireDays(3), &metapb.LifecycleFilter{HasSizeLess: true, SizeLess: 1<<20 + 1})), obj, "2014-01-19T00:00:00Z", Expire, ""},
		{"size not less", one(filtered(expireDays(3), &metapb.LifecycleFilter{HasSizeLess: true, SizeLess: 1 << 20})), obj, never, Nothing, ""},
		{"expiration leaves noncurrent versions", one(expireDays(3)), old, never, Nothing, ""},
		{"expiration leaves a marker over versions", one(expireDays(3)), with(marker, func(o *Object) { o.Only = false }), never, Nothing, ""},
		{"days clean up a marker with nothing behind", one(expireDays(3)), marker, "2014-01-19T00:00:00Z", RemoveMarker, ""},
		{"a date does not", one(&metapb.LifecycleRule{Expiration: &metapb.LifecycleExpiration{DateMs: 1}}), marker, never, Nothing, ""},
		{"marker over versions", one(&metapb.LifecycleRule{Expiration: &metapb.LifecycleExpiration{ExpiredDeleteMarker: true}}), with(marker, func(o *Object) { o.Only = false }), never, Nothing, ""},
		{"markers have no tags", one(filtered(expireDays(3), &metapb.LifecycleFilter{Tags: []*metapb.KV{{Name: "a"}}})), marker, never, Nothing, ""},
		{"noncurrent", one(&metapb.LifecycleRule{NoncurrentExpiration: &metapb.LifecycleNoncurrentExpiration{Days: 3}}), old, "2014-01-19T00:00:00Z", RemoveNoncurrent, ""},
		{"noncurrent marker", one(&metapb.LifecycleRule{NoncurrentExpiration: &metapb.LifecycleNoncurrentExpiration{Days: 3}}), with(old, func(o *Object) { o.Marker = true }), "2014-01-19T00:00:00Z", RemoveNoncurrent, ""},
		{"noncurrent leaves the current", one(&metapb.LifecycleRule{NoncurrentExpiration: &metapb.LifecycleNoncurrentExpiration{Days: 3}}), obj, never, Nothing, ""},
		{"two newer are kept, this is the third", one(&metapb.LifecycleRule{NoncurrentExpiration: &metapb.LifecycleNoncurrentExpiration{Days: 3, NewerNoncurrent: 2}}), old, "2014-01-19T00:00:00Z", RemoveNoncurrent, ""},
		{"three newer are kept", one(&metapb.LifecycleRule{NoncurrentExpiration: &metapb.LifecycleNoncurrentExpiration{Days: 3, NewerNoncurrent: 3}}), old, never, Nothing, ""},
		{"a lock wins", one(&metapb.LifecycleRule{NoncurrentExpiration: &metapb.LifecycleNoncurrentExpiration{Days: 3}}), with(old, func(o *Object) { o.Locked = true }), never, Nothing, ""},
		{"upload", one(&metapb.LifecycleRule{AbortDays: 7}), upload, "2014-01-23T00:00:00Z", Abort, ""},
		{"uploads don't expire", one(expireDays(3)), upload, never, Nothing, ""},
		{"objects are not aborted", one(&metapb.LifecycleRule{AbortDays: 7}), obj, never, Nothing, ""},
		{"transition", one(&metapb.LifecycleRule{Transitions: []*metapb.LifecycleTransition{moveDays(0, storage.GlacierIR)}}), obj, "2014-01-16T00:00:00Z", Transition, storage.GlacierIR},
		{"thirty days at least", one(&metapb.LifecycleRule{Transitions: []*metapb.LifecycleTransition{{DateMs: at("2014-01-20T00:00:00Z"), StorageClass: "STANDARD_IA"}}}), obj, "2014-02-15T00:00:00Z", Transition, storage.StandardIA},
		{"too small", one(&metapb.LifecycleRule{Transitions: []*metapb.LifecycleTransition{moveDays(0, storage.GlacierIR)}}), small, never, Nothing, ""},
		{"a filter of sizes goes before", one(filtered(&metapb.LifecycleRule{Transitions: []*metapb.LifecycleTransition{moveDays(0, storage.GlacierIR)}}, &metapb.LifecycleFilter{HasSizeGreater: true})), small, "2014-01-16T00:00:00Z", Transition, storage.GlacierIR},
		{"there already", one(&metapb.LifecycleRule{Transitions: []*metapb.LifecycleTransition{moveDays(0, storage.GlacierIR)}}), with(obj, func(o *Object) { o.Class = storage.GlacierIR }), never, Nothing, ""},
		{"no way up", one(&metapb.LifecycleRule{Transitions: []*metapb.LifecycleTransition{moveDays(30, storage.StandardIA)}}), with(obj, func(o *Object) { o.Class = storage.GlacierIR }), never, Nothing, ""},
		{"noncurrent transition", one(&metapb.LifecycleRule{NoncurrentTransitions: []*metapb.LifecycleTransition{moveDays(1, storage.GlacierIR)}}), old, "2014-01-17T00:00:00Z", Transition, storage.GlacierIR},
		{"noncurrent transition keeps newer ones", one(&metapb.LifecycleRule{NoncurrentTransitions: []*metapb.LifecycleTransition{{Days: 1, StorageClass: "GLACIER_IR", NewerNoncurrent: 3}}}), old, never, Nothing, ""},
		{"markers don't move", one(&metapb.LifecycleRule{NoncurrentTransitions: []*metapb.LifecycleTransition{moveDays(1, storage.GlacierIR)}}), with(old, func(o *Object) { o.Marker = true }), never, Nothing, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			rules := Compile(c.cfg, testDay)
			if c.from == never {
				if a := rules.Decide(&c.o, at("2099-01-01T00:00:00Z")); a.What != Nothing {
					t.Fatalf("%+v", a)
				}
				return
			}
			due := at(c.from)
			if a := rules.Decide(&c.o, due-1); a.What != Nothing {
				t.Fatalf("before its time: %+v", a)
			}
			if a, want := rules.Decide(&c.o, due), (Action{c.what, c.to, "r", due}); a != want {
				t.Fatalf("%+v, want %+v", a, want)
			}
		})
	}
}

func TestExpiredMarkerAtOnce(t *testing.T) {
	o := Object{Key: "k", Marker: true, Only: true, ModifiedMS: at("2014-01-15T10:30:00Z")}
	cfg := one(&metapb.LifecycleRule{Expiration: &metapb.LifecycleExpiration{ExpiredDeleteMarker: true}})
	a := Decide(cfg, &o, time.UnixMilli(o.ModifiedMS), testDay)
	if a.What != RemoveMarker || a.DueMS != o.ModifiedMS {
		t.Fatalf("%+v", a)
	}
}

// TestOverlap: what is taken where several actions are due.
func TestOverlap(t *testing.T) {
	now := at("2015-01-01T00:00:00Z")
	both := &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{
		{Id: "long", Expiration: &metapb.LifecycleExpiration{Days: 60}},
		{Id: "short", Filter: &metapb.LifecycleFilter{Prefix: "l"}, Expiration: &metapb.LifecycleExpiration{Days: 50}},
		{Id: "again", Expiration: &metapb.LifecycleExpiration{Days: 50}},
		{Id: "ia", Transitions: []*metapb.LifecycleTransition{moveDays(30, storage.StandardIA), moveDays(50, storage.GlacierIR)}},
	}}
	o := current("logs/a")
	if a := Decide(both, &o, time.UnixMilli(now), testDay); a.What != Expire || a.Rule != "short" {
		t.Fatalf("the earliest end, of the first such rule: %+v", a)
	}
	o.Versioned = true
	if a := Decide(both, &o, time.UnixMilli(now), testDay); a.What != Transition || a.Class != storage.GlacierIR {
		t.Fatalf("a transition goes before a delete marker: %+v", a)
	}
	o.Class = storage.GlacierIR
	if a := Decide(both, &o, time.UnixMilli(now), testDay); a.What != Expire {
		t.Fatalf("then the marker: %+v", a)
	}
	o.Class = ""
	both.Rules[3].Transitions[0].Days, both.Rules[3].Transitions[1].Days = 51, 55
	if a := Decide(both, &o, time.UnixMilli(now), testDay); a.What != Expire {
		t.Fatalf("what was due on an earlier day goes first: %+v", a)
	}
	both.VariesByStorageClass = true
	both.Rules = both.Rules[3:]
	both.Rules[0].Transitions = append(both.Rules[0].Transitions, moveDays(60, storage.Glacier))
	o.Size = 1
	if a := Decide(both, &o, time.UnixMilli(now), testDay); a.What != Transition || a.Class != storage.Glacier {
		t.Fatalf("only archives take small objects: %+v", a)
	}
	if a := Decide(nil, &o, time.UnixMilli(now), testDay); a != (Action{}) {
		t.Fatalf("without rules: %+v", a)
	}
}

func TestTags(t *testing.T) {
	rule := filtered(expireDays(1), &metapb.LifecycleFilter{Tags: []*metapb.KV{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}}})
	now := time.UnixMilli(at("2015-01-01T00:00:00Z"))
	for _, c := range []struct {
		tags []*metapb.KV
		want What
	}{
		{nil, Nothing},
		{[]*metapb.KV{{Name: "a", Value: "1"}}, Nothing},
		{[]*metapb.KV{{Name: "a", Value: "1"}, {Name: "b", Value: "3"}}, Nothing},
		{[]*metapb.KV{{Name: "b", Value: "2"}, {Name: "c"}, {Name: "a", Value: "1"}}, Expire},
	} {
		o := with(current("k"), func(o *Object) { o.Tags = c.tags })
		if a := Decide(one(rule), &o, now, testDay); a.What != c.want {
			t.Errorf("%v: %+v", c.tags, a)
		}
	}
	o := Object{Kind: Upload, Key: "k"}
	rule.AbortDays = 1
	if a := Decide(one(rule), &o, now, testDay); a.What != Nothing {
		t.Errorf("an upload has no tags to go by: %+v", a)
	}
}

func TestExpires(t *testing.T) {
	cfg := &metapb.LifecycleConfig{Rules: []*metapb.LifecycleRule{
		{Id: "off", Disabled: true, Expiration: &metapb.LifecycleExpiration{Days: 1}},
		{Id: "week", Expiration: &metapb.LifecycleExpiration{Days: 7}},
		{Id: "date", Expiration: &metapb.LifecycleExpiration{DateMs: at("2014-02-01T00:00:00Z")}},
		{Id: "logs", Filter: &metapb.LifecycleFilter{Prefix: "logs/"}, Expiration: &metapb.LifecycleExpiration{Days: 3}},
		{Id: "noncurrent", NoncurrentExpiration: &metapb.LifecycleNoncurrentExpiration{Days: 1}},
	}}
	check := func(key storage.Key, want, rule string) {
		t.Helper()
		due, id, ok := Expires(cfg, current(key), testDay)
		if !ok || due.Format(time.RFC3339) != want || id != rule {
			t.Errorf("%s: %v %s %v", key, due, id, ok)
		}
	}
	check("logs/a", "2014-01-19T00:00:00Z", "logs")
	check("other", "2014-01-23T00:00:00Z", "week")
	cfg.Rules = cfg.Rules[2:]
	check("other", "2014-02-01T00:00:00Z", "date")
	if _, _, ok := Expires(cfg, with(current("logs/a"), func(o *Object) { o.Kind = Noncurrent }), testDay); ok {
		t.Error("a noncurrent version does not expire so")
	}
	cfg.Rules = append(cfg.Rules, &metapb.LifecycleRule{Id: "abort", AbortDays: 7})
	upload := with(current("logs/a"), func(o *Object) { o.Kind, o.Size = Upload, 0 })
	if due, id, ok := Expires(cfg, upload, testDay); !ok || due.Format(time.RFC3339) != "2014-01-23T00:00:00Z" || id != "abort" {
		t.Error("an upload", due, id, ok)
	}
	if _, _, ok := Expires(nil, current("logs/a"), testDay); ok {
		t.Error("without rules")
	}
}

// TestShortDay: a day may be seconds, for tests of who uses this.
func TestShortDay(t *testing.T) {
	o := Object{Key: "k", ModifiedMS: 25_000}
	a := Decide(one(expireDays(2)), &o, time.UnixMilli(50_000), 10*time.Second)
	if a.What != Expire || a.DueMS != 50_000 {
		t.Fatalf("%+v", a)
	}
}

func TestFrom(t *testing.T) {
	cfg := &metapb.LifecycleConfig{}
	for _, p := range []string{"b/", "b/c/", "d"} {
		cfg.Rules = append(cfg.Rules, &metapb.LifecycleRule{Filter: &metapb.LifecycleFilter{Prefix: p}})
	}
	r := Compile(cfg, testDay)
	for key, want := range map[storage.Key]storage.Key{"": "b/", "a": "b/", "b/": "b/", "b/b": "b/b", "b/c": "b/c", "b/d/x": "b/d/x", "c": "d", "dz": "dz", "e": ""} {
		if got, ok := r.From(key); got != want || ok != (want != "") {
			t.Errorf("%q: %q %v, want %q", key, got, ok, want)
		}
	}
	if _, ok := Compile(nil, testDay).From(""); ok || !Compile(nil, testDay).Empty() {
		t.Error("no rules match no key")
	}
}

func TestMayMove(t *testing.T) {
	all := []storage.StorageClass{"STANDARD", "STANDARD_IA", "INTELLIGENT_TIERING", "ONEZONE_IA", "GLACIER_IR", "GLACIER", "DEEP_ARCHIVE"}
	want := map[storage.StorageClass]string{ // to the classes above, in their order
		"STANDARD": ".xxxxxx", "STANDARD_IA": "..xxxxx", "INTELLIGENT_TIERING": "...xxxx", "ONEZONE_IA": ".....xx",
		"GLACIER_IR": ".....xx", "GLACIER": "......x", "DEEP_ARCHIVE": ".......", "": ".xxxxxx", "SNOW": ".......",
	}
	for from, row := range want {
		for i, to := range all {
			if MayMove(from, to) != (row[i] == 'x') {
				t.Errorf("%s to %s", from, to)
			}
		}
	}
	if MayMove("", "SNOW") {
		t.Error("a class that does not exist")
	}
}
