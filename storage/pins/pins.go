// Package pins is the registry of a gateway's reads in progress. It lets a slow
// download of an overwritten or deleted object end with the old bytes, without
// clocks or leases (design rule 17).
//
// # Protocol
//
// A reader begins a pin, then reads metadata, then names the writes whose chunks
// it is going to read, and releases the pin when it has read them:
//
//	pin := registry.Begin()
//	defer pin.Release()
//	row := ... // a linearizable metadata read that began after Begin
//	pin.Hold(row.WriteID)
//	... // read the chunks
//
// The collector reads garbage, then quiesces, then removes what nobody holds:
//
//	rows := ... // a linearizable read of garbage rows
//	held, err := registry.Quiesce(ctx)
//	... // remove the chunks of the rows whose pin_write is not held
//
// # Why that is enough
//
// Take a garbage row G that the collector read, made by the delete D of write W,
// and a reader that means to read chunks of W. D was committed before G was read.
//
//   - The reader's pin began before Quiesce looked at the pins. Then Quiesce
//     waited until the pin named its writes or was released. If it named W, held(W)
//     is true and G stays for a later round. If it named others or was released,
//     the reader does not read W's chunks, or is done with them.
//   - The reader's pin began after Quiesce looked. Then its metadata read began
//     after G was read, so after D was committed; being linearizable it does not
//     see W any more.
//
// So only pins that began before the look count, and an object that is read
// without a pause does not keep its old chunks for ever. What Quiesce waits for
// are metadata reads, which are short and have a deadline of their own; a
// download of hours only holds its own write.
//
// The argument needs that every row a reader relies on was read between Begin
// and Hold. Rows that hang on a held write, such as the parts
// of a multipart object, may be read later: their removal waits for the same pin.
package pins

import (
	"context"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"

	"cairn/storage"
	"cairn/storage/errs"
)

// shards spreads the lock of the registry: a read takes it three times for some 20 ns.
const shards = 16

// Registry is safe for concurrent use. The zero value is an empty registry.
type Registry struct {
	shards [shards]shard
	term   atomic.Pointer[term] // of the pins that begin now; nil before the first
}

// term is the time between two calls of Abort.
type term struct{ over chan struct{} }

// shard is a doubly linked list of pins, padded to two cache lines.
type shard struct {
	mu   sync.Mutex
	head *Pin
	n    int
	_    [128 - 24]byte
}

// New makes an empty registry.
func New() *Registry { return &Registry{} }

// Pin is one read in progress. Its methods may be called from several
// goroutines. It must be released; it must not be copied.
type Pin struct {
	shard      *shard
	prev, next *Pin // in shard, nil once released; guarded by shard.mu like all below
	released   bool
	settled    bool              // not between Begin and Hold
	write      storage.WriteID   // the first write held
	more       []storage.WriteID // the others, rarely any
	waiters    chan struct{}     // closed when the pin settles or is released; nil if nobody waits
	term       *term
}

// Begin registers a read. Call it before the metadata read that finds out what to read.
func (r *Registry) Begin() *Pin {
	// Any shard will do, and the cheapest spread is chance.
	s := &r.shards[rand.Uint32()%shards]
	p := &Pin{shard: s, term: r.now()}
	s.mu.Lock()
	p.next = s.head
	if s.head != nil {
		s.head.prev = p
	}
	s.head = p
	s.n++
	s.mu.Unlock()
	return p
}

// now is the present term.
func (r *Registry) now() *term {
	for {
		if t := r.term.Load(); t != nil {
			return t
		}
		r.term.CompareAndSwap(nil, &term{make(chan struct{})})
	}
}

// Abort tells all reads in progress to end: collectors do not wait for them any
// more. A gateway calls it when its session has ended, at the latest when the system group
// may stop counting it among those that are asked (design rule 17). Reads that begin later are not concerned.
func (r *Registry) Abort() {
	if old := r.term.Swap(&term{make(chan struct{})}); old != nil {
		close(old.over)
	}
}

// Aborted is closed when the read is to end without any further byte.
func (p *Pin) Aborted() <-chan struct{} { return p.term.over }

