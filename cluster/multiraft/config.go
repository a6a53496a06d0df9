package multiraft

import (
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
)

// StateMachine is what a group's committed commands do to the rows in a state store. One
// instance serves one replica. It is deterministic: neither clock nor randomness nor goroutines.
type StateMachine interface {
	// Apply applies entries in order into b, an indexed batch that reads through to the
	// state, and returns one result for each. Entries' data and b are not retained.
	// An error means that the state is corrupt: nothing of b is kept and the replica stops.
	// Calls are not concurrent with each other or with Reset.
	Apply(b *pebble.Batch, entries []cluster.Entry) ([][]byte, error)

	// Spans are the raw key spans that hold this group's rows as r sees them; empty if it has none
	// yet. May be called concurrently with Apply.
	Spans(r pebble.Reader) ([]cluster.KeySpan, error)

	// Reset tells that the state was replaced underneath: drop what was kept in memory.
	Reset()
}

// Grower is a StateMachine that tells how a command grows its state. May be called concurrently with everything. Commands of a
// state machine that does not tell are taken as long as the drives last.
type Grower interface {
	Growth(command []byte) cluster.Growth
}

// Drive is a drive that replicas can live on.
type Drive struct {
	ID   storage.DriveID
	Zone cluster.Zone
	FS   vfs.FS
	Dir  string // of the drive: Dir/raftlog and Dir/state are used
	// Check says whether the drive is still the one that was opened; it must be
	// cheap. It runs after every synced commit and before the log is truncated. Nil is none.
	Check func() error
	// Space is how many bytes are free on the drive and how many of them are its reserve; see Grower. It is asked every second. Nil
	// is no reserve.
	Space func() (free, reserve int64, err error)
	// Fail is told, once, that the drive failed under the metadata: DriveFailed, or Corrupt if only one of
	// the two stores is damaged: then DropDrive and AddDrive go on without it. Nil is none.
	Fail func(error)
}

// Config configures a Host; the zero value of a field is its default.
type Config struct {
	Node            cluster.NodeID
	Now             func() time.Time                   // stamps commands; default time.Now
	Logger          *slog.Logger                       // default: discard
	NewStateMachine func(cluster.GroupID) StateMachine // required
	TableBounds     [][]byte                           // raw keys at which state stores end their tables, rising; default: none
	Cache           *pebble.Cache                      // shared block cache; default: one of 32 MiB
	Remote          Transport                          // to replicas on other nodes; nil: all are here

	// HeartbeatTimeout is how long a follower hears nothing before it stands for
	// election (at random up to twice that more); a leader sends about 7 heartbeats in it. It must be the same in all processes.
	// Default: without a Remote 4 s, since what can be noticed inside the process (a drive failed, hangs or was
	// taken out, a start) does not wait for it; with one 600 ms, so that a new leader serves within 2 s.
	HeartbeatTimeout time.Duration
	ElectionTimeout  time.Duration // of one attempt, likewise; default HeartbeatTimeout
	LeaderLease      time.Duration // a leader without a quorum for this long steps down; default HeartbeatTimeout
	// CommitTimeout bounds how late an idle follower learns of the last commit; with a Remote it learns with a heartbeat and this
	// is only what raft says anyway. Default 1 s, with a Remote 3 s.
	CommitTimeout time.Duration
	// StallTimeout is how long a leader's log may take over one append before another voter is made to lead. Default 1 s.
	StallTimeout time.Duration
	// VoteHold is how long a replica grants no vote after its start, so that a leader's lease elsewhere cannot be
	// outlived. It does not apply where no such lease can be: without a Remote, and to newborn groups. Default
	// ElectionTimeout; it never delays an election noticeably, since nobody stands before HeartbeatTimeout has passed.
	VoteHold time.Duration

	// ReadLease is how long after a quorum of voters was heard a leader may answer reads without asking them (see
	// lease.go); it must be below HeartbeatTimeout, ElectionTimeout and VoteHold of every process. Default 3/4 of
	// HeartbeatTimeout; negative: no leases. Only used with a Remote.
	ReadLease time.Duration
	// ClockOffsetMax is by how much this node's wall clock may differ from most others' (NoteClock). Default 5 s.
	ClockOffsetMax time.Duration

	AppendEntriesMax int    // entries in one message and one applied batch; default 128, at most 1024
	AppendBytesMax   int    // bytes of the entries in one message, if it has more than one; default 4 MiB
	CommandBytesMax  int    // of one command; default 4 MiB
	ProposalsMax     int    // commands in flight per group; default 2048
	ProposalBytesMax int64  // their bytes; default 32 MiB
	ProposalBytesAll int64  // likewise of all groups here together; default 256 MiB
	SnapshotEntries  uint64 // entries applied between two markers: what a restart replays at most, about; default 16384
	SnapshotBytes    int64  // likewise bytes of commands; default 16 MiB
	// TrailingLogs is how many entries before the marker are kept for followers
	// that lag. At least ProposalsMax (see install.go); default 8192.
	TrailingLogs uint64

	LogMemTableBytes   uint64 // default 8 MiB per drive
	StateMemTableBytes uint64 // default 8 MiB per drive
	CompactionsMax     int    // concurrent compactions of all drives; default 2
}

func (c *Config) setDefaults() error {
	if c.NewStateMachine == nil {
		return errs.New(errs.InvalidArgument, "multiraft.new", "", "NewStateMachine is missing")
	}
	def(&c.Logger, slog.New(slog.DiscardHandler))
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Remote != nil {
		def(&c.HeartbeatTimeout, 600*time.Millisecond)
	}
	def(&c.HeartbeatTimeout, 4*time.Second)
	def(&c.ElectionTimeout, c.HeartbeatTimeout)
	def(&c.LeaderLease, c.HeartbeatTimeout)
	if c.Remote != nil {
		def(&c.CommitTimeout, 3*time.Second)
	}
	def(&c.CommitTimeout, time.Second)
	def(&c.VoteHold, c.ElectionTimeout)
	def(&c.StallTimeout, time.Second)
	def(&c.ReadLease, c.HeartbeatTimeout*3/4)
	def(&c.ClockOffsetMax, 5*time.Second)
	def(&c.AppendEntriesMax, 128)
	def(&c.AppendBytesMax, 4<<20)
	def(&c.CommandBytesMax, 4<<20)
	def(&c.ProposalsMax, 2048)
	def(&c.ProposalBytesMax, 32<<20)
	def(&c.ProposalBytesAll, 256<<20)
	def(&c.SnapshotEntries, 16384)
	def(&c.SnapshotBytes, 16<<20)
	def(&c.TrailingLogs, max(8192, uint64(c.ProposalsMax)))
	def(&c.LogMemTableBytes, 8<<20)
	def(&c.StateMemTableBytes, 8<<20)
	def(&c.CompactionsMax, 2)
	if c.TrailingLogs < uint64(c.ProposalsMax) {
		return errs.Newf(errs.InvalidArgument, "multiraft.new", "", "TrailingLogs %d is below ProposalsMax %d", c.TrailingLogs, c.ProposalsMax)
	}
	if least := min(c.HeartbeatTimeout, c.ElectionTimeout, c.VoteHold); c.Remote != nil && c.ReadLease >= least {
		return errs.Newf(errs.InvalidArgument, "multiraft.new", "", "ReadLease %v is not below HeartbeatTimeout, ElectionTimeout and VoteHold (%v)", c.ReadLease, least)
	}
	return nil
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
