// Package metrics counts what cairn does and shows it, with what status says,
// in Prometheus's format. Each Metrics has a registry of its own: nothing is global.
//
// Names begin with cairn_, units come last (_seconds, _bytes), counters end in _total.
package metrics

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cairn/server/status"
)

// opsMax bounds the values of the label "operation"; S3 has fewer.
const opsMax = 200

// scrapeTimeout bounds how long a scrape waits for the status.
const scrapeTimeout = 5 * time.Second

// Metrics is the counters of one process.
type Metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec   // operation, status
	seconds  *prometheus.HistogramVec // operation
	received *prometheus.CounterVec   // operation
	sent     *prometheus.CounterVec   // operation
	inFlight prometheus.Gauge

	ops struct {
		sync.RWMutex
		byName map[string]*operation
	}
}

// operation holds one operation's counters, looked up once: a request pays no label hashing.
type operation struct {
	name     string
	seconds  prometheus.Observer
	received prometheus.Counter
	sent     prometheus.Counter
	statuses [600]struct {
		once    sync.Once
		counter prometheus.Counter
	}
}

// New makes the counters. Look answers the present status at each scrape; nil leaves those metrics out.
func New(look func(context.Context) (status.Status, error)) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cairn_s3_requests_total", Help: "S3 requests answered, by operation and HTTP status."}, []string{"operation", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "cairn_s3_request_seconds", Help: "Time from the request's head to the last byte of its answer.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}}, []string{"operation"}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cairn_s3_received_bytes_total", Help: "Bytes of request bodies, decoded."}, []string{"operation"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "cairn_s3_sent_bytes_total", Help: "Bytes of answers' bodies."}, []string{"operation"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "cairn_s3_requests_in_flight", Help: "S3 requests being served now."}),
	}
	m.ops.byName = map[string]*operation{}
	m.registry.MustRegister(m.requests, m.seconds, m.received, m.sent, m.inFlight,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if look != nil {
		m.registry.MustRegister(newStatusCollector(look))
	}
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}

// Register adds a collector of another part of the process.
func (m *Metrics) Register(c prometheus.Collector) error { return m.registry.Register(c) }

// Begin counts a request in; the caller calls the function it answers when the request is done.
func (m *Metrics) Begin() (end func()) {
	m.inFlight.Inc()
	return m.inFlight.Dec
}

// Request counts one answered request: its operation ("PutObject"), the HTTP
// status, the bytes of its body in and of the answer's out, and how long it
// took. It is safe for concurrent use and costs a fraction of a microsecond.
func (m *Metrics) Request(op string, code int, in, out int64, d time.Duration) {
	o := m.operation(op)
	o.seconds.Observe(d.Seconds())
	if in > 0 {
		o.received.Add(float64(in))
	}
	if out > 0 {
		o.sent.Add(float64(out))
	}
	if code < 0 || code >= len(o.statuses) {
		code = 0
	}
	s := &o.statuses[code]
	s.once.Do(func() { s.counter = m.requests.WithLabelValues(o.name, strconv.Itoa(code)) })
	s.counter.Inc()
}

func (m *Metrics) operation(name string) *operation {
	m.ops.RLock()
	o := m.ops.byName[name]
	m.ops.RUnlock()
	if o != nil {
		return o
	}
	m.ops.Lock()
	defer m.ops.Unlock()
	if o := m.ops.byName[name]; o != nil {
		return o
	}
	if len(m.ops.byName) >= opsMax {
		name = "other"
		if o := m.ops.byName[name]; o != nil {
			return o
		}
	}
	o = &operation{name: name, seconds: m.seconds.WithLabelValues(name), received: m.received.WithLabelValues(name), sent: m.sent.WithLabelValues(name)}
	m.ops.byName[name] = o
	return o
}
