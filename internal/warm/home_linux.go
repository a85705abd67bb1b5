package warm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// home is what every thread of this process has: where one goes back to that has
// visited a slot's namespaces.
type home struct{ uts, mnt, root, work *os.File }

// homeOf opens it once, and not in every claim, where looking it up would cost more
// than a visit.
var homeOf = sync.OnceValues(func() (*home, error) {
	// Of this thread, which is at home: the main thread may be visiting.
	const ns = "/proc/thread-self/ns/"
	h := &home{}
	for _, f := range []struct {
		at    **os.File
		path  string
		flags int
	}{{&h.uts, ns + "uts", 0}, {&h.mnt, ns + "mnt", 0}, {&h.root, "/", unix.O_PATH}, {&h.work, ".", unix.O_PATH}} {
		file, err := os.OpenFile(f.path, f.flags|unix.O_RDONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("open what this process's threads come back to: %w", err)
		}
		*f.at = file
	}
	return h, nil
})

// comeHome brings a thread back from a slot's mount namespace, which has left it with
// that one's root.
func (h *home) comeHome() error {
	err := unix.Setns(int(h.mnt.Fd()), unix.CLONE_NEWNS)
	if err == nil { // now the root is the namespace's, which need not be this process's
		err = unix.Fchdir(int(h.root.Fd()))
	}
	if err == nil {
		err = unix.Chroot(".")
	}
	if err == nil {
		err = unix.Fchdir(int(h.work.Fd()))
	}
	if err != nil {
		return fmt.Errorf("come back from a slot's mount namespace: %w", err)
	}
	return nil
}

// errAbroad is of a thread that did not find back.
var errAbroad = errors.New("the thread is given up")

// onThread runs f on a thread of its own and waits for it. A thread for which f says
// errAbroad ends with its goroutine.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := f()
		if !errors.Is(err, errAbroad) {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}
