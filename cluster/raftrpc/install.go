package raftrpc

import (
	"context"
	"hash/crc32"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"cairn/cluster/multiraft"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// installChunk is how much of a snapshot goes in one message, bytes.
const installChunk = 256 << 10

// InstallSnapshot implements multiraft.Transport.
func (t *Transport) InstallSnapshot(ctx context.Context, e multiraft.Envelope, req *raft.InstallSnapshotRequest, data io.Reader) (*raft.InstallSnapshotResponse, error) {
	c, _, err := t.client("raftrpc.install", e)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stall := time.AfterFunc(t.cfg.StallTimeout, cancel)
	defer stall.Stop()
	progress := func() { stall.Reset(t.cfg.StallTimeout) }
	s, err := c.Install(ctx)
	if err != nil {
		return nil, err
	}
	start := make(chan struct{})
	type result struct {
		a   *nodepb.RaftInstalled
		err error
	}
	done := make(chan result, 1)
	go func() { // ends with the stream, which ends with ctx
		var once sync.Once
		for {
			m, err := s.Recv()
			if err != nil || m.Answer != nil {
				done <- result{m.GetAnswer(), err}
				return
			}
			progress()
			if m.Go {
				once.Do(func() { close(start) })
			}
		}
	}()
	if err := s.Send(fromInstall(e, req)); err == nil { // else the answer says why
		select {
		case <-start:
			if err := sendChunks(s, data, progress); err != nil {
				return nil, err
			}
		case r := <-done:
			done <- r
		}
	}
	r := <-done
	if r.err != nil {
		return nil, errs.Wrap(errs.Unavailable, "raftrpc.install", string(e.To), r.err)
	}
	return &raft.InstallSnapshotResponse{RPCHeader: header(r.a.Protocol, string(e.To)), Term: r.a.Term, Success: r.a.Success}, nil
}

// sendChunks sends data to its end, unless the receiver answers before. An error is the reader's.
func sendChunks(s grpc.BidiStreamingClient[nodepb.RaftInstall, nodepb.RaftInstallReply], data io.Reader, progress func()) error {
	table := crc32.MakeTable(crc32.Castagnoli)
	buf := make([]byte, installChunk) // encoded before Send returns
	var offset uint64
	for {
		n, err := io.ReadFull(data, buf)
		last := err == io.EOF || err == io.ErrUnexpectedEOF
		if err != nil && !last {
			return err
		}
		m := &nodepb.RaftInstall{Data: buf[:n], Crc32C: crc32.Checksum(buf[:n], table), Offset: offset, Last: last}
		if s.Send(m) != nil {
			return nil
		}
		progress()
		offset += uint64(n)
		if last {
			_ = s.CloseSend()
			return nil
		}
	}
}

// Install implements nodepb.RaftServer.
func (s *server) Install(stream grpc.BidiStreamingServer[nodepb.RaftInstall, nodepb.RaftInstallReply]) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	defer context.AfterFunc(s.t.ctx, cancel)()
	in := &chunks{ctx: ctx, table: crc32.MakeTable(crc32.Castagnoli), stall: s.t.cfg.StallTimeout, next: make(chan *nodepb.RaftInstall), ended: make(chan error, 1)}
	go in.receive(stream) // ends when this returns and the stream with it
	first, err := in.message()
	if err != nil {
		return err
	}
	if first.Header == nil {
		return errs.New(errs.InvalidArgument, "raftrpc.install", "", "the first message has no header")
	}
	e, err := s.from(ctx, first.Header.Envelope)
	if err != nil {
		return err
	}
	working := keepSaying(stream, max(s.t.cfg.StallTimeout/4, time.Millisecond))
	defer working.stop()
	select {
	case s.t.installs <- struct{}{}:
		defer func() { <-s.t.installs }()
	case <-ctx.Done():
		return errs.Wrap(errs.Unavailable, "raftrpc.install", string(e.To), ctx.Err())
	}
	if err := working.send(&nodepb.RaftInstallReply{Go: true}); err != nil {
		return err
	}
	a, err := s.host.InstallSnapshot(ctx, e, toInstall(first.Header), in)
	if err != nil {
		return err
	}
	return working.send(&nodepb.RaftInstallReply{Answer: &nodepb.RaftInstalled{Protocol: uint32(a.ProtocolVersion), Term: a.Term, Success: a.Success}})
}

// saying tells the sender of a snapshot now and then that this end is alive.
type saying struct {
	mu   sync.Mutex // one Send at a time
	s    grpc.BidiStreamingServer[nodepb.RaftInstall, nodepb.RaftInstallReply]
	quit chan struct{}
	done chan struct{}
}

func keepSaying(s grpc.BidiStreamingServer[nodepb.RaftInstall, nodepb.RaftInstallReply], every time.Duration) *saying {
	w := &saying{s: s, quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if w.send(&nodepb.RaftInstallReply{Working: true}) != nil {
					return
				}
			case <-w.quit:
				return
			}
		}
	}()
	return w
}

func (w *saying) send(m *nodepb.RaftInstallReply) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.s.Send(m)
}

func (w *saying) stop() {
	close(w.quit)
	<-w.done
}

// chunks is a snapshot that is being received.
type chunks struct {
	ctx   context.Context
	table *crc32.Table
	stall time.Duration
	next  chan *nodepb.RaftInstall
	ended chan error

	rest   []byte
	offset uint64
	last   bool
}

func (c *chunks) receive(s grpc.BidiStreamingServer[nodepb.RaftInstall, nodepb.RaftInstallReply]) {
	for {
		m, err := s.Recv()
		if err != nil {
			c.ended <- err
			return
		}
		select {
		case c.next <- m:
		case <-c.ctx.Done():
			return
		}
	}
}

func (c *chunks) message() (*nodepb.RaftInstall, error) {
	timer := time.NewTimer(c.stall)
	defer timer.Stop()
	select {
	case m := <-c.next:
		return m, nil
	case err := <-c.ended:
		return nil, errs.Wrap(errs.Unavailable, "raftrpc.install", "the stream ended early", err)
	case <-c.ctx.Done():
		return nil, errs.Wrap(errs.Unavailable, "raftrpc.install", "", c.ctx.Err())
	case <-timer.C:
		return nil, errs.Newf(errs.Timeout, "raftrpc.install", "", "nothing came for %v", c.stall)
	}
}

// Read implements io.Reader; what it returns has been checked.
func (c *chunks) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		if c.last {
			return 0, io.EOF
		}
		m, err := c.message()
		if err != nil {
			return 0, err
		}
		if m.Offset != c.offset || m.Crc32C != crc32.Checksum(m.Data, c.table) {
			return 0, errs.Newf(errs.Corrupt, "raftrpc.install", "", "the chunk at %d is not what was sent", c.offset)
		}
		c.offset += uint64(len(m.Data))
		c.rest, c.last = m.Data, m.Last
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
