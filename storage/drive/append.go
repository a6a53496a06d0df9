package drive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"
)

const fileHeaderBytes = extent.FileHeaderBytes

// kind is what a request asks of the writer.
type kind uint8

const (
	kindAppend kind = iota // a shard
	kindMove               // a live shard's frame copied from another extent, if it still lies there
	kindRemove             // chunks to record as removed
	kindKeep               // tombstones copied from another extent
	kindEpochs             // epochs to raise, or (keep) to write again
	kindJob                // a function to run between two batches
)

// request is one call waiting for the writer. It belongs to the writer from
// when it is queued until it is answered; the caller may leave before.
type request struct {
	kind   kind
	state  atomic.Int32 // waiting, answered or left
	answer chan struct{}
	err    error
	done   func() // tells the owner of payload that it is not needed any more; nil after it was called

	// Append and move.
	id      storage.ShardID
	epoch   storage.Epoch
	header  []byte // of the frame; Seal is the writer's
	payload []byte
	replace location // what lies there may be replaced; zero: nothing
	found   location // where another frame of the shard lies, with errExists
	at      location // set by the writer: where the frame went

	removals   []storage.ChunkRemoval
	tombstones []extent.Tombstone
	epochs     []extent.Epoch
	keep       bool
	job        func() error
}

// States of a request.
const (
	waiting  int32 = iota
	answered       // by the writer
	left           // by the caller, who will not look at it again
)

// errExists is the writer's answer to an append of a shard that has a frame already.
var errExists = errors.New("drive: the shard exists")

func (d *Drive) newRequest(k kind) *request {
	r := d.requests.Get().(*request)
	r.kind = k
	return r
}

// free gives a request back, with its buffer and channel.
func (d *Drive) free(r *request) {
	*r = request{answer: r.answer, header: r.header[:0]}
	d.requests.Put(r)
}

// bufferDone calls done once.
func (r *request) bufferDone() {
	if r.done != nil {
		r.done()
		r.done = nil
	}
	r.payload = nil
}

// finish is the writer's last touch of a request. With errExists the buffer
// goes back to the caller, who compares and may ask again.
func (d *Drive) finish(r *request, err error) {
	if err != errExists {
		r.bufferDone()
	}
	r.err = err
	if r.state.CompareAndSwap(waiting, answered) {
		r.answer <- struct{}{}
		return
	}
	r.bufferDone()
	d.free(r)
}

// call queues r and waits for its answer. If ok is false the caller left before
// there was one, err says why, and r must not be touched again.
func (d *Drive) call(ctx context.Context, r *request) (ok bool, err error) {
	r.state.Store(waiting)
	select {
	case d.queue <- r:
	case <-ctx.Done():
		r.bufferDone()
		return false, d.ctxError(ctx)
	case <-d.failed:
		r.bufferDone()
		return false, d.Failed()
	}
	select {
	case <-r.answer:
		return true, r.err
	case <-ctx.Done():
		err = d.ctxError(ctx)
	case <-d.failed:
		err = d.Failed()
	}
	if r.state.CompareAndSwap(waiting, left) {
		return false, err
	}
	<-r.answer
	return true, r.err
}

func (d *Drive) ctxError(ctx context.Context) error {
	return &errs.Error{Kind: errs.Timeout, Op: "drive", Subject: d.dir, Err: ctx.Err()}
}

// do is call for a request whose answer is only an error.
func (d *Drive) do(ctx context.Context, r *request) error {
	ok, err := d.call(ctx, r)
	if ok {
		d.free(r)
	}
	return err
}

// Append implements storage.ShardStore. It waits while the queue is full, until
// ctx ends. An epoch that is not exactly the one last told by SetEpochs is
// StaleEpoch, a newer one too: the drive learns epochs from SetEpochs alone, and the writer retries after it was told.
func (d *Drive) Append(ctx context.Context, h storage.ShardHeader, payload []byte, done func()) error {
	err := d.enter()
	if err == nil {
		defer d.gate.leave()
		err = checkShard(&h, payload)
	}
	if err != nil {
		if done != nil {
			done()
		}
		return err
	}
	r := d.newRequest(kindAppend)
	r.id, r.epoch, r.done, r.payload = h.ID, h.Epoch, done, payload
	r.header = extent.AppendShard(r.header[:0], &h, payload)
	ok, err := d.call(ctx, r)
	for tries := 0; ok && err == errExists; tries++ {
		// Rare: a retry, or a repair.
		if ok, err = d.appendExisting(ctx, r, &h, tries); !ok {
			return err
		}
	}
	if ok {
		r.bufferDone()
		d.free(r)
	}
	return err
}

