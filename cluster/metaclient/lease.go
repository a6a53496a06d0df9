package metaclient

import (
	"context"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster/sysstate"
	"cairn/storage/errs"
)

// Lease lets a gateway act on its own copy of the configuration (design rule 9): cluster/controller.
type Lease interface {
	// ConfigRead calls fn with the copy here if it holds every change acknowledged before the
	// call; else, or if that ended meanwhile, it answers Unavailable and what fn did does not count.
	ConfigRead(fn func(pebble.Reader) error) error
	// AwaitConfig returns once no gateway acts on a configuration before config any more.
	AwaitConfig(ctx context.Context, config uint64) error
}

// Configuration calls fn with a reader of what SysStore.config counts the changes
// of: buckets, and nothing else. It holds every change acknowledged before the call,
// and asks nobody while this node has its lease; otherwise it is System.
func (c *Client) Configuration(ctx context.Context, fn func(sysstate.Reader) error) error {
	if c.cfg.Lease != nil {
		err := c.cfg.Lease.ConfigRead(func(r pebble.Reader) error { return fn(sysstate.NewView(r)) })
		if err == nil || !errs.Is(err, errs.Unavailable) {
			return err
		}
	}
	return c.System(ctx, fn)
}

// obeyed waits until every gateway acts on what a command changed, before that is acknowledged.
func (c *Client) obeyed(ctx context.Context, config uint64) error {
	if c.cfg.Lease == nil || config == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	if err := c.cfg.Lease.AwaitConfig(ctx, config); err != nil {
		return &errs.Error{Kind: errs.OutcomeUnknown, Op: "metadata", Detail: "the change is made, but a gateway may not know of it yet", Err: err}
	}
	return nil
}
