// Package extent is the format of extents, the large append-only files in which
// a drive keeps shards, and a scanner that reads them, damaged ones too. It does
// no writing and keeps no index: storage/drive does.
//
// # Format
//
// All numbers are little endian. An extent is a file header followed by frames.
//
// The file header takes the first 4096 bytes. It lies there twice, at 0 and at
// 2048, so that one rotten sector does not take the extent with it:
//
//	 0  8  magic "\x89cairnX\n"
//	 8  4  version (1)
//	12  4  extent number, as in the file's name
//	16 16  drive id
//	32  8  salt, drawn at random for each extent
//	40  8  when it was begun, unix ms (for people)
//	48  4  CRC32C of the 48 bytes before
//
// A frame begins at a multiple of 8 bytes: its fields are aligned, the scanner
// looks for the next frame in steps of 8, and zeros between frames (padding,
// holes) can be told from frames by one word. It is a header, a payload, and
// zeros up to the next multiple of 8. The header begins with what is the same
// for all types and versions, so that a frame of a later release can be stepped
// over:
//
//	 0  4  magic "\xf1CFR"
//	 4  1  version (1)
//	 5  1  type: 1 shard, 2 tombstones, 3 epochs
//	 6  2  flags, 0: bits 0-3 will name a compression, 4-7 an encryption of the payload
//	 8  4  length of the header, a multiple of 8
//	12  4  length of the payload, 1 to 16 MiB
//	16  4  CRC32C of the header without these 4 bytes, xor a hash of salt and offset
//	20  4  offset in this extent before which all was synced when this frame was written
//
// The hash in the checksum makes a frame valid only in its extent and at its
// offset: the bytes of an extent that somebody stored as an object can't pass for frames.
//
// Of a shard frame the header goes on with:
//
//	24  4  placement group
//	28  2  stripe
//	30  1  index
//	31  1  k
//	32  1  m
//	33  1  0
//	34  2  length of the object key
//	36  4  bytes of a full stripe
//	40 16  chunk id
//	56  8  epoch
//	64  8  bytes of the chunk, 0 if not known when it was written
//	72  8  bucket id
//	80 16  write id
//	96  8  0, for the length before compression and the id of an encryption key
//	104    object key, zeros up to a multiple of 4
//
// and then, of all types, CRC32C of each 64 KiB of the payload (4 bytes each)
// and zeros up to a multiple of 8. The payload of a shard frame is the shard. That of a
// tombstone frame is a list of removed chunks: placement group (4), chunk id
// (16), when it was removed in unix ms (8). That of an epoch frame is a list of
// placement group (4) and epoch (8).
package extent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"cairn/storage"
)

// Shapes of the format.
const (
	FileHeaderBytes = 4096     // where the first frame begins
	Align           = 8        // where frames begin
	PayloadBytesMax = 16 << 20 // of a frame
	HeaderBytesMax  = 104 + storage.KeyBytesMax + 4*PayloadBytesMax/storage.BlockBytes
	TombstoneBytes  = 28      // one entry of a tombstone frame
	EpochBytes      = 12      // one entry of an epoch frame
	SizeBytesMax    = 4 << 30 // offsets in an extent take 32 bits

	version     = 1
	commonBytes = 24  // of a frame header, the same for all types
	shardBytes  = 104 // of a frame header before the key
	fileBytes   = 52  // of a file header
	secondCopy  = 2048
)

// Type of a frame.
type Type uint8

// Types of frames.
const (
	Shard      Type = 1
	Tombstones Type = 2
	Epochs     Type = 3
)

func (t Type) String() string {
	switch t {
	case Shard:
		return "shard"
	case Tombstones:
		return "tombstones"
	case Epochs:
		return "epochs"
	}
	return "type " + strconv.Itoa(int(t))
}

