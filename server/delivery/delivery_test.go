package delivery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/target"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

func key(i int) string { return fmt.Sprint("key", i%7) }

func TestDelivers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, 3)
		w.target(&metapb.SysTarget{Name: "a"})
		w.target(&metapb.SysTarget{Name: "b"})
		worker := w.worker(1)
		for i := range 5000 {
			w.put(cluster.GroupID(1+i%7%3), key(i), "a")
			if i%3 == 0 {
				w.put(1, "other", "b")
			}
			if i%100 == 0 {
				time.Sleep(20 * time.Millisecond)
			}
		}
		w.settle("a", 10*time.Second)
		w.settle("b", 10*time.Second)
		if n := w.check("a") + w.check("b"); n != 0 {
			t.Errorf("%d repeats without a failure", n)
		}
		if f := w.fates("a"); f["delivered"] != 5000 || len(f) != 1 {
			t.Error(f)
		}
		if w.count("AckEvents") > 500 {
			t.Errorf("%d acks of 6667 events", w.count("AckEvents"))
		}
		s := worker.Status()
		if len(s) != 2 || s[0].Name != "a" || s[0].Delivered != 5000 || s[1].Delivered != 1667 || s[0].Failed != 0 || s[0].LastError != "" || !s[0].Retry.IsZero() {
			t.Errorf("%+v", s)
		}
	})
}

// TestLatency: an event at a range where nothing has happened for long comes within a second, and within milliseconds of a poke.
func TestLatency(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a"})
		worker := w.worker(1)
		for _, poke := range []bool{true, false, true} {
			time.Sleep(10*time.Minute + 777*time.Millisecond)
			before, start, limit := len(p.messages()), time.Now(), idlePoll+50*time.Millisecond
			w.put(1, "k", "a")
			if poke {
				worker.Poke()
				limit = busyPoll + 50*time.Millisecond
			}
			for len(p.messages()) == before && time.Since(start) < time.Minute {
				time.Sleep(time.Millisecond)
			}
			if d := time.Since(start); d > limit {
				t.Errorf("came after %v, poked: %v", d, poke)
			}
		}
	})
}

func TestMessages(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p, def, ce := w.target(&metapb.SysTarget{Name: "a"}), w.target(&metapb.SysTarget{Name: "default"}), w.target(&metapb.SysTarget{Name: "ce", CloudEvents: true})
		row := func(target string, bridge bool) *metapb.EventRow {
			return &metapb.EventRow{
				Key: []byte("k ü"), Target: target, Bridge: bridge, Rule: "rule-1", Versioned: true, VersionSeq: 3, VersionNonce: 4, Size: 5, Etag: "e",
				Requester: &metapb.Requester{Principal: "p", SourceIp: "1.2.3.4", RequestId: "q", HostId: "h"},
			}
		}
		for _, r := range []*metapb.EventRow{row("a", true), row("default", true), row("default", false), row("ce", false)} {
			w.putRow(1, r)
		}
		w.worker(1)
		for _, name := range []string{"a", "default", "ce"} {
			w.settle(name, time.Second)
			w.check(name)
		}
		expect := func(what string, got []target.Message, want ...string) {
			t.Helper()
			if len(got) != len(want) {
				t.Fatalf("%s: %d messages", what, len(got))
			}
			for i, m := range got {
				if !strings.Contains(string(m.Body), want[i]) || m.Bucket != "b" || m.Key != "k ü" || m.Event != "ObjectCreated:Put" || m.ID == "" || m.Time.IsZero() {
					t.Errorf("%s: %+v %s", what, m, m.Body)
				}
			}
		}
		expect("rule", p.messages(), `{"Records":[{`)
		if b := string(p.messages()[0].Body); !strings.Contains(b, `"versionId":"00000000000000030000000000000004"`) || !strings.Contains(b, `"configurationId":"rule-1"`) ||
			!strings.Contains(b, `"sequencer":"00000000000000020000"`) || !strings.Contains(b, `"sourceIPAddress":"1.2.3.4"`) {
			t.Error(b)
		}
		expect("bus", def.messages(), `"detail-type"`, `{"Records":[{`, `{"Records":[{`) // by a rule and by the bridge: once, as the rule's
		expect("CloudEvents", ce.messages(), `"specversion":"1.0"`)
	})
}

