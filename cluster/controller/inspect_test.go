package controller

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"cairn/cluster"
	"cairn/storage/drive"
	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

const testStore = "5a5a"

// scene is a file system with drives on it and a configuration.
type scene struct {
	t   *testing.T
	fs  *vfsx.Mem
	cfg Config
	reg registry
}

// newScene configures so many drives in each zone a, b, ... below /data and formats nothing.
func newScene(t *testing.T, perZone ...int) *scene {
	s := &scene{t: t, fs: vfsx.NewMem()}
	s.cfg = Config{DataDir: "/data", FS: s.fs, Now: time.Now}
	for _, d := range zoned(perZone...) {
		s.cfg.Slots = append(s.cfg.Slots, Slot{Path: "/data/" + d.Path, Zone: d.Zone})
	}
	s.must(s.fs.MkdirAll("/data", 0o755))
	s.reg = registry{Format: 1, StoreID: testStore}
	return s
}

func (s *scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// format makes the drives with these numbers (from 1) in their slots.
func (s *scene) format(ns ...int) {
	for _, n := range ns {
		slot := s.cfg.Slots[n-1]
		s.drive(slot.Path, n, slot.Zone, testStore, 5)
	}
}

func (s *scene) drive(path string, n int, zone cluster.Zone, store string, starts uint64) {
	s.t.Helper()
	s.must(s.fs.MkdirAll(path, 0o755))
	s.must(drive.Format(s.fs, path, drive.Identity{StoreID: store, DriveID: testID(n), Node: "n", Zone: string(zone), Path: s.cfg.slotName(path), Starts: starts}))
}

// record writes the registry as if the drives with these numbers were the store's, with voters on them.
func (s *scene) record(voters []int, ns ...int) {
	for _, n := range ns {
		slot := s.cfg.Slots[n-1]
		s.reg.Drives = append(s.reg.Drives, record{ID: testID(n), IDText: testID(n).String(), Zone: slot.Zone, Path: s.cfg.slotName(slot.Path), State: cluster.DriveActive, Starts: 5})
	}
	g := groupRecord{ID: 1}
	for _, n := range voters {
		g.Voters = append(g.Voters, testID(n).String())
	}
	s.reg.Groups = []groupRecord{g}
	s.write()
}

// unrecorded has the registry know of a drive that the store never recorded.
func (s *scene) unrecorded(n int, path string, starts uint64) {
	s.reg.Drives = append(s.reg.Drives, record{ID: testID(n), IDText: testID(n).String(), Zone: "c", Path: s.cfg.slotName(path), State: cluster.DriveActive, Starts: starts, Unrecorded: true})
	s.write()
}

func (s *scene) write() {
	s.t.Helper()
	s.must(writeJSON(s.fs, "/data/"+registryName, &s.reg))
}

func (s *scene) file(path string) {
	s.t.Helper()
	s.must(s.fs.MkdirAll(filepath.Dir(path), 0o755))
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	s.must(err)
	s.must(f.Close())
}

func (s *scene) move(from, to string) { s.t.Helper(); s.must(s.fs.Rename(from, to)) }

func (s *scene) swap(a, b int) {
	pa, pb := s.cfg.Slots[a-1].Path, s.cfg.Slots[b-1].Path
	s.move(pa, "/data/swap")
	s.move(pb, pa)
	s.move("/data/swap", pb)
}

func TestInspect(t *testing.T) {
	cases := map[string]struct {
		zones []int
		set   func(*scene)
		kind  Kind
		want  []string // parts of the refusals; none: accepted
	}{
		"nothing anywhere": {[]int{1}, nil, NewStore, nil},
		"empty folders":    {[]int{1, 1, 1}, func(s *scene) { s.must(s.fs.MkdirAll("/data/zone-a/drive-1/lost+found", 0o755)) }, NewStore, nil},
		"a folder with foreign files": {[]int{1}, func(s *scene) { s.file("/data/zone-a/drive-1/holiday.jpg") }, NewStore,
			[]string{"/data/zone-a/drive-1", "not cairn's", "empty folder"}},
		"explicit paths without parent": {[]int{1}, func(s *scene) { s.cfg.Slots[0].Path = "/mnt/disk1/cairn" }, NewStore,
			[]string{"/mnt/disk1/cairn", "nor its parent", "mounted"}},
		"explicit path with a parent": {[]int{1}, func(s *scene) {
			s.cfg.Slots[0].Path = "/mnt/disk1"
			s.must(s.fs.MkdirAll("/mnt", 0o755))
		}, NewStore, nil},
		"a store":                        {[]int{1, 1, 1}, func(s *scene) { s.format(1, 2, 3); s.record([]int{1, 2, 3}, 1, 2, 3) }, ExistingStore, nil},
		"a store that lost its registry": {[]int{1, 1, 1}, func(s *scene) { s.format(1, 2, 3) }, ExistingStore, nil},
		"no drive of the store is left": {[]int{1, 1, 1}, func(s *scene) { s.record([]int{1, 2, 3}, 1, 2, 3) }, ExistingStore,
			[]string{testStore, "/data/zone-b/drive-1", "mount or restore", registryName}},
		"a damaged registry": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2, 3)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.must(s.fs.XorByte("/data/"+registryName, 0, 0xff))
		}, ExistingStore, nil},
		"a damaged registry and no drives": {[]int{1, 1, 1}, func(s *scene) {
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.must(s.fs.XorByte("/data/"+registryName, 0, 0xff))
		}, ExistingStore, []string{"there was a store here", "mount or restore", registryName}},
		"a drive of another store": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2)
			s.drive("/data/zone-c/drive-1", 3, "c", "0707", 5)
			s.record([]int{1, 2, 3}, 1, 2, 3)
		}, ExistingStore, []string{"/data/zone-c/drive-1", "0707", testStore}},
		"drives of two stores, no registry": {[]int{1, 1}, func(s *scene) {
			s.format(1)
			s.drive("/data/zone-b/drive-1", 2, "b", "0707", 5)
		}, ExistingStore, []string{"different stores", "0707: /data/zone-b/drive-1", testStore + ": /data/zone-a/drive-1"}},
		"drives swapped between zones": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2, 3)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.swap(1, 2)
		}, ExistingStore, []string{`/data/zone-a/drive-1 stands in zone "a"`, "/data/zone-b/drive-1", "put it back"}},
		"drives swapped within a zone": {[]int{2, 2, 2}, func(s *scene) {
			s.format(1, 2, 3, 4, 5, 6)
			s.record([]int{1, 2, 3, 4, 5}, 1, 2, 3, 4, 5, 6)
			s.swap(1, 2)
		}, ExistingStore, nil},
		"a drive took another's place": {[]int{2, 2, 2}, func(s *scene) {
			s.format(1, 3, 4, 5, 6)
			s.record([]int{1, 2, 3, 4, 5}, 1, 2, 3, 4, 5, 6)
			s.move("/data/zone-a/drive-1", "/data/zone-a/drive-2")
		}, ExistingStore, []string{"/data/zone-a/drive-2 holds drive", "belongs at /data/zone-a/drive-1"}},
		"a folder copied": {[]int{2, 1}, func(s *scene) {
			s.format(1, 3)
			s.drive("/data/zone-a/drive-2", 1, "a", testStore, 5)
		}, ExistingStore, []string{"copies of one drive", "/data/zone-a/drive-1", "/data/zone-a/drive-2"}},
		"one slot missing, a majority left": {[]int{1, 1, 1}, func(s *scene) { s.format(1, 2); s.record([]int{1, 2, 3}, 1, 2, 3) }, ExistingStore, nil},
		"two slots missing, no majority": {[]int{1, 1, 1}, func(s *scene) { s.format(1); s.record([]int{1, 2, 3}, 1, 2, 3) }, ExistingStore,
			[]string{"2 of 3 copies of the metadata", "/data/zone-b/drive-1", "/data/zone-c/drive-1"}},
		"an emptied slot": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2)
			s.must(s.fs.MkdirAll("/data/zone-c/drive-1", 0o755))
			s.record([]int{1, 2, 3}, 1, 2, 3)
		}, ExistingStore, nil},
		"fewer drives configured": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2, 3)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.cfg.Slots = s.cfg.Slots[:2]
		}, ExistingStore, []string{"is not configured", "/data/zone-c/drive-1", "configure it again"}},
		"more drives configured": {[]int{1, 1, 1}, func(s *scene) { s.format(1); s.record([]int{1}, 1) }, ExistingStore, nil},
		"another zone for a lost drive": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.cfg.Slots[2].Zone = "d"
		}, ExistingStore, []string{`drive of zone "c"`}},
		"a drive that was replaced returns": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2, 3)
			s.record([]int{1, 2}, 1, 2, 3)
			s.reg.Drives[2].State = cluster.DriveRemoved
			s.write()
		}, ExistingStore, []string{"/data/zone-c/drive-1", "was replaced", "never returns"}},
		"an old image of a drive": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2, 3)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.reg.Drives[1].Starts = 9
			s.write()
		}, ExistingStore, []string{"/data/zone-b/drive-1", "old image", "5 starts", "9"}},
		"a replacement was never recorded and is gone": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2)
			s.must(s.fs.MkdirAll("/data/zone-c/drive-1", 0o755))
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.unrecorded(7, "/data/zone-c/drive-1", 1)
		}, ExistingStore, nil},
		"a replacement was never recorded and is there": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2)
			s.drive("/data/zone-c/drive-1", 7, "c", testStore, 1)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.unrecorded(7, "/data/zone-c/drive-1", 1)
		}, ExistingStore, nil},
		"an old image of a replacement that was never recorded": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2)
			s.drive("/data/zone-c/drive-1", 7, "c", testStore, 1)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.unrecorded(7, "/data/zone-c/drive-1", 2)
		}, ExistingStore, []string{"/data/zone-c/drive-1", "old image"}},
		"no permission": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2, 3)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.fs.Inject(vfsx.Fault{Ops: vfsx.OpList | vfsx.OpOpen, Path: "/data/zone-b/drive-1", Err: fs.ErrPermission})
		}, ExistingStore, []string{"/data/zone-b/drive-1", "no permission", "user"}},
		"a drive that cannot be read, a majority left": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2, 3)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.fs.Inject(vfsx.Fault{Ops: vfsx.OpList | vfsx.OpOpen, Path: "/data/zone-b/drive-1", Err: errors.New("input/output error")})
		}, ExistingStore, nil},
		"a rotten identity, a majority left": {[]int{1, 1, 1}, func(s *scene) {
			s.format(1, 2, 3)
			s.record([]int{1, 2, 3}, 1, 2, 3)
			s.must(s.fs.XorByte("/data/zone-b/drive-1/drive.json", 0, 0xff))
		}, ExistingStore, nil},
		"a store half made": {[]int{1, 1}, func(s *scene) { s.intent(false); s.format(1) }, ResumeStore, nil},
		"a store half made, another configuration": {[]int{1, 1, 1}, func(s *scene) {
			s.intent(false)
			s.cfg.Slots = s.cfg.Slots[1:]
		}, ResumeStore, []string{"/data/zone-a/drive-1", "interrupted", "configure it", intentName}},
		"a store half made, a drive more": {[]int{1}, func(s *scene) {
			s.intent(false)
			s.cfg.Slots = append(s.cfg.Slots, Slot{Path: "/data/more", Zone: "b"})
		}, ResumeStore, []string{"/data/more", "same drives"}},
		"a store half made lost a drive": {[]int{1, 1}, func(s *scene) { s.intent(true); s.format(1) }, ResumeStore,
			[]string{"/data/zone-b/drive-1", "lost its data", "Nothing was stored yet"}},
		"a store half made, a stranger in a slot": {[]int{1, 1}, func(s *scene) {
			s.intent(false)
			s.drive("/data/zone-b/drive-1", 7, "b", testStore, 5)
		}, ResumeStore, []string{"/data/zone-b/drive-1", "another drive"}},
		"a store made, its intent still there, drives.json damaged": {[]int{1, 1}, func(s *scene) {
			s.intent(true)
			s.format(1, 2)
			s.record([]int{1}, 1, 2)
			s.must(s.fs.XorByte("/data/"+registryName, 0, 0xff))
		}, ExistingStore, nil},
		"a store made, its intent still there": {[]int{1, 1}, func(s *scene) { s.intent(true); s.format(1, 2); s.record([]int{1}, 1, 2) }, ExistingStore, nil},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.zones...)
			if c.set != nil {
				c.set(s)
			}
			sit, err := Inspect(s.cfg)
			if err != nil {
				t.Fatal(err)
			}
			if sit.Kind != c.kind {
				t.Errorf("kind %d, want %d", sit.Kind, c.kind)
			}
			err = sit.Err()
			if len(c.want) == 0 {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			if !errs.Is(err, errs.InvalidArgument) {
				t.Fatalf("%v, want a refusal", err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q\ndoes not say %q", err, w)
				}
			}
		})
	}
}

