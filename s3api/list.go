package s3api

import (
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/storage"
	"cairn/storage/checksum"
)

const listMax = 1000 // S3: entries of one listing page

// listing is what all listings of a bucket have in common.
type listing struct {
	prefix, delimiter string
	max               int
	url               bool // encoding-type=url
	restores          bool // of objects: x-amz-optional-object-attributes wants them told
}

func (q *request) listing(maxName string) (l listing, err error) {
	l.prefix, _ = q.param("prefix")
	l.delimiter, _ = q.param("delimiter")
	switch v, _ := q.param("encoding-type"); v {
	case "":
	case "url":
		l.url = true
	default:
		return l, s3err.New(s3err.InvalidArgument, "Invalid Encoding Method specified in Request",
			s3err.Field{Name: "ArgumentName", Value: "encoding-type"}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
	if l.max, err = q.intParam(maxName, listMax, 0, listMax); err != nil {
		return l, err
	}
	if q.op.name != "ListMultipartUploads" {
		l.restores, err = q.restoreListed()
	}
	return l, err
}

// list asks the backend for a page behind after. A page of nothing is complete, as S3 has it.
func (q *request) list(l listing, after string) (*objects.ListOutput, error) {
	out, err := q.h.backend.ListObjects(q.r.Context(), q.acct, &objects.ListInput{Bucket: q.bucket, Prefix: l.prefix, Delimiter: l.delimiter, After: after, Max: l.max})
	if err != nil {
		return nil, err
	}
	if l.max == 0 {
		out.Truncated = false
	}
	return out, nil
}

// head begins a listing's document with what all have.
func (q *request) listHead(root string, l listing) {
	q.document(root)
	w := &q.out
	w.URL = l.url
	w.Raw("Name", q.bucket)
	if q.op.name == "ListObjects" { // the one listing whose prefix comes back as it was sent: SDKs don't decode it
		w.Text("Prefix", l.prefix)
	} else {
		w.Name("Prefix", l.prefix)
	}
	if l.delimiter != "" {
		w.Name("Delimiter", l.delimiter)
	}
	if l.url {
		w.Raw("EncodingType", "url")
	}
}

func (q *request) commonPrefixes(prefixes []string) {
	w := &q.out
	for _, p := range prefixes {
		w.Open("CommonPrefixes")
		w.Name("Prefix", p)
		w.Close("CommonPrefixes")
	}
}

func listObjectsV1(q *request) (*response, error) {
	if v, ok := q.param("list-type"); ok && v != "" && v != "1" {
		return nil, s3err.New(s3err.InvalidArgument, "", s3err.Field{Name: "ArgumentName", Value: "list-type"}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
	l, err := q.listing("max-keys")
	if err != nil {
		return nil, err
	}
	marker, _ := q.param("marker")
	out, err := q.list(l, marker)
	if err != nil {
		return nil, err
	}
	q.listHead("ListBucketResult", l)
	w := &q.out
	w.Name("Marker", marker)
	w.Int("MaxKeys", int64(l.max))
	w.Bool("IsTruncated", out.Truncated)
	if out.Truncated && l.delimiter != "" { // else the last key is the next marker
		w.Name("NextMarker", out.Next)
	}
	for _, o := range out.Objects {
		q.entry(o, true, l.restores)
	}
	q.commonPrefixes(out.CommonPrefixes)
	w.Close("ListBucketResult")
	return q.ok(), nil
}

func listObjectsV2(q *request) (*response, error) {
	l, err := q.listing("max-keys")
	if err != nil {
		return nil, err
	}
	startAfter, hasStart := q.param("start-after")
	token, hasToken := q.param("continuation-token")
	after := startAfter
	if token != "" {
		if after, err = decodeToken(token); err != nil {
			return nil, err
		}
	}
	fetchOwner := false
	switch v, _ := q.param("fetch-owner"); v {
	case "true":
		fetchOwner = true
	case "", "false":
	default:
		return nil, s3err.New(s3err.InvalidArgument, "", s3err.Field{Name: "ArgumentName", Value: "fetch-owner"}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
	out, err := q.list(l, after)
	if err != nil {
		return nil, err
	}
	q.listHead("ListBucketResult", l)
	w := &q.out
	if hasStart {
		w.Name("StartAfter", startAfter)
	}
	if hasToken {
		w.Text("ContinuationToken", token)
	}
	if out.Truncated {
		w.Raw("NextContinuationToken", encodeToken(out.Next))
	}
	w.Int("KeyCount", int64(len(out.Objects)+len(out.CommonPrefixes)))
	w.Int("MaxKeys", int64(l.max))
	w.Bool("IsTruncated", out.Truncated)
	for _, o := range out.Objects {
		q.entry(o, fetchOwner, l.restores)
	}
	q.commonPrefixes(out.CommonPrefixes)
	w.Close("ListBucketResult")
	return q.ok(), nil
}

// entry writes one object of a listing.
func (q *request) entry(o *objects.Object, owner, restore bool) {
	w := &q.out
	w.Open("Contents")
	w.Name("Key", string(o.Key))
	q.entryFields(o, owner, restore)
	w.Close("Contents")
}

// entryFields writes what follows the key, and the version, of an object of a listing.
func (q *request) entryFields(o *objects.Object, owner, restore bool) {
	w := &q.out
	w.Time("LastModified", o.Modified)
	w.ETag(o.ETag)
	for _, c := range o.Checksums {
		w.Raw("ChecksumAlgorithm", checksum.Name(c.Algorithm))
	}
	if len(o.Checksums) > 0 {
		w.Raw("ChecksumType", checksumType(o.Checksums[0]))
	}
	w.Int("Size", o.Size)
	if owner {
		q.owner("Owner", o.Owner)
	}
	w.Raw("StorageClass", classOf(o.Attributes.GetStorageClass()))
	if restore {
		q.writeRestore(o)
	}
}

func classOf(c string) string {
	if c == "" {
		return string(storage.Standard)
	}
	return c
}
