package multiraft

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// tap is the Transport of a host that counts questions and loses what it is told to.
type tap struct {
	end
	confirms, votes atomic.Int64
	loseTimeoutNow  atomic.Bool
	loseAppends     atomic.Bool
}

func (p *tap) AppendEntries(ctx context.Context, e Envelope, req *raft.AppendEntriesRequest) (*raft.AppendEntriesResponse, error) {
	if p.loseAppends.Load() {
		return nil, errs.New(errs.Unavailable, "test", "", "lost")
	}
	return p.end.AppendEntries(ctx, e, req)
}

func (p *tap) ConfirmTerm(ctx context.Context, e Envelope) (uint64, error) {
	p.confirms.Add(1)
	return p.end.ConfirmTerm(ctx, e)
}

func (p *tap) RequestVote(ctx context.Context, e Envelope, req *raft.RequestVoteRequest) (*raft.RequestVoteResponse, error) {
	p.votes.Add(1)
	return p.end.RequestVote(ctx, e, req)
}

func (p *tap) TimeoutNow(ctx context.Context, e Envelope, term uint64) error {
	if p.loseTimeoutNow.Load() {
		return errs.New(errs.Unavailable, "test", "", "lost")
	}
	return p.end.TimeoutNow(ctx, e, term)
}

// trio is three processes with one voter each.
type trio struct {
	t     testing.TB
	n     *net
	g     cluster.Group
	cells [3]*cell
	taps  [3]*tap
	cfg   Config
}

func newTrio(t testing.TB, cfg Config) *trio {
	t.Helper()
	o := &trio{t: t, n: &net{cut: map[[2]int]bool{}, hosts: make([]*Host, 3)}, g: testGroup(1, 0, 1, 2), cfg: cfg}
	for i := range 3 {
		o.taps[i] = &tap{end: end{o.n, i}}
		o.start(i, vfsx.NewMem())
	}
	for _, c := range o.cells {
		if err := c.h.Birth(o.g, noBirth); err != nil {
			t.Fatal(err)
		}
	}
	o.cells[0].h.Campaign(1)
	for _, c := range o.cells {
		if err := c.h.WaitLeader(testCtx(t, 10*time.Second), 1); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// start opens process i on a file system.
func (o *trio) start(i int, fs *vfsx.Mem) {
	o.t.Helper()
	cfg := o.cfg
	cfg.Remote = o.taps[i]
	c := newCell(o.t, fs, 0, cfg)
	if err := c.h.AddDrive(c.drive(i)); err != nil {
		o.t.Fatal(err)
	}
	o.n.mu.Lock()
	o.cells[i], o.n.hosts[i] = c, c.h
	o.n.mu.Unlock()
}

// restart kills process i and starts it again at once on what was synced.
func (o *trio) restart(i int, seed uint64) {
	o.t.Helper()
	old := o.cells[i]
	o.n.mu.Lock()
	o.n.hosts[i] = nil
	o.n.mu.Unlock()
	fs := old.fs.CrashClone(seed)
	old.h.closed.Store(true) // it goes without a word
	for _, r := range old.h.group(1, false).replicas() {
		r.cut(errs.New(errs.Closed, "test", "", "killed"))
	}
	old.h.closed.Store(false)
	o.start(i, fs)
	o.t.Cleanup(old.close)
}

func (o *trio) part(cuts ...[2]int) {
	o.n.mu.Lock()
	defer o.n.mu.Unlock()
	clear(o.n.cut)
	for _, c := range cuts {
		o.n.cut[c], o.n.cut[[2]int{c[1], c[0]}] = true, true
	}
}

// leader is the process that leads, as soon as it can serve.
func (o *trio) leader() int {
	o.t.Helper()
	for range 20000 {
		for i, c := range o.cells {
			if g := c.h.group(1, false); g != nil {
				if r := g.leader.Load(); r != nil && r.readTerm.Load() != 0 {
					return i
				}
			}
		}
		time.Sleep(time.Millisecond)
	}
	o.t.Fatal("no leader")
	return 0
}

func (o *trio) replica(i int) *replica { return o.cells[i].h.replica(o.g.Replicas[i].ID) }

func (o *trio) read(i int) (v string, err error) {
	err = o.cells[i].h.Read(testCtx(o.t, 100*time.Millisecond), 1, func(r pebble.Reader) error {
		b, err := get(r, tapeKey(1, 0x22, 'k'))
		v = string(b)
		return err
	})
	return v, err
}

// awaitLease waits until process i reads without asking.
func (o *trio) awaitLease(i int) {
	o.t.Helper()
	for range 5000 {
		if r := o.replica(i); r.holdsLease(r.readTerm.Load()) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	o.t.Fatal("no lease")
}

func (o *trio) close() {
	for _, c := range o.cells {
		c.close()
	}
}

// Under a lease nobody is asked; without leases, everybody is, each time.
func TestLeaseSavesRounds(t *testing.T) {
	for _, lease := range []time.Duration{0, -1} {
		bubble.Test(t, func(t *testing.T) {
			cfg := Config{ReadLease: lease}
			o := newTrio(t, cfg)
			l := o.leader()
			o.cells[l].propose(1, "set k v")
			if lease == 0 {
				o.awaitLease(l)
			}
			before := o.taps[l].confirms.Load()
			for range 100 {
				if v, err := o.read(l); v != "v" || err != nil {
					t.Fatal(v, err)
				}
				time.Sleep(20 * time.Millisecond)
			}
			asked := o.taps[l].confirms.Load() - before
			if lease == 0 && asked != 0 || lease < 0 && asked < 100 {
				t.Errorf("lease %v: %d questions for 100 reads", lease, asked)
			}
			o.close()
		})
	}
}

// A leader that is cut off answers under its lease only as long as nobody else can have been elected, and a new leader comes soon.
func TestLeaseEndsBeforeTheNextLeader(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, Config{})
		for round := range 10 {
			l := o.leader()
			a, b := (l+1)%3, (l+2)%3
			o.cells[l].propose(1, fmt.Sprint("set k old", round))
			o.awaitLease(l)
			began := time.Now()
			o.part([2]int{l, a}, [2]int{l, b})
			served := 0
			for {
				// Who leads now, at this very moment of fake time?
				newer := false
				for _, i := range []int{a, b} {
					newer = newer || o.replica(i).raft.State() == raft.Leader
				}
				v, err := o.read(l)
				if err == nil && newer {
					t.Fatalf("round %d: read %q after %v, when there was another leader", round, v, time.Since(began))
				}
				if err == nil {
					served++
				}
				if newer {
					break
				}
				if time.Since(began) > 10*time.Second {
					t.Fatal("no new leader")
				}
				time.Sleep(time.Millisecond)
			}
			if took := time.Since(began); took > 5*time.Second { // 2, unless both stand at the same moment
				t.Errorf("round %d: a new leader after %v", round, took)
			}
			if served < 100 {
				t.Errorf("round %d: the lease lasted for %d reads a millisecond apart", round, served)
			}
			o.part()
			time.Sleep(3 * time.Second)
		}
		o.close()
	})
}

