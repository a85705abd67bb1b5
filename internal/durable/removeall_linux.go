package durable

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// openLevels is how many directories below each other a removal holds open.
const openLevels = 64

// direntBytes is the size of one read of a directory.
const direntBytes = 16 << 10

// RemoveAll is os.RemoveAll for trees that strangers have made. However deep a
// tree is, it takes the descriptors and the memory of a few dozen directories:
// what is deeper is moved to the top first. (os.RemoveAll keeps every directory on
// its way open, so that who may nest more of them than the process may have
// descriptors could not be removed any more.) It follows no link, and what is
// mounted below path is an error. It ends early with ctx, and then a repetition
// goes on where it was. Nobody else may change the tree meanwhile.
func RemoveAll(ctx context.Context, path string) error {
	path = filepath.Clean(path)
	if err := removeAll(ctx, path); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

func removeAll(ctx context.Context, path string) error {
	err := uninterrupted(func() error { return unix.Unlink(path) })
	if !isDirectory(err) {
		return missing(err)
	}
	top := -1
	if err := uninterrupted(func() (err error) {
		top, err = unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	}); err != nil {
		return missing(err)
	}
	r := &removal{ctx: ctx, top: top}
	err = r.empty(top, 0, func() error { return unix.Rmdir(path) })
	return errors.Join(err, unix.Close(top))
}

// removal is one call of RemoveAll.
type removal struct {
	ctx context.Context
	top int // descriptor of the tree's root
}

// empty removes what is in a directory, then the directory itself by rmdir.
func (r *removal) empty(dir, depth int, rmdir func() error) error {
	for {
		seen, err := r.sweep(dir, depth)
		if err != nil {
			return err
		}
		// Not empty yet: something was moved up to here, or a name was passed over
		// while others went.
		if err = uninterrupted(rmdir); !errors.Is(err, unix.ENOTEMPTY) || !seen {
			return missing(err)
		}
		if _, err := unix.Seek(dir, 0, io.SeekStart); err != nil {
			return err
		}
	}
}

// sweep goes once through a directory, also after an error. seen is true if there
// was a name.
func (r *removal) sweep(dir, depth int) (seen bool, first error) {
	buf := make([]byte, direntBytes)
	for {
		if r.ctx.Err() != nil {
			return seen, context.Cause(r.ctx)
		}
		n := 0
		if err := uninterrupted(func() (err error) {
			n, err = unix.ReadDirent(dir, buf)
			return err
		}); err != nil {
			return seen, errors.Join(first, fmt.Errorf("list: %w", err))
		}
		if n <= 0 {
			return seen, first
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			seen = true
			if err := r.name(dir, name, depth); err != nil && first == nil {
				first = err
			}
		}
	}
}

// name removes one name of a directory.
func (r *removal) name(dir int, name string, depth int) error {
	err := uninterrupted(func() error { return unix.Unlinkat(dir, name, 0) })
	if isDirectory(err) {
		if depth < openLevels {
			return r.below(dir, name, depth+1) // names itself in its errors
		}
		err = r.moveUp(dir, name)
	}
	if err = missing(err); err != nil {
		return fmt.Errorf("%.64q: %w", name, err)
	}
	return nil
}

// below removes a directory.
func (r *removal) below(dir int, name string, depth int) error {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd := -1
	err := uninterrupted(func() (err error) {
		fd, err = unix.Openat2(dir, name, &how)
		return err
	})
	if err == nil {
		err = r.empty(fd, depth, func() error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) })
		err = errors.Join(err, unix.Close(fd))
	}
	if err = missing(err); err != nil && r.ctx.Err() == nil {
		return fmt.Errorf("%.64q: %w", name, err)
	}
	return err
}

// moveUp gives a directory that lies too deep a name at the top, where it is
// found again.
func (r *removal) moveUp(dir int, name string) error {
	err := uninterrupted(func() error { return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) })
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	for {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
		to := tempPrefix + hex.EncodeToString(b[:])
		err := uninterrupted(func() error { return unix.Renameat2(dir, name, r.top, to, unix.RENAME_NOREPLACE) })
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
}

// isDirectory is true for the error of unlink(2) for a directory.
func isDirectory(err error) bool { return errors.Is(err, unix.EISDIR) }

// missing takes what is not there for removed.
func missing(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func uninterrupted(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
