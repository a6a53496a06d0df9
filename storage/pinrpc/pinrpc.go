// Package pinrpc asks the gateways of all nodes what package pins asks the one of
// this process, so that nothing is removed that any node still reads.
package pinrpc

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/pins"
)

// heldBytesMax bounds an answer: a gateway with more reads than that answers Busy.
const heldBytesMax = 8 << 20

// Register makes this node answer for the reads in r.
func Register(s grpc.ServiceRegistrar, r *pins.Registry) {
	nodepb.RegisterGatewayServer(s, &server{registry: r})
}

type server struct {
	nodepb.UnimplementedGatewayServer
	registry *pins.Registry
}

// Quiesce is the call of pins.Registry.Held.
func (s *server) Quiesce(ctx context.Context, _ *nodepb.QuiesceRequest) (*nodepb.QuiesceResponse, error) {
	held, err := s.registry.Held(ctx)
	if err != nil {
		return nil, err
	}
	if len(held)*len(storage.WriteID{}) > heldBytesMax {
		return nil, errs.Newf(errs.Busy, "pins.quiesce", "", "%d writes are being read", len(held))
	}
	out := &nodepb.QuiesceResponse{Held: make([]byte, 0, len(held)*len(storage.WriteID{}))}
	for w := range held {
		out.Held = append(out.Held, w[:]...)
	}
	return out, nil
}

// Config of Pins. All but Timeout are required.
type Config struct {
	Self     cluster.NodeID
	Registry *pins.Registry // of this node
	// Nodes are the nodes that may be reading for clients: all but those whose session has
	// ended for certain, which therefore have aborted their reads (design rule 17). A
	// node that joined before the call must be among them, so a snapshot of the
	// topology is enough only if it was confirmed after the call. Self may be missing.
	Nodes func(context.Context) ([]cluster.NodeID, error)
	Conn  func(cluster.NodeID) (grpc.ClientConnInterface, error)

	Timeout time.Duration // for each node's answer; 0 is 30 s
}

// Pins asks all gateways. Safe for concurrent use.
type Pins struct {
	cfg Config
}

// New makes Pins without any goroutine.
func New(cfg Config) *Pins {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 30 * time.Second
	}
	return &Pins{cfg}
}

// Quiesce is pins.Registry.Quiesce over all nodes. It fails if any of them does
// not answer: then nothing may be removed. It takes memory for the reads in progress everywhere.
func (p *Pins) Quiesce(ctx context.Context) (held func(storage.WriteID) bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	nodes, err := p.cfg.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	type answer struct {
		held map[storage.WriteID]struct{}
		err  error
	}
	answers := make(chan answer, len(nodes)+1)
	asked := 1
	for _, n := range nodes {
		if n == p.cfg.Self {
			continue
		}
		asked++
		go func() {
			held, err := p.ask(ctx, n)
			answers <- answer{held, err}
		}()
	}
	own, err := p.cfg.Registry.Held(ctx)
	answers <- answer{own, err}
	all := make([]map[storage.WriteID]struct{}, 0, asked)
	for range asked {
		a := <-answers // each ends with ctx
		if a.err != nil {
			return nil, a.err
		}
		if len(a.held) > 0 {
			all = append(all, a.held)
		}
	}
	return func(w storage.WriteID) bool {
		for _, held := range all {
			if _, ok := held[w]; ok {
				return true
			}
		}
		return false
	}, nil
}

// ask is the writes that a node holds.
func (p *Pins) ask(ctx context.Context, n cluster.NodeID) (map[storage.WriteID]struct{}, error) {
	conn, err := p.cfg.Conn(n)
	if err != nil {
		return nil, err
	}
	m, err := nodepb.NewGatewayClient(conn).Quiesce(ctx, &nodepb.QuiesceRequest{})
	if err != nil {
		if errs.KindOf(err) == errs.Other {
			err = errs.Wrap(errs.Timeout, "pins.quiesce", string(n), err)
		}
		return nil, err
	}
	const size = len(storage.WriteID{})
	if len(m.Held)%size != 0 {
		return nil, errs.New(errs.Other, "pins.quiesce", string(n), "malformed answer")
	}
	held := make(map[storage.WriteID]struct{}, len(m.Held)/size)
	for b := m.Held; len(b) > 0; b = b[size:] {
		held[storage.WriteID(b[:size])] = struct{}{}
	}
	return held, nil
}
