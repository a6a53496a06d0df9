// Package lifecycle decides what S3's lifecycle rules want of an object: nothing,
// its end, or another storage class. It is pure: what it needs to know is given,
// the time included, and it changes nothing.
//
// # Time
//
// A number of days counts from when the object was made (or became noncurrent, or
// the upload was begun) and is rounded up to the next midnight UTC, so an action
// is due at midnight and never earlier than the days ask. How long a day is can be
// configured; "midnight" is then every multiple of it since 1970.
//
// # Several rules
//
// Of several expirations the earliest counts. Of several transitions that are due
// the one to the class furthest down is taken, if S3 allows the way there. What
// removes bytes goes before a transition of the same time, and a transition
// before an expiration that only puts a delete marker on top; an
// expiration that was due earlier goes first in any case. Tiers of INTELLIGENT_TIERING
// change where nothing else is due.
package lifecycle

import (
	"slices"
	"strings"
	"time"

	"cairn/proto/metapb"
	"cairn/storage"
)

// Kind is what an object is to lifecycle rules.
type Kind uint8

// Kinds of objects.
const (
	Current    Kind = iota // the newest version of its key, or a delete marker that is
	Noncurrent             // an older one
	Upload                 // a multipart upload in progress
)

// Object is what rules decide by. Times are unix milliseconds.
type Object struct {
	Kind         Kind
	Key          storage.Key
	Size         uint64 // bytes; 0 of markers and uploads
	Tags         []*metapb.KV
	ModifiedMS   int64                // when it was made; of an upload: begun
	NoncurrentMS int64                // when it became noncurrent
	Class        storage.StorageClass // empty is STANDARD
	Marker       bool                 // it is a delete marker
	Only         bool                 // there is no other version of its key
	Newer        int                  // of a noncurrent version: how many newer noncurrent ones there are
	Versioned    bool                 // the end of a current version is a delete marker on top
	Locked       bool                 // retention or legal hold forbids to remove it now

	// Of INTELLIGENT_TIERING:
	Tier       metapb.Tiering_Tier
	AccessedMS int64 // when it was last read or, if never, made
	RestoredMS int64 // when the restore is ready that was asked for in an archive tier; 0: none was
}

// What is an action.
type What uint8

// Actions.
const (
	Nothing          What = iota
	Expire                // the current version: removed, or a delete marker on top
	RemoveNoncurrent      // a noncurrent version: removed
	RemoveMarker          // a delete marker that nothing is left behind: removed
	Abort                 // an upload in progress: aborted
	Transition            // the version: to Class
	Retier                // the version: to another tier of INTELLIGENT_TIERING
)

func (w What) String() string {
	switch w {
	case Expire:
		return "expire"
	case RemoveNoncurrent:
		return "remove noncurrent"
	case RemoveMarker:
		return "remove marker"
	case Abort:
		return "abort upload"
	case Transition:
		return "transition"
	case Retier:
		return "change tier"
	}
	return "nothing"
}

// Action is what is due for an object. The zero value is nothing.
type Action struct {
	What  What
	Class storage.StorageClass // of a transition; of a change of the tier, the one that has the bytes of the new tier: see Tier
	Rule  string               // the id of the rule that wants it
	DueMS int64                // since when, unix milliseconds
}

// MinimumBytes is the size below which objects are not moved unless a rule or the configuration says otherwise.
const MinimumBytes = 128 << 10

// infrequentDays is how old a version must be for the classes of infrequent access, whatever a rule says.
const infrequentDays = 30

// Decide is what is due for an object by the rules of a configuration, which may be nil, with days of that length.
// Who asks about many objects compiles the rules once.
func Decide(cfg *metapb.LifecycleConfig, o *Object, now time.Time, day time.Duration) Action {
	return Compile(cfg, day).Decide(o, now.UnixMilli())
}

