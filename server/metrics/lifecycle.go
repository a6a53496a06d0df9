package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"cairn/server/status"
)

// lifecycleDescs are the metrics of this node's lifecycle worker.
type lifecycleDescs struct {
	lag, due, roundSeconds, roundRows                                            *prometheus.Desc
	rounds, expired, removed, aborted, transitioned, retiered, movedBytes, error *prometheus.Desc
}

func newLifecycleDescs(d func(name, help string, labels ...string) *prometheus.Desc) lifecycleDescs {
	return lifecycleDescs{
		lag:          d("lifecycle_lag_seconds", "Since when the first of the actions that lifecycle rules want and that are not done is due, in the ranges led on this node."),
		due:          d("lifecycle_due", "Actions that are known to be due and not done."),
		roundSeconds: d("lifecycle_round_seconds", "What the latest walk over all rows with rules took."),
		roundRows:    d("lifecycle_round_rows", "Rows it saw."),
		rounds:       d("lifecycle_rounds_total", "Such walks since the start."),
		expired:      d("lifecycle_expired_total", "Current versions that rules ended since the start."),
		removed:      d("lifecycle_removed_total", "Noncurrent versions and delete markers that rules removed since the start."),
		aborted:      d("lifecycle_aborted_total", "Multipart uploads that rules aborted since the start."),
		transitioned: d("lifecycle_transitioned_total", "Versions that rules moved to another storage class since the start."),
		retiered:     d("lifecycle_retiered_total", "Versions of INTELLIGENT_TIERING that went to another tier since the start."),
		movedBytes:   d("lifecycle_moved_bytes_total", "Bytes written in another class for both."),
		error:        d("lifecycle_failing", "1 while something that rules want could not be done."),
	}
}

func (l *lifecycleDescs) collect(ch chan<- prometheus.Metric, s *status.Lifecycle) {
	gauge := func(d *prometheus.Desc, v float64) { ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	counter := func(d *prometheus.Desc, v int64) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v))
	}
	gauge(l.lag, s.LagSeconds)
	gauge(l.due, float64(s.Due))
	gauge(l.roundSeconds, s.Seconds)
	gauge(l.roundRows, float64(s.Rows))
	gauge(l.error, yes(s.Error != ""))
	counter(l.rounds, s.Rounds)
	counter(l.expired, s.Expired)
	counter(l.removed, s.Removed)
	counter(l.aborted, s.Aborted)
	counter(l.transitioned, s.Transitioned)
	counter(l.retiered, s.Retiered)
	counter(l.movedBytes, s.MovedBytes)
}
