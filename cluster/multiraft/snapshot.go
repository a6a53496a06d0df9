package multiraft

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/raft"

	"cairn/cluster"
	"cairn/storage/errs"
)

// A replica is raft's snapshot store: its state is the only snapshot there is.
var _ raft.SnapshotStore = (*replica)(nil)

func (m marker) meta(id string) *raft.SnapshotMeta {
	return &raft.SnapshotMeta{
		Version: 1, ID: id, Index: m.Point.Index, Term: m.Point.Term,
		Configuration: m.Config.raft(), ConfigurationIndex: m.Config.Index,
	}
}

const (
	stateSnapshotID = "state"
	installPrefix   = "install-"
)

// List implements raft.SnapshotStore. It names what is durable in the state.
func (r *replica) List() ([]*raft.SnapshotMeta, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.marker.Point.Index == 0 {
		return nil, nil
	}
	return []*raft.SnapshotMeta{r.mu.marker.meta(stateSnapshotID)}, nil
}

// Open implements raft.SnapshotStore: the state as it is now, at a newer index than the marker's
// perhaps, as a stream of unknown length (Size is 0; the receiver of the stream gives raft an exact one). An install's id opens
// to its metadata and nothing else.
func (r *replica) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if strings.HasPrefix(id, installPrefix) {
		p := r.pending.Load()
		if p == nil || p.id != id {
			return nil, nil, errs.New(errs.NotFound, "multiraft.open", id, "no such install")
		}
		m := p.header.marker().meta(id)
		m.Size = int64(len(id))
		return m, io.NopCloser(strings.NewReader("")), nil
	}
	if !r.ds.users.enter() {
		return nil, nil, errs.New(errs.Closed, "multiraft.open", string(r.id), "the drive is closing")
	}
	s, err := newStateReader(r)
	if err != nil {
		r.ds.users.leave()
		return nil, nil, err
	}
	return s.header.marker().meta(id), s, nil
}

// Create implements raft.SnapshotStore.
func (r *replica) Create(_ raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &sink{r: r, m: marker{rowFormat, point{index, term}, toConfiguration(ci, c)}}, nil
}

// sink ends a local snapshot, or accepts the token of an install.
type sink struct {
	r     *replica
	m     marker
	local bool
	token strings.Builder
}

func (s *sink) ID() string {
	if s.local {
		return stateSnapshotID
	}
	return s.token.String()
}

func (s *sink) Write(p []byte) (int, error) {
	if s.token.Len()+len(p) > 100 {
		return 0, errors.New("not an install's token")
	}
	return s.token.Write(p)
}

func (s *sink) Cancel() error { return nil }

// Close makes the marker durable together with all the state it stands for: raft truncates the log next.
// An install is made durable by Restore instead, before raft truncates.
func (s *sink) Close() error {
	if !s.local {
		return nil
	}
	r := s.r
	r.mu.Lock()
	old := r.mu.marker.Point
	r.mu.Unlock()
	if s.m.Point.Index <= old.Index {
		return errs.Newf(errs.Conflict, "multiraft.snapshot", string(r.id), "there is a marker at %d already", old.Index)
	}
	err := r.ds.update(func(b *pebble.Batch) error { return b.Set(rowKey(r.g.id, rowMarker), encodeRow(s.m), nil) })
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.mu.marker = s.m
	r.mu.Unlock()
	return nil
}

// ---- the stream ----

// streamHeader begins a stream of a group's rows.
type streamHeader struct {
	Format int               `json:"format"`
	Group  cluster.GroupID   `json:"group"`
	Point  point             `json:"point"`
	Config configuration     `json:"config"`
	Spans  []cluster.KeySpan `json:"spans"`
}

func (h streamHeader) marker() marker { return marker{rowFormat, h.Point, h.Config} }

// checkRows is Corrupt if a block, with its type, has rows that are not in the spans: they would be written over somebody else's,
// and nobody would ever clear them.
func (h streamHeader) checkRows(block []byte) error {
	at := 0
	return eachRow(block[1:], func(k, _ []byte) error {
		in := func(s cluster.KeySpan) bool { return bytes.Compare(s.Start, k) <= 0 && bytes.Compare(k, s.End) < 0 }
		if len(k) > 0 && k[0] != rowSpace {
			if at < len(h.Spans) && in(h.Spans[at]) {
				return nil
			}
			at = slices.IndexFunc(h.Spans, in)
		} else {
			at = -1
		}
		if at < 0 {
			return errs.Newf(errs.Corrupt, "multiraft.stream", "", "the row %q is not in the spans", k)
		}
		return nil
	})
}

type streamEnd struct {
	Rows uint64 `json:"rows"`
}

// Types of blocks.
const (
	blockHeader = 'H' // JSON
	blockRows   = 'R' // key length (uvarint), key, value length (uvarint), value, ...
	blockEnd    = 'E' // JSON
)

const (
	blockBytes    = 128 << 10 // payload of a full block of rows, about
	blockBytesMax = 64 << 20  // a single row may be large
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

func appendBlock(b, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(payload, crcTable))
	return append(b, payload...)
}

// readBlock reads the next block into buf, grown as needed; the first byte is its type.
func readBlock(r io.Reader, buf []byte) ([]byte, error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return nil, errs.Wrap(errs.Corrupt, "multiraft.stream", "", err)
	}
	n := binary.LittleEndian.Uint32(h[:])
	if n == 0 || n > blockBytesMax {
		return nil, errs.Newf(errs.Corrupt, "multiraft.stream", "", "a block of %d bytes", n)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, errs.Wrap(errs.Corrupt, "multiraft.stream", "", err)
	}
	if crc32.Checksum(buf, crcTable) != binary.LittleEndian.Uint32(h[4:]) {
		return nil, errs.New(errs.Corrupt, "multiraft.stream", "", "checksum mismatch")
	}
	return buf, nil
}