// appendExisting compares what lies on the drive with what is to be appended,
// and has it replaced if it is damaged. As call.
func (d *Drive) appendExisting(ctx context.Context, r *request, h *storage.ShardHeader, tries int) (ok bool, err error) {
	same, sound, err := d.compare(r, h)
	switch {
	case err != nil:
		return true, &errs.Error{Kind: lossKind(err), Op: "drive.append", Subject: h.ID.String(), Detail: "what the drive holds of this shard can't be read now", Err: err}
	case sound && same:
		return true, nil
	case sound:
		return true, errs.New(errs.Conflict, "drive.append", h.ID.String(), "the drive holds other bytes for this shard")
	case tries > 10:
		return true, errs.New(errs.Busy, "drive.append", h.ID.String(), "the shard moves all the time")
	}
	r.replace = r.found
	return d.call(ctx, r)
}

// compare reads the frame at r.found: whether it is whole, and whether its owner
// and bytes are those of r. With an error nothing is known.
func (d *Drive) compare(r *request, h *storage.ShardHeader) (same, sound bool, err error) {
	if d.bad.has(r.id, r.found.place) {
		return false, false, nil
	}
	e, err := d.extents.acquire(r.found.extent)
	if err != nil || e == nil {
		return false, false, unlessLost(err) // lost, or moved: then replacing it does not find it any more
	}
	defer d.extents.release(e)
	buf := make([]byte, r.found.frameBytes())
	if _, err := e.file.ReadAt(buf, int64(r.found.off)); err != nil && !errors.Is(err, io.EOF) {
		return false, false, unlessLost(err)
	}
	was, err := extent.ParseHeader(buf, e.salt, int64(r.found.off))
	if err != nil || was.Bytes != int(r.found.header) || was.Shard.ID != r.id {
		return false, false, nil
	}
	if extent.Verify(was.Sums, 0, buf[was.Bytes:was.Bytes+was.PayloadLen]) >= 0 {
		return false, false, nil
	}
	return was.Shard.Owner == h.Owner && was.PayloadLen == len(r.payload) && extent.Verify(was.Sums, 0, r.payload) < 0, true, nil
}

// unlessLost is err, or nil if it says that the bytes are lost.
func unlessLost(err error) error {
	if err == nil || lossKind(err) == errs.Corrupt {
		return nil
	}
	return err
}

// checkShard refuses what the format can't hold.
func checkShard(h *storage.ShardHeader, payload []byte) error {
	var detail string
	switch {
	case len(payload) == 0 || len(payload) > extent.PayloadBytesMax:
		detail = fmt.Sprintf("a shard of %d bytes", len(payload))
	case len(h.Owner.Key) > storage.KeyBytesMax:
		detail = fmt.Sprintf("a key of %d bytes", len(h.Owner.Key))
	case h.Layout.StripeBytes < 0 || int64(h.Layout.StripeBytes) > 1<<32-1:
		detail = fmt.Sprintf("stripes of %d bytes", h.Layout.StripeBytes)
	default:
		return nil
	}
	return errs.New(errs.InvalidArgument, "drive.append", h.ID.String(), detail)
}

// removalsMax is how many chunks one request names.
const removalsMax = 4096

// Remove implements storage.ShardStore.
func (d *Drive) Remove(ctx context.Context, chunks []storage.ChunkRemoval) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.gate.leave()
	for len(chunks) > 0 {
		n := min(len(chunks), removalsMax)
		r := d.newRequest(kindRemove)
		r.removals = append([]storage.ChunkRemoval(nil), chunks[:n]...) // the caller may leave before the writer is done
		if err := d.do(ctx, r); err != nil {
			return err
		}
		chunks = chunks[n:]
	}
	return nil
}

// SetEpochs implements storage.ShardStore.
func (d *Drive) SetEpochs(ctx context.Context, epochs map[storage.PGID]storage.Epoch) error {
	if err := d.enter(); err != nil {
		return err
	}
	defer d.gate.leave()
	r := d.newRequest(kindEpochs)
	for pg, e := range epochs {
		r.epochs = append(r.epochs, extent.Epoch{PG: pg, Epoch: e})
	}
	return d.do(ctx, r)
}
