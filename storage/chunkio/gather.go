package chunkio

import (
	"context"
	"math/bits"
	"sync/atomic"
	"time"

	"cairn/storage/errs"
)

// stripeRead gathers columns of one stripe's shards. It begins with the shards
// that hold the bytes asked for, each read into its place of one buffer. When one of
// them fails or is late the read is degraded: the columns [lo, hi) of so many
// other shards are read that any k are there, and what lacks is computed.
//
// A late read still writes into its place, so computed bytes get memory of their own.
type stripeRead struct {
	piece
	r        *reader
	out      *buffer // of the bytes asked for; nil if any k shards are wanted
	lo, hi   int     // columns that decoding takes
	wants    []wanted
	fetches  []*fetch
	results  chan *fetch // never full
	skip     uint64      // shards not to be asked
	degraded bool
	begun    time.Time // when somebody began to wait for it
	spare    []*buffer // of computed bytes
	failures []error   // of each shard, see verdict
}

// wanted is a part of the bytes asked for: columns [lo, hi) of a data shard.
type wanted struct {
	index  int
	lo, hi int
	pad    int    // zeros behind hi, up to the end of the shard
	mem    []byte // its place in out
	fetch  *fetch // nil if its drive was not worth asking
}

// fetch is one read from one shard.
type fetch struct {
	s      *stripeRead
	index  int
	lo, hi int
	buf    *buffer // where mem lies; the fetch holds a reference while it runs
	mem    []byte
	pad    int // columns behind hi that are zeros, with room for them behind mem
	begun  time.Time
	phase  atomic.Int32 // see phases

	// Belongs to the reader, once the fetch came out of results.
	done bool
	err  error
}

// Phases of a fetch.
const (
	running int32 = iota
	overdue       // counted in its drive's slowReads
	over
)

func newStripeRead(r *reader, pc piece) *stripeRead {
	shards := pc.chunk.layout.Scheme.Shards()
	return &stripeRead{
		piece: pc, r: r, begun: time.Now(), failures: make([]error, shards),
		results: make(chan *fetch, 2*shards), // at most one for the bytes wanted and one for decoding
	}
}

// want starts the reads of the bytes [from, to) of the stripe.
func (s *stripeRead) want() {
	c := s.chunk
	if c.layout.Scheme.K == 1 {
		s.lo, s.hi = s.from, s.to
		s.wants = []wanted{{index: s.bestCopy(), lo: s.from, hi: s.to, mem: s.out.b}}
	} else {
		s.wantDataShards(c.layout.ShardLen(s.stripe))
	}
	for i := range s.wants {
		w := &s.wants[i]
		if p := s.r.plane.preference(c, w.index); p == good || c.layout.Scheme.K == 1 && p != unreachable {
			s.out.retain()
			w.fetch = s.launch(&fetch{index: w.index, lo: w.lo, hi: w.hi, buf: s.out, mem: w.mem, pad: w.pad, begun: s.begun})
		} else {
			s.degraded = true
		}
	}
	if s.degraded {
		s.launchSpares()
	}
}

// wantDataShards cuts the bytes asked for at the borders of the data shards. Where
// the data ends the padding of its shard is known to be zeros: out has room for it.
func (s *stripeRead) wantDataShards(shardLen int) {
	first, last := s.from/shardLen, (s.to-1)/shardLen
	s.wants = make([]wanted, 0, last-first+1)
	s.lo, s.hi = shardLen, 0
	place := s.out.b
	for i := first; i <= last; i++ {
		w := wanted{index: i, lo: max(0, s.from-i*shardLen), hi: min(shardLen, s.to-i*shardLen)}
		n := w.hi - w.lo
		w.mem, place = place[:n], place[n:]
		s.lo, s.hi = min(s.lo, w.lo), max(s.hi, w.hi)
		s.wants = append(s.wants, w)
	}
	if w := &s.wants[len(s.wants)-1]; s.to == s.chunk.layout.StripeLen(s.stripe) {
		w.pad = shardLen - w.hi
	}
}

// bestCopy is the copy to read.
func (s *stripeRead) bestCopy() int { return max(0, s.bestSource(func(int) bool { return true })) }

// distances is more than any distance of a drive.
const distances = 4

// bestSource is the best of the shards that ok allows, the nearest among equals; -1 if none can be reached.
func (s *stripeRead) bestSource(ok func(i int) bool) int {
	best, bestCost := -1, distances*unreachable
	for i := range s.failures {
		if s.skip&(1<<i) != 0 || !ok(i) {
			continue
		}
		cost := distances*s.r.plane.preference(s.chunk, i) + min(s.r.plane.cfg.Distance(s.chunk.group.drives[i].id), distances-1)
		if cost < bestCost {
			best, bestCost = i, cost
		}
		if cost == 0 {
			break
		}
	}
	return best
}

// launch reads columns of a shard in a goroutine, which takes over a reference to the buffer.
func (s *stripeRead) launch(f *fetch) *fetch {
	f.s = s
	s.fetches = append(s.fetches, f)
	go f.run(s.r.ctx)
	return f
}

