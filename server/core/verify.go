package core

import (
	"context"
	"fmt"
	"slices"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/repair"
	"cairn/storage/verify"
)

// Verify runs the checker over everything, see package verify. With heal, what is
// found bad on the drives is handed to the healer as well.
func (c *Core) Verify(ctx context.Context, heal bool, progress func(status.Progress)) (status.Report, error) {
	contents := c.Groups.Contents
	if c.node != nil {
		contents = c.node.router.Contents // of replicas on other nodes too
	}
	cfg := verify.Config{
		Topology: c.Controller.Topology, Meta: &verifier{ranges: ranges{c.Meta, c.Groups}, groups: c.Groups, contents: contents},
		Now: c.env.Now, Progress: progress, BucketName: c.bucketNames(ctx),
		Empty: func(pg *cluster.PG) bool { return c.holdsNothing(ctx, pg) },
	}
	for _, d := range c.Controller.Drives() {
		cfg.Drives = append(cfg.Drives, verify.Drive{ID: d.ID(), Path: d.Dir(), Store: d, Scan: scanner(d)})
	}
	if c.node != nil {
		cfg.Drives = append(cfg.Drives, c.node.drivesElsewhere()...)
	}
	if heal {
		cfg.OnBad = func(owner storage.Owner, ref *metapb.ChunkRef, stripe, index int, drive storage.DriveID, err error) {
			c.Repair.Healer.Report(repair.BadShard{Owner: owner, Ref: ref, Stripe: stripe, Index: index, Drive: drive, Err: err})
		}
	}
	report, err := verify.Run(ctx, cfg)
	if report == nil {
		report = &status.Report{}
	}
	return *report, err
}

// scanner reads a drive's frames as the checker wants them.
func scanner(d *drive.Drive) func(context.Context, func(verify.Frame) error) error {
	return func(ctx context.Context, fn func(verify.Frame) error) error {
		return d.Scan(ctx, func(f drive.FrameInfo) error {
			return fn(verify.Frame{
				Header: f.Header, Bytes: f.Payload, Where: fmt.Sprintf("extent %d offset %d", f.Extent, f.Off), Err: f.Err,
			})
		})
	}
}

// bucketNames looks names up by id; an id without a name stays a number.
func (c *Core) bucketNames(ctx context.Context) func(storage.BucketID) string {
	return func(id storage.BucketID) string {
		name := fmt.Sprint(uint64(id))
		_ = c.Meta.System(ctx, func(r sysstate.Reader) error {
			row, err := r.BucketByID(id)
			if err == nil {
				name = row.Name
			}
			return err
		})
		return name
	}
}

// verifier is the metadata plane as the checker sees it.
type verifier struct {
	ranges
	groups   *multiraft.Host
	contents func(context.Context, cluster.GroupID) ([]multiraft.Content, error)
	listed   []cluster.Group // by Ranges
}

// Ranges are the ranges known now; Walk goes through them and what they are split into meanwhile.
func (v *verifier) Ranges() []cluster.GroupID {
	v.listed = v.meta.AllRanges()
	var ids []cluster.GroupID
	for _, g := range v.listed {
		ids = append(ids, g.ID)
	}
	return ids
}

// Walk walks the piece of the key space from the start of a range listed to that of the next one, so that every
// row is met once, also if the range was split since.
func (v *verifier) Walk(ctx context.Context, g cluster.GroupID, fn func(*rangestate.Item) error) (timeMS int64, err error) {
	i := slices.IndexFunc(v.listed, func(l cluster.Group) bool { return l.ID == g })
	if i < 0 {
		return 0, errs.Newf(errs.InvalidArgument, "verify", "", "range %d was not listed", g)
	}
	var end cluster.Pos
	if i+1 < len(v.listed) {
		end = v.listed[i+1].Bounds.Start
	}
	for at := v.listed[i].Bounds.Start; ; {
		bounds, err := v.meta.ReadFrom(ctx, at, func(view rangestate.Reader) (cluster.Bounds, error) {
			before, err := view.Info()
			if err != nil || !before.Bounds.Contains(at) {
				return before.Bounds, err
			}
			err = view.Walk(func(it *rangestate.Item) error {
				if err := ctx.Err(); err != nil {
					return err
				}
				return fn(it)
			})
			if err != nil {
				return before.Bounds, err
			}
			after, err := view.Info()
			if err == nil && after.Bounds != before.Bounds {
				err = errs.Newf(errs.Conflict, "verify", "", "range %d was split while it was read; run it again", g)
			}
			timeMS = max(timeMS, view.TimeMS())
			return after.Bounds, err
		})
		if err != nil || bounds.End == end || bounds.End == (cluster.Pos{}) {
			return timeMS, err
		}
		at = bounds.End
	}
}

func (v *verifier) Replicas(ctx context.Context) (out []verify.Replica, err error) {
	for _, g := range v.groups.Status() {
		contents, err := v.contents(ctx, g.Group)
		if err != nil {
			return nil, err
		}
		for _, c := range contents {
			if !c.Member {
				continue
			}
			r := verify.Replica{Group: g.Group, Drive: c.Drive, Voter: c.Voter, Applied: c.Applied, Hash: c.Hash, Err: c.Err}
			if c.Hash == nil && r.Err == nil {
				r.Err = fmt.Errorf("the replica %s is %s", c.ID, c.State)
			}
			out = append(out, r)
		}
	}
	return out, nil
}
