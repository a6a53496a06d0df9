package rangestate

import (
	"errors"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Segment is a piece of an object's bytes: Length bytes from Offset on in the
// bytes of one part, or of the whole object if it is not multipart.
type Segment struct {
	Part   uint32               // part number; 0 if the object is not multipart
	Write  storage.WriteID      // owner of the chunks
	Size   int64                // bytes of the part
	Inline []byte               // the part's bytes, or
	Chunks []*metapb.ChunkRef   // its chunks, whose bytes follow one another
	Offset int64                // of the first byte wanted in the part's bytes
	Length int64                // bytes wanted; > 0
	Class  storage.StorageClass // of the object
}

// Segments are the first pieces of row that hold the n bytes from off on, in order: at least one if n > 0, and no more
// once their part rows have bytesMax bytes together, so that whoever reads a large object asks for the next
// ones as it goes. Of a multipart object it reads the manifest pages and part rows of these bytes
// alone. They are there as long as a reader holds the object's write, also when object and bucket are gone; so it does
// not ask for the bucket. InvalidRange: the bytes don't lie in the object.
func (v *View) Segments(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, off, n int64, bytesMax int) ([]Segment, error) {
	if !contains(&v.config.bounds, uint64(bucket), key) {
		return nil, v.wrongRange("rangestate.segments", uint64(bucket), key)
	}
	segs, ok, err := InRow(row, off, n)
	if err != nil || ok {
		return segs, err
	}
	w := partWalk{v: v, bucket: uint64(bucket), key: key, upload: row.Data.UploadSeq, class: classOf(row), room: bytesMax}
	defer w.close()
	page, err := v.findPage(uint64(bucket), key, row.Data, func(first uint32, offset uint64) bool { return offset <= uint64(off) })
	if err != nil {
		return nil, err
	}
	for more := true; more; page++ {
		err := v.page(uint64(bucket), key, row.Data.UploadSeq, page, func(number uint32, at, size uint64) (bool, error) {
			end := int64(at + size)
			if end <= off || size == 0 {
				return true, nil
			}
			take := min(end-off, n)
			if err := w.add(number, size, off-int64(at), take); err != nil {
				return false, err
			}
			off, n = off+take, n-take
			more = n > 0 && w.room > 0
			return more, nil
		})
		if err != nil {
			return nil, err
		}
	}
	return w.out, nil
}

// PartExtent is where the part with a number lies in an object: offset and length
// in bytes. An object that is not multipart is its own part 1. InvalidRange: there is no such part.
func (v *View) PartExtent(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, number int) (off, n int64, err error) {
	if _, err := v.at(bucket, key); err != nil {
		return 0, 0, err
	}
	if n, ok, err := WholePart(row, number); err != nil || ok {
		return 0, n, err
	}
	if number < 1 || number > storage.PartNumberMax {
		return 0, 0, noPart(number)
	}
	page, err := v.findPage(uint64(bucket), key, row.Data, func(first uint32, offset uint64) bool { return first <= uint32(number) })
	if err != nil {
		return 0, 0, err
	}
	found := false
	err = v.page(uint64(bucket), key, row.Data.UploadSeq, page, func(nr uint32, at, size uint64) (bool, error) {
		if nr == uint32(number) {
			found, off, n = true, int64(at), int64(size)
		}
		return nr < uint32(number), nil
	})
	if err == nil && !found {
		err = noPart(number)
	}
	return off, n, err
}

// ObjectParts are up to limit parts of a multipart object with numbers above after, in order and without their data, and
// whether there are more. Of an object that is not multipart there are none. The version may be gone by now, and its parts
// with it: NotFound.
func (v *View) ObjectParts(bucket storage.BucketID, key storage.Key, row *metapb.ObjectRow, after, limit int) (rows []*metapb.PartRow, more bool, err error) {
	if _, err := v.at(bucket, key); err != nil {
		return nil, false, err
	}
	d := row.GetData()
	if d.GetUploadSeq() == 0 || limit <= 0 || after >= storage.PartNumberMax {
		return nil, false, nil
	}
	r, done := v.frozen()
	defer done()
	at := &View{r: r, group: v.group, config: v.config} // of one moment: the parts are all there, or the version is gone
	after = max(after, 0)
	first, err := at.findPage(uint64(bucket), key, d, func(first uint32, _ uint64) bool { return first <= uint32(after)+1 })
	var numbers []uint32
	for page := first; err == nil && page*pageSize < d.Parts && !more; page++ {
		err = at.page(uint64(bucket), key, d.UploadSeq, page, func(number uint32, _, _ uint64) (bool, error) {
			if int(number) > after {
				if more = len(numbers) == limit; !more {
					numbers = append(numbers, number)
				}
			}
			return !more, nil
		})
	}
	w := partWalk{v: at, bucket: uint64(bucket), key: key, upload: d.UploadSeq}
	defer w.close()
	for i := 0; i < len(numbers) && err == nil; i++ {
		part := &metapb.PartRow{}
		err = w.read(i, numbers[i], part)
		part.Data = nil
		rows = append(rows, part)
	}
	if errs.Is(err, errs.Corrupt) {
		if _, gone := v.VersionBySeq(bucket, key, storage.Seq(row.Seq)); errs.Is(gone, errs.NotFound) {
			err = errs.New(errs.NotFound, "rangestate.parts", "", "the version was removed meanwhile")
		}
	}
	if err != nil {
		return nil, false, err
	}
	return rows, more, nil
}

// findPage is the last manifest page for which before is true of its first part's
// number and its offset; before must be true of a first few pages only. Page 0 if of none.
func (v *View) findPage(bucket uint64, key storage.Key, d *metapb.Data, before func(first uint32, offset uint64) bool) (uint32, error) {
	lo, hi := uint32(0), (d.Parts+pageSize-1)/pageSize // the page is in [lo, hi)
	for lo+1 < hi {
		mid := (lo + hi) / 2
		var first uint32
		offset := uint64(0)
		err := v.withPage(bucket, key, d.UploadSeq, mid, func(row []byte) bool {
			var ok bool
			offset, ok = manifestOffset(row)
			return ok && manifestParts(row, func(number uint32, _ uint64) bool { first = number; return false })
		})
		if err != nil {
			return 0, err
		}
		if before(first, offset) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return lo, nil
}

// withPage calls fn with an encoded manifest page; false from fn means that it is malformed.
func (v *View) withPage(bucket uint64, key storage.Key, upload uint64, page uint32, fn func(row []byte) bool) error {
	v.key = appendUploadRow(v.key[:0], kindManifest, bucket, key, upload, page)
	row, closer, err := v.r.Get(v.key)
	if errors.Is(err, pebble.ErrNotFound) {
		return corrupt(v.key, errors.New("a page of the manifest is not there"))
	}
	if err != nil {
		return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	defer closer.Close()
	if !fn(row) {
		return corrupt(v.key, errMalformed)
	}
	return nil
}

// page calls fn for the parts of a manifest page with their places in the object until it answers false.
func (v *View) page(bucket uint64, key storage.Key, upload uint64, page uint32, fn func(number uint32, at, size uint64) (bool, error)) error {
	var ferr error
	err := v.withPage(bucket, key, upload, page, func(row []byte) bool {
		at, ok := manifestOffset(row)
		return ok && manifestParts(row, func(number uint32, size uint64) bool {
			var more bool
			more, ferr = fn(number, at, size)
			at += size
			return more && ferr == nil
		})
	})
	if ferr != nil {
		return ferr
	}
	return err
}

// partWalk reads part rows in order of their numbers: the first two by key, more by one iterator.
type partWalk struct {
	v      *View
	bucket uint64
	key    storage.Key
	upload uint64
	class  storage.StorageClass
	raw    []byte // the raw key of the part sought
	it     *pebble.Iterator
	out    []Segment
	room   int // bytes that are left for part rows
}

func (w *partWalk) add(number uint32, size uint64, off, n int64) error {
	row := &metapb.PartRow{}
	if err := w.read(len(w.out), number, row); err != nil {
		return err
	}
	if row.Size != size {
		return corrupt(w.raw, errors.New("the part has another size than the manifest says"))
	}
	s := Segment{
		Part: number, Size: int64(size), Inline: row.GetData().GetInline(), Chunks: row.GetData().GetChunks(), Offset: off, Length: n,
		Class: w.class,
	}
	copy(s.Write[:], row.WriteId)
	w.out = append(w.out, s)
	w.room -= row.SizeVT()
	return nil
}

// read reads the row of a part, the nth.
func (w *partWalk) read(n int, number uint32, row *metapb.PartRow) error {
	missing := errors.New("a part of the manifest is not there")
	w.raw = appendUploadRow(w.raw[:0], kindPart, w.bucket, w.key, w.upload, number)
	if n < 2 {
		ok, err := getRow(w.v.r, w.raw, row)
		if err == nil && !ok {
			err = corrupt(w.raw, missing)
		}
		return err
	}
	var ok bool
	if w.it == nil {
		_, end := uploadSpan(kindPart, w.bucket, w.key, w.upload)
		it, err := w.v.r.NewIter(&pebble.IterOptions{LowerBound: slices.Clone(w.raw), UpperBound: end})
		if err != nil {
			return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
		}
		w.it = it
		ok = it.First()
	} else {
		ok = w.it.Next()
	}
	if ok && string(w.it.Key()) != string(w.raw) { // a part that the manifest does not list
		ok = w.it.SeekGE(w.raw)
	}
	if err := w.it.Error(); err != nil {
		return errs.Wrap(errs.DriveFailed, "rangestate.read", "", err)
	}
	if !ok || string(w.it.Key()) != string(w.raw) {
		return corrupt(w.raw, missing)
	}
	return decode(w.raw, w.it.ValueAndErr, row)
}

func (w *partWalk) close() {
	if w.it != nil {
		_ = w.it.Close() // its errors were seen at each step
	}
}

// manifest answers which part numbers a completed upload lists, for ascending numbers.
type manifest struct {
	r       pebble.Reader
	bucket  uint64
	key     []byte
	upload  uint64
	page    uint32   // next one to read
	numbers []uint32 // of the page read last, from the one sought last on
	ended   bool
}

// lists reports whether the part is listed, and how many pages it read to know.
func (l *manifest) lists(number uint32) (listed bool, pages int, err error) {
	for {
		for len(l.numbers) > 0 && l.numbers[0] < number {
			l.numbers = l.numbers[1:]
		}
		if len(l.numbers) > 0 || l.ended {
			return len(l.numbers) > 0 && l.numbers[0] == number, pages, nil
		}
		var row metapb.ManifestRow
		raw := appendUploadRow(nil, kindManifest, l.bucket, l.key, l.upload, l.page)
		ok, err := getRow(l.r, raw, &row)
		if err != nil {
			return false, pages, err
		}
		l.ended = !ok
		l.page++
		pages++
		for _, p := range row.Parts {
			l.numbers = append(l.numbers, p.GetNumber())
		}
	}
}
