package rangestate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// seen is a row of a lifecycle walk, in memory of its own.
type seen struct {
	LifecycleRow
	key string
}

func (r seen) String() string {
	if r.Upload != nil {
		return fmt.Sprintf("%q upload %d", r.key, r.Upload.Seq)
	}
	return fmt.Sprintf("%q %d newest %v only %v newer %d", r.key, r.Object.Seq, r.Newest, r.Only, r.NewerNoncurrent)
}

// lifecycle walks on up to limit rows behind after.
func lifecycle(t testing.TB, v *View, bucket storage.BucketID, after *LifecyclePos, limit int) (rows []seen, next *LifecyclePos) {
	t.Helper()
	next, err := v.Lifecycle(bucket, after, limit, func(r *LifecycleRow) (bool, error) {
		c := seen{LifecycleRow: *r, key: string(r.Key)}
		c.Key = nil
		if r.Object != nil {
			c.Object = r.Object.CloneVT()
		}
		rows = append(rows, c)
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows, next
}

// lifecycleAll walks to the end by pages.
func lifecycleAll(t testing.TB, v *View, bucket storage.BucketID, after *LifecyclePos, limit int) (rows []seen) {
	t.Helper()
	for more := true; more; more = after != nil {
		var page []seen
		page, after = lifecycle(t, v, bucket, after, limit)
		if len(page) > limit || after != nil && len(page) != limit {
			t.Fatalf("a page of %d has %d rows", limit, len(page))
		}
		rows = append(rows, page...)
	}
	return rows
}

func texts(rows []seen) (out []string) {
	for _, r := range rows {
		out = append(out, r.String())
	}
	return out
}

// checkLifecycle walks a bucket by pages.
func (w *world) checkLifecycle() {
	w.t.Helper()
	id := uint64(1 + w.n(4))
	b := w.model.buckets[id]
	if b == nil {
		if _, err := w.view().Lifecycle(storage.BucketID(id), nil, 1, nil); !errs.Is(err, errs.NoSuchBucket) {
			w.t.Errorf("bucket %d: %v", id, err)
		}
		return
	}
	from := &LifecyclePos{Key: storage.Key(w.someAfter())}
	var want []string
	byID := map[string]*mVersion{}
	keys := map[string]bool{}
	for key := range b.keys {
		keys[key] = true
	}
	for _, u := range b.uploads {
		keys[u.key] = true
	}
	for _, key := range sortedKeys(keys) {
		if key < string(from.Key) {
			continue
		}
		for i, v := range b.keys[key] {
			text := fmt.Sprintf("%q %d newest %v only %v newer %d", key, v.seq, i == 0, len(b.keys[key]) == 1, max(i-1, 0))
			want, byID[text] = append(want, text), v
		}
		for _, u := range b.uploads {
			if u.key == key {
				want = append(want, fmt.Sprintf("%q upload %d", key, u.seq))
			}
		}
	}
	limit := 1 + w.n(5)
	rows := lifecycleAll(w.t, w.view(), storage.BucketID(id), from, limit)
	if got := texts(rows); !slices.Equal(got, want) {
		w.t.Errorf("lifecycle of bucket %d from %q by %d:\n got %q\nwant %q", id, from.Key, limit, got, want)
		return
	}
	for _, r := range rows {
		v := byID[r.String()]
		if v == nil {
			continue
		}
		o, a := r.Object, r.Object.GetAttributes()
		if o.Nonce != v.nonce || o.NullVersion != v.null || o.DeleteMarker != v.marker || string(o.WriteId) != v.write || o.Size != v.size || o.ModifiedMs != v.modified ||
			o.NoncurrentMs != v.noncurrent || a.GetStorageClass() != v.class || a.GetLockMode() != v.lockMode || a.GetLockUntilMs() != v.lockUntil ||
			a.GetLegalHold() != v.hold || tagNames(a.GetTags()) != v.tags || o.Data.GetUploadSeq() != v.upload || int(o.Data.GetParts()) != len(v.parts) ||
			!v.marker && o.Data.GetGeneration() != v.gen || r.Inline != (v.upload == 0 && len(v.chunks) == 0 && v.size > 0) {
			w.t.Errorf("%v: %v inline %v, want %+v", r, o, r.Inline, v)
		}
	}
}

// Whoever goes on inside a key finds it as it is then: nothing that stayed is missed or comes twice, and what is counted
// counts what there is.
func TestLifecycleResumes(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	var vs []*metapb.RangeResult
	for range 5 {
		vs = append(vs, s.ok(s.put(1, "k", 10)))
	}
	s.ok(s.put(1, "l", 10))
	up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("k"), Row: &metapb.UploadRow{WriteId: s.id16()}})
	upload := fmt.Sprintf(`"k" upload %d`, up.VersionSeq)
	text := func(i int, newest, only bool, newer int) string {
		return fmt.Sprintf(`"k" %d newest %v only %v newer %d`, vs[i].VersionSeq, newest, only, newer)
	}
	expect := func(what string, after *LifecyclePos, want ...string) {
		t.Helper()
		rows := texts(lifecycleAll(t, s.view(), 1, after, 100))
		if rows = slices.DeleteFunc(rows, func(r string) bool { return strings.HasPrefix(r, `"l" `) }); !slices.Equal(rows, want) {
			t.Errorf("%s:\n got %q\nwant %q", what, rows, want)
		}
	}
	_, first := lifecycle(t, s.view(), 1, nil, 1)
	_, third := lifecycle(t, s.view(), 1, nil, 3)
	_, sixth := lifecycle(t, s.view(), 1, nil, 6)
	expect("all", nil, text(4, true, false, 0), text(3, false, false, 0), text(2, false, false, 1), text(1, false, false, 2), text(0, false, false, 3), upload)
	expect("behind two noncurrent ones", third, text(1, false, false, 2), text(0, false, false, 3), upload)
	expect("behind the upload", sixth)
	s.ok(s.put(1, "k", 10)) // one more of those that were seen is noncurrent
	expect("a newer one", third, text(1, false, false, 3), text(0, false, false, 4), upload)
	s.ok(s.delete(1, "k"))
	expect("a marker", third, text(1, false, false, 4), text(0, false, false, 5), upload)
	for _, v := range lifecycleAll(t, s.view(), 1, nil, 100)[:4] { // marker, newer, 4 and 3
		s.ok(s.deleteVersion(1, "k", storage.VersionID{Seq: storage.Seq(v.Object.Seq), Nonce: v.Object.Nonce}))
	}
	expect("newer ones are gone", third, text(1, false, false, 0), text(0, false, false, 1), upload)
	expect("the next is current by now", first, text(2, true, false, 0), text(1, false, false, 0), text(0, false, false, 1), upload)
	for _, i := range []int{2, 1} {
		s.ok(s.deleteVersion(1, "k", *versionIn(vs[i])))
	}
	expect("the last", third, text(0, true, true, 0), upload)
	s.ok(s.deleteVersion(1, "k", *versionIn(vs[0])))
	expect("the key is gone", third, upload)
	s.ok(&metapb.AbortUploadOp{Bucket: 1, Key: []byte("k"), UploadSeq: up.VersionSeq})
	expect("all is gone", third)
}

