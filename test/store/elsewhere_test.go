package store

import (
	"context"
	"crypto/rand"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"cairn/cluster"
	"cairn/cluster/metaclient"
	"cairn/cluster/metarpc"
	"cairn/cluster/rpc"
	"cairn/s3api/objects"
	"cairn/server/core"
	"cairn/storage/errs"
	"cairn/test/harness"
)

// planes runs a test through the store's own gateway, and through one that has no
// metadata here and asks for all of it over the network.
func planes(t *testing.T, test func(t *testing.T, c *core.Core, b harness.Bucket)) {
	t.Run("here", func(t *testing.T) {
		c, b := open(t)
		test(t, c, b)
	})
	t.Run("elsewhere", func(t *testing.T) {
		c, b := open(t)
		b.Core = &core.Core{Objects: elsewhere(t, c)}
		test(t, c, b)
	})
}

// nothing is a host without replicas.
type nothing struct{ metarpc.Host }

func (nothing) Propose(context.Context, cluster.GroupID, []byte) ([]byte, error) {
	return nil, errs.New(errs.NotLeader, "test", "", "nothing is here")
}

func (nothing) Read(context.Context, cluster.GroupID, func(pebble.Reader) error) error {
	return errs.New(errs.NotLeader, "test", "", "nothing is here")
}

func (nothing) ReadSnapshot(context.Context, cluster.GroupID, func(pebble.Reader, <-chan struct{}) error) error {
	return errs.New(errs.NotLeader, "test", "", "nothing is here")
}

// elsewhere is a gateway of the store whose metadata is all on another node. Answers are kept short, so that there are several pages.
func elsewhere(t *testing.T, c *core.Core) *objects.Store {
	t.Helper()
	server := grpc.NewServer(rpc.ServerOptions()...)
	metarpc.Register(server, metarpc.ServerConfig{
		Self: "node-1", Host: c.Groups, Topology: c.Controller.Topology, AnswerBytesMax: 1000,
		Caller: func(context.Context) (cluster.NodeID, error) { return "gateway", nil },
	})
	lis := bufconn.Listen(1 << 20)
	var served sync.WaitGroup
	served.Go(func() { _ = server.Serve(lis) })
	cc, err := grpc.NewClient("passthrough:///node-1", append(rpc.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		server.Stop()
		served.Wait()
	})
	router := metarpc.NewRouter(metarpc.Config{
		Self: "gateway", Host: nothing{}, Topology: c.Controller.Topology,
		Conn: func(cluster.NodeID) (grpc.ClientConnInterface, error) { return cc, nil },
	})
	meta := metaclient.New(metaclient.Config{Groups: router, Elsewhere: router, Topology: c.Controller.Topology, Now: time.Now, Rand: rand.Reader})
	return objects.New(objects.Config{Meta: meta, Chunks: c.Bodies, Pins: c.Pins})
}

// What one gateway did the other sees at once, buckets too.
func TestTwoGateways(t *testing.T) {
	c, _ := open(t)
	gateways := []*objects.Store{c.Objects, elsewhere(t, c)}
	ctx := t.Context()
	for i, a := range gateways {
		b := gateways[1-i]
		if err := a.CreateBucket(ctx, acct, "shared", objects.BucketOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := b.CreateBucket(ctx, acct, "shared", objects.BucketOptions{}); !errs.Is(err, errs.BucketAlreadyOwned) {
			t.Fatalf("created twice: %v", err)
		}
		if list, _, err := b.ListBuckets(ctx, acct, "", "", 10); err != nil || len(list) != 2 {
			t.Fatalf("buckets %v, %v", list, err)
		}
		one := harness.Bucket{Core: &core.Core{Objects: a}, Name: "shared"}
		two := harness.Bucket{Core: &core.Core{Objects: b}, Name: "shared"}
		if err := one.Put(ctx, "key", []byte("body")); err != nil {
			t.Fatal(err)
		}
		if err := b.DeleteBucket(ctx, acct, "shared"); !errs.Is(err, errs.BucketNotEmpty) {
			t.Fatalf("the bucket is not empty: %v", err)
		}
		if got, err := two.Get(ctx, "key"); err != nil || string(got) != "body" {
			t.Fatalf("%q, %v", got, err)
		}
		if err := two.Delete(ctx, "key"); err != nil {
			t.Fatal(err)
		}
		if keys, err := one.List(ctx); err != nil || len(keys) != 0 {
			t.Fatalf("keys %q, %v", keys, err)
		}
		if err := b.DeleteBucket(ctx, acct, "shared"); err != nil {
			t.Fatal(err)
		}
		if _, err := a.HeadBucket(ctx, acct, "shared"); !errs.Is(err, errs.NoSuchBucket) {
			t.Fatalf("a bucket that is gone: %v", err)
		}
		if err := one.Put(ctx, "key", nil); !errs.Is(err, errs.NoSuchBucket) {
			t.Fatalf("a put into a bucket that is gone: %v", err)
		}
	}
}
