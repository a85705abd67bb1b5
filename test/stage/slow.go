package stage

import (
	"os"
	"strconv"
	"time"
)

// Slow is how long something may take here that takes at most d on the reference
// machine: HEARTH_TEST_SLOW is how many times as slow this one is.
func Slow(d time.Duration) time.Duration {
	factor, err := strconv.Atoi(os.Getenv("HEARTH_TEST_SLOW"))
	if err != nil || factor < 1 {
		factor = 1
	}
	return d * time.Duration(factor)
}
