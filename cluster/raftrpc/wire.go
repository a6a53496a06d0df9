package raftrpc

import (
	"errors"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/cluster/multiraft"
	"cairn/proto/nodepb"
	"cairn/storage/errs"
)

func fromEnvelope(e multiraft.Envelope, h raft.RPCHeader) *nodepb.RaftEnvelope {
	return &nodepb.RaftEnvelope{Group: uint64(e.Group), From: string(e.From), To: string(e.To), Protocol: uint32(h.ProtocolVersion)}
}

func toEnvelope(e *nodepb.RaftEnvelope) multiraft.Envelope {
	return multiraft.Envelope{Group: cluster.GroupID(e.GetGroup()), From: cluster.ReplicaID(e.GetFrom()), To: cluster.ReplicaID(e.GetTo())}
}

// header is what raft expects of a sender: its id and address are the replica id.
func header(protocol uint32, id string) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersion(protocol), ID: []byte(id), Addr: []byte(id)}
}

// fromAppend shares the entries' data, which raft does not change.
func fromAppend(e multiraft.Envelope, req *raft.AppendEntriesRequest) *nodepb.RaftAppend {
	m := &nodepb.RaftAppend{
		Envelope: fromEnvelope(e, req.RPCHeader), Term: req.Term,
		PrevIndex: req.PrevLogEntry, PrevTerm: req.PrevLogTerm, CommitIndex: req.LeaderCommitIndex,
	}
	if len(req.Entries) > 0 {
		entries := make([]nodepb.RaftEntry, len(req.Entries))
		m.Entries = make([]*nodepb.RaftEntry, len(req.Entries))
		for i, l := range req.Entries {
			w := &entries[i]
			w.Index, w.Term, w.Type, w.Data, w.Extensions = l.Index, l.Term, uint32(l.Type), l.Data, l.Extensions
			if !l.AppendedAt.IsZero() {
				w.AppendedUnixNs = l.AppendedAt.UnixNano()
			}
			m.Entries[i] = w
		}
	}
	return m
}

func toAppend(m *nodepb.RaftAppend) *raft.AppendEntriesRequest {
	from := m.Envelope.GetFrom()
	req := &raft.AppendEntriesRequest{
		RPCHeader: header(m.Envelope.GetProtocol(), from), Leader: []byte(from), Term: m.Term,
		PrevLogEntry: m.PrevIndex, PrevLogTerm: m.PrevTerm, LeaderCommitIndex: m.CommitIndex,
	}
	if len(m.Entries) > 0 {
		logs := make([]raft.Log, len(m.Entries))
		req.Entries = make([]*raft.Log, len(m.Entries))
		for i, w := range m.Entries {
			l := &logs[i]
			l.Index, l.Term, l.Type, l.Data, l.Extensions = w.Index, w.Term, raft.LogType(w.Type), w.Data, w.Extensions
			if w.AppendedUnixNs != 0 {
				l.AppendedAt = time.Unix(0, w.AppendedUnixNs)
			}
			req.Entries[i] = l
		}
	}
	return req
}

// heartbeat is the append without entries that stands for a beat.
func heartbeat(b *nodepb.RaftBeat) *raft.AppendEntriesRequest {
	from := b.Envelope.GetFrom()
	return &raft.AppendEntriesRequest{RPCHeader: header(b.Envelope.GetProtocol(), from), Leader: []byte(from), Term: b.Term}
}

// toReply is the answer to an append or a beat, or the error.
func (t *Transport) toReply(call uint64, id string, a *raft.AppendEntriesResponse, err error) *nodepb.RaftAppendReply {
	if err != nil {
		return &nodepb.RaftAppendReply{Call: call, Error: toError(err)}
	}
	return &nodepb.RaftAppendReply{Call: call, Answer: &nodepb.RaftAppended{
		Protocol: uint32(a.ProtocolVersion), Term: a.Term, LastIndex: a.LastLog, Success: a.Success, NoRetryBackoff: a.NoRetryBackoff,
		Space: uint32(t.cfg.Space(cluster.ReplicaID(id)))}}
}

func (t *Transport) fromReply(to cluster.ReplicaID, m *nodepb.RaftAppendReply) (*raft.AppendEntriesResponse, error) {
	a := m.Answer
	switch {
	case m.Error != nil:
		return nil, fromError(m.Error)
	case a == nil:
		return nil, errs.New(errs.Unavailable, "raftrpc.append", string(to), "an empty answer")
	}
	t.cfg.NoteSpace(to, multiraft.Space(min(a.Space, uint32(multiraft.SpaceLast))))
	return &raft.AppendEntriesResponse{RPCHeader: header(a.Protocol, string(to)), Term: a.Term, LastLog: a.LastIndex, Success: a.Success, NoRetryBackoff: a.NoRetryBackoff}, nil
}

// toError is an error in a stream, where it must not end the stream. Anything unknown is Unavailable: the message was not taken.
func toError(err error) *nodepb.Error {
	var e *errs.Error
	if !errors.As(err, &e) {
		e = errs.New(errs.Unavailable, "raftrpc.receive", "", err.Error())
	}
	valid := func(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
	return &nodepb.Error{Kind: uint32(e.Kind), Op: valid(e.Op), Subject: valid(e.Subject), Detail: valid(e.Detail)}
}

func fromError(e *nodepb.Error) error {
	k := errs.Kind(e.Kind)
	if k == errs.Gone {
		k = errs.Unavailable // Gone means something to the sender
	}
	return errs.New(k, e.Op, e.Subject, e.Detail)
}

func fromVote(e multiraft.Envelope, req *raft.RequestVoteRequest) *nodepb.RaftVote {
	return &nodepb.RaftVote{Envelope: fromEnvelope(e, req.RPCHeader), Term: req.Term,
		LastIndex: req.LastLogIndex, LastTerm: req.LastLogTerm, LeadershipTransfer: req.LeadershipTransfer}
}

func toVote(m *nodepb.RaftVote) *raft.RequestVoteRequest {
	from := m.Envelope.GetFrom()
	return &raft.RequestVoteRequest{RPCHeader: header(m.Envelope.GetProtocol(), from), Candidate: []byte(from), Term: m.Term,
		LastLogIndex: m.LastIndex, LastLogTerm: m.LastTerm, LeadershipTransfer: m.LeadershipTransfer}
}

func fromInstall(e multiraft.Envelope, req *raft.InstallSnapshotRequest) *nodepb.RaftInstall {
	return &nodepb.RaftInstall{Header: &nodepb.RaftInstallHeader{
		Envelope: fromEnvelope(e, req.RPCHeader), SnapshotVersion: uint32(req.SnapshotVersion), Term: req.Term,
		LastIndex: req.LastLogIndex, LastTerm: req.LastLogTerm,
		Configuration: req.Configuration, ConfigurationIndex: req.ConfigurationIndex,
	}}
}

func toInstall(h *nodepb.RaftInstallHeader) *raft.InstallSnapshotRequest {
	from := h.Envelope.GetFrom()
	return &raft.InstallSnapshotRequest{
		RPCHeader: header(h.Envelope.GetProtocol(), from), Leader: []byte(from),
		SnapshotVersion: raft.SnapshotVersion(h.SnapshotVersion), Term: h.Term,
		LastLogIndex: h.LastIndex, LastLogTerm: h.LastTerm,
		Configuration: h.Configuration, ConfigurationIndex: h.ConfigurationIndex,
	}
}
