package repair

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// ScrubConfig of a Scrub. Topology, Stores, Local, Plane and Refers are required; zeros are replaced by the defaults named.
type ScrubConfig struct {
	Topology  func() *cluster.Topology
	Stores    Stores
	Local     func(storage.DriveID) bool // drives of this node: their frames are read here
	Plane     Plane
	Refers    Referrer
	Progress  Progress // nil: a restart begins a new pass
	Logger    *slog.Logger
	Now       func() time.Time // wall clock, to guess ages before a range is asked; default time.Now
	PassEvery time.Duration    // from the end of a pass to the next; default ScrubPassEvery
	StepBytes int64            // after which a step ends, about; default 4 MiB
	PageMax   int              // list entries of a drive held in memory; default 4096
	StuckMax  int              // chunks remembered that are damaged; default 1000
}

// Scrub is the worker that slowly reads every shard of this node's drives, so that
// rot is found while there is redundancy to mend it. It also finds shards that no
// drive lists any more (a frame skipped in recovery), and orphans. Units of its
// steps are bytes, plus a little for each shard: limit it to ScrubRate by the runner.
//
// # Orphans
//
// A shard is an orphan if no row names its chunk: its writer died before the
// commit, or its drive was away when the chunk was removed. It is removed only if
// all of this holds, and otherwise never:
//
//   - its chunk was born more than storage.OrphanAge ago in the range's own time. A
//     command that names a chunk older than half of that is refused (design rule 15), so
//     nobody can come to refer to it later;
//   - the range of its owner's key, read linearizably, names it nowhere, garbage
//     rows included;
//   - the frames on all drives that list the chunk agree on who the owner is.
type Scrub struct {
	cfg   ScrubConfig
	state progress
	saved time.Time
	pos   *scrubPos
	buf   []byte
	bad   *stuck[chunkKey]
	mu    struct {
		sync.Mutex
		stats ScrubStats
	}
}

// ScrubStats are for status pages. Counts are since the start.
type ScrubStats struct {
	Bytes, Shards, Chunks int64
	BadShards             int64 // corrupt, or listed but not there
	MissingShards         int64 // of chunks that rows name, listed by no drive
	Healed                int64 // of both
	OrphansRemoved        int64 // chunks
	Passes                int64
	PGsDone, PGs          int       // of the pass under way
	PassStarted           time.Time // of the pass under way; zero between passes
	PassEnded             time.Time // of the latest one; zero if none did
}

// scrubPos is where a pass is inside a placement group.
type scrubPos struct {
	pg   cluster.PG
	srcs []*source
	page []chunk
	next storage.ChunkID
	last bool
}

// ScrubPassEvery is how long a pass may take, and the time from its end to the next one: every shard is read once in two of it.
const ScrubPassEvery = 14 * 24 * time.Hour

// scrubRateMin lets little data be read in much less time than that.
const scrubRateMin = 2 << 20

// ScrubRate is the units a second at which a pass over so many shards, of so many
// bytes in all, takes no longer than every. How much of that there is room for beside clients is the runner's to say.
func ScrubRate(bytes, shards int64, every time.Duration) float64 {
	return max(scrubRateMin, float64(bytes+shards*scrubShardCost)/every.Seconds())
}

// scrubShardCost is charged for each shard on top of its bytes: looking it up costs about as much as reading so many.
const scrubShardCost = 8 << 10

// scrubPiece is how much of a shard is read at once.
const scrubPiece = 1 << 20

// NewScrub makes the worker.
func NewScrub(cfg ScrubConfig) *Scrub {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Logger = defLog(cfg.Logger)
	cfg.PassEvery = defDur(cfg.PassEvery, ScrubPassEvery)
	cfg.StepBytes = int64(defInt(int(cfg.StepBytes), 4<<20))
	cfg.PageMax = defInt(cfg.PageMax, 4096)
	cfg.StuckMax = defInt(cfg.StuckMax, 1000)
	s := &Scrub{cfg: cfg, buf: make([]byte, scrubPiece), bad: newStuck[chunkKey](cfg.StuckMax, time.Minute, time.Minute)}
	s.state = loadProgress(cfg.Progress, cfg.Logger)
	s.mu.stats.PassEnded = msTime(s.state.PassEndedMS)
	s.mu.stats.PassStarted = msTime(s.state.PassStartedMS)
	return s
}

