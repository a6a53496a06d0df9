package store

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/s3api"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

// TestVersionsModel runs random operations on a whole store, through its own gateway, through one that has no metadata
// here, and through the SDK and the S3 handler before either, beside a model of what S3 says they do. In fake time, so that
// retention ends.
func TestVersionsModel(t *testing.T) { bubble.Test(t, versionsModel) }

var stepsFlag = flag.Int("store.steps", 6000, "operations of TestVersionsModel")

// world is the store and the model beside it.
type world struct {
	*testing.T
	rnd   *rand.Rand
	core  *core.Core
	store []gateway
	last  gateway // that was asked last
	m     *model
	step  int
	next  int            // number of the next body
	seen  map[string]int // answers by operation and kind
	notes []string       // the last operations
}

// gateway is a way to the store.
type gateway struct {
	s3api.Backend
	name string
	http bool // see sdkGateway for what its answers don't tell
}

// versionsMax is how many versions a bucket may come to have before more are deleted at once: a step takes the longer the more there are.
const versionsMax = 200

// notesMax is how many operations are shown when one fails.
const notesMax = 30

// note keeps what the next operation is.
func (w *world) note(format string, args ...any) {
	if len(w.notes) == 2*notesMax {
		w.notes = append(w.notes[:0], w.notes[notesMax:]...)
	}
	w.notes = append(w.notes, fmt.Sprintf("step %d: "+format, append([]any{w.step}, args...)...))
}

// said is what conditions there are.
func said(c objects.Conditions) string {
	text := ""
	if len(c.IfMatch) > 0 {
		text = fmt.Sprintf(", if match %q", c.IfMatch)
	}
	if len(c.IfNoneMatch) > 0 {
		text += fmt.Sprintf(", if none match %q", c.IfNoneMatch)
	}
	return text
}

// text says what the content of a version is to be.
func (v *mVersion) text() string {
	text := fmt.Sprintf("%d bytes", len(v.body))
	if v.mode != "" {
		text += fmt.Sprintf(", %s until %v", v.mode, v.until)
	}
	if v.hold {
		text += ", legal hold"
	}
	return text
}

// noted adds to what was noted last.
func (w *world) noted(text string) {
	if n := len(w.notes); n > 0 {
		w.notes[n-1] += text
	}
}

var (
	worldBuckets = []string{"never", "enabled", "switched", "switched", "locked"}
	worldKeys    = []string{"a", "a", "a", "a/", "a/b", "a/b/c", "a//", "b", "b", "dir/x", "dir/y", "dir0", "ü", "\xff"}
)

func (w *world) n(n int) int             { return w.rnd.IntN(n) }
func (w *world) chance(percent int) bool { return w.n(100) < percent }
func (w *world) key() string             { return pick(w, worldKeys) }

// via is some gateway, to which the keys can be said.
func (w *world) via(keys ...string) s3api.Backend {
	w.last = pick(w, w.store)
	if w.last.http && slices.ContainsFunc(keys, func(k string) bool { return !sayable(k) }) {
		w.last = w.store[0]
	}
	w.noted(" by " + w.last.name)
	return w.last.Backend
}

func pick[T any](w *world, s []T) T { return s[w.n(len(s))] }

