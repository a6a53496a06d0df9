package repair

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
)

// Slots is the placement-group table as Resync sees it: cluster/controller.
type Slots interface {
	// Topology is the newest snapshot.
	Topology() *cluster.Topology
	// ClearDirty records that the drive of slot index holds all its shards: it
	// clears DirtySince[index] and Previous[index] of the placement group, if its
	// epoch is still the one given; else Conflict.
	ClearDirty(ctx context.Context, pg storage.PGID, index int, epoch storage.Epoch) error
}

// ResyncConfig of a Resync. Slots, Stores, Plane and Refers are required; zeros are replaced by the defaults named.
type ResyncConfig struct {
	Slots    Slots
	Stores   Stores
	Local    func(storage.DriveID) bool // drives of this node; nil: all. A group is the business of the node with its first dirty slot
	Plane    Plane
	Refers   Referrer
	Logger   *slog.Logger
	Now      func() time.Time // guesses the age of chunks, to leave writes under way alone; default time.Now
	Parallel int              // chunks rebuilt at once; default 4
	PageMax  int              // list entries of a drive held in memory; default 4096
	StepTime time.Duration    // after which a step ends; default 500 ms
	StuckMax int              // chunks remembered that failed; with more the whole group is gone over again; default 4096
}

// Resync is the worker that fills drives that were away or replaced.
//
// The system group marks a slot of a placement group dirty when its drive may lack
// shards. For each group with dirty slots whose drives are active, Resync
//
//  1. makes every drive it counts on persist the group's present epoch. From then
//     on no append of a writer that does not know that the drive is back can arrive
//     there; what is listed afterwards is all that such writers ever stored (design rule 16);
//  2. merges the shard lists of the group's drives chunk by chunk, in pages, and has
//     Plane.Rebuild make what the dirty drives lack wherever k shards of every stripe are
//     listed. Of shards that are listed on a dirty drive the first block is read: an index
//     that survived its extents does not pass for data. (Rot behind it is scrub's);
//  3. clears the slot at the epoch at which it began, if nothing was left over.
//
// Each node does this for the groups of which the first dirty slot with an active
// drive is on a drive of its own. While the table changes two nodes may be at one group:
// all they do may be done twice.
//
// Slots that are not dirty are looked at, too, by list alone: a chunk that only a drive
// holds that was down when another slot was cleared is made whole when that drive is back
// and gets its own pass.
//
// Of a chunk with fewer than k shards of a stripe nothing is made. If its range says
// that something refers to it, it is a problem and the slot stays dirty, as what the
// table says must be true. If nothing does, it is a write under way or one that never
// committed: its writer marks in its commit what is missing, and Rows repairs it.
//
// Progress is a cursor in memory. After a restart shards that are there cost a look each, not a rebuild.
type Resync struct {
	cfg ResyncConfig
	run *resyncRun       // the group being worked on, or nil
	off *stuck[groupKey] // groups that could not be finished
	bad *stuck[chunkKey]
	// passed are groups whose slots were cleared, or that have changed since their pass began, with the version of the
	// topology that did not show it yet: another pass over them would be for nothing.
	passed map[storage.PGID]uint64
	warner warner
	mu     struct {
		sync.Mutex
		status ResyncStatus
	}
}

// groupKey is a placement group at an epoch: at another one its drives are others, or back.
type groupKey struct {
	pg    storage.PGID
	epoch storage.Epoch
}

func keyOf(pg *cluster.PG) groupKey { return groupKey{pg.ID, pg.Epoch} }

// ResyncStatus is for status pages.
type ResyncStatus struct {
	PG          storage.PGID // being worked on; 0 is none
	Cursor      storage.ChunkID
	DirtySlots  int   // over all groups, of drives that are active
	WaitSlots   int   // over all groups, of drives that are down
	Rebuilt     int64 // chunks since the start
	SlotsFilled int64 // since the start
}

