package shardrpc

import (
	"context"
	"runtime"
	"sync"
	"time"

	"google.golang.org/grpc"

	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// ServerConfig of a Server. Drives is required; zeros have the defaults named.
type ServerConfig struct {
	// Drives answers a drive of this node, nil if it has none of that id. Called for each call: it must be quick.
	Drives func(storage.DriveID) storage.ShardStore
	// Draining is closed when the node begins to stop, which does what Close does; may be nil.
	Draining <-chan struct{}

	BytesMax      int64         // of appends and reads under way in all, answers that are not written yet included; 0 is 256 MiB
	DriveBytesMax int64         // of one drive; 0 is 64 MiB
	DriveCallsMax int           // of one drive; 0 is 1024
	AppendTimeout time.Duration // the longest that an append may take; 0 is 10 s
}

// Server answers for the drives of this node. All methods are safe for concurrent use.
type Server struct {
	cfg     ServerConfig
	pool    pool
	all     gate
	drives  sync.Map // storage.DriveID -> *gate
	closing chan struct{}
	close   sync.Once

	nodepb.UnimplementedShardsServer
}

// NewServer makes a Server.
func NewServer(cfg ServerConfig) *Server {
	setDefault(&cfg.BytesMax, 256<<20)
	setDefault(&cfg.DriveBytesMax, 64<<20)
	setDefault(&cfg.DriveCallsMax, 1024)
	setDefault(&cfg.AppendTimeout, 10*time.Second)
	return &Server{cfg: cfg, all: gate{callsMax: 1 << 20, bytesMax: cfg.BytesMax}, closing: make(chan struct{})}
}

func setDefault[T int | int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// Register makes s answer the calls of other nodes' Clients.
func Register(r grpc.ServiceRegistrar, s *Server) {
	nodepb.RegisterShardsServer(r, s)
	r.RegisterService(&grpc.ServiceDesc{
		ServiceName: dataService,
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Read", Handler: handleRead}},
		Streams: []grpc.StreamDesc{{StreamName: "Append", ServerStreams: true, ClientStreams: true,
			Handler: func(srv any, stream grpc.ServerStream) error { return srv.(*Server).serveAppends(stream) }}},
		Metadata: "proto/nodepb/shard.proto",
	}, s)
}

// Close ends the streams of appends, which last as long as nodes do: appends under
// way are answered if that takes no longer than stopWait, later ones are refused.
// Call it before the graceful stop of the gRPC server. It does not wait.
func (s *Server) Close() { s.close.Do(func() { close(s.closing) }) }

const stopWait = time.Second

// drive finds a drive and its gate.
func (s *Server) drive(raw []byte) (storage.ShardStore, *gate, error) {
	id, err := fromDrive(raw)
	if err != nil {
		return nil, nil, err
	}
	store := s.cfg.Drives(id)
	if store == nil {
		return nil, nil, errs.New(errs.DriveFailed, "shardrpc", id.Short(), "the drive is not in this node now")
	}
	g, ok := s.drives.Load(id)
	if !ok {
		g, _ = s.drives.LoadOrStore(id, &gate{callsMax: s.cfg.DriveCallsMax, bytesMax: s.cfg.DriveBytesMax})
	}
	return store, g.(*gate), nil
}

// admit takes n bytes of the limits, or answers Busy.
func (s *Server) admit(g *gate, n int64) (leave func(), err error) {
	if !g.try(n) {
		return nil, busy()
	}
	if !s.all.try(n) {
		g.leave(n)
		return nil, busy()
	}
	return func() { s.all.leave(n); g.leave(n) }, nil
}

func handleRead(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	req := new(nodepb.ShardReadRequest)
	if err := decode(req); err != nil {
		return nil, err
	}
	h := func(ctx context.Context, req any) (any, error) {
		return srv.(*Server).read(ctx, req.(*nodepb.ShardReadRequest))
	}
	if intercept == nil {
		return h(ctx, req)
	}
	return intercept(ctx, req, &grpc.UnaryServerInfo{Server: srv, FullMethod: readMethod}, h)
}

func (s *Server) read(ctx context.Context, req *nodepb.ShardReadRequest) (any, error) {
	id, err := fromID(req.Id)
	if err != nil {
		return nil, err
	}
	if req.Bytes > readBytesMax || req.Offset > 1<<40 {
		return nil, malformed("a read that is too long")
	}
	store, g, err := s.drive(req.Drive)
	if err != nil {
		return nil, err
	}
	leave, err := s.admit(g, int64(req.Bytes))
	if err != nil {
		return nil, err
	}
	buf := s.pool.Get(int(req.Bytes))
	if err := store.ReadAt(ctx, id, int(req.Offset), *buf); err != nil {
		s.pool.Put(buf)
		leave()
		return nil, err
	}
	return newReadAnswer(buf, newReadBuffer(&s.pool, leave)), nil
}

// readBuffer is the way back for the buffer of an answer, which counts against
// the limits until the transport has written it: a peer that takes its answers slowly must not make it hold more.
type readBuffer struct {
	pool    *pool
	leave   func()
	cleanup runtime.Cleanup
}

// newReadBuffer has leave called once. The transport forgets what it has not written of a
// connection that breaks, without a word; then the memory is free, and the limits are
// given back, when the garbage collector comes by.
func newReadBuffer(p *pool, leave func()) *readBuffer {
	b := &readBuffer{pool: p, leave: leave}
	b.cleanup = runtime.AddCleanup(b, func(leave func()) { leave() }, leave)
	return b
}

// Get is for mem.BufferPool; nobody calls it.
func (b *readBuffer) Get(n int) *[]byte { return b.pool.Get(n) }

// Put is called by the transport, once.
func (b *readBuffer) Put(buf *[]byte) {
	b.cleanup.Stop()
	b.pool.Put(buf)
	b.leave()
	runtime.KeepAlive(b)
}

// call looks up the drive of a call that carries no payload and bounds such calls.
func (s *Server) call(drive []byte) (store storage.ShardStore, leave func(), err error) {
	store, g, err := s.drive(drive)
	if err == nil {
		leave, err = s.admit(g, 0)
	}
	return store, leave, err
}

// Remove is the call of ShardStore.Remove.
func (s *Server) Remove(ctx context.Context, req *nodepb.ShardRemoveRequest) (*nodepb.ShardRemoveResponse, error) {
	if len(req.Chunks) > removalsMax {
		return nil, malformed("too many chunks")
	}
	chunks := make([]storage.ChunkRemoval, len(req.Chunks))
	for i, c := range req.Chunks {
		if len(c.Chunk) != len(storage.ChunkID{}) {
			return nil, malformed("a chunk's id")
		}
		chunks[i] = storage.ChunkRemoval{PG: storage.PGID(c.Pg), Chunk: storage.ChunkID(c.Chunk)}
	}
	store, leave, err := s.call(req.Drive)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := store.Remove(ctx, chunks); err != nil {
		return nil, err
	}
	return &nodepb.ShardRemoveResponse{}, nil
}

// SetEpochs is the call of ShardStore.SetEpochs.
func (s *Server) SetEpochs(ctx context.Context, req *nodepb.ShardEpochsRequest) (*nodepb.ShardEpochsResponse, error) {
	if len(req.Epochs) > epochsMax {
		return nil, malformed("too many epochs")
	}
	store, leave, err := s.call(req.Drive)
	if err != nil {
		return nil, err
	}
	defer leave()
	epochs := make(map[storage.PGID]storage.Epoch, len(req.Epochs))
	for _, e := range req.Epochs {
		epochs[storage.PGID(e.Pg)] = storage.Epoch(e.Epoch)
	}
	if err := store.SetEpochs(ctx, epochs); err != nil {
		return nil, err
	}
	return &nodepb.ShardEpochsResponse{}, nil
}

// Header is the call of HeaderReader.Header.
func (s *Server) Header(ctx context.Context, req *nodepb.ShardHeaderRequest) (*nodepb.ShardHeaderResponse, error) {
	id, err := fromID(req.Id)
	if err != nil {
		return nil, err
	}
	store, leave, err := s.call(req.Drive)
	if err != nil {
		return nil, err
	}
	defer leave()
	reader, ok := store.(storage.HeaderReader)
	if !ok {
		return nil, errs.New(errs.NotImplemented, "shardrpc.header", id.String(), "this drive cannot tell what a shard is")
	}
	h, err := reader.Header(ctx, id)
	if err != nil {
		return nil, err
	}
	return &nodepb.ShardHeaderResponse{Header: toHeader(&h)}, nil
}

// List is the call of ShardStore.List: pages, sent as the caller takes them.
func (s *Server) List(req *nodepb.ShardListRequest, stream grpc.ServerStreamingServer[nodepb.ShardListPage]) error {
	var from storage.ChunkID
	if len(req.From) != len(from) {
		return malformed("a chunk's id")
	}
	store, leave, err := s.call(req.Drive)
	if err != nil {
		return err
	}
	defer leave()
	page := &nodepb.ShardListPage{}
	var sendErr error
	err = store.List(stream.Context(), storage.PGID(req.Pg), storage.ChunkID(req.From), func(i storage.ShardInfo) bool {
		page.Chunks = append(page.Chunks, i.ID.Chunk[:]...)
		page.Stripes = append(page.Stripes, uint32(i.ID.Stripe))
		page.Indexes = append(page.Indexes, uint32(i.ID.Index))
		page.Sizes = append(page.Sizes, uint32(i.Bytes))
		if len(page.Sizes) < listPage {
			return true
		}
		sendErr = stream.Send(page)
		page.Chunks, page.Stripes, page.Indexes, page.Sizes = page.Chunks[:0], page.Stripes[:0], page.Indexes[:0], page.Sizes[:0]
		return sendErr == nil
	})
	if err == nil {
		err = sendErr
	}
	if err == nil && len(page.Sizes) > 0 {
		err = stream.Send(page)
	}
	return err
}
