// Package guesttest starts a real envinit for tests: as pid 1 in namespaces of
// its own, with a root directory made of busybox. It is imported by tests only.
package guesttest
