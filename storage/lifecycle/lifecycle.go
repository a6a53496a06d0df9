// Package lifecycle is the worker that acts by the buckets' lifecycle rules: it
// ends versions, delete markers and uploads, and moves versions to other storage
// classes. What the rules want is decided by package s3api/lifecycle; here is how
// it is found and done.
//
// # Rounds
//
// A node works for the ranges that are led there. A round walks the rows of every
// bucket with rules in every such range. Things become due at midnights, so there
// is a round at each, and besides: at a date that a rule names, when the
// configuration of buckets or the ranges led here changed, and again a while after
// a round that did something or could not do something.
//
// A round only sees rows and never opens an object. What it finds is ended at once,
// some hundreds by a command; what is to be moved is only noted. Moving comes
// behind it, walks the same rows again from the first that is to be moved on, and
// goes on over later rounds, so that a great move does not hold up what is to end.
//
// # What is decided is what is done
//
// A command names the generation of the configuration that was decided by, and
// each version by its sequence and nonce: the range refuses what is not so any
// more (Conflict). A rule that is gone or longer therefore binds from when that
// was acknowledged. Everything may be repeated, and be killed anywhere.
package lifecycle

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/pins"
)

// Bucket is a bucket with rules, or with versions of INTELLIGENT_TIERING.
type Bucket struct {
	ID         storage.BucketID
	Name       string
	Owner      string // of the delete markers made
	Versioning metapb.Versioning
	Generation uint64                  // of the configuration
	Rules      *metapb.LifecycleConfig // read-only; nil: none
	Tiered     bool                    // there are versions of INTELLIGENT_TIERING
	Tiering    []*metapb.TieringConfig // read-only
}

// Meta is the metadata plane as the worker sees it. Everything may be repeated.
type Meta interface {
	// Ranges are the ranges this node is to work for: those whose leader is here.
	Ranges() []cluster.GroupID
	// Config counts the changes of what Buckets answers. It is cheap.
	Config(ctx context.Context) (uint64, error)
	// Buckets are those that have rules, and those of tiered that are there, as this node knows them: a generation that is not the ranges' is refused
	// there. Tiered is not looked at.
	Buckets(ctx context.Context, tiered []storage.BucketID) ([]Bucket, error)
	// Tiered are the buckets that have versions of INTELLIGENT_TIERING, in order; it asks all ranges for their counters. With an error it answers
	// those that may be among them by what it was told.
	Tiered(ctx context.Context) ([]storage.BucketID, error)
	// Scan is rangestate.View.Lifecycle in a range that is led here. begin is called
	// before the first row, with the range's time, and again if the walk begins anew.
	Scan(ctx context.Context, g cluster.GroupID, b storage.BucketID, after *rangestate.LifecyclePos, limit int,
		begin func(timeMS int64), row func(*rangestate.LifecycleRow) (more bool)) (next *rangestate.LifecyclePos, err error)
	// Expire is the command Expire; the results are in the order of its entries. Conflict: the configuration is another one.
	Expire(ctx context.Context, g cluster.GroupID, op *metapb.ExpireOp) ([]*metapb.RangeResult, error)
	// Version reads a version linearizably; nil if it is gone. The row is the caller's.
	Version(ctx context.Context, b storage.BucketID, key storage.Key, seq storage.Seq) (*metapb.ObjectRow, error)
	// Parts reads the rows of a multipart version's parts with numbers above after, in order and with their data; nil at the end.
	// NotFound: the version is gone.
	Parts(ctx context.Context, b storage.BucketID, key storage.Key, row *metapb.ObjectRow, after, limit int) ([]*metapb.PartRow, error)
	// Rewrite is the command RewriteData. Errors: Conflict if it was decided about something that changed or is gone.
	Rewrite(ctx context.Context, op *metapb.RewriteDataOp) error
}

// Config of a Worker. Meta, Plane, Pins, Topology and BirthMS are required; zeros are replaced by the defaults named.
type Config struct {
	Meta     Meta
	Plane    Plane
	Pins     *pins.Registry
	MayRead  func() bool // asked once a read is registered: false while this node may not read; nil: always
	Topology func() *cluster.Topology
	BirthMS  func() int64 // range time as far as known: the birth of chunks
	Day      time.Duration
	Now      func() time.Time // the wall clock, by which things are due; default time.Now
	Rand     func() uint64    // default math/rand/v2
	Logger   *slog.Logger     // nil: no log

	Parallel   int           // objects moved at once; default 2
	QueueMax   int           // moves noted from one look; default 256
	PageRows   int           // rows seen in a step; default 5000
	RoundEvery time.Duration // between rounds with something to do; default 1 min
	RoundMax   time.Duration // between rounds that got nothing done though there was something; default 10 min
	RulesMax   int           // rules told of in the status; default 10,000
	BackoffMin time.Duration // of moves to a class that could not be written; default 5 s
	BackoffMax time.Duration // default 10 min
}

