package main

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxDiscarding bounds the streams that are read for background processes.
const maxDiscarding = 256

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// copyOutput sends a stream until its end, or until the process ended and all
// that it had written was sent. What it left in the background keeps a reader,
// so that it is not killed by SIGPIPE, and its output is discarded.
func (s *server) copyOutput(o output, p *peer, exited <-chan struct{}) {
	buf := buffers.Get().(*[32 << 10]byte)
	defer buffers.Put(buf)
	gone := false
	for {
		n, err := o.file.Read(buf[:])
		if n > 0 && !gone {
			gone = p.out.Send(o.kind, buf[:n]) != nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil { // io.EOF; EIO of a terminal that was hung up
			_ = o.file.Close()
			return
		}
	}
	<-exited
	if s.drain(o, p, buf[:], gone) {
		_ = o.file.Close()
		return
	}
	if s.discarding.Add(1) > maxDiscarding {
		s.discarding.Add(-1)
		_ = o.file.Close()
		return
	}
	_ = o.file.SetReadDeadline(time.Time{})
	go func() {
		_, _ = io.Copy(io.Discard, onlyReader{o.file})
		_ = o.file.Close()
		s.discarding.Add(-1)
	}()
}

type onlyReader struct{ r io.Reader }

func (o onlyReader) Read(b []byte) (int, error) { return o.r.Read(b) }

// terminalBuffer is more than a terminal holds, in bytes.
const terminalBuffer = 1 << 20

// drain sends what is in the pipe or the terminal now, which holds all that
// the process left there: no more than its size, should others go on writing.
// It is true at the stream's end.
//
// Empty means empty twice: a terminal's read waits for one pass of the worker
// that moves what was written to where it is read (drivers/tty/tty_buffer.c),
// and a worker that found no room may have queued itself again behind it.
func (s *server) drain(o output, p *peer, buf []byte, gone bool) (ended bool) {
	raw, err := o.file.SyscallConn()
	if err != nil {
		return true
	}
	left := terminalBuffer
	_ = raw.Control(func(fd uintptr) {
		if size, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
			left = size
		}
	})
	empty := false
	for left > 0 {
		n, rerr := 0, error(nil)
		if err := raw.Control(func(fd uintptr) { n, rerr = unix.Read(int(fd), buf) }); err != nil {
			return true
		}
		switch {
		case errors.Is(rerr, unix.EINTR):
			continue
		case errors.Is(rerr, unix.EAGAIN) && !empty:
			empty = true
			continue
		case errors.Is(rerr, unix.EAGAIN):
			return false
		case rerr != nil || n <= 0:
			return true
		}
		empty = false
		left -= n
		if !gone {
			gone = p.out.Send(o.kind, buf[:n]) != nil
		}
	}
	return false
}
