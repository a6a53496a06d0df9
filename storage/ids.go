// Package storage is the vocabulary of cairn's data: ids, classes, shards and
// the small interfaces between the planes. It imports only the standard library
// and storage/errs, so that every other package can share its nouns.
package storage

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"time"

	"cairn/storage/errs"
)

// Limits of S3 and of cairn's own shapes.
const (
	KeyBytesMax        = 1024             // S3: length of a key in UTF-8 bytes
	ChunkBytesMax      = 64 << 20         // data bytes of one chunk
	StripeBytes        = 1 << 20          // data bytes of a full stripe: its shards stay in cache while they are coded
	ReplicateBelow     = 128 << 10        // a chunk shorter than this is copied (k=1), not coded
	CopyArchivesBelow  = 8 << 10          // the same for classes that are read after a restore only
	InlineBytesMax     = 1 << 10          // an object up to this size lies in its metadata row
	BlockBytes         = 64 << 10         // unit of checksums inside a shard
	ObjectChunksMax    = 128              // chunks named by one row (an S3 PUT or part is at most 5 GiB = 80 chunks)
	PartNumberMax      = 10000            // S3
	PartBytesMin       = 5 << 20          // S3: every part but the last
	PutBytesMax        = 5 << 30          // S3: one PUT or one part
	ObjectBytesMax     = 48828125 << 20   // S3 since December 2025: 50 TB as 10,000 parts of 5 GiB at most (46.6 TiB)
	ChunkCommitMax     = 12 * time.Hour   // a command naming an older chunk is refused (design rule 15)
	OrphanAge          = 24 * time.Hour   // only older chunks may be found to be orphans
	OutcomeRetention   = 10 * time.Minute // how long a command's outcome answers its repeats
	CompletedUploadTTL = 24 * time.Hour   // how long a repeated CompleteMultipartUpload is answered from the first
)

// BucketID names a bucket for life; a bucket recreated under the same name gets a new one.
// Ids start at 1 and are given out by the system group.
type BucketID uint64

// Key is an object key: opaque bytes, 1 to KeyBytesMax of them.
type Key string

// Seq is a range's sequence: it orders versions, events and garbage and only rises.
type Seq uint64

// WriteID names one write (a PUT, a part, a copy); drawn at random by the gateway.
type WriteID [16]byte

func (w WriteID) String() string { return hex.EncodeToString(w[:]) }
func (w WriteID) IsZero() bool   { return w == WriteID{} }

// CommandID names one command, so that a repeat is recognised; drawn at random by the gateway.
type CommandID [16]byte

func (c CommandID) String() string { return hex.EncodeToString(c[:]) }

// ChunkID names a chunk: its birth in range time (unix milliseconds, 8 bytes big
// endian) and 8 random bytes.
type ChunkID [16]byte

// NewChunkID makes an id born at birthMS (range time, unix ms) from 8 random bytes.
func NewChunkID(birthMS int64, random uint64) (id ChunkID) {
	binary.BigEndian.PutUint64(id[:8], uint64(birthMS))
	binary.BigEndian.PutUint64(id[8:], random)
	return id
}

// BirthMS is the chunk's birth in range time, unix milliseconds.
func (c ChunkID) BirthMS() int64 { return int64(binary.BigEndian.Uint64(c[:8])) }
func (c ChunkID) String() string { return hex.EncodeToString(c[:]) }

// Owner is the one write a chunk belongs to for life (design rule 14).
type Owner struct {
	Bucket BucketID
	Key    Key
	Write  WriteID
}

// DriveID names one drive incarnation: drawn when the drive is formatted, never
// used again for another or an emptied drive.
type DriveID [16]byte

func (d DriveID) String() string { return hex.EncodeToString(d[:]) }
func (d DriveID) IsZero() bool   { return d == DriveID{} }

// Short is the first 8 hex digits, for people.
func (d DriveID) Short() string { return hex.EncodeToString(d[:4]) }

// ParseDriveID reads the 32 hex digits that String writes.
func ParseDriveID(s string) (d DriveID, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(d) {
		return d, errs.Newf(errs.InvalidArgument, "parse", s, "not a drive id: want 32 hex digits")
	}
	copy(d[:], b)
	return d, nil
}

// PGID names a placement group; 0 is none.
type PGID uint32

// Epoch counts the changes of one placement group's drives, from 1.
type Epoch uint64

// Scheme is how a stripe is cut: K data and M parity shards. K=1 is M+1 copies.
type Scheme struct{ K, M uint8 }

// Shards is K+M.
func (s Scheme) Shards() int { return int(s.K) + int(s.M) }

// ShardAlign is what the length of a coded shard is a multiple of: the vector
// units code aligned shards twice as fast.
const ShardAlign = 64

