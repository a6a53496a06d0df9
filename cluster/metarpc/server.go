package metarpc

import (
	"context"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/rangestate"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Host runs the replicas of this node: *multiraft.Host.
type Host interface {
	Propose(ctx context.Context, g cluster.GroupID, data []byte) ([]byte, error)
	Read(ctx context.Context, g cluster.GroupID, fn func(pebble.Reader) error) error
	ReadSnapshot(ctx context.Context, g cluster.GroupID, fn func(r pebble.Reader, cut <-chan struct{}) error) error
	LeaderOf(g cluster.GroupID) (cluster.ReplicaID, bool)
	Status() []multiraft.GroupStatus
	Contents(ctx context.Context, g cluster.GroupID) ([]multiraft.Content, error)
	CreateReplica(g cluster.GroupID, r cluster.Replica) error
	DestroyReplica(g cluster.GroupID, r cluster.ReplicaID) error
	AddReplica(ctx context.Context, g cluster.GroupID, r cluster.Replica) error
	RemoveReplica(ctx context.Context, g cluster.GroupID, r cluster.ReplicaID) error
	TransferLeader(ctx context.Context, g cluster.GroupID, to cluster.ReplicaID) error
}

// ServerConfig of a Server. Host, Topology and Caller are required.
type ServerConfig struct {
	Self     cluster.NodeID
	Host     Host
	Topology func() *cluster.Topology // never nil
	// Caller is the authenticated node that a call comes from.
	Caller func(ctx context.Context) (cluster.NodeID, error)
	// Resolve finds the node of a replica that the topology does not name (yet). Nil: none.
	Resolve func(cluster.GroupID, cluster.ReplicaID) (cluster.NodeID, bool)

	CallsMax       int           // proposals and questions at once; 0 is 4096
	StreamsMax     int           // walks at once; 0 is 4
	StallTimeout   time.Duration // how long a walk may wait for its reader; 0 is 30 s
	AnswerBytesMax int           // of one answer, unless a single row is larger; 0 is 4 MiB
}

// Server answers other nodes' calls.
type Server struct {
	nodepb.UnsafeMetaServer
	cfg     ServerConfig
	views   *rangestate.Views
	calls   chan struct{}
	streams chan struct{}
}

var _ nodepb.MetaServer = (*Server)(nil)

// Register makes a Server and registers it.
func Register(s grpc.ServiceRegistrar, cfg ServerConfig) *Server {
	if cfg.CallsMax == 0 {
		cfg.CallsMax = 4096
	}
	if cfg.StreamsMax == 0 {
		cfg.StreamsMax = 4
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = 30 * time.Second
	}
	if cfg.AnswerBytesMax == 0 {
		cfg.AnswerBytesMax = 4 << 20
	}
	srv := &Server{cfg: cfg, views: rangestate.NewViews(), calls: make(chan struct{}, cfg.CallsMax), streams: make(chan struct{}, cfg.StreamsMax)}
	nodepb.RegisterMetaServer(s, srv)
	return srv
}

// admit lets a call of a node of the cluster in, if places has room; the function returned ends it.
func (s *Server) admit(ctx context.Context, places chan struct{}) (func(), error) {
	node, err := s.cfg.Caller(ctx)
	if err != nil {
		return nil, err
	}
	if n, ok := s.cfg.Topology().Nodes[node]; ok && n.State == cluster.NodeRemoved {
		return nil, errs.New(errs.AccessDenied, "metarpc", string(node), "the node was removed from the cluster: join it anew under a new name")
	}
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	default:
		return nil, errs.New(errs.Busy, "metarpc", string(s.cfg.Self), "too many calls at once")
	}
}

// Propose commits a command.
func (s *Server) Propose(ctx context.Context, req *nodepb.ProposeRequest) (*nodepb.ProposeAnswer, error) {
	done, err := s.admit(ctx, s.calls)
	if err != nil {
		return nil, err
	}
	defer done()
	res, err := s.cfg.Host.Propose(ctx, cluster.GroupID(req.Group), req.Data)
	if err != nil {
		return nil, err
	}
	return &nodepb.ProposeAnswer{Result: res}, nil
}

// Leader tells who leads.
func (s *Server) Leader(ctx context.Context, req *nodepb.LeaderRequest) (*nodepb.LeaderAnswer, error) {
	done, err := s.admit(ctx, s.calls)
	if err != nil {
		return nil, err
	}
	defer done()
	g := cluster.GroupID(req.Group)
	id, ok := s.cfg.Host.LeaderOf(g)
	if !ok {
		return &nodepb.LeaderAnswer{}, nil
	}
	ans := &nodepb.LeaderAnswer{Replica: string(id)}
	if s.here(g, id) {
		ans.Node, ans.Here = string(s.cfg.Self), true
	} else if n, ok := nodeOf(s.cfg.Topology(), s.cfg.Resolve, g, id); ok {
		ans.Node = string(n)
	}
	return ans, nil
}

