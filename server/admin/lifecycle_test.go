package admin

import (
	"context"
	"net/http/httptest"
	"testing"

	"cairn/server/status"
)

type expiring struct{ fake }

func (*expiring) LifecycleStatus(context.Context) []status.Lifecycle {
	return []status.Lifecycle{{Node: "a1", Expired: 7, Rules: []status.LifecycleRule{{Bucket: "b", Rule: "r", Due: 3, LagSeconds: 1.5}}}}
}

func TestLifecycle(t *testing.T) {
	s := httptest.NewServer(New(&expiring{}, Config{AccessKey: "AK", SecretKey: "SK"}))
	defer s.Close()
	c := &Client{Base: s.URL, AccessKey: "AK", SecretKey: "SK"}
	got, err := c.Lifecycle(t.Context())
	if err != nil || len(got) != 1 || got[0].Expired != 7 || got[0].Rules[0].LagSeconds != 1.5 {
		t.Errorf("%+v %v", got, err)
	}
	c.SecretKey = "other"
	if _, err := c.Lifecycle(t.Context()); err == nil {
		t.Error("without the root keys")
	}
	_, plain := start(t, &fake{})
	if _, err := plain.Lifecycle(t.Context()); err == nil {
		t.Error("a backend without a worker")
	}
}