func msTime(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// Name of the worker.
func (s *Scrub) Name() string { return "scrub" }

// Stats now.
func (s *Scrub) Stats() ScrubStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.stats
}

// Problems are damaged chunks that could not be healed, longest first.
func (s *Scrub) Problems() []Problem { return s.bad.list() }

// Step verifies a few megabytes.
func (s *Scrub) Step(ctx context.Context) (done int64, more bool, err error) {
	now := s.cfg.Now()
	if s.state.PassStartedMS == 0 {
		if s.state.PassEndedMS != 0 && now.Sub(msTime(s.state.PassEndedMS)) < s.cfg.PassEvery {
			return 0, false, nil
		}
		s.state = progress{PassStartedMS: now.UnixMilli(), PassEndedMS: s.state.PassEndedMS}
		s.publish()
	}
	for done < s.cfg.StepBytes {
		if s.pos == nil && !s.nextPG() {
			s.state = progress{PassEndedMS: s.cfg.Now().UnixMilli()}
			s.publish()
			return done, false, s.save(true)
		}
		if len(s.pos.page) == 0 {
			if s.pos.last {
				s.pos, s.state.PG, s.state.Chunk = nil, s.state.PG+1, storage.ChunkID{}
				if err := s.save(false); err != nil {
					return done, false, err
				}
				continue
			}
			if err := s.nextPage(ctx); err != nil {
				return done, false, err
			}
			continue
		}
		c := &s.pos.page[0]
		n, err := s.check(ctx, c)
		done += n
		if ctx.Err() != nil {
			return done, false, ctx.Err()
		}
		s.note(c, err)
		s.pos.page = s.pos.page[1:]
		if s.state.Chunk = s.pos.next; len(s.pos.page) > 0 {
			s.state.Chunk = s.pos.page[0].id
		}
		if err := s.save(false); err != nil {
			return done, false, err
		}
	}
	return done, true, nil
}

// publish shows the state of the pass.
func (s *Scrub) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.PassStartedMS == 0 && !s.mu.stats.PassStarted.IsZero() {
		s.mu.stats.Passes++
	}
	s.mu.stats.PassStarted, s.mu.stats.PassEnded = msTime(s.state.PassStartedMS), msTime(s.state.PassEndedMS)
}

