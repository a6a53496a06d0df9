package metarpc

import (
	"context"
	"errors"
	"slices"
	"time"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

// at is a peer's service.
func (r *Router) at(node cluster.NodeID) (nodepb.MetaClient, error) {
	cc, err := r.cfg.Conn(node)
	if err != nil {
		return nil, err
	}
	return nodepb.NewMetaClient(cc), nil
}

// CreateReplica makes an empty replica on a drive of a node. It may be repeated. Errors as of multiraft.Host;
// Unavailable: the node does not answer.
func (r *Router) CreateReplica(ctx context.Context, node cluster.NodeID, g cluster.GroupID, rep cluster.Replica) error {
	if node == r.cfg.Self {
		return r.cfg.Host.CreateReplica(g, rep)
	}
	m, err := r.at(node)
	if err != nil {
		return err
	}
	_, err = m.CreateReplica(ctx, &nodepb.ReplicaRequest{Group: uint64(g), Replica: string(rep.ID), Drive: rep.Drive[:], Voter: rep.Voter})
	return err
}

// DestroyReplica removes a replica from a node; its group must have removed it before. It may be repeated.
func (r *Router) DestroyReplica(ctx context.Context, node cluster.NodeID, g cluster.GroupID, rep cluster.ReplicaID) error {
	if node == r.cfg.Self {
		return r.cfg.Host.DestroyReplica(g, rep)
	}
	m, err := r.at(node)
	if err != nil {
		return err
	}
	_, err = m.DestroyReplica(ctx, &nodepb.ReplicaRequest{Group: uint64(g), Replica: string(rep)})
	return err
}

// AddReplica makes a replica a member of its group, wherever that is led. The replica must be there
// (CreateReplica). ctx bounds the wait until a voter has caught up. It may be repeated. Errors as of multiraft.Host.
func (r *Router) AddReplica(ctx context.Context, g cluster.GroupID, rep cluster.Replica) error {
	return r.change(ctx, func() error { return r.cfg.Host.AddReplica(ctx, g, rep) },
		&nodepb.ChangeMemberRequest{Change: nodepb.ChangeMemberRequest_ADD, Group: uint64(g), Replica: string(rep.ID), Drive: rep.Drive[:], Voter: rep.Voter})
}

// RemoveReplica removes a member of a group, wherever that is led; its rows go with DestroyReplica, unless they
// are on the leader's node. It may be repeated. Errors as of multiraft.Host.
func (r *Router) RemoveReplica(ctx context.Context, g cluster.GroupID, rep cluster.ReplicaID) error {
	return r.change(ctx, func() error { return r.cfg.Host.RemoveReplica(ctx, g, rep) },
		&nodepb.ChangeMemberRequest{Change: nodepb.ChangeMemberRequest_REMOVE, Group: uint64(g), Replica: string(rep)})
}

// TransferLeader hands a group's leadership to one of its voters. Errors as of multiraft.Host.
func (r *Router) TransferLeader(ctx context.Context, g cluster.GroupID, to cluster.ReplicaID) error {
	return r.change(ctx, func() error { return r.cfg.Host.TransferLeader(ctx, g, to) },
		&nodepb.ChangeMemberRequest{Change: nodepb.ChangeMemberRequest_TRANSFER, Group: uint64(g), Replica: string(to)})
}

func (r *Router) change(ctx context.Context, here func() error, req *nodepb.ChangeMemberRequest) error {
	err := here()
	if !errs.Is(err, errs.NotLeader) {
		return err
	}
	g := cluster.GroupID(req.Group)
	r.hint(g, err)
	return r.atLeader(ctx, g, 0, func(ctx context.Context, m nodepb.MetaClient) error {
		_, err := m.ChangeMember(ctx, req)
		return err
	})
}

// Status is what a node tells of the groups with replicas there.
func (r *Router) Status(ctx context.Context, node cluster.NodeID) ([]multiraft.GroupStatus, error) {
	if node == r.cfg.Self {
		return r.cfg.Host.Status(), nil
	}
	m, err := r.at(node)
	if err != nil {
		return nil, err
	}
	ans, err := m.GroupStatus(ctx, &nodepb.GroupStatusRequest{})
	if err != nil {
		return nil, err
	}
	var out []multiraft.GroupStatus
	for _, pb := range ans.Groups {
		out = append(out, groupFromPB(pb))
	}
	return out, nil
}

// Contents looks this often for a moment in which all replicas are at one index. Followers of a quiet
// group hear of the last commit up to a second late.
const (
	contentsTries = 8
	contentsPause = 300 * time.Millisecond
)

// Contents hashes all replicas of a group on all nodes that the topology names, all at the
// same index if the group is quiet for a moment; while it is not, indexes differ from node to node. A node that does not
// answer shows as its replicas with Err.
func (r *Router) Contents(ctx context.Context, g cluster.GroupID) ([]multiraft.Content, error) {
	for try := 1; ; try++ {
		all := r.contents(ctx, g)
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if try == contentsTries || oneIndex(all) {
			return all, nil
		}
		pause := time.NewTimer(contentsPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
}

func oneIndex(all []multiraft.Content) bool {
	var at uint64
	for _, c := range all {
		if c.Hash == nil {
			continue
		}
		if at != 0 && c.Applied != at {
			return false
		}
		at = c.Applied
	}
	return true
}

// contents asks each node once, all at the same time.
func (r *Router) contents(ctx context.Context, g cluster.GroupID) []multiraft.Content {
	t := r.cfg.Topology()
	type answer struct {
		node cluster.NodeID
		all  []multiraft.Content
		err  error
	}
	nodes := append(r.members(g), r.cfg.Self)
	answers := make(chan answer, len(nodes))
	for _, n := range nodes {
		go func() {
			all, err := r.contentsOf(ctx, n, g)
			answers <- answer{n, all, err}
		}()
	}
	byID := map[cluster.ReplicaID]multiraft.Content{}
	failed := map[cluster.NodeID]error{}
	for range nodes { // each ends with ctx
		a := <-answers
		if a.err != nil && !errs.Is(a.err, errs.NotFound) {
			failed[a.node] = a.err
		}
		for _, c := range a.all {
			if old, ok := byID[c.ID]; !ok || old.State == multiraft.ReplicaAway {
				c.Member, c.Voter = c.Member || old.Member, c.Voter || old.Voter
				byID[c.ID] = c
			}
		}
	}
	for _, rep := range t.Groups[g].Replicas {
		c, ok := byID[rep.ID]
		if ok && c.State != multiraft.ReplicaAway {
			continue
		}
		if !ok {
			c = multiraft.Content{ReplicaStatus: multiraft.ReplicaStatus{ID: rep.ID, Member: true, Voter: rep.Voter, State: multiraft.ReplicaAway}}
		}
		c.Drive = rep.Drive
		if n, ok := nodeOf(t, r.cfg.Resolve, g, rep.ID); ok {
			c.Err = failed[n]
		}
		byID[rep.ID] = c
	}
	var out []multiraft.Content
	for _, c := range byID {
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b multiraft.Content) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}

func (r *Router) contentsOf(ctx context.Context, node cluster.NodeID, g cluster.GroupID) ([]multiraft.Content, error) {
	if node == r.cfg.Self {
		return r.cfg.Host.Contents(ctx, g)
	}
	m, err := r.at(node)
	if err != nil {
		return nil, err
	}
	ans, err := m.Contents(ctx, &nodepb.ContentsRequest{Group: uint64(g)})
	if err != nil {
		return nil, err
	}
	var out []multiraft.Content
	for _, pb := range ans.Replicas {
		out = append(out, multiraft.Content{ReplicaStatus: replicaFromPB(pb), Hash: pb.Hash})
	}
	return out, nil
}

// StatusOfAll asks all nodes of the topology for their groups, at the same time; nodes that do not answer are left out and
// named in the error.
func (r *Router) StatusOfAll(ctx context.Context) (map[cluster.NodeID][]multiraft.GroupStatus, error) {
	type answer struct {
		node   cluster.NodeID
		groups []multiraft.GroupStatus
		err    error
	}
	nodes := []cluster.NodeID{r.cfg.Self}
	for _, n := range r.cfg.Topology().SortedNodes() {
		if n.ID != r.cfg.Self {
			nodes = append(nodes, n.ID)
		}
	}
	answers := make(chan answer, len(nodes))
	for _, n := range nodes {
		go func() {
			ctx, cancel := context.WithTimeout(ctx, r.cfg.AnswerTimeout)
			defer cancel()
			groups, err := r.Status(ctx, n)
			answers <- answer{n, groups, err}
		}()
	}
	out := map[cluster.NodeID][]multiraft.GroupStatus{}
	var all []error
	for range nodes {
		a := <-answers
		if a.err != nil {
			all = append(all, errs.Wrap(errs.Unavailable, "metarpc.status", string(a.node), a.err))
			continue
		}
		out[a.node] = a.groups
	}
	return out, errors.Join(all...)
}
