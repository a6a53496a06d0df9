// Package verify is an independent proof that what the store says it holds is
// there: from the drives up, that every frame is whole and somebody's; from the
// metadata down, that every version, part and upload has every shard of every
// stripe of every chunk, on the right drive, whole, and owned by the right write;
// that the placement groups keep the zone rule; and that the replicas of every
// range agree. It reads the extents, not the drives' indexes, and changes nothing.
//
// # How
//
//  1. Every row of every range is walked in one consistent view each; what chunks
//     it names and what parts it promises goes to a scratch store.
//  2. Every live frame of every drive is read, all its checksums verified; where
//     which shard lies and whose it is is noted.
//  3. The notes are sorted by chunk and compared.
//  4. The placement groups are audited, the replicas compared.
//  5. With Deep, bytes are read back, too: ETags are computed again, and parity from data.
//
// # Beside a running server
//
// Steps 1 and 2 don't see the same moment. So nothing is reported that was not
// looked at again: a suspicious chunk's row is read linearizably, and the shards in
// question are read from their drives. A version that was deleted or rewritten
// meanwhile, or a shard that was repaired or moved, is fine. A chunk that no row
// names is asked for in its owner's range, and is "young" while it may belong to a
// write that was not committed yet or died recently: scrub removes
// such as orphans, when it comes by and they are older than storage.OrphanAge.
//
// # Cost
//
// Every byte on the drives is read once (twice and more with Deep). Memory is
// bounded: SortBytes and about a quarter more for chunks, as much for uploads and, with Deep, for
// contents, and some 10 MiB to merge what did not fit; by default about 100 MiB, with Deep 140. Scratch
// data takes some 150 bytes for each shard in TempDir, and up to 64 times SortBytes more while it is merged.
package verify

import (
	"context"
	"fmt"
	"sync"
	"time"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
)

// Meta is the metadata plane as the checker sees it.
type Meta interface {
	// Ranges are all ranges.
	Ranges() []cluster.GroupID
	// Walk calls fn for every row of the range, in one consistent view that holds all
	// that was committed before the call: rangestate.View.Walk on a snapshot. timeMS is
	// the range time of the view. An error of fn ends the walk and is answered.
	Walk(ctx context.Context, g cluster.GroupID, fn func(*rangestate.Item) error) (timeMS int64, err error)
	// Ref reads, linearizably, the reference by which a version or part of the owner's key
	// names the chunk; nil if none does.
	Ref(ctx context.Context, owner storage.Owner, chunk storage.ChunkID) (*metapb.ChunkRef, error)
	// Refers is Ref, but counts garbage rows, too, and tells the range time.
	Refers(ctx context.Context, owner storage.Owner, chunk storage.ChunkID) (refers bool, timeMS int64, err error)
	// Replicas answers, for every group (the system group, too), what each of its
	// replicas holds: a hash over all its rows, at an applied index that is the same
	// for as many replicas as possible.
	Replicas(ctx context.Context) ([]Replica, error)
}

// Replica is one replica's content.
type Replica struct {
	Group   cluster.GroupID
	Drive   storage.DriveID
	Voter   bool
	Applied uint64 // index at which Hash was taken
	Hash    []byte
	Err     error // it cannot be read
}

// Frame is a live frame as it lies in an extent, or a range that is damaged. What a
// crash left of writes that were never acknowledged is neither.
type Frame struct {
	Header storage.ShardHeader // zero: a range where there is no frame, for the reason in Err
	Bytes  int                 // of the shard
	Where  string              // extent and offset, for people
	Err    error               // a checksum does not match, or the range is damaged
}

// Drive is a drive whose frames can be read.
type Drive struct {
	ID   storage.DriveID
	Path string // for people
	// Scan calls fn for every live frame, read from the extents and verified, and every damaged range. An error of fn ends the scan.
	Scan func(ctx context.Context, fn func(Frame) error) error
	// Store reads single shards again; it should be a storage.HeaderReader. Nil if
	// nothing can have changed since the scan (stopped folders).
	Store storage.ShardStore
}

