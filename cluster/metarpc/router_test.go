package metarpc

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// idle is a host without a replica.
type idle struct{ Host }

func (idle) Propose(context.Context, cluster.GroupID, []byte) ([]byte, error) {
	return nil, errs.New(errs.NotLeader, "idle", "", "")
}

// script is what a peer does with a call; nil: it never answers.
type script struct {
	propose func() error
	leader  func() *nodepb.LeaderAnswer
	delay   time.Duration // before it answers a proposal
}

// scripted are peers that do as told.
type scripted struct {
	mu    sync.Mutex
	peers map[cluster.NodeID]*script
	calls []string
}

type scriptedConn struct {
	s  *scripted
	id cluster.NodeID
}

func (c scriptedConn) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errs.New(errs.NotImplemented, "script", "", "")
}

func (c scriptedConn) Invoke(ctx context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	c.s.mu.Lock()
	p := *c.s.peers[c.id]
	c.s.calls = append(c.s.calls, fmt.Sprintf("%s %T", c.id, reply))
	c.s.mu.Unlock()
	switch reply := reply.(type) {
	case *nodepb.ProposeAnswer:
		if p.propose != nil {
			select {
			case <-time.After(p.delay):
				reply.Result = []byte("done")
				return p.propose()
			case <-ctx.Done():
			}
		}
	case *nodepb.LeaderAnswer:
		if p.leader != nil {
			a := p.leader()
			reply.Here, reply.Replica, reply.Node = a.Here, a.Replica, a.Node
			return nil
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *scripted) set(id cluster.NodeID, p script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peers[id] = &p
}

func (s *scripted) count(call string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if c == call {
			n++
		}
	}
	return n
}

// newScripted is a router on n3, which has no replica, and peers n0 to n2.
func newScripted() (*scripted, *Router) {
	s := &scripted{peers: map[cluster.NodeID]*script{}}
	for i := range 3 {
		s.set(nodeID(i), script{})
	}
	topo := newTopology(4, 3)
	return s, NewRouter(Config{
		Self: nodeID(3), Host: idle{}, Topology: func() *cluster.Topology { return topo },
		Conn: func(n cluster.NodeID) (grpc.ClientConnInterface, error) { return scriptedConn{s, n}, nil },
	})
}

func ok() error { return nil }

func isLeader() *nodepb.LeaderAnswer { return &nodepb.LeaderAnswer{Here: true, Replica: "r"} }

func names(i int) func() *nodepb.LeaderAnswer {
	return func() *nodepb.LeaderAnswer {
		return &nodepb.LeaderAnswer{Replica: string(replicaOn(cluster.FirstRange, i).ID), Node: string(nodeID(i))}
	}
}

func refuses(i int) func() error {
	return func() error {
		return errs.New(errs.NotLeader, "script", string(replicaOn(cluster.FirstRange, i).ID), "not I")
	}
}

// A leader that is slow but there gets more time with each try, and others do not have it replaced.
func TestSlowLeader(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, r := newScripted()
		s.set("n0", script{propose: ok, leader: isLeader, delay: 5 * time.Second})
		s.set("n1", script{propose: refuses(0), leader: names(0)})
		s.set("n2", script{propose: refuses(0), leader: names(0)})
		began := time.Now()
		res, err := r.Propose(t.Context(), cluster.FirstRange, nil)
		if err != nil || string(res) != "done" {
			t.Fatal(err)
		}
		// 1.5 s, 3 s, then 6 s are enough.
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
		if n := s.count("n0 *nodepb.ProposeAnswer"); n != 3 {
			t.Errorf("%d tries", n)
		}
		s.set("n0", script{propose: ok, leader: isLeader})
		if _, err := r.Propose(t.Context(), cluster.FirstRange, nil); err != nil {
			t.Error(err)
		}
	})
}

// A leader that fell silent is not gone back to because others still name it; who waits searches together.
func TestSilentLeader(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, r := newScripted()
		s.set("n0", script{propose: ok, leader: isLeader})
		s.set("n1", script{propose: refuses(0), leader: names(0)})
		s.set("n2", script{propose: refuses(0), leader: names(0)})
		if _, err := r.Propose(t.Context(), cluster.FirstRange, nil); err != nil {
			t.Fatal(err)
		}
		s.set("n0", script{})
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				began := time.Now()
				_, err := r.Propose(t.Context(), cluster.FirstRange, nil)
				if !errs.Is(err, errs.OutcomeUnknown) {
					t.Errorf("the leader is silent: %v", err)
				}
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("took %v", took)
				}
			})
		}
		wg.Wait()
		if n := s.count("n1 *nodepb.LeaderAnswer"); n > 4 {
			t.Errorf("a hundred calls asked %d times who leads", n)
		}
		// The next ones know at once that nobody can be asked, and nothing was sent.
		began := time.Now()
		if _, err := r.Propose(t.Context(), cluster.FirstRange, nil); !errs.Is(err, errs.NotLeader) {
			t.Errorf("nobody leads: %v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("took %v", took)
		}
		s.set("n1", script{propose: ok, leader: isLeader})
		s.set("n2", script{propose: refuses(1), leader: names(1)})
		time.Sleep(time.Second)
		began = time.Now()
		if _, err := r.Propose(t.Context(), cluster.FirstRange, nil); err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("the new leader was found after %v", took)
		}
	})
}

// A call ends with its context, whatever the peers do.
func TestContextEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, r := newScripted()
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			began := time.Now()
			if _, err := r.Propose(ctx, cluster.FirstRange, nil); err == nil {
				t.Error("no error")
			}
			if took := time.Since(began); took != 100*time.Millisecond {
				t.Errorf("took %v", took)
			}
			cancel()
			s.set("n0", script{leader: isLeader}) // now it leads, but says nothing
		}
		// Somebody whose own search was given up does not give up that of others.
		s.set("n0", script{propose: ok, leader: func() *nodepb.LeaderAnswer { time.Sleep(300 * time.Millisecond); return isLeader() }})
		_, r = newScripted()
		r.cfg.Conn = func(n cluster.NodeID) (grpc.ClientConnInterface, error) { return scriptedConn{s, n}, nil }
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = r.Propose(short, cluster.FirstRange, nil) })
		synctest.Wait()
		wg.Go(func() {
			if _, err := r.Propose(t.Context(), cluster.FirstRange, nil); err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
	})
}

// Peers that name each other do not keep a call going for ever.
func TestCircle(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, r := newScripted()
		for i := range 3 {
			s.set(nodeID(i), script{propose: refuses((i + 1) % 3), leader: names((i + 1) % 3)})
		}
		began := time.Now()
		if _, err := r.Propose(t.Context(), cluster.FirstRange, nil); !errs.Is(err, errs.NotLeader) {
			t.Error(err)
		}
		if n := len(s.calls); n > 12 || time.Since(began) > time.Second {
			t.Errorf("%d calls in %v", n, time.Since(began))
		}
	})
}

// A leader that has enough to do is not asked again, and is not taken for lost.
func TestBusyLeader(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, r := newScripted()
		s.set("n0", script{propose: func() error { return errs.New(errs.Busy, "script", "", "") }, leader: isLeader})
		for range 3 {
			if _, err := r.Propose(t.Context(), cluster.FirstRange, nil); !errs.Is(err, errs.Busy) {
				t.Error(err)
			}
		}
		if n, asked := s.count("n0 *nodepb.ProposeAnswer"), s.count("n0 *nodepb.LeaderAnswer"); n != 3 || asked != 1 {
			t.Errorf("%d calls, asked %d times who leads", n, asked)
		}
	})
}
