package warm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// LinuxInits opens inits by pidfd, so that a reused pid is never mistaken for
// one.
type LinuxInits struct{}

// process is an init, and the door to its identity once that is open.
type process struct {
	pid   int
	start uint64

	mu       sync.RWMutex // guards all below
	fd       int          // pidfd; -1 once closed
	identity *identity
}

// Open opens the init with the pid. One that has ended is env.ErrNotFound.
func (LinuxInits) Open(pid int) (Init, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("%w: init %d has ended", env.ErrNotFound, pid)
	}
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
		return nil, fmt.Errorf("%w: init %d has ended", env.ErrNotFound, pid)
	}
	return p, nil
}

func (p *process) PID() int        { return p.pid }
func (p *process) Started() uint64 { return p.start }

// Alive costs one poll(2) without waiting. After Close it is false: the number
// of the descriptor may mean another process by then.
func (p *process) Alive() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.fd < 0 {
		return false
	}
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0
}

func (p *process) OpenIdentity(ids env.IDRange) error {
	i, err := openIdentity(p.pid, ids)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.identity = i
	return nil
}

func (p *process) Personalise(files []IdentityFile, hostname string) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.identity == nil {
		return fmt.Errorf("%w: identity of init %d is not open", env.ErrState, p.pid)
	}
	return p.identity.write(files, hostname)
}

func (p *process) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd >= 0 {
		unix.Close(p.fd)
	}
	if p.identity != nil {
		p.identity.close()
	}
	p.fd, p.identity = -1, nil
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
