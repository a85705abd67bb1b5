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
// it: at most limit bytes of a regular file, never waiting for one that is not.
// A file that is missing, larger or of another kind is env.ErrNotFound.
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
	fd, err := unix.Openat2(root, "run/hearth/"+name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%w: identity file %s", env.ErrNotFound, name)
	}
	if err != nil {
		return nil, fmt.Errorf("open identity file %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("look at identity file %s: %w", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%w: identity file %s is no regular file", env.ErrNotFound, name)
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read identity file %s: %w", name, err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("%w: identity file %s has more than %d bytes", env.ErrNotFound, name, limit)
	}
	return b, nil
}
