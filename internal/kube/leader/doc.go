// Package leader finds the controller that leads, for agents: by the
// annotations of its Lease, read through the API server with the pod's own
// service account, or, while that one does not answer, as it was last known.
//
// It is apart from package kube so that the agent, which is privileged and runs
// on every node, does without client-go: it needs one GET.
//
// It refuses to watch: it is asked only while there is no connection.
package leader
