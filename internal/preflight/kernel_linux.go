package preflight

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func kernelVersion() result {
	const mend = "boot Linux 6.1 or newer"
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return no(err, mend)
	}
	release := unix.ByteSliceToString(u.Release[:])
	v, err := findVersion(release)
	if err != nil {
		return no(err, mend)
	}
	if !v.atLeast(6, 1) {
		return no(fmt.Errorf("Linux %s", release), mend)
	}
	return yes(release)
}

func haveOpenat2() result {
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err == nil {
		err = unix.Close(fd)
	}
	return orMissing(err, "boot Linux 5.6 or newer; a seccomp profile around the agent must allow openat2")
}

func havePidfd() result {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return orMissing(err, "boot Linux 5.3 or newer")
}

func haveSeccomp() result {
	b, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err == nil && !strings.Contains(string(b), "errno") {
		err = fmt.Errorf("the kernel's actions are %s", strings.TrimSpace(string(b)))
	}
	return orMissing(err, "build the kernel with CONFIG_SECCOMP_FILTER")
}

// haveUserNamespaces makes a user and a network namespace with the pool's ids
// in a child whose program does not exist: that very error says that all
// before it worked, and nothing runs.
func haveUserNamespaces(in Input) result {
	const mend = "raise user.max_user_namespaces and user.max_net_namespaces; run as root"
	base := int(in.IDBase)
	if base == 0 {
		base = 1 << 30
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 65536}}
	_, err := syscall.ForkExec("/nonexistent/program", nil, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	}})
	if !errors.Is(err, syscall.ENOENT) {
		return no(fmt.Errorf("make user and network namespace: %w", err), mend)
	}
	limit, _ := os.ReadFile("/proc/sys/user/max_user_namespaces")
	return yes("at most " + strings.TrimSpace(string(limit)))
}

func havePSI() result {
	_, err := os.ReadFile("/proc/pressure/memory")
	return orDegraded(err, "boot with psi=1 to have refill yield to the node's pressure")
}

func haveSwap() result {
	b, err := os.ReadFile("/proc/swaps")
	if err != nil {
		return orDegraded(err, "mount /proc")
	}
	if n := strings.Count(strings.TrimSpace(string(b)), "\n"); n > 0 {
		return yes(fmt.Sprintf("%d areas; environments swap only where their class says so, ready slots with warm.deflate", n))
	}
	return yes("none; warm.deflate needs some")
}
