package s3api

import (
	"errors"
	"net/http"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/storage"
)

// checkVersion refuses what never was a version's id. The one spelling that was given out is the only one taken.
func checkVersion(name, v string) error {
	if id, err := storage.ParseVersionID(v); err == nil && id.String() == v {
		return nil
	}
	return s3err.New(s3err.InvalidArgument, "Invalid version id specified", s3err.Field{Name: "ArgumentName", Value: name}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
}

// noVersion refuses versionId where it has no meaning.
func (q *request) noVersion() error {
	v, ok := q.param("versionId")
	if !ok {
		return nil
	}
	return s3err.New(s3err.InvalidArgument, "This operation does not accept a version-id.",
		s3err.Field{Name: "ArgumentName", Value: "versionId"}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
}

// version is the versionId asked for, "" for the current one.
func (q *request) version() (string, error) {
	v, ok := q.param("versionId")
	if !ok {
		return "", nil
	}
	if v == "" {
		return "", s3err.New(s3err.InvalidArgument, "Version id cannot be the empty string",
			s3err.Field{Name: "ArgumentName", Value: "versionId"}, s3err.Field{Name: "ArgumentValue"})
	}
	return v, checkVersion("versionId", v)
}

// versionRef is the version that the request names.
func (q *request) versionRef() (objects.VersionRef, error) {
	v, err := q.version()
	return objects.VersionRef{Bucket: q.bucket, Key: q.key, VersionID: v}, err
}

// target is the version that the request names, for an operation on what it has besides its bytes.
func (q *request) target() (*objects.Object, error) {
	v, err := q.version()
	if err != nil {
		return nil, err
	}
	o, err := q.h.backend.HeadObject(q.r.Context(), q.acct, &objects.GetInput{Bucket: q.bucket, Key: q.key, VersionID: v})
	if err != nil {
		return nil, err
	}
	q.setVersion(o.VersionID)
	return o, nil
}

// setVersion tells the version that was read or changed, if there are versions.
func (q *request) setVersion(id string) {
	if id != "" {
		q.set("x-amz-version-id", id)
	}
}

// setWritten tells the version that a write made. That of a suspended bucket is the null version, which S3 does not tell here.
func (q *request) setWritten(id string) {
	if id != (storage.VersionID{}).String() {
		q.setVersion(id)
	}
}

// noContent answers an operation that has nothing to tell.
func (q *request) noContent(err error) (*response, error) {
	if err != nil {
		return nil, err
	}
	return q.withStatus(http.StatusNoContent), nil
}

// describeMarker completes the answer of a request for an object that met a delete marker. err is why it failed.
func (q *request) describeMarker(e *s3err.Error, err error) {
	e.Header = append(e.Header, s3err.Field{Name: "x-amz-delete-marker", Value: "true"})
	var m *objects.DeleteMarkerError
	if errors.As(err, &m) {
		e.Header = append(e.Header, s3err.Field{Name: "x-amz-version-id", Value: m.VersionID})
	}
	if v, _ := q.param("versionId"); v == "" { // then the object is as good as deleted
		e.Code = s3err.NoSuchKey
		return
	}
	e.Header = append(e.Header, s3err.Field{Name: "Allow", Value: http.MethodDelete})
	if m != nil {
		e.Header = append(e.Header, s3err.Field{Name: "Last-Modified", Value: httpTime(m.Modified)})
	}
	e.Fields = []s3err.Field{{Name: "Method", Value: q.r.Method}, {Name: "ResourceType", Value: "DeleteMarker"}}
}

func getBucketVersioning(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	q.document("VersioningConfiguration")
	switch b.Versioning {
	case metapb.Versioning_VERSIONING_ENABLED:
		q.out.Raw("Status", "Enabled")
	case metapb.Versioning_VERSIONING_SUSPENDED:
		q.out.Raw("Status", "Suspended")
	}
	q.out.Close("VersioningConfiguration")
	return q.ok(), nil
}

func putBucketVersioning(q *request) (*response, error) {
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	v, err := s3xml.ParseVersioning(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	if v.Status == "" {
		return nil, s3err.New(s3err.IllegalVersioningConfigurationException, "")
	}
	if err := q.h.backend.PutBucketVersioning(q.r.Context(), q.acct, q.bucket, v.Status == "Enabled"); err != nil {
		return nil, err
	}
	return q.ok(), nil
}

func listVersions(q *request) (*response, error) {
	l, err := q.listing("max-keys")
	if err != nil {
		return nil, err
	}
	marker, _ := q.param("key-marker")
	versionMarker, _ := q.param("version-id-marker")
	if versionMarker != "" {
		if marker == "" {
			return nil, s3err.New(s3err.InvalidArgument, "A version-id marker cannot be specified without a key marker.",
				s3err.Field{Name: "ArgumentName", Value: "version-id-marker"}, s3err.Field{Name: "ArgumentValue", Value: clip(versionMarker)})
		}
		if err := checkVersion("version-id-marker", versionMarker); err != nil {
			return nil, err
		}
	}
	out, err := q.h.backend.ListVersions(q.r.Context(), q.acct, &objects.ListVersionsInput{
		Bucket: q.bucket, Prefix: l.prefix, Delimiter: l.delimiter, KeyMarker: marker, VersionMarker: versionMarker, Max: l.max,
	})
	if err != nil {
		return nil, err
	}
	truncated := out.Truncated && l.max > 0 // a page of nothing is complete
	q.listHead("ListVersionsResult", l)
	w := &q.out
	w.Name("KeyMarker", marker)
	w.Text("VersionIdMarker", versionMarker)
	w.Int("MaxKeys", int64(l.max))
	w.Bool("IsTruncated", truncated)
	if truncated {
		w.Name("NextKeyMarker", out.NextKey)
		if out.NextVersion != "" {
			w.Raw("NextVersionIdMarker", out.NextVersion)
		}
	}
	for i := range out.Versions {
		q.versionEntry(&out.Versions[i], l.restores)
	}
	q.commonPrefixes(out.CommonPrefixes)
	w.Close("ListVersionsResult")
	return q.ok(), nil
}

// versionEntry writes one version or delete marker of a listing.
func (q *request) versionEntry(v *objects.Version, restore bool) {
	tag := "Version"
	if v.DeleteMarker {
		tag = "DeleteMarker"
	}
	w := &q.out
	w.Open(tag)
	w.Name("Key", string(v.Key))
	w.Raw("VersionId", v.VersionID)
	w.Bool("IsLatest", v.Latest)
	if v.DeleteMarker {
		w.Time("LastModified", v.Modified)
		q.owner("Owner", v.Owner)
	} else {
		q.entryFields(&v.Object, true, restore)
	}
	w.Close(tag)
}
