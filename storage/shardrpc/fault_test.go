package shardrpc

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"cairn/cluster"
	"cairn/storage"
	"cairn/storage/errs"
	"cairn/storage/storagetest"
	"cairn/test/bubble"
)

// wire is a connection that swallows what is written, or damages it, when told.
type wire struct {
	net.Conn
	swallow *atomic.Bool
	damage  *atomic.Bool // the middle byte of each large write
}

func (w *wire) Write(p []byte) (int, error) {
	if w.swallow.Load() {
		return len(p), nil
	}
	if w.damage.Load() && len(p) > 8<<10 {
		p = bytes.Clone(p)
		p[len(p)/2] ^= 4
	}
	return w.Conn.Write(p)
}

// faulty is a pair of which the client's side of the connection can fail, with drives 1 and 2.
type faulty struct {
	*pair
	drives          [2]*storagetest.Drive
	stores          [2]storage.ShardStore
	swallow, damage atomic.Bool
	conns           []net.Conn
	hang            chan struct{} // drive 1 waits for it; to be set before its first call
	release         func()        // lets drive 1 go on
	away            atomic.Bool   // Conn answers an error
}

func newFaulty(t *testing.T, sc ServerConfig, cc Config) *faulty {
	f := &faulty{drives: [2]*storagetest.Drive{storagetest.NewDrive(1), storagetest.NewDrive(2)}}
	f.release = sync.OnceFunc(func() {
		if f.hang != nil {
			close(f.hang)
		}
	})
	f.drives[0].Fail = func(string) error {
		if f.hang != nil {
			<-f.hang
		}
		return nil
	}
	cc.Conn = func(cluster.NodeID) (grpc.ClientConnInterface, error) {
		if f.away.Load() {
			return nil, errs.New(errs.Unavailable, "", "", "")
		}
		return f.conn, nil
	}
	f.pair = newPair(t, sc, cc, map[storage.DriveID]storage.ShardStore{f.drives[0].ID: f.drives[0], f.drives[1].ID: f.drives[1]})
	dial := f.dial
	f.dial = func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err == nil {
			c = &wire{c, &f.swallow, &f.damage}
			f.conns = append(f.conns, c)
		}
		return c, err
	}
	t.Cleanup(f.release)
	for i := range f.stores {
		f.stores[i] = f.client.Store("n1", f.drives[i].ID)
	}
	return f
}

// shard is a header and a payload that is right for it.
func shard(n uint64, size int) (storage.ShardHeader, []byte) {
	return storage.ShardHeader{ID: storage.ShardID{PG: 1, Chunk: storage.NewChunkID(1000, n)}, Epoch: 1, Owner: storage.Owner{Bucket: 1, Key: "k"}}, bytes.Repeat([]byte{byte(n)}, size)
}

// async appends and answers where the outcome comes.
func async(s storage.ShardStore, n uint64, size int) <-chan error {
	answer := make(chan error, 2)
	h, p := shard(n, size)
	s.(storage.AsyncAppender).AppendAsync(h, p, func(err error) { clear(p); answer <- err })
	return answer
}

// idle waits until nothing is under way and checks that all limits were given back.
func (f *faulty) idle(t *testing.T) {
	t.Helper()
	synctest.Wait()
	for _, g := range []*gate{&f.client.peer("n1").appends, &f.client.peer("n1").reads, &f.server.all} {
		if calls, n := g.inside(); calls != 0 || n != 0 {
			t.Errorf("%d calls and %d bytes were not given back", calls, n)
		}
	}
}

var sizes = []int{1000, 300_000}

