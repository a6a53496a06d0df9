package metarpc

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// filling is a range with some of everything.
type filling struct {
	big      *metapb.ObjectRow // of key "big": of three parts
	versions []storage.VersionID
	upload   storage.UploadID // in progress, of key "up/1"
	done     storage.UploadID // of "big"
	chunk    storage.ChunkID  // of part 2 of "big"
	dead     storage.ChunkID  // of an object that was overwritten
	seq      storage.Seq      // of the object "missing", which has a repair row
}

func fill(a *node) (f filling) {
	a.makeBucket(metapb.Versioning_VERSIONING_ENABLED)
	n := uint64(1)
	for i := range 60 {
		key := fmt.Sprintf("dir%d/key%02d", i%3, i)
		for range 1 + i%3 {
			n++
			res := a.must(key, putOp(key, n, strings.Repeat("x", i)))
			f.versions = append(f.versions, storage.VersionID{Seq: storage.Seq(res.VersionSeq), Nonce: n})
		}
	}
	a.must("dir1/key01", &metapb.DeleteObjectsOp{Bucket: 1, Owner: "me", Entries: []*metapb.DeleteEntry{{Key: []byte("dir1/key01"), MarkerNonce: 7}}})
	// A deleted version leaves garbage.
	n++
	dead := chunk(n, 100000)
	copy(f.dead[:], dead.Id)
	op := putOp("dead", n, "")
	op.Row.Size, op.Row.Data = 100000, &metapb.Data{Chunks: []*metapb.ChunkRef{dead}}
	res := a.must("dead", op)
	a.must("dead", &metapb.DeleteObjectsOp{Bucket: 1, Owner: "me", Entries: []*metapb.DeleteEntry{{
		Key: []byte("dead"), HasVersion: true, VersionSeq: res.VersionSeq, VersionNonce: n,
	}}})
	for i := range 3 {
		n++
		key := fmt.Sprintf("up/%d", i)
		res := a.must(key, &metapb.CreateUploadOp{Bucket: 1, Key: []byte(key), Row: &metapb.UploadRow{Format: 1, Nonce: n, WriteId: id16(n), Owner: "me", Attributes: &metapb.Attributes{}}})
		f.upload = storage.UploadID{Seq: storage.Seq(res.VersionSeq), Nonce: n}
		a.parts(key, f.upload, &n, 5)
	}
	n++
	res = a.must("big", &metapb.CreateUploadOp{Bucket: 1, Key: []byte("big"), Row: &metapb.UploadRow{Format: 1, Nonce: n, WriteId: id16(n), Owner: "me", Attributes: &metapb.Attributes{}}})
	f.done = storage.UploadID{Seq: storage.Seq(res.VersionSeq), Nonce: n}
	ids, generation := a.parts("big", f.done, &n, 3)
	f.chunk = ids[1]
	complete := &metapb.CompleteUploadOp{Bucket: 1, Key: []byte("big"), UploadSeq: uint64(f.done.Seq), UploadNonce: f.done.Nonce, UploadGeneration: generation, Etag: "big-3", VersionNonce: 99}
	for i := range 3 {
		complete.Parts = append(complete.Parts, &metapb.ManifestPart{Number: uint32(i + 1), Size: 1000})
	}
	a.must("big", complete)
	return f
}

// parts stores parts of 1000 bytes each, and answers their chunks and the upload's generation.
func (a *node) parts(key string, id storage.UploadID, n *uint64, count int) (ids []storage.ChunkID, generation uint64) {
	for p := range count {
		*n++
		ref := chunk(*n, 1000)
		ids = append(ids, storage.ChunkID(ref.Id))
		a.must(key, &metapb.PutPartOp{Bucket: 1, Key: []byte(key), UploadSeq: uint64(id.Seq), UploadNonce: id.Nonce, Row: &metapb.PartRow{
			Format: 1, Number: uint32(p + 1), WriteId: id16(*n), Size: 1000, Etag: "part", Data: &metapb.Data{Chunks: []*metapb.ChunkRef{ref}},
		}})
	}
	err := a.meta.Read(a.c.t.Context(), 1, storage.Key(key), func(r rangestate.Reader) error {
		up, err := r.Upload(1, storage.Key(key), id)
		generation = up.GetGeneration()
		return err
	})
	if err != nil {
		a.c.t.Fatal(err)
	}
	return ids, generation
}

// plain is v in a form that does not tell a missing from an empty list.
func plain(t *testing.T, v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(":null", ":[]", `:""`, ":[]").Replace(string(b))
}

