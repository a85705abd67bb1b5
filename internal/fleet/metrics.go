package fleet

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics are the fleet's.
type Metrics struct {
	claims     *prometheus.CounterVec
	seconds    prometheus.Histogram
	attempts   *prometheus.CounterVec
	reconciles *prometheus.CounterVec
	detections *prometheus.CounterVec
	nodes      prometheus.Gauge
	dropped    prometheus.Counter
	nodeMetrics
}

// NewMetrics registers hearth_fleet_….
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_fleet_claims_total", Help: "Claims answered, by result: warm, cold, repeated, failed.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hearth_fleet_claim_seconds", Help: "Time from a claim's request to its answer.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 60},
		}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_fleet_claim_attempts_total", Help: "Claims sent to a node, by outcome: claimed, refused, unknown, invalid, superseded.",
		}, []string{"outcome"}),
		reconciles: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_fleet_reconciled_total", Help: "Environments of inventories that differed from the store, by action: adopt, observe, release.",
		}, []string{"action"}),
		detections: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_fleet_detections_total", Help: "Detections reported by nodes, by severity.",
		}, []string{"severity"}),
		nodes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "hearth_fleet_nodes_placeable", Help: "Nodes that may be given claims.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hearth_fleet_answers_dropped_total", Help: "Idempotency keys forgotten before their time, because there were more than are kept.",
		}),
	}
	m.nodeMetrics = newNodeMetrics(reg)
	reg.MustRegister(m.claims, m.seconds, m.attempts, m.reconciles, m.detections, m.nodes, m.dropped)
	return m
}

func (m *Metrics) reconciled(a action) { m.reconciles.WithLabelValues(string(a)).Inc() }

// detection counts a severity; words that are none are "other", so that a node
// cannot make labels.
func (m *Metrics) detection(severity string) {
	switch severity {
	case "low", "medium", "high", "critical":
	default:
		severity = "other"
	}
	m.detections.WithLabelValues(severity).Inc()
}

func (m *Metrics) claimed(result string, begun time.Time) {
	m.claims.WithLabelValues(result).Inc()
	m.seconds.Observe(time.Since(begun).Seconds())
}