// A voter that restarts within a lease, having forgotten whom it promised, votes for nobody until the lease is over.
func TestLeaseSurvivesRestartedVoters(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, Config{})
		for round := range 6 {
			l := o.leader()
			a, b := (l+1)%3, (l+2)%3
			o.cells[l].propose(1, fmt.Sprint("set k old", round))
			o.part([2]int{l, b}) // the lease is a's acknowledgement
			time.Sleep(time.Second)
			l = o.leader()
			if l == b {
				o.part()
				time.Sleep(3 * time.Second)
				continue
			}
			a = 3 - l - b
			o.awaitLease(l)
			o.part([2]int{l, b}, [2]int{l, a})
			o.restart(a, uint64(round))
			o.replica([]int{a, b}[round%2]).force() // as early as can be
			for end := time.Now().Add(o.cells[l].h.cfg.HeartbeatTimeout); time.Now().Before(end); time.Sleep(time.Millisecond) {
				newer := o.replica(a).raft.State() == raft.Leader || o.replica(b).raft.State() == raft.Leader
				if v, err := o.read(l); err == nil && newer {
					t.Fatalf("read %q when there was another leader", v)
				}
			}
			o.part()
			time.Sleep(3 * time.Second)
		}
		o.close()
	})
}

// Once it has asked another to take over, a leader has no lease in that term again, even if nothing comes of it.
func TestNoLeaseAfterTimeoutNow(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, Config{})
		l := o.leader()
		o.cells[l].propose(1, "set k v")
		o.awaitLease(l)
		term := o.replica(l).raft.CurrentTerm()
		o.taps[l].loseTimeoutNow.Store(true)
		if err := o.cells[l].h.TransferLeader(testCtx(t, 5*time.Second), 1, o.g.Replicas[(l+1)%3].ID); !errs.Is(err, errs.Unavailable) {
			t.Errorf("transfer: %v", err)
		}
		for range 100 {
			time.Sleep(20 * time.Millisecond)
			if o.replica(l).holdsLease(term) {
				t.Fatal("a lease in the term in which it was given up")
			}
		}
		if v, err := o.read(l); v != "v" || err != nil {
			t.Error(v, err)
		}
		if o.taps[l].confirms.Load() == 0 || o.replica(l).raft.CurrentTerm() != term {
			t.Error("it did not ask, or does not lead any more")
		}
		// The next term is as any other.
		o.taps[l].loseTimeoutNow.Store(false)
		if err := o.cells[l].h.TransferLeader(testCtx(t, 5*time.Second), 1, o.g.Replicas[(l+1)%3].ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if next := o.leader(); next != (l+1)%3 {
			t.Errorf("%d leads", next)
		}
		o.awaitLease((l + 1) % 3)
		o.close()
	})
}

