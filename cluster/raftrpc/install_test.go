package raftrpc

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/netsim"
	"cairn/cluster/rpc"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
	"cairn/test/bubble"
)

// host is the receiving end of a test.
type host struct {
	multiraft.Transport
	install func(ctx context.Context, req *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error)
}

func (h host) InstallSnapshot(ctx context.Context, _ multiraft.Envelope, req *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error) {
	return h.install(ctx, req, data)
}

// installs calls fn with a sender of snapshots and a client to the same receiver.
func installs(t *testing.T, h host, fn func(t *testing.T, send func(data io.Reader) error, c nodepb.RaftClient, sim *netsim.Sim)) {
	bubble.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, func(_ int, _ *multiraft.Config, r *Config) { r.StallTimeout = 10 * time.Second })
		to := &node{id: nodeID(1)}
		w.where["r0"], w.where["r1"] = nodeID(0), nodeID(1)
		to.serve(t, w, h)
		cc, err := w.nodes[0].peers.Conn(to.id, rpc.Raft)
		if err != nil {
			t.Fatal(err)
		}
		fn(t, func(data io.Reader) error {
			e := multiraft.Envelope{Group: 7, From: "r0", To: "r1"}
			req := &raft.InstallSnapshotRequest{Term: 3, LastLogIndex: 5, LastLogTerm: 2, Configuration: []byte("conf"), ConfigurationIndex: 4, SnapshotVersion: 1}
			a, err := w.nodes[0].t.InstallSnapshot(t.Context(), e, req, data)
			if err == nil && (!a.Success || a.Term != 3) {
				err = errors.New("refused")
			}
			return err
		}, nodepb.NewRaftClient(cc), w.sim)
		w.close()
		to.t.Close()
		to.stop()
	})
}

// serve makes a node that only receives.
func (n *node) serve(t *testing.T, w *world, h host) {
	t.Helper()
	var err error
	n.t, err = New(Config{
		Self: n.id, StallTimeout: 10 * time.Second, InstallsMax: 1,
		Conn:    func(cluster.NodeID) (grpc.ClientConnInterface, error) { return nil, errors.New("nowhere") },
		Resolve: func(cluster.GroupID, cluster.ReplicaID) (cluster.NodeID, bool) { return "", false },
	})
	if err != nil {
		t.Fatal(err)
	}
	n.net = w.net.Host(netsim.Place{Node: n.id})
	l, err := n.net.Listen(addr(n.id))
	if err != nil {
		t.Fatal(err)
	}
	n.srv, n.peers = newServer(n.id), w.client(n)
	n.t.Register(n.srv, h)
	go n.srv.Serve(l)
}

// endless is a snapshot without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// What is sent arrives, whole and with all that raft wants to know.
func TestInstallArrives(t *testing.T) {
	for _, size := range []int{0, 1, installChunk - 1, installChunk, installChunk + 1, 5<<20 + 7} {
		data := bytes.Repeat([]byte("snap"), size/4+1)[:size]
		h := host{install: func(_ context.Context, req *raft.InstallSnapshotRequest, r io.Reader) (*raft.InstallSnapshotResponse, error) {
			got, err := io.ReadAll(r)
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("something else came")
			}
			ok := req.LastLogIndex == 5 && req.LastLogTerm == 2 && string(req.Configuration) == "conf" && req.ConfigurationIndex == 4 && string(req.Addr) == "r0"
			return &raft.InstallSnapshotResponse{Term: req.Term, Success: ok}, err
		}}
		installs(t, h, func(t *testing.T, send func(io.Reader) error, _ nodepb.RaftClient, _ *netsim.Sim) {
			if err := send(bytes.NewReader(data)); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		})
	}
}

