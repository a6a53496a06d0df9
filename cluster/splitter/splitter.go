// Package splitter splits ranges that have grown, and tells the system group of it.
//
// It works for the ranges whose leaders are in this process, one step at a time:
//
//  1. The range is measured, once it has seen so many new versions since the last time that it may have reached a limit.
//  2. The system group gives out a group id for the child (one whose split never happens is lost).
//  3. One command splits the range (package rangestate). It names the configuration of the group and the
//     generation of the bounds that it was made for; if either has changed it is refused, and all begins anew.
//  4. The bounds are published. This needs no memory of the split: whoever leads a range compares what the range says
//     of itself and its children with the topology, and has recorded what is missing there.
//
// A crash between any two leaves at most an id that nobody uses, or bounds that the next leader publishes.
package splitter

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// Host is the metadata plane of this process: *multiraft.Host.
type Host interface {
	Status() []multiraft.GroupStatus
	// Configuration is the group's configuration that its leader here has applied, and the index of its entry.
	Configuration(id cluster.GroupID) (index uint64, members []cluster.Replica, err error)
	Read(ctx context.Context, id cluster.GroupID, fn func(pebble.Reader) error) error
	// EachReplica calls fn with the state of each replica of a group here.
	EachReplica(id cluster.GroupID, fn func(cluster.ReplicaID, pebble.Reader) error) error
	// Split commits a command that may give birth to a group.
	Split(ctx context.Context, id cluster.GroupID, data []byte) ([]byte, error)
}

// Config of a Splitter. Host, Meta and Topology are required.
type Config struct {
	Host     Host
	Meta     *metaclient.Client
	Topology func() *cluster.Topology
	Logger   *slog.Logger // nil: no log

	// A range is split when it has more than RowsMax versions, uploads and parts, or more than BytesMax bytes of them.
	RowsMax    int64         // default 20,000,000
	BytesMax   int64         // default 10 GiB
	StepRows   int           // rows counted in one step; default 20,000
	CountEvery time.Duration // a range is counted anew after so long if its size changed by a tenth; default 1 h
	CheckEvery time.Duration // the replicas of a range compare their bounds so often; default 1 h
}

func (c *Config) setDefaults() {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.RowsMax <= 0 {
		c.RowsMax = 20_000_000
	}
	if c.BytesMax <= 0 {
		c.BytesMax = 10 << 30
	}
	if c.StepRows <= 0 {
		c.StepRows = 20_000
	}
	if c.CountEvery <= 0 {
		c.CountEvery = time.Hour
	}
	if c.CheckEvery <= 0 {
		c.CheckEvery = time.Hour
	}
}

// A range that has no quorum answers nothing. It gets patience in a Step, and then is left alone for a
// while, which doubles from backoffMin on.
const (
	patience   = 2 * time.Second
	backoffMin = 5 * time.Second
	backoffMax = 5 * time.Minute
)

// Splitter is the worker that splits ranges. Split is safe for concurrent use; Step is not.
type Splitter struct {
	cfg    Config
	ranges map[cluster.GroupID]*tally // of those with a replica here
	busy   chan struct{}              // has an element while a split is under way: one at a time
}

// tally is what is known of a range here. Losing it costs a count.
type tally struct {
	size
	checkedAt time.Time                    // when the bounds were compared last, or the range was met or led first
	told      map[cluster.ReplicaID]string // by replica here: the last check of bounds of which it has told what it found
	failures  int                          // in a row
	again     time.Time                    // not before, after a failure
}

// size is what is known of a range's size. The zero value has it counted.
type size struct {
	counting  *rangestate.Measure // under way
	rows      int64               // at the last count
	bytes     int64
	seq       uint64 // of the range then
	disk      uint64
	countedAt time.Time // zero: never
}

// New makes a Splitter.
func New(cfg Config) *Splitter {
	cfg.setDefaults()
	return &Splitter{cfg: cfg, ranges: map[cluster.GroupID]*tally{}, busy: make(chan struct{}, 1)}
}

// Name of the worker.
func (s *Splitter) Name() string { return "splits" }

// Step publishes what is new, counts a little and splits what is due. A range that fails does not keep the others waiting: of
// those that failed before, one step tries one. An error means that no range answered.
func (s *Splitter) Step(ctx context.Context) (done int64, more bool, err error) {
	var failed []error
	here := map[cluster.GroupID]bool{}
	tried, retried := 0, false
	for _, st := range s.cfg.Host.Status() {
		if st.Group == cluster.SystemGroup {
			continue
		}
		here[st.Group] = true
		t := s.ranges[st.Group]
		if t == nil {
			t = &tally{checkedAt: time.Now()}
			s.ranges[st.Group] = t
		}
		if t.failures > 0 && (retried || time.Now().Before(t.again)) {
			continue
		}
		tried++
		retried = retried || t.failures > 0
		n, m, err := s.visit(ctx, st, t)
		if ctx.Err() != nil {
			return done, false, ctx.Err()
		}
		done, more = done+n, more || m
		if err = s.note(st.Group, t, err); err != nil {
			failed = append(failed, err)
		}
	}
	for g := range s.ranges {
		if !here[g] {
			delete(s.ranges, g)
		}
	}
	if tried > len(failed) {
		failed = nil // they are in the log
	}
	return done, more, errors.Join(failed...)
}

