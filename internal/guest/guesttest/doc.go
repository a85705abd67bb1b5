// Package guesttest starts a real envinit for tests: as pid 1 in namespaces of
// its own, with a root directory made of busybox. It is imported by tests only.
//
// It builds envinit with the go command, unless HEARTH_TEST_PREBUILT names a
// directory that has it. HEARTH_SLOW_MACHINE says that the machine is emulated.
package guesttest
