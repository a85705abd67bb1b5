package detect

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the engine's. Labels are names of rules and classes, never of
// environments.
type metrics struct {
	engine *Engine

	detections, repeats, responses, events, drops, reloads *prometheus.CounterVec
	latency                                                prometheus.Histogram
	flows                                                  prometheus.Gauge

	sensorEvents, ruleErrors, ruleCount, evicted, unheard *prometheus.Desc
}

func newMetrics(e *Engine) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	return &metrics{
		engine:     e,
		detections: counter("hearth_detections_total", "Detections made: one for each rule, slot and window.", "rule", "severity", "class"),
		repeats:    counter("hearth_detection_repeats_total", "Findings that were counted with a detection made before.", "rule"),
		responses:  counter("hearth_detection_responses_total", "Responses by outcome (done, failed).", "response", "outcome"),
		events:     counter("hearth_detection_events_total", "Records read from the kernel.", "source"),
		drops:      counter("hearth_detection_drops_total", "What could not be used or told, by source and reason.", "source", "reason"),
		reloads:    counter("hearth_detection_reloads_total", "Reloads of the rules by outcome (done, refused).", "outcome"),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "hearth_detection_latency_seconds",
			Help:    "Time from the event in the kernel (a flow's first payload) to the detection.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5},
		}),
		flows: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "hearth_detection_flows", Help: "Flows whose beginning is being reassembled.",
		}),
		sensorEvents: prometheus.NewDesc("hearth_sensor_events_total",
			"Events of the sensors by fate: emitted, shed over a slot's budget, lost for want of room.",
			[]string{"sensor", "fate"}, nil),
		ruleErrors: prometheus.NewDesc("hearth_detection_rule_errors_total",
			"Evaluations of the rules in force that ended in an error.", []string{"rule"}, nil),
		ruleCount: prometheus.NewDesc("hearth_detection_rules", "Rules in force.", nil, nil),
		evicted: prometheus.NewDesc("hearth_detection_flows_evicted_total",
			"Flows given up for want of room before they were idle.", nil, nil),
		unheard: prometheus.NewDesc("hearth_detection_subscriber_drops_total",
			"Detections that a subscriber lost because it was behind.", nil, nil),
	}
}

func (m *metrics) parts() []prometheus.Collector {
	return []prometheus.Collector{m.detections, m.repeats, m.responses, m.events, m.drops, m.reloads, m.latency, m.flows}
}

// Describe implements prometheus.Collector.
func (e *Engine) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range e.metrics.parts() {
		c.Describe(ch)
	}
	ch <- e.metrics.sensorEvents
	ch <- e.metrics.ruleErrors
	ch <- e.metrics.ruleCount
	ch <- e.metrics.evicted
	ch <- e.metrics.unheard
}

// Collect implements prometheus.Collector. Counts of the sensors are as of the
// last tick.
func (e *Engine) Collect(ch chan<- prometheus.Metric) {
	m := e.metrics
	for _, c := range m.parts() {
		c.Collect(ch)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for i, f := range e.budget.totals() {
		count(m.sensorEvents, f.emitted, sensorNames[i], "emitted")
		count(m.sensorEvents, f.shed, sensorNames[i], "shed")
		count(m.sensorEvents, f.lost, sensorNames[i], "lost")
	}
	set := e.Rules().Rules()
	for _, r := range set {
		count(m.ruleErrors, r.Errors(), r.Name())
	}
	ch <- prometheus.MustNewConstMetric(m.ruleCount, prometheus.GaugeValue, float64(len(set)))
	count(m.evicted, e.evicted.Load())
	count(m.unheard, e.recent.dropped.Load())
}