// note takes down how a range did, and passes on what is a failure.
func (s *Splitter) note(g cluster.GroupID, t *tally, err error) error {
	if err == nil || errs.Is(err, errs.NotLeader) {
		t.failures = 0
		return nil
	}
	if t.failures++; t.failures == 1 {
		s.cfg.Logger.Warn("a range is not looked after now: it is tried again later", "group", g, "err", err)
	}
	t.again = time.Now().Add(min(backoffMin<<min(t.failures-1, 10), backoffMax))
	return err
}

// visit does what is to be done for a range with a replica here.
func (s *Splitter) visit(ctx context.Context, st multiraft.GroupStatus, t *tally) (done int64, more bool, err error) {
	if err := s.tell(ctx, st.Group, t); err != nil {
		return 0, false, err
	}
	if !st.Local {
		t.size, t.checkedAt = size{}, time.Now()
		return 0, false, nil
	}
	return s.tend(ctx, st.Group, t)
}

// tend does what is to be done for a range that is led here.
func (s *Splitter) tend(ctx context.Context, g cluster.GroupID, t *tally) (done int64, more bool, err error) {
	counted, err := s.look(ctx, g, t)
	if err != nil || !counted {
		return 0, err == nil && t.counting != nil, err
	}
	m := t.counting
	t.counting = nil
	if t.rows <= s.cfg.RowsMax && t.bytes <= s.cfg.BytesMax {
		return 0, false, nil
	}
	at, ok := m.Middle()
	if !ok {
		s.cfg.Logger.Warn("a range is full and cannot be split: all of it is of one key", "group", g, "rows", t.rows)
		return 0, false, nil
	}
	t.size = size{} // count again, whatever becomes of this
	_, err = s.Split(ctx, g, at)
	switch {
	case errs.Is(err, errs.Conflict):
		return 0, false, nil // at the next step: what changes meanwhile, others change
	case err != nil:
		return 0, false, err
	}
	return 1, true, nil
}

// look publishes the range's bounds, has them compared and counts it, as far as each is due. It answers whether a count is at its end.
func (s *Splitter) look(ctx context.Context, g cluster.GroupID, t *tally) (counted bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.publish(ctx, g); err != nil {
		return false, err
	}
	if time.Since(t.checkedAt) >= s.cfg.CheckEvery {
		if err := s.check(ctx, g); err != nil {
			return false, err
		}
		t.checkedAt = time.Now()
	}
	err = s.view(ctx, g, func(v *rangestate.View) (err error) {
		counted, err = s.count(v, &t.size)
		return err
	})
	return counted, err
}

// count begins a count if one is due and goes on with the one under way; it reports whether that is at its end.
func (s *Splitter) count(v *rangestate.View, t *size) (bool, error) {
	seq := uint64(v.Seq())
	if t.counting == nil {
		disk, err := v.DiskBytes()
		if err != nil {
			return false, err
		}
		if !s.due(t, seq, disk, time.Now()) {
			return false, nil
		}
		t.counting, t.seq, t.disk = &rangestate.Measure{}, seq, disk
	}
	done, err := t.counting.Step(v, s.cfg.StepRows)
	if err != nil || !done {
		return false, err
	}
	t.rows, t.bytes, t.countedAt = t.counting.Rows, t.counting.Bytes, time.Now()
	return true, nil
}

// due reports whether a range may have reached a limit since it was counted.
func (s *Splitter) due(t *size, seq, disk uint64, now time.Time) bool {
	if t.countedAt.IsZero() {
		return true
	}
	room := max(s.cfg.RowsMax-t.rows, s.cfg.RowsMax/20)
	if t.rows > 0 && t.bytes > 0 {
		each := max(t.bytes/t.rows, 1)
		room = min(room, max(s.cfg.BytesMax-t.bytes, s.cfg.BytesMax/20)/each)
	}
	if int64(seq-t.seq) > room {
		return true
	}
	// Parts raise no sequence.
	return now.Sub(t.countedAt) >= s.cfg.CountEvery && (disk > t.disk+t.disk/10 || disk < t.disk-t.disk/10)
}

func (s *Splitter) view(ctx context.Context, g cluster.GroupID, fn func(*rangestate.View) error) error {
	return s.cfg.Host.Read(ctx, g, func(r pebble.Reader) error {
		v, err := rangestate.NewView(r, g)
		if err != nil {
			return err
		}
		return fn(v)
	})
}

// publish has the system group record the range's bounds and the children that it does not know.
func (s *Splitter) publish(ctx context.Context, g cluster.GroupID) error {
	t := s.cfg.Topology()
	var news []*metapb.SysGroup
	err := s.view(ctx, g, func(v *rangestate.View) error {
		own := v.Range()
		rec, known := t.Groups[g]
		if known && rec.Generation >= own.Generation {
			return nil // its children were published with its bounds
		}
		if known {
			news = append(news, own)
		} // else its parent's leader brings the replicas
		children, err := v.Children()
		for _, c := range children {
			if _, known := t.Groups[cluster.GroupID(c.Id)]; !known {
				news = append(news, c)
			}
		}
		return err
	})
	if err != nil || len(news) == 0 {
		return err
	}
	_, err = s.cfg.Meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_PutRanges{PutRanges: &metapb.PutRangesOp{Ranges: news}}})
	return err
}

