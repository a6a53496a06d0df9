package chunkio

import (
	"math/bits"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
)

// shipment is one try of making a stripe durable in one placement group. It
// outlives the write when drives are late: they hold the buffer until they
// return it, and until then it counts as their lag.
type shipment struct {
	w      *writer
	chunk  *chunk
	buf    *buffer
	head   storage.ShardHeader // of every shard, but for index and epoch
	shards [][]byte
	slots  []slot
	sent   time.Time
	all    uint64

	// Guarded by w.mu. Bit i stands for shard i.
	answered uint64 // has an outcome
	durable  uint64 // is on disk
	out      uint64 // its drive holds the buffer
	lagging  uint64 // its drive was late before: not worth waiting for
	late     uint64 // counted in its drive's lag
	left     bool   // the write goes on without waiting for this shipment; until then the stripe holds the buffer
	quorumAt time.Time
	why      error // of the last shard that failed
}

// slot is one shard of a shipment.
type slot struct {
	ship  *shipment
	index int
	drive *drive
	store storage.ShardStore
	epoch storage.Epoch
	again bool // sent a second time, after StaleEpoch
}

func newShipment(w *writer, s *stripe) *shipment {
	c := s.chunk
	ship := &shipment{
		w: w, chunk: c, buf: s.buf, shards: s.shards, sent: time.Now(), all: c.group.all, slots: make([]slot, len(s.shards)),
		head: storage.ShardHeader{
			ID:    storage.ShardID{PG: c.group.pg.ID, Chunk: c.id, Stripe: uint16(s.index)},
			Owner: w.req.Owner, Layout: c.layout,
		},
	}
	for i := range ship.slots {
		ship.slots[i] = slot{ship: ship, index: i, drive: c.group.drives[i], epoch: c.group.pg.Epoch}
	}
	return ship
}

// send starts the append of every shard that is to be tried.
func (s *shipment) send(try uint64) {
	w := s.w
	w.mu.Lock()
	var ready uint64
	for i := range s.slots {
		if l, bit := &s.slots[i], uint64(1)<<i; try&bit == 0 {
			s.answered |= bit
		} else if l.readyLocked() {
			ready |= bit
		}
	}
	w.mu.Unlock()
	for i := range s.slots {
		if ready&(1<<i) != 0 {
			s.slots[i].start()
		}
	}
}

// readyLocked lends the buffer to the shard's drive, or answers for it if it cannot be asked.
func (l *slot) readyLocked() bool {
	s, bit := l.ship, uint64(1)<<l.index
	lag := l.drive.lag.Load()
	if l.store = s.w.plane.cfg.Store(l.drive.id); l.store == nil || lag > s.w.plane.lagMax {
		s.answerLocked(l, errs.New(errs.DriveFailed, "chunkio.write", l.drive.id.Short(), "the drive is not reachable or does not answer"))
		return false
	}
	if lag > 0 {
		s.lagging |= bit
	}
	s.buf.retain()
	s.out |= bit
	s.w.borrowed++
	return true
}

// start hands the shard to its drive.
func (l *slot) start() {
	if async, ok := l.store.(storage.AsyncAppender); ok {
		async.AppendAsync(l.header(), l.payload(), l.finish)
		return
	}
	l.ship.w.mu.Lock()
	l.startBlockingLocked()
	l.ship.w.mu.Unlock()
}

// finish is the answer of an asynchronous append: outcome and buffer at once.
func (l *slot) finish(err error) {
	if errs.Is(err, errs.Busy) && l.waitInLine() {
		return
	}
	l.returned()
	l.answer(err)
}

// waitInLine appends in a goroutine because the drive's queue is full.
func (l *slot) waitInLine() bool {
	l.ship.w.mu.Lock()
	defer l.ship.w.mu.Unlock()
	if l.ship.left {
		return false
	}
	l.startBlockingLocked()
	return true
}

func (l *slot) startBlockingLocked() {
	ctx := l.ship.w.contextForAppendLocked()
	go func() {
		l.answer(l.store.Append(ctx, l.header(), l.payload(), l.returned))
	}()
}

func (l *slot) payload() []byte { return l.ship.shards[l.index] }

func (l *slot) header() storage.ShardHeader {
	h := l.ship.head
	h.ID.Index, h.Epoch = uint8(l.index), l.epoch
	return h
}

// answer records what became of the shard and pokes the writer if that decides something.
func (l *slot) answer(err error) {
	s := l.ship
	if errs.Is(err, errs.StaleEpoch) && l.sendAgain() {
		return
	}
	s.w.mu.Lock()
	s.answerLocked(l, err)
	wake := !s.left && s.decidedLocked()
	s.w.mu.Unlock()
	if wake {
		s.w.poke()
	}
}

func (s *shipment) answerLocked(l *slot, err error) {
	s.answered |= 1 << l.index
	switch {
	case err == nil:
		s.durable |= 1 << l.index
		l.drive.answered()
	case errs.Is(err, errs.StaleEpoch):
		s.why = err // the drive is fine
	default:
		s.why = err
		s.w.avoidLocked(l.drive)
	}
}

// sendAgain sends the shard once more if its group has a newer epoch by now.
func (l *slot) sendAgain() bool {
	s := l.ship
	g := s.w.plane.view().groups[s.head.ID.PG]
	s.w.mu.Lock()
	ready := false
	if g != nil && g.pg.Epoch > l.epoch && l.index < len(g.drives) && !l.again && !s.left {
		l.again, l.epoch, l.drive = true, g.pg.Epoch, g.drives[l.index]
		ready = l.readyLocked()
	}
	s.w.mu.Unlock()
	if ready {
		l.start()
	}
	return ready
}

// decidedLocked reports whether the writer should look.
func (s *shipment) decidedLocked() bool {
	pending := s.all &^ s.answered
	if pending == 0 {
		return true
	}
	q := &s.chunk.group.quorum
	if !q.Holds(s.durable) {
		return !q.Holds(s.durable | pending)
	}
	if s.quorumAt.IsZero() {
		s.quorumAt = time.Now()
	}
	return pending&^s.lagging == 0
}

// returned takes the buffer back from the shard's drive.
func (l *slot) returned() {
	s, bit := l.ship, uint64(1)<<l.index
	s.w.mu.Lock()
	if s.late&bit != 0 {
		l.drive.lag.Add(-int64(cap(s.buf.b)))
	}
	s.out &^= bit
	s.late &^= bit
	s.w.borrowed--
	s.w.mu.Unlock()
	s.buf.release()
}

// leaveLocked is called when the write stops waiting for the shipment: what is
// still out counts as lag from now on.
func (s *shipment) leaveLocked() {
	if s.left {
		return
	}
	s.left = true
	s.late = s.out &^ s.answered
	for late := s.late; late != 0; late &= late - 1 {
		s.slots[bits.TrailingZeros64(late)].drive.lag.Add(int64(cap(s.buf.b)))
	}
}

// giveUpLocked is leaveLocked for a shipment that failed: if it took too long, the
// rest of the write avoids the drives that did not answer.
func (s *shipment) giveUpLocked(timeout bool) {
	pending := s.all &^ s.answered
	for i := range s.slots {
		if timeout && pending&(1<<i) != 0 {
			s.w.avoidLocked(s.slots[i].drive)
			s.why = errs.New(errs.Timeout, "chunkio.write", s.slots[i].drive.id.Short(), "the drive does not answer")
		}
	}
	s.leaveLocked()
}
