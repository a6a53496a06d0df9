package repair

import (
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// RowID names a repair row. Rows of a range are in order of bucket, key, sequence; the zero ID is before all.
type RowID struct {
	Bucket storage.BucketID
	Key    storage.Key
	Seq    storage.Seq
}

// Row is a repair row.
type Row struct {
	ID  RowID
	Row *metapb.RepairRow // read-only
}

func (r *Row) String() string {
	if r.Row.GetUploadSeq() != 0 {
		return fmt.Sprintf("bucket %d key %q part %d", r.ID.Bucket, string(r.ID.Key), r.Row.GetPart())
	}
	return fmt.Sprintf("bucket %d key %q version seq %d", r.ID.Bucket, string(r.ID.Key), r.Row.GetVersionSeq())
}

// Meta is the metadata plane as Rows sees it. Reads are linearizable; everything may be repeated.
type Meta interface {
	// Ranges are the ranges this node is to work for: those whose leader is here.
	Ranges() []cluster.GroupID
	// Repairs reads at most rowsMax repair rows above after, in order.
	Repairs(ctx context.Context, g cluster.GroupID, after RowID, rowsMax int) ([]Row, error)
	// Data reads where the bytes are of the version or part that the repair row
	// names. It is nil if there is no such version or part any more, or if it is not of the
	// row's write. The result is the caller's.
	Data(ctx context.Context, row Row) (*metapb.Data, error)
	// Rewrite is the command RewriteData. Errors: Conflict if the row changed since it was read or is gone.
	Rewrite(ctx context.Context, op *metapb.RewriteDataOp) error
	// DropRepair drops rows that are done, at most 1000; those that are not there are skipped.
	DropRepair(ctx context.Context, ids []RowID) error
}

// RowsConfig of Rows. Meta, Plane and Topology are required; zeros are replaced by the defaults named.
type RowsConfig struct {
	Meta       Meta
	Plane      Plane
	Topology   func() *cluster.Topology
	Logger     *slog.Logger  // nil: no log
	Parallel   int           // objects repaired at once; default 4
	QueueMax   int           // rows taken from one look at all of them; default 4096
	StuckMax   int           // rows remembered that failed, each with its own back-off; default 4096
	BackoffMin time.Duration // of a row that failed; default 5 s
	BackoffMax time.Duration // default 10 min
}

func (c *RowsConfig) setDefaults() {
	c.Parallel = defInt(c.Parallel, 4)
	c.QueueMax = defInt(c.QueueMax, 4096)
	c.StuckMax = defInt(c.StuckMax, 4096)
	c.BackoffMin = defDur(c.BackoffMin, 5*time.Second)
	c.BackoffMax = defDur(c.BackoffMax, 10*time.Minute)
	c.Logger = defLog(c.Logger)
}

func defInt(v, d int) int {
	if v <= 0 {
		return d
	}
	return v
}

func defDur(v, d time.Duration) time.Duration {
	if v <= 0 {
		return d
	}
	return v
}

func defLog(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}

// Rows is the worker that repairs what repair rows name, least redundant first.
//
// A row goes through: read the version or part, rebuild the shards its chunks
// lack, rewrite the chunks without their missing bits on condition that write id and
// generation are those read, drop the row. A crash between any two repeats the
// earlier ones: rebuilding finds the shards there and good.
//
// There may be millions of rows that can't be repaired now, in the outage of a zone.
// StuckMax of those that failed are remembered. If more fail, Rows goes over all rows in
// order of urgency, so that none keeps another waiting, and over those that it does
// not remember only once a round; between rounds there is a growing back-off. A row that is new has its first try at once.
type Rows struct {
	cfg      RowsConfig
	queue    []Row // rest of the latest look, in order of urgency
	window   window
	round    round
	nextLook time.Time
	version  uint64 // of the topology at the latest look
	places   uint64 // what that topology says of where shards can be put
	left     atomic.Int64
	stuck    *stuck[RowID]
	waits    map[RowID]slots // of those in stuck: what they wait for
	warner   warner
	seed     maphash.Seed
}

// window is how the rows of the latest look fared.
type window struct {
	began    time.Time
	looked   time.Duration // what the look took
	cut      bool          // there were more rows than the queue takes
	finished int
}

// round is one pass over the rows that are not remembered to have failed.
type round struct {
	spilled bool      // more rows failed than are remembered
	last    Row       // rows of up to this urgency were tried in this round
	seenMS  int64     // rows later than this came since the latest look
	over    bool      // all rows were tried
	next    time.Time // once over and spilled: when the next round may begin
	inRow   int       // rounds in a row that spilled
}

// begin begins a new round if it is time for one. As long as all that failed is
// remembered every look is one.
func (o *round) begin(now time.Time) {
	switch {
	case !o.spilled && o.over:
		*o = round{}
	case !o.spilled, o.over && !now.Before(o.next):
		*o = round{inRow: o.inRow}
	}
}

// ready reports whether a row that is not remembered may be tried.
func (o *round) ready(r *Row) bool {
	return !o.spilled || r.Row.GetAtMs() > o.seenMS || !o.over && byUrgency(*r, o.last) > 0
}

// advance notes that the rows of a look are being tried. cut: there are more.
func (o *round) advance(queue []Row, newestMS int64, cut bool) {
	if n := len(queue); n > 0 && (!o.spilled || byUrgency(queue[n-1], o.last) > 0) {
		o.last = queue[n-1]
	}
	o.seenMS = max(o.seenMS, newestMS)
	o.over = o.over || !cut
}

// slots are places in a placement group whose drives have to be active. The zero value is none.
type slots struct {
	pg   storage.PGID
	bits uint64
}

// blocked reports whether one of the drives is known not to be active.
func (s slots) blocked(t *cluster.Topology) bool {
	pg, ok := t.PGs[s.pg]
	return ok && slices.ContainsFunc(indexesOf(s.bits), func(i int) bool {
		return i < len(pg.Drives) && !active(t, pg.Drives[i])
	})
}

// NewRows makes the worker.
func NewRows(cfg RowsConfig) *Rows {
	cfg.setDefaults()
	return &Rows{
		cfg: cfg, stuck: newStuck[RowID](cfg.StuckMax, cfg.BackoffMin, cfg.BackoffMax),
		waits: make(map[RowID]slots), warner: warner{log: cfg.Logger}, seed: maphash.MakeSeed(),
	}
}

// Name of the worker.
func (w *Rows) Name() string { return "repair" }

// Left is the number of repair rows as of the latest look, less those done since.
func (w *Rows) Left() (int64, bool) { return max(0, w.left.Load()), true }

// Problems are objects that could not be repaired yet, up to StuckMax, longest first.
func (w *Rows) Problems() []Problem { return w.stuck.list() }

// lookShare is how much of its time a worker spends at most on looking for work, and on work in vain: one part in so many.
const lookShare = 20

// Step repairs a few objects.
func (w *Rows) Step(ctx context.Context) (done int64, more bool, err error) {
	if len(w.queue) == 0 {
		if err := w.look(ctx); err != nil {
			return 0, false, err
		}
		if len(w.queue) == 0 {
			return 0, false, nil
		}
	}
	batch := w.queue[:min(w.cfg.Parallel, len(w.queue))]
	w.queue = w.queue[len(batch):]
	results := make([]result, len(batch))
	var wg sync.WaitGroup
	for i := range batch {
		wg.Go(func() { results[i] = w.repair(ctx, batch[i]) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return 0, false, ctx.Err()
	}
	var finished []RowID
	for i, r := range results {
		if r.err == nil {
			finished = append(finished, batch[i].ID)
			continue
		}
		w.failed(&batch[i], r)
	}
	if len(finished) > 0 {
		if err := w.cfg.Meta.DropRepair(ctx, finished); err != nil {
			return 0, false, err // the next look finds the rows again, and nothing to rebuild
		}
	}
	for _, id := range finished {
		w.stuck.clear(id)
		delete(w.waits, id)
	}
	w.left.Add(-int64(len(finished)))
	w.window.finished += len(finished)
	return int64(len(finished)), len(w.queue) > 0 || w.endWindow(), nil
}

// failed notes a row that could not be repaired.
func (w *Rows) failed(row *Row, r result) {
	tries := 1
	if w.stuck.hasRoom(row.ID) {
		tries = w.stuck.failed(row.ID, row.String(), r.err)
		w.waits[row.ID] = r.wait
	} else {
		w.round.spilled = true
	}
	w.warner.warn("object not repaired yet", "object", row.String(), "tries", tries, "err", r.err)
}

// endWindow decides when to look at the rows again once the queue is empty. more: at once.
func (w *Rows) endWindow() (more bool) {
	spent := w.window.looked
	if w.window.finished == 0 {
		spent = time.Since(w.window.began)
	} else if w.window.cut {
		return true
	}
	now := time.Now()
	w.nextLook = now.Add(min(lookShare*spent, w.cfg.BackoffMax))
	if o := &w.round; o.over && o.spilled && o.next.IsZero() {
		o.inRow++
		o.next = now.Add(delay(w.cfg.BackoffMin, w.cfg.BackoffMax, o.inRow))
	}
	return false
}

// look reads all repair rows and queues the most urgent ones that may be tried.
func (w *Rows) look(ctx context.Context) error {
	start := time.Now()
	t := w.cfg.Topology()
	if !w.newPlaces(t) && start.Before(w.nextLook) {
		return nil
	}
	w.round.begin(start)
	all, newest, cut := int64(0), int64(0), false
	var found []Row
	seen := make(map[RowID]bool) // of those that are stuck
	for _, g := range w.cfg.Meta.Ranges() {
		for after := (RowID{}); ; {
			page, err := w.cfg.Meta.Repairs(ctx, g, after, 1000)
			if err != nil {
				return err
			}
			for _, r := range page {
				all++
				newest = max(newest, r.Row.GetAtMs())
				if w.ready(t, &r, seen) {
					found = append(found, r)
				}
			}
			if len(found) > 2*w.cfg.QueueMax {
				found, cut = mostUrgent(found, w.cfg.QueueMax), true
			}
			if len(page) < 1000 {
				break
			}
			after = page[len(page)-1].ID
		}
	}
	cut = cut || len(found) > w.cfg.QueueMax
	w.queue = mostUrgent(found, w.cfg.QueueMax)
	w.left.Store(all)
	w.stuck.prune(func(id RowID) bool { return seen[id] }) // rows that others dropped
	maps.DeleteFunc(w.waits, func(id RowID, _ slots) bool { return !seen[id] })
	w.window = window{began: start, looked: time.Since(start), cut: cut}
	w.round.advance(w.queue, newest, cut)
	if len(w.queue) == 0 { // looking again is of no use soon, and not free if there are many
		w.endWindow()
	}
	return nil
}

// newPlaces takes note of the topology and reports whether it lets rows be tried
// that could not be repaired before: a drive may be back, or have been replaced.
func (w *Rows) newPlaces(t *cluster.Topology) bool {
	if t.Version == w.version {
		return false
	}
	// Sums, so that the order of the maps does not matter.
	sum := uint64(1)
	for id, d := range t.Drives {
		sum += maphash.Comparable(w.seed, struct {
			id    storage.DriveID
			state cluster.DriveState
		}{id, d.State})
	}
	for id, pg := range t.PGs { // a group whose drives went, came back or were replaced has a new epoch
		sum += maphash.Comparable(w.seed, struct {
			id    storage.PGID
			epoch storage.Epoch
		}{id, pg.Epoch})
	}
	changed := sum != w.places
	w.version, w.places = t.Version, sum
	if changed {
		w.stuck.retryAll()
		w.round = round{}
	}
	return changed
}

// ready reports whether a row may be tried now; seen notes those that are stuck.
func (w *Rows) ready(t *cluster.Topology, r *Row, seen map[RowID]bool) bool {
	if known, ok := w.stuck.ready(r.ID); known {
		seen[r.ID] = true
		return ok && !w.waits[r.ID].blocked(t)
	}
	return w.round.ready(r)
}

// byUrgency orders rows: most shards lost first, then oldest.
func byUrgency(a, b Row) int {
	return cmp.Or(
		cmp.Compare(b.Row.GetLost(), a.Row.GetLost()), cmp.Compare(a.Row.GetAtMs(), b.Row.GetAtMs()),
		cmp.Compare(a.ID.Bucket, b.ID.Bucket), cmp.Compare(a.ID.Key, b.ID.Key), cmp.Compare(a.ID.Seq, b.ID.Seq),
	)
}

// mostUrgent sorts in place.
func mostUrgent(rows []Row, n int) []Row {
	slices.SortFunc(rows, byUrgency)
	return rows[:min(n, len(rows))]
}

// result of a try. A row without an error may be dropped.
type result struct {
	err  error
	wait slots // with err: what has to be active first
}

// repair repairs what a row names.
func (w *Rows) repair(ctx context.Context, row Row) result {
	// A version that was changed or removed by another command meanwhile is looked at again.
	var why error
	for range 3 {
		again, r := w.tryRepair(ctx, row)
		if !again {
			return r
		}
		why = r.err
	}
	return result{err: errs.Wrap(errs.KindOf(why), "repair: it is named by its row again and again", row.String(), why)}
}

// tryRepair makes one try. again: the version changed under it, as the error says.
func (w *Rows) tryRepair(ctx context.Context, row Row) (again bool, r result) {
	data, err := w.cfg.Meta.Data(ctx, row)
	if err != nil || data == nil {
		return false, result{err: err}
	}
	owner := storage.Owner{Bucket: row.ID.Bucket, Key: row.ID.Key}
	if copy(owner.Write[:], row.Row.GetWriteId()) != len(owner.Write) {
		return false, result{err: errs.New(errs.Corrupt, "repair", row.String(), "the repair row names no write")}
	}
	cleared := false
	for _, ref := range data.Chunks {
		if ref.Missing == 0 {
			continue
		}
		x := w.rebuild(ctx, owner, ref)
		switch {
		case x.err == nil:
			ref.Missing, cleared = 0, true
		case errs.Is(x.err, errs.Gone):
			return true, x // deleted since it was read: the next look at the row says so
		case ctx.Err() != nil:
			return false, result{err: ctx.Err()}
		default:
			r = x // the other chunks are repaired nevertheless
		}
	}
	if cleared {
		op := &metapb.RewriteDataOp{
			Bucket: uint64(row.ID.Bucket), Key: []byte(row.ID.Key), VersionSeq: row.Row.GetVersionSeq(),
			UploadSeq: row.Row.GetUploadSeq(), Part: row.Row.GetPart(), WriteId: row.Row.GetWriteId(),
			Generation: data.Generation, Data: data, Kept: chunkIDs(data),
		}
		if err := w.cfg.Meta.Rewrite(ctx, op); err != nil {
			return errs.Is(err, errs.Conflict), result{err: err}
		}
	}
	return false, r
}

func chunkIDs(data *metapb.Data) (ids [][]byte) {
	for _, ref := range data.Chunks {
		ids = append(ids, ref.Id)
	}
	return ids
}

func (w *Rows) rebuild(ctx context.Context, owner storage.Owner, ref *metapb.ChunkRef) result {
	t := w.cfg.Topology()
	pg, ok := t.PGs[storage.PGID(ref.Pg)]
	if !ok {
		return result{err: errs.Newf(errs.Unavailable, "repair", "", "placement group %d is not known", ref.Pg)}
	}
	indexes := indexesOf(ref.Missing)
	for _, i := range indexes {
		if i >= len(pg.Drives) {
			return result{err: errs.Newf(errs.Corrupt, "repair", "", "shard %d of a chunk in placement group %d of %d drives", i, ref.Pg, len(pg.Drives))}
		}
		if !active(t, pg.Drives[i]) {
			err := errs.Newf(errs.Unavailable, "repair", "", "drive %s is %v; repaired when it is back or replaced", pg.Drives[i].Short(), t.Drives[pg.Drives[i]].State)
			return result{err, slots{pg.ID, ref.Missing}}
		}
	}
	return result{err: w.cfg.Plane.Rebuild(ctx, owner, ref, indexes)}
}
