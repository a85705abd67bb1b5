package netpol

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"hearth/internal/env"
)

const sysctlDir = "/proc/sys/net/"

// setSysctl writes a setting of this thread's network namespace unless it has
// the value already: a read-only /proc/sys is no fault then.
func setSysctl(name, value string) error {
	path := sysctlDir + name
	have, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read sysctl net/%s: %w", name, err)
	}
	if strings.Join(strings.Fields(string(have)), " ") == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set sysctl net/%s to %q (it is %q): %w: set it on the node, or give the agent a writable /proc/sys",
			name, value, strings.TrimSpace(string(have)), err)
	}
	return nil
}

// quietIPv6 switches IPv6 off on one link; a kernel without it is quiet.
func quietIPv6(link string) error {
	err := setSysctl("ipv6/conf/"+link+"/disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// checkForwarding makes the node a router.
func checkForwarding() error {
	if err := setSysctl("ipv4/ip_forward", "1"); err != nil {
		return fmt.Errorf("%w: islands need a node that forwards: %w", env.ErrUnsupported, err)
	}
	return nil
}
