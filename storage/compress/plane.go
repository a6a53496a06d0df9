// Package compress is the data plane with compression: what lies between bodies and package chunkio. Chunks of archive
// classes are stored as zstd where that makes them shorter, one chunk at a time; everything else passes as it is.
//
// # Format
//
// The bytes stored of a compressed chunk are zstd frames (RFC 8878) of some bytes of the object each (256 KiB now), the last one less, each with
// its checksum, and behind them the seek table of the "zstd seekable format" 0.1.0 (facebook/zstd,
// contrib/seekable_format), a frame that decoders skip. So the zstd tool reads a chunk whole, and a range is read by
// its table and the frames it touches. All numbers of the table are little endian:
//
//	4  magic 0x184D2A5E of a skippable frame
//	4  bytes that follow
//	   of each frame: 4 bytes stored, 4 bytes of the object
//	4  number of frames
//	1  flags, 0: no checksums here, since the frames have theirs
//	4  magic 0x8F92EAB1
//
// ChunkRef.compression names the format, ChunkRef.raw_length the bytes of the object and ChunkRef.frame_bytes those of a frame; length, by which the
// shards are laid out, counts what is stored. Neither shards nor drives know of compression: repair, scrub and the moves of
// placement groups handle such a chunk as any other.
//
// # Writing
//
// A body is cut into pieces, each of which becomes one chunk: its length must be known before its first stripe is written, so
// it is compressed in memory first. What does not pay is stored as it came. After dullMax such pieces in a row only the first
// frame of each next one is tried. Each frame is decoded and compared before it is stored, since what is acknowledged
// must be readable.
//
// # Memory
//
// Writes that compress and reads that decode have a budget each. They wait for it holding none of it, so they cannot wait for each other. A read
// that waits too long gets Busy; a write that finds no memory soon is stored as it comes, and a piece that finds none to grow
// ends early: slow clients cost compression and not service.
package compress

import (
	"cmp"
	"context"
	"io"
	"runtime"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"

	"cairn/cluster"
	"cairn/cluster/placement"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/chunkio"
	"cairn/storage/errs"
)

const (
	frameBytes    = 256 << 10 // of the object in a frame: a slow client holds four times that
	pieceBytesMin = 16 << 20  // of the object that are compressed together; of bodies above 64 times that a 64th, up to storage.ChunkBytesMax
	piecesWanted  = 64
	chunksSpare   = 16 // of a row's storage.ObjectChunksMax: for those that end early because their placement group lost its quorum
	dullMax       = 2  // pieces in a row that did not pay before the next are only sampled
	triesMax      = 2  // to write a piece as one chunk
	savedMin      = 256
	budgetMin     = 8 << 20 // more than one write or read needs
	parallelMax   = 4       // frames coded at once, and frames decoded; an encoder has 7 MiB of tables
)

// Chunks is the data plane below: chunkio.Plane.
type Chunks interface {
	Read(ctx context.Context, dst io.Writer, owner storage.Owner, refs []*metapb.ChunkRef, off, n int64) error
	Write(ctx context.Context, req chunkio.WriteRequest) ([]*metapb.ChunkRef, error)
	Rebuild(ctx context.Context, owner storage.Owner, ref *metapb.ChunkRef, indexes []int) error
}

// Config of a Plane. Chunks and Topology are required.
type Config struct {
	Chunks        Chunks
	Topology      func() *cluster.Topology // the newest snapshot, never nil
	WriteBytesMax int64                    // memory of all writes that compress; at least 8 MiB; 0 is 24 MiB
	ReadBytesMax  int64                    // the same for reads of compressed chunks
	Wait          time.Duration            // of reads for memory, then Busy; 0 is 5 s. Writes wait a fifth of it
}

// Plane reads and writes bodies. All methods are safe for concurrent use. It has no goroutines.
type Plane struct {
	chunks  Chunks
	writing *semaphore.Weighted // bytes
	reading *semaphore.Weighted
	wait    time.Duration
	pieces  int64 // pieceBytesMin

	topology func() *cluster.Topology
	enc      *zstd.Encoder // these two are used for single frames only, which may go on at once
	dec      *zstd.Decoder
}

// New makes a Plane.
func New(cfg Config) (*Plane, error) {
	n := min(runtime.GOMAXPROCS(0), parallelMax)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithWindowSize(frameBytes), zstd.WithEncoderConcurrency(n), zstd.WithEncoderCRC(true))
	if err != nil {
		return nil, errs.Wrap(errs.Other, "compress", "encoder", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(n), zstd.WithDecoderMaxMemory(metapb.FrameBytesMax), zstd.WithDecoderMaxWindow(metapb.FrameBytesMax), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, errs.Wrap(errs.Other, "compress", "decoder", err)
	}
	budget := func(n int64) *semaphore.Weighted { return semaphore.NewWeighted(max(cmp.Or(n, 24<<20), budgetMin)) }
	return &Plane{
		chunks: cfg.Chunks, topology: cfg.Topology, enc: enc, dec: dec, pieces: pieceBytesMin,
		writing: budget(cfg.WriteBytesMax), reading: budget(cfg.ReadBytesMax), wait: cmp.Or(cfg.Wait, 5*time.Second),
	}, nil
}

// Compresses reports whether chunks of a class are compressed where it pays: those that are read after a restore only.
func Compresses(class storage.StorageClass) bool {
	t, _ := placement.TargetOf(class)
	return t.Cold
}

// Rebuild is chunkio.Plane's.
func (p *Plane) Rebuild(ctx context.Context, owner storage.Owner, ref *metapb.ChunkRef, indexes []int) error {
	return p.chunks.Rebuild(ctx, owner, ref, indexes)
}

// acquire waits for n bytes of a budget, then Busy. The number of waiters is bounded by that of the requests.
func (p *Plane) acquire(ctx context.Context, from *semaphore.Weighted, n int64, wait time.Duration) error {
	if from.TryAcquire(n) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if err := from.Acquire(ctx, n); err != nil {
		return &errs.Error{Kind: errs.Busy, Op: "compress", Detail: "all memory for compression is in use", Err: err}
	}
	return nil
}

// decode decodes a frame that must hold n bytes into memory of that length at least, and answers them. Corrupt if it does not hold them.
func (p *Plane) decode(frame, mem []byte, n int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return nil, errs.Wrap(errs.Corrupt, "compress.decode", "", err)
	}
	if h.Skippable || !h.HasCheckSum {
		return nil, errs.New(errs.Corrupt, "compress.decode", "", "a frame without data or without a checksum")
	}
	raw, err := p.dec.DecodeAll(frame, mem[:0:n])
	if err != nil {
		return nil, errs.Wrap(errs.Corrupt, "compress.decode", "", err)
	}
	if len(raw) != n {
		return nil, errs.Newf(errs.Corrupt, "compress.decode", "", "a frame holds %d bytes and not %d", len(raw), n)
	}
	return raw, nil
}