// Writer is w until the read is aborted; then it answers Unavailable and passes nothing on.
func (p *Pin) Writer(w io.Writer) io.Writer { return &abortable{w, p.term.over} }

type abortable struct {
	w    io.Writer
	over <-chan struct{}
}

func (a *abortable) Write(p []byte) (int, error) {
	select {
	case <-a.over:
		return 0, errs.New(errs.Unavailable, "pins", "", "this node has lost its session; what was being read may be gone")
	default:
		return a.w.Write(p)
	}
}

// Hold names the writes whose chunks are to be read, all that were found by the
// metadata read that began after Begin: a collector no longer
// waits for this pin afterwards. From then on the chunks stay until Release. A
// released pin holds nothing.
//
// Call it once per read, when the read is over. A read that is tried several
// times (a leader change) calls Hold after the last try.
func (p *Pin) Hold(w storage.WriteID, more ...storage.WriteID) {
	p.shard.mu.Lock()
	defer p.shard.mu.Unlock()
	if p.released {
		return
	}
	p.addLocked(w)
	for _, w := range more {
		p.addLocked(w)
	}
	p.settleLocked()
}

func (p *Pin) addLocked(w storage.WriteID) {
	switch {
	case p.write == w:
	case p.write.IsZero():
		p.write = w
	case !slices.Contains(p.more, w):
		p.more = append(p.more, w)
	}
}

// Release ends the read. Later calls do nothing.
func (p *Pin) Release() {
	s := p.shard
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.released {
		return
	}
	p.released = true
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		s.head = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	}
	p.prev, p.next = nil, nil
	s.n--
	p.settleLocked()
}

func (p *Pin) settleLocked() {
	p.settled = true
	if p.waiters != nil {
		close(p.waiters)
		p.waiters = nil
	}
}

// addHeldLocked adds what the pin holds to held.
func (p *Pin) addHeldLocked(held map[storage.WriteID]struct{}) {
	if p.released || p.write.IsZero() {
		return
	}
	held[p.write] = struct{}{}
	for _, w := range p.more {
		held[w] = struct{}{}
	}
}

// waiting is a pin that had not settled and what tells that it has.
type waiting struct {
	pin  *Pin
	done <-chan struct{}
}

// Quiesce waits until every read that was registered before the call has named
// its writes or ended, and answers which writes such reads hold. Garbage read
// before the call whose write is not held is read by nobody any more, for ever.
// The function answered is for this one decision; it does not follow the registry.
//
// It answers an error (Timeout) if ctx ends first: then nothing may be removed.
// It takes memory for the reads in progress.
func (r *Registry) Quiesce(ctx context.Context) (held func(storage.WriteID) bool, err error) {
	writes, err := r.Held(ctx)
	if err != nil {
		return nil, err
	}
	return func(w storage.WriteID) bool {
		_, ok := writes[w]
		return ok
	}, nil
}

// Held is Quiesce with the writes that are held as a set, for who asks from afar.
func (r *Registry) Held(ctx context.Context) (map[storage.WriteID]struct{}, error) {
	writes := make(map[storage.WriteID]struct{})
	var open []waiting
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		for p := s.head; p != nil; p = p.next {
			// A pin that reads again goes on holding what it held.
			p.addHeldLocked(writes)
			if !p.settled {
				if p.waiters == nil {
					p.waiters = make(chan struct{})
				}
				open = append(open, waiting{p, p.waiters})
			}
		}
		s.mu.Unlock()
	}
	for _, w := range open {
		select {
		case <-w.done:
		case <-ctx.Done():
			return nil, errs.Wrap(errs.Timeout, "pins.quiesce", "reads in progress", ctx.Err())
		}
		w.pin.shard.mu.Lock()
		w.pin.addHeldLocked(writes)
		w.pin.shard.mu.Unlock()
	}
	return writes, nil
}

// Active is the number of reads in progress.
func (r *Registry) Active() int {
	n := 0
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		n += s.n
		s.mu.Unlock()
	}
	return n
}
