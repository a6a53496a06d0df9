// Package splits holds a whole store to its promises while its ranges split.
package splits

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

// openSmall opens a store whose ranges split at so many rows.
func openSmall(t *testing.T, fs *vfsx.Mem, rows int64) *core.Core {
	t.Helper()
	c, err := harness.Open(t.Context(), harness.Options{FS: fs, Dir: "/data", Zones: 3, DrivesPerZone: 1, Workers: true, Log: testing.Verbose(), Tune: func(tune *core.Tuning) {
		tune.Splits.RowsMax = rows
		tune.SplitEvery = 20 * time.Millisecond
		tune.Raft.HeartbeatTimeout = time.Second // many groups
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const (
	writers = 8
	each    = 150 // keys of a writer
)

func key(w, i int) string { return fmt.Sprintf("dir%02d/%04d-%d", i%20, i, w) }

// model is what one writer knows of its keys, by their numbers.
type model struct {
	mu      sync.Mutex
	present map[string]bool
}

func (m *model) set(key string, there bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if there {
		m.present[key] = true
	} else {
		delete(m.present, key)
	}
}

// snapshot are the keys that are there for certain, if none of them is deleted later.
func (m *model) snapshot() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := make([]string, 0, len(m.present))
	for k := range m.present {
		keys = append(keys, k)
	}
	return keys
}

// More than a thousand keys are written while ranges split a dozen times, and others list, read, delete in bulk and make and
// remove buckets. In fake time, which passes only while all of them rest: hence their pauses.
func TestManyRanges(t *testing.T) { bubble.Test(t, manyRanges) }

func pause(rnd *rand.Rand) { time.Sleep(time.Duration(1+rnd.IntN(5)) * time.Millisecond) }

func manyRanges(t *testing.T) {
	seed := seed.Of(t)
	c := openSmall(t, vfsx.NewMem(), 80)
	defer c.Close()
	b, err := harness.MakeBucket(t.Context(), c, "bucket")
	if err != nil {
		t.Fatal(err)
	}
	m := &model{present: map[string]bool{}}
	ctx := t.Context()
	var writing, others sync.WaitGroup
	var stop atomic.Bool
	for w := range writers {
		writing.Go(func() { write(t, ctx, c, b, m, w, rand.New(rand.NewPCG(seed, uint64(w)))) })
	}
	others.Go(func() {
		for rnd := rand.New(rand.NewPCG(seed, writers)); !stop.Load(); pause(rnd) {
			checkListing(t, ctx, b, m)
		}
	})
	others.Go(func() {
		rnd := rand.New(rand.NewPCG(seed, writers+1))
		for n := 0; !stop.Load(); n++ {
			buckets(t, ctx, c, n, rnd)
		}
	})
	writing.Wait()
	stop.Store(true)
	others.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d ranges when all was written", len(c.Meta.AllRanges()))
	for end := time.Now().Add(time.Minute); len(c.Meta.AllRanges()) < 12; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%d ranges only", len(c.Meta.AllRanges()))
			break
		}
	}
	checkListing(t, ctx, b, m)
	checkFolded(t, ctx, c, m)
	checkTopology(t, c)
	sum := int64(0)
	for _, g := range c.Meta.AllRanges() {
		err := c.Meta.ReadGroup(ctx, g.ID, func(v rangestate.Reader) error {
			counters, err := v.Counters()
			for _, k := range counters {
				sum += k.Row.Objects
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if want := int64(len(m.snapshot())); sum != want {
		t.Errorf("the counters say %d objects, there are %d", sum, want)
	}
}

func put(ctx context.Context, c *core.Core, bucket, key, body string) error {
	_, err := c.Objects.PutObject(ctx, harness.Account, &objects.PutInput{Bucket: bucket, Key: storage.Key(key), Body: harness.NewBody([]byte(body)), Attributes: &metapb.Attributes{}})
	return err
}

// write puts the writer's keys, reads some back, and deletes some again, one by one and in bulk.
func write(t *testing.T, ctx context.Context, c *core.Core, b harness.Bucket, m *model, w int, rnd *rand.Rand) {
	for n, i := range rnd.Perm(each) {
		pause(rnd)
		k := key(w, i)
		if err := put(ctx, c, "bucket", k, k); err != nil {
			t.Errorf("put %s: %v", k, err)
			return
		}
		if n%10 == 0 {
			if got, err := b.Get(ctx, k); err != nil || string(got) != k {
				t.Errorf("%s reads %q, %v", k, got, err)
				return
			}
		}
		if !strings.HasPrefix(k, "dir19/") {
			m.set(k, true)
			continue
		}
		if n%2 == 0 { // what is deleted is never in the model: its listing is judged by what stays
			if err := b.Delete(ctx, k); err != nil {
				t.Errorf("delete %s: %v", k, err)
				return
			}
		}
	}
	var items []objects.DeleteItem
	for i := range each {
		if k := key(w, i); strings.HasPrefix(k, "dir19/") || i%20 == 0 {
			m.set(k, false)
			items = append(items, objects.DeleteItem{Key: storage.Key(k)})
		}
	}
	res, err := c.Objects.DeleteObjects(ctx, harness.Account, "bucket", items)
	if err != nil {
		t.Errorf("bulk delete: %v", err)
		return
	}
	for i, r := range res {
		if r.Err != nil {
			t.Errorf("bulk delete of %s: %v", items[i].Key, r.Err)
		}
	}
}

// checkListing lists everything: in order, each key once, all that was there all the while, nothing that was never written.
func checkListing(t *testing.T, ctx context.Context, b harness.Bucket, m *model) {
	before := m.snapshot()
	got, err := b.List(ctx)
	if err != nil {
		t.Errorf("list: %v", err)
		return
	}
	for i := 1; i < len(got); i++ {
		if got[i-1] >= got[i] {
			t.Errorf("listed out of order or twice: %q, %q", got[i-1], got[i])
			return
		}
	}
	after := map[string]bool{}
	for _, k := range m.snapshot() {
		after[k] = true
	}
	for _, k := range before {
		if _, ok := slices.BinarySearch(got, k); !ok && after[k] {
			t.Errorf("%s is not listed", k)
			return
		}
	}
}

// checkFolded lists common prefixes in small pages, and what lies in one of them.
func checkFolded(t *testing.T, ctx context.Context, c *core.Core, m *model) {
	t.Helper()
	var prefixes []string
	for after := ""; ; {
		page, err := c.Objects.ListObjects(ctx, harness.Account, &objects.ListInput{Bucket: "bucket", Delimiter: "/", After: after, Max: 3})
		if err != nil {
			t.Fatal(err)
		}
		prefixes = append(prefixes, page.CommonPrefixes...)
		if after = page.Next; !page.Truncated {
			break
		}
	}
	want := map[string]int{}
	for _, k := range m.snapshot() {
		want[k[:6]]++
	}
	if len(prefixes) != len(want) || !slices.IsSorted(prefixes) {
		t.Errorf("prefixes %v, want %d of them", prefixes, len(want))
	}
	for _, p := range prefixes {
		n := 0
		for after := ""; ; {
			page, err := c.Objects.ListObjects(ctx, harness.Account, &objects.ListInput{Bucket: "bucket", Prefix: p, Delimiter: "/", After: after, Max: 77})
			if err != nil {
				t.Fatal(err)
			}
			n += len(page.Objects)
			if after = page.Next; !page.Truncated {
				break
			}
		}
		if n != want[p] {
			t.Errorf("%d keys below %s, want %d", n, p, want[p])
		}
	}
}

// checkTopology waits until the ranges recorded cover everything without gaps or overlaps.
func checkTopology(t *testing.T, c *core.Core) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for {
		bad := ""
		at := cluster.Pos{}
		n := 0
		for next := true; next; {
			next = false
			for _, g := range c.Controller.Topology().Groups {
				if g.ID != cluster.SystemGroup && g.Bounds.Start == at {
					n++
					at, next = g.Bounds.End, g.Bounds.End != (cluster.Pos{})
					break
				}
			}
		}
		if all := len(c.Controller.Topology().Groups) - 1; at != (cluster.Pos{}) || n != all {
			bad = fmt.Sprintf("ranges follow each other up to %v: %d of %d", at, n, all)
		}
		if bad == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatal(bad)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// buckets makes a bucket, uses it, tries to remove it while it is used and removes it.
func buckets(t *testing.T, ctx context.Context, c *core.Core, n int, rnd *rand.Rand) {
	name := fmt.Sprintf("bucket-%d", n)
	if err := c.Objects.CreateBucket(ctx, harness.Account, name, objects.BucketOptions{Region: "us-east-1"}); err != nil {
		t.Errorf("create %s: %v", name, err)
		return
	}
	var keys []string
	for i := range 40 {
		k := fmt.Sprintf("%c/%d", 'a'+i%26, i)
		if err := put(ctx, c, name, k, "x"); err != nil {
			t.Errorf("put in %s: %v", name, err)
			return
		}
		pause(rnd)
		keys = append(keys, k)
	}
	if err := c.Objects.DeleteBucket(ctx, harness.Account, name); !errs.Is(err, errs.BucketNotEmpty) {
		t.Errorf("a bucket with objects is removed: %v", err)
		return
	}
	if err := put(ctx, c, name, keys[0], "y"); err != nil {
		t.Errorf("put after the refusal: %v", err)
		return
	}
	b := harness.Bucket{Core: c, Name: name}
	for _, k := range keys {
		if err := b.Delete(ctx, k); err != nil {
			t.Errorf("delete %s: %v", k, err)
			return
		}
	}
	if err := c.Objects.DeleteBucket(ctx, harness.Account, name); err != nil {
		t.Errorf("remove %s: %v", name, err)
	}
	if err := put(ctx, c, name, "late", "x"); !errs.Is(err, errs.NoSuchBucket) {
		t.Errorf("put in a bucket that is gone: %v", err)
	}
}

// A verification of everything finds all well while ranges split under it.
func TestVerifyWhileSplitting(t *testing.T) { bubble.Test(t, verifyWhileSplitting) }

func verifyWhileSplitting(t *testing.T) {
	c := openSmall(t, vfsx.NewMem(), 1_000_000)
	defer c.Close()
	ctx := t.Context()
	if _, err := harness.MakeBucket(ctx, c, "bucket"); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if err := put(ctx, c, "bucket", fmt.Sprintf("key-%03d", i), strings.Repeat("x", 2000)); err != nil {
			t.Fatal(err)
		}
	}
	var splitting sync.WaitGroup
	var stop atomic.Bool
	splitting.Go(func() {
		for n := 0; n < 20 && !stop.Load(); n++ {
			for _, g := range c.Meta.AllRanges() {
				if _, err := c.Splits.Split(ctx, g.ID, cluster.Pos{}); err != nil && !errs.Is(err, errs.InvalidArgument) && !errs.Is(err, errs.NotLeader) && !errs.Is(err, errs.Conflict) {
					t.Errorf("split of %d: %v", g.ID, err)
				}
				if len(c.Meta.AllRanges()) > 12 {
					return
				}
			}
		}
	})
	for range 2 {
		report, err := c.Verify(ctx, false, func(status.Progress) {})
		if err != nil {
			t.Fatal(err)
		}
		if len(report.Problems) > 0 {
			t.Fatalf("%+v", report.Problems)
		}
	}
	stop.Store(true)
	splitting.Wait()
	t.Logf("%d ranges", len(c.Meta.AllRanges()))
}

// A replica whose bounds are not those of the others is found and stopped; the store goes on, and gets a new one in its place.
func TestWrongBoundsAreFound(t *testing.T) { bubble.Test(t, wrongBoundsAreFound) }

func wrongBoundsAreFound(t *testing.T) {
	fs := vfsx.NewMem()
	c := openSmall(t, fs, 1_000_000)
	ctx := t.Context()
	if _, err := harness.MakeBucket(ctx, c, "bucket"); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if err := put(ctx, c, "bucket", fmt.Sprint(i), "x"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Splits.Split(ctx, cluster.FirstRange, cluster.Pos{}); err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Minute)
	for behind := true; behind; time.Sleep(5 * time.Millisecond) { // followers learn of the commit a little later
		if behind = false; time.Now().After(end) {
			t.Fatal("a follower does not learn of the split")
		}
		err := c.Groups.EachReplica(cluster.FirstRange, func(_ cluster.ReplicaID, r pebble.Reader) error {
			v, err := rangestate.NewView(r, cluster.FirstRange)
			behind = behind || err == nil && v.Descriptor().End == nil
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	leader := cluster.ReplicaID("")
	for _, s := range c.Groups.Status() {
		if s.Group == cluster.FirstRange {
			leader = s.Leader
		}
	}
	var wrong cluster.ReplicaID
	err := c.Groups.EachReplica(cluster.FirstRange, func(id cluster.ReplicaID, r pebble.Reader) error {
		if id == leader || wrong != "" {
			return nil
		}
		wrong = id
		v, err := rangestate.NewView(r, cluster.FirstRange)
		if err != nil {
			return err
		}
		d := v.Descriptor()
		d.End.Key = append(d.End.Key, 'x')
		raw, err := d.MarshalVT()
		if err != nil {
			return err
		}
		key := append(binary.BigEndian.AppendUint64([]byte{'G'}, uint64(cluster.FirstRange)), 'd')
		return r.(*pebble.DB).Set(key, raw, pebble.NoSync)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c, err = harness.Open(ctx, harness.Options{FS: fs, Dir: "/data", Zones: 3, DrivesPerZone: 1, Workers: true, Log: testing.Verbose(), Tune: func(tune *core.Tuning) {
		tune.SplitEvery, tune.Splits.CheckEvery = 20*time.Millisecond, 50*time.Millisecond
		tune.Controller.HangAfter = 5 * time.Second
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for end := time.Now().Add(2 * time.Minute); ; {
		good, gone := 0, true
		for _, s := range c.Groups.Status() {
			for _, r := range s.Replicas {
				if s.Group != cluster.FirstRange {
					continue
				}
				if r.State == multiraft.ReplicaRunning {
					good++
				}
				gone = gone && r.ID != wrong
			}
		}
		if gone && good == 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s still is of the group: %+v", wrong, c.Groups.Status())
		}
		if err := put(ctx, c, "bucket", "0", "y"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
