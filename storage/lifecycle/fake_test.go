package lifecycle

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/chunkio"
	"cairn/storage/errs"
	"cairn/storage/pins"
)

// world is the metadata of one bucket and a data plane, in small. Rows are
// versions, newest first of each key, and uploads.
type world struct {
	mu     sync.Mutex
	led    []cluster.GroupID
	config uint64
	bucket *Bucket // nil: it has no rules
	behind *Bucket // what Buckets tells instead, if not nil
	rows   []*entry
	seq    uint64
	ids    uint64
	chunks map[storage.ChunkID][]byte
	topo   *cluster.Topology
	freed  int // chunks that became garbage

	scans, seen int // calls of Scan from the beginning of the bucket, and rows
	expires     int // commands
	log         []string
	did         []string // to versions and uploads
	unread      error    // of Config
	fail        func(call string) error
	late        func(call string) error // after the call took effect
	missing     uint64                  // of what is written next
	rebuilt     []int                   // indexes
	flip        bool                    // what is written reads back differently
}

type entry struct {
	key    storage.Key
	object *metapb.ObjectRow
	upload *metapb.UploadRow
	parts  []*metapb.PartRow
}

const (
	standardPG = 1
	infraPG    = 2 // of STANDARD_IA
)

func newWorld() *world {
	return &world{
		led: []cluster.GroupID{2}, config: 1, chunks: map[storage.ChunkID][]byte{},
		bucket: &Bucket{ID: 1, Name: "b", Owner: "o", Generation: 1, Rules: &metapb.LifecycleConfig{}},
		topo: &cluster.Topology{PGs: map[storage.PGID]cluster.PG{
			standardPG: {ID: standardPG, Class: storage.Standard}, infraPG: {ID: infraPG, Class: storage.StandardIA},
		}},
	}
}

func (w *world) ask(f func(string) error, call string) error {
	w.log = append(w.log, call)
	if f == nil {
		return nil
	}
	return f(call)
}

// put adds a version of so many bytes in a chunk.
func (w *world) put(key storage.Key, size int) *metapb.ObjectRow {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	row := &metapb.ObjectRow{Seq: w.seq, Nonce: w.seq, WriteId: make([]byte, 16), ModifiedMs: time.Now().UnixMilli(), Size: uint64(size), Attributes: &metapb.Attributes{}}
	binary.BigEndian.PutUint64(row.WriteId, w.seq)
	row.Data = &metapb.Data{Generation: 1, Chunks: []*metapb.ChunkRef{w.chunk(standardPG, bytes.Repeat([]byte{byte(w.seq)}, size))}}
	i := slices.IndexFunc(w.rows, func(e *entry) bool { return e.key >= key })
	if i < 0 {
		i = len(w.rows)
	}
	if i < len(w.rows) && w.rows[i].key == key {
		w.rows[i].object.NoncurrentMs = row.ModifiedMs
	}
	w.rows = slices.Insert(w.rows, i, &entry{key: key, object: row})
	return row
}

func (w *world) chunk(pg uint32, p []byte) *metapb.ChunkRef {
	w.ids++
	id := storage.NewChunkID(1, w.ids)
	w.chunks[id] = p
	return &metapb.ChunkRef{Id: id[:], Pg: pg, K: 2, M: 2, StripeBytes: 1 << 20, Length: uint64(len(p))}
}

// rule sets the rules.
func (w *world) rules(all ...*metapb.LifecycleRule) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := *w.bucket
	b.Rules = &metapb.LifecycleConfig{Rules: all}
	b.Generation++
	w.bucket = &b
	w.config++
}

func (w *world) keys() (out []storage.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.rows {
		out = append(out, e.key)
	}
	return out
}

func (w *world) Ranges() []cluster.GroupID {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.led)
}

func (w *world) Config(context.Context) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.config, w.unread
}

func (w *world) Buckets(_ context.Context, tiered []storage.BucketID) ([]Bucket, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b := cmp.Or(w.behind, w.bucket); b != nil && (len(b.Rules.Rules) > 0 || slices.Contains(tiered, b.ID)) {
		return []Bucket{*b}, nil
	}
	return nil, nil
}

