package metarpc

import (
	"context"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// pageBytes is when a page of a stream is sent.
const pageBytes = 256 << 10

// QueryAll streams an answer that has no bound, from one snapshot. The drive cannot be closed
// meanwhile, so a reader that takes nothing for StallTimeout is let go, and all are when the replica stops.
func (s *Server) QueryAll(req *nodepb.QueryRequest, stream grpc.ServerStreamingServer[nodepb.QueryAnswer]) error {
	ctx := stream.Context()
	done, err := s.admit(ctx, s.streams)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	pages := make(chan *nodepb.QueryAnswer)
	ended := make(chan error, 1)
	go func() { // ends when the state is read, or with ctx or StallTimeout after the stream ended
		defer close(pages)
		ended <- s.readAll(ctx, req, &pager{ctx: ctx, out: pages, stall: s.cfg.StallTimeout})
	}()
	for page := range pages {
		if err = stream.Send(page); err != nil {
			break
		}
	}
	cancel()
	if rerr := <-ended; err == nil {
		err = rerr
	}
	return err
}

// readAll reads the state into pages.
func (s *Server) readAll(ctx context.Context, req *nodepb.QueryRequest, p *pager) error {
	g := cluster.GroupID(req.Group)
	return s.cfg.Host.ReadSnapshot(ctx, g, func(r pebble.Reader, cut <-chan struct{}) error {
		v, err := s.views.View(r, g)
		if err != nil {
			return err
		}
		p.cut = cut
		p.timeMS = v.TimeMS()
		p.page = &nodepb.QueryAnswer{TimeMs: p.timeMS}
		switch req.Of.(type) {
		case *nodepb.QueryRequest_Counters:
			counters, err := v.Counters()
			if err != nil {
				return err
			}
			for _, item := range countersToPB(counters) {
				p.page.Counters = append(p.page.Counters, item)
				if err := p.added(item.SizeVT()); err != nil {
					return err
				}
			}
		case *nodepb.QueryRequest_Walk:
			if err := v.Walk(func(it *rangestate.Item) error {
				item := itemToPB(it)
				p.page.Walk = append(p.page.Walk, item)
				return p.added(item.SizeVT())
			}); err != nil {
				return err
			}
		default:
			return unknown("question")
		}
		return p.flush() // also if it is empty: it has the time
	})
}

// pager hands an answer on in pages.
type pager struct {
	ctx    context.Context
	cut    <-chan struct{} // closed when the replica has stopped
	out    chan<- *nodepb.QueryAnswer
	stall  time.Duration
	timeMS int64
	page   *nodepb.QueryAnswer
	bytes  int // of page, about
}

// added says that something of n bytes was added to the page.
func (p *pager) added(n int) error {
	if p.bytes += n; p.bytes < pageBytes {
		return nil
	}
	return p.flush()
}

func (p *pager) flush() error {
	timer := time.NewTimer(p.stall)
	defer timer.Stop()
	select {
	case p.out <- p.page:
		p.page, p.bytes = &nodepb.QueryAnswer{TimeMs: p.timeMS}, 0
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	case <-p.cut:
		return errs.New(errs.Unavailable, "metarpc.stream", "", "the replica stopped: begin again")
	case <-timer.C:
		return errs.New(errs.Timeout, "metarpc.stream", "", "the reader is too slow: begin again")
	}
}

func itemToPB(it *rangestate.Item) *nodepb.WalkItem {
	return &nodepb.WalkItem{
		Kind: uint32(it.Kind), Bucket: uint64(it.Bucket), Key: []byte(it.Key), Seq: uint64(it.Seq), Number: it.Number, Err: errorToPB(it.Err),
		Object: it.Object, Upload: it.Upload, Part: it.Part, Manifest: it.Manifest, Garbage: it.Garbage, Doomed: it.Doomed, Repair: it.Repair,
	}
}

func itemFromPB(pb *nodepb.WalkItem) *rangestate.Item {
	return &rangestate.Item{
		Kind: byte(pb.Kind), Bucket: storage.BucketID(pb.Bucket), Key: storage.Key(pb.Key), Seq: storage.Seq(pb.Seq), Number: pb.Number, Err: errorFromPB(pb.Err),
		Object: pb.Object, Upload: pb.Upload, Part: pb.Part, Manifest: pb.Manifest, Garbage: pb.Garbage, Doomed: pb.Doomed, Repair: pb.Repair,
	}
}

func countersToPB(counters []rangestate.Counter) []*nodepb.CounterItem {
	out := make([]*nodepb.CounterItem, len(counters))
	for i, c := range counters {
		out[i] = &nodepb.CounterItem{Bucket: uint64(c.Bucket), StorageClass: string(c.Class), Row: c.Row}
	}
	return out
}

func counterFromPB(pb *nodepb.CounterItem) rangestate.Counter {
	row := pb.Row
	if row == nil {
		row = &metapb.CounterRow{}
	}
	return rangestate.Counter{Bucket: storage.BucketID(pb.Bucket), Class: storage.StorageClass(pb.StorageClass), Row: row}
}
