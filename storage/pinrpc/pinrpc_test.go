package pinrpc

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"cairn/cluster"
	"cairn/cluster/rpc"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/garbage"
	"cairn/storage/pins"
	"cairn/test/bubble"
)

var _ garbage.Pins = (*Pins)(nil)

// nodes are n1, n2, n3 with a registry each; Pins run on n1.
func nodes(t *testing.T) ([]*pins.Registry, *Pins, map[cluster.NodeID]error) {
	registries := make([]*pins.Registry, 3)
	conns := map[cluster.NodeID]grpc.ClientConnInterface{}
	ids := make([]cluster.NodeID, 3)
	for i := range registries {
		registries[i] = pins.New()
		ids[i] = cluster.NodeID(fmt.Sprint("n", i+1))
		lis := bufconn.Listen(1 << 16)
		s := grpc.NewServer(rpc.ServerOptions()...)
		Register(s, registries[i])
		served := make(chan struct{})
		go func() { defer close(served); _ = s.Serve(lis) }()
		conn, err := grpc.NewClient("passthrough:///x", append(rpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(); s.Stop(); <-served })
		conns[ids[i]] = conn
	}
	away := map[cluster.NodeID]error{}
	return registries, New(Config{
		Self: "n1", Registry: registries[0],
		Nodes: func(context.Context) ([]cluster.NodeID, error) { return ids, nil },
		Conn:  func(n cluster.NodeID) (grpc.ClientConnInterface, error) { return conns[n], away[n] },
	}), away
}

func TestQuiesceAsksAllGateways(t *testing.T) {
	registries, p, away := nodes(t)
	var held []*pins.Pin
	for i, r := range registries {
		pin := r.Begin()
		pin.Hold(storage.WriteID{byte(i + 1)}, storage.WriteID{byte(i + 101)})
		held = append(held, pin)
	}
	is, err := p.Quiesce(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []byte{1, 2, 3, 101, 102, 103} {
		if !is(storage.WriteID{w}) {
			t.Errorf("write %d is held and counts as free", w)
		}
	}
	if is(storage.WriteID{4}) {
		t.Error("a write that nobody reads counts as held")
	}
	for _, pin := range held {
		pin.Release()
	}
	if is, err = p.Quiesce(t.Context()); err != nil || is(storage.WriteID{2}) {
		t.Errorf("released: %v", err)
	}
	// A node that may be reading and cannot be asked: nothing may be removed.
	away["n3"] = errs.New(errs.Unavailable, "", "n3", "")
	if _, err = p.Quiesce(t.Context()); !errs.Is(err, errs.Unavailable) {
		t.Errorf("with a node away: %v", err)
	}
}

func TestQuiesceWaitsForRemoteReads(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		registries, p, _ := nodes(t)
		pin := registries[2].Begin()
		time.AfterFunc(3*time.Second, func() { pin.Hold(storage.WriteID{9}) })
		start := time.Now()
		is, err := p.Quiesce(t.Context())
		if err != nil || time.Since(start) != 3*time.Second || !is(storage.WriteID{9}) {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		never := registries[2].Begin() // names nothing
		start = time.Now()
		if _, err := p.Quiesce(t.Context()); !errs.Is(err, errs.Timeout) || time.Since(start) != 30*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		pin.Release()
		never.Release()
	})
}
