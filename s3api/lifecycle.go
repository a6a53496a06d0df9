package s3api

import (
	"time"

	"cairn/proto/metapb"
	"cairn/s3api/lifecycle"
	"cairn/s3api/objects"
	"cairn/s3api/s3err"
	"cairn/s3api/s3xml"
	"cairn/storage"
)

// minimumSizeHeader says below which size objects stay where they are, if a rule's filter says nothing about sizes.
const minimumSizeHeader = "X-Amz-Transition-Default-Minimum-Object-Size"

const (
	minimumSizeAll    = "all_storage_classes_128K"
	minimumSizeVaries = "varies_by_storage_class"
)

func (q *request) setMinimumSize(cfg *metapb.LifecycleConfig) {
	v := minimumSizeAll
	if cfg.VariesByStorageClass {
		v = minimumSizeVaries
	}
	q.set("x-amz-transition-default-minimum-object-size", v)
}

func putBucketLifecycle(q *request) (*response, error) {
	cfg := &metapb.LifecycleConfig{}
	var err error
	if cfg.VariesByStorageClass, err = minimumSize(q.hdr(minimumSizeHeader)); err != nil {
		return nil, err
	}
	doc, err := q.readProven()
	if err != nil {
		return nil, err
	}
	if cfg.Rules, err = lifecycleRules(doc); err != nil {
		return nil, err
	}
	if err := q.h.backend.PutBucketLifecycle(q.r.Context(), q.acct, q.bucket, cfg); err != nil {
		return nil, err
	}
	q.setMinimumSize(cfg)
	return q.ok(), nil
}

// minimumSize reads a value of that header.
func minimumSize(v string) (varies bool, err error) {
	switch v {
	case "", minimumSizeAll:
		return false, nil
	case minimumSizeVaries:
		return true, nil
	}
	return false, s3err.New(s3err.InvalidRequest, "Invalid TransitionDefaultMinimumObjectSize found: "+clip(v))
}

func deleteBucketLifecycle(q *request) (*response, error) {
	return q.noContent(q.h.backend.PutBucketLifecycle(q.r.Context(), q.acct, q.bucket, nil))
}

func getBucketLifecycle(q *request) (*response, error) {
	b, err := q.h.backend.HeadBucket(q.r.Context(), q.acct, q.bucket)
	if err != nil {
		return nil, err
	}
	if b.Lifecycle == nil {
		return nil, s3err.New(s3err.NoSuchLifecycleConfiguration, "", s3err.Field{Name: "BucketName", Value: q.bucket})
	}
	q.setMinimumSize(b.Lifecycle)
	q.document("LifecycleConfiguration")
	for _, rule := range b.Lifecycle.Rules {
		writeLifecycleRule(&q.out, rule)
	}
	q.out.Close("LifecycleConfiguration")
	return q.ok(), nil
}

// writeLifecycleRule writes a rule as its client did.
func writeLifecycleRule(w *s3xml.Writer, rule *metapb.LifecycleRule) {
	w.Open("Rule")
	w.Text("ID", rule.Id)
	writeLifecycleFilter(w, rule.Filter)
	if rule.Disabled {
		w.Raw("Status", "Disabled")
	} else {
		w.Raw("Status", "Enabled")
	}
	for _, t := range rule.Transitions {
		w.Open("Transition")
		writeDue(w, t.Days, t.DateMs)
		w.Raw("StorageClass", t.StorageClass)
		w.Close("Transition")
	}
	if e := rule.Expiration; e != nil {
		w.Open("Expiration")
		if e.Days == 0 && e.DateMs == 0 {
			w.Bool("ExpiredObjectDeleteMarker", e.ExpiredDeleteMarker)
		} else {
			writeDue(w, e.Days, e.DateMs)
		}
		w.Close("Expiration")
	}
	for _, t := range rule.NoncurrentTransitions {
		w.Open("NoncurrentVersionTransition")
		writeNoncurrent(w, t.Days, t.NewerNoncurrent)
		w.Raw("StorageClass", t.StorageClass)
		w.Close("NoncurrentVersionTransition")
	}
	if e := rule.NoncurrentExpiration; e != nil {
		w.Open("NoncurrentVersionExpiration")
		writeNoncurrent(w, e.Days, e.NewerNoncurrent)
		w.Close("NoncurrentVersionExpiration")
	}
	if rule.AbortDays > 0 {
		w.Open("AbortIncompleteMultipartUpload")
		w.Int("DaysAfterInitiation", int64(rule.AbortDays))
		w.Close("AbortIncompleteMultipartUpload")
	}
	w.Close("Rule")
}