func versionsModel(t *testing.T) {
	c, err := harness.Open(t.Context(), harness.Options{FS: vfsx.NewMem(), Dir: "/data", Zones: 3, DrivesPerZone: 1, Workers: true, Tune: func(tune *core.Tuning) {
		tune.Raft.HeartbeatTimeout = time.Second // much time passes with nothing to do
	}})
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	w := &world{
		T: t, rnd: rand.New(rand.NewPCG(seed.Of(t), 0)), core: c, m: &model{buckets: map[string]*mBucket{}},
		seen: map[string]int{},
	}
	away := elsewhere(t, c)
	w.store = []gateway{
		{c.Objects, "here", false}, {c.Objects, "here", false}, {away, "elsewhere", false},
		{viaSDK(t, c.Objects), "sdk here", true}, {viaSDK(t, away), "sdk elsewhere", true},
	}
	defer func() {
		if t.Failed() {
			t.Logf("the last operations:\n%s", strings.Join(w.notes[max(0, len(w.notes)-notesMax):], "\n"))
		}
	}()
	for _, name := range worldBuckets {
		if w.m.buckets[name] != nil {
			continue
		}
		b := &mBucket{keys: map[string][]*mVersion{}}
		b.lock.Enabled = name == "locked"
		w.ok("create", w.via().CreateBucket(t.Context(), acct, name, objects.BucketOptions{Region: "us-east-1", ObjectLock: b.lock.Enabled}))
		if w.m.buckets[name] = b; b.lock.Enabled {
			b.versioning = metapb.Versioning_VERSIONING_ENABLED
		}
		if name == "enabled" {
			b.versioning = metapb.Versioning_VERSIONING_ENABLED
			w.ok("enable", w.via().PutBucketVersioning(t.Context(), acct, name, true))
		}
	}
	for w.step = range *stepsFlag {
		if w.step == *stepsFlag/2 { // from here on it has versions with and without a lock
			b := w.m.buckets["enabled"]
			w.note("lock enabled")
			w.answers("lock", w.via().PutBucketLock(t.Context(), acct, "enabled", objects.LockConfig{}), b.setLock(objects.LockConfig{}))
		}
		if every := max(2000, *stepsFlag/8); w.step%every == every-1 {
			w.split()
		}
		w.settle()
		w.one()
		if t.Failed() {
			t.Fatalf("step %d", w.step)
		}
	}
	t.Logf("%v", w.seen)
	n := 0
	for _, b := range w.m.buckets {
		n += b.size()
	}
	t.Logf("%d versions in %d ranges after %v", n, len(c.Meta.AllRanges()), time.Since(begun))
	w.checkAll()
	w.wantClean()
	w.tearDown()
}

// split splits a range, at a key of its own choice or in between two that are used.
func (w *world) split() {
	w.Helper()
	g := pick(w, w.core.Meta.AllRanges()).ID
	at := cluster.Pos{}
	if w.chance(50) {
		b, err := w.core.Objects.HeadBucket(w.Context(), acct, pick(w, worldBuckets))
		w.ok("head bucket", err)
		at = cluster.Pos{Bucket: b.ID, Key: storage.Key(w.key())}
		g, err = w.core.Meta.GroupOf(at.Bucket, at.Key)
		w.ok("route", err)
	}
	_, err := w.core.Splits.Split(w.Context(), g, at)
	if err != nil && !errs.Is(err, errs.InvalidArgument) { // the range begins there, or is too small
		w.Fatalf("step %d: split of %d at %+v: %v", w.step, g, at, err)
	}
}

// settle sees to it that no retention ends while an operation runs.
func (w *world) settle() {
	if w.chance(1) {
		time.Sleep(time.Duration(w.n(5000)) * time.Millisecond)
	}
	for again := true; again; {
		again = false
		for _, b := range w.m.buckets {
			for _, vs := range b.keys {
				for _, v := range vs {
					if left := time.Until(v.until); v.mode != "" && left > -3*time.Second && left < 5*time.Second {
						time.Sleep(8 * time.Second)
						again = true
					}
				}
			}
		}
	}
}

func (w *world) ok(what string, err error) {
	w.Helper()
	if err != nil {
		w.Fatalf("step %d: %s: %v", w.step, what, err)
	}
}

// answers compares an error with the kind that it should be of, and reports whether both are none.
func (w *world) answers(what string, err error, want errs.Kind) bool {
	w.Helper()
	wanted := "success"
	if want != 0 {
		wanted = want.String()
	}
	w.seen[fmt.Sprintf("%.5s %s", what, wanted)]++
	if err != nil {
		w.noted(fmt.Sprintf(": %s", errs.KindOf(err)))
	}
	if err == nil && want == 0 {
		return true
	}
	if err == nil || want == 0 || !errs.Is(err, want) {
		w.Fatalf("step %d: %s answered %v, want %s", w.step, what, err, wanted)
	}
	return false
}

// isMarker checks that an error names the delete marker that was met.
func (w *world) isMarker(what string, err error, v *mVersion) {
	w.Helper()
	var marker *objects.DeleteMarkerError
	untold := w.last.http && what == "copy" // when the marker was made, and its id if none was asked for
	if !errors.As(err, &marker) || marker.VersionID != v.id && !(untold && marker.VersionID == "") {
		w.Fatalf("step %d: %s answered %v (%+v), want delete marker %s", w.step, what, err, marker, v.id)
	}
	if !w.last.http || !marker.Modified.IsZero() {
		w.sameTime(what, v, marker.Modified)
	}
}