// stackAhead is about how much stack a read takes. A goroutine's stack grows by copying what is on it: once at the
// beginning, for this, where there is nothing yet, instead of deep in the index. That was 4 % of the CPU of a large GET.
const stackAhead = 4 << 10

func (f *fetch) run(ctx context.Context) {
	var room [stackAhead]byte
	f.read(ctx, &room)
}

func (f *fetch) read(ctx context.Context, _ *[stackAhead]byte) {
	s := f.s
	f.err = s.r.plane.readShard(ctx, s.chunk, s.stripe, f.index, f.lo, f.mem)
	if f.phase.Swap(over) == overdue {
		s.chunk.group.drives[f.index].slowReads.Add(-1)
	}
	f.buf.release()
	s.results <- f
}

// covers reports whether the fetch is of use in decoding.
func (f *fetch) covers() bool { return f.lo <= f.s.lo && f.hi+f.pad >= f.s.hi }

// gather waits until the bytes asked for are there, and answers them in order.
// They are valid until close.
func (s *stripeRead) gather() ([][]byte, error) {
	s.beginToWait()
	for !s.complete() {
		if s.degraded {
			if s.decodable() {
				return s.decode()
			}
			s.launchSpares()
		}
		if err := s.next(); err != nil {
			return nil, err
		}
	}
	return [][]byte{s.out.b[:s.to-s.from]}, nil
}

// beginToWait restarts the clock of a read that was started ahead, and was not
// watched since: nobody noticed if it became late.
func (s *stripeRead) beginToWait() {
	if time.Since(s.begun) < s.r.plane.cfg.HedgeAfter {
		return
	}
	s.begun = time.Now()
	for {
		select {
		case f := <-s.results:
			s.took(f)
			continue
		default:
		}
		s.hedge()
		return
	}
}

// gatherAny waits until the columns of any k shards are there.
func (s *stripeRead) gatherAny() error {
	s.degraded = true
	for !s.decodable() {
		s.launchSpares()
		if err := s.next(); err != nil {
			return err
		}
	}
	return nil
}

// complete reports whether all bytes asked for were read, none need be computed.
func (s *stripeRead) complete() bool {
	for i := range s.wants {
		if f := s.wants[i].fetch; f == nil || !f.done || f.err != nil {
			return false
		}
	}
	return true
}

// decodable reports whether k shards are there.
func (s *stripeRead) decodable() bool {
	have := 0
	for _, f := range s.fetches {
		if f.done && f.err == nil && f.covers() {
			have++
		}
	}
	return have >= int(s.chunk.layout.Scheme.K)
}

// launchSpares asks for so many more shards that k will be there if those asked in time answer.
func (s *stripeRead) launchSpares() {
	hope := 0
	for _, f := range s.fetches {
		if f.covers() && (f.done && f.err == nil || !f.done && f.phase.Load() != overdue) {
			hope++
		}
	}
	for ; hope < int(s.chunk.layout.Scheme.K); hope++ {
		i := s.bestSource(s.notAsked)
		if i < 0 {
			return
		}
		// Waiting here could deadlock with other degraded reads. A stripe takes at most one such buffer a shard.
		buf := s.r.plane.buffers.force(outbound, s.hi-s.lo)
		buf.retain()
		s.spare = append(s.spare, buf)
		s.launch(&fetch{index: i, lo: s.lo, hi: s.hi, buf: buf, mem: buf.b, begun: time.Now()})
	}
}

// notAsked reports whether shard i was not yet asked for what decoding takes.
func (s *stripeRead) notAsked(i int) bool {
	for _, f := range s.fetches {
		if f.index == i && (f.covers() || f.done && f.err != nil) {
			return false
		}
	}
	return true
}

// next waits for an answer, and asks others when it takes too long. It fails when
// what is still to come cannot be enough.
func (s *stripeRead) next() error {
	if err := s.hopeless(); err != nil {
		return err
	}
	select {
	case f := <-s.results:
		s.took(f)
		return nil
	default:
	}
	left := s.r.plane.cfg.ShardTimeout - time.Since(s.begun)
	if left <= 0 {
		return s.failed()
	}
	timer := s.r.startTimer(min(left, s.untilHedge()))
	defer timer.Stop()
	select {
	case f := <-s.results:
		s.took(f)
	case <-timer.C:
		s.hedge()
	case <-s.r.ctx.Done():
		return s.r.ctx.Err()
	}
	return nil
}

// untilHedge is the time until some fetch is late.
func (s *stripeRead) untilHedge() time.Duration {
	cfg := &s.r.plane.cfg
	until := cfg.ShardTimeout
	for _, f := range s.fetches {
		if !f.done && f.phase.Load() == running {
			until = min(until, cfg.HedgeAfter-time.Since(f.begun))
		}
	}
	return max(until, 0)
}

func (r *reader) startTimer(d time.Duration) *time.Timer {
	if r.timer == nil {
		r.timer = time.NewTimer(d)
	} else {
		r.timer.Reset(d)
	}
	return r.timer
}

