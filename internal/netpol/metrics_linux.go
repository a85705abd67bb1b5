package netpol

import (
	"github.com/prometheus/client_golang/prometheus"

	"hearth/bpf"
	"hearth/internal/env"
)

// collector reads the kernel at each scrape. Labels are reasons, never islands.
type collector struct {
	m                                               *Manager
	drops, packets, bytes, flows, payloads, islands *prometheus.Desc
	strays, wall, dns, unjudged, failures           *prometheus.Desc
}

// Collector is the island's part of /metrics; the caller registers it.
func (m *Manager) Collector() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("hearth_island_"+name, help, labels, nil)
	}
	return &collector{
		m:        m,
		drops:    desc("drops_total", "Packets refused, by direction and reason.", "direction", "reason"),
		packets:  desc("packets_total", "Packets allowed, by direction.", "direction"),
		bytes:    desc("bytes_total", "Bytes of allowed packets from the IP header on, by direction.", "direction"),
		flows:    desc("flows_total", "Flows opened."),
		payloads: desc("payload_records_total", "Payload records, by outcome: sent, shed by an island's own rate, lost for want of room.", "outcome"),
		islands:  desc("islands", "Islands on this node."),
		strays:   desc("stray_packets_total", "Packets refused on a link without an island record."),
		wall:     desc("wall_drops_total", "Packets refused behind NAT, since the wall was last built.", "cause"),
		dns:      desc("dns_total", "Resolver's work, by outcome.", "outcome"),
		unjudged: desc("unjudged_packets_total", "Packets that passed because an island was opened for a test."),
		failures: desc("scrape_failures", "Sources that this scrape could not read."),
	}
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.drops, c.packets, c.bytes, c.flows, c.payloads, c.islands, c.strays, c.wall, c.dns, c.unjudged, c.failures} {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	sum, islands, failures := c.m.sum()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for i, r := range env.Reasons {
		counter(c.drops, sum.out[i+1], "out", string(r))
		counter(c.drops, sum.in[i+1], "in", string(r))
	}
	counter(c.packets, sum.out[0], "out")
	counter(c.packets, sum.in[0], "in")
	counter(c.bytes, sum.bytesOut, "out")
	counter(c.bytes, sum.bytesIn, "in")
	counter(c.flows, sum.flows)
	counter(c.payloads, sum.payloads, "sent")
	counter(c.payloads, sum.shed, "shed")
	counter(c.payloads, sum.lost, "lost")
	counter(c.unjudged, sum.unjudged)
	if n, err := c.m.strays(); err == nil {
		counter(c.strays, n)
	} else {
		failures++
	}
	if drops, err := c.m.wall.counters(); err == nil {
		for cause, n := range drops {
			counter(c.wall, n, cause)
		}
	} else {
		failures++
	}
	d := &c.m.dns
	counter(c.dns, d.questions.Load(), "question")
	counter(c.dns, d.answered.Load(), "answered")
	counter(c.dns, d.refused.Load(), "refused")
	counter(c.dns, d.failed.Load(), "failed")
	counter(c.dns, d.stripped.Load(), "record_stripped")
	counter(c.dns, d.shed.Load(), "shed")
	ch <- prometheus.MustNewConstMetric(c.islands, prometheus.GaugeValue, float64(islands))
	ch <- prometheus.MustNewConstMetric(c.failures, prometheus.GaugeValue, float64(failures))
}

// sum adds up all islands, those that are gone included. Holding mu keeps an
// island from being counted twice, or not at all, while it goes.
func (m *Manager) sum() (t totals, islands, failures int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t = m.retired
	for _, is := range m.islands {
		var st bpf.IslandIslandStats
		if m.kernel.Stats.Lookup(uint32(is.netID), &st) != nil {
			failures++
			continue
		}
		t.add(&st)
	}
	return t, len(m.islands), failures
}

// strays sums over processors and directions.
func (m *Manager) strays() (uint64, error) {
	var sum uint64
	for way := range uint32(2) {
		var each []uint64
		if err := m.kernel.Strays.Lookup(way, &each); err != nil {
			return 0, err
		}
		for _, n := range each {
			sum += n
		}
	}
	return sum, nil
}