func (w *world) sameTime(what string, v *mVersion, got time.Time) {
	w.Helper()
	coarse := got.Location() == seconds
	if v.marker && v.modified.IsZero() {
		if coarse {
			return // seen exactly some other time
		}
		v.modified = got
	}
	want := v.modified
	if coarse {
		want = want.Truncate(time.Second)
	}
	if !want.Equal(got) {
		w.Errorf("step %d: %s: version %s was modified at %v, want %v", w.step, what, v.id, got, want)
	}
}

// id is that of some version of the key, mostly, or none.
func (w *world) id(b *mBucket, key string) string {
	vs := b.keys[key]
	switch n := w.n(20); {
	case n < 6:
		return ""
	case n == 6:
		return "null"
	case n == 7:
		return storage.VersionID{Seq: storage.Seq(1 + w.n(1000)), Nonce: 1}.String()
	case len(vs) == 0:
		return ""
	}
	return pick(w, vs).id
}

// version draws the content of a new version and its attributes.
func (w *world) version(bucket string) (*mVersion, *metapb.Attributes) {
	size := w.n(700)
	if w.chance(10) {
		size = 1500 + w.n(20000)
	}
	w.next++
	v := &mVersion{body: bytes.Repeat([]byte(fmt.Sprintf("%d,", w.next)), size/4+1)}
	v.etag, v.ctype = etagOf(v.body), fmt.Sprintf("text/%d", w.next)
	a := &metapb.Attributes{ContentType: v.ctype, Tags: w.someTags()}
	v.tags = tagsText(a.Tags)
	if bucket == "locked" && w.chance(40) || w.chance(2) {
		r := w.retention()
		v.mode, v.until, v.hold = r.Mode, r.Until, w.chance(15)
		a.LockMode, a.LegalHold = v.mode, v.hold
		if a.LockMode != "" {
			a.LockUntilMs = v.until.UnixMilli()
		}
	}
	return v, a
}

func (w *world) retention() (r objects.Retention) {
	if r.Mode = pick(w, []string{"", "GOVERNANCE", "GOVERNANCE", "COMPLIANCE"}); r.Mode != "" {
		// Few different ends, since to pass one takes a while; none so near that it could be over before the request is read.
		r.Until = time.Now().Add(5 * time.Second).Truncate(20 * time.Second).Add(time.Duration(1+w.n(3)) * 20 * time.Second).UTC()
	}
	return r
}

// someTags are tags as the gateways get them: by name, each once.
func (w *world) someTags() (tags []*metapb.KV) {
	first := w.n(500)
	for i := range w.n(3) {
		tags = append(tags, &metapb.KV{Name: fmt.Sprintf("t%04d", first+i*(1+w.n(500))), Value: pick(w, []string{"v", "", "a +/=@ü"})})
	}
	return tags
}

func (w *world) conditions(b *mBucket, key string) (c objects.Conditions) {
	etag := "none"
	if v := b.current(key); v != nil {
		etag = v.etag
	}
	switch w.n(20) {
	case 0:
		c.IfNoneMatch = []string{"*"}
	case 1:
		c.IfMatch = []string{etag}
	case 2:
		c.IfMatch = []string{"*"}
	case 3:
		c.IfNoneMatch = []string{"other", etag}
	}
	return c
}

// one runs one operation.
func (w *world) one() {
	w.Helper()
	name := pick(w, worldBuckets)
	b, key := w.m.buckets[name], w.key()
	switch n := w.n(100); {
	case n < 24:
		w.put(name, b, key)
	case n < 28:
		w.multipart(name, b, key)
	case n < 36:
		w.copy(name, b, key)
	case n < 52:
		w.delete(name, b)
	case n < 58:
		id, tags := w.id(b, key), w.someTags()
		w.note("tags of %s/%q version %q: %q", name, key, id, tagsText(tags))
		got, err := w.via(key).PutTags(w.Context(), acct, objects.VersionRef{Bucket: name, Key: storage.Key(key), VersionID: id}, tags)
		if v := w.changed("tags", b, key, id, got, err, 0, nil); v != nil {
			v.tags = tagsText(tags)
		}
	case n < 64:
		w.retain(pick(w, []string{"locked", "locked", name}), key)
	case n < 68:
		w.hold(pick(w, []string{"locked", name}), key)
	case n < 70:
		w.configure(name, b)
	case n < 84:
		w.get(name, b, key, w.id(b, key))
	case n < 90:
		w.list(name, b)
	default:
		w.listVersions(name, b)
	}
}

