package compress

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/klauspost/compress/zstd"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/chunkio"
	"cairn/storage/errs"
	"cairn/test/seed"
)

// fake is a data plane in memory: what it is given it keeps as one chunk, or as several.
type fake struct {
	topo    *cluster.Topology
	chunks  map[storage.ChunkID][]byte
	writes  int
	split   func(write int) bool // a write that comes back as two chunks
	after   func()               // a write
	rebuild error
	rebuilt []int
}

const group = 7

func newFake() *fake {
	t := &cluster.Topology{Version: 1, Drives: map[storage.DriveID]cluster.Drive{}, PGs: map[storage.PGID]cluster.PG{}}
	pg := cluster.PG{ID: group, Scheme: storage.Scheme{K: 2, M: 1}, Class: storage.Glacier, Epoch: 1, Previous: make([]storage.DriveID, 3)}
	for i := range byte(4) {
		d := storage.DriveID{i + 1}
		t.Drives[d] = cluster.Drive{ID: d, Zone: cluster.Zone(fmt.Sprint(i % 3)), State: cluster.DriveActive}
		if i < 3 {
			pg.Drives = append(pg.Drives, d)
		}
	}
	t.PGs[group] = pg
	return &fake{topo: t, chunks: map[storage.ChunkID][]byte{}}
}

func (f *fake) keep(p []byte) *metapb.ChunkRef {
	id := storage.NewChunkID(1, uint64(len(f.chunks)+1))
	f.chunks[id] = p
	return &metapb.ChunkRef{Id: id[:], Pg: group, Epoch: 1, K: 2, M: 1, StripeBytes: storage.StripeBytes, Length: uint64(len(p))}
}

func (f *fake) Write(_ context.Context, req chunkio.WriteRequest) ([]*metapb.ChunkRef, error) {
	f.writes++
	p := make([]byte, req.Size)
	if _, err := io.ReadFull(req.Body, p); err != nil {
		return nil, err
	}
	if req.Tee != nil {
		for part := range slices.Chunk(p, 300_000) {
			req.Tee(part)
		}
	}
	if n, err := req.Body.Read(make([]byte, 1)); n > 0 || err != io.EOF {
		return nil, fmt.Errorf("no end behind the body: %d, %v", n, err)
	}
	if f.after != nil {
		f.after()
	}
	if f.split != nil && f.split(f.writes) {
		return []*metapb.ChunkRef{f.keep(p[:len(p)/2]), f.keep(p[len(p)/2:])}, nil
	}
	return []*metapb.ChunkRef{f.keep(p)}, nil
}

