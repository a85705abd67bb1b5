package cgroups

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// state is what cgroup.events says.
type state struct{ populated, frozen bool }

var (
	one       = []byte("1")
	zero      = []byte("0")
	populated = []byte("populated 1\n")
	frozen    = []byte("frozen 1\n")
)

// spinFor is how long a change is awaited by reading again at once. The kernel
// freezes a sleeping process within tens of microseconds, but notifies readers
// of cgroup.events at most once in 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV in
// kernel/cgroup/cgroup.c), so waiting for the notice would cost more than the
// freeze.
const spinFor = 300 * time.Microsecond

// pollMillis bounds one wait for a notice, so that ctx is looked at and a
// notice that another reader consumed costs little.
const pollMillis = 2

// Freeze stops every process of the slot and returns when the kernel says that
// all have stopped. If ctx ends before, the error is a *FreezingError and the
// slot goes on freezing; Thaw undoes it. A slot without processes freezes too.
func (g *Group) Freeze(ctx context.Context) error {
	err := g.set(ctx, one, isFrozen)
	if err == nil || ctx.Err() == nil {
		return err
	}
	return &FreezingError{Slot: g.slot, PIDs: g.unstopped()}
}

// Thaw lets the slot's processes run, and returns when the kernel says so.
func (g *Group) Thaw(ctx context.Context) error {
	return g.set(ctx, zero, isThawed)
}

// Frozen reports whether every process of the slot has stopped.
func (g *Group) Frozen() (bool, error) {
	s, err := g.state()
	return s.frozen, err
}

func isFrozen(s state) bool { return s.frozen }
func isThawed(s state) bool { return !s.frozen }

func (g *Group) set(ctx context.Context, value []byte, done func(state) bool) error {
	if _, err := g.freeze.WriteAt(value, 0); err != nil {
		return g.gone("write cgroup.freeze", err)
	}
	return g.await(ctx, done)
}

// await returns when done is true of the slot's state, or when ctx ends.
func (g *Group) await(ctx context.Context, done func(state) bool) error {
	spinUntil := time.Now().Add(spinFor)
	for {
		s, err := g.state()
		if err != nil {
			return err
		}
		if done(s) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("await cgroup events of slot %s: %w", g.slot, err)
		}
		if time.Now().Before(spinUntil) {
			_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
			continue
		}
		fds := [1]unix.PollFd{{Fd: int32(g.events.Fd()), Events: unix.POLLPRI}}
		// An error is a signal: the state is read again either way.
		_, _ = unix.Poll(fds[:], pollMillis)
	}
}

func (g *Group) state() (state, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// What every kernel's begins with takes one read, as far as it goes another one
	// for the end.
	b := g.buf[:len(populated)+len(frozen)]
	n, err := g.events.ReadAt(b, 0)
	if !known(b[:n]) {
		b = g.buf[:]
		n, err = g.events.ReadAt(b, 0)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return state{}, g.gone("read cgroup.events", err)
	}
	return state{populated: bytes.Contains(b[:n], populated), frozen: bytes.Contains(b[:n], frozen)}, nil
}

// known tells whether the keys are where they have always been.
func known(b []byte) bool {
	first, second, _ := bytes.Cut(b, []byte("\n"))
	return bytes.HasPrefix(first, populated[:len("populated ")]) && bytes.HasPrefix(second, frozen[:len("frozen ")]) &&
		len(b) == len(populated)+len(frozen)
}

func (g *Group) gone(op string, err error) error {
	if vanished(err) == nil {
		return fmt.Errorf("%s: %w: the cgroup of slot %s was removed", op, env.ErrNotFound, g.slot)
	}
	return fmt.Errorf("%s of slot %s: %w", op, g.slot, err)
}

// unstopped names the processes that keep a freeze from completing: those with
// a thread that runs or sleeps uninterruptibly. If none shows, it names all.
func (g *Group) unstopped() []int {
	pids, _ := g.Pids()
	busy := slices.DeleteFunc(slices.Clone(pids), func(pid int) bool { return !hasBusyThread(pid) })
	if len(busy) == 0 {
		return head(pids)
	}
	return head(busy)
}

func hasBusyThread(pid int) bool {
	stats, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "[0-9]*", "stat"))
	return slices.ContainsFunc(stats, func(path string) bool {
		b, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		// The state is the letter after the command, which may hold ") ".
		_, rest, ok := strings.Cut(string(b[max(bytes.LastIndexByte(b, ')'), 0):]), " ")
		return ok && (strings.HasPrefix(rest, "D") || strings.HasPrefix(rest, "R"))
	})
}
