package rangestate

import (
	"fmt"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

func wantKind(t *testing.T, res *metapb.RangeResult, kind errs.Kind, freed bool) {
	t.Helper()
	if res.Ok || errs.Kind(res.Kind) != kind || res.Freed != freed {
		t.Fatalf("%v, want kind %q, freed %v", res, kind, freed)
	}
}

func (s *store) garbageRows() []GarbageItem {
	s.t.Helper()
	items, err := s.view().Garbage(0, 0, 100000)
	if err != nil {
		s.t.Fatal(err)
	}
	return items
}

// A range answers WrongRange outside of its bounds and frees nothing: the same
// command goes to the range that holds the key.
func TestBounds(t *testing.T) {
	s := newStoreIn(t, &metapb.RangeDescriptor{
		Group: 7, Start: &metapb.PosPB{Bucket: 1, Key: []byte("f")}, End: &metapb.PosPB{Bucket: 2, Key: []byte("m")},
	})
	for id, ok := range map[uint64]bool{1: true, 2: true, 3: false} {
		res := s.do(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: id, Generation: 1}})
		if res.Ok != ok || !ok && errs.Kind(res.Kind) != errs.WrongRange {
			t.Fatalf("bucket %d: %v", id, res)
		}
	}
	for _, c := range []struct {
		bucket uint64
		key    string
		in     bool
	}{{1, "e\xff", false}, {1, "f", true}, {1, "\xff", true}, {2, "a", true}, {2, "l\xff", true}, {2, "m", false}, {3, "a", false}} {
		op := s.put(c.bucket, c.key, 10)
		before := len(s.garbageRows())
		if res := s.do(op); c.in != res.Ok {
			t.Fatalf("put %d %q: %v", c.bucket, c.key, res)
		} else if !c.in {
			wantKind(t, res, errs.WrongRange, false)
		}
		_, err := s.view().Object(storage.BucketID(c.bucket), storage.Key(c.key), nil)
		if c.in && err != nil || !c.in && !errs.Is(err, errs.WrongRange) {
			t.Fatalf("get %d %q: %v", c.bucket, c.key, err)
		}
		if len(s.garbageRows()) != before {
			t.Fatal("a command for another range freed chunks")
		}
	}
	del := s.delete(1, "f")
	del.Entries = append(del.Entries, s.delete(1, "a").Entries...)
	res := s.do(del)
	if !res.Ok || !res.Entries[0].Ok || errs.Kind(res.Entries[1].Kind) != errs.WrongRange {
		t.Fatalf("delete on both sides of the border: %v", res)
	}
	wantKind(t, s.do(s.delete(1, "a")), errs.WrongRange, false)

	page, err := s.view().ListCurrent(2, "", "", "", 10)
	if err != nil || len(page.Rows) != 2 || page.Truncated || page.Bounds.End != (cluster.Pos{Bucket: 2, Key: "m"}) {
		t.Fatalf("%+v, %v", page, err)
	}
	for _, l := range [][2]string{{"n", ""}, {"", "m"}} { // behind the range's end: its bounds say so
		if page, err := s.view().ListCurrent(2, l[0], "", l[1], 10); err != nil || len(page.Rows) != 0 || page.Truncated {
			t.Fatalf("a listing behind the range's end: %v, %v", page, err)
		}
	}
	if page, err := s.view().ListCurrent(1, "", "", "b", 10); err != nil || len(page.Rows) != 1 {
		t.Fatalf("a listing that began in an earlier range: %v, %v", page, err)
	}
}

// Every row lies in exactly one span, and spans of other groups don't hold any.
func TestSpansHoldAllRows(t *testing.T) {
	w := runWorld(t, 1000)
	spans, err := w.m.Spans(w.db)
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range dump(t, w.db) {
		n := 0
		for _, s := range spans {
			if kv[0] >= string(s.Start) && kv[0] < string(s.End) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("row %q lies in %d spans", kv[0], n)
		}
	}
	other, err := New(9).Spans(w.db)
	if err != nil || len(other) != 2 {
		t.Fatalf("spans of a group that is not there: %v, %v", other, err)
	}
	if _, err := NewView(w.db, 9); !errs.Is(err, errs.NotFound) {
		t.Fatalf("view of a group that is not there: %v", err)
	}
}

