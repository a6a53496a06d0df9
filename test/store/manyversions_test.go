//go:build long

package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/harness"
)

const (
	fewVersions  = 1000
	manyVersions = 100_000
)

// cost is what operations asked of the ranges.
type cost struct {
	reads    int // of a range's state
	gets     int // of rows by their keys
	iters    int // made
	steps    int // rows that iterators came by
	commands int
}

// metered counts what a gateway costs the ranges. The system group is left out: a gateway looks
// at a bucket again when what it remembers is some time old. Not safe for concurrent use.
type metered struct {
	metaclient.Groups
	cost
}

func (m *metered) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	m.commands++
	return m.Groups.Propose(ctx, g, data)
}

func (m *metered) Read(ctx context.Context, g cluster.GroupID, fn func(pebble.Reader) error) error {
	if g == cluster.SystemGroup {
		return m.Groups.Read(ctx, g, fn)
	}
	m.reads++
	return m.Groups.Read(ctx, g, func(r pebble.Reader) error { return fn(meteredReader{r, &m.cost}) })
}

func (m *metered) ReadSnapshot(ctx context.Context, g cluster.GroupID, fn func(pebble.Reader, <-chan struct{}) error) error {
	if g == cluster.SystemGroup {
		return m.Groups.ReadSnapshot(ctx, g, fn)
	}
	m.reads++
	return m.Groups.ReadSnapshot(ctx, g, func(r pebble.Reader, cut <-chan struct{}) error { return fn(meteredReader{r, &m.cost}, cut) })
}

type meteredReader struct {
	pebble.Reader
	*cost
}

func (r meteredReader) Get(key []byte) ([]byte, io.Closer, error) {
	r.gets++
	return r.Reader.Get(key)
}

func (r meteredReader) NewIter(o *pebble.IterOptions) (*pebble.Iterator, error) {
	r.iters++
	counted := *o
	counted.SkipPoint = func([]byte) bool {
		r.steps++
		return false
	}
	return r.Reader.NewIter(&counted)
}

// hoard is a versioned bucket in which one key has very many versions and stands between two others.
type hoard struct {
	*testing.T
	s      *objects.Store
	groups *metered
	ids    []string // of the versions, oldest first
}

// grow puts versions, from several clients at once, until there are n, and lists them all.
func (h *hoard) grow(s *objects.Store, n int) {
	h.Helper()
	const clients = 64
	made := make([][]string, clients)
	var wg sync.WaitGroup
	for i := range clients {
		share := (n - len(h.ids)) / clients
		if i < (n-len(h.ids))%clients {
			share++
		}
		wg.Go(func() {
			for range share {
				out, err := s.PutObject(h.Context(), acct, &objects.PutInput{Bucket: "bucket", Key: "key", Body: harness.NewBody([]byte("x")), Attributes: &metapb.Attributes{}})
				if err != nil {
					h.Error(err)
					return
				}
				made[i] = append(made[i], out.VersionID)
			}
		})
	}
	wg.Wait()
	want := append(slices.Concat(made...), h.ids...)
	h.ids = h.all()
	got := slices.Clone(h.ids)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		h.Fatalf("%d versions were put, %d others are listed", len(want), len(got))
	}
}

// all lists the versions of the key in full pages, each of which must cost no more than a page does.
func (h *hoard) all() (ids []string) {
	h.Helper()
	in := objects.ListVersionsInput{Bucket: "bucket", Prefix: "key", Max: 1000}
	for more := true; more; {
		h.groups.cost = cost{}
		page, err := h.s.ListVersions(h.Context(), acct, &in)
		if err != nil {
			h.Fatal(err)
		}
		if c := h.groups.cost; c.reads != 1 || c.iters != 2 || c.steps > in.Max+10 {
			h.Fatalf("a page of %d versions behind %d cost %+v", len(page.Versions), len(ids), c)
		}
		for i := range page.Versions {
			v := &page.Versions[i]
			if v.Key != "key" || v.DeleteMarker || v.Latest != (len(ids) == 0) {
				h.Fatalf("version %d behind the newest is %+v", len(ids), v)
			}
			ids = append(ids, v.VersionID)
		}
		if n := len(page.Versions); n > in.Max || page.Truncated && n != in.Max {
			h.Fatalf("a page of %d versions behind %d", n, len(ids)-n)
		}
		in.KeyMarker, in.VersionMarker, more = page.NextKey, page.NextVersion, page.Truncated
	}
	slices.Reverse(ids)
	return ids
}

