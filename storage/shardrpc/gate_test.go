package shardrpc

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/mem"

	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
	"cairn/test/bubble"
)

func TestGate(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		g := &gate{callsMax: 3, bytesMax: 100}
		if !g.try(500) || g.try(1) {
			t.Fatal("a call larger than the bound enters alone")
		}
		order := make(chan int, 9)
		wait := func(i int, n int64, d time.Duration) {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), d)
				defer cancel()
				if err := g.enter(ctx, n); err == nil {
					order <- i
				} else if errs.Is(err, errs.Timeout) {
					order <- -i
				}
			}()
			synctest.Wait()
		}
		wait(1, 60, time.Hour)
		wait(2, 80, time.Minute)
		wait(3, 10, time.Hour)
		g.leave(500)
		if got := <-order; got != 1 {
			t.Fatalf("%d came first", got)
		}
		synctest.Wait()
		if len(order) > 0 {
			t.Fatal("overtaken, or past the bound")
		}
		for _, want := range []int{3, -2} { // the one that gives up lets those behind it in
			if want == 3 {
				time.Sleep(time.Minute + time.Second)
			}
			if got := <-order; got != want && got != -2 && got != 3 {
				t.Fatalf("got %d", got)
			}
		}
		if g.try(31) || !g.try(30) || g.try(0) {
			t.Fatal("bytes and calls are bounded")
		}
		g.leave(30)
		g.leave(10)
		g.leave(60)
		if calls, n := g.inside(); calls != 0 || n != 0 {
			t.Fatal(calls, n)
		}
	})
}

func TestPoolClasses(t *testing.T) {
	var p pool
	last := 0
	for n := 1; n <= 1<<poolLargest; n = n*5/4 + 1 {
		class, size := classOf(n)
		if size < n || n > 1<<poolSmallest && size > n+n/4+4 || class < last || class >= len(p.classes) {
			t.Fatalf("%d bytes: class %d of %d bytes", n, class, size)
		}
		if again, same := classOf(size); again != class || same != size {
			t.Fatalf("class %d holds %d bytes, which is of class %d", class, size, again)
		}
		last = class
		b := p.Get(n)
		if len(*b) != n {
			t.Fatal(len(*b))
		}
		p.Put(b)
	}
	p.Put(p.Get(1<<poolLargest + 1))
}

// TestReadAnswersCount: a read counts against the server's limits until the
// transport has let go of its answer, or has forgotten it.
func TestReadAnswersCount(t *testing.T) {
	d := storagetest.NewDrive(1)
	s := NewServer(ServerConfig{
		Drives:   func(storage.DriveID) storage.ShardStore { return d },
		BytesMax: 300 << 10,
	})
	h, p := shard(1, 100<<10)
	if err := d.Append(t.Context(), h, p, nil); err != nil {
		t.Fatal(err)
	}
	read := func(chunk storage.ShardID) (*readAnswer, error) {
		a, err := s.read(t.Context(), &nodepb.ShardReadRequest{Drive: d.ID[:], Id: toID(chunk), Bytes: 100 << 10})
		answer, _ := a.(*readAnswer)
		return answer, err
	}
	want := func(wantCalls int) {
		t.Helper()
		if calls, n := s.all.inside(); calls != wantCalls || n != int64(wantCalls)*100<<10 {
			t.Fatalf("%d calls with %d bytes, want %d", calls, n, wantCalls)
		}
	}
	if _, err := read(storage.ShardID{PG: 9}); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	want(0)
	var frames []mem.BufferSlice
	for range 3 {
		a, err := read(h.ID)
		if err != nil {
			t.Fatal(err)
		}
		frame, err := a.MarshalFrame()
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, frame)
	}
	want(3)
	if _, err := read(h.ID); !errs.Is(err, errs.Busy) {
		t.Fatalf("a fourth answer: %v", err)
	}
	frames[0].Free()
	want(2)
	frames[1].Free()
	want(1)
	frames = nil // a connection broke
	for range 1000 {
		runtime.GC()
		if calls, _ := s.all.inside(); calls == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	want(0)
}

// FuzzArrivals: whatever comes, the server neither panics nor keeps any of its limits.
func FuzzArrivals(f *testing.F) {
	d := storagetest.NewDrive(1)
	s := NewServer(ServerConfig{Drives: func(storage.DriveID) storage.ShardStore { return d }})
	c := NewClient(Config{})
	var calls []*appendCall
	for i, n := range []int{1, 5000, 40_000} {
		h, p := shard(uint64(i), n)
		st := &store{peer: c.peer("x"), drive: d.ID}
		calls = append(calls, &appendCall{store: st, header: h, payload: p, sum: checksum(p)})
		calls[i].owes.Store(9)
	}
	b, err := (&outgoing{now: time.Now(), calls: calls}).MarshalFrame()
	if err != nil {
		f.Fatal(err)
	}
	frame := b.Materialize()
	f.Add(frame, false)
	f.Add(frame[:len(frame)-1], true)
	f.Add(frame[:20], true)
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, frame []byte, fix bool) {
		if n := len(frame) - prefixBytes; fix && n >= 0 {
			putPrefix(frame, min(n, int(frame[0])|int(frame[1])<<8))
		}
		a := &arrivals{server: s}
		if a.UnmarshalFrame(mem.BufferSlice{mem.SliceBuffer(frame)}) == nil {
			for i := range a.list {
				a.list[i].drop(s)
			}
		}
		if calls, n := s.all.inside(); calls != 0 || n != 0 {
			t.Fatalf("%d calls and %d bytes are kept", calls, n)
		}
	})
}
