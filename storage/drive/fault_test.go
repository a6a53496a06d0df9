package drive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/extent"
	"cairn/storage/vfsx"
	"cairn/test/seed"
)

// allBytes is where every byte of every live frame of d's extents lies.
func liveFrames(t *testing.T, d *Drive) (fs []FrameInfo) {
	t.Helper()
	ok(t, d.Scan(ctx, func(f FrameInfo) error {
		if f.Err != nil {
			t.Fatalf("%+v", f)
		}
		fs = append(fs, f)
		return nil
	}))
	return fs
}

// TestAnyFlippedByte flips bytes all over a frame: a read answers Corrupt or the
// right bytes, Scan reports it, and appending the shard again heals it.
func TestAnyFlippedByte(t *testing.T) {
	seed := seed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	m := newMem(t)
	d := told(t, small(m))
	id, n := shardID(1, 1, 0), 140_000
	ok(t, put(d, id, n))
	ok(t, put(d, shardID(1, 2, 0), 10))
	for range 60 {
		var f FrameInfo
		for _, f = range liveFrames(t, d) {
			if f.Header.ID == id {
				break
			}
		}
		headerBytes := f.Bytes - int64(extent.Padded(f.Payload))
		at := rng.Int64N(headerBytes + int64(f.Payload))
		if rng.IntN(2) == 0 {
			at = rng.Int64N(headerBytes)
		}
		ok(t, m.XorByte(d.extentPath(f.Extent), f.Off+at, byte(1+rng.IntN(255))))
		inPayload := int(at - headerBytes)
		for block := 0; block*storage.BlockBytes < n; block++ {
			off := block * storage.BlockBytes
			p, err := read(d, id, off+1, min(n-off, storage.BlockBytes)-1)
			switch hit := inPayload >= 0 && inPayload/storage.BlockBytes == block; {
			case hit:
				wantKind(t, err, errs.Corrupt)
				if !strings.Contains(err.Error(), extent.Name(f.Extent)) {
					t.Fatalf("%v does not name the extent", err)
				}
			case err != nil || string(p) != string(payload(id, n)[off+1:off+1+len(p)]):
				t.Fatalf("block %d: %v", block, err)
			}
		}
		seen := false
		ok(t, d.Scan(ctx, func(g FrameInfo) error {
			seen = seen || g.Err != nil && g.Extent == f.Extent && g.Off <= f.Off+at && f.Off+at < g.Off+g.Bytes
			return nil
		}))
		if !seen {
			t.Fatalf("Scan did not report byte %d of a frame", at)
		}
		ok(t, put(d, id, n))
		holds(t, d, id, n)
		ok(t, put(d, id, n)) // and now it is there
		if d.Stats().BadShards != 0 {
			t.Fatal("a healed shard is remembered as bad")
		}
	}
	// An index built anew takes the healed frame, not one of those before.
	ok(t, d.Close())
	ok(t, m.RemoveAll(testDir+"/index"))
	d = told(t, small(m))
	holds(t, d, id, n)
	holds(t, d, shardID(1, 2, 0), 10)
}

// TestRottenReadHeals: a block that the disk can't read is Corrupt, not the end of the drive, and is replaced.
func TestRottenReadHeals(t *testing.T) {
	m := newMem(t)
	d := told(t, small(m))
	id := shardID(1, 1, 0)
	ok(t, put(d, id, 5000))
	stop := m.Inject(vfsx.Fault{Ops: vfsx.OpRead, Path: "/extents/", Err: syscall.EIO})
	_, err := read(d, id, 0, 5000)
	wantKind(t, err, errs.Corrupt)
	stop()
	ok(t, d.Failed())
	before := d.Stats().Batches
	ok(t, put(d, id, 5000)) // replaced, though it could be read again
	if d.Stats().Batches == before {
		t.Fatal("not written again")
	}
	holds(t, d, id, 5000)
}

