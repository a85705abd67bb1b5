package agentlink

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sinceBoot is CLOCK_BOOTTIME (clock_gettime(2)): it goes on while the machine
// sleeps, and nobody sets it.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	// It fails for a bad address or a clock that does not exist, which Linux
	// has had since 2.6.39.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return time.Duration(ts.Nano())
}

// bootID names the running boot of this kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