// Split splits a range, whose leader must be here, at a place and answers the child's group. The zero place is
// the middle, which is found by counting all rows. One split is made at a time; the others wait, until ctx ends. Errors: NotLeader, Conflict (the range or its group changed meanwhile: try
// again), InvalidArgument (not a place to split at), OutcomeUnknown, Unavailable.
func (s *Splitter) Split(ctx context.Context, g cluster.GroupID, at cluster.Pos) (cluster.GroupID, error) {
	counted := at == (cluster.Pos{})
	if counted { // before it is this one's turn: it may take long
		var err error
		if at, err = s.middle(ctx, g); err != nil {
			return 0, err
		}
	}
	select {
	case s.busy <- struct{}{}:
		defer func() { <-s.busy }()
	case <-ctx.Done():
		return 0, &errs.Error{Kind: errs.Unavailable, Op: "split", Detail: "another split is under way", Err: context.Cause(ctx)}
	}
	op := &metapb.SplitOp{At: &metapb.PosPB{Bucket: uint64(at.Bucket), Key: []byte(at.Key)}}
	err := s.view(ctx, g, func(v *rangestate.View) error {
		op.Generation = v.Descriptor().GetGeneration()
		return v.Check(at)
	})
	if counted && errs.Is(err, errs.WrongRange) {
		return 0, errs.New(errs.Conflict, "split", "", "the range was split meanwhile")
	}
	if err != nil {
		return 0, err
	}
	members, err := s.members(g, op)
	if err != nil {
		return 0, err
	}
	given, err := s.cfg.Meta.Sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_NewGroup{NewGroup: &metapb.NewGroupOp{}}})
	if err != nil {
		return 0, err
	}
	child := cluster.GroupID(given.Group)
	op.Child = given.Group
	for _, m := range members {
		op.Replicas = append(op.Replicas, &metapb.ChildReplica{
			Parent: string(m.ID), Child: string(cluster.MakeReplicaID(child, s.cfg.Meta.Random64())), Drive: m.Drive[:], Voter: m.Voter,
		})
	}
	cmd := &metapb.RangeCommand{Version: 1, Id: make([]byte, 16), IssuedMs: s.cfg.Meta.NowMS(), Op: &metapb.RangeCommand_Split{Split: op}}
	s.cfg.Meta.Random(cmd.Id)
	data, err := cmd.MarshalVT()
	if err != nil {
		return 0, errs.Wrap(errs.Other, "split", "", err)
	}
	out, err := s.cfg.Host.Split(ctx, g, data)
	if err != nil {
		return 0, err
	}
	var res metapb.RangeResult
	if err := res.UnmarshalVT(out); err != nil {
		return 0, errs.Wrap(errs.Corrupt, "split", "result", err)
	}
	if !res.Ok {
		return 0, errs.New(errs.Kind(res.Kind), "split", "", res.Detail)
	}
	s.cfg.Logger.Info("a range was split", "group", g, "child", child, "bucket", at.Bucket, "key", at.Key)
	// The followers learn from the next command that the split is committed, and the child cannot have a leader before.
	_, err = s.cfg.Meta.DoGroup(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_Tick{Tick: &metapb.TickOp{}}})
	if err == nil {
		err = s.publish(ctx, g)
	}
	if err != nil { // the next step publishes
		s.cfg.Logger.Warn("the bounds of a range that was split are not published yet", "group", g, "child", child, "err", err)
	}
	return child, nil
}

func (s *Splitter) middle(ctx context.Context, g cluster.GroupID) (cluster.Pos, error) {
	m := &rangestate.Measure{}
	for done := false; !done; {
		err := s.view(ctx, g, func(v *rangestate.View) (err error) {
			done, err = m.Step(v, s.cfg.StepRows)
			return err
		})
		if err != nil {
			return cluster.Pos{}, err
		}
	}
	at, ok := m.Middle()
	if !ok {
		return at, errs.New(errs.InvalidArgument, "split", "", "the range holds fewer than two keys")
	}
	return at, nil
}

// members are the replicas of the range with their drives; op gets the configuration that they are from.
func (s *Splitter) members(g cluster.GroupID, op *metapb.SplitOp) ([]cluster.Replica, error) {
	index, members, err := s.cfg.Host.Configuration(g)
	if err != nil {
		return nil, err
	}
	op.ConfigIndex = index
	recorded := s.cfg.Topology().Groups[g].Replicas
	for i := range members {
		m := &members[i]
		for _, r := range recorded {
			if r.ID == m.ID {
				m.Drive = r.Drive
			}
		}
		if m.Drive.IsZero() {
			return nil, errs.Newf(errs.Conflict, "split", string(m.ID), "it is not known yet where the replica lies")
		}
	}
	return members, nil
}
