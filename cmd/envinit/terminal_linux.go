package main

import (
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/guest/wire"
)

// terminal is a pseudo terminal (pty(7)).
//
// Both sides stay open from here until the output was drained. A master whose
// other side nobody has open reads EIO, and that is no end: a process may
// close its descriptors and open /dev/tty later. With held open, EIO comes
// only from a hang-up, and that all was read shows as EAGAIN.
//
// The process itself leads the session, so that job control, the signals of
// ^C and ^Z and the SIGHUP at its end are the kernel's, as on any terminal.
// We are in no session of its and need no keeper there.
type terminal struct {
	master *os.File // non-blocking, by the runtime's poller
	held   *os.File // the process's side; blocks, as programs expect
}

func openTerminal(size wire.Size) (*terminal, *wire.Error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, noTerminal(err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		_ = unix.Close(fd)
		return nil, noTerminal(err)
	}
	// By the descriptor, not by the name /dev/pts/N, below which anything can
	// be mounted.
	held, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		_ = unix.Close(fd)
		return nil, noTerminal(errno)
	}
	t := &terminal{master: pollable(fd, "terminal"), held: os.NewFile(held, "terminal")}
	if size != (wire.Size{}) {
		t.resize(size)
	}
	return t, nil
}

func noTerminal(err error) *wire.Error {
	return wire.Errorf(wire.CodeUnavailable, "open terminal: %v: the environment needs devpts at /dev/pts", err)
}

// resize leaves the master as it is: os.File.Fd would make it block, and a
// read that blocks knows no deadline.
func (t *terminal) resize(size wire.Size) {
	raw, err := t.master.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	})
}

// release gives up the process's side. The master's end is the reader's.
func (t *terminal) release() { _ = t.held.Close() }