func TestDownForAnHour(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
		p := w.target(&metapb.SysTarget{Name: "a"})
		w.target(&metapb.SysTarget{Name: "fine"})
		p.set(func(p *place) { p.down = true })
		worker := w.worker(1)
		total := 0
		for minute := range 60 {
			for i := range 50 {
				w.put(cluster.GroupID(1+i%10), fmt.Sprint(i%10, "-", i%20), "a")
				total++
			}
			w.put(1, "k", "fine")
			start := time.Now()
			w.settle("fine", 5*time.Second) // what is down stands in nobody's way
			time.Sleep(time.Minute - time.Since(start))
			if s := worker.Status(); minute == 30 && (s[0].LastError == "" || s[0].Retry.IsZero() || s[0].Delivered != 0 || s[1].LastError != "") {
				t.Errorf("%+v", s)
			}
		}
		calls := p.now().calls
		if calls < 60 || calls > 300 || p.now().most > targetSends {
			t.Errorf("tried %d times in an hour, %d at once", calls, p.now().most)
		}
		p.set(func(p *place) { p.down = false })
		w.settle("a", 2*backoffMax)
		if n := w.check("a"); n != 0 || len(p.messages()) != total {
			t.Errorf("%d repeats, %d of %d came", n, len(p.messages()), total)
		}
		time.Sleep(time.Second)
		if s := worker.Status(); s[0].LastError != "" || !s[0].Retry.IsZero() || s[0].Delivered != int64(total) || s[0].Failed != int64(calls) {
			t.Errorf("%+v", s)
		}
	})
}

// TestProbesAlone: of many ranges one lane tries a target that hangs.
func TestProbesAlone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var groups []cluster.GroupID
		for g := range 50 {
			groups = append(groups, cluster.GroupID(g+1))
		}
		w := newWorld(t, groups...)
		p := w.target(&metapb.SysTarget{Name: "a"})
		p.hang = true
		for _, g := range groups {
			w.put(g, fmt.Sprint(g), "a")
		}
		w.worker(1)
		time.Sleep(2 * sendTimeout)
		p.set(func(p *place) { p.most = p.busy })
		time.Sleep(20 * sendTimeout)
		if p.now().most > 1 {
			t.Errorf("%d try at once", p.now().most)
		}
		p.set(func(p *place) { p.hang = false })
		w.settle("a", 5*sendTimeout)
		w.check("a")
	})
}

func TestHalfAcks(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2)
		p := w.target(&metapb.SysTarget{Name: "a"})
		rnd := rand.New(rand.NewPCG(1, 2))
		p.take = func(batch []target.Message) (int, error) {
			switch n := rnd.IntN(len(batch) + 1); {
			case n == len(batch):
				return n, nil
			case rnd.IntN(10) == 0:
				return n, nil // and does not say why
			default:
				return n, errors.New("busy")
			}
		}
		w.worker(1)
		for i := range 2000 {
			w.put(cluster.GroupID(1+i%7%2), key(i), "a")
		}
		w.settle("a", time.Hour)
		if n := w.check("a"); n != 0 {
			t.Errorf("%d repeats of what was acknowledged", n)
		}
		if f := w.fates("a"); f["delivered"] != 2000 {
			t.Error(f)
		}
	})
}

// TestUnrecorded: what was sent comes again if the ack was not answered and did not happen, and not if it did.
func TestUnrecorded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a"})
		w.unsure = 3
		worker := w.worker(1)
		for i := range 3000 {
			w.put(1, key(i), "a")
		}
		w.settle("a", time.Minute)
		if n := w.check("a"); n != 0 || len(p.messages()) != 3000 {
			t.Errorf("%d repeats, %d messages, though every ack happened", n, len(p.messages()))
		}
		p.set(func(p *place) { p.delay = 100 * time.Millisecond })
		w.put(1, "k", "a")
		worker.Poke()
		for p.now().calls == 0 || p.now().busy == 0 {
			time.Sleep(time.Millisecond)
		}
		w.look(1, func(*outboxRows) { w.down[1] = true })
		time.Sleep(10 * time.Second)
		w.look(1, func(*outboxRows) { w.down[1] = false })
		w.settle("a", time.Minute)
		if n := w.check("a"); n != 1 {
			t.Errorf("%d repeats", n)
		}
	})
}

func TestRejected(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a"})
		bad := func(m target.Message) bool { return strings.HasPrefix(m.Key, "bad") }
		p.take = func(batch []target.Message) (int, error) {
			for i, m := range batch {
				if bad(m) {
					return i, fmt.Errorf("wrapped: %w", &target.Rejected{Err: errors.New("too large" + strings.Repeat("!", 5000))})
				}
			}
			return len(batch), nil
		}
		for i := range 1200 {
			k := key(i)
			if i%100 == 0 || i >= 1190 {
				k = "bad" + k
			}
			w.put(1, k, "a")
		}
		worker := w.worker(1)
		w.settle("a", 10*time.Second)
		w.check("a")
		if f := w.fates("a"); f["dead"] != 22 || f["delivered"] != 1178 {
			t.Error(f)
		}
		w.look(1, func(r *outboxRows) {
			for _, e := range r.dead {
				if !strings.Contains(e, "too large") || len(e) > errorMax {
					t.Errorf("%d bytes of %.80s", len(e), e)
				}
			}
		})
		if s := worker.Status(); s[0].Failed != 0 || s[0].Delivered != 1178 || s[0].LastError != "" {
			t.Errorf("%+v: a target that refuses an event works", s[0])
		}
	})
}