func (f *fake) Read(_ context.Context, dst io.Writer, _ storage.Owner, refs []*metapb.ChunkRef, off, n int64) error {
	var all []byte
	for _, ref := range refs {
		all = append(all, f.chunks[storage.ChunkID(ref.Id)]...)
	}
	if off < 0 || n < 0 || off+n > int64(len(all)) {
		return errs.New(errs.InvalidRange, "read", "", "")
	}
	for part := range slices.Chunk(all[off:off+n], 200_000) {
		if _, err := dst.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func (f *fake) Rebuild(_ context.Context, _ storage.Owner, _ *metapb.ChunkRef, indexes []int) error {
	f.rebuilt = append(f.rebuilt, indexes...)
	return f.rebuild
}

func newPlane(t testing.TB, f *fake) *Plane {
	t.Helper()
	p, err := New(Config{Chunks: f, Topology: func() *cluster.Topology { return f.topo }, Wait: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// free checks that all of the memory was given back.
func free(t *testing.T, p *Plane) {
	t.Helper()
	for range 2 {
		if !p.writing.TryAcquire(24<<20) || !p.reading.TryAcquire(24<<20) {
			t.Fatal("memory of the budget was not given back")
		}
		p.writing.Release(24 << 20)
		p.reading.Release(24 << 20)
	}
}

func noise(rnd *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

// text has about three times the bytes it needs.
func text(rnd *rand.Rand, n int) []byte {
	var p []byte
	for len(p) < n {
		p = fmt.Appendf(p, "2026-11-%02d node-%d took a request for object %d\n", rnd.IntN(30), rnd.IntN(9), rnd.IntN(1_000_000))
	}
	return p[:n]
}

func write(p *Plane, class storage.StorageClass, body []byte) ([]*metapb.ChunkRef, []byte, error) {
	var seen []byte
	refs, err := p.Write(context.Background(), chunkio.WriteRequest{
		Class: class, Size: int64(len(body)), Body: iotest.HalfReader(bytes.NewReader(body)), BirthMS: func() int64 { return 1 },
		Tee: func(b []byte) { seen = append(seen, b...) },
	})
	return refs, seen, err
}

func read(p *Plane, refs []*metapb.ChunkRef, off, n int64) ([]byte, error) {
	var got bytes.Buffer
	err := p.Read(context.Background(), &got, storage.Owner{}, refs, off, n)
	return got.Bytes(), err
}

// mustWrite writes a body and reads it back, whole and in ranges. It answers the bytes stored and how many chunks are compressed.
func mustWrite(t *testing.T, p *Plane, rnd *rand.Rand, body []byte) (refs []*metapb.ChunkRef, stored, packed int) {
	t.Helper()
	refs, seen, err := write(p, storage.Glacier, body)
	if err != nil || !bytes.Equal(seen, body) {
		t.Fatalf("%d bytes: %v; %d were seen", len(body), err, len(seen))
	}
	size := 0
	for _, ref := range refs {
		size, stored = size+int(ref.ObjectBytes()), stored+int(ref.Length)
		if compressed(ref) {
			packed++
		} else if ref.RawLength != 0 {
			t.Fatal(ref)
		}
	}
	if size != len(body) {
		t.Fatalf("the chunks hold %d bytes of %d", size, len(body))
	}
	ranges := [][2]int{{0, len(body)}, {0, 0}, {len(body), 0}, {len(body) - 1, 1}}
	for range 6 {
		off := rnd.IntN(len(body))
		ranges = append(ranges, [2]int{off, 1 + rnd.IntN(len(body)-off)}, [2]int{off, min(100, len(body)-off)})
	}
	for _, r := range ranges {
		if got, err := read(p, refs, int64(r[0]), int64(r[1])); err != nil || !bytes.Equal(got, body[r[0]:r[0]+r[1]]) {
			t.Fatalf("%d bytes from %d of %d: %d came, %v", r[1], r[0], len(body), len(got), err)
		}
	}
	for _, r := range [][2]int64{{0, int64(len(body)) + 1}, {-1, 1}, {1, int64(len(body))}, {0, -1}} {
		if _, err := read(p, refs, r[0], r[1]); !errs.Is(err, errs.InvalidRange) {
			t.Fatalf("%d bytes from %d of %d: %v", r[1], r[0], len(body), err)
		}
	}
	free(t, p)
	return refs, stored, packed
}

func TestRoundTrip(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seed.Of(t), 0))
	f := newFake()
	p := newPlane(t, f)
	for _, n := range []int{1, 100, 5000, frameBytes - 1, frameBytes, frameBytes + 1, 5*frameBytes/2 + 3} {
		if _, stored, packed := mustWrite(t, p, rnd, noise(rnd, n)); stored != n || packed != 0 {
			t.Errorf("%d random bytes are stored as %d", n, stored)
		}
		body := text(rnd, n)
		refs, stored, packed := mustWrite(t, p, rnd, body)
		if n >= 5000 && (stored > n/2 || packed != 1 || len(refs) != 1) || n <= 100 && stored != n {
			t.Errorf("%d bytes of text are stored as %d in %d chunks", n, stored, len(refs))
		}
		if packed == 0 {
			continue
		}
		plain, err := zstd.NewReader(bytes.NewReader(f.chunks[storage.ChunkID(refs[0].Id)])) // knows nothing of the table
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(plain); err != nil || !bytes.Equal(got, body) {
			t.Errorf("a plain decoder reads %d bytes of %d, %v", len(got), n, err)
		}
		plain.Close()
	}
	p.pieces = 2 * frameBytes
	n := 5*frameBytes + 1000
	if refs, _, packed := mustWrite(t, p, rnd, text(rnd, n)); len(refs) != 3 || packed != 3 {
		t.Errorf("%d chunks, %d of them compressed", len(refs), packed)
	}
	mixed := slices.Concat(noise(rnd, 2*frameBytes), text(rnd, 2*frameBytes), noise(rnd, 100_000))
	refs, _, _ := mustWrite(t, p, rnd, mixed)
	if len(refs) != 3 || compressed(refs[0]) || !compressed(refs[1]) || compressed(refs[2]) {
		t.Errorf("a text between random bytes: %v", refs)
	}
}

// TestOtherClasses: they are written and read as if this package were not there.
func TestOtherClasses(t *testing.T) {
	f := newFake()
	p := newPlane(t, f)
	body := text(rand.New(rand.NewPCG(1, 2)), 3_000_000)
	for _, class := range []storage.StorageClass{storage.Standard, storage.StandardIA, storage.OnezoneIA, storage.IntelligentTiering, storage.GlacierIR, storage.ReducedRedundancy, "?"} {
		refs, seen, err := write(p, class, body)
		if err != nil || len(refs) != 1 || refs[0].Length != uint64(len(body)) || compressed(refs[0]) || !bytes.Equal(seen, body) {
			t.Fatal(class, refs, err)
		}
		if got, err := read(p, refs, 10, 100); err != nil || !bytes.Equal(got, body[10:110]) {
			t.Fatal(class, err)
		}
	}
	for _, class := range []storage.StorageClass{storage.Glacier, storage.DeepArchive} {
		if refs, _, err := write(p, class, body); err != nil || !compressed(refs[0]) {
			t.Fatal(class, refs, err)
		}
	}
	p.chunks = idle{}
	refs := []*metapb.ChunkRef{{Length: 1}, {Length: 1}}
	req := chunkio.WriteRequest{Class: storage.Standard, Size: 1}
	if n := testing.AllocsPerRun(100, func() {
		_, _ = p.Write(t.Context(), req)
		_ = p.Read(t.Context(), io.Discard, storage.Owner{}, refs, 0, 2)
	}); n > 0 {
		t.Errorf("%v allocations on the way of an object of another class", n)
	}
}

// idle does nothing.
type idle struct{}

func (idle) Write(context.Context, chunkio.WriteRequest) ([]*metapb.ChunkRef, error) { return nil, nil }
func (idle) Read(context.Context, io.Writer, storage.Owner, []*metapb.ChunkRef, int64, int64) error {
	return nil
}
func (idle) Rebuild(context.Context, storage.Owner, *metapb.ChunkRef, []int) error { return nil }

// TestSampling: bodies that do not compress are not compressed in vain for ever, but looked at.
func TestSampling(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seed.Of(t), 0))
	p := newPlane(t, newFake())
	p.pieces = 3 * frameBytes
	piece := func(first, rest func(*rand.Rand, int) []byte) []byte {
		return slices.Concat(first(rnd, frameBytes), rest(rnd, 2*frameBytes))
	}
	late := piece(noise, text)
	for i, c := range []struct {
		body []byte
		want []bool
	}{
		{late, []bool{true}},
		{slices.Concat(piece(noise, noise), late, late), []bool{false, true, true}},
		{slices.Concat(piece(noise, noise), piece(noise, noise), late, piece(text, text), late), []bool{false, false, false, true, true}},
		{slices.Concat(piece(noise, noise), piece(noise, noise), noise(rnd, 1000)), []bool{false, false, false}},
		{slices.Concat(piece(noise, noise), piece(noise, noise), text(rnd, 50_000)), []bool{false, false, true}},
	} {
		refs, _, _ := mustWrite(t, p, rnd, c.body)
		var got []bool
		for _, ref := range refs {
			got = append(got, compressed(ref))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d: pieces are compressed: %v, want %v", i, got, c.want)
		}
	}
}

// TestWrongBodies: a body that does not keep its promises reaches no drive, as long as it is one piece.
func TestWrongBodies(t *testing.T) {
	f := newFake()
	p := newPlane(t, f)
	p.pieces = 2 * frameBytes
	body := text(rand.New(rand.NewPCG(1, 2)), 2*frameBytes)
	broken := errors.New("broken")
	for what, c := range map[string]struct {
		body  io.Reader
		check func(error) bool
	}{
		"short":     {bytes.NewReader(body[:len(body)-1]), func(err error) bool { return errs.Is(err, errs.IncompleteBody) }},
		"shorter":   {bytes.NewReader(body[:frameBytes]), func(err error) bool { return errs.Is(err, errs.IncompleteBody) }},
		"long":      {io.MultiReader(bytes.NewReader(body), bytes.NewReader([]byte{1})), func(err error) bool { return errs.Is(err, errs.EntityTooLarge) }},
		"wrong end": {io.MultiReader(bytes.NewReader(body), iotest.ErrReader(broken)), func(err error) bool { return errors.Is(err, broken) }},
		"wrong":     {io.MultiReader(bytes.NewReader(body[:100]), iotest.ErrReader(broken)), func(err error) bool { return errors.Is(err, broken) }},
		"stuck":     {stuck{bytes.NewReader(body)}, func(err error) bool { return errors.Is(err, io.ErrNoProgress) }},
	} {
		refs, err := p.Write(t.Context(), chunkio.WriteRequest{Class: storage.Glacier, Size: int64(len(body)), Body: c.body})
		if !c.check(err) || refs != nil || f.writes > 0 {
			t.Errorf("%s: %v, %v, %d writes", what, refs, err, f.writes)
		}
		free(t, p)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Write(ctx, chunkio.WriteRequest{Class: storage.Glacier, Size: int64(len(body)), Body: bytes.NewReader(body)}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// stuck never comes to its end.
type stuck struct{ r io.Reader }

func (s stuck) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// TestChunkEndsEarly: a compressed chunk that its placement group lost on the way is written again.
func TestChunkEndsEarly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seed.Of(t), 0))
	for what, c := range map[string]struct {
		split          func(int) bool
		writes, packed int
		chunks         int
	}{
		"once":   {func(n int) bool { return n == 1 }, 3, 2, 2},
		"twice":  {func(n int) bool { return n <= 2 }, 4, 1, 2},
		"always": {func(int) bool { return true }, 6, 0, 4},
	} {
		f := newFake()
		f.split = c.split
		p := newPlane(t, f)
		p.pieces = frameBytes
		refs, _, packed := mustWrite(t, p, rnd, text(rnd, frameBytes+50_000))
		if f.writes != c.writes || packed != c.packed || len(refs) != c.chunks {
			t.Errorf("%s: %d writes, %d chunks, %d of them compressed", what, f.writes, len(refs), packed)
		}
	}
}

// TestMemory: what is held is bounded, a read that waits too long is told so, and a write is not compressed, or in smaller pieces, rather than wait.
func TestMemory(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seed.Of(t), 0))
	p := newPlane(t, newFake())
	body := text(rnd, 4*frameBytes)
	const held = 24<<20 - 9*frameBytes/2 // room for a writer, with less than a frame to grow
	if !p.writing.TryAcquire(held) {
		t.Fatal("no budget")
	}
	refs, _, err := write(p, storage.Glacier, body)
	if err != nil || len(refs) != 4 {
		t.Fatalf("%d chunks, %v", len(refs), err)
	}
	if got, err := read(p, refs, 0, int64(len(body))); err != nil || !bytes.Equal(got, body) {
		t.Fatal(err)
	}
	if !p.writing.TryAcquire(frameBytes) {
		t.Fatal("not given back")
	}
	whole, _, err := write(p, storage.Glacier, body)
	if err != nil || len(whole) != 1 || compressed(whole[0]) {
		t.Fatalf("a body that finds no memory to be compressed: %d chunks, %v", len(whole), err)
	}
	if got, err := read(p, whole, 0, int64(len(body))); err != nil || !bytes.Equal(got, body) {
		t.Fatal(err)
	}
	if refs, _, err := write(p, storage.Glacier, body[:5000]); err != nil || !compressed(refs[0]) {
		t.Fatal("a small body needs little", err)
	}
	p.writing.Release(held + frameBytes)
	if !p.reading.TryAcquire(24<<20 - frameBytes) {
		t.Fatal("no budget")
	}
	if _, err := read(p, refs, 0, 1); !errs.Is(err, errs.Busy) {
		t.Fatal(err)
	}
	p.reading.Release(24<<20 - frameBytes)
	free(t, p)
}

