package repair

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
)

// world is a store in small: objects with one version each, in one range.
type world struct {
	*storagetest.Cluster
	mu      sync.Mutex
	seq     storage.Seq
	rows    map[storage.Key]*object
	repairs []Row
	timeMS  int64 // range time
	asked   int   // calls of Refers
	meta    func(call string) error
	late    func(call string) error
}

type object struct {
	seq   storage.Seq
	write storage.WriteID
	data  *metapb.Data
	want  []byte
}

func newWorld(zones, perZone int) *world {
	return &world{Cluster: storagetest.NewCluster(zones, perZone), rows: map[storage.Key]*object{}, timeMS: time.Now().UnixMilli()}
}

func (w *world) Slots() Slots { return w }

// put writes an object of one chunk, without the shards in skip, and its repair row.
func (w *world) put(key storage.Key, pg storage.PGID, size int, skip uint64) *object {
	return w.putBorn(key, pg, size, skip, time.Now().Add(-time.Hour))
}

func (w *world) putBorn(key storage.Key, pg storage.PGID, size int, skip uint64, born time.Time) *object {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	o := &object{seq: w.seq, want: make([]byte, size)}
	rnd := rand.New(rand.NewPCG(uint64(w.seq), 0))
	for i := range o.want {
		o.want[i] = byte(rnd.Uint32())
	}
	binary.BigEndian.PutUint64(o.write[:], uint64(w.seq))
	ref := w.Write(storage.Owner{Bucket: 1, Key: key, Write: o.write}, pg, born.UnixMilli(), o.want, skip)
	o.data = &metapb.Data{Generation: 1, Chunks: []*metapb.ChunkRef{ref}}
	w.rows[key] = o
	if skip != 0 {
		w.repairs = append(w.repairs, Row{RowID{1, key, w.seq}, &metapb.RepairRow{
			VersionSeq: uint64(w.seq), WriteId: o.write[:], Lost: uint32(len(indexesOf(skip))),
		}})
	}
	return o
}

func (w *world) remove(key storage.Key) {
	w.mu.Lock()
	o := w.rows[key]
	delete(w.rows, key)
	w.mu.Unlock()
	w.Remove(context.Background(), o.data.Chunks)
}

func (w *world) ask(call string) error {
	if w.meta != nil {
		return w.meta(call)
	}
	return nil
}

func (w *world) leave(call string) error {
	if w.late != nil {
		return w.late(call)
	}
	return nil
}

func (w *world) Ranges() []cluster.GroupID { return []cluster.GroupID{cluster.FirstRange} }

func (w *world) Repairs(_ context.Context, _ cluster.GroupID, after RowID, rowsMax int) (out []Row, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask("repairs"); err != nil {
		return nil, err
	}
	slices.SortFunc(w.repairs, func(a, b Row) int { return bytes.Compare([]byte(a.ID.Key), []byte(b.ID.Key)) })
	for _, r := range w.repairs {
		if r.ID.Key > after.Key && len(out) < rowsMax {
			out = append(out, r)
		}
	}
	return out, nil
}

func (w *world) Data(_ context.Context, row Row) (*metapb.Data, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask("data"); err != nil {
		return nil, err
	}
	o := w.rows[row.ID.Key]
	if o == nil || o.write != storage.WriteID(row.Row.WriteId) {
		return nil, nil
	}
	return o.data.CloneVT(), nil
}

func (w *world) Rewrite(_ context.Context, op *metapb.RewriteDataOp) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask("rewrite"); err != nil {
		return err
	}
	if len(op.Kept) != len(op.Data.Chunks) {
		panic("a conflict would free what the data had before")
	}
	o := w.rows[storage.Key(op.Key)]
	if o == nil || o.write != storage.WriteID(op.WriteId) || o.data.Generation != op.Generation || uint64(o.seq) != op.VersionSeq {
		return errs.New(errs.Conflict, "rewrite", "", "")
	}
	o.data = op.Data.CloneVT()
	o.data.Generation++
	return w.leave("rewrite")
}

func (w *world) DropRepair(_ context.Context, ids []RowID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask("drop"); err != nil {
		return err
	}
	w.repairs = slices.DeleteFunc(w.repairs, func(r Row) bool { return slices.Contains(ids, r.ID) })
	return w.leave("drop")
}

func (w *world) Refers(_ context.Context, o storage.Owner, chunk storage.ChunkID) (bool, int64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	if err := w.ask("refers"); err != nil {
		return false, 0, err
	}
	x := w.rows[o.Key]
	refers := x != nil && o.Bucket == 1 && x.write == o.Write &&
		slices.ContainsFunc(x.data.Chunks, func(r *metapb.ChunkRef) bool { return storage.ChunkID(r.Id) == chunk })
	return refers, w.timeMS, nil
}

func (w *world) Ref(_ context.Context, o storage.Owner, chunk storage.ChunkID) (*metapb.ChunkRef, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	if err := w.ask("ref"); err != nil {
		return nil, err
	}
	if x := w.rows[o.Key]; x != nil && o.Bucket == 1 && x.write == o.Write {
		for _, r := range x.data.Chunks {
			if storage.ChunkID(r.Id) == chunk {
				return r.CloneVT(), nil
			}
		}
	}
	return nil, nil
}

// cut makes the object one that a write left behind when it moved to another
// group: its row ends with stripe n, frames behind it are on some drives.
func (w *world) cut(key storage.Key, n int) {
	o := w.rows[key]
	ref := o.data.Chunks[0]
	ref.Length = uint64(n) * uint64(ref.StripeBytes)
	o.want = o.want[:ref.Length]
	for i, d := range w.Topology().PGs[storage.PGID(ref.Pg)].Drives {
		for _, s := range w.Drives[d].Shards() {
			if id := s.Header.ID; id.Chunk == storage.ChunkID(ref.Id) && (int(id.Stripe) > n || int(id.Stripe) == n && i > 1) {
				w.Drives[d].Drop(id)
			}
		}
	}
}

// wantWhole checks that every object has all its shards and reads back.
func (w *world) wantWhole(t *testing.T) {
	t.Helper()
	for key, o := range w.rows {
		for _, ref := range o.data.Chunks {
			if m := w.Missing(ref); m != 0 || ref.Missing != 0 {
				t.Fatalf("%s lacks shards %b, its row says %b", key, m, ref.Missing)
			}
		}
		got, err := w.ReadAll(t.Context(), o.data.Chunks)
		if err != nil || !bytes.Equal(got, o.want) {
			t.Fatalf("%s does not read back: %v", key, err)
		}
	}
}

// stepper is any of the workers.
type stepper interface {
	Step(ctx context.Context) (int64, bool, error)
}

// settle steps until there is no more to do right now.
func settle(t *testing.T, s stepper) {
	t.Helper()
	for range 10000 {
		_, more, err := s.Step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			return
		}
	}
	t.Fatal("never done")
}