// TestNotReadableNow: an error that says nothing of the shard is not taken for
// damage: nothing is healed, nothing replaced, and no scan reports it.
func TestNotReadableNow(t *testing.T) {
	for _, c := range []struct {
		fault vfsx.Fault
		want  errs.Kind
	}{
		{vfsx.Fault{Ops: vfsx.OpOpen, Err: syscall.EMFILE}, errs.Busy},
		{vfsx.Fault{Ops: vfsx.OpOpen, Err: syscall.ENFILE}, errs.Busy},
		{vfsx.Fault{Ops: vfsx.OpOpen, Err: syscall.EACCES}, errs.Unavailable},
		{vfsx.Fault{Ops: vfsx.OpRead, Err: syscall.ENOMEM}, errs.Busy},
		{vfsx.Fault{Ops: vfsx.OpRead, Err: syscall.ESTALE}, errs.Unavailable},
		{vfsx.Fault{Ops: vfsx.OpOpen, Err: syscall.EIO}, errs.Corrupt},
		{vfsx.Fault{Ops: vfsx.OpRead, Err: syscall.EUCLEAN}, errs.Corrupt},
	} {
		t.Run(fmt.Sprint(c.fault.Ops, c.fault.Err), func(t *testing.T) {
			m := newMem(t)
			d := told(t, small(m))
			id, n := shardID(1, 1, 0), 5000
			ok(t, put(d, id, n))
			ok(t, d.Close())
			d = told(t, small(m)) // its file is not open
			before := d.Stats()
			c.fault.Path = "/extents/00000001.extent"
			mend := m.Inject(c.fault)
			_, err := read(d, id, 0, n)
			wantKind(t, err, c.want)
			_, err = d.Header(ctx, id)
			wantKind(t, err, c.want)
			if c.want == errs.Corrupt {
				if d.Stats().BadShards != 1 {
					t.Fatal("a lost shard is not remembered")
				}
				return
			}
			wantKind(t, put(d, id, n), c.want)
			wantKind(t, d.Append(ctx, header(id), payload(id, n)[1:], nil), c.want)
			if c.fault.Ops == vfsx.OpOpen {
				wantKind(t, d.Scan(ctx, func(f FrameInfo) error {
					if f.Err != nil {
						t.Errorf("%+v", f)
					}
					return nil
				}), c.want)
			}
			mend()
			if s := d.Stats(); s.BadShards != 0 || s.Batches != before.Batches {
				t.Fatalf("taken for damaged: %+v", s)
			}
			holds(t, d, id, n)
			ok(t, put(d, id, n))
			wantKind(t, d.Append(ctx, header(id), payload(id, n)[1:], nil), errs.Conflict)
		})
	}
}

// TestFailedIO: a write or sync that fails fails the drive, and what was not acknowledged is not.
func TestFailedIO(t *testing.T) {
	for name, fault := range map[string]vfsx.Fault{
		"write":              {Ops: vfsx.OpWrite, Path: "/extents/"},
		"sync":               {Ops: vfsx.OpSync, Path: "/extents/"},
		"create":             {Ops: vfsx.OpCreate, Path: "/extents/"},
		"sync dir":           {Ops: vfsx.OpSyncDir, Path: "/extents"},
		"stat":               {Ops: vfsx.OpStat, Path: "drive.json"},
		"links":              {Ops: vfsx.OpStat, Path: "/extents/"},
		"no space in a sync": {Ops: vfsx.OpSync, Path: "/extents/", Err: syscall.ENOSPC},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMem(t)
			cfg := small(m)
			var fails atomic.Int32
			failed := make(chan error, 10)
			cfg.OnFail = func(err error) { fails.Add(1); failed <- err }
			d := told(t, cfg)
			acked := 0
			if fault.Err == nil {
				fault.Err = syscall.EIO
			}
			fault.After = 5
			if name == "create" || name == "sync dir" {
				fault.After = 1
			}
			m.Inject(fault)
			for ; acked < 100; acked++ {
				if err := put(d, shardID(1, uint64(acked), 0), 9000); err != nil {
					wantKind(t, err, errs.DriveFailed)
					break
				}
			}
			if acked == 100 {
				t.Fatal("the fault was never met")
			}
			<-failed
			wantKind(t, put(d, shardID(1, 1000, 0), 10), errs.DriveFailed)
			_, err := read(d, shardID(1, 0, 0), 0, 1)
			wantKind(t, err, errs.DriveFailed)
			wantKind(t, remove(d, shardID(1, 0, 0)), errs.DriveFailed)
			wantKind(t, d.SetEpochs(ctx, nil), errs.DriveFailed)
			wantKind(t, d.Check(), errs.DriveFailed)
			wantKind(t, d.List(ctx, 1, storage.ChunkID{}, func(storage.ShardInfo) bool { return true }), errs.DriveFailed)
			ok(t, d.Close())
			if fails.Load() != 1 {
				t.Fatalf("OnFail was called %d times", fails.Load())
			}
			for seed := range uint64(10) {
				d := told(t, small(m.CrashClone(seed)))
				for i := range acked {
					holds(t, d, shardID(1, uint64(i), 0), 9000)
				}
				ok(t, d.Close())
			}
		})
	}
}

