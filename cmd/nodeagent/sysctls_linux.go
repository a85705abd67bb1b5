package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

const sysctls = "/proc/sys"

// openSysctls makes the node's network settings writable. A container that is
// not privileged has /proc/sys read-only, as a mount of its own namespace, and
// its host network makes what is below net the node's: that mount is made
// writable, where nobody else sees it.
func openSysctls() error {
	if unix.Access(sysctls+"/net/ipv4/ip_forward", unix.W_OK) == nil {
		return nil
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("", sysctls, "", flags, ""); err != nil {
		return fmt.Errorf("%w: make %s writable: %w; give the agent CAP_SYS_ADMIN, and no AppArmor profile that forbids it", env.ErrUnsupported, sysctls, err)
	}
	return nil
}
