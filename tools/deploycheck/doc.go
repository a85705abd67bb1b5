// Package deploycheck holds what platform engineers apply, rendered as kubectl
// renders it, against our rules for it and against what docs/security.md says:
// every host path, capability and right has its row and its reason there, and
// no row is about something that is gone. It has tests only.
package deploycheck