func TestUnknownTarget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.sysDown = true
		for i := range 2500 {
			w.put(1, key(i), "nobody")
		}
		for i := range 10 {
			w.putRow(1, &metapb.EventRow{Key: []byte("k"), Bridge: true, Target: map[bool]string{true: "default"}[i%5 == 0]})
		}
		w.worker(1)
		time.Sleep(time.Minute)
		if n := w.queued("nobody") + w.queued("default"); n != 2510 {
			t.Errorf("%d wait: given up without knowing that there is no such target", n)
		}
		w.look(1, func(*outboxRows) { w.sysDown = false })
		w.settle("nobody", time.Minute)
		w.settle("default", time.Minute)
		if f := w.fates("nobody"); f["dropped"] != 2500 || len(f) != 1 {
			t.Error(f)
		}
		// What EventBridge is merely offered is not lost where there is no bus.
		if f := w.fates("default"); f["dropped"] != 2 || f["delivered"] != 8 {
			t.Error(f)
		}
		// A target that is made later gets what comes later.
		w.target(&metapb.SysTarget{Name: "nobody"})
		w.put(1, "k", "nobody")
		w.settle("nobody", time.Minute)
		if n := len(w.places["nobody"].messages()); n != 1 {
			t.Errorf("%d messages", n)
		}
	})
}

// TestNewTargetIsFound: that a target is not among those known is no reason to give up, as long as it was not asked anew.
func TestNewTargetIsFound(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.target(&metapb.SysTarget{Name: "a"})
		w.worker(1)
		for i := range 20 {
			w.put(1, "k", "a")
			time.Sleep(73 * time.Millisecond) // a's being looked up leaves what is known younger than a second
			name := fmt.Sprint("new", i)
			w.target(&metapb.SysTarget{Name: name})
			w.put(1, "k", name)
			w.settle(name, 5*time.Second)
			if f := w.fates(name); f["delivered"] != 1 {
				t.Fatal(name, f)
			}
		}
	})
}

func TestLogTarget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.configure(&metapb.SysTarget{Name: "l", Kind: "log"})
		for i := range 700 {
			w.put(1, key(i), "l")
		}
		w.worker(1)
		w.settle("l", 5*time.Second)
		if f := w.fates("l"); f["delivered"] != 700 {
			t.Error(f)
		}
	})
}

func TestChangedTarget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		old := w.target(&metapb.SysTarget{Name: "a"})
		old.down = true
		worker := w.worker(1)
		w.put(1, "k", "a")
		time.Sleep(30 * time.Minute) // the back-off is long by now
		fresh := w.target(&metapb.SysTarget{Name: "a"})
		w.settle("a", 3*time.Second)
		if old.now().open != 0 || old.now().opens != 1 || len(fresh.messages()) != 1 {
			t.Errorf("old opened %d times, open %d, %d messages at the new one", old.now().opens, old.now().open, len(fresh.messages()))
		}
		if s := worker.Status(); s[0].LastError != "" {
			t.Errorf("%+v", s)
		}
		w.remove("a")
		time.Sleep(2 * refreshEvery)
		if fresh.now().open != 0 || len(worker.Status()) != 0 {
			t.Errorf("still open after its removal: %+v", worker.Status())
		}
	})
}

// TestChangedWhileSending: what was opened is closed once nobody uses it, and not before.
func TestChangedWhileSending(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2)
		old := w.target(&metapb.SysTarget{Name: "a"})
		old.set(func(p *place) { p.delay = 10 * time.Second })
		w.worker(1)
		w.put(1, "k1", "a")
		w.put(2, "k2", "a")
		time.Sleep(2 * time.Second)
		w.target(&metapb.SysTarget{Name: "a"})
		w.put(1, "k1", "a")
		time.Sleep(2 * time.Second)
		if c := old.now(); c.busy != 2 || c.open != 1 {
			t.Errorf("%+v", c)
		}
		time.Sleep(20 * time.Second)
		if c := old.now(); c.open != 0 || c.opens != 1 {
			t.Errorf("%+v", c)
		}
		if n, queued := len(w.places["a"].messages()), w.queued("a"); n != 1 || queued != 0 {
			t.Errorf("%d messages, %d wait", n, queued)
		}
	})
}

// TestSilentTarget takes nothing and gives no reason: that is a failure like others.
func TestSilentTarget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a"})
		p.set(func(p *place) { p.take = func([]target.Message) (int, error) { return 0, nil } })
		worker := w.worker(1)
		w.put(1, "k", "a")
		time.Sleep(10 * time.Minute)
		if n := p.now().calls; n > 100 || n < 10 {
			t.Errorf("called %d times", n)
		}
		if s := worker.Status(); s[0].LastError == "" || s[0].Delivered != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestLateAnswers: what was read before a cursor moved and is answered afterwards makes no repeats.
