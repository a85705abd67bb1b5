// Package obs makes what a daemon shows of itself: its logger, its registry of
// metrics and the HTTP handler of /metrics, /healthz and /readyz.
//
// It holds no state of its own and starts nothing: logger and registry are
// passed on as values, never found in a global.
package obs
