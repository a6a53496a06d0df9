package splitter

import (
	"context"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

// Comparing bounds (design rule 13): the leader has all replicas hash theirs at one index; each process tells, by a
// command, what its replicas found, and a replica that learns that most voters found something else stops.

// check begins a comparison.
func (s *Splitter) check(ctx context.Context, g cluster.GroupID) error {
	_, members, err := s.cfg.Host.Configuration(g)
	if err != nil {
		return err
	}
	op := &metapb.CheckBoundsOp{}
	for _, m := range members {
		if m.Voter {
			op.Voters = append(op.Voters, string(m.ID))
		}
	}
	_, err = s.cfg.Meta.DoGroup(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_CheckBounds{CheckBounds: op}})
	return err
}

// tell proposes what the replicas here found in the last check, once.
func (s *Splitter) tell(ctx context.Context, g cluster.GroupID, t *tally) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var news []*metapb.JudgeBoundsOp
	told := map[cluster.ReplicaID]string{} // without those that are gone
	err := s.cfg.Host.EachReplica(g, func(id cluster.ReplicaID, r pebble.Reader) error {
		row, err := rangestate.LastCheck(r, g)
		if err != nil || len(row.Check) == 0 {
			return err
		}
		if t.told[id] == string(row.Check) {
			told[id] = t.told[id]
		} else {
			news = append(news, &metapb.JudgeBoundsOp{Check: row.Check, Hash: row.Hash, Replica: string(id)})
		}
		return nil
	})
	if errs.Is(err, errs.Unavailable) {
		return nil // it is stopping
	}
	if err != nil {
		return err
	}
	t.told = told
	for _, op := range news {
		_, err = s.cfg.Meta.DoGroup(ctx, g, &metapb.RangeCommand{Op: &metapb.RangeCommand_JudgeBounds{JudgeBounds: op}})
		if err != nil && !errs.Is(err, errs.Conflict) {
			return err
		}
		told[cluster.ReplicaID(op.Replica)] = string(op.Check)
	}
	return nil
}
