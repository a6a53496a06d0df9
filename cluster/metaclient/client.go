// Package metaclient is the gateway's way into the metadata plane: it finds the
// Raft group that holds a key, proposes commands there and reads there, and
// hides leader changes from its callers.
//
// A command keeps its id over all tries, so a try whose fate is unknown is
// simply repeated: the range answers from the outcome of the first (design rule
// 10). A read is linearizable: it sees every write acknowledged before it began.
package metaclient

import (
	"context"
	"encoding/binary"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/cluster/rangestate"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Groups is where proposals and reads go: multiraft.Host, or in a cluster what also
// proposes to leaders on other nodes.
type Groups interface {
	// Propose commits data in group g and answers the state machine's result.
	// Errors: NotLeader and Busy (definitely not proposed), OutcomeUnknown, Unavailable.
	Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error)
	// Read calls fn with the group's state, which holds every write acknowledged before the call. It answers
	// NotLeader, without calling fn, unless the group's leader is in this process.
	Read(ctx context.Context, g cluster.GroupID, fn func(pebble.Reader) error) error
	// ReadSnapshot is Read for what may take long: fn gets a snapshot, and returns soon once cut is closed.
	ReadSnapshot(ctx context.Context, g cluster.GroupID, fn func(r pebble.Reader, cut <-chan struct{}) error) error
}

// Elsewhere asks leaders on other nodes. The Readers it makes are good for one use of a Client's Read.
type Elsewhere interface {
	// Range reads a group's range. notLeader is why it is not read here: it may name the leader. Answers end with
	// ctx, those that have no bound (Walk, Counters) with long.
	Range(ctx, long context.Context, g cluster.GroupID, notLeader error) rangestate.Reader
	// System reads the system group.
	System(ctx context.Context, notLeader error) sysstate.Reader
}

// Config of a Client. Groups, Topology, Now and Rand are required.
type Config struct {
	Groups    Groups
	Elsewhere Elsewhere                // nil: all leaders are in this process
	Lease     Lease                    // nil: the configuration is read at its leader
	Topology  func() *cluster.Topology // the newest snapshot; never nil
	Now       func() time.Time
	Rand      io.Reader     // of ids; must not fail (crypto/rand.Reader)
	Timeout   time.Duration // of one operation over all its tries; 0 is 15 s
	Day       time.Duration // how long a day is to minimum storage times, if not 24 hours; 0 is that
	// WroteEvents is called after each command that wrote events, wherever its range is led; it returns at once. nil: nobody waits for them.
	WroteEvents func()
	RetryMin    time.Duration // pause before the first repeat, doubled up to 20 times; 0 is 10 ms
}

// Client is safe for concurrent use.
type Client struct {
	cfg       Config
	rangeTime atomic.Int64 // newest range time seen, unix ms
	route     atomic.Pointer[routes]
	learned   learned
	views     *rangestate.Views
	rnd       struct {
		sync.Mutex
		buf [4096]byte
		at  int
	}
}

// New makes a Client.
func New(cfg Config) *Client {
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	if cfg.RetryMin == 0 {
		cfg.RetryMin = 10 * time.Millisecond
	}
	c := &Client{cfg: cfg, views: rangestate.NewViews()}
	c.rnd.at = len(c.rnd.buf)
	return c
}

// Random fills p (at most 64 bytes) with random bytes, read in larger pieces because ids are drawn several times a request.
func (c *Client) Random(p []byte) {
	c.rnd.Lock()
	defer c.rnd.Unlock()
	if c.rnd.at+len(p) > len(c.rnd.buf) {
		if _, err := io.ReadFull(c.cfg.Rand, c.rnd.buf[:]); err != nil {
			panic("metaclient: no random numbers: " + err.Error())
		}
		c.rnd.at = 0
	}
	copy(p, c.rnd.buf[c.rnd.at:])
	clear(c.rnd.buf[c.rnd.at : c.rnd.at+len(p)])
	c.rnd.at += len(p)
}

