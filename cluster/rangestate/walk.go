package rangestate

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"cairn/proto/metapb"
	"cairn/storage"
	"cairn/storage/errs"
)

// Item is a row as Walk finds it. Of the pointers one is set, or none for the
// kinds that name neither data nor versions, or if Err is set.
type Item struct {
	Kind   byte // of the row, see the package's comment; 'g' is a garbage row
	Bucket storage.BucketID
	Key    storage.Key
	Err    error // the row cannot be read

	Object   *metapb.ObjectRow   // 'c' and 'v'
	Upload   *metapb.UploadRow   // 'u'
	Seq      storage.Seq         // of the upload of a part or manifest page; of a doomed, repair, garbage, upload or version row its own
	Number   uint32              // of a part, manifest page, or garbage row
	Part     *metapb.PartRow     // 'p'
	Manifest *metapb.ManifestRow // 'm'
	Garbage  *metapb.GarbageRow  // 'g'
	Doomed   *metapb.DoomedRow   // 'd'
	Repair   *metapb.RepairRow   // 'r'
}

// Walk calls fn for every row of the range in order of kind, bucket and key, the
// garbage rows last: the checker's way to see everything. Rows that cannot be
// read are items with Err, not the end. What an item points to is fn's. An error
// of fn ends the walk.
func (v *View) Walk(fn func(*Item) error) error {
	r, done := v.frozen() // a row that moves meanwhile must not be seen twice or never
	defer done()
	for _, kind := range kindsInBounds {
		span := v.config.bounds.span(kind)
		if err := iterate(r, span.Start, span.End, func(raw []byte, value func() ([]byte, error)) (bool, error) {
			it := Item{Kind: kind}
			it.Err = it.decodeInBounds(raw, value)
			return true, fn(&it)
		}); err != nil {
			return err
		}
	}
	start := appendGroup(nil, v.group, subGarbage)
	return iterate(r, start, prefixEnd(bytes.Clone(start)), func(raw []byte, value func() ([]byte, error)) (bool, error) {
		it := Item{Kind: subGarbage}
		it.Err = it.decodeGarbage(raw, value)
		return true, fn(&it)
	})
}

// suffixLen is how many bytes follow the key in a raw key of the kind.
func suffixLen(kind byte) int {
	switch kind {
	case kindBucket, kindCurrent, kindNull:
		return 0
	case kindManifest, kindPart:
		return 12
	case kindOutcome:
		return 16
	}
	return 8
}

func (it *Item) decodeInBounds(raw []byte, value func() ([]byte, error)) error {
	var suffix []byte
	if rawKind(it.Kind) {
		if len(raw) < headLen {
			return corrupt(raw, errMalformed)
		}
		it.Bucket, it.Key = storage.BucketID(binary.BigEndian.Uint64(raw[1:])), storage.Key(raw[headLen:])
	} else {
		bucket, key, rest, ok := cutRow(raw, nil)
		if !ok {
			return corrupt(raw, errMalformed)
		}
		it.Bucket, it.Key, suffix = storage.BucketID(bucket), storage.Key(key), rest
	}
	if len(suffix) != suffixLen(it.Kind) {
		return corrupt(raw, errMalformed)
	}
	if len(suffix) >= 8 && it.Kind != kindOutcome {
		seq := binary.BigEndian.Uint64(suffix)
		if it.Kind == kindVersion {
			seq = ^seq
		}
		it.Seq = storage.Seq(seq)
	}
	if len(suffix) == 12 {
		it.Number = binary.BigEndian.Uint32(suffix[8:])
	}
	return it.decodeRow(raw, value)
}

func (it *Item) decodeRow(raw []byte, value func() ([]byte, error)) (err error) {
	var row decoder
	switch it.Kind {
	case kindCurrent, kindVersion:
		it.Object = &metapb.ObjectRow{}
		row = it.Object
	case kindUpload:
		it.Upload = &metapb.UploadRow{}
		row = it.Upload
	case kindPart:
		it.Part = &metapb.PartRow{}
		row = it.Part
	case kindManifest:
		it.Manifest = &metapb.ManifestRow{}
		row = it.Manifest
	case kindDoomed:
		it.Doomed = &metapb.DoomedRow{}
		row = it.Doomed
	case kindRepair:
		it.Repair = &metapb.RepairRow{}
		row = it.Repair
	case kindBucket:
		row = &metapb.BucketRow{}
	case kindTimer:
		row = &metapb.EventTimerRow{}
	case kindCompleted:
		row = &metapb.CompletedUploadRow{}
	case kindOutcome:
		row = &metapb.OutcomeRow{}
	case kindNull:
		b, err := value()
		if err == nil && len(b) != 8 {
			err = corrupt(raw, errMalformed)
		}
		return err
	default:
		return errs.New(errs.Corrupt, "rangestate.walk", fmt.Sprintf("row %q", raw), "a kind of row that this release does not know")
	}
	if err = decode(raw, value, row); err != nil {
		it.Object, it.Upload, it.Part, it.Manifest, it.Doomed, it.Repair = nil, nil, nil, nil, nil, nil
	}
	return err
}

func (it *Item) decodeGarbage(raw []byte, value func() ([]byte, error)) error {
	if len(raw) != groupHeadLen+12 {
		return corrupt(raw, errMalformed)
	}
	it.Seq, it.Number = storage.Seq(binary.BigEndian.Uint64(raw[groupHeadLen:])), suffixNumber(raw)
	row := &metapb.GarbageRow{}
	if err := decode(raw, value, row); err != nil {
		return err
	}
	it.Bucket, it.Key, it.Garbage = storage.BucketID(row.Bucket), storage.Key(row.Key), row
	return nil
}
