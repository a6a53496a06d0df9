package rangestate

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
)

// surveyAll is a survey by pages.
func surveyAll(t testing.TB, v *View, q SurveyQuery) (rows []LifecycleRow) {
	t.Helper()
	for {
		page, err := v.Survey(&q)
		if err != nil {
			t.Fatal(err)
		}
		if rows = append(rows, page.Rows...); page.Next == nil {
			return rows
		}
		if len(page.Rows) != q.Limit {
			t.Fatalf("a page of %d has %d rows and is not the last", q.Limit, len(page.Rows))
		}
		q.After = page.Next
	}
}

// checkSurvey surveys a bucket as an inventory or a simulation would.
func (w *world) checkSurvey() {
	w.t.Helper()
	id := uint64(1 + w.n(4))
	b := w.model.buckets[id]
	if b == nil {
		return
	}
	q := SurveyQuery{Bucket: storage.BucketID(id), Prefix: pick(w, worldPrefixes), Current: w.chance(50), Uploads: w.chance(50), Limit: 1 + w.n(5)}
	var want, got []string
	keys := map[string]bool{}
	for key := range b.keys {
		keys[key] = true
	}
	for _, u := range b.uploads {
		keys[u.key] = true
	}
	for _, key := range sortedKeys(keys) {
		if !strings.HasPrefix(key, q.Prefix) {
			continue
		}
		for i, v := range b.keys[key] {
			if q.Current && (i > 0 || v.marker) {
				continue
			}
			text := fmt.Sprintf("%q %d newest %v size %d etag %q class %q since %d parts %d %v", key, v.seq, i == 0, v.size, v.etag, v.class, v.classSince, len(v.parts), v.restore)
			if !q.Current {
				text += fmt.Sprintf(" only %v newer %d", len(b.keys[key]) == 1, max(i-1, 0))
			}
			want = append(want, text)
		}
		for _, u := range b.uploads {
			if u.key == key && q.Uploads {
				want = append(want, fmt.Sprintf("%q upload %d", key, u.seq))
			}
		}
	}
	for _, r := range surveyAll(w.t, w.view(), q) {
		if r.Upload != nil {
			got = append(got, fmt.Sprintf("%q upload %d", r.Key, r.Upload.Seq))
			continue
		}
		o := r.Object
		text := fmt.Sprintf("%q %d newest %v size %d etag %q class %q since %d parts %d %v", r.Key, o.Seq, r.Newest, o.Size, o.Etag, o.GetAttributes().GetStorageClass(), o.ClassSinceMs, o.GetData().GetParts(), o.Restore)
		if !q.Current {
			text += fmt.Sprintf(" only %v newer %d", r.Only, r.NewerNoncurrent)
		}
		got = append(got, text)
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("survey %+v:\n got %q\nwant %q", q, got, want)
	}
}

func TestSurveyTellsChecksums(t *testing.T) {
	s := newStore(t)
	s.bucket(1, 0)
	op := s.put(1, "k", 10)
	op.Row.Checksums = []*metapb.Checksum{{Algorithm: metapb.ChecksumAlgorithm_CRC32C, Value: []byte("1234")}, {Algorithm: metapb.ChecksumAlgorithm_SHA1, Value: []byte("5"), Composite: true}}
	s.ok(op)
	s.ok(s.put(1, "l", 10))
	rows := surveyAll(t, s.view(), SurveyQuery{Bucket: 1, Current: true, Limit: 2})
	if len(rows) != 2 || len(rows[0].Object.Checksums) != 2 || rows[0].Object.Checksums[1].Algorithm != metapb.ChecksumAlgorithm_SHA1 ||
		rows[0].Object.Checksums[0].Value != nil || len(rows[1].Object.Checksums) != 0 {
		t.Error(rows)
	}
}

func TestCountersOf(t *testing.T) {
	s := newStore(t)
	for b := uint64(1); b <= 5; b++ {
		s.bucket(b, 0)
		s.ok(s.put(b, "k", int(b)))
	}
	for _, c := range []struct {
		first, last storage.BucketID
		want        string
	}{{0, math.MaxUint64, "[1 2 3 4 5]"}, {2, 4, "[2 3 4]"}, {3, 3, "[3]"}, {4, 3, "[]"}, {6, 9, "[]"}, {5, math.MaxUint64, "[5]"}} {
		ids := []storage.BucketID{}
		for _, k := range got(s.view().CountersOf(c.first, c.last)) {
			ids = append(ids, k.Bucket)
		}
		if text := fmt.Sprint(ids); text != c.want {
			t.Errorf("%d to %d: %s, want %s", c.first, c.last, text, c.want)
		}
	}
}
