package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cairn/server/status"
)

// eventDescs are the metrics of what waits in the ranges that this node leads: they add up over the nodes.
type eventDescs struct {
	queued, queuedBytes, oldest, held *prometheus.Desc
}

func newEventDescs(d func(name, help string, labels ...string) *prometheus.Desc) eventDescs {
	return eventDescs{
		queued:      d("events_queued", "Events that wait for the target in the ranges led on this node.", "target"),
		queuedBytes: d("events_queued_bytes", "Bytes that they take in the metadata.", "target"),
		oldest:      d("events_oldest_seconds", "How long the oldest of them waits; 0 if none does.", "target"),
		held:        d("events_held", "1 if the target's queue is full in one of these ranges and writes that would make another event are refused.", "target"),
	}
}

func (e *eventDescs) collect(ch chan<- prometheus.Metric, loads []status.EventLoad) {
	for _, l := range loads {
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, l.Target)
		}
		gauge(e.queued, float64(l.Queued))
		gauge(e.queuedBytes, float64(l.QueuedBytes))
		gauge(e.oldest, l.OldestSeconds)
		gauge(e.held, yes(l.Held))
	}
}

// EventLook answers what became of the events of the whole store, by target, and by bucket and target; no buckets if there are more than are told of
// one by one.
type EventLook func(ctx context.Context) (targets []status.EventLoad, buckets []status.BucketLoad, err error)

// eventCollector turns what became of events into counters. They are of the whole store and the same on every node, since a range's
// leader, and with it what a node could count by itself, comes and goes.
type eventCollector struct {
	look                              EventLook
	now                               func() time.Time
	told                              *prometheus.Desc
	delivered, dead, dropped          *prometheus.Desc
	bucketQueued                      *prometheus.Desc
	bucketSent, bucketDead, bucketNot *prometheus.Desc

	mu      sync.Mutex // one look at a time
	looked  time.Time
	ok      bool
	targets []status.EventLoad
	buckets []status.BucketLoad
}

// WatchEvents has what became of events shown too, which is looked at again when it is older than half a minute.
func (m *Metrics) WatchEvents(look EventLook, now func() time.Time) {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("cairn_"+name, help, labels, nil)
	}
	m.registry.MustRegister(&eventCollector{
		look: look, now: now,
		told:         d("event_metrics", "1 if what became of events could be read from all ranges."),
		delivered:    d("events_delivered_total", "Events that the target took, in the whole store and ever.", "target"),
		dead:         d("events_dead_total", "Events that the target refused for good, in the whole store and ever.", "target"),
		dropped:      d("events_dropped_total", "Events that were given up undelivered, in the whole store and ever.", "target"),
		bucketQueued: d("bucket_events_queued", "Events of the bucket that wait for the target, in the whole store.", "bucket", "target"),
		bucketSent:   d("bucket_events_delivered_total", "Events of the bucket that the target took.", "bucket", "target"),
		bucketDead:   d("bucket_events_dead_total", "Events of the bucket that the target refused for good.", "bucket", "target"),
		bucketNot:    d("bucket_events_dropped_total", "Events of the bucket that were given up undelivered.", "bucket", "target"),
	})
}

// Describe sends nothing: which metrics there are depends on targets and buckets.
func (c *eventCollector) Describe(chan<- *prometheus.Desc) {}

func (c *eventCollector) Collect(ch chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); c.looked.IsZero() || now.Sub(c.looked) >= bucketsEvery {
		ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
		defer cancel()
		var err error
		c.targets, c.buckets, err = c.look(ctx)
		c.looked, c.ok = now, err == nil
	}
	ch <- prometheus.MustNewConstMetric(c.told, prometheus.GaugeValue, yes(c.ok))
	if !c.ok { // sums that lack a range for a while would look like counters that began anew
		return
	}
	counter := func(d *prometheus.Desc, v int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for _, t := range c.targets {
		counter(c.delivered, t.Delivered, t.Target)
		counter(c.dead, t.Dead, t.Target)
		counter(c.dropped, t.Dropped, t.Target)
	}
	for _, b := range c.buckets {
		ch <- prometheus.MustNewConstMetric(c.bucketQueued, prometheus.GaugeValue, float64(b.Queued), b.Bucket, b.Target)
		counter(c.bucketSent, b.Delivered, b.Bucket, b.Target)
		counter(c.bucketDead, b.Dead, b.Bucket, b.Target)
		counter(c.bucketNot, b.Dropped, b.Bucket, b.Target)
	}
}
