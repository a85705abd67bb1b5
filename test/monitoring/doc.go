// Package monitoring reads the alerts and the dashboard that users apply
// (deploy/prometheus, deploy/grafana) and says which metrics they need, so that
// they can be held against what the programs export: in its own tests against
// docs/metrics.md, which is held against the code, and on a real cluster against
// what a Prometheus has scraped.
//
// It refuses to understand PromQL: promtool does that. It finds names and label
// matchers, which is enough since all names of ours begin with hearth_.
package monitoring
