package rangestate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// ListRow is a version in a listing. Its row has what listings show: sequence,
// nonce, null and marker, times, size, ETag, owner; of the attributes only the
// storage class, of the checksums not the value, of the data only the number of
// parts. Attributes and Data are nil if they have none of it.
type ListRow struct {
	Key storage.Key
	Row *metapb.ObjectRow
}

// Page is a page of a listing, in order of the bytes of keys and common prefixes.
type Page struct {
	Rows           []ListRow
	CommonPrefixes []string
	Truncated      bool           // there are more in this range
	Next           string         // the last key or common prefix of the page: after for the next one; "" if the page is empty
	Bounds         cluster.Bounds // of the range: unless Truncated, the listing goes on in the range that begins at Bounds.End
}

// VersionPage is a page of a listing of versions: keys in order, the newest
// version of each first. A row with noncurrent_ms zero is the latest of its key.
type VersionPage struct {
	Rows           []ListRow
	CommonPrefixes []string
	Truncated      bool
	NextKey        string             // key marker of the next page
	NextVersion    *storage.VersionID // version marker of the next page; nil behind a common prefix
	Bounds         cluster.Bounds
}

// UploadItem is an upload in progress in a listing.
type UploadItem struct {
	Key storage.Key
	Row *metapb.UploadRow
}

// UploadPage is a page of a listing of uploads: by key, then by sequence, which is the order of their initiation.
type UploadPage struct {
	Uploads        []UploadItem
	CommonPrefixes []string
	Truncated      bool
	NextKey        string
	NextSeq        storage.Seq // with NextKey: the page's last upload; 0 behind a common prefix
	Bounds         cluster.Bounds
}

// fold says how a listing cuts keys: those with prefix, and of these the ones with
// a delimiter behind it folded into common prefixes.
type fold struct{ prefix, delimiter string }

// common is the common prefix that the key is folded into, or nil. The key has the prefix.
func (f *fold) common(key []byte) []byte {
	if f.delimiter == "" {
		return nil
	}
	i := -1
	if rest := key[len(f.prefix):]; len(f.delimiter) == 1 {
		i = bytes.IndexByte(rest, f.delimiter[0])
	} else {
		i = bytes.Index(rest, []byte(f.delimiter))
	}
	if i < 0 {
		return nil
	}
	return key[:len(f.prefix)+i+len(f.delimiter)]
}

// folded reports whether after itself is, or lies in, a common prefix, and where the first key behind that begins.
func (f *fold) folded(after string) (behind string, ok bool) {
	if !strings.HasPrefix(after, f.prefix) {
		return "", false
	}
	cp := f.common([]byte(after))
	if cp == nil {
		return "", false
	}
	return string(prefixEnd(cp)), true
}

// start is the least key that may be listed behind after; ok is false if there is none.
func (f *fold) start(after string) (start string, ok bool) {
	if after < f.prefix || after == "" {
		return f.prefix, true
	}
	if behind, ok := f.folded(after); ok {
		return behind, behind != ""
	}
	return after + "\x00", true
}

// ListStart is the least key that a listing behind after can hold; ok is false if there is none.
func ListStart(prefix, delimiter, after string) (start string, ok bool) {
	f := fold{prefix, delimiter}
	return f.start(after)
}

// listing begins a listing of a bucket: checks and the raw span of a kind in which keys from start on lie.
// The span is empty (End nil) if nothing can be there.
func (v *View) listing(kind byte, bucket storage.BucketID, f *fold, start string) (cluster.KeySpan, error) {
	if _, err := v.Bucket(bucket); err != nil {
		return cluster.KeySpan{}, err
	}
	in := v.config.bounds.within(uint64(bucket))
	span := in.span(kind)
	if lower := seekKey(nil, kind, uint64(bucket), start); bytes.Compare(lower, span.Start) > 0 {
		span.Start = lower
	}
	if end := prefixEnd([]byte(f.prefix)); end != nil {
		if upper := seekKey(nil, kind, uint64(bucket), string(end)); bytes.Compare(upper, span.End) < 0 {
			span.End = upper
		}
	}
	if bytes.Compare(span.Start, span.End) >= 0 {
		return cluster.KeySpan{}, nil
	}
	return span, nil
}