// Config of a run. Topology, Meta and Drives are required.
type Config struct {
	Topology func() *cluster.Topology
	// Empty reports whether a placement group certainly holds no shard: one that a grown store
	// does not use any more. nil: none is.
	Empty      func(*cluster.PG) bool
	Meta       Meta
	Drives     []Drive
	TempDir    string                        // where a folder for scratch data is made, and removed afterwards; "" is the system's
	SortBytes  int                           // memory for sorting, used twice, with Deep three times; default 32 MiB
	BucketName func(storage.BucketID) string // for people; nil: numbers
	Grace      time.Duration                 // how old a chunk that no row names may be; default storage.OrphanAge and an hour
	Now        func() time.Time              // default time.Now
	Parallel   int                           // drives read at once; default 4
	Progress   func(status.Progress)         // called now and then, never concurrently; nil: not at all

	// Deep also computes ETags and parity again, with Read (compress.Plane.Read through a writer).
	Deep bool
	Read func(ctx context.Context, owner storage.Owner, refs []*metapb.ChunkRef, off, n int64, write func([]byte) error) error

	// OnBad is told of every shard that was found missing or corrupt, so that a running
	// server mends it; nil: nobody is told.
	OnBad func(owner storage.Owner, ref *metapb.ChunkRef, stripe, index int, drive storage.DriveID, err error)
}

// Kinds of problems.
const (
	KindLost         = "data lost"           // fewer than k shards of a stripe are left
	KindMissing      = "shard missing"       // and nothing is going to bring it back by itself but scrub
	KindCorrupt      = "shard corrupt"       //
	KindRepairing    = "awaiting repair"     // shards are missing, and a repair row or dirty slot says so
	KindWrongDrive   = "shard misplaced"     // on a drive where its placement group does not have it
	KindZone         = "zone rule"           // a placement group does not survive what it should
	KindOwner        = "wrong owner"         // frame and row disagree on whose the chunk is
	KindLayout       = "wrong layout"        // frame and row disagree on how the chunk is cut
	KindUnreferenced = "unreferenced"        // a shard that no row names and that is too old to be of a write under way
	KindTwice        = "named twice"         // a chunk that two rows name
	KindMetadata     = "metadata unreadable" // a row
	KindRow          = "metadata wrong"      // a row contradicts itself or others
	KindReplica      = "metadata replica"    // a replica cannot be read or differs
	KindDrive        = "drive not readable"  //
	KindContent      = "content wrong"       // bytes don't match their ETag, or parity its data
)

// Run verifies everything and answers the report, which is clean if Found is 0.
// An error means that the verification could not be done; what was found until then is in the report all the same.
func Run(ctx context.Context, cfg Config) (*status.Report, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Grace <= 0 {
		cfg.Grace = storage.OrphanAge + time.Hour
	}
	if cfg.Parallel <= 0 {
		cfg.Parallel = 4
	}
	if cfg.SortBytes <= 0 {
		cfg.SortBytes = sortBytes
	}
	if cfg.BucketName == nil {
		cfg.BucketName = func(b storage.BucketID) string { return fmt.Sprint(uint64(b)) }
	}
	r := &run{cfg: cfg, topo: cfg.Topology(), report: &status.Report{Started: cfg.Now()}}
	r.drives = make(map[storage.DriveID]int, len(cfg.Drives))
	for i, d := range cfg.Drives {
		r.drives[d.ID] = i
	}
	err := r.all(ctx)
	r.finish()
	return r.report, err
}

// run is one verification.
type run struct {
	cfg     Config
	topo    *cluster.Topology // as of the start
	drives  map[storage.DriveID]int
	scratch *scratch

	mu     sync.Mutex // guards what follows
	report *status.Report
	counts counts
	unread map[storage.DriveID]int64 // shards expected on drives that were not read
	timeMS int64                     // newest range time seen
	phase  string
	told   time.Time // when progress was last told
}

// counts are what the report counts.
type counts struct {
	objects, versions, markers, parts, uploads, rows, inline int64
	chunks, shards, frames, bytes, logical                   int64
	awaiting, young, leftover, superseded, changed           int64
	repairs, garbage, replicas, groups                       int64
}

