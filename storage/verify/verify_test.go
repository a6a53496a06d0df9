package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	"cairn/server/status"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
	"cairn/test/seed"
)

func countOf(rep *status.Report, what string) int64 {
	for _, c := range rep.Counts {
		if c.What == what {
			return c.N
		}
	}
	return -1
}

func TestClean(t *testing.T) {
	for _, live := range []bool{true, false} {
		w := newWorld()
		var last status.Progress
		wantClean(t, w.check(t, live, func(c *Config) { c.Progress = func(p status.Progress) { last = p } })) // an empty store
		w.fill()
		rep := w.check(t, live, func(c *Config) { c.Progress = func(p status.Progress) { last = p } })
		wantClean(t, rep)
		for what, want := range map[string]int64{
			"objects": 26, "noncurrent versions": 2, "delete markers": 1, "parts": 4, "uploads in progress": 1, "chunks": 29,
			"shards awaiting removal": 3, "young shards": 30, "replicas": 3,
		} {
			if n := countOf(rep, what); n != want {
				t.Errorf("%d %s, want %d", n, what, want)
			}
		}
		if len(w.bad) != 0 || last.Phase != "content" || last.Objects != 28 || last.Bytes == 0 {
			t.Errorf("%v, %+v", w.bad, last)
		}
		if notes := strings.Join(rep.Notes, "\n"); !strings.Contains(notes, "behind the end") {
			t.Errorf("%s", notes)
		}
	}
}

// shard finds a shard of a version's or part's first chunk.
func (w *world) shard(it *rangestate.Item, stripe, index int) (*storagetest.Drive, storage.ShardID) {
	refs := append(it.Object.GetData().GetChunks(), it.Part.GetData().GetChunks()...)
	pg := w.Topology().PGs[storage.PGID(refs[0].Pg)]
	return w.Drives[pg.Drives[index]], storage.ShardID{PG: pg.ID, Chunk: storage.ChunkID(refs[0].Id), Stripe: uint16(stripe), Index: uint8(index)}
}

func rot(s *storagetest.Shard) { s.Corrupt = true }

// pack makes x an object of raw bytes whose one chunk stores fewer.
func pack(x *rangestate.Item, raw uint64) {
	ref := x.Object.Data.Chunks[0]
	ref.Compression, ref.RawLength, ref.FrameBytes = metapb.Compression_ZSTD_SEEKABLE, raw, 256<<10
	x.Object.Size = raw
}

// TestCompressed: the size of an object is that of its bytes, the frames are those of what is stored for them.
func TestCompressed(t *testing.T) {
	w := newWorld()
	w.fill()
	pack(w.put("packed", w.coded, 3000, 0), 9000)
	wantClean(t, w.check(t, true, func(c *Config) { c.Deep = false }))
	for what, plant := range map[string]func(x *rangestate.Item){
		"not shorter":     func(x *rangestate.Item) { pack(x, 3000) },
		"too long":        func(x *rangestate.Item) { pack(x, storage.ChunkBytesMax+1) },
		"not compressed":  func(x *rangestate.Item) { pack(x, 9000); x.Object.Data.Chunks[0].Compression = 0 },
		"another size":    func(x *rangestate.Item) { pack(x, 9000); x.Object.Size = 3000 },
		"another length":  func(x *rangestate.Item) { pack(x, 9000); x.Object.Data.Chunks[0].RawLength++ },
		"only the length": func(x *rangestate.Item) { x.Object.Data.Chunks[0].RawLength = 9000 },
	} {
		w := newWorld()
		plant(w.put("x", w.coded, 3000, 0))
		rep := w.check(t, false, func(c *Config) { c.Deep = false })
		if len(rep.Problems) == 0 || rep.Problems[0].Kind != KindRow {
			t.Errorf("%s: %v", what, rep.Problems)
		}
	}
}

