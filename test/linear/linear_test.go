package linear

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"log/slog"
	mrand "math/rand/v2"
	"sync"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

var opsFlag = flag.Int("linear.ops", 60, "operations of each client")

// checkTime is far more than a verdict on these histories takes.
const checkTime = 2 * time.Minute

func keys() []string { return []string{"a", "a/", "b", "b/c", "c"} }

func verdict(t *testing.T, r *Recorder) {
	t.Helper()
	all, unanswered := r.Counts()
	t.Logf("%d operations, %d of them without an answer", all, unanswered)
	if err := r.Check(checkTime); errors.Is(err, ErrUndecided) {
		t.Log(err) // says nothing of the store
	} else if err != nil {
		t.Fatal(err)
	}
}

// lossy is the way from a gateway to the metadata plane over a bad network:
// commands are late, lost or come again much later, answers get lost.
type lossy struct {
	metaclient.Groups
	ctx context.Context
	mu  sync.Mutex
	rnd *mrand.Rand
	wg  sync.WaitGroup // late repeats
}

func (l *lossy) draw(n int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rnd.IntN(n)
}

func (l *lossy) Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error) {
	time.Sleep(time.Duration(l.draw(4)) * time.Millisecond)
	lost := errs.New(errs.OutcomeUnknown, "test", "", "got lost")
	switch l.draw(12) {
	case 0:
		return nil, lost // on its way there
	case 1: // and comes again: soon, or after its outcome was forgotten
		again := bytes.Clone(data)
		wait := time.Duration(l.draw(300)) * time.Millisecond
		if l.draw(8) == 0 {
			wait = 20 * time.Minute
		}
		l.wg.Go(func() {
			time.Sleep(wait)
			l.Groups.Propose(l.ctx, g, again)
		})
	}
	res, err := l.Groups.Propose(ctx, g, data)
	time.Sleep(time.Duration(l.draw(4)) * time.Millisecond)
	if err == nil && l.draw(8) == 0 {
		return nil, lost // on its way back
	}
	return res, err
}

// gateways are n of them over one store, each with a metadata plane of its own.
func gateways(c *core.Core, groups func() metaclient.Groups, n int) (stores []Store) {
	for range n {
		meta := metaclient.New(metaclient.Config{Groups: groups(), Topology: c.Controller.Topology, Now: time.Now, Rand: rand.Reader, Timeout: 3 * time.Second, RetryMin: time.Millisecond})
		o := objects.New(objects.Config{Meta: meta, Chunks: c.Bodies, Pins: c.Pins, Logger: slog.New(slog.DiscardHandler), Region: "us-east-1"})
		stores = append(stores, Gateway{o, "bucket"})
	}
	return stores
}

func openStore(t *testing.T, fs *vfsx.Mem, tune func(*core.Tuning)) *core.Core {
	t.Helper()
	c, err := harness.Open(t.Context(), harness.Options{FS: fs, Dir: "/data", Zones: 3, DrivesPerZone: 1, Workers: true, Log: testing.Verbose(), Tune: tune})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := harness.MakeBucket(t.Context(), c, "bucket"); err != nil {
		t.Fatal(err)
	}
	return c
}

// moveLeaders hands leadership around until ctx ends.
func moveLeaders(ctx context.Context, c *core.Core, rnd *mrand.Rand) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(rnd.IntN(100)) * time.Millisecond):
		}
		for _, g := range c.Controller.Topology().Groups {
			if members, err := c.Groups.Members(g.ID); err == nil {
				// What cannot be handed over stays where it is.
				_ = c.Groups.TransferLeader(ctx, g.ID, members[rnd.IntN(len(members))].ID)
			}
		}
	}
}

