package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"hearth/internal/env"
)

// File is a file in the making: invisible until Commit. It is used by one
// goroutine, and ends with Commit or Abort; Abort after Commit does nothing.
type File struct {
	dir  *Dir
	f    *os.File
	op   string
	name string
	temp string
	err  error // sticky: after the first fault nothing may become visible
	done bool
}

// Create begins a file that will be called name (step write).
func (d *Dir) Create(op, name string, perm fs.FileMode) (*File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if err := d.fault.step(op, "write"); err != nil {
		return nil, err
	}
	temp := tempName(name)
	f, err := d.root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return nil, fmt.Errorf("create in %s: %w", d.path, classify(err))
	}
	file := &File{dir: d, f: f, op: op, name: name, temp: temp}
	if err := f.Chmod(perm); err != nil { // the umask must not decide
		file.Abort()
		return nil, fmt.Errorf("create %s: %w", file.Path(), err)
	}
	return file, nil
}

// Path is what the file will be called, for messages.
func (f *File) Path() string { return filepath.Join(f.dir.path, f.name) }

// Write appends to the file.
func (f *File) Write(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	n, err := f.f.Write(p)
	if err != nil {
		f.err = fmt.Errorf("write %s: %w", f.Path(), classify(err))
	}
	return n, f.err
}

// ReadAt reads back what was written.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Commit makes the file durable and gives it its name, replacing a file that
// had it (steps sync, rename, syncdir). After an error in syncdir the name may
// or may not be there after a crash; before that it is not changed.
func (f *File) Commit() error {
	return f.commit("rename", func() error { return f.dir.root.Rename(f.temp, f.name) })
}

// CommitNew is Commit for a name that must not exist yet: env.ErrExists if it
// does (steps sync, link, syncdir).
func (f *File) CommitNew() error {
	return f.commit("link", func() error {
		err := f.dir.root.Link(f.temp, f.name)
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%w: %s", env.ErrExists, f.Path())
		}
		if err == nil {
			_ = f.dir.root.Remove(f.temp) // a second name of the file: Sweep takes it if this fails
		}
		return err
	})
}

func (f *File) commit(step string, publish func() error) error {
	if f.done {
		return fmt.Errorf("%w: %s was already committed or aborted", env.ErrState, f.Path())
	}
	defer f.Abort()
	if f.err != nil {
		return f.err
	}
	if err := f.dir.fault.step(f.op, "sync"); err != nil {
		return err
	}
	if err := f.f.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", f.Path(), classify(err))
	}
	if err := f.dir.fault.step(f.op, step); err != nil {
		return err
	}
	if err := publish(); err != nil {
		return fmt.Errorf("%s %s: %w", step, f.Path(), classify(err))
	}
	f.temp = ""
	return f.dir.sync(f.op)
}

// Abort drops the file unless it was committed.
func (f *File) Abort() {
	if f.done {
		return
	}
	f.done = true
	_ = f.f.Close()
	if f.temp != "" {
		_ = f.dir.root.Remove(f.temp)
	}
}

// WriteFile replaces the file's content atomically (steps write, sync, rename,
// syncdir).
func (d *Dir) WriteFile(op, name string, data []byte, perm fs.FileMode) error {
	f, err := d.write(op, name, data, perm)
	if err != nil {
		return err
	}
	return f.Commit()
}

// WriteNew is WriteFile for a name that must not exist yet: env.ErrExists if
// it does (steps write, sync, link, syncdir).
func (d *Dir) WriteNew(op, name string, data []byte, perm fs.FileMode) error {
	f, err := d.write(op, name, data, perm)
	if err != nil {
		return err
	}
	return f.CommitNew()
}

func (d *Dir) write(op, name string, data []byte, perm fs.FileMode) (*File, error) {
	f, err := d.Create(op, name, perm)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(data); err != nil {
		f.Abort()
		return nil, err
	}
	return f, nil
}
