package ctrd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// managedPID finds our running containerd; 0 if there is none. It asks the
// kernel who listens on the socket. One that does not listen yet is found among
// all processes: whoever started it may have died the moment after.
func (r *Runtime) managedPID() (int, error) {
	if pid := listenerOf(r.cfg.Address); pid > 0 {
		if ours, err := r.isManaged(pid); ours || err != nil {
			return pid, err
		}
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return 0, fmt.Errorf("find containerd: %w", err)
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, fmt.Errorf("find containerd: %w", err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		ours, err := r.isManaged(pid)
		if errors.Is(err, fs.ErrPermission) {
			continue // hidden from us (hidepid of proc(5)); ours would not be
		}
		if ours || err != nil {
			return pid, err
		}
	}
	return 0, nil
}

// listenerOf is the process that listens on the socket (SO_PEERCRED, unix(7));
// 0 if none does.
func listenerOf(address string) int {
	c, err := net.DialTimeout("unix", address, time.Second)
	if err != nil {
		return 0
	}
	defer func() { _ = c.Close() }()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	pid := 0
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}

// isManaged reports whether the process was started with our configuration. A
// process of another user, as every environment's is, may show any command line
// and is not asked: reading it would touch that process's memory.
func (r *Runtime) isManaged(pid int) (bool, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err == nil && uidOf(string(status)) != os.Getuid() {
		return false, nil
	}
	var cmdline []byte
	if err == nil {
		cmdline, err = os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	return runsConfig(string(cmdline), r.managedPath(configName)), nil
}

// uidOf reads the real user id out of /proc/<pid>/status (proc_pid_status(5));
// -1 if it has none.
func uidOf(status string) int {
	_, after, _ := strings.Cut(status, "\nUid:\t")
	first, _, _ := strings.Cut(after, "\t")
	if uid, err := strconv.Atoi(first); err == nil {
		return uid
	}
	return -1
}

// runsConfig reports whether the arguments, each ended by a zero, are
// containerd's with that configuration. An editor that has it open is not.
func runsConfig(cmdline, config string) bool {
	args := strings.Split(strings.TrimSuffix(cmdline, "\x00"), "\x00")
	n := len(args)
	return n >= 3 && args[n-1] == config && args[n-2] == "--config" && filepath.Base(args[n-3]) == "containerd"
}

// awaitExit waits until the process has ended, which it reports, or ctx has. If
// it is our child it is reaped; another's may stay a zombie for a while.
func awaitExit(ctx context.Context, pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return true // gone
	}
	defer func() { _ = unix.Close(fd) }()
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, _ := unix.Poll(fds, 100); n > 0 {
			reaped(pid)
			return true
		}
	}
	return false
}

// reaped reports whether the process has ended, and reaps it if it is our child.
func reaped(pid int) bool {
	if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err == nil && got == pid {
		return true
	}
	return errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}
