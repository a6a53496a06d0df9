package netsim

import (
	"math"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Limits of the simulation.
const (
	// LossStall is the least time that a lost packet costs, like TCP's least retransmission timeout.
	LossStall = 200 * time.Millisecond
	// inFlightBytesMax is how much one direction of a connection takes before its writer waits.
	inFlightBytesMax = 1 << 20
	// segmentBytesMax is the most that travels at once: less is fairer, more is cheaper.
	segmentBytesMax = 64 << 10
	packetBytes     = 1460
	duplicatesMin   = 3 // packets behind a lost one that make TCP repeat it at once
	lossRepeatsMax  = 6 // of one packet: 200 ms doubled so often is 12 s
)

// link is the way from one node to another; all connections share its bandwidth.
type link struct {
	mu   sync.Mutex
	cond conditions
	free time.Time  // when the last byte sent so far has left
	rnd  *rand.Rand // of jitter and loss
}

func (l *link) now() conditions {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cond
}

func (l *link) set(c conditions) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cond = c
	l.free = time.Time{}
}

// due is when n bytes sent now arrive.
func (l *link) due(now time.Time, n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cond.bandwidth > 0 {
		if l.free.Before(now) {
			l.free = now
		}
		l.free = l.free.Add(time.Duration(float64(n) / float64(l.cond.bandwidth) * float64(time.Second)))
		now = l.free
	}
	now = now.Add(l.cond.latency)
	if l.cond.jitter > 0 {
		now = now.Add(time.Duration(l.rnd.Int64N(int64(l.cond.jitter) + 1)))
	}
	return now.Add(l.lossLocked(n))
}

// lossLocked is the time that lost packets cost n bytes sent together: a round
// trip where packets behind the lost one give it away, else a timeout, which
// doubles each time the repetition is lost too.
func (l *link) lossLocked(n int) (stall time.Duration) {
	packets := (n + packetBytes - 1) / packetBytes
	if l.cond.loss == 0 || l.rnd.Float64() < math.Pow(1-l.cond.loss, float64(packets)) {
		return 0
	}
	timeout := LossStall + 2*l.cond.latency
	if stall = timeout; packets > duplicatesMin {
		stall = 2*l.cond.latency + time.Millisecond
	}
	for range lossRepeatsMax {
		if l.rnd.Float64() >= l.cond.loss {
			break
		}
		stall += timeout
		timeout *= 2
	}
	return stall
}

// half is one direction of a connection: a queue of segments, each with its time of arrival.
type half struct {
	link *link
	mu   struct {
		sync.Mutex
		segments []segment
		bytes    int       // in segments
		last     time.Time // arrival of the newest segment: none overtakes
		held     bool      // a black hole: nothing arrives
		ended    bool      // the writer closed: an eof segment is the last
		deaf     bool      // the reader closed
		broken   error     // reset: reads and writes fail with it at once
		wake     chan struct{}
	}
}

// segment is what travels: bytes or, as the last one, the end of the stream.
type segment struct {
	data []byte
	end  error // io.EOF or a reset
	due  time.Time
}

func newHalf(l *link) *half {
	h := &half{link: l}
	h.mu.held = l.now().blackHole
	return h
}

// changedLocked is closed at the next change of the half.
func (h *half) changedLocked() <-chan struct{} {
	if h.mu.wake == nil {
		h.mu.wake = make(chan struct{})
	}
	return h.mu.wake
}

func (h *half) wakeLocked() {
	if h.mu.wake != nil {
		close(h.mu.wake)
		h.mu.wake = nil
	}
}

func (h *half) pushLocked(data []byte, end error) {
	due := h.link.due(time.Now(), len(data))
	if due.Before(h.mu.last) {
		due = h.mu.last
	}
	h.mu.last = due
	h.mu.segments = append(h.mu.segments, segment{data, end, due})
	h.mu.bytes += len(data)
	h.wakeLocked()
}

