// Package fleet is the controller's domain: which environments shall exist, on
// which node each of them is, and what the nodes say about it.
//
// Desired state lives in a Store, written before it is acted on; what is observed
// is written behind, and comes back with the agents' full inventories anyway. So
// the controller can be killed at any moment:
//
//   - A claim is stored before its node is asked, in one write, which is all that
//     it waits for. That it runs is written behind. Its answer is stored nowhere,
//     since it holds a token: repeating the idempotency key returns it from memory
//     for 24 hours, unless more came since than Config allows, and after that, and
//     after a restart, the record that knows the key leads to the node, which
//     answers the same claim as it did before. If it no longer can, the answer has
//     a new token.
//   - After a crash nobody knows whether a claim that was stored was answered. If
//     its node shows the environment it is kept; nothing else is made in its place
//     while the node is silent and may run it; if the node does not have it, it is
//     failed.
//   - A Save that may or may not have been carried out is made sure of before
//     anything that follows from it, and its generation is not used twice.
//   - A node that did not answer may have claimed all the same. The next
//     placement then has the next generation on another node, and the earlier one
//     is remembered as stale until its node has confirmed that it is gone. A node
//     on which a stale one is remembered gets no other generation of it.
//   - A fork's children are of one attempt and stored one by one, all before the
//     node is asked. A silent node is asked again for the same ones; after an error
//     of the node they are ended, and repeating the key makes others.
//   - Ephemeral environments are given to no Store. Their nodes keep the key's
//     digest with them; shortly after a start a claim of an ephemeral class, and a
//     call about an environment that is not known, wait for nodes to report. Only a
//     node can forget one, so that a release which its node does not answer is
//     promised to nobody.
//   - Writes about one record follow each other (lanes.go), those about different
//     records pass each other. A Store that does not answer stops durable claims
//     and releases, and nothing else.
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
// Moves (moveplan.go) and partitions (partition.go) keep two generations of an
// environment from running at once, whoever dies or is silent: a target is asked
// only while the source holds the environment frozen, and the source goes on only
// when the target has nothing, or has been silent for so long that it has frozen
// itself what it has.
//
// A node refuses a release as fenced only if it holds a later generation than the
// one that is named; for the same or a later one it releases what it holds.
// Releases may capture, for minutes: callers and the sweep give the same key for
// one generation, and the sweep waits for none.
//
// An environment may be for an object that somebody else makes and deletes, and
// that the Store knows: ClaimFor and End are its beginning and its end, and may be
// repeated at any time.
//
// Whose a snapshot is its node knows, also when the environment is long forgotten.
//
// What a caller gives is bounded before anything is stored (bounds.go).
//
// A tenant sees its own environments only; another's are not found.
//
// The package refuses to know certificates, sockets or keys' transport: callers
// come as a Principal, nodes as generated clients.
package fleet