func TestBlackHole(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := newFaulty(t, ServerConfig{}, Config{})
		s := f.stores[1]
		for i, size := range sizes {
			if err := <-async(s, uint64(i), size); err != nil {
				t.Fatal(err)
			}
		}
		f.swallow.Store(true)
		start := time.Now()
		var answers []<-chan error
		for i := range 20 {
			answers = append(answers, async(s, 10+uint64(i), sizes[i%2]))
		}
		read := make(chan error, 1)
		go func() {
			read <- s.ReadAt(t.Context(), storage.ShardID{PG: 1, Chunk: storage.NewChunkID(1000, 0)}, 0, make([]byte, 10))
		}()
		for _, a := range answers {
			if err := <-a; !errs.Is(err, errs.Unavailable) && !errs.Is(err, errs.Timeout) {
				t.Errorf("append: %v", err)
			}
		}
		if err := <-read; !errs.Is(err, errs.Timeout) {
			t.Errorf("read: %v", err)
		}
		if took := time.Since(start); took > 8*time.Second {
			t.Errorf("it took %v to give up", took)
		}
		// When the network is whole again, on a new connection, all goes on.
		f.swallow.Store(false)
		for _, c := range f.conns {
			c.Close()
		}
		time.Sleep(5 * time.Second)
		for i, size := range sizes {
			if err := <-async(s, 100+uint64(i), size); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		}
		f.idle(t)
		f.away.Store(true)
		if f.client.Store("n1", f.drives[0].ID) != nil {
			t.Error("a store of a node that is known to be unreachable")
		}
		if err := <-async(s, 200, 10); err != nil {
			t.Errorf("on the stream that is there: %v", err)
		}
	})
}

// A connection that breaks fails what is under way at once, and every payload comes back once.
func TestConnectionBreaks(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := newFaulty(t, ServerConfig{}, Config{})
		f.hang = make(chan struct{})
		var answers []<-chan error
		for i := range 30 {
			answers = append(answers, async(f.stores[i%2], uint64(i), sizes[i/2%2]))
		}
		synctest.Wait()
		start := time.Now()
		for _, c := range f.conns {
			c.Close()
		}
		durable := 0
		for _, a := range answers {
			switch err := <-a; {
			case err == nil:
				durable++
			case !errs.Is(err, errs.Unavailable):
				t.Error(err)
			}
		}
		if durable != 15 || time.Since(start) > takeBack {
			t.Errorf("%d of 15 answered before, all after %v", durable, time.Since(start))
		}
		time.Sleep(time.Minute)
		for _, a := range answers {
			if len(a) > 0 {
				t.Error("an append was answered twice")
			}
		}
		f.release()
		f.idle(t)
	})
}

// A drive that hangs keeps its own share, and nothing from its neighbour.
func TestHungDrive(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := newFaulty(t, ServerConfig{DriveBytesMax: 4 << 20}, Config{DriveBytesMax: 2 << 20, DriveCallsMax: 20})
		f.hang = make(chan struct{})
		busy, out := 0, []<-chan error{}
		for i := range 30 {
			a := async(f.stores[0], uint64(i), sizes[i%2])
			select {
			case err := <-a:
				if !errs.Is(err, errs.Busy) {
					t.Error(err)
				}
				busy++
			default:
				out = append(out, a)
			}
		}
		if busy < 10 || len(out) == 0 {
			t.Errorf("%d of 30 were refused", busy)
		}
		start := time.Now()
		h, p := shard(1, 300_000)
		if err := f.stores[1].Append(t.Context(), h, p, nil); err != nil || time.Since(start) != 0 {
			t.Errorf("the neighbour: %v after %v", err, time.Since(start))
		}
		// A caller that waits in line leaves when it wants, and its payload comes back later if it was out.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		returned := 0
		if err := f.stores[0].Append(ctx, h, p, func() { returned++ }); !errs.Is(err, errs.Timeout) || returned != 1 {
			t.Errorf("in line: %v, done %d times", err, returned)
		}
		for _, a := range out {
			if err := <-a; err == nil {
				t.Error("durable on a drive that hangs")
			}
		}
		if took := time.Since(start); took > 7*time.Second {
			t.Errorf("it took %v", took)
		}
		if err := <-async(f.stores[1], 50, 1000); err != nil {
			t.Errorf("the neighbour afterwards: %v", err)
		}
		f.release()
		f.idle(t)
	})
}

