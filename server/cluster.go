package server

import (
	"context"

	"cairn/cluster"
)

// Leave implements admin.Leaver.
func (s *Server) Leave(ctx context.Context, node string, leaving bool) error {
	return s.core.Leave(ctx, cluster.NodeID(node), leaving)
}

// SplitRange implements admin.Splitter.
func (s *Server) SplitRange(ctx context.Context, group uint64) (uint64, error) {
	child, err := s.core.Splits.Split(ctx, cluster.GroupID(group), cluster.Pos{})
	return uint64(child), err
}
