package admin

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"cairn/storage/errs"
)

type splitting struct{ fake }

func (*splitting) SplitRange(_ context.Context, group uint64) (uint64, error) {
	if group != 2 {
		return 0, errs.New(errs.NotLeader, "split", "", "the range is led elsewhere")
	}
	return 3, nil
}

func TestSplit(t *testing.T) {
	s := httptest.NewServer(New(&splitting{}, Config{AccessKey: "AK", SecretKey: "SK"}))
	defer s.Close()
	c := &Client{Base: s.URL, AccessKey: "AK", SecretKey: "SK"}
	if child, err := c.Split(t.Context(), 2); err != nil || child != 3 {
		t.Error(child, err)
	}
	if _, err := c.Split(t.Context(), 5); err == nil || !strings.Contains(err.Error(), "led elsewhere") {
		t.Error(err)
	}
	c.SecretKey = "other"
	if _, err := c.Split(t.Context(), 2); err == nil {
		t.Error("without the root keys")
	}
	_, plain := start(t, &fake{})
	if _, err := plain.Split(t.Context(), 2); err == nil {
		t.Error("a backend without ranges")
	}
}
