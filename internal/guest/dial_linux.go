package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
	"hearth/internal/guest/wire"
)

// backlogRetry is the pause before another try when envinit's queue of
// connections is full, as it is while an environment is frozen.
const backlogRetry = 5 * time.Millisecond

// Dial connects to the target's envinit.
//
// A socket belongs to the network namespace that its thread was in when it
// was made, and keeps it: only the making needs a visit (unix(7), "abstract";
// network_namespaces(7)).
func (t Target) Dial(ctx context.Context) (Conn, error) {
	path := t.NetNS
	if path == "" {
		path = "/proc/" + strconv.Itoa(t.PID) + "/ns/net"
	}
	fd, err := socketIn(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return nil, fmt.Errorf("%w: network namespace %s is gone: the environment has ended", env.ErrUnavailable, path)
		}
		return nil, fmt.Errorf("make socket in %s: %w", path, err)
	}
	if err := connect(ctx, fd); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("connect to envinit of pid %d: %w", t.PID, err)
	}
	if err := checkPeer(fd, t.PID); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return connOf(fd)
}

// connOf hands the descriptor to the runtime's poller. It closes fd.
func connOf(fd int) (Conn, error) {
	f := os.NewFile(uintptr(fd), "envinit")
	c, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, fmt.Errorf("register connection: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, fmt.Errorf("register connection: %T is not a unix connection", c)
	}
	return conn, nil
}

func checkPeer(fd, want int) error {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return fmt.Errorf("read peer credentials: %w", err)
	}
	if int(cred.Pid) != want {
		return fmt.Errorf("%w: pid %d listens as envinit where the slot's pid 1 is %d: release the environment, something inside poses as its init", env.ErrDenied, cred.Pid, want)
	}
	return nil
}

func connect(ctx context.Context, fd int) error {
	addr := &unix.SockaddrUnix{Name: wire.SocketName}
	for {
		err := unix.Connect(fd, addr)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ECONNREFUSED):
			return fmt.Errorf("%w: nobody listens: the environment is starting or has ended", env.ErrUnavailable)
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: its queue of connections is full: the environment may be frozen: %w", env.ErrUnavailable, context.Cause(ctx))
		case <-time.After(backlogRetry):
		}
	}
}

// socketIn makes an AF_UNIX stream socket inside a network namespace.
func socketIn(path string) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		// The thread is given back only after it has returned home; a
		// goroutine that ends locked takes its thread with it.
		runtime.LockOSThread()
		fd, home, err := visit(path)
		if home {
			runtime.UnlockOSThread()
		}
		done <- result{fd, err}
	}()
	r := <-done
	return r.fd, r.err
}

// visit runs on a locked thread. home says that the thread is in the network
// namespace in which it began.
func visit(path string) (fd int, home bool, err error) {
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, true, fmt.Errorf("open own network namespace: %w", err)
	}
	defer func() { _ = unix.Close(own) }()
	island, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, true, fmt.Errorf("open network namespace: %w", err)
	}
	defer func() { _ = unix.Close(island) }()
	if err := unix.Setns(island, unix.CLONE_NEWNET); err != nil {
		return -1, true, fmt.Errorf("enter network namespace: %w", err)
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		if err == nil {
			_ = unix.Close(fd)
		}
		return -1, false, fmt.Errorf("leave network namespace: %w", back)
	}
	if err != nil {
		return -1, true, fmt.Errorf("make socket: %w", err)
	}
	return fd, true, nil
}
