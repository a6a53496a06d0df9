package metaclient

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// A range's start never changes and its end only moves down, so an old table errs in one way: it names a range that
// lies before the right one. That range sends on to the child that was born with the key, which may
// send on again; what they say is remembered until the topology says it too.

// hopsMax bounds how often one try is sent on.
const hopsMax = 100

// learnedMax bounds what is remembered; when it is full it is forgotten, and learned again.
const learnedMax = 4096

// learned is what ranges said about themselves and their children that the topology did not say yet.
type learned struct {
	mu     sync.Mutex
	ranges map[cluster.GroupID]cluster.Group
	count  atomic.Uint64 // of changes
}

// routes are the ranges in order of their bounds, for one version of the topology and what was learned besides.
type routes struct {
	version, learned uint64
	ranges           []cluster.Group
}

func (c *Client) routes() *routes {
	t, n := c.cfg.Topology(), c.learned.count.Load()
	r := c.route.Load()
	if r != nil && r.version == t.Version && r.learned == n {
		return r
	}
	r = &routes{version: t.Version, learned: n}
	c.learned.mu.Lock()
	maps.DeleteFunc(c.learned.ranges, func(id cluster.GroupID, g cluster.Group) bool {
		known, ok := t.Groups[id]
		return ok && known.Generation >= g.Generation
	})
	for _, g := range c.learned.ranges {
		if known, ok := t.Groups[g.ID]; ok {
			g.Replicas = known.Replicas
		}
		r.ranges = append(r.ranges, g)
	}
	for id, g := range t.Groups {
		if _, newer := c.learned.ranges[id]; id != cluster.SystemGroup && !newer {
			r.ranges = append(r.ranges, g)
		}
	}
	c.learned.mu.Unlock()
	slices.SortFunc(r.ranges, func(a, b cluster.Group) int { return a.Bounds.Start.Compare(b.Bounds.Start) })
	c.route.Store(r)
	return r
}

// learn takes over what a range said of itself and its children.
func (c *Client) learn(ranges []*metapb.SysGroup) {
	if len(ranges) == 0 {
		return
	}
	now := c.routes().ranges
	changed := false
	c.learned.mu.Lock()
	defer c.learned.mu.Unlock()
	for _, row := range ranges {
		g := groupOf(row)
		i := slices.IndexFunc(now, func(o cluster.Group) bool { return o.ID == g.ID })
		if old, ok := c.learned.ranges[g.ID]; ok && old.Generation >= g.Generation || i >= 0 && now[i].Generation >= g.Generation {
			continue
		}
		if i >= 0 {
			g.Bounds.Start = now[i].Bounds.Start // it never changes, and is not always told
		}
		if c.learned.ranges == nil || len(c.learned.ranges) >= learnedMax {
			c.learned.ranges = map[cluster.GroupID]cluster.Group{}
		}
		c.learned.ranges[g.ID] = g
		changed = true
	}
	if changed {
		c.learned.count.Add(1)
	}
}

func groupOf(row *metapb.SysGroup) cluster.Group {
	pos := func(p *metapb.PosPB) cluster.Pos {
		return cluster.Pos{Bucket: storage.BucketID(p.GetBucket()), Key: storage.Key(p.GetKey())}
	}
	g := cluster.Group{ID: cluster.GroupID(row.Id), Generation: row.Generation, Bounds: cluster.Bounds{Start: pos(row.Start), End: pos(row.End)}}
	for _, r := range row.Replicas {
		m := cluster.Replica{ID: cluster.ReplicaID(r.GetId()), Voter: r.GetVoter()}
		copy(m.Drive[:], r.GetDrive())
		g.Replicas = append(g.Replicas, m)
	}
	return g
}

// Group is what is known of a range: as the topology has it, or as a range that is ahead of the topology said.
func (c *Client) Group(id cluster.GroupID) (cluster.Group, bool) {
	for _, g := range c.routes().ranges {
		if g.ID == id {
			return g, true
		}
	}
	return cluster.Group{}, false
}

// find is the range to ask about p: the last one that begins at or before it.
func (r *routes) find(p cluster.Pos) (cluster.Group, error) {
	i, ok := slices.BinarySearchFunc(r.ranges, p, func(g cluster.Group, p cluster.Pos) int { return g.Bounds.Start.Compare(p) })
	if !ok {
		i--
	}
	if i < 0 {
		return cluster.Group{}, errs.New(errs.Unavailable, "route", "", "no range holds the key; the topology is not known yet")
	}
	return r.ranges[i], nil
}

// AllRanges are all ranges known, in order. One that split a moment ago may be missing.
func (c *Client) AllRanges() []cluster.Group { return c.routes().ranges }

