// Package guest is the node's side of envinit, pid 1 of every environment: it
// dials the abstract socket inside the island's network namespace and speaks
// the protocol of guest/wire.
//
// Invariants:
//   - A connection is used only if the kernel says that its listener is the
//     slot's pid 1 (SO_PEERCRED); anything else is env.ErrDenied.
//   - What comes back is a stranger's bytes. Every frame is bounded, every
//     value checked, every text cut and stripped of control characters before
//     it enters an error. A peer that lies, hangs or never ends costs its
//     caller an error or its own time, never the agent's memory.
//   - No goroutine runs on behalf of a Client between or after calls: output
//     is read in the caller's goroutine, which is also the back-pressure.
//   - A context ends its operation at once, by closing the connection.
//
// It refuses to trust names, sizes and orders from inside, and to hold output
// for a caller who does not read.
package guest
