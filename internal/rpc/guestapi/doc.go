// Package guestapi serves what an environment's owner does inside it: the
// Connect handler of hearth.v1.GuestService, and HTTP ports at
// /ports/<environment>/<port>/… (upgrades such as WebSocket included).
//
// Invariants:
//   - Every request is authorised before its body is read, by the bearer token
//     and the environment that it names; a handler without an authorised
//     session refuses (the gate was not wired).
//   - The token never reaches the environment.
//   - Only ports that the class lists are reached.
//   - A caller who goes away hangs up on its processes (SIGHUP); an agent that
//     stops only lets go of them (Detach).
//   - Every goroutine of a call has ended when the call has.
//   - No environment has more than maxCalls calls under way.
//
// A process, a file call or a connection to a listed port wakes what sleeps
// because it did nothing, and keeps it awake until it ends; a port that is not
// listed wakes nothing. It refuses what its owner has paused. Errors are wrapped
// sentinels of internal/env; internal/rpc maps them.
package guestapi