func TestMalformed(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	before := len(dump(t, s.db))
	put := func(change func(*metapb.PutObjectOp)) any {
		op := s.put(1, "k", 10, 10)
		change(op)
		return op
	}
	for what, op := range map[string]any{
		"no key":        put(func(o *metapb.PutObjectOp) { o.Key = nil }),
		"long key":      put(func(o *metapb.PutObjectOp) { o.Key = make([]byte, 1025) }),
		"no bucket":     put(func(o *metapb.PutObjectOp) { o.Bucket = 0 }),
		"no row":        put(func(o *metapb.PutObjectOp) { o.Row = nil }),
		"write id":      put(func(o *metapb.PutObjectOp) { o.Row.WriteId = []byte("x") }),
		"size":          put(func(o *metapb.PutObjectOp) { o.Row.Size++ }),
		"huge size":     put(func(o *metapb.PutObjectOp) { o.Row.Size = 1 << 63 }),
		"chunk id":      put(func(o *metapb.PutObjectOp) { o.Row.Data.Chunks[0].Id = []byte("x") }),
		"same chunk":    put(func(o *metapb.PutObjectOp) { o.Row.Data.Chunks[0] = o.Row.Data.Chunks[1] }),
		"k":             put(func(o *metapb.PutObjectOp) { o.Row.Data.Chunks[0].K = 0 }),
		"k+m":           put(func(o *metapb.PutObjectOp) { o.Row.Data.Chunks[0].M = 1 << 31; o.Row.Data.Chunks[0].K = 1 << 31 }),
		"missing":       put(func(o *metapb.PutObjectOp) { o.Row.Data.Chunks[0].Missing = 8 }),
		"empty chunk":   put(func(o *metapb.PutObjectOp) { o.Row.Data.Chunks[0].Length = 0; o.Row.Size = 10 }),
		"both":          put(func(o *metapb.PutObjectOp) { o.Row.Data.Inline = []byte("x"); o.Row.Size = 21 }),
		"upload":        put(func(o *metapb.PutObjectOp) { o.Row.Data.UploadSeq = 1 }),
		"no entries":    &metapb.DeleteObjectsOp{Bucket: 1},
		"many entries":  &metapb.DeleteObjectsOp{Bucket: 1, Entries: make([]*metapb.DeleteEntry, 1001)},
		"no touches":    &metapb.TouchOp{},
		"many touches":  &metapb.TouchOp{Entries: make([]*metapb.TouchEntry, 1001)},
		"bad touch":     &metapb.TouchOp{Entries: []*metapb.TouchEntry{{Bucket: 1, Key: []byte("k"), AccessedMs: 1}}},
		"no expiries":   &metapb.ExpireOp{Bucket: 1, ConfigGeneration: 1},
		"many expiries": &metapb.ExpireOp{Bucket: 1, ConfigGeneration: 1, Entries: make([]*metapb.ExpireEntry, 1001)},
		"expire when":   expiry(1, 0, metapb.ExpireEntry_CURRENT, "k", 1),
		"expire where":  expiry(0, 1, metapb.ExpireEntry_CURRENT, "k", 1),
		"expire what":   expiry(1, 1, metapb.ExpireEntry_NOTHING, "k", 1),
		"expire news":   expiry(1, 1, 5, "k", 1),
		"expire no key": expiry(1, 1, metapb.ExpireEntry_UPLOAD, "", 1),
		"expire any":    expiry(1, 1, metapb.ExpireEntry_CURRENT, "k", 0),
		"part":          &metapb.PutPartOp{Bucket: 1, Key: []byte("k"), Row: &metapb.PartRow{Number: 10001, WriteId: s.id16()}},
		"upload row":    &metapb.CreateUploadOp{Bucket: 1, Key: []byte("k")},
		"rewrite":       &metapb.RewriteDataOp{Bucket: 1, Key: []byte("k"), WriteId: s.id16(), VersionSeq: 1},
		"rewrite both":  &metapb.RewriteDataOp{Bucket: 1, Key: []byte("k"), WriteId: s.id16(), VersionSeq: 1, UploadSeq: 1, Data: &metapb.Data{}},
		"part class":    &metapb.RewriteDataOp{Bucket: 1, Key: []byte("k"), WriteId: s.id16(), UploadSeq: 1, Part: 1, Data: &metapb.Data{}, StorageClass: "GLACIER_IR"},
		"long class":    &metapb.RewriteDataOp{Bucket: 1, Key: []byte("k"), WriteId: s.id16(), VersionSeq: 1, Data: &metapb.Data{}, StorageClass: strings.Repeat("X", 65)},
		"class + parts": &metapb.RewriteDataOp{Bucket: 1, Key: []byte("k"), WriteId: s.id16(), VersionSeq: 1, Data: &metapb.Data{UploadSeq: 1, Inline: []byte("x")}, StorageClass: "GLACIER_IR"},
		"bucket":        &metapb.PutBucketOp{},
		"many ids":      &metapb.DropGarbageOp{Ids: make([]*metapb.GarbageID, 2001)},
		"many repairs":  &metapb.DropRepairOp{Ids: make([]*metapb.RepairID, 2001)},
		"many doomed":   &metapb.ExpandDoomedOp{Only: make([]*metapb.DoomedID, 1001)},
		"complete":      &metapb.CompleteUploadOp{Bucket: 1},
		"abort":         &metapb.AbortUploadOp{Bucket: 1},
		"fence nothing": &metapb.FenceBucketOp{},
		"many acks":     &metapb.AckEventsOp{Target: "q", To: 5000, Dead: make([]*metapb.DeadEvent, 1001)},
		"ack back":      &metapb.AckEventsOp{Target: "q", From: 2, To: 2},
		"ack nobody":    &metapb.AckEventsOp{To: 2},
		"ack zero":      &metapb.AckEventsOp{Target: "q\x00", To: 2},
		"dead behind":   &metapb.AckEventsOp{Target: "q", To: 2, Dead: []*metapb.DeadEvent{{Seq: 3}}},
		"dead before":   &metapb.AckEventsOp{Target: "q", From: 1, To: 2, Dead: []*metapb.DeadEvent{{Seq: 1}}},
		"dead twice":    &metapb.AckEventsOp{Target: "q", To: 2, Dead: []*metapb.DeadEvent{{Seq: 1}, {Seq: 1}}},
		"hold long":     &metapb.HoldEventsOp{Target: strings.Repeat("q", 257), Held: true},
		"hold nobody":   &metapb.HoldEventsOp{Held: true},
		"many dead":     &metapb.DropDeadEventsOp{Target: "q", Seqs: make([]uint64, 1001)},
		"dead nobody":   &metapb.DropDeadEventsOp{},
		"many timers":   &metapb.FireTimersOp{Ids: make([]*metapb.EventTimerID, 1001)},
		"when to put":   &metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1}},
		"when to fence": &metapb.FenceBucketOp{Bucket: 1},
		"when to drop":  &metapb.DropBucketOp{Bucket: 1},
	} {
		switch op := op.(type) {
		case *metapb.DeleteObjectsOp:
			for i := range op.Entries {
				op.Entries[i] = &metapb.DeleteEntry{Key: []byte("k")}
			}
		case *metapb.ExpireOp:
			for i, e := range op.Entries {
				if e == nil {
					op.Entries[i] = &metapb.ExpireEntry{Key: []byte("k"), What: metapb.ExpireEntry_CURRENT, VersionSeq: 1}
				}
			}
		}
		if res := s.do(op); errs.Kind(res.Kind) != errs.InvalidArgument || res.Freed {
			t.Errorf("%s: %v", what, res)
		}
	}
	versions := map[string]*metapb.RangeCommand{"newer": s.command(s.put(1, "k", 10)), "zero": s.command(s.put(1, "k", 10)), "no op": {Version: 1, Id: s.id16()}}
	versions["newer"].Version, versions["zero"].Version = 2, 0
	for what, cmd := range versions {
		if res := s.apply(cmd); errs.Kind(res.Kind) != errs.NotImplemented || res.Freed {
			t.Errorf("%s: %v", what, res)
		}
	}
	for _, raw := range [][]byte{nil, []byte("x"), {0xff, 0xff}} {
		var res metapb.RangeResult
		if err := res.UnmarshalVT(s.applyRaw(raw)[0]); err != nil || res.Ok {
			t.Errorf("%q: %v, %v", raw, &res, err)
		}
	}
	if after := len(dump(t, s.db)); after != before {
		t.Errorf("malformed commands left %d rows", after-before)
	}
}

