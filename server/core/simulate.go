package core

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"cairn/cluster/placement"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/lifecycle"
)

// SimulatedExamplesMax bounds the examples of one simulation.
const SimulatedExamplesMax = 5000

// Simulate says what the rules of a bucket, or others (not nil), would do at a time, and calls progress after each page of rows.
// examples are kept of each action of a rule. Errors: NoSuchBucket; NotFound: it has no rules.
func (c *Core) Simulate(ctx context.Context, name string, others *metapb.LifecycleConfig, at time.Time, examples int, progress func(status.SimulationProgress)) (out status.Simulation, err error) {
	row, err := c.bucketNamed(ctx, name)
	if err != nil {
		return out, err
	}
	cfg := cmp.Or(others, row.Lifecycle)
	if cfg == nil {
		return out, errs.New(errs.NotFound, "simulate", name, "the bucket has no lifecycle rules: give some to try")
	}
	began := time.Now()
	sim := lifecycle.Simulation{
		Bucket: lifecycle.Bucket{
			ID: storage.BucketID(row.Id), Name: row.Name, Owner: row.Owner, Versioning: row.Versioning, Generation: row.Generation, Rules: cfg,
		},
		AtMS: at.UnixMilli(), Day: c.LifecycleDay(), Examples: examples, ExamplesMax: SimulatedExamplesMax, Drives: c.onDrives(),
		Survey: func(ctx context.Context, after *rangestate.LifecyclePos) ([]rangestate.LifecycleRow, *rangestate.LifecyclePos, error) {
			return c.survey(ctx, rangestate.SurveyQuery{Bucket: storage.BucketID(row.Id), After: after, Uploads: true})
		},
		Progress: func(rows int64) { progress(status.SimulationProgress{Rows: rows}) },
	}
	actions, err := sim.Run(ctx)
	if err != nil {
		return out, err
	}
	out = status.Simulation{Bucket: name, At: at, Day: c.LifecycleDay().String(), Applied: others == nil, Rows: sim.Rows, Seconds: time.Since(began).Seconds()}
	for _, r := range cfg.Rules {
		out.Rules = append(out.Rules, status.SimulatedRule{Rule: r.Id, Disabled: r.Disabled, Actions: []status.SimulatedAction{}})
	}
	out.Total = []status.SimulatedAction{}
	for i := range actions {
		a := c.simulated(&actions[i])
		r := slices.IndexFunc(out.Rules, func(r status.SimulatedRule) bool { return r.Rule == actions[i].Rule })
		out.Rules[r].Actions = append(out.Rules[r].Actions, a)
		t := slices.IndexFunc(out.Total, func(t status.SimulatedAction) bool { return t.Action == a.Action && t.Class == a.Class })
		if a.Examples = nil; t < 0 {
			out.Total = append(out.Total, a)
			continue
		}
		sum := &out.Total[t]
		sum.Count += a.Count
		sum.Bytes += a.Bytes
		sum.EarlyByteDays += a.EarlyByteDays
		sum.DrivesBefore += a.DrivesBefore
		sum.DrivesAfter += a.DrivesAfter
	}
	return out, nil
}

// bucketNamed is a bucket's row as the system group has it. NoSuchBucket: also one that is being created.
func (c *Core) bucketNamed(ctx context.Context, name string) (row *metapb.SysBucket, err error) {
	err = c.Meta.System(ctx, func(r sysstate.Reader) (err error) {
		row, err = r.BucketByName(name)
		return err
	})
	if err == nil && row.State == metapb.BucketState_BUCKET_CREATING {
		err = errs.New(errs.NoSuchBucket, "bucket", name, "")
	}
	return row, err
}

func (c *Core) simulated(s *lifecycle.Sim) status.SimulatedAction {
	a := status.SimulatedAction{
		Action: s.What.String(), Class: string(s.Class), Count: s.Count, Bytes: s.Bytes, EarlyByteDays: c.byteDays(s.Early),
		DrivesBefore: s.Before, DrivesAfter: s.After,
	}
	if s.What == rules.Expire && s.Marker {
		a.Action = "expire to marker"
	}
	for _, e := range s.Examples {
		version := e.Version.String()
		if e.Upload {
			version = storage.UploadID(e.Version).String()
		}
		a.Examples = append(a.Examples, status.SimulatedExample{
			Key: string(e.Key), Version: version, Size: int64(e.Size), Class: string(e.Class), Due: time.UnixMilli(e.DueMS).UTC(),
		})
	}
	return a
}

// byteDays is what counters say of early removals, in bytes times days as long as they are here.
func (c *Core) byteDays(row *metapb.CounterRow) float64 {
	return (float64(row.EarlyHi)*(1<<64) + float64(row.EarlyLo)) / float64(c.LifecycleDay().Milliseconds())
}

// onDrives estimates the bytes on drives of an object, by the plans of its class for large and for small data. Compression and what lies
// elsewhere from before are not known to it; the copies of what lies in the metadata are taken for those of small data.
func (c *Core) onDrives() func(class storage.StorageClass, size uint64) int64 {
	drives := c.Controller.Topology().SortedDrives()
	factors := map[string]float64{}
	return func(class storage.StorageClass, size uint64) int64 {
		small := int64(size) < placement.CopiedBelow(class)
		key := fmt.Sprint(class, small)
		f, ok := factors[key]
		if !ok {
			p, err := placement.PlanFor(class, drives, small)
			if f = 1; err == nil {
				f = float64(p.Scheme.Shards()) / float64(p.Scheme.K)
			}
			factors[key] = f
		}
		return int64(f * float64(size))
	}
}