// TestDefects plants one defect each and wants exactly it reported.
func TestDefects(t *testing.T) {
	old := -2 * storage.OrphanAge
	for name, c := range map[string]struct {
		plant func(w *world, x *rangestate.Item) // x is an object "x" of three stripes in the coded group
		kinds []string
	}{
		"missing shard": {func(w *world, x *rangestate.Item) { d, id := w.shard(x, 1, 4); d.Drop(id) }, []string{KindMissing}},
		"flipped byte":  {func(w *world, x *rangestate.Item) { d, id := w.shard(x, 2, 0); d.Change(id, rot) }, []string{KindCorrupt}},
		"too few left": {func(w *world, x *rangestate.Item) {
			for i := range 5 {
				d, id := w.shard(x, 1, i)
				d.Drop(id)
			}
		}, []string{KindLost, KindMissing, KindContent}},
		"awaiting repair": {func(w *world, x *rangestate.Item) {
			w.drop(x)
			w.put("x", w.coded, 3000, 0b10)
		}, []string{KindRepairing}},
		"drive being filled": {func(w *world, x *rangestate.Item) {
			d, id := w.shard(x, 1, 1)
			d.Drop(id)
			w.Update(func(t *cluster.Topology) { t.PGs[w.coded].DirtySince[1] = 1 })
		}, []string{KindRepairing}},
		"wrong drive and zone": {func(w *world, x *rangestate.Item) {
			d, id := w.shard(x, 0, 0)
			other, _ := w.shard(x, 0, 1)
			s := d.Shards()
			i := slices.IndexFunc(s, func(s storagetest.Shard) bool { return s.Header.ID == id })
			d.Drop(id)
			other.Put(s[i])
		}, []string{KindWrongDrive, KindMissing}},
		"wrong owner": {func(w *world, x *rangestate.Item) {
			d, id := w.shard(x, 0, 0)
			d.Change(id, func(s *storagetest.Shard) { s.Header.Owner.Write[3]++ })
		}, []string{KindOwner}},
		"wrong layout": {func(w *world, x *rangestate.Item) {
			d, id := w.shard(x, 0, 0)
			d.Change(id, func(s *storagetest.Shard) { s.Header.Layout.Length-- })
		}, []string{KindLayout}},
		"orphan": {func(w *world, x *rangestate.Item) {
			w.Write(storage.Owner{Bucket: 1, Key: "x", Write: w.next()}, w.coded, time.Now().Add(old).UnixMilli(), noise(10), 0)
		}, []string{KindUnreferenced}},
		"row lost": {func(w *world, x *rangestate.Item) {
			w.drop(x)
			w.Write(storage.Owner{Bucket: 1, Key: "x", Write: w.next()}, w.coded, time.Now().Add(old).UnixMilli(), noise(10), 0)
		}, []string{KindUnreferenced}},
		"row unreadable": {func(w *world, x *rangestate.Item) {
			w.items = append(w.items, &rangestate.Item{Kind: 'p', Bucket: 1, Key: "x", Err: errors.New("proto: wrong wire type")})
		}, []string{KindMetadata}},
		"size wrong":           {func(w *world, x *rangestate.Item) { x.Object.Size++ }, []string{KindRow}},
		"unknown group":        {func(w *world, x *rangestate.Item) { x.Object.Data.Chunks[0].Pg = 99 }, []string{KindRow, KindContent}},
		"no such code":         {func(w *world, x *rangestate.Item) { x.Object.Data.Chunks[0].K = 0 }, []string{KindRow}},
		"named by garbage too": {func(w *world, x *rangestate.Item) { y := *x; w.items = append(w.items, &y); w.garbage(&y) }, []string{KindTwice}},
		"inline bytes rotten":  {func(w *world, x *rangestate.Item) { w.inline("x", "hello").Object.Data.Inline[0]++ }, []string{KindContent}},
		"content wrong before its checksum": {func(w *world, x *rangestate.Item) {
			for i := range 6 {
				d, id := w.shard(x, 0, i)
				d.Change(id, func(s *storagetest.Shard) { s.Payload = bytes.Repeat([]byte{7}, len(s.Payload)) })
			}
		}, []string{KindContent}},
		"parity wrong": {func(w *world, x *rangestate.Item) {
			d, id := w.shard(x, 1, 5)
			d.Change(id, func(s *storagetest.Shard) { s.Payload = noise(len(s.Payload)) })
		}, []string{KindContent}},
		"part row lost": {func(w *world, x *rangestate.Item) {
			w.drop(x)
			_, _, parts := w.multipart("x", 3)
			w.drop(parts[1])
		}, []string{KindRow}},
		"manifest lost": {func(w *world, x *rangestate.Item) {
			w.drop(x)
			_, m, _ := w.multipart("x", 3)
			w.drop(m)
		}, []string{KindRow}},
		"version of a manifest lost": {func(w *world, x *rangestate.Item) {
			w.drop(x)
			o, _, _ := w.multipart("x", 3)
			w.drop(o)
		}, []string{KindRow}},
		"part of another size": {func(w *world, x *rangestate.Item) {
			w.drop(x)
			_, m, _ := w.multipart("x", 3)
			m.Manifest.Parts[0].Size++
		}, []string{KindRow}},
		"etag of parts wrong": {func(w *world, x *rangestate.Item) {
			w.drop(x)
			o, _, _ := w.multipart("x", 3)
			o.Object.Etag = strings.Repeat("0", 32) + "-3"
		}, []string{KindRow}},
		"part too many": {func(w *world, x *rangestate.Item) {
			w.drop(x)
			o, m, _ := w.multipart("x", 3)
			m.Manifest.Parts = m.Manifest.Parts[:2]
			o.Object.Size -= 2002
			o.Object.Data.Parts = 2
			o.Object.Etag = ""
		}, []string{KindRow}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, live := range []bool{true, false} {
				w := newWorld()
				w.fill()
				c.plant(w, w.put("x", w.coded, 3000, 0))
				rep := w.check(t, live)
				if name == "parity wrong" && !live { // needs the shards once more
					continue
				}
				wantOnly(t, rep, "x", c.kinds...)
			}
		})
	}
}