func (c *Config) setDefaults() {
	c.Day = cmp.Or(c.Day, 24*time.Hour)
	c.Parallel, c.QueueMax = cmp.Or(c.Parallel, 2), cmp.Or(c.QueueMax, 256)
	c.PageRows, c.RulesMax = cmp.Or(c.PageRows, 5000), cmp.Or(c.RulesMax, 10_000)
	c.RoundEvery, c.RoundMax = cmp.Or(c.RoundEvery, time.Minute), cmp.Or(c.RoundMax, 10*time.Minute)
	c.BackoffMin, c.BackoffMax = cmp.Or(c.BackoffMin, 5*time.Second), cmp.Or(c.BackoffMax, 10*time.Minute)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Uint64
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
}

// Worker acts by the rules. Step is not for concurrent use; Status and Left are.
type Worker struct {
	cfg     Config
	buckets map[storage.BucketID]*bucket
	led     []cluster.GroupID  // ranges whose rows were looked at, or are going to be
	config  uint64             // of buckets
	known   bool               // buckets were read
	tiered  []storage.BucketID // with versions of INTELLIGENT_TIERING, when everything was last to be looked at
	// tieredOther: buckets was read for others than tiered.
	tieredOther bool
	ends        []*scan // what the round still has to walk over
	moves       []*scan // behind the round
	queue       []*move
	round       round
	moving      round
	nextMS      int64     // when everything is to be looked at again, by the wall clock
	retryAt     time.Time // the same, because of what was done or failed; zero: no need
	inRow       int       // rounds in a row that got nothing done though there was something
	blocked     map[storage.StorageClass]*block
	status      board
}

// bucket is a bucket with its rules made ready.
type bucket struct {
	Bucket
	rules *rules.Rules
	since int64 // ms: before, the rules were others, or not known here
}

// round is what happened since a walk began.
type round struct {
	active  bool
	began   time.Time
	rows    int64
	done    int64 // actions
	failed  bool  // something that was due is not done
	restart int   // how often a bucket was begun anew because its rules changed
}

// scan is a walk over a bucket's rows in a range.
type scan struct {
	group  cluster.GroupID
	bucket storage.BucketID
	after  *rangestate.LifecyclePos // nil: the beginning
	moving bool
}

func (s *scan) same(o *scan) bool { return s.group == o.group && s.bucket == o.bucket }

// New makes the worker.
func New(cfg Config) *Worker {
	cfg.setDefaults()
	w := &Worker{cfg: cfg, buckets: map[storage.BucketID]*bucket{}, blocked: map[storage.StorageClass]*block{}}
	w.status.init(cfg.RulesMax)
	return w
}

// Name of the worker.
func (w *Worker) Name() string { return "lifecycle" }

// Left is how many actions are known to be due and are not done.
func (w *Worker) Left() (int64, bool) { return w.status.left(), true }

// Step looks at some rows and ends what is due among them, or moves a few versions (of multipart ones: a part of each).
// It counts what was done to versions and uploads.
func (w *Worker) Step(ctx context.Context) (done int64, more bool, err error) {
	err = w.plan(ctx)
	w.status.planned(err)
	if err != nil {
		return 0, false, err
	}
	switch {
	case len(w.ends) > 0:
		done, err = w.step(ctx, w.ends[0])
		w.round.done += done
	case len(w.queue) > 0:
		done, err = w.moveSome(ctx)
		w.moving.done += done
	case len(w.moves) > 0:
		_, err = w.step(ctx, w.moves[0])
	}
	if err != nil {
		return done, false, err
	}
	w.finish()
	return done, len(w.ends)+len(w.queue)+len(w.moves) > 0, nil
}