func TestLateAnswers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		fails := rand.New(rand.NewPCG(9, 10))
		p := w.target(&metapb.SysTarget{Name: "a"})
		p.take = func(batch []target.Message) (int, error) {
			if fails.IntN(2) == 0 {
				return fails.IntN(len(batch)), errors.New("busy")
			}
			return len(batch), nil
		}
		rnd := rand.New(rand.NewPCG(7, 8))
		w.lag = func() time.Duration { return time.Duration(rnd.IntN(60)) * time.Millisecond }
		worker := w.worker(1)
		for i := range 3000 {
			w.put(1, key(i), "a")
			worker.Poke()
			if i%10 == 0 {
				time.Sleep(time.Duration(5+i%150) * time.Millisecond)
			}
			if i == 1500 {
				w.settle("a", 10*time.Minute)
				p.set(func(p *place) { p.take = nil })
			}
		}
		w.settle("a", time.Minute)
		if n := w.check("a"); n != 0 {
			t.Errorf("%d repeats", n)
		}
	})
}

func TestBrokenTarget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.configure(&metapb.SysTarget{Name: "a", Kind: "broken"})
		w.put(1, "k", "a")
		worker := w.worker(1)
		time.Sleep(time.Hour)
		if s := worker.Status(); !strings.Contains(s[0].LastError, "no such file") || s[0].Failed > 300 || s[0].Failed < 50 {
			t.Errorf("%+v", s)
		}
		w.target(&metapb.SysTarget{Name: "a"})
		w.settle("a", 3*time.Second)
		w.check("a")
	})
}

func TestIdleTargetIsClosed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a"})
		w.worker(1)
		for range 2 {
			w.put(1, "k", "a")
			w.settle("a", 2*time.Second)
			time.Sleep(idleClose / 2)
			if p.now().open != 1 {
				t.Error("closed too early, or never opened")
			}
			time.Sleep(idleClose/2 + 3*refreshEvery)
			if p.now().open != 0 {
				t.Error("still open")
			}
		}
		if p.now().opens != 2 {
			t.Errorf("opened %d times", p.now().opens)
		}
	})
}

func TestLeaderMoves(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2)
		p := w.target(&metapb.SysTarget{Name: "a"})
		p.delay = 30 * time.Millisecond
		rnd, moves := rand.New(rand.NewPCG(3, 4)), rand.New(rand.NewPCG(5, 6))
		p.take = func(batch []target.Message) (int, error) {
			if rnd.IntN(4) == 0 {
				return rnd.IntN(len(batch)), errors.New("busy")
			}
			return len(batch), nil
		}
		w.worker(1)
		w.worker(2)
		for i := range 4000 {
			w.put(cluster.GroupID(1+i%7%2), key(i), "a")
			if i%200 == 0 {
				w.look(1, func(*outboxRows) { w.leader[1], w.leader[2] = 1+moves.IntN(2), 1+moves.IntN(2) })
				time.Sleep(time.Duration(moves.IntN(500)) * time.Millisecond)
			}
		}
		w.settle("a", time.Hour)
		repeats := w.check("a")
		if f := w.fates("a"); f["delivered"] != 4000 {
			t.Error(f)
		}
		if repeats > 20*2*pageEvents {
			t.Errorf("%d repeats", repeats)
		}
	})
}

// TestTwoLeaders: for a while two believe to lead a range.
func TestTwoLeaders(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.target(&metapb.SysTarget{Name: "a"})
		w.worker(1)
		w.worker(1)
		for i := range 3000 {
			w.put(1, key(i), "a")
			if i%100 == 0 {
				time.Sleep(37 * time.Millisecond)
			}
		}
		w.settle("a", time.Minute)
		w.check("a")
		if f := w.fates("a"); f["delivered"] != 3000 {
			t.Error(f)
		}
	})
}

func TestChildWaits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a, b := w.target(&metapb.SysTarget{Name: "a"}), w.target(&metapb.SysTarget{Name: "b"})
		a.set(func(p *place) { p.down = true })
		w.worker(1)
		w.put(1, "moved", "a")
		w.split(1, 2)
		w.put(2, "moved", "a")
		w.put(1, "stayed", "a") // behind the split: nobody waits for it
		w.split(2, 3)
		w.put(3, "moved", "a")
		w.put(3, "moved", "b")
		w.settle("b", 5*time.Second) // nothing was left for b
		if n := len(b.messages()); n != 1 {
			t.Errorf("%d messages", n)
		}
		time.Sleep(time.Minute)
		a.set(func(p *place) { p.down = false })
		w.look(1, func(*outboxRows) { w.leader[1] = 9 }) // so nobody delivers what the parent has
		time.Sleep(5 * time.Minute)
		if n := len(a.messages()); n != 0 {
			t.Errorf("%d messages of children before their parent's", n)
		}
		w.look(1, func(r *outboxRows) {
			if r.targets["a"].Queued != 2 || w.commands["EventsReady"] != 0 {
				t.Error(r.targets["a"], w.commands)
			}
			w.leader[1] = 1
		})
		w.settle("a", time.Minute)
		w.check("a")
		time.Sleep(5 * time.Second)
		for g := cluster.GroupID(1); g <= 3; g++ {
			w.look(g, func(r *outboxRows) {
				if r.log.WaitGroup != 0 {
					t.Errorf("range %d waits for ever", g)
				}
			})
		}
		if w.count("EventsReady") != 2 {
			t.Error("too many commands, or too few")
		}
	})
}