// seekKey is the least raw key of a kind for keys from key on.
func seekKey(dst []byte, kind byte, bucket uint64, key string) []byte {
	if rawKind(kind) {
		return appendRaw(dst, kind, bucket, key)
	}
	if key == "" {
		return binary.BigEndian.AppendUint64(append(dst, kind), bucket)
	}
	return appendRow(dst, kind, bucket, key)
}

// walker is an iterator over the rows of one kind in a listing, with its key decoded.
type walker struct {
	it      *pebble.Iterator
	kind    byte
	bucket  uint64
	key     []byte // of the row it stands on; nil at the end
	suffix  []byte
	scratch []byte
	seek    []byte
	err     error
}

func walk(r pebble.Reader, kind byte, bucket storage.BucketID, span cluster.KeySpan) (*walker, error) {
	w := &walker{kind: kind, bucket: uint64(bucket)}
	if span.End == nil {
		return w, nil
	}
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: span.Start, UpperBound: span.End})
	if err != nil {
		return nil, errs.Wrap(errs.DriveFailed, "rangestate.list", "", err)
	}
	w.it = it
	w.set(it.First())
	return w, nil
}

func (w *walker) set(ok bool) {
	w.key, w.suffix = nil, nil
	if !ok {
		if err := w.it.Error(); err != nil {
			w.err = errs.Wrap(errs.DriveFailed, "rangestate.list", "", err)
		}
		return
	}
	raw := w.it.Key()
	if rawKind(w.kind) {
		w.key = raw[headLen:]
		return
	}
	w.scratch = w.scratch[:0]
	if _, w.key, w.suffix, ok = cutRow(raw, w.scratch); !ok {
		w.key, w.err = nil, corrupt(raw, errMalformed)
	}
}

func (w *walker) next() { w.set(w.it.Next()) }

// skip goes behind all keys with the prefix, which the row it stands on has.
func (w *walker) skip(behind string) {
	if behind == "" {
		w.key = nil
		return
	}
	w.seek = seekKey(w.seek[:0], w.kind, w.bucket, behind)
	w.set(w.it.SeekGE(w.seek))
}

// skipTo goes to the first key from key on, unless it stands there or behind.
func (w *walker) skipTo(key string) {
	if w.key != nil && (key == "" || string(w.key) < key) {
		w.skip(key)
	}
}

func (w *walker) value() ([]byte, error) {
	b, err := w.it.ValueAndErr()
	return b, errs.Wrap(errs.DriveFailed, "rangestate.list", "", err)
}

// close ends the walk and answers what stopped it early.
func (w *walker) close() error {
	if w.it != nil {
		if err := w.it.Close(); err != nil && w.err == nil {
			w.err = errs.Wrap(errs.DriveFailed, "rangestate.list", "", err)
		}
	}
	return w.err
}

// ListCurrent is a page of at most limit current versions and common prefixes
// (together) of a bucket in this range, with keys behind after: in order of their
// bytes, those with the prefix, folded at the first delimiter behind it. A common
// prefix <= after is not listed, nor what is folded into it. The page costs what it
// returns: common prefixes are passed with one seek each.
//
// A place before the range's start is taken to be the start: the caller has listed
// what is before, and has seen to it that the page's bounds hold the place where it is to go on. limit 0 gives an empty page that is not truncated.
func (v *View) ListCurrent(bucket storage.BucketID, prefix, delimiter, after string, limit int) (Page, error) {
	page := Page{Bounds: v.Bounds()}
	f := fold{prefix, delimiter}
	start, ok := f.start(after)
	if !ok {
		_, err := v.Bucket(bucket)
		return page, err
	}
	span, err := v.listing(kindCurrent, bucket, &f, start)
	if err != nil || limit <= 0 {
		return page, err
	}
	w, err := walk(v.r, kindCurrent, bucket, span)
	if err != nil {
		return page, err
	}
	var slab rowSlab
	for n := 0; w.key != nil && w.err == nil; n++ {
		if n == limit {
			page.Truncated = true
			break
		}
		if cp := f.common(w.key); cp != nil {
			page.Next = string(cp)
			page.CommonPrefixes = append(page.CommonPrefixes, page.Next)
			w.skip(string(prefixEnd(bytes.Clone(cp))))
			continue
		}
		if page.Rows == nil {
			page.Rows = make([]ListRow, 0, min(limit, 128))
		}
		var row ListRow
		row, w.err = slab.row(w)
		page.Rows = append(page.Rows, row)
		page.Next = string(row.Key)
		w.next()
	}
	if err := w.close(); err != nil {
		return Page{}, err
	}
	return page, nil
}

