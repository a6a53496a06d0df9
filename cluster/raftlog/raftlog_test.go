package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/storage/errs"
	"cairn/storage/vfsx"
)

func open(t testing.TB, fs *vfsx.Mem, o Options) *Store {
	t.Helper()
	o.FS, o.Dir = fs, "log"
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func view(t testing.TB, s *Store, id string) *View {
	t.Helper()
	v, err := s.View(id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func entry(index, term uint64) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "%d/%d", index, term), AppendedAt: time.Unix(0, int64(index))}
}

func store(t testing.TB, v *View, from, to, term uint64) {
	t.Helper()
	var ls []*raft.Log
	for i := from; i <= to; i++ {
		ls = append(ls, entry(i, term))
	}
	if err := v.StoreLogs(ls); err != nil {
		t.Fatal(err)
	}
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// raft compares and prints these very values.
func TestErrorsThatRaftExpects(t *testing.T) {
	s := open(t, vfsx.NewMem(), Options{})
	defer closeStore(t, s)
	v := view(t, s, "a")
	var l raft.Log
	for _, i := range []uint64{0, 1, 99} {
		if err := v.GetLog(i, &l); err != raft.ErrLogNotFound {
			t.Errorf("GetLog(%d): %v", i, err)
		}
	}
	if _, err := v.Get([]byte("x")); err == nil || err.Error() != "not found" {
		t.Errorf("Get: %v", err)
	}
	if _, err := v.GetUint64([]byte("x")); err == nil || err.Error() != "not found" {
		t.Errorf("GetUint64: %v", err)
	}
	if f, err := v.FirstIndex(); f != 0 || err != nil {
		t.Error(f, err)
	}
	if err := v.DeleteRange(1, 5); err != nil {
		t.Error(err)
	}
	if _, err := s.View(strings.Repeat("x", 256)); !errs.Is(err, errs.InvalidArgument) {
		t.Error(err)
	}
	if _, ok := any(v).(raft.MonotonicLogStore); ok {
		t.Error("an install would delete the whole log")
	}
}

func TestEntryCodec(t *testing.T) {
	for _, l := range []*raft.Log{
		entry(1, 1),
		{Index: 2, Term: 1 << 63, Type: raft.LogConfiguration, Data: nil},
		{Index: 3, Extensions: []byte("ext"), Data: bytes.Repeat([]byte{7}, 70000), AppendedAt: time.Unix(5, 6)},
		{Index: 4, AppendedAt: time.Unix(-5, 6)},
	} {
		b := encodeLog(nil, l)
		if len(b) != encodedLogLen(l) {
			t.Errorf("entry %d: %d bytes, announced %d", l.Index, len(b), encodedLogLen(l))
		}
		got := raft.Log{Index: l.Index}
		if err := decodeLog(b, &got); err != nil {
			t.Fatal(err)
		}
		if got.Term != l.Term || got.Type != l.Type || !bytes.Equal(got.Data, l.Data) || !bytes.Equal(got.Extensions, l.Extensions) || !got.AppendedAt.Equal(l.AppendedAt) {
			t.Errorf("got %+v, want %+v", got, l)
		}
		for n := range min(len(b), 12) {
			_ = decodeLog(b[:n], &got) // must not panic
		}
		if err := decodeLog(append([]byte{9}, b[1:]...), &got); !errs.Is(err, errs.Corrupt) {
			t.Error(err)
		}
	}
}

func FuzzDecodeLog(f *testing.F) {
	f.Add(encodeLog(nil, entry(7, 3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := raft.Log{Index: 1}
		if decodeLog(b, &l) != nil {
			return
		}
		again := raft.Log{Index: 1}
		if err := decodeLog(encodeLog(nil, &l), &again); err != nil || again.Term != l.Term || !bytes.Equal(again.Data, l.Data) {
			t.Fatalf("%+v, %+v, %v", l, again, err)
		}
	})
}

// model is what a log should hold.
type model struct {
	logs map[uint64]uint64 // index -> term
}

func (m *model) ends() (first, last uint64) {
	for i := range m.logs {
		if first == 0 || i < first {
			first = i
		}
		last = max(last, i)
	}
	return first, last
}

func (m *model) check(t *testing.T, v *View) {
	t.Helper()
	first, last := m.ends()
	f, _ := v.FirstIndex()
	l, _ := v.LastIndex()
	lastIndex, lastTerm := v.Last()
	if f != first || l != last || lastIndex != last || lastTerm != m.logs[last] {
		t.Fatalf("the log is %d..%d of term %d, should be %d..%d of %d", f, l, lastTerm, first, last, m.logs[last])
	}
	for i := first; i <= last; i++ {
		var got raft.Log
		err := v.GetLog(i, &got)
		term, ok := m.logs[i]
		if !ok {
			if err != raft.ErrLogNotFound {
				t.Fatalf("entry %d: %v", i, err)
			}
			continue
		}
		if want := entry(i, term); err != nil || got.Term != term || got.Index != i || !bytes.Equal(got.Data, want.Data) {
			t.Fatalf("entry %d: %+v, %v", i, got, err)
		}
	}
}

// seed is where a test's random choices begin: the same each time, or what CAIRN_SEED says, a number or "random".
func seed(t testing.TB) uint64 {
	t.Helper()
	n := uint64(1)
	switch s := os.Getenv("CAIRN_SEED"); s {
	case "":
	case "random":
		n = rand.Uint64()
	default:
		var err error
		if n, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("CAIRN_SEED: %v", err)
		}
	}
	t.Logf("CAIRN_SEED=%d", n)
	return n
}

// Random operations on several views and on a model, with restarts and power cuts in between: what was
// answered is there.
func TestAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed(t), 1))
	fs := vfsx.NewMem()
	s := open(t, fs, Options{MemTableBytes: 128 << 10})
	ids := []string{"g1-a", "g1-aa", "g2-\xff"}
	views, models := map[string]*View{}, map[string]*model{}
	stable := map[string]uint64{}
	term := uint64(1)
	for _, id := range ids {
		views[id], models[id] = view(t, s, id), &model{map[uint64]uint64{}}
	}
	for step := range 600 {
		id := ids[rng.IntN(len(ids))]
		v, m := views[id], models[id]
		first, last := m.ends()
		switch op := rng.IntN(100); {
		case op < 50: // append
			n := uint64(1 + rng.IntN(60))
			from := last + 1
			if len(m.logs) == 0 {
				from = 1 + uint64(rng.IntN(50))
			}
			store(t, v, from, from+n-1, term)
			for i := from; i < from+n; i++ {
				m.logs[i] = term
			}
		case op < 60 && last > 0: // truncate the head
			to := first + uint64(rng.IntN(int(last-first)+1))
			if err := v.DeleteRange(first, to); err != nil {
				t.Fatal(err)
			}
			for i := first; i <= to; i++ {
				delete(m.logs, i)
			}
		case op < 68 && last > 0: // the tail
			from := first + uint64(rng.IntN(int(last-first)+1))
			if err := v.DeleteRange(from, last); err != nil {
				t.Fatal(err)
			}
			for i := from; i <= last; i++ {
				delete(m.logs, i)
			}
			term++
		case op < 72 && last > 0: // a gap is refused
			if err := v.StoreLogs([]*raft.Log{entry(last+2, term)}); !errs.Is(err, errs.InvalidArgument) {
				t.Fatal(err)
			}
			if err := v.Check(first); err != nil {
				t.Fatal(err)
			}
		case op < 85:
			val := rng.Uint64()
			if err := v.SetUint64([]byte("CurrentTerm"), val); err != nil {
				t.Fatal(err)
			}
			stable[id] = val
		case op < 88:
			if err := s.SetMeta("m/"+id, []byte{byte(step)}); err != nil {
				t.Fatal(err)
			}
			if b, err := s.Meta("m/" + id); err != nil || len(b) != 1 || b[0] != byte(step) {
				t.Fatal(b, err)
			}
		case op < 90:
			if err := v.Destroy(""); err != nil {
				t.Fatal(err)
			}
			views[id], models[id] = view(t, s, id), &model{map[uint64]uint64{}}
			delete(stable, id)
		case op < 95:
			if rng.IntN(2) == 0 {
				next := fs.CrashClone(rng.Uint64())
				closeStore(t, s)
				fs = next
			} else {
				closeStore(t, s)
			}
			s = open(t, fs, Options{MemTableBytes: 128 << 10})
			for _, id := range ids {
				views[id] = view(t, s, id)
			}
		}
		if step%10 == 0 {
			for _, id := range ids {
				models[id].check(t, views[id])
				if got, err := views[id].GetUint64([]byte("CurrentTerm")); stable[id] != 0 && (got != stable[id] || err != nil) {
					t.Fatalf("term of %q is %d, %v; want %d", id, got, err, stable[id])
				}
			}
		}
	}
	closeStore(t, s)
}

