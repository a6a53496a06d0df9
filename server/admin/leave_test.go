package admin

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"cairn/storage/errs"
)

type leaving struct {
	fake
	asked []string
}

func (l *leaving) Leave(_ context.Context, node string, leaving bool) error {
	if node != "a b" {
		return errs.Newf(errs.NotFound, "leave", "", "node %q is not of this cluster", node)
	}
	l.asked = append(l.asked, map[bool]string{true: "leave", false: "stay"}[leaving])
	return nil
}

func TestLeave(t *testing.T) {
	b := &leaving{}
	s := httptest.NewServer(New(b, Config{AccessKey: "AK", SecretKey: "SK"}))
	defer s.Close()
	c := &Client{Base: s.URL, AccessKey: "AK", SecretKey: "SK"}
	for _, leaving := range []bool{true, false} {
		if err := c.Leave(t.Context(), "a b", leaving); err != nil {
			t.Error(err)
		}
	}
	if strings.Join(b.asked, " ") != "leave stay" {
		t.Error(b.asked)
	}
	if err := c.Leave(t.Context(), "n9", true); err == nil || !strings.Contains(err.Error(), "n9") {
		t.Error(err)
	}
	c.SecretKey = "other"
	if err := c.Leave(t.Context(), "a b", true); err == nil {
		t.Error("without the root keys")
	}
	_, plain := start(t, &fake{})
	if err := plain.Leave(t.Context(), "a b", true); err == nil {
		t.Error("a backend without nodes")
	}
}
