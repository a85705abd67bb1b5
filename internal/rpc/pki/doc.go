// Package pki is Hearth's certificate authority: who a process is, proved by a
// certificate, and how an agent gets its first one.
//
// An identity is an instance, a role and a name, in one URI subject alternative
// name "hearth://<instance>/<role>/<name>" and in the DNS name of ServerName.
// Keys are ECDSA P-256. Leaf certificates live days and are replaced at half of
// their life; the CA lives ten years.
//
// Invariants: the authority signs only what its caller has decided, never a
// name, role or usage that a request asks for; names below ReservedDomain are
// the authority's alone. Private keys are files of mode 0600, and leave the
// process in no other way. Secrets are compared by their hashes in constant
// time and stored as hashes.
//
// It refuses to revoke: a node that must lose access is refused by name in
// internal/fleet, and its certificate ends within days.
package pki
