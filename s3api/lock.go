package s3api

import (
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
)

// Longest default retention that S3 takes.
const (
	lockDaysMax  = 36500
	lockYearsMax = 100
)

// missingLock answers questions about locks of objects in a bucket without object lock.
func missingLock() error {
	return s3err.New(s3err.InvalidRequest, "Bucket is missing Object Lock Configuration")
}

// promised reports whether the client sent what proves the body unchanged, besides its signature.
func (b *body) promised() bool { return b.wantMD5 != nil || b.want != nil || b.trailer != "" }

// lockable refuses a body that nothing proves unchanged for an object that is to be locked.
func (b *body) lockable(a *metapb.Attributes) error {
	if (a.LockMode == "" && !a.LegalHold) || b.promised() {
		return nil
	}
	return s3err.New(s3err.InvalidRequest, "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters")
}

// readProven is readXML of a document that is easily changed into another valid one, so that S3 wants it proven.
func (q *request) readProven() ([]byte, error) {
	doc, err := q.readXML()
	if err == nil && !q.body.promised() {
		err = s3err.New(s3err.InvalidRequest, "Missing required header for this request: Content-MD5 OR x-amz-checksum-*")
	}
	return doc, err
}

// attributes are what the client wants kept with a new object, tags and lock among it.
func (q *request) attributes() (*metapb.Attributes, error) {
	a, err := q.plainAttributes()
	if err != nil {
		return nil, err
	}
	if a.Tags, err = q.tags(); err != nil {
		return nil, err
	}
	r, hold, err := q.objectLock()
	if r.Mode != "" {
		a.LockMode, a.LockUntilMs = r.Mode, r.Until.UnixMilli()
	}
	a.LegalHold = hold
	return a, err
}

// objectLock reads the x-amz-object-lock-* headers.
func (q *request) objectLock() (r objects.Retention, hold bool, err error) {
	bad := func(name, message string) error {
		return s3err.New(s3err.InvalidArgument, message, s3err.Field{Name: "ArgumentName", Value: name}, s3err.Field{Name: "ArgumentValue", Value: clip(q.r.Header.Get(name))})
	}
	mode, until := q.r.Header["X-Amz-Object-Lock-Mode"], q.r.Header["X-Amz-Object-Lock-Retain-Until-Date"]
	if len(mode) != len(until) {
		return r, false, bad("x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date and x-amz-object-lock-mode must both be supplied")
	}
	if len(mode) > 0 {
		if mode[0] != "GOVERNANCE" && mode[0] != "COMPLIANCE" || len(mode) > 1 {
			return r, false, bad("x-amz-object-lock-mode", "Unknown wormMode directive.")
		}
		r.Mode = mode[0]
		if r.Until, err = q.retainUntil(until[0]); err != nil {
			return r, false, err
		}
	}
	switch v, ok := q.r.Header["X-Amz-Object-Lock-Legal-Hold"]; {
	case !ok:
	case len(v) == 1 && v[0] == "ON":
		hold = true
	case len(v) != 1 || v[0] != "OFF":
		return r, false, bad("x-amz-object-lock-legal-hold", "Legal Hold must be either of 'ON' or 'OFF'")
	}
	return r, hold, nil
}

// retainUntil reads the date until which a version is to be retained. It is kept in milliseconds: never shorter than asked.
func (q *request) retainUntil(v string) (time.Time, error) {
	bad := func(message string) error {
		return s3err.New(s3err.InvalidArgument, message, s3err.Field{Name: "ArgumentName", Value: "x-amz-object-lock-retain-until-date"}, s3err.Field{Name: "ArgumentValue", Value: clip(v)})
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return t, bad("The retain until date must be provided in ISO 8601 format")
	}
	if !t.After(q.h.cfg.Now()) {
		return t, bad("The retain until date must be in the future!")
	}
	if ms := t.Truncate(time.Millisecond); ms.Before(t) {
		t = ms.Add(time.Millisecond)
	}
	return t.UTC(), nil
}

// lockHeaders sets the headers of an object's lock.
func (q *request) lockHeaders(a *metapb.Attributes) {
	if a.GetLockMode() != "" {
		q.set("x-amz-object-lock-mode", a.LockMode)
		q.set("x-amz-object-lock-retain-until-date", string(s3xml.AppendTime(nil, time.UnixMilli(a.LockUntilMs))))
	}
	if a.GetLegalHold() {
		q.set("x-amz-object-lock-legal-hold", "ON")
	}
}

