package multiraft

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

type registerOp struct {
	key   string
	write bool
	value string
}

// register is a model of independent registers; an unknown write may take effect at any time after its call.
var register = porcupine.Model{
	Partition: func(h []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, o := range h {
			k := o.Input.(registerOp).key
			by[k] = append(by[k], o)
		}
		var out [][]porcupine.Operation
		for _, ops := range by {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		if op := in.(registerOp); op.write {
			return true, op.value
		}
		return out.(string) == state.(string), state
	},
	Equal: func(a, b any) bool { return a == b },
}

// history runs clients against some hosts (a client tries one after the other) while disturb does its worst, and checks
// that what they saw is linearizable.
func history(t *testing.T, hosts func() []*Host, d time.Duration, disturb func(stop <-chan struct{})) {
	t.Helper()
	const g = cluster.GroupID(1)
	var mu sync.Mutex
	var ops []porcupine.Operation
	start := time.Now()
	now := func() int64 { return int64(time.Since(start)) }
	stop := make(chan struct{})
	var wg sync.WaitGroup
	reads, writes := 0, 0
	for c := range 6 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(c), 9))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				hs := hosts()
				h := hs[rng.IntN(len(hs))]
				op := registerOp{key: fmt.Sprint("k", rng.IntN(3)), write: rng.IntN(2) == 0, value: fmt.Sprintf("%d.%d", c, i)}
				ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
				o := porcupine.Operation{ClientId: c, Input: op, Call: now()}
				var err error
				out := ""
				if op.write {
					_, err = h.Propose(ctx, g, []byte("set "+op.key+" "+op.value))
				} else {
					err = h.Read(ctx, g, func(r pebble.Reader) error {
						b, err := get(r, tapeKey(g, 0x22, []byte(op.key)...))
						out = string(b)
						return err
					})
				}
				cancel()
				o.Output, o.Return = out, now()
				unknown := op.write && errs.Is(err, errs.OutcomeUnknown)
				if unknown {
					o.Return = 1 << 60
				}
				mu.Lock()
				if err == nil || unknown {
					ops = append(ops, o)
					if op.write {
						writes++
					} else {
						reads++
					}
				}
				mu.Unlock()
				if unknown {
					c += 100 // porcupine wants a client's operations one after the other
				}
				if err != nil {
					time.Sleep(time.Millisecond)
				} else {
					time.Sleep(time.Duration(rng.IntN(500)) * time.Microsecond)
				}
			}
		}()
	}
	disturbed := make(chan struct{})
	go func() {
		defer close(disturbed)
		disturb(stop)
	}()
	enough := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return reads >= 20 && writes >= 20
	}
	time.Sleep(d)
	for end := time.Now().Add(time.Minute); !enough() && time.Now().Before(end); { // a busy machine
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	<-disturbed
	t.Logf("%d reads, %d writes", reads, writes)
	if !enough() {
		t.Error("these are too few")
	}
	switch porcupine.CheckOperationsTimeout(register, ops, 20*time.Second) {
	case porcupine.Illegal:
		t.Fatal("they are not linearizable")
	case porcupine.Unknown:
		t.Log("whether they are linearizable could not be found out in time")
	}
}

