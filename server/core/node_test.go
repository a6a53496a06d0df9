package core

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster/pki"
	"cairn/server/config"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

// openFirst opens the first node of a cluster on a file system.
func openFirst(t *testing.T, fs vfsx.FS, plaintext bool, advertise string) (*Core, error) {
	t.Helper()
	cfg := config.Default()
	cfg.DataDir, cfg.Node, cfg.Zone, cfg.ClusterInit, cfg.ClusterPlaintext = "/data", "a1", "a", true, plaintext
	cfg.ClusterListen, cfg.ClusterAdvertise = "127.0.0.1:9002", advertise
	cfg.CacheBytes, cfg.BufferBytes, cfg.Reserve = 4<<20, 32<<20, 1
	return Open(t.Context(), cfg, Env{
		FS:     fs,
		Listen: func(context.Context, string) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		Tune: func(tune *Tuning) {
			tune.Workers = false
			tune.Raft.HeartbeatTimeout, tune.Raft.LogMemTableBytes, tune.Raft.StateMemTableBytes = 200*time.Millisecond, 1<<20, 1<<20
			tune.Drive = func(d *drive.Config) { d.ExtentBytes, d.MemTableBytes, d.FlushBytes = 8<<20, 256<<10, 2<<20 }
		},
	})
}

// The making of a store that was interrupted goes on under the id that was drawn first, and leaves nothing behind.
func TestInterruptedInit(t *testing.T) {
	for _, plaintext := range []bool{true, false} {
		t.Run(fmt.Sprint("plaintext ", plaintext), func(t *testing.T) {
			fs := vfsx.NewMem()
			cut := errors.New("cut off")
			cancel := fs.Inject(vfsx.Fault{Ops: vfsx.OpRename, Path: "/data/node.json", Err: cut})
			c, err := openFirst(t, fs, plaintext, "127.0.0.1:9002")
			if err == nil {
				c.Close()
				t.Fatal("opened")
			}
			cancel()
			if _, err := fs.Stat("/data/bootstrap.json"); err != nil {
				t.Fatal("the making was not cut off in its middle:", err)
			}
			for range 2 {
				c, err := openFirst(t, fs, plaintext, "127.0.0.1:9002")
				if err != nil {
					t.Fatal(err)
				}
				if c.node.storeID != c.Controller.StoreID() {
					t.Errorf("the node is of store %s, the controller of %s", c.node.storeID, c.Controller.StoreID())
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
				if _, err := fs.Stat("/data/" + sealedName); !errors.Is(err, iofs.ErrNotExist) {
					t.Errorf("%s: %v", sealedName, err)
				}
			}
			// One that an earlier release left goes, too.
			f, err := fs.Create(filepath.Join("/data", sealedName), vfs.WriteCategoryUnspecified)
			if err != nil || f.Close() != nil {
				t.Fatal(err)
			}
			if c, err = openFirst(t, fs, plaintext, "127.0.0.1:9002"); err != nil {
				t.Fatal(err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if _, err := fs.Stat("/data/" + sealedName); !errors.Is(err, iofs.ErrNotExist) {
				t.Errorf("%s: %v", sealedName, err)
			}
		})
	}
}

func TestMergeAddresses(t *testing.T) {
	join := []string{"j1:1", "a:1", "j2:1"}
	var of [][]string
	for _, n := range []string{"a", "b", "c"} {
		of = append(of, append([]string{n + ":1", n + ":2"}, join...)) // as the controller has them
	}
	want := []string{"a:1", "b:1", "c:1", "j1:1", "a:2", "b:2", "c:2", "j2:1"}
	if got := mergeAddresses(append(of, join)...); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := mergeAddresses(nil, nil); len(got) != 0 {
		t.Error(got)
	}
}

// A token that nobody could use is not given out.
func TestTokenIsChecked(t *testing.T) {
	n := &node{storeID: "s"}
	if _, err := n.tokenOf([]string{"no port"}); !errs.Is(err, errs.InvalidArgument) {
		t.Error(err)
	}
	tok, err := n.tokenOf([]string{"a:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pki.ParseToken(tok.String()); err != nil {
		t.Error(err)
	}
}
