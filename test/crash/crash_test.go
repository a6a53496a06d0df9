// Package crash holds a whole store, six drives in three zones in one process, to
// its promises over power cuts.
package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"cairn/cluster/multiraft"
	"cairn/server/core"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/checker"
	"cairn/test/harness"
	"cairn/test/seed"
)

var roundsFlag = flag.Int("crash.rounds", 3, "power cuts of the whole store")

const (
	workers        = 8
	cutsPerRun     = 10
	opsBetweenCuts = 1200 // operations on the file system, at most
)

// keysOf are the keys of one worker: no two share one, see package checker.
func keysOf(w int) (keys []string) {
	for i := range 6 {
		keys = append(keys, fmt.Sprintf("w%d/key-%d", w, i))
	}
	return keys
}

func open(t *testing.T, fs *vfsx.Mem, tune func(*core.Tuning)) (*core.Core, harness.Bucket) {
	t.Helper()
	ctx := t.Context()
	c, err := harness.Open(ctx, harness.Options{FS: fs, Dir: "/data", Zones: 3, DrivesPerZone: 2, Workers: true, Log: testing.Verbose(), Tune: tune})
	if err != nil {
		t.Fatal(err)
	}
	b, err := harness.MakeBucket(ctx, c, "bucket")
	if err != nil {
		t.Fatal(err)
	}
	return c, b
}

// work runs the workers until stop is closed; the first broken promise is answered.
func work(ctx context.Context, chk *checker.Checker, b harness.Bucket, seed uint64, stop <-chan struct{}) error {
	var wg sync.WaitGroup
	failed := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			keys := keysOf(w)
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := chk.Step(ctx, b, rnd, keys); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	return <-failed
}

// TestPowerCuts cuts the power of all drives at once while clients write. From
// every run several file systems are taken, each as a cut at a random write, sync,
// rename or the like of that run could have left it; each is opened again and held to what had
// been acknowledged by then. The next run goes on with one of them.
func TestPowerCuts(t *testing.T) {
	seed := seed.Of(t)
	bubble.Test(t, func(t *testing.T) { rounds(t, seed, *roundsFlag, nil) })
}

// TestPowerCutsWhileRangesSplit is TestPowerCuts of a store whose ranges split all the time.
func TestPowerCutsWhileRangesSplit(t *testing.T) {
	seed := seed.Of(t)
	bubble.Test(t, func(t *testing.T) {
		rounds(t, seed, *roundsFlag, func(tune *core.Tuning) {
			tune.Splits.RowsMax = 3
			tune.SplitEvery = 20 * time.Millisecond
		})
	})
}

func rounds(t *testing.T, seed uint64, n int, tune func(*core.Tuning)) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	fs := vfsx.NewMem()
	chk := checker.New(seed)
	total := 0
	for round := range n {
		cuts := run(t, fs, chk, rnd, seed+uint64(round)<<32, tune)
		for i, cut := range cuts {
			hold(t, cut, fmt.Sprintf("seed %d round %d cut %d", seed, round, i), tune)
		}
		total += len(cuts)
		if len(cuts) > 0 {
			last := cuts[rnd.IntN(len(cuts))]
			fs, chk = last.fs, last.known
		}
	}
	t.Logf("%d cuts; %d writes acknowledged, %d left open", total, chk.Acked, chk.Open)
}

// cut is what a power cut left, and what is known of it.
type cut struct {
	fs    *vfsx.Mem
	known *checker.Checker
}

// run works on the store until cutsPerRun cuts were taken.
func run(t *testing.T, fs *vfsx.Mem, chk *checker.Checker, rnd *rand.Rand, seed uint64, tune func(*core.Tuning)) (cuts []cut) {
	var mu sync.Mutex
	stop := make(chan struct{})
	next := 1 + rnd.IntN(opsBetweenCuts)
	hook := func(op vfsx.Op, path string) error {
		mu.Lock()
		defer mu.Unlock()
		if next--; next > 0 || len(cuts) == cutsPerRun {
			return nil
		}
		next = 1 + rnd.IntN(opsBetweenCuts)
		// Knowledge first: what is acknowledged before the cut must survive it.
		known := chk.Clone()
		cuts = append(cuts, cut{fs.CrashClone(rnd.Uint64()), known})
		if len(cuts) == cutsPerRun {
			close(stop)
		}
		return nil
	}
	duringStart := rnd.IntN(4) == 0
	if duringStart {
		fs.SetHook(hook)
	}
	c, b := open(t, fs, tune)
	fs.SetHook(hook)
	if err := work(t.Context(), chk, b, seed, stop); err != nil {
		t.Fatal(err)
	}
	fs.SetHook(nil)
	if tune != nil {
		t.Logf("%d ranges", len(c.Meta.AllRanges()))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range cuts {
		cuts[i].known.Widen(chk)
	}
	return cuts
}

// hold opens what a cut left and checks it.
func hold(t *testing.T, c cut, name string, tune func(*core.Tuning)) {
	s, b := open(t, c.fs, tune)
	for _, g := range s.Groups.Status() {
		for _, r := range g.Replicas {
			if r.State == multiraft.ReplicaLost {
				t.Errorf("%s: a power cut cost group %d the replica %s: %v", name, g.Group, r.ID, r.Err)
			}
		}
	}
	if err := c.known.Verify(t.Context(), b); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}
