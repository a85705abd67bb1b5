package systemd

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// The mounts of the node's init, and of this thread.
const (
	initMounts = "/proc/1/ns/mnt"
	ownMounts  = "/proc/thread-self/ns/mnt"
)

// spawn starts the keeper in a session of its own and in the mounts of the
// node's init. It holds both ends of its input, which therefore never ends.
func spawn(path string) (pid int, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("start keeper: %w", err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("start keeper: %w", err)
	}
	defer func() { _ = null.Close() }()
	err = inInitMounts(func() error {
		p, err := os.StartProcess(path, []string{path, "hold"}, &os.ProcAttr{
			Dir: "/", Env: []string{}, Files: []*os.File{r, null, null, w},
			Sys: &syscall.SysProcAttr{Setsid: true},
		})
		if err != nil {
			return err
		}
		pid = p.Pid
		return p.Release() // it outlives us
	})
	if err != nil {
		return 0, fmt.Errorf("start keeper %s: %w", path, err)
	}
	return pid, nil
}

// inInitMounts calls f on a thread that sees the mounts of the node's init, if
// those are others than ours.
func inInitMounts(f func() error) error {
	theirs, err := os.Stat(initMounts)
	if err != nil {
		return err
	}
	ours, err := os.Stat(ownMounts)
	if err != nil {
		return err
	}
	if os.SameFile(theirs, ours) {
		return f()
	}
	target, err := os.Open(initMounts)
	if err != nil {
		return err
	}
	defer func() { _ = target.Close() }()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with its goroutine
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(target.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			done <- fmt.Errorf("enter the mounts of process 1: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// end kills a keeper that this process has started.
func end(pid int) {
	_ = unix.Kill(pid, unix.SIGKILL) // not yet reaped, so the pid is its own
	_, _ = unix.Wait4(pid, nil, 0, nil)
}

// reap takes the end of a keeper that this process has started, if it has ended.
func reap(pid int) { _, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) }

// isGone tells that a process or its cgroup has ended meanwhile.
func isGone(err error) bool { return errors.Is(err, unix.ESRCH) }
