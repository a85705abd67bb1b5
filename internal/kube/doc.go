// Package kube is the controller's side of Kubernetes: the only importer of
// client-go.
//
// It stores the fleet's desired state in objects (Store), elects the one
// controller that acts (Client.Lead), carries what people write into objects to
// the fleet and what the fleet knows back into their status (Classes,
// Environments, Nodes), reports what happened as events (Events), keeps the
// nodes' books by hold pods (Holds), and answers the question whether a node may
// be drained (DrainHandler).
//
// Invariants:
//
//   - The claim path reads nothing from the API server and writes once: a claim
//     through the API creates one Environment, a claim for an object patches its
//     placement.
//   - What is decided is in metadata and spec, and is written before it is acted
//     on; what is observed is in status, and is written behind it, coalesced per
//     object. No secret of a claim is written anywhere.
//   - No write names a resourceVersion: placements are applied by one field
//     manager, bound to the object's UID, so that an object that was deleted and
//     made anew is never mistaken for the one before. The exception is the Secret
//     with the epoch, whose two writers must see each other.
//   - Everything here goes on while the API server does not answer, and catches
//     up when it does. Only a Save fails then, with env.ErrUnavailable.
//   - A leader whose lease may have ended writes no Environment and raises no epoch
//     until it has renewed it: another one may have decided otherwise. See
//     Leadership.Sure.
//   - What a tenant writes into objects of its namespace by hand harms nobody else's,
//     and keeps no environment from its end.
//   - An informer's view is late by nature. Nothing is ended because it is not in
//     one; a deletion counts when it was seen, or read anew.
//
// It refuses to know nodes' APIs and pools: those are internal/fleet's.
package kube
