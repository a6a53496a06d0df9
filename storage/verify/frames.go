package verify

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"cairn/cluster"
	"cairn/server/status"
	"cairn/storage"
)

// scan notes every live frame of every drive.
func (r *run) scan(ctx context.Context) error {
	r.unread = map[storage.DriveID]int64{}
	for id, d := range r.topo.Drives {
		if _, ok := r.drives[id]; !ok && d.State != cluster.DriveRemoved {
			r.problem(r.on(status.Problem{Kind: KindDrive, Detail: "it is recorded as " + d.State.String() +
				" and cannot be read: what lies on it is not verified; bring it back, or put an empty folder in its place to have it filled again"}, id))
		}
	}
	sem := make(chan struct{}, r.cfg.Parallel)
	failed := make([]error, len(r.cfg.Drives))
	var wg sync.WaitGroup
	for i := range r.cfg.Drives {
		sem <- struct{}{}
		wg.Go(func() {
			failed[i] = r.scanDrive(ctx, i)
			<-sem
		})
	}
	wg.Wait()
	for i, err := range failed {
		d := &r.cfg.Drives[i]
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, new(scratchError)):
			return err
		default:
			r.problem(r.on(status.Problem{Kind: KindDrive, Detail: err.Error() + "; what was not read of it counts as missing until it is read again"}, d.ID))
		}
	}
	return nil
}

// scratchError is an error of the scratch data, not of the drive.
type scratchError struct{ error }

func (e scratchError) Unwrap() error { return e.error }

func (r *run) scanDrive(ctx context.Context, i int) error {
	var last storage.ChunkID // whose owner was noted last
	var lastOwner storage.Owner
	return r.cfg.Drives[i].Scan(ctx, func(f Frame) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		id := f.Header.ID
		if id.Chunk == (storage.ChunkID{}) {
			r.problem(r.on(status.Problem{Kind: KindCorrupt, Detail: fmt.Sprintf("%s: bytes that were written are no frame (%v); shards that lay there are reported with their objects", f.Where, f.Err)}, r.cfg.Drives[i].ID))
			return nil
		}
		r.count(func(c *counts) { c.frames++; c.bytes += int64(f.Bytes) })
		if id.Chunk != last || f.Header.Owner != lastOwner {
			last, lastOwner = id.Chunk, f.Header.Owner
			if err := r.scratch.putOwner(id.Chunk, &f.Header.Owner); err != nil {
				return scratchError{err}
			}
		}
		if err := r.scratch.putFrame(i, &f); err != nil {
			return scratchError{err}
		}
		return nil
	})
}
