package background

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cairn/cluster"
	"cairn/cluster/rangestate"
	"cairn/s3api/objects"
	"cairn/storage"
	"cairn/storage/vfsx"
	"cairn/test/bubble"
	"cairn/test/harness"
	"cairn/test/seed"
)

var faultsFlag = flag.Int("faults", 2, "places in a move where each kind of fault strikes")

// faultyStore runs test on a fresh store without workers in fake time, with days of this length.
func faultyStore(t *testing.T, day time.Duration, test func(s *store)) {
	bubble.Test(t, func(t *testing.T) {
		s := &store{T: t, fs: vfsx.NewMem(), rnd: rand.New(rand.NewPCG(seed.Of(t), 0)), want: map[string][]byte{}, day: day}
		s.open(false)
		t.Cleanup(func() { s.close() })
		test(s)
	})
}

// trouble counts what is done to the drives' extents during a move and makes something happen at the at-th of them.
type trouble struct {
	mu     sync.Mutex
	n, at  int
	ops    vfsx.Op
	err    error  // what everything of these ops answers on the drive hit from then on
	drive  string // hit
	strike func() // called once instead of the error
}

func (x *trouble) hook(op vfsx.Op, name string) error {
	i := strings.Index(name, "/extents")
	if i < 0 {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.n++; x.n == x.at && x.strike != nil {
		go x.strike()
	} else if x.n >= x.at && x.at > 0 && x.drive == "" && op&x.ops != 0 && x.err != nil {
		x.drive = name[:i]
	}
	if x.drive == name[:i] && op&x.ops != 0 {
		return x.err
	}
	return nil
}

// TestLifecycleFaults: a drive that is full or fails, and a leader that changes, at each step of a move: of reading, of the write
// of each shard, of the comparison and of the commit. Nothing is lost, nothing is there twice, and in the end the move is done.
func TestLifecycleFaults(t *testing.T) {
	for name, kind := range map[string]*trouble{
		"full":   {ops: vfsx.OpWrite, err: syscall.ENOSPC},
		"write":  {ops: vfsx.OpWrite | vfsx.OpSync, err: syscall.EIO},
		"read":   {ops: vfsx.OpRead, err: syscall.EIO},
		"leader": {},
	} {
		t.Run(name, func(t *testing.T) { faultyStore(t, 20*time.Second, func(s *store) { s.faults(kind) }) })
	}
}

// faults moves objects while what kind says happens, each time somewhat later.
func (s *store) faults(kind *trouble) {
	s.rules(moving("", 1, storage.GlacierIR))
	put := func(i int) string {
		key := fmt.Sprint("key/", i)
		s.put(key, 1_500_000+i)
		time.Sleep(3 * s.day)
		return key
	}
	first := put(0)
	clean := &trouble{}
	s.fs.SetHook(clean.hook)
	s.step(s.Lifecycle)
	s.fs.SetHook(nil)
	s.wantClass(first, storage.GlacierIR)
	cases, struck := max(2, *faultsFlag), 0
	for i := 1; i <= cases; i++ {
		key := put(i)
		x := &trouble{at: max(1, clean.n*(i-1)/cases), ops: kind.ops, err: kind.err}
		if kind.err == nil {
			x.strike = s.passLeadership
		}
		s.fs.SetHook(x.hook)
		for range 30 { // errors are what this is about
			if _, more, _ := s.Lifecycle.Step(s.Context()); !more {
				break
			}
		}
		s.wantAll()
		s.fs.SetHook(nil)
		if x.drive != "" || x.strike != nil && x.n >= x.at {
			struck++
		}
		time.Sleep(10 * time.Second)
		if errors.Is(x.err, syscall.EIO) && x.drive != "" {
			s.close()
			s.open(false) // a drive that failed is tried again at a start
			s.rules(moving("", 1, storage.GlacierIR))
			time.Sleep(10 * time.Second)
			s.step(s.Repair.Resync)
			s.step(s.Repair.Rows)
		}
		for end := time.Now().Add(aDay); s.row(key).GetAttributes().GetStorageClass() == ""; {
			if time.Now().After(end) {
				s.Fatalf("%s is not moved after trouble at %d of %d: %+v", key, x.at, clean.n, s.Lifecycle.Status())
			}
			time.Sleep(10 * time.Second)
			s.step(s.Lifecycle)
		}
		s.step(s.Garbage)
		s.wantClass(key, storage.GlacierIR)
		s.wantAll()
		if rep := s.wantClean(); count(rep, "shards awaiting removal") != 0 {
			s.Fatalf("%+v", rep.Counts)
		}
	}
	if got := s.objectsOf("GLACIER_IR"); got != int64(cases)+1 {
		s.Fatalf("%d objects are counted", got)
	}
	if struck < cases/2 {
		s.Fatalf("only %d of %d moves met with trouble", struck, cases)
	}
}

// objectsOf is how many objects the ranges count in a class.
func (s *store) objectsOf(class string) (n int64) {
	s.Helper()
	for _, g := range s.Meta.AllRanges() {
		if err := s.Meta.ReadGroup(s.Context(), g.ID, func(v rangestate.Reader) error {
			all, err := v.Counters()
			for _, c := range all {
				if string(c.Class) == class {
					n += c.Row.Objects
				}
			}
			return err
		}); err != nil {
			s.Fatal(err)
		}
	}
	return n
}

// passLeadership has another replica lead the first range.
func (s *store) passLeadership() {
	leader, _ := s.Groups.LeaderOf(cluster.FirstRange)
	all, err := s.Groups.Members(cluster.FirstRange)
	if err != nil {
		s.Error(err)
		return
	}
	all = slices.DeleteFunc(all, func(r cluster.Replica) bool { return r.ID == leader })
	if err := s.Groups.TransferLeader(s.Context(), cluster.FirstRange, all[0].ID); err != nil {
		s.Log("leadership stays:", err)
	}
}

// TestRestoreFaults: a restore that was acknowledged survives power cuts and changes of the leader, ends when it ends, and
// leaves nothing behind; the object moves on meanwhile.
func TestRestoreFaults(t *testing.T) {
	faultyStore(t, 20*time.Second, func(s *store) {
		s.rules(moving("", 0, storage.Glacier))
		for _, key := range []string{"a", "b", "c"} {
			s.put(key, 300_000)
		}
		time.Sleep(2 * s.day)
		s.step(s.Lifecycle)
		s.step(s.Garbage)
		readable := func(key string) bool {
			o, err := s.Objects.GetObject(s.Context(), harness.Account, &objects.GetInput{Bucket: "bucket", Key: storage.Key(key)})
			if no := (*objects.ArchivedError)(nil); errors.As(err, &no) {
				return false
			}
			if err != nil {
				s.Fatal(err)
			}
			defer o.Close()
			var got strings.Builder
			if err := o.Send(&got); err != nil || got.String() != string(s.want[key]) {
				s.Fatalf("%s: %d bytes, %v", key, got.Len(), err)
			}
			return true
		}
		cut := func() {
			fs := s.fs.CrashClone(s.rnd.Uint64())
			s.close()
			s.fs = fs
			s.open(false)
		}
		for _, key := range []string{"a", "b", "c"} {
			s.wantClass(key, storage.Glacier)
			if readable(key) {
				s.Fatal(key, "can be read")
			}
		}
		ask := func(key string, days int) {
			if _, err := s.Objects.RestoreObject(s.Context(), harness.Account, objects.VersionRef{Bucket: "bucket", Key: storage.Key(key)}, objects.RestoreRequest{Days: days, Tier: "Standard"}); err != nil {
				s.Fatal(err)
			}
		}
		ask("a", 3)
		ask("b", 8)
		cut()
		s.passLeadership()
		time.Sleep(s.day)
		if !readable("a") || !readable("b") || readable("c") {
			s.Fatal(readable("a"), readable("b"), readable("c"))
		}
		s.passLeadership()
		cut()
		if !readable("a") || !readable("b") {
			s.Fatal("a restore is forgotten")
		}
		time.Sleep(4 * s.day)
		if readable("a") || !readable("b") {
			s.Fatal(readable("a"), readable("b"))
		}
		s.rules(moving("", 1, storage.DeepArchive)) // acts while b is restored
		s.step(s.Lifecycle)
		cut()
		s.step(s.Lifecycle)
		time.Sleep(6 * s.day)
		for _, key := range []string{"a", "b", "c"} {
			s.wantClass(key, storage.DeepArchive)
			if readable(key) {
				s.Fatal(key, "can be read")
			}
		}
		if s.objectsOf("GLACIER") != 0 || s.objectsOf("DEEP_ARCHIVE") != 3 {
			s.Fatal(s.objectsOf("GLACIER"), s.objectsOf("DEEP_ARCHIVE"))
		}
		s.step(s.Garbage)
		s.wantClean()
		ask("c", 1)
		time.Sleep(s.day)
		if !readable("c") {
			s.Fatal("c cannot be read")
		}
	})
}
