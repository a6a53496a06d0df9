package shardrpc

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"cairn/cluster"
	"cairn/cluster/rpc"
	"cairn/storage"
	"cairn/storage/storagetest"
)

// pair is a server with drives and a client that reaches it.
type pair struct {
	server *Server
	client *Client
	conn   *grpc.ClientConn
	grpc   *grpc.Server
	drives map[storage.DriveID]storage.ShardStore
	dial   func(context.Context) (net.Conn, error)
}

func newPair(t testing.TB, sc ServerConfig, cc Config, drives map[storage.DriveID]storage.ShardStore) *pair {
	t.Helper()
	p := &pair{drives: drives}
	sc.Drives = func(id storage.DriveID) storage.ShardStore { return p.drives[id] }
	p.server = NewServer(sc)
	lis := bufconn.Listen(1 << 20)
	p.grpc = grpc.NewServer(rpc.ServerOptions()...)
	Register(p.grpc, p.server)
	served := make(chan struct{})
	go func() { defer close(served); _ = p.grpc.Serve(lis) }()
	p.dial = lis.DialContext
	opts := append(rpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return p.dial(ctx) }))
	var err error
	if p.conn, err = grpc.NewClient("passthrough:///x", opts...); err != nil {
		t.Fatal(err)
	}
	if cc.Conn == nil {
		cc.Conn = func(cluster.NodeID) (grpc.ClientConnInterface, error) { return p.conn, nil }
	}
	p.client = NewClient(cc)
	t.Cleanup(func() {
		p.client.Close()
		p.conn.Close()
		p.server.Close()
		p.grpc.Stop()
		<-served
	})
	return p
}

func TestConformance(t *testing.T) {
	storagetest.ShardStore(t, func(t *testing.T) storage.ShardStore {
		d := storagetest.NewDrive(1)
		p := newPair(t, ServerConfig{}, Config{}, map[storage.DriveID]storage.ShardStore{d.ID: d})
		return p.client.Store("n1", d.ID)
	})
}
