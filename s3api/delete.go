package s3api

import (
	"cmp"
	"net/http"
	"strconv"
	"strings"

	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/storage"
)

func deleteObject(q *request) (*response, error) {
	version, err := q.version()
	if err != nil {
		return nil, err
	}
	item := objects.DeleteItem{Key: q.key, VersionID: version, Bypass: q.bypass()}
	if item.Conditions, err = q.writeConditions(); err != nil {
		return nil, err
	}
	if err := matchRest(&item.Conditions, q.hdr("X-Amz-If-Match-Last-Modified-Time"), q.hdr("X-Amz-If-Match-Size")); err != nil {
		return nil, err
	}
	if len(item.Conditions.IfNoneMatch) > 0 {
		return nil, notImplementedHeader("If-None-Match")
	}
	res, err := q.h.backend.DeleteObject(q.r.Context(), q.acct, q.bucket, item)
	if err == nil {
		err = res.Err
	}
	if err != nil {
		return nil, err
	}
	if res.DeleteMarker {
		q.set("x-amz-delete-marker", "true")
	}
	q.setVersion(cmp.Or(res.MarkerVersionID, res.VersionID))
	return q.withStatus(http.StatusNoContent), nil
}

func (q *request) bypass() bool {
	return strings.EqualFold(q.hdr("X-Amz-Bypass-Governance-Retention"), "true")
}

// matchRest reads the conditions on modification time and size.
func matchRest(c *objects.Conditions, modified, size string) error {
	if modified != "" {
		t, err := parseDate(modified)
		if err != nil {
			return s3err.New(s3err.InvalidArgument, "The last modified time to match is not a date.",
				s3err.Field{Name: "ArgumentName", Value: "x-amz-if-match-last-modified-time"}, s3err.Field{Name: "ArgumentValue", Value: clip(modified)})
		}
		c.IfMatchModified = t
	}
	if size != "" {
		n, err := strconv.ParseInt(size, 10, 64)
		if err != nil || n < 0 {
			return s3err.New(s3err.InvalidArgument, "The size to match is not a number.",
				s3err.Field{Name: "ArgumentName", Value: "x-amz-if-match-size"}, s3err.Field{Name: "ArgumentValue", Value: clip(size)})
		}
		c.IfMatchSize = &n
	}
	return nil
}

func deleteObjects(q *request) (*response, error) {
	doc, err := q.readProven()
	if err != nil {
		return nil, err
	}
	d, err := s3xml.ParseDelete(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	items := make([]objects.DeleteItem, 0, len(d.Objects))
	refused := make([]error, len(d.Objects))
	for i := range d.Objects {
		item, err := q.deleteItem(&d.Objects[i])
		if err != nil {
			refused[i] = err
			continue
		}
		items = append(items, item)
	}
	var results []objects.DeleteResult
	if len(items) > 0 {
		if results, err = q.h.backend.DeleteObjects(q.r.Context(), q.acct, q.bucket, items); err != nil {
			return nil, err
		}
	} else if _, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket); err != nil {
		return nil, err
	}
	q.document("DeleteResult")
	for i := range d.Objects {
		o := &d.Objects[i]
		if refused[i] != nil {
			q.deleteError(o, refused[i])
			continue
		}
		res := results[0]
		results = results[1:]
		switch {
		case res.Err != nil:
			q.deleteError(o, res.Err)
		case !d.Quiet:
			q.deleted(o, res)
		}
	}
	q.out.Close("DeleteResult")
	return q.ok(), nil
}

func (q *request) deleteItem(o *s3xml.DeleteObject) (item objects.DeleteItem, err error) {
	if err := checkKey(o.Key); err != nil {
		return item, err
	}
	if o.HasVersion && o.VersionID == "" {
		return item, s3err.New(s3err.NoSuchVersion, "") // there never is one of that name; to S3 it is not the current one either
	}
	if o.VersionID != "" {
		if err := checkVersion("VersionId", o.VersionID); err != nil {
			return item, err
		}
	}
	item = objects.DeleteItem{Key: storage.Key(o.Key), VersionID: o.VersionID, Bypass: q.bypass()}
	if o.ETag != "" {
		item.Conditions.IfMatch = []string{unquote(o.ETag)}
	}
	return item, matchRest(&item.Conditions, o.LastModified, o.Size)
}

func (q *request) deleted(o *s3xml.DeleteObject, res objects.DeleteResult) {
	w := &q.out
	w.Open("Deleted")
	w.Text("Key", o.Key)
	if o.VersionID != "" {
		w.Text("VersionId", o.VersionID)
	}
	if res.DeleteMarker {
		w.Bool("DeleteMarker", true)
		if res.MarkerVersionID != "" {
			w.Text("DeleteMarkerVersionId", res.MarkerVersionID)
		}
	}
	w.Close("Deleted")
}

func (q *request) deleteError(o *s3xml.DeleteObject, err error) {
	e := s3err.From(err)
	q.log(e, e.Code.Status())
	w := &q.out
	w.Open("Error")
	w.Text("Key", o.Key)
	if o.VersionID != "" {
		w.Text("VersionId", o.VersionID)
	}
	w.Raw("Code", e.Code.String())
	w.Text("Message", e.Text())
	w.Close("Error")
}