// Whoever was asked to stand in a term that is over asks nobody for votes, and nobody who has heard of a leader gives one.
func TestPromises(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, Config{})
		l := o.leader()
		a, b := (l+1)%3, (l+2)%3
		time.Sleep(time.Second)
		term := o.replica(l).raft.CurrentTerm()
		vote := func(term uint64, moved bool) error {
			to := o.replica(b)
			_, err := o.cells[b].h.Transport().RequestVote(testCtx(t, time.Second), Envelope{1, o.g.Replicas[a].ID, to.id},
				&raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(o.g.Replicas[a].ID), Addr: []byte(o.g.Replicas[a].ID)}, Term: term, LeadershipTransfer: moved})
			return err
		}
		if err := vote(term+1, false); !errs.Is(err, errs.Unavailable) {
			t.Errorf("a vote against a leader heard of a moment ago: %v", err)
		}
		if err := vote(term, true); !errs.Is(err, errs.Unavailable) {
			t.Errorf("a vote in the term of the promise: %v", err)
		}
		// raft of a stands, though the leader of its term did not ask it to: the messages do not get out.
		o.taps[a].votes.Store(0)
		if _, err := o.replica(a).deliver(t.Context(), timeoutNow(), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if n := o.taps[a].votes.Load(); n != 0 {
			t.Errorf("%d votes asked for", n)
		}
		for try := 0; o.replica(b).raft.CurrentTerm() == term; try++ {
			if try == 60 {
				t.Fatal("the term has not moved on with that")
			}
			time.Sleep(time.Second)
		}
		// A message of the old one is not heeded.
		err := o.cells[b].h.Transport().TimeoutNow(testCtx(t, time.Second), Envelope{1, o.g.Replicas[l].ID, o.g.Replicas[b].ID}, term)
		if !errs.Is(err, errs.Conflict) {
			t.Errorf("TimeoutNow of term %d: %v", term, err)
		}
		o.close()
	})
}

// Which acknowledgements make a lease.
func TestLeaseArithmetic(t *testing.T) {
	base := time.Now()
	at := func(ms int) time.Time { return base.Add(time.Duration(ms) * time.Millisecond) }
	conf := func(ids string) (out []raft.Server) { // small letters are non-voters
		for _, c := range ids {
			s := raft.Server{ID: raft.ServerID(c), Suffrage: raft.Voter}
			if c >= 'a' {
				s.Suffrage = raft.Nonvoter
			}
			out = append(out, s)
		}
		return out
	}
	const d = 100 * time.Millisecond
	five, withGuest, other := conf("ABCDE"), conf("ABxyz"), conf("ABC")
	l := newLeadership(context.Background(), "A", 3)
	want := func(when string, now int, servers []raft.Server, ok bool) {
		t.Helper()
		if got := l.holds(at(now), d, servers); got != ok {
			t.Errorf("%s: at %d ms the lease holds: %v", when, now, got)
		}
	}
	l.ack("B", at(0), five)
	want("two of five", 1, five, false)
	l.ack("C", at(50), five)
	want("three of five", 99, five, true)
	want("counted from the older", 100, five, false)
	l.ack("D", at(40), five)
	want("the newest quorum counts", 139, five, true)
	want("the newest quorum counts", 140, five, false)
	l.ack("D", at(10), five)
	want("a late acknowledgement takes nothing back", 139, five, true)
	want("another configuration", 60, other, false)
	want("an equal configuration at another time", 60, conf("ABCDE"), false)
	l.ack("B", at(55), other)
	want("one of the new configuration", 60, other, true)
	l.ack("x", at(70), withGuest)
	l.ack("y", at(70), withGuest)
	want("non-voters", 71, withGuest, false)
	l.ack("B", at(70), withGuest)
	want("and a voter", 71, withGuest, true)
	gone := conf("BCD")
	l.ack("B", at(80), gone)
	l.ack("C", at(80), gone)
	want("a leader that is no voter", 81, gone, false)
	l.ack("B", at(90), five)
	want("acknowledgements from before a change", 91, five, false)
	l.ack("C", at(90), five)
	l.noLease.Store(true)
	want("given up", 91, five, false)
	l = newLeadership(context.Background(), "A", 3)
	asleep := at(0).Add(time.Hour)
	l.ack("B", at(0), other)
	if l.holds(asleep, d, other) {
		t.Error("an hour later")
	}
	for _, bad := range []Config{
		{ReadLease: time.Second}, {HeartbeatTimeout: time.Second, VoteHold: 700 * time.Millisecond},
		{HeartbeatTimeout: time.Second, ElectionTimeout: 700 * time.Millisecond},
	} {
		bad.Remote = end{}
		bad.NewStateMachine = func(g cluster.GroupID) StateMachine { return &tape{g: g} }
		if _, err := New(bad); !errs.Is(err, errs.InvalidArgument) {
			t.Errorf("a lease as long as what it relies on: %v", err)
		}
	}
}

