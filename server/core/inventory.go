package core

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/cluster/rangestate"
	"cairn/proto/metapb"
	rules "cairn/s3api/lifecycle"
	"cairn/s3api/s3xml"
	"cairn/storage"
	"cairn/storage/errs"
)

// InventoryQuery says what an inventory lists.
type InventoryQuery struct {
	Bucket string
	Prefix string   // of the keys
	All    bool     // all versions and delete markers, else current versions only
	Fields []string // by S3's names, besides Bucket and Key; empty: all there are
	Header bool     // a first line with the names of the columns, which S3 puts into another file
}

// inventoryRow is what a column is made of.
type inventoryRow struct {
	*rangestate.LifecycleRow
	bucket *metapb.SysBucket
	day    time.Duration
}

// inventoryField is a column. value is empty where it says nothing, as of a delete marker.
type inventoryField struct {
	name     string
	versions bool // only in an inventory of all versions, unless asked for
	value    func(r *inventoryRow) string
}

// inventoryFields are the columns in the order that S3 Inventory has them, as of a time (unix ms).
func inventoryFields(nowMS int64) []inventoryField {
	ofObject := func(value func(*metapb.ObjectRow) string) func(*inventoryRow) string {
		return func(r *inventoryRow) string {
			if r.Object.DeleteMarker {
				return ""
			}
			return value(r.Object)
		}
	}
	return []inventoryField{
		{"Bucket", false, func(r *inventoryRow) string { return r.bucket.Name }},
		{"Key", false, func(r *inventoryRow) string { return string(s3xml.AppendURL(nil, string(r.Key))) }},
		{"VersionId", true, func(r *inventoryRow) string {
			if r.Object.NullVersion {
				return "null"
			}
			return storage.VersionID{Seq: storage.Seq(r.Object.Seq), Nonce: r.Object.Nonce}.String()
		}},
		{"IsLatest", true, func(r *inventoryRow) string { return strconv.FormatBool(r.Newest) }},
		{"IsDeleteMarker", true, func(r *inventoryRow) string { return strconv.FormatBool(r.Object.DeleteMarker) }},
		{"Size", false, ofObject(func(o *metapb.ObjectRow) string { return strconv.FormatUint(o.Size, 10) })},
		{"LastModifiedDate", false, func(r *inventoryRow) string { return inventoryTime(r.Object.ModifiedMs) }},
		{"ETag", false, ofObject(func(o *metapb.ObjectRow) string { return o.Etag })},
		{"StorageClass", false, ofObject(func(o *metapb.ObjectRow) string {
			if class := o.GetAttributes().GetStorageClass(); class != "" {
				return class
			}
			return string(storage.Standard)
		})},
		{"IsMultipartUploaded", false, ofObject(func(o *metapb.ObjectRow) string { return strconv.FormatBool(o.GetData().GetParts() > 0) })},
		{"EncryptionStatus", false, ofObject(func(*metapb.ObjectRow) string { return "NOT-SSE" })},
		{"ObjectLockRetainUntilDate", false, ofObject(func(o *metapb.ObjectRow) string {
			if o.GetAttributes().GetLockMode() == "" {
				return ""
			}
			return inventoryTime(o.Attributes.LockUntilMs)
		})},
		{"ObjectLockMode", false, ofObject(func(o *metapb.ObjectRow) string { return o.GetAttributes().GetLockMode() })},
		{"ObjectLockLegalHoldStatus", false, ofObject(func(o *metapb.ObjectRow) string {
			if o.GetAttributes().GetLegalHold() {
				return "On"
			}
			return "Off"
		})},
		{"IntelligentTieringAccessTier", false, ofObject(func(o *metapb.ObjectRow) string {
			if o.GetAttributes().GetStorageClass() != string(storage.IntelligentTiering) {
				return ""
			}
			tier := rangestate.TierOf(o, nowMS)
			if tier == metapb.Tiering_ARCHIVE_INSTANT {
				return "ARCHIVE_INSTANT_ACCESS"
			}
			return tier.String()
		})},
		{"ChecksumAlgorithm", false, ofObject(func(o *metapb.ObjectRow) string {
			var names []string
			for _, c := range o.Checksums {
				names = append(names, strings.TrimPrefix(c.Algorithm.String(), "CHECKSUM_"))
			}
			return strings.Join(names, ",")
		})},
		{"ObjectOwner", false, func(r *inventoryRow) string { return r.Object.Owner }},
		{"LifecycleExpirationDate", false, expirationDate},
	}
}

