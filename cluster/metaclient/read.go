package metaclient

import (
	"context"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Read calls fn with a reader of the range that holds (bucket, key), which sees
// every write acknowledged before the call. Each call on it answers of one
// moment, but later writes may show between two. fn may be called again after a
// leader change and must not keep the reader. It must pass on an error of the
// reader that it does not understand.
func (c *Client) Read(ctx context.Context, b storage.BucketID, key storage.Key, fn func(rangestate.Reader) error) error {
	long := ctx
	return c.retry(ctx, func(ctx context.Context) error {
		return c.follow(func() (cluster.GroupID, error) { return c.GroupOf(b, key) }, func(g cluster.GroupID) ([]*metapb.SysGroup, error) {
			err := c.readRange(ctx, long, g, false, fn)
			return rangestate.Elsewhere(err), err
		})
	})
}

// ReadGroup is Read for a range by its group. Where the leader is here all of fn sees one moment. A Walk
// that has begun is not repeated if it ends early: Timeout.
func (c *Client) ReadGroup(ctx context.Context, g cluster.GroupID, fn func(rangestate.Reader) error) error {
	long := ctx
	return c.retry(ctx, func(ctx context.Context) error { return c.readRange(ctx, long, g, true, fn) })
}

// readRange reads here if the leader is here, else at the leader. oneMoment counts only here.
func (c *Client) readRange(ctx, long context.Context, g cluster.GroupID, oneMoment bool, fn func(rangestate.Reader) error) error {
	view := func(r pebble.Reader) (*rangestate.View, error) {
		v, err := c.views.View(r, g)
		if err == nil {
			c.sawTime(v.TimeMS())
		}
		return v, err
	}
	var err error
	if oneMoment {
		err = c.cfg.Groups.ReadSnapshot(ctx, g, func(r pebble.Reader, cut <-chan struct{}) error {
			v, err := view(r)
			if err != nil {
				return err
			}
			return fn(&moment{v, long, cut})
		})
	} else {
		err = c.cfg.Groups.Read(ctx, g, func(r pebble.Reader) error {
			v, err := view(r)
			if err != nil {
				return err
			}
			return fn(v)
		})
	}
	if !errs.Is(err, errs.NotLeader) {
		return err
	}
	c.views.Drop(g) // its replica here may be gone for good
	if c.cfg.Elsewhere == nil {
		return err
	}
	r := c.cfg.Elsewhere.Range(ctx, long, g, err)
	err = fn(r)
	c.sawTime(r.TimeMS())
	return err
}

// moment is a view of a snapshot of a replica here. Its Walk ends with long, and with the replica.
type moment struct {
	*rangestate.View
	long context.Context
	cut  <-chan struct{}
}

// Walk is View's.
func (m *moment) Walk(fn func(*rangestate.Item) error) error {
	kind := errs.Unavailable
	return m.View.Walk(func(it *rangestate.Item) error {
		select {
		case <-m.cut:
			return errs.New(kind, "metadata.walk", "", "the replica stopped: begin again")
		case <-m.long.Done():
			return errs.Wrap(kind, "metadata.walk", "", context.Cause(m.long))
		default:
		}
		kind = errs.Timeout // not one that is repeated: fn has seen a part
		return fn(it)
	})
}

// System calls fn with a reader of the system group, linearizably. What is said of fn at Read holds here.
func (c *Client) System(ctx context.Context, fn func(sysstate.Reader) error) error {
	return c.retry(ctx, func(ctx context.Context) error {
		err := c.cfg.Groups.Read(ctx, cluster.SystemGroup, func(r pebble.Reader) error { return fn(sysstate.NewView(r)) })
		if c.cfg.Elsewhere == nil || !errs.Is(err, errs.NotLeader) {
			return err
		}
		return fn(c.cfg.Elsewhere.System(ctx, err))
	})
}

// SysRead calls fn with the system group's state, linearizably, if its leader is in this
// process; else it waits for that until it times out: Unavailable.
func (c *Client) SysRead(ctx context.Context, fn func(pebble.Reader) error) error {
	return c.retry(ctx, func(ctx context.Context) error {
		return c.cfg.Groups.Read(ctx, cluster.SystemGroup, fn)
	})
}
