package warm

import (
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
