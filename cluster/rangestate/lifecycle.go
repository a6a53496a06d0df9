package rangestate

import (
	"encoding/binary"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"cairn/cluster"
	"cairn/proto/metapb"
	"cairn/storage"
)

// NewerNoncurrentMax is up to where LifecycleRow.NewerNoncurrent counts: no rule asks for more.
const NewerNoncurrentMax = 100

// LifecycleRow is a version, a delete marker or an upload in progress as Lifecycle finds it. Key, Object and what that
// points to are used again for the next row: only its strings may be kept.
type LifecycleRow struct {
	Key []byte
	// Object is a version or delete marker, else nil. It has sequence, nonce, null and marker, write id, times, size, owner; of the
	// attributes class, tags and lock; of the data generation, upload and number of parts; restore and tiering. Attributes, Data, Restore and
	// Tiering are nil where the row has none. The rest (ETag, checksums, headers, chunks) is not read.
	Object *metapb.ObjectRow
	Upload *metapb.UploadRow // an upload in progress, else nil; it may be kept

	Inline bool // the bytes of Object lie in its row; else in its chunks or, if it has Data.UploadSeq, in those of its parts
	Newest bool // Object is the newest of its key: the current version, or a delete marker that makes the key seem gone
	Only   bool // Object is the newest and there is no other of its key; uploads don't count
	// NewerNoncurrent is how many noncurrent versions of the key, noncurrent delete markers included, are newer than Object;
	// NewerNoncurrentMax stands for more, too.
	NewerNoncurrent int
}

// LifecyclePos is a place in a walk of a bucket: behind the version with this sequence, or with Upload behind the
// upload with this sequence and all versions of its key. With Seq 0 it is before all of Key and Upload says nothing.
type LifecyclePos struct {
	Key    storage.Key
	Seq    storage.Seq
	Upload bool
}

// LifecycleReader is what a Reader can do besides where the range's leader is in this process: who works for the
// ranges that are led here asserts it.
type LifecycleReader interface {
	Lifecycle(bucket storage.BucketID, after *LifecyclePos, limit int, fn func(*LifecycleRow) (more bool, err error)) (next *LifecyclePos, err error)
}

var _ LifecycleReader = (*View)(nil)

// Lifecycle calls fn for up to limit (at least one) versions, delete markers and uploads of a bucket in this range behind
// after (nil: from the first on), as of one moment: by key, of each key the versions newest first, then the uploads by initiation. It
// ends early if fn answers false, and answers where to go on; nil: there are no more. The facts about a key hold
// as of this call wherever in the key it begins; a key that changed between two calls goes on with versions older than the last
// one, so that none that stayed is missed or comes twice. A place before the range's start is taken to be the start. An
// error of fn ends the walk and is returned.
func (v *View) Lifecycle(bucket storage.BucketID, after *LifecyclePos, limit int, fn func(*LifecycleRow) (more bool, err error)) (next *LifecyclePos, err error) {
	r, done := v.frozen() // a version that moves from one to the other must not be missed, nor be seen twice
	defer done()
	return (&lifecycleWalk{}).run(v, r, bucket, after, limit, fn)
}

// run is the walk over r, a state that stays as it is.
func (l *lifecycleWalk) run(v *View, r pebble.Reader, bucket storage.BucketID, after *LifecyclePos, limit int, fn func(*LifecycleRow) (more bool, err error)) (next *LifecyclePos, err error) {
	if after == nil {
		after = &LifecyclePos{}
	}
	err = l.open(v, r, bucket, after)
	for n := 0; err == nil; n++ {
		w := l.least()
		if w == nil {
			break
		}
		if n > 0 && n >= limit {
			next = l.pos()
			break
		}
		if err = l.read(w); err != nil {
			break
		}
		var more bool
		if more, err = fn(&l.row); !more {
			next = l.pos()
			break
		}
	}
	if cerr := l.close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	return next, nil
}

// lifecycleWalk merges the current versions, the others and the uploads of a bucket.
type lifecycleWalk struct {
	full                bool   // for a survey: fillFull
	prefix              string // of the keys
	noOthers, noUploads bool   // only current versions, and uploads; no uploads

	cur, old, up *walker
	row          LifecycleRow
	newer        int // noncurrent versions of row.Key seen so far, up to NewerNoncurrentMax

	// What row points to.
	key        []byte
	write      []byte
	object     metapb.ObjectRow
	attributes metapb.Attributes
	data       metapb.Data
	restore    metapb.Restore
	tiering    metapb.Tiering
	tags       []*metapb.KV // as many as the row with the most has
	owner      string       // of the last row: mostly the next one's too
	class      string
	lockMode   string
}