// inventoryTime writes a time as S3 Inventory does.
func inventoryTime(ms int64) string {
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}

// expirationDate is when the bucket's rules will end a current version.
func expirationDate(r *inventoryRow) string {
	o := r.Object
	if !r.Newest || o.DeleteMarker {
		return ""
	}
	at, _, ok := rules.Expires(r.bucket.Lifecycle, rules.Object{
		Kind: rules.Current, Key: storage.Key(r.Key), Size: o.Size, Tags: o.GetAttributes().GetTags(), ModifiedMS: o.ModifiedMs,
		Class: storage.StorageClass(o.GetAttributes().GetStorageClass()),
	}, r.day)
	if !ok {
		return ""
	}
	return inventoryTime(at.UnixMilli())
}

// pickFields are the columns that are asked for, in S3's order.
func pickFields(q *InventoryQuery, nowMS int64) ([]inventoryField, error) {
	all := inventoryFields(nowMS)
	for _, name := range q.Fields {
		if !slices.ContainsFunc(all, func(f inventoryField) bool { return f.name == name }) {
			var names []string
			for _, f := range all {
				names = append(names, f.name)
			}
			return nil, errs.Newf(errs.InvalidArgument, "inventory", "", "there is no field %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(all, func(f inventoryField) bool {
		switch {
		case f.name == "Bucket" || f.name == "Key" || slices.Contains(q.Fields, f.name):
			return false
		case f.versions:
			return !q.All
		}
		return len(q.Fields) > 0
	}), nil
}

// Inventory lists a bucket as CSV, as S3 Inventory does: every value in quotes, keys percent-encoded, by key and of each key the newest version
// first. ready is called before the first byte is written: errors of before are about the question. It answers the number of rows besides the header. What is written meanwhile may be listed or
// not; a version that is there all the time is listed once. Errors: NoSuchBucket, InvalidArgument.
func (c *Core) Inventory(ctx context.Context, q InventoryQuery, w io.Writer, ready func()) (rows int64, err error) {
	fields, err := pickFields(&q, c.env.Now().UnixMilli())
	if err != nil {
		return 0, err
	}
	b, err := c.bucketNamed(ctx, q.Bucket)
	if err != nil {
		return 0, err
	}
	ready()
	var lines []byte
	if q.Header {
		lines = appendLine(lines, fields, func(f *inventoryField) string { return f.name })
	}
	ask := rangestate.SurveyQuery{Bucket: storage.BucketID(b.Id), Prefix: q.Prefix, Current: !q.All}
	for {
		page, next, err := c.survey(ctx, ask)
		if err != nil {
			return rows, err
		}
		for i := range page {
			r := inventoryRow{&page[i], b, c.LifecycleDay()}
			lines = appendLine(lines, fields, func(f *inventoryField) string { return f.value(&r) })
		}
		if _, err := w.Write(lines); err != nil {
			return rows, err
		}
		lines = lines[:0]
		rows += int64(len(page))
		if next == nil {
			return rows, nil
		}
		ask.After = next
	}
}

// appendLine appends a line with every value in quotes, as S3 writes them; encoding/csv would only quote those that need it.
func appendLine(lines []byte, fields []inventoryField, value func(*inventoryField) string) []byte {
	for i := range fields {
		if i > 0 {
			lines = append(lines, ',')
		}
		lines = append(lines, '"')
		lines = append(lines, strings.ReplaceAll(value(&fields[i]), `"`, `""`)...)
		lines = append(lines, '"')
	}
	return append(lines, '\n')
}