// A write id that is stored already names the stored row's chunks: refusing it must not free them.
func TestSameWrite(t *testing.T) {
	for _, v := range []metapb.Versioning{0, 1, 2} {
		s := newStore(t)
		s.bucket(1, v)
		op := s.put(1, "k", 10)
		s.ok(op.CloneVT())
		wantKind(t, s.do(op.CloneVT()), errs.InvalidRequest, false)
		up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("k"), Row: &metapb.UploadRow{WriteId: s.id16()}})
		part := s.part("k", up.VersionSeq, 1, 10)
		s.ok(part.CloneVT())
		wantKind(t, s.do(part.CloneVT()), errs.InvalidRequest, false)
		if g := s.garbageRows(); len(g) != 0 {
			t.Fatalf("freed %v", g)
		}
	}
}

func (s *store) part(key string, upload uint64, number uint32, sizes ...int) *metapb.PutPartOp {
	d, size := s.data(sizes...)
	return &metapb.PutPartOp{Bucket: 1, Key: []byte(key), UploadSeq: upload, Row: &metapb.PartRow{Number: number, WriteId: s.id16(), Size: size, Data: d}}
}

// Object lock on versions that would be replaced, which only a bucket whose
// configuration changed can have.
func TestLockedNullVersion(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_SUSPENDED)
	s.ok(s.put(1, "k", 10))
	// Hold the null version, as a PutObjectLegalHold of a later release will.
	row, err := s.view().Object(1, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	row.Attributes = &metapb.Attributes{LegalHold: true}
	raw, err := row.MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.db.Set(appendRaw(nil, kindCurrent, 1, "k"), raw, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	wantKind(t, s.do(s.put(1, "k", 10)), errs.ObjectLocked, true)
	if res := s.do(s.delete(1, "k")); errs.Kind(res.Entries[0].Kind) != errs.ObjectLocked {
		t.Fatalf("%v", res)
	}
	if res := s.do(s.deleteVersion(1, "k", storage.VersionID{})); errs.Kind(res.Entries[0].Kind) != errs.ObjectLocked {
		t.Fatalf("%v", res)
	}
	up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("k"), Row: &metapb.UploadRow{WriteId: s.id16()}})
	s.ok(s.part("k", up.VersionSeq, 1, 10))
	wantKind(t, s.do(&metapb.CompleteUploadOp{
		Bucket: 1, Key: []byte("k"), UploadSeq: up.VersionSeq, UploadGeneration: 2, Parts: []*metapb.ManifestPart{{Number: 1, Size: 10}},
	}), errs.ObjectLocked, false)
	// With versions enabled nothing is replaced.
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	s.ok(s.put(1, "k", 10))
}

// Outcomes go when they can no longer be asked for, and the sweep comes round.
func TestSweep(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	for i := range 100 {
		s.ok(s.put(1, fmt.Sprint("k", i), 10))
		s.now += 1000
	}
	count := func() (n int) {
		for _, kv := range dump(t, s.db) {
			if kv[0][0] == kindOutcome {
				n++
			}
		}
		return n
	}
	sweep := func() (commands int) {
		for more := true; more; commands++ {
			more = s.ok(&metapb.SweepOp{RowsMax: 10}).More
		}
		return commands
	}
	s.now += retentionMS - 50*1000 // half of them are old enough
	if n := sweep(); n != 11 {
		t.Errorf("a round of 101 rows by 10 took %d commands", n)
	}
	if n := count(); n != 50 {
		t.Errorf("%d outcomes left of 50", n)
	}
	s.now += retentionMS
	sweep()
	if n := count(); n != 0 {
		t.Errorf("%d outcomes left of 0", n)
	}
}

// countingReader counts what a view reads.
type countingReader struct {
	pebble.Reader
	gets, iters int
}

func (c *countingReader) Get(key []byte) ([]byte, io.Closer, error) {
	c.gets++
	return c.Reader.Get(key)
}

func (c *countingReader) NewIter(o *pebble.IterOptions) (*pebble.Iterator, error) {
	c.iters++
	return c.Reader.NewIter(o)
}

// bigObject completes an upload of n parts of 10 bytes with the numbers 1, 3, 5, ...,
// of which the last of every ten has no bytes, and as many unlisted ones between the first of them.
func bigObject(s *store, n, unlisted int) *metapb.ObjectRow {
	s.t.Helper()
	up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("big"), Row: &metapb.UploadRow{WriteId: s.id16()}})
	op := &metapb.CompleteUploadOp{Bucket: 1, Key: []byte("big"), UploadSeq: up.VersionSeq, UploadGeneration: 1, Etag: "big"}
	var datas [][]byte
	add := func(number uint32, sizes ...int) {
		part := s.part("big", up.VersionSeq, number, sizes...)
		data, err := s.command(part).MarshalVT()
		if err != nil {
			s.t.Fatal(err)
		}
		datas = append(datas, data)
		op.UploadGeneration++
	}
	for i := range n {
		p := &metapb.ManifestPart{Number: uint32(2*i + 1), Size: 10}
		if i%10 == 9 {
			p.Size = 0
			add(p.Number)
		} else {
			add(p.Number, 10)
		}
		op.Parts = append(op.Parts, p)
		if i < unlisted {
			add(p.Number+1, 10)
		}
	}
	s.applyRaw(datas...)
	s.ok(op)
	row, err := s.view().Object(1, "big", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return row
}

