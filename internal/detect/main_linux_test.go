package detect

import (
	"os"
	"testing"

	"hearth/internal/kerneltest"
)

// TestMain lets the test binary play processes of an environment: children
// that kernel tests start inside a cgroup and a network namespace.
func TestMain(m *testing.M) {
	if role := os.Getenv("DETECT_TEST_ROLE"); role != "" {
		os.Exit(playRole(role, os.Args[1:]))
	}
	kerneltest.Main(m)
}
