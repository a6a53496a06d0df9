// Package events holds a whole store to what it promises of events: six drives in three zones in one process, in memory and in fake time, with
// targets that fail as the test wants it.
package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/server/target"
	"cairn/storage"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

const bucket = "bucket"

// inbox is a target outside the store: what it has taken stays, whatever becomes of the store.
type inbox struct {
	mu    sync.Mutex
	rng   *rand.Rand // nil: it never fails by itself
	down  bool
	hangs bool // while it is down it does not answer at all
	got   []target.Message
}

var errAway = errors.New("nobody is here")

// Send takes a batch, or a beginning of it.
func (b *inbox) Send(ctx context.Context, batch []target.Message) (int, error) {
	b.mu.Lock()
	if b.down {
		hangs := b.hangs
		b.mu.Unlock()
		if hangs {
			<-ctx.Done()
		}
		return 0, errAway
	}
	defer b.mu.Unlock()
	n, acked := len(batch), len(batch)
	if b.rng != nil && b.rng.IntN(4) == 0 {
		n = b.rng.IntN(n + 1)
		acked = b.rng.IntN(n + 1) // the rest is taken, and nobody hears of it
	}
	b.got = append(b.got, batch[:n]...)
	if acked < len(batch) {
		return acked, errAway
	}
	return acked, nil
}

// Check finds it well.
func (b *inbox) Check(context.Context) error { return nil }

// Close does nothing: it is another's.
func (b *inbox) Close() error { return nil }

func (b *inbox) set(down, hangs bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down, b.hangs = down, hangs
}

func (b *inbox) taken() []target.Message {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]target.Message(nil), b.got...)
}

// open opens a store in which all events go to in; ranges split at so many rows.
func open(t *testing.T, fs *vfsx.Mem, in *inbox, rows int64) *core.Core {
	t.Helper()
	c, err := harness.Open(t.Context(), harness.Options{FS: fs, Dir: "/data", Zones: 3, DrivesPerZone: 2, Workers: true, Log: testing.Verbose(), Tune: func(tune *core.Tuning) {
		tune.OpenTarget = func(*metapb.SysTarget) (target.Target, error) { return in, nil }
		tune.Raft.HeartbeatTimeout = time.Second
		if rows > 0 {
			tune.Splits.RowsMax = rows
			tune.SplitEvery = 50 * time.Millisecond
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// configure makes the bucket, with versions, and has all its events sent.
func configure(t *testing.T, c *core.Core) harness.Bucket {
	t.Helper()
	b, err := harness.MakeBucket(t.Context(), c, bucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Objects.PutBucketVersioning(t.Context(), harness.Account, bucket, true); err != nil {
		t.Fatal(err)
	}
	if err := c.Events.AddTarget(t.Context(), &metapb.SysTarget{Name: "in", Kind: "webhook", Settings: []*metapb.KV{{Name: "url", Value: "http://127.0.0.1:1/"}}}, nil, false); err != nil {
		t.Fatal(err)
	}
	cfg := &metapb.NotificationConfig{Rules: []*metapb.NotificationRule{{
		Id: "all", Kind: metapb.NotificationRule_KIND_QUEUE, Arn: "arn:aws:sqs:::in", Events: []string{"s3:ObjectCreated:*", "s3:ObjectRemoved:*"},
	}}}
	if err := c.Objects.PutBucketNotification(t.Context(), harness.Account, bucket, cfg); err != nil {
		t.Fatal(err)
	}
	return b
}

// TestAnHourAway: writes go on as ever while the target does not answer for an hour, and then everything is delivered, once and in order.
func TestAnHourAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		in := &inbox{}
		c := open(t, vfsx.NewMem(), in, 0)
		defer c.Close()
		b := configure(t, c)
		n := 0
		// write puts an object every two seconds for so long, and answers what the slowest waited.
		write := func(for_ time.Duration) (slowest time.Duration) {
			for end := time.Now().Add(for_); time.Now().Before(end); time.Sleep(2 * time.Second) {
				at := time.Now()
				if err := b.Put(t.Context(), fmt.Sprintf("k%d", n%50), []byte("body")); err != nil {
					t.Fatal(err)
				}
				slowest = max(slowest, time.Since(at))
				n++
			}
			return slowest
		}
		there := write(10 * time.Minute)
		if got := len(in.taken()); got < n-1 {
			t.Fatalf("%d of %d came at once", got, n)
		}
		in.set(true, true)
		away := write(time.Hour)
		if away > there {
			t.Errorf("the slowest write took %v while the target was away, %v before", away, there)
		}
		in.set(false, false)
		for end := time.Now().Add(5 * time.Minute); len(in.taken()) < n && time.Now().Before(end); {
			time.Sleep(time.Second)
		}
		got := in.taken()
		if len(got) != n {
			t.Fatalf("%d of %d came", len(got), n)
		}
		for i, m := range got {
			if m.Key != fmt.Sprintf("k%d", i%50) {
				t.Fatalf("%d: %s", i, m.Key)
			}
		}
	})
}

// history is what was done, and what is known of its end.
type history struct {
	mu     sync.Mutex
	over   bool // answers from now on are of a store that is no more
	acked  map[string]bool
	unsure int
}

func name(key, event, version string) string { return key + " " + event + " " + version }

func (h *history) note(id string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over || err != nil {
		h.unsure++
		return
	}
	h.acked[id] = true
}

// write does n random things.
func (h *history) write(ctx context.Context, c *core.Core, rng *rand.Rand, n int) {
	for range n {
		time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond) // so that the power fails in between
		key := fmt.Sprintf("%02d/key", rng.IntN(40))
		if rng.IntN(3) == 0 {
			out, err := c.Objects.DeleteObject(ctx, harness.Account, bucket, objects.DeleteItem{Key: storage.Key(key)})
			h.note(name(key, "ObjectRemoved:DeleteMarkerCreated", out.MarkerVersionID), err)
			continue
		}
		out, err := c.Objects.PutObject(ctx, harness.Account, &objects.PutInput{Bucket: bucket, Key: storage.Key(key), Body: harness.NewBody(make([]byte, rng.IntN(500))), Attributes: &metapb.Attributes{}})
		h.note(name(key, "ObjectCreated:Put", out.VersionID), err)
	}
}

// TestHistories: while ranges split, the target takes half of what it gets and the power fails, what comes is what happened, in order.
func TestHistories(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := seed.Of(t)
		rng := rand.New(rand.NewPCG(s, 1))
		fs, in := vfsx.NewMem(), &inbox{rng: rand.New(rand.NewPCG(s, 2))}
		c := open(t, fs, in, 150)
		defer func() { c.Close() }()
		configure(t, c)
		all := map[string]bool{}
		for round := range 6 {
			h := &history{acked: map[string]bool{}}
			var wg sync.WaitGroup
			for w := range 4 {
				wg.Go(func() { h.write(t.Context(), c, rand.New(rand.NewPCG(s, uint64(10+10*round+w))), 40) })
			}
			if round%2 == 1 {
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
				in.set(true, rng.IntN(2) == 0)
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
			} else {
				time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
				in.set(true, false)
			}
			// Nothing goes out any more, and nothing that is answered from here on counts: the power fails.
			h.mu.Lock()
			h.over = true
			fs = fs.CrashClone(rng.Uint64())
			h.mu.Unlock()
			wg.Wait()
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			for id := range h.acked {
				all[id] = true
			}
			in.set(false, false)
			c = open(t, fs, in, 150)
		}
		happened := versions(t, c)
		for id := range all {
			if !happened[id] {
				t.Errorf("acknowledged and lost: %s", id)
			}
		}
		for end := time.Now().Add(30 * time.Minute); distinct(in.taken()) < len(happened) && time.Now().Before(end); {
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Minute)
		check(t, in.taken(), happened)
		if ranges := len(c.Meta.AllRanges()); ranges < 3 || len(all) < 200 {
			t.Errorf("%d ranges, %d acknowledged: nothing was proven", ranges, len(all))
		}
		t.Logf("%d happened, %d acknowledged, %d came, %d ranges", len(happened), len(all), len(in.taken()), len(c.Meta.AllRanges()))
	})
}