// warnings counts what is logged as a warning.
type warnings struct {
	losses
	n atomic.Int64
}

func (w *warnings) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		w.n.Add(1)
	}
	return nil
}

// TestSilentParent: whoever the ancestors do not hold back is served as ever while they do not answer; the others wait.
func TestSilentParent(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.target(&metapb.SysTarget{Name: "a"})
		for _, name := range []string{"b", "c"} {
			w.target(&metapb.SysTarget{Name: name})
		}
		a.set(func(p *place) { p.down = true })
		logged := &warnings{}
		w.worker(1, func(c *Config) { c.Logger = slog.New(logged) })
		w.put(1, "k", "a")
		w.split(1, 2)
		w.put(2, "k", "a")
		w.put(2, "k", "b")
		w.settle("b", 5*time.Second)
		w.look(1, func(*outboxRows) { w.hung = 1 })
		time.Sleep(time.Second)
		a.set(func(p *place) { p.down = false })
		began, before := time.Now(), logged.n.Load()
		for time.Since(began) < 5*time.Minute {
			for _, name := range []string{"b", "c"} { // of c nothing came before
				w.put(2, "k", name)
				w.settle(name, 1200*time.Millisecond)
			}
			time.Sleep(3 * time.Second)
		}
		if n := logged.n.Load() - before; n < 4 || n > 7 {
			t.Errorf("%d warnings", n)
		}
		if n := len(a.messages()); n > 1 {
			t.Errorf("%d messages: the child's did not wait", n)
		}
		w.look(1, func(*outboxRows) { w.hung = 0 })
		w.settle("a", 2*backoffMax)
		w.check("a")
	})
}

// TestLongLineage: a target that is away holds back no other, however often the range was split.
func TestLongLineage(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const last = 100
		w := newWorld(t, 1)
		a := w.target(&metapb.SysTarget{Name: "a"})
		w.target(&metapb.SysTarget{Name: "b"})
		a.set(func(p *place) { p.down = true })
		w.put(1, "k", "a")
		for g := cluster.GroupID(1); g < last; g++ {
			w.split(g, g+1)
		}
		w.worker(1)
		w.put(last, "k", "a")
		w.put(last, "k", "b")
		w.settle("b", 5*time.Second)
		time.Sleep(10 * time.Second)
		if w.queued("a") != 2 || w.count("EventsReady") != 0 {
			t.Error(w.queued("a"), w.commands)
		}
		a.set(func(p *place) { p.down = false })
		w.settle("a", 2*backoffMax)
		w.check("a")
	})
}

// losses counts what is logged as given up.
type losses struct{ lines, events atomic.Uint64 }

func (l *losses) Enabled(context.Context, slog.Level) bool { return true }
func (l *losses) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *losses) WithGroup(string) slog.Handler            { return l }
func (l *losses) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "events" && r.Level == slog.LevelError {
			l.lines.Add(1)
			l.events.Add(a.Value.Uint64())
		}
		return true
	})
	return nil
}

func TestDropOldest(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a", QueueMax: 2000})
		p.set(func(p *place) { p.down = true })
		logged := &losses{}
		w.worker(1, func(c *Config) { c.Logger = slog.New(logged) })
		for i := range 10000 {
			w.put(1, key(i), "a")
		}
		time.Sleep(10 * time.Second)
		if n := w.queued("a"); n != 1800 {
			t.Errorf("%d wait", n)
		}
		for i := range 200 {
			w.put(1, key(i), "a")
		}
		time.Sleep(10 * time.Second)
		if n := w.queued("a"); n != 2000 {
			t.Errorf("%d wait: that is no more than may", n)
		}
		time.Sleep(2 * lossEvery)
		if logged.events.Load() != 8200 || logged.lines.Load() > 2 {
			t.Errorf("%d events in %d lines were logged", logged.events.Load(), logged.lines.Load())
		}
		p.set(func(p *place) { p.down = false })
		w.settle("a", 2*backoffMax)
		w.check("a")
		if f := w.fates("a"); f["dropped"] != 8200 || f["delivered"] != 2000 {
			t.Error(f)
		}
		w.look(1, func(r *outboxRows) {
			for i, it := range r.rows {
				if want := map[bool]string{true: "dropped", false: "delivered"}[i < 8200]; r.fate["a"][it.Seq] != want {
					t.Fatalf("event %d was %s", i, r.fate["a"][it.Seq])
				}
			}
		})
	})
}