func TestNamesDriveAndHeals(t *testing.T) {
	w := newWorld()
	w.fill()
	x := w.put("x", w.coded, 3000, 0)
	d, id := w.shard(x, 2, 0)
	d.Change(id, rot)
	rep := w.check(t, true)
	if p := rep.Problems[0]; p.Drive != "/drive-1" || p.Zone != "a" || !strings.Contains(p.Detail, "stripe 2") {
		t.Errorf("%+v", p)
	}
	if !slices.Equal(w.bad, []string{"x 2 0 corrupt"}) {
		t.Errorf("%v", w.bad)
	}
}

func TestReplicas(t *testing.T) {
	for name, c := range map[string]struct {
		plant func(rs []Replica)
		found int64
	}{
		"one differs":         {func(rs []Replica) { rs[1].Hash = []byte("other") }, 1},
		"one is behind":       {func(rs []Replica) { rs[1].Hash, rs[1].Applied = []byte("other"), 5 }, 0},
		"one cannot be read":  {func(rs []Replica) { rs[1].Err = errors.New("corrupt block") }, 1},
		"two cannot be read":  {func(rs []Replica) { rs[0].Err, rs[1].Err = errors.New("gone"), errors.New("gone") }, 3},
		"all differ":          {func(rs []Replica) { rs[0].Hash, rs[1].Hash = []byte("a"), []byte("b") }, 3},
		"non-voters count no": {func(rs []Replica) { rs[0].Voter = false; rs[1].Err = errors.New("gone") }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			c.plant(w.replicas)
			rep := w.check(t, true)
			if rep.Found != c.found {
				t.Fatalf("%d problems: %v", rep.Found, rep.Problems)
			}
			for _, p := range rep.Problems {
				if p.Kind != KindReplica {
					t.Errorf("%v", p)
				}
			}
		})
	}
}

// TestDriveDown: a drive that is not there is one problem, not one for each object.
func TestDriveDown(t *testing.T) {
	w := newWorld()
	w.fill()
	w.SetState(1, cluster.DriveDown)
	rep := w.check(t, true)
	wantOnly(t, rep, "", KindDrive)
	if rep.Found != 1 || !strings.Contains(strings.Join(rep.Notes, "\n"), "were not checked") {
		t.Fatalf("%v\n%v", rep.Problems, rep.Notes)
	}
}

// TestDriveFails: a scan that fails is a problem of the drive, and the check goes on.
func TestDriveFails(t *testing.T) {
	w := newWorld()
	w.fill()
	rep := w.check(t, true, func(c *Config) {
		scan := c.Drives[2].Scan
		c.Drives[2].Scan = func(ctx context.Context, fn func(Frame) error) error {
			n := 0
			err := scan(ctx, func(f Frame) error {
				if n++; n > 5 {
					return errors.New("input/output error")
				}
				return fn(f)
			})
			return err
		}
	})
	// Its shards can be read one by one, so only the drive is reported.
	wantOnly(t, rep, "", KindDrive)
}