func distinct(got []target.Message) int {
	ids := map[string]bool{}
	for _, m := range got {
		ids[m.ID] = true
	}
	return len(ids)
}

// versions are the versions that there are, by the event that made them.
func versions(t *testing.T, c *core.Core) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for in := (objects.ListVersionsInput{Bucket: bucket, Max: 1000}); ; {
		page, err := c.Objects.ListVersions(t.Context(), harness.Account, &in)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range page.Versions {
			event := "ObjectCreated:Put"
			if v.DeleteMarker {
				event = "ObjectRemoved:DeleteMarkerCreated"
			}
			all[name(string(v.Key), event, v.VersionID)] = true
		}
		if !page.Truncated {
			return all
		}
		in.KeyMarker, in.VersionMarker = page.NextKey, page.NextVersion
	}
}

// check checks that what came is what happened, that of each key in its order, and that what came twice is the same.
func check(t *testing.T, got []target.Message, happened map[string]bool) {
	t.Helper()
	last, ids, seen := map[string]string{}, map[string]string{}, map[string]bool{}
	for _, m := range got {
		var body struct {
			Records []struct {
				S3 struct {
					Object struct{ VersionID, Sequencer string }
				}
			}
		}
		if err := json.Unmarshal(m.Body, &body); err != nil || len(body.Records) != 1 {
			t.Fatal(err, string(m.Body))
		}
		o := body.Records[0].S3.Object
		if before, again := ids[m.ID]; again {
			if before != o.Sequencer {
				t.Errorf("%s came again with another sequencer", m.ID)
			}
			continue
		}
		ids[m.ID] = o.Sequencer
		id := name(m.Key, m.Event, o.VersionID)
		if seen[id] {
			t.Errorf("%s came twice with different ids", id)
		}
		if seen[id] = true; !happened[id] {
			t.Errorf("came and never happened: %s", id)
		}
		if o.Sequencer <= last[m.Key] {
			t.Errorf("%s: sequencer %s came after %s", id, o.Sequencer, last[m.Key])
		}
		last[m.Key] = o.Sequencer
	}
	for id := range happened {
		if !seen[id] {
			t.Errorf("did not come: %s", id)
		}
	}
}
