package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// FileLock is an exclusive lock on a state directory. The kernel drops it when
// the process ends, however it ends.
type FileLock struct{ f *os.File }

// Lock takes the lock file at path, making it if it is missing, and writes
// this process's id into it. If another process holds it the error is
// env.ErrState and names that process.
func Lock(path string) (*FileLock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", classify(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s is held by %s; stop it, or use another state directory", env.ErrState, path, holder(f))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	pid := []byte(strconv.Itoa(os.Getpid()) + "\n")
	if err := errors.Join(f.Truncate(0), writeAll(f, pid)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: write process id: %w", path, classify(err))
	}
	return &FileLock{f: f}, nil
}

func writeAll(f *os.File, p []byte) error {
	_, err := f.WriteAt(p, 0)
	return err
}

// holder names the process whose id the lock file has.
func holder(f *os.File) string {
	b, err := io.ReadAll(io.LimitReader(f, 32))
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || convErr != nil || pid <= 0 {
		return "another process"
	}
	return "process " + strconv.Itoa(pid)
}

// Unlock drops the lock. The file stays: removing it would let two processes
// hold locks on two files of one name.
func (l *FileLock) Unlock() error { return l.f.Close() }

// Holder tells who holds the lock at path: held is false if nobody does, or if
// there is no such file. pid is 0 if the holder has not written it yet.
func Holder(path string) (pid int, held bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look at lock: %w", err)
	}
	defer f.Close()
	// Shared, and dropped at once: who asks for the lock meanwhile asks again.
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case err == nil:
		return 0, false, nil
	case !errors.Is(err, unix.EWOULDBLOCK):
		return 0, false, fmt.Errorf("look at lock %s: %w", path, err)
	}
	b, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0, true, fmt.Errorf("look at lock %s: %w", path, err)
	}
	pid, _ = strconv.Atoi(strings.TrimSpace(string(b))) // 0: not written yet
	return pid, true, nil
}
