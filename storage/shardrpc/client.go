package shardrpc

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Config of a Client. Conn is required; zeros have the defaults named.
type Config struct {
	// Conn is the connection to a node for bulk data. It never blocks; it, or the calls of
	// what it answers, fail at once while the node is known to be unreachable.
	Conn func(cluster.NodeID) (grpc.ClientConnInterface, error)
	// Reachable is false while the last that is known of a node is a failure; nil: Conn
	// tells. Its answer is used for reachableFor.
	Reachable func(cluster.NodeID) bool

	AppendTimeout time.Duration // of one append once it is its turn; 0 is 5 s
	AppendGrace   time.Duration // after which a node that still did not answer is taken for dead; 0 is 1 s
	ReadTimeout   time.Duration // of one read with its wait, if ctx gives no less; 0 is 5 s
	CallTimeout   time.Duration // of any other call, for List of each page; 0 is 10 s
	StreamIdle    time.Duration // an unused stream ends after it; 0 is 1 min

	NodeBytesMax  int64 // under way to one node, appends and reads each; 0 is 64 MiB. Calls: four times those of a drive
	DriveBytesMax int64 // of that to one drive; 0 is 16 MiB
	DriveCallsMax int   // under way to one drive, appends and reads each; 0 is 256
}

// reachableFor is how long an answer of Config.Reachable is good: the data path asks for each shard.
const reachableFor = 20 * time.Millisecond

// Client reaches the drives of other nodes. All methods are safe for concurrent use.
type Client struct {
	cfg    Config
	began  time.Time
	stores sync.Map // storeKey -> *store
	mu     struct {
		sync.Mutex
		peers  map[cluster.NodeID]*peer
		closed bool
	}
	running sync.WaitGroup // goroutines of lanes
}

// NewClient makes a Client without any goroutine.
func NewClient(cfg Config) *Client {
	setDefault(&cfg.AppendTimeout, 5*time.Second)
	setDefault(&cfg.AppendGrace, time.Second)
	setDefault(&cfg.ReadTimeout, 5*time.Second)
	setDefault(&cfg.CallTimeout, 10*time.Second)
	setDefault(&cfg.StreamIdle, time.Minute)
	setDefault(&cfg.NodeBytesMax, 64<<20)
	setDefault(&cfg.DriveBytesMax, 16<<20)
	setDefault(&cfg.DriveCallsMax, 256)
	c := &Client{cfg: cfg, began: time.Now()}
	c.mu.peers = map[cluster.NodeID]*peer{}
	return c
}

// peer is another node.
type peer struct {
	client         *Client
	node           cluster.NodeID
	appends, reads gate
	small, large   lane
	asked          atomic.Int64 // when Reachable was, ns since client.began; 0: never
	away           atomic.Bool  // what it said
}

// reachable reports whether the node may be.
func (p *peer) reachable() bool {
	cfg := &p.client.cfg
	if cfg.Reachable == nil {
		_, err := cfg.Conn(p.node)
		return err == nil
	}
	now, asked := int64(time.Since(p.client.began))+1, p.asked.Load()
	if (asked == 0 || now-asked > int64(reachableFor)) && p.asked.CompareAndSwap(asked, now) {
		p.away.Store(!cfg.Reachable(p.node))
	}
	return !p.away.Load()
}

func (c *Client) peer(n cluster.NodeID) *peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.mu.peers[n]
	if p == nil {
		p = &peer{client: c, node: n}
		p.appends = gate{callsMax: 4 * c.cfg.DriveCallsMax, bytesMax: c.cfg.NodeBytesMax}
		p.reads = gate{callsMax: 4 * c.cfg.DriveCallsMax, bytesMax: c.cfg.NodeBytesMax}
		p.small.init(p)
		p.large.init(p)
		c.mu.peers[n] = p
	}
	return p
}

// start runs f in a goroutine that Close waits for; false if the client is closed.
func (c *Client) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return false
	}
	c.running.Add(1)
	go func() {
		defer c.running.Done()
		f()
	}()
	return true
}