// given takes over what the store said of a new version.
func (w *world) given(what string, b *mBucket, v *mVersion, id string) {
	w.Helper()
	v.id = "null"
	want := "null"
	switch b.versioning {
	case metapb.Versioning_VERSIONING_NEVER:
		want = ""
	case metapb.Versioning_VERSIONING_ENABLED:
		if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 {
			w.Fatalf("step %d: %s made version %q", w.step, what, id)
		}
		v.id, want = id, id
	}
	if id != want {
		w.Fatalf("step %d: %s made version %q, want %q", w.step, what, id, want)
	}
}

func (w *world) stored(what, name string, b *mBucket, key string, v *mVersion, out *objects.PutOutput) {
	w.Helper()
	id, size, modified := out.VersionID, out.Size, out.Modified
	if w.last.http {
		if id == "" && b.versioning == metapb.Versioning_VERSIONING_SUSPENDED { // told as little as by S3
			id = "null"
		}
		o, err := w.core.Objects.HeadObject(w.Context(), acct, &objects.GetInput{Bucket: name, Key: storage.Key(key), VersionID: id})
		w.ok("head", err)
		if size = o.Size; modified.IsZero() {
			modified = o.Modified
		}
	}
	w.given(what, b, v, id)
	if out.ETag != v.etag || size != int64(len(v.body)) {
		w.Errorf("step %d: %s: etag %s and size %d, want %s and %d", w.step, what, out.ETag, size, v.etag, len(v.body))
	}
	v.modified = modified
	b.add(key, v)
}

func (w *world) put(name string, b *mBucket, key string) {
	w.Helper()
	v, a := w.version(name)
	c := w.conditions(b, key)
	want := b.mayPut(key, v, c)
	w.note("put %s/%q, %s%s", name, key, v.text(), said(c))
	out, err := w.via(key).PutObject(w.Context(), acct, &objects.PutInput{Bucket: name, Key: storage.Key(key), Body: harness.NewBody(v.body), Attributes: a, Conditions: c})
	if w.answers("put", err, want) {
		w.stored("put", name, b, key, v, out)
	}
}

// multipart stores an object of one part, which may be of any size.
func (w *world) multipart(name string, b *mBucket, key string) {
	w.Helper()
	v, a := w.version(name)
	w.note("upload of %s/%q, %s", name, key, v.text())
	s := w.via(key)
	up, err := s.CreateUpload(w.Context(), acct, &objects.CreateUploadInput{Bucket: name, Key: storage.Key(key), Attributes: a})
	if !b.lock.Enabled && (v.mode != "" || v.hold) {
		w.answers("create upload", err, errs.InvalidRequest)
		return
	}
	w.ok("create upload", err)
	number := 1 + w.n(10000)
	part, err := s.UploadPart(w.Context(), acct, &objects.UploadPartInput{Bucket: name, Key: storage.Key(key), UploadID: up.ID, Number: number, Body: harness.NewBody(v.body)})
	w.ok("part", err)
	c := w.conditions(b, key)
	want := b.mayPut(key, v, c)
	w.note("complete %s/%q%s", name, key, said(c))
	out, err := w.via(key).CompleteUpload(w.Context(), acct, &objects.CompleteInput{
		Bucket: name, Key: storage.Key(key), UploadID: up.ID, Parts: []objects.CompletePart{{Number: number, ETag: part.ETag}}, Conditions: c,
	})
	if !w.answers("complete", err, want) {
		w.ok("abort", s.AbortUpload(w.Context(), acct, name, storage.Key(key), up.ID))
		return
	}
	raw, _ := hex.DecodeString(v.etag)
	v.etag, v.parts = etagOf(raw)+"-1", []int{len(v.body)}
	w.stored("complete", name, b, key, v, out)
}

