package metarpc

import (
	"slices"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

func groupToPB(g *multiraft.GroupStatus) *nodepb.GroupState {
	pb := &nodepb.GroupState{Group: uint64(g.Group), Leader: string(g.Leader), Local: g.Local, Term: g.Term}
	for i := range g.Replicas {
		pb.Replicas = append(pb.Replicas, replicaToPB(&g.Replicas[i]))
	}
	return pb
}

func groupFromPB(pb *nodepb.GroupState) multiraft.GroupStatus {
	g := multiraft.GroupStatus{Group: cluster.GroupID(pb.Group), Leader: cluster.ReplicaID(pb.Leader), Local: pb.Local, Term: pb.Term}
	for _, r := range pb.Replicas {
		g.Replicas = append(g.Replicas, replicaFromPB(r))
	}
	return g
}

func replicaToPB(r *multiraft.ReplicaStatus) *nodepb.ReplicaStatus {
	pb := &nodepb.ReplicaStatus{Id: string(r.ID), Member: r.Member, Voter: r.Voter, Applied: r.Applied, State: string(r.State), Err: errorToPB(r.Err)}
	if !r.Drive.IsZero() {
		pb.Drive = slices.Clone(r.Drive[:])
	}
	return pb
}

func replicaFromPB(pb *nodepb.ReplicaStatus) multiraft.ReplicaStatus {
	r := multiraft.ReplicaStatus{
		ID: cluster.ReplicaID(pb.Id), Member: pb.Member, Voter: pb.Voter, Applied: pb.Applied,
		State: multiraft.ReplicaState(pb.State), Err: errorFromPB(pb.Err),
	}
	if len(pb.Drive) == len(storage.DriveID{}) {
		copy(r.Drive[:], pb.Drive)
	}
	return r
}

// errorToPB carries an error that is part of an answer.
func errorToPB(err error) *nodepb.Error {
	if err == nil {
		return nil
	}
	return &nodepb.Error{Kind: uint32(errs.KindOf(err)), Detail: err.Error()}
}

func errorFromPB(pb *nodepb.Error) error {
	if pb == nil {
		return nil
	}
	return &errs.Error{Kind: errs.Kind(pb.Kind), Op: pb.Op, Subject: pb.Subject, Detail: pb.Detail}
}
