package drive

import (
	"errors"
	"slices"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"
	"cairn/storage/vfsx"

	"github.com/cockroachdb/pebble/v2"
)

const (
	batchRequestsMax = 256 // of one write: three buffers each fit one pwritev
	spaceCheckBytes  = 64 << 20
	spaceCheckEvery  = time.Second
	tombstonesMax    = 64 << 10 // entries of one frame
)

var padding [extent.Align]byte

// writer is the one goroutine that writes to extents and the index. All its
// fields but ended are its own (Open's, before it runs).
type writer struct {
	d     *Drive
	ended chan struct{}

	cur  *extentState // the open extent, acquired; nil: the next write begins one
	next uint32       // number of the next extent

	recent recent

	known map[storage.PGID]storage.Epoch // persisted
	told  map[storage.PGID]storage.Epoch // by SetEpochs since the start

	spaceLeft int64 // bytes that may be appended before the free space is asked for again
	spaceAt   time.Time
	nextClear uint64 // number of the last row of the clear queue

	// Of the batch at hand.
	batch   []*request
	carry   []*request // put off to the next batch
	shards  []*request // whose frames are to be written
	others  []*request // to be answered with them
	tombs   []extent.Tombstone
	epochs  []extent.Epoch
	lists   [][]byte // headers and payloads of tombstone and epoch frames
	inBatch map[storage.ShardID]struct{}
	removed map[storage.ChunkRemoval]int // index in tombs
	bufs    [][]byte
	touched []*extentState
	rows    *pebble.Batch
	key     []byte
	row     []byte
}

func newWriter(d *Drive) *writer {
	return &writer{
		d: d, ended: make(chan struct{}), next: 1,
		known: map[storage.PGID]storage.Epoch{}, told: map[storage.PGID]storage.Epoch{},
		inBatch: map[storage.ShardID]struct{}{}, removed: map[storage.ChunkRemoval]int{},
		rows: d.index.db.NewBatch(),
	}
}

// run takes batches from the queue until stop is closed and the queue empty.
func (w *writer) run() {
	defer close(w.ended)
	for {
		var first *request
		if len(w.carry) == 0 {
			select {
			case first = <-w.d.queue:
			default:
				select {
				case first = <-w.d.queue:
				case <-w.d.stop:
					return // the gate is closed: nobody sends any more
				}
			}
		}
		w.gather(first)
		w.commit()
	}
}

// gather collects what waits, up to the limits of a batch.
func (w *writer) gather(first *request) {
	w.batch = append(w.batch[:0], w.carry...)
	w.carry = w.carry[:0]
	if first != nil {
		w.batch = append(w.batch, first)
	}
	bytes := 0
	for _, r := range w.batch {
		bytes += r.bytes()
	}
	for len(w.batch) < batchRequestsMax && bytes < w.d.cfg.BatchBytesMax {
		select {
		case r := <-w.d.queue:
			w.batch = append(w.batch, r)
			bytes += r.bytes()
		default:
			return
		}
	}
}

// bytes is about what r adds to a batch.
func (r *request) bytes() int {
	return len(r.payload) + len(r.header) + extent.TombstoneBytes*(len(r.removals)+len(r.tombstones))
}

// commit writes one batch, syncs it, enters it in the index and answers.
func (w *writer) commit() {
	if err := w.d.Failed(); err != nil {
		w.answerAll(w.batch, err)
		return
	}
	w.shards, w.others, w.tombs, w.epochs, w.lists = w.shards[:0], w.others[:0], w.tombs[:0], w.epochs[:0], w.lists[:0]
	clear(w.inBatch)
	clear(w.removed)
	for _, r := range w.batch {
		w.stage(r)
	}
	if len(w.shards)+len(w.tombs)+len(w.epochs) == 0 {
		w.answerAll(w.others, w.d.Failed())
		return
	}
	shardsEnd, end, err := w.write()
	if vfsx.IsNoSpace(err) && w.d.Failed() == nil {
		w.noSpace(err)
		return
	}
	if err == nil {
		err = w.enterIndex(shardsEnd, end)
	}
	w.answerAll(w.shards, err)
	w.answerAll(w.others, err)
}

