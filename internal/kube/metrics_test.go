package kube

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/obs/obstest"
)

func TestStoreMetricsAreDocumented(t *testing.T) {
	reg := prometheus.NewRegistry()
	NewStoreMetrics(reg).wrote(writeSave, nil)
	obstest.Documented(t, reg, "../../docs/metrics.md", "State in a cluster")
}
