package background

import (
	"slices"
	"strings"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/lifecycle"
)

// model is a bucket as S3 documents it: its versions, its uploads, and what rules do to them. It knows nothing of how the
// store finds out. All times are unix milliseconds; operations and rounds stand clear of midnights, so moments are not important.
type model struct {
	versioning int
	lock       bool
	keys       map[string][]*version // newest first
	uploads    []*upload
	rules      []*metapb.LifecycleRule
	varies     bool
}

const (
	unversioned = iota
	enabled
	suspended
)

type version struct {
	id         string
	null       bool
	marker     bool
	size       int64
	data       []byte
	tag        string
	class      storage.StorageClass // "" is STANDARD
	made       int64
	noncurrent int64 // since when it is not the newest; 0 while it is
	hold       bool
	until      int64 // of its retention
	restored   bool  // a restore was asked for
}

type upload struct {
	key, id string
	began   int64
	v       *version // what it will be
}

func (v *version) locked(now int64) bool { return v.hold || now < v.until }

// top puts a version on top of a key's.
func (m *model) top(key string, v *version, now int64) error {
	v.null, v.made = m.versioning != enabled, now
	all := m.keys[key]
	if v.null {
		for _, o := range all {
			if o.null && o.locked(now) {
				return errs.New(errs.ObjectLocked, "", "", "")
			}
		}
		all = slices.DeleteFunc(all, func(o *version) bool { return o.null })
	}
	if len(all) > 0 && all[0].noncurrent == 0 {
		all[0].noncurrent = now
	}
	m.set(key, append([]*version{v}, all...))
	return nil
}

func (m *model) set(key string, all []*version) {
	if m.keys == nil {
		m.keys = map[string][]*version{}
	}
	m.keys[key] = all
	if len(all) == 0 {
		delete(m.keys, key)
	}
}

func (m *model) put(key string, v *version, now int64) { _ = m.top(key, v, now) }

// delete is a delete without a version.
func (m *model) delete(key, markerID string, now int64) error {
	if m.versioning == unversioned {
		m.set(key, nil)
		return nil
	}
	return m.top(key, &version{marker: true, id: markerID}, now)
}

func (m *model) deleteVersion(key string, v *version, now int64) error {
	if v.locked(now) {
		return errs.New(errs.ObjectLocked, "", "", "")
	}
	m.remove(key, v)
	return nil
}

// remove takes a version away; the next one is the newest then.
func (m *model) remove(key string, v *version) {
	all := slices.DeleteFunc(slices.Clone(m.keys[key]), func(o *version) bool { return o == v })
	if len(all) > 0 {
		all[0].noncurrent = 0
	}
	m.set(key, all)
}

// midnight is the first midnight that is more than so many days later.
func midnight(from int64, days uint32) int64 {
	day := historyDay.Milliseconds()
	return ((from+int64(days)*day)/day + 1) * day
}

// settle does what is due, until nothing is any more.
func (m *model) settle(now int64) {
	for m.ends(now) || m.transitions(now) {
	}
}

// ends ends what is to be ended, all as it is when it begins.
func (m *model) ends(now int64) bool {
	var todo []func()
	for key, all := range m.keys {
		for i, v := range all {
			if act := m.end(key, all, i, v, now); act != nil {
				todo = append(todo, act)
			}
		}
	}
	for _, up := range m.uploads {
		for _, r := range m.rules {
			if !r.Disabled && r.AbortDays != 0 && strings.HasPrefix(up.key, r.Filter.Prefix) && midnight(up.began, r.AbortDays) <= now {
				todo = append(todo, func() { m.uploads = slices.DeleteFunc(m.uploads, func(o *upload) bool { return o == up }) })
			}
		}
	}
	for _, act := range todo {
		act()
	}
	return len(todo) > 0
}

// noncurrentBefore is how many noncurrent versions are newer than the i-th.
func noncurrentBefore(i int) int { return max(0, i-1) }

func (m *model) matching(key string, v *version) (out []*metapb.LifecycleRule) {
	for _, r := range m.rules {
		f := r.Filter
		switch {
		case r.Disabled, !strings.HasPrefix(key, f.Prefix):
		case len(f.Tags) > 0 && (v.marker || v.tag != f.Tags[0].Value):
		case f.HasSizeGreater && v.size <= int64(f.SizeGreater), f.HasSizeLess && v.size >= int64(f.SizeLess):
		default:
			out = append(out, r)
		}
	}
	return out
}

