package vfsx

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sort"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/test/seed"
)

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// content is all bytes of a file.
func content(t *testing.T, fs FS, name string) []byte {
	t.Helper()
	f := must[vfs.File](t)(fs.Open(name))
	defer f.Close()
	return must[[]byte](t)(io.ReadAll(f))
}

// TestSameAsOS does the same random operations on a Mem and on the operating system's files.
func TestSameAsOS(t *testing.T) {
	seed := seed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	mem, disk, dir := NewMem(), OS(), t.TempDir()
	ok(t, mem.MkdirAll(dir, 0o755))
	type pair struct{ a, b File }
	open := map[string]pair{}
	names := []string{dir + "/a", dir + "/b", dir + "/c"}
	same := func(what string, ea, eb error) {
		t.Helper()
		if (ea == nil) != (eb == nil) || errors.Is(ea, os.ErrNotExist) != errors.Is(eb, os.ErrNotExist) ||
			errors.Is(ea, os.ErrExist) != errors.Is(eb, os.ErrExist) {
			t.Fatalf("%s: Mem %v, OS %v", what, ea, eb)
		}
	}
	for step := range 3000 {
		name := names[rng.IntN(len(names))]
		p, isOpen := open[name]
		switch op := rng.IntN(10); {
		case op == 0 && !isOpen:
			a, ea := mem.CreateFile(name)
			b, eb := disk.CreateFile(name)
			same("create", ea, eb)
			if ea == nil {
				open[name] = pair{a, b}
			}
		case op == 1 && !isOpen:
			a, ea := mem.OpenFile(name)
			b, eb := disk.OpenFile(name)
			same("open", ea, eb)
			if ea == nil {
				open[name] = pair{a, b}
			}
		case op == 2:
			same("remove", mem.Remove(name), disk.Remove(name))
		case op == 3:
			to := names[rng.IntN(len(names))]
			same("rename", mem.Rename(name, to), disk.Rename(name, to))
		case op == 4:
			to := names[rng.IntN(len(names))]
			same("link", mem.Link(name, to), disk.Link(name, to))
		case op == 5 && isOpen:
			same("close", p.a.Close(), p.b.Close())
			delete(open, name)
		case op == 6 && isOpen:
			fi := must[vfs.FileInfo](t)(p.a.Stat())
			if fi.Size() == 0 {
				continue
			}
			off := rng.Int64N(fi.Size())
			n := 1 + rng.Int64N(fi.Size()-off)
			ea, eb := p.a.PunchHole(off, n), p.b.PunchHole(off, n)
			if errors.Is(eb, ErrUnsupported) {
				_, eb = p.b.WriteV(off, [][]byte{make([]byte, n)})
			}
			same("punch", ea, eb)
		case isOpen:
			var bufs [][]byte
			for range rng.IntN(5) {
				b := make([]byte, rng.IntN(10000))
				for i := range b {
					b[i] = byte(rng.Uint32())
				}
				bufs = append(bufs, b)
			}
			off := rng.Int64N(100000)
			na, ea := p.a.WriteV(off, bufs)
			nb, eb := p.b.WriteV(off, bufs)
			same("writev", ea, eb)
			if na != nb {
				t.Fatalf("writev: Mem %d, OS %d", na, nb)
			}
		}
		if p, isOpen := open[name]; isOpen && step%20 == 0 {
			ia, ib := must[FileID](t)(p.a.ID()), must[FileID](t)(p.b.ID())
			if ia.Links != ib.Links {
				t.Fatalf("links: Mem %d, OS %d", ia.Links, ib.Links)
			}
			size := must[vfs.FileInfo](t)(p.b.Stat()).Size()
			ba, bb := make([]byte, size+10), make([]byte, size+10)
			na, ea := p.a.ReadAt(ba, 0)
			nb, eb := p.b.ReadAt(bb, 0)
			if na != nb || ea != eb || !bytes.Equal(ba, bb) {
				t.Fatalf("read: Mem %d %v, OS %d %v, same bytes: %v", na, ea, nb, eb, bytes.Equal(ba, bb))
			}
		}
	}
	la, lb := must[[]string](t)(mem.List(dir)), must[[]string](t)(disk.List(dir))
	sort.Strings(la)
	sort.Strings(lb)
	if fmt.Sprint(la) != fmt.Sprint(lb) {
		t.Fatalf("list: Mem %v, OS %v", la, lb)
	}
	for _, name := range la {
		if !bytes.Equal(content(t, mem, dir+"/"+name), content(t, disk, dir+"/"+name)) {
			t.Fatalf("%s differs", name)
		}
	}
	for _, p := range open {
		ok(t, p.a.Close())
		ok(t, p.b.Close())
	}
}

