package netcluster

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"path"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/test/bubble"
	"cairn/test/linear"
	"cairn/test/seed"
)

// toy is a store whose first node keeps everything in a log, and whose other
// nodes pass requests on to it. It has what a harness can spoil: a disk and a network.
type toy struct {
	n      *Node
	lazy   bool // does not sync
	l      net.Listener
	done   sync.WaitGroup
	mu     sync.Mutex
	open   map[net.Conn]bool
	bodies map[string][]byte
	etags  map[string]string
	log    vfs.File
}

// ask is a request, and answer its answer, each a line of JSON.
type ask struct {
	Op, Key string
	Body    []byte
	ETag    string // of Body
	Cond    linear.Condition
}

type answer struct {
	Error string
	Body  []byte
	ETags map[string]string
}

func startToy(lazy bool) func(context.Context, *Node) (Process, error) {
	return func(_ context.Context, n *Node) (Process, error) {
		s := &toy{n: n, lazy: lazy, open: map[net.Conn]bool{}, bodies: map[string][]byte{}, etags: map[string]string{}}
		if !n.First {
			return s, nil
		}
		var err error
		if err = s.recover(); err != nil {
			return nil, err
		}
		if s.l, err = n.Host().Listen(n.Address); err != nil {
			return nil, err
		}
		s.done.Go(s.serve)
		return s, nil
	}
}

// recover reads the last log and begins a new one with what it says.
func (s *toy) recover() error {
	fs := s.n.FS()
	if err := fs.MkdirAll(s.n.Dir, 0o755); err != nil {
		return err
	}
	name := path.Join(s.n.Dir, "log")
	if f, err := fs.Open(name); err == nil {
		for dec := json.NewDecoder(f); ; {
			var a ask
			if err := dec.Decode(&a); err != nil {
				break // the end, or what a power cut left of one
			}
			s.applyLocked(a)
		}
		f.Close()
	}
	f, err := fs.Create(name+".new", "")
	if err != nil {
		return err
	}
	enc := json.NewEncoder(f)
	for key, body := range s.bodies {
		if err := enc.Encode(ask{Op: "put", Key: key, Body: body, ETag: s.etags[key]}); err != nil {
			return err
		}
	}
	if err := errors.Join(f.Sync(), fs.Rename(name+".new", name)); err != nil {
		return err
	}
	for _, dir := range []string{s.n.Dir, "/"} {
		d, err := fs.OpenDir(dir)
		if err != nil {
			return err
		}
		if err := errors.Join(d.Sync(), d.Close()); err != nil {
			return err
		}
	}
	s.log = f
	return nil
}

func (s *toy) serve() {
	for {
		conn, err := s.l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.open[conn] = true
		s.mu.Unlock()
		s.done.Go(func() {
			defer conn.Close()
			var a ask
			if json.NewDecoder(conn).Decode(&a) == nil {
				json.NewEncoder(conn).Encode(s.apply(a))
			}
			s.mu.Lock()
			delete(s.open, conn)
			s.mu.Unlock()
		})
	}
}

func (s *toy) apply(a ask) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	is, there := s.etags[a.Key]
	switch {
	case a.Op == "get" && !there:
		return answer{Error: linear.ErrNotFound.Error()}
	case a.Op == "get":
		return answer{Body: s.bodies[a.Key]}
	case a.Op == "list":
		return answer{ETags: maps.Clone(s.etags)}
	case a.Cond.New && there, a.Cond.Match != "" && a.Cond.Match != is:
		return answer{Error: linear.ErrRefused.Error()}
	}
	if err := json.NewEncoder(s.log).Encode(a); err != nil {
		return answer{Error: err.Error()}
	}
	if !s.lazy {
		if err := s.log.Sync(); err != nil {
			return answer{Error: err.Error()}
		}
	}
	s.applyLocked(a)
	return answer{}
}

func (s *toy) applyLocked(a ask) {
	if a.Op == "delete" {
		delete(s.bodies, a.Key)
		delete(s.etags, a.Key)
		return
	}
	s.bodies[a.Key], s.etags[a.Key] = a.Body, a.ETag
}

func (s *toy) Close() error {
	if s.l == nil {
		return nil
	}
	s.l.Close()
	s.mu.Lock()
	for conn := range s.open {
		conn.Close()
	}
	s.mu.Unlock()
	s.done.Wait()
	return s.log.Close()
}

func (s *toy) Gateway() linear.Store { return toyGateway{s} }

type toyGateway struct{ s *toy }

