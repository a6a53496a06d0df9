package multiraft

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// Waits of Contents.
const (
	stillTries  = 30                     // looks for a moment in which all replicas have applied the same
	stillPause  = 100 * time.Millisecond // between them; followers of a quiet group lag by CommitTimeout
	captureWait = 5 * time.Second
	quietLooks  = 25 // in a row without a change, after which indexes that differ stay so: see sameMoment
)

// captureAhead is how far ahead of a busy group its replicas are asked to stop for
// a snapshot, by the number of the attempt: a group with a few writes a second comes
// that far in time, and in one with thousands all replicas are asked before one is past it.
func captureAhead(attempt int) uint64 { return min(uint64(8)<<(3*min(attempt, 4)), 4096) }

// Content is what a replica holds at an index.
type Content struct {
	ReplicaStatus
	Hash []byte // SHA-256 of all the group's rows at index Applied; nil if State is not ReplicaRunning or Err is set
}

// capture asks a replica for a snapshot of its state at exactly an index.
type capture struct {
	index uint64
	got   chan *pebble.Snapshot // of capacity 1
}

// Contents hashes the rows of every replica of a group that is here, all at the
// same applied index if that can be had: either the group is quiet for a moment, or the replicas
// take a snapshot each as they pass an index somewhat ahead. It reads all rows of
// the group once for each replica. Replicas that are away are listed without a hash. Errors: NotFound (nothing of the group
// is here), Unavailable (a replica was stopped meanwhile), DriveFailed, ctx's.
func (h *Host) Contents(ctx context.Context, id cluster.GroupID) ([]Content, error) {
	g := h.group(id, false)
	if g == nil {
		return nil, errs.Newf(errs.NotFound, "multiraft.contents", "", "group %d is not here", id)
	}
	var out []Content
	for _, s := range h.groupStatus(id).Replicas {
		out = append(out, Content{ReplicaStatus: s})
	}
	replicas := slices.DeleteFunc(g.replicas(), func(r *replica) bool { return r.isCut.Load() || r.markerPoint().Index == 0 })
	// The drives' states must not close while their snapshots are open.
	entered := replicas[:0:0]
	for _, r := range replicas {
		if r.ds.users.enter() {
			defer r.ds.users.leave()
			entered = append(entered, r)
		}
	}
	snaps, err := sameMoment(ctx, entered)
	if err != nil {
		return nil, err
	}
	defer closeSnapshots(snaps)
	for i, r := range entered {
		for j := range out {
			if out[j].ID == r.id {
				out[j].hash(ctx, r, snaps[i])
			}
		}
	}
	return out, ctx.Err()
}

func closeSnapshots(snaps []*pebble.Snapshot) {
	for _, s := range snaps {
		if s != nil {
			_ = s.Close()
		}
	}
}

func (h *Host) groupStatus(id cluster.GroupID) GroupStatus {
	for _, s := range h.Status() {
		if s.Group == id {
			return s
		}
	}
	return GroupStatus{}
}

// sameMoment takes a snapshot of each replica's state, of the same index if possible. In a quiet group indexes may
// differ for ever though the rows are the same: a replica that got its state by snapshot counts the no-ops and
// barriers up to the sender's marker, which the others' state machines never see.
func sameMoment(ctx context.Context, replicas []*replica) ([]*pebble.Snapshot, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, r := range replicas { // whoever stops one waits for us
		defer context.AfterFunc(r.ctx, func() { cancel(errGone("multiraft.contents", r.id)) })()
	}
	var before []uint64
	quiet := 0
	for try := 0; ; try++ {
		snaps := make([]*pebble.Snapshot, len(replicas))
		indexes := make([]uint64, len(replicas))
		for i, r := range replicas {
			snaps[i] = r.ds.db().NewSnapshot()
			p, err := readApplied(snaps[i], r.g.id)
			if err != nil {
				closeSnapshots(snaps)
				return nil, errs.Wrap(errs.DriveFailed, "multiraft.contents", string(r.id), err)
			}
			indexes[i] = p.Index
		}
		still := len(slices.Compact(slices.Clone(indexes))) <= 1
		if quiet++; !slices.Equal(indexes, before) {
			before, quiet = indexes, 0
		}
		if ctx.Err() == nil && (still || quiet >= quietLooks || try >= stillTries) {
			return snaps, nil
		}
		closeSnapshots(snaps)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if try%3 == 2 && quiet < 2 {
			if snaps := passing(ctx, replicas, slices.Max(indexes)+captureAhead(try/3)); snaps != nil {
				return snaps, nil
			}
		}
		select {
		case <-time.After(stillPause):
		case <-ctx.Done():
		}
	}
}