func TestCrashCloneKeepsWhatWasSynced(t *testing.T) {
	m := NewMem()
	ok(t, m.MkdirAll("d", 0o755))
	ok(t, SyncDir(m, "/"))
	f := must[File](t)(m.CreateFile("d/f"))
	synced := bytes.Repeat([]byte("synced!!"), 2000) // almost 4 pages
	must[int64](t)(f.WriteV(0, [][]byte{synced[:5000], synced[5000:]}))
	ok(t, f.SyncData())
	ok(t, SyncDir(m, "d"))
	unsynced := bytes.Repeat([]byte("UNSYNCED"), 2000)
	must[int64](t)(f.WriteV(int64(len(synced)), [][]byte{unsynced}))
	g := must[File](t)(m.CreateFile("d/g"))
	ok(t, g.Sync()) // but not its directory
	var lost, torn, whole, named int
	for seed := range uint64(300) {
		c, again := m.CrashClone(seed), m.CrashClone(seed)
		got := content(t, c, "d/f")
		if !bytes.Equal(got, content(t, again, "d/f")) {
			t.Fatalf("seed %d gives two clones", seed)
		}
		if !bytes.HasPrefix(got, synced) {
			t.Fatalf("seed %d lost synced bytes", seed)
		}
		switch rest := got[len(synced):]; {
		case len(rest) == 0:
			lost++
		case bytes.Equal(rest, unsynced):
			whole++
		default:
			torn++
		}
		if _, err := c.Stat("d/g"); err == nil {
			named++
		}
	}
	if lost == 0 || torn == 0 || whole == 0 || named == 0 || named == 300 {
		t.Fatalf("lost %d, torn %d, whole %d, named %d: some outcome never happens", lost, torn, whole, named)
	}
	if got := content(t, m, "d/f"); len(got) != len(synced)+len(unsynced) {
		t.Fatal("cloning changed the original")
	}
	// A clone and its original share pages but no writes.
	c := m.CrashClone(1)
	cf := must[File](t)(c.OpenFile("d/f"))
	must[int64](t)(cf.WriteV(0, [][]byte{[]byte("clone")}))
	must[int64](t)(f.WriteV(10, [][]byte{[]byte("origin")}))
	if a, b := content(t, m, "d/f"), content(t, c, "d/f"); !bytes.HasPrefix(a, synced[:10]) || !bytes.HasPrefix(b, []byte("clone")) || !bytes.Equal(b[10:16], synced[10:16]) {
		t.Fatal("writes leak between clone and original")
	}
}

// TestCrashCloneRename: a rename within a directory happened or not, but the file is there.
func TestCrashCloneRename(t *testing.T) {
	m := NewMem()
	f := must[File](t)(m.CreateFile("old"))
	must[int64](t)(f.WriteV(0, [][]byte{[]byte("x")}))
	ok(t, f.Sync())
	ok(t, SyncDir(m, "/"))
	ok(t, m.Rename("old", "new"))
	seen := map[string]int{}
	for seed := range uint64(200) {
		names := must[[]string](t)(m.CrashClone(seed).List("/"))
		seen[fmt.Sprint(names)]++
	}
	if len(seen) != 2 || seen["[old]"] == 0 || seen["[new]"] == 0 {
		t.Fatal(seen)
	}
}

