package controller

import (
	"context"
	"crypto/sha256"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/cluster/pki"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// joinSkewMax is how far the clock of a joining node may be off. More, and its
// certificate and its commands would be refused for reasons that nobody understands.
const joinSkewMax = 30 * time.Second

// joinServer serves the Join service.
type joinServer struct {
	nodepb.UnimplementedJoinServer
	c        *Controller
	identity func() *pki.Identity
}

// RegisterJoin offers to let nodes join and to renew their certificates. identity is
// this node's own; nil means a cluster without TLS.
func RegisterJoin(s grpc.ServiceRegistrar, c *Controller, identity func() *pki.Identity) {
	nodepb.RegisterJoinServer(s, joinServer{c: c, identity: identity})
}

// authority is the cluster's certificate authority, which every node with a copy of
// the system group can open. Both are nil in a cluster without TLS. Unavailable: ask another node.
func (s joinServer) authority() (*pki.CA, *pki.Identity, error) {
	if s.identity == nil {
		return nil, nil, nil
	}
	id := s.identity()
	sealed, err := s.c.CA()
	if err == nil && id == nil {
		err = errs.New(errs.Unavailable, "join", "", "this node has no certificate yet")
	}
	if err != nil {
		return nil, nil, &errs.Error{Kind: errs.Unavailable, Op: "join", Detail: "this node has no copy of the certificate authority: ask another one", Err: err}
	}
	ca, err := pki.Unseal(sealed, id.Seal)
	return ca, id, err
}

func (s joinServer) Join(ctx context.Context, req *nodepb.JoinRequest) (*nodepb.JoinResponse, error) {
	n, now := req.Node, s.c.cfg.Now()
	node := cluster.NodeID(n.GetNode())
	if err := pki.CheckNodeName(node); err != nil {
		return nil, err
	}
	if off := time.UnixMilli(req.TimeMs).Sub(now).Abs(); off > joinSkewMax {
		return nil, errs.Newf(errs.InvalidArgument, "join", string(node), "the clocks of node %s and of this one are %s apart, at most %s is allowed: set the time, best by NTP", node, off.Round(time.Second), joinSkewMax)
	}
	// All that may fail comes before the token is spent.
	ca, id, err := s.authority()
	if err != nil {
		return nil, err
	}
	resp := &nodepb.JoinResponse{StoreId: s.c.StoreID()}
	key := sha256.Sum256(append([]byte(node+"\x00"), req.Csr...))
	if ca != nil {
		if resp.Certificate, err = ca.Issue(req.Csr, node, now); err != nil {
			return nil, err
		}
		resp.Ca, resp.SealKey = ca.Cert(), id.Seal[:]
	}
	nodes, err := s.c.Admit(ctx, Joining{
		Token: []byte(pki.TokenID(req.Secret)), Key: key[:], Node: node, Zone: cluster.Zone(n.GetZone()),
		Addresses: n.GetAddresses(), Version: n.GetSoftware(),
	})
	if err != nil {
		return nil, err
	}
	for _, o := range nodes {
		resp.Nodes = append(resp.Nodes, &nodepb.NodeInfo{Node: string(o.ID), Zone: string(o.Zone), Addresses: o.Addresses, Software: o.Version})
	}
	return resp, nil
}

func (s joinServer) Renew(ctx context.Context, req *nodepb.RenewRequest) (*nodepb.RenewResponse, error) {
	who, err := s.c.cfg.Cluster.Caller(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.c.Member(who); err != nil {
		return nil, err
	}
	ca, _, err := s.authority()
	if err != nil {
		return nil, err
	}
	if ca == nil {
		return nil, errs.New(errs.InvalidArgument, "renew", string(who), "this cluster has no certificates")
	}
	cert, err := ca.Issue(req.Csr, who, s.c.cfg.Now())
	return &nodepb.RenewResponse{Certificate: cert}, err
}

// Member says why a node is none of this cluster (any more): Foreign, or nil. A node
// that has not heard of the others yet believes everybody whose certificate is right.
func (c *Controller) Member(id cluster.NodeID) error {
	t := c.Topology()
	if t.Version == 0 {
		return nil
	}
	// One that this node does not know yet may have joined a moment ago.
	if n, ok := t.Nodes[id]; ok && n.State == cluster.NodeRemoved {
		return errs.Newf(errs.Foreign, "member", string(id), "node %s was removed from this cluster: empty its data folder and its drives and let it join anew", id)
	}
	return nil
}