// TestRemovedWhileOpen: after rm -rf writes and syncs succeed, but nothing is acknowledged.
func TestRemovedWhileOpen(t *testing.T) {
	for _, what := range []string{"", "/drive.json", "/extents", "/extents/00000001.extent"} {
		t.Run("rm -rf drive"+what, func(t *testing.T) {
			m := newMem(t)
			d := told(t, small(m))
			ok(t, put(d, shardID(1, 1, 0), 100))
			ok(t, d.Check())
			ok(t, m.RemoveTree(testDir+what))
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					if err := put(d, shardID(1, uint64(10+i), 0), 100); !errs.Is(err, errs.DriveFailed) {
						t.Errorf("append: %v", err)
					}
				})
			}
			wg.Wait()
			wantKind(t, d.Failed(), errs.DriveFailed)
			ok(t, d.Close())
		})
	}
	t.Run("replaced", func(t *testing.T) {
		m := newMem(t)
		d := told(t, small(m))
		ok(t, m.RemoveTree(testDir))
		ok(t, Format(m, testDir, Identity{DriveID: storage.DriveID{77}}))
		wantKind(t, d.Check(), errs.DriveFailed)
		ok(t, d.Close())
		d = told(t, small(m)) // the same folder, another drive
		ok(t, put(d, shardID(1, 1, 0), 100))
	})
	t.Run("os", func(t *testing.T) {
		fs, dir := vfsx.OS(), t.TempDir()+"/d"
		ok(t, Format(fs, dir, Identity{DriveID: testID}))
		d := told(t, Config{FS: fs, Dir: dir})
		ok(t, put(d, shardID(1, 1, 0), 100))
		ok(t, fs.RemoveAll(dir))
		wantKind(t, put(d, shardID(1, 2, 0), 100), errs.DriveFailed)
		ok(t, d.Close())
		ok(t, Format(fs, dir, Identity{DriveID: storage.DriveID{77}}))
		d = told(t, Config{FS: fs, Dir: dir})
		ok(t, put(d, shardID(1, 1, 0), 100))
	})
}

// TestReserve: below the reserve appends are refused, removes and epochs and a restart work, and make room again.
func TestReserve(t *testing.T) {
	m := newMem(t)
	const capacity = 6 << 20
	m.SetCapacity(capacity)
	cfg := small(m)
	cfg.ReserveBytes = 3 << 20
	cfg.ExtentBytes = 256 << 10
	d := told(t, cfg)
	n := 0
	for ; n < 1000; n++ {
		if err := put(d, shardID(1, uint64(n), 0), 50_000); err != nil {
			wantKind(t, err, errs.DriveFull)
			break
		}
	}
	if free := capacity - m.Used(); free < 2<<20 {
		t.Fatalf("%d bytes free: the reserve was used", free)
	}
	if !d.Stats().Full {
		t.Fatal("stats don't say that the drive is full")
	}
	for i := range n {
		holds(t, d, shardID(1, uint64(i), 0), 50_000)
	}
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{9: 9}))
	ok(t, d.Close())
	d = told(t, cfg)
	wantKind(t, put(d, shardID(1, 5000, 0), 50_000), errs.DriveFull)
	for i := range n / 2 {
		ok(t, remove(d, shardID(1, uint64(i), 0)))
	}
	eventually(t, "room after removals", func() bool { return put(d, shardID(1, 5000, 0), 50_000) == nil })
	holds(t, d, shardID(1, 5000, 0), 50_000)
	holds(t, d, shardID(1, uint64(n-1), 0), 50_000)
}

// TestNoSpace: a write that finds the disk full refuses the appends, not the drive, and leaves nothing behind.
func TestNoSpace(t *testing.T) {
	m := newMem(t)
	cfg := small(m)
	cfg.ExtentBytes = 1 << 20
	d := told(t, cfg)
	ok(t, put(d, shardID(1, 0, 0), 30_000))
	var written int
	for round := range 5 {
		stop := m.Inject(vfsx.Fault{Ops: vfsx.OpWrite, Path: "/extents/", Err: syscall.ENOSPC, After: round % 2})
		for i := range 3 {
			id := shardID(2, uint64(100*round+i), 0)
			if err := put(d, id, 30_000); err == nil {
				written++
			} else {
				wantKind(t, err, errs.DriveFull)
				_, err := read(d, id, 0, 1)
				wantKind(t, err, errs.NotFound)
			}
		}
		stop()
		ok(t, put(d, shardID(1, uint64(round+1), 0), 30_000)) // space returned
	}
	ok(t, d.Close())
	ok(t, m.RemoveAll(testDir+"/index"))
	d = told(t, cfg)
	for i := range 6 {
		holds(t, d, shardID(1, uint64(i), 0), 30_000)
	}
	if s := d.Stats(); s.Shards != int64(6+written) {
		t.Fatalf("%d shards after rebuilding, %d were acknowledged", s.Shards, 6+written)
	}
	if bad, err := d.Bad(); err != nil || len(bad) > 0 {
		t.Fatal(bad, err)
	}
}