// ShardLen is the bytes of every shard of a stripe of n data bytes: n/K rounded
// up, and to ShardAlign where there is anything to code (K > 1). Zeros behind the
// data fill the data shards up to it.
func (s Scheme) ShardLen(n int) int {
	if s.K == 1 {
		return n
	}
	k := int(s.K)
	return ((n+k-1)/k + ShardAlign - 1) / ShardAlign * ShardAlign
}

func (s Scheme) String() string { return strconv.Itoa(int(s.K)) + "+" + strconv.Itoa(int(s.M)) }

// ShardID names one shard: the piece with the given index of one stripe of one chunk in one placement group.
type ShardID struct {
	PG     PGID
	Chunk  ChunkID
	Stripe uint16
	Index  uint8
}

func (s ShardID) String() string {
	return fmt.Sprintf("pg %d chunk %s stripe %d shard %d", s.PG, s.Chunk, s.Stripe, s.Index)
}

// Layout says how a chunk of Length data bytes is cut with Scheme: full stripes of
// StripeBytes data bytes and a shorter last one. All sizes follow from it, so
// that a row need not list them.
type Layout struct {
	Scheme      Scheme
	StripeBytes int   // data bytes of a full stripe, > 0
	Length      int64 // data bytes of the chunk, > 0
}

// Stripes is the number of stripes.
func (l Layout) Stripes() int {
	return int((l.Length + int64(l.StripeBytes) - 1) / int64(l.StripeBytes))
}

// StripeLen is the data bytes of stripe i.
func (l Layout) StripeLen(i int) int {
	if rest := l.Length - int64(i)*int64(l.StripeBytes); rest < int64(l.StripeBytes) {
		return int(rest)
	}
	return l.StripeBytes
}

// ShardLen is the bytes of every shard of stripe i; see Scheme.ShardLen.
func (l Layout) ShardLen(i int) int { return l.Scheme.ShardLen(l.StripeLen(i)) }

// StorageClass is S3's name of a fault-tolerance target.
type StorageClass string

// The classes S3 knows.
const (
	Standard           StorageClass = "STANDARD"
	StandardIA         StorageClass = "STANDARD_IA"
	OnezoneIA          StorageClass = "ONEZONE_IA"
	IntelligentTiering StorageClass = "INTELLIGENT_TIERING"
	GlacierIR          StorageClass = "GLACIER_IR"
	Glacier            StorageClass = "GLACIER"
	DeepArchive        StorageClass = "DEEP_ARCHIVE"
	ReducedRedundancy  StorageClass = "REDUCED_REDUNDANCY"
)

// MinimumDays is how long a version is at least meant to stay in a class: who takes it away earlier is charged the rest at S3.
func (c StorageClass) MinimumDays() int {
	switch c {
	case StandardIA, OnezoneIA:
		return 30
	case GlacierIR, Glacier:
		return 90
	case DeepArchive:
		return 180
	}
	return 0
}

// MinimumClasses are the classes with a minimum.
func MinimumClasses() []StorageClass {
	return []StorageClass{StandardIA, OnezoneIA, GlacierIR, Glacier, DeepArchive}
}

// VersionID is a version as clients name it: the zero value is the null version.
// Seq orders the versions of a key; Nonce keeps ids from being guessed.
type VersionID struct {
	Seq   Seq
	Nonce uint64
}

// IsNull reports whether v is the null version.
func (v VersionID) IsNull() bool { return v == VersionID{} }

// String is "null" or 32 lower-case hex digits.
func (v VersionID) String() string {
	if v.IsNull() {
		return "null"
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(v.Seq))
	binary.BigEndian.PutUint64(b[8:], v.Nonce)
	return hex.EncodeToString(b[:])
}

// ParseVersionID reads what String writes.
func ParseVersionID(s string) (VersionID, error) {
	if s == "null" {
		return VersionID{}, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return VersionID{}, errs.Newf(errs.InvalidArgument, "parse", s, "not a version id")
	}
	v := VersionID{Seq(binary.BigEndian.Uint64(b[:8])), binary.BigEndian.Uint64(b[8:])}
	if v.IsNull() {
		return v, errs.Newf(errs.InvalidArgument, "parse", s, "not a version id")
	}
	return v, nil
}

// UploadID names a multipart upload: Seq orders the uploads of a key, Nonce keeps ids from being guessed.
type UploadID struct {
	Seq   Seq
	Nonce uint64
}

// String is 32 lower-case hex digits.
func (u UploadID) String() string {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], uint64(u.Seq))
	binary.BigEndian.PutUint64(b[8:], u.Nonce)
	return hex.EncodeToString(b[:])
}

// ParseUploadID reads what String writes.
func ParseUploadID(s string) (UploadID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return UploadID{}, errs.Newf(errs.NoSuchUpload, "parse", s, "not an upload id")
	}
	return UploadID{Seq(binary.BigEndian.Uint64(b[:8])), binary.BigEndian.Uint64(b[8:])}, nil
}
