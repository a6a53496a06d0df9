package core

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/cluster/rpc"
	"cairn/proto/nodepb"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
)

// lookTimeout is how long another node may take to tell of itself.
const lookTimeout = time.Second

// look is what one node knows of itself. It goes to other nodes as JSON: names may be
// added, none changes its meaning.
type look struct {
	Drives    []status.Drive    `json:"drives"`
	Groups    []groupLook       `json:"groups"`
	Repaired  int64             `json:"repaired"`
	Repairing string            `json:"repairing,omitempty"`
	Version   string            `json:"version"`
	NotReady  string            `json:"not_ready,omitempty"`
	Lifecycle *status.Lifecycle `json:"lifecycle,omitempty"`

	Events []status.EventWorker `json:"events,omitempty"`
	lost   string               // why there is none
}

// groupLook is a Raft group as seen from one node, with the replicas there.
type groupLook struct {
	ID       cluster.GroupID   `json:"id"`
	Leader   cluster.ReplicaID `json:"leader,omitempty"`
	Leads    bool              `json:"leads,omitempty"` // the leader is there
	Term     uint64            `json:"term"`
	Replicas []replicaLook     `json:"replicas"`
}

type replicaLook struct {
	ID      cluster.ReplicaID `json:"id"`
	Drive   string            `json:"drive"` // zero if it is on another node
	Voter   bool              `json:"voter,omitempty"`
	State   string            `json:"state"` // multiraft.ReplicaState
	Applied uint64            `json:"applied"`
	Err     string            `json:"err,omitempty"`
}

// lookHere looks at this node.
func (c *Core) lookHere() *look {
	l := &look{Drives: c.drivesHere(), Version: c.env.Version}
	if err := c.Ready(); err != nil {
		l.NotReady = err.Error()
	}
	for _, g := range c.Groups.Status() {
		row := groupLook{ID: g.Group, Leader: g.Leader, Leads: g.Local, Term: g.Term}
		for _, r := range g.Replicas {
			if !r.Member {
				continue
			}
			rep := replicaLook{ID: r.ID, Drive: r.Drive.String(), Voter: r.Voter, State: string(r.State), Applied: r.Applied}
			if r.Err != nil {
				rep.Err = r.Err.Error()
			}
			row.Replicas = append(row.Replicas, rep)
		}
		l.Groups = append(l.Groups, row)
	}
	if c.made.Load() { // other nodes ask before
		l.Repaired, l.Repairing = c.repairing()
		lc := c.lifecycleHere()
		l.Lifecycle = &lc
		l.Events = c.Events.workersHere()
	}
	return l
}

// drivesHere are the drives of this node.
func (c *Core) drivesHere() (out []status.Drive) {
	for _, d := range c.Controller.DriveStatus() {
		row := status.Drive{
			ID: d.Drive.ID.String(), Node: string(d.Drive.Node), Zone: string(d.Drive.Zone), Path: d.Path, Label: d.Drive.Label,
			State: d.Drive.State.String(), Trouble: d.Trouble,
			BytesTotal: d.Stats.TotalBytes, BytesFree: d.Stats.FreeBytes, BytesLive: d.Stats.LiveBytes, BytesDead: d.Stats.DeadBytes,
			Shards: d.Stats.Shards, Extents: int64(d.Stats.Extents), BelowReserve: d.Stats.Full,
		}
		if d.Drive.ID.IsZero() {
			row.ID, row.State = "", "none"
		}
		if d.Drive.DownSinceMS != 0 {
			since := time.UnixMilli(d.Drive.DownSinceMS).UTC()
			row.DownSince = &since
		}
		out = append(out, row)
	}
	return out
}

