package s3api

import (
	"net/http"
	"strconv"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/storage/checksum"
)

// uploadID is the upload the request names; the store knows whether it exists.
func (q *request) uploadID() (string, error) {
	v, _ := q.param("uploadId")
	if v == "" {
		return "", s3err.New(s3err.NoSuchUpload, "")
	}
	return v, nil
}

// partOfUpload is the upload and part number of a part's upload.
func (q *request) partOfUpload() (id string, number int, err error) {
	if id, err = q.uploadID(); err != nil {
		return "", 0, err
	}
	v, _ := q.param("partNumber")
	number, err = partNumber(v)
	return id, number, err
}

func createUpload(q *request) (*response, error) {
	if err := q.noVersion(); err != nil {
		return nil, err
	}
	if err := q.unconditional(); err != nil {
		return nil, err
	}
	attrs, err := q.attributes()
	if err != nil {
		return nil, err
	}
	if err := q.uploadChecksum(attrs); err != nil {
		return nil, err
	}
	up, err := q.h.backend.CreateUpload(q.r.Context(), q.acct, &objects.CreateUploadInput{Bucket: q.bucket, Key: q.key, Attributes: attrs})
	if err != nil {
		return nil, err
	}
	q.setAbort(&up)
	if a := attrs.ChecksumAlgorithm; a != metapb.ChecksumAlgorithm_CHECKSUM_NONE {
		q.set("x-amz-checksum-algorithm", checksum.Name(a))
		q.set("x-amz-checksum-type", uploadType(attrs))
	}
	q.document("InitiateMultipartUploadResult")
	w := &q.out
	w.Raw("Bucket", q.bucket)
	w.Text("Key", string(q.key))
	w.Text("UploadId", up.ID)
	w.Close("InitiateMultipartUploadResult")
	return q.ok(), nil
}

func uploadType(a *metapb.Attributes) string {
	if a.GetChecksumFullObject() {
		return "FULL_OBJECT"
	}
	return "COMPOSITE"
}

// uploadChecksum reads algorithm and type of the object's future checksum.
func (q *request) uploadChecksum(a *metapb.Attributes) error {
	name, kind := q.hdr("X-Amz-Checksum-Algorithm"), q.hdr("X-Amz-Checksum-Type")
	if name == "" {
		if kind != "" {
			return s3err.New(s3err.InvalidRequest, "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
		}
		return nil
	}
	alg := checksumByName(name)
	if alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE {
		return unsupportedAlgorithm()
	}
	a.ChecksumAlgorithm = alg
	mismatch := s3err.New(s3err.InvalidRequest, "The "+kind+" checksum type cannot be used with the "+strings.ToLower(name)+" checksum algorithm.")
	switch kind {
	case "":
		a.ChecksumFullObject = alg == metapb.ChecksumAlgorithm_CRC64NVME
	case "FULL_OBJECT":
		if !checksum.Linear(alg) {
			return mismatch
		}
		a.ChecksumFullObject = true
	case "COMPOSITE":
		if alg == metapb.ChecksumAlgorithm_CRC64NVME {
			return mismatch
		}
	default:
		return s3err.New(s3err.InvalidRequest, "Value for x-amz-checksum-type header is invalid.")
	}
	return nil
}

func uploadPart(q *request) (*response, error) {
	id, number, err := q.partOfUpload()
	if err == nil {
		err = q.unconditional()
	}
	if err != nil {
		return nil, err
	}
	b, err := q.objectBody()
	if err != nil {
		return nil, err
	}
	out, err := q.h.backend.UploadPart(q.r.Context(), q.acct, &objects.UploadPartInput{Bucket: q.bucket, Key: q.key, UploadID: id, Number: number, Body: b})
	if err != nil {
		return nil, err
	}
	q.putHeaders(out, false)
	return q.ok(), nil
}

func abortUpload(q *request) (*response, error) {
	id, err := q.uploadID()
	if err != nil {
		return nil, err
	}
	if err := q.h.backend.AbortUpload(q.r.Context(), q.acct, q.bucket, q.key, id); err != nil {
		return nil, err
	}
	return q.withStatus(http.StatusNoContent), nil
}

// completeInput reads a CompleteMultipartUpload.
func (q *request) completeInput() (*objects.CompleteInput, error) {
	id, err := q.uploadID()
	if err != nil {
		return nil, err
	}
	in := &objects.CompleteInput{Bucket: q.bucket, Key: q.key, UploadID: id}
	if in.Conditions, err = q.writeConditions(); err != nil {
		return nil, err
	}
	if v := q.hdr("X-Amz-Mp-Object-Size"); v != "" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return nil, s3err.New(s3err.InvalidRequest, "Value for x-amz-mp-object-size header is invalid.")
		}
		in.Size = &n
	}
	in.ChecksumType = q.hdr("X-Amz-Checksum-Type")
	// Here the checksum headers speak of the object, not of this request's body.
	if in.Checksums, err = q.objectChecksums(); err != nil {
		return nil, err
	}
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	parts, err := s3xml.ParseComplete(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	in.Parts, err = completeParts(parts)
	return in, err
}

