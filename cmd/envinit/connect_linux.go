package main

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

const (
	dialTimeout  = 5 * time.Second
	goneInterval = 2 * time.Second
)

// connect joins the node's connection to 127.0.0.1:port.
func connect(p *peer, req *wire.Connect) error {
	conn, err := dialLoopback(req.Port, time.Now().Add(dialTimeout))
	if err != nil {
		code := wire.CodeUnavailable
		return wire.Errorf(code, "connect to port %d: %v: is a service listening on 127.0.0.1 or 0.0.0.0?", req.Port, err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	if err := p.out.SendJSON(wire.KindReply, wire.Reply{Version: wire.Version}); err != nil {
		return nil // the node has gone
	}
	var both sync.WaitGroup
	answered := make(chan struct{})
	both.Go(func() {
		pump(conn, p.conn)
		untilGone(p.conn, answered)
		cut(conn, p.conn) // both are finished, or the node has gone
	})
	pump(p.conn, conn)
	close(answered)
	both.Wait()
	return nil
}

// pump copies until the end of src, and hands that end on. If dst takes no
// more, src is not read any more either.
func pump(dst, src *os.File) {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				cut(dst, src)
				return
			}
		}
		if err != nil {
			halfClose(dst)
			return
		}
	}
}

// untilGone returns when the other direction is finished, or when the node
// has closed its connection altogether rather than its half of it, which only
// asking tells.
func untilGone(conn *os.File, finished <-chan struct{}) {
	for !hungUp(conn) {
		select {
		case <-finished:
			return
		case <-time.After(goneInterval):
		}
	}
}

func hungUp(conn *os.File) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, perr := unix.Poll(p, 0)
		gone = n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 || perr != nil && !errors.Is(perr, unix.EINTR)
	})
	return err != nil || gone
}

// cut ends all waiting on both connections.
func cut(files ...*os.File) {
	for _, f := range files {
		_ = f.SetDeadline(time.Unix(1, 0))
	}
}