// Close ends all streams and waits for what runs here; appends under way end with an
// error. Later appends are Closed. It does not close the connections.
func (c *Client) Close() {
	c.mu.Lock()
	c.mu.closed = true
	peers := c.mu.peers
	c.mu.Unlock()
	for _, p := range peers {
		p.small.close()
		p.large.close()
	}
	c.running.Wait()
}

type storeKey struct {
	node  cluster.NodeID
	drive storage.DriveID
}

// Store is a drive of a node, nil while the node is known to be unreachable. It is
// quick and may be asked for each call. The drive is a storage.HeaderReader and a
// storage.AsyncAppender, too.
//
// Where a peer gives no answer the error is Unavailable or Timeout, and whether an
// append or removal took effect is not known.
func (c *Client) Store(node cluster.NodeID, drive storage.DriveID) storage.ShardStore {
	key := storeKey{node, drive}
	found, ok := c.stores.Load(key)
	if !ok {
		s := &store{peer: c.peer(node), drive: drive}
		s.appends = gate{callsMax: c.cfg.DriveCallsMax, bytesMax: c.cfg.DriveBytesMax}
		s.reads = gate{callsMax: c.cfg.DriveCallsMax, bytesMax: c.cfg.DriveBytesMax}
		found, _ = c.stores.LoadOrStore(key, s)
	}
	if s := found.(*store); s.peer.reachable() {
		return s
	}
	return nil
}

// store is one drive of another node.
type store struct {
	peer           *peer
	drive          storage.DriveID
	appends, reads gate
}

var (
	_ storage.ShardStore    = (*store)(nil)
	_ storage.HeaderReader  = (*store)(nil)
	_ storage.AsyncAppender = (*store)(nil)
)

func (s *store) control() (nodepb.ShardsClient, error) {
	conn, err := s.peer.client.cfg.Conn(s.peer.node)
	if err != nil {
		return nil, err
	}
	return nodepb.NewShardsClient(conn), nil
}

// ReadAt implements storage.ShardStore. p is not touched any more when it returns, also if ctx ended.
func (s *store) ReadAt(ctx context.Context, id storage.ShardID, off int, p []byte) error {
	if off < 0 {
		return errs.Newf(errs.InvalidArgument, "shardrpc.read", id.String(), "offset %d", off)
	}
	ctx, cancel := context.WithTimeout(ctx, s.peer.client.cfg.ReadTimeout)
	defer cancel()
	for {
		n := min(len(p), readBytesMax)
		if err := s.readOnce(ctx, id, off, p[:n]); err != nil {
			return err
		}
		if p, off = p[n:], off+n; len(p) == 0 {
			return nil
		}
	}
}

func (s *store) readOnce(ctx context.Context, id storage.ShardID, off int, p []byte) error {
	n := int64(len(p))
	if err := s.reads.enter(ctx, n); err != nil {
		return err
	}
	defer s.reads.leave(n)
	if err := s.peer.reads.enter(ctx, n); err != nil {
		return err
	}
	defer s.peer.reads.leave(n)
	conn, err := s.peer.client.cfg.Conn(s.peer.node)
	if err != nil {
		return err
	}
	req := &nodepb.ShardReadRequest{Drive: s.drive[:], Id: toID(id), Offset: uint64(off), Bytes: uint32(n)}
	return callError(conn.Invoke(ctx, readMethod, req, &readReply{into: p}))
}

// callError gives the end of a ctx a kind.
func callError(err error) error {
	if err == nil || errs.KindOf(err) != errs.Other {
		return err
	}
	switch err {
	case context.Canceled, context.DeadlineExceeded:
		return errs.Wrap(errs.Timeout, "shardrpc", "", err)
	}
	return err
}

