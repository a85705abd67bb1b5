package durable

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"hearth/internal/env"
)

const (
	dirPerm    = 0o700
	tempPrefix = ".tmp-"
	maxName    = 200
)

// Dir is a directory that belongs to this program alone. Its methods may be
// called from several goroutines; two writers of one name leave one of the two
// contents, never a mixture.
type Dir struct {
	path  string
	root  *os.Root
	self  *os.File // the directory itself, for fsync
	fault Fault
}

// OpenDir opens the directory, making it and its parents (mode 0700) if they
// are missing. A directory that other users may write is refused.
func OpenDir(path string, fault Fault) (*Dir, error) {
	if err := makeAll(path); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open directory: %w", err)
	}
	return newDir(path, root, fault)
}

func newDir(path string, root *os.Root, fault Fault) (*Dir, error) {
	self, err := root.Open(".")
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("open directory %s: %w", path, err)
	}
	d := &Dir{path: path, root: root, self: self, fault: fault}
	info, err := self.Stat()
	if err == nil && info.Mode().Perm()&0o022 != 0 {
		err = fmt.Errorf("%w: directory %s has mode %04o: other users may write it; chmod go-w it",
			env.ErrInvalid, path, info.Mode().Perm())
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// makeAll is os.MkdirAll that also makes each new name durable.
func makeAll(path string) error {
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return fmt.Errorf("%w: %s is not a directory", env.ErrInvalid, path)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("open directory: %w", err)
	}
	parent := filepath.Dir(path)
	if parent == path {
		return fmt.Errorf("open directory: %w", err)
	}
	if err := makeAll(parent); err != nil {
		return err
	}
	if err := os.Mkdir(path, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory: %w", classify(err))
	}
	p, err := os.Open(parent)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	defer p.Close()
	if err := p.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", parent, err)
	}
	return nil
}

// Path is the path that the directory was opened by, for messages.
func (d *Dir) Path() string { return d.path }

// Close releases the descriptors. Files and logs opened before stay open.
func (d *Dir) Close() error { return errors.Join(d.self.Close(), d.root.Close()) }

// Sub opens the subdirectory, making it if it is missing (steps mkdir and
// syncdir).
func (d *Dir) Sub(op, name string) (*Dir, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if _, err := d.root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
		if err := d.mkdir(op, name); err != nil {
			return nil, err
		}
	}
	return d.OpenSub(name)
}

func (d *Dir) mkdir(op, name string) error {
	if err := d.fault.step(op, "mkdir"); err != nil {
		return err
	}
	if err := d.root.Mkdir(name, dirPerm); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make directory in %s: %w", d.path, classify(err))
	}
	return d.sync(op)
}

// OpenSub opens an existing subdirectory; env.ErrNotFound if there is none.
func (d *Dir) OpenSub(name string) (*Dir, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	root, err := d.root.OpenRoot(name)
	if err != nil {
		return nil, d.notFound(name, err)
	}
	return newDir(filepath.Join(d.path, name), root, d.fault)
}

// ReadFile returns the file's content, at most limit bytes: a longer file is
// env.ErrCorrupt, a missing one env.ErrNotFound.
func (d *Dir) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%w: %s is longer than %d bytes", env.ErrCorrupt, f.Name(), limit)
	}
	return data, nil
}

// Open opens a file for reading; env.ErrNotFound if there is none.
func (d *Dir) Open(name string) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, d.notFound(name, err)
	}
	return f, nil
}

func (d *Dir) notFound(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %s", env.ErrNotFound, filepath.Join(d.path, name))
	}
	return fmt.Errorf("open %s: %w", filepath.Join(d.path, name), err)
}

// List returns the names in the directory, sorted, without what unfinished
// operations left behind.
func (d *Dir) List() ([]string, error) {
	return d.list(func(name string) bool { return !strings.HasPrefix(name, tempPrefix) })
}

func (d *Dir) list(keep func(string) bool) ([]string, error) {
	entries, err := fs.ReadDir(d.root.FS(), ".")
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", d.path, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		if keep(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Remove deletes a file or an empty directory; one that is missing is no
// error, so that a repeated removal succeeds.
func (d *Dir) Remove(op, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.fault.step(op, "remove"); err != nil {
		return err
	}
	if err := d.root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove in %s: %w", d.path, err)
	}
	return d.sync(op)
}

// RemoveTree deletes a directory with all below it. The name disappears at
// once; a crash afterwards leaves a remainder for Sweep.
func (d *Dir) RemoveTree(op, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if err := d.fault.step(op, "rename"); err != nil {
		return err
	}
	temp := tempName(name)
	if err := d.root.Rename(name, temp); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("remove in %s: %w", d.path, err)
	}
	if err := d.sync(op); err != nil {
		return err
	}
	if err := d.fault.step(op, "remove"); err != nil {
		return err
	}
	if err := d.root.RemoveAll(temp); err != nil {
		return fmt.Errorf("remove %s: %w", filepath.Join(d.path, temp), err)
	}
	return nil
}

// Sweep deletes what operations that never finished left behind, and returns
// how many names that were. Call it only while nothing else writes here: right
// after Lock, before the first change.
func (d *Dir) Sweep() (int, error) {
	names, err := d.list(func(name string) bool { return strings.HasPrefix(name, tempPrefix) })
	if err != nil {
		return 0, err
	}
	for i, name := range names {
		if err := d.root.RemoveAll(name); err != nil {
			return i, fmt.Errorf("sweep %s: %w", d.path, err)
		}
	}
	return len(names), nil
}

// sync makes the directory's names durable.
func (d *Dir) sync(op string) error {
	if err := d.fault.step(op, "syncdir"); err != nil {
		return err
	}
	if err := d.self.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", d.path, err)
	}
	return nil
}

func tempName(name string) string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return tempPrefix + name + "-" + hex.EncodeToString(b[:])
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || len(name) > maxName,
		strings.ContainsAny(name, "/\x00"), strings.HasPrefix(name, tempPrefix):
		return fmt.Errorf("%w: %.64q is not a file name", env.ErrInvalid, name)
	}
	return nil
}
