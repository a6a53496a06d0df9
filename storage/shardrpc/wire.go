package shardrpc

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"strings"

	"google.golang.org/grpc/mem"

	"cairn/proto/nodepb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Names of what is not generated: its messages are frames.
const (
	dataService  = "cairn.node.ShardData"
	appendMethod = "/" + dataService + "/Append"
	readMethod   = "/" + dataService + "/Read"
)

// Bounds of what one message carries.
const (
	payloadBytesMax = 12 << 20 // of one append: with its head it must fit into a message of 16 MiB
	readBytesMax    = 4 << 20  // of one answer; longer reads are several
	batchBytesMax   = 1 << 20  // payloads of a batch, but for one that is larger alone
	batchMax        = 64       // appends in a batch
	inlineBytesMax  = 16 << 10 // payloads up to here are copied into the frame
	headBytesMax    = 1 << 20
	prefixBytes     = 8
	removalsMax     = 4096 // chunks in one call of Remove
	epochsMax       = 4096 // placement groups in one call of SetEpochs
	listPage        = 512  // shards in a page of List
)

// castagnoli is the table of CRC32C; the hash uses the processor's instruction.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli()) }

func toID(id storage.ShardID) *nodepb.ShardID {
	return &nodepb.ShardID{Pg: uint32(id.PG), Chunk: id.Chunk[:], Stripe: uint32(id.Stripe), Index: uint32(id.Index)}
}

func fromID(m *nodepb.ShardID) (id storage.ShardID, err error) {
	if len(m.GetChunk()) != len(id.Chunk) || m.Stripe > 1<<16-1 || m.Index > 1<<8-1 {
		return id, malformed("a shard's id")
	}
	return storage.ShardID{PG: storage.PGID(m.Pg), Chunk: storage.ChunkID(m.Chunk), Stripe: uint16(m.Stripe), Index: uint8(m.Index)}, nil
}

func toHeader(h *storage.ShardHeader) *nodepb.ShardHeader {
	return &nodepb.ShardHeader{
		Id: toID(h.ID), Epoch: uint64(h.Epoch), Bucket: uint64(h.Owner.Bucket), Key: []byte(h.Owner.Key), Write: h.Owner.Write[:],
		K: uint32(h.Layout.Scheme.K), M: uint32(h.Layout.Scheme.M), StripeBytes: uint64(h.Layout.StripeBytes), Length: uint64(h.Layout.Length),
	}
}

func fromHeader(m *nodepb.ShardHeader) (h storage.ShardHeader, err error) {
	if m == nil {
		return h, malformed("no header")
	}
	id, err := fromID(m.Id)
	if err != nil {
		return h, err
	}
	if len(m.Write) != len(h.Owner.Write) || m.K > 1<<8-1 || m.M > 1<<8-1 || m.StripeBytes > 1<<31-1 || m.Length > 1<<62 || len(m.Key) > storage.KeyBytesMax {
		return h, malformed("a shard's header")
	}
	return storage.ShardHeader{
		ID: id, Epoch: storage.Epoch(m.Epoch),
		Owner:  storage.Owner{Bucket: storage.BucketID(m.Bucket), Key: storage.Key(m.Key), Write: storage.WriteID(m.Write)},
		Layout: storage.Layout{Scheme: storage.Scheme{K: uint8(m.K), M: uint8(m.M)}, StripeBytes: int(m.StripeBytes), Length: int64(m.Length)},
	}, nil
}

func fromDrive(b []byte) (d storage.DriveID, err error) {
	if len(b) != len(d) {
		return d, malformed("a drive's id")
	}
	return storage.DriveID(b), nil
}

func malformed(what string) error {
	return errs.New(errs.InvalidArgument, "shardrpc", "", "malformed message: "+what)
}

func toError(err error) *nodepb.Error {
	if err == nil {
		return nil
	}
	return &nodepb.Error{Kind: uint32(errs.KindOf(err)), Op: "shard.append", Detail: validText(err.Error())}
}

func fromError(m *nodepb.Error) error {
	if m == nil {
		return nil
	}
	return &errs.Error{Kind: errs.Kind(m.Kind), Op: m.Op, Subject: m.Subject, Detail: m.Detail}
}

