package s3store

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"cairn/server"
	"cairn/server/config"
	"cairn/test/linear"
)

// TestServer is the whole server with its HTTP face, on a real port.
func TestServer(t *testing.T) {
	cfg := config.Default()
	cfg.DataDir, cfg.Zones = t.TempDir(), 3
	cfg.Listen, cfg.AdminListen = "127.0.0.1:0", "127.0.0.1:0"
	cfg.RootAccessKey, cfg.RootSecretKey = "ROOTKEY", "root-secret-key"
	cfg.Reserve = 1
	s, err := server.New(cfg, server.Env{Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var addr net.Addr
	for addr == nil {
		select {
		case err := <-done:
			t.Fatal(err)
		case <-time.After(5 * time.Millisecond):
			addr, _ = s.Addrs()
		}
	}
	var stores []linear.Store
	for range 2 {
		store := New("http://"+addr.String(), cfg.Region, "ROOTKEY", "root-secret-key", "bucket")
		if err := store.CreateBucket(t.Context()); err != nil {
			t.Fatal(err)
		}
		stores = append(stores, store)
	}
	r := linear.NewRecorder()
	w := linear.Workload{Stores: stores, Keys: []string{"a", "a/", "b c+d"}, Clients: 6, Ops: 25, Timeout: time.Minute, Seed: 1}
	w.Run(t.Context(), r)
	if all, unanswered := r.Counts(); all < 100 || unanswered > 0 {
		t.Errorf("%d operations, %d of them without an answer", all, unanswered)
	}
	if err := r.Check(time.Minute); errors.Is(err, linear.ErrUndecided) {
		t.Log(err)
	} else if err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