// plan notes what is to be walked over, because it is time for all of it or because rules or ranges came.
func (w *Worker) plan(ctx context.Context) error {
	led := w.cfg.Meta.Ranges()
	slices.Sort(led)
	if len(led) == 0 && len(w.led) == 0 {
		return nil // nothing is done here, and such a node need not know the rules
	}
	config, err := w.cfg.Meta.Config(ctx) // before the rules: a change between the two is seen the next time
	if err != nil {
		return err
	}
	tieredKnown := true
	if w.due() {
		tieredKnown = w.readTiered(ctx)
	}
	if w.tieredOther || !w.known || config != w.config {
		if err := w.read(ctx); err != nil {
			return err
		}
		w.config, w.known = config, true
	}
	if !slices.Equal(led, w.led) {
		for _, g := range led {
			if !slices.Contains(w.led, g) { // nobody here has seen its rows
				w.lookAt(func(s *scan) bool { return s.group == g }, led)
			}
		}
		w.led = led
		if w.retryAt.IsZero() && w.status.left() > 0 { // some of it may be another node's to do by now
			w.retryAt = time.Now().Add(w.cfg.RoundEvery)
		}
	}
	gone := func(s *scan) bool { return w.buckets[s.bucket] == nil || !slices.Contains(led, s.group) }
	w.ends, w.moves = slices.DeleteFunc(w.ends, gone), slices.DeleteFunc(w.moves, gone)
	if w.due() {
		w.retryAt, w.nextMS = time.Time{}, w.nextDue()
		w.lookAt(func(*scan) bool { return true }, led)
	}
	if !tieredKnown && w.retryAt.IsZero() {
		w.retryAt = time.Now().Add(w.cfg.RoundMax)
	}
	return nil
}

// due reports whether it is time to look at everything; while something is under way, when that is over.
func (w *Worker) due() bool {
	return (w.cfg.Now().UnixMilli() >= w.nextMS || !w.retryAt.IsZero() && !time.Now().Before(w.retryAt)) && len(w.ends) == 0
}

// readTiered asks which buckets have versions of INTELLIGENT_TIERING and answers whether all ranges told. While some range does not
// tell, those that were known go on.
func (w *Worker) readTiered(ctx context.Context) (ok bool) {
	ids, err := w.cfg.Meta.Tiered(ctx)
	if err != nil {
		w.status.trouble("the buckets with INTELLIGENT_TIERING", err)
		ids = slices.Compact(slices.Sorted(slices.Values(slices.Concat(w.tiered, ids))))
	}
	w.tieredOther = w.tieredOther || !slices.Equal(ids, w.tiered)
	w.tiered = ids
	return err == nil
}

// read reads the rules, and has the rows of buckets looked at whose rules are new.
func (w *Worker) read(ctx context.Context) error {
	all, err := w.cfg.Meta.Buckets(ctx, w.tiered)
	if err != nil {
		return err
	}
	fresh := make(map[storage.BucketID]*bucket, len(all))
	changed := map[storage.BucketID]bool{}
	for _, b := range all {
		_, b.Tiered = slices.BinarySearch(w.tiered, b.ID)
		if old := w.buckets[b.ID]; old != nil && old.Generation == b.Generation && old.Tiered == b.Tiered {
			fresh[b.ID] = old
			continue
		}
		n := &bucket{Bucket: b, rules: rules.Compile(b.Rules, w.cfg.Day)}
		if b.Tiered {
			n.rules.Tiers(b.Tiering)
		}
		if w.known { // what a rule finds that was put just now is not late
			n.since = w.cfg.Now().UnixMilli()
		}
		if !n.rules.Empty() {
			fresh[b.ID], changed[b.ID] = n, true
		}
	}
	for id, b := range w.buckets {
		if n := fresh[id]; n == nil || n.Generation != b.Generation {
			w.status.forget(b.Name, n)
		}
	}
	w.buckets, w.tieredOther = fresh, false
	w.lookAt(func(s *scan) bool { return changed[s.bucket] }, w.led)
	if next := w.nextDue(); !w.known || next < w.nextMS {
		w.nextMS = next
	}
	return nil
}

// lookAt has the rows walked over, from the beginning, of every bucket in every range that which picks.
func (w *Worker) lookAt(which func(*scan) bool, led []cluster.GroupID) {
	fresh := false
	for id, b := range w.buckets {
		for _, g := range led {
			s := &scan{group: g, bucket: id}
			if !which(s) || !w.mayHold(g, id) {
				continue
			}
			w.ends = append(slices.DeleteFunc(w.ends, s.same), s)
			w.status.looking(b.Name)
			fresh = true
		}
	}
	if !fresh {
		return
	}
	slices.SortFunc(w.ends, func(a, b *scan) int { return cmp.Or(cmp.Compare(a.bucket, b.bucket), cmp.Compare(a.group, b.group)) })
	if !w.round.active {
		w.round = round{active: true, began: time.Now()}
		w.status.began(w.cfg.Now())
	}
}