func (w *world) copy(name string, b *mBucket, key string) {
	w.Helper()
	from, fromKey := pick(w, worldBuckets), w.key()
	src := w.m.buckets[from]
	in := &objects.CopyInput{
		SourceBucket: from, SourceKey: storage.Key(fromKey), SourceVersionID: w.id(src, fromKey), Bucket: name, Key: storage.Key(key),
		Conditions: w.conditions(b, key), ReplaceTags: w.chance(50), Tags: w.someTags(),
	}
	v, a := w.version(name)
	in.Retention, in.LegalHold = objects.Retention{Mode: v.mode, Until: v.until}, v.hold
	s, want := src.find(fromKey, in.SourceVersionID)
	if want == 0 {
		if w.chance(50) {
			in.Attributes = &metapb.Attributes{ContentType: a.ContentType}
		} else {
			v.ctype = s.ctype
		}
		if v.body, v.etag, v.tags = s.body, etagOf(s.body), s.tags; in.ReplaceTags {
			v.tags = tagsText(in.Tags)
		}
		want = b.mayPut(key, v, in.Conditions)
	}
	w.note("copy %s/%q version %q to %s/%q, %s%s, tags %v %q", from, fromKey, in.SourceVersionID, name, key, v.text(), said(in.Conditions), in.ReplaceTags, tagsText(in.Tags))
	out, err := w.via(key, fromKey).CopyObject(w.Context(), acct, in)
	if w.answers("copy", err, want) {
		w.stored("copy", name, b, key, v, out)
	} else if want == errs.IsDeleteMarker {
		w.isMarker("copy", err, s)
	}
}

func (w *world) delete(name string, b *mBucket) {
	w.Helper()
	type want struct {
		gone   *mVersion
		marker *mVersion
		kind   errs.Kind
	}
	var items []objects.DeleteItem
	var wants []want
	var keys []string
	n, bypass := 1+w.n(2)*w.n(16), w.n(4) // which is never, always, or each by itself
	many := b.size() > versionsMax
	if many {
		n, bypass = 60, 1
	}
	for range n {
		key := w.key()
		it := objects.DeleteItem{Key: storage.Key(key), VersionID: w.id(b, key), Bypass: bypass == 1 || bypass > 1 && w.chance(50)}
		if vs := b.keys[key]; many && len(vs) > 0 {
			it.VersionID = pick(w, vs).id
		}
		keys = append(keys, key)
		if it.VersionID == "" {
			it.Conditions = w.conditions(b, key)
			it.Conditions.IfNoneMatch = nil // a delete has none
		}
		if w.chance(2) {
			it.VersionID = "malformed"
			it.Conditions = objects.Conditions{}
			items, wants = append(items, it), append(wants, want{kind: errs.NoSuchVersion})
			continue
		}
		gone, marker, kind := b.remove(key, it.VersionID, it.Bypass, it.Conditions)
		x := want{gone: gone, kind: kind}
		if marker {
			x.marker = &mVersion{marker: true, id: "null"}
			if b.versioning == metapb.Versioning_VERSIONING_ENABLED {
				x.marker.id = "" // it comes with the answer; no other item of this request can name it
			}
			b.add(key, x.marker)
		}
		items, wants = append(items, it), append(wants, x)
	}
	var got []objects.DeleteResult
	var err error
	w.note("delete of %s:", name)
	for _, it := range items {
		w.noted(fmt.Sprintf(" %q version %q%s bypass %v;", it.Key, it.VersionID, said(it.Conditions), it.Bypass))
	}
	if s := w.via(keys...); len(items) == 1 {
		got = make([]objects.DeleteResult, 1)
		got[0], err = s.DeleteObject(w.Context(), acct, name, items[0])
		got[0].Err = err
	} else {
		got, err = s.DeleteObjects(w.Context(), acct, name, items)
		w.ok("delete", err)
	}
	for i, x := range wants {
		what := fmt.Sprintf("delete %s/%q version %q", name, items[i].Key, items[i].VersionID)
		if w.last.http && items[i].VersionID == "malformed" {
			x.kind = errs.InvalidArgument
		}
		if !w.answers(what, got[i].Err, x.kind) {
			continue
		}
		if got[i].VersionID != items[i].VersionID || got[i].DeleteMarker != (x.marker != nil || x.gone != nil && x.gone.marker) {
			w.Errorf("step %d: %s answered %+v", w.step, what, got[i])
		}
		switch {
		case x.marker != nil:
			w.given(what, b, x.marker, got[i].MarkerVersionID)
		case got[i].DeleteMarker && got[i].MarkerVersionID != x.gone.id, !got[i].DeleteMarker && got[i].MarkerVersionID != "":
			w.Errorf("step %d: %s names the marker %q", w.step, what, got[i].MarkerVersionID)
		}
	}
}

