package main

import (
	"bytes"
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hearth/internal/ctrd"
	"hearth/internal/env"
)

// shims ends shims that containerd has lost. Deleting a task makes its shim
// end, but if the caller dies in the middle, containerd gives up the deletion
// and forgets the shim, which then waits for ever. Several slots share a shim; the
// one that it was started for names it, and may be gone before it.
type shims struct {
	namespace string
	address   string // of the containerd that started them

	mu    sync.Mutex         // guards found
	found map[env.SlotID]int // by the slot that a shim was started for
}

// look notes the shims that run now.
func (s *shims) look() {
	found := map[env.SlotID]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // the pattern is well formed
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue // no process
		}
		if slot, ok := s.slotOf(pid); ok {
			found[slot] = pid
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found = found
}

// delete deletes a slot's container, and ends the shim that it was in if that has
// no other and does not end by itself.
func (s *shims) delete(ctx context.Context, runtime *ctrd.Runtime, slot env.SlotID) error {
	leader := cmp.Or(runtime.ShimOf(slot), slot)
	err := runtime.Delete(ctx, slot)
	if err == nil && !runtime.ShimServes(leader) {
		s.end(leader)
	}
	return err
}

// slots returns the slots for which shims were started that look found, and that
// have nothing to keep.
func (s *shims) slots() []env.SlotID {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]env.SlotID, 0, len(s.found))
	for slot, pid := range s.found {
		if !keepsAny(pid) {
			out = append(out, slot)
		}
	}
	return out
}

// slotOf reads a shim's command line: -namespace NAME -id SLOT -address SOCKET.
// A shim of another containerd is another agent's; that one's socket may have
// the same path in another mount namespace, as on nodes that are containers of
// one machine. Only root's processes are looked at: a command line is read from
// the memory of its process, and those of environments may lie in it or keep the
// reader waiting.
func (s *shims) slotOf(pid int) (env.SlotID, bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil || st.Uid != uint32(os.Getuid()) {
		return "", false
	}
	b, err := os.ReadFile(dir + "/cmdline")
	args := bytes.Split(b, []byte{0})
	if err != nil || filepath.Base(string(args[0])) != "containerd-shim-runc-v2" {
		return "", false
	}
	flags := map[string]string{}
	for i := 1; i+1 < len(args); i += 2 {
		flags[string(args[i])] = string(args[i+1])
	}
	slot, err := env.ParseSlotID(flags["-id"])
	return slot, err == nil && flags["-namespace"] == s.namespace && flags["-address"] == s.address && s.sameSocket(dir)
}

// sameSocket reports whether the process of that directory of /proc finds the
// socket that this one finds at the address.
func (s *shims) sameSocket(dir string) bool {
	own, err := os.Stat(s.address)
	if err != nil {
		return false
	}
	its, err := os.Stat(dir + "/root" + s.address)
	return err == nil && os.SameFile(own, its)
}

// shimGrace is how long a shim may take to end after its task was deleted.
const shimGrace = 500 * time.Millisecond

// keepsAny reports whether a shim has a container's process. A shim that was started
// again in the place of one that died has the name of another slot than its
// containers say, so its name alone condemns nothing. What cannot be read has one.
func keepsAny(pid int) bool {
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	if err != nil || len(tasks) == 0 {
		return unix.Kill(pid, 0) == nil
	}
	return slices.ContainsFunc(tasks, func(file string) bool {
		b, err := os.ReadFile(file)
		return err == nil && len(b) > 0
	})
}

// end waits for a shim without containers, if look saw it, and kills it if it does
// not end, which it reports.
func (s *shims) end(slot env.SlotID) (killed bool) {
	s.mu.Lock()
	pid, ok := s.found[slot]
	delete(s.found, slot)
	s.mu.Unlock()
	if !ok {
		return false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false // gone
	}
	defer unix.Close(fd)
	if now, ok := s.slotOf(pid); !ok || now != slot {
		return false // the pid is another's now
	}
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, int(shimGrace.Milliseconds())); err != nil || n > 0 || keepsAny(pid) {
		return false
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) == nil // it may have ended just now
}
