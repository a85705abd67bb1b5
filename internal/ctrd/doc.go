// Package ctrd is the adapter to containerd: images, snapshots, containers and
// their tasks. It is the only package that imports containerd.
//
// A slot's container has the slot's id as its own. Its user and network
// namespaces are made by the caller and joined by path; every other namespace
// is its own. Its root file system is an overlay snapshot whose layers are
// idmapped by containerd; the snapshot is prepared unmounted, so that a restore
// may fill its upper directory first.
//
// Invariants:
//   - Everything that a slot owns in containerd hangs on one lease, named after
//     the slot: an agent that dies between two calls leaves nothing that Delete
//     does not find.
//   - Delete may be called at every stage and repeated.
//   - Two instances may share a namespace: each lists only what has its label.
//   - A managed containerd outlives the agent: it is stopped by StopManaged only.
//     It is found by its socket and its command line, started by one process at
//     a time, and its log is bounded.
//
// The package refuses to write below a mounted overlay, to freeze by way of
// containerd (cgroups does that), and to start a container that shares a
// namespace with the host.
package ctrd
