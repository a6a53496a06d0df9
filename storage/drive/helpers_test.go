package drive

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

const testDir = "/d"

var testID = storage.DriveID{1, 2, 3}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t testing.TB, err error, k errs.Kind) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("got %v, want kind %q", err, k)
	}
}

// newMem is a file system with a formatted drive in testDir.
func newMem(t testing.TB) *vfsx.Mem {
	t.Helper()
	m := vfsx.NewMem()
	ok(t, Format(m, testDir, Identity{StoreID: "s", DriveID: testID}))
	return m
}

// small is a configuration with small extents, so that a test crosses their borders.
func small(fs vfsx.FS) Config {
	return Config{FS: fs, Dir: testDir, ExtentBytes: 64 << 10, MemTableBytes: 64 << 10, FlushBytes: 128 << 10, CleanAfter: time.Millisecond, CloseWait: 100 * time.Millisecond}
}

func open(t testing.TB, cfg Config) *Drive {
	t.Helper()
	d, err := Open(cfg)
	ok(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

// told opens a drive and tells it that groups 1 to 3 are at epoch 1.
func told(t testing.TB, cfg Config) *Drive {
	t.Helper()
	d := open(t, cfg)
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{1: 1, 2: 1, 3: 1}))
	return d
}

var ctx = context.Background()

// shardID makes an id from a few numbers.
func shardID(pg storage.PGID, chunk uint64, stripe int) storage.ShardID {
	return storage.ShardID{PG: pg, Chunk: storage.NewChunkID(1000, chunk), Stripe: uint16(stripe), Index: 1}
}

func header(id storage.ShardID) storage.ShardHeader {
	return storage.ShardHeader{
		ID: id, Epoch: 1,
		Owner:  storage.Owner{Bucket: 7, Key: storage.Key("key/" + id.Chunk.String()[16:]), Write: storage.WriteID(id.Chunk)},
		Layout: storage.Layout{Scheme: storage.Scheme{K: 3, M: 3}, StripeBytes: storage.StripeBytes},
	}
}

// payload is n bytes that follow from the id.
func payload(id storage.ShardID, n int) []byte {
	var seed [32]byte
	copy(seed[:], id.Chunk[:])
	binary.BigEndian.PutUint32(seed[16:], uint32(id.PG))
	binary.BigEndian.PutUint16(seed[20:], id.Stripe)
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(seed).Read(p)
	return p
}

// put appends the shard and checks that done is called once.
func put(d *Drive, id storage.ShardID, n int) error {
	var done atomic.Int32
	err := d.Append(ctx, header(id), payload(id, n), func() { done.Add(1) })
	for i := 0; done.Load() != 1; i++ {
		if i > 1000 {
			panic("done was not called once")
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

// holds checks that the shard reads as it was put.
func holds(t testing.TB, d *Drive, id storage.ShardID, n int) {
	t.Helper()
	p := make([]byte, n)
	if err := d.ReadAt(ctx, id, 0, p); err != nil {
		t.Fatalf("%v: %v", id, err)
	}
	if !bytes.Equal(p, payload(id, n)) {
		t.Fatalf("%v: wrong bytes", id)
	}
}

func read(d *Drive, id storage.ShardID, off, n int) ([]byte, error) {
	p := make([]byte, n)
	err := d.ReadAt(ctx, id, off, p)
	return p, err
}

func remove(d *Drive, ids ...storage.ShardID) error {
	var chunks []storage.ChunkRemoval
	for _, id := range ids {
		chunks = append(chunks, storage.ChunkRemoval{PG: id.PG, Chunk: id.Chunk})
	}
	return d.Remove(ctx, chunks)
}

// eventually waits for the keeper.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