// changed checks the answer of a change in place: of the version with an id, which may answer before for what it is, and
// otherwise what may answers, or 0. It is the version if it was changed, else nil.
func (w *world) changed(what string, b *mBucket, key, id, got string, err error, before errs.Kind, may func(*mVersion) errs.Kind) *mVersion {
	w.Helper()
	v, want := b.find(key, id)
	if before != 0 {
		want = before
	} else if want == 0 && may != nil {
		want = may(v)
	}
	if !w.answers(what, err, want) {
		if want == errs.IsDeleteMarker {
			w.isMarker(what, err, v)
		}
		return nil
	}
	if got != b.shown(v) {
		w.Errorf("step %d: %s answered version %q, want %q", w.step, what, got, b.shown(v))
	}
	return v
}

func (b *mBucket) needsLock() errs.Kind {
	if !b.lock.Enabled {
		return errs.InvalidRequest
	}
	return 0
}

func (w *world) retain(name, key string) {
	w.Helper()
	b := w.m.buckets[name]
	id, r, bypass := w.id(b, key), w.retention(), w.chance(40)
	w.note("retention of %s/%q version %q: %+v, bypass %v", name, key, id, r, bypass)
	got, err := w.via(key).PutRetention(w.Context(), acct, objects.VersionRef{Bucket: name, Key: storage.Key(key), VersionID: id}, r, bypass)
	w.changed("retention", b, key, id, got, err, b.needsLock(), func(v *mVersion) errs.Kind { return b.retain(v, r, bypass) })
}

func (w *world) hold(name, key string) {
	w.Helper()
	b := w.m.buckets[name]
	id, on := w.id(b, key), w.chance(40)
	w.note("legal hold of %s/%q version %q: %v", name, key, id, on)
	got, err := w.via(key).PutLegalHold(w.Context(), acct, objects.VersionRef{Bucket: name, Key: storage.Key(key), VersionID: id}, on)
	if v := w.changed("legal hold", b, key, id, got, err, b.needsLock(), nil); v != nil {
		v.hold = on
	}
}

func (w *world) configure(name string, b *mBucket) {
	w.Helper()
	w.note("configure %s", name)
	ctx, s := w.Context(), w.via()
	switch {
	case name == "switched" && w.chance(80), name == "locked" && w.chance(20):
		enabled := w.chance(50)
		w.noted(fmt.Sprintf(" versioning %v", enabled))
		w.answers("versioning", s.PutBucketVersioning(ctx, acct, name, enabled), b.setVersioning(enabled))
	case name == "locked", name == "never":
		cfg := pick(w, []objects.LockConfig{{}, {}, {Mode: "GOVERNANCE", Days: 1}, {Mode: "GOVERNANCE", Years: 1}})
		w.noted(fmt.Sprintf(" lock %+v", cfg))
		w.answers("lock", s.PutBucketLock(ctx, acct, name, cfg), b.setLock(cfg))
	case w.chance(30):
		b.block = pick(w, []*objects.PublicAccessBlock{nil, {}, {BlockPublicAcls: true, BlockPublicPolicy: true}, {IgnorePublicAcls: true, RestrictPublicBuckets: true}})
		w.ok("public access block", s.PutBucketPublicAccessBlock(ctx, acct, name, b.block))
	case w.chance(30):
		b.disowned = w.chance(50)
		w.ok("ownership controls", s.PutBucketOwnershipControls(ctx, acct, name, !b.disowned))
	default:
		tags := w.someTags()
		b.tags = tagsText(tags)
		w.ok("bucket tags", s.PutBucketTags(ctx, acct, name, tags))
	}
	w.note("head %s", name)
	got, err := w.via().HeadBucket(ctx, acct, name)
	w.ok("head bucket", err)
	if got.Versioning != b.versioning || got.Lock != b.lock || tagsText(got.Tags) != b.tags || !reflect.DeepEqual(got.PublicAccessBlock, b.block) || got.OwnershipControls == b.disowned {
		w.Errorf("step %d: bucket %+v, want %+v", w.step, got, b)
	}
}

