package kerneltest

import (
	"os"
	"testing"
)

// A Feature is something that a test needs from the machine.
type Feature struct {
	Name string
	// probe returns "" or the reason why the machine lacks it.
	probe func() string
}

// Require skips the test unless it runs as root and every feature is there. The
// line is always `kerneltest: skip: <feature>: <reason>`, so that the skips of a
// run can be compared with a checked-in list.
func Require(t testing.TB, features ...Feature) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("kerneltest: skip: root: run the test as root")
	}
	for _, f := range features {
		if reason := f.probe(); reason != "" {
			t.Skipf("kerneltest: skip: %s: %s", f.Name, reason)
		}
	}
}
