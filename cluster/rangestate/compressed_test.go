package rangestate

import (
	"testing"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// packed makes a chunk that stores n bytes of raw bytes of the object.
func (s *store) packed(n, raw int) *metapb.ChunkRef {
	c := s.chunk(n)
	c.Compression, c.RawLength, c.FrameBytes = metapb.Compression_ZSTD_SEEKABLE, uint64(raw), 256<<10
	return c
}

// TestCompressedChunks: the length of an object is that of its bytes, however few are stored for them.
func TestCompressedChunks(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	put := s.put(1, "k", 10, 20)
	old := put.Row.Data.Chunks
	res := s.ok(put)
	rewrite := func(release []*metapb.ChunkRef, chunks ...*metapb.ChunkRef) *metapb.RewriteDataOp {
		row, err := s.view().Object(1, "k", nil)
		if err != nil {
			t.Fatal(err)
		}
		return &metapb.RewriteDataOp{
			Bucket: 1, Key: []byte("k"), VersionSeq: res.VersionSeq, WriteId: put.Row.WriteId, Generation: row.Data.Generation,
			Data: &metapb.Data{Chunks: chunks}, Release: release, StorageClass: "GLACIER",
		}
	}
	packed := s.packed(7, 25)
	plain := s.chunk(5)
	s.ok(rewrite(old, packed, plain))
	row, err := s.view().Object(1, "k", nil)
	if err != nil || row.Size != 30 || row.Data.Chunks[0].RawLength != 25 || row.Data.Chunks[0].Compression != metapb.Compression_ZSTD_SEEKABLE {
		t.Fatal(row, err)
	}
	segs, err := s.view().Segments(1, "k", row, 26, 4, 1<<20)
	if err != nil || len(segs) != 1 || segs[0].Offset != 26 || segs[0].Length != 4 {
		t.Fatal(segs, err)
	}
	unpacked, other := packed.CloneVT(), packed.CloneVT()
	unpacked.Compression, unpacked.RawLength, unpacked.FrameBytes = 0, 0, 0
	other.RawLength++
	four := s.chunk(4)
	for what, op := range map[string]*metapb.RewriteDataOp{
		"stored bytes as length":   rewrite([]*metapb.ChunkRef{plain}, packed, s.chunk(23)),
		"a kept chunk, unpacked":   rewrite(nil, unpacked, s.chunk(18), plain),
		"a kept chunk with a byte": rewrite([]*metapb.ChunkRef{plain}, other, four),
	} {
		if got := s.do(op); errs.Kind(got.Kind) != errs.InvalidArgument || got.Freed {
			t.Errorf("%s: %v", what, got)
		}
	}
	s.ok(rewrite([]*metapb.ChunkRef{packed}, s.chunk(25), plain))
	new := s.put(1, "n", 5)
	new.Row.Data.Chunks = append(new.Row.Data.Chunks, s.packed(1, 1000))
	new.Row.Size = 1005
	s.ok(new)
}

func TestMalformedCompression(t *testing.T) {
	s := newStore(t)
	s.bucket(1, metapb.Versioning_VERSIONING_NEVER)
	for what, c := range map[string]struct {
		change func(*metapb.ChunkRef)
		size   uint64
	}{
		"a length without compression": {func(c *metapb.ChunkRef) { c.Compression = 0 }, 100},
		"the same, by what is stored":  {func(c *metapb.ChunkRef) { c.Compression = 0 }, 10},
		"compression without a length": {func(c *metapb.ChunkRef) { c.RawLength = 0 }, 10},
		"without frames":               {func(c *metapb.ChunkRef) { c.FrameBytes = 0 }, 10},
		"huge frames":                  {func(c *metapb.ChunkRef) { c.FrameBytes = 5 << 20 }, 10},
		"not shorter":                  {func(c *metapb.ChunkRef) { c.RawLength = c.Length }, 10},
		"larger than a chunk":          {func(c *metapb.ChunkRef) { c.RawLength = storage.ChunkBytesMax + 1 }, storage.ChunkBytesMax + 1},
		"of another release":           {func(c *metapb.ChunkRef) { c.Compression = 2 }, 100},
	} {
		put := s.put(1, "k", 10)
		chunk := s.packed(10, 100)
		c.change(chunk)
		put.Row.Data.Chunks, put.Row.Size = []*metapb.ChunkRef{chunk}, c.size
		if got := s.do(put); errs.Kind(got.Kind) != errs.InvalidArgument || got.Freed {
			t.Errorf("%s: %v", what, got)
		}
	}
}
