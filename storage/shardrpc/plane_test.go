package shardrpc

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/chunkio"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
	"cairn/test/bubble"
)

// six is six nodes of a drive each in three zones, and the data path of the first.
type six struct {
	*storagetest.Cluster
	plane *chunkio.Plane
	nodes map[cluster.NodeID]*sixNode
	order []*sixNode
}

type sixNode struct {
	*pair
	drive           *storagetest.Drive
	swallow, damage atomic.Bool
	refused         atomic.Bool
	conns           []net.Conn
}

func newSix(t *testing.T) *six {
	s := &six{Cluster: storagetest.NewCluster(3, 2), nodes: map[cluster.NodeID]*sixNode{}}
	top := s.Topology()
	ids := map[storage.DriveID]cluster.NodeID{}
	for i := range byte(6) {
		n := &sixNode{drive: s.Drive(i + 1)}
		id := cluster.NodeID(rune('1' + i))
		n.pair = newPair(t, ServerConfig{}, Config{}, map[storage.DriveID]storage.ShardStore{n.drive.ID: n.drive})
		dial := n.dial
		n.dial = func(ctx context.Context) (net.Conn, error) {
			if n.refused.Load() {
				return nil, errs.New(errs.Unavailable, "", "", "")
			}
			c, err := dial(ctx)
			if err == nil {
				c = &wire{c, &n.swallow, &n.damage}
				n.conns = append(n.conns, c)
			}
			return c, err
		}
		s.nodes[id], s.order, ids[n.drive.ID] = n, append(s.order, n), id
	}
	for _, small := range []bool{false, true} {
		plan, err := placement.PlanFor(storage.Standard, top.SortedDrives(), small)
		if err != nil {
			t.Fatal(err)
		}
		for _, pg := range placement.BuildPGs(plan, top.SortedDrives(), 12) {
			s.Update(func(top *cluster.Topology) { pg.ID = storage.PGID(len(top.PGs) + 1); top.PGs[pg.ID] = pg })
		}
	}
	client := NewClient(Config{Conn: func(n cluster.NodeID) (grpc.ClientConnInterface, error) { return s.nodes[n].conn, nil }})
	t.Cleanup(client.Close)
	zone := top.Drives[s.order[0].drive.ID].Zone
	s.plane = chunkio.New(chunkio.Config{
		Topology: s.Topology,
		Store: func(d storage.DriveID) storage.ShardStore {
			if d == s.order[0].drive.ID {
				return s.order[0].drive
			}
			return client.Store(ids[d], d)
		},
		Distance: func(d storage.DriveID) int {
			switch {
			case d == s.order[0].drive.ID:
				return 0
			case top.Drives[d].Zone == zone:
				return 1
			}
			return 2
		},
	})
	return s
}

func (s *six) write(ctx context.Context, data []byte, body io.Reader) ([]*metapb.ChunkRef, error) {
	return s.plane.Write(ctx, chunkio.WriteRequest{Owner: storage.Owner{Bucket: 1, Key: "k", Write: storage.WriteID{1}}, Class: storage.Standard,
		Size: int64(len(data)), Body: body, BirthMS: func() int64 { return 1000 }})
}

func (s *six) mustHold(t *testing.T, refs []*metapb.ChunkRef, data []byte) {
	t.Helper()
	var got bytes.Buffer
	if err := s.plane.Read(t.Context(), &got, storage.Owner{Bucket: 1, Key: "k", Write: storage.WriteID{1}}, refs, 0, int64(len(data))); err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Fatalf("%v, %d of %d bytes", err, got.Len(), len(data))
	}
}

// at runs f before it answers the byte at off.
type at struct {
	io.Reader
	off int
	f   func()
}

func (a *at) Read(p []byte) (int, error) {
	if a.off -= len(p); a.off < 0 && a.f != nil {
		a.f()
		a.f = nil
	}
	return a.Reader.Read(p)
}

// A node that dies or falls silent in the middle of a PUT does not fail it, and what was written can be read.
func TestNodeDiesDuringPut(t *testing.T) {
	for name, kill := range map[string]func(*sixNode){
		"dies":   func(n *sixNode) { n.refused.Store(true); n.conns[0].Close() },
		"silent": func(n *sixNode) { n.swallow.Store(true) },
		"stops":  func(n *sixNode) { n.server.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				s := newSix(t)
				data := make([]byte, 12<<20+77)
				_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
				refs, err := s.write(t.Context(), data, bytes.NewReader(data))
				if err != nil {
					t.Fatal(err)
				}
				s.mustHold(t, refs, data)
				start := time.Now()
				refs, err = s.write(t.Context(), data, &at{bytes.NewReader(data), 5 << 20, func() { kill(s.order[4]) }})
				if err != nil {
					t.Fatal(err)
				}
				if took := time.Since(start); took > time.Second {
					t.Errorf("the write took %v", took)
				}
				start = time.Now()
				s.mustHold(t, refs, data)
				if took := time.Since(start); took > time.Second {
					t.Errorf("the read took %v", took)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := s.plane.BytesInUse(); n != 0 {
					t.Errorf("%d bytes are never given back", n)
				}
			})
		})
	}
}

// A node that swallows everything costs little after the first hits, though nothing tells that it is gone.
func TestSilentNodeCostsLittle(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := newSix(t)
		data := make([]byte, 1<<20)
		small := make([]byte, 4<<10)
		var refs, smalls [][]*metapb.ChunkRef
		for range 24 {
			r, err := s.write(t.Context(), data, bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			q, err := s.write(t.Context(), small, bytes.NewReader(small))
			if err != nil {
				t.Fatal(err)
			}
			refs, smalls = append(refs, r), append(smalls, q)
		}
		s.order[4].swallow.Store(true)
		var stalled, longest time.Duration
		for i := range 200 { // twenty seconds
			start := time.Now()
			s.mustHold(t, refs[i%24], data)
			s.mustHold(t, smalls[i%24], small)
			for _, body := range [][]byte{data, small} {
				if _, err := s.write(t.Context(), body, bytes.NewReader(body)); err != nil {
					t.Fatal(err)
				}
			}
			took := time.Since(start)
			stalled += took
			longest = max(longest, took)
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("stalled %v, %v at once", stalled, longest)
		if stalled > 5*time.Second || longest > time.Second {
			t.Errorf("stalled %v, %v at once", stalled, longest)
		}
	})
}