// TestManyPieces: whatever a body is like, a row can name its chunks.
func TestManyPieces(t *testing.T) {
	w := &writer{}
	size := int64(storage.PutBytesMax)
	for w.read < size && w.mayCut(size-w.read) {
		w.read += frameBytes // the shortest pieces that there are
		w.refs = append(w.refs, nil)
	}
	rest := int(size-w.read+storage.ChunkBytesMax-1) / storage.ChunkBytesMax
	if n := len(w.refs) + rest; n > storage.ObjectChunksMax-chunksSpare || len(w.refs) < 30 {
		t.Errorf("%d pieces and %d chunks behind them", len(w.refs), rest)
	}
}

// TestPlacesChange: chunks that were durable long ago are looked at again.
func TestPlacesChange(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seed.Of(t), 0))
	move := func(f *fake, slots ...int) {
		now := *f.topo
		now.PGs = map[storage.PGID]cluster.PG{}
		pg := f.topo.PGs[group]
		pg.Drives, pg.Epoch = slices.Clone(pg.Drives), pg.Epoch+1
		for _, s := range slots {
			pg.Drives[s] = storage.DriveID{4}
		}
		now.PGs[group] = pg
		f.topo = &now
	}
	for what, c := range map[string]struct {
		slots   []int
		rebuild error
		want    errs.Kind
		rebuilt []int
	}{
		"nothing":       {nil, nil, 0, nil},
		"a drive":       {[]int{0}, nil, 0, []int{0}},
		"not rebuilt":   {[]int{0}, errs.New(errs.DriveFailed, "", "", ""), errs.Unavailable, []int{0}},
		"another drive": {[]int{2}, nil, 0, []int{2}},
	} {
		f := newFake()
		f.rebuild = c.rebuild
		p := newPlane(t, f)
		p.pieces = frameBytes
		f.after = func() {
			if f.writes == 2 {
				move(f, c.slots...)
			}
		}
		body := text(rnd, 2*frameBytes+5000)
		refs, _, err := write(p, storage.Glacier, body)
		if errs.KindOf(err) != c.want && (err != nil || c.want != 0) {
			t.Fatalf("%s: %v", what, err)
		}
		if want := slices.Concat(c.rebuilt, c.rebuilt); err == nil && !slices.Equal(f.rebuilt, want) || !slices.Equal(f.rebuilt[:len(c.rebuilt)], c.rebuilt) {
			t.Errorf("%s: rebuilt %v, want %v of the first two chunks", what, f.rebuilt, c.rebuilt)
		}
		for _, ref := range refs {
			if ref.Missing != 0 {
				t.Errorf("%s: missing %b", what, ref.Missing)
			}
		}
		if err == nil {
			if got, err := read(p, refs, 0, int64(len(body))); err != nil || !bytes.Equal(got, body) {
				t.Fatal(what, err)
			}
		}
	}
}

