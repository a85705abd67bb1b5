package disk

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	stalls   *prometheus.CounterVec
	failures prometheus.Counter
}

var (
	availableDesc = prometheus.NewDesc("hearth_disk_available_ratio",
		"Available part of each filesystem that environments write to, by resource: bytes, inodes.", []string{"path", "resource"}, nil)
	lowDesc = prometheus.NewDesc("hearth_disk_low",
		"1 while a filesystem has less available than is kept free, and environments that write are stalled; else 0.", []string{"path", "resource"}, nil)
)

func newMetrics() *metrics {
	return &metrics{
		stalls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_disk_stalls_total", Help: "Times that a slot was frozen because it wrote while a disk was short.",
		}, []string{"class"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "hearth_disk_failures_total", Help: "Times that a disk could not be looked at, or a slot not be stalled or let go on.",
		}),
	}
}

// Describe implements prometheus.Collector.
func (g *Guard) Describe(ch chan<- *prometheus.Desc) {
	ch <- availableDesc
	ch <- lowDesc
	g.metrics.stalls.Describe(ch)
	g.metrics.failures.Describe(ch)
}

// Collect implements prometheus.Collector.
func (g *Guard) Collect(ch chan<- prometheus.Metric) {
	levels, short := g.seen()
	for _, l := range levels {
		low := 0.0
		if short[shortKey{l.path, l.resource}] {
			low = 1
		}
		ch <- prometheus.MustNewConstMetric(availableDesc, prometheus.GaugeValue, l.ratio(), l.path, l.resource.String())
		ch <- prometheus.MustNewConstMetric(lowDesc, prometheus.GaugeValue, low, l.path, l.resource.String())
	}
	g.metrics.stalls.Collect(ch)
	g.metrics.failures.Collect(ch)
}