// TestDamagedRange: bytes of an extent that are no frame are damage, also if all objects are whole.
func TestDamagedRange(t *testing.T) {
	w := newWorld()
	w.fill()
	rep := w.check(t, true, func(c *Config) {
		scan := c.Drives[2].Scan
		c.Drives[2].Scan = func(ctx context.Context, fn func(Frame) error) error {
			if err := fn(Frame{Where: "extent 1 at 4096", Err: errs.New(errs.Corrupt, "", "", "header checksum")}); err != nil {
				return err
			}
			return scan(ctx, fn)
		}
	})
	wantOnly(t, rep, "", KindCorrupt)
	if p := rep.Problems[0]; rep.Found != 1 || p.Drive != "/drive-3" || !strings.Contains(p.Detail, "extent 1 at 4096") || !strings.Contains(p.Detail, "header checksum") {
		t.Fatalf("%v", rep.Problems)
	}
}

func TestZoneRule(t *testing.T) {
	w := newWorld()
	w.AddPG(storage.Scheme{K: 1, M: 2}, 1, 4, 2) // two copies in zone a
	wantOnly(t, w.check(t, true), "", KindZone)
}

// TestChangesMeanwhile: objects are written, deleted, overwritten and repaired
// between and during the two scans; nothing of that is a problem.
func TestChangesMeanwhile(t *testing.T) {
	seed := seed.Of(t)
	for round := range uint64(20) {
		rnd := rand.New(rand.NewPCG(seed, round))
		w := newWorld()
		w.fill()
		repaired := w.put("repaired", w.coded, 3000, 0b101)
		n := 0
		change := func() {
			n++
			for range 4 {
				objects := slices.DeleteFunc(slices.Clone(w.items), func(it *rangestate.Item) bool { return len(it.Object.GetData().GetChunks()) == 0 })
				switch it := objects[rnd.IntN(len(objects))]; rnd.IntN(3) {
				case 0: // deleted and collected
					w.drop(it)
					w.Remove(t.Context(), it.Object.Data.Chunks)
				case 1:
					w.put(storage.Key(fmt.Sprint("new", n)), w.coded, 1+rnd.IntN(5000), 0)
				case 2: // deleted, and to be collected
					w.garbage(it)
				}
			}
			if n == 3 && slices.Contains(w.items, repaired) && repaired.Object != nil {
				ref := repaired.Object.Data.Chunks[0]
				if err := w.Rebuild(t.Context(), storage.Owner{Bucket: 1, Key: "repaired", Write: storage.WriteID(repaired.Object.WriteId)}, ref, []int{0, 2}); err != nil {
					t.Fatal(err)
				}
				ref.Missing = 0
			}
		}
		w.walked, w.scanned = change, change
		rep := w.check(t, true)
		if rep.Found != 0 {
			t.Fatalf("round %d: %v", round, rep.Problems)
		}
	}
}

// TestSorter compares with a map, with and without runs on disk.
func TestSorter(t *testing.T) {
	seed := seed.Of(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for _, memory := range []int{200, 5000, 1 << 20} {
		s := newSorter(t.TempDir(), "x", memory)
		want := map[string]int{}
		for range 2000 {
			k := fmt.Sprint(rnd.IntN(500))
			v := strings.Repeat("v", rnd.IntN(100))
			want[k+"="+v]++
			if err := s.add([]byte(k), []byte(v)); err != nil {
				t.Fatal(err)
			}
		}
		got := map[string]int{}
		last := ""
		if err := s.each(t.Context(), func(k, v []byte) error {
			if string(k) < last {
				t.Fatalf("%s after %s", k, last)
			}
			last = string(k)
			got[string(k)+"="+string(v)]++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got, want) || (memory < 1<<20) != (len(s.runs) > 1) {
			t.Fatalf("memory %d: %d of %d records, %d runs", memory, len(got), len(want), len(s.runs))
		}
		if files, err := os.ReadDir(s.dir); err != nil || len(files) != len(s.runs) || len(files) > mergeRunsMax {
			t.Fatalf("memory %d: %d files for %d runs, of which %d were written", memory, len(files), len(s.runs), s.written)
		}
		stop := errors.New("stop")
		if err := s.each(t.Context(), func(k, v []byte) error { return stop }); memory == 1<<20 && err != stop {
			t.Fatal(err)
		}
	}
}
