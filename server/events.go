package server

import (
	"context"
	"time"

	"cairn/proto/metapb"
	"cairn/server/admin"
	"cairn/server/core"
	"cairn/server/status"
	"cairn/storage/errs"
)

var _ admin.Eventer = (*Server)(nil)

// EventTargets implements admin.Eventer.
func (s *Server) EventTargets(ctx context.Context) ([]status.EventTarget, error) {
	return s.core.Events.ListTargets(ctx)
}

// PutEventTarget implements admin.Eventer.
func (s *Server) PutEventTarget(ctx context.Context, spec *admin.TargetSpec) error {
	t := &metapb.SysTarget{Name: spec.Name, Kind: spec.Kind, QueueMax: spec.QueueMax, CloudEvents: spec.CloudEvents}
	bad := func(format string, args ...any) error {
		return errs.Newf(errs.InvalidArgument, "events", spec.Name, format, args...)
	}
	switch spec.WhenFull {
	case "", "drop":
	case "hold":
		t.WhenFull = metapb.WhenFull_HOLD_WRITES
	default:
		return bad("when_full is %q: use drop or hold", spec.WhenFull)
	}
	if spec.MaxAge != "" {
		d, err := time.ParseDuration(spec.MaxAge)
		if err != nil || d < time.Millisecond {
			return bad("max_age is %q: use a duration like 24h", spec.MaxAge)
		}
		t.AgeMaxMs = d.Milliseconds()
	}
	for name, value := range spec.Settings {
		t.Settings = append(t.Settings, &metapb.KV{Name: name, Value: value})
	}
	return s.core.Events.AddTarget(ctx, t, spec.Secrets, spec.Replace)
}

// RemoveEventTarget implements admin.Eventer.
func (s *Server) RemoveEventTarget(ctx context.Context, name string, force bool) error {
	return s.core.Events.RemoveTarget(ctx, name, force)
}

// TestEventTarget implements admin.Eventer.
func (s *Server) TestEventTarget(ctx context.Context, name string) error {
	return s.core.Events.TestTarget(ctx, name)
}

// EventsStatus implements admin.Eventer.
func (s *Server) EventsStatus(ctx context.Context) (status.Events, error) {
	return s.core.Events.Status(ctx)
}

// StreamEvents implements admin.Eventer.
func (s *Server) StreamEvents(ctx context.Context, q admin.StreamQuery, fn func(*status.EventLine) error) error {
	return s.core.Events.Tail(ctx, core.TailQuery(q), fn)
}

// ReplayEvents implements admin.Eventer.
func (s *Server) ReplayEvents(ctx context.Context, q admin.ReplayQuery, progress func(status.ReplayProgress)) (status.ReplayProgress, error) {
	return s.core.Events.Replay(ctx, core.ReplayQuery(q), progress)
}

// DeadEvents implements admin.Eventer.
func (s *Server) DeadEvents(ctx context.Context, target string, max int, fn func(*status.DeadEvent) error) error {
	return s.core.Events.DeadEvents(ctx, target, max, fn)
}