func TestBigMultipart(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	const n = 4321
	row := bigObject(s, n, 20)
	c := &countingReader{Reader: s.db}
	v, err := NewView(c, testGroup)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for i := range n {
		number, size := 2*i+1, int64(10)
		if i%10 == 9 {
			size = 0
		}
		if i%7 == 0 || i > n-3 || i%1000 < 2 || i%1000 > 997 {
			if o, l, err := v.PartExtent(1, "big", row, number); err != nil || o != at || l != size {
				t.Fatalf("part %d: %d+%d, %v; want %d+%d", number, o, l, err, at, size)
			}
			if _, _, err := v.PartExtent(1, "big", row, number+1); !errs.Is(err, errs.InvalidRange) {
				t.Fatalf("part %d, which is not listed: %v", number+1, err)
			}
			if size > 0 {
				c.gets, c.iters = 0, 0
				segs, err := v.Segments(1, "big", row, at+3, 5, math.MaxInt)
				if err != nil || len(segs) != 1 || segs[0].Part != uint32(number) || segs[0].Offset != 3 || segs[0].Length != 5 {
					t.Fatalf("bytes of part %d: %+v, %v", number, segs, err)
				}
				if c.gets > 5 || c.iters > 0 {
					t.Fatalf("bytes of part %d took %d gets and %d iterators", number, c.gets, c.iters)
				}
			}
		}
		at += size
	}
	if at != int64(row.Size) {
		t.Fatalf("size %d, want %d", row.Size, at)
	}
	// A page of parts is those listed, in order, and costs what it answers.
	for _, after := range []int{-1, 0, 1, 2, 1998, 1999, 2000, 2001, 2*n - 12, 2*n - 10, 2*n - 1, storage.PartNumberMax} {
		for _, limit := range []int{0, 1, 5, 1000} {
			c.gets, c.iters = 0, 0
			rows, more, err := v.ObjectParts(1, "big", row, after, limit)
			next := max(after, 0) | 1 // the least odd number above after
			if next == after {
				next += 2
			}
			want := min(limit, max(0, (2*n-1-next)/2+1))
			if err != nil || len(rows) != want || more != (limit > 0 && next+2*want < 2*n) {
				t.Fatalf("%d parts above %d: %d, %v, %v; want %d", limit, after, len(rows), more, err, want)
			}
			for i, r := range rows {
				if r.Number != uint32(next+2*i) || r.Data != nil {
					t.Fatalf("%d parts above %d: %v is the %dth", limit, after, r, i)
				}
			}
			if c.gets > 8 || c.iters > 1 {
				t.Fatalf("%d parts above %d took %d gets and %d iterators", limit, after, c.gets, c.iters)
			}
		}
	}
	// Some at a time they are the same.
	var pieces []Segment
	for off, left := int64(5), at-7; left > 0; {
		some, err := v.Segments(1, "big", row, off, left, 1000)
		if err != nil || len(some) == 0 || len(some) > 100 {
			t.Fatalf("%d segments of at most 1000 bytes, %v", len(some), err)
		}
		for _, s := range some {
			off, left = off+s.Length, left-s.Length
		}
		pieces = append(pieces, some...)
	}
	c.gets, c.iters = 0, 0
	segs, err := v.Segments(1, "big", row, 5, at-7, math.MaxInt)
	if err != nil || segs[0].Offset != 5 || segs[0].Length != 5 || len(segs) != (n+1)*9/10 {
		t.Fatalf("%d segments, %v", len(segs), err)
	}
	if !reflect.DeepEqual(pieces, segs) {
		t.Fatal("the segments are others if they are asked for some at a time")
	}
	for sum, i := int64(0), 0; i < len(segs); i++ {
		if sum += segs[i].Length; i == len(segs)-1 && sum != at-7 {
			t.Fatalf("segments of %d bytes, want %d", sum, at-7)
		}
	}
	if c.gets > 12 || c.iters != 1 {
		t.Fatalf("the whole took %d gets and %d iterators", c.gets, c.iters)
	}
	for _, r := range [][2]int64{{-1, 1}, {0, at + 1}, {at, 1}, {1, -1}, {1 << 62, 1 << 62}} {
		if _, err := v.Segments(1, "big", row, r[0], r[1], math.MaxInt); !errs.Is(err, errs.InvalidRange) {
			t.Fatalf("bytes %v: %v", r, err)
		}
	}

	// The unlisted parts go, the others stay.
	if g := len(s.garbageRows()); g != 0 {
		t.Fatalf("%d garbage rows too early", g)
	}
	rounds := expandAll(s, 100)
	if g := len(s.garbageRows()); g != 20 || rounds < n/100 || rounds > n/100+2 {
		t.Fatalf("%d garbage rows in %d rounds, want 20", g, rounds)
	}
	if _, err := s.view().Segments(1, "big", row, 0, at, math.MaxInt); err != nil {
		t.Fatal(err)
	}
	// Then the object is deleted, a bounded number of rows at a time.
	s.ok(s.delete(1, "big"))
	if g := len(s.garbageRows()); g != 20 {
		t.Fatalf("the delete itself made %d garbage rows", g-20)
	}
	for more := true; more; {
		before := len(s.garbageRows())
		more = s.ok(&metapb.ExpandDoomedOp{RowsMax: 500}).More
		if made := len(s.garbageRows()) - before; made > 500 {
			t.Fatalf("%d rows in one command", made)
		}
	}
	items := s.garbageRows()
	if want := 20 + n - n/10; len(items) != want {
		t.Fatalf("%d garbage rows, want %d", len(items), want)
	}
	for _, g := range items {
		if string(g.Row.PinWrite) != string(row.WriteId) || string(g.Row.Key) != "big" {
			t.Fatalf("garbage %v does not pin write %x", g.Row, row.WriteId)
		}
	}
	for _, kv := range dump(t, s.db) {
		if strings.IndexByte("pmdcu", kv[0][0]) >= 0 {
			t.Fatalf("row left: %q", kv[0])
		}
	}
}

func expandAll(s *store, rows uint32) (rounds int) {
	s.t.Helper()
	for more := true; more; rounds++ {
		more = s.ok(&metapb.ExpandDoomedOp{RowsMax: rows}).More
	}
	return rounds
}

// An old id of unlisted parts does not expand the whole upload, whose object was deleted since.
func TestDoomedIDs(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	bigObject(s, 5, 2)
	first, err := s.view().Doomed(nil, 10)
	if err != nil || len(first) != 1 || !first[0].Row.KeepManifestParts {
		t.Fatalf("%v, %v", first, err)
	}
	s.ok(s.delete(1, "big"))
	s.ok(&metapb.ExpandDoomedOp{Only: []*metapb.DoomedID{first[0].ID()}})
	if g := len(s.garbageRows()); g != 2 {
		t.Fatalf("%d garbage rows, want those of the 2 unlisted parts", g)
	}
	second, err := s.view().Doomed(first[0].ID(), 10)
	if err != nil || len(second) != 1 || second[0].Row.KeepManifestParts {
		t.Fatalf("%v, %v", second, err)
	}
	s.ok(&metapb.ExpandDoomedOp{Only: []*metapb.DoomedID{second[0].ID()}})
	if g := len(s.garbageRows()); g != 7 {
		t.Fatalf("%d garbage rows, want 7", g)
	}
}

// A part's rewrite pins what readers of the object registered.
func TestRewritePartPins(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	row := bigObject(s, 3, 0)
	part, err := s.view().Part(1, "big", storage.Seq(row.Data.UploadSeq), 3)
	if err != nil {
		t.Fatal(err)
	}
	s.ok(&metapb.RewriteDataOp{
		Bucket: 1, Key: []byte("big"), UploadSeq: row.Data.UploadSeq, Part: 3, WriteId: part.WriteId, Generation: part.Data.Generation,
		Data: &metapb.Data{Chunks: []*metapb.ChunkRef{s.chunk(10)}}, Release: part.Data.Chunks,
	})
	g := s.garbageRows()
	if len(g) != 1 || string(g[0].Row.PinWrite) != string(row.WriteId) || string(g[0].Row.Chunks[0].Id) != string(part.Data.Chunks[0].Id) {
		t.Fatalf("%v", g)
	}
}