// Reads and writes while leaders move and drives come and go.
func TestLinearizable(t *testing.T) {
	c := newCell(t, vfsx.NewMem(), 5, hastyConfig())
	c.birth(testGroup(1, 0, 1, 2, 3, 4))
	history(t, func() []*Host { return []*Host{c.h} }, time.Second, func(stop <-chan struct{}) {
		rng := rand.New(rand.NewPCG(4, 4))
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
			}
			lead := c.h.group(1, false).leader.Load()
			if lead == nil {
				continue
			}
			switch rng.IntN(3) {
			case 0:
				_ = lead.raft.LeadershipTransfer().Error()
			case 1: // an election that the leader does not expect
				if r := c.h.group(1, false).replicas()[0]; r != lead {
					r.spawn(r.force)
				}
			case 2:
				d := c.driveOf(lead)
				c.h.DropDrive(driveID(d))
				if err := c.h.AddDrive(c.drive(d)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	c.waitEqual(1, 5)
	c.close()
}

// force makes a replica stand as if the leader of its term had asked it to; it has not, and may hold a lease.
func (r *replica) force() { _ = r.stand(r.ctx, r.raft.CurrentTerm()) }

// net connects hosts; links can be cut.
type net struct {
	mu    sync.Mutex
	hosts []*Host
	cut   map[[2]int]bool
}

// end is the Transport of host i.
type end struct {
	n *net
	i int
}

func (e end) to(ctx context.Context, env Envelope) (Transport, error) {
	for {
		e.n.mu.Lock()
		for j, h := range e.n.hosts {
			if h != nil && h.replica(env.To) != nil && !e.n.cut[[2]int{e.i, j}] {
				e.n.mu.Unlock()
				return h.Transport(), nil
			}
		}
		e.n.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (e end) AppendEntries(ctx context.Context, env Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.AppendEntries(ctx, env, req)
}

func (e end) RequestVote(ctx context.Context, env Envelope, req *raft.RequestVoteRequest) (*raft.RequestVoteResponse, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.RequestVote(ctx, env, req)
}

func (e end) RequestPreVote(ctx context.Context, env Envelope, req *raft.RequestPreVoteRequest) (*raft.RequestPreVoteResponse, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.RequestPreVote(ctx, env, req)
}

func (e end) InstallSnapshot(ctx context.Context, env Envelope, req *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return nil, err
	}
	return to.InstallSnapshot(ctx, env, req, data)
}

func (e end) TimeoutNow(ctx context.Context, env Envelope, term uint64) error {
	to, err := e.to(ctx, env)
	if err != nil {
		return err
	}
	return to.TimeoutNow(ctx, env, term)
}

func (e end) ConfirmTerm(ctx context.Context, env Envelope) (uint64, error) {
	to, err := e.to(ctx, env)
	if err != nil {
		return 0, err
	}
	return to.ConfirmTerm(ctx, env)
}

// Three hosts over a network that splits: the same promises, through the Transport seam, with elections that no lease would survive.
func TestLinearizableOverNetwork(t *testing.T) {
	t.Parallel()
	n := &net{cut: map[[2]int]bool{}}
	g := testGroup(1, 0, 1, 2)
	var cells []*cell
	for i := range 3 {
		cfg := hastyConfig()
		cfg.ReadLease = -1
		cfg.Remote = end{n, i}
		c := newCell(t, vfsx.NewMem(), 0, cfg)
		if err := c.h.AddDrive(c.drive(i)); err != nil {
			t.Fatal(err)
		}
		cells = append(cells, c)
		n.hosts = append(n.hosts, c.h)
	}
	for _, c := range cells {
		if err := c.h.Birth(g, noBirth); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range cells {
		if err := c.h.WaitLeader(testCtx(t, patience), 1); err != nil {
			t.Fatal(err)
		}
	}
	history(t, func() []*Host { return n.hosts }, 2*time.Second, func(stop <-chan struct{}) {
		rng := rand.New(rand.NewPCG(5, 5))
		for {
			select {
			case <-stop:
				n.mu.Lock()
				clear(n.cut)
				n.mu.Unlock()
				return
			case <-time.After(150 * time.Millisecond):
			}
			n.mu.Lock()
			clear(n.cut)
			if rng.IntN(3) > 0 { // one is alone, in one direction or both
				i := rng.IntN(3)
				for j := range 3 {
					n.cut[[2]int{i, j}] = i != j
					n.cut[[2]int{j, i}] = i != j && rng.IntN(2) == 0
				}
			}
			n.mu.Unlock()
			if i := rng.IntN(3); rng.IntN(2) == 0 { // an election that the leader may not notice
				r := cells[i].h.replica(g.Replicas[i].ID)
				r.spawn(r.force)
			}
		}
	})
	for _, c := range cells {
		c.close()
	}
}

// A new leader serves reads only once it has applied what was acknowledged before it led: followers learn of a commit late.
func TestNewLeaderKnowsThePast(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cfg := fastConfig()
		cfg.HeartbeatTimeout = time.Second
		cfg.CommitTimeout = 10 * time.Second
		c := newCell(t, vfsx.NewMem(), 3, cfg)
		c.birth(testGroup(1, 0, 1, 2))
		ctx := testCtx(t, 20*time.Second)
		for i := range 10 {
			want := fmt.Sprint("v", i)
			c.propose(1, "set k "+want)
			old := c.waitLeader(1)
			var next *replica
			for next == nil { // one that has the whole log, and so wins
				last, _ := old.view.Last()
				for _, r := range c.h.group(1, false).replicas() {
					if l, _ := r.view.Last(); r != old && l == last {
						next = r
					}
				}
				if ctx.Err() != nil {
					t.Fatal("no follower has the whole log")
				}
				time.Sleep(100 * time.Microsecond)
			}
			next.force()
			for c.h.group(1, false).leader.Load() != next && ctx.Err() == nil {
				time.Sleep(10 * time.Microsecond)
			}
			var got string
			err := c.h.Read(ctx, 1, func(r pebble.Reader) error {
				b, err := get(r, tapeKey(1, 0x22, 'k'))
				got = string(b)
				return err
			})
			if err != nil && !errs.Is(err, errs.NotLeader) && !errs.Is(err, errs.Unavailable) {
				t.Fatal(err)
			}
			if err == nil && got != want {
				t.Fatalf("read %q after %q was acknowledged", got, want)
			}
		}
		c.close()
	})
}

// A leader that was deposed and has not noticed yet serves no read.
func TestDeposedLeaderServesNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n := &net{cut: map[[2]int]bool{}}
		g := testGroup(1, 0, 1, 2)
		var cells []*cell
		for i := range 3 {
			cfg := fastConfig()
			cfg.HeartbeatTimeout = time.Second
			cfg.ReadLease = -1
			cfg.Remote = end{n, i}
			c := newCell(t, vfsx.NewMem(), 0, cfg)
			if err := c.h.AddDrive(c.drive(i)); err != nil {
				t.Fatal(err)
			}
			cells = append(cells, c)
			n.hosts = append(n.hosts, c.h)
		}
		for _, c := range cells {
			if err := c.h.Birth(g, noBirth); err != nil {
				t.Fatal(err)
			}
		}
		elect := func(i int) {
			r := cells[i].h.replica(g.Replicas[i].ID)
			for try := 0; r.readTerm.Load() == 0; try++ {
				if try == 1000 {
					t.Fatal("not elected")
				}
				if try%100 == 0 && r.raft.State() != raft.Leader { // again if another stood at the same time
					r.force()
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		read := func(i int) (v string, err error) {
			err = cells[i].h.Read(testCtx(t, 100*time.Millisecond), 1, func(r pebble.Reader) error {
				b, err := get(r, tapeKey(1, 0x22, 'k'))
				v = string(b)
				return err
			})
			return v, err
		}
		elect(0)
		cells[0].propose(1, "set k old")
		if v, err := read(0); v != "old" || err != nil {
			t.Fatal(v, err)
		}
		n.mu.Lock()
		for _, j := range []int{1, 2} {
			n.cut[[2]int{0, j}], n.cut[[2]int{j, 0}] = true, true
		}
		n.mu.Unlock()
		elect(1)
		cells[1].propose(1, "set k new")
		if v, err := read(1); v != "new" || err != nil {
			t.Error(v, err)
		}
		old := cells[0].h.replica(g.Replicas[0].ID)
		if old.raft.State() != raft.Leader || old.readTerm.Load() == 0 {
			t.Fatal("it has noticed already: the test proves nothing")
		}
		if v, err := read(0); err == nil {
			t.Errorf("the deposed leader answers %q", v)
		}
		for _, c := range cells {
			c.close()
		}
	})
}

// A vote is held back for a while after a start if other voters are elsewhere.
func TestVoteHold(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n := &net{cut: map[[2]int]bool{}}
		cfg := fastConfig()
		cfg.Remote = end{n, 0}
		cfg.VoteHold, cfg.ReadLease = 300*time.Millisecond, 100*time.Millisecond
		c := newCell(t, vfsx.NewMem(), 1, cfg)
		g := testGroup(1, 0)
		g.Replicas = append(g.Replicas, cluster.Replica{ID: "elsewhere", Drive: driveID(9), Voter: true})
		if err := c.h.Birth(g, noBirth); err != nil {
			t.Fatal(err)
		}
		ask := func() error {
			r := c.h.replica(g.Replicas[0].ID)
			_, err := c.h.Transport().RequestVote(testCtx(t, time.Second), Envelope{1, "elsewhere", r.id}, &raft.RequestVoteRequest{
				RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte("elsewhere"), Addr: []byte("elsewhere")}, Term: 0})
			return err
		}
		if err := ask(); err != nil {
			t.Errorf("newborn: %v", err)
		}
		c.close()
		start := time.Now()
		c.start()
		if err := ask(); !errs.Is(err, errs.Unavailable) {
			t.Errorf("right after a start: %v", err)
		}
		for ask() != nil {
			time.Sleep(5 * time.Millisecond)
		}
		if d := time.Since(start); d < 300*time.Millisecond {
			t.Errorf("voted after %v", d)
		}
		if err := c.h.Transport().TimeoutNow(testCtx(t, time.Second), Envelope{1, "elsewhere", g.Replicas[0].ID}, 999); !errs.Is(err, errs.Conflict) {
			t.Errorf("TimeoutNow of another term: %v", err)
		}
		if _, err := c.h.Transport().ConfirmTerm(context.Background(), Envelope{2, "elsewhere", g.Replicas[0].ID}); err == nil {
			t.Error("a message for another group was taken")
		}
		c.close()
	})
}