type chunkKey struct {
	pg storage.PGID
	id storage.ChunkID
}

// resyncRun is one pass over a placement group.
type resyncRun struct {
	pg      cluster.PG
	slots   []int // dirty ones with an active drive
	srcs    []*source
	cursor  storage.ChunkID
	page    []chunk // read and not yet worked on
	last    bool    // page is the last one
	left    int     // chunks that were not repaired
	lastErr error
}

// NewResync makes the worker.
func NewResync(cfg ResyncConfig) *Resync {
	cfg.Parallel = defInt(cfg.Parallel, 4)
	cfg.PageMax = defInt(cfg.PageMax, 4096)
	cfg.StepTime = defDur(cfg.StepTime, 500*time.Millisecond)
	cfg.StuckMax = defInt(cfg.StuckMax, 4096)
	cfg.Logger = defLog(cfg.Logger)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Resync{
		cfg: cfg, off: newStuck[groupKey](1<<16, 5*time.Second, 10*time.Minute),
		bad:    newStuck[chunkKey](cfg.StuckMax, time.Second, time.Second),
		warner: warner{log: cfg.Logger},
		passed: make(map[storage.PGID]uint64),
	}
}

// Name of the worker.
func (r *Resync) Name() string { return "resync" }

// Left is the number of dirty slots whose drive is active. (Steps count chunks, so there is no ETA.)
func (r *Resync) Left() (int64, bool) { return int64(r.Status().DirtySlots), false }

// Status now.
func (r *Resync) Status() ResyncStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.status
}

// Problems are the chunks that could not be rebuilt, longest first.
func (r *Resync) Problems() []Problem { return r.bad.list() }

// dirtySlots are the group's dirty slots with an active drive, and how many wait for theirs.
func dirtySlots(t *cluster.Topology, pg *cluster.PG) (slots []int, waiting int) {
	for i, since := range pg.DirtySince {
		switch {
		case since == 0:
		case active(t, pg.Drives[i]):
			slots = append(slots, i)
		default:
			waiting++
		}
	}
	return slots, waiting
}

// mine reports whether filling these slots of the group is for this node.
func (r *Resync) mine(pg *cluster.PG, slots []int) bool {
	return len(slots) > 0 && (r.cfg.Local == nil || r.cfg.Local(pg.Drives[slots[0]]))
}

// Step works on one placement group for a while. A group that cannot be finished
// waits for its own back-off; an error is answered only if there is no other one to go on with.
func (r *Resync) Step(ctx context.Context) (done int64, more bool, err error) {
	t := r.cfg.Slots.Topology()
	if r.run != nil {
		// The table changed under us: what we know may not be what must be true now.
		pg, ok := t.PGs[r.run.pg.ID]
		slots, _ := dirtySlots(t, &pg)
		if !ok || pg.Epoch != r.run.pg.Epoch || !slices.Equal(slots, r.run.slots) {
			r.run = nil
		}
	}
	r.count(t)
	if r.run == nil {
		next := r.pick(t)
		if next == nil {
			return 0, false, nil
		}
		if err := r.tellEpoch(ctx, t, next); err != nil {
			return r.abandon(ctx, t, next, 0, err)
		}
		r.run = next
	}
	run := r.run
	for start := time.Now(); time.Since(start) < r.cfg.StepTime; {
		if len(run.page) == 0 {
			if run.last {
				r.run = nil
				if err := r.end(ctx, t, run); err != nil {
					return r.abandon(ctx, t, run, done, err)
				}
				return done, true, nil
			}
			if err := r.nextPage(ctx, run); err != nil {
				return r.abandon(ctx, t, run, done, err)
			}
			continue
		}
		batch := run.page[:min(r.cfg.Parallel, len(run.page))]
		run.page = run.page[len(batch):]
		n, err := r.doBatch(ctx, run, batch)
		done += n
		if err != nil {
			r.run = nil // the batch is not done: begin again, what is there is passed quickly
			return done, false, err
		}
	}
	r.mu.Lock()
	r.mu.status.PG, r.mu.status.Cursor = run.pg.ID, run.cursor
	r.mu.Unlock()
	return done, true, nil
}