// delete deletes a version, or makes a marker if the id is "".
func (h *hoard) delete(id string) objects.DeleteResult {
	h.Helper()
	res, err := h.s.DeleteObject(h.Context(), acct, "bucket", objects.DeleteItem{Key: "key", VersionID: id})
	if err != nil {
		h.Fatal(err)
	}
	return res
}

// is wants that a get of the key answers a version.
func (h *hoard) is(id, want string) {
	h.Helper()
	o, err := h.s.GetObject(h.Context(), acct, &objects.GetInput{Bucket: "bucket", Key: "key", VersionID: id})
	if err != nil {
		h.Fatal(err)
	}
	defer o.Close()
	var body bytes.Buffer
	if err := o.Send(&body); err != nil || o.VersionID != want || body.String() != "x" {
		h.Errorf("version %q is %q with body %q, %v; want %q", id, o.VersionID, body.String(), err, want)
	}
}

// versions wants that a page of a listing of versions is these.
func (h *hoard) versions(in objects.ListVersionsInput, want ...string) {
	h.Helper()
	in.Bucket = "bucket"
	page, err := h.s.ListVersions(h.Context(), acct, &in)
	if err != nil {
		h.Fatal(err)
	}
	got := slices.Clone(page.CommonPrefixes)
	for i := range page.Versions {
		got = append(got, page.Versions[i].VersionID)
	}
	if !slices.Equal(got, want) {
		h.Errorf("%+v: %q, want %q", in, got, want)
	}
}

// operations does what must not depend on how many versions there are, and answers what each cost. It takes away the two newest.
func (h *hoard) operations() map[string]cost {
	costs := map[string]cost{}
	measure := func(what string, fn func()) {
		h.Helper()
		h.groups.cost = cost{}
		fn()
		costs[what] = h.groups.cost
	}
	newest := func(from, to int) (ids []string) { // as they are listed
		for i := from; i < to; i++ {
			ids = append(ids, h.ids[len(h.ids)-1-i])
		}
		return ids
	}
	n := len(h.ids)
	measure("a get of the newest", func() { h.is("", h.ids[n-1]) })
	measure("a get of the one before", func() { h.is(h.ids[n-2], h.ids[n-2]) })
	measure("a get of one in the middle", func() { h.is(h.ids[n/2], h.ids[n/2]) })
	measure("a get of the oldest", func() { h.is(h.ids[0], h.ids[0]) })
	measure("a listing of objects", func() {
		page, err := h.s.ListObjects(h.Context(), acct, &objects.ListInput{Bucket: "bucket", Max: 10})
		if err != nil || len(page.Objects) != 3 || page.Objects[1].ETag != etagOf([]byte("x")) || page.Truncated {
			h.Errorf("a listing: %+v, %v", page, err)
		}
	})
	measure("the first page", func() { h.versions(objects.ListVersionsInput{Prefix: "key", Max: 10}, newest(0, 10)...) })
	measure("a page in the middle", func() {
		h.versions(objects.ListVersionsInput{Prefix: "key", KeyMarker: "key", VersionMarker: newest(n/2, n/2+1)[0], Max: 10}, newest(n/2+1, n/2+11)...)
	})
	measure("the last page", func() {
		h.versions(objects.ListVersionsInput{Prefix: "key", KeyMarker: "key", VersionMarker: newest(n-6, n-5)[0], Max: 10}, newest(n-5, n)...)
	})
	measure("what is behind the key", func() { h.versions(objects.ListVersionsInput{KeyMarker: "key", Max: 10}, "null") })
	measure("all versions behind one prefix", func() { h.versions(objects.ListVersionsInput{Delimiter: "e", Max: 10}, "ke", "null", "null") })
	measure("a delete of the newest", func() { h.delete(h.ids[n-1]) })
	measure("a get of the newest after that", func() { h.is("", h.ids[n-2]) })
	var marker string
	measure("a delete", func() { marker = h.delete("").MarkerVersionID })
	measure("a get of the delete marker", func() {
		if _, err := h.s.GetObject(h.Context(), acct, &objects.GetInput{Bucket: "bucket", Key: "key"}); !errs.Is(err, errs.IsDeleteMarker) {
			h.Errorf("a key that was deleted: %v", err)
		}
	})
	measure("the first page with the marker", func() {
		h.versions(objects.ListVersionsInput{Prefix: "key", Max: 3}, marker, h.ids[n-2], h.ids[n-3])
	})
	measure("a delete of the marker", func() { h.delete(marker) })
	measure("a get of the newest under the marker", func() { h.is("", h.ids[n-2]) })
	measure("another delete of the newest", func() { h.delete(h.ids[n-2]) })
	h.ids = h.ids[:n-2]
	measure("a put", func() {
		out, err := h.s.PutObject(h.Context(), acct, &objects.PutInput{Bucket: "bucket", Key: "key", Body: harness.NewBody([]byte("x")), Attributes: &metapb.Attributes{}})
		if err != nil {
			h.Fatal(err)
		}
		h.ids = append(h.ids, out.VersionID)
	})
	measure("a get of what was put", func() { h.is("", h.ids[len(h.ids)-1]) })
	return costs
}

