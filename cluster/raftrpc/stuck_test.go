package raftrpc

import (
	"bytes"
	"context"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/test/bubble"
)

// What hangs at a peer, a drive of several, holds up its own groups and no others, whose appends come by the same stream.
func TestStuckGroupHoldsUpNoOther(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, func(_ int, _ *multiraft.Config, r *Config) { r.AppendBytesMax = 64 << 10 })
		const bad, good = 1, 2
		w.birth(bad, 0, 1)
		w.birth(good, 0, 1)
		if a, b := w.leader(bad), w.leader(good); a != 0 || b != 0 {
			t.Fatal("they are not led where they were born", a, b)
		}
		time.Sleep(10 * time.Second)
		p, err := w.nodes[0].t.peer("test", multiraft.Envelope{Group: bad, To: w.replicaOn(bad, 1).ID})
		if err != nil {
			t.Fatal(err)
		}
		stream := func() any {
			f, err := p.appends.get()
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		before := stream()
		free := make(chan struct{})
		w.nodes[1].stuck.Store(cluster.GroupID(bad), free)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			_, _ = w.nodes[0].host.Propose(ctx, bad, append([]byte("k "), bytes.Repeat([]byte("x"), 63<<10)...))
		}()
		time.Sleep(10 * time.Millisecond)
		for range 30 { // until the sender has given up the stuck one, and on
			began := time.Now()
			w.put(good, "k", "v")
			if took := time.Since(began); took > 1500*time.Millisecond {
				t.Errorf("another group's write took %v", took)
			}
			time.Sleep(500 * time.Millisecond)
		}
		if stream() != before {
			t.Error("the stream was given up")
		}
		w.nodes[1].stuck.Clear()
		close(free)
		w.put(bad, "k", "v")
		w.close()
	})
}
