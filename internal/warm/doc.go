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
//   - The island is locked from before the first process until the claim, and
//     again before a release or a quarantine begins.
//   - Secret values (variables, metadata, tokens) are never in the journal.
//   - What is fenced, or held for a move, stays frozen and locked over restarts
//     until Unfence or Resume; a fenced node takes no claims.
//   - A changed class never empties its pool; environments keep the class that
//     they were made from.
//   - After Quiesce nothing begins, so that another process may take over.
//   - No more slots are prepared than the pools and the node's limit allow, and
//     never two at a time for the pools.
//
// It refuses to repair a slot: what is in doubt is destroyed and prepared anew.
package warm