// intent writes a bootstrap.json for the configured slots.
func (s *scene) intent(formatted bool) {
	in := &intent{Format: 1, StoreID: testStore, Formatted: formatted}
	for i, slot := range s.cfg.Slots {
		in.Drives = append(in.Drives, intentDrive{ID: testID(i + 1).String(), Path: s.cfg.slotName(slot.Path), Zone: slot.Zone})
	}
	s.must(writeJSON(s.fs, "/data/"+intentName, in))
}

func TestInspectMovedDataDir(t *testing.T) {
	s := newScene(t, 1, 1, 1)
	s.format(1, 2)
	s.record([]int{1, 2, 3}, 1, 2, 3)
	s.move("/data", "/elsewhere")
	s.cfg.DataDir = "/elsewhere"
	for i := range s.cfg.Slots {
		s.cfg.Slots[i].Path = "/elsewhere" + strings.TrimPrefix(s.cfg.Slots[i].Path, "/data")
	}
	sit, err := Inspect(s.cfg)
	if err != nil || sit.Err() != nil || sit.Slots[2].State != drive.Missing {
		t.Fatal(err, sit)
	}
}

// mountFS gives the folders in mounts a device of their own.
type mountFS struct {
	vfsx.FS
	mounts map[string]bool
}

func (m mountFS) StatID(name string) (vfsx.FileID, error) {
	id, err := m.FS.StatID(name)
	if m.mounts[name] {
		id.Dev = 99
	}
	return id, err
}