// write queues p, whose bytes are copied, and waits for room.
func (h *half) write(p []byte, d *deadline) (n int, err error) {
	for {
		h.mu.Lock()
		switch {
		case h.mu.broken != nil:
			err = h.mu.broken
		case h.mu.ended:
			err = net.ErrClosed
		case h.mu.deaf && !h.mu.held:
			err = syscall.ECONNRESET
		case d.passed():
			err = os.ErrDeadlineExceeded
		}
		for err == nil && len(p) > 0 && h.mu.bytes < inFlightBytesMax {
			k := min(len(p), segmentBytesMax)
			h.pushLocked(append([]byte(nil), p[:k]...), nil)
			p, n = p[k:], n+k
		}
		if err != nil || len(p) == 0 {
			h.mu.Unlock()
			return n, err
		}
		changed := h.changedLocked()
		h.mu.Unlock()
		select {
		case <-changed:
		case <-d.wait():
		}
	}
}

// read waits for bytes that have arrived.
func (h *half) read(p []byte, d *deadline) (n int, err error) {
	for {
		h.mu.Lock()
		switch {
		case h.mu.broken != nil:
			err = h.mu.broken
		case h.mu.deaf:
			err = net.ErrClosed
		case d.passed():
			err = os.ErrDeadlineExceeded
		}
		if err == nil {
			n, err = h.takeLocked(p)
		}
		if n > 0 || err != nil || len(p) == 0 {
			h.mu.Unlock()
			return n, err
		}
		var timer *time.Timer
		var arrives <-chan time.Time
		if len(h.mu.segments) > 0 && !h.mu.held {
			timer = time.NewTimer(time.Until(h.mu.segments[0].due))
			arrives = timer.C
		}
		changed := h.changedLocked()
		h.mu.Unlock()
		select {
		case <-changed:
		case <-arrives:
		case <-d.wait():
		}
		if timer != nil {
			timer.Stop()
		}
	}
}

// takeLocked moves what has arrived into p.
func (h *half) takeLocked(p []byte) (n int, err error) {
	if h.mu.held {
		return 0, nil
	}
	now := time.Now()
	for len(h.mu.segments) > 0 && n < len(p) {
		s := &h.mu.segments[0]
		if s.due.After(now) {
			break
		}
		if s.end != nil { // stays: every further read sees it
			if n == 0 {
				err = s.end
			}
			break
		}
		k := copy(p[n:], s.data)
		n += k
		h.mu.bytes -= k
		if s.data = s.data[k:]; len(s.data) == 0 {
			h.mu.segments[0] = segment{}
			h.mu.segments = h.mu.segments[1:]
		}
	}
	if n > 0 {
		h.wakeLocked()
	}
	return n, err
}

// end is the writer's close: the reader sees err (io.EOF, or a reset) behind what was written.
func (h *half) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.mu.ended && h.mu.broken == nil {
		h.mu.ended = true
		h.pushLocked(nil, err)
	}
	h.wakeLocked()
}

// stop is the reader's close.
func (h *half) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.deaf = true
	h.mu.segments, h.mu.bytes = nil, 0
	h.wakeLocked()
}

// reset breaks the half: both sides get err at once.
func (h *half) reset(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.broken == nil {
		h.mu.broken = err
	}
	h.mu.segments, h.mu.bytes = nil, 0
	h.wakeLocked()
}

// apply takes up the link's changed conditions.
func (h *half) apply() {
	c := h.link.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.held && !c.blackHole { // what was dropped is sent again
		again := time.Now().Add(c.latency)
		for i := range h.mu.segments {
			if h.mu.segments[i].due.Before(again) {
				h.mu.segments[i].due = again
			}
		}
		if h.mu.last.Before(again) {
			h.mu.last = again
		}
	}
	h.mu.held = c.blackHole
	h.wakeLocked()
}

// deadline is a point in time that may move while somebody waits for it, as net.Pipe's.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	gone  chan struct{} // closed when it has passed
}

func newDeadline() *deadline { return &deadline{gone: make(chan struct{})} }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.gone // the timer is about to close it
	}
	d.timer = nil
	closed := false
	select {
	case <-d.gone:
		closed = true
	default:
	}
	if t.IsZero() || time.Until(t) > 0 {
		if closed {
			d.gone = make(chan struct{})
		}
		if !t.IsZero() {
			gone := d.gone
			d.timer = time.AfterFunc(time.Until(t), func() { close(gone) })
		}
		return
	}
	if !closed {
		close(d.gone)
	}
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

func (d *deadline) passed() bool {
	select {
	case <-d.wait():
		return true
	default:
		return false
	}
}