// count brings the status up to date.
func (r *Resync) count(t *cluster.Topology) {
	dirty, wait := 0, 0
	for _, pg := range t.PGs {
		s, w := dirtySlots(t, &pg)
		dirty, wait = dirty+len(s), wait+w
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.status.DirtySlots > 0 && dirty == 0 {
		r.cfg.Logger.Info("drives filled and verified", "slots", r.mu.status.SlotsFilled, "chunks", r.mu.status.Rebuilt, "slots_of_drives_down", wait)
	}
	r.mu.status.DirtySlots, r.mu.status.WaitSlots = dirty, wait
	if r.run == nil {
		r.mu.status.PG, r.mu.status.Cursor = 0, storage.ChunkID{}
	}
}

// pick is the dirty group to go on with, nil if none may be tried now: of those that
// did not fail at this epoch the one with the least redundancy left; else the one that waits longest.
func (r *Resync) pick(t *cluster.Topology) *resyncRun {
	spare := func(pg *cluster.PG) int { // shards that may still be lost
		n := int(pg.Scheme.M)
		for i, since := range pg.DirtySince {
			if since != 0 || !active(t, pg.Drives[i]) {
				n--
			}
		}
		return n
	}
	now := time.Now()
	var best *resyncRun
	var bestDue time.Time // zero: it did not fail
	for _, pg := range t.PGs {
		slots, _ := dirtySlots(t, &pg)
		if v, ok := r.passed[pg.ID]; ok && v != t.Version {
			delete(r.passed, pg.ID)
		} else if ok {
			continue
		}
		due := r.off.due(keyOf(&pg))
		if now.Before(due) || !r.mine(&pg, slots) {
			continue
		}
		if best == nil || cmp.Or(due.Compare(bestDue), cmp.Compare(spare(&pg), spare(&best.pg)), cmp.Compare(pg.ID, best.pg.ID)) < 0 {
			best, bestDue = &resyncRun{pg: pg, slots: slots}, due
		}
	}
	return best
}

// tellEpoch makes the group's drives persist its epoch and finds out which of them can be counted on.
func (r *Resync) tellEpoch(ctx context.Context, t *cluster.Topology, run *resyncRun) error {
	run.srcs = sources(t, &run.pg, r.cfg.Stores)
	run.srcs = slices.DeleteFunc(run.srcs, func(s *source) bool {
		s.err = s.store.SetEpochs(ctx, map[storage.PGID]storage.Epoch{run.pg.ID: run.pg.Epoch})
		return s.err != nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for i, id := range run.pg.Drives {
		if !active(t, id) || slices.ContainsFunc(run.srcs, func(s *source) bool { return s.drive == id }) {
			continue
		}
		err := errs.New(errs.DriveFailed, "resync", id.String(), "the drive is recorded as active and does not answer")
		if slices.Contains(run.slots, i) {
			return err
		}
		// What only that drive holds would be passed over: fill what can be, but don't call it done.
		// (A drive that is recorded as down gets a pass of its own when it is back.)
		run.left, run.lastErr = run.left+1, err
	}
	return nil
}

// targets reports whether the drive is one that is being filled.
func (run *resyncRun) targets(id storage.DriveID) bool {
	return slices.ContainsFunc(run.slots, func(i int) bool { return run.pg.Drives[i] == id })
}

// abandon gives a pass up for a while; what it answers is for Step to answer.
func (r *Resync) abandon(ctx context.Context, t *cluster.Topology, run *resyncRun, did int64, err error) (done int64, more bool, _ error) {
	r.run = nil
	if ctx.Err() != nil {
		return did, false, ctx.Err()
	}
	name := fmt.Sprintf("placement group %d", run.pg.ID)
	r.off.prune(func(k groupKey) bool { return t.PGs[k.pg].Epoch == k.epoch })
	r.off.failed(keyOf(&run.pg), name, err)
	if r.pick(t) == nil {
		return did, false, errs.Wrap(errs.KindOf(err), "resync", name, err)
	}
	r.warner.warn("placement group not resynchronised yet", "pg", run.pg.ID, "err", err)
	return did, true, nil
}

func (r *Resync) nextPage(ctx context.Context, run *resyncRun) (err error) {
	run.page, run.cursor, run.last, err = page(ctx, run.pg.ID, run.srcs, run.cursor, r.cfg.PageMax)
	if err != nil {
		return err
	}
	for _, s := range run.srcs {
		if s.err != nil && run.targets(s.drive) {
			return s.err
		}
		if s.err != nil {
			// Chunks that only this drive and the target should hold would be passed over.
			run.left, run.lastErr = run.left+1, s.err
		}
	}
	return nil
}

// filled is what became of one chunk.
type filled struct {
	what    string
	rebuilt bool
	blocks  bool  // with err: a dirty slot lacks the chunk, so it is not to be cleared
	err     error //
}

func (r *Resync) doBatch(ctx context.Context, run *resyncRun, batch []chunk) (done int64, err error) {
	results := make([]filled, len(batch))
	var wg sync.WaitGroup
	for i := range batch {
		wg.Go(func() { results[i] = r.fill(ctx, run, &batch[i]) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	for i, x := range results {
		k := chunkKey{run.pg.ID, batch[i].id}
		if x.err != nil {
			if x.blocks { // else it is for Scrub to name
				run.left, run.lastErr = run.left+1, x.err
				r.bad.failed(k, x.what, x.err)
			}
			r.warner.warn("chunk not resynchronised yet", "what", x.what, "pg", run.pg.ID, "err", x.err)
			continue
		}
		r.bad.clear(k)
		done++
		if x.rebuilt {
			r.mu.Lock()
			r.mu.status.Rebuilt++
			r.mu.Unlock()
		}
	}
	return done, nil
}

// fill makes what the drives lack of a chunk.
func (r *Resync) fill(ctx context.Context, run *resyncRun, c *chunk) (f filled) {
	f.what = "chunk " + c.id.String()
	stripes := c.stripes()
	lacking, err := r.lacking(ctx, run, c, stripes)
	if err != nil || len(lacking) == 0 {
		return filled{f.what, false, true, err}
	}
	f.blocks = slices.ContainsFunc(lacking, func(i int) bool { return slices.Contains(run.slots, i) })
	h, err := c.header(ctx, run.pg.ID, run.targets)
	if err != nil {
		h, err = c.header(ctx, run.pg.ID, nil)
	}
	if errs.Is(err, errs.Gone) || errs.Is(err, errs.NotFound) {
		f.err = r.stillListed(ctx, run, c, err)
		return f
	}
	if err != nil {
		f.err = err
		return f
	}
	f.what = chunkName(h.Owner, c.id)
	ref := refOf(&h, run.pg.Epoch)
	if h.Layout.Length == 0 || stripesOf(ref) != stripes || !c.enough(stripes, int(run.pg.Scheme.K)) {
		if ref, err = r.cfg.Refers.Ref(ctx, h.Owner, c.id); err != nil {
			f.err = err
			return f
		}
		if ref == nil {
			// A write under way, or one that never committed: nothing is owed. Its writer
			// says in its commit what is missing, and Rows repairs it.
			return f
		}
		if lacking, f.err = r.lacking(ctx, run, c, stripesOf(ref)); f.err != nil || len(lacking) == 0 {
			return f
		}
		f.blocks = slices.ContainsFunc(lacking, func(i int) bool { return slices.Contains(run.slots, i) })
	}
	err = r.cfg.Plane.Rebuild(ctx, h.Owner, ref, lacking)
	if err == nil || errs.Is(err, errs.Gone) {
		f.rebuilt = err == nil
		return f
	}
	// Nothing is owed of what nobody refers to.
	refers, _, rerr := r.cfg.Refers.Refers(ctx, h.Owner, c.id)
	if rerr != nil {
		f.err = rerr
	} else if refers {
		f.err = err
	}
	return f
}

// stillListed tells a chunk that was removed since its page was read, which is
// fine, from one whose headers cannot be read.
func (r *Resync) stillListed(ctx context.Context, run *resyncRun, c *chunk, err error) error {
	for _, s := range c.shards {
		still := false
		lerr := s.src.store.List(ctx, run.pg.ID, c.id, func(i storage.ShardInfo) bool {
			still = i.ID.Chunk == c.id
			return false
		})
		if lerr != nil {
			return lerr
		}
		if still {
			return err
		}
	}
	return nil
}

// writeTimeMax is how long a write may take to reach all its drives, for the purpose of not repairing it meanwhile.
const writeTimeMax = 10 * time.Minute

// lacking are the slots whose drive, one of those counted on, does not have the
// slot's shard of every stripe.
func (r *Resync) lacking(ctx context.Context, run *resyncRun, c *chunk, stripes int) (out []int, err error) {
	settled := r.cfg.Now().UnixMilli()-c.id.BirthMS() > writeTimeMax.Milliseconds()
	for i, drive := range run.pg.Drives {
		at := slices.IndexFunc(run.srcs, func(s *source) bool { return s.drive == drive && s.err == nil })
		dirty := slices.Contains(run.slots, i)
		if at < 0 || !dirty && !settled {
			continue
		}
		lacks := false
		for stripe, bits := range c.found(stripes, &drive) {
			if lacks = bits&(1<<i) == 0; lacks {
				break
			}
			if !dirty {
				continue
			}
			id := storage.ShardID{PG: run.pg.ID, Chunk: c.id, Stripe: uint16(stripe), Index: uint8(i)}
			switch err := probe(ctx, run.srcs[at].store, id); {
			case err == nil:
			case errs.Is(err, errs.Gone):
				return nil, nil
			case errs.Is(err, errs.Corrupt), errs.Is(err, errs.NotFound):
				lacks = true
			default:
				return nil, err
			}
			if lacks {
				break
			}
		}
		if lacks {
			out = append(out, i)
		}
	}
	return out, nil
}

// probe reads the first block of a shard.
func probe(ctx context.Context, s storage.ShardStore, id storage.ShardID) error {
	var b [1]byte
	return s.ReadAt(ctx, id, 0, b[:])
}

// end clears the slots of a pass that left nothing over.
func (r *Resync) end(ctx context.Context, t *cluster.Topology, run *resyncRun) error {
	if run.left > 0 {
		return errs.Newf(errs.KindOf(run.lastErr), "resync", "", "%d chunks are left over, the last because: %v", run.left, run.lastErr)
	}
	for _, i := range run.slots {
		err := r.cfg.Slots.ClearDirty(ctx, run.pg.ID, i, run.pg.Epoch)
		if errs.Is(err, errs.Conflict) {
			r.pass(t, run) // the group changed: its next pass begins from the new table, once that is here
			return nil
		}
		if err != nil {
			return err
		}
		r.cfg.Logger.Debug("slot filled and verified", "pg", run.pg.ID, "index", i, "drive", run.pg.Drives[i].Short())
		r.mu.Lock()
		r.mu.status.SlotsFilled++
		r.mu.Unlock()
	}
	r.pass(t, run)
	r.off.clear(keyOf(&run.pg))
	r.bad.prune(func(k chunkKey) bool { return k.pg != run.pg.ID })
	return nil
}

// pass leaves the group alone until there is a newer topology than t.
func (r *Resync) pass(t *cluster.Topology, run *resyncRun) {
	if r.cfg.Slots.Topology().Version == t.Version {
		r.passed[run.pg.ID] = t.Version
	}
}