func TestInspectBareMountPoint(t *testing.T) {
	s := newScene(t, 1, 1, 1)
	s.format(1, 2)
	s.record([]int{1, 2, 3}, 1, 2, 3)
	s.reg.Drives[2].Mount = true
	s.write()
	third := s.cfg.Slots[2].Path
	s.must(s.fs.MkdirAll(third, 0o755))
	s.cfg.FS = mountFS{s.fs, map[string]bool{}}
	sit, err := Inspect(s.cfg)
	if err != nil || !sit.Slots[2].Unmount || sit.Slots[2].State != drive.Missing {
		t.Fatalf("a bare mount point was taken for an empty drive: %+v %v", sit.Slots[2], err)
	}
	s.cfg.FS = mountFS{s.fs, map[string]bool{third: true}}
	sit, err = Inspect(s.cfg)
	if err != nil || sit.Slots[2].Unmount || sit.Slots[2].State != drive.Empty {
		t.Fatalf("a new disk mounted there is an empty drive: %+v %v", sit.Slots[2], err)
	}
}

func TestConfigRefusals(t *testing.T) {
	fsys := vfsx.NewMem()
	for want, cfg := range map[string]Config{
		"no drive":           {DataDir: "/data"},
		"not an absolute":    {DataDir: "data", Slots: []Slot{{Path: "/a", Zone: "a"}}},
		"configured twice":   {DataDir: "/data", Slots: []Slot{{Path: "/a", Zone: "a"}, {Path: "/a/", Zone: "b"}}},
		"within each other":  {DataDir: "/data", Slots: []Slot{{Path: "/a", Zone: "a"}, {Path: "/a/b", Zone: "b"}}},
		"cannot be a drive":  {DataDir: "/data", Slots: []Slot{{Path: "/data", Zone: "a"}}},
		"or lie in one":      {DataDir: "/mnt/data", Slots: []Slot{{Path: "/mnt", Zone: "a"}}},
		"no zone":            {DataDir: "/data", Slots: []Slot{{Path: "/a"}}},
		`"b": not an absolu`: {DataDir: "/data", Slots: []Slot{{Path: "b", Zone: "a"}}},
	} {
		cfg.FS = fsys
		if _, err := Inspect(cfg); !errs.Is(err, errs.InvalidArgument) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestLock(t *testing.T) {
	fsys := vfsx.NewMem()
	if err := fsys.MkdirAll("/d", 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := lockDir(fsys, "/d")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(fsys, "/d"); !errs.Is(err, errs.Busy) || !strings.Contains(err.Error(), "pid ") || !strings.Contains(err.Error(), "/d") {
		t.Fatal(err)
	}
	l.Close()
	l, err = lockDir(fsys, "/d")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// What a newer release wrote is neither guessed at nor written over.
func TestNewerFiles(t *testing.T) {
	for _, name := range []string{registryName, intentName, nodeName} {
		s := newScene(t, 1, 1)
		s.format(1, 2)
		s.record([]int{1}, 1, 2)
		s.must(writeJSON(s.fs, "/data/"+name, map[string]any{"format": fileFormat + 1, "drives": "elsewhere"}))
		s.cfg.Node, s.cfg.Cluster = "n", &Cluster{Zone: "a"}
		s.cfg.Slots = s.cfg.Slots[:1]
		if _, err := Inspect(s.cfg); !errs.Is(err, errs.NotImplemented) || !strings.Contains(err.Error(), "newer release") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRegistryRoundTrip(t *testing.T) {
	s := newScene(t, 1, 1)
	s.record([]int{1}, 1, 2)
	got, err := readRegistry(s.fs, "/data")
	if err != nil || !got.equal(&s.reg) {
		t.Fatalf("%+v %v", got, err)
	}
	s.must(s.fs.XorByte("/data/"+registryName, 0, 0xff))
	if _, err := readRegistry(s.fs, "/data"); !errs.Is(err, errs.Corrupt) {
		t.Fatal(err)
	}
}
