package store

import (
	"crypto/md5"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage/errs"
)

// model is what a store should hold, said as simply as possible: a list of versions per key, newest first. Its methods
// do to it what S3 says and answer what the store should: a kind of error, 0 for none.
type model struct {
	buckets map[string]*mBucket
}

type mBucket struct {
	versioning metapb.Versioning
	lock       objects.LockConfig
	tags       string
	block      *objects.PublicAccessBlock
	disowned   bool // without ownership controls
	keys       map[string][]*mVersion
}

type mVersion struct {
	id       string // "null" on buckets that never were versioned, too
	marker   bool
	body     []byte
	etag     string
	modified time.Time // of a marker: once it was seen
	ctype    string
	tags     string
	parts    []int // sizes; nil: not multipart
	mode     string
	until    time.Time
	hold     bool
}

func etagOf(body []byte) string {
	sum := md5.Sum(body)
	return hex.EncodeToString(sum[:])
}

func tagsText(tags []*metapb.KV) string {
	var s strings.Builder
	for _, t := range tags {
		s.WriteString(t.Name + "=" + t.Value + " ")
	}
	return s.String()
}

func (b *mBucket) versioned() bool { return b.versioning != metapb.Versioning_VERSIONING_NEVER }

// shown is the id that operations on a version answer.
func (b *mBucket) shown(v *mVersion) string {
	if !b.versioned() {
		return ""
	}
	return v.id
}

// size is how many versions there are, delete markers among them.
func (b *mBucket) size() (n int) {
	for _, vs := range b.keys {
		n += len(vs)
	}
	return n
}

// current is the newest version if it is not a delete marker, else nil.
func (b *mBucket) current(key string) *mVersion {
	if vs := b.keys[key]; len(vs) > 0 && !vs[0].marker {
		return vs[0]
	}
	return nil
}

// find is the version asked for ("": the newest) and what a read of it answers. A marker is answered with IsDeleteMarker.
func (b *mBucket) find(key, id string) (*mVersion, errs.Kind) {
	vs := b.keys[key]
	i := min(0, len(vs)-1)
	missing := errs.NoSuchKey
	if id != "" {
		missing = errs.NoSuchVersion
		i = slices.IndexFunc(vs, func(v *mVersion) bool { return v.id == id })
	}
	switch {
	case i < 0:
		return nil, missing
	case vs[i].marker:
		return vs[i], errs.IsDeleteMarker
	}
	return vs[i], 0
}

func (b *mBucket) holds(key string, c objects.Conditions) errs.Kind {
	v := b.current(key)
	match := func(list []string) bool {
		return v != nil && (slices.Contains(list, "*") || slices.Contains(list, v.etag))
	}
	switch {
	case len(c.IfMatch) > 0 && v == nil:
		return errs.NoSuchKey
	case len(c.IfMatch) > 0 && !match(c.IfMatch), match(c.IfNoneMatch):
		return errs.PreconditionFailed
	}
	return 0
}

// mayPut is what a put of v answers; add then does it.
func (b *mBucket) mayPut(key string, v *mVersion, c objects.Conditions) errs.Kind {
	if kind := b.holds(key, c); kind != 0 {
		return kind
	}
	if !b.lock.Enabled && (v.mode != "" || v.hold) {
		return errs.InvalidRequest
	}
	return 0
}

// add makes v, with the id and time that the store gave it, the newest version.
func (b *mBucket) add(key string, v *mVersion) {
	if b.lock.Enabled && !v.marker && v.mode == "" && b.lock.Mode != "" {
		v.mode, v.until = b.lock.Mode, v.modified.Add(time.Duration(b.lock.Days+365*b.lock.Years)*24*time.Hour)
	}
	vs := b.keys[key]
	if b.versioning != metapb.Versioning_VERSIONING_ENABLED { // the null version is replaced
		vs = slices.DeleteFunc(slices.Clone(vs), func(v *mVersion) bool { return v.id == "null" })
	}
	b.keys[key] = append([]*mVersion{v}, vs...)
}

