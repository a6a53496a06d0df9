package admin

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"

	"cairn/storage/errs"
)

// Leaver is what a Backend that is a node of a cluster also does.
type Leaver interface {
	// Leave asks a node to leave the cluster, or to stay after all. It returns when that is recorded; what lies on the node is
	// moved in the background, and status says how far that is. Errors: NotFound (no such node), InvalidRequest (not
	// a cluster), Unavailable.
	Leave(ctx context.Context, node string, leaving bool) error
}

func (h *handler) leave(w http.ResponseWriter, r *http.Request) {
	node := r.FormValue("node")
	leaving, err := strconv.ParseBool(r.FormValue("leaving"))
	leaver, ok := h.backend.(Leaver)
	if node == "" || err != nil || !ok {
		http.Error(w, "node must be a node's name and leaving true or false", http.StatusBadRequest)
		return
	}
	if err := leaver.Leave(r.Context(), node, leaving); err != nil {
		status := http.StatusServiceUnavailable
		switch errs.KindOf(err) {
		case errs.NotFound:
			status = http.StatusNotFound
		case errs.InvalidArgument, errs.InvalidRequest:
			status = http.StatusBadRequest
		}
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, "{}\n")
}

// Leave asks a node of the cluster to leave, or to stay after all.
func (c *Client) Leave(ctx context.Context, node string, leaving bool) error {
	q := url.Values{"node": {node}, "leaving": {strconv.FormatBool(leaving)}}
	resp, err := c.call(ctx, http.MethodPost, "/v1/cluster/leave?"+q.Encode())
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
