package main

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// process says what to start. Files are its descriptors 0, 1 and 2.
type process struct {
	argv     []string
	dir      string
	environ  []string
	uid, gid uint32
	terminal bool // descriptor 0 becomes the controlling terminal
	files    [3]uintptr
}

// spawn runs p in a session, hence a process group, of its own.
func (r *reaper) spawn(p process) (*child, *wire.Error) {
	if p.dir == "" {
		p.dir = "/"
	}
	path, werr := findProgram(p.argv[0], p.dir, p.environ)
	if werr != nil {
		return nil, werr
	}
	sys := &syscall.SysProcAttr{Setsid: true, Setctty: p.terminal}
	if p.uid != 0 || p.gid != 0 {
		sys.Credential = &syscall.Credential{Uid: p.uid, Gid: p.gid}
	}
	attr := &syscall.ProcAttr{Dir: p.dir, Env: p.environ, Sys: sys, Files: p.files[:]}
	c, err := r.start(path, p.argv, attr)
	if err != nil {
		return nil, startError(p, err)
	}
	return c, nil
}

func startError(p process, err error) *wire.Error {
	code := wire.CodeUnavailable
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		if _, serr := os.Stat(p.dir); serr != nil {
			return wire.Errorf(wire.CodeNotFound, "start %.128q: directory %.256q: %v", p.argv[0], p.dir, serr)
		}
		code = wire.CodeNotFound
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		code = wire.CodeDenied
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.E2BIG), errors.Is(err, unix.EINVAL):
		code = wire.CodeInvalid
	case errors.Is(err, unix.EAGAIN):
		return wire.Errorf(wire.CodeExhausted, "start %.128q: no process can be made: the environment's PID limit is reached", p.argv[0])
	case errors.Is(err, unix.ENOMEM):
		code = wire.CodeExhausted
	}
	return wire.Errorf(code, "start %.128q: %v", p.argv[0], err)
}

// devNull opens /dev/null, or an empty pipe where an image has none.
func devNull() (*os.File, error) {
	if f, err := os.OpenFile("/dev/null", os.O_RDWR, 0); err == nil {
		return f, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_ = w.Close()
	return r, nil
}

// outPipe makes a pipe for a child's output. Our end goes through the
// runtime's poller; the child's must block, as programs expect, which is why
// os.Pipe will not do.
func outPipe() (ours *os.File, theirs int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	return pollable(p[0], "output"), p[1], nil
}

// inPipe makes a pipe for a child's input.
func inPipe() (ours *os.File, theirs int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	return pollable(p[1], "input"), p[0], nil
}

func pollable(fd int, name string) *os.File {
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}
