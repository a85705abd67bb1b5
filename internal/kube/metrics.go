package kube

import "github.com/prometheus/client_golang/prometheus"

// StoreMetrics count how desired state reaches the API server.
type StoreMetrics struct {
	writes *prometheus.CounterVec
	behind prometheus.Gauge
}

// NewStoreMetrics registers hearth_kube_writes_total{kind, result} and
// hearth_kube_behind. Make one a process.
func NewStoreMetrics(reg prometheus.Registerer) *StoreMetrics {
	m := &StoreMetrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_kube_writes_total",
			Help: "Environments written to the API server, by kind and result.",
		}, []string{"kind", "result"}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "hearth_kube_behind",
			Help: "Environments whose objects do not say yet what is known of them.",
		}),
	}
	reg.MustRegister(m.writes, m.behind)
	return m
}

// The kinds of writes.
const (
	writeSave   = "save"   // waited for
	writeBehind = "behind" // not
)

func (m *StoreMetrics) wrote(kind string, err error) {
	result := "done"
	if err != nil {
		result = "failed"
	}
	m.writes.WithLabelValues(kind, result).Inc()
}
