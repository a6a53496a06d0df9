package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"cairn/server/status"
)

// Lifecycler is what a Backend that acts by lifecycle rules also does.
type Lifecycler interface {
	// LifecycleStatus is what the lifecycle workers of all nodes say, by the nodes' names. It takes at most a second or two.
	LifecycleStatus(ctx context.Context) []status.Lifecycle
}

func (h *handler) lifecycle(w http.ResponseWriter, r *http.Request) {
	l, ok := h.backend.(Lifecycler)
	if !ok {
		http.Error(w, "this server has no lifecycle worker", http.StatusNotImplemented)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(l.LifecycleStatus(r.Context())); err != nil {
		h.cfg.Logger.Debug("lifecycle status not sent", "error", err)
	}
}

// Lifecycle asks what the lifecycle workers of all nodes do.
func (c *Client) Lifecycle(ctx context.Context) (out []status.Lifecycle, err error) {
	resp, err := c.call(ctx, http.MethodGet, "/v1/lifecycle")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, reportBytesMax)).Decode(&out); err != nil {
		return nil, fmt.Errorf("lifecycle status from %s: %w", c.Base, err)
	}
	return out, nil
}