func (w *writer) answerAll(rs []*request, err error) {
	for i, r := range rs {
		rs[i] = nil
		w.d.finish(r, err)
	}
}

// stage decides what r adds to the batch, or answers it.
func (w *writer) stage(r *request) {
	switch r.kind {
	case kindAppend, kindMove:
		w.stageShard(r)
	case kindRemove:
		w.stageRemove(r)
	case kindKeep:
		for _, t := range r.tombstones {
			w.addTombstone(t)
		}
		w.others = append(w.others, r)
	case kindEpochs:
		w.stageEpochs(r)
	case kindJob:
		w.d.finish(r, r.job())
	}
}

func (w *writer) stageShard(r *request) {
	if _, ok := w.inBatch[r.id]; ok {
		w.carry = append(w.carry, r)
		return
	}
	if err := w.admit(r); err != nil {
		w.d.finish(r, err)
		return
	}
	w.inBatch[r.id] = struct{}{}
	w.shards = append(w.shards, r)
}

// admit checks whether a shard may be written.
func (w *writer) admit(r *request) error {
	const op = "drive.append"
	if r.kind == kindAppend {
		if told, ok := w.told[r.id.PG]; !ok || r.epoch != told {
			return w.staleEpoch(r, told)
		}
		if known, err := w.ask(&r.id); err != nil {
			return w.d.readFailed(op, err)
		} else if known == isRemoved {
			return errs.New(errs.Gone, op, r.id.String(), "the chunk was removed")
		} else if known == isNew {
			r.replace = location{}
			return w.roomFor(r)
		}
	}
	w.key = appendShardKey(w.key[:0], &r.id)
	was, ok, err := w.d.index.location(w.key)
	if err != nil {
		return w.d.readFailed(op, err)
	}
	if ok && was != r.replace {
		r.found = was
		return errExists
	}
	if !ok {
		if r.kind == kindMove {
			return errExists // removed meanwhile
		}
		r.replace = location{}
	}
	if r.kind == kindMove {
		return nil
	}
	return w.roomFor(r)
}

// ask tells whether a shard is new to the drive or its chunk removed, if that can be told without its row.
func (w *writer) ask(id *storage.ShardID) (verdict, error) {
	if known := w.recent.ask(id); known != askIndex {
		return known, nil
	}
	w.key = appendChunkKey(w.key[:0], rowTombstone, id.PG, &id.Chunk)
	if _, removed, err := w.d.index.number(w.key); removed || err != nil {
		return isRemoved, err
	}
	return askIndex, nil
}

func (w *writer) roomFor(r *request) error {
	if w.room(int64(r.bytes())) {
		return nil
	}
	return errs.New(errs.DriveFull, "drive.append", w.d.dir, "free space is below the reserve")
}

func (w *writer) staleEpoch(r *request, told storage.Epoch) error {
	if told == 0 {
		return errs.Newf(errs.StaleEpoch, "drive.append", r.id.String(), "epoch %d; the drive was told none since it started", r.epoch)
	}
	return errs.Newf(errs.StaleEpoch, "drive.append", r.id.String(), "epoch %d; the drive knows %d", r.epoch, told)
}

// room reports whether n bytes can be appended without touching the reserve.
// It asks the file system once a second or 64 MiB, since others may write there too.
func (w *writer) room(n int64) bool {
	if w.d.cfg.ReserveBytes <= 0 {
		return true
	}
	if now := time.Now(); w.spaceLeft < n || now.Sub(w.spaceAt) > spaceCheckEvery {
		usage, err := w.d.fs.GetDiskUsage(w.d.dir)
		if err != nil {
			w.d.log.Warn("free space is not known", "err", err)
			return true // a write will tell
		}
		w.spaceAt = now
		w.spaceLeft = min(int64(usage.AvailBytes)-w.d.cfg.ReserveBytes, max(n, spaceCheckBytes))
	}
	full := w.spaceLeft < n
	w.d.counters.full.Store(full)
	if !full {
		w.spaceLeft -= n
	}
	return !full
}

