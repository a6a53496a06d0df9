package sysstate

import (
	"bytes"
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

const (
	nodesMax       = 1024 // of a store, removed ones included
	tokensMax      = 1024 // recorded at once
	addressesMax   = 16   // of a node
	tokenBytesMin  = 16
	tokenBytesMax  = 64
	sealedBytesMax = 1 << 20
	incarnationLen = 16
	tokenLivesMax  = 30 * 24 * 3600 * 1000 // ms
)

// runNodes runs the commands about nodes and their replicas.
func (t *tx) runNodes() error {
	switch op := t.cmd.Op.(type) {
	case *metapb.SysCommand_AddNode:
		return t.addNode(op.AddNode)
	case *metapb.SysCommand_NodeStarted:
		return t.nodeStarted(op.NodeStarted)
	case *metapb.SysCommand_NodesDown:
		return t.nodesDown(op.NodesDown.GetNodes())
	case *metapb.SysCommand_LeaveNode:
		return t.leaveNode(op.LeaveNode)
	case *metapb.SysCommand_RemoveNode:
		return t.removeNode(op.RemoveNode.GetNode())
	case *metapb.SysCommand_PutToken:
		return t.putToken(op.PutToken)
	case *metapb.SysCommand_PutCa:
		return t.putCA(op.PutCa)
	case *metapb.SysCommand_SetReplicas:
		return t.setReplicas(op.SetReplicas)
	case *metapb.SysCommand_ReplicaLost:
		return t.replicaLost(op.ReplicaLost)
	}
	return refuse(errs.InvalidRequest, "the command names no operation")
}

func newNode() *metapb.SysNode { return &metapb.SysNode{} }

func checkAddresses(node string, addrs []string) error {
	if len(addrs) > addressesMax || slices.ContainsFunc(addrs, func(a string) bool { return a == "" || len(a) > nameBytesMax }) {
		return refuse(errs.InvalidArgument, "node %q: at most %d addresses of at most %d bytes", node, addressesMax, nameBytesMax)
	}
	return nil
}

func checkNode(n *metapb.SysNode) error {
	if n.GetId() == "" || n.Zone == "" || len(n.Id) > nameBytesMax || len(n.Zone) > nameBytesMax || len(n.Version) > nameBytesMax || len(n.JoinKey) > nameBytesMax {
		return refuse(errs.InvalidArgument, "a node needs a name and a zone of at most %d bytes", nameBytesMax)
	}
	if len(n.Incarnation) != 0 && len(n.Incarnation) != incarnationLen {
		return refuse(errs.InvalidArgument, "an incarnation has %d bytes", incarnationLen)
	}
	return checkAddresses(n.Id, n.Addresses)
}

func checkBirthNodes(op *metapb.InitStoreOp) error {
	if len(op.Nodes) > nodesMax || len(op.SealedCa) > sealedBytesMax {
		return refuse(errs.InvalidArgument, "too many nodes, or the certificate authority is too large")
	}
	for _, n := range op.Nodes {
		if err := checkNode(n); err != nil {
			return err
		}
	}
	return nil
}

// birthNodes writes the rows of a new store's first nodes, and its certificate authority.
func (t *tx) birthNodes(op *metapb.InitStoreOp) error {
	for _, n := range op.Nodes {
		n = n.CloneVT()
		n.State, n.DownSinceMs, n.JoinedMs, n.Leaving = uint32(cluster.NodeActive), 0, t.now, false
		if err := put(t.b, nodeKey(n.Id), n); err != nil {
			return err
		}
	}
	if len(op.SealedCa) == 0 {
		return nil
	}
	return put(t.b, key(kindCA), &metapb.SysCA{Format: 1, Sealed: op.SealedCa})
}

// node reads a node's row; nil if there is none.
func (t *tx) node(id string) (*metapb.SysNode, error) {
	n := &metapb.SysNode{}
	if ok, err := get(t.b, nodeKey(id), n); err != nil || !ok {
		return nil, err
	}
	return n, nil
}

// member is node with a refusal for unknown and removed ones.
func (t *tx) member(id string) (*metapb.SysNode, error) {
	n, err := t.node(id)
	switch {
	case err != nil:
		return nil, err
	case n == nil:
		return nil, refuse(errs.NotFound, "node %q is not of this cluster: let it join with a token", id)
	case n.State == uint32(cluster.NodeRemoved):
		return nil, refuse(errs.Foreign, "node %q was removed from this cluster: empty its data folder and let it join anew", id)
	}
	return n, nil
}

// hostable refuses a drive whose node is not one of the cluster, or not there. A store of one process records no nodes.
func (t *tx) hostable(d *metapb.SysDrive, fresh bool) error {
	start, end := kindSpan(kindNode)
	any := false
	err := scan(t.b, start, end, func(_, _ []byte) (bool, error) {
		any = true
		return false, nil
	})
	if err != nil || !any {
		return err
	}
	n, err := t.member(d.Node)
	switch {
	case err != nil:
		return err
	case n.Zone != d.Zone:
		return refuse(errs.Conflict, "node %s stands in zone %s, and so do its drives, not in zone %s", n.Id, n.Zone, d.Zone)
	case fresh && n.Leaving:
		return refuse(errs.Conflict, "node %s is leaving: it gets no new drive", n.Id)
	}
	return nil
}

func (t *tx) addNode(op *metapb.AddNodeOp) error {
	n := op.GetNode()
	if err := checkNode(n); err != nil {
		return err
	}
	if n.Zone == "" || len(n.JoinKey) == 0 {
		return refuse(errs.InvalidArgument, "a joining node names its zone and its key")
	}
	cur, err := t.node(n.Id)
	if err != nil {
		return err
	}
	tok := &metapb.SysToken{}
	known, err := get(t.b, tokenKey(op.Token), tok)
	if err != nil {
		return err
	}
	repeat := cur != nil && cur.State != uint32(cluster.NodeRemoved) && cur.Zone == n.Zone && bytes.Equal(cur.JoinKey, n.JoinKey)
	switch {
	case !known:
		return refuse(errs.AccessDenied, "the join token is not known here, or expired: make a new one")
	case tok.UsedBy == n.Id && repeat:
		return nil // the answer was lost
	case tok.UsedBy != "":
		return refuse(errs.AccessDenied, "the join token was used by node %q before: make a new one, it lets in one node", tok.UsedBy)
	case tok.ExpiresMs <= t.now:
		return refuse(errs.AccessDenied, "the join token has expired: make a new one")
	case cur != nil && cur.State != uint32(cluster.NodeRemoved):
		return refuse(errs.Conflict, "there is a node %q already, in zone %s: choose another name; if it is this one, start it with the data folder it had", n.Id, cur.Zone)
	}
	count := 0
	if err := rows(t.b, kindNode, newNode, func(*metapb.SysNode) error { count++; return nil }); err != nil {
		return err
	}
	if cur == nil && count >= nodesMax {
		return refuse(errs.InvalidArgument, "a cluster has at most %d nodes, removed ones included", nodesMax)
	}
	tok.UsedBy, tok.UsedMs = n.Id, t.now
	if err := put(t.b, tokenKey(op.Token), tok); err != nil {
		return err
	}
	n = n.CloneVT()
	// Down until its process has shown up, so that nobody waits for it.
	n.State, n.DownSinceMs, n.JoinedMs, n.Leaving, n.Incarnation = uint32(cluster.NodeDown), t.now, t.now, false, nil
	t.moved = true
	return put(t.b, nodeKey(n.Id), n)
}

func (t *tx) nodeStarted(op *metapb.NodeStartedOp) error {
	n, err := t.member(op.GetNode())
	if err != nil {
		return err
	}
	switch {
	case len(op.Incarnation) != incarnationLen || len(op.Version) > nameBytesMax:
		return refuse(errs.InvalidArgument, "a process needs an incarnation of %d bytes", incarnationLen)
	case n.Zone != op.Zone:
		return refuse(errs.Conflict, "node %s belongs to zone %s, where its data was placed, and is configured with zone %s: correct the zone, or let it join under another name with empty drives", n.Id, n.Zone, op.Zone)
	case !bytes.Equal(n.Incarnation, op.Incarnation) && !bytes.Equal(n.Incarnation, op.IfIncarnation):
		return refuse(errs.Conflict, "another process has begun to act as node %s", n.Id)
	}
	if err := checkAddresses(n.Id, op.Addresses); err != nil {
		return err
	}
	if n.State == uint32(cluster.NodeActive) && bytes.Equal(n.Incarnation, op.Incarnation) && slices.Equal(n.Addresses, op.Addresses) && n.Version == op.Version {
		return nil
	}
	n.State, n.DownSinceMs = uint32(cluster.NodeActive), 0
	n.Incarnation, n.Addresses, n.Version = op.Incarnation, op.Addresses, op.Version
	t.moved = true
	return put(t.b, nodeKey(n.Id), n)
}

func (t *tx) nodesDown(refs []*metapb.NodeRef) error {
	if len(refs) > nodesMax {
		return refuse(errs.InvalidArgument, "at most %d nodes at once", nodesMax)
	}
	down := map[string]bool{}
	for _, r := range refs {
		n, err := t.node(r.GetNode())
		if err != nil {
			return err
		}
		if n == nil || n.State != uint32(cluster.NodeActive) || !bytes.Equal(n.Incarnation, r.Incarnation) {
			continue // another process has come
		}
		n.State, n.DownSinceMs = uint32(cluster.NodeDown), t.now
		if err := put(t.b, nodeKey(n.Id), n); err != nil {
			return err
		}
		down[n.Id] = true
	}
	if len(down) == 0 {
		return nil
	}
	t.moved = true
	var ds []*metapb.SysDrive
	err := rows(t.b, kindDrive, func() *metapb.SysDrive { return &metapb.SysDrive{} }, func(d *metapb.SysDrive) error {
		if down[d.Node] && d.State == uint32(cluster.DriveActive) {
			ds = append(ds, d)
		}
		return nil
	})
	if err != nil || len(ds) == 0 {
		return err
	}
	return t.setDrives(ds, cluster.DriveDown)
}

func (t *tx) leaveNode(op *metapb.LeaveNodeOp) error {
	n, err := t.member(op.GetNode())
	if err != nil || n.Leaving == op.Leaving {
		return err
	}
	n.Leaving = op.Leaving
	t.moved = true
	return put(t.b, nodeKey(n.Id), n)
}

func (t *tx) removeNode(id string) error {
	n, err := t.node(id)
	switch {
	case err != nil:
		return err
	case n == nil:
		return refuse(errs.NotFound, "node %q is not of this cluster", id)
	case n.State == uint32(cluster.NodeRemoved):
		return nil
	case !n.Leaving:
		return refuse(errs.Conflict, "node %s has not been asked to leave", id)
	}
	mine := map[string]*metapb.SysDrive{}
	err = rows(t.b, kindDrive, func() *metapb.SysDrive { return &metapb.SysDrive{} }, func(d *metapb.SysDrive) error {
		if d.Node == id && d.State != uint32(cluster.DriveRemoved) {
			mine[string(d.Id)] = d
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = rows(t.b, kindPG, func() *metapb.SysPG { return &metapb.SysPG{} }, func(pg *metapb.SysPG) error {
		for i := range pg.Drives {
			if mine[string(pg.Drives[i])] != nil || i < len(pg.Previous) && mine[string(pg.Previous[i])] != nil {
				return refuse(errs.Conflict, "placement group %d has shards on node %s", pg.Id, id)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = rows(t.b, kindGroup, func() *metapb.SysGroup { return &metapb.SysGroup{} }, func(g *metapb.SysGroup) error {
		for _, r := range g.Replicas {
			if mine[string(r.Drive)] != nil {
				return refuse(errs.Conflict, "group %d has a copy of its metadata on node %s", g.Id, id)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range mine {
		d.State, d.DownSinceMs = uint32(cluster.DriveRemoved), 0
		if err := put(t.b, driveKey(d.Id), d); err != nil {
			return err
		}
	}
	n.State, n.DownSinceMs, n.Addresses, n.Incarnation, n.JoinKey = uint32(cluster.NodeRemoved), 0, nil, nil, nil
	t.moved = true
	return put(t.b, nodeKey(id), n)
}

// putToken records a token and drops those that are over: used ones are kept for as long as they would have lived.
func (t *tx) putToken(op *metapb.PutTokenOp) error {
	if len(op.GetId()) < tokenBytesMin || len(op.Id) > tokenBytesMax || op.LivesMs <= 0 || op.LivesMs > tokenLivesMax {
		return refuse(errs.InvalidArgument, "a token needs an id of %d to %d bytes and a life of at most 30 days", tokenBytesMin, tokenBytesMax)
	}
	start, end := kindSpan(kindToken)
	var over [][]byte
	live, again := 0, false
	err := scan(t.b, start, end, func(k, v []byte) (bool, error) {
		tok := &metapb.SysToken{}
		if err := tok.UnmarshalVT(v); err != nil {
			return false, corrupt(k, err)
		}
		if tok.ExpiresMs <= t.now {
			over = append(over, slices.Clone(k))
			return true, nil
		}
		live++
		again = again || bytes.Equal(tok.Id, op.Id)
		return true, nil
	})
	switch {
	case err != nil:
		return err
	case again:
		return refuse(errs.Conflict, "the token is known already")
	case live >= tokensMax:
		return refuse(errs.Busy, "there are %d join tokens: wait until some expire", live)
	}
	for _, k := range over {
		if err := t.b.Delete(k, nil); err != nil {
			return err
		}
	}
	return put(t.b, tokenKey(op.Id), &metapb.SysToken{Id: op.Id, ExpiresMs: t.now + op.LivesMs})
}

func (t *tx) putCA(op *metapb.PutCAOp) error {
	if len(op.GetSealed()) == 0 || len(op.Sealed) > sealedBytesMax {
		return refuse(errs.InvalidArgument, "a certificate authority has 1 to %d bytes", sealedBytesMax)
	}
	cur := &metapb.SysCA{}
	if _, err := get(t.b, key(kindCA), cur); err != nil {
		return err
	}
	if bytes.Equal(cur.Sealed, op.Sealed) {
		return nil
	}
	if !bytes.Equal(cur.Sealed, op.IfSealed) {
		return refuse(errs.Conflict, "the cluster's certificate authority is another one")
	}
	return put(t.b, key(kindCA), &metapb.SysCA{Format: 1, Sealed: op.Sealed})
}

// group reads a group's row.
func (t *tx) group(id uint64) (*metapb.SysGroup, error) {
	g := &metapb.SysGroup{}
	ok, err := get(t.b, groupKey(id), g)
	if err == nil && !ok {
		err = refuse(errs.NotFound, "group %d is not recorded", id)
	}
	return g, err
}

func (t *tx) setReplicas(op *metapb.SetReplicasOp) error {
	g, err := t.group(op.GetGroup())
	if err != nil {
		return err
	}
	was := g.Members
	next := g.CloneVT()
	next.Replicas = op.Replicas
	known := func(id storage.DriveID) error {
		d, err := t.drive(id[:])
		if err == nil && d == nil {
			err = refuse(errs.NotFound, "drive %s is not of this store", id)
		}
		return err
	}
	if err := checkGroup(next, known); err != nil {
		return err
	}
	if next.EqualVT(g) {
		return nil
	}
	if was != op.IfMembers {
		return refuse(errs.Conflict, "the replicas of group %d were changed since", g.Id)
	}
	next.Members++
	t.moved = true
	return put(t.b, groupKey(g.Id), next)
}

func (t *tx) replicaLost(op *metapb.ReplicaLostOp) error {
	g, err := t.group(op.GetGroup())
	if err != nil {
		return err
	}
	for _, r := range g.Replicas {
		if r.Id == op.Replica && !r.Lost {
			r.Lost = true
			g.Members++
			t.moved = true
			return put(t.b, groupKey(g.Id), g)
		}
	}
	return nil
}

// NodeFromRow decodes a node.
func NodeFromRow(n *metapb.SysNode) cluster.Node {
	return cluster.Node{
		ID: cluster.NodeID(n.Id), Zone: cluster.Zone(n.Zone), Addresses: n.Addresses,
		State: cluster.NodeState(n.State), DownSinceMS: n.DownSinceMs, Version: n.Version, Leaving: n.Leaving,
	}
}

// Nodes are all nodes' rows by name, removed ones included.
func Nodes(r pebble.Reader) (out []*metapb.SysNode, err error) {
	err = rows(r, kindNode, newNode, func(n *metapb.SysNode) error {
		out = append(out, n)
		return nil
	})
	return out, err
}

// Node is a node's row. NotFound if there is none.
func Node(r pebble.Reader, id cluster.NodeID) (*metapb.SysNode, error) {
	n := &metapb.SysNode{}
	ok, err := get(r, nodeKey(string(id)), n)
	if err == nil && !ok {
		err = errs.Newf(errs.NotFound, "sysstate", "node "+string(id), "not of this cluster")
	}
	return n, err
}

// CA is the cluster's certificate authority as it was put there: sealed, opaque. NotFound if there is none.
func CA(r pebble.Reader) ([]byte, error) {
	c := &metapb.SysCA{}
	ok, err := get(r, key(kindCA), c)
	if err == nil && !ok {
		err = errs.New(errs.NotFound, "sysstate", "certificate authority", "this cluster has none")
	}
	return c.Sealed, err
}

// EncodeTopology writes the topology down for a node that has no copy of the system
// group, as of one moment. NotFound before the store is born.
func EncodeTopology(r pebble.Reader) ([]byte, error) {
	r, done := frozen(r)
	defer done()
	st, err := Store(r)
	if err != nil {
		return nil, err
	}
	out := &metapb.SysTopology{Store: st}
	if out.Nodes, err = Nodes(r); err != nil {
		return nil, err
	}
	err = errors.Join(
		rows(r, kindDrive, func() *metapb.SysDrive { return &metapb.SysDrive{} }, func(d *metapb.SysDrive) error {
			out.Drives = append(out.Drives, d)
			return nil
		}),
		rows(r, kindPG, func() *metapb.SysPG { return &metapb.SysPG{} }, func(pg *metapb.SysPG) error {
			out.Pgs = append(out.Pgs, pg)
			return nil
		}),
		rows(r, kindGroup, func() *metapb.SysGroup { return &metapb.SysGroup{} }, func(g *metapb.SysGroup) error {
			out.Groups = append(out.Groups, g)
			return nil
		}))
	if err != nil {
		return nil, err
	}
	return out.MarshalVT()
}

// DecodeTopology reads what EncodeTopology wrote. Error: Corrupt.
func DecodeTopology(data []byte) (*cluster.Topology, error) {
	in := &metapb.SysTopology{}
	if err := in.UnmarshalVT(data); err != nil {
		return nil, errs.Wrap(errs.Corrupt, "sysstate", "topology", err)
	}
	t := emptyTopology(in.GetStore().GetVersion(), in.GetStore().GetId())
	for _, n := range in.Nodes {
		c := NodeFromRow(n)
		t.Nodes[c.ID] = c
	}
	for _, d := range in.Drives {
		c, err := driveFromRow(d)
		if err != nil {
			return nil, err
		}
		t.Drives[c.ID] = c
	}
	for _, pg := range in.Pgs {
		c, err := PGFromRow(pg)
		if err != nil {
			return nil, err
		}
		t.PGs[c.ID] = c
	}
	for _, g := range in.Groups {
		c, err := GroupFromRow(g)
		if err != nil {
			return nil, err
		}
		t.Groups[c.ID] = c
	}
	return t, nil
}
