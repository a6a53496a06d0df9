package metarpc

import (
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/test/bubble"
)

// tell fills a range with events: of bucket 1 for the targets mine and, by EventBridge, default; some delivered, one dead, and a restore whose end
// makes another.
func tell(t *testing.T, a *node) {
	t.Helper()
	a.must("", &metapb.PutBucketOp{Row: &metapb.BucketRow{Format: 1, Id: 1, Generation: 1, Events: &metapb.BucketEvents{
		Name: "bucket", Owner: "me", Region: "here", Config: &metapb.NotificationConfig{EventBridge: true, Rules: []*metapb.NotificationRule{{
			Id: "rule", Kind: metapb.NotificationRule_KIND_QUEUE, Arn: "arn:aws:sqs:::mine", Events: []string{"s3:ObjectCreated:*"}, Prefix: "told/",
		}}},
	}}})
	for i := range 40 {
		key := fmt.Sprintf("told/%02d", i)
		if i%4 == 0 {
			key = fmt.Sprintf("other/%02d", i)
		}
		op := putOp(key, uint64(i+1), "")
		op.Row.Attributes = &metapb.Attributes{StorageClass: string(storage.Glacier)}
		a.must(key, op)
	}
	for i := range 5 {
		now := time.Now().UnixMilli()
		op := &metapb.UpdateVersionOp{Bucket: 1, Key: fmt.Appendf(nil, "told/%02d", 4*i+1)}
		op.Change = &metapb.UpdateVersionOp_Restore{Restore: &metapb.Restore{ReadyMs: now + 1000, ExpiresMs: now + 2000, Tier: rangestate.TierStandard}}
		if _, err := a.meta.Do(t.Context(), 1, storage.Key(op.Key), &metapb.RangeCommand{Op: &metapb.RangeCommand_UpdateVersion{UpdateVersion: op}}); err != nil {
			t.Fatal(err)
		}
	}
	ack := &metapb.AckEventsOp{Target: "mine"}
	err := a.meta.ReadGroup(t.Context(), cluster.FirstRange, func(r rangestate.Reader) error {
		ack.To, ack.Dead = 0, nil
		for i := range 6 {
			page, err := r.Events(&rangestate.EventQuery{Target: "mine", After: ack.To, Limit: 1})
			if err != nil || len(page.Items) != 1 {
				return fmt.Errorf("%d events: %w", len(page.Items), err)
			}
			if ack.To = page.Items[0].Seq; i%2 == 0 {
				ack.Dead = append(ack.Dead, &metapb.DeadEvent{Seq: ack.To, Error: "no"})
			}
		}
		st, err := r.EventState()
		for _, s := range st.Targets {
			if s.Name == "mine" {
				ack.From = s.Row.Cursor
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.meta.DoGroup(t.Context(), cluster.FirstRange, &metapb.RangeCommand{Op: &metapb.RangeCommand_AckEvents{AckEvents: ack}}); err != nil {
		t.Fatal(err)
	}
}

func eventCalls() map[string]func(r rangestate.Reader) (any, error) {
	type call = func(r rangestate.Reader) (any, error)
	m := map[string]call{
		"state": func(r rangestate.Reader) (any, error) { return r.EventState() },
		"counters on": func(r rangestate.Reader) (any, error) {
			out, next, err := r.EventCounters(&rangestate.EventCounter{Bucket: 1, Target: "default"}, 10)
			return []any{out, next}, err
		},
		"timers on": func(r rangestate.Reader) (any, error) {
			all, err := r.EventTimers(nil, 2)
			if err != nil || len(all) != 2 {
				return nil, fmt.Errorf("%d timers: %w", len(all), err)
			}
			return r.EventTimers(all[1].ID, 10)
		},
		"dead of nobody": func(r rangestate.Reader) (any, error) { return r.DeadEvents("nobody", 0, 10) },
	}
	for _, limit := range []int{1, 2, 1000} {
		m[fmt.Sprint("counters ", limit)] = func(r rangestate.Reader) (any, error) {
			out, next, err := r.EventCounters(nil, limit)
			return []any{out, next}, err
		}
		m[fmt.Sprint("dead ", limit)] = func(r rangestate.Reader) (any, error) { return r.DeadEvents("mine", 0, limit) }
		m[fmt.Sprint("timers ", limit)] = func(r rangestate.Reader) (any, error) { return r.EventTimers(nil, limit) }
	}
	for i, q := range []rangestate.EventQuery{
		{Limit: 1000}, {Limit: 7}, {Limit: 1000, Target: "mine"}, {Limit: 1000, Target: "default", LookMax: 5}, {Limit: 1000, Target: "nobody"},
		{Limit: 1000, Bucket: 2}, {Limit: 3, Bucket: 1, BytesMax: 1}, {After: 20, Limit: 1000}, {After: 1 << 40, Limit: 5}, {Limit: 5, Target: "nobody", LookMax: 3},
	} {
		m[fmt.Sprint("events ", i)] = func(r rangestate.Reader) (any, error) { return r.Events(&q) }
	}
	return m
}

// TestEventReaderIsTheView asks for everything about events at the leader and from a node without a replica.
func TestEventReaderIsTheView(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodes(t, 4, 3)
		defer c.close()
		lead, gateway := c.leaderOf(cluster.FirstRange), c.all[3]
		tell(t, gateway)
		for name, call := range eventCalls() {
			var want, got any
			err := lead.host.Read(t.Context(), cluster.FirstRange, func(r pebble.Reader) error {
				v, err := rangestate.NewView(r, cluster.FirstRange)
				if err == nil {
					want, err = call(v)
				}
				return err
			})
			if err != nil {
				t.Fatal(name, err)
			}
			err = gateway.meta.ReadGroup(t.Context(), cluster.FirstRange, func(r rangestate.Reader) (err error) {
				if _, ok := r.(*rangeReader); !ok {
					t.Fatal("the gateway reads here")
				}
				got, err = call(r)
				return err
			})
			if err != nil {
				t.Fatal(name, err)
			}
			if g, w := plain(t, got), plain(t, want); g != w {
				t.Errorf("%s: got\n%s\nwant\n%s", name, g, w)
			}
			if len(plain(t, want)) < 20 && name != "dead of nobody" {
				t.Errorf("%s: %s says little", name, plain(t, want))
			}
		}
	})
}

// TestEventPages: answers that would be too long come in pieces, and nothing is missing.
func TestEventPages(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newNodesWith(t, 4, 3, ServerConfig{AnswerBytesMax: 300})
		defer c.close()
		gateway := c.all[3]
		tell(t, gateway)
		err := gateway.meta.ReadGroup(t.Context(), cluster.FirstRange, func(r rangestate.Reader) error {
			n := 0
			for after := uint64(0); ; {
				page, err := r.Events(&rangestate.EventQuery{After: after, Limit: 1000})
				if err != nil {
					return err
				}
				if n += len(page.Items); len(page.Items) > 4 {
					t.Errorf("a page of %d events in 300 bytes", len(page.Items))
				}
				if after = page.Next; !page.More {
					break
				}
			}
			if n != 45 {
				t.Errorf("%d events", n)
			}
			dead, err := r.DeadEvents("mine", 0, 1000)
			if err != nil || len(dead) != 3 {
				t.Errorf("%d dead letters: %v", len(dead), err)
			}
			timers, err := r.EventTimers(nil, 1000)
			if err != nil || len(timers) != 5 {
				t.Errorf("%d timers: %v", len(timers), err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