// open begins the walk behind after.
func (l *lifecycleWalk) open(v *View, r pebble.Reader, bucket storage.BucketID, after *LifecyclePos) (err error) {
	versions := string(after.Key)
	if after.Upload && after.Seq != 0 {
		versions += "\x00"
	}
	for _, k := range []struct {
		w     **walker
		kind  byte
		start string
		not   bool
	}{{&l.cur, kindCurrent, versions, false}, {&l.old, kindVersion, versions, l.noOthers}, {&l.up, kindUpload, string(after.Key), l.noUploads}} {
		span, err := v.listing(k.kind, bucket, &fold{prefix: l.prefix}, max(k.start, l.prefix))
		if err != nil {
			return err
		}
		if k.not {
			span = cluster.KeySpan{}
		}
		if *k.w, err = walk(r, k.kind, bucket, span); err != nil {
			return err
		}
	}
	switch {
	case after.Seq == 0:
		return nil
	case after.Upload:
		l.up.skipSeqs(string(after.Key), uint64(after.Seq)+1)
		return nil
	}
	return l.skipSeen(after)
}

// skipSeqs goes to the first row with at least this suffix, if it stands on the key.
func (w *walker) skipSeqs(key string, suffix uint64) {
	if w.key != nil && string(w.key) == key {
		w.seek = binary.BigEndian.AppendUint64(appendRow(w.seek[:0], w.kind, w.bucket, key), suffix)
		w.set(w.it.SeekGE(w.seek))
	}
}

// skipSeen passes the versions of a key from after on up to the newest, and counts the noncurrent ones of them anew.
func (l *lifecycleWalk) skipSeen(after *LifecyclePos) error {
	l.key = append(l.key[:0], after.Key...)
	if l.cur.key != nil && string(l.cur.key) == string(after.Key) {
		if err := l.decode(l.cur); err != nil {
			return err
		}
		if l.object.Seq >= uint64(after.Seq) {
			l.cur.next()
		}
	}
	for l.old.key != nil && string(l.old.key) == string(after.Key) && ^binary.BigEndian.Uint64(l.old.suffix) >= uint64(after.Seq) {
		if l.newer == NewerNoncurrentMax {
			l.old.skipSeqs(string(after.Key), ^(uint64(after.Seq) - 1))
			break
		}
		if err := l.decode(l.old); err != nil {
			return err
		}
		l.count()
		l.old.next()
	}
	return nil
}

// count counts the version that was decoded last among those that are newer than what comes next of its key.
func (l *lifecycleWalk) count() {
	if l.object.NoncurrentMs != 0 {
		l.newer = min(l.newer+1, NewerNoncurrentMax)
	}
}

// least is the walker that stands on the next row, or nil at the end or after an error (see close).
func (l *lifecycleWalk) least() *walker {
	w := l.cur
	for _, o := range [...]*walker{l.old, l.up} {
		if o.err != nil {
			return nil
		}
		if w.key == nil || o.key != nil && string(o.key) < string(w.key) {
			w = o
		}
	}
	if l.cur.err != nil || w.key == nil {
		return nil
	}
	return w
}

// read fills the row with what the walker stands on, and goes on.
func (l *lifecycleWalk) read(w *walker) error {
	if string(l.key) != string(w.key) {
		l.key = append(l.key[:0], w.key...)
		l.newer = 0
	}
	l.row = LifecycleRow{Key: l.key}
	if w == l.up {
		l.row.Upload = &metapb.UploadRow{}
		if err := decode(w.it.Key(), w.value, l.row.Upload); err != nil {
			return err
		}
		w.next()
		return nil
	}
	if err := l.decode(w); err != nil {
		return err
	}
	l.row.Object = &l.object
	l.row.Newest = l.object.NoncurrentMs == 0
	l.row.NewerNoncurrent = l.newer
	l.count()
	w.next()
	l.row.Only = l.row.Newest && string(l.old.key) != string(l.key)
	return nil
}

func (l *lifecycleWalk) decode(w *walker) error {
	value, err := w.value()
	if err != nil {
		return err
	}
	if !l.fill(value) {
		return corrupt(w.it.Key(), errMalformed)
	}
	return nil
}

