package drive

import (
	"bytes"
	"fmt"
	"sync"
	"testing"

	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

func TestAppendReadRemove(t *testing.T) {
	d := told(t, small(newMem(t)))
	sizes := []int{1, 7, 4096, 65536, 65537, 200_000}
	for i, n := range sizes {
		ok(t, put(d, shardID(1, uint64(i), 0), n))
	}
	for i, n := range sizes {
		id := shardID(1, uint64(i), 0)
		holds(t, d, id, n)
		want := payload(id, n)
		for _, r := range [][2]int{{0, 1}, {n - 1, 1}, {n / 2, n - n/2}, {n / 3, n / 3}, {0, 0}} {
			got, err := read(d, id, r[0], r[1])
			ok(t, err)
			if !bytes.Equal(got, want[r[0]:r[0]+r[1]]) {
				t.Fatalf("wrong bytes at %v of %d", r, n)
			}
		}
		_, err := read(d, id, 1, n)
		wantKind(t, err, errs.InvalidArgument)
	}
	_, err := read(d, shardID(1, 99, 0), 0, 1)
	wantKind(t, err, errs.NotFound)
	ok(t, remove(d, shardID(1, 2, 0), shardID(1, 98, 0)))
	_, err = read(d, shardID(1, 2, 0), 0, 1)
	wantKind(t, err, errs.Gone)
	wantKind(t, put(d, shardID(1, 2, 0), 10), errs.Gone)
	wantKind(t, put(d, shardID(1, 98, 3), 10), errs.Gone)
	holds(t, d, shardID(1, 3, 0), sizes[3])
	ok(t, put(d, shardID(2, 2, 0), 10)) // the same chunk id in another group
}

func TestReopen(t *testing.T) {
	m := newMem(t)
	for round := range 4 {
		d := told(t, small(m))
		for r := range round {
			for i := range 20 {
				id := shardID(1, uint64(r*100+i), 0)
				if i == 3 {
					_, err := read(d, id, 0, 1)
					wantKind(t, err, errs.Gone)
					continue
				}
				holds(t, d, id, 1000*i+1)
			}
		}
		for i := range 20 {
			ok(t, put(d, shardID(1, uint64(round*100+i), 0), 1000*i+1))
		}
		ok(t, remove(d, shardID(1, uint64(round*100+3), 0)))
		ok(t, d.Close())
		if _, err := read(d, shardID(1, 1, 0), 0, 1); !errs.Is(err, errs.Closed) {
			t.Fatal(err)
		}
		if round == 2 {
			ok(t, m.RemoveAll(testDir+"/index"))
		}
	}
}

func TestEpochs(t *testing.T) {
	m := newMem(t)
	d := open(t, small(m))
	id := shardID(5, 1, 0)
	wantKind(t, put(d, id, 10), errs.StaleEpoch)
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{5: 1}))
	ok(t, put(d, id, 10))
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{5: 3, 6: 1}))
	wantKind(t, put(d, shardID(5, 2, 0), 10), errs.StaleEpoch) // an older epoch
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{5: 1}))
	wantKind(t, put(d, shardID(5, 2, 0), 10), errs.StaleEpoch) // ignored: lower than known
	h := header(shardID(5, 2, 0))
	h.Epoch = 4
	wantKind(t, d.Append(ctx, h, []byte("x"), nil), errs.StaleEpoch) // newer than told
	h.Epoch = 3
	ok(t, d.Append(ctx, h, []byte("x"), nil))
	ok(t, d.Close())

	d = open(t, small(m))
	wantKind(t, d.Append(ctx, h, []byte("x"), nil), errs.StaleEpoch) // not told since the start
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{5: 2}))
	wantKind(t, d.Append(ctx, h, []byte("x"), nil), errs.StaleEpoch) // 2 is lower than what was persisted
	ok(t, d.SetEpochs(ctx, map[storage.PGID]storage.Epoch{5: 3}))
	ok(t, d.Append(ctx, h, []byte("x"), nil))
	holds(t, d, id, 10)
}

