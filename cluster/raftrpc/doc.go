// Package raftrpc carries the Raft messages of package multiraft between nodes by gRPC: it is a multiraft.Transport,
// and the service (proto/nodepb/raft.proto) that hands on what comes to the replicas here.
//
// To each node there is one stream for appends, on which the messages of all groups overtake each other, and one for
// heartbeats. The heartbeats of all groups to a node wait for the next tick (Config.BeatWindow) and go as one
// message; they are handled at the same time there and answered together, except those that take long. So a quiet
// node costs its peers at most one small message in a tick. Votes and the like are ordinary calls.
//
// A snapshot is a stream of its own: the receiver says when it has a place for it (few are received at
// a time), takes chunks with checksums as fast as its disk does, and tells now and then that it
// is still at it. Both sides give up when nothing moves for Config.StallTimeout.
//
// Appends wait, and are sent again, while the peer or the replica there is away: raft would back off for long. Everything else
// fails at once or by its deadline, with errs.Unavailable.
//
// A receiver takes messages of a replica only from the node that the replica belongs to, if it knows that.
// The clocks of other nodes are compared with this one's on the way (Config.Clock).
package raftrpc