// Groups that append at the same time share fsyncs.
func TestSharedSync(t *testing.T) {
	fs := vfsx.NewMem()
	s := open(t, fs, Options{})
	var syncs atomic.Int64
	fs.SetHook(func(op vfsx.Op, path string) error {
		if op == vfsx.OpSync {
			syncs.Add(1)
			time.Sleep(2 * time.Millisecond)
		}
		return nil
	})
	const groups, each = 16, 20
	var wg sync.WaitGroup
	for g := range groups {
		v := view(t, s, fmt.Sprint("g", g))
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := range uint64(each) {
				store(t, v, i+1, i+1, 1)
			}
		}()
	}
	wg.Wait()
	fs.SetHook(nil)
	if n := syncs.Load(); n > groups*each/4 {
		t.Errorf("%d fsyncs for %d appends", n, groups*each)
	}
	closeStore(t, s)
}

// Whatever the drive does wrong: an append answers an error, what raft would panic on blocks until
// the replica is cut, and nothing reaches the drive any more.
func TestFailure(t *testing.T) {
	cases := map[string]func(fs *vfsx.Mem, check *atomic.Bool){
		"sync":  func(fs *vfsx.Mem, _ *atomic.Bool) { fs.Inject(vfsx.Fault{Ops: vfsx.OpSync, Err: syscall.EIO}) },
		"write": func(fs *vfsx.Mem, _ *atomic.Bool) { fs.Inject(vfsx.Fault{Ops: vfsx.OpWrite, Err: syscall.ENOSPC}) },
		"check": func(_ *vfsx.Mem, check *atomic.Bool) { check.Store(true) },
		"rotate": func(fs *vfsx.Mem, _ *atomic.Bool) {
			fs.Inject(vfsx.Fault{Ops: vfsx.OpCreate | vfsx.OpRename, Err: syscall.EIO})
		},
	}
	for name, fail := range cases {
		t.Run(name, func(t *testing.T) {
			fs := vfsx.NewMem()
			var gone atomic.Bool
			failed := make(chan error, 2)
			s := open(t, fs, Options{
				MemTableBytes: 64 << 10,
				Check: func() error {
					if gone.Load() {
						return errors.New("the drive is gone")
					}
					return nil
				},
				OnFail: func(err error) { failed <- err },
			})
			v := view(t, s, "a")
			store(t, v, 1, 10, 1)
			fail(fs, &gone)
			var err error
			last := uint64(10)
			for err == nil && last < 100000 {
				err = v.StoreLogs([]*raft.Log{{Index: last + 1, Term: 1, Data: make([]byte, 1000)}})
				last++
			}
			if !errs.Is(err, errs.DriveFailed) {
				t.Fatalf("StoreLogs: %v", err)
			}
			select {
			case <-failed:
			case <-time.After(5 * time.Second):
				t.Fatal("OnFail was not called")
			}
			if err := v.DeleteRange(1, 2); !errs.Is(err, errs.DriveFailed) {
				t.Errorf("DeleteRange: %v", err)
			}
			if _, err := s.Meta("x"); !errs.Is(err, errs.DriveFailed) {
				t.Errorf("Meta: %v", err)
			}
			done := make(chan string, 2)
			go func() {
				_ = v.SetUint64([]byte("CurrentTerm"), 9)
				done <- "SetUint64"
			}()
			go func() {
				var l raft.Log
				v.mu.Lock()
				v.mu.ring[3] = nil
				v.mu.Unlock()
				if err := v.GetLog(3, &l); err != nil {
					t.Error(err)
				}
				done <- "GetLog"
			}()
			select {
			case what := <-done:
				t.Errorf("%s came back before the replica was cut", what)
			case <-time.After(20 * time.Millisecond):
			}
			v.Cut()
			<-done
			<-done
			writes := atomic.Int64{}
			fs.SetHook(func(op vfsx.Op, _ string) error {
				if op&vfsx.OpMutate != 0 {
					writes.Add(1)
				}
				return nil
			})
			_ = v.StoreLogs([]*raft.Log{entry(999, 9)})
			s.e.sched.c.mu.Lock()
			running := s.e.sched.c.mu.running
			s.e.sched.c.mu.Unlock()
			if running != 0 {
				t.Errorf("%d compactions hold their slots", running)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			time.Sleep(10 * time.Millisecond)
			if n := writes.Load(); n != 0 {
				t.Errorf("%d changes got through to the drive", n)
			}
			select {
			case err := <-failed:
				t.Errorf("OnFail was called again: %v", err)
			default:
			}
			// The directory can be opened again, in the same process, and has what was acknowledged.
			fs.SetHook(nil)
			again := fs.CrashClone(1)
			s2 := open(t, again, Options{})
			v2 := view(t, s2, "a")
			if l, _ := v2.LastIndex(); l < last-1 {
				t.Errorf("the log ends at %d, acknowledged was %d", l, last-1)
			}
			closeStore(t, s2)
		})
	}
}

// A failed store gives its lock back.
func TestReopenAfterFailure(t *testing.T) {
	fs := vfsx.NewMem()
	s := open(t, fs, Options{})
	v := view(t, s, "a")
	store(t, v, 1, 5, 1)
	s.Fail(errors.New("enough"))
	s2 := open(t, fs, Options{})
	v2 := view(t, s2, "a")
	if l, _ := v2.LastIndex(); l != 5 {
		t.Errorf("the log ends at %d", l)
	}
	closeStore(t, s2)
}

// Rot anywhere in what was synced, but for the last record, is an error when the store is opened; a write that was cut off is not.
func TestRotIsNotShort(t *testing.T) {
	fs := vfsx.NewMem()
	s := open(t, fs, Options{})
	v := view(t, s, "a")
	const records = 300 // several blocks
	for i := range uint64(records) {
		store(t, v, i*10+1, i*10+10, 1)
	}
	base := fs.CrashClone(1)
	closeStore(t, s)
	wal, size := "", int64(0)
	names, err := base.List("log")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if strings.HasSuffix(n, ".log") {
			wal = "log/" + n
		}
	}
	b, err := readFile(base, wal)
	if err != nil {
		t.Fatal(err)
	}
	size = int64(len(bytes.TrimRight(b, "\x00")))
	if size < 2*walBlock {
		t.Fatalf("the WAL has %d bytes", size)
	}
	lastIndex := func(fs *vfsx.Mem) (uint64, error) {
		s, err := Open(Options{FS: fs, Dir: "log"})
		if err != nil {
			return 0, err
		}
		defer closeStore(t, s)
		return view(t, s, "a").LastIndex()
	}
	if last, err := lastIndex(base.CrashClone(1)); last != records*10 || err != nil {
		t.Fatalf("untouched, the log ends at %d, %v", last, err)
	}
	for off := int64(0); off < size-1000; off += size / 60 {
		rotten := base.CrashClone(1)
		if err := rotten.XorByte(wal, off, 0x40); err != nil {
			t.Fatal(err)
		}
		if last, err := lastIndex(rotten); !errs.Is(err, errs.Corrupt) {
			t.Fatalf("rot at %d: %v, the log ends at %d", off, err, last)
		}
	}
	// The tail of the last record.
	torn := base.CrashClone(1)
	if err := torn.XorByte(wal, size-5, 0x40); err != nil {
		t.Fatal(err)
	}
	if last, err := lastIndex(torn); last != records*10-10 || err != nil {
		t.Errorf("torn, the log ends at %d, %v", last, err)
	}
}

