package objects

import (
	"io"
	"slices"
	"sync/atomic"

	"cairn/proto/metapb"
	"cairn/storage"
)

// retrieved counts the bytes that are read of versions in classes where S3 charges for that: those with a minimum of days. Reads are too many
// to be counted by commands, so this is a counter of the process.
type retrieved struct {
	classes []storage.StorageClass
	bytes   []atomic.Int64
}

func newRetrieved() retrieved {
	classes := storage.MinimumClasses()
	return retrieved{classes, make([]atomic.Int64, len(classes))}
}

// writer counts what goes to w of a version's bytes, if its class is one of those; else it is w.
func (r *retrieved) writer(w io.Writer, row *metapb.ObjectRow) io.Writer {
	i := slices.Index(r.classes, storage.StorageClass(row.GetAttributes().GetStorageClass()))
	if i < 0 {
		return w
	}
	return &countingWriter{w, &r.bytes[i]}
}

type countingWriter struct {
	w io.Writer
	n *atomic.Int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// Retrieved is how many bytes were read here of versions in each class where S3 charges for that, by GetObject and for copies.
func (s *Store) Retrieved() map[storage.StorageClass]int64 {
	out := make(map[storage.StorageClass]int64, len(s.retrieved.classes))
	for i, class := range s.retrieved.classes {
		out[class] = s.retrieved.bytes[i].Load()
	}
	return out
}