// calls are all methods of a Reader with arguments that make sense for f, by name.
func (f *filling) calls() map[string]func(r rangestate.Reader) (any, error) {
	type call = func(r rangestate.Reader) (any, error)
	m := map[string]call{
		"bucket":       func(r rangestate.Reader) (any, error) { return r.Bucket(1) },
		"no bucket":    func(r rangestate.Reader) (any, error) { return r.Bucket(2) },
		"object":       func(r rangestate.Reader) (any, error) { return r.Object(1, "dir0/key00", nil) },
		"no object":    func(r rangestate.Reader) (any, error) { return r.Object(1, "nothing", nil) },
		"marker":       func(r rangestate.Reader) (any, error) { return r.Object(1, "dir1/key01", nil) },
		"null version": func(r rangestate.Reader) (any, error) { return r.Object(1, "dir0/key00", &storage.VersionID{}) },
		"info":         func(r rangestate.Reader) (any, error) { i, err := r.Info(); i.TimeMS = 0; return i, err },
		"check":        func(r rangestate.Reader) (any, error) { return nil, r.Check(cluster.Pos{Bucket: 7, Key: "k"}) },
		"upload":       func(r rangestate.Reader) (any, error) { return r.Upload(1, "up/2", f.upload) },
		"no upload":    func(r rangestate.Reader) (any, error) { return r.Upload(1, "up/1", f.upload) },
		"part":         func(r rangestate.Reader) (any, error) { return r.Part(1, "big", f.done.Seq, 2) },
		"no part":      func(r rangestate.Reader) (any, error) { return r.Part(1, "big", f.done.Seq, 4) },
		"by seq":       func(r rangestate.Reader) (any, error) { return r.VersionBySeq(1, "dir2/key02", f.versions[3].Seq) },
		"completed":    func(r rangestate.Reader) (any, error) { return r.Completed(1, "big", f.done) },
		"uncompleted":  func(r rangestate.Reader) (any, error) { return r.Completed(1, "up/2", f.upload) },
		"garbage":      func(r rangestate.Reader) (any, error) { return r.Garbage(0, 0, 10) },
		"doomed":       func(r rangestate.Reader) (any, error) { return r.Doomed(nil, 10) },
		"repairs":      func(r rangestate.Reader) (any, error) { return r.Repairs(nil, 10) },
		"counters":     func(r rangestate.Reader) (any, error) { return r.Counters() },
		"counters of":  func(r rangestate.Reader) (any, error) { return r.CountersOf(1, 3) },
		"no counters":  func(r rangestate.Reader) (any, error) { return r.CountersOf(2, 3) },
		"survey": func(r rangestate.Reader) (any, error) {
			return r.Survey(&rangestate.SurveyQuery{Bucket: 1, Uploads: true, Limit: 1000})
		},
		"survey on": func(r rangestate.Reader) (any, error) {
			return r.Survey(&rangestate.SurveyQuery{Bucket: 1, Prefix: "dir", After: &rangestate.LifecyclePos{Key: "dir1/key04", Seq: f.versions[9].Seq}, Limit: 5})
		},
		"survey current": func(r rangestate.Reader) (any, error) {
			return r.Survey(&rangestate.SurveyQuery{Bucket: 1, Current: true, Limit: 1000})
		},
		"survey nothing": func(r rangestate.Reader) (any, error) { return r.Survey(&rangestate.SurveyQuery{Bucket: 9, Limit: 10}) },
		"find": func(r rangestate.Reader) (any, error) {
			return r.FindChunk(storage.Owner{Bucket: 1, Key: "big"}, f.chunk)
		},
		"find none": func(r rangestate.Reader) (any, error) {
			ref, err := r.FindChunk(storage.Owner{Bucket: 1, Key: "dead"}, f.dead)
			return ref == nil, err
		},
		"refers": func(r rangestate.Reader) (any, error) {
			return r.Refers(storage.Owner{Bucket: 1, Key: "dead"}, f.dead)
		},
		"refers not": func(r rangestate.Reader) (any, error) {
			return r.Refers(storage.Owner{Bucket: 1, Key: "big"}, storage.ChunkID{1})
		},
		"walk": func(r rangestate.Reader) (any, error) {
			var all []*rangestate.Item
			err := r.Walk(func(it *rangestate.Item) error { all = append(all, it); return nil })
			return all, err
		},
		"parts": func(r rangestate.Reader) (any, error) {
			rows, more, err := r.Parts(1, "up/2", f.upload, 1, 3)
			return []any{rows, more}, err
		},
	}
	for i, id := range f.versions[:8] {
		key := []storage.Key{"dir0/key00", "dir1/key01", "dir1/key01", "dir2/key02", "dir2/key02", "dir2/key02", "dir0/key03", "dir0/key03"}[i]
		m[fmt.Sprint("version ", i)] = func(r rangestate.Reader) (any, error) { return r.Object(1, key, &id) }
	}
	for i, l := range []struct {
		prefix, delimiter, after string
		limit                    int
	}{{"", "", "", 1000}, {"", "/", "", 1000}, {"dir1/", "/", "", 5}, {"dir", "", "dir0/key03", 7}, {"none", "", "", 3}, {"", "", "", 0}, {"", "", "zzz", 5}} {
		m[fmt.Sprint("list ", i)] = func(r rangestate.Reader) (any, error) {
			return r.ListCurrent(1, l.prefix, l.delimiter, l.after, l.limit)
		}
		m[fmt.Sprint("uploads ", i)] = func(r rangestate.Reader) (any, error) {
			return r.ListUploads(1, l.prefix, l.delimiter, l.after, 0, l.limit)
		}
		m[fmt.Sprint("versions ", i)] = func(r rangestate.Reader) (any, error) {
			var id *storage.VersionID
			if l.after != "" {
				id = &f.versions[6]
			}
			return r.ListVersions(1, l.prefix, l.delimiter, l.after, id, l.limit)
		}
	}
	for i, e := range [][2]int64{{0, 3000}, {500, 1000}, {2999, 1}, {1000, 0}, {2000, 2000}} {
		m[fmt.Sprint("segments ", i)] = func(r rangestate.Reader) (any, error) {
			return r.Segments(1, "big", f.big, e[0], e[1], math.MaxInt)
		}
		m[fmt.Sprint("segments first ", i)] = func(r rangestate.Reader) (any, error) {
			return r.Segments(1, "big", f.big, e[0], e[1], 1)
		}
		m[fmt.Sprint("extent ", i)] = func(r rangestate.Reader) (any, error) {
			off, n, err := r.PartExtent(1, "big", f.big, i)
			return []int64{off, n}, err
		}
		m[fmt.Sprint("object parts ", i)] = func(r rangestate.Reader) (any, error) {
			rows, more, err := r.ObjectParts(1, "big", f.big, i-1, 2)
			return []any{rows, more}, err
		}
		m[fmt.Sprint("object parts of none ", i)] = func(r rangestate.Reader) (any, error) {
			rows, more, err := r.ObjectParts(1, "dir0/key00", &metapb.ObjectRow{}, i, 2)
			return []any{rows, more}, err
		}
	}
	return m
}

