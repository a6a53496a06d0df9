package s3api

import (
	"net/http"
	"strconv"
	"strings"

	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
)

// attributeSet is what a GetObjectAttributes asks for.
type attributeSet struct{ etag, checksum, parts, class, size bool }

// attributeSet reads x-amz-object-attributes.
func (q *request) attributeSet() (s attributeSet, err error) {
	const header = "x-amz-object-attributes"
	bad := func(message, value string) error {
		return s3err.New(s3err.InvalidArgument, message, s3err.Field{Name: "ArgumentName", Value: header}, s3err.Field{Name: "ArgumentValue", Value: clip(value)})
	}
	v := strings.Join(q.r.Header["X-Amz-Object-Attributes"], ",")
	if strings.TrimSpace(v) == "" {
		return s, bad("The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty", v)
	}
	for name := range strings.SplitSeq(v, ",") {
		switch strings.TrimSpace(name) {
		case "ETag":
			s.etag = true
		case "Checksum":
			s.checksum = true
		case "ObjectParts":
			s.parts = true
		case "StorageClass":
			s.class = true
		case "ObjectSize":
			s.size = true
		default:
			return s, bad("Invalid attribute name specified.", name)
		}
	}
	return s, nil
}

// intHeader is a number from a header, clamped to high; dflt if it is absent.
func (q *request) intHeader(name string, dflt, high int) (int, error) {
	v := q.r.Header.Get(name)
	if v == "" {
		return dflt, nil
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil || n < 0 {
		return 0, s3err.New(s3err.InvalidArgument, "Provided "+name+" not an integer or within integer range",
			s3err.Field{Name: "ArgumentName", Value: name}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
	return min(int(n), high), nil
}

// partsPage is the page of an object's parts that was asked for and what it holds.
type partsPage struct {
	after, max int
	parts      []objects.Part
	more       bool
}

func getObjectAttributes(q *request) (*response, error) {
	set, err := q.attributeSet()
	if err != nil {
		return nil, err
	}
	version, err := q.version()
	if err != nil {
		return nil, err
	}
	var page partsPage
	if page.max, err = q.intHeader("x-amz-max-parts", listMax, listMax); err != nil {
		return nil, err
	}
	if page.after, err = q.intHeader("x-amz-part-number-marker", 0, s3xml.PartsMax); err != nil {
		return nil, err
	}
	in := &objects.GetInput{Bucket: q.bucket, Key: q.key, VersionID: version, Conditions: q.readConditions()}
	var o *objects.Object
	if set.parts && page.max > 0 {
		o, page.parts, page.more, err = q.h.backend.ObjectParts(q.r.Context(), q.acct, in, page.after, page.max)
	} else {
		o, err = q.h.backend.HeadObject(q.r.Context(), q.acct, in)
	}
	if err != nil {
		return nil, err
	}
	q.setVersion(o.VersionID)
	q.set("Last-Modified", httpTime(o.Modified))
	if o.NotModified {
		q.set("ETag", `"`+o.ETag+`"`)
		return q.withStatus(http.StatusNotModified), nil
	}
	q.document("GetObjectAttributesResponse")
	w := &q.out
	if set.etag {
		w.Text("ETag", o.ETag) // here without its quotes
	}
	if set.checksum && len(o.Checksums) > 0 {
		w.Open("Checksum")
		q.checksumElements(o.Checksums, o.Parts, true)
		w.Close("Checksum")
	}
	if set.parts && o.Parts > 0 {
		q.objectParts(o, page)
	}
	if set.class {
		w.Raw("StorageClass", classOf(o.Attributes.GetStorageClass()))
	}
	if set.size {
		w.Int("ObjectSize", o.Size)
	}
	w.Close("GetObjectAttributesResponse")
	return q.ok(), nil
}

func (q *request) objectParts(o *objects.Object, page partsPage) {
	next := page.after
	if n := len(page.parts); n > 0 {
		next = page.parts[n-1].Number
	}
	w := &q.out
	w.Open("ObjectParts")
	w.Int("PartsCount", int64(o.Parts))
	w.Int("PartNumberMarker", int64(page.after))
	w.Int("NextPartNumberMarker", int64(next))
	w.Int("MaxParts", int64(page.max))
	w.Bool("IsTruncated", page.more)
	for _, p := range page.parts {
		w.Open("Part")
		w.Int("PartNumber", int64(p.Number))
		w.Int("Size", p.Size)
		q.checksumElements(p.Checksums, 0, false)
		w.Close("Part")
	}
	w.Close("ObjectParts")
}
