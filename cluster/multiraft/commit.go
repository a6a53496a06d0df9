package multiraft

import (
	"context"

	"github.com/hashicorp/raft"

	"cairn/cluster"
)

// raft tells followers what is committed with the next entries, else only every CommitTimeout, idle or not. But what
// follows a group elsewhere (the topology, the birth of a range) should not wait for that: so after a heartbeat
// to a peer that has the whole log and does not know of the last commit it is told, once.

// tell notes what an acknowledged append said about commits: up to where the peer's log is known to be the leader's.
func (l *leadership) tell(id cluster.ReplicaID, req *raft.AppendEntriesRequest) {
	commit := min(req.LeaderCommitIndex, req.PrevLogEntry+uint64(len(req.Entries)))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.told[id] = max(l.mu.told[id], commit)
}

// tellCommit is called after a heartbeat that a peer acknowledged. It does not wait.
func (t *trans) tellCommit(l *leadership, id raft.ServerID, beat *raft.AppendEntriesRequest) {
	r, peer := t.r, cluster.ReplicaID(id)
	index, term := r.view.Last()
	commit := r.raft.CommitIndex()
	if index == 0 || r.peerHas(peer) != index || commit > index {
		return
	}
	l.mu.Lock()
	busy := l.mu.telling[peer] || l.mu.told[peer] >= commit
	if !busy {
		l.mu.telling[peer] = true
	}
	l.mu.Unlock()
	if busy {
		return
	}
	req := &raft.AppendEntriesRequest{
		RPCHeader: beat.RPCHeader, Leader: beat.Leader, Term: beat.Term,
		PrevLogEntry: index, PrevLogTerm: term, LeaderCommitIndex: commit, // not past PrevLogEntry: raft would believe it
	}
	r.spawn(func() {
		ctx, cancel := context.WithTimeout(l.ctx, r.h.cfg.HeartbeatTimeout)
		defer cancel()
		if to, e := t.route(id); to != nil && t.out() == nil {
			if a, err := to.AppendEntries(ctx, e, req); err == nil && a.Success {
				l.tell(peer, req)
			}
		}
		l.mu.Lock()
		l.mu.telling[peer] = false
		l.mu.Unlock()
	})
}
