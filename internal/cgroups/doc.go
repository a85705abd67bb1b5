// Package cgroups owns the control groups of a node's slots: their ids, limits,
// usage, freezing, killing and removal.
//
// Every slot has a cgroup of our own, <root>/<slot>, whose child "ctr" holds
// the container. containerd and runc know only the child; freezing and thawing
// is done on the parent, in tens of microseconds, without them.
//
// Two layouts are served. unified is pure cgroup v2, as production has it.
// hybrid has v1 controllers beside a cgroup2 mount that holds only the core
// files: limits go to the v1 controllers, freeze, kill and ids to cgroup2.
//
// Invariants:
//   - A Group holds the descriptors that freezing needs; Freeze, Thaw and
//     Frozen open nothing and allocate nothing.
//   - Names below a slot are chosen by a hostile environment. They are walked
//     by descriptor, one component at a time, never by joined path, without
//     following links, and with a bound on depth.
//   - SetLimits changes all that it is asked for or nothing, and kills nothing.
//   - Create makes a slot's cgroup in every hierarchy or in none; Remove may
//     be repeated after any failure.
//   - Our root may be in a cgroup that somebody else has made and shares out: then
//     nothing above our root is written, but through that parent.
//
// The package refuses to touch any cgroup outside its root, and never removes
// a slot's cgroup that still has a process which cannot be killed: it says so.
package cgroups