func (w *world) Tiered(context.Context) ([]storage.BucketID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask(w.fail, "tiered"); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(w.rows, func(e *entry) bool {
		return e.object.GetAttributes().GetStorageClass() == string(storage.IntelligentTiering)
	}) {
		return []storage.BucketID{w.bucket.ID}, nil
	}
	return nil, nil
}

func (w *world) Scan(_ context.Context, g cluster.GroupID, _ storage.BucketID, after *rangestate.LifecyclePos, limit int,
	begin func(int64), row func(*rangestate.LifecycleRow) bool) (*rangestate.LifecyclePos, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask(w.fail, "scan"); err != nil {
		return nil, err
	}
	if len(w.rows) == 0 || after.Key <= w.rows[0].key && after.Seq == 0 {
		w.scans++
	}
	begin(0)
	newer, last := 0, storage.Key("")
	for i, e := range w.rows {
		if e.key != last {
			newer, last = 0, e.key
		}
		r := &rangestate.LifecycleRow{Key: []byte(e.key), Object: e.object, Upload: e.upload}
		seq := uint64(0)
		if o := e.object; o != nil {
			seq = o.Seq
			r.Newest, r.NewerNoncurrent = o.NoncurrentMs == 0, newer
			r.Only = r.Newest && (i+1 == len(w.rows) || w.rows[i+1].key != e.key)
			if !r.Newest {
				newer++
			}
		}
		passed := e.object != nil && (after.Upload || seq >= uint64(after.Seq))
		if e.upload != nil {
			seq = e.upload.Seq
			passed = after.Upload && seq <= uint64(after.Seq)
		}
		if e.key < after.Key || e.key == after.Key && after.Seq != 0 && passed {
			continue
		}
		w.seen++
		limit--
		if more := row(r); !more || limit == 0 {
			if i+1 == len(w.rows) && more {
				return nil, nil
			}
			return &rangestate.LifecyclePos{Key: e.key, Seq: storage.Seq(seq), Upload: e.upload != nil}, nil
		}
	}
	return nil, nil
}

func (w *world) Expire(_ context.Context, _ cluster.GroupID, op *metapb.ExpireOp) (out []*metapb.RangeResult, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expires++
	if err := w.ask(w.fail, "expire"); err != nil {
		return nil, err
	}
	if op.ConfigGeneration != w.bucket.Generation {
		return nil, errs.New(errs.Conflict, "expire", "", "")
	}
	for _, e := range op.Entries {
		i := slices.IndexFunc(w.rows, func(r *entry) bool {
			return string(r.key) == string(e.Key) && (r.object.GetSeq() == e.VersionSeq || r.upload.GetSeq() == e.VersionSeq)
		})
		switch {
		case i < 0:
			out = append(out, &metapb.RangeResult{Kind: uint32(errs.Conflict)})
		case w.rows[i].object.GetOwner() == "locked":
			out = append(out, &metapb.RangeResult{Kind: uint32(errs.ObjectLocked)})
		default:
			w.did = append(w.did, fmt.Sprintf("%v %s %d", e.What, e.Key, e.VersionSeq))
			w.rows = slices.Delete(w.rows, i, i+1)
			out = append(out, &metapb.RangeResult{Ok: true})
		}
	}
	return out, w.ask(w.late, "expire")
}

func (w *world) find(seq uint64) *entry {
	i := slices.IndexFunc(w.rows, func(e *entry) bool { return e.object.GetSeq() == seq })
	if i < 0 {
		return nil
	}
	return w.rows[i]
}

func (w *world) Version(_ context.Context, _ storage.BucketID, _ storage.Key, seq storage.Seq) (*metapb.ObjectRow, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask(w.fail, "version"); err != nil {
		return nil, err
	}
	if e := w.find(uint64(seq)); e != nil {
		return e.object.CloneVT(), nil
	}
	return nil, nil
}

func (w *world) Parts(_ context.Context, _ storage.BucketID, _ storage.Key, row *metapb.ObjectRow, after, limit int) (out []*metapb.PartRow, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.find(row.Seq); e != nil {
		for _, p := range e.parts {
			if int(p.Number) > after && len(out) < limit {
				out = append(out, p.CloneVT())
			}
		}
	}
	return out, nil
}