// putPrefix writes what stands before a head, which lies behind it in frame.
func putPrefix(frame []byte, head int) {
	binary.LittleEndian.PutUint32(frame, uint32(head))
	binary.LittleEndian.PutUint32(frame[4:], checksum(frame[prefixBytes:prefixBytes+head]))
}

// readHead reads prefix and head of a frame.
func readHead(r *mem.Reader) ([]byte, error) {
	var prefix [prefixBytes]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, malformed("a frame without a head")
	}
	n := int(binary.LittleEndian.Uint32(prefix[:]))
	if n > headBytesMax || n > r.Remaining() {
		return nil, malformed("a head that is too long")
	}
	head := make([]byte, n)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, malformed("a head cut short")
	}
	if checksum(head) != binary.LittleEndian.Uint32(prefix[4:]) {
		return nil, damaged("a message")
	}
	return head, nil
}

// damaged is the error of what changed between two nodes.
func damaged(what string) error {
	return errs.New(errs.Unavailable, "shardrpc", "", what+" was damaged on its way between two nodes")
}

// readPayload fills p from the frame and reports whether it has the checksum.
func readPayload(r *mem.Reader, p []byte, sum uint32) (sound bool, err error) {
	table, crc := castagnoli(), uint32(0)
	for rest := p; len(rest) > 0; {
		n, err := r.Read(rest)
		if err != nil {
			return false, malformed("a payload cut short")
		}
		crc = crc32.Update(crc, table, rest[:n])
		rest = rest[n:]
	}
	return crc == sum, nil
}

// readReply is the answer to a read; its place is given before.
type readReply struct {
	into []byte
}

// MarshalFrame is for rpc.Payload; the reader of shards never sends one.
func (r *readReply) MarshalFrame() (mem.BufferSlice, error) {
	return nil, malformed("an answer as a question")
}

// UnmarshalFrame fills the place.
func (r *readReply) UnmarshalFrame(data mem.BufferSlice) error {
	reader := data.Reader()
	defer reader.Close()
	head, err := readHead(reader)
	if err != nil {
		return err
	}
	var m nodepb.ShardReadHead
	if err := m.UnmarshalVT(head); err != nil {
		return malformed("the head of an answer")
	}
	if int(m.PayloadBytes) != len(r.into) {
		return malformed("an answer of another length")
	}
	sound, err := readPayload(reader, r.into, m.PayloadCrc)
	if err == nil && !sound {
		err = damaged("what was read")
	}
	return err
}

// readAnswer is readReply as the server sends it.
type readAnswer struct {
	head    []byte // with its prefix
	payload mem.Buffer
}

func newReadAnswer(payload *[]byte, pool mem.BufferPool) *readAnswer {
	m := nodepb.ShardReadHead{PayloadBytes: uint32(len(*payload)), PayloadCrc: checksum(*payload)}
	head := make([]byte, prefixBytes+m.SizeVT())
	_, _ = m.MarshalToSizedBufferVT(head[prefixBytes:]) // there is room
	putPrefix(head, len(head)-prefixBytes)
	return &readAnswer{head, mem.NewBuffer(payload, pool)}
}

// MarshalFrame hands the bytes over to the transport.
func (a *readAnswer) MarshalFrame() (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(a.head), a.payload}, nil
}

// UnmarshalFrame is for rpc.Payload; the server receives none.
func (a *readAnswer) UnmarshalFrame(mem.BufferSlice) error {
	return malformed("a question as an answer")
}

// validText makes s fit for a string of protobuf.
func validText(s string) string { return strings.ToValidUTF8(s[:min(len(s), 1<<10)], "\uFFFD") }

// HeaderToWire is a header as nodes send it to each other.
func HeaderToWire(h *storage.ShardHeader) *nodepb.ShardHeader { return toHeader(h) }

// HeaderFromWire is the inverse of HeaderToWire. Error: InvalidArgument.
func HeaderFromWire(m *nodepb.ShardHeader) (storage.ShardHeader, error) { return fromHeader(m) }