// row decodes the row that the walker stands on.
func (s *rowSlab) row(w *walker) (ListRow, error) {
	value, err := w.value()
	if err != nil {
		return ListRow{}, err
	}
	key, row, ok := s.decode(w.key, value)
	if !ok {
		return ListRow{}, corrupt(w.it.Key(), errMalformed)
	}
	return ListRow{storage.Key(key), row}, nil
}

// ListVersions is a page of at most limit versions, delete markers included, and
// common prefixes of a bucket in this range, behind the version of keyAfter that
// versionAfter names, or behind all versions of keyAfter if versionAfter is nil. If
// the version named is not there any more its sequence still says where to go on;
// for the null version, which does not, all versions of keyAfter are listed again.
// What is said of the range's start and end at ListCurrent holds here.
func (v *View) ListVersions(bucket storage.BucketID, prefix, delimiter, keyAfter string, versionAfter *storage.VersionID, limit int) (page VersionPage, err error) {
	page.Bounds = v.Bounds()
	f := fold{prefix, delimiter}
	start, ok := f.start(keyAfter)
	if !ok {
		_, err := v.Bucket(bucket)
		return page, err
	}
	var below uint64 // 0, or: of keyAfter only versions with sequences below
	if _, folded := f.folded(keyAfter); versionAfter != nil && keyAfter >= prefix && keyAfter != "" && !folded {
		start = keyAfter
		if below, err = v.seqOf(bucket, storage.Key(keyAfter), *versionAfter); err != nil {
			return page, err
		}
	}
	current, err := v.listing(kindCurrent, bucket, &f, start)
	if err != nil || limit <= 0 {
		return page, err
	}
	versions, err := v.listing(kindVersion, bucket, &f, start)
	if err != nil {
		return page, err
	}
	m := versionWalk{f: f, keyAfter: keyAfter, below: below}
	r, done := v.frozen() // a version that moves from one to the other must not be missed, nor listed twice
	defer done()
	if m.cur, err = walk(r, kindCurrent, bucket, current); err != nil {
		return page, err
	}
	if m.old, err = walk(r, kindVersion, bucket, versions); err != nil {
		_ = m.cur.close()
		return page, err
	}
	m.skipListed()
	m.fill(&page, limit)
	if err := errors.Join(m.cur.close(), m.old.close()); err != nil {
		return VersionPage{}, err
	}
	return page, nil
}

// seqOf is the sequence of a version, or for a null version that is not there the highest there is.
func (v *View) seqOf(bucket storage.BucketID, key storage.Key, id storage.VersionID) (uint64, error) {
	if !id.IsNull() {
		return uint64(id.Seq), nil
	}
	row, err := v.Object(bucket, key, &id)
	switch errs.KindOf(err) {
	case errs.NoSuchVersion, errs.WrongRange: // WrongRange: the key lies in an earlier range
		return math.MaxUint64, nil
	case errs.IsDeleteMarker:
		return row.Seq, nil
	}
	if err != nil {
		return 0, err
	}
	return row.Seq, nil
}

// versionWalk merges current and other versions.
type versionWalk struct {
	f        fold
	cur, old *walker
	keyAfter string
	below    uint64
	slab     rowSlab
}

