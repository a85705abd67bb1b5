package kerneltest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside is set in the copy: "1" to enter, "2" once the namespaces are
// furnished, for children that a test starts from the binary.
const inside = "HEARTH_KERNELTEST_INSIDE"

// Main runs a package's tests. As root it runs them in a copy of the test
// binary that has network and mount namespaces of its own, with a bpffs, lo up
// and no route out. Call it from TestMain:
//
//	func TestMain(m *testing.M) { kerneltest.Main(m) }
//
// Run with the one argument "hold" the test binary is a namespace holder, as
// envinit is: it writes one byte and waits for the end of its input.
func Main(m *testing.M) {
	os.Exit(run(m)) //nolint:forbidigo // this is the test binary's main
}

func run(m *testing.M) int {
	if len(os.Args) == 2 && os.Args[1] == "hold" {
		_, _ = os.Stdout.Write([]byte{1})
		_, _ = io.Copy(io.Discard, os.Stdin)
		return 0
	}
	switch {
	case os.Geteuid() != 0:
		return m.Run()
	case os.Getenv(inside) == "":
		return enter()
	case os.Getenv(inside) == "1":
		if err := errors.Join(furnish(), os.Setenv(inside, "2")); err != nil {
			fmt.Fprintln(os.Stderr, "kerneltest: furnish namespaces:", err)
			return 1
		}
	}
	return m.Run()
}

// enter runs the copy and gives its exit code.
func enter() int {
	runtime.LockOSThread() // the death signal follows the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "kerneltest: run in new namespaces:", err)
		return 1
	}
	return 0
}

// furnish sets up what Main promises.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	// The first child of a process opens descriptors that stay: not a test's leak.
	return exec.Command("/proc/self/exe", "hold").Run()
}
