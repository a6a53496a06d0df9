package verify

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// scratch is where the two sides are collected and sorted. It is thrown away afterwards. Keys:
//
//	chunks:   chunk(16) 'm'                                       a row that names the chunk (named)
//	          chunk(16) 'f' pg(4) stripe(2) index(1) drive(2)     a frame (frame)
//	          chunk(16) 'o' owner hash(16)                        an owner that frames tell (storage.Owner)
//	uploads:  upload hash(16) 'o'                                 a multipart version (object)
//	          upload hash(16) 'p' number(4)                       a part row
//	          upload hash(16) 'q' number(4)                       a part that a manifest names
//	          upload hash(16) 'r' page(4)                         a manifest page
type scratch struct {
	dir     string
	chunks  *sorter
	uploads *sorter
	content *sorter // see putContent; nil unless content is to be read back
}

// sortBytes is the memory of each sorter.
const sortBytes = 32 << 20

func openScratch(parent string, memory int, content bool) (*scratch, error) {
	dir, err := os.MkdirTemp(parent, "cairn-verify-")
	if err != nil {
		return nil, errs.Wrap(errs.Other, "verify: scratch data", parent, err)
	}
	s := &scratch{dir: dir, chunks: newSorter(dir, "chunks", memory), uploads: newSorter(dir, "uploads", memory)}
	if content {
		s.content = newSorter(dir, "content", memory)
	}
	return s, nil
}

func (s *scratch) close() error { return os.RemoveAll(s.dir) }

// hash16 is enough of SHA-256 to tell owners and uploads apart.
func hash16(parts ...[]byte) (h [16]byte) {
	s := sha256.New()
	for _, p := range parts {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(p)))
		s.Write(n[:])
		s.Write(p)
	}
	copy(h[:], s.Sum(nil))
	return h
}

func ownerHash(o *storage.Owner) [16]byte {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(o.Bucket))
	return hash16(b[:], []byte(o.Key), o.Write[:])
}

func uploadHash(b storage.BucketID, key storage.Key, upload uint64) [16]byte {
	var n [16]byte
	binary.BigEndian.PutUint64(n[:], uint64(b))
	binary.BigEndian.PutUint64(n[8:], upload)
	return hash16(n[:], []byte(key))
}

func appendOwner(dst []byte, o *storage.Owner) []byte {
	dst = binary.BigEndian.AppendUint64(dst, uint64(o.Bucket))
	dst = append(dst, o.Write[:]...)
	return append(dst, o.Key...)
}

func parseOwner(b []byte) (o storage.Owner) {
	o.Bucket = storage.BucketID(binary.BigEndian.Uint64(b))
	copy(o.Write[:], b[8:24])
	o.Key = storage.Key(b[24:])
	return o
}

// Kinds of rows that name a chunk.
const (
	byVersion = 'v'
	byPart    = 'p'
	byGarbage = 'g'
)

// named is a row's claim to a chunk.
type named struct {
	by      byte
	owner   storage.Owner // Write is zero for garbage rows, which don't tell it
	version string        // as clients see it; "" for the current one of a bucket without versions
	part    uint32
	ref     *metapb.ChunkRef
}

func (s *scratch) putNamed(n *named) error {
	key := append(append(make([]byte, 0, 17), n.ref.Id...), 'm')
	v := []byte{n.by, byte(len(n.version))}
	v = append(v, n.version...)
	v = binary.BigEndian.AppendUint32(v, n.part)
	v = binary.BigEndian.AppendUint16(v, uint16(len(n.owner.Key)))
	v = appendOwner(v, &n.owner)
	ref, err := n.ref.MarshalVT()
	if err != nil {
		return err
	}
	return s.chunks.add(key, append(v, ref...))
}

func parseNamed(v []byte) (n named, err error) {
	if len(v) < 2 || len(v) < 2+int(v[1])+6+24 {
		return n, errShort
	}
	n.by = v[0]
	l := int(v[1])
	n.version, v = string(v[2:2+l]), v[2+l:]
	n.part = binary.BigEndian.Uint32(v)
	owner := 24 + int(binary.BigEndian.Uint16(v[4:]))
	n.owner = parseOwner(v[6 : 6+owner])
	n.ref = &metapb.ChunkRef{}
	return n, n.ref.UnmarshalVT(v[6+owner:])
}

