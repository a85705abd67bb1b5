// Package lifecycle starts and stops a daemon's parts in order.
//
// Invariants: parts start one after the other in the order in which they were
// added, and stop in the reverse order on a fresh context with a deadline, never
// on the one whose end caused the stop. The first part that fails ends the
// group: a dead part never leaves the process up. Run returns only when every
// goroutine that it started has ended or the deadline has passed, which it
// then says by the part's name.
//
// A group can retire before it stops, because a successor takes over: parts that
// know how to retire do so and linger until the stop, all others stop at once.
//
// It refuses to restart a part: what needs a restart does it within itself.
package lifecycle
