// Command envinit is pid 1 in every environment. It reaps, starts the class's
// services, says when they are ready, and serves exec, files and connections
// to the node over one abstract socket (internal/guest/wire).
//
//	envinit         be pid 1
//	envinit hold    hold namespaces until standard input ends
//	envinit version print the protocol's versions
//
// Invariants:
//   - It listens before it starts anything, so that nothing inside can take
//     the name first.
//   - It serves only peers that the kernel shows as pid 0 with the overflow
//     uid: a process outside both namespaces, which is the node. Whatever runs
//     inside has a pid.
//   - Every child is waited for exactly once, by the reaper; adopted orphans too.
//   - Whatever a process wrote to its pipes or its terminal before its end is
//     delivered before its exit. We hold the process's side of a terminal open
//     until then, so that it has an end only when we say so.
//   - What a process left in the background delays nothing: an exec ends when
//     its process does.
//   - A node that goes away ends no process.
//   - Logs, buffers and waiting are bounded, whatever a service writes.
//
// It refuses to be large: no package net, no logging library, few goroutines,
// a small heap. It holds no secret of the node: it is inside the hostile
// domain, and everything it says is checked again outside.
package main
