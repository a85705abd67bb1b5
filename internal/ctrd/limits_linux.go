package ctrd

import "golang.org/x/sys/unix"

// hostLimits reads what this process may hand on: a hard limit cannot be
// raised without CAP_SYS_RESOURCE.
func hostLimits() limits {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return limits{noFile: 1024}
	}
	return limits{noFile: r.Max}
}
