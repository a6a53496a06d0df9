package s3api

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/storage/errs"
)

// defaultContentType is what S3 gives objects without one.
const defaultContentType = "binary/octet-stream"

func putObject(q *request) (*response, error) {
	if err := q.noVersion(); err != nil {
		return nil, err
	}
	if _, ok := q.param("partNumber"); ok {
		return nil, s3err.New(s3err.InvalidRequest, "partNumber needs an uploadId.")
	}
	attrs, err := q.attributes()
	if err != nil {
		return nil, err
	}
	cond, err := q.writeConditions()
	if err != nil {
		return nil, err
	}
	b, err := q.objectBody()
	if err != nil {
		return nil, err
	}
	if err := b.lockable(attrs); err != nil {
		return nil, err
	}
	out, err := q.h.backend.PutObject(q.r.Context(), q.acct, &objects.PutInput{Bucket: q.bucket, Key: q.key, Body: b, Attributes: attrs, Conditions: cond})
	if err != nil {
		return nil, err
	}
	q.putHeaders(out, true)
	q.setWriteExpiration(out)
	return q.ok(), nil
}

// putHeaders are those of an answer to a write.
func (q *request) putHeaders(out *objects.PutOutput, withType bool) {
	q.set("ETag", `"`+out.ETag+`"`)
	q.setWritten(out.VersionID)
	q.checksums(out.Checksums, 0, withType)
}

// checksums sets a header for each checksum that has a name.
func (q *request) checksums(sums []*metapb.Checksum, parts int, withType bool) {
	for i, c := range sums {
		name := checksumHeader(c.Algorithm)
		if name == "" {
			continue
		}
		q.set(name, checksumText(c, parts))
		if withType && i == 0 {
			q.set("x-amz-checksum-type", checksumType(c))
		}
	}
}

// getInput is what GET and HEAD ask for.
func (q *request) getInput() (*objects.GetInput, error) {
	version, err := q.version()
	if err != nil {
		return nil, err
	}
	in := &objects.GetInput{Bucket: q.bucket, Key: q.key, VersionID: version, Conditions: q.readConditions()}
	// With If-Range the whole object is always a right answer (RFC 9110 13.1.5).
	if v := q.hdr("Range"); v != "" && q.hdr("If-Range") == "" {
		in.Range = parseRange(v)
	}
	if v, ok := q.param("partNumber"); ok {
		if in.PartNumber, err = partNumber(v); err != nil {
			return nil, err
		}
		if in.Range != nil {
			return nil, s3err.New(s3err.InvalidRequest, "Cannot specify both Range header and partNumber query parameter.")
		}
	}
	return in, nil
}

