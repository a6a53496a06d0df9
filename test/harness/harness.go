// Package harness opens whole stores inside a test, on a file system in memory or
// a real one, and gives one bucket of them to package checker.
package harness

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/server/config"
	"cairn/server/core"
	"cairn/storage"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
	"cairn/test/checker"
)

// Account is who the harness is for the store.
var Account = objects.Account{ID: "tester", DisplayName: "tester"}

// Options of a store under test.
type Options struct {
	FS            vfsx.FS
	Dir           string
	Zones         int
	DrivesPerZone int
	Workers       bool
	Log           bool // to standard error
	Tune          func(*core.Tuning)
	Config        func(*config.Config) // changes what Open would use
	Env           func(*core.Env)      // the same
}

// Open opens a store with small files and quick elections.
func Open(ctx context.Context, o Options) (*core.Core, error) {
	cfg := config.Default()
	cfg.DataDir = o.Dir
	cfg.Zones, cfg.DrivesPerZone = o.Zones, o.DrivesPerZone
	cfg.CacheBytes, cfg.BufferBytes = 4<<20, 32<<20
	cfg.Reserve = 1
	env := core.Env{FS: o.FS, Tune: func(t *core.Tuning) {
		t.Workers = o.Workers
		t.Raft.HeartbeatTimeout = 200 * time.Millisecond
		t.Raft.CommitTimeout = 100 * time.Millisecond
		t.Raft.LogMemTableBytes, t.Raft.StateMemTableBytes = 1<<20, 1<<20
		t.Controller.Tick = 200 * time.Millisecond
		t.Drive = func(d *drive.Config) {
			d.ExtentBytes, d.MemTableBytes, d.FlushBytes = 8<<20, 256<<10, 2<<20
		}
		if o.Tune != nil {
			o.Tune(t)
		}
	}}
	if o.Log {
		env.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if o.Config != nil {
		o.Config(&cfg)
	}
	if o.Env != nil {
		o.Env(&env)
	}
	return core.Open(ctx, cfg, env)
}

// Bucket is one bucket of a store, as package checker wants it.
type Bucket struct {
	Core *core.Core
	Name string
}

// MakeBucket creates a bucket; one that is there is taken.
func MakeBucket(ctx context.Context, c *core.Core, name string) (Bucket, error) {
	err := c.Objects.CreateBucket(ctx, Account, name, objects.BucketOptions{Region: "us-east-1"})
	if errs.Is(err, errs.BucketAlreadyOwned) {
		err = nil
	}
	return Bucket{c, name}, err
}

// body is an objects.Body without promises to check.
type body struct {
	*bytes.Reader
	sums []*metapb.Checksum
}

func (b *body) Size() int64                   { return b.Reader.Size() }
func (b *body) Checksums() []*metapb.Checksum { return b.sums }

func (b *body) Algorithm() metapb.ChecksumAlgorithm { return metapb.ChecksumAlgorithm_CHECKSUM_NONE }

// NewBody makes a body of these bytes.
func NewBody(p []byte) objects.Body { return &body{Reader: bytes.NewReader(p)} }

// Put stores an object.
func (b Bucket) Put(ctx context.Context, key string, p []byte) error {
	_, err := b.Core.Objects.PutObject(ctx, Account, &objects.PutInput{Bucket: b.Name, Key: storage.Key(key), Body: NewBody(p), Attributes: &metapb.Attributes{}})
	return err
}

// Delete deletes an object.
func (b Bucket) Delete(ctx context.Context, key string) error {
	_, err := b.Core.Objects.DeleteObject(ctx, Account, b.Name, objects.DeleteItem{Key: storage.Key(key)})
	return err
}

// Get reads an object whole.
func (b Bucket) Get(ctx context.Context, key string) ([]byte, error) {
	o, err := b.Core.Objects.GetObject(ctx, Account, &objects.GetInput{Bucket: b.Name, Key: storage.Key(key)})
	if errs.Is(err, errs.NoSuchKey) || errs.Is(err, errs.IsDeleteMarker) {
		return nil, checker.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	defer o.Close()
	var buf bytes.Buffer
	if err := o.Send(&buf); err != nil {
		return nil, err
	}
	if int64(buf.Len()) != o.Size {
		return nil, fmt.Errorf("%d bytes of %d came: %w", buf.Len(), o.Size, io.ErrUnexpectedEOF)
	}
	return buf.Bytes(), nil
}

// List lists all keys, page by page.
func (b Bucket) List(ctx context.Context) (keys []string, err error) {
	for after := ""; ; {
		page, err := b.Core.Objects.ListObjects(ctx, Account, &objects.ListInput{Bucket: b.Name, After: after, Max: 100})
		if err != nil {
			return nil, err
		}
		for _, o := range page.Objects {
			keys = append(keys, string(o.Key))
		}
		if !page.Truncated {
			return keys, nil
		}
		after = page.Next
	}
}