// A rewrite whose idea of the old data is wrong changes and frees nothing.
func TestRewriteRefused(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	put := s.put(1, "k", 10, 20)
	res := s.ok(put)
	old := put.Row.Data.Chunks
	moved := old[0].CloneVT()
	moved.Pg++
	for what, op := range map[string]*metapb.RewriteDataOp{
		"forgotten":  {Data: &metapb.Data{Chunks: []*metapb.ChunkRef{s.chunk(10), old[1]}}},
		"both":       {Data: &metapb.Data{Chunks: old}, Release: old[:1]},
		"foreign":    {Data: &metapb.Data{Chunks: old}, Release: []*metapb.ChunkRef{s.chunk(10)}},
		"length":     {Data: &metapb.Data{Chunks: old[:1]}, Release: old[1:]},
		"elsewhere":  {Data: &metapb.Data{Chunks: []*metapb.ChunkRef{moved, old[1]}}},
		"upload seq": {Data: &metapb.Data{Chunks: old, UploadSeq: 3}},
	} {
		op.Bucket, op.Key, op.VersionSeq, op.WriteId, op.Generation = 1, []byte("k"), res.VersionSeq, put.Row.WriteId, 1
		if got := s.do(op); errs.Kind(got.Kind) != errs.InvalidArgument || got.Freed {
			t.Errorf("%s: %v", what, got)
		}
	}
	old13h := storage.NewChunkID(s.now-13*3600*1000, 1)
	late := s.chunk(10)
	late.Id = old13h[:]
	wantKind(t, s.do(&metapb.RewriteDataOp{
		Bucket: 1, Key: []byte("k"), VersionSeq: res.VersionSeq, WriteId: put.Row.WriteId, Generation: 1,
		Data: &metapb.Data{Chunks: []*metapb.ChunkRef{late, old[1]}}, Release: old[:1],
	}), errs.TooLate, false)
	if g := s.garbageRows(); len(g) != 0 {
		t.Fatalf("freed %v", g)
	}
	// What stays may be as old as it likes.
	s.now += 20 * 3600 * 1000
	s.ok(&metapb.RewriteDataOp{
		Bucket: 1, Key: []byte("k"), VersionSeq: res.VersionSeq, WriteId: put.Row.WriteId, Generation: 1,
		Data: &metapb.Data{Chunks: []*metapb.ChunkRef{s.chunk(10), old[1]}}, Release: old[:1],
	})
}

