// Package preflight finds out what this node can do, tier by tier, and says it
// as values: one row per feature with its state, what was seen and the mend.
//
// Every probe really tries what it names, within a bound of time, and leaves
// nothing behind. A probe that cannot tell says so; it never guesses "ok".
package preflight