// stageRemove leaves out what was recorded lately.
func (w *writer) stageRemove(r *request) {
	now := w.d.cfg.Now().UnixMilli()
	refresh := w.d.cfg.TombstoneTTL.Milliseconds() / 48
	for _, c := range r.removals {
		w.key = appendChunkKey(w.key[:0], rowTombstone, c.PG, &c.Chunk)
		at, ok, err := w.d.index.number(w.key)
		if err != nil {
			w.d.finish(r, w.d.readFailed("drive.remove", err))
			return
		}
		if !ok || now-int64(at) > refresh {
			w.addTombstone(extent.Tombstone{ChunkRemoval: c, RemovedMS: now})
		}
	}
	w.others = append(w.others, r)
}

// addTombstone adds a chunk to the batch's tombstones once: its shards must not be taken out twice.
func (w *writer) addTombstone(t extent.Tombstone) {
	if i, ok := w.removed[t.ChunkRemoval]; ok {
		w.tombs[i].RemovedMS = max(w.tombs[i].RemovedMS, t.RemovedMS)
		return
	}
	w.removed[t.ChunkRemoval] = len(w.tombs)
	w.tombs = append(w.tombs, t)
}

func (w *writer) stageEpochs(r *request) {
	for _, e := range r.epochs {
		known := w.known[e.PG]
		switch {
		case r.keep && known > 0:
			w.epochs = append(w.epochs, extent.Epoch{PG: e.PG, Epoch: known})
		case !r.keep && e.Epoch > known:
			w.epochs = append(w.epochs, e)
		case !r.keep && e.Epoch == known:
			w.told[e.PG] = e.Epoch // it is durable already
		}
	}
	w.others = append(w.others, r)
}

// write puts the batch's frames into the open extent and syncs them. It answers where
// the shards' frames end and where all end. An error of no space leaves nothing
// written; any other has failed the drive.
func (w *writer) write() (shardsEnd, end int64, err error) {
	total := w.prepareLists()
	for _, r := range w.shards {
		total += int64(len(r.header) + extent.Padded(len(r.payload)))
	}
	if w.cur != nil && w.cur.size.Load() > fileHeaderBytes && w.cur.size.Load()+total > w.d.cfg.ExtentBytes {
		w.sealCurrent()
	}
	if w.cur == nil {
		if err := w.begin(); err != nil {
			return 0, 0, w.failUnlessFull(err)
		}
	}
	start := w.cur.size.Load()
	shardsEnd, end = w.place(start)
	_, err = w.cur.file.WriteV(start, w.bufs)
	clear(w.bufs) // no buffer is kept alive by us
	if err != nil {
		return 0, 0, w.failUnlessFull(err)
	}
	for _, r := range w.shards {
		r.bufferDone()
	}
	if len(w.shards) > 0 && w.d.cfg.ReserveBytes <= 0 {
		w.d.counters.full.Store(false) // with a reserve, room keeps it
	}
	began := time.Now()
	if err := w.cur.file.SyncData(); err != nil {
		w.d.Fail(err) // also of no space: what it lost is not known
		return 0, 0, w.d.Failed()
	}
	w.d.counters.syncNanos.Add(int64(time.Since(began)))
	w.d.counters.batches.Add(1)
	return shardsEnd, end, w.checkAfterSync()
}

func (w *writer) failUnlessFull(err error) error {
	if vfsx.IsNoSpace(err) {
		return err
	}
	w.d.Fail(err)
	return w.d.Failed()
}