// here reports whether a replica is on this node. The topology may not know it yet.
func (s *Server) here(g cluster.GroupID, id cluster.ReplicaID) bool {
	for _, st := range s.cfg.Host.Status() {
		if st.Group == g {
			return slices.ContainsFunc(st.Replicas, func(r multiraft.ReplicaStatus) bool { return r.ID == id && r.State != multiraft.ReplicaAway })
		}
	}
	return false
}

// nodeOf finds the node of a replica.
func nodeOf(t *cluster.Topology, resolve func(cluster.GroupID, cluster.ReplicaID) (cluster.NodeID, bool), g cluster.GroupID, id cluster.ReplicaID) (cluster.NodeID, bool) {
	for _, r := range t.Groups[g].Replicas {
		if r.ID == id {
			if d, ok := t.Drives[r.Drive]; ok && d.Node != "" {
				return d.Node, true
			}
		}
	}
	if resolve != nil {
		return resolve(g, id)
	}
	return "", false
}

// ChangeMember changes the members of a group that is led here.
func (s *Server) ChangeMember(ctx context.Context, req *nodepb.ChangeMemberRequest) (*nodepb.ChangeMemberAnswer, error) {
	done, err := s.admit(ctx, s.calls)
	if err != nil {
		return nil, err
	}
	defer done()
	g, id := cluster.GroupID(req.Group), cluster.ReplicaID(req.Replica)
	switch req.Change {
	case nodepb.ChangeMemberRequest_ADD:
		drive, derr := driveOf(req.Drive)
		if derr != nil {
			return nil, derr
		}
		err = s.cfg.Host.AddReplica(ctx, g, cluster.Replica{ID: id, Drive: drive, Voter: req.Voter})
	case nodepb.ChangeMemberRequest_REMOVE:
		err = s.cfg.Host.RemoveReplica(ctx, g, id)
	case nodepb.ChangeMemberRequest_TRANSFER:
		err = s.cfg.Host.TransferLeader(ctx, g, id)
	default:
		err = unknown("change of members")
	}
	return &nodepb.ChangeMemberAnswer{}, err
}

func unknown(what string) error {
	return errs.New(errs.NotImplemented, "metarpc", "", "an unknown "+what+": the caller runs a newer release")
}

func driveOf(b []byte) (id storage.DriveID, err error) {
	if len(b) != len(id) {
		return id, errs.New(errs.InvalidArgument, "metarpc", "", "not a drive id")
	}
	copy(id[:], b)
	return id, nil
}

// CreateReplica makes an empty replica here.
func (s *Server) CreateReplica(ctx context.Context, req *nodepb.ReplicaRequest) (*nodepb.ReplicaAnswer, error) {
	done, err := s.admit(ctx, s.calls)
	if err != nil {
		return nil, err
	}
	defer done()
	drive, err := driveOf(req.Drive)
	if err != nil {
		return nil, err
	}
	r := cluster.Replica{ID: cluster.ReplicaID(req.Replica), Drive: drive, Voter: req.Voter}
	return &nodepb.ReplicaAnswer{}, s.cfg.Host.CreateReplica(cluster.GroupID(req.Group), r)
}

// DestroyReplica removes a replica here.
func (s *Server) DestroyReplica(ctx context.Context, req *nodepb.ReplicaRequest) (*nodepb.ReplicaAnswer, error) {
	done, err := s.admit(ctx, s.calls)
	if err != nil {
		return nil, err
	}
	defer done()
	s.views.Drop(cluster.GroupID(req.Group)) // another one here makes them anew
	return &nodepb.ReplicaAnswer{}, s.cfg.Host.DestroyReplica(cluster.GroupID(req.Group), cluster.ReplicaID(req.Replica))
}

// Contents hashes the replicas of a group here.
func (s *Server) Contents(ctx context.Context, req *nodepb.ContentsRequest) (*nodepb.ContentsAnswer, error) {
	done, err := s.admit(ctx, s.streams) // it reads as much as a walk
	if err != nil {
		return nil, err
	}
	defer done()
	contents, err := s.cfg.Host.Contents(ctx, cluster.GroupID(req.Group))
	if err != nil {
		return nil, err
	}
	ans := &nodepb.ContentsAnswer{}
	for i := range contents {
		r := replicaToPB(&contents[i].ReplicaStatus)
		r.Hash = contents[i].Hash
		ans.Replicas = append(ans.Replicas, r)
	}
	return ans, nil
}

// GroupStatus tells of the groups here.
func (s *Server) GroupStatus(ctx context.Context, req *nodepb.GroupStatusRequest) (*nodepb.GroupStatusAnswer, error) {
	done, err := s.admit(ctx, s.calls)
	if err != nil {
		return nil, err
	}
	defer done()
	ans := &nodepb.GroupStatusAnswer{}
	for _, g := range s.cfg.Host.Status() {
		if req.Group == 0 || req.Group == uint64(g.Group) {
			ans.Groups = append(ans.Groups, groupToPB(&g))
		}
	}
	return ans, nil
}
