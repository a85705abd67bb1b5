package preflight

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// inNamespace calls f on a thread that has left the named namespaces
// (CLONE_NEWNET, CLONE_NEWNS). The thread ends with f, and all that f made in
// them goes with it.
func inNamespace(flags int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		if err := unix.Unshare(flags); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		if flags&unix.CLONE_NEWNS != 0 {
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				done <- fmt.Errorf("make mounts private: %w", err)
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// withUserNS calls f with a user namespace whose ids start at base. Its child
// is this program, stopped by ptrace before its first instruction, and killed.
func withUserNS(base int, f func(*os.File) error) error {
	// The tracer is a thread; it must be the one that waits.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 65536}}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"preflight"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, Ptrace: true,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
	}})
	if err != nil {
		return fmt.Errorf("make user namespace: %w", err)
	}
	defer func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		var status unix.WaitStatus
		for {
			_, err := unix.Wait4(pid, &status, 0, nil)
			if err != nil && err != unix.EINTR || status.Exited() || status.Signaled() {
				return
			}
		}
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	return f(ns)
}