// hedge gives up hope for what was asked HedgeAfter ago: others are asked instead.
func (s *stripeRead) hedge() {
	after := s.r.plane.cfg.HedgeAfter
	for _, f := range s.fetches {
		if !f.done && time.Since(f.begun) >= after && f.phase.CompareAndSwap(running, overdue) {
			d := s.chunk.group.drives[f.index]
			d.slowReads.Add(1)
			d.shun() // a remote read may end with this request while its drive goes on to hang
			s.degraded = true
		}
	}
}

// took looks at an answer.
func (s *stripeRead) took(f *fetch) {
	f.done = true
	d := s.chunk.group.drives[f.index]
	if f.err == nil {
		d.answered()
		return
	}
	s.degraded, s.chunk.byShard = true, false
	s.failures[f.index] = f.err
	switch kind := errs.KindOf(f.err); {
	case s.r.ctx.Err() != nil:
	case kind == errs.DriveFailed || kind == errs.Unavailable || kind == errs.Timeout || kind == errs.Closed:
		d.shun() // also that of a node which does not answer
	case kind == errs.Corrupt || kind == errs.NotFound && !s.chunk.mayLack(f.index):
		s.r.plane.report(BadShard{Owner: s.r.owner, Ref: s.chunk.ref, Stripe: s.stripe, Index: f.index, Drive: d.id, Err: f.err})
	}
}

// hopeless is an error when the shards that may still answer are too few.
func (s *stripeRead) hopeless() error {
	may := 0
	for i := range s.failures {
		if s.failures[i] == nil && s.skip&(1<<i) == 0 && (s.asked(i) || s.r.plane.preference(s.chunk, i) != unreachable) {
			may++
		}
	}
	if may >= int(s.chunk.layout.Scheme.K) {
		return nil
	}
	return s.failed()
}

func (s *stripeRead) asked(i int) bool {
	for _, f := range s.fetches {
		if f.index == i {
			return true
		}
	}
	return false
}

// failed is the error of a read that did not find k shards: Unavailable if the
// bytes come back when drives do; Corrupt or Gone if so many drives have
// answered that they do not have their shard intact that the others cannot be enough.
func (s *stripeRead) failed() error {
	kind, detail := errs.Unavailable, "too few drives answer"
	may, gone := 0, false
	var cause error
	for i, err := range s.failures {
		switch k := errs.KindOf(err); {
		case s.skip&(1<<i) != 0:
		case err == nil || k != errs.Corrupt && k != errs.NotFound && k != errs.Gone:
			may++
		default:
			gone = gone || k == errs.Gone
		}
		if err != nil {
			cause = err
		}
	}
	if may < int(s.chunk.layout.Scheme.K) {
		if kind, detail = errs.Corrupt, "too few intact shards"; gone {
			kind, detail = errs.Gone, "the chunk was removed"
		}
	}
	return &errs.Error{Kind: kind, Op: "chunkio.read", Subject: s.chunk.id.String(), Detail: detail, Err: cause}
}

// decode computes the bytes that were not read and answers all in order.
func (s *stripeRead) decode() ([][]byte, error) {
	shards := s.shards()
	if s.chunk.layout.Scheme.K == 1 {
		for _, shard := range shards {
			if len(shard) > 0 {
				return [][]byte{shard}, nil
			}
		}
	}
	var lost uint64
	for i := range s.wants {
		if w := &s.wants[i]; !w.fetch.ok() {
			lost |= 1 << w.index
		}
	}
	if err := s.compute(shards, lost); err != nil {
		return nil, err
	}
	parts := make([][]byte, len(s.wants))
	for i := range s.wants {
		w := &s.wants[i]
		if lost&(1<<w.index) != 0 {
			parts[i] = shards[w.index][w.lo-s.lo : w.hi-s.lo]
		} else {
			parts[i] = w.mem
		}
	}
	return parts, nil
}

func (f *fetch) ok() bool { return f != nil && f.done && f.err == nil }

// shards are the columns [lo, hi) of the shards that were read, and nil for the others.
func (s *stripeRead) shards() [][]byte {
	shards := make([][]byte, s.chunk.layout.Scheme.Shards())
	for _, f := range s.fetches {
		if f.ok() && f.covers() {
			clear(f.mem[len(f.mem) : len(f.mem)+f.pad])
			shards[f.index] = f.mem[s.lo-f.lo : s.hi-f.lo]
		}
	}
	return shards
}

// compute fills the columns of lost shards, in memory of their own: past the
// budget as in launchSpares, and bounded alike.
func (s *stripeRead) compute(shards [][]byte, lost uint64) error {
	for rest := lost; rest != 0; rest &= rest - 1 {
		if i := bits.TrailingZeros64(rest); len(shards[i]) == 0 {
			buf := s.r.plane.buffers.force(outbound, s.hi-s.lo)
			s.spare = append(s.spare, buf)
			shards[i] = buf.b[:0]
		}
	}
	return s.chunk.codec.Reconstruct(shards, lost)
}

// close lets go of the buffers. Fetches that still run keep theirs.
func (s *stripeRead) close() {
	if s.out != nil {
		s.out.release()
	}
	for _, b := range s.spare {
		b.release()
	}
	s.out, s.spare = nil, nil
}
