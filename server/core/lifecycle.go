package core

import (
	"context"
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

// system reads this node's copy of the system group's state, if it may act on it.
func (m lifecycleMeta) system(ctx context.Context, fn func(pebble.Reader) error) error {
	if m.c.node != nil {
		if err := m.c.Controller.ConfigRead(fn); !errs.Is(err, errs.Unavailable) || !m.c.leadsSystem() {
			return err
		}
	}
	return m.c.Meta.SysRead(ctx, fn)
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

func (m lifecycleMeta) Buckets(ctx context.Context) (out []lifecycle.Bucket, err error) {
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
			out = append(out, lifecycle.Bucket{
				ID: storage.BucketID(b.Id), Name: b.Name, Owner: b.Owner, Versioning: b.Versioning, Generation: b.Generation, Rules: b.Lifecycle,
			})
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
		Meta: lifecycleMeta{m, c}, Plane: c.Chunks, Pins: c.Pins, Topology: c.Controller.Topology, BirthMS: c.Meta.NowMS,
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
		Expired: s.Expired, Removed: s.Removed, Aborted: s.Aborted, Transitioned: s.Transitioned, MovedBytes: s.MovedBytes, Error: s.LastErr,
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
