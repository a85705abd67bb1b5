package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// overflowUID is how the kernel shows a uid that the user namespace does not
// map (/proc/sys/kernel/overflowuid).
const overflowUID = 65534

const backlog = 128

// listener is the abstract socket. A raw descriptor with the runtime's poller
// does without package net, which would double the binary.
type listener struct {
	file *os.File
	raw  rawConn
}

// rawConn is the part of syscall.RawConn that is used here.
type rawConn interface {
	Read(func(fd uintptr) bool) error
}

func listen(name string) (*listener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("bind %s: %w: another envinit, or a squatter, is in this network namespace", name, err)
	}
	if err := unix.Listen(fd, backlog); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	return &listener{file: f, raw: raw}, nil
}

// accept waits for a connection from the node. Others are told to go.
func (l *listener) accept() (*os.File, error) {
	for {
		fd, err := l.acceptAny()
		if err != nil {
			return nil, err
		}
		conn := os.NewFile(uintptr(fd), wire.SocketName)
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil && fromNode(cred) {
			return conn, nil
		}
		// Does not block: the socket's buffer is empty.
		_ = wire.NewWriter(conn).SendJSON(wire.KindError, wire.Errorf(wire.CodeDenied, "only the node may talk to envinit"))
		_ = conn.Close()
	}
}

func fromNode(c *unix.Ucred) bool { return c.Pid == 0 && c.Uid == overflowUID }

func (l *listener) acceptAny() (fd int, err error) {
	rerr := l.raw.Read(func(s uintptr) bool {
		for {
			fd, _, err = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if err != unix.EINTR && err != unix.ECONNABORTED {
				return err != unix.EAGAIN
			}
		}
	})
	if rerr != nil {
		return -1, rerr
	}
	return fd, err
}

// halfClose ends our side of a connection.
func halfClose(conn *os.File) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_WR) })
}

// dialLoopback connects to 127.0.0.1:port until the deadline, which the
// connection keeps.
func dialLoopback(port uint16, deadline time.Time) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
	conn := os.NewFile(uintptr(fd), "tcp")
	_ = conn.SetDeadline(deadline)
	if err == unix.EINPROGRESS {
		err = finishConnect(conn)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

func finishConnect(conn *os.File) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		// Asked each time, the first too: the connection may have been made
		// before the poller began to watch, which then says nothing.
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, perr := unix.Poll(p, 0); perr == nil && n == 0 {
			return false
		}
		n, gerr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if gerr != nil {
			result = gerr
		} else if n != 0 {
			result = unix.Errno(n)
		}
		return true
	})
	if err != nil {
		return err
	}
	return result
}

// loopbackUp sets lo up, which also gives it 127.0.0.1. A runtime that has
// done so already costs one call.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return fmt.Errorf("read flags of lo: %w", err)
	}
	if ifr.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
