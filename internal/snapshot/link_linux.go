package snapshot

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// links are the files with several names in one restore. The first name that
// is met becomes a file; the others are made when all directories are there,
// and none needs to be open until then: there can be more of them than
// descriptors.
type links struct {
	mu    sync.Mutex // guards all below
	first map[linkKey]linkFile
	late  []lateLink
}

type linkKey struct {
	root int
	link uint64
}

// linkFile is a name in a directory, whose path begins with the root's name.
type linkFile struct{ dir, name string }

type lateLink struct {
	rootFD int
	into   *entry // the directory, whose time has to be set again
	linkFile
	first linkFile
}

// later is true if the file has a name already: this one is made at the end.
func (l *links) later(d *restoreDir, e *entry) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key, this := linkKey{d.root, e.link}, linkFile{d.path, e.name}
	first, ok := l.first[key]
	if !ok {
		l.first[key] = this
		return false
	}
	l.late = append(l.late, lateLink{d.rootFD, d.e, this, first})
	return true
}

// linkAll makes the names that were left over, directory by directory.
func (r *restorer) linkAll() {
	late := r.links.late // all workers have ended
	slices.SortFunc(late, func(a, b lateLink) int { return cmp.Or(cmp.Compare(a.rootFD, b.rootFD), strings.Compare(a.dir, b.dir)) })
	for len(late) > 0 {
		n := 1
		for n < len(late) && late[n].rootFD == late[0].rootFD && late[n].dir == late[0].dir {
			n++
		}
		if err := r.linkInto(late[:n]); err != nil {
			r.fail(err)
			return
		}
		late = late[n:]
	}
}

// linkInto makes names in one directory.
func (r *restorer) linkInto(late []lateLink) error {
	fd, err := openBelow(late[0].rootFD, late[0].dir)
	if err != nil {
		return fmt.Errorf("%q: open directory: %w", late[0].dir, err)
	}
	defer unix.Close(fd)
	for _, l := range late {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := l.make(fd); err != nil {
			return fmt.Errorf("%q: link to %q: %w", l.dir+"/"+l.name, l.first.dir+"/"+l.first.name, err)
		}
	}
	return setTime(fd, late[0].into, true)
}

func (l *lateLink) make(dirfd int) error {
	from := dirfd
	if l.first.dir != l.dir {
		fd, err := openBelow(l.rootFD, l.first.dir)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		from = fd
	}
	return full(unix.Linkat(from, l.first.name, dirfd, l.name, 0))
}

// openBelow opens a directory by its path, which begins with the root's name.
// It walks: paths can be longer than the kernel takes.
func openBelow(rootFD int, path string) (int, error) {
	fd, err := unix.FcntlInt(uintptr(rootFD), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	_, below, _ := strings.Cut(path, "/")
	for part := range strings.SplitSeq(below, "/") {
		if part == "" {
			continue
		}
		next, err := openDirBeneath(fd, part)
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}
