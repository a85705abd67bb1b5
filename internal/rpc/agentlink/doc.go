// Package agentlink is the agent's side of the fleet: it finds and joins a
// controller, keeps the agent's certificate on disk and fresh, reports the
// node's inventory, heartbeats, detections and, within 60 ms, changes of its pools,
// and keeps the node's lease.
//
// Whom to trust comes either from the hash in a join token, or from who the
// Finder says is the leader; every later contact is mutual TLS. The certificate
// is renewed at half of its life, and the file lets an agent restart while the
// controller is down. A controller with a lower epoch than one that was obeyed
// before is refused.
//
// The lease runs from the sending of the last answered report, on the clock
// that goes on while the machine sleeps. When it ends, Guard fences the node's
// environments, and tries until it has; the answer to an inventory unfences
// them. The lease outlives the agent, not a boot, which no environment outlives.
//
// Nothing else here stops the node's work: without a controller the agent goes
// on.
package agentlink
