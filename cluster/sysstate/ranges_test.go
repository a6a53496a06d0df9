package sysstate

import (
	"testing"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage/errs"
)

func (s *sim) sys(op func(*metapb.SysCommand)) *metapb.SysResult {
	s.t.Helper()
	s.n++
	cmd := &metapb.SysCommand{Version: 1, Id: cid(1_000_000 + s.n), IssuedMs: s.ms}
	op(cmd)
	return s.apply(cmd)
}

func (s *sim) putRanges(ranges ...*metapb.SysGroup) *metapb.SysResult {
	s.t.Helper()
	return s.sys(func(c *metapb.SysCommand) {
		c.Op = &metapb.SysCommand_PutRanges{PutRanges: &metapb.PutRangesOp{Ranges: ranges}}
	})
}

func TestRangesOfSplits(t *testing.T) {
	s := newSim(t)
	var ids []uint64
	for range 2 {
		res := s.sys(func(c *metapb.SysCommand) { c.Op = &metapb.SysCommand_NewGroup{NewGroup: &metapb.NewGroupOp{}} })
		if !res.Ok || res.Group == 0 {
			t.Fatal(res)
		}
		ids = append(ids, res.Group)
	}
	if ids[0] == ids[1] || ids[0] != 3 {
		t.Fatal("given out", ids)
	}
	at := func(key string) *metapb.PosPB { return &metapb.PosPB{Bucket: 1, Key: []byte(key)} }
	voter := []*metapb.SysReplica{{Id: "g3-1", Drive: did(1), Voter: true}}
	if res := s.putRanges(&metapb.SysGroup{Id: 2, End: at("m"), Generation: 2}, &metapb.SysGroup{Id: 3, Start: at("m"), Generation: 1, Replicas: voter}); !res.Ok {
		t.Fatal(res)
	}
	group := func(id cluster.GroupID) cluster.Group {
		t.Helper()
		top, err := Topology(s.db)
		if err != nil {
			t.Fatal(err)
		}
		return top.Groups[id]
	}
	if g := group(2); g.Bounds.End.Key != "m" || g.Generation != 2 || len(g.Replicas) != 1 {
		t.Error(g)
	}
	if g := group(3); g.Bounds.Start.Key != "m" || len(g.Replicas) != 1 || g.Bounds.End != (cluster.Pos{}) {
		t.Error(g)
	}
	// What is older comes too late, and recording replicas does not bring old bounds back.
	version := s.putRanges(&metapb.SysGroup{Id: 2, End: at("z"), Generation: 1}).Version
	if !s.sys(func(c *metapb.SysCommand) {
		c.Op = &metapb.SysCommand_PutGroup{PutGroup: &metapb.PutGroupOp{Group: &metapb.SysGroup{Id: 2, Replicas: []*metapb.SysReplica{{Id: "g2-9", Drive: did(2), Voter: true}}}}}
	}).Ok {
		t.Error("refused")
	}
	if g := group(2); g.Bounds.End.Key != "m" || g.Generation != 2 || g.Replicas[0].ID != "g2-9" {
		t.Error(g)
	}
	if res := s.putRanges(&metapb.SysGroup{Id: 3, Start: at("m"), End: at("p"), Generation: 2}); !res.Ok || res.Version <= version {
		t.Error(res)
	}
	if g := group(3); g.Bounds.End.Key != "p" || len(g.Replicas) != 1 {
		t.Error(g)
	}
	for _, bad := range []*metapb.SysGroup{
		{Id: 1, Generation: 9}, {Id: 77, Generation: 1, Replicas: voter}, {Id: ids[1], Start: at("p"), Generation: 1}, {Id: 2, Start: at("m"), End: at("a"), Generation: 9},
	} {
		if res := s.putRanges(bad); res.Ok || errs.Kind(res.Kind) != errs.InvalidArgument {
			t.Errorf("%v: %v", bad, res)
		}
	}
}