const (
	fileMagic  = "\x89cairnX\n"
	frameMagic = 'C'<<8 | 'F'<<16 | 'R'<<24 | 0xf1 // as a little-endian number
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of p.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// Name is the file name of an extent: its number in 8 hex digits, so that names sort as numbers.
func Name(number uint32) string { return fmt.Sprintf("%08x.extent", number) }

// ParseName reads what Name writes.
func ParseName(name string) (number uint32, ok bool) {
	hex, ok := strings.CutSuffix(name, ".extent")
	if !ok || len(hex) != 8 {
		return 0, false
	}
	n, err := strconv.ParseUint(hex, 16, 32)
	return uint32(n), err == nil && Name(uint32(n)) == name
}

// FileHeader is the header of an extent.
type FileHeader struct {
	Number  uint32
	Drive   storage.DriveID
	Salt    uint64
	BegunMS int64
}

// Encode is the first FileHeaderBytes of the file.
func (h FileHeader) Encode() []byte {
	b := make([]byte, FileHeaderBytes)
	copy(b, fileMagic)
	binary.LittleEndian.PutUint32(b[8:], version)
	binary.LittleEndian.PutUint32(b[12:], h.Number)
	copy(b[16:], h.Drive[:])
	binary.LittleEndian.PutUint64(b[32:], h.Salt)
	binary.LittleEndian.PutUint64(b[40:], uint64(h.BegunMS))
	binary.LittleEndian.PutUint32(b[48:], Checksum(b[:48]))
	copy(b[secondCopy:], b[:fileBytes])
	return b
}

// ErrVersion is answered for what a later release wrote.
var ErrVersion = errors.New("extent: written by a later release")

// ErrDamaged is answered for bytes that are not what was written.
var ErrDamaged = errors.New("extent: damaged")

// ErrShort is answered if more bytes are needed to tell.
var ErrShort = errors.New("extent: short")

// ParseFileHeader reads the header from the first bytes of a file, at best
// FileHeaderBytes of them. ErrDamaged if neither copy is whole, ErrVersion.
func ParseFileHeader(b []byte) (FileHeader, error) {
	for _, at := range []int{0, secondCopy} {
		if len(b) < at+fileBytes {
			continue
		}
		c := b[at : at+fileBytes]
		if string(c[:8]) != fileMagic || binary.LittleEndian.Uint32(c[48:]) != Checksum(c[:48]) {
			continue
		}
		if binary.LittleEndian.Uint32(c[8:]) != version {
			return FileHeader{}, ErrVersion
		}
		return FileHeader{
			Number:  binary.LittleEndian.Uint32(c[12:]),
			Drive:   storage.DriveID(c[16:32]),
			Salt:    binary.LittleEndian.Uint64(c[32:]),
			BegunMS: int64(binary.LittleEndian.Uint64(c[40:])),
		}, nil
	}
	return FileHeader{}, ErrDamaged
}

// Blocks is the number of checksums of a payload of n bytes.
func Blocks(n int) int { return (n + storage.BlockBytes - 1) / storage.BlockBytes }

// Padded is n rounded up to the alignment of frames.
func Padded(n int) int { return (n + Align - 1) &^ (Align - 1) }

// AppendShard appends the header of a shard's frame to dst, all but what Seal
// fills in. The payload is read once, for its checksums. The caller has checked
// the bounds: 1 <= len(payload) <= PayloadBytesMax, len(key) <= KeyBytesMax.
func AppendShard(dst []byte, h *storage.ShardHeader, payload []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, shardBytes)...)
	b := dst[at:]
	binary.LittleEndian.PutUint32(b[24:], uint32(h.ID.PG))
	binary.LittleEndian.PutUint16(b[28:], h.ID.Stripe)
	b[30], b[31], b[32] = h.ID.Index, h.Layout.Scheme.K, h.Layout.Scheme.M
	binary.LittleEndian.PutUint16(b[34:], uint16(len(h.Owner.Key)))
	binary.LittleEndian.PutUint32(b[36:], uint32(h.Layout.StripeBytes))
	copy(b[40:], h.ID.Chunk[:])
	binary.LittleEndian.PutUint64(b[56:], uint64(h.Epoch))
	binary.LittleEndian.PutUint64(b[64:], uint64(h.Layout.Length))
	binary.LittleEndian.PutUint64(b[72:], uint64(h.Owner.Bucket))
	copy(b[80:], h.Owner.Write[:])
	dst = append(dst, h.Owner.Key...)
	for (len(dst)-at)%4 != 0 {
		dst = append(dst, 0)
	}
	return finish(dst, at, Shard, payload)
}

