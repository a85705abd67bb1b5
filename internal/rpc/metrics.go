package rpc

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics counts and times the calls that a process answers.
type Metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
}

// NewMetrics registers hearth_rpc_calls_total{method,code} and
// hearth_rpc_call_seconds{method}. Make one a process.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_rpc_calls_total",
			Help: "Calls answered, by method and code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "hearth_rpc_call_seconds",
			Help:    "Time to answer a call; for a stream, its length.",
			Buckets: []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"method"}),
	}
	reg.MustRegister(m.calls, m.seconds)
	return m
}

func (m *Metrics) observe(procedure, code string, took time.Duration) {
	method := methodOf(procedure)
	m.calls.WithLabelValues(method, code).Inc()
	m.seconds.WithLabelValues(method).Observe(took.Seconds())
}