func (v *mVersion) locked(bypass bool) bool {
	return v.hold || v.retained() && !(bypass && v.mode == "GOVERNANCE")
}

func (v *mVersion) retained() bool { return v.mode != "" && v.until.After(time.Now()) }

// remove removes the key (id "") or a version for good. It answers what the store should: gone is what was removed, marker
// says that a delete marker is to be added, with the id that the store gives it.
func (b *mBucket) remove(key, id string, bypass bool, c objects.Conditions) (gone *mVersion, marker bool, kind errs.Kind) {
	if id == "" {
		if kind := b.holds(key, c); kind != 0 {
			return nil, false, kind
		}
		if b.versioned() {
			return nil, true, 0
		}
		delete(b.keys, key)
		return nil, false, 0
	}
	v, kind := b.find(key, id)
	switch {
	case kind == errs.NoSuchVersion:
		return nil, false, 0
	case v.locked(bypass):
		return nil, false, errs.ObjectLocked
	}
	b.keys[key] = slices.DeleteFunc(slices.Clone(b.keys[key]), func(o *mVersion) bool { return o == v })
	if len(b.keys[key]) == 0 {
		delete(b.keys, key)
	}
	return v, false, 0
}

func (b *mBucket) retain(v *mVersion, r objects.Retention, bypass bool) errs.Kind {
	longer := r.Mode == v.mode && !r.Until.Before(v.until)
	if v.retained() && !longer && (v.mode == "COMPLIANCE" || !bypass) {
		return errs.ObjectLocked
	}
	v.mode, v.until = r.Mode, r.Until
	return 0
}

// configure is what a change of the bucket's configuration answers.
func (b *mBucket) setVersioning(enabled bool) errs.Kind {
	switch {
	case enabled:
		b.versioning = metapb.Versioning_VERSIONING_ENABLED
	case b.lock.Enabled:
		return errs.InvalidState
	default:
		b.versioning = metapb.Versioning_VERSIONING_SUSPENDED
	}
	return 0
}

func (b *mBucket) setLock(cfg objects.LockConfig) errs.Kind {
	if b.versioning != metapb.Versioning_VERSIONING_ENABLED {
		return errs.InvalidState
	}
	b.lock = cfg
	b.lock.Enabled = true
	return 0
}

// mEntry is one of a listing: a version of a key, or a common prefix.
type mEntry struct {
	key    string // or the prefix
	v      *mVersion
	latest bool
}

// folded is the common prefix that a key with the prefix falls into, or "".
func folded(key, prefix, delimiter string) string {
	if delimiter == "" || !strings.HasPrefix(key, prefix) {
		return ""
	}
	if i := strings.Index(key[len(prefix):], delimiter); i >= 0 {
		return key[:len(prefix)+i+len(delimiter)]
	}
	return ""
}

// list are the versions, or with only the current ones, behind the markers.
func (b *mBucket) list(current bool, prefix, delimiter, keyMarker, idMarker string) (out []mEntry) {
	passed := folded(keyMarker, prefix, delimiter) // a marker in a common prefix passes all of that
	keys := make([]string, 0, len(b.keys))
	for k := range b.keys {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if !strings.HasPrefix(key, prefix) || key < keyMarker || current && b.current(key) == nil || passed != "" && strings.HasPrefix(key, passed) {
			continue
		}
		vs, first := b.keys[key], 0
		if key == keyMarker {
			if first = len(vs); idMarker != "" {
				first = 1 + slices.IndexFunc(vs, func(v *mVersion) bool { return v.id == idMarker })
			}
		}
		if first == len(vs) {
			continue
		}
		if cp := folded(key, prefix, delimiter); cp != "" {
			if len(out) == 0 || out[len(out)-1].key != cp || out[len(out)-1].v != nil {
				out = append(out, mEntry{key: cp})
			}
			continue
		}
		for i := first; i < len(vs) && (i == 0 || !current); i++ {
			out = append(out, mEntry{key, vs[i], i == 0})
		}
	}
	return out
}