// checkAfterSync: a sync of files that were removed behind our back succeeds.
func (w *writer) checkAfterSync() error {
	if err := w.d.Check(); err != nil {
		return err
	}
	id, err := w.cur.file.ID()
	if err == nil && id.Links == 0 {
		err = errors.New("the open extent was removed from its folder")
	}
	if err != nil {
		w.d.Fail(err)
	}
	return w.d.Failed()
}

// prepareLists makes the headers and payloads of tombstone and epoch frames, and answers their length.
func (w *writer) prepareLists() (total int64) {
	add := func(t extent.Type, payload []byte) {
		h := extent.AppendList(nil, t, payload)
		w.lists = append(w.lists, h, payload)
		total += int64(len(h) + extent.Padded(len(payload)))
	}
	for ts := w.tombs; len(ts) > 0; {
		n := min(len(ts), tombstonesMax)
		p := make([]byte, 0, n*extent.TombstoneBytes)
		for _, t := range ts[:n] {
			p = extent.AppendTombstone(p, t)
		}
		add(extent.Tombstones, p)
		ts = ts[n:]
	}
	if len(w.epochs) > 0 {
		p := make([]byte, 0, len(w.epochs)*extent.EpochBytes)
		for _, e := range w.epochs {
			p = extent.AppendEpoch(p, e)
		}
		add(extent.Epochs, p)
	}
	return total
}

// place seals the frames one after the other from start on and collects their buffers.
func (w *writer) place(start int64) (shardsEnd, end int64) {
	w.bufs = w.bufs[:0]
	off := start
	put := func(header, payload []byte) {
		extent.Seal(header, w.cur.salt, off, start)
		w.bufs = append(w.bufs, header, payload)
		if pad := extent.Padded(len(payload)) - len(payload); pad > 0 {
			w.bufs = append(w.bufs, padding[:pad])
		}
		off += int64(len(header) + extent.Padded(len(payload)))
	}
	for _, r := range w.shards {
		r.at = location{place{w.cur.number, uint32(off)}, uint16(len(r.header)), uint32(len(r.payload))}
		put(r.header, r.payload)
	}
	shardsEnd = off
	for i := 0; i < len(w.lists); i += 2 {
		put(w.lists[i], w.lists[i+1])
	}
	return shardsEnd, off
}

// begin creates the next extent: its header and its name are durable before a frame is.
func (w *writer) begin() error {
	number, salt := w.next, randomSalt()
	w.next++
	name := w.d.extentPath(number)
	f, err := w.d.fs.CreateFile(name)
	if err != nil {
		return err
	}
	h := extent.FileHeader{Number: number, Drive: w.d.identity.DriveID, Salt: salt, BegunMS: w.d.cfg.Now().UnixMilli()}
	_, err = f.WriteV(0, [][]byte{h.Encode()})
	if err == nil {
		err = f.SyncData()
	}
	if err == nil {
		err = vfsx.SyncDir(w.d.fs, w.d.fs.PathJoin(w.d.dir, extentsName))
	}
	if err != nil {
		return errors.Join(err, f.Close(), w.d.fs.Remove(name))
	}
	w.cur = w.d.extents.add(number, extentRow{salt: salt, size: fileHeaderBytes}, f)
	w.touch(w.cur)
	return nil
}

// sealCurrent ends the open extent. Its row says so with the next batch.
func (w *writer) sealCurrent() {
	w.cur.sealed.Store(true)
	w.touch(w.cur)
	w.d.extents.release(w.cur)
	w.cur = nil
	w.d.keeper.poke()
}