// TestDamage: whatever is wrong with the bytes stored, what is read is right or Corrupt.
func TestDamage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seed.Of(t), 0))
	f := newFake()
	p := newPlane(t, f)
	for _, n := range []int{20_000, 2*frameBytes + 20_000} {
		body := text(rnd, n)
		refs, _, err := write(p, storage.Glacier, body)
		if err != nil {
			t.Fatal(err)
		}
		ref := refs[0]
		id := storage.ChunkID(ref.Id)
		good := f.chunks[id]
		corrupt := 0
		for i := range 300 {
			bad := bytes.Clone(good)
			at := rnd.IntN(len(bad))
			if i%2 == 0 {
				at = len(bad) - 1 - rnd.IntN(int(tableLen(framesOf(int64(n), frameBytes))))
			}
			bad[at] ^= 1 << rnd.IntN(8)
			f.chunks[id] = bad
			got, err := read(p, refs, 0, int64(n))
			if !bytes.HasPrefix(body, got) || err == nil && len(got) != n || err != nil && !errs.Is(err, errs.Corrupt) {
				t.Fatalf("byte %d of %d: %d bytes of %d, %v", at, len(bad), len(got), n, err)
			}
			if err != nil {
				corrupt++
			}
		}
		if corrupt < 280 {
			t.Errorf("only %d of 300 damages were noticed", corrupt)
		}
		f.chunks[id] = good
		for what, change := range map[string]func(*metapb.ChunkRef){
			"longer":       func(r *metapb.ChunkRef) { r.RawLength++ },
			"shorter":      func(r *metapb.ChunkRef) { r.RawLength-- },
			"much longer":  func(r *metapb.ChunkRef) { r.RawLength = storage.ChunkBytesMax },
			"too long":     func(r *metapb.ChunkRef) { r.RawLength = 1 << 62 },
			"not shorter":  func(r *metapb.ChunkRef) { r.RawLength = r.Length },
			"other frames": func(r *metapb.ChunkRef) { r.FrameBytes = metapb.FrameBytesMin },
			"no frames":    func(r *metapb.ChunkRef) { r.FrameBytes = 0 },
			"huge frames":  func(r *metapb.ChunkRef) { r.FrameBytes = 1 << 31 },
			"empty":        func(r *metapb.ChunkRef) { r.Length = 0 },
			"another way":  func(r *metapb.ChunkRef) { r.Compression = 99 },
			"stored short": func(r *metapb.ChunkRef) { r.Length -= 5 },
		} {
			r := ref.CloneVT()
			change(r)
			if got, err := read(p, []*metapb.ChunkRef{r}, 0, 10); !errs.Is(err, errs.Corrupt) {
				t.Errorf("%s: %d bytes, %v", what, len(got), err)
			}
		}
		full := errors.New("full")
		if err := p.Read(t.Context(), failing{full}, storage.Owner{}, refs, 0, 10); !errors.Is(err, full) {
			t.Error(err)
		}
		free(t, p)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func FuzzTable(f *testing.F) {
	f.Add(appendTable(nil, 2*frameBytes+7, frameBytes, []int{100, 2, frameBytes}), int64(2*frameBytes+7), int64(0))
	f.Add(appendTable(nil, 7, frameBytes, []int{9}), int64(7), int64(34))
	f.Fuzz(func(t *testing.T, b []byte, raw, stored int64) {
		if raw <= 0 || raw > storage.ChunkBytesMax {
			return
		}
		at, err := parseTable(b, raw, stored, frameBytes)
		if err != nil {
			if !errs.Is(err, errs.Corrupt) {
				t.Fatal(err)
			}
			return
		}
		var lengths []int
		for i := range len(at) - 1 {
			lengths = append(lengths, int(at[i+1]-at[i]))
		}
		again := appendTable(nil, raw, frameBytes, lengths)
		again[len(again)-5] = b[len(b)-5] // flags without a meaning
		if at[0] != 0 || at[len(at)-1]+int64(len(b)) != stored || !bytes.Equal(again, b) {
			t.Fatalf("%x is read as %v", b, at)
		}
	})
}

// FuzzChunk reads arbitrary bytes as a compressed chunk.
func FuzzChunk(f *testing.F) {
	p := newPlane(f, newFake())
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, body := range [][]byte{text(rnd, 3000), bytes.Repeat([]byte("the same "), 120_000)} { // small ones are quicker to change
		n, fk := len(body), newFake()
		refs, _, err := write(newPlane(f, fk), storage.Glacier, body)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(fk.chunks[storage.ChunkID(refs[0].Id)], uint64(n), int64(0), int64(n))
	}
	f.Add(binary.LittleEndian.AppendUint32(nil, seekableMagic), uint64(1<<20), int64(1), int64(1))
	f.Fuzz(func(t *testing.T, stored []byte, raw uint64, off, n int64) {
		fk := newFake()
		ref := fk.keep(stored)
		ref.Compression, ref.RawLength, ref.FrameBytes = metapb.Compression_ZSTD_SEEKABLE, raw, frameBytes
		q := *p
		q.chunks = fk
		got, err := read(&q, []*metapb.ChunkRef{ref}, off, n)
		switch {
		case err == nil && int64(len(got)) != n:
			t.Fatalf("%d bytes and not %d", len(got), n)
		case err != nil && !errs.Is(err, errs.Corrupt) && !errs.Is(err, errs.InvalidRange):
			t.Fatal(err)
		}
	})
}
