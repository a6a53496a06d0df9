package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"cairn/storage/errs"
)

// Splitter is what a Backend that holds ranges of the metadata also does.
type Splitter interface {
	// SplitRange splits a range, whose leader must be in this process, in the middle, and answers the new range's group.
	// Errors: NotLeader, InvalidArgument (fewer than two keys), Conflict (it is changing: try again).
	SplitRange(ctx context.Context, group uint64) (child uint64, err error)
}

// SplitAnswer is the answer to /v1/ranges/split.
type SplitAnswer struct {
	Group uint64 `json:"group"` // of the new range
}

func (h *handler) split(w http.ResponseWriter, r *http.Request) {
	group, err := strconv.ParseUint(r.FormValue("group"), 10, 64)
	splitter, ok := h.backend.(Splitter)
	if err != nil || !ok {
		http.Error(w, "group must be the number of a range, see status", http.StatusBadRequest)
		return
	}
	child, err := splitter.SplitRange(r.Context(), group)
	if err != nil {
		status := http.StatusServiceUnavailable
		switch errs.KindOf(err) {
		case errs.InvalidArgument:
			status = http.StatusBadRequest
		case errs.NotLeader, errs.Conflict:
			status = http.StatusConflict // ask the node of the range's leader, or again
		}
		http.Error(w, err.Error(), status)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(SplitAnswer{child}); err != nil {
		h.cfg.Logger.Debug("answer not sent", "error", err)
	}
}

// Split splits a range that is led by the process there, and answers the new range's group.
func (c *Client) Split(ctx context.Context, group uint64) (uint64, error) {
	resp, err := c.call(ctx, http.MethodPost, "/v1/ranges/split?group="+strconv.FormatUint(group, 10))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var a SplitAnswer
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&a); err != nil || a.Group == 0 {
		return 0, fmt.Errorf("split at %s: %w", c.Base, cmp.Or(err, errors.New("the answer names no range")))
	}
	return a.Group, nil
}