// Reads under leases while the network splits in both directions and in one, voters restart faster than a lease lasts, drives
// fail and leaders are moved.
func TestLinearizableWithLeases(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(seed(t), 5))
	cfg := hastyConfig()
	o := newTrio(t, cfg)
	var mu sync.Mutex
	hosts := func() []*Host {
		mu.Lock()
		defer mu.Unlock()
		return []*Host{o.cells[0].h, o.cells[1].h, o.cells[2].h}
	}
	history(t, hosts, 3*time.Second, func(stop <-chan struct{}) {
		for {
			select {
			case <-stop:
				o.part()
				return
			case <-time.After(time.Duration(50+rng.IntN(250)) * time.Millisecond):
			}
			i := rng.IntN(3)
			switch rng.IntN(5) {
			case 0, 1:
				o.part()
				o.n.mu.Lock()
				for j := range 3 {
					o.n.cut[[2]int{i, j}] = i != j && rng.IntN(4) > 0
					o.n.cut[[2]int{j, i}] = i != j && rng.IntN(4) > 0
				}
				o.n.mu.Unlock()
			case 2:
				o.part()
			case 3:
				mu.Lock()
				o.restart(i, rng.Uint64())
				mu.Unlock()
			case 4:
				_ = o.cells[i].h.TransferLeader(testCtx(t, 200*time.Millisecond), 1, o.g.Replicas[rng.IntN(3)].ID)
			}
		}
	})
	o.close()
}

// Followers learn of the last commit of a group that then falls silent without waiting for raft's timer.
func TestFollowersLearnOfCommits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, Config{CommitTimeout: time.Hour})
		l := o.leader()
		for round := range 3 {
			o.cells[l].propose(1, fmt.Sprint("last", round))
			time.Sleep(500 * time.Millisecond)
			for i, c := range o.cells {
				err := c.h.ReadLocal(1, func(r pebble.Reader) error {
					tape, err := readTape(r, 1)
					if len(tape) != round+1 {
						t.Errorf("process %d has %v", i, tape)
					}
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		}
		if o.leader() != l {
			t.Error("the leader changed")
		}
		o.close()
	})
}

// The first entry of a group may be its first leader's alone: elected, it stored one and told nobody. It takes the
// next leader's in its place, though there is nothing in its log before it.
func TestFirstEntryIsDisputed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := newTrio(t, fastConfig())
		g := cluster.Group{ID: 2}
		for i := range 3 {
			g.Replicas = append(g.Replicas, cluster.Replica{ID: cluster.ReplicaID(fmt.Sprintf("second-%d", i)), Drive: driveID(i), Voter: true})
		}
		o.taps[0].loseAppends.Store(true)
		for _, c := range o.cells {
			if err := c.h.Birth(g, noBirth); err != nil {
				t.Fatal(err)
			}
		}
		first := o.cells[0].h.replica(g.Replicas[0].ID)
		if first == nil {
			t.Fatal("no replica")
		}
		o.cells[0].h.Campaign(2)
		ctx := testCtx(t, 30*time.Second)
		await := func(what string, done func() bool) {
			t.Helper()
			for !done() {
				if ctx.Err() != nil {
					t.Fatal(what)
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		await("no disputed entry", func() bool { last, _ := first.view.Last(); return last > birthIndex })
		disputed, old := first.view.Last()
		await("no other leader", func() bool {
			for i := 1; i < 3; i++ {
				if o.cells[i].h.replica(g.Replicas[i].ID).raft.State() == raft.Leader {
					return true
				}
			}
			return false
		})
		await("the first leader does not follow the next", func() bool {
			var l raft.Log
			return first.view.GetLog(disputed, &l) == nil && l.Term > old && first.raft.AppliedIndex() >= disputed
		})
		o.close()
	})
}