func getObjectLockConfiguration(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	if !b.Lock.Enabled {
		return nil, s3err.New(s3err.ObjectLockConfigurationNotFoundError, "", s3err.Field{Name: "BucketName", Value: q.bucket})
	}
	q.document("ObjectLockConfiguration")
	w := &q.out
	w.Raw("ObjectLockEnabled", "Enabled")
	if b.Lock.Mode != "" {
		w.Open("Rule")
		w.Open("DefaultRetention")
		w.Raw("Mode", b.Lock.Mode)
		if b.Lock.Years > 0 {
			w.Int("Years", int64(b.Lock.Years))
		} else {
			w.Int("Days", int64(b.Lock.Days))
		}
		w.Close("DefaultRetention")
		w.Close("Rule")
	}
	w.Close("ObjectLockConfiguration")
	return q.ok(), nil
}

func putObjectLockConfiguration(q *request) (*response, error) {
	doc, err := q.readProven()
	if err != nil {
		return nil, err
	}
	c, err := s3xml.ParseLockConfiguration(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	cfg := objects.LockConfig{Enabled: true, Mode: c.Mode}
	if c.Mode != "" {
		n, limit := c.Days, int64(lockDaysMax)
		if c.InYears {
			n, limit = c.Years, lockYearsMax
		}
		if n < 1 || n > limit {
			return nil, s3err.New(s3err.InvalidRetentionPeriod, "")
		}
		cfg.Days, cfg.Years = uint32(c.Days), uint32(c.Years)
	}
	if err := q.h.backend.PutBucketLock(q.r.Context(), q.acct, q.bucket, cfg); err != nil {
		return nil, err
	}
	return q.ok(), nil
}

// locked is the version that the request names, in a bucket with object lock.
func (q *request) locked() (*objects.Object, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	if !b.Lock.Enabled {
		return nil, missingLock()
	}
	return q.target()
}

func getObjectRetention(q *request) (*response, error) {
	o, err := q.locked()
	if err != nil {
		return nil, err
	}
	if o.Attributes.GetLockMode() == "" {
		return nil, s3err.New(s3err.NoSuchObjectLockConfiguration, "", s3err.Field{Name: "Key", Value: string(q.key)})
	}
	q.document("Retention")
	q.out.Raw("Mode", o.Attributes.LockMode)
	q.out.Time("RetainUntilDate", time.UnixMilli(o.Attributes.LockUntilMs))
	q.out.Close("Retention")
	return q.ok(), nil
}

func putObjectRetention(q *request) (*response, error) {
	v, err := q.versionRef()
	if err != nil {
		return nil, err
	}
	doc, err := q.readProven()
	if err != nil {
		return nil, err
	}
	sent, err := s3xml.ParseRetention(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	r := objects.Retention{Mode: sent.Mode}
	if sent.Mode != "" {
		if r.Until, err = q.retainUntil(sent.Until); err != nil {
			return nil, err
		}
	}
	id, err := q.h.backend.PutRetention(q.r.Context(), q.acct, v, r, q.bypass())
	if err != nil {
		return nil, err
	}
	q.setVersion(id)
	return q.ok(), nil
}

// getObjectLegalHold answers OFF also where none ever was put: which of the two it is, is not kept.
func getObjectLegalHold(q *request) (*response, error) {
	o, err := q.locked()
	if err != nil {
		return nil, err
	}
	status := "OFF"
	if o.Attributes.GetLegalHold() {
		status = "ON"
	}
	q.document("LegalHold")
	q.out.Raw("Status", status)
	q.out.Close("LegalHold")
	return q.ok(), nil
}

func putObjectLegalHold(q *request) (*response, error) {
	v, err := q.versionRef()
	if err != nil {
		return nil, err
	}
	doc, err := q.readProven()
	if err != nil {
		return nil, err
	}
	on, err := s3xml.ParseLegalHold(doc)
	if err != nil {
		return nil, xmlError(err)
	}
	id, err := q.h.backend.PutLegalHold(q.r.Context(), q.acct, v, on)
	if err != nil {
		return nil, err
	}
	q.setVersion(id)
	return q.ok(), nil
}
