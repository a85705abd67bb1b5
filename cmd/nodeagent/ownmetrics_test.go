package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"hearth/internal/env"
	"hearth/internal/warm"
)

func TestOwnMetricsTellEnvironmentsSnapshotsAndController(t *testing.T) {
	m := newOwnMetrics()
	m.environments = func() []warm.Environment {
		return []warm.Environment{{Class: "web", Phase: env.PhaseRunning}, {Class: "web", Phase: env.PhaseRunning}, {Class: "web", Phase: env.PhaseQuarantined}}
	}
	m.certificate = func() (time.Time, bool) { return time.Unix(1700000000, 0), true }
	m.connected = func() (bool, bool) { return false, true }
	m.taken(env.Snapshot{}, errors.New("disk full"))
	want := `
# HELP hearth_certificate_end_seconds When this process's certificate ends, in Unix time.
# TYPE hearth_certificate_end_seconds gauge
hearth_certificate_end_seconds 1.7e+09
# HELP hearth_controller_connected 1 while the controller answers this agent's reports, else 0.
# TYPE hearth_controller_connected gauge
hearth_controller_connected 0
# HELP hearth_environments Environments on this node, by class and phase.
# TYPE hearth_environments gauge
hearth_environments{class="web",phase="quarantined"} 1
hearth_environments{class="web",phase="running"} 2
# HELP hearth_snapshots_total Snapshots taken, by outcome: done, failed.
# TYPE hearth_snapshots_total counter
hearth_snapshots_total{outcome="done"} 0
hearth_snapshots_total{outcome="failed"} 1
`
	names := []string{"hearth_environments", "hearth_controller_connected", "hearth_snapshots_total", "hearth_certificate_end_seconds"}
	if err := testutil.CollectAndCompare(m, strings.NewReader(want), names...); err != nil {
		t.Error(err)
	}
}

func TestMetricsOfAnAgentAloneSayNothingOfAController(t *testing.T) {
	m := newOwnMetrics()
	if n := testutil.CollectAndCount(m, "hearth_controller_connected", "hearth_certificate_end_seconds"); n != 0 {
		t.Errorf("%d series", n)
	}
}