// fill decodes what LifecycleRow says of an ObjectRow; false if it is malformed.
func (l *lifecycleWalk) fill(value []byte) bool {
	row := &l.object
	row.Seq, row.Nonce, row.NullVersion, row.DeleteMarker, row.ModifiedMs, row.Size, row.NoncurrentMs = 0, 0, false, false, 0, 0, 0
	row.Owner, row.WriteId, row.Attributes, row.Data, row.Restore, row.Tiering, row.ClassSinceMs = "", nil, nil, nil, nil, nil, 0
	if l.full {
		row.Etag, row.Checksums = "", nil
	}
	l.row.Inline = false
	w := wire{b: value}
	for w.next() {
		switch w.num {
		case 1:
			row.Format = uint32(w.val)
		case 2:
			row.Seq = w.val
		case 3:
			row.Nonce = w.val
		case 4:
			row.NullVersion = w.val != 0
		case 5:
			row.DeleteMarker = w.val != 0
		case 6:
			l.write = append(l.write[:0], w.buf...)
			row.WriteId = l.write
		case 7:
			row.ModifiedMs = int64(w.val)
		case 8:
			row.Size = w.val
		case 10:
			row.Owner = same(&l.owner, w.buf)
		case 11:
			w.bad = !l.fillAttributes(w.buf) || w.bad
		case 13:
			w.bad = !l.fillData(w.buf) || w.bad
		case 14:
			row.NoncurrentMs = int64(w.val)
		case 15:
			l.restore.Reset()
			row.Restore = &l.restore
			w.bad = row.Restore.UnmarshalVT(w.buf) != nil || w.bad
		case 16:
			l.tiering.Reset()
			row.Tiering = &l.tiering
			w.bad = row.Tiering.UnmarshalVT(w.buf) != nil || w.bad
		case 17:
			row.ClassSinceMs = int64(w.val)
		default:
			if l.full {
				w.bad = !l.fillFull(&w) || w.bad
			}
		}
	}
	return !w.bad
}

func (l *lifecycleWalk) fillAttributes(value []byte) bool {
	a := &l.attributes
	a.StorageClass, a.LockMode, a.LockUntilMs, a.LegalHold, a.Tags = "", "", 0, false, nil
	l.object.Attributes = a
	n := 0
	w := wire{b: value}
	for w.next() {
		switch w.num {
		case 4:
			a.StorageClass = same(&l.class, w.buf)
		case 5:
			if n == len(l.tags) {
				l.tags = append(l.tags, &metapb.KV{})
			}
			w.bad = !fillTag(l.tags[n], w.buf) || w.bad
			n++
		case 6:
			a.LockMode = same(&l.lockMode, w.buf)
		case 7:
			a.LockUntilMs = int64(w.val)
		case 8:
			a.LegalHold = w.val != 0
		}
	}
	a.Tags = l.tags[:n:n]
	return !w.bad
}

// fillTag decodes a tag over another: often it is the same as that of the row before.
func fillTag(kv *metapb.KV, value []byte) bool {
	var name, val []byte
	w := wire{b: value}
	for w.next() {
		switch w.num {
		case 1:
			name = w.buf
		case 2:
			val = w.buf
		}
	}
	same(&kv.Name, name)
	same(&kv.Value, val)
	return !w.bad
}

func (l *lifecycleWalk) fillData(value []byte) bool {
	d := &l.data
	d.Generation, d.UploadSeq, d.Parts = 0, 0, 0
	l.object.Data = d
	w := wire{b: value}
	for w.next() {
		switch w.num {
		case 1:
			d.Generation = w.val
		case 2:
			l.row.Inline = len(w.buf) > 0
		case 4:
			d.UploadSeq = w.val
		case 5:
			d.Parts = uint32(w.val)
		}
	}
	return !w.bad
}

// pos is the place behind the row that was read last.
func (l *lifecycleWalk) pos() *LifecyclePos {
	p := &LifecyclePos{Key: storage.Key(l.row.Key)}
	if l.row.Upload != nil {
		p.Seq, p.Upload = storage.Seq(l.row.Upload.Seq), true
	} else {
		p.Seq = storage.Seq(l.row.Object.Seq)
	}
	return p
}

// close ends the walk and answers what stopped it early.
func (l *lifecycleWalk) close() error {
	var all []error
	for _, w := range [...]*walker{l.cur, l.old, l.up} {
		if w != nil {
			all = append(all, w.close())
		}
	}
	return errors.Join(all...)
}