func TestRefers(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	first, second := s.put(1, "big", 10), s.put(1, "big", 10, 10)
	s.ok(first)
	s.ok(second)
	multi := bigObject(s, 3, 0)
	part, err := s.view().Part(1, "big", storage.Seq(multi.Data.UploadSeq), 3)
	if err != nil {
		t.Fatal(err)
	}
	refused := s.put(1, "big", 10)
	refused.Conditions = &metapb.Conditions{IfNoneMatch: []string{"*"}}
	wantKind(t, s.do(refused), errs.PreconditionFailed, true)
	other := s.put(1, "big2", 10)
	s.ok(other)
	refers := func(key string, c *metapb.ChunkRef) bool {
		found, err := s.view().Refers(storage.Owner{Bucket: 1, Key: storage.Key(key)}, storage.ChunkID(c.Id))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for what, c := range map[string]*metapb.ChunkRef{
		"old version": first.Row.Data.Chunks[0], "newer version": second.Row.Data.Chunks[1], "part": part.Data.Chunks[0], "garbage": refused.Row.Data.Chunks[0],
	} {
		if !refers("big", c) {
			t.Errorf("%s: not found", what)
		}
	}
	if refers("big", s.chunk(10)) || refers("big", other.Row.Data.Chunks[0]) || !refers("big2", other.Row.Data.Chunks[0]) {
		t.Error("a chunk is found where it is not")
	}
}

// A state that cannot be right stops the replica and changes nothing.
func TestCorruptState(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_SUSPENDED)
	s.ok(s.put(1, "a", 10))
	if err := s.db.Set(appendRaw(nil, kindCurrent, 1, "k"), []byte("\xff\xff"), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := s.db.Set(appendRow(nil, kindNull, 1, "n"), make([]byte, 7), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"k", "n"} {
		data, err := s.command(s.put(1, key, 10)).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		b := s.db.NewIndexedBatch()
		if _, err := s.m.Apply(b, []cluster.Entry{{TimeMS: s.now, Data: data}}); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("put over a corrupt row %q: %v", key, err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.view().Object(1, "k", nil); !errs.Is(err, errs.Corrupt) {
		t.Fatalf("get of a corrupt row: %v", err)
	}
	if _, err := s.view().ListCurrent(1, "", "", "", 10); !errs.Is(err, errs.Corrupt) {
		t.Fatalf("list of a corrupt row: %v", err)
	}
	s.ok(s.put(1, "b", 10)) // the batch was thrown away and the machine forgot it
	empty := openDB(t)
	b := empty.NewIndexedBatch()
	defer b.Close()
	if _, err := New(testGroup).Apply(b, []cluster.Entry{{}}); !errs.Is(err, errs.Corrupt) {
		t.Fatalf("apply without a descriptor: %v", err)
	}
}

// Gets and puts of a key touch as many rows however many versions it has.
func TestManyVersionsReads(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	var datas [][]byte
	for range 3000 {
		data, err := s.command(s.put(1, "k", 10)).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		datas = append(datas, data)
	}
	s.applyRaw(datas...)
	c := &countingReader{Reader: s.db}
	v, err := NewView(c, testGroup)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Object(1, "k", nil); err != nil || c.iters != 0 || c.gets > 4 {
		t.Fatalf("%d gets, %d iterators, %v", c.gets, c.iters, err)
	}
	b := s.db.NewIndexedBatch()
	defer b.Close()
	data, err := s.command(s.put(1, "k", 10)).MarshalVT()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.m.Apply(b, []cluster.Entry{{TimeMS: s.now, Data: data}}); err != nil || b.Count() != 5 {
		t.Fatalf("a put wrote %d rows, %v; want current, old version, outcome, clock, counter", b.Count(), err)
	}
	s.m.Reset()
	// The newest goes, and a marker comes and goes; a change in place; a page of a listing.
	newest, err := v.Object(1, "k", nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, op := range map[string]any{
		"a delete of the newest": s.deleteVersion(1, "k", storage.VersionID{Seq: storage.Seq(newest.Seq), Nonce: newest.Nonce}),
		"a delete":               s.delete(1, "k"),
		"a change of tags":       update("k", nil, []*metapb.KV{{Name: "n", Value: "v"}}),
	} {
		b := s.db.NewIndexedBatch()
		data, err := s.command(op).MarshalVT()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.m.Apply(b, []cluster.Entry{{TimeMS: s.now, Data: data}}); err != nil || b.Count() > 7 {
			t.Errorf("%s wrote %d rows, %v", name, b.Count(), err)
		}
		s.m.Reset()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s.ok(s.delete(1, "k"))
	c.gets, c.iters = 0, 0
	if _, err := v.Object(1, "k", nil); !errs.Is(err, errs.IsDeleteMarker) || c.iters > 1 || c.gets > 4 {
		t.Errorf("a marker took %d gets and %d iterators, %v", c.gets, c.iters, err)
	}
	c.gets, c.iters = 0, 0
	page, err := v.ListVersions(1, "", "", "k", &storage.VersionID{Seq: storage.Seq(newest.Seq)}, 10)
	if err != nil || len(page.Rows) != 10 || c.iters > 2 || c.gets > 4 {
		t.Errorf("a page of %d versions took %d gets and %d iterators, %v", len(page.Rows), c.gets, c.iters, err)
	}
}

// A bulk delete of 1000 keys is one command with a result for each, and is answered again the same.
func TestBulkDelete(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	del := &metapb.DeleteObjectsOp{Bucket: 1}
	for i := range 1000 {
		key := fmt.Sprint("k", i)
		if i%2 == 0 {
			s.ok(s.put(1, key, 10))
		}
		del.Entries = append(del.Entries, &metapb.DeleteEntry{Key: []byte(key)})
	}
	cmd := s.command(del)
	first := s.apply(cmd)
	s.ok(s.put(1, "k1", 10)) // Y after X: the repeat of X must not delete it
	again := s.apply(cmd)
	if len(first.Entries) != 1000 || sameResult(first, again) != "" || !first.Ok {
		t.Fatalf("%d results", len(first.Entries))
	}
	page, err := s.view().ListCurrent(1, "", "", "", 10)
	if err != nil || len(page.Rows) != 1 || page.Rows[0].Key != "k1" || len(s.garbageRows()) != 500 {
		t.Fatalf("%v, %v", page, err)
	}
}

// The milliseconds around which a repeat is answered, refused, and its outcome forgotten.
func TestOutcomeTimes(t *testing.T) {
	const issued = 5 * 60 * 1000
	for _, c := range []struct {
		name   string
		skew   int64 // of the command's issue against range time
		after  int64 // repeat so long after the first run
		answer errs.Kind
	}{
		{"last moment", 0, retentionMS, errs.PreconditionFailed},
		{"just too late", 0, retentionMS + 1, errs.TooLate},
		{"issued long before", -issued, retentionMS, errs.PreconditionFailed},
		{"issued long before, too late", -issued, retentionMS + 1, errs.TooLate},
		{"issued ahead: kept for longer", issued, retentionMS + issued, errs.PreconditionFailed},
		{"issued ahead, too late", issued, retentionMS + issued + 1, errs.TooLate},
		{"issued as far ahead as may be", retentionMS, 2 * retentionMS, errs.PreconditionFailed},
		{"issued as long ago as may be", -retentionMS, retentionMS, errs.PreconditionFailed},
	} {
		for _, swept := range []bool{false, true} {
			s := newStore(t)
			s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
			s.ok(s.put(1, "k", 10))
			op := s.put(1, "k", 10)
			op.Conditions = &metapb.Conditions{IfNoneMatch: []string{"*"}}
			cmd := s.command(op)
			cmd.IssuedMs += c.skew
			wantKind(t, s.apply(cmd), errs.PreconditionFailed, true)
			s.ok(s.delete(1, "k")) // a second run would succeed, with chunks that are garbage
			s.now += c.after
			if swept {
				s.ok(&metapb.SweepOp{})
			}
			if res := s.apply(cmd); res.Ok || errs.Kind(res.Kind) != c.answer {
				t.Errorf("%s (swept %v): %v, want %q", c.name, swept, res, c.answer)
			}
			if g := s.garbageRows(); len(g) != 2 {
				t.Errorf("%s: %d garbage rows, want 2", c.name, len(g))
			}
		}
	}
	for _, skew := range []int64{-retentionMS - 1, retentionMS + 1} {
		s := newStore(t)
		s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
		cmd := s.command(s.put(1, "k", 10))
		cmd.IssuedMs += skew
		wantKind(t, s.apply(cmd), errs.TooLate, false)
	}
}

// An upload id with another nonce is another upload.
func TestUploadNonce(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("k"), Row: &metapb.UploadRow{Nonce: 7, WriteId: s.id16()}})
	part := s.part("k", up.VersionSeq, 1, 10)
	wantKind(t, s.do(part.CloneVT()), errs.NoSuchUpload, true)
	part = s.part("k", up.VersionSeq, 1, 10)
	part.UploadNonce = 7
	s.ok(part)
	complete := &metapb.CompleteUploadOp{
		Bucket: 1, Key: []byte("k"), UploadSeq: up.VersionSeq, UploadGeneration: 2, Parts: []*metapb.ManifestPart{{Number: 1, Size: 10}},
		PartsDigest: []byte("digest"), Etag: "etag-1",
	}
	wantKind(t, s.do(complete.CloneVT()), errs.NoSuchUpload, false)
	wantKind(t, s.do(&metapb.AbortUploadOp{Bucket: 1, Key: []byte("k"), UploadSeq: up.VersionSeq}), errs.NoSuchUpload, false)
	good := complete.CloneVT()
	good.UploadNonce = 7
	s.ok(good.CloneVT())
	if res := s.ok(good.CloneVT()); res.Etag != "etag-1" || res.Size != 10 {
		t.Fatalf("a repeated complete: %v", res)
	}
	wantKind(t, s.do(complete), errs.NoSuchUpload, false)
	other := good.CloneVT()
	other.PartsDigest = nil
	wantKind(t, s.do(other), errs.NoSuchUpload, false)

	// The completed row is kept a day, and no longer.
	id := storage.UploadID{Seq: storage.Seq(up.VersionSeq), Nonce: 7}
	has := func() bool {
		for _, kv := range dump(t, s.db) {
			if kv[0][0] == kindCompleted {
				return true
			}
		}
		return false
	}
	s.now += completedMS
	s.ok(&metapb.SweepOp{})
	if _, err := s.view().Completed(1, "k", id); err != nil || !has() {
		t.Fatalf("after a day: %v", err)
	}
	s.ok(good.CloneVT())
	s.now++
	wantKind(t, s.do(good.CloneVT()), errs.NoSuchUpload, false)
	if _, err := s.view().Completed(1, "k", id); !errs.Is(err, errs.NoSuchUpload) {
		t.Fatalf("after more than a day: %v", err)
	}
	s.ok(&metapb.SweepOp{})
	if has() {
		t.Fatal("the completed row is still there")
	}
}

// A rewrite that comes too late never frees what the row still names, said to be kept or not.
func TestRewriteConflictKeeps(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	put := s.put(1, "k", 10, 20)
	res := s.ok(put)
	old := put.Row.Data.Chunks
	fresh := s.chunk(10)
	op := &metapb.RewriteDataOp{
		Bucket: 1, Key: []byte("k"), VersionSeq: res.VersionSeq, WriteId: put.Row.WriteId, Generation: 9,
		Data: &metapb.Data{Chunks: []*metapb.ChunkRef{fresh, old[1]}}, Release: old[:1],
	}
	wantKind(t, s.do(op), errs.Conflict, true)
	g := s.garbageRows()
	if len(g) != 1 || len(g[0].Row.Chunks) != 1 || string(g[0].Row.Chunks[0].Id) != string(fresh.Id) {
		t.Fatalf("freed %v, want only the new chunk", g)
	}
}

// Views forget what they are told to, and read it anew if it is asked for again.
func TestViewsDrop(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	c := NewViews()
	for range 2 {
		v, err := c.View(s.db, testGroup)
		if err != nil || second(v.Bucket(1)) != nil || len(c.groups) != 1 {
			t.Fatal(err, c.groups)
		}
		c.Drop(testGroup)
		c.Drop(testGroup)
		if len(c.groups) != 0 {
			t.Fatal("not forgotten")
		}
	}
}

// A gateway that was held up carries out what others have decided anew since: with commands of its own, which no outcome knows.
func TestLateBucketCommands(t *testing.T) {
	put := func(generation uint64) any {
		return &metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: generation}}
	}
	fence := func(generation uint64) any { return &metapb.FenceBucketOp{Bucket: 1, Generation: generation} }
	drop := func(generation uint64) any { return &metapb.DropBucketOp{Bucket: 1, Generation: generation} }
	const live, fenced, dropped = errs.Kind(0), errs.BucketBusy, errs.NoSuchBucket
	for name, c := range map[string]struct {
		before []any
		late   any
		kind   errs.Kind // of the late command's refusal; 0: none
		then   errs.Kind // of the refusal of a write afterwards
	}{
		"creation, after another":            {[]any{put(1)}, put(1), 0, live},
		"creation, after a fence":            {[]any{put(1), fence(3)}, put(1), errs.BucketBusy, fenced},
		"creation, after a drop":             {[]any{put(1), fence(3), drop(3)}, put(1), errs.NoSuchBucket, dropped},
		"creation, after a lift":             {[]any{put(1), fence(3), put(4)}, put(1), 0, live},
		"creation, before a fence came":      {[]any{fence(3)}, put(1), errs.BucketBusy, fenced},
		"creation, before a drop came":       {[]any{drop(3)}, put(1), errs.NoSuchBucket, dropped},
		"lift":                               {[]any{put(1), fence(3)}, put(4), 0, live},
		"lift, after another":                {[]any{put(1), fence(3), put(4)}, put(4), 0, live},
		"lift, after the next fence":         {[]any{put(1), fence(3), put(4), fence(5)}, put(4), errs.BucketBusy, fenced},
		"lift of the fence's own generation": {[]any{put(1), fence(3)}, put(3), errs.BucketBusy, fenced},
		"lift, after a drop":                 {[]any{put(1), fence(3), drop(3)}, put(4), errs.NoSuchBucket, dropped},
		"fence, after another":               {[]any{put(1), fence(3)}, fence(3), 0, fenced},
		"fence, after a lift":                {[]any{put(1), fence(3), put(4)}, fence(3), errs.Conflict, live},
		"fence, after a lift elsewhere":      {[]any{put(1), put(4)}, fence(3), errs.Conflict, live},
		"fence, after the next one":          {[]any{put(1), fence(3), put(4), fence(5)}, fence(3), errs.Conflict, fenced},
		"fence, after a drop":                {[]any{put(1), fence(3), drop(3)}, fence(3), errs.NoSuchBucket, dropped},
		"drop, after a lift":                 {[]any{put(1), fence(3), put(4)}, drop(3), errs.Conflict, live},
		"drop, after the next fence":         {[]any{put(1), fence(3), put(4), fence(5)}, drop(3), errs.Conflict, fenced},
		"drop, after another":                {[]any{put(1), fence(3), drop(3)}, drop(3), 0, dropped},
		"drop without a fence":               {[]any{put(1)}, drop(3), errs.Conflict, live},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t)
			for _, op := range c.before {
				s.ok(op)
			}
			s.m.Reset() // the next one finds what the rows say
			if res := s.do(c.late); res.Ok != (c.kind == 0) || errs.Kind(res.Kind) != c.kind {
				t.Errorf("the late command: %v, want kind %q", res, c.kind)
			}
			res := s.do(s.put(1, "k", 10))
			if res.Ok != (c.then == 0) || errs.Kind(res.Kind) != c.then {
				t.Errorf("a write afterwards: %v, want kind %q", res, c.then)
			}
			if _, err := s.view().Bucket(1); errs.Is(err, errs.NoSuchBucket) != (c.then == dropped) || err != nil && c.then != dropped {
				t.Errorf("a read afterwards: %v", err)
			}
		})
	}
}

