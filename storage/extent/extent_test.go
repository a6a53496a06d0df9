package extent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"syscall"
	"testing"

	"cairn/storage"
	"cairn/test/seed"
)

// memSource is an extent in memory. Reads that touch a block in bad fail.
type memSource struct {
	b   []byte
	bad map[int64]bool
}

func (m memSource) ReadAt(p []byte, off int64) (int, error) {
	for at := off / blockBytes; at*blockBytes < off+int64(len(p)); at++ {
		if m.bad[at] {
			return 0, syscall.EIO
		}
	}
	return bytes.NewReader(m.b).ReadAt(p, off)
}

// SeekData finds holes of whole blocks.
func (m memSource) SeekData(off int64) (int64, error) {
	for ; off < int64(len(m.b)); off = (off/blockBytes + 1) * blockBytes {
		end := min((off/blockBytes+1)*blockBytes, int64(len(m.b)))
		if !allZero(m.b[off:end]) {
			return off, nil
		}
	}
	return 0, io.EOF
}

func testHeader(rng *rand.Rand) storage.ShardHeader {
	h := storage.ShardHeader{
		ID: storage.ShardID{PG: storage.PGID(rng.Uint32()), Chunk: storage.NewChunkID(rng.Int64(), rng.Uint64()),
			Stripe: uint16(rng.Uint32()), Index: uint8(rng.Uint32())},
		Epoch: storage.Epoch(rng.Uint64()),
		Owner: storage.Owner{Bucket: storage.BucketID(rng.Uint64()), Key: storage.Key(bytes.Repeat([]byte{'k'}, rng.IntN(storage.KeyBytesMax+1)))},
		Layout: storage.Layout{Scheme: storage.Scheme{K: uint8(rng.Uint32()), M: uint8(rng.Uint32())},
			StripeBytes: int(rng.Uint32()), Length: rng.Int64()},
	}
	for i := range h.Owner.Write {
		h.Owner.Write[i] = byte(rng.Uint32())
	}
	return h
}

func testPayload(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], rng.Uint64())
	_, _ = rand.NewChaCha8(seed).Read(p)
	return p
}

type written struct {
	off, end int64
	header   storage.ShardHeader
	payload  []byte
}

const testSalt = 0x1122334455667788

// build makes an extent of shards with zeros between some.
func build(rng *rand.Rand, frames int) ([]byte, []written) {
	b := FileHeader{Number: 3, Salt: testSalt}.Encode()
	var ws []written
	for range frames {
		w := written{off: int64(len(b)), header: testHeader(rng), payload: testPayload(rng, 1+rng.IntN(1+rng.IntN(200_000)))}
		h := AppendShard(nil, &w.header, w.payload)
		Seal(h, testSalt, w.off, FileHeaderBytes)
		b = append(append(b, h...), w.payload...)
		b = append(b, make([]byte, Padded(len(b))-len(b))...)
		w.end = int64(len(b))
		ws = append(ws, w)
		if rng.IntN(3) == 0 {
			b = append(b, make([]byte, rng.IntN(3000)*Align)...)
		}
	}
	return b, ws
}