// noSpace answers a batch for which there was none: the appends are refused,
// and the rest, which frees space, is tried once more in a new extent.
func (w *writer) noSpace(err error) {
	full := &errs.Error{Kind: errs.DriveFull, Op: "drive.append", Subject: w.d.dir, Err: err}
	w.d.counters.full.Store(true)
	w.spaceLeft = 0
	again := len(w.shards) > 0
	w.answerAll(w.shards, full)
	w.shards = w.shards[:0]
	if w.cur != nil {
		w.cutTail()
	}
	if len(w.tombs)+len(w.epochs) == 0 {
		w.answerAll(w.others, w.d.Failed())
		return
	}
	err = full
	if again {
		w.lists = w.lists[:0]
		var shardsEnd, end int64
		if shardsEnd, end, err = w.write(); err == nil {
			err = w.enterIndex(shardsEnd, end)
		} else if vfsx.IsNoSpace(err) && w.d.Failed() == nil {
			if w.cur != nil {
				w.cutTail()
			}
			err = full
		}
	}
	w.answerAll(w.others, err)
}

// cutTail seals the open extent at its last good frame, behind which a write
// found no space. What that left there is zeroed, or an index rebuilt from the
// extents could find frames that were refused.
func (w *writer) cutTail() {
	e := w.cur
	size := e.size.Load()
	fi, err := e.file.Stat()
	if err == nil && fi.Size() > size {
		if err = e.file.PunchHole(size, fi.Size()-size); errors.Is(err, vfsx.ErrUnsupported) {
			_, err = e.file.WriteV(size, [][]byte{make([]byte, fi.Size()-size)})
		}
		if err == nil {
			err = e.file.SyncData()
		}
	}
	if err != nil && !vfsx.IsNoSpace(err) {
		w.d.Fail(err)
	}
	w.sealCurrent()
}

// enterIndex makes the batch's frames, durable by now, visible.
func (w *writer) enterIndex(shardsEnd, end int64) error {
	w.d.keeper.appended(end - w.cur.size.Load())
	w.rows.Reset()
	for _, r := range w.shards {
		if err := w.putShard(r.id, r.at, extent.ShardSums(r.header), r.replace, r.replace != location{}); err != nil {
			return w.d.readFailed("drive.append", err)
		}
		if r.kind == kindMove {
			w.d.counters.moves.Add(1)
		} else {
			w.d.counters.appends.Add(1)
			w.d.counters.appendBytes.Add(int64(r.at.payload))
		}
	}
	w.cur.size.Store(shardsEnd)
	w.touch(w.cur)
	if err := w.commitRows(); err != nil {
		return err
	}
	if end > shardsEnd {
		// Removals look for rows that this batch may have entered.
		w.rows.Reset()
		if err := w.putLists(w.tombs, w.epochs); err != nil {
			return w.d.readFailed("drive.remove", err)
		}
		w.cur.addOthers(end-shardsEnd, w.d.cfg.Now().UnixMilli())
		w.cur.size.Store(end)
		w.touch(w.cur)
		if err := w.commitRows(); err != nil {
			return err
		}
		for _, r := range w.others {
			if r.kind == kindEpochs && !r.keep {
				w.tell(r.epochs)
			}
		}
	}
	return nil
}

func (w *writer) tell(epochs []extent.Epoch) {
	for _, e := range epochs {
		if e.Epoch == w.known[e.PG] {
			w.told[e.PG] = e.Epoch
		}
	}
}

// putShard enters a frame in place of the one at was, if it replaces one.
func (w *writer) putShard(id storage.ShardID, at location, sums []byte, was location, replaces bool) error {
	w.recent.entered(&id)
	w.key = appendShardKey(w.key[:0], &id)
	w.row = appendShardRow(w.row[:0], at, sums)
	e := w.d.extents.get(at.extent)
	e.live.Add(at.frameBytes())
	e.liveFrames.Add(1)
	w.touch(e)
	if err := w.rows.Set(w.key, w.row, nil); err != nil {
		return err
	}
	if !replaces {
		return nil
	}
	w.d.bad.forget(id)
	return w.kill(was)
}