// A receiver that has it all already, refuses, takes long, or stops reading.
func TestInstallAnswers(t *testing.T) {
	yes := &raft.InstallSnapshotResponse{Term: 3, Success: true}
	cases := map[string]struct {
		install func(ctx context.Context, _ *raft.InstallSnapshotRequest, r io.Reader) (*raft.InstallSnapshotResponse, error)
		data    io.Reader
		ok      bool
	}{
		"has it": {func(context.Context, *raft.InstallSnapshotRequest, io.Reader) (*raft.InstallSnapshotResponse, error) {
			return yes, nil
		}, endless{}, true},
		"refuses": {func(_ context.Context, _ *raft.InstallSnapshotRequest, r io.Reader) (*raft.InstallSnapshotResponse, error) {
			_, _ = io.CopyN(io.Discard, r, 1<<20)
			return nil, errs.New(errs.Busy, "test", "", "another one")
		}, endless{}, false},
		"takes long at the end": {func(_ context.Context, _ *raft.InstallSnapshotRequest, r io.Reader) (*raft.InstallSnapshotResponse, error) {
			_, _ = io.Copy(io.Discard, r)
			time.Sleep(5 * time.Minute)
			return yes, nil
		}, bytes.NewReader(make([]byte, 1<<20)), true},
		"the sender cannot read it": {func(_ context.Context, _ *raft.InstallSnapshotRequest, r io.Reader) (*raft.InstallSnapshotResponse, error) {
			_, err := io.Copy(io.Discard, r)
			return yes, err
		}, io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), broken{}), false},
	}
	for name, c := range cases {
		installs(t, host{install: c.install}, func(t *testing.T, send func(io.Reader) error, _ nodepb.RaftClient, _ *netsim.Sim) {
			if err := send(c.data); (err == nil) != c.ok {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("broken") }

// A network that falls silent in the middle ends a snapshot on both sides, and its place is free for the next.
func TestInstallStalls(t *testing.T) {
	var ended chan error
	h := host{install: func(_ context.Context, req *raft.InstallSnapshotRequest, r io.Reader) (*raft.InstallSnapshotResponse, error) {
		_, err := io.Copy(io.Discard, r)
		ended <- err
		return &raft.InstallSnapshotResponse{Term: req.Term, Success: true}, err
	}}
	installs(t, h, func(t *testing.T, send func(io.Reader) error, _ nodepb.RaftClient, sim *netsim.Sim) {
		ended = make(chan error, 2) // of the bubble
		slow := readerFunc(func(p []byte) (int, error) {
			time.Sleep(100 * time.Millisecond)
			return len(p), nil
		})
		go func() {
			time.Sleep(3 * time.Second)
			_ = sim.Set(netsim.Rules{Rules: []netsim.Rule{{BlackHole: true}}})
		}()
		began := time.Now()
		if err := send(slow); err == nil {
			t.Error("it went through a hole")
		}
		if err := <-ended; err == nil {
			t.Error("the receiver thinks that it has it all")
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("it took %v to notice", took)
		}
		_ = sim.Set(netsim.Rules{})
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
			if err := send(bytes.NewReader([]byte("small"))); err == nil {
				break
			} else if time.Now().After(end) {
				t.Fatal(err)
			}
		}
	})
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A chunk that is damaged, missing or twice is noticed.
func TestInstallChunks(t *testing.T) {
	h := host{install: func(_ context.Context, req *raft.InstallSnapshotRequest, r io.Reader) (*raft.InstallSnapshotResponse, error) {
		_, err := io.Copy(io.Discard, r)
		return &raft.InstallSnapshotResponse{Term: req.Term, Success: true}, err
	}}
	chunk := func(s string, offset uint64) *nodepb.RaftInstall {
		return &nodepb.RaftInstall{Data: []byte(s), Crc32C: crc32.Checksum([]byte(s), crc32.MakeTable(crc32.Castagnoli)), Offset: offset}
	}
	bad := chunk("two", 3)
	bad.Data[0]++
	end := chunk("", 6)
	end.Last = true
	head := fromInstall(multiraft.Envelope{Group: 7, From: "r0", To: "r1"}, &raft.InstallSnapshotRequest{Term: 3})
	for name, msgs := range map[string][]*nodepb.RaftInstall{
		"good":    {head, chunk("one", 0), chunk("two", 3), end},
		"damaged": {head, chunk("one", 0), bad, end},
		"missing": {head, chunk("two", 3), end},
		"twice":   {head, chunk("one", 0), chunk("one", 0), end},
		"cut off": {head, chunk("one", 0)},
		"no head": {chunk("one", 0), end},
	} {
		installs(t, h, func(t *testing.T, _ func(io.Reader) error, c nodepb.RaftClient, _ *netsim.Sim) {
			s, err := c.Install(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range msgs {
				_ = s.Send(m)
			}
			_ = s.CloseSend()
			var last *nodepb.RaftInstallReply
			for {
				m, rerr := s.Recv()
				if rerr != nil {
					err = rerr
					break
				}
				last = m
			}
			if ok := errors.Is(err, io.EOF) && last.GetAnswer() != nil; ok != (name == "good") {
				t.Errorf("%s: %v, %v", name, last, err)
			}
		})
	}
}