// AppendList appends the header of a tombstone or epoch frame to dst, all but what Seal fills in.
func AppendList(dst []byte, t Type, payload []byte) []byte {
	at := len(dst)
	dst = append(dst, make([]byte, commonBytes)...)
	return finish(dst, at, t, payload)
}

// finish appends the checksums of the payload and fills in the common fields.
func finish(dst []byte, at int, t Type, payload []byte) []byte {
	for p := payload; len(p) > 0; {
		n := min(len(p), storage.BlockBytes)
		dst = binary.LittleEndian.AppendUint32(dst, Checksum(p[:n]))
		p = p[n:]
	}
	for (len(dst)-at)%Align != 0 {
		dst = append(dst, 0)
	}
	b := dst[at:]
	binary.LittleEndian.PutUint32(b, frameMagic)
	b[4], b[5] = version, byte(t)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(b)))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(payload)))
	return dst
}

// Seal makes a header made by AppendShard or AppendList (or read from another
// place) valid at offset off of the extent with this salt. All bytes of the
// extent before durable are known to be synced.
func Seal(header []byte, salt uint64, off, durable int64) {
	binary.LittleEndian.PutUint32(header[20:], uint32(durable))
	binary.LittleEndian.PutUint32(header[16:], headerSum(header)^place(salt, off))
}

func headerSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:16], castagnoli), castagnoli, b[20:])
}

// place hashes where a frame stands (the finaliser of splitmix64).
func place(salt uint64, off int64) uint32 {
	z := salt + uint64(off)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return uint32((z ^ z>>31) >> 32)
}

// Header is a frame's header as read.
type Header struct {
	Type       Type
	Version    uint8
	Flags      uint16
	Bytes      int   // of the header
	PayloadLen int   // bytes
	Durable    int64 // the extent was synced up to here when the frame was written
	Shard      storage.ShardHeader
	Sums       []byte // checksums of the payload's blocks, 4 bytes each; nil if not Known
	Known      bool   // a type, version and flags that this release understands
}

// FrameBytes is the length of the whole frame, with padding.
func (h *Header) FrameBytes() int64 { return int64(h.Bytes + Padded(h.PayloadLen)) }

// ParseHeader reads the frame header at the start of b, which was read from
// offset off of the extent with this salt. Sums points into b. ErrShort says
// that b ends before the header does (b of HeaderBytesMax is always enough),
// ErrDamaged that no frame of ours begins here. A frame that only a later
// release understands is answered with Known false and the common fields.
func ParseHeader(b []byte, salt uint64, off int64) (h Header, err error) {
	if len(b) < commonBytes {
		return h, ErrShort
	}
	if binary.LittleEndian.Uint32(b) != frameMagic {
		return h, ErrDamaged
	}
	h.Version, h.Type = b[4], Type(b[5])
	h.Flags = binary.LittleEndian.Uint16(b[6:])
	n, payload := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	if n < commonBytes || n > HeaderBytesMax || n%Align != 0 || payload == 0 || payload > PayloadBytesMax {
		return h, ErrDamaged
	}
	if len(b) < int(n) {
		return h, ErrShort
	}
	b = b[:n:n]
	if binary.LittleEndian.Uint32(b[16:]) != headerSum(b)^place(salt, off) {
		return h, ErrDamaged
	}
	h.Bytes, h.PayloadLen = int(n), int(payload)
	h.Durable = int64(binary.LittleEndian.Uint32(b[20:]))
	if h.Version != version || h.Flags != 0 || h.Type < Shard || h.Type > Epochs {
		return h, nil
	}
	at := commonBytes
	if h.Type == Shard {
		if at, err = parseShard(b, &h.Shard); err != nil {
			return h, err
		}
	}
	sums := 4 * Blocks(h.PayloadLen)
	if Padded(at+sums) != len(b) {
		return h, ErrDamaged
	}
	h.Sums, h.Known = b[at:at+sums:at+sums], true
	return h, nil
}

