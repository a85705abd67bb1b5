package cgroups

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"hearth/internal/env"
)

// limitFile is an open control file, and what it said before. A claim that has
// limits of its own waits for these: each is opened once, and written only if it
// says something else.
type limitFile struct {
	write
	fd    int
	was   string
	dirty bool // it may say something else than before
}

// limitFiles are those of one change, with the directories that they are in.
type limitFiles struct {
	list []*limitFile
	dirs map[string]int // descriptors, -1 for what is not there
}

// openFiles opens what is to be written, and reads what nobody has said. Files that
// are not there and need not be are left out.
func openFiles(asked []write, said map[limitKey]string) (limitFiles, error) {
	files := limitFiles{dirs: map[string]int{}}
	for _, w := range asked {
		fd, err := files.open(w)
		switch {
		case errors.Is(err, unix.ENOENT) && w.optional:
			continue
		case err != nil:
			return files, fmt.Errorf("open %s: %w", w.file, err)
		}
		f := &limitFile{write: w, fd: fd}
		files.list = append(files.list, f)
		var known bool
		if f.was, known = said[w.key()]; known {
			continue
		}
		if f.was, err = readFD(fd); err != nil {
			return files, fmt.Errorf("read %s: %w", w.file, err)
		}
	}
	return files, nil
}

// open opens one file below directories that are opened once, one component at a
// time.
func (l limitFiles) open(w write) (int, error) {
	parent, name := int(w.root.dir.Fd()), w.root.path
	for _, c := range w.path {
		name += "/" + c
		dir, known := l.dirs[name]
		if !known {
			var err error
			dir, err = openFD(parent, c, unix.O_PATH|unix.O_DIRECTORY)
			if errors.Is(err, unix.ENOENT) {
				dir = -1
			} else if err != nil {
				return -1, err
			}
			l.dirs[name] = dir
		}
		if dir < 0 {
			return -1, unix.ENOENT
		}
		parent = dir
	}
	return openFD(parent, w.file, unix.O_RDWR)
}

func openFD(parent int, name string, flags int) (int, error) {
	return ignoringEINTR(func() (int, error) {
		return unix.Openat(parent, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// readFD reads the values of a limit: a line, or one for each device.
func readFD(fd int) (string, error) {
	var buf [4096]byte
	n, err := ignoringEINTR(func() (int, error) { return unix.Pread(fd, buf[:], 0) })
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

func (l limitFiles) close() {
	for _, f := range l.list {
		_ = unix.Close(f.fd)
	}
	for _, fd := range l.dirs {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// touch notes that the slot's own file of a name was written by somebody else.
func (l limitFiles) touch(file string) {
	i := slices.IndexFunc(l.list, func(f *limitFile) bool { return f.file == file && len(f.path) == 1 })
	if i >= 0 {
		l.list[i].dirty = true
	}
}

// apply writes what is to be changed.
func (l limitFiles) apply() error {
	var todo []*limitFile
	for _, f := range l.list {
		if f.dirty || f.was != f.value {
			todo = append(todo, f)
		}
	}
	now := func(f *limitFile) string { return f.was }
	then := func(f *limitFile) string { return f.value }
	return settle(inOrder(todo, now, then), then)
}

// undo writes back what was there. What is per device is set once in a slot's
// life, and has nothing to go back to.
func (l limitFiles) undo() error {
	var todo []*limitFile
	for _, f := range l.list {
		if f.dirty && !f.perDevice {
			todo = append(todo, f)
		}
	}
	now := func(f *limitFile) string { return f.value }
	then := func(f *limitFile) string { return f.was }
	return settle(inOrder(todo, now, then), then)
}

// inOrder has what falls first, the innermost and what hangs on another before that
// one, and then what rises the other way round: a burst may not be above its quota,
// in v1 no child's quota above its parent's and memory not above memory and swap.
func inOrder(todo []*limitFile, from, to func(*limitFile) string) []*limitFile {
	var falling, rising []*limitFile
	for _, f := range todo {
		if amount(to(f)) < amount(from(f)) {
			falling = append(falling, f)
		} else {
			rising = append(rising, f)
		}
	}
	slices.Reverse(falling)
	return append(falling, rising...)
}

// amount is what a limit lets through: everything, if its value begins with no number.
func amount(value string) int64 {
	first, _, _ := strings.Cut(value, " ")
	if n, err := strconv.ParseInt(first, 10, 64); err == nil && n >= 0 {
		return n
	}
	return math.MaxInt64 // "max", "-1"
}

// settle writes in order, and again what was refused, until nothing more is taken: a
// file that was written by half before an error says neither what it did nor what it
// should.
func settle(todo []*limitFile, value func(*limitFile) string) error {
	for {
		var refused []*limitFile
		var why error
		for _, f := range todo {
			v := value(f)
			f.dirty = true
			_, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(f.fd, []byte(v), 0) })
			switch {
			case err == nil:
			case errors.Is(err, unix.EINVAL):
				refused, why = append(refused, f), fmt.Errorf("set %s to %s: %w", f.file, v, err)
			case errors.Is(err, unix.EBUSY) && f.controller == "memory":
				return fmt.Errorf("%w: memory limit of %s bytes is less than what is in use and cannot be taken back; free some inside first, or ask for more", env.ErrState, v)
			default:
				return fmt.Errorf("set %s to %s: %w", f.file, v, err)
			}
		}
		if len(refused) == 0 || len(refused) == len(todo) {
			return why
		}
		todo = refused
	}
}