// Rewrite is as the range does it: old chunks that are not named any more go, and on a Conflict those that came.
func (w *world) Rewrite(_ context.Context, op *metapb.RewriteDataOp) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask(w.fail, "rewrite"); err != nil {
		return err
	}
	var row *metapb.ObjectRow
	data, write := (*metapb.Data)(nil), []byte(nil)
	for _, e := range w.rows {
		if op.VersionSeq != 0 && e.object.GetSeq() == op.VersionSeq {
			row = e.object
			data, write = row.Data, row.WriteId
		}
		for _, p := range e.parts {
			if op.UploadSeq != 0 && e.object.Data.UploadSeq == op.UploadSeq && p.Number == op.Part {
				data, write = p.Data, p.WriteId
			}
		}
	}
	if data == nil || string(write) != string(op.WriteId) || data.Generation != op.Generation || op.ConfigGeneration != w.bucket.Generation {
		for _, ref := range op.Data.Chunks {
			if !slices.ContainsFunc(op.Kept, func(id []byte) bool { return string(id) == string(ref.Id) }) {
				w.free(ref)
			}
		}
		return errs.New(errs.Conflict, "rewrite", "", "")
	}
	for _, ref := range op.Release {
		w.free(ref)
	}
	data.Inline, data.Chunks = op.Data.Inline, op.Data.Chunks
	data.Generation++
	if op.StorageClass != "" {
		row.Attributes.StorageClass = op.StorageClass
		w.did = append(w.did, fmt.Sprintf("move %s %d %s", op.Key, op.VersionSeq, op.StorageClass))
	}
	if op.Tier != nil {
		row.Tiering = &metapb.Tiering{Tier: op.Tier.To, AccessedMs: row.GetTiering().GetAccessedMs()}
		row.Restore = nil
	}
	return w.ask(w.late, "rewrite")
}

func (w *world) free(ref *metapb.ChunkRef) {
	delete(w.chunks, storage.ChunkID(ref.Id))
	w.freed++
}

func (w *world) Read(_ context.Context, dst io.Writer, _ storage.Owner, refs []*metapb.ChunkRef, off, n int64) error {
	var all []byte
	w.mu.Lock()
	err := w.ask(w.fail, "read")
	for _, ref := range refs {
		p, ok := w.chunks[storage.ChunkID(ref.Id)]
		if !ok && err == nil {
			err = errs.New(errs.Gone, "read", "", "")
		}
		all = append(all, p...)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	_, err = dst.Write(all[off : off+n])
	return err
}

func (w *world) Write(_ context.Context, req chunkio.WriteRequest) ([]*metapb.ChunkRef, error) {
	p, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req.Tee(p)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask(w.fail, "write"); err != nil {
		return nil, err
	}
	if w.flip {
		p[0] ^= 1
	}
	ref := w.chunk(infraPG, p)
	ref.Missing = w.missing
	return []*metapb.ChunkRef{ref}, nil
}

func (w *world) Rebuild(_ context.Context, _ storage.Owner, _ *metapb.ChunkRef, indexes []int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rebuilt = append(w.rebuilt, indexes...)
	return w.ask(w.fail, "rebuild")
}

func (w *world) Topology() *cluster.Topology { return w.topo }

const aDay = 24 * time.Hour

func (w *world) worker(change func(*Config)) *Worker {
	cfg := Config{Meta: w, Plane: w, Pins: pins.New(), Topology: w.Topology, BirthMS: func() int64 { return 1 }}
	if change != nil {
		change(&cfg)
	}
	return New(cfg)
}

// settle steps until there is no more to do right now.
func settle(t *testing.T, w *Worker) (done int64) {
	t.Helper()
	for range 100_000 {
		n, more, err := w.Step(t.Context())
		if done += n; err != nil {
			t.Fatal(err)
		}
		if !more {
			return done
		}
	}
	t.Fatal("never done")
	return 0
}

// pass lets time go by, in which the worker is asked every few seconds, as the runner does.
func pass(t *testing.T, w *Worker, d time.Duration) (done int64) {
	t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); {
		time.Sleep(min(5*time.Second, time.Until(end)))
		done += settle(t, w)
	}
	return done
}