func (w *world) get(name string, b *mBucket, key, id string) {
	w.Helper()
	what := fmt.Sprintf("get %s/%q version %q", name, key, id)
	v, want := b.find(key, id)
	in := &objects.GetInput{Bucket: name, Key: storage.Key(key), VersionID: id}
	w.note("%s", what)
	s := w.via(key)
	if w.chance(50) {
		o, err := s.GetObject(w.Context(), acct, in)
		if w.answers(what, err, want) {
			var body bytes.Buffer
			w.ok(what, o.Send(&body))
			o.Close()
			if !bytes.Equal(body.Bytes(), v.body) {
				w.Errorf("step %d: %s: the body is another", w.step, what)
			}
			w.isVersion(what, b, v, o)
		} else if want == errs.IsDeleteMarker {
			w.isMarker(what, err, v)
		}
		return
	}
	o, parts, more, err := s.ObjectParts(w.Context(), acct, in, 0, 10)
	if !w.answers(what, err, want) {
		if want == errs.IsDeleteMarker {
			w.isMarker(what, err, v)
		}
		return
	}
	w.isVersion(what, b, v, o)
	if more || len(parts) != len(v.parts) || len(parts) > 0 && (parts[0].Size != int64(v.parts[0]) || len(parts[0].Checksums) == 0) {
		w.Errorf("step %d: %s: parts %v, %v, want %v", w.step, what, parts, more, v.parts)
	}
	head, err := w.via(key).HeadObject(w.Context(), acct, in)
	w.ok(what, err)
	w.isVersion(what, b, v, head)
}

func (w *world) isVersion(what string, b *mBucket, v *mVersion, o *objects.Object) {
	w.Helper()
	w.sameTime(what, v, o.Modified)
	a := o.Attributes
	until := int64(0)
	if v.mode != "" {
		until = v.until.UnixMilli()
	}
	if o.VersionID != b.shown(v) || o.ETag != v.etag || o.Size != int64(len(v.body)) || a.GetContentType() != v.ctype || tagsText(a.GetTags()) != v.tags ||
		a.GetLockMode() != v.mode || a.GetLockUntilMs() != until || a.GetLegalHold() != v.hold || o.Parts != len(v.parts) || o.DeleteMarker {
		w.Errorf("step %d: %s: %+v\nwant %+v", w.step, what, o, v)
	}
}

var (
	worldPrefixes   = []string{"", "", "", "a", "a/", "a/b", "dir", "dir/", "ü", "x"}
	worldDelimiters = []string{"", "", "/", "/", "b", "//"}
)

func (w *world) list(name string, b *mBucket) {
	w.Helper()
	in := objects.ListInput{Bucket: name, Prefix: pick(w, worldPrefixes), Delimiter: pick(w, worldDelimiters), Max: 1 + w.n(6)}
	if w.chance(30) {
		in.After = w.key()
	}
	var want, got []string
	for _, e := range b.list(true, in.Prefix, in.Delimiter, in.After, "") {
		if want = append(want, "prefix "+e.key); e.v != nil {
			want[len(want)-1] = e.key + " " + e.v.etag
		}
	}
	what := fmt.Sprintf("list %s prefix %q delimiter %q after %q max %d", name, in.Prefix, in.Delimiter, in.After, in.Max)
	w.note("%s", what)
	s := w.via()
	for more := true; more; {
		page, err := s.ListObjects(w.Context(), acct, &in)
		w.ok(what, err)
		for _, o := range page.Objects {
			got = append(got, string(o.Key)+" "+o.ETag)
		}
		for _, p := range page.CommonPrefixes {
			got = append(got, "prefix "+p)
		}
		if n := len(page.Objects) + len(page.CommonPrefixes); n > in.Max || page.Truncated && n == 0 {
			w.Errorf("step %d: %s: a page of %d", w.step, what, n)
		}
		in.After, more = page.Next, page.Truncated
	}
	w.sameListing(what, got, want)
}

