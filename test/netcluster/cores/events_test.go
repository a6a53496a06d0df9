package cores

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/server/core"
	"cairn/server/status"
	"cairn/server/target"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/netcluster"
	"cairn/test/seed"
)

// inbox is a target of all nodes, in memory.
type inbox struct {
	mu    sync.Mutex
	first map[string][]string // by key: the sequencers in the order in which they came for the first time
	seen  map[string]int      // by id: how often
}

func (b *inbox) Send(_ context.Context, batch []target.Message) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range batch {
		if b.seen[m.ID]++; b.seen[m.ID] > 1 {
			continue
		}
		var r struct {
			Records []struct {
				S3 struct{ Object struct{ Sequencer string } }
			}
		}
		if err := json.Unmarshal(m.Body, &r); err != nil || len(r.Records) != 1 {
			return 0, fmt.Errorf("not a record: %s", m.Body)
		}
		b.first[m.Key] = append(b.first[m.Key], r.Records[0].S3.Object.Sequencer)
	}
	return len(batch), nil
}

func (b *inbox) Check(context.Context) error { return nil }
func (b *inbox) Close() error                { return nil }

// TestEventsOutliveNodes: while nodes are killed and a range splits, every acknowledged write has its event, and they come in the order of each key. Any
// node tells of all.
func TestEventsOutliveNodes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		box := &inbox{first: map[string][]string{}, seen: map[string]int{}}
		c := begin(t, Options{Zones: 3, NodesPerZone: 1, Seed: seed.Of(t), Workers: true, Tune: func(tune *core.Tuning) {
			tune.OpenTarget = func(*metapb.SysTarget) (target.Target, error) { return box, nil }
		}})
		ctx := t.Context()
		at := func(i int) *core.Core { return c.Nodes[i].Process().(Node).Core }
		hook := &metapb.SysTarget{Name: "hooks", Kind: "webhook", Settings: []*metapb.KV{{Name: "url", Value: "http://127.0.0.1:1/"}}}
		if err := at(0).Events.AddTarget(ctx, hook, nil, false); err != nil {
			t.Fatal(err)
		}
		err := at(1).Objects.PutBucketNotification(ctx, harness.Account, Bucket, &metapb.NotificationConfig{Rules: []*metapb.NotificationRule{{
			Id: "rule", Kind: metapb.NotificationRule_KIND_QUEUE, Arn: "arn:aws:sqs:::hooks", Events: []string{"s3:ObjectCreated:*"},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		acked := map[string]int{}
		puts := func(through ...int) {
			t.Helper()
			for n := range 24 {
				key := fmt.Sprintf("k%d", n%8)
				if err := (harness.Bucket{Core: at(through[n%len(through)]), Name: Bucket}).Put(ctx, key, []byte{byte(n)}); err != nil {
					t.Errorf("%s through node %d: %v", key, through[n%len(through)], err)
				}
				acked[key]++
			}
		}
		puts(0, 1, 2)
		if b, err := at(0).Objects.HeadBucket(ctx, harness.Account, Bucket); err != nil {
			t.Fatal(err)
		} else {
			split(t, c, cluster.Pos{Bucket: b.ID, Key: "k4"})
		}
		puts(2, 0, 1)
		for down := range c.Nodes {
			others := []int{(down + 1) % 3, (down + 2) % 3}
			puts(others...) // some of these are not delivered when the node dies
			c.Nodes[down].Kill()
			time.Sleep(10 * time.Second)
			puts(others...)
			if err := c.Nodes[down].Start(ctx); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
		}
		time.Sleep(time.Minute)
		box.mu.Lock()
		defer box.mu.Unlock()
		for key, n := range acked {
			got := box.first[key]
			if len(got) < n || !slices.IsSorted(got) {
				t.Errorf("key %s: %d writes, events %v", key, n, got)
			}
			if len(slices.Compact(slices.Clone(got))) != len(got) {
				t.Errorf("key %s: a sequencer twice: %v", key, got)
			}
		}
		for i := range c.Nodes {
			n := 0
			err := at(i).Events.Tail(ctx, core.TailQuery{Bucket: Bucket, From: "begin"}, func(l *status.EventLine) error {
				if l.Event != nil {
					n++
				}
				return nil
			})
			if err != nil || n != len(box.seen) {
				t.Errorf("node %d tells of %d events, %d came: %v", i, n, len(box.seen), err)
			}
			st, err := at(i).Events.Status(ctx)
			if err != nil || len(st.Targets) != 1 || st.Targets[0].Queued != 0 || st.Targets[0].Delivered != int64(n) || st.Partial != "" {
				t.Errorf("node %d: %+v %v", i, st, err)
			}
		}
		end(t, c)
	})
}

// split splits the first range, wherever it is led.
func split(t *testing.T, c *netcluster.Cluster, at cluster.Pos) {
	t.Helper()
	var err error
	for _, n := range c.Nodes {
		if _, err = n.Process().(Node).Core.Splits.Split(t.Context(), cluster.FirstRange, at); err == nil {
			return
		}
	}
	t.Fatal(err)
}
