package raftrpc

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/storage/errs"
)

// Config of a Transport. Self, Conn and Resolve are required.
type Config struct {
	Self cluster.NodeID
	// Conn is the connection for Raft to a node; it never blocks.
	Conn func(node cluster.NodeID) (grpc.ClientConnInterface, error)
	// Resolve tells on which node a replica is, if that is known.
	Resolve func(cluster.GroupID, cluster.ReplicaID) (cluster.NodeID, bool)
	// Caller tells which node a call that came in is of; an error refuses it. Nil trusts everyone: for tests.
	Caller func(ctx context.Context) (cluster.NodeID, error)
	// Clock is told how far another node's wall clock is ahead of this one's (multiraft's Host.NoteClock). Nil: nobody asks.
	Clock func(node cluster.NodeID, offset time.Duration)
	// Space is how much the drive of a replica of this node has left, and NoteSpace is told that of replicas elsewhere (multiraft's
	// Host.SpaceOf and NoteSpace). Nil: nothing is said, nobody asks.
	Space     func(cluster.ReplicaID) multiraft.Space
	NoteSpace func(cluster.ReplicaID, multiraft.Space)
	Now       func() time.Time // the wall clock; default time.Now
	Logger    *slog.Logger     // default: discard

	// BeatWindow is the tick that heartbeats wait for. A quarter of raft's HeartbeatTimeout is best: raft pauses for up to a fifth of
	// it between two, so that there is one in each tick, and all groups' go together. Default 150 ms.
	BeatWindow time.Duration
	// BeatTimeout is how long a heartbeat waits for its answer. Default 1 s.
	BeatTimeout time.Duration
	// AppendTimeout is how long an append may take at the peer before it is sent again. Default 10 s.
	AppendTimeout time.Duration
	// StallTimeout is how long a snapshot may make no progress. Default 30 s.
	StallTimeout time.Duration
	// RetryMax is the longest pause before an append is sent again. Default 1 s.
	RetryMax time.Duration
	// InstallsMax is how many snapshots are received at a time. Default 2.
	InstallsMax int
	// AppendBytesMax bounds the bytes of the appends of one peer that are under way here. Default 32 MiB.
	AppendBytesMax int64
}

func (c *Config) setDefaults() error {
	if c.Self == "" || c.Conn == nil || c.Resolve == nil {
		return errs.New(errs.InvalidArgument, "raftrpc.new", "", "Self, Conn or Resolve is missing")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Clock == nil {
		c.Clock = func(cluster.NodeID, time.Duration) {}
	}
	if c.Space == nil {
		c.Space = func(cluster.ReplicaID) multiraft.Space { return multiraft.SpaceEnough }
	}
	if c.NoteSpace == nil {
		c.NoteSpace = func(cluster.ReplicaID, multiraft.Space) {}
	}
	def(&c.Logger, slog.New(slog.DiscardHandler))
	def(&c.BeatWindow, 150*time.Millisecond)
	def(&c.BeatTimeout, time.Second)
	def(&c.AppendTimeout, 10*time.Second)
	def(&c.StallTimeout, 30*time.Second)
	def(&c.RetryMax, time.Second)
	def(&c.InstallsMax, 2)
	def(&c.AppendBytesMax, 32<<20)
	return nil
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
