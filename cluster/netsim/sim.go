package netsim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"cairn/cluster"
)

// DialFunc dials a TCP address, as rpc's clients want it.
type DialFunc func(ctx context.Context, addr string) (net.Conn, error)

// Sim holds the rules and the connections they act on. Safe for concurrent use.
type Sim struct {
	seed uint64
	mu   struct {
		sync.Mutex
		rules   Rules
		links   map[[2]Place]*link
		conns   map[*conn]struct{}
		changed chan struct{} // closed at the next Set
	}
}

// New makes a simulator without rules. The seed decides jitter and loss.
func New(seed uint64) *Sim {
	s := &Sim{seed: seed}
	s.mu.links = map[[2]Place]*link{}
	s.mu.conns = map[*conn]struct{}{}
	s.mu.changed = make(chan struct{})
	return s
}

// Set puts the rules in the place of those before, for open connections too.
// An error changes nothing.
func (s *Sim) Set(r Rules) error {
	if err := r.Validate(); err != nil {
		return err
	}
	r.Rules = slices.Clone(r.Rules)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.rules = r
	for ends, l := range s.mu.links {
		l.set(r.between(ends[0], ends[1]))
	}
	for c := range s.mu.conns {
		c.apply()
	}
	close(s.mu.changed)
	s.mu.changed = make(chan struct{})
	return nil
}

// Rules are those in force.
func (s *Sim) Rules() Rules {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Rules{slices.Clone(s.mu.rules.Rules)}
}

// Close resets the connections that were closed in a black hole and wait for its end. The rules stay in force.
func (s *Sim) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.mu.conns {
		if c.isClosed() {
			c.reset(net.ErrClosed)
		}
	}
}

// Dialer dials with dial from self, by the rules. locate says who listens at an
// address; one it does not know is dialled as if there were no rules.
func (s *Sim) Dialer(self Place, locate func(addr string) (Place, bool), dial DialFunc) DialFunc {
	return func(ctx context.Context, addr string) (net.Conn, error) {
		to, known := locate(addr)
		if !known || to.Node == self.Node {
			return dial(ctx, addr)
		}
		if err := s.reach(ctx, self, to, addr); err != nil {
			return nil, err
		}
		raw, err := dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		return s.wrap(raw, self, to), nil
	}
}

// reach waits as long as a dial takes: a round trip, or a black hole's end.
func (s *Sim) reach(ctx context.Context, from, to Place, addr string) error {
	fail := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: memAddr(addr), Err: err}
	}
	for {
		there, back, changed := s.ways(from, to)
		t, b := there.now(), back.now()
		if t.partition || b.partition {
			return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
		}
		if !t.blackHole && !b.blackHole {
			if wait := t.latency + b.latency; wait > 0 {
				timer := time.NewTimer(wait)
				defer timer.Stop()
				select {
				case <-timer.C:
				case <-ctx.Done():
					return fail(ctx.Err())
				}
			}
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fail(ctx.Err())
		}
	}
}

// ways are the links of both directions, and what is closed when the rules change.
func (s *Sim) ways(from, to Place) (there, back *link, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linkLocked(from, to), s.linkLocked(to, from), s.mu.changed
}

func (s *Sim) linkLocked(from, to Place) *link {
	ends := [2]Place{from, to}
	l := s.mu.links[ends]
	if l == nil {
		l = &link{rnd: rand.New(rand.NewPCG(s.seed, uint64(len(s.mu.links))))}
		l.set(s.mu.rules.between(from, to))
		s.mu.links[ends] = l
	}
	return l
}

// add makes a connection known, or resets it if it has been cut off meanwhile.
func (s *Sim) add(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.conns[c] = struct{}{}
	c.apply()
}

func (s *Sim) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.mu.conns, c)
}

// Conns is the number of connections that the rules act on.
func (s *Sim) Conns() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.mu.conns)
}

// memAddr is an address as it was dialled or listened at.
type memAddr string

func (memAddr) Network() string  { return "tcp" }
func (a memAddr) String() string { return string(a) }

// Load reads rules from a file. One that is not there is no rules.
func Load(path string) (Rules, []byte, error) {
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return Rules{}, nil, nil
	}
	if err != nil {
		return Rules{}, nil, fmt.Errorf("network rules: %w", err)
	}
	r, err := Parse(text)
	return r, text, err
}

// Watch looks at the file every interval until ctx ends and takes up its rules
// when they changed, starting with those of now. A file that cannot be read or
// is wrong leaves the rules as they are; said (never nil) gets each change and
// each error once.
func (s *Sim) Watch(ctx context.Context, path string, every time.Duration, said func(Rules, error)) {
	var last string
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for first := true; ; first = false {
		r, text, err := Load(path)
		now := string(text)
		if err != nil {
			now += "\x00" + err.Error()
		}
		if now != last || first && err != nil {
			last = now
			if err == nil {
				err = s.Set(r)
			}
			said(r, err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Locator finds the node at an address in the topology, for Dialer. An address
// that two nodes claim, or none, is not known.
func Locator(topology func() *cluster.Topology) func(addr string) (Place, bool) {
	return func(addr string) (p Place, ok bool) {
		for _, n := range topology().Nodes {
			if n.State == cluster.NodeRemoved || !slices.Contains(n.Addresses, addr) {
				continue
			}
			if ok {
				return Place{}, false
			}
			p, ok = Place{n.ID, n.Zone}, true
		}
		return p, ok
	}
}
