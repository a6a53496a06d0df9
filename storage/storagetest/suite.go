package storagetest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"cairn/storage"
	"cairn/storage/errs"
)

// ShardStore runs the conformance suite of storage.ShardStore and its optional
// abilities. open answers an empty store each time; what it needs it cleans up itself.
func ShardStore(t *testing.T, open func(t *testing.T) storage.ShardStore) {
	for name, f := range map[string]func(*testing.T, storage.ShardStore){
		"append and read": suiteAppendRead, "the same twice": suiteTwice, "removal": suiteRemoval, "epochs": suiteEpochs, "list": suiteList,
		"header": suiteHeader, "asynchronous": suiteAsync, "context": suiteContext, "many at once": suiteMany,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			check(t, s.SetEpochs(t.Context(), map[storage.PGID]storage.Epoch{1: 1, 2: 1, 3: 1}))
			f(t, s)
		})
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kind(t testing.TB, err error, k errs.Kind) {
	t.Helper()
	if !errs.Is(err, k) {
		t.Fatalf("got %v, want kind %q", err, k)
	}
}

// header of a shard with distinct values everywhere.
func header(pg storage.PGID, chunk uint64, stripe uint16, index uint8) storage.ShardHeader {
	return storage.ShardHeader{
		ID:     storage.ShardID{PG: pg, Chunk: storage.NewChunkID(1000, chunk), Stripe: stripe, Index: index},
		Epoch:  1,
		Owner:  storage.Owner{Bucket: 7, Key: "k\xff/\x00" + storage.Key(fmt.Sprint(chunk)), Write: storage.WriteID{1, byte(chunk)}},
		Layout: storage.Layout{Scheme: storage.Scheme{K: 3, M: 2}, StripeBytes: 1 << 20, Length: 5 << 20},
	}
}