// parseShard reads the fields of a shard frame and says where the checksums begin.
func parseShard(b []byte, s *storage.ShardHeader) (int, error) {
	if len(b) < shardBytes {
		return 0, ErrDamaged
	}
	keyLen := int(binary.LittleEndian.Uint16(b[34:]))
	if keyLen > storage.KeyBytesMax || shardBytes+keyLen > len(b) {
		return 0, ErrDamaged
	}
	*s = storage.ShardHeader{
		ID: storage.ShardID{
			PG:     storage.PGID(binary.LittleEndian.Uint32(b[24:])),
			Chunk:  storage.ChunkID(b[40:56]),
			Stripe: binary.LittleEndian.Uint16(b[28:]),
			Index:  b[30],
		},
		Epoch: storage.Epoch(binary.LittleEndian.Uint64(b[56:])),
		Owner: storage.Owner{
			Bucket: storage.BucketID(binary.LittleEndian.Uint64(b[72:])),
			Key:    storage.Key(b[shardBytes : shardBytes+keyLen]),
			Write:  storage.WriteID(b[80:96]),
		},
		Layout: storage.Layout{
			Scheme:      storage.Scheme{K: b[31], M: b[32]},
			StripeBytes: int(binary.LittleEndian.Uint32(b[36:])),
			Length:      int64(binary.LittleEndian.Uint64(b[64:])),
		},
	}
	return (shardBytes + keyLen + 3) &^ 3, nil
}

// Verify checks blocks of a payload: p holds it from byte first*BlockBytes on, up to the
// end of a block or of the payload. It answers the first block that does not
// match its checksum in sums, or -1.
func Verify(sums []byte, first int, p []byte) (bad int) {
	for i := first; len(p) > 0; i++ {
		n := min(len(p), storage.BlockBytes)
		if binary.LittleEndian.Uint32(sums[4*i:]) != Checksum(p[:n]) {
			return i
		}
		p = p[n:]
	}
	return -1
}

// Tombstone is one entry of a tombstone frame.
type Tombstone struct {
	storage.ChunkRemoval
	RemovedMS int64 // unix ms by the drive's clock
}

// AppendTombstone appends an entry to a tombstone frame's payload.
func AppendTombstone(dst []byte, t Tombstone) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(t.PG))
	dst = append(dst, t.Chunk[:]...)
	return binary.LittleEndian.AppendUint64(dst, uint64(t.RemovedMS))
}

// ParseTombstones reads a tombstone frame's payload.
func ParseTombstones(p []byte) ([]Tombstone, error) {
	if len(p)%TombstoneBytes != 0 {
		return nil, ErrDamaged
	}
	ts := make([]Tombstone, 0, len(p)/TombstoneBytes)
	for ; len(p) > 0; p = p[TombstoneBytes:] {
		ts = append(ts, Tombstone{
			ChunkRemoval: storage.ChunkRemoval{PG: storage.PGID(binary.LittleEndian.Uint32(p)), Chunk: storage.ChunkID(p[4:20])},
			RemovedMS:    int64(binary.LittleEndian.Uint64(p[20:])),
		})
	}
	return ts, nil
}

// Epoch is one entry of an epoch frame.
type Epoch struct {
	PG    storage.PGID
	Epoch storage.Epoch
}

// AppendEpoch appends an entry to an epoch frame's payload.
func AppendEpoch(dst []byte, e Epoch) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(e.PG))
	return binary.LittleEndian.AppendUint64(dst, uint64(e.Epoch))
}

// ParseEpochs reads an epoch frame's payload.
func ParseEpochs(p []byte) ([]Epoch, error) {
	if len(p)%EpochBytes != 0 {
		return nil, ErrDamaged
	}
	es := make([]Epoch, 0, len(p)/EpochBytes)
	for ; len(p) > 0; p = p[EpochBytes:] {
		es = append(es, Epoch{storage.PGID(binary.LittleEndian.Uint32(p)), storage.Epoch(binary.LittleEndian.Uint64(p[4:]))})
	}
	return es, nil
}

// ShardSums are the checksums of the payload's blocks in a header made by AppendShard.
func ShardSums(header []byte) []byte {
	at := (shardBytes + int(binary.LittleEndian.Uint16(header[34:])) + 3) &^ 3
	n := 4 * Blocks(int(binary.LittleEndian.Uint32(header[12:])))
	return header[at : at+n : at+n]
}
