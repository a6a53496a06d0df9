package rangestate

import (
	"bytes"
	"fmt"
	"sort"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
)

const testGroup = cluster.GroupID(2)

// store is a state store with one range in it.
type store struct {
	t   testing.TB
	db  *pebble.DB
	m   *Machine
	now int64
	ids uint64
	log []cluster.Entry

	views *Views
}

func openDB(t testing.TB) *pebble.DB {
	cache := pebble.NewCache(64 << 20)
	defer cache.Unref()
	o := &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, Logger: quiet{t}, Cache: cache}
	for i := range o.Levels {
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10) // as the package doc recommends
	}
	db, err := pebble.Open("", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

type quiet struct{ t testing.TB }

func (q quiet) Infof(string, ...interface{})      {}
func (q quiet) Errorf(f string, a ...interface{}) { q.t.Errorf(f, a...) }
func (q quiet) Fatalf(f string, a ...interface{}) { q.t.Fatalf(f, a...) }

func newStore(t testing.TB) *store {
	return newStoreIn(t, &metapb.RangeDescriptor{Group: uint64(testGroup)})
}

func newStoreIn(t testing.TB, d *metapb.RangeDescriptor) *store {
	s := &store{t: t, db: openDB(t), m: New(cluster.GroupID(d.Group)), now: 1_700_000_000_000, views: NewViews()}
	b := s.db.NewBatch()
	if err := Birth(b, d); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *store) id() uint64 { s.ids++; return s.ids }

func (s *store) id16() []byte {
	return []byte(fmt.Sprintf("%016d", s.id()))
}

// command encodes op as a new command.
func (s *store) command(op any) *metapb.RangeCommand {
	cmd := &metapb.RangeCommand{Version: 1, Id: s.id16(), IssuedMs: s.now}
	switch op := op.(type) {
	case *metapb.PutBucketOp:
		cmd.Op = &metapb.RangeCommand_PutBucket{PutBucket: op}
	case *metapb.FenceBucketOp:
		cmd.Op = &metapb.RangeCommand_FenceBucket{FenceBucket: op}
	case *metapb.DropBucketOp:
		cmd.Op = &metapb.RangeCommand_DropBucket{DropBucket: op}
	case *metapb.PutObjectOp:
		cmd.Op = &metapb.RangeCommand_PutObject{PutObject: op}
	case *metapb.DeleteObjectsOp:
		cmd.Op = &metapb.RangeCommand_DeleteObjects{DeleteObjects: op}
	case *metapb.ExpireOp:
		cmd.Op = &metapb.RangeCommand_Expire{Expire: op}
	case *metapb.CreateUploadOp:
		cmd.Op = &metapb.RangeCommand_CreateUpload{CreateUpload: op}
	case *metapb.PutPartOp:
		cmd.Op = &metapb.RangeCommand_PutPart{PutPart: op}
	case *metapb.CompleteUploadOp:
		cmd.Op = &metapb.RangeCommand_CompleteUpload{CompleteUpload: op}
	case *metapb.AbortUploadOp:
		cmd.Op = &metapb.RangeCommand_AbortUpload{AbortUpload: op}
	case *metapb.UpdateVersionOp:
		cmd.Op = &metapb.RangeCommand_UpdateVersion{UpdateVersion: op}
	case *metapb.RewriteDataOp:
		cmd.Op = &metapb.RangeCommand_RewriteData{RewriteData: op}
	case *metapb.DropGarbageOp:
		cmd.Op = &metapb.RangeCommand_DropGarbage{DropGarbage: op}
	case *metapb.ExpandDoomedOp:
		cmd.Op = &metapb.RangeCommand_ExpandDoomed{ExpandDoomed: op}
	case *metapb.SweepOp:
		cmd.Op = &metapb.RangeCommand_Sweep{Sweep: op}
	case *metapb.DropRepairOp:
		cmd.Op = &metapb.RangeCommand_DropRepair{DropRepair: op}
	case *metapb.TouchOp:
		cmd.Op = &metapb.RangeCommand_Touch{Touch: op}
	case *metapb.AckEventsOp:
		cmd.Op = &metapb.RangeCommand_AckEvents{AckEvents: op}
	case *metapb.HoldEventsOp:
		cmd.Op = &metapb.RangeCommand_HoldEvents{HoldEvents: op}
	case *metapb.TrimEventsOp:
		cmd.Op = &metapb.RangeCommand_TrimEvents{TrimEvents: op}
	case *metapb.FireTimersOp:
		cmd.Op = &metapb.RangeCommand_FireTimers{FireTimers: op}
	case *metapb.DropDeadEventsOp:
		cmd.Op = &metapb.RangeCommand_DropDeadEvents{DropDeadEvents: op}
	case *metapb.EventsReadyOp:
		cmd.Op = &metapb.RangeCommand_EventsReady{EventsReady: op}
	case *metapb.TickOp:
		cmd.Op = &metapb.RangeCommand_Tick{Tick: op}
	default:
		s.t.Fatalf("no such op %T", op)
	}
	return cmd
}

// apply applies encoded commands in one batch.
func (s *store) applyRaw(datas ...[]byte) [][]byte {
	s.t.Helper()
	entries := make([]cluster.Entry, len(datas))
	for i, d := range datas {
		entries[i] = cluster.Entry{Index: uint64(len(s.log) + 1 + i), Term: 1, TimeMS: s.now, Data: d}
	}
	s.log = append(s.log, entries...)
	return applyEntries(s.t, s.db, s.m, entries)
}

func applyEntries(t testing.TB, db *pebble.DB, m *Machine, entries []cluster.Entry) [][]byte {
	t.Helper()
	b := db.NewIndexedBatch()
	out, err := m.Apply(b, entries)
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	if len(out) != len(entries) {
		t.Fatalf("%d results for %d entries", len(out), len(entries))
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	return out
}

func (s *store) apply(cmd *metapb.RangeCommand) *metapb.RangeResult {
	s.t.Helper()
	data, err := cmd.MarshalVT()
	if err != nil {
		s.t.Fatal(err)
	}
	res := &metapb.RangeResult{}
	if err := res.UnmarshalVT(s.applyRaw(data)[0]); err != nil {
		s.t.Fatal(err)
	}
	return res
}

// do applies op as a new command.
func (s *store) do(op any) *metapb.RangeResult {
	s.t.Helper()
	return s.apply(s.command(op))
}

// ok is do for what must succeed.
func (s *store) ok(op any) *metapb.RangeResult {
	s.t.Helper()
	res := s.do(op)
	if !res.Ok {
		s.t.Fatalf("%T refused: %v", op, res)
	}
	return res
}

func (s *store) view() *View {
	s.t.Helper()
	// The kept rows of Views must be as good as those read anew.
	make := s.views.View
	if s.id()%4 == 0 {
		make = NewView
	}
	v, err := make(s.db, s.m.group)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (s *store) bucket(id uint64, v metapb.Versioning) {
	s.t.Helper()
	s.ok(&metapb.PutBucketOp{Row: &metapb.BucketRow{Id: id, Generation: s.id(), Versioning: v}})
}

// chunk makes a chunk of n bytes born now.
func (s *store) chunk(n int) *metapb.ChunkRef {
	id := storage.NewChunkID(s.now, s.id())
	return &metapb.ChunkRef{Id: id[:], Pg: 1, Epoch: 1, K: 1, M: 2, StripeBytes: storage.StripeBytes, Length: uint64(n)}
}

func (s *store) data(sizes ...int) (*metapb.Data, uint64) {
	d, sum := &metapb.Data{}, 0
	for _, n := range sizes {
		d.Chunks = append(d.Chunks, s.chunk(n))
		sum += n
	}
	return d, uint64(sum)
}

func (s *store) put(bucket uint64, key string, sizes ...int) *metapb.PutObjectOp {
	d, size := s.data(sizes...)
	return &metapb.PutObjectOp{Bucket: bucket, Key: []byte(key), Row: &metapb.ObjectRow{
		Nonce: s.id(), WriteId: s.id16(), Size: size, Etag: fmt.Sprint("e", s.id()), Owner: "me", Data: d,
	}}
}

func (s *store) delete(bucket uint64, key string) *metapb.DeleteObjectsOp {
	return &metapb.DeleteObjectsOp{Bucket: bucket, Owner: "me", Entries: []*metapb.DeleteEntry{{Key: []byte(key), MarkerNonce: s.id()}}}
}

func (s *store) deleteVersion(bucket uint64, key string, v storage.VersionID) *metapb.DeleteObjectsOp {
	op := s.delete(bucket, key)
	op.Entries[0].HasVersion, op.Entries[0].VersionSeq, op.Entries[0].VersionNonce = true, uint64(v.Seq), v.Nonce
	return op
}

// dump is all rows of the store, in order.
func dump(t testing.TB, db *pebble.DB) [][2]string {
	t.Helper()
	it, err := db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var out [][2]string
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, [2]string{string(it.Key()), string(v)})
	}
	return out
}

func sameDump(t testing.TB, what string, a, b [][2]string) {
	t.Helper()
	for i := 0; i < len(a) || i < len(b); i++ {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			t.Fatalf("%s: states differ at row %d: %q and %q", what, i, a[min(i, len(a)-1)], b[min(i, len(b)-1)])
		}
	}
}

func sortedKeys[M ~map[K]V, K ~string, V any](m M) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool { return keys[i] < keys[j] })
	return keys
}

var _ = bytes.Equal