// Random64 is a random number.
func (c *Client) Random64() uint64 {
	var b [8]byte
	c.Random(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

// NewWriteID draws a write id.
func (c *Client) NewWriteID() (w storage.WriteID) {
	c.Random(w[:])
	return w
}

// NowMS is the gateway's best guess of range time, unix ms: births of chunks and
// the issue of commands carry it. It only ages things; it orders nothing.
func (c *Client) NowMS() int64 {
	return max(c.cfg.Now().UnixMilli(), c.rangeTime.Load())
}

// retry runs try until it answers something final, ctx ends or the timeout
// passes. Retriable are answers after which a repeat of the same is right. Once a try's fate was unknown
// only the state machine's answer to a later one can tell it.
func (c *Client) retry(ctx context.Context, try func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout,
		errs.New(errs.Unavailable, "metadata", "", "no answer from the metadata plane in time; see cairn status for groups without a leader"))
	defer cancel()
	unknown := false
	for pause := c.cfg.RetryMin; ; pause = min(2*pause, 20*c.cfg.RetryMin) {
		err := try(ctx)
		switch errs.KindOf(err) {
		case errs.NotLeader, errs.Unavailable, errs.WrongRange:
		case errs.OutcomeUnknown:
			unknown = true
		case errs.Busy, errs.DriveFull:
			if unknown { // this try was not proposed, but one before it may be in
				return errs.Wrap(errs.OutcomeUnknown, "metadata", "", err)
			}
			return err
		default:
			if unknown && !decided(err) {
				return errs.Wrap(errs.OutcomeUnknown, "metadata", "", err)
			}
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if unknown {
				return errs.Wrap(errs.OutcomeUnknown, "metadata", "", err)
			}
			return errs.Wrap(errs.Unavailable, "metadata", "", context.Cause(ctx))
		}
	}
}

// decided reports whether err, or nil, may be what the state machine answered, from the outcome of an earlier try too. The
// other kinds are of the way there, and say nothing of a try that went before; TooLate says that none is known.
func decided(err error) bool {
	if err == nil {
		return true
	}
	switch errs.KindOf(err) {
	case errs.Busy, errs.Timeout, errs.Closed, errs.DriveFailed, errs.DriveFull, errs.Corrupt, errs.Foreign, errs.Other, errs.TooLate:
		return false
	}
	return true
}

// Do proposes cmd in the range that holds (bucket, key) and answers its result.
// It fills the command's version, id and time if they are empty. A refusal by the
// range is an error of its kind, and the result is returned with it.
// OutcomeUnknown means that the command may or may not have happened, or still may.
func (c *Client) Do(ctx context.Context, b storage.BucketID, key storage.Key, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	return c.do(ctx, func() (cluster.GroupID, error) { return c.GroupOf(b, key) }, cmd)
}

// DoGroup is Do for commands that are about a range and not about a key.
func (c *Client) DoGroup(ctx context.Context, g cluster.GroupID, cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	return c.do(ctx, func() (cluster.GroupID, error) { return g, nil }, cmd)
}

func (c *Client) do(ctx context.Context, group func() (cluster.GroupID, error), cmd *metapb.RangeCommand) (*metapb.RangeResult, error) {
	if err := c.admit(cmd); err != nil {
		return nil, err
	}
	cmd.Version, cmd.DayMs = 1, c.dayMS()
	if len(cmd.Id) == 0 {
		cmd.Id = make([]byte, 16)
		c.Random(cmd.Id)
	}
	if cmd.IssuedMs == 0 {
		cmd.IssuedMs = c.NowMS()
	}
	data, err := cmd.MarshalVT()
	if err != nil {
		return nil, errs.Wrap(errs.Other, "metadata", "", err)
	}
	res := &metapb.RangeResult{}
	err = c.retry(ctx, func(ctx context.Context) error {
		return c.follow(group, func(g cluster.GroupID) ([]*metapb.SysGroup, error) {
			out, err := c.cfg.Groups.Propose(ctx, g, data)
			if err != nil {
				return nil, err
			}
			res.Reset()
			if err := res.UnmarshalVT(out); err != nil {
				return nil, errs.Wrap(errs.Corrupt, "metadata", "result", err)
			}
			c.saw(res)
			return res.Ranges, resultErr(res)
		})
	})
	return res, err
}

// dayMS is the length of a day as commands carry it: none where it is the usual one.
func (c *Client) dayMS() int64 {
	if c.cfg.Day == 24*time.Hour {
		return 0
	}
	return c.cfg.Day.Milliseconds()
}

// saw learns from a result.
func (c *Client) saw(res *metapb.RangeResult) {
	c.sawTime(res.TimeMs)
	if res.Events && c.cfg.WroteEvents != nil {
		c.cfg.WroteEvents()
	}
}

func (c *Client) sawTime(ms int64) {
	for {
		old := c.rangeTime.Load()
		if ms <= old || c.rangeTime.CompareAndSwap(old, ms) {
			return
		}
	}
}

// resultErr is the refusal in a result, or nil.
func resultErr(r *metapb.RangeResult) error {
	if r.Ok {
		return nil
	}
	return errs.New(errs.Kind(r.Kind), "metadata", "", r.Detail)
}

// admit checks before the proposal that what the command makes visible is as
// durable as its class promises with the topology of now (design rule 16). It
// stands here because only the proposer's side sees the topology; a state
// machine sees its own rows.
func (c *Client) admit(cmd *metapb.RangeCommand) error {
	var chunks []*metapb.ChunkRef
	switch op := cmd.Op.(type) {
	case *metapb.RangeCommand_PutObject:
		chunks = op.PutObject.Row.GetData().GetChunks()
	case *metapb.RangeCommand_PutPart:
		chunks = op.PutPart.Row.GetData().GetChunks()
	default:
		return nil
	}
	if len(chunks) > storage.ObjectChunksMax {
		return errs.Newf(errs.EntityTooLarge, "metadata", "", "%d chunks in one write, at most %d", len(chunks), storage.ObjectChunksMax)
	}
	t := c.cfg.Topology()
	for _, ref := range chunks {
		pg, ok := t.PGs[storage.PGID(ref.Pg)]
		if !ok {
			return errs.Newf(errs.Unavailable, "metadata", "", "placement group %d is not known", ref.Pg)
		}
		if !placement.Durable(t, &pg, ref.Missing) {
			return errs.Newf(errs.Busy, "metadata", "", "placement group %d: too few drives have the data", ref.Pg)
		}
	}
	return nil
}

// Sys proposes a command of the system group.
func (c *Client) Sys(ctx context.Context, cmd *metapb.SysCommand) (*metapb.SysResult, error) {
	cmd.Version = 1
	if len(cmd.Id) == 0 {
		cmd.Id = make([]byte, 16)
		c.Random(cmd.Id)
	}
	if cmd.IssuedMs == 0 {
		cmd.IssuedMs = c.cfg.Now().UnixMilli()
	}
	data, err := cmd.MarshalVT()
	if err != nil {
		return nil, errs.Wrap(errs.Other, "metadata", "", err)
	}
	res := &metapb.SysResult{}
	err = c.retry(ctx, func(ctx context.Context) error {
		out, err := c.cfg.Groups.Propose(ctx, cluster.SystemGroup, data)
		if err != nil {
			return err
		}
		res.Reset()
		if err := res.UnmarshalVT(out); err != nil {
			return errs.Wrap(errs.Corrupt, "metadata", "system result", err)
		}
		if !res.Ok {
			return errs.New(errs.Kind(res.Kind), "metadata", "", res.Detail)
		}
		return nil
	})
	if err == nil {
		err = c.obeyed(ctx, res.Config)
	}
	return res, err
}
