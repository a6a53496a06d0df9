package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"cairn/cluster"
	"cairn/server/status"
)

// checkReplicas compares what the replicas of every group hold: a majority of
// the voters must be readable and the same, and every one that can be compared must be the same.
func (r *run) checkReplicas(ctx context.Context) error {
	all, err := r.cfg.Meta.Replicas(ctx)
	if err != nil {
		return err
	}
	groups := map[cluster.GroupID][]Replica{}
	for _, x := range all {
		groups[x.Group] = append(groups[x.Group], x)
	}
	r.count(func(c *counts) { c.groups, c.replicas = int64(len(groups)), int64(len(all)) })
	for _, g := range slices.Sorted(maps.Keys(groups)) {
		r.group(g, groups[g])
	}
	return nil
}

func (r *run) group(g cluster.GroupID, replicas []Replica) {
	type content struct {
		applied uint64
		hash    string
	}
	votes := map[content]int{}
	voters := 0
	for _, x := range replicas {
		if x.Voter {
			voters++
		}
		if x.Err != nil {
			r.problem(r.on(status.Problem{Kind: KindReplica, Detail: fmt.Sprintf("group %d: %v; it is replaced once its drive is", g, x.Err)}, x.Drive))
		} else if x.Voter {
			votes[content{x.Applied, string(x.Hash)}]++
		}
	}
	var best content
	for c, n := range votes {
		if n > votes[best] || n == votes[best] && c.applied > best.applied {
			best = c
		}
	}
	if votes[best] <= voters/2 {
		r.problem(status.Problem{Kind: KindReplica, Detail: fmt.Sprintf("group %d: no majority of its %d voters can be read and holds the same at one index; run the check again when less is written", g, voters)})
	}
	for _, x := range replicas {
		if x.Err == nil && x.Applied == best.applied && string(x.Hash) != best.hash {
			r.problem(r.on(status.Problem{Kind: KindReplica, Detail: fmt.Sprintf("group %d: at index %d it holds other rows than the majority: replace this drive", g, x.Applied)}, x.Drive))
		}
	}
}
