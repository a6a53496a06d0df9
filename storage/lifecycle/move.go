package lifecycle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"math/bits"
	"slices"
	"sync"
	"time"

	"cairn/cluster/placement"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/storage"
	"cairn/storage/chunkio"
	"cairn/storage/errs"
)

// Plane is the data plane as the worker sees it: compress.Plane.
type Plane interface {
	// Read writes the n bytes from off on of the chunks to dst, each verified.
	Read(ctx context.Context, dst io.Writer, owner storage.Owner, refs []*metapb.ChunkRef, off, n int64) error
	// Write makes a body durable and answers its chunks; some shards may be missing.
	Write(ctx context.Context, req chunkio.WriteRequest) ([]*metapb.ChunkRef, error)
	// Rebuild makes the shards with these indexes from the others, appends them where they are not yet, reads
	// them back and compares.
	Rebuild(ctx context.Context, owner storage.Owner, ref *metapb.ChunkRef, indexes []int) error
}

// move is a version to be moved to another class or tier.
type move struct {
	scan       *scan
	key        storage.Key
	seq        storage.Seq
	write      storage.WriteID
	noncurrent bool
	newer      int // noncurrent versions that are newer, as it was found
	action     rules.Action

	part  int   // parts up to this number are moved
	bytes int64 // written so far
}

// block keeps a class that could not be written from being tried for every version.
type block struct {
	until time.Time
	inRow int
	why   error
}

// isBlocked reports whether moves to a class wait.
func (w *Worker) isBlocked(class storage.StorageClass) bool {
	b := w.blocked[class]
	return b != nil && time.Now().Before(b.until)
}

// outcome is how a move, or a step of it, went.
type outcome int

const (
	moved   outcome = iota // it is of the new class or tier
	partly                 // there are more parts
	skipped                // it is not due any more, or not the same: a round sees what is there
	failed                 // see the error
)