// TestQueueBytes: a queue is full by the size of its rows, too.
func TestQueueBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		a := w.target(&metapb.SysTarget{Name: "a"})
		b := w.target(&metapb.SysTarget{Name: "b", WhenFull: metapb.WhenFull_HOLD_WRITES})
		for _, p := range []*place{a, b} {
			p.set(func(p *place) { p.down = true })
		}
		const most, low = 100000, 90000
		w.worker(1, func(c *Config) { c.QueueBytes = most })
		bytes := func(name string) (n uint64) {
			w.look(1, func(r *outboxRows) { n = r.targets[name].GetQueuedBytes() })
			return n
		}
		var size, held uint64
		for i := range 4000 {
			w.put(1, key(i), "a")
			if size = max(size, bytes("a")/uint64(w.queued("a"))); !w.put(1, key(i), "b") {
				held++
			}
			time.Sleep(20 * time.Millisecond)
		}
		time.Sleep(5 * time.Second)
		if n := bytes("a"); n > most || n <= low-size || w.fates("a")["dropped"] == 0 {
			t.Errorf("%d bytes wait, %v", n, w.fates("a"))
		}
		if n := bytes("b"); n <= most || n > most+20*size || held == 0 || len(w.fates("b")) != 0 {
			t.Errorf("%d bytes wait, %d were refused, %v", n, held, w.fates("b"))
		}
		for _, p := range []*place{a, b} {
			p.set(func(p *place) { p.down = false })
		}
		w.settle("a", 2*backoffMax)
		w.settle("b", 2*backoffMax)
		time.Sleep(2 * time.Second)
		if !w.put(1, "k", "b") {
			t.Error("still held")
		}
		w.check("a")
		w.check("b")
	})
}

func TestHoldWrites(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a", QueueMax: 100, WhenFull: metapb.WhenFull_HOLD_WRITES, AgeMaxMs: 1000})
		p.set(func(p *place) { p.down = true })
		w.worker(1)
		n := 0
		for range 1000 {
			if w.put(1, "k", "a") {
				n++
			}
			time.Sleep(50 * time.Millisecond)
		}
		if n <= 100 || n > 130 {
			t.Errorf("%d were taken", n)
		}
		time.Sleep(time.Hour)
		if w.put(1, "k", "a") || w.queued("a") != uint64(n) {
			t.Errorf("taken, or given up: %d wait", w.queued("a"))
		}
		p.set(func(p *place) { // takes some, so that the queue is below its bound and not by a tenth
			p.down, p.take = false, func(batch []target.Message) (int, error) {
				if room := n - 95 - len(p.got); room < len(batch) {
					return max(room, 0), errors.New("busy")
				}
				return len(batch), nil
			}
		})
		time.Sleep(5 * time.Minute)
		if w.queued("a") != 95 || w.put(1, "k", "a") {
			t.Errorf("%d wait, and writes are taken again", w.queued("a"))
		}
		p.set(func(p *place) { p.take = nil })
		w.settle("a", 2*backoffMax)
		time.Sleep(2 * time.Second)
		if !w.put(1, "k", "a") {
			t.Error("still held with nothing queued")
		}
		w.settle("a", 2*time.Second)
		w.check("a")
		if f := w.fates("a"); f["delivered"] != n+1 || len(f) != 1 || w.count("HoldEvents") != 2 {
			t.Error(f, w.count("HoldEvents"))
		}
	})
}

// TestHeldTargetIsRemoved: nobody is refused for the sake of a target that is gone.
func TestHeldTargetIsRemoved(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.target(&metapb.SysTarget{Name: "a", QueueMax: 1, WhenFull: metapb.WhenFull_HOLD_WRITES}).down = true
		w.worker(1)
		for range 3 {
			w.put(1, "k", "a")
		}
		time.Sleep(5 * time.Second)
		if w.put(1, "k", "a") {
			t.Fatal("not held")
		}
		w.remove("a")
		time.Sleep(5 * time.Second)
		if !w.put(1, "k", "a") {
			t.Error("still held")
		}
	})
}

func TestAge(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a", AgeMaxMs: time.Hour.Milliseconds()})
		w.put(1, "old", "a")
		time.Sleep(2 * time.Hour) // the store was off
		w.worker(1)
		w.settle("a", 5*time.Second)
		if f := w.fates("a"); f["delivered"] != 1 {
			t.Error("given up though it was never tried:", f)
		}
		p.set(func(p *place) { p.down = true })
		for i := range 120 {
			w.put(1, key(i), "a")
			time.Sleep(time.Minute)
		}
		if n := w.queued("a"); n < 59 || n > 61 {
			t.Errorf("%d wait", n)
		}
		p.set(func(p *place) { p.down = false })
		w.settle("a", 2*backoffMax)
		w.check("a")
	})
}

