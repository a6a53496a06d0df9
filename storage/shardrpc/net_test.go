package shardrpc

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"cairn/cluster"
	"cairn/cluster/netsim"
	"cairn/cluster/rpc"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
)

// overNet is a node with a drive and a client in another zone, over the connections that nodes really use.
func overNet(t *testing.T, sim *netsim.Sim) (*rpc.Server, *Client, *storagetest.Drive) {
	d := storagetest.NewDrive(1)
	s, c := connected(t, sim, d)
	return s, c, d
}

func connected(t *testing.T, sim *netsim.Sim, d storage.ShardStore) (*rpc.Server, *Client) {
	network := netsim.NewNetwork(sim)
	storeID := func() string { return "store" }
	host := network.Host(netsim.Place{Node: "n2", Zone: "b"})
	lis, err := host.Listen("n2:9002")
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(rpc.ServerConfig{Self: "n2", StoreID: storeID})
	Register(s, NewServer(ServerConfig{Drives: func(storage.DriveID) storage.ShardStore { return d }, Draining: s.Draining()}))
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(lis) }()
	rc := rpc.NewClient(rpc.ClientConfig{Self: "n1", StoreID: storeID, Dial: network.Host(netsim.Place{Node: "n1", Zone: "a"}).Dial,
		Addresses: func(n cluster.NodeID) []string { return []string{string(n) + ":9002"} }})
	c := NewClient(Config{Conn: rc.ConnOf(rpc.Bulk), Reachable: rc.Reachable})
	t.Cleanup(func() {
		c.Close()
		rc.Close()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Stop(ctx)
		<-served
	})
	return s, c
}

// Over an open connection an append and a read are one round trip each, large ones too.
func TestOneRoundTrip(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		sim := netsim.New(1)
		defer sim.Close()
		if err := sim.Set(netsim.Rules{Rules: []netsim.Rule{{Latency: netsim.Duration(500 * time.Microsecond)}}}); err != nil {
			t.Fatal(err)
		}
		_, c, _ := overNet(t, sim)
		s := c.Store("n2", storage.DriveID{1})
		for i, size := range []int{1000, 300_000, 1000, 300_000, 512 << 10} {
			h, p := shard(uint64(i), size)
			start := time.Now()
			if err := s.Append(t.Context(), h, p, nil); err != nil {
				t.Fatal(err)
			}
			append := time.Since(start)
			start = time.Now()
			if err := s.ReadAt(t.Context(), h.ID, 0, p); err != nil {
				t.Fatal(err)
			}
			read := time.Since(start)
			if i >= 2 && (append != time.Millisecond || read != time.Millisecond) {
				t.Errorf("%d bytes: append took %v, read %v, a round trip is 1ms", size, append, read)
			}
		}
	})
}

// A node cut off is found, its drives are not offered any more, and they are again when it is back.
func TestCutOff(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		sim := netsim.New(1)
		defer sim.Close()
		_, c, d := overNet(t, sim)
		try := func(n uint64) error { return <-async(c.Store("n2", d.ID), n, 300_000) }
		if err := try(1); err != nil {
			t.Fatal(err)
		}
		if err := sim.Set(netsim.Rules{Rules: []netsim.Rule{{BlackHole: true}}}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := try(2); !errs.Is(err, errs.Unavailable) {
			t.Errorf("cut off: %v", err)
		}
		for c.Store("n2", d.ID) != nil && time.Since(start) < time.Minute {
			time.Sleep(50 * time.Millisecond)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("known after %v", took)
		}
		if err := sim.Set(netsim.Rules{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if c.Store("n2", d.ID) == nil {
			t.Fatal("still unreachable")
		}
		if err := try(3); err != nil {
			t.Errorf("healed: %v", err)
		}
	})
}

// A node that stops while others append to it does so at once and loses nothing that it took.
func TestStopUnderLoad(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		sim := netsim.New(1)
		defer sim.Close()
		s, c, d := overNet(t, sim)
		var answers []<-chan error
		for i := range 40 {
			answers = append(answers, async(c.Store("n2", d.ID), uint64(i), sizes[i%2]))
			if i == 30 {
				synctest.Wait()
			}
		}
		start := time.Now()
		s.Stop(t.Context())
		if took := time.Since(start); took > time.Second {
			t.Errorf("stopped after %v", took)
		}
		held := map[storage.ChunkID]bool{}
		for _, x := range d.Shards() {
			held[x.Header.ID.Chunk] = true
		}
		for i, a := range answers {
			if err := <-a; err == nil && !held[storage.NewChunkID(1000, uint64(i))] {
				t.Error(fmt.Sprint(i, " was acknowledged and is not there"))
			} else if err != nil && i <= 30 {
				t.Errorf("%d: %v", i, err)
			}
		}
	})
}

// A real drive keeps its contract over the connections that nodes really use.
func TestConformanceOfARealDrive(t *testing.T) {
	storagetest.ShardStore(t, func(t *testing.T) storage.ShardStore {
		fs := vfsx.NewMem()
		id := storage.DriveID{1}
		if err := drive.Format(fs, "/d", drive.Identity{StoreID: "s", DriveID: id}); err != nil {
			t.Fatal(err)
		}
		real, err := drive.Open(drive.Config{FS: fs, Dir: "/d", ExtentBytes: 8 << 20, MemTableBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = real.Close() })
		sim := netsim.New(1)
		t.Cleanup(sim.Close)
		_, c := connected(t, sim, real)
		return c.Store("n2", id)
	})
}
