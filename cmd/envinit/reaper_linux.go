package main

import (
	"errors"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaper is the only caller of wait4: as pid 1 it gets every orphan's status
// beside its children's, and two waiters would steal from each other.
type reaper struct {
	// mu guards the fields below. A pid is in waiting from its start until it
	// was reaped; it cannot be reused while it is there.
	mu       sync.Mutex
	waiting  map[int]*child
	starting int                     // forks under way
	early    map[int]unix.WaitStatus // reaped while a fork was under way: its, or an orphan's
	orphans  int                     // reaped that nobody waited for

	// forks has a place for each fork that may be under way: each has a thread of
	// its own, and a Go program that cannot have another thread dies (newosproc in
	// runtime/os_linux.go), as where all processes that there may be are taken.
	forks chan struct{}
}

// maxForks bounds the forks under way. The threads for them, and some for what else
// waits in the kernel, are made before anybody can have taken their places. They are
// few, since a thaw wakes each of them, which a claim waits for.
const (
	maxForks     = 2
	spareThreads = maxForks + 1
)

// reserveThreads makes threads, which the runtime then keeps.
func reserveThreads(n int) {
	var made, gone sync.WaitGroup
	enough := make(chan struct{})
	made.Add(n)
	for range n {
		gone.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			made.Done()
			<-enough
		})
	}
	made.Wait()
	close(enough)
	gone.Wait()
}

// child is one process that we started.
type child struct {
	pid    int
	done   chan struct{} // closed when it was reaped
	status unix.WaitStatus
}

func newReaper() *reaper {
	return &reaper{waiting: map[int]*child{}, early: map[int]unix.WaitStatus{}, forks: make(chan struct{}, maxForks)}
}

// start forks and registers. The lock is not held while it forks: an exec can
// take as long as the file system below it.
func (r *reaper) start(path string, argv []string, attr *syscall.ProcAttr) (*child, error) {
	r.forks <- struct{}{}
	defer func() { <-r.forks }()
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	var c *child
	if err == nil {
		c = &child{pid: pid, done: make(chan struct{})}
		if status, ok := r.early[pid]; ok {
			delete(r.early, pid)
			c.status = status
			close(c.done)
		} else {
			r.waiting[pid] = c
		}
	}
	if r.starting == 0 {
		r.orphans += len(r.early)
		clear(r.early)
	}
	return c, err
}

// run reaps at every SIGCHLD until the channel is closed.
func (r *reaper) run(sigchld <-chan os.Signal) {
	for range sigchld {
		for r.reapOne() {
		}
	}
}

// reapOne is false when nobody is left to reap now. The lock is held over
// wait4, which does not block, so that signal never meets a reused pid.
func (r *reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	switch c := r.waiting[pid]; {
	case c != nil:
		delete(r.waiting, pid)
		c.status = status
		close(c.done)
	case r.starting > 0:
		r.early[pid] = status
	default:
		r.orphans++
	}
	return true
}

// signal sends to the child's process group while the child lives.
func (r *reaper) signal(c *child, n syscall.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[c.pid] != c {
		return os.ErrProcessDone
	}
	return unix.Kill(-c.pid, n)
}

// code is the exit code and signal as wire.Exit has them. Call it after done.
func (c *child) code() (code, signal int) {
	if c.status.Signaled() {
		n := int(c.status.Signal())
		return 128 + n, n
	}
	return c.status.ExitStatus(), 0
}

// adopted counts the orphans that were reaped.
func (r *reaper) adopted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.orphans
}
