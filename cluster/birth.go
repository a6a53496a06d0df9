package cluster

import "cairn/storage"

// Birth is what a committed split says about a new group: which replica of the parent gives birth to which of the
// child's. Only that one ever does, and only once, so no replica id acts in two incarnations.
type Birth struct {
	Child    GroupID
	Replicas []ChildReplica
}

// ChildReplica is a replica of a child and the parent's replica on the same drive that gives birth to it.
type ChildReplica struct {
	Parent, Child ReplicaID
	Drive         storage.DriveID // as the proposer knew it; zero if it did not
	Voter         bool
}

// Of is the child's replica that the parent's replica gives birth to; ok is false if there is none.
func (b *Birth) Of(parent ReplicaID) (c ChildReplica, ok bool) {
	for _, r := range b.Replicas {
		if r.Parent == parent {
			return r, true
		}
	}
	return c, false
}