// Remove implements storage.ShardStore.
func (s *store) Remove(ctx context.Context, chunks []storage.ChunkRemoval) error {
	for first := true; first || len(chunks) > 0; first = false {
		n := min(len(chunks), removalsMax)
		req := &nodepb.ShardRemoveRequest{Drive: s.drive[:], Chunks: make([]*nodepb.ShardRemoval, n)}
		for i := range n {
			req.Chunks[i] = &nodepb.ShardRemoval{Pg: uint32(chunks[i].PG), Chunk: chunks[i].Chunk[:]}
		}
		chunks = chunks[n:]
		err := s.call(ctx, func(ctx context.Context, c nodepb.ShardsClient) error {
			_, err := c.Remove(ctx, req)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// SetEpochs implements storage.ShardStore. Of very many groups some may be raised and others not if it fails.
func (s *store) SetEpochs(ctx context.Context, epochs map[storage.PGID]storage.Epoch) error {
	req := &nodepb.ShardEpochsRequest{Drive: s.drive[:]}
	send := func() error {
		return s.call(ctx, func(ctx context.Context, c nodepb.ShardsClient) error {
			_, err := c.SetEpochs(ctx, req)
			return err
		})
	}
	for pg, e := range epochs {
		if req.Epochs = append(req.Epochs, &nodepb.ShardEpoch{Pg: uint32(pg), Epoch: uint64(e)}); len(req.Epochs) == epochsMax {
			if err := send(); err != nil {
				return err
			}
			req.Epochs = nil
		}
	}
	return send()
}

// Header implements storage.HeaderReader.
func (s *store) Header(ctx context.Context, id storage.ShardID) (h storage.ShardHeader, err error) {
	err = s.call(ctx, func(ctx context.Context, c nodepb.ShardsClient) error {
		m, err := c.Header(ctx, &nodepb.ShardHeaderRequest{Drive: s.drive[:], Id: toID(id)})
		if err == nil {
			h, err = fromHeader(m.Header)
		}
		return err
	})
	return h, err
}

// call makes a call without payload, in turn with the drive's reads.
func (s *store) call(ctx context.Context, f func(context.Context, nodepb.ShardsClient) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.peer.client.cfg.CallTimeout)
	defer cancel()
	if err := s.reads.enter(ctx, 0); err != nil {
		return err
	}
	defer s.reads.leave(0)
	c, err := s.control()
	if err != nil {
		return err
	}
	return callError(f(ctx, c))
}

// List implements storage.ShardStore. While fn runs the node waits, for at most its own deadlines.
func (s *store) List(ctx context.Context, pg storage.PGID, from storage.ChunkID, fn func(storage.ShardInfo) bool) error {
	c, err := s.control()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(s.peer.client.cfg.CallTimeout, cancel)
	defer late.Stop()
	stream, err := c.List(ctx, &nodepb.ShardListRequest{Drive: s.drive[:], Pg: uint32(pg), From: from[:]})
	for err == nil {
		var page *nodepb.ShardListPage
		if page, err = stream.Recv(); err != nil {
			break
		}
		late.Stop()
		var more bool
		if more, err = eachOfPage(pg, page, fn); err != nil || !more {
			return err
		}
		late.Reset(s.peer.client.cfg.CallTimeout)
	}
	if err == io.EOF {
		return nil
	}
	return callError(err)
}

func eachOfPage(pg storage.PGID, page *nodepb.ShardListPage, fn func(storage.ShardInfo) bool) (more bool, err error) {
	n := len(page.Sizes)
	if len(page.Chunks) != n*len(storage.ChunkID{}) || len(page.Stripes) != n || len(page.Indexes) != n {
		return false, malformed("a page of shards")
	}
	for i := range n {
		at := i * len(storage.ChunkID{})
		id := storage.ShardID{PG: pg, Chunk: storage.ChunkID(page.Chunks[at : at+len(storage.ChunkID{})]), Stripe: uint16(page.Stripes[i]), Index: uint8(page.Indexes[i])}
		if !fn(storage.ShardInfo{ID: id, Bytes: int(page.Sizes[i])}) {
			return false, nil
		}
	}
	return true, nil
}