// objectChecksums takes the checksum of the whole object out of the headers.
func (q *request) objectChecksums() (out []*metapb.Checksum, err error) {
	kind := q.hdr("X-Amz-Checksum-Type")
	if kind != "" && kind != "COMPOSITE" && kind != "FULL_OBJECT" {
		return nil, s3err.New(s3err.InvalidRequest, "Value for x-amz-checksum-type header is invalid.")
	}
	for name, values := range q.r.Header {
		alg := checksumOfHeader(name)
		if alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE {
			continue
		}
		c, ok := parseChecksum(alg, values[0], true)
		if !ok {
			return nil, s3err.New(s3err.BadDigest, "Value for "+checksumHeader(alg)+" header is invalid.")
		}
		if kind == "FULL_OBJECT" && c.Composite {
			return nil, s3err.New(s3err.InvalidRequest, "The value of "+checksumHeader(alg)+" is not of the type that x-amz-checksum-type says.")
		}
		if kind == "COMPOSITE" {
			c.Composite = true
		}
		out = append(out, c)
		delete(q.r.Header, name)
	}
	delete(q.r.Header, "X-Amz-Sdk-Checksum-Algorithm")
	if len(out) > 1 {
		return nil, s3err.New(s3err.InvalidRequest, "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
	}
	return out, nil
}

// completeParts are the parts that the client names, in order. Of a part that was sent again while it was on its way, and
// is named twice in a row for it, the last mention counts: the public suite takes that from S3.
func completeParts(parts []s3xml.CompletePart) ([]objects.CompletePart, error) {
	out := make([]objects.CompletePart, 0, len(parts))
	for _, p := range parts {
		if p.Number < 1 || p.Number > s3xml.PartsMax {
			return nil, s3err.New(s3err.InvalidArgument, "Part number must be an integer between 1 and 10000, inclusive",
				s3err.Field{Name: "ArgumentName", Value: "partNumber"}, s3err.Field{Name: "ArgumentValue", Value: strconv.Itoa(p.Number)})
		}
		part := objects.CompletePart{Number: p.Number, ETag: unquote(p.ETag)}
		for _, s := range p.Checksums {
			alg := checksumByName(s.Algorithm)
			if alg == metapb.ChecksumAlgorithm_CHECKSUM_NONE {
				return nil, s3err.New(s3err.NotImplemented, "The element Checksum"+clip(s.Algorithm)+" implies functionality that is not implemented.")
			}
			c, ok := parseChecksum(alg, s.Value, false)
			if !ok {
				return nil, s3err.New(s3err.InvalidPart, "The checksum of part "+strconv.Itoa(p.Number)+" is not valid.")
			}
			part.Checksums = append(part.Checksums, c)
		}
		switch n := len(out); {
		case n == 0 || out[n-1].Number < part.Number:
			out = append(out, part)
		case out[n-1].Number == part.Number:
			out[n-1] = part
		default:
			return nil, s3err.New(s3err.InvalidPartOrder, "")
		}
	}
	return out, nil
}

func completeUpload(q *request) (*response, error) {
	in, err := q.completeInput()
	if err != nil {
		return nil, err
	}
	out, err := q.h.backend.CompleteUpload(q.r.Context(), q.acct, in)
	if err != nil {
		return nil, err
	}
	q.setWritten(out.VersionID)
	q.setWriteExpiration(out)
	q.document("CompleteMultipartUploadResult")
	w := &q.out
	w.Text("Location", q.location())
	w.Raw("Bucket", q.bucket)
	w.Text("Key", string(q.key))
	w.ETag(out.ETag)
	q.checksumElements(out.Checksums, len(in.Parts), true)
	w.Close("CompleteMultipartUploadResult")
	return q.ok(), nil
}

// location is the object's URL as this client reaches it.
func (q *request) location() string {
	scheme := "http://"
	if q.r.TLS != nil {
		scheme = "https://"
	}
	path := string(q.key)
	if q.h.bucketOfHost(q.r.Host) == "" {
		path = q.bucket + "/" + path
	}
	return scheme + q.r.Host + "/" + string(s3xml.AppendURL(nil, path))
}

func listParts(q *request) (*response, error) {
	id, err := q.uploadID()
	if err != nil {
		return nil, err
	}
	maxParts, err := q.intParam("max-parts", listMax, 0, listMax)
	if err != nil {
		return nil, err
	}
	after, err := q.intParam("part-number-marker", 0, 0, s3xml.PartsMax)
	if err != nil {
		return nil, err
	}
	out, err := q.h.backend.ListParts(q.r.Context(), q.acct, &objects.ListPartsInput{Bucket: q.bucket, Key: q.key, UploadID: id, After: after, Max: maxParts})
	if err != nil {
		return nil, err
	}
	q.setAbort(&out.Upload)
	q.document("ListPartsResult")
	w := &q.out
	w.Raw("Bucket", q.bucket)
	w.Text("Key", string(q.key))
	w.Text("UploadId", id)
	q.owner("Initiator", out.Upload.Owner)
	q.owner("Owner", out.Upload.Owner)
	w.Raw("StorageClass", classOf(out.Upload.Attributes.GetStorageClass()))
	w.Int("PartNumberMarker", int64(after))
	w.Int("NextPartNumberMarker", int64(out.Next))
	w.Int("MaxParts", int64(maxParts))
	w.Bool("IsTruncated", out.Truncated && maxParts > 0)
	q.uploadChecksumElements(out.Upload.Attributes)
	for _, p := range out.Parts {
		w.Open("Part")
		w.Int("PartNumber", int64(p.Number))
		w.Time("LastModified", p.Modified)
		w.ETag(p.ETag)
		w.Int("Size", p.Size)
		q.checksumElements(p.Checksums, 0, false)
		w.Close("Part")
	}
	w.Close("ListPartsResult")
	return q.ok(), nil
}

func (q *request) uploadChecksumElements(a *metapb.Attributes) {
	if alg := a.GetChecksumAlgorithm(); alg != metapb.ChecksumAlgorithm_CHECKSUM_NONE {
		q.out.Raw("ChecksumAlgorithm", checksum.Name(alg))
		q.out.Raw("ChecksumType", uploadType(a))
	}
}

func listUploads(q *request) (*response, error) {
	l, err := q.listing("max-uploads")
	if err != nil {
		return nil, err
	}
	marker, _ := q.param("key-marker")
	idMarker, _ := q.param("upload-id-marker")
	if marker == "" {
		idMarker = "" // S3: ignored without a key marker
	}
	out, err := q.h.backend.ListUploads(q.r.Context(), q.acct, &objects.ListUploadsInput{
		Bucket: q.bucket, Prefix: l.prefix, Delimiter: l.delimiter, KeyMarker: marker, UploadIDMarker: idMarker, Max: l.max,
	})
	if err != nil {
		return nil, err
	}
	q.document("ListMultipartUploadsResult")
	w := &q.out
	w.URL = l.url
	w.Raw("Bucket", q.bucket)
	w.Name("KeyMarker", marker)
	w.Text("UploadIdMarker", idMarker)
	w.Name("NextKeyMarker", out.NextKey)
	w.Text("NextUploadIdMarker", out.NextUploadID)
	w.Name("Prefix", l.prefix)
	if l.delimiter != "" {
		w.Name("Delimiter", l.delimiter)
	}
	if l.url {
		w.Raw("EncodingType", "url")
	}
	w.Int("MaxUploads", int64(l.max))
	w.Bool("IsTruncated", out.Truncated && l.max > 0)
	for i := range out.Uploads {
		u := &out.Uploads[i]
		w.Open("Upload")
		w.Name("Key", string(u.Key))
		w.Text("UploadId", u.ID)
		q.owner("Initiator", u.Owner)
		q.owner("Owner", u.Owner)
		w.Raw("StorageClass", classOf(u.Attributes.GetStorageClass()))
		w.Time("Initiated", u.Initiated)
		q.uploadChecksumElements(u.Attributes)
		w.Close("Upload")
	}
	q.commonPrefixes(out.CommonPrefixes)
	w.Close("ListMultipartUploadsResult")
	return q.ok(), nil
}
