package warm

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of the warm part. Labels are classes, phases and reasons, never ids.
type Metrics struct {
	claims          *prometheus.CounterVec
	claimSeconds    *prometheus.HistogramVec
	phaseSeconds    *prometheus.HistogramVec
	waits           *prometheus.HistogramVec
	prepare         *prometheus.HistogramVec
	prepareFailures *prometheus.CounterVec
	dead            *prometheus.CounterVec
	checks          *prometheus.CounterVec
	deflation       *prometheus.HistogramVec
	releases        prometheus.Histogram
	leaks           prometheus.Counter
	expired         *prometheus.CounterVec
	expiryFailures  prometheus.Counter
	idled           *prometheus.CounterVec
	woken           *prometheus.CounterVec
	wakeSeconds     prometheus.Histogram
	upgrades        *prometheus.CounterVec
	upgradeSeconds  prometheus.Histogram
}

// claimBuckets go from 0.1 ms to 3.3 s.
var claimBuckets = prometheus.ExponentialBuckets(0.0001, 2, 16)

func newMetrics() *Metrics {
	return &Metrics{
		claims: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_claims_total", Help: "Environments claimed, by class and kind (warm, queued, cold).",
		}, []string{"class", "kind"}),
		claimSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hearth_claim_seconds", Help: "Time of a claim on the node, from request to running.", Buckets: claimBuckets,
		}, []string{"kind"}),
		phaseSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hearth_claim_phase_seconds", Help: "Time of each phase of a warm claim.", Buckets: prometheus.ExponentialBuckets(0.000005, 2, 18),
		}, []string{"phase"}),
		waits: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hearth_claim_wait_seconds", Help: "Time that claims stood in the node's line, by outcome (slot, cold, expired, canceled, refused).", Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}, []string{"outcome"}),
		prepare: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hearth_slot_prepare_seconds", Help: "Time to prepare a slot for a pool.", Buckets: prometheus.ExponentialBuckets(0.02, 2, 12),
		}, []string{"class"}),
		prepareFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_slot_prepare_failures_total", Help: "Preparations of slots for a pool that did not succeed.",
		}, []string{"class"}),
		dead: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_slots_dead_total", Help: "Slots that were found dead in the pool, by what was dead: their init, or, seen by a check, their readiness or the freezer; of created ones, their namespaces.",
		}, []string{"class", "reason"}),
		checks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_slot_checks_total", Help: "Checks of old ready slots, by result (passed, failed, interrupted).",
		}, []string{"class", "result"}),
		deflation: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "hearth_slot_deflation_bytes", Help: "Memory of ready slots in use before and after they were deflated.", Buckets: prometheus.ExponentialBuckets(1<<20, 2, 14),
		}, []string{"class", "moment"}),
		releases: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hearth_release_seconds", Help: "Time to remove every trace of an environment.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 12),
		}),
		leaks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hearth_slot_removal_failures_total", Help: "Removals of a slot that left something and are tried again.",
		}),
		expired: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_environments_expired_total", Help: "Environments released because their time to live ended.",
		}, []string{"class"}),
		expiryFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hearth_environment_expiry_failures_total", Help: "Releases at the end of a time to live that did not succeed and are tried again.",
		}),
		idled: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_environments_idle_paused_total", Help: "Environments paused because they did nothing.",
		}, []string{"class"}),
		woken: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_environments_idle_resumed_total", Help: "Environments that were paused because they did nothing and went on when they were used.",
		}, []string{"class"}),
		wakeSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hearth_environment_idle_resume_seconds", Help: "Time from the first use of an idle environment until it runs.", Buckets: prometheus.ExponentialBuckets(0.00005, 2, 18),
		}),
		upgrades: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_environment_upgrades_total", Help: "Upgrades of environments to their class's newest revision, by result (done, undone, refused).",
		}, []string{"result"}),
		upgradeSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hearth_environment_upgrade_stopped_seconds", Help: "How long environments stood still for an upgrade that was done.", Buckets: prometheus.ExponentialBuckets(0.02, 2, 14),
		}),
	}
}

// know begins the series of a class, so that the first event is a rise.
func (m *Metrics) know(class string) {
	for _, c := range []*prometheus.CounterVec{m.expired, m.idled, m.woken} {
		c.WithLabelValues(class)
	}
	for _, result := range []string{upgradeDone, upgradeUndone, upgradeRefused} {
		m.upgrades.WithLabelValues(result)
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.claims, m.claimSeconds, m.phaseSeconds, m.waits, m.prepare, m.prepareFailures, m.dead, m.checks, m.deflation, m.releases, m.leaks,
		m.expired, m.expiryFailures, m.idled, m.woken, m.wakeSeconds, m.upgrades, m.upgradeSeconds}
}

func (m *Metrics) claim(class, kind string, laps []PhaseTime, total time.Duration) {
	if kind == ServedWarm {
		for _, lap := range laps {
			m.phaseSeconds.WithLabelValues(lap.Name).Observe(lap.Took.Seconds())
		}
	}
	m.claims.WithLabelValues(class, kind).Inc()
	m.claimSeconds.WithLabelValues(kind).Observe(total.Seconds())
}

// Describe implements prometheus.Collector.
func (n *Node) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range n.metrics.all() {
		c.Describe(ch)
	}
	ch <- slotsDesc
	ch <- waitingDesc
}

// Collect implements prometheus.Collector.
func (n *Node) Collect(ch chan<- prometheus.Metric) {
	for _, c := range n.metrics.all() {
		c.Collect(ch)
	}
	for _, p := range n.Pools() {
		ch <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(p.Waiting), p.Class)
		for state, count := range map[string]int{"ready": p.Ready, "preparing": p.Preparing, "created": p.Created, "claimed": p.Claimed, "wanted": p.Want} {
			ch <- prometheus.MustNewConstMetric(slotsDesc, prometheus.GaugeValue, float64(count), p.Class, state)
		}
	}
}

var waitingDesc = prometheus.NewDesc("hearth_claims_waiting", "Claims that stand in this node's line, by class.", []string{"class"}, nil)

var slotsDesc = prometheus.NewDesc("hearth_slots", "Slots on this node, by class and state.", []string{"class", "state"}, nil)
