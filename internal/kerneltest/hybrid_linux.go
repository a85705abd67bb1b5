package kerneltest

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// HideUnifiedControllers makes a machine with both versions of cgroups look, in this
// mount namespace and until the test ends, as if version 2 had no controllers of its
// own: crun refuses to work beside such as nobody uses. The namespace must be the
// tests' own. Elsewhere it does nothing.
func HideUnifiedControllers(t testing.TB) {
	t.Helper()
	const file = "/sys/fs/cgroup/unified/cgroup.controllers"
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return
	}
	if err := unix.Mount("/dev/null", file, "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("hide %s: %v", file, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(file, 0); err != nil {
			t.Errorf("show %s again: %v", file, err)
		}
	})
}