func (g toyGateway) do(ctx context.Context, a ask) (out answer, err error) {
	conn, err := g.s.n.Host().Dial(ctx, "a1:9002")
	if err != nil {
		return out, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	if err := json.NewEncoder(conn).Encode(a); err != nil {
		return out, err
	}
	if err := json.NewDecoder(conn).Decode(&out); err != nil {
		return out, err
	}
	for _, e := range []error{linear.ErrNotFound, linear.ErrRefused} {
		if out.Error == e.Error() {
			return out, e
		}
	}
	if out.Error != "" {
		return out, errors.New(out.Error)
	}
	return out, nil
}

func (g toyGateway) Put(ctx context.Context, key string, body []byte, cond linear.Condition) error {
	_, err := g.do(ctx, ask{Op: "put", Key: key, Body: body, ETag: linear.ETag(body), Cond: cond})
	return err
}

func (g toyGateway) Get(ctx context.Context, key string) ([]byte, error) {
	out, err := g.do(ctx, ask{Op: "get", Key: key})
	return out.Body, err
}

func (g toyGateway) Delete(ctx context.Context, key string) error {
	_, err := g.do(ctx, ask{Op: "delete", Key: key})
	return err
}

func (g toyGateway) List(ctx context.Context) (map[string]string, error) {
	out, err := g.do(ctx, ask{Op: "list"})
	return out.ETags, err
}

// history is one of the toy under trouble.
func history(t *testing.T, seed uint64, lazy bool) *linear.Recorder {
	r := linear.NewRecorder()
	bubble.Test(t, func(t *testing.T) {
		c := New(Options{Zones: 3, NodesPerZone: 1, Seed: seed, Start: startToy(lazy), Logf: t.Logf})
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, calm := context.WithCancel(t.Context())
		troubled := make(chan error, 1)
		go func() {
			troubled <- c.Disturb(ctx, Trouble{DownMax: 2, Every: 300 * time.Millisecond, Lasts: 200 * time.Millisecond})
		}()
		w := linear.Workload{Stores: c.Stores(), Keys: []string{"a", "b", "c"}, Clients: 4, Ops: 60, Timeout: 150 * time.Millisecond, Pause: 60 * time.Millisecond, Seed: seed}
		w.Run(t.Context(), r)
		calm()
		if err := <-troubled; err != nil {
			t.Error(err)
		}
		w.Clients, w.Ops, w.Seed, w.Timeout = 1, 15, seed+1, 0
		w.Run(t.Context(), r)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func TestTroubleAndHistory(t *testing.T) {
	seed := seed.Of(t)
	r := history(t, seed, false)
	all, unanswered := r.Counts()
	t.Logf("%d operations, %d of them without an answer", all, unanswered)
	if err := r.Check(time.Minute); errors.Is(err, linear.ErrUndecided) {
		t.Log(err)
	} else if err != nil {
		t.Error(err)
	}
}

// TestLostWritesAreFound: a store that does not sync is found out within a few histories.
func TestLostWritesAreFound(t *testing.T) {
	seed := seed.Of(t)
	for i := range uint64(30) {
		err := history(t, seed+i<<32, true).Check(time.Minute)
		switch {
		case errors.Is(err, linear.ErrUndecided):
			t.Log(err)
		case err != nil:
			return
		}
	}
	t.Error("30 histories of a store that syncs nothing were found right")
}

func TestLives(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := New(Options{Zones: 2, NodesPerZone: 1, Seed: 1, Start: startToy(false)})
		if err := c.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		a, b := c.Nodes[0], c.Stores(c.Nodes[1])[0]
		body := linear.Value(1).Body()
		if err := b.Put(t.Context(), "k", body, linear.Condition{}); err != nil {
			t.Fatal(err)
		}
		if err := a.Start(t.Context()); err == nil {
			t.Error("a running node was started again")
		}
		a.Kill()
		a.Kill()
		if _, err := b.Get(t.Context(), "k"); err == nil || errors.Is(err, linear.ErrNotFound) {
			t.Errorf("from a dead node: %v", err)
		}
		if err := a.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Get(t.Context(), "k"); err != nil || string(got) != string(body) {
			t.Errorf("after the power came back: %v", err)
		}
		// An answer under way when the node dies never comes.
		first := c.Stores(a)[0]
		c.rules() // none
		waiting := make(chan error, 1)
		c.CutZone("b", true)
		go func() { waiting <- b.Put(t.Context(), "k2", body, linear.Condition{}) }()
		synctest.Wait()
		c.Nodes[1].Kill()
		c.Heal()
		if err := <-waiting; err == nil {
			t.Error("a dead gateway answered")
		}
		if err := first.Put(t.Context(), "k", body, linear.Condition{New: true}); !errors.Is(err, linear.ErrRefused) {
			t.Errorf("%v", err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if n := c.Sim.Conns(); n > 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}