// TestNoSpaceRemove: a removal in the same batch as appends that find no space is tried alone.
func TestNoSpaceRemove(t *testing.T) {
	m := newMem(t)
	d := told(t, small(m))
	ok(t, put(d, shardID(1, 1, 0), 100))
	m.SetCapacity(m.Used() + 16<<10)
	var appendErr, removeErr error
	var wg sync.WaitGroup
	// The writer is held up, so that both come into one batch.
	held, block := make(chan struct{}), make(chan struct{})
	go d.keeper.job(func() error { close(held); <-block; return nil })
	<-held
	wg.Go(func() { appendErr = put(d, shardID(1, 2, 0), 60_000) })
	wg.Go(func() { removeErr = remove(d, shardID(1, 1, 0)) })
	eventually(t, "both wait", func() bool { return len(d.queue) >= 2 })
	close(block)
	wg.Wait()
	wantKind(t, appendErr, errs.DriveFull)
	ok(t, removeErr)
	_, err := read(d, shardID(1, 1, 0), 0, 1)
	wantKind(t, err, errs.Gone)
	ok(t, d.Failed())
}

// TestLeaveEarly: a caller whose ctx ends leaves; done is called when the writer is done with the buffer, once.
func TestLeaveEarly(t *testing.T) {
	m := newMem(t)
	d := told(t, small(m))
	held, hold := make(chan struct{}), make(chan struct{})
	go d.keeper.job(func() error { close(held); <-hold; return nil })
	<-held
	short, cancel := context.WithCancel(ctx)
	var done atomic.Int32
	left := make(chan error)
	id := shardID(1, 1, 0)
	go func() { left <- d.Append(short, header(id), payload(id, 5000), func() { done.Add(1) }) }()
	eventually(t, "the append waits", func() bool { return len(d.queue) > 0 })
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) || done.Load() != 0 {
		t.Fatalf("left with %v, done called %d times", err, done.Load())
	}
	close(hold)
	eventually(t, "done", func() bool { return done.Load() == 1 })
	eventually(t, "durable all the same", func() bool { _, err := read(d, id, 0, 5000); return err == nil })
	holds(t, d, id, 5000)
}

// TestHungDrive: when a drive hangs and is failed from outside, its callers return, Close too.
func TestHungDrive(t *testing.T) {
	m := newMem(t)
	d := told(t, small(m))
	hang := make(chan struct{})
	var hangs atomic.Bool
	m.SetHook(func(op vfsx.Op, path string) error {
		if op == vfsx.OpSync && strings.Contains(path, "/extents/") {
			hangs.Store(true)
			<-hang
		}
		return nil
	})
	defer close(hang)
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			err := d.Append(ctx, header(shardID(1, uint64(i), 0)), []byte("x"), nil)
			if !errs.Is(err, errs.DriveFailed) {
				t.Error(err)
			}
		})
	}
	eventually(t, "the writer hangs", hangs.Load)
	d.Fail(errors.New("it hangs"))
	wg.Wait()
	d.releaseLock() // as Close does after its wait
	d2, err := Open(small(m))
	ok(t, err)
	go d2.Close()
}

// TestIndexRotten: an index that is found rotten fails the drive and is rebuilt by the next Open.
func TestIndexRotten(t *testing.T) {
	m := newMem(t)
	d := told(t, small(m))
	for i := range 50 {
		ok(t, put(d, shardID(1, uint64(i), 0), 2000))
	}
	ok(t, remove(d, shardID(1, 7, 0)))
	ok(t, d.Close())
	names, err := m.List(testDir + "/index")
	ok(t, err)
	for _, name := range names {
		if strings.HasSuffix(name, ".sst") {
			for off := int64(0); off < 400; off += 7 {
				ok(t, m.XorByte(testDir+"/index/"+name, off, 0x5a))
			}
		}
	}
	for try := 0; ; try++ {
		d, err = Open(small(m))
		if err != nil {
			t.Fatal(err)
		}
		_, err := read(d, shardID(1, 3, 0), 0, 2000)
		if err == nil {
			break
		}
		wantKind(t, err, errs.DriveFailed)
		if try > 3 {
			t.Fatal("it stays rotten")
		}
		eventually(t, "failed", func() bool { return d.Failed() != nil })
		ok(t, d.Close())
	}
	defer d.Close()
	for i := range 50 {
		if i != 7 {
			holds(t, d, shardID(1, uint64(i), 0), 2000)
		}
	}
	_, err = read(d, shardID(1, 7, 0), 0, 1)
	wantKind(t, err, errs.Gone)
}

