package multiraft

import (
	"context"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/storage/errs"
)

// ReadSnapshot is Read for what may take long: fn gets a snapshot of the state, of one moment, and no install waits for it. It
// may wait for others, and must not keep r after it returns. Once cut is closed the replica has stopped and
// fn must return soon: its drive waits for it to be closed. What it has read until then holds. Errors as of Read; ctx
// bounds only what comes before fn.
func (h *Host) ReadSnapshot(ctx context.Context, id cluster.GroupID, fn func(r pebble.Reader, cut <-chan struct{}) error) error {
	r, err := h.readable(ctx, id)
	if err != nil {
		return err
	}
	stopped := errs.New(errs.Unavailable, "multiraft.readSnapshot", string(r.id), "the replica stopped")
	if !r.ds.users.enter() {
		return stopped
	}
	defer r.ds.users.leave()
	r.reading.RLock()
	snap := r.ds.db().NewSnapshot()
	r.reading.RUnlock()
	defer func() { _ = snap.Close() }() // fails only if closed twice
	if r.isCut.Load() {                 // its rows may have been going
		return stopped
	}
	return fn(snap, r.cutCh)
}