// scanAll answers the frames found and the damaged ranges.
func scanAll(t *testing.T, src Source, size int) (frames, damage []Frame) {
	t.Helper()
	s := NewScanner(src, testSalt, FileHeaderBytes, int64(size))
	for {
		f, err := s.Next()
		if errors.Is(err, io.EOF) {
			return frames, damage
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Raw = bytes.Clone(f.Raw)
		f.Header.Sums = bytes.Clone(f.Header.Sums)
		if f.Damage != nil {
			damage = append(damage, f)
		} else {
			frames = append(frames, f)
		}
	}
}

func seeded(t *testing.T) *rand.Rand {
	seed := seed.Of(t)
	return rand.New(rand.NewPCG(seed, 0))
}

func TestFramesRoundTrip(t *testing.T) {
	rng := seeded(t)
	for range 20 {
		b, ws := build(rng, 20)
		frames, damage := scanAll(t, memSource{b: b}, len(b))
		if len(damage) > 0 || len(frames) != len(ws) {
			t.Fatalf("%d frames of %d, damage %v", len(frames), len(ws), damage)
		}
		for i, f := range frames {
			w := ws[i]
			if !f.Header.Known || f.Header.Type != Shard || !reflect.DeepEqual(f.Header.Shard, w.header) || f.Off != w.off || f.Off+f.Bytes != w.end ||
				f.Header.PayloadLen != len(w.payload) || f.Header.Durable != FileHeaderBytes {
				t.Fatalf("read %+v, wrote %+v", f.Header, w.header)
			}
			if !bytes.Equal(ShardSums(f.Raw), f.Header.Sums) || Verify(f.Header.Sums, 0, w.payload) != -1 {
				t.Fatal("checksums")
			}
			at := rng.IntN(len(w.payload))
			w.payload[at] ^= 1
			if Verify(f.Header.Sums, 0, w.payload) != at/storage.BlockBytes {
				t.Fatal("a flipped bit is not seen")
			}
		}
	}
}

// TestEveryFlippedBit: no bit of a header can change without the frame becoming invalid.
func TestEveryFlippedBit(t *testing.T) {
	rng := seeded(t)
	sh := testHeader(rng)
	sh.Owner.Key = "a key"
	h := AppendShard(nil, &sh, testPayload(rng, 70_000))
	Seal(h, testSalt, 4096, 4096)
	if _, err := ParseHeader(h, testSalt, 4096); err != nil {
		t.Fatal(err)
	}
	for i := range len(h) * 8 {
		h[i/8] ^= 1 << (i % 8)
		if got, err := ParseHeader(h, testSalt, 4096); err == nil {
			t.Fatalf("bit %d of byte %d flipped, and it reads %+v", i%8, i/8, got)
		}
		h[i/8] ^= 1 << (i % 8)
	}
	for name, try := range map[string]func() (Header, error){
		"another place":  func() (Header, error) { return ParseHeader(h, testSalt, 4104) },
		"another extent": func() (Header, error) { return ParseHeader(h, testSalt+1, 4096) },
	} {
		if _, err := try(); !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for n := range h {
		if _, err := ParseHeader(h[:n], testSalt, 4096); err == nil {
			t.Fatalf("%d of %d bytes read as a header", n, len(h))
		}
	}
}

// TestScanStepsOverDamage damages frames and checks that all others are found, and the damage too.
func TestScanStepsOverDamage(t *testing.T) {
	rng := seeded(t)
	for range 200 {
		b, ws := build(rng, 1+rng.IntN(12))
		hit := map[int]bool{}
		src := memSource{b: b, bad: map[int64]bool{}}
		for range rng.IntN(4) {
			i := rng.IntN(len(ws))
			w := ws[i]
			hit[i] = true
			headerEnd := w.off + int64(len(AppendShard(nil, &w.header, w.payload)))
			switch rng.IntN(3) {
			case 0: // a byte of the header
				b[w.off+rng.Int64N(headerEnd-w.off)] ^= byte(1 + rng.IntN(255))
			case 1: // anything over the header and more
				n := min(headerEnd-w.off+rng.Int64N(1000), w.end-w.off)
				copy(b[w.off:w.off+n], testPayload(rng, int(n)))
			case 2: // a block that can't be read, with every header in it
				at := w.off / blockBytes
				src.bad[at] = true
				for j, o := range ws {
					oEnd := o.off + int64(len(AppendShard(nil, &o.header, o.payload)))
					if o.off < (at+1)*blockBytes && oEnd > at*blockBytes {
						hit[j] = true
					}
				}
			}
		}
		frames, damage := scanAll(t, src, len(b))
		found := map[int64]bool{}
		for _, f := range frames {
			found[f.Off] = true
		}
		for i, w := range ws {
			// Two flips may cancel out: then it is found and whole.
			if !hit[i] && !found[w.off] {
				t.Fatalf("frame at %d, not damaged, is not found; damage %v", w.off, damage)
			}
			if hit[i] && !found[w.off] {
				covered := false
				for _, d := range damage {
					covered = covered || d.Off < w.end && d.Off+d.Bytes > w.off
				}
				if !covered {
					t.Fatalf("the damage at %d is not reported: %v", w.off, damage)
				}
			}
		}
	}
}

// TestForgedFrames: an extent stored as an object inside another is not taken for its frames.
func TestForgedFrames(t *testing.T) {
	rng := seeded(t)
	inner, _ := build(rng, 5)
	sh := testHeader(rng)
	h := AppendShard(nil, &sh, inner)
	b := FileHeader{Number: 3, Salt: testSalt + 1}.Encode()
	Seal(h, testSalt+1, int64(len(b)), 0)
	at := len(b)
	b = append(append(b, h...), inner...)
	b[at+10] ^= 1 // the outer header is damaged: the scanner looks inside
	s := NewScanner(memSource{b: b}, testSalt+1, FileHeaderBytes, int64(len(b)))
	for {
		f, err := s.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil || f.Damage == nil {
			t.Fatalf("found %+v, %v", f, err)
		}
	}
}

func TestCutOff(t *testing.T) {
	rng := seeded(t)
	b, ws := build(rng, 3)
	last := ws[2]
	for _, cut := range []int64{last.off + 3, last.off + 30, last.end - Align} {
		if cut >= last.off+int64(len(AppendShard(nil, &last.header, last.payload))+len(last.payload)) {
			continue
		}
		frames, damage := scanAll(t, memSource{b: b[:cut]}, int(cut))
		if len(frames) != 2 || len(damage) == 0 {
			t.Fatalf("cut at %d: %d frames, damage %v", cut, len(frames), damage)
		}
	}
}

func TestLists(t *testing.T) {
	rng := seeded(t)
	var ts []Tombstone
	var es []Epoch
	var tp, ep []byte
	for range 100 {
		ts = append(ts, Tombstone{storage.ChunkRemoval{PG: storage.PGID(rng.Uint32()), Chunk: storage.NewChunkID(1, rng.Uint64())}, rng.Int64()})
		es = append(es, Epoch{storage.PGID(rng.Uint32()), storage.Epoch(rng.Uint64())})
		tp, ep = AppendTombstone(tp, ts[len(ts)-1]), AppendEpoch(ep, es[len(es)-1])
	}
	h := AppendList(nil, Tombstones, tp)
	Seal(h, 1, 0, 0)
	if got, err := ParseHeader(h, 1, 0); err != nil || got.Type != Tombstones || !got.Known || got.PayloadLen != len(tp) {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err := ParseTombstones(tp); err != nil || !reflect.DeepEqual(got, ts) {
		t.Fatal(err)
	}
	if got, err := ParseEpochs(ep); err != nil || !reflect.DeepEqual(got, es) {
		t.Fatal(err)
	}
	if _, err := ParseTombstones(tp[1:]); err == nil {
		t.Fatal("an entry cut off")
	}
	if _, err := ParseEpochs(ep[1:]); err == nil {
		t.Fatal("an entry cut off")
	}
}

// TestLaterRelease: a frame of a version, type or with flags that we don't know is stepped over whole.
func TestLaterRelease(t *testing.T) {
	rng := seeded(t)
	for name, change := range map[string]func(h []byte){
		"version": func(h []byte) { h[4] = version + 1 },
		"type":    func(h []byte) { h[5] = 77 },
		"flags":   func(h []byte) { h[6] = 1 },
	} {
		b, ws := build(rng, 3)
		raw := b[ws[1].off:]
		raw = raw[:binary.LittleEndian.Uint32(raw[8:])]
		change(raw)
		Seal(raw, testSalt, ws[1].off, FileHeaderBytes)
		frames, damage := scanAll(t, memSource{b: b}, len(b))
		if len(frames) != 3 || len(damage) > 0 || frames[1].Header.Known || frames[1].Bytes != ws[1].end-ws[1].off {
			t.Fatalf("%s: %d frames, damage %v", name, len(frames), damage)
		}
	}
}

func TestFileHeader(t *testing.T) {
	h := FileHeader{Number: 0xabcdef, Drive: storage.DriveID{1, 2}, Salt: 99, BegunMS: 123}
	for _, rot := range []int{-1, 5, secondCopy + 5} {
		b := h.Encode()
		if rot >= 0 {
			b[rot] ^= 1
		}
		if got, err := ParseFileHeader(b); err != nil || got != h {
			t.Fatalf("byte %d rotten: %+v, %v", rot, got, err)
		}
	}
	b := h.Encode()
	b[5], b[secondCopy+5] = 0, 0
	if _, err := ParseFileHeader(b); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if _, err := ParseFileHeader(nil); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	for _, n := range []uint32{0, 1, 0xffffffff} {
		if got, ok := ParseName(Name(n)); !ok || got != n {
			t.Fatal(n)
		}
	}
	for _, s := range []string{"", "x.extent", "0000000g.extent", "00000001", "000000001.extent", "0000000A.extent"} {
		if _, ok := ParseName(s); ok {
			t.Fatal(s)
		}
	}
}

// FuzzParseHeader: whatever bytes stand where a frame should, parsing does not
// panic and what it accepts stays within them.
func FuzzParseHeader(f *testing.F) {
	sh := storage.ShardHeader{Owner: storage.Owner{Key: "k"}}
	for _, n := range []int{1, 4096, 70_000} {
		h := AppendShard(nil, &sh, make([]byte, n))
		f.Add(h, uint64(testSalt), int64(4096))
	}
	f.Add(AppendList(nil, Tombstones, AppendTombstone(nil, Tombstone{})), uint64(0), int64(0))
	f.Fuzz(func(t *testing.T, b []byte, salt uint64, off int64) {
		// As it is, and with a checksum that fits, so that the fields behind it are reached.
		for range 2 {
			h, err := ParseHeader(b, salt, off)
			if err == nil {
				if h.Bytes > len(b) || h.PayloadLen <= 0 || h.PayloadLen > PayloadBytesMax || h.FrameBytes()%Align != 0 {
					t.Fatalf("%+v of %d bytes", h, len(b))
				}
				if h.Known && len(h.Sums) != 4*Blocks(h.PayloadLen) {
					t.Fatalf("%d bytes of checksums for %d of payload", len(h.Sums), h.PayloadLen)
				}
				if h.Known && h.Type == Shard && !bytes.Equal(ShardSums(b[:h.Bytes]), h.Sums) {
					t.Fatal("ShardSums and ParseHeader disagree")
				}
			}
			if len(b) < commonBytes {
				return
			}
			b = bytes.Clone(b)
			if n := int(binary.LittleEndian.Uint32(b[8:])); n >= commonBytes && n <= len(b) {
				Seal(b[:n], salt, off, 0)
			}
		}
	})
}

// FuzzScan: a scan of any bytes ends, and what it finds lies within them, in order.
func FuzzScan(f *testing.F) {
	b, _ := build(rand.New(rand.NewPCG(1, 2)), 3)
	f.Add(b[:min(len(b), 6000)])
	f.Add(make([]byte, 10_000))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewScanner(memSource{b: b}, testSalt, 0, int64(len(b)))
		at := int64(0)
		for {
			fr, err := s.Next()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if fr.Off < at || fr.Bytes <= 0 || fr.Off+fr.Bytes > int64(Padded(len(b))) {
				t.Fatal(fmt.Sprintf("%d bytes at %d of %d, after %d", fr.Bytes, fr.Off, len(b), at))
			}
			at = fr.Off + fr.Bytes
		}
	})
}
