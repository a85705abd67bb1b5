package fleet

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	hearthv1 "hearth/api/hearth/v1"
)

// nodeMetrics are those of nodes and of what the controller does about them.
type nodeMetrics struct {
	nodeStates  *prometheus.GaugeVec
	phases      *prometheus.GaugeVec
	moves       *prometheus.CounterVec
	moveSeconds prometheus.Histogram
	pushes      *prometheus.CounterVec
}

func newNodeMetrics(reg prometheus.Registerer) nodeMetrics {
	m := nodeMetrics{
		nodeStates: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hearth_fleet_nodes", Help: "Nodes that were seen, by state: ready, cordoned, draining, silent.",
		}, []string{"state"}),
		phases: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "hearth_fleet_environments", Help: "Environments that are remembered, by phase as last known.",
		}, []string{"phase"}),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_fleet_moves_total", Help: "Moves of environments to other nodes that ended, by outcome: moved, failed (it stays where it was).",
		}, []string{"outcome"}),
		moveSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "hearth_fleet_move_seconds", Help: "Time from taking up a move to the environment's running at its target.",
			Buckets: []float64{.1, .2, .5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 900},
		}),
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_fleet_node_settings_total", Help: "Classes and budgets given to nodes, by outcome: done, refused, unanswered.",
		}, []string{"outcome"}),
	}
	for _, outcome := range []string{"moved", "failed"} {
		m.moves.WithLabelValues(outcome) // there from the start, at 0
	}
	reg.MustRegister(m.nodeStates, m.phases, m.moves, m.moveSeconds, m.pushes)
	return m
}

// counted sets the gauges of nodes by state and environments by phase.
func (m *nodeMetrics) counted(states map[string]int, phases map[hearthv1.Phase]int) {
	for _, s := range []string{"ready", "cordoned", "draining", "silent"} {
		m.nodeStates.WithLabelValues(s).Set(float64(states[s]))
	}
	for wire, word := range phaseWord {
		m.phases.WithLabelValues(string(word)).Set(float64(phases[wire]))
	}
}

func (m *nodeMetrics) moved(outcome string, took time.Duration) {
	m.moves.WithLabelValues(outcome).Inc()
	if took > 0 {
		m.moveSeconds.Observe(took.Seconds())
	}
}

func (m *nodeMetrics) pushed(err error) { m.pushes.WithLabelValues(pushOutcome(err)).Inc() }
