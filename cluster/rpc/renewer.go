package rpc

import (
	"context"
	"log/slog"
	"time"

	"cairn/cluster/pki"
	"cairn/storage/errs"
)

const (
	renewLookEvery  = time.Hour   // the machine's clock may be set meanwhile
	renewRetryEvery = time.Minute // after a failure
	renewRetryDead  = 2 * time.Second
)

// Renewer keeps a node's certificate from expiring, and heals one that has.
type Renewer struct {
	Dialer
	Current func() *pki.Identity
	// Save makes the next identity durable and current. An error leaves the old one and is tried again.
	Save func(*pki.Identity) error
	// Sign signs a request for this node with the store's CA, if this process holds it. nil, or
	// an error: peers are asked.
	Sign func(ctx context.Context, csr []byte) ([]byte, error)
	// Addresses are the cluster addresses of other nodes.
	Addresses func() []string
	Logger    *slog.Logger // required
}

// Run works until ctx ends.
func (r *Renewer) Run(ctx context.Context) {
	for {
		id, now := r.Current(), r.now()
		wait := min(id.RenewAt().Sub(now), renewLookEvery)
		if wait <= 0 {
			next, err := r.renew(ctx, id)
			if err == nil {
				err = r.Save(next)
			}
			switch {
			case err == nil:
				r.Logger.Info("the node's certificate was renewed", "until", next.NotAfter().UTC().Format(time.RFC3339))
				wait = renewRetryDead // no busy loop, should clocks be odd
			case now.After(id.NotAfter()):
				r.Logger.Error("the node's certificate has expired and could not be renewed: other nodes refuse this one until it is", "expired", id.NotAfter().UTC().Format(time.RFC3339), "error", err)
				wait = renewRetryDead
			default:
				r.Logger.Warn("the node's certificate could not be renewed yet", "expires", id.NotAfter().UTC().Format(time.RFC3339), "error", err)
				wait = renewRetryEvery
			}
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

func (r *Renewer) renew(ctx context.Context, id *pki.Identity) (*pki.Identity, error) {
	if r.Sign != nil {
		key, csr, err := id.Request()
		if err != nil {
			return nil, err
		}
		cert, serr := r.Sign(ctx, csr)
		if serr == nil {
			return id.Renewed(cert, key)
		}
		r.Logger.Debug("this node cannot sign its own certificate now", "error", serr)
	}
	addrs := r.Addresses()
	if len(addrs) == 0 {
		return nil, errs.New(errs.Unavailable, "rpc.renew", string(id.Node), "no other node is known to ask")
	}
	return r.Renew(ctx, id, addrs)
}
