// Package archtest states who may import whom, and fails the build when the
// code says otherwise.
//
// policy.go is the table: layers, fences around libraries, and the rules about
// files. It is a statement of policy. A change that breaks it is mended in the
// code; the table changes only when the architecture does, and
// ARCHITECTURE.md with it. The package has no importers and ships nowhere.
package archtest