// GroupOf is the range that holds a key now, as far as is known.
func (c *Client) GroupOf(b storage.BucketID, key storage.Key) (cluster.GroupID, error) {
	g, err := c.routes().find(cluster.Pos{Bucket: b, Key: key})
	return g.ID, err
}

// follow runs try in the range that group names, and again where the ranges send it on to.
func (c *Client) follow(group func() (cluster.GroupID, error), try func(cluster.GroupID) ([]*metapb.SysGroup, error)) error {
	g, err := group()
	for range hopsMax {
		if err != nil {
			return err
		}
		var ranges []*metapb.SysGroup
		ranges, err = try(g)
		if !errs.Is(err, errs.WrongRange) {
			return err
		}
		c.learn(ranges)
		wrong := err
		was := g
		if g, err = group(); err == nil && g == was {
			return wrong // it says nothing new: later, perhaps
		}
	}
	return errs.New(errs.Unavailable, "route", "", "sent on from range to range without end")
}

// ReadFrom calls fn with a reader of the range that holds the place; fn reads once and answers the range's bounds as of then.
// They are answered. If the place is not in them, fn is called again where it is. What is said of fn at Read
// holds here; where the leader is here all of fn sees one moment.
func (c *Client) ReadFrom(ctx context.Context, at cluster.Pos, fn func(rangestate.Reader) (cluster.Bounds, error)) (bounds cluster.Bounds, err error) {
	long := ctx
	err = c.retry(ctx, func(ctx context.Context) error {
		return c.follow(func() (cluster.GroupID, error) { return c.GroupOf(at.Bucket, at.Key) }, func(g cluster.GroupID) ([]*metapb.SysGroup, error) {
			err := c.readRange(ctx, long, g, true, func(r rangestate.Reader) (err error) {
				if bounds, err = fn(r); err == nil && !bounds.Contains(at) {
					// Any question about a key says where it went.
					if _, err = r.VersionBySeq(at.Bucket, at.Key, 0); errs.Is(err, errs.NotFound) {
						err = errs.New(errs.Unavailable, "route", "", "the range's bounds changed while it was read")
					}
				}
				return err
			})
			return rangestate.Elsewhere(err), err
		})
	})
	return bounds, err
}

// EachRange proposes a command on a bucket's row in every range that can hold its keys, in order, also while they split:
// each range says how far it reached when it ran the command, and a later split copies the row. mk makes
// the command for the range that holds the key from. each gets what the range answered, a refusal too, and says
// whether to go on.
func (c *Client) EachRange(ctx context.Context, b storage.BucketID, mk func(from []byte) *metapb.RangeCommand, each func(res *metapb.RangeResult, refusal error) (bool, error)) error {
	from := storage.Key("")
	for {
		res, err := c.Do(ctx, b, from, mk([]byte(from)))
		if len(res.GetRanges()) == 0 {
			if err == nil {
				err = errs.New(errs.Corrupt, "metadata", "result", "a range does not say how far it reaches")
			}
			return err
		}
		end := res.Ranges[0].End
		more, err := each(res, err)
		switch {
		case err != nil || !more || end == nil || end.Bucket != uint64(b):
			return err
		case string(end.Key) <= string(from):
			return errs.New(errs.Corrupt, "metadata", "result", "a range ends before it begins")
		}
		from = storage.Key(end.Key)
	}
}

// Delete runs a bulk delete, one command for each range, and answers the results in the order of the entries. All
// commands have one id, so an entry whose key moved to another range meanwhile is repeated there
// without being run twice. A result's Events says that its command wrote some, for whichever of the entries. by is who
// they say has asked; nil: the store itself.
func (c *Client) Delete(ctx context.Context, by *metapb.Requester, op *metapb.DeleteObjectsOp) ([]*metapb.RangeResult, error) {
	results := make([]*metapb.RangeResult, len(op.Entries))
	left := make([]int, len(op.Entries))
	for i := range left {
		left[i] = i
	}
	id, issued := make([]byte, 16), c.NowMS()
	c.Random(id)
	err := c.retry(ctx, func(ctx context.Context) error {
		for range hopsMax {
			known := c.learned.count.Load()
			var err error
			if left, err = c.deleteSome(ctx, id, issued, by, op, left, results); err != nil || len(left) == 0 {
				return err
			}
			if known == c.learned.count.Load() {
				return errs.New(errs.WrongRange, "delete", "", "")
			}
		}
		return errs.New(errs.Unavailable, "route", "", "sent on from range to range without end")
	})
	if err != nil {
		return nil, err
	}
	return results, nil
}