// TestManyVersions: with 100,000 versions of a key, pages of listings, gets and deletes read as many rows as with 1000.
func TestManyVersions(t *testing.T) {
	// One drive: what a command costs is not counted here, and with three voters it takes thrice the time.
	c, err := harness.Open(t.Context(), harness.Options{FS: vfsx.NewMem(), Dir: "/data", Zones: 1, DrivesPerZone: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	b, err := harness.MakeBucket(t.Context(), c, "bucket")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"a", "z"} { // before there are versions
		if err := b.Put(t.Context(), key, []byte("y")); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Objects.PutBucketVersioning(t.Context(), acct, "bucket", true); err != nil {
		t.Fatal(err)
	}
	groups := &metered{Groups: c.Groups}
	h := &hoard{T: t, s: over(c, groups), groups: groups}
	h.grow(c.Objects, fewVersions)
	few := h.operations()
	h.grow(c.Objects, manyVersions)
	for what, many := range h.operations() {
		less := few[what]
		t.Logf("%s: %+v", what, many)
		same := many
		same.steps = less.steps
		// A row that was deleted stays in the way until it is compacted.
		if many == (cost{}) || same != less || many.steps > less.steps+10 {
			t.Errorf("%s cost %+v with %d versions, %+v with %d", what, many, manyVersions, less, fewVersions)
		}
	}
}

// applied is a range's state on a store whose comparisons of keys are counted, and the machine that writes it.
type applied struct {
	*testing.T
	db       *pebble.DB
	m        *rangestate.Machine
	compared atomic.Int64
	ids      uint64
}

// settle leaves all rows in one level, and nothing to do in the background.
func (a *applied) settle() {
	a.Helper()
	if err := a.db.Compact(a.Context(), []byte{0}, bytes.Repeat([]byte{0xff}, 8), false); err != nil {
		a.Fatal(err)
	}
}

func newApplied(t *testing.T) *applied {
	a := &applied{T: t, m: rangestate.New(7)}
	counting := *pebble.DefaultComparer
	counting.Compare = func(x, y []byte) int {
		a.compared.Add(1)
		return pebble.DefaultComparer.Compare(x, y)
	}
	var err error
	// Compacted only when settle says so: what runs in the background compares too.
	o := &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, Comparer: &counting, DisableAutomaticCompactions: true, L0StopWritesThreshold: 10_000, Logger: quiet{t}}
	if a.db, err = pebble.Open("", o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.db.Close(); err != nil {
			t.Error(err)
		}
	})
	b := a.db.NewBatch()
	if err := rangestate.Birth(b, &metapb.RangeDescriptor{Group: 7}); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	a.apply(&metapb.RangeCommand{Op: &metapb.RangeCommand_PutBucket{PutBucket: &metapb.PutBucketOp{
		Row: &metapb.BucketRow{Id: 1, Generation: 1, Versioning: metapb.Versioning_VERSIONING_ENABLED},
	}}})
	return a
}

// quiet is Pebble's logger in a test that wants to hear of what is fatal only.
type quiet struct{ t *testing.T }

func (quiet) Infof(string, ...any)             {}
func (quiet) Errorf(string, ...any)            {}
func (q quiet) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }

