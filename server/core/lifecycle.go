package core

import (
	"context"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/s3api/objects"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/lifecycle"
	"cairn/storage/worker"
)

// lifecycleMeta is the metadata plane as the lifecycle worker sees it.
type lifecycleMeta struct {
	ranges
	c *Core
}

// systemWait bounds how long a read waits until this node's copy of the configuration has caught up.
const systemWait = 10 * time.Second

// system reads this node's copy of the system group's state, once it may act on it. The copy of one that joined or was busy lags for a moment.
func (m lifecycleMeta) system(ctx context.Context, fn func(pebble.Reader) error) error {
	if m.c.node == nil {
		return m.c.Meta.SysRead(ctx, fn)
	}
	end := time.Now().Add(systemWait)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := m.c.Controller.ConfigRead(fn)
		if !errs.Is(err, errs.Unavailable) {
			return err
		}
		if m.c.leadsSystem() {
			return m.c.Meta.SysRead(ctx, fn)
		}
		if time.Now().Add(pause).After(end) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (m lifecycleMeta) Config(ctx context.Context) (config uint64, err error) {
	err = m.system(ctx, func(r pebble.Reader) error {
		st, err := sysstate.Store(r)
		config = st.GetConfig()
		return err
	})
	return config, err
}

// lifecyclePage is how many buckets are read at once: their rules may be long.
const lifecyclePage = 64

func (m lifecycleMeta) Buckets(ctx context.Context, tiered []storage.BucketID) ([]lifecycle.Bucket, error) {
	out, err := m.withRules(ctx)
	if err != nil {
		return nil, err
	}
	ruled := make(map[storage.BucketID]bool, len(out))
	for _, b := range out {
		ruled[b.ID] = true
	}
	for ids := range slices.Chunk(tiered, lifecyclePage) {
		var rows []*metapb.SysBucket
		err := m.system(ctx, func(r pebble.Reader) error {
			rows = rows[:0]
			for _, id := range ids {
				if ruled[id] {
					continue
				}
				row, err := sysstate.BucketByID(r, id)
				if err == nil {
					rows = append(rows, row)
				} else if !errs.Is(err, errs.NoSuchBucket) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if row.State == metapb.BucketState_BUCKET_ACTIVE {
				out = append(out, lifecycleBucket(row))
			}
		}
	}
	return out, nil
}

// tieredWait bounds how long all ranges are asked for their counters.
const tieredWait = 5 * time.Second

func (m lifecycleMeta) Tiered(ctx context.Context) (ids []storage.BucketID, err error) {
	ctx, cancel := context.WithTimeout(ctx, tieredWait)
	defer cancel()
	var silent error
	versions := map[storage.BucketID]int64{} // a range's own count says nothing: it does not count what it had from a split
	for _, g := range m.all() {
		var here []rangestate.Counter
		err := m.meta.ReadGroup(ctx, g, func(v rangestate.Reader) (err error) {
			here, err = v.Counters()
			return err
		})
		if err != nil {
			silent = err
			continue
		}
		for _, c := range here {
			if c.Class == storage.IntelligentTiering {
				versions[c.Bucket] += c.Row.Objects + c.Row.Versions
			}
		}
	}
	for id, n := range versions {
		if n != 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, silent
}

func lifecycleBucket(b *metapb.SysBucket) lifecycle.Bucket {
	return lifecycle.Bucket{
		ID: storage.BucketID(b.Id), Name: b.Name, Owner: b.Owner, Versioning: b.Versioning, Generation: b.Generation, Rules: b.Lifecycle, Tiering: b.Tiering,
	}
}

// withRules are the buckets that have rules.
func (m lifecycleMeta) withRules(ctx context.Context) (out []lifecycle.Bucket, err error) {
	for after := storage.BucketID(0); ; {
		var rows []*metapb.SysBucket
		err := m.system(ctx, func(r pebble.Reader) (err error) {
			rows, err = sysstate.LifecycleBuckets(r, after, lifecyclePage)
			return err
		})
		if err != nil || len(rows) == 0 {
			return out, err
		}
		for _, b := range rows {
			out = append(out, lifecycleBucket(b))
		}
		after = storage.BucketID(rows[len(rows)-1].Id)
	}
}

func (m lifecycleMeta) Scan(ctx context.Context, g cluster.GroupID, b storage.BucketID, after *rangestate.LifecyclePos, limit int,
	begin func(timeMS int64), row func(*rangestate.LifecycleRow) bool) (next *rangestate.LifecyclePos, err error) {
	err = m.meta.ReadGroup(ctx, g, func(v rangestate.Reader) (err error) {
		here, ok := v.(rangestate.LifecycleReader)
		if !ok {
			return errs.New(errs.WrongRange, "lifecycle.scan", "", "the range is led elsewhere")
		}
		begin(v.TimeMS())
		next, err = here.Lifecycle(b, after, limit, func(r *rangestate.LifecycleRow) (bool, error) { return row(r), nil })
		return err
	})
	return next, err
}

func (m lifecycleMeta) Expire(ctx context.Context, g cluster.GroupID, op *metapb.ExpireOp) ([]*metapb.RangeResult, error) {
	res, err := m.meta.DoGroup(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_Expire{Expire: op}})
	return res.GetEntries(), err
}

func (m lifecycleMeta) Version(ctx context.Context, b storage.BucketID, key storage.Key, seq storage.Seq) (row *metapb.ObjectRow, err error) {
	err = m.meta.Read(ctx, b, key, func(v rangestate.Reader) (err error) {
		row, err = v.VersionBySeq(b, key, seq)
		return err
	})
	if isGone(err) {
		return nil, nil
	}
	return row, err
}

func (m lifecycleMeta) Parts(ctx context.Context, b storage.BucketID, key storage.Key, row *metapb.ObjectRow, after, limit int) (parts []*metapb.PartRow, err error) {
	err = m.meta.Read(ctx, b, key, func(v rangestate.Reader) (err error) {
		listed, _, err := v.ObjectParts(b, key, row, after, limit) // they come without their data
		parts = parts[:0]
		for _, l := range listed {
			part, err := v.Part(b, key, storage.Seq(row.GetData().GetUploadSeq()), int(l.Number))
			if err != nil {
				return err
			}
			parts = append(parts, part)
		}
		return err
	})
	if isGone(err) || errs.Is(err, errs.InvalidPart) {
		return nil, errs.Wrap(errs.NotFound, "lifecycle.parts", string(key), err)
	}
	return parts, err
}

// isGone reports whether what was asked for is not there any more.
func isGone(err error) bool {
	switch errs.KindOf(err) {
	case errs.NoSuchKey, errs.NoSuchVersion, errs.NoSuchUpload, errs.NoSuchBucket, errs.NotFound:
		return err != nil
	}
	return false
}

// lifecycleIntervalMax is how often the lifecycle worker at least asks whether there is anything for it.
const lifecycleIntervalMax = 5 * time.Second

// lifecycleRulesMax is how many rules nodes tell each other of one by one, each time that any is asked for its status.
const lifecycleRulesMax = 1000

// makeLifecycle makes the lifecycle worker.
func (c *Core) makeLifecycle(m ranges) (*lifecycle.Worker, worker.Options) {
	day := c.LifecycleDay()
	lc := lifecycle.Config{
		Meta: lifecycleMeta{m, c}, Plane: c.Bodies, Pins: c.Pins, Topology: c.Controller.Topology, BirthMS: c.Meta.NowMS,
		Day: day, Now: c.env.Now, Rand: c.Meta.Random64, Logger: c.env.Logger,
		RoundEvery: min(time.Minute, max(day/10, 100*time.Millisecond)), RulesMax: lifecycleRulesMax,
	}
	if c.node != nil {
		lc.MayRead = c.Controller.InSession
	}
	interval := min(lifecycleIntervalMax, max(day/20, 100*time.Millisecond))
	return lifecycle.New(lc), worker.Options{Interval: interval, BackoffMax: 10 * time.Second}
}

// LifecycleDay is how long a day is to lifecycle rules.
func (c *Core) LifecycleDay() time.Duration {
	if c.cfg.LifecycleDay <= 0 {
		return 24 * time.Hour
	}
	return c.cfg.LifecycleDay
}

// restoreTime is how long a restore takes here: as long as S3 says in days of this length, or shorter if the configuration bounds it.
func (c *Core) restoreTime(class storage.StorageClass, tier string) time.Duration {
	days := float64(objects.RestoreTime(class, tier)) / float64(24*time.Hour)
	took := time.Duration(days * float64(c.LifecycleDay()))
	if c.cfg.RestoreTimeMax > 0 {
		took = min(took, c.cfg.RestoreTimeMax)
	}
	return max(took, time.Millisecond)
}

// Expiry is when an object will come to its end by its bucket's rules, and by which; ok is false if it will not.
func (c *Core) Expiry(cfg *metapb.LifecycleConfig, o rules.Object) (at time.Time, ruleID string, ok bool) {
	return rules.Expires(cfg, o, c.LifecycleDay())
}

// lifecycleHere is what the lifecycle worker of this node did and has to do.
func (c *Core) lifecycleHere() status.Lifecycle {
	s := c.Lifecycle.Status()
	now := c.env.Now()
	out := status.Lifecycle{
		Node: string(c.nodeID()), Day: c.LifecycleDay().String(), Rounds: s.Rounds, Running: s.Running, Rows: s.Rows, Seconds: s.Took.Seconds(),
		Expired: s.Expired, Removed: s.Removed, Aborted: s.Aborted, Transitioned: s.Transitioned, Retiered: s.Retiered, MovedBytes: s.MovedBytes, Error: s.LastErr,
	}
	if !s.Ended.IsZero() {
		ended := s.Ended.UTC()
		out.Ended = &ended
	}
	for _, r := range s.Rules {
		lag := r.Lag(now)
		out.Due += r.Due
		out.LagSeconds = max(out.LagSeconds, lag.Seconds())
		out.Rules = append(out.Rules, status.LifecycleRule{
			Bucket: r.Bucket, Rule: r.Rule, Done: r.Done, Due: r.Due, LagSeconds: lag.Seconds(), Waiting: r.Waiting,
		})
	}
	return out
}

// LifecycleStatus is what the lifecycle workers of all nodes say, by the nodes' names. A node that does not answer says why.
func (c *Core) LifecycleStatus(ctx context.Context) []status.Lifecycle {
	var out []status.Lifecycle
	for id, l := range c.looks(ctx, c.Controller.Topology()) {
		switch {
		case l.Lifecycle != nil:
			out = append(out, *l.Lifecycle)
		case l.lost != "":
			out = append(out, status.Lifecycle{Node: string(id), Error: "no answer: " + l.lost})
		default:
			out = append(out, status.Lifecycle{Node: string(id), Error: "it does not tell of lifecycle rules: is it of an older version?"})
		}
	}
	status.SortLifecycle(out)
	return out
}

// accessFlusher is the worker that writes down which versions of INTELLIGENT_TIERING were read on this node.
type accessFlusher struct{ c *Core }

func (accessFlusher) Name() string { return "accesses" }

func (f accessFlusher) Step(ctx context.Context) (int64, bool, error) {
	n, more, err := f.c.Objects.FlushAccesses(ctx)
	return int64(n), more, err
}

// accessEvery is how often accesses are written down.
func (c *Core) accessEvery() time.Duration {
	return min(time.Minute, max(c.LifecycleDay()/20, 100*time.Millisecond))
}

// accessesWait bounds the last time that accesses are written down, at the end of the process.
const accessesWait = 2 * time.Second

// flushAccesses writes down what was read since the worker came by last.
func (c *Core) flushAccesses() {
	ctx, cancel := context.WithTimeout(context.Background(), accessesWait)
	defer cancel()
	for more, err := true, error(nil); more && err == nil; {
		_, more, err = c.Objects.FlushAccesses(ctx)
	}
}
