package server

import (
	"context"
	"io"

	"cairn/proto/metapb"
	"cairn/s3api"
	"cairn/server/admin"
	"cairn/server/core"
	"cairn/server/status"
)

var _ admin.Accountant = (*Server)(nil)

// Usage implements admin.Accountant.
func (s *Server) Usage(ctx context.Context, bucket string, fn func(*status.BucketUsage) error) (status.UsageTotal, error) {
	return s.core.Usage(ctx, bucket, fn)
}

// Inventory implements admin.Accountant.
func (s *Server) Inventory(ctx context.Context, q admin.InventoryQuery, w io.Writer, ready func()) (int64, error) {
	return s.core.Inventory(ctx, core.InventoryQuery(q), w, ready)
}

// Simulate implements admin.Accountant.
func (s *Server) Simulate(ctx context.Context, q admin.SimulateQuery, progress func(status.SimulationProgress)) (status.Simulation, error) {
	var others *metapb.LifecycleConfig
	if len(q.Rules) > 0 {
		var err error
		if others, err = s3api.LifecycleRules(q.Rules, q.MinimumSize); err != nil {
			return status.Simulation{}, &admin.RulesError{Err: err}
		}
	}
	return s.core.Simulate(ctx, q.Bucket, others, q.At, q.Examples, progress)
}