func TestBucketLife(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	s.bucket(2, metapb.Versioning_VERSIONING_NEVER)
	s.ok(s.put(2, "k", 10)) // a neighbour is in nobody's way
	deletion := s.id()
	fence := func(want bool) *metapb.RangeCommand {
		t.Helper()
		cmd := s.command(&metapb.FenceBucketOp{Bucket: 1, Generation: deletion})
		if res := s.apply(cmd); !res.Ok || res.Empty != want {
			t.Fatalf("fence: %v, want empty %v", res, want)
		}
		return cmd
	}
	v := s.ok(s.put(1, "k", 10))
	fence(false)
	m := s.ok(s.delete(1, "k")).Entries[0] // a marker over a version
	s.ok(s.deleteVersion(1, "k", storage.VersionID{Seq: storage.Seq(v.VersionSeq), Nonce: v.VersionNonce}))
	fence(false) // a lone marker
	s.ok(s.deleteVersion(1, "k", storage.VersionID{Seq: storage.Seq(m.VersionSeq), Nonce: m.VersionNonce}))
	up := s.ok(&metapb.CreateUploadOp{Bucket: 1, Key: []byte("k"), Row: &metapb.UploadRow{WriteId: s.id16()}})
	s.ok(s.part("k", up.VersionSeq, 1, 10))
	fence(false) // an upload
	wantKind(t, s.do(&metapb.DropBucketOp{Bucket: 1, Generation: deletion}), errs.Conflict, false)
	s.ok(&metapb.AbortUploadOp{Bucket: 1, Key: []byte("k"), UploadSeq: up.VersionSeq})
	first := fence(true)
	fence(true)
	wantKind(t, s.do(s.put(1, "k", 10)), errs.BucketBusy, true)
	wantKind(t, s.do(s.delete(1, "k")), errs.BucketBusy, false)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED) // lifted
	if res := s.apply(first); !res.Ok || !res.Empty { // a late copy of the fence is answered, and does not fence again
		t.Fatalf("repeated fence: %v", res)
	}
	wantKind(t, s.do(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: 1, Generation: s.id(), Versioning: 1, Fenced: true}}), errs.InvalidArgument, false)
	again := s.ok(s.put(1, "k", 10))
	s.ok(s.deleteVersion(1, "k", storage.VersionID{Seq: storage.Seq(again.VersionSeq), Nonce: again.VersionNonce}))
	deletion = s.id()
	fence(true)
	if row, err := s.views.View(s.db, testGroup); err != nil || second(row.Bucket(1)) != nil {
		t.Fatal("the fenced bucket's row is not there")
	}
	s.ok(&metapb.DropBucketOp{Bucket: 1, Generation: deletion})
	if row, err := s.views.View(s.db, testGroup); err != nil || !errs.Is(second(row.Bucket(1)), errs.NoSuchBucket) {
		t.Fatal("the dropped bucket's row is still seen")
	}
	s.ok(&metapb.DropBucketOp{Bucket: 1, Generation: deletion})
	wantKind(t, s.do(s.put(1, "k", 10)), errs.NoSuchBucket, true)
	wantKind(t, s.do(s.delete(1, "k")), errs.NoSuchBucket, false)
	wantKind(t, s.do(&metapb.FenceBucketOp{Bucket: 1, Generation: deletion}), errs.NoSuchBucket, false)
	for name, err := range map[string]error{
		"object": second(s.view().Object(1, "k", nil)), "list": second(s.view().ListCurrent(1, "", "", "", 10)),
		"versions": second(s.view().ListVersions(1, "", "", "", nil, 10)), "uploads": second(s.view().ListUploads(1, "", "", "", 0, 10)),
		"upload": second(s.view().Upload(1, "k", storage.UploadID{})),
	} {
		if !errs.Is(err, errs.NoSuchBucket) {
			t.Errorf("%s of a dropped bucket: %v", name, err)
		}
	}
	// The aborted upload's part is still expanded, and nothing of the bucket is counted.
	before := len(s.garbageRows())
	expandAll(s, 10)
	if n := len(s.garbageRows()); n != before+1 {
		t.Errorf("%d parts expanded, want 1", n-before)
	}
	counters, err := s.view().Counters()
	if err != nil || len(counters) != 1 || counters[0].Bucket != 2 {
		t.Errorf("counters %v, %v", counters, err)
	}
}