// passing has each replica take a snapshot as it passes an index; nil if not all did in time,
// because the group went quiet before, or if another caller is at it.
func passing(ctx context.Context, replicas []*replica, index uint64) []*pebble.Snapshot {
	asked := make([]*capture, 0, len(replicas))
	for _, r := range replicas {
		c := &capture{index: index, got: make(chan *pebble.Snapshot, 1)}
		if !r.capture.CompareAndSwap(nil, c) {
			break
		}
		asked = append(asked, c)
	}
	timeout := time.NewTimer(captureWait)
	defer timeout.Stop()
	snaps := make([]*pebble.Snapshot, len(replicas))
	all := len(asked) == len(replicas)
	for i := 0; all && i < len(asked); i++ {
		select {
		case snaps[i] = <-asked[i].got:
		case <-timeout.C:
			all = false
		case <-ctx.Done():
			all = false
		}
	}
	if all {
		return snaps
	}
	for i, c := range asked {
		if !replicas[i].capture.CompareAndSwap(c, nil) && snaps[i] == nil {
			snaps[i] = <-c.got // being taken just now
		}
	}
	closeSnapshots(snaps)
	return nil
}

// applyTo applies logs as ApplyBatch does, stopping for the snapshot c asks for.
// A captured state holds all entries up to c.index and none after it.
func (r *replica) applyTo(c *capture, logs []*raft.Log, out []any) error {
	n := 0
	for n < len(logs) && logs[n].Index <= c.index {
		n++
	}
	if err := r.applyBatch(logs[:n], out[:n]); err != nil {
		return err
	}
	// Entries that no state machine sees (no-ops, barriers) may stand at the index itself: then the first one after it tells.
	if (r.appliedPoint.Index == c.index || n < len(logs)) && r.capture.CompareAndSwap(c, nil) {
		c.got <- r.ds.db().NewSnapshot()
	}
	return r.applyBatch(logs[n:], out[n:])
}

// hash fills in the hash of the replica's rows in a snapshot, and the index.
func (c *Content) hash(ctx context.Context, r *replica, snap *pebble.Snapshot) {
	p, err := readApplied(snap, r.g.id)
	if err == nil {
		c.Applied = p.Index
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(r.ctx, cancel)() // whoever stops it waits for us
		c.Hash, err = hashRows(ctx, r.sm, snap)
	}
	if r.isCut.Load() {
		c.Hash, c.Err = nil, errGone("multiraft.contents", r.id)
		return
	}
	if err != nil {
		c.Err = errs.Wrap(errs.Corrupt, "multiraft.contents", string(r.id), err)
	}
}

func hashRows(ctx context.Context, sm StateMachine, snap *pebble.Snapshot) ([]byte, error) {
	spans, err := sm.Spans(snap)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	for _, s := range spans {
		if err := hashSpan(ctx, h, snap, s); err != nil {
			return nil, err
		}
	}
	return h.Sum(nil), nil
}

// hashSpan adds the rows of a span, each with its lengths, so that no two contents read alike.
func hashSpan(ctx context.Context, h hash.Hash, snap *pebble.Snapshot, s cluster.KeySpan) (err error) {
	it, err := snap.NewIter(&pebble.IterOptions{LowerBound: s.Start, UpperBound: s.End})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := it.Close(); err == nil {
			err = cerr
		}
	}()
	var head [16]byte
	for ok, n := it.First(), 0; ok; ok, n = it.Next(), n+1 {
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint64(head[:8], uint64(len(it.Key())))
		binary.BigEndian.PutUint64(head[8:], uint64(len(v)))
		h.Write(head[:])
		h.Write(it.Key())
		h.Write(v)
	}
	return it.Error()
}
