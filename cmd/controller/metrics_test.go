package main

import (
	"testing"
	"time"

	"hearth/internal/fleet"
	"hearth/internal/obs"
	"hearth/internal/obs/obstest"
	"hearth/internal/rpc"
)

func TestEveryMetricIsDocumented(t *testing.T) {
	reg := obs.NewRegistry(version)
	fleet.NewMetrics(reg)
	rpc.NewMetrics(reg)
	processMetrics(reg, func() bool { return true }, time.Now)
	obstest.Documented(t, reg, "../../docs/metrics.md", "The controller")
}
