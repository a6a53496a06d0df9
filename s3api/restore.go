package s3api

import (
	"errors"
	"net/http"
	"strings"
	"time"

	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
)

const (
	restoreDaysMax  = 36500      // S3 names no limit; this one keeps the sum with any time a time
	standardRestore = "Standard" // the tier of those that name none
)

func restoreObject(q *request) (*response, error) {
	v, err := q.versionRef()
	if err != nil {
		return nil, err
	}
	doc, err := q.readXML()
	if err != nil {
		return nil, err
	}
	sent, err := s3xml.ParseRestore(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	days := s3err.Field{Name: "ArgumentName", Value: "Days"}
	switch {
	case sent.Days == nil:
		sent.Days = new(int64) // whether there may be any depends on the version
	case *sent.Days < 1 || *sent.Days > restoreDaysMax:
		return nil, s3err.New(s3err.InvalidArgument, "'Days' must be a positive integer, at most "+itoa(restoreDaysMax)+".", days, s3err.Field{Name: "ArgumentValue", Value: itoa(*sent.Days)})
	}
	if sent.Tier == "" {
		sent.Tier = standardRestore
	}
	res, err := q.h.backend.RestoreObject(q.r.Context(), q.acct, v, objects.RestoreRequest{Days: int(*sent.Days), Tier: sent.Tier})
	if wrong := (*objects.DaysError)(nil); errors.As(err, &wrong) {
		err = s3err.New(s3err.InvalidArgument, wrong.Err.Detail, days)
	}
	if err != nil {
		return nil, err
	}
	q.setVersion(res.VersionID)
	if res.AlreadyRestored {
		return q.ok(), nil
	}
	return q.withStatus(http.StatusAccepted), nil
}

// restoreStatus tells how far the restore of an archived version is: under way, or done until an expiry; ok is false if none was
// asked for, or it has expired.
func restoreStatus(o *objects.Object, now time.Time) (ongoing bool, expiry time.Time, ok bool) {
	ms := now.UnixMilli()
	switch r := o.Restore; {
	case r == nil || ms >= r.ExpiresMs && ms >= r.ReadyMs:
		return false, time.Time{}, false
	case ms < r.ReadyMs:
		return true, time.Time{}, true
	default:
		return false, time.UnixMilli(r.ExpiresMs), true
	}
}

// setRestore tells of the restore of an archived version.
func (q *request) setRestore(o *objects.Object) {
	if o.Restore == nil {
		return
	}
	switch ongoing, expiry, ok := restoreStatus(o, q.h.cfg.Now()); {
	case !ok:
	case ongoing:
		q.set("x-amz-restore", `ongoing-request="true"`)
	default:
		q.set("x-amz-restore", `ongoing-request="false", expiry-date="`+httpTime(expiry)+`"`)
	}
}

// writeRestore writes the same in a listing.
func (q *request) writeRestore(o *objects.Object) {
	ongoing, expiry, ok := restoreStatus(o, q.h.cfg.Now())
	if !ok {
		return
	}
	w := &q.out
	w.Open("RestoreStatus")
	w.Bool("IsRestoreInProgress", ongoing)
	if !ongoing {
		w.Time("RestoreExpiryDate", expiry)
	}
	w.Close("RestoreStatus")
}

// restoreListed reads x-amz-optional-object-attributes: whether a listing is to tell of restores, which is all it can ask for.
func (q *request) restoreListed() (bool, error) {
	const header = "X-Amz-Optional-Object-Attributes"
	v := strings.Join(q.r.Header[header], ",")
	if v == "" {
		return false, nil
	}
	for name := range strings.SplitSeq(v, ",") {
		if strings.TrimSpace(name) != "RestoreStatus" {
			return false, s3err.New(s3err.InvalidArgument, "Invalid attribute name specified.",
				s3err.Field{Name: "ArgumentName", Value: strings.ToLower(header)}, s3err.Field{Name: "ArgumentValue", Value: clip(name)})
		}
	}
	return true, nil
}