// split splits ranges at the keys, one after the other at random times, until ctx ends.
func split(ctx context.Context, c *core.Core, rnd *mrand.Rand) (splits int) {
	b, err := c.Objects.HeadBucket(ctx, harness.Account, "bucket")
	if err != nil {
		return 0
	}
	for _, i := range rnd.Perm(len(keys())) {
		select {
		case <-ctx.Done():
			return splits
		case <-time.After(time.Duration(rnd.IntN(120)) * time.Millisecond):
		}
		at := cluster.Pos{Bucket: b.ID, Key: storage.Key(keys()[i])}
		for tries := 0; tries < 50 && ctx.Err() == nil; tries++ { // leaders move, so some fail
			g, err := c.Meta.GroupOf(at.Bucket, at.Key)
			if err == nil {
				if _, err = c.Splits.Split(ctx, g, at); err == nil {
					splits++
					break
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return splits
}

// TestLostAnswersAndMovedLeaders is one process with three voters and three gateways.
func TestLostAnswersAndMovedLeaders(t *testing.T) { disturbed(t, false) }

// TestSplits is the same with ranges that split meanwhile; each gateway finds out by itself.
func TestSplits(t *testing.T) { disturbed(t, true) }

func disturbed(t *testing.T, splitting bool) {
	seed := seed.Of(t)
	r := NewRecorder()
	bubble.Test(t, func(t *testing.T) {
		c := openStore(t, vfsx.NewMem(), func(tune *core.Tuning) {
			if splitting { // the minutes until the last repeats are of many groups: a slow pulse spares seconds
				tune.Raft.HeartbeatTimeout, tune.Raft.CommitTimeout, tune.Controller.Tick = 2*time.Second, time.Second, 2*time.Second
			}
		})
		var nets []*lossy
		stores := gateways(c, func() metaclient.Groups {
			l := &lossy{Groups: c.Groups, ctx: t.Context(), rnd: mrand.New(mrand.NewPCG(seed, uint64(len(nets))))}
			nets = append(nets, l)
			return l
		}, 3)
		moving, stop := context.WithCancel(t.Context())
		var others sync.WaitGroup
		others.Go(func() { moveLeaders(moving, c, mrand.New(mrand.NewPCG(seed, 99))) })
		if splitting {
			others.Go(func() {
				n := split(moving, c, mrand.New(mrand.NewPCG(seed, 98)))
				t.Logf("%d splits", n)
			})
		}
		w := Workload{Stores: stores, Keys: keys(), Clients: 6, Ops: *opsFlag, Timeout: 9 * time.Millisecond, Pause: 3 * time.Millisecond, Seed: seed}
		if splitting { // what meets a split is answered only after it was sent elsewhere
			w.Timeout, w.Pause, w.Ops = 100*time.Millisecond, 10*time.Millisecond, *opsFlag*2/3
		}
		w.Run(t.Context(), r)
		stop()
		others.Wait()
		for _, l := range nets { // the last late repeats
			l.wg.Wait()
		}
		w.Stores = gateways(c, func() metaclient.Groups { return c.Groups }, 1) // and what they left
		w.Clients, w.Ops, w.Seed, w.Timeout = 2, 20, seed+1, 0
		w.Run(t.Context(), r)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	verdict(t, r)
}

// cutoff is a store whose power may go: an answer that was not out by then never comes.
type cutoff struct {
	Store
	power *power
}

type power struct {
	mu   sync.RWMutex
	gone bool
}

// out lets an answer out, or not.
func (c cutoff) out(err error) error {
	c.power.mu.RLock()
	defer c.power.mu.RUnlock()
	if c.power.gone {
		return errs.New(errs.Other, "test", "", "the power went")
	}
	return err
}

func (c cutoff) Put(ctx context.Context, key string, body []byte, cond Condition) error {
	return c.out(c.Store.Put(ctx, key, body, cond))
}

func (c cutoff) Delete(ctx context.Context, key string) error { return c.out(c.Store.Delete(ctx, key)) }

func (c cutoff) Get(ctx context.Context, key string) ([]byte, error) {
	b, err := c.Store.Get(ctx, key)
	return b, c.out(err)
}

func (c cutoff) List(ctx context.Context) (map[string]string, error) {
	m, err := c.Store.List(ctx)
	return m, c.out(err)
}

// TestPowerCuts goes on with one history over several starts, each on what a
// power cut at a random moment left.
func TestPowerCuts(t *testing.T) {
	seed := seed.Of(t)
	r := NewRecorder()
	bubble.Test(t, func(t *testing.T) {
		rnd := mrand.New(mrand.NewPCG(seed, 0))
		fs := vfsx.NewMem()
		for round := range 4 {
			c := openStore(t, fs, nil)
			pow := &power{}
			var stores []Store
			for _, s := range gateways(c, func() metaclient.Groups { return c.Groups }, 2) {
				stores = append(stores, cutoff{s, pow})
			}
			ctx, stop := context.WithCancel(t.Context())
			var wg sync.WaitGroup
			wg.Go(func() {
				w := Workload{Stores: stores, Keys: keys(), Clients: 5, Ops: *opsFlag, Pause: 3 * time.Millisecond, Seed: seed + uint64(round)}
				w.Run(ctx, r)
			})
			cut := make(chan *vfsx.Mem, 1)
			left := 1 + rnd.IntN(600)
			clone := rnd.Uint64()
			var once sync.Mutex
			fs.SetHook(func(vfsx.Op, string) error {
				once.Lock()
				defer once.Unlock()
				if left--; left == 0 {
					// An answer is recorded after out let it pass, so all that passes before gone is set must be in the clone.
					pow.mu.Lock()
					pow.gone = true
					pow.mu.Unlock()
					cut <- fs.CrashClone(clone)
					stop()
				}
				return nil
			})
			wg.Wait()
			fs.SetHook(nil)
			old := fs
			select {
			case fs = <-cut:
			default: // the clients were done before
				fs = old.CrashClone(clone)
			}
			stop()
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		c := openStore(t, fs, nil)
		w := Workload{Stores: gateways(c, func() metaclient.Groups { return c.Groups }, 1), Keys: keys(), Clients: 2, Ops: 15, Seed: seed + 100}
		w.Run(t.Context(), r)
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	verdict(t, r)
}