// skipListed passes the versions of keyAfter that an earlier page had.
func (m *versionWalk) skipListed() {
	if m.below == 0 {
		return
	}
	if m.cur.key != nil && string(m.cur.key) == m.keyAfter {
		var row ListRow
		if row, m.cur.err = m.slab.row(m.cur); m.cur.err == nil && row.Row.Seq >= m.below {
			m.cur.next()
		}
	}
	if m.old.key != nil && string(m.old.key) == m.keyAfter {
		m.old.seek = appendSeqRow(m.old.seek[:0], kindVersion, m.old.bucket, m.keyAfter, m.below-1)
		m.old.set(m.old.it.SeekGE(m.old.seek))
	}
}

func (m *versionWalk) fill(page *VersionPage, limit int) {
	for n := 0; m.cur.err == nil && m.old.err == nil; n++ {
		w := m.cur
		if w.key == nil || m.old.key != nil && string(m.old.key) < string(w.key) {
			w = m.old
		}
		if w.key == nil {
			return
		}
		if n == limit {
			page.Truncated = true
			return
		}
		if cp := m.f.common(w.key); cp != nil {
			page.NextKey, page.NextVersion = string(cp), nil
			page.CommonPrefixes = append(page.CommonPrefixes, page.NextKey)
			behind := string(prefixEnd(bytes.Clone(cp)))
			m.cur.skipTo(behind)
			m.old.skipTo(behind)
			continue
		}
		var row ListRow
		row, w.err = m.slab.row(w)
		if w.err != nil {
			return
		}
		page.Rows = append(page.Rows, row)
		id := storage.VersionID{}
		if !row.Row.NullVersion {
			id = storage.VersionID{Seq: storage.Seq(row.Row.Seq), Nonce: row.Row.Nonce}
		}
		page.NextKey, page.NextVersion = string(row.Key), &id
		w.next()
	}
}

// ListUploads is a page of at most limit uploads in progress and common prefixes of
// a bucket in this range: those of keys behind keyAfter and, if seqAfter is not 0,
// those of keyAfter with higher sequences. What is said of the range's start and end at ListCurrent holds here.
func (v *View) ListUploads(bucket storage.BucketID, prefix, delimiter, keyAfter string, seqAfter storage.Seq, limit int) (UploadPage, error) {
	page := UploadPage{Bounds: v.Bounds()}
	f := fold{prefix, delimiter}
	start, ok := f.start(keyAfter)
	if !ok {
		_, err := v.Bucket(bucket)
		return page, err
	}
	_, folded := f.folded(keyAfter)
	within := seqAfter != 0 && keyAfter >= prefix && keyAfter != "" && !folded
	if within {
		start = keyAfter
	}
	span, err := v.listing(kindUpload, bucket, &f, start)
	if err != nil || limit <= 0 {
		return page, err
	}
	w, err := walk(v.r, kindUpload, bucket, span)
	if err != nil {
		return page, err
	}
	if within && w.key != nil && string(w.key) == keyAfter && seqAfter < math.MaxUint64 {
		w.seek = appendSeqRow(w.seek[:0], kindUpload, w.bucket, keyAfter, uint64(seqAfter)+1)
		w.set(w.it.SeekGE(w.seek))
	}
	for n := 0; w.key != nil && w.err == nil; n++ {
		if n == limit {
			page.Truncated = true
			break
		}
		if cp := f.common(w.key); cp != nil {
			page.NextKey, page.NextSeq = string(cp), 0
			page.CommonPrefixes = append(page.CommonPrefixes, page.NextKey)
			w.skip(string(prefixEnd(bytes.Clone(cp))))
			continue
		}
		row := &metapb.UploadRow{}
		if w.err = decode(w.it.Key(), w.value, row); w.err != nil {
			break
		}
		page.Uploads = append(page.Uploads, UploadItem{storage.Key(w.key), row})
		page.NextKey, page.NextSeq = string(w.key), storage.Seq(row.Seq)
		w.next()
	}
	if err := w.close(); err != nil {
		return UploadPage{}, err
	}
	return page, nil
}
