package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/env"
	"hearth/internal/warm"
)

// ownMetrics are those that no part has by itself: what environments are in,
// what became of snapshots, and how the agent stands with its controller.
type ownMetrics struct {
	environments func() []warm.Environment
	certificate  func() (ends time.Time, there bool)
	connected    func() (yes, wanted bool)

	snapshots *prometheus.CounterVec
	freeze    prometheus.Histogram
}

var (
	environmentsDesc = prometheus.NewDesc("hearth_environments", "Environments on this node, by class and phase.", []string{"class", "phase"}, nil)
	certificateDesc  = prometheus.NewDesc("hearth_certificate_end_seconds", "When this process's certificate ends, in Unix time.", nil, nil)
	connectedDesc    = prometheus.NewDesc("hearth_controller_connected", "1 while the controller answers this agent's reports, else 0.", nil, nil)
)

// snapshot outcomes.
const (
	outcomeDone   = "done"
	outcomeFailed = "failed"
)

func newOwnMetrics() *ownMetrics {
	m := &ownMetrics{
		environments: func() []warm.Environment { return nil },
		certificate:  func() (time.Time, bool) { return time.Time{}, false },
		connected:    func() (bool, bool) { return false, false },
		snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_snapshots_total", Help: "Snapshots taken, by outcome: done, failed.",
		}, []string{"outcome"}),
		freeze: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hearth_snapshot_freeze_seconds", Help: "How long an environment stood still for a snapshot.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
	}
	// Both are there from the start, so that a first failure is an increase.
	m.snapshots.WithLabelValues(outcomeDone)
	m.snapshots.WithLabelValues(outcomeFailed)
	return m
}

// ofAgent makes the metrics read the parts of a; some come after the first scrape.
func (m *ownMetrics) ofAgent(a *agent) {
	m.environments = a.node.List
	m.certificate = func() (time.Time, bool) {
		if a.api == nil || a.api.front == nil {
			return time.Time{}, false
		}
		s := a.api.front.source.Load()
		if s == nil {
			return time.Time{}, false
		}
		return s.Current().Certificate.Leaf.NotAfter, true
	}
	m.connected = func() (bool, bool) {
		if a.api == nil || a.api.front == nil || a.api.front.link == nil {
			return false, a.cfg.Controller != nil
		}
		return a.api.front.link.Connected(), true
	}
}

// taken counts a snapshot.
func (m *ownMetrics) taken(s env.Snapshot, err error) {
	if err != nil {
		m.snapshots.WithLabelValues(outcomeFailed).Inc()
		return
	}
	m.snapshots.WithLabelValues(outcomeDone).Inc()
	m.freeze.Observe(s.Stats.Freeze.Seconds())
}

// Describe implements prometheus.Collector.
func (m *ownMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- environmentsDesc
	ch <- certificateDesc
	ch <- connectedDesc
	m.snapshots.Describe(ch)
	m.freeze.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *ownMetrics) Collect(ch chan<- prometheus.Metric) {
	type kind struct{ class, phase string }
	counts := map[kind]int{}
	for _, e := range m.environments() {
		counts[kind{e.Class, string(e.Phase)}]++
	}
	for k, n := range counts {
		ch <- prometheus.MustNewConstMetric(environmentsDesc, prometheus.GaugeValue, float64(n), k.class, k.phase)
	}
	if ends, there := m.certificate(); there {
		ch <- prometheus.MustNewConstMetric(certificateDesc, prometheus.GaugeValue, float64(ends.Unix()))
	}
	if yes, wanted := m.connected(); wanted {
		value := 0.0
		if yes {
			value = 1
		}
		ch <- prometheus.MustNewConstMetric(connectedDesc, prometheus.GaugeValue, value)
	}
	m.snapshots.Collect(ch)
	m.freeze.Collect(ch)
}
