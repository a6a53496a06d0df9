package s3api

import (
	"net/url"
	"strings"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/storage"
	"cairn/storage/errs"
)

// copySource is what x-amz-copy-source names.
type copySource struct {
	bucket  string
	key     storage.Key
	version string
}

func badCopySource(message string) error {
	return s3err.New(s3err.InvalidArgument, message, s3err.Field{Name: "ArgumentName", Value: "x-amz-copy-source"})
}

// parseCopySource reads [/]bucket/key[?versionId=id], percent-encoded.
func parseCopySource(v string) (s copySource, err error) {
	if strings.HasPrefix(v, "arn:") {
		return s, s3err.New(s3err.NotImplemented, "Copying through access points (an ARN in x-amz-copy-source) is not implemented.")
	}
	if i := strings.LastIndex(v, "?versionId="); i >= 0 {
		s.version = v[i+len("?versionId="):]
		v = v[:i]
		if s.version == "" {
			return s, badCopySource("Version id cannot be the empty string")
		}
		if err := checkVersion("x-amz-copy-source", s.version); err != nil {
			return s, err
		}
	}
	// '+' stands for itself here: clients that escape at all escape it, the others mean it.
	path, err := url.PathUnescape(v)
	if err != nil {
		return s, badCopySource("Invalid copy source encoding.")
	}
	name, key, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if !ok || name == "" || key == "" {
		return s, badCopySource("Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
	}
	if !validBucketName(name) {
		return s, s3err.New(s3err.InvalidBucketName, "", s3err.Field{Name: "BucketName", Value: clip(name)})
	}
	s.bucket, s.key = name, storage.Key(key)
	return s, checkKey(key)
}

// failed is what a copy answers that failed. Its source may not be a delete marker: the header says so only where the
// marker was met by the way.
func (s copySource) failed(err error) error {
	switch {
	case !errs.Is(err, errs.IsDeleteMarker):
		return err
	case s.version != "":
		return s3err.New(s3err.InvalidRequest, "The source of a copy request may not specifically refer to a delete marker by version id.")
	}
	e := s3err.New(s3err.NoSuchKey, "", s3err.Field{Name: "Key", Value: string(s.key)})
	e.Header = []s3err.Field{{Name: "x-amz-delete-marker", Value: "true"}}
	return e
}

// directive reads x-amz-metadata-directive: true is REPLACE.
func (q *request) directive(canonical string) (replace bool, err error) {
	switch v := q.hdr(canonical); v {
	case "", "COPY":
		return false, nil
	case "REPLACE":
		return true, nil
	default:
		return false, s3err.New(s3err.InvalidArgument, "Unknown "+strings.ToLower(canonical[len("X-Amz-"):])+".",
			s3err.Field{Name: "ArgumentName", Value: strings.ToLower(canonical)}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
}

// copyInput reads the headers of a CopyObject.
func (q *request) copyInput(src copySource) (*objects.CopyInput, error) {
	conditions, err := q.sourceConditions()
	if err != nil {
		return nil, err
	}
	in := &objects.CopyInput{SourceBucket: src.bucket, SourceKey: src.key, SourceVersionID: src.version, Bucket: q.bucket, Key: q.key, SourceConditions: conditions}
	if in.Conditions, err = q.writeConditions(); err != nil {
		return nil, err
	}
	replace, err := q.directive("X-Amz-Metadata-Directive")
	if err != nil {
		return nil, err
	}
	if err := q.copyTags(in); err != nil {
		return nil, err
	}
	if in.Retention, in.LegalHold, err = q.objectLock(); err != nil {
		return nil, err
	}
	if replace {
		in.Attributes, err = q.plainAttributes()
	} else {
		in.StorageClass, err = q.storageClass()
	}
	if err != nil {
		return nil, err
	}
	if v := q.hdr("X-Amz-Checksum-Algorithm"); v != "" {
		if in.ChecksumAlgorithm = checksumByName(v); in.ChecksumAlgorithm == metapb.ChecksumAlgorithm_CHECKSUM_NONE {
			return nil, unsupportedAlgorithm()
		}
	}
	return in, q.checkSelfCopy(in, replace)
}

// checkSelfCopy refuses a copy onto itself that changes nothing.
func (q *request) checkSelfCopy(in *objects.CopyInput, replace bool) error {
	redirect := q.hdr("X-Amz-Website-Redirect-Location") != ""
	if redirect && !replace {
		return s3err.New(s3err.NotImplemented, "x-amz-website-redirect-location is implemented only with x-amz-metadata-directive: REPLACE.")
	}
	if in.SourceBucket != in.Bucket || in.SourceKey != in.Key || in.SourceVersionID != "" || replace ||
		q.hdr("X-Amz-Storage-Class") != "" || in.ChecksumAlgorithm != metapb.ChecksumAlgorithm_CHECKSUM_NONE {
		return nil
	}
	return s3err.New(s3err.InvalidRequest, "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
}

// copyTags reads what tags the copy gets.
func (q *request) copyTags(in *objects.CopyInput) (err error) {
	if in.ReplaceTags, err = q.directive("X-Amz-Tagging-Directive"); err != nil {
		return err
	}
	if in.ReplaceTags {
		in.Tags, err = q.tags()
	} else if q.hdr("X-Amz-Tagging") != "" {
		err = s3err.New(s3err.InvalidRequest, "x-amz-tagging has a meaning only with x-amz-tagging-directive: REPLACE.")
	}
	return err
}

func copyObject(q *request) (*response, error) {
	if err := q.noVersion(); err != nil {
		return nil, err
	}
	src, err := parseCopySource(q.hdr("X-Amz-Copy-Source"))
	if err != nil {
		return nil, err
	}
	in, err := q.copyInput(src)
	if err != nil {
		return nil, err
	}
	out, err := q.h.backend.CopyObject(q.r.Context(), q.acct, in)
	if err != nil {
		return nil, src.failed(err)
	}
	q.setWritten(out.VersionID)
	q.setWriteExpiration(out)
	return q.copied("CopyObjectResult", out, in.SourceVersionID), nil
}

// copied answers a copy.
func (q *request) copied(root string, out *objects.PutOutput, sourceVersion string) *response {
	if sourceVersion != "" {
		q.set("x-amz-copy-source-version-id", sourceVersion)
	}
	q.document(root)
	w := &q.out
	w.ETag(out.ETag)
	w.Time("LastModified", out.Modified)
	q.checksumElements(out.Checksums, 0, root == "CopyObjectResult")
	w.Close(root)
	return q.ok()
}

// checksumElements writes a checksum's elements.
func (q *request) checksumElements(sums []*metapb.Checksum, parts int, withType bool) {
	for i, c := range sums {
		tag := checksumElement(c.Algorithm)
		if tag == "" {
			continue
		}
		q.out.Raw(tag, checksumText(c, parts))
		if withType && i == 0 {
			q.out.Raw("ChecksumType", checksumType(c))
		}
	}
}

func uploadPartCopy(q *request) (*response, error) {
	id, number, err := q.partOfUpload()
	if err != nil {
		return nil, err
	}
	src, err := parseCopySource(q.hdr("X-Amz-Copy-Source"))
	if err != nil {
		return nil, err
	}
	in := &objects.UploadPartCopyInput{SourceBucket: src.bucket, SourceKey: src.key, SourceVersionID: src.version, Bucket: q.bucket, Key: q.key, UploadID: id, Number: number}
	if in.SourceConditions, err = q.sourceConditions(); err != nil {
		return nil, err
	}
	if v := q.hdr("X-Amz-Copy-Source-Range"); v != "" {
		if in.SourceRange = parseRange(v); in.SourceRange == nil || in.SourceRange.Suffix || in.SourceRange.Last < 0 {
			return nil, s3err.New(s3err.InvalidArgument, "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy",
				s3err.Field{Name: "ArgumentName", Value: "x-amz-copy-source-range"}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
		}
	}
	out, err := q.h.backend.UploadPartCopy(q.r.Context(), q.acct, in)
	if err != nil {
		return nil, src.failed(err)
	}
	return q.copied("CopyPartResult", out, src.version), nil
}
