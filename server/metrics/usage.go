package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cairn/server/status"
)

// usageDescs are the metrics of what is stored, by storage class.
type usageDescs struct {
	objects, versions, bytes, uploads, uploadBytes, drives, early, restored, retrieved *prometheus.Desc
}

func newUsageDescs(d func(name, help string, labels ...string) *prometheus.Desc) usageDescs {
	return usageDescs{
		objects:     d("class_objects", "Current versions in the storage class.", "class"),
		versions:    d("class_noncurrent_versions", "Noncurrent versions in the storage class.", "class"),
		bytes:       d("class_bytes", "Bytes of all versions in the storage class, as users count them.", "class"),
		uploads:     d("class_uploads", "Multipart uploads in progress to the storage class.", "class"),
		uploadBytes: d("class_upload_bytes", "Bytes of their parts.", "class"),
		drives:      d("class_drive_bytes", "What both take on drives, estimated from the class's plan.", "class"),
		early:       d("class_early_byte_days_total", "Bytes that left the class before its minimum of days was over, times the days that lacked, in the whole store and ever.", "class"),
		restored:    d("class_restored_bytes_total", "Bytes of archived versions whose restore was begun, in the whole store and ever.", "class"),
		retrieved:   d("retrieved_bytes_total", "Bytes read by this node since its start of versions in classes where S3 charges for reading.", "class"),
	}
}

func (u *usageDescs) collect(ch chan<- prometheus.Metric, s *status.Status) {
	gauge := func(d *prometheus.Desc, v float64, class string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, class)
	}
	counter := func(d *prometheus.Desc, v float64, class string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, class)
	}
	for _, c := range s.Usage.Classes {
		gauge(u.objects, float64(c.Objects), c.Class)
		gauge(u.versions, float64(c.Versions), c.Class)
		gauge(u.bytes, float64(c.Bytes), c.Class)
		gauge(u.uploads, float64(c.Uploads), c.Class)
		gauge(u.uploadBytes, float64(c.UploadBytes), c.Class)
		gauge(u.drives, float64(c.DriveBytes), c.Class)
		if !s.Usage.Partial { // a sum that lacks a range for a while would look like a counter that began anew
			counter(u.early, c.EarlyByteDays, c.Class)
			counter(u.restored, float64(c.RestoredBytes), c.Class)
		}
	}
	for class, n := range s.Retrieved {
		counter(u.retrieved, float64(n), class)
	}
}

// bucketsEvery is how old what is told of single buckets may be: it is read from every range.
const bucketsEvery = 30 * time.Second

// BucketLook answers the usage of every bucket; ok is false if there are more than are told of one by one.
type BucketLook func(ctx context.Context) (buckets []status.BucketUsage, ok bool, err error)

// bucketCollector turns the usage of buckets into gauges, at most as many buckets as look answers.
type bucketCollector struct {
	look                             BucketLook
	now                              func() time.Time
	told, objects, versions, bytes   *prometheus.Desc
	uploadBytes, early, restoredDesc *prometheus.Desc

	mu      sync.Mutex // one look at a time
	looked  time.Time
	ok      bool
	buckets []status.BucketUsage
}

// WatchBuckets has the usage of single buckets shown too, which is looked at again when it is older than half a minute.
func (m *Metrics) WatchBuckets(look BucketLook, now func() time.Time) {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("cairn_"+name, help, labels, nil)
	}
	m.registry.MustRegister(&bucketCollector{
		look: look, now: now,
		told:         d("bucket_metrics", "1 if buckets have metrics of their own; 0 if there are too many, or they could not be read."),
		objects:      d("bucket_objects", "Current versions of the bucket in the storage class.", "bucket", "class"),
		versions:     d("bucket_noncurrent_versions", "Noncurrent versions of the bucket in the storage class.", "bucket", "class"),
		bytes:        d("bucket_bytes", "Bytes of all versions of the bucket in the storage class.", "bucket", "class"),
		uploadBytes:  d("bucket_upload_bytes", "Bytes of the parts of multipart uploads in progress.", "bucket", "class"),
		early:        d("bucket_early_byte_days_total", "Bytes of the bucket that left the class early, times the days that lacked.", "bucket", "class"),
		restoredDesc: d("bucket_restored_bytes_total", "Bytes of archived versions of the bucket whose restore was begun.", "bucket", "class"),
	})
}

// Describe sends nothing: which metrics there are depends on the buckets.
func (c *bucketCollector) Describe(chan<- *prometheus.Desc) {}

func (c *bucketCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); c.looked.IsZero() || now.Sub(c.looked) >= bucketsEvery {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
		defer cancel()
		var err error
		c.buckets, c.ok, err = c.look(ctx)
		if c.looked = now; err != nil {
			c.buckets, c.ok = nil, false
		}
	}
	ch <- prometheus.MustNewConstMetric(c.told, prometheus.GaugeValue, yes(c.ok))
	if !c.ok {
		return
	}
	for _, b := range c.buckets {
		for _, k := range b.Classes {
			gauge := func(d *prometheus.Desc, v int64) {
				ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), b.Bucket, k.Class)
			}
			gauge(c.objects, k.Objects)
			gauge(c.versions, k.Versions)
			gauge(c.bytes, k.Bytes)
			gauge(c.uploadBytes, k.UploadBytes)
			if k.EarlyByteDays > 0 {
				ch <- prometheus.MustNewConstMetric(c.early, prometheus.CounterValue, k.EarlyByteDays, b.Bucket, k.Class)
			}
			if k.RestoredBytes > 0 {
				ch <- prometheus.MustNewConstMetric(c.restoredDesc, prometheus.CounterValue, float64(k.RestoredBytes), b.Bucket, k.Class)
			}
		}
	}
}