// kill takes a frame out of its extent's account and queues it for clearing.
func (w *writer) kill(was location) error {
	e := w.d.extents.get(was.extent)
	if e == nil {
		return nil
	}
	e.live.Add(-was.frameBytes())
	e.liveFrames.Add(-1)
	w.touch(e)
	return w.queueDead(was.place, was.frameBytes())
}

func (w *writer) queueDead(p place, bytes int64) error {
	c := dead{p, uint32(bytes), w.d.cfg.Now().UnixMilli()}
	w.nextClear++
	w.d.keeper.pokeClean()
	return w.rows.Set(clearKey(w.nextClear), c.row(), nil)
}

// putLists enters tombstones, which take their chunks' shards out, and epochs.
func (w *writer) putLists(tombs []extent.Tombstone, epochs []extent.Epoch) error {
	if len(tombs) > 0 {
		it, err := w.d.index.db.NewIter(&pebble.IterOptions{LowerBound: []byte{rowShard}, UpperBound: rowEnd(rowShard)})
		if err != nil {
			return err
		}
		for _, t := range tombs {
			if err = w.putTombstone(it, t); err != nil {
				break
			}
		}
		if err := errors.Join(err, it.Close()); err != nil {
			return err
		}
	}
	for _, e := range epochs {
		if e.Epoch <= w.known[e.PG] {
			continue
		}
		w.known[e.PG] = e.Epoch
		if err := w.rows.Set(numberKey(rowEpoch, uint32(e.PG)), appendNumberRow(nil, uint64(e.Epoch)), nil); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) putTombstone(it *pebble.Iterator, t extent.Tombstone) error {
	w.recent.removed(t.ChunkRemoval)
	prefix := appendChunkKey(nil, rowShard, t.PG, &t.Chunk)
	for ok := it.SeekGE(prefix); ok && len(it.Key()) == shardKeyBytes && string(it.Key()[:chunkKeyBytes]) == string(prefix); ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		l, _, err := parseShardRow(v)
		if err != nil {
			return err
		}
		if err := w.rows.Delete(it.Key(), nil); err != nil {
			return err
		}
		if err := w.kill(l); err != nil {
			return err
		}
	}
	if err := it.Error(); err != nil {
		return err
	}
	w.key = appendChunkKey(w.key[:0], rowTombstone, t.PG, &t.Chunk)
	at, ok, err := w.d.index.number(w.key)
	if err != nil {
		return err
	}
	if !ok {
		w.d.counters.tombstones.Add(1)
	}
	if ok && int64(at) >= t.RemovedMS {
		return nil
	}
	w.d.keeper.pokeOld()
	return w.rows.Set(w.key, appendNumberRow(nil, uint64(t.RemovedMS)), nil)
}

// touch notes that an extent's row has to be written with this batch.
func (w *writer) touch(e *extentState) {
	for _, t := range w.touched {
		if t == e {
			return
		}
	}
	w.touched = append(w.touched, e)
}

// untouch takes back touch for an extent that is about to go.
func (w *writer) untouch(e *extentState) {
	w.touched = slices.DeleteFunc(w.touched, func(t *extentState) bool { return t == e })
}

// commitRows writes the rows collected and those of the extents touched.
func (w *writer) commitRows() error {
	for _, e := range w.touched {
		if err := w.rows.Set(numberKey(rowExtent, e.number), e.row().encode(), nil); err != nil {
			return w.d.readFailed("drive.index", err)
		}
	}
	w.touched = w.touched[:0]
	if w.rows.Empty() {
		return nil
	}
	if err := w.rows.Commit(pebble.NoSync); err != nil {
		return w.d.readFailed("drive.index", err)
	}
	return nil
}

// sealOpen seals the open extent at the end of the drive's work.
func (w *writer) sealOpen() error {
	w.rows.Reset()
	if w.cur != nil {
		w.sealCurrent()
	}
	return w.commitRows()
}