func partNumber(v string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || n > 10000 {
		return 0, s3err.New(s3err.InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive",
			s3err.Field{Name: "ArgumentName", Value: "partNumber"}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
	return n, nil
}

// noPart is what a read answers that failed: a part number that the object has not is another error than such a range.
func noPart(in *objects.GetInput, err error) error {
	if in.PartNumber > 0 && errs.Is(err, errs.InvalidRange) {
		return s3err.New(s3err.InvalidPart, "The requested part number is not one of the object's.", s3err.Field{Name: "PartNumber", Value: strconv.Itoa(in.PartNumber)})
	}
	return err
}

func headObject(q *request) (*response, error) {
	in, err := q.getInput()
	if err != nil {
		return nil, err
	}
	o, err := q.h.backend.HeadObject(q.r.Context(), q.acct, in)
	if err != nil {
		return nil, noPart(in, err)
	}
	status, err := q.objectHeaders(o, in)
	if err != nil {
		return nil, err
	}
	if status != http.StatusNotModified {
		q.set("Content-Length", itoa(o.Length))
	}
	return q.withStatus(status), nil
}

func getObject(q *request) (*response, error) {
	in, err := q.getInput()
	if err != nil {
		return nil, err
	}
	o, err := q.h.backend.GetObject(q.r.Context(), q.acct, in)
	if err != nil {
		return nil, noPart(in, err)
	}
	status, err := q.objectHeaders(o, in)
	if err != nil {
		o.Close()
		return nil, err
	}
	q.resp.stream = &stream{q: q, o: o, status: status}
	return &q.resp, nil
}

// objectHeaders sets the headers of an object and answers the status.
func (q *request) objectHeaders(o *objects.Object, in *objects.GetInput) (int, error) {
	overrides, err := q.overrides()
	if err != nil {
		return 0, err
	}
	q.set("ETag", `"`+o.ETag+`"`)
	q.set("Last-Modified", httpTime(o.Modified))
	q.setVersion(o.VersionID)
	for _, kv := range o.Attributes.GetHeaders() {
		if o.NotModified && kv.Name != "Cache-Control" && kv.Name != "Expires" {
			continue
		}
		if !overrides.has(kv.Name) {
			q.set(kv.Name, sent(kv.Value, kv.Raw))
		}
	}
	for _, p := range overrides {
		if p.name != "Content-Type" || !o.NotModified {
			q.set(p.name, p.value)
		}
	}
	if o.NotModified {
		return http.StatusNotModified, nil
	}
	q.set("Accept-Ranges", "bytes")
	if !overrides.has("Content-Type") {
		t := sent(o.Attributes.GetContentType(), o.Attributes.GetRawContentType())
		if t == "" {
			t = defaultContentType
		}
		q.set("Content-Type", t)
	}
	for _, kv := range o.Attributes.GetUser() {
		q.set("x-amz-meta-"+kv.Name, sent(kv.Value, kv.Raw))
	}
	if c := o.Attributes.GetStorageClass(); c != "" {
		q.set("x-amz-storage-class", c)
	}
	if n := len(o.Attributes.GetTags()); n > 0 {
		q.set("x-amz-tagging-count", strconv.Itoa(n))
	}
	q.lockHeaders(o.Attributes)
	q.setRestore(o)
	q.setArchiveStatus(o)
	if in.VersionID == "" { // S3 tells it of no version that is asked for by its id
		q.setExpiration(o)
	}
	if in.PartNumber > 0 && o.Parts > 0 {
		q.set("x-amz-mp-parts-count", strconv.Itoa(o.Parts))
	}
	if strings.EqualFold(q.hdr("X-Amz-Checksum-Mode"), "ENABLED") {
		switch {
		case !o.Partial:
			q.checksums(o.Checksums, o.Parts, true)
		case len(o.PartChecksums) > 0 && len(o.Checksums) > 0:
			q.checksums(o.PartChecksums, 0, false)
			q.set("x-amz-checksum-type", checksumType(o.Checksums[0])) // of the object
		}
		// Else there is only that of the whole, which a client would take for that of the bytes it gets.
	}
	if !o.Partial || o.Length == 0 {
		return http.StatusOK, nil
	}
	q.set("Content-Range", contentRange(o))
	return http.StatusPartialContent, nil
}

func contentRange(o *objects.Object) string {
	b := append(make([]byte, 0, 64), "bytes "...)
	b = strconv.AppendInt(b, o.Offset, 10)
	b = append(b, '-')
	b = strconv.AppendInt(b, o.Offset+o.Length-1, 10)
	b = append(b, '/')
	return string(strconv.AppendInt(b, o.Size, 10))
}

func httpTime(t time.Time) string { return t.UTC().Format(http.TimeFormat) }

// overrides are response headers that the client chose.
type overrides []header

func (o overrides) has(name string) bool {
	for i := range o {
		if o[i].name == name {
			return true
		}
	}
	return false
}

// overrides reads the response-* parameters. Only signed requests come this far.
func (q *request) overrides() (out overrides, err error) {
	for _, p := range q.params {
		name := ""
		switch p.name {
		case "response-content-type":
			name = "Content-Type"
		case "response-content-language":
			name = "Content-Language"
		case "response-expires":
			name = "Expires"
		case "response-cache-control":
			name = "Cache-Control"
		case "response-content-disposition":
			name = "Content-Disposition"
		case "response-content-encoding":
			name = "Content-Encoding"
		default:
			continue
		}
		if p.value == "" {
			continue
		}
		if strings.ContainsFunc(p.value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
			return nil, s3err.New(s3err.InvalidArgument, "A header value must not contain control characters.",
				s3err.Field{Name: "ArgumentName", Value: p.name}, s3err.Field{Name: "ArgumentValue", Value: clip(p.value)})
		}
		out = append(out, header{name, p.value})
	}
	return out, nil
}

// stream sends an object's bytes. Status and headers go out with the first one,
// so that an error before it is still an answer; after it the connection breaks.
type stream struct {
	q      *request
	o      *objects.Object
	status int
	begun  bool
}

func (s *stream) send() error {
	defer s.o.Close()
	if s.o.NotModified || s.o.Length == 0 {
		s.begin()
		return nil
	}
	err := s.o.Send(s)
	if err == nil && s.q.bytesOut == s.o.Length {
		return nil
	}
	if err == nil {
		err = errs.Newf(errs.Corrupt, "get", string(s.o.Key), "%d bytes sent of %d", s.q.bytesOut, s.o.Length)
	}
	if !s.begun {
		return err
	}
	if s.q.r.Context().Err() == nil {
		s.q.log(s3err.From(err), http.StatusInternalServerError)
	}
	panic(http.ErrAbortHandler)
}

func (s *stream) begin() {
	if !s.begun {
		s.begun = true
		s.q.writeHeader(s.status, s.o.Length)
	}
}

// Write implements io.Writer for objects.Object.Send.
func (s *stream) Write(p []byte) (int, error) {
	s.begin()
	if int64(len(p)) > s.o.Length-s.q.bytesOut {
		return 0, io.ErrShortWrite
	}
	return s.q.write(p)
}