// mayHold reports whether a range can hold rows of a bucket, as far as the topology
// tells: it may show a range as larger than it is, never as smaller.
func (w *Worker) mayHold(g cluster.GroupID, id storage.BucketID) bool {
	group, ok := w.cfg.Topology().Groups[g]
	if !ok {
		return true
	}
	b := group.Bounds
	return id >= b.Start.Bucket && (b.End == cluster.Pos{} || id <= b.End.Bucket)
}

// nextDue is the next midnight, or an earlier date that a rule names.
func (w *Worker) nextDue() int64 {
	now := w.cfg.Now().UnixMilli()
	next := rules.NextMidnight(now, w.cfg.Day.Milliseconds())
	date := func(ms int64) {
		if ms > now {
			next = min(next, ms)
		}
	}
	for _, b := range w.buckets {
		for _, r := range b.Rules.GetRules() {
			date(r.GetExpiration().GetDateMs())
			for _, t := range r.Transitions {
				date(t.DateMs)
			}
		}
	}
	return next
}

// finish ends the round once all was walked over, and the moving once all is moved that can be.
func (w *Worker) finish() {
	if len(w.ends) > 0 {
		return
	}
	if w.round.active {
		w.status.ended(&w.round)
		w.again(&w.round)
	}
	if len(w.queue)+len(w.moves) == 0 && w.moving.active {
		w.again(&w.moving)
	}
}

// again ends what is over and decides when to look at everything again for its sake.
func (w *Worker) again(r *round) {
	delay := time.Duration(0)
	switch {
	case r.done > 0:
		// What was done may make other things due: the last version gone leaves a delete marker.
		w.inRow, delay = 0, w.cfg.RoundEvery
	case r.failed:
		w.inRow++
		delay = backoff(w.cfg.RoundEvery, w.cfg.RoundMax, w.inRow)
	}
	if at := time.Now().Add(delay); delay > 0 && (w.retryAt.IsZero() || at.Before(w.retryAt)) {
		w.retryAt = at
	}
	*r = round{}
}

// backoff doubles from lo up to hi with the failures in a row.
func backoff(lo, hi time.Duration, inRow int) time.Duration {
	if inRow < 30 && lo<<(inRow-1) < hi {
		return lo << (inRow - 1)
	}
	return hi
}

// step goes on with a scan by one page.
func (w *Worker) step(ctx context.Context, s *scan) (done int64, err error) {
	b := w.buckets[s.bucket]
	p := &page{w: w, scan: s, bucket: b}
	if err := p.read(ctx); err != nil {
		if k := errs.KindOf(err); k == errs.NotLeader || k == errs.WrongRange {
			w.dropScan(s) // it is led elsewhere by now
			return 0, nil
		}
		w.status.trouble(b.Name, err)
		return 0, err
	}
	if !s.moving {
		w.round.rows += p.rows
		done, err = p.end(ctx)
		if errs.Is(err, errs.Conflict) {
			return done, w.rulesChanged(ctx, s)
		}
		if err != nil {
			w.status.failing(p, err)
			return done, err // the page is seen again
		}
		w.status.page(p)
	}
	p.note()
	if s.after = p.next; s.after == nil {
		w.dropScan(s)
	}
	return done, nil
}

// dropScan ends a scan.
func (w *Worker) dropScan(s *scan) {
	is := func(o *scan) bool { return o == s }
	w.ends, w.moves = slices.DeleteFunc(w.ends, is), slices.DeleteFunc(w.moves, is)
	b := w.buckets[s.bucket]
	if !s.moving && b != nil && !slices.ContainsFunc(w.ends, func(o *scan) bool { return o.bucket == s.bucket }) {
		w.status.looked(b.Name)
	}
}

// restartsMax is how often in a round buckets are begun anew.
const restartsMax = 10

// rulesChanged is for a scan whose range says that the rules are others by now.
func (w *Worker) rulesChanged(ctx context.Context, s *scan) error {
	old := w.buckets[s.bucket].Generation
	w.round.restart++
	if err := w.read(ctx); err != nil { // begins the bucket anew if it knows newer ones
		return err
	}
	if b := w.buckets[s.bucket]; b == nil || b.Generation == old || w.round.restart > restartsMax {
		w.round.failed = true // this node does not know the newer ones yet
		w.dropScan(s)
	}
	return nil
}
