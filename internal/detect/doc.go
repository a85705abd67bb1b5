// Package detect finds abuse in environments and answers it.
//
// Sensors in the kernel (bpf/sensors.c) report execs and TCP connects of
// environments; the island program (bpf/island.c) reports the first bytes of
// every flow at the veth. Records become typed events, events meet rules
// (package rules), a match becomes an env.Detection, and the class's policy
// says what is done about it: record, alert or freeze.
//
//	veth ─ payloads ─▶ decode ─▶ reassemble (package flow) ─▶ rules ─▶ findings
//	exec, connect ─ sensors ─▶ decode ──────────────────────▶ rules ─▶ findings
//	findings ─▶ one per slot and rule in a window ─▶ owner, policy ─▶ response
//	response ─▶ event line, recent, subscribers, metrics
//
// Invariants:
//   - Everything in a record that an environment can choose is bounded before
//     it is read; no input makes the engine fail or grow without bound.
//   - A flow is attributed by the veth (net id), its owner by the cgroup. When
//     the two name different environments the finding says so, and no response
//     stronger than an alert follows: never on a guess.
//   - An environment that floods loses its own events only, and what was shed
//     is counted exactly and is itself a finding.
//   - A rule set takes effect as a whole, after its own fixtures have passed.
//     A bad one changes nothing and says why.
//   - One slot and one rule make one detection in a window, whatever their
//     number; the detection carries the count.
//
// It refuses to judge by port, address or process name in the rules it ships.
// It does not see into TLS, nor past the first 2 KiB of a flow's direction.
//
// A restart of the agent: the sensors are not pinned, so execs and connects
// during the gap are not seen. The payloads' ring belongs to the island and is
// pinned: flows that began in the gap are judged when the agent is back. For a
// socket that was connected before, the process is found by walking the open
// files (an eBPF iterator) at the time of the detection.
package detect