func second[T any](_ T, err error) error { return err }

// Background work pages through its queues, in order and without gaps.
func TestQueuePaging(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	for i := range 7 {
		op := s.put(1, fmt.Sprint("k", i/2), 10)
		op.Row.Data.Chunks[0].Missing = 3
		s.ok(op)
	}
	var repairs []*metapb.RepairID
	var last *metapb.RepairID
	for {
		items, err := s.view().Repairs(last, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) == 0 {
			break
		}
		for _, i := range items {
			if i.Row.Lost != 2 || i.Row.VersionSeq == 0 {
				t.Errorf("%v", i.Row)
			}
			last = i.ID()
			repairs = append(repairs, last)
		}
		if len(repairs) > 10 {
			break
		}
	}
	if len(repairs) != 7 {
		t.Fatalf("%d repairs of 7", len(repairs))
	}
	s.ok(&metapb.DropRepairOp{Ids: repairs[:3]})
	if items, err := s.view().Repairs(nil, 100); err != nil || len(items) != 4 {
		t.Fatalf("%d repairs, %v; want 4", len(items), err)
	}
	var garbage []GarbageItem // of the 3 that were replaced
	for after := (GarbageItem{}); ; {
		items, err := s.view().Garbage(after.Seq, after.N, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(items) == 0 {
			break
		}
		garbage = append(garbage, items...)
		after = items[len(items)-1]
	}
	if len(garbage) != 3 || garbage[0].Seq >= garbage[1].Seq || garbage[1].Seq >= garbage[2].Seq {
		t.Fatalf("garbage %v", garbage)
	}
}

// On a suspended bucket a new delete marker replaces the null one; the versions
// below became noncurrent long ago. A version id with a guessed nonce is none.
func TestSuspendedMarkers(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_ENABLED)
	x := s.ok(s.put(1, "k", 10))
	guess := storage.VersionID{Seq: storage.Seq(x.VersionSeq), Nonce: x.VersionNonce + 1}
	for range 2 {
		s.ok(s.deleteVersion(1, "k", guess)) // while x is current, and while it is not
		if _, err := s.view().Object(1, "k", &guess); !errs.Is(err, errs.NoSuchVersion) {
			t.Fatalf("a guessed version: %v", err)
		}
		if row, err := s.view().VersionBySeq(1, "k", guess.Seq); err != nil || row.DeleteMarker {
			t.Fatalf("the version is gone: %v", err)
		}
		s.bucket(1, metapb.Versioning_VERSIONING_SUSPENDED)
		s.now += 1000
		s.ok(s.delete(1, "k"))
	}
	since := s.now - 1000
	page, err := s.view().ListVersions(1, "", "", "", nil, 10)
	if err != nil || len(page.Rows) != 2 || !page.Rows[0].Row.DeleteMarker || !page.Rows[0].Row.NullVersion || page.Rows[0].Row.NoncurrentMs != 0 {
		t.Fatalf("%+v, %v", page, err)
	}
	if got := page.Rows[1].Row; got.Seq != x.VersionSeq || got.NoncurrentMs != since {
		t.Fatalf("noncurrent since %d, want %d", got.NoncurrentMs, since)
	}
}