// The count of newer versions ends somewhere, and so does the work to begin inside a key.
func TestLifecycleManyVersions(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	const n = 3 * NewerNoncurrentMax
	var datas [][]byte
	for range n {
		data, err := s.command(s.put(1, "k", 10)).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		datas = append(datas, data)
	}
	s.applyRaw(datas...)
	for _, limit := range []int{7, NewerNoncurrentMax, n, n + 1} {
		rows := lifecycleAll(t, s.view(), 1, nil, limit)
		if len(rows) != n {
			t.Fatalf("%d rows by %d", len(rows), limit)
		}
		for i, r := range rows {
			if r.NewerNoncurrent != min(max(i-1, 0), NewerNoncurrentMax) || r.Newest != (i == 0) || r.Only || i > 0 && r.Object.Seq >= rows[i-1].Object.Seq {
				t.Fatalf("row %d by %d is %v", i, limit, r)
			}
		}
	}
}

// A walk is bounded by the range, goes from any key on, and ends when it is told to.
func TestLifecycleBounds(t *testing.T) {
	f := newFamily(t)
	f.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	f.bucket(2, metapb.Versioning_VERSIONING_ENABLED)
	f.bucket(3, metapb.Versioning_VERSIONING_ENABLED)
	for _, k := range []string{"a", "b\x00", "m", "z"} {
		for b := uint64(1); b <= 3; b++ {
			f.ok(f.put(b, k, 10))
			f.ok(f.put(b, k, 10))
		}
		f.ok(&metapb.CreateUploadOp{Bucket: 2, Key: []byte(k), Row: &metapb.UploadRow{WriteId: f.id16()}})
	}
	keysOf := func(rows []seen) (keys string) {
		for _, r := range rows {
			keys += r.key + " "
		}
		return keys
	}
	_, pos := lifecycle(t, f.view(), 2, nil, 2) // in what stays, before the split
	child := f.split(testGroup, 2, "m")
	for what, c := range map[string]struct {
		v     *View
		after *LifecyclePos
		want  string
	}{
		"the parent's":      {f.viewOf(testGroup), nil, "a a a b\x00 b\x00 b\x00 "},
		"the child's":       {f.viewOf(child), nil, "m m m z z z "},
		"goes on":           {f.viewOf(testGroup), pos, "a b\x00 b\x00 b\x00 "},
		"before the child":  {f.viewOf(child), pos, "m m m z z z "},
		"behind the parent": {f.viewOf(testGroup), &LifecyclePos{Key: "z", Seq: 1}, ""},
		"from a key on":     {f.viewOf(child), &LifecyclePos{Key: "n"}, "z z z "},
		"at a key":          {f.viewOf(child), &LifecyclePos{Key: "m", Upload: true}, "m m m z z z "},
	} {
		rows := lifecycleAll(t, c.v, 2, c.after, 100)
		if got := keysOf(rows); got != c.want {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
		for _, r := range rows {
			if r.NewerNoncurrent != 0 || r.Only {
				t.Errorf("%s: %v is of a key with one noncurrent version", what, r)
			}
		}
	}
	if _, err := f.viewOf(testGroup).Lifecycle(3, nil, 1, nil); !errs.Is(err, errs.WrongRange) {
		t.Error(err)
	}
	if got := keysOf(lifecycleAll(t, f.viewOf(testGroup), 1, nil, 1)); got != "a b\x00 m z " {
		t.Errorf("%q", got)
	}
	n := 0
	next, err := f.viewOf(testGroup).Lifecycle(1, nil, 100, func(*LifecycleRow) (bool, error) { n++; return n < 2, nil })
	if err != nil || n != 2 || next == nil || next.Key != "b\x00" {
		t.Error(n, next, err)
	}
	mine := errors.New("mine")
	if next, err = f.viewOf(testGroup).Lifecycle(1, nil, 100, func(*LifecycleRow) (bool, error) { return true, mine }); err != mine || next != nil {
		t.Error(next, err)
	}
}

// Rows that cannot be read stop the walk.
func TestLifecycleCorrupt(t *testing.T) {
	for _, kind := range []byte{kindCurrent, kindVersion, kindUpload} {
		s := newStore(t)
		s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
		s.ok(s.put(1, "a", 10))
		raw := appendRaw(nil, kind, 1, "k")
		if !rawKind(kind) {
			raw = appendSeqRow(nil, kind, 1, "k", 9)
		}
		must(t, s.db.Set(raw, []byte("\xff\xff"), pebble.NoSync))
		n := 0
		_, err := s.view().Lifecycle(1, nil, 100, func(*LifecycleRow) (bool, error) { n++; return true, nil })
		if !errs.Is(err, errs.Corrupt) || n != 1 {
			t.Errorf("kind %q: %d rows, %v", kind, n, err)
		}
	}
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	must(t, s.db.Set(appendRaw(nil, kindVersion, 1, "k"), nil, pebble.NoSync)) // a key that does not end
	if _, err := s.view().Lifecycle(1, nil, 100, nil); !errs.Is(err, errs.Corrupt) {
		t.Error(err)
	}
}
