package verify

import (
	"bufio"
	"bytes"
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	"cairn/storage/errs"
)

// sorter sorts more records than fit into memory: it gathers them, writes each
// full load to a file in order (a run), and merges the runs, some at a time. A record is
// key length (2), value length (4), key, value. Only add is for concurrent use.
type sorter struct {
	dir, name string
	max       int // bytes gathered before a run is written

	mu      sync.Mutex
	data    []byte
	recs    []record
	runs    []string
	written int // runs ever, for their names
}

const (
	mergeRunsMax   = 64        // runs open at once
	runBufferBytes = 128 << 10 // of each of them
)

// record is where a gathered record lies in data.
type record struct {
	at, key, value int // offset, and lengths
}

// recordOverhead is what a record costs in memory besides its bytes.
const recordOverhead = 24

func newSorter(dir, name string, bytesMax int) *sorter {
	return &sorter{dir: dir, name: name, max: bytesMax}
}

// add keeps copies of key (at most 64 KiB) and value.
func (s *sorter) add(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recs = append(s.recs, record{len(s.data), len(key), len(value)})
	s.data = append(append(s.data, key...), value...)
	if len(s.data)+recordOverhead*len(s.recs) < s.max {
		return nil
	}
	return s.spill()
}

func (s *sorter) sort() {
	slices.SortFunc(s.recs, func(a, b record) int {
		return bytes.Compare(s.data[a.at:a.at+a.key], s.data[b.at:b.at+b.key])
	})
}

// spill writes what is gathered as a run.
func (s *sorter) spill() error {
	s.sort()
	w, err := s.newRun()
	if err != nil {
		return err
	}
	for _, r := range s.recs {
		w.add(s.data[r.at:r.at+r.key], s.data[r.at+r.key:r.at+r.key+r.value])
	}
	s.data, s.recs = s.data[:0], s.recs[:0]
	return w.close()
}

// each calls fn for all records in order of their keys, once; nothing may be added any more. fn must not keep k and v.
func (s *sorter) each(ctx context.Context, fn func(k, v []byte) error) error {
	if len(s.runs) == 0 {
		s.sort()
		for _, r := range s.recs {
			if err := fn(s.data[r.at:r.at+r.key], s.data[r.at+r.key:r.at+r.key+r.value]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := s.spill(); err != nil {
		return err
	}
	s.data, s.recs = nil, nil
	for len(s.runs) > mergeRunsMax {
		if err := s.join(ctx); err != nil {
			return err
		}
	}
	return mergeRuns(ctx, s.runs, fn)
}

// join makes one run of the oldest ones.
func (s *sorter) join(ctx context.Context) error {
	from := s.runs[:mergeRunsMax]
	s.runs = s.runs[mergeRunsMax:]
	w, err := s.newRun()
	if err != nil {
		return err
	}
	err = mergeRuns(ctx, from, func(k, v []byte) error { w.add(k, v); return nil })
	if err = errors.Join(err, w.close()); err != nil {
		return err
	}
	for _, path := range from {
		if err := os.Remove(path); err != nil {
			return errs.Wrap(errs.Other, "verify: scratch data", path, err)
		}
	}
	return nil
}

// runWriter writes a run.
type runWriter struct {
	path string
	f    *os.File
	w    *bufio.Writer
}

// newRun begins a run behind the others.
func (s *sorter) newRun() (*runWriter, error) {
	path := filepath.Join(s.dir, s.name+"-"+strconv.Itoa(s.written))
	f, err := os.Create(path)
	if err != nil {
		return nil, errs.Wrap(errs.Other, "verify: scratch data", path, err)
	}
	s.written++
	s.runs = append(s.runs, path)
	return &runWriter{path, f, bufio.NewWriterSize(f, min(s.max, 1<<20))}, nil
}

// add writes a record; errors stay until close.
func (w *runWriter) add(k, v []byte) {
	var head [6]byte
	binary.LittleEndian.PutUint16(head[:], uint16(len(k)))
	binary.LittleEndian.PutUint32(head[2:], uint32(len(v)))
	_, _ = w.w.Write(head[:])
	_, _ = w.w.Write(k)
	_, _ = w.w.Write(v)
}

func (w *runWriter) close() error {
	return errs.Wrap(errs.Other, "verify: scratch data", w.path, errors.Join(w.w.Flush(), w.f.Close()))
}

// mergeRuns calls fn for the records of all runs in order.
func mergeRuns(ctx context.Context, paths []string, fn func(k, v []byte) error) error {
	var m merge
	defer func() {
		for _, r := range m {
			_ = r.f.Close() // only read
		}
	}()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return errs.Wrap(errs.Other, "verify: scratch data", path, err)
		}
		r := &runReader{f: f, r: bufio.NewReaderSize(f, runBufferBytes)}
		m = append(m, r)
		if err := r.next(); err != nil {
			return errs.Wrap(errs.Other, "verify: scratch data", path, err)
		}
	}
	heap.Init(&m)
	for m[0].ok {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(m[0].key, m[0].value); err != nil {
			return err
		}
		if err := m[0].next(); err != nil {
			return errs.Wrap(errs.Other, "verify: scratch data", m[0].f.Name(), err)
		}
		heap.Fix(&m, 0)
	}
	return nil
}

// runReader reads a run; ok is false at its end.
type runReader struct {
	f          *os.File
	r          *bufio.Reader
	buf        []byte
	key, value []byte
	ok         bool
}

func (r *runReader) next() error {
	var head [6]byte
	r.ok = false
	if _, err := io.ReadFull(r.r, head[:]); err == io.EOF {
		return nil
	} else if err != nil {
		return err
	}
	key, value := int(binary.LittleEndian.Uint16(head[:])), int(binary.LittleEndian.Uint32(head[2:]))
	r.buf = slices.Grow(r.buf[:0], key+value)[:key+value]
	if _, err := io.ReadFull(r.r, r.buf); err != nil {
		return err
	}
	r.key, r.value, r.ok = r.buf[:key], r.buf[key:], true
	return nil
}

// merge is a heap of runs by their next key; ended ones are last.
type merge []*runReader

func (m merge) Len() int      { return len(m) }
func (m merge) Swap(i, j int) { m[i], m[j] = m[j], m[i] }
func (m merge) Less(i, j int) bool {
	if m[i].ok != m[j].ok {
		return m[i].ok
	}
	return bytes.Compare(m[i].key, m[j].key) < 0
}
func (m *merge) Push(x any) { *m = append(*m, x.(*runReader)) }
func (m *merge) Pop() any {
	last := (*m)[len(*m)-1]
	*m = (*m)[:len(*m)-1]
	return last
}
