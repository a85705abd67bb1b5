// Package systemd has systemd keep the cgroup that a node's environments live
// in: a scope unit with Delegate=yes, below which nobody but the agent makes,
// limits or removes anything (systemd.io/CGROUP_DELEGATION, "i-like-continents").
//
// A scope is there as long as a process is in it, and slots come and go. So a
// keeper stays in its child "keeper": a process that does nothing, belongs to
// nobody and outlives the agent. Slots go into the child "slots", which the
// agent limits as a whole; the scope's own files are systemd's.
//
// Invariants:
//   - The scope's own cgroup holds no process, or controllers could not be
//     handed down below it (cgroups(7), no internal processes).
//   - A unit that is not ours is never touched, whatever its name.
//   - While slots live, a keeper that ended or a bus that does not answer ends
//     nothing: the cgroup goes on as it is, and Ensure gives it a keeper again.
//   - Ensure may be repeated, also after the agent died in the middle of it.
//   - The keeper holds no mount namespace but that of the node's init: an
//     agent's pod can be removed while it lives.
//
// The package refuses hybrid cgroups, where a unit has no one place, and to end
// a scope that has slots.
package systemd