func (r *run) all(ctx context.Context) (err error) {
	if r.scratch, err = openScratch(r.cfg.TempDir, r.cfg.SortBytes, r.cfg.Deep); err != nil {
		return err
	}
	defer func() {
		if cerr := r.scratch.close(); err == nil {
			err = cerr
		}
	}()
	for _, step := range []struct {
		phase string
		do    func(context.Context) error
	}{
		{"metadata", r.walk}, {"drives", r.scan}, {"comparing", r.compare}, {"parts", r.checkParts},
		{"placement groups", r.audit}, {"replicas", r.checkReplicas}, {"content", r.deep},
	} {
		r.setPhase(step.phase)
		if err := step.do(ctx); err != nil {
			return errs.Wrap(errs.KindOf(err), "verify", step.phase, err)
		}
	}
	return nil
}

func (r *run) setPhase(p string) {
	r.mu.Lock()
	r.phase, r.told = p, time.Time{}
	r.mu.Unlock()
	r.count(func(*counts) {})
}

// progressEvery bounds how often Progress is called.
const progressEvery = 200 * time.Millisecond

// count changes the counts and tells progress now and then.
func (r *run) count(fn func(*counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn(&r.counts)
	if r.cfg.Progress == nil {
		return
	}
	if now := time.Now(); now.Sub(r.told) >= progressEvery {
		r.told = now
		c := &r.counts
		r.cfg.Progress(status.Progress{
			Phase: r.phase, Objects: c.objects + c.versions, Chunks: c.chunks, Shards: c.frames, Bytes: c.bytes, Found: r.report.Found,
		})
	}
}

// problem adds to the report.
func (r *run) problem(p status.Problem) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Found++
	if len(r.report.Problems) < status.ProblemsMax {
		r.report.Problems = append(r.report.Problems, p)
	}
}

func (r *run) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Notes = append(r.report.Notes, fmt.Sprintf(format, args...))
}

// about is a problem of an object.
func (r *run) about(kind string, b storage.BucketID, key storage.Key, version, format string, args ...any) status.Problem {
	return status.Problem{Kind: kind, Bucket: r.cfg.BucketName(b), Key: string(key), Version: version, Detail: fmt.Sprintf(format, args...)}
}

// on names a drive in a problem.
func (r *run) on(p status.Problem, id storage.DriveID) status.Problem {
	p.Drive, p.Zone = r.driveName(id), string(r.topo.Drives[id].Zone)
	return p
}

func (r *run) driveName(id storage.DriveID) string {
	if i, ok := r.drives[id]; ok {
		return r.cfg.Drives[i].Path
	}
	if d, ok := r.topo.Drives[id]; ok && d.Path != "" {
		return d.Path
	}
	return id.Short()
}

func (r *run) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	rep, c := r.report, &r.counts
	rep.Finished = r.cfg.Now()
	for _, x := range []struct {
		what string
		n    int64
	}{
		{"objects", c.objects}, {"noncurrent versions", c.versions}, {"delete markers", c.markers}, {"parts", c.parts},
		{"uploads in progress", c.uploads}, {"rows", c.rows}, {"chunks", c.chunks}, {"shards", c.shards},
		{"frames on drives", c.frames}, {"bytes on drives", c.bytes}, {"shards awaiting removal", c.awaiting},
		{"young shards", c.young}, {"replicas", c.replicas},
	} {
		rep.Counts = append(rep.Counts, status.Count{What: x.what, N: x.n})
	}
	for _, x := range []struct {
		n    int64
		what string
	}{
		{c.young, "shards are of writes that no row names: under way, or died lately; scrub removes orphans that are older than a day when it comes by"},
		{c.leftover, "shards lie behind the end of a chunk that its write left for another placement group; they go with the chunk"},
		{c.superseded, "frames are older copies of shards that were written again"},
		{c.changed, "suspicions were settled by looking again: objects changed during the check"},
	} {
		if x.n > 0 {
			rep.Notes = append(rep.Notes, fmt.Sprintf("%d %s", x.n, x.what))
		}
	}
	for id, n := range r.unread {
		rep.Notes = append(rep.Notes, fmt.Sprintf("%d shards on drive %s were not checked", n, r.driveName(id)))
	}
}

// audit proves the zone rule on the table of placement groups.
func (r *run) audit(context.Context) error {
	rep := placement.AuditExcept(r.cfg.Topology(), r.cfg.Empty)
	if rep.Summary != "" {
		r.note("%s", rep.Summary)
	}
	for _, v := range rep.Violations {
		r.problem(status.Problem{Kind: KindZone, Detail: v})
	}
	return nil
}
