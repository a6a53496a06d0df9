// Package metarpc carries the metadata plane over the network. A Server answers for
// the groups that this node leads; a Router finds the leader of a group, here or
// elsewhere, and asks it.
//
// Nothing is forwarded twice: a node that does not lead answers NotLeader and names the
// leader if it knows it, and the caller goes there. Questions are typed, and every answer is
// linearizable by itself and bounded; only Walk and Counters, which have no bound, are streams,
// each over one snapshot at the leader.
package metarpc