func bytesOf(h storage.ShardHeader, n int) []byte {
	r := rand.NewChaCha8([32]byte{h.ID.Chunk[15], h.ID.Chunk[14], byte(h.ID.Stripe), h.ID.Index, byte(n)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// appendShard appends and checks that done is called once.
func appendShard(t testing.TB, s storage.ShardStore, h storage.ShardHeader, payload []byte) error {
	t.Helper()
	var once atomic.Int32
	err := s.Append(t.Context(), h, payload, func() { once.Add(1) })
	if n := once.Load(); n != 1 {
		t.Fatalf("done was called %d times", n)
	}
	return err
}

func holds(t testing.TB, s storage.ShardStore, id storage.ShardID, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	check(t, s.ReadAt(t.Context(), id, 0, got))
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: read other bytes than were written", id)
	}
}

func suiteAppendRead(t *testing.T, s storage.ShardStore) {
	for i, n := range []int{1, 100, 16 << 10, 16<<10 + 1, 64 << 10, 64<<10 + 1, 350_000, 5 << 20} {
		h := header(1, uint64(i), 3, 2)
		data := bytesOf(h, n)
		check(t, appendShard(t, s, h, data))
		holds(t, s, h.ID, data)
		off := n / 3
		part := make([]byte, n/2)
		check(t, s.ReadAt(t.Context(), h.ID, off, part))
		if !bytes.Equal(part, data[off:off+len(part)]) {
			t.Fatalf("%d bytes: a part read differs", n)
		}
		kind(t, s.ReadAt(t.Context(), h.ID, n, make([]byte, 1)), errs.InvalidArgument)
		kind(t, s.ReadAt(t.Context(), h.ID, 0, make([]byte, n+1)), errs.InvalidArgument)
	}
	kind(t, s.ReadAt(t.Context(), header(1, 99, 0, 0).ID, 0, make([]byte, 1)), errs.NotFound)
	kind(t, s.ReadAt(t.Context(), header(2, 1, 3, 2).ID, 0, make([]byte, 1)), errs.NotFound)
}

func suiteTwice(t *testing.T, s storage.ShardStore) {
	for i, n := range []int{1000, 100_000} {
		h := header(1, uint64(i), 0, 1)
		data := bytesOf(h, n)
		check(t, appendShard(t, s, h, data))
		check(t, appendShard(t, s, h, data))
		kind(t, appendShard(t, s, h, bytesOf(h, n-1)), errs.Conflict)
		other := h
		other.Owner.Write[5]++
		kind(t, appendShard(t, s, other, data), errs.Conflict)
		holds(t, s, h.ID, data)
	}
}

func suiteRemoval(t *testing.T, s storage.ShardStore) {
	h, other, late := header(1, 1, 0, 0), header(1, 2, 0, 0), header(1, 3, 0, 0)
	second := h
	second.ID.Stripe = 1
	for _, x := range []storage.ShardHeader{h, second, other} {
		check(t, appendShard(t, s, x, bytesOf(x, 5000)))
	}
	gone := []storage.ChunkRemoval{{PG: 1, Chunk: h.ID.Chunk}, {PG: 1, Chunk: late.ID.Chunk}}
	check(t, s.Remove(t.Context(), gone))
	check(t, s.Remove(t.Context(), gone))
	check(t, s.Remove(t.Context(), nil))
	for _, x := range []storage.ShardHeader{h, second, late} {
		kind(t, s.ReadAt(t.Context(), x.ID, 0, make([]byte, 1)), errs.Gone)
		kind(t, appendShard(t, s, x, bytesOf(x, 5000)), errs.Gone)
	}
	holds(t, s, other.ID, bytesOf(other, 5000))
	many := make([]storage.ChunkRemoval, 5000)
	for i := range many {
		many[i] = storage.ChunkRemoval{PG: 2, Chunk: storage.NewChunkID(1000, uint64(i))}
	}
	check(t, s.Remove(t.Context(), many))
	x := header(2, 4999, 0, 0)
	kind(t, appendShard(t, s, x, bytesOf(x, 10)), errs.Gone)
}

func suiteEpochs(t *testing.T, s storage.ShardStore) {
	check(t, s.SetEpochs(t.Context(), map[storage.PGID]storage.Epoch{1: 5, 2: 1}))
	check(t, s.SetEpochs(t.Context(), map[storage.PGID]storage.Epoch{1: 4}))
	check(t, s.SetEpochs(t.Context(), nil))
	h := header(1, 1, 0, 0)
	for _, n := range []int{10, 100_000} {
		h.Epoch = 4
		kind(t, appendShard(t, s, h, bytesOf(h, n)), errs.StaleEpoch)
	}
	h.Epoch = 5
	check(t, appendShard(t, s, h, bytesOf(h, 10)))
	many := map[storage.PGID]storage.Epoch{}
	for i := range 5000 {
		many[storage.PGID(i)+10] = 2
	}
	check(t, s.SetEpochs(t.Context(), many))
	h = header(5009, 1, 0, 0)
	kind(t, appendShard(t, s, h, bytesOf(h, 10)), errs.StaleEpoch)
}

func suiteList(t *testing.T, s storage.ShardStore) {
	const chunks, stripes = 700, 2
	for c := range uint64(chunks) {
		for i := range uint16(stripes) {
			h := header(2, c, i, 3)
			check(t, appendShard(t, s, h, bytesOf(h, 1+int(c)%50)))
		}
	}
	h := header(3, 5, 0, 0)
	check(t, appendShard(t, s, h, bytesOf(h, 10)))
	list := func(pg storage.PGID, from storage.ChunkID, max int) (all []storage.ShardInfo) {
		t.Helper()
		check(t, s.List(t.Context(), pg, from, func(i storage.ShardInfo) bool {
			all = append(all, i)
			return len(all) < max
		}))
		return all
	}
	all := list(2, storage.ChunkID{}, 1<<30)
	if len(all) != chunks*stripes {
		t.Fatalf("%d shards listed, want %d", len(all), chunks*stripes)
	}
	for i, got := range all {
		c := uint64(i / stripes)
		if want := (storage.ShardInfo{ID: header(2, c, uint16(i%stripes), 3).ID, Bytes: 1 + int(c)%50}); got != want {
			t.Fatalf("shard %d is %v, want %v", i, got, want)
		}
	}
	if got := list(2, storage.NewChunkID(1000, 690), 1<<30); len(got) != 20 || got[0] != all[1380] {
		t.Fatalf("from the middle: %d shards", len(got))
	}
	if got := list(2, storage.ChunkID{}, 3); len(got) != 3 {
		t.Fatalf("stopped after 3: %d", len(got))
	}
	if got := list(3, storage.ChunkID{}, 9); len(got) != 1 || got[0].ID != h.ID {
		t.Fatalf("other group: %v", got)
	}
	if got := list(4, storage.ChunkID{}, 9); len(got) != 0 {
		t.Fatalf("empty group: %v", got)
	}
}

func suiteHeader(t *testing.T, s storage.ShardStore) {
	r, ok := s.(storage.HeaderReader)
	if !ok {
		t.Skip("no HeaderReader")
	}
	h := header(1, 1, 2, 3)
	check(t, appendShard(t, s, h, bytesOf(h, 100)))
	got, err := r.Header(t.Context(), h.ID)
	check(t, err)
	if got != h {
		t.Fatalf("%+v, want %+v", got, h)
	}
	_, err = r.Header(t.Context(), header(1, 9, 0, 0).ID)
	kind(t, err, errs.NotFound)
	check(t, s.Remove(t.Context(), []storage.ChunkRemoval{{PG: 1, Chunk: h.ID.Chunk}}))
	_, err = r.Header(t.Context(), h.ID)
	kind(t, err, errs.Gone)
}

func suiteAsync(t *testing.T, s storage.ShardStore) {
	a, ok := s.(storage.AsyncAppender)
	if !ok {
		t.Skip("no AsyncAppender")
	}
	type answer struct {
		n   int
		err error
	}
	const n = 40
	answers := make(chan answer, 2*n)
	stale := header(1, 1000, 0, 0)
	stale.Epoch = 0
	for i := range n {
		h, size := header(1, uint64(i), 0, 0), 100+i*3000
		if i == n/2 {
			h = stale
		}
		a.AppendAsync(h, bytesOf(h, size), func(err error) { answers <- answer{i, err} })
	}
	for range n {
		switch got := <-answers; {
		case got.n == n/2:
			kind(t, got.err, errs.StaleEpoch)
		case errs.Is(got.err, errs.Busy):
		default:
			check(t, got.err)
			h := header(1, uint64(got.n), 0, 0)
			holds(t, s, h.ID, bytesOf(h, 100+got.n*3000))
		}
	}
	if len(answers) > 0 {
		t.Fatal("done was called twice")
	}
}

func suiteContext(t *testing.T, s storage.ShardStore) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, n := range []int{10, 100_000} {
		h := header(1, uint64(n), 0, 0)
		done := make(chan struct{})
		if s.Append(ctx, h, bytesOf(h, n), func() { close(done) }) == nil {
			holds(t, s, h.ID, bytesOf(h, n)) // a store may be done sooner than it looks
		}
		<-done
	}
}

// suiteMany appends, reads and checks from many goroutines; payloads are overwritten as soon as they are returned.
func suiteMany(t *testing.T, s storage.ShardStore) {
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 15 {
				h := header(1+storage.PGID(w%2), uint64(100*w+i), 0, uint8(w))
				size := 1 + (w*977+i*15013)%200_000
				payload := bytesOf(h, size)
				returned := make(chan struct{})
				err := s.Append(t.Context(), h, payload, func() { clear(payload); close(returned) })
				if err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, size)
				if err := s.ReadAt(t.Context(), h.ID, 0, got); err != nil || !bytes.Equal(got, bytesOf(h, size)) {
					t.Errorf("%s: %v, or other bytes", h.ID, err)
					return
				}
				<-returned
			}
		})
	}
	wg.Wait()
}
