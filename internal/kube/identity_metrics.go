package kube

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"hearth/internal/env"
)

// IdentityMetrics counts how callers were told apart.
type IdentityMetrics struct {
	tokens   *prometheus.CounterVec
	accesses *prometheus.CounterVec
}

// NewIdentityMetrics registers hearth_kube_tokens_total{result} and
// hearth_kube_access_total{result}. Make one a process.
func NewIdentityMetrics(reg prometheus.Registerer) *IdentityMetrics {
	m := &IdentityMetrics{
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_kube_tokens_total",
			Help: "Service account tokens of callers, by result.",
		}, []string{"result"}),
		accesses: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "hearth_kube_access_total",
			Help: "Questions whether a service account may do something, by result.",
		}, []string{"result"}),
	}
	reg.MustRegister(m.tokens, m.accesses)
	return m
}

func (m *IdentityMetrics) token(err error) {
	result := "accepted"
	switch {
	case errors.Is(err, env.ErrUnavailable):
		result = "unavailable"
	case err != nil:
		result = "denied"
	}
	m.tokens.WithLabelValues(result).Inc()
}

func (m *IdentityMetrics) access(result string) { m.accesses.WithLabelValues(result).Inc() }
