package controller

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/sysstate"
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

func (c *Controller) noteErr(subject, line string) { c.note(subject, slog.LevelError, line) }

// catchUp completes what a node read of its own copy of the system group (t, err),
// which it may not have, or which may lag: past a moment the leader is asked.
func (c *Controller) catchUp(ctx context.Context, t *cluster.Topology, err error) (*cluster.Topology, error) {
	c.mu.Lock()
	l := c.mu.lease
	c.mu.Unlock()
	if err != nil {
		t = c.Topology()
	}
	if l.want <= t.Version {
		return t, nil
	}
	if err == nil && time.Since(l.wantAt) < 300*time.Millisecond {
		// The copy here gets it any moment.
		time.AfterFunc(300*time.Millisecond, func() { poke(c.poked) })
		return t, nil
	}
	next, err := c.askTopology(ctx, c.systemLeader())
	if err != nil {
		return t, nil // the next look asks again
	}
	if next.Version > t.Version {
		t = next
	}
	return t, nil
}

// mayGrow reports whether this node is to make placement groups for drives that joined: it
// leads the system group, and no more drives came for a while, so that they are planned together.
func (c *Controller) mayGrow(drives []cluster.Drive) bool {
	var set strings.Builder
	for _, d := range drives {
		set.WriteString(d.ID.String())
	}
	if set.String() != c.cl.drives {
		c.cl.drives, c.cl.grown = set.String(), time.Now()
	}
	_, leads := c.leadsSystem()
	return leads && time.Since(c.cl.grown) >= c.cfg.Cluster.GrowAfter
}

// notReadyNode is NotReady of a node of a cluster.
func (c *Controller) notReadyNode() string {
	c.mu.Lock()
	refusal := c.mu.lease.refusal
	c.mu.Unlock()
	switch {
	case refusal != "":
		return refusal
	case !c.connected():
		return "no contact with the leader of the system group: a majority of its voters, or the way to it, is missing"
	case c.Topology().Version == 0:
		return "the topology is not known yet"
	}
	for _, g := range c.cfg.Groups.Status() {
		if g.Leader == "" {
			if _, ok := c.Topology().Groups[g.Group]; ok && c.votesHere(g.Group) {
				return fmt.Sprintf("group %d of the metadata has no leader: too few of its copies can be reached", g.Group)
			}
		}
	}
	return ""
}

// votesHere reports whether a drive of this node holds a recorded replica of the group.
func (c *Controller) votesHere(g cluster.GroupID) bool {
	t := c.Topology()
	for _, r := range t.Groups[g].Replicas {
		if t.Drives[r.Drive].Node == c.cfg.Node {
			return true
		}
	}
	return false
}

// putCA records the certificate authority of a new store.
func (c *Controller) putCA(ctx context.Context) error {
	if len(c.cfg.Cluster.SealedCA) == 0 {
		return nil
	}
	return c.ReplaceCA(ctx, c.cfg.Cluster.SealedCA, nil)
}

// ReplaceCA records the cluster's certificate authority if the one recorded is old (nil: none). Conflict if it is another one.
func (c *Controller) ReplaceCA(ctx context.Context, sealed, old []byte) error {
	_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_PutCa{PutCa: &metapb.PutCAOp{Sealed: sealed, IfSealed: old}}})
	return err
}

// CA is the cluster's certificate authority as this node's copy of the system group has
// it: sealed. Errors: NotFound, Unavailable without a copy (ask another node).
func (c *Controller) CA() (sealed []byte, err error) {
	err = c.cfg.Groups.ReadLocal(cluster.SystemGroup, func(r pebble.Reader) (err error) {
		sealed, err = sysstate.CA(r)
		return err
	})
	return sealed, err
}

// NewToken has a join token recorded under its id (16 to 64 bytes, a hash of what
// the joining node will show). It lets in one node within its life, at most 30 days.
func (c *Controller) NewToken(ctx context.Context, id []byte, life time.Duration) error {
	_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_PutToken{PutToken: &metapb.PutTokenOp{Id: id, LivesMs: life.Milliseconds()}}})
	return err
}

// Joining is a node that wants to become a member.
type Joining struct {
	Token     []byte // its id
	Key       []byte // names the key that it will act with, so that a repeat is known: a hash, at most 255 bytes
	Node      cluster.NodeID
	Zone      cluster.Zone
	Addresses []string
	Version   string
}

// Admit makes a node a member, once for each token; a repeat by the same node with the same key is fine.
// It answers all members. Errors: AccessDenied (the token), Conflict (the name), InvalidArgument, Unavailable.
func (c *Controller) Admit(ctx context.Context, j Joining) ([]cluster.Node, error) {
	if strings.ContainsAny(string(j.Node), "/\\ \t\r\n") || strings.ContainsAny(string(j.Zone), "/\\ \t\r\n") {
		return nil, errs.Newf(errs.InvalidArgument, "join", string(j.Node), "names of nodes and zones have no spaces and slashes")
	}
	_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_AddNode{AddNode: &metapb.AddNodeOp{Token: j.Token, Node: &metapb.SysNode{
		Id: string(j.Node), Zone: string(j.Zone), Addresses: j.Addresses, Version: j.Version, JoinKey: j.Key,
	}}}})
	if err != nil {
		return nil, err
	}
	t, err := c.readTopology(ctx)
	if err != nil {
		return nil, err
	}
	nodes := t.SortedNodes()
	for i := range nodes {
		nodes[i].Addresses = c.Addresses(nodes[i].ID)
	}
	return nodes, nil
}

// Leave asks a node to leave, or to stay after all. What lies there is moved to others
// as far as they have room; then the node is removed (Topology.Nodes says so).
func (c *Controller) Leave(ctx context.Context, node cluster.NodeID, leaving bool) error {
	_, err := c.sys(ctx, &metapb.SysCommand{Op: &metapb.SysCommand_LeaveNode{LeaveNode: &metapb.LeaveNodeOp{Node: string(node), Leaving: leaving}}})
	return err
}
