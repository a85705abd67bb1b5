package rpc

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"hearth/internal/env"
)

// ListenUnix listens on path with mode 0600. A socket that nobody serves is
// replaced; one that answers is refused with env.ErrExists. Connections of
// other users than this process's own and root are closed at accept. Closing
// removes the path, unless a successor has put its own socket there.
func ListenUnix(path string) (net.Listener, error) {
	if err := refuseServed(path); err != nil {
		return nil, err
	}
	return ReplaceUnix(path)
}

// ReplaceUnix is ListenUnix for the successor of a process that may still serve
// the path: that one's connections go on, new ones come here.
func ReplaceUnix(path string) (net.Listener, error) {
	// Bound beside and renamed: the path never shows a socket with another mode,
	// nor none at all.
	tmp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("clear socket %s: %w", tmp, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	made, err := publish(tmp, path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), l.Close(), os.Remove(tmp))
	}
	return &unixListener{UnixListener: l, path: path, made: made}, nil
}

func publish(tmp, path string) (fs.FileInfo, error) {
	if err := os.Chmod(tmp, 0o600); err != nil {
		return nil, err
	}
	made, err := os.Lstat(tmp)
	if err != nil {
		return nil, err
	}
	return made, os.Rename(tmp, path)
}

func refuseServed(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w: %s is not a socket; move it away or choose another path", env.ErrExists, path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close()
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil // stale, or gone meanwhile
	default: // as a full backlog: somebody may serve it
		return fmt.Errorf("ask who serves %s: %w", path, err)
	}
	return fmt.Errorf("%w: %s is served by another process; stop that one or use another instance", env.ErrExists, path)
}

type unixListener struct {
	*net.UnixListener
	path   string
	made   fs.FileInfo
	remove sync.Once
}

// Accept returns the next connection of an allowed peer.
func (l *unixListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && (uid == 0 || uid == os.Geteuid()) {
			return c, nil
		}
		_ = c.Close()
	}
}

// Close stops listening and removes the socket if it is still this one.
func (l *unixListener) Close() error {
	l.remove.Do(func() {
		if now, err := os.Lstat(l.path); err == nil && os.SameFile(now, l.made) {
			_ = os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}
