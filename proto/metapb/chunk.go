package metapb

// ObjectBytes is how many bytes of the object or part the chunk holds. Length is how many bytes are stored for
// them: the layout of the shards follows from that.
func (x *ChunkRef) ObjectBytes() uint64 {
	if x.GetCompression() != Compression_COMPRESSION_NONE {
		return x.GetRawLength()
	}
	return x.GetLength()
}

// Bounds of a compressed chunk's frames.
const (
	FrameBytesMin = 4 << 10
	FrameBytesMax = 4 << 20
)

// rawBytesMax is storage.ChunkBytesMax: no chunk holds more of an object.
const rawBytesMax = 64 << 20

// WellCompressed reports whether a chunk is stored as it is, or in a known way that makes it shorter.
func (x *ChunkRef) WellCompressed() bool {
	switch x.GetCompression() {
	case Compression_COMPRESSION_NONE:
		return x.GetRawLength() == 0 && x.GetFrameBytes() == 0
	case Compression_ZSTD_SEEKABLE:
		return x.GetRawLength() > x.GetLength() && x.RawLength <= rawBytesMax && x.FrameBytes >= FrameBytesMin && x.FrameBytes <= FrameBytesMax
	}
	return false
}
