package lifecycle

import (
	"slices"
	"strings"
	"time"

	"cairn/proto/metapb"
	"cairn/storage"
)

// Rules are the enabled rules of a configuration, made ready for many objects.
// They are not changed once made, so they are safe for concurrent use; a decision needs no memory.
type Rules struct {
	dayMS    int64
	varies   bool
	prefixes []prefix // in order of their text
	tiered   bool     // there are objects of INTELLIGENT_TIERING
	tiering  []*metapb.TieringConfig
}

// prefix is the rules of one prefix.
type prefix struct {
	text   string
	rules  []rule
	parent int // the longest other prefix that this one begins with; -1: none
}

// rule is a rule and its place in the configuration: the first of equals is taken.
type rule struct {
	*metapb.LifecycleRule
	at int
}

// Compile makes rules ready. cfg may be nil and is not copied: it must not be changed. day is at least a millisecond.
func Compile(cfg *metapb.LifecycleConfig, day time.Duration) *Rules {
	r := &Rules{dayMS: max(1, day.Milliseconds()), varies: cfg.GetVariesByStorageClass()}
	for i, x := range cfg.GetRules() {
		if x.GetDisabled() {
			continue
		}
		text := x.GetFilter().GetPrefix()
		at, found := r.search(text)
		if !found {
			r.prefixes = slices.Insert(r.prefixes, at, prefix{text: text})
		}
		r.prefixes[at].rules = append(r.prefixes[at].rules, rule{x, i})
	}
	for i := range r.prefixes {
		r.prefixes[i].parent = r.chain(i-1, r.prefixes[i].text)
	}
	return r
}

// search finds the first prefix not below a text.
func (r *Rules) search(text string) (at int, found bool) {
	return slices.BinarySearchFunc(r.prefixes, text, func(p prefix, s string) int { return strings.Compare(p.text, s) })
}

// chain is the first of prefix i, its parent and so on that a text begins with; -1 if none does.
func (r *Rules) chain(i int, text string) int {
	for i >= 0 && !strings.HasPrefix(text, r.prefixes[i].text) {
		i = r.prefixes[i].parent
	}
	return i
}

// longest is the longest prefix that a key begins with; its parents are the others.
func (r *Rules) longest(key string) int {
	at, found := r.search(key)
	if !found {
		at--
	}
	return r.chain(at, key)
}

// Empty reports whether there is nothing that could ever be due.
func (r *Rules) Empty() bool { return len(r.prefixes) == 0 && !r.tiered }

// From is the first key, not below the one given, that any rule can match; ok is false if there is none.
func (r *Rules) From(key storage.Key) (from storage.Key, ok bool) {
	if r.tiered || r.longest(string(key)) >= 0 {
		return key, true
	}
	at, _ := r.search(string(key))
	if at == len(r.prefixes) {
		return "", false
	}
	return storage.Key(r.prefixes[at].text), true
}

// DayMS is the length of a day in milliseconds.
func (r *Rules) DayMS() int64 { return r.dayMS }

// Decide is what is due for an object at a time, unix milliseconds.
func (r *Rules) Decide(o *Object, nowMS int64) Action {
	i := r.longest(string(o.Key))
	if i < 0 {
		return r.tier(o, nowMS)
	}
	c := choice{rules: r, o: o, nowMS: nowMS}
	for ; i >= 0; i = r.prefixes[i].parent {
		for _, x := range r.prefixes[i].rules {
			if matches(x.Filter, o) {
				c.add(x)
			}
		}
	}
	if a := c.action(); a.What != Nothing {
		return a
	}
	return r.tier(o, nowMS)
}

// choice gathers what the rules that match want of one object.
type choice struct {
	rules *Rules
	o     *Object
	nowMS int64
	end   Action // the earliest that is due
	endAt int    // its rule's place
	move  Action // the one furthest down
	moved int    // its rank
	moveN int    // its rule's place
}

func (c *choice) add(r rule) {
	o := c.o
	switch {
	case o.Kind == Upload:
		if due, ok := abort(r.LifecycleRule, o, c.rules.dayMS); ok {
			c.ends(r, Abort, due)
		}
	case o.Kind == Noncurrent:
		c.noncurrent(r)
	case o.Marker:
		c.marker(r)
	default:
		// A lock keeps the version, and a delete marker on top does not touch it.
		if due, ok := expiry(r.LifecycleRule, o, c.rules.dayMS); ok && (o.Versioned || !o.Locked) {
			c.ends(r, Expire, due)
		}
		for _, t := range r.Transitions {
			c.moves(r, t, o.ModifiedMS)
		}
	}
}

// noncurrent adds what a rule wants of a noncurrent version.
func (c *choice) noncurrent(r rule) {
	o := c.o
	if e := r.NoncurrentExpiration; e.GetDays() != 0 && o.Newer >= int(e.NewerNoncurrent) && !o.Locked {
		c.ends(r, RemoveNoncurrent, after(o.NoncurrentMS, e.Days, c.rules.dayMS))
	}
	if o.Marker {
		return
	}
	for _, t := range r.NoncurrentTransitions {
		if o.Newer >= int(t.NewerNoncurrent) {
			c.moves(r, t, o.NoncurrentMS)
		}
	}
}

// marker adds what a rule wants of a delete marker that is the current version:
// its end, once there is nothing behind it.
func (c *choice) marker(r rule) {
	e := r.Expiration
	switch {
	case !c.o.Only || e == nil:
	case e.ExpiredDeleteMarker:
		// When the last version behind it went is not known: it is taken for due since midnight.
		c.ends(r, RemoveMarker, max(c.o.ModifiedMS, c.nowMS-c.nowMS%c.rules.dayMS))
	case e.Days != 0:
		c.ends(r, RemoveMarker, after(c.o.ModifiedMS, e.Days, c.rules.dayMS))
	}
}

// ends adds an end of the object.
func (c *choice) ends(r rule, what What, dueMS int64) {
	if dueMS > c.nowMS {
		return
	}
	if e := &c.end; e.What == Nothing || dueMS < e.DueMS || dueMS == e.DueMS && r.at < c.endAt {
		c.end, c.endAt = Action{What: what, Rule: r.Id, DueMS: dueMS}, r.at
	}
}

// moves adds a transition.
func (c *choice) moves(r rule, t *metapb.LifecycleTransition, fromMS int64) {
	class := storage.StorageClass(t.StorageClass)
	due := t.DateMs
	if due == 0 {
		due = after(fromMS, t.Days, c.rules.dayMS)
	}
	if class == storage.StandardIA || class == storage.OnezoneIA {
		due = max(due, after(fromMS, infrequentDays, c.rules.dayMS))
	}
	if due > c.nowMS || !MayMove(c.o.Class, class) || !mayLeave(c.o, class, c.nowMS) || !largeEnough(r.Filter, c.rules.varies, c.o, class) {
		return
	}
	n, _ := rank(class)
	m := &c.move
	if m.What != Nothing && (n < c.moved || n == c.moved && (due > m.DueMS || due == m.DueMS && r.at > c.moveN)) {
		return
	}
	c.move, c.moved, c.moveN = Action{What: Transition, Class: class, Rule: r.Id, DueMS: due}, n, r.at
}

// action is what is to be done of all that is due.
func (c *choice) action() Action {
	if c.end.What == Nothing || c.move.What != Nothing && c.end.What == Expire && c.o.Versioned && c.move.DueMS <= c.end.DueMS {
		return c.move
	}
	return c.end
}
