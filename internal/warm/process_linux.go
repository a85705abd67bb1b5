package warm

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// LinuxInits opens inits by pidfd, so that a reused pid is never mistaken for
// one.
type LinuxInits struct{}

// process is an init, and the door to its identity once that is open.
type process struct {
	pid      int
	start    uint64
	fd       int
	identity *identity
}

// Open opens the init with the pid.
func (LinuxInits) Open(pid int) (Init, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open init %d: %w", pid, err)
	}
	start, err := startTime(pid)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	p := &process{pid: pid, start: start, fd: fd}
	if !p.Alive() { // or start may be another's
		p.Close()
		return nil, fmt.Errorf("init %d has ended", pid)
	}
	return p, nil
}

func (p *process) PID() int        { return p.pid }
func (p *process) Started() uint64 { return p.start }

// Alive costs one poll(2) without waiting.
func (p *process) Alive() bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0
}

func (p *process) OpenIdentity(ids env.IDRange) (err error) {
	p.identity, err = openIdentity(p.pid, ids)
	return err
}

func (p *process) Personalise(files []IdentityFile, hostname string) error {
	if p.identity == nil {
		return fmt.Errorf("%w: identity of init %d is not open", env.ErrState, p.pid)
	}
	return p.identity.write(files, hostname)
}

func (p *process) Close() {
	unix.Close(p.fd)
	if p.identity != nil {
		p.identity.close()
	}
}

// startTime reads field 22 of /proc/<pid>/stat (proc_pid_stat(5)). The command
// before it may hold any byte, so fields are counted from the last ')'.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read start time of init %d: %w", pid, err)
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const startField = 22 - 3 // fields 1 and 2 are gone, and counting starts at 0
	if len(fields) <= startField {
		return 0, fmt.Errorf("read start time of init %d: %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[startField]), 10, 64)
}