func (w *world) listVersions(name string, b *mBucket) {
	w.Helper()
	in := objects.ListVersionsInput{Bucket: name, Prefix: pick(w, worldPrefixes), Delimiter: pick(w, worldDelimiters), Max: 1 + w.n(8)}
	if w.chance(30) {
		in.KeyMarker = w.key()
		if vs := b.keys[in.KeyMarker]; len(vs) > 0 && w.chance(70) {
			in.VersionMarker = pick(w, vs).id
		}
	}
	line := func(key, id string, marker, latest bool, etag string, size int64) string {
		return fmt.Sprintf("%s %s marker=%v latest=%v %s %d", key, id, marker, latest, etag, size)
	}
	var want, got []string
	for _, e := range b.list(false, in.Prefix, in.Delimiter, in.KeyMarker, in.VersionMarker) {
		if want = append(want, "prefix "+e.key); e.v != nil {
			want[len(want)-1] = line(e.key, e.v.id, e.v.marker, e.latest, e.v.etag, int64(len(e.v.body)))
		}
	}
	what := fmt.Sprintf("list versions of %s prefix %q delimiter %q after %q version %q max %d", name, in.Prefix, in.Delimiter, in.KeyMarker, in.VersionMarker, in.Max)
	w.note("%s", what)
	s := w.via()
	for more := true; more; {
		page, err := s.ListVersions(w.Context(), acct, &in)
		w.ok(what, err)
		for i := range page.Versions {
			v := &page.Versions[i]
			got = append(got, line(string(v.Key), v.VersionID, v.DeleteMarker, v.Latest, v.ETag, v.Size))
			if i := slices.IndexFunc(b.keys[string(v.Key)], func(m *mVersion) bool { return m.id == v.VersionID }); i >= 0 {
				w.sameTime(what, b.keys[string(v.Key)][i], v.Modified)
			}
		}
		for _, p := range page.CommonPrefixes {
			got = append(got, "prefix "+p)
		}
		if n := len(page.Versions) + len(page.CommonPrefixes); n > in.Max || page.Truncated && n == 0 {
			w.Errorf("step %d: %s: a page of %d", w.step, what, n)
		}
		in.KeyMarker, in.VersionMarker, more = page.NextKey, page.NextVersion, page.Truncated
	}
	w.sameListing(what, got, want)
}

// sameListing compares the pages of a listing. They don't tell the order between common prefixes and others, but those of each.
func (w *world) sameListing(what string, got, want []string) {
	w.Helper()
	split := func(all []string) (prefixes, others []string) {
		for _, s := range all {
			if strings.HasPrefix(s, "prefix ") {
				prefixes = append(prefixes, s)
			} else {
				others = append(others, s)
			}
		}
		return prefixes, others
	}
	gotP, gotO := split(got)
	wantP, wantO := split(want)
	if !slices.Equal(gotP, wantP) || !slices.Equal(gotO, wantO) {
		w.Errorf("step %d: %s:\n got %q\nwant %q", w.step, what, got, want)
	}
}

// checkAll reads every version there should be.
func (w *world) checkAll() {
	w.Helper()
	w.settle()
	for name, b := range w.m.buckets {
		for key, vs := range b.keys {
			w.get(name, b, key, "")
			for _, v := range vs {
				w.get(name, b, key, v.id)
			}
		}
	}
}

func (w *world) wantClean() []string {
	w.Helper()
	rep, err := w.core.Verify(w.Context(), false, nil)
	w.ok("verify", err)
	if rep.Found != 0 {
		w.Fatalf("%d problems: %v", rep.Found, rep.Problems)
	}
	var counts []string
	for _, c := range rep.Counts {
		counts = append(counts, fmt.Sprintf("%s %d", c.What, c.N))
	}
	return counts
}

// tearDown removes all: nothing must be left, neither in the rows nor on the drives.
func (w *world) tearDown() {
	w.Helper()
	time.Sleep(2 * time.Minute) // past what COMPLIANCE keeps
	ctx, s := w.Context(), w.core.Objects
	for name, b := range w.m.buckets {
		var items []objects.DeleteItem
		for key, vs := range b.keys {
			for _, v := range vs {
				if v.hold {
					_, err := s.PutLegalHold(ctx, acct, objects.VersionRef{Bucket: name, Key: storage.Key(key), VersionID: v.id}, false)
					w.ok("end of a hold", err)
				}
				items = append(items, objects.DeleteItem{Key: storage.Key(key), VersionID: v.id, Bypass: true})
			}
		}
		if len(items) > 0 {
			if err := s.DeleteBucket(ctx, acct, name); !errs.Is(err, errs.BucketNotEmpty) {
				w.Errorf("%s with %d versions: %v", name, len(items), err)
			}
		}
		for chunk := range slices.Chunk(items, 1000) {
			res, err := s.DeleteObjects(ctx, acct, name, chunk)
			w.ok("delete", err)
			for i := range res {
				w.ok(fmt.Sprint("delete ", chunk[i]), res[i].Err)
			}
		}
		w.ok("delete bucket", s.DeleteBucket(ctx, acct, name))
	}
	shards := func() (n int64) {
		for _, d := range w.core.Controller.Drives() {
			n += d.Stats().Shards
		}
		return n
	}
	for end := time.Now().Add(5 * time.Minute); shards() > 0; time.Sleep(time.Second) {
		if time.Now().After(end) {
			w.Fatalf("%d shards are left: %q", shards(), w.wantClean())
		}
	}
	w.wantClean()
}