// TestIndexRottenAnywhere rots the index block by block, those that only Open reads
// among them: the drive opens all the same, and has everything.
func TestIndexRottenAnywhere(t *testing.T) {
	m := newMem(t)
	cfg := small(m)
	cfg.ExtentBytes = 8 << 10
	cfg.CleanAfter = time.Hour // the queue has rows
	d := told(t, cfg)
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{9: 7}))
	const shards = 150
	for i := range shards {
		ok(t, put(d, shardID(storage.PGID(1+i%3), uint64(i), 0), 200))
	}
	for i := 0; i < shards; i += 10 {
		ok(t, remove(d, shardID(storage.PGID(1+i%3), uint64(i), 0)))
	}
	ok(t, d.Close())
	names, err := m.List(testDir + "/index")
	ok(t, err)
	opened := 0
	var found lineCount
	cfg.Logger = slog.New(slog.NewTextHandler(&found, nil))
	for _, name := range names {
		path := testDir + "/index/" + name
		fi, err := m.Stat(path)
		ok(t, err)
		for off := int64(0); strings.HasSuffix(name, ".sst") && off < fi.Size(); off += 256 {
			rotten := m.CrashClone(0)
			for i := off; i < min(off+16, fi.Size()); i++ {
				ok(t, rotten.XorByte(path, i, 0x5a))
			}
			cfg.FS = rotten
			d, err := Open(cfg)
			if err != nil {
				t.Fatalf("%s rotten at %d: %v", name, off, err)
			}
			opened++
			d = readThrough(t, d, cfg, shards)
			ok(t, d.Close())
		}
	}
	if n := int(found.n.Load()); opened < 20 || n < 3 || n >= opened {
		t.Fatalf("opened %d times, of which %d found the index rotten", opened, n)
	}
}

// lineCount counts the lines logged that say that Open found the index rotten.
type lineCount struct{ n atomic.Int64 }

func (c *lineCount) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(`msg="the index is rotten"`)) {
		c.n.Add(1)
	}
	return len(p), nil
}

// readThrough checks what TestIndexRottenAnywhere wrote. A read that meets the rot
// fails the drive, and the next Open builds its index anew: the drive answered is the one that is open.
func readThrough(t *testing.T, d *Drive, cfg Config, shards int) *Drive {
	t.Helper()
	for i := 0; i < shards; i++ {
		id := shardID(storage.PGID(1+i%3), uint64(i), 0)
		p, err := read(d, id, 0, 200)
		switch {
		case errs.Is(err, errs.DriveFailed):
			eventually(t, "failed", func() bool { return d.Failed() != nil })
			ok(t, d.Close())
			d = open(t, cfg)
			i--
		case i%10 == 0:
			wantKind(t, err, errs.Gone)
		case err != nil || string(p) != string(payload(id, 200)):
			t.Fatalf("%v: %v", id, err)
		}
	}
	// The epochs, too, are remembered.
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{9: 6}))
	h := header(shardID(9, 1, 0))
	h.Epoch = 6
	wantKind(t, d.Append(ctx, h, []byte("x"), nil), errs.StaleEpoch)
	return d
}

// TestIndexFaults: errors of the index's files fail the drive, and a restart has everything.
func TestIndexFaults(t *testing.T) {
	for _, op := range []vfsx.Op{vfsx.OpWrite, vfsx.OpSync, vfsx.OpCreate, vfsx.OpSyncDir} {
		t.Run(fmt.Sprint(op), func(t *testing.T) {
			m := newMem(t)
			cfg := small(m)
			cfg.FlushBytes = 20_000
			d := told(t, cfg)
			m.Inject(vfsx.Fault{Ops: op, Path: "/index", Err: syscall.EIO, After: 1})
			acked := 0
			for ; acked < 5000; acked++ {
				if err := put(d, shardID(1, uint64(acked), 0), 3000); err != nil {
					wantKind(t, err, errs.DriveFailed)
					break
				}
			}
			if acked == 5000 {
				t.Fatal("the drive goes on with an index that can't be written")
			}
			crashed := m.CrashClone(0)
			go d.Close() // may hang: Pebble is parked
			d = told(t, small(crashed))
			for i := range acked {
				holds(t, d, shardID(1, uint64(i), 0), 3000)
			}
		})
	}
}