// end is what ends a version now, or nil.
func (m *model) end(key string, all []*version, i int, v *version, now int64) func() {
	rules := m.matching(key, v)
	if i > 0 {
		for _, r := range rules {
			e := r.NoncurrentExpiration
			if e != nil && noncurrentBefore(i) >= int(e.NewerNoncurrent) && midnight(v.noncurrent, e.Days) <= now && !v.locked(now) {
				return func() { m.remove(key, v) }
			}
		}
		return nil
	}
	due := int64(0)
	for _, r := range rules {
		e, at := r.Expiration, int64(0)
		switch {
		case e == nil:
		case v.marker && len(all) > 1: // an expired delete marker has nothing behind it
		case v.marker && e.ExpiredDeleteMarker:
			at = now
		case e.Days != 0:
			at = midnight(v.made, e.Days)
		case e.DateMs != 0 && !v.marker:
			at = e.DateMs
		}
		if at != 0 && at <= now && (due == 0 || at < due) {
			due = at
		}
	}
	switch {
	case due == 0:
		return nil
	case v.marker:
		return func() { m.remove(key, v) }
	case m.versioning == unversioned || m.versioning == suspended && v.null:
		if v.locked(now) {
			return nil
		}
	default: // a delete marker comes on top, after a transition that was due before
		if _, at, ok := m.move(key, i, v, now); ok && at <= due {
			return nil
		}
	}
	return func() { _ = m.delete(key, "", now) }
}

// rank is how far down a class is.
var rank = map[storage.StorageClass]int{"": 0, storage.StandardIA: 1, storage.OnezoneIA: 2, storage.GlacierIR: 3, storage.Glacier: 4, storage.DeepArchive: 5}

// ways are the transitions that S3 documents.
var ways = map[storage.StorageClass][]storage.StorageClass{
	"":                 {storage.StandardIA, storage.OnezoneIA, storage.GlacierIR, storage.Glacier, storage.DeepArchive},
	storage.StandardIA: {storage.OnezoneIA, storage.GlacierIR, storage.Glacier, storage.DeepArchive},
	storage.OnezoneIA:  {storage.Glacier, storage.DeepArchive},
	storage.GlacierIR:  {storage.Glacier, storage.DeepArchive},
	storage.Glacier:    {storage.DeepArchive},
}

// move is the class that a version is to have now, and since when that is due.
func (m *model) move(key string, i int, v *version, now int64) (to storage.StorageClass, due int64, ok bool) {
	if v.marker {
		return "", 0, false
	}
	for _, r := range m.matching(key, v) {
		from, list := v.made, r.Transitions
		if i > 0 {
			from, list = v.noncurrent, r.NoncurrentTransitions
		}
		for _, t := range list {
			class, at := storage.StorageClass(t.StorageClass), t.DateMs
			if at == 0 {
				at = midnight(from, t.Days)
			}
			if class == storage.StandardIA || class == storage.OnezoneIA {
				at = max(at, midnight(from, 30))
			}
			archive := class == storage.Glacier || class == storage.DeepArchive
			large := v.size >= 128<<10 || r.Filter.HasSizeGreater || r.Filter.HasSizeLess || m.varies && archive
			switch {
			case at > now, !large, !slices.Contains(ways[v.class], class), i > 0 && noncurrentBefore(i) < int(t.NewerNoncurrent):
			case !ok || rank[class] > rank[to] || class == to && at < due:
				to, due, ok = class, at, true
			}
		}
	}
	return to, due, ok
}

func (m *model) transitions(now int64) (any bool) {
	for key, all := range m.keys {
		for i, v := range all {
			if to, _, ok := m.move(key, i, v, now); ok && m.end(key, all, i, v, now) == nil {
				v.class, any = to, true
			}
		}
	}
	return any
}

// sum is how much the worker has done.
func sum(s lifecycle.Status) int64 { return s.Expired + s.Removed + s.Aborted + s.Transitioned }