// nextPG goes to the first group not below the state's that a drive of this node is in.
func (s *Scrub) nextPG() bool {
	t := s.cfg.Topology()
	var ids []storage.PGID
	for id, pg := range t.PGs {
		if slices.ContainsFunc(slices.Concat(pg.Drives, pg.Previous), s.cfg.Local) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	i, _ := slices.BinarySearch(ids, s.state.PG)
	s.mu.Lock()
	s.mu.stats.PGsDone, s.mu.stats.PGs = i, len(ids)
	s.mu.Unlock()
	if i == len(ids) {
		return false
	}
	if ids[i] != s.state.PG {
		s.state.PG, s.state.Chunk = ids[i], storage.ChunkID{}
	}
	pg := t.PGs[ids[i]]
	s.pos = &scrubPos{pg: pg, srcs: sources(t, &pg, s.cfg.Stores), next: s.state.Chunk}
	return true
}

func (s *Scrub) nextPage(ctx context.Context) (err error) {
	p := s.pos
	// The table may have changed since the pass entered the group.
	t := s.cfg.Topology()
	pg, ok := t.PGs[p.pg.ID]
	if !ok {
		p.last, p.page = true, nil
		return nil
	}
	p.pg, p.srcs = pg, sources(t, &pg, s.cfg.Stores)
	p.page, p.next, p.last, err = page(ctx, pg.ID, p.srcs, p.next, s.cfg.PageMax)
	return err
}

func (s *Scrub) note(c *chunk, err error) {
	s.mu.Lock()
	s.mu.stats.Chunks++
	s.mu.Unlock()
	k := chunkKey{s.pos.pg.ID, c.id}
	if err == nil {
		s.bad.clear(k)
		return
	}
	s.bad.failed(k, "chunk "+c.id.String(), err)
	s.cfg.Logger.Error("scrub: damaged chunk", "chunk", c.id, "pg", k.pg, "err", err)
}

// check verifies this node's shards of a chunk, has the bad ones and those missing
// rebuilt, and removes the chunk if it is an orphan. An error is about this chunk only, unless ctx ended.
func (s *Scrub) check(ctx context.Context, c *chunk) (cost int64, err error) {
	p := s.pos
	var bad uint64
	for _, sh := range c.shards {
		if !s.cfg.Local(sh.src.drive) {
			continue
		}
		n, err := s.read(ctx, sh, storage.ShardID{PG: p.pg.ID, Chunk: c.id, Stripe: sh.stripe, Index: sh.index})
		cost += n + scrubShardCost
		switch k := errs.KindOf(err); {
		case err == nil:
		case ctx.Err() != nil:
			return cost, ctx.Err()
		case k == errs.Gone:
			return cost, nil
		case (k == errs.Corrupt || k == errs.NotFound) && int(sh.index) < len(p.pg.Drives) && p.pg.Drives[sh.index] == sh.src.drive:
			bad |= 1 << sh.index
			s.add(func(st *ScrubStats) { st.BadShards++ })
		}
	}
	missing := s.missing(c, c.stripes())
	age := time.Duration(s.cfg.Now().UnixMilli()-c.id.BirthMS()) * time.Millisecond
	old := age > storage.OrphanAge && s.responsible(c)
	if bad|missing == 0 && !old {
		return cost, nil
	}
	h, err := c.header(ctx, p.pg.ID, nil)
	if err != nil {
		return cost, err
	}
	if bad|missing != 0 {
		ref, err := s.cfg.Refers.Ref(ctx, h.Owner, c.id)
		if err != nil {
			return cost, err
		}
		if ref != nil {
			return cost, s.heal(ctx, c, &h, ref, bad)
		}
	}
	if !old {
		return cost, nil
	}
	refers, timeMS, err := s.cfg.Refers.Refers(ctx, h.Owner, c.id)
	if err != nil || refers {
		return cost, err
	}
	return cost, s.orphan(ctx, c, &h, timeMS)
}

// heal rebuilds the bad shards of a chunk that a row names, and those that are missing as far as the row goes.
func (s *Scrub) heal(ctx context.Context, c *chunk, h *storage.ShardHeader, ref *metapb.ChunkRef, bad uint64) error {
	missing := s.missing(c, stripesOf(ref)) &^ bad
	s.add(func(st *ScrubStats) { st.MissingShards += int64(len(indexesOf(missing))) })
	indexes := indexesOf(bad | missing)
	if len(indexes) == 0 {
		return nil
	}
	err := s.cfg.Plane.Rebuild(ctx, h.Owner, ref, indexes)
	if errs.Is(err, errs.Gone) {
		return nil
	}
	if err != nil {
		return errs.Wrap(errs.KindOf(err), "scrub", fmt.Sprintf("%s shards %v", chunkName(h.Owner, c.id), indexes), err)
	}
	s.add(func(st *ScrubStats) { st.Healed += int64(len(indexes)) })
	s.cfg.Logger.Info("scrub: healed", "what", chunkName(h.Owner, c.id), "shards", indexes)
	return nil
}

func (s *Scrub) add(fn func(*ScrubStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(&s.mu.stats)
}

// read reads a whole shard, which verifies its checksums.
func (s *Scrub) read(ctx context.Context, sh shard, id storage.ShardID) (n int64, err error) {
	read := sh.src.store.ReadAt
	if m, ok := sh.src.store.(storage.MediumReader); ok {
		read = m.ReadMedium
	}
	for off := 0; off < sh.bytes; off += scrubPiece {
		p := s.buf[:min(scrubPiece, sh.bytes-off)]
		if err := read(ctx, id, off, p); err != nil {
			return n, err
		}
		n += int64(len(p))
	}
	s.add(func(st *ScrubStats) { st.Bytes += n; st.Shards++ })
	return n, nil
}

// missing are the slots in sync whose drive is this node's, answers, and does not
// list the slot's shard of all these stripes. Of a chunk that may be being written
// right now nothing is missing.
func (s *Scrub) missing(c *chunk, stripes int) (bits uint64) {
	if s.cfg.Now().UnixMilli()-c.id.BirthMS() <= writeTimeMax.Milliseconds() {
		return 0
	}
	for i, drive := range s.pos.pg.Drives {
		counted := slices.ContainsFunc(s.pos.srcs, func(x *source) bool { return x.drive == drive && x.err == nil })
		dirty := i < len(s.pos.pg.DirtySince) && s.pos.pg.DirtySince[i] != 0
		if !counted || dirty || !s.cfg.Local(drive) {
			continue // dirty slots are Resync's
		}
		for _, have := range c.found(stripes, &drive) {
			if have&(1<<i) == 0 {
				bits |= 1 << i
			}
		}
	}
	return bits
}

// responsible reports whether this node is the one to ask about the chunk: the
// first drive in the group's order that lists it is here. That spares the ranges k+m times the questions.
func (s *Scrub) responsible(c *chunk) bool {
	for _, src := range s.pos.srcs {
		if slices.ContainsFunc(c.shards, func(sh shard) bool { return sh.src == src }) {
			return s.cfg.Local(src.drive)
		}
	}
	return false
}

// orphan removes a chunk that its owner's range, at timeMS, does not name, if it is old enough.
func (s *Scrub) orphan(ctx context.Context, c *chunk, h *storage.ShardHeader, timeMS int64) error {
	if timeMS-c.id.BirthMS() <= storage.OrphanAge.Milliseconds() {
		return nil
	}
	for _, src := range s.pos.srcs {
		i := slices.IndexFunc(c.shards, func(sh shard) bool { return sh.src == src })
		if i < 0 {
			continue
		}
		id := storage.ShardID{PG: s.pos.pg.ID, Chunk: c.id, Stripe: c.shards[i].stripe, Index: c.shards[i].index}
		o, err := headerOf(ctx, src.store, id)
		if errs.Is(err, errs.Gone) {
			continue
		}
		if err != nil {
			return errs.Wrap(errs.KindOf(err), "scrub", "orphan "+chunkName(h.Owner, c.id), err)
		}
		if o.Owner != h.Owner {
			return errs.Newf(errs.Corrupt, "scrub", chunkName(h.Owner, c.id),
				"drive %s says that it belongs to %s; nothing is removed", src.drive.Short(), chunkName(o.Owner, c.id))
		}
	}
	// Drives that are down now keep their shards; they are found again when they are back.
	_, err := s.cfg.Plane.Remove(ctx, []*metapb.ChunkRef{refOf(h, s.pos.pg.Epoch)})
	if err != nil && errs.KindOf(err) != errs.DriveFailed {
		return errs.Wrap(errs.KindOf(err), "scrub", "orphan "+chunkName(h.Owner, c.id), err)
	}
	s.add(func(st *ScrubStats) { st.OrphansRemoved++ })
	s.cfg.Logger.Info("scrub: orphan removed", "what", chunkName(h.Owner, c.id), "born", msTime(c.id.BirthMS()))
	return nil
}
