// Package fleet is the controller's domain: which environments shall exist, on
// which node each of them is, and what the nodes say about it.
//
// Desired state lives in a Store, written before it is acted on; the nodes'
// state lives in memory only and comes back with the agents' full inventories.
// So the controller can be killed at any moment:
//
//   - A claim is stored before it is placed, and its answer before it is given.
//     Repeating the idempotency key within 24 hours returns that answer, unless
//     more answers than Config allows came since: the oldest go first. After a
//     crash in between it continues the same claim at the same node with the
//     same generation, which the node answers as it did before.
//   - A node that did not answer may have claimed all the same. The next
//     placement then has the next generation on another node, and the earlier one
//     is remembered as stale until its node has confirmed that it is gone. A node
//     on which a stale one is remembered gets no other generation of it.
//   - A fork's children are of one attempt: a silent node is asked again for the
//     same ones; after an error of the node they are ended, and repeating the key
//     makes others.
//   - What the controller has ended stays ended: whatever a node shows of it
//     later is released, never adopted.
//
// Reconciliation with a node's inventory follows rules (reconcile.go): a higher
// generation than the stored one is believed; a lower one, or one that is stored
// as being elsewhere, is released; one that nobody knows is adopted under the
// tenant that the node names, since releasing it would lose work; one that is
// stored as living there and is missing is failed, but only after the node has
// said so again when asked, since a claim may have crossed the inventory.
//
// A node refuses a release as fenced only if it holds a later generation than the
// one that is named; for the same or a later one it releases what it holds.
// Releases may capture, for minutes: callers and the sweep give the same key for
// one generation, and the sweep waits for none.
//
// What a caller gives is bounded before anything is stored (bounds.go).
//
// A tenant sees its own environments only; another's are not found.
//
// The package refuses to know certificates, sockets or keys' transport: callers
// come as a Principal, nodes as generated clients.
package fleet