// TestReaderIsTheView asks everything that a Reader can be asked at the leader and from a node without a replica.
func TestReaderIsTheView(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodes(t, 4, 3)
		defer c.close()
		lead, gateway := c.leaderOf(cluster.FirstRange), c.all[3]
		f := fill(gateway)
		remote := func(fn func(r rangestate.Reader) error) error {
			return gateway.meta.Read(t.Context(), 1, "", fn)
		}
		local := func(fn func(r rangestate.Reader) error) error {
			return lead.host.Read(t.Context(), cluster.FirstRange, func(r pebble.Reader) error {
				v, err := rangestate.NewView(r, cluster.FirstRange)
				if err != nil {
					return err
				}
				return fn(v)
			})
		}
		if err := remote(func(r rangestate.Reader) (err error) { f.big, err = r.Object(1, "big", nil); return err }); err != nil {
			t.Fatal(err)
		}
		for name, call := range f.calls() {
			var want, got any
			var wantErr, gotErr error
			if err := local(func(r rangestate.Reader) error { want, wantErr = call(r); return nil }); err != nil {
				t.Fatal(err)
			}
			err := remote(func(r rangestate.Reader) error {
				if _, ok := r.(*rangeReader); !ok {
					t.Fatal("the gateway reads here")
				}
				got, gotErr = call(r)
				if gotErr == nil && name != "check" && r.TimeMS() == 0 && !strings.HasPrefix(name, "segments") && !strings.HasPrefix(name, "extent") {
					t.Errorf("%s: no time", name)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if errs.KindOf(gotErr) != errs.KindOf(wantErr) || (gotErr == nil) != (wantErr == nil) {
				t.Errorf("%s: %v, at the leader %v", name, gotErr, wantErr)
			}
			if wantErr != nil && !errs.Is(wantErr, errs.IsDeleteMarker) {
				continue
			}
			if g, w := plain(t, got), plain(t, want); g != w {
				t.Errorf("%s: got\n%s\nwant\n%s", name, g, w)
			}
		}
		if items, err := countOf(local); err != nil || items < 100 {
			t.Errorf("%d rows, %v: the test says little", items, err)
		}
	})
}

func countOf(read func(func(rangestate.Reader) error) error) (n int, err error) {
	err = read(func(r rangestate.Reader) error {
		return r.Walk(func(*rangestate.Item) error { n++; return nil })
	})
	return n, err
}