// TestFailedSync: what a failed sync should have made durable is not, also after a later one that succeeds.
func TestFailedSync(t *testing.T) {
	m := NewMem()
	f := must[File](t)(m.CreateFile("f"))
	ok(t, f.Sync())
	ok(t, SyncDir(m, "/"))
	must[int64](t)(f.WriteV(0, [][]byte{[]byte("lost")}))
	remove := m.Inject(Fault{Ops: OpSync, Path: "f", Err: syscall.EIO})
	if err := f.SyncData(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	remove()
	ok(t, f.SyncData())
	lost := 0
	for seed := range uint64(50) {
		if !bytes.Equal(content(t, m.CrashClone(seed), "f"), []byte("lost")) {
			lost++
		}
	}
	if lost == 0 {
		t.Fatal("a failed sync made its bytes durable")
	}
}

func TestFaultsCountAndMatch(t *testing.T) {
	m := NewMem()
	f := must[File](t)(m.CreateFile("dir1file"))
	remove := m.Inject(Fault{Ops: OpWrite, Path: "1f", After: 1, Times: 2, Err: syscall.EIO})
	var got []bool
	for range 4 {
		n, err := f.WriteV(0, [][]byte{[]byte("abcd")})
		if err != nil && n != 2 {
			t.Fatalf("a failed write left %d bytes", n)
		}
		got = append(got, err != nil)
	}
	remove()
	if fmt.Sprint(got) != "[false true true false]" {
		t.Fatal(got)
	}
}

func TestCapacity(t *testing.T) {
	m := NewMem()
	m.SetCapacity(10 * pageBytes)
	f := must[File](t)(m.CreateFile("f"))
	n, err := f.WriteV(0, [][]byte{make([]byte, 20*pageBytes)})
	if !IsNoSpace(err) || n != 10*pageBytes {
		t.Fatalf("wrote %d: %v", n, err)
	}
	ok(t, f.PunchHole(0, 4*pageBytes))
	if u := must[vfs.DiskUsage](t)(m.GetDiskUsage("/")); u.AvailBytes != 4*pageBytes {
		t.Fatalf("%+v after punching 4 pages", u)
	}
	if at := must[int64](t)(f.SeekData(0)); at != 4*pageBytes {
		t.Fatalf("data begins at %d", at)
	}
	ok(t, m.Remove("f"))
	if m.Used() == 0 {
		t.Fatal("an open file takes no space")
	}
	ok(t, f.Close())
	if m.Used() != 0 {
		t.Fatalf("%d bytes used by nothing", m.Used())
	}
}

func TestRemoveTreeWhileOpen(t *testing.T) {
	for name, fs := range map[string]FS{"mem": NewMem(), "os": OS()} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			ok(t, fs.MkdirAll(dir+"/d/e", 0o755))
			f := must[File](t)(fs.CreateFile(dir + "/d/e/f"))
			defer f.Close()
			if id := must[FileID](t)(f.ID()); id.Links != 1 || !id.Same(must[FileID](t)(fs.StatID(dir+"/d/e/f"))) {
				t.Fatalf("%+v", id)
			}
			ok(t, fs.RemoveAll(dir+"/d"))
			must[int64](t)(f.WriteV(0, [][]byte{[]byte("x")}))
			ok(t, f.SyncData())
			if id := must[FileID](t)(f.ID()); id.Links != 0 {
				t.Fatalf("%d links after rm -rf", id.Links)
			}
		})
	}
}

// TestManyBuffers: more buffers than one system call takes.
func TestManyBuffers(t *testing.T) {
	fs, dir := OS(), t.TempDir()
	f := must[File](t)(fs.CreateFile(dir + "/f"))
	defer f.Close()
	var bufs [][]byte
	var want []byte
	for i := range 3000 {
		b := bytes.Repeat([]byte{byte(i)}, i%7)
		bufs, want = append(bufs, b), append(want, b...)
	}
	if n := must[int64](t)(f.WriteV(0, bufs)); n != int64(len(want)) {
		t.Fatalf("wrote %d of %d", n, len(want))
	}
	if !bytes.Equal(content(t, fs, dir+"/f"), want) {
		t.Fatal("other bytes than written")
	}
}

// TestPebbleSurvivesCrashes runs a Pebble with its WAL on a Mem through crashes: synced commits stay.
func TestPebbleSurvivesCrashes(t *testing.T) {
	seed := seed.Of(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	m := NewMem()
	want := map[string]string{}
	for round := range 15 {
		db, err := pebble.Open("db", &pebble.Options{FS: m, Logger: quiet{t}, MemTableSize: 32 << 10,
			FormatMajorVersion: pebble.FormatNewest})
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for k, v := range want {
			got, closer, err := db.Get([]byte(k))
			if err != nil || string(got) != v {
				t.Fatalf("round %d: %s is %q, %v; want %q", round, k, got, err, v)
			}
			closer.Close()
		}
		for range 20 {
			k, v := fmt.Sprint(rng.IntN(100)), fmt.Sprint(rng.Uint64(), string(make([]byte, 1000)))
			ok(t, db.Set([]byte(k), []byte(v), pebble.Sync))
			want[k] = v
		}
		clone := m.CrashClone(rng.Uint64())
		ok(t, db.Close())
		m = clone
	}
}

type quiet struct{ t *testing.T }

func (quiet) Infof(string, ...any)                {}
func (quiet) Errorf(string, ...any)               {}
func (q quiet) Fatalf(format string, args ...any) { q.t.Errorf(format, args...) }