// looks asks all nodes at once. One that does not answer in time has a look that says why.
func (c *Core) looks(ctx context.Context, t *cluster.Topology) map[cluster.NodeID]*look {
	all := map[cluster.NodeID]*look{c.nodeID(): c.lookHere()}
	if c.node == nil {
		return all
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var (
		mu sync.Mutex
		wg sync.WaitGroup
	)
	for id, n := range t.Nodes {
		if id == c.node.self || n.State == cluster.NodeRemoved {
			continue
		}
		wg.Go(func() {
			l, err := c.node.lookAt(ctx, id)
			if err != nil {
				l = &look{lost: err.Error()}
			}
			mu.Lock()
			defer mu.Unlock()
			all[id] = l
		})
	}
	wg.Wait()
	return all
}

func (n *node) lookAt(ctx context.Context, id cluster.NodeID) (*look, error) {
	conn, err := n.client.Conn(id, rpc.Meta)
	if err != nil {
		return nil, err
	}
	answer, err := nodepb.NewStatusClient(conn).Look(ctx, &nodepb.LookRequest{})
	if err != nil {
		return nil, err
	}
	l := &look{}
	return l, errs.Wrap(errs.Corrupt, "status", string(id), json.Unmarshal(answer.Json, l))
}

// lookServer tells other nodes of this one.
type lookServer struct {
	nodepb.UnimplementedStatusServer
	c *Core
}

func (s lookServer) Look(context.Context, *nodepb.LookRequest) (*nodepb.LookAnswer, error) {
	b, err := json.Marshal(s.c.lookHere())
	return &nodepb.LookAnswer{Json: b}, err
}

// nodeStatus tells of all nodes; nothing where this process is the whole store.
func (c *Core) nodeStatus(t *cluster.Topology, looks map[cluster.NodeID]*look) (out []status.Node) {
	for id, n := range t.Nodes {
		if n.State == cluster.NodeRemoved || c.node == nil {
			continue
		}
		row := status.Node{Name: string(id), Zone: string(n.Zone), State: n.State.String(), Addresses: n.Addresses, Version: n.Version}
		if l := looks[id]; l != nil {
			row.Trouble = l.NotReady
			if l.lost != "" {
				row.Trouble = "no answer: " + l.lost
			}
		}
		if n.Leaving {
			row.Trouble = strings.TrimPrefix(row.Trouble+"; "+leavingText(t, n), "; ")
		}
		if n.DownSinceMS != 0 {
			since := time.UnixMilli(n.DownSinceMS).UTC()
			row.DownSince = &since
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b status.Node) int { return strings.Compare(a.Zone+"\x00"+a.Name, b.Zone+"\x00"+b.Name) })
	return out
}

// leavingText says what still lies on a node that leaves.
func leavingText(t *cluster.Topology, n cluster.Node) string {
	mine := map[storage.DriveID]bool{}
	for id, d := range t.Drives {
		mine[id] = d.Node == n.ID && d.State != cluster.DriveRemoved
	}
	positions, copies := 0, 0
	for _, pg := range t.PGs {
		for i, id := range pg.Drives {
			if mine[id] || mine[pg.Previous[i]] {
				positions++
			}
		}
	}
	for _, g := range t.Groups {
		for _, r := range g.Replicas {
			if mine[r.Drive] {
				copies++
			}
		}
	}
	return fmt.Sprintf("leaving: %d positions in placement groups and %d copies of metadata are there still; what does not move has no other drive in zone %s to go to", positions, copies, n.Zone)
}

// driveStatus puts together what all nodes say of their drives, and what is recorded of the others.
func driveStatus(t *cluster.Topology, looks map[cluster.NodeID]*look) (out []status.Drive) {
	told := map[string]bool{}
	for id, l := range looks {
		for _, d := range l.Drives {
			if d.ID != "" && t.Drives[driveID(t, d.ID)].Node != id && len(t.Nodes) > 1 {
				continue // it was another node's, as recorded
			}
			told[d.ID] = true
			out = append(out, d)
		}
	}
	for _, d := range t.SortedDrives() {
		if !told[d.ID.String()] {
			out = append(out, status.Drive{ID: d.ID.String(), Node: string(d.Node), Zone: string(d.Zone), Path: d.Path, State: d.State.String()})
		}
	}
	slices.SortStableFunc(out, func(a, b status.Drive) int {
		return strings.Compare(a.Zone+"\x00"+a.Node+"\x00"+a.Path, b.Zone+"\x00"+b.Node+"\x00"+b.Path)
	})
	return out
}

func driveID(t *cluster.Topology, text string) (id storage.DriveID) {
	for id := range t.Drives {
		if id.String() == text {
			return id
		}
	}
	return id
}

// groupLooks puts together what all nodes say of the groups: each replica as its own node
// has it, leader and term as the newest term has them.
func groupLooks(t *cluster.Topology, looks map[cluster.NodeID]*look) []groupLook {
	all := map[cluster.GroupID]*groupLook{}
	for id, g := range t.Groups {
		row := &groupLook{ID: id}
		for _, r := range g.Replicas {
			row.Replicas = append(row.Replicas, replicaLook{ID: r.ID, Drive: r.Drive.String(), Voter: r.Voter, State: string(multiraft.ReplicaAway)})
		}
		all[id] = row
	}
	for _, l := range looks {
		for _, g := range l.Groups {
			row := all[g.ID]
			if row == nil {
				row = &groupLook{ID: g.ID}
				all[g.ID] = row
			}
			row.add(&g)
		}
	}
	out := make([]groupLook, 0, len(all))
	for _, g := range all {
		slices.SortFunc(g.Replicas, func(a, b replicaLook) int { return strings.Compare(string(a.ID), string(b.ID)) })
		out = append(out, *g)
	}
	slices.SortFunc(out, func(a, b groupLook) int { return int(a.ID) - int(b.ID) })
	return out
}

// add takes over what one node says of the group.
func (g *groupLook) add(seen *groupLook) {
	if seen.Term > g.Term || seen.Term == g.Term && (seen.Leads || g.Leader == "") {
		g.Term, g.Leader = seen.Term, seen.Leader
		g.Leads = seen.Leads || g.Leads && seen.Term == g.Term
	}
	for _, r := range seen.Replicas {
		if r.State == string(multiraft.ReplicaAway) {
			continue
		}
		i := slices.IndexFunc(g.Replicas, func(o replicaLook) bool { return o.ID == r.ID })
		if i < 0 {
			g.Replicas = append(g.Replicas, r)
			continue
		}
		g.Replicas[i] = r
	}
}
