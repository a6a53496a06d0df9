// Package garbage gives space back: it removes from the drives the chunks that
// committed commands deleted, and it is the only part of cairn that does so for
// rows (orphans apart, see storage/repair).
//
// Nothing is deleted by a guess. A chunk goes only if a garbage row names it, and
// garbage rows are written by nothing but the commands that deleted the chunk's
// last reference. The order for every row is
//
//	read the row linearizably -> no read in progress holds its write
//	  -> every drive of its placement group recorded the removal, durably
//	  -> drop the row by a command
//
// and every step may be repeated: a crash between any two leaves the row, and the
// next collector, here or on another node, starts over with it. Drives answer a
// repeated removal like the first.
//
// A row whose placement group has a drive that does not answer stays. New rows of
// such a group are sent to the drives that do answer once, so that space comes
// back there; then the group is left alone for a back-off that doubles up to BlockMax.
//
// Deleting a multipart object or aborting an upload writes one doomed row, which
// the collector expands into garbage rows in bounded commands, under the same
// rule about readers: they read part rows as they go.
package garbage

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// ID orders the garbage rows of a range; a row never appears below one that was
// read before, as the range's sequence only rises. The zero ID is before all.
type ID struct {
	Seq storage.Seq
	N   uint32
}

// Compare orders ids.
func (a ID) Compare(b ID) int {
	switch {
	case a.Seq != b.Seq && a.Seq < b.Seq, a.Seq == b.Seq && a.N < b.N:
		return -1
	case a == b:
		return 0
	}
	return 1
}

// Row is a garbage row.
type Row struct {
	ID  ID
	Row *metapb.GarbageRow // read-only
}

// DoomedID names a doomed row.
type DoomedID struct {
	Bucket storage.BucketID
	Key    storage.Key
	Seq    storage.Seq
}

// Doomed is a doomed row: an upload to be expanded into garbage.
type Doomed struct {
	ID  DoomedID
	Row *metapb.DoomedRow // read-only
}

// Meta is the metadata plane as the collector sees it. All methods are about one
// range, name it by its group, and answer errors of package errs; every one may be repeated.
type Meta interface {
	// Ranges are the ranges this node is to work for: those whose leader is here.
	// Two nodes working for one range is harmless.
	Ranges() []cluster.GroupID
	// Garbage reads, linearizably, at most rowsMax garbage rows above after, in order.
	Garbage(ctx context.Context, g cluster.GroupID, after ID, rowsMax int) ([]Row, error)
	// DropGarbage drops at most 1000 rows whose chunks every drive has removed; rows that are not there are skipped.
	DropGarbage(ctx context.Context, g cluster.GroupID, ids []ID) error
	// Doomed reads, linearizably, at most rowsMax doomed rows.
	Doomed(ctx context.Context, g cluster.GroupID, rowsMax int) ([]Doomed, error)
	// ExpandDoomed turns up to rowsMax part rows of the doomed rows named (at most
	// 1000), and of no others, into garbage rows. more: some of them are not done.
	ExpandDoomed(ctx context.Context, g cluster.GroupID, only []DoomedID, rowsMax int) (more bool, err error)
	// Sweep looks at up to rowsMax outcome and completed-upload rows and drops those
	// that are past their time. more: the round over all of them is not at its end.
	// Being a command it also lets range time pass in a range that nobody writes to.
	Sweep(ctx context.Context, g cluster.GroupID, rowsMax int) (more bool, err error)
}

// Plane is the data plane as the collector sees it: chunkio.Plane.
type Plane interface {
	// Remove makes every drive of the chunks' placement groups, present and previous,
	// record that the chunks are removed. done: all of them did, durably, apart from
	// drives that the system group removed for good. It may be repeated.
	Remove(ctx context.Context, refs []*metapb.ChunkRef) (done bool, err error)
}

// Pins tells which writes are being read, on every gateway; pins.Registry is one gateway's.
type Pins interface {
	// Quiesce waits for the reads that began before the call to name their writes and
	// answers whether a write is held by one of them; see package pins. On an error nothing may be removed.
	Quiesce(ctx context.Context) (held func(storage.WriteID) bool, err error)
}

