package raftrpc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/netsim"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// A group over a network goes on within about 2 s when its leader falls silent, serves reads meanwhile only where that is right, and
// whoever was away catches up at once when it is back.
func TestSilentLeader(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		w.rules(netsim.Rule{Latency: netsim.Duration(500 * time.Microsecond)})
		w.birth(1, 0, 1, 2)
		slow := 0
		for round := range 6 {
			l := w.leader(1)
			w.put(1, "k", fmt.Sprint("before", round))
			time.Sleep(time.Duration(round) * 300 * time.Millisecond) // at any phase of the timers
			w.hole(l)
			began := time.Now()
			w.put(1, "k", fmt.Sprint("after", round), l)
			switch took := time.Since(began); {
			case took > 5*time.Second:
				t.Errorf("round %d: nobody took a write for %v", round, took)
			case took > 2*time.Second: // both may stand at the same moment, now and then
				slow++
			}
			err := w.nodes[l].host.Read(t.Context(), 1, func(pebble.Reader) error { return nil })
			if !errs.Is(err, errs.NotLeader) && !errs.Is(err, errs.Unavailable) {
				t.Errorf("round %d: the deposed leader reads: %v", round, err)
			}
			time.Sleep(10 * time.Second)
			w.put(1, "k", fmt.Sprint("late", round), l)
			w.rules(netsim.Rule{Latency: netsim.Duration(500 * time.Microsecond)})
			if took := w.await(l, 1, "k", fmt.Sprint("late", round)); took > 2*time.Second {
				t.Errorf("round %d: it took %v to catch up", round, took)
			}
		}
		if slow > 3 {
			t.Errorf("%d of 6 times nobody took a write for over 2 s", slow)
		}
		w.close()
	})
}

// A follower that is refused rather than silent is waited for, without raft's long pauses, and gets what it missed when it is back.
func TestFollowerAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		w.birth(1, 0, 1, 2)
		l := w.leader(1)
		f := (l + 1) % 3
		big := strings.Repeat("x", 3<<20)
		for _, away := range []time.Duration{time.Second, 5 * time.Second, time.Minute} {
			w.rules(netsim.Rule{From: "node:" + string(nodeID(f)), Partition: true})
			for i := 0; i < 6 && away == time.Second; i++ { // more than a message may hold
				w.put(1, fmt.Sprint("big", i), big, f)
			}
			w.put(1, "k", away.String(), f)
			time.Sleep(away)
			w.rules()
			// There is up to a second before it is dialled again.
			if took := w.await(f, 1, "k", away.String()); took > 3*time.Second {
				t.Errorf("away for %v, caught up %v later", away, took)
			}
		}
		w.close()
	})
}

// Leaders leave a node that closes, at once.
func TestCloseMovesLeaders(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		for g := range cluster.GroupID(4) {
			w.birth(g+1, 0, 1, 2)
		}
		for g := range cluster.GroupID(4) {
			for w.leader(g+1) != 0 {
				_ = w.nodes[w.leader(g+1)].host.TransferLeader(t.Context(), g+1, cluster.MakeReplicaID(g+1, 1))
				time.Sleep(100 * time.Millisecond)
			}
		}
		n := w.nodes[0]
		began := time.Now()
		if err := n.host.Close(); err != nil {
			t.Error(err)
		}
		for g := range cluster.GroupID(4) {
			w.put(g+1, "k", "v", 0)
		}
		if took := time.Since(began); took > 400*time.Millisecond {
			t.Errorf("%v until all groups had another leader", took)
		}
		w.close()
	})
}

// A new replica on another node is filled by snapshots, of several groups at a time, over a slow network; and raft, which has other
// timeouts, is not in the way.
func TestSnapshots(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, func(_ int, _ *multiraft.Config, r *Config) { r.InstallsMax = 1 })
		const groups = 3
		big := strings.Repeat("x", 8<<10)
		for g := range cluster.GroupID(groups) {
			w.birth(g+1, 0, 1, 2)
			for i := range 300 {
				w.put(g+1, fmt.Sprint("k", i), big)
			}
			w.put(g+1, "last", "yes")
		}
		w.rules(netsim.Rule{From: "node:n3", Bandwidth: 2 << 20, Latency: netsim.Duration(10 * time.Millisecond)})
		done := make(chan error, groups)
		for g := range cluster.GroupID(groups) {
			go func() {
				r := w.replicaOn(g+1, 3)
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				err := w.nodes[3].host.CreateReplica(g+1, r)
				if err == nil {
					err = w.nodes[w.leader(g+1)].host.AddReplica(ctx, g+1, r)
				}
				done <- err
			}()
		}
		for range groups {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		for g := range cluster.GroupID(groups) {
			w.await(3, g+1, "last", "yes")
			for i := range 300 {
				if w.local(3, g+1, fmt.Sprint("k", i)) != big {
					t.Fatalf("group %d has not k%d", g+1, i)
				}
			}
		}
		w.close()
	})
}

