// Package nodeapi serves hearth.v1.NodeService: one node's environments, to
// root on the node's Unix socket and to the controller over mutual TLS, and to
// other nodes the snapshots that were granted to them. Fetcher is their side.
//
// It translates and nothing else: decisions are warm's, verdicts netpol's,
// findings detect's. Authorisation is the gate's that the handler is made with.
// It refuses to know a caller's tenant: that is the controller's knowledge.
package nodeapi