// stateReader streams a group's rows from a Pebble snapshot.
type stateReader struct {
	header  streamHeader
	leave   func()
	snap    *pebble.Snapshot
	it      *pebble.Iterator
	span    int // of header.Spans, the one that it is in or comes next
	rows    uint64
	ended   bool
	payload []byte
	block   []byte
	off     int
}

func newStateReader(r *replica) (_ *stateReader, err error) {
	s := &stateReader{leave: r.ds.users.leave, snap: r.ds.db().NewSnapshot()}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.snap.Close())
		}
	}()
	m, ok, err := readMarker(s.snap, r.g.id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, errs.New(errs.NotFound, "multiraft.open", string(r.id), "the state is empty")
	}
	ap, err := readApplied(s.snap, r.g.id)
	if err != nil {
		return nil, err
	}
	s.header = streamHeader{Format: rowFormat, Group: r.g.id, Point: ap, Config: m.Config}
	if m.Point.Index > ap.Index {
		s.header.Point = m.Point // barriers and no-ops were all there was in between
	}
	var c configuration
	if ok, err := getJSON(s.snap, rowKey(r.g.id, rowConfig), &c); err != nil {
		return nil, err
	} else if ok && c.Index > s.header.Config.Index {
		s.header.Config = c
	}
	if s.header.Spans, err = r.sm.Spans(s.snap); err != nil {
		return nil, err
	}
	j, err := json.Marshal(s.header)
	if err != nil {
		return nil, err
	}
	s.block = appendBlock(nil, append([]byte{blockHeader}, j...))
	return s, nil
}

// Read implements io.Reader.
func (s *stateReader) Read(p []byte) (int, error) {
	if s.off == len(s.block) {
		if s.ended {
			return 0, io.EOF
		}
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.block[s.off:])
	s.off += n
	return n, nil
}

func (s *stateReader) next() error {
	s.payload = append(s.payload[:0], blockRows)
	for len(s.payload) < blockBytes {
		if s.it == nil {
			if s.span == len(s.header.Spans) {
				break
			}
			sp := s.header.Spans[s.span]
			s.span++
			it, err := s.snap.NewIter(&pebble.IterOptions{LowerBound: sp.Start, UpperBound: sp.End})
			if err != nil {
				return err
			}
			s.it = it
			it.First()
		}
		if !s.it.Valid() {
			err := s.it.Close()
			s.it = nil
			if err != nil {
				return err
			}
			continue
		}
		k := s.it.Key()
		v, err := s.it.ValueAndErr()
		if err != nil {
			return err
		}
		s.payload = binary.AppendUvarint(s.payload, uint64(len(k)))
		s.payload = append(s.payload, k...)
		s.payload = binary.AppendUvarint(s.payload, uint64(len(v)))
		s.payload = append(s.payload, v...)
		s.rows++
		s.it.Next()
	}
	s.block, s.off = s.block[:0], 0
	if len(s.payload) > 1 {
		s.block = appendBlock(s.block, s.payload)
		return nil
	}
	j, err := json.Marshal(streamEnd{s.rows})
	if err != nil {
		return err
	}
	s.block = appendBlock(s.block, append([]byte{blockEnd}, j...))
	s.ended = true
	return nil
}

// Close implements io.Closer.
func (s *stateReader) Close() error {
	defer s.leave()
	var err error
	if s.it != nil {
		err = s.it.Close()
	}
	return errors.Join(err, s.snap.Close())
}

// readStream reads a whole stream: each block goes to fn (rows only) as it comes. The header comes first.
func readStream(r io.Reader, head func(streamHeader) error, rows func(payload []byte) error) error {
	br := bufio.NewReaderSize(r, 64<<10)
	var buf []byte
	var n uint64
	for first := true; ; first = false {
		b, err := readBlock(br, buf)
		if err != nil {
			return err
		}
		buf = b
		switch {
		case first && b[0] == blockHeader:
			var h streamHeader
			if err := parseRow(b[1:], &h); err != nil {
				return err
			}
			if err := head(h); err != nil {
				return err
			}
		case !first && b[0] == blockRows:
			c, err := countRows(b[1:])
			if err != nil {
				return err
			}
			n += c
			if err := rows(b); err != nil {
				return err
			}
		case !first && b[0] == blockEnd:
			var e streamEnd
			if err := json.Unmarshal(b[1:], &e); err != nil || e.Rows != n {
				return errs.Newf(errs.Corrupt, "multiraft.stream", "", "%d rows came, %d were sent", n, e.Rows)
			}
			return nil
		default:
			return errs.Newf(errs.Corrupt, "multiraft.stream", "", "unexpected block %q", b[0])
		}
	}
}

// eachRow calls fn for the rows of a block without its type; k and v are part of it.
func eachRow(b []byte, fn func(k, v []byte) error) error {
	for len(b) > 0 {
		var f [2][]byte
		for i := range f {
			n, w := binary.Uvarint(b)
			if w <= 0 || n > uint64(len(b)-w) {
				return errs.New(errs.Corrupt, "multiraft.stream", "", "a row ends early")
			}
			f[i], b = b[w:w+int(n)], b[w+int(n):]
		}
		if err := fn(f[0], f[1]); err != nil {
			return err
		}
	}
	return nil
}

func countRows(b []byte) (n uint64, err error) {
	err = eachRow(b, func(_, _ []byte) error { n++; return nil })
	return n, err
}