// A hole in a log is noticed.
func TestHole(t *testing.T) {
	fs := vfsx.NewMem()
	s := open(t, fs, Options{})
	v := view(t, s, "a")
	store(t, v, 1, 50, 1)
	if err := v.Check(1); err != nil {
		t.Error(err)
	}
	if err := s.do(&request{rows: []row{{key: v.logKey(nil, 30)}}}); err != nil {
		t.Fatal(err)
	}
	v = view(t, s, "a")
	if err := v.Check(31); err != nil {
		t.Error(err)
	}
	if err := v.Check(5); !errs.Is(err, errs.Corrupt) {
		t.Error(err)
	}
	v.Cut()
	var l raft.Log
	if err := v.GetLog(30, &l); err != nil || l.Type != raft.LogNoop || !errs.Is(Classify(s.Err()), errs.Corrupt) {
		t.Errorf("%+v, %v, %v", l, err, s.Err())
	}
}

// The shared scheduler lets all engines compact, within its limit.
func TestCompactions(t *testing.T) {
	comps := NewCompactions(1)
	fs := vfsx.NewMem()
	var engines []*Engine
	for i := range 3 {
		e, err := OpenEngine(EngineOptions{FS: fs, Dir: fmt.Sprint("e", i), DisableWAL: true, MemTableBytes: 64 << 10, Compactions: comps})
		if err != nil {
			t.Fatal(err)
		}
		engines = append(engines, e)
	}
	var wg sync.WaitGroup
	for _, e := range engines {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(1, 1))
			for range 6000 {
				if err := e.DB().Set(fmt.Appendf(nil, "%08d", rng.IntN(5000)), make([]byte, 200), pebble.NoSync); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	wg.Wait()
	for i, e := range engines {
		for end := time.Now().Add(10 * time.Second); e.DB().Metrics().Compact.Count == 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Errorf("engine %d never compacted: L0 has %d files", i, e.DB().Metrics().Levels[0].TablesCount)
				break
			}
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}
	comps.mu.Lock()
	defer comps.mu.Unlock()
	if comps.mu.running != 0 || len(comps.mu.dbs) != 0 {
		t.Errorf("%d running, %d engines registered", comps.mu.running, len(comps.mu.dbs))
	}
}