func TestRetention(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a"})
		w.target(&metapb.SysTarget{Name: "b"})
		w.worker(1, func(c *Config) { c.Retention = time.Hour })
		kept := func() (n uint64) {
			w.look(1, func(r *outboxRows) { n = r.log.Rows })
			return n
		}
		for i := range 3500 {
			w.put(1, key(i), "b")
		}
		time.Sleep(59 * time.Minute)
		if kept() != 3500 {
			t.Errorf("%d rows before the time", kept())
		}
		time.Sleep(3 * time.Minute)
		if kept() != 0 {
			t.Errorf("%d rows after the time", kept())
		}
		p.set(func(p *place) { p.down = true })
		w.put(1, "k", "b")
		w.put(1, "k", "a")
		w.put(1, "k", "b")
		time.Sleep(3 * time.Hour)
		if kept() != 1 {
			t.Errorf("%d rows: those that a target waits for stay, and no others", kept())
		}
		if n := w.count("TrimEvents"); n > 10 {
			t.Errorf("%d commands, though nothing could be trimmed", n)
		}
		p.set(func(p *place) { p.down = false })
		time.Sleep(5 * time.Minute)
		if kept() != 0 {
			t.Errorf("%d rows", kept())
		}
		if f := w.fates("a"); f["delivered"] != 1 {
			t.Error(f)
		}
	})
}

// TestRetainBesideWaiting: what waits for a target that is away does not count as kept, neither for what is kept of others nor for its age.
func TestRetainBesideWaiting(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a"})
		w.target(&metapb.SysTarget{Name: "b"})
		p.set(func(p *place) { p.down = true })
		w.worker(1, func(c *Config) { c.Retention, c.RetainBytes = time.Hour, 50000 })
		for i := range 5000 {
			w.put(1, key(i), "a")
		}
		for i := range 100 {
			w.put(1, key(i), "b")
		}
		w.settle("b", time.Minute)
		time.Sleep(10 * time.Minute)
		rows := func() (n uint64) {
			w.look(1, func(r *outboxRows) { n = r.log.Rows })
			return n
		}
		if rows() != 5100 {
			t.Errorf("%d rows", rows())
		}
		for i := range 4000 {
			w.put(1, key(i), "b")
		}
		w.settle("b", time.Minute)
		time.Sleep(2 * trimIdle)
		w.look(1, func(r *outboxRows) {
			if kept := r.log.Bytes - r.targets["a"].QueuedBytes; kept > 50000 || kept < 49000 || r.targets["a"].Queued != 5000 {
				t.Errorf("%d bytes are kept beside what waits", kept)
			}
		})
		time.Sleep(70 * time.Minute)
		if rows() != 5000 {
			t.Errorf("%d rows", rows())
		}
		p.set(func(p *place) { p.down = false })
		w.settle("a", 5*time.Minute)
		if rows() != 0 {
			t.Errorf("%d rows", rows())
		}
	})
}

func TestRetainBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.target(&metapb.SysTarget{Name: "a"})
		w.worker(1, func(c *Config) { c.RetainBytes = 50000 })
		for i := range 20000 {
			w.put(1, key(i), "a")
		}
		w.settle("a", time.Minute)
		time.Sleep(2 * trimIdle)
		w.look(1, func(r *outboxRows) {
			if r.log.Bytes > 50000 || r.log.Bytes < 49000 {
				t.Errorf("%d bytes are kept in %d rows", r.log.Bytes, r.log.Rows)
			}
		})
		if w.count("TrimEvents") > 40 {
			t.Error("too many commands, or too few")
		}
	})
}

func TestTimers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		worker := w.worker(1)
		add := func(r *outboxRows, seq uint64, ready, expires time.Duration) {
			row := &metapb.EventTimerRow{Format: 1, VersionSeq: seq, ExpiresMs: time.Now().Add(expires).UnixMilli()}
			if ready > 0 {
				row.ReadyMs = time.Now().Add(ready).UnixMilli()
			}
			r.timers = append(r.timers, rangestate.EventTimer{ID: &metapb.EventTimerID{Bucket: 1, Key: []byte("k"), VersionSeq: seq}, Row: row})
		}
		start := time.Now()
		w.look(1, func(r *outboxRows) {
			for seq := range uint64(1200) {
				add(r, seq+1, time.Duration(seq%3)*10*time.Minute, 24*time.Hour)
			}
		})
		fired := func() (n int) {
			w.look(1, func(r *outboxRows) { n = len(r.fired) })
			return n
		}
		time.Sleep(10*time.Minute - time.Second)
		if n := fired(); n != 0 {
			t.Errorf("%d fired", n)
		}
		before := w.count("FireTimers")
		time.Sleep(4 * time.Second)
		if n := fired(); n != 400 || before != 0 {
			t.Errorf("%d fired, %d commands before anything was due", n, before)
		}
		// One that comes between, and is due before any that is known: a poke is enough.
		w.look(1, func(r *outboxRows) { add(r, 5000, 5*time.Second, time.Hour) })
		worker.Poke()
		time.Sleep(8 * time.Second)
		if n := fired(); n != 401 {
			t.Errorf("%d fired", n)
		}
		time.Sleep(25*time.Hour - time.Since(start))
		w.look(1, func(r *outboxRows) {
			if len(r.timers) != 0 {
				t.Errorf("%d timers left", len(r.timers))
			}
		})
		if w.count("FireTimers") > 30 {
			t.Error("too many commands, or too few")
		}
	})
}

