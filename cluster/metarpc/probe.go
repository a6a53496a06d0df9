package metarpc

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/proto/nodepb"
)

// search asks all nodes with replicas of the group, at once, who leads it. The first
// that says so itself is believed; else one that others name, unless it left calls
// unanswered of late. If the topology does not know the group yet (a range just split off), or not the replica that leads it, all other nodes
// are asked. It runs in the caller's goroutine; the others wait for p.
func (r *Router) search(ctx context.Context, g cluster.GroupID, l *leader, p *probe) {
	members := r.members(g)
	node, unresolved := r.askAll(ctx, g, members)
	if node == "" && (unresolved || len(r.cfg.Topology().Groups[g].Replicas) == 0) {
		node, _ = r.askAll(ctx, g, r.strangers(members))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p.over, p.node, p.ended, p.gaveUp = true, node, time.Now(), node == "" && ctx.Err() != nil
	if l.node == "" {
		l.node = node
	}
	if p.gaveUp && l.probe == p {
		l.probe = nil // whoever waits begins anew
	}
	close(p.done)
}

type probeAnswer struct {
	from cluster.NodeID
	ans  *nodepb.LeaderAnswer
}

// askAll asks nodes. unresolved: one named a replica of which nobody knows where it is.
func (r *Router) askAll(ctx context.Context, g cluster.GroupID, nodes []cluster.NodeID) (leads cluster.NodeID, unresolved bool) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.ProbeTimeout)
	defer cancel()
	answers := make(chan probeAnswer)
	asked := 0
	for _, n := range nodes {
		cc, err := r.cfg.Conn(n)
		if err != nil {
			continue
		}
		asked++
		go r.ask(ctx, n, cc, g, answers)
	}
	var named, found cluster.NodeID
	var late <-chan time.Time
	half := (asked + 1) / 2
	for asked > 0 { // all are waited for: cancel makes them quick
		select {
		case a := <-answers:
			asked--
			if a.ans == nil || found != "" {
				continue
			}
			if a.ans.Here {
				found = a.from
				cancel()
				continue
			}
			node, known := r.namedBy(g, a.ans)
			if node != "" {
				named = node
			}
			unresolved = unresolved || !known
			if half--; half == 0 {
				timer := time.NewTimer(lateAnswers)
				defer timer.Stop()
				late = timer.C
			}
		case <-late:
			cancel()
		}
	}
	if found != "" {
		return found, false
	}
	return named, unresolved
}

// namedBy is the leader that another node named; empty if there is none to believe in. known is false if its node is not known.
func (r *Router) namedBy(g cluster.GroupID, ans *nodepb.LeaderAnswer) (node cluster.NodeID, known bool) {
	if ans.Replica == "" {
		return "", true
	}
	node = cluster.NodeID(ans.Node)
	if node == "" {
		node, _ = nodeOf(r.cfg.Topology(), r.cfg.Resolve, g, cluster.ReplicaID(ans.Replica))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if node == "" {
		return "", false
	}
	if node == r.cfg.Self || r.suspectLocked(node) {
		return "", true
	}
	return node, true
}

// lateAnswers is how long the second half of the nodes has to answer once the first half did.
const lateAnswers = 50 * time.Millisecond

func (r *Router) ask(ctx context.Context, n cluster.NodeID, cc grpc.ClientConnInterface, g cluster.GroupID, out chan<- probeAnswer) {
	ans, err := nodepb.NewMetaClient(cc).Leader(ctx, &nodepb.LeaderRequest{Group: uint64(g)})
	if err != nil {
		ans = nil
	}
	out <- probeAnswer{n, ans}
}

// strangersMax bounds the nodes that are asked for a group of which they may know nothing.
const strangersMax = 64

// strangers are other nodes that are up, those of this zone first.
func (r *Router) strangers(except []cluster.NodeID) []cluster.NodeID {
	t := r.cfg.Topology()
	zone := t.Nodes[r.cfg.Self].Zone
	var near, far []cluster.NodeID
	for _, n := range t.SortedNodes() {
		switch {
		case n.ID == r.cfg.Self || n.State != cluster.NodeActive || slices.Contains(except, n.ID):
		case n.Zone == zone:
			near = append(near, n.ID)
		default:
			far = append(far, n.ID)
		}
	}
	all := append(near, far...)
	return all[:min(len(all), strangersMax)]
}

// members are the other nodes with replicas of the group, voters' first and nearest first among them.
func (r *Router) members(g cluster.GroupID) []cluster.NodeID {
	t := r.cfg.Topology()
	zone := t.Nodes[r.cfg.Self].Zone
	type member struct {
		node cluster.NodeID
		rank int
	}
	var all []member
	for _, rep := range t.Groups[g].Replicas {
		n, ok := nodeOf(t, r.cfg.Resolve, g, rep.ID)
		if !ok || n == r.cfg.Self {
			continue
		}
		m := member{node: n}
		if !rep.Voter {
			m.rank = 2
		}
		if t.Drives[rep.Drive].Zone != zone {
			m.rank++
		}
		if i := slices.IndexFunc(all, func(o member) bool { return o.node == n }); i >= 0 {
			all[i].rank = min(all[i].rank, m.rank)
		} else {
			all = append(all, m)
		}
	}
	slices.SortStableFunc(all, func(a, b member) int { return a.rank - b.rank })
	var out []cluster.NodeID
	for _, m := range all {
		if m.rank < 2 || len(out) < 5 {
			out = append(out, m.node)
		}
	}
	return out
}