// deleteSome sends the entries with these indexes where they are thought to lie, stores the results and answers those to be sent again.
func (c *Client) deleteSome(ctx context.Context, id []byte, issued int64, by *metapb.Requester, op *metapb.DeleteObjectsOp, indexes []int, results []*metapb.RangeResult) (left []int, err error) {
	byGroup := map[cluster.GroupID][]int{}
	for _, i := range indexes {
		g, err := c.GroupOf(storage.BucketID(op.Bucket), storage.Key(op.Entries[i].Key))
		if err != nil {
			return indexes, err
		}
		byGroup[g] = append(byGroup[g], i)
	}
	var failed error
	for g, mine := range byGroup {
		cmd := &metapb.DeleteObjectsOp{Bucket: op.Bucket, Owner: op.Owner}
		for _, i := range mine {
			cmd.Entries = append(cmd.Entries, op.Entries[i])
		}
		res, err := c.propose(ctx, g, &metapb.RangeCommand{Version: 1, Id: id, IssuedMs: issued, DayMs: c.dayMS(), Requester: by, Op: &metapb.RangeCommand_DeleteObjects{DeleteObjects: cmd}})
		if err == nil && !res.Ok && errs.Kind(res.Kind) != errs.WrongRange {
			err = resultErr(res)
		}
		if err == nil && len(res.Entries) != len(mine) {
			err = errs.Newf(errs.Corrupt, "metadata", "result", "%d results for %d entries", len(res.Entries), len(mine))
		}
		if err != nil {
			if failed == nil || errs.Is(err, errs.OutcomeUnknown) { // of several it is the one that must not be forgotten
				failed = err
			}
			left = append(left, mine...)
			continue
		}
		c.learn(res.Ranges)
		for n, i := range mine {
			if results[i] = res.Entries[n]; errs.Kind(results[i].Kind) == errs.WrongRange {
				left = append(left, i)
			} else {
				results[i].Events = results[i].Events || res.Events
			}
		}
	}
	return left, failed
}

// Touch says when versions were read, with one command for each range. It may be repeated.
func (c *Client) Touch(ctx context.Context, entries []*metapb.TouchEntry) error {
	return c.retry(ctx, func(ctx context.Context) error {
		for range hopsMax {
			known := c.learned.count.Load()
			var err error
			if entries, err = c.touchSome(ctx, entries); err != nil || len(entries) == 0 {
				return err
			}
			if known == c.learned.count.Load() {
				return errs.New(errs.WrongRange, "touch", "", "")
			}
		}
		return errs.New(errs.Unavailable, "route", "", "sent on from range to range without end")
	})
}

// touchSome sends the entries where they are thought to lie and answers those to be sent again.
func (c *Client) touchSome(ctx context.Context, entries []*metapb.TouchEntry) (left []*metapb.TouchEntry, failed error) {
	byGroup := map[cluster.GroupID][]*metapb.TouchEntry{}
	for _, e := range entries {
		g, err := c.GroupOf(storage.BucketID(e.Bucket), storage.Key(e.Key))
		if err != nil {
			return entries, err
		}
		byGroup[g] = append(byGroup[g], e)
	}
	for g, mine := range byGroup {
		id := make([]byte, 16)
		c.Random(id)
		res, err := c.propose(ctx, g, &metapb.RangeCommand{Version: 1, Id: id, IssuedMs: c.NowMS(), Op: &metapb.RangeCommand_Touch{Touch: &metapb.TouchOp{Entries: mine}}})
		if err == nil && !res.Ok {
			err = resultErr(res)
		}
		if err == nil && len(res.Entries) != len(mine) {
			err = errs.Newf(errs.Corrupt, "metadata", "result", "%d results for %d entries", len(res.Entries), len(mine))
		}
		if err != nil {
			failed = err
			left = append(left, mine...)
			continue
		}
		c.learn(res.Ranges)
		for i, e := range mine {
			if errs.Kind(res.Entries[i].Kind) == errs.WrongRange {
				left = append(left, e)
			}
		}
	}
	return left, failed
}

// propose is one try of a command in a range. A refusal is a result.
func (c *Client) propose(ctx context.Context, g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	data, err := cmd.MarshalVT()
	if err != nil {
		return nil, errs.Wrap(errs.Other, "metadata", "", err)
	}
	out, err := c.cfg.Groups.Propose(ctx, g, data)
	if err != nil {
		return nil, err
	}
	res := &metapb.RangeResult{}
	if err := res.UnmarshalVT(out); err != nil {
		return nil, errs.Wrap(errs.Corrupt, "metadata", "result", err)
	}
	c.saw(res)
	return res, nil
}
