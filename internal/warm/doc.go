// Package warm owns the life of slots and environments on one node.
//
// A slot is prepared (snapshot, island, cgroup, container, services, readiness)
// and frozen; a claim personalises and thaws it; a release removes every trace.
// The Node performs this on real parts, which it sees only through the small
// interfaces of parts.go; the decisions (what to refill, what a journal means,
// what a restart must undo) are pure functions beside it.
//
// Invariants:
//   - A slot is claimed at most once. A slot whose identity was touched is
//     destroyed on failure, never returned to its pool.
//   - A claim is in the journal as claiming before anything of the slot is
//     touched, and as running before it is answered. After a crash, one that is
//     still claiming was never answered and is undone.
//   - The journal is written before the freezer, so that a restart completes
//     what was intended.
//   - The journal says of an environment's memory limit never less than the kernel,
//     so that memory is not promised twice, whenever the agent dies.
//   - The island is locked from before the first process until the claim, and
//     again before a release or a quarantine begins.
//   - Secret values (variables, metadata, tokens) are never in the journal.
//   - What is fenced, or held for a move, stays frozen and locked over restarts
//     until Unfence or Resume; a fenced node takes no claims.
//   - An end is decided by CLOCK_BOOTTIME, an extension that was answered is on
//     disk. What may run elsewhere (held, fenced) or is evidence (quarantined)
//     is not released because its time came.
//   - Only a pause for idleness is undone by use. Who uses an environment is
//     counted before its phase is looked at, so that nobody is left frozen.
//   - A changed class never empties its pool; environments keep the class that
//     they were made from, until Upgrade. One record of the journal moves an
//     environment from one slot to another: before it the one lives, after it the
//     other, over a crash too, and never both.
//   - A slot that was filled for an environment is no pool's, over a crash too.
//   - Claims that find no ready slot are served in the order in which they came, and
//     while they wait their pool is empty. What waits is in memory only.
//   - No more slots are made for claims at once than Config allows.
//   - In a created slot nothing is mounted and nothing has run. It ends with the agent.
//   - A ready slot that is checked or deflated is in no pool meanwhile. A claim
//     that finds no other ends that, and takes it frozen.
//   - From before its identity is written until its end nothing of a slot may go
//     to swap, unless its class lets it swap.
//   - After Quiesce nothing begins, so that another process may take over.
//   - No more slots are prepared than the pools and the node's limit allow, and
//     never two at a time for the pools.
//
// It refuses to repair a slot: what is in doubt is destroyed and prepared anew.
package warm