func writeLifecycleFilter(w *s3xml.Writer, f *metapb.LifecycleFilter) {
	if f.InRule {
		w.Text("Prefix", f.Prefix)
		return
	}
	w.Open("Filter")
	if f.InAnd {
		w.Open("And")
	}
	if f.HasPrefix {
		w.Text("Prefix", f.Prefix)
	}
	for _, t := range f.Tags {
		w.Open("Tag")
		w.Text("Key", t.Name)
		w.Text("Value", t.Value)
		w.Close("Tag")
	}
	if f.HasSizeGreater {
		w.Int("ObjectSizeGreaterThan", int64(f.SizeGreater))
	}
	if f.HasSizeLess {
		w.Int("ObjectSizeLessThan", int64(f.SizeLess))
	}
	if f.InAnd {
		w.Close("And")
	}
	w.Close("Filter")
}

// writeDue writes when an action on a current version is due.
func writeDue(w *s3xml.Writer, days uint32, dateMs int64) {
	if dateMs != 0 {
		w.Time("Date", time.UnixMilli(dateMs))
	} else {
		w.Int("Days", int64(days))
	}
}

// writeNoncurrent writes which noncurrent versions an action is for.
func writeNoncurrent(w *s3xml.Writer, days, newer uint32) {
	w.Int("NoncurrentDays", int64(days))
	if newer > 0 {
		w.Int("NewerNoncurrentVersions", int64(newer))
	}
}

// setExpiration tells when a lifecycle rule will remove the current version o, if one will.
func (q *request) setExpiration(o *objects.Object) {
	if o.Lifecycle != nil {
		q.setExpiry(o.Lifecycle, o.Size, o.Modified, o.Attributes)
	}
}

// setWriteExpiration is setExpiration for what a write made.
func (q *request) setWriteExpiration(out *objects.PutOutput) {
	if out.Lifecycle != nil && out.Attributes != nil {
		q.setExpiry(out.Lifecycle, out.Size, out.Modified, out.Attributes)
	}
}

func (q *request) setExpiry(rules *metapb.LifecycleConfig, size int64, modified time.Time, a *metapb.Attributes) {
	if q.h.cfg.Expiry == nil {
		return
	}
	at, id, ok := q.h.cfg.Expiry(rules, lifecycle.Object{
		Key: q.key, Size: uint64(size), Tags: a.GetTags(), ModifiedMS: modified.UnixMilli(), Class: storage.StorageClass(a.GetStorageClass()),
	})
	if ok {
		q.set("x-amz-expiration", `expiry-date="`+httpTime(at)+`", rule-id="`+headerRuleID(id)+`"`)
	}
}

// setAbort tells when a lifecycle rule will abort the upload, if one will.
func (q *request) setAbort(up *objects.Upload) {
	if up.Lifecycle == nil || q.h.cfg.Expiry == nil {
		return
	}
	if at, id, ok := q.h.cfg.Expiry(up.Lifecycle, lifecycle.Object{Kind: lifecycle.Upload, Key: q.key, ModifiedMS: up.Initiated.UnixMilli()}); ok {
		q.set("x-amz-abort-date", httpTime(at))
		q.set("x-amz-abort-rule-id", headerRuleID(id))
	}
}

// headerRuleID percent-encodes what a quoted header value can't hold, and what decoders take for an escape. S3 says that it encodes
// the id as in URLs and yet sends spaces as they are; so read either way it is the id.
func headerRuleID(id string) string {
	const digits = "0123456789ABCDEF"
	b := make([]byte, 0, len(id))
	for i := 0; i < len(id); i++ {
		switch c := id[i]; {
		case c < ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '%' || c == '+':
			b = append(b, '%', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return string(b)
}
