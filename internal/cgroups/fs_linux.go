package cgroups

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	dirFlags = unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_RDONLY | unix.O_CLOEXEC
	// maxDepth bounds the walk below a slot. Create forbids the kernel more.
	maxDepth = 32
	// maxFile bounds what is read of one control file.
	maxFile = 1 << 20
)

// openAt opens one component below dir. name must not contain a slash.
func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir.Name() + "/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), dir.Name()+"/"+name), nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		v, err := f()
		if !errors.Is(err, unix.EINTR) {
			return v, err
		}
	}
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, dirFlags, 0)
}

// mkdirAt makes a directory and says whether it was made now.
func mkdirAt(dir *os.File, name string) (bool, error) {
	switch err := unix.Mkdirat(int(dir.Fd()), name, 0o755); {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EEXIST):
		return false, nil
	default:
		return false, &os.PathError{Op: "mkdir", Path: dir.Name() + "/" + name, Err: err}
	}
}

func readAt(dir *os.File, name string) (string, error) {
	f, err := openAt(dir, name, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	return string(b), err
}

func writeAt(dir *os.File, name, value string) error {
	f, err := openAt(dir, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("write %q: %w", value, err)
	}
	return nil
}

// children lists the directories directly below dir. Only cgroups are
// directories in a cgroup file system.
func children(dir *os.File) ([]string, error) {
	again, err := openAt(dir, ".", dirFlags) // an offset of its own
	if err != nil {
		return nil, err
	}
	defer func() { _ = again.Close() }()
	entries, err := again.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// walk calls visit for dir and every cgroup below it, children first. Cgroups
// that vanish meanwhile are passed over.
func walk(dir *os.File, depth int, visit func(*os.File) error) error {
	if depth > maxDepth {
		return fmt.Errorf("walk %s: more than %d levels", dir.Name(), maxDepth)
	}
	names, err := children(dir)
	if err != nil {
		return vanished(err)
	}
	for _, name := range names {
		child, err := openAt(dir, name, dirFlags)
		if err != nil {
			if vanished(err) == nil {
				continue
			}
			return err
		}
		err = walk(child, depth+1, visit)
		_ = child.Close()
		if err != nil {
			return err
		}
	}
	return visit(dir)
}

// vanished drops the errors that mean "this cgroup is gone".
func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// removeTree removes name below dir with all its descendants. Children go
// first; a cgroup with processes is EBUSY.
func removeTree(dir *os.File, name string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("remove %s: more than %d levels", dir.Name(), maxDepth)
	}
	child, err := openAt(dir, name, dirFlags)
	if err != nil {
		return vanished(err)
	}
	names, err := children(child)
	for _, n := range names {
		if err = removeTree(child, n, depth+1); err != nil {
			break
		}
	}
	_ = child.Close()
	if err := vanished(err); err != nil {
		return err
	}
	if err := vanished(unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR)); err != nil {
		return &os.PathError{Op: "rmdir", Path: dir.Name() + "/" + name, Err: err}
	}
	return nil
}

// components splits a slash-separated path into its names.
func components(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}
