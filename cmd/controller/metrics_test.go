package main

import (
	"testing"

	"hearth/internal/fleet"
	"hearth/internal/obs"
	"hearth/internal/obs/obstest"
	"hearth/internal/rpc"
)

func TestEveryMetricIsDocumented(t *testing.T) {
	reg := obs.NewRegistry(version)
	fleet.NewMetrics(reg)
	rpc.NewMetrics(reg)
	obstest.Documented(t, reg, "../../docs/metrics.md", "The controller")
}