// moveSome goes on with the first moves of the queue, Parallel at once.
func (w *Worker) moveSome(ctx context.Context) (done int64, err error) {
	type result struct {
		outcome
		err error
	}
	var batch []*move
	for len(batch) < w.cfg.Parallel && len(w.queue) > 0 {
		m := w.queue[0]
		w.queue = w.queue[1:]
		switch b := w.buckets[m.scan.bucket]; {
		case b == nil: // it has no rules any more
		case w.isBlocked(m.action.Class):
			w.status.waits(b, m.action, w.blocked[m.action.Class].why)
			w.moving.failed = true
		default:
			batch = append(batch, m)
		}
	}
	results := make([]result, len(batch))
	var wg sync.WaitGroup
	for i, m := range batch {
		b := w.buckets[m.scan.bucket]
		wg.Go(func() { results[i].outcome, results[i].err = w.move(ctx, b, m) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		w.queue = append(batch, w.queue...)
		return 0, ctx.Err()
	}
	for i, m := range batch {
		b := w.buckets[m.scan.bucket]
		switch r := results[i]; r.outcome {
		case moved:
			done++
			delete(w.blocked, m.action.Class)
			w.status.settled(b, m.action)
			w.status.did(b, m.action, m.bytes)
		case partly:
			delete(w.blocked, m.action.Class)
			w.queue = append([]*move{m}, w.queue...)
		case skipped:
			w.status.settled(b, m.action)
			w.moving.failed = true // looked at again
		default:
			w.failed(b, m, r.err)
		}
	}
	return done, nil
}

// failed notes a move that did not succeed: it stays due.
func (w *Worker) failed(b *bucket, m *move, err error) {
	w.moving.failed = true
	w.status.waits(b, m.action, err)
	w.cfg.Logger.Warn("not moved to another storage class yet", "bucket", b.Name, "key", string(m.key), "seq", m.seq, "class", m.action.Class, "err", err)
	switch errs.KindOf(err) {
	case errs.Unavailable, errs.DriveFull, errs.DriveFailed, errs.Busy, errs.Timeout, errs.StaleEpoch:
		x := w.blocked[m.action.Class]
		if x == nil {
			x = &block{}
			w.blocked[m.action.Class] = x
		}
		x.inRow++
		x.why, x.until = err, time.Now().Add(backoff(w.cfg.BackoffMin, w.cfg.BackoffMax, x.inRow))
	}
}

// move moves a version: of a multipart one a part, and after the last part the version itself. The read is registered before the
// metadata is read, like a client's (design rule 17).
func (w *Worker) move(ctx context.Context, b *bucket, m *move) (outcome, error) {
	pin := w.cfg.Pins.Begin()
	defer pin.Release()
	if w.cfg.MayRead != nil && !w.cfg.MayRead() {
		return failed, errs.New(errs.Unavailable, "lifecycle.move", b.Name, "this node is cut off from the cluster")
	}
	row, err := w.cfg.Meta.Version(ctx, b.ID, m.key, m.seq)
	if err != nil {
		return failed, err
	}
	if row == nil || storage.WriteID(row.WriteId) != m.write || !w.stillDue(b, m, row) {
		return skipped, nil
	}
	pin.Hold(m.write)
	c := &copying{w: w, bucket: b, move: m, wrap: pin.Writer}
	owner := storage.Owner{Bucket: b.ID, Key: m.key, Write: m.write}
	op := &metapb.RewriteDataOp{
		Bucket: uint64(b.ID), Key: []byte(m.key), VersionSeq: uint64(m.seq), WriteId: row.WriteId,
		ConfigGeneration: b.Generation, TagsHash: rangestate.TagsHash(row.GetAttributes().GetTags()),
	}
	if op.Tier = m.tier(row.GetTiering()); op.Tier == nil {
		op.StorageClass = string(m.action.Class)
	}
	if row.GetData().GetUploadSeq() == 0 {
		return c.rewrite(ctx, owner, op, row.GetData(), row.Size)
	}
	parts, err := w.cfg.Meta.Parts(ctx, b.ID, m.key, row, m.part, partsPage)
	if errs.Is(err, errs.NotFound) {
		return skipped, nil
	}
	if err != nil {
		return failed, err
	}
	if len(parts) == 0 {
		op.Data, op.Generation = row.Data, row.Data.Generation
		return c.propose(ctx, op)
	}
	return c.parts(ctx, parts, row.Data.UploadSeq)
}

// tier is the change that the move asks for of a version that is in INTELLIGENT_TIERING as t says; nil: it is a transition.
func (m *move) tier(t *metapb.Tiering) *metapb.ChangeTier {
	if m.action.What != rules.Retier {
		return nil
	}
	return &metapb.ChangeTier{To: m.action.Tier(), IfAccessedMs: t.GetAccessedMs()}
}

// partsPage is how many parts are read at a time; those that need no copy are passed at once.
const partsPage = 16

// stillDue decides again with what is there now. A version that is not in its place any more is left to the next round.
func (w *Worker) stillDue(b *bucket, m *move, row *metapb.ObjectRow) bool {
	if row.DeleteMarker || (row.NoncurrentMs != 0) != m.noncurrent {
		return false
	}
	now := w.cfg.Now().UnixMilli()
	o := factsOf(b, m.key, row, !m.noncurrent, now)
	o.Newer = m.newer
	a := b.rules.Decide(&o, max(now, m.action.DueMS))
	return a.What == m.action.What && a.Class == m.action.Class
}

// copying is one step of a move. Its reads are held.
type copying struct {
	w      *Worker
	bucket *bucket
	move   *move
	wrap   func(io.Writer) io.Writer // ends a read that was aborted
}

// parts copies the first part that lies elsewhere.
func (c *copying) parts(ctx context.Context, parts []*metapb.PartRow, upload uint64) (outcome, error) {
	for _, p := range parts {
		if sizeOf(p.GetData()) == p.Size && c.liesRight(p.GetData()) {
			c.move.part = int(p.Number)
			continue
		}
		owner := storage.Owner{Bucket: c.bucket.ID, Key: c.move.key, Write: storage.WriteID(p.WriteId)}
		op := &metapb.RewriteDataOp{
			Bucket: uint64(c.bucket.ID), Key: []byte(c.move.key), UploadSeq: upload, Part: p.Number, WriteId: p.WriteId,
			ConfigGeneration: c.bucket.Generation, Tier: c.move.tier(nil),
		}
		if o, err := c.rewrite(ctx, owner, op, p.GetData(), p.Size); o != moved {
			return o, err
		}
		c.move.part = int(p.Number)
		break
	}
	return partly, nil
}

// rewrite copies data into the class, unless it lies where it belongs, and proposes the command with it.
// The data must be all size bytes.
func (c *copying) rewrite(ctx context.Context, owner storage.Owner, op *metapb.RewriteDataOp, data *metapb.Data, size uint64) (outcome, error) {
	if got := sizeOf(data); got != size {
		return failed, errs.Newf(errs.Corrupt, "lifecycle.move", string(c.move.key), "the row names %d of %d bytes", got, size)
	}
	op.Generation, op.Data = data.GetGeneration(), &metapb.Data{Inline: data.GetInline(), Chunks: data.GetChunks()}
	if c.liesRight(data) {
		for _, ref := range data.GetChunks() {
			op.Kept = append(op.Kept, ref.Id)
		}
		return c.propose(ctx, op)
	}
	fresh, err := c.copy(ctx, owner, data.Chunks)
	if len(fresh) > 0 {
		op.Data, op.Release = &metapb.Data{Chunks: fresh}, data.Chunks
	}
	if err != nil {
		if len(fresh) > 0 && ctx.Err() == nil {
			c.discard(ctx, op)
		}
		if errs.Is(err, errs.Gone) { // deleted since it was read
			return skipped, nil
		}
		return failed, err
	}
	return c.propose(ctx, op)
}

// sizeOf is how many bytes data names.
func sizeOf(data *metapb.Data) uint64 {
	n := uint64(len(data.GetInline()))
	for _, ref := range data.GetChunks() {
		n += ref.ObjectBytes()
	}
	return n
}

// propose carries the command out. On a Conflict what was copied is garbage already.
func (c *copying) propose(ctx context.Context, op *metapb.RewriteDataOp) (outcome, error) {
	switch err := c.w.cfg.Meta.Rewrite(ctx, op); {
	case errs.Is(err, errs.Conflict):
		return skipped, nil
	case err != nil:
		return failed, err
	}
	return moved, nil
}

// discard makes garbage of a copy that is not to be used, and was never proposed to be: by a
// command that cannot hold, since no data ever has that generation. If it fails the copy is found as orphans.
func (c *copying) discard(ctx context.Context, op *metapb.RewriteDataOp) {
	op.Generation = 1 << 63
	if err := c.w.cfg.Meta.Rewrite(ctx, op); err != nil && !errs.Is(err, errs.Conflict) {
		c.w.cfg.Logger.Info("a copy that is not used is left to scrub", "bucket", c.bucket.Name, "key", string(c.move.key), "err", err)
	}
}

// liesRight reports whether data lies in placement groups of the class, or would be put where it lies: bytes in the row
// itself, and chunks where the class has no groups of its own (it is then as safe as STANDARD).
func (c *copying) liesRight(data *metapb.Data) bool {
	t := c.w.cfg.Topology()
	target := placement.SameTarget(c.move.action.Class)
	in := func(class storage.StorageClass) bool {
		return !slices.ContainsFunc(data.GetChunks(), func(ref *metapb.ChunkRef) bool {
			pg, ok := t.PGs[storage.PGID(ref.Pg)]
			return !ok || placement.SameTarget(pg.Class) != class
		})
	}
	if in(target) {
		return true
	}
	for _, pg := range t.PGs {
		if placement.SameTarget(pg.Class) == target {
			return false
		}
	}
	return in(storage.Standard)
}

// copy writes the bytes of chunks anew in the class and proves the copy: every shard of it is on its drive, and
// it reads back as what was read. With an error it answers the chunks that were written, if any.
func (c *copying) copy(ctx context.Context, owner storage.Owner, old []*metapb.ChunkRef) ([]*metapb.ChunkRef, error) {
	size := int64(0)
	for _, ref := range old {
		size += int64(ref.ObjectBytes())
	}
	sum := sha256.New()
	fresh, err := c.write(ctx, owner, old, size, sum)
	if err != nil {
		return nil, err
	}
	for _, ref := range fresh {
		if err := c.complete(ctx, owner, ref); err != nil {
			return fresh, err
		}
	}
	back := sha256.New()
	if err := c.w.cfg.Plane.Read(ctx, back, owner, fresh, 0, size); err != nil {
		return fresh, err
	}
	if !bytes.Equal(sum.Sum(nil), back.Sum(nil)) {
		return fresh, errs.New(errs.Corrupt, "lifecycle.move", string(c.move.key), "the copy reads back differently")
	}
	c.move.bytes += size
	return fresh, nil
}

// write streams the old chunks into new ones.
func (c *copying) write(ctx context.Context, owner storage.Owner, old []*metapb.ChunkRef, size int64, sum hash.Hash) ([]*metapb.ChunkRef, error) {
	ctx, cancel := context.WithCancel(ctx)
	r, to := io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() { to.CloseWithError(c.w.cfg.Plane.Read(ctx, c.wrap(to), owner, old, 0, size)) })
	fresh, err := c.w.cfg.Plane.Write(ctx, chunkio.WriteRequest{
		Owner: owner, Class: c.move.action.Class, Size: size, Body: r, BirthMS: c.w.cfg.BirthMS,
		Tee: func(p []byte) { sum.Write(p) },
	})
	cancel()
	r.CloseWithError(context.Canceled)
	wg.Wait()
	return fresh, err
}

// complete makes the shards that a chunk lacks, then makes all parity anew and compares
// it with what is on the drives: that reads every data shard, too. So every shard is proven.
func (c *copying) complete(ctx context.Context, owner storage.Owner, ref *metapb.ChunkRef) error {
	if lacking := indexesOf(ref.Missing); len(lacking) > 0 {
		if err := c.w.cfg.Plane.Rebuild(ctx, owner, ref, lacking); err != nil {
			return err
		}
		ref.Missing = 0
	}
	var parity []int
	for i := range int(ref.M) {
		parity = append(parity, int(ref.K)+i)
	}
	return c.w.cfg.Plane.Rebuild(ctx, owner, ref, parity)
}

// indexesOf are the set bits, in order.
func indexesOf(set uint64) (out []int) {
	for ; set != 0; set &= set - 1 {
		out = append(out, bits.TrailingZeros64(set))
	}
	return out
}
