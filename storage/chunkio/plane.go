// Package chunkio is the data path: it cuts bodies into chunks and stripes, codes
// them and makes their shards durable on the drives of a placement group, and it
// reads them back, verified, with what drives there are.
//
// # Writing
//
// A Write reads the body straight into pooled stripe buffers, where coding adds
// the parity behind the data, and hands slices of them to the drives. At most
// windowStripes stripes of a write are under way. A stripe is settled when its
// durable shards satisfy the quorum rule (package placement) and the rest has
// answered or had QuorumGrace to do so. What is not durable then is named in
// ChunkRef.missing. If drives fail so that a stripe cannot reach its quorum, the
// chunk ends before it and the rest goes on in a new chunk in another group.
//
// # Reading
//
// A Read asks for just the columns of the data shards that hold the bytes wanted: of the first stripe at once, then a
// shard after the other, or all of a stripe if some of them must be computed.
// Shards that are lost, late or bad are replaced from parity, of which only the
// same columns are read. Nothing is passed on that was not verified.
//
// # Slow drives
//
// A drive that hangs holds the buffers of the appends it was given. What it holds
// past the end of their writes is its lag. A drive with lag is avoided, gets no
// grace, and beyond lagMax gets nothing more, so it can take only its share of
// the memory. Likewise a drive with reads that are overdue is not asked first.
package chunkio

import (
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/erasure"
)

// Limits of one operation.
const (
	windowStripes = 3  // stripes of a write that hold buffers
	aheadStripes  = 2  // stripes that a read starts before they are wanted, where it reads whole stripes
	movesMax      = 4  // how often in a row a write gives up a placement group
	reportsMax    = 16 // calls of OnBadShard at a time; more bad shards are not reported
	quorumPoll    = 50 * time.Millisecond
	shunFor       = 1 * time.Second // how long a drive that failed is not chosen if there are others; doubled each time
	shunMax       = 8 * time.Second // it fails again without an answer in between, up to this
)

// Config of a Plane. Store and Topology are required; zero values of the others have defaults.
type Config struct {
	// Store is the way to a drive, nil if there is none. Called often: it must be quick.
	Store func(storage.DriveID) storage.ShardStore
	// Topology is the newest snapshot, never nil. Called often: it must be quick.
	Topology func() *cluster.Topology
	// Local reports whether a drive is in this process: it is read first. nil: all alike. Distance goes before it.
	Local func(storage.DriveID) bool
	// Distance says how far away a drive is: 0 in this process, 1 in another of this
	// zone, 2 in another zone. The nearest of those that will do is read. Called often: it must be quick.
	Distance func(storage.DriveID) int

	BufferBytesMax int64         // of all writes and reads, half for each; 0 is 256 MiB
	BufferWait     time.Duration // for buffers, then Busy; 0 is 5 s
	HedgeAfter     time.Duration // a read waits so long for a shard before it asks others; 0 is 300 ms
	ShardTimeout   time.Duration // a shard that takes longer counts as failed; 0 is 5 s
	QuorumGrace    time.Duration // a write waits so long for late shards; 0 is 200 ms
	QuorumWait     time.Duration // a write waits so long for a placement group that has a quorum; 0 is 3 s

	// OnBadShard is told of shards that are corrupt or missing without reason,
	// in a goroutine of its own. It may block; while reportsMax calls are running,
	// others are dropped: the next read or scrub finds the shard again.
	OnBadShard func(BadShard)
	Rand       func() uint64 // for ids and choice of groups; nil is math/rand/v2
	Logger     *slog.Logger  // nil: silent
}

// BadShard is a shard that a read found bad.
type BadShard struct {
	Owner  storage.Owner
	Ref    *metapb.ChunkRef
	Stripe int
	Index  int
	Drive  storage.DriveID
	Err    error // Corrupt or NotFound
}

// Plane is the data path of one process. All methods are safe for concurrent use.
// It has no goroutines of its own when nothing is under way.
type Plane struct {
	cfg       Config
	codecs    erasure.Codecs
	buffers   *buffers
	lagMax    int64
	latest    atomic.Pointer[view]
	drives    sync.Map // storage.DriveID -> *drive
	reporting chan struct{}
}

// New makes a Plane.
func New(cfg Config) *Plane {
	setDefault(&cfg.BufferBytesMax, 256<<20)
	setDefault(&cfg.BufferWait, 5*time.Second)
	setDefault(&cfg.HedgeAfter, 300*time.Millisecond)
	setDefault(&cfg.ShardTimeout, 5*time.Second)
	setDefault(&cfg.QuorumGrace, 200*time.Millisecond)
	setDefault(&cfg.QuorumWait, 3*time.Second)
	if cfg.Distance == nil {
		cfg.Distance = func(d storage.DriveID) int {
			if cfg.Local == nil || cfg.Local(d) {
				return 0
			}
			return 1
		}
	}
	if cfg.Rand == nil {
		cfg.Rand = rand.Uint64
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Plane{
		cfg:       cfg,
		buffers:   newBuffers(cfg.BufferBytesMax, cfg.BufferWait),
		lagMax:    max(cfg.BufferBytesMax/16, 2*storage.StripeBytes),
		reporting: make(chan struct{}, reportsMax),
	}
}

func setDefault[T int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// BytesInUse is the buffer memory that writes and reads hold now, including what hung drives hold.
func (p *Plane) BytesInUse() int64 { return p.buffers.inUse() }

// Trim gives memory back to the runtime that no write or read needed since the last
// call. Call it every half minute or so.
func (p *Plane) Trim() { p.buffers.trim() }

// report tells of a bad shard without waiting for the listener.
func (p *Plane) report(b BadShard) {
	p.cfg.Logger.Warn("bad shard", "chunk", storage.ChunkID(b.Ref.Id).String(), "pg", b.Ref.Pg, "stripe", b.Stripe, "shard", b.Index, "drive", b.Drive.Short(), "err", b.Err)
	if p.cfg.OnBadShard == nil {
		return
	}
	select {
	case p.reporting <- struct{}{}:
		go func() {
			defer func() { <-p.reporting }()
			p.cfg.OnBadShard(b)
		}()
	default:
	}
}

// WriteRequest is a body to make durable.
type WriteRequest struct {
	Owner storage.Owner
	Class storage.StorageClass
	Size  int64 // exact
	// Body must answer io.EOF after Size bytes; any other error fails the write with it.
	Body    io.Reader
	BirthMS func() int64 // range time as far as known, unix ms: the birth of chunks
	// Tee, if not nil, sees every byte in order, once. The slice is valid during the call and must not be changed.
	Tee func([]byte)
}