// What changes on the way is noticed where it arrives.
func TestDamageOnTheWay(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := newFaulty(t, ServerConfig{}, Config{})
		if err := <-async(f.stores[1], 1, 300_000); err != nil {
			t.Fatal(err)
		}
		f.damage.Store(true)
		if err := <-async(f.stores[1], 2, 300_000); !errs.Is(err, errs.Unavailable) {
			t.Errorf("append: %v", err)
		}
		for _, s := range f.drives[1].Shards() {
			if s.Header.ID.Chunk != storage.NewChunkID(1000, 1) {
				t.Error("damaged bytes were stored")
			}
		}
	})
	p := []byte("payload")
	var r readReply
	frame, _ := newReadAnswer(&p, nil).MarshalFrame()
	p[3] ^= 1
	r.into = make([]byte, len(p))
	if err := r.UnmarshalFrame(frame); !errs.Is(err, errs.Unavailable) {
		t.Errorf("read: %v", err)
	}
	if frame, _ = newReadAnswer(&p, nil).MarshalFrame(); r.UnmarshalFrame(frame) != nil || !bytes.Equal(r.into, p) {
		t.Error("sound bytes are refused")
	}
}

// A node that stops answers what it has and refuses the rest; its gRPC server then stops gracefully.
func TestServerStops(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := newFaulty(t, ServerConfig{}, Config{})
		f.hang = make(chan struct{})
		slow := async(f.stores[0], 1, 1000)
		quick := async(f.stores[1], 2, 300_000)
		synctest.Wait()
		f.server.Close()
		time.AfterFunc(stopWait/2, func() { f.release() })
		if err := <-quick; err != nil {
			t.Error(err)
		}
		if err := <-slow; err != nil {
			t.Error(err)
		}
		if err := <-async(f.stores[1], 3, 1000); !errs.Is(err, errs.Unavailable) {
			t.Errorf("after the end: %v", err)
		}
		start := time.Now()
		f.grpc.GracefulStop()
		if took := time.Since(start); took > time.Second {
			t.Errorf("graceful stop took %v", took)
		}
	})
}

func TestClientCloses(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := newFaulty(t, ServerConfig{}, Config{})
		f.hang = make(chan struct{})
		a := async(f.stores[0], 1, 300_000)
		synctest.Wait()
		f.client.Close()
		if err := <-a; err == nil {
			t.Error("durable on a drive that hangs")
		}
		if err := <-async(f.stores[1], 2, 10); !errs.Is(err, errs.Closed) {
			t.Errorf("after Close: %v", err)
		}
		f.client.Close()
	})
}

// Streams that nobody uses end, and come back.
func TestIdleStreamsEnd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		f := newFaulty(t, ServerConfig{}, Config{})
		for i := range 5 {
			if err := <-async(f.stores[1], uint64(i), 300_000); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Minute)
			l := &f.client.peer("n1").large
			l.mu.Lock()
			if l.running || len(l.sent) > 0 {
				t.Error("an idle stream is still open")
			}
			l.mu.Unlock()
		}
	})
}

func TestWrongPlaces(t *testing.T) {
	f := newFaulty(t, ServerConfig{}, Config{})
	s := f.client.Store("n1", storage.DriveID{9})
	h, p := shard(1, 100)
	for name, err := range map[string]error{
		"append": s.Append(t.Context(), h, p, nil), "read": s.ReadAt(t.Context(), h.ID, 0, p), "remove": s.Remove(t.Context(), nil),
		"list": s.List(t.Context(), 1, storage.ChunkID{}, nil), "epochs": s.SetEpochs(t.Context(), nil),
	} {
		if !errs.Is(err, errs.DriveFailed) {
			t.Errorf("%s on a drive that is not there: %v", name, err)
		}
	}
	if err := f.stores[0].Append(t.Context(), h, nil, nil); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("an empty payload: %v", err)
	}
	if err := f.stores[0].ReadAt(t.Context(), h.ID, -1, p); !errs.Is(err, errs.InvalidArgument) {
		t.Errorf("a negative offset: %v", err)
	}
	f.drives[0].Fail = func(m string) error {
		if m == "list" {
			return errs.New(errs.Corrupt, "list", "x", "")
		}
		return errors.New("no kind")
	}
	if err := f.stores[0].List(t.Context(), 1, storage.ChunkID{}, nil); !errs.Is(err, errs.Corrupt) {
		t.Error(err)
	}
	if err := f.stores[0].Append(t.Context(), h, p, nil); err == nil || errs.KindOf(err) != errs.Other {
		t.Error(err)
	}
}