// apply commits commands in one batch and answers the last result, how many rows were written, and how often keys were compared.
func (a *applied) apply(cmds ...*metapb.RangeCommand) (res *metapb.RangeResult, rows, compared int) {
	a.Helper()
	const now = 1_700_000_000_000
	entries := make([]cluster.Entry, len(cmds))
	for i, cmd := range cmds {
		a.ids++
		cmd.Version, cmd.Id, cmd.IssuedMs = 1, fmt.Appendf(nil, "%016d", a.ids), now
		data, err := cmd.MarshalVT()
		if err != nil {
			a.Fatal(err)
		}
		entries[i] = cluster.Entry{TimeMS: now, Data: data}
	}
	before := a.compared.Load()
	b := a.db.NewIndexedBatch()
	out, err := a.m.Apply(b, entries)
	if err != nil {
		a.Fatal(err)
	}
	rows, compared = int(b.Count()), int(a.compared.Load()-before)
	if err := b.Commit(pebble.NoSync); err != nil {
		a.Fatal(err)
	}
	res = &metapb.RangeResult{}
	for _, data := range out {
		if err := res.UnmarshalVT(data); err != nil || !res.Ok {
			a.Fatalf("refused: %v, %v", res, err)
		}
	}
	return res, rows, compared
}

func (a *applied) put() *metapb.RangeCommand {
	a.ids++
	return &metapb.RangeCommand{Op: &metapb.RangeCommand_PutObject{PutObject: &metapb.PutObjectOp{Bucket: 1, Key: []byte("key"), Row: &metapb.ObjectRow{
		Nonce: a.ids, WriteId: fmt.Appendf(nil, "%016d", a.ids), Etag: "etag", Owner: "me",
	}}}}
}

func (a *applied) delete(version *metapb.ObjectRow) *metapb.RangeCommand {
	a.ids++
	e := &metapb.DeleteEntry{Key: []byte("key"), MarkerNonce: a.ids}
	if version != nil {
		e.HasVersion, e.VersionSeq, e.VersionNonce = true, version.Seq, version.Nonce
	}
	return &metapb.RangeCommand{Op: &metapb.RangeCommand_DeleteObjects{DeleteObjects: &metapb.DeleteObjectsOp{Bucket: 1, Owner: "me", Entries: []*metapb.DeleteEntry{e}}}}
}

func (a *applied) newest() *metapb.ObjectRow {
	a.Helper()
	v, err := rangestate.NewView(a.db, 7)
	if err != nil {
		a.Fatal(err)
	}
	row, err := v.Object(1, "key", nil)
	if err != nil && !errs.Is(err, errs.IsDeleteMarker) {
		a.Fatal(err)
	}
	return row
}

// TestManyVersionsCommands: a state machine writes as many rows for a command on a key with 100,000 versions as with 1000,
// and looks at hardly more: how often it compares keys grows as the logarithm of how many there are.
func TestManyVersionsCommands(t *testing.T) {
	a := newApplied(t)
	type work struct{ rows, compared int }
	operations := func() map[string]work {
		did := map[string]work{}
		do := func(what string, cmd *metapb.RangeCommand) {
			t.Helper()
			_, rows, compared := a.apply(cmd)
			did[what] = work{rows, compared}
		}
		do("a put", a.put())
		do("a delete of the newest", a.delete(a.newest()))
		do("a delete", a.delete(nil))
		do("a put over the marker", a.put())
		do("another delete", a.delete(nil))
		do("a delete of the marker", a.delete(a.newest()))
		do("a change of tags", &metapb.RangeCommand{Op: &metapb.RangeCommand_UpdateVersion{UpdateVersion: &metapb.UpdateVersionOp{
			Bucket: 1, Key: []byte("key"), Change: &metapb.UpdateVersionOp_Tags{Tags: &metapb.Tags{Tags: []*metapb.KV{{Name: "n", Value: "v"}}}},
		}}})
		return did
	}
	put := 0
	grow := func(n int) {
		for put < n {
			var cmds []*metapb.RangeCommand
			for range 100 {
				cmds = append(cmds, a.put())
			}
			a.apply(cmds...)
			put += len(cmds)
		}
		a.settle()
	}
	grow(fewVersions)
	few := operations()
	grow(manyVersions)
	for what, many := range operations() {
		less := few[what]
		t.Logf("%s: %+v, and with few versions %+v", what, many, less)
		if many.rows != less.rows || many.compared > 4*less.compared {
			t.Errorf("%s: %+v with %d versions, %+v with %d", what, many, manyVersions, less, fewVersions)
		}
	}
}