// Config of a Collector. Meta, Plane and Pins are required; zeros are replaced by the defaults named.
type Config struct {
	Meta   Meta
	Plane  Plane
	Pins   Pins
	Logger *slog.Logger // nil: no log

	PageRows       int           // garbage rows read at once; default 1000, at most that
	RemoveChunks   int           // chunks in one removal, about; default 4096
	ExpandRows     int           // part rows expanded in one command; default 1000
	SweepRows      int           // rows looked at by one sweep command; default 2000
	SweepEvery     time.Duration // between rounds of sweeping; default 1 min
	QuiesceTimeout time.Duration // for reads in progress to name their writes; default 30 s
	PinRetry       time.Duration // before rows held by readers are looked at again, at least; default 2 s
	BlockMin       time.Duration // first wait for a placement group whose drives did not all answer; default 1 s
	BlockMax       time.Duration // the longest; default 5 min
}

const dropRowsMax = 1000 // rows in one DropGarbage or ExpandDoomed command (design rule 11)

func (c *Config) setDefaults() {
	def := func(v *int, d, most int) {
		if *v <= 0 || *v > most {
			*v = d
		}
	}
	def(&c.PageRows, dropRowsMax, dropRowsMax)
	def(&c.RemoveChunks, 4096, 1<<16)
	def(&c.ExpandRows, 1000, 2000)
	def(&c.SweepRows, 2000, 2000)
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&c.SweepEvery, time.Minute}, {&c.QuiesceTimeout, 30 * time.Second}, {&c.PinRetry, 2 * time.Second},
		{&c.BlockMin, time.Second}, {&c.BlockMax, 5 * time.Minute},
	} {
		if *d.v <= 0 {
			*d.v = d.d
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Collector is the garbage worker: run Step by a worker.Runner with an interval of a
// few seconds, and wake it after deletes. Step is not for concurrent use; Stats is.
type Collector struct {
	cfg    Config
	ranges map[cluster.GroupID]*rangeState
	next   int // range that the next step begins with
	blocks blocks
	mu     struct {
		sync.Mutex
		stats Stats
	}
}

// Stats are what status shows. Counts are since the start unless said otherwise.
type Stats struct {
	RowsDropped   int64
	ChunksRemoved int64
	UploadsHeld   int // at the latest look: doomed uploads that readers hold
	RowsHeld      int // at the latest full look: rows that readers hold
	RowsBlocked   int // at the latest full look: rows with drives that did not acknowledge
	RowsBad       int // at the latest full look: rows that cannot be read; never dropped
	Blocked       []Blocked
}

// rangeState is what the collector remembers of a range: nothing that it could not lose.
type rangeState struct {
	frontier  ID            // rows up to here were seen by the collector
	cursor    ID            // rows up to here were seen in this round; equals frontier once the round has caught up
	revisit   time.Time     // when to begin a round at the start again; zero: no row was left behind
	kept      kept          // of this round
	spent     time.Duration // on this round
	unblocked uint64        // blocks.generation at the start of this round
	sweepAt   time.Time
}

// kept counts the rows that a round left where they are.
type kept struct{ held, blocked, bad int }

// revisitShare is how much of its time the collector spends at most on looking again at rows left behind: one part in so many.
const revisitShare = 20

// New makes a collector.
func New(cfg Config) *Collector {
	cfg.setDefaults()
	return &Collector{
		cfg: cfg, ranges: make(map[cluster.GroupID]*rangeState),
		blocks: blocks{min: cfg.BlockMin, max: cfg.BlockMax, m: make(map[storage.PGID]*block)},
	}
}

// Name of the worker.
func (c *Collector) Name() string { return "garbage" }

// Left is the number of rows known to wait.
func (c *Collector) Left() (int64, bool) {
	s := c.Stats()
	return int64(s.RowsHeld + s.RowsBlocked), true
}

// Stats of the collector now.
func (c *Collector) Stats() Stats {
	c.mu.Lock()
	s := c.mu.stats
	c.mu.Unlock()
	s.Blocked = c.blocks.list()
	return s
}

// Unblock forgets the back-offs of placement groups: call it when a drive came back or was removed for good.
func (c *Collector) Unblock() { c.blocks.expire() }

// Step collects a page of garbage of every range. A range that fails does not
// keep the others from being served.
func (c *Collector) Step(ctx context.Context) (done int64, more bool, err error) {
	groups := c.cfg.Meta.Ranges()
	for g := range c.ranges {
		if !slices.Contains(groups, g) {
			delete(c.ranges, g)
		}
	}
	var failed []error
	for i := range groups {
		g := groups[(i+c.next)%len(groups)]
		rs := c.ranges[g]
		if rs == nil {
			rs = &rangeState{}
			c.ranges[g] = rs
		}
		n, m, err := c.stepRange(ctx, g, rs)
		done, more = done+n, more || m
		if ctx.Err() != nil {
			return done, more, ctx.Err()
		}
		if err != nil {
			failed = append(failed, errs.Wrap(errs.KindOf(err), "garbage", "", err))
		}
	}
	c.next++
	c.publish()
	return done, more, errors.Join(failed...)
}

// publish sums what rounds kept into the stats.
func (c *Collector) publish() {
	var sum kept
	for _, rs := range c.ranges {
		sum.held += rs.kept.held
		sum.blocked += rs.kept.blocked
		sum.bad += rs.kept.bad
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.stats.RowsHeld, c.mu.stats.RowsBlocked, c.mu.stats.RowsBad = sum.held, sum.blocked, sum.bad
}

func (c *Collector) stepRange(ctx context.Context, g cluster.GroupID, rs *rangeState) (done int64, more bool, err error) {
	now := time.Now()
	if gen := c.blocks.generation(); !rs.revisit.IsZero() && (!now.Before(rs.revisit) || gen != rs.unblocked) {
		rs.cursor, rs.revisit, rs.kept, rs.spent, rs.unblocked = ID{}, time.Time{}, kept{}, 0, gen
	}
	defer func() { rs.spent += time.Since(now) }()
	doomed, err := c.cfg.Meta.Doomed(ctx, g, dropRowsMax)
	if err != nil {
		return 0, false, err
	}
	rows, err := c.cfg.Meta.Garbage(ctx, g, rs.cursor, c.cfg.PageRows)
	if err != nil {
		return 0, false, err
	}
	if len(doomed)+len(rows) > 0 {
		// One look at the readers serves both: both were read before it.
		held, err := c.quiesce(ctx)
		if err != nil {
			return 0, false, err
		}
		n, m, err := c.expand(ctx, g, doomed, held)
		done, more = done+n, more || m
		if err != nil {
			return done, false, err
		}
		n, err = c.collect(ctx, g, rs, rows, held)
		done += n
		if err != nil {
			return done, false, err
		}
	} else {
		c.setUploadsHeld(0)
	}
	more = more || len(rows) == c.cfg.PageRows
	if len(rows) < c.cfg.PageRows {
		c.endRound(rs)
	}
	if !now.Before(rs.sweepAt) {
		m, err := c.cfg.Meta.Sweep(ctx, g, c.cfg.SweepRows)
		if err != nil {
			return done, false, err
		}
		if !m {
			rs.sweepAt = now.Add(c.cfg.SweepEvery)
		}
		more = more || m
	}
	return done, more, nil
}

func (c *Collector) quiesce(ctx context.Context) (func(storage.WriteID) bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.QuiesceTimeout)
	defer cancel()
	return c.cfg.Pins.Quiesce(ctx)
}

// endRound decides when the rows left behind are looked at again.
func (c *Collector) endRound(rs *rangeState) {
	now := time.Now()
	soonest := now.Add(revisitShare * rs.spent)
	plan := func(at time.Time) {
		if at.Before(soonest) {
			at = soonest
		}
		if rs.revisit.IsZero() || at.Before(rs.revisit) {
			rs.revisit = at
		}
	}
	if rs.kept.held > 0 {
		plan(now.Add(c.cfg.PinRetry))
	}
	if rs.kept.blocked > 0 {
		plan(c.blocks.earliest())
	}
}

// expand turns doomed uploads that nobody reads into garbage.
func (c *Collector) expand(ctx context.Context, g cluster.GroupID, doomed []Doomed, held func(storage.WriteID) bool) (int64, bool, error) {
	var only []DoomedID
	for _, d := range doomed {
		if w, ok := writeID(d.Row.GetPinWrite()); ok && held(w) {
			continue
		}
		only = append(only, d.ID)
	}
	c.setUploadsHeld(len(doomed) - len(only))
	if len(only) == 0 {
		return 0, false, nil
	}
	if _, err := c.cfg.Meta.ExpandDoomed(ctx, g, only, c.cfg.ExpandRows); err != nil {
		return 0, false, err
	}
	return 1, true, nil // there is garbage to collect now, if not more to expand
}

func (c *Collector) setUploadsHeld(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.stats.UploadsHeld = n
}

// writeID is false for a row that names no write: nobody can hold it.
func writeID(b []byte) (w storage.WriteID, ok bool) {
	if len(b) != len(w) {
		return w, false
	}
	copy(w[:], b)
	return w, !w.IsZero()
}
