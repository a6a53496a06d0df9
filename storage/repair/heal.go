package repair

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// BadShard is a shard that a read could not use. It has the fields of chunkio.BadShard.
type BadShard struct {
	Owner  storage.Owner
	Ref    *metapb.ChunkRef // read-only
	Stripe int
	Index  int
	Drive  storage.DriveID
	Err    error
}

// HealerConfig of a Healer. Plane is required; zeros are replaced by the defaults named.
type HealerConfig struct {
	Plane    Plane
	Logger   *slog.Logger
	Wake     func() // called when there is work, e.g. worker.Handle.Wake; nil: none
	QueueMax int    // shards waiting; more are dropped and left to scrub; default 4096
	TriesMax int    // of one shard; then it is left to scrub; default 6
}

// Back-off of a shard that could not be healed.
const (
	healBackoffMin = time.Second
	healBackoffMax = 5 * time.Minute
)

// Healer is the worker that rebuilds shards that reads found missing or corrupt.
// Report is safe for concurrent use.
type Healer struct {
	cfg    HealerConfig
	warner warner
	mu     struct {
		sync.Mutex
		queue   []healing        // that wait, each for its own next try
		queued  map[healKey]bool // in queue or being healed
		dropped int64
	}
}

// healing is a shard in the queue, and how its tries went.
type healing struct {
	BadShard
	tried Problem // zero before the first failure
}

func (b *healing) key() healKey { return healKey{storage.ChunkID(b.Ref.Id), b.Index} }

// healKey: a rebuild mends an index in all stripes of its chunk.
type healKey struct {
	chunk storage.ChunkID
	index int
}

// NewHealer makes the worker.
func NewHealer(cfg HealerConfig) *Healer {
	cfg.QueueMax = defInt(cfg.QueueMax, 4096)
	cfg.TriesMax = defInt(cfg.TriesMax, 6)
	cfg.Logger = defLog(cfg.Logger)
	h := &Healer{cfg: cfg, warner: warner{log: cfg.Logger}}
	h.mu.queued = make(map[healKey]bool)
	return h
}

// Name of the worker.
func (h *Healer) Name() string { return "heal" }

// Left is the number of shards waiting.
func (h *Healer) Left() (int64, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return int64(len(h.mu.queued)), true
}

// Dropped counts reports that found the queue full, or were given up.
func (h *Healer) Dropped() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.dropped
}

// Problems are the shards that could not be healed yet, longest first.
func (h *Healer) Problems() []Problem {
	h.mu.Lock()
	var out []Problem
	for _, b := range h.mu.queue {
		if b.tried.Tries > 0 {
			out = append(out, b.tried)
		}
	}
	h.mu.Unlock()
	return longestFirst(out)
}

// Report queues a shard; it never blocks. Only missing and corrupt shards are
// healed: of one on a drive that does not answer nothing is known.
func (h *Healer) Report(b BadShard) {
	if k := errs.KindOf(b.Err); k != errs.Corrupt && k != errs.NotFound {
		return
	}
	if len(b.Ref.GetId()) != len(storage.ChunkID{}) {
		return
	}
	k := healKey{storage.ChunkID(b.Ref.Id), b.Index}
	h.mu.Lock()
	fresh := !h.mu.queued[k]
	switch {
	case !fresh:
	case len(h.mu.queued) >= h.cfg.QueueMax:
		h.mu.dropped++
		fresh = false
	default:
		h.mu.queued[k] = true
		h.mu.queue = append(h.mu.queue, healing{BadShard: b})
	}
	h.mu.Unlock()
	if fresh && h.cfg.Wake != nil {
		h.cfg.Wake()
	}
}

// Step heals the first shard of the queue that may be tried now.
func (h *Healer) Step(ctx context.Context) (done int64, more bool, err error) {
	b, ok := h.take()
	if !ok {
		return 0, false, nil
	}
	err = h.cfg.Plane.Rebuild(ctx, b.Owner, b.Ref, []int{b.Index})
	if ctx.Err() != nil {
		h.requeue(b)
		return 0, false, ctx.Err()
	}
	k := b.key()
	if err == nil || errs.Is(err, errs.Gone) {
		h.finish(k, false)
		h.cfg.Logger.Info("shard healed", "bucket", b.Owner.Bucket, "key", string(b.Owner.Key), "chunk", k.chunk, "index", b.Index, "drive", b.Drive.Short(), "was", b.Err)
		return 1, true, nil
	}
	now := time.Now()
	if b.tried.Tries == 0 {
		b.tried.What, b.tried.Since = fmt.Sprintf("%s shard %d", chunkName(b.Owner, k.chunk), b.Index), now
	}
	b.tried.failed(now, healBackoffMin, healBackoffMax, err)
	h.warner.warn("shard not healed yet", "what", b.tried.What, "drive", b.Drive.Short(), "tries", b.tried.Tries, "err", err)
	if b.tried.Tries >= h.cfg.TriesMax {
		h.finish(k, true)
	} else {
		h.requeue(b)
	}
	return 0, true, nil
}

// take removes the first shard that may be tried now from the queue; it stays known as queued.
func (h *Healer) take() (healing, bool) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, b := range h.mu.queue {
		if !now.Before(b.tried.Next) {
			h.mu.queue = slices.Delete(h.mu.queue, i, i+1)
			return b, true
		}
	}
	return healing{}, false
}

func (h *Healer) requeue(b healing) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.queue = append(h.mu.queue, b)
}

func (h *Healer) finish(k healKey, givenUp bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.mu.queued, k)
	if givenUp {
		h.mu.dropped++
	}
}
