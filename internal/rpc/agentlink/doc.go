// Package agentlink is the agent's side of the fleet: it joins a controller,
// keeps the agent's certificate on disk and fresh, and reports the node's
// inventory, heartbeats and detections.
//
// The first contact pins the authority by the hash in the join token; every
// later one is mutual TLS. The certificate is renewed at half of its life, and
// the file lets an agent restart while the controller is down. A controller with
// a lower epoch than one that was obeyed before is refused.
//
// Nothing here stops the node's work: without a controller the agent goes on.
package agentlink