// TestSparse: an event behind many that are for another target is found, and no ack spans more rows than one may.
func TestSparse(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.target(&metapb.SysTarget{Name: "a"})
		w.target(&metapb.SysTarget{Name: "b"}).down = true
		w.put(1, "first", "a")
		for i := range 21000 {
			w.put(1, key(i), "b")
		}
		w.put(1, "last", "a")
		w.worker(1)
		w.settle("a", time.Minute)
		if n := w.check("a"); n != 0 || w.fates("a")["delivered"] != 2 {
			t.Error(n, w.fates("a"))
		}
	})
}

func TestMemoryIsBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2)
		p := w.target(&metapb.SysTarget{Name: "a"})
		long := strings.Repeat("x", 4<<10)
		for i := range 2000 {
			w.putRow(cluster.GroupID(1+i%2), &metapb.EventRow{Key: []byte(long + fmt.Sprint(i%14)), Target: "a", Rule: "r"})
		}
		w.worker(1)
		w.settle("a", time.Minute)
		w.check("a")
		if p.now().batch > pageBytes/(4<<10) || p.now().batch < 100 {
			t.Errorf("%d messages of 4 KiB in a call", p.now().batch)
		}
		w.look(1, func(*outboxRows) {
			for _, limit := range w.bounds {
				if limit > dropEvents {
					t.Errorf("asked for %d events", limit)
				}
			}
		})
	})
}

// TestSlowTarget: one that takes long over every event is no failure, and what it took is recorded soon.
func TestSlowTarget(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1)
		p := w.target(&metapb.SysTarget{Name: "a"})
		p.each = 200 * time.Millisecond
		worker := w.worker(1)
		for i := range 1500 {
			w.put(1, key(i), "a")
		}
		time.Sleep(2 * sendTimeout) // until it is known how slow it is
		before := w.fates("a")["delivered"]
		for range 60 {
			time.Sleep(2 * time.Second)
			now := w.fates("a")["delivered"]
			if now == before {
				t.Fatalf("nothing was recorded in 2 s, after %d", now)
			}
			before = now
		}
		w.settle("a", 5*time.Minute)
		if n := w.check("a"); n != 0 {
			t.Errorf("%d repeats", n)
		}
		if s := worker.Status(); s[0].Failed != 0 || s[0].Delivered != 1500 {
			t.Errorf("%+v", s)
		}
		p.set(func(p *place) { p.each, p.batch = 0, 0 })
		for i := range 3000 {
			w.put(1, key(i), "a")
		}
		w.settle("a", time.Minute)
		if n := p.now().batch; n != pageEvents {
			t.Errorf("at most %d are sent together by now", n)
		}
	})
}

func TestCloseIsPrompt(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 2, 3)
		p := w.target(&metapb.SysTarget{Name: "a"})
		p.hang = true
		for g := cluster.GroupID(1); g <= 3; g++ {
			w.put(g, "k", "a")
		}
		worker := w.worker(1)
		time.Sleep(5 * time.Second)
		if p.now().busy == 0 {
			t.Fatal("nothing is under way")
		}
		start := time.Now()
		worker.Close()
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Errorf("took %v", d)
		}
		if p.now().open != 0 {
			t.Error("the target is still open")
		}
		worker.Poke()
		worker.Close()
		if w.queued("a") != 3 {
			t.Error("given up")
		}
	})
}

func TestNewRefuses(t *testing.T) {
	open := func(*metapb.SysTarget) (target.Target, error) { return nil, nil }
	for name, c := range map[string]Config{
		"nothing":   {},
		"no meta":   {Open: open},
		"no open":   {Meta: view{}},
		"retention": {Meta: view{}, Open: open, Retention: -1},
	} {
		if w, err := New(c); !errs.Is(err, errs.InvalidArgument) || w != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBackoff(t *testing.T) {
	for failures := range 1000 {
		most := time.Duration(0)
		for range 200 {
			d := backoff(failures + 1)
			if d < backoffMin || d > backoffMax {
				t.Fatalf("%v after %d failures", d, failures+1)
			}
			most = max(most, d)
		}
		if failures == 0 && most > 2*backoffMin || failures > 12 && most < backoffMax/2 {
			t.Errorf("at most %v after %d failures", most, failures+1)
		}
	}
}