// No table, flushed or compacted, has keys on both sides of a bound: rows behind it that only grow at their end are not written anew
// with those before it.
func TestTableBounds(t *testing.T) {
	e, err := OpenEngine(EngineOptions{FS: vfsx.NewMem(), Dir: "e", DisableWAL: true, TableBounds: [][]byte{{'g'}, {'p'}}})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	behind := func(key []byte) (n int) {
		for _, bound := range []string{"g", "p"} {
			if string(key) >= bound {
				n++
			}
		}
		return n
	}
	for i := range 50 {
		for _, first := range []string{"a", "f", "g", "m", "o\xff", "p", "z"} {
			if err := e.DB().Set(fmt.Appendf(nil, "%s%08d", first, i), make([]byte, 100), pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}
		if err := e.DB().Flush(); err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		levels, err := e.DB().SSTables()
		if err != nil {
			t.Fatal(err)
		}
		seen := map[int]bool{}
		for _, tables := range levels {
			for _, table := range tables {
				part := behind(table.Smallest.UserKey)
				if seen[part] = true; behind(table.Largest.UserKey) != part {
					t.Errorf("a table from %q to %q", table.Smallest.UserKey, table.Largest.UserKey)
				}
			}
		}
		if len(seen) != 3 {
			t.Errorf("tables of %d parts", len(seen))
		}
	}
	check()
	if err := e.DB().Compact(t.Context(), []byte("a"), []byte("zz"), false); err != nil {
		t.Fatal(err)
	}
	check()
}

// Pebble's Fatalf ends the engine, not the process, and never returns.
func TestFatalf(t *testing.T) {
	e, err := OpenEngine(EngineOptions{FS: vfsx.NewMem(), Dir: "e"})
	if err != nil {
		t.Fatal(err)
	}
	returned := make(chan struct{})
	go func() {
		engineLogger{e: e}.Fatalf("no %s", "more")
		close(returned)
	}()
	<-e.Failed()
	if e.Err() == nil || e.Err().Error() != "no more" {
		t.Error(e.Err())
	}
	select {
	case <-returned:
		t.Error("Fatalf returned")
	case <-time.After(10 * time.Millisecond):
	}
}

func BenchmarkStoreLogs(b *testing.B) {
	s := open(b, vfsx.NewMem(), Options{MemTableBytes: 8 << 20})
	v := view(b, s, "a")
	data := make([]byte, 400)
	b.ReportAllocs()
	for i := range uint64(b.N) {
		if err := v.StoreLogs([]*raft.Log{{Index: i + 1, Term: 1, Data: data}}); err != nil {
			b.Fatal(err)
		}
	}
	closeStore(b, s)
}
