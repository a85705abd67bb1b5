package warm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// Recall reads an identity file of a slot, as whoever is root inside has left
// it: at most limit bytes of a regular file, without waiting for anybody. A file
// that is missing, longer or of another kind is env.ErrNotFound, one on which a
// process holds a lease env.ErrUnavailable.
func (p *process) Recall(name string, limit int) ([]byte, error) {
	if !p.Alive() {
		return nil, fmt.Errorf("%w: init %d has ended", env.ErrNotFound, p.pid)
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", p.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root of init %d: %w", p.pid, err)
	}
	defer unix.Close(root)
	if !p.Alive() { // or the root may be another's
		return nil, fmt.Errorf("%w: init %d has ended", env.ErrNotFound, p.pid)
	}
	f, err := openRegular(root, "run/hearth/"+name)
	if err != nil {
		return nil, fmt.Errorf("open identity file %s: %w", name, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read identity file %s: %w", name, err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%w: identity file %s has more than %d bytes", env.ErrNotFound, name, limit)
	}
	return b, nil
}

// openRegular opens a regular file below a hostile root, over no link. It looks
// before it opens: opening a device that an image brought does something on the
// host, where no device filter applies, and opening a fifo wakes its writers.
func openRegular(root int, path string) (*os.File, error) {
	seen, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: %w", env.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(seen)
	var st unix.Stat_t
	if err := unix.Fstat(seen, &st); err != nil {
		return nil, fmt.Errorf("look at it: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%w: it is no regular file", env.ErrNotFound)
	}
	// Of the file that was seen, whatever has its name by now.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", seen), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EAGAIN) {
		return nil, fmt.Errorf("%w: a process holds a lease on it", env.ErrUnavailable)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}
