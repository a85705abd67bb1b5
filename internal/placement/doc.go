// Package placement decides on which node an environment goes. It is pure: what
// is known of the nodes goes in, a decision with its reasons comes out. There is
// no clock, no I/O and no randomness: the same index and request give the same
// decision, whatever the order in which the nodes were set.
//
// A node is a candidate if it knows the class, is placeable, is not excluded by
// the request and has a ready slot of the class, room for a cold one, or a slot of
// the class that is being prepared. Among candidates a ready slot wins over
// everything, and room over a slot that is not ready yet; then the fuller node
// (packing: agents wait for their model most of the time), less a malus per claim
// that is on its way there or waits there; then the lower name.
//
// It refuses to reserve across requests by itself: whoever sends a claim says so
// with Begin and End, since only they know what became of it.
package placement