func TestAppendAgain(t *testing.T) {
	d := told(t, small(newMem(t)))
	id := shardID(1, 1, 0)
	ok(t, put(d, id, 5000))
	before := d.Stats()
	ok(t, put(d, id, 5000))
	if now := d.Stats(); now.LiveBytes != before.LiveBytes || now.Batches != before.Batches {
		t.Fatalf("a repeated append wrote: %+v, before %+v", now, before)
	}
	other := payload(id, 5000)
	other[4999]++
	wantKind(t, d.Append(ctx, header(id), other, nil), errs.Conflict)
	wantKind(t, d.Append(ctx, header(id), payload(id, 4999), nil), errs.Conflict)
	h := header(id)
	h.Owner.Write[0]++
	wantKind(t, d.Append(ctx, h, payload(id, 5000), nil), errs.Conflict)
	holds(t, d, id, 5000)
	// The same shard many times at once.
	var wg sync.WaitGroup
	id = shardID(1, 2, 0)
	for range 20 {
		wg.Go(func() {
			if err := put(d, id, 3000); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	holds(t, d, id, 3000)
	if s := d.Stats(); s.Shards != 2 {
		t.Fatalf("%d shards", s.Shards)
	}
}

func TestList(t *testing.T) {
	d := told(t, small(newMem(t)))
	var wg sync.WaitGroup
	const chunks, stripes = 300, 4
	for w := range 8 {
		wg.Go(func() {
			for c := w; c < chunks; c += 8 {
				for s := range stripes {
					if err := put(d, shardID(2, uint64(c), s), 1+c%50); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	ok(t, put(d, shardID(1, 1, 0), 1))
	ok(t, put(d, shardID(3, 1, 0), 1))
	list := func(from storage.ChunkID, max int) (got []string) {
		ok(t, d.List(ctx, 2, from, func(i storage.ShardInfo) bool {
			got = append(got, fmt.Sprint(i.ID.PG, i.ID.Chunk, i.ID.Stripe, i.Bytes))
			return len(got) < max
		}))
		return got
	}
	var want []string
	for c := range chunks {
		for s := range stripes {
			id := shardID(2, uint64(c), s)
			want = append(want, fmt.Sprint(id.PG, id.Chunk, id.Stripe, 1+c%50))
		}
	}
	if got := list(storage.ChunkID{}, 1e9); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("listed %d, want %d", len(got), len(want))
	}
	if got := list(shardID(2, 100, 0).Chunk, 7); fmt.Sprint(got) != fmt.Sprint(want[400:407]) {
		t.Fatal(got)
	}
	ok(t, remove(d, shardID(2, 0, 0)))
	if got := list(storage.ChunkID{}, 1); fmt.Sprint(got) != fmt.Sprint(want[4:5]) {
		t.Fatal(got)
	}
}

func TestFormatAndInspect(t *testing.T) {
	for name, fs := range map[string]vfsx.FS{"mem": vfsx.NewMem(), "os": vfsx.OS()} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir() + "/drive"
			ok(t, fs.MkdirAll(fs.PathDir(dir), 0o755))
			inspect := func(want State) Identity {
				t.Helper()
				s, id, err := Inspect(fs, dir)
				ok(t, err)
				if s != want {
					t.Fatalf("%v, want %v", s, want)
				}
				return id
			}
			inspect(Missing)
			_, err := ReadIdentity(fs, dir)
			wantKind(t, err, errs.NotFound)
			ok(t, fs.MkdirAll(dir+"/lost+found", 0o755))
			inspect(Empty)
			id := Identity{StoreID: "st", DriveID: testID, Node: "n", Zone: "z", Path: dir, Starts: 4}
			ok(t, Format(fs, dir, id))
			got := inspect(Formatted)
			id.Format = FormatVersion
			if got != id {
				t.Fatalf("%+v, want %+v", got, id)
			}
			wantKind(t, Format(fs, dir, id), errs.Conflict)
			d, err := Open(Config{FS: fs, Dir: dir})
			ok(t, err)
			_, err = Open(Config{FS: fs, Dir: dir})
			wantKind(t, err, errs.Busy)
			ok(t, d.Close())
			_, err = Open(Config{FS: fs, Dir: dir, Identity: Identity{DriveID: storage.DriveID{9}}})
			wantKind(t, err, errs.Foreign)
			ok(t, fs.Remove(dir+"/drive.json"))
			inspect(ForeignFiles)
			wantKind(t, Format(fs, dir, id), errs.Conflict)
		})
	}
}

// TestFormatIsDurable: a drive formatted in folders that were not there survives a power cut, and so does its first shard.
func TestFormatIsDurable(t *testing.T) {
	for seed := range uint64(20) {
		m := vfsx.NewMem()
		const dir = "/a/b/c/d"
		ok(t, Format(m, dir, Identity{DriveID: testID}))
		if s, _, err := Inspect(m.CrashClone(seed), dir); s != Formatted || err != nil {
			t.Fatalf("seed %d: %v, %v", seed, s, err)
		}
		cfg := small(m)
		cfg.Dir = dir
		ok(t, put(told(t, cfg), shardID(1, 1, 0), 100))
		cfg.FS = m.CrashClone(seed)
		holds(t, told(t, cfg), shardID(1, 1, 0), 100)
	}
}

// TestFormatBrokenOff: whatever a crash leaves of a Format is either a drive or can be formatted again.
func TestFormatBrokenOff(t *testing.T) {
	for at := range 40 {
		m := vfsx.NewMem()
		ops := 0
		var clones []*vfsx.Mem
		m.SetHook(func(op vfsx.Op, _ string) error {
			if op&vfsx.OpMutate != 0 {
				if ops++; ops == at {
					for seed := range uint64(5) {
						clones = append(clones, m.CrashClone(seed))
					}
				}
			}
			return nil
		})
		ok(t, Format(m, testDir, Identity{DriveID: testID}))
		for _, c := range clones {
			if s, _, err := Inspect(c, testDir); err != nil || s != Formatted {
				ok(t, Format(c, testDir, Identity{DriveID: testID}))
			}
			ok(t, put(told(t, small(c)), shardID(1, 1, 0), 100))
		}
		if ops < at {
			return
		}
	}
}