// Expires is when a current version will expire, or an upload be aborted, by the rules there are, and by
// which; ok is false if it will not. It costs a look at every rule and no memory.
func Expires(cfg *metapb.LifecycleConfig, o Object, day time.Duration) (at time.Time, ruleID string, ok bool) {
	end := expiry
	switch {
	case o.Kind == Upload:
		end = abort
	case o.Kind != Current || o.Marker:
		return time.Time{}, "", false
	}
	due := int64(0)
	for _, r := range cfg.GetRules() {
		if r.GetDisabled() || !strings.HasPrefix(string(o.Key), r.GetFilter().GetPrefix()) || !matches(r.GetFilter(), &o) {
			continue
		}
		if t, has := end(r, &o, day.Milliseconds()); has && (!ok || t < due) {
			due, ruleID, ok = t, r.Id, true
		}
	}
	if !ok {
		return time.Time{}, "", false
	}
	return time.UnixMilli(due).UTC(), ruleID, true
}

// NextMidnight is the first midnight after a time, all in unix milliseconds.
func NextMidnight(atMS, dayMS int64) int64 { return (atMS/dayMS + 1) * dayMS }

// after is when so many days after a time are over.
func after(fromMS int64, days uint32, dayMS int64) int64 {
	return NextMidnight(fromMS+int64(days)*dayMS, dayMS)
}

// expiry is when a rule ends a current version.
func expiry(r *metapb.LifecycleRule, o *Object, dayMS int64) (dueMS int64, ok bool) {
	e := r.GetExpiration()
	switch {
	case e.GetDays() != 0:
		return after(o.ModifiedMS, e.Days, dayMS), true
	case e.GetDateMs() != 0:
		return e.DateMs, true
	}
	return 0, false
}

// abort is when a rule ends an upload. The size of an upload is not known before its end, and it has no tags to go by.
func abort(r *metapb.LifecycleRule, o *Object, dayMS int64) (dueMS int64, ok bool) {
	f := r.GetFilter()
	if r.AbortDays == 0 || f.GetHasSizeGreater() || f.GetHasSizeLess() || len(f.GetTags()) > 0 {
		return 0, false
	}
	return after(o.ModifiedMS, r.AbortDays, dayMS), true
}

// matches reports whether a filter holds for an object whose key has its prefix.
func matches(f *metapb.LifecycleFilter, o *Object) bool {
	if f == nil {
		return true
	}
	if f.HasSizeGreater && o.Size <= f.SizeGreater || f.HasSizeLess && o.Size >= f.SizeLess {
		return false
	}
	for _, want := range f.Tags {
		if !slices.ContainsFunc(o.Tags, func(t *metapb.KV) bool { return t.GetName() == want.GetName() && t.GetValue() == want.GetValue() }) {
			return false
		}
	}
	return true
}

// rank orders classes by what they cost to keep: higher is cheaper. ok is false for a class that no rule can name.
func rank(class storage.StorageClass) (n int, ok bool) {
	switch class {
	case "", storage.Standard, storage.ReducedRedundancy:
		return 0, true
	case storage.StandardIA:
		return 1, true
	case storage.OnezoneIA:
		return 2, true
	case storage.GlacierIR:
		return 3, true
	case storage.IntelligentTiering: // preferred to all but the archives
		return 4, true
	case storage.Glacier:
		return 5, true
	case storage.DeepArchive:
		return 6, true
	}
	return 0, false
}

// MayMove reports whether S3 lets a version go from one class to another.
func MayMove(from, to storage.StorageClass) bool {
	archive := to == storage.Glacier || to == storage.DeepArchive
	switch from {
	case "", storage.Standard, storage.ReducedRedundancy:
		n, ok := rank(to)
		return ok && n > 0
	case storage.StandardIA:
		return archive || to == storage.IntelligentTiering || to == storage.OnezoneIA || to == storage.GlacierIR
	case storage.IntelligentTiering:
		return archive || to == storage.OnezoneIA || to == storage.GlacierIR
	case storage.OnezoneIA, storage.GlacierIR:
		return archive
	case storage.Glacier:
		return to == storage.DeepArchive
	}
	return false
}

// largeEnough reports whether the default minimum size lets an object go to a
// class. A filter that speaks of sizes takes the place of the default.
func largeEnough(f *metapb.LifecycleFilter, varies bool, o *Object, class storage.StorageClass) bool {
	if o.Size >= MinimumBytes || f.GetHasSizeGreater() || f.GetHasSizeLess() {
		return true
	}
	return varies && (class == storage.Glacier || class == storage.DeepArchive)
}
