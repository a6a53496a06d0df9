package garbage

import (
	"context"
	"encoding/binary"
	"slices"
	"sync"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

const grp = cluster.FirstRange

// world is a range, its drives and its readers, as simple as can be.
type world struct {
	mu      sync.Mutex
	seq     storage.Seq
	rows    []Row
	doomed  []Doomed
	parts   map[DoomedID]int // part rows left, one chunk each
	dead    map[storage.ChunkID]bool
	removed [3]map[storage.ChunkID]bool // per drive
	down    [3]bool
	pgs     map[storage.PGID][]int // drives of a group
	held    map[storage.WriteID]bool

	calls    map[string]int
	fail     func(call string) error // asked before every call takes effect
	failLate func(call string) error // asked after it did: its answer is lost
	wrong    []string
}

func newWorld() *world {
	w := &world{
		parts: map[DoomedID]int{}, dead: map[storage.ChunkID]bool{}, held: map[storage.WriteID]bool{}, calls: map[string]int{},
		pgs: map[storage.PGID][]int{1: {0, 1}, 2: {1, 2}, 3: {0, 1, 2}},
	}
	for i := range w.removed {
		w.removed[i] = map[storage.ChunkID]bool{}
	}
	return w
}

func wid(n uint64) (w storage.WriteID) {
	binary.BigEndian.PutUint64(w[:], n)
	return w
}

// delete commits the delete of a write with chunks in the groups named.
func (w *world) delete(write uint64, pgs ...storage.PGID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deleteLocked(wid(write), pgs...)
}

func (w *world) deleteLocked(write storage.WriteID, pgs ...storage.PGID) {
	w.seq++
	row := &metapb.GarbageRow{Format: 1, PinWrite: write[:]}
	for i, pg := range pgs {
		id := storage.NewChunkID(int64(w.seq), uint64(i))
		w.dead[id] = true
		row.Chunks = append(row.Chunks, &metapb.ChunkRef{Id: id[:], Pg: uint32(pg)})
	}
	w.rows = append(w.rows, Row{ID{w.seq, 0}, row})
}

// doom commits the delete of a multipart object of so many parts.
func (w *world) doom(write uint64, parts int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seq++
	id := DoomedID{1, "k", w.seq}
	pin := wid(write)
	w.doomed = append(w.doomed, Doomed{id, &metapb.DoomedRow{PinWrite: pin[:]}})
	w.parts[id] = parts
}

// enter injects failures.
func (w *world) enter(call string) error {
	w.calls[call]++
	if w.fail != nil {
		return w.fail(call)
	}
	return nil
}

func (w *world) leave(call string) error {
	if w.failLate != nil {
		return w.failLate(call)
	}
	return nil
}

func (w *world) Ranges() []cluster.GroupID { return []cluster.GroupID{grp} }

func (w *world) Garbage(_ context.Context, _ cluster.GroupID, after ID, rowsMax int) (out []Row, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter("garbage"); err != nil {
		return nil, err
	}
	for _, r := range w.rows {
		if r.ID.Compare(after) > 0 && len(out) < rowsMax {
			out = append(out, r)
		}
	}
	return out, nil
}

func (w *world) DropGarbage(_ context.Context, _ cluster.GroupID, ids []ID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter("drop"); err != nil {
		return err
	}
	if len(ids) == 0 || len(ids) > dropRowsMax {
		w.wrong = append(w.wrong, "drop of too many or no rows")
	}
	for _, id := range ids {
		i := slices.IndexFunc(w.rows, func(r Row) bool { return r.ID == id })
		if i < 0 {
			continue
		}
		for _, ref := range w.rows[i].Row.Chunks {
			for _, d := range w.pgs[storage.PGID(ref.Pg)] {
				if !w.removed[d][storage.ChunkID(ref.Id)] {
					w.wrong = append(w.wrong, "row dropped before every drive removed its chunks")
				}
			}
		}
		w.rows = slices.Delete(w.rows, i, i+1)
	}
	return w.leave("drop")
}

func (w *world) Doomed(_ context.Context, _ cluster.GroupID, rowsMax int) ([]Doomed, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter("doomed"); err != nil {
		return nil, err
	}
	return slices.Clone(w.doomed[:min(rowsMax, len(w.doomed))]), nil
}

func (w *world) ExpandDoomed(_ context.Context, _ cluster.GroupID, only []DoomedID, rowsMax int) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter("expand"); err != nil {
		return false, err
	}
	var rest []Doomed
	for _, d := range w.doomed {
		pin := storage.WriteID(d.Row.PinWrite)
		if slices.Contains(only, d.ID) {
			if w.held[pin] {
				w.wrong = append(w.wrong, "expanded an upload that is being read")
			}
			for w.parts[d.ID] > 0 && rowsMax > 0 {
				w.deleteLocked(pin, 3)
				w.parts[d.ID]--
				rowsMax--
			}
			if w.parts[d.ID] == 0 {
				delete(w.parts, d.ID)
				continue
			}
		}
		rest = append(rest, d)
	}
	w.doomed = rest
	return len(rest) > 0, w.leave("expand")
}

func (w *world) Sweep(context.Context, cluster.GroupID, int) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.enter("sweep")
	return w.calls["sweep"]%3 != 0, err
}

func (w *world) Remove(_ context.Context, refs []*metapb.ChunkRef) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter("remove"); err != nil {
		return false, err
	}
	done := true
	for _, ref := range refs {
		id := storage.ChunkID(ref.Id)
		if !w.dead[id] {
			w.wrong = append(w.wrong, "removed a chunk that no committed delete freed")
		}
		for _, r := range w.rows {
			if w.held[storage.WriteID(r.Row.PinWrite)] && slices.ContainsFunc(r.Row.Chunks, func(c *metapb.ChunkRef) bool { return storage.ChunkID(c.Id) == id }) {
				w.wrong = append(w.wrong, "removed a chunk that is being read")
			}
		}
		for _, d := range w.pgs[storage.PGID(ref.Pg)] {
			if w.down[d] {
				done = false
				continue
			}
			w.removed[d][id] = true
		}
	}
	if err := w.leave("remove"); err != nil {
		return false, err
	}
	if !done {
		return false, errs.New(errs.DriveFailed, "remove", "drive", "")
	}
	return true, nil
}

func (w *world) Quiesce(context.Context) (func(storage.WriteID) bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.enter("quiesce"); err != nil {
		return nil, err
	}
	held := make(map[storage.WriteID]bool)
	for k, v := range w.held {
		held[k] = v
	}
	return func(id storage.WriteID) bool { return held[id] }, nil
}