// frame is a frame as found.
type frame struct {
	id     storage.ShardID
	drive  int // in Config.Drives
	bytes  int
	bad    string // why it cannot be read; "" if it is good
	owner  [16]byte
	layout storage.Layout
	where  string
}

func (s *scratch) putFrame(drive int, f *Frame) error {
	key := make([]byte, 0, 40)
	key = append(append(key, f.Header.ID.Chunk[:]...), 'f')
	key = binary.BigEndian.AppendUint32(key, uint32(f.Header.ID.PG))
	key = binary.BigEndian.AppendUint16(key, f.Header.ID.Stripe)
	key = append(key, f.Header.ID.Index)
	key = binary.BigEndian.AppendUint16(key, uint16(drive))
	bad := ""
	if f.Err != nil {
		bad = f.Err.Error()
	}
	h := ownerHash(&f.Header.Owner)
	l := &f.Header.Layout
	v := make([]byte, 0, 64)
	v = append(v, h[:]...)
	v = append(v, l.Scheme.K, l.Scheme.M)
	v = binary.BigEndian.AppendUint32(v, uint32(l.StripeBytes))
	v = binary.BigEndian.AppendUint64(v, uint64(l.Length))
	v = binary.BigEndian.AppendUint32(v, uint32(f.Bytes))
	v = binary.BigEndian.AppendUint16(v, uint16(min(len(bad), 1<<12)))
	v = append(v, bad[:min(len(bad), 1<<12)]...)
	return s.chunks.add(key, append(v, f.Where...))
}

func parseFrame(k, v []byte) (f frame) {
	f.id.Chunk = storage.ChunkID(k[:16])
	f.id.PG = storage.PGID(binary.BigEndian.Uint32(k[17:]))
	f.id.Stripe, f.id.Index = binary.BigEndian.Uint16(k[21:]), k[23]
	f.drive = int(binary.BigEndian.Uint16(k[24:]))
	f.owner = [16]byte(v[:16])
	f.layout = storage.Layout{Scheme: storage.Scheme{K: v[16], M: v[17]}, StripeBytes: int(binary.BigEndian.Uint32(v[18:])), Length: int64(binary.BigEndian.Uint64(v[22:]))}
	f.bytes = int(binary.BigEndian.Uint32(v[30:]))
	n := int(binary.BigEndian.Uint16(v[34:]))
	f.bad, f.where = string(v[36:36+n]), string(v[36+n:])
	return f
}

func (s *scratch) putOwner(chunk storage.ChunkID, o *storage.Owner) error {
	h := ownerHash(o)
	key := append(append(append(make([]byte, 0, 33), chunk[:]...), 'o'), h[:]...)
	return s.chunks.add(key, appendOwner(nil, o))
}

var errShort = errors.New("verify: scratch data is damaged")

// putContent notes a version or part whose bytes are to be read back. They are
// read in order of their first chunk.
func (s *scratch) putContent(n *named, d *metapb.Data, etag string) error {
	refs := &metapb.Data{Chunks: d.Chunks}
	b, err := refs.MarshalVT()
	if err != nil {
		return err
	}
	v := []byte{n.by, byte(len(etag))}
	v = append(v, etag...)
	v = append(append(v, byte(len(n.version))), n.version...)
	v = binary.BigEndian.AppendUint32(v, n.part)
	v = binary.BigEndian.AppendUint16(v, uint16(len(n.owner.Key)))
	v = appendOwner(v, &n.owner)
	return s.content.add(d.Chunks[0].Id, append(v, b...))
}

func parseContent(v []byte) (n named, d *metapb.Data, etag string, err error) {
	n.by = v[0]
	l := 2 + int(v[1])
	etag, v = string(v[2:l]), v[l:]
	l = 1 + int(v[0])
	n.version, v = string(v[1:l]), v[l:]
	n.part = binary.BigEndian.Uint32(v)
	owner := 24 + int(binary.BigEndian.Uint16(v[4:]))
	n.owner = parseOwner(v[6 : 6+owner])
	d = &metapb.Data{}
	return n, d, etag, d.UnmarshalVT(v[6+owner:])
}
