package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/rpc/pki"
)

// processMetrics registers what is told of this process rather than of the fleet:
// whether it leads, and when its certificate ends.
func processMetrics(reg prometheus.Registerer, leads func() bool, ends func() time.Time) {
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hearth_controller_leader", Help: "1 while this controller leads, else 0: it stands by.",
		}, func() float64 {
			if leads() {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "hearth_certificate_end_seconds", Help: "When this process's certificate ends, in Unix time.",
		}, func() float64 { return float64(ends().Unix()) }),
	)
}

// endOf is when a process's certificate ends.
func endOf(source *pki.Source) func() time.Time {
	return func() time.Time { return source.Current().Certificate.Leaf.NotAfter }
}