// The heartbeats of many groups go together: no more messages than ticks.
func TestHeartbeatsShareMessages(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		const groups = 30
		for g := range cluster.GroupID(groups) {
			w.birth(g+1, 0, 1, 2)
		}
		time.Sleep(time.Second)
		before := [3]int64{}
		terms := fmt.Sprint(w.terms())
		for i, n := range w.nodes {
			before[i] = n.beats.Load()
		}
		const window = 150 * time.Millisecond
		time.Sleep(10 * time.Second)
		for i, n := range w.nodes {
			if got, most := n.beats.Load()-before[i], 2*int64(10*time.Second/window)+2; got > most {
				t.Errorf("node %d got %d messages of heartbeats in 10 s, at most %d", i, got, most)
			}
		}
		if now := fmt.Sprint(w.terms()); now != terms {
			t.Errorf("leaders changed: %s, %s", terms, now)
		}
		w.close()
	})
}

func (w *world) terms() (out []uint64) {
	for _, s := range w.nodes[0].host.Status() {
		out = append(out, s.Term)
	}
	return out
}

// A node whose clock is an hour ahead leads nothing for longer than it takes to notice, and stamps nothing.
func TestClockIsCompared(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, func(i int, m *multiraft.Config, _ *Config) {
			if i == 0 {
				m.Now = func() time.Time { return time.Now().Add(time.Hour) }
			}
		})
		w.birth(1, 0, 1, 2)
		time.Sleep(2 * time.Second)
		if l := w.leader(1); l == 0 {
			t.Error("the node with the wrong clock leads")
		}
		l := w.leader(1)
		offsets, off := w.nodes[l].host.ClockOffsets()
		if d := offsets["n0"] - time.Hour; off || d.Abs() > time.Second {
			t.Errorf("offsets %v, off %v", offsets, off)
		}
		w.hole(l)
		w.put(1, "k", "v", l, 0)
		w.close()
	})
}

// A message that claims to be of a replica on another node is refused.
func TestForeignSender(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		w.birth(1, 0, 1, 2)
		e := multiraft.Envelope{Group: 1, From: cluster.MakeReplicaID(1, 2), To: cluster.MakeReplicaID(1, 3)}
		if _, err := w.nodes[0].t.ConfirmTerm(t.Context(), e); !errs.Is(err, errs.Foreign) {
			t.Errorf("node 0 speaks for a replica of node 1: %v", err)
		}
		e.From = cluster.MakeReplicaID(1, 1)
		if _, err := w.nodes[0].t.ConfirmTerm(t.Context(), e); err != nil {
			t.Error(err)
		}
		e.To = "nobody"
		if _, err := w.nodes[0].t.ConfirmTerm(t.Context(), e); !errs.Is(err, errs.Unavailable) {
			t.Errorf("a replica that nobody knows: %v", err)
		}
		e.To = e.From
		if _, err := w.nodes[0].t.ConfirmTerm(t.Context(), e); !errs.Is(err, errs.Gone) {
			t.Errorf("a replica of this node: %v", err)
		}
		w.close()
	})
}

// All processes are killed and come back: the group works again soon, with all that it knew.
func TestRestart(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, nil)
		w.birth(1, 0, 1, 2)
		w.put(1, "k", "v")
		time.Sleep(3 * time.Second)
		for i, n := range w.nodes {
			fs := n.fs.CrashClone(uint64(i))
			n.halt(t)
			n.fs = fs
		}
		for i := range w.nodes {
			w.start(i)
		}
		began := time.Now()
		w.put(1, "k2", "v2")
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("nobody took a write for %v", took)
		}
		for i := range w.nodes {
			w.await(i, 1, "k2", "v2")
			if v := w.local(i, 1, "k"); v != "v" {
				t.Errorf("node %d has %q", i, v)
			}
		}
		w.close()
	})
}
