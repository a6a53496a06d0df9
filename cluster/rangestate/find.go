package rangestate

import (
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/storage"
)

// FindChunk is the reference by which a version or part of the owner's key names
// the chunk, or nil if none does (a garbage row may still: see Refers). Like Refers it
// reads all versions and parts of the key. WrongRange: another range must be asked.
func (v *View) FindChunk(owner storage.Owner, chunk storage.ChunkID) (ref *metapb.ChunkRef, err error) {
	r, done := v.frozen()
	defer done()
	return v.findChunk(r, owner, chunk)
}

func (v *View) findChunk(r pebble.Reader, owner storage.Owner, chunk storage.ChunkID) (ref *metapb.ChunkRef, err error) {
	if !contains(&v.config.bounds, uint64(owner.Bucket), owner.Key) {
		return nil, v.wrongRange("rangestate.findChunk", uint64(owner.Bucket), owner.Key)
	}
	look := func(data *metapb.Data) bool {
		if i := findChunk(data.GetChunks(), chunk[:]); i >= 0 {
			ref = data.Chunks[i]
		}
		return ref != nil
	}
	row, err := v.current(r, owner.Bucket, owner.Key)
	if err != nil || look(row.GetData()) {
		return ref, err
	}
	for _, kind := range [...]byte{kindVersion, kindPart} {
		start := appendRow(nil, kind, uint64(owner.Bucket), owner.Key)
		err = iterate(r, start, prefixEnd(slices.Clone(start)), func(raw []byte, value func() ([]byte, error)) (bool, error) {
			if kind == kindVersion {
				row := &metapb.ObjectRow{}
				err := decode(raw, value, row)
				return err == nil && !look(row.Data), err
			}
			row := &metapb.PartRow{}
			err := decode(raw, value, row)
			return err == nil && !look(row.Data), err
		})
		if err != nil || ref != nil {
			return ref, err
		}
	}
	return nil, nil
}
